//! The normal equations of a step: sums of Gram matrices that carry diagonals, and solves with them.

use crate::linalg::{Real, Threads, dot, matmul, multiply_add, rows, rows_mut, vectorised};
use ndarray::{Array2, ArrayRef2};

/// When conjugate gradients end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accuracy {
    /// Steps at most.
    pub(super) steps: usize,
    /// Norm of the residual, preconditioned, relative to that of the right-hand side.
    pub(super) residual: f64,
}

/// `X` with `X G ≈ B` for a symmetric positive semi-definite `G`: conjugate gradients from 0 for every row of `B`, preconditioned by the
/// diagonal. However few the steps, `X` is the best in a space of directions: `tr(X G Xᵀ) = tr(X Bᵀ)`.
pub(super) fn approach<T: Real>(
    gram: &Array2<T>,
    b: &Array2<T>,
    accuracy: Accuracy,
    threads: Threads,
) -> Array2<T> {
    let inverse = |d: &T| T::narrow(if d.widen() > 0.0 { d.widen().recip() } else { 0.0 });
    let inverse: Vec<T> = gram.diag().iter().map(inverse).collect();
    let mut x = Array2::zeros(b.dim());
    let mut along = Array2::zeros(b.dim());
    let mut residual = b.clone();
    let mut steepest = vec![T::zero(); b.ncols()];
    let mut energies = vec![0.0; b.nrows()];
    vectorised(
        #[inline(always)]
        || {
            for ((along, residual), energy) in rows_mut(&mut along).zip(rows(b)).zip(&mut energies) {
                multiply_add(along, T::one(), residual, &inverse);
                *energy = dot(along, residual);
            }
        },
    );
    let enough = accuracy.residual * accuracy.residual * energies.iter().sum::<f64>();
    for _ in 0..accuracy.steps {
        // The matrix is symmetric: its rows are its columns.
        let image = matmul(&along, gram, threads);
        vectorised(
            #[inline(always)]
            || {
                let rows =
                    rows_mut(&mut x).zip(rows_mut(&mut residual)).zip(rows_mut(&mut along)).zip(rows(&image));
                for ((((x, residual), along), image), energy) in rows.zip(&mut energies) {
                    let length = *energy / dot(along, image);
                    if length > 0.0 && length.is_finite() {
                        let length = T::narrow(length);
                        for ((x, residual), (along, image)) in
                            x.iter_mut().zip(&mut *residual).zip(along.iter().zip(image))
                        {
                            *x += length * *along;
                            *residual -= length * *image;
                        }
                        for ((steepest, residual), inverse) in
                            steepest.iter_mut().zip(&*residual).zip(&inverse)
                        {
                            *steepest = *residual * *inverse;
                        }
                        let left = dot(residual, &steepest);
                        let ratio = T::narrow(left / *energy);
                        for (along, steepest) in along.iter_mut().zip(&steepest) {
                            *along = *steepest + ratio * *along;
                        }
                        *energy = left;
                    } else {
                        // Solved, or the matrix is singular.
                        *energy = 0.0;
                    }
                }
            },
        );
        if energies.iter().sum::<f64>() <= enough {
            break;
        }
    }
    x
}

/// `out += Σ diag(a) G diag(b)` over the terms.
pub(super) fn add_weighted<'a, T: Real>(
    out: &mut Array2<T>,
    terms: impl Iterator<Item = (&'a [T], &'a Array2<T>, &'a [T])>,
) {
    let mut terms: Vec<_> = terms.map(|(a, gram, b)| (a, rows(gram), b)).collect();
    vectorised(
        #[inline(always)]
        || {
            // Row by row, so that what is summed stays near.
            for (k, out) in rows_mut(out).enumerate() {
                for (a, grams, b) in &mut terms {
                    let Some(gram) = grams.next() else { return };
                    multiply_add(out, a[k], gram, b);
                }
            }
        },
    );
}

/// `out += A diag(s)`.
pub(super) fn add_scaled<T: Real>(out: &mut ArrayRef2<T>, a: &ArrayRef2<T>, s: &[T]) {
    vectorised(
        #[inline(always)]
        || {
            for (out, a) in rows_mut(out).zip(rows(a)) {
                multiply_add(out, T::one(), a, s);
            }
        },
    );
}

/// `diag(Aᵀ B)`, as a row.
pub(super) fn column_dots<T: Real>(a: &ArrayRef2<T>, b: &ArrayRef2<T>) -> Array2<T> {
    let mut out = vec![T::zero(); a.ncols()];
    vectorised(
        #[inline(always)]
        || {
            for (a, b) in rows(a).zip(rows(b)) {
                multiply_add(&mut out, T::one(), a, b);
            }
        },
    );
    Array2::from_shape_fn((1, out.len()), |(_, k)| out[k])
}

/// `A ∘ B`.
pub(super) fn hadamard<T: Real>(a: &Array2<T>, b: &Array2<T>) -> Array2<T> {
    let mut out = Array2::zeros(a.dim());
    vectorised(
        #[inline(always)]
        || {
            for ((out, a), b) in rows_mut(&mut out).zip(rows(a)).zip(rows(b)) {
                multiply_add(out, T::one(), a, b);
            }
        },
    );
    out
}

/// `tr(Aᵀ B)`.
pub(super) fn inner<T: Real>(a: &ArrayRef2<T>, b: &ArrayRef2<T>) -> f64 {
    let mut sum = 0.0;
    vectorised(
        #[inline(always)]
        || {
            for (a, b) in rows(a).zip(rows(b)) {
                sum += dot(a, b);
            }
        },
    );
    sum
}
