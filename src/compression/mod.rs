//! Whole models: which structure and how much of it each matrix gets, fitted to what the layer really sees.
//!
//! ```text
//! Model, Tokens ─► survey: every variant of every matrix, its size and its error ─► plan: one budget spread over all
//!                                                                                        │
//!         small file ◄─ write ◄─ fit: block by block, on what compressed predecessors make of the inputs
//! ```
//!
//! A [`Compressor`] walks the model block by block, so that memory holds a few blocks and the hidden states of the calibration tokens,
//! whatever the size of the model. What is finished is in the files of its work folder: an interrupted run goes on where it stood, and
//! several processes can take a share of the blocks each.
//!
//! The pieces are public too: [`calibration`](crate::calibration) gathers what layers see, [`allocation`](crate::allocation) spreads a
//! budget, [`models`](crate::models) runs what comes out. [`channel_prune`] takes hidden channels out of a feed-forward block.
//!
//! ```
//! use std::sync::Arc;
//! use structmat::compression::{Compressor, ModelBudget, Refinement, Settings};
//! use structmat::io::{Checkpoint, Writer};
//! use structmat::models::{Architecture, Model, Sizes, Tokens, Transformer};
//! use structmat::ndarray::{Array1, Array2};
//! use structmat::prelude::*;
//! # fn main() -> structmat::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = |name: &str| folder.path().join(name);
//! // A model: here a file of any weights, of the Llama kind.
//! let sizes = Sizes {
//!     hidden: 8, intermediate: 16, layers: 1, heads: 2, kv_heads: 1, head_dim: None, vocabulary: 10, max_positions: 32,
//! };
//! let mut architecture = Architecture::llama(sizes);
//! architecture.tensors.head = None;
//! let mut writer = Writer::new();
//! for site in architecture.sites() {
//!     writer.array(&site.name, &Array2::<f32>::from_shape_fn(site.shape, |(i, j)| ((3 * i + 5 * j) % 7) as f32 - 3.0))?;
//! }
//! for norm in ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"] {
//!     writer.array(&format!("{norm}.weight"), &Array1::<f32>::ones(8))?;
//! }
//! writer.array("model.embed_tokens.weight", &Array2::<f32>::from_shape_fn((10, 8), |(i, j)| ((i * j) % 5) as f32))?;
//! writer.write(path("model.safetensors"))?;
//! let model = Model::new(architecture, Arc::new(Checkpoint::open(path("model.safetensors"))?))?;
//!
//! // Half of the parameters, spread over all matrices, each fitted to what it sees in some text, then refined block by block.
//! let text = Tokens::from_sequences([&[1, 2, 3, 4][..], &[5, 6, 7], &[8, 9, 1, 3, 5]])?;
//! let settings = Settings {
//!     refinement: Some(Refinement { epochs: 2, ..Refinement::default() }),
//!     ..Settings::new(ModelBudget::Params(0.5), &["low_rank", "sparse", "dense"], &[Storage::F32])?
//! };
//! let compressor = Compressor::new(&model, &text, settings, Parallelism::Seq, path("work"))?;
//! let compressed = compressor.run(&mut |_event| ())?;
//! for matrix in compressed.matrices() {
//!     println!("{} {}: {:.4}", matrix.name, matrix.choice.variant, matrix.error);
//! }
//! compressed.write(path("small.safetensors"))?;
//!
//! // What was written runs like the model that it came from.
//! let file = structmat::io::open(path("small.safetensors"))?;
//! let small = Transformer::load(Model::new(model.architecture().clone(), file)?)?;
//! let states = small.forward(&text, &mut Exec::new(), &mut ())?;
//! assert_eq!(states.values().dim(), (12, 8));
//! assert!(2 * compressed.params() <= model.sites().iter().map(|site| site.shape.0 * site.shape.1).sum::<usize>());
//! # Ok(()) }
//! ```

mod channels;
mod compressor;
mod plan;
mod refine;
mod rules;
mod sensitivity;
mod settings;
mod survey;
mod variant;
mod work;

pub use channels::{FeedForward, PrunedChannels, channel_prune};
pub use compressor::{CompressedModel, Compressor, Event, Fitted, FittedBlock, Shard};
pub use plan::{Choice, Plan};
pub use refine::{Refined, Refinement};
pub use sensitivity::Sensitivities;
pub use settings::{Method, ModelBudget, Settings};
pub use survey::{Measured, SiteSurvey, Spectra};
pub use variant::Variant;
