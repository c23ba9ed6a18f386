//! Bits per number under an average.

use crate::error::{Error, Result};
use std::ops::RangeInclusive;

/// Bits for each matrix, from [`bits_reverse_waterfill`].
#[derive(Debug, Clone, PartialEq)]
pub struct BitAllocation {
    /// The optimum over real numbers: its weighted mean is the average asked for.
    pub real: Vec<f64>,
    /// Rounded to whole bits; together at most the budget.
    pub whole: Vec<u32>,
}

/// Bits per number that minimise $\sum_l n_l s_l 4^{-b_l}$ while $\sum_l n_l b_l = \bar b \sum_l n_l$ and all $b_l$ lie in `range`:
/// `importance` $s_l$ is what an error in matrix $l$ counts, `sizes` $n_l$ its numbers, `average` $\bar b$, and a quantizer's squared
/// error falls by four per bit.
///
/// Without the range $b_l = \bar b + \frac12 \log_2 (s_l / \bar s)$ with the geometric mean $\bar s$, weighted by size. With it,
/// $b_l = \mathrm{clamp}(\frac12 \log_2 s_l - \nu)$, where one level $\nu$ for all meets the budget: their sum is piecewise linear in
/// $\nu$, and the level is found on the right piece, so that any mix of matrices at both ends of the range is met exactly. Matrices of no
/// importance get bits only once all others are at the top of the range. Whole bits: rounded down, then one more in the order of the
/// largest remainders, while the budget allows. `O(k log k)` for `k` matrices.
///
/// Source: the classical reverse water-filling of rate-distortion theory, in the role it has in M. Gholami et al., "CASP: Compression of
/// Large Multimodal Models Based on Attention Sparsity", 2025 (importance there: [`block_influence`](crate::analysis::block_influence)).
///
/// # Errors
/// [`Error::Shape`] when the lists differ in length, [`Error::Parameter`] for importance that is negative or not finite, a size of 0, an
/// empty range, or an average outside of it.
///
/// ```
/// use structmat::allocation::bits_reverse_waterfill;
/// let bits = bits_reverse_waterfill(&[1.0, 4.0, 16.0], &[10, 10, 10], 3.0, 1..=8)?;
/// assert_eq!((bits.real, bits.whole), (vec![2.0, 3.0, 4.0], vec![2, 3, 4]));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn bits_reverse_waterfill(
    importance: &[f64],
    sizes: &[u64],
    average: f64,
    range: RangeInclusive<u32>,
) -> Result<BitAllocation> {
    if importance.len() != sizes.len() {
        return Err(Error::shape("sizes", &[importance.len()], &[sizes.len()]));
    }
    if let Some(bad) = importance.iter().find(|s| !(**s >= 0.0 && s.is_finite())) {
        return Err(Error::parameter("importance", bad, "finite numbers >= 0"));
    }
    if sizes.contains(&0) {
        return Err(Error::parameter("sizes", 0, "at least 1"));
    }
    let (low, high) = (f64::from(*range.start()), f64::from(*range.end()));
    if !(low <= average && average <= high) {
        return Err(Error::parameter("average", average, format!("a number in {low} to {high}")));
    }
    let wishes = wishes(importance, high - low);
    let sizes_f: Vec<f64> = sizes.iter().map(|&n| n as f64).collect();
    let level = level(&wishes, &sizes_f, average, (low, high));
    let real: Vec<f64> = wishes.iter().map(|wish| (wish - level).clamp(low, high)).collect();
    let whole = whole(&real, sizes, average, *range.end());
    Ok(BitAllocation { real, whole })
}

/// `log2(s) / 2`, for no importance so low that everything else is full first.
fn wishes(importance: &[f64], width: f64) -> Vec<f64> {
    let wish = |s: f64| 0.5 * s.log2();
    let least = importance.iter().filter(|s| **s > 0.0).map(|s| wish(*s)).fold(f64::INFINITY, f64::min);
    let below = if least.is_finite() { least - width - 1.0 } else { 0.0 };
    importance.iter().map(|&s| if s > 0.0 { wish(s) } else { below }).collect()
}

/// The level at which the bits `clamp(wish - level)` are `average` in the mean.
fn level(wishes: &[f64], sizes: &[f64], average: f64, (low, high): (f64, f64)) -> f64 {
    // At a level of `wish - high` a matrix leaves the top of the range, at `wish - low` it reaches the bottom.
    let mut corners: Vec<f64> = wishes.iter().flat_map(|wish| [wish - high, wish - low]).collect();
    corners.sort_by(f64::total_cmp);
    let total: f64 = sizes.iter().sum();
    let mean = |level: f64| {
        let bits = wishes.iter().zip(sizes).map(|(wish, n)| n * (wish - level).clamp(low, high));
        bits.sum::<f64>() / total
    };
    // The mean falls with the level: the last corner at which it is still enough.
    let at = corners.partition_point(|&corner| mean(corner) >= average);
    let (Some(&from), Some(&to)) = (corners.get(at.saturating_sub(1)), corners.get(at)) else {
        // Everything at the bottom, or nothing to do.
        return corners.last().copied().unwrap_or(0.0);
    };
    let middle = 0.5 * (from + to);
    let free = |wish: f64| low < wish - middle && wish - middle < high;
    let slope: f64 = wishes.iter().zip(sizes).filter(|(wish, _)| free(**wish)).map(|(_, n)| n).sum();
    if slope > 0.0 { from + (mean(from) - average) * total / slope } else { from }
}

