//! The dense matrix in place of a structure that would do more arithmetic.

use crate::kernels::{Spectrum, SpectrumCache};
use crate::matrix::StructuredMatrix;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};

/// The dense form of a matrix whose own product takes more multiply-adds: made on the first product, in the compute type, and kept.
/// Files and parameters stay those of the structure.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Expanded(SpectrumCache);

impl Expanded {
    /// `own` flops of a product with one vector, or those of the dense product where these are fewer.
    pub(crate) fn flops(own: u64, shape: (usize, usize)) -> u64 {
        own.min(dense_flops(shape))
    }

    /// Whether a structure of `own` flops multiplies as a dense matrix.
    pub(crate) fn pays(own: u64, shape: (usize, usize)) -> bool {
        own > dense_flops(shape)
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
