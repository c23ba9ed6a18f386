//! Projects the matrices of a safetensors checkpoint onto a structured family.
//!
//! ```text
//! cargo run --release --example compress -- --input model.safetensors --tensors '*.weight' \
//!     --structure low_rank --ratio 0.5 --output small.safetensors
//! cargo run --release --example compress -- --input model.safetensors --tensors 'layer.0.*' --structure all --ratio 0.5
//! ```

mod cli;

use clap::Parser;
use globset::GlobBuilder;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use structmat::io::{Checkpoint, Staged, Writer};
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::registry::{Entry, FAMILIES, family};
use structmat::{Error, Result};

/// Projects the matrices of a safetensors checkpoint onto a structured family.
///
/// Tensors that no pattern matches, and matched ones that are no matrices, are copied through untouched.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Checkpoint to read.
    #[arg(long)]
    input: PathBuf,
    /// Names of the matrices to compress; `*`, `?`, `[..]` and `{a,b}` match as in a shell, `*` also across dots. Repeatable.
    #[arg(long, required = true)]
    tensors: Vec<String>,
    /// A family's name, or `all` for a table of every family.
    #[arg(long)]
    structure: String,
    /// Most parameters, as a fraction of the dense matrix's.
    #[arg(long, conflicts_with_all = ["params", "bytes"])]
    ratio: Option<f64>,
    /// Most parameters.
    #[arg(long, conflicts_with = "bytes")]
    params: Option<usize>,
    /// Most bytes.
    #[arg(long)]
    bytes: Option<usize>,
    /// Rank, for families that have one.
    #[arg(long)]
    rank: Option<usize>,
    /// Blocks: `b`, or `JxK` for J block rows and K block columns.
    #[arg(long)]
    blocks: Option<String>,
    /// A parameter of the family, as `key=value`. Repeatable.
    #[arg(long, value_parser = cli::key_value)]
    param: Vec<(String, String)>,
    /// Storage of the factors: f64, f32, bf16, f16, int8 or int4.
    #[arg(long, default_value = "f32")]
    storage: Storage,
    /// Second moments of the layers' inputs: per tensor an in x in matrix `NAME` (or `second_moment/NAME`), or `NAME.activations` of
    /// batch x in.
    #[arg(long)]
    gram: Option<PathBuf>,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; 0 for all.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Most iterations of iterative methods.
    #[arg(long)]
    iterations: Option<usize>,
    /// File to write; without one, the report is all. With `--structure all` it gets the family of the least error for each tensor.
    #[arg(long)]
    output: Option<PathBuf>,
    /// File to write the approximations to, dense, under their original names.
    #[arg(long)]
    dense_output: Option<PathBuf>,
    /// File to write the reports to.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One line of the JSON report.
#[derive(Serialize)]
struct Record<'a> {
    name: &'a str,
    #[serde(flatten)]
    report: &'a Report,
}

/// What came of one tensor and one family.
struct Projection {
    name: String,
    structure: &'static str,
    result: Result<Projected<Box<dyn StructuredMatrix>>>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    cli::run(|| compress(&args))
}

