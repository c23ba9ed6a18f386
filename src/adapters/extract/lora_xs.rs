use super::{Found, check};
use crate::adapters::methods;
use crate::error::Result;
use crate::linalg::{Threads, matmul};
use ndarray::{Array2, ArrayRef2};

/// The core nearest to the change between [`lora_xs_basis`](methods::lora_xs_basis) of the base: what is left is orthogonal to every other one's change.
pub(super) fn find(base: &ArrayRef2<f64>, delta: &ArrayRef2<f64>, rank: usize) -> Result<Found> {
    let most = base.nrows().min(base.ncols());
    check(rank <= most, rank, || format!("1 to {most}"))?;
    let (b, a) = methods::lora_xs_basis(base, rank)?;
    let core = methods::nearest_core(&b, &a, 1.0, delta)?;
    // PEFT has no cores: what it reads is the product with the left factor.
    let left: Array2<f64> = matmul(&b, &core, Threads::ONE);
    let adapter = methods::core(&b, &core, &a, 1.0)?;
    Ok(Found::additive(adapter, vec![("lora_A.weight", a.into_dyn()), ("lora_B.weight", left.into_dyn())]))
}
