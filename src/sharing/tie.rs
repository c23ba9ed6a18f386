//! A matrix and its transpose in the place of two matrices.

use super::RIDGE;
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::linalg::{self, SpdSolver, Threads, matmul, matmul_nt, matmul_tn};
use crate::projection::{Gram, check_weight, ratio};
use crate::scalar::Scalar;
use ndarray::{Array1, Array2, ArrayRef1, ArrayRef2, Axis};

/// What stands between the two matrices of a block: what may be done to hidden units without changing the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// An activation. Hidden unit `i` is row `i` of $W_1$ and column `i` of $W_2$: renaming hidden units moves both, and brings them no
    /// closer. Where $f(d x) = d f(x)$ for $d > 0$ (ReLU, identity), each unit may be scaled.
    Activation(Activation),
    /// A stage with weights of its own, such as the 3 x 3 convolution of a bottleneck, which can take over the order and the scales of its
    /// outputs: column `order[i]` of $W_2$ is tied with row `i` of $W_1$.
    Stage,
}

/// What errors of both matrices are measured with.
#[derive(Debug, Clone, Copy, Default)]
pub enum TieObjective<'a> {
    /// $\|W_1 - W\|_F^2 + \|W_2^T - W\|_F^2$.
    #[default]
    Frobenius,
    /// $\|(W_1 - W) C_1^{1/2}\|_F^2 + \|(W_2^T - W) C_2^{1/2}\|_F^2$, with two moments on the same side (`in x in`): of the inputs, and
    /// what outputs count, such as the second moment of their gradients.
    SameSide {
        /// $C_1$.
        first: &'a Gram,
        /// $C_2$.
        second: &'a Gram,
    },
    /// $\|(W_1 - W) C_1^{1/2}\|_F^2 + \|(W_2 - W^T) C_2^{1/2}\|_F^2$: what each matrix sees.
    Inputs {
        /// Of the inputs (`in x in`).
        first: &'a Gram,
        /// Of the hidden units after the activation (`hidden x hidden`).
        second: &'a Gram,
    },
}

/// Two matrices tied, from [`tie_transpose`].
#[derive(Debug, Clone, PartialEq)]
pub struct Tied {
    /// $W$, of `hidden x in`: the block is $W^T f(W x)$.
    pub weight: Array2<f64>,
    /// What each row of $W_1$ was multiplied by, and the column of $W_2$ divided by.
    pub scales: Vec<f64>,
    /// The column of $W_2$ that was tied with each row of $W_1$.
    pub order: Vec<usize>,
    /// The error of both in the objective, relative to both, after scaling and ordering.
    pub relative_error: f64,
}

impl Tied {
    /// The bias of the hidden units, scaled as they are.
    ///
    /// # Errors
    /// [`Error::Shape`] for one of another length.
    pub fn hidden_bias<T: Scalar>(&self, bias: &ArrayRef1<T>) -> Result<Array1<f64>> {
        match bias.len() == self.scales.len() {
            true => Ok(bias.iter().zip(&self.scales).map(|(b, d)| d * b.widen()).collect()),
            false => Err(Error::shape("bias", &[self.scales.len()], &[bias.len()])),
        }
    }
}

