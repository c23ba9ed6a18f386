//! Rules that decide, while adapters are trained, which of their parts stay: from numbers and gradients, step by step.
//!
//! - [`AdaLora`]: singular values of all matrices compete for a shrinking budget.
//! - [`DynamicRank`]: rank-one parts are switched off by their share of their matrix.
//! - [`MatrixFreezer`]: whole factors are frozen once their scores fall behind.
//! - [`VectorFreezer`]: the vectors that moved most pause while others catch up.
//!
//! And before: [`sensitivity_ranks`] shares out ranks by what the loss would feel, [`spt`] says which matrices get a LoRA, which a few free
//! entries.

mod adalora;
mod dynamic_rank;
mod freezing;
mod importance;
mod sensitivity;
mod spt;
mod vector_freezer;

pub use adalora::{AdaLora, AdaLoraSettings, Triplets};
pub use dynamic_rank::{DynamicRank, DynamicRankSettings, RankOnes};
pub use freezing::{FreezerSettings, Frozen, MatrixFreezer};
pub use importance::Importance;
pub use sensitivity::{
    SensitivitySettings, fisher_saliency, saliency, sensitivity_ranks, sensitivity_scores,
};
pub use spt::{SptPlan, SptSettings, spt};
pub use vector_freezer::{VectorFreezer, VectorFreezerSettings};

/// The `k`-th smallest (counting from 1) of some scores; nothing is smaller than none.
fn kth_smallest(mut scores: Vec<f64>, k: usize) -> Option<f64> {
    let at = k.checked_sub(1)?.min(scores.len().checked_sub(1)?);
    Some(*scores.select_nth_unstable_by(at, f64::total_cmp).1)
}
