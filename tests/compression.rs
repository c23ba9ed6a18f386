//! Whole models: budgets kept, work resumed and shared, files of one and of several pieces, wrong input.

mod common;

use common::difference;
use common::tiny::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use structmat::Error;
use structmat::compression::*;
use structmat::io::{Checkpoint, Source};
use structmat::models::*;
use structmat::prelude::*;

struct Setup {
    folder: tempfile::TempDir,
    tokens: Tokens,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sequences: Vec<Vec<u32>> = (0..40)
            .map(|i| (0..3 + i % 9).map(|j| (7 * i * i + 11 * j * j * i + j) % 50).collect())
            .collect();
        Self { folder, tokens: Tokens::from_sequences(sequences).unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self, llama: bool) -> Model {
        let path = self.path("model.safetensors");
        let (architecture, weights) = match llama {
            false => (Architecture::bert(BERT), bert_weights(&BERT)),
            true => (Architecture::llama(LLAMA), llama_weights(&LLAMA)),
        };
        write(&weights, &path);
        Model::new(architecture, Arc::new(Checkpoint::open(path).unwrap())).unwrap()
    }

    fn compressor<'a>(
        &'a self,
        model: &'a Model,
        settings: Settings,
        work: &str,
    ) -> structmat::Result<Compressor<'a>> {
        Compressor::new(model, &self.tokens, settings, Parallelism::Seq, self.path(work))
    }

    /// Relative error of the last hidden states on the calibration tokens.
    fn error(&self, model: &Model, path: &Path) -> f64 {
        let run = |model: Model| {
            let model = Transformer::load(model).unwrap();
            model.forward(&self.tokens, &mut Exec::new(), &mut ()).unwrap().into_values()
        };
        let small = Model::new(model.architecture().clone(), structmat::io::open(path).unwrap()).unwrap();
        difference(&run(small), &run(model.clone()).mapv(f64::from))
    }
}

fn settings(budget: ModelBudget) -> Settings {
    Settings::new(budget, &["low_rank", "sparse", "dense"], &[Storage::F32]).unwrap()
}

