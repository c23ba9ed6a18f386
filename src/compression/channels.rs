//! Channels of feed-forward blocks that can go.

use crate::error::{Error, Result};
use crate::linalg::check_finite;
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayView2, Axis};

/// A channel that no calibration input has reached counts as if it had this root mean square, as in the published code.
const UNSEEN: f64 = 1e-4;

/// The matrices of a feed-forward block with `h` hidden channels: `down (act(gate x) * (up x))`, or `down act(up x)` without a gate.
#[derive(Debug, Clone, Copy)]
pub struct FeedForward<'a, T> {
    /// h x in.
    pub up: ArrayView2<'a, T>,
    /// h x in, where there is one.
    pub gate: Option<ArrayView2<'a, T>>,
    /// out x h.
    pub down: ArrayView2<'a, T>,
}

/// What [`channel_prune`] leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct PrunedChannels<T> {
    /// The hidden channels that stay, ascending. Biases of `up` and `gate` keep these entries; that of `down` stays.
    pub kept: Vec<usize>,
    /// kept x in.
    pub up: Array2<T>,
    /// kept x in, where there was one.
    pub gate: Option<Array2<T>>,
    /// out x kept.
    pub down: Array2<T>,
}

impl<T: Scalar> FeedForward<'_, T> {
    /// The importance of each hidden channel, without gradients:
    /// $\lVert U_{i:} D \rVert + \lVert G_{i:} D \rVert + \lVert V_{:i} \rVert d'_i$, with $D = \mathrm{diag}(d)$ the root mean squares
    /// of the inputs and $d'$ those of the hidden states that enter `down`: the square roots of the diagonal of a second moment, as
    /// [`Moments`](crate::calibration::Moments) gather it. `O(h (in + out))`.
    ///
    /// # Errors
    /// [`Error::Shape`] for matrices or statistics that do not fit together, [`Error::NonFinite`], [`Error::Parameter`] for a root mean
    /// square that is negative or not finite.
    pub fn importance(&self, rms_in: &[f64], rms_hidden: &[f64]) -> Result<Vec<f64>> {
        let (hidden, inputs) = self.up.dim();
        if let Some(gate) = &self.gate
            && gate.dim() != self.up.dim()
        {
            return Err(Error::shape("gate", &[hidden, inputs], gate.shape()));
        }
        if self.down.ncols() != hidden {
            return Err(Error::shape("down", &[self.down.nrows(), hidden], self.down.shape()));
        }
        for (what, rms, length) in [
            ("root mean squares of inputs", rms_in, inputs),
            ("root mean squares of channels", rms_hidden, hidden),
        ] {
            if rms.len() != length {
                return Err(Error::shape(what, &[length], &[rms.len()]));
            }
            if let Some(bad) = rms.iter().find(|v| !(**v >= 0.0 && v.is_finite())) {
                return Err(Error::parameter(what, bad, "finite numbers >= 0"));
            }
        }
        let seen = |rms: &f64| if *rms == 0.0 { UNSEEN } else { *rms };
        let mut scores = vec![0.0; hidden];
        for (what, matrix) in [("up", Some(&self.up)), ("gate", self.gate.as_ref())] {
            let Some(matrix) = matrix else { continue };
            check_finite(what, matrix)?;
            for (score, row) in scores.iter_mut().zip(matrix.outer_iter()) {
                let square = |(v, rms): (&T, &f64)| (v.widen() * seen(rms)).powi(2);
                *score += row.iter().zip(rms_in).map(square).sum::<f64>().sqrt();
            }
        }
        check_finite("down", &self.down)?;
        for ((score, column), rms) in scores.iter_mut().zip(self.down.axis_iter(Axis(1))).zip(rms_hidden) {
            *score += column.iter().map(|v| v.widen().powi(2)).sum::<f64>().sqrt() * seen(rms);
        }
        Ok(scores)
    }
}

