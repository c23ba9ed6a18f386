use super::{Boxed, check_base};
use crate::error::{Error, Result};
use crate::exec::{Exec, Workspace};
use crate::matrix::{Apply, Op, Operands, StructuredMatrix, Update, with_operands};
use crate::scalar::Scalar;
use ndarray::{Array1, Array2, ArrayRef1, ArrayRef2};

/// What an adapter does to one base: $W' = L W R + D$ and $b' = M b + c$; whatever is absent changes nothing.
///
/// Cost of a product: the base's, and those of the structured matrices that are there. No dense change is made.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::Edit;
/// use structmat::compose::Identity;
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?;
/// let double = Identity::diagonal(Factor::from_matrix(Storage::F32, &array![[2.0f32, 1.0]]))?;
/// let edit = Edit::of((2, 2)).with_left(Box::new(double))?;
/// assert_eq!(edit.delta(&base)?, array![[1.0, 2.0], [0.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Edit {
    shape: (usize, usize),
    left: Option<Boxed>,
    right: Option<Boxed>,
    delta: Option<Boxed>,
    bias: BiasEdit,
}

/// What an adapter does to a bias: `b' = M b + c`.
#[derive(Debug, Clone, Default)]
pub struct BiasEdit {
    /// `M`, `out x out`; absent for the identity.
    pub map: Option<Boxed>,
    /// `c`; absent for zero.
    pub add: Option<Array1<f64>>,
}

impl BiasEdit {
    /// The bias of the adapted layer, from that of the base; `None` where neither has one.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ.
    pub fn apply(&self, bias: Option<&ArrayRef1<f64>>) -> Result<Option<Array1<f64>>> {
        let mapped = match (bias, &self.map) {
            (Some(bias), Some(map)) => Some(map.matvec(bias)?),
            (bias, _) => bias.map(|bias| bias.to_owned()),
        };
        match (mapped, &self.add) {
            (Some(bias), Some(add)) if bias.len() != add.len() => {
                Err(Error::shape("bias", &[add.len()], &[bias.len()]))
            }
            (Some(bias), Some(add)) => Ok(Some(bias + add)),
            (bias, add) => Ok(bias.or_else(|| add.clone())),
        }
    }
}

impl Edit {
    /// The edit of `out x in` weights that changes nothing.
    pub fn of(shape: (usize, usize)) -> Self {
        Self { shape, left: None, right: None, delta: None, bias: BiasEdit::default() }
    }

    /// With `L` (`out x out`).
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn with_left(mut self, left: Boxed) -> Result<Self> {
        check_part("left factor of an edit", left.as_ref(), (self.shape.0, self.shape.0))?;
        self.left = Some(left);
        Ok(self)
    }

    /// With `R` (`in x in`).
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn with_right(mut self, right: Boxed) -> Result<Self> {
        check_part("right factor of an edit", right.as_ref(), (self.shape.1, self.shape.1))?;
        self.right = Some(right);
        Ok(self)
    }

    /// With `D` (`out x in`).
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn with_delta(mut self, delta: Boxed) -> Result<Self> {
        check_part("additive part of an edit", delta.as_ref(), self.shape)?;
        self.delta = Some(delta);
        Ok(self)
    }

    /// With a change of the bias.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is for another number of outputs.
    pub fn with_bias(mut self, bias: BiasEdit) -> Result<Self> {
        let m = self.shape.0;
        if let Some(map) = &bias.map {
            check_part("bias factor of an edit", map.as_ref(), (m, m))?;
        }
        if let Some(add) = &bias.add
            && add.len() != m
        {
            return Err(Error::shape("bias of an edit", &[m], &[add.len()]));
        }
        self.bias = bias;
        Ok(self)
    }

    /// `(out_features, in_features)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// `L`, where there is one.
    pub fn left(&self) -> Option<&dyn StructuredMatrix> {
        self.left.as_deref()
    }

    /// `R`, where there is one.
    pub fn right(&self) -> Option<&dyn StructuredMatrix> {
        self.right.as_deref()
    }

