//! Transforms of real rows on caller-owned scratch.
//!
//! Each row is transformed by itself, as a complex row of half the length. Packing two rows into one complex transform
//! would save the untangling pass, but lets the rounding errors (and NaN) of one row leak into the other.

use super::sparse::{Pattern, Sliced, WindowTiles};
use super::spectral::{BlockTransform, Convolution, SpectrumGrid, Transform};
use crate::matrix::Update;
use crate::scalar::Scalar;
use crate::storage::Factor;
use ndarray::{Array2, Axis};
use num_complex::Complex;
use rustfft::{Fft, FftDirection};
use std::fmt::{Debug, Formatter};
use std::sync::{Arc, OnceLock};

/// `exp(-i turns * 2 pi)`.
pub(crate) fn unit<T: Scalar>(turns: f64) -> Complex<T> {
    let (sin, cos) = (-std::f64::consts::TAU * turns).sin_cos();
    Complex::new(T::narrow(cos), T::narrow(sin))
}

/// Discrete Fourier transforms of real rows of length `len`, unnormalised both ways. A spectrum holds the
/// `len / 2 + 1` bins that determine the others, its [`bins`](Self::bins).
#[derive(Clone)]
pub(crate) struct RealFft<T> {
    len: usize,
    forward: Arc<dyn Fft<T>>,
    inverse: Arc<dyn Fft<T>>,
    /// `exp(-2 pi i k / len)` for `k <= len / 4`; empty for odd lengths, which take a complex transform of length `len`.
    twiddles: Vec<Complex<T>>,
}

impl<T> Debug for RealFft<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "RealFft({})", self.len)
    }
}

impl<T: Scalar> RealFft<T> {
    pub(crate) fn new(len: usize) -> Self {
        let even = len > 0 && len.is_multiple_of(2);
        let complex = if even { len / 2 } else { len };
        let twiddles = if even { len / 4 + 1 } else { 0 };
        Self {
            len,
            forward: T::plan_fft(complex, FftDirection::Forward),
            inverse: T::plan_fft(complex, FftDirection::Inverse),
            twiddles: (0..twiddles).map(|k| unit(k as f64 / len as f64)).collect(),
        }
    }

    /// Transform length.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Complex numbers of a spectrum.
    pub(crate) fn bins(&self) -> usize {
        self.len / 2 + 1
    }

    /// Complex scratch entries that [`forward`](Self::forward) and [`inverse`](Self::inverse) need.
    pub(crate) fn scratch_len(&self) -> usize {
        let row = if self.twiddles.is_empty() { self.len } else { 0 };
        row + self.forward.get_inplace_scratch_len().max(self.inverse.get_inplace_scratch_len())
    }

    /// `sum_j x_j exp(-2 pi i j k / len)` for the bins `k`, of `x` followed by zeros.
    pub(crate) fn forward(&self, x: &[T], spectrum: &mut [Complex<T>], scratch: &mut [Complex<T>]) {
        let zero = Complex::new(T::zero(), T::zero());
        if self.twiddles.is_empty() {
            let (row, scratch) = scratch.split_at_mut(self.len);
            row.iter_mut().zip(x).for_each(|(z, x)| *z = Complex::new(*x, T::zero()));
            row[x.len()..].fill(zero);
            self.forward.process_with_scratch(row, scratch);
            return spectrum.copy_from_slice(&row[..spectrum.len()]);
        }
        let half = self.len / 2;
        let (pairs, last) = x.as_chunks::<2>();
        for (z, [re, im]) in spectrum.iter_mut().zip(pairs) {
            *z = Complex::new(*re, *im);
        }
        spectrum[pairs.len()..].fill(zero);
        if let [last] = last {
            spectrum[pairs.len()].re = *last;
        }
        self.forward.process_with_scratch(&mut spectrum[..half], scratch);
        let first = spectrum[0];
        spectrum[0] = Complex::new(first.re + first.im, T::zero());
        spectrum[half] = Complex::new(first.re - first.im, T::zero());
        let scale = T::narrow(0.5);
        self.untangle(spectrum, |a, b, w| {
            let (even, odd) = ((a + b) * scale, (a - b) * scale * w);
            let odd = Complex::new(odd.im, -odd.re);
            (even + odd, (even - odd).conj())
        });
    }

