use super::RIDGE;
use crate::error::Result;
use crate::linalg::{SpdSolver, Threads, matmul};
use crate::projection::Gram;
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2};
use std::ops::Deref;

/// The one matrix that serves several best, each as its own inputs see it: $(\sum_g W_g C_g)(\sum_g C_g)^{-1}$ minimises
/// $\sum_g \|(W_g - W) C_g^{1/2}\|_F^2$. With one common $C$ it is the mean. Directions that no input has are those of the mean, too.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::sharing::weighted_mean;
/// use structmat::ndarray::array;
/// let gram = |a: f64| Gram::from_second_moment(&array![[a]]);
/// let mean = weighted_mean(&[array![[1.0]], array![[4.0]]], &[gram(2.0)?, gram(1.0)?])?;
/// assert!((mean[[0, 0]] - 2.0).abs() < 1e-9);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Parameter`](crate::Error::Parameter) without a matrix or for another number of Gram matrices, [`Error::Shape`](crate::Error::Shape), [`Error::NonFinite`](crate::Error::NonFinite).
pub fn weighted_mean<T: Scalar, A: Deref<Target = ArrayRef2<T>>>(
    weights: &[A],
    grams: &[Gram],
) -> Result<Array2<f64>> {
    let all = super::check_members(weights)?;
    super::SharedObjective::Each(grams).check(all.len(), all[0].ncols())?;
    let mean = all.iter().fold(Array2::zeros(all[0].dim()), |sum, w| sum + w) / all.len() as f64;
    let (mut moments, mut total) = (Array2::zeros(mean.dim()), Array2::zeros((mean.ncols(), mean.ncols())));
    for (w, gram) in all.iter().zip(grams) {
        // From the mean, which is kept where nothing is seen.
        moments += &matmul(&(w - &mean), gram.second_moment(), Threads::ONE);
        total += gram.second_moment();
    }
    Ok(mean + SpdSolver::new(&total, RIDGE)?.solve_right(&moments))
}
