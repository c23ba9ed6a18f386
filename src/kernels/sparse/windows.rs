//! Products with a matrix whose rows each hold one run of numbers: windows that may continue at the first column.
//!
//! Lanes are columns: a vector of numbers meets the same columns of some batch rows at once. Columns are worked on a block at a time, in a copy of
//! those of the batch rows that stays in the first-level cache while the windows pass by.

// Sums are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::middle;
use super::values::{BLOCK, Decoded, Stream, Values};
use super::window_tiles::fill_tiles;
use crate::exec::Policy;
use crate::kernels::batches::Aligned;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::{self, Simd, prefetch_near};
use crate::kernels::source::Source;
use crate::kernels::view::{Rows, RowsMut};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use std::ops::Range;

/// Columns from which threads split a transposed product: a multiple of every vector length.
const SPLIT: usize = 16;

/// How far ahead of several batch rows numbers are fetched.
const AHEAD: usize = 128;

/// Where the numbers of each row stand: row `k` holds numbers `offsets[k]..offsets[k + 1]`, side by side from column `starts[k]` on and
/// on from column 0 where they reach the width. Checked once.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    width: usize,
    starts: Vec<u32>,
    offsets: Vec<u32>,
    /// Whether windows fill most of their tiles.
    fill_tiles: bool,
}

impl Windows {
    /// From starts and lengths; `None` when a window is empty, longer than the width or begins beyond it, or there are more numbers than
    /// an index of 4 bytes counts.
    pub(crate) fn new(width: usize, starts: Vec<u32>, lens: &[u32]) -> Option<Self> {
        let inside =
            |(&start, &len): (&u32, &u32)| (start as usize) < width && (1..=width).contains(&(len as usize));
        let mut offsets = Vec::with_capacity(lens.len() + 1);
        offsets.push(0u32);
        for &len in lens {
            offsets.push(offsets[offsets.len() - 1].checked_add(len)?);
        }
        let fits = starts.len() == lens.len() && starts.iter().zip(lens).all(inside);
        let windows = Self { width, starts, offsets, fill_tiles: false };
        fits.then(|| Self { fill_tiles: fill_tiles(&windows), ..windows })
    }

    /// Whether there is a form in [`WindowTiles`](super::WindowTiles), which outputs are added up faster with.
    pub(crate) fn fill_tiles(&self) -> bool {
        self.fill_tiles
    }

