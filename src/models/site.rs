use serde::{Deserialize, Serialize};
use std::fmt;

/// The four steps of a block. The matrices of a stage share one input; what they return makes the input of the next stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Query, key and value; then attention.
    AttentionIn,
    /// The heads' results back to the hidden state.
    AttentionOut,
    /// Up, and gate where there is one; then the activation.
    MlpIn,
    /// Down, back to the hidden state.
    MlpOut,
}

impl Stage {
    /// All, in the order of their execution.
    pub const ALL: [Stage; 4] = [Stage::AttentionIn, Stage::AttentionOut, Stage::MlpIn, Stage::MlpOut];

    /// The one after it in the same block.
    pub fn next(self) -> Option<Stage> {
        Self::ALL.into_iter().find(|stage| *stage > self)
    }

    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Stage::AttentionIn => "attention_in",
            Stage::AttentionOut => "attention_out",
            Stage::MlpIn => "mlp_in",
            Stage::MlpOut => "mlp_out",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A place in a transformer where a matrix stands, which another one can replace.
///
/// Sites of the same `layer` and `stage` share their input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Site {
    /// Name of the weight in files, such as `encoder.layer.0.attention.self.query.weight`.
    pub name: String,
    /// Number of the block, from 0.
    pub layer: usize,
    /// When it is used.
    pub stage: Stage,
    /// out x in.
    pub shape: (usize, usize),
}

impl Site {
    /// The name without `.weight`: what [`Linear::load`](crate::layers::Linear::load) takes.
    pub fn layer_name(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }
}
