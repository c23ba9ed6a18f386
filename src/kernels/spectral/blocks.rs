//! Transforms of the blocks of a row, blocks in the lanes: for blocks too short to fill vectors one by one.

use super::lines::{COLUMNS, LINE, Lines, square, unsquare};
use super::{Pass, TransformPass};
use crate::exec::SCRATCH_ALIGN;
use crate::kernels::fft::RealFft;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::{Simd, shuffle};
use crate::matrix::Update;
use crate::scalar::Scalar;
use num_complex::Complex;

/// How the complex bins $u + i v$ of the blocks of a row are written, one after the other, as two rows for products with a real matrix
/// $(A; B)$: they are products with $A + i B$, whose numbers are so held once. The real bins, the first and of an even number the last, lie
/// one after the other at the start of the first row, for products with real matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// $u$ and $v$: what is multiplied, and what the adjoint gives.
    Planes,
    /// Products $(A u, B u)$ and $(A v, B v)$, for the spectrum $(A u - B v) + i (B u + A v)$. To be multiplied by the adjoint,
    /// $(u, v)$ and $(v, -u)$.
    Stacked,
}

impl Layout {
    /// Entries of a complex bin in each row.
    pub(crate) fn width(self, blocks: usize) -> usize {
        if self == Layout::Planes { blocks } else { 2 * blocks }
    }
}

fn real_bins(len: usize) -> usize {
    1 + usize::from(len.is_multiple_of(2))
}

fn head(len: usize, blocks: usize) -> usize {
    (real_bins(len) * blocks).next_multiple_of(SCRATCH_ALIGN)
}

/// Entries of each of the two rows for so many blocks.
pub(crate) fn bins_len(len: usize, layout: Layout, blocks: usize) -> usize {
    head(len, blocks) + (len - 1) / 2 * layout.width(blocks)
}

/// Transforms of all blocks of a row.
#[derive(Debug, Clone)]
pub(crate) struct BlockTransform<T> {
    len: usize,
    kind: Kind<T>,
}

#[derive(Debug, Clone)]
enum Kind<T> {
    Lines(Lines<T>),
    /// Any length, by `rustfft`, block by block.
    Library(RealFft<T>),
}

impl<T: Scalar> BlockTransform<T> {
    pub(crate) fn new(len: usize) -> Self {
        let kind = match len.is_power_of_two() && len >= 2 {
            true => Kind::Lines(Lines::new(len)),
            false => Kind::Library(RealFft::new(len)),
        };
        Self { len, kind }
    }

    /// Numbers of a block.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Real bins of a block.
    pub(crate) fn real_bins(&self) -> usize {
        real_bins(self.len)
    }

    /// Complex bins: with the real ones, as many numbers as the block has.
    pub(crate) fn bins(&self) -> usize {
        (self.len - 1) / 2
    }

    /// Where the complex bins of a row of spectra start.
    pub(crate) fn head(&self, blocks: usize) -> usize {
        head(self.len, blocks)
    }

    /// What a round trip multiplies a real and a complex bin by.
    pub(crate) fn gains(&self) -> (f64, f64) {
        let len = self.len as f64;
        (len, if let Kind::Lines(_) = self.kind { 0.5 * len } else { len })
    }

    /// Scratch entries that either direction needs.
    pub(crate) fn scratch_len(&self) -> usize {
        match &self.kind {
            Kind::Lines(lines) => 2 * COLUMNS * self.len + lines.panel_len(),
            Kind::Library(plan) => 2 * (plan.bins() + plan.scratch_len()),
        }
    }

