//! Products of a few batch rows with packed weights: one stream of weights, read once for all of them.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::batches::Aligned;
use super::gemm::{Io, Job, LINE};
use super::packing::{Lanes, PANEL, Packing};
use super::panel_map::PanelMap;
use super::simd::{Simd, prefetch, prefetch_near, sums, vectors};
use super::source::{Source, Stored};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::GROUP;

/// How far ahead of its use a stream of weights from memory is fetched, in bytes.
pub(super) const AHEAD: usize = 4096;

/// How far ahead narrow numbers are fetched from there into the nearest cache, which waits for few lines at a time.
const CLOSE: usize = 1024;

/// Weights from which on they are taken to come from memory: fetching ahead gains a quarter there, and costs a sixth in the caches. Numbers that
/// are decoded lose less by it: half as many suffice.
const STREAMED: usize = 3 << 19;

/// Lanes that lie side by side in the outputs from which on they are written together.
const LEAST_RUN: usize = 4;

/// Lanes whose inputs are gathered at a time for products whose outputs are the steps.
const GATHERED: usize = 1024;

/// Batch rows of a product.
const MOST: usize = 3;

/// Steps whose inputs are copied at a time.
const COPIED: usize = 512;

/// Some weights of a panel: `len` steps from number `at` on, `width` numbers apart, with scales from `scale` on, those of the next group of steps
/// `scale_width` further.
#[derive(Clone, Copy)]
pub(super) struct Stream<W> {
    pub(super) source: W,
    pub(super) at: usize,
    pub(super) width: usize,
    pub(super) len: usize,
    pub(super) scale: usize,
    pub(super) scale_width: usize,
}

/// Inputs of a tile: batch rows `row` apart, steps `step` apart.
#[derive(Clone, Copy)]
pub(super) struct Inputs<T> {
    pub(super) first: *const T,
    pub(super) row: usize,
    pub(super) step: usize,
}

/// `R` batch rows times `V` vectors of lanes, summed over the steps, `U` of them at a time. The vectors are those of `P` panels, one after the
/// other: a cache is read faster in several streams than in one. `FAR` weights are fetched ahead, in one stream.
///
/// # Safety
/// The stream lies in its source, which has `SLACK` numbers beyond it; the inputs have `R` rows and `len` steps. Several panels are streamed whole.
#[inline(always)]
pub(super) unsafe fn tile<
    T: Scalar,
    S: Simd<T>,
    W: Stored,
    const R: usize,
    const V: usize,
    const U: usize,
    const P: usize,
    const FAR: bool,
>(
    simd: S,
    w: Stream<W>,
    x: Inputs<T>,
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
                        for line in (0..V * S::LANES * W::BYTES).step_by(LINE) {
                            let address = w.source.stream_address(at).wrapping_add(line);
                            if W::BYTES < 4 {
                                prefetch_narrow(address);
                            } else {
                                prefetch(address.wrapping_add(AHEAD));
                            }
                        }
                    }
                    let ws: [S::V; V] = vectors(simd, |v| {
                        let (panel, lane) = place::<T, S>(v, V / P);
                        w.source.codes(simd, at + panel * w.width * w.len + lane)
                    });
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
                        let (panel, lane) = place::<T, S>(v, V / P);
                        let of_panel = panel * w.scale_width * w.len.div_ceil(GROUP);
                        let scales = w.source.scales(simd, scale + of_panel + lane);
                        simd.mul_add(sum, scales, totals[r][v])
                    } else {
                        sum
                    };
                }
            }
            scale += w.scale_width;
            from = to;
        }
    }
    totals
}

/// Fetches narrow numbers of a stream from memory ahead of the use of those at `address`: a loop that decodes waits for the second-level cache.
#[inline(always)]
pub(super) fn prefetch_narrow(address: *const u8) {
    prefetch(address.wrapping_add(AHEAD));
    prefetch_near(address.wrapping_add(CLOSE));
}

