use crate::error::Result;
use crate::matrix::StructuredMatrix;
use crate::projection::{Budget, Objective, Options, Projected, Request};
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
        let request = Request::new().budget(Budget::Ratio(self.ratio)).storage(self.storage);
        let request =
            self.parameters.iter().fold(request, |request, (name, value)| request.with(name, value));
        let options = Options { storage: self.storage, ..*options };
        registry::family(&self.structure)?.project(w, &request, objective, &options)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.structure, self.storage, self.ratio)
    }
}
