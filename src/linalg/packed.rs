//! A matrix with which many thin blocks are multiplied.

use super::Threads;
use crate::exec::{Parallelism, Policy};
use crate::kernels::{Level, Rows, RowsMut};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, ArrayRef2};

/// Two copies of a matrix as products with weights read them, one for each direction. Beside general products, those with 64 rows take a
/// quarter to a third less time on one thread, and half on two.
pub(super) struct Packed {
    forward: Factor,
    transposed: Factor,
    /// Whether the factors are the transposed matrix, which lies row by row.
    turned: bool,
    policy: Policy,
}

impl Packed {
    /// Two copies in `f32` or `f64`.
    pub fn new(a: &ArrayRef2<f64>, storage: Storage, threads: Threads) -> Self {
        let turned = !a.is_standard_layout() && a.t().is_standard_layout();
        let rows = if turned { a.t() } else { a.view() };
        let parallelism = if threads.0 > 1 { Parallelism::Threads(threads.0) } else { Parallelism::Seq };
        let policy = Policy { parallelism, level: Level::detected() };
        let pack = |op| Factor::packed_from_matrix(storage, &rows, op);
        let (forward, transposed) = threads.join(|| pack(Op::Forward), || pack(Op::Transpose));
        Self { transposed, forward, turned, policy }
    }

    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        let (rows, cols) = (self.forward.rows(), self.forward.cols());
        if self.turned { (cols, rows) } else { (rows, cols) }
    }

    /// `X Aᵀ`: the images of the rows of `X`.
    pub fn images<T: Scalar>(&self, x: &ArrayRef2<T>) -> Array2<T> {
        self.multiply(if self.turned { Op::Transpose } else { Op::Forward }, x)
    }

    /// `X A`.
    pub fn pulled<T: Scalar>(&self, x: &ArrayRef2<T>) -> Array2<T> {
        self.multiply(if self.turned { Op::Forward } else { Op::Transpose }, x)
    }

    fn multiply<T: Scalar>(&self, op: Op, x: &ArrayRef2<T>) -> Array2<T> {
        let factor = if op == Op::Forward { &self.forward } else { &self.transposed };
        let x = x.as_standard_layout();
        let mut y = Array2::zeros((x.nrows(), op.order(factor.rows(), factor.cols()).0));
        if let (Some(x), Some(y)) = (Rows::from_ndarray(&x), RowsMut::from_ndarray(&mut y)) {
            factor.multiply(op, x, y, Update::Overwrite, self.policy);
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian};
    use super::*;
    use ndarray::s;

    #[test]
    fn products_are_those_of_the_matrix() {
        let (wide, tall) = (gaussian(40, 70, 1), gaussian(70, 40, 2));
        let strided = gaussian(90, 70, 3);
        for a in
            [wide.view(), tall.view(), tall.t(), strided.slice(s![..;-2, 1..;3]), wide.slice(s![..0, ..])]
        {
            for threads in [Threads(1), Threads(2)] {
                let packed = Packed::new(&a, Storage::F64, threads);
                assert_eq!(packed.dim(), a.dim());
                for rows in [0, 1, 64] {
                    let (x, z) = (gaussian(rows, a.ncols(), 4), gaussian(rows, a.nrows(), 5));
                    assert!(diff(&packed.images(&x), &x.dot(&a.t())) < 1e-12);
                    assert!(diff(&packed.pulled(&z), &z.dot(&a)) < 1e-12);
                }
                let x = gaussian(5, a.ncols(), 6).mapv(|x| x as f32);
                let single = Packed::new(&a, Storage::F32, threads).images(&x).mapv(f64::from);
                assert!(diff(&single, &x.mapv(f64::from).dot(&a.t())) < 1e-5);
            }
        }
    }
}