    pub(crate) fn rows(&self) -> usize {
        self.starts.len()
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Numbers of all rows.
    pub(crate) fn len(&self) -> usize {
        self.offsets[self.rows()] as usize
    }

    pub(crate) fn starts(&self) -> &[u32] {
        &self.starts
    }

    pub(crate) fn lens(&self) -> Vec<u32> {
        self.offsets.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// The places of the numbers of row `k` among all.
    pub(crate) fn places(&self, k: usize) -> Range<usize> {
        self.offsets[k] as usize..self.offsets[k + 1] as usize
    }

    /// Row `k`, in one or two runs: the first place of each and the columns that it covers.
    #[inline(always)]
    pub(crate) fn runs(&self, k: usize) -> [(usize, Range<usize>); 2] {
        let (Range { start: place, end }, start) = (self.places(k), self.starts[k] as usize);
        let first = (end - place).min(self.width - start);
        [(place, start..start + first), (place + first, 0..end - place - first)]
    }

    /// Calls `f` with the numbers of row `k` that meet a block of columns: the places of at most [`BLOCK`] of them, and where their columns are in
    /// the block. The block has the columns that continue at the first one `again` places further; where it has all of them twice, a row is
    /// one run.
    #[inline(always)]
    fn each_run(
        &self,
        k: usize,
        columns: &Range<usize>,
        again: usize,
        mut f: impl FnMut(Range<usize>, Range<usize>),
    ) {
        let (Range { start: place, end }, start) = (self.places(k), self.starts[k] as usize);
        let (len, first) = (end - place, (end - place).min(self.width - start));
        let clip = |place: usize, run: Range<usize>, shift: usize| {
            let from = run.start.max(columns.start);
            let to = run.end.min(columns.end).saturating_sub(columns.start);
            (place + (from - run.start), from - columns.start + shift, to + shift)
        };
        let twice = again == self.width;
        let mut run = if twice { (place, start, start + len) } else { clip(place, start..start + first, 0) };
        let mut rest = (!twice && first < len).then(|| clip(place + first, 0..len - first, again));
        loop {
            let (mut place, mut from, to) = run;
            while from < to {
                let n = BLOCK.min(to - from);
                f(place..place + n, from..from + n);
                (place, from) = (place + n, from + n);
            }
            let Some(next) = rest.take() else { return };
            run = next;
        }
    }
}

/// What to multiply with a matrix of windows.
#[derive(Debug)]
pub struct WindowProduct<'a, T> {
    pub(crate) windows: &'a Windows,
    pub(crate) op: Op,
    pub(crate) x: Rows<'a, T>,
    pub(crate) y: RowsMut<'a, T>,
    pub(crate) update: Update,
    pub(crate) policy: Policy,
}

/// `Y (+)= X Aᵀ` (forward) or `Y (+)= X A` (transposed) for the matrix `A` of these windows and numbers. Panics when the operands do not
/// fit.
pub(crate) fn multiply_windows<T: Scalar, W: Source>(source: W, product: WindowProduct<'_, T>) {
    let WindowProduct { windows, op, x, y, .. } = &product;
    assert!(source.cols() == windows.len() && x.rows() == y.rows());
    assert!((windows.rows(), windows.width()) == op.order(y.cols(), x.cols()));
    multiply(&Stream::new(source, product.policy.level), product);
}

fn multiply<T: Scalar>(values: &dyn Values<T>, product: WindowProduct<'_, T>) {
    let WindowProduct { windows, op, x, y, update, policy } = product;
    let tasks = policy.tasks(windows.len().saturating_mul(x.rows()));
    let job = Job { values, windows, x, update, level: policy.level };
    match op {
        Op::Forward => job.gather(0..windows.rows(), y, tasks),
        Op::Transpose => job.scatter(0..windows.width(), y, tasks),
    }
}

struct Job<'a, T> {
    values: &'a dyn Values<T>,
    windows: &'a Windows,
    x: Rows<'a, T>,
    update: Update,
    level: Level,
}

impl<T: Scalar> Job<'_, T> {
    /// Rows `rows`, as many as `y` has columns, split where half of the numbers lie.
    fn gather(&self, rows: Range<usize>, y: RowsMut<'_, T>, tasks: usize) {
        let at = middle(&self.windows.offsets[rows.start..=rows.end]);
        if tasks < 2 || at == 0 || at == rows.len() {
            return T::dispatch(self.level, Gather { job: self, rows, y });
        }
        let ((left, right), half, middle) = (y.split_columns(at), tasks / 2, rows.start + at);
        crate::kernels::team::join(
            || self.gather(rows.start..middle, left, tasks - half),
            move || self.gather(middle..rows.end, right, half),
        );
    }

    /// The outputs `columns`, which are the columns of `y`. Each is summed in the order of the rows, wherever it is split.
    fn scatter(&self, columns: Range<usize>, y: RowsMut<'_, T>, tasks: usize) {
        let at = columns.len() / 2 / SPLIT * SPLIT;
        if tasks < 2 || at == 0 {
            return T::dispatch(self.level, Scatter { job: self, columns, y });
        }
        let ((left, right), half, middle) = (y.split_columns(at), tasks / 2, columns.start + at);
        crate::kernels::team::join(
            || self.scatter(columns.start..middle, left, tasks - half),
            move || self.scatter(middle..columns.end, right, half),
        );
    }
}

