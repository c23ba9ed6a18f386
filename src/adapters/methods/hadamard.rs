use super::dense;
use crate::adapters::{Adapter, Edit, check_base};
use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use ndarray::{Array2, ArrayRef2};

/// $W' = W + W \circ (B A)$, with `b` of `out x rank` and `a` of `rank x in`: HiRA, and HUT.
///
/// The change has up to `rank` times the rank of `W`, and no product that is cheaper than the dense one: it is made when the adapter is bound,
/// at `out in rank` multiply-adds, and costs `out in` per vector. Zeros of `W` stay zeros.
///
/// Source: Q. Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models", 2025.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::Hadamard};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0], [0.0, 4.0]])?;
/// let hira = Hadamard::new(&array![[1.0], [2.0]], &array![[3.0, 4.0]])?;
/// assert_eq!(hira.delta(&base)?, array![[3.0, 8.0], [0.0, 32.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hadamard {
    b: Array2<f64>,
    a: Array2<f64>,
}

impl Hadamard {
    /// From both factors.
    ///
    /// # Errors
    /// [`Error::Shape`] when the ranks differ.
    pub fn new(b: &ArrayRef2<f64>, a: &ArrayRef2<f64>) -> Result<Self> {
        if b.ncols() != a.nrows() {
            return Err(Error::shape("HiRA factor B", &[b.nrows(), a.nrows()], b.shape()));
        }
        Ok(Self { b: b.to_owned(), a: a.to_owned() })
    }
}

impl Adapter for Hadamard {
    fn kind(&self) -> &'static str {
        "hira"
    }
    fn shape(&self) -> (usize, usize) {
        (self.b.nrows(), self.a.ncols())
    }
    fn n_params(&self) -> usize {
        self.b.len() + self.a.len()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape())?;
        let factor = crate::linalg::matmul(&self.b, &self.a, crate::linalg::Threads::ONE);
        Edit::of(self.shape()).with_delta(dense(&(factor * base.to_dense_f64()))?)
    }
}
