//! BLAST: blocks with shared left and right factors.

mod factors;
mod fit;
mod sweeps;
mod systems;

use super::shares::{Shares, parts};
use crate::error::{Error, Result};
use crate::exec::{Policy, SCRATCH_ALIGN, Workspace};
use crate::gradient::{Differentiate, gathered};
use crate::kernels::{PANEL, PanelMap, ROWS_TOGETHER, Rows, RowsMut};
use crate::linalg::{Threads, matmul_into, matmul_tn};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, scale_outputs};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, s};
use std::ops::Range;

/// Block-level adaptive structured matrices: a grid of $b_1 \times b_2$ blocks
/// $W_{ij} = U_i \, \mathrm{diag}(s_{ij}) \, V_j^T$, with left factors shared along a block row, right factors along a
/// block column, and one diagonal of `rank` entries per block.
///
/// Block row $i$ holds rows $\lfloor i m / b_1 \rfloor$ to $\lfloor (i + 1) m / b_1 \rfloor$, block columns likewise, so
/// blocks need not divide the shape. Low-rank, block-diagonal and block-low-rank matrices are members; see the constructors.
///
/// Parameters: `rank (out + in + b1 b2)`, and as many multiply-adds.
///
/// Projection: sweeps of least-squares steps for $U$, $V$ and $s$, over-relaxed (from 1.9 down to 1), each by a few conjugate gradient
/// steps, none of which raises the error; from the truncated singular value decomposition and from the block-low-rank
/// approximation, of which the one that leads after a few sweeps goes on. The result is a local optimum, never worse than the
/// low-rank matrix of the same rank or than blocks of rank $\lfloor \mathrm{rank} / \max(b_1, b_2) \rfloor$. With activations
/// the sweeps minimise the error weighted with $C + 10^{-6} \mathrm{tr}(C) / n\, I$, so that no factor grows without bound where no
/// activation has a share; they start from the plain fit and from the best weighted low-rank matrix, and end no worse than either in that
/// error. A sweep takes about $2 m n r + 6 (m + n) r^2 + 10 b_1 b_2 r^2$ multiply-adds, of `f32` for larger weights unless the error is
/// tiny, and $2 n^2 r + 2 b_2 n r^2 + b_1 b_2^2 r^2$ more, of `f64`, with activations. It keeps $b_1 n r$ numbers.
/// The method `gradient` is the preconditioned gradient descent of the source.
///
/// Source: C. Lee, S. M. Kwon, Q. Qu and H.-S. Kim, "BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep
/// Neural Network Inference", 2024.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((12, 8), |(i, j)| if i / 6 == j / 4 { (1 + i % 6 + j % 4) as f64 } else { 0.0 });
/// let spec = Blast::spec(w.dim(), &Request::new().with("blocks", 2).with("rank", 4))?;
/// let blast = Blast::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(blast.report.relative_error < 1e-6);                // two blocks of rank 2
/// assert_eq!(blast.matrix.n_params(), 4 * (12 + 8 + 4));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Blast {
    /// `out x rank`: the left factors one below the other.
    u: Factor,
    /// `b1` matrices of `b2 x rank`.
    s: Factor,
    /// `in x rank`.
    v: Factor,
}

/// Batch rows that are multiplied at once.
const ROWS_AT_ONCE: usize = 32;

/// Intermediate numbers of such a part, for as many entries of the diagonals as that leaves: they stay in the second-level cache.
const AT_ONCE: usize = 1 << 17;

/// Entries of the diagonals that take part at once, at least: each time all outputs are added to.
const LEAST_RANKS: usize = 2 * PANEL;

/// Batch rows that are worth a thread of their own, which reads all weights.
const LEAST_ROWS: usize = 16;

/// Threads that share a batch at most. Their scratch is no more than `AT_ONCE` numbers for each, or what one needs.
const MOST_SHARES: usize = 16;

