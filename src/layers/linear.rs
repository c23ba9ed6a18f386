use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::gradient::Vjp;
use crate::io::{self, Source, Writer};
use crate::matrix::{Apply, StructuredMatrix, Update};
use crate::projection::{Family, Objective, Options, Projected, Report};
use crate::scalar::Scalar;
use ndarray::{Array1, Array2, Array3, ArrayRef1, ArrayRef2, Axis, Ix1};

/// Gradients of a [`Linear`] layer, from [`Linear::vjp`].
#[derive(Debug, Clone, PartialEq)]
pub struct LinearVjp<T> {
    /// With respect to the inputs (batch x in).
    pub input: Array2<T>,
    /// With respect to the numbers of the weight's factors, in the order of [`Apply::factor_numbers`].
    pub factors: Vec<Array3<T>>,
    /// With respect to the bias, where there is one.
    pub bias: Option<Array1<T>>,
}

/// $Y = X W^T + b$ with a structured weight and an optional bias.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::layers::Linear;
/// use structmat::ndarray::{Array2, array};
/// # fn main() -> structmat::Result<()> {
/// let w = Array2::from_shape_fn((3, 4), |(i, j)| (i * j) as f32);
/// let spec = LowRankSpec { rank: 1, ..Default::default() };
/// let (layer, report) = Linear::project::<LowRank, f32>(
///     &w, Some(&array![1.0, 2.0, 3.0]), &spec, &Objective::Frobenius, &Options::default())?;
/// let y = layer.forward(&Array2::<f32>::ones((2, 4)))?;
/// # assert!(report.relative_error < 1e-6 && (y[[1, 2]] - 15.0).abs() < 1e-5);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Box<dyn StructuredMatrix>,
    bias: Option<Array1<f64>>,
}

/// The bias `name` of `len` entries, where it is there.
///
/// # Errors
/// [`Error::Shape`] for one of another length, and those of [`Source::find`].
pub(super) fn load_bias(source: &dyn Source, name: &str, len: usize) -> Result<Option<Array1<f64>>> {
    let Some(file) = source.find(name)? else { return Ok(None) };
    let array = file.array::<f64>(name)?;
    let wrong = Error::shape("bias", &[len], array.shape());
    match array.into_dimensionality::<Ix1>() {
        Ok(bias) if bias.len() == len => Ok(Some(bias)),
        _ => Err(wrong),
    }
}

impl Linear {
    /// From a weight of `out x in` and a bias of `out` entries.
    ///
    /// # Errors
    /// [`Error::Shape`] when the bias has another length.
    pub fn new<T: Scalar>(weight: Box<dyn StructuredMatrix>, bias: Option<&ArrayRef1<T>>) -> Result<Self> {
        let out = weight.shape().0;
        if let Some(bias) = bias
            && bias.len() != out
        {
            return Err(Error::shape("bias", &[out], &[bias.len()]));
        }
        Ok(Self { weight, bias: bias.map(|bias| bias.mapv(T::widen)) })
    }

    /// Projects a dense weight onto a family; the bias stays as it is.
    ///
    /// # Errors
    /// Those of [`Family::project`] and [`new`](Self::new).
    pub fn project<F: Family, T: Scalar>(
        w: &ArrayRef2<T>,
        bias: Option<&ArrayRef1<T>>,
        spec: &F::Spec,
        objective: &Objective<'_>,
        options: &Options<'_>,
    ) -> Result<(Self, Report)> {
        let Projected { matrix, report } = F::project(w, spec, objective, options)?;
        Ok((Self::new(Box::new(matrix), bias)?, report))
    }

    /// Reads `NAME.weight`, structured or dense, and `NAME.bias` where it is there.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is no such weight, [`Error::File`] for a malformed one, [`Error::Shape`] for a bias of
    /// another length, and those of [`Source::find`].
    pub fn load(source: &dyn Source, name: &str) -> Result<Self> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let weight = io::weight(source, &weight)?;
        let bias = load_bias(source, &bias, weight.shape().0)?;
        Self::new(weight, bias.as_deref())
    }

    /// The same bias with another weight, of the same number of outputs.
    ///
    /// # Errors
    /// [`Error::Shape`] when the bias does not fit.
    pub fn with_weight(&self, weight: Box<dyn StructuredMatrix>) -> Result<Self> {
        Self::new(weight, self.bias.as_deref())
    }

    /// Adds `NAME.weight` and `NAME.bias` to a file.
    ///
    /// # Errors
    /// Those of [`Writer::structured`].
    pub fn save(&self, writer: &mut Writer<'_>, name: &str) -> Result<()> {
        writer.structured(&format!("{name}.weight"), self.weight.as_ref())?;
        match &self.bias {
            None => Ok(()),
            Some(bias) => writer.exact(&format!("{name}.bias"), bias),
        }
    }

    /// The weight.
    pub fn weight(&self) -> &dyn StructuredMatrix {
        self.weight.as_ref()
    }

    /// The bias, where there is one.
    pub fn bias(&self) -> Option<&Array1<f64>> {
        self.bias.as_ref()
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.weight.shape().1
    }

    /// Number of outputs.
    pub fn out_features(&self) -> usize {
        self.weight.shape().0
    }

    /// `X` (batch x in) to `Y` (batch x out), allocating.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` does not have `in_features` columns.
    pub fn forward<T: Scalar>(&self, x: &ArrayRef2<T>) -> Result<Array2<T>> {
        let mut y = Array2::zeros((x.nrows(), self.out_features()));
        self.forward_into(x, &mut y, &mut Exec::new())?;
        Ok(y)
    }

    /// The same into `y`; allocates nothing once `exec` has grown to this size.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not fit; `y` is then untouched.
    pub fn forward_into<T: Scalar>(
        &self,
        x: &ArrayRef2<T>,
        y: &mut ArrayRef2<T>,
        exec: &mut Exec<T>,
    ) -> Result<()> {
        let Some(bias) = &self.bias else {
            return self.weight.apply_into(x, y, Update::Overwrite, exec);
        };
        let expected = [x.nrows(), self.out_features()];
        if x.ncols() != self.in_features() {
            return Err(Error::shape("x", &[x.nrows(), self.in_features()], x.shape()));
        }
        if y.shape() != expected {
            return Err(Error::shape("y", &expected, y.shape()));
        }
        for mut row in y.outer_iter_mut() {
            row.iter_mut().zip(bias).for_each(|(y, bias)| *y = T::narrow(*bias));
        }
        self.weight.apply_into(x, y, Update::Accumulate, exec)
    }

    /// The gradients of a loss, from those of the outputs, `dy` (batch x out), and the inputs `x` (batch x in); see [`Apply::vjp`].
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not fit.
    pub fn vjp<T: Scalar>(
        &self,
        x: &ArrayRef2<T>,
        dy: &ArrayRef2<T>,
        exec: &mut Exec<T>,
    ) -> Result<LinearVjp<T>> {
        let Vjp { input, factors } = self.weight.vjp(x, dy, exec)?;
        let bias = self.bias.as_ref().map(|_| dy.sum_axis(Axis(0)));
        Ok(LinearVjp { input, factors, bias })
    }
}
