//! The contract of a structured matrix, and what every structured matrix can do.
//!
//! Authors of a structure implement [`StructuredMatrix`] (what it is), [`Multiply`] (how it multiplies) and [`Differentiate`] (how it
//! depends on its factors).
//! Users call [`Apply`], which every structured matrix has, boxed or not.

use crate::error::{Error, Result};
use crate::exec::{Exec, Workspace};
use crate::gradient::{Differentiate, Vjp, factor_gradients};
use crate::kernels::{Rows, RowsMut};
use crate::linalg::Threads;
use crate::parts::Parts;
use crate::scalar::Scalar;
use crate::storage::Storage;
use ndarray::{Array1, Array2, Array3, ArrayRef1, ArrayRef2};
use std::fmt::Debug;

/// Which product: with `W` or with its transpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// `Y = X Wᵀ`: a batch of inputs to a batch of outputs.
    Forward,
    /// `Y = X W`: a batch of output gradients to a batch of input gradients.
    Transpose,
}

impl Op {
    /// The other one.
    pub fn flip(self) -> Self {
        match self {
            Op::Forward => Op::Transpose,
            Op::Transpose => Op::Forward,
        }
    }

    /// `(a, b)` forward, `(b, a)` transposed.
    pub fn order<A>(self, a: A, b: A) -> (A, A) {
        match self {
            Op::Forward => (a, b),
            Op::Transpose => (b, a),
        }
    }
}

/// What happens to the previous contents of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Update {
    /// Replaced; they may be NaN.
    Overwrite,
    /// Added to.
    Accumulate,
}

/// One product to compute. The shapes fit the matrix and the scratch suffices: [`Apply`] has checked.
#[derive(Debug)]
pub struct Operands<'a, T> {
    /// With `W` or `Wᵀ`.
    pub op: Op,
    /// `batch x in` (forward) or `batch x out` (transposed).
    pub x: Rows<'a, T>,
    /// `batch x out` (forward) or `batch x in` (transposed).
    pub y: RowsMut<'a, T>,
    /// Replace or add.
    pub update: Update,
    /// At least [`StructuredMatrix::scratch_len`] entries, and the policy.
    pub work: Workspace<'a, T>,
}

/// How a structure multiplies with numbers of type `T`. Implement it once, generically.
pub trait Multiply<T: Scalar> {
    /// Computes the product. Must not allocate in a steady state, must write (or add to) every entry of `y`, must not
    /// read `y` when overwriting, and must give the same bits for any number of threads.
    fn multiply(&self, operands: Operands<'_, T>);
}

/// A matrix `W` of `out_features x in_features` in structured form.
///
/// Object-safe and immutable: one instance serves many threads, and `Box<dyn StructuredMatrix>` holds any
/// structure. Numbers are stored as [`Storage`] says and multiplied as `f32` or `f64`.
pub trait StructuredMatrix:
    Multiply<f32> + Multiply<f64> + Differentiate<f32> + Differentiate<f64> + Debug + Send + Sync + 'static
{
    /// The structure's name in files, in the registry and on command lines, such as `"low_rank"`.
    fn name(&self) -> &'static str;

    /// `(out_features, in_features)`.
    fn shape(&self) -> (usize, usize);

    /// Multiply-adds x 2 of one product with `batch` rows.
    fn flops(&self, batch: usize) -> u64;

    /// Scratch entries that a product with `batch` rows needs, in either direction.
    fn scratch_len(&self, batch: usize) -> usize;

    /// `W`, in `f64`, by the entry formula of the structure and independently of the kernels.
    fn to_dense_f64(&self) -> Array2<f64>;

    /// The numbers and settings that define the matrix: what a file holds.
    fn parts(&self) -> Parts<'_>;

    /// A copy.
    fn clone_box(&self) -> Box<dyn StructuredMatrix>;

    /// Number of stored parameters; indices are not counted.
    fn n_params(&self) -> usize {
        self.parts().n_params()
    }

    /// Bytes that hold them, scales and indices included: what one product must read.
    fn storage_bytes(&self) -> usize {
        self.parts().bytes()
    }

    /// The same matrix with its factors in another storage. Rounds when that storage is coarser.
    fn to_storage(&self, storage: Storage) -> Result<Box<dyn StructuredMatrix>> {
        crate::registry::load(self.parts().to_storage(storage))
    }
}

impl Clone for Box<dyn StructuredMatrix> {
    fn clone(&self) -> Self {
        self.clone_box()
    }
}

/// Products for users: every structured matrix, boxed or not, has them.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]])?;
/// assert_eq!(w.matvec(&array![1.0f32, 1.0])?, array![3.0, 7.0, 11.0]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub trait Apply: StructuredMatrix {
    /// `Y = X Wᵀ` or `Y += X Wᵀ`, with `X` of `batch x in` and `Y` of `batch x out`; allocates nothing once
    /// `exec` has grown to this size. Any strides; unit stride along features is fast.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not fit; `y` is then untouched.
    fn apply_into<T: Scalar>(
        &self,
        x: &ArrayRef2<T>,
        y: &mut ArrayRef2<T>,
        update: Update,
        exec: &mut Exec<T>,
    ) -> Result<()> {
        apply(self, Op::Forward, x, y, update, exec)
    }

