use crate::activation::Activation;
use crate::compose::gather;
use crate::error::{Error, Result};
use crate::exec::{Exec, Workspace};
use crate::gradient::Vjp;
use crate::io::{Source, Writer};
use crate::linalg::{Threads, check_finite, matmul, matmul_nt, matmul_tn};
use crate::matrix::{Op, Operands, StructuredMatrix, Update, with_operands};
use crate::parts::Parts;
use crate::projection::{Family, Options, Run};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use crate::structures::{ColumnSparse, LostComponents, LowRank, LowRankColumns, lost_start};
use ndarray::{Array2, Array3, ArrayRef2, Axis};
use serde::{Deserialize, Serialize};

/// The name of a record in files.
const NAME: &str = "lost";

/// Where the factors of a [`LostLayer`] start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LostFactors {
    /// $B = P_r \Sigma_r^{1/2}$, $A = \Sigma_r^{1/2} Q_r^T$ of the weight's singular value decomposition.
    #[default]
    Svd,
    /// Independent normals of standard deviation $r^{-1/4} (m + n)^{-1/4}$, so that entries of $B A$ have the variance $1 / (m + n)$.
    Random,
}

/// Parameters of [`LostLayer::init`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LostSpec {
    /// Rank, at most `min(out, in)`.
    pub rank: usize,
    /// Whole input channels, at most `in`; the source takes 5 % of them.
    pub kept: usize,
    /// The share of the low-rank part, 0 to 1; 0.5 in the published code.
    pub gamma: f64,
    /// What stands between the factors.
    pub activation: Activation,
    /// Which singular components choose the channels.
    pub components: LostComponents,
    /// Where the factors start.
    pub factors: LostFactors,
}

impl Default for LostSpec {
    fn default() -> Self {
        Self {
            rank: 1,
            kept: 1,
            gamma: 0.5,
            activation: Activation::Silu,
            components: LostComponents::default(),
            factors: LostFactors::default(),
        }
    }
}

/// LOST: $y = \gamma B\, \varphi(A x) + (1 - \gamma) W_s x_J$, low rank with an activation between the factors, and whole columns for the
/// inputs $J$; a layer to train from the start.
///
/// `A` is `rank x in`, `B` `out x rank`, `W_s` `out x kept`. Parameters and multiply-adds: `rank (out + in) + out * kept`, and an index
/// of 4 bytes per channel. With $\varphi = \mathrm{SiLU}$ the map is not linear, so no weight stands for it; without,
/// [`to_matrix`](Self::to_matrix) is that weight, and [`LowRankColumns`] its family. There is no bias.
///
/// Source: J. Li et al., "LOST: low-rank and sparse pre-training for large language models", 2025.
///
/// ```
/// use structmat::layers::{Activation, LostLayer};
/// use structmat::prelude::*;
/// use structmat::ndarray::{array, Array2};
/// # fn main() -> structmat::Result<()> {
/// let factor = |a: Array2<f64>| Factor::from_matrix(Storage::F64, &a);
/// let low_rank = LowRank::new(factor(array![[2.0], [0.0]]), factor(array![[1.0, 1.0, 0.0]]))?;
/// let columns = ColumnSparse::new(3, factor(array![[0.0], [4.0]]), vec![2])?;
/// let layer = LostLayer::new(low_rank, columns, 0.25, Activation::Identity)?;
/// assert_eq!(layer.forward(&array![[1.0, 2.0, 5.0]])?, array![[1.5, 15.0]]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LostLayer {
    low_rank: LowRank,
    columns: ColumnSparse,
    gamma: f64,
    activation: Activation,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    gamma: f64,
    activation: Activation,
}

impl LostLayer {
    /// From `B A` of two factors and the columns `W_s`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes differ, [`Error::Unsupported`] for a low-rank matrix of three factors, [`Error::Parameter`] for a
    /// `gamma` outside of 0 to 1.
    pub fn new(low_rank: LowRank, columns: ColumnSparse, gamma: f64, activation: Activation) -> Result<Self> {
        let ((m, n), (rows, cols)) = (low_rank.shape(), columns.shape());
        if (m, n) != (rows, cols) {
            return Err(Error::shape("columns", &[m, n], &[rows, cols]));
        }
        if low_rank.parts().factors().count() != 2 {
            let what = "a layer of this kind has two factors; use the form `uv`".to_owned();
            return Err(Error::Unsupported { structure: LowRank::NAME.to_owned(), what });
        }
        if !(0.0..=1.0).contains(&gamma) {
            return Err(Error::parameter("gamma", gamma, "0 to 1"));
        }
        Ok(Self { low_rank, columns, gamma, activation })
    }

