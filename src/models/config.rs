//! The `config.json` that lies beside published weights.

use super::architecture::{Architecture, Head, Sizes};
use super::site::Stage;
use crate::activation::Activation;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The fields that say how a model runs. Others are about training or other software, and are passed over.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    #[serde(default)]
    architectures: Vec<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: Option<f64>,
    position_embedding_type: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Value,
    #[serde(default)]
    rope_parameters: Value,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// Whether a JSON text is such a file, and no description of this crate.
pub(super) fn is_config(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|value| value.get("model_type").is_some())
}

impl Architecture {
    /// From the text of the `config.json` that lies beside published BERT and Llama weights.
    ///
    /// # Errors
    /// [`Error::Record`] for malformed JSON or a missing field, [`Error::Unknown`] for another model type or activation,
    /// [`Error::Unsupported`] for scaled rotary positions and relative positions, and those of [`check`](Self::check).
    pub fn from_config(text: &str) -> Result<Self> {
        let config: Config =
            serde_json::from_str(text).map_err(|e| Error::record("config.json", e.to_string()))?;
        let sizes = Sizes {
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads),
            head_dim: config.head_dim,
            vocabulary: config.vocab_size,
            max_positions: config.max_position_embeddings,
        };
        let mut read = match config.model_type.as_str() {
            "bert" => bert(sizes, &config)?,
            "llama" => llama(sizes, &config)?,
            other => {
                let expected = "bert or llama; describe others by an `Architecture`".to_owned();
                return Err(Error::Unknown { kind: "model type", name: other.to_owned(), expected });
            }
        };
        read.activation = match config.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            "relu" => Activation::Relu,
            other => {
                let expected = "gelu, gelu_new, gelu_pytorch_tanh, silu, swish or relu".to_owned();
                return Err(Error::Unknown { kind: "activation", name: other.to_owned(), expected });
            }
        };
        read.check()?;
        Ok(read)
    }
}

fn unsupported(config: &Config, what: String) -> Error {
    Error::Unsupported { structure: config.model_type.clone(), what }
}

fn bert(sizes: Sizes, config: &Config) -> Result<Architecture> {
    let mut model = Architecture::bert(sizes);
    if let Some(kind) = config.position_embedding_type.as_deref()
        && kind != "absolute"
    {
        return Err(unsupported(config, format!("position_embedding_type `{kind}`, expected `absolute`")));
    }
    model.norm.eps = config.layer_norm_eps.unwrap_or(model.norm.eps);
    // Models with a task's layers on top keep the encoder under a name of its own.
    if config.architectures.first().is_some_and(|name| name != "BertModel") {
        model.prefix = "bert.".to_owned();
    }
    Ok(model)
}

fn llama(sizes: Sizes, config: &Config) -> Result<Architecture> {
    let mut model = Architecture::llama(sizes);
    let rope = if config.rope_parameters.is_null() { &config.rope_scaling } else { &config.rope_parameters };
    let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str);
    if !rope.is_null() && kind != Some("default") {
        return Err(unsupported(
            config,
            format!("rotary positions scaled by {rope}, expected unscaled ones"),
        ));
    }
    model.rope_theta =
        config.rope_theta.or(rope.get("rope_theta").and_then(Value::as_f64)).or(model.rope_theta);
    model.norm.eps = config.rms_norm_eps.unwrap_or(1e-6);
    if config.tie_word_embeddings {
        model.tensors.head = Some(Head::Tied);
    }
    if config.attention_bias {
        model.biases.extend([Stage::AttentionIn, Stage::AttentionOut]);
    }
    if config.mlp_bias {
        model.biases.extend([Stage::MlpIn, Stage::MlpOut]);
    }
    Ok(model)
}
