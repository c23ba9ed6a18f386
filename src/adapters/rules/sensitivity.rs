use crate::allocation::apportion;
use crate::error::{Error, Result};
use crate::linalg::{Threads, check_finite, entropy_rank, singular_values};
use crate::projection::Gram;
use ndarray::{Array2, ArrayRef2};

/// By how much each weight of `w` (`out x in`), were it zero, would raise the squared error of the outputs, other weights held:
/// $\frac 12 W_{ij}^2 \cdot 2 C_{jj}$, with the Hessian $2C$ of each row. For a diagonal $C$ the sum over several is exact too.
///
/// # Errors
/// [`Error::Shape`] for a Gram matrix of another size, [`Error::NonFinite`] for NaN or infinities.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::rules::saliency;
/// use structmat::ndarray::array;
/// let gram = Gram::from_second_moment(&array![[4.0, 0.0], [0.0, 1.0]])?;
/// assert_eq!(saliency(&array![[2.0, 3.0]], &gram)?, array![[16.0, 9.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn saliency(w: &ArrayRef2<f64>, gram: &Gram) -> Result<Array2<f64>> {
    let n = w.ncols();
    if gram.in_features() != n {
        return Err(Error::shape("Gram matrix", &[n, n], &[gram.in_features(), gram.in_features()]));
    }
    check_finite("weight", w)?;
    let c = gram.second_moment().diag();
    Ok(Array2::from_shape_fn(w.dim(), |(i, j)| w[[i, j]] * w[[i, j]] * c[j].max(0.0)))
}

/// The same by the empirical Fisher information: $\frac 12 W_{ij}^2 E[g_{ij}^2]$, from mean squared gradients.
///
/// # Errors
/// [`Error::Shape`] for gradients of another shape, [`Error::NonFinite`] for NaN or infinities, [`Error::Parameter`] for squares below 0.
///
/// ```
/// use structmat::ndarray::array;
/// let s = structmat::adapters::rules::fisher_saliency(&array![[2.0, 3.0]], &array![[4.0, 1.0]])?;
/// assert_eq!(s, array![[8.0, 4.5]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn fisher_saliency(w: &ArrayRef2<f64>, squared_gradients: &ArrayRef2<f64>) -> Result<Array2<f64>> {
    if squared_gradients.dim() != w.dim() {
        return Err(Error::shape("squared gradients", w.shape(), squared_gradients.shape()));
    }
    check_finite("weight", w)?;
    check_finite("squared gradients", squared_gradients)?;
    if let Some(bad) = squared_gradients.iter().find(|g| **g < 0.0) {
        return Err(Error::parameter("squared gradient", bad, "at least 0"));
    }
    Ok(Array2::from_shape_fn(w.dim(), |at| 0.5 * w[at] * w[at] * squared_gradients[at]))
}

/// Settings of [`sensitivity_ranks`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SensitivitySettings {
    /// Weight of the local metrics, 0 to 1.
    pub gamma: f64,
    /// The fraction of the saliencies of a matrix that counts as its top.
    pub top: f64,
    /// The rank that every matrix gets.
    pub least: usize,
}

impl Default for SensitivitySettings {
    /// Both metrics alike, the top percent, at least rank 1.
    fn default() -> Self {
        Self { gamma: 0.5, top: 0.01, least: 1 }
    }
}