/// The panel of vector `v`, and its first lane there, where each panel has `vectors`.
#[inline(always)]
fn place<T: Scalar, S: Simd<T>>(v: usize, vectors: usize) -> (usize, usize) {
    (v / vectors, v % vectors * S::LANES)
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
        let y = io.y.0.wrapping_add(row * io.y_stride);
        for v in 0..V {
            let first = lane + v * S::LANES;
            let Some(count) = lanes.checked_sub(first).map(|left| left.min(S::LANES)) else { return };
            if count == 0 {
                return;
            }
            if !rows || map.consecutive(first, count) {
                // `Io::output`, with a condition that is known here: by itself it costs small batches a thirtieth.
                let feature =
                    if rows { map.row_feature(block, first) } else { map.col_feature(block, first) };
                let out = y.wrapping_add(feature);
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
                let out = y.wrapping_add((group * map.blocks + block) * map.group + inside);
                *out = if overwrite { *value } else { *out + *value };
                inside += 1;
                if inside == map.group {
                    (group, inside) = (group + 1, 0);
                }
            }
        }
    }
}

/// Whether weights are taken to come from memory.
pub(super) fn streamed<T: Scalar, W: Source>(source: &W) -> bool {
    let least = if source.plain::<T>().is_some() { STREAMED } else { STREAMED / 2 };
    source.rows() * source.cols() >= least
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
            let (mut row, batch) = (0, job.x.rows());
            let streamed = streamed::<T, W>(&job.source);
            while row < batch {
                row += match batch - row {
                    1 if streamed => lanes::<T, S, W, 1, 4, 2, true>(simd, job, packing, row),
                    1 => lanes::<T, S, W, 1, 4, 2, false>(simd, job, packing, row),
                    2 => lanes::<T, S, W, 2, 2, 2, false>(simd, job, packing, row),
                    _ => lanes::<T, S, W, 3, 2, 1, false>(simd, job, packing, row),
                };
            }
        } else {
            steps(simd, job, packing);
        }
    }
}

/// Outputs are lanes, for `R` batch rows. Returns `R`.
#[inline(always)]
unsafe fn lanes<
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
    row: usize,
) -> usize {
    for block in job.blocks.clone() {
        let mut outputs = job.outputs.clone();
        if R == 1 {
            // SAFETY: the block is in range by the job's promise, the batch row by the caller's.
            outputs.start += unsafe { whole_panels::<T, S, W, FAR>(simd, job, packing, block, row) };
        }
        for lane in outputs.step_by(PANEL) {
            // SAFETY: blocks and lanes are in range by the job's promise, batch rows by the caller's.
            unsafe { panel::<T, S, W, R, V, U, FAR>(simd, job, packing, block, lane, row) };
        }
    }
    R
}

/// The panels of a block that have all their lanes, where inputs and outputs lie as the panels want them: nothing but the stream stands
/// between one panel and the next. Returns the lanes it has done.
#[inline(always)]
unsafe fn whole_panels<T: Scalar, S: Simd<T>, W: Source, const FAR: bool>(
    simd: S,
    job: &Job<'_, T, W>,
    packing: Packing,
    block: usize,
    row: usize,
) -> usize {
    let map = job.map;
    let by_step = W::SCALED && packing.lanes == Lanes::Cols;
    let lanes = job.outputs.len() / PANEL * PANEL;
    // Inputs lie side by side, and outputs do so too or in groups of whole panels.
    let in_groups = job.op == Op::Forward && map.group.is_multiple_of(PANEL);
    if by_step || lanes == 0 || !(in_groups || map.rows_contiguous()) {
        return 0;
    }
    let (first, len, overwrite) = (job.outputs.start, packing.depth(), job.update == Update::Overwrite);
    let (at, scale) = (
        packing.panel(job.first_block + block, first).0,
        packing.panel_scales(job.first_block + block, first),
    );
    let mut stream = Stream { source: job.source, at, width: PANEL, len, scale, scale_width: PANEL };
    // SAFETY: the caller's; the lanes are among the job's outputs.
    unsafe {
        let first_input = job.x.as_ptr().add(row * job.x.stride() + job.input(block, 0));
        let x = Inputs { first: first_input, row: 0, step: 1 };
        let group = if job.op == Op::Forward { map.group } else { map.cols };
        let mut y = job.y.0.wrapping_add(row * job.y_stride + job.output(block, first));
        let mut left_in_group = group - first % group;
        // Some vectors of each of some panels.
        macro_rules! part {
            ($p:expr, $v:expr, $u:expr, $far:expr) => {{
                let [sums] = tile::<T, S, W, 1, { $p * $v }, $u, $p, $far>(simd, stream, x);
                for panel in 0..$p {
                    for v in 0..$v {
                        let (out, sum) = (y.add(v * S::LANES), sums[panel * $v + v]);
                        simd.store(out, if overwrite { sum } else { simd.add(simd.load(out), sum) });
                    }
                    y = y.wrapping_add($v * S::LANES);
                    left_in_group -= $v * S::LANES;
                    if left_in_group == 0 {
                        y = y.wrapping_add((map.blocks - 1) * group);
                        left_in_group = group;
                    }
                }
                stream.at += $v * S::LANES;
                stream.scale += $v * S::LANES;
            }};
        }
        // From the lanes of the next panel to where the one after `panels` begins.
        let advance = |stream: &mut Stream<W>, panels: usize| {
            stream.at += PANEL * (panels * len - 1);
            stream.scale += PANEL * (panels * len.div_ceil(GROUP) - 1);
        };
        let pairs = if S::REGISTERS == 32 && PANEL <= 4 * S::LANES && !FAR { lanes / PANEL / 2 } else { 0 };
        for _ in 0..pairs {
            if PANEL == 2 * S::LANES {
                part!(2, 2, 4, false);
            } else {
                part!(2, 4, 2, false);
            }
            advance(&mut stream, 2);
        }
        for _ in 2 * pairs..lanes / PANEL {
            if PANEL == 2 * S::LANES {
                part!(1, 2, 4, FAR);
            } else {
                for _ in 0..PANEL / S::LANES / 4 {
                    part!(1, 4, 2, FAR);
                }
            }
            advance(&mut stream, 1);
        }
    }
    lanes
}

