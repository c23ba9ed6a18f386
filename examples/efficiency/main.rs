//! Every family against the strongest dense product: time, speed-up, what the machine would allow, and how much of it is reached.
//!
//! ```text
//! cargo run --release --example efficiency -- --quick
//! cargo run --release --example efficiency -- --shapes 1024x1024,4096x4096 --batch 1,64 --threads 1,2 --markdown report.md --plots plots
//! ```

mod candidates;
#[path = "../cli/mod.rs"]
mod cli;
#[path = "../cli/dense.rs"]
mod dense;
mod machine;
mod overhead;
mod pareto;
mod plots;
mod report;
mod timing;

use candidates::{Conditions, dense_candidates, structured};
use clap::{Parser, ValueEnum};
use machine::Machine;
use report::{Cell, section};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use structmat::io::Staged;
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::registry::{Entry, FAMILIES, family};
use structmat::{Error, Result};
use timing::time_in_turns;

/// Bytes of matrices that take turns, the dense ones not counted. More of them are timed in further turns, beside the dense products again.
const MEMORY: usize = 2 << 30;

/// Compares products with structured matrices to the strongest dense product measured in the same run.
///
/// Every answer is checked before it is timed, against the matrix's own dense form as its storage decodes it; candidates of a cell take
/// turns, and medians are reported. Times at batch 1 come in two regimes: warm (weights in cache, where they fit) and cold (cycling through copies that
/// fill four times the last-level cache). Copies take at most 2 GiB at a time beside those of the dense products, which take four times the cache
/// each; caches count up to 256 MiB.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Small shapes, few rounds, no cold runs: a minute or two.
    #[arg(long)]
    quick: bool,
    /// Shapes as OUTxIN.
    #[arg(long, value_delimiter = ',', value_parser = shape, default_value = "384x384,1536x384,1024x1024,4096x4096,11008x4096")]
    shapes: Vec<(usize, usize)>,
    /// Rows of the input.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,256")]
    batch: Vec<usize>,
    /// Threads; 0 for all.
    #[arg(long, value_delimiter = ',', default_value = "1,0")]
    threads: Vec<usize>,
    /// Families; all when not given.
    #[arg(long, value_delimiter = ',')]
    structures: Vec<String>,
    /// Parameters as fractions of the dense matrix's.
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.25,0.125")]
    ratios: Vec<f64>,
    /// A parameter of the families that know it, as `key=value`. Repeatable.
    #[arg(long, value_parser = cli::key_value)]
    param: Vec<(String, String)>,
    /// Storages of the factors: f64, f32, bf16, f16, int8, int4.
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    storage: Vec<Storage>,
    /// Where the weights are; cold at batch 1 only.
    #[arg(long, value_delimiter = ',', default_value = "warm,cold")]
    regime: Vec<Regime>,
    /// File to write the cells to.
    #[arg(long)]
    json: Option<PathBuf>,
    /// File to write the tables to.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Folder to write pictures to: speed-up against size, efficiency against the limit, time against error.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// Checkpoint with the matrix of the picture of time against error.
    #[arg(long, default_value = "examples/data/sample.safetensors")]
    pareto: PathBuf,
    /// The matrix's name.
    #[arg(long, default_value = "hidden1.weight")]
    tensor: String,
}

/// Where the weights are before a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Regime {
    Warm,
    Cold,
}

fn shape(text: &str) -> std::result::Result<(usize, usize), String> {
    let parse = |part: &str| part.trim().parse::<usize>().ok().filter(|n| *n > 0);
    let parts = text.split_once('x').and_then(|(m, n)| Some((parse(m)?, parse(n)?)));
    parts.ok_or_else(|| format!("`{text}`: expected OUTxIN, such as 1024x4096"))
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        args.shapes.retain(|(m, n)| m * n <= 1024 * 1024);
        args.batch.retain(|batch| *batch <= 64);
        args.ratios.truncate(1);
        args.regime.retain(|regime| *regime == Regime::Warm);
    }
    cli::run(|| measure(&args))
}

