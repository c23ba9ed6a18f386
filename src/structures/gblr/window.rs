//! Cyclic windows, as whole numbers and as differentiable functions of a real width and location.
//!
//! A window of $w$ and $l$ in $[0, 1]$, normalized by the number $N$ of features, covers the features $lN, \dots, (l + w) N - 1$ modulo
//! $N$. [`gaudi_mask`] writes it through its spectrum, a Dirichlet kernel times a Gaussian, which is smooth in $w$ and $l$.
//!
//! Training rounds them *straight through*: the mask is that of [`rounded`]`(w, n)` and `rounded(l, n)`, and the gradients of
//! [`gaudi_mask_grad`] at the rounded values are applied to the values that are not rounded.
//!
//! Source: C. Lee and H.-S. Kim, "Differentiable Learning of Generalized Structured Matrices for Efficient Deep Neural Networks", 2023.

use crate::error::{Error, Result};
use crate::kernels::RealFft;
use crate::matrix::Update;
use crate::parts::MAX_FEATURES;
use num_complex::Complex;
use std::f64::consts::{PI, TAU};
use std::ops::Range;

/// `len` features from `start` on; after the last feature the first one follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CyclicWindow {
    /// The first feature.
    pub start: usize,
    /// How many.
    pub len: usize,
}

impl CyclicWindow {
    /// All of `n` features.
    pub fn full(n: usize) -> Self {
        Self { start: 0, len: n }
    }

    /// The window of a [`gaudi_mask`] with width `w` and location `l` among `n` features, rounded.
    pub fn nearest(w: f64, l: f64, n: usize) -> Self {
        let whole = |v: f64| (rounded(v, n) * n as f64).round().max(0.0) as usize;
        Self { start: whole(l - l.floor()) % n.max(1), len: whole(w).min(n) }
    }

    /// Its features among `n`, in order.
    pub fn features(self, n: usize) -> impl Iterator<Item = usize> {
        let [first, second] = self.runs(n);
        first.chain(second)
    }

    /// The same as two ranges, the second of which is empty unless the window wraps.
    pub(crate) fn runs(self, n: usize) -> [Range<usize>; 2] {
        let start = self.start.min(n);
        let first = self.len.min(n - start);
        [start..start + first, 0..(self.len - first).min(start)]
    }
}

/// `value` (a width or a location) rounded to a whole number of `n` features.
pub fn rounded(value: f64, n: usize) -> f64 {
    (value * n as f64).round() / n as f64
}

