//! What is computed number by number or row by row between the matrices: activations, softmax, normalization.
//!
//! Loops are plain, without branches on the numbers, so that the compiler makes vectors of them; [`Kernel`] has them compiled for each
//! instruction set. They add and multiply in one order and never fuse, so all instruction sets give the same bits.

use super::architecture::{Activation, NormKind};
use crate::exec::Policy;
use crate::kernels::{Kernel, join};
use crate::scalar::Scalar;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use std::f32::consts::FRAC_1_SQRT_2;

/// Partial sums, so that a sum is not one chain of additions.
const LANES: usize = 16;

/// Calls `work` with pieces of the rows of `y` and the number of each piece's first row; as many pieces as `tasks`, at the same time.
pub(super) fn over_rows(
    tasks: usize,
    first: usize,
    y: ArrayViewMut2<'_, f32>,
    work: &(impl Fn(usize, ArrayViewMut2<'_, f32>) + Sync),
) {
    if tasks < 2 || y.nrows() < 2 {
        return work(first, y);
    }
    let (at, half) = (y.nrows() / 2, tasks / 2);
    let (left, right) = y.split_at(Axis(0), at);
    join(|| over_rows(tasks - half, first, left, work), || over_rows(half, first + at, right, work));
}

/// `y = activation(y)`, or `y = activation(gate) * y`.
pub(crate) struct Activate<'a> {
    pub(crate) activation: Activation,
    pub(crate) gate: Option<&'a [f32]>,
    pub(crate) y: &'a mut [f32],
}

impl Kernel<f32> for Activate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let Self { activation, gate, y } = self;
        match activation {
            Activation::Gelu => each(gate, y, |x| gelu(x).0),
            Activation::GeluTanh => each(gate, y, |x| gelu_tanh(x).0),
            Activation::Silu => each(gate, y, |x| silu(x).0),
            Activation::Relu => each(gate, y, |x| relu(x).0),
        }
    }
}

#[inline(always)]
fn each(gate: Option<&[f32]>, y: &mut [f32], f: impl Fn(f32) -> f32) {
    match gate {
        None => y.iter_mut().for_each(|y| *y = f(*y)),
        Some(gate) => y.iter_mut().zip(gate).for_each(|(y, gate)| *y *= f(*gate)),
    }
}

/// From the gradient `d` of the result of [`Activate`] to that of `y`, and of the gate where there is one; in place.
pub(super) struct ActivateBack<'a> {
    pub(super) activation: Activation,
    /// The gate, and its gradient to write.
    pub(super) gate: Option<(&'a [f32], &'a mut [f32])>,
    /// What went in.
    pub(super) y: &'a [f32],
    pub(super) d: &'a mut [f32],
}

impl Kernel<f32> for ActivateBack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let Self { activation, gate, y, d } = self;
        match activation {
            Activation::Gelu => each_back(gate, y, d, gelu),
            Activation::GeluTanh => each_back(gate, y, d, gelu_tanh),
            Activation::Silu => each_back(gate, y, d, silu),
            Activation::Relu => each_back(gate, y, d, relu),
        }
    }
}

#[inline(always)]
fn each_back(gate: Option<(&[f32], &mut [f32])>, y: &[f32], d: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
    match gate {
        None => d.iter_mut().zip(y).for_each(|(d, y)| *d *= f(*y).1),
        Some((gate, d_gate)) => {
            for (((d, y), gate), d_gate) in d.iter_mut().zip(y).zip(gate).zip(d_gate) {
                let (value, slope) = f(*gate);
                *d_gate = *d * y * slope;
                *d *= value;
            }
        }
    }
}

// Each activation and its slope.

#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let below = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
    (x * below, below + x * 0.398_942_3 * exp(-0.5 * x * x))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
    let below = 1.0 / (1.0 + exp(-1.595_769 * (x + 0.044_715 * x * x * x)));
    (x * below, below + x * below * (1.0 - below) * 1.595_769 * (1.0 + 0.134_145 * x * x))
}

#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let below = 1.0 / (1.0 + exp(-x));
    (x * below, below + x * below * (1.0 - below))
}

#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 })
}

/// Normalizes a row in place.
pub(super) struct Normalize<'a> {
    pub(super) kind: NormKind,
    pub(super) eps: f32,
    pub(super) weight: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) y: ArrayViewMut2<'a, f32>,
}