    /// The spectra of the blocks of `x`, the last one followed by zeros.
    pub(crate) fn forward(
        &self,
        level: Level,
        x: &[T],
        layout: Layout,
        spectra: &mut [T],
        scratch: &mut [T],
    ) {
        match &self.kind {
            Kind::Lines(lines) => {
                let scratch = &mut scratch[..self.scratch_len()];
                let head = self.head(x.len().div_ceil(self.len));
                T::transform(
                    fitting(lines, level),
                    TransformPass(Pass::Blocks(Forward { lines, x, head, layout, spectra, scratch })),
                )
            }
            Kind::Library(plan) => {
                let (z, scratch) = bytemuck::cast_slice_mut(scratch).split_at_mut(plan.bins());
                let blocks = x.len().div_ceil(self.len);
                let (width, head) = (layout.width(blocks), self.head(blocks));
                let (first, second) = spectra.split_at_mut(spectra.len() / 2);
                let (real, first) = first.split_at_mut(head);
                for (j, x) in x.chunks(self.len).enumerate() {
                    plan.forward(x, z, scratch);
                    for bin in 0..self.real_bins() {
                        real[bin * blocks + j] = z[bin * (self.len / 2)].re;
                    }
                    let halves = first.chunks_exact_mut(width).zip(second[head..].chunks_exact_mut(width));
                    for (z, (first, second)) in z[1..=self.bins()].iter().zip(halves) {
                        (first[j], second[j]) = (z.re, z.im);
                        if layout == Layout::Stacked {
                            (first[blocks + j], second[blocks + j]) = (z.im, -z.re);
                        }
                    }
                }
            }
        }
    }

    /// `y (+)=` the blocks with these spectra.
    pub(crate) fn inverse(
        &self,
        level: Level,
        layout: Layout,
        spectra: &[T],
        y: &mut [T],
        update: Update,
        scratch: &mut [T],
    ) {
        match &self.kind {
            Kind::Lines(lines) => {
                let scratch = &mut scratch[..self.scratch_len()];
                let head = self.head(y.len().div_ceil(self.len));
                let inverse = Inverse { lines, head, layout, spectra, y, update, scratch };
                T::transform(fitting(lines, level), TransformPass(Pass::BlocksBack(inverse)))
            }
            Kind::Library(plan) => {
                let (z, scratch) = bytemuck::cast_slice_mut(scratch).split_at_mut(plan.bins());
                let blocks = y.len().div_ceil(self.len);
                let (width, head) = (layout.width(blocks), self.head(blocks));
                let (first, second) = spectra.split_at(spectra.len() / 2);
                let (real, first) = first.split_at(head);
                for (i, y) in y.chunks_mut(self.len).enumerate() {
                    for bin in 0..self.real_bins() {
                        z[bin * (self.len / 2)] = Complex::new(real[bin * blocks + i], T::zero());
                    }
                    let halves = first.chunks_exact(width).zip(second[head..].chunks_exact(width));
                    for (z, (first, second)) in z[1..=self.bins()].iter_mut().zip(halves) {
                        *z = Complex::new(first[i], second[i]);
                        if layout == Layout::Stacked {
                            *z = Complex::new(first[i] - second[blocks + i], first[blocks + i] + second[i]);
                        }
                    }
                    plan.inverse(z, y, update, scratch);
                }
            }
        }
    }
}

/// The level whose vectors are no longer than the blocks, where there is one.
fn fitting<T>(lines: &Lines<T>, level: Level) -> Level {
    if (32..64).contains(&(2 * lines.half * size_of::<T>())) { level.min(Level::Avx2) } else { level }
}

#[derive(Debug)]
pub(super) struct Forward<'a, T> {
    lines: &'a Lines<T>,
    x: &'a [T],
    /// Where the complex bins start.
    head: usize,
    layout: Layout,
    spectra: &'a mut [T],
    scratch: &'a mut [T],
}

#[derive(Debug)]
pub(super) struct Inverse<'a, T> {
    lines: &'a Lines<T>,
    head: usize,
    layout: Layout,
    spectra: &'a [T],
    y: &'a mut [T],
    update: Update,
    scratch: &'a mut [T],
}

