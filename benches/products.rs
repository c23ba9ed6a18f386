//! Products of every family at half the parameters, beside the strongest dense products, in one group per shape and batch.
//!
//! `cargo bench --bench products` runs the small shapes; set `STRUCTMAT_BENCH=full` for those of large models.
//! `cargo bench --bench products -- 1024x1024/1/` runs one group.

#[path = "../examples/cli/dense.rs"]
mod gemm_product;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use structmat::ndarray::{Array2, linalg::general_mat_mul};
use structmat::prelude::*;
use structmat::registry::FAMILIES;

fn shapes() -> Vec<(usize, usize)> {
    let mut shapes = vec![(384, 384), (1536, 384), (1024, 1024)];
    if std::env::var("STRUCTMAT_BENCH").is_ok_and(|value| value == "full") {
        shapes.extend([(4096, 4096), (11008, 4096)]);
    }
    shapes
}

fn products(c: &mut Criterion) {
    for (m, n) in shapes() {
        let w = Array2::from_shape_fn((m, n), |(i, j)| ((i * 13 + j * 7) % 19) as f32 / 9.0 - 1.0);
        let dense = Dense::new(&w).expect("finite");
        for batch in [1, 8, 64, 256] {
            let x = Array2::from_shape_fn((batch, n), |(i, j)| ((i * 31 + j * 17) % 23) as f32 / 11.0 - 1.0);
            let mut y = Array2::zeros((batch, m));
            let mut exec = Exec::new();
            let mut group = c.benchmark_group(format!("{m}x{n}/{batch}"));
            group.throughput(Throughput::Elements((2 * m * n * batch) as u64));
            group.bench_function("dense/structmat", |b| {
                b.iter(|| dense.apply_into(black_box(&x), &mut y, Update::Overwrite, &mut exec));
            });
            group.bench_function("dense/gemm", |b| {
                b.iter(|| gemm_product::gemm_crate(&w, black_box(&x), &mut y, 1))
            });
            group.bench_function("dense/ndarray", |b| {
                b.iter(|| general_mat_mul(1.0, black_box(&x), &w.t(), 0.0, &mut y));
            });
            for entry in FAMILIES.iter().filter(|entry| entry.name != "dense") {
                let request = Request::new().budget(Budget::Ratio(0.5));
                let Ok(matrix) = entry.random((m, n), &request, Storage::F32, 1) else { continue };
                check(matrix.as_ref(), &x);
                group.bench_function(
                    BenchmarkId::new(entry.name, format!("{:.3}", matrix.n_params() as f64 / (m * n) as f64)),
                    |b| {
                        b.iter(|| matrix.apply_into(black_box(&x), &mut y, Update::Overwrite, &mut exec));
                    },
                );
            }
            group.finish();
        }
    }
}

/// The answer is right before it is timed.
fn check(matrix: &dyn StructuredMatrix, x: &Array2<f32>) {
    let x = x.slice(structmat::ndarray::s![..1, ..]).to_owned();
    let expected = x.mapv(f64::from).dot(&matrix.to_dense_f64().t());
    let y = matrix.matmul(&x).expect("shapes fit").mapv(f64::from);
    let norm = |a: &Array2<f64>| a.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(norm(&(y - &expected)) <= 1e-5 * norm(&expected), "{} multiplies wrongly", matrix.name());
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(200)).measurement_time(std::time::Duration::from_millis(800));
    targets = products
}
criterion_main!(benches);
