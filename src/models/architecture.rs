use super::site::{Site, Stage};
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::io::Staged;
use crate::parts::MAX_FEATURES;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// What stands for a block's number in the names of its tensors.
const LAYER: &str = "{layer}";
/// More blocks than any transformer has; a description may come from anywhere.
const MAX_LAYERS: usize = 1 << 16;

/// Everything that must be known of a transformer to run it, beside its weights: sizes, kinds of its steps, names of its tensors.
///
/// Plain data, read and written as JSON (docs of the fields are docs of the format). [`bert`](Self::bert) and [`llama`](Self::llama)
/// describe two kinds of model by the names that they usually have in files; [`from_config`](Self::from_config) reads the `config.json`
/// that lies beside such files. [`check`](Self::check) tells whether a description is consistent; whatever loads a model calls it.
///
/// ```
/// use structmat::models::{Architecture, Sizes};
/// # fn main() -> structmat::Result<()> {
/// let sizes = Sizes {
///     hidden: 2048, intermediate: 5632, layers: 22, heads: 32, kv_heads: 4, head_dim: None, vocabulary: 32000, max_positions: 2048,
/// };
/// let mut model = Architecture::llama(sizes);
/// model.rope_theta = Some(500_000.0);
/// assert_eq!(Architecture::from_json(&model.to_json()?)?, model);
/// let key = &model.sites()[1];
/// assert_eq!((key.name.as_str(), key.shape), ("model.layers.0.self_attn.k_proj.weight", (256, 2048)));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Sizes.
    pub sizes: Sizes,
    /// Normalization of the hidden states.
    pub norm: Norm,
    /// Whether a token sees only those before it (and itself).
    pub causal: bool,
    /// Base of the rotary position embedding of queries and keys, where there is one: feature `i` of a head is turned against feature
    /// `i + head_dim / 2` by `position * theta^(-2 i / head_dim)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Between the two halves of the MLP.
    pub activation: Activation,
    /// The stages whose matrices have biases.
    #[serde(default)]
    pub biases: Vec<Stage>,
    /// Put before every name.
    #[serde(default)]
    pub prefix: String,
    /// Names, without `.weight` and `.bias`.
    pub tensors: Tensors,
}

/// Sizes of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Features of a hidden state.
    pub hidden: usize,
    /// Features inside the MLP.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values, each shared by `heads / kv_heads` heads of the queries.
    pub kv_heads: usize,
    /// Features of a head; `hidden / heads` where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Tokens.
    pub vocabulary: usize,
    /// Longest sequence.
    pub max_positions: usize,
}

impl Sizes {
    /// Features of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden / self.heads.max(1))
    }
}

/// Normalization of the hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Where.
    pub placement: Placement,
    /// Added to the variance, or to the mean square.
    pub eps: f64,
}

/// Kinds of normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + eps) * weight + bias`.
    LayerNorm,
    /// `x / sqrt(mean square + eps) * weight`.
    RmsNorm,
}

/// Where a block normalizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// `x + f(norm(x))`: Llama.
    Before,
    /// `norm(x + f(x))`: BERT.
    After,
}

/// Names of a transformer's tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensors {
    /// Before the blocks.
    pub embedding: EmbeddingTensors,
    /// In each block; `{layer}` stands for its number, from 0.
    pub block: BlockTensors,
    /// Normalization after the last block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_norm: Option<String>,
    /// From hidden states to a score of every token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
}

/// Names of what makes tokens hidden states: the sum of rows of up to three tables, normalized or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingTensors {
    /// A row for each token: vocabulary x hidden.
    pub tokens: String,
    /// A row for each position: max_positions x hidden.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<String>,
    /// A row for each type of token, of which the first is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_types: Option<String>,
    /// Normalization of the sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<String>,
}

/// Names of a block's tensors, stage by stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockTensors {
    /// The matrices that share the attention's input.
    pub attention_in: AttentionTensors,
    /// From the heads back to the hidden state.
    pub attention_out: String,
    /// Normalization of the attention's part of the block.
    pub attention_norm: String,
    /// The matrices that share the MLP's input.
    pub mlp_in: MlpTensors,
    /// From inside the MLP back to the hidden state.
    pub mlp_out: String,
    /// Normalization of the MLP's part of the block.
    pub mlp_norm: String,
}

/// Names of the matrices that share the attention's input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionTensors {
    /// (heads * head_dim) x hidden.
    pub query: String,
    /// (kv_heads * head_dim) x hidden.
    pub key: String,
    /// (kv_heads * head_dim) x hidden.
    pub value: String,
}

/// Names of the matrices that share the MLP's input: `activation(up x)`, or `activation(gate x) * (up x)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpTensors {
    /// intermediate x hidden, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// intermediate x hidden.
    pub up: String,
}

/// The matrix (vocabulary x hidden) that scores every token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// The table of the token embedding.
    Tied,
    /// A matrix of its own, of this name.
    Untied(String),
}

