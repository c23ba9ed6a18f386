//! Multiplies a batch by a matrix of a safetensors file, structured or dense.
//!
//! ```text
//! cargo run --release --example apply -- --input small.safetensors --tensor layer.weight --x x.safetensors --output y.safetensors
//! ```

mod cli;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use structmat::io::{Checkpoint, Staged, Writer};
use structmat::ndarray::{Array2, ArrayD};
use structmat::prelude::*;
use structmat::{Error, Result, Scalar};

/// Multiplies the tensor `x` (batch x in) of one file by a matrix of another, and writes `y` (batch x out).
///
/// Computes in double precision when `x` is F64, in single precision otherwise.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// File with the matrix.
    #[arg(long)]
    input: PathBuf,
    /// Name of the matrix.
    #[arg(long)]
    tensor: String,
    /// File with the tensor `x`.
    #[arg(long)]
    x: PathBuf,
    /// Multiply by the transpose: `x` is batch x out, `y` is batch x in.
    #[arg(long)]
    transpose: bool,
    /// Threads; 0 for all.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// File to write.
    #[arg(long)]
    output: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    cli::run(|| apply(&args))
}

fn apply(args: &Args) -> cli::Outcome {
    Staged::new(&args.output, [])?; // an output that cannot be written is better known now
    let file = Checkpoint::open(&args.input)?;
    let matrix: Box<dyn StructuredMatrix> = match file.structured().any(|name| name == args.tensor) {
        true => file.load(&args.tensor)?,
        false => Box::new(Dense::new(&file.matrix::<f64>(&args.tensor)?)?),
    };
    let inputs = Checkpoint::open(&args.x)?;
    let x: ArrayD<f64> = inputs.array("x")?;
    let mut writer = Writer::new();
    match inputs.is_f64("x") {
        true => writer.array("y", &multiply::<f64>(args, matrix.as_ref(), x)?)?,
        false => writer.array("y", &multiply::<f32>(args, matrix.as_ref(), x)?)?,
    }
    Ok(writer.write(&args.output)?)
}

fn multiply<T: Scalar>(args: &Args, matrix: &dyn StructuredMatrix, x: ArrayD<f64>) -> Result<Array2<T>> {
    let shape = match *x.shape() {
        [n] => (1, n),
        [batch, n] => (batch, n),
        _ => return Err(Error::shape("x (must have one or two axes)", &[1, matrix.shape().1], x.shape())),
    };
    let x = x
        .into_shape_with_order(shape)
        .map_err(|e| Error::parameter("x", "a tensor", e.to_string()))?
        .mapv(T::narrow);
    let mut exec = if args.threads == 1 { Exec::new() } else { Exec::threads(args.threads) };
    let (m, n) = matrix.shape();
    let mut y = Array2::zeros((x.nrows(), if args.transpose { n } else { m }));
    match args.transpose {
        true => matrix.apply_transpose_into(&x, &mut y, Update::Overwrite, &mut exec)?,
        false => matrix.apply_into(&x, &mut y, Update::Overwrite, &mut exec)?,
    }
    Ok(y)
}
