//! Published rules for the ranks of a whole model's matrices, all of them low-rank or dense.

use super::plan::Choice;
use super::settings::{Method, ModelBudget, Settings};
use super::survey::SiteSurvey;
use super::variant::Variant;
use crate::allocation::{Normalization, SoftRanks, factors_pay, reduced_rank, split_ranks, threshold_ranks};
use crate::error::{Error, Result};
use crate::models::{Site, Stage};
use crate::storage::Storage;
use std::cmp::Reverse;

/// Fractions of the full rank that LASER tries.
const REDUCTIONS: [f64; 3] = [0.1, 0.05, 0.01];
/// LoRAP gives values and outputs so many times the rank of queries and keys.
const SPLIT: f64 = 3.0;

/// What the rules know: matrices, spectra, sizes, and the budget.
pub(super) struct Rules<'a> {
    sites: &'a [Site],
    surveys: &'a [SiteSurvey],
    budget: ModelBudget,
    allowed: u64,
    storage: Storage,
}

impl<'a> Rules<'a> {
    pub(super) fn new(
        sites: &'a [Site],
        surveys: &'a [SiteSurvey],
        settings: &Settings,
        allowed: u64,
    ) -> Result<Self> {
        let (budget, storage) = (settings.budget, settings.storage());
        if matches!(budget, ModelBudget::Latency(_)) {
            return Err(Error::parameter("budget", "latency", "parameters or bytes, for a rule of ranks"));
        }
        Ok(Self { sites, surveys, budget, allowed, storage })
    }

    /// The choices of a rule.
    pub(super) fn choices(&self, method: Method) -> Result<Vec<Choice>> {
        let ranks = match method {
            Method::Welore => self.welore()?,
            Method::Lorap => self.lorap()?,
            Method::Dobi => self.dobi()?,
            Method::Laser => self.laser()?,
            Method::Auto | Method::Uniform => {
                return Err(Error::parameter("method", "no rule of ranks", "one"));
            }
        };
        if self.total(&ranks) > self.allowed {
            let received = format!("{} for the ranks of the rule", self.total(&ranks));
            return Err(Error::parameter("budget", received, format!("at most {}", self.allowed)));
        }
        (0..ranks.len()).map(|k| self.choice(k, ranks[k])).collect()
    }

    fn shape(&self, k: usize) -> (usize, usize) {
        self.surveys[k].shape
    }

    /// What a rank takes of the budget; a rank that saves nothing stands for the dense matrix.
    fn size(&self, k: usize, rank: usize) -> u64 {
        let (m, n) = self.shape(k);
        let of = |rows: usize, cols: usize| match self.budget {
            ModelBudget::Bytes(_) => self.storage.bytes(rows, cols) as u64,
            _ => (rows * cols) as u64,
        };
        (of(m, rank) + of(rank, n)).min(of(m, n))
    }

    fn total(&self, ranks: &[usize]) -> u64 {
        (0..ranks.len()).map(|k| self.size(k, ranks[k])).sum()
    }

    /// The largest rank of a matrix that takes at most `size`, at least 1.
    fn rank_within(&self, k: usize, size: u64) -> usize {
        let (m, n) = self.shape(k);
        let fits = (1..=m.min(n)).rev().find(|&rank| self.size(k, rank) <= size);
        fits.unwrap_or(1)
    }

