use super::Loaded;
use crate::adapters::methods::{DeftForm, deft};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "DEFT",
    tensors: &["deft_P", "deft_R"],
    shared: &[],
    reads: &["r", "alpha", "decomposition_method", "para", "fan_in_fan_out"],
    ignores: &["deft_dropout", "init_scale", "init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let p = module.take("deft_P")?.flat(Some(m), None)?;
    let rank = p.ncols();
    module.check_rank(rank, "r", "")?;
    let form = match config.choice("decomposition_method", &["relu", "qr"])? {
        "relu" => DeftForm::Relu,
        _ => DeftForm::Qr,
    };
    let scale = config.number("alpha")?.map_or(1.0, |alpha| alpha / rank as f64);
    let r = match config.flag("para", false)? {
        true => None,
        false => Some(module.take("deft_R")?.flat(Some(rank), Some(n))?),
    };
    Ok(Box::new(deft((m, n), &p, r.as_deref(), form, scale)?))
}
