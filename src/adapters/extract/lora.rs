use super::{Found, check, single};
use crate::adapters::methods;
use crate::error::Result;
use crate::linalg::{SvdOptions, Threads, truncated_svd};
use ndarray::ArrayRef2;

/// The truncated singular value decomposition.
pub(super) fn find(delta: &ArrayRef2<f64>, rank: usize) -> Result<Found> {
    let most = delta.nrows().min(delta.ncols());
    check(rank <= most, rank, || format!("1 to {most}"))?;
    let (b, a) = truncated_svd(delta, rank, &SvdOptions::default(), Threads::ONE)?.svd.split_sqrt(rank);
    let adapter = methods::lora(&single(&b), &single(&a), 1.0)?;
    Ok(Found::additive(adapter, vec![("lora_A.weight", a.into_dyn()), ("lora_B.weight", b.into_dyn())]))
}
