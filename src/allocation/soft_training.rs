//! Soft ranks trained on any loss.

use crate::adam::Adam;
use crate::error::{Error, Result};

/// What a rank of an `m x n` matrix takes of the numbers of the dense one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RankSize {
    /// `m + n`: two factors.
    #[default]
    Factors,
    /// `max(m, n)`: factors of which the entries that meet take half of the bits, so that the full rank takes as much as the dense matrix
    /// ([`RemappedLowRank`](crate::structures::RemappedLowRank)).
    Remapped,
}

impl RankSize {
    /// Numbers that a rank takes.
    pub fn per_rank(self, (m, n): (usize, usize)) -> u64 {
        match self {
            Self::Factors => (m as u64).saturating_add(n as u64),
            Self::Remapped => m.max(n) as u64,
        }
    }

    /// Numbers that the real rank `kappa` takes; never more than the dense matrix has.
    pub fn size(self, (m, n): (usize, usize), kappa: f64) -> f64 {
        (kappa * self.per_rank((m, n)) as f64).min(m as f64 * n as f64)
    }

    /// The rank whose size is the fraction `ratio` of the dense matrix's: $\rho m n / (m + n)$, or $\rho \min(m, n)$.
    pub fn rank_at(self, (m, n): (usize, usize), ratio: f64) -> f64 {
        ratio * m as f64 * n as f64 / self.per_rank((m, n)).max(1) as f64
    }
}

/// Dobi-SVD's training of ranks: one real rank $\kappa$ for each matrix descends, by Adam,
///
/// $$L(\kappa) + 200\, | \rho(\kappa) - \rho^* | + \sum (\text{how far } \kappa \text{ is out of range})^2,
/// \qquad \rho(\kappa) = \frac{\sum \min(\text{size}(\kappa), m n)}{\sum m n}$$
///
/// for a loss $L$ that the caller evaluates, by [`SoftTruncation`](crate::training::SoftTruncation) or otherwise. Defaults are the source's: rates that
/// fall from 5 to 4 along a cosine, 20 steps (its epochs). At these rates ranks of small matrices never settle: give them a smaller `last_rate`, and more
/// steps. [`SoftRanks::ranks`](super::SoftRanks::ranks) is the case of spectra known beforehand.
///
/// Source: Q. Wang et al., "Dobi-SVD: Differentiable SVD for LLM Compression and Some New Perspectives", 2025.
///
/// ```
/// use structmat::allocation::{RankSize, SoftRankTrainer};
/// // The first matrix gains from each rank, the second not.
/// let trainer = SoftRankTrainer { rate: 0.5, last_rate: 0.01, steps: 200, ..SoftRankTrainer::new(RankSize::Factors, 0.5) };
/// let found = trainer.train(&[(40, 40), (40, 40)], |kappa| Ok((-kappa[0], vec![-1.0, 0.0])))?;
/// assert!(found.ranks[0] > found.ranks[1] && found.ranks[0] + found.ranks[1] == 20);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftRankTrainer {
    /// What a rank takes.
    pub size: RankSize,
    /// $\rho^*$: the share of the dense matrices' numbers, above 0 and at most 1.
    pub target: f64,
    /// Steps of Adam.
    pub steps: usize,
    /// First step length, in ranks.
    pub rate: f64,
    /// Last step length.
    pub last_rate: f64,
    /// Weight of the distance from the target (200).
    pub penalty: f64,
}

/// What [`SoftRankTrainer::train`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnedRanks {
    /// The real ranks after the last step.
    pub kappas: Vec<f64>,
    /// Whole ranks within the target: `kappas` rounded down, then up where most was cut off, as long as there is room. A rank at which
    /// factors would take more than the dense matrix stands for that.
    pub ranks: Vec<usize>,
    /// The caller's loss before each step.
    pub history: Vec<f64>,
}

impl SoftRankTrainer {
    /// The source's schedule.
    pub fn new(size: RankSize, target: f64) -> Self {
        Self { size, target, steps: 20, rate: 5.0, last_rate: 4.0, penalty: 200.0 }
    }

