//! What every projection promises: determinism, cancellation, progress, truthful reports; and the Gram accumulator.

mod common;

use common::{correlated_gram, difference, gaussian, singular_gram};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use structmat::Error;
use structmat::ndarray::{Array2, array};
use structmat::prelude::*;
use structmat::projection::Progress;
use structmat::registry::FAMILIES;

fn half() -> Request {
    Request::new().budget(Budget::Ratio(0.5))
}

/// Every family that has a member of half the size at this shape.
fn for_families(shape: (usize, usize), check: impl Fn(&'static structmat::registry::Entry)) {
    let mut count = 0;
    for entry in FAMILIES {
        if entry.random(shape, &half(), Storage::F32, 0).is_ok() {
            check(entry);
            count += 1;
        }
    }
    assert!(count >= 14, "{count}");
}

#[test]
fn the_same_seed_gives_the_same_matrix_and_threads_do_not_matter_much() {
    let (w, gram) = (gaussian(24, 32, 1), correlated_gram(32, 2));
    for_families(w.dim(), |entry| {
        for objective in [Objective::Frobenius, Objective::Activations(&gram)] {
            let run = |parallelism| {
                let options = Options { seed: 5, parallelism, max_iterations: Some(8), ..Options::default() };
                entry.project(&w, &half(), &objective, &options).unwrap()
            };
            let (a, b) = (run(Parallelism::Seq), run(Parallelism::Seq));
            assert_eq!(a.matrix.to_dense_f64(), b.matrix.to_dense_f64(), "{}", entry.name);
            let threaded = run(Parallelism::Threads(2)).report.relative_error;
            assert!((threaded - a.report.relative_error).abs() < 1e-6, "{}: {threaded}", entry.name);
        }
    });
}

#[test]
fn the_layout_of_a_weight_in_memory_does_not_matter() {
    let (w, gram) = (gaussian(24, 32, 1), correlated_gram(32, 2));
    let columns = w.t().as_standard_layout().into_owned();
    let columns = columns.t();
    assert!(!columns.is_standard_layout());
    for_families(w.dim(), |entry| {
        for objective in [Objective::Frobenius, Objective::Activations(&gram)] {
            let options = Options { max_iterations: Some(4), ..Options::default() };
            let of = |w: &structmat::ndarray::ArrayRef2<f64>| {
                entry.project(w, &half(), &objective, &options).unwrap().matrix.to_dense_f64()
            };
            assert_eq!(of(&columns), of(&w), "{}", entry.name);
        }
    });
}

#[test]
fn a_raised_flag_stops_every_projection() {
    let (w, flag) = (gaussian(16, 16, 1), AtomicBool::new(true));
    let options = Options { cancel: Some(&flag), ..Options::default() };
    for_families(w.dim(), |entry| {
        let result = entry.project(&w, &half(), &Objective::Frobenius, &options);
        assert!(matches!(result, Err(Error::Cancelled)), "{}", entry.name);
    });
}

#[test]
fn iterative_projections_report_progress_and_stop_in_the_middle() {
    let (w, gram) = (gaussian(24, 24, 3), correlated_gram(24, 4));
    let mut iterative = 0;
    for entry in FAMILIES.iter().filter(|entry| entry.random((24, 24), &half(), Storage::F32, 0).is_ok()) {
        let (seen, flag) = (Mutex::new(Vec::<Progress>::new()), AtomicBool::new(false));
        let progress = |p: Progress| {
            seen.lock().unwrap().push(p);
            if p.done == 2 {
                flag.store(true, Ordering::Relaxed);
            }
        };
        let options = Options { progress: Some(&progress), cancel: Some(&flag), ..Options::default() };
        let result = entry.project(&w, &half(), &Objective::Activations(&gram), &options);
        let seen = seen.lock().unwrap();
        assert!(
            seen.iter().all(|p| p.done <= p.total && p.error.is_none_or(f64::is_finite)),
            "{}",
            entry.name
        );
        if seen.iter().any(|p| p.done == 2) {
            assert!(matches!(result, Err(Error::Cancelled)), "{} went on", entry.name);
            iterative += 1;
        } else {
            assert!(result.is_ok(), "{}", entry.name);
        }
    }
    assert!(iterative >= 6, "{iterative}");
}

#[test]
fn reports_are_what_the_stored_matrix_measures() {
    let (w, gram) = (gaussian(20, 28, 5), correlated_gram(28, 6));
    let objective = Objective::Activations(&gram);
    for storage in [Storage::F32, Storage::Bf16, Storage::Int4] {
        let options = Options { storage, max_iterations: Some(10), ..Options::default() };
        for_families(w.dim(), |entry| {
            let Projected { matrix, report } = entry.project(&w, &half(), &objective, &options).unwrap();
            assert_eq!(
                (report.structure, report.shape, report.params, report.bytes, report.flops),
                (matrix.name(), matrix.shape(), matrix.n_params(), matrix.storage_bytes(), matrix.flops(1))
            );
            let dense = matrix.to_dense_f64();
            assert!((report.relative_error - difference(&dense, &w)).abs() < 1e-12, "{}", entry.name);
            let weighted = (objective.energy(&(&w - &dense)) / objective.energy(&w)).sqrt();
            assert!((report.weighted_relative_error.unwrap() - weighted).abs() < 1e-12, "{}", entry.name);
            assert!((report.ratio - report.params as f64 / 560.0).abs() < 1e-12 && report.seconds >= 0.0);
            // Remapping stores some of its numbers in fewer bits than asked for: that is what it is.
            let asked = |f: &Factor| {
                f.storage() == storage || entry.name == "remapped_low_rank" && f.bytes() < 2 * f.len()
            };
            assert!(matrix.parts().factors().all(|(_, f)| asked(f)), "{}", entry.name);
        });
    }
}

#[test]
fn zero_tiny_and_large_weights_are_no_special_case() {
    let gram = correlated_gram(16, 7);
    let exact = Options { storage: Storage::F64, max_iterations: Some(10), ..Options::default() };
    let w = gaussian(16, 16, 8);
    for_families(w.dim(), |entry| {
        for objective in [Objective::Frobenius, Objective::Activations(&gram)] {
            let zero = entry.project(&Array2::zeros((16, 16)), &half(), &objective, &exact).unwrap();
            assert_eq!(zero.report.relative_error, 0.0, "{}", entry.name);
            assert!(zero.matrix.to_dense_f64().iter().all(|v| *v == 0.0), "{}", entry.name);
        }
        let error = |scale: f64| {
            entry
                .project(&(&w * scale), &half(), &Objective::Frobenius, &exact)
                .unwrap()
                .report
                .relative_error
        };
        for scale in [1e-30, 1e30] {
            let (scaled, plain) = (error(scale), error(1.0));
            assert!(
                (scaled - plain).abs() < 1e-2 * plain,
                "{} at {scale:e}: {scaled} against {plain}",
                entry.name
            );
        }
    });
}

#[test]
fn a_gram_of_zeros_or_of_low_rank_is_accepted() {
    let w = gaussian(12, 16, 9);
    let zeros = Gram::from_second_moment(&Array2::<f64>::zeros((16, 16))).unwrap();
    for gram in [zeros, singular_gram(16, 1, 3), singular_gram(16, 5, 4)] {
        for_families(w.dim(), |entry| {
            let options = Options { max_iterations: Some(5), ..Options::default() };
            let p = entry.project(&w, &half(), &Objective::Activations(&gram), &options).unwrap();
            assert!(p.matrix.to_dense_f64().iter().all(|v| v.is_finite()), "{}", entry.name);
        });
    }
}

#[test]
fn gram_accumulates_merges_and_refuses() {
    let x = gaussian(40, 6, 1);
    let mut whole = Gram::new(6);
    whole.accumulate(&x).unwrap();
    let (mut first, mut second) = (Gram::new(6), Gram::new(6));
    for (i, row) in x.outer_iter().enumerate() {
        let row = row.insert_axis(structmat::ndarray::Axis(0)).to_owned();
        if i < 13 { first.accumulate(&row).unwrap() } else { second.accumulate(&row).unwrap() }
    }
    first.merge(&second).unwrap();
    assert_eq!((first.samples(), whole.samples(), whole.in_features()), (40.0, 40.0, 6));
    assert!(difference(first.second_moment(), whole.second_moment()) < 1e-13);
    assert!(difference(whole.second_moment(), &(x.t().dot(&x) / 40.0)) < 1e-13);
    let before = first.clone();
    assert!(matches!(first.accumulate(&Array2::<f64>::zeros((2, 5))), Err(Error::Shape { .. })));
    assert!(matches!(
        first.accumulate(&array![[f64::NAN, 0., 0., 0., 0., 0.]]),
        Err(Error::NonFinite { .. })
    ));
    assert!(matches!(first.merge(&Gram::new(7)), Err(Error::Shape { .. })));
    first.accumulate(&Array2::<f64>::zeros((0, 6))).unwrap();
    assert_eq!(first, before);
    assert!(matches!(Gram::from_second_moment(&Array2::<f64>::zeros((2, 3))), Err(Error::Shape { .. })));
    assert!(matches!(Gram::from_second_moment(&Array2::<f64>::zeros((0, 0))), Err(Error::Shape { .. })));
    assert!(matches!(
        Gram::from_second_moment(&array![[1.0, f64::NAN], [0.0, 1.0]]),
        Err(Error::NonFinite { .. })
    ));
    for bad in
        [array![[1.0, 0.5], [-0.5, 1.0]], array![[1.0, 2.0], [2.0, 1.0]], array![[1.0, 0.0], [0.0, -1.0]]]
    {
        assert!(matches!(Gram::from_second_moment(&bad), Err(Error::NotPositiveSemiDefinite(_))), "{bad}");
    }
}

#[test]
fn requests_say_what_is_wrong_and_what_was_expected() {
    let spec = |request: Request| LowRank::spec((8, 6), &request);
    let message = |request: Request| spec(request).unwrap_err().to_string();
    assert!(message(Request::new()).contains("rank"));
    assert!(message(Request::new().with("rank", 7)).contains("1 to 6"));
    assert!(message(Request::new().with("rank", "many")).contains("many"));
    let small = message(Request::new().budget(Budget::Params(13)));
    assert!(small.contains("13 parameters") && small.contains("14 parameters"), "{small}");
    assert!(message(Request::new().budget(Budget::Bytes(10))).contains("56 bytes"));
    assert_eq!(spec(Request::new().budget(Budget::Ratio(0.6))).unwrap().rank, 2);
    assert_eq!(spec(Request::new().budget(Budget::Ratio(100.0))).unwrap().rank, 6);
    // A byte budget counts scales: 8 + 8 x 2 bytes of u and 6 + 2 bytes of v at rank 1.
    let int8 = Request::new().storage(Storage::Int8).budget(Budget::Bytes(32));
    assert_eq!(spec(int8.clone()).unwrap().rank, 1);
    assert!(matches!(spec(int8.budget(Budget::Bytes(31))), Err(Error::Budget { .. })));
}

/// Weights of outputs over five orders of magnitude: fits that know them lose less under them, at odd shapes and in coarse storages too.
#[test]
fn weights_of_outputs_lower_the_error_that_they_weigh() {
    let mut fitted = Vec::new();
    for (m, n) in [(36, 24), (23, 31)] {
        let (w, gram) = (gaussian(m, n, 3), correlated_gram(n, 4));
        let weights: Vec<f64> = (0..m).map(|i| 10f64.powf(((7 * i) % 11) as f64 / 2.0 - 3.0)).collect();
        for gram in [None, Some(&gram)] {
            let plain = gram.map_or(Objective::Frobenius, Objective::Activations);
            let objective = Objective::Outputs { gram, weights: &weights };
            for storage in [Storage::F64, Storage::Int8] {
                let options = Options { storage, ..Options::default() };
                for entry in FAMILIES {
                    let request = Request::new().budget(Budget::Ratio(0.6));
                    let with = match entry.project(&w, &request, &objective, &options) {
                        Err(Error::Budget { .. } | Error::Unsupported { .. }) => continue,
                        found => found.unwrap(),
                    };
                    let without = entry.project(&w, &request, &plain, &options).unwrap();
                    let error = |found: &Projected<Box<dyn StructuredMatrix>>| {
                        objective.energy(&(&w - &found.matrix.to_dense_f64()))
                    };
                    let (with_error, without_error) = (error(&with), error(&without));
                    // The entries of a block are its projection, whatever they weigh.
                    let same =
                        entry.name == "block_diagonal" && (with_error / without_error - 1.0).abs() < 1e-9;
                    assert!(
                        with_error < without_error || same,
                        "{} {storage}: {with_error} {without_error}",
                        entry.name
                    );
                    // Windows are part of the fit: sizes differ within the budget.
                    let sizes = (with.matrix.storage_bytes(), without.matrix.storage_bytes());
                    assert!(sizes.0 == sizes.1 || entry.name == "gblr", "{}: {sizes:?}", entry.name);
                    let relative = (with_error / objective.energy(&w)).sqrt();
                    assert!((with.report.weighted_relative_error.unwrap() - relative).abs() < 1e-9);
                    fitted.push(entry.name);
                }
            }
        }
    }
    fitted.sort();
    fitted.dedup();
    let closed = [
        "blast",
        "block_diagonal",
        "block_low_rank",
        "column_sparse",
        "gblr",
        "low_rank",
        "low_rank_columns",
        "monarch",
        "remapped_low_rank",
        "sparse",
        "sparse_low_rank",
    ];
    assert_eq!(fitted, closed);
}

#[test]
fn weighted_outputs_are_met_by_the_best_low_rank_matrix() {
    let w = gaussian(12, 9, 1);
    let weights: Vec<f64> = (0..12).map(|i| f64::from(1 + i) / 5.0).collect();
    let objective = Objective::Outputs { gram: None, weights: &weights };
    let options = Options { storage: Storage::F64, ..Options::default() };
    let spec = LowRankSpec { rank: 4, ..Default::default() };
    let found = LowRank::project(&w, &spec, &objective, &options).unwrap();
    let scaled = Array2::from_shape_fn(w.dim(), |(i, j)| weights[i].sqrt() * w[[i, j]]);
    let tail: f64 = structmat::linalg::singular_values(&scaled, structmat::linalg::Threads::ONE).unwrap()
        [4..]
        .iter()
        .map(|s| s * s)
        .sum();
    let error = objective.energy(&(&w - &found.matrix.to_dense_f64()));
    assert!((error / tail - 1.0).abs() < 1e-9 && found.report.guarantee == Guarantee::GlobalOptimum);
    for weights in [vec![1.0; 11], vec![0.0; 12], vec![f64::NAN; 12], vec![-1.0; 12]] {
        let objective = Objective::Outputs { gram: None, weights: &weights };
        let error = LowRank::project(&w, &spec, &objective, &options).unwrap_err();
        assert!(matches!(error, Error::Shape { .. } | Error::Parameter { .. }), "{error}");
    }
    let objective = Objective::Outputs { gram: None, weights: &weights };
    let error = Circulant::project(&w, &CirculantSpec, &objective, &options).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

/// Rounding column after column, each after the errors of those before it were moved onto it ("GPTQ", 2023).
#[test]
fn codes_make_up_for_each_other_on_what_the_inputs_are() {
    let (w, gram) = (gaussian(48, 160, 1), correlated_gram(160, 2));
    let weights: Vec<f64> = (0..48).map(|i| 0.1 + i as f64).collect();
    for (name, ratio) in [("dense", 1.0), ("low_rank", 0.6)] {
        let entry = structmat::registry::family(name).unwrap();
        let request = Request::new().budget(Budget::Ratio(ratio));
        for objective in
            [Objective::Activations(&gram), Objective::Outputs { gram: Some(&gram), weights: &weights }]
        {
            let project = |storage| {
                let options = Options { storage, ..Options::default() };
                entry.project(&w, &request, &objective, &options).unwrap()
            };
            let exact = project(Storage::F64);
            let lost = |matrix: &dyn StructuredMatrix| {
                let by = |m: &dyn StructuredMatrix| objective.energy(&(&w - &m.to_dense_f64()));
                by(matrix) - by(exact.matrix.as_ref())
            };
            for storage in [Storage::Int8, Storage::Int4] {
                let (seen, nearest) = (project(storage), exact.matrix.to_storage(storage).unwrap());
                assert_eq!(seen.report.bytes, nearest.storage_bytes());
                let (seen, nearest) = (lost(seen.matrix.as_ref()), lost(nearest.as_ref()));
                assert!(seen < 0.7 * nearest, "{name} {storage}: {seen} against {nearest}");
            }
        }
    }
}

/// Where inputs show nothing, or next to nothing, codes are rounded to nearest.
#[test]
fn codes_of_what_inputs_do_not_show() {
    let w = gaussian(12, 40, 1);
    let mut thin = Array2::<f64>::zeros((40, 40));
    thin[[3, 3]] = 1e-300;
    for c in [Array2::zeros((40, 40)), thin] {
        let gram = Gram::from_second_moment(&c).unwrap();
        for (name, ratio) in [("dense", 1.0), ("low_rank", 0.8)] {
            let entry = structmat::registry::family(name).unwrap();
            for storage in [Storage::Int8, Storage::Int4] {
                let options = Options { storage, ..Options::default() };
                let request = Request::new().budget(Budget::Ratio(ratio));
                let found = entry.project(&w, &request, &Objective::Activations(&gram), &options).unwrap();
                assert!(found.matrix.to_dense_f64().iter().all(|v| v.is_finite()), "{name} {storage}");
            }
        }
    }
}
