//! Principal components of a stream.

use super::{Threads, check_finite, svd};
use crate::error::{Error, Result};
use ndarray::{Array1, Array2, ArrayRef2, Axis, concatenate, s};

/// Principal components of inputs that come batch by batch.
///
/// Each batch costs one decomposition of `components + batch + 1` rows. With as many components as inputs it is the analysis of all batches
/// together.
///
/// Source: D. Ross et al., "Incremental Learning for Robust Visual Tracking", 2008, as in F. Paischer et al., "One Initialization to Rule them All:
/// Fine-tuning via Explained Variance Adaptation", 2024.
///
/// ```
/// use structmat::linalg::IncrementalPca;
/// use structmat::ndarray::array;
/// let mut pca = IncrementalPca::new(1);
/// pca.update(&array![[1.0, 1.0], [3.0, 3.0]])?;
/// pca.update(&array![[5.0, 5.0], [7.0, 7.0]])?;
/// assert!((pca.ratios()[0] - 1.0).abs() < 1e-12);             // all lie on one line
/// assert!((pca.components()[[0, 0]] - 0.5f64.sqrt()).abs() < 1e-12);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct IncrementalPca {
    most: usize,
    count: usize,
    mean: Array1<f64>,
    components: Array2<f64>,
    /// Those before the last batch.
    previous: Array2<f64>,
    values: Vec<f64>,
    total: f64,
}

impl IncrementalPca {
    /// Of at most so many components.
    pub fn new(components: usize) -> Self {
        Self {
            most: components,
            count: 0,
            mean: Array1::zeros(0),
            components: Array2::zeros((0, 0)),
            previous: Array2::zeros((0, 0)),
            values: Vec::new(),
            total: 0.0,
        }
    }

    /// Takes a batch (batch x in) in.
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty batch, or one of another width, [`Error::NonFinite`] for NaN, infinities or sums that overflow; nothing has
    /// changed then.
    pub fn update(&mut self, x: &ArrayRef2<f64>) -> Result<()> {
        let (batch, n) = x.dim();
        if batch == 0 || n == 0 || self.count > 0 && n != self.mean.len() {
            return Err(Error::shape("inputs", &[batch.max(1), self.mean.len().max(1)], &[batch, n]));
        }
        check_finite("inputs", x)?;
        let mean = x.sum_axis(Axis(0)) / batch as f64;
        let centred = &x.view() - &mean;
        let mut total = self.total + centred.iter().map(|v| v * v).sum::<f64>();
        let (mean, rows) = if self.count == 0 {
            (mean, centred)
        } else {
            let (old, new) = (self.count as f64, batch as f64);
            let apart = &self.mean - &mean;
            total += old * new / (old + new) * apart.dot(&apart);
            let between = (&apart * (old * new / (old + new)).sqrt()).insert_axis(Axis(0));
            let mut before = self.components.clone();
            before.outer_iter_mut().zip(&self.values).for_each(|(mut row, value)| row *= *value);
            let stacked = concatenate(Axis(0), &[before.view(), centred.view(), between.view()])
                .map_err(|e| Error::parameter("inputs", format!("{batch} x {n}"), e.to_string()))?;
            ((&self.mean * old + &mean * new) / (old + new), stacked)
        };
        let found = svd(&rows, Threads::ONE)?.truncate(self.most);
        // Nothing has changed until here.
        (self.total, self.mean, self.count) = (total, mean, self.count + batch);
        self.previous = std::mem::replace(&mut self.components, found.vt);
        self.values = found.s;
        for mut row in self.components.outer_iter_mut() {
            let largest = row.iter().fold(0.0f64, |best, v| if v.abs() > best.abs() { *v } else { best });
            if largest < 0.0 {
                row.mapv_inplace(|v| -v);
            }
        }
        Ok(())
    }

    /// Directions, one per row, of falling variance; the entry of largest magnitude of each is positive.
    pub fn components(&self) -> &Array2<f64> {
        &self.components
    }

    /// Singular values of the centred inputs.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The share of the variance that each component explains.
    pub fn ratios(&self) -> Vec<f64> {
        self.values.iter().map(|s| if self.total > 0.0 { s * s / self.total } else { 0.0 }).collect()
    }

    /// Whether the last batch left the first `rank` components where they were: each has a cosine of at least `least` (0.99 in EVA) with what it
    /// was before. A layer then need not listen any more, until its rank grows.
    pub fn converged(&self, rank: usize, least: f64) -> bool {
        rank <= self.previous.nrows().min(self.components.nrows())
            && self
                .components
                .outer_iter()
                .zip(self.previous.outer_iter())
                .take(rank)
                .all(|(now, before)| now.dot(&before) >= least)
    }

    /// The first `rank` components as LoRA's `A`, which starts with `B = 0`; whitened, each is divided by the square root of its singular value.
    ///
    /// # Errors
    /// [`Error::Parameter`] for more than there are, or for whitening a component without variance.
    pub fn start(&self, rank: usize, whiten: bool) -> Result<Array2<f64>> {
        if rank > self.values.len() {
            return Err(Error::parameter("rank", rank, format!("at most {}", self.values.len())));
        }
        let mut a = self.components.slice(s![..rank, ..]).to_owned();
        if whiten {
            // What rounding leaves of no variance.
            let least = f64::EPSILON * a.ncols().max(self.count) as f64 * self.values.first().unwrap_or(&0.0);
            for (mut row, value) in a.outer_iter_mut().zip(&self.values) {
                if *value <= least {
                    return Err(Error::parameter("rank", rank, "only components with variance, to whiten"));
                }
                row /= value.sqrt();
            }
        }
        Ok(a)
    }
}
