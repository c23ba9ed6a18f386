//! Somebody else's dense product: the baseline of the benches.

use structmat::ndarray::Array2;

/// `y = x wᵀ` by the `gemm` crate, on which faer stands.
#[rustfmt::skip]
pub fn gemm_crate(w: &Array2<f32>, x: &Array2<f32>, y: &mut Array2<f32>, threads: usize) {
    let ((batch, m), n) = (y.dim(), x.ncols());
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    let standard = w.is_standard_layout() && x.is_standard_layout() && y.is_standard_layout();
    assert!(standard && w.dim() == (m, n) && x.nrows() == batch);
    let (out, rows, weights) = (y.as_mut_ptr(), x.as_ptr(), w.as_ptr());
    let (m_stride, n_stride) = (m as isize, n as isize);
    // SAFETY: three row-major arrays of batch x m, batch x n and m x n, as asserted.
    unsafe {
        gemm::gemm(
            batch, m, n, out, 1, m_stride, false, rows, 1, n_stride, weights, n_stride, 1,
            0.0, 1.0, false, false, false, parallelism,
        );
    }
}
