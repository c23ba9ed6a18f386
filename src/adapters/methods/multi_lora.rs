use super::{expect, stacked_lora};
use crate::adapters::Additive;
use crate::error::{Error, Result};
use ndarray::{Array2, ArrayRef2, Axis};

/// MultiLoRA: $D = s \sum_i \mathrm{diag}(g_i) B_i A_i$ of parts `(g_i, B_i, A_i)`, with a gain per output that starts at zero, so that both
/// factors start at random.
///
/// The gains are folded into the left factors: a product costs that of one LoRA of all ranks together.
///
/// Source: Y. Wang et al., "MultiLoRA: Democratizing LoRA for Better Multi-Task Learning", 2023.
///
/// # Errors
/// [`Error::Shape`] when gains or factors do not fit, [`Error::Parameter`] for no part, a rank of 0 or a scale that is not finite.
///
/// ```
/// use structmat::adapters::{Adapter, methods};
/// use structmat::ndarray::array;
/// let (b, a) = (array![[1.0], [2.0]], array![[3.0]]);
/// let adapter = methods::multi_lora(&[(&[1.0, 0.0], &b, &a), (&[0.0, 10.0], &b, &a)], 0.5)?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[1.5], [30.0]]);
/// assert_eq!(adapter.n_params(), 2 * (2 + 2 + 1));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn multi_lora(parts: &[(&[f64], &ArrayRef2<f64>, &ArrayRef2<f64>)], scale: f64) -> Result<Additive> {
    let mut scaled: Vec<Array2<f64>> = Vec::with_capacity(parts.len());
    for (gains, b, a) in parts {
        expect("LoRA factor B", b, (b.nrows(), a.nrows()))?;
        if gains.len() != b.nrows() {
            return Err(Error::shape("gains of MultiLoRA", &[b.nrows()], &[gains.len()]));
        }
        let mut b = Array2::from_shape_fn(b.dim(), |at| b[at]);
        b.axis_iter_mut(Axis(0)).zip(*gains).for_each(|(mut row, gain)| row *= *gain);
        scaled.push(b);
    }
    let folded: Vec<(&ArrayRef2<f64>, f64, &ArrayRef2<f64>)> =
        scaled.iter().zip(parts).map(|(b, (_, _, a))| (&**b, scale, *a)).collect();
    let params = parts.iter().map(|(gains, b, a)| gains.len() + b.len() + a.len()).sum();
    Ok(stacked_lora(&folded)?.with_params(params))
}
