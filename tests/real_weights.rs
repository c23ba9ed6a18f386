//! Every family on trained weights, with what their layer really saw: the sample model of `examples/data`.

mod common;

use common::{falls, weighted_energy};
use structmat::Error;
use structmat::io::Checkpoint;
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::registry::FAMILIES;

fn sample(name: &str) -> (Array2<f64>, Gram) {
    let open = |file: &str| {
        Checkpoint::open(format!("{}/examples/data/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let w = open("sample.safetensors").matrix::<f64>(name).unwrap();
    let c = open("sample_gram.safetensors").matrix::<f64>(name).unwrap();
    (w, Gram::from_second_moment(&c).unwrap())
}

#[test]
fn activations_lower_the_weighted_error_of_every_family() {
    let (w, gram) = sample("hidden1.weight");
    let options = Options { storage: Storage::F64, ..Options::default() };
    let request = Request::new().budget(Budget::Ratio(0.3));
    let mut tried = 0;
    for entry in FAMILIES {
        let plain = match entry.project(&w, &request, &Objective::Frobenius, &options) {
            Err(Error::Budget { .. }) => continue,
            other => other.unwrap(),
        };
        let weighted = entry.project(&w, &request, &Objective::Activations(&gram), &options).unwrap();
        let (a, b) = (
            weighted_energy(&w, weighted.matrix.as_ref(), &gram),
            weighted_energy(&w, plain.matrix.as_ref(), &gram),
        );
        assert!(a < b, "{}: {a} with activations, {b} without", entry.name);
        assert!(falls(&plain.report.history) && falls(&weighted.report.history), "{}", entry.name);
        assert!(plain.report.relative_error < 1.0 && plain.report.ratio <= 0.3);
        tried += 1;
    }
    assert!(tried >= 18, "{tried} families");
}

#[test]
fn errors_do_not_rise_with_the_budget() {
    let (w, _) = sample("hidden2.weight");
    for entry in FAMILIES {
        let mut last = f64::INFINITY;
        for ratio in [0.1, 0.25, 0.5] {
            let request = Request::new().budget(Budget::Ratio(ratio));
            let options = Options { max_iterations: Some(10), ..Options::default() };
            match entry.project(&w, &request, &Objective::Frobenius, &options) {
                Err(Error::Budget { .. }) => continue,
                other => {
                    let error = other.unwrap().report.relative_error;
                    assert!(error <= last * (1.0 + 1e-6), "{} at {ratio}: {error} after {last}", entry.name);
                    last = error;
                }
            }
        }
    }
}

#[test]
fn blast_is_never_worse_than_what_it_contains() {
    let (w, _) = sample("hidden1.weight");
    let options = Options { storage: Storage::F64, ..Options::default() };
    let run = |name: &str, parameters: &[(&str, &str)]| {
        let request =
            parameters.iter().fold(Request::new(), |r, (k, v)| r.with(*k, v)).budget(Budget::Ratio(4.0));
        let entry = structmat::registry::family(name).unwrap();
        entry.project(&w, &request, &Objective::Frobenius, &options).unwrap().report.relative_error
    };
    for (blocks, rank, block_rank) in [("4", "24", "6"), ("2", "17", "8"), ("8", "16", "2")] {
        let blast = run("blast", &[("blocks", blocks), ("rank", rank)]);
        assert!(blast <= run("low_rank", &[("rank", rank)]));
        assert!(blast <= run("block_low_rank", &[("blocks", blocks), ("rank", block_rank)]));
    }
}

#[test]
fn storage_costs_little_accuracy() {
    let (w, _) = sample("hidden1.weight");
    let spec = LowRank::for_budget(w.dim(), Budget::Ratio(0.5)).unwrap();
    let error = |storage| {
        let options = Options { storage, ..Options::default() };
        LowRank::project(&w, &spec, &Objective::Frobenius, &options).unwrap().report.relative_error
    };
    let exact = error(Storage::F64);
    assert!((error(Storage::F32) - exact).abs() < 1e-6);
    for (storage, more) in
        [(Storage::F16, 1.001), (Storage::Bf16, 1.001), (Storage::Int8, 1.01), (Storage::Int4, 1.5)]
    {
        assert!(error(storage) < more * exact + 1e-9, "{storage}: {} against {exact}", error(storage));
    }
}
