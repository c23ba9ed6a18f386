use super::{Loaded, additive};
use crate::adapters::methods::low_rank;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::compose::Scaled;
use crate::storage::{Factor, Storage};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "DELORA",
    tensors: &["delora_A", "delora_B", "delora_lambda", "delora_w_norm"],
    shared: &[],
    reads: &["r", "rank_pattern", "lambda_pattern"],
    ignores: &["delora_lambda", "module_dropout", "init_weights"],
    load,
};

/// `D = B diag(λ / (r ‖a_i‖ ‖b_i‖)) A diag(w_norm)`, with norms of at least 1e-4.
fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let (a, b) = (module.take("delora_A")?, module.take("delora_B")?);
    let right = a.flat(None, Some(n))?;
    let rank = right.nrows();
    let left = b.flat(Some(m), Some(rank))?;
    module.check_rank(rank, "r", "rank_pattern")?;
    let lambda = module.take("delora_lambda")?.vector(Some(1))?[0];
    let norms = module.take("delora_w_norm")?.vector(Some(n))?;
    let norm = |v: ndarray::ArrayView1<'_, f64>| v.dot(&v).sqrt().max(1e-4);
    let scales: Vec<f64> =
        (0..rank).map(|k| lambda / (rank as f64 * norm(right.row(k)) * norm(left.column(k)))).collect();
    let inner = low_rank(b.factor(Some(m), Some(rank))?, &scales, a.factor(Some(rank), Some(n))?)?;
    let norms = Factor::from_fn(Storage::F32, (1, 1, n), |_, _, j| norms[j]);
    additive("delora", Box::new(Scaled::new(None, inner, Some(norms))?), rank * (m + n) + 1)
}
