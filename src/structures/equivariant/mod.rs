//! Maps between tensors that commute with a group.

mod diagram;
mod group;
mod plan;

pub use diagram::EquivariantDiagram;
pub use group::EquivariantGroup;
use group::MOST_AXES;

use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::Differentiate;
use crate::kernels::{Rows, RowsMut};
use crate::linalg::{SpdSolver, Threads, matmul_into};
use crate::matrix::{Multiply, Operands, StructuredMatrix, Update};
use crate::parts::{MAX_FEATURES, Parts};
use crate::projection::{Family, Fit, Objective, Request, Run, Weighted};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, Axis, s};
use plan::{Half, Plan, turn};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// $W = \sum_d E_d \otimes \Lambda_d$, from $(\mathbb{R}^n)^{\otimes k} \otimes \mathbb{R}^{c_{in}}$ to
/// $(\mathbb{R}^n)^{\otimes l} \otimes \mathbb{R}^{c_{out}}$: all linear maps that commute with a group $G$ of $n \times n$ matrices,
/// $W (g^{\otimes k} \otimes I) = (g^{\otimes l} \otimes I) W$. The diagrams $E_d$ ([`EquivariantDiagram`]) are fixed, the $\Lambda_d$ are
/// $c_{out} \times c_{in}$ matrices that mix channels.
///
/// The shape is $n^l c_{out} \times n^k c_{in}$: features are the indices of the tensor, the first axis slowest, and last the channel. `n`, `l` and `k` are
/// parameters, the numbers of channels follow. The numbers of diagrams are [`EquivariantGroup::count`]. They are independent for
/// $S_n$, for $O(n)$ where $n \ge (l + k) / 2$, and for $Sp(n)$ where $n \ge l + k$; otherwise some parameters may be redundant. A bias is
/// the case $k = 0$.
///
/// Parameters: a $\Lambda_d$ for each diagram. The product never forms a map between the tensors: a diagram with $c$ blocks on both sides, $b$ below
/// and $t$ above reads $n^{c + b}$ entries of the input, mixes $n^c$ and writes $n^{c + t}$, per channel; diagrams with the
/// same lower half share the reading, those with the same upper half the writing.
///
/// Projection: the least-squares problem of the $\Lambda_d$, whose normal equations are the inner products of the diagrams
/// ([`EquivariantDiagram::inner`], in closed form): optimal. With activations, conjugate gradients on the normal equations, the optimum when they
/// converge.
///
/// Source: E. Pearce-Crump, "An algorithm for computing with Brauer's group equivariant neural network layers", 2023.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// // A layer of a network on sets: what commutes with permutations of three elements.
/// let spec = EquivariantSpec { group: EquivariantGroup::Symmetric, n: 3, out_axes: 1, in_axes: 1 };
/// let lambda = Factor::from_fn(Storage::F32, (2, 1, 1), |d, _, _| [2.0, 0.5][d]);
/// let w = Equivariant::new((3, 3), spec, lambda)?;
/// assert_eq!(w.to_dense::<f32>(), array![[2.5, 0.5, 0.5], [0.5, 2.5, 0.5], [0.5, 0.5, 2.5]]);
/// // Diagrams from two axes to two axes that commute with rotations.
/// assert_eq!(EquivariantGroup::Orthogonal.count(3, 4), Some(3));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Equivariant {
    shape: (usize, usize),
    spec: EquivariantSpec,
    /// A block for each diagram.
    lambda: Factor,
    plan: Arc<Plan>,
}

/// Parameters of [`Equivariant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EquivariantSpec {
    /// What the map commutes with.
    pub group: EquivariantGroup,
    /// Size of each axis.
    pub n: usize,
    /// `l`: axes of the output.
    pub out_axes: usize,
    /// `k`: axes of the input.
    pub in_axes: usize,
}

impl EquivariantSpec {
    /// `(c_out, c_in)` for a matrix of `shape`, and the number of diagrams.
    fn sizes(&self, shape: (usize, usize)) -> Result<((usize, usize), usize)> {
        let Self { group, n, out_axes, in_axes } = *self;
        if shape.0.max(shape.1) > MAX_FEATURES {
            let expected = format!("at most {MAX_FEATURES} features");
            return Err(Error::parameter("shape", format!("{shape:?}"), expected));
        }
        let axes = out_axes.saturating_add(in_axes);
        let count = group.checked_count(n, axes)?;
        let channels = |features: usize, axes: usize| {
            let entries = u32::try_from(axes).ok().and_then(|axes| n.checked_pow(axes));
            match entries {
                Some(entries) if features > 0 && features.is_multiple_of(entries) => Ok(features / entries),
                _ => {
                    let received = format!("{n} with {axes} axes");
                    Err(Error::parameter("n", received, format!("n^axes that divides {features} features")))
                }
            }
        };
        Ok(((channels(shape.0, out_axes)?, channels(shape.1, in_axes)?), count))
    }

