//! Products with a stack of dense blocks: argument checks, splitting between threads, choice of kernel.

use super::batches::{self, Batches};
use super::level::{Kernel, Level};
use super::packing::{Lanes, Packing, between_panels};
use super::panel_map::PanelMap;
use super::simd::Simd;
use super::source::Source;
use super::view::{Rows, RowsMut};
use super::{digits, narrow, panels, small};
use crate::exec::Policy;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::GROUP;
use std::ops::Range;

/// Smallest batch whose rows are packed. Below, weights are decoded straight into registers.
const PACKED_BATCH: usize = 4;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Outputs per thread are a multiple of this (and of [`GROUP`]), so that no thread shares a cache line or a group.
const SPLIT: usize = 32;
const _: () = assert!(SPLIT.is_multiple_of(GROUP));

/// A pointer that tasks share; each writes entries of its own. Where only some rows of a packed block are asked for it lies before the first output, as
/// if there were all: what is between is never touched.
#[derive(Debug)]
pub(super) struct Output<T>(pub(super) *mut T);
impl<T> Clone for Output<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Output<T> {}
// SAFETY: `multiply` gives each task its own blocks, outputs or batch rows, which are distinct entries.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

/// What a task reads and writes beside its weights.
#[derive(Debug)]
pub(super) struct Io<'a, T> {
    pub(super) map: PanelMap,
    pub(super) op: Op,
    pub(super) x: Rows<'a, T>,
    pub(super) y: Output<T>,
    pub(super) y_stride: usize,
    pub(super) update: Update,
}

impl<T> Clone for Io<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Io<'_, T> {}

impl<T> Io<'_, T> {
    /// The feature that is output `lane` of a block.
    #[inline(always)]
    pub(super) fn output(&self, block: usize, lane: usize) -> usize {
        let forward = self.op == Op::Forward;
        if forward { self.map.row_feature(block, lane) } else { self.map.col_feature(block, lane) }
    }

    /// The feature that is input `step` of a block.
    #[inline(always)]
    pub(super) fn input(&self, block: usize, step: usize) -> usize {
        let forward = self.op == Op::Forward;
        if forward { self.map.col_feature(block, step) } else { self.map.row_feature(block, step) }
    }
}

/// One task: some blocks, or a range of outputs of one block.
#[derive(Clone)]
pub(super) struct Job<'a, T, W> {
    pub(super) source: W,
    /// First row of the stack in `source`.
    pub(super) first: usize,
    /// First block of the stack in `source`, where it is packed.
    pub(super) first_block: usize,
    /// First column of the blocks that takes part, at the start of a panel.
    pub(super) column: usize,
    pub(super) packing: Option<Packing>,
    pub(super) io: Io<'a, T>,
    pub(super) blocks: Range<usize>,
    /// Rows (forward) or columns (transposed) of each block to produce.
    pub(super) outputs: Range<usize>,
    /// Whether codes are multiplied as integers.
    pub(super) in_digits: bool,
}

impl<'a, T, W> std::ops::Deref for Job<'a, T, W> {
    type Target = Io<'a, T>;
    #[inline(always)]
    fn deref(&self) -> &Io<'a, T> {
        &self.io
    }
}

impl<T, W> Job<'_, T, W> {
    /// Whether blocks write into the same cache lines, so that threads share batch rows rather than blocks.
    fn scattered(&self) -> bool {
        let narrow = self.map.group * size_of::<T>() < LINE && !self.map.rows_contiguous();
        let splits = self.x.rows() >= 2 * batches::ROWS && self.map.cols <= batches::DEPTH;
        self.op == Op::Forward && narrow && splits
    }
}

