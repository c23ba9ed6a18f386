//! Fitting [`Blast`]: sweeps over $U$, $V$ and $s$, plain and weighted, from several starts.

use super::{Blast, BlastMethod, BlastSpec, block_range, slot};
use crate::error::Result;
use crate::linalg::{self, SpdSolver, SvdOptions, Threads, matmul, matmul_nt, matmul_tn};
use crate::projection::{Objective, Run, Stop, descend};
use crate::random::Gaussian;
use crate::storage::{Factor, Storage};
use ndarray::{Array1, Array2, Array3, ArrayRef2, ArrayView1, Axis, s};
use rayon::prelude::*;
use std::ops::Range;

/// Sweeps of the block solves.
pub(super) const SWEEPS: usize = 100;
/// Steps of the gradient method.
pub(super) const GRADIENT_STEPS: usize = 300;
/// Entries of a weight up to which the gradient method is tried as one more start.
const SMALL: usize = 1 << 16;
/// Such starts at most, for matrices much smaller than that.
const MOST_RANDOM: usize = 4;
/// Of the sweeps, one in so many is spent on every start; then the best goes on alone.
const TRIAL_SHARE: usize = 8;
/// Ridge of the exact solves, relative to each diagonal entry.
const RIDGE: f64 = 1e-10;
/// Below this relative energy the residual is formed: differences of Gram matrices no longer resolve it.
const NEARLY_EXACT: f64 = 1e-6;
/// Sweeps end when they lower the energy by less than this fraction.
const TOLERANCE: f64 = 1e-6;

/// A member, in `f64`.
#[derive(Debug, Clone)]
pub(super) struct Factors {
    /// `m x r`.
    u: Array2<f64>,
    /// `b1 x b2 x r`.
    s: Array3<f64>,
    /// `n x r`.
    v: Array2<f64>,
}

impl Factors {
    pub(super) fn zeros((m, n): (usize, usize), (b1, b2): (usize, usize), rank: usize) -> Self {
        Self { u: Array2::zeros((m, rank)), s: Array3::zeros((b1, b2, rank)), v: Array2::zeros((n, rank)) }
    }

    fn blocks(&self) -> (usize, usize) {
        (self.s.dim().0, self.s.dim().1)
    }

    /// Makes block `(i, j)` the product of `left` and the transpose of `right`, in the components that it owns.
    pub(super) fn set_block(&mut self, i: usize, j: usize, left: &ArrayRef2<f64>, right: &ArrayRef2<f64>) {
        let (b1, b2) = self.blocks();
        let own = slot(i, j, (b1, b2), self.u.ncols());
        let own = own.start..own.start + left.ncols();
        let (rows, cols) = (block_range(i, b1, self.u.nrows()), block_range(j, b2, self.v.nrows()));
        self.u.slice_mut(s![rows, own.clone()]).assign(left);
        self.v.slice_mut(s![cols, own.clone()]).assign(right);
        self.s.slice_mut(s![i, j, own]).fill(1.0);
    }

    pub(super) fn store(&self, storage: Storage) -> Result<Blast> {
        let s = Factor::from_fn(storage, self.s.dim(), |i, j, k| self.s[[i, j, k]]);
        Blast::new(Factor::from_matrix(storage, &self.u), s, Factor::from_matrix(storage, &self.v))
    }
}

