//! Low rank plus sparse.

use super::expanded::{Expand, Expanded};
use super::sparse::{Support, density, index_words, most_positions, refit};
use super::{LowRank, LowRankSpec, Sparse, SparseSpec};
use crate::error::{Error, Result};
use crate::exec::{Parallelism, Policy};
use crate::gradient::{Differentiate, factor_gradients};
use crate::kernels::{Level, RowsMut};
use crate::linalg::{self, SvdMethod, SvdOptions, Threads, matmul, matmul_nt, matmul_tn};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Descent, Family, Fit, Objective, Request, Run, Stop, descend};
use crate::scalar::Scalar;
use crate::storage::Storage;
use ndarray::{Array2, Array3, ArrayRef2};
use std::ops::Range;

/// $W = U V + S$ with `S` in compressed sparse rows.
///
/// Parameters: `rank (out + in) + nnz`, `nnz` column indices of 2 bytes (4 beyond 65536 inputs) and `out + 1` pointers of 4; multiply-adds as many as parameters.
/// Where both parts together take more time than the dense product (see [`Sparse`]), the dense matrix is made on the first product and
/// multiplied.
///
/// Projection: alternating. The low-rank step does one half-step of subspace iteration for each factor, each a least-squares
/// optimum; the sparse step keeps the largest entries of $W - U V$. The start is the better of "best low rank first" and
/// "largest entries first", so the result is never worse than low rank or sparse alone with the same part of the budget.
/// With activations the low-rank step is $U V = P P^T (W - S)$ with $P$ spanning $(W - S) C V^T$, the sparse step refits its
/// values by conjugate gradients, and the descent starts from the plain projection.
/// Another start is principal component pursuit (inexact augmented Lagrangian) cut to the budget: for small matrices, or where asked.
///
/// With a budget only, a quarter, a half and three quarters of the largest rank are tried, and the best is kept.
///
/// Source: T. Zhou and D. Tao, "GoDec: randomized low-rank and sparse matrix decomposition in noisy case", 2011; E. Candès et al.,
/// "Robust principal component analysis?", 2011; Z. Lin et al., "The augmented Lagrange multiplier method for exact recovery of
/// corrupted low-rank matrices", 2010.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let mut w = Array2::from_shape_fn((12, 10), |(i, j)| (1.0 + i as f32) * (1.0 + j as f32) / 60.0);
/// w[[3, 4]] += 5.0;                                                        // rank 1 and one entry
/// let spec = SparseLowRankSpec::new(1, 1);
/// let found = SparseLowRank::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(found.report.relative_error < 1e-5);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SparseLowRank {
    low_rank: LowRank,
    sparse: Sparse,
    expanded: Expanded,
}

/// Where [`SparseLowRank`] starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SparseLowRankMethod {
    /// Pursuit as another start where it is cheap (up to 2^18 entries), alternating projections otherwise.
    #[default]
    Auto,
    /// Alternating projections.
    GoDec,
    /// Principal component pursuit, then alternating projections.
    Pcp,
}

/// Parameters of [`SparseLowRank`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseLowRankSpec {
    /// Ranks and numbers of sparse entries to try, at least one pair.
    pub splits: Vec<(usize, usize)>,
    /// Where the fit starts from.
    pub method: SparseLowRankMethod,
}

impl SparseLowRankSpec {
    /// One rank and one number of sparse entries.
    pub fn new(rank: usize, nnz: usize) -> Self {
        Self { splits: vec![(rank, nnz)], method: SparseLowRankMethod::default() }
    }

    fn check(&self, (m, n): (usize, usize)) -> Result<()> {
        for &(rank, nnz) in &self.splits {
            if rank == 0 || rank > m.min(n) {
                return Err(Error::parameter("rank", rank, format!("1 to {}", m.min(n))));
            }
            if nnz == 0 || nnz > most_positions((m, n)) {
                return Err(Error::parameter("nnz", nnz, format!("1 to {}", most_positions((m, n)))));
            }
        }
        match self.splits.is_empty() {
            true => Err(Error::parameter("splits", "none", "at least one")),
            false => Ok(()),
        }
    }
}

impl SparseLowRank {
    /// The sum of both parts.
    ///
    /// # Errors
    /// [`Error::Shape`] when their shapes differ.
    pub fn new(low_rank: LowRank, sparse: Sparse) -> Result<Self> {
        let ((m, n), (rows, cols)) = (low_rank.shape(), sparse.shape());
        match (m, n) == (rows, cols) {
            true => Ok(Self::of(low_rank, sparse)),
            false => Err(Error::shape("sparse", &[m, n], &[rows, cols])),
        }
    }

