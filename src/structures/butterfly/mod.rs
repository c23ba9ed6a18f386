//! Butterfly matrices.

mod fit;
mod kaleidoscope;
mod routing;

pub use kaleidoscope::{Kaleidoscope, KaleidoscopeSpec};

use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, Stage, stage_gradients};
use crate::kernels::PanelMap;
use crate::linalg::Threads;
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, Size};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use fit::Stages;
use ndarray::{Array2, Array3, ArrayRef2, s};

/// $W = X_1 X_2 \cdots X_L$ with $X_l$ supported on $I_{2^{l-1}} \otimes 1_{2 \times 2} \otimes I_{2^{L-l}} \otimes 1_{b \times b}$: the sparsity of the
/// fast Hadamard and Fourier transforms (the latter with bit-reversed columns), with $b \times b$ blocks for numbers.
///
/// The size is $N = b 2^L$; other shapes, and rectangular ones, are cut from the upper left corner of it. Parameters and
/// multiply-adds: $2 b N L$. $X_L$ acts first, on neighbouring blocks. Stage `t` is $X_{L-t}$, a stack of $2^{L-1}$ blocks of $2b \times 2b$ that
/// mix the block indices that differ in bit `t`; each product also moves bits by a perfect shuffle, so that all stages read and write
/// alike, and after $L$ of them the order is the natural one again.
///
/// Projection: hierarchical splitting by truncated decompositions of disjoint parts, exact for butterflies, then sweeps of least
/// squares over the stages, which never raise the error (few or none for large matrices). With activations further sweeps
/// follow, from the plain projection.
///
/// Source: L. Zheng, E. Riccietti and R. Gribonval, "Efficient identification of butterfly sparse matrix
/// factorizations", 2023; T. Dao et al., "Learning fast algorithms for linear transforms using butterfly
/// factorizations", 2019.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let sign = |i: usize, j: usize| if (i & j).count_ones() % 2 == 0 { 1.0f32 } else { -1.0 };
/// let hadamard = Array2::from_shape_fn((16, 16), |(i, j)| sign(i, j));
/// let spec = ButterflySpec { block: 1 };
/// let butterfly = Butterfly::project(&hadamard, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(butterfly.report.relative_error < 1e-6);
/// assert_eq!(butterfly.matrix.n_params(), 2 * 16 * 4);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Butterfly {
    shape: (usize, usize),
    stages: Vec<Factor>,
}

/// Parameters of [`Butterfly`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ButterflySpec {
    /// Size `b` of the blocks that stand for numbers, at most half the size of the matrix.
    pub block: usize,
}

impl ButterflySpec {
    /// The least `L` with `b 2^L` at least the larger side; at least 1.
    fn levels(&self, (m, n): (usize, usize)) -> Result<usize> {
        let size = m.max(n).max(1);
        if self.block == 0 || self.block > size.div_ceil(2) {
            return Err(Error::parameter("block", self.block, format!("1 to {}", size.div_ceil(2))));
        }
        let blocks = size.div_ceil(self.block).max(2);
        Ok(blocks.next_power_of_two().trailing_zeros() as usize)
    }

    /// Adds what `count` butterflies take.
    fn size(&self, shape: (usize, usize), count: usize, empty: Size) -> Result<Size> {
        let levels = self.levels(shape)?;
        Ok(empty.factor((count * levels).saturating_mul(1 << (levels - 1)), 2 * self.block, 2 * self.block))
    }

