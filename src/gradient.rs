//! Gradients with respect to the input and to the numbers of the factors.
//!
//! For a scalar `L` of the output `Y = X Wᵀ` of a structured matrix, with `dY = dL/dY`, the gradient of the input is `dY W`, a transposed
//! product; that of the factors is the structure's own, [`Differentiate`]. Users call [`Apply::vjp`](crate::Apply::vjp).

use crate::exec::Exec;
use crate::kernels::PanelMap;
use crate::linalg::{Threads, matmul_into};
use crate::matrix::{Op, StructuredMatrix, Update, apply};
use crate::scalar::Scalar;
use crate::storage::Factor;
use ndarray::{Array2, Array3, ArrayRef2, Axis, s};

/// How the output of a structure depends on its factors, in numbers of type `T`. Implement it once, generically.
pub trait Differentiate<T: Scalar> {
    /// The gradients of `<dY, X Wᵀ>`, with `X` of `batch x in` and `dY` of `batch x out`, both of any strides: for each factor an array of
    /// its shape (`blocks x rows x cols`), in the order of [`Parts::all_factors`](crate::parts::Parts::all_factors): a structure's own as
    /// its parts name them, then those of its sub-matrices.
    ///
    /// The shapes fit the matrix and no side of `x` or `dy` is zero: [`Apply`](crate::Apply) has checked. May allocate. Costs about twice
    /// the product by the structure's own formula; families of which the dense gradient `dYᵀ X` is the quicker way say so.
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>>;
}

/// What [`Apply::vjp`](crate::Apply::vjp) computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Vjp<T> {
    /// `dY W`, `batch x in`.
    pub input: Array2<T>,
    /// The gradient of each factor (`blocks x rows x cols`), in the order of
    /// [`Parts::all_factors`](crate::parts::Parts::all_factors) and [`Apply::factor_numbers`](crate::Apply::factor_numbers).
    pub factors: Vec<Array3<T>>,
}

/// The gradients of the factors of any matrix: zeros where there is nothing to multiply.
pub(crate) fn factor_gradients<T: Scalar, M: StructuredMatrix + ?Sized>(
    w: &M,
    x: &ArrayRef2<T>,
    dy: &ArrayRef2<T>,
    threads: Threads,
) -> Vec<Array3<T>> {
    if x.is_empty() || dy.is_empty() {
        return w.parts().all_factors().iter().map(|factor| Array3::zeros(factor.shape())).collect();
    }
    T::differentiate(w, x, dy, threads)
}

/// `X Wᵀ` or `X W`, for shapes that fit.
pub(crate) fn product<T: Scalar>(
    w: &dyn StructuredMatrix,
    op: Op,
    x: &ArrayRef2<T>,
    threads: Threads,
) -> Array2<T> {
    let mut y = Array2::zeros((x.nrows(), op.order(w.shape().0, w.shape().1).0));
    let done = apply(w, op, x, &mut y, Update::Overwrite, &mut Exec::threads(threads.0.max(1)));
    debug_assert!(done.is_ok(), "{done:?}");
    y
}

/// Rows of `a` in the order of `places`, zero where `a` ends before: features are gathered and padded in one go. Of the transpose of a batch
/// this gives `features x batch`, where the features of a block are one piece of memory.
pub(crate) fn gathered<T: Scalar>(a: &ArrayRef2<T>, places: impl IntoIterator<Item = usize>) -> Array2<T> {
    let places: Vec<usize> = places.into_iter().collect();
    let mut rows = Array2::zeros((places.len(), a.ncols()));
    for (mut row, &place) in rows.outer_iter_mut().zip(&places) {
        if place < a.nrows() {
            row.assign(&a.row(place));
        }
    }
    rows
}

/// `x` with zeros behind each row up to `cols` columns.
pub(crate) fn padded<T: Scalar>(x: &ArrayRef2<T>, cols: usize) -> Array2<T> {
    let mut wide = Array2::zeros((x.nrows(), cols));
    wide.slice_mut(s![.., ..x.ncols()]).assign(x);
    wide
}

