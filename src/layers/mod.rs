//! Layers: a structured weight with what surrounds it.

mod linear;
mod rational;
mod ssm_lora;

pub use linear::{Linear, LinearVjp};
pub use rational::{Denominator, GroupRational};
pub use ssm_lora::SsmLora;