    /// `Y = X W` or `Y += X W`, with `X` of `batch x out` and `Y` of `batch x in`.
    ///
    /// # Errors
    /// As [`apply_into`](Self::apply_into).
    fn apply_transpose_into<T: Scalar>(
        &self,
        x: &ArrayRef2<T>,
        y: &mut ArrayRef2<T>,
        update: Update,
        exec: &mut Exec<T>,
    ) -> Result<()> {
        apply(self, Op::Transpose, x, y, update, exec)
    }

    /// `y = W x` for slices: the lightest call, for hand-written loops.
    ///
    /// # Errors
    /// [`Error::Shape`] when a length does not fit.
    fn matvec_into<T: Scalar>(&self, x: &[T], y: &mut [T], exec: &mut Exec<T>) -> Result<()> {
        let (out, inp) = self.shape();
        if x.len() != inp {
            return Err(Error::shape("x", &[inp], &[x.len()]));
        }
        if y.len() != out {
            return Err(Error::shape("y", &[out], &[y.len()]));
        }
        let work = exec.workspace(self.scratch_len(1));
        let (x, y) = (Rows::new(x, 1, inp, inp), RowsMut::new(y, 1, out, out));
        T::multiply(self, Operands { op: Op::Forward, x, y, update: Update::Overwrite, work });
        Ok(())
    }

    /// `W x`, allocating.
    ///
    /// # Errors
    /// [`Error::Shape`] when the length of `x` is not `in_features`.
    fn matvec<T: Scalar>(&self, x: &ArrayRef1<T>) -> Result<Array1<T>> {
        vector(self, Op::Forward, x)
    }

    /// `Wᵀ x`, allocating.
    ///
    /// # Errors
    /// [`Error::Shape`] when the length of `x` is not `out_features`.
    fn matvec_transpose<T: Scalar>(&self, x: &ArrayRef1<T>) -> Result<Array1<T>> {
        vector(self, Op::Transpose, x)
    }

    /// `X Wᵀ`, allocating; `x` is `batch x in`, the result `batch x out`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` does not have `in_features` columns.
    fn matmul<T: Scalar>(&self, x: &ArrayRef2<T>) -> Result<Array2<T>> {
        let mut y = Array2::zeros((x.nrows(), self.shape().0));
        self.apply_into(x, &mut y, Update::Overwrite, &mut Exec::new())?;
        Ok(y)
    }

    /// `X W`, allocating; `x` is `batch x out`, the result `batch x in`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` does not have `out_features` columns.
    fn matmul_transpose<T: Scalar>(&self, x: &ArrayRef2<T>) -> Result<Array2<T>> {
        let mut y = Array2::zeros((x.nrows(), self.shape().1));
        self.apply_transpose_into(x, &mut y, Update::Overwrite, &mut Exec::new())?;
        Ok(y)
    }

