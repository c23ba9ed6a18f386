//! Least squares, pseudo-inverse and polar decomposition: short uses of the SVD.

use super::eigen::recompose;
use super::{Svd, Threads, check_finite, matmul, matmul_tn, svd};
use crate::error::{Error, Result};
use ndarray::{Array2, ArrayRef2};

/// The `X` (`n x k`) of least norm among those that minimise `||A X - B||`, for `A: m x n` and
/// `B: m x k`; singular values below `max(m, n) ε` of the largest count as zero. One SVD of `A`.
///
/// # Errors
/// [`Error::Shape`] when the row counts differ, [`Error::NonFinite`] for NaN or infinite entries.
pub fn lstsq(a: &ArrayRef2<f64>, b: &ArrayRef2<f64>) -> Result<Array2<f64>> {
    if a.nrows() != b.nrows() {
        return Err(Error::shape("right-hand side", &[a.nrows(), b.ncols()], &[b.nrows(), b.ncols()]));
    }
    check_finite("right-hand side", b)?;
    let decomposition = svd(a, Threads::ONE)?;
    let mut y = matmul_tn(&decomposition.u, b, Threads::ONE);
    let inverse = inverse_values(&decomposition, f64::EPSILON * a.nrows().max(a.ncols()) as f64);
    for (mut row, w) in y.outer_iter_mut().zip(inverse) {
        row.mapv_inplace(|x| x * w);
    }
    Ok(matmul_tn(&decomposition.vt, &y, Threads::ONE))
}

/// The Moore-Penrose pseudo-inverse, `n x m`, of an `m x n` matrix; singular values not above `rcond`
/// times the largest count as zero. One SVD.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinite entries.
pub fn pinv(a: &ArrayRef2<f64>, rcond: f64) -> Result<Array2<f64>> {
    let mut decomposition = svd(a, Threads::ONE)?;
    let inverse = inverse_values(&decomposition, rcond);
    for (mut row, w) in decomposition.vt.outer_iter_mut().zip(inverse) {
        row.mapv_inplace(|x| x * w);
    }
    Ok(matmul(&decomposition.vt.t(), &decomposition.u.t(), Threads::ONE))
}

fn inverse_values(svd: &Svd, rcond: f64) -> Vec<f64> {
    let floor = rcond * svd.s.first().copied().unwrap_or(0.0);
    svd.s.iter().map(|&x| if x > floor && x >= f64::MIN_POSITIVE { 1.0 / x } else { 0.0 }).collect()
}

/// The polar decomposition `A = Q P` of an `m x n` matrix: `Q = U Vᵀ` (`m x n`, the nearest matrix with
/// orthonormal columns or rows) and `P = V diag(s) Vᵀ` (`n x n`, positive semi-definite). One SVD.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinite entries.
pub fn polar(a: &ArrayRef2<f64>) -> Result<(Array2<f64>, Array2<f64>)> {
    let Svd { u, s, vt } = svd(a, Threads::ONE)?;
    Ok((matmul(&u, &vt, Threads::ONE), recompose(&vt.t(), &s)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian, orthogonality};
    use super::*;

    #[test]
    fn least_squares() {
        let (a, x) = (gaussian(20, 6, 1), gaussian(6, 3, 2));
        assert!(diff(&lstsq(&a, &a.dot(&x)).unwrap(), &x) < 1e-12);
        let b = gaussian(20, 3, 3);
        let residual = &b - &a.dot(&lstsq(&a, &b).unwrap());
        assert!(diff(&a.t().dot(&residual), &Array2::zeros((6, 3))) < 1e-12);
        // Underdetermined: the least-norm solution lies in the row space.
        let wide = gaussian(4, 9, 4);
        let y = wide.t().dot(&gaussian(4, 2, 5));
        assert!(diff(&lstsq(&wide, &wide.dot(&y)).unwrap(), &y) < 1e-11);
        assert!(lstsq(&a, &Array2::zeros((3, 1))).is_err());
        let zero = lstsq(&Array2::zeros((3, 2)), &Array2::ones((3, 1))).unwrap();
        assert_eq!(zero, Array2::<f64>::zeros((2, 1)));
        assert_eq!(lstsq(&Array2::zeros((0, 2)), &Array2::zeros((0, 1))).unwrap().dim(), (2, 1));
    }

    #[test]
    fn pseudo_inverse() {
        let a = gaussian(7, 2, 1).dot(&gaussian(2, 5, 2));
        let p = pinv(&a, 1e-10).unwrap();
        assert_eq!(p.dim(), (5, 7));
        assert!(diff(&a.dot(&p).dot(&a), &a) < 1e-11);
        assert!(diff(&p.dot(&a).dot(&p), &p) < 1e-11);
        assert_eq!(pinv(&Array2::zeros((2, 3)), 0.0).unwrap(), Array2::<f64>::zeros((3, 2)));
    }

    #[test]
    fn polar_factors() {
        for (m, n) in [(6, 6), (9, 4), (4, 9)] {
            let a = gaussian(m, n, 7);
            let (q, p) = polar(&a).unwrap();
            assert!(diff(&q.dot(&p), &a) < 1e-12);
            assert_eq!(p, p.t());
            let q = if m >= n { q } else { q.t().to_owned() };
            assert!(orthogonality(&q) < 1e-12);
        }
    }
}