    /// The blocks of the largest product of `count` butterflies that `request` allows.
    fn choose(structure: &str, shape: (usize, usize), request: &Request, count: usize) -> Result<Self> {
        if let Some(block) = request.get::<usize>("block")? {
            let spec = ButterflySpec { block };
            let size = spec.size(shape, count, request.size())?;
            return request.require(structure, shape, size).map(|()| spec);
        }
        if request.the_budget().is_none() {
            return Err(Error::parameter("block", "nothing", "a value, or a budget"));
        }
        // For each number of levels the block that pads least.
        let side = shape.0.max(shape.1).max(1);
        let mut candidates = Vec::new();
        for levels in 1..=side.max(2).next_power_of_two().trailing_zeros() as usize {
            let spec = ButterflySpec { block: side.div_ceil(1 << levels) };
            candidates.push((spec, spec.size(shape, count, request.size())?));
        }
        let smallest = candidates.iter().map(|(_, size)| *size).min_by_key(|size| (size.params, size.bytes));
        if let Some(smallest) = smallest {
            request.require(structure, shape, smallest)?;
        }
        let allowed = candidates.into_iter().filter(|(_, size)| request.allows(shape, *size));
        let largest = allowed.max_by_key(|(_, size)| size.params);
        largest.map(|(spec, _)| spec).ok_or_else(|| Error::parameter("block", "nothing", "a larger budget"))
    }
}

impl Butterfly {
    /// A butterfly from its stages, the first to act first: stacks of `2^(L-1)` blocks of `2b x 2b`.
    ///
    /// # Errors
    /// [`Error::Record`] when the sizes do not fit together.
    pub fn new(shape: (usize, usize), stages: Vec<Factor>) -> Result<Self> {
        let parts = Parts::new(Self::NAME, shape).with_config(&stages.len());
        let named = stages.into_iter().enumerate();
        Self::from_parts(named.fold(parts, |parts, (t, stage)| parts.factor(format!("stage{t}"), stage)))
    }

    /// Size of the blocks that stand for numbers.
    pub fn block(&self) -> usize {
        self.stages[0].rows() / 2
    }

    /// Stored numbers.
    fn numbers(&self) -> usize {
        self.stages.iter().map(Factor::len).sum()
    }

    /// `b 2^L`.
    fn size(&self) -> usize {
        self.stages[0].blocks() * self.stages[0].rows()
    }

    fn from_stages(found: &Stages, shape: (usize, usize), storage: Storage) -> Self {
        let side = 2 * found.block;
        let stages =
            found.stages.iter().map(|stage| Factor::from_blocks(storage, (side, side), &stage.blocks));
        Self { shape, stages: stages.map(laid_out).collect() }
    }
}

/// Where the features of a stage of blocks of `2b x 2b` lie.
fn stage_map(stage: &Factor) -> PanelMap {
    PanelMap::interleaved(stage.blocks(), stage.rows(), stage.cols(), stage.rows() / 2)
}

fn laid_out(stage: Factor) -> Factor {
    laid_out_for(Op::Forward, stage)
}

fn laid_out_for(op: Op, stage: Factor) -> Factor {
    let map = stage_map(&stage);
    stage.packed_for(op, map)
}

impl Butterfly {
    /// Laid out for products with its transpose.
    fn for_transpose(self) -> Self {
        let stages = self.stages.into_iter().map(|stage| laid_out_for(Op::Transpose, stage.into_rows()));
        Self { stages: stages.collect(), ..self }
    }
}

impl<T: Scalar> Multiply<T> for Butterfly {
    fn multiply(&self, Operands { op, x, mut y, update, work }: Operands<'_, T>) {
        let (batch, size, policy) = (x.rows(), self.size(), work.policy);
        let (mut from, work) = work.matrix(batch, size);
        let (mut to, _) = work.matrix(batch, size);
        for i in 0..batch {
            let (kept, pad) = from.row(i).split_at_mut(x.cols());
            kept.copy_from_slice(x.row(i));
            pad.fill(T::default());
        }
        for step in 0..self.stages.len() {
            let stage = &self.stages[op.order(step, self.stages.len() - 1 - step).0];
            stage.multiply_blocks(
                stage_map(stage),
                op,
                from.as_rows(),
                to.reborrow(),
                Update::Overwrite,
                policy,
            );
            std::mem::swap(&mut from, &mut to);
        }
        for i in 0..batch {
            let row = y.row(i);
            match update {
                Update::Overwrite => row.copy_from_slice(&from.row(i)[..row.len()]),
                Update::Accumulate => row.iter_mut().zip(from.row(i)).for_each(|(to, from)| *to += *from),
            }
        }
    }
}

