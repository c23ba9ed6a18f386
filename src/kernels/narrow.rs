//! Products with stacks of narrow blocks that share panels: the lanes of a vector belong to several blocks.
//!
//! The inputs of one batch row are turned first, so that for each step those of all blocks lie side by side; a permutation gives each
//! lane the input of its block. Lanes are in the order of the outputs, whatever the order of the blocks, so that sums are written as they are.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::batches::Aligned;
use super::gemm::{Io, Output, PanelMap};
use super::level::{Kernel, Level};
use super::packing::{FEWEST, Lanes, PANEL, Packing};
use super::simd::{Simd, shuffle, transpose};
use super::source::Source;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::GROUP;
use std::ops::Range;

/// Turned inputs at once.
const TURNED: usize = 4096;

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// `QUOTIENTS[g][i] = i / g`: in lanes from number `i` of a group on, how many groups further each lane is.
static QUOTIENTS: [[i32; FEWEST + MAX_LANES]; FEWEST] = {
    let mut all = [[0; FEWEST + MAX_LANES]; FEWEST];
    let mut g = 1;
    while g < FEWEST {
        let mut i = 0;
        while i < FEWEST + MAX_LANES {
            all[g][i] = (i / g) as i32;
            i += 1;
        }
        g += 1;
    }
    all
};

/// Some batch rows and lanes of a product.
struct Task<'a, T, W> {
    source: W,
    packing: Packing,
    /// The blocks, their lanes as rows.
    map: PanelMap,
    io: Io<'a, T>,
    /// Lanes to produce; all of them where the outputs are steps.
    lanes: Range<usize>,
}

/// The product of an operation whose operands fit the packing's blocks, in up to `tasks` tasks.
pub(super) fn multiply<T: Scalar, W: Source>(
    source: W,
    packing: Packing,
    io: Io<'_, T>,
    tasks: usize,
    level: Level,
) {
    if let Some(map) = packing.shared {
        split(&Task { source, packing, map, io, lanes: 0..packing.n_lanes() }, tasks, level);
    }
}

fn split<T: Scalar, W: Source>(task: &Task<'_, T, W>, tasks: usize, level: Level) {
    let halves = if tasks < 2 { None } else { task.halves() };
    let Some((left, right)) = halves else { return T::dispatch(level, task) };
    let half = tasks / 2;
    super::team::join(|| split(&left, tasks - half, level), || split(&right, half, level));
}

impl<'a, T, W: Source> Task<'a, T, W> {
    /// Whether the outputs are lanes.
    fn along(&self) -> bool {
        (self.packing.lanes == Lanes::Rows) == (self.io.op == Op::Forward)
    }

    /// Two tasks that together are this one, where it can be divided: no sum is.
    fn halves(&self) -> Option<(Self, Self)> {
        let (source, packing, map, rows) = (self.source, self.packing, self.map, self.io.x.rows());
        let part = |io, lanes| Self { source, packing, map, io, lanes };
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

impl<T: Scalar, W: Source> Kernel<T> for &Task<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        // SAFETY: `multiply` of `gemm` has checked that source, x and y fit the map.
        unsafe { if self.along() { lanes(simd, self) } else { steps(simd, self) } }
    }
}

/// Inputs of blocks `first ..` for steps `from .. from + len`, turned: block after block for each step, `stride` numbers apart.
struct Turned<T> {
    numbers: *mut T,
    stride: usize,
    first: usize,
    blocks: usize,
    from: usize,
    len: usize,
    /// Fewer blocks than lanes, a power of two of them: a row is read from its start, and lanes find their block in it.
    few: bool,
}

