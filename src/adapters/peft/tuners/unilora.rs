use super::{Loaded, additive, product};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::error::Result;
use ndarray::Array2;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "UNILORA",
    tensors: &["unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"],
    shared: &["unilora_theta_d"],
    reads: &["r", "theta_d_length", "save_indices", "fan_in_fan_out"],
    ignores: &["proj_seed", "unilora_dropout", "init_theta_d_bound", "init_weights"],
    load,
};

/// `D = B A`, whose numbers are those of one vector, by index, with scales.
fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let theta = module.shared("unilora_theta_d")?.vector(None)?;
    let side = |name: &str| -> Result<Array2<f64>> {
        let (indices, scales) = (
            module.take(&format!("unilora_indices_{name}"))?,
            module.take(&format!("unilora_scales_{name}"))?.flat(None, None)?,
        );
        indices.dims(&[Some(scales.nrows()), Some(scales.ncols())])?;
        let list = indices.indices(theta.len())?;
        let cols = scales.ncols();
        Ok(Array2::from_shape_fn(scales.dim(), |(i, j)| theta[list[i * cols + j]] * scales[[i, j]]))
    };
    let (a, b) = (side("A")?, side("B")?);
    let rank = a.nrows();
    module.check_rank(rank, "r", "")?;
    if a.ncols() != n || b.dim() != (m, rank) {
        return Err(module.bad(format!(
            "`{}`: factors {:?} and {:?} for {m} x {n}",
            module.name(),
            b.dim(),
            a.dim()
        )));
    }
    additive("unilora", product(&b, 1.0, &a)?, theta.len())
}
