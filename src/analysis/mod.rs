//! What published methods look at before they compress a model, and the claims behind them: functions of hidden states, attention and
//! weights, small and free of any model.
//!
//! - [`block_influence`], [`angular_distance`] and [`quietest_blocks`]: how much a block changes its hidden states (CASP, CURing).
//! - [`softmax_sensitivity`] and [`attention_sensitivity`]: how much attention moves when its scores do (CASP).
//! - [`Laser`]: interventions on single matrices, judged by any score (LASER).

mod attention;
mod blocks;
mod laser;

pub use attention::{Sensitivity, attention_sensitivity, softmax_sensitivity};
pub use blocks::{angular_distance, block_influence, quietest_blocks};
pub use laser::{Intervention, Laser, Trial};
