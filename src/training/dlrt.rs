//! Gradient steps on the manifold of low-rank matrices.

use super::factors::orthonormal;
use super::gradient::checked;
use super::{ConditionBound, LowRank3, ThinGradient};
use crate::adam::Adam;
use crate::error::{Error, Result};
use crate::linalg::{Threads, check_finite, matmul, matmul_nt, matmul_tn, qr, svd};
use ndarray::Array2;

/// What a step of [`Dlrt`] may change.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum DlrtMode {
    /// All three factors, and the rank: the smallest at which what is cut off $S$ is at most `theta` of its Frobenius norm, within bounds.
    Adaptive {
        /// Tolerance, at least 0 and below 1. The published trainings use 0.07 to 0.45; see the hazard of large ones at [`Dlrt`].
        theta: f64,
        /// Smallest rank (2 in the published code).
        min_rank: usize,
        /// Largest rank (half of the smaller side in the published code).
        max_rank: usize,
    },
    /// All three factors at the rank that they have.
    Fixed,
    /// $S$ alone, between frozen bases: fine-tuning.
    CoreOnly,
}

/// How a matrix moves against its gradient.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Rule {
    /// By the gradient times the rate.
    #[default]
    Sgd,
    /// Adam for each of $K$, $L$ and $S$. As bases turn from step to step, first moments turn with them and second moments with the squares of the
    /// rotation (as if entries were independent).
    Adam {
        /// What the first and the second moment keep at each step: each at least 0 and below 1.
        betas: (f64, f64),
    },
}

/// Settings of [`Dlrt`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DlrtSettings {
    /// Step length (0.05, the published code's).
    pub rate: f64,
    /// What a step may change.
    pub mode: DlrtMode,
    /// How matrices move.
    pub rule: Rule,
    /// A bound on the condition number of $S$, kept at the end of each step. It lifts small singular values, so that with
    /// [`DlrtMode::Adaptive`] the rank seldom falls: meant for the other two.
    pub bound: Option<ConditionBound>,
}

