use super::architecture::{Architecture, NormKind};
use super::pointwise::{Normalize, NormalizeBack, over_rows, run};
use crate::error::{Error, Result};
use crate::exec::Policy;
use crate::io::Source;
use ndarray::{Array2, s};

/// Normalization of hidden states, with its weights.
#[derive(Debug, Clone)]
pub(super) struct Normalization {
    kind: NormKind,
    eps: f32,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Normalization {
    /// Reads `NAME.weight`, and `NAME.bias` where the kind has one.
    pub(super) fn load(architecture: &Architecture, source: &dyn Source, name: &str) -> Result<Self> {
        let hidden = architecture.sizes.hidden;
        let read = |name: String| -> Result<Vec<f32>> {
            let values: Vec<f32> = source.need(&name)?.array::<f32>(&name)?.into_iter().collect();
            match values.len() == hidden {
                true => Ok(values),
                false => Err(Error::shape("weight of a normalization", &[hidden], &[values.len()])),
            }
        };
        let norm = &architecture.norm;
        let bias = (norm.kind == NormKind::LayerNorm).then(|| read(format!("{name}.bias"))).transpose()?;
        Ok(Self { kind: norm.kind, eps: norm.eps as f32, weight: read(format!("{name}.weight"))?, bias })
    }

    /// Normalizes each row (tokens x hidden).
    pub(super) fn apply(&self, x: &mut Array2<f32>, policy: Policy) {
        over_rows(policy.tasks(4 * x.len()), 0, x.view_mut(), &|_, y| {
            let (weight, bias) = (&self.weight, self.bias.as_deref());
            run(policy, Normalize { kind: self.kind, eps: self.eps, weight, bias, y });
        });
    }

    /// The gradient of the result (tokens x hidden) becomes that of what went in, `x`.
    pub(super) fn backward(&self, x: &Array2<f32>, d: &mut Array2<f32>, policy: Policy) {
        over_rows(policy.tasks(8 * x.len()), 0, d.view_mut(), &|first, d| {
            let x = x.slice(s![first..first + d.nrows(), ..]);
            run(policy, NormalizeBack { kind: self.kind, eps: self.eps, weight: &self.weight, x, d });
        });
    }
}
