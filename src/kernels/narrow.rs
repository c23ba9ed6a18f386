//! Products with stacks of narrow blocks that share panels: the lanes of a vector belong to several blocks.
//!
//! The inputs of one batch row are turned first, so that for each step those of all blocks lie side by side; a permutation gives each
//! lane the input of its block. Lanes are in the order of the outputs, whatever the order of the blocks, so that sums are written as they are.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::batches::Aligned;
use super::gemm::{Io, Output};
use super::level::{Kernel, Level};
use super::packing::{FEWEST, Lanes, PANEL, Packing};
use super::panel_map::PanelMap;
use super::simd::{Simd, shuffle, transpose, vectors};
use super::source::Source;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::GROUP;
use std::ops::Range;

/// Turned inputs of a batch row at once.
const TURNED: usize = 2048;

/// Batch rows that meet a weight together.
const ROWS: usize = 4;

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// Numbers of a group's lanes: those of a vector that starts in any of [`MAX_LANES`] / 2 blocks.
const COUNTED: usize = FEWEST * MAX_LANES / 2 + MAX_LANES;

/// `BLOCKS[g][i] = i / g`: blocks of lanes in groups of `g`.
static BLOCKS: [[i32; COUNTED]; FEWEST] = {
    let mut all = [[0; COUNTED]; FEWEST];
    let mut g = 1;
    while g < FEWEST {
        let mut i = 0;
        while i < COUNTED {
            all[g][i] = (i / g) as i32;
            i += 1;
        }
        g += 1;
    }
    all
};

/// `REPEATED[k][r][i] = 2^k r + i mod 2^k`: number `r` of the rows of `2^k` that a vector holds, over and over.
static REPEATED: [[[i32; MAX_LANES]; MAX_LANES / 2]; 4] = {
    let mut all = [[[0; MAX_LANES]; MAX_LANES / 2]; 4];
    let mut k = 1;
    while k < 4 {
        let mut at = 0;
        while at < MAX_LANES * (MAX_LANES >> k) {
            let (r, i) = (at / MAX_LANES, at % MAX_LANES);
            all[k][r][i] = ((r << k) + i % (1 << k)) as i32;
            at += 1;
        }
        k += 1;
    }
    all
};

/// Some batch rows and lanes of a product.
struct Task<'a, T, W> {
    source: W,
    packing: Packing,
    /// The blocks, their lanes as rows.
    map: PanelMap,
    /// The blocks, their steps as rows.
    steps: PanelMap,
    io: Io<'a, T>,
    /// Lanes to produce; all of them where the outputs are steps.
    lanes: Range<usize>,
}

/// The product of an operation whose operands fit the packing's blocks, in up to `tasks` tasks.
#[inline(never)]
pub(super) fn multiply<T: Scalar, W: Source>(
    source: W,
    packing: Packing,
    io: Io<'_, T>,
    tasks: usize,
    level: Level,
) {
    if let (Some(map), Some(steps)) = (packing.shared_map(), packing.step_map()) {
        split(&Task { source, packing, map, steps, io, lanes: 0..packing.n_lanes() }, tasks, level);
    }
}

fn split<T: Scalar, W: Source>(task: &Task<'_, T, W>, tasks: usize, level: Level) {
    let halves = if tasks < 2 { None } else { task.halves() };
    let Some((left, right)) = halves else {
        // By themselves, for the size of their stack frames: one row does not pay for more.
        return match task.along() {
            true if task.io.x.rows() >= ROWS => T::dispatch(level, LaneProduct::<T, W, ROWS>(task, level)),
            true => T::dispatch(level, LaneProduct::<T, W, 1>(task, level)),
            false => T::dispatch(level, StepProduct(task)),
        };
    };
    let half = tasks / 2;
    super::team::join(|| split(&left, tasks - half, level), move || split(&right, half, level));
}

impl<'a, T, W: Source> Task<'a, T, W> {
    /// Whether the outputs are lanes.
    fn along(&self) -> bool {
        (self.packing.lanes == Lanes::Rows) == (self.io.op == Op::Forward)
    }