impl Default for DlrtSettings {
    fn default() -> Self {
        Self { rate: 0.05, mode: DlrtMode::Fixed, rule: Rule::Sgd, bound: None }
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DlrtStep {
    /// The rank after it.
    pub rank: usize,
    /// What the truncation cut off $S$, as a fraction of its Frobenius norm: above `theta` only where `max_rank` demands it. 0 where nothing is cut.
    pub discarded: f64,
}

/// Dynamical low-rank training: descent of a loss over $W = U S V^T$ that never forms $W$, never divides by small singular values, and finds
/// the rank by itself.
///
/// A step with the gradient $G$ at $W$:
/// 1. $K = U S - \eta\, G V$ and $L = V S^T - \eta\, G^T U$.
/// 2. $\hat U = \operatorname{orth}[U \mid K]$, $\hat V = \operatorname{orth}[V \mid L]$, $\hat S = (\hat U^T U)\, S\, (\hat V^T V)^T$, the same matrix in
///    bases of twice the size.
/// 3. $\hat S \leftarrow \hat S - \eta\, \hat U^T G' \hat V$, with the gradient $G'$ there.
/// 4. $\hat S = P \Sigma Q^T$ is cut to the rank `r'` that [`DlrtMode::Adaptive`] says: $U = \hat U P_{:r'}$, $S = \Sigma_{r'}$, $V = \hat V Q_{:r'}$.
///
/// With [`DlrtMode::Fixed`] the bases are $\operatorname{orth} K$ and $\operatorname{orth} L$ alone and nothing is cut; with
/// [`DlrtMode::CoreOnly`] there is step 3 alone. Cost beside the gradient's products: `O((m + n) r² + r³)`. A `Dlrt` serves one weight, in `f64`; biases
/// and dense weights take ordinary steps beside it.
///
/// What is cut in a step has at most `theta` of the norm of $\Sigma$ (unless `max_rank` cuts more), and the loss falls up to that. **A large
/// `theta` can hide a direction for good**: what one step adds along a new one is of the size `rate` times the gradient, and it is cut off
/// again, each step, where that is below `theta` times the norm. From rank 2, `rate 0.2` and `theta 0.02` or `0.1` find the planted rank 5 of 30 x 24
/// matrices for 8 seeds of 8; with `theta 0.2`, 5 of the 7 whose fifth singular value is above 0.2 of the norm stay at a smaller
/// rank. Start with a small `theta`, smaller for a smaller rate, or above the rank expected.
///
/// Two deviations from the published code are its errors: it takes columns of $Q^T$ for those of $Q$ in step 4, and its
/// sum over the tail omits the last singular value.
///
/// Source: S. Schotthöfer et al., "Low-rank lottery tickets: finding efficient low-rank neural networks via matrix differential equations", 2022; G. Ceruti
/// and C. Lubich, "An unconventional robust integrator for dynamical low-rank approximation", 2022.
///
/// ```
/// use structmat::ndarray::Array2;
/// use structmat::training::{BatchGradient, Dlrt, DlrtMode, DlrtSettings, LowRank3};
/// # fn main() -> structmat::Result<()> {
/// // Regression: outputs of a rank-1 layer, seen through a batch of inputs.
/// let x = Array2::from_shape_fn((20, 6), |(b, j)| ((3 * b + 5 * j + b * j * j) % 11) as f64 / 5.0 - 1.0);
/// let y = x.dot(&Array2::from_shape_fn((6, 8), |(j, i)| (1 + i) as f64 * (2.0 - j as f64) / 10.0));
/// let mut w = LowRank3::random((8, 6), 3, 1)?;
/// let mode = DlrtMode::Adaptive { theta: 0.01, min_rank: 1, max_rank: 3 };
/// let mut steps = Dlrt::new(DlrtSettings { rate: 0.08, mode, ..Default::default() })?;
/// for _ in 0..300 {
///     steps.step(&mut w, |w| BatchGradient::new(&x, w.forward(&x)? - &y))?;
/// }
/// assert_eq!(w.rank(), 1);
/// assert!((w.forward(&x)? - &y).iter().all(|e| e.abs() < 1e-6));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Dlrt {
    settings: DlrtSettings,
    /// Of `K`, `L` and `S`; empty before the first step.
    moments: [Adam<f64>; 3],
    /// Rows of $U$, rows and columns of $S$, and rows of $V$ after the last step.
    sizes: [usize; 4],
}

/// Moments of matrices move between bases by these: on the right of `K` and `L`, on both sides of `S`.
fn turn(adam: &mut Adam<f64>, dim: (usize, usize), left: Option<&Array2<f64>>, right: Option<&Array2<f64>>) {
    let map = |moments: Vec<f64>, squared: bool| {
        let power = |a: &Array2<f64>| if squared { a.mapv(|x| x * x) } else { a.clone() };
        let Ok(mut a) = Array2::from_shape_vec(dim, moments) else { return Vec::new() };
        if let Some(left) = left {
            a = matmul(&power(left), &a, Threads::ONE);
        }
        if let Some(right) = right {
            a = matmul_nt(&a, &power(right), Threads::ONE);
        }
        a.into_iter().collect()
    };
    adam.carry(|first, second| (map(first, false), map(second, true)));
}

impl Dlrt {
    /// Of these settings.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rate that is not a positive number, a `theta` outside of 0 to 1, ranks that are 0 or cross, betas outside
    /// of 0 to 1, or a bound below 1.
    pub fn new(settings: DlrtSettings) -> Result<Self> {
        check_rate(settings.rate)?;
        if let DlrtMode::Adaptive { theta, min_rank, max_rank } = settings.mode {
            if !(0.0..1.0).contains(&theta) {
                return Err(Error::parameter("theta", theta, "at least 0 and below 1"));
            }
            if min_rank == 0 || min_rank > max_rank {
                return Err(Error::parameter("min_rank", min_rank, format!("1 to max_rank = {max_rank}")));
            }
        }
        let mut keep = (0.0, 0.0);
        if let Rule::Adam { betas } = settings.rule {
            if ![betas.0, betas.1].iter().all(|beta| (0.0..1.0).contains(beta)) {
                return Err(Error::parameter("betas", format!("{betas:?}"), "each at least 0 and below 1"));
            }
            keep = betas;
        }
        settings.bound.map_or(Ok(()), |bound| bound.check())?;
        Ok(Self { settings, moments: [(); 3].map(|()| Adam::new(0, 1.0, keep)), sizes: [0; 4] })
    }

