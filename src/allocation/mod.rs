//! One budget for many matrices: how much each gets.
//!
//! [`allocate`] spends bytes (or parameters, or seconds) where they lower the total error most, over any list of candidates per
//! matrix. The published rules for ranks are here to compare with: [`threshold_ranks`] and [`LrcSplit`] (WeLore), [`split_ranks`] (LoRAP),
//! [`SoftRanks`] and [`SoftRankTrainer`] (Dobi-SVD), [`reduced_rank`] (LASER); and one for bits: [`bits_reverse_waterfill`] (CASP).
//! [`apportion`] makes whole parts of shares.

mod apportion;
mod bits;
mod hull;
mod lrc;
mod ranks;
mod soft;
mod soft_training;

pub use apportion::apportion;
pub use bits::{BitAllocation, bits_reverse_waterfill};
pub use hull::{Allocation, Candidate, allocate, uniform};
pub use lrc::{LrcMatrix, LrcSplit, factors_pay};
pub use ranks::{Normalization, ranks_at_threshold, reduced_rank, split_ranks, threshold_ranks};
pub use soft::SoftRanks;
pub use soft_training::{LearnedRanks, RankSize, SoftRankTrainer};
