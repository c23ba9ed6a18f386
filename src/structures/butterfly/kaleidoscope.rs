//! Kaleidoscope matrices: a butterfly and a transposed butterfly.

use super::fit::{Stage, Stages, pair};
use super::routing::route;
use super::{Butterfly, ButterflySpec};
use crate::compose::check_permutation;
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, factor_gradients, product};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run};
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use crate::structures::expanded::{Expand, Expanded, SMALL};
use ndarray::{Array2, Array3, ArrayRef2};

/// $W = B_1 B_2^T$ with two butterflies of the same size $N = b 2^L$ ([`Butterfly`]), cut to shape: the stages of $B_2^T$ mix the bits of the
/// block index from the highest to the lowest, those of $B_1$ from the lowest to the highest.
///
/// Parameters and multiply-adds: $4 b N L$. In small blocks these take several times as long as a dense product's: where the dense product takes less
/// time, by batch and size of the blocks, for more than $2^{14}$ entries, the dense matrix is made on the first one and multiplied. Butterflies and their transposes are members (the other factor is the identity), and so is every
/// permutation, by the routing of a Benes network ([`permutation`](Self::permutation)).
///
/// Projection: the better of the butterfly nearest to $W$ and the transpose of the one nearest to $W^T$, then sweeps of least squares over
/// the stages of both factors, which never raise the error: a local optimum, without activations and before rounding never worse than a butterfly of the same blocks. No sweeps for
/// matrices of more than $2^{20}$ entries. With activations further sweeps follow, from the plain projection.
///
/// Source: T. Dao et al., "Kaleidoscope: an efficient, learnable representation for all structured linear maps", 2020; V. Beneš,
/// "Optimal rearrangeable multistage connecting networks", 1964.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = Kaleidoscope::permutation(&[2, 0, 3, 1], Storage::F32)?;
/// assert_eq!(w.matvec(&array![10.0f32, 11.0, 12.0, 13.0])?, array![12.0, 10.0, 13.0, 11.0]);
/// assert_eq!(w.n_params(), 4 * 4 * 2);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Kaleidoscope {
    /// `out x N`.
    left: Butterfly,
    /// `in x N`, laid out for products with its transpose.
    right: Butterfly,
    expanded: Expanded,
}

/// Parameters of [`Kaleidoscope`]: those of its two butterflies.
pub type KaleidoscopeSpec = ButterflySpec;

impl Kaleidoscope {
    /// `left rightᵀ`, with `left` of `out x N` and `right` of `in x N`.
    ///
    /// # Errors
    /// [`Error::Record`] when the butterflies have other sizes than `N`, or blocks of different sizes.
    pub fn new(left: Butterfly, right: Butterfly) -> Result<Self> {
        let size = left.size();
        let fits = left.shape().1 == size
            && right.shape().1 == size
            && right.size() == size
            && left.block() == right.block();
        match fits {
            true => Ok(Self::of(left, right)),
            false => {
                let of = |b: &Butterfly| {
                    format!("{:?} of size {} with blocks of {}", b.shape(), b.size(), b.block())
                };
                let (left, right) = (of(&left), of(&right));
                Err(Error::record(
                    Self::NAME,
                    format!("butterflies {left} and {right}: expected (out, N) and (in, N) of size N"),
                ))
            }
        }
    }

    /// The permutation with `y[j] = x[order[j]]`, routed as a Benes network: every number is 0 or 1, which integer storages
    /// round. The size is the next power of two.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `order` is empty or no permutation.
    pub fn permutation(order: &[u32], storage: Storage) -> Result<Self> {
        let n = order.len();
        if n == 0 {
            return Err(Error::parameter("order", "an empty list", "at least one feature"));
        }
        check_permutation("order", order, n)?;
        let spec = ButterflySpec { block: 1 };
        let levels = spec.levels((n, n))?;
        let all = order.iter().map(|&i| i as usize).chain(n..1 << levels);
        let switches = route(all.collect(), levels);
        let butterfly = |exchanged: &[Vec<bool>]| {
            let stage = |(bit, exchanged): (usize, &Vec<bool>)| {
                Factor::from_fn(storage, (1 << (levels - 1), 2, 2), |k, i, j| {
                    f64::from(u8::from((i != j) == exchanged[pair(levels, bit, k).0]))
                })
            };
            Butterfly::new((n, 1 << levels), exchanged.iter().enumerate().map(stage).collect())
        };
        Self::new(butterfly(&switches.outputs)?, butterfly(&switches.inputs)?)
    }

    /// $B_1$, `out x N`.
    pub fn left(&self) -> &Butterfly {
        &self.left
    }

    /// $B_2$, `in x N`.
    pub fn right(&self) -> &Butterfly {
        &self.right
    }

    fn from_stages(mut found: Stages, (m, n): (usize, usize), storage: Storage) -> Self {
        let left = Stages { stages: found.stages.split_off(found.levels), ..found };
        let right = Stages { stages: turned(found.stages), ..left };
        let size = left.block << left.levels;
        let right = Butterfly::from_stages(&right, (n, size), storage);
        Self::of(Butterfly::from_stages(&left, (m, size), storage), right)
    }