impl Architecture {
    /// BERT: normalization after each part, learned positions and token types, biases, every token sees every other, exact GELU.
    pub fn bert(sizes: Sizes) -> Self {
        let layer = |name: &str| format!("encoder.layer.{LAYER}.{name}");
        let embedding = |name: &str| format!("embeddings.{name}");
        Self {
            sizes,
            norm: Norm { kind: NormKind::LayerNorm, placement: Placement::After, eps: 1e-12 },
            causal: false,
            rope_theta: None,
            activation: Activation::Gelu,
            biases: Stage::ALL.to_vec(),
            prefix: String::new(),
            tensors: Tensors {
                embedding: EmbeddingTensors {
                    tokens: embedding("word_embeddings"),
                    positions: Some(embedding("position_embeddings")),
                    token_types: Some(embedding("token_type_embeddings")),
                    norm: Some(embedding("LayerNorm")),
                },
                block: BlockTensors {
                    attention_in: AttentionTensors {
                        query: layer("attention.self.query"),
                        key: layer("attention.self.key"),
                        value: layer("attention.self.value"),
                    },
                    attention_out: layer("attention.output.dense"),
                    attention_norm: layer("attention.output.LayerNorm"),
                    mlp_in: MlpTensors { gate: None, up: layer("intermediate.dense") },
                    mlp_out: layer("output.dense"),
                    mlp_norm: layer("output.LayerNorm"),
                },
                final_norm: None,
                head: None,
            },
        }
    }

    /// The sentence encoder all-MiniLM-L6-v2: a BERT of 6 blocks of 384 features.
    pub fn all_minilm_l6_v2() -> Self {
        Self::bert(Sizes {
            hidden: 384,
            intermediate: 1536,
            layers: 6,
            heads: 12,
            kv_heads: 12,
            head_dim: None,
            vocabulary: 30522,
            max_positions: 512,
        })
    }

    /// Llama: normalization by the mean square before each part and at the end, rotary positions of base 10000, no biases, causal, SwiGLU,
    /// a head of its own.
    pub fn llama(sizes: Sizes) -> Self {
        let layer = |name: &str| format!("model.layers.{LAYER}.{name}");
        Self {
            sizes,
            norm: Norm { kind: NormKind::RmsNorm, placement: Placement::Before, eps: 1e-5 },
            causal: true,
            rope_theta: Some(10_000.0),
            activation: Activation::Silu,
            biases: Vec::new(),
            prefix: String::new(),
            tensors: Tensors {
                embedding: EmbeddingTensors {
                    tokens: "model.embed_tokens".to_owned(),
                    positions: None,
                    token_types: None,
                    norm: None,
                },
                block: BlockTensors {
                    attention_in: AttentionTensors {
                        query: layer("self_attn.q_proj"),
                        key: layer("self_attn.k_proj"),
                        value: layer("self_attn.v_proj"),
                    },
                    attention_out: layer("self_attn.o_proj"),
                    attention_norm: layer("input_layernorm"),
                    mlp_in: MlpTensors { gate: Some(layer("mlp.gate_proj")), up: layer("mlp.up_proj") },
                    mlp_out: layer("mlp.down_proj"),
                    mlp_norm: layer("post_attention_layernorm"),
                },
                final_norm: Some("model.norm".to_owned()),
                head: Some(Head::Untied("lm_head".to_owned())),
            },
        }
    }

    /// From JSON, checked.
    ///
    /// # Errors
    /// [`Error::Record`] for malformed JSON and for fields that are missing or not known, and those of [`check`](Self::check).
    pub fn from_json(text: &str) -> Result<Self> {
        let read: Self =
            serde_json::from_str(text).map_err(|e| Error::record("architecture", e.to_string()))?;
        read.check()?;
        Ok(read)
    }

