//! What the projections of singular vectors take beside a full singular value decomposition by the strongest library at hand, in the same
//! run: time as a ratio, error beside that of the truncated decomposition of the same size.
//!
//! `cargo bench --bench against_svd` takes 1024 x 1024; set `STRUCTMAT_BENCH=full` for 4096 x 4096 as well (minutes).
//! Times are of the fit: measuring its error comes on top, for both. *Truncated SVD* is the decomposition alone, as the full one is;
//! the projections count their copy of the weight and their factors, too.
//! Weights are random with singular values `k^-0.68`. Medians of three runs (one for 4096 x 4096), in turns.

use std::time::Instant;
use structmat::linalg::{self, SvdOptions, Threads};
use structmat::ndarray::{Array2, ArrayView2, s};
use structmat::prelude::*;
use structmat::registry;

const DECAY: f64 = -0.68;

fn weight(n: usize) -> Array2<f64> {
    let orthogonal = |seed| {
        let noise = Dense::random((n, n), &DenseSpec, Storage::F64, seed).expect("a size that fits");
        linalg::qr(&noise.to_dense_f64()).q
    };
    let (mut left, right) = (orthogonal(1), orthogonal(2));
    for (k, mut column) in left.columns_mut().into_iter().enumerate() {
        column *= (1.0 + k as f64).powf(DECAY);
    }
    linalg::matmul_nt(&left, &right, Threads(2))
}

/// A full thin decomposition in single precision.
fn full(a: ArrayView2<'_, f64>) {
    let a = faer::Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[[i, j]] as f32);
    std::hint::black_box(a.thin_svd().expect("a finite matrix"));
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// What a method took and reached.
struct Outcome {
    seconds: f64,
    relative_error: f64,
    /// Rank of a low-rank matrix of the same size.
    rank: usize,
}

/// The best approximation of a rank, as orthogonal factors.
fn truncated(w: &Array2<f64>, rank: usize, threads: usize) -> Outcome {
    let start = Instant::now();
    let found =
        linalg::truncated_svd(w, rank, &SvdOptions::default(), Threads(threads)).expect("a finite matrix");
    let seconds = start.elapsed().as_secs_f64();
    let left = w - &found.svd.reconstruct(Threads(threads));
    let norm = |a: &Array2<f64>| a.iter().map(|x| x * x).sum::<f64>().sqrt();
    Outcome { seconds, relative_error: norm(&left) / norm(w), rank }
}

/// A member of a family.
fn projected(w: &Array2<f64>, family: &str, request: &Request, threads: usize) -> Outcome {
    let options = Options {
        parallelism: if threads > 1 { Parallelism::Threads(threads) } else { Parallelism::Seq },
        ..Options::default()
    };
    let entry = registry::family(family).expect("a registered family");
    let Projected { matrix, report, .. } =
        entry.project(w, request, &Objective::Frobenius, &options).expect("a budget that fits");
    let rank = matrix.n_params() / (2 * w.nrows());
    Outcome { seconds: report.seconds, relative_error: report.relative_error, rank }
}

/// Times both in turns and prints a row.
fn row(what: &str, (n, threads, runs): (usize, usize, usize), full: impl Fn(), ours: impl Fn() -> Outcome) {
    let (theirs, outcomes): (Vec<_>, Vec<_>) = (0..runs).map(|_| (seconds(&full), ours())).unzip();
    let Some(Outcome { relative_error, rank, .. }) = outcomes.last() else { return };
    let (theirs, ours) = (median(theirs), median(outcomes.iter().map(|outcome| outcome.seconds).collect()));
    let energy = |from: usize| (from..n).map(|k| (1.0 + k as f64).powf(2.0 * DECAY)).sum::<f64>();
    println!(
        "| {what} | {n} | {threads} | {theirs:.3} | {ours:.3} | {:.1} | {relative_error:.4} | {:.4} |",
        theirs / ours,
        (energy(*rank) / energy(0)).sqrt()
    );
}

fn main() {
    // `cargo test --benches` only asks whether it starts.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    println!("| projection | n | threads | full SVD, s | ours, s | ratio | error | SVD of the same size |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let large = std::env::var("STRUCTMAT_BENCH").is_ok_and(|value| value == "full");
    for n in if large { vec![1024, 4096] } else { vec![1024] } {
        let (w, runs) = (weight(n), if n > 1024 { 1 } else { 3 });
        let root = n.isqrt();
        for threads in [1, 2] {
            faer::set_global_parallelism(if threads > 1 {
                faer::Par::rayon(threads)
            } else {
                faer::Par::Seq
            });
            let (cell, single) = ((n, threads, runs), (n, threads, 1));
            row("truncated SVD, rank n / 8", cell, || full(w.view()), || truncated(&w, n / 8, threads));
            let rank = Request::new().with("rank", n / 8);
            row(
                "low_rank, rank n / 8",
                cell,
                || full(w.view()),
                || projected(&w, "low_rank", &rank, threads),
            );
            let each_block = || {
                for (i, j) in (0..root).flat_map(|i| (0..root).map(move |j| (i, j))) {
                    full(w.slice(s![i..;root, j * root..(j + 1) * root]));
                }
            };
            let blocks = Request::new().with("blocks", root).with("rank", 1);
            row("monarch, rank 1, against a full SVD per block", cell, each_block, || {
                projected(&w, "monarch", &blocks, threads)
            });
            if n > 1024 {
                continue;
            }
            for ratio in [0.5, 0.25] {
                let request = Request::new().with("blocks", 16).budget(Budget::Ratio(ratio));
                let what = format!("blast, 16 x 16 blocks, {ratio}");
                row(&what, single, || full(w.view()), || projected(&w, "blast", &request, threads));
            }
        }
    }
}