    /// Two tasks that together are this one, where it can be divided: no sum is.
    fn halves(&self) -> Option<(Self, Self)> {
        let Self { source, packing, map, steps, .. } = *self;
        let rows = self.io.x.rows();
        let part = |io, lanes| Self { source, packing, map, steps, io, lanes };
        if rows > 1 {
            let at = rows / 2;
            let left = Io { x: self.io.x.batch(0..at), ..self.io };
            let y = Output(self.io.y.0.wrapping_add(at * self.io.y_stride));
            let right = Io { x: self.io.x.batch(at..rows), y, ..self.io };
            return Some((part(left, self.lanes.clone()), part(right, self.lanes.clone())));
        }
        let Range { start, end } = self.lanes;
        let at = start + ((end - start) / 2).next_multiple_of(PANEL);
        (self.along() && at < end).then(|| (part(self.io, start..at), part(self.io, at..end)))
    }
}

/// The product of a task whose outputs are lanes, up to `R` batch rows at once.
struct LaneProduct<'t, 'a, T, W, const R: usize>(&'t Task<'a, T, W>, Level);

impl<T: Scalar, W: Source, const R: usize> Kernel<T> for LaneProduct<'_, '_, T, W, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        // SAFETY: `multiply` of `gemm` has checked that source, x and y fit the map.
        unsafe { lanes::<T, S, W, R>(simd, self.0, self.1) }
    }
}

/// The product of a task whose outputs are steps.
struct StepProduct<'t, 'a, T, W>(&'t Task<'a, T, W>);

impl<T: Scalar, W: Source> Kernel<T> for StepProduct<'_, '_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        // SAFETY: as above.
        unsafe { steps(simd, self.0) }
    }
}

/// Inputs of blocks `first ..` for steps `from .. from + len`, turned: for each step those of all blocks, `stride` numbers apart, and after
/// them the first ones again.
struct Turned<T> {
    numbers: *mut T,
    stride: usize,
    first: usize,
    blocks: usize,
    from: usize,
    len: usize,
}

impl<T> Clone for Turned<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Turned<T> {}

impl<T> Turned<T> {
    /// Whether a vector holds the inputs of all blocks, over and over.
    #[inline(always)]
    fn repeated(&self, lanes: usize) -> bool {
        self.stride == lanes
    }

    /// Where the first inputs of a vector of lanes lie, and which of them each lane takes.
    ///
    /// # Safety
    /// The block is one of those that are turned, and the phase less than the group.
    #[inline(always)]
    unsafe fn inputs<S: Simd<T>>(&self, simd: S, at: Place, group: usize) -> (*const T, S::Index) {
        let table = BLOCKS[group].as_ptr();
        // SAFETY: the caller's; fewer blocks than half the most lanes are repeated.
        unsafe {
            match self.repeated(S::LANES) {
                true => (self.numbers, simd.index(table.add(at.block * group + at.phase))),
                false => (self.numbers.add(at.block), simd.index(table.add(at.phase))),
            }
        }
    }
}

/// Outputs are lanes.
#[inline(always)]
unsafe fn lanes<T: Scalar, S: Simd<T>, W: Source, const R: usize>(
    simd: S,
    task: &Task<'_, T, W>,
    level: Level,
) {
    let PanelMap { blocks, rows, cols: depth, group, .. } = task.map;
    let mut numbers: [_; R] = std::array::from_fn(|_| Aligned::<T, TURNED>::new());
    let numbers: *mut T = numbers.as_mut_ptr().cast();
    // Blocks at once: all, unless a group of steps of them has no room; an even number, since two weights may share a byte.
    let most = blocks.min((TURNED / depth.min(GROUP) / S::LANES - 1) * S::LANES);
    let repeated = blocks < S::LANES && blocks.is_power_of_two();
    let stride = if repeated { S::LANES } else { (most.div_ceil(S::LANES) + 1) * S::LANES };
    let steps = if depth <= GROUP { depth } else { TURNED / stride / GROUP * GROUP };
    // Steps whose inputs lie side by side; where these are not all, all steps are turned at once.
    let own = task.steps.group;
    // SAFETY: the caller's; there is room for `steps` strides.
    unsafe {
        let mut row = 0;
        while row < task.io.x.rows() {
            let together = if row + R <= task.io.x.rows() { R } else { 1 };
            let x = task.io.x.as_ptr().add(row * task.io.x.stride());
            let y = task.io.y.0.add(row * task.io.y_stride);
            row += together;
            for first in (0..blocks).step_by(most) {
                let count = most.min(blocks - first);
                for from in (0..depth).step_by(steps) {
                    let len = steps.min(depth - from);
                    let turned = Turned { numbers, stride, first, blocks: count, from, len };
                    for (r, q) in (0..together).flat_map(|r| (0..depth / own).map(move |q| (r, q))) {
                        let x = x.add(r * task.io.x.stride() + (q * blocks + first) * own + from);
                        let numbers = numbers.add(r * TURNED + q * own * stride);
                        let turned = Turned { numbers, len: len.min(own), ..turned };
                        T::dispatch(level, Turn { x, depth: own, turned });
                    }
                    // Lanes of some blocks lie apart, group by group.
                    for i in 0..if count == blocks { 1 } else { rows / group } {
                        let mut range = task.lanes.clone();
                        if count < blocks {
                            let start = (i * blocks + first) * group;
                            range = range.start.max(start)..range.end.min(start + count * group);
                        }
                        if R > 1 && together == R {
                            rows_of::<T, S, W, R>(simd, task, turned, range, y);
                        } else {
                            rows_of::<T, S, W, 1>(simd, task, turned, range, y);
                        }
                    }
                }
            }
        }
    }
}

