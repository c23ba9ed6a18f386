use super::Loaded;
use crate::adapters::methods::{Glora, Path};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::error::Result;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "GLORA",
    tensors: &["glora_A", "glora_B", "glora_C", "glora_D", "glora_E"],
    shared: &[],
    reads: &["r", "config_A_B", "config_C", "config_D_E"],
    ignores: &["init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    // A vector is a column.
    let path = |name: &str| -> Result<Path> {
        if let Some(plain) = module.maybe(&format!("glora_{name}.X")) {
            return Ok(Path::Plain(plain.flat(None, None)?));
        }
        if let Some(none) = module.maybe(&format!("glora_{name}.zeros")) {
            return match none.values().iter().all(|v| *v == 0.0) {
                true => Ok(Path::Plain(ndarray::Array2::zeros((1, 1)))),
                false => Err(none.bad("holds other numbers than 0")),
            };
        }
        let (b, a) = (module.take(&format!("glora_{name}.Xd"))?, module.take(&format!("glora_{name}.Xu"))?);
        let b = b.flat(None, None)?;
        module.check_rank(b.ncols(), "r", "")?;
        let a = a.flat(Some(b.ncols()), None)?;
        Ok(Path::Product(b, a))
    };
    let paths = [path("A")?, path("B")?, path("C")?, path("D")?, path("E")?];
    Ok(Box::new(Glora::new(module.shape()?, paths)?))
}
