use super::{Pointwise, expect, low_rank};
use crate::adapters::{Adapter, Edit, check_base};
use crate::error::{Error, Result};
use crate::matrix::{Apply, StructuredMatrix};
use crate::storage::{Factor, Storage};
use ndarray::Array2;

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
    activation: Pointwise,
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
        activation: impl Into<Pointwise>,
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
        Ok(Self { shape, a, b, encoders, decoders, activation: activation.into(), scale })
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
