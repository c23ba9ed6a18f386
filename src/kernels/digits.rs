//! Products of a few batch rows with packed integer codes, in integers, where the machine multiplies bytes.
//!
//! The inputs of a group of steps become 32-bit integers times a power of two, each of four digits of a byte. Products of codes and digits are
//! added up exactly; the sums of a group become one float for each lane, which is multiplied by its scale. An input loses what lies below
//! 2^-30 of the largest one in its group, while a sum of floats loses 2^-24 of what it has come to with every step.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::batches::Aligned;
use super::gemm::{Io, Job, LINE};
use super::level::Level;
use super::packing::{Lanes, PANEL, Packing};
use super::panels::{AHEAD, COPIED, gather_rows, put};
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

/// Steps whose inputs share a unit where they have scales themselves: sums of so many products of bytes, times a digit's worth, are integers.
const SCALED_STEPS: usize = 256;

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
    let by_lanes =
        job.packing.is_some_and(|packing| (packing.lanes == Lanes::Rows) == (job.op == Op::Forward));
    by_lanes
        && job.source.coded().is_some()
        && job.x.rows() <= MOST_ROWS
        && level == Level::Avx512
        && Vnni::found()
        // SAFETY: the machine has what `Vnni` needs.
        && singles(job).is_some_and(|io| (0..io.x.rows()).all(|row| unsafe { finite(io.x.row(row)) }))
}

/// The product of a job; nothing where `serves` says no.
pub(super) fn multiply<T: Scalar, W: Source>(job: &Job<'_, T, W>) {
    let (Some(codes), Some(packing), Some(io)) = (job.source.coded(), job.packing, singles(job)) else {
        return;
    };
    if !Vnni::found() || io.x.rows() > MOST_ROWS {
        return;
    }
    let (first_block, blocks, outputs) = (job.first_block, job.blocks.clone(), job.outputs.clone());
    let product = Product { codes, packing, io, first_block, blocks, outputs };
    // SAFETY: the machine has the instructions; the job's operands fit its map, and its source the packing.
    unsafe {
        let simd = Vnni::new_unchecked();
        match (packing.lanes, codes.paired) {
            (Lanes::Rows, false) => product.run::<GROUP, false>(simd),
            (Lanes::Rows, true) => product.run::<GROUP, true>(simd),
            (Lanes::Cols, false) => product.run::<SCALED_STEPS, false>(simd),
            (Lanes::Cols, true) => product.run::<SCALED_STEPS, true>(simd),
        }
    }
}

/// What a job reads and writes, where that is `f32`.
fn singles<'a, T: Scalar, W>(job: &Job<'a, T, W>) -> Option<Io<'a, f32>> {
    // SAFETY: `T` is `f32`.
    (TypeId::of::<T>() == TypeId::of::<f32>())
        .then(|| unsafe { *std::ptr::from_ref(&job.io).cast::<Io<'a, f32>>() })
}

/// Whether all numbers are: one more exponent would make the sign of what is not.
///
/// # Safety
/// The machine has AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn finite(x: &[f32]) -> bool {
    x.iter().fold(0, |all, x| all | (x.abs().to_bits() + (1 << 23))) >> 31 == 0
}

/// The digits of the inputs of a batch row. `SPAN` steps share a unit.
#[derive(Clone, Copy)]
struct Digits<const SPAN: usize> {
    /// Those of four steps side by side, all that are worth 1 first.
    digits: *mut i32,
    /// For each span and digit what its sums begin with, as stored codes have an offset.
    starts: *mut [i32; DIGITS],
    /// For each span what its integers are to be multiplied by.
    units: *mut f32,
}

/// `len` inputs of a batch row, and the scale of each where it has one.
#[derive(Clone, Copy)]
struct Inputs {
    x: *const f32,
    len: usize,
    scales: Option<*const bf16>,
}