/// Turns inputs, from the first one of the first block on. Compiled once for all storages.
struct Turn<T> {
    x: *const T,
    depth: usize,
    turned: Turned<T>,
}

impl<T: Scalar> Kernel<T> for Turn<T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { x, depth, turned } = self;
        let Turned { numbers, stride, blocks, len, .. } = turned;
        let repeated = turned.repeated(S::LANES);
        // SAFETY: the caller's: `blocks` rows of inputs, `depth` apart, and room for `len` strides.
        unsafe {
            let mut done = 0;
            if repeated && len == depth {
                macro_rules! all {
                    ($n:expr) => {{
                        let vectors: [S::V; $n] = vectors(simd, |v| simd.load(x.add(v * S::LANES)));
                        let vectors = shuffle(simd, vectors, blocks.ilog2());
                        let rows = &REPEATED[blocks.ilog2() as usize];
                        let each = S::LANES / blocks;
                        for r in 0..each {
                            let index = simd.index(rows[r].as_ptr());
                            for v in 0..$n {
                                let at = (v * each + r) * stride;
                                simd.store(numbers.add(at), simd.permute(vectors[v], index));
                            }
                        }
                        return;
                    }};
                }
                // Few blocks in whole vectors.
                match blocks * depth {
                    n if n == 2 * S::LANES => all!(2),
                    n if n == 4 * S::LANES => all!(4),
                    n if n == 8 * S::LANES => all!(8),
                    _ => {}
                }
            } else if len == depth {
                macro_rules! groups {
                    ($n:expr) => {{
                        while done + S::LANES <= blocks {
                            let from = x.add(done * depth);
                            let vectors: [S::V; $n] = vectors(simd, |v| simd.load(from.add(v * S::LANES)));
                            let vectors = shuffle(simd, vectors, S::LANES.ilog2());
                            for v in 0..$n {
                                simd.store(numbers.add(v * stride + done), vectors[v]);
                            }
                            done += S::LANES;
                        }
                    }};
                }
                // As many blocks as lanes in whole vectors.
                match depth {
                    1 => groups!(1),
                    2 => groups!(2),
                    4 => groups!(4),
                    8 => groups!(8),
                    16 => groups!(16),
                    _ => {}
                }
            }
            let end = if repeated { S::LANES } else { blocks + S::LANES };
            while done < end {
                if done == blocks {
                    for k in 0..len {
                        let row = numbers.add(k * stride);
                        simd.store(row.add(done), simd.load(row));
                    }
                    return;
                }
                for k in (0..len).step_by(S::LANES) {
                    let wanted = S::LANES.min(len - k);
                    let mut square = [simd.zero(); 16];
                    let mut block = done % blocks;
                    for i in 0..S::LANES {
                        let x = x.add(block * depth + k);
                        square[i] = if wanted == S::LANES { simd.load(x) } else { simd.load_part(x, wanted) };
                        block = if block + 1 == blocks { 0 } else { block + 1 };
                    }
                    let square = transpose(simd, square);
                    for i in 0..wanted {
                        simd.store(numbers.add((k + i) * stride + done), square[i]);
                    }
                }
                done += S::LANES;
            }
        }
    }
}

/// Where a vector of lanes begins: in a block of those that are turned, at a lane of a group.
#[derive(Clone, Copy)]
struct Place {
    block: usize,
    phase: usize,
}

