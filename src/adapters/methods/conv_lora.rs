use super::expect;
use crate::adapters::{Additive, Boxed};
use crate::compose::Product;
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use crate::structures::{BlockDiagonal, Dense};
use ndarray::ArrayRef2;

/// LoRA of a convolution as loralib has it: the product of `b` (`k c_out x rank`) and `a` (`rank x k c_in`), of `k c_out x k c_in`, is read row by row
/// as a kernel of `c_out x c_in x k x k`, flattened to `c_out x (c_in k k)`; times `scale`.
///
/// A row of the flattened kernel is `k` rows of the product one after the other, so the change is $B' (I_k \otimes A)$ with `b` regrouped to
/// `c_out x (k rank)`: of rank up to `k rank`, at `k rank (c_out + k c_in)` multiply-adds per place. Without groups of channels.
///
/// Source: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, whose library has it; there `rank` is `k` times the setting.
///
/// # Errors
/// [`Error::Shape`] when the factors do not fit, [`Error::Parameter`] for a kernel of 0 or rank 0.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let adapter = methods::conv_lora(&array![[1.0], [10.0]], &array![[2.0, 3.0]], 2, 1.0)?; // (2 3; 20 30), row by row
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[2.0, 3.0, 20.0, 30.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn conv_lora(b: &ArrayRef2<f64>, a: &ArrayRef2<f64>, k: usize, scale: f64) -> Result<Additive> {
    let (rank, wide) = a.dim();
    if k == 0 || rank == 0 {
        return Err(Error::parameter("kernel and rank", format!("{k}, {rank}"), "both at least 1"));
    }
    if !scale.is_finite() {
        return Err(Error::parameter("scale", scale, "a finite number"));
    }
    expect("LoRA factor B", b, (b.nrows(), rank))?;
    if !b.nrows().is_multiple_of(k) || !wide.is_multiple_of(k) {
        let found = format!("{} and {wide}", b.nrows());
        return Err(Error::parameter(
            "outputs and inputs of LoRA's factors",
            found,
            format!("multiples of {k}"),
        ));
    }
    if b.nrows() == 0 || wide == 0 {
        return Err(Error::shape("LoRA of a convolution (must not be empty)", &[k, k], &[b.nrows(), wide]));
    }
    let out = b.nrows() / k;
    let left = Factor::from_fn(Storage::F32, (1, out, k * rank), |_, o, at| {
        scale * b[[o * k + at / rank, at % rank]]
    });
    let right = Factor::from_fn(Storage::F32, (k, rank, wide), |_, i, j| a[[i, j]]);
    let right = BlockDiagonal::new((k * rank, k * wide), right)?;
    let factors: Vec<Boxed> = vec![Box::new(Dense::from_factor(left)?), Box::new(right)];
    Ok(Additive::new("conv_lora", Box::new(Product::new(factors)?)).with_params(b.len() + a.len()))
}
