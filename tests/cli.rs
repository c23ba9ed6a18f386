//! The example tools as their users see them: outputs, exit codes, messages, nothing left behind.

mod common;

use common::{correlated_gram, difference, gaussian};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use structmat::io::{Checkpoint, Writer};
use structmat::models::{Architecture, Sizes};
use structmat::ndarray::{Array1, Array2};
use structmat::prelude::*;

/// A tool built by the same `cargo test`: examples lie beside the test's own folder.
fn tool(name: &str) -> Command {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let path = path.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        path.exists(),
        "{} is missing: `cargo test` builds it, or `cargo build --examples`",
        path.display()
    );
    Command::new(path)
}

struct Setup {
    folder: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let setup = Self { folder: tempfile::tempdir().unwrap() };
        let mut writer = Writer::new();
        writer.array("mlp.up.weight", &gaussian(24, 16, 1).mapv(|v| v as f32)).unwrap();
        writer.array("mlp.down.weight", &gaussian(16, 24, 2).mapv(|v| v as f32)).unwrap();
        writer.array("mlp.up.bias", &Array1::<f32>::ones(24)).unwrap();
        writer.array("embedding", &gaussian(5, 5, 3)).unwrap();
        writer.write(setup.path("model.safetensors")).unwrap();
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, name: &str, args: &[&str]) -> Output {
        tool(name).current_dir(self.folder.path()).args(args).output().unwrap()
    }

    fn compress(&self, args: &str) -> Output {
        let args: Vec<&str> = args.split_whitespace().collect();
        self.run("compress", &[&["--input", "model.safetensors"], args.as_slice()].concat())
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn matrix(path: &Path, name: &str) -> Array2<f64> {
    Checkpoint::open(path).unwrap().matrix(name).unwrap()
}

#[test]
fn compress_writes_the_structured_and_the_dense_file_and_the_report() {
    let setup = Setup::new();
    let output = setup.compress(
        "--tensors mlp.*.weight --structure low_rank --ratio 0.5 --storage bf16 --seed 3 --output o.safetensors --dense-output d.safetensors --json r.json",
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (input, o) =
        (setup.path("model.safetensors"), Checkpoint::open(setup.path("o.safetensors")).unwrap());
    assert_eq!(o.structured().collect::<Vec<_>>(), ["mlp.down.weight", "mlp.up.weight"]);
    assert_eq!(o.tensors().collect::<Vec<_>>(), ["embedding", "mlp.up.bias"]);
    assert_eq!(o.matrix::<f64>("embedding").unwrap(), gaussian(5, 5, 3));
    let records: serde_json::Value =
        serde_json::from_slice(&std::fs::read(setup.path("r.json")).unwrap()).unwrap();
    assert_eq!(records.as_array().unwrap().len(), 2);
    for record in records.as_array().unwrap() {
        let name = record["name"].as_str().unwrap();
        let (w, dense) = (matrix(&input, name), matrix(&setup.path("d.safetensors"), name));
        let loaded = o.load(name).unwrap();
        assert_eq!(loaded.to_dense::<f32>().mapv(f64::from), dense);
        let error = difference(&dense, &w);
        assert!((record["relative_error"].as_f64().unwrap() - error).abs() < 1e-6);
        assert_eq!(record["params"], loaded.n_params());
        assert_eq!(record["bytes"], loaded.storage_bytes());
        assert_eq!(record["structure"], "low_rank");
        assert_eq!(record["shape"], serde_json::json!([w.nrows(), w.ncols()]));
        assert!(record["ratio"].as_f64().unwrap() <= 0.5 && record["seconds"].as_f64().unwrap() >= 0.0);
        assert!(record["weighted_relative_error"].is_null());
        assert!(!record["guarantee"].is_null() && record["iterations"].is_u64());
    }
    assert_eq!(setup.files(), ["d.safetensors", "model.safetensors", "o.safetensors", "r.json"]);
}

#[test]
fn compress_without_an_output_only_reports() {
    let setup = Setup::new();
    let before = setup.files();
    let output = setup.compress("--tensors embedding --structure low_rank --ratio 0.5");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("embedding") && setup.files() == before);
}

#[test]
fn compress_all_prints_every_family() {
    let setup = Setup::new();
    let output = setup.compress("--tensors embedding --structure all --ratio 0.9 --output best.safetensors");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for entry in structmat::registry::FAMILIES {
        assert!(
            table.lines().any(|line| line.starts_with(&format!("| {} ", entry.name))),
            "{} in\n{table}",
            entry.name
        );
    }
    assert_eq!(
        Checkpoint::open(setup.path("best.safetensors")).unwrap().structured().collect::<Vec<_>>(),
        ["embedding"]
    );
}

#[test]
fn compress_takes_second_moments_and_activations() {
    let setup = Setup::new();
    let gram = correlated_gram(16, 5);
    let mut writer = Writer::new();
    writer.array("mlp.up.weight", gram.second_moment()).unwrap();
    writer.array("mlp.down.weight.activations", &gaussian(50, 24, 6)).unwrap();
    writer.write(setup.path("g.safetensors")).unwrap();
    let run = |extra: &str, json: &str| -> Vec<serde_json::Value> {
        let output = setup
            .compress(&format!("--tensors mlp.*.weight --structure low_rank --rank 4 --output o.safetensors --json {json} {extra}"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&std::fs::read(setup.path(json)).unwrap()).unwrap()
    };
    let (plain, weighted) = (run("", "plain.json"), run("--gram g.safetensors", "weighted.json"));
    assert!(plain.iter().all(|r| r["weighted_relative_error"].is_null()));
    for (plain, weighted) in plain.iter().zip(&weighted) {
        assert!(weighted["weighted_relative_error"].as_f64().unwrap() > 0.0);
        assert!(weighted["relative_error"].as_f64() >= plain["relative_error"].as_f64());
    }
    let output = setup.compress(
        "--tensors embedding --structure low_rank --rank 1 --gram g.safetensors --output o2.safetensors",
    );
    assert!(
        !output.status.success() && text(&output.stderr).contains("embedding"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_same_seed_gives_the_same_file() {
    let setup = Setup::new();
    for name in ["a", "b"] {
        let output =
            setup.compress(&format!("--tensors * --structure low_rank --ratio 0.5 --seed 7 --output {name}"));
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert!(std::fs::read(setup.path("a")).unwrap() == std::fs::read(setup.path("b")).unwrap());
}

#[test]
fn errors_are_one_line_and_leave_nothing_behind() {
    let setup = Setup::new();
    let mut writer = Writer::new();
    let mut bad = gaussian(4, 4, 1);
    bad[[1, 2]] = f64::NAN;
    writer.array("bad", &bad).unwrap();
    writer.array("bad.gram", &gaussian(4, 4, 2)).unwrap();
    writer.write(setup.path("bad.safetensors")).unwrap();
    std::fs::write(
        setup.path("truncated.safetensors"),
        &std::fs::read(setup.path("model.safetensors")).unwrap()[..300],
    )
    .unwrap();
    std::fs::write(setup.path("o.safetensors"), "precious").unwrap();
    std::fs::create_dir(setup.path("folder")).unwrap();
    let before = setup.files();
    let model = "--input model.safetensors";
    let rest = "--output o.safetensors --json r.json";
    for (args, expected) in [
        (format!("{model} --tensors no.such --structure low_rank --ratio 0.5 {rest}"), "no.such"),
        (format!("{model} --tensors mlp.up.bias --structure low_rank --ratio 0.5 {rest}"), "[24]"),
        (format!("{model} --tensors [ --structure low_rank --ratio 0.5 {rest}"), "tensors"),
        (format!("{model} --tensors * --structure no_such --ratio 0.5 {rest}"), "low_rank"),
        (format!("{model} --tensors * --structure low_rank --ratio 0.0001 {rest}"), "budget too small"),
        (format!("{model} --tensors * --structure low_rank --ratio nan {rest}"), "ratio"),
        (format!("{model} --tensors * --structure low_rank --rank 0 {rest}"), "rank"),
        (format!("{model} --tensors * --structure low_rank --rank 17 {rest}"), "rank"),
        (format!("{model} --tensors * --structure low_rank --ratio 0.5 --param no=1 {rest}"), "`no`"),
        (format!("{model} --tensors * --structure low_rank --ratio 0.5 --blocks 4 {rest}"), "blocks"),
        (format!("{model} --tensors * --structure low_rank --ratio 0.5 --storage f99 {rest}"), "f99"),
        (format!("{model} --tensors * --structure low_rank {rest}"), "a budget"),
        (
            format!(
                "{model} --tensors * --structure low_rank --ratio 0.5 --output o.safetensors --json o.safetensors"
            ),
            "different files",
        ),
        (format!("{model} --tensors * --structure low_rank --ratio 0.5 --output folder"), "folder"),
        (
            format!("{model} --tensors * --structure low_rank --ratio 0.5 --output no/such/o.safetensors"),
            "no/such",
        ),
        (
            format!("{model} --tensors * --structure low_rank --ratio 0.5 --gram none.safetensors {rest}"),
            "none.safetensors",
        ),
        (
            format!("--input none.safetensors --tensors * --structure low_rank --ratio 0.5 {rest}"),
            "none.safetensors",
        ),
        (
            format!("--input truncated.safetensors --tensors * --structure low_rank --ratio 0.5 {rest}"),
            "truncated",
        ),
        (
            format!("--input bad.safetensors --tensors bad --structure low_rank --ratio 0.9 {rest}"),
            "non-finite",
        ),
        (
            format!(
                "--input bad.safetensors --tensors bad.gram --structure low_rank --rank 1 --gram bad.safetensors {rest}"
            ),
            "semi-definite",
        ),
        (format!("{model} --tensors * --structure all --ratio 0.0000001 {rest}"), "no family"),
    ] {
        let output = setup.run("compress", &args.split_whitespace().collect::<Vec<_>>());
        let message = text(&output.stderr);
        assert!(!output.status.success(), "accepted: {args}");
        assert!(message.contains(expected), "{args}\nexpected `{expected}` in: {message}");
        if output.status.code() == Some(1) {
            assert_eq!(message.trim().lines().count(), 1, "{message}");
        }
        assert_eq!(setup.files(), before, "{args}");
        assert_eq!(std::fs::read(setup.path("o.safetensors")).unwrap(), b"precious", "{args}");
    }
}

#[test]
fn apply_multiplies_as_the_dense_formula() {
    let setup = Setup::new();
    assert!(
        setup
            .compress("--tensors mlp.up.weight --structure low_rank --ratio 0.5 --output o.safetensors")
            .status
            .success()
    );
    let w =
        Checkpoint::open(setup.path("o.safetensors")).unwrap().load("mlp.up.weight").unwrap().to_dense_f64();
    let mut writer = Writer::new();
    let x = gaussian(3, 16, 4);
    writer.array("x", &x).unwrap();
    writer.write(setup.path("x.safetensors")).unwrap();
    let mut writer = Writer::new();
    let g = gaussian(2, 24, 5).mapv(|v| v as f32);
    writer.array("x", &g).unwrap();
    writer.write(setup.path("g.safetensors")).unwrap();
    let apply = |args: &str| {
        setup.run("apply", &format!("--output y.safetensors {args}").split_whitespace().collect::<Vec<_>>())
    };
    let output = apply("--input o.safetensors --tensor mlp.up.weight --x x.safetensors --threads 2");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(difference(&matrix(&setup.path("y.safetensors"), "y"), &x.dot(&w.t())) < 1e-12);
    let output = apply("--input o.safetensors --tensor mlp.up.weight --x g.safetensors --transpose");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(difference(&matrix(&setup.path("y.safetensors"), "y"), &g.mapv(f64::from).dot(&w)) < 1e-5);
    let output = apply("--input model.safetensors --tensor mlp.up.weight --x x.safetensors");
    assert!(output.status.success(), "a dense tensor: {}", text(&output.stderr));
    std::fs::remove_file(setup.path("y.safetensors")).unwrap();
    for (args, expected) in [
        ("--input o.safetensors --tensor mlp.up.weight --x g.safetensors", "[2, 16]"),
        ("--input o.safetensors --tensor no.such --x x.safetensors", "no.such"),
        ("--input o.safetensors --tensor mlp.up.weight --x model.safetensors", "`x`"),
        ("--input none --tensor mlp.up.weight --x x.safetensors", "none"),
    ] {
        let output = apply(args);
        assert!(
            output.status.code() == Some(1) && text(&output.stderr).contains(expected),
            "{args}: {}",
            text(&output.stderr)
        );
        assert!(!setup.path("y.safetensors").exists());
    }
}

#[test]
fn efficiency_refuses_a_parameter_that_no_family_knows() {
    let setup = Setup::new();
    let args = "--quick --structures low_rank,sparse --param densty=0.1 --json r.json";
    let output = setup.run("efficiency", &args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("`densty`") && message.contains("density"), "{message}");
    assert!(!setup.path("r.json").exists());
}

#[test]
fn efficiency_reports_every_storage_and_draws() {
    let setup = Setup::new();
    let args = "--quick --shapes 64x48 --batch 1,4 --threads 1 --structures low_rank,sparse_low_rank --storage f32,int8 \
        --json r.json --markdown r.md --plots plots --pareto model.safetensors --tensor mlp.up.weight";
    let output = setup.run("efficiency", &args.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(setup.path("r.json")).unwrap()).unwrap();
    let count = |structure: &str, storage: &str| {
        rows.iter()
            .filter(|r| {
                r["structure"] == structure && r["storage"] == storage && r["out"] == 64 && r["in"] == 48
            })
            .count()
    };
    for (structure, storage) in [("low_rank", "f32"), ("low_rank", "int8"), ("sparse_low_rank", "int8")] {
        assert_eq!(count(structure, storage), 2, "{structure} {storage}: one per batch");
    }
    for (structure, baseline) in
        ["low_rank", "monarch"].into_iter().flat_map(|s| ["its kernels", "minimal form"].map(|b| (s, b)))
    {
        let row = |r: &&serde_json::Value| {
            r["regime"] == "call_overhead" && r["structure"] == structure && r["baseline"] == baseline
        };
        assert_eq!(rows.iter().filter(row).count(), 1, "{structure} beside {baseline}");
    }
    for row in &rows {
        for name in ["ratio", "params", "bytes", "flops", "batch", "threads", "baseline_seconds", "speedup"] {
            assert!(row[name].is_number(), "{name} in {row}");
        }
        let seconds = |name: &str| row[name].as_f64().unwrap();
        assert!(row["limit"] == "bytes" || row["limit"] == "flops");
        assert!((seconds("efficiency") / (seconds("limit_seconds") / seconds("seconds")) - 1.0).abs() < 1e-9);
    }
    let pictures = std::fs::read_dir(setup.path("plots")).unwrap();
    for path in pictures.map(|entry| entry.unwrap().path()) {
        assert!(std::fs::read_to_string(&path).unwrap().trim_end().ends_with("</svg>"), "{}", path.display());
    }
    assert!(setup.path("plots/pareto.svg").exists());
    assert!(setup.path("plots/speedup-64x48-batch4-threads1-warm-int8.svg").exists());
}

#[test]
fn every_tool_has_help() {
    for name in ["compress", "apply", "efficiency", "swap_linear", "compress_model", "sentence_embedding"] {
        let output = tool(name).arg("--help").output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("Usage"), "{name}");
    }
}

/// A BERT of two blocks as `bert.safetensors` with its description, ten sentences as `tokens.safetensors`, and scores of their pairs as `pairs.tsv`.
fn sentences() -> Setup {
    let setup = Setup { folder: tempfile::tempdir().unwrap() };
    let architecture = Architecture::bert(Sizes {
        hidden: 16,
        intermediate: 32,
        layers: 2,
        heads: 4,
        kv_heads: 4,
        head_dim: None,
        vocabulary: 20,
        max_positions: 9,
    });
    architecture.save(setup.path("bert.json")).unwrap();
    let mut writer = Writer::new();
    let (ones, zeros) = (Array1::<f32>::ones(16), Array1::<f32>::zeros(16));
    for (seed, site) in architecture.sites().iter().enumerate() {
        writer
            .array(&site.name, &gaussian(site.shape.0, site.shape.1, seed as u64).mapv(|v| v as f32))
            .unwrap();
        writer.array(&format!("{}.bias", site.layer_name()), &Array1::<f32>::zeros(site.shape.0)).unwrap();
    }
    for norm in [
        "encoder.layer.0.output",
        "encoder.layer.0.attention.output",
        "encoder.layer.1.output",
        "encoder.layer.1.attention.output",
        "embeddings",
    ] {
        writer.array(&format!("{norm}.LayerNorm.weight"), &ones).unwrap();
        writer.array(&format!("{norm}.LayerNorm.bias"), &zeros).unwrap();
    }
    for (table, rows) in [("word", 20), ("position", 9), ("token_type", 2)] {
        let table_name = format!("embeddings.{table}_embeddings.weight");
        writer.array(&table_name, &gaussian(rows, 16, 90 + rows as u64).mapv(|v| v as f32)).unwrap();
    }
    writer.write(setup.path("bert.safetensors")).unwrap();

    let lengths = [3, 5, 1, 9, 4, 4, 2, 7, 6, 3];
    let offsets: Vec<i32> = (0..=10).map(|i| lengths[..i].iter().sum()).collect();
    let ids: Vec<i32> = (0..offsets[10]).map(|i| i * 7 % 20).collect();
    write_tokens(&setup.path("tokens.safetensors"), &ids, &offsets);
    std::fs::write(setup.path("pairs.tsv"), "score\ta\tb\n1\t-\t-\n1\t-\t-\n2.5\t-\t-\n3\t-\t-\n3\t-\t-\n")
        .unwrap();
    setup
}

fn write_tokens(path: &Path, ids: &[i32], offsets: &[i32]) {
    let bytes: Vec<u8> = ids.iter().chain(offsets).flat_map(|v| v.to_le_bytes()).collect();
    let header = serde_json::json!({
        "input_ids": {"dtype": "I32", "shape": [ids.len()], "data_offsets": [0, 4 * ids.len()]},
        "offsets": {"dtype": "I32", "shape": [offsets.len()], "data_offsets": [4 * ids.len(), bytes.len()]},
    });
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes].concat();
    std::fs::write(path, file).unwrap();
}

const SENTENCES: [&str; 4] = ["--tokens", "tokens.safetensors", "--architecture", "bert.json"];

#[test]
fn sentence_embedding_ranks_pairs_with_dense_and_compressed_matrices() {
    let setup = sentences();
    let args = [
        "--model",
        "bert.safetensors",
        "--pairs",
        "pairs.tsv",
        "--output",
        "dense.safetensors",
        "--batch",
        "12",
    ];
    let output = setup.run("sentence_embedding", &[&SENTENCES[..], &args].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    assert!(
        stdout.contains("10 sentences, 44 tokens -> 10 x 16") && stdout.contains("(100.0 % of dense)"),
        "{stdout}"
    );

    // Spearman's correlation again, with ranks by counting.
    let y = matrix(&setup.path("dense.safetensors"), "embeddings");
    assert!(y.outer_iter().all(|row| (row.dot(&row) - 1.0).abs() < 1e-6));
    let ranks = |values: [f64; 5]| {
        let rank = |v| {
            values
                .iter()
                .map(|u| {
                    if *u < v {
                        1.0
                    } else if *u == v {
                        0.5
                    } else {
                        0.0
                    }
                })
                .sum::<f64>()
                - 2.5
        };
        Array1::from_iter(values.map(rank))
    };
    let (a, b) =
        (ranks([0, 2, 4, 6, 8].map(|i| y.row(i).dot(&y.row(i + 1)))), ranks([1.0, 1.0, 2.5, 3.0, 3.0]));
    let expected = a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt();
    assert!(
        stdout.contains(&format!("Spearman correlation over 5 pairs: {expected:.4}")),
        "{stdout}, {expected}"
    );

    // Compressed matrices: beside the dense ones, and in a file of all tensors.
    let compress = "--input bert.safetensors --tensors *.dense.weight --structure low_rank --ratio 0.5 --output small.safetensors";
    assert!(setup.run("compress", &compress.split_whitespace().collect::<Vec<_>>()).status.success());
    let beside = [
        "--model",
        "bert.safetensors",
        "--compressed",
        "small.safetensors",
        "--output",
        "beside.safetensors",
    ];
    let output = setup.run("sentence_embedding", &[&SENTENCES[..], &beside].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains("(100.0 % of dense)"));
    let alone = ["--model", "small.safetensors", "--output", "alone.safetensors"];
    assert!(setup.run("sentence_embedding", &[&SENTENCES[..], &alone].concat()).status.success());
    let beside = matrix(&setup.path("beside.safetensors"), "embeddings");
    assert_eq!(beside, matrix(&setup.path("alone.safetensors"), "embeddings"));
    assert_ne!(beside, y);
}

#[test]
fn sentence_embedding_says_in_one_line_what_is_wrong() {
    let setup = sentences();
    write_tokens(&setup.path("unknown.safetensors"), &[3, 20], &[0, 2]);
    write_tokens(&setup.path("long.safetensors"), &[3; 10], &[0, 10]);
    write_tokens(&setup.path("empty.safetensors"), &[3, 4], &[0, 0, 2]);
    let mut writer = Writer::new();
    writer.array("other.weight", &gaussian(4, 4, 1)).unwrap();
    writer.write(setup.path("other.safetensors")).unwrap();
    std::fs::write(setup.path("few.tsv"), "1\ta\tb\n").unwrap();
    std::fs::write(setup.path("words.tsv"), "1\ta\tb\nmuch\ta\tb\n").unwrap();
    let model = ["--model", "bert.safetensors"];
    let cases: [(Vec<&str>, &str); 9] = [
        (vec!["--tokens", "tokens.safetensors"], "config.json"),
        (vec!["--tokens", "tokens.safetensors", "--architecture", "all-minilm-l6-v2"], "[30522, 384]"),
        (vec!["--tokens", "unknown.safetensors", "--architecture", "bert.json"], "token id` = 20"),
        (vec!["--tokens", "long.safetensors", "--architecture", "bert.json"], "at most 9"),
        (vec!["--tokens", "empty.safetensors", "--architecture", "bert.json"], "offsets of sequence 0"),
        (vec!["--tokens", "bert.safetensors", "--architecture", "bert.json"], "unknown tensor `offsets`"),
        (
            [&SENTENCES[..], &["--compressed", "other.safetensors"]].concat(),
            "holds no matrix of the model's blocks",
        ),
        ([&SENTENCES[..], &["--pairs", "few.tsv"]].concat(), "has 1 pairs"),
        ([&SENTENCES[..], &["--pairs", "words.tsv"]].concat(), "line 2: expected a score"),
    ];
    let files = setup.files();
    for (args, expected) in cases {
        let output =
            setup.run("sentence_embedding", &[&model[..], &args, &["--output", "y.safetensors"]].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(message.contains(expected) && message.lines().count() == 1, "{args:?}: {message}");
        assert_eq!(setup.files(), files, "{args:?}");
    }
}

const COMPRESS: [&str; 10] = [
    "--model",
    "bert.safetensors",
    "--architecture",
    "bert.json",
    "--calibration",
    "tokens.safetensors",
    "--report",
    "work",
    "--output",
    "small.safetensors",
];

#[test]
fn compress_model_writes_a_model_that_sentence_embedding_runs() {
    let setup = sentences();
    let output = setup.run("compress_model", &[&COMPRESS[..], &["--ratio", "0.5"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("parameters (0.") && stdout.contains("query.weight"), "{stdout}");
    assert_eq!(std::fs::read_to_string(setup.path("work/report.md")).unwrap(), stdout);
    let picture = std::fs::read_to_string(setup.path("work/report.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("relative error of outputs"));
    // Again: nothing is done anew, and the same comes out.
    let small = std::fs::read(setup.path("small.safetensors")).unwrap();
    let again = setup.run("compress_model", &[&COMPRESS[..], &["--ratio", "0.5"]].concat());
    assert!(again.status.success() && std::fs::read(setup.path("small.safetensors")).unwrap() == small);
    let run = ["--model", "small.safetensors"];
    let output = setup.run("sentence_embedding", &[&SENTENCES[..], &run].concat());
    assert!(output.status.success() && text(&output.stdout).contains("10 sentences"));
}

#[test]
fn compress_model_says_in_one_line_what_is_wrong() {
    let setup = sentences();
    assert!(setup.run("compress_model", &[&COMPRESS[..], &["--ratio", "0.5"]].concat()).status.success());
    write_tokens(&setup.path("unknown.safetensors"), &[3, 20], &[0, 2]);
    let files = setup.files();
    let cases: [(&[&str], &str); 5] = [
        (&["--ratio", "0.4"], "other settings"),
        (&["--ratio", "0"], "budget"),
        (&["--ratio", "0.5", "--structures", "nonsense"], "nonsense"),
        (&["--ratio", "0.5", "--shard", "1/2", "--step", "fit"], "shard"),
        (&["--bytes-ratio", "0.5"], "other settings"),
    ];
    for (args, expected) in cases {
        let output = setup.run("compress_model", &[&COMPRESS[..], args].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(message.contains(expected) && message.lines().count() == 1, "{args:?}: {message}");
        assert_eq!(setup.files(), files, "{args:?}");
    }
}