impl<T: Scalar> Differentiate<T> for Butterfly {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let stage = |factor: &Factor| {
            let (blocks, side, _) = factor.shape();
            Stage::new(factor, PanelMap::interleaved(blocks, side, side, side / 2))
        };
        // The first stage acts first.
        let stages: Vec<_> = self.stages.iter().rev().map(stage).collect();
        let mut gradients = stage_gradients(&stages, x, dy, threads);
        gradients.reverse();
        gradients
    }
}

impl StructuredMatrix for Butterfly {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * self.n_params() as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        2 * Workspace::<f32>::matrix_len(batch, self.size())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let mut dense = Array2::eye(self.size());
        for (t, stage) in self.stages.iter().enumerate() {
            let blocks: Vec<_> = (0..stage.blocks()).map(|k| stage.matrix(k)).collect();
            fit::apply(&blocks, self.stages.len(), t, false, &mut dense);
        }
        dense.slice(s![..self.shape.0, ..self.shape.1]).to_owned()
    }
    fn parts(&self) -> Parts<'_> {
        let parts = Parts::new(Self::NAME, self.shape).with_config(&self.stages.len());
        let named = self.stages.iter().enumerate();
        named.fold(parts, |parts, (t, stage)| parts.factor(format!("stage{t}"), stage))
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Butterfly {
    const NAME: &'static str = "butterfly";
    const PARAMETERS: &'static [(&'static str, &'static str)] =
        &[("block", "size of the blocks that stand for numbers; the largest within the budget by default")];
    type Spec = ButterflySpec;

    fn spec(shape: (usize, usize), request: &Request) -> Result<ButterflySpec> {
        ButterflySpec::choose(Self::NAME, shape, request, 1)
    }

    fn fit(
        w: &Array2<f64>,
        spec: &ButterflySpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let mut found = Stages::project(w, spec.block, spec.levels(w.dim())?, run)?;
        if objective.second_moment().is_some() {
            let effort = if w.len() > 1 << 18 { (2, 3) } else { (10, 8) };
            found = found.state.improve(w, objective, effort, run)?;
        }
        Ok(Fit::local(Self::from_stages(&found.state, w.dim(), run.storage()), found.history))
    }

    fn random(shape: (usize, usize), spec: &ButterflySpec, storage: Storage, seed: u64) -> Result<Self> {
        let (levels, b) = (spec.levels(shape)?, spec.block);
        let (mut gaussian, side, blocks) = (Gaussian::new(seed), 2 * b, 1 << (levels - 1));
        let stage = |_| {
            let all = gaussian.matrix(blocks * side, side, (side as f64).powf(-0.5));
            Factor::from_fn(storage, (blocks, side, side), |k, i, j| all[[k * side + i, j]])
        };
        Self::new(shape, (0..levels).map(stage).collect())
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (levels, shape): (usize, _) = (parts.config()?, parts.shape());
        if !(1..=32).contains(&levels) {
            return Err(parts.error(format!("{levels} stages: expected 1 to 32")));
        }
        let mut stages = Vec::with_capacity(levels);
        for t in 0..levels {
            stages.push(parts.take_factor(&format!("stage{t}"))?);
        }
        let (blocks, side, cols) = stages[0].shape();
        let size = blocks.checked_mul(side).unwrap_or(0);
        let fits = blocks == 1 << (levels - 1)
            && side > 0
            && side.is_multiple_of(2)
            && side == cols
            && size >= shape.0.max(shape.1)
            && stages.iter().all(|stage| stage.shape() == stages[0].shape());
        if !fits {
            let shapes: Vec<_> = stages.iter().map(Factor::shape).collect();
            return Err(parts.error(format!("stages {shapes:?}: expected equal ones, (2^(L-1), 2b, 2b)")));
        }
        Ok(Self { shape, stages: stages.into_iter().map(laid_out).collect() })
    }
}
