use super::{Loaded, drawn_positions};
use crate::adapters::methods::{self, Wavelet};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "WAVEFT",
    tensors: &["waveft_spectrum"],
    shared: &[],
    reads: &[
        "n_frequency",
        "scaling",
        "wavelet_family",
        "use_idwt",
        "random_loc_seed",
        "n_frequency_pattern",
        "fan_in_fan_out",
    ],
    ignores: &["init_weights", "proportional_parameters"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let config = module.config();
    let spectrum = module.take("waveft_spectrum")?.vector(None)?;
    let positions = drawn_positions(module, spectrum.len(), "random_loc_seed")?;
    let scale = config.number("scaling")?.unwrap_or(25.0);
    let name = config.text("wavelet_family")?.unwrap_or("db1");
    // The reference transforms only with the wavelets that it knows, which are those here; by another name it silently does not.
    let wavelet = config.flag("use_idwt", true)?.then(|| Wavelet::named(name)).flatten();
    Ok(Box::new(methods::wave_ft(module.shape()?, &positions, &spectrum, wavelet.as_ref(), scale)?))
}
