//! Sums of blocks scaled entry by entry: how a BLAST matrix couples its blocks.

use super::gemm::Output;
use super::level::Kernel;
use super::simd::Simd;
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
    super::team::join(|| split(left, tasks - half, policy), || split(right, half, policy));
}

impl<T: Scalar, W: Source> Kernel<T> for Job<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        for q in self.outputs.clone() {
            for j in (0..self.source.cols()).step_by(S::LANES) {
                let mut b = 0;
                while b < self.x.rows() {
                    // SAFETY: block, columns and batch rows are in range by the loop bounds and the check of `mix`.
                    unsafe {
                        b += match self.x.rows() - b {
                            4.. => lanes::<T, S, W, 4>(simd, &self, q, j, b),
                            _ => lanes::<T, S, W, 1>(simd, &self, q, j, b),
                        };
                    }
                }
            }
        }
    }
}

/// Up to `LANES` columns from `j` on of block `q`, for `B` batch rows. Returns `B`.
#[inline(always)]
unsafe fn lanes<T: Scalar, S: Simd<T>, W: Source, const B: usize>(
    simd: S,
    job: &Job<'_, T, W>,
    q: usize,
    j: usize,
    b: usize,
) -> usize {
    let cols = job.source.cols();
    let left = cols - j;
    let mut sums = [simd.zero(); B];
    // SAFETY: the caller's.
    unsafe {
        for p in 0..job.inputs {
            let row = p * job.strides.0 + q * job.strides.1;
            let x = job.x.as_ptr().add(b * job.x.stride() + p * cols + j);
            if left >= S::LANES {
                let a = job.source.load(simd, row, j);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add(a, simd.load(x.add(i * job.x.stride())), *sum);
                }
            } else {
                let a = job.source.load_tail(simd, row, j);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add(a, simd.load_part(x.add(i * job.x.stride()), left), *sum);
                }
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            let y = job.y.0.add((b + i) * job.y_stride + q * cols + j);
            if left >= S::LANES { simd.store(y, *sum) } else { simd.store_part(y, *sum, left) }
        }
    }
    B
}
