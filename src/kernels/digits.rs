//! Products of a few batch rows with packed integer codes, in integers, where the machine multiplies bytes.
//!
//! The inputs of a group of steps become 32-bit integers times a power of two, each of four digits of a byte. Products of codes and digits are
//! added up exactly; the sums of a group become one float for each lane, which is multiplied by its scale. An input loses what lies below
//! 2^-30 of the largest one in its group. So rows of inputs of which many are far smaller than others near them are left to the floats.
//!
//! Scales that lie along the steps are multiplied into the inputs first, for each panel anew: one batch row is worth that. A panel for which
//! these products are of very unlike sizes is left to the floats.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::batches::Aligned;
use super::gemm::{Io, Job, LINE};
use super::level::Level;
use super::packing::{Lanes, PANEL, Packing};
use super::panels::{prefetch_narrow, put, streamed};
use super::simd::{Simd, Vnni, prefetch_near};
use super::source::{Coded, Source};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::GROUP;
use half::bf16;
use std::any::TypeId;
use std::arch::x86_64::__m512;
use std::ops::Range;

/// Batch rows of a product. More of them are worth decoding the codes for.
const MOST_ROWS: usize = 12;

/// Steps of all batch rows whose digits are kept.
const STEPS: usize = 8192;

/// Groups of steps whose scales are fetched ahead.
const SCALES_AHEAD: usize = 8;

/// Digits of an input.
const DIGITS: usize = 4;

/// Steps whose digits meet a vector of codes at a time.
const QUAD: usize = 4;

/// Inputs of which any group is part, from one multiple of its length on.
const NEAR: usize = 2 * GROUP;

/// How many of those may be smaller than 2^-10 of the largest: the others lose 2^-20 of themselves at most.
const MOST_SMALL: u32 = 8;

/// The biased exponent of what is not finite.
const INFINITE: u32 = 255;

/// The least biased exponent of a group's largest input: inputs below 2^-97 lose more than others.
const LEAST_EXPONENT: u32 = 30;

/// A job of `f32`, of which `product` needs no more than this.
struct Product<'a> {
    codes: Coded<'a>,
    packing: Packing,
    io: Io<'a, f32>,
    first_block: usize,
    blocks: Range<usize>,
    outputs: Range<usize>,
}

/// Whether a product is for this. It is asked once, for the whole product: whichever threads there are, they do the same.
pub(super) fn serves<T: Scalar, W: Source>(job: &Job<'_, T, W>, level: Level) -> bool {
    let (Some(codes), Some(packing), Some(io)) = (job.source.coded(), job.packing, singles(job)) else {
        return false;
    };
    if level != Level::Avx512 || !Vnni::found() {
        return false;
    }
    match (packing.lanes, job.op) {
        (Lanes::Rows, Op::Forward) => {
            // SAFETY: the machine has the instructions.
            io.x.rows() <= MOST_ROWS
                && (0..io.x.rows()).all(|row| unsafe { even(Vnni::new_unchecked(), io.x.row(row)) })
        }
        (Lanes::Cols, Op::Transpose) => {
            // Decoding bytes from memory takes no longer.
            let worth = codes.paired || !streamed::<T, W>(&job.source);
            worth && io.x.rows() == 1 && packing.depth() <= STEPS && io.map.rows_contiguous()
        }
        _ => false,
    }
}

/// The product of a job for which `serves` says yes.
pub(super) fn multiply<T: Scalar, W: Source>(job: &Job<'_, T, W>) {
    let (Some(codes), Some(packing), Some(io)) = (job.source.coded(), job.packing, singles(job)) else {
        return;
    };
    let (first_block, blocks, outputs) = (job.first_block, job.blocks.clone(), job.outputs.clone());
    let product = Product { codes, packing, io, first_block, blocks, outputs };
    let floats = |block: usize, outputs: Range<usize>| {
        T::dispatch(Level::Avx512, &Job { blocks: block..block + 1, outputs, ..job.clone() });
    };
    // SAFETY: `serves` has found the instructions and few rows; the job's operands fit its map, and its source the packing.
    unsafe {
        match codes.paired {
            false => product.run::<false>(Vnni::new_unchecked(), &floats),
            true => product.run::<true>(Vnni::new_unchecked(), &floats),
        }
    }
}

