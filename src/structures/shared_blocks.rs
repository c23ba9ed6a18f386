//! Blocks of rows that several places of a matrix share.

use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, stack_gradient};
use crate::linalg::{self, Threads};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, Stop, descend, join_pairs, numbered, ward};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, s};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Block rows when none are asked for, about as many as a layer has heads.
const BLOCKS: usize = 32;

/// $W = [B_{\pi(1)}; B_{\pi(2)}; \dots]$: blocks of rows, one below the other, of which several are the same stored one; attention heads,
/// for example.
///
/// Parameters: `distinct * rows * in`, and an index of 4 bytes per block; multiply-adds the same, as each distinct block is multiplied
/// once, in both directions. Where `rows` does not divide the outputs, the last block is cut.
///
/// Projection: which blocks share is a clustering. For given groups the best shared block is the mean of its group, also under
/// activations $C = E[x x^T]$, which all blocks see alike. `method = least_squares` joins groups by Ward's method and
/// then moves single blocks while the error falls (the error of a block is $\|(W_g - B) C^{1/2}\|$); with activations also from the groups of the
/// plain projection, so that it is never worse. `cosine` joins the most similar pairs, and `direct` keeps
/// the first block of each group in place of the mean: what is published. A local optimum, and the global one with one
/// distinct block or as many as blocks.
///
/// Source: Z. Cao et al., "Head-wise Shareable Attention for Large Language Models", 2024.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = array![[1.0f32, 2.0], [5.0, 5.0], [1.0, 2.0]];
/// let spec = SharedBlocksSpec { blocks: 3, distinct: 2, method: BlockSharing::LeastSquares };
/// let p = SharedBlocks::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert_eq!((p.matrix.map(), p.matrix.n_params()), ([0, 1, 0].as_slice(), 4));
/// assert_eq!(p.matrix.to_dense::<f32>(), w);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SharedBlocks {
    outputs: usize,
    /// Of each block.
    rows: usize,
    /// The distinct blocks, one below the other.
    blocks: Factor,
    /// Which of them stands at each place.
    map: Vec<u32>,
}

/// How blocks share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockSharing {
    /// Groups and means of least squares.
    #[default]
    LeastSquares,
    /// The pairs of largest cosine share their mean.
    Cosine,
    /// The pairs of largest cosine share the first of them.
    Direct,
}

/// Parameters of [`SharedBlocks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedBlocksSpec {
    /// Number of blocks, at most `out`: each has `ceil(out / blocks)` rows.
    pub blocks: usize,
    /// How many of them are stored.
    pub distinct: usize,
    /// How they share.
    pub method: BlockSharing,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    rows: usize,
}

impl SharedBlocks {
    /// Of `outputs` outputs in blocks of `rows`, from the distinct `blocks` one below the other (`distinct rows x in`) and the number
    /// of the one at each place.
    ///
    /// # Errors
    /// [`Error::Record`] when they do not fit together.
    pub fn new(outputs: usize, rows: usize, blocks: Factor, map: Vec<u32>) -> Result<Self> {
        let bad = |reason: String| Error::record(Self::NAME, reason);
        let (stack, all, _) = blocks.shape();
        if stack != 1 || rows == 0 || all == 0 || all % rows != 0 {
            return Err(bad(format!(
                "blocks of {rows} rows in {stack} x {all} rows: expected a multiple of them in one"
            )));
        }
        if map.len() != outputs.div_ceil(rows) {
            let expected = outputs.div_ceil(rows);
            return Err(bad(format!("a map of {}, expected {expected} blocks of {rows} rows", map.len())));
        }
        match map.iter().find(|&&k| k as usize >= all / rows) {
            Some(k) => Err(bad(format!("the map names block {k} of {}", all / rows))),
            None => Ok(Self { outputs, rows, blocks: blocks.packed_forward(), map }),
        }
    }

    /// From distinct blocks that fit.
    pub(crate) fn from_arrays(
        storage: Storage,
        (outputs, rows): (usize, usize),
        blocks: &Array2<f64>,
        groups: &[usize],
    ) -> Self {
        let blocks = Factor::from_matrix(storage, blocks).packed_forward();
        Self { outputs, rows, blocks, map: groups.iter().map(|&g| g as u32).collect() }
    }

    /// The distinct blocks, one below the other.
    pub fn blocks(&self) -> &Factor {
        &self.blocks
    }

    /// Which of them stands at each place.
    pub fn map(&self) -> &[u32] {
        &self.map
    }