/// The outputs of a range of lanes whose blocks are turned, in `R` batch rows.
#[inline(always)]
unsafe fn rows_of<T: Scalar, S: Simd<T>, W: Source, const R: usize>(
    simd: S,
    task: &Task<'_, T, W>,
    turned: Turned<T>,
    lanes: Range<usize>,
    y: *mut T,
) {
    let PanelMap { blocks, group, .. } = task.map;
    let (overwrite, stride) = (turned.from == 0 && task.io.update == Update::Overwrite, task.io.y_stride);
    let (further, phases) = (S::LANES / group % turned.blocks, S::LANES % group);
    let next = |at: Place| {
        let wraps = usize::from(at.phase + phases >= group);
        let (block, phase) = (at.block + further + wraps, at.phase + phases - wraps * group);
        Place { block: if block >= turned.blocks { block - turned.blocks } else { block }, phase }
    };
    let (mut lane, mut place) = (lanes.start, None);
    // SAFETY: the caller's; lanes stay below those of the range, and vectors in their panel.
    unsafe {
        while lane < lanes.end {
            let first = lane / PANEL * PANEL;
            let (at, width) = task.packing.panel(0, first);
            let scale = task.packing.panel_scales(0, first) + turned.from / GROUP * width;
            let at = at + turned.from * width;
            let end = lanes.end.min(first + PANEL);
            while lane < end {
                let here = place.unwrap_or_else(|| Place {
                    block: lane / group % blocks - turned.first,
                    phase: lane % group,
                });
                let then = next(here);
                let from = lane - first;
                if lane.is_multiple_of(S::LANES) && lane + 2 * S::LANES <= end {
                    let x = [turned.inputs(simd, here, group), turned.inputs(simd, then, group)];
                    let sums = sums::<T, S, W, R, 2>(simd, task, turned, at + from, width, scale + from, x);
                    for r in 0..R {
                        for v in 0..2 {
                            let (out, sum) = (y.add(r * stride + lane + v * S::LANES), sums[r][v]);
                            simd.store(out, if overwrite { sum } else { simd.add(simd.load(out), sum) });
                        }
                    }
                    lane += 2 * S::LANES;
                    place = Some(next(then));
                    continue;
                }
                let x = [turned.inputs(simd, here, group)];
                let sums = sums::<T, S, W, R, 1>(simd, task, turned, at + from, width, scale + from, x);
                let count = (S::LANES - lane % S::LANES).min(end - lane);
                for r in 0..R {
                    let (out, sum) = (y.add(r * stride + lane), sums[r][0]);
                    if count == S::LANES {
                        simd.store(out, if overwrite { sum } else { simd.add(simd.load(out), sum) });
                    } else {
                        let sum = if overwrite { sum } else { simd.add(simd.load_part(out, count), sum) };
                        simd.store_part(out, sum, count);
                    }
                }
                lane += count;
                place = (count == S::LANES).then_some(then);
            }
        }
    }
}

/// The sums of `V` vectors of lanes over the steps that are turned, in `R` batch rows: weights from number `at` on, `width` numbers apart.
#[inline(always)]
unsafe fn sums<T: Scalar, S: Simd<T>, W: Source, const R: usize, const V: usize>(
    simd: S,
    task: &Task<'_, T, W>,
    turned: Turned<T>,
    at: usize,
    width: usize,
    scale: usize,
    x: [(*const T, S::Index); V],
) -> [[S::V; V]; R] {
    let group = if W::SCALED { GROUP } else { turned.len };
    let (mut from, mut scale, mut totals) = (0, scale, [[simd.zero(); V]; R]);
    // SAFETY: the caller's.
    unsafe {
        while from < turned.len {
            let to = turned.len.min(from + group);
            let mut sums = [[[simd.zero(); V]; R]; 2];
            let mut k = from;
            macro_rules! step {
                ($k:expr, $u:expr) => {
                    for v in 0..V {
                        let w = task.source.codes(simd, at + $k * width + v * S::LANES);
                        for r in 0..R {
                            let xs = simd.load(x[v].0.add(r * TURNED + $k * turned.stride));
                            sums[$u][r][v] = simd.mul_add(w, simd.permute(xs, x[v].1), sums[$u][r][v]);
                        }
                    }
                };
            }
            while k + 2 <= to {
                step!(k, 0);
                step!(k + 1, 1);
                k += 2;
            }
            if k < to {
                step!(k, 0);
            }
            for v in 0..V {
                let scales = task.source.scales(simd, scale + v * S::LANES);
                for r in 0..R {
                    let sum = simd.add(sums[0][r][v], sums[1][r][v]);
                    totals[r][v] = if W::SCALED { simd.mul_add(sum, scales, totals[r][v]) } else { sum };
                }
            }
            scale += width;
            from = to;
        }
    }
    totals
}

