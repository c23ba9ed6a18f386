//! Members with windows of a grid: low-rank, block-diagonal and block-low-rank matrices.

use super::descent::{Price, State};
use super::window::CyclicWindow;
use crate::error::Result;
use crate::linalg::{self, SvdOptions};
use crate::projection::Run;
use ndarray::{Array2, s};
use std::ops::Range;

/// Grids of so many block rows and block columns. The first one is low rank.
pub(super) const GRIDS: [usize; 4] = [1, 2, 4, 8];
/// Blocks have at least so many rows and columns.
const LEAST_SIDE: usize = 4;

/// A singular triplet of a block of the weight.
#[derive(Debug)]
struct Triplet {
    rows: Range<usize>,
    cols: Range<usize>,
    value: f64,
    u: Vec<f64>,
    v: Vec<f64>,
}

/// The singular triplets of all blocks of a grid, those with most energy per number first: as many as `limit` numbers (and overhead) hold.
#[derive(Debug)]
pub(super) struct Members {
    shape: (usize, usize),
    overhead: usize,
    triplets: Vec<Triplet>,
}

impl Members {
    /// `None` where blocks would be too small.
    pub(super) fn new(
        w: &Array2<f64>,
        grid: usize,
        limit: usize,
        overhead: usize,
        run: &Run<'_>,
    ) -> Result<Option<Self>> {
        let (m, n) = w.dim();
        if grid > 1 && m.min(n) < grid * LEAST_SIDE {
            return Ok(None);
        }
        let options = SvdOptions { seed: run.seed(), ..SvdOptions::default() };
        let side = |i: usize, len: usize| i * len / grid..(i + 1) * len / grid;
        let mut triplets = Vec::new();
        for (i, j) in (0..grid).flat_map(|i| (0..grid).map(move |j| (i, j))) {
            run.check()?;
            let (rows, cols) = (side(i, m), side(j, n));
            let block = w.slice(s![rows.clone(), cols.clone()]);
            let rank = (limit / (rows.len() + cols.len() + overhead)).min(rows.len().min(cols.len()));
            if rank == 0 {
                continue;
            }
            let svd = linalg::truncated_svd(&block, rank, &options, run.threads())?.svd;
            for (k, &value) in svd.s.iter().enumerate().filter(|(_, value)| **value > 0.0) {
                let (u, v) = (svd.u.column(k).to_vec(), svd.vt.row(k).to_vec());
                triplets.push(Triplet { rows: rows.clone(), cols: cols.clone(), value, u, v });
            }
        }
        let mut members = Self { shape: (m, n), overhead, triplets };
        members.triplets.sort_by(|a, b| density(b, overhead).total_cmp(&density(a, overhead)));
        let kept = members.within(limit);
        members.triplets.truncate(kept);
        Ok(Some(members))
    }

    /// How many of the first triplets `limit` numbers hold.
    pub(super) fn within(&self, limit: usize) -> usize {
        let mut left = limit;
        let fits = |t: &&Triplet| {
            let size = size(t, self.overhead);
            let fits = size <= left;
            left = left.saturating_sub(size);
            fits
        };
        self.triplets.iter().take_while(fits).count()
    }

    /// How many pay at a price.
    pub(super) fn paying(&self, price: Price) -> usize {
        self.triplets.iter().take_while(|t| density(t, price.overhead) > price.number).count()
    }

    /// Energy per number of the last of the first `count` triplets, or of the first one.
    pub(super) fn marginal(&self, count: usize) -> f64 {
        self.triplets.get(count.saturating_sub(1)).map_or(0.0, |t| density(t, self.overhead))
    }

    /// The energy that the first `count` triplets explain, without what they cost at a price per number.
    pub(super) fn gain(&self, count: usize, number: f64) -> f64 {
        let gain = |t: &Triplet| t.value * t.value - number * size(t, self.overhead) as f64;
        self.triplets[..count].iter().map(gain).sum()
    }

    /// The matrix of the first `count` triplets: the best one of its grid with so many, as blocks do not overlap.
    pub(super) fn state(&self, count: usize) -> State {
        let mut state = State::empty(self.shape);
        let spread = |range: &Range<usize>, values: &[f64], features: usize, scale: f64| {
            let mut all = vec![0.0; features];
            all[range.clone()].iter_mut().zip(values).for_each(|(to, from)| *to = scale * from);
            all
        };
        let window = |range: &Range<usize>| CyclicWindow { start: range.start, len: range.len() };
        for t in &self.triplets[..count] {
            let root = t.value.sqrt();
            state.u.push(window(&t.rows), &spread(&t.rows, &t.u, self.shape.0, root));
            state.v.push(window(&t.cols), &spread(&t.cols, &t.v, self.shape.1, root));
        }
        state
    }
}

fn size(t: &Triplet, overhead: usize) -> usize {
    t.rows.len() + t.cols.len() + overhead
}

fn density(t: &Triplet, overhead: usize) -> f64 {
    t.value * t.value / size(t, overhead) as f64
}
