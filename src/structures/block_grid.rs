//! Grids of low-rank blocks, multiplied as two block-diagonal stages: block-low-rank and Monarch matrices.

mod complex;
mod fit;

pub use complex::ComplexMonarch;

use crate::error::{Error, Result};
use crate::exec::{Policy, Workspace};
use crate::gradient::{Differentiate, Stage, stage_gradients};
use crate::kernels::{PanelMap, interleave};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, scale_outputs};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use crate::structures::shares::Shares;
use crate::structures::stack::{multiply_padded, padded_scratch_len};
use ndarray::{Array2, Array3, ArrayRef2, ArrayRef3};
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;

/// Multiply-adds that take as long as an output that is dealt out.
const DEALT: usize = 2;

/// How the rows of a grid are shared between its block rows.
pub trait RowOrder: std::fmt::Debug + Clone + Copy + Default + PartialEq + Send + Sync + 'static {
    /// Name of the structure.
    const NAME: &'static str;
    /// Rows that stay together, of the `rows` of a block row.
    fn group(rows: usize) -> usize;
}

/// Block row `j` is rows `j s .. (j + 1) s`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Contiguous;

/// Block row `j` is the rows congruent to `j`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Interleaved;

impl RowOrder for Contiguous {
    const NAME: &'static str = "block_low_rank";
    fn group(rows: usize) -> usize {
        rows
    }
}

impl RowOrder for Interleaved {
    const NAME: &'static str = "monarch";
    fn group(_rows: usize) -> usize {
        1
    }
}

/// Blocks of `J x K`, each of rank at most `t`: $W_{jk} = U_{jk} V_{jk}$.
///
/// A block-low-rank matrix approximates local interactions, each block with a rank of its own: 1 x 1 blocks are
/// [`LowRank`](crate::structures::LowRank).
///
/// Parameters and multiply-adds: `t (J in + K out)`. Sizes that `J` and `K` do not divide are padded with zeros to the next
/// multiple, which is stored and multiplied too.
///
/// Projection: the truncated singular value decomposition of every block; the blocks partition `W`, so this is the global optimum and
/// the squared error is the sum of the blocks' tails. With activations, the blocks of a block row meet in the error: alternating
/// least squares from the better of the plain optimum and the one that is optimal when `C` couples no two blocks.
///
/// Source: the blockwise Eckart-Young theorem.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((8, 12), |(i, j)| ((i / 4) + 2 * (j / 6)) as f32);    // 2 x 2 constant blocks
/// let spec = BlockLowRankSpec { blocks: (2, 2), rank: 1 };
/// let p = BlockLowRank::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(p.report.relative_error < 1e-6 && p.matrix.n_params() == 2 * 12 + 2 * 8);
/// # Ok::<(), structmat::Error>(())
/// ```
pub type BlockLowRank = BlockGrid<Contiguous>;

/// Two block-diagonal matrices and a fixed permutation between them: blocks of `J x K` with interleaved rows, each of rank at most `t`.
///
/// $W = P\, B_2\, P'\, B_1$ with $B_1$ of $K$ blocks on contiguous inputs and $B_2$ of $J$ blocks whose outputs interleave. Entry by
/// entry, with `s` rows and `p` columns per block,
/// $$W_{\sigma J + \lambda,\; \kappa p + i} = \sum_{\rho < t} U_{\lambda\kappa}[\sigma, \rho]\, V_{\kappa\lambda}[\rho, i].$$
/// Square, `J = K = sqrt(n)` and `t = 1` it has `2 n^1.5` parameters and holds the Fourier and Hadamard transforms up to a
/// permutation (complex ones in [`ComplexMonarch`]).
///
/// Parameters and multiply-adds: `t (J in + K out)`. Sizes that `J` and `K` do not divide are padded with zeros to the next
/// multiple, which is stored and multiplied too. Ranks are whole numbers.
///
/// Projection: as for [`BlockLowRank`], globally optimal.
///
/// Source: T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate Training", 2022.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// // The Hadamard matrix of size 16 has 4 x 4 interleaved blocks of rank one.
/// let w = Array2::from_shape_fn((16, 16), |(i, j)| if (i & j).count_ones() % 2 == 0 { 1.0f32 } else { -1.0 });
/// let spec = MonarchSpec { blocks: (4, 4), rank: 1 };
/// let monarch = Monarch::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(monarch.report.relative_error < 1e-6 && monarch.matrix.n_params() == 128);
/// # Ok::<(), structmat::Error>(())
/// ```
pub type Monarch = BlockGrid<Interleaved>;

