use crate::error::{Error, Result};
use crate::linalg::check_finite;
use crate::projection::ratio;
use ndarray::Array2;

/// What one group of weights does in [`swap_test`].
#[derive(Debug, Clone, PartialEq)]
pub struct Swap {
    /// `‖f(swapped) - f(base)‖_F / ‖f(base)‖_F`, with the tuned weights of this group and the base weights of all others.
    pub change: f64,
    /// [`change`](Self::change) as a share of the changes of all groups.
    pub share: f64,
}

/// Which weights of a block carry its change: of each group in turn the tuned weights are put among the base ones, and the change of the block's
/// output is measured.
///
/// Weights that only act together must be one group: queries scaled up and keys scaled down by one factor leave attention as it is, and each of
/// them alone does not. `block` computes the output from all weights, in their order. One call of `block` per group, and one for the base.
///
/// Source: J. Ni et al., "What Makes for Text to 360-degree Panorama Generation with Stable Diffusion?", 2025 (UniPano), which compares the roles
/// of attention by training them; here they are swapped, on a single block.
///
/// # Errors
/// [`Error::Shape`] when base and tuned weights differ in number or shape or an output changes its shape, [`Error::Parameter`] for a group with a weight
/// that is not there, and what `block` returns.
///
/// ```
/// use structmat::adapters::analysis::swap_test;
/// use structmat::ndarray::{Array2, array};
/// let product = |w: &[&Array2<f64>]| Ok(w[0].dot(w[1]));
/// let base = [array![[2.0]], array![[1.0]]];
/// let tuned = [array![[2.0]], array![[3.0]]];
/// let swaps = swap_test(&base, &tuned, &[&[0], &[1]], product)?;
/// assert_eq!((swaps[0].change, swaps[1].change, swaps[1].share), (0.0, 2.0, 1.0));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn swap_test(
    base: &[Array2<f64>],
    tuned: &[Array2<f64>],
    groups: &[&[usize]],
    mut block: impl FnMut(&[&Array2<f64>]) -> Result<Array2<f64>>,
) -> Result<Vec<Swap>> {
    if base.len() != tuned.len() {
        return Err(Error::shape("tuned weights of a block", &[base.len()], &[tuned.len()]));
    }
    if let Some((w, t)) = base.iter().zip(tuned).find(|(w, t)| w.dim() != t.dim()) {
        return Err(Error::shape("tuned weight of a block", w.shape(), t.shape()));
    }
    if let Some(k) = groups.iter().copied().flatten().find(|k| **k >= base.len()) {
        return Err(Error::parameter("weight of a group", k, format!("less than {}", base.len())));
    }
    let norm = |a: &Array2<f64>| a.iter().map(|v| v * v).sum::<f64>().sqrt();
    let all: Vec<&Array2<f64>> = base.iter().collect();
    let before = block(&all)?;
    check_finite("output of a block", &before)?;
    let mut changes = Vec::with_capacity(groups.len());
    for group in groups {
        let mut swapped = all.clone();
        group.iter().for_each(|&k| swapped[k] = &tuned[k]);
        let after = block(&swapped)?;
        if after.dim() != before.dim() {
            return Err(Error::shape("output of a block", before.shape(), after.shape()));
        }
        check_finite("output of a block", &after)?;
        changes.push(ratio(norm(&(after - &before)), norm(&before)));
    }
    let total: f64 = changes.iter().sum();
    Ok(changes.into_iter().map(|change| Swap { change, share: ratio(change, total) }).collect())
}
