//! Published rules for the ranks of low-rank matrices.

use crate::error::{Error, Result};

/// How singular values of different matrices are made comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalization {
    /// $(\sigma_i - \sigma_{\min}) / (\sigma_{\max} - \sigma_{\min})$, WeLore's.
    #[default]
    MinMax,
    /// $\sigma_i / \sigma_{\max}$.
    Max,
    /// $\sigma_i / \lVert \sigma \rVert_2$.
    Energy,
}

impl Normalization {
    fn apply(self, spectrum: &[f64]) -> Vec<f64> {
        let most = spectrum.iter().copied().fold(0.0, f64::max);
        let least = spectrum.iter().copied().fold(f64::INFINITY, f64::min).min(most);
        let (shift, scale) = match self {
            Self::MinMax => (least, most - least),
            Self::Max => (0.0, most),
            Self::Energy => (0.0, spectrum.iter().map(|s| s * s).sum::<f64>().sqrt()),
        };
        // A flat spectrum is all there is of its matrix.
        spectrum.iter().map(|s| if scale > 0.0 { (s - shift) / scale } else { 1.0 }).collect()
    }
}

/// One threshold for all matrices: each keeps the singular values that, normalised, reach it. The threshold is the least at which all
/// ranks together are at most `kept` of all singular values; every matrix keeps at least one. Returns ranks and threshold.
///
/// Source: A. Jaiswal et al., "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients", 2024.
///
/// # Errors
/// [`Error::Parameter`] for `kept` outside of 0 to 1, an empty spectrum, or values that are negative or not finite.
pub fn threshold_ranks(
    spectra: &[Vec<f64>],
    kept: f64,
    normalization: Normalization,
) -> Result<(Vec<usize>, f64)> {
    if !(0.0..=1.0).contains(&kept) {
        return Err(Error::parameter("kept", kept, "0 to 1"));
    }
    let normalised = normalised(spectra, normalization)?;
    let mut all: Vec<f64> = normalised.iter().flatten().copied().collect();
    all.sort_by(|a, b| b.total_cmp(a));
    let allowed = (kept * all.len() as f64).floor() as usize;
    // Equal values stay or go together.
    let threshold = match all.get(allowed) {
        None => 0.0,
        Some(first_out) => {
            all[..allowed].iter().rev().copied().find(|s| s > first_out).unwrap_or(f64::INFINITY)
        }
    };
    Ok((reaching(&normalised, threshold), threshold))
}

/// The ranks at a given threshold: of each matrix, the number of singular values that, normalised, reach it, at least one. Higher
/// thresholds never raise a rank. The published code of WeLore tabulates thresholds per model and target instead of computing them.
///
/// # Errors
/// [`Error::Parameter`] for a threshold that is not a number, an empty spectrum, or values that are negative or not finite.
pub fn ranks_at_threshold(
    spectra: &[Vec<f64>],
    threshold: f64,
    normalization: Normalization,
) -> Result<Vec<usize>> {
    if threshold.is_nan() {
        return Err(Error::parameter("threshold", threshold, "a number"));
    }
    Ok(reaching(&normalised(spectra, normalization)?, threshold))
}

fn reaching(normalised: &[Vec<f64>], threshold: f64) -> Vec<usize> {
    normalised.iter().map(|s| s.iter().filter(|s| **s >= threshold).count().max(1)).collect()
}

fn normalised(spectra: &[Vec<f64>], normalization: Normalization) -> Result<Vec<Vec<f64>>> {
    for (k, spectrum) in spectra.iter().enumerate() {
        if spectrum.is_empty() {
            return Err(Error::parameter("spectra", format!("none for matrix {k}"), "singular values"));
        }
        if let Some(bad) = spectrum.iter().find(|s| !(**s >= 0.0 && s.is_finite())) {
            return Err(Error::parameter("spectra", format!("{bad} in matrix {k}"), "finite numbers >= 0"));
        }
    }
    Ok(spectra.iter().map(|s| normalization.apply(s)).collect())
}

