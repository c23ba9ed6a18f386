use super::{expect, low_rank};
use crate::adapters::{Adapter, Edit, check_base};
use crate::compose::{Identity, Sum};
use crate::error::Result;
use crate::matrix::StructuredMatrix;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, ArrayRef2};

/// How [`Deft`] makes the two sides of its projection from `P`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeftForm {
    /// `Q = P` and $P_r = \max(P, 0)$.
    Relu,
    /// `Q` and $P_r$ are the orthonormal factor of `P`, with the signs of Householder reflections as LAPACK takes them.
    Qr,
}

/// DEFT: $W' = W + Q\,(s R - P_r^T W)$: a subspace of the outputs is taken out, and a low-rank matrix put there.
///
/// $W' = (I - Q P_r^T) W + s Q R$, so a product costs `rank (3 out + in)` beside the base's.
///
/// Source: the form of HuggingFace PEFT.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{Deft, DeftForm}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?;
/// let deft = Deft::new(&array![[1.0], [0.0]], Some(&array![[7.0, 8.0]]), DeftForm::Relu, 1.0)?;
/// assert_eq!(deft.edit(&base)?.merged(&base)?, array![[7.0, 8.0], [3.0, 4.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Deft {
    edit: Edit,
    params: usize,
}

impl Deft {
    /// From `p` (`out x rank`), `r` (`rank x in`; without it nothing is put in the place of what is taken out) and the scale `s`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when the factors do not fit.
    pub fn new(p: &ArrayRef2<f64>, r: Option<&ArrayRef2<f64>>, form: DeftForm, scale: f64) -> Result<Self> {
        let inp = r.map_or(p.nrows(), |r| r.ncols());
        Self::of_shape((p.nrows(), inp), p, r, form, scale)
    }

    /// The same for `out x in` weights, where there is no `r` to say so.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_shape(
        (m, n): (usize, usize),
        p: &ArrayRef2<f64>,
        r: Option<&ArrayRef2<f64>>,
        form: DeftForm,
        scale: f64,
    ) -> Result<Self> {
        let rank = p.ncols();
        expect("DEFT factor P", p, (m, rank))?;
        let (q, pr) = match form {
            DeftForm::Relu => (p.to_owned(), p.mapv(|v| v.max(0.0))),
            DeftForm::Qr => {
                let q = householder(p);
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
        Ok(Self { edit, params: p.len() + r.map_or(0, |r| r.len()) })
    }
}

impl Adapter for Deft {
    fn kind(&self) -> &'static str {
        "deft"
    }
    fn shape(&self) -> (usize, usize) {
        self.edit.shape()
    }
    fn n_params(&self) -> usize {
        self.params
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape())?;
        Ok(self.edit.clone())
    }
}

/// The orthonormal factor of `a` (thin), with the signs of LAPACK's reflections: `R_ii` has the sign opposite to the entry that it replaces.
pub(super) fn householder(a: &ArrayRef2<f64>) -> Array2<f64> {
    let (m, n) = a.dim();
    let k = m.min(n);
    let mut r = a.to_owned();
    let mut reflectors = Vec::with_capacity(k);
    for j in 0..k {
        let mut v = r.slice(ndarray::s![j.., j]).to_owned();
        let rest: f64 = v.iter().skip(1).map(|x| x * x).sum();
        if rest == 0.0 {
            reflectors.push(None);
            continue;
        }
        v[0] += (v[0] * v[0] + rest).sqrt().copysign(v[0]);
        v /= v.dot(&v).sqrt();
        reflect(&mut r, &v, j);
        reflectors.push(Some(v));
    }
    let mut q = Array2::eye(m);
    for (j, v) in reflectors.iter().enumerate().rev() {
        v.iter().for_each(|v| reflect(&mut q, v, j));
    }
    q.slice(ndarray::s![.., ..k]).to_owned()
}

/// `(I - 2 v vᵀ) A` on rows `from..`.
fn reflect(a: &mut Array2<f64>, v: &ndarray::Array1<f64>, from: usize) {
    let along = v.dot(&a.slice(ndarray::s![from.., ..])) * 2.0;
    for (mut row, v) in a.slice_mut(ndarray::s![from.., ..]).outer_iter_mut().zip(v) {
        row.scaled_add(-*v, &along);
    }
}
