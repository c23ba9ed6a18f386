//! Convolutions: transforms of real rows to spectra in whatever order is fastest, and products between spectra.
//!
//! A spectrum is a plane of real parts and one of imaginary parts, padded to whole vectors; the two frequencies that are real share
//! an entry. Padding holds anything: lanes never meet.

mod blocks;
mod butterfly;
mod columns;
mod grid;
mod lines;

use super::fft::{RealFft, unit};
use super::level::Level;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
pub(crate) use blocks::{BlockTransform, Layout};
use columns::Columns;
use grid::CHUNK;
pub use grid::{GridProduct, SpectrumGrid};
use num_complex::Complex;
use std::f64::consts::FRAC_1_SQRT_2;

/// Transforms of real rows of one length: forward to twice the Fourier transform, back by the unnormalised sum over all frequencies.
#[derive(Debug, Clone)]
pub(crate) struct Transform<T> {
    kind: Kind<T>,
}

#[derive(Debug, Clone)]
enum Kind<T> {
    Columns(Columns<T>),
    /// Any length, by `rustfft`.
    Library(RealFft<T>),
}

/// A grid of cyclic convolutions.
#[derive(Debug, Clone)]
pub(crate) struct Convolution<T> {
    pub(crate) transform: Transform<T>,
    pub(crate) grid: SpectrumGrid<T>,
}

impl<T: Scalar> Convolution<T> {
    /// With the sequences `sequence(i, j)` of `len` numbers.
    pub(crate) fn new(
        len: usize,
        shape: (usize, usize),
        sequence: impl FnMut(usize, usize) -> Vec<f64>,
    ) -> Self {
        let transform = Transform::new(len);
        let grid = transform.grid(shape, sequence);
        Self { transform, grid }
    }
}

/// Transforms of a row in vectors; compiled for each type in `scalar.rs`.
#[derive(Debug)]
pub struct TransformPass<'a, T>(Pass<'a, T>);

