use super::Loaded;
use crate::adapters::methods;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "SHIRA",
    tensors: &["shira_weight", "shira_indices"],
    shared: &[],
    reads: &["r", "fan_in_fan_out"],
    ignores: &["mask_type", "random_seed", "init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), weights) = (module.shape()?, module.take("shira_weight")?.vector(None)?);
    let indices = module.take("shira_indices")?;
    let count = weights.len();
    indices.dims(&[Some(2), Some(count)])?;
    let indices = indices.indices(m.max(n))?;
    let entries = weights.iter().enumerate().map(|(k, value)| (indices[k], indices[count + k], *value));
    Ok(Box::new(methods::sparse_delta((m, n), entries.collect())?))
}
