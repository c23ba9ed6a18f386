//! Weights that several matrices share.
//!
//! | what is shared | container | found by |
//! |---|---|---|
//! | matrices $D_s$ of which all layers are combinations | [`SharedDictionary`] | [`matrix_pca`] |
//! | the right factors of experts, $W_e = A_e f(\sum_i a_{ei} B_i)$ | [`SharedBasisExperts`] | [`SharedBasisExperts::fit`] |
//! | heads, as blocks of rows | [`SharedBlocks`](crate::structures::SharedBlocks) | its projection; [`Heads::matches`] and [`Heads::share`] |
//! | a matrix and its transpose | [`TiedFfn`](crate::layers::TiedFfn) | [`tie_transpose`] |
//!
//! Dictionaries and experts hold [`SharedAtoms`]: matrices that are stored once, and the coefficients of each member. A member is a
//! [`StructuredMatrix`](crate::StructuredMatrix) like any other.

mod alternating;
mod atoms;
mod dictionary;
mod experts;
mod heads;
mod means;
mod objective;
mod pca;
mod report;
mod tie;

pub use atoms::SharedAtoms;
pub use dictionary::SharedDictionary;
pub use experts::{ExpertStart, ExpertsSpec, Mixing, SharedBasisExperts};
pub use heads::{Gauge, HeadMatches, Heads, KeptHead, MatchSpec, RotaryPairs, SharedHeads, procrustes};
pub use means::weighted_mean;
pub use objective::SharedObjective;
pub use pca::{DictionarySpec, Residual, group_by_similarity, matrix_pca};
pub use report::SharingReport;
pub use tie::{Between, TieObjective, Tied, tie_transpose};

use crate::error::{Error, Result};
use crate::linalg::Threads;
use crate::projection::check_weight;
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2};
use std::ops::Deref;

/// Numbers of a jointly solved system at most; larger ones are solved atom by atom.
const JOINT: usize = 2048;
/// Ridge of the normal equations, relative to the mean of their diagonal.
const RIDGE: f64 = 1e-13;

/// Finite matrices of one shape, at least one, in double precision.
fn check_members<T: Scalar, A: Deref<Target = ArrayRef2<T>>>(weights: &[A]) -> Result<Vec<Array2<f64>>> {
    let Some(first) = weights.first() else {
        return Err(Error::parameter("weights", "none", "at least one"));
    };
    let (m, n) = first.dim();
    let check = |w: &A| match w.dim() == (m, n) {
        true => check_weight(w, Threads::ONE),
        false => Err(Error::shape("weight (all must have one shape)", &[m, n], w.shape())),
    };
    weights.iter().map(check).collect()
}
