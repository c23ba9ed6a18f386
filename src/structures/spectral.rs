//! What the structures that multiply by Fourier transforms share: rows over threads, convolutions.

use super::shares::{Shares, share_len};
use crate::exec::Workspace;
use crate::kernels::{Convolution, Level, RealFft, Rows, RowsMut, SpectrumCache, spectrum_len};
use crate::linalg;
use crate::matrix::{Op, Operands, Update};
use crate::scalar::Scalar;
use ndarray::{Array1, Array2, ArrayRef2};
use num_complex::Complex;
use std::ops::Range;

/// Tasks at most, which bounds the scratch of large batches.
const MAX_TASKS: usize = 64;

/// Threads that share the outputs of one row at most: each transforms all of its inputs.
const MAX_PARTS: usize = 4;

/// Scratch of [`for_rows`] when each task needs `per_task` entries.
pub(crate) fn scratch_len(batch: usize, per_task: usize) -> usize {
    share_len(per_task).saturating_mul(batch.min(MAX_TASKS))
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

/// Calls `each` with each row of `x`, the same row of `y` and a task's scratch, rows split between threads. `flops` counts
/// those of one row.
pub(crate) fn for_rows<T: Scalar>(
    x: Rows<'_, T>,
    y: RowsMut<'_, T>,
    work: Workspace<'_, T>,
    per_task: usize,
    flops: u64,
    each: &(impl Fn(&[T], &mut [T], &mut [T]) + Sync),
) {
    for_parts(x, y, work, per_task, flops, &|x, mut y, scratch| {
        (0..y.rows()).for_each(|i| each(x.row(i), y.row(i), scratch));
    });
}

/// Calls `each` with parts of `x`, the same rows of `y` and a task's scratch, one part for each thread.
fn for_parts<T: Scalar>(
    x: Rows<'_, T>,
    y: RowsMut<'_, T>,
    work: Workspace<'_, T>,
    per_task: usize,
    flops: u64,
    each: &(impl Fn(Rows<'_, T>, RowsMut<'_, T>, &mut [T]) + Sync),
) {
    let rows = y.rows();
    let tasks = work.policy.tasks((flops / 2) as usize * rows).min(rows).clamp(1, MAX_TASKS);
    let (scratch, _) = work.slice(share_len(per_task) * tasks);
    Shares { count: tasks, together: 1 }.run(x, y, scratch, each);
}

/// Rows that a grid of convolutions takes through its product together: several where weights outnumber the spectra of a row.
fn group((a, b): (usize, usize)) -> usize {
    if a * b < 2 * (a + b) { 1 } else { 8 }
}

/// Parts of the outputs of one row, of which each has two.
fn most_parts(outputs: usize) -> usize {
    (outputs / 2).clamp(1, MAX_PARTS)
}

/// Scratch of [`convolve`], with rows of `row` numbers.
pub(crate) fn convolve_scratch_len(
    batch: usize,
    len: usize,
    shape: (usize, usize),
    row: usize,
    cache: &SpectrumCache,
) -> usize {
    let task = convolve_task_len(batch, len, shape, row, cache);
    // For either direction.
    let parts = if batch == 1 && row == 0 { most_parts(shape.0.max(shape.1)) } else { 1 };
    scratch_len(batch, task).max(share_len(task).saturating_mul(parts))
}

/// Spectra of a group of rows, a row, and what transforms need.
fn convolve_task_len(
    batch: usize,
    len: usize,
    shape: (usize, usize),
    row: usize,
    cache: &SpectrumCache,
) -> usize {
    let spectra =
        group(shape).min(batch).saturating_mul((shape.0 + shape.1).saturating_mul(spectrum_len(len)));
    spectra
        .saturating_add(share_len(row).saturating_mul(2))
        .saturating_add(cache.transform_scratch_len(&[len]))
}

/// A product of a grid of convolutions. `read` names the inputs of a row, one after the other, which it may put into a row of scratch of `row`
/// numbers; `write` has the outputs computed, by its last argument, which takes what a leading part of them is to do to what.
pub(crate) fn convolve<T: Scalar>(
    convolution: &Convolution<T>,
    cache: &SpectrumCache,
    flops: u64,
    row: usize,
    Operands { op, x, mut y, update, work }: Operands<'_, T>,
    read: &(impl for<'a> Fn(&'a [T], &'a mut [T]) -> &'a [T] + Sync),
    write: &(impl Fn(&mut [T], &mut [T], &mut dyn FnMut(&mut [T], Update)) + Sync),
) {
    if x.cols() == 0 || y.cols() == 0 {
        if update == Update::Overwrite {
            y.fill(T::zero());
        }
        return;
    }
    let Convolution { transform, grid } = convolution;
    let (shape, len, level) = (grid.shape(), transform.len(), work.policy.level);
    let (outputs, inputs) = op.order(shape.0, shape.1);
    let (block, group) = (spectrum_len(len), group(shape).min(x.rows()).max(1));
    let (x_len, y_len) = (inputs * block, outputs * block);
    let per_task = convolve_task_len(x.rows(), len, shape, row, cache);
    // Threads share several rows, and the outputs of one, where weights take longer than the way to another core and back.
    let parts = work.policy.tasks(grid.len() / 2).min(most_parts(outputs));
    if x.rows() == 1 && row == 0 && parts > 1 {
        let (scratch, _) = work.slice(share_len(per_task) * parts);
        let part = Part { convolution, op, level, x: x.row(0), update, outputs: 0..outputs };
        return part.split(y, scratch, parts);
    }
    for_parts(x, y, work, per_task, flops, &|x, mut y, scratch| {
        let (before, scratch) = scratch.split_at_mut(group * x_len);
        let (after, scratch) = scratch.split_at_mut(group * y_len);
        let (space, scratch) = scratch.split_at_mut(2 * share_len(row));
        let (in_row, out_row) = space.split_at_mut(share_len(row));
        let (in_row, out_row) = (&mut in_row[..row], &mut out_row[..row]);
        for start in (0..y.rows()).step_by(group) {
            let rows = group.min(y.rows() - start);
            let (before, after) = (&mut before[..rows * x_len], &mut after[..rows * y_len]);
            if convolution.is_alone() {
                let x = read(x.row(start), in_row);
                write(y.row(start), out_row, &mut |y, update| {
                    convolution.convolve(level, op, x, y, update, scratch)
                });
                continue;
            }
            for (k, z) in before.chunks_exact_mut(x_len).enumerate() {
                transform.forward(level, read(x.row(start + k), in_row), inputs, z, scratch);
            }
            grid.multiply(level, op, rows, 0..outputs, before, after);
            for (k, z) in after.chunks_exact(y_len).enumerate() {
                let mut inverse =
                    |y: &mut [T], update| transform.inverse(level, z, outputs, y, update, scratch);
                write(y.row(start + k), out_row, &mut inverse);
            }
        }
    });
}

/// Some outputs of a product of a grid of convolutions with one row.
struct Part<'a, T> {
    convolution: &'a Convolution<T>,
    op: Op,
    level: Level,
    x: &'a [T],
    update: Update,
    outputs: Range<usize>,
}