    /// The settings.
    pub fn settings(&self) -> &DlrtSettings {
        &self.settings
    }

    /// Sets the step length, for schedules.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless it is a positive number.
    pub fn set_rate(&mut self, rate: f64) -> Result<()> {
        check_rate(rate)?;
        self.settings.rate = rate;
        Ok(())
    }

    /// One step of `w`. `gradient` is asked for the gradient at the point that it is given: first at `w`, then in new bases, at the same matrix in
    /// larger ones with [`DlrtMode::Adaptive`], at what they hold of it with [`DlrtMode::Fixed`] (with [`DlrtMode::CoreOnly`] at `w` alone). A dense gradient is one too:
    /// `|w| Ok(w.to_dense() - &target)`.
    ///
    /// Moments of Adam start anew where `w` is not of the sizes that the last step left.
    ///
    /// # Errors
    /// Those of `gradient`; [`Error::Shape`] and [`Error::NonFinite`] when its products are not of the sizes that they should be, or not finite, or the step
    /// overflows. `w` and the state of the descent are then as before.
    pub fn step<G: ThinGradient>(
        &mut self,
        w: &mut LowRank3,
        mut gradient: impl FnMut(&LowRank3) -> Result<G>,
    ) -> Result<DlrtStep> {
        let mut next = self.clone();
        if next.sizes != sizes(w)
            && let Rule::Adam { betas } = next.settings.rule
        {
            next.moments = [(); 3].map(|()| Adam::new(0, 1.0, betas));
        }
        let (found, step) = match self.settings.mode {
            DlrtMode::CoreOnly => {
                let g = gradient(w)?;
                let mut found = w.clone();
                next.move_core(&mut found, &g)?;
                let rank = found.rank();
                (found, DlrtStep { rank, discarded: 0.0 })
            }
            mode => next.move_all(w, mode, &mut gradient)?,
        };
        next.sizes = sizes(&found);
        *w = found;
        *self = next;
        Ok(step)
    }

