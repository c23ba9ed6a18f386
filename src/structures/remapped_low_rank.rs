//! Low rank in which numbers that meet take half of the bits.

use super::{LowRank, LowRankSpec};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, Stage, stage_gradients};
use crate::linalg::{SvdMethod, Threads, check_finite, matmul_into};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Options, Request, Run, Size};
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, ArrayView3, Axis, concatenate, s};

/// $W = U V$ of rank `k`, of which the first $\min(m, n)$ rows of $U$ and columns of $V$ are stored in 8 bits and the rest, of $U$ where
/// $m > n$, of $V$ where $n > m$, in 16: rank `k` takes $k \max(m, n)$ words of 16 bits, so that up to the size of the dense matrix there is a rank for
/// each size, up to the full one; two factors of 16 bits reach half of that for a square matrix.
///
/// That holds for the 16-bit storages, `bf16` and `f16`; in all others every factor is in the storage asked for, and the matrix is a
/// [`LowRank`] in three pieces. Columns of $U$ have 1 as their largest magnitude, and rows of $V$ the scale.
/// Scales of the codes come on top: the crate's `int8` has one of 16 bits per 32 numbers of a row, `r ceil(k / 32) + k ceil(r / 32)` with
/// `r = min(m, n)`: a sixteenth more for square matrices whose `k` and `r` are multiples of 32, and as much as the numbers themselves at rank 1. The
/// source has one for all numbers of a component; errors are the smaller for it, at most 1/127 of the largest magnitude among 32 numbers.
///
/// Parameters and multiply-adds: `k (m + n)`. Byte budgets count codes as codes; those of parameters do not see the difference.
///
/// Projection: that of [`LowRank`], then rounding.
///
/// Source: Q. Wang et al., "Dobi-SVD: Differentiable SVD for LLM Compression and Some New Perspectives", 2025.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((96, 64), |(i, j)| 1.0 / (1.0 + i as f32 + j as f32));
/// let options = Options { storage: Storage::Bf16, ..Options::default() };
/// let spec = RemappedLowRankSpec { rank: 8 };
/// let small = RemappedLowRank::project(&w, &spec, &Objective::Frobenius, &options)?;
/// assert!(small.report.relative_error < 0.01);
/// // 8 x 96 words of 16 bits and the scales.
/// assert_eq!(small.matrix.storage_bytes(), 2 * (8 * 96 + 64 + 8 * 2));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RemappedLowRank {
    shape: (usize, usize),
    /// The first `min(m, n)` rows of `U`, all of them where it is wide.
    u: Factor,
    /// The first `min(m, n)` columns of `V`, all of them where it is tall.
    v: Factor,
    /// The other rows of `U`, or the other columns of `V`.
    rest: Factor,
}

/// Parameters of [`RemappedLowRank`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemappedLowRankSpec {
    /// Rank, at most `min(out, in)`.
    pub rank: usize,
}

impl Default for RemappedLowRankSpec {
    fn default() -> Self {
        Self { rank: 1 }
    }
}

/// The storage of numbers that meet.
fn halved(storage: Storage) -> Storage {
    match storage {
        Storage::Bf16 | Storage::F16 => Storage::Int8,
        other => other,
    }
}

impl RemappedLowRank {
    /// The product of `u` (out x rank) and `v` (rank x in), rounded to a storage.
    ///
    /// # Errors
    /// [`Error::Shape`] when the inner sizes differ, [`Error::Parameter`] for a rank above `min(out, in)`, [`Error::NonFinite`] for NaN or
    /// infinities.
    pub fn from_factors(storage: Storage, u: &ArrayRef2<f64>, v: &ArrayRef2<f64>) -> Result<Self> {
        let ((m, k), n) = (u.dim(), v.ncols());
        if v.nrows() != k {
            return Err(Error::shape("v", &[k, n], v.shape()));
        }
        if k > m.min(n) {
            return Err(Error::parameter("rank", k, format!("at most {}", m.min(n))));
        }
        check_finite("u", u)?;
        let (mut u, mut v, r) = (u.to_owned(), v.to_owned(), m.min(n));
        for (mut column, mut row) in u.axis_iter_mut(Axis(1)).zip(v.outer_iter_mut()) {
            let largest = column.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            if largest > 0.0 {
                column.mapv_inplace(|x| x / largest);
                row.mapv_inplace(|x| x * largest);
            }
        }
        check_finite("v", &v)?;
        let rest = match m > n {
            true => u.slice(s![r.., ..]),
            false => v.slice(s![.., r..]),
        };
        let coded = |a: &ArrayRef2<f64>| Factor::from_matrix(halved(storage), a);
        let (u, v) = (coded(&u.slice(s![..r.min(m), ..])), coded(&v.slice(s![.., ..r.min(n)])));
        Ok(Self::packed((m, n), u, v, Factor::from_matrix(storage, &rest)))
    }

