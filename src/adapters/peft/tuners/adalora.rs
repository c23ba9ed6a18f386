use super::{Loaded, additive};
use crate::adapters::methods::low_rank;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "ADALORA",
    tensors: &["lora_A", "lora_B", "lora_E"],
    shared: &[],
    reads: &["lora_alpha", "init_r", "rank_pattern", "fan_in_fan_out", "init_lora_weights"],
    ignores: &[
        "r",
        "target_r",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "total_step",
        "lora_dropout",
        "loftq_config",
        "qalora_group_size",
    ],
    load,
};

/// `D = B (E ⊙ A) alpha / (init_r + 1e-5)`; after pruning the factors are smaller, and the scale stays.
fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let (a, b, e) = (module.take("lora_A")?, module.take("lora_B")?, module.take("lora_E")?);
    let rank = b.flat(Some(m), None)?.ncols();
    let start = config.need_size("init_r")? as f64;
    let alpha = config.number("lora_alpha")?.filter(|alpha| *alpha > 0.0).unwrap_or(start);
    let scale = alpha / (start + 1e-5);
    let scales: Vec<f64> = e.vector(Some(rank))?.into_iter().map(|e| e * scale).collect();
    let delta = low_rank(b.factor(Some(m), Some(rank))?, &scales, a.factor(Some(rank), Some(n))?)?;
    additive("adalora", delta, rank * (m + n + 1))
}
