//! Sparse matrices: free positions, `n:m` groups or small blocks.

mod fit;
mod flat;

pub(crate) use fit::{Support, refit};
use flat::FlatButterfly;

use super::expanded::{Expand, Expanded};
use crate::error::{Error, Result};
use crate::gradient::{Differentiate, gathered};
use crate::kernels::{
    Before, Level, Pattern, Sliced, SparseProduct, Spectrum, SpectrumCache, sparse_cost, sparse_scratch_len,
    takes_slices,
};
use crate::linalg::{Threads, matmul_tn};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix};
use crate::parts::{MAX_FEATURES, Parts};
use crate::projection::{Family, Fit, Objective, Request, Run, scale_outputs};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array1, Array2, Array3, ArrayRef2, Axis};
use std::str::FromStr;

/// $W_{ij} = v_p$ where $(i, j)$ is the $p$-th kept position, 0 elsewhere: compressed sparse rows.
///
/// Parameters and multiply-adds: the number of kept positions; each also takes a column index of 2 bytes (4 in files, and where there are
/// more than 65536 inputs), and each row a pointer. Values may have any storage; groups of an integer storage run along the stream of values.
/// On AVX-512 a product of up to three rows takes the values as slices of rows, made on the first one: five bytes for each value, and for each place where
/// a row waits for its slice (a half of the values at 5 %, a tenth from 20 % on). Where more than half of the positions (three quarters of a large matrix) are kept at batch 1, a fifth to a third in
/// batches, by size and instruction set and as measured in `f32`, the dense product takes less time: then the dense matrix is made on the first product and multiplied. In the
/// dense form alone an infinite or NaN input makes outputs NaN even of rows that do not keep its column.
///
/// Projection: the entries of largest magnitude, which is optimal; so it is for a diagonal $C$ with the scores
/// $W_{ij}^2 C_{jj}$. For any other $C$ the one of these two supports that loses less with the entries of $W$ is kept, and its values are refitted,
/// row by row $w_s = (W C)_s C_{ss}^{-1}$, by conjugate gradients that share one product with $C$ per step. Every
/// step lowers the error, and it is never above that of the plain projection.
///
/// Source: S. Han et al., "Learning both weights and connections for efficient neural networks", 2015; A. Mishra et al.,
/// "Accelerating sparse deep neural networks", 2021 (`n:m`); T. Dao et al., "Pixelated butterfly: simple and efficient sparse training for neural
/// network models", 2022 (flat block butterflies, there beside a low-rank part: a [`Sum`](crate::compose::Sum)).
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = array![[3.0f32, 0.1, 0.0], [0.2, -2.0, 0.3]];
/// let spec = SparseSpec { nnz: 2, ..Default::default() };
/// let sparse = Sparse::project(&w, &spec, &Objective::Frobenius, &Options::default())?.matrix;
/// assert_eq!(sparse.to_dense::<f32>(), array![[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Sparse {
    values: Factor,
    pattern: Pattern,
    expanded: Expanded,
    /// Slices of rows, for products of small batches: made on the first one that takes less time with them.
    sliced: SpectrumCache,
}

/// Which positions may be kept together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SparsePattern {
    /// Any.
    #[default]
    Unstructured,
    /// `n` of every `m` consecutive entries of a row.
    NofM {
        /// Kept.
        n: usize,
        /// Of these many.
        m: usize,
    },
    /// Whole `size x size` blocks of a grid; those at the edges are cut.
    Block {
        /// Rows and columns.
        size: usize,
    },
    /// The blocks $(I, J)$ of such a grid with $I = J$, or with $I$ and $J$ that differ in one bit, one of the `strides` lowest: the positions of
    /// the identity and of all stages of a block butterfly together (a flat butterfly, their sum instead of their product). Grids that are not
    /// square are the square one of their shorter side, stretched.
    Butterfly {
        /// Rows and columns of a block.
        size: usize,
        /// How many bits, counted from the lowest; all where there are fewer.
        strides: usize,
    },
}

impl FromStr for SparsePattern {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let expected = "unstructured, n:m with 1 <= n <= m, block=b, butterfly=b or butterfly=b:strides";
            Error::parameter("pattern", text, expected)
        };
        let number = |part: &str| part.parse::<usize>().ok().filter(|&v| v > 0).ok_or_else(bad);
        if text == "unstructured" {
            Ok(SparsePattern::Unstructured)
        } else if let Some(size) = text.strip_prefix("block=") {
            Ok(SparsePattern::Block { size: number(size)? })
        } else if let Some(rest) = text.strip_prefix("butterfly=") {
            let (size, strides) = match rest.split_once(':') {
                Some((size, strides)) => (size, number(strides)?),
                None => (rest, usize::MAX),
            };
            Ok(SparsePattern::Butterfly { size: number(size)?, strides })
        } else {
            let (n, m) = text.split_once(':').ok_or_else(bad)?;
            let (n, m) = (number(n)?, number(m)?);
            if n <= m { Ok(SparsePattern::NofM { n, m }) } else { Err(bad()) }
        }
    }
}

