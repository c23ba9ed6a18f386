use super::row;
use crate::adapters::{BiasEdit, Boxed, Edit, Multiplicative};
use crate::compose::Identity;
use crate::error::Result;

/// $W' = \mathrm{diag}(l)\, W\, \mathrm{diag}(r)$, with $b' = \mathrm{diag}(l)\, b$: (IA)³, whose feed-forward layers have `right` and all others
/// `left`.
///
/// Cost: one multiplication per output and input.
///
/// Source: H. Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when a vector does not fit.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0]])?;
/// let ia3 = methods::scaling((1, 2), None, Some(&[3.0, 1.0]))?;
/// assert_eq!(ia3.delta(&base)?, array![[2.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn scaling(shape: (usize, usize), left: Option<&[f64]>, right: Option<&[f64]>) -> Result<Multiplicative> {
    let params = left.map_or(0, <[f64]>::len) + right.map_or(0, <[f64]>::len);
    let diagonal = |d: &[f64]| -> Result<Boxed> { Ok(Box::new(Identity::diagonal(row(d.iter().copied()))?)) };
    let mut edit = Edit::of(shape);
    if let Some(left) = left {
        let left = diagonal(left)?;
        edit = edit.with_bias(BiasEdit { map: Some(left.clone()), add: None })?.with_left(left)?;
    }
    if let Some(right) = right {
        edit = edit.with_right(diagonal(right)?)?;
    }
    Ok(Multiplicative::new("scaling", edit, params))
}
