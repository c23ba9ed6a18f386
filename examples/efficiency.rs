//! Every family against the strongest dense product: time, speed-up, what the machine would allow, and how much of it is reached.
//!
//! ```text
//! cargo run --release --example efficiency -- --quick
//! cargo run --release --example efficiency -- --shapes 1024x1024,4096x4096 --batch 1,64 --threads 1,2 --markdown report.md
//! ```

mod cli;
#[path = "cli/dense.rs"]
mod dense;

use clap::Parser;
use serde::Serialize;
use std::collections::HashMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::Instant;
use structmat::io::Staged;
use structmat::kernels::{Level, roofline};
use structmat::ndarray::{Array2, linalg::general_mat_mul, s};
use structmat::prelude::*;
use structmat::registry::{Entry, FAMILIES, family};
use structmat::{Error, Result};

/// Compares products with structured matrices to the strongest dense product measured in the same run.
///
/// Every answer is checked before it is timed; candidates of a cell take turns, and medians are reported. Times at batch 1 come
/// in two regimes: warm (weights in cache) and cold (cycling through copies beyond four times the last-level cache).
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Small shapes, few rounds: a minute or two.
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
    /// Storage of the factors.
    #[arg(long, default_value = "f32")]
    storage: Storage,
    /// File to write the cells to.
    #[arg(long)]
    json: Option<PathBuf>,
    /// File to write the tables to.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

fn shape(text: &str) -> std::result::Result<(usize, usize), String> {
    let parse = |part: &str| part.trim().parse::<usize>().ok().filter(|n| *n > 0);
    let parts = text.split_once('x').and_then(|(m, n)| Some((parse(m)?, parse(n)?)));
    parts.ok_or_else(|| format!("`{text}`: expected OUTxIN, such as 1024x4096"))
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
struct Cell {
    structure: String,
    storage: Storage,
    #[serde(rename = "out")]
    out_features: usize,
    #[serde(rename = "in")]
    in_features: usize,
    /// Parameters as a fraction of the dense matrix's.
    ratio: f64,
    params: usize,
    /// Bytes that hold them.
    bytes: usize,
    /// Multiply-adds x 2 of the product.
    flops: u64,
    batch: usize,
    threads: usize,
    /// `warm`: the weights stay in cache; `cold`: they come from memory.
    regime: &'static str,
    /// Median time of a product.
    seconds: f64,
    /// Half the distance between the quartiles, as a fraction of the median.
    spread: f64,
    /// The strongest dense product of the cell.
    baseline: String,
    baseline_seconds: f64,
    /// Time of the baseline over this one's.
    speedup: f64,
    /// The same if both took the least time that the machine's limits allow.
    ideal: f64,
    /// What binds: `bytes` or `flops`.
    limit: &'static str,
    /// The least time that it allows.
    limit_seconds: f64,
    /// That over the time taken.
    efficiency: f64,
}

/// What the machine was measured to do.
struct Machine {
    /// Multiply-adds x 2 per second, by threads.
    peak: HashMap<usize, f64>,
    /// Bytes per second, by threads and the power of two at or above the size read.
    bandwidth: HashMap<(usize, usize), f64>,
}

impl Machine {
    fn new() -> Self {
        Self { peak: HashMap::new(), bandwidth: HashMap::new() }
    }

    fn peak(&mut self, threads: usize) -> f64 {
        *self.peak.entry(threads).or_insert_with(|| {
            together(threads, |_| {
                2.0 * black_box(roofline::multiply_adds(Level::detected(), 2_000_000)).0 as f64
            })
        })
    }

    /// Bandwidth of reading `bytes` again and again.
    fn bandwidth(&mut self, threads: usize, bytes: usize) -> f64 {
        let size = bytes.next_power_of_two().clamp(1 << 14, 1 << 28);
        *self.bandwidth.entry((threads, size)).or_insert_with(|| {
            let data = vec![1.0f32; size / 4];
            let passes = ((1 << 27) / size).max(1);
            let parts: Vec<&[f32]> = data.chunks(data.len().div_ceil(threads)).collect();
            together(threads, |k| {
                for _ in 0..passes {
                    black_box(roofline::read(Level::detected(), black_box(parts[k])));
                }
                (passes * size_of_val(parts[k])) as f64
            })
        })
    }

    /// The least seconds for reading `bytes` of weights and doing `flops`, and what binds.
    fn limit(&mut self, threads: usize, bytes: usize, flops: u64, cold: bool) -> (f64, &'static str) {
        let reading = bytes as f64 / self.bandwidth(threads, if cold { 1 << 28 } else { bytes });
        let computing = flops as f64 / self.peak(threads);
        if reading > computing { (reading, "bytes") } else { (computing, "flops") }
    }
}

/// What `threads` threads do together per second, each doing `work(k)`: nearly the best of seven rounds.
fn together(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    let start = Barrier::new(threads);
    let round = |k: usize| {
        start.wait();
        let begun = Instant::now();
        let done = work(k);
        (done, begun.elapsed().as_secs_f64())
    };
    let mut rates = [0.0; 7];
    for rate in &mut rates {
        let results: Vec<(f64, f64)> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|k| {
                    scope.spawn({
                        let round = &round;
                        move || round(k)
                    })
                })
                .collect();
            let own = round(0);
            others.into_iter().filter_map(|other| other.join().ok()).chain([own]).collect()
        });
        let slowest = results.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
        *rate = results.iter().map(|(done, _)| done).sum::<f64>() / slowest;
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() - 2]
}

