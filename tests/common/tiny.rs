//! Tiny transformers of random weights.

use super::gaussian;
use std::collections::BTreeMap;
use std::path::Path;
use structmat::io::Writer;
use structmat::models::Sizes;
use structmat::ndarray::Array2;

/// Tensors by name; a vector is one row. The numbers are single precision ones.
pub type Weights = BTreeMap<String, Array2<f64>>;

pub fn random(rows: usize, cols: usize, scale: f64, shift: f64, seed: &mut u64) -> Array2<f64> {
    *seed += 1;
    gaussian(rows, cols, *seed).mapv(|v| f64::from((shift + scale * v) as f32))
}

pub fn add_linear(weights: &mut Weights, name: &str, (m, n): (usize, usize), bias: bool, seed: &mut u64) {
    weights.insert(format!("{name}.weight"), random(m, n, 1.5 / (n as f64).sqrt(), 0.0, seed));
    if bias {
        weights.insert(format!("{name}.bias"), random(1, m, 0.2, 0.0, seed));
    }
}

pub fn add_norm(weights: &mut Weights, name: &str, n: usize, bias: bool, seed: &mut u64) {
    weights.insert(format!("{name}.weight"), random(1, n, 0.2, 1.0, seed));
    if bias {
        weights.insert(format!("{name}.bias"), random(1, n, 0.2, 0.0, seed));
    }
}

pub const BERT: Sizes = Sizes {
    hidden: 24,
    intermediate: 40,
    layers: 2,
    heads: 4,
    kv_heads: 4,
    head_dim: None,
    vocabulary: 50,
    max_positions: 80,
};

/// Heads wider than hidden / heads, three of them to each head of the keys.
pub const LLAMA: Sizes = Sizes {
    hidden: 32,
    intermediate: 56,
    layers: 2,
    heads: 6,
    kv_heads: 2,
    head_dim: Some(8),
    vocabulary: 50,
    max_positions: 80,
};

pub fn bert_weights(s: &Sizes) -> Weights {
    let (mut w, mut seed) = (Weights::new(), 0);
    for (table, rows) in [("word", s.vocabulary), ("position", s.max_positions), ("token_type", 2)] {
        w.insert(
            format!("embeddings.{table}_embeddings.weight"),
            random(rows, s.hidden, 1.0, 0.0, &mut seed),
        );
    }
    add_norm(&mut w, "embeddings.LayerNorm", s.hidden, true, &mut seed);
    for layer in 0..s.layers {
        let name = |name: &str| format!("encoder.layer.{layer}.{name}");
        for part in
            ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
        {
            add_linear(&mut w, &name(part), (s.hidden, s.hidden), true, &mut seed);
        }
        add_linear(&mut w, &name("intermediate.dense"), (s.intermediate, s.hidden), true, &mut seed);
        add_linear(&mut w, &name("output.dense"), (s.hidden, s.intermediate), true, &mut seed);
        add_norm(&mut w, &name("attention.output.LayerNorm"), s.hidden, true, &mut seed);
        add_norm(&mut w, &name("output.LayerNorm"), s.hidden, true, &mut seed);
    }
    w
}

pub fn llama_weights(s: &Sizes) -> Weights {
    let (mut w, mut seed) = (Weights::new(), 1000);
    w.insert("model.embed_tokens.weight".to_owned(), random(s.vocabulary, s.hidden, 1.0, 0.0, &mut seed));
    let (queries, keys) = (s.heads * s.head_dim(), s.kv_heads * s.head_dim());
    for layer in 0..s.layers {
        let name = |name: &str| format!("model.layers.{layer}.{name}");
        add_linear(&mut w, &name("self_attn.q_proj"), (queries, s.hidden), false, &mut seed);
        add_linear(&mut w, &name("self_attn.k_proj"), (keys, s.hidden), false, &mut seed);
        add_linear(&mut w, &name("self_attn.v_proj"), (keys, s.hidden), false, &mut seed);
        add_linear(&mut w, &name("self_attn.o_proj"), (s.hidden, queries), false, &mut seed);
        add_linear(&mut w, &name("mlp.gate_proj"), (s.intermediate, s.hidden), false, &mut seed);
        add_linear(&mut w, &name("mlp.up_proj"), (s.intermediate, s.hidden), false, &mut seed);
        add_linear(&mut w, &name("mlp.down_proj"), (s.hidden, s.intermediate), false, &mut seed);
        add_norm(&mut w, &name("input_layernorm"), s.hidden, false, &mut seed);
        add_norm(&mut w, &name("post_attention_layernorm"), s.hidden, false, &mut seed);
    }
    add_norm(&mut w, "model.norm", s.hidden, false, &mut seed);
    add_linear(&mut w, "lm_head", (s.vocabulary, s.hidden), false, &mut seed);
    w
}

pub fn add(writer: &mut Writer<'_>, name: &str, value: &Array2<f64>) {
    let value = value.mapv(|v| v as f32);
    // Biases and norms are vectors.
    match name.ends_with("bias") || name.contains("norm") || name.contains("Norm") {
        true => writer.array(name, &value.row(0)).unwrap(),
        false => writer.array(name, &value).unwrap(),
    }
}

pub fn write(weights: &Weights, path: &Path) {
    let mut writer = Writer::new();
    weights.iter().for_each(|(name, value)| add(&mut writer, name, value));
    writer.write(path).unwrap();
}
