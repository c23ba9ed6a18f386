//! One budget for many matrices: how much each gets.
//!
//! [`allocate`] spends bytes (or parameters, or seconds) where they lower the total error most, over any list of candidates per
//! matrix. The published rules for ranks are here to compare with: [`threshold_ranks`] (WeLore), [`split_ranks`] (LoRAP),
//! [`SoftRanks`] (Dobi-SVD), [`reduced_rank`] (LASER). [`apportion`] makes whole parts of shares.

mod apportion;
mod hull;
mod ranks;
mod soft;

pub use apportion::apportion;
pub use hull::{Allocation, Candidate, allocate, uniform};
pub use ranks::{Normalization, reduced_rank, split_ranks, threshold_ranks};
pub use soft::SoftRanks;