/// A grid of low-rank blocks: [`BlockLowRank`] or [`Monarch`], which differ in the order of the rows alone.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGrid<R: RowOrder> {
    shape: (usize, usize),
    /// `J` blocks of `s x K t`: the left factors of block row `j`, side by side.
    u: Factor,
    /// `K` blocks of `J t x p`: the right factors of block column `k`, one below the other.
    v: Factor,
    /// Rows of a block row that stay together.
    group: usize,
    order: PhantomData<R>,
}

/// Parameters of [`BlockLowRank`] and [`Monarch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockGridSpec {
    /// `(J, K)`: block rows and block columns.
    pub blocks: (usize, usize),
    /// Rank of each block, at most the smaller side of a block.
    pub rank: usize,
}

/// Parameters of [`BlockLowRank`].
pub type BlockLowRankSpec = BlockGridSpec;
/// Parameters of [`Monarch`].
pub type MonarchSpec = BlockGridSpec;

#[derive(Serialize, Deserialize)]
struct Config {
    group: usize,
}

impl<R: RowOrder> BlockGrid<R> {
    /// From the left factors `u` (`J` blocks of `s x K t`: block `j` holds $U_{j1} \dots U_{jK}$ side by side) and the right factors `v` (`K`
    /// blocks of `J t x p`: block `k` holds $V_{1k} \dots V_{Jk}$ one below the other). `s J` may exceed the rows and `p K` the columns of
    /// `shape` by less than a block.
    ///
    /// # Errors
    /// [`Error::Record`] when the sizes do not fit.
    pub fn new(shape: (usize, usize), u: Factor, v: Factor) -> Result<Self> {
        let group = R::group(u.rows());
        Self::checked(shape, u, v, group)
    }

    /// From the stages of a two-stage product in the layout of the published Monarch code: `w1` of `K x Q x p`,
    /// `w2` of `J x s x G` with `K Q = J G`. The first computes `h[k Q + q] = w1[k,q,:] x_k`; `h[r J + j]` is input `r` of block `j` of
    /// the second, whose output `l` is feature `(l / g J + j) g + l % g` with `g = group` (1 in the paper).
    ///
    /// `Q` need not be a multiple of `J`; the blocks' ranks then differ by one, and the smaller ones are padded with zeros.
    ///
    /// # Errors
    /// [`Error::Shape`] when `K Q` differs from `J G`, [`Error::Parameter`] when `group` does not divide `s`.
    pub fn from_stages(
        storage: Storage,
        w1: &ArrayRef3<f64>,
        w2: &ArrayRef3<f64>,
        group: usize,
    ) -> Result<Self> {
        let ((k, q, p), (j, s, g)) = (w1.dim(), w2.dim());
        if k == 0 || j == 0 || q == 0 || k * q != j * g {
            return Err(Error::shape(
                "w2 (J x s x G with K Q = J G)",
                &[j, s, (k * q).checked_div(j).unwrap_or(0)],
                w2.shape(),
            ));
        }
        if group == 0 || !s.is_multiple_of(group) {
            return Err(Error::parameter("group", group, format!("a divisor of {s}")));
        }
        let rank = q.div_ceil(j);
        let (mut u, mut v) =
            (ndarray::Array3::zeros((j, s, k * rank)), ndarray::Array3::zeros((k, j * rank, p)));
        for kappa in 0..k {
            let mut used = vec![0; j];
            for row in 0..q {
                let (lambda, input) = ((kappa * q + row) % j, (kappa * q + row) / j);
                let rho = used[lambda];
                used[lambda] += 1;
                (0..p).for_each(|i| v[[kappa, lambda * rank + rho, i]] = w1[[kappa, row, i]]);
                (0..s).for_each(|l| u[[lambda, l, kappa * rank + rho]] = w2[[lambda, l, input]]);
            }
        }
        let of = |a: ndarray::Array3<f64>| Factor::from_fn(storage, a.dim(), |b, i, j| a[[b, i, j]]);
        Self::checked((j * s, k * p), of(u), of(v), group)
    }

    /// `(J, K)`: block rows and block columns.
    pub fn blocks(&self) -> (usize, usize) {
        (self.u.blocks(), self.v.blocks())
    }

    /// Rank of each block.
    pub fn rank(&self) -> usize {
        self.v.rows() / self.u.blocks()
    }