    /// The gradients of a scalar `L` of `Y = X Wᵀ`, from `dY = dL/dY`: of the input and of every number of every factor, in the order of
    /// [`factor_numbers`](Self::factor_numbers). `x` is `batch x in`, `dy` is `batch x out`, of any strides.
    ///
    /// Gradients are with respect to the decoded numbers. For a coarse storage that is the straight-through gradient: of the numbers that
    /// are rounded, as if rounding changed nothing. Costs about two products beside the transposed one, and allocates.
    ///
    /// ```
    /// use structmat::prelude::*;
    /// use structmat::ndarray::Array2;
    /// # fn main() -> structmat::Result<()> {
    /// let target = Array2::from_shape_fn((6, 4), |(i, j)| (1 + i) as f64 / (2 + j) as f64);     // rank 1
    /// let x = Array2::from_shape_fn((8, 4), |(b, j)| ((3 * b + 5 * j) % 7) as f64 / 7.0 - 0.4);
    /// let spec = LowRankSpec { rank: 1, ..Default::default() };
    /// let mut w = LowRank::random((6, 4), &spec, Storage::F64, 1)?.clone_box();
    /// let mut exec = Exec::new();
    /// let first = w.relative_error(&target)?;
    /// for _ in 0..200 {
    ///     let dy = w.matmul(&x)? - x.dot(&target.t());       // the gradient of half the squared error
    ///     let gradients = w.vjp(&x, &dy, &mut exec)?.factors;
    ///     let mut numbers = w.factor_numbers::<f64>();
    ///     for (numbers, gradient) in numbers.iter_mut().zip(&gradients) {
    ///         numbers.scaled_add(-0.05, gradient);
    ///     }
    ///     w = w.with_numbers(&numbers, Storage::F64)?;
    /// }
    /// assert!(w.relative_error(&target)? < 0.1 * first);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not fit.
    fn vjp<T: Scalar>(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, exec: &mut Exec<T>) -> Result<Vjp<T>> {
        let factors = self.factor_gradients(x, dy, exec)?;
        let mut input = Array2::zeros(x.dim());
        apply(self, Op::Transpose, dy, &mut input, Update::Overwrite, exec)?;
        Ok(Vjp { input, factors })
    }

    /// The factors' half of [`vjp`](Self::vjp).
    ///
    /// # Errors
    /// As [`vjp`](Self::vjp).
    fn factor_gradients<T: Scalar>(
        &self,
        x: &ArrayRef2<T>,
        dy: &ArrayRef2<T>,
        exec: &mut Exec<T>,
    ) -> Result<Vec<Array3<T>>> {
        let ((m, n), batch) = (self.shape(), x.nrows());
        if x.ncols() != n {
            return Err(Error::shape("x", &[batch, n], x.shape()));
        }
        if dy.dim() != (batch, m) {
            return Err(Error::shape("dy", &[batch, m], dy.shape()));
        }
        Ok(factor_gradients(self, x, dy, Threads(exec.policy().parallelism.tasks())))
    }

    /// The numbers of all factors, decoded (`blocks x rows x cols` each): a structure's own as its parts name them, then those of its
    /// sub-matrices.
    fn factor_numbers<T: Scalar>(&self) -> Vec<Array3<T>> {
        self.parts().all_factors().iter().map(|factor| factor.numbers()).collect()
    }

    /// The same matrix with other [`factor_numbers`](Self::factor_numbers), rounded to `storage`.
    ///
    /// # Errors
    /// Those of [`Parts::with_numbers`] and [`registry::load`](crate::registry::load).
    fn with_numbers<T: Scalar>(
        &self,
        numbers: &[Array3<T>],
        storage: Storage,
    ) -> Result<Box<dyn StructuredMatrix>> {
        crate::registry::load(self.parts().with_numbers(numbers, storage)?)
    }

    /// `W` as a dense array.
    fn to_dense<T: Scalar>(&self) -> Array2<T> {
        self.to_dense_f64().mapv(T::narrow)
    }

    /// `‖W - Ŵ‖_F / ‖W‖_F` of this matrix `Ŵ` against a dense `W`, accumulated in `f64`. 0 when both are zero,
    /// infinite when only `W` is.
    ///
    /// # Errors
    /// [`Error::Shape`] when `w` has another shape.
    fn relative_error<T: Scalar>(&self, w: &ArrayRef2<T>) -> Result<f64> {
        let (m, n) = self.shape();
        if w.dim() != (m, n) {
            return Err(Error::shape("w", &[m, n], w.shape()));
        }
        let mut difference = self.to_dense_f64();
        difference.zip_mut_with(w, |a, b| *a -= b.widen());
        let square = |sum: f64, v: f64| sum + v * v;
        let (error, norm) =
            (difference.iter().copied().fold(0.0, square), w.iter().map(|v| v.widen()).fold(0.0, square));
        Ok(crate::projection::ratio(error.sqrt(), norm.sqrt()))
    }

