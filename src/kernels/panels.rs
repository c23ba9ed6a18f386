//! Products of a few batch rows with packed weights: one stream of weights, read once for all of them.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::gemm::{Io, Job};
use super::packing::{Lanes, PANEL, Packing};
use super::simd::{Simd, prefetch, sums};
use super::source::{Source, Stored};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::GROUP;

/// How far ahead of its use a stream of weights from memory is fetched, in bytes.
const AHEAD: usize = 4096;

/// Weights from which on they are taken to come from memory: fetching ahead gains a quarter there, and costs a fifth in the caches.
const STREAMED: usize = 1 << 21;

/// Lanes that lie side by side in the outputs from which on they are written together.
const LEAST_RUN: usize = 4;

/// Lanes whose inputs are gathered at a time for products whose outputs are the steps.
const GATHERED: usize = 1024;

/// Some weights of a panel: `len` steps from number `at` on, `width` numbers apart, with scales from `scale` on.
#[derive(Clone, Copy)]
pub(super) struct Stream<W> {
    pub(super) source: W,
    pub(super) at: usize,
    pub(super) width: usize,
    pub(super) len: usize,
    pub(super) scale: usize,
}

/// Inputs of a tile: batch rows `row` apart, steps `step` apart.
#[derive(Clone, Copy)]
pub(super) struct Inputs<T> {
    pub(super) first: *const T,
    pub(super) row: usize,
    pub(super) step: usize,
}

/// `R` batch rows times `V` vectors of lanes, summed over the steps, `U` of them at a time.
///
/// # Safety
/// The stream lies in its source, which has `SLACK` numbers beyond it; the inputs have `R` rows and `len` steps.
#[inline(always)]
pub(super) unsafe fn tile<
    T: Scalar,
    S: Simd<T>,
    W: Stored,
    const R: usize,
    const V: usize,
    const U: usize,
    const FAR: bool,
>(
    simd: S,
    w: Stream<W>,
    x: Inputs<T>,
    far: usize,
) -> [[S::V; V]; R] {
    let mut totals = [[simd.zero(); V]; R];
    let (mut from, mut scale) = (0, w.scale);
    // One group of scales at a time; all steps where there are none.
    let group = if W::SCALED { GROUP } else { w.len };
    // SAFETY: the caller's.
    unsafe {
        while from < w.len {
            let to = w.len.min(from + group);
            let mut sums = [[[simd.zero(); V]; R]; U];
            let mut k = from;
            macro_rules! step {
                ($u:expr) => {{
                    let at = w.at + (k + $u) * w.width;
                    if FAR {
                        prefetch(w.source.stream_address(at).wrapping_add(far));
                        if V * S::LANES * size_of::<T>() > 64 && !W::SCALED {
                            prefetch(w.source.stream_address(at).wrapping_add(far + 64));
                        }
                    }
                    let ws: [S::V; V] = std::array::from_fn(|v| w.source.codes(simd, at + v * S::LANES));
                    for r in 0..R {
                        let x = simd.splat(*x.first.add(r * x.row + (k + $u) * x.step));
                        for v in 0..V {
                            sums[$u][r][v] = simd.mul_add(ws[v], x, sums[$u][r][v]);
                        }
                    }
                }};
            }
            while k + U <= to {
                for u in 0..U {
                    step!(u);
                }
                k += U;
            }
            while k < to {
                step!(0);
                k += 1;
            }
            for r in 0..R {
                for v in 0..V {
                    let mut sum = sums[0][r][v];
                    for u in 1..U {
                        sum = simd.add(sum, sums[u][r][v]);
                    }
                    totals[r][v] = if W::SCALED {
                        let scales = w.source.scales(simd, scale + v * S::LANES);
                        simd.mul_add(sum, scales, totals[r][v])
                    } else {
                        sum
                    };
                }
            }
            scale += w.width;
            from = to;
        }
    }
    totals
}