impl<T, W: Source> Job<'_, T, W> {
    /// Whether all columns take part.
    fn is_whole(&self) -> bool {
        self.map.cols == self.source.cols()
    }

    /// The number at a step of the panel that starts at `lane` of the columns or rows that take part, and the panel's width.
    #[inline(always)]
    pub(super) fn panel(&self, packing: Packing, block: usize, lane: usize, step: usize) -> (usize, usize) {
        let (lane, step) = self.place(packing, lane, step);
        let (at, width) = packing.panel(self.first_block + block, lane);
        (at + step * width, width)
    }

    /// Its scale.
    #[inline(always)]
    pub(super) fn panel_scales(&self, packing: Packing, block: usize, lane: usize, step: usize) -> usize {
        let (lane, step) = self.place(packing, lane, step);
        let (scales, width) =
            (packing.panel_scales(self.first_block + block, lane), packing.panel(0, lane).1);
        scales + if packing.lanes == Lanes::Rows { step / GROUP * width } else { step }
    }

    #[inline(always)]
    fn place(&self, packing: Packing, lane: usize, step: usize) -> (usize, usize) {
        match packing.lanes {
            Lanes::Rows => (lane, step + self.column),
            Lanes::Cols => (lane + self.column, step),
        }
    }
}

/// What to multiply with the panels of a source.
#[derive(Debug)]
pub struct PanelProduct<'a, T> {
    /// First row of the stack in the source.
    pub(crate) first: usize,
    /// First column of the blocks in the source.
    pub(crate) column: usize,
    /// How the source is packed; `None` where its rows lie one after the other.
    pub(crate) packing: Option<Packing>,
    pub(crate) map: PanelMap,
    pub(crate) op: Op,
    pub(crate) x: Rows<'a, T>,
    pub(crate) y: RowsMut<'a, T>,
    pub(crate) update: Update,
    pub(crate) policy: Policy,
}

/// `Y (+)= X Bᵀ` (forward) or `Y (+)= X B` (transposed), `B` the block diagonal matrix of `map.blocks` blocks that start
/// at row `first` of `source`. Panics when the operands do not fit.
pub(crate) fn multiply<T: Scalar, W: Source>(source: W, product: PanelProduct<'_, T>) {
    let PanelProduct { mut first, column, packing, mut map, op, x, mut y, update, policy } = product;
    let (row_features, col_features) = map.features();
    let (outputs, inputs) = op.order(row_features, col_features);
    let whole = source.cols() == map.cols;
    assert!(between_panels(column..column + map.cols, source.cols()), "columns are cut between panels");
    assert!(first + row_features <= source.rows());
    assert!(x.rows() == y.rows() && x.cols() == inputs && y.cols() == outputs);
    let work = map.blocks.saturating_mul(map.rows).saturating_mul(map.cols).saturating_mul(x.rows());
    let (mut to, mut produced) = (y.as_mut_ptr(), 0..op.order(map.rows, map.cols).0);
    if let Some(packing) = packing {
        if packing.is_shared() {
            let io = Io { map, op, x, y_stride: y.stride(), y: Output(to), update };
            assert!(whole && first == 0 && packing.shares(map));
            return narrow::multiply(source, packing, io, policy.tasks(work), policy.level);
        }
        if packing.rows != map.rows {
            // Those outputs of the whole block.
            let row = first % packing.rows;
            assert!(
                op == Op::Forward && map.blocks == 1,
                "some rows of a packed block are produced, of one block"
            );
            assert!(between_panels(row..row + map.rows, packing.rows), "rows are cut between panels");
            (to, produced) = (to.wrapping_sub(row), row..row + map.rows);
            (first, map) = (first - row, PanelMap { rows: packing.rows, group: packing.rows, ..map });
        }
        assert!(packing.cols == source.cols() && first.is_multiple_of(map.rows));
    }
    let mut job = Job {
        source,
        first,
        first_block: if packing.is_some() { first / map.rows } else { 0 },
        column,
        packing,
        io: Io { map, op, x, y_stride: y.stride(), y: Output(to), update },
        blocks: 0..map.blocks,
        outputs: produced,
        in_digits: false,
    };
    job.in_digits = whole && digits::serves(&job, policy.level);
    split(&job, policy.tasks(work), policy);
}