/// How [`Blast`] is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum BlastMethod {
    /// Over-relaxed exact block solves.
    #[default]
    Solves,
    /// The source's preconditioned gradient descent, from a small random start: steps `2 eta`, with `eta` falling from 1 to
    /// `end_factor`, and Gram matrices shifted by `delta` times the error.
    Gradient {
        /// Shift of the Gram matrices, relative to the error (0.1).
        delta: f64,
        /// Last step, relative to the first (0).
        end_factor: f64,
    },
}

/// Parameters of [`Blast`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlastSpec {
    /// Block rows and block columns.
    pub blocks: (usize, usize),
    /// Length of the diagonals, at most `min(out, in)`.
    pub rank: usize,
    /// Sweeps at most.
    pub sweeps: usize,
    /// How to fit.
    pub method: BlastMethod,
}

impl BlastSpec {
    /// With the default method.
    pub fn new(blocks: (usize, usize), rank: usize) -> Self {
        Self { blocks, rank, sweeps: fit::SWEEPS, method: BlastMethod::Solves }
    }

    fn check(&self, (m, n): (usize, usize)) -> Result<()> {
        let (b1, b2) = self.blocks;
        if b1 == 0 || b2 == 0 || b1 > m || b2 > n {
            let expected = format!("JxK with 1 <= J <= {m} and 1 <= K <= {n}");
            return Err(Error::parameter("blocks", format!("{b1}x{b2}"), expected));
        }
        if self.rank == 0 || self.rank > m.min(n) {
            return Err(Error::parameter("rank", self.rank, format!("1 to {}", m.min(n))));
        }
        match self.method {
            BlastMethod::Gradient { delta, .. } if !(delta > 0.0 && delta.is_finite()) => {
                Err(Error::parameter("delta", delta, "a positive number"))
            }
            BlastMethod::Gradient { end_factor, .. } if !(0.0..=1.0).contains(&end_factor) => {
                Err(Error::parameter("end_factor", end_factor, "0 to 1"))
            }
            _ => Ok(()),
        }
    }
}

/// Features of block `i` of `blocks` of `len` features.
fn block_range(i: usize, blocks: usize, len: usize) -> Range<usize> {
    i * len / blocks..(i + 1) * len / blocks
}

/// Components that block `(i, j)` owns when no two blocks of a row or of a column share one: `rank` is cut into `max(b1, b2)` slots of nearly
/// equal width, taken in Latin-square order.
fn slot(i: usize, j: usize, (b1, b2): (usize, usize), rank: usize) -> Range<usize> {
    let slots = b1.max(b2);
    let (c, width, extra) = ((i + j) % slots, rank / slots, rank % slots);
    let start = c * width + c.min(extra);
    start..start + width + usize::from(c < extra)
}

impl Blast {
    /// From `u` (out x rank), `s` (b1 matrices of b2 x rank) and `v` (in x rank).
    ///
    /// # Errors
    /// [`Error::Record`] when the sizes do not fit, or there are more blocks than features.
    pub fn new(u: Factor, s: Factor, v: Factor) -> Result<Self> {
        let shape = (u.rows(), v.rows());
        Self::from_parts(Parts::new(Self::NAME, shape).factor("u", u).factor("s", s).factor("v", v))
    }

