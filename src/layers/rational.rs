use crate::error::{Error, Result};
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2};

/// The denominator of a [`GroupRational`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denominator {
    /// $1 + |\sum_k b_k x^k|$: that of the papers.
    AbsSum,
    /// $1 + \sum_k |b_k| |x|^k$: that of the published GPU kernels.
    SumAbs,
}

/// A rational activation per group of channels: $F(x) = \sum_{k \ge 0} a_k x^k / Q(x)$ with $Q \ge 1$.
///
/// Adapted (NoRA), the coefficients are their base plus a low-rank matrix over groups and powers; that sum is what this layer holds.
///
/// Source: X. Yang, X. Wang, "Kolmogorov-Arnold Transformer", 2024.
///
/// ```
/// use structmat::layers::{Denominator, GroupRational};
/// use structmat::ndarray::array;
/// let square = GroupRational::new(Denominator::AbsSum, array![[0.0, 0.0, 1.0]], array![[0.0]])?;
/// assert_eq!(square.forward(&array![[2.0f32, -3.0]])?, array![[4.0, 9.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRational {
    pub(super) form: Denominator,
    pub(super) numerator: Array2<f64>,
    pub(super) denominator: Array2<f64>,
}

impl GroupRational {
    /// From coefficients of `groups x powers`: of the numerator from power 0 on, of the denominator from power 1 on.
    ///
    /// # Errors
    /// [`Error::Shape`] when the groups differ or there is none.
    pub fn new(form: Denominator, numerator: Array2<f64>, denominator: Array2<f64>) -> Result<Self> {
        let groups = numerator.nrows();
        match groups > 0 && denominator.nrows() == groups {
            true => Ok(Self { form, numerator, denominator }),
            false => Err(Error::shape(
                "denominator of a rational",
                &[groups.max(1), denominator.ncols()],
                denominator.shape(),
            )),
        }
    }

    /// The value of group `group` at `x`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there is no such group.
    pub fn at(&self, group: usize, x: f64) -> Result<f64> {
        self.check(group).map(|()| self.value(group, x))
    }

    pub(super) fn check(&self, group: usize) -> Result<()> {
        let groups = self.numerator.nrows();
        match group < groups {
            true => Ok(()),
            false => Err(Error::parameter("group", group, format!("less than {groups}"))),
        }
    }

    /// Of a group that is there.
    pub(super) fn value(&self, group: usize, x: f64) -> f64 {
        let horner = |coefficients: ndarray::ArrayView1<'_, f64>, x: f64, abs: bool| {
            coefficients.iter().rev().fold(0.0, |sum, c| sum * x + if abs { c.abs() } else { *c })
        };
        let above = horner(self.numerator.row(group), x, false);
        let below = match self.form {
            Denominator::AbsSum => (horner(self.denominator.row(group), x, false) * x).abs(),
            Denominator::SumAbs => horner(self.denominator.row(group), x.abs(), true) * x.abs(),
        };
        above / (1.0 + below)
    }

    /// The activation of a batch (batch x channels); groups are runs of channels.
    ///
    /// # Errors
    /// [`Error::Shape`] when the groups do not divide the channels.
    pub fn forward<T: Scalar>(&self, x: &ArrayRef2<T>) -> Result<Array2<T>> {
        let (groups, channels) = (self.numerator.nrows(), x.ncols());
        if !channels.is_multiple_of(groups) {
            return Err(Error::shape("channels of a rational", &[x.nrows(), groups], x.shape()));
        }
        let each = (channels / groups).max(1);
        Ok(Array2::from_shape_fn(x.dim(), |(i, j)| T::narrow(self.value(j / each, x[[i, j]].widen()))))
    }
}
