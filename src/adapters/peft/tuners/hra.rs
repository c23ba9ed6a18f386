use super::Loaded;
use crate::adapters::methods;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "HRA",
    tensors: &["hra_u"],
    shared: &[],
    reads: &["r", "apply_GS"],
    ignores: &["init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let u = module.take("hra_u")?.flat(Some(n), None)?;
    module.check_rank(u.ncols(), "r", "")?;
    Ok(Box::new(methods::hra((m, n), &u, module.config().flag("apply_GS", false)?)?))
}