/// Numbers of the sums of a batch row that are kept in whole vectors.
const KEPT: usize = 8192;

/// Outputs are steps: products of squares of lanes and steps are added up over vectors of the same blocks, then turned, and the lanes of a block
/// added up.
#[inline(always)]
unsafe fn steps<T: Scalar, S: Simd<T>, W: Source>(simd: S, task: &Task<'_, T, W>) {
    let PanelMap { blocks, cols: depth, group, .. } = task.map;
    let n_lanes = task.lanes.end;
    let vectors = n_lanes.div_ceil(S::LANES);
    // Vectors after which lanes belong to the same blocks again: both numbers divide it.
    let all = blocks * group;
    let period = all / S::LANES.min(1 << all.trailing_zeros());
    let mut kept = Aligned::<T, KEPT>::new();
    let kept = kept.pointer();
    // Sums of a block in whole vectors where there is room: parts of vectors that overlap are read back late.
    let wide = depth.next_multiple_of(S::LANES);
    let keeps = blocks.saturating_mul(wide) <= KEPT;
    let together = task.steps.rows_contiguous();
    // SAFETY: the caller's; kept sums have room for all blocks.
    unsafe {
        for row in 0..task.io.x.rows() {
            let x = task.io.x.as_ptr().add(row * task.io.x.stride());
            let y = task.io.y.0.add(row * task.io.y_stride);
            if keeps {
                (0..blocks * wide).step_by(S::LANES).for_each(|i| simd.store(kept.add(i), simd.zero()));
            } else if task.io.update == Update::Overwrite {
                (0..blocks * depth).for_each(|i| *y.add(i) = T::default());
            }
            for (start, from) in (0..period.min(vectors))
                .flat_map(|start| (0..depth).step_by(S::LANES).map(move |from| (start * S::LANES, from)))
            {
                let steps = S::LANES.min(depth - from);
                let mut square = [simd.zero(); 16];
                for lane in (start..n_lanes).step_by(period * S::LANES) {
                    let left = n_lanes - lane;
                    let mut xs = match left >= S::LANES {
                        true => simd.load(x.add(lane)),
                        false => simd.load_part(x.add(lane), left),
                    };
                    let first = lane / PANEL * PANEL;
                    let (at, width) = task.packing.panel(0, first);
                    let at = at + from * width + lane - first;
                    if W::SCALED {
                        let scale = task.packing.panel_scales(0, first) + from / GROUP * width + lane - first;
                        xs = simd.mul(xs, task.source.scales(simd, scale));
                    }
                    if steps == S::LANES {
                        for i in 0..S::LANES {
                            square[i] = simd.mul_add(task.source.codes(simd, at + i * width), xs, square[i]);
                        }
                    } else {
                        for i in 0..steps {
                            square[i] = simd.mul_add(task.source.codes(simd, at + i * width), xs, square[i]);
                        }
                    }
                }
                let square = transpose(simd, square);
                // Lanes beyond the last one are zeros, of whatever block.
                let count = S::LANES.min(n_lanes - start);
                let (mut i, mut block, mut phase) = (0, start / group % blocks, start % group);
                while i < count {
                    let end = count.min(i + group - phase);
                    let mut sum = square[i];
                    for j in i + 1..end {
                        sum = simd.add(sum, square[j]);
                    }
                    if keeps {
                        let out = kept.add(block * wide + from);
                        simd.store(out, simd.add(simd.load(out), sum));
                    } else if together {
                        let out = y.add(block * depth + from);
                        simd.store_part(out, simd.add(simd.load_part(out, steps), sum), steps);
                    } else {
                        let mut sums = [T::default(); MAX_LANES];
                        simd.store(sums.as_mut_ptr(), sum);
                        for (k, sum) in sums.iter().enumerate().take(steps) {
                            let out = y.add(task.steps.row_feature(block, from + k));
                            *out += *sum;
                        }
                    }
                    (i, phase) = (end, 0);
                    block = if block + 1 == blocks { 0 } else { block + 1 };
                }
            }
            if keeps {
                for block in 0..blocks {
                    let kept = kept.add(block * wide);
                    for k in 0..depth {
                        let (sum, y) = (*kept.add(k), y.add(task.steps.row_feature(block, k)));
                        *y = if task.io.update == Update::Overwrite { sum } else { *y + sum };
                    }
                }
            }
        }
    }
}
