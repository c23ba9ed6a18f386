//! Projection onto a grid of low-rank blocks.

use crate::error::Result;
use crate::linalg::{self, SpdSolver, Threads};
use crate::projection::{Descent, Fit, Objective, Run, Stop, descend};
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, Axis, CowArray, Ix2, s};
use rayon::prelude::*;

/// Sizes of a grid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    /// `(J, K)`.
    pub(super) blocks: (usize, usize),
    /// Rows and columns of a block.
    pub(super) sides: (usize, usize),
    pub(super) rank: usize,
}

/// One block row: `[U_1 .. U_K]` (`s x K t`) and `V_1 .. V_K` one below the other (`K t x p`).
#[derive(Debug, Clone)]
pub(super) struct BlockRow {
    pub(super) u: Array2<f64>,
    pub(super) v: Array2<f64>,
}

/// Cut-off of singular Gram matrices, relative to their mean eigenvalue.
const RIDGE: f64 = 1e-10;

/// The block rows of the best grid found. Row `sigma` of block row `lambda` is row `row_feature(lambda, sigma)` of `w`, or padding.
pub(super) fn fit(
    w: &Array2<f64>,
    grid: Grid,
    row_feature: impl Fn(usize, usize) -> usize,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<Fit<Vec<BlockRow>>> {
    let (j, k) = grid.blocks;
    let rows = Rows { w, grid, row_feature: &row_feature };
    let plain = blockwise(rows, &|_, block| block.into(), run)?;
    let Some(c) = objective.second_moment() else {
        return Ok(Fit::optimal(plain));
    };
    let padded = rows.padded();
    let weighting = Weighting::new(&padded, c, grid, run.threads())?;
    // Optimal where C couples no two block columns: the left singular vectors of W_jk C_kk^{1/2}.
    let roots: Vec<Array2<f64>> =
        weighting.diagonal.iter().map(|c| Ok(linalg::symmetric_root(c)?.0)).collect::<Result<_>>()?;
    let uncoupled = blockwise(rows, &|kappa, block| block.dot(&roots[kappa]).into(), run)?;
    if k == 1 {
        return Ok(Fit::optimal(uncoupled));
    }
    let energy =
        |rows: &[BlockRow]| (0..j).map(|lambda| weighting.energy(lambda, &rows[lambda])).sum::<f64>();
    let start =
        [plain, uncoupled].into_iter().map(|rows| (energy(&rows), rows)).min_by(|a, b| a.0.total_cmp(&b.0));
    let Some((start_energy, start)) = start else { return Ok(Fit::optimal(Vec::new())) };
    let stop = Stop { sweeps: 30, tolerance: 1e-4 };
    let Descent { state, history, .. } =
        descend(run, stop, weighting.total(), start, start_energy, |rows, _, _| {
            weighting.sweep(rows, run.threads())
        })?;
    Ok(Fit::local(state, history))
}

/// The weights, and which of their rows a block row has.
#[derive(Clone, Copy)]
struct Rows<'a> {
    w: &'a Array2<f64>,
    grid: Grid,
    row_feature: &'a dyn Fn(usize, usize) -> usize,
}

impl Rows<'_> {
    /// Row `sigma` of block row `lambda`; `None` for padding.
    fn row(&self, lambda: usize, sigma: usize) -> Option<ArrayView1<'_, f64>> {
        let row = (self.row_feature)(lambda, sigma);
        (row < self.w.nrows()).then(|| self.w.row(row))
    }

    /// All block rows, one below the other.
    fn padded(&self) -> Array2<f64> {
        let ((j, k), (s, p)) = (self.grid.blocks, self.grid.sides);
        let mut padded = Array2::zeros((j * s, k * p));
        for (r, mut to) in padded.outer_iter_mut().enumerate() {
            if let Some(row) = self.row(r / s, r % s) {
                to.slice_mut(s![..row.len()]).assign(&row);
            }
        }
        padded
    }

    /// The blocks of a block row, one after the other.
    fn copy(&self, lambda: usize, blocks: &mut Array3<f64>) {
        for (sigma, mut rows) in blocks.axis_iter_mut(Axis(1)).enumerate() {
            let Some(row) = self.row(lambda, sigma) else {
                rows.fill(0.0);
                continue;
            };
            for (mut to, from) in rows.outer_iter_mut().zip(row.axis_chunks_iter(Axis(0), self.grid.sides.1))
            {
                to.slice_mut(s![..from.len()]).assign(&from);
            }
        }
    }
}

