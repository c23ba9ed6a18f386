//! Products with a matrix whose rows each hold one run of numbers: windows that may continue at the first column.
//!
//! What `tiles.rs` and `rows.rs` read through column indices lies side by side here, so that inputs and outputs are whole vectors.

use super::LANES;
use super::tiles::{Interleave, interleave, total, vectors, write};
use super::values::{BLOCK, Decoded, Stream, Values, rows_of_block};
use super::{Level, TILED_BATCH};
use crate::exec::Policy;
use crate::kernels::level::Kernel;
use crate::kernels::simd::{self, Simd};
use crate::kernels::source::Source;
use crate::kernels::view::{Rows, RowsMut};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use std::ops::Range;

/// Where the numbers of each row stand: row `k` holds numbers `offsets[k]..offsets[k + 1]`, side by side from column `starts[k]` on and
/// on from column 0 where they reach the width. Checked once.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    width: usize,
    starts: Vec<u32>,
    offsets: Vec<u32>,
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
        fits.then_some(Self { width, starts, offsets })
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

    /// Those of its numbers with places in `within` and columns in `columns`; no run is empty.
    #[inline(always)]
    fn clipped(
        &self,
        k: usize,
        within: &Range<usize>,
        columns: &Range<usize>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> {
        let clip = |(place, run): (usize, Range<usize>)| {
            let column = |place_at: usize| (place_at + run.start).saturating_sub(place);
            let from = run.start.max(columns.start).max(column(within.start));
            let to = run.end.min(columns.end).min(column(within.end));
            (place + (from - run.start), from..to)
        };
        self.runs(k).map(clip).into_iter().filter(|(_, columns)| !columns.is_empty())
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
    /// As much as a sparse product of that shape takes.
    pub(crate) scratch: &'a mut [T],
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
    let WindowProduct { windows, op, x, mut y, update, scratch, policy } = product;
    let (batch, inputs) = (x.rows(), x.cols());
    let tasks = policy.tasks(windows.len().saturating_mul(batch));
    // A batch that shorter vectors hold would leave half of the longest ones empty.
    let short = batch >= TILED_BATCH && batch * size_of::<T>() <= 32;
    let level = if short { policy.level.min(Level::Avx2) } else { policy.level };
    if op == Op::Transpose && update == Update::Overwrite {
        y.fill(T::default());
    }
    let job = Job { values, windows, level };
    match op {
        Op::Forward if batch < TILED_BATCH => {
            job.forward(0..windows.rows(), Inputs::Rows(x), y, update, tasks);
        }
        Op::Forward => {
            let tiles = &mut scratch[..batch.next_multiple_of(LANES) * inputs];
            T::dispatch(level, Interleave { x, tiles });
            job.forward(0..windows.rows(), Inputs::Tiles(tiles, inputs), y, update, tasks);
        }
        Op::Transpose if batch < TILED_BATCH => job.scatter(0..windows.width(), x, y, tasks),
        Op::Transpose => {
            let len = batch.next_multiple_of(LANES) * (inputs + y.cols());
            job.transpose(x, y, &mut scratch[..len], tasks);
        }
    }
}

#[derive(Clone, Copy)]
enum Inputs<'a, T> {
    Rows(Rows<'a, T>),
    /// Written by [`Interleave`], for so many inputs.
    Tiles(&'a [T], usize),
}

struct Job<'a, T> {
    values: &'a dyn Values<T>,
    windows: &'a Windows,
    level: Level,
}

impl<T: Scalar> Job<'_, T> {
    /// Rows `rows`, as many as `y` has columns, split where half of the numbers lie.
    fn forward(&self, rows: Range<usize>, x: Inputs<'_, T>, y: RowsMut<'_, T>, update: Update, tasks: usize) {
        let &Self { values, windows, level } = self;
        let offsets = &windows.offsets[rows.start..=rows.end];
        let middle = offsets[0] + (offsets[rows.len()] - offsets[0]) / 2;
        let at = offsets.partition_point(|&offset| offset < middle).min(rows.len());
        if tasks < 2 || at == 0 || at == rows.len() {
            return match x {
                Inputs::Rows(x) => T::dispatch(level, Gather { values, windows, rows, x, y, update }),
                Inputs::Tiles(tiles, inputs) => {
                    T::dispatch(level, Forward { values, windows, rows, tiles, inputs, y, update });
                }
            };
        }
        let ((left, right), half, middle) = (y.split_columns(at), tasks / 2, rows.start + at);
        crate::kernels::team::join(
            || self.forward(rows.start..middle, x, left, update, tasks - half),
            || self.forward(middle..rows.end, x, right, update, half),
        );
    }

    /// The outputs `columns`, which are the columns of `y`; adds to them. Each is summed in the order of the rows, wherever it is split.
    fn scatter(&self, columns: Range<usize>, x: Rows<'_, T>, y: RowsMut<'_, T>, tasks: usize) {
        let &Self { values, windows, level } = self;
        let at = columns.len() / 2 / LANES * LANES;
        if tasks < 2 || at == 0 {
            return T::dispatch(level, Scatter { values, windows, columns, x, y });
        }
        let ((left, right), half, middle) = (y.split_columns(at), tasks / 2, columns.start + at);
        crate::kernels::team::join(
            || self.scatter(columns.start..middle, x, left, tasks - half),
            || self.scatter(middle..columns.end, x, right, half),
        );
    }

    /// All of the matrix for the batch rows of `x`, split between tiles; adds to `y`.
    fn transpose(&self, x: Rows<'_, T>, y: RowsMut<'_, T>, scratch: &mut [T], tasks: usize) {
        let (batch, width) = (x.rows(), x.cols() + y.cols());
        let at = (batch / 2).next_multiple_of(LANES);
        if tasks < 2 || at >= batch {
            let &Self { values, windows, level } = self;
            return T::dispatch(level, Backward { values, windows, x, y, scratch });
        }
        let ((top, bottom), half) = (y.split_batch(at), tasks / 2);
        let (left, right) = scratch.split_at_mut(at * width);
        let (x_top, x_bottom) = (x.batch(0..at), x.batch(at..batch));
        crate::kernels::team::join(
            || self.transpose(x_top, top, left, tasks - half),
            || self.transpose(x_bottom, bottom, right, half),
        );
    }
}

