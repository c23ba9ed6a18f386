//! The dense matrix in place of a structure that would do more arithmetic.

use crate::kernels::{Spectrum, SpectrumCache};
use crate::matrix::StructuredMatrix;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};

/// The dense form of a matrix whose own product takes more multiply-adds: made on the first product, in the compute type, and kept.
/// Files and parameters stay those of the structure.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Expanded(SpectrumCache);

/// Multiply-adds of a dense product in the time of one that gathers its input, about.
pub(crate) const GATHERED: u64 = 5;

/// Entries of matrices whose windows and small blocks are multiplied as they are: a dense form gains little there.
pub(crate) const SMALL: usize = 1 << 14;

/// Numbers of a dense matrix for each of the structure's, at most: an unbounded dense form could exceed all memory.
const MOST_MEMORY: u64 = 8;

impl Expanded {
    /// Whether a structure of so many stored `numbers` multiplies as a dense matrix: its product with one vector costs as much as `cost`
    /// flops of dense products, and the dense matrix takes no more than [`MOST_MEMORY`] times its memory.
    pub(crate) fn pays(cost: u64, numbers: usize, shape: (usize, usize)) -> bool {
        let dense = dense_flops(shape);
        cost > dense && dense / 2 <= MOST_MEMORY.saturating_mul(numbers as u64)
    }

    /// Flops of a product with one vector: `own`, or those of the dense product in its place.
    pub(crate) fn flops(own: u64, cost: u64, numbers: usize, shape: (usize, usize)) -> u64 {
        if Self::pays(cost, numbers, shape) { dense_flops(shape) } else { own }
    }

    /// The dense matrix, packed.
    pub(crate) fn dense<T: Scalar>(&self, matrix: &impl StructuredMatrix) -> Option<&Factor> {
        let storage = if size_of::<T>() == 4 { Storage::F32 } else { Storage::F64 };
        let make = || Spectrum {
            factor: Some(Factor::from_matrix(storage, &matrix.to_dense_f64()).packed_forward()),
            ..Default::default()
        };
        self.0.get::<T>(make).factor.as_ref()
    }
}

fn dense_flops((m, n): (usize, usize)) -> u64 {
    2 * m as u64 * n as u64
}