/// The mask of width `w` and location `l` over `n` features: the inverse transform, without $1 / N$, of
/// $$\hat m_k = w \, \frac{\mathrm{sinc}(k w)}{\mathrm{sinc}(k / N)}\, e^{i \pi k (1 / N - w)}\, e^{-2 \pi i k l}\, e^{-k^2 / (2 \sigma^2)}, \quad
/// k = 0, \dots, \lfloor N / 2 \rfloor.$$
/// For whole $w N$ and $l N$ and an infinite `sigma` it is the window itself, of zeros and ones. One transform of length `n`.
///
/// ```
/// let mask = structmat::structures::window::gaudi_mask(3.0 / 8.0, 6.0 / 8.0, 8, f64::INFINITY)?;
/// let window = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0];      // three features from the seventh on
/// assert!(mask.iter().zip(window).all(|(m, w)| (m - w).abs() < 1e-12));
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Parameter`] unless `w` and `l` are within 1e6 of zero, `n` is at least 1 and `sigma` positive (or infinite).
pub fn gaudi_mask(w: f64, l: f64, n: usize, sigma: f64) -> Result<Vec<f64>> {
    check(w, l, n, sigma)?;
    let mut mask = vec![0.0; n];
    Masks::new(n).mask(w, l, sigma, &mut mask);
    Ok(mask)
}

/// The derivatives of every entry of [`gaudi_mask`] by `w` and by `l`. Their spectra are
/// $e^{-2 \pi i k w}\, e^{i \pi (k / N - 2 k l)}\, e^{-k^2 / (2 \sigma^2)} / \mathrm{sinc}(k / N)$ and $-2 \pi i k\, \hat m_k$. Two transforms.
///
/// # Errors
/// As [`gaudi_mask`].
pub fn gaudi_mask_grad(w: f64, l: f64, n: usize, sigma: f64) -> Result<(Vec<f64>, Vec<f64>)> {
    check(w, l, n, sigma)?;
    let (mut by_width, mut by_location) = (vec![0.0; n], vec![0.0; n]);
    Masks::new(n).gradients(w, l, sigma, &mut by_width, &mut by_location);
    Ok((by_width, by_location))
}

/// The proximal step of widths: after a step of an optimizer, $w \leftarrow \mathrm{clamp}(\mathrm{sign}(w) \max(|w| - a, 0), 0, 1)$ with
/// `amount` $a$ = learning rate times penalty, the exact step for the penalty $\lambda \sum_k |w_k|$; and $l \leftarrow l - \lfloor l \rfloor$.
///
/// # Errors
/// [`Error::Parameter`] unless `amount` is a finite number, at least 0.
pub fn proximal_step(widths: &mut [f64], locations: &mut [f64], amount: f64) -> Result<()> {
    if !(amount >= 0.0 && amount.is_finite()) {
        return Err(Error::parameter("amount", amount, "a finite number >= 0"));
    }
    widths.iter_mut().for_each(|w| *w = (w.signum() * (w.abs() - amount).max(0.0)).clamp(0.0, 1.0));
    locations.iter_mut().for_each(|l| *l -= l.floor());
    Ok(())
}

/// The step that keeps widths to a budget: all of them are lowered by the excess of their mean over `target`, then clamped to
/// $[0, 1]$. Windows of rows count with the number of rows `m`, those of columns with that of columns `n`, so that `target` is the stored numbers as a
/// fraction of those of full windows.
///
/// # Errors
/// [`Error::Parameter`] for a `target` that is not a number.
pub fn mean_shrink(rows: &mut [f64], cols: &mut [f64], (m, n): (usize, usize), target: f64) -> Result<()> {
    if target.is_nan() {
        return Err(Error::parameter("target", target, "a number"));
    }
    let (m, n) = (m as f64, n as f64);
    let all = m * rows.len() as f64 + n * cols.len() as f64;
    let mean = (m * rows.iter().sum::<f64>() + n * cols.iter().sum::<f64>()) / all.max(1.0);
    let excess = (mean - target).max(0.0);
    rows.iter_mut().chain(cols).for_each(|w| *w = (*w - excess).clamp(0.0, 1.0));
    Ok(())
}

fn check(w: f64, l: f64, n: usize, sigma: f64) -> Result<()> {
    for (name, value) in [("w", w), ("l", l)] {
        // Beyond, products with frequencies lose all digits.
        if value.is_nan() || value.abs() > 1e6 {
            return Err(Error::parameter(name, value, "a number of at most 1e6 either way"));
        }
    }
    if n == 0 || n > MAX_FEATURES {
        return Err(Error::parameter("n", n, format!("1 to {MAX_FEATURES}")));
    }
    match sigma > 0.0 {
        true => Ok(()),
        false => Err(Error::parameter("sigma", sigma, "a positive number, or infinity")),
    }
}

/// `sin(pi z) / (pi z)`.
fn sinc(z: f64) -> f64 {
    if z == 0.0 { 1.0 } else { (PI * z).sin() / (PI * z) }
}

/// Masks over one number of features, without a plan and memory for each.
#[derive(Debug)]
pub(super) struct Masks {
    fft: RealFft<f64>,
    spectrum: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
}

impl Masks {
    pub(super) fn new(n: usize) -> Self {
        let fft = RealFft::new(n);
        let (spectrum, scratch) = (vec![Complex::default(); fft.bins()], fft.scratch_len());
        Self { fft, spectrum, scratch: vec![Complex::default(); scratch] }
    }

    fn inverse(&mut self, bin: impl Fn(f64, f64) -> Complex<f64>, out: &mut [f64]) {
        let n = self.fft.len() as f64;
        self.spectrum.iter_mut().enumerate().for_each(|(k, z)| *z = bin(k as f64, k as f64 / n));
        self.fft.inverse(&mut self.spectrum, out, Update::Overwrite, &mut self.scratch);
    }

    fn mask(&mut self, w: f64, l: f64, sigma: f64, out: &mut [f64]) {
        self.inverse(|k, turn| spectrum(w, l, sigma, k, turn), out);
    }

    /// The derivatives of the mask by `w` and by `l`.
    pub(super) fn gradients(&mut self, w: f64, l: f64, sigma: f64, by_w: &mut [f64], by_l: &mut [f64]) {
        self.inverse(|k, turn| Complex::cis(-TAU * k * w) * common(l, sigma, k, turn), by_w);
        self.inverse(|k, turn| spectrum(w, l, sigma, k, turn) * Complex::new(0.0, -TAU * k), by_l);
    }
}

/// What the spectra of a mask and of its derivative by the width have in common.
fn common(l: f64, sigma: f64, k: f64, turn: f64) -> Complex<f64> {
    Complex::cis(PI * (turn - 2.0 * k * l)) * (-0.5 * (k / sigma).powi(2)).exp() / sinc(turn)
}

fn spectrum(w: f64, l: f64, sigma: f64, k: f64, turn: f64) -> Complex<f64> {
    Complex::cis(-PI * k * w) * (w * sinc(k * w)) * common(l, sigma, k, turn)
}
