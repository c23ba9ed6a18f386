use super::sparse_delta::sparse;
use crate::adapters::Additive;
use crate::compose::Product;
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use crate::structures::Dense;
use ndarray::ArrayRef2;

/// MiSS, formerly Bone: inputs are folded, `z_k` being the sum of the `x_j` with `j ≡ k` modulo `r`, and $D x = M^T z$: `D[o, j] = M[j mod r, o]`.
///
/// `m` is `r x out`, or `r x t` with `t` a divisor of `out`: then it is repeated over the outputs ("mini"). Cost: `in + r t + out`.
///
/// Source: J. Kang, Q. Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure", 2024.
///
/// # Errors
/// [`Error::Shape`] when the columns of `m` do not divide `out`, [`Error::Parameter`] for `r = 0` or more than `in`.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let adapter = methods::miss((1, 5), &array![[1.0], [2.0]])?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[1.0, 2.0, 1.0, 2.0, 1.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn miss((out, inp): (usize, usize), m: &ArrayRef2<f64>) -> Result<Additive> {
    let (r, t) = m.dim();
    if t == 0 || !out.is_multiple_of(t) {
        return Err(Error::shape("MiSS block", &[r, out], &[r, t]));
    }
    if r == 0 || r > inp {
        return Err(Error::parameter("r", r, format!("1 to {inp}")));
    }
    let fold = sparse((r, inp), (0..inp).map(|j| (j % r, j, 1.0)).collect())?;
    let weight = Factor::from_fn(Storage::F32, (1, t, r), |_, o, k| m[[k, o]]);
    let mut factors = vec![Box::new(Dense::from_factor(weight)?) as _, fold];
    if t < out {
        factors.insert(0, sparse((out, t), (0..out).map(|o| (o, o % t, 1.0)).collect())?);
    }
    Ok(Additive::new("miss", Box::new(Product::new(factors)?)).with_params(m.len()))
}
