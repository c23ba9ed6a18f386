//! New components: candidates for what is left of a weight, many at a time.

use super::descent::{Price, State, respond};
use super::intervals::{best_interval, best_of_length};
use crate::error::Result;
use crate::linalg::{self, append_rows, dot, matmul, matmul_into, matmul_nt};
use crate::projection::Run;
use ndarray::{Array2, ArrayView1, Axis, s};

/// How often a candidate's two sides answer each other.
const ALTERNATIONS: usize = 8;
/// Directions of largest energy among the starts of candidates, and products with the residual that find them.
const LEADING: usize = 4;
const POWERS: usize = 5;
/// Rows, and columns, among the starts: the largest of so many stretches.
const STRETCHES: usize = 8;

/// What came of candidates.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// By how much the penalized objective fell.
    pub(super) fall: f64,
    /// The right vector of the first one that would have lowered it and found no room.
    pub(super) cramped: Option<Vec<f64>>,
}

impl State {
    /// Adds components that lower the penalized objective, `room` numbers (and overhead) at most, until a round of candidates finds
    /// none, or `rounds` are done.
    pub(super) fn grow(
        &mut self,
        w: &Array2<f64>,
        price: Price,
        room: usize,
        rounds: usize,
        run: &Run<'_>,
    ) -> Result<Growth> {
        let (mut rest, mut room, mut growth) = (self.residual(w, run.threads()), room, Growth::default());
        for round in 0..rounds {
            run.check()?;
            let before = self.len();
            self.add(&rest, price, &mut room, round, &mut growth, run);
            if self.len() == before {
                break;
            }
            let added = s![before.., ..];
            let negative = self.u.values.slice(added).mapv(|a| -a);
            matmul_into(&negative.t(), &self.v.values.slice(added), &mut rest, true, run.threads());
        }
        Ok(growth)
    }

    /// One round: the candidates one after the other, the best first, each against what those before it have left.
    fn add(
        &mut self,
        rest: &Array2<f64>,
        price: Price,
        room: &mut usize,
        round: usize,
        growth: &mut Growth,
        run: &Run<'_>,
    ) {
        let threads = run.threads();
        let mut right = starts(rest, round, run);
        let squares = |a: &Array2<f64>| a.outer_iter().map(|row| row.dot(&row)).collect::<Vec<_>>();
        let mut candidates = None;
        for _ in 0..ALTERNATIONS {
            let (left, _) = respond(&matmul_nt(&right, rest, threads), &squares(&right), price.number);
            let (answer, gains) =
                respond(&matmul(&left.values, rest, threads), &squares(&left.values), price.number);
            right = answer.values.clone();
            candidates = Some((left, answer, gains));
        }
        let Some((left, right, gains)) = candidates else { return };
        let gain = |c: usize| gains[c] - price.number * (left.windows[c].len + price.overhead) as f64;
        let mut order: Vec<usize> = (0..gains.len()).filter(|&c| gain(c) > 0.0).collect();
        order.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)).then(a.cmp(&b)));
        let inner = matmul_nt(&right.values, rest, threads);
        let first = self.len();
        for c in order {
            let v = right.values.row(c);
            let square = v.dot(&v);
            let mut target = inner.row(c).to_vec();
            for k in first..self.len() {
                let shared = self.v.values.row(k).dot(&v);
                target.iter_mut().zip(self.u.values.row(k)).for_each(|(t, u)| *t -= shared * u);
            }
            let gains: Vec<f64> = target.iter().map(|t| t * t / square - price.number).collect();
            let (window, gain) = best_interval(&gains);
            let size = window.len + right.windows[c].len + price.overhead;
            let gain = gain - price.number * (right.windows[c].len + price.overhead) as f64;
            if gain > 0.0 && size > *room {
                growth.cramped.get_or_insert_with(|| v.to_vec());
            } else if gain > 0.0 {
                target.iter_mut().for_each(|t| *t /= square);
                self.u.push(window, &target);
                self.v.push(right.windows[c], &v.to_vec());
                *room -= size;
                growth.fall += gain;
            }
        }
    }
}

impl State {
    /// Adds the component of `room` numbers at most, half of them for its columns, that starts from the right vector `v`.
    pub(super) fn squeeze(&mut self, w: &Array2<f64>, mut v: Vec<f64>, room: usize, run: &Run<'_>) {
        let ((m, n), rest) = (w.dim(), self.residual(w, run.threads()));
        let squares = |a: &[f64]| a.iter().map(|a| a * a).collect::<Vec<_>>();
        let cols = best_of_length(&squares(&v), (room / 2).min(n).max(room.saturating_sub(m).min(n)));
        let rows_left = (room - cols.len).min(m);
        let mut kept = vec![0.0; n];
        cols.features(n).for_each(|j| kept[j] = v[j]);
        v = kept;
        let square = dot(&v, &v);
        let mut u = rest.dot(&ArrayView1::from(&v)).to_vec();
        let rows = best_of_length(&squares(&u), rows_left);
        u.iter_mut().for_each(|u| *u /= square);
        if square > 0.0 && rows.len > 0 && cols.len > 0 {
            self.u.push(rows, &u);
            self.v.push(cols, &v);
        }
    }
}

/// Right vectors to start from: leading singular vectors, large rows, and what large columns see.
fn starts(rest: &Array2<f64>, round: usize, run: &Run<'_>) -> Array2<f64> {
    let ((m, n), threads) = (rest.dim(), run.threads());
    let mut leading = run.gaussian(7 + round as u64).matrix(n, LEADING.min(n).min(m), 1.0);
    for _ in 0..POWERS {
        let image = matmul(rest, &linalg::qr(&leading).q, threads);
        leading = linalg::matmul_tn(rest, &image, threads);
    }
    let turned = rest.t();
    let energies = |a: &ndarray::ArrayView2<'_, f64>| -> Vec<f64> {
        a.outer_iter()
            .map(|row| match row.to_slice() {
                Some(row) => dot(row, row),
                None => row.dot(&row),
            })
            .collect()
    };
    let rows = largest_of_stretches(&energies(&rest.view()), STRETCHES.min(m));
    let columns = largest_of_stretches(&energies(&turned.view()), STRETCHES.min(n));
    let seen = matmul(&turned.select(Axis(0), &columns), rest, threads);
    let mut all = leading.t().as_standard_layout().into_owned();
    append_rows(&mut all, &rest.select(Axis(0), &rows));
    append_rows(&mut all, &seen);
    all
}

/// The index of the largest number of each of `count` stretches.
fn largest_of_stretches(numbers: &[f64], count: usize) -> Vec<usize> {
    let bound = |k: usize| k * numbers.len() / count.max(1);
    let largest = |k: usize| (bound(k)..bound(k + 1)).max_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
    (0..count).filter_map(largest).collect()
}