    fn of(low_rank: LowRank, sparse: Sparse) -> Self {
        Self { low_rank, sparse, expanded: Expanded::default() }
    }

    /// The low-rank part.
    pub fn low_rank(&self) -> &LowRank {
        &self.low_rank
    }

    /// The sparse part.
    pub fn sparse(&self) -> &Sparse {
        &self.sparse
    }
}

impl Expand for SparseLowRank {
    fn expanded(&self) -> &Expanded {
        &self.expanded
    }
    fn numbers(&self) -> usize {
        self.low_rank.numbers() + self.sparse.numbers()
    }
    fn own_flops(&self) -> u64 {
        self.low_rank.flops(1) + self.sparse.own_flops()
    }
    fn cost(&self, op: Op, batch: usize) -> u64 {
        self.low_rank.flops(1) + self.sparse.cost(op, batch)
    }
}

impl<T: Scalar> Multiply<T> for SparseLowRank {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(Operands { op, x, mut y, update, mut work }) = self.multiply_densely(operands) else {
            return;
        };
        if self.sparse.takes_slices(op, x.rows(), work.policy.level) {
            // As short as these stages are, each time that work is handed over counts: outputs of both parts go together.
            let (t, work) = self.low_rank.first_product(op, x, work);
            let (t, one) = (t.as_rows(), Policy { parallelism: Parallelism::Seq, ..work.policy });
            let u = |outputs: Range<usize>, y: RowsMut<'_, T>| {
                self.low_rank.left().multiply_rows(0, outputs, op, t, y, update, one);
            };
            let sparse = Operands { op, x, y, update: Update::Accumulate, work };
            return self.sparse.multiply_after(Some(&u), sparse);
        }
        let low_rank = Operands { op, x, y: y.reborrow(), update, work: work.reborrow() };
        self.low_rank.multiply(low_rank);
        self.sparse.multiply(Operands { op, x, y, update: Update::Accumulate, work });
    }
}

impl<T: Scalar> Differentiate<T> for SparseLowRank {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let mut gradients = factor_gradients(&self.low_rank, x, dy, threads);
        gradients.extend(factor_gradients(&self.sparse, x, dy, threads));
        gradients
    }
}

impl StructuredMatrix for SparseLowRank {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.low_rank.shape()
    }
    fn flops(&self, batch: usize) -> u64 {
        self.product_flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let batch = self.own_rows(batch);
        let (low_rank, sparse) = (self.low_rank.scratch_len(batch), self.sparse.scratch_len(batch));
        match self.sparse.takes_slices(Op::Forward, batch, Level::detected()) {
            true => low_rank.saturating_add(sparse),
            false => low_rank.max(sparse),
        }
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        self.low_rank.to_dense_f64() + self.sparse.to_dense_f64()
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape()).child(self.low_rank.parts()).child(self.sparse.parts())
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

/// `U V + S`; `s` is dense, zero off its support.
#[derive(Debug, Clone)]
struct State {
    u: Array2<f64>,
    v: Array2<f64>,
    s: Array2<f64>,
    support: Support,
}

/// One fit: what all steps share.
struct Fitter<'a> {
    w: &'a Array2<f64>,
    rank: usize,
    spec: SparseSpec,
    objective: &'a Objective<'a>,
    run: &'a Run<'a>,
}

