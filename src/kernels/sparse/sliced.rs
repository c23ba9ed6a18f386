//! Small batches, on machines that find numbers in registers: sixteen rows of the matrix advance together, one in each lane, through a window of the
//! inputs that slides over them. The window lies in registers, and each lane finds its next input there instead of loading it alone.
//!
//! This is sliced ELLPACK (M. Kreutzer et al., "A unified sparse matrix data format", 2014: rows sorted by length in parts, slices padded to vectors) whose
//! vectors may hold values of different columns, as long as one window holds their inputs. A row that is ahead waits for the others, so that in random
//! patterns some 63 % of the lanes do work at 5 % of the positions, and some 87 % at 20 %.

use super::TILED_BATCH;
use super::pattern::Pattern;
use crate::exec::Policy;
use crate::kernels::aligned::AlignedVec;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::{Simd, prefetch};
use crate::kernels::team;
use crate::kernels::view::{Rows, RowsMut};
use crate::matrix::Update;
use crate::scalar::Scalar;
use std::ops::Range;

/// Rows that advance together: lanes of the widest vector.
const SLICE: usize = 16;
/// Rows that are sorted by their number of values before they are cut into slices, as rows of a slice should end together.
const SORTED: usize = 8 * SLICE;
/// Inputs of a window; those of every number of lanes that there is.
const WINDOW: usize = 64;
/// Windows start at multiples of this, so that their vectors lie in whole cache lines.
const ALIGN: usize = 16;
/// Vectors of a block: one byte of a code for each.
const VECTORS: usize = 4;
/// Slots for values in a block.
const SLOTS: usize = VECTORS * SLICE;
/// With more positions than one in so many, a block has one window instead of two: rows then seldom wait, and windows are loaded half as often.
const DENSE: usize = 14;
/// Slots for each value at most: an all but empty pattern is mostly padding.
const MOST_SLOTS: usize = 8;
/// Inputs of which each thread makes a copy of its own, at most: they lie on its stack.
const APART: usize = 4096 + WINDOW;
/// How far ahead of their use values are fetched in matrices of two windows a block, in bytes. The processor foresees the faster stream of the others
/// by itself, and asking for it takes a quarter longer.
const AHEAD: usize = 8192;

/// What to do with a block: its slice, where its windows start, and which position of the pattern is in each slot.
type Visit<'a> = dyn FnMut(usize, [usize; 2], &[Option<usize>; SLOTS]) + 'a;

/// Windows of each block.
fn windows(pattern: &Pattern) -> usize {
    let positions = pattern.rows().saturating_mul(pattern.width());
    if pattern.len().saturating_mul(DENSE) > positions { 1 } else { 2 }
}

/// The rows in the order of their lanes, each counted from the first of those sorted with it.
fn order(pattern: &Pattern) -> Vec<u8> {
    let starts = pattern.starts();
    let sorted = |first: usize| {
        let mut rows: Vec<usize> = (first..pattern.rows().min(first + SORTED)).collect();
        rows.sort_by_key(|&row| starts[row + 1] - starts[row]);
        rows.into_iter().map(move |row| (row - first) as u8)
    };
    (0..pattern.rows()).step_by(SORTED).flat_map(sorted).collect()
}

/// Shows the blocks of the pattern, slice after slice.
fn visit(pattern: &Pattern, order: &[u8], windows: usize, show: &mut Visit<'_>) {
    let starts = pattern.starts();
    let col = |place: usize, end: usize| if place < end { pattern.col(place) } else { usize::MAX };
    for (slice, rows) in order.chunks(SLICE).enumerate() {
        let (mut next, mut ends, mut cols) = ([0; SLICE], [0; SLICE], [usize::MAX; SLICE]);
        for (lane, row) in rows.iter().enumerate() {
            let row = slice * SLICE / SORTED * SORTED + usize::from(*row);
            (next[lane], ends[lane]) = (starts[row] as usize, starts[row + 1] as usize);
            cols[lane] = col(next[lane], ends[lane]);
        }
        let first = |cols: &[usize; SLICE]| cols.iter().fold(usize::MAX, |first, &col| first.min(col));
        while first(&cols) != usize::MAX {
            let (mut slots, mut from) = ([None; SLOTS], [0; 2]);
            for (window, slots) in slots.chunks_mut(SLOTS / windows).enumerate() {
                from[window] = match first(&cols) {
                    usize::MAX => from[0],
                    first => first / ALIGN * ALIGN,
                };
                for slots in slots.chunks_mut(SLICE) {
                    for (lane, slot) in slots.iter_mut().enumerate() {
                        if cols[lane] < from[window] + WINDOW {
                            *slot = Some(next[lane]);
                            next[lane] += 1;
                            cols[lane] = col(next[lane], ends[lane]);
                        }
                    }
                }
            }
            show(slice, from, &slots);
        }
    }
}

