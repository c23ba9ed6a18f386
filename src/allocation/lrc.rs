//! Which matrices of a model become factors, and which stay as they are.

use crate::error::{Error, Result};

/// Whether factors of this rank hold fewer numbers than the matrix: $r (m + n) < m n$.
pub fn factors_pay((m, n): (usize, usize), rank: usize) -> bool {
    let (m, n) = (m as u128, n as u128);
    (rank as u128).saturating_mul(m + n) < m * n
}

/// A matrix of a model after [`LrcSplit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LrcMatrix {
    /// `(out, in)`.
    pub shape: (usize, usize),
    /// The rank of its factors; `None` for a matrix that stays dense.
    pub rank: Option<usize>,
}

impl LrcMatrix {
    /// Numbers that it holds: $r (m + n)$ or $m n$.
    pub fn params(&self) -> u64 {
        let (m, n) = (self.shape.0 as u64, self.shape.1 as u64);
        self.rank.map_or(m.saturating_mul(n), |rank| (rank as u64).saturating_mul(m.saturating_add(n)))
    }

    /// Whether fine-tuning updates it: factors are trained, dense matrices are frozen.
    pub fn is_trainable(&self) -> bool {
        self.rank.is_some()
    }
}

/// WeLore's split of a model into low-rank components (LRCs), which become factors and are trained, and the others (N-LRCs), which stay
/// dense and are frozen: a matrix is a low-rank component when the rank that it got, from [`threshold_ranks`](super::threshold_ranks) or
/// any other rule, saves parameters, $r (m + n) < m n$. So a split never holds more parameters than the dense model.
///
/// The published code instead factorises whenever the pruned fraction of singular values exceeds a constant, 0 by default, by which
/// matrices that keep more than $m n / (m + n)$ grow: [`published_params`](Self::published_params) tells by how much.
///
/// Source: A. Jaiswal et al., "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients", 2024.
///
/// ```
/// use structmat::allocation::LrcSplit;
/// let split = LrcSplit::new(&[(64, 64), (64, 64)], &[8, 40])?;
/// assert_eq!((split.matrices()[0].rank, split.matrices()[1].rank), (Some(8), None));
/// assert_eq!((split.params(), split.trainable_params()), (8 * 128 + 64 * 64, 8 * 128));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LrcSplit {
    matrices: Vec<LrcMatrix>,
    ranks: Vec<usize>,
}

impl LrcSplit {
    /// From shapes (out, in) and ranks.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lists differ in length, [`Error::Parameter`] for a rank that is not in 1 to `min(out, in)`, or matrices
    /// of 2^61 numbers together.
    pub fn new(shapes: &[(usize, usize)], ranks: &[usize]) -> Result<Self> {
        if shapes.len() != ranks.len() {
            return Err(Error::shape("ranks", &[shapes.len()], &[ranks.len()]));
        }
        let numbers: u128 =
            shapes.iter().map(|&(m, n)| (m as u128).saturating_mul(n as u128)).fold(0, u128::saturating_add);
        // Full-rank factors take at most twice that.
        if numbers >= 1 << 61 {
            return Err(Error::parameter("shapes", numbers, "less than 2^61 numbers together"));
        }
        for (&(m, n), &rank) in shapes.iter().zip(ranks) {
            if rank == 0 || rank > m.min(n) {
                return Err(Error::parameter("rank", rank, format!("1 to {}", m.min(n))));
            }
        }
        let matrices = shapes
            .iter()
            .zip(ranks)
            .map(|(&shape, &rank)| LrcMatrix { shape, rank: factors_pay(shape, rank).then_some(rank) });
        Ok(Self { matrices: matrices.collect(), ranks: ranks.to_vec() })
    }

    /// The matrices, in their order.
    pub fn matrices(&self) -> &[LrcMatrix] {
        &self.matrices
    }

    /// Numbers of all matrices together.
    pub fn params(&self) -> u64 {
        self.matrices.iter().map(LrcMatrix::params).sum()
    }

    /// Numbers of the factors.
    pub fn trainable_params(&self) -> u64 {
        self.matrices.iter().filter(|matrix| matrix.is_trainable()).map(LrcMatrix::params).sum()
    }

    /// Numbers under the rule of the published code: factors wherever more than the fraction `least` (0 in the code) of the singular
    /// values is pruned.
    pub fn published_params(&self, least: f64) -> u64 {
        let numbers = |(matrix, &rank): (&LrcMatrix, &usize)| {
            let full = matrix.shape.0.min(matrix.shape.1);
            let pruned = (full - rank) as f64 / full as f64;
            LrcMatrix { rank: (pruned > least).then_some(rank), ..*matrix }.params()
        };
        self.matrices.iter().zip(&self.ranks).map(numbers).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input() {
        assert!(matches!(LrcSplit::new(&[(4, 4)], &[]), Err(Error::Shape { .. })));
        for rank in [0, 5] {
            assert!(matches!(LrcSplit::new(&[(4, 8)], &[rank]), Err(Error::Parameter { .. })));
        }
        assert!(LrcSplit::new(&[(usize::MAX, usize::MAX)], &[1]).is_err());
        assert!(!factors_pay((0, 5), 1) && factors_pay((usize::MAX, usize::MAX), 1));
        assert!(!factors_pay((usize::MAX, usize::MAX), usize::MAX));
        assert_eq!(LrcSplit::new(&[], &[]).unwrap().params(), 0);
    }
}
