//! Low rank while training: integrators and constraints that keep a weight low-rank, and gradients through truncations.
//!
//! - [`LowRank3`]: $W = U S V^T$ with orthonormal $U$ and $V$, the form that is trained.
//! - [`Dlrt`]: gradient steps that never form $W$ and find the rank; [`ProjectedFactors`]: steps of the three factors at a fixed rank.
//!   Both see the gradient through thin products alone, [`ThinGradient`].
//! - [`ConditionBound`]: keeps the condition number of $S$ within a bound, as a part of either step; [`clip_condition`] is the nearest such matrix.
//! - [`SoftTruncation`]: differentiable truncation of activations; [`crate::allocation::SoftRankTrainer`] trains the ranks with it, and
//!   [`output_pca`] rebuilds a weight for them.
//!
//! ```
//! use structmat::ndarray::Array2;
//! use structmat::training::{Dlrt, DlrtMode, DlrtSettings, LowRank3};
//! # fn main() -> structmat::Result<()> {
//! // The gradient of half the squared distance from a matrix of rank 2 is the difference.
//! let target = Array2::from_shape_fn((12, 9), |(i, j)| (1 + i) as f64 / 12.0 - ((i * j) % 2) as f64);
//! let mut w = LowRank3::random((12, 9), 1, 0)?;
//! let mode = DlrtMode::Adaptive { theta: 0.02, min_rank: 1, max_rank: 5 };
//! let mut steps = Dlrt::new(DlrtSettings { rate: 0.2, mode, ..Default::default() })?;
//! for _ in 0..200 {
//!     steps.step(&mut w, |w| Ok(w.to_dense() - &target))?;
//! }
//! assert_eq!(w.rank(), 2);
//! assert!((w.to_dense() - &target).iter().all(|e| e.abs() < 1e-9));
//! # Ok(()) }
//! ```

mod condition;
mod dlrt;
mod factors;
mod gradient;
mod projected;
mod rebuild;
mod truncation;

pub use crate::linalg::{polar, qr as qr_positive};
pub use condition::{
    ConditionBound, clip_condition, clip_condition_to_mean, condition_number, scaled_orthogonal,
};
pub use dlrt::{Dlrt, DlrtMode, DlrtSettings, DlrtStep, Rule};
pub use factors::LowRank3;
pub use gradient::{BatchGradient, ThinGradient};
pub use projected::{FactorScaling, ProjectedFactors, ProjectedSettings};
pub use rebuild::{output_basis, output_pca, project_outputs, subspace_basis};
pub use truncation::SoftTruncation;