    /// Ranks for matrices of these shapes (`m x n`). `loss` is given one real rank for each, and returns the loss and its gradient by them.
    ///
    /// # Errors
    /// [`Error::Parameter`] for no shape, one with an empty side, a target outside of 0 to 1 or below rank 1 everywhere, rates that are not positive
    /// or a penalty that is negative; [`Error::Shape`] for a gradient of another length; [`Error::NonFinite`] for a loss or a gradient that is not
    /// finite; and those of `loss`.
    pub fn train(
        &self,
        shapes: &[(usize, usize)],
        mut loss: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>)>,
    ) -> Result<LearnedRanks> {
        let total = self.check(shapes)?;
        let most = |(m, n): (usize, usize)| m.min(n) as f64;
        let start = |shape: &(usize, usize)| self.size.rank_at(*shape, self.target).clamp(1.0, most(*shape));
        let mut kappas: Vec<f64> = shapes.iter().map(start).collect();
        let mut adam = Adam::new(kappas.len(), 1.0, (0.9, 0.999));
        let mut history = Vec::with_capacity(self.steps.min(1 << 20));
        for step in 0..self.steps {
            let (value, mut gradient) = loss(&kappas)?;
            if gradient.len() != kappas.len() {
                return Err(Error::shape("gradient by the ranks", &[kappas.len()], &[gradient.len()]));
            }
            let finite = [value].into_iter().chain(gradient.iter().copied());
            if let Some((col, value)) = finite.enumerate().find(|(_, x)| !x.is_finite()) {
                let what = if col == 0 { "loss of the ranks" } else { "gradient by the ranks" };
                return Err(Error::NonFinite { what, row: 0, col: col.saturating_sub(1), value });
            }
            history.push(value);
            let used: f64 = shapes.iter().zip(&kappas).map(|(shape, k)| self.size.size(*shape, *k)).sum();
            let over = used / total - self.target;
            let pull = if over == 0.0 { 0.0 } else { self.penalty * over.signum() };
            for ((g, kappa), &(m, n)) in gradient.iter_mut().zip(&kappas).zip(shapes) {
                let grows = self.size.size((m, n), *kappa) < m as f64 * n as f64;
                if grows {
                    *g += pull * self.size.per_rank((m, n)) as f64 / total;
                }
                *g += 2.0 * (kappa - kappa.clamp(1.0, most((m, n))));
            }
            let progress = step as f64 / self.steps.saturating_sub(1).max(1) as f64;
            let part = 0.5 + 0.5 * (std::f64::consts::PI * progress).cos();
            adam.step(&mut kappas, &gradient, self.last_rate + part * (self.rate - self.last_rate));
        }
        let ranks = self.rounded(shapes, &kappas, total);
        Ok(LearnedRanks { kappas, ranks, history })
    }

    /// Numbers of all dense matrices.
    fn check(&self, shapes: &[(usize, usize)]) -> Result<f64> {
        if shapes.is_empty() {
            return Err(Error::parameter("shapes", "none", "at least one"));
        }
        if let Some((m, n)) = shapes.iter().find(|(m, n)| *m == 0 || *n == 0) {
            return Err(Error::parameter("shapes", format!("{m} x {n}"), "sides of at least 1"));
        }
        for (name, rate) in [("rate", self.rate), ("last_rate", self.last_rate)] {
            if !(rate > 0.0 && rate.is_finite()) {
                return Err(Error::parameter(name, rate, "a positive number"));
            }
        }
        if !(self.penalty >= 0.0 && self.penalty.is_finite()) {
            return Err(Error::parameter("penalty", self.penalty, "a finite number >= 0"));
        }
        let total: f64 = shapes.iter().map(|(m, n)| *m as f64 * *n as f64).sum();
        let least: f64 = shapes.iter().map(|shape| self.size.size(*shape, 1.0)).sum();
        if !(self.target > 0.0 && self.target <= 1.0 && least <= self.target * total * (1.0 + 1e-12)) {
            let least = least / total;
            return Err(Error::parameter("target", self.target, format!("{least} (rank 1 everywhere) to 1")));
        }
        Ok(total)
    }

    fn rounded(&self, shapes: &[(usize, usize)], kappas: &[f64], total: f64) -> Vec<usize> {
        let budget = self.target * total * (1.0 + 1e-12);
        let size = |k: usize, rank: usize| self.size.size(shapes[k], rank as f64);
        let most = |k: usize| shapes[k].0.min(shapes[k].1);
        let mut ranks: Vec<usize> =
            kappas.iter().enumerate().map(|(k, kappa)| (kappa.max(1.0) as usize).min(most(k))).collect();
        let mut used: f64 = (0..ranks.len()).map(|k| size(k, ranks[k])).sum();
        let cut = |k: usize, ranks: &[usize]| kappas[k] - ranks[k] as f64;
        while used > budget {
            // Down where least is left of the rank that goes.
            let open = (0..ranks.len()).filter(|&k| ranks[k] > 1);
            let Some(k) = open.min_by(|&a, &b| cut(a, &ranks).total_cmp(&cut(b, &ranks))) else { break };
            used += size(k, ranks[k] - 1) - size(k, ranks[k]);
            ranks[k] -= 1;
        }
        loop {
            let fits = |k: usize| used + size(k, ranks[k] + 1) - size(k, ranks[k]) <= budget;
            let open = (0..ranks.len()).filter(|&k| ranks[k] < most(k) && fits(k));
            let best = open.max_by(|&a, &b| cut(a, &ranks).total_cmp(&cut(b, &ranks)).then(b.cmp(&a)));
            let Some(k) = best else { return ranks };
            used += size(k, ranks[k] + 1) - size(k, ranks[k]);
            ranks[k] += 1;
        }
    }
}
