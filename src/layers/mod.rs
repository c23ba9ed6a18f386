//! Layers: a structured weight with what surrounds it.

mod linear;
mod lost;
mod rational;
mod ssm_lora;

pub use linear::{Linear, LinearVjp};
pub use lost::{LostActivation, LostFactors, LostLayer, LostSpec};
pub use rational::{Denominator, GroupRational};
pub use ssm_lora::SsmLora;
