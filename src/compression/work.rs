use crate::error::{Error, Result};
use crate::io::Staged;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The folder where finished parts of a compression lie. Every file appears whole or not at all.
#[derive(Debug, Clone)]
pub(super) struct Work {
    folder: PathBuf,
}

impl Work {
    /// Opens or makes the folder. One that was made for something else, as `fingerprint` tells, is refused and left as it is.
    pub(super) fn open(folder: &Path, fingerprint: &serde_json::Value) -> Result<Self> {
        let io = |source| Error::Io { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        let work = Self { folder: folder.to_owned() };
        match work.read::<serde_json::Value>("settings.json")? {
            None => work.write("settings.json", fingerprint)?,
            Some(known) if known == *fingerprint => {}
            Some(known) => {
                let differs = fingerprint.as_object().into_iter().flatten();
                let differs: Vec<&str> =
                    differs.filter(|(k, v)| known.get(k) != Some(v)).map(|(k, _)| k.as_str()).collect();
                return Err(Error::File {
                    path: folder.to_owned(),
                    reason: format!(
                        "holds the work of a run with other {}: expected the same, or another folder",
                        if differs.is_empty() { "settings".to_owned() } else { differs.join(", ") }
                    ),
                });
            }
        }
        Ok(work)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A JSON file, where it is there.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path(name);
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { path, source }),
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(Error::File { path, reason: error.to_string() }),
            },
        }
    }

    pub(super) fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.path(name);
        let text = serde_json::to_vec_pretty(value)
            .map_err(|e| Error::File { path: path.clone(), reason: e.to_string() })?;
        Staged::new(path, [text.as_slice()])?.commit()
    }
}
