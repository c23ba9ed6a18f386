//! One tensor of `adapter_model.safetensors`, decoded and checked.

use crate::error::{Error, Result};
use crate::io::Checkpoint;
use crate::storage::{Factor, Storage};
use ndarray::{Array1, Array2, Array3, ArrayD, Ix3};
use std::path::PathBuf;

#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    path: PathBuf,
    key: String,
    values: ArrayD<f64>,
    /// How the file stores it; `None` for integers, and for what a caller supplies.
    storage: Option<Storage>,
}

impl Tensor {
    /// Reads one; NaN and infinities are refused.
    pub(super) fn read(file: &Checkpoint, key: &str) -> Result<Self> {
        let path = file.path().to_owned();
        let bad = |reason: String| Error::File { path: path.clone(), reason };
        let storage = file.storage(key);
        let values = match storage {
            Some(_) => file.array::<f64>(key)?,
            None => {
                let shape = file.shape(key).unwrap_or_default().to_vec();
                let integers: Vec<f64> = file.integers(key)?.into_iter().map(f64::from).collect();
                ArrayD::from_shape_vec(shape, integers).map_err(|e| bad(format!("tensor `{key}`: {e}")))?
            }
        };
        // Rotations of one input have no angles, and the only one of several weights follows from their sum.
        let none = key.ends_with("_topk_weights") || key.ends_with(".oft_R.weight");
        let none =
            none && values.shape().split_last().is_some_and(|(last, rest)| *last == 0 && !rest.contains(&0));
        if values.is_empty() && !none {
            return Err(bad(format!("tensor `{key}` is empty: its shape is {:?}", values.shape())));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(bad(format!("tensor `{key}` holds {value}, expected finite numbers")));
        }
        Ok(Self { path, key: key.to_owned(), values, storage })
    }

    /// One that a caller supplies.
    pub(super) fn supplied(key: String, values: ArrayD<f64>) -> Self {
        Self { path: PathBuf::from("supplied tensor"), key, values, storage: None }
    }

    pub(crate) fn bad(&self, reason: impl Into<String>) -> Error {
        Error::File { path: self.path.clone(), reason: format!("tensor `{}` {}", self.key, reason.into()) }
    }

    pub(crate) fn shape(&self) -> &[usize] {
        self.values.shape()
    }

    pub(crate) fn values(&self) -> &ArrayD<f64> {
        &self.values
    }

    /// Checks the shape; `None` stands for any length.
    pub(crate) fn dims(&self, expected: &[Option<usize>]) -> Result<&[usize]> {
        let fits = |(have, want): (&usize, &Option<usize>)| want.is_none_or(|want| want == *have);
        if self.shape().len() == expected.len() && self.shape().iter().zip(expected).all(fits) {
            return Ok(self.shape());
        }
        let axes: Vec<String> =
            expected.iter().map(|n| n.map_or("any".to_owned(), |n| n.to_string())).collect();
        Err(self.bad(format!("has shape {:?}, expected [{}]", self.shape(), axes.join(", "))))
    }

    /// The shape of [`flat`](Self::flat).
    pub(crate) fn flat_dim(&self, rows: Option<usize>, cols: Option<usize>) -> Result<(usize, usize)> {
        let shape = self.shape();
        let m = shape.first().copied().unwrap_or(1);
        let n: usize = shape.iter().skip(1).product();
        if rows.is_some_and(|rows| rows != m) || cols.is_some_and(|cols| cols != n) {
            let side = |n: Option<usize>| n.map_or("any".to_owned(), |n| n.to_string());
            let expected = format!("{} x {}", side(rows), side(cols));
            return Err(self.bad(format!("has shape {shape:?}, expected {expected}")));
        }
        Ok((m, n))
    }

    /// As a matrix of its first axis by all others.
    pub(crate) fn flat(&self, rows: Option<usize>, cols: Option<usize>) -> Result<Array2<f64>> {
        let dim = self.flat_dim(rows, cols)?;
        self.values.clone().into_shape_with_order(dim).map_err(|e| self.bad(e.to_string()))
    }

    /// The same in the storage of the file.
    pub(crate) fn factor(&self, rows: Option<usize>, cols: Option<usize>) -> Result<Factor> {
        Ok(Factor::from_matrix(self.storage.unwrap_or(Storage::F32), &self.flat(rows, cols)?))
    }

    /// The numbers, whatever the axes; of this length, where one is given.
    pub(crate) fn vector(&self, len: Option<usize>) -> Result<Vec<f64>> {
        match len {
            Some(len) if len != self.values.len() => {
                Err(self.bad(format!("has shape {:?}, expected {len} numbers", self.shape())))
            }
            _ => Ok(self.values.iter().copied().collect()),
        }
    }

    pub(crate) fn array1(&self, len: usize) -> Result<Array1<f64>> {
        Ok(Array1::from(self.vector(Some(len))?))
    }

    pub(crate) fn array3(&self, expected: [Option<usize>; 3]) -> Result<Array3<f64>> {
        self.dims(&expected)?;
        self.values.clone().into_dimensionality::<Ix3>().map_err(|e| self.bad(e.to_string()))
    }

    /// Whole numbers below a limit.
    pub(crate) fn indices(&self, limit: usize) -> Result<Vec<usize>> {
        if self.storage.is_some() {
            return Err(self.bad("holds floating-point numbers, expected integers"));
        }
        let index = |value: &f64| {
            let whole = *value >= 0.0 && value.fract() == 0.0 && *value < limit as f64;
            let wrong = || self.bad(format!("holds the index {value}, expected less than {limit}"));
            whole.then_some(*value as usize).ok_or_else(wrong)
        };
        self.values.iter().map(index).collect()
    }
}
