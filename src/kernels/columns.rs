//! Products of several batch rows whose lanes are outputs: for transposed products, whose weights lie so, and for short rows of weights,
//! for which sums over lanes would cost more than the products.
//!
//! Sixteen batch rows at a time are packed as a tile; two vectors of outputs meet it, input by input. Nothing is summed over lanes.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::gemm::{Job, Output, PanelMap};
use super::level::{Kernel, Level};
use super::simd::{Simd, prefetch, transpose};
use super::source::Source;
use super::tiles::{Aligned, BATCH, DEPTH, PACKED, Pack, Panel, Sizes, Weights, tile};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;

/// Batch rows packed together.
const ROWS: usize = 16;
/// Outputs that are summed at the same time, at most: two vectors of the widest level.
const WIDTH: usize = 32;

/// The product of a job at `level`.
///
/// # Safety
/// The job's operands fit its map.
pub(super) unsafe fn multiply<T: Scalar, W: Source>(job: &Job<'_, T, W>, level: Level) {
    let (map, forward) = (job.map, job.op == Op::Forward);
    let (lanes, _) = T::dispatch(level, Sizes);
    let depth = if forward { map.cols } else { map.rows };
    let mut packed = Aligned::<T, PACKED>::new();
    let mut columns = Aligned::<T, { DEPTH * WIDTH }>::new();
    let mut sums = Aligned::<T, { BATCH * WIDTH }>::new();
    let (packed, columns, sums) = (packed.pointer(), columns.pointer(), sums.pointer());
    let plain = if forward { None } else { job.source.plain::<T>() };
    for row in (0..job.x.rows()).step_by(BATCH) {
        let batch = BATCH.min(job.x.rows() - row);
        let mut panels = [Panel::default(); BATCH / ROWS];
        for (i, panel) in panels.iter_mut().enumerate().take(batch.div_ceil(ROWS)) {
            let rows = ROWS.min(batch - i * ROWS);
            *panel = Panel { row: i * ROWS, rows, vectors: rows, inner: true, sums: i * ROWS * 2 * lanes };
        }
        let panels = &panels[..batch.div_ceil(ROWS)];
        let most = PACKED / batch / DEPTH * DEPTH;
        for block in job.blocks.clone() {
            // A depth of zero still makes one pass, so that overwriting writes.
            for from in (0..depth.max(1)).step_by(most) {
                let len = most.min(depth - from);
                let x = job.x.batch(row..job.x.rows());
                T::dispatch(level, Pack { x, map, forward, block, from, len, panels, packed });
                let overwrite = from == 0 && job.update == Update::Overwrite;
                for start in job.outputs.clone().step_by(2 * lanes) {
                    let outputs = (2 * lanes).min(job.outputs.end - start);
                    for k in (0..len.max(1)).step_by(DEPTH) {
                        let inputs = DEPTH.min(len - k);
                        let (weights, step) = match plain {
                            Some(plain) if inputs.is_multiple_of(lanes) && outputs == 2 * lanes => {
                                let first = job.first + block * map.rows + from + k;
                                // SAFETY: the first weight is inside the source.
                                (unsafe { plain.add(first * map.cols + start) }, map.cols)
                            }
                            _ => {
                                let decode =
                                    Decode { job, block, start, outputs, from: from + k, inputs, columns };
                                T::dispatch(level, decode);
                                (columns.cast_const(), 2 * lanes)
                            }
                        };
                        T::dispatch(level, Run { panels, packed, weights, step, sums, len, k, inputs });
                    }
                    // SAFETY: the rows from `row` on are inside the panel of y.
                    let y = Output(unsafe { job.y.0.add(row * job.y_stride) });
                    let (y_stride, sums) = (job.y_stride, sums.cast_const());
                    T::dispatch(
                        level,
                        Flush { batch, sums, map, forward, block, start, outputs, y, y_stride, overwrite },
                    );
                }
            }
        }
    }
}

/// Decodes weights, input by input: for each, those of two vectors of outputs. Zeros beyond `outputs`, and from `inputs` to the next
/// multiple of `LANES`.
struct Decode<'a, 'j, T, W> {
    job: &'a Job<'j, T, W>,
    block: usize,
    start: usize,
    outputs: usize,
    from: usize,
    inputs: usize,
    columns: *mut T,
}

