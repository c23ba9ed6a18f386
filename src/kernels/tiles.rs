//! Products for several batch rows: a tile of weights is decoded into the L1 cache, where it meets packed panels of the batch.
//!
//! The lanes of a vector hold `LANES / P` batch rows times `P` consecutive inputs: a whole panel of batch rows has `P = 1`, what is
//! left of the batch packs more inputs together, so that no lane is idle. A register tile is `S::TILE` outputs times one or two
//! vectors; for each output, `P` weights are repeated over the lanes.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::gemm::{Job, Output, PanelMap};
use super::level::{Kernel, Level};
use super::simd::{Simd, prefetch, transpose};
use super::source::Source;
use super::view::Rows;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use std::mem::MaybeUninit;

/// Outputs of a weight tile; a multiple of every `LANES`.
const OUTPUTS: usize = 16;
/// Inputs of a weight tile: with 16 outputs of `f32` it takes 16 KiB, half of a small L1 cache.
const DEPTH: usize = 256;
/// Batch rows packed at once.
const BATCH: usize = 128;
/// Numbers of the batch packed at once: 128 KiB of `f32`.
const PACKED: usize = BATCH * DEPTH;
/// Panels of a batch: whole ones of two vectors of 4 lanes, then at most one of each smaller size.
const PANELS: usize = BATCH / 8 + 5;
/// Sums kept between tiles of one output range.
const SUMS: usize = OUTPUTS * (BATCH + 5 * 16);

#[repr(align(64))]
struct Aligned<T, const N: usize>([MaybeUninit<T>; N]);

impl<T, const N: usize> Aligned<T, N> {
    fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; N])
    }
    fn pointer(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}

/// Some batch rows, packed together.
#[derive(Clone, Copy, Default)]
struct Panel {
    /// The first row.
    row: usize,
    /// Number of rows; lanes beyond are zero.
    rows: usize,
    /// Vectors per step.
    vectors: usize,
    /// Inputs per step.
    group: usize,
    /// Where its sums start.
    sums: usize,
}

impl Panel {
    /// Numbers per input.
    fn width(&self, lanes: usize) -> usize {
        self.vectors * lanes / self.group
    }
}

/// How `batch` rows are cut into panels, how many panels, and their total width.
fn panels(batch: usize, lanes: usize) -> ([Panel; PANELS], usize, usize) {
    let (mut all, mut count, mut row, mut sums, mut width) = ([Panel::default(); PANELS], 0, 0, 0, 0);
    while row < batch {
        let left = batch - row;
        let (vectors, group) = match left {
            _ if 2 * left > 3 * lanes => (2, 1),
            _ if left >= lanes => (1, 1),
            // The smallest panel that holds what is left.
            _ => (1, lanes / left.next_power_of_two()),
        };
        let panel = Panel { row, rows: left.min(vectors * lanes / group), vectors, group, sums };
        all[count] = panel;
        count += 1;
        row += panel.rows;
        sums += OUTPUTS * vectors * lanes;
        width += panel.width(lanes);
    }
    (all, count, width)
}