impl<T: Scalar> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { lines, x, head, layout, spectra, scratch } = self;
        let (half, len) = (lines.half, 2 * lines.half);
        let blocks = x.len().div_ceil(len);
        let (width, second) = (layout.width(blocks), spectra.len() / 2);
        assert!(head >= 2 * blocks && second >= head + (half - 1) * width);
        assert!(len.is_multiple_of(S::LANES) || len == 2 || len == 4);
        let (rows, scratch) = scratch.split_at_mut(COLUMNS * len);
        let (copy, work) = scratch.split_at_mut(COLUMNS * len);
        assert!(work.len() == lines.panel_len());
        for (start, x) in x.chunks(COLUMNS * len).enumerate().map(|(g, x)| (g * COLUMNS, x)) {
            let x = match x.len() == COLUMNS * len {
                true => x,
                false => {
                    copy[..x.len()].copy_from_slice(x);
                    copy[x.len()..].fill(T::zero());
                    &*copy
                }
            };
            let (work, rows) = (work.as_mut_ptr(), rows.as_mut_ptr());
            for part in (0..COLUMNS).step_by(S::LANES) {
                let left = (blocks - start).saturating_sub(part);
                if left == 0 {
                    break;
                }
                // SAFETY: `x` has COLUMNS blocks, `rows` as many numbers and `work` those of the lines, `spectra` the bins of `left` blocks
                // from `to` on; `part` is the first column of a vector.
                unsafe {
                    let (work, rows) = (work.add(part), rows.add(part));
                    let from = x.as_ptr().add(part * len);
                    if len.is_multiple_of(S::LANES) {
                        for t in (0..len).step_by(S::LANES) {
                            let columns = square(simd, from.add(t), len);
                            for (c, column) in columns.iter().enumerate().take(S::LANES) {
                                simd.store(rows.add((t + c) * COLUMNS), *column);
                            }
                        }
                    } else if len == 2 {
                        spread::<T, S, 2>(simd, from, rows);
                    } else {
                        spread::<T, S, 4>(simd, from, rows);
                    }
                    lines.forward(
                        simd,
                        #[inline(always)]
                        |t| simd.load(rows.add(t * COLUMNS)),
                        work,
                        None,
                    );
                    let to = spectra.as_mut_ptr().add(start + part);
                    put(simd, to, simd.load(work), left);
                    put(simd, to.add(blocks), simd.load(work.add(COLUMNS)), left);
                    for bin in 1..half {
                        let (re, im) = get_bin(simd, lines, work, bin);
                        let to = to.add(head + (bin - 1) * width);
                        put(simd, to, re, left);
                        put(simd, to.add(second), im, left);
                        if layout == Layout::Stacked {
                            put(simd, to.add(blocks), im, left);
                            put(simd, to.add(second + blocks), simd.sub(simd.zero(), re), left);
                        }
                    }
                }
            }
        }
    }
}

impl<T: Scalar> Kernel<T> for Inverse<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { lines, head, layout, spectra, y, update, scratch } = self;
        let (half, len) = (lines.half, 2 * lines.half);
        let blocks = y.len().div_ceil(len);
        let (width, second) = (layout.width(blocks), spectra.len() / 2);
        assert!(head >= 2 * blocks && second >= head + (half - 1) * width);
        assert!(len.is_multiple_of(S::LANES) || len == 2 || len == 4);
        let (rows, scratch) = scratch.split_at_mut(COLUMNS * len);
        let (copy, work) = scratch.split_at_mut(COLUMNS * len);
        assert!(work.len() == lines.panel_len());
        for (start, y) in y.chunks_mut(COLUMNS * len).enumerate().map(|(g, y)| (g * COLUMNS, y)) {
            let direct = y.len() == COLUMNS * len && update == Update::Overwrite;
            let to = if direct { y.as_mut_ptr() } else { copy.as_mut_ptr() };
            let (work, rows) = (work.as_mut_ptr(), rows.as_mut_ptr());
            for part in (0..COLUMNS).step_by(S::LANES) {
                let left = (blocks - start).saturating_sub(part);
                if left == 0 {
                    break;
                }
                // SAFETY: `to` has COLUMNS blocks, `rows` as many numbers and `work` those of the lines, `spectra` the bins of `left` blocks
                // from `from` on; `part` is the first column of a vector.
                unsafe {
                    let (work, rows) = (work.add(part), rows.add(part));
                    let from = spectra.as_ptr().add(start + part);
                    simd.store(work, get(simd, from, left));
                    simd.store(work.add(COLUMNS), get(simd, from.add(blocks), left));
                    for bin in 1..half {
                        let from = from.add(head + (bin - 1) * width);
                        let (mut re, mut im) = (get(simd, from, left), get(simd, from.add(second), left));
                        if layout == Layout::Stacked {
                            re = simd.sub(re, get(simd, from.add(second + blocks), left));
                            im = simd.add(im, get(simd, from.add(blocks), left));
                        }
                        put_bin(simd, lines, work, bin, (re, im));
                    }
                    lines.inverse(
                        simd,
                        work,
                        None,
                        #[inline(always)]
                        |t, v| simd.store(rows.add(t * COLUMNS), v),
                    );
                    let to = to.add(part * len);
                    if len.is_multiple_of(S::LANES) {
                        for t in (0..len).step_by(S::LANES) {
                            unsquare(simd, square_of(simd, rows.add(t * COLUMNS)), to.add(t), len);
                        }
                    } else if len == 2 {
                        unspread::<T, S, 2>(simd, rows, to);
                    } else {
                        unspread::<T, S, 4>(simd, rows, to);
                    }
                }
            }
            match update {
                _ if direct => (),
                Update::Overwrite => y.copy_from_slice(&copy[..y.len()]),
                Update::Accumulate => y.iter_mut().zip(&*copy).for_each(|(y, w)| *y += *w),
            }
        }
    }
}

