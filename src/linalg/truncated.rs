//! Truncated SVD: exact, or by a randomised block Krylov method with an a-posteriori error control.

use super::krylov::Krylov;
use super::packed::Packed;
use super::{Svd, Threads, check_finite, energy, matmul_into, svd};
use crate::error::{Error, Result};
use crate::scalar::Scalar;
use crate::storage::Storage;
use ndarray::ArrayRef2;

/// How [`truncated_svd`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SvdMethod {
    /// Randomised where that is cheaper, exact otherwise.
    #[default]
    Auto,
    /// The full SVD, cut.
    Exact,
    /// Randomised whatever the size; still falls back to exact when it does not converge.
    Randomized,
}

/// Options of [`truncated_svd`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SvdOptions {
    /// Which method.
    pub method: SvdMethod,
    /// Directions tracked beyond the rank before convergence is judged (16).
    pub oversample: usize,
    /// Most blocks to add to the search space before falling back to the exact SVD (64).
    pub max_iterations: usize,
    /// Accepted excess of the error over the optimum, relative to the optimum (1e-3).
    pub tolerance: f64,
    /// Seed of the random start.
    pub seed: u64,
}

impl Default for SvdOptions {
    fn default() -> Self {
        Self { method: SvdMethod::Auto, oversample: 16, max_iterations: 64, tolerance: 1e-3, seed: 0 }
    }
}

/// A truncated SVD and how good it is.
#[derive(Debug, Clone)]
pub struct TruncatedSvd {
    /// The leading components.
    pub svd: Svd,
    /// `||A - A_r||_F` to five digits, also when it is tiny against `||A||_F`.
    pub error: f64,
    /// Blocks added to the search space; 0 when the exact SVD was all there was.
    pub iterations: usize,
    /// Whether the exact SVD was cut.
    pub exact: bool,
}

/// Best rank-`rank` approximation of an `m x n` matrix (`rank` is capped at `min(m, n)`).
///
/// The randomised method grows a Krylov space of `AᵀA` (or `AAᵀ`, whichever is smaller) block by block,
/// at `4 m n` flops per direction (of `f32` unless the error is tiny), and stops when the energy still to be
/// gained, extrapolated from the last gains and checked with a fresh random probe, is below the tolerance.
/// At a rank of an eighth of 4096 that is eight to ten times cheaper than the exact SVD. Memory: the matrix twice more in
/// those numbers, and two `f32` vectors per direction; two to three times as many directions as the rank.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinite entries, [`Error::Parameter`] for a tolerance that is not a
/// positive number.
pub fn truncated_svd(
    a: &ArrayRef2<f64>,
    rank: usize,
    options: &SvdOptions,
    threads: Threads,
) -> Result<TruncatedSvd> {
    let energy = energy(a, threads);
    if !energy.is_finite() {
        check_finite("matrix", a)?;
    }
    if options.tolerance.is_nan() || options.tolerance <= 0.0 {
        return Err(Error::parameter("tolerance", options.tolerance, "a positive number"));
    }
    let (m, n) = a.dim();
    let rank = rank.min(m).min(n);
    let randomized = match options.method {
        SvdMethod::Exact => false,
        SvdMethod::Auto => pays(m.min(n), rank),
        SvdMethod::Randomized => true,
    };
    // Energies outside this range over- or underflow; the exact SVD scales.
    if randomized && rank > 0 && rank < m.min(n) && (1e-200..1e200).contains(&energy) {
        let tall = if n <= m { a.view() } else { a.t() };
        let search = Search { a: &tall, rank, energy, options, threads };
        if let Some(found) = search.run()? {
            return Ok(if n <= m { found } else { TruncatedSvd { svd: found.svd.transpose(), ..found } });
        }
    }
    let full = svd(a, threads)?;
    let top = full.s.first().copied().unwrap_or(0.0);
    // Scaled, so that squares of tiny or huge values are representable.
    let tail: f64 =
        full.s[rank..].iter().rev().map(|x| if top > 0.0 { (x / top).powi(2) } else { 0.0 }).sum();
    Ok(TruncatedSvd { svd: full.truncate(rank), error: top * tail.sqrt(), iterations: 0, exact: true })
}

