use super::kth_smallest;
use crate::error::{Error, Result};
use ndarray::Array2;

/// A sum of rank-one parts with a scalar each: `Σ c_i b_i a_iᵀ`.
#[derive(Debug, Clone)]
pub struct RankOnes {
    /// `rank x in`.
    pub a: Array2<f64>,
    /// `out x rank`.
    pub b: Array2<f64>,
    /// One scalar per part.
    pub c: Vec<f64>,
}

impl RankOnes {
    /// `|c_i| ‖b_i‖ ‖a_i‖ / ‖B diag(c) A‖_F`: by Gram matrices, `rank² (out + in)`, without a dense matrix. Of the directions that all three have.
    pub fn shares(&self) -> Vec<f64> {
        let (columns, rows) = (self.b.t().dot(&self.b), self.a.dot(&self.a.t()));
        let rank = self.c.len().min(self.a.nrows()).min(self.b.ncols());
        let mut energy = 0.0;
        for i in 0..rank {
            for j in 0..rank {
                energy += self.c[i] * self.c[j] * columns[[i, j]] * rows[[i, j]];
            }
        }
        let norm = energy.max(0.0).sqrt() + 1e-8;
        (0..rank).map(|k| self.c[k].abs() * (columns[[k, k]] * rows[[k, k]]).sqrt() / norm).collect()
    }
}

/// Settings of [`DynamicRank`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicRankSettings {
    /// Rank that each matrix ends with, on average.
    pub end_rank: usize,
    /// Share of the steps before the first pruning.
    pub start: f64,
    /// Share of the steps after the last.
    pub end: f64,
    /// Steps from one pruning to the next.
    pub interval: usize,
    /// Weight of the past in the averaged shares.
    pub beta: f64,
    /// All steps.
    pub total: usize,
}

/// DoRA in the sense of dynamic rank distribution: parts whose averaged [share](RankOnes::shares) of their matrix is smallest are switched off,
/// ever more of them; until the last pruning they may come back, and from then on shares and mask rest.
///
/// Source: Y. Mao et al., "DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution", 2024.
///
/// ```
/// use structmat::adapters::rules::{DynamicRank, DynamicRankSettings, RankOnes};
/// use structmat::ndarray::Array2;
/// let settings = DynamicRankSettings { end_rank: 1, start: 0.0, end: 0.5, interval: 1, beta: 0.9, total: 4 };
/// let mut matrices = [RankOnes { a: Array2::eye(2), b: Array2::eye(2), c: vec![3.0, 1.0] }];
/// let mut rule = DynamicRank::new(settings);
/// for step in 0..4 {
///     rule.step(step, &mut matrices)?;
/// }
/// assert_eq!(matrices[0].c, [3.0, 0.0]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct DynamicRank {
    settings: DynamicRankSettings,
    scores: Vec<Vec<f64>>,
    mask: Option<Vec<Vec<bool>>>,
}

impl DynamicRank {
    /// Before the first step.
    pub fn new(settings: DynamicRankSettings) -> Self {
        Self { settings, scores: Vec::new(), mask: None }
    }

    /// The averaged shares of each matrix.
    pub fn scores(&self) -> &[Vec<f64>] {
        &self.scores
    }

    /// Takes a step (counted from 0) in, and sets the scalars of what is switched off to zero.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes of a matrix do not fit, or change.
    pub fn step(&mut self, step: usize, matrices: &mut [RankOnes]) -> Result<()> {
        let DynamicRankSettings { end_rank, start, end, interval, beta, total } = self.settings;
        if let Some(mask) = &self.mask {
            apply(mask, matrices);
            return Ok(());
        }
        self.scores.resize_with(matrices.len(), Vec::new);
        for (scores, matrix) in self.scores.iter_mut().zip(&*matrices) {
            let rank = matrix.c.len();
            if (matrix.a.nrows(), matrix.b.ncols()) != (rank, rank) {
                let found = [matrix.a.nrows(), matrix.b.ncols()];
                return Err(Error::shape("rank-one parts", &[rank, rank], &found));
            }
            if !(scores.is_empty() || scores.len() == rank) {
                return Err(Error::shape("rank-one parts, as before", &[scores.len()], &[rank]));
            }
            scores.resize(rank, 0.0);
            let new = matrix.shares();
            scores
                .iter_mut()
                .zip(new)
                .for_each(|(score, share)| *score = beta * *score + (1.0 - beta) * share);
        }
        let total = total as f64;
        let (at, last) = ((step as f64 - start * total).trunc(), (total * (1.0 - start - end)).trunc());
        let due = at >= 0.0 && at <= last && (at == last || (at as usize).is_multiple_of(interval.max(1)));
        if !due {
            return Ok(());
        }
        let all: Vec<f64> = self.scores.iter().flatten().copied().collect();
        let kept = end_rank.saturating_mul(matrices.len()).min(all.len());
        let share = if last > 0.0 { (at / last).powi(3) } else { 1.0 };
        let pruned = (((all.len() - kept) as f64 * share) as usize).max(1);
        let threshold = kth_smallest(all, pruned).unwrap_or(f64::NEG_INFINITY);
        let mask: Vec<Vec<bool>> = self
            .scores
            .iter()
            .map(|scores| scores.iter().map(|score| *score > threshold).collect())
            .collect();
        apply(&mask, matrices);
        if at == last {
            self.mask = Some(mask);
        }
        Ok(())
    }
}

fn apply(mask: &[Vec<bool>], matrices: &mut [RankOnes]) {
    for (mask, matrix) in mask.iter().zip(matrices) {
        mask.iter().zip(&mut matrix.c).filter(|(kept, _)| !**kept).for_each(|(_, c)| *c = 0.0);
    }
}
