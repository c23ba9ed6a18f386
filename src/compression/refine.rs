//! Gradient steps on all factors and biases of a block at once, against what the dense block returns.

use crate::adam::Adam;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::layers::Linear;
use crate::matrix::Apply;
use crate::models::{Block, Hidden};
use crate::storage::Storage;
use ndarray::{Array1, Array2, Array3, ArrayRef2, Axis, concatenate, s};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How the matrices of a block are refined together, once each is fitted by itself: steps of Adam on the squared error of the block's output
/// (in the units of the hidden states), whose rate falls along half a cosine. Some of the sequences are held out; the numbers that do best on
/// them, after one of the epochs or before the first, are kept.
///
/// Coarse storages are refined as they are stored: every step rounds the numbers that it has moved, and gradients pass through the
/// rounding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Refinement {
    /// Passes over the sequences.
    pub epochs: usize,
    /// Length of the first steps, relative to the root mean square of the numbers of each factor and bias.
    pub rate: f64,
    /// Tokens of a step, about.
    pub batch: usize,
    /// Every so many sequences one is held out; at least 2.
    pub held_out: usize,
}

impl Default for Refinement {
    fn default() -> Self {
        Self { epochs: 20, rate: 0.02, batch: 512, held_out: 8 }
    }
}

impl Refinement {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(Error::parameter("rate of the refinement", self.rate, "a positive number"));
        }
        if self.batch == 0 || self.held_out < 2 {
            let received = format!("batch {}, held out {}", self.batch, self.held_out);
            return Err(Error::parameter(
                "refinement",
                received,
                "a batch of at least 1, held out at least 2",
            ));
        }
        Ok(())
    }
}

/// What a refinement did to a block: relative errors of its output on the sequences held out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Refined {
    /// With the matrices as they were fitted.
    pub before: f64,
    /// With those that were kept.
    pub after: f64,
    /// Epochs that these had taken.
    pub epochs: usize,
}

/// What Adam's moments keep: a refinement has few steps.
const KEEP: (f64, f64) = (0.9, 0.99);

/// The numbers of one layer, and the state of their descent.
struct Layer {
    storage: Storage,
    factors: Vec<Array3<f32>>,
    bias: Option<Array1<f32>>,
    steps: Vec<Adam<f32>>,
}

impl Layer {
    fn new(linear: &Linear, rate: f64) -> Self {
        let factors: Vec<Array3<f32>> = linear.weight().factor_numbers();
        let storage = linear.weight().parts().all_factors().first().map_or(Storage::F32, |f| f.storage());
        let bias = linear.bias().map(|bias| bias.mapv(|v| v as f32));
        let steps = factors.iter().map(|f| Adam::new(f.len(), rate * rms(f.iter()), KEEP));
        let steps =
            steps.chain(bias.iter().map(|b| Adam::new(b.len(), rate * rms(b.iter()), KEEP))).collect();
        Self { storage, factors, bias, steps }
    }

    fn linear(&self, like: &Linear) -> Result<Linear> {
        Linear::new(like.weight().with_numbers(&self.factors, self.storage)?, self.bias.as_deref())
    }
}

fn rms<'a>(values: impl ExactSizeIterator<Item = &'a f32>) -> f64 {
    let count = values.len().max(1) as f64;
    (values.map(|v| f64::from(*v).powi(2)).sum::<f64>() / count).sqrt()
}

/// Sequences with the states before and the wanted states after a block.
struct Samples<'a> {
    before: &'a Hidden,
    after: &'a ArrayRef2<f32>,
}

