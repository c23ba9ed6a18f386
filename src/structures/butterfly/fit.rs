//! Products of butterfly stages in `f64`: hierarchical splitting and least squares stage by stage.

use crate::error::Result;
use crate::linalg;
use crate::projection::{Descent, Objective, Run, Stop, descend, least_squares};
use ndarray::{Array1, Array2, s};

/// Stages in the order in which they act.
#[derive(Debug, Clone)]
pub(super) struct Stages {
    /// `b`.
    pub(super) block: usize,
    /// `L`, with `b 2^L` features.
    pub(super) levels: usize,
    pub(super) stages: Vec<Stage>,
}

/// A list of `2b x 2b` blocks that mix the block indices which differ in one bit.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) bit: usize,
    pub(super) blocks: Vec<Array2<f64>>,
}

impl Stage {
    /// `M := X M`, or `Xᵀ M`.
    fn apply(&self, levels: usize, transposed: bool, m: &mut Array2<f64>) {
        apply(&self.blocks, levels, self.bit, transposed, m);
    }
}

/// First features (in units of blocks) of the two halves that block `k` of stage `t` of `levels` mixes.
///
/// Stage `t` mixes the block indices that differ in bit `t`. Block `k` belongs to the bits above `t` (low bits of `k`) and
/// those below (high bits), the order in which the perfect shuffle of the product visits them.
pub(super) fn pair(levels: usize, t: usize, k: usize) -> (usize, usize) {
    let above = levels - 1 - t;
    let first = (k & ((1 << above) - 1)) << (t + 1) | k >> above;
    (first, first | 1 << t)
}

/// `M := X M`, or `Xᵀ M`, for stage `t` with these blocks.
pub(super) fn apply(blocks: &[Array2<f64>], levels: usize, t: usize, transposed: bool, m: &mut Array2<f64>) {
    let (cols, b) = (m.ncols(), blocks[0].nrows() / 2);
    let mut both = Array2::zeros((2 * b, cols));
    for (k, block) in blocks.iter().enumerate() {
        let (p, q) = pair(levels, t, k);
        both.slice_mut(s![..b, ..]).assign(&m.slice(s![p * b..(p + 1) * b, ..]));
        both.slice_mut(s![b.., ..]).assign(&m.slice(s![q * b..(q + 1) * b, ..]));
        let product = if transposed { block.t().dot(&both) } else { block.dot(&both) };
        m.slice_mut(s![p * b..(p + 1) * b, ..]).assign(&product.slice(s![..b, ..]));
        m.slice_mut(s![q * b..(q + 1) * b, ..]).assign(&product.slice(s![b.., ..]));
    }
}

impl Stages {
    fn size(&self) -> usize {
        self.block << self.levels
    }

    /// The matrix, cut to `shape`.
    pub(super) fn dense(&self, (m, n): (usize, usize)) -> Array2<f64> {
        let mut dense = Array2::zeros((self.size(), n));
        dense.diag_mut().fill(1.0);
        for stage in &self.stages {
            stage.apply(self.levels, false, &mut dense);
        }
        dense.slice(s![..m, ..]).to_owned()
    }

    /// Splits `w` in the middle of the levels, then its halves: each split by truncated decompositions of disjoint parts,
    /// with the singular values on both sides.
    pub(super) fn split(w: &Array2<f64>, block: usize, levels: usize, run: &Run<'_>) -> Result<Self> {
        let size = block << levels;
        let mut padded = Array2::zeros((size, size));
        padded.slice_mut(s![..w.nrows(), ..w.ncols()]).assign(w);
        let blocks = vec![Array2::zeros((0, 0)); 1 << (levels - 1)];
        let stages = (0..levels).map(|bit| Stage { bit, blocks: blocks.clone() }).collect();
        let mut found = Self { block, levels, stages };
        found.split_levels(vec![padded], 0, levels, run)?;
        Ok(found)
    }

