//! Symmetric positive definite systems.

use super::convert::{Operand, row_major_mut, standard};
use super::eigen::recompose;
use super::{Eigh, Threads, check_finite, check_square, eigh, eigvalsh, matmul};
use crate::error::{Error, Result};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{MatMut, Par, Spec};
use ndarray::{Array2, ArrayRef2};

/// A Cholesky factorisation `A = L Lᵀ`.
#[derive(Debug, Clone)]
pub struct Cholesky {
    /// Lower triangular with a positive diagonal, `n x n`.
    pub l: Array2<f64>,
}

impl Cholesky {
    /// `L⁻¹ X` in the place of `X`, `n x k` in standard layout, in `n² k` flops.
    pub(super) fn solve_lower(&self, x: &mut Array2<f64>, threads: Threads) {
        if !x.is_empty() {
            let l = Operand::new(&self.l);
            solve_lower_triangular_in_place(l.mat(), row_major_mut(x), threads.par());
        }
    }
}

/// Cholesky factorisation of a symmetric positive definite `n x n` matrix in `n³ / 3` flops. Only the
/// lower triangle is read.
///
/// # Errors
/// [`Error::Shape`] unless square, [`Error::NonFinite`] for NaN or infinite entries,
/// [`Error::NotPositiveSemiDefinite`] when a pivot is not positive.
pub fn cholesky(a: &ArrayRef2<f64>) -> Result<Cholesky> {
    let n = check_square("positive definite matrix", a)?;
    check_finite("positive definite matrix", a)?;
    let mut l = Array2::from_shape_fn((n, n), |(i, j)| if j <= i { a[[i, j]] } else { 0.0 });
    if n == 0 {
        return Ok(Cholesky { l });
    }
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Spec::default()));
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(row_major_mut(&mut l), Default::default(), Par::Seq, stack, Spec::default())
        .map_err(|error| Error::NotPositiveSemiDefinite(format!("Cholesky: {error}")))?;
    if l.iter().any(|x| !x.is_finite()) || l.diag().iter().any(|&x| x <= 0.0) {
        return Err(Error::NotPositiveSemiDefinite("Cholesky: a pivot vanished".into()));
    }
    // The kernel may use the strict upper triangle as scratch.
    for i in 0..n {
        l.row_mut(i).iter_mut().skip(i + 1).for_each(|x| *x = 0.0);
    }
    Ok(Cholesky { l })
}

/// Cholesky factor of `A + shift I`: with shift 0 when `A` is positive definite, else with the usual
/// `1e-6 mean(diag A) - λ_min` (1e-6 for a zero matrix). Returns `(L, shift)`. `O(n³)`.
///
/// # Errors
/// [`Error::Shape`] unless square, [`Error::NonFinite`] for NaN or infinite entries,
/// [`Error::NotPositiveSemiDefinite`] when no shift in range helps.
pub fn cholesky_shifted(a: &ArrayRef2<f64>) -> Result<(Array2<f64>, f64)> {
    match cholesky(a) {
        Ok(factor) => return Ok((factor.l, 0.0)),
        Err(Error::NotPositiveSemiDefinite(_)) => {}
        Err(other) => return Err(other),
    }
    let n = a.nrows();
    let least = eigvalsh(a, Threads::ONE)?.last().copied().unwrap_or(0.0);
    let mean = a.diag().iter().map(|x| x.abs()).sum::<f64>() / n as f64;
    let unit = 1e-6 * if mean > 0.0 { mean } else { 1.0 };
    let mut shift = unit - least;
    // Rounding in the smallest eigenvalue can exceed the margin for matrices of huge norm.
    for _ in 0..40 {
        let mut shifted = standard(a);
        shifted.diag_mut().mapv_inplace(|x| x + shift);
        match cholesky(&shifted) {
            Ok(factor) => return Ok((factor.l, shift)),
            Err(Error::NotPositiveSemiDefinite(_)) => shift = 2.0 * shift.max(unit),
            Err(other) => return Err(other),
        }
    }
    Err(Error::NotPositiveSemiDefinite("no diagonal shift makes it so".into()))
}

