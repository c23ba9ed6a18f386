//! Tensor trains in `f64`: TT-SVD and alternating least squares.

use crate::error::Result;
use crate::linalg::{self, SvdOptions};
use crate::projection::{Descent, Objective, Run, Stop, descend, least_squares};
use ndarray::{Array1, Array2, IxDyn};

/// How rows and columns split into modes. Their products may exceed the shape: the rest is padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Modes {
    pub(crate) rows: Vec<usize>,
    pub(crate) cols: Vec<usize>,
}

impl Modes {
    /// `(out, in)` with padding.
    pub(crate) fn padded(&self) -> (usize, usize) {
        (self.rows.iter().product(), self.cols.iter().product())
    }

    /// Entries of core `k` per pair of ranks.
    fn entries(&self, k: usize) -> usize {
        self.rows[k] * self.cols[k]
    }

    /// The tensor `(m_1 n_1) (m_2 n_2) ...` of a matrix, zero-padded, as `m_1 n_1 x rest`.
    fn tensorize(&self, w: &Array2<f64>) -> Array2<f64> {
        let (d, (m, n)) = (self.rows.len(), self.padded());
        let mut padded = Array2::zeros((m, n));
        padded.slice_mut(ndarray::s![..w.nrows(), ..w.ncols()]).assign(w);
        let order: Vec<usize> = (0..d).flat_map(|k| [k, d + k]).collect();
        let shape: Vec<usize> = self.rows.iter().chain(&self.cols).copied().collect();
        let tensor = reshape_dyn(padded, &shape).permuted_axes(IxDyn(&order));
        let rest = m * n / self.entries(0);
        reshape(tensor.as_standard_layout().into_owned(), self.entries(0), rest)
    }

    /// The inverse of [`tensorize`](Self::tensorize), cut to `shape`.
    fn matricize(&self, tensor: Array2<f64>, (m, n): (usize, usize)) -> Array2<f64> {
        let (d, (rows, cols)) = (self.rows.len(), self.padded());
        let shape: Vec<usize> = self.rows.iter().zip(&self.cols).flat_map(|(m, n)| [*m, *n]).collect();
        let order: Vec<usize> = (0..d).map(|k| 2 * k).chain((0..d).map(|k| 2 * k + 1)).collect();
        let tensor = reshape_dyn(tensor, &shape).permuted_axes(IxDyn(&order));
        let padded = reshape(tensor.as_standard_layout().into_owned(), rows, cols);
        padded.slice(ndarray::s![..m, ..n]).to_owned()
    }
}

fn reshape_dyn(a: Array2<f64>, shape: &[usize]) -> ndarray::ArrayD<f64> {
    a.into_shape_with_order(IxDyn(shape)).expect("the same number of entries, in standard layout")
}

fn reshape<D: ndarray::Dimension>(a: ndarray::Array<f64, D>, rows: usize, cols: usize) -> Array2<f64> {
    a.into_shape_with_order((rows, cols)).expect("the same number of entries, in standard layout")
}

/// The cores of a tensor train: core `k` is `(r_{k-1} m_k n_k) x r_k`.
#[derive(Debug, Clone)]
pub(crate) struct Train {
    pub(crate) modes: Modes,
    pub(crate) cores: Vec<Array2<f64>>,
}

impl Train {
    /// TT-SVD with ranks at most `rank`, dropping at most `delta` (in norm) at each bond. Also whether each SVD was exact.
    pub(crate) fn svd(
        w: &Array2<f64>,
        modes: &Modes,
        rank: usize,
        delta: f64,
        run: &Run<'_>,
    ) -> Result<(Self, bool)> {
        let d = modes.rows.len();
        let (mut rest, mut exact) = (modes.tensorize(w), true);
        let mut cores = Vec::with_capacity(d);
        for k in 0..d - 1 {
            run.check()?;
            let svd = if delta > 0.0 {
                let full = linalg::svd(&rest, run.threads())?;
                let keep = (1..=full.rank()).find(|&r| full.tail_energy(r) <= delta * delta);
                full.truncate(keep.unwrap_or(full.rank()).min(rank))
            } else {
                let options = SvdOptions { seed: run.seed(), ..SvdOptions::default() };
                let found = linalg::truncated_svd(&rest, rank, &options, run.threads())?;
                exact &= found.exact;
                found.svd
            };
            let mut carry = svd.vt;
            carry.outer_iter_mut().zip(&svd.s).for_each(|(mut row, s)| row *= *s);
            cores.push(svd.u);
            let rows = carry.nrows() * modes.entries(k + 1);
            let cols = carry.len() / rows;
            rest = reshape(carry, rows, cols);
        }
        cores.push(rest);
        Ok((Self { modes: modes.clone(), cores }, exact))
    }

    /// The product of the cores before `k`: `entries x r_{k-1}`.
    fn left(&self, k: usize, run: &Run<'_>) -> Array2<f64> {
        self.cores[..k].iter().enumerate().fold(Array2::eye(1), |left, (l, core)| {
            let rank = left.ncols();
            let wide = linalg::matmul(&left, &reshape(core.clone(), rank, core.len() / rank), run.threads());
            let rows = left.nrows() * self.modes.entries(l);
            reshape(wide, rows, core.ncols())
        })
    }

    /// The product of the cores after `k`: `r_k x entries`.
    fn right(&self, k: usize, run: &Run<'_>) -> Array2<f64> {
        let cores = self.cores[k + 1..].iter().enumerate().rev();
        cores.fold(Array2::eye(1), |right, (l, core)| {
            let tall = linalg::matmul(core, &right, run.threads());
            let rank = core.nrows() / self.modes.entries(k + 1 + l);
            let cols = tall.len() / rank;
            reshape(tall, rank, cols)
        })
    }

