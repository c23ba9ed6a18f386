//! The exact thin singular value decomposition.

use super::convert::{Operand, max_abs, safe_scale, standard, transposed_mut};
use super::{Threads, check_finite, jacobi, qr};
use crate::error::{Error, Result};
use faer::Spec;
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd as kernel, svd_scratch};
use ndarray::{Array2, ArrayRef2, Axis, s};

/// A thin singular value decomposition `A = U diag(s) Vᵀ`, singular values descending.
///
/// For each component the entry of `u` of largest magnitude (the first of equals) is positive.
#[derive(Debug, Clone)]
pub struct Svd {
    /// Left singular vectors, `m x k`, one per column.
    pub u: Array2<f64>,
    /// Singular values, descending.
    pub s: Vec<f64>,
    /// Right singular vectors, `k x n`, one per row.
    pub vt: Array2<f64>,
}

impl Svd {
    /// How many components there are.
    pub fn rank(&self) -> usize {
        self.s.len()
    }

    /// The leading `r` components (all of them when there are fewer). Copies `(m + n) r` entries.
    pub fn truncate(&self, r: usize) -> Svd {
        let r = r.min(self.rank());
        Svd {
            u: standard(&self.u.slice(s![.., ..r])),
            s: self.s[..r].to_vec(),
            vt: self.vt.slice(s![..r, ..]).to_owned(),
        }
    }

    /// The balanced factors `(U √s, √s Vᵀ)` of the leading `r` components: `m x r` and `r x n`.
    pub fn split_sqrt(&self, r: usize) -> (Array2<f64>, Array2<f64>) {
        let Svd { mut u, s, mut vt } = self.truncate(r);
        for (k, sigma) in s.iter().enumerate() {
            u.column_mut(k).mapv_inplace(|x| x * sigma.sqrt());
            vt.row_mut(k).mapv_inplace(|x| x * sigma.sqrt());
        }
        (u, vt)
    }

    /// Sum of the squared singular values from the `r`-th (counting from 0) on: the squared Frobenius
    /// error of truncating to `r` components, as far as this decomposition is complete.
    pub fn tail_energy(&self, r: usize) -> f64 {
        // Smallest first, so that a long tail of tiny values is not lost.
        self.s.iter().skip(r).rev().map(|x| x * x).sum()
    }

    /// `U diag(s) Vᵀ`, `m x n`, in `2 m n k` flops.
    pub fn reconstruct(&self, threads: Threads) -> Array2<f64> {
        let mut us = self.u.clone();
        for (k, sigma) in self.s.iter().enumerate() {
            us.column_mut(k).mapv_inplace(|x| x * sigma);
        }
        super::matmul(&us, &self.vt, threads)
    }

    /// The decomposition of the transposed matrix, signs fixed anew.
    pub(super) fn transpose(self) -> Svd {
        from_rows(self.vt, self.s, standard(&self.u.t()))
    }

    pub(super) fn empty(m: usize, n: usize) -> Svd {
        Svd { u: Array2::zeros((m, 0)), s: Vec::new(), vt: Array2::zeros((0, n)) }
    }
}

/// Builds an [`Svd`] from transposed left vectors (`k x m`), fixing signs.
pub(super) fn from_rows(ut: Array2<f64>, s: Vec<f64>, vt: Array2<f64>) -> Svd {
    from_columns(standard(&ut.t()), s, vt)
}

/// The same from left vectors (`m x k`).
pub(super) fn from_columns(mut u: Array2<f64>, s: Vec<f64>, mut vt: Array2<f64>) -> Svd {
    let mut signs = vec![0.0f64; u.ncols()];
    for row in u.outer_iter() {
        signs.iter_mut().zip(row).filter(|(best, x)| x.abs() > best.abs()).for_each(|(best, x)| *best = *x);
    }
    signs.iter_mut().for_each(|sign| *sign = if *sign < 0.0 { -1.0 } else { 1.0 });
    for mut row in u.outer_iter_mut() {
        row.iter_mut().zip(&signs).for_each(|(x, sign)| *x *= sign);
    }
    for (mut v, _) in vt.outer_iter_mut().zip(&signs).filter(|(_, sign)| **sign < 0.0) {
        v.mapv_inplace(|x| -x);
    }
    Svd { u, s, vt }
}

