//! A member of [`Blast`] in floating point, as its fit changes it.

use super::{Blast, block_range, slot};
use crate::error::Result;
use crate::linalg::Real;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, s};

/// All in standard layout.
#[derive(Debug, Clone)]
pub(super) struct Factors<T> {
    /// `m x r`.
    pub(super) u: Array2<T>,
    /// `b1 x b2 x r`.
    pub(super) s: Array3<T>,
    /// `n x r`.
    pub(super) v: Array2<T>,
}

impl<T: Real> Factors<T> {
    pub(super) fn new(u: &ArrayRef2<T>, s: Array3<T>, v: &ArrayRef2<T>) -> Self {
        Self { u: u.as_standard_layout().into_owned(), s, v: v.as_standard_layout().into_owned() }
    }

    pub(super) fn zeros((m, n): (usize, usize), (b1, b2): (usize, usize), rank: usize) -> Self {
        Self { u: Array2::zeros((m, rank)), s: Array3::zeros((b1, b2, rank)), v: Array2::zeros((n, rank)) }
    }

    /// `s_ij`.
    pub(super) fn diagonal(&self, i: usize, j: usize) -> &[T] {
        self.s.slice(s![i, j, ..]).to_slice().unwrap_or_default()
    }

    /// In another precision.
    pub(super) fn cast<S: Real>(&self) -> Factors<S> {
        let cast = |x: &T| S::narrow(x.widen());
        Factors { u: self.u.map(cast), s: self.s.map(cast), v: self.v.map(cast) }
    }
}

impl Factors<f64> {
    /// Makes block `(i, j)` the product of `left` and the transpose of `right`, in the components that it owns.
    pub(super) fn set_block(&mut self, i: usize, j: usize, left: &ArrayRef2<f64>, right: &ArrayRef2<f64>) {
        let (b1, b2, rank) = self.s.dim();
        let own = slot(i, j, (b1, b2), rank);
        let own = own.start..own.start + left.ncols();
        let (rows, cols) = (block_range(i, b1, self.u.nrows()), block_range(j, b2, self.v.nrows()));
        self.u.slice_mut(s![rows, own.clone()]).assign(left);
        self.v.slice_mut(s![cols, own.clone()]).assign(right);
        self.s.slice_mut(s![i, j, own]).fill(1.0);
    }

    pub(super) fn store(&self, storage: Storage) -> Result<Blast> {
        let s = Factor::from_fn(storage, self.s.dim(), |i, j, k| self.s[[i, j, k]]);
        Blast::new(Factor::from_matrix(storage, &self.u), s, Factor::from_matrix(storage, &self.v))
    }
}
