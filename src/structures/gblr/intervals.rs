//! The best window for given gains of its features.

use super::window::CyclicWindow;

/// The cyclic interval of the largest sum, not empty, and that sum: the best interval that does not wrap, or all but the one of least
/// sum. All of `gains` where nothing is better.
pub(super) fn best_interval(gains: &[f64]) -> (CyclicWindow, f64) {
    let n = gains.len();
    let (start, end, most) = extreme(gains, |a, b| a > b);
    let (from, to, least) = extreme(gains, |a, b| a < b);
    let around = gains.iter().sum::<f64>() - least;
    if to - from < n && around > most {
        let len = n - (to - from);
        return (CyclicWindow { start: if len == n { 0 } else { to % n }, len }, around);
    }
    (CyclicWindow { start, len: end - start }, most)
}

/// The interval of the most extreme sum: where it starts, where it ends, and the sum.
fn extreme(gains: &[f64], better: impl Fn(f64, f64) -> bool) -> (usize, usize, f64) {
    let Some(&first) = gains.first() else { return (0, 0, 0.0) };
    let (mut best, mut start, mut sum) = ((0, 1, first), 0, first);
    for (i, &gain) in gains.iter().enumerate().skip(1) {
        // A sum that makes what follows no better is left behind.
        if better(sum, 0.0) {
            sum += gain;
        } else {
            (start, sum) = (i, gain);
        }
        if better(sum, best.2) {
            best = (start, i + 1, sum);
        }
    }
    best
}

/// The cyclic interval of `len` entries (at most all) with the largest sum.
pub(super) fn best_of_length(gains: &[f64], len: usize) -> CyclicWindow {
    let (n, len) = (gains.len(), len.min(gains.len()));
    let mut sum: f64 = gains[..len].iter().sum();
    let (mut best, mut most) = (0, sum);
    // Of all entries there is one such interval.
    for start in 1..if len < n { n } else { 0 } {
        sum += gains[(start + len - 1) % n] - gains[start - 1];
        if sum > most {
            (best, most) = (start, sum);
        }
    }
    CyclicWindow { start: best, len }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Gaussian;

    #[test]
    fn intervals_are_the_best_of_all() {
        let mut gaussian = Gaussian::new(1);
        for n in (1..20).chain([40]) {
            for shift in [-3.0, -0.5, 0.0, 0.5, 3.0] {
                let gains: Vec<f64> = (0..n).map(|_| gaussian.sample() + shift).collect();
                let sum = |window: CyclicWindow| window.features(n).map(|i| gains[i]).sum::<f64>();
                let (found, value) = best_interval(&gains);
                assert!((1..=n).contains(&found.len) && found.start < n);
                assert!((sum(found) - value).abs() < 1e-12);
                for len in 1..=n {
                    let fixed = sum(best_of_length(&gains, len));
                    for start in 0..n {
                        let other = sum(CyclicWindow { start, len });
                        assert!(other <= value + 1e-12 && other <= fixed + 1e-12, "{gains:?}");
                    }
                }
            }
        }
        assert_eq!(best_interval(&[1.0; 4]).0, CyclicWindow::full(4));
        assert_eq!(best_interval(&[2.0, -9.0, 1.0]).0, CyclicWindow { start: 2, len: 2 });
    }
}
