use super::Loaded;
use crate::adapters::methods::{self, Bat};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::json::Node;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::tensor::Tensor;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "MISS",
    tensors: &["miss_block"],
    shared: &[],
    reads: &["r", "mini_r", "init_weights"],
    ignores: &["miss_dropout"],
    load: |module| load(module, module.take("miss_block")?),
};

/// What MiSS was called up to PEFT 0.17.
pub(in crate::adapters::peft) const BONE: Tuner = Tuner {
    name: "BONE",
    tensors: &["bone_block"],
    shared: &[],
    reads: &["r", "init_weights"],
    ignores: &["bone_dropout"],
    load: |module| load(module, module.take("bone_block")?),
};

fn load(module: &Module<'_>, block: &Tensor) -> Loaded {
    let (m, n) = module.shape()?;
    let form = match module.config().get("init_weights") {
        None | Some(Node::Flag(_)) => "plain",
        Some(Node::Text(name)) if name == "bat" || name == "mini" => name,
        Some(other) => {
            return Err(module.bad(format!("field `init_weights` = {other}: expected true, bat or mini")));
        }
    };
    if form == "bat" {
        let blocks = block.array3([None, None, None])?;
        module.check_rank(blocks.dim().1, "r", "")?;
        return Ok(Box::new(Bat::new((m, n), &blocks)?));
    }
    let cols = if form == "mini" { None } else { Some(m) };
    block.dims(&[None, cols])?;
    let block = block.flat(None, cols)?;
    module.check_rank(block.nrows(), "r", "")?;
    Ok(Box::new(methods::miss((m, n), &block)?))
}
