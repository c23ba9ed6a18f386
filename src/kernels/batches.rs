//! Products of several batch rows: inputs are packed in groups of rows, and vectors of outputs meet them step by step.
//!
//! Packed weights are used where they lie. Others are decoded, a stretch of outputs at a time, into the order in which they are used.
//! Nothing is summed over the lanes of a vector, and no lane is idle.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::gemm::{Io, Job, LINE};
use super::level::{Kernel, Level};
use super::packing::{Lanes, PANEL, Packing};
use super::panels::{Inputs, Stream, put, tile};
use super::simd::{Simd, prefetch, shuffle, transpose, vectors};
use super::source::{Source, Stored};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::GROUP;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Batch rows of a group: with two vectors of outputs, 16 sums that do not wait for each other.
pub(crate) const ROWS: usize = 8;
/// Batch rows packed at once.
const BATCH: usize = 128;
/// Steps packed at once: with a group of rows, a panel of them fills a first-level cache. Whole groups have the same sums in every part of a batch.
pub(super) const DEPTH: usize = 256;
/// Steps between which weights are asked for.
const TOGETHER: usize = 4;
/// Outputs of a block below which its inputs are used where they lie: packing them would cost as much as it gains.
const REUSED: usize = 128;

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

/// The product of a job.
pub(super) struct Batches<'a, 'j, T, W>(pub(super) &'a Job<'j, T, W>, pub(super) Level);

impl<T: Scalar, W: Source> Kernel<T> for Batches<'_, '_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let job = self.0;
        let (map, forward) = (job.map, job.op == Op::Forward);
        let depth = if forward { map.cols } else { map.rows };
        let in_place = match job.packing {
            Some(packing) if (packing.lanes == Lanes::Rows) == forward => {
                job.source.plain::<T>().map(|numbers| (packing, numbers))
            }
            _ => None,
        };
        let mut packed = Aligned::<T, { BATCH * DEPTH }>::new();
        let mut decoded = Aligned::<T, { DEPTH * PANEL }>::new();
        let (packed, decoded) = (packed.pointer(), decoded.pointer());
        let contiguous = forward || map.rows_contiguous();
        for first in (0..job.x.rows()).step_by(BATCH) {
            let batch = BATCH.min(job.x.rows() - first);
            for block in job.blocks.clone() {
                // A depth of zero still makes one pass, so that overwriting writes.
                for from in (0..depth.max(1)).step_by(DEPTH) {
                    let len = DEPTH.min(depth - from);
                    let pack = !contiguous || job.outputs.len() >= REUSED;
                    // SAFETY: batch rows and features are in range by the loop bounds and the job's promise, and the packed
                    // inputs have room for `batch` rows of as many steps.
                    let x = unsafe {
                        if pack {
                            let io = &job.io;
                            T::dispatch(self.1, Pack { io, block, first, batch, from, len, packed });
                            None
                        } else {
                            Some(job.x.as_ptr().add(first * job.x.stride() + job.input(block, from)))
                        }
                    };
                    let overwrite = from == 0 && job.update == Update::Overwrite;
                    for start in job.outputs.clone().step_by(PANEL) {
                        let outputs = PANEL.min(job.outputs.end - start);
                        // SAFETY: as above; decoded weights have room for `DEPTH` steps of a panel.
                        let (weights, width, next) = unsafe {
                            match (in_place, job.packing) {
                                (Some((packing, numbers)), _) => {
                                    let (at, width) = job.panel(packing, block, start, from);
                                    // What comes next.
                                    let (block, start, from) = if start + PANEL < job.outputs.end {
                                        (block, start + PANEL, from)
                                    } else if from + DEPTH < depth {
                                        (block, job.outputs.start, from + DEPTH)
                                    } else {
                                        (block + 1, job.outputs.start, 0)
                                    };
                                    let next = job.panel(packing, block, start, from).0;
                                    (numbers.add(at), width, numbers.wrapping_add(next))
                                }
                                (None, Some(p)) => {
                                    if (p.lanes == Lanes::Rows) == forward {
                                        decode_lanes(simd, job, p, block, start, outputs, from, len, decoded);
                                    } else {
                                        decode_steps(simd, job, p, block, start, outputs, from, len, decoded);
                                    }
                                    (decoded.cast_const(), PANEL, decoded.cast_const())
                                }
                                (None, None) => {
                                    decode_rows(simd, job, block, start, outputs, from, len, decoded);
                                    (decoded.cast_const(), PANEL, decoded.cast_const())
                                }
                            }
                        };
                        let w =
                            Stream { source: Numbers(weights), at: 0, width, len, scale: 0, scale_width: 0 };
                        let end = start + outputs;
                        let io = &job.io;
                        T::dispatch(
                            self.1,
                            Run { io, block, lane: start, end, first, batch, x, packed, overwrite, w, next },
                        );
                    }
                }
            }
        }
    }
}