    /// `y (+)= sum_k X_k exp(+2 pi i j k / len)` over all `len` bins, for the leading `j`; destroys the spectrum.
    pub(crate) fn inverse(
        &self,
        spectrum: &mut [Complex<T>],
        y: &mut [T],
        update: Update,
        scratch: &mut [Complex<T>],
    ) {
        if self.twiddles.is_empty() {
            let (row, scratch) = scratch.split_at_mut(self.len);
            for (k, z) in spectrum.iter().enumerate().take(self.len) {
                row[k] = *z;
                row[(self.len - k) % self.len] = z.conj();
            }
            row[0].im = T::zero();
            self.inverse.process_with_scratch(row, scratch);
            return match update {
                Update::Overwrite => y.iter_mut().zip(row).for_each(|(y, z)| *y = z.re),
                Update::Accumulate => y.iter_mut().zip(row).for_each(|(y, z)| *y += z.re),
            };
        }
        let half = self.len / 2;
        let (first, last) = (spectrum[0].re, spectrum[half].re);
        spectrum[0] = Complex::new(first + last, first - last);
        self.untangle(spectrum, |a, b, w| {
            let (even, odd) = (a + b, (a - b) * w.conj());
            let odd = Complex::new(-odd.im, odd.re);
            (even + odd, (even - odd).conj())
        });
        self.inverse.process_with_scratch(&mut spectrum[..half], scratch);
        let row: &[T] = bytemuck::cast_slice(&spectrum[..half]);
        match update {
            Update::Overwrite => y.copy_from_slice(&row[..y.len()]),
            Update::Accumulate => y.iter_mut().zip(row).for_each(|(y, z)| *y += *z),
        }
    }

    /// Replaces bins `k` and `half - k`, both inner, by `pass(z_k, conj(z_{half - k}), w_k)`.
    #[inline(always)]
    fn untangle(
        &self,
        spectrum: &mut [Complex<T>],
        pass: impl Fn(Complex<T>, Complex<T>, Complex<T>) -> (Complex<T>, Complex<T>),
    ) {
        let half = self.len / 2;
        let inner = &mut spectrum[1..half];
        let (low, high) = inner.split_at_mut(inner.len() / 2);
        for ((a, b), w) in low.iter_mut().zip(high.iter_mut().rev()).zip(&self.twiddles[1..]) {
            (*a, *b) = pass(*a, b.conj(), *w);
        }
        // The middle bin is its own partner.
        if high.len() > low.len() {
            high[0] = pass(high[0], high[0].conj(), self.twiddles[half / 2]).0;
        }
    }
}

/// The orthonormal cosine transform (DCT-II) of real rows, and its inverse, through a Fourier transform of the same length.
#[derive(Debug, Clone)]
pub(crate) struct Cosine<T> {
    fft: RealFft<T>,
    /// `exp(-pi i k / (2 len))` for the bins `k`.
    twiddles: Vec<Complex<T>>,
}

impl<T: Scalar> Cosine<T> {
    pub(crate) fn new(len: usize) -> Self {
        let fft = RealFft::new(len);
        let twiddles = (0..fft.bins()).map(|k| unit(k as f64 / (4 * len.max(1)) as f64)).collect();
        Self { fft, twiddles }
    }

    /// Complex scratch entries of a transform.
    pub(crate) fn scratch_len(&self) -> usize {
        self.fft.bins() + self.fft.scratch_len() + self.fft.len().div_ceil(2)
    }