/// The exact answer for an input.
type Expected = Box<dyn Fn(&Array2<f32>) -> Array2<f64>>;
/// Copy `k` of the matrix times an input, into the output.
type Product = Box<dyn FnMut(usize, &Array2<f32>, &mut Array2<f32>) -> Result<()>>;

/// Something that multiplies: copies of a structured matrix, or somebody else's dense product.
struct Candidate {
    name: String,
    storage: Storage,
    params: usize,
    bytes: usize,
    flops: u64,
    dense: bool,
    copies: usize,
    /// The answer to check against, given the input.
    expected: Expected,
    run: Product,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        args.shapes.retain(|(m, n)| m * n <= 1024 * 1024);
        args.batch.retain(|batch| *batch <= 64);
        args.ratios.truncate(1);
    }
    cli::run(|| measure(&args))
}

fn measure(args: &Args) -> cli::Outcome {
    for path in [&args.json, &args.markdown].into_iter().flatten() {
        Staged::new(path, [])?;
    }
    let entries: Vec<&Entry> = match args.structures.is_empty() {
        true => FAMILIES.iter().collect(),
        false => args.structures.iter().map(|name| family(name)).collect::<Result<_>>()?,
    };
    let all = rayon::current_num_threads();
    let mut threads: Vec<usize> =
        args.threads.iter().map(|&t| if t == 0 { all } else { t.min(all) }).collect();
    threads.dedup();
    let mut machine = Machine::new();
    let bar = cli::progress(args.shapes.len() * args.batch.len() * threads.len());
    let mut cells = Vec::new();
    let mut text = String::new();
    for &shape in &args.shapes {
        for &batch in &args.batch {
            for &threads in &threads {
                for cold in [false, true] {
                    if cold && (batch > 1 || args.quick) {
                        continue;
                    }
                    bar.set_message(format!("{}x{} batch {batch}, {threads} threads", shape.0, shape.1));
                    let rows = cell(args, &entries, shape, batch, threads, cold, &mut machine)?;
                    text += &section(&rows);
                    bar.suspend(|| print!("{}", section(&rows)));
                    cells.extend(rows);
                }
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let limits = limits(&machine);
    print!("{limits}");
    let mut staged = Vec::new();
    if let Some(path) = &args.markdown {
        staged.push(Staged::new(path, ["# Products\n".as_bytes(), text.as_bytes(), limits.as_bytes()])?);
    }
    if let Some(path) = &args.json {
        staged.push(Staged::new(path, [serde_json::to_vec_pretty(&cells)?.as_slice()])?);
    }
    Ok(staged.into_iter().try_for_each(Staged::commit)?)
}

/// The candidates of one cell, checked, then timed in turns.
fn cell(
    args: &Args,
    entries: &[&Entry],
    shape: (usize, usize),
    batch: usize,
    threads: usize,
    cold: bool,
    machine: &mut Machine,
) -> Result<Vec<Cell>> {
    let (m, n) = shape;
    let mut candidates = dense_candidates(shape, threads, cold)?;
    for entry in entries.iter().filter(|entry| entry.name != "dense") {
        let mut last = 0;
        for &ratio in &args.ratios {
            let matrix =
                match entry.random(shape, &Request::new().budget(Budget::Ratio(ratio)), args.storage, 1) {
                    Err(Error::Budget { .. }) => continue,
                    other => other?,
                };
            // Families of fixed size have one member for every budget.
            if std::mem::replace(&mut last, matrix.n_params()) != matrix.n_params() {
                candidates.push(structured(entry.name, matrix, args.storage, threads, cold));
            }
        }
    }
    let x = Array2::from_shape_fn((batch, n), |(i, j)| ((i * 31 + j * 17) % 23) as f32 / 11.0 - 1.0);
    let mut y = Array2::zeros((batch, m));
    let times = time_in_turns(&mut candidates, &x, &mut y, args.quick)?;
    let dense_limit = machine.limit(threads, 4 * m * n, 2 * (m * n * batch) as u64, cold).0;
    let dense = candidates.iter().zip(&times).filter(|(c, _)| c.dense);
    let (baseline, baseline_seconds) = dense
        .map(|(candidate, times)| (candidate.name.clone(), times[times.len() / 2]))
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or_default();
    let row = |(candidate, times): (&Candidate, &Vec<f64>)| {
        let seconds = times[times.len() / 2];
        let flops = candidate.flops * batch as u64;
        let (limit_seconds, limit) = machine.limit(threads, candidate.bytes, flops, cold);
        Cell {
            structure: candidate.name.clone(),
            storage: candidate.storage,
            out_features: m,
            in_features: n,
            ratio: candidate.params as f64 / (m * n) as f64,
            params: candidate.params,
            bytes: candidate.bytes,
            flops,
            batch,
            threads,
            regime: if cold { "cold" } else { "warm" },
            seconds,
            spread: (times[times.len() * 3 / 4] - times[times.len() / 4]) / (2.0 * seconds),
            baseline: baseline.clone(),
            baseline_seconds,
            speedup: baseline_seconds / seconds,
            ideal: dense_limit / limit_seconds,
            limit,
            limit_seconds,
            efficiency: limit_seconds / seconds,
        }
    };
    Ok(candidates.iter().zip(&times).map(row).collect())
}

/// How many copies of `bytes` exceed four times the last-level cache.
fn copies(bytes: usize, cold: bool) -> usize {
    let cache = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").ok();
    let cache = cache
        .and_then(|text| text.trim().strip_suffix('K')?.parse::<usize>().ok())
        .map_or(32 << 20, |k| k << 10);
    if cold { (4 * cache.min(64 << 20)).div_ceil(bytes.max(1)).max(2) } else { 1 }
}

fn structured(
    name: &str,
    matrix: Box<dyn StructuredMatrix>,
    storage: Storage,
    threads: usize,
    cold: bool,
) -> Candidate {
    let bytes = matrix.storage_bytes();
    let (params, flops) = (matrix.n_params(), matrix.flops(1));
    let reference = matrix.clone();
    let expected = Box::new(move |x: &Array2<f32>| x.mapv(f64::from).dot(&reference.to_dense_f64().t()));
    let matrices = vec![matrix; copies(bytes, cold)];
    let mut exec = if threads == 1 { Exec::new() } else { Exec::threads(threads) };
    let copies = matrices.len();
    let run = move |k: usize, x: &Array2<f32>, y: &mut Array2<f32>| {
        matrices[k].apply_into(x, y, Update::Overwrite, &mut exec)
    };
    Candidate {
        name: name.to_owned(),
        storage,
        params,
        bytes,
        flops,
        dense: false,
        copies,
        expected,
        run: Box::new(run),
    }
}

/// The dense products: this crate's, the `gemm` crate's (faer's), ndarray's.
fn dense_candidates((m, n): (usize, usize), threads: usize, cold: bool) -> Result<Vec<Candidate>> {
    let w = Array2::from_shape_fn((m, n), |(i, j)| ((i * 13 + j * 7) % 19) as f32 / 9.0 - 1.0);
    let reference = w.clone();
    let own = structured("dense (structmat)", Box::new(Dense::new(&w)?), Storage::F32, threads, cold);
    let copies = copies(4 * m * n, cold);
    let weights = vec![w; copies];
    let other = |name: &str, run: Product| Candidate {
        name: name.to_owned(),
        storage: Storage::F32,
        params: m * n,
        bytes: 4 * m * n,
        flops: 2 * (m * n) as u64,
        dense: true,
        copies,
        expected: {
            let w = reference.mapv(f64::from);
            Box::new(move |x| x.mapv(f64::from).dot(&w.t()))
        },
        run,
    };
    let (for_gemm, for_ndarray) = (weights.clone(), weights);
    let gemm = move |k: usize, x: &Array2<f32>, y: &mut Array2<f32>| {
        dense::gemm_crate(&for_gemm[k], x, y, threads);
        Ok(())
    };
    let ndarray = move |k: usize, x: &Array2<f32>, y: &mut Array2<f32>| {
        general_mat_mul(1.0, x, &for_ndarray[k].t(), 0.0, y);
        Ok(())
    };
    Ok(vec![
        Candidate { dense: true, ..own },
        other("dense (gemm)", Box::new(gemm)),
        other("dense (ndarray)", Box::new(ndarray)),
    ])
}

/// Sorted times of each candidate, in seconds per product.
fn time_in_turns(
    candidates: &mut [Candidate],
    x: &Array2<f32>,
    y: &mut Array2<f32>,
    quick: bool,
) -> Result<Vec<Vec<f64>>> {
    let rounds = if quick { 5 } else { 11 };
    let slice = if quick { 2e-3 } else { 1e-2 };
    let mut calls = Vec::new();
    for candidate in candidates.iter_mut() {
        (candidate.run)(0, x, y)?;
        // A few rows suffice to find a wrong product, and the dense formula of all of them takes minutes.
        let rows = x.nrows().min(4);
        let first = |a: &Array2<f32>| a.slice(s![..rows, ..]).to_owned();
        verify(&candidate.name, &first(y), &(candidate.expected)(&first(x)))?;
        let start = Instant::now();
        (candidate.run)(0, x, y)?;
        let once = start.elapsed().as_secs_f64().max(1e-7);
        calls.push(((slice / once) as usize).clamp(1, 100_000).next_multiple_of(candidate.copies));
    }
    let mut times = vec![Vec::new(); candidates.len()];
    for _ in 0..rounds {
        for ((candidate, calls), times) in candidates.iter_mut().zip(&calls).zip(&mut times) {
            let start = Instant::now();
            for k in 0..*calls {
                (candidate.run)(k % candidate.copies, black_box(x), y)?;
                black_box(&y);
            }
            times.push(start.elapsed().as_secs_f64() / *calls as f64);
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    Ok(times)
}

fn verify(name: &str, y: &Array2<f32>, expected: &Array2<f64>) -> Result<()> {
    let square = |a: &Array2<f64>| a.iter().map(|v| v * v).sum::<f64>();
    let error = (square(&(y.mapv(f64::from) - expected)) / square(expected)).sqrt();
    match error <= 1e-5 {
        true => Ok(()),
        false => Err(Error::Unsupported {
            structure: name.to_owned(),
            what: format!("wrong answer: off by {error:e}"),
        }),
    }
}

fn section(cells: &[Cell]) -> String {
    let Some(first) = cells.first() else { return String::new() };
    let header = ["structure", "ratio", "us", "spread", "speed-up", "ideal", "efficiency", "bound"];
    let row = |c: &Cell| {
        vec![
            c.structure.clone(),
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

fn limits(machine: &Machine) -> String {
    let mut text = "\n## Limits measured in this run\n\n".to_owned();
    let mut peaks: Vec<_> = machine.peak.iter().collect();
    peaks.sort_by_key(|(threads, _)| **threads);
    for (threads, peak) in peaks {
        text += &format!("- arithmetic, {threads} thread(s): {:.0} GFLOP/s\n", peak / 1e9);
    }
    let mut rates: Vec<_> = machine.bandwidth.iter().collect();
    rates.sort_by_key(|(key, _)| **key);
    for ((threads, size), rate) in rates {
        text += &format!("- reading {} KiB, {threads} thread(s): {:.0} GB/s\n", size >> 10, rate / 1e9);
    }
    text
}
