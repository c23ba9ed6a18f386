//! Sentence embeddings of a transformer from token ids, with its matrices dense or compressed, and how well they agree with gold scores.
//!
//! ```text
//! cargo run --release --example sentence_embedding -- --model model.safetensors --tokens tokens.safetensors
//! cargo run --release --example sentence_embedding -- --model model.safetensors --tokens tokens.safetensors \
//!     --compressed small.safetensors --pairs pairs.tsv
//! ```

mod cli;

use clap::Parser;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use structmat::io::{Checkpoint, Staged, Writer};
use structmat::models::{Tokens, Transformer};
use structmat::ndarray::{Array2, Axis, concatenate};
use structmat::prelude::*;
use structmat::{Error, Result};

/// Runs a transformer over sentences: the mean of each sentence's last hidden states, of length 1.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The model: a safetensors file, an index (.json) of several, or a folder with either.
    #[arg(long)]
    model: PathBuf,
    /// Sentences: a safetensors file with the integer tensors `input_ids` (end to end) and `offsets` (one more than sentences).
    #[arg(long)]
    tokens: PathBuf,
    /// Description of the model: `all-minilm-l6-v2`, or a JSON file (a `config.json`, or one that `Architecture::save` has written).
    /// Without it, the `config.json` beside the model, or what fits of the shipped ones.
    #[arg(long)]
    architecture: Option<String>,
    /// File with matrices, structured or dense, that replace those of the same names in the model's blocks.
    #[arg(long)]
    compressed: Option<PathBuf>,
    /// Tab-separated file with a gold score in the first column of each line: that of sentences 2 i and 2 i + 1 in line i.
    #[arg(long)]
    pairs: Option<PathBuf>,
    /// File to write the tensor `embeddings` (sentences x hidden) to.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Tokens computed with at once.
    #[arg(long, default_value_t = 1024)]
    batch: usize,
    /// Threads; 0 for all.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    cli::run(|| embed(&args))
}

fn embed(args: &Args) -> cli::Outcome {
    args.output.as_ref().map(|path| Staged::new(path, [])).transpose()?; // an output that cannot be written is better known now
    let tokens = Tokens::load(&Checkpoint::open(&args.tokens)?)?;
    let gold = args.pairs.as_ref().map(|path| gold_scores(path, tokens.n_sequences())).transpose()?;
    let mut model = Transformer::load(cli::model(&args.model, args.architecture.as_deref())?)?;
    if let Some(path) = &args.compressed {
        replace(&mut model, path)?;
    }
    print_sizes(&model);

    let mut exec = if args.threads == 1 { Exec::new() } else { Exec::threads(args.threads) };
    let bar = cli::progress(tokens.n_sequences());
    let start = Instant::now();
    let mut batches = Vec::new();
    for batch in tokens.batches(args.batch) {
        batches.push(model.forward(&batch, &mut exec, &mut ())?.sentence_embeddings());
        bar.inc(batch.n_sequences() as u64);
    }
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let views: Vec<_> = batches.iter().map(|batch| batch.view()).collect();
    let embeddings = concatenate(Axis(0), &views)?;

    let (sentences, n) = embeddings.dim();
    println!("{sentences} sentences, {} tokens -> {sentences} x {n} in {seconds:.2} s", tokens.ids().len());
    for (i, row) in embeddings.outer_iter().take(3).enumerate() {
        let first: Vec<String> = row.iter().take(6).map(|v| format!("{v:.5}")).collect();
        println!("sentence {i}: {} ...", first.join(" "));
    }
    if let Some(gold) = gold {
        println!(
            "Spearman correlation over {} pairs: {:.4}",
            gold.len(),
            spearman(&cosines(&embeddings), &gold)
        );
    }
    if let Some(path) = &args.output {
        let mut writer = Writer::new();
        writer.array("embeddings", &embeddings)?;
        writer.write(path)?;
    }
    Ok(())
}

/// Puts the matrices of a file in the places of the same names.
fn replace(model: &mut Transformer, path: &Path) -> Result<()> {
    let file = Checkpoint::open(path)?;
    let sites: BTreeSet<String> = model.model().sites().into_iter().map(|site| site.name).collect();
    let mut replaced = 0;
    for name in file.structured() {
        model.replace_weight(name, file.load(name)?)?;
        replaced += 1;
    }
    for name in file.tensors().filter(|name| sites.contains(*name)) {
        model.replace_weight(name, Box::new(Dense::new(&file.matrix::<f32>(name)?)?))?;
        replaced += 1;
    }
    if replaced == 0 {
        let reason =
            format!("holds no matrix of the model's blocks, such as `{}`", sites.first().map_or("", |s| s));
        return Err(Error::File { path: path.to_owned(), reason });
    }
    Ok(())
}

fn print_sizes(model: &Transformer) {
    let (mut params, mut dense) = (0, 0);
    for block in model.blocks() {
        for site in block.sites() {
            dense += site.shape.0 * site.shape.1;
            params += block.linear(&site.name).map_or(0, |linear| linear.weight().n_params());
        }
    }
    let percent = 100.0 * params as f64 / dense.max(1) as f64;
    println!(
        "{} blocks, {params} parameters in their matrices ({percent:.1} % of dense)",
        model.blocks().len()
    );
}

/// The first column; a first line that is no number is a header.
fn gold_scores(path: &Path, sentences: usize) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let mut scores = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match line.split('\t').next().unwrap_or("").trim().parse::<f64>() {
            Ok(score) if score.is_finite() => scores.push(score),
            _ if number == 0 => {}
            _ => {
                let reason = format!("line {}: expected a score and a tab", number + 1);
                return Err(Error::File { path: path.to_owned(), reason });
            }
        }
    }
    if scores.len() * 2 != sentences || scores.len() < 2 {
        let reason =
            format!("has {} pairs, expected half as many as there are sentences, {sentences}", scores.len());
        return Err(Error::File { path: path.to_owned(), reason });
    }
    Ok(scores)
}

/// Of each pair of rows of length 1.
fn cosines(embeddings: &Array2<f32>) -> Vec<f64> {
    let dot = |a, b| -> f64 {
        let (a, b) = (embeddings.row(a), embeddings.row(b));
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    (0..embeddings.nrows() / 2).map(|i| dot(2 * i, 2 * i + 1)).collect()
}

/// Pearson's correlation of the ranks.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for tied in order.chunk_by(|i, j| values[*i] == values[*j]) {
        let mean = first as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|i| ranks[*i] = mean);
        first += tied.len();
    }
    ranks
}
