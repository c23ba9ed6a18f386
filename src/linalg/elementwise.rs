//! Loops over entries, compiled for the instruction sets of the machine.

use super::{Real, Threads, check_finite, lines};
use crate::error::Result;
use ndarray::{Array2, ArrayRef2, ArrayView2, ArrayViewMut2, Axis};

/// Numbers from which threads share a copy.
const LARGE: usize = 1 << 20;

/// A copy in double precision that lies row by row, with [`Error::NonFinite`](crate::Error::NonFinite) for a NaN or an infinity. Getting the memory takes longer
/// than the numbers, so that threads share it.
pub fn finite_copy<T: Real>(what: &'static str, a: &ArrayRef2<T>, threads: Threads) -> Result<Array2<f64>> {
    /// Copies, and tells whether all is finite.
    fn copy<T: Real>(from: ArrayView2<'_, T>, mut to: ArrayViewMut2<'_, f64>, threads: Threads) -> bool {
        let (half, middle) = (threads.0 / 2, from.nrows() / 2);
        if half == 0 || from.len() < LARGE {
            let rows = from.outer_iter().zip(to.outer_iter_mut());
            return rows.fold(true, |finite, (from, mut to)| {
                to.zip_mut_with(&from, |to, from| *to = from.widen());
                to.fold(finite, |finite, x| finite & x.is_finite())
            });
        }
        let (from, to) = (from.split_at(Axis(0), middle), to.split_at(Axis(0), middle));
        let rest = Threads(threads.0 - half);
        let finite = threads.join(|| copy(from.0, to.0, rest), || copy(from.1, to.1, Threads(half)));
        finite.0 & finite.1
    }
    let mut wide = Array2::zeros(a.dim());
    if !copy(a.view(), wide.view_mut(), threads) {
        check_finite(what, a)?;
    }
    Ok(wide)
}

/// The sum of squares; the same for any number of threads, of which two share it.
pub fn energy(a: &ArrayRef2<f64>, threads: Threads) -> f64 {
    fn fill(lines: ArrayView2<'_, f64>, energies: &mut [f64]) {
        vectorised(
            #[inline(always)]
            || {
                for (line, energy) in lines.outer_iter().zip(energies) {
                    *energy = line.to_slice().map_or_else(|| line.dot(&line), |line| dot(line, line));
                }
            },
        );
    }
    let lines = lines(a);
    let mut energies = vec![0.0; lines.nrows()];
    let middle = if lines.len() < LARGE { 0 } else { lines.nrows() / 2 };
    let (first, second) = lines.split_at(Axis(0), middle);
    let (left, right) = energies.split_at_mut(middle);
    threads.join(|| fill(first, left), || fill(second, right));
    energies.iter().sum()
}

/// Calls `f` with what is inlined into it compiled for the best instruction set that the machine has. `f` must be marked
/// `#[inline(always)]`, or it is compiled for the least one.
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// The rows of a matrix in standard layout.
///
/// # Panics
/// For another layout.
pub fn rows<T>(a: &ArrayRef2<T>) -> std::slice::ChunksExact<'_, T> {
    let width = a.ncols().max(1);
    a.as_slice().expect("a matrix in standard layout").chunks_exact(width)
}

/// Likewise.
pub fn rows_mut<T>(a: &mut ArrayRef2<T>) -> std::slice::ChunksExactMut<'_, T> {
    let width = a.ncols().max(1);
    a.as_slice_mut().expect("a matrix in standard layout").chunks_exact_mut(width)
}

/// `out += scale a b`, entry by entry, over the shortest of the three.
#[inline(always)]
pub fn multiply_add<T: Real>(out: &mut [T], scale: T, a: &[T], b: &[T]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out += scale * *a * *b;
    }
}

/// `Σ a b` in `f64`, over the shorter of the two.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    let mut sums = [0.0; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a.widen() * b.widen();
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a.widen() * b.widen()).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_the_numbers_whatever_their_strides() {
        let mut a = Array2::from_shape_fn((1500, 900), |(i, j)| (i * 900 + j) as f32);
        for threads in [1, 2, 3] {
            let copy = |a: &ArrayRef2<f32>| finite_copy("weight", a, Threads(threads)).unwrap();
            let cut = a.slice(ndarray::s![..;-1, 1..;2]);
            assert_eq!(copy(&a), a.mapv(f64::from));
            assert_eq!(copy(&a.t()), a.t().mapv(f64::from));
            assert_eq!(copy(&cut), cut.mapv(f64::from));
            assert!(copy(&a.t()).is_standard_layout());
        }
        a[[1400, 7]] = f32::NAN;
        for threads in [1, 3] {
            let error = finite_copy("weight", &a, Threads(threads)).unwrap_err();
            assert!(matches!(error, crate::Error::NonFinite { row: 1400, col: 7, .. }), "{error}");
        }
    }

    #[test]
    fn energies_do_not_depend_on_threads() {
        // Squares that are rounded, so that sums in another order differ.
        let a = Array2::from_shape_fn((1100, 1000), |(i, j)| ((i * 7 + j) as f64).sin());
        let cut = a.slice(ndarray::s![..;2, 1..;3]);
        for a in [a.view(), a.t(), cut] {
            let (want, got) = (a.iter().map(|x| x * x).sum::<f64>(), energy(&a, Threads(1)));
            assert!((got / want - 1.0).abs() < 1e-12);
            for threads in [2, 3] {
                assert_eq!(energy(&a, Threads(threads)).to_bits(), got.to_bits());
            }
        }
        assert_eq!(energy(&Array2::zeros((0, 3)), Threads(2)), 0.0);
    }

    #[test]
    fn sums_of_products() {
        for len in [0, 1, 15, 16, 17, 70] {
            let a: Vec<f64> = (0..len).map(f64::from).collect();
            let want: f64 = a.iter().map(|x| x * x).sum();
            assert_eq!(
                vectorised(
                    #[inline(always)]
                    || dot(&a, &a)
                ),
                want
            );
            let single: Vec<f32> = a.iter().map(|x| *x as f32).collect();
            assert_eq!(
                vectorised(
                    #[inline(always)]
                    || dot(&single, &single)
                ),
                want
            );
            let mut out = a.clone();
            vectorised(
                #[inline(always)]
                || multiply_add(&mut out, 2.0, &a, &a),
            );
            assert!(out.iter().zip(&a).all(|(out, a)| *out == a + 2.0 * a * a));
        }
    }
}