    fn checked((m, n): (usize, usize), u: Factor, v: Factor, group: usize) -> Result<Self> {
        let bad = |reason: String| Err(Error::record(R::NAME, reason));
        let ((j, s, inner), (k, rows, p)) = (u.shape(), v.shape());
        let fits = j > 0 && k > 0 && rows.is_multiple_of(j) && (rows / j).checked_mul(k) == Some(inner);
        if !fits {
            return bad(format!(
                "u {:?}, v {:?}: expected (J, s, K t) and (K, J t, p)",
                u.shape(),
                v.shape()
            ));
        }
        if s != m.div_ceil(j) || p != n.div_ceil(k) {
            return bad(format!("blocks of {s} x {p} for {m} x {n} in {j} x {k} blocks"));
        }
        if group == 0 || !s.is_multiple_of(group) {
            return bad(format!("row groups of {group} do not divide blocks of {s} rows"));
        }
        Ok(Self::laid_out((m, n), u, v, group))
    }

    fn laid_out(shape: (usize, usize), u: Factor, v: Factor, group: usize) -> Self {
        let mut grid = Self { shape, u, v, group, order: PhantomData };
        let (first, second) = (grid.first(), grid.second());
        grid.u = grid.u.packed_for(Op::Forward, second);
        grid.v = grid.v.packed_for(Op::Forward, first);
        grid
    }

    /// Where the inputs and intermediates of the first stage lie: intermediate `(j, k, rho)` in this order.
    fn first(&self) -> PanelMap {
        PanelMap::interleaved(self.v.blocks(), self.v.rows(), self.v.cols(), self.rank().max(1))
    }

    fn second(&self) -> PanelMap {
        PanelMap::interleaved(self.u.blocks(), self.u.rows(), self.u.cols(), self.group)
    }

    /// Whether outputs are dealt out after the product: one by one from wide blocks that takes longer.
    fn deals(&self) -> bool {
        self.group == 1 && self.u.blocks() > 1 && self.u.rows() > 1 && !self.u.is_shared()
    }

    /// Numbers between the stages.
    fn inner(&self) -> usize {
        self.u.blocks() * self.u.cols()
    }
}

impl<T: Scalar, R: RowOrder> Multiply<T> for BlockGrid<R> {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        let (mut inner, mut work) = work.matrix(x.rows(), self.inner());
        let stages = [(&self.v, self.first()), (&self.u, self.second())];
        let ((first, first_map), (second, second_map)) = match op {
            Op::Forward => (stages[0], stages[1]),
            Op::Transpose => (stages[1], stages[0]),
        };
        multiply_padded(first, first_map, op, x, inner.reborrow(), Update::Overwrite, work.reborrow());
        if op == Op::Forward && self.deals() {
            let ((j, s, cols), policy) = (self.u.shape(), work.policy);
            let (mut blocks, _) = work.matrix(y.rows(), j * s);
            let (map, to) = (PanelMap::contiguous(j, s, cols), blocks.reborrow());
            second.multiply_blocks(map, op, inner.as_rows(), to, Update::Overwrite, policy);
            // Threads share the rows.
            let numbers = y.rows().saturating_mul(y.cols());
            let tasks = policy.tasks(numbers.saturating_mul(DEALT));
            let (shares, Policy { level, .. }) = Shares::deal(tasks, y.rows().max(1), policy);
            return shares.run(blocks.as_rows(), y, &mut [], &|x, y, _| interleave(j, x, y, update, level));
        }
        multiply_padded(second, second_map, op, inner.as_rows(), y, update, work);
    }
}

impl<T: Scalar, R: RowOrder> Differentiate<T> for BlockGrid<R> {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let stages = [Stage::new(&self.u, self.second()), Stage::new(&self.v, self.first())];
        stage_gradients(&stages, x, dy, threads)
    }
}

