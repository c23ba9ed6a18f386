use super::{dense, expect, low_rank};
use crate::adapters::Additive;
use crate::compose::Product;
use crate::error::{Error, Result};
use crate::linalg::{Threads, lstsq, matmul_tn, svd};
use crate::storage::{Factor, Storage};
use crate::structures::{Dense, LowRank};
use ndarray::{Array2, ArrayRef2};

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

/// [`core()`] between the factors of `pair` as they are: `L` layers hold `B` and `A` once and `L` cores, since clones of a factor share their numbers.
/// Singular values of the pair are not looked at.
///
/// Cost: `rank (out + in) + rank²`.
///
/// # Errors
/// [`Error::Shape`] when the core does not fit, [`Error::Parameter`] for a scale that is not finite.
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
    if !scale.is_finite() {
        return Err(Error::parameter("scale", scale, "a finite number"));
    }
    let side = |factor: &Factor| -> Result<_> { Ok(Box::new(Dense::from_factor(factor.clone())?) as _) };
    let product = Product::new(vec![side(pair.left())?, dense(&(&r.view() * scale))?, side(pair.right())?])?;
    Ok(Additive::new("core", Box::new(product)).with_params(r.len()))
}

/// The core for which [`core()`] is nearest to `delta` (`out x in`): $R^* = \frac 1s B^+ D A^+$, the least-squares solution. In the factors of
/// [`lora_xs_basis`] that is $\frac 1s U_r^T D V_r \Sigma_r^{-1}$.
///
/// Two least-squares solves, `rank (out + rank) in` multiply-adds and the decompositions of the factors.
///
/// # Errors
/// [`Error::Shape`] for a change of another shape, [`Error::Parameter`] for a scale of 0, [`Error::NonFinite`] for NaN or infinities.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let (b, a) = (array![[1.0], [0.0]], array![[0.0, 2.0]]);
/// let r = methods::nearest_core(&b, &a, 0.5, &array![[7.0, 3.0], [7.0, 7.0]])?;
/// assert!((r[[0, 0]] - 3.0).abs() < 1e-12);                             // 0.5 * 3 * 2 is the entry that it can reach
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn nearest_core(
    b: &ArrayRef2<f64>,
    a: &ArrayRef2<f64>,
    scale: f64,
    delta: &ArrayRef2<f64>,
) -> Result<Array2<f64>> {
    if scale == 0.0 || !scale.is_finite() {
        return Err(Error::parameter("scale", scale, "a finite number other than 0"));
    }
    expect("change of a weight", delta, (b.nrows(), a.ncols()))?;
    let half = lstsq(b, delta)?;
    let core = lstsq(&a.t(), &half.t())?;
    Ok(Array2::from_shape_fn((b.ncols(), a.nrows()), |(i, j)| core[[j, i]] / scale))
}

/// The gradient of the core of [`core()`], $s\,(Y' B)^T (X A^T)$, from inputs `x` (`batch x in`) and the gradient `dy` of the outputs
/// (`batch x out`): `rank (out + in + rank)` multiply-adds per row, without the gradient of the weight.
///
/// # Errors
/// [`Error::Shape`] when the shapes do not fit.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let (b, a) = (array![[1.0], [0.0]], array![[0.0, 2.0]]);
/// let g = methods::core_gradient(&b, &a, 0.5, &array![[1.0, 3.0]], &array![[10.0, 1.0]])?;
/// assert_eq!(g, array![[30.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn core_gradient(
    b: &ArrayRef2<f64>,
    a: &ArrayRef2<f64>,
    scale: f64,
    x: &ArrayRef2<f64>,
    dy: &ArrayRef2<f64>,
) -> Result<Array2<f64>> {
    expect("inputs", x, (x.nrows(), a.ncols()))?;
    expect("gradient of the outputs", dy, (x.nrows(), b.nrows()))?;
    Ok(matmul_tn(&dy.dot(&b.view()), &x.dot(&a.t()), Threads::ONE) * scale)
}

/// The frozen factors of LoRA-XS: `B = U_r` (`out x rank`) and `A = Σ_r V_rᵀ` (`rank x in`) of the singular value decomposition of `w`.
///
/// Source: K. Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", 2024. The published code takes a
/// randomised decomposition; this one is exact.
///
/// # Errors
/// [`Error::Parameter`] for a rank of 0 or beyond the smaller side, those of [`svd`].
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let (b, a) = methods::lora_xs_basis(&array![[3.0, 0.0], [0.0, 2.0]], 1)?;
/// assert!((b.dot(&a) - array![[3.0, 0.0], [0.0, 0.0]]).iter().all(|e| e.abs() < 1e-12));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn lora_xs_basis(w: &ArrayRef2<f64>, rank: usize) -> Result<(Array2<f64>, Array2<f64>)> {
    let most = w.nrows().min(w.ncols());
    if rank == 0 || rank > most {
        return Err(Error::parameter("rank", rank, format!("1 to {most}")));
    }
    let top = svd(w, Threads::ONE)?.truncate(rank);
    let mut a = top.vt;
    a.outer_iter_mut().zip(&top.s).for_each(|(mut row, s)| row *= *s);
    Ok((top.u, a))
}
