use super::Loaded;
use crate::adapters::methods::{Peanut, Pointwise};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::error::Result;
use ndarray::Array2;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "PEANUT",
    tensors: &["peanut_A", "peanut_B", "peanut_encoders", "peanut_decoders"],
    shared: &[],
    reads: &["r", "depth", "act_fn", "scaling"],
    ignores: &["init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let a = module.take("peanut_A.weight")?.flat(None, Some(m))?;
    let rank = a.nrows();
    module.check_rank(rank, "r", "")?;
    let b = module.take("peanut_B.weight")?.flat(Some(m), Some(rank))?;
    let layers = |name: &str| -> Result<Vec<Array2<f64>>> {
        let tensors = module.numbered(name, ".weight");
        tensors.into_iter().map(|tensor| tensor.flat(Some(rank), Some(rank))).collect()
    };
    let (encoders, decoders) = (layers("peanut_encoders")?, layers("peanut_decoders")?);
    if let Some(depth) = config.size("depth")?
        && depth != encoders.len()
    {
        return Err(
            module.bad(format!("field `depth` = {depth}, and the file has {} encoders", encoders.len()))
        );
    }
    let activation: Pointwise = config.text("act_fn")?.unwrap_or("relu").parse()?;
    let scale = config.number("scaling")?.unwrap_or(1.0);
    Ok(Box::new(Peanut::new((m, n), (a, b), (encoders, decoders), activation, scale)?))
}
