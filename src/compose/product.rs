use super::{Boxed, check_shape, with_children};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, factor_gradients, product};
use crate::linalg::{Threads, matmul};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::scalar::Scalar;
use ndarray::{Array2, Array3, ArrayRef2};

/// $W = A_1 A_2 \cdots A_k$; a product with `x` applies $A_k$ first.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::compose::Product;
/// use structmat::ndarray::array;
/// let a = Dense::new(&array![[1.0f32], [2.0]])?;
/// let b = Dense::new(&array![[3.0f32, 4.0]])?;
/// let w = Product::new(vec![Box::new(a), Box::new(b)])?;
/// assert_eq!(w.to_dense::<f32>(), array![[3.0, 4.0], [6.0, 8.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Product {
    factors: Vec<Boxed>,
}

impl Product {
    pub(super) const NAME: &'static str = "product";

    /// The product of `factors`, leftmost first, at least one.
    ///
    /// # Errors
    /// [`Error::Shape`] when neighbours do not fit, [`Error::Parameter`] when there is none.
    pub fn new(factors: Vec<Boxed>) -> Result<Self> {
        if factors.is_empty() {
            return Err(Error::parameter("factors", "none", "at least one"));
        }
        for pair in factors.windows(2) {
            let (inner, (rows, cols)) = (pair[0].shape().1, pair[1].shape());
            if rows != inner {
                return Err(Error::shape("factor of a product", &[inner, cols], &[rows, cols]));
            }
        }
        Ok(Self { factors })
    }

    /// The factors, leftmost first.
    pub fn factors(&self) -> &[Boxed] {
        &self.factors
    }

    pub(super) fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let product = Self::new(parts.take_children()?)?;
        check_shape(&parts, product.shape())?;
        Ok(product)
    }

    /// The widest intermediate result.
    fn inner(&self) -> usize {
        self.factors[1..].iter().map(|factor| factor.shape().0).max().unwrap_or(0)
    }
}

impl<T: Scalar> Multiply<T> for Product {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        let (batch, last) = (x.rows(), self.factors.len() - 1);
        let at = |step: usize| match op {
            Op::Forward => &self.factors[last - step],
            Op::Transpose => &self.factors[step],
        };
        let (panel, work) = work.matrix(batch, self.inner());
        let (other, mut work) = work.matrix(batch, self.inner());
        let (mut from, mut to) = (panel, other);
        for step in 0..=last {
            let factor = at(step);
            let (outputs, inputs) = op.order(factor.shape().0, factor.shape().1);
            let x = if step == 0 { x } else { from.as_rows().columns(0..inputs) };
            if step == last {
                return T::multiply(factor.as_ref(), Operands { op, x, y, update, work });
            }
            let y = to.reborrow().columns(0..outputs);
            T::multiply(
                factor.as_ref(),
                Operands { op, x, y, update: Update::Overwrite, work: work.reborrow() },
            );
            std::mem::swap(&mut from, &mut to);
        }
    }
}

impl<T: Scalar> Differentiate<T> for Product {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        // What goes into each factor, the last one first.
        let mut inputs = vec![x.to_owned()];
        for factor in self.factors[1..].iter().rev() {
            inputs.push(product(factor.as_ref(), Op::Forward, &inputs[inputs.len() - 1], threads));
        }
        let mut gradients = Vec::new();
        let mut dy = dy.to_owned();
        for (k, (factor, x)) in self.factors.iter().zip(inputs.iter().rev()).enumerate() {
            gradients.extend(factor_gradients(factor.as_ref(), x, &dy, threads));
            if k + 1 < self.factors.len() {
                dy = product(factor.as_ref(), Op::Transpose, &dy, threads);
            }
        }
        gradients
    }
}

impl StructuredMatrix for Product {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.factors[0].shape().0, self.factors[self.factors.len() - 1].shape().1)
    }
    fn flops(&self, batch: usize) -> u64 {
        self.factors.iter().map(|factor| factor.flops(batch)).sum()
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let deepest = self.factors.iter().map(|factor| factor.scratch_len(batch)).max().unwrap_or(0);
        2 * Workspace::<f32>::matrix_len(batch, self.inner()) + deepest
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let rest = self.factors[1..].iter();
        rest.fold(self.factors[0].to_dense_f64(), |product, factor| {
            matmul(&product, &factor.to_dense_f64(), Threads::ONE)
        })
    }
    fn parts(&self) -> Parts<'_> {
        with_children(Self::NAME, self.shape(), &self.factors)
    }
    fn clone_box(&self) -> Boxed {
        Box::new(self.clone())
    }
}
