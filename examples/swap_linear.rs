//! The MLP block of a transformer, dense and structured: swap the layers, compare outputs and time.
//!
//! ```text
//! cargo run --release --example swap_linear
//! cargo run --release --example swap_linear -- --input model.safetensors --up NAME --down NAME --structure monarch --ratio 0.5
//! ```

mod cli;

use clap::Parser;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use structmat::Result;
use structmat::io::Checkpoint;
use structmat::layers::Linear;
use structmat::ndarray::{Array1, Array2, ArrayRef2};
use structmat::prelude::*;
use structmat::registry;

/// Runs x + down(gelu(up(x))) with dense and with structured layers.
///
/// Without --input, on weights with a decaying spectrum as trained ones have.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Checkpoint with the two layers.
    #[arg(long, requires_all = ["up", "down"])]
    input: Option<PathBuf>,
    /// Name of the first layer, without `.weight`.
    #[arg(long)]
    up: Option<String>,
    /// Name of the second layer, without `.weight`.
    #[arg(long)]
    down: Option<String>,
    /// Family to swap in; repeatable.
    #[arg(long, default_values_t = ["low_rank".to_owned(), "monarch".to_owned(), "blast".to_owned()])]
    structure: Vec<String>,
    /// Parameters, as a fraction of the dense layers'.
    #[arg(long, default_value_t = 0.5)]
    ratio: f64,
    /// Storage of the factors.
    #[arg(long, default_value = "f32")]
    storage: Storage,
    /// Rows of the input.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Times the block is run.
    #[arg(long, default_value_t = 50)]
    runs: usize,
}

/// x + down(gelu(up(x))), with buffers that outlive the calls: the loop allocates nothing.
struct Mlp {
    up: Linear,
    down: Linear,
    hidden: Array2<f32>,
    exec: Exec<f32>,
}

impl Mlp {
    fn new(up: Linear, down: Linear, batch: usize) -> Self {
        let hidden = Array2::zeros((batch, up.out_features()));
        Self { up, down, hidden, exec: Exec::new() }
    }

    fn forward(&mut self, x: &ArrayRef2<f32>, y: &mut ArrayRef2<f32>) -> Result<()> {
        self.up.forward_into(x, &mut self.hidden, &mut self.exec)?;
        self.hidden.mapv_inplace(gelu);
        self.down.forward_into(&self.hidden, y, &mut self.exec)?;
        *y += x;
        Ok(())
    }
}

/// The tanh form of the Gaussian error linear unit.
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh())
}

fn main() -> ExitCode {
    let args = Args::parse();
    cli::run(|| Ok(swap(&args)?))
}

fn swap(args: &Args) -> Result<()> {
    let (up, down) = layers(args)?;
    let x = pseudo_random(args.batch, up.in_features(), 1).mapv(|v| v as f32);
    let mut y = Array2::zeros(x.dim());
    let mut dense = Mlp::new(up.clone(), down.clone(), args.batch);
    let dense_time = time(args.runs, &mut dense, &x, &mut y)?;
    let expected = y.clone();
    let mut rows = vec![vec![
        "dense".to_owned(),
        "1.0000".into(),
        "0".into(),
        "0".into(),
        format!("{:.1}", dense_time * 1e6),
        "1.00".into(),
    ]];
    for name in &args.structure {
        let mut mlp = Mlp::new(swapped(args, name, &up)?, swapped(args, name, &down)?, args.batch);
        let time = time(args.runs, &mut mlp, &x, &mut y)?;
        let params = mlp.up.weight().n_params() + mlp.down.weight().n_params();
        let all = up.weight().n_params() + down.weight().n_params();
        let weight_error = mlp.up.weight().relative_error(&up.weight().to_dense::<f64>())?;
        let difference =
            (&y - &expected).mapv(|v| v * v).sum().sqrt() / expected.mapv(|v| v * v).sum().sqrt();
        rows.push(vec![
            name.clone(),
            format!("{:.4}", params as f64 / all as f64),
            format!("{weight_error:.4}"),
            format!("{difference:.4}"),
            format!("{:.1}", time * 1e6),
            format!("{:.2}", dense_time / time),
        ]);
    }
    let header =
        ["layers", "parameters", "weight error (up)", "output difference", "us per block", "speed-up"];
    print!("{}", cli::table(&header, &rows));
    Ok(())
}

/// The dense layers: from the checkpoint, or made up.
fn layers(args: &Args) -> Result<(Linear, Linear)> {
    if let (Some(input), Some(up), Some(down)) = (&args.input, &args.up, &args.down) {
        let file = Checkpoint::open(input)?;
        return Ok((Linear::load(&file, up)?, Linear::load(&file, down)?));
    }
    let layer = |m, n, seed| {
        let w = decaying(m, n, seed);
        Linear::new(Box::new(Dense::new(&w)?), Some(&Array1::<f32>::zeros(m)))
    };
    Ok((layer(1536, 384, 2)?, layer(384, 1536, 3)?))
}

/// A weight of singular values that fall like `1 / sqrt(k)`: noise times a fading basis.
fn decaying(m: usize, n: usize, seed: u64) -> Array2<f32> {
    let mut left = pseudo_random(m, n.min(m), seed);
    for (k, mut column) in left.columns_mut().into_iter().enumerate() {
        column *= 1.0 / ((1.0 + k as f64) * m as f64).sqrt();
    }
    left.dot(&pseudo_random(m.min(n), n, seed + 10)).mapv(|v| v as f32)
}

/// Numbers of mean zero and variance one from a small linear congruential generator.
fn pseudo_random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 / (1u64 << 31) as f64 - 0.5) * 12f64.sqrt()
    })
}

fn swapped(args: &Args, name: &str, layer: &Linear) -> Result<Linear> {
    let request = Request::new().budget(Budget::Ratio(args.ratio));
    let options = Options { storage: args.storage, ..Options::default() };
    let w = layer.weight().to_dense::<f64>();
    let projected = registry::family(name)?.project(&w, &request, &Objective::Frobenius, &options)?;
    Linear::new(projected.matrix, layer.bias().map(|bias| &**bias))
}

/// Median time of a block, in seconds.
fn time(runs: usize, mlp: &mut Mlp, x: &ArrayRef2<f32>, y: &mut ArrayRef2<f32>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        mlp.forward(black_box(x), y)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(cli::median(&mut times))
}