    /// `D`, where there is one: the whole change of an additive adapter.
    pub fn additive(&self) -> Option<&dyn StructuredMatrix> {
        self.delta.as_deref()
    }

    /// What happens to the bias.
    pub fn bias(&self) -> &BiasEdit {
        &self.bias
    }

    /// Whether the change does not multiply the base: `W' = W + D`.
    pub fn is_additive(&self) -> bool {
        self.left.is_none() && self.right.is_none()
    }

    /// Multiply-adds x 2 of one product with `batch` rows, beside those of the base.
    pub fn flops(&self, batch: usize) -> u64 {
        self.matrices().map(|matrix| matrix.flops(batch)).sum()
    }

    /// Bytes of the structured matrices.
    pub fn storage_bytes(&self) -> usize {
        self.matrices().map(|matrix| matrix.storage_bytes()).sum()
    }

    fn matrices(&self) -> impl Iterator<Item = &Boxed> {
        [&self.left, &self.right, &self.delta].into_iter().flatten()
    }

    /// `Y = X W'ᵀ` or `Y += X W'ᵀ` from the base and the edit; allocates nothing once `exec` has grown to this size.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not fit; `y` is then untouched.
    pub fn apply_into<T: Scalar>(
        &self,
        base: &dyn StructuredMatrix,
        x: &ArrayRef2<T>,
        y: &mut ArrayRef2<T>,
        update: Update,
        exec: &mut Exec<T>,
    ) -> Result<()> {
        self.run(base, Op::Forward, x, y, update, exec)
    }

    /// `Y = X W'` or `Y += X W'`.
    ///
    /// # Errors
    /// As [`apply_into`](Self::apply_into).
    pub fn apply_transpose_into<T: Scalar>(
        &self,
        base: &dyn StructuredMatrix,
        x: &ArrayRef2<T>,
        y: &mut ArrayRef2<T>,
        update: Update,
        exec: &mut Exec<T>,
    ) -> Result<()> {
        self.run(base, Op::Transpose, x, y, update, exec)
    }

    /// `Y += X Dᵀ` alone, for callers that have `X Wᵀ` already.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the edit [is additive](Self::is_additive), [`Error::Shape`] when the shapes do not fit.
    pub fn add_into<T: Scalar>(
        &self,
        x: &ArrayRef2<T>,
        y: &mut ArrayRef2<T>,
        exec: &mut Exec<T>,
    ) -> Result<()> {
        if !self.is_additive() {
            return Err(Error::Unsupported {
                structure: "edit".to_owned(),
                what: "it multiplies the base: apply it together with the base product".to_owned(),
            });
        }
        let (m, n) = self.shape;
        match &self.delta {
            Some(delta) => delta.apply_into(x, y, Update::Accumulate, exec),
            None if x.ncols() != n => Err(Error::shape("x", &[x.nrows(), n], x.shape())),
            None if y.dim() != (x.nrows(), m) => Err(Error::shape("y", &[x.nrows(), m], y.shape())),
            None => Ok(()),
        }
    }

    /// `X W'ᵀ`, allocating.
    ///
    /// # Errors
    /// As [`apply_into`](Self::apply_into).
    pub fn matmul<T: Scalar>(&self, base: &dyn StructuredMatrix, x: &ArrayRef2<T>) -> Result<Array2<T>> {
        let mut y = Array2::zeros((x.nrows(), self.shape.0));
        self.apply_into(base, x, &mut y, Update::Overwrite, &mut Exec::new())?;
        Ok(y)
    }

    /// `X W'ᵀ + b'`, allocating: the adapted layer, from the base's weight and bias.
    ///
    /// # Errors
    /// As [`apply_into`](Self::apply_into).
    pub fn forward<T: Scalar>(
        &self,
        base: &dyn StructuredMatrix,
        bias: Option<&ArrayRef1<f64>>,
        x: &ArrayRef2<T>,
    ) -> Result<Array2<T>> {
        let mut y = self.matmul(base, x)?;
        if let Some(bias) = self.bias.apply(bias)? {
            let fits = bias.len() == y.ncols();
            if !fits {
                return Err(Error::shape("bias", &[y.ncols()], &[bias.len()]));
            }
            y += &bias.mapv(T::narrow);
        }
        Ok(y)
    }

