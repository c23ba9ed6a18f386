//! How many directions a matrix has, by its singular values: three measures that do not depend on its scale.

/// The least number of leading singular values (falling) that hold the fraction `share` of the energy $\sum \sigma_i^2$; 0 where there is none.
///
/// ```
/// use structmat::linalg::energy_rank;
/// assert_eq!(energy_rank(&[3.0, 1.0, 0.0], 0.9), 1);
/// assert_eq!(energy_rank(&[3.0, 1.0, 0.0], 1.0), 2);
/// assert_eq!(energy_rank(&[1e-200, 1e-200], 1.0), 2);
/// ```
pub fn energy_rank(values: &[f64], share: f64) -> usize {
    let most = values.iter().copied().fold(0.0, f64::max);
    // Relative to the largest, so that squares neither overflow nor vanish.
    let square = |s: &f64| (s / most).powi(2);
    let goal = share * values.iter().map(square).sum::<f64>();
    if most == 0.0 || goal <= 0.0 {
        return 0;
    }
    let mut sum = 0.0;
    let reached = values.iter().position(|s| {
        sum += square(s);
        sum >= goal
    });
    reached.map_or(values.len(), |k| k + 1)
}

/// $\lVert A \rVert_F^2 / \lVert A \rVert_2^2$; 0 where all are zero.
///
/// ```
/// assert_eq!(structmat::linalg::stable_rank(&[2.0, 1.0, 1.0]), 1.5);
/// ```
pub fn stable_rank(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(0.0, f64::max);
    if most == 0.0 { 0.0 } else { values.iter().map(|s| (s / most).powi(2)).sum() }
}

/// The exponential of the entropy of $p_i = \sigma_i / \sum \sigma$, also called effective rank: the number of values where all are equal; 0 where
/// all are zero.
///
/// Source: O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality", 2007.
///
/// ```
/// assert!((structmat::linalg::entropy_rank(&[2.0, 2.0, 2.0, 0.0]) - 3.0).abs() < 1e-12);
/// ```
pub fn entropy_rank(values: &[f64]) -> f64 {
    let total: f64 = values.iter().sum();
    if total == 0.0 {
        return 0.0;
    }
    let shares = values.iter().map(|s| s / total).filter(|p| *p > 0.0);
    (-shares.map(|p| p * p.ln()).sum::<f64>()).exp()
}