/// `dY_b X_bᵀ` for the blocks `b` of rows of `dy` and of `x` (both `features x batch`): the gradient of a block-diagonal factor.
pub(crate) fn stack_gradient<T: Scalar>(
    blocks: usize,
    dy: &ArrayRef2<T>,
    x: &ArrayRef2<T>,
    threads: Threads,
) -> Array3<T> {
    let (rows, cols) = (dy.nrows() / blocks.max(1), x.nrows() / blocks.max(1));
    let mut all = Array3::zeros((blocks, rows, cols));
    for (b, mut block) in all.axis_iter_mut(Axis(0)).enumerate() {
        let (dy, x) = (dy.slice(s![b * rows..(b + 1) * rows, ..]), x.slice(s![b * cols..(b + 1) * cols, ..]));
        matmul_into(&dy, &x.t(), &mut block, false, threads);
    }
    all
}

/// One block-diagonal factor of a product of several.
pub(crate) struct Stage<T> {
    blocks: Array3<T>,
    map: PanelMap,
}

impl<T: Scalar> Stage<T> {
    /// The blocks of `factor`, whose features lie where `map` says.
    pub(crate) fn new(factor: &Factor, map: PanelMap) -> Self {
        Self { blocks: factor.numbers(), map }
    }

    /// Blocks one after the other on both sides: of one block, a dense matrix.
    pub(crate) fn contiguous(blocks: Array3<T>) -> Self {
        let map = PanelMap::contiguous(blocks.dim().0, blocks.dim().1, blocks.dim().2);
        Self { blocks, map }
    }

    /// `A_b X_b` or `A_bᵀ X_b` for the blocks of rows of `x` (`features x batch`), one below the other.
    fn multiply(&self, op: Op, x: &ArrayRef2<T>, threads: Threads) -> Array2<T> {
        let (blocks, rows, cols) = self.blocks.dim();
        let (outputs, inputs) = op.order(rows, cols);
        let mut y = Array2::zeros((blocks * outputs, x.ncols()));
        for (b, block) in self.blocks.outer_iter().enumerate() {
            let block = if op == Op::Forward { block } else { block.reversed_axes() };
            let x = x.slice(s![b * inputs..(b + 1) * inputs, ..]);
            let mut y = y.slice_mut(s![b * outputs..(b + 1) * outputs, ..]);
            matmul_into(&block, &x, &mut y, false, threads);
        }
        y
    }
}

/// The gradients of the stages of `W = A_1 A_2 ...`, leftmost first, for `X` of `batch x in` and `dY` of `batch x out`; blocks may reach beyond
/// the features of `W`.
pub(crate) fn stage_gradients<T: Scalar>(
    stages: &[Stage<T>],
    x: &ArrayRef2<T>,
    dy: &ArrayRef2<T>,
    threads: Threads,
) -> Vec<Array3<T>> {
    let (Some(first), Some(last)) = (stages.first(), stages.last()) else { return Vec::new() };
    // What goes into each stage, rightmost first, as features x batch.
    let mut inputs = vec![gathered(&x.t(), 0..last.map.blocks * last.map.cols)];
    for stage in stages[1..].iter().rev() {
        let y = stage.multiply(Op::Forward, &inputs[inputs.len() - 1], threads);
        let mut placed = Array2::zeros(y.dim());
        for (row, place) in y.outer_iter().zip(stage.map.row_features()) {
            placed.row_mut(place).assign(&row);
        }
        inputs.push(placed);
    }
    let mut gradients = Vec::with_capacity(stages.len());
    let mut dy = gathered(&dy.t(), first.map.row_features());
    for (k, (stage, x)) in stages.iter().zip(inputs.iter().rev()).enumerate() {
        gradients.push(stack_gradient(stage.map.blocks, &dy, x, threads));
        if let Some(next) = stages.get(k + 1) {
            dy = gathered(&stage.multiply(Op::Transpose, &dy, threads), next.map.row_features());
        }
    }
    gradients
}