    fn split<'a>(
        &self,
        scratch: &'a mut [Complex<T>],
    ) -> (&'a mut [T], &'a mut [Complex<T>], &'a mut [Complex<T>]) {
        let (row, rest) = scratch.split_at_mut(self.fft.len().div_ceil(2));
        let (spectrum, rest) = rest.split_at_mut(self.fft.bins());
        (&mut bytemuck::cast_slice_mut(row)[..self.fft.len()], spectrum, rest)
    }

    /// `c_k = s_k sum_j x_j cos(pi (2 j + 1) k / (2 len))` with `s_0 = len^(-1/2)` and `s_k = (2 / len)^(1/2)`.
    pub(crate) fn forward(&self, x: &[T], c: &mut [T], scratch: &mut [Complex<T>]) {
        let len = self.fft.len();
        let (row, spectrum, scratch) = self.split(scratch);
        // Even entries ascending, then odd entries descending.
        for (j, x) in x.iter().enumerate() {
            row[if j % 2 == 0 { j / 2 } else { len - 1 - j / 2 }] = *x;
        }
        self.fft.forward(row, spectrum, scratch);
        let scale = T::narrow((2.0 / len as f64).sqrt());
        for (k, (z, w)) in spectrum.iter().zip(&self.twiddles).enumerate().skip(1) {
            let z = z * w * scale;
            c[len - k] = -z.im;
            c[k] = z.re;
        }
        c[0] = spectrum[0].re * T::narrow((len as f64).powf(-0.5));
    }

    /// The inverse of [`forward`](Self::forward): `x (+)= Cᵀ c`.
    pub(crate) fn inverse(&self, c: &[T], x: &mut [T], update: Update, scratch: &mut [Complex<T>]) {
        let len = self.fft.len();
        let (row, spectrum, scratch) = self.split(scratch);
        let scale = T::narrow((2.0 * len as f64).powf(-0.5));
        for (k, (z, w)) in spectrum.iter_mut().zip(&self.twiddles).enumerate().skip(1) {
            *z = Complex::new(c[k], -c[len - k]) * w.conj() * scale;
        }
        spectrum[0] = Complex::new(c[0] * T::narrow((len as f64).powf(-0.5)), T::zero());
        self.fft.inverse(spectrum, row, Update::Overwrite, scratch);
        for (j, x) in x.iter_mut().enumerate() {
            let value = row[if j % 2 == 0 { j / 2 } else { len - 1 - j / 2 }];
            match update {
                Update::Overwrite => *x = value,
                Update::Accumulate => *x += value,
            }
        }
    }
}

/// The orthonormal two-dimensional transform of `a`, in place.
pub(crate) fn fft2(a: &mut Array2<Complex<f64>>, inverse: bool) {
    let scale = (a.len() as f64).powf(-0.5);
    for axis in [Axis(1), Axis(0)] {
        let len = a.len_of(axis);
        let plan = f64::plan_fft(len, if inverse { FftDirection::Inverse } else { FftDirection::Forward });
        let mut scratch = vec![Complex::default(); plan.get_inplace_scratch_len()];
        let mut row = vec![Complex::default(); len];
        for mut lane in a.lanes_mut(axis) {
            row.iter_mut().zip(&lane).for_each(|(to, from)| *to = *from);
            plan.process_with_scratch(&mut row, &mut scratch);
            lane.iter_mut().zip(&row).for_each(|(to, from)| *to = *from);
        }
    }
    a.mapv_inplace(|z| z * scale);
}

/// A sparse product between planes of spectra, real number by real number.
#[derive(Debug, Clone)]
pub struct SparseSpectrum<T> {
    /// Transforms of the outputs and of the inputs, and what turns their spectra into cosine transforms.
    pub(crate) sides: [(Transform<T>, Option<SpectrumGrid<T>>); 2],
    pub(crate) pattern: Pattern,
    pub(crate) values: Factor,
    /// The matrix in this form too.
    pub(crate) sliced: Option<Sliced<T>>,
}

/// Plans and decoded spectral weights of one compute type, made on first use. Each structure fills what it needs.
#[derive(Debug, Clone, Default)]
pub struct Spectrum<T> {
    /// Transforms of short blocks.
    pub(crate) blocks: Option<BlockTransform<T>>,
    /// Convolutions.
    pub(crate) convolution: Option<Convolution<T>>,
    /// A sparse product between spectra.
    pub(crate) sparse: Option<SparseSpectrum<T>>,
    /// Dense weights, one block per bin.
    pub(crate) factor: Option<Factor>,
    /// Those of the real bins, where they lie apart.
    pub(crate) real: Option<Factor>,
    /// A sparse matrix for products of small batches.
    pub(crate) sliced: Option<Sliced<T>>,
    /// Windows whose outputs are added up.
    pub(crate) windows: Option<WindowTiles<T>>,
}

