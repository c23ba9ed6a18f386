//! Layers: a structured weight with what surrounds it.

mod bottleneck;
mod conditional;
mod conv2d;
mod linear;
mod lost;
mod pema;
mod rational;
mod rational_fit;
mod ssm_lora;
mod tied_ffn;

pub use crate::activation::Activation;
pub use bottleneck::Bottleneck;
pub use conditional::{ConditionalLowRank, GatedFusion};
pub(crate) use conv2d::fits;
pub use conv2d::{Conv2d, Window};
pub use linear::{Linear, LinearVjp};
pub use lost::{LostFactors, LostLayer, LostSpec};
pub use pema::{GradualUnrolling, Pema, mix_log_probs};
pub use rational::{Denominator, GroupRational};
pub use rational_fit::RationalFit;
pub use ssm_lora::SsmLora;
pub use tied_ffn::{TiedFfn, TiedFfnVjp};
