//! Transforms of the blocks of a row, blocks in the lanes: for blocks too short to fill vectors one by one.

use super::lines::{COLUMNS, LINE, Lines, square, unsquare};
use super::{Pass, TransformPass};
use crate::kernels::fft::RealFft;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::Simd;
use crate::matrix::Update;
use crate::scalar::Scalar;
use num_complex::Complex;

/// How the spectra $u + i v$ of the blocks of a row are written, bin by bin, as two rows for products with a real matrix $(A; B)$: they
/// are products with $A + i B$, whose numbers are so held once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// $u$ and $v$: what is multiplied, and what the adjoint gives.
    Planes,
    /// Products $(A u, B u)$ and $(A v, B v)$, for the spectrum $(A u - B v) + i (B u + A v)$. To be multiplied by the adjoint,
    /// $(u, v)$ and $(v, -u)$.
    Stacked,
}

impl Layout {
    /// Entries of a bin in each row.
    pub(crate) fn width(self, blocks: usize) -> usize {
        if self == Layout::Planes { blocks } else { 2 * blocks }
    }
}

/// Transforms of all blocks of a row, to `len / 2 + 1` bins.
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
        let kind = match len.is_power_of_two() && len >= 8 {
            true => Kind::Lines(Lines::new(len)),
            false => Kind::Library(RealFft::new(len)),
        };
        Self { len, kind }
    }

    /// Complex numbers of the spectrum of a block.
    pub(crate) fn bins(&self) -> usize {
        self.len / 2 + 1
    }

    /// What a round trip multiplies a bin by.
    pub(crate) fn gain(&self, bin: usize) -> f64 {
        let alone = bin == 0 || 2 * bin == self.len;
        match &self.kind {
            Kind::Lines(_) if !alone => 0.5 * self.len as f64,
            _ => self.len as f64,
        }
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
                T::transform(
                    fitting(lines, level),
                    TransformPass(Pass::Blocks(Forward { lines, x, layout, spectra, scratch })),
                )
            }
            Kind::Library(plan) => {
                let (z, scratch) = bytemuck::cast_slice_mut(scratch).split_at_mut(plan.bins());
                let blocks = x.len().div_ceil(self.len);
                let width = layout.width(blocks);
                let (first, second) = spectra.split_at_mut(spectra.len() / 2);
                for (j, x) in x.chunks(self.len).enumerate() {
                    plan.forward(x, z, scratch);
                    let halves = first.chunks_exact_mut(width).zip(second.chunks_exact_mut(width));
                    for (z, (first, second)) in z.iter().zip(halves) {
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
                let inverse = Inverse { lines, layout, spectra, y, update, scratch };
                T::transform(fitting(lines, level), TransformPass(Pass::BlocksBack(inverse)))
            }
            Kind::Library(plan) => {
                let (z, scratch) = bytemuck::cast_slice_mut(scratch).split_at_mut(plan.bins());
                let blocks = y.len().div_ceil(self.len);
                let width = layout.width(blocks);
                let (first, second) = spectra.split_at(spectra.len() / 2);
                for (i, y) in y.chunks_mut(self.len).enumerate() {
                    let halves = first.chunks_exact(width).zip(second.chunks_exact(width));
                    for (z, (first, second)) in z.iter_mut().zip(halves) {
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

/// The level whose vectors are no longer than the blocks.
fn fitting<T>(lines: &Lines<T>, level: Level) -> Level {
    if 2 * lines.half * size_of::<T>() < 64 { level.min(Level::Avx2) } else { level }
}

#[derive(Debug)]
pub(super) struct Forward<'a, T> {
    lines: &'a Lines<T>,
    x: &'a [T],
    layout: Layout,
    spectra: &'a mut [T],
    scratch: &'a mut [T],
}

#[derive(Debug)]
pub(super) struct Inverse<'a, T> {
    lines: &'a Lines<T>,
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
        let Self { lines, x, layout, spectra, scratch } = self;
        let (half, len) = (lines.half, 2 * lines.half);
        let blocks = x.len().div_ceil(len);
        let (width, second) = (layout.width(blocks), spectra.len() / 2);
        assert!(len.is_multiple_of(S::LANES) && second >= (half + 1) * width);
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
                    for t in (0..len).step_by(S::LANES) {
                        let columns = square(simd, x.as_ptr().add(part * len + t), len);
                        for (c, column) in columns.iter().enumerate().take(S::LANES) {
                            simd.store(rows.add((t + c) * COLUMNS + part), *column);
                        }
                    }
                    let (work, rows) = (work.add(part), rows.add(part));
                    lines.forward(
                        simd,
                        #[inline(always)]
                        |t| simd.load(rows.add(t * COLUMNS)),
                        work,
                        None,
                    );
                    let to = spectra.as_mut_ptr().add(start + part);
                    for bin in 0..=half {
                        let (re, im) = get_bin(simd, lines, work, bin);
                        let to = to.add(bin * width);
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
        let Self { lines, layout, spectra, y, update, scratch } = self;
        let (half, len) = (lines.half, 2 * lines.half);
        let blocks = y.len().div_ceil(len);
        let (width, second) = (layout.width(blocks), spectra.len() / 2);
        assert!(len.is_multiple_of(S::LANES) && second >= (half + 1) * width);
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
                    for bin in 0..=half {
                        let from = from.add(bin * width);
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
                    for t in (0..len).step_by(S::LANES) {
                        unsquare(simd, square_of(simd, rows.add(t * COLUMNS)), to.add(part * len + t), len);
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

/// Reads a bin of lines; line 0 holds the real first and last bins.
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
    // SAFETY: the caller's.
    unsafe {
        match lines.places[bin] {
            (0, _) => (simd.load(work.add(if bin == 0 { 0 } else { COLUMNS })), simd.zero()),
            (line, conjugate) => {
                let line = work.add(line as usize * LINE);
                let (re, im) = (simd.load(line), simd.load(line.add(COLUMNS)));
                (re, if conjugate { simd.sub(simd.zero(), im) } else { im })
            }
        }
    }
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
    // SAFETY: the caller's.
    unsafe {
        match lines.places[bin] {
            (0, _) => simd.store(work.add(if bin == 0 { 0 } else { COLUMNS }), re),
            (line, conjugate) => {
                let line = work.add(line as usize * LINE);
                simd.store(line, re);
                simd.store(line.add(COLUMNS), if conjugate { simd.sub(simd.zero(), im) } else { im });
            }
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
        let (blocks, bins) = (numbers.div_ceil(len), transform.bins());
        let x: Vec<f64> = (0..numbers).map(|j| ((j * j + 3) as f64).sin()).collect();
        let narrow: Vec<T> = x.iter().map(|x| T::narrow(*x)).collect();
        let mut scratch = vec![T::narrow(f64::NAN); transform.scratch_len()];
        // Halves may be longer than what they hold.
        let mut spectra = vec![T::narrow(f64::NAN); 4 * (bins * blocks + 3)];
        transform.forward(level, &narrow, layout, &mut spectra, &mut scratch);
        let (width, second) = (layout.width(blocks), spectra.len() / 2);
        for (block, x) in x.chunks(len).enumerate() {
            for bin in 0..bins {
                let turn = |t: usize| unit::<f64>((bin * t % len) as f64 / len as f64);
                let sum: Complex<f64> = x.iter().enumerate().map(|(t, x)| turn(t) * x).sum();
                let at = bin * width + block;
                let is = |at: usize, expected: f64| {
                    let error = (spectra[at].widen() - expected).abs();
                    assert!(
                        error < tolerance * len as f64,
                        "{level} {len} {numbers} block {block} bin {bin}"
                    );
                };
                is(at, sum.re);
                is(second + at, sum.im);
                if layout == Layout::Stacked {
                    is(at + blocks, sum.im);
                    is(second + at + blocks, -sum.re);
                    // What adds up to the spectrum.
                    (spectra[second + at], spectra[second + at + blocks]) = (T::narrow(1.0), T::narrow(2.0));
                    spectra[at] += T::narrow(2.0);
                    spectra[at + blocks] -= T::narrow(1.0);
                }
            }
        }
        for bin in 0..bins {
            let scale = T::narrow(1.0 / transform.gain(bin));
            for at in [bin * width, second + bin * width] {
                spectra[at..at + width].iter_mut().for_each(|z| *z *= scale);
            }
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
            for len in [5, 6, 8, 16, 32, 64, 128] {
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
