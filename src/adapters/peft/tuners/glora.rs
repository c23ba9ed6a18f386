use super::Loaded;
use crate::adapters::methods::{Glora, Path};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::error::Result;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "GLORA",
    prefix: "glora_",
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
        let (b, a) = (module.take(&format!("glora_{name}.Xd"))?, module.take(&format!("glora_{name}.Xu"))?);
        let b = b.flat(None, None)?;
        module.check_rank(b.ncols(), "r", "")?;
        let a = a.flat(Some(b.ncols()), None)?;
        Ok(Path::Product(b, a))
    };
    let paths = [path("A")?, path("B")?, path("C")?, path("D")?, path("E")?];
    Ok(Box::new(Glora::new(module.shape()?, paths)?))
}
