//! Compresses the matrices of a whole transformer to a budget, fitted to what its layers see in calibration sentences.
//!
//! ```text
//! cargo run --release --example compress_model -- --model model.safetensors --calibration tokens.safetensors \
//!     --ratio 0.5 --report work --output small.safetensors
//! ```
//!
//! An interrupted run goes on where it stood. Several processes can share the work: `--shard 0/4 --step survey` to `3/4`, then the same with
//! `--step fit --independent`, then `--step merge`.

#[path = "../cli/mod.rs"]
mod cli;
mod plots;
mod report;

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use structmat::compression::{Compressor, Event, Method, ModelBudget, Refined, Refinement, Settings, Shard};
use structmat::io::{Checkpoint, Staged};
use structmat::models::Tokens;
use structmat::prelude::*;
use structmat::{Error, Result};

/// Compresses the matrices of a whole transformer.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The model: a safetensors file, an index (.json) of several, or a folder with either.
    #[arg(long)]
    model: PathBuf,
    /// Description of the model: `all-minilm-l6-v2`, or a JSON file (a `config.json`, or one that `Architecture::save` has written).
    /// Without it, the `config.json` beside the model, or what fits of the shipped ones.
    #[arg(long)]
    architecture: Option<String>,
    /// Calibration sentences: a safetensors file with the integer tensors `input_ids` (end to end) and `offsets`.
    #[arg(long)]
    calibration: PathBuf,
    /// Parameters of all matrices together, as a fraction of the dense ones'.
    #[arg(long, group = "budget", required = true)]
    ratio: Option<f64>,
    /// Bytes of all matrices together, as a fraction of the dense ones' in f32.
    #[arg(long, group = "budget")]
    bytes_ratio: Option<f64>,
    /// Time of one product with each matrix (batch 1, one thread), as a fraction of the dense ones' in f32, measured on this machine.
    #[arg(long, group = "budget")]
    latency_ratio: Option<f64>,
    /// How the budget is spread: `auto` (where it lowers the error most, among all structures and storages), `uniform` (in proportion to the
    /// dense sizes), or a published rule for low-rank matrices only: `welore`, `lorap`, `dobi`, `laser`.
    #[arg(long, default_value = "auto")]
    method: Method,
    /// Families that matrices may become.
    #[arg(long, value_delimiter = ',', default_value = "low_rank,sparse,dense")]
    structures: Vec<String>,
    /// Storages of their factors.
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    storage: Vec<Storage>,
    /// How much errors count as the model's last hidden states depend on them: from 0 (relative errors count the same) to 1 (first-order
    /// effect, which holds while errors are small).
    #[arg(long, default_value_t = 0.5)]
    sensitivity: f64,
    /// Fit every stage to the inputs that compressed predecessors make, and to the outputs of the dense model. This is the default.
    #[arg(long, conflicts_with = "independent")]
    sequential: bool,
    /// Fit every matrix to the inputs of the dense model, not to those that compressed predecessors make.
    #[arg(long)]
    independent: bool,
    /// After the fit of each block, refine its matrices together by so many passes of gradient steps on the error of its output.
    #[arg(long, num_args = 0..=1, default_missing_value = "20", value_name = "EPOCHS")]
    refine: Option<usize>,
    /// Length of the first of these steps, relative to the factors.
    #[arg(long, default_value_t = Refinement::default().rate)]
    rate: f64,
    /// Leave biases as they are.
    #[arg(long)]
    keep_bias: bool,
    /// Noise assumed in every input, relative to the mean square of inputs; 0.3, or 0.01 with `--independent`, when not given.
    #[arg(long)]
    dampening: Option<f64>,
    /// So many more calibration sentences for each one given, made of the beginnings and ends of them; 1, or 3 with `--refine`, when not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(..=1000))]
    augment: Option<u16>,
    /// Most iterations of iterative projections: in the survey, in the fit.
    #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [4, 12])]
    iterations: Vec<usize>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The blocks that this process takes, `i/n`.
    #[arg(long, value_parser = shard, default_value = "0/1")]
    shard: Shard,
    /// What to do of it.
    #[arg(long, value_enum, default_value_t = Step::All)]
    step: Step,
    /// Folder for finished parts and the report.
    #[arg(long)]
    report: PathBuf,
    /// The compressed model: a file, or a folder where the model is several files.
    #[arg(long)]
    output: PathBuf,
    /// Threads; 0 for all.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    All,
    Survey,
    Fit,
    Merge,
}

