//! The thin QR decomposition.

use super::convert::{standard, transposed_mut};
use super::{Real, Threads, cholesky, gram};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as apply_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply,
};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::{Conj, Mat, MatRef, Par, Spec};
use ndarray::{Array2, ArrayRef2};

/// A thin QR decomposition `A = Q R` with a non-negative diagonal of `R`.
#[derive(Debug, Clone)]
pub struct Qr {
    /// Orthonormal columns, `m x k` with `k = min(m, n)`.
    pub q: Array2<f64>,
    /// Upper trapezoidal, `k x n`.
    pub r: Array2<f64>,
}

/// Thin Householder QR of an `m x n` matrix, `4 m n k` flops. `Q` has orthonormal columns even when `A`
/// is rank-deficient. Entries must be finite: NaN goes in, NaN comes out.
pub fn qr(a: &ArrayRef2<f64>) -> Qr {
    let (m, n) = a.dim();
    let k = m.min(n);
    let mut at = standard(&a.t());
    let qt = factor(&mut at, Threads::ONE.par());
    let mut q = standard(&qt.t());
    let mut r = Array2::from_shape_fn((k, n), |(i, j)| if i <= j { at[[j, i]] } else { 0.0 });
    fix_signs(&mut q, &mut r);
    Qr { q, r }
}

/// `Q` of the thin decomposition with the signs that reflections leave: those of LAPACK.
pub(crate) fn reflected_q(a: &ArrayRef2<f64>) -> Array2<f64> {
    standard(&factor(&mut standard(&a.t()), Threads::ONE.par()).t())
}

/// Makes the diagonal of `r` non-negative.
fn fix_signs(q: &mut Array2<f64>, r: &mut Array2<f64>) {
    let flip: Vec<bool> = r.diag().iter().map(|&x| x < 0.0).collect();
    for (i, _) in flip.iter().enumerate().filter(|(_, f)| **f) {
        r.row_mut(i).mapv_inplace(|x| -x);
    }
    for mut row in q.outer_iter_mut() {
        for (x, _) in row.iter_mut().zip(&flip).filter(|(_, f)| **f) {
            *x = -*x;
        }
    }
}

/// Factors the matrix whose transpose is `at` (`n x m`, standard layout) in place, leaving `Rᵀ` in its
/// lower triangle, and returns `Qᵀ` (`k x m`).
pub(super) fn factor<T: Real>(at: &mut Array2<T>, par: Par) -> Array2<T> {
    let (n, m) = at.dim();
    let k = m.min(n);
    let mut qt = Array2::zeros((k, m));
    if k == 0 {
        return qt;
    }
    let block = recommended_block_size::<T>(m, n);
    let mut coefficients = Mat::zeros(block, k);
    let mut basis = transposed_mut(at);
    let mut memory = MemBuffer::new(qr_in_place_scratch::<T>(m, n, block, par, Spec::default()));
    let stack = MemStack::new(&mut memory);
    qr_in_place(basis.as_mut(), coefficients.as_mut(), par, stack, Spec::default());
    expand(basis.as_ref(), coefficients.as_ref(), &mut qt, par);
    qt
}

/// Makes the rows of `y` orthonormal by the Cholesky decomposition `G = L Lᵀ` of their Gram matrix, in `2 k² n` flops for `k x n`, and returns
/// the diagonal of `L`: how much of each row is orthogonal to the rows before it. `None`, and `y` as it was, where that is not more
/// than the share `least` of each: errors grow like the square of its inverse.
pub(super) fn cholesky_qr(y: &mut Array2<f64>, least: f64, threads: Threads) -> Option<Vec<f64>> {
    let g = gram(&y.t(), threads);
    let factor = cholesky(&g).ok()?;
    let left = factor.l.diag().to_vec();
    let independent = left.iter().zip(g.diag()).all(|(left, energy)| *left > least * energy.sqrt());
    independent.then(|| factor.solve_lower(y, threads))?;
    Some(left)
}

/// Writes the first columns of the product of the reflections into `qt`, transposed.
fn expand<T: Real>(basis: MatRef<'_, T>, coefficients: MatRef<'_, T>, qt: &mut Array2<T>, par: Par) {
    let (k, m) = qt.dim();
    qt.diag_mut().fill(T::one());
    let mut memory = MemBuffer::new(apply_scratch::<T>(m, coefficients.nrows(), k));
    // Only the first `k` columns of the basis hold reflections.
    let basis = basis.subcols(0, k);
    apply(basis, coefficients, Conj::No, transposed_mut(qt), par, MemStack::new(&mut memory));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian, orthogonality};
    use super::*;

    fn check(a: &Array2<f64>) {
        let Qr { q, r } = qr(a);
        let k = a.nrows().min(a.ncols());
        assert_eq!((q.dim(), r.dim()), ((a.nrows(), k), (k, a.ncols())));
        assert!(orthogonality(&q) < 1e-13, "{:?}: {}", a.dim(), orthogonality(&q));
        assert!(diff(&q.dot(&r), a) < 1e-12, "{:?}", a.dim());
        assert!(r.diag().iter().all(|&x| x >= 0.0));
        assert!(r.indexed_iter().all(|((i, j), &x)| i <= j || x == 0.0));
    }

    #[test]
    fn all_shapes() {
        for (m, n) in [(1, 1), (5, 3), (3, 5), (1, 6), (6, 1), (70, 33), (33, 70), (0, 2), (2, 0)] {
            check(&gaussian(m, n, 9));
        }
    }

    #[test]
    fn rank_deficient() {
        check(&Array2::zeros((6, 4)));
        let mut a = gaussian(40, 20, 2);
        a.column_mut(0).fill(0.0);
        a.column_mut(7).fill(0.0);
        check(&a);
        let copy = a.column(3).to_owned();
        a.column_mut(4).assign(&copy);
        check(&a);
        check(&gaussian(20, 3, 1).dot(&gaussian(3, 12, 2)));
        check(&Array2::eye(9));
    }

    #[test]
    fn cholesky_rows() {
        for (k, n) in [(1, 1), (5, 9), (40, 90), (0, 3)] {
            let y = gaussian(k, n, 3);
            let mut q = y.clone();
            let left = cholesky_qr(&mut q, 1e-3, Threads(2)).unwrap();
            assert!(orthogonality(&q.t().to_owned()) < 1e-12);
            let reference = qr(&y.t());
            assert!(diff(&q.t().to_owned(), &reference.q) < 1e-11);
            assert!(left.iter().zip(reference.r.diag()).all(|(x, y)| (x - y).abs() < 1e-11));
        }
        let mut dependent = gaussian(6, 9, 4);
        let sum = &dependent.row(0) + &dependent.row(3);
        dependent.row_mut(5).assign(&sum);
        for least in [1e-6, 0.5] {
            let mut y = dependent.clone();
            assert!(cholesky_qr(&mut y, least, Threads(1)).is_none());
            assert_eq!(y, dependent);
        }
        assert!(cholesky_qr(&mut Array2::from_elem((2, 3), f64::NAN), 0.1, Threads(1)).is_none());
        assert!(cholesky_qr(&mut gaussian(4, 3, 1), 1e-6, Threads(1)).is_none());
    }

    #[test]
    fn strided_input() {
        check(&gaussian(9, 12, 4).slice(ndarray::s![..;-2, 1..;3]).to_owned());
        let a = gaussian(9, 12, 4);
        assert!(diff(&qr(&a.t()).q, &qr(&a.t().as_standard_layout().into_owned()).q) < 1e-14);
    }
}
