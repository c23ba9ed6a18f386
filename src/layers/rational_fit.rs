//! Rational functions near to given activations.

use super::{Denominator, GroupRational};
use crate::error::{Error, Result};
use crate::linalg::lstsq;
use ndarray::{Array1, Array2, ArrayRef2, Axis};

/// Points of a fit: Chebyshev nodes of the range.
const NODES: usize = 129;
/// Points at which the error is measured.
const CHECKS: usize = 4001;
/// Steps of Gauss-Newton per weighting.
const STEPS: usize = 25;
/// Weightings on the way from least squares to the least largest error.
const WEIGHTINGS: usize = 30;

/// A rational function of one group that [`GroupRational::fit`] found, and how near it is.
#[derive(Debug, Clone, PartialEq)]
pub struct RationalFit {
    /// The function.
    pub layer: GroupRational,
    /// The largest distance from the activation, over 4001 points of the range.
    pub max_error: f64,
}

impl GroupRational {
    /// The rational function of numerator degree `degrees.0` and denominator degree `degrees.1` near to `f` on `range`, in one group.
    ///
    /// At Chebyshev nodes: the linearised problem $f\, Q = P$, reweighted by the denominator before, gives a start; damped Gauss-Newton steps lower
    /// the squared error of $P / Q$ in the given form; then weights grow where the error is largest (Lawson), towards the least largest error. The
    /// best of all steps is kept. A local optimum, with a denominator of at least 1 everywhere. Of degrees (5, 4) on -3 to 3 GELU is met to 4e-4 with
    /// [`Denominator::AbsSum`]; with [`Denominator::SumAbs`], which has no coefficient below 0, to about 1.3e-3.
    ///
    /// Source: C. Lawson, "Contributions to the theory of linear least maximum approximations", 1961; C. Sanathanan, J. Koerner, "Transfer function
    /// synthesis as a ratio of two complex polynomials", 1963 (the start).
    ///
    /// # Errors
    /// [`Error::Parameter`] for a range that is empty or not finite, degrees above 16, or an activation that is not finite there.
    ///
    /// ```
    /// use structmat::layers::{Denominator, GroupRational};
    /// let fit = GroupRational::fit(Denominator::SumAbs, f64::tanh, (-3.0, 3.0), (5, 4))?;
    /// assert!(fit.max_error < 1e-3 && (fit.layer.at(0, 1.0)? - 1f64.tanh()).abs() < 1e-3);
    /// # Ok::<(), structmat::Error>(())
    /// ```
    pub fn fit(
        form: Denominator,
        f: impl Fn(f64) -> f64,
        range: (f64, f64),
        degrees: (usize, usize),
    ) -> Result<RationalFit> {
        let (low, high) = range;
        if !(low < high && (high - low).is_finite()) {
            return Err(Error::parameter(
                "range",
                format!("{range:?}"),
                "two finite numbers, the lower one first",
            ));
        }
        if degrees.0 > 16 || degrees.1 > 16 {
            return Err(Error::parameter("degrees", format!("{degrees:?}"), "at most 16"));
        }
        let nodes: Vec<f64> = (0..NODES)
            .map(|k| {
                let angle = std::f64::consts::PI * (k as f64 + 0.5) / NODES as f64;
                0.5 * (low + high) - 0.5 * (high - low) * angle.cos()
            })
            .collect();
        let grid = |k: usize| low + (high - low) * k as f64 / (CHECKS - 1) as f64;
        let checks: Vec<(f64, f64)> = (0..CHECKS).map(|k| (grid(k), f(grid(k)))).collect();
        let wanted: Vec<f64> = nodes.iter().map(|x| f(*x)).collect();
        if let Some((x, _)) = checks.iter().find(|(_, y)| !y.is_finite()) {
            return Err(Error::parameter("activation", format!("not finite at {x}"), "finite on the range"));
        }
        let problem = Problem { form, degrees, nodes, wanted };
        let mut best: Option<RationalFit> = None;
        for start in problem.starts()? {
            let mut weights = vec![1.0; NODES];
            let mut theta = start;
            for _ in 0..WEIGHTINGS {
                theta = problem.descend(theta, &weights)?;
                let layer = problem.layer(&theta)?;
                let max_error = checks.iter().map(|(x, y)| (layer.value(0, *x) - y).abs());
                // NaN stays, and is never the least.
                let max_error = max_error.fold(0.0, |most, e| if e <= most { most } else { e });
                if !max_error.is_nan() && best.as_ref().is_none_or(|best| max_error < best.max_error) {
                    best = Some(RationalFit { layer, max_error });
                }
                let errors = problem.errors(&theta);
                let mean = weights.iter().zip(&errors).map(|(w, e)| w * e.abs()).sum::<f64>() / NODES as f64;
                if mean <= 1e-15 {
                    break;
                }
                weights.iter_mut().zip(&errors).for_each(|(w, e)| *w *= (e.abs() / mean).clamp(0.2, 5.0));
                let total: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w = (*w * NODES as f64 / total).max(1e-6));
            }
        }
        best.ok_or(Error::NoConvergence("the fit of a rational function"))
    }

    /// The slope of group `group` at `x`; where an absolute value has none, that from above.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there is no such group.
    pub fn derivative(&self, group: usize, x: f64) -> Result<f64> {
        self.check(group)?;
        let (a, b) = (self.numerator.row(group), self.denominator.row(group));
        let (mut p, mut dp, mut inner, mut d_inner) = (0.0, 0.0, 0.0, 0.0);
        a.iter().rev().for_each(|a| (p, dp) = (p * x + a, dp * x + p));
        // The polynomial in the denominator without its constant, of x or |x|.
        let (t, sign) = match self.form {
            Denominator::AbsSum => (x, 1.0),
            Denominator::SumAbs => (x.abs(), if x < 0.0 { -1.0 } else { 1.0 }),
        };
        for b in b.iter().rev() {
            let b = if self.form == Denominator::SumAbs { b.abs() } else { *b };
            (inner, d_inner) = (inner * t + b, d_inner * t + inner);
        }
        (inner, d_inner) = (inner * t, d_inner * t + inner);
        let (q, dq) = match self.form {
            Denominator::AbsSum => (1.0 + inner.abs(), if inner < 0.0 { -d_inner } else { d_inner }),
            Denominator::SumAbs => (1.0 + inner, sign * d_inner),
        };
        Ok((dp * q - p * dq) / (q * q))
    }

    /// NoRA: the same with coefficients adapted by low-rank matrices over groups and powers, `a + scale B_n A_n` and `b + scale B_d A_d`; `(B, A)` are of
    /// `groups x rank` and `rank x powers`. Coefficients of one group stand for all. With `B = 0` the activation is as it was.
    ///
    /// The published module adds 1e-6 to the denominator's coefficients, which is not done here.
    ///
    /// # Errors
    /// [`Error::Shape`] when the factors do not fit.
    ///
    /// ```
    /// use structmat::layers::{Denominator, GroupRational};
    /// use structmat::ndarray::array;
    /// let base = GroupRational::new(Denominator::AbsSum, array![[0.0, 1.0]], array![[0.0]])?;
    /// let (b, a, none) = (array![[0.0], [1.0]], array![[0.0, 1.0]], array![[0.0], [0.0]]);
    /// let adapted = base.adapted((&b, &a), (&none, &array![[1.0]]), 0.5)?;
    /// assert_eq!(adapted.forward(&array![[2.0f32, 2.0]])?, array![[2.0, 3.0]]);
    /// # Ok::<(), structmat::Error>(())
    /// ```
    pub fn adapted(
        &self,
        numerator: (&ArrayRef2<f64>, &ArrayRef2<f64>),
        denominator: (&ArrayRef2<f64>, &ArrayRef2<f64>),
        scale: f64,
    ) -> Result<Self> {
        let groups = numerator.0.nrows();
        let moved = |base: &Array2<f64>, (b, a): (&ArrayRef2<f64>, &ArrayRef2<f64>)| {
            if b.dim() != (groups, a.nrows()) {
                return Err(Error::shape("factor B of a rational", &[groups, a.nrows()], b.shape()));
            }
            if a.ncols() != base.ncols() {
                return Err(Error::shape("factor A of a rational", &[a.nrows(), base.ncols()], a.shape()));
            }
            if base.nrows() != 1 && base.nrows() != groups {
                return Err(Error::shape("factor B of a rational", &[base.nrows(), a.nrows()], b.shape()));
            }
            let change = b.dot(&a.view()) * scale;
            Ok(Array2::from_shape_fn(change.dim(), |(g, k)| {
                base[[g.min(base.nrows() - 1), k]] + change[[g, k]]
            }))
        };
        Self::new(self.form, moved(&self.numerator, numerator)?, moved(&self.denominator, denominator)?)
    }
}

