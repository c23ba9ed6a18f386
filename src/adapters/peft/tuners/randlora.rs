use super::Loaded;
use crate::adapters::Boxed;
use crate::adapters::methods::low_rank;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::tensor::Tensor;
use crate::compose::{Scaled, Sum, Transposed};
use crate::error::Result;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Axis};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "RANDLORA",
    tensors: &["randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"],
    shared: &["randlora_A", "randlora_B"],
    reads: &["r", "randlora_alpha", "save_projection", "fan_in_fan_out"],
    ignores: &["randlora_dropout", "sparse", "very_sparse", "projection_prng_key", "init_weights"],
    load,
};

/// A sum of `q` products of shared random bases with scales of their own, of full rank: `D = s Σ_j B_j diag(λ_j) A diag(γ_j)`, or its transpose.
///
/// A product costs `r q (m + n)` with `r q` about the smaller side, up to twice a dense one; the bases are held once for all modules of a shape,
/// so that a module has the `r q + q min(m, n)` numbers of its scales for itself, where a dense change has `m n`.
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
    let scale = config.need_number("randlora_alpha")? / r as f64;
    let whole = (a.dim().2, b.dim().0);
    let right =
        module.projection("randlora_A", whole, (r, small), &|| Ok(a.index_axis(Axis(1), 0).to_owned()))?;
    let term = |j: usize| -> Result<Boxed> {
        // The two sides count their directions in different orders: this one numbers them `i q + j`, the other in rows of `r`.
        let columns = || {
            let at = |k: usize, i: usize| b[[k, (i * q + j) / r, (i * q + j) % r]];
            Ok(Array2::from_shape_fn((large, r), |(k, i)| at(k, i)))
        };
        let left = module.projection(&format!("randlora_B {j} of {q}"), whole, (large, r), &columns)?;
        let scales: Vec<f64> = lambda.column(j).iter().map(|lambda| scale * lambda).collect();
        let gamma = Factor::from_fn(Storage::F32, (1, 1, small), |_, _, k| gamma[[j, k]]);
        Ok(Box::new(Scaled::new(None, low_rank(left, &scales, right.clone())?, Some(gamma))?))
    };
    let sum: Boxed = Box::new(Sum::new((0..q).map(term).collect::<Result<_>>()?)?);
    let delta = if m >= n { sum } else { Box::new(Transposed::new(sum)) };
    super::additive("randlora", delta, lambda.len() + gamma.len())
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
