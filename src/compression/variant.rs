use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use crate::projection::{Budget, Gram, Objective, Options, Projected, Request, ratio};
use crate::registry;
use crate::storage::Storage;
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// One way to hold a matrix: a family, its parameters, a storage, and how many of the dense matrix's parameters it may have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Name of the family.
    pub structure: String,
    /// Storage of the factors.
    pub storage: Storage,
    /// Parameters, as a fraction of the dense matrix's.
    pub ratio: f64,
    /// The family's own parameters, such as `blocks`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

impl Variant {
    /// A family with its default parameters.
    pub fn new(structure: impl Into<String>, storage: Storage, ratio: f64) -> Self {
        Self { structure: structure.into(), storage, ratio, parameters: BTreeMap::new() }
    }

    fn request(&self) -> Request {
        let request = Request::new().budget(Budget::Ratio(self.ratio)).storage(self.storage);
        self.parameters.iter().fold(request, |request, (name, value)| request.with(name, value))
    }

    /// Stored numbers of the largest `out x in` member within the ratio, and their bytes.
    pub(super) fn size(&self, shape: (usize, usize)) -> Result<(usize, usize)> {
        let family = registry::family(&self.structure)?;
        let member = family.random(shape, &self.request(), self.storage, 0)?;
        Ok((member.n_params(), member.storage_bytes()))
    }

    /// Projects `w` onto the largest member within the ratio.
    ///
    /// # Errors
    /// Those of [`Entry::project`](registry::Entry::project), and [`Error::Unknown`](crate::Error::Unknown) for an unknown family.
    pub fn project(
        &self,
        w: &Array2<f64>,
        objective: &Objective<'_>,
        options: &Options<'_>,
    ) -> Result<Projected<Box<dyn StructuredMatrix>>> {
        let options = Options { storage: self.storage, ..*options };
        registry::family(&self.structure)?.project(w, &self.request(), objective, &options)
    }

    /// Projects `w` for the inputs of `gram` and outputs that count as `weights` say, where given, and returns the relative error of that
    /// kind. Families that cannot be fitted to weights of outputs are fitted without, and judged with them.
    pub(super) fn fit(
        &self,
        w: &Array2<f64>,
        gram: &Gram,
        weights: Option<&[f64]>,
        options: &Options<'_>,
    ) -> Result<(Projected<Box<dyn StructuredMatrix>>, f64)> {
        let plain = Objective::Activations(gram);
        let seen = |found: &Projected<_>| {
            found.report.weighted_relative_error.unwrap_or(found.report.relative_error)
        };
        let Some(weights) = weights else {
            let found = self.project(w, &plain, options)?;
            let error = seen(&found);
            return Ok((found, error));
        };
        let objective = Objective::Outputs { gram: Some(gram), weights };
        match self.project(w, &objective, options) {
            Err(Error::Unsupported { .. }) => {
                let found = self.project(w, &plain, options)?;
                let error = objective.energy(&(w - &found.matrix.to_dense_f64()));
                Ok((found, ratio(error.sqrt(), objective.energy(w).sqrt())))
            }
            found => found.map(|found| {
                let error = seen(&found);
                (found, error)
            }),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.structure, self.storage, (1e4 * self.ratio).round() / 1e4)
    }
}