    fn plan(&self) -> Result<Arc<Plan>> {
        let diagrams = self.group.diagrams(self.n, self.out_axes, self.in_axes)?;
        Ok(Arc::new(Plan::new(self.n, diagrams)))
    }
}

impl Equivariant {
    /// From a block of `c_out x c_in` for each diagram, in the order of [`EquivariantGroup::diagrams`].
    ///
    /// # Errors
    /// [`Error::Parameter`] when `spec` does not suit the shape, [`Error::Record`] for blocks of another shape or number.
    pub fn new(shape: (usize, usize), spec: EquivariantSpec, lambda: Factor) -> Result<Self> {
        let (channels, count) = spec.sizes(shape)?;
        let expected = (count, channels.0, channels.1);
        if lambda.shape() != expected {
            let received = lambda.shape();
            return Err(Error::record(Self::NAME, format!("lambda is {received:?}, expected {expected:?}")));
        }
        Ok(Self::of(shape, spec, lambda, spec.plan()?))
    }

    fn of(shape: (usize, usize), spec: EquivariantSpec, lambda: Factor, plan: Arc<Plan>) -> Self {
        Self { shape, spec, lambda: lambda.packed_forward(), plan }
    }

    /// Group, size and numbers of axes.
    pub fn parameters(&self) -> EquivariantSpec {
        self.spec
    }

    /// The diagrams, in the order of the parameters.
    pub fn diagrams(&self) -> &[EquivariantDiagram] {
        &self.plan.diagrams
    }

    /// Entries of the input that a product with diagram `d` alone reads, and entries of the output that it writes, per channel: at most
    /// $n^k + n^l$ of $n^{k + l}$. The product shares most of them between diagrams ([`flops`](StructuredMatrix::flops) counts those once).
    /// Nothing where there is no diagram `d`.
    pub fn accesses(&self, d: usize) -> Option<u64> {
        self.plan.accesses(d)
    }

    /// `(c_out, c_in)`.
    fn channels(&self) -> (usize, usize) {
        (self.lambda.rows(), self.lambda.cols())
    }
}

/// The small tensor of `half` for a batch, among those of all halves.
fn place(half: &Half, batch: usize, channels: usize) -> std::ops::Range<usize> {
    let unit = batch * channels;
    half.start * unit..(half.start + half.rows) * unit
}

/// Contracts each row of a batch to the small tensors of all halves.
fn gather_all<'a, T: Scalar>(
    (n, channels): (usize, usize),
    halves: &[Half],
    rows: impl ExactSizeIterator<Item = &'a [T]>,
    small: &mut [T],
) {
    let batch = rows.len();
    for (b, row) in rows.enumerate() {
        for half in halves {
            let small = &mut small[place(half, batch, channels)];
            half.gather(n, channels, row, &mut small[b * half.rows * channels..][..half.rows * channels]);
        }
    }
}

impl<T: Scalar> Multiply<T> for Equivariant {
    fn multiply(&self, Operands { op, x, mut y, update, work }: Operands<'_, T>) {
        let (plan, n, batch, policy) = (self.plan.as_ref(), self.plan.n, x.rows(), work.policy);
        let (to, from) = op.order(&plan.tops, &plan.bottoms);
        let (outputs, inputs) = op.order(self.channels().0, self.channels().1);
        let (contracted, work) = work.slice(batch * Plan::rows(from) * inputs);
        let (mixed, work) = work.slice(batch * Plan::rows(to) * outputs);
        let (turned, _) = work.slice(batch * plan.most_rows() * inputs);
        gather_all((n, inputs), from, (0..batch).map(|b| x.row(b)), contracted);
        mixed.fill(T::zero());
        for (d, term) in plan.terms.iter().enumerate() {
            let (last, first) = op.order(term.top, term.bottom);
            let (last, first) = (&to[last], &from[first]);
            let mut small = &contracted[place(first, batch, inputs)];
            if let Some((above, below)) = &term.turns {
                let turned = &mut turned[..small.len()];
                turn(n, inputs, op.order(above, below).0, small, turned);
                small = turned;
            }
            let mixed = &mut mixed[place(last, batch, outputs)];
            if self.channels() == (1, 1) {
                let lambda = T::narrow(self.lambda.get(d, 0, 0));
                mixed.iter_mut().zip(small).for_each(|(mixed, small)| *mixed += lambda * *small);
                continue;
            }
            let rows = batch * first.rows;
            self.lambda.multiply_rows(
                d,
                0..self.lambda.rows(),
                op,
                Rows::new(small, rows, inputs, inputs),
                RowsMut::new(mixed, rows, outputs, outputs),
                Update::Accumulate,
                policy,
            );
        }
        for b in 0..batch {
            let row = y.row(b);
            if update == Update::Overwrite {
                row.fill(T::zero());
            }
            for half in to {
                let mixed = &mixed[place(half, batch, outputs)];
                let len = half.rows * outputs;
                half.scatter(n, outputs, &mixed[b * len..][..len], row);
            }
        }
    }
}

