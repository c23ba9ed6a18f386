use super::{Loaded, additive, product};
use crate::adapters::methods::{Rotation, skew};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use ndarray::Array2;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "PSOFT",
    prefix: "psoft_",
    shared: &[],
    reads: &[
        "r",
        "psoft_alpha",
        "ab_svd_init",
        "psoft_mag_a",
        "psoft_mag_b",
        "psoft_orth",
        "use_cayley_neumann",
        "cayley_neumann_eps",
        "fan_in_fan_out",
    ],
    ignores: &[
        "psoft_svd",
        "psoft_svd_lowrank_niter",
        "num_cayley_neumann_terms",
        "psoft_dropout",
        "random_seed",
        "init_weights",
    ],
    load,
};

/// `D = s B (diag(b) (I + Q)(I - Q)⁻¹ diag(a) - I) A`, with factors of the base whose signs depend on who computed them.
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
    config.choice("ab_svd_init", &["psoft_init"])?;
    if config.flag("use_cayley_neumann", false)? || !config.flag("psoft_orth", true)? {
        return Err(module.unsupported("rotations by a truncated series, or without orthogonality"));
    }
    let q = skew(&module.take("psoft_R.weight")?.vector(None)?, rank)?;
    let magnitude = |name: &str| match module.maybe(name) {
        Some(vector) => vector.array1(rank),
        None => Ok(ndarray::Array1::ones(rank)),
    };
    let (va, vb) = (magnitude("psoft_R.vector_a")?, magnitude("psoft_R.vector_b")?);
    let rotation = Rotation::Cayley.of(&-q)?;
    let core = Array2::from_shape_fn((rank, rank), |(i, j)| {
        vb[i] * rotation[[i, j]] * va[j] - if i == j { 1.0 } else { 0.0 }
    });
    let scale = config.need_number("psoft_alpha")? / rank as f64;
    additive("psoft", product(&b.dot(&core), scale, &a)?, rank * (rank - 1) / 2 + 2 * rank)
}
