use super::Loaded;
use crate::adapters::methods;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::adapters::{Adapter, Additive};
use crate::error::Result;
use ndarray::{Array2, Ix4};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "LOHA",
    tensors: &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"],
    shared: &[],
    reads: &["r", "alpha", "rank_pattern", "alpha_pattern"],
    ignores: &["rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let shape = module.shape()?;
    let part = |k: usize| part(module, k, shape);
    let ((a1, b1, r1), (a2, b2, r2)) = (part(1)?, part(2)?);
    if r1 != r2 {
        return Err(module.bad(format!("module `{}` has factors of ranks {r1} and {r2}", module.name())));
    }
    module.check_rank(r1, "r", "rank_pattern")?;
    let alpha = module.config().number_for("alpha", "alpha_pattern", module.name())?;
    let alpha = alpha.ok_or_else(|| module.bad("field `alpha` is missing: expected a number"))?;
    let loha = methods::loha((&a1, &b1), (&a2, &b2), alpha / r1 as f64)?;
    let params = module_params(module);
    Ok(Box::new(Additive::new(loha.kind(), loha.matrix().clone_box()).with_params(params)))
}

fn module_params(module: &Module<'_>) -> usize {
    let names = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"];
    names.iter().filter_map(|name| module.maybe(name)).map(|tensor| tensor.values().len()).sum()
}

/// One of both low-rank matrices, as a product, with the rank in the file.
fn part(module: &Module<'_>, k: usize, (m, n): (usize, usize)) -> Result<(Array2<f64>, Array2<f64>, usize)> {
    let (a, b) = (module.take(&format!("hada_w{k}_a"))?, module.take(&format!("hada_w{k}_b"))?);
    let Some(t) = module.maybe(&format!("hada_t{k}")) else {
        let b = b.flat(None, Some(n))?;
        let rank = b.nrows();
        return Ok((a.flat(Some(m), Some(rank))?, b, rank));
    };
    // Kernels: sum over i, j of t[i, j, ...] a[i, o] b[j, c]; the sum over i is a product with aᵀ.
    let (a, inputs) = (a.flat(None, Some(m))?, module.base()[1]);
    let rank = a.nrows();
    let b = b.flat(Some(rank), Some(inputs))?;
    let kernel = n / inputs;
    let core = t.flat(Some(rank), Some(rank * kernel))?;
    let core = core.into_shape_with_order((rank, rank, 1, kernel)).map_err(|e| t.bad(e.to_string()))?;
    let core = core.into_dimensionality::<Ix4>().map_err(|e| t.bad(e.to_string()))?;
    let right = Array2::from_shape_fn((rank, n), |(i, at)| {
        (0..rank).map(|j| core[[i, j, 0, at % kernel]] * b[[j, at / kernel]]).sum()
    });
    Ok((a.reversed_axes(), right, rank))
}