/// Outputs are lanes.
#[inline(always)]
unsafe fn lanes<T: Scalar, S: Simd<T>, W: Source>(simd: S, task: &Task<'_, T, W>) {
    let PanelMap { blocks, rows, cols: depth, group } = task.map;
    let mut numbers = Aligned::<T, TURNED>::new();
    let numbers = numbers.pointer();
    let few = blocks < S::LANES && blocks.is_power_of_two();
    // Blocks at once: all, unless a group of steps of them has no room.
    // An even number, since two numbers may share a byte.
    let most = blocks.min((TURNED / depth.min(GROUP) - S::LANES) & !1);
    let (stride, room) = if few { (blocks, TURNED - S::LANES) } else { (most + S::LANES, TURNED) };
    let steps = if depth <= GROUP { depth } else { room / stride / GROUP * GROUP };
    // SAFETY: the caller's; turned inputs have room for `steps` strides, and a vector beyond them where there are few blocks.
    unsafe {
        for row in 0..task.io.x.rows() {
            let x = task.io.x.as_ptr().add(row * task.io.x.stride());
            let y = task.io.y.0.add(row * task.io.y_stride);
            for first in (0..blocks).step_by(most) {
                let count = most.min(blocks - first);
                for from in (0..depth).step_by(steps) {
                    let len = steps.min(depth - from);
                    let turned = Turned { numbers, stride, first, blocks: count, from, len, few };
                    turn(simd, x, task.map, &turned);
                    if count == blocks {
                        rows_of(simd, task, &turned, task.lanes.clone(), y);
                        continue;
                    }
                    for groups in (0..rows / group).map(|i| (i * blocks + first) * group) {
                        let range = groups.max(task.lanes.start)..(groups + count * group).min(task.lanes.end);
                        rows_of(simd, task, &turned, range, y);
                    }
                }
            }
        }
    }
}

/// Turns inputs. After the last block come those of the first ones again, for vectors of lanes that go on there.
#[inline(always)]
unsafe fn turn<T: Scalar, S: Simd<T>>(simd: S, x: *const T, map: PanelMap, turned: &Turned<T>) {
    let Turned { numbers, stride, first, blocks, from, len, few } = *turned;
    let depth = map.cols;
    // SAFETY: the caller's.
    unsafe {
        let mut done = 0;
        // Vectors that hold whole blocks are shuffled in registers.
        macro_rules! squares {
            ($n:expr, $rows:expr, $step:expr) => {{
                let rows: usize = $rows;
                while done + rows <= blocks {
                    let from = x.add((first + done) * depth);
                    let vectors: [S::V; $n] = std::array::from_fn(|v| simd.load(from.add(v * S::LANES)));
                    let vectors = shuffle(simd, vectors, rows.ilog2());
                    for v in 0..$n {
                        simd.store(numbers.add(v * $step + done), vectors[v]);
                    }
                    done += rows;
                }
            }};
        }
        if few {
            match blocks * depth {
                _ if len < depth => {}
                n if n == 2 * S::LANES => squares!(2, blocks, S::LANES),
                n if n == 4 * S::LANES => squares!(4, blocks, S::LANES),
                n if n == 8 * S::LANES => squares!(8, blocks, S::LANES),
                n if n == 16 * S::LANES => squares!(16, blocks, S::LANES),
                _ => {}
            }
        } else {
            match depth {
                2 => squares!(2, S::LANES, stride),
                4 => squares!(4, S::LANES, stride),
                8 => squares!(8, S::LANES, stride),
                16 => squares!(16, S::LANES, stride),
                _ => {}
            }
        }
        for block in done..blocks {
            let x = x.add((first + block) * depth + from);
            for k in 0..len {
                *numbers.add(k * stride + block) = *x.add(k);
            }
        }
        if few {
            simd.store(numbers.add(len * stride), simd.zero());
            return;
        }
        let mut next = 0;
        for i in 0..S::LANES {
            let x = x.add((first + next) * depth + from);
            for k in 0..len {
                *numbers.add(k * stride + blocks + i) = *x.add(k);
            }
            next = if next + 1 == blocks { 0 } else { next + 1 };
        }
    }
}

/// The outputs of a range of lanes whose blocks are turned.
#[inline(always)]
unsafe fn rows_of<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    task: &Task<'_, T, W>,
    turned: &Turned<T>,
    lanes: Range<usize>,
    y: *mut T,
) {
    let PanelMap { blocks, group, .. } = task.map;
    let overwrite = turned.from == 0 && task.io.update == Update::Overwrite;
    let quotients = &QUOTIENTS[group];
    // Blocks and lanes of a group from one vector to the next.
    let (more, phases) = (S::LANES / group % turned.blocks, S::LANES % group);
    let (mut lane, mut block, mut phase) = (lanes.start, 0, 0);
    let mut known = false;
    // SAFETY: the caller's; lanes stay below `LANES`, and vectors in their panel.
    unsafe {
        while lane < lanes.end {
            if !known {
                (block, phase) = (lane / group % blocks - turned.first, lane % group);
            }
            let count = (S::LANES - lane % S::LANES).min(lanes.end - lane);
            let (index, x) = if turned.few {
                let mask = (turned.blocks - 1) as i32;
                let lanes: [i32; MAX_LANES] =
                    std::array::from_fn(|i| (quotients[phase + i] + block as i32) & mask);
                (simd.index(lanes.as_ptr()), turned.numbers)
            } else {
                (simd.index(quotients.as_ptr().add(phase)), turned.numbers.add(block))
            };
            let sum = sums(simd, task, turned, lane, index, x);
            let out = y.add(lane);
            if count == S::LANES {
                simd.store(out, if overwrite { sum } else { simd.add(simd.load(out), sum) });
            } else {
                let sum = if overwrite { sum } else { simd.add(simd.load_part(out, count), sum) };
                simd.store_part(out, sum, count);
            }
            lane += count;
            known = count == S::LANES;
            (block, phase) = (block + more, phase + phases);
            if phase >= group {
                (block, phase) = (block + 1, phase - group);
            }
            if block >= turned.blocks {
                block -= turned.blocks;
            }
        }
    }
}

