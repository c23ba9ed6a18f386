//! Small batches, on machines that find numbers in registers: rows of the matrix advance together, one in each lane, through a window of the inputs that
//! slides over them. The window lies in registers, and each lane finds its next input there instead of loading it alone.
//!
//! This is sliced ELLPACK (M. Kreutzer et al., "A unified sparse matrix data format", 2014: rows sorted by length in parts, slices padded to vectors) whose
//! vectors may hold values of different columns, as long as one window holds their inputs. A row that is ahead waits for the others, so that in random
//! patterns some 60 % of the lanes do work at 5 % of the positions, and some 87 % at 20 %.

use super::TILED_BATCH;
use super::pattern::Pattern;
use crate::exec::Policy;
use crate::kernels::aligned::AlignedVec;
use crate::kernels::batches::Aligned;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::Simd;
use crate::kernels::team;
use crate::kernels::view::{Rows, RowsMut};
use crate::matrix::Update;
use crate::scalar::Scalar;
use std::ops::Range;

/// Lanes of the widest vector.
const LANES: usize = 16;
/// Inputs of a window; those of every number of lanes that there is.
const WINDOW: usize = 64;
/// Windows start at multiples of this, so that their vectors lie in whole cache lines.
const ALIGN: usize = 16;
/// Vectors of a block: one byte of a code for each.
const VECTORS: usize = 4;
/// Slots for values in a block.
const SLOTS: usize = VECTORS * LANES;
/// Rows that are sorted by their number of values before they are cut into slices, as rows of a slice should end together: as many as a window has
/// numbers, so that a block of codes puts their outputs in order.
const GROUP: usize = WINDOW;
/// With more positions than one in so many, slices have as many rows as a vector has lanes instead of twice as many: rows then seldom wait, and the
/// fewer there are, the less.
const DENSE: usize = 8;
/// Slots for each value at most: an all but empty pattern is mostly padding.
const MOST_SLOTS: usize = 8;
/// Inputs of which each thread makes a copy of its own, at most: they lie on its stack.
const APART: usize = 4096 + WINDOW;
/// What to do with a block: its slice, where its window starts, and which position of the pattern is in each slot.
type Visit<'a> = dyn FnMut(usize, usize, &[Option<usize>; SLOTS]) + 'a;

/// Rows of a slice, which advance together.
fn slice_rows(pattern: &Pattern) -> usize {
    let positions = pattern.rows().saturating_mul(pattern.width());
    if pattern.len().saturating_mul(DENSE) > positions { LANES } else { 2 * LANES }
}

/// The rows in the order of their lanes: each group sorted.
fn order(pattern: &Pattern) -> Vec<usize> {
    let starts = pattern.starts();
    let mut order: Vec<usize> = (0..pattern.rows()).collect();
    order.chunks_mut(GROUP).for_each(|rows| rows.sort_by_key(|&row| starts[row + 1] - starts[row]));
    order
}

/// Shows the blocks of the pattern, slice after slice. The vectors of a block belong to its first [`LANES`] rows, then to its next.
fn visit(pattern: &Pattern, order: &[usize], slice_rows: usize, show: &mut Visit<'_>) {
    let starts = pattern.starts();
    let col = |place: usize, end: usize| if place < end { pattern.col(place) } else { usize::MAX };
    for (slice, rows) in order.chunks(slice_rows).enumerate() {
        let (mut next, mut ends, mut cols) = ([0; 2 * LANES], [0; 2 * LANES], [usize::MAX; 2 * LANES]);
        for (i, &row) in rows.iter().enumerate() {
            (next[i], ends[i]) = (starts[row] as usize, starts[row + 1] as usize);
            cols[i] = col(next[i], ends[i]);
        }
        loop {
            let first = cols.iter().fold(usize::MAX, |first, &col| first.min(col));
            if first == usize::MAX {
                break;
            }
            let (from, mut slots) = (first / ALIGN * ALIGN, [None; SLOTS]);
            for (slot, position) in slots.iter_mut().enumerate() {
                let i = slot * slice_rows / SLOTS / LANES * LANES + slot % LANES;
                if cols[i] < from + WINDOW {
                    *position = Some(next[i]);
                    next[i] += 1;
                    cols[i] = col(next[i], ends[i]);
                }
            }
            show(slice, from, &slots);
        }
    }
}