impl Inputs {
    /// Those of a vector of steps from `k` on; zeros beyond the last one.
    ///
    /// # Safety
    /// There are inputs, and scales up to the end of a vector.
    #[inline(always)]
    unsafe fn load<S: Simd<f32>>(self, floats: S, k: usize) -> S::V {
        let left = self.len - k;
        // SAFETY: the caller's.
        unsafe {
            let x =
                if left < 16 { floats.load_part(self.x.add(k), left) } else { floats.load(self.x.add(k)) };
            self.scales.map_or(x, |scales| floats.mul(x, floats.load_bf16(scales.add(k))))
        }
    }

    /// The biased exponent of the largest of some.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    #[inline(always)]
    unsafe fn exponent(self, simd: Vnni, steps: Range<usize>) -> u32 {
        let mut largest = simd.floats().zero();
        for k in steps.step_by(16) {
            // SAFETY: the caller's.
            largest = simd.larger(largest, unsafe { self.load(simd.floats(), k) });
        }
        simd.exponent(largest)
    }
}

impl<const SPAN: usize> Digits<SPAN> {
    /// The digits of inputs, of which the largest one without its scale has an exponent of at most `most`.
    ///
    /// # Safety
    /// There are the inputs, and scales up to the end of a vector, and room for whole vectors.
    #[inline(always)]
    unsafe fn fill(self, simd: Vnni, inputs: Inputs, most: u32, offset: i32) {
        for (span, from) in (0..inputs.len).step_by(SPAN).enumerate() {
            let to = inputs.len.min(from + SPAN);
            // SAFETY: the caller's.
            unsafe {
                let mut exponent = u32::MAX;
                if let Some(scales) = inputs.scales {
                    // A bound: the numbers themselves would take longer.
                    exponent = (most + simd.exponent_bf16(scales.add(from), to - from)).saturating_sub(126);
                }
                if exponent >= INFINITE {
                    exponent = inputs.exponent(simd, from..to);
                }
                let exponent = exponent.max(LEAST_EXPONENT);
                // All are below 2^(exponent - 126), or too large for a float.
                let factor = f32::from_bits((156 + 127 - exponent) << 23);
                let unit = f32::from_bits((exponent + 127 - 156) << 23);
                let mut sums = [simd.splat(0); 2];
                for k in (from..to).step_by(16) {
                    let digits = simd.digits(inputs.load(simd.floats(), k), factor);
                    simd.store(self.digits.add(k), digits);
                    sums = [sums[1], simd.dot(sums[0], simd.splat(offset), digits)];
                }
                *self.starts.add(span) = simd.less_by_digit(sums);
                *self.units.add(span) = if exponent < INFINITE { unit } else { f32::NAN };
            }
        }
    }
}

/// `width` lanes of a panel, `len` steps.
#[derive(Clone, Copy)]
struct Panel<'a> {
    codes: &'a [u8],
    width: usize,
    len: usize,
    /// Scales of the lanes for each group of steps, and how far apart; ones where the inputs have them.
    scales: Option<(*const bf16, usize)>,
}

