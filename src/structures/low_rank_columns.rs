//! Low rank plus a few whole input channels.

use super::column_sparse::{column_energies, regress, spread};
use super::{ColumnSparse, ColumnSparseSpec, LowRank, LowRankSpec};
use crate::error::{Error, Result};
use crate::gradient::{Differentiate, factor_gradients};
use crate::linalg::{self, SpdSolver, SvdMethod, SvdOptions, Threads, matmul, matmul_nt, matmul_tn};
use crate::matrix::{Multiply, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, Stop, descend, largest};
use crate::scalar::Scalar;
use crate::storage::Storage;
use ndarray::{Array2, Array3, ArrayRef2, Axis};

/// $W = U V + A\, E_J^T$: low rank, and the columns of the inputs $J$ in full.
///
/// Parameters: `rank (out + in) + out * kept`, and an index of 4 bytes per kept column; multiply-adds the same.
///
/// Projection: for given $J$ the entries in its columns are free, so the optimum fits the other columns by a truncated singular value
/// decomposition, with the tail energy of $W_{:,J^c}$ as error. With activations the regression on $x_J$ is eliminated first: $U$ spans
/// the leading eigenvectors of $W C' W^T$ with $C' = C - C_{:J} C_{JJ}^{-1} C_{J:}$, and $A = ((W - U V) C)_J C_{JJ}^{-1}$, optimal for
/// given $J$ too. $J$ starts as the largest columns, or as those that low rank alone explains worst, and moves to the largest columns of
/// $W - P P^T W$ while the error falls; with activations it starts from the $J$ of the plain projection. `method = lost` is the published
/// initialization instead: see [`ColumnChoice::Lost`]. The layer that the source trains, with an activation between the factors, is
/// [`LostLayer`](crate::layers::LostLayer).
///
/// Source: J. Li et al., "LOST: low-rank and sparse pre-training for large language models", 2025.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((6, 5), |(i, j)| if j == 3 { (i * i) as f32 } else { (1 + i) as f32 * j as f32 });
/// let spec = LowRankColumnsSpec { rank: 1, kept: 1, ..Default::default() };
/// let found = LowRankColumns::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert_eq!(found.matrix.columns().kept(), [3]);
/// assert!(found.report.relative_error < 1e-6);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankColumns {
    low_rank: LowRank,
    columns: ColumnSparse,
}

/// How [`LowRankColumns`] chooses columns and factors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ColumnChoice {
    /// The least-squares projection.
    #[default]
    Projection,
    /// LOST's initialization, $\gamma U_r \Sigma_r V_r^T + (1 - \gamma) W_{:,J} E_J^T$ with $J$ the largest columns of the next
    /// `min(rank, min(out, in) - rank)` singular components: a start for training, not a good approximation.
    Lost {
        /// The share of the low-rank part.
        gamma: f64,
    },
}

/// Parameters of [`LowRankColumns`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRankColumnsSpec {
    /// Rank of the first part, at most `min(out, in)`.
    pub rank: usize,
    /// Columns of the second part, at most `in`.
    pub kept: usize,
    /// How they are chosen.
    pub method: ColumnChoice,
}

impl Default for LowRankColumnsSpec {
    fn default() -> Self {
        Self { rank: 1, kept: 1, method: ColumnChoice::default() }
    }
}

impl LowRankColumns {
    /// The sum of both parts.
    ///
    /// # Errors
    /// [`Error::Shape`] when their shapes differ.
    pub fn new(low_rank: LowRank, columns: ColumnSparse) -> Result<Self> {
        let ((m, n), (rows, cols)) = (low_rank.shape(), columns.shape());
        match (m, n) == (rows, cols) {
            true => Ok(Self { low_rank, columns }),
            false => Err(Error::shape("columns", &[m, n], &[rows, cols])),
        }
    }

    /// The low-rank part.
    pub fn low_rank(&self) -> &LowRank {
        &self.low_rank
    }