    /// As JSON.
    ///
    /// # Errors
    /// [`Error::Record`] when a number has no JSON form (NaN, infinities).
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::record("architecture", e.to_string()))
    }

    /// Reads a JSON file: a description as [`save`](Self::save) writes it, or a `config.json` (see [`from_config`](Self::from_config)).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] with the reason.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let read =
            if super::config::is_config(&text) { Self::from_config(&text) } else { Self::from_json(&text) };
        read.map_err(|e| Error::File { path: path.to_owned(), reason: e.to_string() })
    }

    /// Writes a JSON file.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`check`](Self::check).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.check()?;
        Staged::new(path, [self.to_json()?.as_bytes(), b"\n"])?.commit()
    }

    /// Refuses sizes that contradict each other, and names that cannot be told apart.
    ///
    /// # Errors
    /// [`Error::Parameter`] with the field, its value and what was expected.
    pub fn check(&self) -> Result<()> {
        let s = &self.sizes;
        let head_dim = s.head_dim();
        let sizes = [
            ("hidden", s.hidden, MAX_FEATURES),
            ("intermediate", s.intermediate, MAX_FEATURES),
            ("layers", s.layers, MAX_LAYERS),
            ("heads", s.heads, MAX_FEATURES),
            ("kv_heads", s.kv_heads, MAX_FEATURES),
            ("vocabulary", s.vocabulary, MAX_FEATURES),
            ("max_positions", s.max_positions, MAX_FEATURES),
        ];
        for (name, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(Error::parameter(name, size, format!("1 to {most}")));
            }
        }
        if s.head_dim.is_none() && !s.hidden.is_multiple_of(s.heads) {
            return Err(Error::parameter("heads", s.heads, format!("a divisor of hidden = {}", s.hidden)));
        }
        if head_dim == 0 || s.heads.checked_mul(head_dim).is_none_or(|width| width > MAX_FEATURES) {
            return Err(Error::parameter("head_dim", head_dim, format!("1 to {MAX_FEATURES} / heads")));
        }
        if !s.heads.is_multiple_of(s.kv_heads) {
            return Err(Error::parameter(
                "kv_heads",
                s.kv_heads,
                format!("a divisor of heads = {}", s.heads),
            ));
        }
        if !(self.norm.eps > 0.0 && self.norm.eps.is_finite()) {
            return Err(Error::parameter("eps", self.norm.eps, "a small positive number"));
        }
        if let Some(theta) = self.rope_theta {
            if !(theta > 0.0 && theta.is_finite()) {
                return Err(Error::parameter("rope_theta", theta, "a positive number"));
            }
            if !head_dim.is_multiple_of(2) {
                return Err(Error::parameter(
                    "head_dim",
                    head_dim,
                    "an even number, as rotary positions need",
                ));
            }
            if let Some(positions) = &self.tensors.embedding.positions {
                return Err(Error::parameter("positions", positions, "none beside rope_theta"));
            }
        }
        self.check_names()
    }

    fn check_names(&self) -> Result<()> {
        let Tensors { embedding, block, final_norm, head } = &self.tensors;
        let untied = match head {
            Some(Head::Untied(name)) => Some(name),
            _ => None,
        };
        let outside = [Some(&embedding.tokens), embedding.positions.as_ref(), embedding.token_types.as_ref()];
        let outside =
            outside.into_iter().chain([embedding.norm.as_ref(), final_norm.as_ref(), untied]).flatten();
        let matrices = self.block_names().into_iter().map(|(_, name, _)| name);
        let inside = matrices.chain([block.attention_norm.as_str(), block.mlp_norm.as_str()]);
        let mut seen = BTreeSet::new();
        for (name, in_block) in
            outside.map(|name| (name.as_str(), false)).chain(inside.map(|name| (name, true)))
        {
            if name.contains(LAYER) != in_block {
                let expected = if in_block { "a name with {layer} in it" } else { "a name without {layer}" };
                return Err(Error::parameter("tensor name", name, expected));
            }
            if !seen.insert(name) {
                return Err(Error::parameter("tensor name", name, "a name that is used once"));
            }
        }
        Ok(())
    }

    /// A block's matrices in the order of their execution: stage, name, out x in.
    fn block_names(&self) -> Vec<(Stage, &str, (usize, usize))> {
        let BlockTensors { attention_in, attention_out, mlp_in, mlp_out, .. } = &self.tensors.block;
        let Sizes { hidden, intermediate, heads, kv_heads, .. } = self.sizes;
        let head_dim = self.sizes.head_dim();
        let (queries, keys) = (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim));
        let mut names = vec![
            (Stage::AttentionIn, attention_in.query.as_str(), (queries, hidden)),
            (Stage::AttentionIn, &attention_in.key, (keys, hidden)),
            (Stage::AttentionIn, &attention_in.value, (keys, hidden)),
            (Stage::AttentionOut, attention_out, (hidden, queries)),
        ];
        names.extend(mlp_in.gate.as_deref().map(|gate| (Stage::MlpIn, gate, (intermediate, hidden))));
        names.push((Stage::MlpIn, &mlp_in.up, (intermediate, hidden)));
        names.push((Stage::MlpOut, mlp_out, (hidden, intermediate)));
        names
    }

    /// The sites of one block, in the order of their execution: those of a stage lie side by side.
    pub fn block_sites(&self, layer: usize) -> Vec<Site> {
        let site =
            |(stage, name, shape)| Site { name: self.tensor(name, layer) + ".weight", layer, stage, shape };
        self.block_names().into_iter().map(site).collect()
    }

    /// The sites of all blocks, in the order of their execution. No file is needed: the description has their shapes.
    pub fn sites(&self) -> Vec<Site> {
        (0..self.sizes.layers.min(MAX_LAYERS)).flat_map(|layer| self.block_sites(layer)).collect()
    }

    /// A full name, without `.weight`.
    pub(super) fn tensor(&self, name: &str, layer: usize) -> String {
        format!("{}{}", self.prefix, name.replace(LAYER, &layer.to_string()))
    }
}