/// Slots for values that a [`Sliced`] has, `None` where they are too many.
pub(super) fn slots(pattern: &Pattern) -> Option<usize> {
    let mut blocks = 0;
    visit(pattern, &order(pattern), slice_rows(pattern), &mut |_, _, _| blocks += 1);
    Some(blocks * SLOTS).filter(|&slots| slots <= pattern.len().saturating_mul(MOST_SLOTS))
}

/// Numbers of an input as products read it: zeros follow, so that every window is whole.
pub(super) fn input_len(width: usize) -> usize {
    width.saturating_add(WINDOW) / ALIGN * ALIGN
}

/// A sparse matrix as slices of rows.
#[derive(Debug, Clone)]
pub struct Sliced<T> {
    shape: (usize, usize),
    /// Rows of each slice: one or two times [`LANES`].
    slice_rows: usize,
    /// Where the blocks of each slice start, and the number of all. The last group has all of its slices.
    starts: Vec<usize>,
    /// For each group a block of codes: in which of its lanes the output of each row is.
    places: AlignedVec<u32>,
    /// Where the window of each block starts.
    from: Vec<u32>,
    /// Block after block, lane after lane: byte `v` is the place of the input of vector `v` in its window.
    codes: AlignedVec<u32>,
    /// Block after block, vector after vector; zero where a row waits.
    values: AlignedVec<T>,
}

impl<T: Scalar> Sliced<T> {
    /// With the value `value(p)` at position `p` of the pattern; `None` where that takes too much room.
    pub(crate) fn new(pattern: &Pattern, value: impl Fn(usize) -> T) -> Option<Self> {
        let (slice_rows, order, slots) = (slice_rows(pattern), order(pattern), pattern.slots()?);
        let groups = pattern.rows().div_ceil(GROUP);
        let (mut starts, mut from) = (vec![0; groups * GROUP / slice_rows + 1], Vec::new());
        let (mut codes, mut values) = (AlignedVec::zeroed(slots / VECTORS), AlignedVec::zeroed(slots));
        let mut block = 0;
        visit(pattern, &order, slice_rows, &mut |slice, starts_at, positions| {
            from.push(starts_at as u32);
            for (slot, position) in positions.iter().enumerate() {
                if let &Some(position) = position {
                    let place = pattern.col(position) - starts_at;
                    codes[block * LANES + slot % LANES] |= (place as u32) << (8 * (slot / LANES));
                    values[block * SLOTS + slot] = value(position);
                }
            }
            block += 1;
            starts[slice + 1] = block;
        });
        // Slices of empty rows have shown no block.
        (1..starts.len()).for_each(|slice| starts[slice] = starts[slice].max(starts[slice - 1]));
        let mut places = AlignedVec::zeroed(groups * LANES);
        for (lane, row) in order.into_iter().enumerate() {
            let (group, place, row) = (row / GROUP, lane % GROUP, row % GROUP);
            places[group * LANES + row % LANES] |= (place as u32) << (8 * (row / LANES));
        }
        let shape = (pattern.rows(), pattern.width());
        Some(Self { shape, slice_rows, starts, places, from, codes, values })
    }

    /// `Y (+)= X Aᵀ` for those batch rows, of less than [`TILED_BATCH`], that it returns: inputs that are not finite would reach the rows that wait. Takes
    /// [`input_len`] numbers of scratch for each. Panics when the operands do not fit.
    pub(super) fn multiply(
        &self,
        x: Rows<'_, T>,
        y: RowsMut<'_, T>,
        update: Update,
        before: Option<Before<'_, T>>,
        scratch: &mut [T],
        policy: Policy,
    ) -> [bool; TILED_BATCH] {
        assert!((y.cols(), x.cols()) == self.shape && x.rows() == y.rows());
        let copy = &mut scratch[..x.rows() * input_len(self.shape.1)];
        let finite = T::dispatch(policy.level, Copy { x, to: copy.as_mut_ptr() });
        let tasks = policy.tasks(self.values.len().saturating_mul(x.rows()));
        let groups = 0..self.places.len() / LANES;
        Product { sliced: self, groups, x, copy, finite, y, update, before }.share(tasks, policy.level);
        finite
    }
}

/// Copies the inputs to where windows are aligned and whole, [`input_len`] numbers for each row; returns which rows are finite.
struct Copy<'a, T> {
    x: Rows<'a, T>,
    to: *mut T,
}