/// What a job reads and writes, where that is `f32`.
fn singles<'a, T: Scalar, W>(job: &Job<'a, T, W>) -> Option<Io<'a, f32>> {
    // SAFETY: `T` is `f32`.
    (TypeId::of::<T>() == TypeId::of::<f32>())
        .then(|| unsafe { *std::ptr::from_ref(&job.io).cast::<Io<'a, f32>>() })
}

/// Whether all numbers are finite, and few of those near each other far smaller than the largest.
///
/// # Safety
/// The machine has the instructions.
#[target_feature(enable = "avx2,popcnt,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn even(simd: Vnni, x: &[f32]) -> bool {
    let floats = simd.floats();
    for from in (0..x.len()).step_by(GROUP) {
        let mut xs = [floats.zero(); NEAR / 16];
        let mut largest = floats.zero();
        for v in 0..NEAR / 16 {
            let left = x.len().saturating_sub(from + 16 * v).min(16);
            if left > 0 {
                // SAFETY: so many numbers are left.
                xs[v] = unsafe { floats.load_part(x.as_ptr().add(from + 16 * v), left) };
                largest = simd.larger(largest, xs[v]);
            }
        }
        let exponent = simd.exponent(largest);
        let bound = f32::from_bits(exponent.saturating_sub(10) << 23);
        let mut small = 0;
        for v in 0..NEAR / 16 {
            small += simd.smaller(xs[v], bound);
        }
        if exponent == INFINITE || small > MOST_SMALL {
            return false;
        }
    }
    true
}

/// The digits of the inputs of a batch row.
#[derive(Clone, Copy)]
struct Digits {
    /// Those of four steps side by side, all that are worth 1 first.
    digits: *mut i32,
    /// For each group and digit what its sums begin with, as stored codes have an offset.
    starts: *mut [i32; DIGITS],
    /// For each group what its integers are to be multiplied by.
    units: *mut f32,
}

impl Digits {
    /// The digits of `len` inputs, or of inputs times `scales`: `false` where these are not even.
    ///
    /// # Safety
    /// There are so many inputs, finite ones where there are no scales, whole vectors of scales, and room for whole groups.
    #[inline(always)]
    unsafe fn fill<const SCALED: bool>(
        self,
        simd: Vnni,
        x: *const f32,
        scales: *const bf16,
        len: usize,
        offset: i32,
    ) -> bool {
        let floats = simd.floats();
        let mut even = true;
        for (group, k) in (0..len).step_by(GROUP).enumerate() {
            // SAFETY: the caller's.
            unsafe {
                let mut xs = [floats.zero(); 2];
                for v in 0..2 {
                    let left = len.saturating_sub(k + 16 * v).min(16);
                    if left > 0 {
                        xs[v] = match left {
                            16 => floats.load(x.add(k + 16 * v)),
                            _ => floats.load_part(x.add(k + 16 * v), left),
                        };
                        if SCALED {
                            xs[v] = floats.mul(xs[v], floats.load_bf16(scales.add(k + 16 * v)));
                        }
                    }
                }
                let largest = simd.larger(simd.larger(floats.zero(), xs[0]), xs[1]);
                let exponent = simd.exponent(largest);
                if SCALED {
                    let bound = f32::from_bits(exponent.saturating_sub(10) << 23);
                    let small = simd.smaller(xs[0], bound) + simd.smaller(xs[1], bound);
                    even &= exponent < INFINITE && small <= MOST_SMALL;
                }
                let exponent = exponent.clamp(LEAST_EXPONENT, INFINITE - 1);
                // All are below 2^(exponent - 126).
                let factor = f32::from_bits((156 + 127 - exponent) << 23);
                let (a, b) = (simd.digits(xs[0], factor), simd.digits(xs[1], factor));
                simd.store(self.digits.add(k), a);
                simd.store(self.digits.add(k + 16), b);
                let offset = simd.splat(offset);
                *self.starts.add(group) =
                    simd.less_by_digit(simd.dot(simd.dot(simd.splat(0), offset, a), offset, b));
                *self.units.add(group) = f32::from_bits((exponent + 127 - 156) << 23);
            }
        }
        even
    }
}