    /// The published initialization, from a dense weight (out x in), which is itself drawn at random where training starts from nothing:
    /// $J$ are the largest columns of the singular components after the first `rank` of them (or of the last), and $W_s = W_{:,J}$. A
    /// start for training, not an approximation of the weight: for that, see [`LowRankColumns`]. One full singular value decomposition.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rank, a number of channels or a `gamma` out of range, [`Error::Shape`] for an empty weight,
    /// [`Error::NonFinite`].
    pub fn init<T: Scalar>(w: &ArrayRef2<T>, spec: &LostSpec, options: &Options<'_>) -> Result<Self> {
        let (m, n) = w.dim();
        if w.is_empty() {
            return Err(Error::shape("w", &[m.max(1), n.max(1)], w.shape()));
        }
        check_finite("w", w)?;
        let &LostSpec { rank, kept, gamma, activation, components, factors } = spec;
        let (w, run) = (w.mapv(T::widen), Run::new(options));
        let mut start = lost_start(&w, rank, kept, components, run.threads())?;
        if factors == LostFactors::Random {
            let scale = (rank as f64 * (m + n) as f64).powf(-0.25);
            let mut gaussian = Gaussian::new(run.seed());
            start.v = gaussian.matrix(rank, n, scale);
            start.u = gaussian.matrix(m, rank, scale);
        }
        let low_rank = LowRank::from_arrays(run.storage(), &start.u, &start.v);
        let columns = ColumnSparse::from_columns(run.storage(), n, &start.columns, &start.kept);
        Self::new(low_rank, columns, gamma, activation)
    }

    /// `B A`, without `gamma`.
    pub fn low_rank(&self) -> &LowRank {
        &self.low_rank
    }

    /// `W_s` at the inputs `J`, without `1 - gamma`.
    pub fn columns(&self) -> &ColumnSparse {
        &self.columns
    }

    /// The share of the low-rank part.
    pub fn gamma(&self) -> f64 {
        self.gamma
    }