/// Pieces of the stream of numbers: rows of at most [`BLOCK`] numbers together, `most` of them, or part of one longer row.
#[inline(always)]
fn pieces(windows: &Windows, first: usize, end: usize, most: usize) -> (usize, Range<usize>) {
    let n = rows_of_block(&windows.offsets[first..=end], most);
    (n, windows.offsets[first] as usize..windows.offsets[first + n] as usize)
}

/// Small batches: rows times every batch row, one at a time.
struct Gather<'a, T> {
    values: &'a dyn Values<T>,
    windows: &'a Windows,
    rows: Range<usize>,
    x: Rows<'a, T>,
    y: RowsMut<'a, T>,
    update: Update,
}

impl<T: Scalar> Kernel<T> for Gather<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { values, windows, rows, x, mut y, update } = self;
        let (mut decoded, mut k) = (Decoded::new(), rows.start);
        while k < rows.end {
            let (n, all) = pieces(windows, k, rows.end, S::LANES);
            for b in 0..y.rows() {
                let x = x.row(b);
                let mut sums = [simd.zero(); 16];
                // One piece, unless a single row is longer than a block.
                for from in all.clone().step_by(BLOCK) {
                    let piece = from..all.end.min(from + BLOCK);
                    let numbers = decoded.get(values, piece.clone());
                    for (r, sum) in sums.iter_mut().enumerate().take(n) {
                        for (place, columns) in windows.clipped(k + r, &piece, &(0..x.len())) {
                            let a = &numbers[place - from..][..columns.len()];
                            *sum = dot(simd, *sum, a, &x[columns]);
                        }
                    }
                }
                let outputs = &mut y.row(b)[k - rows.start..][..n];
                let sums = simd::sums(simd, sums);
                assert!(n <= S::LANES);
                // SAFETY: n is at most LANES, and there are so many outputs.
                unsafe {
                    let sums = match update {
                        Update::Overwrite => sums,
                        Update::Accumulate => simd.add(simd.load_part(outputs.as_ptr(), n), sums),
                    };
                    simd.store_part(outputs.as_mut_ptr(), sums, n);
                }
            }
            k += n;
        }
    }
}

/// `sum` and the products of two slices of one length, lane by lane.
#[inline(always)]
fn dot<T: Scalar, S: Simd<T>>(simd: S, sum: S::V, a: &[T], x: &[T]) -> S::V {
    assert!(a.len() == x.len());
    let (len, mut j) = (a.len(), 0);
    let mut sums = [sum, simd.zero(), simd.zero(), simd.zero()];
    let (a, x) = (a.as_ptr(), x.as_ptr());
    // SAFETY: both slices hold `len` numbers, and every load ends there.
    unsafe {
        while j + 4 * S::LANES <= len {
            for (u, sum) in sums.iter_mut().enumerate() {
                let at = j + u * S::LANES;
                *sum = simd.mul_add(simd.load(a.add(at)), simd.load(x.add(at)), *sum);
            }
            j += 4 * S::LANES;
        }
        while j + S::LANES <= len {
            sums[0] = simd.mul_add(simd.load(a.add(j)), simd.load(x.add(j)), sums[0]);
            j += S::LANES;
        }
        if j < len {
            let (a, x) = (simd.load_part(a.add(j), len - j), simd.load_part(x.add(j), len - j));
            sums[1] = simd.mul_add(a, x, sums[1]);
        }
    }
    simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]))
}

