//! The rows of the report, and its tables.

use crate::candidates::{Candidate, Conditions};
use crate::cli;
use crate::machine::Machine;
use crate::timing::middle;
use serde::Serialize;
use std::collections::BTreeMap;
use structmat::prelude::*;

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    pub structure: String,
    pub storage: Storage,
    #[serde(rename = "out")]
    pub out_features: usize,
    #[serde(rename = "in")]
    pub in_features: usize,
    /// Parameters as a fraction of the dense matrix's.
    pub ratio: f64,
    pub params: usize,
    /// Bytes that hold them.
    pub bytes: usize,
    /// Multiply-adds x 2 of the product.
    pub flops: u64,
    pub batch: usize,
    pub threads: usize,
    /// `warm`: the weights stay in cache; `cold`: they come from memory; `call_overhead`: a small product beside its kernels or its minimal form.
    pub regime: &'static str,
    /// Median time of a product.
    pub seconds: f64,
    /// Half the distance between the quartiles, as a fraction of the median.
    pub spread: f64,
    /// The strongest dense product of the cell, of those in `f32` and in this storage.
    pub baseline: String,
    pub baseline_seconds: f64,
    /// Time of the baseline over this one's.
    pub speedup: f64,
    /// The same if this and a dense product in `f32` took the least time that the machine's limits allow.
    pub ideal: f64,
    /// What binds: `bytes` or `flops`.
    pub limit: &'static str,
    /// The least time that it allows.
    pub limit_seconds: f64,
    /// That over the time taken.
    pub efficiency: f64,
    /// Blocks, rows and columns of each factor.
    pub factors: BTreeMap<String, (usize, usize, usize)>,
}

/// The rows of candidates that took turns.
pub fn rows(
    candidates: &[Candidate],
    times: &[Vec<f64>],
    at: Conditions,
    machine: &mut Machine,
) -> Vec<Cell> {
    let (m, n) = at.shape;
    let dense_limit = machine.limit(at.threads, 4 * m * n, 2 * (m * n * at.batch) as u64, at.cold).0;
    let row = |(candidate, times): (&Candidate, &Vec<f64>)| {
        let (seconds, spread) = middle(times);
        let flops = candidate.flops * at.batch as u64;
        let (limit_seconds, limit) = machine.limit(at.threads, candidate.bytes, flops, at.cold);
        Cell {
            structure: candidate.name.clone(),
            storage: candidate.storage,
            out_features: m,
            in_features: n,
            ratio: candidate.params as f64 / (m * n) as f64,
            params: candidate.params,
            bytes: candidate.bytes,
            flops,
            batch: at.batch,
            threads: at.threads,
            regime: if at.cold { "cold" } else { "warm" },
            seconds,
            spread,
            baseline: String::new(),
            baseline_seconds: 0.0,
            speedup: 0.0,
            ideal: dense_limit / limit_seconds,
            limit,
            limit_seconds,
            efficiency: limit_seconds / seconds,
            factors: candidate.factors.clone(),
        }
    };
    let mut cells: Vec<Cell> = candidates.iter().zip(times).map(row).collect();
    let dense: Vec<(Storage, String, f64)> = std::iter::zip(candidates, &cells)
        .filter(|(candidate, _)| candidate.dense)
        .map(|(_, cell)| (cell.storage, cell.structure.clone(), cell.seconds))
        .collect();
    for cell in &mut cells {
        let fits = |storage: Storage| storage == Storage::F32 || storage == cell.storage;
        let strongest =
            dense.iter().filter(|(storage, ..)| fits(*storage)).min_by(|a, b| a.2.total_cmp(&b.2));
        if let Some((storage, name, seconds)) = strongest {
            let suffix = if *storage == Storage::F32 { String::new() } else { format!(" {storage}") };
            (cell.baseline, cell.baseline_seconds) = (format!("{name}{suffix}"), *seconds);
            cell.speedup = seconds / cell.seconds;
        }
    }
    cells
}

/// The table of a cell.
pub fn section(cells: &[Cell]) -> String {
    let Some(first) = cells.first() else { return String::new() };
    let header =
        ["structure", "storage", "ratio", "us", "spread", "speed-up", "ideal", "efficiency", "bound"];
    let row = |c: &Cell| {
        vec![
            c.structure.clone(),
            c.storage.to_string(),
            format!("{:.4}", c.ratio),
            format!("{:.1}", 1e6 * c.seconds),
            format!("{:.0} %", 100.0 * c.spread),
            format!("{:.2}", c.speedup),
            format!("{:.2}", c.ideal),
            format!("{:.2}", c.efficiency),
            c.limit.to_owned(),
        ]
    };
    let rows: Vec<_> = cells.iter().map(row).collect();
    let Cell { out_features, in_features, batch, threads, regime, .. } = first;
    format!(
        "\n## {out_features} x {in_features}, batch {batch}, {threads} thread(s), {regime}\n\n{}",
        cli::table(&header, &rows)
    )
}
