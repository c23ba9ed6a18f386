//! The families: one file each, with type, product, projection and docs.

mod blast;
mod block_diagonal;
mod block_grid;
mod butterfly;
mod dense;
mod kronecker;
mod low_rank;
pub(crate) mod stack;
mod tensor_train;

pub use blast::{Blast, BlastMethod, BlastSpec};
pub use block_diagonal::{BlockDiagonal, BlockDiagonalSpec};
pub use block_grid::{
    BlockGrid, BlockGridSpec, BlockLowRank, BlockLowRankSpec, ComplexMonarch, Contiguous, Interleaved,
    Monarch, MonarchSpec, RowOrder,
};
pub use butterfly::{Butterfly, ButterflySpec};
pub use dense::{Dense, DenseSpec};
pub use kronecker::{Kronecker, KroneckerSpec};
pub use low_rank::{LowRank, LowRankForm, LowRankSpec};
pub use tensor_train::{TensorTrain, TensorTrainSpec};
