//! Low-rank changes of a chain of matrices whose product is a given one.

use crate::error::{Error, Result};
use crate::linalg::{Svd, Threads, lstsq, svd};
use ndarray::{Array2, s};

/// For frozen square matrices `W_1, ..., W_L` (`W_1` is applied first) changes `B_l A_l` of rank `rank` so that
/// $(W_L + B_L A_L) \cdots (W_1 + B_1 A_1)$ is as near to `target` as the theorem promises: equal where `rank L` is at least the rank of
/// `target - W_L ⋯ W_1`, else off by the tail of its singular values.
///
/// Linear systems are solved, not inverted; all partial products must be far from singular.
///
/// Source: Y. Zeng, K. Lee, "The Expressive Power of Low-Rank Adaptation", 2024.
///
/// # Errors
/// [`Error::Shape`] unless all matrices are square and of one size, [`Error::Parameter`] when there is none or for rank 0, and those of [`svd`].
///
/// ```
/// use structmat::adapters::low_rank_chain;
/// use structmat::ndarray::{Array2, array};
/// let target = array![[1.0, 2.0], [3.0, 4.0]];
/// let frozen = [Array2::<f64>::eye(2), Array2::eye(2) * 2.0];
/// let changes = low_rank_chain(&frozen, &target, 1)?;
/// let changed = |l: usize| &frozen[l] + &changes[l].0.dot(&changes[l].1);
/// assert!((changed(1).dot(&changed(0)) - target).iter().all(|e| e.abs() < 1e-12));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn low_rank_chain(
    frozen: &[Array2<f64>],
    target: &Array2<f64>,
    rank: usize,
) -> Result<Vec<(Array2<f64>, Array2<f64>)>> {
    let d = target.nrows();
    if frozen.is_empty() || rank == 0 {
        return Err(Error::parameter(
            "chain",
            format!("{} of rank {rank}", frozen.len()),
            "at least one, of rank 1",
        ));
    }
    if let Some(other) = frozen.iter().chain([target]).find(|w| w.dim() != (d, d)) {
        return Err(Error::shape("matrix of a chain", &[d, d], other.shape()));
    }
    let eye = Array2::<f64>::eye(d);
    // After each matrix, the product of those that follow.
    let mut after = vec![eye.clone()];
    for w in frozen[1..].iter().rev() {
        after.push(after[after.len() - 1].dot(w));
    }
    after.reverse();
    let error = target - &after[0].dot(&frozen[0]);
    let Svd { vt, .. } = svd(&error, Threads::ONE)?;
    let (mut before, mut changes) = (eye, Vec::with_capacity(frozen.len()));
    for (l, w) in frozen.iter().enumerate() {
        let rows = (l * rank).min(d)..((l + 1) * rank).min(d);
        let directions = vt.slice(s![rows, ..]);
        let b = lstsq(&after[l], &error.dot(&directions.t()))?;
        let a = lstsq(&before.t(), &directions.t())?.reversed_axes();
        before = (w + &b.dot(&a)).dot(&before);
        changes.push((b, a));
    }
    Ok(changes)
}