/// Fits `spec`; the factors and the history of the objective.
pub(super) fn fit(
    w: &Array2<f64>,
    spec: &BlastSpec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<(Factors, Vec<f64>)> {
    let plain = Problem::new(w, spec.blocks, None, run.threads())?;
    let (best, history) = match spec.method {
        BlastMethod::Solves => {
            let mut starts = vec![low_rank(w, None, spec, run)?];
            if spec.rank >= spec.blocks.0.max(spec.blocks.1) {
                starts.push(block_low_rank(w, spec, run)?);
            }
            let (mut best, mut history) = plain.solve(starts, spec.sweeps, run)?;
            // A gradual descent from a small random start sometimes ends lower.
            for stream in 0..(SMALL / w.len()).min(MOST_RANDOM) as u64 {
                let (start, _) =
                    plain.descend_gradient(spec.rank, GRADIENT_STEPS, (0.1, 0.0), stream, run)?;
                let (other, more) = plain.solve(vec![start], spec.sweeps, run)?;
                if plain.energy(&other) < plain.energy(&best) {
                    (best, history) = (other, more);
                }
            }
            (best, history)
        }
        BlastMethod::Gradient { delta, end_factor } => {
            plain.descend_gradient(spec.rank, spec.sweeps, (delta, end_factor), 0, run)?
        }
    };
    let Some(c) = objective.second_moment() else { return Ok((best, history)) };
    let starts = vec![best, low_rank(w, Some(c), spec, run)?];
    Problem::new(w, spec.blocks, Some(c), run.threads())?.solve(starts, spec.sweeps, run)
}

/// The best low-rank matrix, weighted when `c` is given (then `P Pᵀ W`): all diagonals are 1.
fn low_rank(w: &Array2<f64>, c: Option<&Array2<f64>>, spec: &BlastSpec, run: &Run<'_>) -> Result<Factors> {
    let options = SvdOptions { seed: run.seed(), ..SvdOptions::default() };
    let truncated = |a: &Array2<f64>| linalg::truncated_svd(a, spec.rank, &options, run.threads());
    let (mut u, mut v) = match c {
        None => {
            let svd = truncated(w)?.svd;
            let v = svd.vt.t().to_owned() * &Array1::from(svd.s);
            (svd.u, v)
        }
        Some(c) => {
            let (root, ..) = linalg::symmetric_root(c)?;
            let u = truncated(&matmul(w, &root, run.threads()))?.svd.u;
            let v = matmul_tn(w, &u, run.threads());
            (u, v)
        }
    };
    // Both sides with the same norm.
    for (mut u, mut v) in u.axis_iter_mut(Axis(1)).zip(v.axis_iter_mut(Axis(1))) {
        let root = v.dot(&v).powf(0.25);
        if root > 0.0 {
            u *= root;
            v /= root;
        }
    }
    Ok(Factors { s: Array3::ones((spec.blocks.0, spec.blocks.1, u.ncols())), u, v })
}

/// The best low-rank approximation of every block, in the components that it owns.
fn block_low_rank(w: &Array2<f64>, spec: &BlastSpec, run: &Run<'_>) -> Result<Factors> {
    let ((m, n), (b1, b2), rank) = (w.dim(), spec.blocks, spec.rank);
    let mut factors = Factors::zeros((m, n), (b1, b2), rank);
    // Columns that no block owns must not be zero, or no step would ever change them; they count for nothing while `s` is 0.
    let scale = (w.iter().map(|a| a * a).sum::<f64>() / (m * n) as f64).sqrt().sqrt();
    let mut gaussian = run.gaussian(1);
    factors.u.mapv_inplace(|_| scale * gaussian.sample());
    factors.v.mapv_inplace(|_| scale * gaussian.sample());
    let found = each(run.threads(), b1 * b2, |k| {
        run.check()?;
        let (i, j) = (k / b2, k % b2);
        let block = w.slice(s![block_range(i, b1, m), block_range(j, b2, n)]);
        Ok(linalg::leading_triplets(&block, slot(i, j, (b1, b2), rank).len())?.split_sqrt(rank))
    })?;
    for (k, (left, right)) in found.iter().enumerate() {
        factors.set_block(k / b2, k % b2, left, &right.t());
    }
    Ok(factors)
}

/// `f(0), f(1), ...`, on the thread pool when `threads` allows more than one.
fn each<R: Send>(
    threads: Threads,
    count: usize,
    f: impl Fn(usize) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    if threads.0 <= 1 || count < 2 {
        return (0..count).map(f).collect();
    }
    (0..count).into_par_iter().with_min_len(count.div_ceil(threads.0)).map(f).collect()
}

/// Relaxation of a step, and what is added to its Gram matrices.
#[derive(Debug, Clone, Copy)]
struct Step {
    weight: f64,
    ridge: Ridge,
}

#[derive(Debug, Clone, Copy)]
enum Ridge {
    /// This fraction of each diagonal entry.
    Relative(f64),
    /// This multiple of the current error, on the diagonal.
    OfError(f64),
}

/// The Gram matrix of a step, regularised and factorised.
struct Solver {
    scale: Array1<f64>,
    inner: SpdSolver,
}

impl Solver {
    fn new(mut gram: Array2<f64>, ridge: Ridge, error: f64) -> Result<Self> {
        let (scale, relative) = match ridge {
            // Equal diagonals: components of very different size are solved for equally well.
            Ridge::Relative(ridge) => {
                let scale = gram.diag().mapv(|d| if d > 0.0 { d.sqrt().recip() } else { 1.0 });
                for (mut row, a) in gram.outer_iter_mut().zip(&scale) {
                    row.zip_mut_with(&scale, |g, b| *g *= a * b);
                }
                (scale, ridge)
            }
            Ridge::OfError(delta) => {
                gram.diag_mut().mapv_inplace(|d| d + delta * error);
                (Array1::ones(gram.nrows()), 0.0)
            }
        };
        Ok(Self { scale, inner: SpdSolver::new(&gram, relative)? })
    }

    /// `X` with `X G = gradient`.
    fn solve(&self, gradient: &Array2<f64>) -> Array2<f64> {
        self.inner.solve_right(&(gradient * &self.scale)) * &self.scale
    }
}

/// `out[k, l] (+)= a[k] gram[k, l] b[l]`.
fn add_scaled(out: &mut Array2<f64>, a: ArrayView1<'_, f64>, gram: &Array2<f64>, b: ArrayView1<'_, f64>) {
    for ((mut out, gram), a) in out.outer_iter_mut().zip(gram.outer_iter()).zip(a) {
        ndarray::Zip::from(&mut out).and(gram).and(b).for_each(|o, g, b| *o += a * g * b);
    }
}

fn dot(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A starting point and its energy.
type Candidate = (Factors, f64);

/// What is minimised: $\mathrm{tr}\,(W - \hat W) C (W - \hat W)^T$ over factors on a grid; `C = I` when plain.
struct Problem<'a> {
    w: &'a Array2<f64>,
    /// `W C`.
    wc: Array2<f64>,
    c: Option<&'a Array2<f64>>,
    /// Solvers with the diagonal blocks of `C`; none when plain.
    local: Vec<SpdSolver>,
    rows: Vec<Range<usize>>,
    cols: Vec<Range<usize>>,
    /// Energy of `W`.
    scale: f64,
    threads: Threads,
}

impl<'a> Problem<'a> {
    fn new(
        w: &'a Array2<f64>,
        (b1, b2): (usize, usize),
        c: Option<&'a Array2<f64>>,
        threads: Threads,
    ) -> Result<Self> {
        let (m, n) = w.dim();
        let rows: Vec<_> = (0..b1).map(|i| block_range(i, b1, m)).collect();
        let cols: Vec<_> = (0..b2).map(|j| block_range(j, b2, n)).collect();
        let wc = c.map_or_else(|| w.clone(), |c| matmul(w, c, threads));
        let local = match c {
            None => Vec::new(),
            Some(c) => {
                each(threads, b2, |j| SpdSolver::new(&c.slice(s![cols[j].clone(), cols[j].clone()]), RIDGE))?
            }
        };
        let scale = dot(&wc, w).max(0.0);
        Ok(Self { w, wc, c, local, rows, cols, scale, threads })
    }

    /// The energy of the residual, formed.
    fn energy(&self, f: &Factors) -> f64 {
        let mut residual = self.w.clone();
        for (i, rows) in self.rows.iter().enumerate() {
            let mut residual = residual.slice_mut(s![rows.clone(), ..]);
            let product = matmul_nt(&f.u.slice(s![rows.clone(), ..]), &self.scaled_right(f, i), self.threads);
            residual -= &product;
        }
        match self.c {
            None => dot(&residual, &residual),
            Some(c) => dot(&matmul(&residual, c, self.threads), &residual).max(0.0),
        }
    }

    /// `V_j diag(s_ij)`, one below the other: `n x r`.
    fn scaled_right(&self, f: &Factors, i: usize) -> Array2<f64> {
        let mut right = f.v.clone();
        for (j, cols) in self.cols.iter().enumerate() {
            let mut right = right.slice_mut(s![cols.clone(), ..]);
            right *= &f.s.slice(s![i, j, ..]);
        }
        right
    }

    /// Block columns that `C` couples with `j`.
    fn coupled(&self, j: usize) -> Range<usize> {
        if self.c.is_some() { 0..self.cols.len() } else { j..j + 1 }
    }

    /// Block columns whose steps do not depend on each other.
    fn groups(&self) -> Vec<Range<usize>> {
        let b2 = self.cols.len();
        let width = if self.c.is_some() { 1 } else { b2 };
        (0..b2).step_by(width).map(|j| j..j + width).collect()
    }

    /// `V_jᵀ C_jk V_k` for every coupled `k`.
    fn right_grams(&self, v: &Array2<f64>, j: usize) -> Vec<Array2<f64>> {
        let vj = v.slice(s![self.cols[j].clone(), ..]);
        match self.c {
            None => vec![linalg::gram(&vj, Threads::ONE)],
            Some(c) => {
                let vc = matmul_tn(&vj, &c.slice(s![self.cols[j].clone(), ..]), self.threads);
                let gram = |cols: &Range<usize>| {
                    matmul(&vc.slice(s![.., cols.clone()]), &v.slice(s![cols.clone(), ..]), self.threads)
                };
                self.cols.iter().map(gram).collect()
            }
        }
    }

    /// One step of `U`, then `V`, then `s`; the new energy.
    fn sweep(&self, f: &mut Factors, mut energy: f64, step: Step) -> Result<f64> {
        let drop = self.step_u(f, energy, step)?;
        energy = (energy - drop).max(0.0);
        let pulled = each(self.threads, self.rows.len(), |i| {
            let rows = s![self.rows[i].clone(), ..];
            Ok(matmul_tn(&f.u.slice(rows), &self.wc.slice(rows), Threads::ONE))
        })?;
        let grams = each(self.threads, self.rows.len(), |i| {
            Ok(linalg::gram(&f.u.slice(s![self.rows[i].clone(), ..]), Threads::ONE))
        })?;
        for group in self.groups() {
            let drop = self.step_v(f, group, &pulled, &grams, energy, step)?;
            energy = (energy - drop).max(0.0);
        }
        for group in self.groups() {
            let drop = self.step_s(f, group, &pulled, &grams, energy, step)?;
            energy = (energy - drop).max(0.0);
        }
        Ok(if energy < NEARLY_EXACT * self.scale { self.energy(f) } else { energy })
    }

    /// By how much a step along `d = gradient (G + ridge)⁻¹` lowers the energy. For a relative ridge, which is tiny, a lower bound.
    fn lowered(gradient: &Array2<f64>, d: &Array2<f64>, energy: f64, step: Step) -> f64 {
        let along = dot(gradient, d);
        let shift = match step.ridge {
            Ridge::Relative(_) => 0.0,
            Ridge::OfError(delta) => delta * energy.sqrt() * dot(d, d),
        };
        step.weight * (2.0 * along - step.weight * (along - shift))
    }

    fn step_u(&self, f: &mut Factors, energy: f64, step: Step) -> Result<f64> {
        let rank = f.u.ncols();
        let mut grams = vec![Array2::zeros((rank, rank)); self.rows.len()];
        for j in 0..self.cols.len() {
            for (k, right) in self.coupled(j).zip(self.right_grams(&f.v, j)) {
                for (i, gram) in grams.iter_mut().enumerate() {
                    add_scaled(gram, f.s.slice(s![i, j, ..]), &right, f.s.slice(s![i, k, ..]));
                }
            }
        }
        let steps = each(self.threads, self.rows.len(), |i| {
            let rows = s![self.rows[i].clone(), ..];
            let mut gradient = matmul(&self.wc.slice(rows), &self.scaled_right(f, i), Threads::ONE);
            gradient -= &matmul(&f.u.slice(rows), &grams[i], Threads::ONE);
            let d = Solver::new(grams[i].clone(), step.ridge, energy.sqrt())?.solve(&gradient);
            Ok((Self::lowered(&gradient, &d, energy, step), d))
        })?;
        for ((_, d), rows) in steps.iter().zip(&self.rows) {
            f.u.slice_mut(s![rows.clone(), ..]).scaled_add(step.weight, d);
        }
        Ok(steps.iter().map(|(drop, _)| drop).sum())
    }

    fn step_v(
        &self,
        f: &mut Factors,
        group: Range<usize>,
        pulled: &[Array2<f64>],
        grams: &[Array2<f64>],
        energy: f64,
        step: Step,
    ) -> Result<f64> {
        let rank = f.u.ncols();
        let steps = each(self.threads, group.len(), |g| {
            let j = group.start + g;
            let cols = s![self.cols[j].clone(), ..];
            // n_j x r.
            let mut gradient = Array2::zeros(f.v.slice(cols).dim());
            for (i, pulled) in pulled.iter().enumerate() {
                let pulled = pulled.slice(s![.., self.cols[j].clone()]);
                gradient += &(&pulled.t() * &f.s.slice(s![i, j, ..]));
            }
            let mut own = Array2::zeros((0, 0));
            let mut carried = Array2::zeros(f.v.dim());
            for k in self.coupled(j) {
                let mut coupling = Array2::zeros((rank, rank));
                for (i, gram) in grams.iter().enumerate() {
                    add_scaled(&mut coupling, f.s.slice(s![i, k, ..]), gram, f.s.slice(s![i, j, ..]));
                }
                let cols = s![self.cols[k].clone(), ..];
                carried.slice_mut(cols).assign(&matmul(&f.v.slice(cols), &coupling, Threads::ONE));
                if k == j {
                    own = coupling;
                }
            }
            match self.c {
                None => gradient -= &carried.slice(cols),
                Some(c) => gradient -= &matmul(&c.slice(cols), &carried, self.threads),
            }
            let mut d = Solver::new(own, step.ridge, energy.sqrt())?.solve(&gradient);
            if let Some(local) = self.local.get(j) {
                d = local.solve(&d);
            }
            Ok((Self::lowered(&gradient, &d, energy, step), d))
        })?;
        for ((_, d), j) in steps.iter().zip(group) {
            f.v.slice_mut(s![self.cols[j].clone(), ..]).scaled_add(step.weight, d);
        }
        Ok(steps.iter().map(|(drop, _)| drop).sum())
    }

    fn step_s(
        &self,
        f: &mut Factors,
        group: Range<usize>,
        pulled: &[Array2<f64>],
        grams: &[Array2<f64>],
        energy: f64,
        step: Step,
    ) -> Result<f64> {
        let b1 = self.rows.len();
        let rights: Vec<_> =
            each(self.threads, group.len(), |g| Ok(self.right_grams(&f.v, group.start + g)))?;
        let steps = each(self.threads, group.len() * b1, |task| {
            let (g, i) = (task / b1, task % b1);
            let j = group.start + g;
            let v = f.v.slice(s![self.cols[j].clone(), ..]);
            let target = pulled[i].slice(s![.., self.cols[j].clone()]);
            let mut gradient = (&target.t() * &v).sum_axis(Axis(0)).insert_axis(Axis(0));
            let mut own = Array2::zeros((0, 0));
            for (k, right) in self.coupled(j).zip(&rights[g]) {
                let gram = &grams[i] * right;
                gradient -= &gram.dot(&f.s.slice(s![i, k, ..])).insert_axis(Axis(0));
                if k == j {
                    own = gram;
                }
            }
            let d = Solver::new(own, step.ridge, energy.sqrt())?.solve(&gradient);
            Ok((Self::lowered(&gradient, &d, energy, step), d))
        })?;
        for (task, (_, d)) in steps.iter().enumerate() {
            let (j, i) = (group.start + task / b1, task % b1);
            f.s.slice_mut(s![i, j, ..]).scaled_add(step.weight, &d.row(0));
        }
        Ok(steps.iter().map(|(drop, _)| drop).sum())
    }

    /// Over-relaxed exact solves from every start; after the trial the best goes on alone.
    fn solve(&self, starts: Vec<Factors>, sweeps: usize, run: &Run<'_>) -> Result<(Factors, Vec<f64>)> {
        let mut candidates: Vec<Candidate> = starts
            .into_iter()
            .map(|f| {
                let energy = self.energy(&f);
                (f, energy)
            })
            .collect();
        candidates.sort_by(|a, b| a.1.total_cmp(&b.1));
        let energy = candidates[0].1;
        let stop = Stop { sweeps, tolerance: TOLERANCE };
        let found = descend(run, stop, self.scale, candidates, energy, |candidates, k, sweeps| {
            let progress = k as f64 / (sweeps - 1).max(1) as f64;
            let step = Step { weight: 1.9 - 0.9 * progress, ridge: Ridge::Relative(RIDGE) };
            for (f, energy) in candidates.iter_mut() {
                run.check()?;
                *energy = self.sweep(f, *energy, step)?;
            }
            candidates.sort_by(|a, b| a.1.total_cmp(&b.1));
            if k >= sweeps / TRIAL_SHARE {
                candidates.truncate(1);
            }
            Ok(candidates[0].1)
        })?;
        let mut candidates = found.state;
        Ok((candidates.swap_remove(0).0, found.history))
    }

    /// The source's preconditioned gradient descent. `W` is scaled to unit variance there; here the start is scaled instead.
    fn descend_gradient(
        &self,
        rank: usize,
        sweeps: usize,
        (delta, end_factor): (f64, f64),
        stream: u64,
        run: &Run<'_>,
    ) -> Result<(Factors, Vec<f64>)> {
        let ((m, n), (b1, b2)) = (self.w.dim(), (self.rows.len(), self.cols.len()));
        let deviation = (self.scale / (m * n) as f64).sqrt();
        if deviation == 0.0 {
            return Ok((Factors::zeros((m, n), (b1, b2), rank), Vec::new()));
        }
        let unit = self.w / deviation;
        let problem = Problem::new(&unit, (b1, b2), None, self.threads)?;
        let mut gaussian: Gaussian = run.gaussian(2 + stream);
        let small = 1e-3 / (rank as f64).sqrt();
        let start = Factors {
            u: gaussian.matrix(m, rank, small),
            v: gaussian.matrix(n, rank, small),
            s: Array3::from_shape_simple_fn((b1, b2, rank), || gaussian.sample()),
        };
        let energy = problem.energy(&start);
        let stop = Stop { sweeps, tolerance: 0.0 };
        let found = descend(run, stop, problem.scale, (start, energy), energy, |(f, energy), k, steps| {
            let eta = 1.0 - (1.0 - end_factor) * k as f64 / steps as f64;
            let step = Step { weight: 2.0 * eta, ridge: Ridge::OfError(delta) };
            *energy = problem.sweep(f, *energy, step)?;
            Ok(*energy)
        })?;
        let mut factors = found.state.0;
        factors.s *= deviation;
        Ok((factors, found.history))
    }
}
