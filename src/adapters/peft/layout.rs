use crate::error::{Error, Result};
use ndarray::{Array2, ArrayD, ArrayRef, IxDyn};

/// How the tensor of a base weight is the matrix (out x in) that an adapter edits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    shape: Vec<usize>,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// First axis by all others: linear layers, convolutions with flattened kernels, tables of embeddings.
    Rows,
    /// Stored as in x out.
    Transposed,
    /// All axes but the last by the last: stacks of experts.
    Stacked,
}

impl Layout {
    pub(crate) fn new(shape: &[usize], form: Form) -> Result<Self> {
        let wrong = |expected: &[usize]| Err(Error::shape("base tensor of an adapter", expected, shape));
        match form {
            _ if shape.contains(&0) => wrong(&vec![1; shape.len()]),
            Form::Rows if shape.len() < 2 => wrong(&[1, 1]),
            Form::Transposed if shape.len() != 2 => wrong(&[1, 1]),
            Form::Stacked if shape.len() != 3 => wrong(&[1, 1, 1]),
            _ => match shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n)) {
                Some(_) => Ok(Self { shape: shape.to_vec(), form }),
                None => wrong(&[1, 1]),
            },
        }
    }

    /// The shape of the tensor.
    pub fn tensor_shape(&self) -> &[usize] {
        &self.shape
    }

    /// The shape of the matrix.
    pub fn matrix_shape(&self) -> (usize, usize) {
        let product = |axes: &[usize]| axes.iter().product::<usize>();
        match self.form {
            Form::Rows => (self.shape[0], product(&self.shape[1..])),
            Form::Transposed => (self.shape[1], self.shape[0]),
            Form::Stacked => (product(&self.shape[..2]), self.shape[2]),
        }
    }

    /// The tensor as the matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor of another shape.
    pub fn to_matrix(&self, tensor: &ArrayRef<f64, IxDyn>) -> Result<Array2<f64>> {
        let wrong = || Error::shape("base tensor of an adapter", &self.shape, tensor.shape());
        if tensor.shape() != self.shape {
            return Err(wrong());
        }
        let flat = tensor.as_standard_layout().into_owned();
        match self.form {
            Form::Transposed => {
                let plain =
                    flat.into_shape_with_order((self.shape[0], self.shape[1])).map_err(|_| wrong())?;
                Ok(plain.t().as_standard_layout().into_owned())
            }
            _ => flat.into_shape_with_order(self.matrix_shape()).map_err(|_| wrong()),
        }
    }

    /// The matrix as the tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] for a matrix of another shape.
    pub fn to_tensor(&self, matrix: &Array2<f64>) -> Result<ArrayD<f64>> {
        let (m, n) = self.matrix_shape();
        if matrix.dim() != (m, n) {
            return Err(Error::shape("matrix of an adapter", &[m, n], matrix.shape()));
        }
        let plain = match self.form {
            Form::Transposed => matrix.t().as_standard_layout().into_owned(),
            _ => matrix.as_standard_layout().into_owned(),
        };
        let wrong = |_| Error::shape("matrix of an adapter", &[m, n], matrix.shape());
        plain.into_shape_with_order(IxDyn(&self.shape)).map_err(wrong)
    }
}
