//! Adapters: small changes of frozen weights, multiplied without merging or merged exactly.
//!
//! Every adapter, bound to a base weight $W$ (`out x in`), is an [`Edit`]
//! $$W' = L\, W\, R + D, \qquad b' = M b + c,$$
//! with structured matrices $L$, $R$, $D$, $M$ that may be absent: additive adapters have $D$ alone, rotations and scalings have $L$ or
//! $R$. So one product serves all of them ([`Edit::apply_into`]: the base product, between two small ones, plus another), and so do one
//! merge and one unmerge. What depends on the base (norms, singular vectors) is computed once, when an adapter is bound.
//!
//! - [`Adapter`] is what every method implements; [`methods`] has one file for each. [`Additive`] is the adapter of any structured matrix.
//! - [`peft`] opens the folders that HuggingFace PEFT writes.
//! - [`extract`]: the adapter of a family that is nearest to the difference of two weights.
//! - [`init`]: where adapters start, from inputs (EVA) or from a slice of the weight (PiSSA, URAE).
//! - [`rules`]: which parts stay while adapters are trained. [`low_rank_chain`]: changes of several matrices that make a given product.
//! - [`several`]: weighted sums, and batches whose rows use different adapters; [`Edit::then`] chains edits in order.
//! - [`analysis`]: what fine-tuning did to a weight. [`watermark`]: bits in a low-rank change.
//! - [`Edit::merge`] makes the merged weight in the storage of the base, and reports what rounding did to it.

//!
//! ```
//! use structmat::prelude::*;
//! use structmat::adapters::{Adapter, methods};
//! use structmat::ndarray::{Array2, array};
//! # fn main() -> structmat::Result<()> {
//! let base = Dense::new(&array![[1.0f32, 0.0], [0.0, 1.0]])?;
//! let lora = methods::lora(&array![[1.0], [2.0]], &array![[3.0, 4.0]], 0.5)?;      // B, A, scale
//! let edit = lora.edit(&base)?;
//! let y = edit.matmul(&base, &array![[1.0f32, 1.0]])?;                              // x Wᵀ + x Dᵀ, D never made
//! assert_eq!(y, array![[4.5, 8.0]]);
//! let merged = edit.merge(&base, Storage::F32)?;
//! assert_eq!(merged.weight.matmul(&array![[1.0f32, 1.0]])?, y);
//! assert_eq!(merged.report.rounding, 0.0);
//! # Ok(()) }
//! ```

mod additive;
pub mod analysis;
mod chain;
mod edit;
pub mod extract;
pub mod init;
mod merge;
pub mod methods;
pub mod peft;
mod rows;
pub mod rules;
pub mod several;
pub mod watermark;

pub use additive::{Additive, Multiplicative};
pub use chain::low_rank_chain;
pub use edit::{BiasEdit, Edit};
pub use merge::{MergeReport, Merged};

use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use crate::storage::Storage;
use ndarray::Array2;
use std::fmt::Debug;

type Boxed = Box<dyn StructuredMatrix>;

/// A change of a frozen weight: what is stored, and how it edits a base.
///
/// Object-safe and immutable, so one adapter serves many bases and threads.
pub trait Adapter: Debug + Send + Sync {
    /// The method, such as `"lora"`.
    fn kind(&self) -> &'static str;

    /// `(out_features, in_features)` of the weights that it edits.
    fn shape(&self) -> (usize, usize);

    /// Numbers that were trained; what is frozen or shared with the base is not counted.
    fn n_params(&self) -> usize;

    /// The edit of `base`. Methods whose change depends on the base compute it here, once.
    ///
    /// # Errors
    /// [`Error::Shape`] for a base of another shape, [`Error::NonFinite`] and [`Error::NoConvergence`] from decompositions of the base.
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit>;

    /// The merged weight minus the base, densely.
    ///
    /// # Errors
    /// Those of [`edit`](Self::edit).
    fn delta(&self, base: &dyn StructuredMatrix) -> Result<Array2<f64>> {
        self.edit(base)?.delta(base)
    }

    /// The merged weight, computed in double precision and rounded once.
    ///
    /// # Errors
    /// Those of [`edit`](Self::edit).
    fn merge(&self, base: &dyn StructuredMatrix, storage: Storage) -> Result<Merged> {
        self.edit(base)?.merge(base, storage)
    }
}

/// [`Error::Shape`] unless `base` has this shape.
fn check_base(base: &dyn StructuredMatrix, (m, n): (usize, usize)) -> Result<()> {
    match base.shape() {
        shape if shape == (m, n) => Ok(()),
        (rows, cols) => Err(Error::shape("base weight of an adapter", &[m, n], &[rows, cols])),
    }
}
