//! Products of several batch rows with long rows of weights: a tile of weights is decoded into the L1 cache, where it meets packed panels of the batch.
//!
//! There are two kinds of panels. In an *outer* one the lanes of a vector are batch rows, and each weight is repeated over the lanes. What
//! is left of the batch goes into *inner* ones, whose lanes are consecutive inputs of a batch row: they meet weights as they lie in memory,
//! so that plain ones need no decoding. No lane is idle in either.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::gemm::{Job, Output, PanelMap};
use super::level::{Kernel, Level};
use super::simd::{Simd, prefetch, sums, transpose};
use super::source::Source;
use super::view::Rows;
use crate::matrix::Update;
use crate::scalar::Scalar;
use std::mem::MaybeUninit;

/// Outputs of a weight tile; a multiple of every `LANES`.
const OUTPUTS: usize = 16;
/// Inputs of a weight tile: with 16 outputs of `f32` it takes 16 KiB, half of a small L1 cache.
const DEPTH: usize = 256;
/// Batch rows packed at once.
pub(super) const BATCH: usize = 128;
/// Numbers of the batch packed at once: 128 KiB of `f32`.
pub(super) const PACKED: usize = BATCH * DEPTH;
/// Panels of a batch: outer ones of two vectors of at least 4 lanes, then inner ones.
const PANELS: usize = BATCH / 8 + 5;
/// Sums kept between tiles of one output range: at most 24 batch rows are left for inner panels.
const SUMS: usize = OUTPUTS * (BATCH + 24 * 16);

#[repr(align(64))]
pub(super) struct Aligned<T, const N: usize>([MaybeUninit<T>; N]);

impl<T, const N: usize> Aligned<T, N> {
    pub(super) fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; N])
    }
    pub(super) fn pointer(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}

/// Some batch rows, packed together.
#[derive(Clone, Copy, Default)]
pub(super) struct Panel {
    /// The first row.
    pub(super) row: usize,
    /// Number of rows; lanes beyond are zero.
    pub(super) rows: usize,
    /// Vectors per step.
    pub(super) vectors: usize,
    /// Whether lanes are inputs.
    pub(super) inner: bool,
    /// Where its sums start.
    pub(super) sums: usize,
}

impl Panel {
    /// Numbers per input.
    fn width(&self, lanes: usize) -> usize {
        if self.inner { self.vectors } else { self.vectors * lanes }
    }
}

