use super::start::Factors;
use super::{SharedBasisExperts, descent, linear};
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::projection::{Guarantee, Objective, Options, Run};
use crate::scalar::Scalar;
use crate::sharing::atoms::dense;
use crate::sharing::{SharedAtoms, SharedObjective, SharingReport, check_members};
use ndarray::{Array2, ArrayRef2};
use std::ops::Deref;

/// How basis matrices are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mixing {
    /// Any coefficients.
    #[default]
    Free,
    /// Positive ones that add up to 1, by a softmax.
    Softmax,
}

/// Where the fit of [`SharedBasisExperts`] with an activation starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpertStart {
    /// The singular value decompositions of groups, with the activation and the softmax inverted: the start has exactly their error. Left
    /// factors are solved by least squares once more at the end.
    #[default]
    Exact,
    /// As the authors' code: the decompositions with neither inverted, one-hot logits 1 and 0, of targets divided by their standard
    /// deviation after the decomposition.
    Published,
}

/// Parameters of [`SharedBasisExperts::fit`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsSpec {
    /// Columns of the left factors, at most `in`; the published settings take `out`.
    pub rank: usize,
    /// Basis matrices, at most as many as experts.
    pub atoms: usize,
    /// Identity, SiLU or tanh.
    pub activation: Activation,
    /// How they are mixed.
    pub mixing: Mixing,
    /// Where a fit by gradients starts.
    pub start: ExpertStart,
    /// The rate of Adam in a fit by gradients; 0.07 is published.
    pub rate: f64,
}

impl Default for ExpertsSpec {
    fn default() -> Self {
        let (activation, mixing, start) = (Activation::Silu, Mixing::default(), ExpertStart::default());
        Self { rank: 1, atoms: 1, activation, mixing, start, rate: 0.07 }
    }
}

impl SharedBasisExperts {
    /// Fits experts (`out x in`, all of one shape) by a shared basis.
    ///
    /// Without an activation and with free mixing: exact alternating least squares over left factors, mixing weights and all basis matrices
    /// jointly (a system of `atoms * rank` numbers up to 2048, else one matrix after the other), from truncated decompositions of groups of
    /// consecutive experts. Every sweep lowers the error; a local optimum. The second moment enters without an inverse.
    ///
    /// Otherwise Adam over all numbers at once, with the rate of the authors' code, for `max_iterations` steps (10000 by default) of
    /// which the last half slow down to rest; the best state of every 200 is kept, and the start is one of them.
    ///
    /// Cost per sweep or step: `experts * out * in * rank` multiply-adds a few times over.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NonFinite`], [`Error::Parameter`] for a rank, a number of atoms, a rate or an activation out of range,
    /// [`Error::Unsupported`] for second moments that differ.
    pub fn fit<T: Scalar, A: Deref<Target = ArrayRef2<T>>>(
        experts: &[A],
        spec: &ExpertsSpec,
        objective: &SharedObjective<'_>,
        options: &Options<'_>,
    ) -> Result<(Self, SharingReport)> {
        let weights = check_members(experts)?;
        let (count, (p, d)) = (weights.len(), weights[0].dim());
        objective.check(count, d)?;
        let ExpertsSpec { rank, atoms, activation, mixing, rate, .. } = *spec;
        if atoms == 0 || atoms > count {
            return Err(Error::parameter("atoms", atoms, format!("1 to {count}")));
        }
        // The smallest group decides.
        let most = d.min((count / atoms).saturating_mul(p));
        if rank == 0 || rank > most {
            return Err(Error::parameter("rank", rank, format!("1 to {most}")));
        }
        if !matches!(activation, Activation::Identity | Activation::Silu | Activation::Tanh) {
            return Err(Error::parameter("activation", format!("{activation:?}"), "identity, SiLU or tanh"));
        }
        if !(rate.is_finite() && rate > 0.0) {
            return Err(Error::parameter("rate", rate, "a positive number"));
        }
        if matches!(objective, SharedObjective::Each(_)) {
            let what = "a second moment for each expert: give the common one of their inputs".to_owned();
            return Err(Error::Unsupported { structure: "shared basis experts".to_owned(), what });
        }
        let run = Run::new(options);
        run.check()?;
        let objective_of_all = objective.of(0);
        let (found, history) = match (activation, mixing) {
            (Activation::Identity, Mixing::Free) => linear::fit(&weights, spec, &objective_of_all, &run)?,
            _ => descent::fit(&weights, spec, &objective_of_all, &run)?,
        };
        let Factors { left, basis, mix } = found;
        let left = left.iter().map(|a| dense(options.storage, a)).collect::<Result<_>>()?;
        let fitted = Self::new(left, SharedAtoms::from_arrays(options.storage, &basis, mix)?, activation)?;
        let (params, known) = (fitted.n_params(), (Guarantee::LocalOptimum, history));
        let report = SharingReport::measure(&weights, |e| fitted.array(e), objective, params, known)?;
        Ok((fitted, report))
    }
}

/// The energy of all errors.
pub(super) fn energy(
    weights: &[Array2<f64>],
    factors: &Factors,
    activation: Activation,
    objective: &Objective<'_>,
) -> f64 {
    let error = |(e, w): (usize, &Array2<f64>)| {
        let right = factors.mixed(e).mapv_into(|v| activation.at(v));
        objective.energy(&(w - &factors.left[e].dot(&right)))
    };
    weights.iter().enumerate().map(error).sum()
}