/// The product of a job at `level`.
///
/// # Safety
/// The job's operands fit its map.
pub(super) unsafe fn multiply<T: Scalar, W: Source>(job: &Job<'_, T, W>, level: Level) {
    let (map, forward) = (job.map, job.op == Op::Forward);
    let lanes = T::dispatch(level, Lanes);
    let depth = if forward { map.cols } else { map.rows };
    let mut packed = Aligned::<T, PACKED>::new();
    let mut tile = Aligned::<T, { OUTPUTS * DEPTH }>::new();
    let mut sums = Aligned::<T, SUMS>::new();
    let (packed, tile, sums) = (packed.pointer(), tile.pointer(), sums.pointer());
    for row in (0..job.x.rows()).step_by(BATCH) {
        let (panels, count, width) = panels(BATCH.min(job.x.rows() - row), lanes);
        let panels = &panels[..count];
        // A tile of fewer outputs leaves the sums of the others as they are.
        // SAFETY: `sums` has room for 16 outputs of every panel.
        unsafe { sums.write_bytes(0, panels.iter().map(|p| OUTPUTS * p.vectors * lanes).sum()) };
        let most = PACKED / width / DEPTH * DEPTH;
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
                            Decode { job, block, start, outputs, from: from + k, inputs, tile },
                        );
                        T::dispatch(level, Run { panels, packed, tile, sums, outputs, len, k, inputs });
                    }
                    // SAFETY: the rows from `row` on are inside the panel of y.
                    let y = Output(unsafe { job.y.0.add(row * job.y_stride) });
                    let y_stride = job.y_stride;
                    T::dispatch(
                        level,
                        Flush { panels, sums, map, forward, block, start, outputs, y, y_stride, overwrite },
                    );
                }
            }
        }
    }
}

/// Lanes of a level.
struct Lanes;

impl<T: Scalar> Kernel<T> for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) -> usize {
        S::LANES
    }
}

/// Packs inputs `from .. from + len` of the panels' batch rows: `LANES` inputs at a time, zeros beyond `len` and beyond the rows.
struct Pack<'a, T> {
    x: Rows<'a, T>,
    map: PanelMap,
    forward: bool,
    block: usize,
    from: usize,
    len: usize,
    panels: &'a [Panel],
    packed: *mut T,
}

impl<T: Scalar> Kernel<T> for Pack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { x, map, forward, block, from, len, panels, packed } = self;
        let contiguous = forward || map.rows_contiguous();
        let feature = |k: usize| if forward { block * map.cols + k } else { map.row_feature(block, k) };
        let padded = len.next_multiple_of(S::LANES);
        let mut packed = packed;
        for panel in panels {
            let (rows, step) = (S::LANES / panel.group, panel.vectors * S::LANES);
            for v in 0..panel.vectors {
                let first = panel.row + v * rows;
                let valid = (panel.row + panel.rows).saturating_sub(first).min(rows);
                for k in (0..padded).step_by(S::LANES) {
                    let inputs = S::LANES.min(len - k);
                    // SAFETY: batch rows `first .. first + valid` and inputs `from + k .. + inputs` lie in x; the panel's place holds
                    // `padded` inputs of its width.
                    unsafe {
                        let mut square = [simd.zero(); 16];
                        for i in 0..valid {
                            let row = x.as_ptr().add((first + i) * x.stride());
                            square[i] = if contiguous && inputs == S::LANES {
                                simd.load(row.add(feature(from + k)))
                            } else {
                                let mut lanes = [T::default(); 16];
                                for (j, lane) in lanes.iter_mut().enumerate().take(inputs) {
                                    *lane = *row.add(feature(from + k + j));
                                }
                                simd.load(lanes.as_ptr())
                            };
                        }
                        let out = packed.add(k / panel.group * step + v * S::LANES);
                        if panel.group == 1 {
                            let square = transpose(simd, square);
                            for j in 0..S::LANES {
                                simd.store(out.add(j * step), square[j]);
                            }
                            continue;
                        }
                        let mut lanes = [T::default(); 16];
                        for i in 0..rows {
                            simd.store(lanes.as_mut_ptr(), square[i]);
                            for j in 0..S::LANES / panel.group {
                                let (from, to) = (
                                    lanes.as_ptr().add(j * panel.group),
                                    out.add(j * step + i * panel.group),
                                );
                                from.copy_to_nonoverlapping(to, panel.group);
                            }
                        }
                    }
                }
            }
            // SAFETY: the next panel's place follows.
            packed = unsafe { packed.add(padded * panel.width(S::LANES)) };
        }
    }
}

