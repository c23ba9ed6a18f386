//! Activation functions of rows in single precision, by vectors.
//!
//! Loops are plain, without branches on the numbers, so that the compiler makes vectors of them; [`Kernel`] has them compiled for each
//! instruction set. They add and multiply in one order and never fuse, so all instruction sets give the same bits.

use super::Activation;
use crate::kernels::Kernel;
use std::f32::consts::FRAC_1_SQRT_2;

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
            Activation::Tanh => each(gate, y, |x| tanh(x).0),
            Activation::Sigmoid => each(gate, y, |x| sigmoid(x).0),
            Activation::Identity => each(gate, y, |x| x),
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
pub(crate) struct ActivateBack<'a> {
    pub(crate) activation: Activation,
    /// The gate, and its gradient to write.
    pub(crate) gate: Option<(&'a [f32], &'a mut [f32])>,
    /// What went in.
    pub(crate) y: &'a [f32],
    pub(crate) d: &'a mut [f32],
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
            Activation::Tanh => each_back(gate, y, d, tanh),
            Activation::Sigmoid => each_back(gate, y, d, sigmoid),
            Activation::Identity => each_back(gate, y, d, |x| (x, 1.0)),
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
    // Far from zero the tails are nothing, and must not be multiplied by infinity.
    let (value, rest) = (x * below, x * 0.398_942_3 * exp(-0.5 * x * x));
    (if x < -5.6 { 0.0 } else { value }, below + if x.abs() > 12.0 { 0.0 } else { rest })
}

#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
    let below = 1.0 / (1.0 + exp(-1.595_769 * (x + 0.044_715 * x * x * x)));
    let rest = x * below * (1.0 - below) * 1.595_769 * (1.0 + 0.134_145 * x * x);
    (if x < -12.0 { 0.0 } else { x * below }, below + if x.abs() > 12.0 { 0.0 } else { rest })
}

#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let below = 1.0 / (1.0 + exp(-x));
    let rest = x * below * (1.0 - below);
    (if x < -87.0 { 0.0 } else { x * below }, below + if x.abs() > 87.0 { 0.0 } else { rest })
}

#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    (if x < 0.0 { 0.0 } else { x }, if x > 0.0 { 1.0 } else { 0.0 })
}

#[inline(always)]
fn sigmoid(x: f32) -> (f32, f32) {
    let below = 1.0 / (1.0 + exp(-x));
    (below, below * (1.0 - below))
}

#[inline(always)]
fn tanh(x: f32) -> (f32, f32) {
    // Near zero the difference of two numbers near 1 would lose digits: an odd polynomial there.
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    let square = x * x;
    let near = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))));
    let value = if x.abs() < 0.25 { near } else { far };
    (value, 1.0 - value * value)
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

/// `exp(x)` to 2 units in the last place, from -87 to 88; beyond that the value at the end of this range.
///
/// `x = n log 2 + r`: a polynomial in `r` (Cephes), and `n` added to the exponent. Adding and subtracting `ROUND` rounds to the nearest
/// integer, and leaves it in the low bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;
    use crate::scalar::Scalar;

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

    /// Everywhere, and at both ends.
    #[test]
    fn vectors_are_what_single_numbers_are() {
        let ends = [f32::NEG_INFINITY, -1e30, -1e4, -88.0, -0.0, 1e4, 1e30, f32::INFINITY];
        let grid = (-400..=400).map(|i| i as f32 / 40.0);
        for name in ["identity", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"] {
            let f: Activation = name.parse().unwrap();
            for x in grid.clone().chain(ends) {
                let (mut y, mut d) = ([x], [1.0]);
                f.apply(&mut y, Level::Portable);
                f32::dispatch(
                    Level::Portable,
                    ActivateBack { activation: f, gate: None, y: &[x], d: &mut d },
                );
                for (got, exact) in [(y[0], f.at(x.into())), (d[0], f.slope(x.into()))] {
                    let close = (f64::from(got) - exact).abs() <= 4e-6 * (1.0 + exact.abs());
                    assert!(close || f64::from(got) == exact, "{name}({x}) = {got}, not {exact}");
                }
            }
            let mut y = [f32::NAN];
            f.apply(&mut y, Level::Portable);
            assert!(y[0].is_nan(), "{name}");
        }
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
