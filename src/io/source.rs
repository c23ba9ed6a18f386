use super::{Checkpoint, Sharded};
use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use crate::structures::Dense;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

/// Where the tensors of a model are: one file, or several.
///
/// A model holds it as `Arc<dyn Source>`: `Arc::new(Checkpoint::open(path)?)`, or what [`open`] returns.
pub trait Source: Debug + Send + Sync {
    /// The file, or the index of the files.
    fn path(&self) -> &Path;

    /// Names of all tensors and structured matrices, sorted.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`].
    fn names(&self) -> Result<Vec<String>>;

    /// The file that holds the tensor or structured matrix `name`; `None` where there is no such.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], for a file that is opened by this call.
    fn find(&self, name: &str) -> Result<Option<&Checkpoint>>;

    /// The same, where it must be there.
    ///
    /// # Errors
    /// [`Error::Unknown`] where it is not, and those of [`find`](Self::find).
    fn need(&self, name: &str) -> Result<&Checkpoint> {
        self.find(name)?.ok_or_else(|| Error::Unknown {
            kind: "tensor",
            name: name.to_owned(),
            expected: format!("one that is in {}", self.path().display()),
        })
    }
}

impl Source for Checkpoint {
    fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.tensors().chain(self.structured()).map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    fn path(&self) -> &Path {
        self.path()
    }

    fn find(&self, name: &str) -> Result<Option<&Checkpoint>> {
        let there = self.shape(name).is_some() || self.structured_shape(name).is_some();
        Ok(there.then_some(self))
    }
}

/// The matrix `name`, structured or dense.
///
/// # Errors
/// [`Error::Unknown`] when there is none, [`Error::File`] for a malformed one, and those of [`Source::find`].
pub(crate) fn weight(source: &dyn Source, name: &str) -> Result<Box<dyn StructuredMatrix>> {
    let file = source.need(name)?;
    Ok(match file.structured_shape(name) {
        Some(_) => file.load(name)?,
        None if file.is_f64(name) => Box::new(Dense::new(&file.matrix::<f64>(name)?)?),
        None => Box::new(Dense::new(&file.matrix::<f32>(name)?)?),
    })
}

/// Opens a model: a safetensors file, an index (`.json`) of several, or a folder with `model.safetensors` or
/// `model.safetensors.index.json` in it.
///
/// # Errors
/// Those of [`Checkpoint::open`] and [`Sharded::open`].
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn Source>> {
    let path = path.as_ref();
    let index = path.join("model.safetensors.index.json");
    Ok(match path.extension() {
        Some(ending) if ending == "json" => Arc::new(Sharded::open(path)?),
        _ if index.is_file() => Arc::new(Sharded::open(index)?),
        _ if path.is_dir() => Arc::new(Checkpoint::open(path.join("model.safetensors"))?),
        _ => Arc::new(Checkpoint::open(path)?),
    })
}
