//! From a dense weight to the best member of a family.
//!
//! [`Family::project`] checks its input, lets the family fit, and measures what came out: dense `W` (out x in), a
//! [`Spec`](Family::Spec) with the family's own parameters, an [`Objective`], [`Options`]; a matrix and a [`Report`] back.
//! The fit itself is in the family's file; what several families need is here.

mod clusters;
mod conjugate;
mod descent;
mod gram;
mod linear;
mod outputs;
mod report;
mod request;
mod rounding;
mod run;
mod selection;

pub(crate) use clusters::{join_pairs, numbered, ward};
pub(crate) use conjugate::least_squares;
pub(crate) use descent::{Descent, Stop, descend};
pub use gram::Gram;
pub(crate) use linear::Weighted;
pub(crate) use outputs::scale_outputs;
pub use report::{Fit, Guarantee, Projected, Report};
pub use request::{Budget, Request, Size};
pub(crate) use rounding::Feedback;
pub use run::{Options, Progress, Run};
pub(crate) use selection::{largest, select};

use crate::error::{Error, Result};
use crate::linalg::{Threads, finite_copy};
use crate::matrix::StructuredMatrix;
use crate::parts::{MAX_FEATURES, Parts};
use crate::scalar::Scalar;
use crate::storage::{Codes, Storage};
use ndarray::{Array2, ArrayRef2};
use std::time::Instant;

/// What a projection minimises.
#[derive(Debug, Clone, Copy)]
pub enum Objective<'a> {
    /// `‖W - Ŵ‖_F`: every weight counts the same.
    Frobenius,
    /// `‖(W - Ŵ) C^{1/2}‖_F` with `C = E[x xᵀ]`: the error that the layer's outputs see.
    Activations(&'a Gram),
    /// The same, or `‖W - Ŵ‖_F` without a Gram matrix, with a weight for the squared error of each output: for families that hold
    /// `diag(l) W` with `W` (see [`Family::scale_outputs`]).
    Outputs {
        /// What the layer sees.
        gram: Option<&'a Gram>,
        /// `out` numbers, at least 0.
        weights: &'a [f64],
    },
}

impl<'a> Objective<'a> {
    /// The Gram matrix, where there is one.
    pub(crate) fn gram(&self) -> Option<&'a Gram> {
        match self {
            Objective::Frobenius | Objective::Outputs { gram: None, .. } => None,
            Objective::Activations(gram) | Objective::Outputs { gram: Some(gram), .. } => Some(gram),
        }
    }

    /// The second moment `C` (in x in) of the activation objective.
    pub fn second_moment(&self) -> Option<&'a Array2<f64>> {
        self.gram().map(Gram::second_moment)
    }

    /// `C^{1/2}` of the activation objective.
    pub(crate) fn root(&self) -> Result<Option<&'a Array2<f64>>> {
        self.gram().map(Gram::root).transpose()
    }

    /// Whether every weight counts the same.
    pub fn is_plain(&self) -> bool {
        matches!(self, Objective::Frobenius)
    }

    /// `‖E‖_F²`, or `tr(E C Eᵀ)`, of an error `E` (out x in), or the weighted sum of its rows' shares of that. Cost of the latter: out x in².
    pub fn energy(&self, e: &ArrayRef2<f64>) -> f64 {
        if let Objective::Outputs { gram, weights } = self {
            let inner = gram.map_or(Objective::Frobenius, Objective::Activations);
            // Rows of `E C`, or of `E`.
            let Some(c) = inner.second_moment() else {
                return e.outer_iter().zip(*weights).map(|(e, weight)| weight * e.dot(&e)).sum();
            };
            let ec = crate::linalg::matmul(e, c, crate::linalg::Threads(1));
            return e
                .outer_iter()
                .zip(ec.outer_iter())
                .zip(*weights)
                .map(|((a, b), w)| w * a.dot(&b).max(0.0))
                .sum();
        }
        match self.second_moment() {
            None => e.outer_iter().map(|e| e.dot(&e)).sum(),
            Some(c) => {
                let ec = crate::linalg::matmul(e, c, crate::linalg::Threads(1));
                ec.iter().zip(e).map(|(a, b)| a * b).sum::<f64>().max(0.0)
            }
        }
    }
}

/// `error / norm`, with 0 for 0 / 0.
pub(crate) fn ratio(error: f64, norm: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / norm }
}

/// A family of structured matrices: how to choose its size, project onto it, draw from it and read it back.
///
/// Implementing this and one line in [`registry`](crate::registry) make a structure known to the file format, the
/// conformance suite, the benches and the tools.
pub trait Family: StructuredMatrix + Sized {
    /// The name that [`StructuredMatrix::name`] returns.
    const NAME: &'static str;
    /// Parameters that [`spec`](Self::spec) reads, with one line of help each.
    const PARAMETERS: &'static [(&'static str, &'static str)];
    /// The family's own parameters: rank, blocks, density, ...
    type Spec: Clone + std::fmt::Debug + Send + Sync;
    /// Whether [`round_for_inputs`](Self::round_for_inputs) is there.
    const ROUNDS_FOR_INPUTS: bool = false;

    /// Chooses the parameters that `request` leaves open: the largest member within its budget.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a value out of range, [`Error::Budget`] when no member is small enough.
    fn spec(shape: (usize, usize), request: &Request) -> Result<Self::Spec>;

    /// Fits a member to a finite, non-empty `w`. Called by [`project`](Self::project), which has checked the input.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `spec` does not suit the shape, [`Error::Cancelled`], [`Error::NoConvergence`].
    fn fit(w: &Array2<f64>, spec: &Self::Spec, objective: &Objective<'_>, run: &Run<'_>)
    -> Result<Fit<Self>>;

