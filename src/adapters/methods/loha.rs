use super::{dense, expect, low_rank};
use crate::adapters::Additive;
use crate::error::Result;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, ArrayRef2};

/// LoHa: $D = s\,(A_1 B_1) \circ (A_2 B_2)$, with `a1`, `a2` of `out x rank` and `b1`, `b2` of `rank x in`.
///
/// The entrywise product of two matrices of rank `r` is one of rank `r²`, whose factors are the rows' (columns') products in pairs: it is
/// multiplied so where that is cheaper than the dense product, at `r² (out + in)`.
///
/// Source: N. Hyeon-Woo, M. Ye-Bin, T.-H. Oh, "FedPara", 2022; S.-Y. Yeh et al., "Navigating Text-To-Image Customization", 2024.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the factors do not fit, [`Error::Parameter`](crate::Error::Parameter) for rank 0 or a scale
/// that is not finite.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let (a, b) = (array![[1.0, 2.0]], array![[3.0], [4.0]]);
/// let loha = methods::loha((&a, &b), (&a, &b), 1.0)?;
/// assert_eq!(loha.matrix().to_dense_f64(), array![[121.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn loha(
    (a1, b1): (&ArrayRef2<f64>, &ArrayRef2<f64>),
    (a2, b2): (&ArrayRef2<f64>, &ArrayRef2<f64>),
    scale: f64,
) -> Result<Additive> {
    let ((m, r1), (r2, n)) = (a1.dim(), b2.dim());
    expect("LoHa factor b1", b1, (r1, n))?;
    expect("LoHa factor a2", a2, (m, r2))?;
    let params = a1.len() + b1.len() + a2.len() + b2.len();
    let rank = r1.saturating_mul(r2);
    let delta = if rank > 0 && rank.saturating_mul(m + n) < m * n {
        let b = Factor::from_fn(Storage::F32, (1, m, rank), |_, i, k| a1[[i, k / r2]] * a2[[i, k % r2]]);
        let a = Factor::from_fn(Storage::F32, (1, rank, n), |_, k, j| b1[[k / r2, j]] * b2[[k % r2, j]]);
        low_rank(b, &vec![scale; rank], a)?
    } else {
        let product: Array2<f64> = a1.dot(b1) * a2.dot(b2) * scale;
        dense(&product)?
    };
    Ok(Additive::new("loha", delta).with_params(params))
}