/// Batch rows at a time, of so many that are left: sums for all of them stay in registers.
#[inline(always)]
pub(super) fn together<T, S: Simd<T>>(_: S, left: usize) -> usize {
    match left {
        8.. if S::REGISTERS == 32 => 8,
        4.. => 4,
        _ => 1,
    }
}

/// Blocks of the columns `all`: those of the batch rows that go together have room in a [`Block`]. A row by itself is one block, so that the
/// numbers are one stream; it is used where it lies if it has no room.
#[inline(always)]
fn blocks<T, S: Simd<T>>(simd: S, batch: usize, all: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let len = match together(simd, batch) {
        1 => all.end.max(1),
        rows => 2 * BLOCK / rows,
    };
    // Blocks start at multiples of their length, wherever the columns are split.
    let first = all.start / len * len;
    (first..all.end).step_by(len).map(move |start| start.max(all.start)..(start + len).min(all.end))
}

/// Room for a block of columns of `B` batch rows, twice: vector by vector, those of all rows side by side, so that they are found without more
/// arithmetic.
struct Block<T, const B: usize>(Aligned<T, ROOM>);

/// Numbers of a block at most.
const ROOM: usize = 4 * BLOCK;

/// Whether a block of some batch rows has room for the columns of a width. Threads may have some of these, which are not asked: sums are the same then.
#[inline(always)]
fn has_room(batch: usize, width: usize) -> bool {
    batch > 1 || width <= 2 * BLOCK
}

impl<T: Scalar, const B: usize> Block<T, B> {
    #[inline(always)]
    fn new() -> Self {
        Self(Aligned::new())
    }

    /// Where the vector of row `b` is that starts at column `j`, a multiple of its length.
    #[inline(always)]
    fn place<S: Simd<T>>(_: S, b: usize, j: usize) -> usize {
        j * B + b * S::LANES
    }

    #[inline(always)]
    fn pointer(&mut self) -> *mut T {
        self.0.pointer()
    }

    /// Copies `row`, again behind itself if `twice`, to row `b`. What the last vector has beyond is zero.
    #[inline(always)]
    fn fill<S: Simd<T>>(&mut self, simd: S, b: usize, row: &[T], twice: bool) {
        let (len, from) = (row.len(), row.as_ptr());
        let end = if twice { 2 * len } else { len };
        assert!(b < B && end.next_multiple_of(S::LANES) * B <= ROOM);
        for j in (0..end).step_by(S::LANES) {
            let mut vector = simd.zero();
            // SAFETY: the lanes are numbers of the row; there is room for the vector.
            unsafe {
                if j < len {
                    vector = simd.load_part(from.add(j), S::LANES.min(len - j));
                }
                if twice && j + S::LANES > len {
                    let again = from.wrapping_add(j).wrapping_sub(len);
                    let lanes = simd.load_lanes(again, len.saturating_sub(j), S::LANES.min(end - j));
                    vector = simd.add(vector, lanes);
                }
                simd.store(self.pointer().add(Self::place(simd, b, j)), vector);
            }
        }
    }

    #[inline(always)]
    fn clear(&mut self, len: usize) {
        assert!(len <= ROOM);
        // SAFETY: there is room for so many; zeros are numbers.
        unsafe { self.pointer().write_bytes(0, len) };
    }
}

/// Does `$whole` for the whole vectors of the columns `$run`, `$unroll` of them at a time: with the number of their sums and their first column, which
/// is a multiple of their length. And `$part` for those at its ends, with the lanes that are meant.
macro_rules! each_vector {
    ($run:expr, $unroll:expr, |$u:ident, $j:ident| $whole:expr, |$k:ident, $from:ident, $to:ident| $part:expr) => {{
        let Range { start, end } = $run;
        let mut j = start / S::LANES * S::LANES;
        if j < start {
            let ($k, $from, $to) = (j, start - j, S::LANES.min(end - j));
            $part;
            j += S::LANES;
        }
        while j + $unroll * S::LANES <= end {
            for $u in 0..$unroll {
                let $j = j + $u * S::LANES;
                $whole;
            }
            j += $unroll * S::LANES;
        }
        while j + S::LANES <= end {
            let ($u, $j) = (0, j);
            $whole;
            j += S::LANES;
        }
        if j < end {
            let ($k, $from, $to) = (j, 0, end - j);
            $part;
        }
    }};
}

