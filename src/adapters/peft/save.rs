use crate::error::{Error, Result};
use crate::io::{Staged, Writer};
use crate::scalar::Scalar;
use ndarray::Array2;
use std::path::Path;

/// Writes a LoRA folder that PEFT reads: for each module its factors `B` (out x rank) and `A` (rank x in), all of one rank, with
/// `lora_alpha` as given.
///
/// # Errors
/// [`Error::Parameter`] when there is no module or ranks differ, [`Error::Io`] when the folder cannot be written.
///
/// ```
/// use structmat::adapters::peft::{Folder, save_lora};
/// use structmat::ndarray::array;
/// # fn main() -> structmat::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path();
/// save_lora(path, &[("fc".to_owned(), array![[1.0f32], [2.0]], array![[3.0, 4.0]])], 1.0)?;
/// assert_eq!(Folder::open(path)?.modules().collect::<Vec<_>>(), ["fc"]);
/// # Ok(()) }
/// ```
pub fn save_lora<T: Scalar>(
    path: impl AsRef<Path>,
    modules: &[(String, Array2<T>, Array2<T>)],
    alpha: f64,
) -> Result<()> {
    let path = path.as_ref();
    let rank = modules.first().map_or(0, |(_, b, _)| b.ncols());
    if let Some((name, b, a)) = modules.iter().find(|(_, b, a)| b.ncols() != rank || a.nrows() != rank) {
        let received = format!("{} and {} in `{name}`", b.ncols(), a.nrows());
        return Err(Error::parameter("rank", received, format!("{rank} in all factors")));
    }
    if rank == 0 {
        return Err(Error::parameter("modules", modules.len(), "at least one, of rank at least 1"));
    }
    let mut writer = Writer::new();
    for (name, b, a) in modules {
        writer.array(&format!("base_model.model.{name}.lora_A.weight"), a)?;
        writer.array(&format!("base_model.model.{name}.lora_B.weight"), b)?;
    }
    let names: Vec<&str> = modules.iter().map(|(name, ..)| name.as_str()).collect();
    let config = serde_json::json!({
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": names,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "inference_mode": true,
        "lora_dropout": 0.0,
        "use_rslora": false,
        "use_dora": false,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": null,
        "task_type": null,
        "base_model_name_or_path": null,
    });
    std::fs::create_dir_all(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let weights = writer.stage(path.join("adapter_model.safetensors"))?;
    let text = config.to_string();
    let config = Staged::new(path.join("adapter_config.json"), [text.as_bytes()])?;
    weights.commit()?;
    config.commit()
}