/// Writes vectors of outputs from lane `lane` of a block on, or adds them.
///
/// # Safety
/// Batch row and lanes are inside y.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn put<T: Scalar, S: Simd<T>, const V: usize>(
    simd: S,
    io: &Io<'_, T>,
    block: usize,
    row: usize,
    lane: usize,
    lanes: usize,
    sums: &[S::V; V],
    overwrite: bool,
) {
    let map = io.map;
    let rows = io.op == Op::Forward;
    // SAFETY: the caller's.
    unsafe {
        let y = io.y.0.add(row * io.y_stride);
        for v in 0..V {
            let first = lane + v * S::LANES;
            let Some(count) = lanes.checked_sub(first).map(|left| left.min(S::LANES)) else { return };
            if count == 0 {
                return;
            }
            if !rows || map.consecutive(first, count) {
                let out = y.add(if rows { map.row_feature(block, first) } else { block * map.cols + first });
                if count == S::LANES {
                    simd.store(out, if overwrite { sums[v] } else { simd.add(simd.load(out), sums[v]) });
                } else {
                    let sum = if overwrite { sums[v] } else { simd.add(simd.load_part(out, count), sums[v]) };
                    simd.store_part(out, sum, count);
                }
                continue;
            }
            let (mut group, mut inside) = (first / map.group, first % map.group);
            if map.group >= LEAST_RUN {
                // Run by run, each from where its lanes lie in the vector.
                let mut from = 0;
                while from < count {
                    let to = count.min(from + map.group - inside);
                    let out =
                        y.wrapping_add((group * map.blocks + block) * map.group + inside).wrapping_sub(from);
                    let sum = match overwrite {
                        true => sums[v],
                        false => simd.add(simd.load_lanes(out, from, to), sums[v]),
                    };
                    simd.store_lanes(out, sum, from, to);
                    (group, inside, from) = (group + 1, 0, to);
                }
                continue;
            }
            let mut values = [T::default(); 16];
            simd.store(values.as_mut_ptr(), sums[v]);
            for value in values.iter().take(count) {
                let out = y.add((group * map.blocks + block) * map.group + inside);
                *out = if overwrite { *value } else { *out + *value };
                inside += 1;
                if inside == map.group {
                    (group, inside) = (group + 1, 0);
                }
            }
        }
    }
}

/// The product of a job whose weights are packed.
///
/// # Safety
/// The job's operands fit its map, and its source the packing.
#[inline(always)]
pub(super) unsafe fn multiply<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    job: &Job<'_, T, W>,
    packing: Packing,
) {
    // SAFETY: the caller's.
    unsafe {
        if (packing.lanes == Lanes::Rows) == (job.op == Op::Forward) {
            match job.source.rows() * job.source.cols() {
                STREAMED.. => lanes::<T, S, W, true>(simd, job, packing),
                _ => lanes::<T, S, W, false>(simd, job, packing),
            }
        } else {
            steps(simd, job, packing);
        }
    }
}

/// Outputs are lanes.
#[inline(always)]
unsafe fn lanes<T: Scalar, S: Simd<T>, W: Source, const FAR: bool>(
    simd: S,
    job: &Job<'_, T, W>,
    packing: Packing,
) {
    // SAFETY: blocks and lanes are in range by the loop bounds and the job's promise.
    unsafe {
        for block in job.blocks.clone() {
            for lane in job.outputs.clone().step_by(PANEL) {
                let mut row = 0;
                while row < job.x.rows() {
                    row += match job.x.rows() - row {
                        1 => panel::<T, S, W, 1, 4, 2, FAR>(simd, job, packing, block, lane, row),
                        2 => panel::<T, S, W, 2, 2, 2, false>(simd, job, packing, block, lane, row),
                        _ => panel::<T, S, W, 3, 2, 1, false>(simd, job, packing, block, lane, row),
                    };
                }
            }
        }
    }
}

/// The lanes of one panel for `R` batch rows, up to `V` vectors at a time. Returns `R`.
#[inline(always)]
unsafe fn panel<
    T: Scalar,
    S: Simd<T>,
    W: Source,
    const R: usize,
    const V: usize,
    const U: usize,
    const FAR: bool,