impl<T: Scalar> Differentiate<T> for Equivariant {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let (plan, batch, (outputs, inputs)) = (self.plan.as_ref(), x.nrows(), self.channels());
        let contracted = |halves: &[Half], channels: usize, a: &ArrayRef2<T>| {
            let a = a.as_standard_layout();
            let mut small = vec![T::zero(); batch * Plan::rows(halves) * channels];
            let rows = a.as_slice().unwrap_or_default().chunks_exact(a.ncols());
            gather_all((plan.n, channels), halves, rows, &mut small);
            small
        };
        // dΛ_d is the product of what the halves of d make of dY and of X.
        let (below, above) = (contracted(&plan.bottoms, inputs, x), contracted(&plan.tops, outputs, dy));
        let mut gradient = Array3::zeros(self.lambda.shape());
        let mut turned = vec![T::zero(); batch * plan.most_rows() * inputs];
        for (term, mut gradient) in plan.terms.iter().zip(gradient.axis_iter_mut(Axis(0))) {
            let (top, bottom) = (&plan.tops[term.top], &plan.bottoms[term.bottom]);
            let mut small = &below[place(bottom, batch, inputs)];
            if let Some((strides, _)) = &term.turns {
                turn(plan.n, inputs, strides, small, &mut turned[..small.len()]);
                small = &turned[..small.len()];
            }
            let rows = batch * bottom.rows;
            let view = |data, channels| ndarray::ArrayView2::from_shape((rows, channels), data);
            if let (Ok(x), Ok(dy)) = (view(small, inputs), view(&above[place(top, batch, outputs)], outputs))
            {
                matmul_into(&dy.t(), &x, &mut gradient, false, threads);
            }
        }
        vec![gradient]
    }
}

impl StructuredMatrix for Equivariant {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        batch as u64 * self.plan.flops(self.channels())
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let (plan, (outputs, inputs)) = (&self.plan, self.channels());
        let (tops, bottoms) = (Plan::rows(&plan.tops), Plan::rows(&plan.bottoms));
        // Either direction.
        let most = plan.most_rows() * outputs.max(inputs);
        [tops * outputs, bottoms * inputs, most]
            .into_iter()
            .map(|len| Workspace::<f32>::slice_len(batch.saturating_mul(len)))
            .sum()
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let (mut dense, (outputs, inputs)) = (Array2::zeros(self.shape), self.channels());
        for (d, diagram) in self.diagrams().iter().enumerate() {
            let lambda = self.lambda.matrix(d);
            diagram.for_each(&mut |i, j, value| {
                let block = s![i * outputs..(i + 1) * outputs, j * inputs..(j + 1) * inputs];
                dense.slice_mut(block).scaled_add(value, &lambda);
            });
        }
        dense
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape).with_config(&self.spec).factor("lambda", &self.lambda)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

