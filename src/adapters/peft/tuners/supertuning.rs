use super::Loaded;
use crate::adapters::methods::{self, low_rank};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::compose::Sum;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "SUPERTUNING",
    tensors: &["supertuning_values", "supertuning_indices", "supertuning_lora_A", "supertuning_lora_B"],
    shared: &[],
    reads: &["r", "lora_alpha", "save_precomputed_indices"],
    ignores: &["sparsity", "lora_dropout", "select_top", "init_weights"],
    load,
};

/// Free entries, at places counted row by row, and a LoRA where there is one.
fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let values = module.take("supertuning_values")?.vector(None)?;
    let places = module.maybe("supertuning_indices").ok_or_else(|| {
        module.unsupported("the places were not saved (`save_precomputed_indices`), and follow from the data")
    })?;
    places.dims(&[Some(values.len())])?;
    let places = places.indices(m * n)?;
    let entries = places.iter().zip(&values).map(|(at, value)| (at / n, at % n, *value)).collect();
    let sparse = methods::sparse_delta((m, n), entries)?;
    let Some(a) = module.maybe("supertuning_lora_A.weight") else { return Ok(Box::new(sparse)) };
    let b = module.take("supertuning_lora_B.weight")?;
    let rank = b.flat(Some(m), None)?.ncols();
    module.check_rank(rank, "r", "")?;
    let scales = vec![config.need_number("lora_alpha")? / rank as f64; rank];
    let lora = low_rank(b.factor(Some(m), Some(rank))?, &scales, a.factor(Some(rank), Some(n))?)?;
    let sum = Sum::new(vec![sparse.matrix().clone_box(), lora])?;
    super::additive("supertuning", Box::new(sum), values.len() + rank * (m + n))
}
