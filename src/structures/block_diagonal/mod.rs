//! Block-diagonal matrices, in the order of the features or in the best one.

mod grouping;

use crate::compose::{check_permutation, gather, scatter};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, gathered, stack_gradient};
use crate::kernels::PanelMap;
use crate::linalg::{self, SpdSolver, Threads};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::{MAX_FEATURES, Parts};
use crate::projection::{Family, Fit, Guarantee, Objective, Request, Run, scale_outputs};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use crate::structures::stack::{multiply_padded, padded_scratch_len};
use grouping::{Grouping, consecutive};
use ndarray::{Array2, Array3, ArrayRef2, ArrayView2, Axis};

/// $W = \mathrm{diag}(A_1, \dots, A_b)$, or $W = P^T \mathrm{diag}(A_1, \dots, A_b)\, Q$ with permutations of rows and columns.
///
/// Parameters and multiply-adds: `b ceil(out / b) ceil(in / b)`; where `b` does not divide the shape the last blocks are padded with zeros.
/// A permutation adds an index per row and column.
///
/// Projection: the blocks of `W`, which is the global optimum; with activations the blocks plus a regression of the inputs outside
/// on those inside, $(WC)_{gg} C_{gg}^{-1}$, also globally optimal. Permuted: groups of rows and groups of columns chosen in turns, each
/// choice an optimal transport, from ten starts; a local optimum, never worse than the unpermuted one.
///
/// Source: grouped layers are as old as A. Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = array![[0.0f32, 2.0], [3.0, 0.0]];
/// let spec = BlockDiagonalSpec { blocks: 2, permuted: true };
/// let p = BlockDiagonal::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert_eq!((p.matrix.to_dense::<f32>(), p.matrix.n_params()), (w, 2));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockDiagonal {
    shape: (usize, usize),
    blocks: Factor,
    /// The features of the rows and columns in the order of the blocks.
    order: Option<(Vec<u32>, Vec<u32>)>,
}

/// Parameters of [`BlockDiagonal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDiagonalSpec {
    /// Number of blocks, at most `min(out, in)`.
    pub blocks: usize,
    /// Whether rows and columns may be permuted.
    pub permuted: bool,
}

impl BlockDiagonal {
    /// From a stack of blocks, for a matrix of `shape`; the last blocks may reach beyond it.
    ///
    /// # Errors
    /// [`Error::Record`] when the blocks do not have the sides `ceil(out / b)` and `ceil(in / b)`.
    pub fn new(shape: (usize, usize), blocks: Factor) -> Result<Self> {
        Self::checked(shape, blocks, None)
    }

    /// The same with permutations: row `i` in the order of the blocks is row `rows[i]` of the matrix, column `j` is column `cols[j]`.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::Parameter`] when a list is no permutation.
    pub fn permuted(shape: (usize, usize), blocks: Factor, rows: Vec<u32>, cols: Vec<u32>) -> Result<Self> {
        Self::checked(shape, blocks, Some((rows, cols)))
    }

    /// The same with the channel shuffle of ShuffleNet behind the blocks: neighbouring outputs belong to different blocks, in turns, so that
    /// the next block-diagonal matrix sees all of them. With `b` blocks that divide the shape, row `i` of block `g` is row `i b + g` of the
    /// matrix; columns stay in order. A fixed stride, so nothing is searched: the nearest such matrix is [`project`](Family::project) of `W` with
    /// its rows in the order [`shuffle`](Self::shuffle).
    ///
    /// Source: X. Zhang et al., "ShuffleNet: an extremely efficient convolutional neural network for mobile devices", 2018.
    ///
    /// ```
    /// use structmat::prelude::*;
    /// use structmat::ndarray::array;
    /// let blocks = Factor::from_fn(Storage::F32, (2, 2, 1), |g, i, _| (1 + 2 * g + i) as f64);
    /// let w = BlockDiagonal::shuffled((4, 2), blocks)?;
    /// assert_eq!(w.to_dense::<f32>(), array![[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 4.0]]);
    /// # Ok::<(), structmat::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn shuffled((m, n): (usize, usize), blocks: Factor) -> Result<Self> {
        if m.max(n) > MAX_FEATURES {
            let reason = format!("{m} x {n}: expected at most {MAX_FEATURES} features");
            return Err(Error::record(Self::NAME, reason));
        }
        // Blocks that fit, before lists as long as the sides are made.
        let plain = Self::new((m, n), blocks)?;
        let rows = Self::shuffle(m, plain.blocks.blocks());
        Ok(Self { order: Some((rows, (0..n as u32).collect())), ..plain })
    }

    /// The rows of a matrix with `rows` rows in the order in which `blocks` blocks own them after a channel shuffle: those at 0, `blocks`,
    /// `2 blocks` and so on, then those at 1, `blocks + 1` and so on.
    pub fn shuffle(rows: usize, blocks: usize) -> Vec<u32> {
        let rows = rows.min(MAX_FEATURES);
        (0..blocks.min(rows)).flat_map(|g| (g..rows).step_by(blocks)).map(|i| i as u32).collect()
    }

    fn checked((m, n): (usize, usize), blocks: Factor, order: Option<(Vec<u32>, Vec<u32>)>) -> Result<Self> {
        let (b, s, p) = blocks.shape();
        if b == 0 || s != m.div_ceil(b) || p != n.div_ceil(b) {
            return Err(Error::record(
                Self::NAME,
                format!("{b} blocks of {s} x {p} for a matrix of {m} x {n}"),
            ));
        }
        if let Some((rows, cols)) = &order {
            check_permutation("rows", rows, m)?;
            check_permutation("cols", cols, n)?;
        }
        let blocks = blocks.packed_for(Op::Forward, PanelMap::contiguous(b, s, p));
        Ok(Self { shape: (m, n), blocks, order })
    }

    fn map(&self) -> PanelMap {
        PanelMap::contiguous(self.blocks.blocks(), self.blocks.rows(), self.blocks.cols())
    }
}