    /// Rows of a block.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of stored blocks.
    pub fn distinct(&self) -> usize {
        self.blocks.rows() / self.rows
    }

    /// Some of the places alone, with the blocks that stand there: one layer of several that share heads. Copies them.
    ///
    /// # Errors
    /// [`Error::Parameter`] for places that are not there, or none.
    pub fn places(&self, range: Range<usize>) -> Result<Self> {
        let Some(map) = self.map.get(range.clone()).filter(|map| !map.is_empty()) else {
            return Err(Error::parameter(
                "places",
                format!("{range:?}"),
                format!("some of 0..{}", self.map.len()),
            ));
        };
        let whole: Vec<usize> = map.iter().map(|&k| k as usize).collect();
        let (groups, firsts) = numbered(&whole);
        let (rows, n) = (self.rows, self.blocks.cols());
        let from = |i: usize| whole[firsts[i / rows]] * rows + i % rows;
        let blocks = Factor::from_fn(self.blocks.storage(), (1, firsts.len() * rows, n), |_, i, j| {
            self.blocks.get(0, from(i), j)
        });
        let outputs = (range.end * rows).min(self.outputs) - range.start * rows;
        Self::new(outputs, rows, blocks, groups.iter().map(|&g| g as u32).collect())
    }

    /// The outputs at each place, and the rows of `blocks` that stand there.
    fn pairs(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        self.map.iter().enumerate().map(|(g, &k)| {
            let start = g * self.rows;
            (start..(start + self.rows).min(self.outputs), k as usize * self.rows)
        })
    }
}

impl<T: Scalar> Multiply<T> for SharedBlocks {
    fn multiply(&self, Operands { op, x, mut y, update, work }: Operands<'_, T>) {
        let policy = work.policy;
        let (mut z, _) = work.matrix(x.rows(), self.blocks.rows());
        match op {
            Op::Forward => {
                self.blocks.multiply(op, x, z.reborrow(), Update::Overwrite, policy);
                for b in 0..x.rows() {
                    let (from, to) = (z.as_rows().row(b), y.row(b));
                    for (place, first) in self.pairs() {
                        let from = &from[first..first + place.len()];
                        match update {
                            Update::Overwrite => to[place].copy_from_slice(from),
                            Update::Accumulate => {
                                to[place].iter_mut().zip(from).for_each(|(to, from)| *to += *from)
                            }
                        }
                    }
                }
            }
            Op::Transpose => {
                z.fill(T::default());
                for b in 0..x.rows() {
                    let (from, to) = (x.row(b), z.row(b));
                    for (place, first) in self.pairs() {
                        to[first..].iter_mut().zip(&from[place]).for_each(|(to, from)| *to += *from);
                    }
                }
                self.blocks.multiply(op, z.as_rows(), y, update, policy);
            }
        }
    }
}

impl<T: Scalar> Differentiate<T> for SharedBlocks {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let mut dz = Array2::zeros((self.blocks.rows(), dy.nrows()));
        for (place, first) in self.pairs() {
            let mut sums = dz.slice_mut(s![first..first + place.len(), ..]);
            sums += &dy.slice(s![.., place]).t();
        }
        vec![stack_gradient(1, &dz, &x.t(), threads)]
    }
}

impl StructuredMatrix for SharedBlocks {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.outputs, self.blocks.cols())
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * self.blocks.len() as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        Workspace::<f32>::matrix_len(batch, self.blocks.rows())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let row = |i: usize| self.map[i / self.rows] as usize * self.rows + i % self.rows;
        Array2::from_shape_fn(self.shape(), |(i, j)| self.blocks.get(0, row(i), j))
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape())
            .with_config(&Settings { rows: self.rows })
            .factor("blocks", &self.blocks)
            .index("map", &self.map)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

/// Blocks of rows of a weight, as the objective sees them.
struct Places<'a> {
    /// `W`, or `W C^{1/2}`.
    seen: &'a Array2<f64>,
    rows: usize,
    count: usize,
    distinct: usize,
}

