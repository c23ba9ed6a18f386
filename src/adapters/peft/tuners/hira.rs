use super::Loaded;
use crate::adapters::methods::Hadamard;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "HIRA",
    tensors: &["hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"],
    shared: &[],
    reads: &["r", "rank_pattern", "fan_in_fan_out"],
    ignores: &["hira_dropout", "init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    if let Some(a) = module.maybe("hira_embedding_A") {
        // A table of rows: the change is the transpose of what a linear layer would have.
        let a = a.flat(None, Some(m))?;
        let b = module.take("hira_embedding_B")?.flat(Some(n), Some(a.nrows()))?;
        // PEFT has no pattern for tables.
        module.check_rank(a.nrows(), "r", "")?;
        return Ok(Box::new(Hadamard::new(&a.t(), &b.t())?));
    }
    let a = module.kernel("hira_A")?;
    let b = module.pointwise("hira_B")?.flat(Some(m), Some(a.shape()[0]))?;
    let a = a.flat(None, Some(n))?;
    module.check_rank(a.nrows(), "r", "rank_pattern")?;
    Ok(Box::new(Hadamard::new(&b, &a)?))
}