/// Exact thin SVD of an `m x n` matrix: `k = min(m, n)` components, about `O(max(m, n) k²)` flops (very
/// rectangular matrices are reduced by a QR first).
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinite entries.
pub fn svd(a: &ArrayRef2<f64>, threads: Threads) -> Result<Svd> {
    check_finite("matrix", a)?;
    let (m, n) = a.dim();
    if m == 0 || n == 0 {
        return Ok(Svd::empty(m, n));
    }
    scaled(a, |a| match fast(a, threads) {
        Some(svd) => Ok(svd),
        None => Ok(slow(a)),
    })
}

/// Singular values of an `m x n` matrix, descending; cheaper than [`svd`] by the vectors.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinite entries.
pub fn singular_values(a: &ArrayRef2<f64>, threads: Threads) -> Result<Vec<f64>> {
    check_finite("matrix", a)?;
    let (m, n) = a.dim();
    if m == 0 || n == 0 {
        return Ok(Vec::new());
    }
    scaled(a, |a| {
        let op = Operand::new(a);
        let mut values = Diag::zeros(m.min(n));
        let none = ComputeSvdVectors::No;
        let par = threads.par();
        let mut memory = MemBuffer::new(svd_scratch::<f64>(m, n, none, none, par, Spec::default()));
        let stack = MemStack::new(&mut memory);
        let done = kernel(op.mat(), values.as_mut(), None, None, par, stack, Spec::default());
        let s: Vec<f64> = values.column_vector().iter().copied().collect();
        let s = if done.is_ok() && energy_matches(a, &s) { s } else { slow(a).s };
        Ok(Svd { u: Array2::zeros((0, 0)), s, vt: Array2::zeros((0, 0)) })
    })
    .map(|svd| svd.s)
}

/// Runs `f` on `a` brought into a range where squares are representable, and scales the values back.
fn scaled(a: &ArrayRef2<f64>, f: impl FnOnce(&ArrayRef2<f64>) -> Result<Svd>) -> Result<Svd> {
    let scale = safe_scale::<f64>(max_abs(a));
    if scale == 1.0 {
        return f(a);
    }
    let mut svd = f(&a.mapv(|x| x * scale))?;
    svd.s.iter_mut().for_each(|x| *x /= scale);
    Ok(svd)
}

/// Whether the values carry the energy of the matrix: catches a kernel that went astray.
fn energy_matches(a: &ArrayRef2<f64>, s: &[f64]) -> bool {
    let want: f64 = a.iter().map(|x| x * x).sum();
    let got: f64 = s.iter().map(|x| x * x).sum();
    (want - got).abs() <= 1e-9 * want && s.iter().all(|&x| x >= 0.0)
}

