//! What the structures that multiply by Fourier transforms share: rows over threads, convolutions.

use crate::exec::{SCRATCH_ALIGN, Workspace};
use crate::kernels::{RealFft, Rows, RowsMut};
use crate::matrix::Op;
use crate::scalar::Scalar;
use num_complex::Complex;

/// Tasks at most, which bounds the scratch of large batches.
const MAX_TASKS: usize = 64;

/// Scratch of [`for_rows`] when each task needs `per_task` complex numbers.
pub(crate) fn scratch_len(batch: usize, per_task: usize) -> usize {
    task_len(per_task).saturating_mul(batch.min(MAX_TASKS))
}

fn task_len(per_task: usize) -> usize {
    per_task.saturating_mul(2).checked_next_multiple_of(SCRATCH_ALIGN).unwrap_or(usize::MAX)
}

/// Multiply-adds x 2 of a real transform, by the usual count.
pub(crate) fn transform_flops(len: usize) -> u64 {
    let len = len.max(2) as u64;
    5 * len * u64::from(len.ilog2()) / 2
}

/// Those of a convolution of that length: there, product, back.
pub(crate) fn convolve_flops(len: usize) -> u64 {
    2 * transform_flops(len) + 3 * len as u64
}

/// Calls `work` with each row of `x`, the same row of `y` and a task's scratch, rows split between threads. `flops` counts
/// those of one row.
pub(crate) fn for_rows<T: Scalar>(
    x: Rows<'_, T>,
    y: RowsMut<'_, T>,
    work: Workspace<'_, T>,
    per_task: usize,
    flops: u64,
    each: &(impl Fn(&[T], &mut [T], &mut [Complex<T>]) + Sync),
) {
    let rows = y.rows();
    let tasks = work.policy.tasks((flops / 2) as usize * rows).min(rows).clamp(1, MAX_TASKS);
    let (scratch, _) = work.slice(task_len(per_task) * tasks);
    split(x, y, scratch, tasks, each);
}

fn split<T: Scalar>(
    x: Rows<'_, T>,
    mut y: RowsMut<'_, T>,
    scratch: &mut [T],
    tasks: usize,
    each: &(impl Fn(&[T], &mut [T], &mut [Complex<T>]) + Sync),
) {
    let rows = y.rows();
    if tasks < 2 {
        let scratch = bytemuck::cast_slice_mut(scratch);
        return (0..rows).for_each(|i| each(x.row(i), y.row(i), scratch));
    }
    let half = tasks / 2;
    let at = rows * half / tasks;
    let (top, bottom) = y.split_batch(at);
    let (first, second) = scratch.split_at_mut(scratch.len() / tasks * half);
    crate::kernels::join(
        || split(x.batch(0..at), top, first, half, each),
        || split(x.batch(at..rows), bottom, second, tasks - half, each),
    );
}

/// `z[k] *= w[k]`, with the conjugate of `w` when transposed.
pub(crate) fn pointwise<T: Scalar>(op: Op, w: &[Complex<T>], z: &mut [Complex<T>]) {
    match op {
        Op::Forward => z.iter_mut().zip(w).for_each(|(z, w)| *z = *w * *z),
        Op::Transpose => z.iter_mut().zip(w).for_each(|(z, w)| *z = w.conj() * *z),
    }
}

/// The bins of the real sequence `c`, divided by the length so that an unnormalised inverse is exact; computed in `f64`.
pub(crate) fn spectrum_of<T: Scalar>(c: &[f64]) -> Vec<Complex<T>> {
    let plan = RealFft::<f64>::new(c.len());
    let (mut z, mut scratch) =
        (vec![Complex::default(); plan.bins()], vec![Complex::default(); plan.scratch_len()]);
    plan.forward(c, &mut z, &mut scratch);
    let scale = 1.0 / c.len().max(1) as f64;
    z.iter().map(|z| Complex::new(T::narrow(z.re * scale), T::narrow(z.im * scale))).collect()
}

/// The smallest `2^a 3^b 5^c` that is even and at least `len`: lengths with fast transforms.
pub(crate) fn fast_len(len: usize) -> usize {
    let mut best = len.max(2).next_power_of_two();
    let mut five = 1;
    while five < best {
        let mut three = five;
        while three < best {
            let length = three * len.div_ceil(three).max(2).next_power_of_two();
            best = best.min(length);
            three *= 3;
        }
        five *= 5;
    }
    best
}