/// Rounded down, then up by the largest remainders within the budget.
fn whole(real: &[f64], sizes: &[u64], average: f64, most: u32) -> Vec<u32> {
    let total: u128 = sizes.iter().map(|&n| u128::from(n)).sum();
    // A real optimum that is whole must not be missed by its rounding.
    let budget = (total as f64 * average * (1.0 + 4.0 * f64::EPSILON)).floor() as u128;
    let mut whole: Vec<u32> = real.iter().map(|b| b.floor() as u32).collect();
    let mut used: u128 = whole.iter().zip(sizes).map(|(&b, &n)| u128::from(b) * u128::from(n)).sum();
    let remainder = |k: usize| real[k] - real[k].floor();
    let mut order: Vec<usize> = (0..real.len()).filter(|&k| remainder(k) > 0.0 && whole[k] < most).collect();
    order.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)).then(a.cmp(&b)));
    for k in order {
        if used + u128::from(sizes[k]) <= budget {
            whole[k] += 1;
            used += u128::from(sizes[k]);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Gaussian;

    fn mean(bits: &[f64], sizes: &[u64]) -> f64 {
        let total: f64 = sizes.iter().map(|&n| n as f64).sum();
        bits.iter().zip(sizes).map(|(b, &n)| b * n as f64).sum::<f64>() / total
    }

    #[test]
    fn casp_no_allocation_on_a_grid_loses_less() {
        // All real allocations of three matrices on a fine grid within the budget.
        let (importance, sizes) = ([0.1, 3.0, 900.0], [2u64, 1, 1]);
        let found = bits_reverse_waterfill(&importance, &sizes, 3.0, 2..=5).unwrap().real;
        let loss = |bits: [f64; 3]| -> f64 {
            (0..3).map(|k| sizes[k] as f64 * importance[k] * 4f64.powf(-bits[k])).sum()
        };
        let mut least = f64::INFINITY;
        for i in 0..=300 {
            for j in 0..=300 {
                let (a, b) = (2.0 + 0.01 * f64::from(i), 2.0 + 0.01 * f64::from(j));
                let c = 12.0 - 2.0 * a - b;
                if (2.0..=5.0).contains(&c) {
                    least = least.min(loss([a, b, c]));
                }
            }
        }
        let own = loss([found[0], found[1], found[2]]);
        assert!(own <= least * (1.0 + 1e-12) && own > 0.999 * least, "{own} {least}");
    }

    #[test]
    fn casp_budgets_are_met_at_every_average() {
        let mut gaussian = Gaussian::new(5);
        for count in [1usize, 2, 7, 40] {
            let importance: Vec<f64> =
                (0..count).map(|k| if k % 9 == 8 { 0.0 } else { (3.0 * gaussian.sample()).exp() }).collect();
            let sizes: Vec<u64> = (0..count as u64).map(|k| 1 + k * k % 17).collect();
            for average in [2.0, 2.25, 3.0, 4.7, 7.99, 8.0] {
                let found = bits_reverse_waterfill(&importance, &sizes, average, 2..=8).unwrap();
                assert!((mean(&found.real, &sizes) - average).abs() < 1e-12, "{count} {average}");
                let whole: Vec<f64> = found.whole.iter().map(|&b| f64::from(b)).collect();
                let total = sizes.iter().sum::<u64>() as f64;
                assert!(mean(&whole, &sizes) <= average + 1e-12);
                // Less than the largest matrix's one bit is left over.
                assert!(mean(&whole, &sizes) > average - 17.0 / total);
                assert!(found.whole.iter().all(|b| (2..=8).contains(b)));
            }
        }
    }

    #[test]
    fn bad_input() {
        let go = |s: &[f64], n: &[u64], b, range| bits_reverse_waterfill(s, n, b, range);
        assert!(matches!(go(&[1.0], &[], 3.0, 1..=4), Err(Error::Shape { .. })));
        for s in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(go(&[s], &[1], 3.0, 1..=4), Err(Error::Parameter { .. })));
        }
        assert!(go(&[1.0], &[0], 3.0, 1..=4).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let empty = 4..=1;
        assert!(go(&[1.0], &[1], 3.0, empty).is_err());
        for average in [0.5, 4.5, f64::NAN] {
            assert!(go(&[1.0], &[1], average, 1..=4).is_err());
        }
        assert_eq!(go(&[], &[], 3.0, 1..=4).unwrap().whole, Vec::<u32>::new());
        assert_eq!(go(&[0.0, 0.0], &[1, 3], 3.0, 1..=4).unwrap().real, [3.0, 3.0]);
        // Nothing is left for what does not matter, until there is nothing else.
        let last = go(&[0.0, 1e-9], &[1, 1], 3.0, 1..=4).unwrap();
        assert!((last.real[0] - 2.0).abs() < 1e-12 && last.real[1] == 4.0);
        assert_eq!(go(&[1.0; 2], &[u64::MAX; 2], 3.5, 0..=u32::MAX).unwrap().whole, [4, 3]);
    }
}
