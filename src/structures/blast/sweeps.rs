//! Sweeps over $U$, $V$ and $s$.

use super::block_range;
use super::factors::Factors;
use super::systems::{Accuracy, add_scaled, add_weighted, approach, column_dots, hadamard, inner};
use crate::error::Result;
use crate::linalg::{self, Real, SpdSolver, Threads, matmul, matmul_nt, matmul_tn};
use crate::projection::{Descent, Run, Stop, descend};
use crate::random::Gaussian;
use ndarray::{Array2, Array3, s};
use rayon::prelude::*;
use std::ops::Range;

/// Of the sweeps, one in so many is spent on every start; then the best goes on alone.
const TRIAL_SHARE: usize = 8;
/// Ridge of the solves with blocks of `C`.
const RIDGE: f64 = 1e-10;
/// Below this relative energy the residual is formed: differences of Gram matrices no longer resolve it.
const NEARLY_EXACT: f64 = 1e-6;
/// Sweeps end when they lower the energy by less than this fraction.
const TOLERANCE: f64 = 1e-6;

/// Of the solves within a sweep, which need not be exact.
const ROUGH: Accuracy = Accuracy { steps: 4, residual: 1e-3 };
/// Of those where little is left: what remains lies in the directions that the first steps do not reach.
const CAREFUL: Accuracy = Accuracy { steps: 40, residual: 1e-3 };
/// The relative energy that is little.
const LITTLE: f64 = 1e-3;

/// How a step moves.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Relaxation: 1 goes where the energy is least, 2 is where it is the same again.
    weight: f64,
    /// This multiple of the current error is added to the diagonal of Gram matrices.
    shift: f64,
    accuracy: Accuracy,
}

/// A proposed change of one block, from what it is to be multiplied by the relaxation.
struct Change<T> {
    d: Array2<T>,
    /// By how much the change, relaxed, lowers the energy.
    drop: f64,
}

/// What `V` and `s` see of `U`, by block rows.
struct Left<T> {
    /// `(W_i C)ᵀ U_i`, `n x r`.
    pulled: Vec<Array2<T>>,
    /// `U_iᵀ U_i`.
    grams: Vec<Array2<T>>,
}

/// A starting point and its energy.
type Candidate<T> = (Factors<T>, f64);

/// What is minimised: $\mathrm{tr}\,(W - \hat W) C (W - \hat W)^T$ over factors on a grid; `C = I` when plain.
pub(super) struct Problem<'a, T> {
    w: &'a Array2<T>,
    /// `W C`, when weighted.
    wc: Option<Array2<T>>,
    c: Option<&'a Array2<T>>,
    /// Solvers with the diagonal blocks of `C`; none when plain.
    local: Vec<SpdSolver>,
    rows: Vec<Range<usize>>,
    cols: Vec<Range<usize>>,
    /// Energy of `W`.
    scale: f64,
    threads: Threads,
}

impl<'a, T: Real> Problem<'a, T> {
    pub(super) fn new(
        w: &'a Array2<T>,
        (b1, b2): (usize, usize),
        c: Option<&'a Array2<T>>,
        threads: Threads,
    ) -> Result<Self> {
        let (m, n) = w.dim();
        let rows: Vec<_> = (0..b1).map(|i| block_range(i, b1, m)).collect();
        let cols: Vec<_> = (0..b2).map(|j| block_range(j, b2, n)).collect();
        let wc = c.map(|c| matmul(w, c, threads));
        let local = match c {
            None => Vec::new(),
            Some(c) => each(threads, b2, |j| {
                let block = c.slice(s![cols[j].clone(), cols[j].clone()]).mapv(T::widen);
                SpdSolver::new(&block, RIDGE)
            })?,
        };
        let scale = inner(wc.as_ref().unwrap_or(w), w).max(0.0);
        Ok(Self { w, wc, c, local, rows, cols, scale, threads })
    }