    /// The kept columns.
    pub fn columns(&self) -> &ColumnSparse {
        &self.columns
    }
}

impl<T: Scalar> Multiply<T> for LowRankColumns {
    fn multiply(&self, Operands { op, x, mut y, update, mut work }: Operands<'_, T>) {
        let low_rank = Operands { op, x, y: y.reborrow(), update, work: work.reborrow() };
        self.low_rank.multiply(low_rank);
        self.columns.multiply(Operands { op, x, y, update: Update::Accumulate, work });
    }
}

impl<T: Scalar> Differentiate<T> for LowRankColumns {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let mut gradients = factor_gradients(&self.low_rank, x, dy, threads);
        gradients.extend(factor_gradients(&self.columns, x, dy, threads));
        gradients
    }
}

impl StructuredMatrix for LowRankColumns {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.low_rank.shape()
    }
    fn flops(&self, batch: usize) -> u64 {
        self.low_rank.flops(batch) + self.columns.flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        self.low_rank.scratch_len(batch).max(self.columns.scratch_len(batch))
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        self.low_rank.to_dense_f64() + self.columns.to_dense_f64()
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape()).child(self.low_rank.parts()).child(self.columns.parts())
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

/// A candidate: the columns `kept`, `U V` with orthonormal `U`, and the columns themselves.
#[derive(Debug, Clone)]
struct State {
    kept: Vec<usize>,
    u: Array2<f64>,
    v: Array2<f64>,
    columns: Array2<f64>,
}

impl State {
    /// The optimum for given columns.
    fn best(
        w: &Array2<f64>,
        rank: usize,
        kept: Vec<usize>,
        c: Option<&Array2<f64>>,
        run: &Run<'_>,
    ) -> Result<Self> {
        run.check()?;
        let u = match c {
            None => {
                let mut rest = w.clone();
                kept.iter().for_each(|&j| rest.column_mut(j).fill(0.0));
                let options = SvdOptions { method: SvdMethod::Auto, seed: run.seed(), ..Default::default() };
                linalg::truncated_svd(&rest, rank, &options, run.threads())?.svd.u
            }
            Some(c) => {
                let cj = c.select(Axis(1), &kept);
                let solver = SpdSolver::new(&cj.select(Axis(0), &kept), 1e-10)?.with_threads(run.threads());
                let schur = c - &matmul(&cj, &solver.solve(&cj.t()), run.threads());
                let moment = matmul_nt(&matmul(w, &schur, run.threads()), w, run.threads());
                let vectors = linalg::eigh(&((&moment + &moment.t()) * 0.5), run.threads())?.vectors;
                vectors.slice_move(ndarray::s![.., ..rank])
            }
        };
        let mut v = matmul_tn(&u, w, run.threads());
        kept.iter().for_each(|&j| v.column_mut(j).fill(0.0));
        let columns = match c {
            None => w.select(Axis(1), &kept),
            Some(c) => regress(&(w - &matmul(&u, &v, run.threads())), c, &kept, run)?,
        };
        Ok(Self { kept, u, v, columns })
    }

    fn energy(&self, w: &Array2<f64>, objective: &Objective<'_>, run: &Run<'_>) -> f64 {
        let columns = spread(&self.columns, &self.kept, w.ncols());
        objective.energy(&(w - &matmul(&self.u, &self.v, run.threads()) - columns))
    }

    /// The columns that the span of `U` serves worst.
    fn next(&self, w: &Array2<f64>, c: Option<&Array2<f64>>, run: &Run<'_>) -> Vec<usize> {
        let rest = w - &matmul(&self.u, &matmul_tn(&self.u, w, run.threads()), run.threads());
        let mut scores = column_energies(&rest);
        if let Some(c) = c {
            scores.iter_mut().zip(c.diag()).for_each(|(s, c)| *s *= c);
        }
        largest(&scores, self.kept.len())
    }