    fn packed(shape: (usize, usize), u: Factor, v: Factor, rest: Factor) -> Self {
        let coded = |factor: Factor| {
            let storage = halved(factor.storage());
            if storage == factor.storage() || factor.len() == 0 { factor } else { factor.to_storage(storage) }
        };
        let (u, v) = (coded(u).packed_forward(), coded(v).packed_forward());
        // Nothing has no storage: files do not hold it.
        let rest = if rest.len() == 0 { rest.to_storage(Storage::F32) } else { rest };
        Self { shape, u, v, rest: rest.packed_forward() }
    }

    /// The rank of the factors.
    pub fn rank(&self) -> usize {
        self.u.cols()
    }

    /// Whether `rest` has rows of `U`; otherwise it has columns of `V`.
    fn is_tall(&self) -> bool {
        self.shape.0 > self.shape.1
    }

    /// `U` and `V`, whole.
    fn whole<T: Scalar>(&self) -> (Array3<T>, Array3<T>) {
        let (mut u, mut v) = (self.u.numbers::<T>(), self.v.numbers::<T>());
        let rest = self.rest.numbers::<T>();
        let join = |a: &Array3<T>, axis| {
            let parts: [ArrayView3<'_, T>; 2] = [a.view(), rest.view()];
            concatenate(Axis(axis), &parts).unwrap_or_else(|_| a.clone())
        };
        if self.is_tall() {
            u = join(&u, 1);
        } else {
            v = join(&v, 2);
        }
        (u, v)
    }
}

impl<T: Scalar> Multiply<T> for RemappedLowRank {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        let policy = work.policy;
        let (mut t, _) = work.matrix(x.rows(), self.rank());
        let (first, second) = op.order(&self.v, &self.u);
        let meet = self.shape.0.min(self.shape.1);
        // The longer side is in two pieces: the outputs of U, or what goes into V, and the other way round.
        if self.is_tall() == (op == Op::Forward) {
            first.multiply(op, x, t.reborrow(), Update::Overwrite, policy);
            let (head, tail) = y.split_columns(meet);
            second.multiply(op, t.as_rows(), head, update, policy);
            if tail.cols() > 0 {
                self.rest.multiply(op, t.as_rows(), tail, update, policy);
            }
        } else {
            let (head, tail) = (x.columns(0..meet), x.columns(meet..x.cols()));
            first.multiply(op, head, t.reborrow(), Update::Overwrite, policy);
            if tail.cols() > 0 {
                self.rest.multiply(op, tail, t.reborrow(), Update::Accumulate, policy);
            }
            second.multiply(op, t.as_rows(), y, update, policy);
        }
    }
}

impl<T: Scalar> Differentiate<T> for RemappedLowRank {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let (u, v) = self.whole::<T>();
        let meet = self.shape.0.min(self.shape.1);
        let gradients = stage_gradients(&[Stage::contiguous(u), Stage::contiguous(v)], x, dy, threads);
        let (du, dv) = (&gradients[0], &gradients[1]);
        let rest = match self.is_tall() {
            true => du.slice(s![.., meet.., ..]),
            false => dv.slice(s![.., .., meet..]),
        };
        let (u_head, v_head) = (du.slice(s![.., ..meet, ..]), dv.slice(s![.., .., ..meet]));
        let rest = (!rest.is_empty()).then(|| rest.to_owned());
        rest.into_iter().chain([u_head.to_owned(), v_head.to_owned()]).collect()
    }
}