    /// The low-rank matrix `u v` of `u` (out x rank) and `v` (rank x in): all diagonals are 1.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn from_low_rank(
        u: &Array2<f64>,
        v: &Array2<f64>,
        (b1, b2): (usize, usize),
        storage: Storage,
    ) -> Result<Self> {
        let s = Factor::from_fn(storage, (b1, b2, u.ncols()), |_, _, _| 1.0);
        Self::new(Factor::from_matrix(storage, u), s, Factor::from_matrix(storage, &v.t()))
    }

    /// The block-diagonal matrix of `blocks`, which cut both sides as this structure does. Its rank is the least
    /// that the largest block needs.
    ///
    /// # Errors
    /// [`Error::Shape`] for blocks of other sizes, [`Error::Parameter`] for none.
    pub fn from_block_diagonal(blocks: &[Array2<f64>], storage: Storage) -> Result<Self> {
        let b = blocks.len();
        let rank = blocks.iter().map(|block| block.nrows().min(block.ncols())).max();
        let rank = rank.ok_or_else(|| Error::parameter("blocks", 0, "at least 1"))?;
        let sum = |size: fn(&Array2<f64>) -> usize| blocks.iter().map(size).sum::<usize>();
        let (m, n) = (sum(|block| block.nrows()), sum(|block| block.ncols()));
        let (mut u, mut v) = (Array2::zeros((m, rank)), Array2::zeros((n, rank)));
        for (i, block) in blocks.iter().enumerate() {
            let (rows, cols) = (block_range(i, b, m), block_range(i, b, n));
            if block.dim() != (rows.len(), cols.len()) {
                return Err(Error::shape("diagonal block", &[rows.len(), cols.len()], block.shape()));
            }
            // The smaller side gets the identity.
            if rows.len() <= cols.len() {
                u.slice_mut(s![rows, ..block.nrows()]).diag_mut().fill(1.0);
                v.slice_mut(s![cols, ..block.nrows()]).assign(&block.t());
            } else {
                u.slice_mut(s![rows, ..block.ncols()]).assign(block);
                v.slice_mut(s![cols, ..block.ncols()]).diag_mut().fill(1.0);
            }
        }
        let s = Factor::from_fn(storage, (b, b, rank), |i, j, _| f64::from(u8::from(i == j)));
        Self::new(Factor::from_matrix(storage, &u), s, Factor::from_matrix(storage, &v))
    }

    /// The matrix with blocks $L_{ij} R_{ij}$ of rank at most `t`: `block(i, j)` gives $L_{ij}$ (rows x t) and $R_{ij}$ (t x columns).
    /// Its rank is `t max(b1, b2)`.
    ///
    /// # Errors
    /// [`Error::Shape`] for factors of other sizes, and those of [`new`](Self::new).
    pub fn from_block_low_rank(
        (m, n): (usize, usize),
        blocks: (usize, usize),
        t: usize,
        block: impl Fn(usize, usize) -> (Array2<f64>, Array2<f64>),
        storage: Storage,
    ) -> Result<Self> {
        BlastSpec { rank: 1, ..BlastSpec::new(blocks, 1) }.check((m, n))?;
        let rank = t.saturating_mul(blocks.0.max(blocks.1));
        let mut factors = factors::Factors::zeros((m, n), blocks, rank);
        for i in 0..blocks.0 {
            for j in 0..blocks.1 {
                let (rows, cols) = (block_range(i, blocks.0, m), block_range(j, blocks.1, n));
                let (left, right) = block(i, j);
                if left.dim() != (rows.len(), t) {
                    return Err(Error::shape("left factor of a block", &[rows.len(), t], left.shape()));
                }
                if right.dim() != (t, cols.len()) {
                    return Err(Error::shape("right factor of a block", &[t, cols.len()], right.shape()));
                }
                factors.set_block(i, j, &left, &right.t());
            }
        }
        factors.store(storage)
    }

    /// Block rows and block columns.
    pub fn blocks(&self) -> (usize, usize) {
        (self.s.blocks(), self.s.rows())
    }

    /// Length of the diagonals.
    pub fn rank(&self) -> usize {
        self.u.cols()
    }
}

impl<T: Scalar> Multiply<T> for Blast {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        let (batch, policy) = (x.rows(), work.policy);
        let numbers = self.u.len() + self.s.len() + self.v.len();
        let tasks = policy.tasks(numbers.saturating_mul(batch));
        let (shares, policy) = Shares::deal(tasks, self.most_shares(batch), policy);
        let ranks = self.ranks_at_once(batch);
        let (scratch, _) = work.slice(self.share_len(batch) * shares.count);
        shares.run(x, y, scratch, &|x, mut y, scratch| {
            // Weights outside, batch rows inside: those of some ranks come from memory once.
            for from in (0..self.rank().max(1)).step_by(ranks) {
                let ranks = from..self.rank().min(from + ranks);
                let update = if from == 0 { update } else { Update::Accumulate };
                for rows in parts(x.rows(), ROWS_AT_ONCE, ROWS_TOGETHER) {
                    let (x, y) = (x.batch(rows.clone()), y.reborrow().batch(rows));
                    let work = Workspace::new(&mut *scratch, policy);
                    self.multiply_ranks(ranks.clone(), Operands { op, x, y, update, work });
                }
            }
        });
    }
}

