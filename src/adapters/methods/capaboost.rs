use super::{expect, stacked_lora};
use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::layers::fits;
use crate::random::Gaussian;
use crate::structures::{SparsePattern, SparseSpec, Support};
use ndarray::{Array2, ArrayRef2};

/// Fixed masks of the shared factors of [`capaboost`], one pair per copy.
#[derive(Debug, Clone, PartialEq)]
pub struct CapaMasks {
    /// Of `B`, `out x rank` each.
    pub left: Vec<Array2<bool>>,
    /// Of `A`, `rank x in` each.
    pub right: Vec<Array2<bool>>,
}

/// How much of the factors each copy of [`CapaMasks`] keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CapaDensity {
    /// `int(density size)` numbers of each factor, anywhere.
    Fraction(f64),
    /// Two of every four consecutive numbers of a row.
    TwoOfFour,
}

impl CapaMasks {
    /// For `out x in` weights, drawn from a seed: the same masks for the same seed, and others for each copy.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a density outside of 0 to 1, or ranks and inputs that are no multiples of 4 with two of four.
    pub fn random(
        (m, n): (usize, usize),
        rank: usize,
        copies: usize,
        density: CapaDensity,
        seed: u64,
    ) -> Result<Self> {
        if let CapaDensity::Fraction(fraction) = density
            && !(0.0..=1.0).contains(&fraction)
        {
            return Err(Error::parameter("density", fraction, "0 to 1"));
        }
        if density == CapaDensity::TwoOfFour && !(rank.is_multiple_of(4) && n.is_multiple_of(4)) {
            return Err(Error::parameter("rank and inputs", format!("{rank}, {n}"), "multiples of 4"));
        }
        fits(&[m.max(n), rank])?;
        let mut gaussian = Gaussian::new(seed);
        let mut mask = |rows: usize, cols: usize| -> Result<Array2<bool>> {
            let scores = gaussian.matrix(rows, cols, 1.0);
            let spec = match density {
                CapaDensity::Fraction(fraction) => SparseSpec {
                    nnz: (fraction * scores.len() as f64) as usize,
                    pattern: SparsePattern::Unstructured,
                },
                CapaDensity::TwoOfFour => SparseSpec { nnz: 0, pattern: SparsePattern::NofM { n: 2, m: 4 } },
            };
            let mut kept = Array2::from_elem((rows, cols), false);
            Support::choose(&scores, &spec)?.positions().for_each(|at| kept[at] = true);
            Ok(kept)
        };
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for _ in 0..copies {
            left.push(mask(m, rank)?);
            right.push(mask(rank, n)?);
        }
        Ok(Self { left, right })
    }
}

/// CapaBoost: $D = s \sum_k (B \circ M_k)(A \circ N_k)$, one pair of factors under several fixed masks, so that the rank grows with the copies and the
/// trained numbers do not.
///
/// The copies stand side by side, zeros stored: a product costs that of LoRA of `copies rank`, and so does the memory. The gradient of each
/// factor is the sum of those of its copies under their masks.
///
/// Source: H. Song et al., "Increasing Model Capacity for Free: A Simple Strategy for Parameter Efficient Fine-tuning", 2024.
///
/// # Errors
/// [`Error::Shape`] when factors and masks do not fit, [`Error::Parameter`] for no mask, a rank of 0 or a scale that is not finite.
///
/// ```
/// use structmat::adapters::{Adapter, methods};
/// use structmat::ndarray::array;
/// let masks = methods::CapaMasks {
///     left: vec![array![[true], [false]], array![[true], [true]]],
///     right: vec![array![[true, true]], array![[false, true]]],
/// };
/// let adapter = methods::capaboost(&array![[1.0], [2.0]], &array![[3.0, 4.0]], &masks, 1.0)?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[3.0, 8.0], [0.0, 8.0]]);
/// assert_eq!(adapter.n_params(), 4);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn capaboost(b: &ArrayRef2<f64>, a: &ArrayRef2<f64>, masks: &CapaMasks, scale: f64) -> Result<Additive> {
    if masks.left.len() != masks.right.len() {
        return Err(Error::shape("masks of CapaBoost", &[masks.left.len()], &[masks.right.len()]));
    }
    let masked =
        |what: &'static str, a: &ArrayRef2<f64>, masks: &[Array2<bool>]| -> Result<Vec<Array2<f64>>> {
            let one = |mask: &Array2<bool>| {
                expect(what, mask, a.dim())?;
                Ok(Array2::from_shape_fn(a.dim(), |at| if mask[at] { a[at] } else { 0.0 }))
            };
            masks.iter().map(one).collect()
        };
    let (left, right) = (masked("mask of B", b, &masks.left)?, masked("mask of A", a, &masks.right)?);
    let parts: Vec<(&ArrayRef2<f64>, f64, &ArrayRef2<f64>)> =
        left.iter().zip(&right).map(|(b, a)| (&**b, scale, &**a)).collect();
    Ok(stacked_lora(&parts)?.with_params(b.len() + a.len()))
}
