//! The families: one file each, with type, product, projection and docs.

mod blast;
mod dense;
mod low_rank;
pub(crate) mod stack;

pub use blast::{Blast, BlastMethod, BlastSpec};
pub use dense::{Dense, DenseSpec};
pub use low_rank::{LowRank, LowRankForm, LowRankSpec};
