use super::Rotation;
use crate::adapters::{Boxed, Edit, Multiplicative};
use crate::compose::{Identity, Product};
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use crate::structures::BlockDiagonal;
use ndarray::{ArrayRef4, s};

/// BOFT: $W' = \mathrm{diag}(s)\, W R^T$ with $R = F_{f-1} \cdots F_0$, each $F_i = P_i\, \mathrm{diag}(C_1, C_2, \dots) P_i^T$ of Cayley rotations
/// behind a butterfly's permutation.
///
/// `r` is `f x nb x b x b`; its blocks `X` count by their skew-symmetric parts `(X - Xᵀ) / 2`. Cost: `in b` per factor, and `out`; no dense
/// rotation is made. The bias is not scaled.
///
/// Source: W. Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", 2023.
///
/// # Errors
/// [`Error::Shape`] when the blocks do not cover the inputs or `scale` the outputs, [`Error::Parameter`] when so many factors do not fit the
/// blocks.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods};
/// use structmat::ndarray::{Array4, array};
/// let base = Dense::new(&array![[1.0f32, 2.0, 3.0, 4.0]])?;
/// let none = methods::boft((1, 4), &Array4::zeros((2, 2, 2, 2)), Some(&[3.0]))?;
/// assert_eq!(none.delta(&base)?, array![[2.0, 4.0, 6.0, 8.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn boft((m, n): (usize, usize), r: &ArrayRef4<f64>, scale: Option<&[f64]>) -> Result<Multiplicative> {
    let (f, nb, b, b2) = r.dim();
    if b != b2 || b == 0 || f == 0 || nb.checked_mul(b) != Some(n) {
        return Err(Error::shape(
            "BOFT rotations",
            &[f.max(1), n.checked_div(b).unwrap_or(1), b, b],
            r.shape(),
        ));
    }
    let mut factors: Vec<Boxed> = Vec::with_capacity(f);
    for i in 0..f {
        let order = butterfly(n, nb, b, i)?;
        let mut blocks = Vec::with_capacity(nb);
        for k in 0..nb {
            let x = r.slice(s![i, k, .., ..]);
            blocks.push(Rotation::Cayley.of(&((&x - &x.t()) * 0.5))?);
        }
        // Rᵀ = F_0ᵀ F_1ᵀ ...: transposed blocks, in this order.
        let stack = Factor::from_fn(Storage::F32, (nb, b, b), |k, i, j| blocks[k][[j, i]]);
        factors.push(Box::new(BlockDiagonal::permuted((n, n), stack, order.clone(), order)?));
    }
    let mut edit = Edit::of((m, n)).with_right(Box::new(Product::new(factors)?))?;
    if let Some(scale) = scale {
        let left = Identity::diagonal(super::row(scale.iter().copied()))?;
        edit = edit.with_left(Box::new(left))?;
    }
    let params = f * nb * (b * (b - 1) / 2) + scale.map_or(0, <[f64]>::len);
    Ok(Multiplicative::new("boft", edit, params))
}

/// Which feature stands at each place of the blocks of factor `i`: within each segment of `n 2^i / nb` features, the chunks of half a block
/// with even numbers come first.
fn butterfly(n: usize, nb: usize, b: usize, i: usize) -> Result<Vec<u32>> {
    if i == 0 {
        return Ok((0..n as u32).collect());
    }
    let segment = u32::try_from(i).ok().and_then(|i| 1usize.checked_shl(i)).and_then(|p| p.checked_mul(b));
    let segment = segment.filter(|len| b.is_multiple_of(2) && nb > 0 && n.is_multiple_of(*len));
    let Some(segment) = segment else {
        let wanted = format!("factors whose segments of 2^i blocks divide {n} features, and even blocks");
        return Err(Error::parameter("boft_n_butterfly_factor", i + 1, wanted));
    };
    let (half, chunks) = (b / 2, segment / (b / 2));
    // Row a of P has its 1 at the a-th index of the list: place list[a] of the blocks is feature a.
    let mut order = vec![0; n];
    for feature in 0..n {
        let (start, within) = (feature / segment * segment, feature % segment);
        let (place, offset) = (within / half, within % half);
        let evens = chunks.div_ceil(2);
        let chunk = if place < evens { 2 * place } else { 2 * (place - evens) + 1 };
        order[start + chunk * half + offset] = feature as u32;
    }
    Ok(order)
}
