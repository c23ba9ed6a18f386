use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use crate::structures::BlockLowRank;
use ndarray::ArrayRef3;

/// GraLoRA: a `k x k` grid of blocks, each of rank `q = r / k`. Block (out `j`, in `i`) is
/// $D_{ji} = s\,(A_i[:, jq..(j+1)q]\, B_j[iq..(i+1)q, :])^T$, with `a` of `k x in/k x r` and `b` of `k x r x out/k`.
///
/// As many numbers and multiply-adds as LoRA of rank `r`, `r (out + in)`, and up to `k` times its rank.
///
/// Source: Y. Jung et al., "GraLoRA: Granular Low-Rank Adaptation", 2025.
///
/// # Errors
/// [`Error::Shape`] when the tensors do not fit, [`Error::Parameter`] when `k` does not divide `r`.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::Array3;
/// let (a, b) = (Array3::ones((2, 3, 4)), Array3::ones((2, 4, 2)));
/// let adapter = methods::gralora(&a, &b, 0.5)?;
/// assert_eq!(adapter.matrix().shape(), (4, 6));
/// assert!(adapter.matrix().to_dense_f64().iter().all(|v| *v == 1.0)); // rank 2 in each block
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn gralora(a: &ArrayRef3<f64>, b: &ArrayRef3<f64>, scale: f64) -> Result<Additive> {
    let ((k, p, r), (_, _, s)) = (a.dim(), b.dim());
    if b.dim() != (k, r, s) {
        return Err(Error::shape("GraLoRA factor B", &[k, r, s], b.shape()));
    }
    if k == 0 || !r.is_multiple_of(k) || r == 0 {
        return Err(Error::parameter("gralora_k", k, format!("a divisor of the rank {r}")));
    }
    let q = r / k;
    // Left factors of block row j side by side; right factors of block column i one below the other.
    let u = Factor::from_fn(Storage::F32, (k, s, r), |j, o, t| b[[j, t, o]]);
    let v = Factor::from_fn(Storage::F32, (k, r, p), |i, t, c| scale * a[[i, c, t]]);
    debug_assert_eq!(q * k, r);
    let shape = (k * s, k * p);
    Ok(Additive::new("gralora", Box::new(BlockLowRank::new(shape, u, v)?)))
}