/// Rows times batch rows.
struct Gather<'a, T> {
    job: &'a Job<'a, T>,
    rows: Range<usize>,
    y: RowsMut<'a, T>,
}

impl<T: Scalar> Kernel<T> for Gather<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, simd: S) {
        let (batch, mut update) = (self.y.rows(), self.job.update);
        for columns in blocks(simd, batch, 0..self.job.x.cols()) {
            let mut first = 0;
            while first < batch {
                let n = together(simd, batch - first);
                match n {
                    8 => self.batch::<S, 8, 1>(simd, first, &columns, update),
                    4 => self.batch::<S, 4, 2>(simd, first, &columns, update),
                    _ => self.batch::<S, 1, 4>(simd, first, &columns, update),
                }
                first += n;
            }
            update = Update::Accumulate;
        }
    }
}

impl<T: Scalar> Gather<'_, T> {
    /// What the inputs `columns` of `B` batch rows give, for as many rows at a time as fill a vector with sums; `U` sums for each.
    #[inline(always)]
    fn batch<S: Simd<T>, const B: usize, const U: usize>(
        &mut self,
        simd: S,
        first: usize,
        columns: &Range<usize>,
        update: Update,
    ) {
        let Self { job: &Job { values, windows, x, .. }, ref rows, ref mut y } = *self;
        let (mut decoded, mut block) = (Decoded::new(values), Block::<T, B>::new());
        let width = windows.width();
        let has_room = has_room(B, width);
        let twice = has_room && columns.len() == width;
        if has_room {
            for b in 0..B {
                block.fill(simd, b, &x.row(first + b)[columns.clone()], twice);
            }
        }
        let again = if twice { width } else { 0 };
        let x = if has_room { block.pointer().cast_const() } else { x.row(first)[columns.clone()].as_ptr() };
        let most = (S::LANES / B).max(1);
        let mut k = rows.start;
        while k < rows.end {
            let n = most.min(rows.end - k);
            let mut totals = [simd.zero(); 16];
            for r in 0..n {
                let mut sums = [[simd.zero(); B]; U];
                windows.each_run(k + r, columns, again, |places, run| {
                    let a = &decoded.get(places)[..run.len()];
                    let a = a.as_ptr().wrapping_sub(run.start);
                    // SAFETY: `a` and the inputs have numbers there.
                    unsafe {
                        each_vector!(
                            run,
                            U,
                            |u, j| {
                                if B > 1 {
                                    prefetch_near(a.wrapping_add(j + AHEAD).cast());
                                }
                                let a = simd.load(a.wrapping_add(j));
                                for b in 0..B {
                                    let x = simd.load(x.add(Block::<T, B>::place(simd, b, j)));
                                    sums[u][b] = simd.mul_add(a, x, sums[u][b]);
                                }
                            },
                            |j, from, to| {
                                let a = simd.load_lanes(a.wrapping_add(j), from, to);
                                for b in 0..B {
                                    // The lanes beside them may hold anything.
                                    let x = x.add(Block::<T, B>::place(simd, b, j));
                                    let x = simd.load_lanes(x, from, to);
                                    sums[0][b] = simd.mul_add(a, x, sums[0][b]);
                                }
                            }
                        );
                    }
                });
                for b in 0..B {
                    let mut sum = sums[0][b];
                    for more in &sums[1..] {
                        sum = simd.add(sum, more[b]);
                    }
                    totals[r * B + b] = sum;
                }
            }
            let mut totals_of = [T::default(); 16];
            // SAFETY: no vector is longer.
            unsafe { simd.store(totals_of.as_mut_ptr(), simd::sums(simd, totals)) };
            for b in 0..B {
                let outputs = &mut y.row(first + b)[k - rows.start..][..n];
                for (r, y) in outputs.iter_mut().enumerate() {
                    let sum = totals_of[r * B + b];
                    *y = if update == Update::Accumulate { *y + sum } else { sum };
                }
            }
            k += n;
        }
    }
}