/// The library kernel; `None` when it fails or returns something that is not a decomposition.
fn fast(a: &ArrayRef2<f64>, threads: Threads) -> Option<Svd> {
    let (m, n) = a.dim();
    let k = m.min(n);
    let op = Operand::new(a);
    let (mut ut, mut vt) = (Array2::zeros((k, m)), Array2::zeros((k, n)));
    let mut values = Diag::zeros(k);
    let thin = ComputeSvdVectors::Thin;
    let par = threads.par();
    let mut memory = MemBuffer::new(svd_scratch::<f64>(m, n, thin, thin, par, Spec::default()));
    kernel(
        op.mat(),
        values.as_mut(),
        Some(transposed_mut(&mut ut)),
        Some(transposed_mut(&mut vt)),
        par,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .ok()?;
    let s: Vec<f64> = values.column_vector().iter().copied().collect();
    let sound = energy_matches(a, &s) && ut.iter().chain(&vt).all(|x| x.is_finite());
    sound.then(|| from_rows(ut, s, vt))
}

/// Jacobi rotations on the triangular factor of the taller orientation.
fn slow(a: &ArrayRef2<f64>) -> Svd {
    let (m, n) = a.dim();
    if m < n {
        return slow(&a.t()).transpose();
    }
    let reduced = qr(a);
    let mut work = standard(&reduced.r.t());
    let vt = jacobi::orthogonalise_rows(&mut work);
    let norms: Vec<f64> = work.outer_iter().map(|r| r.dot(&r).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    let s: Vec<f64> = order.iter().map(|&i| norms[i]).collect();
    let vt = vt.select(Axis(0), &order);
    let mut small = work.select(Axis(0), &order).reversed_axes();
    // Columns of negligible norm carry no direction; a QR with positive diagonal keeps the others as
    // they are and completes the basis.
    for (mut column, &sigma) in small.columns_mut().into_iter().zip(&s) {
        if sigma > f64::EPSILON * s[0] {
            column.mapv_inplace(|x| x / sigma);
        } else {
            column.fill(0.0);
        }
    }
    let u = reduced.q.dot(&qr(&small).q);
    from_columns(u, s, vt)
}

/// Rebuilds the error of a failed convergence; kept in one place so that messages agree.
pub(super) fn no_convergence(what: &'static str) -> Error {
    Error::NoConvergence(what)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian, norm, orthogonality, with_spectrum};
    use super::*;
    use ndarray::array;

    fn check(a: &Array2<f64>, tol: f64) {
        let scale = norm(a).max(f64::MIN_POSITIVE);
        for svd in [svd(a, Threads(1)).unwrap(), svd(a, Threads(2)).unwrap(), slow(a)] {
            let k = a.nrows().min(a.ncols());
            assert_eq!((svd.u.dim(), svd.s.len(), svd.vt.dim()), ((a.nrows(), k), k, (k, a.ncols())));
            assert!(orthogonality(&svd.u) < tol, "{}", orthogonality(&svd.u));
            assert!(orthogonality(&svd.vt.t().to_owned()) < tol);
            assert!(diff(&svd.reconstruct(Threads(1)), a) < tol * scale);
            assert!(svd.s.windows(2).all(|w| w[0] >= w[1]) && svd.s.iter().all(|&x| x >= 0.0));
            assert!(svd.u.is_standard_layout() && svd.vt.is_standard_layout());
            for column in svd.u.columns() {
                let top = column.iter().fold(0.0f64, |b, &x| if x.abs() > b.abs() { x } else { b });
                assert!(top >= 0.0);
            }
        }
        let values = singular_values(a, Threads(1)).unwrap();
        let full = svd(a, Threads(1)).unwrap().s;
        assert!(values.iter().zip(&full).all(|(x, y)| (x - y).abs() <= tol * scale));
    }

    #[test]
    fn shapes() {
        for (m, n) in [(1, 1), (1, 7), (7, 1), (5, 5), (40, 9), (9, 40), (30, 31), (150, 140)] {
            check(&gaussian(m, n, (m * 100 + n) as u64), 1e-12);
        }
    }

    #[test]
    fn degenerate() {
        check(&Array2::zeros((4, 3)), 1e-12);
        check(&Array2::eye(6), 1e-12);
        check(&array![[0.0, 0.0], [0.0, -2.0]], 1e-12);
        check(&with_spectrum(20, 15, &[3.0, 3.0, 3.0, 1e-9], 5), 1e-12);
        check(&gaussian(8, 1, 1).dot(&gaussian(1, 8, 2)), 1e-12);
        for (m, n) in [(0, 3), (3, 0), (0, 0)] {
            let svd = svd(&Array2::zeros((m, n)), Threads(1)).unwrap();
            assert_eq!((svd.u.dim(), svd.vt.dim(), svd.s.len()), ((m, 0), (0, n), 0));
        }
    }

    #[test]
    fn extreme_scales() {
        let a = gaussian(6, 4, 3);
        let s = svd(&a, Threads(1)).unwrap().s;
        for scale in [1e-200, 1e200, 1e-290] {
            let scaled = svd(&a.mapv(|x| x * scale), Threads(1)).unwrap();
            assert!(scaled.s.iter().zip(&s).all(|(x, y)| (x / scale / y - 1.0).abs() < 1e-12));
        }
    }

    #[test]
    fn non_finite_is_refused() {
        let a = array![[1.0, f64::INFINITY]];
        assert!(matches!(svd(&a, Threads(1)), Err(Error::NonFinite { row: 0, col: 1, .. })));
        assert!(singular_values(&a, Threads(1)).is_err());
    }

    #[test]
    fn truncation() {
        let a = with_spectrum(12, 9, &[5.0, 3.0, 1.0, 0.5], 8);
        let svd = svd(&a, Threads(1)).unwrap();
        let (left, right) = svd.split_sqrt(2);
        assert_eq!((left.dim(), right.dim()), ((12, 2), (2, 9)));
        let error = norm(&(&a - &left.dot(&right)));
        assert!((error * error - svd.tail_energy(2)).abs() < 1e-12);
        assert!((svd.tail_energy(2) - 1.25).abs() < 1e-12);
        assert_eq!(svd.truncate(100).rank(), 9);
        assert_eq!(svd.tail_energy(100), 0.0);
    }
}
