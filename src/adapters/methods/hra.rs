use super::low_rank;
use crate::adapters::{Edit, Multiplicative};
use crate::compose::{Identity, Sum};
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use ndarray::{Array2, ArrayRef2};

/// HRA: $W' = W\,(I - 2 \hat u_1 \hat u_1^T)(I - 2 \hat u_2 \hat u_2^T) \cdots$, with the columns of `u` (`in x rank`) brought to norm 1; with
/// `orthonormal`, the columns are made orthonormal one after the other first.
///
/// A product of `r` reflections is the identity plus a matrix of rank `r` (compact WY form), so it costs `2 in rank`, in two products.
///
/// Source: S. Yuan, H. Liu, H. Xu, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation", 2024.
///
/// # Errors
/// [`Error::Shape`] when `u` does not have `in` rows, [`Error::Parameter`] for rank 0 or a column without a direction.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0]])?;
/// let hra = methods::hra((1, 2), &array![[5.0], [0.0]], false)?;
/// assert_eq!(hra.delta(&base)?, array![[-2.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn hra((m, n): (usize, usize), u: &ArrayRef2<f64>, orthonormal: bool) -> Result<Multiplicative> {
    let (rows, r) = u.dim();
    if rows != n {
        return Err(Error::shape("HRA vectors", &[n, r], &[rows, r]));
    }
    let mut y = u.to_owned();
    for k in 0..r {
        let mut column = y.column(k).to_owned();
        for j in 0..if orthonormal { k } else { 0 } {
            // Against what is left: the same in exact arithmetic, and more accurate.
            let along = y.column(j).dot(&column);
            column.scaled_add(-along, &y.column(j));
        }
        let norm = column.dot(&column).sqrt();
        if !(norm > 0.0 && norm.is_finite()) {
            return Err(Error::parameter(format!("norm of reflection {k}"), norm, "a positive number"));
        }
        y.column_mut(k).assign(&(column / norm));
    }
    // H_1 ... H_r = I + Z Yᵀ: each reflection adds the column z = -2 (y + Z (Yᵀ y)).
    let mut z = Array2::<f64>::zeros((n, r));
    for k in 0..r {
        let new = y.column(k).to_owned();
        let (before, along) = (z.slice(ndarray::s![.., ..k]), y.slice(ndarray::s![.., ..k]));
        let column = (before.dot(&along.t().dot(&new)) + &new) * -2.0;
        z.column_mut(k).assign(&column);
    }
    let factor = |a: &ArrayRef2<f64>| Factor::from_matrix(Storage::F32, a);
    let low_rank = low_rank(factor(&z), &vec![1.0; r], factor(&y.t()))?;
    let right = Sum::new(vec![Box::new(Identity::new(n)?), low_rank])?;
    Ok(Multiplicative::new("hra", Edit::of((m, n)).with_right(Box::new(right))?, u.len()))
}
