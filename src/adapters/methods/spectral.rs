use super::low_rank;
use crate::adapters::{Adapter, BiasEdit, Boxed, Edit, check_base};
use crate::compose::Sum;
use crate::error::{Error, Result};
use crate::linalg::{Svd, Threads, qr, svd};
use crate::matrix::StructuredMatrix;
use crate::storage::{Factor, Storage};
use ndarray::{Axis, s};

/// What happens to the thin decomposition of a base, `W = U diag(σ) Vᵀ` with `σ` descending, or `W = Q R`.
#[derive(Debug, Clone, PartialEq)]
pub enum Component {
    /// `σ' = max(σ + δ, 0)`: SVDiff.
    Shift(Vec<f64>),
    /// `σ' = σ + δ`, which may turn negative: VectorFit.
    Offset(Vec<f64>),
    /// `σ' = σ z`: singular value fine-tuning as published.
    Scale(Vec<f64>),
    /// `σ' = σ z Σσ / Σ(σ z)`: as its code does it. A common factor of `z` has no effect.
    NuclearScale(Vec<f64>),
    /// Without the so many largest: PiSSA.
    WithoutTop(usize),
    /// The so many largest alone: KaSA, OSF.
    TopOnly(usize),
    /// Without `scale` times `Q[:, :rank] R[:rank]` of the QR decomposition: OLoRA.
    WithoutQr {
        /// Rank.
        rank: usize,
        /// Scale.
        scale: f64,
    },
}

/// An edit of the singular values of `W`, or of a slice of its components, plus a matrix that does not depend on it.
///
/// The decomposition is taken when the adapter is bound; then `D` is a low-rank matrix over those components that change, of as many rank-one
/// terms: `k (out + in)` per vector, beside that of the additional matrix.
///
/// Source: L. Han et al., "SVDiff", 2023; Q. Sun et al., "Transformer²: Self-adaptive LLMs", 2025; F. Meng et al., "PiSSA", 2024; K. Büyükakyüz,
/// "OLoRA", 2024; F. Wang et al., "KaSA", 2024.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{Component, Spectral}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[3.0f32, 0.0], [0.0, 2.0]])?;
/// let adapter = Spectral::new("svdiff", (2, 2), Component::Shift(vec![1.0, -5.0]), None, 2)?;
/// let d = adapter.delta(&base)?;
/// assert!((d - array![[1.0, 0.0], [0.0, -2.0]]).iter().all(|e| e.abs() < 1e-6));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Spectral {
    kind: &'static str,
    shape: (usize, usize),
    component: Component,
    plus: Option<Boxed>,
    params: usize,
    bias: BiasEdit,
}

impl Spectral {
    /// From the edit, what is added to it, and the number of trained parameters.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not `min(out, in)` numbers or the added matrix has another shape, [`Error::Parameter`] for more
    /// components than there are.
    pub fn new(
        kind: &'static str,
        (m, n): (usize, usize),
        component: Component,
        plus: Option<Boxed>,
        params: usize,
    ) -> Result<Self> {
        let most = m.min(n);
        match &component {
            Component::Shift(v) | Component::Offset(v) | Component::Scale(v) | Component::NuclearScale(v)
                if v.len() != most =>
            {
                return Err(Error::shape("singular values of an adapter", &[most], &[v.len()]));
            }
            Component::WithoutTop(k) | Component::TopOnly(k) | Component::WithoutQr { rank: k, .. }
                if *k > most =>
            {
                return Err(Error::parameter("rank", k, format!("at most {most}")));
            }
            _ => {}
        }
        if let Some((rows, cols)) = plus.as_ref().map(|plus| plus.shape())
            && (rows, cols) != (m, n)
        {
            return Err(Error::shape("additive part of a spectral adapter", &[m, n], &[rows, cols]));
        }
        Ok(Self { kind, shape: (m, n), component, plus, params, bias: BiasEdit::default() })
    }

    /// With a change of the bias.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is for another number of outputs.
    pub fn with_bias(self, bias: BiasEdit) -> Result<Self> {
        // The edit checks it.
        Edit::of(self.shape).with_bias(bias.clone())?;
        Ok(Self { bias, ..self })
    }

    /// How much each component of `W` is multiplied by, minus 1.
    fn change(&self, sigma: &[f64]) -> Vec<f64> {
        let edited = |edit: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
            sigma.iter().enumerate().map(|(k, &s)| edit(k, s) - s).collect()
        };
        match &self.component {
            Component::Shift(shift) => edited(&|k, s| (s + shift[k]).max(0.0)),
            Component::Offset(shift) => shift.clone(),
            Component::Scale(z) => edited(&|k, s| s * z[k]),
            Component::NuclearScale(z) => {
                let total: f64 = sigma.iter().sum();
                let scaled: f64 = sigma.iter().zip(z).map(|(s, z)| s * z).sum();
                edited(&|k, s| s * z[k] * total / scaled)
            }
            Component::WithoutTop(r) => edited(&|k, s| if k < *r { 0.0 } else { s }),
            Component::TopOnly(r) => edited(&|k, s| if k < *r { s } else { 0.0 }),
            Component::WithoutQr { .. } => Vec::new(),
        }
    }
}

impl Adapter for Spectral {
    fn kind(&self) -> &'static str {
        self.kind
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn n_params(&self) -> usize {
        self.params
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape)?;
        let w = base.to_dense_f64();
        let factor = |a: &ndarray::ArrayRef2<f64>| Factor::from_matrix(Storage::F32, a);
        let mut terms: Vec<Boxed> = self.plus.iter().cloned().collect();
        if let Component::WithoutQr { rank: r, scale } = &self.component {
            crate::linalg::check_finite("base weight", &w)?;
            let qr = qr(&w);
            let (q, triangle) = (qr.q.slice(s![.., ..*r]), qr.r.slice(s![..*r, ..]));
            if *r > 0 {
                terms.push(low_rank(factor(&q), &vec![-scale; *r], factor(&triangle))?);
            }
        } else {
            let Svd { u, s: sigma, vt } = svd(&w, Threads::ONE)?;
            let change = self.change(&sigma);
            let moved: Vec<usize> = (0..change.len()).filter(|&k| change[k] != 0.0).collect();
            if !moved.is_empty() {
                let scales: Vec<f64> = moved.iter().map(|&k| change[k]).collect();
                let (u, vt) = (u.select(Axis(1), &moved), vt.select(Axis(0), &moved));
                terms.push(low_rank(factor(&u), &scales, factor(&vt))?);
            }
        }
        let edit = Edit::of(self.shape).with_bias(self.bias.clone())?;
        match terms.len() {
            0 => Ok(edit),
            1 => edit.with_delta(terms.remove(0)),
            _ => edit.with_delta(Box::new(Sum::new(terms)?)),
        }
    }
}
