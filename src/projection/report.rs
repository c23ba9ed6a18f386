//! What a projection tells about itself.

use super::{Objective, ratio};
use crate::matrix::StructuredMatrix;
use ndarray::Array2;
use serde::Serialize;
use std::time::Instant;

/// How good the result is known to be, before the rounding of a coarse storage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Guarantee {
    /// No member of the family (with these parameters) is better.
    GlobalOptimum,
    /// The error is at most this factor times the optimum.
    WithinFactor(f64),
    /// Every step lowered the objective; another start might end lower.
    LocalOptimum,
}

impl std::fmt::Display for Guarantee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Guarantee::GlobalOptimum => f.write_str("global optimum"),
            Guarantee::WithinFactor(c) => write!(f, "within {c:.4} of the optimum"),
            Guarantee::LocalOptimum => f.write_str("local optimum"),
        }
    }
}

/// What a family's fit returns.
#[derive(Debug, Clone)]
pub struct Fit<M> {
    /// The member found, in the storage asked for.
    pub matrix: M,
    /// How good it is.
    pub guarantee: Guarantee,
    /// Iterations or sweeps; 0 for closed forms.
    pub iterations: usize,
    /// The objective after each iteration, as a relative error; never rising.
    pub history: Vec<f64>,
}

impl<M> Fit<M> {
    /// A closed form.
    pub fn optimal(matrix: M) -> Self {
        Self { matrix, guarantee: Guarantee::GlobalOptimum, iterations: 0, history: Vec::new() }
    }

    /// An iterative method.
    pub fn local(matrix: M, history: Vec<f64>) -> Self {
        Self { matrix, guarantee: Guarantee::LocalOptimum, iterations: history.len(), history }
    }

    /// The same fit around another matrix.
    pub fn map<N>(self, f: impl FnOnce(M) -> N) -> Fit<N> {
        Fit {
            matrix: f(self.matrix),
            guarantee: self.guarantee,
            iterations: self.iterations,
            history: self.history,
        }
    }
}

/// A projection's result.
#[derive(Debug, Clone)]
pub struct Projected<M> {
    /// The member found.
    pub matrix: M,
    /// Its measurements.
    pub report: Report,
}

/// Measurements of a projection.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the structure.
    pub structure: &'static str,
    /// `(out_features, in_features)`.
    pub shape: (usize, usize),
    /// Stored numbers.
    pub params: usize,
    /// Bytes they take, scales and indices included.
    pub bytes: usize,
    /// Multiply-adds x 2 of a product with one row.
    pub flops: u64,
    /// `params / (out x in)`.
    pub ratio: f64,
    /// `‖W - Ŵ‖_F / ‖W‖_F` of the stored matrix.
    pub relative_error: f64,
    /// `‖(W - Ŵ) C^{1/2}‖_F / ‖W C^{1/2}‖_F` of the stored matrix, where a Gram matrix was given.
    pub weighted_relative_error: Option<f64>,
    /// How good it is known to be.
    pub guarantee: Guarantee,
    /// Iterations or sweeps; 0 for closed forms.
    pub iterations: usize,
    /// The objective after each iteration, as a relative error.
    pub history: Vec<f64>,
    /// Wall-clock time of the projection.
    pub seconds: f64,
}

impl Report {
    pub(super) fn measure<M: StructuredMatrix>(
        w: &Array2<f64>,
        fit: &Fit<M>,
        objective: &Objective<'_>,
        start: Instant,
    ) -> Self {
        let seconds = start.elapsed().as_secs_f64();
        let mut error = fit.matrix.to_dense_f64();
        error.zip_mut_with(w, |fitted, w| *fitted = w - *fitted);
        let relative = |o: &Objective<'_>| ratio(o.energy(&error).sqrt(), o.energy(w).sqrt());
        let (params, (m, n)) = (fit.matrix.n_params(), fit.matrix.shape());
        Self {
            structure: fit.matrix.name(),
            shape: (m, n),
            params,
            bytes: fit.matrix.storage_bytes(),
            flops: fit.matrix.flops(1),
            ratio: params as f64 / (m as f64 * n as f64),
            relative_error: relative(&Objective::Frobenius),
            weighted_relative_error: (!objective.is_plain()).then(|| relative(objective)),
            guarantee: fit.guarantee,
            iterations: fit.iterations,
            history: fit.history.clone(),
            seconds,
        }
    }
}
