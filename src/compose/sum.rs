use super::{Boxed, check_shape, with_children};
use crate::error::{Error, Result};
use crate::gradient::{Differentiate, factor_gradients};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::scalar::Scalar;
use ndarray::{Array2, Array3, ArrayRef2};

/// $W = A_1 + A_2 + \dots$, all of one shape.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::compose::Sum;
/// use structmat::ndarray::array;
/// let a = Dense::new(&array![[1.0f32, 2.0]])?;
/// let b = Dense::new(&array![[10.0f32, 20.0]])?;
/// let w = Sum::new(vec![Box::new(a), Box::new(b)])?;
/// assert_eq!(w.matvec(&array![1.0f32, 1.0])?, array![33.0]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sum {
    terms: Vec<Boxed>,
}

impl Sum {
    pub(super) const NAME: &'static str = "sum";

    /// The sum of `terms`, at least one.
    ///
    /// # Errors
    /// [`Error::Shape`] when their shapes differ, [`Error::Parameter`] when there is none.
    pub fn new(terms: Vec<Boxed>) -> Result<Self> {
        let Some(first) = terms.first() else {
            return Err(Error::parameter("terms", "none", "at least one"));
        };
        let (m, n) = first.shape();
        match terms.iter().map(|term| term.shape()).find(|shape| *shape != (m, n)) {
            Some((rows, cols)) => Err(Error::shape("term of a sum", &[m, n], &[rows, cols])),
            None => Ok(Self { terms }),
        }
    }

    /// The terms.
    pub fn terms(&self) -> &[Boxed] {
        &self.terms
    }

    pub(super) fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let sum = Self::new(parts.take_children()?)?;
        check_shape(&parts, sum.shape())?;
        Ok(sum)
    }
}

impl<T: Scalar> Multiply<T> for Sum {
    fn multiply(&self, Operands { op, x, mut y, update, mut work }: Operands<'_, T>) {
        let mut update = update;
        for term in &self.terms {
            T::multiply(term.as_ref(), Operands { op, x, y: y.reborrow(), update, work: work.reborrow() });
            update = Update::Accumulate;
        }
    }
}

impl<T: Scalar> Differentiate<T> for Sum {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        self.terms.iter().flat_map(|term| factor_gradients(term.as_ref(), x, dy, threads)).collect()
    }
}

impl StructuredMatrix for Sum {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.terms[0].shape()
    }
    fn flops(&self, batch: usize) -> u64 {
        self.terms.iter().map(|term| term.flops(batch)).sum()
    }
    fn scratch_len(&self, batch: usize) -> usize {
        self.terms.iter().map(|term| term.scratch_len(batch)).max().unwrap_or(0)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        self.terms.iter().fold(Array2::zeros(self.shape()), |sum, term| sum + term.to_dense_f64())
    }
    fn parts(&self) -> Parts<'_> {
        with_children(Self::NAME, self.shape(), &self.terms)
    }
    fn clone_box(&self) -> Boxed {
        Box::new(self.clone())
    }
}
