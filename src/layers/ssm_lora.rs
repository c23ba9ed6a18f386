use crate::error::{Error, Result};
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2, Axis};

/// SSMLoRA: a LoRA whose codes pass through a small state that goes from one adapted layer to the next. Not linear, so it cannot be merged.
///
/// With codes $a = x W_a$: $h' = h W_c + a W_d + h$, brought to 0..1 over the directions of each row, is the next state, and
/// $Δy = α\,(a + \mathrm{leaky\_relu}(h')) W_b$. The state is a value that the caller hands on; rows of a batch do not see each other.
///
/// Cost: `rank (in + out) + 2 rank²`.
///
/// Source: J. Yu et al., "SSMLoRA: Enhancing Low-Rank Adaptation with State Space Model", 2025.
///
/// ```
/// use structmat::layers::SsmLora;
/// use structmat::ndarray::{Array2, array};
/// let layer = SsmLora::new(array![[1.0], [1.0]], array![[2.0]], array![[0.0]], array![[0.0]], 3.0)?;
/// let mut state = layer.start(1);
/// assert_eq!(layer.step(&array![[1.0f64, 1.0]], &mut state)?, array![[12.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SsmLora {
    w_a: Array2<f64>,
    w_b: Array2<f64>,
    w_c: Array2<f64>,
    w_d: Array2<f64>,
    alpha: f64,
}

impl SsmLora {
    /// From `w_a` (in x rank), `w_b` (rank x out), `w_c`, `w_d` (rank x rank) and the factor `alpha`.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit together.
    pub fn new(
        w_a: Array2<f64>,
        w_b: Array2<f64>,
        w_c: Array2<f64>,
        w_d: Array2<f64>,
        alpha: f64,
    ) -> Result<Self> {
        let rank = w_a.ncols();
        if w_b.nrows() != rank {
            return Err(Error::shape("W_b", &[rank, w_b.ncols()], w_b.shape()));
        }
        for (what, w) in [("W_c", &w_c), ("W_d", &w_d)] {
            if w.dim() != (rank, rank) {
                return Err(Error::shape(what, &[rank, rank], w.shape()));
            }
        }
        Ok(Self { w_a, w_b, w_c, w_d, alpha })
    }

    /// The state before the first layer, of a batch.
    pub fn start(&self, batch: usize) -> Array2<f64> {
        Array2::zeros((batch, self.w_a.ncols()))
    }

    /// What the adapter adds to the outputs for `x` (batch x in); the state (batch x rank) becomes the next layer's.
    ///
    /// # Errors
    /// [`Error::Shape`] for inputs or a state of another shape; the state is then untouched.
    pub fn step<T: Scalar>(&self, x: &ArrayRef2<T>, state: &mut Array2<f64>) -> Result<Array2<T>> {
        let (inputs, rank) = self.w_a.dim();
        if x.ncols() != inputs {
            return Err(Error::shape("x", &[x.nrows(), inputs], x.shape()));
        }
        if state.dim() != (x.nrows(), rank) {
            return Err(Error::shape("state", &[x.nrows(), rank], state.shape()));
        }
        let codes = x.mapv(T::widen).dot(&self.w_a);
        let mut next = state.dot(&self.w_c) + codes.dot(&self.w_d) + &*state;
        for mut row in next.axis_iter_mut(Axis(0)) {
            let (low, high) =
                row.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
            row.mapv_inplace(|v| (v - low) / (high - low + 1e-8));
        }
        let leaky = next.mapv(|v| if v < 0.0 { 0.01 * v } else { v });
        let y = (codes + leaky).dot(&self.w_b) * self.alpha;
        *state = next;
        Ok(y.mapv(T::narrow))
    }
}