>(
    simd: S,
    job: &Job<'_, T, W>,
    packing: Packing,
    block: usize,
    lane: usize,
    row: usize,
) -> usize {
    let (at, width) = packing.panel(job.first_block + block, lane);
    let scale = packing.panel_scales(job.first_block + block, lane);
    let depth = packing.depth();
    let end = job.outputs.end.min(lane + PANEL);
    let first = block * depth;
    let overwrite = job.update == Update::Overwrite;
    // SAFETY: the caller's; the depth side is contiguous in x.
    unsafe {
        let x =
            Inputs { first: job.x.as_ptr().add(row * job.x.stride() + first), row: job.x.stride(), step: 1 };
        let mut from = 0;
        while lane + from < end {
            let stream = Stream { source: job.source, at: at + from, width, len: depth, scale: scale + from };
            let left = end - lane - from;
            macro_rules! part {
                ($v:expr, $u:expr) => {{
                    let sums = tile::<T, S, W, R, $v, $u, FAR>(simd, stream, x, AHEAD);
                    for r in 0..R {
                        put(simd, &job.io, block, row + r, lane + from, end, &sums[r], overwrite);
                    }
                    from += $v * S::LANES;
                }};
            }
            if R == 1 && left > 2 * S::LANES && V == 4 {
                part!(4, 2);
            } else if left > S::LANES {
                if R == 1 { part!(2, 4) } else { part!(2, U) }
            } else if R == 1 {
                part!(1, 4);
            } else {
                part!(1, 2);
            }
        }
    }
    R
}

/// Outputs are steps, each a sum over lanes.
#[inline(always)]
unsafe fn steps<T: Scalar, S: Simd<T>, W: Source>(simd: S, job: &Job<'_, T, W>, packing: Packing) {
    let (map, n_lanes, width) = (job.map, packing.n_lanes(), PANEL / S::LANES);
    let forward = job.op == Op::Forward;
    // Lanes beyond those wanted are multiplied by zeros.
    let mut x = super::batches::Aligned::<T, GATHERED>::new();
    let x = x.pointer();
    // SAFETY: blocks, lanes and steps are in range by the loop bounds and the job's promise; `x` has room for GATHERED lanes.
    unsafe {
        for block in job.blocks.clone() {
            for row in 0..job.x.rows() {
                let input = job.x.as_ptr().add(row * job.x.stride());
                let output = job.y.0.add(row * job.y_stride);
                for first in (0..n_lanes).step_by(GATHERED) {
                    let count = GATHERED.min(n_lanes - first);
                    for i in 0..count.next_multiple_of(PANEL) {
                        let feature =
                            |i| if forward { block * map.cols + i } else { map.row_feature(block, i) };
                        *x.add(i) = if i < count { *input.add(feature(first + i)) } else { T::default() };
                    }
                    let overwrite = first == 0 && job.update == Update::Overwrite;
                    let mut step = job.outputs.start;
                    while step < job.outputs.end {
                        let steps = S::LANES.min(job.outputs.end - step);
                        let mut square = [simd.zero(); 16];
                        for lane in (0..count).step_by(PANEL) {
                            let (at, stride) = packing.panel(job.first_block + block, first + lane);
                            let scale = packing.panel_scales(job.first_block + block, first + lane)
                                + step / GROUP * stride;
                            for v in 0..width {
                                if lane + v * S::LANES >= count {
                                    break;
                                }
                                let mut xs = simd.load(x.add(lane + v * S::LANES));
                                if W::SCALED {
                                    xs = simd.mul(xs, job.source.scales(simd, scale + v * S::LANES));
                                }
                                let at = at + step * stride + v * S::LANES;
                                if steps == S::LANES {
                                    for i in 0..S::LANES {
                                        let w = job.source.codes(simd, at + i * stride);
                                        square[i] = simd.mul_add(w, xs, square[i]);
                                    }
                                } else {
                                    for i in 0..steps {
                                        let w = job.source.codes(simd, at + i * stride);
                                        square[i] = simd.mul_add(w, xs, square[i]);
                                    }
                                }
                            }
                        }
                        let total = sums(simd, square);
                        let contiguous = !forward || map.consecutive(step, steps);
                        let feature =
                            |i| if forward { map.row_feature(block, i) } else { block * map.cols + i };
                        if contiguous && steps == S::LANES {
                            let out = output.add(feature(step));
                            simd.store(out, if overwrite { total } else { simd.add(simd.load(out), total) });
                        } else {
                            let mut values = [T::default(); 16];
                            simd.store(values.as_mut_ptr(), total);
                            for i in 0..steps {
                                let out = output.add(feature(step + i));
                                *out = if overwrite { values[i] } else { *out + values[i] };
                            }
                        }
                        step += steps;
                    }
                }
            }
        }
    }
}
