//! Trains the small model in `examples/data`: the weights on which the README's commands run.
//!
//! A character model of this project's own source text: it reads 12 characters and predicts the next one through two hidden
//! layers. Written with `ndarray` alone and seeded, so the same sources give the same weights on the same machine.
//!
//! ```text
//! cargo run --release --example train_sample
//! ```

mod cli;

use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use structmat::Result;
use structmat::io::Writer;
use structmat::ndarray::{Array1, Array2, Axis, Zip, s};
use structmat::prelude::*;

/// Trains a character model on the text of a folder, and writes its weights and the second moments of its layers' inputs.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Folder whose `.rs` and `.md` files are read.
    #[arg(long, default_value = ".")]
    text: PathBuf,
    /// Gradient steps.
    #[arg(long, default_value_t = 6000)]
    steps: usize,
    /// Seed of the weights and of the batches.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Weights to write.
    #[arg(long, default_value = "examples/data/sample.safetensors")]
    output: PathBuf,
    /// Second moments to write.
    #[arg(long, default_value = "examples/data/sample_gram.safetensors")]
    gram: PathBuf,
}

/// Characters read at a time.
const CONTEXT: usize = 12;
/// Numbers per character.
const EMBEDDING: usize = 16;
const HIDDEN: usize = 256;
/// Printable ASCII; everything else is one character more.
const CHARACTERS: usize = 96;
const BATCH: usize = 128;

fn main() -> ExitCode {
    let args = Args::parse();
    cli::run(|| {
        let mut text = Vec::new();
        for folder in ["src", "tests", "examples", "docs", "."] {
            read_text(&args.text.join(folder), &mut text)?;
        }
        if text.len() <= CONTEXT + 1 {
            return Err(format!("{}: no .rs or .md text found", args.text.display()).into());
        }
        Ok(train(&args, &text)?)
    })
}

/// The characters of a folder's sources, in the order of their paths; folders below `.` are not entered.
fn read_text(folder: &Path, text: &mut Vec<usize>) -> std::io::Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut paths: Vec<_> =
        entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && !folder.ends_with(".") {
            read_text(&path, text)?;
        } else if path.extension().is_some_and(|ext| ext == "rs" || ext == "md") {
            let code =
                |byte: u8| if (32..127).contains(&byte) { usize::from(byte) - 32 } else { CHARACTERS - 1 };
            text.extend(std::fs::read(path)?.into_iter().map(code));
        }
    }
    Ok(())
}

/// A parameter with the state of Adam.
struct Parameter {
    value: Array2<f32>,
    mean: Array2<f32>,
    square: Array2<f32>,
}

impl Parameter {
    fn new(rows: usize, cols: usize, scale: f32, rng: &mut ChaCha8Rng) -> Self {
        let mut uniform = || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5;
        let value = Array2::from_shape_simple_fn((rows, cols), || scale * 12f32.sqrt() * uniform());
        Self { mean: Array2::zeros(value.dim()), square: Array2::zeros(value.dim()), value }
    }

    fn step(&mut self, gradient: &Array2<f32>, step: usize, rate: f32) {
        let (a, b) = (0.9f32, 0.999f32);
        let correction = (1.0 - b.powi(step as i32 + 1)).sqrt() / (1.0 - a.powi(step as i32 + 1));
        Zip::from(&mut self.value).and(&mut self.mean).and(&mut self.square).and(gradient).for_each(
            |w, m, v, &g| {
                *m = a * *m + (1.0 - a) * g;
                *v = b * *v + (1.0 - b) * g * g;
                *w -= rate * (correction * *m / (v.sqrt() + 1e-8) + 1e-3 * *w);
            },
        );
    }
}

