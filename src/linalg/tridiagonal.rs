//! The top of the spectrum of a symmetric tridiagonal matrix: for small ones far cheaper than all of it.

/// The largest eigenvalue with its unit eigenvector, and an upper bound of the second largest.
pub(super) struct Top {
    pub value: f64,
    pub second: f64,
    pub vector: Vec<f64>,
}

/// The leading eigenpair of the positive semi-definite tridiagonal matrix with the given diagonal and
/// off-diagonal (one shorter), by bisection and inverse iteration. `O(n)` per bisection step.
pub(super) fn top(diagonal: &[f64], off: &[f64]) -> Top {
    let n = diagonal.len();
    let beta = |i: usize| off.get(i).map_or(0.0, |b| b.abs());
    let bound =
        (0..n).map(|i| diagonal[i] + beta(i) + if i > 0 { beta(i - 1) } else { 0.0 }).fold(0.0, f64::max);
    let squares: Vec<f64> = off.iter().map(|b| b * b).collect();
    let tiny = f64::MIN_POSITIVE.max(bound * f64::EPSILON * f64::EPSILON);
    // How many eigenvalues exceed x, counted no further than two.
    let above = |x: f64| {
        let (mut pivot, mut count) = (1.0, 0);
        for (i, d) in diagonal.iter().enumerate() {
            let before = if i > 0 { squares.get(i - 1).map_or(0.0, |s| s / pivot) } else { 0.0 };
            pivot = d - x - before;
            if pivot.abs() < tiny {
                pivot = -tiny;
            }
            count += usize::from(pivot > 0.0);
        }
        count
    };
    let (mut low, mut high) = (0.0, bound * (1.0 + 4.0 * f64::EPSILON) + tiny);
    let (mut second_low, mut second_high) = (0.0, high);
    while high - low > 2.0 * f64::EPSILON * high {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        match above(middle) {
            0 => {
                high = middle;
                second_high = middle;
            }
            1 => {
                low = middle;
                second_high = middle;
            }
            _ => {
                low = middle;
                second_low = middle;
            }
        }
    }
    // The second only feeds a gap estimate: a few digits do.
    for _ in 0..12 {
        let middle = 0.5 * (second_low + second_high);
        if above(middle) >= 2 { second_low = middle } else { second_high = middle }
    }
    Top {
        value: 0.5 * (low + high),
        second: second_high,
        vector: inverse_iteration(diagonal, off, high, tiny),
    }
}

/// Eigenvector next to `shift`, which is no less than any eigenvalue: `shift I - T` is then positive
/// definite up to rounding, so that elimination needs no pivoting.
fn inverse_iteration(diagonal: &[f64], off: &[f64], shift: f64, tiny: f64) -> Vec<f64> {
    let n = diagonal.len();
    let mut pivots = Vec::with_capacity(n);
    let mut last = 1.0;
    for i in 0..n {
        let before = if i > 0 { off[i - 1] * off[i - 1] / last } else { 0.0 };
        last = (shift - diagonal[i] - before).max(tiny);
        pivots.push(last);
    }
    let mut x = vec![1.0; n];
    for _ in 0..3 {
        for i in 1..n {
            x[i] += off[i - 1] * x[i - 1] / pivots[i - 1];
        }
        for i in (0..n).rev() {
            let after = if i + 1 < n { off[i] * x[i + 1] } else { 0.0 };
            x[i] = (x[i] + after) / pivots[i];
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
                    assert!(got.second >= full.values[1] - 1e-12 && got.second < full.values[1] + 0.02);
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
