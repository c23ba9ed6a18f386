//! Products for large batches: a tile of weights is decoded into the L1 cache, then a register tile of
//! `S::TILE` batch rows x two vectors of outputs runs over it.

use super::gemm::{Job, Output, PanelMap};
use super::level::{Kernel, Level};
use super::simd::Simd;
use super::source::Source;
use super::view::Rows;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;

/// Depth of a weight tile: with 16 outputs of `f32` it takes 16 KiB, half of a small L1 cache.
const DEPTH: usize = 256;
/// Most outputs of a tile: two vectors of 16.
const WIDTH: usize = 32;

/// A decoded weight tile, `DEPTH x 2 LANES`, aligned for vector loads.
#[repr(align(64))]
struct Tile<T>([T; DEPTH * WIDTH]);

/// The product of a job at `level`.
///
/// # Safety
/// The job's operands fit its map.
pub(super) unsafe fn multiply<T: Scalar, W: Source>(job: &Job<'_, T, W>, level: Level) {
    let (map, forward) = (&job.map, job.op == Op::Forward);
    let width = T::dispatch(level, Width);
    let depth = if forward { map.cols } else { map.rows };
    let mut tile = Tile([T::default(); DEPTH * WIDTH]);
    let mut offsets = [0usize; DEPTH];
    for block in job.blocks.clone() {
        // A depth of zero still makes one pass, so that overwriting writes.
        for k in (0..depth.max(1)).step_by(DEPTH) {
            let len = DEPTH.min(depth - k);
            for (i, offset) in offsets[..len].iter_mut().enumerate() {
                *offset = if forward { block * map.cols + k + i } else { map.row_feature(block, k + i) };
            }
            for start in job.outputs.clone().step_by(width) {
                let outputs = width.min(job.outputs.end - start);
                // Depth, outputs and batch rows are in range by the loop bounds; offsets lie inside a row of x.
                T::dispatch(level, Pack { job, block, start, outputs, k, len, tile: &mut tile.0 });
                let (map, x, y, y_stride) = (*map, job.x, job.y, job.y_stride);
                let overwrite = k == 0 && job.update == Update::Overwrite;
                let (tile, offsets) = (&tile.0, &offsets[..len]);
                T::dispatch(
                    level,
                    Run { map, forward, x, y, y_stride, tile, offsets, block, start, outputs, overwrite },
                );
            }
        }
    }
}

/// Outputs of a tile at a level.
struct Width;

impl<T: Scalar> Kernel<T> for Width {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) -> usize {
        2 * S::LANES
    }
}

/// Decodes `len x outputs` weights from depth `k` and output `start` on; the rest of the tile's width becomes zero.
struct Pack<'a, 'j, T, W> {
    job: &'a Job<'j, T, W>,
    block: usize,
    start: usize,
    outputs: usize,
    k: usize,
    len: usize,
    tile: &'a mut [T; DEPTH * WIDTH],
}

impl<T: Scalar, W: Source> Kernel<T> for Pack<'_, '_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { job, block, start, outputs, k, len, tile } = self;
        // SAFETY: `multiply` keeps depth and outputs inside the block; `k` and `start` are multiples of LANES.
        unsafe {
            match job.op {
                Op::Forward => pack_rows(simd, job, block, start, outputs, k, len, tile),
                Op::Transpose => pack_columns(simd, job, block, start, outputs, k, len, tile),
            }
        }
    }
}

/// All batch rows times one tile.
struct Run<'a, T> {
    map: PanelMap,
    forward: bool,
    x: Rows<'a, T>,
    y: Output<T>,
    y_stride: usize,
    tile: &'a [T; DEPTH * WIDTH],
    offsets: &'a [usize],
    block: usize,
    start: usize,
    outputs: usize,
    overwrite: bool,
}

impl<T: Scalar> Kernel<T> for Run<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let batch = self.x.rows();
        let mut b = 0;
        while b < batch {
            let left = batch - b;
            // SAFETY: `b` plus the rows of the register tile is at most `batch`; the rest by `multiply`.
            unsafe {
                b += match left.min(S::TILE) {
                    12.. => register_tile::<T, S, 12>(simd, &self, b),
                    6..12 => register_tile::<T, S, 6>(simd, &self, b),
                    4..6 => register_tile::<T, S, 4>(simd, &self, b),
                    2..4 => register_tile::<T, S, 2>(simd, &self, b),
                    _ => register_tile::<T, S, 1>(simd, &self, b),
                };
            }
        }
    }
}