impl<T: Scalar> Kernel<T> for Copy<'_, T> {
    type Output = [bool; TILED_BATCH];
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) -> [bool; TILED_BATCH] {
        let Self { x, to } = self;
        let (width, len) = (x.cols(), input_len(x.cols()));
        let mut finite = [false; TILED_BATCH];
        for (b, finite) in finite.iter_mut().enumerate().take(x.rows()) {
            let (x, mut wrong) = (x.row(b), simd.zero());
            for j in (0..len).step_by(S::LANES) {
                let count = S::LANES.min(width.saturating_sub(j));
                // SAFETY: `count` inputs are left, and a whole vector of the copy, whose length is a multiple of the lanes.
                unsafe {
                    let numbers = simd.load_part(x.as_ptr().wrapping_add(j), count);
                    wrong = simd.mul_add(numbers, simd.zero(), wrong);
                    simd.store(to.add(b * len + j), numbers);
                }
            }
            *finite = simd.sum(wrong) == T::zero();
        }
        finite
    }
}

/// The product with some groups, the rows of `y`.
struct Product<'a, T> {
    sliced: &'a Sliced<T>,
    groups: Range<usize>,
    x: Rows<'a, T>,
    /// What [`Copy`] made of them, and which rows of it are multiplied.
    copy: &'a [T],
    finite: [bool; TILED_BATCH],
    y: RowsMut<'a, T>,
    update: Update,
    before: Option<Before<'a, T>>,
}

/// What a thread does with the outputs in a range before it adds to them.
pub(crate) type Before<'a, T> = &'a (dyn Fn(Range<usize>, RowsMut<'_, T>) + Sync);

impl<T: Scalar> Product<'_, T> {
    /// Splits it between groups, nearest to where half of the blocks lie.
    fn share(self, tasks: usize, level: Level) {
        let Self { sliced, groups, x, copy, finite, mut y, update, before } = self;
        if tasks < 2 || groups.len() < 2 {
            if let Some(before) = before {
                let first = groups.start * GROUP;
                before(first..first + y.cols(), y.reborrow());
            }
            return T::dispatch(level, Product { sliced, groups, x, copy, finite, y, update, before });
        }
        let start = |group: usize| sliced.starts[group * GROUP / sliced.slice_rows];
        let half = start(groups.start).midpoint(start(groups.end));
        let middle = (groups.start + 1..groups.end - 1).find(|&group| start(group) >= half);
        let middle = middle.unwrap_or(groups.end - 1);
        let tasks_right = tasks / 2;
        let (top, bottom) = y.split_columns((middle - groups.start) * GROUP);
        let left = Product { sliced, groups: groups.start..middle, x, copy, finite, y: top, update, before };
        let right =
            Product { sliced, groups: middle..groups.end, x, copy, finite, y: bottom, update, before };
        team::join(|| left.share(tasks - tasks_right, level), move || right.apart(tasks_right, level));
    }

    /// On another thread, which has its own copy of the inputs: fetching what a core has just written takes longer than copying them once more.
    fn apart(self, tasks: usize, level: Level) {
        let len = self.x.rows() * input_len(self.x.cols());
        if len > APART {
            return self.share(tasks, level);
        }
        let mut room = Aligned::<T, APART>::new();
        let to = room.pointer();
        T::dispatch(level, Copy { x: self.x, to });
        // SAFETY: so many numbers have been written, and the room stays as long as the product takes.
        let copy = unsafe { std::slice::from_raw_parts(to, len) };
        Product { copy, ..self }.share(tasks, level);
    }
}

impl<T: Scalar> Kernel<T> for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        if self.sliced.slice_rows == LANES { self.groups::<S, 1>(simd) } else { self.groups::<S, 2>(simd) }
    }
}

impl<T: Scalar> Product<'_, T> {
    /// With slices of `N` times [`LANES`] rows.
    #[inline(always)]
    fn groups<S: Simd<T>, const N: usize>(self, simd: S) {
        let Self { sliced, groups, copy, finite, mut y, update, .. } = self;
        let (len, slices) = (input_len(sliced.shape.1), GROUP / LANES / N);
        assert!(LANES.is_multiple_of(S::LANES) && copy.len() == y.rows() * len);
        let first = groups.start;
        for group in groups {
            let starts = &sliced.starts[group * slices..=(group + 1) * slices];
            let places = &sliced.places[group * LANES..][..LANES];
            for b in (0..y.rows()).filter(|&b| finite[b]) {
                let (mut outputs, x) = ([T::default(); GROUP], &copy[b * len..][..len]);
                for (outputs, blocks) in outputs.chunks_exact_mut(N * LANES).zip(starts.windows(2)) {
                    sliced.slice::<S, N>(simd, blocks[0]..blocks[1], x, outputs);
                }
                put(simd, places, &outputs, &mut y.row(b)[(group - first) * GROUP..], update);
            }
        }
    }
}