/// How `batch` rows are cut into panels, how many panels, and their total width. Inner panels have at most `most` rows.
fn panels(batch: usize, lanes: usize, most: usize) -> ([Panel; PANELS], usize, usize) {
    let (mut all, mut count, mut row, mut sums, mut width) = ([Panel::default(); PANELS], 0, 0, 0, 0);
    while row < batch {
        let left = batch - row;
        let (vectors, inner) = match left {
            _ if 2 * left > 3 * lanes => (2, false),
            _ => (most.min(1 << left.ilog2()), true),
        };
        let rows = if inner { vectors } else { left.min(vectors * lanes) };
        let panel = Panel { row, rows, vectors, inner, sums };
        all[count] = panel;
        count += 1;
        row += rows;
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
    let map = job.map;
    let (lanes, most_inner) = T::dispatch(level, Sizes);
    let depth = map.cols;
    let mut packed = Aligned::<T, PACKED>::new();
    let mut tile = Aligned::<T, { OUTPUTS * DEPTH }>::new();
    let mut sums = Aligned::<T, SUMS>::new();
    let (packed, tile, sums) = (packed.pointer(), tile.pointer(), sums.pointer());
    for row in (0..job.x.rows()).step_by(BATCH) {
        let (panels, count, width) = panels(BATCH.min(job.x.rows() - row), lanes, most_inner);
        let panels = &panels[..count];
        // A tile of fewer outputs leaves the sums of the others as they are.
        // SAFETY: `sums` has room for 16 outputs of every panel.
        unsafe { sums.write_bytes(0, panels.iter().map(|p| OUTPUTS * p.vectors * lanes).sum()) };
        let plain = if panels.iter().all(|panel| panel.inner) { job.source.plain::<T>() } else { None };
        let most = PACKED / width / DEPTH * DEPTH;
        for block in job.blocks.clone() {
            // A depth of zero still makes one pass, so that overwriting writes.
            for from in (0..depth.max(1)).step_by(most) {
                let len = most.min(depth - from);
                let x = job.x.batch(row..job.x.rows());
                T::dispatch(level, Pack { x, map, forward: true, block, from, len, panels, packed });
                let overwrite = from == 0 && job.update == Update::Overwrite;
                for start in job.outputs.clone().step_by(OUTPUTS) {
                    let outputs = OUTPUTS.min(job.outputs.end - start);
                    for k in (0..len.max(1)).step_by(DEPTH) {
                        let inputs = DEPTH.min(len - k);
                        let weights = match plain {
                            Some(plain) if inputs.is_multiple_of(lanes) => {
                                let first = job.first + block * map.rows + start;
                                // SAFETY: the tile's first weight is inside the source.
                                let first = unsafe { plain.add(first * map.cols + from + k) };
                                Weights { first, row: map.cols, square: lanes }
                            }
                            _ => {
                                let decode =
                                    Decode { job, block, start, outputs, from: from + k, inputs, tile };
                                T::dispatch(level, decode);
                                Weights { first: tile, row: lanes, square: OUTPUTS * lanes }
                            }
                        };
                        T::dispatch(level, Run { panels, packed, weights, sums, outputs, len, k, inputs });
                    }
                    // SAFETY: the rows from `row` on are inside the panel of y.
                    let y = Output(unsafe { job.y.0.add(row * job.y_stride) });
                    let y_stride = job.y_stride;
                    T::dispatch(
                        level,
                        Flush { panels, sums, map, block, start, outputs, y, y_stride, overwrite },
                    );
                }
            }
        }
    }
}

/// Lanes, and batch rows of the largest inner panel.
pub(super) struct Sizes;

impl<T: Scalar> Kernel<T> for Sizes {
    type Output = (usize, usize);
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) -> (usize, usize) {
        (S::LANES, if S::REGISTERS == 32 { 8 } else { 4 })
    }
}

/// Where the weights of a tile lie: rows of consecutive inputs, `LANES` inputs to a square.
#[derive(Clone, Copy)]
pub(super) struct Weights<T> {
    pub(super) first: *const T,
    /// From one output to the next.
    pub(super) row: usize,
    /// From one square of inputs to the next.
    pub(super) square: usize,
}