    fn into_matrix(self, storage: Storage) -> LowRankColumns {
        let norms: Vec<f64> = self.v.outer_iter().map(|row| row.dot(&row).sqrt()).collect();
        let root = |k: usize| norms[k].sqrt();
        let u = Array2::from_shape_fn(self.u.dim(), |(i, k)| self.u[[i, k]] * root(k));
        let balance = |v: f64, k: usize| if norms[k] > 0.0 { v / root(k) } else { 0.0 };
        let v = Array2::from_shape_fn(self.v.dim(), |(k, j)| balance(self.v[[k, j]], k));
        LowRankColumns {
            low_rank: LowRank::from_arrays(storage, &u, &v),
            columns: ColumnSparse::from_columns(storage, v.ncols(), &self.columns, &self.kept),
        }
    }
}

/// The singular components whose columns LOST's initialization compares, `min(rank, min(out, in) - rank)` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LostComponents {
    /// Those after the low-rank part's.
    #[default]
    Following,
    /// The last ones.
    Last,
}

/// Where LOST starts, before both parts are mixed: $U \Sigma^{1/2}$ and $\Sigma^{1/2} V^T$ of rank `rank`, and the columns `kept` of the
/// weight.
pub(crate) struct LostStart {
    pub(crate) u: Array2<f64>,
    pub(crate) v: Array2<f64>,
    pub(crate) columns: Array2<f64>,
    pub(crate) kept: Vec<usize>,
}

/// LOST's published initialization.
pub(crate) fn lost_start(
    w: &Array2<f64>,
    rank: usize,
    kept: usize,
    components: LostComponents,
    threads: Threads,
) -> Result<LostStart> {
    check(w.dim(), rank, kept)?;
    let svd = linalg::svd(w, threads)?;
    let full = svd.rank();
    let count = rank.min(full - rank);
    let range = match components {
        LostComponents::Following => rank..rank + count,
        LostComponents::Last => full - count..full,
    };
    let score = |j: usize| range.clone().map(|k| (svd.s[k] * svd.vt[[k, j]]).powi(2)).sum();
    let scores: Vec<f64> = (0..w.ncols()).map(score).collect();
    let kept = largest(&scores, kept);
    let (u, v) = svd.split_sqrt(rank);
    Ok(LostStart { u, v, columns: w.select(Axis(1), &kept), kept })
}

/// Refuses a rank or a number of columns that a matrix does not have.
fn check((m, n): (usize, usize), rank: usize, kept: usize) -> Result<()> {
    if rank == 0 || rank > m.min(n) {
        return Err(Error::parameter("rank", rank, format!("1 to {}", m.min(n))));
    }
    if kept == 0 || kept > n {
        return Err(Error::parameter("kept", kept, format!("1 to {n}")));
    }
    Ok(())
}

fn check_gamma(gamma: f64) -> Result<()> {
    match (0.0..=1.0).contains(&gamma) {
        true => Ok(()),
        false => Err(Error::parameter("gamma", gamma, "0 to 1")),
    }
}

