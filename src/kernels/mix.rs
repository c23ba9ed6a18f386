//! Sums of blocks scaled entry by entry: how a BLAST matrix couples its blocks.

use super::gemm::Output;
use super::level::Kernel;
use super::simd::{Simd, prefetch, vectors};
use super::source::Source;
use super::view::{Rows, RowsMut};
use crate::exec::Policy;
use crate::scalar::Scalar;
use std::ops::Range;

/// What to scale and add up: $y_q = \sum_p a_{qp} \circ x_p$, with $a_{qp}$ row `p strides.0 + q strides.1` of a source.
#[derive(Debug)]
pub struct Mix<'a, T> {
    /// Number of blocks of the inputs and of the outputs, each as wide as the source.
    pub(crate) blocks: (usize, usize),
    pub(crate) strides: (usize, usize),
    pub(crate) x: Rows<'a, T>,
    pub(crate) y: RowsMut<'a, T>,
    pub(crate) policy: Policy,
}

/// Computes it. Panics when the operands do not fit.
pub(crate) fn mix<T: Scalar, W: Source>(source: W, mix: Mix<'_, T>) {
    let Mix { blocks: (inputs, outputs), strides, x, mut y, policy } = mix;
    let cols = source.cols();
    assert!(x.rows() == y.rows() && x.cols() == inputs * cols && y.cols() == outputs * cols);
    assert!(
        inputs == 0 || outputs == 0 || (inputs - 1) * strides.0 + (outputs - 1) * strides.1 < source.rows()
    );
    let work = x.rows().saturating_mul(inputs).saturating_mul(y.cols());
    let y_stride = y.stride();
    let job = Job { source, inputs, strides, x, y: Output(y.as_mut_ptr()), y_stride, outputs: 0..outputs };
    split(job, policy.tasks(work), policy);
}

/// Some blocks of outputs.
#[derive(Clone)]
struct Job<'a, T, W> {
    source: W,
    inputs: usize,
    strides: (usize, usize),
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
        let mut q = self.outputs.start;
        while q < self.outputs.end {
            // SAFETY: blocks are in range by the loop bound.
            unsafe {
                q += match self.outputs.end - q {
                    4.. => blocks::<T, S, W, 4>(simd, &self, q),
                    _ => blocks::<T, S, W, 1>(simd, &self, q),
                };
            }
        }
    }
}

/// `Q` blocks of outputs from `q` on, so that each input is read once for all of them. Returns `Q`.
#[inline(always)]
unsafe fn blocks<T: Scalar, S: Simd<T>, W: Source, const Q: usize>(
    simd: S,
    job: &Job<'_, T, W>,
    q: usize,
) -> usize {
    for j in (0..job.source.cols()).step_by(S::LANES) {
        let mut b = 0;
        while b < job.x.rows() {
            // SAFETY: blocks, columns and batch rows are in range by the loop bounds and the check of `mix`.
            unsafe {
                b += match job.x.rows() - b {
                    4.. if S::REGISTERS == 32 => lanes::<T, S, W, Q, 4>(simd, job, q, j, b),
                    2.. => lanes::<T, S, W, Q, 2>(simd, job, q, j, b),
                    _ => lanes::<T, S, W, Q, 1>(simd, job, q, j, b),
                };
            }
        }
    }
    Q
}

/// Up to `LANES` columns from `j` on of `Q` blocks, for `B` batch rows. Returns `B`.
#[inline(always)]
unsafe fn lanes<T: Scalar, S: Simd<T>, W: Source, const Q: usize, const B: usize>(
    simd: S,
    job: &Job<'_, T, W>,
    q: usize,
    j: usize,
    b: usize,
) -> usize {
    let cols = job.source.cols();
    let left = cols - j;
    let mut sums = [[simd.zero(); B]; Q];
    // SAFETY: the caller's.
    unsafe {
        for p in 0..job.inputs {
            let x = job.x.as_ptr().add(b * job.x.stride() + p * cols + j);
            let xs: [S::V; B] = vectors(simd, |i| {
                let x = x.add(i * job.x.stride());
                if left >= S::LANES { simd.load(x) } else { simd.load_part(x, left) }
            });
            for (k, sums) in sums.iter_mut().enumerate() {
                let row = p * job.strides.0 + (q + k) * job.strides.1;
                prefetch(job.source.address(row, j + 2 * S::LANES));
                let a = if left >= S::LANES {
                    job.source.load(simd, row, j)
                } else {
                    job.source.load_tail(simd, row, j)
                };
                for i in 0..B {
                    sums[i] = simd.mul_add(a, xs[i], sums[i]);
                }
            }
        }
        for (k, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                let y = job.y.0.add((b + i) * job.y_stride + (q + k) * cols + j);
                if left >= S::LANES { simd.store(y, *sum) } else { simd.store_part(y, *sum, left) }
            }
        }
    }
    B
}
