use super::{Component, Spectral};
use crate::adapters::BiasEdit;
use crate::error::Result;
use ndarray::Array1;

/// VectorFit: $W' = U\,\mathrm{diag}(\sigma + \delta) V^T$ in the thin decomposition of the base, with `min(out, in)` numbers `shift`, and
/// $b' = b + \beta$ with `out` numbers. Unlike SVDiff it does not stop at 0.
///
/// The gradient of `shift` is $\mathrm{diag}(U^T G V)$ for the gradient `G` of the weight; the change has any rank up to `min(out, in)`.
/// [`VectorFreezer`](crate::adapters::rules::VectorFreezer) is its rule of training. Cost: that of [`Spectral`].
///
/// Source: S. Hegde et al., "VectorFit: Adaptive Singular & Bias Vector Fine-Tuning of Pre-trained Foundation Models", 2025.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for another count of numbers.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[3.0f32, 0.0], [0.0, 2.0]])?;
/// let adapter = methods::vector_fit((2, 2), vec![1.0, -5.0], Some(vec![0.5, 0.0]))?;
/// let d = adapter.delta(&base)?;
/// assert!((d - array![[1.0, 0.0], [0.0, -5.0]]).iter().all(|e| e.abs() < 1e-6));
/// assert_eq!(adapter.n_params(), 4);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn vector_fit(shape: (usize, usize), shift: Vec<f64>, bias: Option<Vec<f64>>) -> Result<Spectral> {
    let params = shift.len() + bias.as_ref().map_or(0, Vec::len);
    let adapter = Spectral::new("vector_fit", shape, Component::Offset(shift), None, params)?;
    adapter.with_bias(BiasEdit { map: None, add: bias.map(Array1::from) })
}