/// Whether the randomised method beats the exact SVD for the smaller dimension `k`: measured, not
/// derived. A rank above an eighth needs a search space too close to everything.
fn pays(k: usize, rank: usize) -> bool {
    k >= 192 && 8 * rank <= k
}

/// The randomised method for an `m x n` matrix, `m >= n`.
struct Search<'a> {
    a: &'a ArrayRef2<f64>,
    rank: usize,
    /// `||A||_F²`.
    energy: f64,
    options: &'a SvdOptions,
    threads: Threads,
}

/// Takes a decomposition from the space where energies do not resolve it.
type Fine<T> = fn(&Krylov<'_, T>) -> Result<Svd>;

enum Outcome {
    Found(TruncatedSvd),
    /// The error cannot be told from rounding in this precision.
    TooFine,
    /// Not within the budget.
    TooSlow,
}

impl Search<'_> {
    /// `None` when it does not converge within the budget. The space is built in `f32`, at half the cost, while that resolves the
    /// error; what is taken from it is computed in `f64` always.
    fn run(&self) -> Result<Option<TruncatedSvd>> {
        let mut outcome = Outcome::TooFine;
        if (1e-25..1e25).contains(&self.energy) {
            outcome = self.within::<f32>(Storage::F32, None)?;
        }
        if let Outcome::TooFine = outcome {
            outcome = self.within::<f64>(Storage::F64, Some(|krylov| krylov.fine_ritz()))?;
        }
        match outcome {
            Outcome::Found(found) => Ok(Some(found)),
            Outcome::TooFine | Outcome::TooSlow => Ok(None),
        }
    }

    /// With a space of those numbers. `fine` resolves what energies do not, where the precision allows it.
    fn within<T: Scalar>(&self, storage: Storage, fine: Option<Fine<T>>) -> Result<Outcome> {
        let &Self { rank, energy, options, threads, .. } = self;
        let n = self.a.ncols();
        let goal = (rank + options.oversample.max(2)).min(n);
        let block = goal.div_ceil(3).clamp(8, 64).min(n);
        // Beyond this the small problems cost as much as the exact SVD of the whole.
        let limit = if options.method == SvdMethod::Randomized { n } else { n * 5 / 8 };
        let finish = |svd, error, iterations| {
            Ok(Outcome::Found(TruncatedSvd { svd, error, iterations, exact: false }))
        };
        let packed = Packed::new(self.a, storage, threads);
        let mut krylov = Krylov::new(&packed, rank, options.seed, threads);
        let mut judge = Judge::default();
        let mut next = goal;
        krylov.start(block);
        for iteration in 1..=options.max_iterations {
            krylov.multiply();
            if krylov.len() >= next || krylov.len() == n {
                // The eigenvalues that tell cost as much as a block.
                next = krylov.len() + 2 * block;
                let captured = krylov.captured()?;
                let mut left = energy - captured.energy;
                let resolved = match fine {
                    // Subtraction of nearly equal energies loses the digits: measure the residual instead.
                    Some(fine) if left <= 1e-9 * energy => {
                        let svd = fine(&krylov)?;
                        let error = self.residual(&svd);
                        left = error * error;
                        if left <= 1e-26 * energy {
                            return finish(svd, error, iteration);
                        }
                        Some((svd, error))
                    }
                    None if left * options.tolerance <= 5e-7 * energy => return Ok(Outcome::TooFine),
                    _ => None,
                };
                if krylov.len() == n || judge.converged(left, resolved.is_some(), options.tolerance) {
                    // The extrapolation cannot see a direction that the start happened to miss, such as
                    // further copies of a multiple singular value.
                    let (missed, probe) = krylov.probe();
                    if missed - captured.least <= options.tolerance * left {
                        if let Some((svd, error)) = resolved {
                            return finish(svd, error, iteration);
                        }
                        // Single precision would not do for what is that small.
                        let exact = (fine.is_none() && left <= 1e-2 * energy).then_some(self.a);
                        let svd = krylov.ritz(&captured, exact)?;
                        let left = energy - svd.s.iter().map(|x| x * x).sum::<f64>();
                        let error = if left > 1e-6 * energy { left.sqrt() } else { self.residual(&svd) };
                        return finish(svd, error, iteration);
                    }
                    krylov.adopt(probe);
                    judge = Judge::default();
                    continue;
                }
            }
            if krylov.len() >= limit {
                return Ok(Outcome::TooSlow);
            }
            krylov.expand(block);
        }
        Ok(Outcome::TooSlow)
    }

    /// `||A - U S Vᵀ||_F`, computed entry by entry.
    fn residual(&self, svd: &Svd) -> f64 {
        let mut difference = self.a.to_owned();
        let mut us = svd.u.clone();
        for (k, sigma) in svd.s.iter().enumerate() {
            us.column_mut(k).mapv_inplace(|x| -x * sigma);
        }
        matmul_into(&us, &svd.vt, &mut difference, true, self.threads);
        difference.iter().map(|x| x * x).sum::<f64>().sqrt()
    }
}

