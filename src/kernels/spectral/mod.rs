//! Convolutions: transforms of real rows to spectra in whatever order is fastest, and products between spectra.
//!
//! A spectrum is chunks of [`CHUNK`] frequencies: real parts, then imaginary parts. Those of several blocks have their first chunks side by
//! side, then their second ones. A frequency or its conjugate is there, or both. The last chunk of a transform in columns is odd: 8 frequencies with
//! real and imaginary parts in a vector, and the same the other way round, so that a product with 8 real and 8 imaginary parts of weights takes
//! half the time of a whole chunk; of its results the halves are to be added. Padding holds anything: lanes never meet.

mod blocks;
mod butterfly;
mod columns;
mod grid;
mod lines;

use super::fft::{RealFft, unit};
use super::level::Level;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
pub(crate) use blocks::{BlockTransform, Layout, bins_len};
use columns::Columns;
pub use grid::{GridProduct, SpectrumGrid};
use num_complex::Complex;

/// Frequencies that are stored side by side.
const CHUNK: usize = 16;

/// Numbers of a chunk.
const PAIR: usize = 2 * CHUNK;

/// Transforms of real rows of one length: forward to the Fourier transform, and back by the adjoint: the real parts of the sum over the places of
/// the spectrum.
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

    /// Whether there is one only, of a length that [`convolve`](Self::convolve) takes.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(&self.transform.kind, Kind::Columns(plan) if plan.is_alone()) && self.grid.shape() == (1, 1)
    }

    /// `y (+)=` the leading entries of the convolution of `x`, followed by zeros, without a spectrum in between. There must be
    /// [one only](Self::is_alone).
    pub(crate) fn convolve(
        &self,
        level: Level,
        op: Op,
        x: &[T],
        y: &mut [T],
        update: Update,
        scratch: &mut [T],
    ) {
        let Kind::Columns(plan) = &self.transform.kind else { return };
        let (weights, work) = (self.grid.weights(), &mut scratch[..Columns::<T>::scratch_len(plan.len())]);
        let pass = columns::Convolve { plan, weights, op, x, y, update, work };
        T::transform(level, TransformPass(Pass::Convolve(pass)));
    }
}

/// Transforms of a row in vectors; compiled for each type in `scalar.rs`.
#[derive(Debug)]
pub struct TransformPass<'a, T>(Pass<'a, T>);