/// A [`Spectrum`] per compute type. It follows from the structure's factors, so that all caches count as equal.
#[derive(Debug, Clone, Default)]
pub struct SpectrumCache {
    pub(crate) f32: OnceLock<Spectrum<f32>>,
    pub(crate) f64: OnceLock<Spectrum<f64>>,
    scratch: OnceLock<usize>,
}

impl PartialEq for SpectrumCache {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl SpectrumCache {
    /// The spectrum of type `T`, computed by `make` the first time.
    pub(crate) fn get<T: Scalar>(&self, make: impl FnOnce() -> Spectrum<T>) -> &Spectrum<T> {
        T::spectrum(self).get_or_init(make)
    }

    /// Scratch entries that `need` counts, computed the first time.
    pub(crate) fn scratch_len(&self, need: impl FnOnce() -> usize) -> usize {
        *self.scratch.get_or_init(need)
    }

    /// Those that a [`Transform`] of any of these lengths needs in either compute type.
    pub(crate) fn transform_scratch_len(&self, lengths: &[usize]) -> usize {
        let need = |&len: &usize| Transform::<f32>::scratch_len(len).max(Transform::<f64>::scratch_len(len));
        self.scratch_len(|| lengths.iter().map(need).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f64> {
        (0..len).map(|j| ((j * j + 3) as f64).sin()).collect()
    }

    #[test]
    fn real_transforms_equal_their_formula_and_invert() {
        for len in [1, 2, 3, 4, 5, 6, 7, 8, 12, 30, 31, 37, 64, 100] {
            let (plan, x) = (RealFft::<f64>::new(len), row(len));
            let mut z = vec![Complex::default(); plan.bins()];
            let mut scratch = vec![Complex::default(); plan.scratch_len()];
            for have in [len, len - len / 3] {
                plan.forward(&x[..have], &mut z, &mut scratch);
                for (k, z) in z.iter().enumerate().take(if len == 1 { 1 } else { len / 2 + 1 }) {
                    let sum: Complex<f64> =
                        (0..have).map(|j| unit::<f64>((j * k) as f64 / len as f64) * x[j]).sum();
                    assert!((sum - z).norm() < 1e-12 * len as f64, "{len} {k}: {z} against {sum}");
                }
                let mut y = vec![1.0; have];
                plan.inverse(&mut z, &mut y, Update::Accumulate, &mut scratch);
                for (y, x) in y.iter().zip(&x) {
                    assert!((y - 1.0 - x * len as f64).abs() < 1e-12 * len as f64);
                }
            }
        }
    }

    #[test]
    fn cosine_transforms_equal_their_formula_and_invert() {
        for len in [1, 2, 3, 4, 7, 8, 15, 64] {
            let (plan, x) = (Cosine::<f64>::new(len), row(len));
            let (mut c, mut y) = (vec![f64::NAN; len], vec![f64::NAN; len]);
            let mut scratch = vec![Complex::default(); plan.scratch_len()];
            plan.forward(&x, &mut c, &mut scratch);
            for (k, c) in c.iter().enumerate() {
                let angle = |j: usize| std::f64::consts::PI * ((2 * j + 1) * k) as f64 / (2 * len) as f64;
                let scale = (if k == 0 { 1.0 } else { 2.0 } / len as f64).sqrt();
                let sum: f64 = (0..len).map(|j| x[j] * angle(j).cos() * scale).sum();
                assert!((sum - c).abs() < 1e-13 * len as f64, "{len} {k}: {c} against {sum}");
            }
            plan.inverse(&c, &mut y, Update::Overwrite, &mut scratch);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-13 * len as f64));
        }
    }
}
