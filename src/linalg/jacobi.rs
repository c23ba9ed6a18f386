//! One-sided Jacobi SVD: slow, but it cannot fail on finite input. Used when the fast kernel does.

use ndarray::Array2;

/// Sweeps after which the rotation angles are below rounding for any input seen in practice.
const SWEEPS: usize = 60;

/// Orthogonalises the rows of `at` (`n x m`) in place by rotations, accumulated into the returned
/// `n x n` matrix: on exit `at = diag(s) Uᵀ` with unsorted `s`, and the result is `Vᵀ`, where
/// `A = U diag(s) Vᵀ` is the SVD of the transpose of the input. `O(m n²)` per sweep.
pub(super) fn orthogonalise_rows(at: &mut Array2<f64>) -> Array2<f64> {
    let n = at.nrows();
    let mut vt = Array2::eye(n);
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let (rp, rq) = (at.row(p), at.row(q));
                let (app, aqq, apq) = (rp.dot(&rp), rq.dot(&rq), rp.dot(&rq));
                if apq.abs() <= f64::EPSILON * (app * aqq).sqrt() || apq == 0.0 {
                    continue;
                }
                rotated = true;
                let tau = (aqq - app) / (2.0 * apq);
                let t = tau.signum() / (tau.abs() + tau.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                rotate(at, p, q, c, c * t);
                rotate(&mut vt, p, q, c, c * t);
            }
        }
        if !rotated {
            break;
        }
    }
    vt
}

fn rotate(a: &mut Array2<f64>, p: usize, q: usize, c: f64, s: f64) {
    for j in 0..a.ncols() {
        let (x, y) = (a[[p, j]], a[[q, j]]);
        a[[p, j]] = c * x - s * y;
        a[[q, j]] = s * x + c * y;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian, orthogonality};
    use super::*;

    #[test]
    fn rows_become_orthogonal_and_reconstruct() {
        let at = gaussian(6, 9, 1);
        let mut work = at.clone();
        let vt = orthogonalise_rows(&mut work);
        assert!(orthogonality(&vt) < 1e-13);
        // work = Vᵀ Aᵀ, so V work = Aᵀ.
        assert!(diff(&vt.t().dot(&work), &at) < 1e-13);
        let g = work.dot(&work.t());
        for ((i, j), x) in g.indexed_iter() {
            assert!(i == j || x.abs() < 1e-12);
        }
    }
}
