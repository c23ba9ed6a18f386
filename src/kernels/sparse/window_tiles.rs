//! Windows for products that add up outputs: their numbers in tiles of neighbouring columns, those of the same columns together, so that
//! outputs stay in registers while the rows pass by.

// Sums are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::middle;
use super::windows::{Windows, together};
use crate::exec::Policy;
use crate::kernels::aligned::AlignedVec;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::Simd;
use crate::kernels::team;
use crate::kernels::view::{Rows, RowsMut};
use crate::matrix::Update;
use crate::scalar::Scalar;
use std::ops::Range;

/// Columns of a tile: a multiple of every vector length.
const TILE: usize = 16;
/// Numbers of tiles for each of the matrix at most: short windows are mostly padding.
const MOST_PADDED: usize = 2;

/// A matrix of windows as tiles of one row and 16 columns.
#[derive(Debug, Clone)]
pub struct WindowTiles<T> {
    shape: (usize, usize),
    /// Where the tiles of each group of columns start, and the number of all.
    starts: Vec<u32>,
    /// The row of each.
    rows: Vec<u32>,
    /// Their numbers; zero beside the window.
    numbers: AlignedVec<T>,
}

/// The groups of columns that a run covers.
fn groups(run: &Range<usize>) -> Range<usize> {
    if run.is_empty() { 0..0 } else { run.start / TILE..run.end.div_ceil(TILE) }
}

/// Whether windows fill most of their tiles.
pub(super) fn fill_tiles(windows: &Windows) -> bool {
    let runs = (0..windows.rows()).flat_map(|k| windows.runs(k));
    let tiles: usize = runs.map(|(_, run)| groups(&run).len()).sum();
    tiles.saturating_mul(TILE) <= windows.len().saturating_mul(MOST_PADDED).min(u32::MAX as usize)
}

impl<T: Scalar> WindowTiles<T> {
    /// With the number `number(p)` at place `p` of the windows; `None` where tiles would be mostly padding.
    pub(crate) fn new(windows: &Windows, number: impl Fn(usize) -> T) -> Option<Self> {
        if !windows.fill_tiles() {
            return None;
        }
        let mut starts = vec![0u32; windows.width().div_ceil(TILE) + 1];
        let runs = || (0..windows.rows()).flat_map(|k| windows.runs(k).map(|(place, run)| (k, place, run)));
        for (_, _, run) in runs() {
            groups(&run).for_each(|group| starts[group + 1] += 1);
        }
        for group in 1..starts.len() {
            starts[group] += starts[group - 1];
        }
        let (mut next, all) = (starts.clone(), starts[starts.len() - 1] as usize);
        let (mut rows, mut numbers) = (vec![0; all], AlignedVec::zeroed(all * TILE));
        for (k, place, run) in runs() {
            for group in groups(&run) {
                let tile = next[group] as usize;
                (next[group], rows[tile]) = (next[group] + 1, k as u32);
                let columns = run.start.max(group * TILE)..run.end.min((group + 1) * TILE);
                for column in columns {
                    numbers[tile * TILE + column - group * TILE] = number(place + column - run.start);
                }
            }
        }
        Some(Self { shape: (windows.rows(), windows.width()), starts, rows, numbers })
    }

    /// `Y (+)= X A`. Panics when the operands do not fit.
    pub(crate) fn multiply(&self, x: Rows<'_, T>, y: RowsMut<'_, T>, update: Update, policy: Policy) {
        assert!(x.rows() == y.rows() && (x.cols(), y.cols()) == self.shape);
        let tasks = policy.tasks(self.numbers.len().saturating_mul(x.rows()));
        let groups = 0..self.starts.len() - 1;
        Product { tiles: self, groups, x, y, update }.divide(policy.level, tasks);
    }
}

/// Rows scaled by batch entries and added up in the outputs of some groups of columns, which are those of `y`.
struct Product<'a, T> {
    tiles: &'a WindowTiles<T>,
    groups: Range<usize>,
    x: Rows<'a, T>,
    y: RowsMut<'a, T>,
    update: Update,
}

impl<T: Scalar> Product<'_, T> {
    /// Divided between threads where half of the tiles lie.
    fn divide(self, level: Level, tasks: usize) {
        let Self { tiles, groups, x, y, update } = self;
        let at = middle(&tiles.starts[groups.start..=groups.end]);
        if tasks < 2 || at == 0 || at == groups.len() {
            return T::dispatch(level, Product { tiles, groups, x, y, update });
        }
        let ((left, right), half, middle) = (y.split_columns(at * TILE), tasks / 2, groups.start + at);
        let part = |groups, y| Product { tiles, groups, x, y, update };
        let (left, right) = (part(groups.start..middle, left), part(middle..groups.end, right));
        team::join(|| left.divide(level, tasks - half), move || right.divide(level, half));
    }
}

impl<T: Scalar> Kernel<T> for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, simd: S) {
        let batch = self.x.rows();
        for group in self.groups.clone() {
            let mut first = 0;
            while first < batch {
                let n = together(simd, batch - first);
                match n {
                    8 => self.group::<S, 8, 2>(simd, group, first),
                    4 => self.group::<S, 4, 2>(simd, group, first),
                    _ => self.group::<S, 1, 4>(simd, group, first),
                }
                first += n;
            }
        }
    }
}

impl<T: Scalar> Product<'_, T> {
    /// The outputs of a group of columns for `B` batch rows, with `U` sums for each.
    #[inline(always)]
    fn group<S: Simd<T>, const B: usize, const U: usize>(&mut self, simd: S, group: usize, first: usize) {
        let Self { tiles: WindowTiles { shape, starts, rows, numbers }, ref groups, x, ref mut y, update } =
            *self;
        let tiles = starts[group] as usize..starts[group + 1] as usize;
        let (rows, numbers) = (&rows[tiles.clone()], &numbers[tiles.start * TILE..tiles.end * TILE]);
        // Of as many numbers as there are rows, which are those of the tiles.
        let x: [*const T; B] = std::array::from_fn(|b| x.row(first + b)[..shape.0].as_ptr());
        let at = (group - groups.start) * TILE;
        let end = y.cols().min(at + TILE);
        for v in (0..end - at).step_by(S::LANES) {
            let mut sums = [[simd.zero(); B]; U];
            let add = |tile: usize, sums: &mut [S::V; B]| {
                // SAFETY: the tile has numbers there; batch rows have an entry for its row.
                unsafe {
                    let (a, k) =
                        (simd.load(numbers.as_ptr().add(tile * TILE + v)), *rows.get_unchecked(tile));
                    for b in 0..B {
                        sums[b] = simd.mul_add(a, simd.splat(*x[b].add(k as usize)), sums[b]);
                    }
                }
            };
            let whole = rows.len() / U * U;
            for tile in (0..whole).step_by(U) {
                for u in 0..U {
                    add(tile + u, &mut sums[u]);
                }
            }
            for tile in whole..rows.len() {
                add(tile, &mut sums[0]);
            }
            let n = S::LANES.min(end - at - v);
            for b in 0..B {
                let mut sum = sums[0][b];
                for more in &sums[1..] {
                    sum = simd.add(sum, more[b]);
                }
                let to = y.row(first + b)[at + v..][..n].as_mut_ptr();
                // SAFETY: there are `n` outputs.
                unsafe {
                    if update == Update::Accumulate {
                        sum = simd.add(simd.load_part(to, n), sum);
                    }
                    simd.store_part(to, sum, n);
                }
            }
        }
    }
}
