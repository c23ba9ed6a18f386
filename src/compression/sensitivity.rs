//! How much the model's result depends on each output of each matrix.

use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::models::{Hidden, Model, Tokens};
use crate::random::Gaussian;
use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// For every matrix, by name: the mean over tokens of the squared slope of the model's last hidden states with respect to each of its outputs,
/// $g_i = E\,\lVert \partial H / \partial y_i \rVert^2 / (\text{tokens} \times \text{hidden})$ up to a factor that all share. An error $e$ of
/// an output then changes the result by about $g\, e^2$, so errors of different matrices compare.
///
/// The slopes are those of one random direction of the result (Hutchinson's estimate of the diagonal), averaged over tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sensitivities(pub BTreeMap<String, Vec<f64>>);

/// The least sensitivity, as a fraction of the largest.
const LEAST: f64 = 1e-12;

/// Tokens that are looked at, about.
const TOKENS: usize = 4096;
/// Numbers of all states between blocks, at most (1 GiB), unless one sequence has more: large models are measured on fewer tokens.
const NUMBERS: usize = 1 << 28;

impl Sensitivities {
    /// Those of a matrix, where measured.
    pub(super) fn of(&self, name: &str) -> Option<&[f64]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// The same, raised to a power: what the squared errors of its outputs are weighed by.
    pub(super) fn weights(&self, name: &str, power: f64) -> Option<Vec<f64>> {
        self.of(name).map(|slopes| slopes.iter().map(|slope| slope.powf(power)).collect())
    }

    /// Measured with the dense model on the first tokens, up to some thousands: a forward pass that keeps the states between blocks, and a backward
    /// pass, with one block in memory at a time.
    pub(super) fn measure(model: &Model, tokens: &Tokens, seed: u64, exec: &mut Exec<f32>) -> Result<Self> {
        let width = model.architecture().sizes.hidden.saturating_mul(model.n_blocks());
        let most = TOKENS.min(NUMBERS / width.max(1));
        let Some(tokens) = tokens.batches(most).next() else { return Ok(Self::default()) };
        let mut states: Vec<Hidden> = vec![model.embed(&tokens)?];
        for layer in 0..model.n_blocks() {
            states.push(model.load_block(layer)?.forward(states[layer].clone(), exec, &mut ())?);
        }
        let mut gaussian = Gaussian::new(seed);
        let last = states.pop().map(Hidden::into_values).unwrap_or_default();
        let direction = Array2::from_shape_simple_fn(last.raw_dim(), || gaussian.sample() as f32);
        let mut d = model.load_output()?.backward(&last, direction, exec);
        let mut found = Self::default();
        for layer in (0..model.n_blocks()).rev() {
            let (block, before) = (model.load_block(layer)?, states.remove(layer));
            let (_, tape) = block.record(before, exec)?;
            let gradients = block.backward(&tape, d, exec)?;
            for (site, slopes) in block.sites().iter().zip(&gradients.outputs) {
                let squares = slopes.mapv(|v| f64::from(v).powi(2));
                found.0.insert(site.name.clone(), squares.mean_axis(Axis(0)).unwrap_or_default().to_vec());
            }
            d = gradients.hidden;
        }
        found.check()
    }

    /// Finite numbers, none of them zero: what seems not to matter for these tokens matters a little.
    fn check(mut self) -> Result<Self> {
        for (name, weights) in &self.0 {
            if let Some(bad) = weights.iter().find(|weight| !weight.is_finite()) {
                return Err(Error::parameter(format!("sensitivity of {name}"), bad, "a finite number"));
            }
        }
        let most = self.0.values().flatten().copied().fold(0.0, f64::max);
        if most == 0.0 {
            return Err(Error::parameter("sensitivities", "all zero", "a model whose result depends on it"));
        }
        self.0.values_mut().flatten().for_each(|weight| *weight = weight.max(LEAST * most));
        Ok(self)
    }
}
