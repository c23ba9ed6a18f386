//! Attention heads that share their weights.

mod gauge;
mod matching;

pub(super) use gauge::cosine;
pub use gauge::{Gauge, RotaryPairs, procrustes};
pub use matching::{HeadMatches, MatchSpec};

use crate::error::{Error, Result};
use crate::linalg::Threads;
use crate::projection::{check_weight, numbered};
use crate::scalar::Scalar;
use crate::storage::Storage;
use crate::structures::SharedBlocks;
use crate::structures::shared_blocks::{first_blocks, group_means};
use ndarray::{Array2, ArrayRef2, ArrayView2, s};

/// The weights of attention heads: those of one layer, or of several layers one below the other.
///
/// $W_q$, $W_k$ and $W_v$ are `heads * size x in`, head after head; $W_o$ is `out x heads * size`. Query heads and key heads are as many.
#[derive(Debug, Clone, PartialEq)]
pub struct Heads {
    count: usize,
    query: Array2<f64>,
    key: Array2<f64>,
    value: Array2<f64>,
    output: Array2<f64>,
}

/// What stays of a group of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeptHead {
    /// Its first head: what is published. Nothing changes where heads are the same.
    #[default]
    First,
    /// The mean of its heads, which is closer to them: a pair costs half as much.
    Mean,
}

/// Heads that share their weights, from [`Heads::share`].
#[derive(Debug, Clone, PartialEq)]
pub struct SharedHeads {
    /// $W_q$, of as many distinct blocks as there are groups.
    pub query: SharedBlocks,
    /// $W_k$.
    pub key: SharedBlocks,
    /// $W_v$.
    pub value: SharedBlocks,
    /// $W_o$, turned to the shared values; as it was without a gauge.
    pub output: Array2<f64>,
}

impl Heads {
    /// Of `count` heads.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `count` does not divide the rows of the query, [`Error::Shape`] when the others do not fit,
    /// [`Error::NonFinite`].
    pub fn new<T: Scalar>(
        count: usize,
        query: &ArrayRef2<T>,
        key: &ArrayRef2<T>,
        value: &ArrayRef2<T>,
        output: &ArrayRef2<T>,
    ) -> Result<Self> {
        let (rows, n) = query.dim();
        if count == 0 || rows == 0 || rows % count != 0 {
            return Err(Error::parameter("heads", count, format!("a divisor of {rows}")));
        }
        if key.dim() != (rows, n) {
            return Err(Error::shape("key weight", &[rows, n], key.shape()));
        }
        if value.nrows() != rows {
            return Err(Error::shape("value weight", &[rows, value.ncols()], value.shape()));
        }
        if output.ncols() != rows {
            return Err(Error::shape("output weight", &[output.nrows(), rows], output.shape()));
        }
        let check = |w| check_weight(w, Threads::ONE);
        Ok(Self {
            count,
            query: check(query)?,
            key: check(key)?,
            value: check(value)?,
            output: check(output)?,
        })
    }

    /// Number of heads.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows of a head.
    pub fn size(&self) -> usize {
        self.query.nrows() / self.count
    }

    fn head<'a>(&self, w: &'a Array2<f64>, h: usize) -> ArrayView2<'a, f64> {
        w.slice(s![h * self.size()..(h + 1) * self.size(), ..])
    }

    /// Shares the weights of matched heads: queries, keys and values of a group become those of its first head or their mean, after each is
    /// turned to the first by the gauge of the match. Values have a gauge of their own: $W_v → M W_v$ and $W_o → W_o M^T$
    /// leave the layer as it is, for any orthogonal $M$ and with rotary embeddings too. Without a gauge nothing is turned, and $W_o$ is kept.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a match of another number of heads, and those of [`procrustes`].
    pub fn share(&self, matches: &HeadMatches, keep: KeptHead, storage: Storage) -> Result<SharedHeads> {
        if matches.first.len() != self.count {
            return Err(Error::parameter("heads of the match", matches.first.len(), self.count.to_string()));
        }
        let first = |h: usize| matches.first.get(h).copied();
        if let Some(h) = (0..self.count).find(|&h| first(h).and_then(first) != first(h) || first(h) > Some(h))
        {
            let received = format!("{:?} for head {h}", matches.first[h]);
            return Err(Error::parameter("first", received, "an earlier head that is kept itself"));
        }
        let (size, mut output) = (self.size(), self.output.clone());
        let [mut query, mut key, mut value] = [self.query.clone(), self.key.clone(), self.value.clone()];
        for (h, &first) in matches.first.iter().enumerate() {
            if h == first || matches.gauge == Gauge::None {
                continue;
            }
            let rows = s![h * size..(h + 1) * size, ..];
            let (own, kept) = (
                [&self.query, &self.key].map(|w| self.head(w, h)),
                [&self.query, &self.key].map(|w| self.head(w, first)),
            );
            let (turn, _) = procrustes(&own, &kept, matches.gauge)?;
            query.slice_mut(rows).assign(&turn.dot(&own[0]));
            key.slice_mut(rows).assign(&turn.dot(&own[1]));
            let (turn, _) = procrustes(
                &[self.head(&self.value, h)],
                &[self.head(&self.value, first)],
                Gauge::Orthogonal,
            )?;
            value.slice_mut(rows).assign(&turn.dot(&self.head(&self.value, h)));
            let columns = s![.., h * size..(h + 1) * size];
            output.slice_mut(columns).assign(&self.output.slice(columns).dot(&turn.t()));
        }
        let (groups, firsts) = numbered(&matches.first);
        let shared = |w: &Array2<f64>| {
            let blocks = match keep {
                KeptHead::First => first_blocks(w, &firsts, size),
                KeptHead::Mean => group_means(w, &groups, (size, firsts.len())),
            };
            SharedBlocks::from_arrays(storage, (w.nrows(), size), &blocks, &groups)
        };
        Ok(SharedHeads { query: shared(&query), key: shared(&key), value: shared(&value), output })
    }
}
