use super::Loaded;
use crate::adapters::methods::Tokens;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::json::Node;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::tensor::Tensor;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "TRAINABLE_TOKENS",
    tensors: &["trainable_tokens_delta"],
    shared: &[],
    reads: &["token_indices"],
    ignores: &["init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let indices = module.config().get("token_indices");
    let indices = indices
        .ok_or_else(|| module.bad("field `token_indices` is missing: expected a list of row numbers"))?;
    replaced(module, module.take("trainable_tokens_delta")?, indices)
}

/// The tensor is called a delta, and holds the new rows.
pub(super) fn replaced(module: &Module<'_>, new: &Tensor, indices: &Node) -> Loaded {
    let (rows, dim) = module.shape()?;
    let wrong = || module.bad(format!("token indices are {indices}: expected a list of rows below {rows}"));
    let Node::List(list) = indices else { return Err(wrong()) };
    let index = |node: &Node| match node {
        Node::Number(n) if *n >= 0.0 && n.fract() == 0.0 && *n < rows as f64 => Ok(*n as usize),
        _ => Err(wrong()),
    };
    let indices = list.iter().map(index).collect::<Result<Vec<_>, _>>()?;
    let new = new.flat(Some(indices.len()), Some(dim))?;
    Ok(Box::new(Tokens::new(rows, indices, &new)?))
}
