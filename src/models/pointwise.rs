//! What is computed row by row between the matrices: softmax, normalization.
//!
//! Loops are plain, without branches on the numbers, so that the compiler makes vectors of them; [`Kernel`] has them compiled for each
//! instruction set. They add and multiply in one order and never fuse, so all instruction sets give the same bits.

use super::architecture::NormKind;
use crate::activation::exp;
use crate::exec::Policy;
use crate::kernels::{Kernel, join};
use crate::scalar::Scalar;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

/// Partial sums, so that a sum is not one chain of additions.
const LANES: usize = 16;

/// Calls `work` with pieces of the rows of `y` and the number of each piece's first row; as many pieces as `tasks`, at the same time.
pub(super) fn over_rows(
    tasks: usize,
    first: usize,
    y: ArrayViewMut2<'_, f32>,
    work: &(impl Fn(usize, ArrayViewMut2<'_, f32>) + Sync),
) {
    if tasks < 2 || y.nrows() < 2 {
        return work(first, y);
    }
    let (at, half) = (y.nrows() / 2, tasks / 2);
    let (left, right) = y.split_at(Axis(0), at);
    join(|| over_rows(tasks - half, first, left, work), || over_rows(half, first + at, right, work));
}

/// Normalizes a row in place.
pub(super) struct Normalize<'a> {
    pub(super) kind: NormKind,
    pub(super) eps: f32,
    pub(super) weight: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) y: ArrayViewMut2<'a, f32>,
}

impl Kernel<f32> for Normalize<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let Self { kind, eps, weight, bias, mut y } = self;
        let n = weight.len() as f32;
        for mut row in y.outer_iter_mut() {
            let Some(row) = row.as_slice_mut() else { continue };
            let mean = if kind == NormKind::LayerNorm { sum(row, |v| v) / n } else { 0.0 };
            let scale = 1.0 / (sum(row, |v| (v - mean) * (v - mean)) / n + eps).sqrt();
            row.iter_mut().zip(weight).for_each(|(v, w)| *v = (*v - mean) * scale * w);
            if let Some(bias) = bias {
                row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
            }
        }
    }
}

/// From the gradient `d` of the result of [`Normalize`] to that of what went in, `x`; in place.
pub(super) struct NormalizeBack<'a> {
    pub(super) kind: NormKind,
    pub(super) eps: f32,
    pub(super) weight: &'a [f32],
    pub(super) x: ArrayView2<'a, f32>,
    pub(super) d: ArrayViewMut2<'a, f32>,
}

impl Kernel<f32> for NormalizeBack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let Self { kind, eps, weight, x, mut d } = self;
        let n = weight.len() as f32;
        for (x, mut d) in x.outer_iter().zip(d.outer_iter_mut()) {
            let (Some(x), Some(d)) = (x.as_slice(), d.as_slice_mut()) else { continue };
            let centred = kind == NormKind::LayerNorm;
            let mean = if centred { sum(x, |v| v) / n } else { 0.0 };
            let scale = 1.0 / (sum(x, |v| (v - mean) * (v - mean)) / n + eps).sqrt();
            d.iter_mut().zip(weight).for_each(|(d, w)| *d *= w);
            let shift = if centred { sum(d, |v| v) / n } else { 0.0 };
            let along = dot(d, x, |v| (v - mean) * scale) / n;
            d.iter_mut().zip(x).for_each(|(d, x)| *d = scale * (*d - shift - (x - mean) * scale * along));
        }
    }
}

/// From the gradient `d` of a softmax to that of what went in, given its result `p`; in place.
pub(super) struct SoftmaxBack<'a> {
    pub(super) p: &'a [f32],
    pub(super) d: &'a mut [f32],
}

impl Kernel<f32> for SoftmaxBack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let Self { p, d } = self;
        let mean = dot(d, p, |v| v);
        d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
    }
}

/// Softmax of a row in place; entries from `seen` on become 0.
pub(super) struct Softmax<'a> {
    pub(super) row: &'a mut [f32],
    pub(super) seen: usize,
}

impl Kernel<f32> for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S>(self, _: S) {
        let (row, unseen) = self.row.split_at_mut(self.seen);
        let largest = fold(row, f32::NEG_INFINITY, |max, v| if v > max { v } else { max });
        row.iter_mut().for_each(|v| *v = exp(*v - largest));
        let scale = 1.0 / sum(row, |v| v);
        row.iter_mut().for_each(|v| *v *= scale);
        unseen.fill(0.0);
    }
}

#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += f(*v);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| f(*v)).sum::<f32>()
}

/// `sum a f(b)`.
#[inline(always)]
fn dot(a: &[f32], b: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * f(*b);
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * f(*b)).sum::<f32>()
}

#[inline(always)]
fn fold(row: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, *v);
        }
    }
    rest.iter().chain(&lanes).fold(start, |all, v| f(all, *v))
}

/// Runs a kernel at the level of a policy.
pub(super) fn run(policy: Policy, kernel: impl Kernel<f32, Output = ()>) {
    f32::dispatch(policy.level, kernel)
}
