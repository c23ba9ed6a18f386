use super::{expect, low_rank};
use crate::adapters::{Adapter, Edit, check_base};
use crate::error::{Error, Result};
use crate::matrix::{Apply, StructuredMatrix};
use crate::storage::{Factor, Storage};
use ndarray::Array2;
use std::str::FromStr;

/// An activation: of [`Peanut`], and of [`Bottleneck`](crate::layers::Bottleneck).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
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
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            "gelu_tanh" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            _ => {
                let expected = "relu, gelu, gelu_tanh, silu, tanh, sigmoid".to_owned();
                return Err(Error::Unknown { kind: "activation", name: name.to_owned(), expected });
            }
        })
    }
}

impl Activation {
    /// Its value at `x`.
    pub fn at(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => x.max(0.0),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                let inner = (2.0 * std::f64::consts::FRAC_1_PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid(x),
        }
    }
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

/// PEANuT: a small network on the columns of `W` makes the change: $H = f(W^T A^T)$, encoders $H ← f(H E_i^T)$, decoders $H ← f(H D_i^T)$ plus
/// what the mirrored encoder received, and $D = s B H^T$.
///
/// `H` (`in x rank`) is made once, when the adapter is bound; then `D` is low-rank, `rank (out + in)` per vector.
///
/// Source: Y. Zhong et al., "PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers", 2024.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{Activation, Peanut}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, -2.0]])?;
/// let factors = (array![[1.0]], array![[3.0]]);
/// let peanut = Peanut::new((1, 2), factors, (vec![], vec![]), Activation::Relu, 2.0)?;
/// assert_eq!(peanut.delta(&base)?, array![[6.0, 0.0]]);                // 2 * 3 * max(W, 0)
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Peanut {
    shape: (usize, usize),
    a: Array2<f64>,
    b: Array2<f64>,
    encoders: Vec<Array2<f64>>,
    decoders: Vec<Array2<f64>>,
    activation: Activation,
    scale: f64,
}

impl Peanut {
    /// Of `out x in` weights, from `a` (`rank x out`), `b` (`out x rank`), as many encoders as decoders (`rank x rank`).
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit together, [`Error::Parameter`] when there are more of one than of the other.
    pub fn new(
        shape: (usize, usize),
        (a, b): (Array2<f64>, Array2<f64>),
        (encoders, decoders): (Vec<Array2<f64>>, Vec<Array2<f64>>),
        activation: Activation,
        scale: f64,
    ) -> Result<Self> {
        let r = a.nrows();
        expect("PEANuT factor A", &a, (r, shape.0))?;
        expect("PEANuT factor B", &b, (shape.0, r))?;
        for layer in encoders.iter().chain(&decoders) {
            expect("PEANuT layer", layer, (r, r))?;
        }
        if encoders.len() != decoders.len() {
            let received = format!("{} encoders, {} decoders", encoders.len(), decoders.len());
            return Err(Error::parameter("depth", received, "as many of both"));
        }
        Ok(Self { shape, a, b, encoders, decoders, activation, scale })
    }
}

impl Adapter for Peanut {
    fn kind(&self) -> &'static str {
        "peanut"
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn n_params(&self) -> usize {
        let layers = self.encoders.iter().chain(&self.decoders);
        self.a.len() + self.b.len() + layers.map(|layer| layer.len()).sum::<usize>()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape)?;
        let f = |h: Array2<f64>| h.mapv_into(|v| self.activation.at(v));
        // (A W)ᵀ, as a product with the base.
        let mut h = f(base.matmul_transpose(&self.a)?.reversed_axes());
        let mut kept = Vec::with_capacity(self.encoders.len());
        for layer in &self.encoders {
            let next = f(h.dot(&layer.t()));
            kept.push(std::mem::replace(&mut h, next));
        }
        for layer in &self.decoders {
            h = f(h.dot(&layer.t()));
            if let Some(kept) = kept.pop() {
                h += &kept;
            }
        }
        let factor = |a: &ndarray::ArrayRef2<f64>| Factor::from_matrix(Storage::F32, a);
        let scales = vec![self.scale; self.a.nrows()];
        Edit::of(self.shape).with_delta(low_rank(factor(&self.b), &scales, factor(&h.t()))?)
    }
}