/// Least ratio of one gain to the one before that is counted on.
const LEAST_RATIO: f64 = 0.15;

/// Extrapolates what further blocks would gain.
#[derive(Debug, Default)]
struct Judge {
    fine: bool,
    left: Vec<f64>,
}

impl Judge {
    /// Whether the error, `left` when squared, is within the tolerance of its limit: the gains shrink about
    /// geometrically, so that what is still to come is the last gain times `ratio / (1 - ratio)`.
    fn converged(&mut self, left: f64, fine: bool, tolerance: f64) -> bool {
        if fine != self.fine {
            // Energies measured in two ways do not compare.
            *self = Self { fine, left: Vec::new() };
        }
        self.left.push(left);
        let &[.., first, second, third, fourth] = self.left.as_slice() else { return false };
        let gains = [first - second, second - third, third - fourth].map(|gain| gain.max(0.0));
        let ratio = |k: usize| if gains[k] > 0.0 { gains[k + 1] / gains[k] } else { 1.0 };
        // Convergence gets faster, so that the ratio falls as it fell before. Early gains may come from a few outlying directions, and
        // fall faster than the rest will: never count on much less than the last gain again.
        let next = ratio(1) * (ratio(1) / ratio(0)).clamp(0.5, 1.0);
        let next = if next.is_nan() { LEAST_RATIO } else { next.clamp(LEAST_RATIO, 0.95) };
        // The error exceeds the optimum by half the relative excess of its square.
        gains[2] * next / (1.0 - next) <= 2.0 * tolerance * left
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian, norm, orthogonality, with_spectrum};
    use super::*;
    use ndarray::Array2;

    fn check(a: &Array2<f64>, rank: usize) {
        let optimum = svd(a, Threads(1)).unwrap().tail_energy(rank).sqrt();
        for method in [SvdMethod::Auto, SvdMethod::Exact, SvdMethod::Randomized] {
            for seed in 0..3 {
                let options = SvdOptions { method, seed, ..SvdOptions::default() };
                let t = truncated_svd(a, rank, &options, Threads(1)).unwrap();
                let actual = norm(&(a - &t.svd.reconstruct(Threads(1))));
                let floor = 1e-13 * norm(a);
                assert!(actual <= 1.001 * optimum + floor, "{method:?} {actual} {optimum} {}", t.iterations);
                assert!((actual - t.error).abs() <= 1e-5 * actual + floor, "{actual} {}", t.error);
                assert_eq!(t.svd.rank(), rank);
                assert!(orthogonality(&t.svd.u) < 1e-10);
                assert!(orthogonality(&t.svd.vt.t().to_owned()) < 1e-10);
                assert!(t.svd.s.windows(2).all(|w| w[0] >= w[1]));
            }
        }
    }

