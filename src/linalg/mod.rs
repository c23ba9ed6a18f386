//! Dense linear algebra on `ndarray` matrices: products, decompositions, solvers, assignment.
//!
//! Every function takes `&ArrayRef2<f64>` (owned arrays and views coerce; products also take `f32`) of any strides and
//! returns arrays in standard (row-major) layout. Contiguous inputs, row- or column-major, are read in place;
//! other strides are copied once. This module is the only place that calls the dense kernel library.

mod assignment;
mod complex;
mod convert;
mod eigen;
mod elementwise;
mod gemv;
mod incremental_pca;
mod jacobi;
mod krylov;
mod leading;
mod lstsq;
mod packed;
mod pivoted;
mod product;
mod qr;
mod real;
mod spd;
mod spectrum;
mod svd;
mod svd_gradient;
mod tridiagonal;
mod truncated;

use crate::error::{Error, Result};
use crate::kernels;
use ndarray::{ArrayRef2, ArrayView1, ArrayView2};

pub use assignment::assignment;
pub use complex::{ComplexSvd, complex_svd_truncated};
pub use eigen::{Eigh, eigh, eigvalsh, symmetric_root};
use elementwise::energy;
pub(crate) use elementwise::{dot, finite_copy, multiply_add, rows, rows_mut, vectorised};
pub(crate) use gemv::add_rows;
pub use incremental_pca::IncrementalPca;
pub(crate) use krylov::append_rows;
pub use leading::{batched_leading_triplets, leading_triplets};
pub use lstsq::{lstsq, pinv, polar};
pub use pivoted::{PivotedQr, orth, pivot_columns, pivoted_qr};
pub use product::{gram, matmul, matmul_into, matmul_nt, matmul_tn};
pub(crate) use qr::reflected_q;
pub use qr::{Qr, qr};
pub use real::Real;
pub use spd::{Cholesky, SpdSolver, cholesky, cholesky_shifted};
pub use spectrum::{energy_rank, entropy_rank, stable_rank};
pub use svd::{Svd, singular_values, svd};
pub use svd_gradient::{SvdGuards, svd_gradient};
pub use truncated::{SvdMethod, SvdOptions, TruncatedSvd, truncated_svd};

/// How many threads a call may use. `Threads(0)` and `Threads(1)` never touch the thread pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads(pub usize);

impl Threads {
    /// One thread, no pool.
    pub const ONE: Self = Self(1);

    pub(crate) fn par(self) -> faer::Par {
        if self.0 <= 1 { faer::Par::Seq } else { faer::Par::rayon(self.0) }
    }

    /// What both give, run at the same time where there are two threads or more.
    fn join<L: Send, R: Send>(
        self,
        left: impl FnOnce() -> L + Send,
        right: impl FnOnce() -> R + Send,
    ) -> (L, R) {
        if self.0 <= 1 {
            return (left(), right());
        }
        let (mut first, mut second) = (None, None);
        kernels::join(|| first = Some(left()), || second = Some(right()));
        first.zip(second).expect("both ran")
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self::ONE
    }
}

/// [`Error::NonFinite`] for the first NaN or infinity of `a`, in row-major order.
pub(crate) fn check_finite<T: Real>(what: &'static str, a: &ArrayRef2<T>) -> Result<()> {
    // Whole lines at once: which number it is matters once there is one.
    let finite = |line: ArrayView1<'_, T>| line.fold(true, |all, x| all & x.widen().is_finite());
    if lines(a).outer_iter().all(finite) {
        return Ok(());
    }
    match a.indexed_iter().find(|(_, x)| !x.widen().is_finite()) {
        Some(((row, col), value)) => Err(Error::NonFinite { what, row, col, value: value.widen() }),
        None => Ok(()),
    }
}

/// `a` or its transpose, whichever has rows that lie in one piece.
fn lines<T>(a: &ArrayRef2<T>) -> ArrayView2<'_, T> {
    if a.t().is_standard_layout() { a.t() } else { a.view() }
}

/// [`Error::Shape`] unless `a` is square; its order otherwise.
pub(crate) fn check_square(what: &'static str, a: &ArrayRef2<f64>) -> Result<usize> {
    let (rows, cols) = a.dim();
    if rows == cols { Ok(rows) } else { Err(Error::shape(what, &[rows, rows], &[rows, cols])) }
}

#[cfg(test)]
pub(crate) mod testing {
    use ndarray::Array2;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    /// A seeded Gaussian matrix.
    pub fn gaussian(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Array2::from_shape_fn((rows, cols), |_| StandardNormal.sample(&mut rng))
    }

    /// A seeded matrix with the given singular values.
    pub fn with_spectrum(rows: usize, cols: usize, s: &[f64], seed: u64) -> Array2<f64> {
        let u = super::qr(&gaussian(rows, s.len(), seed)).q;
        let v = super::qr(&gaussian(cols, s.len(), seed + 1000)).q;
        let us = Array2::from_shape_fn(u.dim(), |(i, j)| u[[i, j]] * s[j]);
        us.dot(&v.t())
    }

    /// Largest absolute difference.
    pub fn diff(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        assert_eq!(a.dim(), b.dim());
        a.iter().zip(b).fold(0.0, |m, (x, y)| f64::max(m, (x - y).abs()))
    }

    /// How far the columns of `q` are from orthonormal.
    pub fn orthogonality(q: &Array2<f64>) -> f64 {
        diff(&q.t().dot(q), &Array2::eye(q.ncols()))
    }

    /// Frobenius norm.
    pub fn norm(a: &Array2<f64>) -> f64 {
        a.iter().map(|x| x * x).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn finite_check_names_the_entry() {
        let mut a = array![[1.0, 2.0], [3.0, 4.0]];
        assert!(check_finite("a", &a).is_ok());
        a[[1, 0]] = f64::NAN;
        assert!(matches!(check_finite("a", &a), Err(Error::NonFinite { row: 1, col: 0, .. })));
        assert!(matches!(check_finite("a", &a.t()), Err(Error::NonFinite { row: 0, col: 1, .. })));
    }

    #[test]
    fn one_thread_is_sequential() {
        assert_eq!(Threads(0).par(), faer::Par::Seq);
        assert_eq!(Threads::default().par(), faer::Par::Seq);
        assert_ne!(Threads(2).par(), faer::Par::Seq);
    }
}
