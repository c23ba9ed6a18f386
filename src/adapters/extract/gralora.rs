use super::{Found, check};
use crate::adapters::methods;
use crate::error::Result;
use crate::linalg::{Threads, svd};
use ndarray::{Array3, ArrayRef2, s};

/// Blocks per side.
pub(super) const GRID: usize = 2;

/// The truncated singular value decomposition of each block.
pub(super) fn find(delta: &ArrayRef2<f64>, rank: usize) -> Result<Found> {
    let (m, n) = delta.dim();
    let even = [m, n, rank].iter().all(|len| len.is_multiple_of(GRID));
    check(even && rank <= m.min(n), rank, || format!("even, at most {}, of even sides", m.min(n)))?;
    let (q, s, p) = (rank / GRID, m / GRID, n / GRID);
    let (mut a, mut b) = (Array3::zeros((GRID, p, rank)), Array3::zeros((GRID, rank, s)));
    for j in 0..GRID {
        for i in 0..GRID {
            let block = delta.slice(s![j * s..(j + 1) * s, i * p..(i + 1) * p]);
            let (left, right) = svd(&block, Threads::ONE)?.split_sqrt(q);
            let rank = left.ncols();
            a.slice_mut(s![i, .., j * q..j * q + rank]).assign(&right.t());
            b.slice_mut(s![j, i * q..i * q + rank, ..]).assign(&left.t());
        }
    }
    let adapter = methods::gralora(&a, &b, 1.0)?;
    Ok(Found::additive(adapter, vec![("gralora_A", a.into_dyn()), ("gralora_B", b.into_dyn())]))
}