/// Solves with `G + ridge tr(G)/n I` for a positive semi-definite `G`, factorised once.
///
/// A system too singular to factorise is solved in the least-squares sense, through the
/// pseudo-inverse, so that results stay finite; for `G = 0` the solution is 0.
#[derive(Debug, Clone)]
pub struct SpdSolver {
    factor: Factor,
    threads: Threads,
}

#[derive(Debug, Clone)]
enum Factor {
    Lower(Array2<f64>),
    PseudoInverse(Array2<f64>),
}

impl SpdSolver {
    /// Factorises `G + relative_ridge tr(G)/n I` (`n x n`) in `O(n³)`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless square, [`Error::NonFinite`] for NaN or infinite entries,
    /// [`Error::Parameter`] for a negative or non-finite ridge, [`Error::NoConvergence`] when the
    /// eigendecomposition of a singular system fails.
    pub fn new(gram: &ArrayRef2<f64>, relative_ridge: f64) -> Result<Self> {
        let n = check_square("Gram matrix", gram)?;
        check_finite("Gram matrix", gram)?;
        if !(relative_ridge >= 0.0 && relative_ridge.is_finite()) {
            return Err(Error::parameter("relative_ridge", relative_ridge, "a finite number >= 0"));
        }
        let mut system = standard(gram);
        // Dividing first keeps the trace of huge diagonals finite.
        let mean: f64 = system.diag().iter().map(|x| x / n as f64).sum();
        system.diag_mut().mapv_inplace(|x| x + relative_ridge * mean.max(0.0));
        let factor = match cholesky(&system) {
            Ok(Cholesky { l }) if well_conditioned(&l) => Factor::Lower(l),
            Ok(_) | Err(Error::NotPositiveSemiDefinite(_)) => Factor::PseudoInverse(inverse(&system)?),
            Err(other) => return Err(other),
        };
        Ok(Self { factor, threads: Threads::ONE })
    }

    /// Lets the solves use threads (one by default).
    pub fn with_threads(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// Order of the system.
    pub fn order(&self) -> usize {
        match &self.factor {
            Factor::Lower(m) | Factor::PseudoInverse(m) => m.nrows(),
        }
    }

    /// Whether the system was too singular to factorise, so that the pseudo-inverse serves.
    pub fn is_singular(&self) -> bool {
        matches!(self.factor, Factor::PseudoInverse(_))
    }

    /// `X` with `G X = rhs`, both `n x k`, in `2 n² k` flops.
    ///
    /// # Panics
    /// When `rhs` does not have `n` rows.
    pub fn solve(&self, rhs: &ArrayRef2<f64>) -> Array2<f64> {
        assert_eq!(rhs.nrows(), self.order(), "SpdSolver::solve: rows of the right-hand side");
        match &self.factor {
            Factor::Lower(l) => {
                let mut x = standard(rhs);
                self.substitute(l, row_major_mut(&mut x));
                x
            }
            Factor::PseudoInverse(inverse) => matmul(inverse, rhs, self.threads),
        }
    }

    /// `X` with `X G = rhs`, both `k x n`, in `2 n² k` flops.
    ///
    /// # Panics
    /// When `rhs` does not have `n` columns.
    pub fn solve_right(&self, rhs: &ArrayRef2<f64>) -> Array2<f64> {
        assert_eq!(rhs.ncols(), self.order(), "SpdSolver::solve_right: columns of the right-hand side");
        match &self.factor {
            Factor::Lower(l) => {
                // G is symmetric: X G = R is G Xᵀ = Rᵀ, and Rᵀ is R read column by column.
                let mut x = standard(rhs);
                self.substitute(l, row_major_mut(&mut x).transpose_mut());
                x
            }
            Factor::PseudoInverse(inverse) => matmul(rhs, inverse, self.threads),
        }
    }

    fn substitute(&self, l: &Array2<f64>, mut x: MatMut<'_, f64>) {
        if x.nrows() == 0 || x.ncols() == 0 {
            return;
        }
        let l = Operand::new(l);
        let par = self.threads.par();
        solve_lower_triangular_in_place(l.mat(), x.as_mut(), par);
        solve_upper_triangular_in_place(l.mat().transpose(), x, par);
    }
}

/// Whether triangular solves with `l` mean anything: its pivots span less than the precision.
fn well_conditioned(l: &Array2<f64>) -> bool {
    let (least, most) = l.diag().iter().fold((f64::INFINITY, 0.0f64), |(a, b), &x| (a.min(x), b.max(x)));
    let ratio = least / most;
    l.nrows() == 0 || (most.is_normal() && ratio * ratio > 4.0 * f64::EPSILON * l.nrows() as f64)
}

/// Pseudo-inverse of a positive semi-definite matrix: eigenvalues at rounding level count as zero.
fn inverse(system: &ArrayRef2<f64>) -> Result<Array2<f64>> {
    let Eigh { values, vectors } = eigh(system, Threads::ONE)?;
    let top = values.first().copied().unwrap_or(0.0).max(0.0);
    let floor = (top * f64::EPSILON * 4.0 * values.len() as f64).max(f64::MIN_POSITIVE);
    let weights: Vec<f64> = values.iter().map(|&x| if x > floor { 1.0 / x } else { 0.0 }).collect();
    Ok(recompose(&vectors, &weights))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian};
    use super::super::{Threads, gram};
    use super::*;
    use ndarray::array;