fn ignore(_: Event<'_>) {}

#[test]
fn budgets_are_kept_and_larger_ones_lose_less() {
    let setup = Setup::new();
    for llama in [false, true] {
        let model = setup.model(llama);
        let mut before = f64::INFINITY;
        for (k, ratio) in [0.3, 0.6, 0.9, 1.0].into_iter().enumerate() {
            let work = format!("work-{llama}-{k}");
            let found = setup.compressor(&model, settings(ModelBudget::Params(ratio)), &work).unwrap();
            let found = found.run(&mut ignore).unwrap();
            let dense: usize = model.sites().iter().map(|site| site.shape.0 * site.shape.1).sum();
            assert!(
                found.plan.params() as f64 <= ratio * dense as f64 && found.params() <= found.plan.params()
            );
            assert!(found.plan.bound.unwrap() <= found.plan.cost + 1e-12);
            let path = setup.path("small.safetensors");
            found.write(&path).unwrap();
            let error = setup.error(&model, &path);
            assert!(error < before, "{llama} {ratio}: {error} after {before}");
            before = error;
            // What is written is what was planned, and the rest of the model is there.
            let file = Checkpoint::open(&path).unwrap();
            for choice in &found.plan.choices {
                let matrix = file.load(&choice.name).unwrap();
                assert_eq!(matrix.name(), choice.variant.structure);
                assert!(matrix.n_params() <= choice.params);
            }
            assert_eq!(file.names().unwrap(), model.source().names().unwrap());
        }
        assert!(before < 1e-5, "all of the budget loses nothing: {before}");
    }
}

#[test]
fn bytes_buy_coarse_storages() {
    let setup = Setup::new();
    let model = setup.model(false);
    let storages = [Storage::F32, Storage::Int8, Storage::Int4];
    let dense: usize = model.sites().iter().map(|site| 4 * site.shape.0 * site.shape.1).sum();
    for fraction in [0.15, 0.2, 0.3] {
        let settings =
            Settings::new(ModelBudget::Bytes(fraction), &["low_rank", "dense"], &storages).unwrap();
        let compressor = setup.compressor(&model, settings, &format!("work-{fraction}")).unwrap();
        let found = compressor.run(&mut ignore).unwrap();
        // Codes have scales, so that bytes are no multiple of numbers: the plan knows what the fit will take.
        assert!(found.plan.bytes() as f64 <= fraction * dense as f64);
        assert_eq!(found.bytes(), found.plan.bytes());
        assert!(found.plan.choices.iter().any(|choice| choice.variant.storage != Storage::F32));
        found.write(setup.path("small.safetensors")).unwrap();
    }
    assert!(setup.error(&model, &setup.path("small.safetensors")) < 0.05);
}

#[test]
fn fitting_in_sequence_and_biases_lose_less() {
    let setup = Setup::new();
    let model = setup.model(false);
    let mut errors = Vec::new();
    for (k, (sequential, bias)) in [(false, false), (false, true), (true, true)].into_iter().enumerate() {
        let settings = Settings { sequential, bias, ..settings(ModelBudget::Params(0.5)) };
        let found = setup.compressor(&model, settings, &format!("work-{k}")).unwrap();
        found.run(&mut ignore).unwrap().write(setup.path("small.safetensors")).unwrap();
        errors.push(setup.error(&model, &setup.path("small.safetensors")));
    }
    assert!(errors[1] < errors[0] && errors[2] < errors[1], "{errors:?}");
}

/// On the calibration tokens and on others, in the storages that a refinement rounds to.
#[test]
fn refining_blocks_loses_less() {
    let mut setup = Setup::new();
    setup.tokens = setup.tokens.spliced(400, 1);
    for (llama, storage) in [(false, Storage::F32), (true, Storage::F32), (false, Storage::Int8)] {
        let model = setup.model(llama);
        let plain = Settings::new(ModelBudget::Params(0.5), &["low_rank", "monarch"], &[storage]).unwrap();
        let refinement = Some(Refinement { epochs: 12, rate: 0.01, batch: 64, held_out: 4 });
        let mut errors = Vec::new();
        for (k, settings) in [plain.clone(), Settings { refinement, ..plain }].into_iter().enumerate() {
            let work = format!("{llama}-{storage}-{k}");
            let found = setup.compressor(&model, settings, &work).unwrap().run(&mut ignore).unwrap();
            assert_eq!(found.fitted.iter().filter(|block| block.refined.is_some()).count(), 2 * k);
            for refined in found.fitted.iter().filter_map(|block| block.refined) {
                assert!(refined.after < refined.before && refined.epochs > 0, "{refined:?}");
            }
            found.write(setup.path("small.safetensors")).unwrap();
            let file = Checkpoint::open(setup.path("small.safetensors")).unwrap();
            for matrix in found.matrices() {
                let written = file.load(&matrix.name).unwrap();
                assert_eq!((written.n_params(), written.storage_bytes()), (matrix.params, matrix.bytes));
            }
            errors.push(setup.error(&model, &setup.path("small.safetensors")));
        }
        assert!(errors[1] < 0.9 * errors[0], "{llama} {storage}: {errors:?}");
    }
}

#[test]
fn a_refined_model_is_the_same_after_an_interruption() {
    let setup = Setup::new();
    let model = setup.model(false);
    let refinement = Some(Refinement { epochs: 2, ..Refinement::default() });
    // Seeds of later blocks follow the largest one.
    let settings = Settings { refinement, seed: u64::MAX, ..settings(ModelBudget::Params(0.5)) };
    for (name, cut) in [("whole", false), ("part", true)] {
        setup.compressor(&model, settings.clone(), name).unwrap().run(&mut ignore).unwrap();
        if cut {
            std::fs::remove_file(setup.path("part/block-001.json")).unwrap();
            setup.compressor(&model, settings.clone(), name).unwrap().run(&mut ignore).unwrap();
        }
    }
    let bytes = |name: &str| std::fs::read(setup.path(name)).unwrap();
    assert!(bytes("whole/block-001.safetensors") == bytes("part/block-001.safetensors"));
}

/// A matrix whose outputs nothing reads gets as little as there is, and another one what that frees.
#[test]
fn sensitivities_find_what_the_result_does_not_depend_on() {
    let setup = Setup::new();
    let path = setup.path("model.safetensors");
    let mut weights = bert_weights(&BERT);
    weights.get_mut("encoder.layer.1.output.dense.weight").unwrap().fill(0.0);
    write(&weights, &path);
    let model = Model::new(Architecture::bert(BERT), Arc::new(Checkpoint::open(&path).unwrap())).unwrap();
    let unread = "encoder.layer.1.intermediate.dense.weight";
    let mut taken = Vec::new();
    for (k, sensitivity) in [0.0, 1.0].into_iter().enumerate() {
        let settings = Settings { sensitivity, ..settings(ModelBudget::Params(0.5)) };
        let work = setup.compressor(&model, settings, &format!("work-{k}")).unwrap();
        let found = work.run(&mut ignore).unwrap();
        assert!(found.plan.bound.unwrap() <= found.plan.cost * (1.0 + 1e-9));
        taken.push(found.plan.choice(unread).unwrap().params);
        found.write(setup.path("small.safetensors")).unwrap();
        assert!(setup.error(&model, &setup.path("small.safetensors")) < 0.5);
    }
    assert!(taken[1] < taken[0] / 2, "{taken:?}");
    let text = std::fs::read(setup.path("work-1/sensitivities.json")).unwrap();
    let found: Sensitivities = serde_json::from_slice(&text).unwrap();
    let mean = |name: &str| found.0[name].iter().sum::<f64>() / found.0[name].len() as f64;
    assert_eq!(found.0.len(), model.sites().len());
    assert!(mean(unread) < 1e-9 * mean("encoder.layer.0.intermediate.dense.weight"));
    assert!(found.0.values().flatten().all(|v| v.is_finite() && *v > 0.0));
}

/// What each published rule is known by.
#[test]
fn published_rules_keep_the_budget_and_their_pattern() {
    let setup = Setup::new();
    let model = setup.model(false);
    let dense: usize = model.sites().iter().map(|site| site.shape.0 * site.shape.1).sum();
    let plan = |method: Method, ratio: f64| {
        let settings = Settings { method, ..settings(ModelBudget::Params(ratio)) };
        let work = setup.compressor(&model, settings, &format!("{method:?}-{ratio}")).unwrap();
        let found = work.run(&mut ignore).unwrap();
        let fits = (found.plan.params() as f64) <= ratio * dense as f64;
        assert!(fits && found.params() == found.plan.params(), "{method:?}");
        for (choice, fitted) in found.plan.choices.iter().zip(found.matrices()) {
            assert_eq!((choice.params, choice.bytes), (fitted.params, fitted.bytes), "{}", choice.name);
        }
        found.plan
    };
    let rank = |plan: &Plan, part: &str, layer: usize| {
        let name =
            model.sites().into_iter().find(|s| s.layer == layer && s.name.contains(part)).unwrap().name;
        let rank = plan.choice(&name).unwrap().variant.parameters.get("rank").cloned();
        rank.map(|rank| rank.parse::<usize>().unwrap())
    };
    for method in [Method::Welore, Method::Dobi] {
        let (small, large) = (plan(method, 0.3), plan(method, 0.6));
        assert!(small.params() > dense / 4 && large.params() > dense / 2 && small.cost > large.cost);
    }
    // Soft ranks see what the layers see, and lose less of it.
    assert!(plan(Method::Dobi, 0.5).cost < plan(Method::Welore, 0.5).cost);
    let lorap = plan(Method::Lorap, 0.5);
    assert_eq!((rank(&lorap, "query", 0), rank(&lorap, "key", 1)), (Some(3), Some(3)));
    assert_eq!((rank(&lorap, "value", 0), rank(&lorap, "attention.output", 1)), (Some(9), Some(9)));
    let laser = plan(Method::Laser, 0.7);
    assert_eq!((rank(&laser, "intermediate", 1), rank(&laser, "layer.1.output", 1)), (Some(2), Some(2)));
    assert_eq!((rank(&laser, "query", 0), rank(&laser, "value", 1)), (None, None));
    // They choose ranks within a number of parameters or bytes.
    let settings = Settings { method: Method::Welore, ..settings(ModelBudget::Latency(0.5)) };
    let error = setup.compressor(&model, settings, "latency").unwrap().run(&mut ignore).unwrap_err();
    assert!(matches!(error, Error::Parameter { .. }), "{error}");
}

#[test]
fn budgets_of_latency_are_kept_by_the_measured_times() {
    let setup = Setup::new();
    let model = setup.model(false);
    let settings = Settings::new(ModelBudget::Latency(0.8), &["low_rank", "dense"], &[Storage::F32]).unwrap();
    let work = setup.compressor(&model, settings, "work").unwrap();
    work.survey(Shard::WHOLE, &mut ignore).unwrap();
    let surveys: Vec<Vec<SiteSurvey>> = (0..2)
        .map(|k| std::fs::read(setup.path(&format!("work/survey-00{k}.json"))).unwrap())
        .map(|text| serde_json::from_slice(&text).unwrap())
        .collect();
    let sites: Vec<SiteSurvey> = surveys.concat();
    assert!(
        sites.iter().all(|s| s.dense_latency.is_some() && s.measured.iter().all(|m| m.latency.is_some()))
    );
    // On a machine so busy that no choice is fast enough, that is said.
    match work.plan() {
        Ok(plan) => assert_eq!(plan.choices.len(), 12),
        Err(error) => assert!(matches!(&error, Error::Parameter { name, .. } if name == "budget"), "{error}"),
    }
}

#[test]
fn interrupted_work_goes_on_and_is_the_same() {
    let setup = Setup::new();
    let model = setup.model(true);
    let settings = settings(ModelBudget::Params(0.5));
    let whole = setup.compressor(&model, settings.clone(), "whole").unwrap();
    whole.run(&mut ignore).unwrap().write(setup.path("whole.safetensors")).unwrap();

    // All that a run leaves that stops in its last block.
    let part = setup.compressor(&model, settings.clone(), "part").unwrap();
    part.run(&mut ignore).unwrap();
    std::fs::remove_file(setup.path("part/block-001.json")).unwrap();
    std::fs::remove_file(setup.path("part/block-001.safetensors")).unwrap();
    let kept = std::fs::metadata(setup.path("part/block-000.safetensors")).unwrap().modified().unwrap();
    let mut seen = 0;
    let resumed = setup.compressor(&model, settings.clone(), "part").unwrap();
    resumed.run(&mut |_| seen += 1).unwrap().write(setup.path("part.safetensors")).unwrap();
    assert_eq!(seen, 4);
    assert_eq!(
        std::fs::metadata(setup.path("part/block-000.safetensors")).unwrap().modified().unwrap(),
        kept
    );
    let bytes = |name: &str| std::fs::read(setup.path(name)).unwrap();
    assert!(bytes("whole.safetensors") == bytes("part.safetensors"));

    // Other settings, other tokens: refused, and nothing touched.
    let other = Settings { dampening: 0.02, ..settings.clone() };
    let error = setup.compressor(&model, other, "part").unwrap_err();
    assert!(matches!(&error, Error::File { reason, .. } if reason.contains("other settings")), "{error}");
    let tokens = Tokens::from_sequences([[1, 2, 3]]).unwrap();
    let error = Compressor::new(&model, &tokens, settings, Parallelism::Seq, setup.path("part")).unwrap_err();
    assert!(matches!(&error, Error::File { reason, .. } if reason.contains("calibration")), "{error}");
    assert!(setup.path("part/block-001.json").exists());
}

#[test]
fn shards_make_what_one_process_makes() {
    let setup = Setup::new();
    let model = setup.model(false);
    let settings = Settings { sequential: false, ..settings(ModelBudget::Params(0.4)) };
    let one = setup.compressor(&model, settings.clone(), "one").unwrap();
    one.run(&mut ignore).unwrap().write(setup.path("one.safetensors")).unwrap();
    let shards = [0, 1].map(|index| Shard { index, count: 2 });
    let two = setup.compressor(&model, settings.clone(), "two").unwrap();
    two.survey(shards[1], &mut ignore).unwrap();
    assert!(matches!(two.plan(), Err(Error::File { .. })));
    two.survey(shards[0], &mut ignore).unwrap();
    two.fit(shards[0], &mut ignore).unwrap();
    assert!(matches!(two.finish(), Err(Error::File { .. })));
    two.fit(shards[1], &mut ignore).unwrap();
    two.finish().unwrap().write(setup.path("two.safetensors")).unwrap();
    let bytes = |name: &str| std::fs::read(setup.path(name)).unwrap();
    assert!(bytes("one.safetensors") == bytes("two.safetensors"));

    let sequential = Settings { sequential: true, ..settings };
    let sequential = setup.compressor(&model, sequential, "three").unwrap();
    sequential.survey(Shard::WHOLE, &mut ignore).unwrap();
    assert!(matches!(sequential.fit(shards[0], &mut ignore), Err(Error::Parameter { .. })));
    assert!(matches!(
        sequential.survey(Shard { index: 2, count: 2 }, &mut ignore),
        Err(Error::Parameter { .. })
    ));
}

#[test]
fn models_in_several_files_stay_in_several_files() {
    let setup = Setup::new();
    let whole = setup.model(true);
    let folder = setup.path("sharded");
    std::fs::create_dir(&folder).unwrap();
    let weights = llama_weights(&LLAMA);
    let (mut first, mut second, mut map) = (Weights::new(), Weights::new(), serde_json::Map::new());
    for (k, (name, value)) in weights.into_iter().enumerate() {
        let file = if k % 2 == 0 { "a.safetensors" } else { "b.safetensors" };
        map.insert(name.clone(), file.into());
        if k % 2 == 0 { &mut first } else { &mut second }.insert(name, value);
    }
    write(&first, &folder.join("a.safetensors"));
    write(&second, &folder.join("b.safetensors"));
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();

    let settings = settings(ModelBudget::Params(0.5));
    let one = setup.compressor(&whole, settings.clone(), "one").unwrap();
    one.run(&mut ignore).unwrap().write(setup.path("one.safetensors")).unwrap();
    let model = Model::new(Architecture::llama(LLAMA), structmat::io::open(&folder).unwrap()).unwrap();
    let several = setup.compressor(&model, settings, "several").unwrap();
    several.run(&mut ignore).unwrap().write(setup.path("small")).unwrap();
    let error = setup.error(&whole, &setup.path("small"));
    assert_eq!(error, setup.error(&whole, &setup.path("one.safetensors")));
    assert_eq!(
        structmat::io::open(setup.path("small")).unwrap().names().unwrap(),
        model.source().names().unwrap()
    );
}

#[test]
fn wrong_input() {
    let setup = Setup::new();
    let model = setup.model(false);
    let new = |budget, structures: &[&str]| Settings::new(budget, structures, &[Storage::F32]);
    assert!(matches!(new(ModelBudget::Params(0.0), &["dense"]), Err(Error::Parameter { .. })));
    assert!(matches!(new(ModelBudget::Params(f64::NAN), &["dense"]), Err(Error::Parameter { .. })));
    assert!(matches!(new(ModelBudget::Params(0.5), &["nonsense"]), Err(Error::Unknown { .. })));
    assert!(matches!(new(ModelBudget::Params(0.5), &[]), Err(Error::Parameter { .. })));
    // Only whole matrices, and not enough budget for them: what was surveyed stays.
    let dense = new(ModelBudget::Params(0.5), &["dense"]).unwrap();
    let error = setup.compressor(&model, dense, "work").unwrap().run(&mut ignore).unwrap_err();
    assert!(matches!(&error, Error::Parameter { name, .. } if name == "budget"), "{error}");
    assert!(setup.path("work/survey-001.json").exists());
    for refinement in [
        Refinement { rate: 0.0, ..Refinement::default() },
        Refinement { batch: 0, ..Refinement::default() },
        Refinement { held_out: 1, ..Refinement::default() },
    ] {
        let bad = Settings { refinement: Some(refinement), ..settings(ModelBudget::Params(0.5)) };
        assert!(matches!(setup.compressor(&model, bad, "bad"), Err(Error::Parameter { .. })));
    }
    for sensitivity in [-0.1, 1.1, f64::NAN] {
        let bad = Settings { sensitivity, ..settings(ModelBudget::Params(0.5)) };
        assert!(matches!(setup.compressor(&model, bad, "bad"), Err(Error::Parameter { .. })));
    }
    let bad = Settings { dampening: f64::NAN, ..settings(ModelBudget::Params(0.5)) };
    assert!(matches!(setup.compressor(&model, bad, "bad"), Err(Error::Parameter { .. })));
    let nowhere = setup.path("model.safetensors").join("work");
    let settings = settings(ModelBudget::Params(0.5));
    let error =
        Compressor::new(&model, &setup.tokens, settings.clone(), Parallelism::Seq, &nowhere).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let ids = Tokens::from_sequences([[1u32, 999]]).unwrap();
    let beyond = Compressor::new(&model, &ids, settings, Parallelism::Seq, setup.path("beyond")).unwrap();
    assert!(matches!(beyond.run(&mut ignore), Err(Error::Parameter { .. })));
}
