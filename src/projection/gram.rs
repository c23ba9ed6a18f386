//! What a layer sees: the second moment of its inputs.

use super::Feedback;
use crate::error::{Error, Result};
use crate::linalg::{self, Threads, check_finite};
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2};
use std::sync::OnceLock;

/// Negative eigenvalues down to this fraction of the largest diagonal entry are taken for rounding of an `f32` file.
const PSD_TOLERANCE: f64 = 1e-5;

/// `C = E[x xᵀ]` (in x in), gathered batch by batch in `f64`.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let mut gram = Gram::new(2);
/// gram.accumulate(&array![[1.0f32, 0.0], [1.0, 2.0]])?;
/// assert_eq!(gram.second_moment(), &array![[1.0, 1.0], [1.0, 2.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Gram {
    moment: Array2<f64>,
    samples: f64,
    /// `C^{1/2}`, which several projections of the same layer use, once it is asked for.
    root: OnceLock<Array2<f64>>,
    /// What roundings of the same layer use, likewise.
    feedback: OnceLock<Feedback>,
}

impl PartialEq for Gram {
    fn eq(&self, other: &Self) -> bool {
        self.moment == other.moment && self.samples == other.samples
    }
}

impl Gram {
    /// Of no inputs yet, for a layer with `in_features` inputs.
    pub fn new(in_features: usize) -> Self {
        Self {
            moment: Array2::zeros((in_features, in_features)),
            samples: 0.0,
            root: OnceLock::new(),
            feedback: OnceLock::new(),
        }
    }

    /// From a given second moment, which counts as one sample in later merges.
    ///
    /// # Errors
    /// [`Error::Shape`] unless square, [`Error::NonFinite`], [`Error::NotPositiveSemiDefinite`].
    pub fn from_second_moment<T: Scalar>(c: &ArrayRef2<T>) -> Result<Self> {
        let n = c.nrows();
        if c.ncols() != n || n == 0 {
            return Err(Error::shape("Gram matrix (must be square)", &[n, n], c.shape()));
        }
        check_finite("Gram matrix", c)?;
        let c = c.mapv(T::widen);
        let moment = (&c + &c.t()) * 0.5;
        let scale = moment.diag().iter().fold(0.0f64, |max, v| max.max(v.abs()));
        if let Some(((i, j), _)) =
            (&c - &moment).indexed_iter().find(|(_, v)| v.abs() > PSD_TOLERANCE * scale)
        {
            let reason = format!("entry ({i}, {j}) is {} but ({j}, {i}) is {}", c[[i, j]], c[[j, i]]);
            return Err(Error::NotPositiveSemiDefinite(reason));
        }
        let mut shifted = moment.clone();
        shifted.diag_mut().mapv_inplace(|v| v + PSD_TOLERANCE * scale);
        if scale > 0.0 && linalg::cholesky(&shifted).is_err() {
            let lowest = linalg::eigh(&moment, Threads(1))?.values.last().copied().unwrap_or(0.0);
            return Err(Error::NotPositiveSemiDefinite(format!("its smallest eigenvalue is {lowest:e}")));
        }
        Ok(Self { moment, samples: 1.0, root: OnceLock::new(), feedback: OnceLock::new() })
    }

    /// Takes in a batch `x` (batch x in): `C` becomes the mean over all inputs so far.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of features, [`Error::NonFinite`]; the accumulator is then unchanged.
    pub fn accumulate<T: Scalar>(&mut self, x: &ArrayRef2<T>) -> Result<()> {
        let n = self.in_features();
        if x.ncols() != n {
            return Err(Error::shape("activations", &[x.nrows(), n], x.shape()));
        }
        check_finite("activations", x)?;
        if x.nrows() == 0 {
            return Ok(());
        }
        let x = x.mapv(T::widen);
        let batch = linalg::gram(&x, Threads(1)) / x.nrows() as f64;
        self.blend(&batch, x.nrows() as f64);
        Ok(())
    }

    /// Takes in what another accumulator of the same layer has seen.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of features.
    pub fn merge(&mut self, other: &Gram) -> Result<()> {
        if other.in_features() != self.in_features() {
            return Err(Error::shape("Gram matrix", self.moment.shape(), other.moment.shape()));
        }
        if other.samples > 0.0 {
            self.blend(&other.moment, other.samples);
        }
        Ok(())
    }

    fn blend(&mut self, moment: &Array2<f64>, samples: f64) {
        let total = self.samples + samples;
        self.moment.zip_mut_with(moment, |a, b| *a += (b - *a) * (samples / total));
        self.samples = total;
        (self.root, self.feedback) = (OnceLock::new(), OnceLock::new());
    }

    /// `C^{1/2}`, computed the first time: `O(n³)`.
    pub(crate) fn root(&self) -> Result<&Array2<f64>> {
        match self.root.get() {
            Some(root) => Ok(root),
            None => {
                let (root, ..) = linalg::symmetric_root(&self.moment)?;
                Ok(self.root.get_or_init(|| root))
            }
        }
    }

    /// How numbers are rounded for these inputs, computed the first time: `O(n³)`.
    pub(crate) fn feedback(&self) -> Result<&Feedback> {
        match self.feedback.get() {
            Some(feedback) => Ok(feedback),
            None => {
                let feedback = Feedback::new(&self.moment)?;
                Ok(self.feedback.get_or_init(|| feedback))
            }
        }
    }

    /// Number of features.
    pub fn in_features(&self) -> usize {
        self.moment.nrows()
    }

    /// Number of inputs seen.
    pub fn samples(&self) -> f64 {
        self.samples
    }

    /// `C`.
    pub fn second_moment(&self) -> &Array2<f64> {
        &self.moment
    }
}
