//! Fitting [`Gblr`](super::Gblr): starts, the price at which a budget is met, and what is done with the rest of it.

use super::descent::{Price, State};
use super::members::{GRIDS, Members};
use super::{GblrMethod, GblrSpec, gradient, weighted};
use crate::error::Result;
use crate::projection::{Objective, Run};
use ndarray::{Array1, Array2};

/// Sweeps in all, at most.
const SWEEPS: usize = 64;
/// Sweeps of each start, before the better one goes on; with a fixed price, after that; at each price tried; with windows that stay.
const STARTING: usize = 4;
const GOING_ON: usize = 20;
const PER_PRICE: usize = 3;
const POLISHING: usize = 12;
/// Prices tried.
const PRICES: usize = 9;
/// Entries of a weight up to which both starts go on, and there is time for twice as many sweeps.
const SMALL_WEIGHT: usize = 1 << 16;
/// Rounds of candidates of a start, and after each sweep.
const FIRST_ROUNDS: usize = 100;
const ROUNDS: usize = 2;
/// Attempts to use what is left of a budget.
const FILLS: usize = 24;
/// Sweeps that lower the objective by less than this fraction end a descent.
const SMALL: f64 = 1e-4;
/// Use of a budget that is close enough.
const CLOSE: f64 = 0.985;

/// Fits `spec`; the components and the history of the objective.
pub(super) fn fit(
    w: &Array2<f64>,
    spec: &GblrSpec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<(State, Vec<f64>)> {
    let plain = |w: &Array2<f64>| match spec.method {
        GblrMethod::Descent { price } => descend(w, spec, price, run),
        GblrMethod::Gradient { rate, window_rate } => gradient::fit(w, spec, (rate, window_rate), run),
    };
    let (state, history) = plain(w)?;
    let Some(c) = objective.second_moment() else { return Ok((state, history)) };
    let mut starts = vec![state];
    // Exact where the inputs are not correlated.
    let most = c.diag().iter().copied().fold(0.0, f64::max);
    if most > 0.0 && matches!(spec.method, GblrMethod::Descent { .. }) {
        let roots: Array1<f64> = c.diag().mapv(|power| power.max(1e-8 * most).sqrt());
        let (mut scaled, _) = plain(&(w * &roots))?;
        scaled.v.values /= &roots;
        starts.push(scaled);
    }
    let number = match spec.method {
        GblrMethod::Descent { price } => price,
        GblrMethod::Gradient { .. } => 0.0,
    };
    // One of the whole budget, whatever its price.
    if let Some(root) = objective.root()?.filter(|_| number == 0.0) {
        starts.extend(weighted::low_rank(w, root, spec, run)?);
    }
    weighted::refine(w, c, starts, Price { number, overhead: spec.overhead }, objective, run)
}

/// Without activations.
fn descend(w: &Array2<f64>, spec: &GblrSpec, price: f64, run: &Run<'_>) -> Result<(State, Vec<f64>)> {
    // Of unit norm: neither overflow nor vanishing squares.
    let most = w.iter().fold(0.0, |most: f64, a| most.max(a.abs()));
    if most == 0.0 {
        return Ok((State::empty(w.dim()), Vec::new()));
    }
    let unit = w / most;
    let norm = unit.iter().map(|a| a * a).sum::<f64>().sqrt();
    let unit = unit / norm;
    let mut search = Search {
        w: &unit,
        limit: spec.numbers,
        overhead: spec.overhead,
        run,
        done: 0,
        total: run.max_iterations(if w.len() <= SMALL_WEIGHT { 2 * SWEEPS } else { SWEEPS }),
        history: Vec::new(),
    };
    let least = if price > 0.0 {
        (price / most / most / norm / norm).clamp(f64::MIN_POSITIVE, f64::MAX)
    } else {
        0.0
    };
    let (mut state, history) = search.run(least)?;
    let root = most.sqrt() * norm.sqrt();
    state.u.values *= root;
    state.v.values *= root;
    Ok((state, history))
}

/// A search for the best member within a limit, of a weight of unit norm.
struct Search<'a> {
    w: &'a Array2<f64>,
    limit: usize,
    overhead: usize,
    run: &'a Run<'a>,
    done: usize,
    total: usize,
    history: Vec<f64>,
}

