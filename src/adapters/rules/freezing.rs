use super::{Importance, kth_smallest};
use crate::error::{Error, Result};

/// Settings of [`MatrixFreezer`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FreezerSettings {
    /// Steps before anything is frozen.
    pub warmup: usize,
    /// Steps at the end, before which all is frozen.
    pub last: usize,
    /// Steps from one decision to the next; gradients are averaged in between.
    pub interval: usize,
    /// Weights of the past in both averages of [`Importance`].
    pub betas: (f64, f64),
    /// All steps.
    pub total: usize,
}

/// What a step of [`MatrixFreezer`] decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Frozen {
    /// Share of the scores that may stay trainable.
    pub keep_ratio: f64,
    /// The score below which a matrix is frozen; `None` where no decision was due.
    pub threshold: Option<f64>,
}

/// AFLoRA's rule: projection matrices are frozen one by one, for good, once the mean of their scores is below a quantile of the scores of all
/// that are still trainable. As frozen ones leave, the quantile is one of the rest, as in the published code.
///
/// The sensitivity is the magnitude of the gradient, averaged over the steps between decisions.
///
/// Source: Z. Liu et al., "AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient Fine-Tuning of Large Models", 2024.
///
/// ```
/// use structmat::adapters::rules::{FreezerSettings, MatrixFreezer};
/// let settings = FreezerSettings { warmup: 1, last: 1, interval: 1, betas: (0.85, 0.95), total: 6 };
/// let mut rule = MatrixFreezer::new(settings, 2);
/// for step in 1..=6 {
///     rule.step(step, &[vec![1.0, 1.0], vec![9.0, 9.0]])?;
/// }
/// assert!(!rule.trainable()[0]); // the one with the smaller gradients first
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct MatrixFreezer {
    settings: FreezerSettings,
    importance: Vec<Importance>,
    window: Vec<Vec<f64>>,
    trainable: Vec<bool>,
}

impl MatrixFreezer {
    /// Of so many matrices, all trainable.
    pub fn new(settings: FreezerSettings, matrices: usize) -> Self {
        let importance = Importance::new(settings.betas.0, settings.betas.1);
        Self {
            settings,
            importance: vec![importance; matrices],
            window: vec![Vec::new(); matrices],
            trainable: vec![true; matrices],
        }
    }

    /// Which matrices are trained.
    pub fn trainable(&self) -> &[bool] {
        &self.trainable
    }

    /// Takes the gradients of a step (counted from 1) in, those of a matrix in any order that stays.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of matrices, or of gradients of one.
    pub fn step(&mut self, step: usize, gradients: &[Vec<f64>]) -> Result<Frozen> {
        let FreezerSettings { warmup, last, interval, total, .. } = self.settings;
        let interval = interval.max(1);
        if gradients.len() != self.trainable.len() {
            return Err(Error::shape("gradients of matrices", &[self.trainable.len()], &[gradients.len()]));
        }
        for ((window, importance), gradient) in
            self.window.iter_mut().zip(&mut self.importance).zip(gradients)
        {
            if window.is_empty() {
                window.resize(gradient.len(), 0.0);
            }
            if window.len() != gradient.len() {
                return Err(Error::shape("gradients of a matrix", &[window.len()], &[gradient.len()]));
            }
            window.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g.abs() / interval as f64);
            if step % interval == 1 % interval {
                importance.update(window);
                window.fill(0.0);
            }
        }
        let end = total.saturating_sub(last);
        let keep_ratio = match step {
            _ if step <= warmup => 1.0,
            _ if step >= end => 0.0,
            _ => (1.0 - (step - warmup) as f64 / (end - warmup) as f64).powi(3),
        };
        let mut threshold = None;
        if step > warmup && step < end && step.is_multiple_of(interval) && self.trainable.contains(&true) {
            let scores: Vec<Vec<f64>> = self.importance.iter().map(Importance::scores).collect();
            let pool: Vec<f64> = scores
                .iter()
                .zip(&self.trainable)
                .filter(|(_, t)| **t)
                .flat_map(|(s, _)| s.iter().copied())
                .collect();
            let below = (pool.len() as f64 * (1.0 - keep_ratio)) as usize;
            threshold = kth_smallest(pool, below.max(1));
            for (scores, trainable) in scores.iter().zip(&mut self.trainable) {
                let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
                *trainable &= threshold.is_none_or(|threshold| mean >= threshold);
            }
        }
        if step >= end {
            self.trainable.fill(false);
        }
        Ok(Frozen { keep_ratio, threshold })
    }
}
