//! The top of the spectrum of a symmetric tridiagonal matrix: for small ones far cheaper than all of it.

/// The largest eigenvalue with its unit eigenvector, and an upper bound of the second largest.
pub(super) struct Top {
    pub value: f64,
    pub second: f64,
    pub vector: Vec<f64>,
}

/// Iterations of Laguerre's method at most; it takes about six.
const MOST_STEPS: usize = 60;

/// The leading eigenpair of the positive semi-definite tridiagonal matrix with the given diagonal and
/// off-diagonal (one shorter), by Laguerre's method and inverse iteration. `O(n)` per step.
pub(super) fn top(diagonal: &[f64], off: &[f64]) -> Top {
    let n = diagonal.len();
    let squares: Vec<f64> = std::iter::once(0.0).chain(off.iter().map(|b| b * b)).collect();
    let beta = |i: usize| off.get(i).map_or(0.0, |b| b.abs());
    let bound =
        (0..n).map(|i| diagonal[i] + beta(i) + if i > 0 { beta(i - 1) } else { 0.0 }).fold(0.0, f64::max);
    let tiny = f64::MIN_POSITIVE.max(bound * f64::EPSILON * f64::EPSILON);
    // Above all eigenvalues, from where the method comes down to the largest without ever passing it, but for rounding.
    let mut x = bound * (1.0 + 4.0 * f64::EPSILON) + tiny;
    let size = n as f64;
    for _ in 0..MOST_STEPS {
        let Some((first, second)) = sums(diagonal, &squares, x) else { break };
        let root = ((size - 1.0) * (size * second - first * first)).max(0.0).sqrt();
        let next = x - size / (first + root);
        if next.is_nan() || next >= x - 2.0 * f64::EPSILON * x {
            break;
        }
        x = next;
    }
    // With all others, the second adds so much to the sum of squares at a place a little above the first, whose part is known up to
    // rounding.
    let above = x * (1.0 + 1e-3);
    let second = match sums(diagonal, &squares, above) {
        Some((_, squares)) => above - (squares - (1.0 - 1e-11) * (above - x).powi(-2)).max(0.0).powf(-0.5),
        None => x,
    };
    let shift = x * (1.0 + 8.0 * f64::EPSILON);
    Top { value: x, second: second.min(x), vector: inverse_iteration(diagonal, off, shift, tiny) }
}

/// $\sum 1 / (x - \lambda_i)$ and $\sum 1 / (x - \lambda_i)^2$, the first two logarithmic derivatives of the characteristic polynomial, from the
/// pivots of $x I - T$ and their derivatives. `None` where `x` is not above all eigenvalues.
fn sums(diagonal: &[f64], squares: &[f64], x: f64) -> Option<(f64, f64)> {
    let (mut first, mut second) = (0.0, 0.0);
    // Of the last pivot: its inverse, and its logarithmic derivatives.
    let (mut inverse, mut slope, mut bend) = (0.0, 0.0, 0.0);
    for (d, b) in diagonal.iter().zip(squares) {
        let ratio = b * inverse;
        let pivot = x - d - ratio;
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        inverse = 1.0 / pivot;
        // p = x - d - b / q: p' = 1 + b q'/q², p'' = b (q''/q² - 2 q'²/q³).
        let (p1, p2) = (1.0 + ratio * slope, ratio * (bend - 2.0 * slope * slope));
        (slope, bend) = (p1 * inverse, p2 * inverse);
        first += slope;
        second += slope * slope - bend;
    }
    Some((first, second))
}

/// Eigenvector next to `shift`, which is no less than any eigenvalue: `shift I - T` is then positive
/// definite up to rounding, so that elimination needs no pivoting.
fn inverse_iteration(diagonal: &[f64], off: &[f64], shift: f64, tiny: f64) -> Vec<f64> {
    let n = diagonal.len();
    // Multipliers of elimination, and inverses of pivots.
    let (mut steps, mut inverses) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let (mut step, mut before) = (0.0, 0.0);
    for (i, d) in diagonal.iter().enumerate() {
        let inverse = 1.0 / (shift - d - before * step).max(tiny);
        inverses.push(inverse);
        before = off.get(i).copied().unwrap_or(0.0);
        step = before * inverse;
        steps.push(step);
    }
    let mut x = vec![1.0; n];
    for _ in 0..3 {
        for i in 1..n {
            x[i] += steps[i - 1] * x[i - 1];
        }
        x[n - 1] *= inverses[n - 1];
        for i in (0..n - 1).rev() {
            x[i] = x[i] * inverses[i] + steps[i] * x[i + 1];
        }
        let largest = x.iter().fold(0.0, |m: f64, y| m.max(y.abs())).max(f64::MIN_POSITIVE);
        x.iter_mut().for_each(|y| *y /= largest);
        let norm = x.iter().map(|y| y * y).sum::<f64>().sqrt();
        x.iter_mut().for_each(|y| *y /= norm);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::super::testing::gaussian;
    use super::super::{Threads, eigh};
    use super::*;
    use ndarray::Array2;

    #[test]
    fn agrees_with_the_full_decomposition() {
        for n in [1, 2, 3, 10, 40] {
            for seed in 0..10 {
                let g = gaussian(2, n, seed);
                let off: Vec<f64> = (1..n).map(|i| 0.3 * g[[1, i]]).collect();
                let diagonal: Vec<f64> = (0..n).map(|i| g[[0, i]].abs() + 2.0).collect();
                let t = Array2::from_shape_fn((n, n), |(i, j)| match i.abs_diff(j) {
                    0 => diagonal[i],
                    1 => off[i.min(j)],
                    _ => 0.0,
                });
                let full = eigh(&t, Threads(1)).unwrap();
                let got = top(&diagonal, &off);
                assert!((got.value - full.values[0]).abs() < 1e-13 * full.values[0]);
                let x = ndarray::Array1::from(got.vector);
                let residual = t.dot(&x) - &x * full.values[0];
                assert!(residual.dot(&residual).sqrt() < 1e-13 * full.values[0]);
                if n > 1 {
                    let (gap, found) = (full.values[0] - full.values[1], full.values[0] - got.second);
                    // At worst all others lie where the second does.
                    let least = gap / ((n - 1) as f64).sqrt() - 2e-3 * full.values[0];
                    assert!(found <= gap + 1e-12 && found > least, "{n} {seed}: {found} of {gap}");
                }
            }
        }
    }

    #[test]
    fn degenerate() {
        assert_eq!(top(&[0.0, 0.0], &[0.0]).vector.len(), 2);
        let equal = top(&[2.0, 2.0], &[0.0]);
        assert!((equal.value - 2.0).abs() < 1e-14 && equal.second >= 2.0);
        assert!(equal.vector.iter().all(|x| x.is_finite()));
    }
}
