//! The gradient of a loss through the thin singular value decomposition.

use super::{Svd, Threads, check_finite, matmul, matmul_into, matmul_nt, matmul_tn};
use crate::error::{Error, Result};
use ndarray::{Array2, ArrayRef2, s};

/// What stands for $1 / (\sigma_j^2 - \sigma_i^2)$ where two singular values (nearly) meet, and the quotient is not finite or means
/// nothing. Defaults are those of Dobi-SVD's code; they are absolute, for matrices of which the large singular values are not tiny.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SvdGuards {
    /// Singular values below this count as this (1e-10).
    pub floor: f64,
    /// Singular values at most this far apart (1e-10) get the geometric series $\sum_{k=0}^{K} q^{2k} / \sigma^2$ of the larger one
    /// $\sigma$ and the ratio $q \le 1$, cut after the term $K$.
    pub gap: f64,
    /// $K$ (10).
    pub terms: i32,
    /// What stands for it where both are at the floor (100).
    pub flat: f64,
}

impl Default for SvdGuards {
    fn default() -> Self {
        Self { floor: 1e-10, gap: 1e-10, terms: 10, flat: 100.0 }
    }
}

impl SvdGuards {
    /// $1 / (\sigma_j^2 - \sigma_i^2)$, guarded; antisymmetric in `i` and `j`.
    fn inverse_gap(&self, s: &[f64], i: usize, j: usize) -> f64 {
        let (a, b) = (s[i].max(self.floor), s[j].max(self.floor));
        let (large, small) = (a.max(b), a.min(b));
        let size = if large <= self.floor {
            self.flat
        } else if large - small <= self.gap {
            let q = small / large;
            (0..=self.terms).map(|k| q.powi(2 * k)).sum::<f64>() / (large * large)
        } else {
            1.0 / ((large - small) * (large + small))
        };
        // Values descend: of equal ones the earlier counts as the larger.
        if b > a || (a == b && j < i) { size } else { -size }
    }
}

