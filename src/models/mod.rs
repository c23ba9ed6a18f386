//! Transformers: run them, see what goes into their matrices, replace these.
//!
//! An [`Architecture`] describes a model, a [`Model`] is one in a file (or several), a [`Block`] one of its blocks in memory, a [`Transformer`] all of
//! them. Models of the BERT kind (normalization after each part, learned positions, every token sees every other) and of the Llama kind
//! (normalization before each part, rotary positions, causal, grouped keys, gated MLP) are the same code with another description.
//!
//! ```text
//! Tokens ──embed──► Hidden ──► Block: attention_in ─► attention_out ─► mlp_in ─► mlp_out ──► Hidden ──► ... ──► Output
//!                              q, k, v share          attention's      up, gate   down
//!                              one input              results          share one
//! ```
//!
//! Sequences lie end to end, without padding: a matrix multiplies all tokens of all sequences at once, attention looks at one sequence
//! at a time. Numbers are `f32`; the threads of an [`Exec`](crate::Exec) change no bit of the result.
//!
//! ```
//! use std::sync::Arc;
//! use structmat::io::{Checkpoint, Writer};
//! use structmat::models::{Architecture, Model, Site, Sizes, Tokens, Transformer};
//! use structmat::ndarray::{Array1, Array2, ArrayRef2};
//! use structmat::prelude::*;
//! # fn main() -> structmat::Result<()> {
//! let sizes = Sizes {
//!     hidden: 8, intermediate: 16, layers: 1, heads: 2, kv_heads: 1, head_dim: None, vocabulary: 10, max_positions: 32,
//! };
//! let mut architecture = Architecture::llama(sizes);
//! architecture.tensors.head = None;
//! // A file of such a model, of any weights.
//! let mut writer = Writer::new();
//! for site in architecture.sites() {
//!     writer.array(&site.name, &Array2::<f32>::from_shape_fn(site.shape, |(i, j)| 1.0 / (1 + i + j) as f32))?;
//! }
//! for norm in ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"] {
//!     writer.array(&format!("{norm}.weight"), &Array1::<f32>::ones(8))?;
//! }
//! writer.array("model.embed_tokens.weight", &Array2::<f32>::eye(10).slice(ndarray::s![.., ..8]))?;
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("model.safetensors");
//! writer.write(&path)?;
//!
//! let mut model = Transformer::load(Model::new(architecture, Arc::new(Checkpoint::open(&path)?))?)?;
//! let tokens = Tokens::from_sequences([&[1, 2, 3][..], &[4]])?;
//! // What do the matrices see?
//! let mut gram = Gram::new(8);
//! let mut observe = |sites: &[Site], inputs: &ArrayRef2<f32>| match sites[0].name.ends_with("q_proj.weight") {
//!     true => gram.accumulate(inputs),
//!     false => Ok(()),
//! };
//! let dense = model.forward(&tokens, &mut Exec::new(), &mut observe)?;
//! // Replace one of them.
//! let name = "model.layers.0.self_attn.q_proj.weight";
//! let w = model.linear(name)?.weight().to_dense::<f32>();
//! let spec = LowRankSpec { rank: 2, ..Default::default() };
//! let fit = LowRank::project(&w, &spec, &Objective::Activations(&gram), &Options::default())?;
//! model.replace_weight(name, Box::new(fit.matrix))?;
//! let compressed = model.forward(&tokens, &mut Exec::new(), &mut ())?;
//! assert_eq!(compressed.values().dim(), (4, 8));
//! # assert!((compressed.values() - dense.values()).iter().all(|d| d.abs() < 1e-2));
//! # Ok(()) }
//! ```

mod architecture;
mod attention;
mod block;
mod config;
mod hidden;
mod model;
mod norm;
mod pointwise;
mod site;
mod tape;
mod tokens;
mod transformer;

pub use crate::activation::Activation;
pub use architecture::{
    Architecture, AttentionTensors, BlockTensors, EmbeddingTensors, Head, MlpTensors, Norm, NormKind,
    Placement, Sizes, Tensors,
};
pub use block::{Block, Observer, Walk};
pub use hidden::Hidden;
pub use model::{Model, Output};
pub use site::{Site, Stage};
pub use tape::{BlockGradients, Tape};
pub use tokens::Tokens;
pub use transformer::Transformer;