/// One matrix `W` (`hidden x in`) for the pair $W_1$ (`hidden x in`) and $W_2$ (`in x hidden`), so that $W^T f(W x)$ stands for
/// $W_2 f(W_1 x)$.
///
/// First each hidden unit is scaled where that is free: $d^2 = \|w_2\| / \|w_1\|$ makes the two equally long, which is the best scale whatever
/// their angle. Behind a stage that can reorder, units are assigned to each other by what their pair then costs,
/// $\|w_1\| \|w_2\| - \langle w_1, w_2 \rangle$. Then least squares: the mean; $(W_1 C_1 + W_2^T C_2)(C_1 + C_2)^{-1}$ with moments on one side;
/// with a moment of hidden units the solution of $C_2 W + W C_1 = C_2 W_2^T + W_1 C_1$, in the eigenvectors of both.
/// With moments on one side, scales and assignment are those of the lengths and angles that remain once `W` is solved for, in
/// $(C_1^{-1} + C_2^{-1})^{-1}$; with [`TieObjective::Inputs`] those of the plain ones, which are not the best, and the moment of hidden units is
/// scaled with them. Directions that are not seen are those of the mean.
///
/// Source of the tied block: O. Koyun, B. Töreyin, "Do deep neural networks utilize the weight space efficiently?", 2024, where it is trained
/// from scratch; tying a trained pair is ours.
///
/// ```
/// use structmat::layers::Activation;
/// use structmat::sharing::{Between, TieObjective, tie_transpose};
/// use structmat::ndarray::array;
/// let (w1, w2) = (array![[1.0, 2.0], [3.0, -1.0]], array![[4.0, 3.0], [8.0, -1.0]]);     // the first unit of W2 is 4 times as large
/// let tied = tie_transpose(&w1, &w2, Between::Activation(Activation::Relu), &TieObjective::Frobenius)?;
/// assert!(tied.relative_error < 1e-12 && (tied.scales[0] - 2.0).abs() < 1e-12);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] when the matrices or moments do not fit, [`Error::NonFinite`].
pub fn tie_transpose<T: Scalar>(
    w1: &ArrayRef2<T>,
    w2: &ArrayRef2<T>,
    between: Between,
    objective: &TieObjective<'_>,
) -> Result<Tied> {
    let (mut a, b) = (check_weight(w1, Threads::ONE)?, check_weight(w2, Threads::ONE)?);
    let (h, n) = a.dim();
    if b.dim() != (n, h) {
        return Err(Error::shape("second weight", &[n, h], b.shape()));
    }
    objective.check(h, n)?;
    let mut b = b.t().as_standard_layout().into_owned();
    let (order, scales) = align(&a, &b, between, objective)?;
    b = b.select(Axis(0), &order);
    for (i, d) in scales.iter().enumerate() {
        a.row_mut(i).mapv_inplace(|v| v * d);
        b.row_mut(i).mapv_inplace(|v| v / d);
    }
    let seen = Seen::new(objective, &order, &scales);
    let weight = seen.solve(&a, &b)?;
    let relative_error =
        ratio(seen.energy(&(&a - &weight), &(&b - &weight)).sqrt(), seen.energy(&a, &b).sqrt());
    Ok(Tied { weight, scales, order, relative_error })
}

impl TieObjective<'_> {
    fn check(&self, h: usize, n: usize) -> Result<()> {
        let (first, second, side) = match self {
            TieObjective::Frobenius => return Ok(()),
            TieObjective::SameSide { first, second } => (first, second, n),
            TieObjective::Inputs { first, second } => (first, second, h),
        };
        match [(first, n), (second, side)].into_iter().find(|(gram, len)| gram.in_features() != *len) {
            None => Ok(()),
            Some((gram, len)) => Err(Error::shape("Gram matrix", &[len, len], gram.second_moment().shape())),
        }
    }
}

/// The row of `b` for each row of `a`, and the scales of both.
fn align(
    a: &Array2<f64>,
    b: &Array2<f64>,
    between: Between,
    objective: &TieObjective<'_>,
) -> Result<(Vec<usize>, Vec<f64>)> {
    // Inner products of what remains once W is solved for.
    let left = match objective {
        TieObjective::SameSide { first, second } => {
            Some(parallel(first.second_moment(), second.second_moment())?)
        }
        _ => None,
    };
    let seen =
        |w: &Array2<f64>| left.as_ref().map_or_else(|| w.clone(), |left| matmul(w, left, Threads::ONE));
    let lengths = |w: &Array2<f64>| -> Vec<f64> {
        let seen = seen(w);
        w.outer_iter().zip(seen.outer_iter()).map(|(a, b)| a.dot(&b).max(0.0).sqrt()).collect()
    };
    let (length_a, length_b, h) = (lengths(a), lengths(b), a.nrows());
    let (order, free) = match between {
        Between::Activation(f) => ((0..h).collect(), f.is_homogeneous()),
        Between::Stage => {
            let products = matmul_nt(&seen(a), b, Threads::ONE);
            let cost = Array2::from_shape_fn((h, h), |(i, j)| length_a[i] * length_b[j] - products[[i, j]]);
            (linalg::assignment(&cost)?, true)
        }
    };
    let scale = |i: usize| match (length_b[order[i]] / length_a[i]).sqrt() {
        d if free && d.is_normal() => d,
        _ => 1.0,
    };
    let scales = (0..h).map(scale).collect();
    Ok((order, scales))
}