/// Rows scaled by batch entries and added up in the outputs `columns`.
struct Scatter<'a, T> {
    job: &'a Job<'a, T>,
    columns: Range<usize>,
    y: RowsMut<'a, T>,
}

impl<T: Scalar> Kernel<T> for Scatter<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, simd: S) {
        let batch = self.y.rows();
        for columns in blocks(simd, batch, self.columns.clone()) {
            let mut first = 0;
            while first < batch {
                let n = together(simd, batch - first);
                match n {
                    8 => self.batch::<S, 8>(simd, first, &columns),
                    4 => self.batch::<S, 4>(simd, first, &columns),
                    _ => self.batch::<S, 1>(simd, first, &columns),
                }
                first += n;
            }
        }
    }
}

impl<T: Scalar> Scatter<'_, T> {
    /// The outputs `columns` of `B` batch rows.
    #[inline(always)]
    fn batch<S: Simd<T>, const B: usize>(&mut self, simd: S, first: usize, columns: &Range<usize>) {
        let Self { job: &Job { values, windows, x, update, .. }, columns: ref all, ref mut y } = *self;
        let (mut decoded, mut block) = (Decoded::new(values), Block::<T, B>::new());
        let len = columns.len();
        // What continues at the first column is added up apart, from a whole vector on.
        let apart = len.next_multiple_of(SPLIT);
        let has_room = has_room(B, windows.width());
        let x: [&[T]; B] = std::array::from_fn(|b| &x.row(first + b)[..windows.rows()]);
        let own = columns.start - all.start..columns.end - all.start;
        let sums = if has_room {
            block.clear(2 * apart * B);
            block.pointer()
        } else {
            let y = &mut y.row(first)[own.clone()];
            if update == Update::Overwrite {
                y.fill(T::default());
            }
            y.as_mut_ptr()
        };
        // Whoever has how many of the columns, a block has sums up to the last one and those of what continues.
        let again = if has_room { apart } else { 0 };
        for k in 0..windows.rows() {
            let xs: [S::V; B] = simd::vectors(simd, |b| simd.splat(x[b][k]));
            windows.each_run(k, columns, again, |places, run| {
                let a = &decoded.get(places)[..run.len()];
                let a = a.as_ptr().wrapping_sub(run.start);
                // SAFETY: `a` and the sums have numbers there; a block has room for whole vectors.
                unsafe {
                    each_vector!(
                        run,
                        1,
                        |_u, j| {
                            let a = simd.load(a.wrapping_add(j));
                            for b in 0..B {
                                let sum = sums.add(Block::<T, B>::place(simd, b, j));
                                simd.store(sum, simd.mul_add(a, xs[b], simd.load(sum)));
                            }
                        },
                        |j, from, to| {
                            let a = simd.load_lanes(a.wrapping_add(j), from, to);
                            for b in 0..B {
                                let sum = sums.add(Block::<T, B>::place(simd, b, j));
                                if has_room {
                                    // A part of a vector would wait for what is written in whole ones.
                                    let x = simd.keep(xs[b], from, to);
                                    simd.store(sum, simd.mul_add(a, x, simd.load(sum)));
                                } else {
                                    let more = simd.mul_add(a, xs[b], simd.load_lanes(sum, from, to));
                                    simd.store_lanes(sum, more, from, to);
                                }
                            }
                        }
                    );
                }
            });
        }
        if !has_room {
            return;
        }
        for b in 0..B {
            let y = &mut y.row(first + b)[own.clone()];
            for j in (0..len).step_by(S::LANES) {
                let n = S::LANES.min(len - j);
                // SAFETY: the block has sums there, cleared before they were added to, and the row `n` outputs.
                unsafe {
                    let sum = |j: usize| simd.load(sums.add(Block::<T, B>::place(simd, b, j)));
                    let (to, mut sum) = (y.as_mut_ptr().add(j), simd.add(sum(j), sum(apart + j)));
                    if update == Update::Accumulate {
                        sum = simd.add(simd.load_part(to, n), sum);
                    }
                    simd.store_part(to, sum, n);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::WindowTiles;
    use super::*;
    use crate::storage::{Factor, Storage};

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        assert!(Windows::new(5, vec![3], &[5]).is_some());
        assert!(Windows::new(5, vec![], &[]).is_some_and(|w| w.len() == 0 && w.rows() == 0));
        for (starts, lens) in [
            (vec![5], vec![1]),
            (vec![0], vec![6]),
            (vec![0], vec![0]),
            (vec![0], vec![]),
            (vec![0, 1], vec![2]),
        ] {
            assert!(Windows::new(5, starts, &lens).is_none());
        }
        let many = (vec![0, 0], [u32::MAX, 1]);
        assert!(Windows::new(u32::MAX as usize, many.0, &many.1).is_none());
    }

    #[test]
    fn short_windows_have_no_tiles() {
        let number = |_| 1.0f32;
        let long = Windows::new(100, vec![3, 90], &[40, 30]).unwrap();
        assert!(long.fill_tiles() && WindowTiles::new(&long, number).is_some());
        let short = Windows::new(100, vec![3, 90], &[4, 3]).unwrap();
        assert!(!short.fill_tiles() && WindowTiles::new(&short, number).is_none());
        let empty = Windows::new(100, vec![], &[]).unwrap();
        assert!(WindowTiles::new(&empty, number).is_some());
    }

    /// Small integers: every sum is exact, in any order.
    fn number(i: usize) -> f64 {
        ((i * 2_654_435_761) >> 7 & 7) as f64 - 3.0
    }

    fn check<T: Scalar>(storage: Storage, windows: &Windows, op: Op, batch: usize, policy: Policy) {
        check_form::<T>(storage, windows, op, batch, policy, false);
        if op == Op::Transpose && windows.fill_tiles() {
            check_form::<T>(storage, windows, op, batch, policy, true);
        }
    }

    fn check_form<T: Scalar>(
        storage: Storage,
        windows: &Windows,
        op: Op,
        batch: usize,
        policy: Policy,
        tiled: bool,
    ) {
        let factor = Factor::from_fn(storage, (1, 1, windows.len()), |_, _, p| number(p));
        let (outputs, inputs) = op.order(windows.rows(), windows.width());
        let x: Vec<T> = (0..batch * inputs).map(|i| T::narrow(number(i + 99))).collect();
        for update in [Update::Overwrite, Update::Accumulate] {
            let before = if update == Update::Overwrite { f64::NAN } else { 2.0 };
            let mut y = vec![T::narrow(before); batch * outputs];
            let (x_rows, y_rows) =
                (Rows::new(&x, batch, inputs, inputs), RowsMut::new(&mut y, batch, outputs, outputs));
            if tiled {
                let tiles = WindowTiles::new(windows, |place| T::narrow(factor.get(0, 0, place)));
                tiles.unwrap().multiply(x_rows, y_rows, update, policy);
            } else {
                let (x, y) = (x_rows, y_rows);
                factor.multiply_windows(WindowProduct { windows, op, x, y, update, policy });
            }
            for b in 0..batch {
                let mut expected = vec![if update == Update::Overwrite { 0.0 } else { 2.0 }; outputs];
                for k in 0..windows.rows() {
                    for (i, place) in windows.places(k).enumerate() {
                        let column = (windows.starts()[k] as usize + i) % windows.width();
                        let (to, from) = op.order(k, column);
                        expected[to] += factor.get(0, 0, place) * x[b * inputs + from].widen();
                    }
                }
                for (o, expected) in expected.iter().enumerate() {
                    let got = y[b * outputs + o].widen();
                    let close = (got - expected).abs() <= 1e-4 * expected.abs().max(100.0);
                    assert!(close, "{storage} {op:?} batch {batch} output {o}: {got}, expected {expected}");
                }
            }
        }
    }

    /// Numbers whose sums depend on their order, from one thread and from three.
    #[test]
    fn threads_change_no_bit() {
        for width in [900, 4096, 9001] {
            let starts: Vec<u32> = (0..40).map(|k| k * 677 % width).collect();
            let lens: Vec<u32> = (0..40).map(|k| width / 2 + k * 53 % (width / 2)).collect();
            let windows = Windows::new(width as usize, starts, &lens).unwrap();
            let number = |i: usize| 1.0 / (1 + i * 7919 % 1013) as f64 - 0.01;
            let factor = Factor::from_fn(Storage::F32, (1, 1, windows.len()), |_, _, p| number(p));
            for level in Level::available() {
                for (op, batch) in
                    [(Op::Forward, 1), (Op::Transpose, 1), (Op::Forward, 13), (Op::Transpose, 13)]
                {
                    let (outputs, inputs) = op.order(windows.rows(), windows.width());
                    let x: Vec<f32> = (0..batch * inputs).map(|i| number(i + 5) as f32).collect();
                    let product = |parallelism| {
                        let mut y: Vec<f32> = (0..batch * outputs).map(|i| number(i + 9) as f32).collect();
                        factor.multiply_windows(WindowProduct {
                            windows: &windows,
                            op,
                            x: Rows::new(&x, batch, inputs, inputs),
                            y: RowsMut::new(&mut y, batch, outputs, outputs),
                            update: Update::Accumulate,
                            policy: Policy { level, parallelism },
                        });
                        y
                    };
                    let (one, three) =
                        (product(crate::Parallelism::Seq), product(crate::Parallelism::Threads(3)));
                    assert!(one == three, "{op:?} batch {batch} width {width} {level}");
                    if op == Op::Forward {
                        continue;
                    }
                    let tiles = WindowTiles::new(&windows, |p| number(p) as f32).unwrap();
                    let product = |parallelism| {
                        let mut y = vec![0.0; batch * outputs];
                        let y_rows = RowsMut::new(&mut y, batch, outputs, outputs);
                        let policy = Policy { level, parallelism };
                        tiles.multiply(
                            Rows::new(&x, batch, inputs, inputs),
                            y_rows,
                            Update::Overwrite,
                            policy,
                        );
                        y
                    };
                    let (one, three) =
                        (product(crate::Parallelism::Seq), product(crate::Parallelism::Threads(3)));
                    assert!(one == three, "tiles, batch {batch} width {width} {level}");
                }
            }
        }
    }

    #[test]
    fn products_of_windows_equal_their_formula() {
        let many = 37;
        let spread: Vec<u32> = (0..many).map(|k| k * 53 % 101).collect();
        let lens: Vec<u32> = (0..many).map(|k| 1 + k * 29 % 101).collect();
        let cases = [
            Windows::new(101, spread, &lens),
            Windows::new(5000, vec![4000, 0, 17], &[5000, 5000, 2049]),
            Windows::new(1, vec![0, 0], &[1, 1]),
            Windows::new(3, vec![], &[]),
        ];
        for windows in cases.iter().flatten() {
            for level in Level::available() {
                for parallelism in [crate::Parallelism::Seq, crate::Parallelism::Threads(3)] {
                    let policy = Policy { level, parallelism };
                    for storage in [Storage::F32, Storage::F64, Storage::Bf16, Storage::Int4] {
                        for op in [Op::Forward, Op::Transpose] {
                            for batch in [1, 3, 4, 12, 33] {
                                check::<f32>(storage, windows, op, batch, policy);
                                check::<f64>(storage, windows, op, batch, policy);
                            }
                        }
                    }
                }
            }
        }
    }
}
