//! Fitting [`Blast`]: the starts, and which of them the sweeps go on from.

use super::factors::Factors;
use super::sweeps::{Problem, each};
use super::{BlastMethod, BlastSpec, block_range, slot};
use crate::error::Result;
use crate::linalg::{self, SvdOptions, matmul, matmul_tn};
use crate::projection::{Descent, Objective, Run, ratio};
use ndarray::{Array1, Array2, Array3, Axis, s};

/// Sweeps of the block solves.
pub(super) const SWEEPS: usize = 100;
/// Entries of a weight below which there is time for twice as many.
pub(super) const LARGE: usize = 1 << 20;
/// Steps of the gradient method.
pub(super) const GRADIENT_STEPS: usize = 300;
/// Entries of a weight up to which the gradient method is tried as one more start.
const SMALL: usize = 1 << 16;
/// Such starts at most, for matrices much smaller than that.
const MOST_RANDOM: usize = 4;

/// Energies relative to that of the weight below which single precision does not resolve the descent.
const FINE: f64 = 1e-6;

/// Of the mean of its diagonal, what is added to the diagonal of a second moment. Without it factors grow without bound where no activation
/// has a share; with it the error there is at most $10^3 \sqrt n$ times the weight.
const RIDGE: f64 = 1e-6;

/// Fits `spec`; the factors and the history of the objective.
pub(super) fn fit(
    w: &Array2<f64>,
    spec: &BlastSpec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<(Factors<f64>, Vec<f64>)> {
    // The loops over entries read rows as slices.
    let w = &w.as_standard_layout().into_owned();
    let plain = Problem::new(w, spec.blocks, None, run.threads())?;
    let mut best = match spec.method {
        BlastMethod::Solves => {
            let mut starts = vec![low_rank(w, None, spec, run)?];
            if spec.rank >= spec.blocks.0.max(spec.blocks.1) {
                starts.push(block_low_rank(w, spec, run)?);
            }
            let mut best = sweep(&plain, starts, spec, run)?;
            // A gradual descent from a small random start sometimes ends lower.
            for stream in 0..(SMALL / w.len()).min(MOST_RANDOM) as u64 {
                let start = plain.descend_gradient(spec.rank, GRADIENT_STEPS, (0.1, 0.0), stream, run)?;
                let other = plain.solve(vec![start.state], spec.sweeps, run)?;
                if other.energy < best.energy {
                    best = other;
                }
            }
            best
        }
        BlastMethod::Gradient { delta, end_factor } => {
            plain.descend_gradient(spec.rank, spec.sweeps, (delta, end_factor), 0, run)?
        }
    };
    if let Some(c) = objective.second_moment() {
        let mut c = c.clone();
        let ridge = RIDGE * c.diag().sum() / c.nrows() as f64;
        c.diag_mut().mapv_inplace(|c| c + ridge);
        let starts = vec![best.state, low_rank(w, objective.root()?, spec, run)?];
        best = Problem::new(w, spec.blocks, Some(&c), run.threads())?.solve(starts, spec.sweeps, run)?;
        // Without the ridge.
        let error = ratio(objective.energy(&plain.residual(&best.state)).sqrt(), objective.energy(w).sqrt());
        best.history.last_mut().into_iter().for_each(|h| *h = h.min(error));
    }
    Ok((best.state, best.history))
}

/// Sweeps of the plain problem: in single precision, at half the cost, as far as that goes.
fn sweep(
    problem: &Problem<'_, f64>,
    starts: Vec<Factors<f64>>,
    spec: &BlastSpec,
    run: &Run<'_>,
) -> Result<Descent<Factors<f64>>> {
    let w = problem.weight();
    if w.len() <= SMALL || !(1e-25..1e25).contains(&problem.scale()) {
        return problem.solve(starts, spec.sweeps, run);
    }
    let single = w.mapv(|x| x as f32);
    let starts = starts.iter().map(Factors::cast).collect();
    let found = Problem::new(&single, spec.blocks, None, run.threads())?.solve(starts, spec.sweeps, run)?;
    let state: Factors<f64> = found.state.cast();
    let energy = problem.energy(&state);
    if energy < FINE * problem.scale() {
        return problem.solve(vec![state], spec.sweeps, run);
    }
    // The last digits of what was counted on the way are rounding.
    let mut history = found.history;
    let error = (energy / problem.scale()).sqrt();
    history.iter_mut().for_each(|h| *h = h.max(error));
    history.last_mut().into_iter().for_each(|h| *h = error);
    Ok(Descent { state, energy, history })
}

/// The best low-rank matrix, weighted when the `root` of `C` is given (then `P Pᵀ W`): all diagonals are 1.
fn low_rank(
    w: &Array2<f64>,
    root: Option<&Array2<f64>>,
    spec: &BlastSpec,
    run: &Run<'_>,
) -> Result<Factors<f64>> {
    let options = SvdOptions { seed: run.seed(), ..SvdOptions::default() };
    let truncated = |a: &Array2<f64>| linalg::truncated_svd(a, spec.rank, &options, run.threads());
    let (mut u, mut v) = match root {
        None => {
            let svd = truncated(w)?.svd;
            let v = &svd.vt.t() * &Array1::from(svd.s);
            (svd.u, v)
        }
        Some(root) => {
            let u = truncated(&matmul(w, root, run.threads()))?.svd.u;
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
    Ok(Factors::new(&u, Array3::ones((spec.blocks.0, spec.blocks.1, u.ncols())), &v))
}

/// The best low-rank approximation of every block, in the components that it owns.
fn block_low_rank(w: &Array2<f64>, spec: &BlastSpec, run: &Run<'_>) -> Result<Factors<f64>> {
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