    fn run<T: Scalar>(
        &self,
        base: &dyn StructuredMatrix,
        op: Op,
        x: &ArrayRef2<T>,
        y: &mut ArrayRef2<T>,
        update: Update,
        exec: &mut Exec<T>,
    ) -> Result<()> {
        check_base(base, self.shape)?;
        let work = (exec, self.scratch_len(base, x.nrows()));
        with_operands(self.shape, op, x, y, update, work, |operands| self.multiply(base, operands))
    }

    fn scratch_len(&self, base: &dyn StructuredMatrix, batch: usize) -> usize {
        let side = |matrix: &Option<Boxed>, features| match matrix {
            Some(_) => Workspace::<f32>::matrix_len(batch, features),
            None => 0,
        };
        let deepest = self.matrices().map(|matrix| matrix.scratch_len(batch));
        let deepest = deepest.fold(base.scratch_len(batch), usize::max);
        side(&self.left, self.shape.0) + side(&self.right, self.shape.1) + deepest
    }

    fn multiply<T: Scalar>(&self, base: &dyn StructuredMatrix, operands: Operands<'_, T>) {
        let Operands { op, x, mut y, update, mut work } = operands;
        let (after, before) = op.order(&self.left, &self.right);
        let mut inner = work.reborrow();
        let mut input = x;
        if let Some(before) = before {
            let (mut panel, mut rest) = inner.matrix(x.rows(), x.cols());
            let (y, update) = (panel.reborrow(), Update::Overwrite);
            T::multiply(before.as_ref(), Operands { op, x, y, update, work: rest.reborrow() });
            (input, inner) = (panel.into_rows(), rest);
        }
        match after {
            None => T::multiply(base, Operands { op, x: input, y: y.reborrow(), update, work: inner }),
            Some(after) => {
                let (mut panel, mut rest) = inner.matrix(x.rows(), y.cols());
                let (middle, overwrite) = (panel.reborrow(), Update::Overwrite);
                T::multiply(
                    base,
                    Operands { op, x: input, y: middle, update: overwrite, work: rest.reborrow() },
                );
                let x = panel.into_rows();
                T::multiply(after.as_ref(), Operands { op, x, y: y.reborrow(), update, work: rest });
            }
        }
        if let Some(delta) = &self.delta {
            T::multiply(delta.as_ref(), Operands { op, x, y, update: Update::Accumulate, work });
        }
    }

    /// `W'`, densely, in double precision.
    ///
    /// # Errors
    /// [`Error::Shape`] for a base of another shape.
    pub fn merged(&self, base: &dyn StructuredMatrix) -> Result<Array2<f64>> {
        check_base(base, self.shape)?;
        let mut w = base.to_dense_f64();
        if let Some(right) = &self.right {
            w = right.matmul_transpose(&w)?;
        }
        if let Some(left) = &self.left {
            w = left.matmul(&w.t())?.reversed_axes();
        }
        Ok(match &self.delta {
            Some(delta) => w + delta.to_dense_f64(),
            None => w,
        })
    }

    /// `W' - W`, densely, in double precision; of an additive adapter `D`, whatever the base holds.
    ///
    /// # Errors
    /// [`Error::Shape`] for a base of another shape.
    pub fn delta(&self, base: &dyn StructuredMatrix) -> Result<Array2<f64>> {
        check_base(base, self.shape)?;
        if !self.is_additive() {
            return Ok(self.merged(base)? - base.to_dense_f64());
        }
        Ok(self.delta.as_ref().map_or_else(|| Array2::zeros(self.shape), |delta| delta.to_dense_f64()))
    }
}

fn check_part(what: &'static str, matrix: &dyn StructuredMatrix, (m, n): (usize, usize)) -> Result<()> {
    match matrix.shape() {
        shape if shape == (m, n) => Ok(()),
        (rows, cols) => Err(Error::shape(what, &[m, n], &[rows, cols])),
    }
}