fn compress(args: &Args) -> cli::Outcome {
    let all = args.structure == "all";
    let entries: Vec<&Entry> = if all { FAMILIES.iter().collect() } else { vec![family(&args.structure)?] };
    check_outputs(args)?;
    let input = Checkpoint::open(&args.input)?;
    let names = matching(&input, &args.tensors)?;
    let grams = args.gram.as_ref().map(Checkpoint::open).transpose()?;
    let request = request(args);

    let bar = cli::progress(names.len() * entries.len());
    let mut outcomes = Vec::new();
    for name in &names {
        let w: Array2<f64> = input.matrix(name)?;
        let gram = grams.as_ref().map(|file| gram(file, name)).transpose()?;
        let objective = gram.as_ref().map_or(Objective::Frobenius, Objective::Activations);
        for entry in &entries {
            bar.set_message(format!("{name}: {}", entry.name));
            let progress = |p: structmat::projection::Progress| {
                let error = p.error.map_or(String::new(), |e| format!(", error {e:.5}"));
                bar.set_message(format!("{name}: {} {}/{}{error}", entry.name, p.done, p.total));
            };
            let options = Options {
                storage: args.storage,
                seed: args.seed,
                parallelism: if args.threads == 1 {
                    Parallelism::Seq
                } else {
                    Parallelism::Threads(args.threads)
                },
                max_iterations: args.iterations,
                progress: Some(&progress),
                cancel: None,
            };
            let request = if all { request.only(entry.parameters) } else { request.clone() };
            let result = entry.project(&w, &request, &objective, &options);
            let result = match result {
                Err(error) if !all => {
                    bar.finish_and_clear();
                    return Err(format!("{name}: {error}").into());
                }
                result => result,
            };
            outcomes.push(Projection { name: name.clone(), structure: entry.name, result });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    print_tables(&outcomes, &names, all);
    if let Some(name) = names.iter().find(|name| best(&outcomes, name).is_none()) {
        return Err(format!("{name}: no family has a member of this size").into());
    }
    Ok(write(args, &input, &outcomes)?)
}

/// Refuses outputs that name one file twice, and folders that cannot be written, before any work.
fn check_outputs(args: &Args) -> Result<()> {
    let outputs: Vec<&Path> =
        [&args.output, &args.dense_output, &args.json].into_iter().flatten().map(PathBuf::as_path).collect();
    if outputs.iter().collect::<BTreeSet<_>>().len() < outputs.len() {
        return Err(Error::parameter(
            "output",
            outputs[0].display(),
            "different files for --output, --dense-output and --json",
        ));
    }
    outputs.into_iter().try_for_each(|path| Staged::new(path, []).map(drop))
}

fn request(args: &Args) -> Request {
    let budget =
        [args.ratio.map(Budget::Ratio), args.params.map(Budget::Params), args.bytes.map(Budget::Bytes)];
    let mut request = Request::new();
    if let Some(budget) = budget.into_iter().flatten().next() {
        request = request.budget(budget);
    }
    if let Some(rank) = args.rank {
        request = request.with("rank", rank);
    }
    if let Some(blocks) = &args.blocks {
        request = request.with("blocks", blocks);
    }
    args.param.iter().fold(request, |request, (key, value)| request.with(key, value))
}

/// The matrices that the patterns match; tensors with another number of axes are left out.
fn matching(input: &Checkpoint, patterns: &[String]) -> Result<Vec<String>> {
    let mut names = BTreeSet::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(false).build();
        let glob = glob.map_err(|e| Error::parameter("tensors", pattern, e.to_string()))?.compile_matcher();
        let matched: Vec<&str> =
            input.tensors().filter(|name| *name == pattern || glob.is_match(name)).collect();
        let matrices: Vec<&str> = matched
            .iter()
            .copied()
            .filter(|name| input.shape(name).is_some_and(|shape| shape.len() == 2))
            .collect();
        if matrices.is_empty() {
            let found = match matched.first() {
                Some(name) => format!(
                    "a pattern that matches a matrix; `{name}` has shape {:?}",
                    input.shape(name).unwrap_or(&[])
                ),
                None => format!(
                    "a pattern that matches a tensor of {}, such as `{}`",
                    input.path().display(),
                    input.tensors().next().unwrap_or("(it has none)")
                ),
            };
            return Err(Error::parameter("tensors", pattern, found));
        }
        names.extend(matrices.into_iter().map(str::to_owned));
    }
    Ok(names.into_iter().collect())
}

/// The second moment for a tensor, as it is or from activations.
fn gram(file: &Checkpoint, name: &str) -> Result<Gram> {
    let activations = format!("{name}.activations");
    if file.shape(&activations).is_some() {
        let x: Array2<f64> = file.matrix(&activations)?;
        let mut gram = Gram::new(x.ncols());
        gram.accumulate(&x)?;
        return Ok(gram);
    }
    let prefixed = format!("second_moment/{name}");
    let stored = if file.shape(&prefixed).is_some() { prefixed.as_str() } else { name };
    Gram::from_second_moment(&file.matrix::<f64>(stored)?)
}

/// The projection to write for each tensor: the only one, or that of the least error.
fn best<'a>(outcomes: &'a [Projection], name: &str) -> Option<&'a Projected<Box<dyn StructuredMatrix>>> {
    let error = |p: &Projected<_>| p.report.weighted_relative_error.unwrap_or(p.report.relative_error);
    let found = outcomes
        .iter()
        .filter(|outcome| outcome.name == name)
        .filter_map(|outcome| outcome.result.as_ref().ok());
    found.min_by(|a, b| error(a).total_cmp(&error(b)))
}

