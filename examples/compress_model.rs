//! Compresses the matrices of a whole transformer to a budget, fitted to what its layers see in calibration sentences.
//!
//! ```text
//! cargo run --release --example compress_model -- --model model.safetensors --calibration tokens.safetensors \
//!     --ratio 0.5 --report work --output small.safetensors
//! ```
//!
//! An interrupted run goes on where it stood. Several processes can share the work: `--shard 0/4 --step survey` to `3/4`, then the same with
//! `--step fit --independent`, then `--step merge`.

mod cli;

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use structmat::compression::{CompressedModel, Compressor, Event, Method, ModelBudget, Settings, Shard};
use structmat::io::{Checkpoint, Staged};
use structmat::models::{Model, Tokens};
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
    /// Without it, the `config.json` beside the model.
    #[arg(long)]
    architecture: Option<String>,
    /// Calibration sentences: a safetensors file with the integer tensors `input_ids` (end to end) and `offsets`.
    #[arg(long)]
    calibration: PathBuf,
    /// Parameters of all matrices together, as a fraction of the dense ones'.
    #[arg(long, conflicts_with = "bytes_ratio", required_unless_present = "bytes_ratio")]
    ratio: Option<f64>,
    /// Bytes of all matrices together, as a fraction of the dense ones' in f32.
    #[arg(long)]
    bytes_ratio: Option<f64>,
    /// How the budget is spread.
    #[arg(long, value_enum, default_value_t = Spread::Auto)]
    method: Spread,
    /// Families that matrices may become.
    #[arg(long, value_delimiter = ',', default_value = "low_rank,sparse,dense")]
    structures: Vec<String>,
    /// Storages of their factors.
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    storage: Vec<Storage>,
    /// Fit every matrix to the inputs of the dense model, not to those that compressed predecessors make.
    #[arg(long)]
    independent: bool,
    /// Leave biases as they are.
    #[arg(long)]
    keep_bias: bool,
    /// Noise assumed in every input, relative to the mean square of inputs.
    #[arg(long, default_value_t = 0.01)]
    dampening: f64,
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Spread {
    Auto,
    Uniform,
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
    let model = Model::new(
        cli::architecture(&args.model, args.architecture.as_deref())?,
        structmat::io::open(&args.model)?,
    )?;
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
            Event::Fitted { layer, matrices } => {
                let worst = matrices.iter().map(|m| m.error).fold(0.0, f64::max);
                bar.set_message(format!("fitted block {layer}, errors up to {worst:.3}"));
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
    let text = report(&compressed, start.elapsed().as_secs_f64());
    Staged::new(args.report.join("report.md"), [text.as_bytes()])?.commit()?;
    print!("{text}");
    Ok(())
}

fn settings(args: &Args) -> Result<Settings> {
    let budget = match (args.ratio, args.bytes_ratio) {
        (Some(ratio), _) => ModelBudget::Params(ratio),
        (None, Some(ratio)) => ModelBudget::Bytes(ratio),
        (None, None) => return Err(Error::parameter("budget", "none", "--ratio or --bytes-ratio")),
    };
    let structures: Vec<&str> = args.structures.iter().map(String::as_str).collect();
    Ok(Settings {
        method: match args.method {
            Spread::Auto => Method::Auto,
            Spread::Uniform => Method::Uniform,
        },
        sequential: !args.independent,
        bias: !args.keep_bias,
        dampening: args.dampening,
        iterations: (args.iterations[0], args.iterations[1]),
        seed: args.seed,
        ..Settings::new(budget, &structures, &args.storage)?
    })
}

fn parallelism(args: &Args) -> Parallelism {
    if args.threads == 1 { Parallelism::Seq } else { Parallelism::Threads(args.threads) }
}

fn report(compressed: &CompressedModel<'_>, seconds: f64) -> String {
    let dense: usize = compressed.plan.choices.iter().map(|choice| choice.shape.0 * choice.shape.1).sum();
    let rows: Vec<Vec<String>> = compressed
        .fitted
        .iter()
        .map(|fitted| {
            let choice = &fitted.choice;
            let (m, n) = choice.shape;
            vec![
                fitted.name.clone(),
                format!("{m}x{n}"),
                choice.variant.structure.clone(),
                choice.variant.storage.to_string(),
                format!("{:.3}", fitted.params as f64 / (m * n) as f64),
                fitted.bytes.to_string(),
                format!("{:.4}", choice.error),
                format!("{:.4}", fitted.error),
                format!("{:.2}", fitted.seconds),
                choice.runner_up.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header = [
        "matrix",
        "shape",
        "structure",
        "storage",
        "parameters",
        "bytes",
        "error in survey",
        "error in fit",
        "seconds",
        "best other family",
    ];
    let (params, bytes) = (compressed.params(), compressed.bytes());
    let bound =
        compressed.plan.bound.map_or(String::new(), |bound| format!(", at least {bound:.5} possible"));
    format!(
        "{} matrices: {params} of {dense} parameters ({:.4}), {bytes} bytes ({:.4} of f32), {seconds:.1} s\n\
         sum of squared relative errors in the survey: {:.5}{bound}\n\n{}",
        rows.len(),
        params as f64 / dense as f64,
        bytes as f64 / (4 * dense) as f64,
        compressed.plan.cost,
        cli::table(&header, &rows)
    )
}
