use super::record::{Record, Tensor, decode, tensor_names};
use super::{RECORD_PREFIX, SETTINGS_PREFIX, VERSION, VERSION_KEY, header};
use crate::error::{Error, Result};
use crate::kernels::map_file;
use crate::matrix::StructuredMatrix;
use crate::parts::{MAX_FEATURES, Parts};
use crate::scalar::Scalar;
use crate::storage::Storage;
use bytemuck::Pod;
use memmap2::Mmap;
use ndarray::{Array2, ArrayD, IxDyn};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An open safetensors file: tensors of any checkpoint, and structured matrices that [`Writer`](super::Writer) has written.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    /// Where the tensors start.
    data: usize,
    records: BTreeMap<String, Record>,
    plain: BTreeSet<String>,
}

impl Checkpoint {
    /// Opens and checks a file; tensors are read when asked for.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::File`] when it is not a well-formed safetensors file or its structure
    /// records cannot be understood.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let map = map_file(&path)?;
        let bad = |reason: String| Error::File { path: path.clone(), reason };
        header::check(&map).map_err(bad)?;
        let (len, header) =
            SafeTensors::read_metadata(&map).map_err(|e| bad(format!("not safetensors: {e}")))?;
        let mut records = BTreeMap::new();
        let mut plain: BTreeSet<String> = header.offset_keys().into_iter().collect();
        if let Some(metadata) = header.metadata() {
            let version = metadata.get(VERSION_KEY).map(String::as_str);
            for (key, text) in metadata {
                let Some(name) = key.strip_prefix(RECORD_PREFIX) else { continue };
                if version != Some(VERSION) {
                    return Err(bad(format!("{VERSION_KEY} is {version:?}, this crate reads \"{VERSION}\"")));
                }
                let record: Record =
                    serde_json::from_str(text).map_err(|e| bad(format!("record of `{name}`: {e}")))?;
                let mut names = Vec::new();
                tensor_names(name, &record, &mut names);
                if let Some(missing) = names.iter().find(|name| !plain.remove(*name)) {
                    return Err(bad(format!(
                        "record of `{name}`: tensor `{missing}` is missing or used twice"
                    )));
                }
                records.insert(name.to_owned(), record);
            }
        }
        if let Some(name) = records.keys().find(|name| plain.contains(*name)) {
            return Err(bad(format!("`{name}` is both a tensor and a structured matrix")));
        }
        Ok(Self { path, map, header, data: 8 + len, records, plain })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the ordinary tensors, sorted.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.plain.iter().map(String::as_str)
    }

    /// Names of all tensors of the file, the factors of structured matrices included.
    pub(crate) fn all_tensors(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Names of the structured matrices, sorted.
    pub fn structured(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }

    /// Shape of an ordinary tensor, where there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.plain.contains(name).then(|| self.header.info(name)).flatten().map(|info| info.shape.as_slice())
    }

    /// Shape (out x in) of a structured matrix, where there is one of that name.
    pub fn structured_shape(&self, name: &str) -> Option<(usize, usize)> {
        self.records.get(name).map(Record::shape)
    }

    /// Whether there is an ordinary tensor `name` of F64 numbers.
    pub fn is_f64(&self, name: &str) -> bool {
        self.plain.contains(name) && self.header.info(name).is_some_and(|info| info.dtype == Dtype::F64)
    }

    /// How the numbers of the ordinary tensor `name` are stored; `None` where there is no such tensor, or it holds integers.
    pub fn storage(&self, name: &str) -> Option<Storage> {
        match self.plain.contains(name).then(|| self.header.info(name)).flatten()?.dtype {
            Dtype::F64 => Some(Storage::F64),
            Dtype::F32 => Some(Storage::F32),
            Dtype::F16 => Some(Storage::F16),
            Dtype::BF16 => Some(Storage::Bf16),
            _ => None,
        }
    }

    /// The structured matrix `name`, built and checked.
    ///
    /// # Errors
    /// [`Error::File`] when there is none or its parts do not fit together.
    pub fn load(&self, name: &str) -> Result<Box<dyn StructuredMatrix>> {
        crate::registry::load(self.parts(name)?).map_err(|e| self.bad(format!("`{name}`: {e}")))
    }

    /// The parts of the structured matrix, or of the layer with a record of its own, `name`; nothing is built from them yet.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is none, [`Error::File`] for a malformed one.
    pub fn parts(&self, name: &str) -> Result<Parts<'static>> {
        let record = self
            .records
            .get(name)
            .ok_or_else(|| self.unknown("structured matrix", name, self.structured()))?;
        decode(name, record, 0, &|name| self.raw(name)).map_err(|e| self.bad(format!("`{name}`: {e}")))
    }

    /// The settings that [`Writer::settings`](super::Writer::settings) has stored under `name`.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there are none, [`Error::File`] when they are not of this type.
    pub fn settings<C: DeserializeOwned>(&self, name: &str) -> Result<C> {
        let all = || self.header.metadata().iter().flatten();
        let key = format!("{SETTINGS_PREFIX}{name}");
        let Some((_, text)) = all().find(|(other, _)| **other == key) else {
            return Err(self.unknown(
                "settings",
                name,
                all().filter_map(|(key, _)| key.strip_prefix(SETTINGS_PREFIX)),
            ));
        };
        serde_json::from_str(text).map_err(|e| self.bad(format!("settings of `{name}`: {e}")))
    }

    /// An ordinary tensor of F64, F32, F16 or BF16 numbers, as it is.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is none of that name, [`Error::File`] for another element type.
    pub fn array<T: Scalar>(&self, name: &str) -> Result<ArrayD<T>> {
        if !self.plain.contains(name) {
            return Err(self.unknown("tensor", name, self.tensors()));
        }
        let Tensor { dtype, shape, bytes } = self.raw(name)?;
        let mut values = Vec::new();
        self.read(name, dtype, &bytes, &mut values)?;
        ArrayD::from_shape_vec(IxDyn(&shape), values).map_err(|e| self.bad(format!("tensor `{name}`: {e}")))
    }

    /// Appends a tensor's numbers, or some of them.
    fn read<T: Scalar>(&self, name: &str, dtype: Dtype, bytes: &[u8], values: &mut Vec<T>) -> Result<()> {
        fn append<T: Scalar, S: Pod>(bytes: &[u8], values: &mut Vec<T>, widen: impl Fn(S) -> f64) {
            let numbers = bytes.chunks_exact(size_of::<S>());
            values.extend(numbers.map(|number| T::narrow(widen(bytemuck::pod_read_unaligned(number)))));
        }
        match dtype {
            Dtype::F64 => append(bytes, values, |v: f64| v),
            Dtype::F32 => append(bytes, values, |v: f32| v.into()),
            Dtype::F16 => append(bytes, values, half::f16::to_f64),
            Dtype::BF16 => append(bytes, values, half::bf16::to_f64),
            other => {
                return Err(self.bad(format!("tensor `{name}` is {other:?}, expected F64, F32, F16 or BF16")));
            }
        }
        Ok(())
    }

    /// Some rows of a matrix, in the order asked for; no other page of it is read. What an embedding does.
    ///
    /// # Errors
    /// Those of [`matrix`](Self::matrix), and [`Error::Parameter`] for a row that is not there.
    pub fn rows<T: Scalar>(&self, name: &str, rows: &[u32]) -> Result<Array2<T>> {
        let (m, n) = self.matrix_shape(name)?;
        let Tensor { dtype, bytes, .. } = self.raw(name)?;
        let width = bytes.len() / m.max(1);
        let mut values = Vec::with_capacity(rows.len().saturating_mul(n).min(bytes.len()));
        for &row in rows {
            let start = (row as usize).checked_mul(width);
            let row_bytes = start.filter(|_| (row as usize) < m).and_then(|at| bytes.get(at..at + width));
            let row_bytes = row_bytes
                .ok_or_else(|| Error::parameter(format!("row of `{name}`"), row, format!("less than {m}")))?;
            self.read(name, dtype, row_bytes, &mut values)?;
        }
        Array2::from_shape_vec((rows.len(), n), values).map_err(|e| self.bad(format!("tensor `{name}`: {e}")))
    }

    /// An ordinary tensor of integers (of any width, signed or not), flat: token ids, offsets.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is none of that name, [`Error::File`] for another element type or a number that is no `u32`.
    pub fn integers(&self, name: &str) -> Result<Vec<u32>> {
        if !self.plain.contains(name) {
            return Err(self.unknown("tensor", name, self.tensors()));
        }
        fn convert<S: Pod + TryInto<u32>>(bytes: &[u8]) -> Option<Vec<u32>> {
            let numbers = bytes.chunks_exact(size_of::<S>());
            numbers.map(|number| bytemuck::pod_read_unaligned::<S>(number).try_into().ok()).collect()
        }
        let Tensor { dtype, bytes, .. } = self.raw(name)?;
        let numbers = match dtype {
            Dtype::U8 => convert::<u8>(&bytes),
            Dtype::I8 => convert::<i8>(&bytes),
            Dtype::U16 => convert::<u16>(&bytes),
            Dtype::I16 => convert::<i16>(&bytes),
            Dtype::U32 => convert::<u32>(&bytes),
            Dtype::I32 => convert::<i32>(&bytes),
            Dtype::U64 => convert::<u64>(&bytes),
            Dtype::I64 => convert::<i64>(&bytes),
            other => return Err(self.bad(format!("tensor `{name}` is {other:?}, expected integers"))),
        };
        numbers
            .ok_or_else(|| self.bad(format!("tensor `{name}` holds a number outside of 0 to {}", u32::MAX)))
    }

    /// The same, where it must have two axes (out x in).
    ///
    /// # Errors
    /// Those of [`array`](Self::array), and [`Error::File`] for another number of axes or an absurd size.
    pub fn matrix<T: Scalar>(&self, name: &str) -> Result<Array2<T>> {
        let shape = self.matrix_shape(name)?;
        let array = self.array(name)?;
        array.into_shape_with_order(shape).map_err(|e| self.bad(format!("tensor `{name}`: {e}")))
    }

    /// The shape of an ordinary tensor that must be a matrix.
    fn matrix_shape(&self, name: &str) -> Result<(usize, usize)> {
        let shape = self.shape(name).ok_or_else(|| self.unknown("tensor", name, self.tensors()))?;
        let &[m, n] = shape else {
            return Err(
                self.bad(format!("tensor `{name}` has shape {shape:?}, expected a matrix (out x in)"))
            );
        };
        if m > MAX_FEATURES || n > MAX_FEATURES {
            return Err(
                self.bad(format!("tensor `{name}` is {m} x {n}, expected at most {MAX_FEATURES} features"))
            );
        }
        Ok((m, n))
    }

    /// A tensor's bytes, factors of structured matrices included.
    pub(super) fn raw(&self, name: &str) -> Result<Tensor<'_>> {
        let TensorInfo { dtype, shape, data_offsets: (start, end) } =
            self.header.info(name).ok_or_else(|| self.bad(format!("tensor `{name}` is missing")))?;
        let bytes = self.map.get(self.data + start..self.data + end);
        let bytes =
            bytes.ok_or_else(|| self.bad(format!("tensor `{name}` lies beyond the end of the file")))?;
        Ok(Tensor { dtype: *dtype, shape: shape.clone(), bytes: Cow::Borrowed(bytes) })
    }

    fn bad(&self, reason: String) -> Error {
        Error::File { path: self.path.clone(), reason }
    }

    fn unknown<'a>(&self, kind: &'static str, name: &str, names: impl Iterator<Item = &'a str>) -> Error {
        let names: Vec<&str> = names.take(8).collect();
        let expected =
            if names.is_empty() { "one that is there; there is none".to_owned() } else { names.join(", ") };
        Error::Unknown {
            kind,
            name: name.to_owned(),
            expected: format!("{expected} (in {})", self.path.display()),
        }
    }
}