fn measure(args: &Args) -> cli::Outcome {
    for path in [&args.json, &args.markdown].into_iter().flatten() {
        Staged::new(path, [])?;
    }
    if let Some(folder) = &args.plots {
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::File { path: folder.clone(), reason: e.to_string() })?;
    }
    let entries: Vec<&'static Entry> = match args.structures.is_empty() {
        true => FAMILIES.iter().collect(),
        false => args.structures.iter().map(|name| family(name)).collect::<Result<_>>()?,
    };
    let known: BTreeSet<&str> =
        entries.iter().flat_map(|entry| entry.parameters).map(|(name, _)| *name).collect();
    if let Some((name, _)) = args.param.iter().find(|(name, _)| !known.contains(name.as_str())) {
        let expected = Vec::from_iter(known).join(", ");
        return Err(Error::Unknown { kind: "parameter", name: name.clone(), expected }.into());
    }
    // The picture that can fail for a wrong name comes before the long measurements.
    let title = format!("{} of {}, {}", args.tensor, args.pareto.display(), args.storage[0]);
    let members = args.plots.as_ref().map(|_| pareto::measure(args, &entries)).transpose()?;
    let mut machine = Machine::default();
    let mut text = String::new();
    let mut show = |section: String| {
        print!("{section}");
        text += &section;
    };
    let cells = all_cells(args, &entries, &mut machine, &mut show)?;
    let overhead = overhead::measure(&mut machine)?;
    show(overhead::section(&overhead));
    if let Some((members, dense_seconds)) = &members {
        show(pareto::section(&title, members, *dense_seconds));
    }
    show(machine.text());
    let mut staged = Vec::new();
    if let Some(path) = &args.markdown {
        staged.push(Staged::new(path, ["# Products\n".as_bytes(), text.as_bytes()])?);
    }
    if let (Some(folder), Some((members, dense_seconds))) = (&args.plots, &members) {
        staged.extend(plots::of_cells(folder, &cells)?);
        staged.push(plots::of_members(folder, &title, members, *dense_seconds)?);
    }
    if let Some(path) = &args.json {
        let rows: Vec<&Cell> = cells.iter().chain(&overhead).collect();
        staged.push(Staged::new(path, [serde_json::to_vec_pretty(&rows)?.as_slice()])?);
    }
    Ok(staged.into_iter().try_for_each(Staged::commit)?)
}

/// Every shape, batch, number of threads and regime.
fn all_cells(
    args: &Args,
    entries: &[&Entry],
    machine: &mut Machine,
    show: &mut impl FnMut(String),
) -> Result<Vec<Cell>> {
    let all = rayon::current_num_threads();
    let mut threads: Vec<usize> = Vec::new();
    for t in args.threads.iter().map(|&t| if t == 0 { all } else { t.min(all) }) {
        if !threads.contains(&t) {
            threads.push(t);
        }
    }
    let bar = cli::progress(args.shapes.len() * args.batch.len() * threads.len());
    let mut cells = Vec::new();
    for &shape in &args.shapes {
        for &batch in &args.batch {
            for &threads in &threads {
                bar.set_message(format!("{}x{} batch {batch}, {threads} threads", shape.0, shape.1));
                for regime in &args.regime {
                    let cold = *regime == Regime::Cold;
                    if !cold || batch == 1 {
                        let rows = cell(args, entries, Conditions { shape, batch, threads, cold }, machine)?;
                        bar.suspend(|| show(section(&rows)));
                        cells.extend(rows);
                    }
                }
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    Ok(cells)
}

/// The candidates of one cell, checked, then timed in turns; as many at once as there is memory for.
fn cell(args: &Args, entries: &[&Entry], at: Conditions, machine: &mut Machine) -> Result<Vec<Cell>> {
    let x =
        Array2::from_shape_fn((at.batch, at.shape.1), |(i, j)| ((i * 31 + j * 17) % 23) as f32 / 11.0 - 1.0);
    let mut y = Array2::zeros((at.batch, at.shape.0));
    let mut candidates = dense_candidates(at, &args.storage)?;
    let dense = candidates.len();
    let mut cells: Vec<Cell> = Vec::new();
    let mut flush = |candidates: &mut Vec<_>| -> Result<()> {
        let times = time_in_turns(candidates, &x, &mut y, args.quick)?;
        // The dense products stand in the report once.
        let known = if cells.is_empty() { 0 } else { dense };
        cells.extend(report::rows(candidates, &times, at, machine).into_iter().skip(known));
        candidates.truncate(dense);
        Ok(())
    };
    for entry in entries.iter().filter(|entry| entry.name != "dense") {
        for &storage in &args.storage {
            let mut last = 0;
            for &ratio in &args.ratios {
                let request = Request::new().budget(Budget::Ratio(ratio));
                let request =
                    args.param.iter().fold(request, |request, (key, value)| request.with(key, value));
                let request = request.only(entry.parameters);
                let matrix = match entry.random(at.shape, &request, storage, 1) {
                    Err(Error::Budget { .. }) => continue,
                    other => other?,
                };
                // Families of fixed size have one member for every budget.
                if std::mem::replace(&mut last, matrix.n_params()) == matrix.n_params() {
                    continue;
                }
                let memory = |candidates: &[candidates::Candidate]| {
                    candidates.iter().map(|c| c.memory()).sum::<usize>()
                };
                let next =
                    machine::copies(matrix.storage_bytes(), at.threads, at.cold) * matrix.storage_bytes();
                if candidates.len() > dense && memory(&candidates[dense..]) + next > MEMORY {
                    flush(&mut candidates)?;
                }
                candidates.push(structured(entry.name, matrix, storage, at)?);
            }
        }
    }
    flush(&mut candidates)?;
    Ok(cells)
}
