//! What low-rank steps see of a gradient.

use crate::error::{Error, Result};
use crate::linalg::{Threads, check_finite, matmul, matmul_tn};
use ndarray::{Array2, ArrayRef2, ArrayView2};

/// The gradient $G$ (`m x n`) of a loss by a weight, at one point, seen through thin matrices only: it need not exist anywhere. A dense array is
/// one; [`BatchGradient`] is that of a layer.
///
/// ```
/// use structmat::Result;
/// use structmat::ndarray::{Array2, ArrayRef2, array};
/// use structmat::training::ThinGradient;
/// /// `a bᵀ`.
/// struct Outer(Array2<f64>, Array2<f64>);
/// impl ThinGradient for Outer {
///     fn times(&self, v: &ArrayRef2<f64>) -> Result<Array2<f64>> {
///         Ok(self.0.dot(&self.1.t().dot(v)))
///     }
///     fn transposed_times(&self, u: &ArrayRef2<f64>) -> Result<Array2<f64>> {
///         Ok(self.1.dot(&self.0.t().dot(u)))
///     }
/// }
/// let g = Outer(array![[1.0], [2.0]], array![[3.0], [4.0], [5.0]]);
/// assert_eq!(g.between(&array![[0.0], [1.0]], &array![[1.0], [0.0], [0.0]])?, array![[6.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub trait ThinGradient {
    /// $G V$, `m x q`, for $V$ of `n x q`.
    ///
    /// # Errors
    /// Whatever the source of the gradient says.
    fn times(&self, v: &ArrayRef2<f64>) -> Result<Array2<f64>>;

    /// $G^T U$, `n x p`, for $U$ of `m x p`.
    ///
    /// # Errors
    /// As [`times`](Self::times).
    fn transposed_times(&self, u: &ArrayRef2<f64>) -> Result<Array2<f64>>;

    /// $U^T G V$, `p x q`.
    ///
    /// # Errors
    /// As [`times`](Self::times), and [`Error::Shape`] when its result does not have as many rows as $U$.
    fn between(&self, u: &ArrayRef2<f64>, v: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let right = self.times(v)?;
        checked("gradient times v", (u.nrows(), v.ncols()), &right)?;
        Ok(matmul_tn(u, &right, Threads::ONE))
    }
}

/// A result of the size that the caller needs, of finite numbers.
pub(super) fn checked(what: &'static str, (rows, cols): (usize, usize), a: &ArrayRef2<f64>) -> Result<()> {
    if a.dim() != (rows, cols) {
        return Err(Error::shape(what, &[rows, cols], a.shape()));
    }
    check_finite(what, a)
}

impl ThinGradient for Array2<f64> {
    fn times(&self, v: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        if v.nrows() != self.ncols() {
            return Err(Error::shape("dense gradient", &[self.nrows(), v.nrows()], self.shape()));
        }
        Ok(matmul(self, v, Threads::ONE))
    }

    fn transposed_times(&self, u: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        if u.nrows() != self.nrows() {
            return Err(Error::shape("dense gradient", &[u.nrows(), self.ncols()], self.shape()));
        }
        Ok(matmul_tn(self, u, Threads::ONE))
    }
}

/// The gradient $G = \mathrm{d}Y^T X$ of a loss of $Y = X W^T$, in products of `batch (m + n)` multiply-adds for each column: $G$ itself is never made.
///
/// ```
/// use structmat::ndarray::array;
/// use structmat::training::{BatchGradient, ThinGradient};
/// let (x, dy) = (array![[1.0, 2.0, 0.0]], array![[1.0, -1.0]]);
/// let g = BatchGradient::new(&x, dy)?;                            // [[1, 2, 0], [-1, -2, 0]]
/// assert_eq!(g.times(&array![[1.0], [1.0], [1.0]])?, array![[3.0], [-3.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BatchGradient<'a> {
    x: ArrayView2<'a, f64>,
    dy: Array2<f64>,
}

impl<'a> BatchGradient<'a> {
    /// Of the inputs (`batch x n`) and the gradient by the outputs (`batch x m`).
    ///
    /// # Errors
    /// [`Error::Shape`] for batches of two sizes.
    pub fn new(x: &'a ArrayRef2<f64>, dy: Array2<f64>) -> Result<Self> {
        if dy.nrows() != x.nrows() {
            return Err(Error::shape("dy", &[x.nrows(), dy.ncols()], dy.shape()));
        }
        Ok(Self { x: x.view(), dy })
    }
}

impl ThinGradient for BatchGradient<'_> {
    fn times(&self, v: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        if v.nrows() != self.x.ncols() {
            return Err(Error::shape("x", &[self.x.nrows(), v.nrows()], self.x.shape()));
        }
        Ok(matmul_tn(&self.dy, &matmul(&self.x, v, Threads::ONE), Threads::ONE))
    }

    fn transposed_times(&self, u: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        if u.nrows() != self.dy.ncols() {
            return Err(Error::shape("dy", &[self.dy.nrows(), u.nrows()], self.dy.shape()));
        }
        Ok(matmul_tn(&self.x, &matmul(&self.dy, u, Threads::ONE), Threads::ONE))
    }

    fn between(&self, u: &ArrayRef2<f64>, v: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        if u.nrows() != self.dy.ncols() {
            return Err(Error::shape("dy", &[self.dy.nrows(), u.nrows()], self.dy.shape()));
        }
        if v.nrows() != self.x.ncols() {
            return Err(Error::shape("x", &[self.x.nrows(), v.nrows()], self.x.shape()));
        }
        let (left, right) = (matmul(&self.dy, u, Threads::ONE), matmul(&self.x, v, Threads::ONE));
        Ok(matmul_tn(&left, &right, Threads::ONE))
    }
}
