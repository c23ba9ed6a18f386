//! Time of projecting a matrix of decaying spectrum onto every family at half the parameters.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::registry::FAMILIES;

fn projections(c: &mut Criterion) {
    let n = 256;
    let noise = Dense::random((n, n), &DenseSpec, Storage::F64, 1).expect("a size that fits").to_dense_f64();
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
    targets = projections
}
criterion_main!(benches);