/// What errors of `a` and `b`, both `hidden x in`, are measured with.
enum Seen<'a> {
    Plain,
    /// Both from the right.
    Same(&'a Array2<f64>, &'a Array2<f64>),
    /// The first from the right, the second from the left.
    Inputs(&'a Array2<f64>, Array2<f64>),
}

impl<'a> Seen<'a> {
    /// The moment of hidden units is ordered and scaled as they are.
    fn new(objective: &TieObjective<'a>, order: &[usize], scales: &[f64]) -> Self {
        match objective {
            TieObjective::Frobenius => Seen::Plain,
            TieObjective::SameSide { first, second } => {
                Seen::Same(first.second_moment(), second.second_moment())
            }
            TieObjective::Inputs { first, second } => {
                let c = second.second_moment();
                let scaled = |(i, j): (usize, usize)| scales[i] * scales[j] * c[[order[i], order[j]]];
                Seen::Inputs(first.second_moment(), Array2::from_shape_fn(c.dim(), scaled))
            }
        }
    }

    /// What both are multiplied by.
    fn weigh(&self, a: &Array2<f64>, b: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
        let product = |a: &Array2<f64>, b: &Array2<f64>| matmul(a, b, Threads::ONE);
        match self {
            Seen::Plain => (a.clone(), b.clone()),
            Seen::Same(c1, c2) => (product(a, c1), product(b, c2)),
            Seen::Inputs(c1, c2) => (product(a, c1), product(c2, b)),
        }
    }

    fn energy(&self, a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        let (seen_a, seen_b) = self.weigh(a, b);
        ((a * &seen_a).sum() + (b * &seen_b).sum()).max(0.0)
    }

    /// Least squares, from the mean, which is kept where nothing is seen.
    fn solve(&self, a: &Array2<f64>, b: &Array2<f64>) -> Result<Array2<f64>> {
        let mean = (a + b) * 0.5;
        let (left_a, left_b) = self.weigh(&(a - &mean), &(b - &mean));
        let right = left_a + left_b;
        Ok(match self {
            Seen::Plain => mean,
            Seen::Same(c1, c2) => mean + SpdSolver::new(&(*c1 + *c2), RIDGE)?.solve_right(&right),
            Seen::Inputs(c1, c2) => mean + sylvester(c2, c1, &right)?,
        })
    }
}

/// $C_1 (C_1 + C_2)^{-1} C_2$.
fn parallel(c1: &Array2<f64>, c2: &Array2<f64>) -> Result<Array2<f64>> {
    let sum = matmul(c1, &SpdSolver::new(&(c1 + c2), RIDGE)?.solve(c2), Threads::ONE);
    Ok((&sum + &sum.t()) * 0.5)
}

/// $X$ with $A X + X B = R$ for positive semi-definite `A` and `B`, of least norm where both have a null space.
fn sylvester(a: &Array2<f64>, b: &Array2<f64>, right: &Array2<f64>) -> Result<Array2<f64>> {
    let (a, b) = (linalg::eigh(a, Threads::ONE)?, linalg::eigh(b, Threads::ONE)?);
    let mut x = matmul(&matmul_tn(&a.vectors, right, Threads::ONE), &b.vectors, Threads::ONE);
    let top = a.values.first().copied().unwrap_or(0.0) + b.values.first().copied().unwrap_or(0.0);
    for ((i, j), x) in x.indexed_iter_mut() {
        // Moments of files in single precision may be a little indefinite; their sums must not nearly cancel.
        let sum = a.values[i].max(0.0) + b.values[j].max(0.0);
        *x = if sum > 1e-13 * top { *x / sum } else { 0.0 };
    }
    Ok(matmul_nt(&matmul(&a.vectors, &x, Threads::ONE), &b.vectors, Threads::ONE))
}