impl Blast {
    /// Entries of the diagonals that take part at once: as many for any number of threads.
    fn ranks_at_once(&self, batch: usize) -> usize {
        let ((b1, b2), all) = (self.blocks(), self.rank().max(1));
        let few = AT_ONCE / ROWS_AT_ONCE / (b1 + b2) / PANEL * PANEL;
        // Panels that blocks share are used whole.
        let whole = batch < ROWS_AT_ONCE || self.u.is_shared() || self.v.is_shared();
        if whole { all } else { few.max(LEAST_RANKS).min(all) }
    }

    /// Threads that share a batch, at most. Where one share needs much scratch, threads share the blocks instead.
    fn most_shares(&self, batch: usize) -> usize {
        let fit = MOST_SHARES * AT_ONCE / self.share_len(batch).max(1);
        (batch / LEAST_ROWS).min(fit).clamp(1, MOST_SHARES)
    }

    /// Scratch of one share of a batch.
    fn share_len(&self, batch: usize) -> usize {
        let ((b1, b2), stride) = (self.blocks(), self.block_stride(self.ranks_at_once(batch)));
        let side = |blocks: usize| {
            Workspace::<f32>::matrix_len(batch.min(ROWS_AT_ONCE), blocks.saturating_mul(stride))
        };
        side(b1).saturating_add(side(b2))
    }

    /// Scratch from one block to the next where each has `ranks` numbers: vectors of them are aligned, but where blocks share panels.
    fn block_stride(&self, ranks: usize) -> usize {
        let shared = self.u.is_shared() || self.v.is_shared();
        if shared { ranks } else { ranks.next_multiple_of(SCRATCH_ALIGN) }
    }

    fn multiply_ranks<T: Scalar>(&self, ranks: Range<usize>, operands: Operands<'_, T>) {
        let Operands { op, x, y, update, work } = operands;
        let (batch, stride, policy) = (x.rows(), self.block_stride(ranks.len()), work.policy);
        // From the features of one side, in `sources` blocks, to those of the other, in `targets` blocks.
        let (first, second) = op.order(&self.v, &self.u);
        let (b1, b2) = self.blocks();
        let (sources, targets) = op.order(b2, b1);
        let (mut z, rest) = work.matrix(batch, sources * stride);
        let (mut a, _) = rest.matrix(batch, targets * stride);
        let product = (Op::Transpose, Update::Overwrite);
        multiply_side(first, sources, (ranks.clone(), stride), product, x, z.reborrow(), policy);
        self.s.mix_columns(ranks.clone(), stride, op, z.as_rows(), a.reborrow(), policy);
        multiply_side(second, targets, (ranks, stride), (Op::Forward, update), a.as_rows(), y, policy);
    }
}

/// Each block of features of one side's `factor` with some of its ranks, which are as many inputs or outputs for every block and start `stride`
/// after those of the one before.
fn multiply_side<T: Scalar>(
    factor: &Factor,
    blocks: usize,
    (ranks, stride): (Range<usize>, usize),
    (op, update): (Op, Update),
    x: Rows<'_, T>,
    mut y: RowsMut<'_, T>,
    policy: Policy,
) {
    let (features, width) = (factor.rows(), ranks.len());
    if features.is_multiple_of(blocks) {
        let map = PanelMap::contiguous(blocks, features / blocks, width).with_col_stride(stride);
        return factor.multiply_part(0, ranks.start, map, op, x, y, update, policy);
    }
    for block in 0..blocks {
        let rows = block_range(block, blocks, features);
        let map = PanelMap::contiguous(1, rows.len(), width);
        let (outputs, inputs) = op.order(rows.clone(), block * stride..block * stride + width);
        let (x, y) = (x.columns(inputs), y.reborrow().columns(outputs));
        factor.multiply_part(rows.start, ranks.start, map, op, x, y, update, policy);
    }
}