    /// `|⟨W x, y⟩ - ⟨x, Wᵀ y⟩|` relative to `‖W x‖ ‖y‖` for random `x`, `y`: near the rounding error of `T` when
    /// the two products belong to the same matrix. For authors of structures.
    fn dot_test<T: Scalar>(&self, seed: u64) -> Result<f64> {
        let (m, n) = self.shape();
        let mut rng = crate::random::Gaussian::new(seed);
        let x = Array1::from_shape_simple_fn(n, || T::narrow(rng.sample()));
        let y = Array1::from_shape_simple_fn(m, || T::narrow(rng.sample()));
        let (wx, wty) = (self.matvec(&x)?, self.matvec_transpose(&y)?);
        let dot =
            |a: &Array1<T>, b: &Array1<T>| a.iter().zip(b).map(|(a, b)| a.widen() * b.widen()).sum::<f64>();
        let scale = (dot(&wx, &wx) * dot(&y, &y)).sqrt().max((dot(&wty, &wty) * dot(&x, &x)).sqrt());
        Ok(crate::projection::ratio((dot(&wx, &y) - dot(&x, &wty)).abs(), scale))
    }
}

impl<M: StructuredMatrix + ?Sized> Apply for M {}

fn vector<T: Scalar, M: StructuredMatrix + ?Sized>(w: &M, op: Op, x: &ArrayRef1<T>) -> Result<Array1<T>> {
    let (out, inp) = op.order(w.shape().0, w.shape().1);
    if x.len() != inp {
        return Err(Error::shape("x", &[inp], &[x.len()]));
    }
    let mut y = Array2::zeros((1, out));
    apply(w, op, &x.view().insert_axis(ndarray::Axis(0)), &mut y, Update::Overwrite, &mut Exec::new())?;
    Ok(y.remove_axis(ndarray::Axis(0)))
}

/// Checks shapes and multiplies.
pub(crate) fn apply<T: Scalar, M: StructuredMatrix + ?Sized>(
    w: &M,
    op: Op,
    x: &ArrayRef2<T>,
    y: &mut ArrayRef2<T>,
    update: Update,
    exec: &mut Exec<T>,
) -> Result<()> {
    let scratch_len = w.scratch_len(x.nrows());
    with_operands(w.shape(), op, x, y, update, (exec, scratch_len), |operands| T::multiply(w, operands))
}

/// Checks arrays against a matrix of `shape`, lays strided ones out contiguously in scratch, beside `scratch_len` entries that the product needs
/// itself, and calls it.
pub(crate) fn with_operands<T: Scalar>(
    shape: (usize, usize),
    op: Op,
    x: &ArrayRef2<T>,
    y: &mut ArrayRef2<T>,
    update: Update,
    (exec, scratch_len): (&mut Exec<T>, usize),
    multiply: impl FnOnce(Operands<'_, T>),
) -> Result<()> {
    let (out, inp) = op.order(shape.0, shape.1);
    let batch = x.nrows();
    if x.ncols() != inp {
        return Err(Error::shape("x", &[batch, inp], x.shape()));
    }
    if y.dim() != (batch, out) {
        return Err(Error::shape("y", &[batch, out], y.shape()));
    }
    if batch == 0 || out == 0 {
        return Ok(());
    }
    let copy_len = |dense: bool, cols| if dense { 0 } else { Workspace::<T>::matrix_len(batch, cols) };
    let (x_dense, y_dense) = (Rows::from_ndarray(x).is_some(), RowsMut::from_ndarray(y).is_some());
    let len = scratch_len + copy_len(x_dense, inp) + copy_len(y_dense, out);
    let mut work = exec.workspace(len);
    let x = match Rows::from_ndarray(x) {
        Some(rows) => rows,
        None => {
            let (mut copy, rest) = work.matrix(batch, inp);
            work = rest;
            for (i, row) in x.outer_iter().enumerate() {
                copy.row(i).iter_mut().zip(row).for_each(|(to, from)| *to = *from);
            }
            copy.into_rows()
        }
    };
    if let Some(y) = RowsMut::from_ndarray(y) {
        multiply(Operands { op, x, y, update, work });
        return Ok(());
    }
    let (mut result, work) = work.matrix(batch, out);
    multiply(Operands { op, x, y: result.reborrow(), update: Update::Overwrite, work });
    for (i, mut row) in y.outer_iter_mut().enumerate() {
        for (to, from) in row.iter_mut().zip(result.row(i)) {
            *to = if update == Update::Accumulate { *to + *from } else { *from };
        }
    }
    Ok(())
}