impl Panel<'_> {
    /// The sums over the steps.
    ///
    /// # Safety
    /// There are digits for the steps, and scales up to the end of a vector.
    #[inline(always)]
    unsafe fn sums<const R: usize, const SPAN: usize, const PAIRED: bool>(
        self,
        simd: Vnni,
        inputs: [Digits<SPAN>; R],
    ) -> [[__m512; 2]; R] {
        let bytes = if PAIRED { self.width / 2 } else { self.width };
        let (floats, order) = (simd.floats(), simd.order(bytes));
        let mut totals = [[floats.splat(0.0); 2]; R];
        for (span, from) in (0..self.len).step_by(SPAN).enumerate() {
            let to = self.len.min(from + SPAN);
            // SAFETY: the caller's; codes are read up to their end.
            unsafe {
                let mut sums = [[[simd.splat(0); 2]; DIGITS]; R];
                for r in 0..R {
                    for d in 0..DIGITS {
                        sums[r][d] = [simd.splat((*inputs[r].starts.add(span))[d]); 2];
                    }
                }
                macro_rules! quad {
                    ($k:expr, $len:expr) => {{
                        let address = self.codes.as_ptr().add($k * bytes);
                        prefetch_near(address.wrapping_add(AHEAD));
                        let codes = if PAIRED {
                            simd.paired(address, $len, order)
                        } else {
                            prefetch_near(address.wrapping_add(AHEAD + LINE));
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
                let mut scales = [floats.splat(1.0); 2];
                if let Some((all, stride)) = self.scales {
                    let scale = all.add(span * stride);
                    prefetch_near(scale.wrapping_add(SCALES_AHEAD * stride).cast());
                    scales[0] = floats.load_bf16(scale);
                    if self.width > 16 {
                        scales[1] = floats.load_bf16(scale.add(16));
                    }
                }
                for r in 0..R {
                    let [a, b, c, d] = sums[r];
                    let mut parts =
                        [simd.numbers([a[0], b[0], c[0], d[0]]), simd.numbers([a[1], b[1], c[1], d[1]])];
                    if PAIRED {
                        parts = floats.zip(parts[0], parts[1]).into();
                    }
                    let unit = floats.splat(*inputs[r].units.add(span));
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
    /// The product.
    ///
    /// # Safety
    /// The machine has the instructions; operands and codes are what a job promises, in at most `MOST_ROWS` batch rows.
    #[target_feature(
        enable = "avx2,popcnt,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi"
    )]
    unsafe fn run<const SPAN: usize, const PAIRED: bool>(&self, simd: Vnni) {
        let Self { codes, packing, io, .. } = self;
        let (depth, batch) = (packing.depth(), io.x.rows());
        let offset = i32::from_ne_bytes([if PAIRED { 8 } else { 128 }; 4]);
        let bytes = |numbers| if PAIRED { numbers / 2 } else { numbers };
        let by_step = packing.lanes == Lanes::Cols;
        let apart = io.op == Op::Transpose && !io.map.rows_contiguous();
        let mut digits = Aligned::<i32, STEPS>::new();
        let mut starts = Aligned::<[i32; DIGITS], { STEPS / GROUP }>::new();
        let mut units = Aligned::<f32, { STEPS / GROUP }>::new();
        let mut gathered = Aligned::<f32, { MOST_ROWS * COPIED + 16 }>::new();
        let (digits, starts, units) = (digits.pointer(), starts.pointer(), units.pointer());
        let gathered = gathered.pointer();
        let most = if apart { COPIED } else { STEPS / batch.max(1) / SPAN * SPAN };
        let mut all = [Digits::<SPAN> { digits, starts, units }; MOST_ROWS];
        for r in 0..batch {
            all[r].digits = digits.wrapping_add(r * most);
            all[r].starts = starts.wrapping_add(r * most / SPAN);
            all[r].units = units.wrapping_add(r * most / SPAN);
        }
        // SAFETY: blocks, lanes, steps and batch rows are in range by the loop bounds and the caller's promise, and all digits have room.
        unsafe {
            for block in self.blocks.clone() {
                let stored = self.first_block + block;
                for k in (0..depth).step_by(most) {
                    let len = most.min(depth - k);
                    // The exponent is that of the largest one, where it counts.
                    let mut inputs = [(Inputs { x: gathered, len, scales: None }, 0); MOST_ROWS];
                    for r in 0..batch {
                        let (inputs, exponent) = &mut inputs[r];
                        let x = io.x.as_ptr().add(r * io.x.stride());
                        if apart {
                            let to = gathered.add(r * COPIED);
                            gather_rows(simd.floats(), io.map, block, k..k + len, x, to);
                            inputs.x = to;
                        } else {
                            inputs.x = x.add(block * depth + k);
                        }
                        if by_step {
                            *exponent = inputs.exponent(simd, 0..len);
                        } else {
                            all[r].fill(simd, *inputs, 0, offset);
                        }
                    }
                    for lane in self.outputs.clone().step_by(PANEL) {
                        let (at, width) = packing.panel(stored, lane);
                        let scales = codes.scales.as_ptr().add(packing.panel_scales(stored, lane));
                        if by_step {
                            for r in 0..batch {
                                let (inputs, exponent) = inputs[r];
                                let inputs = Inputs { scales: Some(scales.add(k)), ..inputs };
                                all[r].fill(simd, inputs, exponent, offset);
                            }
                        }
                        let (start, end) = (bytes(at + k * width), bytes(at + (k + len) * width));
                        let panel = Panel {
                            codes: codes.bytes.get_unchecked(start..end),
                            width,
                            len,
                            scales: (!by_step).then_some((scales.wrapping_add(k / GROUP * width), width)),
                        };
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
                                    let sums = panel.sums::<$n, SPAN, PAIRED>(simd, digits);
                                    for r in 0..$n {
                                        put(
                                            simd.floats(),
                                            io,
                                            block,
                                            row + r,
                                            lane,
                                            end,
                                            &sums[r],
                                            overwrite,
                                        );
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
                    // Sums of floats add up their roundings.
                    let rounding = if level == Level::Avx512 && Vnni::found() { 2e-7 } else { 1e-6 };
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
        for case in cases().filter(|case| case.batch == 2) {
            let inputs = case.sides().1;
            for scale in [1e30, 1e-28, 1e-36] {
                let x: Vec<f32> = (0..2 * inputs)
                    .map(|i| number(i) * scale * if i % 7 == 0 { 1.0 } else { 1e-3 })
                    .collect();
                let y = case.product(&x, Update::Overwrite, Policy::default());
                let largest = x.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
                for (y, (sum, size)) in y.iter().zip(case.expected(&x)) {
                    // Weights are below 23; inputs lose less than the least normal number.
                    let lost = 23.0 * inputs as f64 * f64::from(f32::MIN_POSITIVE);
                    let bound = 2e-7 * (size + largest) + lost;
                    assert!((f64::from(*y) - sum).abs() <= bound, "{y} {sum} {bound}");
                }
            }
        }
    }

    /// Inputs that are not finite reach the outputs, as they do in floats, and batch rows without any stay as they are.
    #[test]
    fn infinite_inputs_and_sums_too_large_are_not_finite() {
        for case in cases().filter(|case| case.batch == 2) {
            let (outputs, inputs) = case.sides();
            let mut x: Vec<f32> = (0..2 * inputs).map(number).collect();
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38] {
                x[inputs..].fill(bad);
                let y = case.product(&x, Update::Overwrite, Policy::default());
                let expected = case.expected(&x);
                for (o, (y, (sum, size))) in y.iter().zip(&expected).enumerate() {
                    if o < outputs {
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
        let mut serves_rows = |rows: usize, level: Level, last: f32| {
            x[64 * rows - 1] = last;
            let (y, update) = (Output(std::ptr::null_mut()), Update::Overwrite);
            let io = Io { map, op: Op::Forward, x: Rows::new(&x, rows, 64, 64), y, y_stride: 64, update };
            let packing = Packing::new((1, 64, 64), Lanes::Rows, false);
            let source = Int8::packed(codes, scales, 64, 64);
            let (blocks, outputs) = (0..1, 0..64);
            let job =
                Job { source, first: 0, first_block: 0, packing, io, blocks, outputs, in_digits: false };
            serves(&job, level)
        };
        assert_eq!(serves_rows(1, Level::Avx512, 1.0), Vnni::found());
        assert_eq!(serves_rows(MOST_ROWS, Level::Avx512, -1.0), Vnni::found());
        assert!(!serves_rows(MOST_ROWS + 1, Level::Avx512, 1.0));
        assert!(!serves_rows(1, Level::Avx2, 1.0));
        assert!(!serves_rows(1, Level::Avx512, f32::NAN));
        assert!(!serves_rows(2, Level::Avx512, f32::NEG_INFINITY));
    }
}
