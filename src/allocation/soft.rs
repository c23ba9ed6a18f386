//! Ranks learned by gradient descent through a soft truncation.

use crate::adam::Adam;
use crate::error::{Error, Result};

/// Dobi-SVD's scheme: singular value $i$ (from 1) of every matrix is multiplied by
/// $T_i(\kappa) = \frac12 \tanh(\beta (\kappa - i)) + \frac12$, and the real ranks $\kappa$, one per matrix, descend the loss. Here the loss
/// is the sum of the relative squared truncation errors $\sum_i (1 - T_i)^2 \sigma_i^2 / \sum_i \sigma_i^2$, of spectra that see the
/// activations, and a penalty holds the size at its target.
///
/// Source: Q. Wang et al., "Dobi-SVD: Differentiable SVD for LLM Compression and Some New Perspectives", 2025.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftRanks {
    /// Steepness of the truncation (10 in the source; less lets gradients see more singular values).
    pub beta: f64,
    /// Steps of Adam.
    pub steps: usize,
    /// First step length, in ranks; it falls to a fiftieth along a cosine.
    pub rate: f64,
}

impl Default for SoftRanks {
    fn default() -> Self {
        Self { beta: 10.0, steps: 400, rate: 5.0 }
    }
}

impl SoftRanks {
    /// $T_i(\kappa)$.
    pub fn keep(&self, kappa: f64, i: usize) -> f64 {
        0.5 * (self.beta * (kappa - i as f64)).tanh() + 0.5
    }

    /// $dT_i / d\kappa$.
    pub fn slope(&self, kappa: f64, i: usize) -> f64 {
        0.5 * self.beta * (1.0 - (self.beta * (kappa - i as f64)).tanh().powi(2))
    }

    /// Ranks for matrices of these spectra, where a rank of matrix `k` takes `sizes[k]` of the budget. At most the budget is used; every
    /// rank is at least 1.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lists differ in length, [`Error::Parameter`] for an empty spectrum, values that are not finite, or a budget below
    /// rank 1 for all.
    pub fn ranks(&self, spectra: &[Vec<f64>], sizes: &[u64], budget: u64) -> Result<Vec<usize>> {
        if spectra.len() != sizes.len() {
            return Err(Error::shape("sizes", &[spectra.len()], &[sizes.len()]));
        }
        if spectra.iter().any(|s| s.is_empty() || s.iter().any(|v| !v.is_finite())) {
            return Err(Error::parameter("spectra", "empty or not finite", "finite singular values"));
        }
        let least: u128 = sizes.iter().map(|&size| u128::from(size)).sum();
        let most: u128 = spectra.iter().zip(sizes).map(|(s, &size)| s.len() as u128 * u128::from(size)).sum();
        if most > u128::from(u64::MAX) {
            return Err(Error::parameter("sizes", most, "full ranks of less than 2^64 together"));
        }
        if least > u128::from(budget) {
            return Err(Error::parameter(
                "budget",
                budget,
                format!("at least {least}, for rank 1 everywhere"),
            ));
        }
        let energies: Vec<f64> =
            spectra.iter().map(|s| s.iter().map(|v| v * v).sum::<f64>().max(f64::MIN_POSITIVE)).collect();
        let full: f64 = spectra.iter().zip(sizes).map(|(s, &size)| s.len() as f64 * size as f64).sum();
        let target = budget as f64 / full.max(1.0);
        let mut kappas: Vec<f64> = spectra.iter().map(|s| (target * s.len() as f64).max(1.0)).collect();
        let mut adam = Adam::new(kappas.len(), self.rate, (0.9, 0.999));
        for step in 1..=self.steps {
            let used = kappas.iter().zip(sizes).map(|(k, &size)| k * size as f64).sum::<f64>() / full;
            let over = 200.0 * (used - target).signum();
            let progress = step as f64 / self.steps as f64;
            let part = 0.51 + 0.49 * (std::f64::consts::PI * progress).cos();
            let slope = |(k, kappa): (usize, &f64)| {
                let tail = |(i, s): (usize, &f64)| {
                    -2.0 * (1.0 - self.keep(*kappa, i + 1)) * self.slope(*kappa, i + 1) * s * s
                };
                let gain = spectra[k].iter().enumerate().map(tail).sum::<f64>() / energies[k];
                gain + over * sizes[k] as f64 / full
            };
            let gradient: Vec<f64> = kappas.iter().enumerate().map(slope).collect();
            adam.step(&mut kappas, &gradient, part);
            for (kappa, spectrum) in kappas.iter_mut().zip(spectra) {
                *kappa = kappa.clamp(1.0, spectrum.len() as f64);
            }
        }
        Ok(rounded(&kappas, spectra, sizes, budget))
    }
}