    /// What is approximated.
    pub(super) fn weight(&self) -> &'a Array2<T> {
        self.w
    }

    /// Energy of the weight itself.
    pub(super) fn scale(&self) -> f64 {
        self.scale
    }

    /// `W C`.
    fn weighted(&self) -> &Array2<T> {
        self.wc.as_ref().unwrap_or(self.w)
    }

    /// `W` without what the factors make.
    pub(super) fn residual(&self, f: &Factors<T>) -> Array2<T> {
        let mut residual = self.w.clone();
        for (i, rows) in self.rows.iter().enumerate() {
            let rows = s![rows.clone(), ..];
            let product = matmul_nt(&f.u.slice(rows), &self.scaled_right(f, i), self.threads);
            residual.slice_mut(rows).zip_mut_with(&product, |r, p| *r -= *p);
        }
        residual
    }

    /// The energy of the residual, formed.
    pub(super) fn energy(&self, f: &Factors<T>) -> f64 {
        let residual = self.residual(f);
        match self.c {
            None => inner(&residual, &residual),
            Some(c) => inner(&matmul(&residual, c, self.threads), &residual).max(0.0),
        }
    }

    /// `V_j diag(s_ij)`, one below the other: `n x r`.
    fn scaled_right(&self, f: &Factors<T>, i: usize) -> Array2<T> {
        let mut right = Array2::zeros(f.v.dim());
        for (j, cols) in self.cols.iter().enumerate() {
            let cols = s![cols.clone(), ..];
            add_scaled(&mut right.slice_mut(cols), &f.v.slice(cols), f.diagonal(i, j));
        }
        right
    }

    /// Block columns that `C` couples with `j`.
    fn coupled(&self, j: usize) -> Range<usize> {
        if self.c.is_some() { 0..self.cols.len() } else { j..j + 1 }
    }

    /// Block columns whose steps do not depend on each other.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let b2 = self.cols.len();
        let width = if self.c.is_some() { 1 } else { b2 };
        (0..b2).step_by(width).map(move |j| j..j + width)
    }

    /// `V_jᵀ C_jk V_k` for every `k` that is coupled with `j`, for the `j` of a group.
    fn right_grams(&self, v: &Array2<T>, group: &Range<usize>) -> Result<Vec<Vec<Array2<T>>>> {
        each(self.threads, group.len(), |g| {
            let own = s![self.cols[group.start + g].clone(), ..];
            let Some(c) = self.c else { return Ok(vec![linalg::gram(&v.slice(own), Threads::ONE)]) };
            // n x r.
            let cv = matmul_tn(&c.slice(own), &v.slice(own), self.threads);
            let gram = |cols: &Range<usize>| {
                let cols = s![cols.clone(), ..];
                matmul_tn(&cv.slice(cols), &v.slice(cols), self.threads)
            };
            Ok(self.cols.iter().map(gram).collect())
        })
    }

    /// One step of `U`, then `V`, then `s`; the new energy.
    fn sweep(&self, f: &mut Factors<T>, mut energy: f64, step: Step) -> Result<f64> {
        let drop = self.step_u(f, energy, step)?;
        energy = (energy - drop).max(0.0);
        let left = Left {
            pulled: each(self.threads, self.rows.len(), |i| {
                let rows = s![self.rows[i].clone(), ..];
                Ok(matmul_tn(&self.weighted().slice(rows), &f.u.slice(rows), Threads::ONE))
            })?,
            grams: each(self.threads, self.rows.len(), |i| {
                Ok(linalg::gram(&f.u.slice(s![self.rows[i].clone(), ..]), Threads::ONE))
            })?,
        };
        for group in self.groups() {
            let drop = self.step_v(f, group, &left, energy, step)?;
            energy = (energy - drop).max(0.0);
        }
        for group in self.groups() {
            let drop = self.step_s(f, group, &left, energy, step)?;
            energy = (energy - drop).max(0.0);
        }
        Ok(if energy < NEARLY_EXACT * self.scale { self.energy(f) } else { energy })
    }

    /// The change by `gradient G⁻¹`; for `V_j`, given by `j`, of a weighted problem `C_jj⁻¹ gradient G⁻¹`.
    fn change(
        &self,
        mut gram: Array2<T>,
        gradient: &Array2<T>,
        j: Option<usize>,
        energy: f64,
        step: Step,
    ) -> Change<T> {
        let shift = step.shift * energy.sqrt();
        if shift > 0.0 {
            gram.diag_mut().mapv_inplace(|d| d + T::narrow(shift));
        }
        let mut d = approach(&gram, gradient, step.accuracy, Threads::ONE);
        let mut along = inner(gradient, &d);
        let mut curvature = along - shift * inner(&d, &d);
        if let (Some(j), Some(c)) = (j, self.c) {
            d = self.local[j].solve(&d.mapv(T::widen)).mapv(T::narrow);
            let own = c.slice(s![self.cols[j].clone(), self.cols[j].clone()]);
            let image = matmul(&matmul(&own, &d, Threads::ONE), &gram, Threads::ONE);
            (along, curvature) = (inner(gradient, &d), inner(&image, &d));
            // To where the energy is least.
            let length = if curvature > 0.0 { along / curvature } else { 0.0 };
            d.mapv_inplace(|d| d * T::narrow(length));
            (along, curvature) = (length * along, length * length * curvature);
        }
        Change { d, drop: step.weight * (2.0 * along - step.weight * curvature) }
    }

    fn step_u(&self, f: &mut Factors<T>, energy: f64, step: Step) -> Result<f64> {
        let rank = f.u.ncols();
        let mut grams = vec![Array2::zeros((rank, rank)); self.rows.len()];
        for group in self.groups() {
            let rights = self.right_grams(&f.v, &group)?;
            each_mut(self.threads, &mut grams, |i, gram| {
                let pairs = group.clone().flat_map(|j| self.coupled(j).map(move |k| (j, k)));
                let terms = pairs.zip(rights.iter().flatten());
                add_weighted(gram, terms.map(|((j, k), right)| (f.diagonal(i, j), right, f.diagonal(i, k))));
            });
        }
        let changes = each(self.threads, self.rows.len(), |i| {
            let rows = s![self.rows[i].clone(), ..];
            let mut gradient = matmul(&self.weighted().slice(rows), &self.scaled_right(f, i), Threads::ONE);
            gradient.zip_mut_with(&matmul(&f.u.slice(rows), &grams[i], Threads::ONE), |g, x| *g -= *x);
            Ok(self.change(grams[i].clone(), &gradient, None, energy, step))
        })?;
        for (change, rows) in changes.iter().zip(&self.rows) {
            f.u.slice_mut(s![rows.clone(), ..]).scaled_add(T::narrow(step.weight), &change.d);
        }
        Ok(changes.iter().map(|change| change.drop).sum())
    }

    fn step_v(
        &self,
        f: &mut Factors<T>,
        group: Range<usize>,
        left: &Left<T>,
        energy: f64,
        step: Step,
    ) -> Result<f64> {
        let rank = f.u.ncols();
        let changes = each(self.threads, group.len(), |g| {
            let j = group.start + g;
            let cols = s![self.cols[j].clone(), ..];
            // n_j x r.
            let mut gradient = Array2::zeros(f.v.slice(cols).dim());
            for (i, pulled) in left.pulled.iter().enumerate() {
                add_scaled(&mut gradient, &pulled.slice(cols), f.diagonal(i, j));
            }
            let mut own = Array2::zeros((0, 0));
            let mut carried = Array2::zeros(f.v.dim());
            for k in self.coupled(j) {
                let mut coupling = Array2::zeros((rank, rank));
                let terms = left.grams.iter().enumerate();
                add_weighted(
                    &mut coupling,
                    terms.map(|(i, gram)| (f.diagonal(i, k), gram, f.diagonal(i, j))),
                );
                let cols = s![self.cols[k].clone(), ..];
                carried.slice_mut(cols).assign(&matmul(&f.v.slice(cols), &coupling, Threads::ONE));
                if k == j {
                    own = coupling;
                }
            }
            match self.c {
                None => gradient.zip_mut_with(&carried.slice(cols), |g, x| *g -= *x),
                Some(c) => {
                    gradient.zip_mut_with(&matmul(&c.slice(cols), &carried, self.threads), |g, x| *g -= *x)
                }
            }
            Ok(self.change(own, &gradient, Some(j), energy, step))
        })?;
        for (change, j) in changes.iter().zip(group) {
            f.v.slice_mut(s![self.cols[j].clone(), ..]).scaled_add(T::narrow(step.weight), &change.d);
        }
        Ok(changes.iter().map(|change| change.drop).sum())
    }

    fn step_s(
        &self,
        f: &mut Factors<T>,
        group: Range<usize>,
        left: &Left<T>,
        energy: f64,
        step: Step,
    ) -> Result<f64> {
        let b1 = self.rows.len();
        let rights = self.right_grams(&f.v, &group)?;
        let changes = each(self.threads, group.len() * b1, |task| {
            let (g, i) = (task / b1, task % b1);
            let j = group.start + g;
            let cols = s![self.cols[j].clone(), ..];
            let mut gradient = column_dots(&left.pulled[i].slice(cols), &f.v.slice(cols));
            let mut own = Array2::zeros((0, 0));
            for (k, right) in self.coupled(j).zip(&rights[g]) {
                let gram = hadamard(&left.grams[i], right);
                let s = f.s.slice(s![i, k..k + 1, ..]);
                gradient.zip_mut_with(&matmul_nt(&s, &gram, Threads::ONE), |g, x| *g -= *x);
                if k == j {
                    own = gram;
                }
            }
            Ok(self.change(own, &gradient, None, energy, step))
        })?;
        for (task, change) in changes.iter().enumerate() {
            let (j, i) = (group.start + task / b1, task % b1);
            f.s.slice_mut(s![i, j..j + 1, ..]).scaled_add(T::narrow(step.weight), &change.d);
        }
        Ok(changes.iter().map(|change| change.drop).sum())
    }

    /// Over-relaxed solves from every start; after the trial the best goes on alone.
    pub(super) fn solve(
        &self,
        starts: Vec<Factors<T>>,
        sweeps: usize,
        run: &Run<'_>,
    ) -> Result<Descent<Factors<T>>> {
        let mut candidates: Vec<Candidate<T>> = starts
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
            for (f, energy) in candidates.iter_mut() {
                run.check()?;
                let accuracy = if *energy > LITTLE * self.scale { ROUGH } else { CAREFUL };
                let step = Step { weight: 1.9 - 0.9 * progress, shift: 0.0, accuracy };
                *energy = self.sweep(f, *energy, step)?;
            }
            candidates.sort_by(|a, b| a.1.total_cmp(&b.1));
            if k >= sweeps / TRIAL_SHARE {
                candidates.truncate(1);
            }
            Ok(candidates[0].1)
        })?;
        let mut candidates = found.state;
        Ok(Descent { state: candidates.swap_remove(0).0, energy: found.energy, history: found.history })
    }
}