/// Packs inputs `from .. from + len` of the panels' batch rows: `LANES` inputs at a time, zeros beyond `len` and beyond the rows.
pub(super) struct Pack<'a, T> {
    pub(super) x: Rows<'a, T>,
    pub(super) map: PanelMap,
    pub(super) forward: bool,
    pub(super) block: usize,
    pub(super) from: usize,
    pub(super) len: usize,
    pub(super) panels: &'a [Panel],
    pub(super) packed: *mut T,
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
        // `LANES` inputs from `k` on of a batch row, zeros beyond `len`.
        let load = |row: usize, k: usize| {
            // SAFETY: batch row and inputs lie in x.
            unsafe {
                let row = x.as_ptr().add(row * x.stride());
                if contiguous && k + S::LANES <= len {
                    return simd.load(row.add(feature(from + k)));
                }
                if contiguous {
                    return simd.load_part(row.add(feature(from + k)), len - k);
                }
                let mut lanes = [T::default(); 16];
                for (j, lane) in lanes.iter_mut().enumerate().take(S::LANES.min(len - k)) {
                    *lane = *row.add(feature(from + k + j));
                }
                simd.load(lanes.as_ptr())
            }
        };
        for panel in panels {
            let step = panel.vectors * S::LANES;
            for k in (0..padded).step_by(S::LANES) {
                // SAFETY: the panel's place holds `padded` inputs of its width.
                unsafe {
                    if panel.inner {
                        for v in 0..panel.vectors {
                            simd.store(packed.add(k * panel.vectors + v * S::LANES), load(panel.row + v, k));
                        }
                        continue;
                    }
                    for v in 0..panel.vectors {
                        let first = v * S::LANES;
                        let mut square = [simd.zero(); 16];
                        for i in 0..panel.rows.saturating_sub(first).min(S::LANES) {
                            square[i] = load(panel.row + first + i, k);
                        }
                        let square = transpose(simd, square);
                        for j in 0..S::LANES {
                            simd.store(packed.add((k + j) * step + first), square[j]);
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
            for o in 0..OUTPUTS {
                let row = first + start + o;
                for k in (0..inputs).step_by(S::LANES) {
                    let w = if o >= outputs {
                        simd.zero()
                    } else if k + S::LANES <= inputs {
                        let ahead = from + k + DEPTH;
                        let wrap = if ahead < job.map.cols { (row, ahead) } else { (row + OUTPUTS, k) };
                        prefetch(source.address(wrap.0, wrap.1));
                        source.load(simd, row, from + k)
                    } else {
                        source.load_tail(simd, row, from + k)
                    };
                    simd.store(tile.add(k * OUTPUTS + o * S::LANES), w);
                }
            }
        }
    }
}

/// Adds the products of all panels with a tile to their sums, or starts these.
struct Run<'a, T> {
    panels: &'a [Panel],
    packed: *const T,
    weights: Weights<T>,
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
        let padded = self.len.next_multiple_of(S::LANES);
        let mut packed = self.packed;
        for panel in self.panels {
            // SAFETY: weights, packed panel and sums have been filled to these sizes; the next panel's place follows.
            unsafe {
                let x = packed.add(self.k * panel.width(S::LANES));
                match (S::REGISTERS, panel.inner, panel.vectors) {
                    (32, false, _) => outputs::<T, S, 8, 2, false>(simd, &self, panel, x),
                    (32, true, 8) => outputs::<T, S, 3, 8, true>(simd, &self, panel, x),
                    (32, true, 4) => outputs::<T, S, 4, 4, true>(simd, &self, panel, x),
                    (_, false, _) => outputs::<T, S, 4, 2, false>(simd, &self, panel, x),
                    (_, true, 4) => outputs::<T, S, 2, 4, true>(simd, &self, panel, x),
                    (_, true, 2) => outputs::<T, S, 4, 2, true>(simd, &self, panel, x),
                    _ => outputs::<T, S, 4, 1, true>(simd, &self, panel, x),
                }
                packed = packed.add(padded * panel.width(S::LANES));
            }
        }
    }
}

/// All outputs of the weight tile, `R` at a time.
#[inline(always)]
unsafe fn outputs<T: Scalar, S: Simd<T>, const R: usize, const V: usize, const INNER: bool>(
    simd: S,
    run: &Run<'_, T>,
    panel: &Panel,
    x: *const T,
) {
    let (squares, fresh) = (run.inputs.div_ceil(S::LANES), run.k == 0);
    // A decoded tile has 16 outputs, so that outer tiles may reach beyond those wanted; plain weights end with them.
    let whole = if INNER { run.outputs / R * R } else { run.outputs.next_multiple_of(R) };
    // SAFETY: the caller's; R divides 16 in outer panels.
    unsafe {
        let at = |o: usize| {
            let weights = Weights { first: run.weights.first.add(o * run.weights.row), ..run.weights };
            (weights, run.sums.add(panel.sums + o * V * S::LANES))
        };
        for o in (0..whole).step_by(R) {
            let (weights, sums) = at(o);
            tile::<T, S, R, V, INNER>(simd, weights, x, sums, squares, fresh);
        }
        for o in whole..run.outputs {
            let (weights, sums) = at(o);
            tile::<T, S, 1, V, INNER>(simd, weights, x, sums, squares, fresh);
        }
    }
}