fn train(args: &Args, text: &[usize]) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let inputs = CONTEXT * EMBEDDING;
    let mut layer = |m: usize, n: usize| Parameter::new(m, n, (2.0 / n as f32).sqrt(), &mut rng);
    let (mut w1, mut w2, mut w3) = (layer(HIDDEN, inputs), layer(HIDDEN, HIDDEN), layer(CHARACTERS, HIDDEN));
    let mut embedding = layer(CHARACTERS, EMBEDDING);
    let zero = |n: usize, rng: &mut ChaCha8Rng| Parameter::new(1, n, 0.0, rng);
    let mut biases = [zero(HIDDEN, &mut rng), zero(HIDDEN, &mut rng), zero(CHARACTERS, &mut rng)];
    let (mut gram1, mut gram2) = (Gram::new(inputs), Gram::new(HIDDEN));
    let bar = cli::progress(args.steps);
    let mut average = (CHARACTERS as f32).ln();
    for step in 0..args.steps {
        let starts: Vec<usize> =
            (0..BATCH).map(|_| rng.next_u64() as usize % (text.len() - CONTEXT - 1)).collect();
        let mut x = Array2::zeros((BATCH, inputs));
        for (mut row, start) in x.outer_iter_mut().zip(&starts) {
            for (k, mut slot) in row.exact_chunks_mut(EMBEDDING).into_iter().enumerate() {
                slot.assign(&embedding.value.row(text[start + k]));
            }
        }
        let h1 = (x.dot(&w1.value.t()) + &biases[0].value).mapv(|v| v.max(0.0));
        let h2 = (h1.dot(&w2.value.t()) + &biases[1].value).mapv(|v| v.max(0.0));
        let mut g3 = h2.dot(&w3.value.t()) + &biases[2].value;
        let mut loss = 0.0;
        for (mut row, start) in g3.outer_iter_mut().zip(&starts) {
            let largest = row.fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            row.mapv_inplace(|v| (v - largest).exp());
            row /= row.sum();
            loss -= row[text[start + CONTEXT]].ln() / BATCH as f32;
            row[text[start + CONTEXT]] -= 1.0;
        }
        g3 /= BATCH as f32;
        let masked = |g: Array2<f32>, h: &Array2<f32>| g * h.mapv(|v| f32::from(u8::from(v > 0.0)));
        let g2 = masked(g3.dot(&w3.value), &h2);
        let g1 = masked(g2.dot(&w2.value), &h1);
        let gx = g1.dot(&w1.value);
        let mut ge = Array2::zeros(embedding.value.dim());
        for (row, start) in gx.outer_iter().zip(&starts) {
            for k in 0..CONTEXT {
                let mut slot = ge.row_mut(text[start + k]);
                slot += &row.slice(s![k * EMBEDDING..(k + 1) * EMBEDDING]);
            }
        }
        if step + 100 >= args.steps {
            gram1.accumulate(&x)?;
            gram2.accumulate(&h1)?;
        }
        let rate = 2e-3 * (1.0 - step as f32 / args.steps as f32);
        for ((weight, bias), (g, h)) in
            [&mut w1, &mut w2, &mut w3].into_iter().zip(&mut biases).zip([(&g1, &x), (&g2, &h1), (&g3, &h2)])
        {
            weight.step(&g.t().dot(h), step, rate);
            bias.step(&g.sum_axis(Axis(0)).insert_axis(Axis(0)), step, rate);
        }
        embedding.step(&ge, step, rate);
        average += 0.01 * (loss - average);
        bar.set_message(format!("loss {average:.3}"));
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{} characters, loss {average:.3} nats per character", text.len());

    let mut writer = Writer::new();
    writer.array("embedding.weight", &embedding.value)?;
    for (name, weight, bias) in
        [("hidden1", &w1, &biases[0]), ("hidden2", &w2, &biases[1]), ("output", &w3, &biases[2])]
    {
        writer.array(&format!("{name}.weight"), &weight.value)?;
        writer.array(&format!("{name}.bias"), &Array1::from_iter(bias.value.iter().copied()))?;
    }
    let mut grams = Writer::new();
    for (name, gram) in [("hidden1", gram1), ("hidden2", gram2)] {
        grams.array(&format!("{name}.weight"), &gram.second_moment().mapv(|v| v as f32))?;
    }
    let staged = [writer.stage(&args.output)?, grams.stage(&args.gram)?];
    staged.into_iter().try_for_each(|file| file.commit())
}