impl Family for LowRankColumns {
    const NAME: &'static str = "low_rank_columns";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("rank", "rank of the low-rank part"),
        ("kept", "number of whole columns; 5 % of all by default"),
        ("method", "`projection` (default) or `lost` (the published initialization)"),
        ("gamma", "share of the low-rank part in `lost`; 0.5 by default"),
    ];
    type Spec = LowRankColumnsSpec;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<LowRankColumnsSpec> {
        let gamma = request.get::<f64>("gamma")?;
        let method = match (request.get::<String>("method")?.as_deref(), gamma) {
            (None | Some("projection"), None) => ColumnChoice::Projection,
            (Some("lost"), gamma) => ColumnChoice::Lost { gamma: gamma.unwrap_or(0.5) },
            (Some("projection") | None, Some(gamma)) => {
                return Err(Error::parameter("gamma", gamma, "method = lost"));
            }
            (Some(other), _) => return Err(Error::parameter("method", other, "projection or lost")),
        };
        if let ColumnChoice::Lost { gamma } = method {
            check_gamma(gamma)?;
        }
        let size = |rank, kept| {
            request.size().factor(1, out, rank).factor(1, rank, inp).factor(1, out, kept).indices(kept)
        };
        let rank =
            |kept| request.choose(Self::NAME, (out, inp), "rank", 1..=out.min(inp), |rank| size(rank, kept));
        let (rank, kept) = match request.get_in("kept", 1..=inp)? {
            Some(kept) => (rank(kept)?, kept),
            // Small budgets may not have room for the default number of columns.
            None => match rank((inp / 20).max(1)) {
                Err(Error::Budget { .. }) => (rank(1)?, 1),
                rank => (rank?, (inp / 20).max(1)),
            },
        };
        Ok(LowRankColumnsSpec { rank, kept, method })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &LowRankColumnsSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let LowRankColumnsSpec { rank, kept, method } = *spec;
        if let ColumnChoice::Lost { gamma } = method {
            check_gamma(gamma)?;
            let start = lost_start(w, rank, kept, LostComponents::Following, run.threads())?;
            let columns = start.columns * (1.0 - gamma);
            let matrix = Self {
                low_rank: LowRank::from_arrays(run.storage(), &(start.u * gamma), &start.v),
                columns: ColumnSparse::from_columns(run.storage(), w.ncols(), &columns, &start.kept),
            };
            return Ok(Fit::local(matrix, Vec::new()));
        }
        check(w.dim(), rank, kept)?;
        let stop = Stop { sweeps: 10, tolerance: 1e-6 };
        let improve = |state: State, objective: &Objective<'_>| {
            let (energy, scale) = (state.energy(w, objective, run), objective.energy(w));
            descend(run, stop, scale, state, energy, |state, _, _| {
                let c = objective.second_moment();
                *state = State::best(w, rank, state.next(w, c, run), c, run)?;
                Ok(state.energy(w, objective, run))
            })
        };
        // From the largest columns, and from those that low rank alone explains worst.
        let options = SvdOptions { method: SvdMethod::Auto, seed: run.seed(), ..Default::default() };
        let u = linalg::truncated_svd(w, rank, &options, run.threads())?.svd.u;
        let rest = w - &matmul(&u, &matmul_tn(&u, w, run.threads()), run.threads());
        let from = |scores: Vec<f64>| {
            improve(State::best(w, rank, largest(&scores, kept), None, run)?, &Objective::Frobenius)
        };
        let (large, unexplained) = (from(column_energies(w))?, from(column_energies(&rest))?);
        let plain = if unexplained.energy < large.energy { unexplained } else { large };
        let found = match objective.second_moment() {
            None => plain,
            c @ Some(_) => {
                // The ridge of the regression may cost a last digit: the plain fit itself stays a candidate.
                let same = State::best(w, rank, plain.state.kept.clone(), c, run)?;
                let start = if same.energy(w, objective, run) < plain.state.energy(w, objective, run) {
                    same
                } else {
                    plain.state
                };
                improve(start, objective)?
            }
        };
        Ok(Fit::local(found.state.into_matrix(run.storage()), found.history))
    }

    fn random(shape: (usize, usize), spec: &LowRankColumnsSpec, storage: Storage, seed: u64) -> Result<Self> {
        let low_rank = LowRankSpec { rank: spec.rank, ..Default::default() };
        let low_rank = LowRank::random(shape, &low_rank, storage, seed)?;
        let columns = ColumnSparse::random(shape, &ColumnSparseSpec { kept: spec.kept }, storage, seed ^ 1)?;
        Ok(Self { low_rank, columns })
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        let low_rank = self.low_rank.scale_outputs(scale, storage)?;
        Ok(Self { low_rank, columns: self.columns.scale_outputs(scale, storage)? })
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        Ok(Self { low_rank: parts.take_child()?, columns: parts.take_child()? })
    }
}