    fn power_law(exponent: f64) -> Vec<f64> {
        (1..=200).map(|k| f64::from(k).powf(exponent)).collect()
    }

    #[test]
    fn slow_decay() {
        for rank in [1, 5, 20, 50] {
            check(&gaussian(300, 200, 1), rank);
            check(&gaussian(200, 300, 2), rank);
        }
    }

    #[test]
    fn power_laws() {
        for exponent in [-0.5, -1.0, -3.0] {
            for rank in [1, 10, 40] {
                check(&with_spectrum(300, 200, &power_law(exponent), 3), rank);
            }
        }
    }

    #[test]
    fn low_rank_and_noise() {
        let low = with_spectrum(300, 210, &[4.0; 20], 4);
        check(&low, 20);
        check(&low, 30);
        check(&low, 10);
        for noise in [1e-2, 1e-6, 1e-9] {
            check(&(&low + &gaussian(300, 210, 5).mapv(|x| x * noise)), 20);
            check(&(&low + &gaussian(300, 210, 5).mapv(|x| x * noise)), 30);
        }
    }

    #[test]
    fn clusters_wider_than_the_block() {
        let mut s = vec![10.0; 60];
        s.extend([1.0; 100]);
        check(&with_spectrum(300, 200, &s, 6), 50);
        check(&with_spectrum(300, 200, &s, 6), 70);
        check(&Array2::eye(200), 20);
    }

    #[test]
    fn edges() {
        let zero = truncated_svd(&Array2::zeros((5, 4)), 2, &SvdOptions::default(), Threads(1)).unwrap();
        assert_eq!((zero.svd.s, zero.error), (vec![0.0; 2], 0.0));
        let a = gaussian(5, 4, 1);
        let none = truncated_svd(&a, 0, &SvdOptions::default(), Threads(1)).unwrap();
        assert!((none.error - norm(&a)).abs() < 1e-13);
        let all = truncated_svd(&a, 9, &SvdOptions::default(), Threads(1)).unwrap();
        assert!(diff(&all.svd.reconstruct(Threads(1)), &a) < 1e-13 && all.error == 0.0);
        let tiny = truncated_svd(&a.mapv(|x| x * 1e-200), 2, &SvdOptions::default(), Threads(1)).unwrap();
        let plain = truncated_svd(&a, 2, &SvdOptions::default(), Threads(1)).unwrap();
        assert!((tiny.error / 1e-200 / plain.error - 1.0).abs() < 1e-10);
        assert_eq!(
            truncated_svd(&Array2::zeros((0, 4)), 2, &SvdOptions::default(), Threads(1)).unwrap().error,
            0.0
        );
        let bad = SvdOptions { tolerance: f64::NAN, ..SvdOptions::default() };
        assert!(truncated_svd(&a, 2, &bad, Threads(1)).is_err());
    }

    #[test]
    fn energies_at_the_ends_of_single_precision() {
        let a = gaussian(300, 200, 8);
        let options = SvdOptions { method: SvdMethod::Randomized, ..SvdOptions::default() };
        let plain = truncated_svd(&a, 10, &options, Threads(1)).unwrap();
        // Powers of two: the same numbers but for their exponents.
        for scale in [2f64.powi(-46), 2f64.powi(32)] {
            let scaled = truncated_svd(&a.mapv(|x| x * scale), 10, &options, Threads(1)).unwrap();
            assert!(!scaled.exact);
            assert_eq!(scaled.iterations, plain.iterations);
            assert!((scaled.error / scale / plain.error - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn seeded_runs_repeat() {
        let a = gaussian(300, 200, 9);
        let run = |threads| truncated_svd(&a, 10, &SvdOptions::default(), threads).unwrap();
        let (x, y) = (run(Threads(1)), run(Threads(1)));
        assert!(!x.exact);
        assert_eq!(x.svd.u, y.svd.u);
        assert!((run(Threads(2)).error / x.error - 1.0).abs() < 1e-3);
    }
}
