use super::{Boxed, check_shape, only_child, with_children};
use crate::error::Result;
use crate::gradient::{Differentiate, factor_gradients};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Operands, StructuredMatrix};
use crate::parts::Parts;
use crate::scalar::Scalar;
use ndarray::{Array2, Array3, ArrayRef2};

/// $W = A^T$.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::compose::Transposed;
/// use structmat::ndarray::array;
/// let w = Transposed::new(Box::new(Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?));
/// assert_eq!(w.matvec(&array![1.0f32, 10.0])?, array![31.0, 42.0]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Transposed {
    inner: Boxed,
}

impl Transposed {
    pub(super) const NAME: &'static str = "transposed";

    /// The transpose of `inner`.
    pub fn new(inner: Boxed) -> Self {
        Self { inner }
    }

    /// The matrix that is transposed.
    pub fn inner(&self) -> &dyn StructuredMatrix {
        self.inner.as_ref()
    }

    pub(super) fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let transposed = Self::new(only_child(&mut parts)?);
        check_shape(&parts, transposed.shape())?;
        Ok(transposed)
    }
}

impl<T: Scalar> Multiply<T> for Transposed {
    fn multiply(&self, operands: Operands<'_, T>) {
        T::multiply(self.inner.as_ref(), Operands { op: operands.op.flip(), ..operands });
    }
}

impl<T: Scalar> Differentiate<T> for Transposed {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        factor_gradients(self.inner.as_ref(), dy, x, threads)
    }
}

impl StructuredMatrix for Transposed {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        let (m, n) = self.inner.shape();
        (n, m)
    }
    fn flops(&self, batch: usize) -> u64 {
        self.inner.flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        self.inner.scratch_len(batch)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        self.inner.to_dense_f64().reversed_axes()
    }
    fn parts(&self) -> Parts<'_> {
        with_children(Self::NAME, self.shape(), [&self.inner])
    }
    fn clone_box(&self) -> Boxed {
        Box::new(self.clone())
    }
}