/// LoRAP's pruning of a feed-forward block: with channels sorted by [`importance`](FeedForward::importance), the least first, the
/// fraction `spared` of them stays (least important channels matter together: the source spares 0.01) and the fraction `pruned` after
/// them goes: positions $\lfloor \epsilon h \rfloor$ to $\lfloor (\epsilon + p) h \rfloor$. What remains is a smaller block, exactly the
/// one with those channels masked.
///
/// Source: G. Li, Y. Tang, W. Zhang, "LoRAP: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large Language
/// Models", 2024.
///
/// # Errors
/// [`Error::Parameter`] when the fractions are not in 0 to 1 together, or no channel would stay, and those of [`FeedForward::importance`].
///
/// ```
/// use structmat::compression::{FeedForward, channel_prune};
/// use structmat::ndarray::array;
/// let (up, down) = (array![[3.0, 0.0], [0.1, 0.1], [0.0, 2.0], [0.3, 0.0]], array![[1.0, 1.0, 1.0, 1.0]]);
/// let block = FeedForward { up: up.view(), gate: None, down: down.view() };
/// let small = channel_prune(&block, &[1.0; 2], &[1.0; 4], 0.25, 0.25)?;
/// assert_eq!(small.kept, [0, 1, 2]);                         // 1 is the least important: spared
/// assert_eq!(small.up, array![[3.0, 0.0], [0.1, 0.1], [0.0, 2.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn channel_prune<T: Scalar>(
    block: &FeedForward<'_, T>,
    rms_in: &[f64],
    rms_hidden: &[f64],
    pruned: f64,
    spared: f64,
) -> Result<PrunedChannels<T>> {
    for (name, fraction) in [("pruned", pruned), ("spared", spared)] {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::parameter(name, fraction, "0 to 1"));
        }
    }
    if pruned + spared > 1.0 {
        return Err(Error::parameter("pruned + spared", pruned + spared, "at most 1"));
    }
    let scores = block.importance(rms_in, rms_hidden)?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    let position = |fraction: f64| (fraction * scores.len() as f64).floor() as usize;
    let mut kept = [&order[..position(spared)], &order[position(spared + pruned)..]].concat();
    if kept.is_empty() {
        let received = format!("{pruned} of {} channels", scores.len());
        return Err(Error::parameter("pruned", received, "at least one channel that stays"));
    }
    kept.sort_unstable();
    Ok(PrunedChannels {
        up: block.up.select(Axis(0), &kept),
        gate: block.gate.as_ref().map(|gate| gate.select(Axis(0), &kept)),
        down: block.down.select(Axis(1), &kept),
        kept,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn bad_input() {
        let (up, down) = (array![[1.0, 2.0], [3.0, 4.0]], array![[1.0, 1.0]]);
        let block = FeedForward { up: up.view(), gate: None, down: down.view() };
        let one = [1.0; 2];
        assert!(channel_prune(&block, &one, &one, 0.5, 0.0).is_ok());
        for (pruned, spared) in [(1.5, 0.0), (f64::NAN, 0.0), (0.5, -0.1), (0.6, 0.6), (1.0, 0.0)] {
            assert!(matches!(
                channel_prune(&block, &one, &one, pruned, spared),
                Err(Error::Parameter { .. })
            ));
        }
        assert!(matches!(channel_prune(&block, &[1.0], &one, 0.5, 0.0), Err(Error::Shape { .. })));
        assert!(matches!(channel_prune(&block, &one, &[1.0; 3], 0.5, 0.0), Err(Error::Shape { .. })));
        assert!(matches!(channel_prune(&block, &[-1.0, 1.0], &one, 0.5, 0.0), Err(Error::Parameter { .. })));
        assert!(matches!(
            channel_prune(
                &FeedForward { down: up.view().slice_move(ndarray::s![.., ..1]), ..block },
                &one,
                &one,
                0.5,
                0.0
            ),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            channel_prune(&FeedForward { gate: Some(down.view()), ..block }, &one, &one, 0.5, 0.0),
            Err(Error::Shape { .. })
        ));
        let nan = array![[1.0, f64::NAN], [3.0, 4.0]];
        assert!(matches!(
            channel_prune(&FeedForward { up: nan.view(), ..block }, &one, &one, 0.5, 0.0),
            Err(Error::NonFinite { .. })
        ));
        let none = Array2::<f32>::zeros((0, 3));
        let empty =
            FeedForward { up: none.view(), gate: None, down: none.t().slice_move(ndarray::s![..2, ..]) };
        assert!(matches!(channel_prune(&empty, &[1.0; 3], &[], 0.0, 0.0), Err(Error::Parameter { .. })));
    }
}