/// The sums of a vector of lanes over the steps that are turned.
#[inline(always)]
unsafe fn sums<T: Scalar, S: Simd<T>, W: Source>(
    simd: S,
    task: &Task<'_, T, W>,
    turned: &Turned<T>,
    lane: usize,
    index: S::Index,
    x: *const T,
) -> S::V {
    let first = lane / PANEL * PANEL;
    let (at, width) = task.packing.panel(0, first);
    let at = at + turned.from * width + lane - first;
    let mut scale = task.packing.panel_scales(0, first) + turned.from / GROUP * width + lane - first;
    let group = if W::SCALED { GROUP } else { turned.len };
    let (mut from, mut total) = (0, simd.zero());
    // SAFETY: the caller's.
    unsafe {
        let step = |k: usize, sum: S::V| {
            let xs = simd.permute(simd.load(x.add(k * turned.stride)), index);
            simd.mul_add(task.source.codes(simd, at + k * width), xs, sum)
        };
        while from < turned.len {
            let to = turned.len.min(from + group);
            let (mut even, mut odd) = (simd.zero(), simd.zero());
            let mut k = from;
            while k + 2 <= to {
                even = step(k, even);
                odd = step(k + 1, odd);
                k += 2;
            }
            if k < to {
                even = step(k, even);
            }
            let sum = simd.add(even, odd);
            total = if W::SCALED { simd.mul_add(sum, task.source.scales(simd, scale), total) } else { sum };
            scale += width;
            from = to;
        }
    }
    total
}

/// Outputs are steps: the products of squares of lanes and steps are turned, and the lanes of a block added up.
#[inline(always)]
unsafe fn steps<T: Scalar, S: Simd<T>, W: Source>(simd: S, task: &Task<'_, T, W>) {
    let PanelMap { blocks, cols: depth, group, .. } = task.map;
    let n_lanes = task.lanes.end;
    // SAFETY: the caller's.
    unsafe {
        for row in 0..task.io.x.rows() {
            let x = task.io.x.as_ptr().add(row * task.io.x.stride());
            let y = task.io.y.0.add(row * task.io.y_stride);
            if task.io.update == Update::Overwrite {
                (0..blocks * depth).for_each(|i| *y.add(i) = T::default());
            }
            for lane in (0..n_lanes).step_by(S::LANES) {
                let count = S::LANES.min(n_lanes - lane);
                let xs = if count == S::LANES {
                    simd.load(x.add(lane))
                } else {
                    simd.load_part(x.add(lane), count)
                };
                let first = lane / PANEL * PANEL;
                let (at, width) = task.packing.panel(0, first);
                let (at, scale) = (at + lane - first, task.packing.panel_scales(0, first) + lane - first);
                for from in (0..depth).step_by(S::LANES) {
                    let steps = S::LANES.min(depth - from);
                    let xs = match W::SCALED {
                        true => simd.mul(xs, task.source.scales(simd, scale + from / GROUP * width)),
                        false => xs,
                    };
                    let mut square = [simd.zero(); 16];
                    for i in 0..steps {
                        square[i] = simd.mul(task.source.codes(simd, at + (from + i) * width), xs);
                    }
                    let square = transpose(simd, square);
                    let mut i = 0;
                    while i < count {
                        let (block, run) = ((lane + i) / group % blocks, group - (lane + i) % group);
                        let end = count.min(i + run);
                        let mut sum = square[i];
                        for j in i + 1..end {
                            sum = simd.add(sum, square[j]);
                        }
                        let out = y.add(block * depth + from);
                        if steps == S::LANES {
                            simd.store(out, simd.add(simd.load(out), sum));
                        } else {
                            simd.store_part(out, simd.add(simd.load_part(out, steps), sum), steps);
                        }
                        i = end;
                    }
                }
            }
        }
    }
}
