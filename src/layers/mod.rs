//! Layers: a structured weight with what surrounds it.

mod linear;
mod lost;
mod rational;
mod ssm_lora;
mod tied_ffn;

pub use crate::activation::Activation;
pub use linear::{Linear, LinearVjp};
pub use lost::{LostFactors, LostLayer, LostSpec};
pub use rational::{Denominator, GroupRational};
pub use ssm_lora::SsmLora;
pub use tied_ffn::{TiedFfn, TiedFfnVjp};