/// Small batches, transposed: rows scaled by batch entries and added up in the outputs `columns`; adds to `y`.
struct Scatter<'a, T> {
    values: &'a dyn Values<T>,
    windows: &'a Windows,
    columns: Range<usize>,
    x: Rows<'a, T>,
    y: RowsMut<'a, T>,
}

impl<T: Scalar> Kernel<T> for Scatter<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { values, windows, columns, x, mut y } = self;
        let (mut decoded, mut k) = (Decoded::new(), 0);
        while k < windows.rows() {
            let (n, all) = pieces(windows, k, windows.rows(), BLOCK);
            for from in all.clone().step_by(BLOCK) {
                let piece = from..all.end.min(from + BLOCK);
                let numbers = decoded.get(values, piece.clone());
                for b in 0..x.rows() {
                    let (x, y) = (&x.row(b)[k..k + n], y.row(b));
                    for (r, &x) in x.iter().enumerate() {
                        for (place, own) in windows.clipped(k + r, &piece, &columns) {
                            let a = &numbers[place - from..][..own.len()];
                            axpy(simd, x, a, &mut y[own.start - columns.start..][..own.len()]);
                        }
                    }
                }
            }
            k += n;
        }
    }
}

/// `y += x a`.
#[inline(always)]
fn axpy<T: Scalar, S: Simd<T>>(simd: S, x: T, a: &[T], y: &mut [T]) {
    assert!(a.len() == y.len());
    let (len, mut j, x) = (a.len(), 0, simd.splat(x));
    let (a, y) = (a.as_ptr(), y.as_mut_ptr());
    // SAFETY: both slices hold `len` numbers, and every load and store ends there.
    unsafe {
        while j + S::LANES <= len {
            simd.store(y.add(j), simd.mul_add(simd.load(a.add(j)), x, simd.load(y.add(j))));
            j += S::LANES;
        }
        if j < len {
            let left = len - j;
            let sum = simd.mul_add(simd.load_part(a.add(j), left), x, simd.load_part(y.add(j), left));
            simd.store_part(y.add(j), sum, left);
        }
    }
}

/// Larger batches: lanes are batch rows, so that a number meets vectors of contiguous inputs.
struct Forward<'a, T> {
    values: &'a dyn Values<T>,
    windows: &'a Windows,
    rows: Range<usize>,
    /// What [`Interleave`] wrote, at the same level.
    tiles: &'a [T],
    /// Width of the matrix.
    inputs: usize,
    y: RowsMut<'a, T>,
    update: Update,
}

impl<T: Scalar> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, simd: S) {
        let (batch, mut first) = (self.y.rows(), 0);
        while first < batch {
            let n = vectors(simd, batch - first, self.inputs);
            let tile = &self.tiles[first * self.inputs..][..n * S::LANES * self.inputs];
            // Enough chains of sums to hide the latency of an addition.
            match n {
                1 => self.tile::<S, 1, 4>(simd, first, tile),
                2 => self.tile::<S, 2, 2>(simd, first, tile),
                3 => self.tile::<S, 3, 2>(simd, first, tile),
                _ => self.tile::<S, 4, 2>(simd, first, tile),
            }
            first += n * S::LANES;
        }
    }
}

impl<T: Scalar> Forward<'_, T> {
    /// A tile of `N` vectors, summed in `WAYS` chains for each.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn tile<S: Simd<T>, const N: usize, const WAYS: usize>(&mut self, simd: S, first: usize, tile: &[T]) {
        let Self { values, windows, ref rows, ref mut y, update, .. } = *self;
        let (mut decoded, mut k) = (Decoded::new(), rows.start);
        while k < rows.end {
            let (n, all) = pieces(windows, k, rows.end, S::LANES);
            let mut outputs = [[simd.zero(); 16]; N];
            let mut sums = [[simd.zero(); N]; WAYS];
            for from in all.clone().step_by(BLOCK) {
                let piece = from..all.end.min(from + BLOCK);
                let numbers = decoded.get(values, piece.clone());
                for r in 0..n {
                    if n > 1 {
                        sums = [[simd.zero(); N]; WAYS];
                    }
                    for (place, columns) in windows.clipped(k + r, &piece, &(0..self.inputs)) {
                        let a = &numbers[place - from..][..columns.len()];
                        let width = N * S::LANES;
                        let tile = &tile[columns.start * width..columns.end * width];
                        sums = add_products(simd, sums, a, tile);
                    }
                    (0..N).for_each(|v| outputs[v][r] = total(simd, &sums, v));
                }
            }
            for (v, outputs) in outputs.into_iter().enumerate() {
                write(simd, y, first + v * S::LANES, k - rows.start, n, outputs, update);
            }
            k += n;
        }
    }
}

