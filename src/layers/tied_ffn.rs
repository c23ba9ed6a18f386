use super::linear::load_bias;
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::exec::{Exec, Workspace};
use crate::io::{self, Source, Writer};
use crate::kernels::RowsMut;
use crate::matrix::{Apply, Op, Operands, StructuredMatrix, Update, with_operands};
use crate::scalar::Scalar;
use ndarray::{Array1, Array2, Array3, ArrayRef1, ArrayRef2, Axis, Zip};

/// Gradients of a [`TiedFfn`], from [`TiedFfn::vjp`].
#[derive(Debug, Clone, PartialEq)]
pub struct TiedFfnVjp<T> {
    /// With respect to the inputs (batch x features).
    pub input: Array2<T>,
    /// With respect to the numbers of the weight's factors, in the order of [`Apply::factor_numbers`]: of both of its products together.
    pub factors: Vec<Array3<T>>,
    /// With respect to the bias of the hidden units, where there is one.
    pub hidden_bias: Option<Array1<T>>,
    /// With respect to the bias of the outputs, where there is one.
    pub bias: Option<Array1<T>>,
}

/// A feed-forward block of one matrix that is used twice: $y = W^T f(W x + b_1) + b_2$ with `W` of `hidden x features`, of any structure.
///
/// Half the parameters of two matrices at the same multiply-adds. Without an activation and biases the block is the positive
/// semi-definite $W^T W$. [`tie_transpose`](crate::sharing::tie_transpose) ties two matrices.
///
/// Activations of `f32` batches are taken in single precision and by vectors, those of `f64` batches number by number.
///
/// Source: O. Koyun, B. Töreyin, "Do deep neural networks utilize the weight space efficiently?", 2024.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::layers::{Activation, TiedFfn};
/// use structmat::ndarray::array;
/// let w = Dense::new(&array![[1.0f32, 0.0], [0.0, -1.0], [1.0, 1.0]])?;
/// let block = TiedFfn::new(Box::new(w), None, Activation::Relu, Some(&array![0.5f32, 0.0]))?;
/// assert_eq!(block.forward(&array![[1.0f32, 2.0]])?, array![[4.5, 3.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TiedFfn {
    weight: Box<dyn StructuredMatrix>,
    hidden_bias: Option<Array1<f64>>,
    activation: Activation,
    bias: Option<Array1<f64>>,
}

impl TiedFfn {
    /// From a weight of `hidden x features`, and biases of `hidden` and `features` entries.
    ///
    /// # Errors
    /// [`Error::Shape`] when a bias has another length.
    pub fn new<T: Scalar>(
        weight: Box<dyn StructuredMatrix>,
        hidden_bias: Option<&ArrayRef1<T>>,
        activation: Activation,
        bias: Option<&ArrayRef1<T>>,
    ) -> Result<Self> {
        let (hidden, features) = weight.shape();
        for (what, bias, len) in [("hidden bias", hidden_bias, hidden), ("bias", bias, features)] {
            if let Some(bias) = bias
                && bias.len() != len
            {
                return Err(Error::shape(what, &[len], &[bias.len()]));
            }
        }
        let [hidden_bias, bias] = [hidden_bias, bias].map(|bias| bias.map(|bias| bias.mapv(T::widen)));
        Ok(Self { weight, hidden_bias, activation, bias })
    }

    /// Reads `NAME.weight`, structured or dense, `NAME.hidden_bias` and `NAME.bias` where they are there, and the activation from the settings `NAME`.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is no such weight or no settings, [`Error::File`] for malformed ones, [`Error::Shape`] for a bias of
    /// another length, and those of [`Source::find`].
    pub fn load(source: &dyn Source, name: &str) -> Result<Self> {
        let key = format!("{name}.weight");
        let activation = source.need(&key)?.settings(name)?;
        let weight = io::weight(source, &key)?;
        let (hidden, features) = weight.shape();
        let hidden_bias = load_bias(source, &format!("{name}.hidden_bias"), hidden)?;
        let bias = load_bias(source, &format!("{name}.bias"), features)?;
        Self::new(weight, hidden_bias.as_deref(), activation, bias.as_deref())
    }

    /// Adds `NAME.weight`, the biases and the settings to a file.
    ///
    /// # Errors
    /// Those of [`Writer::structured`] and [`Writer::settings`].
    pub fn save(&self, writer: &mut Writer<'_>, name: &str) -> Result<()> {
        writer.structured(&format!("{name}.weight"), self.weight.as_ref())?;
        writer.settings(name, &self.activation)?;
        for (bias, values) in [("hidden_bias", &self.hidden_bias), ("bias", &self.bias)] {
            if let Some(values) = values {
                writer.exact(&format!("{name}.{bias}"), values)?;
            }
        }
        Ok(())
    }

