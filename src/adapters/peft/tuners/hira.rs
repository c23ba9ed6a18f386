use super::Loaded;
use crate::adapters::methods::Hadamard;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "HIRA",
    prefix: "hira_",
    shared: &[],
    reads: &["r", "rank_pattern", "fan_in_fan_out"],
    ignores: &["hira_dropout", "init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    if let Some(table) = module.maybe("hira_embedding_A") {
        return Err(table.bad("belongs to an embedding, which is not read for this kind of adapter"));
    }
    let a = module.take("hira_A")?.flat(None, Some(n))?;
    let b = module.take("hira_B")?.flat(Some(m), Some(a.nrows()))?;
    module.check_rank(a.nrows(), "r", "rank_pattern")?;
    Ok(Box::new(Hadamard::new(&b, &a)?))
}