/// Adds the products of numbers with as many features of a tile, in turns to each way.
#[inline(always)]
fn add_products<T: Scalar, S: Simd<T>, const N: usize, const WAYS: usize>(
    simd: S,
    mut sums: [[S::V; N]; WAYS],
    numbers: &[T],
    tile: &[T],
) -> [[S::V; N]; WAYS] {
    assert!(tile.len() == numbers.len() * N * S::LANES);
    let add = |sums: &mut [S::V; N], number: T, feature: usize| {
        let number = simd.splat(number);
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the tile has `N` vectors for each of the numbers.
            let x = unsafe { simd.load(tile.as_ptr().add((feature * N + v) * S::LANES)) };
            *sum = simd.mul_add(number, x, *sum);
        }
    };
    let (whole, left) = numbers.as_chunks::<WAYS>();
    for (i, numbers) in whole.iter().enumerate() {
        for way in 0..WAYS {
            add(&mut sums[way], numbers[way], i * WAYS + way);
        }
    }
    for (way, number) in left.iter().enumerate() {
        add(&mut sums[way], *number, whole.len() * WAYS + way);
    }
    sums
}

/// Larger batches, transposed: a vector of batch rows at a time; adds to `y`.
struct Backward<'a, T> {
    values: &'a dyn Values<T>,
    windows: &'a Windows,
    x: Rows<'a, T>,
    y: RowsMut<'a, T>,
    /// A vector for each input and output.
    scratch: &'a mut [T],
}

impl<T: Scalar> Kernel<T> for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { values, windows, x, mut y, scratch } = self;
        let (inputs, outputs) = (x.cols(), y.cols());
        let (from_tile, to) = scratch.split_at_mut(S::LANES * inputs);
        let to = &mut to[..S::LANES * outputs];
        let mut decoded = Decoded::new();
        for first in (0..x.rows()).step_by(S::LANES) {
            interleave(simd, x, first, from_tile, S::LANES, 0);
            to.fill(T::default());
            let mut k = 0;
            while k < inputs {
                let (n, all) = pieces(windows, k, inputs, BLOCK);
                for from in all.clone().step_by(BLOCK) {
                    let piece = from..all.end.min(from + BLOCK);
                    let numbers = decoded.get(values, piece.clone());
                    for r in k..k + n {
                        // SAFETY: row r is one of the inputs, each of which has a vector.
                        let x = unsafe { simd.load(from_tile.as_ptr().add(r * S::LANES)) };
                        for (place, columns) in windows.clipped(r, &piece, &(0..outputs)) {
                            let a = &numbers[place - from..][..columns.len()];
                            let to = &mut to[columns.start * S::LANES..columns.end * S::LANES];
                            for (a, to) in a.iter().zip(to.chunks_exact_mut(S::LANES)) {
                                // SAFETY: the chunk is a vector long.
                                unsafe {
                                    let sum = simd.mul_add(simd.splat(*a), x, simd.load(to.as_ptr()));
                                    simd.store(to.as_mut_ptr(), sum);
                                }
                            }
                        }
                    }
                }
                k += n;
            }
            for j in (0..outputs).step_by(S::LANES) {
                let n = S::LANES.min(outputs - j);
                let mut sums = [simd.zero(); 16];
                for (k, sum) in sums.iter_mut().enumerate().take(n) {
                    // SAFETY: output j + k < outputs has a vector.
                    *sum = unsafe { simd.load(to.as_ptr().add((j + k) * S::LANES)) };
                }
                write(simd, &mut y, first, j, n, sums, Update::Accumulate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
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

    /// Small integers: every sum is exact, in any order.
    fn number(i: usize) -> f64 {
        ((i * 2_654_435_761) >> 7 & 7) as f64 - 3.0
    }

    fn check<T: Scalar>(storage: Storage, windows: &Windows, op: Op, batch: usize, policy: Policy) {
        let factor = Factor::from_fn(storage, (1, 1, windows.len()), |_, _, p| number(p));
        let (outputs, inputs) = op.order(windows.rows(), windows.width());
        let x: Vec<T> = (0..batch * inputs).map(|i| T::narrow(number(i + 99))).collect();
        for update in [Update::Overwrite, Update::Accumulate] {
            let before = if update == Update::Overwrite { f64::NAN } else { 2.0 };
            let mut y = vec![T::narrow(before); batch * outputs];
            let mut scratch =
                vec![T::default(); super::super::sparse_scratch_len(batch, windows.rows(), windows.width())];
            factor.multiply_windows(WindowProduct {
                windows,
                op,
                x: Rows::new(&x, batch, inputs, inputs),
                y: RowsMut::new(&mut y, batch, outputs, outputs),
                update,
                scratch: &mut scratch,
                policy,
            });
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
                            for batch in [1, 3, 4, 33] {
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