fn shard(text: &str) -> std::result::Result<Shard, String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((index, count)) if index < count => Ok(Shard { index, count }),
        _ => Err("expected i/n with 0 <= i < n".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    cli::run(|| compress(&args))
}

fn compress(args: &Args) -> cli::Outcome {
    let start = Instant::now();
    let tokens = Tokens::load(&Checkpoint::open(&args.calibration)?)?;
    let augment = args.augment.unwrap_or(if args.refine.is_some() { 3 } else { 1 });
    let tokens = tokens.spliced(usize::from(augment) * tokens.n_sequences(), args.seed);
    let model = cli::model(&args.model, args.architecture.as_deref())?;
    let compressor = Compressor::new(&model, &tokens, settings(args)?, parallelism(args), &args.report)?;
    if args.step != Step::Survey {
        // An output that cannot be written is better known now.
        drop(Staged::new(
            if args.output.is_dir() { args.output.join("index") } else { args.output.clone() },
            [],
        )?);
    }
    let bar = cli::progress(2 * model.n_blocks());
    let mut progress = |event: Event<'_>| {
        match event {
            Event::Surveyed { layer } => bar.set_message(format!("surveyed block {layer}")),
            Event::Fitted { layer, block } => {
                let worst = block.matrices.iter().map(|m| m.error).fold(0.0, f64::max);
                let refined = |r: Refined| format!(", refined from {:.4} to {:.4}", r.before, r.after);
                let refined = block.refined.map_or(String::new(), refined);
                bar.set_message(format!("fitted block {layer}, errors up to {worst:.3}{refined}"));
            }
        }
        bar.inc(1);
    };
    if matches!(args.step, Step::All | Step::Survey) {
        compressor.survey(args.shard, &mut progress)?;
    }
    if matches!(args.step, Step::All | Step::Fit) {
        compressor.fit(args.shard, &mut progress)?;
    }
    bar.finish_and_clear();
    if matches!(args.step, Step::Survey | Step::Fit) {
        println!("finished {:?} of blocks {}/{}", args.step, args.shard.index, args.shard.count);
        return Ok(());
    }
    let compressed = compressor.finish()?;
    compressed.write(&args.output)?;
    let text = report::text(&compressed, start.elapsed().as_secs_f64());
    let picture = plots::matrices(&args.report.join("report.svg"), &compressed)?;
    Staged::new(args.report.join("report.md"), [text.as_bytes()])?.commit()?;
    picture.commit()?;
    print!("{text}");
    Ok(())
}

fn settings(args: &Args) -> Result<Settings> {
    let budget = match (args.ratio, args.bytes_ratio, args.latency_ratio) {
        (Some(ratio), ..) => ModelBudget::Params(ratio),
        (_, Some(ratio), _) => ModelBudget::Bytes(ratio),
        (.., Some(ratio)) => ModelBudget::Latency(ratio),
        (None, None, None) => {
            return Err(Error::parameter("budget", "none", "--ratio, --bytes-ratio or --latency-ratio"));
        }
    };
    let structures: Vec<&str> = args.structures.iter().map(String::as_str).collect();
    Ok(Settings {
        method: args.method,
        sequential: !args.independent,
        sensitivity: args.sensitivity,
        bias: !args.keep_bias,
        dampening: args.dampening.unwrap_or(if args.independent { 0.01 } else { 0.3 }),
        iterations: (args.iterations[0], args.iterations[1]),
        refinement: args.refine.map(|epochs| Refinement { epochs, rate: args.rate, ..Refinement::default() }),
        seed: args.seed,
        ..Settings::new(budget, &structures, &args.storage)?
    })
}

fn parallelism(args: &Args) -> Parallelism {
    if args.threads == 1 { Parallelism::Seq } else { Parallelism::Threads(args.threads) }
}
