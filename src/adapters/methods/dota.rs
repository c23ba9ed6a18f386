use crate::adapters::Additive;
use crate::error::Result;
use crate::linalg::check_finite;
use crate::matrix::{Apply, StructuredMatrix};
use crate::projection::{Family, Objective, Options, Run, Stop, descend, ratio};
use crate::storage::{Factor, Storage};
use crate::structures::{Dense, TensorTrain, TensorTrainSpec};
use ndarray::{Array2, Array3, ArrayRef2};

/// DoTA: a weight as a frozen residual and a tensor train (matrix product operator) whose cores are trained, $W_0 = W_{res} + \mathrm{TT}$, so
/// that training starts at the weight itself, with cores that mean something.
///
/// The adapter's base is the residual. Cost of a product beside the residual's: that of [`TensorTrain`].
///
/// Source: X. Hu et al., "DoTA: Weight-Decomposed Tensor Adaptation for Large Language Models", 2024. The train is that of this crate, TT-SVD and
/// alternating least squares; the residual of QDoTA is here in [`Storage::Int4`], and its rounding is compensated by alternation, which the
/// published method does not do.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::Dota};
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((8, 8), |(i, j)| ((3 * i + 5 * j) % 7) as f64);
/// let spec = TensorTrain::spec((8, 8), &Request::new().with("rank", 2))?;
/// let dota = Dota::split(&w, &spec, Storage::F32, 0, &Options::default())?;
/// let merged = dota.adapter().merge(&dota.residual, Storage::F32)?;
/// assert!((merged.weight.to_dense_f64() - w).iter().all(|e| e.abs() < 1e-5));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Dota {
    /// `W_res`, which stays.
    pub residual: Dense,
    /// The train whose cores are trained.
    pub train: TensorTrain,
    /// `‖W_0 - W_res - TT‖_F / ‖W_0‖_F` after the split and after each round that lowered it.
    pub history: Vec<f64>,
}

impl Dota {
    /// Splits `w` (`out x in`): a train of this size in the storage of `options`, and the rest in `residual`.
    ///
    /// Where the residual is rounded coarsely, `rounds` of alternation follow: the train nearest to what the residual misses, and the residual of
    /// that train; a round that does not lower the error is undone, and is the last.
    ///
    /// # Errors
    /// Those of [`Family::project`].
    pub fn split(
        w: &ArrayRef2<f64>,
        spec: &TensorTrainSpec,
        residual: Storage,
        rounds: usize,
        options: &Options<'_>,
    ) -> Result<Self> {
        check_finite("weight", w)?;
        let project = |target: &Array2<f64>| -> Result<TensorTrain> {
            Ok(TensorTrain::project(target, spec, &Objective::Frobenius, options)?.matrix)
        };
        let rest = |train: &TensorTrain| -> Result<Dense> {
            Dense::from_factor(Factor::from_matrix(residual, &(&w.view() - &train.to_dense_f64())))
        };
        let energy = |(residual, train): &(Dense, TensorTrain)| -> f64 {
            Objective::Frobenius.energy(&(&w.view() - &residual.to_dense_f64() - train.to_dense_f64()))
        };
        let train = project(&w.to_owned())?;
        let start = (rest(&train)?, train);
        let (first, scale) = (energy(&start), Objective::Frobenius.energy(w));
        let options = Options { max_iterations: Some(rounds), ..*options };
        let stop = Stop { sweeps: rounds, tolerance: 0.0 };
        let found = descend(&Run::new(&options), stop, scale, start, first, |state, _, _| {
            let train = project(&(&w.view() - &state.0.to_dense_f64()))?;
            *state = (rest(&train)?, train);
            Ok(energy(state))
        })?;
        let mut history = vec![ratio(first.sqrt(), scale.sqrt())];
        history.extend(found.history);
        let (residual, train) = found.state;
        Ok(Self { residual, train, history })
    }

    /// The adapter of the residual with the cores as they are.
    pub fn adapter(&self) -> Additive {
        Additive::new("dota", self.train.clone_box())
    }

    /// The same with trained cores, in the order of [`Apply::factor_numbers`] of the train.
    ///
    /// # Errors
    /// [`Error::Record`](crate::Error::Record) when they do not fit.
    pub fn with_cores(&self, cores: &[Array3<f64>]) -> Result<Additive> {
        let storage = self.train.parts().factors().next().map_or(Storage::F32, |(_, core)| core.storage());
        Ok(Additive::new("dota", self.train.with_numbers(cores, storage)?))
    }
}
