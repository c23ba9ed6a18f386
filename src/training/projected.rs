//! Steps of the three factors, gradients projected.

use super::gradient::checked;
use super::{ConditionBound, LowRank3, ThinGradient};
use crate::error::{Error, Result};
use crate::linalg::{Threads, check_finite, matmul, matmul_nt, matmul_tn, qr, singular_values};
use ndarray::Array2;

/// What the gradients of $U$ and $V$ are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FactorScaling {
    /// Nothing.
    #[default]
    One,
    /// $1 / a$ with $a = \lVert S \rVert_F^2 / r$: what the published code does beside [`ConditionBound::ScaledOrthogonal`].
    InverseEnergy,
    /// $(\sigma_{\min} / \sigma_{\max})^2$ of $S$: what it does beside [`ConditionBound::MeanClamp`].
    InverseCondition,
}

/// Settings of [`ProjectedFactors`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProjectedSettings {
    /// Step length (0.1, the published code's).
    pub rate: f64,
    /// What a velocity keeps at each step: at least 0 and below 1 (0; 0.3 in the published code).
    pub momentum: f64,
    /// What the gradients of $U$ and $V$ are multiplied by.
    pub scaling: FactorScaling,
    /// The bound on the condition number of $S$, kept at the end of each step.
    pub bound: Option<ConditionBound>,
}

impl Default for ProjectedSettings {
    fn default() -> Self {
        Self { rate: 0.1, momentum: 0.0, scaling: FactorScaling::One, bound: None }
    }
}

/// Gradient steps of $U$, $S$ and $V$ at once, at a fixed rank, with a bound on the condition number of $S$.
///
/// With the gradient $G$ at $W = U S V^T$, the factors move against $(I - U U^T)\, G V S^T$, $U^T G V$ and $(I - V V^T)\, G^T U S$, the first and last
/// multiplied by a [`FactorScaling`]; then $U$ and $V$ become the `Q` of their QR decomposition with a positive diagonal, and $S$ what the
/// [`ConditionBound`] makes of it. Cost beside the gradient's products: `O((m + n) r² + r³)`. One `ProjectedFactors` serves one weight, in `f64`.
///
/// The steps of $U$ and $V$ are those of factors: with a small singular value of $S$ they are slow in its direction, where [`Dlrt`](super::Dlrt) is not.
///
/// Source: D. Savostianova et al., "Robust low-rank training via approximate orthonormal constraints", 2023.
///
/// ```
/// use structmat::ndarray::Array2;
/// use structmat::training::{ConditionBound, LowRank3, ProjectedFactors, ProjectedSettings};
/// # fn main() -> structmat::Result<()> {
/// let target = Array2::from_shape_fn((8, 6), |(i, j)| f64::from(u8::from(i == j)) * (6 - j) as f64);
/// let mut w = LowRank3::random((8, 6), 3, 0)?;
/// let bound = Some(ConditionBound::Nearest { tau: 1.5 });
/// let mut steps = ProjectedFactors::new(ProjectedSettings { rate: 0.01, bound, ..Default::default() })?;
/// for _ in 0..100 {
///     steps.step(&mut w, |w| Ok(w.to_dense() - &target))?;
/// }
/// assert!(w.condition_number()? <= 1.5 * (1.0 + 1e-9) && w.deviation() < 1e-12);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct ProjectedFactors {
    settings: ProjectedSettings,
    /// Of `U`, `S` and `V`, once there has been a step.
    velocity: Option<[Array2<f64>; 3]>,
}

impl ProjectedFactors {
    /// Of these settings.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rate that is not a positive number, a momentum outside of 0 to 1, or a bound below 1.
    pub fn new(settings: ProjectedSettings) -> Result<Self> {
        let ProjectedSettings { rate, momentum, .. } = settings;
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(Error::parameter("rate", rate, "a positive number"));
        }
        if !(0.0..1.0).contains(&momentum) {
            return Err(Error::parameter("momentum", momentum, "at least 0 and below 1"));
        }
        settings.bound.map_or(Ok(()), |bound| bound.check())?;
        Ok(Self { settings, velocity: None })
    }

    /// One step of `w`, with the gradient at it. Velocities start anew where `w` is not of the sizes that the last step left.
    ///
    /// # Errors
    /// Those of `gradient`; [`Error::Shape`] and [`Error::NonFinite`] when its products are not of the sizes that they should be, or not finite, or the step
    /// overflows. `w` and the velocities are then as before.
    pub fn step<G: ThinGradient>(
        &mut self,
        w: &mut LowRank3,
        gradient: impl FnOnce(&LowRank3) -> Result<G>,
    ) -> Result<()> {
        let ((m, n), (p, q)) = (w.shape(), w.s.dim());
        let ProjectedSettings { rate, momentum, scaling, bound } = self.settings;
        let g = gradient(w)?;
        let (gv, gtu) = (g.times(&w.v)?, g.transposed_times(&w.u)?);
        checked("gradient times v", (m, q), &gv)?;
        checked("transposed gradient times u", (n, p), &gtu)?;
        let scale = scaling.of(&w.s)?;
        let core = matmul_tn(&w.u, &gv, Threads::ONE);
        let outside = |basis: &Array2<f64>, a: &Array2<f64>| {
            a - &matmul(basis, &matmul_tn(basis, a, Threads::ONE), Threads::ONE)
        };
        let du = matmul_nt(&outside(&w.u, &gv), &w.s, Threads::ONE) * scale;
        let dv = matmul(&outside(&w.v, &gtu), &w.s, Threads::ONE) * scale;
        let [mut u, mut s, mut v] = [du, core, dv];
        if momentum > 0.0
            && let Some([before_u, before_s, before_v]) = &self.velocity
            && (before_u.dim(), before_s.dim(), before_v.dim()) == (u.dim(), s.dim(), v.dim())
        {
            // Velocities of the bases too lie across them.
            u.scaled_add(momentum, &outside(&w.u, before_u));
            s.scaled_add(momentum, before_s);
            v.scaled_add(momentum, &outside(&w.v, before_v));
        }
        let moved = |what, from: &Array2<f64>, by: &Array2<f64>| {
            let mut to = from.clone();
            to.scaled_add(-rate, by);
            check_finite(what, &to).map(|()| to)
        };
        let next = LowRank3 {
            u: qr(&moved("u after the step", &w.u, &u)?).q,
            s: moved("s after the step", &w.s, &s)?,
            v: qr(&moved("v after the step", &w.v, &v)?).q,
        };
        let inner = bound.map(|bound| bound.apply(&next.s)).transpose()?;
        *w = match inner {
            Some(s) => LowRank3 { s, ..next },
            None => next,
        };
        self.velocity = Some([u, s, v]);
        Ok(())
    }
}

impl FactorScaling {
    fn of(self, s: &Array2<f64>) -> Result<f64> {
        let rank = s.nrows().min(s.ncols());
        // Of S = 0 the gradients that are scaled are 0 too.
        Ok(match self {
            Self::One => 1.0,
            Self::InverseEnergy => match s.iter().map(|x| x * x).sum::<f64>() {
                energy if energy > 0.0 => rank as f64 / energy,
                _ => 0.0,
            },
            Self::InverseCondition => {
                let s = singular_values(s, Threads::ONE)?;
                match (s.first(), s.last()) {
                    (Some(&top), Some(&least)) if top > 0.0 => (least / top).powi(2),
                    _ => 0.0,
                }
            }
        })
    }
}
