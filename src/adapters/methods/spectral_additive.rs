use super::{expect, low_rank, row};
use crate::adapters::{Adapter, Edit, check_base};
use crate::compose::Identity;
use crate::error::{Error, Result};
use crate::linalg::{Svd, Threads, svd};
use crate::matrix::StructuredMatrix;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, ArrayRef2, Axis, concatenate, s};
use std::ops::Range;

/// What is added to singular vectors in [`SpectralAdditive`].
#[derive(Debug, Clone, PartialEq)]
pub enum SpectralChange {
    /// `out x k` on the left, `in x k` on the right: Spectral Adapter.
    Full(Array2<f64>),
    /// A product of `out x ρ` and `ρ x k` on the left, `in x ρ` and `ρ x k` on the right: SpectralFT.
    Factored(Array2<f64>, Array2<f64>),
}

impl SpectralChange {
    fn len(&self) -> usize {
        match self {
            Self::Full(e) => e.len(),
            Self::Factored(p, q) => p.len() + q.len(),
        }
    }

    fn check(&self, what: &'static str, rows: usize, k: usize) -> Result<()> {
        match self {
            Self::Full(e) => expect(what, e, (rows, k)),
            Self::Factored(p, q) => {
                expect(what, p, (rows, q.nrows()))?;
                expect(what, q, (q.nrows(), k))
            }
        }
    }

    /// As a product of a factor with `ρ` columns (the change itself where it is not factored) and one of `ρ x k`.
    fn factors(&self, k: usize) -> (Array2<f64>, Array2<f64>) {
        match self {
            Self::Full(e) => (e.clone(), Array2::eye(k)),
            Self::Factored(p, q) => (p.clone(), q.clone()),
        }
    }
}

/// Additions to a block of singular vectors of the base, $W' = (U_k + E_U)\, \Sigma_k (V_k + E_V)^T + \mathrm{tail}$, full (Spectral Adapter) or
/// low-rank themselves (SpectralFT).
///
/// The decomposition is taken when the adapter is bound. With changes of rank `ρ` (`k` where they are full) the change is low-rank,
/// $D = E_U \Sigma_k V_k^T + (U_k + E_U)\, \Sigma_k E_V^T$, of rank `2 ρ`: a product costs `2 ρ (out + in)`.
///
/// Source: F. Zhang, M. Pilanci, "Spectral Adapter: Fine-Tuning in Spectral Space", 2024; Z. Li et al., "Spectral-Aware Low-Rank Adaptation for
/// Speaker Verification", 2025 (SpectralFT). The published module of the latter leaves the tail out, and so changes the weight at its start: that
/// is [`without_tail`](Self::without_tail).
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{SpectralAdditive, SpectralChange}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[3.0f32, 0.0], [0.0, 2.0]])?;
/// let full = |a, b| SpectralChange::Full(array![[a], [b]]);
/// let adapter = SpectralAdditive::new((2, 2), 0..1, full(0.0, 1.0), full(0.0, 0.0))?;
/// let d = adapter.delta(&base)?;
/// assert!((d - array![[0.0, 0.0], [3.0, 0.0]]).iter().all(|e| e.abs() < 1e-6));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SpectralAdditive {
    shape: (usize, usize),
    block: Range<usize>,
    left: SpectralChange,
    right: SpectralChange,
    tail: bool,
}

impl SpectralAdditive {
    /// Of `out x in` weights, for the singular vectors `block` counted from the largest value.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an empty block or one beyond the smaller side, [`Error::Shape`] for changes of another shape.
    pub fn new(
        (m, n): (usize, usize),
        block: Range<usize>,
        left: SpectralChange,
        right: SpectralChange,
    ) -> Result<Self> {
        if block.is_empty() || block.end > m.min(n) {
            return Err(Error::parameter(
                "block",
                format!("{block:?}"),
                format!("inside of 0..{}", m.min(n)),
            ));
        }
        left.check("change of left singular vectors", m, block.len())?;
        right.check("change of right singular vectors", n, block.len())?;
        Ok(Self { shape: (m, n), block, left, right, tail: true })
    }

    /// The same, with all other components of the base left out. That cannot be undone by unmerging.
    pub fn without_tail(self) -> Self {
        Self { tail: false, ..self }
    }
}

impl Adapter for SpectralAdditive {
    fn kind(&self) -> &'static str {
        "spectral_additive"
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn n_params(&self) -> usize {
        self.left.len() + self.right.len()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape)?;
        let Svd { u, s: sigma, vt } = svd(&base.to_dense_f64(), Threads::ONE)?;
        let k = self.block.len();
        let (u, vt) = (u.slice(s![.., self.block.clone()]), vt.slice(s![self.block.clone(), ..]));
        // U_k Σ_k
        let mut us = u.to_owned();
        us.axis_iter_mut(Axis(1)).zip(&sigma[self.block.clone()]).for_each(|(mut column, s)| column *= *s);
        let ((p1, p2), (q1, q2)) = (self.left.factors(k), self.right.factors(k));
        let mut p2s = p2;
        p2s.axis_iter_mut(Axis(1)).zip(&sigma[self.block.clone()]).for_each(|(mut column, s)| column *= *s);
        let lora = |b: &ArrayRef2<f64>, a: &ArrayRef2<f64>| {
            let factor = |a: &ArrayRef2<f64>| Factor::from_matrix(Storage::F32, a);
            low_rank(factor(b), &vec![1.0; a.nrows()], factor(a))
        };
        let edit = Edit::of(self.shape);
        if !self.tail {
            let left = us + p1.dot(&p2s);
            let right = &vt + &q1.dot(&q2).t();
            let none = Identity::diagonal(row(vec![0.0; self.shape.0]))?;
            return edit.with_left(Box::new(none))?.with_delta(lora(&left, &right)?);
        }
        // D = P₁ (P₂ Σ Vᵀ) + ((U + P₁ P₂) Σ Q₂ᵀ) Q₁ᵀ.
        let other = (us + p1.dot(&p2s)).dot(&q2.t());
        let first = p2s.dot(&vt);
        let joined = |axis: usize, a: &Array2<f64>, b: &ndarray::ArrayView2<'_, f64>| {
            let both = concatenate(Axis(axis), &[a.view(), b.view()]);
            both.map_err(|e| Error::parameter("changes", format!("{:?}", a.dim()), e.to_string()))
        };
        let (left, right) = (joined(1, &p1, &other.view())?, joined(0, &first, &q1.t())?);
        if left.ncols() == 0 {
            return Ok(edit);
        }
        edit.with_delta(lora(&left, &right)?)
    }
}