/// `width` lanes of a panel, `len` steps.
#[derive(Clone, Copy)]
struct Panel<'a> {
    codes: &'a [u8],
    width: usize,
    len: usize,
    /// Scales of the lanes for the first group of steps; those of the next one lie `scale_width` further.
    scales: *const bf16,
    scale_width: usize,
}

impl Panel<'_> {
    /// The sums over the steps.
    ///
    /// # Safety
    /// There are digits for the steps, and scales up to the end of a vector.
    #[inline(always)]
    unsafe fn sums<const R: usize, const PAIRED: bool>(
        self,
        simd: Vnni,
        inputs: [Digits; R],
    ) -> [[__m512; 2]; R] {
        let bytes = if PAIRED { self.width / 2 } else { self.width };
        let (floats, order) = (simd.floats(), simd.order(bytes));
        let mut totals = [[floats.splat(0.0); 2]; R];
        for (group, from) in (0..self.len).step_by(GROUP).enumerate() {
            let to = self.len.min(from + GROUP);
            // SAFETY: the caller's; codes are read up to their end.
            unsafe {
                let mut sums = [[[simd.splat(0); 2]; DIGITS]; R];
                for r in 0..R {
                    for d in 0..DIGITS {
                        sums[r][d] = [simd.splat((*inputs[r].starts.add(group))[d]); 2];
                    }
                }
                macro_rules! quad {
                    ($k:expr, $len:expr) => {{
                        let address = self.codes.as_ptr().add($k * bytes);
                        prefetch_narrow(address);
                        let codes = if PAIRED {
                            simd.paired(address, $len, order)
                        } else {
                            prefetch_narrow(address.wrapping_add(LINE));
                            simd.codes(address, $len, order)
                        };
                        for r in 0..R {
                            for d in 0..DIGITS {
                                let digits = simd.splat(*inputs[r].digits.add($k + d));
                                for v in 0..2 {
                                    sums[r][d][v] = simd.dot(sums[r][d][v], codes[v], digits);
                                }
                            }
                        }
                    }};
                }
                // Whole vectors of codes, of which nothing is asked.
                let whole = if self.width == PANEL { to - (to - from) % QUAD } else { from };
                let mut k = from;
                while k < whole {
                    quad!(k, QUAD * PANEL);
                    k += QUAD;
                }
                while k < to {
                    quad!(k, self.codes.len() - k * bytes);
                    k += QUAD;
                }
                let scale = self.scales.add(group * self.scale_width);
                prefetch_near(scale.wrapping_add(SCALES_AHEAD * self.scale_width).cast());
                let mut scales = [floats.load_bf16(scale); 2];
                if self.width > 16 {
                    scales[1] = floats.load_bf16(scale.add(16));
                }
                for r in 0..R {
                    let [a, b, c, d] = sums[r];
                    let mut parts =
                        [simd.numbers([a[0], b[0], c[0], d[0]]), simd.numbers([a[1], b[1], c[1], d[1]])];
                    if PAIRED {
                        parts = floats.zip(parts[0], parts[1]).into();
                    }
                    let unit = floats.splat(*inputs[r].units.add(group));
                    for v in 0..2 {
                        totals[r][v] = floats.mul_add(parts[v], floats.mul(scales[v], unit), totals[r][v]);
                    }
                }
            }
        }
        totals
    }
}

