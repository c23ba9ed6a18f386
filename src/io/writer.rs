use super::record::{Tensor, encode};
use super::{Checkpoint, RECORD_PREFIX, SETTINGS_PREFIX, Staged, VERSION, VERSION_KEY};
use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use crate::parts::Parts;
use crate::scalar::Scalar;
use crate::storage::{Data, Factor, Storage};
use ndarray::{ArrayRef, Dimension};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A safetensors file to be: collects tensors and structured matrices, then writes them at once.
#[derive(Debug, Default)]
pub struct Writer<'a> {
    tensors: BTreeMap<String, Tensor<'a>>,
    metadata: HashMap<String, String>,
}

impl<'a> Writer<'a> {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a structured matrix.
    ///
    /// # Errors
    /// [`Error::Parameter`] when a tensor of that name is there already, or the name is reserved.
    pub fn structured(&mut self, name: &str, matrix: &dyn StructuredMatrix) -> Result<()> {
        self.parts(name, &matrix.parts())
    }

    /// Adds the parts of something that is made of factors, a structured matrix or a layer with a record of its own.
    ///
    /// # Errors
    /// As [`structured`](Self::structured).
    pub fn parts(&mut self, name: &str, parts: &Parts<'_>) -> Result<()> {
        let mut tensors = Vec::new();
        let record = encode(name, parts, &mut tensors);
        let record =
            serde_json::to_string(&record).map_err(|e| Error::record(parts.structure(), e.to_string()))?;
        self.check_free(name)?;
        tensors.iter().try_for_each(|(name, _)| self.check_free(name))?;
        self.tensors.extend(tensors);
        self.metadata.insert(VERSION_KEY.to_owned(), VERSION.to_owned());
        self.metadata.insert(format!("{RECORD_PREFIX}{name}"), record);
        Ok(())
    }

    /// Adds an ordinary tensor, F32 or F64 as its elements are.
    ///
    /// # Errors
    /// As [`structured`](Self::structured).
    pub fn array<T: Scalar, D: Dimension>(&mut self, name: &str, array: &ArrayRef<T, D>) -> Result<()> {
        self.check_free(name)?;
        let dtype = if size_of::<T>() == 4 { Dtype::F32 } else { Dtype::F64 };
        let values: Vec<T> = array.iter().copied().collect();
        let bytes = Cow::Owned(bytemuck::cast_slice(&values).to_vec());
        self.tensors.insert(name.to_owned(), Tensor { dtype, shape: array.shape().to_vec(), bytes });
        Ok(())
    }

    /// Adds an ordinary tensor, as narrow as it can be without rounding.
    pub(crate) fn exact<D: Dimension>(&mut self, name: &str, array: &ArrayRef<f64, D>) -> Result<()> {
        match array.iter().all(|v| f64::from(*v as f32) == *v) {
            true => self.array(name, &array.mapv(|v| v as f32)),
            false => self.array(name, array),
        }
    }

    /// Adds the settings of whatever is stored under `name`: JSON in the file's metadata, under `structmat.settings.NAME`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when settings of that name are there already, [`Error::Record`] when they do not serialize.
    pub fn settings(&mut self, name: &str, settings: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(settings).map_err(|e| Error::record(name, e.to_string()))?;
        match self.metadata.entry(format!("{SETTINGS_PREFIX}{name}")) {
            Entry::Occupied(_) => {
                Err(Error::parameter("settings", name, "a name that is not in the file already"))
            }
            Entry::Vacant(free) => {
                free.insert(text);
                Ok(())
            }
        }
    }

    /// Adds an ordinary tensor of numbers rounded to `storage`: `f64`, `f32`, `bf16` or `f16`.
    ///
    /// # Errors
    /// As [`structured`](Self::structured), and [`Error::Parameter`] for a storage that takes scales.
    pub fn array_in<D: Dimension>(
        &mut self,
        name: &str,
        array: &ArrayRef<f64, D>,
        storage: Storage,
    ) -> Result<()> {
        self.check_free(name)?;
        let row: Vec<f64> = array.iter().copied().collect();
        let factor = Factor::from_fn(storage, (1, 1, row.len()), |_, _, k| row[k]);
        let (dtype, bytes): (_, &[u8]) = match factor.data() {
            Data::F64(v) => (Dtype::F64, bytemuck::cast_slice(v)),
            Data::F32(v) => (Dtype::F32, bytemuck::cast_slice(v)),
            Data::Bf16(v) => (Dtype::BF16, bytemuck::cast_slice(v)),
            Data::F16(v) => (Dtype::F16, bytemuck::cast_slice(v)),
            _ => return Err(Error::parameter("storage", storage, "f64, f32, bf16 or f16")),
        };
        let bytes = Cow::Owned(bytes.to_vec());
        self.tensors.insert(name.to_owned(), Tensor { dtype, shape: array.shape().to_vec(), bytes });
        Ok(())
    }

    /// Adds an ordinary tensor of another file, whatever its element type, byte for byte.
    ///
    /// # Errors
    /// As [`structured`](Self::structured), and [`Error::File`] when the other file has no such tensor.
    pub fn copy(&mut self, from: &'a Checkpoint, name: &str) -> Result<()> {
        self.check_free(name)?;
        self.tensors.insert(name.to_owned(), from.raw(name)?);
        Ok(())
    }

    fn check_free(&self, name: &str) -> Result<()> {
        let record = self.metadata.contains_key(&format!("{RECORD_PREFIX}{name}"));
        if name == "__metadata__" || record || self.tensors.contains_key(name) {
            return Err(Error::parameter(
                "tensor name",
                name,
                "a name that is neither reserved nor in the file already",
            ));
        }
        Ok(())
    }

    /// Writes the file: to a temporary one beside it, synced, then renamed over it.
    ///
    /// # Errors
    /// [`Error::Io`]; what stood at `path` is then untouched.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        self.stage(path)?.commit()
    }

    /// Writes the temporary file only: [`Staged::commit`] puts it in place. For several files that must appear together.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn stage(&self, path: impl AsRef<Path>) -> Result<Staged> {
        let path = path.as_ref();
        // Wider elements first, so that every tensor starts at a multiple of its element size.
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.bitsize()));
        let mut end = 0;
        let infos = tensors.iter().map(|(name, tensor)| {
            let start = end;
            end += tensor.bytes.len();
            let info =
                TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (start, end) };
            ((*name).clone(), info)
        });
        let bad = |reason: String| Error::File { path: path.to_owned(), reason };
        let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone());
        let header = Metadata::new(metadata, infos.collect()).map_err(|e| bad(e.to_string()))?;
        // By way of a value, whose keys are sorted: the same content makes the same file.
        let header = serde_json::to_value(&header).map_err(|e| bad(e.to_string()))?;
        let mut header = header.to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');

        let length = (header.len() as u64).to_le_bytes();
        let bytes = tensors.iter().map(|(_, tensor)| tensor.bytes.as_ref());
        Staged::new(path, [length.as_slice(), header.as_slice()].into_iter().chain(bytes))
    }
}
