use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use crate::structures::BlockDiagonal;
use ndarray::ArrayRef3;

/// DiaBlo: a block-diagonal change, and nothing else. `blocks` is `N x in_b x out_b`, each the transpose of a block of `D`; the last ones may
/// reach beyond the matrix.
///
/// Cost: `N in_b out_b`, about `out in / N`.
///
/// Source: S. Gurses et al., "DiaBlo: Diagonal Blocks Are Sufficient For Finetuning", 2025.
///
/// # Errors
/// [`Error::Shape`] when the blocks do not cover the matrix.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let adapter = methods::diablo((2, 3), &array![[[1.0], [2.0]], [[3.0], [4.0]]])?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn diablo((m, n): (usize, usize), blocks: &ArrayRef3<f64>) -> Result<Additive> {
    let (count, p, s) = blocks.dim();
    if count == 0 || (s, p) != (m.div_ceil(count), n.div_ceil(count)) {
        let (p, s) = (n.div_ceil(count.max(1)), m.div_ceil(count.max(1)));
        return Err(Error::shape("DiaBlo blocks", &[count.max(1), p, s], blocks.shape()));
    }
    let stack = Factor::from_fn(Storage::F32, (count, s, p), |b, o, i| blocks[[b, i, o]]);
    let params = blocks.len();
    Ok(Additive::new("diablo", Box::new(BlockDiagonal::new((m, n), stack)?)).with_params(params))
}
