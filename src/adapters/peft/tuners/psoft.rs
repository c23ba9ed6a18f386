use super::{Loaded, additive, product};
use crate::adapters::methods::{Rotation, skew};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::config::Config;
use crate::adapters::peft::module::Module;
use crate::error::Result;
use ndarray::Array2;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "PSOFT",
    tensors: &["psoft_R"],
    shared: &[],
    reads: &[
        "r",
        "psoft_alpha",
        "psoft_mag_a",
        "psoft_mag_b",
        "psoft_orth",
        "use_cayley_neumann",
        "cayley_neumann_eps",
        "num_cayley_neumann_terms",
        "fan_in_fan_out",
    ],
    ignores: &[
        "ab_svd_init",
        "psoft_svd",
        "psoft_svd_lowrank_niter",
        "psoft_dropout",
        "random_seed",
        "init_weights",
    ],
    load,
};

/// `D = s B (diag(b) R diag(a) - I) A`, `R = (I + Q)(I - Q)⁻¹`, its series or any matrix, with factors of the base whose signs depend on who computed them.
fn load(module: &Module<'_>) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let supplied = |name: &str| {
        module.maybe(name).ok_or_else(|| {
            module.unsupported(format!(
                "`{name}` is not in the folder: PEFT computes it again by an SVD, whose signs are not portable; supply it"
            ))
        })
    };
    let a = supplied("psoft_A")?.flat(None, Some(n))?;
    let rank = a.nrows();
    let b = supplied("psoft_B")?.flat(Some(m), Some(rank))?;
    module.check_rank(rank, "r", "")?;
    let weight = module.take("psoft_R.weight")?;
    let rotation = match config.flag("psoft_orth", true)? {
        false => weight.flat(Some(rank), Some(rank))?,
        true => {
            weight.dims(&[Some(rank * (rank - 1) / 2)])?;
            orthogonal(config, skew(&weight.vector(None)?, rank)?)?
        }
    };
    let magnitude = |name: &str| match module.maybe(name) {
        Some(vector) => vector.array1(rank),
        None => Ok(ndarray::Array1::ones(rank)),
    };
    let (va, vb) = (magnitude("psoft_R.vector_a")?, magnitude("psoft_R.vector_b")?);
    let core = Array2::from_shape_fn((rank, rank), |(i, j)| {
        vb[i] * rotation[[i, j]] * va[j] - if i == j { 1.0 } else { 0.0 }
    });
    let scale = config.need_number("psoft_alpha")? / rank as f64;
    additive("psoft", product(&b.dot(&core), scale, &a)?, weight.values().len() + 2 * rank)
}

/// The rotation of a skew matrix: exact, or by the series that OFT has too.
fn orthogonal(config: &Config, mut q: Array2<f64>) -> Result<Array2<f64>> {
    if !config.flag("use_cayley_neumann", false)? {
        return Rotation::Cayley.of(&-q);
    }
    let norm = q.iter().map(|v| v * v).sum::<f64>().sqrt();
    if let Some(most) = config.number("cayley_neumann_eps")?.filter(|most| norm > *most) {
        q *= most / (norm + 1e-12);
    }
    Rotation::Series { terms: config.size("num_cayley_neumann_terms")?.unwrap_or(5) }.of(&q)
}
