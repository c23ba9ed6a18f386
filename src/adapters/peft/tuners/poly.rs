use super::{Loaded, additive, product};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use ndarray::{Array2, Ix4};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "POLY",
    tensors: &["poly_lora_A", "poly_lora_B", "poly_router"],
    shared: &[],
    reads: &["r", "poly_type", "n_tasks", "n_skills", "n_splits"],
    ignores: &["init_weights"],
    load,
};

/// A mixture of LoRAs for each task: `A` (in x r) of splits one below the other, `B` (r x out) of splits side by side, `D = (A B)ᵀ / r`.
fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    config.choice("poly_type", &["poly"])?;
    let (a, b) = (module.take("poly_lora_A")?, module.take("poly_lora_B")?);
    let &[splits, skills, p, rank] = a.dims(&[None, None, None, None])? else {
        return Err(a.bad("has not four axes"));
    };
    b.dims(&[Some(splits), Some(skills), Some(rank), None])?;
    let (a_all, b_all) = (a.values().clone(), b.values().clone());
    let a_all = a_all.into_dimensionality::<Ix4>().map_err(|e| a.bad(e.to_string()))?;
    let b_all = b_all.into_dimensionality::<Ix4>().map_err(|e| b.bad(e.to_string()))?;
    let s = b_all.dim().3;
    if (splits * p, splits * s) != (n, m) {
        return Err(
            a.bad(format!("makes {splits} splits of {p} inputs and {s} outputs, expected {n} and {m}"))
        );
    }
    module.check_rank(rank, "r", "")?;
    let logits = module.take("poly_router.module_logits")?.flat(None, Some(splits * skills))?;
    let task = module.task().ok_or_else(|| {
        module
            .unsupported(format!("each of its {} tasks has a change of its own: select one", logits.nrows()))
    })?;
    if task >= logits.nrows() {
        return Err(module.bad(format!("task {task} of {}", logits.nrows())));
    }
    let mut weights = Array2::from_shape_fn((splits, skills), |(q, k)| {
        1.0 / (1.0 + (-logits[[task, q * skills + k]]).exp())
    });
    for mut row in weights.outer_iter_mut() {
        let total = row.sum() + 1e-12;
        row /= total;
    }
    let mixed =
        |q: usize, value: &dyn Fn(usize) -> f64| (0..skills).map(|k| weights[[q, k]] * value(k)).sum();
    let right = Array2::from_shape_fn((rank, n), |(t, j)| mixed(j / p, &|k| a_all[[j / p, k, j % p, t]]));
    let left = Array2::from_shape_fn((m, rank), |(i, t)| mixed(i / s, &|k| b_all[[i / s, k, t, i % s]]));
    let params = a.values().len() + b.values().len() + logits.len();
    additive("poly", product(&left, 1.0 / rank as f64, &right)?, params)
}
