//! What a layer sees, and what it should have seen.

use crate::error::{Error, Result};
use crate::linalg::{self, SpdSolver, Threads, matmul, matmul_tn};
use crate::projection::Gram;
use crate::scalar::Scalar;
use ndarray::{Array1, Array2, ArrayRef1, ArrayRef2, Axis};

/// Means and second moments of the inputs of a layer, gathered batch by batch in `f64`: of the inputs `x̂` that it sees, and of the inputs
/// `x` that it would see in the dense model, where these differ because layers before it are compressed already.
///
/// From them come the objective of a projection ([`gram`](Self::gram)), the weight to project ([`target`](Self::target)) and the bias
/// afterwards ([`bias`](Self::bias)): together they minimise $E \lVert (W x + b) - (\hat W \hat x + \hat b) \rVert^2$. With
/// $C = E[\hat x \hat x^T]$ and $M = E[x \hat x^T]$, both centred where there is a bias to take the means, that error is
/// $\mathrm{tr} (W' - \hat W) C (W' - \hat W)^T$ for $W' = W M C^{-1}$, up to what no $\hat W$ can change.
///
/// Memory: `3 n²` numbers of `f64` for `n` inputs; a batch of `b` rows costs `2 b n²` multiply-adds, half of that when `x` is `x̂`.
///
/// ```
/// use structmat::calibration::Moments;
/// use structmat::ndarray::array;
/// let mut moments = Moments::new(2);
/// moments.accumulate(&array![[1.0f32, 0.0], [1.0, 2.0]])?;
/// assert_eq!(moments.gram(false, 0.0)?.second_moment(), &array![[1.0, 1.0], [1.0, 2.0]]);
/// assert_eq!(moments.gram(true, 0.0)?.second_moment(), &array![[0.0, 0.0], [0.0, 1.0]]); // around the mean
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    pub(super) samples: f64,
    /// Of `x̂`.
    pub(super) mean: Array1<f64>,
    /// Of `x̂ x̂ᵀ`.
    pub(super) second: Array2<f64>,
    /// Of what the dense model sees, once that differs.
    pub(super) dense: Option<Cross>,
}

/// Of `x`, and of `x x̂ᵀ`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cross {
    pub(super) mean: Array1<f64>,
    pub(super) second: Array2<f64>,
}

impl Moments {
    /// Of no inputs yet, for a layer with `in_features` inputs.
    pub fn new(in_features: usize) -> Self {
        let n = in_features;
        Self { samples: 0.0, mean: Array1::zeros(n), second: Array2::zeros((n, n)), dense: None }
    }

    /// Number of features.
    pub fn in_features(&self) -> usize {
        self.mean.len()
    }

    /// Number of inputs seen.
    pub fn samples(&self) -> f64 {
        self.samples
    }

    /// Takes in a batch `x` (batch x in) that the dense model sees too.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of features, [`Error::NonFinite`]; nothing is taken in then.
    pub fn accumulate<T: Scalar>(&mut self, x: &ArrayRef2<T>) -> Result<()> {
        let batch = Self::of(self.in_features(), x, None)?;
        self.blend(&batch);
        Ok(())
    }

    /// Takes in a batch `seen` (batch x in), and what the dense model sees in its place, `x` (batch x in).
    ///
    /// # Errors
    /// As [`accumulate`](Self::accumulate), and [`Error::Shape`] when the two differ in shape.
    pub fn accumulate_pair<T: Scalar>(&mut self, x: &ArrayRef2<T>, seen: &ArrayRef2<T>) -> Result<()> {
        let batch = Self::of(self.in_features(), seen, Some(x))?;
        self.blend(&batch);
        Ok(())
    }

    /// Takes in what another accumulator of the same layer has seen.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of features.
    pub fn merge(&mut self, other: &Moments) -> Result<()> {
        if other.in_features() != self.in_features() {
            return Err(Error::shape("moments", &[self.in_features()], &[other.in_features()]));
        }
        self.blend(other);
        Ok(())
    }

    fn of<T: Scalar>(n: usize, seen: &ArrayRef2<T>, dense: Option<&ArrayRef2<T>>) -> Result<Self> {
        for x in std::iter::once(seen).chain(dense) {
            if x.dim() != (seen.nrows(), n) {
                return Err(Error::shape("activations", &[seen.nrows(), n], x.shape()));
            }
            crate::linalg::check_finite("activations", x)?;
        }
        let rows = seen.nrows();
        if rows == 0 {
            return Ok(Self::new(n));
        }
        let (seen, count) = (seen.mapv(T::widen), rows as f64);
        let mean = |x: &Array2<f64>| x.sum_axis(Axis(0)) / count;
        let dense = dense.map(|x| x.mapv(T::widen));
        Ok(Self {
            samples: count,
            mean: mean(&seen),
            second: linalg::gram(&seen, Threads::ONE) / count,
            dense: dense
                .map(|x| Cross { mean: mean(&x), second: matmul_tn(&x, &seen, Threads::ONE) / count }),
        })
    }

