//! Three-factor low rank with orthonormal outer factors.

use super::condition_number;
use crate::error::{Error, Result};
use crate::linalg::{
    Qr, SvdMethod, SvdOptions, Threads, check_finite, matmul, matmul_nt, matmul_tn, qr, svd, truncated_svd,
};
use crate::parts::MAX_FEATURES;
use crate::random::Gaussian;
use crate::storage::{Factor, Storage};
use crate::structures::{LowRank, LowRankForm};
use ndarray::{Array2, ArrayRef2, Axis};

/// How far $U^T U$ and $V^T V$ may be from the identity, entry by entry.
const ORTHONORMAL: f64 = 1e-8;

/// $W = U S V^T$ with orthonormal columns of $U$ (`m x p`) and $V$ (`n x q`), and any $S$ (`p x q`, mostly square): the form in which low-rank
/// weights are trained, in `f64`. [`to_low_rank`](Self::to_low_rank) makes it a matrix to multiply with.
///
/// Numbers: `p (m + q) + n q`.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// use structmat::training::LowRank3;
/// let w = Array2::from_shape_fn((6, 4), |(i, j)| (1 + i) as f64 * (2 + j) as f64);   // rank 1
/// let factors = LowRank3::from_dense(&w, 1)?;
/// assert!((factors.to_dense() - &w).iter().all(|e| e.abs() < 1e-12));
/// let matrix = factors.to_low_rank(Storage::F32, LowRankForm::TwoFactors)?;
/// assert_eq!((matrix.rank(), matrix.n_params()), (1, 10));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank3 {
    pub(super) u: Array2<f64>,
    pub(super) s: Array2<f64>,
    pub(super) v: Array2<f64>,
}

impl LowRank3 {
    /// Of factors whose outer ones are orthonormal: $U$ of `m x p`, $S$ of `p x q`, $V$ of `n x q`.
    ///
    /// # Errors
    /// Those of [`from_product`](Self::from_product), and [`Error::Parameter`] when columns of $U$ or $V$ are not orthonormal within 1e-8.
    pub fn new(u: Array2<f64>, s: Array2<f64>, v: Array2<f64>) -> Result<Self> {
        check(&u, &s, &v)?;
        check_orthonormal("u", &u)?;
        check_orthonormal("v", &v)?;
        Ok(Self { u, s, v })
    }

    /// The product $U S V^T$ of any three matrices, $U$ of `m x p`, $S$ of `p x q`, $V$ of `n x q`: the outer ones are made orthonormal by QR, and the
    /// inner one takes the rest.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit together or one is 0, [`Error::NonFinite`] for NaN or infinities.
    pub fn from_product(u: &ArrayRef2<f64>, s: &ArrayRef2<f64>, v: &ArrayRef2<f64>) -> Result<Self> {
        check(u, s, v)?;
        let (left, right) = (qr(u), qr(v));
        let s = matmul_nt(&matmul(&left.r, s, Threads::ONE), &right.r, Threads::ONE);
        check_finite("core", &s)?;
        Ok(Self { u: left.q, s, v: right.q })
    }

    /// The best approximation of `w` of rank `rank`: its truncated singular value decomposition, exact.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rank that is not in 1 to `min(m, n)`, [`Error::NonFinite`] for NaN or infinities.
    pub fn from_dense(w: &ArrayRef2<f64>, rank: usize) -> Result<Self> {
        check_rank(w.dim(), rank)?;
        let options = SvdOptions { method: SvdMethod::Exact, ..SvdOptions::default() };
        let found = truncated_svd(w, rank, &options, Threads::ONE)?.svd;
        let v = found.vt.t().as_standard_layout().into_owned();
        Ok(Self { u: found.u, s: Array2::from_diag(&ndarray::aview1(&found.s)), v })
    }

    /// A start of rank `rank`: random orthonormal $U$ and $V$, $S$ a multiple of the identity, so that entries of $W$ have the variance `1 / n`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rank that is not in 1 to `min(m, n)`, [`Error::Shape`] for more than 2^31 rows or columns.
    pub fn random((m, n): (usize, usize), rank: usize, seed: u64) -> Result<Self> {
        check_rank((m, n), rank)?;
        if m > MAX_FEATURES || n > MAX_FEATURES {
            return Err(Error::shape(
                "low-rank factors",
                &[m.min(MAX_FEATURES), n.min(MAX_FEATURES)],
                &[m, n],
            ));
        }
        let mut gaussian = Gaussian::new(seed);
        let (u, v) = (qr(&gaussian.matrix(m, rank, 1.0)).q, qr(&gaussian.matrix(n, rank, 1.0)).q);
        Ok(Self { u, s: Array2::eye(rank) * (m as f64 / rank as f64).sqrt(), v })
    }

    /// A low-rank matrix, its factors made orthonormal.
    ///
    /// # Errors
    /// [`Error::Shape`] for a rank, or a number of features, of 0.
    pub fn from_low_rank(matrix: &LowRank) -> Result<Self> {
        let mut u = matrix.left().matrix(0);
        for (k, mut column) in u.axis_iter_mut(Axis(1)).enumerate() {
            column *= matrix.scale(k);
        }
        Self::from_product(&u, &Array2::eye(matrix.rank()), &matrix.right().matrix(0).t())
    }

