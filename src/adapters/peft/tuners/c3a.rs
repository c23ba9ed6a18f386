use super::Loaded;
use crate::adapters::methods;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "C3A",
    tensors: &["c3a_kernel"],
    shared: &[],
    reads: &["block_size", "block_size_pattern"],
    ignores: &["init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), kernel) = (module.shape()?, module.take("c3a_kernel")?);
    let kernel = kernel.array3([None, None, None])?;
    let (rows, cols, b) = kernel.dim();
    module.check_rank_or(b, "block_size", "block_size_pattern")?;
    if (rows.checked_mul(b), cols.checked_mul(b)) != (Some(m), Some(n)) {
        return Err(
            module.bad(format!("`{}`: {rows} x {cols} blocks of {b} are not {m} x {n}", module.name()))
        );
    }
    Ok(Box::new(methods::c3a(&kernel)?))
}
