//! Adapter folders as HuggingFace PEFT writes them: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! A [`Folder`] is opened, and its adapters are loaded module by module, for the shape of the base tensor that each edits. Everything that
//! could change the result is understood or refused, with the reason: unknown settings and values, tensors that nobody claims, shapes that
//! contradict each other or the base, NaN, repeated keys, pickles.
//!
//! One file per tuner, one line in [`TUNERS`].
//!
//! ```
//! use structmat::adapters::{Adapter, peft::Folder};
//! use structmat::io::Writer;
//! use structmat::prelude::*;
//! use structmat::ndarray::array;
//! # fn main() -> structmat::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path();
//! let mut writer = Writer::new();
//! writer.array("base_model.model.fc.lora_A.weight", &array![[3.0f32, 4.0]])?;
//! writer.array("base_model.model.fc.lora_B.weight", &array![[1.0f32], [2.0]])?;
//! writer.write(path.join("adapter_model.safetensors"))?;
//! std::fs::write(path.join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2}"#).unwrap();
//!
//! let folder = Folder::open(path)?;
//! assert_eq!(folder.modules().collect::<Vec<_>>(), ["fc"]);
//! let loaded = folder.load("fc", &|_| Some(vec![2, 2]))?;
//! let base = Dense::new(&array![[1.0f32, 0.0], [0.0, 1.0]])?;
//! assert_eq!(loaded.adapter.delta(&base)?, array![[6.0, 8.0], [12.0, 16.0]]);
//! # Ok(()) }
//! ```

mod config;
mod folder;
mod json;
mod layout;
mod module;
mod mt19937;
mod nested;
mod save;
mod tensor;
mod tuners;

pub use folder::{Folder, Loaded, base_names};
pub use layout::Layout;
pub(crate) use mt19937::{SEED, drawn_positions};
pub use save::save;

use super::Adapter;
use crate::error::Result;
use module::Module;

/// How to read one kind of adapter.
#[derive(Debug)]
pub struct Tuner {
    /// `peft_type` in the configuration.
    pub name: &'static str,
    /// The tensors that its modules have, by the first parts of their names.
    tensors: &'static [&'static str],
    /// Tensors that its modules share, by what their names begin with.
    shared: &'static [&'static str],
    /// Settings that are read, or whose values are checked.
    reads: &'static [&'static str],
    /// Settings that say nothing about the adapted weight.
    ignores: &'static [&'static str],
    load: fn(&Module<'_>) -> Result<Box<dyn Adapter>>,
}

impl Tuner {
    fn shares(&self, name: &str) -> bool {
        self.shared.iter().any(|known| name == *known || known.ends_with('.') && name.starts_with(known))
    }
}

/// The tuners that are read, one line each.
pub const TUNERS: &[Tuner] = &[
    tuners::lora::TUNER,
    tuners::adalora::TUNER,
    tuners::loha::TUNER,
    tuners::lokr::TUNER,
    tuners::ia3::TUNER,
    tuners::vera::TUNER,
    tuners::vera::PVERA,
    tuners::fourier_ft::TUNER,
    tuners::wave_ft::TUNER,
    tuners::c3a::TUNER,
    tuners::oft::TUNER,
    tuners::boft::TUNER,
    tuners::hra::TUNER,
    tuners::miss::TUNER,
    tuners::miss::BONE,
    tuners::vblora::TUNER,
    tuners::randlora::TUNER,
    tuners::shira::TUNER,
    tuners::supertuning::TUNER,
    tuners::road::TUNER,
    tuners::gralora::TUNER,
    tuners::delora::TUNER,
    tuners::hira::TUNER,
    tuners::tinylora::TUNER,
    tuners::unilora::TUNER,
    tuners::psoft::TUNER,
    tuners::adamss::TUNER,
    tuners::osf::TUNER,
    tuners::glora::TUNER,
    tuners::deft::TUNER,
    tuners::frod::TUNER,
    tuners::peanut::TUNER,
    tuners::poly::TUNER,
    tuners::tokens::TUNER,
    tuners::layer_norm::TUNER,
];

/// Tuners of PEFT that are refused, and why.
pub const REFUSED: &[(&str, &str)] = &[
    ("LILY", "its weights depend on the whole batch of inputs: no matrix does what it does"),
    ("XLORA", "its weights depend on the input"),
    ("SHADOW", "its weights depend on the input"),
    ("PROMPT_TUNING", "it adds inputs, not weights"),
    ("MULTITASK_PROMPT_TUNING", "it adds inputs, not weights"),
    ("P_TUNING", "it adds inputs, not weights"),
    ("PREFIX_TUNING", "it adds keys and values, not weights"),
    ("CPT", "it adds inputs, not weights"),
    ("CARTRIDGE", "it adds keys and values, not weights"),
    ("ADAPTION_PROMPT", "it adds keys and values, not weights"),
    ("BEFT", "it trains biases alone"),
];
