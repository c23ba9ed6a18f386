use crate::adapters::Additive;
use crate::error::Result;
use crate::storage::{Factor, Storage};
use crate::structures::Kronecker;
use ndarray::ArrayRef2;

/// LoKr: $D = s\,A \otimes B$.
///
/// Cost: two small products, `min(n_1 m_2 n_2 + m_1 n_1 m_2, m_1 n_1 n_2 + m_1 m_2 n_2)` for factors of `m_1 x n_1` and `m_2 x n_2`.
///
/// Source: A. Edalati et al., "KronA", 2022; S.-Y. Yeh et al., "Navigating Text-To-Image Customization", 2024.
///
/// # Errors
/// [`Error::Record`](crate::Error::Record) for empty factors.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let lokr = methods::lokr(&array![[1.0, 2.0]], &array![[1.0], [3.0]], 2.0)?;
/// assert_eq!(lokr.matrix().to_dense_f64(), array![[2.0, 4.0], [6.0, 12.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn lokr(a: &ArrayRef2<f64>, b: &ArrayRef2<f64>, scale: f64) -> Result<Additive> {
    let shape = (a.nrows().saturating_mul(b.nrows()), a.ncols().saturating_mul(b.ncols()));
    // The scale goes where it costs least, without a rounding of its own.
    let (left, right) = if a.len() <= b.len() { (scale, 1.0) } else { (1.0, scale) };
    let factor = |a: &ArrayRef2<f64>, scale: f64, small: bool| {
        let storage = if small { Storage::F64 } else { Storage::F32 };
        Factor::from_fn(storage, (1, a.nrows(), a.ncols()), |_, i, j| a[[i, j]] * scale)
    };
    let small = a.len() <= b.len();
    let kronecker = Kronecker::new(shape, factor(a, left, small), factor(b, right, !small))?;
    Ok(Additive::new("lokr", Box::new(kronecker)))
}