/// What a fit is about; parameters are the numerator's coefficients, then the denominator's.
struct Problem {
    form: Denominator,
    degrees: (usize, usize),
    nodes: Vec<f64>,
    wanted: Vec<f64>,
}

impl Problem {
    fn layer(&self, theta: &Array1<f64>) -> Result<GroupRational> {
        let above = self.degrees.0 + 1;
        let row = |from: usize, to: usize| theta.slice(ndarray::s![from..to]).to_owned().insert_axis(Axis(0));
        GroupRational::new(self.form, row(0, above), row(above, above + self.degrees.1))
    }

    /// `x^k` as the denominator has it.
    fn power(&self, x: f64, k: usize) -> f64 {
        match self.form {
            Denominator::AbsSum => x.powi(k as i32),
            Denominator::SumAbs => x.abs().powi(k as i32),
        }
    }

    /// Numerator and denominator at `x`, and the derivative of the denominator with respect to its coefficient `k` over `x^k`.
    fn parts(&self, theta: &Array1<f64>, x: f64) -> (f64, f64, Vec<f64>) {
        let above = self.degrees.0 + 1;
        let p = (0..above).map(|k| theta[k] * x.powi(k as i32)).sum();
        let b = |k: usize| theta[above + k - 1];
        let sign = |v: f64| if v < 0.0 { -1.0 } else { 1.0 };
        let powers = 1..=self.degrees.1;
        match self.form {
            Denominator::AbsSum => {
                let inner: f64 = powers.clone().map(|k| b(k) * self.power(x, k)).sum();
                (p, 1.0 + inner.abs(), powers.map(|_| sign(inner)).collect())
            }
            Denominator::SumAbs => {
                let inner: f64 = powers.clone().map(|k| b(k).abs() * self.power(x, k)).sum();
                // A coefficient of zero stays there: it is where many activations want one that this form does not have.
                (p, 1.0 + inner, powers.map(|k| if b(k) == 0.0 { 0.0 } else { sign(b(k)) }).collect())
            }
        }
    }

