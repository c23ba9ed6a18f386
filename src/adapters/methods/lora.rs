use super::{expect, storage_of};
use crate::adapters::{Additive, Boxed};
use crate::error::{Error, Result};
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use crate::structures::LowRank;
use ndarray::{Array2, ArrayRef2, s};

/// LoRA: $D = s B A$, with `b` of `out x rank` and `a` of `rank x in`.
///
/// Cost: `rank (out + in)`. The scale stands between the factors, which keep their bits.
///
/// Source: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
///
/// # Errors
/// [`Error::Shape`] when the ranks differ, [`Error::Parameter`] for rank 0 or a scale that is not finite.
///
/// ```
/// use structmat::adapters::{Adapter, methods};
/// use structmat::ndarray::array;
/// let lora = methods::lora(&array![[1.0f32], [0.0]], &array![[2.0, 3.0]], 10.0)?;
/// assert_eq!(lora.matrix().to_dense_f64(), array![[20.0, 30.0], [0.0, 0.0]]);
/// assert_eq!(lora.n_params(), 4);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn lora<T: Scalar>(b: &ArrayRef2<T>, a: &ArrayRef2<T>, scale: f64) -> Result<Additive> {
    scaled_lora(b, &vec![scale; a.nrows()], a)
}

/// $D = B\,\mathrm{diag}(s) A$: LoRA whose directions have scales of their own (AdaLoRA, VeRA, KaSA, DeLoRA and others).
///
/// Source: Q. Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023.
///
/// # Errors
/// As [`lora`].
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let b = array![[1.0f32, 1.0]];
/// let lora = methods::scaled_lora(&b, &[10.0, 1.0], &array![[1.0], [2.0]])?;
/// assert_eq!(lora.matrix().to_dense_f64(), array![[12.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn scaled_lora<T: Scalar>(b: &ArrayRef2<T>, scales: &[f64], a: &ArrayRef2<T>) -> Result<Additive> {
    let (storage, params) = (storage_of::<T>(), a.len() + b.len());
    let (b, a) = (Factor::from_matrix(storage, b), Factor::from_matrix(storage, a));
    Ok(Additive::new("lora", low_rank(b, scales, a)?).with_params(params))
}

/// A sum of LoRA as one: $D = \sum_i s_i B_i A_i$ of parts `(B_i, s_i, A_i)`, with their factors side by side; ranks may differ.
///
/// Cost: that of LoRA of all ranks together. MSPLoRA, chains of LoRA and CapaBoost are such sums.
///
/// # Errors
/// [`Error::Parameter`] for no part, a rank of 0 or a scale that is not finite, [`Error::Shape`] when factors do not fit.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let (b, a) = (array![[1.0f32], [2.0]], array![[3.0f32]]);
/// let sum = methods::stacked_lora(&[(&b, 1.0, &a), (&b, 10.0, &a)])?;
/// assert_eq!(sum.matrix().to_dense_f64(), array![[33.0], [66.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn stacked_lora<T: Scalar>(parts: &[(&ArrayRef2<T>, f64, &ArrayRef2<T>)]) -> Result<Additive> {
    let Some((first_b, _, first_a)) = parts.first() else {
        return Err(Error::parameter("parts", "none", "at least one"));
    };
    let (m, n) = (first_b.nrows(), first_a.ncols());
    let rank = parts.iter().fold(0usize, |rank, (_, _, a)| rank.saturating_add(a.nrows()));
    let (mut b, mut a) =
        (Array2::from_elem((m, rank), T::default()), Array2::from_elem((rank, n), T::default()));
    let (mut scales, mut at) = (Vec::with_capacity(rank), 0);
    for (part_b, scale, part_a) in parts {
        let own = part_a.nrows();
        expect("LoRA factor B", part_b, (m, own))?;
        expect("LoRA factor A", part_a, (own, n))?;
        b.slice_mut(s![.., at..at + own]).assign(&part_b.view());
        a.slice_mut(s![at..at + own, ..]).assign(&part_a.view());
        scales.resize(at + own, *scale);
        at += own;
    }
    scaled_lora(&b, &scales, &a)
}

/// `B diag(s) A` of factors in any storage.
pub(crate) fn low_rank(b: Factor, scales: &[f64], a: Factor) -> Result<Boxed> {
    let rank = a.rows();
    if scales.len() != rank {
        return Err(Error::shape("scales of a LoRA", &[rank], &[scales.len()]));
    }
    if b.cols() != rank {
        return Err(Error::shape("LoRA factor B", &[b.rows(), rank], &[b.rows(), b.cols()]));
    }
    if rank == 0 {
        return Err(Error::parameter("rank", 0, "at least 1"));
    }
    if let Some(scale) = scales.iter().find(|scale| !scale.is_finite()) {
        return Err(Error::parameter("scale", scale, "a finite number"));
    }
    let scales = Factor::from_fn(Storage::F64, (1, 1, rank), |_, _, k| scales[k]);
    Ok(Box::new(LowRank::with_singular_values(b, scales, a)?))
}
