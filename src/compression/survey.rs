use super::sensitivity::Sensitivities;
use super::settings::{ModelBudget, Settings};
use super::variant::Variant;
use crate::allocation::Candidate;
use crate::error::{Error, Result};
use crate::exec::{Exec, Parallelism};
use crate::linalg::{self, Threads};
use crate::matrix::{Apply, StructuredMatrix};
use crate::projection::{Gram, Objective, Options};
use crate::structures::Dense;
use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::time::Instant;

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
    /// Nanoseconds of a product, batch 1, one thread, where the budget asks for it: the median of several turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<u64>,
}

/// Singular values of a matrix, from the largest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Spectra {
    /// Of `W`.
    pub plain: Vec<f64>,
    /// Of `W C^{1/2}`.
    pub weighted: Vec<f64>,
}

fn one() -> f64 {
    1.0
}

/// Nanoseconds of a product, batch 1, one thread.
fn latency(matrix: &dyn StructuredMatrix) -> Result<u64> {
    let (m, n) = matrix.shape();
    let x: Vec<f32> = (0..n).map(|j| 1.0 - (j % 7) as f32 / 4.0).collect();
    let (mut y, mut exec) = (vec![0.0; m], Exec::new());
    let mut turn = |count: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..count {
            matrix.matvec_into(&x, &mut y, &mut exec)?;
        }
        Ok(start.elapsed().as_secs_f64() / count as f64)
    };
    // Turns of about 50 us, after two to warm up.
    turn(1)?;
    let count = (TURN / turn(1)?.max(1e-9)).ceil().clamp(1.0, 1e4) as usize;
    let mut turns = (0..TURNS).map(|_| turn(count)).collect::<Result<Vec<_>>>()?;
    turns.sort_by(f64::total_cmp);
    Ok((1e9 * turns[TURNS / 2]).ceil() as u64)
}

/// Seconds of a turn of products that are timed together, and turns.
const TURN: f64 = 50e-6;
const TURNS: usize = 15;

/// Sizes put between two measured ones.
const BETWEEN: usize = 3;

/// Part of the way from one size to the next: logarithms of errors are about straight lines.
fn between(small: &Measured, large: &Measured, part: f64) -> Measured {
    let mix = |a: f64, b: f64| a + part * (b - a);
    let up = |a: usize, b: usize| mix(a as f64, b as f64).ceil() as usize;
    // Sizes are steps: a little less than the straight line, so that they stay below it.
    let ratio = 0.995 * mix(small.variant.ratio, large.variant.ratio);
    Measured {
        variant: Variant { ratio, ..small.variant.clone() },
        params: up(small.params, large.params),
        bytes: up(small.bytes, large.bytes),
        error: mix(small.error.ln(), large.error.ln()).exp(),
        latency: small
            .latency
            .zip(large.latency)
            .map(|(small, large)| up(small as usize, large as usize) as u64),
    }
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
    /// What a squared relative error of 1 counts: the change of the model's result that it stands for, to the power of
    /// [`Settings::sensitivity`].
    #[serde(default = "one")]
    pub energy: f64,
    /// The variants that the matrix can have.
    pub measured: Vec<Measured>,
    /// Empty where no rule asks for them.
    #[serde(default)]
    pub spectra: Spectra,
    /// Nanoseconds of a product with the dense matrix, where the budget asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_latency: Option<u64>,
}

impl Measured {
    /// As the allocation sees it: the squared error of outputs of that energy.
    pub(super) fn candidate(&self, budget: ModelBudget, energy: f64) -> Candidate {
        let size = match budget {
            ModelBudget::Params(_) => self.params as u64,
            ModelBudget::Bytes(_) => self.bytes as u64,
            ModelBudget::Latency(_) => self.latency.unwrap_or(u64::MAX),
        };
        Candidate { size, cost: self.error * self.error * energy }
    }
}

impl SiteSurvey {
    /// Measures every variant. Those that the shape does not admit are left out.
    pub(super) fn measure(
        (name, w): (&str, &Array2<f64>),
        (gram, input_rank): (&Gram, usize),
        sensitivities: &Sensitivities,
        settings: &Settings,
        parallelism: Parallelism,
    ) -> Result<Self> {
        let weights = sensitivities.weights(name, settings.sensitivity);
        let change = |weights| Objective::Outputs { gram: Some(gram), weights }.energy(w);
        let energy = sensitivities.of(name).map_or(1.0, change).powf(settings.sensitivity);
        let empty = Self {
            name: name.to_owned(),
            shape: w.dim(),
            input_rank,
            energy,
            measured: Vec::new(),
            spectra: Spectra::default(),
            dense_latency: None,
        };
        if settings.method.is_rule() {
            let weighted = linalg::matmul(w, gram.root()?, Threads::ONE);
            let spectra = Spectra {
                plain: linalg::singular_values(w, Threads::ONE)?,
                weighted: linalg::singular_values(&weighted, Threads::ONE)?,
            };
            return Ok(Self { spectra, ..empty });
        }
        let timed = matches!(settings.budget, ModelBudget::Latency(_));
        let one = |variant: &Variant| -> Result<Option<Measured>> {
            let options = Options {
                seed: settings.seed,
                max_iterations: Some(settings.iterations.0),
                ..Options::default()
            };
            match variant.fit(w, gram, weights.as_deref(), &options) {
                Ok((found, error)) => Ok(Some(Measured {
                    variant: variant.clone(),
                    params: found.report.params,
                    bytes: found.report.bytes,
                    error,
                    latency: timed.then(|| latency(found.matrix.as_ref())).transpose()?,
                })),
                Err(Error::Budget { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let measured: Vec<Option<Measured>> = match parallelism.tasks() {
            // Other threads would disturb the times.
            tasks if timed || tasks == 1 => settings.variants.iter().map(one).collect::<Result<_>>()?,
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
        let dense_latency = timed.then(|| latency(&Dense::new(&w.mapv(|v| v as f32))?)).transpose()?;
        Ok(Self { measured, dense_latency, ..empty })
    }

    /// The measured variants and, between two sizes of the same family, some more, whose errors follow from those of their neighbours.
    pub(super) fn variants(&self) -> Vec<Measured> {
        let mut all = self.measured.clone();
        for (k, small) in self.measured.iter().enumerate() {
            let same = |m: &&Measured| {
                let (a, b) = (&small.variant, &m.variant);
                (&a.structure, a.storage, &a.parameters) == (&b.structure, b.storage, &b.parameters)
            };
            let larger = self.measured.iter().enumerate().filter(|(l, m)| *l != k && m.params > small.params);
            let next = larger.map(|(_, m)| m).filter(same).min_by_key(|m| m.params);
            if let Some(large) = next.filter(|large| large.error > 0.0 && small.error > 0.0) {
                all.extend(
                    (1..=BETWEEN).map(|step| between(small, large, step as f64 / (BETWEEN + 1) as f64)),
                );
            }
        }
        all
    }

    /// The budget's unit for the dense matrix.
    pub(super) fn dense_size(&self, budget: ModelBudget) -> u64 {
        let numbers = self.shape.0 as u64 * self.shape.1 as u64;
        match budget {
            ModelBudget::Params(_) => numbers,
            ModelBudget::Bytes(_) => 4 * numbers,
            ModelBudget::Latency(_) => self.dense_latency.unwrap_or(0),
        }
    }
}