impl Samples<'_> {
    fn count(&self) -> usize {
        self.before.offsets().len() - 1
    }

    fn len(&self, sequence: usize) -> usize {
        self.before.offsets()[sequence + 1] - self.before.offsets()[sequence]
    }

    fn take(&self, sequences: &[usize]) -> Result<(Hidden, Array2<f32>)> {
        let range = |k: &usize| self.before.offsets()[*k]..self.before.offsets()[*k + 1];
        let rows = |values: &ArrayRef2<f32>| -> Result<Array2<f32>> {
            let rows: Vec<_> = sequences.iter().map(|k| values.slice(s![range(k), ..])).collect();
            concatenate(Axis(0), &rows).map_err(|e| Error::parameter("sequences", e, "at least one"))
        };
        let mut offsets = vec![0];
        offsets.extend(sequences.iter().scan(0, |end, k| {
            *end += self.len(*k);
            Some(*end)
        }));
        Ok((Hidden::new(rows(self.before.values())?, offsets)?, rows(self.after)?))
    }
}

/// Refines the matrices of `block`, which reads `before` and should return `after` (tokens x hidden).
pub(super) fn refine(
    block: &mut Block,
    before: &Hidden,
    after: &ArrayRef2<f32>,
    refinement: &Refinement,
    seed: u64,
    exec: &mut Exec<f32>,
) -> Result<Refined> {
    let samples = Samples { before, after };
    let held_out = |k: &usize| samples.count() > 1 && k % refinement.held_out == refinement.held_out - 1;
    let (held, mut order): (Vec<usize>, Vec<usize>) = (0..samples.count()).partition(held_out);
    // A handful of sequences: all are trained on and judged by.
    let held = if held.is_empty() { order.clone() } else { held };
    let held = samples.take(&held)?;
    let norm = held.1.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().max(f64::MIN_POSITIVE);
    let error = |block: &Block, exec: &mut Exec<f32>| -> Result<f64> {
        let y = block.forward(held.0.clone(), exec, &mut ())?;
        let difference = y.values().iter().zip(&held.1).map(|(a, b)| f64::from(a - b).powi(2));
        Ok((difference.sum::<f64>() / norm).sqrt())
    };
    let names: Vec<String> = block.sites().iter().map(|site| site.name.clone()).collect();
    let mut layers = Vec::new();
    for name in &names {
        layers.push(Layer::new(block.linear(name)?, refinement.rate));
    }
    let first = error(block, exec)?;
    let mut refined = Refined { before: first, after: first, epochs: 0 };
    let mut best = block.clone();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tokens: usize = order.iter().map(|k| samples.len(*k)).sum();
    let steps = refinement.epochs.saturating_mul(tokens.div_ceil(refinement.batch)).max(1);
    let mut step = 0;
    for epoch in 1..=refinement.epochs {
        order.shuffle(&mut rng);
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut size = 0;
            let full = |k: &usize| {
                let room = size < refinement.batch;
                size += samples.len(*k);
                !room
            };
            let (batch, others) = rest.split_at(rest.iter().position(full).unwrap_or(rest.len()));
            rest = others;
            let (before, after) = samples.take(batch)?;
            let (y, tape) = block.record(before, exec)?;
            let mut d = y.into_values() - &after;
            let scale = 2.0 / d.nrows() as f32;
            d.mapv_inplace(|v| v * scale);
            let gradients = block.backward(&tape, d, exec)?;
            step += 1;
            let part = (step as f64 / steps as f64).min(1.0);
            let rate = 0.5 + 0.5 * (std::f64::consts::PI * part).cos();
            for ((layer, gradient), name) in layers.iter_mut().zip(&gradients.layers).zip(&names) {
                let numbers = layer.factors.iter_mut().filter_map(|f| f.as_slice_mut());
                let numbers = numbers.chain(layer.bias.iter_mut().filter_map(|b| b.as_slice_mut()));
                let slopes = gradient.factors.iter().filter_map(|g| g.as_slice());
                let slopes = slopes.chain(gradient.bias.iter().filter_map(|g| g.as_slice()));
                for ((adam, numbers), slopes) in layer.steps.iter_mut().zip(numbers).zip(slopes) {
                    adam.step(numbers, slopes, rate);
                }
                let linear = layer.linear(block.linear(name)?)?;
                block.replace(name, linear)?;
            }
        }
        let now = error(block, exec)?;
        if now < refined.after {
            refined = Refined { after: now, epochs: epoch, ..refined };
            best.clone_from(block);
        }
    }
    *block = best;
    Ok(refined)
}
