//! Activation functions: in double precision for layers, adapters and fits, and by vectors for rows in single precision.

mod vectors;

pub(crate) use vectors::{Activate, ActivateBack, exp};

use crate::error::{Error, Result};
use crate::kernels::Level;
use crate::scalar::Scalar;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// An activation function, applied number by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x`.
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x Φ(x)`, with the normal distribution.
    Gelu,
    /// The same with the distribution approximated by a hyperbolic tangent.
    GeluTanh,
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

impl FromStr for Activation {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "identity" => Activation::Identity,
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            "gelu_tanh" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            _ => {
                let expected = "identity, relu, gelu, gelu_tanh, silu, tanh, sigmoid".to_owned();
                return Err(Error::Unknown { kind: "activation", name: name.to_owned(), expected });
            }
        })
    }
}

impl Activation {
    /// Its value at `x`.
    pub fn at(self, x: f64) -> f64 {
        match self {
            _ if self.is_far(x) => x.max(0.0),
            Activation::Identity => x,
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => x.max(0.0),
            Activation::Gelu => x * normal(x),
            Activation::GeluTanh => 0.5 * x * (1.0 + bent(x).tanh()),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid(x),
        }
    }

    /// Its derivative at `x`; that of `max(x, 0)` at 0 is 0.
    pub fn slope(self, x: f64) -> f64 {
        match self {
            _ if self.is_far(x) => f64::from(u8::from(x > 0.0)),
            Activation::Identity => 1.0,
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => f64::from(u8::from(x > 0.0)),
            Activation::Gelu => {
                normal(x) + x * (-0.5 * x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI / 8f64.sqrt()
            }
            Activation::GeluTanh => {
                let tanh = bent(x).tanh();
                let slope = BEND * (1.0 + 3.0 * 0.044715 * x * x);
                let rest = x * (1.0 - tanh * tanh) * slope;
                0.5 * (1.0 + tanh + rest)
            }
            Activation::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
            Activation::Tanh => 1.0 - x.tanh().powi(2),
            Activation::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
        }
    }

    /// Whether `x` is where the function is one of its two lines: an exponential that is 0 there must not meet an infinity.
    fn is_far(self, x: f64) -> bool {
        x.abs() > 745.0 && matches!(self, Activation::Gelu | Activation::GeluTanh | Activation::Silu)
    }

    /// Replaces every number by its value: in single precision by vectors, in double precision one by one.
    pub(crate) fn apply<T: Scalar>(self, row: &mut [T], level: Level) {
        if self == Activation::Identity {
            return;
        }
        if size_of::<T>() == size_of::<f32>() {
            let y = bytemuck::cast_slice_mut::<T, f32>(row);
            return f32::dispatch(level, Activate { activation: self, gate: None, y });
        }
        row.iter_mut().for_each(|v| *v = T::narrow(self.at(v.widen())));
    }

    /// Whether `f(d x) = d f(x)` for all `d > 0`.
    pub(crate) fn is_homogeneous(self) -> bool {
        matches!(self, Activation::Identity | Activation::Relu)
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `sqrt(2 / π)`.
const BEND: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;

/// What the hyperbolic tangent of [`Activation::GeluTanh`] is taken of.
fn bent(x: f64) -> f64 {
    BEND * (x + 0.044715 * x.powi(3))
}

/// The normal distribution function.
pub(crate) fn normal(x: f64) -> f64 {
    0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// The error function, to 1e-14: its series, whose terms are all positive after `exp(-x²)` is taken out.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 || x.is_nan() {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum, mut k) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        k += 1.0;
        term *= 2.0 * x * x / (2.0 * k + 1.0);
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_values() {
        for name in ["identity", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"] {
            let f: Activation = name.parse().unwrap();
            assert_eq!(serde_json::to_value(f).unwrap(), name);
            for k in -40..=40 {
                let (x, h) = (f64::from(k) / 8.0 + 0.01, 1e-5);
                let difference = (f.at(x + h) - f.at(x - h)) / (2.0 * h);
                assert!((difference - f.slope(x)).abs() < 1e-9, "{name} at {x}");
                assert!(!f.is_homogeneous() || (f.at(3.0 * x) - 3.0 * f.at(x)).abs() < 1e-12);
            }
            assert_eq!(f.at(0.0), if name == "sigmoid" { 0.5 } else { 0.0 });
            assert!(f.at(f64::NAN).is_nan());
            assert!(!f.at(-1e300).is_nan() && !f.slope(-1e300).is_nan());
        }
        assert!(matches!("softmax".parse::<Activation>(), Err(Error::Unknown { .. })));
    }
}