/// Slots for values that a [`Sliced`] has, `None` where they are too many.
pub(super) fn slots(pattern: &Pattern) -> Option<usize> {
    let mut blocks = 0;
    visit(pattern, &order(pattern), windows(pattern), &mut |_, _, _| blocks += 1);
    Some(blocks * SLOTS).filter(|&slots| slots <= pattern.len().saturating_mul(MOST_SLOTS))
}

/// Numbers of an input as products read it: zeros follow, so that every window is whole.
pub(super) fn input_len(width: usize) -> usize {
    width.saturating_add(WINDOW) / ALIGN * ALIGN
}

/// A sparse matrix as slices of rows.
#[derive(Debug, Clone)]
pub struct Sliced<T> {
    width: usize,
    /// Windows of each block.
    windows: usize,
    /// Where the blocks of each slice start, and the number of all.
    starts: Vec<usize>,
    /// All rows, in the order of their lanes.
    order: Vec<u8>,
    /// Where the windows of each block start.
    from: Vec<u32>,
    /// Block after block, lane after lane: byte `v` is the place of the input of vector `v` in its window.
    codes: AlignedVec<u32>,
    /// Block after block, vector after vector; zero where a row waits.
    values: AlignedVec<T>,
}

impl<T: Scalar> Sliced<T> {
    /// With the value `value(p)` at position `p` of the pattern; `None` where that takes too much room.
    pub(crate) fn new(pattern: &Pattern, value: impl Fn(usize) -> T) -> Option<Self> {
        let (windows, order, slots) = (windows(pattern), order(pattern), pattern.slots()?);
        let (mut starts, mut from) = (vec![0; pattern.rows().div_ceil(SLICE) + 1], Vec::new());
        let (mut codes, mut values) = (AlignedVec::zeroed(slots / VECTORS), AlignedVec::zeroed(slots));
        let mut block = 0;
        visit(pattern, &order, windows, &mut |slice, starts_at, positions| {
            from.extend(starts_at[..windows].iter().map(|&at| at as u32));
            for (slot, position) in positions.iter().enumerate() {
                if let &Some(position) = position {
                    let (vector, lane) = (slot / SLICE, slot % SLICE);
                    let place = pattern.col(position) - starts_at[vector * windows / VECTORS];
                    codes[block * SLICE + lane] |= (place as u32) << (8 * vector);
                    values[block * SLOTS + slot] = value(position);
                }
            }
            block += 1;
            starts[slice + 1] = block;
        });
        // Slices of empty rows have shown no block.
        (1..starts.len()).for_each(|slice| starts[slice] = starts[slice].max(starts[slice - 1]));
        Some(Self { width: pattern.width(), windows, starts, order, from, codes, values })
    }

    /// `Y (+)= X Aᵀ` for those batch rows, of less than [`TILED_BATCH`], that it returns: inputs that are not finite would reach the rows that wait. Takes
    /// [`input_len`] numbers of scratch for each. Panics when the operands do not fit.
    pub(super) fn multiply(
        &self,
        x: Rows<'_, T>,
        y: RowsMut<'_, T>,
        update: Update,
        scratch: &mut [T],
        policy: Policy,
    ) -> [bool; TILED_BATCH] {
        assert!(x.cols() == self.width && y.cols() == self.order.len() && x.rows() == y.rows());
        let to = &mut scratch[..x.rows() * input_len(self.width)];
        let finite = T::dispatch(policy.level, Copy { x, to });
        let tasks = policy.tasks(self.values.len().saturating_mul(x.rows()));
        let slices = 0..self.starts.len() - 1;
        Product { sliced: self, slices, x, copy: to, finite, y, update }.share(tasks, policy.level);
        finite
    }
}