impl Kernel<f32> for Normalize<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let Self { kind, eps, weight, bias, mut y } = self;
        let n = weight.len() as f32;
        for mut row in y.outer_iter_mut() {
            let Some(row) = row.as_slice_mut() else { continue };
            let mean = if kind == NormKind::LayerNorm { sum(row, |v| v) / n } else { 0.0 };
            let scale = 1.0 / (sum(row, |v| (v - mean) * (v - mean)) / n + eps).sqrt();
            row.iter_mut().zip(weight).for_each(|(v, w)| *v = (*v - mean) * scale * w);
            if let Some(bias) = bias {
                row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
            }
        }
    }
}

/// From the gradient `d` of the result of [`Normalize`] to that of what went in, `x`; in place.
pub(super) struct NormalizeBack<'a> {
    pub(super) kind: NormKind,
    pub(super) eps: f32,
    pub(super) weight: &'a [f32],
    pub(super) x: ArrayView2<'a, f32>,
    pub(super) d: ArrayViewMut2<'a, f32>,
}

impl Kernel<f32> for NormalizeBack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let Self { kind, eps, weight, x, mut d } = self;
        let n = weight.len() as f32;
        for (x, mut d) in x.outer_iter().zip(d.outer_iter_mut()) {
            let (Some(x), Some(d)) = (x.as_slice(), d.as_slice_mut()) else { continue };
            let centred = kind == NormKind::LayerNorm;
            let mean = if centred { sum(x, |v| v) / n } else { 0.0 };
            let scale = 1.0 / (sum(x, |v| (v - mean) * (v - mean)) / n + eps).sqrt();
            d.iter_mut().zip(weight).for_each(|(d, w)| *d *= w);
            let shift = if centred { sum(d, |v| v) / n } else { 0.0 };
            let along = dot(d, x, |v| (v - mean) * scale) / n;
            d.iter_mut().zip(x).for_each(|(d, x)| *d = scale * (*d - shift - (x - mean) * scale * along));
        }
    }
}

/// From the gradient `d` of a softmax to that of what went in, given its result `p`; in place.
pub(super) struct SoftmaxBack<'a> {
    pub(super) p: &'a [f32],
    pub(super) d: &'a mut [f32],
}

impl Kernel<f32> for SoftmaxBack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let Self { p, d } = self;
        let mean = dot(d, p, |v| v);
        d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
    }
}

/// Softmax of a row in place; entries from `seen` on become 0.
pub(super) struct Softmax<'a> {
    pub(super) row: &'a mut [f32],
    pub(super) seen: usize,
}

impl Kernel<f32> for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let (row, unseen) = self.row.split_at_mut(self.seen);
        let largest = fold(row, f32::NEG_INFINITY, |max, v| if v > max { v } else { max });
        row.iter_mut().for_each(|v| *v = exp(*v - largest));
        let scale = 1.0 / sum(row, |v| v);
        row.iter_mut().for_each(|v| *v *= scale);
        unseen.fill(0.0);
    }
}

#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += f(*v);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| f(*v)).sum::<f32>()
}

/// `sum a f(b)`.
#[inline(always)]
fn dot(a: &[f32], b: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * f(*b);
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * f(*b)).sum::<f32>()
}

#[inline(always)]
fn fold(row: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, *v);
        }
    }
    rest.iter().chain(&lanes).fold(start, |all, v| f(all, *v))
}

/// `exp(x)` to 2 units in the last place, from -87 to 88; beyond that the value at the end of this range.
///
/// `x = n log 2 + r`: a polynomial in `r` (Cephes), and `n` added to the exponent. Adding and subtracting `ROUND` rounds to the nearest
/// integer, and leaves it in the low bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    (p * (r * r) + r + 1.0) * f32::from_bits(power)
}

/// The error function to 5e-7: a rational function of `x` up to 4, where it has reached 1 in single precision (coefficients as in Eigen).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142_3e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = p * s + c;
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
        q = q * s + c;
    }
    x * p / q
}

/// Runs a kernel at the level of a policy.
pub(crate) fn run(policy: Policy, kernel: impl Kernel<f32, Output = ()>) {
    f32::dispatch(policy.level, kernel)
}

#[cfg(test)]
mod tests {
    use super::{erf, exp};

    /// `2/sqrt(pi) exp(-x²) sum 2^n x^(2n+1) / (2n+1)!!`: all terms have one sign.
    fn series(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-17 * sum.abs() {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
    }

    #[test]
    fn erf_and_exp_are_those_of_double_precision() {
        let grid =
            |from: f64, to: f64| (0..=40_000).map(move |i| (from + (to - from) * f64::from(i) / 4e4) as f32);
        for x in grid(-5.0, 5.0) {
            assert!((f64::from(erf(x)) - series(x.into())).abs() < 5e-7, "erf({x}) = {}", erf(x));
        }
        for x in grid(-87.0, 88.0) {
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2.5e-7, "exp({x}) = {}", exp(x));
        }
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
    }
}