#[derive(Debug)]
enum Pass<'a, T> {
    Columns(columns::Forward<'a, T>),
    ColumnsBack(columns::Inverse<'a, T>),
    Blocks(blocks::Forward<'a, T>),
    BlocksBack(blocks::Inverse<'a, T>),
}

impl<T: Scalar> TransformPass<'_, T> {
    /// Does it.
    pub(crate) fn run(self, level: Level) {
        match self.0 {
            Pass::Columns(pass) => T::dispatch(level, pass),
            Pass::ColumnsBack(pass) => T::dispatch(level, pass),
            Pass::Blocks(pass) => T::dispatch(level, pass),
            Pass::BlocksBack(pass) => T::dispatch(level, pass),
        }
    }
}

/// Entries of a plane of the spectra of rows of this length.
pub(crate) fn plane(len: usize) -> usize {
    len.div_ceil(2).checked_next_multiple_of(CHUNK).unwrap_or(usize::MAX)
}

impl<T: Scalar> Transform<T> {
    pub(crate) fn new(len: usize) -> Self {
        let kind = match Columns::<T>::fit(len) {
            true => Kind::Columns(Columns::new(len)),
            false => Kind::Library(RealFft::new(len)),
        };
        Self { kind }
    }

    /// Transform length.
    pub(crate) fn len(&self) -> usize {
        match &self.kind {
            Kind::Columns(plan) => plan.len(),
            Kind::Library(plan) => plan.len(),
        }
    }

    /// Scratch entries that either direction of a transform of this length needs.
    pub(crate) fn scratch_len(len: usize) -> usize {
        if Columns::<T>::fit(len) {
            return len;
        }
        let plan = RealFft::<T>::new(len);
        2 * (plan.bins() + plan.scratch_len())
    }

    /// The spectrum of `x` followed by zeros: two planes.
    pub(crate) fn forward(&self, level: Level, x: &[T], z: &mut [T], scratch: &mut [T]) {
        match &self.kind {
            Kind::Columns(plan) => {
                let work = &mut scratch[..plan.len()];
                let pass = Pass::Columns(columns::Forward { plan, x, z, work });
                T::transform(plan.level(level), TransformPass(pass))
            }
            Kind::Library(plan) => {
                let (bins, scratch) = bytemuck::cast_slice_mut(scratch).split_at_mut(plan.bins());
                plan.forward(x, bins, scratch);
                let (re, im) = z.split_at_mut(z.len() / 2);
                for ((re, im), z) in re.iter_mut().zip(im.iter_mut()).zip(&bins[..plan.len().div_ceil(2)]) {
                    (*re, *im) = (z.re + z.re, z.im + z.im);
                }
                if plan.len().is_multiple_of(2) && plan.len() > 0 {
                    let last = bins[plan.len() / 2].re;
                    im[0] = last + last;
                }
            }
        }
    }

    /// `y (+)=` the leading entries of the row whose spectrum is `z`; destroys the spectrum.
    pub(crate) fn inverse(&self, level: Level, z: &mut [T], y: &mut [T], update: Update, scratch: &mut [T]) {
        match &self.kind {
            Kind::Columns(plan) => {
                let work = &mut scratch[..plan.len()];
                let pass = Pass::ColumnsBack(columns::Inverse { plan, z, y, update, work });
                T::transform(plan.level(level), TransformPass(pass))
            }
            Kind::Library(plan) => {
                let (bins, scratch) = bytemuck::cast_slice_mut(scratch).split_at_mut(plan.bins());
                let (re, im) = z.split_at(z.len() / 2);
                for ((re, im), z) in re.iter().zip(im).zip(&mut bins[..plan.len().div_ceil(2)]) {
                    *z = Complex::new(*re, *im);
                }
                if plan.len().is_multiple_of(2) && plan.len() > 0 {
                    bins[plan.len() / 2] = Complex::new(im[0], T::zero());
                    bins[0].im = T::zero();
                }
                plan.inverse(bins, y, update, scratch);
            }
        }
    }

    /// The frequency up to `len / 2` at a place of the spectrum, and whether its conjugate is there. Place 0 has frequency 0 as
    /// real part and, for even lengths, frequency `len / 2` as imaginary part.
    pub(crate) fn frequency(&self, place: usize) -> (usize, bool) {
        let bin = match &self.kind {
            Kind::Columns(plan) => plan.bin(place),
            Kind::Library(_) => place,
        };
        if bin <= self.len() / 2 { (bin, false) } else { (self.len() - bin, true) }
    }

    /// Weights whose product turns the spectrum of a row, its even entries ascending before its odd ones descending, into the orthonormal
    /// cosine transform (DCT-II) of the row: coefficient `k` is the real part of frequency `k`, and coefficient `len - k` the imaginary
    /// part with the opposite sign. The adjoint, place 0 doubled, and the inverse transform undo it.
    pub(crate) fn cosine_turns(&self) -> SpectrumGrid<T> {
        let len = self.len();
        let scale = (2.0 * len as f64).powf(-0.5);
        SpectrumGrid::new((1, 1), plane(len), |_, _| {
            let turn = |place: usize| match self.frequency(place) {
                (0, _) => Complex::new(FRAC_1_SQRT_2, FRAC_1_SQRT_2) * scale,
                (bin, conjugate) => {
                    let w = unit::<f64>(bin as f64 / (4 * len) as f64) * scale;
                    if conjugate { w.conj() } else { w }
                }
            };
            (0..len.div_ceil(2)).map(turn).collect()
        })
    }

    /// Weights of products whose round trip, transform, product and inverse, convolves cyclically with `sequence(i, j)`.
    fn grid(
        &self,
        shape: (usize, usize),
        mut sequence: impl FnMut(usize, usize) -> Vec<f64>,
    ) -> SpectrumGrid<T> {
        let (len, exact) = (self.len(), RealFft::<f64>::new(self.len()));
        let mut bins = vec![Complex::default(); exact.bins()];
        let mut scratch = vec![Complex::default(); exact.scratch_len()];
        SpectrumGrid::new(shape, plane(len), |i, j| {
            exact.forward(&sequence(i, j), &mut bins, &mut scratch);
            let weight = |place: usize| {
                let (bin, conjugate) = self.frequency(place);
                let w = if conjugate { bins[bin].conj() } else { bins[bin] };
                let im = if place == 0 && len.is_multiple_of(2) { bins[len / 2].re } else { w.im };
                // A round trip multiplies by twice the length.
                Complex::new(w.re, im) * (0.5 / len as f64)
            };
            (0..len.div_ceil(2)).map(weight).collect()
        })
    }
}

impl<T: Scalar> SpectrumGrid<T> {
    /// Products with `rows` rows of spectra: `x` and `y` hold the blocks of each row one after the other, two planes each.
    pub(crate) fn multiply(&self, level: Level, op: Op, rows: usize, x: &[T], y: &mut [T]) {
        T::grid(level, GridProduct { grid: self, op, rows, x, y })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(seed: usize, len: usize) -> Vec<f64> {
        (0..len).map(|j| ((j * j + 7 * seed + 3) as f64).sin()).collect()
    }

    fn narrow<T: Scalar>(v: Vec<f64>) -> Vec<T> {
        v.into_iter().map(T::narrow).collect()
    }

    /// Rows of blocks through a grid, against the formula.
    fn check<T: Scalar>(level: Level, len: usize, (a, b): (usize, usize), rows: usize, tolerance: f64) {
        let Convolution { transform, grid } =
            Convolution::<T>::new(len, (a, b), |i, j| sequence(i * b + j, len));
        let block = 2 * plane(len);
        let mut scratch = vec![T::narrow(f64::NAN); Transform::<T>::scratch_len(len)];
        for op in [Op::Forward, Op::Transpose] {
            let (outputs, inputs) = op.order(a, b);
            // Shorter than the transform; one row holds NaN, and so does all padding.
            let have = len - len / 3;
            let input = |r: usize, j: usize| sequence(100 + r * inputs + j, have);
            let mut x = vec![T::narrow(f64::NAN); rows * inputs * block];
            for (k, z) in x.chunks_exact_mut(block).enumerate() {
                let mut row = narrow::<T>(input(k / inputs, k % inputs));
                if k / inputs == 1 {
                    row[have / 2] = T::narrow(f64::NAN);
                }
                transform.forward(level, &row, z, &mut scratch);
            }
            let mut z = vec![T::narrow(f64::NAN); rows * outputs * block];
            grid.multiply(level, op, rows, &x, &mut z);
            for (k, z) in z.chunks_exact_mut(block).enumerate() {
                let (r, o) = (k / outputs, k % outputs);
                let take = len - len / 5;
                let mut y = vec![T::one(); take];
                let again = z.to_vec();
                transform.inverse(level, z, &mut y, Update::Accumulate, &mut scratch);
                let mut plain = vec![T::narrow(f64::NAN); take];
                transform.inverse(level, &mut again.clone(), &mut plain, Update::Overwrite, &mut scratch);
                if r == 1 {
                    assert!(y.iter().all(|y| y.widen().is_nan()));
                    continue;
                }
                for (t, (y, plain)) in y.iter().zip(&plain).enumerate() {
                    let mut sum = 0.0;
                    for n in 0..inputs {
                        let (i, j) = op.order(o, n);
                        let c = sequence(i * b + j, len);
                        for (s, x) in input(r, n).iter().enumerate() {
                            let (to, from) = op.order(t, s);
                            sum += c[(to + len - from) % len] * x;
                        }
                    }
                    let error = (plain.widen() - sum).abs().max((y.widen() - 1.0 - sum).abs());
                    assert!(
                        error < tolerance * (len * inputs) as f64,
                        "{level} {op:?} {len} {a}x{b} row {r} output {o} at {t}: {plain} against {sum}"
                    );
                }
            }
        }
    }

    #[test]
    fn grids_of_convolutions_equal_their_formula_at_every_level() {
        for level in Level::available() {
            for len in [1, 2, 3, 31, 32, 33, 48, 64, 100, 128, 255, 256, 512] {
                check::<f64>(level, len, (1, 1), 2, 1e-13);
                check::<f32>(level, len, (3, 2), 3, 1e-5);
            }
            check::<f64>(level, 64, (5, 3), 7, 1e-13);
            check::<f32>(level, 256, (6, 5), 5, 1e-5);
        }
    }

    #[test]
    fn long_transforms_invert() {
        for level in Level::available() {
            for len in (8..17).map(|n| 1 << n) {
                let mut c = vec![0.0; len];
                c[1] = 1.0;
                let Convolution { transform, grid } = Convolution::<f64>::new(len, (1, 1), |_, _| c.clone());
                let (x, mut z) = (sequence(1, len), vec![0.0; 2 * plane(len)]);
                let (mut y, mut scratch) = (vec![0.0; len], vec![0.0; Transform::<f64>::scratch_len(len)]);
                transform.forward(level, &x, &mut z, &mut scratch);
                let mut product = z.clone();
                grid.multiply(level, Op::Forward, 1, &z, &mut product);
                transform.inverse(level, &mut product, &mut y, Update::Overwrite, &mut scratch);
                let error = (0..len).map(|j| (y[(j + 1) % len] - x[j]).abs()).fold(0.0, f64::max);
                assert!(error < 1e-14, "{level} {len}: {error:e}");
            }
        }
    }
}
