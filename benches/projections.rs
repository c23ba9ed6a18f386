//! Time of projecting a matrix of decaying spectrum onto every family at half the parameters, and of the dense products that projections are made of.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use structmat::linalg::{self, Threads};
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::registry::FAMILIES;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    Dense::random((rows, cols), &DenseSpec, Storage::F64, seed).expect("a size that fits").to_dense_f64()
}

fn products(c: &mut Criterion) {
    let (a, b, samples) = (random(1024, 1024, 1), random(1024, 1024, 2), random(4096, 1024, 3));
    let mut group = c.benchmark_group("f64, one thread");
    group.bench_function("1024x1024x1024", |bench| bench.iter(|| linalg::matmul(&a, &b, Threads::ONE)));
    group.bench_function("transposed", |bench| bench.iter(|| linalg::matmul_tn(&a, &b, Threads::ONE)));
    group.bench_function("gram 4096x1024", |bench| bench.iter(|| linalg::gram(&samples, Threads::ONE)));
    group.finish();
}

fn projections(c: &mut Criterion) {
    let n = 256;
    let noise = random(n, n, 1);
    let fading = Array2::from_shape_fn((n, n), |(i, j)| noise[[i, j]] / (1.0 + j as f64).sqrt());
    let w = fading.dot(&noise);
    let mut group = c.benchmark_group(format!("{n}x{n}"));
    for entry in FAMILIES {
        let request = Request::new().budget(Budget::Ratio(if entry.name == "dense" { 1.0 } else { 0.5 }));
        group.bench_function(entry.name, |b| {
            b.iter(|| entry.project(black_box(&w), &request, &Objective::Frobenius, &Options::default()));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(std::time::Duration::from_millis(100)).measurement_time(std::time::Duration::from_secs(1));
    targets = products, projections
}
criterion_main!(benches);