impl Problem<'_, f64> {
    /// The source's preconditioned gradient descent. `W` is scaled to unit variance there; here the start is scaled instead.
    pub(super) fn descend_gradient(
        &self,
        rank: usize,
        sweeps: usize,
        (delta, end_factor): (f64, f64),
        stream: u64,
        run: &Run<'_>,
    ) -> Result<Descent<Factors<f64>>> {
        let ((m, n), (b1, b2)) = (self.w.dim(), (self.rows.len(), self.cols.len()));
        let deviation = (self.scale / (m * n) as f64).sqrt();
        if deviation == 0.0 {
            let state = Factors::zeros((m, n), (b1, b2), rank);
            return Ok(Descent { state, energy: 0.0, history: Vec::new() });
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
            let step = Step {
                weight: 2.0 * eta,
                shift: delta,
                accuracy: Accuracy { steps: 4 * rank, residual: 1e-10 },
            };
            *energy = problem.sweep(f, *energy, step)?;
            Ok(*energy)
        })?;
        let mut factors = found.state.0;
        factors.s *= deviation;
        Ok(Descent { state: factors, energy: found.energy * deviation * deviation, history: found.history })
    }
}

/// `f(0), f(1), ...`, on the thread pool when `threads` allows more than one.
pub(super) fn each<R: Send>(
    threads: Threads,
    count: usize,
    f: impl Fn(usize) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    if threads.0 <= 1 || count < 2 {
        return (0..count).map(f).collect();
    }
    (0..count).into_par_iter().with_min_len(count.div_ceil(threads.0)).map(f).collect()
}

/// `f(0, items[0]), f(1, items[1]), ...`, likewise.
fn each_mut<T: Send>(threads: Threads, items: &mut [T], f: impl Fn(usize, &mut T) + Sync + Send) {
    if threads.0 <= 1 || items.len() < 2 {
        return items.iter_mut().enumerate().for_each(|(i, item)| f(i, item));
    }
    let least = items.len().div_ceil(threads.0);
    items.par_iter_mut().enumerate().with_min_len(least).for_each(|(i, item)| f(i, item));
}
