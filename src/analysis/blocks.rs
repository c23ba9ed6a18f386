//! How much blocks change their hidden states.

use crate::error::{Error, Result};
use crate::scalar::Scalar;
use ndarray::{ArrayRef2, ArrayView2};

/// Block influence, $1 - \mathrm{mean}_t \cos(x_t, y_t)$ over the tokens $t$, between the hidden states before and after a block (tokens
/// x hidden): 0 for a block that turns nothing, at most 2.
///
/// Source: X. Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024, as the importance of
/// layers in M. Gholami et al., "CASP: Compression of Large Multimodal Models Based on Attention Sparsity", 2025.
///
/// # Errors
/// [`Error::Shape`] when the shapes differ or there is no token, [`Error::NonFinite`] for NaN or infinities, [`Error::Parameter`] for a
/// state that is zero.
///
/// ```
/// use structmat::analysis::block_influence;
/// use structmat::ndarray::array;
/// let influence = block_influence(&array![[1.0, 0.0], [0.0, 2.0]], &array![[3.0, 0.0], [1.0, 0.0]])?;
/// assert_eq!(influence, 0.5);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn block_influence<T: Scalar>(before: &ArrayRef2<T>, after: &ArrayRef2<T>) -> Result<f64> {
    Ok(1.0 - mean(&cosines(before, after)?))
}

/// Angular distance, $\mathrm{mean}_t \arccos(\cos(x_t, y_t)) / \pi$ over the tokens $t$ (0 to 1), between hidden states before and after
/// a block (tokens x hidden). The source looks at the last token of each sequence, as [`Hidden::last`](crate::models::Hidden::last) has
/// them.
///
/// Source: A. Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", 2024, as in S. Park, S.-M. Moon, "CURing Large
/// Models: Compression via CUR Decomposition", 2025.
///
/// # Errors
/// As [`block_influence`].
///
/// ```
/// use structmat::analysis::angular_distance;
/// use structmat::ndarray::array;
/// assert_eq!(angular_distance(&array![[1.0, 0.0]], &array![[0.0, 2.0]])?, 0.5);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn angular_distance<T: Scalar>(before: &ArrayRef2<T>, after: &ArrayRef2<T>) -> Result<f64> {
    let angles: Vec<f64> = cosines(before, after)?.iter().map(|c| c.acos() / std::f64::consts::PI).collect();
    Ok(mean(&angles))
}

/// The `count` blocks that change their hidden states least, by [`angular_distance`], the quietest first, and their distances; the first
/// and the last block are never among them. `states[l]` are the hidden states before block `l`, and the last ones those after the last
/// block: one more than there are blocks. What CURing compresses.
///
/// Source: S. Park, S.-M. Moon, "CURing Large Models: Compression via CUR Decomposition", 2025 (10 blocks of 32).
///
/// # Errors
/// [`Error::Parameter`] when there are not that many blocks between the first and the last, and those of [`angular_distance`].
///
/// ```
/// use structmat::analysis::quietest_blocks;
/// use structmat::ndarray::array;
/// let states = [0.0f64, 0.5, 0.9, 1.0, 1.3].map(|angle| array![[angle.cos(), angle.sin()]]);
/// let views: Vec<_> = states.iter().map(|states| states.view()).collect();
/// assert_eq!(quietest_blocks(&views, 1)?[0].0, 2);           // from 0.9 to 1.0
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn quietest_blocks<T: Scalar>(states: &[ArrayView2<'_, T>], count: usize) -> Result<Vec<(usize, f64)>> {
    let inner = states.len().saturating_sub(3);
    if count > inner {
        return Err(Error::parameter(
            "count",
            count,
            format!("at most {inner} blocks, without first and last"),
        ));
    }
    let distance = |l: usize| Ok((l, angular_distance(&states[l], &states[l + 1])?));
    let mut blocks = (1..=inner).map(distance).collect::<Result<Vec<_>>>()?;
    blocks.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    blocks.truncate(count);
    Ok(blocks)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The cosine of each row.
fn cosines<T: Scalar>(before: &ArrayRef2<T>, after: &ArrayRef2<T>) -> Result<Vec<f64>> {
    if before.dim() != after.dim() || before.is_empty() {
        let (tokens, hidden) = before.dim();
        return Err(Error::shape("hidden states after", &[tokens.max(1), hidden.max(1)], after.shape()));
    }
    for states in [before, after] {
        crate::linalg::check_finite("hidden states", states)?;
    }
    let cosine = |(token, (x, y)): (usize, (ndarray::ArrayView1<'_, T>, ndarray::ArrayView1<'_, T>))| {
        // Scaled, so that squares neither over- nor underflow.
        let largest = |v: &ndarray::ArrayView1<'_, T>| v.iter().fold(0.0f64, |m, v| m.max(v.widen().abs()));
        let (sx, sy) = (largest(&x), largest(&y));
        if sx == 0.0 || sy == 0.0 {
            return Err(Error::parameter("hidden state", format!("0 at token {token}"), "a direction"));
        }
        let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
        for (x, y) in x.iter().zip(&y) {
            let (x, y) = (x.widen() / sx, y.widen() / sy);
            (xy, xx, yy) = (xy + x * y, xx + x * x, yy + y * y);
        }
        Ok((xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0))
    };
    before.outer_iter().zip(after.outer_iter()).enumerate().map(cosine).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    #[test]
    fn scale_does_not_count_and_opposites_are_far() {
        let x = array![[1e-200, 2e-200], [3.0, -1.0]];
        assert!(block_influence(&x, &(&x * 1e300)).unwrap().abs() < 1e-15);
        assert!((block_influence(&x, &-&x).unwrap() - 2.0).abs() < 1e-15);
        assert!((angular_distance(&x, &-&x).unwrap() - 1.0).abs() < 1e-7);
    }

    #[test]
    fn bad_input() {
        let x = array![[1.0, 2.0]];
        assert!(matches!(block_influence(&x, &array![[1.0]]), Err(Error::Shape { .. })));
        assert!(matches!(
            angular_distance(&Array2::<f32>::zeros((0, 3)), &Array2::zeros((0, 3))),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(block_influence(&x, &array![[1.0, f64::NAN]]), Err(Error::NonFinite { .. })));
        assert!(matches!(block_influence(&x, &array![[0.0, 0.0]]), Err(Error::Parameter { .. })));
        assert!(matches!(quietest_blocks(&[x.view(), x.view(), x.view()], 1), Err(Error::Parameter { .. })));
        assert_eq!(quietest_blocks::<f64>(&[], 0).unwrap(), []);
    }
}
