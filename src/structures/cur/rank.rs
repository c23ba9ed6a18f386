//! How many columns and rows.

use crate::error::{Error, Result};
use crate::linalg;
use crate::parts::MAX_FEATURES;

/// The largest rank at which `C U R` has fewer parameters than a dense `out x in` matrix, $r (m + n) + r^2 < m n$; 0 when there is none.
pub fn break_even_rank(out: usize, inp: usize) -> usize {
    // No matrix is larger, and squares of this fit.
    let (m, n) = (out.min(MAX_FEATURES) as u128, inp.min(MAX_FEATURES) as u128);
    let root = ((m * m + 6 * m * n + n * n).isqrt() - (m + n)) / 2;
    let pays = |r: u128| r * (m + n) + r * r < m * n;
    let rank = if pays(root) { root } else { root.saturating_sub(1) };
    rank as usize
}

/// CURing's later rule for the rank of an `out x in` matrix: as many leading singular values (of the metric, descending) as hold the
/// fraction `energy` of the energy, rounded up to a multiple of `multiple` (128 in the published code, which suits hardware), at most
/// `min(out, in)`.
///
/// Source: the code of S. Park, S.-M. Moon, "CURing Large Models: Compression via CUR Decomposition", 2025, in its later version
/// (energies of 0.85 to 0.91).
///
/// # Errors
/// [`Error::Parameter`] for an energy that is not above 0 and at most 1, a multiple of 0, values that are negative, not finite or none,
/// and for a rank above [`break_even_rank`], at which nothing would be saved.
///
/// ```
/// use structmat::structures::curing_rank;
/// assert_eq!(curing_rank(&[3.0, 2.0, 1.0, 0.5], (100, 40), 0.9, 1)?, 2);
/// assert_eq!(curing_rank(&[3.0, 2.0, 1.0, 0.5], (100, 40), 0.9, 8)?, 8);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn curing_rank(
    spectrum: &[f64],
    (out, inp): (usize, usize),
    energy: f64,
    multiple: usize,
) -> Result<usize> {
    if !(energy > 0.0 && energy <= 1.0) {
        return Err(Error::parameter("energy", energy, "above 0, at most 1"));
    }
    if multiple == 0 {
        return Err(Error::parameter("multiple", 0, "at least 1"));
    }
    if spectrum.is_empty() {
        return Err(Error::parameter("spectrum", "nothing", "singular values"));
    }
    if let Some(bad) = spectrum.iter().find(|s| !(**s >= 0.0 && s.is_finite())) {
        return Err(Error::parameter("spectrum", bad, "finite numbers >= 0"));
    }
    if spectrum.windows(2).any(|pair| pair[0] < pair[1]) {
        return Err(Error::parameter("spectrum", "rising values", "falling ones"));
    }
    let rounded = linalg::energy_rank(spectrum, energy)
        .max(1)
        .div_ceil(multiple)
        .saturating_mul(multiple)
        .min(out.min(inp));
    let most = break_even_rank(out, inp);
    if rounded > most {
        let expected = format!("one that rank {most} holds: beyond, C U R is no smaller than the matrix");
        return Err(Error::parameter("energy", format!("{energy} (rank {rounded})"), expected));
    }
    Ok(rounded)
}
