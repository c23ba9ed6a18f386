//! Fits under activations: the numbers of given windows.

use super::GblrSpec;
use super::descent::{Price, State, pass};
use super::fit::full_components;
use super::window::CyclicWindow;
use crate::error::Result;
use crate::linalg::{self, SvdOptions, matmul, matmul_nt, matmul_tn};
use crate::projection::{Descent, Objective, Run, Stop, descend, least_squares};
use ndarray::{Array1, Array2};

/// Sweeps at most, and steps of conjugate gradients in each.
const SWEEPS: usize = 10;
const STEPS: usize = 4;

/// The best low-rank matrix under the root of a second moment, $P P^T W$, where the budget has room for one.
pub(super) fn low_rank(
    w: &Array2<f64>,
    root: &Array2<f64>,
    spec: &GblrSpec,
    run: &Run<'_>,
) -> Result<Option<State>> {
    let ((m, n), rank) = (w.dim(), full_components(w.dim(), spec));
    if rank == 0 {
        return Ok(None);
    }
    let options = SvdOptions { seed: run.seed(), ..SvdOptions::default() };
    let weighted = matmul(w, root, run.threads());
    let left = linalg::truncated_svd(&weighted, rank, &options, run.threads())?.svd.u;
    let right = matmul_tn(&left, w, run.threads());
    let mut state = State::empty((m, n));
    for (u, v) in left.columns().into_iter().zip(right.outer_iter()) {
        state.u.push(CyclicWindow::full(m), &u.to_vec());
        state.v.push(CyclicWindow::full(n), &v.to_vec());
    }
    Ok(Some(state))
}

/// Lowers the weighted error of the numbers in given windows: left sides one component after the other, each exactly; right sides together,
/// by conjugate gradients. A sweep of each start, then more of the best, numbers counted at their price: never worse than any of them.
pub(super) fn refine(
    w: &Array2<f64>,
    c: &Array2<f64>,
    starts: Vec<State>,
    price: Price,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<(State, Vec<f64>)> {
    let (wc, scale) = (matmul(w, c, run.threads()), objective.energy(w));
    let mut best: Option<(f64, Descent<State>)> = None;
    for state in starts {
        let energy = objective.energy(&state.residual(w, run.threads()));
        let mut swept = state.clone();
        let after = sweep(w, c, &wc, &mut swept, objective, run)?;
        let (state, energy) = if after < energy { (swept, after) } else { (state, energy) };
        let cost = energy + price.number * state.size(price.overhead) as f64;
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, Descent { state, energy, history: Vec::new() }));
        }
    }
    let Some((_, Descent { state, energy, .. })) = best else {
        return Ok((State::empty(w.dim()), Vec::new()));
    };
    let stop = Stop { sweeps: SWEEPS, tolerance: 1e-3 };
    let found =
        descend(run, stop, scale, state, energy, |state, _, _| sweep(w, c, &wc, state, objective, run))?;
    Ok((found.state, found.history))
}

/// Returns the weighted energy of what is left.
fn sweep(
    w: &Array2<f64>,
    c: &Array2<f64>,
    wc: &Array2<f64>,
    state: &mut State,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<f64> {
    run.check()?;
    let threads = run.threads();
    let inner = matmul_nt(&state.v.values, wc, threads);
    let grams = matmul_nt(&matmul(&state.v.values, c, threads), &state.v.values, threads);
    pass(&mut state.u, &state.v.windows, &inner, &grams, None);
    let State { u, v } = state;
    let places: Vec<(usize, usize)> = v
        .windows
        .iter()
        .enumerate()
        .flat_map(|(k, window)| window.features(w.ncols()).map(move |j| (k, j)))
        .collect();
    let shape = v.values.dim();
    let spread = |x: &Array1<f64>| {
        let mut all = Array2::zeros(shape);
        places.iter().zip(x).for_each(|(&at, x)| all[at] = *x);
        all
    };
    let mut x: Array1<f64> = places.iter().map(|&at| v.values[at]).collect();
    let energy = least_squares(
        w,
        objective,
        run,
        STEPS,
        &mut x,
        |x| matmul_tn(&u.values, &spread(x), threads),
        |e| {
            let all = matmul(&u.values, e, threads);
            places.iter().map(|&at| all[at]).collect()
        },
    )?;
    v.values = spread(&x);
    Ok(energy)
}
