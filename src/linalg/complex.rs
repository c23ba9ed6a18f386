//! The truncated SVD of complex matrices.

use super::convert::{Operand, safe_scale, standard, transposed_mut};
use super::svd::no_convergence;
use crate::error::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Par, Spec};
use ndarray::{Array2, ArrayRef2, s};
use num_complex::Complex;

/// A truncated complex singular value decomposition `A ≈ U diag(s) Vᴴ`.
#[derive(Debug, Clone)]
pub struct ComplexSvd {
    /// Left singular vectors, `m x r`, one per column; the entry of largest magnitude of each is real
    /// and positive.
    pub u: Array2<Complex<f64>>,
    /// Singular values, descending.
    pub s: Vec<f64>,
    /// Conjugated right singular vectors, `r x n`, one per row.
    pub vh: Array2<Complex<f64>>,
}

/// The leading `rank` components (at most `min(m, n)`) of the SVD of a complex `m x n` matrix. Computes
/// the whole thin SVD on the calling thread.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinite entries (the offending part is reported),
/// [`Error::NoConvergence`] when the iteration fails.
pub fn complex_svd_truncated(a: &ArrayRef2<Complex<f64>>, rank: usize) -> Result<ComplexSvd> {
    if let Some(((row, col), z)) = a.indexed_iter().find(|(_, z)| !z.is_finite()) {
        let value = if z.re.is_finite() { z.im } else { z.re };
        return Err(Error::NonFinite { what: "complex matrix", row, col, value });
    }
    let (m, n) = a.dim();
    let k = m.min(n);
    let (mut ut, mut vt) = (Array2::zeros((k, m)), Array2::zeros((k, n)));
    let mut values = Vec::new();
    if k > 0 {
        let scale = safe_scale::<f64>(a.iter().fold(0.0, |m, z| f64::max(m, z.re.abs().max(z.im.abs()))));
        let scaled = a.mapv(|z| z * scale);
        let op = Operand::new(&scaled);
        let thin = ComputeSvdVectors::Thin;
        let mut s = Diag::<Complex<f64>>::zeros(k);
        let scratch = svd_scratch::<Complex<f64>>(m, n, thin, thin, Par::Seq, Spec::default());
        let mut memory = MemBuffer::new(scratch);
        let (u, v) = (transposed_mut(&mut ut), transposed_mut(&mut vt));
        let stack = MemStack::new(&mut memory);
        svd(op.mat(), s.as_mut(), Some(u), Some(v), Par::Seq, stack, Spec::default())
            .map_err(|_| no_convergence("the complex singular value decomposition"))?;
        values = s.column_vector().iter().map(|z| z.re / scale).collect();
        if values.iter().any(|x| !x.is_finite()) || ut.iter().chain(&vt).any(|z| !z.is_finite()) {
            return Err(no_convergence("the complex singular value decomposition"));
        }
    }
    let r = rank.min(k);
    values.truncate(r);
    let mut ut = ut.slice(s![..r, ..]).to_owned();
    let mut vh = vt.slice(s![..r, ..]).mapv(|z| z.conj());
    for (mut u, mut v) in ut.outer_iter_mut().zip(vh.outer_iter_mut()) {
        let zero = Complex::new(0.0, 0.0);
        let largest = u.iter().fold(zero, |b, &z| if z.norm_sqr() > b.norm_sqr() { z } else { b });
        if largest != zero {
            let phase = largest / largest.norm();
            u.mapv_inplace(|z| z * phase.conj());
            v.mapv_inplace(|z| z * phase);
        }
    }
    Ok(ComplexSvd { u: standard(&ut.t()), s: values, vh })
}

#[cfg(test)]
mod tests {
    use super::super::testing::gaussian;
    use super::*;

    fn random(m: usize, n: usize) -> Array2<Complex<f64>> {
        let (re, im) = (gaussian(m, n, 1), gaussian(m, n, 2));
        Array2::from_shape_fn((m, n), |ij| Complex::new(re[ij], im[ij]))
    }

    fn error(a: &Array2<Complex<f64>>, d: &ComplexSvd) -> f64 {
        let us = Array2::from_shape_fn(d.u.dim(), |(i, j)| d.u[[i, j]] * d.s[j]);
        (a - &us.dot(&d.vh)).iter().map(|z| z.norm_sqr()).sum::<f64>().sqrt()
    }

    #[test]
    fn reconstructs_and_truncates() {
        for (m, n) in [(1, 1), (8, 5), (5, 8), (30, 6)] {
            let a = random(m, n);
            let full = complex_svd_truncated(&a, usize::MAX).unwrap();
            assert!(error(&a, &full) < 1e-12);
            let r = m.min(n) / 2;
            let cut = complex_svd_truncated(&a, r).unwrap();
            assert_eq!((cut.u.dim(), cut.vh.dim()), ((m, r), (r, n)));
            let tail: f64 = full.s[r..].iter().map(|x| x * x).sum();
            assert!((error(&a, &cut).powi(2) - tail).abs() < 1e-10);
        }
    }

    #[test]
    fn degenerate() {
        let zero = complex_svd_truncated(&Array2::zeros((3, 2)), 1).unwrap();
        assert_eq!(zero.s, vec![0.0]);
        assert_eq!(complex_svd_truncated(&Array2::zeros((0, 2)), 1).unwrap().vh.dim(), (0, 2));
        let mut bad = random(2, 2);
        bad[[1, 0]].im = f64::NAN;
        assert!(matches!(complex_svd_truncated(&bad, 1), Err(Error::NonFinite { row: 1, col: 0, .. })));
    }
}
