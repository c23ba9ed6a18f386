//! Symmetric eigendecompositions and the symmetric square root.

use super::convert::{TILE, max_abs, safe_scale, standard, transposed_mut};
use super::svd::no_convergence;
use super::{Real, Threads, check_finite, check_square, gram};
use crate::error::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::tridiag::{tridiag_in_place, tridiag_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd_scratch, tridiagonal_self_adjoint_evd};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as apply_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply,
};
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::{Conj, Mat, MatMut, Par, Spec};
use ndarray::{Array2, ArrayRef2, s};

/// Smaller decompositions run on the calling thread: a second one makes them slower. With vectors, and without.
const PARALLEL_VECTORS: usize = 768;
const PARALLEL_VALUES: usize = 1536;

const WHAT: &str = "the symmetric eigendecomposition";

/// An eigendecomposition `A = V diag(values) Vᵀ` of a symmetric matrix, eigenvalues descending.
#[derive(Debug, Clone)]
pub struct Eigh {
    /// Eigenvalues, descending.
    pub values: Vec<f64>,
    /// Eigenvectors, `n x n`, one per column; the entry of largest magnitude of each is positive.
    pub vectors: Array2<f64>,
}

/// Eigendecomposition of a symmetric `n x n` matrix, `O(n³)`; of a matrix that is not quite symmetric,
/// that of `(A + Aᵀ) / 2`.
///
/// # Errors
/// [`Error::Shape`] unless square, [`Error::NonFinite`] for NaN or infinite entries,
/// [`Error::NoConvergence`] when the iteration fails.
pub fn eigh(a: &ArrayRef2<f64>, threads: Threads) -> Result<Eigh> {
    let (values, vectors) = Reduced::new(a, threads)?.leading(a.nrows())?;
    Ok(Eigh { values, vectors: standard(&vectors.t()) })
}

/// Eigenvalues only, descending; cheaper than [`eigh`] by the vectors.
///
/// # Errors
/// As [`eigh`].
pub fn eigvalsh(a: &ArrayRef2<f64>, threads: Threads) -> Result<Vec<f64>> {
    Reduced::<f64>::new(a, threads)?.values()
}

/// A symmetric matrix reduced to a tridiagonal one by reflections: nearly all of the work of its eigenvalues, half of that of its eigenvectors.
/// Computed in the precision of `T`.
pub(super) struct Reduced<T> {
    scale: f64,
    /// The tridiagonal matrix, `scale` times as large, and below it the reflections.
    reflections: Mat<T>,
    coefficients: Mat<T>,
    threads: Threads,
}

impl<T: Real> Reduced<T> {
    /// Of an `n x n` matrix, in `4/3 n³` flops.
    pub fn new(a: &ArrayRef2<f64>, threads: Threads) -> Result<Self> {
        let n = check_square("symmetric matrix", a)?;
        check_finite("symmetric matrix", a)?;
        let scale = safe_scale::<T>(max_abs(a));
        let mut reflections = Mat::zeros(n, n);
        // The lower half; some rows at a time, as both orders are read.
        for top in (0..n).step_by(TILE) {
            let end = n.min(top + TILE);
            for j in 0..end {
                for i in top.max(j)..end {
                    let mean = 0.5 * (a[[i, j]] * scale) + 0.5 * (a[[j, i]] * scale);
                    reflections[(i, j)] = T::narrow(mean);
                }
            }
        }
        let mut coefficients = Mat::zeros(recommended_block_size::<T>(n, n), n.saturating_sub(1));
        if n > 0 {
            let par = if n < PARALLEL_VALUES { Par::Seq } else { threads.par() };
            let mut memory = MemBuffer::new(tridiag_in_place_scratch::<T>(n, par, Spec::default()));
            let stack = MemStack::new(&mut memory);
            tridiag_in_place(reflections.as_mut(), coefficients.as_mut(), par, stack, Spec::default());
        }
        Ok(Self { scale, reflections, coefficients, threads })
    }

    /// Eigenvalues, descending, in `O(n²)`.
    pub fn values(&self) -> Result<Vec<f64>> {
        self.solve(None)
    }

    /// Eigenvalues, descending, and the first `leading` eigenvectors as rows; the entry of largest magnitude of each is positive.
    pub fn leading(&self, leading: usize) -> Result<(Vec<f64>, Array2<T>)> {
        let n = self.reflections.nrows();
        let mut vt = Array2::zeros((n, n));
        let values = self.solve(Some(transposed_mut(&mut vt)))?;
        // The kernel's order is ascending.
        let mut vt = vt.slice(s![n - leading..;-1, ..]).to_owned();
        if n > 1 {
            let par = self.par_vectors();
            let block = self.coefficients.nrows();
            let mut memory = MemBuffer::new(apply_scratch::<T>(n - 1, block, leading));
            apply(
                self.reflections.submatrix(1, 0, n - 1, n - 1),
                self.coefficients.as_ref(),
                Conj::No,
                transposed_mut(&mut vt).subrows_mut(1, n - 1),
                par,
                MemStack::new(&mut memory),
            );
        }
        if !vt.iter().all(|x| x.widen().is_finite()) {
            return Err(no_convergence(WHAT));
        }
        for mut v in vt.outer_iter_mut() {
            let largest = v
                .iter()
                .map(|x| x.widen())
                .fold(0.0f64, |best, x| if x.abs() > best.abs() { x } else { best });
            if largest < 0.0 {
                v.mapv_inplace(|x| T::zero() - x);
            }
        }
        Ok((values, vt))
    }

    fn par_vectors(&self) -> Par {
        if self.reflections.nrows() < PARALLEL_VECTORS { Par::Seq } else { self.threads.par() }
    }

