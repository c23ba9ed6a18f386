use super::Loaded;
use crate::adapters::methods::Tokens;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::json::Node;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "TRAINABLE_TOKENS",
    prefix: "trainable_tokens_",
    shared: &[],
    reads: &["token_indices"],
    ignores: &["init_weights"],
    load,
};

/// The tensor is called a delta, and holds the new rows.
fn load(module: &Module<'_>) -> Loaded {
    let (rows, dim) = module.shape()?;
    let config = module.config();
    let wrong = || config.bad("field `token_indices`: expected a list of row numbers");
    let Some(Node::List(list)) = config.get("token_indices") else { return Err(wrong()) };
    let index = |node: &Node| match node {
        Node::Number(n) if *n >= 0.0 && n.fract() == 0.0 && *n < rows as f64 => Ok(*n as usize),
        _ => Err(wrong()),
    };
    let indices = list.iter().map(index).collect::<Result<Vec<_>, _>>()?;
    let new = module.take("trainable_tokens_delta")?.flat(Some(indices.len()), Some(dim))?;
    Ok(Box::new(Tokens::new(rows, indices, &new)?))
}