    /// A random member with entries of `W` of variance about `1 / in_features`: for tests, benches and training from scratch.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `spec` does not suit the shape.
    fn random(shape: (usize, usize), spec: &Self::Spec, storage: Storage, seed: u64) -> Result<Self>;

    /// The inverse of [`StructuredMatrix::parts`]; validates everything, parts may come from a hostile file.
    ///
    /// # Errors
    /// [`Error::Record`] that says what does not fit.
    fn from_parts(parts: Parts<'static>) -> Result<Self>;

    /// `diag(scale) W` in a storage, for families that are closed under scaling outputs. Those can be fitted with weights of outputs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the others.
    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        let _ = (scale, storage);
        Err(Error::Unsupported {
            structure: Self::NAME.to_owned(),
            what: "weights of outputs: scaling its rows leaves the family".to_owned(),
        })
    }

    /// The matrix, a fit of `w` in `f64`, in a storage with codes, so that roundings make up for each other on inputs of this kind; the
    /// better of this and rounding to nearest becomes the result. Called where [`ROUNDS_FOR_INPUTS`](Self::ROUNDS_FOR_INPUTS) says so.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for families, and members, that have no such rounding.
    fn round_for_inputs(&self, w: &Array2<f64>, gram: &Gram, storage: Storage) -> Result<Self> {
        let _ = (w, gram, storage);
        Err(Error::Unsupported { structure: Self::NAME.to_owned(), what: "rounding for inputs".to_owned() })
    }

    /// The parameters of the largest member within a budget.
    ///
    /// # Errors
    /// [`Error::Budget`] when no member is small enough.
    fn for_budget(shape: (usize, usize), budget: Budget) -> Result<Self::Spec> {
        Self::spec(shape, &Request::new().budget(budget))
    }

    /// The best member that the family's method finds for `w` (out x in), measured.
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty `w` or a Gram matrix of another size, [`Error::NonFinite`], and those of
    /// [`fit`](Self::fit).
    fn project<T: Scalar>(
        w: &ArrayRef2<T>,
        spec: &Self::Spec,
        objective: &Objective<'_>,
        options: &Options<'_>,
    ) -> Result<Projected<Self>> {
        let start = Instant::now();
        let run = Run::new(options);
        let w = check_weight(w, run.threads())?;
        if let Some(c) = objective.second_moment()
            && c.nrows() != w.ncols()
        {
            return Err(Error::shape("Gram matrix", &[w.ncols(), w.ncols()], c.shape()));
        }
        run.check()?;
        let fit = fit_rounded::<Self>(&w, spec, objective, &run)?;
        let report = Report::measure(&w, &fit, objective, start);
        Ok(Projected { matrix: fit.matrix, report })
    }
}

/// A fit whose storage is applied where that loses least: at once, after outputs got their scale back, or with a view of the inputs.
fn fit_rounded<F: Family>(
    w: &Array2<f64>,
    spec: &F::Spec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<Fit<F>> {
    let later = objective.gram().filter(|_| F::ROUNDS_FOR_INPUTS && Codes::of(run.storage()).is_some());
    let exact = Options { storage: Storage::F64, ..*run.options() };
    let storage = if later.is_some() { Storage::F64 } else { run.storage() };
    let fit = match objective {
        Objective::Outputs { gram, weights } => {
            // Errors of `diag(l) W`, for roots `l` of the weights, count the same; the storage rounds once, at the end.
            let scale = outputs::roots(weights, w.nrows())?;
            let inner = gram.map_or(Objective::Frobenius, Objective::Activations);
            let fit = F::fit(&outputs::scaled(w, &scale), spec, &inner, &Run::new(&exact))?;
            let back: Vec<f64> = scale.iter().map(|scale| 1.0 / scale).collect();
            Fit { matrix: fit.matrix.scale_outputs(&back, storage)?, ..fit }
        }
        plain_or_activations if later.is_some() => F::fit(w, spec, plain_or_activations, &Run::new(&exact))?,
        plain_or_activations => return F::fit(w, spec, plain_or_activations, run),
    };
    let Some(gram) = later else { return Ok(fit) };
    let nearest = F::from_parts(fit.matrix.parts().to_storage(run.storage()))?;
    let lost = |matrix: &F| objective.energy(&(w - &matrix.to_dense_f64()));
    let matrix = match fit.matrix.round_for_inputs(w, gram, run.storage()) {
        Ok(seen) if lost(&seen) < lost(&nearest) => seen,
        // It is an improvement where there is one: inputs may be too degenerate for it.
        Ok(_)
        | Err(Error::Unsupported { .. } | Error::NotPositiveSemiDefinite(_) | Error::NonFinite { .. }) => {
            nearest
        }
        Err(error) => return Err(error),
    };
    Ok(Fit { matrix, ..fit })
}

/// A finite, non-empty copy in `f64`, in standard layout.
pub(crate) fn check_weight<T: Scalar>(w: &ArrayRef2<T>, threads: Threads) -> Result<Array2<f64>> {
    let (m, n) = w.dim();
    if m == 0 || n == 0 || m > MAX_FEATURES || n > MAX_FEATURES {
        return Err(Error::shape(
            "weight (must not be empty)",
            &[m.clamp(1, MAX_FEATURES), n.clamp(1, MAX_FEATURES)],
            &[m, n],
        ));
    }
    finite_copy("weight", w, threads)
}