impl<T: Scalar> Differentiate<T> for Blast {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let ((m, n), (b1, b2), rank) = (self.shape(), self.blocks(), self.rank());
        let (u, s, v) = (self.u.numbers::<T>(), self.s.numbers::<T>(), self.v.numbers::<T>());
        let (x, dy) = (gathered(&x.t(), 0..n), gathered(&dy.t(), 0..m));
        let mut gradients = [&u, &s, &v].map(|factor| Array3::zeros(factor.dim()));
        let [du, ds, dv] = &mut gradients;
        // With z_j = V_jᵀ x_j and a_i = sum_j s_ij z_j, all of rank x batch, y_i = U_i a_i.
        let z = |j: usize| {
            let cols = block_range(j, b2, n);
            matmul_tn(&v.slice(s![0, cols.clone(), ..]), &x.slice(s![cols, ..]), threads)
        };
        let z: Vec<Array2<T>> = (0..b2).map(z).collect();
        let mut dz = vec![Array2::zeros((rank, x.ncols())); b2];
        for i in 0..b1 {
            let rows = block_range(i, b1, m);
            let dy = dy.slice(s![rows.clone(), ..]);
            let da = matmul_tn(&u.slice(s![0, rows.clone(), ..]), &dy, threads);
            let mut a = Array2::zeros(da.dim());
            for (j, (z, dz)) in z.iter().zip(&mut dz).enumerate() {
                for r in 0..rank {
                    let scale = s[[i, j, r]];
                    a.row_mut(r).scaled_add(scale, &z.row(r));
                    dz.row_mut(r).scaled_add(scale, &da.row(r));
                    ds[[i, j, r]] = da.row(r).dot(&z.row(r));
                }
            }
            matmul_into(&dy, &a.t(), &mut du.slice_mut(s![0, rows, ..]), false, threads);
        }
        for (j, dz) in dz.iter().enumerate() {
            let cols = block_range(j, b2, n);
            let x = x.slice(s![cols.clone(), ..]);
            matmul_into(&x, &dz.t(), &mut dv.slice_mut(s![0, cols, ..]), false, threads);
        }
        gradients.into()
    }
}