    /// The weight.
    pub fn weight(&self) -> &dyn StructuredMatrix {
        self.weight.as_ref()
    }

    /// The activation.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// The bias of the hidden units, where there is one.
    pub fn hidden_bias(&self) -> Option<&Array1<f64>> {
        self.hidden_bias.as_ref()
    }

    /// The bias of the outputs, where there is one.
    pub fn bias(&self) -> Option<&Array1<f64>> {
        self.bias.as_ref()
    }

    /// Number of inputs and outputs.
    pub fn features(&self) -> usize {
        self.weight.shape().1
    }

    /// Number of hidden units.
    pub fn hidden(&self) -> usize {
        self.weight.shape().0
    }

    /// Stored numbers: those of the weight, once, and of the biases.
    pub fn n_params(&self) -> usize {
        let biases = [&self.hidden_bias, &self.bias].into_iter().flatten();
        self.weight.n_params() + biases.map(|bias| bias.len()).sum::<usize>()
    }

    /// `X` (batch x features) to `Y` of the same shape, allocating.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` does not have as many columns.
    pub fn forward<T: Scalar>(&self, x: &ArrayRef2<T>) -> Result<Array2<T>> {
        let mut y = Array2::zeros((x.nrows(), self.features()));
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
        let (hidden, features) = self.weight.shape();
        let len = Workspace::<T>::matrix_len(x.nrows(), hidden) + self.weight.scratch_len(x.nrows());
        let work = (exec, len);
        with_operands((features, features), Op::Forward, x, y, Update::Overwrite, work, |operands| {
            let Operands { x, mut y, work, .. } = operands;
            let level = work.policy.level;
            let (mut inner, mut work) = work.matrix(x.rows(), hidden);
            let update = begin(&self.hidden_bias, inner.reborrow());
            let into = inner.reborrow();
            T::multiply(
                self.weight.as_ref(),
                Operands { op: Op::Forward, x, y: into, update, work: work.reborrow() },
            );
            for b in 0..x.rows() {
                self.activation.apply(inner.row(b), level);
            }
            let update = begin(&self.bias, y.reborrow());
            T::multiply(
                self.weight.as_ref(),
                Operands { op: Op::Transpose, x: inner.into_rows(), y, update, work },
            );
        })
    }

    /// The gradients of a loss, from those of the outputs, `dy`, and the inputs `x` (both batch x features); see [`Apply::vjp`].
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not fit.
    pub fn vjp<T: Scalar>(
        &self,
        x: &ArrayRef2<T>,
        dy: &ArrayRef2<T>,
        exec: &mut Exec<T>,
    ) -> Result<TiedFfnVjp<T>> {
        if dy.dim() != (x.nrows(), self.features()) {
            return Err(Error::shape("dy", &[x.nrows(), self.features()], dy.shape()));
        }
        let mut before = Array2::zeros((x.nrows(), self.hidden()));
        self.weight.apply_into(x, &mut before, Update::Overwrite, exec)?;
        if let Some(bias) = &self.hidden_bias {
            before += &bias.mapv(T::narrow);
        }
        let after = before.mapv(|v| T::narrow(self.activation.at(v.widen())));
        // Y = Z W: the gradient of Z is a forward product.
        let mut back = Array2::zeros(before.dim());
        self.weight.apply_into(dy, &mut back, Update::Overwrite, exec)?;
        Zip::from(&mut back).and(&before).for_each(|g, v| *g *= T::narrow(self.activation.slope(v.widen())));
        let mut factors = self.weight.factor_gradients(x, &back, exec)?;
        let second = self.weight.factor_gradients(dy, &after, exec)?;
        factors.iter_mut().zip(&second).for_each(|(first, second)| *first += second);
        let mut input = Array2::zeros(x.dim());
        self.weight.apply_transpose_into(&back, &mut input, Update::Overwrite, exec)?;
        Ok(TiedFfnVjp {
            input,
            factors,
            hidden_bias: self.hidden_bias.as_ref().map(|_| back.sum_axis(Axis(0))),
            bias: self.bias.as_ref().map(|_| dy.sum_axis(Axis(0))),
        })
    }
}

/// Puts the bias into every row, to which a product is then added; without one the product overwrites.
fn begin<T: Scalar>(bias: &Option<Array1<f64>>, mut rows: RowsMut<'_, T>) -> Update {
    let Some(bias) = bias else { return Update::Overwrite };
    for b in 0..rows.rows() {
        rows.row(b).iter_mut().zip(bias).for_each(|(y, bias)| *y = T::narrow(*bias));
    }
    Update::Accumulate
}