/// Reads a complex bin of lines; line 0 holds the real ones.
///
/// # Safety
/// `work` points at a vector of columns of the lines.
#[inline(always)]
unsafe fn get_bin<T: Scalar, S: Simd<T>>(
    simd: S,
    lines: &Lines<T>,
    work: *const T,
    bin: usize,
) -> (S::V, S::V) {
    let (line, conjugate) = lines.places[bin];
    // SAFETY: the caller's.
    let (re, im) = unsafe {
        let line = work.add(line as usize * LINE);
        (simd.load(line), simd.load(line.add(COLUMNS)))
    };
    (re, if conjugate { simd.sub(simd.zero(), im) } else { im })
}

/// Writes it.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn put_bin<T: Scalar, S: Simd<T>>(
    simd: S,
    lines: &Lines<T>,
    work: *mut T,
    bin: usize,
    (re, im): (S::V, S::V),
) {
    let (line, conjugate) = lines.places[bin];
    // SAFETY: the caller's.
    unsafe {
        let line = work.add(line as usize * LINE);
        simd.store(line, re);
        simd.store(line.add(COLUMNS), if conjugate { simd.sub(simd.zero(), im) } else { im });
    }
}

/// Writes `LANES` blocks of `N` numbers to as many columns of a panel.
///
/// # Safety
/// The blocks are readable, the columns writable.
#[inline(always)]
unsafe fn spread<T: Copy, S: Simd<T>, const N: usize>(simd: S, blocks: *const T, rows: *mut T) {
    let mut columns = [simd.zero(); N];
    // SAFETY: the caller's.
    unsafe {
        for (i, v) in columns.iter_mut().enumerate() {
            *v = simd.load(blocks.add(i * S::LANES));
        }
        for (t, v) in shuffle(simd, columns, S::LANES.ilog2()).iter().enumerate() {
            simd.store(rows.add(t * COLUMNS), *v);
        }
    }
}

/// Writes the columns back.
///
/// # Safety
/// The columns are readable, the blocks writable.
#[inline(always)]
unsafe fn unspread<T: Copy, S: Simd<T>, const N: usize>(simd: S, rows: *const T, blocks: *mut T) {
    let mut columns = [simd.zero(); N];
    // SAFETY: the caller's.
    unsafe {
        for (t, v) in columns.iter_mut().enumerate() {
            *v = simd.load(rows.add(t * COLUMNS));
        }
        for (i, v) in shuffle(simd, columns, N.ilog2()).iter().enumerate() {
            simd.store(blocks.add(i * S::LANES), *v);
        }
    }
}

/// A square of `LANES` rows of a panel.
///
/// # Safety
/// The rows are readable.
#[inline(always)]
unsafe fn square_of<T: Copy, S: Simd<T>>(simd: S, from: *const T) -> [S::V; 16] {
    let mut rows = [simd.zero(); 16];
    for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
        // SAFETY: the caller's.
        *row = unsafe { simd.load(from.add(i * COLUMNS)) };
    }
    rows
}

/// Reads a vector, or what is left.
///
/// # Safety
/// `from` is valid for `left` or LANES reads.
#[inline(always)]
unsafe fn get<T: Copy, S: Simd<T>>(simd: S, from: *const T, left: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe { if left < S::LANES { simd.load_part(from, left) } else { simd.load(from) } }
}

