use super::Loaded;
use crate::adapters::methods;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use ndarray::Ix4;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "BOFT",
    tensors: &["boft_R", "boft_s"],
    shared: &[],
    reads: &["boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "fan_in_fan_out"],
    ignores: &["boft_dropout", "init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), r) = (module.shape()?, module.take("boft_R")?);
    let factors = module.config().size("boft_n_butterfly_factor")?;
    r.dims(&[factors, None, None, None])?;
    let stack = r.values().clone().into_dimensionality::<Ix4>().map_err(|e| r.bad(e.to_string()))?;
    let scales = module.take("boft_s")?.vector(Some(m))?;
    Ok(Box::new(methods::boft((m, n), &stack, Some(&scales))?))
}