/// Parameters of [`Sparse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseSpec {
    /// Positions kept, at most `out * in`. `n:m` and butterfly patterns determine it; of blocks as many are kept as surely fit.
    pub nnz: usize,
    /// Which positions may be kept together.
    pub pattern: SparsePattern,
}

impl Default for SparseSpec {
    fn default() -> Self {
        Self { nnz: 1, pattern: SparsePattern::default() }
    }
}

impl Sparse {
    /// From values (1 x nnz), their columns, and where the values of each row start (`out + 1` pointers).
    ///
    /// # Errors
    /// [`Error::Record`] when they do not fit together: columns must ascend within a row.
    pub fn new(shape: (usize, usize), values: Factor, cols: Vec<u32>, starts: Vec<u32>) -> Result<Self> {
        let parts = Parts::new(Self::NAME, shape);
        Self::from_parts(parts.factor("values", values).index("cols", cols).index("starts", starts))
    }

    /// The entries of `w` on a support.
    pub(crate) fn keep(storage: Storage, w: &Array2<f64>, support: Support) -> Self {
        let kept: Vec<f64> = support.positions().map(|at| w[at]).collect();
        let values = Factor::from_fn(storage, (1, 1, kept.len()), |_, _, p| kept[p]);
        let pattern = Pattern::new(w.ncols(), support.starts, support.cols);
        let pattern = pattern.expect("supports ascend, inside of the weight");
        Self::of(values, pattern)
    }

    fn of(values: Factor, pattern: Pattern) -> Self {
        Self { values, pattern, expanded: Expanded::default(), sliced: SpectrumCache::default() }
    }

    /// The matrix as slices of rows, where a product of so many batch rows takes less time with them.
    fn sliced<T: Scalar>(&self, op: Op, batch: usize, level: Level) -> Option<&Sliced<T>> {
        let value = |p| T::narrow(self.values.get(0, 0, p));
        let make = || Spectrum { sliced: Sliced::new(&self.pattern, value), ..Default::default() };
        if takes_slices(&self.pattern, op, batch, level) {
            self.sliced.get::<T>(make).sliced.as_ref()
        } else {
            None
        }
    }

    /// Number of kept positions.
    pub fn nnz(&self) -> usize {
        self.pattern.len()
    }

    /// The kept positions, row by row.
    pub fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.pattern.positions()
    }
}

impl Expand for Sparse {
    fn expanded(&self) -> &Expanded {
        &self.expanded
    }
    fn numbers(&self) -> usize {
        self.nnz()
    }
    fn own_flops(&self) -> u64 {
        2 * self.nnz() as u64
    }
    fn cost(&self, op: Op, batch: usize) -> u64 {
        2 * sparse_cost(&self.pattern, op, batch)
    }
}

impl Sparse {
    /// Whether a product goes through the rows in slices, and so cheaply that handing them over to threads counts.
    pub(crate) fn takes_slices(&self, op: Op, batch: usize, level: Level) -> bool {
        !self.is_expanded(op, batch) && takes_slices(&self.pattern, op, batch, level)
    }

    /// The product of the matrix itself, each thread running `before` for its outputs first.
    pub(crate) fn multiply_after<T: Scalar>(&self, before: Option<Before<'_, T>>, operands: Operands<'_, T>) {
        let Operands { op, x, y, update, work } = operands;
        let sliced = self.sliced::<T>(op, x.rows(), work.policy.level);
        let (pattern, policy) = (&self.pattern, work.policy);
        let (scratch, _) = work.slice(sparse_scratch_len(x.rows(), pattern.rows(), pattern.width()));
        let product = SparseProduct { pattern, sliced, op, x, y, update, before, scratch, policy };
        self.values.multiply_sparse(product);
    }
}

impl<T: Scalar> Multiply<T> for Sparse {
    fn multiply(&self, operands: Operands<'_, T>) {
        if let Some(operands) = self.multiply_densely(operands) {
            self.multiply_after(None, operands);
        }
    }
}

/// Multiply-adds of a dense product in the time of one of a product of two rows, about; with more positions the dense gradient, of as many
/// numbers per kept one at most, is the quicker way.
const DOTTED: usize = 32;

impl<T: Scalar> Differentiate<T> for Sparse {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let (m, n) = self.shape();
        let values: Array1<T> = if self.nnz().saturating_mul(DOTTED) > m.saturating_mul(n) {
            let dense = matmul_tn(dy, x, threads);
            self.positions().map(|at| dense[at]).collect()
        } else {
            // Features x batch: each value is a product of two rows.
            let (x, dy) = (gathered(&x.t(), 0..x.ncols()), gathered(&dy.t(), 0..dy.ncols()));
            self.positions().map(|(i, j)| dy.row(i).dot(&x.row(j))).collect()
        };
        vec![values.insert_axis(Axis(0)).insert_axis(Axis(0))]
    }
}

