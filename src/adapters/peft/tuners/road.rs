use super::Loaded;
use crate::adapters::methods::{self, RoadVariant};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "ROAD",
    tensors: &["road_theta", "road_alpha"],
    shared: &[],
    reads: &["variant", "group_size"],
    ignores: &["init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let config = module.config();
    let variant = match config.choice("variant", &["road_1", "road_2", "road_4"])? {
        "road_1" => RoadVariant::One,
        "road_2" => RoadVariant::Two,
        _ => RoadVariant::Four,
    };
    let group = config.size("group_size")?.unwrap_or(64);
    let (theta, alpha) = (module.take("road_theta")?.vector(None)?, module.take("road_alpha")?.vector(None)?);
    Ok(Box::new(methods::road(module.shape()?, variant, group, &theta, &alpha)?))
}