    fn of(left: Butterfly, right: Butterfly) -> Self {
        Self { left, right: right.for_transpose(), expanded: Expanded::default() }
    }
}

/// The stages of the transpose.
fn turned(stages: Vec<Stage>) -> Vec<Stage> {
    let turn = |Stage { bit, blocks }| Stage {
        bit,
        blocks: blocks.into_iter().map(|block: Array2<f64>| block.reversed_axes()).collect(),
    };
    stages.into_iter().rev().map(turn).collect()
}

/// Stages that do nothing.
fn identity(block: usize, levels: usize) -> Vec<Stage> {
    let blocks = vec![Array2::eye(2 * block); 1 << (levels - 1)];
    (0..levels).map(|bit| Stage { bit, blocks: blocks.clone() }).collect()
}

impl Expand for Kaleidoscope {
    fn expanded(&self) -> &Expanded {
        &self.expanded
    }
    fn numbers(&self) -> usize {
        self.left.numbers() + self.right.numbers()
    }
    fn own_flops(&self) -> u64 {
        2 * self.numbers() as u64
    }
    /// Nothing for small matrices.
    fn cost(&self, _: Op, batch: usize) -> u64 {
        let ((m, n), side) = (self.shape(), 2 * self.left.block());
        let each = match m.saturating_mul(n) {
            ..=SMALL => 0,
            _ if side >= 32 || (batch == 1 && side >= 16) => 2,
            _ => 5,
        };
        each * self.own_flops()
    }
}

impl<T: Scalar> Multiply<T> for Kaleidoscope {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(Operands { op, x, y, update, work }) = self.multiply_densely(operands) else { return };
        let (last, first) = op.order(&self.left, &self.right);
        let (mut middle, mut work) = work.matrix(x.rows(), self.left.size());
        first.multiply(Operands {
            op: Op::Transpose,
            x,
            y: middle.reborrow(),
            update: Update::Overwrite,
            work: work.reborrow(),
        });
        last.multiply(Operands { op: Op::Forward, x: middle.as_rows(), y, update, work });
    }
}

impl<T: Scalar> Differentiate<T> for Kaleidoscope {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let middle = product(&self.right, Op::Transpose, x, threads);
        let mut gradients = factor_gradients(&self.left, &middle, dy, threads);
        let middle = product(&self.left, Op::Transpose, dy, threads);
        gradients.extend(factor_gradients(&self.right, &middle, x, threads));
        gradients
    }
}

impl StructuredMatrix for Kaleidoscope {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.left.shape().0, self.right.shape().0)
    }
    fn flops(&self, batch: usize) -> u64 {
        self.product_flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let batch = self.own_rows(batch);
        Workspace::<f32>::matrix_len(batch, self.left.size()) + self.left.scratch_len(batch)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        self.left.to_dense_f64().dot(&self.right.to_dense_f64().t())
    }
    fn parts(&self) -> Parts<'_> {
        let parts = Parts::new(Self::NAME, self.shape()).with_config(&self.left.size());
        parts.child(self.left.parts()).child(self.right.parts())
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Kaleidoscope {
    const NAME: &'static str = "kaleidoscope";
    const PARAMETERS: &'static [(&'static str, &'static str)] = Butterfly::PARAMETERS;
    type Spec = KaleidoscopeSpec;

    fn spec(shape: (usize, usize), request: &Request) -> Result<KaleidoscopeSpec> {
        ButterflySpec::choose(Self::NAME, shape, request, 2)
    }

    fn fit(
        w: &Array2<f64>,
        spec: &KaleidoscopeSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let (levels, block) = (spec.levels(w.dim())?, spec.block);
        let forward = Stages::project(w, block, levels, run)?;
        let backward = Stages::project(&w.t().as_standard_layout().into_owned(), block, levels, run)?;
        let nothing = identity(block, levels);
        // The factor on the right acts first.
        let stages = if backward.energy < forward.energy {
            turned(backward.state.stages).into_iter().chain(nothing).collect()
        } else {
            nothing.into_iter().rev().chain(forward.state.stages).collect()
        };
        let (small, medium) = (w.len() <= 1 << 14, w.len() <= 1 << 20);
        let effort = if small { (30, 8) } else { (if medium { 2 } else { 0 }, 3) };
        let start = Stages { block, levels, stages };
        let mut found = start.improve(w, &Objective::Frobenius, effort, run)?;
        if objective.second_moment().is_some() {
            let effort = if small { (10, 8) } else { (2, 3) };
            found = found.state.improve(w, objective, effort, run)?;
        }
        Ok(Fit::local(Self::from_stages(found.state, w.dim(), run.storage()), found.history))
    }

    fn random((m, n): (usize, usize), spec: &KaleidoscopeSpec, storage: Storage, seed: u64) -> Result<Self> {
        let size = spec.block << spec.levels((m, n))?;
        let left = Butterfly::random((m, size), spec, storage, seed)?;
        Self::new(left, Butterfly::random((n, size), spec, storage, seed.wrapping_add(1))?)
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let ((m, n), size) = (parts.shape(), parts.config()?);
        Self::new(parts.take_child_of((m, size))?, parts.take_child_of((n, size))?)
    }
}