/// Packs steps `from..from + len` of batch rows `first..first + batch`: group after group, for each step the rows of the group, with gaps where
/// those of the last one are fewer than [`ROWS`].
struct Pack<'a, 'j, T> {
    io: &'a Io<'j, T>,
    block: usize,
    first: usize,
    batch: usize,
    from: usize,
    len: usize,
    packed: *mut T,
}

impl<T: Scalar> Kernel<T> for Pack<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { io, block, first, batch, from, len, packed } = self;
        let (map, forward) = (io.map, io.op == Op::Forward);
        let contiguous = forward || map.rows_contiguous();
        // SAFETY: the caller's.
        unsafe {
            for group in (0..batch).step_by(ROWS) {
                let rows = ROWS.min(batch - group);
                let to = packed.add(group * len);
                let x = io.x.as_ptr().add((first + group) * io.x.stride());
                let mut k = 0;
                while k < len {
                    // Steps whose inputs lie side by side.
                    let run = if contiguous { len } else { map.group - (from + k) % map.group }.min(len - k);
                    let (x, to) = (x.add(io.input(block, from + k)), to.add(k * ROWS));
                    k += run;
                    if rows < ROWS || run < ROWS / 2 {
                        for (i, r) in (0..run).flat_map(|i| (0..rows).map(move |r| (i, r))) {
                            *to.add(i * ROWS + r) = *x.add(r * io.x.stride() + i);
                        }
                        continue;
                    }
                    // A vector of each row at a time.
                    for i in (0..run).step_by(S::LANES) {
                        let count = S::LANES.min(run - i);
                        let steps: [S::V; ROWS] = vectors(simd, |r| {
                            let x = x.add(r * io.x.stride() + i);
                            if count == S::LANES { simd.load(x) } else { simd.load_part(x, count) }
                        });
                        let steps = shuffle(simd, steps, ROWS.ilog2());
                        let (to, numbers) = (to.add(i * ROWS), count * ROWS);
                        for (v, at) in (0..numbers).step_by(S::LANES).enumerate() {
                            let left = numbers - at;
                            if left >= S::LANES {
                                simd.store(to.add(at), steps[v]);
                            } else {
                                simd.store_part(to.add(at), steps[v], left);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// All batch rows with the weights of one panel. Compiled once for all storages.
struct Run<'a, 'j, T> {
    io: &'a Io<'j, T>,
    block: usize,
    lane: usize,
    end: usize,
    first: usize,
    batch: usize,
    /// Inputs as they lie; packed ones where there are none.
    x: Option<*const T>,
    packed: *const T,
    overwrite: bool,
    w: Stream<Numbers<T>>,
    /// The weights that come next; these ones where those are decoded first.
    next: *const T,
}

impl<T: Scalar> Kernel<T> for Run<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { io, block, lane, end, first, batch, x, packed, overwrite, w, next } = self;
        let full = w.width == PANEL;
        // SAFETY: the caller's.
        unsafe {
            let mut from = 0;
            while lane + from < end {
                let part = Stream { at: w.at + from, ..w };
                let feature = io.output(block, lane + from);
                let wide = end - lane - from > S::LANES;
                let pair = pair(io, block, lane + from..end, S::LANES);
                let mut row = 0;
                while row < batch {
                    let left = ROWS.min(batch - row / ROWS * ROWS) - row % ROWS;
                    let inputs = match x {
                        Some(x) => Inputs { first: x.add(row * io.x.stride()), row: io.x.stride(), step: 1 },
                        None => {
                            let group = row / ROWS * ROWS;
                            Inputs { first: packed.add(group * w.len + row - group), row: 1, step: ROWS }
                        }
                    };
                    macro_rules! part {
                        ($r:expr, $v:expr, sums: $sums:expr) => {{
                            // Outputs that are added to are on their way while the sums are made.
                            for r in 0..if overwrite { 0 } else { $r } {
                                let y = io.y.0.wrapping_add((first + row + r) * io.y_stride + feature);
                                prefetch(y.cast());
                                prefetch(y.wrapping_add($v * S::LANES - 1).cast());
                            }
                            let sums: [[S::V; $v]; $r] = $sums;
                            if let Some(features) = pair {
                                // A loop by itself, for which sums stay in registers.
                                for r in 0..$r {
                                    let y = io.y.0.wrapping_add((first + row + r) * io.y_stride);
                                    for v in 0..$v {
                                        let (y, sum) = (y.wrapping_add(features[v]), sums[r][v]);
                                        simd.store(y, if overwrite { sum } else { simd.add(simd.load(y), sum) });
                                    }
                                }
                            } else {
                                for r in 0..$r {
                                    put(simd, io, block, first + row + r, lane + from, end, &sums[r], overwrite);
                                }
                            }
                            row += $r;
                        }};
                        ($r:expr, $v:expr, $u:expr) => {
                            part!($r, $v, sums: tile::<T, S, Numbers<T>, $r, $v, $u, 1, false>(simd, part, inputs))
                        };
                        ($r:expr) => {{
                            // These rows' share of the weights that come next: all of them at once would wait for memory.
                            let ahead = next.wrapping_add((from + 2 * S::LANES * row / batch) * w.len);
                            let bytes = (2 * S::LANES * size_of::<T>() * TOGETHER * $r).div_ceil(batch);
                            let (weights, ahead) = (w.source.0.add(part.at), (ahead.cast(), bytes));
                            // Strides are constants, for which the loop is compiled.
                            match x {
                                None => {
                                    let x = Inputs { row: 1, step: ROWS, ..inputs };
                                    part!($r, 2, sums: full_tile::<T, S, $r>(simd, weights, x, w.len, ahead))
                                }
                                Some(_) => {
                                    let x = Inputs { step: 1, ..inputs };
                                    part!($r, 2, sums: full_tile::<T, S, $r>(simd, weights, x, w.len, ahead))
                                }
                            }
                        }};
                    }
                    match left {
                        8.. if S::REGISTERS == 32 && wide && full => part!(8),
                        8.. if S::REGISTERS == 32 && wide => part!(8, 2, 1),
                        8.. if S::REGISTERS == 32 => part!(8, 1, 1),
                        4.. if wide && full => part!(4),
                        4.. if wide => part!(4, 2, 1),
                        4.. => part!(4, 1, 2),
                        2.. if wide => part!(2, 2, 2),
                        2.. => part!(2, 1, 2),
                        _ if wide => part!(1, 2, 4),
                        _ => part!(1, 1, 4),
                    }
                }
                from += if wide { 2 * S::LANES } else { S::LANES };
            }
        }
    }
}

/// Where the outputs of two vectors of `len` lanes begin, if there are as many lanes and the outputs of each vector lie side by side.
#[inline(always)]
fn pair<T>(io: &Io<'_, T>, block: usize, lanes: Range<usize>, len: usize) -> Option<[usize; 2]> {
    let firsts = [lanes.start, lanes.start + len];
    let beside = |first| io.op == Op::Transpose || io.map.consecutive(first, len);
    let both = lanes.len() >= 2 * len && firsts.into_iter().all(beside);
    both.then(|| firsts.map(|first| io.output(block, first)))
}

/// `R` batch rows times two vectors of a full panel: the loop that large batches spend their time in, with
/// nothing in it but its loads and multiply-adds. Every [`TOGETHER`] steps it asks for some bytes that are used later, from the first one of `ahead`
/// on.
///
/// # Safety
/// The inputs have `R` rows and `len` steps, and so has the panel.
#[inline(always)]
unsafe fn full_tile<T: Scalar, S: Simd<T>, const R: usize>(
    simd: S,
    mut w: *const T,
    x: Inputs<T>,
    len: usize,
    (mut ahead, bytes): (*const u8, usize),
) -> [[S::V; 2]; R] {
    let mut sums = [[simd.zero(); 2]; R];
    let Inputs { first: mut x, row, step } = x;
    // SAFETY: the caller's.
    unsafe {
        macro_rules! step {
            ($k:expr) => {
                let w: [S::V; 2] = vectors(simd, |v| simd.load(w.add($k * PANEL + v * S::LANES)));
                for r in 0..R {
                    let x = simd.splat(*x.add(r * row + $k * step));
                    for v in 0..2 {
                        sums[r][v] = simd.mul_add(w[v], x, sums[r][v]);
                    }
                }
            };
        }
        for _ in 0..len / TOGETHER {
            for line in (0..bytes).step_by(LINE) {
                prefetch(ahead.wrapping_add(line));
            }
            ahead = ahead.wrapping_add(bytes);
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            (w, x) = (w.wrapping_add(TOGETHER * PANEL), x.wrapping_add(TOGETHER * step));
        }
        for _ in 0..len % TOGETHER {
            step!(0);
            (w, x) = (w.wrapping_add(PANEL), x.wrapping_add(step));
        }
    }
    sums
}

/// Decodes a panel whose lanes are outputs.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn decode_lanes<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    job: &Job<'_, T, W>,
    packing: Packing,
    block: usize,
    start: usize,
    outputs: usize,
    from: usize,
    len: usize,
    decoded: *mut T,
) {
    let (at, width) = job.panel(packing, block, start, from);
    let scales = job.panel_scales(packing, block, start, from);
    let by_step = packing.lanes == Lanes::Cols;
    // SAFETY: the caller's.
    unsafe {
        for lane in (0..outputs).step_by(S::LANES) {
            for group in (0..len).step_by(GROUP) {
                let of_lanes = if W::SCALED && !by_step {
                    job.source.scales(simd, scales + group / GROUP * width + lane)
                } else {
                    simd.zero()
                };
                for k in group..len.min(group + GROUP) {
                    let mut w = job.source.codes(simd, at + k * width + lane);
                    if W::SCALED && by_step {
                        w = simd.mul(w, job.source.scale(simd, scales + k));
                    } else if W::SCALED {
                        w = simd.mul(w, of_lanes);
                    }
                    simd.store(decoded.add(k * PANEL + lane), w);
                }
            }
        }
    }
}

/// Decodes the weights of outputs that are steps of panels: squares are turned.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn decode_steps<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    job: &Job<'_, T, W>,
    packing: Packing,
    block: usize,
    start: usize,
    outputs: usize,
    from: usize,
    len: usize,
    decoded: *mut T,
) {
    let by_step = packing.lanes == Lanes::Cols;
    // SAFETY: the caller's; `from` is a multiple of PANEL, so that vectors of lanes lie in one panel.
    unsafe {
        for lane in (0..len).step_by(S::LANES) {
            let first = (from + lane) / PANEL * PANEL;
            let (at, width) = job.panel(packing, block, first, start);
            let scales = job.panel_scales(packing, block, first, start);
            let inside = from + lane - first;
            for step in (0..outputs).step_by(S::LANES) {
                let mut square = [simd.zero(); 16];
                let of_lanes = if W::SCALED && !by_step {
                    job.source.scales(simd, scales + step / GROUP * width + inside)
                } else {
                    simd.zero()
                };
                for i in 0..S::LANES.min(outputs - step) {
                    let w = job.source.codes(simd, at + (step + i) * width + inside);
                    square[i] = match W::SCALED {
                        false => w,
                        true if by_step => simd.mul(w, job.source.scale(simd, scales + step + i)),
                        true => simd.mul(w, of_lanes),
                    };
                }
                let square = transpose(simd, square);
                for i in 0..S::LANES.min(len - lane) {
                    simd.store(decoded.add((lane + i) * PANEL + step), square[i]);
                }
            }
        }
    }
}

/// Decodes rows of weights: in their order where outputs are columns, turned where they are rows.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn decode_rows<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    job: &Job<'_, T, W>,
    block: usize,
    start: usize,
    outputs: usize,
    from: usize,
    len: usize,
    decoded: *mut T,
) {
    let first = job.first + block * job.map.rows;
    let source = job.source;
    // SAFETY: the caller's.
    unsafe {
        if job.op == Op::Transpose {
            for k in 0..len {
                for o in (0..outputs).step_by(S::LANES) {
                    prefetch(source.address(first + from + k + ROWS, job.column + start + o));
                    let left = job.map.cols - start - o;
                    let numbers = load_row(simd, job, first + from + k, start + o, left);
                    simd.store(decoded.add(k * PANEL + o), numbers);
                }
            }
            return;
        }
        for o in (0..outputs).step_by(S::LANES) {
            for k in (0..len).step_by(S::LANES) {
                let mut square = [simd.zero(); 16];
                for i in 0..S::LANES.min(outputs - o) {
                    let (row, left) = (first + start + o + i, job.map.cols - from - k);
                    square[i] = load_row(simd, job, row, from + k, left);
                }
                let square = transpose(simd, square);
                for i in 0..S::LANES.min(len - k) {
                    simd.store(decoded.add((k + i) * PANEL + o), square[i]);
                }
            }
        }
    }
}

/// `LANES` numbers of a row from column `col` of those that take part on, of which `left` are wanted. No closure: those are not always compiled with
/// the instructions of what calls them.
///
/// # Safety
/// Rows and columns are inside the source; columns are multiples of `LANES`.
#[inline(always)]
unsafe fn load_row<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    job: &Job<'_, T, W>,
    row: usize,
    col: usize,
    left: usize,
) -> S::V {
    let (source, col) = (job.source, job.column + col);
    // SAFETY: the caller's.
    unsafe { if left >= S::LANES { source.load(simd, row, col) } else { source.load_tail(simd, row, col) } }
}

/// Weights of the compute type, where they lie.
struct Numbers<T>(*const T);

impl<T> Clone for Numbers<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Numbers<T> {}

impl<N: Scalar> Stored for Numbers<N> {
    const SCALED: bool = false;
    const BYTES: usize = size_of::<N>();
    #[inline(always)]
    unsafe fn codes<T: Scalar, S: Simd<T>>(&self, simd: S, at: usize) -> S::V {
        // SAFETY: the caller's; `Run` computes with the type of these numbers.
        unsafe { simd.load(self.0.add(at).cast()) }
    }
    #[inline(always)]
    unsafe fn scales<T: Scalar, S: Simd<T>>(&self, simd: S, _: usize) -> S::V {
        simd.splat(T::one())
    }
    #[inline(always)]
    unsafe fn scale<T: Scalar, S: Simd<T>>(&self, simd: S, _: usize) -> S::V {
        simd.splat(T::one())
    }
    #[inline(always)]
    fn stream_address(&self, at: usize) -> *const u8 {
        self.0.wrapping_add(at).cast()
    }
}
