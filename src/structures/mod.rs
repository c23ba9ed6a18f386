//! The families: one file each, with type, product, projection and docs.

mod blast;
mod butterfly;
mod dense;
mod kronecker;
mod low_rank;
pub(crate) mod stack;
mod tensor_train;

pub use blast::{Blast, BlastMethod, BlastSpec};
pub use butterfly::{Butterfly, ButterflySpec};
pub use dense::{Dense, DenseSpec};
pub use kronecker::{Kronecker, KroneckerSpec};
pub use low_rank::{LowRank, LowRankForm, LowRankSpec};
pub use tensor_train::{TensorTrain, TensorTrainSpec};
