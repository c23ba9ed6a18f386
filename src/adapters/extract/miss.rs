use super::{Found, check};
use crate::adapters::methods;
use crate::error::Result;
use ndarray::{Array2, ArrayRef2};

/// Means over the inputs that are folded together.
pub(super) fn find(delta: &ArrayRef2<f64>, rank: usize) -> Result<Found> {
    let (m, n) = delta.dim();
    check(rank <= n, rank, || format!("1 to {n}"))?;
    let mut block = Array2::zeros((rank, m));
    for ((o, j), value) in delta.indexed_iter() {
        block[[j % rank, o]] += value / (n / rank + usize::from(j % rank < n % rank)) as f64;
    }
    Ok(Found::additive(methods::miss((m, n), &block)?, vec![("miss_block", block.into_dyn())]))
}
