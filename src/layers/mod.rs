//! Layers: a structured weight with what surrounds it.

mod linear;

pub use linear::{Linear, LinearVjp};