    #[test]
    fn factors() {
        for n in [1, 2, 30, 200] {
            let g = gram(&gaussian(n + 5, n, 1), Threads(1));
            let l = cholesky(&g).unwrap().l;
            assert!(diff(&l.dot(&l.t()), &g) < 1e-10);
            assert!(l.indexed_iter().all(|((i, j), &x)| j <= i || x == 0.0));
            assert_eq!(cholesky_shifted(&g).unwrap().1, 0.0);
        }
        assert_eq!(cholesky(&Array2::zeros((0, 0))).unwrap().l.dim(), (0, 0));
        assert!(matches!(cholesky(&array![[-1.0]]), Err(Error::NotPositiveSemiDefinite(_))));
        assert!(matches!(cholesky(&Array2::zeros((1, 2))), Err(Error::Shape { .. })));
    }

    #[test]
    fn shifts() {
        for a in [array![[1.0, 2.0], [2.0, 1.0]], Array2::zeros((3, 3)), array![[-5.0]]] {
            let (l, shift) = cholesky_shifted(&a).unwrap();
            assert!(shift > 0.0);
            let mut want = a.clone();
            want.diag_mut().mapv_inplace(|x| x + shift);
            assert!(diff(&l.dot(&l.t()), &want) < 1e-12);
        }
    }

    #[test]
    fn solves_both_sides() {
        let g = gram(&gaussian(60, 40, 2), Threads(1));
        let x = gaussian(40, 7, 3);
        for threads in [Threads(1), Threads(2)] {
            let solver = SpdSolver::new(&g, 0.0).unwrap().with_threads(threads);
            assert!(!solver.is_singular());
            assert!(diff(&solver.solve(&g.dot(&x)), &x) < 1e-10);
            let xt = x.t().to_owned();
            assert!(diff(&solver.solve_right(&xt.dot(&g)), &xt) < 1e-10);
            assert_eq!(solver.solve(&Array2::zeros((40, 0))).dim(), (40, 0));
        }
        let mut ridged = g.clone();
        let ridge = 0.1 * g.diag().sum() / 40.0;
        ridged.diag_mut().mapv_inplace(|x| x + ridge);
        let got = SpdSolver::new(&g, 0.1).unwrap().solve(&ridged.dot(&x));
        assert!(diff(&got, &x) < 1e-10);
    }

    #[test]
    fn singular_systems_stay_finite() {
        let g = gram(&gaussian(3, 8, 4), Threads(1));
        let solver = SpdSolver::new(&g, 0.0).unwrap();
        assert!(solver.is_singular());
        let rhs = g.dot(&gaussian(8, 2, 5));
        assert!(diff(&g.dot(&solver.solve(&rhs)), &rhs) < 1e-9);
        let zero = SpdSolver::new(&Array2::zeros((3, 3)), 1e-3).unwrap();
        assert_eq!(zero.solve(&Array2::ones((3, 2))), Array2::<f64>::zeros((3, 2)));
        assert_eq!(zero.solve_right(&Array2::ones((2, 3))), Array2::<f64>::zeros((2, 3)));
        assert!(SpdSolver::new(&g, f64::NAN).is_err());
    }
}
