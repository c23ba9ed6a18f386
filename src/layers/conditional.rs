use crate::error::{Error, Result};
use crate::linalg::{Threads, matmul, matmul_nt};
use crate::scalar::Scalar;
use ndarray::{Array1, Array2, ArrayRef2, Axis};

/// A low-rank change whose gains depend on a condition of each sample: $\Delta y = U (c \circ (V x))$ with $c = e\, W_c + b_c$ from the condition `e`. Not
/// one change of a weight, so it cannot be merged.
///
/// Cost: `rank (out + in)` per token, and `rank d` per sample.
///
/// Source: R. Yao et al., "Visual Grounding with Multi-modal Conditional Adaptation", 2024. Its convolutions of 3 x 3 to the code are this on
/// patches ([`Window`](super::Window)).
///
/// ```
/// use structmat::layers::ConditionalLowRank;
/// use structmat::ndarray::array;
/// let layer = ConditionalLowRank::new(array![[1.0], [2.0]], array![[1.0, 1.0]], array![[1.0]], array![1.0])?;
/// let y = layer.delta(&array![[1.0f64, 2.0], [1.0, 2.0]], &array![[0.0], [9.0]])?;      // one token of each of two samples
/// assert_eq!(y, array![[3.0, 6.0], [30.0, 60.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ConditionalLowRank {
    u: Array2<f64>,
    v: Array2<f64>,
    w_c: Array2<f64>,
    b_c: Array1<f64>,
}

impl ConditionalLowRank {
    /// From `u` (out x rank), `v` (rank x in), `w_c` (d x rank) and `b_c` (rank). With `w_c = 0` and `b_c = 1` it is the plain low-rank change.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit.
    pub fn new(u: Array2<f64>, v: Array2<f64>, w_c: Array2<f64>, b_c: Array1<f64>) -> Result<Self> {
        let rank = v.nrows();
        for (what, cols) in [("U", u.ncols()), ("W_c", w_c.ncols()), ("b_c", b_c.len())] {
            if cols != rank {
                return Err(Error::shape(what, &[rank], &[cols]));
            }
        }
        Ok(Self { u, v, w_c, b_c })
    }

    /// The gains of each sample (samples x rank), from its conditions (samples x d).
    ///
    /// # Errors
    /// [`Error::Shape`] for conditions of another width.
    pub fn gains(&self, conditions: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        if conditions.ncols() != self.w_c.nrows() {
            return Err(Error::shape(
                "conditions",
                &[conditions.nrows(), self.w_c.nrows()],
                conditions.shape(),
            ));
        }
        Ok(conditions.dot(&self.w_c) + &self.b_c)
    }

    /// `U diag(c) V` of one sample, densely.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of gains.
    pub fn matrix(&self, gains: &[f64]) -> Result<Array2<f64>> {
        Ok(matmul(&self.folded(gains)?, &self.v, Threads::ONE))
    }

    fn folded(&self, gains: &[f64]) -> Result<Array2<f64>> {
        if gains.len() != self.b_c.len() {
            return Err(Error::shape("gains", &[self.b_c.len()], &[gains.len()]));
        }
        let mut u = self.u.clone();
        u.axis_iter_mut(Axis(1)).zip(gains).for_each(|(mut column, gain)| column *= *gain);
        Ok(u)
    }

    /// What is added to the outputs for `x` (tokens x in) of as many samples as there are conditions (samples x d); each has the same number of
    /// tokens, one after the other.
    ///
    /// # Errors
    /// [`Error::Shape`] when widths do not fit or samples do not divide the tokens.
    pub fn delta<T: Scalar>(&self, x: &ArrayRef2<T>, conditions: &ArrayRef2<f64>) -> Result<Array2<T>> {
        let (tokens, samples) = (x.nrows(), conditions.nrows());
        if x.ncols() != self.v.ncols() || samples == 0 || !tokens.is_multiple_of(samples) {
            return Err(Error::shape("tokens", &[samples.max(1), self.v.ncols()], x.shape()));
        }
        let each = (tokens / samples).max(1);
        let gains = self.gains(conditions)?;
        let mut code = matmul_nt(&x.mapv(T::widen), &self.v, Threads::ONE);
        for (token, mut row) in code.outer_iter_mut().enumerate() {
            row *= &gains.row(token / each);
        }
        Ok(matmul_nt(&code, &self.u, Threads::ONE).mapv(T::narrow))
    }
}

/// One condition of each sample from two summaries: $e = t + \sigma(\mathrm{MLP}(\bar v + t)) \circ \bar v$, with a network of two layers and ReLU between.
///
/// Source: R. Yao et al., "Visual Grounding with Multi-modal Conditional Adaptation", 2024.
///
/// ```
/// use structmat::layers::GatedFusion;
/// use structmat::ndarray::array;
/// let none = array![[0.0]];
/// let fusion = GatedFusion::new((none.clone(), array![0.0]), (none, array![0.0]))?;         // a gate of 1/2
/// assert_eq!(fusion.forward(&array![[4.0]], &array![[1.0]])?, array![[3.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GatedFusion {
    first: (Array2<f64>, Array1<f64>),
    second: (Array2<f64>, Array1<f64>),
}

impl GatedFusion {
    /// From weight and bias of both layers, `d' x d` and `d x d'`.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit.
    pub fn new(first: (Array2<f64>, Array1<f64>), second: (Array2<f64>, Array1<f64>)) -> Result<Self> {
        let (inner, d) = first.0.dim();
        if second.0.dim() != (d, inner) {
            return Err(Error::shape("second layer of a fusion", &[d, inner], second.0.shape()));
        }
        for (what, bias, size) in [("first bias", &first.1, inner), ("second bias", &second.1, d)] {
            if bias.len() != size {
                return Err(Error::shape(what, &[size], &[bias.len()]));
            }
        }
        Ok(Self { first, second })
    }

    /// The gate of each sample (samples x d), between 0 and 1.
    ///
    /// # Errors
    /// [`Error::Shape`] when the summaries do not fit.
    pub fn gate(&self, image: &ArrayRef2<f64>, text: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let d = self.first.0.ncols();
        for (what, summary) in [("image summary", image), ("text summary", text)] {
            if summary.dim() != (image.nrows(), d) {
                return Err(Error::shape(what, &[image.nrows(), d], summary.shape()));
            }
        }
        let both = &image.view() + &text.view();
        let inner =
            (both.dot(&self.first.0.t()) + &self.first.1).mapv_into(|v| if v < 0.0 { 0.0 } else { v });
        Ok((inner.dot(&self.second.0.t()) + &self.second.1).mapv_into(|v| 1.0 / (1.0 + (-v).exp())))
    }

    /// The conditions (samples x d) of summaries of image and text (samples x d each).
    ///
    /// # Errors
    /// [`Error::Shape`] when the summaries do not fit.
    pub fn forward(&self, image: &ArrayRef2<f64>, text: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        Ok(self.gate(image, text)? * image + text)
    }
}