/// The gradient by `A` (`m x n`) of a loss of its thin decomposition $A = U \operatorname{diag}(\sigma) V^T$, from the gradients by $U$ (`gu`,
/// `m x r`), by the singular values (`gs`) and by $V^T$ (`gvt`, `r x n`):
///
/// $$\bar A = U \bigl[ (\operatorname{skew}(U^T \bar U) \circ E) \Sigma + \Sigma (\operatorname{skew}(V^T \bar V) \circ E) + \operatorname{diag}(\bar\sigma) \bigr] V^T
/// + (I - U U^T) \bar U \Sigma^{-1} V^T + U \Sigma^{-1} \bar V^T (I - V V^T)$$
///
/// with $\operatorname{skew}(X) = X - X^T$ and $E_{ij} = 1 / (\sigma_j^2 - \sigma_i^2)$, guarded. `O(m n k + (m + n) k²)` flops.
///
/// A loss of the leading `r < k` components only gives gradients for these (of whatever numbers; the others count as zero), but `svd` must be
/// the complete thin decomposition, with `k = min(m, n)` components: with the truncated one in its place the coupling to the discarded directions
/// is missing.
///
/// Source: J. Townsend, "Differentiating the singular value decomposition", 2016; the guards are those of Q. Wang et al., "Dobi-SVD:
/// Differentiable SVD for LLM Compression and Some New Perspectives", 2025.
///
/// ```
/// use structmat::linalg::{SvdGuards, Threads, svd, svd_gradient};
/// use structmat::ndarray::{Array2, array};
/// // The sum of the singular values has the gradient U Vᵀ.
/// let a = array![[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]];
/// let svd = svd(&a, Threads::ONE)?;
/// let (gu, gvt) = (Array2::zeros((3, 0)), Array2::zeros((0, 2)));
/// let gradient = svd_gradient(&svd, &gu, &[1.0, 1.0], &gvt, &SvdGuards::default(), Threads::ONE)?;
/// assert!((gradient - svd.u.dot(&svd.vt)).iter().all(|e| e.abs() < 1e-14));
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] unless `svd` is complete and the gradients have its sizes, [`Error::NonFinite`] for NaN or infinities among the gradients,
/// [`Error::Parameter`] for guards that are not positive numbers.
pub fn svd_gradient(
    svd: &Svd,
    gu: &ArrayRef2<f64>,
    gs: &[f64],
    gvt: &ArrayRef2<f64>,
    guards: &SvdGuards,
    threads: Threads,
) -> Result<Array2<f64>> {
    let (m, n, k) = (svd.u.nrows(), svd.vt.ncols(), svd.s.len());
    let full = m.min(n);
    if k != full || svd.u.ncols() != full || svd.vt.nrows() != full {
        return Err(Error::shape(
            "complete thin decomposition (u, s, vt)",
            &[full; 3],
            &[svd.u.ncols(), k, svd.vt.nrows()],
        ));
    }
    if gu.nrows() != m || gu.ncols() > k {
        return Err(Error::shape("gradient by u", &[m, k], gu.shape()));
    }
    if gvt.ncols() != n || gvt.nrows() > k {
        return Err(Error::shape("gradient by vt", &[k, n], gvt.shape()));
    }
    if gs.len() > k {
        return Err(Error::shape("gradient by s", &[k], &[gs.len()]));
    }
    check_finite("gradient by u", gu)?;
    check_finite("gradient by vt", gvt)?;
    if let Some((col, &value)) = gs.iter().enumerate().find(|(_, g)| !g.is_finite()) {
        return Err(Error::NonFinite { what: "gradient by s", row: 0, col, value });
    }
    let positive = |x: f64| x.is_finite() && x > 0.0;
    let sizes =
        positive(guards.floor) && guards.gap.is_finite() && guards.gap >= 0.0 && positive(guards.flat);
    if !(sizes && (0..=1000).contains(&guards.terms)) {
        return Err(Error::parameter(
            "guards",
            format!("{guards:?}"),
            "positive numbers, at most 1000 terms",
        ));
    }
    let along = |thin: Array2<f64>| {
        let mut wide = Array2::zeros((k, k));
        wide.slice_mut(s![.., ..thin.ncols()]).assign(&thin);
        wide
    };
    let (left, right) = (along(matmul_tn(&svd.u, gu, threads)), along(matmul_nt(&svd.vt, gvt, threads)));
    let core = Array2::from_shape_fn((k, k), |(i, j)| match i == j {
        true => gs.get(i).copied().unwrap_or(0.0),
        false => {
            let turn = (left[[i, j]] - left[[j, i]]) * svd.s[j] + svd.s[i] * (right[[i, j]] - right[[j, i]]);
            turn * guards.inverse_gap(&svd.s, i, j)
        }
    });
    let mut inner = matmul(&core, &svd.vt, threads);
    // U Σ⁻¹ V̄ᵀ (I - V Vᵀ), and the same on the other side: nothing where the vectors fill the space.
    let inverse: Vec<f64> = svd.s.iter().map(|s| 1.0 / s.max(guards.floor)).collect();
    if n > k {
        let mut outside = gvt.to_owned();
        outside -= &matmul(&right.slice(s![.., ..gvt.nrows()]).t(), &svd.vt, threads);
        for ((mut to, from), inverse) in inner.outer_iter_mut().zip(outside.outer_iter()).zip(&inverse) {
            to.scaled_add(*inverse, &from);
        }
    }
    let mut gradient = matmul(&svd.u, &inner, threads);
    if m > k {
        let r = gu.ncols();
        let mut outside = gu.to_owned();
        outside -= &matmul(&svd.u, &left.slice(s![.., ..r]), threads);
        outside.outer_iter_mut().for_each(|mut row| row.iter_mut().zip(&inverse).for_each(|(x, i)| *x *= i));
        matmul_into(&outside, &svd.vt.slice(s![..r, ..]), &mut gradient, true, threads);
    }
    Ok(gradient)
}

#[cfg(test)]
mod tests {
    use super::super::svd;
    use super::super::testing::{gaussian, norm, with_spectrum};
    use super::*;

    /// A loss of the leading `r` components: `<P, U> + <q, s> + <R, Vᵀ>`.
    fn loss(a: &Array2<f64>, p: &Array2<f64>, q: &[f64], r: &Array2<f64>) -> f64 {
        let d = svd(a, Threads::ONE).unwrap().truncate(q.len());
        (&d.u * p).sum() + d.s.iter().zip(q).map(|(s, q)| s * q).sum::<f64>() + (&d.vt * r).sum()
    }

