use crate::error::{Error, Result};
use crate::projection::largest;

/// Settings of [`VectorFreezer`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VectorFreezerSettings {
    /// Steps before anything is frozen.
    pub start: usize,
    /// Steps from one decision to the next.
    pub interval: usize,
    /// Vectors that are frozen at a time.
    pub count: usize,
    /// Weight of the past in the averaged strength.
    pub beta: f64,
}

/// VectorFit's adaptive vector freezing: the vectors that moved most from where they started pause for a window, so that the others catch up.
///
/// The strength of a vector is the mean distance of its numbers from their start, averaged over steps. From `start` on, every `interval` steps the
/// `count` strongest are frozen until the next decision and all others are trained again.
///
/// Source: S. Hegde et al., "VectorFit: Adaptive Singular & Bias Vector Fine-Tuning of Pre-trained Foundation Models", 2025, from its description.
///
/// ```
/// use structmat::adapters::rules::{VectorFreezer, VectorFreezerSettings};
/// let settings = VectorFreezerSettings { start: 1, interval: 1, count: 1, beta: 0.99 };
/// let mut rule = VectorFreezer::new(settings, vec![vec![0.0], vec![0.0, 0.0]])?;
/// assert_eq!(rule.step(1, &[vec![0.1], vec![1.0, -1.0]])?, [false, true]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct VectorFreezer {
    settings: VectorFreezerSettings,
    start: Vec<Vec<f64>>,
    strength: Vec<f64>,
    frozen: Vec<bool>,
}

impl VectorFreezer {
    /// Of these vectors, all trainable.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an interval of 0, more frozen vectors than there are, or a weight of the past outside of 0 to 1.
    pub fn new(settings: VectorFreezerSettings, start: Vec<Vec<f64>>) -> Result<Self> {
        let VectorFreezerSettings { interval, count, beta, .. } = settings;
        if interval == 0 {
            return Err(Error::parameter("interval", interval, "at least 1"));
        }
        if count > start.len() {
            return Err(Error::parameter("count", count, format!("at most {}", start.len())));
        }
        if !(0.0..=1.0).contains(&beta) {
            return Err(Error::parameter("beta", beta, "0 to 1"));
        }
        let (strength, frozen) = (vec![0.0; start.len()], vec![false; start.len()]);
        Ok(Self { settings, start, strength, frozen })
    }

    /// The averaged strength of each vector.
    pub fn strength(&self) -> &[f64] {
        &self.strength
    }

    /// Which vectors rest.
    pub fn frozen(&self) -> &[bool] {
        &self.frozen
    }

    /// Takes the vectors after a step (counted from 1) in, and says which of them rest from now on.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of vectors, or one of another length, [`Error::Parameter`] for NaN or infinities; nothing has changed
    /// then.
    pub fn step(&mut self, step: usize, vectors: &[Vec<f64>]) -> Result<&[bool]> {
        if vectors.len() != self.start.len() {
            return Err(Error::shape("vectors", &[self.start.len()], &[vectors.len()]));
        }
        if let Some((start, now)) =
            self.start.iter().zip(vectors).find(|(start, now)| start.len() != now.len())
        {
            return Err(Error::shape("vector", &[start.len()], &[now.len()]));
        }
        if let Some(bad) = vectors.iter().flatten().find(|v| !v.is_finite()) {
            return Err(Error::parameter("vector", bad, "finite numbers"));
        }
        let VectorFreezerSettings { start, interval, count, beta } = self.settings;
        for ((strength, from), to) in self.strength.iter_mut().zip(&self.start).zip(vectors) {
            let moved: f64 = from.iter().zip(to).map(|(from, to)| (to - from).abs()).sum();
            *strength = beta * *strength + (1.0 - beta) * moved / from.len().max(1) as f64;
        }
        if step >= start && (step - start).is_multiple_of(interval) {
            self.frozen.fill(false);
            largest(&self.strength, count).into_iter().for_each(|k| self.frozen[k] = true);
        }
        Ok(&self.frozen)
    }
}
