//! Descent at a price: one component after the other gets the best window and the best numbers of one side.
//!
//! With the right vectors $v_k$ given, the numbers of $u_k$ see the others through two small tables, $v_k^T W^T$ and $v_k^T v_j$: a pass over
//! all components takes one product with `W`, and what is left of it is never formed.

use super::intervals::best_interval;
use super::window::CyclicWindow;
use crate::error::Result;
use crate::linalg::{Threads, append_rows, gram, matmul, matmul_into, matmul_nt, rows, vectorised};
use crate::projection::Run;
use ndarray::{Array2, ArrayRef2, Axis};

/// What stored numbers cost, in squared error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Price {
    /// Of a number.
    pub(super) number: f64,
    /// Numbers that a component counts as, beside its own.
    pub(super) overhead: usize,
}

/// One side of all components: vectors as long as `W`, zero outside of their windows.
#[derive(Debug, Clone)]
pub(super) struct Side {
    /// `components x features`.
    pub(super) values: Array2<f64>,
    pub(super) windows: Vec<CyclicWindow>,
}

impl Side {
    pub(super) fn empty(features: usize) -> Self {
        Self { values: Array2::zeros((0, features)), windows: Vec::new() }
    }

    /// Adds the numbers of `values` in a window.
    pub(super) fn push(&mut self, window: CyclicWindow, values: &[f64]) {
        let features = self.values.ncols();
        let mut row = Array2::zeros((1, features));
        window.runs(features).into_iter().flatten().for_each(|i| row[[0, i]] = values[i]);
        self.windows.push(window);
        append_rows(&mut self.values, &row);
    }

    fn keep(&mut self, kept: &[usize]) {
        self.values = self.values.select(Axis(0), kept);
        self.windows = kept.iter().map(|&k| self.windows[k]).collect();
    }

    pub(super) fn numbers(&self) -> usize {
        self.windows.iter().map(|window| window.len).sum()
    }
}

/// The components of a candidate.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// `out` features.
    pub(super) u: Side,
    /// `in` features.
    pub(super) v: Side,
}

impl State {
    pub(super) fn empty((m, n): (usize, usize)) -> Self {
        Self { u: Side::empty(m), v: Side::empty(n) }
    }

    pub(super) fn len(&self) -> usize {
        self.u.windows.len()
    }

    /// Stored numbers, and the overhead of each component.
    pub(super) fn size(&self, overhead: usize) -> usize {
        self.u.numbers() + self.v.numbers() + overhead * self.len()
    }

    /// `W - Ŵ`.
    pub(super) fn residual(&self, w: &Array2<f64>, threads: Threads) -> Array2<f64> {
        let mut rest = w.clone();
        let negative = self.u.values.mapv(|a| -a);
        matmul_into(&negative.t(), &self.v.values, &mut rest, true, threads);
        rest
    }

    pub(super) fn energy(&self, w: &Array2<f64>, threads: Threads) -> f64 {
        self.residual(w, threads).iter().map(|e| e * e).sum()
    }

    /// Without components of which one side is empty.
    fn compact(&mut self) {
        let lives = |&k: &usize| self.u.windows[k].len > 0 && self.v.windows[k].len > 0;
        let kept: Vec<usize> = (0..self.len()).filter(lives).collect();
        if kept.len() < self.len() {
            self.u.keep(&kept);
            self.v.keep(&kept);
        }
    }

    /// One pass over the left sides, then one over the right ones: each component gets the best window and numbers of one side for all
    /// else as it is, or goes. Without a price, windows stay. The penalized objective never rises; its fall is returned.
    pub(super) fn sweep(&mut self, w: &Array2<f64>, price: Option<Price>, run: &Run<'_>) -> Result<f64> {
        let mut fall = 0.0;
        for left in [true, false] {
            run.check()?;
            let threads = run.threads();
            let (moving, fixed) = if left { (&mut self.u, &self.v) } else { (&mut self.v, &self.u) };
            let inner = match left {
                true => matmul_nt(&fixed.values, w, threads),
                false => matmul(&fixed.values, w, threads),
            };
            let grams = gram(&fixed.values.t(), threads);
            fall += pass(moving, &fixed.windows, &inner, &grams, price);
            self.compact();
        }
        Ok(fall)
    }
}

/// One pass over the components of a side, given the inner products of the other side with `W` (`components x features`), and with each
/// other, under any second moment. Returns how far the penalized objective fell.
pub(super) fn pass(
    moving: &mut Side,
    fixed: &[CyclicWindow],
    inner: &Array2<f64>,
    grams: &Array2<f64>,
    price: Option<Price>,
) -> f64 {
    vectorised(
        #[inline(always)]
        || pass_over(moving, fixed, inner, grams, price),
    )
}