impl StructuredMatrix for Sparse {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.pattern.rows(), self.pattern.width())
    }
    fn flops(&self, batch: usize) -> u64 {
        self.product_flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let len = sparse_scratch_len(self.own_rows(batch), self.pattern.rows(), self.pattern.width());
        crate::exec::Workspace::<f32>::slice_len(len)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let mut w = Array2::zeros(self.shape());
        for (p, at) in self.positions().enumerate() {
            w[at] = self.values.get(0, 0, p);
        }
        w
    }
    fn parts(&self) -> Parts<'_> {
        let (pattern, bytes) = (&self.pattern, Pattern::index_bytes(self.pattern.width()));
        Parts::new(Self::NAME, self.shape())
            .factor("values", &self.values)
            .index_of("cols", pattern.cols(), bytes)
            .index("starts", pattern.starts())
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

/// The most positions that 4-byte pointers can count.
pub(crate) fn most_positions((out, inp): (usize, usize)) -> usize {
    out.saturating_mul(inp).min(u32::MAX as usize)
}

/// What columns and row pointers take, in indices of 4 bytes.
pub(crate) fn index_words(nnz: usize, (out, inp): (usize, usize)) -> usize {
    nnz.div_ceil(4 / Pattern::index_bytes(inp)).saturating_add(out + 1)
}

/// `density` of a request as a number of positions, at least 1.
pub(crate) fn density(request: &Request, shape: (usize, usize)) -> Result<Option<usize>> {
    match request.get::<f64>("density")? {
        None => Ok(None),
        Some(d) if d > 0.0 && d <= 1.0 => Ok(Some(
            ((d * shape.0 as f64 * shape.1 as f64 + 1e-9) as usize).clamp(1, most_positions(shape).max(1)),
        )),
        Some(d) => Err(Error::parameter("density", d, "above 0, at most 1")),
    }
}

impl Family for Sparse {
    const NAME: &'static str = "sparse";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("nnz", "number of kept entries"),
        ("density", "kept entries as a fraction of all"),
        (
            "pattern",
            "`unstructured` (default), `n:m` (such as `2:4`), `block=b`, `butterfly=b` or `butterfly=b:strides`",
        ),
    ];
    type Spec = SparseSpec;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<SparseSpec> {
        let pattern = request.get("pattern")?.unwrap_or_default();
        let size = |nnz: usize| request.size().factor(1, 1, nnz).indices(index_words(nnz, (out, inp)));
        let first = match pattern {
            SparsePattern::Block { size } => size.saturating_mul(size).min(out.saturating_mul(inp)),
            _ => 1,
        };
        if let SparsePattern::NofM { n, m } = pattern {
            let nnz = out.saturating_mul(inp / m * n + (inp % m).min(n));
            request.require(Self::NAME, (out, inp), size(nnz))?;
            return Ok(SparseSpec { nnz, pattern });
        }
        if let SparsePattern::Butterfly { size: block, strides } = pattern {
            if out.max(inp) > MAX_FEATURES {
                return Err(Error::shape(
                    "weight",
                    &[out.min(MAX_FEATURES), inp.min(MAX_FEATURES)],
                    &[out, inp],
                ));
            }
            let nnz = FlatButterfly::new((out, inp), block, strides).positions();
            request.require(Self::NAME, (out, inp), size(nnz))?;
            return Ok(SparseSpec { nnz, pattern });
        }
        let nnz = match density(request, (out, inp))? {
            Some(nnz) => request.require(Self::NAME, (out, inp), size(nnz)).map(|()| nnz)?,
            None => {
                request.choose(Self::NAME, (out, inp), "nnz", first..=most_positions((out, inp)), size)?
            }
        };
        Ok(SparseSpec { nnz, pattern })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &SparseSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        fit::fit(w, spec, objective, run)
    }

    fn random(shape: (usize, usize), spec: &SparseSpec, storage: Storage, seed: u64) -> Result<Self> {
        let mut gaussian = Gaussian::new(seed);
        let scores = gaussian.matrix(shape.0, shape.1, 1.0).mapv(|v| v * v);
        let support = Support::choose(&scores, spec)?;
        let scale = (shape.0 as f64 / support.cols.len().max(1) as f64).sqrt();
        Ok(Self::keep(storage, &gaussian.matrix(shape.0, shape.1, scale), support))
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        let starts = self.pattern.starts();
        scale_outputs(self, scale, storage, |_, (_, _, place)| {
            starts.partition_point(|start| *start as usize <= place).checked_sub(1)
        })
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (m, n) = parts.shape();
        let values = parts.take_factor("values")?;
        let nnz = values.cols();
        let cols = parts.take_indices("cols", n)?;
        let starts = parts.take_indices("starts", nnz.saturating_add(1))?;
        let (lists, fits) = ((cols.len(), starts.len()), values.shape() == (1, 1, nnz));
        let pattern = (fits && lists == (nnz, m + 1)).then(|| Pattern::new(n, starts, cols)).flatten();
        let Some(pattern) = pattern else {
            return Err(parts.error(format!(
                "values {:?}, {} columns, {} row pointers: expected (1, 1, nnz), nnz that ascend in each row, {} from 0 to nnz",
                values.shape(),
                lists.0,
                lists.1,
                m + 1
            )));
        };
        Ok(Self::of(values, pattern))
    }
}
