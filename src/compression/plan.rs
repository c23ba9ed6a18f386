use super::settings::{Method, Settings};
use super::survey::{Measured, SiteSurvey};
use super::variant::Variant;
use crate::allocation::{Candidate, allocate, uniform};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What one matrix becomes, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Name of the weight.
    pub name: String,
    /// out x in.
    pub shape: (usize, usize),
    /// Its variant.
    pub variant: Variant,
    /// Stored numbers, at most; the same as in the fit where the survey measured this size.
    pub params: usize,
    /// Bytes, likewise.
    pub bytes: usize,
    /// Weighted relative error that the survey found or expects.
    pub error: f64,
    /// The best of the other families at this size, and its error.
    pub runner_up: Option<String>,
}

/// A variant for every matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// One for every matrix, in the order of execution.
    pub choices: Vec<Choice>,
    /// Sum of squared relative errors.
    pub cost: f64,
    /// No plan of these variants within the budget costs less; `None` for methods that do not know.
    pub bound: Option<f64>,
}

impl Plan {
    /// Spreads the budget.
    pub(super) fn make(surveys: &[SiteSurvey], settings: &Settings) -> Result<Self> {
        let budget = settings.budget;
        let variants: Vec<Vec<Measured>> = surveys.iter().map(SiteSurvey::variants).collect();
        let candidates: Vec<Vec<Candidate>> =
            variants.iter().map(|list| list.iter().map(|m| m.candidate(budget)).collect()).collect();
        let weights: Vec<u64> = surveys.iter().map(|s| s.dense_size(budget)).collect();
        let total: u64 = weights.iter().sum();
        let allowed = (budget.fraction() * total as f64 * (1.0 + 1e-12)).floor() as u64;
        let found = match settings.method {
            Method::Auto => allocate(&candidates, allowed)?,
            Method::Uniform => uniform(&candidates, &weights, allowed)?,
        };
        let choices = surveys.iter().zip(&found.chosen).enumerate().map(|(i, (survey, &k))| {
            let (chosen, list) = (&variants[i][k], &candidates[i]);
            // The best of the other families at this size.
            let others = variants[i].iter().zip(list).filter(|(m, c)| {
                m.variant.structure != chosen.variant.structure && c.size <= list[k].size.max(1)
            });
            let runner_up = others.min_by(|a, b| a.0.error.total_cmp(&b.0.error));
            Choice {
                name: survey.name.clone(),
                shape: survey.shape,
                variant: chosen.variant.clone(),
                params: chosen.params,
                bytes: chosen.bytes,
                error: chosen.error,
                runner_up: runner_up.map(|(m, _)| format!("{}: {:.4}", m.variant, m.error)),
            }
        });
        let bound = found.bound.is_finite().then_some(found.bound);
        Ok(Self { choices: choices.collect(), cost: found.cost, bound })
    }

    /// Parameters of all matrices.
    pub fn params(&self) -> usize {
        self.choices.iter().map(|choice| choice.params).sum()
    }

    /// Bytes of all matrices.
    pub fn bytes(&self) -> usize {
        self.choices.iter().map(|choice| choice.bytes).sum()
    }

    /// The choice for a weight.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is none.
    pub fn choice(&self, name: &str) -> Result<&Choice> {
        self.choices.iter().find(|choice| choice.name == name).ok_or_else(|| Error::Unknown {
            kind: "weight",
            name: name.to_owned(),
            expected: "one that the plan names".to_owned(),
        })
    }
}
