use super::Loaded;
use crate::adapters::methods::{Component, Spectral, low_rank};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::json::Node;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "OSF",
    tensors: &["osf_svd_params"],
    shared: &[],
    reads: &["effective_rank", "rank_pattern"],
    ignores: &["init_weights", "target_svd_config"],
    load,
};

/// The largest singular components of the base as they are, and trained ones in the place of the others.
fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let part = |name: &str| module.take(&format!("osf_svd_params.{name}"));
    let values = part("S_low")?.vector(None)?;
    let low = values.len();
    let kept = m.min(n).checked_sub(low);
    let kept = kept.ok_or_else(|| module.bad(format!("{low} trained components of {m} x {n}")))?;
    if module.config().get("rank_pattern").is_none_or(Node::is_empty)
        && let Some(told) = module.config().number("effective_rank")?
        && told >= 1.0
        && told != kept as f64
    {
        return Err(module.bad(format!("`effective_rank` = {told}, and the tensors leave {kept} components")));
    }
    let delta = low_rank(
        part("U_low")?.factor(Some(m), Some(low))?,
        &values,
        part("V_low")?.factor(Some(low), Some(n))?,
    )?;
    let params = low * (m + n + 1);
    Ok(Box::new(Spectral::new("osf", (m, n), Component::TopOnly(kept), Some(delta), params)?))
}