#[inline(always)]
fn pass_over(
    moving: &mut Side,
    fixed: &[CyclicWindow],
    inner: &Array2<f64>,
    grams: &Array2<f64>,
    price: Option<Price>,
) -> f64 {
    let features = inner.ncols();
    let (mut target, mut gains) = (vec![0.0; features], vec![0.0; features]);
    let mut fall = 0.0;
    for k in 0..moving.windows.len() {
        let own = moving.windows[k];
        let square = grams[[k, k]];
        // Where the new window may be.
        let open = if price.is_some() { CyclicWindow::full(features) } else { own };
        for run in open.runs(features) {
            for i in run {
                target[i] = inner[[k, i]];
            }
        }
        for (j, (other, values)) in moving.windows.iter().zip(rows(&moving.values)).enumerate() {
            let shared = grams[[k, j]];
            if j == k || shared == 0.0 {
                continue;
            }
            for a in open.runs(features) {
                for b in other.runs(features) {
                    let (from, to) = (a.start.max(b.start), a.end.min(b.end));
                    if from < to {
                        subtract(&mut target[from..to], shared, &values[from..to]);
                    }
                }
            }
        }
        let mut before = 0.0;
        for i in own.runs(features).into_iter().flatten() {
            let value = moving.values[[k, i]];
            before += value * (2.0 * target[i] - square * value);
        }
        let counts = square > 0.0;
        let (window, gain) = match price {
            None => {
                let all =
                    own.runs(features).into_iter().flatten().map(|i| target[i] * target[i]).sum::<f64>();
                (own, if counts { all / square } else { 0.0 })
            }
            Some(_) if !counts => (CyclicWindow { start: 0, len: 0 }, 0.0),
            Some(price) => {
                for (gain, target) in gains.iter_mut().zip(&target) {
                    *gain = target * target / square - price.number;
                }
                let (window, gain) = best_interval(&gains);
                let rest = price.number * (fixed[k].len + price.overhead) as f64;
                let paid = price.number * own.len as f64 + if own.len > 0 { rest } else { 0.0 };
                before -= paid;
                match gain > rest {
                    true => (window, gain - rest),
                    false => (CyclicWindow { start: 0, len: 0 }, 0.0),
                }
            }
        };
        fall += gain - before;
        moving.values.row_mut(k).fill(0.0);
        moving.windows[k] = window;
        for i in window.runs(features).into_iter().flatten() {
            moving.values[[k, i]] = if counts { target[i] / square } else { 0.0 };
        }
    }
    fall
}

#[inline(always)]
fn subtract(from: &mut [f64], scale: f64, values: &[f64]) {
    for (a, b) in from.iter_mut().zip(values) {
        *a -= scale * b;
    }
}

/// Windows and numbers of one side for given vectors of the other, each by itself: `inner` holds `R v`, `squares` the $\|v\|^2$. The gain of
/// each, without what the other side costs; components that gain nothing become empty.
pub(super) fn respond(inner: &ArrayRef2<f64>, squares: &[f64], price: f64) -> (Side, Vec<f64>) {
    let (count, features) = inner.dim();
    let mut side = Side { values: Array2::zeros((count, features)), windows: Vec::with_capacity(count) };
    let mut found = Vec::with_capacity(count);
    let mut gains = vec![0.0; features];
    for ((inner, mut values), &square) in inner.outer_iter().zip(side.values.outer_iter_mut()).zip(squares) {
        if square.is_nan() || square <= 0.0 {
            side.windows.push(CyclicWindow { start: 0, len: 0 });
            found.push(0.0);
            continue;
        }
        gains.iter_mut().zip(&inner).for_each(|(gain, t)| *gain = t * t / square - price);
        let (window, gain) = best_interval(&gains);
        for i in window.runs(features).into_iter().flatten() {
            values[i] = inner[i] / square;
        }
        side.windows.push(window);
        found.push(gain);
    }
    (side, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::Options;
    use crate::random::Gaussian;

    fn start(w: &Array2<f64>, count: usize, gaussian: &mut Gaussian) -> State {
        let (m, n) = w.dim();
        let mut state = State::empty((m, n));
        for k in 0..count {
            let window = |len: usize, at: usize| CyclicWindow { start: at % len, len: 1 + (7 * at) % len };
            state.u.push(window(m, 5 * k), &gaussian.matrix(1, m, 0.3).into_raw_vec_and_offset().0);
            state.v.push(window(n, 3 * k + 1), &gaussian.matrix(1, n, 0.3).into_raw_vec_and_offset().0);
        }
        state
    }

    /// What a sweep says it gained is what the objective fell by, with windows that move and with windows that stay.
    #[test]
    fn sweeps_lower_the_penalized_objective_by_what_they_say() {
        let options = Options::default();
        let run = Run::new(&options);
        for seed in 0..4 {
            let mut gaussian = Gaussian::new(seed);
            let w = gaussian.matrix(17, 23, 1.0);
            for number in [0.0, 0.1, 0.7, 3.0] {
                let price = Price { number, overhead: 2 };
                let objective = |state: &State| {
                    state.energy(&w, run.threads()) + number * state.size(price.overhead) as f64
                };
                let mut state = start(&w, 9, &mut gaussian);
                for sweep in 0..6 {
                    let before = objective(&state);
                    let fall = state.sweep(&w, (sweep < 4).then_some(price), &run).unwrap();
                    let after = objective(&state);
                    assert!(
                        fall >= -1e-10 && (before - after - fall).abs() < 1e-9 * before,
                        "{before} {after} {fall}"
                    );
                }
            }
        }
    }
}
