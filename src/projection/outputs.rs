//! Outputs that do not count the same.

use super::Family;
use crate::error::{Error, Result};
use crate::matrix::Apply;
use crate::storage::Storage;
use ndarray::{Array2, Axis};

/// Weights of outputs down to this fraction of the largest count as they are; smaller ones as that.
const LEAST: f64 = 1e-8;

/// Square roots of the weights of `m` outputs: what rows of errors are multiplied by.
///
/// # Errors
/// [`Error::Shape`] for another number of weights, [`Error::Parameter`] unless they are finite, not negative, and not all zero.
pub(super) fn roots(weights: &[f64], m: usize) -> Result<Vec<f64>> {
    if weights.len() != m {
        return Err(Error::shape("weights of outputs", &[m], &[weights.len()]));
    }
    let most = weights.iter().copied().fold(0.0, f64::max);
    if let Some(bad) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
        return Err(Error::parameter("weight of an output", bad, "a finite number >= 0"));
    }
    if most == 0.0 {
        return Err(Error::parameter("weights of outputs", "all zero", "at least one positive number"));
    }
    Ok(weights.iter().map(|w| w.max(LEAST * most).sqrt()).collect())
}

/// `diag(scale) W`.
pub(super) fn scaled(w: &Array2<f64>, scale: &[f64]) -> Array2<f64> {
    let mut w = w.clone();
    w.axis_iter_mut(Axis(0)).zip(scale).for_each(|(mut row, scale)| row *= *scale);
    w
}

/// `diag(scale) W` for a family whose numbers each belong to one output, or to all: `output` says which, for the number at
/// `(block, row, column)` of a factor (by its place among [`Parts::all_factors`](crate::parts::Parts::all_factors)).
///
/// # Errors
/// Those of [`Family::from_parts`].
pub(crate) fn scale_outputs<F: Family>(
    matrix: &F,
    scale: &[f64],
    storage: Storage,
    output: impl Fn(usize, (usize, usize, usize)) -> Option<usize>,
) -> Result<F> {
    let mut numbers = matrix.factor_numbers::<f64>();
    for (factor, numbers) in numbers.iter_mut().enumerate() {
        for (at, number) in numbers.indexed_iter_mut() {
            // Rows of padding are no outputs.
            *number *= output(factor, at).and_then(|row| scale.get(row)).unwrap_or(&1.0);
        }
    }
    F::from_parts(matrix.parts().with_numbers(&numbers, storage)?)
}