    fn move_all<G: ThinGradient>(
        &mut self,
        w: &LowRank3,
        mode: DlrtMode,
        gradient: &mut impl FnMut(&LowRank3) -> Result<G>,
    ) -> Result<(LowRank3, DlrtStep)> {
        let ((m, n), (p, q)) = (w.shape(), w.s.dim());
        let g = gradient(w)?;
        let (gv, gtu) = (g.times(&w.v)?, g.transposed_times(&w.u)?);
        checked("gradient times v", (m, q), &gv)?;
        checked("transposed gradient times u", (n, p), &gtu)?;
        let mut k = matmul(&w.u, &w.s, Threads::ONE);
        let mut l = matmul_nt(&w.v, &w.s, Threads::ONE);
        self.shift(0, &mut k, &gv);
        self.shift(1, &mut l, &gtu);
        check_finite("u s after the step", &k)?;
        check_finite("v s after the step", &l)?;
        let adaptive = matches!(mode, DlrtMode::Adaptive { .. });
        let (u, v) = match adaptive {
            true => (orthonormal(&w.u, &k)?, orthonormal(&w.v, &l)?),
            false => (qr(&k).q, qr(&l).q),
        };
        // The same matrix in the new bases, or what they hold of it.
        let (mu, mv) = (matmul_tn(&u, &w.u, Threads::ONE), matmul_tn(&v, &w.v, Threads::ONE));
        let s = matmul_nt(&matmul(&mu, &w.s, Threads::ONE), &mv, Threads::ONE);
        if self.moments[2].len() == p * q {
            turn(&mut self.moments[2], (p, q), Some(&mu), Some(&mv));
        }
        let mut point = LowRank3 { u, s, v };
        let g = gradient(&point)?;
        self.move_core(&mut point, &g)?;
        let mut discarded = 0.0;
        if let DlrtMode::Adaptive { theta, min_rank, max_rank } = mode {
            let (rows, cols) = point.s.dim();
            let inner = svd(&point.s, Threads::ONE)?;
            let (rank, cut) = kept(&inner.s, theta, min_rank, max_rank);
            discarded = cut;
            let inner = inner.truncate(rank);
            point = LowRank3 {
                u: matmul(&point.u, &inner.u, Threads::ONE),
                s: Array2::from_diag(&ndarray::aview1(&inner.s)),
                v: matmul_nt(&point.v, &inner.vt, Threads::ONE),
            };
            if self.moments[2].len() == rows * cols {
                let left = inner.u.t().as_standard_layout().into_owned();
                turn(&mut self.moments[2], (rows, cols), Some(&left), Some(&inner.vt));
            }
        }
        if adaptive && let Some(bound) = self.settings.bound {
            point.s = bound.apply(&point.s)?;
        }
        if let Rule::Adam { .. } = self.settings.rule {
            let (tv, tu) = (matmul_tn(&point.v, &w.v, Threads::ONE), matmul_tn(&point.u, &w.u, Threads::ONE));
            turn(&mut self.moments[0], (m, q), None, Some(&tv));
            turn(&mut self.moments[1], (n, p), None, Some(&tu));
        }
        let rank = point.rank();
        Ok((point, DlrtStep { rank, discarded }))
    }

    /// Step 3, and the bound unless a truncation follows.
    fn move_core(&mut self, w: &mut LowRank3, g: &impl ThinGradient) -> Result<()> {
        let core = g.between(&w.u, &w.v)?;
        checked("gradient between u and v", w.s.dim(), &core)?;
        let mut s = w.s.clone();
        self.shift(2, &mut s, &core);
        check_finite("s after the step", &s)?;
        w.s = match self.settings.bound {
            Some(bound) if !matches!(self.settings.mode, DlrtMode::Adaptive { .. }) => bound.apply(&s)?,
            _ => s,
        };
        Ok(())
    }