    #[test]
    fn differences_of_losses_of_all_and_of_leading_components() {
        for (m, n) in [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1)] {
            let k = m.min(n);
            let a = with_spectrum(m, n, &(0..k).map(|i| 3.0 * 0.7f64.powi(i as i32)).collect::<Vec<_>>(), 3);
            for r in [k, k.div_ceil(2)] {
                let (p, t) = (gaussian(m, r, 1), gaussian(r, n, 2));
                let q: Vec<f64> = gaussian(1, r, 3).into_iter().collect();
                let d = svd(&a, Threads::ONE).unwrap();
                let got = svd_gradient(&d, &p, &q, &t, &SvdGuards::default(), Threads::ONE).unwrap();
                let h = 1e-5;
                let want = Array2::from_shape_fn((m, n), |at| {
                    let moved = |step: f64| {
                        let mut a = a.clone();
                        a[at] += step;
                        loss(&a, &p, &q, &t)
                    };
                    (moved(h) - moved(-h)) / (2.0 * h)
                });
                let error = norm(&(&got - &want)) / norm(&want);
                assert!(error < 1e-7, "{m} x {n}, {r} of {k}: {error}");
            }
        }
    }

    #[test]
    fn coinciding_and_vanishing_singular_values_stay_finite() {
        for s in [[2.0, 2.0, 1.0], [2.0, 1.0, 1.0 - 1e-12], [1.0, 0.0, 0.0], [0.0; 3]] {
            let a = with_spectrum(5, 3, &s, 1);
            let d = svd(&a, Threads::ONE).unwrap();
            let (p, t) = (gaussian(5, 3, 1), gaussian(3, 3, 2));
            let got = svd_gradient(&d, &p, &[1.0; 3], &t, &SvdGuards::default(), Threads::ONE).unwrap();
            assert!(got.iter().all(|x| x.is_finite()), "{s:?}");
        }
    }

    #[test]
    fn guards_are_those_of_the_source() {
        let guards = SvdGuards::default();
        assert_eq!(guards.inverse_gap(&[2.0, 1.0], 0, 1), -1.0 / 3.0);
        assert_eq!(guards.inverse_gap(&[2.0, 1.0], 1, 0), 1.0 / 3.0);
        assert_eq!(guards.inverse_gap(&[2.0, 2.0], 1, 0), 11.0 / 4.0);
        assert_eq!(guards.inverse_gap(&[2.0, 2.0], 0, 1), -11.0 / 4.0);
        assert_eq!(guards.inverse_gap(&[0.0, 1e-12], 0, 1), -100.0);
        let q: f64 = 1.0 - 5e-11;
        let series = (1.0 - q.powi(22)) / (1.0 - q * q);
        assert!((guards.inverse_gap(&[1.0, q], 1, 0) - series).abs() < 1e-4);
    }

    #[test]
    fn incomplete_decompositions_and_other_sizes_are_refused() {
        let d = svd(&gaussian(5, 4, 1), Threads::ONE).unwrap();
        let (gu, gvt, guards) = (Array2::zeros((5, 2)), Array2::zeros((2, 4)), SvdGuards::default());
        let try_with = |d: &Svd, gu: &Array2<f64>, gs: &[f64], gvt: &Array2<f64>| {
            svd_gradient(d, gu, gs, gvt, &guards, Threads::ONE)
        };
        assert!(try_with(&d, &gu, &[0.0], &gvt).is_ok());
        assert!(matches!(try_with(&d.truncate(2), &gu, &[], &gvt), Err(Error::Shape { .. })));
        assert!(matches!(try_with(&d, &Array2::zeros((4, 2)), &[], &gvt), Err(Error::Shape { .. })));
        assert!(matches!(try_with(&d, &gu, &[0.0; 5], &gvt), Err(Error::Shape { .. })));
        assert!(matches!(try_with(&d, &gu, &[], &Array2::zeros((5, 4))), Err(Error::Shape { .. })));
        assert!(matches!(try_with(&d, &gu, &[f64::NAN], &gvt), Err(Error::NonFinite { .. })));
        let empty = Svd::empty(0, 3);
        assert_eq!(
            try_with(&empty, &Array2::zeros((0, 0)), &[], &Array2::zeros((0, 3))).unwrap().dim(),
            (0, 3)
        );
    }
}
