//! Products of several batch rows whose lanes are outputs: for transposed products, whose weights lie so, and for short rows of weights,
//! for which sums over lanes would cost more than the products.
//!
//! Sixteen batch rows at a time are packed as a tile; pairs of vectors of outputs meet it, input by input. Nothing is summed over lanes.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::gemm::{Job, Output, PanelMap};
use super::level::{Kernel, Level};
use super::simd::{Simd, prefetch, transpose};
use super::source::Source;
use super::tiles::{Aligned, BATCH, PACKED, Pack, Panel, Sizes, Weights, tile};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;

/// Batch rows packed together.
const ROWS: usize = 16;
/// Outputs that are summed at the same time: stretches of weight rows long enough to be read as streams.
const OUTPUTS: usize = 256;
/// Inputs whose weights are decoded at a time: with the outputs, 64 KiB of `f32`.
const DEPTH: usize = 64;

/// The product of a job at `level`.
///
/// # Safety
/// The job's operands fit its map.
pub(super) unsafe fn multiply<T: Scalar, W: Source>(job: &Job<'_, T, W>, level: Level) {
    let (map, forward) = (job.map, job.op == Op::Forward);
    let (lanes, _) = T::dispatch(level, Sizes);
    let depth = if forward { map.cols } else { map.rows };
    let mut packed = Aligned::<T, PACKED>::new();
    let mut columns = Aligned::<T, { DEPTH * OUTPUTS }>::new();
    let mut sums = Aligned::<T, { BATCH * OUTPUTS }>::new();
    let (packed, columns, sums) = (packed.pointer(), columns.pointer(), sums.pointer());
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
                for start in job.outputs.clone().step_by(OUTPUTS) {
                    let outputs = OUTPUTS.min(job.outputs.end - start);
                    for k in (0..len.max(1)).step_by(DEPTH) {
                        let inputs = DEPTH.min(len - k);
                        T::dispatch(
                            level,
                            Decode { job, block, start, outputs, from: from + k, inputs, columns },
                        );
                        T::dispatch(
                            level,
                            Run { panels, batch, packed, columns, sums, outputs, len, k, inputs },
                        );
                    }
                    // SAFETY: the rows from `row` on are inside the panel of y.
                    let y = Output(unsafe { job.y.0.add(row * job.y_stride) });
                    let y_stride = job.y_stride;
                    T::dispatch(
                        level,
                        Flush { batch, sums, map, forward, block, start, outputs, y, y_stride, overwrite },
                    );
                }
            }
        }
    }
}

/// Decodes weights: for each pair of vectors of outputs, input by input. Zeros beyond `outputs`, and from `inputs` to the next multiple of
/// `LANES`.
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
        let (width, padded) = (2 * S::LANES, inputs.next_multiple_of(S::LANES));
        // SAFETY: the columns have room for DEPTH inputs of OUTPUTS outputs.
        let store = |k: usize, o: usize, w: S::V| unsafe {
            simd.store(columns.add(o / width * padded * width + k * width + o % width), w);
        };
        let ends = outputs.next_multiple_of(width);
        if job.op == Op::Forward {
            for o in (0..ends).step_by(S::LANES) {
                for k in (0..inputs).step_by(S::LANES) {
                    let mut square = [simd.zero(); 16];
                    for i in 0..S::LANES.min(outputs.saturating_sub(o)) {
                        square[i] = load(first + start + o + i, from + k, inputs - k);
                    }
                    let square = transpose(simd, square);
                    for i in 0..S::LANES {
                        store(k + i, o, square[i]);
                    }
                }
            }
            return;
        }
        for k in 0..padded {
            for o in (0..ends).step_by(S::LANES) {
                let w = if k < inputs && o < outputs {
                    prefetch(source.address(first + from + k + ROWS, start + o));
                    load(first + from + k, start + o, outputs - o)
                } else {
                    simd.zero()
                };
                store(k, o, w);
            }
        }
    }
}

/// Adds the products of all panels with the decoded weights to their sums, or starts these.
struct Run<'a, T> {
    panels: &'a [Panel],
    batch: usize,
    packed: *const T,
    columns: *const T,
    sums: *mut T,
    outputs: usize,
    /// Inputs packed, of which the weights have those from `k` on.
    len: usize,
    k: usize,
    inputs: usize,
}

impl<T: Scalar> Kernel<T> for Run<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let (width, padded) = (2 * S::LANES, self.len.next_multiple_of(S::LANES));
        let (squares, fresh) = (self.inputs.div_ceil(S::LANES), self.k == 0);
        for pair in 0..self.outputs.div_ceil(width) {
            let mut packed = self.packed;
            for panel in self.panels {
                let mut row = 0;
                while row < panel.rows {
                    // SAFETY: the packed panel, the weights and the sums have been filled to these sizes.
                    unsafe {
                        let first = packed.add(self.k * panel.rows + row * S::LANES);
                        let x = Weights { first, row: S::LANES, square: panel.rows * S::LANES };
                        let w = self.columns.add(pair * squares * S::LANES * width);
                        let sums = self.sums.add(pair * self.batch * width + panel.sums + row * width);
                        row += match panel.rows - row {
                            8.. if S::REGISTERS == 32 => {
                                tile::<T, S, 8, 2, false>(simd, x, w, sums, squares, fresh)
                            }
                            4.. => tile::<T, S, 4, 2, false>(simd, x, w, sums, squares, fresh),
                            2.. => tile::<T, S, 2, 2, false>(simd, x, w, sums, squares, fresh),
                            _ => tile::<T, S, 1, 2, false>(simd, x, w, sums, squares, fresh),
                        };
                    }
                }
                // SAFETY: the next panel's place follows.
                packed = unsafe { packed.add(padded * panel.rows) };
            }
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
        let width = 2 * S::LANES;
        let feature = |o: usize| if forward { map.row_feature(block, o) } else { block * map.cols + o };
        for from in (0..outputs).step_by(width) {
            let (start, outputs) = (start + from, width.min(outputs - from));
            let contiguous = !forward || map.consecutive(start, outputs);
            let offsets: [usize; 32] =
                std::array::from_fn(|o| if o < outputs { feature(start + o) } else { 0 });
            for row in 0..batch {
                // SAFETY: batch rows and features of the outputs are inside y; each row has two vectors of sums.
                unsafe {
                    let sums = sums.add(from * batch + row * width);
                    let y = y.0.add(row * y_stride);
                    if contiguous && outputs == width {
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
}
