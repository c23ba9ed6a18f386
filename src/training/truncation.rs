//! A differentiable truncation.

use crate::allocation::SoftRanks;
use crate::error::{Error, Result};
use crate::linalg::{Svd, SvdGuards, Threads, check_finite, matmul_nt, matmul_tn, svd, svd_gradient};
use ndarray::{Array2, ArrayRef2};

/// $\operatorname{trunc}_\kappa(A) = U \operatorname{diag}(T_i(\kappa) \sigma_i) V^T$ of activations $A$ (`batch x out`), with the soft truncation
/// $T$ of [`SoftRanks`]: differentiable in $A$ and in the real rank $\kappa$. One thin decomposition, `O(batch out min(batch, out))`.
///
/// The gradient goes through the complete thin decomposition: the discarded directions count, because they turn into the kept ones.
///
/// Source: Q. Wang et al., "Dobi-SVD: Differentiable SVD for LLM Compression and Some New Perspectives", 2025.
///
/// ```
/// use structmat::allocation::SoftRanks;
/// use structmat::linalg::SvdGuards;
/// use structmat::ndarray::{Array2, array};
/// use structmat::training::SoftTruncation;
/// let a = array![[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]];
/// let cut = SoftTruncation::new(&a, &SoftRanks::default(), 1.5)?;
/// assert!((cut.output() - array![[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).iter().all(|e| e.abs() < 1e-3));
/// // One more rank would add the second component.
/// let (_, by_rank) = cut.gradient(&Array2::ones((3, 2)), &SvdGuards::default())?;
/// assert!(by_rank > 0.0);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SoftTruncation {
    svd: Svd,
    keep: Vec<f64>,
    slope: Vec<f64>,
}

impl SoftTruncation {
    /// Of `a` at the rank `kappa`.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for NaN or infinities, [`Error::Parameter`] for a `kappa`, or a steepness, that is not finite.
    pub fn new(a: &ArrayRef2<f64>, soft: &SoftRanks, kappa: f64) -> Result<Self> {
        if !kappa.is_finite() {
            return Err(Error::parameter("kappa", kappa, "a finite number"));
        }
        if !soft.beta.is_finite() {
            return Err(Error::parameter("beta", soft.beta, "a finite number"));
        }
        let svd = svd(a, Threads::ONE)?;
        let of = |f: &dyn Fn(usize) -> f64| (1..=svd.rank()).map(f).collect();
        let (keep, slope) = (of(&|i| soft.keep(kappa, i)), of(&|i| soft.slope(kappa, i)));
        Ok(Self { svd, keep, slope })
    }

    /// The truncated activations, of the shape of `a`.
    pub fn output(&self) -> Array2<f64> {
        let s = self.svd.s.iter().zip(&self.keep).map(|(s, keep)| s * keep).collect();
        Svd { s, ..self.svd.clone() }.reconstruct(Threads::ONE)
    }

    /// The gradients of a loss by `a` and by `kappa`, from that by the output.
    ///
    /// # Errors
    /// [`Error::Shape`] when `dy` is not of the output's shape, and those of [`svd_gradient`].
    pub fn gradient(&self, dy: &ArrayRef2<f64>, guards: &SvdGuards) -> Result<(Array2<f64>, f64)> {
        let Svd { u, s, vt } = &self.svd;
        if dy.dim() != (u.nrows(), vt.ncols()) {
            return Err(Error::shape("dy", &[u.nrows(), vt.ncols()], dy.shape()));
        }
        check_finite("dy", dy)?;
        let mut gu = matmul_nt(dy, vt, Threads::ONE);
        let mut gvt = matmul_tn(u, dy, Threads::ONE);
        // dL / d(T s), the diagonal of Uᵀ dY V.
        let by_value: Vec<f64> = gvt.outer_iter().zip(vt.outer_iter()).map(|(g, v)| g.dot(&v)).collect();
        let kept: Vec<f64> = s.iter().zip(&self.keep).map(|(s, keep)| s * keep).collect();
        gu.outer_iter_mut().for_each(|mut row| row.iter_mut().zip(&kept).for_each(|(x, k)| *x *= k));
        gvt.outer_iter_mut().zip(&kept).for_each(|(mut row, k)| row *= *k);
        let gs: Vec<f64> = by_value.iter().zip(&self.keep).map(|(g, keep)| g * keep).collect();
        let by_kappa = by_value.iter().zip(s).zip(&self.slope).map(|((g, s), slope)| g * s * slope).sum();
        Ok((svd_gradient(&self.svd, &gu, &gs, &gvt, guards, Threads::ONE)?, by_kappa))
    }
}
