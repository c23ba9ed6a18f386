use super::{Found, check};
use crate::adapters::methods::Bat;
use crate::error::Result;
use crate::linalg::lstsq;
use ndarray::{Array2, Array3, ArrayRef2, s};

/// In each block row `o`, the least squares solution of `(W_oi + I) B_o = D_oi` for all `i` at once.
pub(super) fn find(base: &ArrayRef2<f64>, delta: &ArrayRef2<f64>, b: usize) -> Result<Found> {
    let (m, n) = delta.dim();
    let divides = (1..=m.min(n)).contains(&b) && m.is_multiple_of(b) && n.is_multiple_of(b);
    check(divides, b, || format!("a divisor of {m} and {n}"))?;
    // The blocks of a row of blocks, one below the other.
    let stacked = |w: &ArrayRef2<f64>, o: usize| {
        Array2::from_shape_fn((n, b), |(row, col)| w[[o * b + row % b, row / b * b + col]])
    };
    let mut blocks = Array3::zeros((m / b, b, b));
    for o in 0..m / b {
        let mut system = stacked(base, o);
        (0..n).for_each(|row| system[[row, row % b]] += 1.0);
        blocks.slice_mut(s![o, .., ..]).assign(&lstsq(&system, &stacked(delta, o))?);
    }
    let adapter = Bat::new((m, n), &blocks)?;
    Found::bound(adapter, base, vec![("miss_block", blocks.into_dyn())])
}
