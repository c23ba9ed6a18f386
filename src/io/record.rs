//! Parts of a structured matrix as tensors and a JSON record, and back.

use crate::error::{Error, Result};
use crate::kernels::AlignedVec;
use crate::parts::{MAX_FEATURES, Parts};
use crate::storage::{Data, Factor, GROUP, Storage};
use bytemuck::Pod;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Compositions nest at most this deep in a file.
const MAX_DEPTH: usize = 16;

/// One tensor as bytes.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    fn of<T: Pod>(dtype: Dtype, shape: &[usize], values: &'a [T]) -> Self {
        Self { dtype, shape: shape.to_vec(), bytes: Cow::Borrowed(bytemuck::cast_slice(values)) }
    }

    fn into_owned(self) -> Tensor<'static> {
        Tensor { dtype: self.dtype, shape: self.shape, bytes: Cow::Owned(self.bytes.into_owned()) }
    }

    /// The numbers, copied into aligned memory.
    fn values<T: Pod>(&self, dtype: Dtype) -> Option<AlignedVec<T>> {
        let fits = self.dtype == dtype && self.bytes.len().is_multiple_of(size_of::<T>());
        fits.then(|| {
            let mut values = AlignedVec::zeroed(self.bytes.len() / size_of::<T>());
            bytemuck::cast_slice_mut::<T, u8>(&mut values).copy_from_slice(&self.bytes);
            values
        })
    }
}

/// What the metadata says of one structured matrix.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    structure: String,
    shape: (usize, usize),
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    config: serde_json::Value,
    #[serde(default)]
    factors: BTreeMap<String, FactorRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    indices: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    children: Vec<Record>,
}

impl Record {
    /// `(out_features, in_features)`, as claimed.
    pub(super) fn shape(&self) -> (usize, usize) {
        self.shape
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FactorRecord {
    storage: Storage,
    shape: (usize, usize, usize),
}

/// Splits parts into a record and tensors called `path:factor`.
pub(super) fn encode(path: &str, parts: &Parts<'_>, tensors: &mut Vec<(String, Tensor<'static>)>) -> Record {
    let mut factors = BTreeMap::new();
    for (name, factor) in parts.factors() {
        factors.insert(name.to_owned(), FactorRecord { storage: factor.storage(), shape: factor.shape() });
        let full = format!("{path}:{name}");
        let factor = &*factor.to_rows();
        let [codes, scales] = encode_factor(factor);
        tensors.extend(scales.map(|scales| (format!("{full}.scales"), scales.into_owned())));
        tensors.extend(codes.map(|codes| (full, codes.into_owned())));
    }
    let mut indices = Vec::new();
    for (name, list) in parts.indices() {
        indices.push(name.to_owned());
        tensors.push((format!("{path}:{name}"), Tensor::of(Dtype::U32, &[list.len()], list).into_owned()));
    }
    let children = parts.children().iter().enumerate();
    let children = children.map(|(i, child)| encode(&format!("{path}:{i}"), child, tensors)).collect();
    let (structure, shape, config) =
        (parts.structure().to_owned(), parts.shape(), parts.raw_config().clone());
    Record { structure, shape, config, factors, indices, children }
}

/// Numbers or codes, and scales where the storage has them.
fn encode_factor(factor: &Factor) -> [Option<Tensor<'_>>; 2] {
    let (blocks, rows, cols) = factor.shape();
    let shape = [blocks, rows, cols];
    let scale_shape = [blocks, rows, cols.div_ceil(GROUP)];
    match factor.data() {
        Data::F64(v) => [Some(Tensor::of(Dtype::F64, &shape, v)), None],
        Data::F32(v) => [Some(Tensor::of(Dtype::F32, &shape, v)), None],
        Data::Bf16(v) => [Some(Tensor::of(Dtype::BF16, &shape, v)), None],
        Data::F16(v) => [Some(Tensor::of(Dtype::F16, &shape, v)), None],
        Data::Int8 { codes, scales } => {
            [Some(Tensor::of(Dtype::I8, &shape, codes)), Some(Tensor::of(Dtype::BF16, &scale_shape, scales))]
        }
        Data::Int4 { codes, scales } => {
            let packed = [blocks, rows, cols.div_ceil(2)];
            [Some(Tensor::of(Dtype::U8, &packed, codes)), Some(Tensor::of(Dtype::BF16, &scale_shape, scales))]
        }
    }
}

/// The names of the tensors that a record speaks of.
pub(super) fn tensor_names(path: &str, record: &Record, names: &mut Vec<String>) {
    for (name, factor) in &record.factors {
        names.push(format!("{path}:{name}"));
        if matches!(factor.storage, Storage::Int8 | Storage::Int4) {
            names.push(format!("{path}:{name}.scales"));
        }
    }
    names.extend(record.indices.iter().map(|name| format!("{path}:{name}")));
    for (i, child) in record.children.iter().enumerate() {
        tensor_names(&format!("{path}:{i}"), child, names);
    }
}

/// The inverse of [`encode`]; `tensor` looks a tensor up by name.
pub(super) fn decode<'a>(
    path: &str,
    record: &Record,
    depth: usize,
    tensor: &impl Fn(&str) -> Result<Tensor<'a>>,
) -> Result<Parts<'static>> {
    let bad = |reason: String| Error::record(record.structure.clone(), reason);
    if depth > MAX_DEPTH {
        return Err(bad(format!("nested deeper than {MAX_DEPTH}")));
    }
    let (m, n) = record.shape;
    if m > MAX_FEATURES || n > MAX_FEATURES {
        return Err(bad(format!("shape {m} x {n}: expected at most {MAX_FEATURES} features")));
    }
    let mut parts = Parts::new(record.structure.clone(), record.shape).with_config(&record.config);
    for (name, FactorRecord { storage, shape }) in &record.factors {
        let full = format!("{path}:{name}");
        let codes = tensor(&full)?;
        let wrong =
            || bad(format!("tensor `{full}` is {:?}, which {storage} storage does not hold", codes.dtype));
        let scales = || -> Result<AlignedVec<half::bf16>> {
            tensor(&format!("{full}.scales"))?.values(Dtype::BF16).ok_or_else(wrong)
        };
        let data = match storage {
            Storage::F64 => codes.values(Dtype::F64).map(Data::F64),
            Storage::F32 => codes.values(Dtype::F32).map(Data::F32),
            Storage::Bf16 => codes.values(Dtype::BF16).map(Data::Bf16),
            Storage::F16 => codes.values(Dtype::F16).map(Data::F16),
            Storage::Int8 => {
                let scales = scales()?;
                codes.values(Dtype::I8).map(|codes| Data::Int8 { codes, scales })
            }
            Storage::Int4 => {
                let scales = scales()?;
                codes.values(Dtype::U8).map(|codes| Data::Int4 { codes, scales })
            }
        };
        parts = parts.factor(name.clone(), Factor::from_data(*shape, data.ok_or_else(wrong)?)?);
    }
    for name in &record.indices {
        let full = format!("{path}:{name}");
        let list = tensor(&full)?.values::<u32>(Dtype::U32);
        let list = list.ok_or_else(|| bad(format!("index list `{full}` must be U32")))?;
        parts = parts.index(name.clone(), list.to_vec());
    }
    for (i, child) in record.children.iter().enumerate() {
        parts = parts.child(decode(&format!("{path}:{i}"), child, depth + 1, tensor)?);
    }
    Ok(parts)
}
