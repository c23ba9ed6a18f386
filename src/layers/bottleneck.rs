use super::Linear;
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2};

/// A bottleneck adapter: $y = x + \mathrm{up}(f(\mathrm{down}(x)))$ with two linear layers of any structured weights. Not linear, so it cannot be merged.
///
/// With [`phm`](crate::adapters::methods::phm) weights it is Compacter's layer, whose activation is [`Activation::GeluTanh`]. Cost: that of both weights.
///
/// Source: N. Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019; R. Karimi Mahabadi, J. Henderson, S. Ruder, "Compacter:
/// Efficient Low-Rank Hypercomplex Adapter Layers", 2021.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::methods::Activation;
/// use structmat::layers::{Bottleneck, Linear};
/// use structmat::ndarray::array;
/// let down = Linear::new(Box::new(Dense::new(&array![[1.0f32, -1.0]])?), Some(&array![0.5]))?;
/// let up = Linear::new::<f64>(Box::new(Dense::new(&array![[2.0f32], [0.0]])?), None)?;
/// let layer = Bottleneck::new(down, up, Activation::Relu)?;
/// assert_eq!(layer.forward(&array![[3.0f32, 1.0]])?, array![[8.0, 1.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Bottleneck {
    down: Linear,
    up: Linear,
    activation: Activation,
}

impl Bottleneck {
    /// From a layer to the bottleneck and one back.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit.
    pub fn new(down: Linear, up: Linear, activation: Activation) -> Result<Self> {
        let (expected, received) =
            ([down.in_features(), down.out_features()], [up.out_features(), up.in_features()]);
        match expected == received {
            true => Ok(Self { down, up, activation }),
            false => Err(Error::shape("upward layer of a bottleneck", &expected, &received)),
        }
    }

    /// Stored numbers of both layers, biases included. Rules that layers share are in each.
    pub fn n_params(&self) -> usize {
        let of = |layer: &Linear| layer.weight().n_params() + layer.bias().map_or(0, |bias| bias.len());
        of(&self.down) + of(&self.up)
    }

    /// The outputs for `x` (batch x features), of the same shape.
    ///
    /// # Errors
    /// [`Error::Shape`] for inputs of another width.
    pub fn forward<T: Scalar>(&self, x: &ArrayRef2<T>) -> Result<Array2<T>> {
        let h = self.down.forward(x)?.mapv_into(|v| T::narrow(self.activation.at(v.widen())));
        let mut y = self.up.forward(&h)?;
        y.zip_mut_with(x, |y, x| *y += *x);
        Ok(y)
    }
}
