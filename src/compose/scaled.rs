use super::{Boxed, check_shape, only_child, with_children};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, factor_gradients, product};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::scalar::Scalar;
use crate::storage::Factor;
use ndarray::{Array2, Array3, ArrayRef2, Axis, s};

/// $W = \mathrm{diag}(l)\, A\, \mathrm{diag}(r)$; either diagonal may be absent.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::compose::Scaled;
/// use structmat::ndarray::array;
/// let a = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?;
/// let l = Factor::from_matrix(Storage::F32, &array![[10.0f32, 1.0]]);
/// let w = Scaled::new(Some(l), Box::new(a), None)?;
/// assert_eq!(w.to_dense::<f32>(), array![[10.0, 20.0], [3.0, 4.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Scaled {
    left: Option<Factor>,
    inner: Boxed,
    right: Option<Factor>,
}

impl Scaled {
    pub(super) const NAME: &'static str = "scaled";

    /// From `left` (1 x out), `inner` (out x in) and `right` (1 x in).
    ///
    /// # Errors
    /// [`Error::Shape`] when a diagonal has another length.
    pub fn new(left: Option<Factor>, inner: Boxed, right: Option<Factor>) -> Result<Self> {
        let (m, n) = inner.shape();
        for (diagonal, len) in [(&left, m), (&right, n)] {
            if let Some((b, r, c)) = diagonal.as_ref().map(Factor::shape)
                && (b, r, c) != (1, 1, len)
            {
                return Err(Error::shape("diagonal of a scaled matrix", &[1, 1, len], &[b, r, c]));
            }
        }
        Ok(Self { left, inner, right })
    }

    /// The matrix that is scaled.
    pub fn inner(&self) -> &dyn StructuredMatrix {
        self.inner.as_ref()
    }

    pub(super) fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (left, right) = (parts.take_factor("left").ok(), parts.take_factor("right").ok());
        let scaled = Self::new(left, only_child(&mut parts)?, right)?;
        check_shape(&parts, scaled.shape())?;
        Ok(scaled)
    }
}

impl<T: Scalar> Multiply<T> for Scaled {
    fn multiply(&self, Operands { op, mut x, mut y, update, mut work }: Operands<'_, T>) {
        let (batch, policy) = (x.rows(), work.policy);
        let (after, before) = op.order(&self.left, &self.right);
        if let Some(diagonal) = before {
            let (mut scaled, rest) = work.matrix(batch, x.cols());
            for b in 0..batch {
                diagonal.scale_row(0, 0, 0, x.row(b), scaled.row(b), Update::Overwrite, policy);
            }
            (x, work) = (scaled.into_rows(), rest);
        }
        let Some(diagonal) = after else {
            return T::multiply(self.inner.as_ref(), Operands { op, x, y, update, work });
        };
        let (mut plain, work) = work.matrix(batch, y.cols());
        T::multiply(
            self.inner.as_ref(),
            Operands { op, x, y: plain.reborrow(), update: Update::Overwrite, work },
        );
        for b in 0..batch {
            diagonal.scale_row(0, 0, 0, plain.row(b), y.row(b), update, policy);
        }
    }
}

impl<T: Scalar> Differentiate<T> for Scaled {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let scaled = |x: &ArrayRef2<T>, diagonal: &Option<Factor>| match diagonal {
            Some(diagonal) => &x.view() * &diagonal.numbers::<T>().slice(s![0, 0, ..]),
            None => x.to_owned(),
        };
        let (inner, inner_x, inner_dy) =
            (self.inner.as_ref(), scaled(x, &self.right), scaled(dy, &self.left));
        let diagonal = |a: &ArrayRef2<T>, b: Array2<T>| {
            (&a.view() * &b).sum_axis(Axis(0)).insert_axis(Axis(0)).insert_axis(Axis(0))
        };
        let left = self.left.iter().map(|_| diagonal(dy, product(inner, Op::Forward, &inner_x, threads)));
        let right = self.right.iter().map(|_| diagonal(x, product(inner, Op::Transpose, &inner_dy, threads)));
        left.chain(right).chain(factor_gradients(inner, &inner_x, &inner_dy, threads)).collect()
    }
}

impl StructuredMatrix for Scaled {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }
    fn flops(&self, batch: usize) -> u64 {
        let diagonals = [&self.left, &self.right].into_iter().flatten().map(Factor::len).sum::<usize>();
        self.inner.flops(batch) + (batch * diagonals) as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let (m, n) = self.shape();
        let panel = |cols| Workspace::<f32>::matrix_len(batch, cols);
        panel(m) + panel(n) + self.inner.scratch_len(batch)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let mut w = self.inner.to_dense_f64();
        if let Some(left) = &self.left {
            w *= &left.matrix(0).reversed_axes();
        }
        if let Some(right) = &self.right {
            w *= &right.matrix(0);
        }
        w
    }
    fn parts(&self) -> Parts<'_> {
        let diagonals = [("left", &self.left), ("right", &self.right)];
        let mut parts = with_children(Self::NAME, self.shape(), [&self.inner]);
        for (name, diagonal) in diagonals {
            if let Some(diagonal) = diagonal {
                parts = parts.factor(name, diagonal);
            }
        }
        parts
    }
    fn clone_box(&self) -> Boxed {
        Box::new(self.clone())
    }
}
