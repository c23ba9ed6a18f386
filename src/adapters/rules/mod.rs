//! Rules that decide, while adapters are trained, which of their parts stay: from numbers and gradients, step by step.
//!
//! - [`AdaLora`]: singular values of all matrices compete for a shrinking budget.
//! - [`DynamicRank`]: rank-one parts are switched off by their share of their matrix.
//! - [`MatrixFreezer`]: whole factors are frozen once their scores fall behind.

mod adalora;
mod dynamic_rank;
mod freezing;
mod importance;

pub use adalora::{AdaLora, AdaLoraSettings, Triplets};
pub use dynamic_rank::{DynamicRank, DynamicRankSettings, RankOnes};
pub use freezing::{FreezerSettings, Frozen, MatrixFreezer};
pub use importance::Importance;

/// The `k`-th smallest (counting from 1) of some scores; nothing is smaller than none.
fn kth_smallest(mut scores: Vec<f64>, k: usize) -> Option<f64> {
    let at = k.checked_sub(1)?.min(scores.len().checked_sub(1)?);
    Some(*scores.select_nth_unstable_by(at, f64::total_cmp).1)
}