impl StructuredMatrix for Blast {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.u.rows(), self.v.rows())
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * self.n_params() as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        self.share_len(batch).saturating_mul(self.most_shares(batch))
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let ((m, n), (b1, b2)) = (self.shape(), self.blocks());
        let (u, s, v) = (self.u.matrix(0), self.s.to_array(), self.v.matrix(0));
        let mut w = Array2::zeros((m, n));
        for i in 0..b1 {
            let rows = block_range(i, b1, m);
            for j in 0..b2 {
                let cols = block_range(j, b2, n);
                let left = &u.slice(s![rows.clone(), ..]) * &s.slice(s![i, j, ..]);
                w.slice_mut(s![rows.clone(), cols.clone()]).assign(&left.dot(&v.slice(s![cols, ..]).t()));
            }
        }
        w
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape()).factor("u", &self.u).factor("s", &self.s).factor("v", &self.v)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Blast {
    const NAME: &'static str = "blast";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("blocks", "block rows x block columns, `b` or `JxK` (4x4)"),
        ("rank", "length of the diagonals"),
        ("sweeps", "sweeps at most (200 below 2^20 entries, 100 from there on; 300 with `gradient`)"),
        ("method", "`solves` (default) or `gradient`"),
        ("delta", "shift of the Gram matrices of `gradient`, relative to the error (0.1)"),
        ("end_factor", "last step of `gradient`, relative to the first (0)"),
    ];
    type Spec = BlastSpec;

    fn spec((m, n): (usize, usize), request: &Request) -> Result<BlastSpec> {
        let blocks = request.blocks((m, n))?.unwrap_or((m.clamp(1, 4), n.clamp(1, 4)));
        let method = match request.get::<String>("method")?.as_deref() {
            None | Some("solves") => BlastMethod::Solves,
            Some("gradient") => BlastMethod::Gradient {
                delta: request.get("delta")?.unwrap_or(0.1),
                end_factor: request.get("end_factor")?.unwrap_or(0.0),
            },
            Some(other) => return Err(Error::parameter("method", other, "solves or gradient")),
        };
        let sweeps = match method {
            BlastMethod::Solves if m.saturating_mul(n) < fit::LARGE => 2 * fit::SWEEPS,
            BlastMethod::Solves => fit::SWEEPS,
            BlastMethod::Gradient { .. } => fit::GRADIENT_STEPS,
        };
        let sweeps = request.get_in("sweeps", 0..=1_000_000)?.unwrap_or(sweeps);
        let rank = request.choose(Self::NAME, (m, n), "rank", 1..=m.min(n), |r| {
            request.size().factor(1, m, r).factor(1, n, r).factor(blocks.0 * blocks.1, 1, r)
        })?;
        let spec = BlastSpec { blocks, rank, sweeps, method };
        spec.check((m, n)).map(|()| spec)
    }

    fn fit(w: &Array2<f64>, spec: &BlastSpec, objective: &Objective<'_>, run: &Run<'_>) -> Result<Fit<Self>> {
        spec.check(w.dim())?;
        let (factors, history) = fit::fit(w, spec, objective, run)?;
        Ok(Fit::local(factors.store(run.storage())?, history))
    }

    fn random((m, n): (usize, usize), spec: &BlastSpec, storage: Storage, seed: u64) -> Result<Self> {
        spec.check((m, n))?;
        let (mut gaussian, (b1, b2), rank) = (Gaussian::new(seed), spec.blocks, spec.rank);
        let u = Factor::from_matrix(storage, &gaussian.matrix(m, rank, (rank as f64).powf(-0.5)));
        let v = Factor::from_matrix(storage, &gaussian.matrix(n, rank, (n as f64).powf(-0.5)));
        let s = Array3::from_shape_simple_fn((b1, b2, rank), || gaussian.sample());
        Self::new(u, Factor::from_fn(storage, s.dim(), |i, j, k| s[[i, j, k]]), v)
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        scale_outputs(self, scale, storage, |factor, (_, row, _)| (factor == 0).then_some(row))
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (u, v, s) = (parts.take_factor("u")?, parts.take_factor("v")?, parts.take_factor("s")?);
        let ((m, n), rank, (b1, b2)) = (parts.shape(), u.cols(), (s.blocks(), s.rows()));
        let fits = u.shape() == (1, m, rank)
            && v.shape() == (1, n, rank)
            && s.cols() == rank
            && (1..=m.max(1)).contains(&b1)
            && (1..=n.max(1)).contains(&b2)
            && b1.max(b2).checked_mul(rank).is_some_and(|len| len <= crate::parts::MAX_FEATURES);
        if !fits {
            let (u, s, v) = (u.shape(), s.shape(), v.shape());
            return Err(parts.error(format!(
                "u {u:?}, s {s:?}, v {v:?}: expected (1, {m}, r), (b1, b2, r) with b1 <= {m} and b2 <= {n}, (1, {n}, r)"
            )));
        }
        // Blocks of one size are packed for the products that they take part in, and may share panels.
        let packed = |factor: Factor, op, blocks| {
            let (rows, cols) = (factor.rows(), factor.cols());
            match rows.is_multiple_of(blocks) {
                true => factor.packed_for(op, PanelMap::contiguous(blocks, rows / blocks, cols)),
                false => factor.packed(op, blocks),
            }
        };
        Ok(Self { u: packed(u, Op::Forward, b1), s: s.packed_to_mix(), v: packed(v, Op::Transpose, b2) })
    }
}
