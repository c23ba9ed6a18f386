//! What fine-tuning did: two checkpoints of a weight compared, and which role of a block carries the change.
//!
//! - [`delta_report`]: size, ranks and place of a change, beside those of the weight and of noise.
//! - [`swap_test`]: what of a block's change comes from which of its weights.

mod delta;
mod swap;

pub use delta::{DeltaReport, DeltaSettings, Ranks, delta_report};
pub use swap::{Swap, swap_test};
