//! Sums of blocks scaled entry by entry: how a BLAST matrix couples its blocks.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::gemm::{LINE, Output};
use super::level::Kernel;
use super::packing::{Lanes, PANEL, Packing, between_panels};
use super::panels::AHEAD;
use super::simd::{Simd, prefetch_near, vectors};
use super::source::Source;
use super::view::{Rows, RowsMut};
use crate::exec::Policy;
use crate::scalar::Scalar;
use std::ops::Range;

/// Bytes of numbers that stay in the first-level cache while all batch rows meet them.
const KEPT: usize = 1 << 15;

/// What to scale and add up: $y_q = \sum_p a_{qp} \circ x_p$, with $a_{qp}$ row `p strides.0 + q strides.1` of a source.
#[derive(Debug)]
pub struct Mix<'a, T> {
    /// Number of blocks of the inputs and of the outputs, each as wide as the columns.
    pub(crate) blocks: (usize, usize),
    /// Numbers from the first of a block to that of the next.
    pub(crate) block_stride: usize,
    /// Columns of the source that take part.
    pub(crate) columns: Range<usize>,
    pub(crate) strides: (usize, usize),
    /// How the source is packed: its columns in the lanes; `None` where its rows lie one after the other.
    pub(crate) packing: Option<Packing>,
    pub(crate) x: Rows<'a, T>,
    pub(crate) y: RowsMut<'a, T>,
    pub(crate) policy: Policy,
}

/// Computes it. Panics when the operands do not fit.
pub(crate) fn mix<T: Scalar, W: Source>(source: W, mix: Mix<'_, T>) {
    let Mix { blocks: (inputs, outputs), block_stride, columns, strides, packing, x, mut y, policy } = mix;
    let cols = columns.len();
    assert!(between_panels(columns.clone(), source.cols()), "columns are cut between panels");
    assert!(cols <= block_stride && x.rows() == y.rows());
    assert!(x.cols() == inputs * block_stride && y.cols() == outputs * block_stride);
    assert!(
        inputs == 0 || outputs == 0 || (inputs - 1) * strides.0 + (outputs - 1) * strides.1 < source.rows()
    );
    let in_lanes =
        |packing: Packing| packing.lanes == Lanes::Cols && packing.blocks == 1 && !packing.is_shared();
    assert!(packing.is_none_or(in_lanes), "the packing is for other products");
    let work = x.rows().saturating_mul(inputs).saturating_mul(outputs).saturating_mul(cols);
    let y_stride = y.stride();
    let job = Job {
        source,
        inputs,
        block_stride,
        columns,
        strides,
        packing,
        x,
        y: Output(y.as_mut_ptr()),
        y_stride,
        outputs: 0..outputs,
    };
    split(job, policy.tasks(work), policy);
}

/// Some blocks of outputs.
#[derive(Clone)]
struct Job<'a, T, W> {
    source: W,
    inputs: usize,
    block_stride: usize,
    columns: Range<usize>,
    strides: (usize, usize),
    packing: Option<Packing>,
    x: Rows<'a, T>,
    y: Output<T>,
    y_stride: usize,
    outputs: Range<usize>,
}

fn split<T: Scalar, W: Source>(job: Job<'_, T, W>, tasks: usize, policy: Policy) {
    if tasks < 2 || job.outputs.len() < 2 {
        return T::dispatch(policy.level, job);
    }
    let (mut left, mut right) = (job.clone(), job);
    let at = left.outputs.start + left.outputs.len() / 2;
    (left.outputs.end, right.outputs.start) = (at, at);
    let half = tasks / 2;
    super::team::join(|| split(left, tasks - half, policy), move || split(right, half, policy));
}

impl<T: Scalar, W: Source> Kernel<T> for Job<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Range { start, end } = self.columns;
        let panel = (self.source.rows() * PANEL * W::BYTES).max(1);
        let near = (KEPT / panel).max(1) * PANEL;
        for first in (start..end).step_by(near) {
            let columns = first..end.min(first + near);
            let mut b = 0;
            while b < self.x.rows() {
                // SAFETY: batch rows and columns are in range by the loop bounds.
                unsafe {
                    // As many sums as there are registers for.
                    b += match self.x.rows() - b {
                        4.. if S::REGISTERS == 32 => rows::<T, S, W, 4, 1>(simd, &self, columns.clone(), b),
                        2.. => rows::<T, S, W, 2, 1>(simd, &self, columns.clone(), b),
                        _ => rows::<T, S, W, 1, 2>(simd, &self, columns.clone(), b),
                    };
                }
            }
        }
    }
}

