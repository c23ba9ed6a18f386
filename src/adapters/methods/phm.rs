use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use crate::structures::Kronecker;
use ndarray::ArrayRef3;

/// A parameterised hypercomplex layer (Compacter): $\sum_i R_i^T \otimes T_i^T$, with the rule `r` of `k x k x k` that layers share and `t` of
/// `k x in/k x out/k`.
///
/// Cost: `k` Kronecker products, or the dense one where that is less.
///
/// Source: R. Karimi Mahabadi, J. Henderson, S. Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", 2021.
///
/// # Errors
/// [`Error::Shape`] when the tensors do not fit.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let phm = methods::phm(&array![[[2.0]]], &array![[[1.0, 3.0]]])?;
/// assert_eq!(phm.matrix().to_dense_f64(), array![[2.0], [6.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn phm(r: &ArrayRef3<f64>, t: &ArrayRef3<f64>) -> Result<Additive> {
    let ((k, rows, cols), (terms, p, s)) = (r.dim(), t.dim());
    if terms != k {
        return Err(Error::shape("PHM slices", &[k, p, s], t.shape()));
    }
    let left = Factor::from_fn(Storage::F32, (k, cols, rows), |b, i, j| r[[b, j, i]]);
    let right = Factor::from_fn(Storage::F32, (k, s, p), |b, i, j| t[[b, j, i]]);
    let shape = (cols.saturating_mul(s), rows.saturating_mul(p));
    Ok(Additive::new("phm", Box::new(Kronecker::new(shape, left, right)?)))
}
