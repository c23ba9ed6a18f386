//! Real transforms on caller-owned scratch, two real rows at a time.

use crate::scalar::Scalar;
use num_complex::Complex;
use rustfft::{Fft, FftPlanner};
use std::fmt::{Debug, Formatter};
use std::sync::{Arc, OnceLock};

/// Discrete Fourier transforms of length `len`, unnormalised both ways.
#[derive(Clone)]
pub(crate) struct RealFft<T> {
    len: usize,
    forward: Arc<dyn Fft<T>>,
    inverse: Arc<dyn Fft<T>>,
}

impl<T> Debug for RealFft<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "RealFft({})", self.len)
    }
}

impl<T: Scalar> RealFft<T> {
    pub(crate) fn new(len: usize) -> Self {
        let mut planner = FftPlanner::new();
        Self {
            len,
            forward: planner.plan_fft_forward(len.max(1)),
            inverse: planner.plan_fft_inverse(len.max(1)),
        }
    }

    /// Transform length.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Complex scratch entries that [`forward`](Self::forward) and [`inverse`](Self::inverse) need.
    pub(crate) fn scratch_len(&self) -> usize {
        self.forward.get_inplace_scratch_len().max(self.inverse.get_inplace_scratch_len())
    }

    /// In place, `sum_j z_j exp(-2 pi i j k / len)`.
    pub(crate) fn forward(&self, z: &mut [Complex<T>], scratch: &mut [Complex<T>]) {
        self.forward.process_with_scratch(z, scratch);
    }

    /// In place, `sum_k z_k exp(+2 pi i j k / len)`, without `1 / len`.
    pub(crate) fn inverse(&self, z: &mut [Complex<T>], scratch: &mut [Complex<T>]) {
        self.inverse.process_with_scratch(z, scratch);
    }
}

/// Plans and decoded spectral weights of one compute type, made on first use.
#[derive(Debug, Clone)]
pub struct Spectrum<T> {
    /// Transforms, in the structure's own order.
    pub(crate) plans: Vec<RealFft<T>>,
    /// Weights, in the structure's own order.
    pub(crate) values: Vec<Complex<T>>,
}

/// A [`Spectrum`] per compute type.
#[derive(Debug, Clone, Default)]
pub struct SpectrumCache {
    pub(crate) f32: OnceLock<Spectrum<f32>>,
    pub(crate) f64: OnceLock<Spectrum<f64>>,
}

impl SpectrumCache {
    /// The spectrum of type `T`, computed by `make` the first time.
    pub(crate) fn get<T: Scalar>(&self, make: impl FnOnce() -> Spectrum<T>) -> &Spectrum<T> {
        T::spectrum(self).get_or_init(make)
    }
}