impl Places<'_> {
    fn new(seen: &Array2<f64>, rows: usize, distinct: usize) -> Places<'_> {
        Places { seen, rows, count: seen.nrows().div_ceil(rows), distinct }
    }

    /// Inner products of the blocks; the last one counts as continued by zeros.
    fn kernel(&self, threads: Threads) -> Array2<f64> {
        let ((m, n), rows) = (self.seen.dim(), self.rows);
        let flat = Array2::from_shape_fn((self.count, rows * n), |(g, k)| {
            let i = g * rows + k / n;
            if i < m { self.seen[[i, k % n]] } else { 0.0 }
        });
        linalg::matmul_nt(&flat, &flat, threads)
    }

    /// The squared distance of the block at place `g` from the shared block `k`, over the rows that it has.
    fn distance(&self, g: usize, means: &Array2<f64>, k: usize) -> f64 {
        let place = g * self.rows..((g + 1) * self.rows).min(self.seen.nrows());
        let squares = |(i, j): (usize, usize)| {
            let rows = self.seen.row(i).into_iter().zip(means.row(j));
            rows.map(|(a, b)| (a - b).powi(2)).sum::<f64>()
        };
        place.enumerate().map(|(r, i)| squares((i, k * self.rows + r))).sum()
    }

    fn energy(&self, groups: &[usize], means: &Array2<f64>) -> f64 {
        groups.iter().enumerate().map(|(g, &k)| self.distance(g, means, k)).sum()
    }

    /// Moves each block to the nearest mean; a mean without blocks takes over the block that fits worst.
    fn assign(&self, groups: &mut [usize]) {
        let means = group_means(self.seen, groups, (self.rows, self.distinct));
        let mut errors = Vec::with_capacity(groups.len());
        for (g, group) in groups.iter_mut().enumerate() {
            let distances: Vec<f64> = (0..self.distinct).map(|k| self.distance(g, &means, k)).collect();
            // Stays where it is unless somewhere else is nearer.
            let best = (0..self.distinct).min_by(|&a, &b| distances[a].total_cmp(&distances[b])).unwrap_or(0);
            if distances[best] < distances[*group] {
                *group = best;
            }
            errors.push(distances[*group]);
        }
        let mut sizes = vec![0usize; self.distinct];
        groups.iter().for_each(|&k| sizes[k] += 1);
        for empty in 0..self.distinct {
            if sizes[empty] > 0 {
                continue;
            }
            let candidates = (0..groups.len()).filter(|&g| sizes[groups[g]] > 1);
            if let Some(worst) = candidates.max_by(|&a, &b| errors[a].total_cmp(&errors[b]).then(b.cmp(&a))) {
                sizes[groups[worst]] -= 1;
                (groups[worst], sizes[empty], errors[worst]) = (empty, 1, 0.0);
            }
        }
    }

    /// Lowers the error from a start; the groups, their energy and the history of errors.
    fn improve(&self, start: Vec<usize>, run: &Run<'_>) -> Result<(Vec<usize>, f64, Vec<f64>)> {
        let energy = |groups: &[usize]| {
            self.energy(groups, &group_means(self.seen, groups, (self.rows, self.distinct)))
        };
        let (first, scale) = (energy(&start), self.seen.iter().map(|v| v * v).sum());
        let stop = Stop { sweeps: 50, tolerance: 1e-9 };
        let found = descend(run, stop, scale, start, first, |groups, _, _| {
            self.assign(groups);
            Ok(energy(groups))
        })?;
        Ok((found.state, found.energy, found.history))
    }
}

/// The mean of each group of blocks, one below the other; rows that no block of a group has are 0.
pub(crate) fn group_means(
    w: &Array2<f64>,
    groups: &[usize],
    (rows, distinct): (usize, usize),
) -> Array2<f64> {
    let mut means = Array2::zeros((distinct * rows, w.ncols()));
    let mut counts = vec![0.0; distinct * rows];
    for (i, row) in w.outer_iter().enumerate() {
        let at = groups[i / rows] * rows + i % rows;
        counts[at] += 1.0;
        let mut mean = means.row_mut(at);
        mean += &row;
    }
    means
        .outer_iter_mut()
        .zip(&counts)
        .filter(|(_, count)| **count > 1.0)
        .for_each(|(mut m, count)| m /= *count);
    means
}

/// The first block of each group, one below the other.
pub(crate) fn first_blocks(w: &Array2<f64>, firsts: &[usize], rows: usize) -> Array2<f64> {
    Array2::from_shape_fn((firsts.len() * rows, w.ncols()), |(i, j)| {
        w.get((firsts[i / rows] * rows + i % rows, j)).copied().unwrap_or(0.0)
    })
}

