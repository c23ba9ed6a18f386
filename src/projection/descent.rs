//! Repeating a sweep that lowers the objective: the loop of every iterative projection.

use super::{Run, ratio};
use crate::error::Result;

/// Where a descent ended.
#[derive(Debug)]
pub(crate) struct Descent<S> {
    /// The best state.
    pub(crate) state: S,
    /// Its objective, as an energy.
    pub(crate) energy: f64,
    /// The relative error after each sweep, never rising.
    pub(crate) history: Vec<f64>,
}

/// When a descent ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// Sweeps at most, where the caller did not say.
    pub(crate) sweeps: usize,
    /// Sweeps must lower the energy by this fraction of it, or the descent ends.
    pub(crate) tolerance: f64,
}

/// Sweeps from `state` with energy `energy` until the sweeps no longer pay. `sweep(state, k, n)` does sweep `k` of `n` and returns the new
/// energy; a sweep that does not lower it is undone and ends the descent. `scale` is the energy of the weight itself.
pub(crate) fn descend<S: Clone>(
    run: &Run<'_>,
    stop: Stop,
    scale: f64,
    state: S,
    energy: f64,
    mut sweep: impl FnMut(&mut S, usize, usize) -> Result<f64>,
) -> Result<Descent<S>> {
    let sweeps = run.max_iterations(stop.sweeps);
    let mut best = Descent { state, energy, history: Vec::new() };
    for k in 0..sweeps {
        let mut next = best.state.clone();
        let energy = sweep(&mut next, k, sweeps)?;
        if energy.is_nan() || energy >= best.energy {
            break;
        }
        let gain = best.energy - energy;
        (best.state, best.energy) = (next, energy);
        let error = ratio(energy.max(0.0).sqrt(), scale.sqrt());
        best.history.push(error);
        run.step(k + 1, sweeps, Some(error))?;
        if gain <= stop.tolerance * energy {
            break;
        }
    }
    Ok(best)
}
