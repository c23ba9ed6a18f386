use crate::adapters::{Edit, Multiplicative};
use crate::error::{Error, Result};
use crate::linalg::lstsq;
use crate::storage::{Factor, Storage};
use crate::structures::BlockDiagonal;
use ndarray::{Array2, ArrayRef2};

/// Series terms beyond this many are refused: the series of a rotation has long converged, or never will.
const MAX_TERMS: usize = 64;

/// How a skew-symmetric `Q` makes a rotation. The two families turn in opposite directions: the series approximate the transpose of the
/// exact form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// $(I - Q)(I + Q)^{-1}$.
    Cayley,
    /// $I + 2Q + \dots + 2Q^{p-1} + Q^p$ with `p = max(T - 1, 3)`; $I + 2Q$ for `T = 2`.
    Series {
        /// Number of terms `T`; one is no rotation.
        terms: usize,
    },
    /// $I + 2Q + \dots + 2Q^{T-1}$.
    OldSeries {
        /// Number of terms `T`; one is no rotation.
        terms: usize,
    },
}

impl Rotation {
    /// The rotation of `q`, which need not be skew-symmetric for the series.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `q` is square, [`Error::Parameter`] for no terms or absurdly many, [`Error::NonFinite`] for NaN in the exact form.
    pub fn of(self, q: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let b = q.nrows();
        super::expect("rotation", q, (b, b))?;
        let (eye, q) = (Array2::<f64>::eye(b), q.view());
        let (powers, last) = match self {
            // (I + Q)ᵀ = I - Q: the transpose of (I - Q)(I + Q)⁻¹ solves (I - Q) Z = I + Q.
            Rotation::Cayley => return Ok(lstsq(&(&eye - &q), &(&eye + &q))?.reversed_axes()),
            Rotation::Series { terms } | Rotation::OldSeries { terms }
                if !(1..=MAX_TERMS).contains(&terms) =>
            {
                let wanted = format!("1 to {MAX_TERMS}");
                return Err(Error::parameter("num_cayley_neumann_terms", terms, wanted));
            }
            Rotation::Series { terms: terms @ 1..=2 } => (terms - 1, 2.0),
            Rotation::Series { terms } => ((terms - 1).max(3), 1.0),
            Rotation::OldSeries { terms } => (terms - 1, 2.0),
        };
        let (mut sum, mut power) = (eye.clone(), eye);
        for k in 1..=powers {
            power = power.dot(&q);
            sum.scaled_add(if k == powers { last } else { 2.0 }, &power);
        }
        Ok(sum)
    }
}

/// The skew-symmetric matrix of order `b` whose upper triangle is `v`, row by row.
///
/// # Errors
/// [`Error::Shape`] unless `v` has `b (b - 1) / 2` entries.
pub fn skew(v: &[f64], b: usize) -> Result<Array2<f64>> {
    let len = b.saturating_mul(b.saturating_sub(1)) / 2;
    if v.len() != len {
        return Err(Error::shape("skew-symmetric numbers", &[len], &[v.len()]));
    }
    let mut q = Array2::zeros((b, b));
    let mut rest = v.iter();
    for i in 0..b {
        for j in i + 1..b {
            let value = *rest.next().unwrap_or(&0.0);
            (q[[i, j]], q[[j, i]]) = (value, -value);
        }
    }
    Ok(q)
}

/// OFT: $W' = W\, \mathrm{diag}(R_1, R_2, \dots)^T$ of rotations $R_i$ (`b x b` each), made by [`Rotation::of`]. One block serves all.
///
/// Cost: `in b`; the rotation is never made densely.
///
/// Source: Z. Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", 2023.
///
/// # Errors
/// [`Error::Shape`] when the blocks are not square or do not cover the inputs.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{oft, skew, Rotation}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 0.0, 0.0, 2.0]])?;
/// let quarter = Rotation::Cayley.of(&skew(&[1.0], 2)?)?;               // [[0, -1], [1, 0]]
/// let adapter = oft((1, 4), &[quarter])?;
/// let d = adapter.delta(&base)?;
/// assert!((d - array![[-1.0, 1.0, -2.0, -2.0]]).iter().all(|e| e.abs() < 1e-6));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn oft((m, n): (usize, usize), blocks: &[Array2<f64>]) -> Result<Multiplicative> {
    let b = blocks.first().map_or(0, |block| block.nrows());
    let repeat = if blocks.len() == 1 && b > 0 { n / b } else { blocks.len() };
    if b == 0 || repeat * b != n || blocks.iter().any(|block| block.dim() != (b, b)) {
        return Err(Error::shape(
            "OFT blocks",
            &[n.checked_div(b).unwrap_or(1), b, b],
            &[blocks.len(), b, b],
        ));
    }
    let stack = Factor::from_fn(Storage::F32, (repeat, b, b), |k, i, j| blocks[k % blocks.len()][[j, i]]);
    let right = BlockDiagonal::new((n, n), stack)?;
    let params = blocks.len() * b * (b - 1) / 2;
    Ok(Multiplicative::new("oft", Edit::of((m, n)).with_right(Box::new(right))?, params))
}