/// Outputs are rows of the block: decodes `outputs` rows and transposes them.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn pack_rows<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    job: &Job<'_, T, W>,
    block: usize,
    start: usize,
    outputs: usize,
    k: usize,
    len: usize,
    tile: &mut [T; DEPTH * WIDTH],
) {
    let width = 2 * S::LANES;
    let mut lanes = [T::default(); 16];
    for o in 0..width {
        if o >= outputs {
            (0..len).for_each(|i| tile[i * width + o] = T::default());
            continue;
        }
        let row = job.first + block * job.map.rows + start + o;
        for i in (0..len).step_by(S::LANES) {
            // SAFETY: row and columns are in range; `k` and `i` are multiples of LANES.
            unsafe {
                let whole = i + S::LANES <= len;
                let w = if whole {
                    job.source.load(simd, row, k + i)
                } else {
                    job.source.load_tail(simd, row, k + i)
                };
                simd.store(lanes.as_mut_ptr(), w);
                for (l, value) in lanes.iter().enumerate().take(S::LANES.min(len - i)) {
                    *tile.get_unchecked_mut((i + l) * width + o) = *value;
                }
            }
        }
    }
}

/// Outputs are columns of the block: decodes `len` rows as they are.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn pack_columns<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    job: &Job<'_, T, W>,
    block: usize,
    start: usize,
    outputs: usize,
    k: usize,
    len: usize,
    tile: &mut [T; DEPTH * WIDTH],
) {
    let row = job.first + block * job.map.rows + k;
    for i in 0..len {
        for v in 0..2 {
            let o = v * S::LANES;
            // SAFETY: row and columns are in range; `start` and `o` are multiples of LANES; the tile holds 2 LANES per row.
            unsafe {
                let w = if o + S::LANES <= outputs {
                    job.source.load(simd, row + i, start + o)
                } else if o < outputs {
                    job.source.load_tail(simd, row + i, start + o)
                } else {
                    simd.zero()
                };
                simd.store(tile.as_mut_ptr().add(i * 2 * S::LANES + o), w);
            }
        }
    }
}

/// `MR` batch rows times the tile. Returns `MR`.
#[inline(always)]
unsafe fn register_tile<T: Scalar, S: Simd<T>, const MR: usize>(
    simd: S,
    run: &Run<'_, T>,
    b: usize,
) -> usize {
    let mut sums = [[simd.zero(); 2]; MR];
    // SAFETY: `b + MR <= batch`; offsets lie inside a row of x; the tile has `offsets.len()` rows of 2 LANES.
    unsafe {
        let stride = run.x.stride();
        let x = run.x.as_ptr().add(b * stride);
        let mut w = run.tile.as_ptr();
        for offset in run.offsets {
            let (w0, w1) = (simd.load(w), simd.load(w.add(S::LANES)));
            w = w.add(2 * S::LANES);
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = simd.splat(*x.add(r * stride + offset));
                sum[0] = simd.mul_add(w0, x, sum[0]);
                sum[1] = simd.mul_add(w1, x, sum[1]);
            }
        }
        let feature = |o: usize| {
            if run.forward { run.map.row_feature(run.block, o) } else { run.block * run.map.cols + o }
        };
        let vectors = run.outputs == 2 * S::LANES && (!run.forward || run.map.rows_contiguous());
        let mut lanes = [T::default(); WIDTH];
        for (r, sum) in sums.iter().enumerate() {
            let y = run.y.0.add((b + r) * run.y_stride);
            if vectors {
                for (v, sum) in sum.iter().enumerate() {
                    let out = y.add(feature(run.start) + v * S::LANES);
                    simd.store(out, if run.overwrite { *sum } else { simd.add(simd.load(out), *sum) });
                }
                continue;
            }
            simd.store(lanes.as_mut_ptr(), sum[0]);
            simd.store(lanes.as_mut_ptr().add(S::LANES), sum[1]);
            for (o, value) in lanes.iter().enumerate().take(run.outputs) {
                let out = y.add(feature(run.start + o));
                *out = if run.overwrite { *value } else { *out + *value };
            }
        }
    }
    MR
}
