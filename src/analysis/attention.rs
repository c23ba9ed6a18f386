//! How much attention moves when its scores do.

use crate::error::{Error, Result};
use crate::scalar::Scalar;
use ndarray::ArrayRef2;

/// Sums of probabilities may differ from 1 by this much: what half precision leaves.
const ROUNDING: f64 = 1e-2;

/// Norms of the Jacobian $J = \mathrm{diag}(a) - a a^T$ of a softmax at its result $a$.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sensitivity {
    /// $\lVert J \rVert_2$: no small change of the scores moves the result by more than that much of it.
    pub spectral: f64,
    /// $\lVert J \rVert_F$: what independent changes of all scores, of variance 1, move it by.
    pub frobenius: f64,
}

/// The norms of the Jacobian of one softmax, $\mathrm{diag}(a) - a a^T$, from its result `a`: 0 for a one-hot row, $1/s$ in the spectral
/// norm for a row that is uniform on $s$ entries, at most 1/2.
///
/// They do *not* fall monotonically as rows become more peaked: of two keys, (1/2, 1/2) is the most sensitive row of all, and random rows
/// of 64 keys are most sensitive in between, at logits of a standard deviation of about 3
/// (`published_rules::casp_sensitivity_is_not_monotone_in_peakedness` in the tests).
///
/// The largest eigenvalue lies between the two largest entries and is the root of $1 = \sum_i a_i^2 / (a_i - \lambda)$ there: found by
/// bisection, `O(n)` a step.
///
/// Source: the claim of M. Gholami et al., "CASP: Compression of Large Multimodal Models Based on Attention Sparsity", 2025.
///
/// # Errors
/// [`Error::Parameter`] unless `a` holds probabilities: entries of 0 to 1 with a sum of 1.
///
/// ```
/// use structmat::analysis::softmax_sensitivity;
/// assert!((softmax_sensitivity(&[0.5, 0.0, 0.5])?.spectral - 0.5).abs() < 1e-12);
/// assert!(softmax_sensitivity(&[0.0, 1.0, 0.0])?.spectral < 1e-15);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn softmax_sensitivity(a: &[f64]) -> Result<Sensitivity> {
    if let Some(bad) = a.iter().find(|v| !(0.0..=1.0 + ROUNDING).contains(*v)) {
        return Err(Error::parameter("probability", bad, "0 to 1"));
    }
    let sum: f64 = a.iter().sum();
    if (sum - 1.0).abs() > ROUNDING {
        return Err(Error::parameter("sum of probabilities", sum, "1"));
    }
    let a: Vec<f64> = a.iter().map(|v| v / sum).collect();
    // Squares of the diagonal, and of each pair beside it; nothing is subtracted that could cancel.
    let (mut energy, mut before) = (0.0, 0.0);
    for v in &a {
        energy += v * v * ((1.0 - v).powi(2) + 2.0 * before);
        before += v * v;
    }
    Ok(Sensitivity { spectral: largest_eigenvalue(&a), frobenius: energy.sqrt() })
}

/// Of `diag(a) - a aᵀ`, for entries of sum 1.
fn largest_eigenvalue(a: &[f64]) -> f64 {
    let (mut first, mut second) = (0.0, 0.0);
    for &v in a {
        if v > first {
            (first, second) = (v, first);
        } else if v > second {
            second = v;
        }
    }
    let secular =
        |lambda: f64| 1.0 - a.iter().filter(|v| **v > 0.0).map(|v| v * v / (v - lambda)).sum::<f64>();
    // From the second entry, where it is positive, to the first, where it is negative.
    let (mut low, mut high) = (second, first);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high || high - low <= 0.1 * f64::EPSILON * first {
            return middle;
        }
        if secular(middle) > 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// The sensitivity of attention, from its probabilities $A$ (queries x keys): the largest spectral norm of any row, and the root mean
/// square of the rows' Frobenius norms. To first order $\lVert \Delta A \rVert_F \le s \lVert \Delta Z \rVert_F$ for changes $\Delta Z$
/// of the scores, with $s \le 1/2$ the spectral one.
///
/// # Errors
/// [`Error::Shape`] without rows, and those of [`softmax_sensitivity`].
///
/// ```
/// use structmat::analysis::attention_sensitivity;
/// use structmat::ndarray::array;
/// let attention = array![[1.0f32, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]];
/// assert!((attention_sensitivity(&attention)?.spectral - 0.25).abs() < 1e-6);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn attention_sensitivity<T: Scalar>(attention: &ArrayRef2<T>) -> Result<Sensitivity> {
    if attention.is_empty() {
        return Err(Error::shape("attention", &[1, 1], attention.shape()));
    }
    let (mut spectral, mut energy) = (0.0f64, 0.0);
    for row in attention.outer_iter() {
        let found = softmax_sensitivity(&row.iter().map(|v| v.widen()).collect::<Vec<_>>())?;
        spectral = spectral.max(found.spectral);
        energy += found.frobenius.powi(2);
    }
    Ok(Sensitivity { spectral, frobenius: (energy / attention.nrows() as f64).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{Threads, eigvalsh};
    use crate::random::Gaussian;
    use ndarray::{Array2, array};

    #[test]
    fn casp_the_largest_eigenvalue_is_that_of_a_dense_solver() {
        let mut gaussian = Gaussian::new(3);
        for (n, scale) in
            [(1, 1.0), (2, 0.0), (2, 3.0), (5, 1.0), (40, 0.01), (40, 2.0), (40, 30.0), (7, 0.0)]
        {
            let logits: Vec<f64> = (0..n).map(|_| scale * gaussian.sample()).collect();
            let most = logits.iter().fold(f64::NEG_INFINITY, |m, v| v.max(m));
            let sum: f64 = logits.iter().map(|v| (v - most).exp()).sum();
            let a: Vec<f64> = logits.iter().map(|v| (v - most).exp() / sum).collect();
            let j = Array2::from_shape_fn((n, n), |(i, k)| (if i == k { a[i] } else { 0.0 }) - a[i] * a[k]);
            let found = softmax_sensitivity(&a).unwrap();
            let dense = eigvalsh(&j, Threads::ONE).unwrap()[0];
            assert!((found.spectral - dense).abs() < 1e-13, "{n} {scale}: {} {dense}", found.spectral);
            let norm = j.iter().map(|v| v * v).sum::<f64>().sqrt();
            assert!((found.frobenius - norm).abs() < 1e-13);
            assert!(found.spectral <= 0.5 + 1e-15 && found.spectral <= found.frobenius + 1e-15);
        }
    }

    #[test]
    fn bad_input() {
        for a in [&[][..], &[0.5], &[1.5, -0.5], &[f64::NAN, 1.0], &[0.9, 0.9]] {
            assert!(matches!(softmax_sensitivity(a), Err(Error::Parameter { .. })), "{a:?}");
        }
        assert!(matches!(attention_sensitivity(&Array2::<f32>::zeros((0, 3))), Err(Error::Shape { .. })));
        assert!(attention_sensitivity(&array![[1.0, f64::NAN]]).is_err());
    }
}