    /// What stands between the factors.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.low_rank.shape().1
    }

    /// Number of outputs.
    pub fn out_features(&self) -> usize {
        self.low_rank.shape().0
    }

    /// Stored numbers, indices not counted.
    pub fn n_params(&self) -> usize {
        self.parts().n_params()
    }

    /// The weight $\gamma B A + (1 - \gamma) W_s E_J^T$ of a linear layer, in `storage`; `None` with an activation.
    ///
    /// # Errors
    /// Those of [`Family::scale_outputs`].
    pub fn to_matrix(&self, storage: Storage) -> Result<Option<LowRankColumns>> {
        if self.activation != Activation::Identity {
            return Ok(None);
        }
        let all = |scale: f64| vec![scale; self.out_features()];
        let low_rank = self.low_rank.scale_outputs(&all(self.gamma), storage)?;
        let columns = self.columns.scale_outputs(&all(1.0 - self.gamma), storage)?;
        LowRankColumns::new(low_rank, columns).map(Some)
    }

    /// `X` (batch x in) to `Y` (batch x out), allocating.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` does not have `in_features` columns.
    pub fn forward<T: Scalar>(&self, x: &ArrayRef2<T>) -> Result<Array2<T>> {
        let mut y = Array2::zeros((x.nrows(), self.out_features()));
        self.forward_into(x, &mut y, &mut Exec::new())?;
        Ok(y)
    }

    /// The same into `y`; allocates nothing once `exec` has grown to this size.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not fit; `y` is then untouched.
    pub fn forward_into<T: Scalar>(
        &self,
        x: &ArrayRef2<T>,
        y: &mut ArrayRef2<T>,
        exec: &mut Exec<T>,
    ) -> Result<()> {
        let (batch, rank, kept) = (x.nrows(), self.low_rank.rank(), self.columns.kept());
        let scratch = Workspace::<T>::matrix_len(batch, rank)
            .saturating_add(Workspace::<T>::matrix_len(batch, kept.len()));
        let multiply = |Operands { op, x, mut y, update, work }: Operands<'_, T>| {
            let policy = work.policy;
            let (mut codes, rest) = work.matrix(batch, rank);
            let (mut picked, _) = rest.matrix(batch, kept.len());
            self.low_rank.right().multiply(op, x, codes.reborrow(), Update::Overwrite, policy);
            gather(kept, x, picked.reborrow(), Update::Overwrite);
            let (gamma, rest) = (T::narrow(self.gamma), T::narrow(1.0 - self.gamma));
            for b in 0..batch {
                self.activation.apply(codes.row(b), policy.level);
                codes.row(b).iter_mut().for_each(|t| *t *= gamma);
                picked.row(b).iter_mut().for_each(|x| *x *= rest);
            }
            self.low_rank.left().multiply(op, codes.as_rows(), y.reborrow(), update, policy);
            self.columns.columns().multiply(op, picked.as_rows(), y, Update::Accumulate, policy);
        };
        with_operands(self.low_rank.shape(), Op::Forward, x, y, Update::Overwrite, (exec, scratch), multiply)
    }

    /// The gradients of a loss, from those of the outputs, `dy` (batch x out), and the inputs `x` (batch x in): of the inputs, and of
    /// `B`, `A` and `W_s`, in the order of [`factor_numbers`](Self::factor_numbers). Costs about two forward passes, and allocates.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes do not fit.
    pub fn vjp<T: Scalar>(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, exec: &mut Exec<T>) -> Result<Vjp<T>> {
        let ((m, n), batch) = (self.low_rank.shape(), x.nrows());
        if x.ncols() != n {
            return Err(Error::shape("x", &[batch, n], x.shape()));
        }
        if dy.dim() != (batch, m) {
            return Err(Error::shape("dy", &[batch, m], dy.shape()));
        }
        let threads = Threads(exec.policy().parallelism.tasks());
        let numbers = |factor: &Factor| factor.numbers::<T>().index_axis_move(Axis(0), 0);
        let (b, a) = (numbers(self.low_rank.left()), numbers(self.low_rank.right()));
        let gamma = T::narrow(self.gamma);
        // What the activation makes of the codes, and its slope.
        let (mut h, mut slope) = (matmul_nt(x, &a, threads), Array2::zeros((batch, a.nrows())));
        for (t, slope) in h.iter_mut().zip(&mut slope) {
            let (f, at) = (self.activation, t.widen());
            (*t, *slope) = (gamma * T::narrow(f.at(at)), gamma * T::narrow(f.slope(at)));
        }
        let codes = matmul(dy, &b, threads) * slope;
        let mut input = matmul(&codes, &a, threads);
        // Through the columns.
        let rest = T::narrow(1.0 - self.gamma);
        let kept: Vec<usize> = self.columns.kept().iter().map(|&j| j as usize).collect();
        let through = matmul(dy, &numbers(self.columns.columns()), threads);
        for (&j, through) in kept.iter().zip(through.columns()) {
            input.column_mut(j).zip_mut_with(&through, |x, d| *x += rest * *d);
        }
        let columns = matmul_tn(dy, &x.select(Axis(1), &kept), threads).mapv(|d| rest * d);
        let factors = [matmul_tn(dy, &h, threads), matmul_tn(&codes, x, threads), columns];
        Ok(Vjp { input, factors: factors.map(|factor| factor.insert_axis(Axis(0))).into() })
    }

    /// The numbers of `B`, `A` and `W_s`, decoded (1 x rows x cols each).
    pub fn factor_numbers<T: Scalar>(&self) -> Vec<Array3<T>> {
        self.parts().all_factors().iter().map(|factor| factor.numbers()).collect()
    }

    /// The same layer with other [`factor_numbers`](Self::factor_numbers), rounded to `storage`.
    ///
    /// # Errors
    /// Those of [`Parts::with_numbers`].
    pub fn with_numbers<T: Scalar>(&self, numbers: &[Array3<T>], storage: Storage) -> Result<Self> {
        Self::from_parts(self.parts().with_numbers(numbers, storage)?)
    }

    /// Adds `NAME.weight` to a file: a record of its own kind, which no reader takes for a matrix.
    ///
    /// # Errors
    /// Those of [`Writer::parts`].
    pub fn save(&self, writer: &mut Writer<'_>, name: &str) -> Result<()> {
        writer.parts(&format!("{name}.weight"), &self.parts())
    }

    /// Reads what [`save`](Self::save) has written.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is no such record, [`Error::File`] for one of another kind or a malformed one.
    pub fn load(source: &dyn Source, name: &str) -> Result<Self> {
        let name = format!("{name}.weight");
        let file = source.need(&name)?;
        Self::from_parts(file.parts(&name)?)
            .map_err(|e| Error::File { path: file.path().to_owned(), reason: format!("`{name}`: {e}") })
    }

    fn parts(&self) -> Parts<'_> {
        let config = Config { gamma: self.gamma, activation: self.activation };
        let parts = Parts::new(NAME, self.low_rank.shape()).with_config(&config);
        parts.child(self.low_rank.parts()).child(self.columns.parts())
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        if parts.structure() != NAME {
            return Err(parts.error(format!("expected `{NAME}`")));
        }
        let Config { gamma, activation } = parts.config()?;
        Self::new(parts.take_child()?, parts.take_child()?, gamma, activation)
    }
}