/// Jobs go by reference: copying one takes longer than a small product.
fn split<T: Scalar, W: Source>(job: &Job<'_, T, W>, tasks: usize, policy: Policy) {
    let halves = if tasks < 2 { None } else { halves(job) };
    match halves {
        None if job.in_digits => digits::multiply(job),
        None if job.x.rows() < PACKED_BATCH && job.is_whole() => T::dispatch(policy.level, job),
        None => in_batches(job, policy.level),
        Some((left, right)) => {
            let half = tasks / 2;
            super::team::join(|| split(&left, tasks - half, policy), move || split(&right, half, policy));
        }
    }
}

/// By itself, for the size of its stack frame: small products do not pay for it.
#[inline(never)]
fn in_batches<T: Scalar, W: Source>(job: &Job<'_, T, W>, level: Level) {
    T::dispatch(level, Batches(job, level));
}

/// Two jobs that together are this one, where it can be divided.
fn halves<'a, T: Scalar, W: Source>(job: &Job<'a, T, W>) -> Option<(Job<'a, T, W>, Job<'a, T, W>)> {
    let (mut left, mut right) = (job.clone(), job.clone());
    if job.scattered() {
        // The rows that are multiplied together stay together: the same sums, in the same order.
        let (rows, at) = (job.x.rows(), job.x.rows() / 2 / batches::ROWS * batches::ROWS);
        (left.io.x, right.io.x) = (job.x.batch(0..at), job.x.batch(at..rows));
        right.io.y = Output(job.y.0.wrapping_add(at * job.y_stride));
    } else if job.blocks.len() > 1 {
        let at = job.blocks.start + job.blocks.len() / 2;
        (left.blocks.end, right.blocks.start) = (at, at);
    } else {
        let at = job.outputs.start + (job.outputs.len() / 2).next_multiple_of(SPLIT);
        if at >= job.outputs.end {
            return None;
        }
        (left.outputs.end, right.outputs.start) = (at, at);
    }
    Some((left, right))
}

impl<T: Scalar, W: Source> Kernel<T> for &Job<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        // SAFETY: `multiply` has checked that source, x and y fit the map, and `split` keeps blocks and outputs inside it.
        unsafe {
            if let Some(packing) = self.packing {
                return panels::multiply(simd, self, packing);
            }
            match self.op {
                Op::Forward => small::forward(simd, self),
                Op::Transpose => small::transpose(simd, self),
            }
        }
    }
}

/// What to multiply entry by entry with a row of a source.
#[derive(Debug)]
pub struct RowScaling<'a, T> {
    pub(crate) row: usize,
    /// First column of the row.
    pub(crate) from: usize,
    pub(crate) x: &'a [T],
    pub(crate) y: &'a mut [T],
    pub(crate) update: Update,
    pub(crate) policy: Policy,
}

/// `y (+)= a ∘ x` with `a` the numbers of row `row` of `source` from column `from` on. Panics when they do not fit.
pub(crate) fn scale<T: Scalar, W: Source>(source: W, scaling: RowScaling<'_, T>) {
    let RowScaling { row, from, x, y, update, policy } = scaling;
    assert!(x.len() == y.len() && row < source.rows() && from + x.len() <= source.cols());
    T::dispatch(policy.level, Scale { source, row, from, x, y, update });
}

struct Scale<'a, T, W> {
    source: W,
    row: usize,
    from: usize,
    x: &'a [T],
    y: &'a mut [T],
    update: Update,
}