/// Ranks of the four attention matrices of order `d` when `pruned` of their parameters are to go: values and outputs get `ratio` times
/// the rank of queries and keys, and stay dense, `None`, where their rank would not save anything. Returns `(queries and keys, values and
/// outputs)`.
///
/// Source: G. Li et al., "LoRAP: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large Language Models",
/// 2024 (`ratio` 3).
///
/// # Errors
/// [`Error::Parameter`] for `pruned` outside of 0 to 1 or a ratio that is not positive.
pub fn split_ranks(d: usize, pruned: f64, ratio: f64) -> Result<(usize, Option<usize>)> {
    if !(0.0..=1.0).contains(&pruned) {
        return Err(Error::parameter("pruned", pruned, "0 to 1"));
    }
    if !(ratio > 0.0 && ratio.is_finite()) {
        return Err(Error::parameter("ratio", ratio, "a positive number"));
    }
    let kept = (1.0 - pruned) * d as f64;
    let even = (kept / 2.0).floor();
    let values = (even * 2.0 * ratio / (1.0 + ratio)).floor() as usize;
    if values >= d / 2 {
        return Ok(((kept.floor() as usize).saturating_sub(d / 2), None));
    }
    Ok(((even * 2.0 / (1.0 + ratio)).floor() as usize, Some(values)))
}

/// The rank that an `m x n` matrix keeps under LASER's selective reduction to the fraction `rho`: $\lfloor \rho \min(m, n) \rfloor$, at
/// least 1.
///
/// Source: P. Sharma, J. T. Ash and D. Misra, "The Truth is in There: Improving Reasoning in Language Models with Layer-Selective Rank
/// Reduction", 2023.
pub fn reduced_rank((m, n): (usize, usize), rho: f64) -> usize {
    ((rho.clamp(0.0, 1.0) * m.min(n) as f64).floor() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power(n: usize, decay: f64) -> Vec<f64> {
        (1..=n).map(|k| (k as f64).powf(-decay)).collect()
    }

    #[test]
    fn the_threshold_meets_its_target_and_prefers_flat_spectra() {
        let spectra = [power(64, 1.0), power(64, 0.2), power(32, 0.5)];
        let mut before = 0;
        for kept in [0.1, 0.3, 0.5, 0.9, 1.0] {
            for normalization in [Normalization::MinMax, Normalization::Max, Normalization::Energy] {
                let (ranks, _) = threshold_ranks(&spectra, kept, normalization).unwrap();
                let total: usize = ranks.iter().sum();
                // Only a matrix that would keep nothing goes beyond.
                assert!(total <= (kept * 160.0) as usize + 2 && total + 1 >= (kept * 160.0) as usize);
                assert!(ranks[0] <= ranks[1]);
                if normalization == Normalization::MinMax {
                    assert!(total >= before);
                    before = total;
                }
            }
        }
    }

    #[test]
    fn what_each_normalization_does_not_see() {
        let spectra = [power(64, 1.0), power(64, 0.4)];
        let scaled = [power(64, 1.0).iter().map(|s| 7.0 * s).collect(), power(64, 0.4)];
        let shifted = [power(64, 1.0).iter().map(|s| 2.0 + s).collect(), power(64, 0.4)];
        let ranks = |spectra: &[Vec<f64>], n| threshold_ranks(spectra, 0.4, n).unwrap().0;
        for n in [Normalization::MinMax, Normalization::Max, Normalization::Energy] {
            assert_eq!(ranks(&spectra, n), ranks(&scaled, n));
        }
        assert_eq!(ranks(&spectra, Normalization::MinMax), ranks(&shifted, Normalization::MinMax));
        assert_ne!(ranks(&spectra, Normalization::Max), ranks(&shifted, Normalization::Max));
    }

    #[test]
    fn splits_of_the_source() {
        assert_eq!(split_ranks(4096, 0.2, 3.0).unwrap(), (1228, None));
        assert_eq!(split_ranks(4096, 0.5, 3.0).unwrap(), (512, Some(1536)));
        assert_eq!(reduced_rank((100, 60), 0.1), 6);
        assert_eq!(reduced_rank((100, 60), 0.0), 1);
    }

    #[test]
    fn bad_input() {
        let spectra = [vec![1.0, 0.5]];
        assert!(threshold_ranks(&spectra, 1.5, Normalization::Max).is_err());
        assert!(threshold_ranks(&spectra, f64::NAN, Normalization::Max).is_err());
        assert!(threshold_ranks(&[vec![]], 0.5, Normalization::Max).is_err());
        assert!(threshold_ranks(&[vec![f64::NAN]], 0.5, Normalization::Max).is_err());
        assert_eq!(threshold_ranks(&[vec![0.0; 4]], 0.5, Normalization::MinMax).unwrap().0, [1]);
        assert!(split_ranks(8, 0.5, 0.0).is_err() && split_ranks(8, 2.0, 3.0).is_err());
    }
}
