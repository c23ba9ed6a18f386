use super::{Importance, kth_smallest};
use crate::error::{Error, Result};
use ndarray::Array2;

/// One matrix of AdaLoRA, or the gradients of its numbers: `D = B diag(e) A`.
#[derive(Debug, Clone)]
pub struct Triplets {
    /// `rank x in`.
    pub a: Array2<f64>,
    /// One number per direction.
    pub e: Vec<f64>,
    /// `out x rank`.
    pub b: Array2<f64>,
}

/// Settings of [`AdaLora`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaLoraSettings {
    /// Rank that each matrix ends with, on average.
    pub target_rank: usize,
    /// Steps before the budget shrinks.
    pub warmup: usize,
    /// Steps at the end, in which it stays.
    pub last: usize,
    /// Steps from one masking to the next.
    pub interval: usize,
    /// Weights of the past in both averages of [`Importance`].
    pub betas: (f64, f64),
    /// All steps.
    pub total: usize,
}

/// AdaLoRA's allocation: directions of all matrices are ranked by their importance, and those beyond a budget are masked, which shrinks like a
/// cube from all to the target.
///
/// Before the last phase a masked direction may come back; from then on the mask stays. When the budget does not shrink, nothing is masked.
///
/// Source: Q. Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023.
///
/// ```
/// use structmat::adapters::rules::{AdaLora, AdaLoraSettings, Triplets};
/// use structmat::ndarray::array;
/// let settings = AdaLoraSettings { target_rank: 1, warmup: 0, last: 1, interval: 1, betas: (0.8, 0.8), total: 3 };
/// let mut rule = AdaLora::new(settings);
/// let matrix = Triplets { a: array![[1.0], [1.0]], e: vec![1.0, 0.1], b: array![[1.0, 1.0]] };
/// let gradients = [matrix.clone()];
/// for step in 1..=3 {
///     rule.step(step, &[matrix.clone()], &gradients)?;
/// }
/// assert_eq!(rule.mask().unwrap(), [[true, false]]); // the small direction moved least
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct AdaLora {
    settings: AdaLoraSettings,
    /// Of `A`, `e` and `B` of each matrix.
    importance: Vec<[Importance; 3]>,
    last: Option<Vec<Vec<bool>>>,
}

impl AdaLora {
    /// Before the first step.
    pub fn new(settings: AdaLoraSettings) -> Self {
        Self { settings, importance: Vec::new(), last: None }
    }

    /// The mask that stays, once the last phase has begun: which directions of each matrix are kept.
    pub fn mask(&self) -> Option<&[Vec<bool>]> {
        self.last.as_deref()
    }

    /// Directions that may be kept after `step` (counted from 1) of `all`, for so many matrices.
    pub fn budget(&self, step: usize, all: usize, matrices: usize) -> usize {
        let AdaLoraSettings { target_rank, warmup, last, total, .. } = self.settings;
        let target = target_rank.saturating_mul(matrices).min(all);
        let end = total.saturating_sub(last);
        if step <= warmup {
            return all;
        }
        if step > end || end <= warmup {
            return target;
        }
        let left = 1.0 - (step - warmup) as f64 / (end - warmup) as f64;
        ((all - target) as f64 * left.powi(3) + target as f64) as usize
    }

    /// Takes the numbers and gradients of a step (counted from 1) in. What is returned says which directions to keep, where it is time to mask.
    ///
    /// # Errors
    /// [`Error::Shape`] when gradients and numbers differ in shape, [`Error::Parameter`] for a last step of matrices that no step before has seen.
    pub fn step(
        &mut self,
        step: usize,
        matrices: &[Triplets],
        gradients: &[Triplets],
    ) -> Result<Option<Vec<Vec<bool>>>> {
        let AdaLoraSettings { warmup, last, interval, betas, total, .. } = self.settings;
        if matrices.len() != gradients.len() {
            return Err(Error::shape("gradients of AdaLoRA", &[matrices.len()], &[gradients.len()]));
        }
        for (w, g) in matrices.iter().zip(gradients) {
            let rank = w.e.len();
            if w.a.nrows() != rank || w.b.ncols() != rank {
                let found = [w.a.nrows(), w.b.ncols()];
                return Err(Error::shape("ranks of AdaLoRA's factors", &[rank, rank], &found));
            }
            if g.e.len() != rank {
                return Err(Error::shape("gradients of AdaLoRA", &[rank], &[g.e.len()]));
            }
            if let Some((w, g)) = [(&w.a, &g.a), (&w.b, &g.b)].into_iter().find(|(w, g)| w.dim() != g.dim()) {
                return Err(Error::shape("gradients of AdaLoRA", w.shape(), g.shape()));
            }
        }
        let end = total.saturating_sub(last);
        if step > end && self.last.is_some() {
            return Ok(self.last.clone());
        }
        if step < end {
            let fresh = || [(); 3].map(|()| Importance::new(betas.0, betas.1));
            self.importance.resize_with(matrices.len(), fresh);
            for (importance, (w, g)) in self.importance.iter_mut().zip(matrices.iter().zip(gradients)) {
                let product = |w: &Array2<f64>, g: &Array2<f64>| -> Vec<f64> {
                    w.iter().zip(g).map(|(w, g)| (w * g).abs()).collect()
                };
                importance[0].update(&product(&w.a, &g.a));
                importance[1].update(&w.e.iter().zip(&g.e).map(|(w, g)| (w * g).abs()).collect::<Vec<_>>());
                importance[2].update(&product(&w.b, &g.b));
            }
        }
        if self.importance.len() != matrices.len() {
            let known =
                format!("{step}, with {} of {} matrices known", self.importance.len(), matrices.len());
            return Err(Error::parameter("step", known, "the same matrices in all steps, from the first on"));
        }
        let now = step > warmup && step < end && step.is_multiple_of(interval.max(1));
        if !now && step < end {
            return Ok(None);
        }
        let scores: Vec<Vec<f64>> =
            matrices.iter().zip(&self.importance).map(|(w, importance)| scores(w, importance)).collect();
        let all: Vec<f64> = scores.iter().flatten().copied().collect();
        let masked = all.len() - self.budget(step, all.len(), matrices.len());
        let threshold = kth_smallest(all, masked);
        let mask: Vec<Vec<bool>> = scores
            .iter()
            .map(|scores| scores.iter().map(|score| threshold.is_none_or(|least| *score > least)).collect())
            .collect();
        if step >= end {
            self.last = Some(mask.clone());
        }
        Ok(Some(mask))
    }
}

/// Of each direction: its own score and the means of those of its row and column.
fn scores(w: &Triplets, [a, e, b]: &[Importance; 3]) -> Vec<f64> {
    let (a, e, b) = (a.scores(), e.scores(), b.scores());
    let (rank, n, m) = (w.e.len(), w.a.ncols(), w.b.nrows());
    (0..rank)
        .map(|k| {
            let row: f64 = a.iter().skip(k * n).take(n).sum();
            let column: f64 = b.iter().skip(k).step_by(rank).sum();
            e.get(k).copied().unwrap_or(0.0) + row / n.max(1) as f64 + column / m.max(1) as f64
        })
        .collect()
}
