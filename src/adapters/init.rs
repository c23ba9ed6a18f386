//! Where adapters start: from the inputs of a layer (EVA), or from a slice of its weight (PiSSA, URAE).

use crate::error::{Error, Result};
pub use crate::linalg::IncrementalPca;
use crate::linalg::{Threads, svd};
use ndarray::{Array2, ArrayRef2, s};

/// EVA's ranks: of all matrices' explained ratios the `rank` times their number largest count, and a matrix gets as many as are its own. Matrices
/// that see the same inputs may be given the same ratios: of equal ratios those of earlier matrices come first.
///
/// ```
/// use structmat::adapters::init::eva_ranks;
/// assert_eq!(eva_ranks(&[&[0.9, 0.05], &[0.5, 0.4, 0.1]], 1), [1, 1]);
/// assert_eq!(eva_ranks(&[&[0.3, 0.05], &[0.5, 0.4, 0.1]], 1), [0, 2]);
/// ```
pub fn eva_ranks(ratios: &[&[f64]], rank: usize) -> Vec<usize> {
    let mut all: Vec<(f64, usize)> = ratios
        .iter()
        .enumerate()
        .flat_map(|(j, ratios)| ratios.iter().map(move |ratio| (*ratio, j)))
        .collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut ranks = vec![0; ratios.len()];
    all.iter().take(rank.saturating_mul(ratios.len())).for_each(|(_, j)| ranks[*j] += 1);
    ranks
}

/// Which singular components of a weight are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice {
    /// The largest: PiSSA.
    Top,
    /// The smallest: URAE.
    Bottom,
}

/// Splits `w` into a frozen rest and `B A` of rank `rank`, both factors with the square roots of the singular values: `w = rest + B A`.
///
/// Source: F. Meng et al., "PiSSA", 2024; R. Yu et al., "Ultra-Resolution Adaptation with Ease", 2025.
///
/// # Errors
/// [`Error::Parameter`] for a rank beyond the smaller side, [`Error::NonFinite`] for NaN or infinities.
///
/// ```
/// use structmat::adapters::init::{Slice, spectral_slice};
/// use structmat::ndarray::array;
/// let w = array![[3.0, 0.0], [0.0, 2.0]];
/// let (rest, b, a) = spectral_slice(&w, 1, Slice::Bottom)?;
/// assert!((b.dot(&a) - array![[0.0, 0.0], [0.0, 2.0]]).iter().all(|e| e.abs() < 1e-12));
/// assert!((rest - array![[3.0, 0.0], [0.0, 0.0]]).iter().all(|e| e.abs() < 1e-12));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn spectral_slice(
    w: &ArrayRef2<f64>,
    rank: usize,
    slice: Slice,
) -> Result<(Array2<f64>, Array2<f64>, Array2<f64>)> {
    let most = w.nrows().min(w.ncols());
    if rank > most {
        return Err(Error::parameter("rank", rank, format!("at most {most}")));
    }
    let (u, vt) = svd(w, Threads::ONE)?.split_sqrt(most);
    let part = match slice {
        Slice::Top => 0..rank,
        Slice::Bottom => most - rank..most,
    };
    let (b, a) = (u.slice(s![.., part.clone()]).to_owned(), vt.slice(s![part, ..]).to_owned());
    Ok((&w.view() - &b.dot(&a), b, a))
}