/// Decodes a tile: for every `LANES` inputs, those of each of 16 outputs. Zeros beyond `outputs` and `inputs`.
struct Decode<'a, 'j, T, W> {
    job: &'a Job<'j, T, W>,
    block: usize,
    start: usize,
    outputs: usize,
    from: usize,
    inputs: usize,
    tile: *mut T,
}

impl<T: Scalar, W: Source> Kernel<T> for Decode<'_, '_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { job, block, start, outputs, from, inputs, tile } = self;
        let first = job.first + block * job.map.rows;
        let source = job.source;
        // SAFETY: `multiply` keeps outputs and inputs inside the block; starts are multiples of LANES; the tile has room.
        unsafe {
            if job.op == Op::Forward {
                for o in 0..OUTPUTS {
                    let row = first + start + o;
                    for k in (0..inputs).step_by(S::LANES) {
                        let w = if o >= outputs {
                            simd.zero()
                        } else if k + S::LANES <= inputs {
                            prefetch(source.address(row, from + k + DEPTH));
                            source.load(simd, row, from + k)
                        } else {
                            source.load_tail(simd, row, from + k)
                        };
                        simd.store(tile.add(k * OUTPUTS + o * S::LANES), w);
                    }
                }
                return;
            }
            for o in (0..OUTPUTS).step_by(S::LANES) {
                for k in (0..inputs).step_by(S::LANES) {
                    let mut square = [simd.zero(); 16];
                    for i in 0..S::LANES.min(inputs - k) {
                        let row = first + from + k + i;
                        if o + S::LANES <= outputs {
                            square[i] = source.load(simd, row, start + o);
                        } else if o < outputs {
                            square[i] = source.load_tail(simd, row, start + o);
                        }
                    }
                    let square = transpose(simd, square);
                    for i in 0..S::LANES {
                        simd.store(tile.add(k * OUTPUTS + (o + i) * S::LANES), square[i]);
                    }
                }
            }
        }
    }
}

/// Adds the products of all panels with a tile to their sums, or starts these.
struct Run<'a, T> {
    panels: &'a [Panel],
    packed: *const T,
    tile: *const T,
    sums: *mut T,
    outputs: usize,
    /// Inputs packed, of which the tile has those from `k` on.
    len: usize,
    k: usize,
    inputs: usize,
}

impl<T: Scalar> Kernel<T> for Run<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        match S::TILE {
            8 => run_tiles::<T, S, 8>(simd, self),
            _ => run_tiles::<T, S, 4>(simd, self),
        }
    }
}

#[inline(always)]
fn run_tiles<T: Scalar, S: Simd<T>, const R: usize>(simd: S, run: Run<'_, T>) {
    let padded = run.len.next_multiple_of(S::LANES);
    let (squares, fresh) = (run.inputs.div_ceil(S::LANES), run.k == 0);
    let mut packed = run.packed;
    for panel in run.panels {
        let step = panel.vectors * S::LANES;
        for o in (0..run.outputs).step_by(R) {
            // SAFETY: tile, packed panel and sums have been filled to these sizes; R divides 16.
            unsafe {
                let w = run.tile.add(o * S::LANES);
                let x = packed.add(run.k / panel.group * step);
                let sums = run.sums.add(panel.sums + o * step);
                match (panel.vectors, panel.group) {
                    (2, _) => tile::<T, S, R, 2, 1>(simd, w, x, sums, squares, fresh),
                    (_, 1) => tile::<T, S, R, 1, 1>(simd, w, x, sums, squares, fresh),
                    (_, 2) => tile::<T, S, R, 1, 2>(simd, w, x, sums, squares, fresh),
                    (_, 4) => tile::<T, S, R, 1, 4>(simd, w, x, sums, squares, fresh),
                    (_, 8) => tile::<T, S, R, 1, 8>(simd, w, x, sums, squares, fresh),
                    _ => tile::<T, S, R, 1, 16>(simd, w, x, sums, squares, fresh),
                }
            }
        }
        // SAFETY: the next panel's place follows.
        packed = unsafe { packed.add(padded * panel.width(S::LANES)) };
    }
}