/// Writes a vector, or what is left.
///
/// # Safety
/// `to` is valid for `left` or LANES writes.
#[inline(always)]
unsafe fn put<T: Copy, S: Simd<T>>(simd: S, to: *mut T, v: S::V, left: usize) {
    // SAFETY: the caller's.
    unsafe { if left < S::LANES { simd.store_part(to, v, left) } else { simd.store(to, v) } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::fft::unit;

    /// Blocks of a row that ends within the last one, against the formula, and back.
    fn check<T: Scalar>(level: Level, layout: Layout, len: usize, numbers: usize, tolerance: f64) {
        let transform = BlockTransform::<T>::new(len);
        let blocks = numbers.div_ceil(len);
        assert_eq!(transform.real_bins() + 2 * transform.bins(), len);
        let x: Vec<f64> = (0..numbers).map(|j| ((j * j + 3) as f64).sin()).collect();
        let narrow: Vec<T> = x.iter().map(|x| T::narrow(*x)).collect();
        let mut scratch = vec![T::narrow(f64::NAN); transform.scratch_len()];
        // Halves may be longer than what they hold.
        let mut spectra = vec![T::narrow(f64::NAN); 2 * (bins_len(len, layout, blocks) + 3)];
        transform.forward(level, &narrow, layout, &mut spectra, &mut scratch);
        let (width, second, head) = (layout.width(blocks), spectra.len() / 2, transform.head(blocks));
        let (real, complex) = transform.gains();
        for (block, x) in x.chunks(len).enumerate() {
            let sum = |bin: usize| -> Complex<f64> {
                let turn = |t: usize| unit::<f64>((bin * t % len) as f64 / len as f64);
                x.iter().enumerate().map(|(t, x)| turn(t) * x).sum()
            };
            let is = |value: T, expected: f64| {
                let error = (value.widen() - expected).abs();
                assert!(error < tolerance * len as f64, "{level} {len} {numbers} block {block}");
            };
            for bin in 0..transform.real_bins() {
                let at = bin * blocks + block;
                is(spectra[at], sum(bin * (len / 2)).re);
                spectra[at] *= T::narrow(1.0 / real);
            }
            for bin in 0..transform.bins() {
                let (at, sum) = (head + bin * width + block, sum(bin + 1));
                is(spectra[at], sum.re);
                is(spectra[second + at], sum.im);
                if layout == Layout::Stacked {
                    is(spectra[at + blocks], sum.im);
                    is(spectra[second + at + blocks], -sum.re);
                    // What adds up to the spectrum.
                    (spectra[second + at], spectra[second + at + blocks]) = (T::narrow(1.0), T::narrow(2.0));
                    spectra[at] += T::narrow(2.0);
                    spectra[at + blocks] -= T::narrow(1.0);
                }
            }
        }
        for row in [head, second + head] {
            let all = &mut spectra[row..row + transform.bins() * width];
            all.iter_mut().for_each(|z| *z *= T::narrow(1.0 / complex));
        }
        for update in [Update::Overwrite, Update::Accumulate] {
            let (start, before) = match update {
                Update::Overwrite => (f64::NAN, 0.0),
                Update::Accumulate => (1.0, 1.0),
            };
            let mut y = vec![T::narrow(start); numbers];
            transform.inverse(level, layout, &spectra, &mut y, update, &mut scratch);
            for (y, x) in y.iter().zip(&x) {
                let error = y.widen() - before - x;
                assert!(error.abs() < tolerance, "{level} {len} {numbers}: {error:e}");
            }
        }
    }

    #[test]
    fn transforms_of_blocks_equal_their_formula_and_invert_at_every_level() {
        for level in Level::available() {
            for len in [1, 2, 3, 4, 5, 6, 8, 16, 32, 64, 128] {
                for numbers in [1, len, 3 * len + 2, 16 * len, 33 * len - 1, 40 * len] {
                    for layout in [Layout::Planes, Layout::Stacked] {
                        check::<f64>(level, layout, len, numbers, 1e-13);
                        check::<f32>(level, layout, len, numbers, 1e-5);
                    }
                }
            }
        }
    }
}
