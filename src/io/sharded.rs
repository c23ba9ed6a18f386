use super::{Checkpoint, Source};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// A model in several safetensors files, with an index (`model.safetensors.index.json`) that says which tensor lies in which.
///
/// A file is opened when a tensor of it is first asked for, and memory-mapped: only what is read takes memory.
///
/// ```
/// use structmat::io::{Sharded, Source, Writer};
/// use structmat::ndarray::array;
/// # fn main() -> structmat::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let mut writer = Writer::new();
/// writer.array("layer.weight", &array![[1.0f32, 2.0]])?;
/// writer.write(folder.path().join("part-1.safetensors"))?;
/// let index = folder.path().join("model.safetensors.index.json");
/// std::fs::write(&index, r#"{"weight_map": {"layer.weight": "part-1.safetensors"}}"#).unwrap();
///
/// let model = Sharded::open(&index)?;
/// assert_eq!(model.need("layer.weight")?.matrix::<f32>("layer.weight")?, array![[1.0, 2.0]]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Sharded {
    path: PathBuf,
    shards: Vec<(PathBuf, OnceLock<Checkpoint>)>,
    /// Which shard each tensor is in.
    index: BTreeMap<String, usize>,
}

/// The index file; what else it says (a total size) is of no use here.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Sharded {
    /// Reads the index; the files that it names are opened when asked for.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::File`] when it is no index or names a file outside of its folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let bad = |reason: String| Error::File { path: path.clone(), reason };
        let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let Index { weight_map } = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("not an index of safetensors files: {e}")))?;
        let mut shards: Vec<(PathBuf, OnceLock<Checkpoint>)> = Vec::new();
        let mut numbers = BTreeMap::new();
        let mut index = BTreeMap::new();
        for (name, file) in weight_map {
            let mut parts = Path::new(&file).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(bad(format!(
                    "tensor `{name}` is said to be in `{file}`, expected a file beside the index"
                )));
            }
            let number = *numbers.entry(file.clone()).or_insert_with(|| {
                shards.push((path.with_file_name(&file), OnceLock::new()));
                shards.len() - 1
            });
            index.insert(name, number);
        }
        Ok(Self { path, shards, index })
    }

    /// Names of the tensors, as the index has them, sorted.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    fn shard(&self, number: usize) -> Result<&Checkpoint> {
        let (path, cell) = &self.shards[number];
        match cell.get() {
            Some(file) => Ok(file),
            None => {
                let file = Checkpoint::open(path)?;
                Ok(cell.get_or_init(|| file))
            }
        }
    }
}

impl Source for Sharded {
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for number in 0..self.shards.len() {
            let file = self.shard(number)?;
            names.extend(file.tensors().chain(file.structured()).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// A structured matrix `NAME` is found by any of its tensors `NAME:...`.
    fn find(&self, name: &str) -> Result<Option<&Checkpoint>> {
        let parts = format!("{name}:");
        let part = || self.index.range(parts.clone()..).next().filter(|(key, _)| key.starts_with(&parts));
        let Some(&number) = self.index.get(name).or_else(|| part().map(|(_, number)| number)) else {
            return Ok(None);
        };
        let file = self.shard(number)?;
        match file.find(name)? {
            Some(file) => Ok(Some(file)),
            None => {
                let reason = format!("has no `{name}`, though {} says so", self.path.display());
                Err(Error::File { path: file.path().to_owned(), reason })
            }
        }
    }
}
