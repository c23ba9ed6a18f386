use super::{Loaded, additive, factor};
use crate::adapters::methods::low_rank;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use ndarray::{Array2, Axis};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "TINYLORA",
    tensors: &["tinylora_A", "tinylora_B", "tinylora_P"],
    shared: &["tinylora_v."],
    reads: &["r", "u", "save_projection", "fan_in_fan_out"],
    ignores: &["weight_tying", "tinylora_dropout", "projection_seed", "init_v_bound", "init_weights"],
    load,
};

/// `D = B (Σ_i v_i P_i) A` with saved factors of the base; the `v` are shared by groups of modules.
fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let mut groups = module.shared_names();
    let v = match (groups.next(), groups.next()) {
        _ if module.maybe("tinylora_v").is_some() => module.take("tinylora_v")?.vector(None)?,
        (Some(name), None) => module.shared(name)?.vector(None)?,
        (None, _) => return Err(module.bad("shared tensor `tinylora_v.0` is missing")),
        _ => {
            return Err(module
                .unsupported("several groups of `tinylora_v`: which module belongs to which is not saved; supply each one its `tinylora_v`"));
        }
    };
    let saved = |name: &str| {
        module.maybe(name).ok_or_else(|| {
            module.unsupported(format!(
                "`{name}` was not saved (`save_projection`): it follows from a random draw and an SVD"
            ))
        })
    };
    let (a, b, p) = (saved("tinylora_A")?, saved("tinylora_B")?, saved("tinylora_P")?);
    let rank = a.flat(None, Some(n))?.nrows();
    module.check_rank(rank, "r", "")?;
    let p = p.array3([Some(v.len()), Some(rank), Some(rank)])?;
    let mut core = Array2::<f64>::zeros((rank, rank));
    p.axis_iter(Axis(0)).zip(&v).for_each(|(p, v)| core.scaled_add(*v, &p));
    let left = b.flat(Some(m), Some(rank))?.dot(&core);
    additive("tinylora", low_rank(factor(&left), &vec![1.0; rank], a.factor(Some(rank), Some(n))?)?, v.len())
}
