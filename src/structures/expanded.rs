//! The dense matrix in place of a structure that would do more arithmetic.

use crate::kernels::{Spectrum, SpectrumCache};
use crate::matrix::{Op, Operands, StructuredMatrix};
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};

/// Multiply-adds of a dense product in the time of one that gathers its input, about.
pub(crate) const GATHERED: u64 = 5;

/// Entries of matrices whose windows and small blocks are multiplied as they are: a dense form gains little there.
pub(crate) const SMALL: usize = 1 << 14;

/// Numbers of a dense matrix for each of the structure's, at most: an unbounded dense form could exceed all memory.
const MOST_MEMORY: u64 = 8;

/// The dense form of a matrix: made on the first product that takes less time with it, in the compute type, and kept. Files and parameters stay those
/// of the structure.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Expanded(SpectrumCache);

/// A structure whose product may take longer than that of the dense matrix, which then multiplies in its place.
pub(crate) trait Expand: StructuredMatrix + Sized {
    /// Where the dense form is kept.
    fn expanded(&self) -> &Expanded;

    /// Stored numbers.
    fn numbers(&self) -> usize;

    /// Flops of a product with one vector by the structure.
    fn own_flops(&self) -> u64;

    /// Flops of dense products in the time of a product with one of `batch` rows by the structure.
    fn cost(&self, op: Op, batch: usize) -> u64 {
        let _ = (op, batch);
        self.own_flops()
    }

    /// Whether `batch` rows are multiplied by the dense matrix: it takes less time, and no more than [`MOST_MEMORY`] times the memory.
    fn is_expanded(&self, op: Op, batch: usize) -> bool {
        let dense = dense_flops(self.shape());
        self.cost(op, batch) > dense && dense / 2 <= MOST_MEMORY.saturating_mul(self.numbers() as u64)
    }

    /// Makes the product by the dense matrix where that takes less time; gives the operands back where not.
    fn multiply_densely<'a, T: Scalar>(&self, operands: Operands<'a, T>) -> Option<Operands<'a, T>> {
        if !self.is_expanded(operands.op, operands.x.rows()) {
            return Some(operands);
        }
        let storage = if size_of::<T>() == 4 { Storage::F32 } else { Storage::F64 };
        let make = || Spectrum {
            factor: Some(Factor::from_matrix(storage, &self.to_dense_f64()).packed_forward()),
            ..Default::default()
        };
        let Some(dense) = &self.expanded().0.get::<T>(make).factor else { return Some(operands) };
        let Operands { op, x, y, update, work } = operands;
        dense.multiply(op, x, y, update, work.policy);
        None
    }

    /// [`StructuredMatrix::flops`], of the product that is made.
    fn product_flops(&self, batch: usize) -> u64 {
        let dense = self.is_expanded(Op::Forward, batch);
        batch as u64 * if dense { dense_flops(self.shape()) } else { self.own_flops() }
    }

    /// Batch rows that need scratch of the structure: none where both products of `batch` rows are made by the dense matrix.
    fn own_rows(&self, batch: usize) -> usize {
        let dense = [Op::Forward, Op::Transpose].iter().all(|&op| self.is_expanded(op, batch));
        if dense { 0 } else { batch }
    }
}

fn dense_flops((m, n): (usize, usize)) -> u64 {
    2 * m as u64 * n as u64
}