impl<T: Scalar, W: Source> Kernel<T> for Decode<'_, '_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { job, block, start, outputs, from, inputs, columns } = self;
        let first = job.first + block * job.map.rows;
        let source = job.source;
        // `LANES` numbers of a row from `col` on, of which `left` are wanted.
        let load = |row: usize, col: usize, left: usize| {
            // SAFETY: `multiply` keeps rows and columns inside the block; columns are multiples of LANES.
            unsafe {
                if left >= S::LANES { source.load(simd, row, col) } else { source.load_tail(simd, row, col) }
            }
        };
        for o in [0, S::LANES] {
            for k in (0..inputs).step_by(S::LANES) {
                let mut square = [simd.zero(); 16];
                if job.op == Op::Forward {
                    for i in 0..S::LANES.min(outputs.saturating_sub(o)) {
                        square[i] = load(first + start + o + i, from + k, inputs - k);
                    }
                    square = transpose(simd, square);
                } else if o < outputs {
                    for i in 0..S::LANES.min(inputs - k) {
                        prefetch(source.address(first + from + k + i + S::LANES, start + o));
                        square[i] = load(first + from + k + i, start + o, outputs - o);
                    }
                }
                for i in 0..S::LANES {
                    // SAFETY: the columns have room for DEPTH inputs of two vectors.
                    unsafe { simd.store(columns.add((k + i) * 2 * S::LANES + o), square[i]) };
                }
            }
        }
    }
}

/// Adds the products of all panels with two vectors of outputs to their sums, or starts these.
struct Run<'a, T> {
    panels: &'a [Panel],
    packed: *const T,
    weights: *const T,
    /// From the weights of one input to those of the next.
    step: usize,
    sums: *mut T,
    /// Inputs packed, of which the weights have those from `k` on.
    len: usize,
    k: usize,
    inputs: usize,
}

impl<T: Scalar> Kernel<T> for Run<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let padded = self.len.next_multiple_of(S::LANES);
        let (squares, fresh) = (self.inputs.div_ceil(S::LANES), self.k == 0);
        let mut packed = self.packed;
        for panel in self.panels {
            let mut row = 0;
            while row < panel.rows {
                // SAFETY: the packed panel, the weights and the sums have been filled to these sizes.
                unsafe {
                    let first = packed.add(self.k * panel.rows + row * S::LANES);
                    let x = Weights { first, row: S::LANES, square: panel.rows * S::LANES };
                    let sums = self.sums.add(panel.sums + row * 2 * S::LANES);
                    let (w, step) = (self.weights, self.step);
                    row += match panel.rows - row {
                        8.. if S::REGISTERS == 32 => {
                            tile::<T, S, 8, 2, false>(simd, x, w, step, sums, squares, fresh)
                        }
                        4.. => tile::<T, S, 4, 2, false>(simd, x, w, step, sums, squares, fresh),
                        2.. => tile::<T, S, 2, 2, false>(simd, x, w, step, sums, squares, fresh),
                        _ => tile::<T, S, 1, 2, false>(simd, x, w, step, sums, squares, fresh),
                    };
                }
            }
            // SAFETY: the next panel's place follows.
            packed = unsafe { packed.add(padded * panel.rows) };
        }
    }
}

/// Writes the sums to the output, or adds them.
struct Flush<T> {
    batch: usize,
    sums: *const T,
    map: PanelMap,
    forward: bool,
    block: usize,
    start: usize,
    outputs: usize,
    y: Output<T>,
    y_stride: usize,
    overwrite: bool,
}

impl<T: Scalar> Kernel<T> for Flush<T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { batch, sums, map, forward, block, start, outputs, y, y_stride, overwrite } = self;
        let contiguous = !forward || map.consecutive(start, outputs);
        let feature = |o: usize| if forward { map.row_feature(block, o) } else { block * map.cols + o };
        let offsets: [usize; WIDTH] =
            std::array::from_fn(|o| if o < outputs { feature(start + o) } else { 0 });
        for row in 0..batch {
            // SAFETY: batch rows and features of the outputs are inside y; each row has two vectors of sums.
            unsafe {
                let sums = sums.add(row * 2 * S::LANES);
                let y = y.0.add(row * y_stride);
                if contiguous && outputs == 2 * S::LANES {
                    for v in [0, S::LANES] {
                        let (out, sum) = (y.add(offsets[0] + v), simd.load(sums.add(v)));
                        simd.store(out, if overwrite { sum } else { simd.add(simd.load(out), sum) });
                    }
                    continue;
                }
                for (o, offset) in offsets[..outputs].iter().enumerate() {
                    let (out, sum) = (y.add(*offset), *sums.add(o));
                    *out = if overwrite { sum } else { *out + sum };
                }
            }
        }
    }
}