impl Product<'_> {
    /// The product, but for panels that are left to `floats`: their block and lanes.
    ///
    /// # Safety
    /// The machine has the instructions; operands and codes are what a job promises, in at most `MOST_ROWS` batch rows, or one with at most `STEPS`
    /// steps where these have scales.
    #[target_feature(
        enable = "avx2,popcnt,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi"
    )]
    unsafe fn run<const PAIRED: bool>(&self, simd: Vnni, floats: &dyn Fn(usize, Range<usize>)) {
        let batch = self.io.x.rows();
        let mut digits = Aligned::<i32, STEPS>::new();
        let mut starts = Aligned::<[i32; DIGITS], { STEPS / GROUP }>::new();
        let mut units = Aligned::<f32, { STEPS / GROUP }>::new();
        let (digits, starts, units) = (digits.pointer(), starts.pointer(), units.pointer());
        let most = STEPS / batch.max(1) / GROUP * GROUP;
        let mut all = [Digits { digits, starts, units }; MOST_ROWS];
        for r in 0..batch {
            all[r].digits = digits.wrapping_add(r * most);
            all[r].starts = starts.wrapping_add(r * most / GROUP);
            all[r].units = units.wrapping_add(r * most / GROUP);
        }
        // SAFETY: the caller's, and all digits have room.
        unsafe {
            match self.packing.lanes {
                Lanes::Rows => self.by_lane::<PAIRED>(simd, &all, most),
                Lanes::Cols => self.by_step::<PAIRED>(simd, all[0], floats),
            }
        }
    }

    /// What stored codes are more than their numbers, in each byte.
    fn offset<const PAIRED: bool>() -> i32 {
        i32::from_ne_bytes([if PAIRED { 8 } else { 128 }; 4])
    }

    /// Steps `k` to `k + len` of a panel, and its first lane's scale.
    ///
    /// # Safety
    /// They are steps of that panel.
    #[inline(always)]
    unsafe fn panel<const PAIRED: bool>(&self, block: usize, lane: usize, k: usize, len: usize) -> Panel<'_> {
        let stored = self.first_block + block;
        let (at, width) = self.packing.panel(stored, lane);
        let (start, end) = (at + k * width, at + (k + len) * width);
        let (start, end) = if PAIRED { (start / 2, end / 2) } else { (start, end) };
        let scale = match self.packing.lanes {
            Lanes::Rows => self.packing.panel_scales(stored, lane) + k / GROUP * width,
            Lanes::Cols => self.packing.ones(),
        };
        let scale_width = if self.packing.lanes == Lanes::Rows { width } else { 0 };
        // SAFETY: the caller's.
        unsafe {
            let codes = self.codes.bytes.get_unchecked(start..end);
            Panel { codes, width, len, scales: self.codes.scales.as_ptr().add(scale), scale_width }
        }
    }

    /// Scales along the lanes: the digits of up to `most` steps meet all panels.
    ///
    /// # Safety
    /// As for [`run`](Self::run); there is room for the digits of `most` steps of each batch row.
    #[inline(always)]
    unsafe fn by_lane<const PAIRED: bool>(&self, simd: Vnni, all: &[Digits; MOST_ROWS], most: usize) {
        let (io, depth, batch) = (&self.io, self.packing.depth(), self.io.x.rows());
        // SAFETY: blocks, lanes, steps and batch rows are in range by the loop bounds and the caller's promise.
        unsafe {
            for block in self.blocks.clone() {
                for k in (0..depth).step_by(most) {
                    let len = most.min(depth - k);
                    for r in 0..batch {
                        let x = io.x.as_ptr().add(r * io.x.stride() + io.input(block, k));
                        all[r].fill::<false>(simd, x, std::ptr::null(), len, Self::offset::<PAIRED>());
                    }
                    for lane in self.outputs.clone().step_by(PANEL) {
                        let panel = self.panel::<PAIRED>(block, lane, k, len);
                        let end = self.outputs.end.min(lane + PANEL);
                        let overwrite = k == 0 && io.update == Update::Overwrite;
                        let mut row = 0;
                        while row < batch {
                            macro_rules! rows {
                                ($n:expr) => {{
                                    let mut digits = [all[row]; $n];
                                    for r in 0..$n {
                                        digits[r] = all[row + r];
                                    }
                                    let sums = panel.sums::<$n, PAIRED>(simd, digits);
                                    for r in 0..$n {
                                        let row = row + r;
                                        put(simd.floats(), io, block, row, lane, end, &sums[r], overwrite);
                                    }
                                    row += $n;
                                }};
                            }
                            match batch - row {
                                1 => rows!(1),
                                2 | 4 => rows!(2),
                                _ => rows!(3),
                            }
                        }
                    }
                }
            }
        }
    }

    /// Scales along the steps, one batch row: each panel has digits of its own.
    ///
    /// # Safety
    /// As for [`run`](Self::run); there is room for the digits of all steps.
    #[inline(always)]
    unsafe fn by_step<const PAIRED: bool>(
        &self,
        simd: Vnni,
        digits: Digits,
        floats: &dyn Fn(usize, Range<usize>),
    ) {
        let (io, depth) = (&self.io, self.packing.depth());
        // SAFETY: blocks and lanes are in range by the loop bounds and the caller's promise; ones follow the last scale.
        unsafe {
            for block in self.blocks.clone() {
                let x = io.x.as_ptr().add(io.input(block, 0));
                for lane in self.outputs.clone().step_by(PANEL) {
                    let end = self.outputs.end.min(lane + PANEL);
                    let scales = self.packing.panel_scales(self.first_block + block, lane);
                    let scales = self.codes.scales.as_ptr().add(scales);
                    if !digits.fill::<true>(simd, x, scales, depth, Self::offset::<PAIRED>()) {
                        floats(block, lane..end);
                        continue;
                    }
                    let panel = self.panel::<PAIRED>(block, lane, 0, depth);
                    let [sums] = panel.sums::<1, PAIRED>(simd, [digits]);
                    put(simd.floats(), io, block, 0, lane, end, &sums, io.update == Update::Overwrite);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{Parallelism, Policy};
    use crate::kernels::gemm::Output;
    use crate::kernels::source::Int8;
    use crate::kernels::{PanelMap, Rows, RowsMut};
    use crate::storage::{Data, Factor, Storage};

    /// Numbers of either sign, most of them below one.
    fn number(i: usize) -> f32 {
        let bits = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        (bits % 4001) as f32 / 1000.0 - 2.0
    }

    struct Case {
        storage: Storage,
        map: PanelMap,
        op: Op,
        batch: usize,
    }

    impl Case {
        fn factor(&self) -> Factor {
            let PanelMap { blocks, rows, cols, .. } = self.map;
            Factor::from_fn(self.storage, (blocks, rows, cols), |b, i, j| {
                f64::from(number((b * rows + i) * cols + j)) * (1 + (i * 7 + j / 32 * 5) % 11) as f64
            })
        }

        fn sides(&self) -> (usize, usize) {
            self.op.order(self.map.blocks * self.map.rows, self.map.blocks * self.map.cols)
        }

        fn product(&self, x: &[f32], update: Update, policy: Policy) -> Vec<f32> {
            let (outputs, inputs) = self.sides();
            let mut y = vec![if update == Update::Overwrite { f32::NAN } else { 0.5 }; self.batch * outputs];
            let xs = Rows::new(x, self.batch, inputs, inputs);
            let ys = RowsMut::new(&mut y, self.batch, outputs, outputs);
            let factor = self.factor().packed(self.op, self.map.blocks);
            factor.multiply_blocks(self.map, self.op, xs, ys, update, policy);
            y
        }

        /// What an output may be off by, beside the sum of its terms: floats add up their roundings.
        fn rounding(&self, level: Level) -> f64 {
            if self.op == Op::Forward && level == Level::Avx512 && Vnni::found() { 2e-7 } else { 1e-6 }
        }

        /// Every output by its formula, and the sum of the absolute values of its terms.
        fn expected(&self, x: &[f32]) -> Vec<(f64, f64)> {
            let PanelMap { blocks, rows, cols, .. } = self.map;
            let ((outputs, inputs), factor) = (self.sides(), self.factor());
            let mut sums = vec![(0.0, 0.0); self.batch * outputs];
            for (r, b) in (0..self.batch).flat_map(|r| (0..blocks).map(move |b| (r, b))) {
                for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                    let (to, from) = self.op.order(self.map.row_feature(b, i), b * cols + j);
                    let term = factor.get(b, i, j) * f64::from(x[r * inputs + from]);
                    let (sum, size) = &mut sums[r * outputs + to];
                    (*sum, *size) = (*sum + term, *size + term.abs());
                }
            }
            sums
        }
    }

    fn cases() -> impl Iterator<Item = Case> {
        let maps = [
            PanelMap::contiguous(1, 70, 65),
            PanelMap::contiguous(1, 33, 1100),
            PanelMap::contiguous(1, 1100, 100),
            PanelMap::contiguous(1, 16, 1),
            PanelMap::contiguous(3, 40, 16),
            PanelMap::contiguous(2, 39, 63),
            PanelMap::interleaved(5, 18, 20, 1),
            PanelMap::interleaved(2, 96, 130, 32),
            PanelMap::contiguous(1, 40, 9000),
            PanelMap::contiguous(1, 9000, 34),
        ];
        maps.into_iter().flat_map(|map| {
            [Storage::Int8, Storage::Int4].into_iter().flat_map(move |storage| {
                [Op::Forward, Op::Transpose].into_iter().flat_map(move |op| {
                    [1, 2, 3, 4, 5, 12].into_iter().map(move |batch| Case { storage, map, op, batch })
                })
            })
        })
    }

    #[test]
    fn products_are_closer_to_their_formula_than_sums_of_floats() {
        for case in cases() {
            let (outputs, inputs) = case.sides();
            let x: Vec<f32> = (0..case.batch * inputs).map(|i| number(i * 3 + 1)).collect();
            let expected = case.expected(&x);
            let largest = x.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
            for (update, before) in [(Update::Overwrite, 0.0), (Update::Accumulate, 0.5)] {
                for level in Level::available() {
                    let y = case.product(&x, update, Policy { level, ..Policy::default() });
                    let rounding = case.rounding(level);
                    for (o, (y, (sum, size))) in y.iter().zip(&expected).enumerate() {
                        let error = (f64::from(*y) - sum - before).abs();
                        let Case { storage, map, op, batch } = &case;
                        assert!(
                            error <= rounding * (size + largest + before),
                            "{storage} {map:?} {op:?} {batch} {level}, output {}: {error}",
                            o % outputs
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        for case in cases() {
            let x: Vec<f32> = (0..case.batch * case.sides().1).map(number).collect();
            let [one, three] = [Parallelism::Seq, Parallelism::Threads(3)].map(|parallelism| {
                case.product(&x, Update::Overwrite, Policy { parallelism, ..Policy::default() })
            });
            assert!(one.iter().zip(&three).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    /// Whatever the size of the inputs, errors are measured by the largest one of a group.
    #[test]
    fn inputs_of_any_size_count() {
        for case in cases().filter(|case| case.batch <= 2) {
            let inputs = case.sides().1;
            for scale in [1e30, 1e-28, 1e-36] {
                let x: Vec<f32> = (0..case.batch * inputs).map(|i| number(i * 3 + 1) * scale).collect();
                let y = case.product(&x, Update::Overwrite, Policy::default());
                let largest = x.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
                for (y, (sum, size)) in y.iter().zip(case.expected(&x)) {
                    // Weights are below 23, codes below 128; inputs, or inputs times scales, lose less than the least normal number.
                    let lost = 128.0 * inputs as f64 * f64::from(f32::MIN_POSITIVE);
                    let bound = case.rounding(Level::detected()) * (size + largest) + lost;
                    assert!((f64::from(*y) - sum).abs() <= bound, "{y} {sum} {bound}");
                }
            }
        }
    }

    /// Inputs that are not finite reach the outputs, as they do in floats, and batch rows without any stay as they are.
    #[test]
    fn infinite_inputs_and_sums_too_large_are_not_finite() {
        for case in cases().filter(|case| case.batch <= 2) {
            let (outputs, inputs) = case.sides();
            let mut x: Vec<f32> = (0..case.batch * inputs).map(number).collect();
            let fine = case.batch - 1;
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38] {
                x[fine * inputs..].fill(bad);
                let y = case.product(&x, Update::Overwrite, Policy::default());
                let expected = case.expected(&x);
                for (o, (y, (sum, size))) in y.iter().zip(&expected).enumerate() {
                    if o < fine * outputs {
                        assert!((f64::from(*y) - sum).abs() <= 1e-6 * (size + 2.0));
                    } else if sum.abs() > 1e39 || !sum.is_finite() {
                        assert!(!y.is_finite(), "{bad}: {y}, expected {sum}");
                    }
                }
            }
        }
    }

    /// The tests above test this where the machine has it.
    #[test]
    fn codes_meet_few_rows_of_finite_singles_as_integers() {
        let map = PanelMap::contiguous(1, 64, 64);
        let case = Case { storage: Storage::Int8, map, op: Op::Forward, batch: MOST_ROWS };
        let factor = case.factor().packed_forward();
        let Data::Int8 { codes, scales } = factor.data() else { panic!("{factor:?}") };
        let mut x = vec![1.0f32; 64 * (MOST_ROWS + 1)];
        let mut serves_rows = |op: Op, rows: usize, level: Level, last: f32| {
            x[64 * rows - 1] = last;
            let (y, update) = (Output(std::ptr::null_mut()), Update::Overwrite);
            let io = Io { map, op, x: Rows::new(&x, rows, 64, 64), y, y_stride: 64, update };
            let packing = Packing::new((1, 64, 64), op.order(Lanes::Rows, Lanes::Cols).0, false);
            let source = Int8::packed(codes, scales, 64, 64);
            let (blocks, outputs) = (0..1, 0..64);
            let job = Job {
                source,
                first: 0,
                first_block: 0,
                column: 0,
                packing,
                io,
                blocks,
                outputs,
                in_digits: false,
            };
            serves(&job, level)
        };
        assert_eq!(serves_rows(Op::Forward, 1, Level::Avx512, 1.0), Vnni::found());
        assert_eq!(serves_rows(Op::Forward, MOST_ROWS, Level::Avx512, -1.0), Vnni::found());
        assert!(!serves_rows(Op::Forward, MOST_ROWS + 1, Level::Avx512, 1.0));
        assert!(!serves_rows(Op::Forward, 1, Level::Avx2, 1.0));
        assert!(!serves_rows(Op::Forward, 1, Level::Avx512, f32::NAN));
        assert!(!serves_rows(Op::Forward, 2, Level::Avx512, f32::NEG_INFINITY));
        assert!(!serves_rows(Op::Forward, 1, Level::Avx512, 1e9));
        assert_eq!(serves_rows(Op::Transpose, 1, Level::Avx512, 1.0), Vnni::found());
        assert!(!serves_rows(Op::Transpose, 2, Level::Avx512, 1.0));
        assert!(!serves_rows(Op::Transpose, 1, Level::Avx2, 1.0));
    }

    /// Inputs, or weights, that an output meets with zeros do not touch what it meets with numbers, however large they are.
    #[test]
    fn what_is_far_larger_than_others_hides_none() {
        let cases = [Op::Forward, Op::Transpose].into_iter().flat_map(|op| {
            [1e3, 1e6, 1e9].into_iter().flat_map(move |large| [true, false].map(|input| (op, large, input)))
        });
        for (op, large, input) in cases {
            let ((rows, cols), at) = (op.order(64, 96), 40);
            let weight = |i: usize, j: usize| {
                let (output, step) = op.order(i, j);
                match step == at {
                    true if input || output % 2 == 0 => 0.0,
                    true => f64::from(large),
                    false => f64::from(number(i * cols + j)),
                }
            };
            for storage in [Storage::Int8, Storage::Int4] {
                let factor = Factor::from_fn(storage, (1, rows, cols), |_, i, j| weight(i, j)).packed(op, 1);
                let mut x: Vec<f32> = (0..96).map(number).collect();
                x[at] = if input { large } else { 1.0 };
                let mut y = vec![f32::NAN; 64];
                let (xs, ys) = (Rows::new(&x, 1, 96, 96), RowsMut::new(&mut y, 1, 64, 64));
                factor.multiply(op, xs, ys, Update::Overwrite, Policy::default());
                for (o, y) in y.iter().enumerate() {
                    let get =
                        |k: usize| if op == Op::Forward { factor.get(0, o, k) } else { factor.get(0, k, o) };
                    let terms = || (0..96).map(|k| get(k) * f64::from(x[k]));
                    let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                    assert!(
                        (f64::from(*y) - sum).abs() <= 2e-6 * size,
                        "{storage} {op:?} {large} {input}, output {o}: {y}, {sum}"
                    );
                }
            }
        }
    }
}