/// `R` rows of weights times `V` vectors for each input (outer) or `LANES` inputs (inner). Returns `R`.
#[inline(always)]
pub(super) unsafe fn tile<T: Scalar, S: Simd<T>, const R: usize, const V: usize, const INNER: bool>(
    simd: S,
    weights: Weights<T>,
    x: *const T,
    out: *mut T,
    squares: usize,
    fresh: bool,
) -> usize {
    let (mut w, mut x) = (weights.first, x);
    // SAFETY: the caller's: each square has LANES inputs of R outputs and of the panel, `out` R x V vectors.
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
            if INNER {
                let ws: [S::V; R] = std::array::from_fn(|r| {
                    // The outputs that come next: rows are too short for the machine to see streams in them.
                    prefetch(w.wrapping_add((R + r) * weights.row).cast());
                    simd.load(w.add(r * weights.row))
                });
                for v in 0..V {
                    let x = simd.load(x.add(v * S::LANES));
                    for r in 0..R {
                        sums[r][v] = simd.mul_add(ws[r], x, sums[r][v]);
                    }
                }
                x = x.add(V * S::LANES);
            } else {
                for k in 0..S::LANES {
                    let xs: [S::V; V] = std::array::from_fn(|v| simd.load(x.add(v * S::LANES)));
                    x = x.add(V * S::LANES);
                    for r in 0..R {
                        let weight = simd.splat(*w.add(r * weights.row + k));
                        for v in 0..V {
                            sums[r][v] = simd.mul_add(weight, xs[v], sums[r][v]);
                        }
                    }
                }
            }
            w = w.add(weights.square);
        }
        for r in 0..R {
            for v in 0..V {
                simd.store(out.add((r * V + v) * S::LANES), sums[r][v]);
            }
        }
    }
    R
}

/// Writes the sums of all panels to the output, or adds them.
struct Flush<'a, T> {
    panels: &'a [Panel],
    sums: *const T,
    map: PanelMap,
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
        let Self { panels, sums: all, map, block, start, outputs, y, y_stride, overwrite } = self;
        let feature = |o: usize| map.row_feature(block, o);
        // SAFETY: batch rows of the panels and features of the outputs are inside y; each panel has 16 x V vectors of sums.
        unsafe {
            for panel in panels {
                let panel_sums = all.add(panel.sums);
                let put = |row: usize, o: usize, sum: S::V| {
                    let row = y.0.add((panel.row + row) * y_stride);
                    if o + S::LANES <= outputs && map.consecutive(start + o, S::LANES) {
                        let out = row.add(feature(start + o));
                        simd.store(out, if overwrite { sum } else { simd.add(simd.load(out), sum) });
                        return;
                    }
                    let mut lanes = [T::default(); 16];
                    simd.store(lanes.as_mut_ptr(), sum);
                    for i in 0..S::LANES.min(outputs - o) {
                        let out = row.add(feature(start + o + i));
                        *out = if overwrite { lanes[i] } else { *out + lanes[i] };
                    }
                };
                let vectors = |o: usize, v: usize| {
                    let mut square = [simd.zero(); 16];
                    for i in 0..S::LANES {
                        square[i] = simd.load(panel_sums.add(((o + i) * panel.vectors + v) * S::LANES));
                    }
                    square
                };
                for v in 0..panel.vectors {
                    for o in (0..outputs).step_by(S::LANES) {
                        if panel.inner {
                            put(v, o, sums(simd, vectors(o, v)));
                            continue;
                        }
                        let square = transpose(simd, vectors(o, v));
                        for row in 0..panel.rows.saturating_sub(v * S::LANES).min(S::LANES) {
                            put(v * S::LANES + row, o, square[row]);
                        }
                    }
                }
            }
        }
    }
}
