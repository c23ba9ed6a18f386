//! The families: one file each, with type, product, projection and docs.

mod blast;
mod block_circulant;
mod block_diagonal;
mod block_grid;
mod butterfly;
mod circulant;
mod circulant_diagonal;
mod column_sparse;
mod cur;
mod dense;
mod equivariant;
mod expanded;
mod fourier;
mod gblr;
mod kronecker;
mod low_rank;
mod low_rank_columns;
mod remapped_low_rank;
pub(crate) mod shared_blocks;
mod shares;
mod sparse;
mod sparse_low_rank;
pub(crate) mod stack;
mod tensor_train;

pub use blast::{Blast, BlastMethod, BlastSpec};
pub use block_diagonal::{BlockDiagonal, BlockDiagonalSpec};
pub use block_grid::{
    BlockGrid, BlockGridSpec, BlockLowRank, BlockLowRankSpec, ComplexMonarch, Contiguous, Interleaved,
    Monarch, MonarchSpec, RowOrder,
};
pub use butterfly::{Butterfly, ButterflySpec, Kaleidoscope, KaleidoscopeSpec};
pub use column_sparse::{ColumnSparse, ColumnSparseSpec};
pub use cur::{Cur, CurMetric, CurSelection, CurSpec, break_even_rank, curing_rank};
mod spectral;
mod toeplitz;

pub use block_circulant::{BlockCirculant, BlockCirculantSpec};
pub use circulant::{Circulant, CirculantSpec};
pub use circulant_diagonal::{CirculantDiagonal, CirculantDiagonalSpec};
pub use dense::{Dense, DenseSpec};
pub use equivariant::{Equivariant, EquivariantDiagram, EquivariantGroup, EquivariantSpec};
pub use fourier::{Fourier, FourierSpec, FourierTransform};
pub use gblr::{CyclicWindow, Gblr, GblrComponent, GblrMethod, GblrSpec, window};
pub use kronecker::{Kronecker, KroneckerSpec};
pub use low_rank::{LowRank, LowRankForm, LowRankSpec};
pub(crate) use low_rank_columns::lost_start;
pub use low_rank_columns::{ColumnChoice, LostComponents, LowRankColumns, LowRankColumnsSpec};
pub use remapped_low_rank::{RemappedLowRank, RemappedLowRankSpec};
pub use shared_blocks::{BlockSharing, SharedBlocks, SharedBlocksSpec};
pub(crate) use sparse::Support;
pub use sparse::{Sparse, SparsePattern, SparseSpec};
pub use sparse_low_rank::{SparseLowRank, SparseLowRankMethod, SparseLowRankSpec};
pub use tensor_train::{TensorTrain, TensorTrainSpec};
pub use toeplitz::{Toeplitz, ToeplitzForm, ToeplitzSpec};