/// Copies the inputs to where windows are aligned and whole; returns which rows are finite.
struct Copy<'a, T> {
    x: Rows<'a, T>,
    to: &'a mut [T],
}

impl<T: Scalar> Kernel<T> for Copy<'_, T> {
    type Output = [bool; TILED_BATCH];
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) -> [bool; TILED_BATCH] {
        let Self { x, to } = self;
        let width = x.cols();
        let mut finite = [false; TILED_BATCH];
        for (b, to) in to.chunks_exact_mut(input_len(width)).enumerate() {
            let (x, mut wrong) = (x.row(b), simd.zero());
            for j in (0..to.len()).step_by(S::LANES) {
                let count = S::LANES.min(width.saturating_sub(j));
                // SAFETY: `count` inputs are left, and a whole vector of the copy, whose length is a multiple of the lanes.
                unsafe {
                    let numbers = simd.load_part(x.as_ptr().wrapping_add(j), count);
                    wrong = simd.mul_add(numbers, simd.zero(), wrong);
                    simd.store(to.as_mut_ptr().add(j), numbers);
                }
            }
            finite[b] = simd.sum(wrong) == T::zero();
        }
        finite
    }
}

/// The product with some slices, the rows of `y`.
struct Product<'a, T> {
    sliced: &'a Sliced<T>,
    slices: Range<usize>,
    x: Rows<'a, T>,
    /// What [`Copy`] made of them, and which rows of it are multiplied.
    copy: &'a [T],
    finite: [bool; TILED_BATCH],
    y: RowsMut<'a, T>,
    update: Update,
}

impl<T: Scalar> Product<'_, T> {
    /// Splits it between rows that are not sorted together, nearest to where half of the blocks lie.
    fn share(self, tasks: usize, level: Level) {
        let Self { sliced, slices, x, copy, finite, y, update } = self;
        let starts = &sliced.starts[slices.start..=slices.end];
        let half = starts[0].midpoint(starts[slices.len()]);
        let (at, group) = (starts.partition_point(|&start| start < half), SORTED / SLICE);
        let at = (at + group / 2) / group * group;
        if tasks < 2 || at == 0 || at >= slices.len() {
            return T::dispatch(level, Product { sliced, slices, x, copy, finite, y, update });
        }
        let (middle, tasks_right) = (slices.start + at, tasks / 2);
        let (top, bottom) = y.split_columns(at * SLICE);
        let left = Product { sliced, slices: slices.start..middle, x, copy, finite, y: top, update };
        let right = Product { sliced, slices: middle..slices.end, x, copy, finite, y: bottom, update };
        team::join(|| left.share(tasks - tasks_right, level), move || right.apart(tasks_right, level));
    }

    /// On another thread, which has its own copy of the inputs: fetching what a core has just written takes longer than copying them once more.
    fn apart(self, tasks: usize, level: Level) {
        let len = self.x.rows() * input_len(self.x.cols());
        if len > APART {
            return self.share(tasks, level);
        }
        let mut room = Room([T::default(); APART]);
        T::dispatch(level, Copy { x: self.x, to: &mut room.0[..len] });
        Product { copy: &room.0[..len], ..self }.share(tasks, level);
    }
}

/// Memory for a copy of the inputs.
#[repr(align(64))]
struct Room<T>([T; APART]);

impl<T: Scalar> Kernel<T> for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        if self.sliced.windows == 1 { self.slices::<S, 1>(simd) } else { self.slices::<S, 2>(simd) }
    }
}

