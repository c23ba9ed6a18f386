use super::{Rotation, core};
use crate::adapters::Additive;
use crate::error::{Error, Result};
use ndarray::{Array2, ArrayRef2};

/// The rotation form of the spectral adapter: within a block of singular vectors `u` (`out x r`), `v` (`in x r`) with values `sigma`,
/// $U ← U\,\mathrm{cay}(P)$, $V ← V\,\mathrm{cay}(Q)$ and $σ ← σ c$, where `cay` rotates by the skew-symmetric part.
///
/// With `c = 1` no singular value changes. Adapters in disjoint blocks add up without interference. Cost: that of LoRA of rank `r`.
///
/// Source: F. Zhang, M. Pilanci, "Spectral Adapter: Fine-Tuning in Spectral Space", 2024.
///
/// # Errors
/// [`Error::Shape`] when the sizes differ.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let none = array![[0.0]];
/// let adapter = methods::spectral_rotation((&array![[1.0]], &[2.0], &array![[1.0]]), (&none, &none), &[3.0])?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[4.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn spectral_rotation(
    (u, sigma, v): (&ArrayRef2<f64>, &[f64], &ArrayRef2<f64>),
    (p, q): (&ArrayRef2<f64>, &ArrayRef2<f64>),
    c: &[f64],
) -> Result<Additive> {
    let r = sigma.len();
    for (what, size) in [("P", p.dim()), ("Q", q.dim())] {
        if size != (r, r) {
            return Err(Error::parameter(what, format!("{size:?}"), format!("{r} x {r}")));
        }
    }
    if c.len() != r {
        return Err(Error::shape("scales of singular values", &[r], &[c.len()]));
    }
    let cayley = |x: &ArrayRef2<f64>| Rotation::Cayley.of(&((&x.view() - &x.t()) * 0.5));
    let (left, right) = (cayley(p)?, cayley(q)?);
    let scaled = Array2::from_shape_fn((r, r), |(i, k)| left[[i, k]] * sigma[k] * c[k]);
    let change = scaled.dot(&right.t()) - Array2::from_diag(&ndarray::ArrayView1::from(sigma));
    Ok(core(u, &change, &v.t(), 1.0)?.with_params(r * (r - 1) + r))
}