impl<R: RowOrder> StructuredMatrix for BlockGrid<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * (self.u.len() + self.v.len()) as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let (m, n) = self.shape;
        let first = padded_scratch_len(self.first(), batch, self.inner(), n);
        let second = padded_scratch_len(self.second(), batch, m, self.inner());
        let dealt = if self.deals() { self.u.blocks() * self.u.rows() } else { 0 };
        let dealt = Workspace::<f32>::matrix_len(batch, dealt);
        Workspace::<f32>::matrix_len(batch, self.inner()) + first.max(second).max(dealt)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let ((j, k), rank, (s, p)) = (self.blocks(), self.rank(), (self.u.rows(), self.v.cols()));
        let (u, v) = (self.u.to_array(), self.v.to_array());
        let mut padded = Array2::zeros((j * s, k * p));
        for lambda in 0..j {
            for sigma in 0..s {
                let row = (sigma / self.group * j + lambda) * self.group + sigma % self.group;
                for kappa in 0..k {
                    for rho in 0..rank {
                        let left = u[[lambda, sigma, kappa * rank + rho]];
                        for i in 0..p {
                            padded[[row, kappa * p + i]] += left * v[[kappa, lambda * rank + rho, i]];
                        }
                    }
                }
            }
        }
        padded.slice_move(ndarray::s![..self.shape.0, ..self.shape.1])
    }
    fn parts(&self) -> Parts<'_> {
        let parts = Parts::new(R::NAME, self.shape).factor("u", &self.u).factor("v", &self.v);
        if self.group == R::group(self.u.rows()) {
            parts
        } else {
            parts.with_config(&Config { group: self.group })
        }
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl<R: RowOrder> Family for BlockGrid<R> {
    const NAME: &'static str = R::NAME;
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        (
            "blocks",
            "`JxK` block rows and columns, or one number for both (default 4, fewer for small matrices)",
        ),
        ("rank", "rank of each block"),
    ];
    type Spec = BlockGridSpec;

    fn spec((m, n): (usize, usize), request: &Request) -> Result<BlockGridSpec> {
        let (j, k) = request.blocks((m, n))?.unwrap_or((m.clamp(1, 4), n.clamp(1, 4)));
        let (s, p) = (m.div_ceil(j), n.div_ceil(k));
        let rank = request.choose(R::NAME, (m, n), "rank", 1..=s.min(p), |t| {
            request.size().factor(j, s, k * t).factor(k, j * t, p)
        })?;
        Ok(BlockGridSpec { blocks: (j, k), rank })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &BlockGridSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let ((m, n), (j, k)) = (w.dim(), spec.blocks);
        if j == 0 || k == 0 || j > m || k > n {
            return Err(Error::parameter("blocks", format!("{j}x{k}"), format!("1x1 to {m}x{n}")));
        }
        let (s, p) = (m.div_ceil(j), n.div_ceil(k));
        if spec.rank == 0 || spec.rank > s.min(p) {
            return Err(Error::parameter(
                "rank",
                spec.rank,
                format!("1 to {}, the smaller side of a block", s.min(p)),
            ));
        }
        let group = R::group(s);
        let row_feature = |lambda: usize, sigma: usize| (sigma / group * j + lambda) * group + sigma % group;
        let fit = fit::fit(
            w,
            fit::Grid { blocks: (j, k), sides: (s, p), rank: spec.rank },
            row_feature,
            objective,
            run,
        )?;
        let t = spec.rank;
        Ok(fit.map(|blocks| {
            let u = Factor::from_fn(run.storage(), (j, s, k * t), |lambda, sigma, c| {
                blocks[lambda].u[[sigma, c]]
            });
            let v = Factor::from_fn(run.storage(), (k, j * t, p), |kappa, r, i| {
                blocks[r / t].v[[kappa * t + r % t, i]]
            });
            Self::laid_out((m, n), u, v, group)
        }))
    }

    fn random((m, n): (usize, usize), spec: &BlockGridSpec, storage: Storage, seed: u64) -> Result<Self> {
        let ((j, k), t) = (spec.blocks, spec.rank);
        if j == 0 || k == 0 || t == 0 {
            return Err(Error::parameter("blocks and rank", format!("{j}x{k}, {t}"), "at least 1"));
        }
        let (s, p) = (m.div_ceil(j), n.div_ceil(k));
        let mut gaussian = Gaussian::new(seed);
        let u = gaussian.matrix(j * s, k * t, (t as f64).powf(-0.5));
        let v = gaussian.matrix(k * j * t, p, (n.max(1) as f64).powf(-0.5));
        let u = Factor::from_fn(storage, (j, s, k * t), |b, r, c| u[[b * s + r, c]]);
        let v = Factor::from_fn(storage, (k, j * t, p), |b, r, c| v[[b * j * t + r, c]]);
        Self::new((m, n), u, v)
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        let (blocks, group) = (self.u.blocks(), self.group.max(1));
        scale_outputs(self, scale, storage, |factor, (block, row, _)| {
            (factor == 0).then(|| (row / group * blocks + block) * group + row % group)
        })
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (u, v) = (parts.take_factor("u")?, parts.take_factor("v")?);
        let group = match parts.raw_config().is_null() {
            true => R::group(u.rows()),
            false => parts.config::<Config>()?.group,
        };
        Self::checked(parts.shape(), u, v, group)
    }
}