/// `R` outputs times `V` vectors of a panel.
#[inline(always)]
unsafe fn tile<T: Scalar, S: Simd<T>, const R: usize, const V: usize, const P: usize>(
    simd: S,
    w: *const T,
    x: *const T,
    out: *mut T,
    squares: usize,
    fresh: bool,
) {
    if P > S::LANES {
        return;
    }
    let (mut w, mut x) = (w, x);
    // SAFETY: the caller's: each square has LANES inputs of 16 outputs and of the panel, `out` R x V vectors.
    unsafe {
        let mut sums = [[simd.zero(); V]; R];
        if !fresh {
            for r in 0..R {
                for v in 0..V {
                    sums[r][v] = simd.load(out.add((r * V + v) * S::LANES));
                }
            }
        }
        for _ in 0..squares {
            for k in (0..S::LANES).step_by(P) {
                let xs: [S::V; V] = std::array::from_fn(|v| simd.load(x.add(v * S::LANES)));
                x = x.add(V * S::LANES);
                for r in 0..R {
                    let weights = simd.spread::<P>(w.add(r * S::LANES + k));
                    for v in 0..V {
                        sums[r][v] = simd.mul_add(weights, xs[v], sums[r][v]);
                    }
                }
            }
            w = w.add(OUTPUTS * S::LANES);
        }
        for r in 0..R {
            for v in 0..V {
                simd.store(out.add((r * V + v) * S::LANES), sums[r][v]);
            }
        }
    }
}

/// Writes the sums of all panels to the output, or adds them.
struct Flush<'a, T> {
    panels: &'a [Panel],
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

impl<T: Scalar> Kernel<T> for Flush<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { panels, sums, map, forward, block, start, outputs, y, y_stride, overwrite } = self;
        let contiguous = !forward || map.rows_contiguous();
        let feature = |o: usize| if forward { map.row_feature(block, o) } else { block * map.cols + o };
        // SAFETY: batch rows of the panels and features of the outputs are inside y; each panel has 16 x V vectors of sums.
        unsafe {
            for panel in panels {
                let sums = sums.add(panel.sums);
                let put = |row: usize, o: usize, value: T| {
                    let out = y.0.add((panel.row + row) * y_stride + feature(start + o));
                    *out = if overwrite { value } else { *out + value };
                };
                if panel.group > 1 {
                    let rows = S::LANES / panel.group;
                    for o in 0..outputs {
                        for row in 0..panel.rows.min(rows) {
                            let lanes = sums.add(o * S::LANES + row * panel.group);
                            let lanes = std::slice::from_raw_parts(lanes, panel.group);
                            put(row, o, lanes.iter().fold(T::default(), |sum, v| sum + *v));
                        }
                    }
                    continue;
                }
                for first in (0..panel.rows).step_by(S::LANES) {
                    for o in (0..outputs).step_by(S::LANES) {
                        let mut square = [simd.zero(); 16];
                        for i in 0..S::LANES {
                            square[i] = simd.load(sums.add((o + i) * panel.vectors * S::LANES + first));
                        }
                        let square = transpose(simd, square);
                        let rows = S::LANES.min(panel.rows - first);
                        if contiguous && o + S::LANES <= outputs {
                            let mut out = y.0.add((panel.row + first) * y_stride + feature(start + o));
                            for row in 0..rows {
                                let sum = square[row];
                                simd.store(out, if overwrite { sum } else { simd.add(simd.load(out), sum) });
                                out = out.wrapping_add(y_stride);
                            }
                            continue;
                        }
                        let mut lanes = [T::default(); 16];
                        for row in 0..rows {
                            simd.store(lanes.as_mut_ptr(), square[row]);
                            for i in 0..S::LANES.min(outputs - o) {
                                put(first + row, o + i, lanes[i]);
                            }
                        }
                    }
                }
            }
        }
    }
}
