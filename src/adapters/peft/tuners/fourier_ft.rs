use super::{Loaded, drawn_positions};
use crate::adapters::methods;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "FOURIERFT",
    tensors: &["fourierft_spectrum"],
    shared: &[],
    reads: &["n_frequency", "scaling", "random_loc_seed", "n_frequency_pattern", "fan_in_fan_out"],
    ignores: &["init_weights", "ifft2_norm"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let spectrum = module.take("fourierft_spectrum")?.vector(None)?;
    module.check_rank_or(spectrum.len(), "n_frequency", "n_frequency_pattern")?;
    let positions = drawn_positions(module, spectrum.len(), "random_loc_seed")?;
    let scale = module.config().number("scaling")?.unwrap_or(150.0);
    Ok(Box::new(methods::fourier_ft(module.shape()?, &positions, &spectrum, scale)?))
}