impl<T: Scalar, W: Source> Kernel<T> for Scale<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { source, row, from, x, y, update } = self;
        let aligned = from.is_multiple_of(S::LANES);
        let vectors = if aligned { x.len() / S::LANES * S::LANES } else { 0 };
        for j in (0..vectors).step_by(S::LANES) {
            // SAFETY: j + LANES <= x.len() = y.len(), and from + x.len() lies inside the row, by `scale`.
            unsafe {
                let a = source.load(simd, row, from + j);
                let b = simd.load(x.as_ptr().add(j));
                let out = y.as_mut_ptr().add(j);
                let sum = match update {
                    Update::Overwrite => simd.mul(a, b),
                    Update::Accumulate => simd.mul_add(a, b, simd.load(out)),
                };
                simd.store(out, sum);
            }
        }
        for j in vectors..x.len() {
            let product = T::narrow(source.get(row, from + j)) * x[j];
            y[j] = if update == Update::Accumulate { y[j] + product } else { product };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Factor, Storage};

    /// Small integers: every sum is exact, in any order.
    fn number(i: usize) -> f64 {
        ((i * 2_654_435_761) >> 7 & 7) as f64 - 3.0
    }

    /// Every entry of the product by its formula, against the kernels.
    fn check<T: Scalar>(storage: Storage, map: PanelMap, op: Op, batch: usize, policy: Policy) {
        let PanelMap { blocks, rows, cols, .. } = map;
        let factor =
            Factor::from_fn(storage, (blocks, rows, cols), |b, i, j| number((b * rows + i) * cols + j));
        let (outputs, inputs) = op.order(blocks * rows, blocks * cols);
        let (x_stride, y_stride) = (inputs + 3, outputs + 5);
        let x: Vec<T> = (0..batch * x_stride).map(|i| T::narrow(number(i + 99))).collect();
        let packed = [Op::Forward, Op::Transpose].map(|op| factor.clone().packed(op, blocks));
        let shared = [Op::Forward, Op::Transpose].map(|op| factor.clone().packed_for(op, map));
        for (factor, update) in std::iter::once(&factor)
            .chain(packed.iter().chain(&shared))
            .flat_map(|f| [(f, Update::Overwrite), (f, Update::Accumulate)])
        {
            let before = if update == Update::Overwrite { f64::NAN } else { 2.0 };
            let mut y = vec![T::narrow(before); batch * y_stride];
            let (xs, ys) =
                (Rows::new(&x, batch, inputs, x_stride), RowsMut::new(&mut y, batch, outputs, y_stride));
            factor.multiply_blocks(map, op, xs, ys, update, policy);
            for r in 0..batch {
                let mut expected = vec![if update == Update::Overwrite { 0.0 } else { 2.0 }; outputs];
                for b in 0..blocks {
                    for i in 0..rows {
                        for j in 0..cols {
                            let (row, col) = (map.row_feature(b, i), b * cols + j);
                            let (to, from) = op.order(row, col);
                            expected[to] +=
                                number((b * rows + i) * cols + j) * x[r * x_stride + from].widen();
                        }
                    }
                }
                for (o, expected) in expected.iter().enumerate() {
                    let got = y[r * y_stride + o].widen();
                    assert!(
                        got == *expected,
                        "{storage} {map:?} {op:?} batch {batch} {policy:?}: row {r}, output {o}: {got}, expected {expected}"
                    );
                }
                let rest = &y[r * y_stride + outputs..(r + 1) * y_stride];
                assert!(rest.iter().all(|v| v.widen() == before || before.is_nan() && v.widen().is_nan()));
            }
        }
    }

    #[test]
    fn products_of_every_shape_are_exact() {
        let maps = [
            PanelMap::contiguous(1, 37, 700),
            PanelMap::contiguous(1, 70, 65),
            PanelMap::contiguous(1, 300, 33),
            PanelMap::contiguous(3, 33, 70),
            PanelMap::contiguous(2, 0, 5),
            PanelMap::contiguous(2, 5, 0),
            PanelMap::interleaved(5, 18, 20, 1),
            PanelMap::interleaved(3, 36, 90, 6),
            PanelMap::interleaved(2, 160, 33, 32),
            PanelMap::interleaved(3, 128, 21, 64),
            PanelMap::contiguous(9, 2, 3),
            PanelMap::contiguous(8, 8, 8),
            PanelMap::contiguous(70, 7, 5),
            PanelMap::contiguous(30, 13, 41),
            PanelMap::interleaved(8, 8, 8, 1),
            PanelMap::interleaved(4, 6, 16, 3),
            PanelMap::interleaved(34, 4, 4, 2),
            PanelMap::interleaved(19, 15, 70, 5),
            PanelMap::interleaved(150, 4, 37, 1),
        ];
        for level in Level::available() {
            for parallelism in [crate::Parallelism::Seq, crate::Parallelism::Threads(3)] {
                let policy = Policy { parallelism, level };
                for map in maps {
                    for op in [Op::Forward, Op::Transpose] {
                        for batch in [1, 2, 3, 4, 7, 8, 15, 25, 33, 150] {
                            check::<f32>(Storage::F32, map, op, batch, policy);
                            check::<f64>(Storage::F64, map, op, batch, policy);
                        }
                        for batch in [3, 9, 40] {
                            check::<f32>(Storage::Bf16, map, op, batch, policy);
                            check::<f64>(Storage::F32, map, op, batch, policy);
                        }
                    }
                }
            }
        }
    }

    /// Bit for bit what the whole product has there.
    #[test]
    fn some_rows_of_packed_matrices_are_those_of_all() {
        let ((blocks, rows, cols), number) = ((2, 150, 100), |i: usize| number(i) + 0.37);
        for (storage, level) in Storage::ALL.into_iter().flat_map(|s| Level::available().map(move |l| (s, l)))
        {
            let of = |b, i, j| number((b * rows + i) * cols + j);
            let factor = Factor::from_fn(storage, (blocks, rows, cols), of).packed(Op::Forward, blocks);
            for batch in [1, 2, 5, 40] {
                let x: Vec<f32> = (0..batch * cols).map(|i| number(i + 99) as f32).collect();
                let product = |block: usize, range: Range<usize>, policy: Policy| {
                    let mut y = vec![7.0; batch * range.len()];
                    let ys = RowsMut::new(&mut y, batch, range.len(), range.len());
                    let xs = Rows::new(&x, batch, cols, cols);
                    factor.multiply_rows(block, range, Op::Forward, xs, ys, Update::Accumulate, policy);
                    y
                };
                for (block, range) in [(0, 0..64), (0, 64..150), (1, 32..96), (1, 96..96), (1, 0..150)] {
                    let all = product(block, 0..rows, Policy { level, ..Policy::default() });
                    let two = Policy { level, parallelism: crate::Parallelism::Threads(2) };
                    let some = product(block, range.clone(), two);
                    for (b, some) in some.chunks(range.len().max(1)).enumerate() {
                        assert_eq!(
                            some,
                            &all[b * rows..][range.clone()],
                            "{storage} {level} {batch} {block} {range:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows are cut between panels")]
    fn packed_panels_are_not_cut() {
        let factor =
            Factor::from_fn(Storage::F32, (1, 100, 9), |_, i, j| number(i + j)).packed(Op::Forward, 1);
        let (x, mut y) = (Rows::new(&[1.0f32; 9], 1, 9, 9), [0.0; 40]);
        let y = RowsMut::new(&mut y, 1, 40, 40);
        factor.multiply_rows(0, 20..60, Op::Forward, x, y, Update::Overwrite, Policy::default());
    }

    #[test]
    fn many_narrow_blocks_are_exact() {
        for level in Level::available() {
            for parallelism in [crate::Parallelism::Seq, crate::Parallelism::Threads(2)] {
                let policy = Policy { parallelism, level };
                for map in [
                    PanelMap::interleaved(2500, 2, 2, 1),
                    PanelMap::interleaved(701, 6, 6, 3),
                    PanelMap::contiguous(601, 9, 16),
                ] {
                    for op in [Op::Forward, Op::Transpose] {
                        for batch in [1, 3] {
                            check::<f32>(Storage::F32, map, op, batch, policy);
                            check::<f64>(Storage::F64, map, op, batch, policy);
                        }
                    }
                }
            }
        }
    }

    /// Coarse numbers as they are decoded, in every layout.
    #[test]
    fn coarse_narrow_blocks_keep_their_numbers() {
        for level in Level::available() {
            let policy = Policy { level, ..Policy::default() };
            for map in [
                PanelMap::contiguous(6, 5, 40),
                PanelMap::interleaved(8, 8, 8, 1),
                PanelMap::interleaved(330, 6, 70, 3),
                PanelMap::interleaved(601, 3, 7, 1),
            ] {
                let PanelMap { blocks, rows, cols, .. } = map;
                for storage in Storage::ALL {
                    let factor = Factor::from_fn(storage, (blocks, rows, cols), |b, i, j| {
                        number(((b * rows + i) * cols + j) * 3) + 0.3
                    });
                    let packed = factor.clone().packed_for(Op::Forward, map);
                    assert_eq!(*packed.to_rows(), factor);
                    for (op, batch) in [(Op::Forward, 1), (Op::Forward, 5), (Op::Transpose, 2)] {
                        let (outputs, inputs) = op.order(blocks * rows, blocks * cols);
                        let x: Vec<f64> = (0..batch * inputs).map(number).collect();
                        let product = |factor: &Factor| {
                            let mut y = vec![0.0; batch * outputs];
                            let (xs, ys) = (
                                Rows::new(&x, batch, inputs, inputs),
                                RowsMut::new(&mut y, batch, outputs, outputs),
                            );
                            factor.multiply_blocks(map, op, xs, ys, Update::Overwrite, policy);
                            y
                        };
                        for (a, b) in product(&factor).into_iter().zip(product(&packed)) {
                            assert!((a - b).abs() < 1e-9, "{storage} {map:?} {op:?} {level}: {a}, {b}");
                        }
                    }
                }
            }
        }
    }

    /// Scales along the steps of panels, and along their lanes.
    #[test]
    fn coarse_panels_multiply_as_their_rows() {
        let maps = [
            PanelMap::contiguous(1, 70, 65),
            PanelMap::contiguous(1, 33, 1100),
            PanelMap::contiguous(1, 1100, 100),
            PanelMap::contiguous(3, 40, 16),
            PanelMap::interleaved(5, 18, 20, 1),
            PanelMap::interleaved(2, 160, 70, 32),
        ];
        for level in Level::available() {
            let policy = Policy { level, ..Policy::default() };
            for (map, storage) in maps.iter().flat_map(|map| [(map, Storage::Int8), (map, Storage::Int4)]) {
                let PanelMap { blocks, rows, cols, .. } = *map;
                // Groups of very unlike scales.
                let value = |b: usize, i: usize, j: usize| {
                    (number((b * rows + i) * cols + j) + 0.3) * (1 + (i * 7 + j / 32 * 5) % 11) as f64
                };
                let factor = Factor::from_fn(storage, (blocks, rows, cols), value);
                for packed in [Op::Forward, Op::Transpose].map(|op| factor.clone().packed(op, blocks)) {
                    assert_eq!(*packed.to_rows(), factor);
                    assert!(
                        (0..cols)
                            .all(|j| packed.get(blocks - 1, rows - 1, j)
                                == factor.get(blocks - 1, rows - 1, j))
                    );
                    for (op, batch) in [Op::Forward, Op::Transpose]
                        .into_iter()
                        .flat_map(|op| [1, 2, 3, 5, 40].map(|batch| (op, batch)))
                    {
                        let (outputs, inputs) = op.order(blocks * rows, blocks * cols);
                        let x: Vec<f64> = (0..batch * inputs).map(|i| number(i + 5)).collect();
                        let product = |factor: &Factor, update: Update| {
                            let mut y = vec![1.5; batch * outputs];
                            let xs = Rows::new(&x, batch, inputs, inputs);
                            let ys = RowsMut::new(&mut y, batch, outputs, outputs);
                            factor.multiply_blocks(*map, op, xs, ys, update, policy);
                            y
                        };
                        for update in [Update::Overwrite, Update::Accumulate] {
                            let pairs = product(&factor, update).into_iter().zip(product(&packed, update));
                            for (o, (a, b)) in pairs.enumerate() {
                                assert!(
                                    (a - b).abs() <= 1e-6 * a.abs().max(1.0),
                                    "{storage} {map:?} {op:?} batch {batch} {level}, output {o}: {a}, {b}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    /// Columns in two parts, each with inputs or outputs of its own, are the whole product; those of the second lie apart.
    #[test]
    fn parts_of_the_columns_add_up() {
        for (blocks, rows, cols, at) in [(1, 40, 70, 32), (3, 33, 200, 128), (2, 5, 33, 32), (1, 600, 40, 32)]
        {
            for (storage, op) in Storage::ALL.into_iter().flat_map(|s| [(s, Op::Forward), (s, Op::Transpose)])
            {
                let value = |b: usize, i: usize, j: usize| number((b * rows + i) * cols + j);
                let factor = Factor::from_fn(storage, (blocks, rows, cols), value);
                let layouts = [Op::Forward, Op::Transpose].map(|op| factor.clone().packed(op, blocks));
                for factor in layouts.iter().chain([&factor]) {
                    for (level, batch) in Level::available().flat_map(|l| [1, 3, 8, 21].map(|b| (l, b))) {
                        let policy = Policy { level, parallelism: crate::Parallelism::Threads(2) };
                        let mut got = vec![1.0; batch * op.order(blocks * rows, blocks * cols).0];
                        for (from, width, stride) in [(0, at, at), (at, cols - at, cols - at + 5)] {
                            let map = PanelMap::contiguous(blocks, rows, width).with_col_stride(stride);
                            let column = |j: usize| j / stride * cols + from + j % stride;
                            let (row_features, col_features) = map.features();
                            let (outputs, inputs) = op.order(row_features, col_features);
                            let forward = op == Op::Forward;
                            let unused = |col: usize| col % stride >= width;
                            let input = |i: usize| match (i / inputs, i % inputs) {
                                (_, i) if forward && unused(i) => f32::NAN,
                                (row, i) => number(row * 7 + if forward { column(i) } else { i }) as f32,
                            };
                            let x: Vec<f32> = (0..batch * inputs).map(input).collect();
                            let mut y = vec![0.0f32; batch * outputs];
                            let (xs, ys) = (
                                Rows::new(&x, batch, inputs, inputs),
                                RowsMut::new(&mut y, batch, outputs, outputs),
                            );
                            factor.multiply_part(0, from, map, op, xs, ys, Update::Accumulate, policy);
                            for (i, y) in y.iter().enumerate() {
                                let o = i % outputs;
                                if !forward && unused(o) {
                                    assert!(*y == 0.0, "written between blocks");
                                    continue;
                                }
                                let o = if forward { o } else { column(o) };
                                got[i / outputs * op.order(blocks * rows, blocks * cols).0 + o] += y;
                            }
                        }
                        let (outputs, inputs) = op.order(rows, cols);
                        for (i, got) in got.iter().enumerate() {
                            let (r, o) = (i / (blocks * outputs), i % (blocks * outputs));
                            let (b, o) = (o / outputs, o % outputs);
                            let term = |k: usize| {
                                let (row, col) = op.order(o, k);
                                factor.get(b, row, col) * number(r * 7 + b * inputs + k)
                            };
                            let (sum, size) =
                                (0..inputs).map(term).fold((1.0, 1.0), |(s, a), t| (s + t, a + f64::abs(t)));
                            assert!(
                                (f64::from(*got) - sum).abs() <= 1e-6 * size,
                                "{storage} {op:?} {level} batch {batch}: {blocks} x {rows} x {cols}, output {i}: {got}, {sum}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "between panels")]
    fn columns_are_not_cut_inside_a_panel() {
        let factor = Factor::from_fn(Storage::F32, (1, 40, 70), |_, i, j| number(i + j));
        let (x, mut y) = ([0.0f32; 54], [0.0f32; 40]);
        let (x, y) = (Rows::new(&x, 1, 54, 54), RowsMut::new(&mut y, 1, 40, 40));
        let map = PanelMap::contiguous(1, 40, 54);
        factor.multiply_part(0, 16, map, Op::Forward, x, y, Update::Overwrite, Policy::default());
    }

    #[test]
    fn depths_beyond_what_is_packed_at_once_are_exact() {
        let policy = Policy::default();
        for op in [Op::Forward, Op::Transpose] {
            let (rows, cols) = op.order(5, 34_000);
            for batch in [1, 5, 150] {
                check::<f32>(Storage::F32, PanelMap::contiguous(1, rows, cols), op, batch, policy);
            }
        }
    }
}