impl<T: Scalar> Multiply<T> for BlockDiagonal {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        let Some((rows, cols)) = &self.order else {
            return multiply_padded(&self.blocks, self.map(), op, x, y, update, work);
        };
        let (after, before) = op.order(rows, cols);
        let (mut ordered, work) = work.matrix(x.rows(), before.len());
        let (mut result, work) = work.matrix(x.rows(), after.len());
        gather(before, x, ordered.reborrow(), Update::Overwrite);
        multiply_padded(
            &self.blocks,
            self.map(),
            op,
            ordered.as_rows(),
            result.reborrow(),
            Update::Overwrite,
            work,
        );
        scatter(after, result.as_rows(), y, update);
    }
}

impl<T: Scalar> Differentiate<T> for BlockDiagonal {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let side = |features: ArrayView2<'_, T>, list: Option<&Vec<u32>>, len: usize| match list {
            None => gathered(&features, 0..len),
            Some(list) => gathered(&features, list.iter().map(|&i| i as usize).chain(list.len()..len)),
        };
        let (b, s, p) = self.blocks.shape();
        let (rows, cols) = self.order.as_ref().map(|(rows, cols)| (rows, cols)).unzip();
        vec![stack_gradient(b, &side(dy.t(), rows, b * s), &side(x.t(), cols, b * p), threads)]
    }
}

impl StructuredMatrix for BlockDiagonal {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * self.blocks.len() as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let (m, n) = self.shape;
        let panel = |cols| Workspace::<f32>::matrix_len(batch, cols);
        let permuted = if self.order.is_some() { panel(m) + panel(n) } else { 0 };
        permuted + padded_scratch_len(self.map(), batch, m, n)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let ((m, n), (s, p)) = (self.shape, (self.blocks.rows(), self.blocks.cols()));
        let mut w = Array2::zeros((m, n));
        for i in 0..m {
            for j in (i / s * p..(i / s + 1) * p).take_while(|j| *j < n) {
                let (row, col) = match &self.order {
                    Some((rows, cols)) => (rows[i] as usize, cols[j] as usize),
                    None => (i, j),
                };
                w[[row, col]] = self.blocks.get(i / s, i % s, j % p);
            }
        }
        w
    }
    fn parts(&self) -> Parts<'_> {
        let parts = Parts::new(Self::NAME, self.shape).factor("blocks", &self.blocks);
        match &self.order {
            Some((rows, cols)) => parts.index("rows", rows).index("cols", cols),
            None => parts,
        }
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for BlockDiagonal {
    const NAME: &'static str = "block_diagonal";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("blocks", "number of blocks"),
        ("permuted", "`true` to choose the order of rows and columns too (default `false`)"),
    ];
    type Spec = BlockDiagonalSpec;

    fn spec((m, n): (usize, usize), request: &Request) -> Result<BlockDiagonalSpec> {
        let permuted = request.get::<bool>("permuted")?.unwrap_or(false);
        let size = |b: usize| {
            let size = request.size().factor(b, m.div_ceil(b), n.div_ceil(b));
            if permuted { size.indices(m + n) } else { size }
        };
        let most = m.min(n);
        if let Some((j, k)) = request.blocks((m, n))? {
            if j != k {
                return Err(Error::parameter(
                    "blocks",
                    format!("{j}x{k}"),
                    "as many block rows as block columns",
                ));
            }
            request.require(Self::NAME, (m, n), size(j))?;
            return Ok(BlockDiagonalSpec { blocks: j, permuted });
        }
        if request.the_budget().is_none() {
            return Err(Error::parameter("blocks", "nothing", "a value, or a budget"));
        }
        // The fewest blocks that fit: the largest member.
        match (1..=most).find(|b| request.allows((m, n), size(*b))) {
            Some(blocks) => Ok(BlockDiagonalSpec { blocks, permuted }),
            None => Err(request.require(Self::NAME, (m, n), size(most.max(1))).err().unwrap_or_else(|| {
                Error::shape("weight (must not be empty)", &[m.max(1), n.max(1)], &[m, n])
            })),
        }
    }

    fn fit(
        w: &Array2<f64>,
        spec: &BlockDiagonalSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let ((m, n), b) = (w.dim(), spec.blocks);
        if b == 0 || b > m.min(n) {
            return Err(Error::parameter("blocks", b, format!("1 to {}", m.min(n))));
        }
        let as_it_is = Grouping { rows: consecutive(m, m.div_ceil(b)), cols: consecutive(n, n.div_ceil(b)) };
        if !spec.permuted {
            return Ok(Fit::optimal(Fitted::new(w, as_it_is, objective, run)?.build(
                w.dim(),
                b,
                false,
                run.storage(),
            )));
        }
        let square = w.mapv(|v| v * v);
        let mut candidates = vec![as_it_is, grouping::best(&square, b, run)?];
        if let Some(c) = objective.second_moment() {
            candidates.push(grouping::best(&(&square * &c.diag()), b, run)?);
        }
        let mut best: Option<Fitted> = None;
        for grouping in candidates {
            let fitted = Fitted::new(w, grouping, objective, run)?;
            if best.as_ref().is_none_or(|best| fitted.captured > best.captured) {
                best = Some(fitted);
            }
        }
        let best = best.ok_or(Error::NoConvergence("the choice of groups"))?;
        let matrix = best.build(w.dim(), b, true, run.storage());
        Ok(Fit { matrix, guarantee: Guarantee::LocalOptimum, iterations: 0, history: Vec::new() })
    }

    fn random((m, n): (usize, usize), spec: &BlockDiagonalSpec, storage: Storage, seed: u64) -> Result<Self> {
        let b = spec.blocks;
        if b == 0 {
            return Err(Error::parameter("blocks", b, "at least 1"));
        }
        let (s, p) = (m.div_ceil(b), n.div_ceil(b));
        let values = Gaussian::new(seed).matrix(b * s, p, (n.max(1) as f64).powf(-0.5));
        let blocks = Factor::from_fn(storage, (b, s, p), |g, i, j| values[[g * s + i, j]]);
        // A fixed stride stands for the permutations of a fit.
        let stride = |len: usize| (0..len).map(|i| (len - 1 - i) as u32).collect();
        let order = spec.permuted.then(|| (stride(m), stride(n)));
        Self::checked((m, n), blocks, order)
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        let rows = self.blocks.rows();
        scale_outputs(self, scale, storage, |_, (block, row, _)| {
            let place = block * rows + row;
            match &self.order {
                Some((order, _)) => order.get(place).map(|row| *row as usize),
                None => Some(place),
            }
        })
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (m, n) = parts.shape();
        let blocks = parts.take_factor("blocks")?;
        let permuted = parts.indices().next().is_some();
        let order = permuted.then(|| Ok((parts.take_indices("rows", m)?, parts.take_indices("cols", n)?)));
        Self::checked((m, n), blocks, order.transpose()?)
    }
}

