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

mod adam;
mod compressor;
mod plan;
mod refine;
mod rules;
mod settings;
mod survey;
mod variant;
mod work;

pub use compressor::{CompressedModel, Compressor, Event, Fitted, FittedBlock, Shard};
pub use plan::{Choice, Plan};
pub use refine::{Refined, Refinement};
pub use settings::{Method, ModelBudget, Settings};
pub use survey::{Measured, SiteSurvey, Spectra};
pub use variant::Variant;
