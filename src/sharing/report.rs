use super::SharedObjective;
use crate::error::Result;
use crate::projection::{Guarantee, Objective, ratio};
use ndarray::Array2;
use serde::Serialize;

/// Measurements of several matrices that share numbers.
#[derive(Debug, Clone, Serialize)]
pub struct SharingReport {
    /// Shape of each.
    pub shape: (usize, usize),
    /// How many there are.
    pub members: usize,
    /// Stored numbers, shared ones counted once.
    pub params: usize,
    /// `params / (members x out x in)`.
    pub ratio: f64,
    /// `‖W - Ŵ‖_F / ‖W‖_F` over all of them, as stored.
    pub relative_error: f64,
    /// The same of each.
    pub member_errors: Vec<f64>,
    /// The relative error over all of them as their inputs see it, where Gram matrices were given.
    pub weighted_relative_error: Option<f64>,
    /// How good the result is known to be.
    pub guarantee: Guarantee,
    /// The objective after each sweep, as a relative error; never rising.
    pub history: Vec<f64>,
}

impl SharingReport {
    pub(super) fn measure(
        weights: &[Array2<f64>],
        approximation: impl Fn(usize) -> Result<Array2<f64>>,
        objective: &SharedObjective<'_>,
        params: usize,
        (guarantee, history): (Guarantee, Vec<f64>),
    ) -> Result<Self> {
        let (mut plain, mut seen, mut member_errors) = ((0.0, 0.0), (0.0, 0.0), Vec::new());
        for (l, w) in weights.iter().enumerate() {
            let error = w - &approximation(l)?;
            let (e, all) = (Objective::Frobenius.energy(&error), Objective::Frobenius.energy(w));
            member_errors.push(ratio(e.sqrt(), all.sqrt()));
            plain = (plain.0 + e, plain.1 + all);
            if !matches!(objective, SharedObjective::Frobenius) {
                seen = (seen.0 + objective.of(l).energy(&error), seen.1 + objective.of(l).energy(w));
            }
        }
        let (members, (m, n)) = (weights.len(), weights[0].dim());
        let relative = |(e, all): (f64, f64)| ratio(e.sqrt(), all.sqrt());
        Ok(Self {
            shape: (m, n),
            members,
            params,
            ratio: params as f64 / (members as f64 * m as f64 * n as f64),
            relative_error: relative(plain),
            member_errors,
            weighted_relative_error: (!matches!(objective, SharedObjective::Frobenius))
                .then(|| relative(seen)),
            guarantee,
            history,
        })
    }
}