    /// Moves one of the three matrices, in standard layout, against its gradient.
    fn shift(&mut self, which: usize, x: &mut Array2<f64>, g: &Array2<f64>) {
        let rate = self.settings.rate;
        let Rule::Adam { betas } = self.settings.rule else {
            x.scaled_add(-rate, g);
            return;
        };
        let adam = &mut self.moments[which];
        if adam.len() != x.len() {
            *adam = Adam::new(x.len(), 1.0, betas);
        }
        adam.step_array(x, g, rate);
    }
}

fn sizes(w: &LowRank3) -> [usize; 4] {
    let (p, q) = w.s.dim();
    [w.u.nrows(), p, q, w.v.nrows()]
}

fn check_rate(rate: f64) -> Result<()> {
    match rate > 0.0 && rate.is_finite() {
        true => Ok(()),
        false => Err(Error::parameter("rate", rate, "a positive number")),
    }
}

/// How many of the descending values stay, and the norm of the others relative to that of all.
fn kept(s: &[f64], theta: f64, min_rank: usize, max_rank: usize) -> (usize, f64) {
    let top = s.first().copied().unwrap_or(0.0);
    // Norms of the tails, relative to the largest value so that no square overflows; smallest values first.
    let mut tails = vec![0.0; s.len() + 1];
    for (i, s) in s.iter().enumerate().rev() {
        tails[i] = tails[i + 1] + if top > 0.0 { (s / top).powi(2) } else { 0.0 };
    }
    let (norm, all) = (tails[0].sqrt(), s.len());
    let wanted = tails.iter().position(|tail| tail.sqrt() <= theta * norm).unwrap_or(all);
    let rank = wanted.max(min_rank).min(max_rank).min(all);
    (rank, if norm > 0.0 { tails[rank].sqrt() / norm } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::testing::{diff, gaussian, norm, orthogonality};
    use ndarray::s;

    /// `s![..]` keeps the first columns: those of the old basis.
    #[test]
    fn augmented_bases_hold_the_same_matrix() {
        for (m, n, r) in [(12, 9, 3), (9, 12, 4), (5, 4, 4), (1, 1, 1), (7, 3, 2)] {
            let w =
                LowRank3::from_product(&gaussian(m, r, 1), &gaussian(r, r, 2), &gaussian(n, r, 3)).unwrap();
            // New directions, none, and the same ones again.
            for k in [gaussian(m, r, 4), Array2::zeros((m, r)), w.u.clone()] {
                let (u, v) = (orthonormal(&w.u, &k).unwrap(), orthonormal(&w.v, &gaussian(n, r, 5)).unwrap());
                assert!(orthogonality(&u) < 1e-13 && orthogonality(&v) < 1e-13);
                let (mu, mv) = (u.t().dot(&w.u), v.t().dot(&w.v));
                let s = mu.dot(&w.s).dot(&mv.t());
                let again = u.dot(&s).dot(&v.t());
                assert!(diff(&again, &w.to_dense()) < 1e-12 * (1.0 + norm(&w.to_dense())));
                assert!(diff(&u.slice(s![.., ..r.min(m)]).to_owned(), &w.u) < 1e-13);
            }
        }
    }

    #[test]
    fn the_rank_is_the_smallest_within_the_tolerance() {
        let s = [2.0, 1.0, 0.5, 0.1];
        let norm = s.iter().map(|s| s * s).sum::<f64>().sqrt();
        let tail = |r: usize| s[r..].iter().map(|s| s * s).sum::<f64>().sqrt() / norm;
        for r in 1..=4 {
            // A tolerance exactly met, up to rounding, and one just missed.
            assert_eq!(kept(&s, tail(r) * (1.0 + 1e-12), 1, 9).0, r);
            if r > 1 {
                assert_eq!(kept(&s, tail(r - 1) * (1.0 - 1e-12), 1, 9).0, r);
            }
            let (rank, cut) = kept(&s, 0.0, 1, r);
            assert!(rank == r && (cut - tail(r)).abs() < 1e-14);
        }
        // The last value counts.
        assert_eq!(kept(&s, 0.9 * tail(3), 1, 9).0, 4);
        assert_eq!(kept(&s, 0.9, 3, 9).0, 3);
        assert_eq!(kept(&s, 0.9, 7, 9).0, 4);
        assert_eq!(kept(&[0.0; 4], 0.1, 2, 9), (2, 0.0));
        assert_eq!(kept(&[3e200, 1e200], 0.1, 1, 9).0, 2);
    }

    #[test]
    fn moments_turn_with_the_bases() {
        let (a, b) = (qr(&gaussian(4, 4, 1)).q, qr(&gaussian(3, 3, 2)).q);
        let mut adam = Adam::new(12, 1.0, (0.0, 0.0));
        let g = gaussian(4, 3, 3);
        adam.step(&mut [0.0; 12], g.as_slice().unwrap(), 1.0);
        turn(&mut adam, (4, 3), Some(&a), Some(&b));
        // The first moment is the gradient in the other bases; squares add up to the same.
        adam.carry(|first, second| {
            let turned = a.dot(&g).dot(&b.t());
            assert!(first.iter().zip(&turned).all(|(x, y)| (x - y).abs() < 1e-13));
            let energy: f64 = g.iter().map(|x| x * x).sum();
            assert!((second.iter().sum::<f64>() - energy).abs() < 1e-12 && second.iter().all(|x| *x >= 0.0));
            (first, second)
        });
    }
}
