use super::Loaded;
use crate::adapters::methods::low_rank;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::mt19937::Mt19937;
use crate::adapters::peft::tensor::Tensor;
use crate::compose::Scaled;
use crate::error::Result;
use crate::storage::{Factor, Storage};
use ndarray::Array2;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "VERA",
    tensors: &["vera_lambda_b", "vera_lambda_d"],
    shared: &["vera_A", "vera_B"],
    reads: &["r", "projection_prng_key", "save_projection", "fan_in_fan_out"],
    ignores: &["vera_dropout", "d_initial", "init_weights"],
    load,
};

/// VeRA with means and log-variances; in inference the means alone count.
pub(in crate::adapters::peft) const PVERA: Tuner = Tuner {
    name: "PVERA",
    tensors: &["pvera_lambda_b", "pvera_lambda_d"],
    shared: &["pvera_A", "pvera_B"],
    reads: &["r", "save_projection", "fan_in_fan_out", "sample_at_inference"],
    ignores: &["pvera_dropout", "d_initial", "init_weights", "projection_prng_key", "generator_seed"],
    load: load_means,
};

/// A matrix that all modules share: its name, its shape, and how to make it.
type Projection<'a> = (&'static str, (usize, usize), Box<dyn Fn() -> Result<Array2<f64>> + 'a>);

/// `D = diag(b) B[:m] diag(d) A[:, :n]` of projections that all modules share.
fn load(module: &Module<'_>) -> Loaded {
    let d = module.take("vera_lambda_d")?.vector(None)?;
    module.check_rank(d.len(), "r", "")?;
    let projections = match (module.maybe_shared("vera_A"), module.maybe_shared("vera_B")) {
        (Some(a), Some(b)) => {
            (saved("vera_A", a, Some(d.len()), None)?, saved("vera_B", b, None, Some(d.len()))?)
        }
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
    let a = saved("pvera_A", module.shared("pvera_A")?, Some(2 * rank), None)?;
    let b = saved("pvera_B", module.shared("pvera_B")?, None, Some(rank))?;
    finish(module, "pvera", (a, b), &d[..rank], module.take("pvera_lambda_b")?.vector(None)?)
}

fn finish(
    module: &Module<'_>,
    kind: &'static str,
    ((a_name, a_dim, a), (b_name, b_dim, b)): (Projection<'_>, Projection<'_>),
    d: &[f64],
    lambda_b: Vec<f64>,
) -> Loaded {
    let ((m, n), rank) = (module.shape()?, d.len());
    if a_dim.1 < n || b_dim.0 < m || lambda_b.len() != m {
        return Err(module.bad(format!(
            "projections for {} x {} and {} output scales do not serve `{}` of {m} x {n}",
            b_dim.0,
            a_dim.1,
            lambda_b.len(),
            module.name()
        )));
    }
    let a = module.projection(a_name, a_dim, (rank, n), &a)?;
    let b = module.projection(b_name, b_dim, (m, rank), &b)?;
    let inner = low_rank(b, d, a)?;
    let left = Factor::from_fn(Storage::F32, (1, 1, m), |_, _, i| lambda_b[i]);
    super::additive(kind, Box::new(Scaled::new(Some(left), inner, None)?), rank + m)
}

fn saved<'a>(
    name: &'static str,
    tensor: &'a Tensor,
    rows: Option<usize>,
    cols: Option<usize>,
) -> Result<Projection<'a>> {
    Ok((name, tensor.flat_dim(rows, cols)?, Box::new(move || tensor.flat(rows, cols))))
}

/// The projections of a seed: Kaiming-uniform numbers, those of `A` (rank x largest input) and then those of `B` (largest output x rank).
fn drawn<'a>(module: &Module<'a>, rank: usize) -> Result<(Projection<'a>, Projection<'a>)> {
    let largest = module.all_shapes().fold((0, 0), |(m, n), shape| match *shape {
        [a, b] if module.config().flag("fan_in_fan_out", false).unwrap_or(false) => (m.max(b), n.max(a)),
        [a, b] => (m.max(a), n.max(b)),
        _ => (m, n),
    });
    let key = module.config().size("projection_prng_key")?.unwrap_or(0) as u32;
    let (a_dim, b_dim) = ((rank, largest.1), (largest.0, rank));
    let a = move || Ok(uniform(&mut Mt19937::new(key), a_dim));
    let b = move || {
        let mut generator = Mt19937::new(key);
        uniform(&mut generator, a_dim);
        Ok(uniform(&mut generator, b_dim))
    };
    Ok((("vera_A", a_dim, Box::new(a)), ("vera_B", b_dim, Box::new(b))))
}

fn uniform(generator: &mut Mt19937, dim: (usize, usize)) -> Array2<f64> {
    // PyTorch computes the bound in double precision and draws in single precision.
    let bound = (3f64.sqrt() * 2f64.sqrt() / (dim.1 as f64).sqrt()) as f32;
    Array2::from_shape_simple_fn(dim, || f64::from(generator.uniform(bound)))
}
