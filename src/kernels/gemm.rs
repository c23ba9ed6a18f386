//! Products with a stack of dense blocks: argument checks, splitting between threads, choice of kernel.

use super::level::Kernel;
use super::simd::Simd;
use super::source::Source;
use super::view::{Rows, RowsMut};
use super::{small, tiles};
use crate::exec::Policy;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::GROUP;
use std::ops::Range;

/// Smallest batches, forward and transposed, for which a tile of weights is decoded into the L1 cache first. Below, weights are
/// decoded straight into registers.
const TILED_BATCH: (usize, usize) = (4, 8);

/// Outputs per thread are a multiple of this (and of [`GROUP`]), so that no thread shares a cache line or a group.
const SPLIT: usize = 32;
const _: () = assert!(SPLIT.is_multiple_of(GROUP));

/// Where the features of a stack of `rows x cols` blocks lie.
///
/// The column side is contiguous: column `j` of block `b` is feature `b * cols + j`. The row side may be interleaved in
/// groups of `group` rows: row `i` of block `b` is feature `(i / group * blocks + b) * group + i % group`. With
/// `group = rows` that is contiguous too; with `group = 1` it is the transposing permutation of a Monarch matrix.
#[derive(Debug, Clone, Copy)]
pub struct PanelMap {
    pub(crate) blocks: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    group: usize,
}

impl PanelMap {
    /// Blocks one after the other on both sides.
    pub fn contiguous(blocks: usize, rows: usize, cols: usize) -> Self {
        Self { blocks, rows, cols, group: rows.max(1) }
    }

    /// Rows interleaved in groups. Panics unless `group` divides `rows`.
    pub fn interleaved(blocks: usize, rows: usize, cols: usize, group: usize) -> Self {
        assert!(group > 0 && rows.is_multiple_of(group));
        Self { blocks, rows, cols, group }
    }

    /// Feature of row `i` of block `b`.
    #[inline(always)]
    pub(super) fn row_feature(&self, b: usize, i: usize) -> usize {
        // Divisions cost more than the product with a short row.
        match self.group {
            1 => i * self.blocks + b,
            group if group == self.rows => b * group + i,
            group => (i / group * self.blocks + b) * group + i % group,
        }
    }

    /// Whether the rows of a block are consecutive features.
    #[inline(always)]
    pub(super) fn rows_contiguous(&self) -> bool {
        self.group == self.rows
    }
}

/// A pointer that tasks share; each writes entries of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<T>(pub(super) *mut T);
// SAFETY: `multiply` gives each task its own blocks or its own outputs, which `PanelMap` maps to distinct entries.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

/// One task: some blocks, or a range of outputs of one block.
#[derive(Clone)]
pub(super) struct Job<'a, T, W> {
    pub(super) source: W,
    /// First row of the stack in `source`.
    pub(super) first: usize,
    pub(super) map: PanelMap,
    pub(super) op: Op,
    pub(super) x: Rows<'a, T>,
    pub(super) y: Output<T>,
    pub(super) y_stride: usize,
    pub(super) update: Update,
    pub(super) blocks: Range<usize>,
    /// Rows (forward) or columns (transposed) of each block to produce.
    pub(super) outputs: Range<usize>,
}

/// What to multiply with the panels of a source.
#[derive(Debug)]
pub struct PanelProduct<'a, T> {
    /// First row of the stack in the source.
    pub(crate) first: usize,
    pub(crate) map: PanelMap,
    pub(crate) op: Op,
    pub(crate) x: Rows<'a, T>,
    pub(crate) y: RowsMut<'a, T>,
    pub(crate) update: Update,
    pub(crate) policy: Policy,
}