    /// The same for levels `low..high`. Entry `h << low | w` of `parts` is the product of these stages where the higher bits of
    /// the block index are `h` and the lower bits `w`.
    fn split_levels(
        &mut self,
        parts: Vec<Array2<f64>>,
        low: usize,
        high: usize,
        run: &Run<'_>,
    ) -> Result<()> {
        run.check()?;
        let (b, levels) = (self.block, self.levels);
        if high == low + 1 {
            for (index, part) in parts.into_iter().enumerate() {
                let (h, w) = (index >> low, index & ((1 << low) - 1));
                self.stages[low].blocks[h | w << (levels - 1 - low)] = part;
            }
            return Ok(());
        }
        let middle = (low + high) / 2;
        let (lower, upper) = (1 << (middle - low), 1 << (high - middle));
        let mut left = vec![Array2::zeros((upper * b, upper * b)); parts.len() * lower];
        let mut right = vec![Array2::zeros((lower * b, lower * b)); parts.len() * upper];
        for (index, part) in parts.iter().enumerate() {
            let (h, w) = (index >> low, index & ((1 << low) - 1));
            for i_low in 0..lower {
                run.check()?;
                for j_high in 0..upper {
                    let piece = Array2::from_shape_fn((upper * b, lower * b), |(i, j)| {
                        part[[(i / b * lower + i_low) * b + i % b, j_high * lower * b + j]]
                    });
                    let (u, v) = linalg::leading_triplets(&piece, b)?.split_sqrt(b);
                    left[h << middle | i_low << low | w]
                        .slice_mut(s![.., j_high * b..(j_high + 1) * b])
                        .assign(&u);
                    right[(h * upper + j_high) << low | w]
                        .slice_mut(s![i_low * b..(i_low + 1) * b, ..])
                        .assign(&v);
                }
            }
        }
        drop(parts);
        self.split_levels(left, middle, high, run)?;
        self.split_levels(right, low, middle, run)
    }

    /// [`split`](Self::split), then sweeps of least squares; none for large matrices.
    pub(super) fn project(
        w: &Array2<f64>,
        block: usize,
        levels: usize,
        run: &Run<'_>,
    ) -> Result<Descent<Self>> {
        let effort = if w.len() > 1 << 18 { (0, 3) } else { (10, 8) };
        Self::split(w, block, levels, run)?.improve(w, &Objective::Frobenius, effort, run)
    }

    /// Sweeps of least squares, stage by stage, on the entries that are kept: so many sweeps at most, of so many steps for each stage.
    /// Stages of any bits, in any order.
    pub(super) fn improve(
        self,
        w: &Array2<f64>,
        objective: &Objective<'_>,
        (sweeps, steps): (usize, usize),
        run: &Run<'_>,
    ) -> Result<Descent<Self>> {
        let (energy, scale) = (objective.energy(&(w - &self.dense(w.dim()))), objective.energy(w));
        // Below the rounding level of the energy there is nothing to gain.
        let stop = Stop { sweeps: if energy <= 1e-26 * scale { 0 } else { sweeps }, tolerance: 1e-4 };
        descend(run, stop, scale, self, energy, |state, _, _| {
            let (levels, size, b) = (state.levels, state.size(), state.block);
            let mut inner = Array2::zeros((size, w.ncols()));
            inner.diag_mut().fill(1.0);
            let mut energy = 0.0;
            for t in 0..state.stages.len() {
                let (done, later) = state.stages.split_at_mut(t + 1);
                let Stage { bit, blocks } = &mut done[t];
                let bit = *bit;
                let matrices = |x: &Array1<f64>| -> Vec<Array2<f64>> {
                    let at = |k: usize, i: usize, j: usize| x[(k * 2 * b + i) * 2 * b + j];
                    let block = |k| Array2::from_shape_fn((2 * b, 2 * b), |(i, j)| at(k, i, j));
                    (0..x.len() / (4 * b * b)).map(block).collect()
                };
                let expand = |x: &Array1<f64>| {
                    let mut dense = inner.clone();
                    apply(&matrices(x), levels, bit, false, &mut dense);
                    later.iter().for_each(|stage| stage.apply(levels, false, &mut dense));
                    dense.slice(s![..w.nrows(), ..]).to_owned()
                };
                let adjoint = |e: &Array2<f64>| {
                    let mut outer = Array2::zeros((size, w.ncols()));
                    outer.slice_mut(s![..w.nrows(), ..]).assign(e);
                    later.iter().rev().for_each(|stage| stage.apply(levels, true, &mut outer));
                    let half = |m: &Array2<f64>, p: usize| m.slice(s![p * b..(p + 1) * b, ..]).to_owned();
                    let both = |m: &Array2<f64>, (p, q): (usize, usize)| {
                        ndarray::concatenate![ndarray::Axis(0), half(m, p), half(m, q)]
                    };
                    let block =
                        |k| both(&outer, pair(levels, bit, k)).dot(&both(&inner, pair(levels, bit, k)).t());
                    Array1::from_iter((0..1usize << (levels - 1)).flat_map(|k| {
                        let gradient: Array2<f64> = block(k);
                        (0..4 * b * b).map(move |e| gradient[[e / (2 * b), e % (2 * b)]])
                    }))
                };
                let mut x = Array1::from_iter(blocks.iter().flat_map(|block| block.iter().copied()));
                energy = least_squares(w, objective, run, steps, &mut x, expand, adjoint)?;
                *blocks = matrices(&x);
                apply(blocks, levels, bit, false, &mut inner);
            }
            Ok(energy)
        })
    }
}
