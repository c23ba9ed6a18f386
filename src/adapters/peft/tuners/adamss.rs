use super::{Loaded, product};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::adapters::{Additive, BiasEdit};
use ndarray::{Array2, s};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "ADAMSS",
    tensors: &["adamss_A", "adamss_B", "adamss_newB"],
    shared: &[],
    reads: &[],
    ignores: &[
        "r",
        "num_subspaces",
        "subspace_rank",
        "svd_threshold",
        "random_seed",
        "init_weights",
        "use_asa",
        "use_dynamic_rank",
        "asa_target_subspaces",
        "asa_importance_beta",
        "asa_uncertainty_beta",
        "asa_schedule_exponent",
        "init_warmup",
        "final_warmup",
        "mask_interval",
        "total_steps",
    ],
    load,
};

/// Rows in clusters, those of cluster `i` changed by `B_i A_i newB`, whose last column changes the bias.
fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let index = module.maybe("row_index").ok_or_else(|| {
        module.unsupported("which row is in which cluster is not in the folder: supply `row_index`, the rows cluster after cluster")
    })?;
    let last = module.take("adamss_newB")?;
    // A layer without a bias has no column for it.
    let biased = last.shape().last() != Some(&n);
    let last = last.flat(None, Some(n + usize::from(biased)))?;
    let rank = last.nrows();
    let (a, b) = (module.numbered("adamss_A", ""), module.numbered("adamss_B", ""));
    if a.len() != b.len() || a.is_empty() {
        return Err(module.bad(format!(
            "`{}` has {} factors A and {} factors B",
            module.name(),
            a.len(),
            b.len()
        )));
    }
    let mut left = Array2::zeros((m, rank));
    let rows = index.indices(m)?;
    let mut rest = rows.iter();
    let (mut count, mut params) = (0, last.len());
    for (a, b) in a.into_iter().zip(b) {
        let a = a.flat(None, Some(rank))?;
        let b = b.flat(None, Some(a.nrows()))?;
        params += a.len() + b.len();
        count += b.nrows();
        for (row, at) in b.dot(&a).outer_iter().zip(&mut rest) {
            left.row_mut(*at).assign(&row);
        }
    }
    let distinct: std::collections::BTreeSet<_> = rows.iter().collect();
    if count != m || rows.len() != m || distinct.len() != m {
        return Err(
            module.bad(format!("{count} rows in clusters, {} of them placed, expected {m}", distinct.len()))
        );
    }
    let add = biased.then(|| left.dot(&last.column(n)));
    let delta = product(&left, 1.0, &last.slice(s![.., ..n]).to_owned())?;
    Ok(Box::new(Additive::new("adamss", delta).with_params(params).with_bias(BiasEdit { map: None, add })))
}
