use super::row;
use crate::adapters::{Adapter, Edit};
use crate::compose::Identity;
use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use std::sync::Arc;

/// DoRA: $W' = \mathrm{diag}(μ / \|W + D\|_{row})\,(W + D)$ with a magnitude `μ` per output; the bias stays.
///
/// The row norms are taken once, when the adapter is bound to a base. Cost of a product: that of `D`, and `2 out`.
///
/// Source: S.-Y. Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024. With a frozen basis: EDoRA (H. Nasiri, P. Garraghan, 2025).
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{self, Dora}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[3.0f32, 0.0]])?;
/// let lora = methods::lora(&array![[1.0f32]], &array![[0.0, 4.0]], 1.0)?;
/// let dora = Dora::new(Box::new(lora), vec![10.0])?;                       // (3, 4) has norm 5
/// let d = dora.delta(&base)?;
/// assert!((d - array![[3.0, 8.0]]).iter().all(|e| e.abs() < 1e-6));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Dora {
    inner: Arc<dyn Adapter>,
    magnitude: Vec<f64>,
    columns: bool,
}

impl Dora {
    /// From the adapter that makes `D`, and one magnitude per output.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of magnitudes.
    pub fn new(inner: Box<dyn Adapter>, magnitude: Vec<f64>) -> Result<Self> {
        let outputs = inner.shape().0;
        match magnitude.len() == outputs {
            true => Ok(Self { inner: inner.into(), magnitude, columns: false }),
            false => Err(Error::shape("DoRA magnitudes", &[outputs], &[magnitude.len()])),
        }
    }

    /// Of columns in the place of rows, with one magnitude per input: what a table of embeddings has, whose columns are its outputs.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of magnitudes.
    pub fn of_columns(inner: Box<dyn Adapter>, magnitude: Vec<f64>) -> Result<Self> {
        let inputs = inner.shape().1;
        match magnitude.len() == inputs {
            true => Ok(Self { inner: inner.into(), magnitude, columns: true }),
            false => Err(Error::shape("DoRA magnitudes", &[inputs], &[magnitude.len()])),
        }
    }
}

impl Adapter for Dora {
    fn kind(&self) -> &'static str {
        "dora"
    }
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }
    fn n_params(&self) -> usize {
        self.inner.n_params() + self.magnitude.len()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        let inner = self.inner.edit(base)?;
        let w = inner.merged(base)?;
        let (what, w) = if self.columns { ("column", w.reversed_axes()) } else { ("row", w) };
        let norms = w.outer_iter().map(|row| row.dot(&row).sqrt());
        let scales = magnitudes_over_norms(&self.magnitude, norms, what)?;
        let scales = Box::new(Identity::diagonal(row(scales))?);
        let edit = Edit::of(self.shape());
        // The bias is that of the inner adapter, which is not rescaled.
        inner.then(&if self.columns { edit.with_right(scales)? } else { edit.with_left(scales)? })
    }
}

/// `μ / ν`, with the norms `ν` of the rows, or columns, of what is rescaled.
///
/// # Errors
/// [`Error::Parameter`] for a norm of zero.
pub(crate) fn magnitudes_over_norms(
    magnitudes: &[f64],
    norms: impl Iterator<Item = f64>,
    what: &str,
) -> Result<Vec<f64>> {
    let one = |(i, (magnitude, norm)): (usize, (&f64, f64))| match norm == 0.0 {
        true => Err(Error::parameter(format!("norm of {what} {i} of W + D"), 0, "a positive number")),
        false => Ok(magnitude / norm),
    };
    magnitudes.iter().zip(norms).enumerate().map(one).collect()
}