/// What each matrix weighs, from its saliencies `s`: $z = (1 - \gamma) \hat G + \gamma (\hat T + \hat R) / 2$ with the sum $G$ of them, the share $T$ of
/// the largest, and the effective rank $R$ of $[\sqrt{s_{ij}}]$; hats divide by the sum over all matrices.
///
/// One decomposition per matrix.
///
/// # Errors
/// [`Error::Parameter`] for settings outside of 0 to 1, an empty matrix, or a saliency that is negative or not finite.
///
/// ```
/// use structmat::adapters::rules::{SensitivitySettings, sensitivity_scores};
/// use structmat::ndarray::array;
/// let scores = sensitivity_scores(&[array![[1.0, 1.0]], array![[3.0, 3.0]]], &SensitivitySettings::default())?;
/// assert!((scores[0] - 0.375).abs() < 1e-12 && (scores[1] - 0.625).abs() < 1e-12);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn sensitivity_scores(saliencies: &[Array2<f64>], settings: &SensitivitySettings) -> Result<Vec<f64>> {
    for (name, value) in [("gamma", settings.gamma), ("top", settings.top)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::parameter(name, value, "0 to 1"));
        }
    }
    // One scale for all, so that sums of the largest numbers stay finite.
    let mut largest = 0.0f64;
    for (k, s) in saliencies.iter().enumerate() {
        if s.is_empty() {
            return Err(Error::parameter("saliencies", format!("none for matrix {k}"), "a matrix of them"));
        }
        if let Some(bad) = s.iter().find(|s| !(**s >= 0.0 && s.is_finite())) {
            return Err(Error::parameter(
                "saliencies",
                format!("{bad} in matrix {k}"),
                "finite numbers >= 0",
            ));
        }
        largest = s.iter().copied().fold(largest, f64::max);
    }
    let scale = if largest > 0.0 { largest } else { 1.0 };
    let (mut global, mut shares, mut ranks) = (Vec::new(), Vec::new(), Vec::new());
    for s in saliencies {
        let total: f64 = s.iter().map(|s| s / scale).sum();
        let mut sorted: Vec<f64> = s.iter().map(|s| s / scale).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let count = ((settings.top * sorted.len() as f64).ceil() as usize).min(sorted.len());
        let top: f64 = sorted[..count].iter().sum();
        shares.push(if total > 0.0 { top / total } else { 0.0 });
        ranks.push(entropy_rank(&singular_values(&s.mapv(|s| (s / scale).sqrt()), Threads::ONE)?));
        global.push(total);
    }
    let hat = |values: &[f64]| -> Vec<f64> {
        let total: f64 = values.iter().sum();
        values.iter().map(|v| if total > 0.0 { v / total } else { 0.0 }).collect()
    };
    let (global, shares, ranks, gamma) = (hat(&global), hat(&shares), hat(&ranks), settings.gamma);
    let score = |k: usize| (1.0 - gamma) * global[k] + gamma * (shares[k] + ranks[k]) / 2.0;
    Ok((0..saliencies.len()).map(score).collect())
}

/// Sensitivity-LoRA: shares `total` ranks out among matrices in proportion to their [scores](sensitivity_scores), each at least
/// [`SensitivitySettings::least`] and at most its smaller side; exactly `total` in all. A matrix without saliency gets the least.
///
/// Source: H. Zhang et al., "Sensitivity-LoRA: Low-Load Sensitivity-Based Fine-Tuning for Large Language Models", 2025, from its description: the
/// formulas of the global and local metrics are this crate's.
///
/// # Errors
/// Those of [`sensitivity_scores`] and [`apportion`].
///
/// ```
/// use structmat::adapters::rules::{SensitivitySettings, sensitivity_ranks};
/// use structmat::ndarray::Array2;
/// let saliencies = [Array2::from_elem((8, 8), 1.0), Array2::zeros((8, 8))];
/// assert_eq!(sensitivity_ranks(&saliencies, 8, &SensitivitySettings::default())?, [7, 1]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn sensitivity_ranks(
    saliencies: &[Array2<f64>],
    total: usize,
    settings: &SensitivitySettings,
) -> Result<Vec<usize>> {
    let scores = sensitivity_scores(saliencies, settings)?;
    let caps: Vec<usize> = saliencies.iter().map(|s| s.nrows().min(s.ncols())).collect();
    let floors: Vec<usize> = caps.iter().map(|cap| settings.least.min(*cap)).collect();
    apportion(total, &scores, &floors, &caps)
}