    /// Eigenvalues, descending, and the eigenvectors of the tridiagonal matrix as columns, ascending, where they are asked for.
    fn solve(&self, vectors: Option<MatMut<'_, T>>) -> Result<Vec<f64>> {
        let n = self.reflections.nrows();
        if n == 0 {
            return Ok(Vec::new());
        }
        let (mut diagonal, mut below, mut values) = (Diag::zeros(n), Diag::zeros(n), Diag::zeros(n));
        for i in 0..n {
            diagonal[i] = self.reflections[(i, i)];
            if i + 1 < n {
                below[i] = self.reflections[(i + 1, i)];
            }
        }
        let par = self.par_vectors();
        let wanted = if vectors.is_some() { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
        let mut memory = MemBuffer::new(self_adjoint_evd_scratch::<T>(n, wanted, par, Spec::default()));
        let stack = MemStack::new(&mut memory);
        let (diagonal, below) = (diagonal.as_ref(), below.as_ref());
        tridiagonal_self_adjoint_evd(diagonal, below, values.as_mut(), vectors, par, stack, Spec::default())
            .map_err(|_| no_convergence(WHAT))?;
        let values: Vec<f64> = values.column_vector().iter().rev().map(|x| x.widen() / self.scale).collect();
        if !values.iter().all(|x| x.is_finite()) {
            return Err(no_convergence(WHAT));
        }
        Ok(values)
    }
}

/// `V diag(weights) Vᵀ` for non-negative weights and eigenvectors as the columns of `vectors`; exactly
/// symmetric.
pub(super) fn recompose(vectors: &ArrayRef2<f64>, weights: &[f64]) -> Array2<f64> {
    let mut rows = standard(&vectors.t());
    for (mut row, w) in rows.outer_iter_mut().zip(weights) {
        row.mapv_inplace(|x| x * w.sqrt());
    }
    gram(&rows, Threads::ONE)
}

/// The symmetric positive semi-definite root `S` of `C` (`S S = C`), its pseudo-inverse, and the rank:
/// eigenvalues below `1e-12` of the largest count as zero in the pseudo-inverse. `O(n³)`.
///
/// # Errors
/// Those of [`eigh`], and [`Error::NotPositiveSemiDefinite`] for an eigenvalue below `-1e-6` of the
/// largest magnitude (smaller negative ones are rounding, and taken as zero).
pub fn symmetric_root(c: &ArrayRef2<f64>) -> Result<(Array2<f64>, Array2<f64>, usize)> {
    let Eigh { values, vectors } = eigh(c, Threads::ONE)?;
    let top = values.first().copied().unwrap_or(0.0);
    if let Some(&least) = values.last()
        && least < -1e-6 * top.abs().max(least.abs())
    {
        return Err(Error::NotPositiveSemiDefinite(format!("it has the eigenvalue {least}")));
    }
    let kept = |x: f64| x > 0.0 && x >= 1e-12 * top;
    let rank = values.iter().filter(|&&x| kept(x)).count();
    let roots: Vec<f64> = values.iter().map(|x| x.max(0.0).sqrt()).collect();
    let inverse: Vec<f64> = values.iter().map(|&x| if kept(x) { 1.0 / x.sqrt() } else { 0.0 }).collect();
    Ok((recompose(&vectors, &roots), recompose(&vectors, &inverse), rank))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian, orthogonality};
    use super::*;
    use ndarray::array;

    #[test]
    fn decomposes() {
        for n in [1, 2, 5, 40, 150] {
            let a = gaussian(n, n, n as u64);
            let a = &a + &a.t();
            for threads in [Threads(1), Threads(2)] {
                let e = eigh(&a, threads).unwrap();
                assert!(orthogonality(&e.vectors) < 1e-12);
                assert!(e.values.windows(2).all(|w| w[0] >= w[1]));
                let d = Array2::from_diag(&ndarray::Array1::from(e.values.clone()));
                assert!(diff(&e.vectors.dot(&d).dot(&e.vectors.t()), &a) < 1e-11);
                let only = eigvalsh(&a, threads).unwrap();
                assert!(only.iter().zip(&e.values).all(|(x, y)| (x - y).abs() < 1e-11));
            }
        }
        assert!(eigh(&Array2::zeros((0, 0)), Threads(1)).unwrap().values.is_empty());
        assert_eq!(eigh(&Array2::zeros((3, 3)), Threads(1)).unwrap().values, vec![0.0; 3]);
    }

    #[test]
    fn bad_input() {
        assert!(matches!(eigh(&Array2::zeros((2, 3)), Threads(1)), Err(Error::Shape { .. })));
        assert!(matches!(eigh(&array![[f64::NAN]], Threads(1)), Err(Error::NonFinite { .. })));
        let huge = eigh(&array![[1e300, 0.0], [0.0, 2e300]], Threads(1)).unwrap();
        assert!((huge.values[0] / 2e300 - 1.0).abs() < 1e-14);
    }

    #[test]
    fn roots() {
        let x = gaussian(3, 5, 1);
        let c = gram(&x, Threads(1));
        let (root, inverse, rank) = symmetric_root(&c).unwrap();
        assert_eq!(rank, 3);
        assert!(diff(&root.dot(&root), &c) < 1e-12);
        assert!(diff(&root.dot(&inverse).dot(&root), &root) < 1e-7);
        assert_eq!(root, root.t());
        let (zero, zero_inverse, rank) = symmetric_root(&Array2::zeros((2, 2))).unwrap();
        assert_eq!((max_abs(&zero), max_abs(&zero_inverse), rank), (0.0, 0.0, 0));
        assert!(matches!(symmetric_root(&array![[-1.0]]), Err(Error::NotPositiveSemiDefinite(_))));
    }
}
