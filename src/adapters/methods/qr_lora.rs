use super::low_rank;
use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::linalg::{Threads, reflected_q, svd};
use crate::storage::{Factor, Storage};
use ndarray::{Array2, ArrayRef2, s};

/// QR-LoRA: $D = s\,Q\,\mathrm{triu}(ΔR)$ in an orthonormal basis `q` (`out x rank`) of the dominant columns of a weight ([`qr_basis`]); what
/// lies below the diagonal of `delta_r` (`rank x in`) is ignored.
///
/// Adapters of one weight share `q`, so their sums are sums of `ΔR`. Cost: that of LoRA.
///
/// Source: J. Yang et al., "QR-LoRA: Efficient and Disentangled Fine-tuning via QR Decomposition for Customized Generation", 2025.
///
/// # Errors
/// [`Error::Shape`] when the factors do not fit.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let adapter = methods::qr_lora(&array![[1.0, 0.0], [0.0, 1.0]], &array![[1.0, 2.0], [9.0, 3.0]], 2.0)?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[2.0, 4.0], [0.0, 6.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn qr_lora(q: &ArrayRef2<f64>, delta_r: &ArrayRef2<f64>, scale: f64) -> Result<Additive> {
    let (rank, n) = delta_r.dim();
    let upper = Array2::from_shape_fn((rank, n), |(i, j)| if i <= j { delta_r[[i, j]] } else { 0.0 });
    let params = (0..rank).map(|i| n.saturating_sub(i)).sum();
    let factor = |a: &ArrayRef2<f64>| Factor::from_matrix(Storage::F32, a);
    let delta = low_rank(factor(q), &vec![scale; rank], factor(&upper))?;
    Ok(Additive::new("qr_lora", delta).with_params(params))
}

/// `Q` and `R` of the best approximation of `w` of rank `rank`, over `scale`: the QR decomposition with the signs of LAPACK's reflections, as the
/// published code has it.
///
/// # Errors
/// [`Error::Parameter`] for a rank of 0 or beyond the smaller side, those of [`svd`].
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let (q, r) = methods::qr_basis(&array![[2.0, 4.0], [1.0, 2.0]], 1, 2.0)?;
/// assert!((q.dot(&r) * 2.0 - array![[2.0, 4.0], [1.0, 2.0]]).iter().all(|e| e.abs() < 1e-12) && r[[0, 0]] < 0.0);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn qr_basis(w: &ArrayRef2<f64>, rank: usize, scale: f64) -> Result<(Array2<f64>, Array2<f64>)> {
    let most = w.nrows().min(w.ncols());
    if rank == 0 || rank > most {
        return Err(Error::parameter("rank", rank, format!("1 to {most}")));
    }
    let top = svd(w, Threads::ONE)?.truncate(rank).reconstruct(Threads::ONE) / scale;
    let q = reflected_q(&top.slice(s![.., ..rank]));
    let mut r = q.t().dot(&top);
    r.indexed_iter_mut().filter(|((i, j), _)| i > j).for_each(|(_, v)| *v = 0.0);
    Ok((q, r))
}
