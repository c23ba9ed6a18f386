use super::tokens::check_offsets;
use crate::error::{Error, Result};
use ndarray::{Array2, Axis, s};
use std::sync::Arc;

/// Hidden states of some sequences: one row per token (tokens x hidden), sequence after sequence, no padding.
///
/// ```
/// use structmat::models::Hidden;
/// use structmat::ndarray::array;
/// let hidden = Hidden::new(array![[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]], vec![0, 2, 3])?;
/// assert_eq!(hidden.mean(), array![[2.0, 0.0], [0.0, 5.0]]);
/// assert_eq!(hidden.sentence_embeddings(), array![[1.0, 0.0], [0.0, 1.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    pub(super) values: Array2<f32>,
    /// Shared by all states of the same tokens.
    pub(super) offsets: Arc<[usize]>,
}

impl Hidden {
    /// Sequence `i` is rows `offsets[i]..offsets[i + 1]`.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless the offsets rise from 0 to the number of rows.
    pub fn new(values: Array2<f32>, offsets: impl Into<Arc<[usize]>>) -> Result<Self> {
        let offsets = offsets.into();
        check_offsets(&offsets, values.nrows())?;
        // The loops here read rows as slices.
        let values =
            if values.is_standard_layout() { values } else { values.as_standard_layout().into_owned() };
        Ok(Self { values, offsets })
    }

    /// The states, tokens x hidden.
    pub fn values(&self) -> &Array2<f32> {
        &self.values
    }

    /// The states alone.
    pub fn into_values(self) -> Array2<f32> {
        self.values
    }

    /// Where each sequence starts, and the end.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// The states of the last token of each sequence: sequences x hidden.
    pub fn last(&self) -> Array2<f32> {
        let ends: Vec<usize> = self.offsets[1..].iter().map(|end| end - 1).collect();
        self.values.select(Axis(0), &ends)
    }

    /// Mean over the tokens of each sequence: sequences x hidden.
    pub fn mean(&self) -> Array2<f32> {
        let mut means = Array2::zeros((self.offsets.len() - 1, self.values.ncols()));
        for (mut mean, ends) in means.outer_iter_mut().zip(self.offsets.windows(2)) {
            let states = self.values.slice(s![ends[0]..ends[1], ..]);
            states.outer_iter().for_each(|state| mean += &state);
            mean /= states.nrows() as f32;
        }
        means
    }

    /// [`mean`](Self::mean), each row divided by its Euclidean norm: what sentence encoders return.
    pub fn sentence_embeddings(&self) -> Array2<f32> {
        let mut means = self.mean();
        for mut mean in means.axis_iter_mut(Axis(0)) {
            let norm = mean.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            mean.mapv_inplace(|v| (f64::from(v) / norm.max(f64::MIN_POSITIVE)) as f32);
        }
        means
    }

    /// Refuses states of another width.
    pub(super) fn check_width(&self, hidden: usize) -> Result<()> {
        match self.values.ncols() == hidden {
            true => Ok(()),
            false => Err(Error::shape("hidden states", &[self.values.nrows(), hidden], self.values.shape())),
        }
    }
}