/// The lanes of one panel for `R` batch rows, up to `V` vectors at a time.
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
) {
    let (at, width) = packing.panel(job.first_block + block, lane);
    let scale = packing.panel_scales(job.first_block + block, lane);
    let depth = packing.depth();
    let end = job.outputs.end.min(lane + PANEL);
    // Steps with scales hand them to their inputs, and inputs that lie apart are gathered, some at a time.
    let by_step = W::SCALED && packing.lanes == Lanes::Cols;
    let apart = job.op == Op::Transpose && !job.map.rows_contiguous();
    let most = if by_step || apart { COPIED } else { depth };
    let mut copied = Aligned::<T, { MOST * COPIED + 16 }>::new();
    let copied = copied.pointer();
    // SAFETY: the caller's; a panel of ones follows the last scale.
    unsafe {
        let first = job.x.as_ptr().add(row * job.x.stride());
        for k in (0..depth).step_by(most) {
            let len = most.min(depth - k);
            let at_rest = if apart { 0 } else { job.input(block, k) };
            let mut x = Inputs { first: first.add(at_rest), row: job.x.stride(), step: 1 };
            if apart {
                for r in 0..R {
                    gather_rows(
                        simd,
                        job.map,
                        block,
                        k..k + len,
                        x.first.add(r * x.row),
                        copied.add(r * COPIED),
                    );
                }
                x = Inputs { first: copied, row: COPIED, step: 1 };
            }
            if by_step {
                for r in 0..R {
                    let (from, to) = (x.first.add(r * x.row), copied.add(r * COPIED));
                    scale_steps(simd, job.source, scale + k, from, to, len);
                }
                x = Inputs { first: copied, row: COPIED, step: 1 };
            }
            let overwrite = k == 0 && job.update == Update::Overwrite;
            let at = at + k * width;
            let mut from = 0;
            while lane + from < end {
                let (scale, scale_width) = if by_step { (packing.ones(), 0) } else { (scale + from, width) };
                let stream = Stream { source: job.source, at: at + from, width, len, scale, scale_width };
                let left = end - lane - from;
                macro_rules! part {
                    ($v:expr, $u:expr) => {{
                        let sums = tile::<T, S, W, R, $v, $u, 1, FAR>(simd, stream, x);
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
    }
}

/// Rows `rows` of a block, at most `COPIED`, side by side.
///
/// # Safety
/// They are features of `x`, and `to` has room for `COPIED` numbers and a vector.
#[inline(always)]
unsafe fn gather_rows<T: Scalar, S: Simd<T>>(
    simd: S,
    map: PanelMap,
    block: usize,
    rows: std::ops::Range<usize>,
    x: *const T,
    to: *mut T,
) {
    let (mut i, end) = (rows.start, rows.end);
    while i < end {
        // Groups lie as far apart as all blocks have numbers in them; divisions cost more than a short group.
        let run = if i == 0 { map.group } else { map.group - i % map.group }.min(end - i);
        // SAFETY: the caller's; what a vector writes beyond a group is written again.
        unsafe {
            let (x, to) = (x.add(map.row_feature(block, i)), to.add(i - rows.start));
            for v in (0..run).step_by(S::LANES) {
                let left = run - v;
                simd.store(
                    to.add(v),
                    if left >= S::LANES { simd.load(x.add(v)) } else { simd.load_part(x.add(v), left) },
                );
            }
        }
        i += run;
    }
}

/// Inputs of `len <= COPIED` steps times their scales, from scale `at` on. They may be written where they lie.
///
/// # Safety
/// There are so many inputs and scales, a panel of numbers follows the scales, and `to` has room for `COPIED`.
#[inline(always)]
unsafe fn scale_steps<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    source: W,
    at: usize,
    x: *const T,
    to: *mut T,
    len: usize,
) {
    // SAFETY: the caller's; `COPIED` is a multiple of every vector length.
    unsafe {
        for k in (0..len).step_by(S::LANES) {
            let left = len - k;
            let xs = if left >= S::LANES { simd.load(x.add(k)) } else { simd.load_part(x.add(k), left) };
            simd.store(to.add(k), simd.mul(xs, source.scales(simd, at + k)));
        }
    }
}

/// Outputs are steps, each a sum over lanes.
#[inline(always)]
unsafe fn steps<T: Scalar, S: Simd<T>, W: Source>(simd: S, job: &Job<'_, T, W>, packing: Packing) {
    let (map, n_lanes, width) = (job.map, packing.n_lanes(), PANEL / S::LANES);
    let forward = job.op == Op::Forward;
    let by_step = W::SCALED && packing.lanes == Lanes::Cols;
    // Lanes beyond those wanted are multiplied by zeros.
    let mut x = Aligned::<T, GATHERED>::new();
    let x = x.pointer();
    // SAFETY: blocks, lanes and steps are in range by the loop bounds and the job's promise; `x` has room for GATHERED lanes.
    unsafe {
        for block in job.blocks.clone() {
            for row in 0..job.x.rows() {
                let input = job.x.as_ptr().add(row * job.x.stride());
                let output = job.y.0.wrapping_add(row * job.y_stride);
                for first in (0..n_lanes).step_by(GATHERED) {
                    let count = GATHERED.min(n_lanes - first);
                    for i in 0..count.next_multiple_of(PANEL) {
                        *x.add(i) =
                            if i < count { *input.add(job.input(block, first + i)) } else { T::default() };
                    }
                    let overwrite = first == 0 && job.update == Update::Overwrite;
                    let mut step = job.outputs.start;
                    while step < job.outputs.end {
                        let steps = S::LANES.min(job.outputs.end - step);
                        let mut square = [simd.zero(); 16];
                        for lane in (0..count).step_by(PANEL) {
                            let (at, stride) = packing.panel(job.first_block + block, first + lane);
                            let scales = packing.panel_scales(job.first_block + block, first + lane);
                            let scale = scales + step / GROUP * stride;
                            for v in 0..width {
                                if lane + v * S::LANES >= count {
                                    break;
                                }
                                let mut xs = simd.load(x.add(lane + v * S::LANES));
                                if W::SCALED && !by_step {
                                    xs = simd.mul(xs, job.source.scales(simd, scale + v * S::LANES));
                                }
                                let at = at + step * stride + v * S::LANES;
                                if by_step {
                                    for i in 0..steps {
                                        let w = job.source.codes(simd, at + i * stride);
                                        let w = simd.mul(w, job.source.scale(simd, scales + step + i));
                                        square[i] = simd.mul_add(w, xs, square[i]);
                                    }
                                } else if steps == S::LANES {
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
                        if contiguous && steps == S::LANES {
                            let out = output.wrapping_add(job.output(block, step));
                            simd.store(out, if overwrite { total } else { simd.add(simd.load(out), total) });
                        } else {
                            let mut values = [T::default(); 16];
                            simd.store(values.as_mut_ptr(), total);
                            for i in 0..steps {
                                let out = output.wrapping_add(job.output(block, step + i));
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
