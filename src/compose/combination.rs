use super::{Boxed, check_shape};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, factor_gradients, product};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::scalar::Scalar;
use crate::storage::Factor;
use ndarray::{Array2, Array3, ArrayRef2};
use std::sync::Arc;

/// $W = c_1 A_1 + c_2 A_2 + \dots$, all of one shape; the terms may be shared with other matrices.
///
/// Cost: the products of all terms, and `terms * in` multiplications; no term is copied.
///
/// ```
/// use std::sync::Arc;
/// use structmat::prelude::*;
/// use structmat::compose::Combination;
/// use structmat::ndarray::array;
/// let a: Arc<dyn StructuredMatrix> = Arc::new(Dense::new(&array![[1.0f32, 2.0]])?);
/// let b: Arc<dyn StructuredMatrix> = Arc::new(Dense::new(&array![[10.0f32, 20.0]])?);
/// let c = Factor::from_matrix(Storage::F64, &array![[2.0, 0.5]]);
/// let w = Combination::new(c, vec![a.clone(), b.clone()])?;
/// assert_eq!(w.matvec(&array![1.0f32, 1.0])?, array![21.0]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Combination {
    coefficients: Factor,
    terms: Vec<Arc<dyn StructuredMatrix>>,
}

impl Combination {
    pub(super) const NAME: &'static str = "combination";

    /// From `coefficients` (1 x terms) and at least one term.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes of the terms differ or there is another number of coefficients, [`Error::Parameter`] when there is no
    /// term.
    pub fn new(coefficients: Factor, terms: Vec<Arc<dyn StructuredMatrix>>) -> Result<Self> {
        let Some(first) = terms.first() else {
            return Err(Error::parameter("terms", "none", "at least one"));
        };
        let (m, n) = first.shape();
        if let Some((rows, cols)) = terms.iter().map(|term| term.shape()).find(|shape| *shape != (m, n)) {
            return Err(Error::shape("term of a combination", &[m, n], &[rows, cols]));
        }
        let (b, r, c) = coefficients.shape();
        if (b, r, c) != (1, 1, terms.len()) {
            return Err(Error::shape("coefficients of a combination", &[1, 1, terms.len()], &[b, r, c]));
        }
        Ok(Self { coefficients: coefficients.into_rows(), terms })
    }

    /// The terms.
    pub fn terms(&self) -> &[Arc<dyn StructuredMatrix>] {
        &self.terms
    }

    /// What each of them is multiplied by, 1 x terms.
    pub fn coefficients(&self) -> &Factor {
        &self.coefficients
    }

    pub(super) fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let coefficients = parts.take_factor("coefficients")?;
        let terms = parts.take_children()?.into_iter().map(Arc::from).collect();
        let combination = Self::new(coefficients, terms)?;
        check_shape(&parts, combination.shape())?;
        Ok(combination)
    }
}

impl<T: Scalar> Multiply<T> for Combination {
    fn multiply(&self, Operands { op, x, mut y, update, work }: Operands<'_, T>) {
        let (mut scaled, mut work) = work.matrix(x.rows(), x.cols());
        let mut update = update;
        for (k, term) in self.terms.iter().enumerate() {
            let c = T::narrow(self.coefficients.get(0, 0, k));
            for b in 0..x.rows() {
                scaled.row(b).iter_mut().zip(x.row(b)).for_each(|(to, from)| *to = c * *from);
            }
            let (x, y) = (scaled.as_rows(), y.reborrow());
            T::multiply(term.as_ref(), Operands { op, x, y, update, work: work.reborrow() });
            update = Update::Accumulate;
        }
    }
}

impl<T: Scalar> Differentiate<T> for Combination {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let mut coefficients = Array3::zeros((1, 1, self.terms.len()));
        let mut terms = Vec::new();
        for (k, term) in self.terms.iter().enumerate() {
            let c = T::narrow(self.coefficients.get(0, 0, k));
            let y = product(term.as_ref(), Op::Forward, x, threads);
            coefficients[[0, 0, k]] = (&y * &dy.view()).sum();
            terms.extend(factor_gradients(term.as_ref(), &x.mapv(|v| c * v), dy, threads));
        }
        terms.insert(0, coefficients);
        terms
    }
}

impl StructuredMatrix for Combination {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.terms[0].shape()
    }
    fn flops(&self, batch: usize) -> u64 {
        let scaling = (batch * self.terms.len() * self.shape().1) as u64;
        self.terms.iter().map(|term| term.flops(batch)).sum::<u64>() + scaling
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let (m, n) = self.shape();
        let deepest = self.terms.iter().map(|term| term.scratch_len(batch)).max().unwrap_or(0);
        Workspace::<f32>::matrix_len(batch, m.max(n)) + deepest
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let mut w = Array2::zeros(self.shape());
        for (k, term) in self.terms.iter().enumerate() {
            w.scaled_add(self.coefficients.get(0, 0, k), &term.to_dense_f64());
        }
        w
    }
    fn parts(&self) -> Parts<'_> {
        let parts = Parts::new(Self::NAME, self.shape()).factor("coefficients", &self.coefficients);
        self.terms.iter().fold(parts, |parts, term| parts.child(term.parts()))
    }
    fn clone_box(&self) -> Boxed {
        Box::new(self.clone())
    }
}