    fn blend(&mut self, other: &Moments) {
        let total = self.samples + other.samples;
        if other.samples == 0.0 {
            return;
        }
        let share = other.samples / total;
        if self.dense.is_some() || other.dense.is_some() {
            let mut own = self.cross();
            let theirs = other.cross();
            own.mean.zip_mut_with(&theirs.mean, |a, b| *a += (b - *a) * share);
            own.second.zip_mut_with(&theirs.second, |a, b| *a += (b - *a) * share);
            self.dense = Some(own);
        }
        self.mean.zip_mut_with(&other.mean, |a, b| *a += (b - *a) * share);
        self.second.zip_mut_with(&other.second, |a, b| *a += (b - *a) * share);
        self.samples = total;
    }

    fn cross(&self) -> Cross {
        let same = || Cross { mean: self.mean.clone(), second: self.second.clone() };
        self.dense.clone().unwrap_or_else(same)
    }

    /// `a - x yᵀ` when centred, else `a`.
    fn around(a: &Array2<f64>, x: &Array1<f64>, y: &Array1<f64>, centred: bool) -> Array2<f64> {
        let mut a = a.clone();
        if centred {
            for (mut row, x) in a.outer_iter_mut().zip(x) {
                row.zip_mut_with(y, |a, y| *a -= x * y);
            }
        }
        a
    }

    /// `C` around the mean where `centred` (there is a bias), with `dampening` times its mean diagonal entry added to the diagonal: so much
    /// noise, independent of the data, is assumed in every input. 0.01 is usual; few samples want more.
    fn dampened(&self, centred: bool, dampening: f64) -> (Array2<f64>, f64) {
        let mut c = Self::around(&self.second, &self.mean, &self.mean, centred);
        let ridge = dampening * c.diag().sum() / c.nrows().max(1) as f64;
        c.diag_mut().mapv_inplace(|d| d.max(0.0) + ridge);
        (c, ridge)
    }

    /// The objective for projections of the layer: `C` of what it sees, around the mean where `centred` (where a bias takes what means
    /// do), with `dampening` times its mean diagonal entry added to the diagonal. That assumes so much noise, independent of the data, in every
    /// input, and keeps directions that few samples show from counting for nothing: 0.01 is usual.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a negative or non-finite dampening, and those of [`Gram::from_second_moment`].
    pub fn gram(&self, centred: bool, dampening: f64) -> Result<Gram> {
        check(dampening)?;
        Gram::from_second_moment(&self.dampened(centred, dampening).0)
    }

    /// Eigenvalues of `C` (centred or not) above `1e-6` of the largest: fewer than [`in_features`](Self::in_features) where the inputs leave
    /// directions unseen, and dampening decides there. `O(n³)`.
    ///
    /// # Errors
    /// [`Error::NoConvergence`].
    pub fn rank(&self, centred: bool) -> Result<usize> {
        let values = linalg::eigvalsh(&self.dampened(centred, 0.0).0, Threads::ONE)?;
        let most = values.first().copied().unwrap_or(0.0);
        Ok(values.iter().filter(|&&v| v > 1e-6 * most && v > 0.0).count())
    }

    /// $W' = W (M + \lambda I) (C + \lambda I)^{-1}$ with the dampening $\lambda$: what `w` becomes when it has to make the outputs of the dense model
    /// from what the layer sees. That is `w` itself while both see the same. `O(n³ + m n²)`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of columns, [`Error::Parameter`] for a negative or non-finite dampening.
    pub fn target(&self, w: &ArrayRef2<f64>, centred: bool, dampening: f64) -> Result<Array2<f64>> {
        check(dampening)?;
        self.check_columns(w)?;
        let Some(dense) = &self.dense else { return Ok(w.to_owned()) };
        let (c, ridge) = self.dampened(centred, dampening);
        let mut m = Self::around(&dense.second, &dense.mean, &self.mean, centred);
        m.diag_mut().mapv_inplace(|d| d + ridge);
        Ok(SpdSolver::new(&c, 0.0)?.solve_right(&matmul(w, &m, Threads::ONE)))
    }

    /// $\hat b = b + E[W x] - E[\hat W \hat x]$: the bias that leaves no mean error.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit together.
    pub fn bias(
        &self,
        w: &ArrayRef2<f64>,
        fitted: &ArrayRef2<f64>,
        bias: &ArrayRef1<f64>,
    ) -> Result<Array1<f64>> {
        self.check_columns(w)?;
        self.check_columns(fitted)?;
        if w.nrows() != fitted.nrows() || bias.len() != w.nrows() {
            return Err(Error::shape(
                "weight and bias",
                &[w.nrows(), bias.len()],
                &[fitted.nrows(), w.nrows()],
            ));
        }
        let dense = self.dense.as_ref().map_or(&self.mean, |dense| &dense.mean);
        Ok(w.dot(dense) - fitted.dot(&self.mean) + bias)
    }

    fn check_columns(&self, w: &ArrayRef2<f64>) -> Result<()> {
        match w.ncols() == self.in_features() {
            true => Ok(()),
            false => Err(Error::shape("weight", &[w.nrows(), self.in_features()], w.shape())),
        }
    }
}