impl<T: Scalar> Sliced<T> {
    /// The outputs of a slice, `N` times [`LANES`] of them.
    #[inline(always)]
    fn slice<S: Simd<T>, const N: usize>(&self, simd: S, blocks: Range<usize>, x: &[T], outputs: &mut [T]) {
        let Self { shape, from, codes, values, .. } = self;
        let stored = from.len().min(codes.len() / LANES).min(values.len() / SLOTS);
        assert!(blocks.end <= stored && x.len() == input_len(shape.1) && outputs.len() == N * LANES);
        for lane in (0..LANES).step_by(S::LANES) {
            let mut sums = [simd.zero(); VECTORS];
            for block in blocks.clone() {
                // SAFETY: there are so many blocks; windows start below the width, and a whole one follows that. Codes are places in them.
                unsafe {
                    let values = values.as_ptr().add(block * SLOTS + lane);
                    let codes = codes.as_ptr().add(block * LANES + lane);
                    let window = x.as_ptr().add(*from.get_unchecked(block) as usize);
                    sums = simd.add_found(sums, values, codes, window);
                }
            }
            let (first, second) = (simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
            // SAFETY: the lanes that a vector has divide `LANES`, and there are `N` times as many outputs.
            unsafe {
                let outputs = outputs.as_mut_ptr().add(lane);
                if N == 1 {
                    simd.store(outputs, simd.add(first, second));
                } else {
                    simd.store(outputs, first);
                    simd.store(outputs.add(LANES), second);
                }
            }
        }
    }
}

/// Writes the outputs of a group, or as many as `y` has left, from their lanes to their places.
#[inline(always)]
fn put<T: Scalar, S: Simd<T>>(simd: S, places: &[u32], outputs: &[T; GROUP], y: &mut [T], update: Update) {
    assert!(places.len() == LANES);
    let ones = [T::one(); SLOTS];
    for lane in (0..LANES).step_by(S::LANES) {
        let mut sums = [simd.zero(); VECTORS];
        // SAFETY: vectors end where `y` does; places are places in a window, and there are so many outputs.
        unsafe {
            if update == Update::Accumulate {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let at = (v * LANES + lane).min(y.len());
                    *sum = simd.load_part(y.as_ptr().add(at), S::LANES.min(y.len() - at));
                }
            }
            sums = simd.add_found(sums, ones.as_ptr().add(lane), places.as_ptr().add(lane), outputs.as_ptr());
            for (v, sum) in sums.into_iter().enumerate() {
                let at = (v * LANES + lane).min(y.len());
                simd.store_part(y.as_mut_ptr().add(at), sum, S::LANES.min(y.len() - at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SparseProduct, multiply_sparse, sparse_scratch_len};
    use super::*;
    use crate::exec::Parallelism;
    use crate::kernels::source;
    use crate::matrix::Op;
    use crate::random::Gaussian;

    /// Small integers: every sum is exact, in any order.
    fn number(i: usize) -> f64 {
        ((i * 2_654_435_761) >> 7 & 7) as f64 - 3.0
    }

    /// About `keep` in `of` positions, none in column 2 nor in the last row.
    fn pattern((rows, width): (usize, usize), (keep, of): (usize, usize)) -> Pattern {
        let mixed = |i: usize, j: usize| ((i * width + j) * 2_654_435_761) >> 9;
        let kept = |i: usize, j: usize| j != 2 && i + 1 != rows && mixed(i, j) % of < keep;
        with_rows(width, (0..rows).map(|i| (0..width).filter(|&j| kept(i, j)).collect()).collect())
    }

    /// With these columns in each row.
    fn with_rows(width: usize, rows: Vec<Vec<usize>>) -> Pattern {
        let start = |row: usize| rows[..row].iter().map(Vec::len).sum::<usize>() as u32;
        let cols = rows.iter().flatten().map(|&col| col as u32).collect();
        Pattern::new(width, (0..=rows.len()).map(start).collect(), cols).unwrap()
    }

    /// What is added to ones, and the inputs.
    fn expected(pattern: &Pattern, batch: usize) -> (Vec<f64>, Vec<f64>) {
        let (rows, width) = (pattern.rows(), pattern.width());
        let x: Vec<f64> = (0..batch * width).map(|i| number(i + 99)).collect();
        let mut y = vec![1.0; batch * rows];
        for (p, (i, j)) in pattern.positions().enumerate() {
            (0..batch).for_each(|b| y[b * rows + i] += number(p) * x[b * width + j]);
        }
        (x, y)
    }

    fn check<T: Scalar>(level: Level, pattern: &Pattern, slice: usize) {
        assert_eq!(super::slice_rows(pattern), slice * LANES);
        let (rows, width, batch) = (pattern.rows(), pattern.width(), 3);
        let sliced = Sliced::new(pattern, |p| T::narrow(number(p))).expect("enough values");
        let (x, want) = expected(pattern, batch);
        let x: Vec<T> = x.into_iter().map(T::narrow).collect();
        let mut scratch = vec![T::narrow(f64::NAN); batch * input_len(width)];
        let mut run = |x: &[T], y: &mut [T], parallelism: Parallelism, update: Update| {
            let (x, y) = (Rows::new(x, batch, width, width), RowsMut::new(y, batch, rows, rows));
            sliced.multiply(x, y, update, None, &mut scratch, Policy { parallelism, level })
        };
        let halves = |outputs: Range<usize>, mut y: RowsMut<'_, T>| {
            assert_eq!(outputs.len(), y.cols());
            (0..batch).for_each(|b| y.row(b).fill(T::narrow(0.5)));
        };
        for parallelism in [Parallelism::Seq, Parallelism::Threads(2), Parallelism::Threads(5)] {
            let mut y = vec![T::one(); batch * rows];
            run(&x, &mut y, parallelism, Update::Accumulate);
            let equal = |y: &[T], less: f64| y.iter().zip(&want).all(|(y, want)| y.widen() == want - less);
            assert!(equal(&y, 0.0), "{level} {rows} x {width}, {parallelism:?}: added");
            y.fill(T::narrow(f64::NAN));
            assert_eq!(run(&x, &mut y, parallelism, Update::Overwrite), [true, true, true, false]);
            assert!(equal(&y, 1.0), "{level} {rows} x {width}, {parallelism:?}");
            y.fill(T::narrow(f64::NAN));
            let (xs, ys) = (Rows::new(&x, batch, width, width), RowsMut::new(&mut y, batch, rows, rows));
            let (policy, mut scratch) =
                (Policy { parallelism, level }, vec![T::zero(); batch * input_len(width)]);
            sliced.multiply(xs, ys, Update::Accumulate, Some(&halves), &mut scratch, policy);
            assert!(equal(&y, 0.5), "{level} {rows} x {width}, {parallelism:?}: after another product");
        }
        for wrong in [f64::NAN, f64::INFINITY] {
            for (at, row) in [(0, 0), (x.len() - 1, 2)] {
                let (mut x, mut y) = (x.clone(), vec![T::narrow(0.5); batch * rows]);
                x[at] = T::narrow(wrong);
                let finite = run(&x, &mut y, Parallelism::Seq, Update::Overwrite);
                assert_eq!(finite, std::array::from_fn(|b| b < batch && b != row));
                for (b, (y, want)) in y.chunks(rows).zip(want.chunks(rows)).enumerate() {
                    let same = |(y, want): (&T, &f64)| y.widen() == if b == row { 0.5 } else { want - 1.0 };
                    assert!(y.iter().zip(want).all(same), "{level} {rows} x {width}, {wrong} in row {row}");
                }
            }
        }
    }

    #[test]
    fn products_equal_their_formula_at_every_level() {
        for level in Level::available() {
            for (shape, share, slice) in [
                ((12, 1), (1, 1), 1),
                ((8, 3), (1, 1), 1),
                ((17, 64), (1, 2), 1),
                ((33, 200), (1, 7), 1),
                ((65, 200), (1, 9), 2),
                ((300, 129), (1, 3), 1),
                ((129, 600), (1, 30), 2),
                ((520, 257), (1, 20), 2),
                ((1300, 900), (1, 20), 2),
                ((700, 300), (1, 4), 1),
            ] {
                // The last row is empty: one of a single row would have nothing.
                let rows = (shape.0 + 1, shape.1);
                check::<f32>(level, &pattern(rows, share), slice);
                check::<f64>(level, &pattern(rows, share), slice);
            }
        }
    }

    #[test]
    fn rows_of_any_lengths_multiply_as_their_formula() {
        // Rows from empty to full, blocks of empty ones between, values at both ends only.
        let lengths = with_rows(300, (0..270).map(|i| (0..(i * 7) % 300).collect()).collect());
        let gaps = with_rows(
            300,
            (0..400).map(|i| if i / 16 % 3 == 1 { vec![] } else { (0..300).collect() }).collect(),
        );
        let ends = with_rows(5000, (0..64).map(|_| vec![0, 1, 2, 4998, 4999]).collect());
        for level in Level::available() {
            check::<f32>(level, &lengths, 1);
            check::<f64>(level, &gaps, 1);
            check::<f32>(level, &ends, 2);
        }
    }

    #[test]
    fn most_slots_of_random_patterns_hold_values() {
        // Quantiles of the normal distribution: 5 % and 20 %.
        for (quantile, least, most) in [(-1.645, 0.58, 0.68), (-0.8416, 0.83, 0.92)] {
            let normal = Gaussian::new(1).matrix(512, 1024, 1.0);
            let kept = |i: usize| (0..1024).filter(|&j| normal[[i, j]] < quantile).collect();
            let pattern = with_rows(1024, (0..512).map(kept).collect());
            let share = pattern.len() as f64 / pattern.slots().unwrap() as f64;
            assert!((least..most).contains(&share), "{share}");
        }
    }

    #[test]
    fn all_but_empty_patterns_have_no_slices() {
        let few = with_rows(100_000, (0..32).map(|i| vec![i * 3000]).collect());
        assert!(few.slots().is_none() && Sliced::new(&few, |_| 1f32).is_none());
        for empty in [with_rows(5, vec![]), with_rows(0, vec![vec![]; 3]), with_rows(7, vec![vec![]; 40])] {
            assert_eq!(empty.slots(), Some(0));
            let (sliced, n) = (Sliced::new(&empty, |_| 1f32).unwrap(), empty.rows());
            let (x, mut y) = (vec![1.0; empty.width()], vec![3.0; n]);
            let (x, mut scratch) = (Rows::new(&x, 1, empty.width(), empty.width()), vec![0.0; input_len(7)]);
            for (update, want) in [(Update::Accumulate, 3.0), (Update::Overwrite, 0.0)] {
                let y_rows = RowsMut::new(&mut y, 1, n, n);
                assert!(sliced.multiply(x, y_rows, update, None, &mut scratch, Policy::default())[0]);
                assert!(y.iter().all(|y| *y == want));
            }
        }
    }

    #[test]
    fn an_infinite_input_reaches_no_row_without_its_column() {
        let pattern = pattern((40, 300), (1, 4));
        let halves: Vec<half::bf16> = (0..pattern.len()).map(|p| half::bf16::from_f64(number(p))).collect();
        let sliced = Sliced::new(&pattern, |p| halves[p].to_f32()).unwrap();
        for (at, wrong) in [(2, f64::INFINITY), (2, f64::NAN), (7, f64::NAN)] {
            // In the second batch row.
            let (x, mut want) = expected(&pattern, 2);
            let mut x: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
            x[300 + at] = wrong as f32;
            pattern.positions().filter(|(_, j)| *j == at).for_each(|(i, _)| want[40 + i] = f64::NAN);
            let (mut y, mut scratch) = (vec![1.0; 80], vec![0.0; sparse_scratch_len(2, 40, 300)]);
            multiply_sparse(
                source::Bf16::new(&halves, 1, halves.len()),
                SparseProduct {
                    pattern: &pattern,
                    sliced: Some(&sliced),
                    op: Op::Forward,
                    x: Rows::new(&x, 2, 300, 300),
                    y: RowsMut::new(&mut y, 2, 40, 40),
                    update: Update::Accumulate,
                    before: None,
                    scratch: &mut scratch,
                    policy: Policy::default(),
                },
            );
            let same = |(y, want): (&f32, &f64)| f64::from(*y) == *want || y.is_nan() && want.is_nan();
            assert!(y.iter().zip(&want).all(same), "column {at}, {wrong}");
        }
    }
}
