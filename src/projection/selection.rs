//! Choosing a few of many candidates: by score, or greedily by what they explain together.

use super::Run;
use crate::error::Result;
use ndarray::{Array2, ArrayRef2, Axis};

/// Directions left over with less than this fraction of a candidate's energy are rounding.
const DEPENDENT: f64 = 1e-13;

/// The indices of the `count` largest scores, ascending; the first wins among equals.
pub(crate) fn largest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if count < order.len() {
        order.select_nth_unstable_by(count, |&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        order.truncate(count);
    }
    order.sort_unstable();
    order
}

/// Greedy subset selection: of candidate vectors $d_i$ given by their Gram matrix `kernel` $= D D^T$, one after the other the one
/// whose new direction explains most of the rows of a target $B$, given by `cross` $= D B^T$ (candidates x targets). In
/// the order of choice; independent candidates may run out before `count`. Cost: `count` passes over `cross`.
pub(crate) fn select(
    kernel: &ArrayRef2<f64>,
    mut cross: Array2<f64>,
    count: usize,
    run: &Run<'_>,
) -> Result<Vec<usize>> {
    let n = kernel.nrows();
    let whole: Vec<f64> = kernel.diag().to_vec();
    let mut left = whole.clone();
    let mut explained: Vec<f64> = cross.outer_iter().map(|row| row.dot(&row)).collect();
    let (mut chosen, mut basis): (Vec<usize>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    while chosen.len() < count {
        run.check()?;
        let gain = |i: usize| explained[i] / left[i];
        let open = (0..n).filter(|&i| left[i] > DEPENDENT * whole[i]);
        let Some(pick) = open.max_by(|&i, &j| gain(i).total_cmp(&gain(j)).then(j.cmp(&i))) else { break };
        // The inner products of every candidate with the new direction.
        let mut along = kernel.index_axis(Axis(0), pick).to_vec();
        for q in &basis {
            let c = q[pick];
            along.iter_mut().zip(q).for_each(|(a, q)| *a -= c * q);
        }
        let norm = left[pick].sqrt();
        along.iter_mut().for_each(|a| *a /= norm);
        let target: Vec<f64> = cross.row(pick).iter().map(|t| t / norm).collect();
        for (i, mut row) in cross.outer_iter_mut().enumerate() {
            let a = along[i];
            let mut sum = 0.0;
            row.iter_mut().zip(&target).for_each(|(m, t)| {
                *m -= a * t;
                sum += *m * *m;
            });
            explained[i] = sum;
            left[i] -= a * a;
        }
        left[pick] = 0.0;
        chosen.push(pick);
        basis.push(along);
    }
    Ok(chosen)
}
