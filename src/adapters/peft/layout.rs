use crate::error::{Error, Result};
use ndarray::{Array2, ArrayD, ArrayRef, IxDyn, s};

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
    /// A convolution in so many groups as one without: zeros where outputs do not see inputs.
    Grouped(usize),
}

fn groups(form: Form) -> Option<usize> {
    match form {
        Form::Grouped(groups) => Some(groups),
        _ => None,
    }
}

impl Layout {
    pub(crate) fn new(shape: &[usize], form: Form) -> Result<Self> {
        let wrong = |expected: &[usize]| Err(Error::shape("base tensor of an adapter", expected, shape));
        match form {
            _ if shape.contains(&0) => wrong(&vec![1; shape.len()]),
            Form::Rows if shape.len() < 2 => wrong(&[1, 1]),
            Form::Transposed if shape.len() != 2 => wrong(&[1, 1]),
            Form::Stacked if shape.len() != 3 => wrong(&[1, 1, 1]),
            Form::Grouped(groups) if shape.len() < 3 || groups == 0 || !shape[0].is_multiple_of(groups) => {
                wrong(&[groups, 1, 1])
            }
            _ => match shape
                .iter()
                .chain(groups(form).iter())
                .try_fold(1usize, |product, n| product.checked_mul(*n))
            {
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
            Form::Grouped(groups) => (self.shape[0], groups * product(&self.shape[1..])),
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
            Form::Grouped(groups) => {
                let (m, n) = (self.shape[0], self.shape[1..].iter().product::<usize>());
                let own = flat.into_shape_with_order((m, n)).map_err(|_| wrong())?;
                let mut all = Array2::zeros((m, groups * n));
                for (o, row) in own.outer_iter().enumerate() {
                    all.slice_mut(s![o, self.own_inputs(o, n)]).assign(&row);
                }
                Ok(all)
            }
            _ => flat.into_shape_with_order(self.matrix_shape()).map_err(|_| wrong()),
        }
    }

    /// The columns that an output of a grouped convolution sees, `n` of them.
    fn own_inputs(&self, output: usize, n: usize) -> std::ops::Range<usize> {
        let Form::Grouped(groups) = self.form else { return 0..n };
        let group = output / (self.shape[0] / groups);
        group * n..(group + 1) * n
    }

    /// The matrix as the tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] for a matrix of another shape, [`Error::Unsupported`] for one that is no convolution in groups where the base is.
    pub fn to_tensor(&self, matrix: &Array2<f64>) -> Result<ArrayD<f64>> {
        let (m, n) = self.matrix_shape();
        if matrix.dim() != (m, n) {
            return Err(Error::shape("matrix of an adapter", &[m, n], matrix.shape()));
        }
        let plain = match self.form {
            Form::Transposed => matrix.t().as_standard_layout().into_owned(),
            Form::Grouped(groups) => {
                let n = n / groups;
                let mut own = Array2::zeros((m, n));
                for (o, (row, mut own)) in matrix.outer_iter().zip(own.outer_iter_mut()).enumerate() {
                    let inputs = self.own_inputs(o, n);
                    own.assign(&row.slice(s![inputs.clone()]));
                    if row.iter().enumerate().any(|(j, v)| *v != 0.0 && !inputs.contains(&j)) {
                        return Err(Error::Unsupported {
                            structure: "convolution in groups".to_owned(),
                            what: "outputs see inputs of other groups after the change: no kernel in groups holds it, multiply without merging"
                                .to_owned(),
                        });
                    }
                }
                own
            }
            _ => matrix.as_standard_layout().into_owned(),
        };
        let wrong = |_| Error::shape("matrix of an adapter", &[m, n], matrix.shape());
        plain.into_shape_with_order(IxDyn(&self.shape)).map_err(wrong)
    }
}
