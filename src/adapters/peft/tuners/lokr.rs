use super::Loaded;
use crate::adapters::methods;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::compose::Permuted;
use crate::error::Result;
use ndarray::Array2;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "LOKR",
    tensors: &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"],
    shared: &[],
    reads: &["r", "alpha", "rank_pattern", "alpha_pattern"],
    ignores: &[
        "rank_dropout",
        "module_dropout",
        "rank_dropout_scale",
        "use_effective_conv2d",
        "decompose_both",
        "decompose_factor",
        "init_weights",
    ],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let rank = config.size_for("r", "rank_pattern", module.name())?.filter(|rank| *rank > 0);
    let rank = rank.ok_or_else(|| module.bad("field `r`: expected a positive number"))?;
    let alpha = config.number_for("alpha", "alpha_pattern", module.name())?;
    let alpha = alpha.ok_or_else(|| module.bad("field `alpha` is missing: expected a number"))?;
    let (w1, w2) = (side(module, 1, rank)?, side(module, 2, rank)?);
    let made = (w1.nrows().checked_mul(w2.nrows()), w1.ncols().checked_mul(w2.ncols()));
    if made != (Some(m), Some(n)) {
        return Err(module.bad(format!(
            "module `{}`: the Kronecker product of {:?} and {:?} is not {m} x {n}",
            module.name(),
            w1.dim(),
            w2.dim()
        )));
    }
    // PEFT takes the product of one matrix with each tap of a whole kernel in one dimension, in the other order.
    let taps = match (module.maybe("lokr_w2"), module.base()) {
        (Some(whole), [_, _, taps]) if whole.shape().len() == 3 => Some(*taps),
        _ => None,
    };
    let scale = alpha / rank as f64;
    let lokr = match taps {
        None => methods::lokr(&w1, &w2, scale)?.matrix().clone_box(),
        Some(taps) => {
            let (inner, all) = (w1.ncols(), n as u32);
            let (inner, taps) = (inner as u32, taps as u32);
            // Column (q, j, l) of the kernel is column (q, l, j) of the product.
            let place = |column: u32| {
                let (q, j, l) = (column / (inner * taps), column / taps % inner, column % taps);
                (q * taps + l) * inner + j
            };
            let product = methods::lokr(&w2, &w1, scale)?.matrix().clone_box();
            Box::new(Permuted::new(None, product, Some((0..all).map(place).collect()))?)
        }
    };
    let names = ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"];
    let params = names.iter().filter_map(|name| module.maybe(name)).map(|t| t.values().len()).sum();
    super::additive("lokr", lokr, params)
}

/// One factor: whole, a product of two, or for kernels a core between two; kernels are flattened behind the inputs.
fn side(module: &Module<'_>, k: usize, rank: usize) -> Result<Array2<f64>> {
    if let Some(whole) = module.maybe(&format!("lokr_w{k}")) {
        return whole.flat(None, None);
    }
    let (a, b) = (module.take(&format!("lokr_w{k}_a"))?, module.take(&format!("lokr_w{k}_b"))?);
    let Some(t) = module.maybe("lokr_t2").filter(|_| k == 2) else {
        return Ok(a.flat(None, Some(rank))?.dot(&b.flat(Some(rank), None)?));
    };
    let (a, b) = (a.flat(Some(rank), None)?, b.flat(Some(rank), None)?);
    let core = t.flat(Some(rank), None)?;
    let kernel = core.ncols() / rank;
    if kernel * rank != core.ncols() || t.shape().get(1) != Some(&rank) {
        return Err(t.bad(format!("has shape {:?}, expected {rank} x {rank} x the kernel", t.shape())));
    }
    let right = Array2::from_shape_fn((rank, b.ncols() * kernel), |(i, at)| {
        (0..rank).map(|j| core[[i, j * kernel + at % kernel]] * b[[j, at / kernel]]).sum()
    });
    Ok(a.t().dot(&right))
}
