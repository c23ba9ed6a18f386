use crate::adapters::Additive;
use crate::error::Result;
use crate::storage::{Factor, Storage};
use crate::structures::BlockCirculant;
use ndarray::ArrayRef3;

/// C3A: a grid of circulant blocks, $D_{ij}[p, q] = w_{ij}[(q - p) \bmod b] / n$, with `kernel` of `out / b x in / b x b`.
///
/// The kernel holds first rows (a correlation), the crate's block-circulant matrices first columns. Cost: transforms of the blocks and
/// `2 out in / b` multiply-adds. Several adapters add up.
///
/// Source: A. Chen et al., "Parameter-Efficient Fine-Tuning via Circular Convolution", 2024.
///
/// # Errors
/// [`Error::Record`](crate::Error::Record) for an empty kernel.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let adapter = methods::c3a(&array![[[2.0, 4.0]]])?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[1.0, 2.0], [2.0, 1.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn c3a(kernel: &ArrayRef3<f64>) -> Result<Additive> {
    let (rows, cols, b) = kernel.dim();
    let shape = (rows.saturating_mul(b), cols.saturating_mul(b));
    let n = shape.1 as f64;
    let columns =
        Factor::from_fn(Storage::F32, (rows, cols, b), |i, j, t| kernel[[i, j, (b - t) % b.max(1)]] / n);
    Ok(Additive::new("c3a", Box::new(BlockCirculant::new(shape, columns)?)))
}
