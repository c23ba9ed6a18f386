use super::{Boxed, check_shape, only_child, with_children};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, factor_gradients};
use crate::kernels::{Rows, RowsMut};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::scalar::Scalar;
use ndarray::{Array2, Array3, ArrayRef2};

/// $W_{ij} = A_{\rho(i)\,\gamma(j)}$: row `i` of `W` is row `rows[i]` of `A`, column `j` is column `cols[j]`. Either permutation
/// may be absent.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::compose::Permuted;
/// use structmat::ndarray::array;
/// let a = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?;
/// let w = Permuted::new(Some(vec![1, 0]), Box::new(a), None)?;
/// assert_eq!(w.to_dense::<f32>(), array![[3.0, 4.0], [1.0, 2.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Permuted {
    rows: Option<Vec<u32>>,
    inner: Boxed,
    cols: Option<Vec<u32>>,
}

impl Permuted {
    pub(super) const NAME: &'static str = "permuted";

    /// From permutations of the rows and columns of `inner`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when a list is not a permutation of the features of `inner`.
    pub fn new(rows: Option<Vec<u32>>, inner: Boxed, cols: Option<Vec<u32>>) -> Result<Self> {
        let (m, n) = inner.shape();
        for (name, list, len) in [("rows", &rows, m), ("cols", &cols, n)] {
            if let Some(list) = list {
                check_permutation(name, list, len)?;
            }
        }
        Ok(Self { rows, inner, cols })
    }

    /// The matrix that is permuted.
    pub fn inner(&self) -> &dyn StructuredMatrix {
        self.inner.as_ref()
    }

    pub(super) fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (m, n) = parts.shape();
        let mut take = |name, limit| {
            let present = parts.indices().any(|(known, _)| known == name);
            present.then(|| parts.take_indices(name, limit)).transpose()
        };
        let (rows, cols) = (take("rows", m)?, take("cols", n)?);
        let permuted = Self::new(rows, only_child(&mut parts)?, cols)?;
        check_shape(&parts, permuted.shape())?;
        Ok(permuted)
    }
}

/// Refuses a list that does not name each of `0..len` once.
pub(crate) fn check_permutation(name: &str, list: &[u32], len: usize) -> Result<()> {
    let mut seen = vec![false; len];
    let fits = list.len() == len
        && list.iter().all(|&i| seen.get_mut(i as usize).is_some_and(|seen| !std::mem::replace(seen, true)));
    match fits {
        true => Ok(()),
        false => Err(Error::parameter(
            name,
            format!("a list of {}", list.len()),
            format!("a permutation of 0..{len}"),
        )),
    }
}

/// `y[:, k] (+)= x[:, list[k]]`: the features that a list names, one after the other.
pub(crate) fn gather<T: Scalar>(list: &[u32], x: Rows<'_, T>, mut y: RowsMut<'_, T>, update: Update) {
    for b in 0..x.rows() {
        let (from, to) = (x.row(b), y.row(b));
        match update {
            Update::Overwrite => to.iter_mut().zip(list).for_each(|(to, &k)| *to = from[k as usize]),
            Update::Accumulate => to.iter_mut().zip(list).for_each(|(to, &k)| *to += from[k as usize]),
        }
    }
}

/// `y[:, list[k]] (+)= x[:, k]`: the inverse, for distinct entries of a list. Other features of `y` are left alone.
pub(crate) fn scatter<T: Scalar>(list: &[u32], x: Rows<'_, T>, mut y: RowsMut<'_, T>, update: Update) {
    for b in 0..x.rows() {
        let (from, to) = (x.row(b), y.row(b));
        match update {
            Update::Overwrite => from.iter().zip(list).for_each(|(from, &k)| to[k as usize] = *from),
            Update::Accumulate => from.iter().zip(list).for_each(|(from, &k)| to[k as usize] += *from),
        }
    }
}

impl<T: Scalar> Multiply<T> for Permuted {
    fn multiply(&self, Operands { op, mut x, y, update, mut work }: Operands<'_, T>) {
        // W = P A Q with (P z)[i] = z[rows[i]] and (Q x)[cols[j]] = x[j]; the transpose swaps the two.
        let batch = x.rows();
        let (after, before) = op.order(&self.rows, &self.cols);
        if let Some(list) = before {
            let (mut permuted, rest) = work.matrix(batch, x.cols());
            scatter(list, x, permuted.reborrow(), Update::Overwrite);
            (x, work) = (permuted.into_rows(), rest);
        }
        let Some(list) = after else {
            return T::multiply(self.inner.as_ref(), Operands { op, x, y, update, work });
        };
        let (mut plain, work) = work.matrix(batch, y.cols());
        T::multiply(
            self.inner.as_ref(),
            Operands { op, x, y: plain.reborrow(), update: Update::Overwrite, work },
        );
        gather(list, plain.as_rows(), y, update);
    }
}

impl<T: Scalar> Differentiate<T> for Permuted {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        // Feature i of W is feature list[i] of A.
        let inner = |x: &ArrayRef2<T>, list: &Option<Vec<u32>>| match list {
            Some(list) => {
                let mut inner = Array2::zeros((x.ncols(), x.nrows()));
                x.columns()
                    .into_iter()
                    .zip(list)
                    .for_each(|(from, &k)| inner.row_mut(k as usize).assign(&from));
                inner.reversed_axes()
            }
            None => x.to_owned(),
        };
        let (x, dy) = (inner(x, &self.cols), inner(dy, &self.rows));
        factor_gradients(self.inner.as_ref(), &x, &dy, threads)
    }
}

impl StructuredMatrix for Permuted {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }
    fn flops(&self, batch: usize) -> u64 {
        self.inner.flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let (m, n) = self.shape();
        let panel = |cols| Workspace::<f32>::matrix_len(batch, cols);
        panel(m) + panel(n) + self.inner.scratch_len(batch)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let a = self.inner.to_dense_f64();
        let at = |list: &Option<Vec<u32>>, i: usize| list.as_ref().map_or(i, |list| list[i] as usize);
        Array2::from_shape_fn(a.dim(), |(i, j)| a[[at(&self.rows, i), at(&self.cols, j)]])
    }
    fn parts(&self) -> Parts<'_> {
        let mut parts = with_children(Self::NAME, self.shape(), [&self.inner]);
        for (name, list) in [("rows", &self.rows), ("cols", &self.cols)] {
            if let Some(list) = list {
                parts = parts.index(name, list);
            }
        }
        parts
    }
    fn clone_box(&self) -> Boxed {
        Box::new(self.clone())
    }
}
