//! The dense matrix: the baseline of every comparison, and a family of its own when its storage is coarse.

use crate::error::Result;
use crate::exec::Workspace;
use crate::gradient::{Differentiate, stack_gradient};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Operands, StructuredMatrix};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Gram, Objective, Request, Run, scale_outputs};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2};

/// A dense `out x in` matrix in any storage.
///
/// Parameters and multiply-adds: `out * in`. Projection: the matrix itself, rounded to the storage; with activations, integer codes are chosen
/// column after column, each after the errors of those before it were moved onto it (E. Frantar et al., "GPTQ: Accurate Post-Training
/// Quantization for Generative Pre-trained Transformers", 2023).
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?;
/// assert_eq!(w.matvec(&array![1.0f32, 10.0])?, array![21.0, 43.0]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    weight: Factor,
}

/// A dense matrix has no parameters to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DenseSpec;

impl Dense {
    /// From an array, in the storage that keeps it exactly.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) for NaN or infinities.
    pub fn new<T: Scalar>(w: &ArrayRef2<T>) -> Result<Self> {
        crate::linalg::check_finite("weight", w)?;
        let storage = if size_of::<T>() == 4 { Storage::F32 } else { Storage::F64 };
        Ok(Self { weight: Factor::from_matrix(storage, w).packed_forward() })
    }

    /// From a factor of one block.
    ///
    /// # Errors
    /// [`Error::Record`](crate::Error::Record) when the factor has another number of blocks.
    pub fn from_factor(weight: Factor) -> Result<Self> {
        let shape = (weight.rows(), weight.cols());
        Self::from_parts(Parts::new(Self::NAME, shape).factor("weight", weight))
    }
}

impl<T: Scalar> Multiply<T> for Dense {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        self.weight.multiply(op, x, y, update, work.policy);
    }
}

impl<T: Scalar> Differentiate<T> for Dense {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        vec![stack_gradient(1, &dy.t(), &x.t(), threads)]
    }
}

impl StructuredMatrix for Dense {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.weight.rows(), self.weight.cols())
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * self.weight.len() as u64
    }
    fn scratch_len(&self, _batch: usize) -> usize {
        Workspace::<f32>::slice_len(0)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        self.weight.matrix(0)
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape()).factor("weight", &self.weight)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Dense {
    const NAME: &'static str = "dense";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[];
    type Spec = DenseSpec;
    const ROUNDS_FOR_INPUTS: bool = true;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<DenseSpec> {
        request.require(Self::NAME, (out, inp), request.size().factor(1, out, inp))?;
        Ok(DenseSpec)
    }

    fn fit(w: &Array2<f64>, _: &DenseSpec, _: &Objective<'_>, run: &Run<'_>) -> Result<Fit<Self>> {
        Ok(Fit::optimal(Self { weight: Factor::from_matrix(run.storage(), w).packed_forward() }))
    }

    fn random((out, inp): (usize, usize), _: &DenseSpec, storage: Storage, seed: u64) -> Result<Self> {
        let w = Gaussian::new(seed).matrix(out, inp, (inp.max(1) as f64).powf(-0.5));
        Ok(Self { weight: Factor::from_matrix(storage, &w).packed_forward() })
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        scale_outputs(self, scale, storage, |_, (_, row, _)| Some(row))
    }

    fn round_for_inputs(&self, w: &Array2<f64>, gram: &Gram, storage: Storage) -> Result<Self> {
        Ok(Self { weight: gram.feedback()?.round(w, storage)?.packed_forward() })
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let weight = parts.take_factor("weight")?;
        let (m, n) = parts.shape();
        if weight.shape() != (1, m, n) {
            return Err(parts.error(format!("weight is {:?}, expected {:?}", weight.shape(), (1, m, n))));
        }
        Ok(Self { weight: weight.packed_forward() })
    }
}
