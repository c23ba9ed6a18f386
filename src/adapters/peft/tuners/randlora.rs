use super::{Loaded, factor};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::tensor::Tensor;
use crate::error::Result;
use crate::structures::Dense;
use ndarray::Array2;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "RANDLORA",
    prefix: "randlora_",
    shared: &["randlora_A", "randlora_B"],
    reads: &["r", "randlora_alpha", "save_projection", "fan_in_fan_out"],
    ignores: &["randlora_dropout", "sparse", "very_sparse", "projection_prng_key", "init_weights"],
    load,
};

/// A sum of `q` products of shared random bases with scales of their own, of full rank: made densely when loaded.
fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let (small, large) = (m.min(n), m.max(n));
    let lambda = module.take("randlora_lambda")?.flat(None, None)?;
    let (r, q) = lambda.dim();
    module.check_rank(r, "r", "")?;
    let gamma = module.take("randlora_gamma")?.flat(Some(q), Some(small))?;
    if q != small.div_ceil(r) {
        return Err(module.bad(format!("`{}`: {q} bases of rank {r} for {small} features", module.name())));
    }
    let (a, b) = (basis(module, "randlora_A")?, basis(module, "randlora_B")?);
    let (a, b) = (a.array3([Some(r), Some(1), None])?, b.array3([None, None, Some(r)])?);
    if a.dim().2 < small || b.dim().0 < large || b.dim().1 < q {
        return Err(module.bad(format!(
            "shared bases {:?} and {:?} do not serve {m} x {n}",
            a.dim(),
            b.dim()
        )));
    }
    let right = Array2::from_shape_fn((r * q, small), |(t, j)| {
        a[[t / q, 0, j]] * lambda[[t / q, t % q]] * gamma[[t % q, j]]
    });
    // The two sides count their directions in different orders.
    let left = Array2::from_shape_fn((large, r * q), |(i, t)| b[[i, t / r, t % r]]);
    let product = left.dot(&right) * (config.need_number("randlora_alpha")? / r as f64);
    let delta = if m >= n { product } else { product.reversed_axes() };
    super::additive("randlora", Box::new(Dense::from_factor(factor(&delta))?), lambda.len() + gamma.len())
}

/// A basis, which the file holds for all modules, and again for each.
fn basis<'a>(module: &Module<'a>, name: &str) -> Result<&'a Tensor> {
    match (module.maybe(name), module.maybe_shared(name)) {
        (Some(own), Some(shared)) if own.values() != shared.values() => {
            Err(own.bad("differs from the one that all modules share"))
        }
        (own, shared) => own.or(shared).ok_or_else(|| {
            module.unsupported(format!(
                "`{name}` was not saved (`save_projection`), and its random numbers are not portable"
            ))
        }),
    }
}
