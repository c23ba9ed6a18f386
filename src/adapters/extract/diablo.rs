use super::{Found, check};
use crate::adapters::methods;
use crate::error::Result;
use ndarray::{Array3, ArrayRef2};

/// The blocks on the diagonal; what the last ones hold beyond the matrix is zero.
pub(super) fn find(delta: &ArrayRef2<f64>, blocks: usize) -> Result<Found> {
    let (m, n) = delta.dim();
    check(blocks <= m.min(n), blocks, || format!("1 to {}", m.min(n)))?;
    let (s, p) = (m.div_ceil(blocks), n.div_ceil(blocks));
    // Rounded up, the sizes may cover the matrix with fewer blocks.
    let count = m.div_ceil(s).max(n.div_ceil(p));
    let blocks = Array3::from_shape_fn((count, p, s), |(k, i, o)| {
        delta.get((k * s + o, k * p + i)).copied().unwrap_or(0.0)
    });
    Ok(Found::additive(methods::diablo((m, n), &blocks)?, vec![("diablo_blocks", blocks.into_dyn())]))
}
