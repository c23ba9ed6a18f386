use super::{Boxed, check_shape};
use crate::error::{Error, Result};
use crate::gradient::Differentiate;
use crate::linalg::Threads;
use crate::matrix::{Multiply, Operands, StructuredMatrix, Update};
use crate::parts::{MAX_FEATURES, Parts};
use crate::scalar::Scalar;
use crate::storage::Factor;
use ndarray::{Array2, Array3, ArrayRef2};

/// $W = I$: no parameters, no products. Scaled it is a diagonal matrix, and summed with a low-rank one a reflection.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::compose::Identity;
/// use structmat::ndarray::array;
/// let w = Identity::diagonal(Factor::from_matrix(Storage::F32, &array![[2.0f32, 3.0]]))?;
/// assert_eq!(w.matvec(&array![1.0f32, 10.0])?, array![2.0, 30.0]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    features: usize,
}

impl Identity {
    pub(super) const NAME: &'static str = "identity";

    /// The identity of so many features.
    ///
    /// # Errors
    /// [`Error::Parameter`] for more features than a matrix may have.
    pub fn new(features: usize) -> Result<Self> {
        match features <= MAX_FEATURES {
            true => Ok(Self { features }),
            false => Err(Error::parameter("features", features, format!("at most {MAX_FEATURES}"))),
        }
    }

    /// `diag(d)` of a factor of one row.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and [`Error::Shape`] for a factor of another shape.
    pub fn diagonal(d: Factor) -> Result<super::Scaled> {
        let inner = Self::new(d.cols())?;
        super::Scaled::new(Some(d), Box::new(inner), None)
    }

    pub(super) fn from_parts(parts: Parts<'static>) -> Result<Self> {
        let identity = Self::new(parts.shape().0)?;
        check_shape(&parts, identity.shape())?;
        Ok(identity)
    }
}

impl<T: Scalar> Multiply<T> for Identity {
    fn multiply(&self, Operands { x, mut y, update, .. }: Operands<'_, T>) {
        for b in 0..x.rows() {
            let pairs = y.row(b).iter_mut().zip(x.row(b));
            match update {
                Update::Overwrite => pairs.for_each(|(y, x)| *y = *x),
                Update::Accumulate => pairs.for_each(|(y, x)| *y += *x),
            }
        }
    }
}

impl<T: Scalar> Differentiate<T> for Identity {
    fn differentiate(&self, _: &ArrayRef2<T>, _: &ArrayRef2<T>, _: Threads) -> Vec<Array3<T>> {
        Vec::new()
    }
}

impl StructuredMatrix for Identity {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.features, self.features)
    }
    fn flops(&self, _batch: usize) -> u64 {
        0
    }
    fn scratch_len(&self, _batch: usize) -> usize {
        0
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        Array2::eye(self.features)
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape())
    }
    fn clone_box(&self) -> Boxed {
        Box::new(*self)
    }
}