    /// The least threshold that the budget allows, of the weights' own spectra.
    fn welore(&self) -> Result<Vec<usize>> {
        let spectra: Vec<Vec<f64>> = self.surveys.iter().map(|s| s.spectra.plain.clone()).collect();
        let ranks = |kept: f64| Ok::<_, Error>(threshold_ranks(&spectra, kept, Normalization::MinMax)?.0);
        let (mut low, mut high) = (0.0, 1.0);
        let mut best = ranks(low)?;
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            let found = ranks(middle)?;
            if self.total(&found) <= self.allowed {
                (low, best) = (middle, found);
            } else {
                high = middle;
            }
        }
        Ok(best)
    }

    /// Three times the rank for values and outputs as for queries and keys. (The source deletes channels of the MLP; here its matrices get
    /// their share as ranks.)
    fn lorap(&self) -> Result<Vec<usize>> {
        let fraction = self.budget.fraction();
        let fraction = match self.budget {
            ModelBudget::Bytes(_) => fraction / self.storage.relative_to_f32(),
            _ => fraction,
        };
        let pruned = (1.0 - fraction).max(0.0);
        let mut ranks = Vec::new();
        let (mut stage, mut position) = (None, 0);
        for (k, site) in self.sites.iter().enumerate() {
            position = if stage == Some((site.layer, site.stage)) { position + 1 } else { 0 };
            stage = Some((site.layer, site.stage));
            let (m, n) = self.shape(k);
            // Where a rank saves nothing; the order of a square matrix is twice that.
            let even = (m * n) as f64 / (m + n) as f64;
            let (queries, values) = split_ranks((2.0 * even) as usize, pruned, SPLIT)?;
            let rank = match (site.stage, position) {
                (Stage::AttentionIn, 0 | 1) => queries,
                (Stage::AttentionIn | Stage::AttentionOut, _) => values.unwrap_or(m.min(n)),
                _ => (fraction * even).floor() as usize,
            };
            ranks.push(rank.clamp(1, m.min(n)));
        }
        Ok(ranks)
    }

    /// Soft ranks of the spectra that see the activations.
    fn dobi(&self) -> Result<Vec<usize>> {
        let spectra: Vec<Vec<f64>> = self.surveys.iter().map(|s| s.spectra.weighted.clone()).collect();
        // A rank that costs as much as the dense matrix is the last one.
        let spectra: Vec<Vec<f64>> = spectra
            .into_iter()
            .enumerate()
            .map(|(k, s)| {
                let (m, n) = self.shape(k);
                let useful = (m * n).div_ceil(m + n);
                s.into_iter().take(useful).collect()
            })
            .collect();
        let sizes: Vec<u64> = (0..spectra.len()).map(|k| self.size(k, 1)).collect();
        SoftRanks::default().ranks(&spectra, &sizes, self.allowed)
    }

    /// MLP matrices from the last block to the first, then those of attention, reduced to a fraction of their rank until the budget is met.
    fn laser(&self) -> Result<Vec<usize>> {
        let full: Vec<usize> =
            (0..self.surveys.len()).map(|k| self.shape(k).0.min(self.shape(k).1)).collect();
        let reduced =
            |rho: f64| -> Vec<usize> { (0..full.len()).map(|k| reduced_rank(self.shape(k), rho)).collect() };
        let rho = REDUCTIONS.into_iter().find(|rho| self.total(&reduced(*rho)) <= self.allowed);
        let Some(rho) = rho else {
            let least = self.total(&reduced(REDUCTIONS[REDUCTIONS.len() - 1]));
            return Err(Error::parameter("budget", self.allowed, format!("at least {least}")));
        };
        let mut order: Vec<usize> = (0..full.len()).collect();
        let attention = |k: usize| matches!(self.sites[k].stage, Stage::AttentionIn | Stage::AttentionOut);
        order.sort_by_key(|&k| (attention(k), Reverse(self.sites[k].layer)));
        let mut ranks = full;
        for k in order {
            let (others, least) =
                (self.total(&ranks) - self.size(k, ranks[k]), reduced_rank(self.shape(k), rho));
            if others + self.size(k, ranks[k]) <= self.allowed {
                break;
            }
            ranks[k] = self.rank_within(k, self.allowed.saturating_sub(others)).max(least);
        }
        Ok(ranks)
    }

    fn choice(&self, k: usize, rank: usize) -> Result<Choice> {
        let (survey, (m, n)) = (&self.surveys[k], self.shape(k));
        let dense = !factors_pay((m, n), rank);
        let mut variant = Variant::new(if dense { "dense" } else { "low_rank" }, self.storage, 1.0);
        if !dense {
            variant.parameters.insert("rank".to_owned(), rank.to_string());
        }
        let energy = |s: &[f64]| s.iter().map(|s| s * s).sum::<f64>();
        let spectrum = &survey.spectra.weighted;
        let tail = if dense { 0.0 } else { energy(&spectrum[rank.min(spectrum.len())..]) };
        let bytes = |rows, cols| self.storage.bytes(rows, cols);
        let (params, bytes) = match dense {
            true => (m * n, bytes(m, n)),
            false => (rank * (m + n), bytes(m, rank) + bytes(rank, n)),
        };
        Ok(Choice {
            name: survey.name.clone(),
            shape: survey.shape,
            variant,
            params,
            bytes,
            error: (tail / energy(spectrum).max(f64::MIN_POSITIVE)).sqrt(),
            runner_up: None,
            gain: None,
        })
    }
}
