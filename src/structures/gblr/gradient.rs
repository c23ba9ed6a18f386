//! The published fit: gradient descent on numbers, widths and locations.

use super::GblrSpec;
use super::descent::State;
use super::window::{CyclicWindow, Masks, mean_shrink, rounded};
use crate::adam::Adam;
use crate::error::{Error, Result};
use crate::linalg::{self, matmul, matmul_nt};
use crate::projection::Run;
use ndarray::Array2;
use rand::Rng;

/// Steps.
const STEPS: usize = 1000;
/// What the moments keep.
const KEEP: (f64, f64) = (0.0, 0.999);
/// The last step, relative to the first.
const LAST: f64 = 0.01;

/// One side: numbers, and the windows that cut them.
struct Cut {
    /// `components x features`.
    values: Array2<f64>,
    widths: Vec<f64>,
    locations: Vec<f64>,
    masks: Masks,
    optimizers: [Adam<f64>; 3],
}

impl Cut {
    fn new(values: Array2<f64>, locations: Vec<f64>, (rate, window_rate): (f64, f64)) -> Self {
        let (count, features) = values.dim();
        let adam = |len, rate| Adam::new(len, rate, KEEP);
        let optimizers = [adam(values.len(), rate), adam(count, window_rate), adam(count, window_rate)];
        Self { values, widths: vec![1.0; count], locations, masks: Masks::new(features), optimizers }
    }

    fn windows(&self) -> Vec<CyclicWindow> {
        let features = self.values.ncols();
        let windows = self.widths.iter().zip(&self.locations);
        windows.map(|(w, l)| CyclicWindow::nearest(*w, *l, features)).collect()
    }

    /// The numbers in their windows, zero outside.
    fn cut(&self, windows: &[CyclicWindow]) -> Array2<f64> {
        let mut cut = Array2::zeros(self.values.dim());
        let rows = cut.outer_iter_mut().zip(self.values.outer_iter()).zip(windows);
        for ((mut cut, values), window) in rows {
            window.features(values.len()).for_each(|i| cut[i] = values[i]);
        }
        cut
    }

    /// A step against `slope`, the gradient of the numbers as they are cut.
    fn step(&mut self, windows: &[CyclicWindow], slope: &Array2<f64>, part: f64) {
        let (count, features) = self.values.dim();
        let (mut by_width, mut by_location) = (vec![0.0; count], vec![0.0; count]);
        let (mut dw, mut dl) = (vec![0.0; features], vec![0.0; features]);
        for k in 0..count {
            // Straight through: the gradients at the rounded width and location.
            let (w, l) = (rounded(self.widths[k], features), rounded(self.locations[k], features));
            self.masks.gradients(w, l, f64::INFINITY, &mut dw, &mut dl);
            for (i, (value, slope)) in self.values.row(k).iter().zip(slope.row(k)).enumerate() {
                by_width[k] += value * slope * dw[i];
                by_location[k] += value * slope * dl[i];
            }
        }
        let mut own = Array2::zeros((count, features));
        for (k, window) in windows.iter().enumerate() {
            window.features(features).for_each(|i| own[[k, i]] = slope[[k, i]]);
        }
        let [numbers, widths, locations] = &mut self.optimizers;
        numbers.step_array(&mut self.values, &own, part);
        widths.step(&mut self.widths, &by_width, part);
        locations.step(&mut self.locations, &by_location, part);
        self.locations.iter_mut().for_each(|l| *l -= l.floor());
    }
}

/// The best iterate within the budget, and the least error so far after each step.
pub(super) fn fit(
    w: &Array2<f64>,
    spec: &GblrSpec,
    (rate, window_rate): (f64, f64),
    run: &Run<'_>,
) -> Result<(State, Vec<f64>)> {
    let ((m, n), threads) = (w.dim(), run.threads());
    let energy: f64 = w.iter().map(|a| a * a).sum();
    let mut best = (State::empty((m, n)), energy);
    let mut history = Vec::new();
    if w.iter().all(|a| *a == 0.0) {
        return Ok((best.0, history));
    }
    if !energy.is_normal() {
        return Err(Error::parameter("weight", "squares that overflow or vanish", "a scale nearer to 1"));
    }
    let count = m.min(n);
    let (left, right) = linalg::svd(w, threads)?.split_sqrt(count);
    let mut random = run.gaussian(2);
    let mut locations = || -> Vec<f64> { (0..count).map(|_| fraction(random.rng().next_u64())).collect() };
    let rates = (rate, window_rate / count as f64);
    let mut u = Cut::new(left.reversed_axes(), locations(), rates);
    let mut v = Cut::new(right, locations(), rates);
    let target = spec.numbers as f64 / ((m + n) as f64 * count as f64);
    let mut keep = |u: &Cut, v: &Cut, error: f64, state: &dyn Fn() -> State| {
        let (rows, cols) = (u.windows(), v.windows());
        let lives = |(a, b): (&CyclicWindow, &CyclicWindow)| a.len > 0 && b.len > 0;
        let size: usize = rows
            .iter()
            .zip(&cols)
            .filter(|&pair| lives(pair))
            .map(|(a, b)| a.len + b.len + spec.overhead)
            .sum();
        let fits = size <= spec.numbers;
        if fits && error < best.1 {
            best = (state(), error);
        }
        (fits, best.1)
    };
    let steps = run.max_iterations(STEPS);
    let mut shrunk = target;
    for step in 0.. {
        let (rows, cols) = (u.windows(), v.windows());
        let (a, b) = (u.cut(&rows), v.cut(&cols));
        // Ŵ - W.
        let mut rest = matmul(&a.t(), &b, threads);
        rest -= w;
        let error: f64 = rest.iter().map(|e| e * e).sum();
        let (fits, least) = keep(&u, &v, error, &|| live(&rows, &cols, &a, &b));
        if step > 0 {
            history.push((least / energy).sqrt());
            run.step(step.min(steps), steps, history.last().copied())?;
        }
        if step >= steps {
            // Rounding may have left the last windows a little too wide.
            if fits || shrunk < 1e-6 {
                break;
            }
            shrunk *= 0.98;
            mean_shrink(&mut u.widths, &mut v.widths, (m, n), shrunk)?;
            continue;
        }
        rest *= 2.0 / energy;
        let (da, db) = (matmul_nt(&b, &rest, threads), matmul(&a, &rest, threads));
        let part = 1.0 - (1.0 - LAST) * step as f64 / steps as f64;
        u.step(&rows, &da, part);
        v.step(&cols, &db, part);
        mean_shrink(&mut u.widths, &mut v.widths, (m, n), target)?;
    }
    Ok((best.0, history))
}

/// A number from 0 to 1.
fn fraction(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The components of which neither window is empty.
fn live(rows: &[CyclicWindow], cols: &[CyclicWindow], a: &Array2<f64>, b: &Array2<f64>) -> State {
    let mut state = State::empty((a.ncols(), b.ncols()));
    for (k, (row, col)) in rows.iter().zip(cols).enumerate() {
        if row.len > 0 && col.len > 0 {
            state.u.push(*row, &a.row(k).to_vec());
            state.v.push(*col, &b.row(k).to_vec());
        }
    }
    state
}
