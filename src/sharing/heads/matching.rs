//! Which heads are similar enough to share.

use super::gauge::cosine;
use super::{Gauge, Heads};
use crate::error::{Error, Result};
use crate::linalg::{Threads, matmul_nt};
use crate::projection::join_pairs;
use ndarray::{Array2, s};

/// What [`Heads::matches`] looks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatchSpec {
    /// Heads that are replaced, as a fraction of all; at least one stays.
    pub alpha: f64,
    /// Rotations that are tried.
    pub gauge: Gauge,
    /// Only heads at most so many places apart are candidates; all by default. For neighbouring layers: the heads of a layer.
    pub reach: Option<usize>,
}

impl Default for MatchSpec {
    fn default() -> Self {
        Self { alpha: 0.0, gauge: Gauge::None, reach: None }
    }
}

/// Heads matched with each other.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadMatches {
    /// For each head the first of those that it shares with: itself where it is kept.
    pub first: Vec<usize>,
    /// The pairs joined and their cosines, most similar first.
    pub pairs: Vec<(usize, usize, f64)>,
    /// The gauge under which they are similar.
    pub gauge: Gauge,
}

impl HeadMatches {
    /// Number of heads that are kept.
    pub fn distinct(&self) -> usize {
        self.first.iter().enumerate().filter(|(h, first)| h == *first).count()
    }
}

impl Heads {
    /// The cosine of $[W_q; W_k]$ of two heads, the second turned to the first as well as the gauge can. 0 where one is zero.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a head that is not there, or of odd size with rotary pairs.
    pub fn similarity(&self, a: usize, b: usize, gauge: Gauge) -> Result<f64> {
        if let Some(bad) = [a, b].into_iter().find(|&h| h >= self.count) {
            return Err(Error::parameter("head", bad, format!("less than {}", self.count)));
        }
        gauge.check(self.size())?;
        let of = |w: &Array2<f64>| matmul_nt(&self.head(w, a), &self.head(w, b), Threads::ONE);
        let norms = self.norms();
        Ok(cosine(gauge.trace(&(of(&self.query) + of(&self.key)))?, (norms[a], norms[b])))
    }

    /// Squared norms of $[W_q; W_k]$.
    fn norms(&self) -> Vec<f64> {
        let square = |w: &Array2<f64>, h: usize| self.head(w, h).iter().map(|v| v * v).sum::<f64>();
        (0..self.count).map(|h| square(&self.query, h) + square(&self.key, h)).collect()
    }

    /// Matches the heads to replace: pairs in the order of their cosines, of heads that are not joined yet, until `floor(alpha heads)` are
    /// joined (all but one at most). The earliest head of those joined is the one that the others point to.
    ///
    /// Cost: `heads² size² in` multiply-adds, and with an orthogonal gauge the singular values of as many `size x size` matrices as there
    /// are candidates.
    ///
    /// Source: Z. Cao et al., "Head-wise Shareable Attention for Large Language Models", 2024; the gauges are ours.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a fraction out of range, or an odd size with rotary pairs.
    pub fn matches(&self, spec: &MatchSpec) -> Result<HeadMatches> {
        let MatchSpec { alpha, gauge, reach } = *spec;
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::parameter("alpha", alpha, "0 to 1"));
        }
        let (count, size) = (self.count, self.size());
        gauge.check(size)?;
        let joins = ((alpha * count as f64 + 1e-9).floor() as usize).min(count - 1);
        let norms = self.norms();
        let mut scores = Array2::zeros((count, count));
        if joins > 0 {
            for a in 0..count {
                let last = reach.map_or(count, |reach| a.saturating_add(reach).saturating_add(1).min(count));
                // One product with all candidates.
                let rest = s![(a + 1) * size..last.max(a + 1) * size, ..];
                let of = |w: &Array2<f64>| matmul_nt(&self.head(w, a), &w.slice(rest), Threads::ONE);
                let products = of(&self.query) + of(&self.key);
                for b in a + 1..last {
                    let block = products.slice(s![.., (b - a - 1) * size..(b - a) * size]);
                    scores[[a, b]] = cosine(gauge.trace(&block)?, (norms[a], norms[b]));
                }
            }
        }
        let near = |a: usize, b: usize| reach.is_none_or(|reach| b - a <= reach);
        let (first, pairs) = join_pairs(count, joins, |a, b| near(a, b).then(|| scores[[a, b]]));
        Ok(HeadMatches { first, pairs, gauge })
    }
}