/// Columns from `first` on. Where they are packed, the number of row `r` lies at `at + r stride`, and its scale at `scale + r`.
#[derive(Clone, Copy)]
struct Columns {
    first: usize,
    at: usize,
    stride: usize,
    scale: usize,
}

/// Columns from the start of a panel on, up to `V` vectors at a time, of all outputs, for `B` batch rows from `b` on. Returns `B`.
#[inline(always)]
unsafe fn rows<T: Scalar, S: Simd<T>, W: Source, const B: usize, const V: usize>(
    simd: S,
    job: &Job<'_, T, W>,
    columns: Range<usize>,
    b: usize,
) -> usize {
    // SAFETY: the caller's; columns lie so by the packing.
    unsafe {
        let Some(packing) = job.packing else {
            for first in columns.step_by(S::LANES) {
                let columns = Columns { first, at: 0, stride: 0, scale: 0 };
                outputs::<T, S, W, B, 1, false>(simd, job, columns, b);
            }
            return B;
        };
        for panel in columns.clone().step_by(PANEL) {
            let ((at, stride), scale) = (packing.panel(0, panel), packing.panel_scales(0, panel));
            let (mut first, end) = (panel, columns.end.min(panel + PANEL));
            while first < end {
                let columns = Columns { first, at: at + first - panel, stride, scale };
                if V > 1 && end - first > S::LANES {
                    outputs::<T, S, W, B, V, true>(simd, job, columns, b);
                    first += V * S::LANES;
                } else {
                    outputs::<T, S, W, B, 1, true>(simd, job, columns, b);
                    first += S::LANES;
                }
            }
        }
    }
    B
}

/// `V` vectors of columns of all outputs, four blocks of them at a time.
#[inline(always)]
unsafe fn outputs<T: Scalar, S: Simd<T>, W: Source, const B: usize, const V: usize, const PACKED: bool>(
    simd: S,
    job: &Job<'_, T, W>,
    columns: Columns,
    b: usize,
) {
    let mut q = job.outputs.start;
    while q < job.outputs.end {
        // SAFETY: the caller's; blocks are in range by the loop bound.
        unsafe {
            if job.outputs.end - q >= 4 {
                tile::<T, S, W, 4, B, V, PACKED>(simd, job, columns, q, b);
                q += 4;
            } else {
                tile::<T, S, W, 1, B, V, PACKED>(simd, job, columns, q, b);
                q += 1;
            }
        }
    }
}

/// `Q` blocks of outputs from `q` on, for which each input is read once.
#[inline(always)]
unsafe fn tile<
    T: Scalar,
    S: Simd<T>,
    W: Source,
    const Q: usize,
    const B: usize,
    const V: usize,
    const PACKED: bool,
