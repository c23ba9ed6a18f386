//! Structured weight matrices: find the best structured matrix for a dense weight, and multiply by it fast.
//!
//! ```text
//! dense W ──► projection ──► structured matrix ──► kernels ──► y = W x
//! ```
//!
//! A linear layer computes $y = W x$ with $W$ of `out_features x in_features`. This crate replaces $W$ by a member of a
//! structured family that takes fewer numbers, so that a product reads fewer bytes and takes fewer multiply-adds.
//!
//! ```
//! use structmat::prelude::*;
//! use structmat::ndarray::Array2;
//! # fn main() -> structmat::Result<()> {
//! let w = Array2::from_shape_fn((48, 64), |(i, j)| 1.0 / (1.0 + i as f32 + j as f32));
//! let spec = LowRank::for_budget(w.dim(), Budget::Ratio(0.25))?;
//! let Projected { matrix, report } = LowRank::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
//! let y = matrix.matmul(&Array2::<f32>::ones((8, 64)))?; // batch x in -> batch x out
//! # assert!(report.relative_error < 1e-3 && y.dim() == (8, 48));
//! # Ok(()) }
//! ```
//!
//! # The map
//! - [`structures`]: the families, one file each. [`registry`] knows them by name.
//! - [`projection`]: objectives, budgets, reports; [`Family::project`](projection::Family::project) is the way in.
//! - [`StructuredMatrix`] is what every structured matrix is, [`Apply`] what every one can do. [`Exec`] holds scratch memory and
//!   the parallel policy of a caller.
//! - [`gradient`]: the gradients of the input and of every factor, for training; [`Apply::vjp`] is the way in.
//! - [`compose`]: sums, products, transposes, permutations, scalings, direct sums of structured matrices.
//! - [`storage`]: `f64` to `int4`, for every factor of every family.
//! - [`adapters`]: LoRA and its kin: read, multiplied beside a frozen base, merged.
//! - [`training`]: low rank while training.
//! - [`sharing`]: weights shared between matrices: dictionaries, experts, heads, tied transposes.
//! - [`layers`]: a linear layer. [`models`]: transformers made of them. [`io`]: safetensors files.
//! - [`linalg`]: the decompositions behind the projections, in `f64`.
//!
//! # Conventions
//! $W$ is `out x in` ($m \times n$), a batch $X$ is `batch x in`, one input per row. Weights are stored as [`storage::Storage`] says and
//! multiplied as `f32` or `f64`, the type of $X$. Nothing public panics on data or shapes; nothing uses a thread unless asked to.
#![deny(unsafe_code)]

mod activation;
mod adam;
pub mod adapters;
pub mod allocation;
pub mod analysis;
pub mod calibration;
pub mod compose;
pub mod compression;
pub mod error;
pub mod exec;
pub mod gradient;
pub mod io;
#[allow(unsafe_code)]
pub mod kernels;
pub mod layers;
pub mod linalg;
pub mod matrix;
pub mod models;
pub mod parts;
pub mod projection;
mod random;
pub mod registry;
pub mod scalar;
pub mod sharing;
pub mod storage;
pub mod structures;
pub mod training;

pub use error::{Error, Result};
pub use exec::{Exec, Parallelism};
pub use matrix::{Apply, StructuredMatrix, Update};
pub use ndarray;
pub use scalar::Scalar;

/// What most programs need.
pub mod prelude {
    pub use crate::exec::{Exec, Parallelism};
    pub use crate::matrix::{Apply, StructuredMatrix, Update};
    pub use crate::projection::{
        Budget, Family, Gram, Guarantee, Objective, Options, Projected, Report, Request,
    };
    pub use crate::storage::{Factor, Storage};
    pub use crate::structures::*;
}

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
