use super::{Loaded, factor};
use crate::adapters::methods::low_rank;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::mt19937::Mt19937;
use crate::compose::Scaled;
use crate::error::Result;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, s};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "VERA",
    prefix: "vera_",
    shared: &["vera_A", "vera_B"],
    reads: &["r", "projection_prng_key", "save_projection", "fan_in_fan_out"],
    ignores: &["vera_dropout", "d_initial", "init_weights"],
    load,
};

/// VeRA with means and log-variances; in inference the means alone count.
pub(in crate::adapters::peft) const PVERA: Tuner = Tuner {
    name: "PVERA",
    prefix: "pvera_",
    shared: &["pvera_A", "pvera_B"],
    reads: &["r", "save_projection", "fan_in_fan_out", "sample_at_inference"],
    ignores: &["pvera_dropout", "d_initial", "init_weights", "projection_prng_key", "generator_seed"],
    load: load_means,
};

/// `D = diag(b) B[:m] diag(d) A[:, :n]` of projections that all modules share.
fn load(module: &Module<'_>) -> Loaded {
    let d = module.take("vera_lambda_d")?.vector(None)?;
    module.check_rank(d.len(), "r", "")?;
    let projections = match (module.maybe_shared("vera_A"), module.maybe_shared("vera_B")) {
        (Some(a), Some(b)) => (a.flat(Some(d.len()), None)?, b.flat(None, Some(d.len()))?),
        _ => drawn(module, d.len())?,
    };
    finish(module, "vera", projections, &d, module.take("vera_lambda_b")?.vector(None)?)
}

fn load_means(module: &Module<'_>) -> Loaded {
    if module.config().flag("sample_at_inference", false)? {
        return Err(module.unsupported("`sample_at_inference`: the weights are drawn anew in each product"));
    }
    let d = module.take("pvera_lambda_d")?.vector(None)?;
    let rank = d.len() / 2;
    module.check_rank(rank, "r", "")?;
    let a = module.shared("pvera_A")?.flat(Some(2 * rank), None)?.slice(s![..rank, ..]).to_owned();
    let b = module.shared("pvera_B")?.flat(None, Some(rank))?;
    finish(module, "pvera", (a, b), &d[..rank], module.take("pvera_lambda_b")?.vector(None)?)
}

fn finish(
    module: &Module<'_>,
    kind: &'static str,
    (a, b): (Array2<f64>, Array2<f64>),
    d: &[f64],
    lambda_b: Vec<f64>,
) -> Loaded {
    let (m, n) = module.shape()?;
    if a.ncols() < n || b.nrows() < m || lambda_b.len() != m {
        return Err(module.bad(format!(
            "projections for {} x {} and {} output scales do not serve `{}` of {m} x {n}",
            b.nrows(),
            a.ncols(),
            lambda_b.len(),
            module.name()
        )));
    }
    let params = d.len() + m;
    let inner = low_rank(factor(&b.slice(s![..m, ..])), d, factor(&a.slice(s![.., ..n])))?;
    let left = Factor::from_fn(Storage::F32, (1, 1, m), |_, _, i| lambda_b[i]);
    super::additive(kind, Box::new(Scaled::new(Some(left), inner, None)?), params)
}

/// The projections of a seed: Kaiming-uniform numbers, those of `A` (rank x largest input) and then those of `B` (largest output x rank).
fn drawn(module: &Module<'_>, rank: usize) -> Result<(Array2<f64>, Array2<f64>)> {
    let largest = module.all_shapes().fold((0, 0), |(m, n), shape| match *shape {
        [a, b] if module.config().flag("fan_in_fan_out", false).unwrap_or(false) => (m.max(b), n.max(a)),
        [a, b] => (m.max(a), n.max(b)),
        _ => (m, n),
    });
    let key = module.config().size("projection_prng_key")?.unwrap_or(0);
    let mut generator = Mt19937::new(key as u32);
    let mut numbers = |rows: usize, cols: usize| {
        // PyTorch computes the bound in double precision and draws in single precision.
        let bound = (3f64.sqrt() * 2f64.sqrt() / (cols as f64).sqrt()) as f32;
        Array2::from_shape_simple_fn((rows, cols), || f64::from(generator.uniform(bound)))
    };
    let a = numbers(rank, largest.1);
    Ok((a, numbers(largest.0, rank)))
}