/// Why a family is missing from a table.
fn reason(error: &Error) -> String {
    match error {
        Error::Budget { minimum, .. } => format!("its smallest member needs {minimum}"),
        other => other.to_string(),
    }
}

fn print_tables(outcomes: &[Projection], names: &[String], all: bool) {
    let weighted =
        |o: &Projection| o.result.as_ref().is_ok_and(|p| p.report.weighted_relative_error.is_some());
    let weighted = outcomes.iter().any(weighted);
    let cells = |outcome: &Projection| match &outcome.result {
        Err(error) => {
            vec!["-".to_owned(), String::new(), String::new(), String::new(), String::new(), reason(error)]
        }
        Ok(Projected { report: r, .. }) => vec![
            r.params.to_string(),
            r.bytes.to_string(),
            format!("{:.4}", r.ratio),
            format!("{:.5}", r.relative_error),
            r.weighted_relative_error.map_or(String::new(), |e| format!("{e:.5}")),
            format!("{}, {} iterations, {:.2} s", r.guarantee, r.iterations, r.seconds),
        ],
    };
    let line = |first: String, outcome: &Projection| {
        let mut cells = cells(outcome);
        if !weighted {
            cells.remove(4);
        }
        [vec![first], cells].concat()
    };
    let header = |first: &'static str| {
        let mut header = vec![first, "params", "bytes", "ratio", "error", "weighted error", "how"];
        if !weighted {
            header.remove(5);
        }
        header
    };
    if !all {
        let rows: Vec<_> =
            outcomes.iter().map(|o| line(format!("{} ({})", o.name, o.structure), o)).collect();
        return print!("{}", cli::table(&header("tensor"), &rows));
    }
    for name in names {
        let rows: Vec<_> =
            outcomes.iter().filter(|o| o.name == *name).map(|o| line(o.structure.to_owned(), o)).collect();
        println!("\n{name}\n\n{}", cli::table(&header("structure"), &rows));
    }
}

/// Writes all outputs, or none.
fn write(args: &Args, input: &Checkpoint, outcomes: &[Projection]) -> Result<()> {
    let mut staged = Vec::new();
    let mut structured = Writer::new();
    let mut dense = Writer::new();
    for name in input.tensors() {
        if let Some(projected) = best(outcomes, name) {
            structured.structured(name, projected.matrix.as_ref())?;
            match input.is_f64(name) {
                true => dense.array(name, &projected.matrix.to_dense::<f64>())?,
                false => dense.array(name, &projected.matrix.to_dense::<f32>())?,
            }
        } else {
            structured.copy(input, name)?;
            dense.copy(input, name)?;
        }
    }
    for name in input.structured() {
        let matrix = input.load(name)?;
        structured.structured(name, matrix.as_ref())?;
        dense.array(name, &matrix.to_dense::<f32>())?;
    }
    if let Some(path) = &args.output {
        staged.push(structured.stage(path)?);
    }
    if let Some(path) = &args.dense_output {
        staged.push(dense.stage(path)?);
    }
    if let Some(path) = &args.json {
        let records = outcomes.iter().filter_map(|outcome| {
            outcome
                .result
                .as_ref()
                .ok()
                .map(|projected| Record { name: &outcome.name, report: &projected.report })
        });
        let mut text = serde_json::to_vec_pretty(&records.collect::<Vec<_>>())
            .map_err(|e| Error::File { path: path.clone(), reason: e.to_string() })?;
        text.push(b'\n');
        staged.push(Staged::new(path, [text.as_slice()])?);
    }
    staged.into_iter().try_for_each(Staged::commit)
}