>(
    simd: S,
    job: &Job<'_, T, W>,
    columns: Columns,
    q: usize,
    b: usize,
) {
    let (source, Columns { first, at, stride, scale }) = (job.source, columns);
    let (block_stride, left) = (job.block_stride, job.columns.end - first);
    // Where the column lies in a block.
    let inside = first - job.columns.start;
    let mut sums = [[[simd.zero(); V]; B]; Q];
    // SAFETY: the caller's; packed sources have numbers beyond the last one.
    unsafe {
        for p in 0..job.inputs {
            let x = job.x.as_ptr().add(b * job.x.stride() + p * block_stride + inside);
            let mut xs = [[simd.zero(); V]; B];
            for i in 0..B {
                xs[i] = vectors(simd, |v| {
                    let (x, left) = (x.add(i * job.x.stride() + v * S::LANES), left - v * S::LANES);
                    if left >= S::LANES { simd.load(x) } else { simd.load_part(x, left) }
                });
            }
            for k in 0..Q {
                let row = p * job.strides.0 + (q + k) * job.strides.1;
                let a: [S::V; V] = if PACKED {
                    // Larger batches find the numbers in a cache.
                    if B < 4 {
                        for line in (0..V * S::LANES * W::BYTES).step_by(LINE) {
                            let ahead = source.stream_address(at + row * stride).wrapping_add(AHEAD + line);
                            prefetch_near(ahead);
                        }
                    }
                    vectors(simd, |v| {
                        let codes = source.codes(simd, at + row * stride + v * S::LANES);
                        if W::SCALED { simd.mul(codes, source.scale(simd, scale + row)) } else { codes }
                    })
                } else if left >= S::LANES {
                    [source.load(simd, row, first); V]
                } else {
                    [source.load_tail(simd, row, first); V]
                };
                for i in 0..B {
                    for v in 0..V {
                        sums[k][i][v] = simd.mul_add(a[v], xs[i][v], sums[k][i][v]);
                    }
                }
            }
        }
        for k in 0..Q {
            for i in 0..B {
                for v in 0..V {
                    let y =
                        job.y.0.add((b + i) * job.y_stride + (q + k) * block_stride + inside + v * S::LANES);
                    let left = left - v * S::LANES;
                    let sum = sums[k][i][v];
                    if left >= S::LANES { simd.store(y, sum) } else { simd.store_part(y, sum, left) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Parallelism;
    use crate::kernels::Level;
    use crate::matrix::Op;
    use crate::storage::{Factor, Storage};

    fn number(i: usize) -> f64 {
        (i.wrapping_mul(2_654_435_761) >> 9 & 15) as f64 - 7.0
    }

    fn check<T: Scalar>(
        factor: &Factor,
        op: Op,
        batch: usize,
        (columns, gap): (Range<usize>, usize),
        policy: Policy,
    ) {
        let ((matrices, rows, _), cols) = (factor.shape(), columns.len());
        let (outputs, inputs) = op.order(matrices, rows);
        let block_stride = cols + gap;
        let (x_stride, y_stride) = (inputs * block_stride + 3, outputs * block_stride + 1);
        let x: Vec<T> = (0..batch * x_stride).map(|i| T::narrow(number(i + 5))).collect();
        let mut y = vec![T::narrow(f64::NAN); batch * y_stride];
        let (xs, ys) = (
            Rows::new(&x, batch, inputs * block_stride, x_stride),
            RowsMut::new(&mut y, batch, outputs * block_stride, y_stride),
        );
        factor.mix_columns(columns.clone(), block_stride, op, xs, ys, policy);
        for (b, q, j) in
            (0..batch).flat_map(|b| (0..outputs).flat_map(move |q| (0..cols).map(move |j| (b, q, j))))
        {
            let term = |p: usize| {
                let (matrix, row) = op.order(q, p);
                factor.get(matrix, row, columns.start + j) * x[b * x_stride + p * block_stride + j].widen()
            };
            let (sum, size) = (0..inputs).map(term).fold((0.0, 0.0), |(s, a), t| (s + t, a + f64::abs(t)));
            let got = y[b * y_stride + q * block_stride + j].widen();
            assert!(
                (got - sum).abs() <= 1e-6 * size,
                "{:?} {op:?} {policy:?}: row {b}, {q}, {j}",
                factor.shape()
            );
        }
        // Nothing is written between the rows and the blocks.
        let written = |i: usize| i % y_stride < outputs * block_stride && i % y_stride % block_stride < cols;
        assert!(y.iter().enumerate().all(|(i, y)| written(i) != y.widen().is_nan()));
    }

    #[test]
    fn blocks_of_every_shape_and_storage_follow_the_formula() {
        let shapes = [
            (1, 1, 1),
            (2, 3, 7),
            (1, 1, 16),
            (3, 5, 33),
            (4, 4, 40),
            (16, 16, 70),
            (5, 2, 129),
            (9, 8, 300),
        ];
        for (shape, storage) in shapes.into_iter().flat_map(|s| Storage::ALL.map(|storage| (s, storage))) {
            let (_, rows, cols) = shape;
            let factor = Factor::from_fn(storage, shape, |b, i, j| number((b * rows + i) * cols + j) / 8.0);
            for factor in [factor.clone().packed_to_mix(), factor] {
                for (op, batch) in
                    [Op::Forward, Op::Transpose].into_iter().flat_map(|op| [1, 2, 3, 7].map(|b| (op, b)))
                {
                    for level in Level::available() {
                        for parallelism in [Parallelism::Seq, Parallelism::Threads(3)] {
                            let policy = Policy { parallelism, level };
                            let parts = [(0..cols, 0), (0..cols.min(PANEL), 5), (cols.min(PANEL)..cols, 1)];
                            for columns in parts {
                                check::<f32>(&factor, op, batch, columns.clone(), policy);
                                check::<f64>(&factor, op, batch, columns, policy);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "packing")]
    fn a_factor_laid_out_for_other_products_is_refused() {
        let factor =
            Factor::from_fn(Storage::F32, (2, 2, 20), |_, i, j| number(i + j)).packed(Op::Transpose, 2);
        check::<f32>(&factor, Op::Forward, 1, (0..20, 0), Policy::default());
    }
}
