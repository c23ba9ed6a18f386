use super::Loaded;
use crate::adapters::methods::{self, low_rank};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::compose::Sum;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "GRALORA",
    tensors: &["gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general"],
    shared: &[],
    reads: &["r", "alpha", "gralora_k", "hybrid_r", "fan_in_fan_out"],
    ignores: &["gralora_dropout", "init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let a = module.take("gralora_A")?.array3([config.size("gralora_k")?, None, None])?;
    let (k, p, rank) = a.dim();
    let b = module.take("gralora_B")?.array3([Some(k), Some(rank), None])?;
    if (k * p, k * b.dim().2) != (n, m) {
        return Err(module.bad(format!(
            "`{}`: {k} x {k} blocks of {} x {p} are not {m} x {n}",
            module.name(),
            b.dim().2
        )));
    }
    module.check_rank(rank, "r", "")?;
    let hybrid = config.size("hybrid_r")?.unwrap_or(0);
    let scale = config.need_number("alpha")? / (rank + hybrid) as f64;
    let grid = methods::gralora(&a, &b, scale)?;
    if hybrid == 0 {
        return Ok(Box::new(grid));
    }
    let a = module.take("gralora_A_general.weight")?.factor(Some(hybrid), Some(n))?;
    let b = module.take("gralora_B_general.weight")?.factor(Some(m), Some(hybrid))?;
    let sum = Sum::new(vec![grid.matrix().clone_box(), low_rank(b, &vec![scale; hybrid], a)?])?;
    super::additive("gralora", Box::new(sum), (rank + hybrid) * (m + n))
}