/// The best member within the limit so far.
struct Best {
    state: State,
    energy: f64,
}

impl Search<'_> {
    /// At the price `least`, or the least one above it at which the limit is met.
    fn run(&mut self, least: f64) -> Result<(State, Vec<f64>)> {
        let members: Vec<Members> = GRIDS
            .iter()
            .filter_map(|&grid| Members::new(self.w, grid, self.limit, self.overhead, self.run).transpose())
            .collect::<Result<_>>()?;
        let within = |members: &Members| members.within(self.limit);
        let explained = |a: &&Members| a.gain(within(a), 0.0);
        let Some(closest) = members.iter().max_by(|a, b| explained(a).total_cmp(&explained(b))) else {
            return Ok((State::empty(self.w.dim()), Vec::new()));
        };
        let marginal = match closest.marginal(within(closest)) {
            none if none <= 0.0 => 1.0 / (self.w.nrows() + self.w.ncols()) as f64,
            marginal => marginal,
        };
        let number = if least > 0.0 { least } else { marginal };
        let price = Price { number, overhead: self.overhead };
        let paying = |a: &&Members| a.gain(a.paying(price), number);
        let grid = members.iter().max_by(|a, b| paying(a).total_cmp(&paying(b))).unwrap_or(closest);
        let starts = [grid.state(grid.paying(price)), State::empty(self.w.dim())];
        let state = closest.state(within(closest));
        let mut best = Best { energy: state.energy(self.w, self.run.threads()), state };
        drop(members);

        let mut found = Vec::new();
        for (k, mut state) in starts.into_iter().enumerate() {
            let mut objective = self.objective(&state, number);
            if k == 1 {
                objective -= state.grow(self.w, price, self.room(&state), FIRST_ROUNDS, self.run)?.fall;
            }
            let mut trace = Vec::new();
            self.sweeps(&mut state, number, STARTING, &mut objective, &mut trace, &best)?;
            self.consider(&state, &mut best);
            found.push((objective, state, trace));
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        if self.w.len() > SMALL_WEIGHT || least > 0.0 {
            found.truncate(1);
        }
        if least > 0.0
            && let Some((objective, state, trace)) = found.first_mut()
        {
            self.sweeps(state, number, GOING_ON, objective, trace, &best)?;
            if state.size(self.overhead) <= self.limit {
                let penalty = number * state.size(self.overhead) as f64;
                let mut energy = *objective - penalty;
                while self.done < self.total && trace.len() < 2 * GOING_ON + POLISHING {
                    let fall = state.sweep(self.w, None, self.run)?;
                    energy -= fall;
                    self.step(trace, (energy + penalty).max(0.0).sqrt())?;
                    if fall <= SMALL * (energy + penalty) {
                        break;
                    }
                }
                return Ok((state.clone(), std::mem::take(trace)));
            }
        }

        let mut last = marginal;
        for (_, mut state, _) in found {
            last = last.min(self.meet(&mut state, number, least, &mut best)?);
        }
        self.fill(&mut best, last, least)?;
        self.polish(&mut best)?;
        Ok((best.state, std::mem::take(&mut self.history)))
    }

    /// Moves the price until the limit is met, or nearly; the last price.
    fn meet(&mut self, state: &mut State, number: f64, least: f64, best: &mut Best) -> Result<f64> {
        let mut number = number;
        let (mut low, mut high) = (None, None);
        for _ in 0..PRICES {
            let size = state.size(self.overhead) as f64 / self.limit as f64;
            if size <= 1.0 {
                high = Some(number);
            } else {
                low = Some(number);
            }
            if (CLOSE..=1.0).contains(&size) || (size <= 1.0 && number <= least) || self.done >= self.total {
                break;
            }
            number = match (low, high) {
                (Some(low), Some(high)) if high < 1.02 * low => break,
                (Some(low), Some(high)) => f64::sqrt(low * high),
                _ => number * size.powf(1.5).clamp(0.4, 2.5),
            };
            number = number.max(least);
            let mut objective = self.objective(state, number);
            self.sweeps(state, number, PER_PRICE, &mut objective, &mut Vec::new(), best)?;
            self.consider(state, best);
        }
        Ok(number)
    }

    fn objective(&self, state: &State, number: f64) -> f64 {
        state.energy(self.w, self.run.threads()) + number * state.size(self.overhead) as f64
    }

    /// Numbers by which a candidate may grow: a little beyond the limit, so that a price is seen to be too low.
    fn room(&self, state: &State) -> usize {
        (self.limit + self.limit / 4).saturating_sub(state.size(self.overhead))
    }

    /// Sweeps and growth at a price, until they no longer pay; `objective` and its square roots go along.
    fn sweeps(
        &mut self,
        state: &mut State,
        number: f64,
        sweeps: usize,
        objective: &mut f64,
        trace: &mut Vec<f64>,
        best: &Best,
    ) -> Result<()> {
        let price = Price { number, overhead: self.overhead };
        for _ in 0..sweeps.min(self.total - self.done) {
            let mut fall = state.sweep(self.w, Some(price), self.run)?;
            fall += state.grow(self.w, price, self.room(state), ROUNDS, self.run)?.fall;
            *objective -= fall;
            self.history.push(best.energy.sqrt());
            self.step(trace, objective.max(0.0).sqrt())?;
            if fall <= SMALL * *objective {
                break;
            }
        }
        Ok(())
    }

    fn step(&mut self, trace: &mut Vec<f64>, value: f64) -> Result<()> {
        self.done += 1;
        // The last digits of what is counted on the way are rounding.
        trace.push(trace.last().map_or(value, |last| value.min(*last)));
        self.run.step(self.done, self.total, trace.last().copied())
    }

    /// Keeps a candidate that meets the limit and is better.
    fn consider(&self, state: &State, best: &mut Best) {
        if state.size(self.overhead) <= self.limit {
            let energy = state.energy(self.w, self.run.threads());
            if energy < best.energy {
                *best = Best { state: state.clone(), energy };
            }
        }
    }

    /// Spends what is left of the budget on further components: parts of them where whole ones do not fit, and less gainful ones where none
    /// pays; none below the price `least`.
    fn fill(&self, best: &mut Best, number: f64, least: f64) -> Result<()> {
        let mut price = Price { number: (0.5 * number).max(least), overhead: self.overhead };
        for _ in 0..FILLS {
            let (before, room) = (best.state.len(), self.limit - best.state.size(self.overhead));
            if room < (2 + self.overhead).max(self.limit / 200) {
                break;
            }
            let growth = best.state.grow(self.w, price, room, 1, self.run)?;
            if best.state.len() == before {
                match growth.cramped {
                    Some(v) => best.state.squeeze(self.w, v, room - self.overhead, self.run),
                    None if price.number <= least => break,
                    None => price.number = (0.25 * price.number).max(least),
                }
            }
        }
        if best.state.len() == 0 && 2 + self.overhead <= self.limit {
            self.largest_entry(&mut best.state);
        }
        best.energy = best.state.energy(self.w, self.run.threads());
        Ok(())
    }

    fn largest_entry(&self, state: &mut State) {
        let ((m, n), entries) = (self.w.dim(), self.w.indexed_iter());
        if let Some(((i, j), value)) = entries.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())) {
            let window = |start| super::CyclicWindow { start, len: 1 };
            state.u.push(window(i), &vec![*value; m]);
            state.v.push(window(j), &vec![1.0; n]);
        }
    }

    /// Least squares for the windows found, one component after the other.
    fn polish(&mut self, best: &mut Best) -> Result<()> {
        for _ in 0..POLISHING.min(self.total.saturating_sub(self.done)) {
            let mut next = best.state.clone();
            next.sweep(self.w, None, self.run)?;
            let energy = next.energy(self.w, self.run.threads());
            if energy >= best.energy {
                break;
            }
            let gain = best.energy - energy;
            *best = Best { state: next, energy };
            let mut history = std::mem::take(&mut self.history);
            let stepped = self.step(&mut history, energy.sqrt());
            self.history = history;
            stepped?;
            if gain <= SMALL * energy {
                break;
            }
        }
        Ok(())
    }
}

/// As many components of full windows as a spec allows.
pub(super) fn full_components((m, n): (usize, usize), spec: &GblrSpec) -> usize {
    (spec.numbers / (m + n + spec.overhead)).min(m.min(n))
}