    /// The matrix, of this shape.
    pub(crate) fn dense(&self, shape: (usize, usize), run: &Run<'_>) -> Array2<f64> {
        let last = self.cores.len() - 1;
        let tensor = linalg::matmul(
            &self.left(last, run),
            &reshape(self.cores[last].clone(), self.rank_before(last), self.modes.entries(last)),
            run.threads(),
        );
        self.modes.matricize(tensor, shape)
    }

    fn rank_before(&self, k: usize) -> usize {
        self.cores[k].nrows() / self.modes.entries(k)
    }

    /// Least squares in core `k`; the energy after it.
    fn update(&mut self, k: usize, w: &Array2<f64>, objective: &Objective<'_>, run: &Run<'_>) -> Result<f64> {
        let (left, right) = (self.left(k, run), self.right(k, run));
        let ((rows, cols), before, middle) = (self.cores[k].dim(), left.ncols(), self.modes.entries(k));
        let modes = &self.modes;
        let mut x = Array1::from_iter(self.cores[k].iter().copied());
        let matrix = |x: &Array1<f64>| Array2::from_shape_fn((rows, cols), |(i, j)| x[i * cols + j]);
        let expand = |x: &Array1<f64>| {
            let tail = linalg::matmul(&matrix(x), &right, run.threads());
            let tensor = linalg::matmul(&left, &reshape(tail, before, middle * right.ncols()), run.threads());
            modes.matricize(tensor, w.dim())
        };
        let adjoint = |e: &Array2<f64>| {
            let tensor = reshape(modes.tensorize(e), left.nrows(), middle * right.ncols());
            let head = linalg::matmul_tn(&left, &tensor, run.threads());
            let core = linalg::matmul_nt(&reshape(head, rows, right.ncols()), &right, run.threads());
            Array1::from_iter(core)
        };
        let energy = least_squares(w, objective, run, CG_STEPS, &mut x, expand, adjoint)?;
        self.cores[k] = matrix(&x);
        Ok(energy)
    }

    /// Moves the weight of core `k` to its left neighbour, leaving it with orthonormal rows.
    fn shift_left(&mut self, k: usize) {
        let (before, cols) = (self.rank_before(k), self.cores[k].ncols());
        let wide = reshape(self.cores[k].clone(), before, self.modes.entries(k) * cols);
        let linalg::Qr { q, r } = linalg::qr(&wide.t());
        let rank = q.ncols();
        let core = q.t().as_standard_layout().into_owned();
        self.cores[k] = reshape(core, rank * self.modes.entries(k), cols);
        self.cores[k - 1] = linalg::matmul_nt(&self.cores[k - 1], &r, linalg::Threads::ONE);
    }

    /// Moves the weight of core `k` to its right neighbour, leaving it with orthonormal columns.
    fn shift_right(&mut self, k: usize) {
        let linalg::Qr { q, r } = linalg::qr(&self.cores[k]);
        let (next, cols) = (&self.cores[k + 1], self.cores[k + 1].ncols());
        let wide = reshape(next.clone(), r.ncols(), next.len() / r.ncols());
        let moved = linalg::matmul(&r, &wide, linalg::Threads::ONE);
        let rows = moved.len() / cols;
        self.cores[k + 1] = reshape(moved, rows, cols);
        self.cores[k] = q;
    }

    /// Alternating least squares: cores from the last to the first and back. With orthonormal neighbours each system is
    /// well conditioned, and one step solves it without activations and padding.
    pub(crate) fn improve(
        self,
        w: &Array2<f64>,
        objective: &Objective<'_>,
        sweeps: usize,
        run: &Run<'_>,
    ) -> Result<Descent<Self>> {
        let energy = objective.energy(&(w - &self.dense(w.dim(), run)));
        let scale = objective.energy(w);
        // Below the rounding level of the energy there is nothing to gain.
        let stop = Stop { sweeps: if energy <= 1e-26 * scale { 0 } else { sweeps }, tolerance: 1e-4 };
        let last = self.cores.len() - 1;
        descend(run, stop, scale, self, energy, |train, _, _| {
            for k in (1..=last).rev() {
                train.update(k, w, objective, run)?;
                train.shift_left(k);
            }
            let mut energy = 0.0;
            for k in 0..=last {
                energy = train.update(k, w, objective, run)?;
                if k < last {
                    train.shift_right(k);
                }
            }
            Ok(energy)
        })
    }
}

/// Conjugate gradient steps per core and visit.
const CG_STEPS: usize = 8;

/// Splits `size` into `d` modes of about equal size, in factors of `size` where it has suitable ones, else with padding.
pub(crate) fn balanced(size: usize, d: usize) -> Vec<usize> {
    let mut rest = size.max(1);
    let mut modes = Vec::with_capacity(d);
    for left in (1..=d).rev() {
        let root = (rest as f64).powf(1.0 / left as f64);
        let distance = |m: &usize| (*m as f64 / root).ln().abs();
        let near = (root / 2.0).ceil().max(1.0) as usize..=(2.0 * root) as usize;
        let divisor =
            near.filter(|m| rest.is_multiple_of(*m)).min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let mode = if left == 1 { rest } else { divisor.unwrap_or((root.round() as usize).max(1)) };
        modes.push(mode);
        rest = rest.div_ceil(mode);
    }
    modes
}