/// The common divisors of two numbers, ascending.
fn divisors(a: usize, b: usize) -> Vec<usize> {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let small = (1..).take_while(|d| *d <= a / d).filter(|d| a.is_multiple_of(*d));
    let mut all: Vec<usize> = small.flat_map(|d| [d, a / d]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Family for Equivariant {
    const NAME: &'static str = "equivariant";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("group", "`s` (permutations, default), `o`, `so` or `sp`"),
        ("n", "size of the axes; within a budget the one with the largest member by default"),
        ("out_axes", "axes of the output (default 1); what is left of its features are channels"),
        ("in_axes", "axes of the input (default 1)"),
    ];
    type Spec = EquivariantSpec;

    fn spec(shape: (usize, usize), request: &Request) -> Result<EquivariantSpec> {
        let group = request.get("group")?.unwrap_or_default();
        let out_axes = request.get_in("out_axes", 0..=MOST_AXES)?.unwrap_or(1);
        let in_axes = request.get_in("in_axes", 0..=MOST_AXES)?.unwrap_or(1);
        let with = |n| EquivariantSpec { group, n, out_axes, in_axes };
        let size = |spec: &EquivariantSpec| {
            let ((outputs, inputs), count) = spec.sizes(shape)?;
            Ok::<_, Error>(request.size().factor(count, outputs, inputs))
        };
        if let Some(n) = request.get("n")? {
            request.require(Self::NAME, shape, size(&with(n))?)?;
            return Ok(with(n));
        }
        if request.the_budget().is_none() {
            return Err(Error::parameter("n", "nothing", "a value, or a budget"));
        }
        // A side without axes has no indices to divide.
        let divided = |features: usize, axes: usize| if axes == 0 { 0 } else { features };
        let candidates = match (divided(shape.0, out_axes), divided(shape.1, in_axes)) {
            (0, 0) => vec![1, 2],
            (m, n) => divisors(m, n),
        };
        let first = candidates.first().map_or(1, |n| *n);
        let mut possible = Vec::new();
        for spec in candidates.into_iter().map(with) {
            if let Ok(size) = size(&spec) {
                possible.push((spec, size));
            }
        }
        let Some(smallest) = possible.iter().map(|(_, size)| *size).min_by_key(|s| (s.params, s.bytes))
        else {
            // None fits the shape: the first one says why.
            return size(&with(first)).map(|_| with(first));
        };
        request.require(Self::NAME, shape, smallest)?;
        let allowed = possible.into_iter().filter(|(_, size)| request.allows(shape, *size));
        let largest = allowed.max_by_key(|(_, size)| size.params);
        largest.map(|(spec, _)| spec).ok_or_else(|| Error::parameter("n", "nothing", "a larger budget"))
    }

    fn fit(
        w: &Array2<f64>,
        spec: &EquivariantSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let (shape, (channels, count)) = (w.dim(), spec.sizes(w.dim())?);
        let (outputs, inputs) = channels;
        let plan = spec.plan()?;
        let diagrams = &plan.diagrams;
        let gram = Array2::from_shape_fn((count, count), |(a, b)| diagrams[a].inner(&diagrams[b]));
        let solver = SpdSolver::new(&gram, 0.0)?;
        let solve = |rhs: &[f64]| {
            let pairs = outputs * inputs;
            let rhs = Array2::from_shape_fn((count, pairs), |(d, pair)| rhs[d * pairs + pair]);
            solver.solve(&rhs).into_iter().collect::<Vec<f64>>()
        };
        // Inner products of all diagrams, for each pair of channels, with an error (out x in).
        let adjoint = |e: &ArrayRef2<f64>| {
            let mut inner = Array3::zeros((count, outputs, inputs));
            for (diagram, mut inner) in diagrams.iter().zip(inner.outer_iter_mut()) {
                diagram.for_each(&mut |i, j, value| {
                    let block = s![i * outputs..(i + 1) * outputs, j * inputs..(j + 1) * inputs];
                    inner.scaled_add(value, &e.slice(block));
                });
            }
            inner.into_iter().collect::<Vec<f64>>()
        };
        let member = |storage: Storage, theta: &[f64]| {
            let number = |d, o, i| theta[(d * outputs + o) * inputs + i];
            Self::of(shape, *spec, Factor::from_fn(storage, (count, outputs, inputs), number), plan.clone())
        };
        run.check()?;
        let plain = solve(&adjoint(w));
        let Some(c) = objective.second_moment() else {
            return Ok(Fit::optimal(member(run.storage(), &plain)));
        };
        let weighted = Weighted::new(w, c, run);
        let power = weighted.mean_power();
        let solution = weighted.solve(
            plain,
            None,
            |theta| Ok(member(Storage::F64, theta)),
            |e| adjoint(&e.t()),
            |r| solve(r).into_iter().map(|theta| theta / power).collect(),
        )?;
        Ok(solution.into_fit().map(|theta| member(run.storage(), &theta)))
    }

    fn random(shape: (usize, usize), spec: &EquivariantSpec, storage: Storage, seed: u64) -> Result<Self> {
        let ((outputs, inputs), count) = spec.sizes(shape)?;
        let plan = spec.plan()?;
        let energy: f64 = plan.diagrams.iter().map(|diagram| diagram.inner(diagram)).sum();
        let scale = (shape.0 as f64 / (energy * outputs as f64 * inputs as f64)).sqrt();
        let all = Gaussian::new(seed).matrix(count * outputs, inputs, scale);
        let lambda = Factor::from_fn(storage, (count, outputs, inputs), |d, o, i| all[[d * outputs + o, i]]);
        Ok(Self::of(shape, *spec, lambda, plan))
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let spec: EquivariantSpec = parts.config()?;
        let lambda = parts.take_factor("lambda")?;
        let (m, n) = parts.shape();
        if m > MAX_FEATURES || n > MAX_FEATURES {
            return Err(parts.error(format!("{m} x {n}: expected at most {MAX_FEATURES} features")));
        }
        Self::new((m, n), spec, lambda).map_err(|error| parts.error(error.to_string()))
    }
}