impl Fitter<'_> {
    fn low_rank(&self, a: &Array2<f64>) -> Result<(Array2<f64>, Array2<f64>)> {
        let options = SvdOptions { method: SvdMethod::Auto, seed: self.run.seed(), ..Default::default() };
        let svd = linalg::truncated_svd(a, self.rank, &options, self.run.threads())?.svd;
        Ok(svd.split_sqrt(self.rank))
    }

    fn keep(&self, a: &Array2<f64>) -> Result<(Array2<f64>, Support)> {
        let support = Support::choose(&a.mapv(|v| v * v), &self.spec)?;
        Ok((support.mask(a), support))
    }

    /// What the low-rank part leaves.
    fn rest(&self, state: &State) -> Array2<f64> {
        self.w - &matmul(&state.u, &state.v, self.run.threads())
    }

    fn energy(&self, state: &State) -> f64 {
        self.objective.energy(&(self.rest(state) - &state.s))
    }

    /// The best low rank, then the largest entries.
    fn low_rank_first(&self, a: &Array2<f64>) -> Result<State> {
        let (u, v) = self.low_rank(a)?;
        let rest = self.w - &matmul(&u, &v, self.run.threads());
        let (s, support) = self.keep(&rest)?;
        Ok(State { u, v, s, support })
    }

    fn sparse_first(&self) -> Result<State> {
        let (s, support) = self.keep(self.w)?;
        let (u, v) = self.low_rank(&(self.w - &s))?;
        Ok(State { u, v, s, support })
    }

    fn sweep(&self, state: &mut State) -> Result<f64> {
        let threads = self.run.threads();
        let target = self.w - &state.s;
        let c = self.objective.second_moment();
        let moment = match c {
            None => matmul_nt(&target, &state.v, threads),
            Some(c) => matmul(&target, &matmul_nt(c, &state.v, threads), threads),
        };
        state.u = linalg::qr(&moment).q;
        state.v = matmul_tn(&state.u, &target, threads);
        let rest = self.rest(state);
        let Some(c) = c else {
            (state.s, state.support) = self.keep(&rest)?;
            return Ok(self.objective.energy(&(rest - &state.s)));
        };
        // A new support, or the old one where the new one does not pay.
        let before = self.objective.energy(&(&rest - &state.s));
        let support = Support::choose(&(rest.mapv(|v| v * v) * c.diag()), &self.spec)?;
        let (s, _) = refit(&rest, &support, support.mask(&rest), c, 10, self.run)?;
        let energy = self.objective.energy(&(&rest - &s));
        if energy < before {
            (state.s, state.support) = (s, support);
            return Ok(energy);
        }
        (state.s, _) = refit(&rest, &state.support, state.s.clone(), c, 10, self.run)?;
        Ok(self.objective.energy(&(rest - &state.s)))
    }

    fn descend(&self, state: State, stop: Stop) -> Result<Descent<State>> {
        let (energy, scale) = (self.energy(&state), self.objective.energy(self.w));
        descend(self.run, stop, scale, state, energy, |state, _, _| self.sweep(state))
    }

    /// From the better of the two simple starts; from the pursued low-rank part too, where there is one.
    fn plain(&self, pursued: Option<&Array2<f64>>) -> Result<Descent<State>> {
        let (a, b) = (self.low_rank_first(self.w)?, self.sparse_first()?);
        let start = if self.energy(&a) <= self.energy(&b) { a } else { b };
        let found = self.descend(start, PLAIN)?;
        let Some(pursued) = pursued else { return Ok(found) };
        let other = self.descend(self.low_rank_first(pursued)?, PLAIN)?;
        Ok(if other.energy < found.energy { other } else { found })
    }
}

/// Planted sums converge linearly, far below any tolerance on the energy of the weight.
const PLAIN: Stop = Stop { sweeps: 200, tolerance: 1e-4 };
const WEIGHTED: Stop = Stop { sweeps: 15, tolerance: 1e-3 };

/// Entries of a weight up to which pursuit, some dozens of full decompositions, is tried unasked.
const CHEAP_PURSUIT: usize = 1 << 18;

/// The low-rank part of principal component pursuit, `min ‖L‖_* + λ ‖S‖_1` with `L + S = W`.
fn pursue(w: &Array2<f64>, run: &Run<'_>) -> Result<Array2<f64>> {
    let (m, n) = w.dim();
    let lambda = (m.max(n) as f64).powf(-0.5);
    let norm = w.iter().map(|v| v * v).sum::<f64>().sqrt();
    let top = linalg::singular_values(w, run.threads())?.first().copied().unwrap_or(0.0);
    let largest = w.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    let mut low = w.clone();
    if top == 0.0 {
        return Ok(low);
    }
    let (mut mu, mut sparse) = (1.25 / top, Array2::<f64>::zeros((m, n)));
    let mut y = w / top.max(largest / lambda);
    for _ in 0..run.max_iterations(100) {
        run.check()?;
        let mut svd = linalg::svd(&(w - &sparse + &y / mu), run.threads())?;
        svd.s.iter_mut().for_each(|s| *s = (*s - 1.0 / mu).max(0.0));
        let kept = svd.s.iter().take_while(|s| **s > 0.0).count();
        low = svd.truncate(kept).reconstruct(run.threads());
        sparse = (w - &low + &y / mu).mapv(|v| v.signum() * (v.abs() - lambda / mu).max(0.0));
        let gap = w - &low - &sparse;
        y.scaled_add(mu, &gap);
        mu *= 1.5;
        if gap.iter().map(|v| v * v).sum::<f64>().sqrt() <= 1e-9 * norm {
            break;
        }
    }
    Ok(low)
}

