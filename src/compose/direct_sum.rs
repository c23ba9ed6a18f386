use super::{Boxed, check_shape, with_children};
use crate::error::{Error, Result};
use crate::gradient::{Differentiate, factor_gradients};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Operands, StructuredMatrix};
use crate::parts::Parts;
use crate::scalar::Scalar;
use ndarray::{Array2, Array3, ArrayRef2, s};

/// $W = A_1 \oplus A_2 \oplus \dots$: block-diagonal, with any structured matrices of any shapes as blocks.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::compose::DirectSum;
/// use structmat::ndarray::array;
/// let a = Dense::new(&array![[1.0f32, 2.0]])?;
/// let b = Dense::new(&array![[3.0f32], [4.0]])?;
/// let w = DirectSum::new(vec![Box::new(a), Box::new(b)])?;
/// assert_eq!(w.to_dense::<f32>(), array![[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 4.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[doc(alias = "BlockDiagonal")]
#[derive(Debug, Clone)]
pub struct DirectSum {
    blocks: Vec<Boxed>,
}

impl DirectSum {
    pub(super) const NAME: &'static str = "direct_sum";

    /// The direct sum of `blocks`, top left first, at least one.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there is none.
    pub fn new(blocks: Vec<Boxed>) -> Result<Self> {
        if blocks.is_empty() {
            return Err(Error::parameter("blocks", "none", "at least one"));
        }
        Ok(Self { blocks })
    }

    /// The blocks, top left first.
    pub fn blocks(&self) -> &[Boxed] {
        &self.blocks
    }

    pub(super) fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let sum = Self::new(parts.take_children()?)?;
        check_shape(&parts, sum.shape())?;
        Ok(sum)
    }
}

impl<T: Scalar> Multiply<T> for DirectSum {
    fn multiply(&self, Operands { op, x, y, update, mut work }: Operands<'_, T>) {
        let (mut at, mut rest) = (0, y);
        for block in &self.blocks {
            let (outputs, inputs) = op.order(block.shape().0, block.shape().1);
            let (y, right) = rest.split_columns(outputs);
            let x = x.columns(at..at + inputs);
            T::multiply(block.as_ref(), Operands { op, x, y, update, work: work.reborrow() });
            (at, rest) = (at + inputs, right);
        }
    }
}

impl<T: Scalar> Differentiate<T> for DirectSum {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let (mut i, mut j) = (0, 0);
        let mut gradients = Vec::new();
        for block in &self.blocks {
            let (m, n) = block.shape();
            let (dy, x) = (dy.slice(s![.., i..i + m]), x.slice(s![.., j..j + n]));
            gradients.extend(factor_gradients(block.as_ref(), &x, &dy, threads));
            (i, j) = (i + m, j + n);
        }
        gradients
    }
}

impl StructuredMatrix for DirectSum {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.blocks
            .iter()
            .map(|block| block.shape())
            .fold((0, 0), |(m, n), (rows, cols)| (m + rows, n + cols))
    }
    fn flops(&self, batch: usize) -> u64 {
        self.blocks.iter().map(|block| block.flops(batch)).sum()
    }
    fn scratch_len(&self, batch: usize) -> usize {
        self.blocks.iter().map(|block| block.scratch_len(batch)).max().unwrap_or(0)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let mut w = Array2::zeros(self.shape());
        let (mut i, mut j) = (0, 0);
        for block in &self.blocks {
            let (m, n) = block.shape();
            w.slice_mut(s![i..i + m, j..j + n]).assign(&block.to_dense_f64());
            (i, j) = (i + m, j + n);
        }
        w
    }
    fn parts(&self) -> Parts<'_> {
        with_children(Self::NAME, self.shape(), &self.blocks)
    }
    fn clone_box(&self) -> Boxed {
        Box::new(self.clone())
    }
}
