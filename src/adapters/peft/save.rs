use crate::adapters::extract::{Extracted, Kind};
use crate::error::{Error, Result};
use crate::io::{Staged, Writer};
use crate::storage::Storage;
use std::path::Path;

/// Writes extracted adapters as a folder that PEFT reads; all of one kind and size, in single precision.
///
/// # Errors
/// [`Error::Parameter`] when there is no module, [`Error::Unsupported`] for a kind that PEFT has no tuner for, [`Error::Io`] when the folder
/// cannot be written.
///
/// ```
/// use structmat::adapters::{extract::{Kind, extract}, peft::{Folder, save}};
/// use structmat::ndarray::array;
/// # fn main() -> structmat::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path();
/// let found = extract(&array![[1.0, 2.0], [2.0, 4.0]], Kind::Lora, 1)?;
/// save(path, Kind::Lora, 1, &[("fc".to_owned(), found)])?;
/// let loaded = Folder::open(path)?.load("fc", &|_| Some(vec![2, 2]))?;
/// # assert_eq!(loaded.adapter.kind(), "lora");
/// # Ok(()) }
/// ```
pub fn save(path: impl AsRef<Path>, kind: Kind, size: usize, modules: &[(String, Extracted)]) -> Result<()> {
    let path = path.as_ref();
    if modules.is_empty() {
        return Err(Error::parameter("modules", 0, "at least one"));
    }
    let tuner = kind.peft_type().ok_or_else(|| Error::Unsupported {
        structure: kind.name().to_owned(),
        what: "PEFT has no tuner for it: no folder can hold it".to_owned(),
    })?;
    let mut writer = Writer::new();
    for (module, found) in modules {
        for (name, tensor) in &found.tensors {
            writer.array_in(&format!("base_model.model.{module}.{name}"), tensor, Storage::F32)?;
        }
    }
    let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    let mut config = serde_json::json!({
        "peft_type": tuner,
        "target_modules": names,
        "inference_mode": true,
        "modules_to_save": null,
        "task_type": null,
        "base_model_name_or_path": null,
    });
    let settings = kind.settings(size, modules);
    if let (Some(config), serde_json::Value::Object(settings)) = (config.as_object_mut(), settings) {
        config.extend(settings);
    }
    std::fs::create_dir_all(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let weights = writer.stage(path.join("adapter_model.safetensors"))?;
    let text = config.to_string();
    let config = Staged::new(path.join("adapter_config.json"), [text.as_bytes()])?;
    weights.commit()?;
    config.commit()
}
