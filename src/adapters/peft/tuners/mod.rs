//! One file per tuner: the tensors and settings of its files, and which method they make.

pub(super) mod adalora;
pub(super) mod adamss;
pub(super) mod boft;
pub(super) mod c3a;
pub(super) mod deft;
pub(super) mod delora;
pub(super) mod fourier_ft;
pub(super) mod frod;
pub(super) mod glora;
pub(super) mod gralora;
pub(super) mod hira;
pub(super) mod hra;
pub(super) mod ia3;
pub(super) mod layer_norm;
pub(super) mod loha;
pub(super) mod lokr;
pub(super) mod lora;
mod lora_groups;
pub(super) mod miss;
pub(super) mod oft;
pub(super) mod osf;
pub(super) mod peanut;
pub(super) mod poly;
pub(super) mod psoft;
pub(super) mod randlora;
pub(super) mod road;
pub(super) mod shira;
pub(super) mod supertuning;
pub(super) mod tinylora;
pub(super) mod tokens;
pub(super) mod unilora;
pub(super) mod vblora;
pub(super) mod vera;
pub(super) mod wave_ft;

use super::module::Module;
use super::mt19937;
use crate::adapters::methods::low_rank;
use crate::adapters::{Adapter, Additive, Boxed};
use crate::error::Result;
use crate::storage::{Factor, Storage};
use ndarray::Array2;

type Loaded = Result<Box<dyn Adapter>>;

/// An additive adapter.
fn additive(kind: &'static str, delta: Boxed, params: usize) -> Loaded {
    Ok(Box::new(Additive::new(kind, delta).with_params(params)))
}

/// A derived factor, in single precision.
fn factor(a: &ndarray::ArrayRef2<f64>) -> Factor {
    Factor::from_matrix(Storage::F32, a)
}

/// `s B A` of derived factors.
fn product(b: &Array2<f64>, scale: f64, a: &Array2<f64>) -> Result<Boxed> {
    low_rank(factor(b), &vec![scale; a.nrows()], factor(a))
}

/// The first `count` positions of a seeded permutation of an `out x in` matrix, as PyTorch draws them.
fn drawn_positions(module: &Module<'_>, count: usize, seed: &str) -> Result<Vec<(usize, usize)>> {
    let (m, n) = module.shape()?;
    let seed = module.config().size(seed)?.unwrap_or(mt19937::SEED);
    let drawn = mt19937::drawn_positions((m, n), count, seed);
    let wanted = "expected no more, of at most 2^32";
    drawn.ok_or_else(|| module.bad(format!("{count} coefficients for {m} x {n} entries, {wanted}")))
}