    /// `(out_features, in_features)`, `(m, n)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.u.nrows(), self.v.nrows())
    }

    /// The smaller side of $S$: what the rank of $W$ is at most.
    pub fn rank(&self) -> usize {
        self.s.nrows().min(self.s.ncols())
    }

    /// $U$, `m x p`.
    pub fn u(&self) -> &Array2<f64> {
        &self.u
    }

    /// $S$, `p x q`.
    pub fn s(&self) -> &Array2<f64> {
        &self.s
    }

    /// $V$, `n x q`.
    pub fn v(&self) -> &Array2<f64> {
        &self.v
    }

    /// $U$, $S$ and $V$.
    pub fn into_factors(self) -> (Array2<f64>, Array2<f64>, Array2<f64>) {
        (self.u, self.s, self.v)
    }

    /// The largest entry of $U^T U - I$ and $V^T V - I$.
    pub fn deviation(&self) -> f64 {
        deviation(&self.u).max(deviation(&self.v))
    }

    /// The condition number of $S$, which is that of $W$ on its row space: see [`condition_number`].
    ///
    /// # Errors
    /// Those of [`condition_number`].
    pub fn condition_number(&self) -> Result<f64> {
        condition_number(&self.s)
    }

    /// $W$, `m x n`.
    pub fn to_dense(&self) -> Array2<f64> {
        matmul_nt(&matmul(&self.u, &self.s, Threads::ONE), &self.v, Threads::ONE)
    }

    /// $Y = X W^T$, for a batch of inputs $X$ (`batch x n`), in `batch (p m + p q + q n)` multiply-adds.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of inputs.
    pub fn forward(&self, x: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let (batch, n) = (x.nrows(), self.v.nrows());
        if x.ncols() != n {
            return Err(Error::shape("x", &[batch, n], x.shape()));
        }
        let t = matmul_nt(&matmul(x, &self.v, Threads::ONE), &self.s, Threads::ONE);
        Ok(matmul_nt(&t, &self.u, Threads::ONE))
    }

    /// The matrix to multiply with: $S$ is decomposed and its parts go into the factors, evenly or, in the form `U diag(s) V`, into `s`.
    ///
    /// # Errors
    /// [`Error::NoConvergence`] when the decomposition fails.
    pub fn to_low_rank(&self, storage: Storage, form: LowRankForm) -> Result<LowRank> {
        let inner = svd(&self.s, Threads::ONE)?;
        let factor = |a: &Array2<f64>| Factor::from_matrix(storage, a);
        let sides = |u: &Array2<f64>, vt: &Array2<f64>| {
            (matmul(&self.u, u, Threads::ONE), matmul_nt(vt, &self.v, Threads::ONE))
        };
        match form {
            LowRankForm::TwoFactors => {
                let (left, right) = inner.split_sqrt(inner.rank());
                let (u, v) = sides(&left, &right);
                LowRank::new(factor(&u), factor(&v))
            }
            LowRankForm::Usv => {
                let (u, v) = sides(&inner.u, &inner.vt);
                let s = Factor::from_fn(storage, (1, 1, inner.s.len()), |_, _, k| inner.s[k]);
                LowRank::with_singular_values(factor(&u), s, factor(&v))
            }
        }
    }
}

/// Sizes that fit together, none of them 0, and finite numbers.
fn check(u: &ArrayRef2<f64>, s: &ArrayRef2<f64>, v: &ArrayRef2<f64>) -> Result<()> {
    let ((m, p), (n, q)) = (u.dim(), v.dim());
    if m == 0 || p == 0 {
        return Err(Error::shape("u", &[m.max(1), p.max(1)], u.shape()));
    }
    if n == 0 || q == 0 {
        return Err(Error::shape("v", &[n.max(1), q.max(1)], v.shape()));
    }
    if s.dim() != (p, q) {
        return Err(Error::shape("s", &[p, q], s.shape()));
    }
    check_finite("u", u)?;
    check_finite("s", s)?;
    check_finite("v", v)
}

fn check_rank((m, n): (usize, usize), rank: usize) -> Result<()> {
    let most = m.min(n);
    if rank == 0 || rank > most {
        return Err(Error::parameter("rank", rank, format!("1 to {most}")));
    }
    Ok(())
}

/// The largest entry of $Q^T Q - I$.
/// [`Error::Parameter`] unless columns are orthonormal.
pub(super) fn check_orthonormal(name: &'static str, q: &ArrayRef2<f64>) -> Result<()> {
    let apart = deviation(q);
    match apart <= ORTHONORMAL {
        true => Ok(()),
        false => {
            let expected = format!("at most {ORTHONORMAL:e}");
            Err(Error::parameter(name, format!("columns {apart:e} from orthonormal"), expected))
        }
    }
}

fn deviation(q: &ArrayRef2<f64>) -> f64 {
    let gram = matmul_tn(q, q, Threads::ONE);
    let entry = |((i, j), x): ((usize, usize), &f64)| (x - f64::from(u8::from(i == j))).abs();
    gram.indexed_iter().map(entry).fold(0.0, f64::max)
}

/// An orthonormal basis, first those columns that are orthonormal already: `Q` of the thin QR of `[a | b]`.
pub(super) fn orthonormal(a: &Array2<f64>, b: &Array2<f64>) -> Result<Array2<f64>> {
    let beside = ndarray::concatenate(Axis(1), &[a.view(), b.view()])
        .map_err(|_| Error::shape("new directions", a.shape(), b.shape()))?;
    let Qr { q, .. } = qr(&beside);
    Ok(q)
}