    fn errors(&self, theta: &Array1<f64>) -> Vec<f64> {
        let at = |(x, y): (&f64, &f64)| {
            let (p, q, _) = self.parts(theta, *x);
            p / q - y
        };
        self.nodes.iter().zip(&self.wanted).map(at).collect()
    }

    /// Starts of the descent: the linearised problem, and plain denominators of even powers and of the square.
    fn starts(&self) -> Result<Vec<Array1<f64>>> {
        let (above, below) = (self.degrees.0 + 1, self.degrees.1);
        let mut weights = vec![1.0; NODES];
        let mut starts = Vec::new();
        let mut theta = Array1::zeros(above + below);
        for _ in 0..8 {
            let system = Array2::from_shape_fn((NODES, above + below), |(i, k)| {
                let x = self.nodes[i];
                let column =
                    if k < above { x.powi(k as i32) } else { -self.wanted[i] * self.power(x, k - above + 1) };
                column / weights[i]
            });
            let target = Array2::from_shape_fn((NODES, 1), |(i, _)| self.wanted[i] / weights[i]);
            theta = lstsq(&system, &target)?.column(0).to_owned();
            weights = self.nodes.iter().map(|x| self.parts(&theta, *x).1).collect();
        }
        starts.push(theta);
        let even = |size: f64| {
            move |k: usize| if k.is_multiple_of(2) { size / 4f64.powi(k as i32 / 2) } else { 0.0 }
        };
        let square = |k: usize| if k == 2 { 0.1 } else { 0.0 };
        let denominators: [&dyn Fn(usize) -> f64; 3] = [&even(0.05), &even(0.5), &square];
        for denominator in denominators {
            let powers = (1..=below).map(denominator);
            let mut theta = Array1::from_iter(std::iter::repeat_n(0.0, above).chain(powers));
            let system = Array2::from_shape_fn((NODES, above), |(i, k)| {
                self.nodes[i].powi(k as i32) / self.parts(&theta, self.nodes[i]).1
            });
            let target = Array2::from_shape_fn((NODES, 1), |(i, _)| self.wanted[i]);
            let found = lstsq(&system, &target)?;
            theta.slice_mut(ndarray::s![..above]).assign(&found.column(0));
            starts.push(theta);
        }
        Ok(starts)
    }

    /// Lowers the weighted squared error by Gauss-Newton steps with Levenberg's damping.
    fn descend(&self, mut theta: Array1<f64>, weights: &[f64]) -> Result<Array1<f64>> {
        let count = theta.len();
        let energy = |errors: &[f64]| errors.iter().zip(weights).map(|(e, w)| w * e * e).sum::<f64>();
        let mut errors = self.errors(&theta);
        let (mut now, mut damping) = (energy(&errors), 1e-6);
        for _ in 0..STEPS {
            let above = self.degrees.0 + 1;
            let mut system = Array2::zeros((NODES + count, count));
            let mut target = Array2::zeros((NODES + count, 1));
            for (i, x) in self.nodes.iter().enumerate() {
                let (p, q, signs) = self.parts(&theta, *x);
                let root = weights[i].sqrt();
                for k in 0..count {
                    system[[i, k]] = root
                        * match k.checked_sub(above) {
                            None => x.powi(k as i32) / q,
                            Some(k) => -p / (q * q) * signs[k] * self.power(*x, k + 1),
                        };
                }
                target[[i, 0]] = -root * errors[i];
            }
            // Columns have very different sizes: the damping follows them.
            for k in 0..count {
                let size = system.column(k).dot(&system.column(k)).sqrt();
                system[[NODES + k, k]] = (damping * size).max(f64::MIN_POSITIVE);
            }
            let next = &theta + &lstsq(&system, &target)?.column(0);
            let next_errors = self.errors(&next);
            let after = energy(&next_errors);
            if after.is_finite() && after < now {
                let gain = now - after;
                (theta, errors, now) = (next, next_errors, after);
                damping *= 0.3;
                if gain <= 1e-6 * now {
                    break;
                }
            } else {
                damping *= 8.0;
                if damping > 1e6 {
                    break;
                }
            }
        }
        Ok(theta)
    }
}