#[derive(Debug)]
enum Pass<'a, T> {
    Columns(columns::Forward<'a, T>),
    ColumnsBack(columns::Inverse<'a, T>),
    Convolve(columns::Convolve<'a, T>),
    Blocks(blocks::Forward<'a, T>),
    BlocksBack(blocks::Inverse<'a, T>),
}

impl<T: Scalar> TransformPass<'_, T> {
    /// Does it.
    pub(crate) fn run(self, level: Level) {
        match self.0 {
            Pass::Columns(pass) => T::dispatch(level, pass),
            Pass::ColumnsBack(pass) => T::dispatch(level, pass),
            Pass::Convolve(pass) => T::dispatch(level, pass),
            Pass::Blocks(pass) => T::dispatch(level, pass),
            Pass::BlocksBack(pass) => T::dispatch(level, pass),
        }
    }
}

/// Chunks of the spectrum of a row of this length, and whether an odd one follows.
fn chunks(len: usize) -> (usize, bool) {
    match Columns::<f64>::fit(len) {
        true => (len / PAIR, true),
        false => ((len / 2 + 1).div_ceil(CHUNK), false),
    }
}

/// Numbers of the spectrum of a row of this length.
pub(crate) fn spectrum_len(len: usize) -> usize {
    let (whole, odd) = chunks(len);
    (whole + usize::from(odd)).saturating_mul(PAIR)
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
            return Columns::<T>::scratch_len(len);
        }
        let plan = RealFft::<T>::new(len);
        2 * (plan.bins() + plan.scratch_len())
    }

    /// The spectra of `count` pieces of `x`, followed by zeros.
    pub(crate) fn forward(&self, level: Level, x: &[T], count: usize, z: &mut [T], scratch: &mut [T]) {
        match &self.kind {
            Kind::Columns(plan) => {
                let work = &mut scratch[..Columns::<T>::scratch_len(plan.len())];
                T::transform(
                    level,
                    TransformPass(Pass::Columns(columns::Forward { plan, x, count, z, work })),
                )
            }
            Kind::Library(plan) => {
                let (bins, scratch) = bytemuck::cast_slice_mut(scratch).split_at_mut(plan.bins());
                for k in 0..count {
                    let (start, end) = (k * plan.len(), (k + 1) * plan.len());
                    plan.forward(&x[start.min(x.len())..end.min(x.len())], bins, scratch);
                    let chunks = z.chunks_exact_mut(PAIR).skip(k).step_by(count);
                    for (chunk, bins) in chunks.zip(bins.chunks(CHUNK)) {
                        let (re, im) = chunk.split_at_mut(CHUNK);
                        for ((re, im), z) in re.iter_mut().zip(im).zip(bins) {
                            (*re, *im) = (z.re, z.im);
                        }
                    }
                }
            }
        }
    }

    /// `y (+)=` the leading entries of `count` rows with these spectra.
    pub(crate) fn inverse(
        &self,
        level: Level,
        z: &[T],
        count: usize,
        y: &mut [T],
        update: Update,
        scratch: &mut [T],
    ) {
        match &self.kind {
            Kind::Columns(plan) => {
                let work = &mut scratch[..Columns::<T>::scratch_len(plan.len())];
                let pass = columns::Inverse { plan, count, z, y, update, work };
                T::transform(level, TransformPass(Pass::ColumnsBack(pass)))
            }
            Kind::Library(plan) => {
                let (bins, scratch) = bytemuck::cast_slice_mut(scratch).split_at_mut(plan.bins());
                // The plan counts mirror images too.
                let half = T::narrow(0.5);
                for (k, y) in y.chunks_mut(plan.len().max(1)).enumerate() {
                    let chunks = z.chunks_exact(PAIR).skip(k).step_by(count);
                    for (chunk, bins) in chunks.zip(bins.chunks_mut(CHUNK)) {
                        let (re, im) = chunk.split_at(CHUNK);
                        for ((re, im), z) in re.iter().zip(im).zip(bins) {
                            *z = Complex::new(*re * half, *im * half);
                        }
                    }
                    for bin in self.alone() {
                        bins[bin] = Complex::new(bins[bin].re + bins[bin].re, T::zero());
                    }
                    plan.inverse(bins, y, update, scratch);
                }
            }
        }
    }

    /// The real frequencies.
    fn alone(&self) -> impl Iterator<Item = usize> {
        let len = self.len();
        let last = (len.is_multiple_of(2) && len > 0).then_some(len / 2);
        std::iter::once(0).chain(last)
    }

    /// The frequency at each place of the spectrum, and what undoes a round trip there.
    pub(crate) fn frequencies(&self) -> impl Iterator<Item = (usize, f64)> {
        let len = self.len();
        let places = match &self.kind {
            Kind::Columns(_) => len / 2 + CHUNK / 2,
            Kind::Library(plan) => plan.bins(),
        };
        (0..places).map(move |place| {
            let (bin, double) = match &self.kind {
                Kind::Columns(plan) => (plan.bin(place), plan.is_double(place)),
                Kind::Library(_) => (place, self.alone().any(|bin| bin == place)),
            };
            (bin, if double { 1.0 } else { 2.0 } / len as f64)
        })
    }

    /// Where a spectrum has the real part of a place; the imaginary part comes [`CHUNK`] numbers later.
    pub(crate) fn at(place: usize) -> (usize, usize) {
        let at = place / CHUNK * PAIR + place % CHUNK;
        (at, at + CHUNK)
    }

    /// Makes the spectrum that a product gives one whose odd chunk has each number once, and zeros elsewhere.
    pub(crate) fn gather_odd(&self, z: &mut [T]) {
        if let Some(odd) = self.odd(z) {
            for half in odd.as_chunks_mut::<CHUNK>().0 {
                let (low, high) = half.split_at_mut(CHUNK / 2);
                low.iter_mut().zip(high).for_each(|(low, high)| *low += std::mem::replace(high, T::zero()));
            }
        }
    }

    /// Makes such a spectrum one that a product takes.
    pub(crate) fn spread_odd(&self, z: &mut [T]) {
        if let Some(odd) = self.odd(z) {
            odd.copy_within(..CHUNK / 2, CHUNK + CHUNK / 2);
            odd.copy_within(CHUNK..CHUNK + CHUNK / 2, CHUNK / 2);
        }
    }

    fn odd<'a>(&self, z: &'a mut [T]) -> Option<&'a mut [T]> {
        let start = z.len() - PAIR;
        matches!(self.kind, Kind::Columns(_)).then(|| &mut z[start..])
    }

    /// Weights whose product turns the spectrum of a row, its even entries ascending before its odd ones descending, into the orthonormal
    /// cosine transform (DCT-II) of the row: coefficient `k` is the real part of frequency `k`, and coefficient `len - k` the imaginary
    /// part with the opposite sign, also where a place has a frequency above `len / 2`. The adjoint and the inverse transform, of one place for each
    /// coefficient, undo it.
    pub(crate) fn cosine_turns(&self) -> SpectrumGrid<T> {
        let len = self.len();
        SpectrumGrid::new((1, 1), chunks(len), |_, _| {
            let turn = |(bin, _): (usize, f64)| {
                let scale = if bin == 0 { 1.0 } else { 2.0 } / len as f64;
                unit::<f64>(bin as f64 / (4 * len) as f64) * scale.sqrt()
            };
            self.frequencies().map(turn).collect()
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
        SpectrumGrid::new(shape, chunks(len), |i, j| {
            exact.forward(&sequence(i, j), &mut bins, &mut scratch);
            let at = |bin: usize| if bin < bins.len() { bins[bin] } else { bins[len - bin].conj() };
            self.frequencies().map(|(bin, share)| at(bin) * share).collect()
        })
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
        let block = spectrum_len(len);
        let mut scratch = vec![T::narrow(f64::NAN); Transform::<T>::scratch_len(len)];
        for op in [Op::Forward, Op::Transpose] {
            let (outputs, inputs) = op.order(a, b);
            // The last blocks are cut; one row holds NaN, and so does all padding.
            let have = inputs * len - len / 3;
            let input = |r: usize| sequence(100 + r, have);
            let mut x = vec![T::narrow(f64::NAN); rows * inputs * block];
            for (r, z) in x.chunks_exact_mut(inputs * block).enumerate() {
                let mut row = narrow::<T>(input(r));
                if r == 1 {
                    // In every block.
                    row.iter_mut().step_by(len.min(2)).for_each(|x| *x = T::narrow(f64::NAN));
                }
                transform.forward(level, &row, inputs, z, &mut scratch);
            }
            let mut z = vec![T::narrow(f64::NAN); rows * outputs * block];
            grid.multiply(level, op, rows, 0..outputs, &x, &mut z);
            // Any part of the outputs has the same numbers.
            for part in [0..outputs / 2, outputs / 2..outputs, outputs / 3..outputs - 1] {
                let mut y = vec![T::narrow(f64::NAN); rows * part.len() * block];
                grid.multiply(level, op, rows, part.clone(), &x, &mut y);
                let whole =
                    z.chunks_exact(outputs * PAIR).flat_map(|z| &z[part.start * PAIR..part.end * PAIR]);
                // Which NaN it is depends on the tile.
                let bits = |y: &T| if y.widen().is_nan() { u64::MAX } else { y.widen().to_bits() };
                assert!(y.iter().map(bits).eq(whole.map(bits)), "{level} {op:?} {len} {a}x{b} {part:?}");
            }
            for (r, z) in z.chunks_exact(outputs * block).enumerate() {
                let take = outputs * len - len / 5;
                let mut y = vec![T::one(); take];
                transform.inverse(level, z, outputs, &mut y, Update::Accumulate, &mut scratch);
                let mut plain = vec![T::narrow(f64::NAN); take];
                transform.inverse(level, z, outputs, &mut plain, Update::Overwrite, &mut scratch);
                if r == 1 {
                    assert!(y.iter().all(|y| y.widen().is_nan()));
                    continue;
                }
                let x = input(r);
                for (t, (y, plain)) in y.iter().zip(&plain).enumerate() {
                    let mut sum = 0.0;
                    for n in 0..inputs {
                        let (i, j) = op.order(t / len, n);
                        let c = sequence(i * b + j, len);
                        for (s, x) in x[n * len..].iter().take(len).enumerate() {
                            let (to, from) = op.order(t % len, s);
                            sum += c[(to + len - from) % len] * x;
                        }
                    }
                    let error = (plain.widen() - sum).abs().max((y.widen() - 1.0 - sum).abs());
                    assert!(
                        error < tolerance * (len * inputs) as f64,
                        "{level} {op:?} {len} {a}x{b} row {r} at {t}: {plain} against {sum}"
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
            for shape in [(32, 29), (29, 32)] {
                check::<f32>(level, 128, shape, 1, 1e-5);
            }
        }
    }

    #[test]
    fn long_transforms_invert() {
        for level in Level::available() {
            for len in (8..17).map(|n| 1 << n) {
                let mut c = vec![0.0; len];
                c[1] = 1.0;
                let Convolution { transform, grid } = Convolution::<f64>::new(len, (1, 1), |_, _| c.clone());
                let (x, mut z) = (sequence(1, len), vec![0.0; spectrum_len(len)]);
                let (mut y, mut scratch) = (vec![0.0; len], vec![0.0; Transform::<f64>::scratch_len(len)]);
                transform.forward(level, &x, 1, &mut z, &mut scratch);
                let mut product = z.clone();
                grid.multiply(level, Op::Forward, 1, 0..1, &z, &mut product);
                transform.inverse(level, &product, 1, &mut y, Update::Overwrite, &mut scratch);
                let error = (0..len).map(|j| (y[(j + 1) % len] - x[j]).abs()).fold(0.0, f64::max);
                assert!(error < 1e-14, "{level} {len}: {error:e}");
            }
        }
    }
}