/// The best values for given groups.
struct Fitted {
    /// Features in the order of the blocks, group after group.
    rows: Vec<Vec<usize>>,
    cols: Vec<Vec<usize>>,
    values: Vec<Array2<f64>>,
    /// How much of the weight's energy (in the objective) the values explain.
    captured: f64,
}

impl Fitted {
    fn new(w: &Array2<f64>, grouping: Grouping, objective: &Objective<'_>, run: &Run<'_>) -> Result<Self> {
        let wc = objective.second_moment().map(|c| linalg::matmul(w, c, run.threads()));
        let (rows, cols) = (members(&grouping.rows), members(&grouping.cols));
        let blocks = rows.len().max(cols.len());
        let (mut values, mut captured) = (Vec::with_capacity(blocks), 0.0);
        for (rows, cols) in rows.iter().zip(&cols) {
            run.check()?;
            let pick = |a: &Array2<f64>| a.select(Axis(0), rows).select(Axis(1), cols);
            let value = match (objective.second_moment(), &wc) {
                (Some(c), Some(wc)) => {
                    let inside = c.select(Axis(0), cols).select(Axis(1), cols);
                    let seen = pick(wc);
                    let value = SpdSolver::new(&inside, 1e-12)?.solve_right(&seen);
                    captured += 2.0 * (&seen * &value).sum() - (value.dot(&inside) * &value).sum();
                    value
                }
                _ => {
                    let value = pick(w);
                    captured += value.iter().map(|v| v * v).sum::<f64>();
                    value
                }
            };
            values.push(value);
        }
        Ok(Self { rows, cols, values, captured })
    }

    fn build(&self, (m, n): (usize, usize), b: usize, permuted: bool, storage: Storage) -> BlockDiagonal {
        let shape = (b, m.div_ceil(b), n.div_ceil(b));
        let blocks = Factor::from_fn(storage, shape, |g, i, j| {
            self.values.get(g).and_then(|value| value.get((i, j))).copied().unwrap_or(0.0)
        });
        let list = |groups: &[Vec<usize>]| groups.iter().flatten().map(|&i| i as u32).collect();
        let order = permuted.then(|| (list(&self.rows), list(&self.cols)));
        BlockDiagonal { shape: (m, n), blocks, order }
    }
}

/// The members of each group, in order.
fn members(groups: &[usize]) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); groups.iter().max().map_or(0, |g| g + 1)];
    groups.iter().enumerate().for_each(|(i, &g)| members[g].push(i));
    members
}