impl StructuredMatrix for RemappedLowRank {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * (self.u.len() + self.v.len() + self.rest.len()) as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        Workspace::<f32>::matrix_len(batch, self.rank())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let ((m, n), meet) = (self.shape, self.shape.0.min(self.shape.1));
        let (u, v, rest) = (self.u.matrix(0), self.v.matrix(0), self.rest.matrix(0));
        let mut w = Array2::zeros((m, n));
        matmul_into(&u, &v, &mut w.slice_mut(s![..meet, ..meet]), false, Threads::ONE);
        if self.is_tall() {
            matmul_into(&rest, &v, &mut w.slice_mut(s![meet.., ..]), false, Threads::ONE);
        } else {
            matmul_into(&u, &rest, &mut w.slice_mut(s![.., meet..]), false, Threads::ONE);
        }
        w
    }
    fn parts(&self) -> Parts<'_> {
        // The rest first, where there is one: its storage is the one that was asked for.
        let mut parts = Parts::new(Self::NAME, self.shape);
        if self.rest.len() > 0 {
            parts = parts.factor("rest", &self.rest);
        }
        parts.factor("u", &self.u).factor("v", &self.v)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for RemappedLowRank {
    const NAME: &'static str = "remapped_low_rank";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[("rank", "rank of the factors")];
    type Spec = RemappedLowRankSpec;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<RemappedLowRankSpec> {
        let (meet, storage) = (out.min(inp), request.size().storage());
        let rank = request.choose(Self::NAME, (out, inp), "rank", 1..=meet, |k| {
            let coded = Size::new(halved(storage)).factor(1, meet, k).factor(1, k, meet);
            let rest = match out > inp {
                true => request.size().factor(1, out - meet, k),
                false => request.size().factor(1, k, inp - meet),
            };
            rest.with(coded)
        })?;
        Ok(RemappedLowRankSpec { rank })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &RemappedLowRankSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let (storage, options) = (run.storage(), Options { storage: Storage::F64, ..*run.options() });
        let spec = LowRankSpec { rank: spec.rank, method: SvdMethod::Auto, ..Default::default() };
        let fit = LowRank::fit(w, &spec, objective, &Run::new(&options))?;
        let (u, v) = (fit.matrix.left().matrix(0), fit.matrix.right().matrix(0));
        let matrix = Self::from_factors(storage, &u, &v)?;
        Ok(fit.map(|_| matrix))
    }

    fn random(
        shape: (usize, usize),
        spec: &RemappedLowRankSpec,
        storage: Storage,
        seed: u64,
    ) -> Result<Self> {
        let spec = LowRankSpec { rank: spec.rank, ..Default::default() };
        let whole = LowRank::random(shape, &spec, Storage::F64, seed)?;
        Self::from_factors(storage, &whole.left().matrix(0), &whole.right().matrix(0))
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        let (u, v) = self.whole::<f64>();
        let (mut u, v) = (u.index_axis_move(Axis(0), 0), v.index_axis_move(Axis(0), 0));
        u.outer_iter_mut().zip(scale).for_each(|(mut row, scale)| row *= *scale);
        Self::from_factors(storage, &u, &v)
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (u, v) = (parts.take_factor("u")?, parts.take_factor("v")?);
        let ((m, n), k) = (parts.shape(), u.cols());
        let meet = m.min(n);
        let other = if m > n { (1, m - meet, k) } else { (1, k, n - meet) };
        let rest = match parts.take_factor("rest") {
            Err(_) if m == n || k == 0 => Factor::from_fn(Storage::F32, other, |_, _, _| 0.0),
            rest => rest?,
        };
        if k > meet {
            return Err(parts.error(format!("rank {k}: expected at most {meet}")));
        }
        if u.shape() != (1, meet, k) || v.shape() != (1, k, meet) || rest.shape() != other {
            let (u, v, rest) = (u.shape(), v.shape(), rest.shape());
            return Err(parts.error(format!(
                "u {u:?}, v {v:?}, rest {rest:?}: expected (1, {meet}, k), (1, k, {meet}), {other:?}"
            )));
        }
        Ok(Self::packed((m, n), u, v, rest))
    }
}