fn check(dampening: f64) -> Result<()> {
    match dampening >= 0.0 && dampening.is_finite() {
        true => Ok(()),
        false => Err(Error::parameter("dampening", dampening, "a finite number >= 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Gaussian;

    fn data(rows: usize, n: usize, seed: u64) -> Array2<f64> {
        let mut gaussian = Gaussian::new(seed);
        let mix = gaussian.matrix(n, n, 0.3);
        gaussian.matrix(rows, n, 1.0).dot(&mix) + 0.5
    }

    #[test]
    fn batches_shards_and_orders_agree() {
        let (x, seen) = (data(50, 6, 1), data(50, 6, 2));
        let mut whole = Moments::new(6);
        whole.accumulate_pair(&x, &seen).unwrap();
        let mut parts = [Moments::new(6), Moments::new(6)];
        for (k, (x, seen)) in x.outer_iter().zip(seen.outer_iter()).enumerate() {
            let (x, seen) = (x.insert_axis(Axis(0)), seen.insert_axis(Axis(0)));
            parts[k % 2].accumulate_pair(&x, &seen).unwrap();
        }
        let [mut first, second] = parts;
        first.merge(&second).unwrap();
        let close = |a: &Array2<f64>, b: &Array2<f64>| (a - b).iter().all(|e| e.abs() < 1e-12);
        assert!(close(&first.second, &whole.second) && close(&first.cross().second, &whole.cross().second));
        // Those that saw the same as the dense model join those that did not.
        let mut mixed = Moments::new(6);
        mixed.accumulate(&x).unwrap();
        mixed.merge(&whole).unwrap();
        assert_eq!(mixed.samples(), 100.0);
        assert!(close(&mixed.cross().second, &((&whole.cross().second + &(x.t().dot(&x) / 50.0)) / 2.0)));
    }

    /// No weight and bias near the returned ones do better on the samples.
    #[test]
    fn target_and_bias_are_least_squares() {
        let (x, seen) = (data(80, 7, 3), &data(80, 7, 3) * 0.8 + data(80, 7, 4) * 0.3);
        let (w, b) = (data(5, 7, 5), data(1, 5, 6).row(0).to_owned());
        let mut moments = Moments::new(7);
        moments.accumulate_pair(&x, &seen).unwrap();
        let loss = |w_hat: &Array2<f64>, b_hat: &Array1<f64>| {
            let wanted = x.dot(&w.t()) + &b;
            let error = wanted - (seen.dot(&w_hat.t()) + b_hat);
            error.iter().map(|e| e * e).sum::<f64>() / 80.0
        };
        let fitted = moments.target(&w, true, 0.0).unwrap();
        let bias = moments.bias(&w, &fitted, &b).unwrap();
        let best = loss(&fitted, &bias);
        for seed in 0..20 {
            let (other, shift) =
                (data(5, 7, 10 + seed) * 1e-3, data(1, 5, 40 + seed).row(0).to_owned() * 1e-3);
            let other = &fitted + &other;
            assert!(loss(&other, &(&bias + &shift)) > best);
            // The objective is the excess, for the bias that goes with each weight.
            let c = moments.gram(true, 0.0).unwrap();
            let error = &other - &fitted;
            let excess = error.dot(c.second_moment()).dot(&error.t()).diag().sum();
            let with_bias = loss(&other, &moments.bias(&w, &other, &b).unwrap());
            assert!((with_bias - best - excess).abs() < 1e-10 * best);
        }
    }

    #[test]
    fn the_same_inputs_leave_the_weight_alone() {
        let (x, w) = (data(9, 12, 1), data(4, 12, 2));
        let mut moments = Moments::new(12);
        moments.accumulate_pair(&x, &x).unwrap();
        // Fewer samples than features: dampening decides where nothing was seen.
        assert_eq!((moments.rank(false).unwrap(), moments.rank(true).unwrap()), (9, 8));
        let target = moments.target(&w, true, 0.01).unwrap();
        assert!((target - &w).iter().all(|e| e.abs() < 1e-10));
    }

    #[test]
    fn bad_input() {
        let mut moments = Moments::new(3);
        assert!(matches!(moments.accumulate(&data(2, 4, 1)), Err(Error::Shape { .. })));
        assert!(matches!(moments.accumulate_pair(&data(2, 3, 1), &data(1, 3, 1)), Err(Error::Shape { .. })));
        let mut nan = data(2, 3, 1);
        nan[[1, 2]] = f64::NAN;
        assert!(matches!(moments.accumulate(&nan), Err(Error::NonFinite { .. })));
        assert_eq!(moments, Moments::new(3));
        assert!(matches!(moments.merge(&Moments::new(2)), Err(Error::Shape { .. })));
        assert!(matches!(moments.gram(true, -1.0), Err(Error::Parameter { .. })));
        assert!(matches!(moments.target(&data(2, 4, 1), true, 0.1), Err(Error::Shape { .. })));
        assert!(moments.bias(&data(2, 3, 1), &data(2, 3, 1), &Array1::zeros(3)).is_err());
    }
}
