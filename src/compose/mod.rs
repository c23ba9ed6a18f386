//! Structured matrices made of structured matrices.
//!
//! | type | matrix |
//! |---|---|
//! | [`Sum`] | $A_1 + A_2 + \dots$ |
//! | [`Combination`] | $c_1 A_1 + c_2 A_2 + \dots$, of terms that may be shared |
//! | [`Product`] | $A_1 A_2 \cdots$ |
//! | [`Scaled`] | $\mathrm{diag}(l)\, A\, \mathrm{diag}(r)$ |
//! | [`Permuted`] | $W_{ij} = A_{\rho(i)\,\gamma(j)}$ |
//! | [`DirectSum`] | $A_1 \oplus A_2 \oplus \dots$, block-diagonal of any |
//! | [`Transposed`] | $A^T$ |
//! | [`Identity`] | $I$ |
//!
//! Sub-matrices are boxed, so anything nests in anything; products reuse one scratch for all levels.

mod combination;
mod direct_sum;
mod identity;
mod permuted;
mod product;
mod scaled;
mod sum;
mod transposed;

pub use combination::Combination;
pub use direct_sum::DirectSum;
pub use identity::Identity;
pub use permuted::Permuted;
pub(crate) use permuted::{check_permutation, gather, scatter};
pub use product::Product;
pub use scaled::Scaled;
pub use sum::Sum;
pub use transposed::Transposed;

use crate::error::Result;
use crate::matrix::StructuredMatrix;
use crate::parts::Parts;

type Boxed = Box<dyn StructuredMatrix>;
type LoadFn = fn(Parts<'static>) -> Result<Boxed>;

/// The combinators by name: one line each.
const COMBINATORS: &[(&str, LoadFn)] = &[
    (Sum::NAME, |parts| Ok(Box::new(Sum::from_parts(parts)?))),
    (Combination::NAME, |parts| Ok(Box::new(Combination::from_parts(parts)?))),
    (Product::NAME, |parts| Ok(Box::new(Product::from_parts(parts)?))),
    (Scaled::NAME, |parts| Ok(Box::new(Scaled::from_parts(parts)?))),
    (Permuted::NAME, |parts| Ok(Box::new(Permuted::from_parts(parts)?))),
    (DirectSum::NAME, |parts| Ok(Box::new(DirectSum::from_parts(parts)?))),
    (Transposed::NAME, |parts| Ok(Box::new(Transposed::from_parts(parts)?))),
    (Identity::NAME, |parts| Ok(Box::new(Identity::from_parts(parts)?))),
];

/// How to build the combinator `name`, where there is one.
pub(crate) fn loader(name: &str) -> Option<LoadFn> {
    COMBINATORS.iter().find(|(known, _)| *known == name).map(|(_, load)| *load)
}

/// Parts with one sub-matrix after the other.
fn with_children<'a>(
    name: &str,
    shape: (usize, usize),
    children: impl IntoIterator<Item = &'a Boxed>,
) -> Parts<'a> {
    children.into_iter().fold(Parts::new(name, shape), |parts, child| parts.child(child.parts()))
}

/// The only sub-matrix.
fn only_child(parts: &mut Parts<'static>) -> Result<Boxed> {
    let mut children = parts.take_children()?;
    match (children.pop(), children.len()) {
        (Some(child), 0) => Ok(child),
        (_, more) => Err(parts.error(format!("expected one sub-matrix, found {}", more + 1))),
    }
}

/// Refuses parts whose recorded shape is not that of the matrix built from them.
fn check_shape(parts: &Parts<'_>, built: (usize, usize)) -> Result<()> {
    match parts.shape() {
        shape if shape == built => Ok(()),
        shape => Err(parts.error(format!("recorded shape {shape:?}, the sub-matrices make {built:?}"))),
    }
}