impl<T: Scalar> Part<'_, T> {
    /// In so many parts, each with its share of the scratch.
    fn split(self, y: RowsMut<'_, T>, scratch: &mut [T], parts: usize) {
        if parts < 2 {
            return self.multiply(y, scratch);
        }
        let (Range { start, end }, half) = (self.outputs.clone(), parts / 2);
        let at = start + (end - start) * half / parts;
        let columns = ((at - start) * self.convolution.transform.len()).min(y.cols());
        let (left, right) = y.split_columns(columns);
        let (first, second) = scratch.split_at_mut(scratch.len() / parts * half);
        let (one, other) = (Self { outputs: start..at, ..self }, Self { outputs: at..end, ..self });
        crate::kernels::join(
            || one.split(left, first, half),
            move || other.split(right, second, parts - half),
        );
    }

    /// All inputs there, their products, and these outputs back.
    fn multiply(self, mut y: RowsMut<'_, T>, scratch: &mut [T]) {
        let Self { convolution: Convolution { transform, grid }, op, level, x, update, outputs } = self;
        let (_, inputs) = op.order(grid.shape().0, grid.shape().1);
        let (block, count) = (spectrum_len(transform.len()), outputs.len());
        let (before, scratch) = scratch.split_at_mut(inputs * block);
        let (after, scratch) = scratch.split_at_mut(count * block);
        transform.forward(level, x, inputs, before, scratch);
        grid.multiply(level, op, 1, outputs, before, after);
        transform.inverse(level, after, count, y.row(0), update, scratch);
    }
}

/// Spectra of the rows of `x`, zero-padded to the length of the transform.
pub(crate) fn spectra<T: Scalar>(fft: &RealFft<T>, x: &ArrayRef2<T>) -> Array2<Complex<T>> {
    let mut spectra = Array2::zeros((x.nrows(), fft.bins()));
    let mut row = vec![T::zero(); fft.len()];
    let mut scratch = vec![Complex::default(); fft.scratch_len()];
    for (x, z) in x.outer_iter().zip(linalg::rows_mut(&mut spectra)) {
        row.iter_mut().zip(&x).for_each(|(to, from)| *to = *from);
        fft.forward(&row, z, &mut scratch);
    }
    spectra
}

/// `h[k]`, the sum of `dy[b, i] x[b, j]` over the batch `b` and over `i - j = k` modulo the length of the transform, for spectra of `dy` and
/// `x`: the gradient of a convolution.
pub(crate) fn correlate<T: Scalar>(
    fft: &RealFft<T>,
    dy: &Array2<Complex<T>>,
    x: &Array2<Complex<T>>,
) -> Array1<T> {
    let mut sum = vec![Complex::default(); fft.bins()];
    for (dy, x) in dy.outer_iter().zip(x.outer_iter()) {
        sum.iter_mut().zip(dy).zip(x).for_each(|((sum, dy), x)| *sum += dy * x.conj());
    }
    let (mut h, mut scratch) = (vec![T::zero(); fft.len()], vec![Complex::default(); fft.scratch_len()]);
    fft.inverse(&mut sum, &mut h, Update::Overwrite, &mut scratch);
    let len = T::narrow(fft.len() as f64);
    h.into_iter().map(|h| h / len).collect()
}
