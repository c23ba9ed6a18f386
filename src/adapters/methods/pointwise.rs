use super::Activation;
use crate::activation::normal;
use crate::error::{Error, Result};
use std::str::FromStr;

/// A function of one number, by the names that PEANuT's configurations use: an [`Activation`], or one of those that no layer of the crate has.
///
/// ```
/// use structmat::adapters::methods::{Activation, Pointwise};
/// let f: Pointwise = "relu2".parse()?;
/// assert_eq!((f.at(-3.0), f.at(3.0)), (0.0, 9.0));
/// assert_eq!("gelu_new".parse::<Pointwise>()?, Activation::GeluTanh.into());
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pointwise {
    /// An activation.
    Plain(Activation),
    /// `x Φ(x)`, at most 10 and at least -10.
    ClippedGelu,
    /// `x min(max(x + 3, 0), 6) / 6`.
    Hardswish,
    /// The normal distribution of mean 0.707107 and deviation 0.282095.
    Laplace,
    /// `x`, below 0 times a slope.
    LeakyRelu(f64),
    /// `x tanh(ln(1 + exp(x)))`.
    Mish,
    /// `x / (1 + exp(-1.702 x))`.
    QuickGelu,
    /// `max(x, 0)²`.
    SquaredRelu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `sqrt(ln(1 + exp(x)))`.
    SqrtSoftplus,
}

/// Mean and deviation of [`Pointwise::Laplace`], rounded as they were published.
#[allow(clippy::approx_constant)]
const LAPLACE: (f64, f64) = (0.707107, 0.282095);

impl Pointwise {
    /// Its value at `x`.
    pub fn at(self, x: f64) -> f64 {
        let softplus = || x.max(0.0) + (-x.abs()).exp().ln_1p();
        match self {
            Self::Plain(activation) => activation.at(x),
            _ if x.is_nan() => x,
            Self::ClippedGelu => Activation::Gelu.at(x).clamp(-10.0, 10.0),
            Self::Hardswish if x <= -3.0 => 0.0,
            Self::Hardswish => x * ((x + 3.0) / 6.0).min(1.0),
            Self::Laplace => normal((x - LAPLACE.0) / LAPLACE.1),
            Self::LeakyRelu(slope) => x.max(0.0) + slope * x.min(0.0),
            Self::Mish if x < -745.0 => 0.0,
            Self::Mish => x * softplus().tanh(),
            Self::QuickGelu if x < -745.0 => 0.0,
            Self::QuickGelu => x * Activation::Sigmoid.at(1.702 * x),
            Self::SquaredRelu => x.max(0.0).powi(2),
            Self::Relu6 => x.clamp(0.0, 6.0),
            Self::SqrtSoftplus => softplus().sqrt(),
        }
    }
}

impl From<Activation> for Pointwise {
    fn from(activation: Activation) -> Self {
        Self::Plain(activation)
    }
}

impl FromStr for Pointwise {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "linear" => Activation::Identity.into(),
            "gelu_python" => Activation::Gelu.into(),
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                Activation::GeluTanh.into()
            }
            "gelu_10" => Self::ClippedGelu,
            "hardswish" => Self::Hardswish,
            "laplace" => Self::Laplace,
            "leaky_relu" => Self::LeakyRelu(0.01),
            // It is made anew for each product, and so never leaves where it starts.
            "prelu" => Self::LeakyRelu(0.25),
            "mish" => Self::Mish,
            "quick_gelu" => Self::QuickGelu,
            "relu2" => Self::SquaredRelu,
            "relu6" => Self::Relu6,
            "sqrtsoftplus" => Self::SqrtSoftplus,
            _ => {
                let Ok(activation) = name.parse::<Activation>() else {
                    let expected = "relu, gelu, silu, tanh, sigmoid, linear, mish, leaky_relu or another that transformers names, without \
                                    parameters of its own";
                    return Err(Error::Unknown {
                        kind: "activation",
                        name: name.to_owned(),
                        expected: expected.to_owned(),
                    });
                };
                activation.into()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_definitions() {
        let table = [
            ("linear", -1.5, -1.5),
            ("gelu_10", 30.0, 10.0),
            ("gelu_10", -1.0, -0.158_655_253_931_457),
            ("hardswish", 1.0, 2.0 / 3.0),
            ("hardswish", -4.0, 0.0),
            ("hardswish", 5.0, 5.0),
            ("laplace", LAPLACE.0, 0.5),
            ("laplace", LAPLACE.0 + LAPLACE.1, 0.841_344_746_068_543),
            ("leaky_relu", -2.0, -0.02),
            ("prelu", -2.0, -0.5),
            ("mish", 1.0, 0.865_098_388_267_344),
            ("quick_gelu", 1.0, 1.0 / (1.0 + (-1.702f64).exp())),
            ("relu2", 3.0, 9.0),
            ("relu6", 7.0, 6.0),
            ("sqrtsoftplus", 0.0, std::f64::consts::LN_2.sqrt()),
        ];
        for (name, x, y) in table {
            let f: Pointwise = name.parse().unwrap();
            assert!((f.at(x) - y).abs() < 1e-12, "{name} at {x}: {}", f.at(x));
            assert!(f.at(f64::NAN).is_nan(), "{name}");
            assert!(
                !f.at(f64::NEG_INFINITY).is_nan() && !f.at(-1e300).is_nan() || name == "linear",
                "{name}"
            );
        }
        assert!(matches!("xielu".parse::<Pointwise>(), Err(Error::Unknown { .. })));
    }
}
