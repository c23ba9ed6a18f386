//! Loops over entries, compiled for the instruction sets of the machine.

use super::Real;
use ndarray::ArrayRef2;

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