/// `Y (+)= X Bᵀ` (forward) or `Y (+)= X B` (transposed), `B` the block diagonal matrix of `map.blocks` blocks that start
/// at row `first` of `source`. Panics when the operands do not fit.
pub(crate) fn multiply<T: Scalar, W: Source>(source: W, product: PanelProduct<'_, T>) {
    let PanelProduct { first, map, op, x, mut y, update, policy } = product;
    let (row_features, col_features) = (map.blocks * map.rows, map.blocks * map.cols);
    let (outputs, inputs) = op.order(row_features, col_features);
    assert!(source.cols() == map.cols && first + row_features <= source.rows());
    assert!(x.rows() == y.rows() && x.cols() == inputs && y.cols() == outputs);
    let work = map.blocks.saturating_mul(map.rows).saturating_mul(map.cols).saturating_mul(x.rows());
    let job = Job {
        source,
        first,
        map,
        op,
        x,
        y_stride: y.stride(),
        y: Output(y.as_mut_ptr()),
        update,
        blocks: 0..map.blocks,
        outputs: 0..op.order(map.rows, map.cols).0,
    };
    split(job, policy.tasks(work), policy);
}

fn split<T: Scalar, W: Source>(job: Job<'_, T, W>, tasks: usize, policy: Policy) {
    let (mut left, mut right) = (job.clone(), job);
    let at = if tasks < 2 {
        None
    } else if left.blocks.len() > 1 {
        let at = left.blocks.start + left.blocks.len() / 2;
        (left.blocks.end, right.blocks.start) = (at, at);
        Some(())
    } else {
        let at = left.outputs.start + (left.outputs.len() / 2).next_multiple_of(SPLIT);
        let inside = at < left.outputs.end;
        if inside {
            (left.outputs.end, right.outputs.start) = (at, at);
        }
        inside.then_some(())
    };
    match at {
        None if right.x.rows() < right.op.order(TILED_BATCH.0, TILED_BATCH.1).0 => {
            T::dispatch(policy.level, right)
        }
        // SAFETY: `multiply` has checked that source, x and y fit the map, and the splits stay inside it.
        None => unsafe { tiles::multiply(&right, policy.level) },
        Some(()) => {
            let half = tasks / 2;
            super::team::join(|| split(left, tasks - half, policy), || split(right, half, policy));
        }
    }
}

impl<T: Scalar, W: Source> Kernel<T> for Job<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        // SAFETY: `multiply` has checked that source, x and y fit the map, and `split` keeps blocks and outputs inside it.
        unsafe {
            match self.op {
                Op::Forward => small::forward(simd, &self),
                Op::Transpose => small::transpose(simd, &self),
            }
        }
    }
}

/// What to multiply entry by entry with a row of a source.
#[derive(Debug)]
pub struct RowScaling<'a, T> {
    pub(crate) row: usize,
    /// First column of the row.
    pub(crate) from: usize,
    pub(crate) x: &'a [T],
    pub(crate) y: &'a mut [T],
    pub(crate) update: Update,
    pub(crate) policy: Policy,
}

/// `y (+)= a ∘ x` with `a` the numbers of row `row` of `source` from column `from` on. Panics when they do not fit.
pub(crate) fn scale<T: Scalar, W: Source>(source: W, scaling: RowScaling<'_, T>) {
    let RowScaling { row, from, x, y, update, policy } = scaling;
    assert!(x.len() == y.len() && row < source.rows() && from + x.len() <= source.cols());
    T::dispatch(policy.level, Scale { source, row, from, x, y, update });
}

struct Scale<'a, T, W> {
    source: W,
    row: usize,
    from: usize,
    x: &'a [T],
    y: &'a mut [T],
    update: Update,
}

impl<T: Scalar, W: Source> Kernel<T> for Scale<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { source, row, from, x, y, update } = self;
        let aligned = from.is_multiple_of(S::LANES);
        let vectors = if aligned { x.len() / S::LANES * S::LANES } else { 0 };
        for j in (0..vectors).step_by(S::LANES) {
            // SAFETY: j + LANES <= x.len() = y.len(), and from + x.len() lies inside the row, by `scale`.
            unsafe {
                let a = source.load(simd, row, from + j);
                let b = simd.load(x.as_ptr().add(j));
                let out = y.as_mut_ptr().add(j);
                let sum = match update {
                    Update::Overwrite => simd.mul(a, b),
                    Update::Accumulate => simd.mul_add(a, b, simd.load(out)),
                };
                simd.store(out, sum);
            }
        }
        for j in vectors..x.len() {
            let product = T::narrow(source.get(row, from + j)) * x[j];
            y[j] = if update == Update::Accumulate { y[j] + product } else { product };
        }
    }
}