/// What is done to a block of a block column before it is decomposed.
type Whiten<'w> = dyn for<'a> Fn(usize, ArrayView2<'a, f64>) -> CowArray<'a, f64, Ix2> + Sync + 'w;

/// Every block by its leading left singular vectors after `whiten`: `U = P sqrt(S)`, `V = sqrt(S)^-1 Pᵀ W_jk`.
fn blockwise(of: Rows<'_>, whiten: &Whiten<'_>, run: &Run<'_>) -> Result<Vec<BlockRow>> {
    let ((j, k), (s, p), t) = (of.grid.blocks, of.grid.sides, of.grid.rank);
    let mut rows = Vec::with_capacity(j);
    let mut blocks = Array3::zeros((k, s, p));
    for lambda in 0..j {
        run.check()?;
        of.copy(lambda, &mut blocks);
        let whitened: Vec<CowArray<'_, f64, Ix2>> =
            blocks.outer_iter().enumerate().map(|(kappa, block)| whiten(kappa, block)).collect();
        let views: Vec<_> = whitened.iter().map(|block| block.view()).collect();
        let (mut u, mut v) = (Array2::zeros((s, k * t)), Array2::zeros((k * t, p)));
        let triplets = linalg::batched_leading_triplets(&views, t, run.threads())?;
        for (kappa, (svd, block)) in triplets.into_iter().zip(blocks.outer_iter()).enumerate() {
            for (rho, left) in svd.u.columns().into_iter().enumerate() {
                let mut right = Array1::zeros(p);
                linalg::add_rows(&block, &left.to_owned(), &mut right);
                // Its norm is the singular value where nothing was whitened; balance the two factors by it.
                let scale = right.dot(&right).powf(0.25);
                if scale > 0.0 {
                    u.column_mut(kappa * t + rho).assign(&(&left * scale));
                    v.row_mut(kappa * t + rho).assign(&(right / scale));
                }
            }
        }
        rows.push(BlockRow { u, v });
    }
    Ok(rows)
}

/// What the weighted sweeps need of `W` and `C`, on padded columns.
struct Weighting {
    grid: Grid,
    c: Array2<f64>,
    /// `W C`, block rows one below the other.
    wc: Array2<f64>,
    /// `tr(W_j C W_jᵀ)` of each block row.
    totals: Vec<f64>,
    /// The diagonal blocks of `C`, and their solvers.
    diagonal: Vec<Array2<f64>>,
    solvers: Vec<SpdSolver>,
}

impl Weighting {
    fn new(padded: &Array2<f64>, c: &Array2<f64>, grid: Grid, threads: Threads) -> Result<Self> {
        let ((j, k), (s, p)) = (grid.blocks, grid.sides);
        let n = c.nrows();
        let mut wide = Array2::zeros((k * p, k * p));
        wide.slice_mut(s![..n, ..n]).assign(c);
        let wc = linalg::matmul(padded, &wide, threads);
        let rows = |a: &Array2<f64>, lambda: usize| a.slice(s![lambda * s..(lambda + 1) * s, ..]).to_owned();
        let totals = (0..j).map(|lambda| (rows(&wc, lambda) * rows(padded, lambda)).sum()).collect();
        let diagonal: Vec<Array2<f64>> =
            (0..k).map(|b| wide.slice(s![b * p..(b + 1) * p, b * p..(b + 1) * p]).to_owned()).collect();
        let solvers = diagonal.iter().map(|c| SpdSolver::new(c, RIDGE)).collect::<Result<_>>()?;
        Ok(Self { grid, c: wide, wc, totals, diagonal, solvers })
    }

    /// `tr(W C Wᵀ)`.
    fn total(&self) -> f64 {
        self.totals.iter().sum()
    }

    fn wc(&self, lambda: usize) -> ArrayView2<'_, f64> {
        let s = self.grid.sides.0;
        self.wc.slice(s![lambda * s..(lambda + 1) * s, ..])
    }

    fn wc_block(&self, lambda: usize, kappa: usize) -> ArrayView2<'_, f64> {
        let p = self.grid.sides.1;
        self.wc(lambda).slice_move(s![.., kappa * p..(kappa + 1) * p])
    }

    fn c_block(&self, a: usize, b: usize) -> ArrayView2<'_, f64> {
        let p = self.grid.sides.1;
        self.c.slice(s![a * p..(a + 1) * p, b * p..(b + 1) * p])
    }

    /// `V C Vᵀ` (`K t x K t`) and `W C Vᵀ` (`s x K t`), with `V` the block diagonal of the right factors.
    fn grams(&self, lambda: usize, v: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
        let (k, t, s) = (self.grid.blocks.1, self.grid.rank, self.grid.sides.0);
        let part = |kappa: usize| v.slice(s![kappa * t..(kappa + 1) * t, ..]);
        let (mut gram, mut cross) = (Array2::zeros((k * t, k * t)), Array2::zeros((s, k * t)));
        for a in 0..k {
            let columns = s![.., a * t..(a + 1) * t];
            cross.slice_mut(columns).assign(&self.wc_block(lambda, a).dot(&part(a).t()));
            for b in 0..=a {
                let block = part(a).dot(&self.c_block(a, b)).dot(&part(b).t());
                gram.slice_mut(s![a * t..(a + 1) * t, b * t..(b + 1) * t]).assign(&block);
                gram.slice_mut(s![b * t..(b + 1) * t, a * t..(a + 1) * t]).assign(&block.t());
            }
        }
        (gram, cross)
    }

    /// `tr((W - U V) C (W - U V)ᵀ)` from the Gram matrices.
    fn energy_of(&self, lambda: usize, u: &Array2<f64>, gram: &Array2<f64>, cross: &Array2<f64>) -> f64 {
        (self.totals[lambda] - 2.0 * (u * cross).sum() + (u.dot(gram) * u).sum()).max(0.0)
    }

    fn energy(&self, lambda: usize, row: &BlockRow) -> f64 {
        let (gram, cross) = self.grams(lambda, &row.v);
        self.energy_of(lambda, &row.u, &gram, &cross)
    }

    /// One pass over all right factors, then all left ones, of every block row; the new energy.
    fn sweep(&self, rows: &mut [BlockRow], threads: Threads) -> Result<f64> {
        let one = |(lambda, row): (usize, &mut BlockRow)| self.sweep_row(lambda, row);
        let energies: Vec<f64> = match threads.0 {
            0 | 1 => rows.iter_mut().enumerate().map(one).collect::<Result<_>>()?,
            _ => rows.par_iter_mut().enumerate().map(one).collect::<Result<_>>()?,
        };
        Ok(energies.iter().sum())
    }

    fn sweep_row(&self, lambda: usize, row: &mut BlockRow) -> Result<f64> {
        let (k, t) = (self.grid.blocks.1, self.grid.rank);
        let before = self.energy(lambda, row);
        let mut next = row.clone();
        let left = next.u.t().dot(&next.u);
        for kappa in 0..k {
            let range = kappa * t..(kappa + 1) * t;
            // U_kᵀ (E C)_k, with the error E before this block's own contribution.
            let mut rhs = next.u.slice(s![.., range.clone()]).t().dot(&self.wc_block(lambda, kappa));
            for other in (0..k).filter(|other| *other != kappa) {
                let mixed = left.slice(s![range.clone(), other * t..(other + 1) * t]);
                let seen = next.v.slice(s![other * t..(other + 1) * t, ..]).dot(&self.c_block(other, kappa));
                rhs -= &mixed.dot(&seen);
            }
            let gram = left.slice(s![range.clone(), range.clone()]).to_owned();
            let half = SpdSolver::new(&gram, RIDGE)?.solve(&rhs);
            next.v.slice_mut(s![range, ..]).assign(&self.solvers[kappa].solve_right(&half));
        }
        let (gram, cross) = self.grams(lambda, &next.v);
        next.u = SpdSolver::new(&gram, RIDGE)?.solve_right(&cross);
        let energy = self.energy_of(lambda, &next.u, &gram, &cross);
        // A ridge can cost a little; keep what was better.
        Ok(if energy < before {
            *row = next;
            energy
        } else {
            before
        })
    }
}
