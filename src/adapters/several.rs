//! Several adapters on one base: sums, and batches whose rows use different ones.

pub use super::rows::apply_rows;

use super::{Adapter, BiasEdit, Boxed, Edit};
use crate::compose::{Scaled, Sum};
use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use crate::storage::{Factor, Storage};
use crate::structures::LowRank;
use ndarray::Array1;

/// The edit whose change is the weighted sum of additive edits' changes, biases included.
///
/// Low-rank changes become one, with their factors side by side, where the products of all together read no more than one by one: two
/// large products instead of many small ones.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods, several};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 1.0]])?;
/// let edit = |v: f32| methods::lora(&array![[v]], &array![[1.0, 0.0]], 1.0)?.edit(&base);
/// let sum = several::weighted_sum(&[(&edit(2.0)?, 1.0), (&edit(10.0)?, 0.5)])?;
/// assert_eq!(sum.delta(&base)?, array![[7.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Parameter`] when there is none or a weight is not finite, [`Error::Shape`] when they edit weights of different shapes,
/// [`Error::Unsupported`] for an edit that multiplies the base: the order of those matters, see [`Edit::then`].
pub fn weighted_sum(edits: &[(&Edit, f64)]) -> Result<Edit> {
    let Some((first, _)) = edits.first() else {
        return Err(Error::parameter("edits", "none", "at least one"));
    };
    let (m, n) = first.shape();
    let mut low_rank: Vec<(LowRank, f64)> = Vec::new();
    let (mut terms, mut add): (Vec<Boxed>, Option<Array1<f64>>) = (Vec::new(), None);
    for (edit, weight) in edits {
        if edit.shape() != (m, n) {
            return Err(Error::shape("edit of a sum", &[m, n], &[edit.shape().0, edit.shape().1]));
        }
        if !weight.is_finite() {
            return Err(Error::parameter("weight of an edit", weight, "a finite number"));
        }
        if !edit.is_additive() || edit.bias().map.is_some() {
            return Err(Error::Unsupported {
                structure: "weighted sum".to_owned(),
                what: "an edit multiplies the base, so the order matters: chain edits one after the other"
                    .to_owned(),
            });
        }
        if let Some(bias) = &edit.bias().add {
            let bias = bias * *weight;
            add = Some(add.map_or_else(|| bias.clone(), |sum| sum + &bias));
        }
        let Some(delta) = edit.additive() else { continue };
        // One alone stays as it is.
        let alone = edits.len() == 1 && *weight == 1.0;
        match LowRank::from_structured(delta).filter(|_| !alone) {
            Some(factors) => low_rank.push((factors, *weight)),
            None if *weight == 1.0 => terms.push(delta.clone_box()),
            None => {
                let scale = Factor::from_fn(Storage::F64, (1, 1, m), |_, _, _| *weight);
                terms.push(Box::new(Scaled::new(Some(scale), delta.clone_box(), None)?));
            }
        }
    }
    terms.extend(concatenated(&low_rank)?);
    let edit = Edit::of((m, n)).with_bias(BiasEdit { map: None, add })?;
    match terms.len() {
        0 => Ok(edit),
        1 => edit.with_delta(terms.remove(0)),
        _ => edit.with_delta(Box::new(Sum::new(terms)?)),
    }
}

/// Adapters on one base, as one edit. Where none multiplies the base their changes add up, with their weights; else they follow each other in
/// this order, each bound to what those before it made.
///
/// # Errors
/// Those of [`Adapter::edit`], and [`Error::Unsupported`] for a weight other than 1 of an adapter that multiplies the base.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{methods, several};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32]])?;
/// let (plus, times) = (methods::lora(&array![[1.0f32]], &array![[1.0]], 1.0)?, methods::scaling((1, 1), Some(&[3.0]), None)?);
/// assert_eq!(several::in_order(&base, &[(&plus, 1.0), (&times, 1.0)])?.merged(&base)?, array![[6.0]]);
/// assert_eq!(several::in_order(&base, &[(&times, 1.0), (&plus, 1.0)])?.merged(&base)?, array![[4.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn in_order(base: &dyn StructuredMatrix, adapters: &[(&dyn Adapter, f64)]) -> Result<Edit> {
    let edits = adapters.iter().map(|(adapter, _)| adapter.edit(base)).collect::<Result<Vec<_>>>()?;
    let weighted: Vec<(&Edit, f64)> =
        edits.iter().zip(adapters).map(|(edit, (_, weight))| (edit, *weight)).collect();
    if edits.iter().all(|edit| edit.is_additive() && edit.bias().map.is_none()) {
        return weighted_sum(&weighted);
    }
    let mut all = Edit::of(base.shape());
    for (k, (adapter, weight)) in adapters.iter().enumerate() {
        let edit = if k == 0 { edits[0].clone() } else { adapter.edit(all.compose(base)?.as_ref())? };
        all = all.then(&if *weight == 1.0 { edit } else { weighted_sum(&[(&edit, *weight)])? })?;
    }
    Ok(all)
}

/// Low-rank matrices with their factors side by side.
fn concatenated(parts: &[(LowRank, f64)]) -> Result<Option<Boxed>> {
    let Some((first, _)) = parts.first() else { return Ok(None) };
    let (m, n) = first.shape();
    // Which matrix each direction is of, and which of its directions.
    let directions: Vec<(usize, usize)> =
        parts.iter().enumerate().flat_map(|(p, (part, _))| (0..part.rank()).map(move |k| (p, k))).collect();
    let (u, v): (Vec<_>, Vec<_>) = parts.iter().map(|(part, _)| (part.left(), part.right())).unzip();
    let storage = |factors: &[&Factor]| {
        let same = factors.iter().all(|factor| factor.storage() == factors[0].storage());
        match factors[0].storage() {
            // Scales of groups do not survive a concatenation along the rank.
            Storage::Int8 | Storage::Int4 => Storage::F32,
            storage if same => storage,
            _ if factors.iter().any(|factor| factor.storage() == Storage::F64) => Storage::F64,
            _ => Storage::F32,
        }
    };
    let rank = directions.len();
    let left =
        Factor::from_fn(storage(&u), (1, m, rank), |_, i, t| u[directions[t].0].get(0, i, directions[t].1));
    let right =
        Factor::from_fn(storage(&v), (1, rank, n), |_, t, j| v[directions[t].0].get(0, directions[t].1, j));
    let scales = Factor::from_fn(Storage::F64, (1, 1, rank), |_, _, t| {
        let (p, k) = directions[t];
        parts[p].1 * parts[p].0.scale(k)
    });
    Ok(Some(Box::new(LowRank::with_singular_values(left, scales, right)?)))
}
