use super::refine::Refinement;
use super::variant::Variant;
use crate::error::{Error, Result};
use crate::registry;
use crate::storage::Storage;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// How much all matrices together may take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelBudget {
    /// Parameters, as a fraction of those of the dense matrices.
    Params(f64),
    /// Bytes, as a fraction of those of the dense matrices in `f32`.
    Bytes(f64),
    /// Time of one product with each matrix (batch 1, one thread), as a fraction of the dense ones' in `f32`, as measured on this machine
    /// during the survey. The plan follows those measurements: another run finds others.
    Latency(f64),
}

impl ModelBudget {
    /// The fraction.
    pub fn fraction(self) -> f64 {
        match self {
            Self::Params(fraction) | Self::Bytes(fraction) | Self::Latency(fraction) => fraction,
        }
    }
}

/// How the budget is spread over the matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Where it lowers the error most; see [`allocate`](crate::allocation::allocate).
    Auto,
    /// In proportion to the dense sizes; every matrix then takes the best variant that fits.
    Uniform,
    /// One threshold on normalised singular values; see [`threshold_ranks`](crate::allocation::threshold_ranks). This and the following
    /// are published rules for ranks, to compare with: matrices become low-rank ones, in the storage of the first variant.
    Welore,
    /// More for values and outputs of attention than for queries and keys; see [`split_ranks`](crate::allocation::split_ranks). The
    /// matrices of the MLP get their share as ranks (the source deletes channels there: [`channel_prune`](super::channel_prune)).
    Lorap,
    /// Ranks learned through a soft truncation; see [`SoftRanks`](crate::allocation::SoftRanks).
    Dobi,
    /// A small rank for the last MLPs first, the rest as it is; see [`reduced_rank`](crate::allocation::reduced_rank).
    Laser,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 6] =
        [Method::Auto, Method::Uniform, Method::Welore, Method::Lorap, Method::Dobi, Method::Laser];

    /// The name used on command lines and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uniform => "uniform",
            Self::Welore => "welore",
            Self::Lorap => "lorap",
            Self::Dobi => "dobi",
            Self::Laser => "laser",
        }
    }

    /// Whether it chooses ranks from spectra, not among measured variants.
    pub(super) fn is_rule(self) -> bool {
        !matches!(self, Self::Auto | Self::Uniform)
    }
}

impl FromStr for Method {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name).ok_or_else(|| Error::Unknown {
            kind: "method",
            name: name.to_owned(),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// What a [`Compressor`](super::Compressor) does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What all matrices together may take.
    pub budget: ModelBudget,
    /// How that is spread.
    pub method: Method,
    /// What each matrix may become.
    pub variants: Vec<Variant>,
    /// Whether each stage is fitted to what the compressed stages before it make of the inputs, and to the outputs of the dense model;
    /// otherwise every matrix to what it sees in the dense model.
    pub sequential: bool,
    /// How much errors count as the model's last hidden states depend on them: the power to which the [`Sensitivities`](super::Sensitivities)
    /// are raised that weigh outputs and matrices. With 0, relative errors of all matrices count the same and nothing is measured; with 1,
    /// errors count by their first-order effect, which holds while they are small.
    pub sensitivity: f64,
    /// Whether biases, where there are any, take the mean error of their outputs.
    pub bias: bool,
    /// Noise assumed in every input; see [`Moments::gram`](crate::calibration::Moments::gram). Fits in sequence want much of it, 0.3: little
    /// noise lets them follow what is peculiar to the calibration sentences. Independent ones do best with 0.01.
    pub dampening: f64,
    /// Most iterations of iterative projections, in the survey and in the fit.
    pub iterations: (usize, usize),
    /// Whether, and how, the matrices of each block are refined together after they are fitted.
    pub refinement: Option<Refinement>,
    /// Seed of everything random.
    pub seed: u64,
}

impl Settings {
    /// Defaults for a budget: all of `structures` in all of `storages`, in sizes around the budget.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a fraction that is not in 0 to 1, or no structure or storage; [`Error::Unknown`] for an unknown structure.
    pub fn new(budget: ModelBudget, structures: &[&str], storages: &[Storage]) -> Result<Self> {
        if structures.is_empty() || storages.is_empty() {
            return Err(Error::parameter("structures and storages", "none", "at least one of each"));
        }
        let settings = Self {
            budget,
            method: Method::Auto,
            variants: Vec::new(),
            sequential: true,
            sensitivity: 0.5,
            bias: true,
            dampening: 0.3,
            iterations: (4, 12),
            refinement: None,
            seed: 0,
        };
        settings.check()?;
        let mut variants = Vec::new();
        for &structure in structures {
            registry::family(structure)?;
            for &storage in storages {
                // What a ratio of 1 takes of the budget's unit.
                let unit = match budget {
                    ModelBudget::Params(_) => 1.0,
                    ModelBudget::Bytes(_) | ModelBudget::Latency(_) => storage.relative_to_f32(),
                };
                if structure == "dense" {
                    variants.push(Variant::new(structure, storage, 1.0));
                    continue;
                }
                let middle = budget.fraction() / unit;
                let steps = [0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 1.8];
                let ratios = steps.map(|step| step * middle);
                variants.extend(
                    ratios.into_iter().filter(|r| *r < 1.0).map(|r| Variant::new(structure, storage, r)),
                );
            }
        }
        Ok(Self { variants, ..settings })
    }

    /// Of the first variant.
    pub(super) fn storage(&self) -> Storage {
        self.variants.first().map_or(Storage::F32, |variant| variant.storage)
    }

    pub(super) fn check(&self) -> Result<()> {
        let fraction = self.budget.fraction();
        if !(fraction > 0.0 && fraction.is_finite()) {
            return Err(Error::parameter("budget", fraction, "a positive number"));
        }
        if !(self.dampening >= 0.0 && self.dampening.is_finite()) {
            return Err(Error::parameter("dampening", self.dampening, "a finite number >= 0"));
        }
        if !(0.0..=1.0).contains(&self.sensitivity) {
            return Err(Error::parameter("sensitivity", self.sensitivity, "0 to 1"));
        }
        self.refinement.as_ref().map_or(Ok(()), Refinement::check)
    }
}