/// Whole ranks within the budget: rounded down, then what is left goes where it lowers the error most.
fn rounded(kappas: &[f64], spectra: &[Vec<f64>], sizes: &[u64], budget: u64) -> Vec<usize> {
    let mut ranks: Vec<usize> = kappas.iter().map(|k| k.floor().max(1.0) as usize).collect();
    let used = |ranks: &[usize]| ranks.iter().zip(sizes).map(|(&r, &size)| r as u64 * size).sum::<u64>();
    let gain = |k: usize, rank: usize| {
        spectra[k].get(rank).map_or(0.0, |s| s * s)
            / sizes[k].max(1) as f64
            / spectra[k].iter().map(|s| s * s).sum::<f64>().max(f64::MIN_POSITIVE)
    };
    while used(&ranks) > budget {
        let open = (0..ranks.len()).filter(|&k| ranks[k] > 1);
        let Some(k) = open.min_by(|&a, &b| gain(a, ranks[a] - 1).total_cmp(&gain(b, ranks[b] - 1))) else {
            break;
        };
        ranks[k] -= 1;
    }
    loop {
        let spare = budget - used(&ranks).min(budget);
        let open = (0..ranks.len()).filter(|&k| sizes[k] <= spare && ranks[k] < spectra[k].len());
        let best = open.max_by(|&a, &b| gain(a, ranks[a]).total_cmp(&gain(b, ranks[b])).then(b.cmp(&a)));
        match best {
            Some(k) if sizes[k] > 0 => ranks[k] += 1,
            _ => return ranks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_is_soft_by_half_a_rank() {
        let soft = SoftRanks::default();
        for i in 1..=10 {
            assert!(soft.keep(10.5, i) >= 0.9999);
            assert!(soft.keep(10.5, i + 10) <= 1e-4);
            let (kappa, h) = (5.3, 1e-6);
            let difference = (soft.keep(kappa + h, i) - soft.keep(kappa - h, i)) / (2.0 * h);
            assert!((difference - soft.slope(kappa, i)).abs() < 1e-6);
        }
    }

    #[test]
    fn budgets_are_kept_and_flat_spectra_get_more() {
        let power = |decay: f64| (1..=60).map(|k| f64::from(k).powf(-decay)).collect::<Vec<_>>();
        let spectra = [power(1.5), power(0.2), power(0.6)];
        for budget in [30, 500, 900, 2000] {
            let ranks = SoftRanks::default().ranks(&spectra, &[10, 10, 10], budget).unwrap();
            let used: usize = ranks.iter().sum::<usize>() * 10;
            assert!(used as u64 <= budget && used as u64 + 10 > budget.min(1800));
            assert!(ranks[0] <= ranks[1] || budget == 2000);
        }
        assert!(SoftRanks::default().ranks(&spectra, &[10, 10, 10], 29).is_err());
        assert!(SoftRanks::default().ranks(&spectra, &[10], 290).is_err());
        assert!(SoftRanks::default().ranks(&[vec![f64::NAN]], &[1], 290).is_err());
    }
}
