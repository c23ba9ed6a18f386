use super::rules::Rules;
use super::settings::{Method, Settings};
use super::survey::{Measured, SiteSurvey};
use super::variant::Variant;
use crate::allocation::{Candidate, allocate, uniform};
use crate::error::{Error, Result};
use crate::models::Site;
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
    /// Stored numbers; the fit has as many, or fewer where the family finds that it needs fewer.
    pub params: usize,
    /// Bytes, likewise.
    pub bytes: usize,
    /// Weighted relative error that the survey found or expects.
    pub error: f64,
    /// The best of the other families at this size, and its error.
    #[serde(default)]
    pub runner_up: Option<String>,
    /// What one hundredth of the whole budget more would lower the squared error by, if this matrix got it: about the same for all
    /// matrices, as far as sizes are close enough.
    #[serde(default)]
    pub gain: Option<f64>,
}

/// A variant for every matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// One for every matrix, in the order of execution.
    pub choices: Vec<Choice>,
    /// Sum of squared relative errors; with sensitivities, the expected squared change of the model's result, up to a factor.
    pub cost: f64,
    /// No plan of these variants, in the sizes that the survey measured or expects, costs less within the budget; `None` for methods that do not
    /// know.
    pub bound: Option<f64>,
}

impl Plan {
    /// Spreads the budget.
    pub(super) fn make(sites: &[Site], surveys: &[SiteSurvey], settings: &Settings) -> Result<Self> {
        let budget = settings.budget;
        let weights: Vec<u64> = surveys.iter().map(|s| s.dense_size(budget)).collect();
        let total: u64 = weights.iter().sum();
        let allowed = (budget.fraction() * total as f64 * (1.0 + 1e-12)).floor() as u64;
        if settings.method.is_rule() {
            let choices = Rules::new(sites, surveys, settings, allowed)?.choices(settings.method)?;
            let cost = choices.iter().zip(surveys).map(|(c, survey)| c.error * c.error * survey.energy).sum();
            return Ok(Self { choices, cost, bound: None });
        }
        let mut variants: Vec<Vec<Measured>> = surveys.iter().map(SiteSurvey::variants).collect();
        let mut exact: Vec<Vec<bool>> = variants
            .iter()
            .zip(surveys)
            .map(|(list, survey)| (0..list.len()).map(|k| k < survey.measured.len()).collect())
            .collect();
        // Sizes between measured ones are guesses: those that are chosen are made sure of, until all are.
        let (candidates, found) = loop {
            let candidates: Vec<Vec<Candidate>> = variants
                .iter()
                .zip(surveys)
                .map(|(list, s)| list.iter().map(|m| m.candidate(budget, s.energy)).collect())
                .collect();
            let found = match settings.method {
                Method::Uniform => uniform(&candidates, &weights, allowed)?,
                _ => allocate(&candidates, allowed)?,
            };
            let mut sure = true;
            for (i, &k) in found.chosen.iter().enumerate() {
                if !std::mem::replace(&mut exact[i][k], true) {
                    let chosen = &mut variants[i][k];
                    (chosen.params, chosen.bytes) = chosen.variant.size(surveys[i].shape)?;
                    sure &= chosen.candidate(budget, 1.0).size == candidates[i][k].size;
                }
            }
            if sure {
                break (candidates, found);
            }
        };
        let choices = surveys.iter().zip(&found.chosen).enumerate().map(|(i, (survey, &k))| {
            let (chosen, list) = (&variants[i][k], &candidates[i]);
            // The best of the other families at this size.
            let others = variants[i].iter().zip(list).filter(|(m, c)| {
                m.variant.structure != chosen.variant.structure && c.size <= list[k].size.max(1)
            });
            let runner_up = others.min_by(|a, b| a.0.error.total_cmp(&b.0.error));
            let steps = list.iter().filter(|c| c.size > list[k].size);
            let slopes = steps.map(|c| (list[k].cost - c.cost) / (c.size - list[k].size) as f64);
            Choice {
                name: survey.name.clone(),
                shape: survey.shape,
                variant: chosen.variant.clone(),
                params: chosen.params,
                bytes: chosen.bytes,
                error: chosen.error,
                runner_up: runner_up.map(|(m, _)| format!("{}: {:.4}", m.variant, m.error)),
                gain: slopes.reduce(f64::max).map(|slope| slope * 0.01 * allowed as f64),
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
