use super::{expect, low_rank};
use crate::adapters::{Edit, Multiplicative};
use crate::compose::{Identity, Sum};
use crate::error::Result;
use crate::linalg::reflected_q;
use crate::storage::{Factor, Storage};
use ndarray::ArrayRef2;

/// How [`deft`] makes the two sides of its projection from `P`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeftForm {
    /// `Q = P` and $P_r = \max(P, 0)$.
    Relu,
    /// `Q` and $P_r$ are the orthonormal factor of `P`, with the signs of Householder reflections as LAPACK takes them.
    Qr,
}

/// DEFT: $W' = W + Q\,(s R - P_r^T W)$: a subspace of the outputs is taken out, and a low-rank matrix put there; `p` is `out x rank`, `r` (`rank x in`)
/// may be absent, and then nothing is put there.
///
/// $W' = (I - Q P_r^T) W + s Q R$, so a product costs `rank (3 out + in)` beside the base's.
///
/// Source: the form of HuggingFace PEFT.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the factors do not fit `out x in`.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{DeftForm, deft}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?;
/// let deft = deft((2, 2), &array![[1.0], [0.0]], Some(&array![[7.0, 8.0]]), DeftForm::Relu, 1.0)?;
/// assert_eq!(deft.edit(&base)?.merged(&base)?, array![[7.0, 8.0], [3.0, 4.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn deft(
    (m, n): (usize, usize),
    p: &ArrayRef2<f64>,
    r: Option<&ArrayRef2<f64>>,
    form: DeftForm,
    scale: f64,
) -> Result<Multiplicative> {
    let rank = p.ncols();
    expect("DEFT factor P", p, (m, rank))?;
    let (q, pr) = match form {
        DeftForm::Relu => (p.to_owned(), p.mapv(|v| v.max(0.0))),
        DeftForm::Qr => {
            let q = reflected_q(p);
            (q.clone(), q)
        }
    };
    let factor = |a: &ArrayRef2<f64>| Factor::from_matrix(Storage::F32, a);
    let out = low_rank(factor(&q), &vec![-1.0; rank], factor(&pr.t()))?;
    let left = Sum::new(vec![Box::new(Identity::new(m)?), out])?;
    let mut edit = Edit::of((m, n)).with_left(Box::new(left))?;
    if let Some(r) = r {
        expect("DEFT factor R", r, (rank, n))?;
        edit = edit.with_delta(low_rank(factor(&q), &vec![scale; rank], factor(r))?)?;
    }
    Ok(Multiplicative::new("deft", edit, p.len() + r.map_or(0, |r| r.len())))
}