impl Family for SharedBlocks {
    const NAME: &'static str = "shared_blocks";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("blocks", "number of blocks of rows, such as heads; 32 by default"),
        ("distinct", "how many of them are stored"),
        (
            "method",
            "`least_squares` (default), `cosine`, or `direct` (the first of each group in place of the mean)",
        ),
    ];
    type Spec = SharedBlocksSpec;

    fn spec((m, n): (usize, usize), request: &Request) -> Result<SharedBlocksSpec> {
        let method = match request.get::<String>("method")?.as_deref() {
            None | Some("least_squares") => BlockSharing::LeastSquares,
            Some("cosine") => BlockSharing::Cosine,
            Some("direct") => BlockSharing::Direct,
            Some(other) => return Err(Error::parameter("method", other, "least_squares, cosine or direct")),
        };
        let blocks = request.get_in("blocks", 1..=m.max(1))?.unwrap_or(BLOCKS.min(m)).max(1);
        let rows = m.div_ceil(blocks).max(1);
        let blocks = m.div_ceil(rows).max(1);
        let size =
            |distinct: usize| request.size().factor(1, distinct.saturating_mul(rows), n).indices(blocks);
        let distinct = request.choose(Self::NAME, (m, n), "distinct", 1..=blocks, size)?;
        Ok(SharedBlocksSpec { blocks, distinct, method })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &SharedBlocksSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let (m, SharedBlocksSpec { blocks, distinct, method }) = (w.nrows(), *spec);
        if blocks == 0 || blocks > m {
            return Err(Error::parameter("blocks", blocks, format!("1 to {m}")));
        }
        let rows = m.div_ceil(blocks);
        let count = m.div_ceil(rows);
        if distinct == 0 || distinct > count {
            return Err(Error::parameter("distinct", distinct, format!("1 to {count}")));
        }
        let whitened = objective.root()?.map(|root| linalg::matmul(w, root, run.threads()));
        let plain = Places::new(w, rows, distinct);
        let places = whitened.as_ref().map_or(Places { ..plain }, |seen| Places::new(seen, rows, distinct));
        let build = |values: &Array2<f64>, groups: &[usize]| {
            Self::from_arrays(run.storage(), (m, rows), values, groups)
        };
        if method != BlockSharing::LeastSquares {
            let kernel = places.kernel(run.threads());
            let (root, _) = join_pairs(count, count - distinct, |i, j| {
                let norms = (kernel[[i, i]] * kernel[[j, j]]).sqrt();
                Some(if norms > 0.0 { kernel[[i, j]] / norms } else { 0.0 })
            });
            let (groups, firsts) = numbered(&root);
            let values = match method {
                BlockSharing::Direct => first_blocks(w, &firsts, rows),
                _ => group_means(w, &groups, (rows, distinct)),
            };
            return Ok(Fit::local(build(&values, &groups), Vec::new()));
        }
        let from = |places: &Places<'_>| ward(&places.kernel(run.threads()), distinct, run);
        let mut best = plain.improve(from(&plain)?, run)?;
        if whitened.is_some() {
            let others = [best.0, from(&places)?].map(|start| places.improve(start, run));
            let [plain, own] = others;
            let (plain, own) = (plain?, own?);
            best = if own.1 < plain.1 { own } else { plain };
        }
        let (groups, _, history) = best;
        let matrix = build(&group_means(w, &groups, (rows, distinct)), &groups);
        Ok(match distinct == 1 || distinct == count {
            true => Fit { history: history.clone(), iterations: history.len(), ..Fit::optimal(matrix) },
            false => Fit::local(matrix, history),
        })
    }

    fn random((m, n): (usize, usize), spec: &SharedBlocksSpec, storage: Storage, seed: u64) -> Result<Self> {
        let SharedBlocksSpec { blocks, distinct, .. } = *spec;
        if blocks == 0 || distinct == 0 || distinct > blocks {
            return Err(Error::parameter("distinct", distinct, format!("1 to {blocks}")));
        }
        let rows = m.div_ceil(blocks).max(1);
        let values = Gaussian::new(seed).matrix(distinct * rows, n, (n.max(1) as f64).powf(-0.5));
        // Every distinct block in turn.
        let map = (0..m.div_ceil(rows)).map(|g| (g % distinct) as u32).collect();
        Self::new(m, rows, Factor::from_matrix(storage, &values), map)
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let Settings { rows } = parts.config()?;
        let (blocks, (m, n)) = (parts.take_factor("blocks")?, parts.shape());
        if blocks.cols() != n {
            return Err(parts.error(format!("blocks are {:?}, expected {n} columns", blocks.shape())));
        }
        let map = parts.take_indices("map", blocks.rows())?;
        Self::new(m, rows, blocks, map)
    }
}