impl<T: Scalar> Product<'_, T> {
    /// With blocks of `W` windows.
    #[inline(always)]
    fn slices<S: Simd<T>, const W: usize>(self, simd: S) {
        let Self { sliced, slices, copy, finite, mut y, update, .. } = self;
        let Sliced { width, starts, order, from, codes, values, .. } = sliced;
        let (len, blocks) = (input_len(*width), codes.len() / SLICE);
        assert!(SLICE.is_multiple_of(S::LANES) && copy.len() >= y.rows() * len);
        assert!(values.len() == blocks * SLOTS && from.len() == blocks * W && starts[slices.end] <= blocks);
        let first = slices.start * SLICE;
        for slice in slices {
            let rows = &order[slice * SLICE..order.len().min((slice + 1) * SLICE)];
            let offset = slice * SLICE / SORTED * SORTED - first;
            for b in (0..y.rows()).filter(|&b| finite[b]) {
                let x = copy[b * len..].as_ptr();
                let mut outputs = [T::default(); SLICE];
                for lane in (0..SLICE).step_by(S::LANES) {
                    let mut sums = [simd.zero(); VECTORS];
                    for block in starts[slice]..starts[slice + 1] {
                        // SAFETY: there are so many blocks; windows start below the width, and a whole one follows that. Codes are places in them.
                        unsafe {
                            let values = values.as_ptr().add(block * SLOTS + lane);
                            let codes = codes.as_ptr().add(block * SLICE + lane);
                            if W == 2 {
                                (0..SLOTS * size_of::<T>()).step_by(64).for_each(|line| {
                                    prefetch(values.cast::<u8>().wrapping_add(AHEAD + line));
                                });
                                prefetch(codes.cast::<u8>().wrapping_add(AHEAD / VECTORS));
                            }
                            let mut windows = [x; W];
                            for (w, window) in windows.iter_mut().enumerate() {
                                *window = x.add(*from.get_unchecked(block * W + w) as usize);
                            }
                            sums = simd.add_found(sums, values, codes, windows);
                        }
                    }
                    let sum = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
                    // SAFETY: LANES divides SLICE.
                    unsafe { simd.store(outputs.as_mut_ptr().add(lane), sum) };
                }
                let y = &mut y.row(b)[offset..];
                for (output, row) in outputs.iter().zip(rows) {
                    let y = &mut y[usize::from(*row)];
                    match update {
                        Update::Overwrite => *y = *output,
                        Update::Accumulate => *y += *output,
                    }
                }
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

    fn check<T: Scalar>(level: Level, pattern: &Pattern, windows: usize) {
        assert_eq!(super::windows(pattern), windows);
        let (rows, width, batch) = (pattern.rows(), pattern.width(), 3);
        let sliced = Sliced::new(pattern, |p| T::narrow(number(p))).expect("enough values");
        let (x, want) = expected(pattern, batch);
        let x: Vec<T> = x.into_iter().map(T::narrow).collect();
        let mut scratch = vec![T::narrow(f64::NAN); batch * input_len(width)];
        let mut run = |x: &[T], y: &mut [T], parallelism: Parallelism, update: Update| {
            let (x, y) = (Rows::new(x, batch, width, width), RowsMut::new(y, batch, rows, rows));
            sliced.multiply(x, y, update, &mut scratch, Policy { parallelism, level })
        };
        for parallelism in [Parallelism::Seq, Parallelism::Threads(2), Parallelism::Threads(5)] {
            let mut y = vec![T::one(); batch * rows];
            run(&x, &mut y, parallelism, Update::Accumulate);
            let equal = |y: &[T], less: f64| y.iter().zip(&want).all(|(y, want)| y.widen() == want - less);
            assert!(equal(&y, 0.0), "{level} {rows} x {width}, {parallelism:?}: added");
            y.fill(T::narrow(f64::NAN));
            assert_eq!(run(&x, &mut y, parallelism, Update::Overwrite), [true, true, true, false]);
            assert!(equal(&y, 1.0), "{level} {rows} x {width}, {parallelism:?}");
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
            for (shape, share, windows) in [
                ((12, 1), (1, 1), 1),
                ((8, 3), (1, 1), 1),
                ((17, 64), (1, 2), 1),
                ((33, 200), (1, 8), 1),
                ((300, 129), (1, 3), 1),
                ((129, 600), (1, 30), 2),
                ((520, 257), (1, 20), 2),
            ] {
                // The last row is empty: one of a single row would have nothing.
                let rows = (shape.0 + 1, shape.1);
                check::<f32>(level, &pattern(rows, share), windows);
                check::<f64>(level, &pattern(rows, share), windows);
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
                assert!(sliced.multiply(x, y_rows, update, &mut scratch, Policy::default())[0]);
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
                    scratch: &mut scratch,
                    policy: Policy::default(),
                },
            );
            let same = |(y, want): (&f32, &f64)| f64::from(*y) == *want || y.is_nan() && want.is_nan();
            assert!(y.iter().zip(&want).all(same), "column {at}, {wrong}");
        }
    }
}
