use super::Loaded;
use crate::adapters::methods::Frod;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "FROD",
    tensors: &["frod_lambda_l", "frod_lambda_s_values"],
    shared: &["frod_V.", "frod_s_indices.", "frod_s_size."],
    reads: &["save_projection", "fan_in_fan_out"],
    ignores: &[
        "sparse_rate",
        "frod_dropout",
        "projection_prng_key",
        "progressbar",
        "regularization_alpha",
        "init_weights",
        "runtime_offload_base_weight",
    ],
    load,
};

/// Modules of one name share a basis and the places of the sparse part.
fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let category = module.name().rsplit('.').next().unwrap_or_default();
    let shared = |name: &str| {
        module.maybe_shared(&format!("{name}.{category}")).ok_or_else(|| {
            module.unsupported(format!(
                "`{name}.{category}` was not saved (`save_projection`): it follows from all layers of the model"
            ))
        })
    };
    let v = shared("frod_V")?.flat(Some(n), Some(n))?;
    let size = shared("frod_s_size")?;
    if size.vector(Some(2))? != [n as f64, n as f64] {
        return Err(size.bad(format!("is not {n} x {n}")));
    }
    let values = module.take("frod_lambda_s_values")?.vector(None)?;
    let indices = shared("frod_s_indices")?;
    indices.dims(&[Some(2), Some(values.len())])?;
    let list = indices.indices(n)?;
    let entries = values.iter().enumerate().map(|(k, value)| (list[k], list[values.len() + k], *value));
    let diagonal = module.take("frod_lambda_l")?.vector(Some(n))?;
    Ok(Box::new(Frod::new((m, n), &v, diagonal, entries.collect())?))
}