impl Family for SparseLowRank {
    const NAME: &'static str = "sparse_low_rank";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("rank", "rank of the low-rank part"),
        ("nnz", "number of sparse entries"),
        ("density", "sparse entries as a fraction of all"),
        ("method", "`auto` (default), `godec` or `pcp`"),
    ];
    type Spec = SparseLowRankSpec;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<SparseLowRankSpec> {
        let method = match request.get::<String>("method")?.as_deref() {
            None | Some("auto") => SparseLowRankMethod::Auto,
            Some("godec") => SparseLowRankMethod::GoDec,
            Some("pcp") => SparseLowRankMethod::Pcp,
            Some(other) => return Err(Error::parameter("method", other, "auto, godec or pcp")),
        };
        let (shape, most) = ((out, inp), most_positions((out, inp)));
        let size = |rank, nnz: usize| {
            let low_rank = request.size().factor(1, out, rank).factor(1, rank, inp);
            low_rank.factor(1, 1, nnz).indices(index_words(nnz, shape))
        };
        let nnz = match density(request, shape)? {
            Some(nnz) => Some(nnz),
            None => request.get_in("nnz", 1..=most)?,
        };
        let most_rank =
            request.choose(Self::NAME, shape, "rank", 1..=out.min(inp), |r| size(r, nnz.unwrap_or(1)))?;
        let most_nnz = |rank| request.choose(Self::NAME, shape, "nnz", 1..=most, |nnz| size(rank, nnz));
        let splits = match (nnz, request.get::<usize>("rank")?) {
            (Some(nnz), _) => vec![(most_rank, nnz)],
            (None, Some(rank)) => vec![(rank, most_nnz(rank)?)],
            (None, None) => {
                let mut ranks = [1, 2, 3].map(|part| (most_rank * part / 4).max(1)).to_vec();
                ranks.dedup();
                ranks.into_iter().map(|rank| Ok((rank, most_nnz(rank)?))).collect::<Result<_>>()?
            }
        };
        Ok(SparseLowRankSpec { splits, method })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &SparseLowRankSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        spec.check(w.dim())?;
        let pursue_it = match spec.method {
            SparseLowRankMethod::Auto => w.len() <= CHEAP_PURSUIT,
            SparseLowRankMethod::GoDec => false,
            SparseLowRankMethod::Pcp => true,
        };
        let pursued = pursue_it.then(|| pursue(w, run)).transpose()?;
        let mut best: Option<Descent<State>> = None;
        for &(rank, nnz) in &spec.splits {
            let spec_of = SparseSpec { nnz, ..Default::default() };
            let fitter = |objective| Fitter { w, rank, spec: spec_of, objective, run };
            let found = fitter(&Objective::Frobenius).plain(pursued.as_ref())?;
            let found = match objective {
                plain if plain.is_plain() => found,
                weighted => fitter(weighted).descend(found.state, WEIGHTED)?,
            };
            if best.as_ref().is_none_or(|best| found.energy < best.energy) {
                best = Some(found);
            }
        }
        let Some(Descent { state: State { u, v, s, support }, history, .. }) = best else {
            return Err(Error::parameter("splits", "none", "at least one"));
        };
        let low_rank = LowRank::from_arrays(run.storage(), &u, &v);
        let sparse = Sparse::keep(run.storage(), &s, support);
        Ok(Fit::local(Self::of(low_rank, sparse), history))
    }

    fn random(shape: (usize, usize), spec: &SparseLowRankSpec, storage: Storage, seed: u64) -> Result<Self> {
        spec.check(shape)?;
        let (rank, nnz) = spec.splits[spec.splits.len() / 2];
        let low_rank = LowRankSpec { rank, ..Default::default() };
        let low_rank = LowRank::random(shape, &low_rank, storage, seed)?;
        let sparse = Sparse::random(shape, &SparseSpec { nnz, ..Default::default() }, storage, seed ^ 1)?;
        Ok(Self::of(low_rank, sparse))
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        let low_rank = self.low_rank.scale_outputs(scale, storage)?;
        Ok(Self {
            low_rank,
            sparse: self.sparse.scale_outputs(scale, storage)?,
            expanded: Expanded::default(),
        })
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        Ok(Self::of(parts.take_child()?, parts.take_child()?))
    }
}
