//! Rotations of a head that attention does not see.

use crate::error::{Error, Result};
use crate::linalg::{self, Threads, check_finite, matmul_nt};
use crate::projection::ratio;
use ndarray::{Array2, ArrayRef2};
use std::ops::Deref;

/// Rotations $M$ under which the logits $x^T W_q^T W_k x'$ of a head stay what they are when $W_q → M W_q$ and $W_k → M W_k$.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gauge {
    /// None is used.
    #[default]
    None,
    /// Any orthogonal matrix: attention without rotary embeddings.
    Orthogonal,
    /// Rotations in the plane of each frequency, the only ones that commute with rotary embeddings.
    Rotary(RotaryPairs),
}

/// Which two features of a head make the plane of a frequency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `k` and `k + size / 2`: Llama's checkpoints.
    Halves,
    /// `2 k` and `2 k + 1`.
    Neighbours,
}

impl Gauge {
    /// Refuses heads of odd size where features come in pairs.
    pub(super) fn check(self, size: usize) -> Result<()> {
        match self {
            Gauge::Rotary(_) if !size.is_multiple_of(2) => {
                Err(Error::parameter("size of a head", size, "an even number, as features come in pairs"))
            }
            _ => Ok(()),
        }
    }

    fn planes(pairs: RotaryPairs, size: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..size / 2).map(move |k| match pairs {
            RotaryPairs::Halves => (k, k + size / 2),
            RotaryPairs::Neighbours => (2 * k, 2 * k + 1),
        })
    }

    /// The largest $\mathrm{tr}(M^T K)$ of its rotations.
    pub(super) fn trace(self, k: &ArrayRef2<f64>) -> Result<f64> {
        Ok(match self {
            Gauge::None => k.diag().sum(),
            Gauge::Orthogonal => linalg::singular_values(k, Threads::ONE)?.iter().sum(),
            Gauge::Rotary(pairs) => Self::planes(pairs, k.nrows())
                .map(|(a, b)| (k[[a, a]] + k[[b, b]]).hypot(k[[b, a]] - k[[a, b]]))
                .sum(),
        })
    }

    /// The rotation that reaches it.
    fn rotation(self, k: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let mut turn = Array2::eye(k.nrows());
        match self {
            Gauge::None => (),
            Gauge::Orthogonal => turn = linalg::polar(k)?.0,
            Gauge::Rotary(pairs) => {
                for (a, b) in Self::planes(pairs, k.nrows()) {
                    let (sin, cos) = (k[[b, a]] - k[[a, b]]).atan2(k[[a, a]] + k[[b, b]]).sin_cos();
                    (turn[[a, a]], turn[[b, b]], turn[[b, a]], turn[[a, b]]) = (cos, cos, sin, -sin);
                }
            }
        }
        Ok(turn)
    }
}

/// The rotation $M$ of the gauge that brings `from` closest to `onto`: it minimises $\sum_k \|M F_k - T_k\|_F^2$ over matrices $F_k$ and
/// $T_k$ of `size x in`, and the cosine of all $M F_k$ with all $T_k$ (0 where one side is zero). One decomposition of the polar form of
/// $\sum_k T_k F_k^T$, or an angle per plane in closed form.
///
/// Source: P. Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
///
/// ```
/// use structmat::sharing::{Gauge, procrustes};
/// use structmat::ndarray::array;
/// let (a, b) = (array![[1.0, 2.0], [0.0, 3.0]], array![[0.0, -3.0], [1.0, 2.0]]);       // a quarter turn
/// let (turn, cosine) = procrustes(&[a.view()], &[b.view()], Gauge::Orthogonal)?;
/// assert!((turn.dot(&a) - &b).iter().all(|e| e.abs() < 1e-12) && (cosine - 1.0).abs() < 1e-12);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Parameter`] without a matrix or for another number of them, or an odd size with rotary pairs; [`Error::Shape`], [`Error::NonFinite`].
pub fn procrustes<A: Deref<Target = ArrayRef2<f64>>>(
    from: &[A],
    onto: &[A],
    gauge: Gauge,
) -> Result<(Array2<f64>, f64)> {
    let Some(size) = from.first().map(|f| f.nrows()) else {
        return Err(Error::parameter("matrices", "none", "at least one"));
    };
    if onto.len() != from.len() {
        return Err(Error::parameter("matrices to turn to", onto.len(), from.len().to_string()));
    }
    gauge.check(size)?;
    let (mut k, mut norms) = (Array2::zeros((size, size)), (0.0, 0.0));
    for (f, t) in from.iter().zip(onto) {
        if f.dim() != t.dim() || f.nrows() != size {
            return Err(Error::shape("matrix to turn to", &[size, f.ncols()], t.shape()));
        }
        check_finite("matrix to turn", f)?;
        check_finite("matrix to turn to", t)?;
        k += &matmul_nt(t, f, Threads::ONE);
        norms =
            (norms.0 + f.iter().map(|v| v * v).sum::<f64>(), norms.1 + t.iter().map(|v| v * v).sum::<f64>());
    }
    Ok((gauge.rotation(&k)?, cosine(gauge.trace(&k)?, norms)))
}

/// The cosine of an inner product and two squared norms.
pub(in crate::sharing) fn cosine(product: f64, (a, b): (f64, f64)) -> f64 {
    ratio(product, a.sqrt() * b.sqrt())
}
