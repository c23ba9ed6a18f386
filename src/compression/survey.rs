use super::settings::{ModelBudget, Settings};
use super::variant::Variant;
use crate::allocation::Candidate;
use crate::error::{Error, Result};
use crate::exec::Parallelism;
use crate::projection::{Gram, Objective, Options};
use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// What a variant would be for one matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Which.
    pub variant: Variant,
    /// Stored numbers.
    pub params: usize,
    /// Bytes of them, scales and indices.
    pub bytes: usize,
    /// `‖(W - Ŵ) C^{1/2}‖_F / ‖W C^{1/2}‖_F` with the inputs of the dense model.
    pub error: f64,
}

/// What is known about one matrix before the budget is spread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteSurvey {
    /// Name of the weight.
    pub name: String,
    /// out x in.
    pub shape: (usize, usize),
    /// Directions of the inputs that the calibration tokens show, at most `in`.
    pub input_rank: usize,
    /// The variants that the matrix can have.
    pub measured: Vec<Measured>,
}

impl SiteSurvey {
    /// Measures every variant. Those that the shape does not admit are left out.
    pub(super) fn measure(
        (name, w): (&str, &Array2<f64>),
        (gram, input_rank): (&Gram, usize),
        settings: &Settings,
        parallelism: Parallelism,
    ) -> Result<Self> {
        let objective = Objective::Activations(gram);
        let one = |variant: &Variant| -> Result<Option<Measured>> {
            let options = Options {
                seed: settings.seed,
                max_iterations: Some(settings.iterations.0),
                ..Options::default()
            };
            match variant.project(w, &objective, &options) {
                Ok(found) => Ok(Some(Measured {
                    variant: variant.clone(),
                    params: found.report.params,
                    bytes: found.report.bytes,
                    error: found.report.weighted_relative_error.unwrap_or(found.report.relative_error),
                })),
                Err(Error::Budget { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let measured: Vec<Option<Measured>> = match parallelism.tasks() {
            1 => settings.variants.iter().map(one).collect::<Result<_>>()?,
            _ => settings.variants.par_iter().map(one).collect::<Result<_>>()?,
        };
        let measured: Vec<Measured> = measured.into_iter().flatten().collect();
        if measured.is_empty() {
            return Err(Error::parameter(
                "variants",
                format!("none fits {name}"),
                "at least one for every matrix",
            ));
        }
        Ok(Self { name: name.to_owned(), shape: w.dim(), input_rank, measured })
    }

    /// The variants as the allocation sees them: the squared error of outputs of unit energy.
    pub(super) fn candidates(&self, budget: ModelBudget) -> Vec<Candidate> {
        let size = |m: &Measured| match budget {
            ModelBudget::Params(_) => m.params as u64,
            ModelBudget::Bytes(_) => m.bytes as u64,
        };
        self.measured.iter().map(|m| Candidate { size: size(m), cost: m.error * m.error }).collect()
    }

    /// The budget's unit for the dense matrix.
    pub(super) fn dense_size(&self, budget: ModelBudget) -> u64 {
        let numbers = self.shape.0 as u64 * self.shape.1 as u64;
        match budget {
            ModelBudget::Params(_) => numbers,
            ModelBudget::Bytes(_) => 4 * numbers,
        }
    }
}
