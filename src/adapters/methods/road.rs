use crate::adapters::{BiasEdit, Boxed, Edit, Multiplicative};
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use crate::structures::BlockDiagonal;

/// How many numbers [`road`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoadVariant {
    /// One angle and one length per pair of outputs.
    One,
    /// One per output.
    Two,
    /// Two per output: of each group first those of the diagonal, then those beside it.
    Four,
}

/// RoAd: outputs `p` and `p + g/2` of each group of `g` turn and stretch together, $W' = M W$ and $b' = M b$, with
/// $M_{pp} = α \cos θ$ and $∓ α \sin θ$ beside it.
///
/// Cost: `2 out`, after the base product.
///
/// Source: B. Liao, C. Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability", 2024.
///
/// # Errors
/// [`Error::Parameter`] for a group that is odd or does not divide the outputs, [`Error::Shape`] for another number of angles or lengths.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{road, RoadVariant}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32], [2.0]])?;
/// let adapter = road((2, 1), RoadVariant::One, 2, &[0.0], &[3.0])?;
/// assert_eq!(adapter.delta(&base)?, array![[2.0], [4.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn road(
    (m, n): (usize, usize),
    variant: RoadVariant,
    group: usize,
    theta: &[f64],
    alpha: &[f64],
) -> Result<Multiplicative> {
    if group == 0 || !group.is_multiple_of(2) || !m.is_multiple_of(group) {
        return Err(Error::parameter("group_size", group, format!("an even divisor of {m}")));
    }
    let len = match variant {
        RoadVariant::One => m / 2,
        RoadVariant::Two => m,
        RoadVariant::Four => 2 * m,
    };
    for (what, values) in [("road_theta", theta), ("road_alpha", alpha)] {
        if values.len() != len {
            return Err(Error::shape(what, &[len], &[values.len()]));
        }
    }
    let half = group / 2;
    // The number of output `o` for the diagonal, and for what is beside it.
    let place = |o: usize, beside: usize| match variant {
        RoadVariant::One => o / group * half + o % group % half,
        RoadVariant::Two => o,
        RoadVariant::Four => o / group * 2 * group + beside * group + o % group,
    };
    let cosine = |o: usize| alpha[place(o, 0)] * theta[place(o, 0)].cos();
    let sine = |o: usize| alpha[place(o, 1)] * theta[place(o, 1)].sin();
    // Pair k is outputs (p, p + half) of its group.
    let first = |k: usize| k / half * group + k % half;
    let order: Vec<u32> = (0..m).map(|i| (first(i / 2) + i % 2 * half) as u32).collect();
    let blocks = Factor::from_fn(Storage::F32, (m / 2, 2, 2), |k, i, j| {
        let output = first(k) + i * half;
        match (i, j) {
            (0, 1) => -sine(output),
            (1, 0) => sine(output),
            _ => cosine(output),
        }
    });
    let map: Boxed = Box::new(BlockDiagonal::permuted((m, m), blocks, order.clone(), order)?);
    let edit = Edit::of((m, n)).with_bias(BiasEdit { map: Some(map.clone()), add: None })?.with_left(map)?;
    Ok(Multiplicative::new("road", edit, 2 * len))
}
