use super::Loaded;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

/// Normalisation layers trained as a whole: their tensors replace the model's, and no matrix is adapted.
pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "LN_TUNING",
    tensors: &["ln_tuning_layers"],
    shared: &[],
    reads: &[],
    ignores: &["init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    Err(module.bad(format!("module `{}` is no normalisation layer", module.name())))
}
