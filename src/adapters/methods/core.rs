use super::{dense, expect, low_rank};
use crate::adapters::Additive;
use crate::compose::Product;
use crate::error::Result;
use crate::storage::{Factor, Storage};
use crate::structures::{Dense, LowRank};
use ndarray::ArrayRef2;

/// $D = s B R A$ with a small core `r` between factors that are frozen, or shared by layers: LoRA-XS, LoTR, TinyLoRA, EDoRA (under
/// [`Dora`](super::Dora)). Only the core counts as trained.
///
/// Core and left factor are multiplied out, so a product costs that of LoRA, `rank (out + in)`.
///
/// Source: K. Bałazy et al., "LoRA-XS", 2024; D. Bershatsky et al., "LoTR", 2024.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the factors do not fit.
///
/// ```
/// use structmat::adapters::{Adapter, methods};
/// use structmat::ndarray::array;
/// let adapter = methods::core(&array![[1.0], [2.0]], &array![[3.0]], &array![[1.0, 1.0]], 0.5)?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[1.5, 1.5], [3.0, 3.0]]);
/// assert_eq!(adapter.n_params(), 1);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn core(b: &ArrayRef2<f64>, r: &ArrayRef2<f64>, a: &ArrayRef2<f64>, scale: f64) -> Result<Additive> {
    expect("core of an adapter", r, (b.ncols(), a.nrows()))?;
    let factor = |a: &ArrayRef2<f64>| Factor::from_matrix(Storage::F32, a);
    let delta = low_rank(factor(&b.dot(&r.view())), &vec![scale; a.nrows()], factor(a))?;
    Ok(Additive::new("core", delta).with_params(r.len()))
}

/// [`core`] between the factors of `pair` as they are: `L` layers hold `B` and `A` once and `L` cores, since clones of a factor share their numbers.
/// Singular values of the pair are not looked at.
///
/// Cost: `rank (out + in) + rank²`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the core does not fit.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let (b, a) = (array![[1.0f64], [2.0]], array![[1.0f64, 1.0]]);
/// let pair = LowRank::new(Factor::from_matrix(Storage::F32, &b), Factor::from_matrix(Storage::F32, &a))?;
/// let adapter = methods::shared_core(&pair, &array![[3.0]], 0.5)?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[1.5, 1.5], [3.0, 3.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn shared_core(pair: &LowRank, r: &ArrayRef2<f64>, scale: f64) -> Result<Additive> {
    expect("core of an adapter", r, (pair.rank(), pair.rank()))?;
    let side = |factor: &Factor| -> Result<_> { Ok(Box::new(Dense::from_factor(factor.clone())?) as _) };
    let product = Product::new(vec![side(pair.left())?, dense(&(&r.view() * scale))?, side(pair.right())?])?;
    Ok(Additive::new("core", Box::new(product)).with_params(r.len()))
}
