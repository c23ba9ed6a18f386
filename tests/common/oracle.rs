//! Reads the reference cases of `tests/data`.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use structmat::ndarray::{Array2, ArrayD, IxDyn};

/// The cases of one group.
pub struct Oracle {
    pub cases: Vec<Value>,
    bytes: Vec<u8>,
}

impl Oracle {
    pub fn open(group: &str) -> Self {
        let path = |ext: &str| format!("{}/tests/data/{group}.{ext}", env!("CARGO_MANIFEST_DIR"));
        let cases = serde_json::from_slice(&std::fs::read(path("json")).unwrap()).unwrap();
        Self { cases, bytes: std::fs::read(path("safetensors")).unwrap() }
    }

    /// The tensor that a case calls `name`, in `f64`.
    pub fn tensor(&self, case: &Value, name: &str) -> Option<ArrayD<f64>> {
        let stored = case["tensors"][name].as_str()?;
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(stored).unwrap();
        let values: Vec<f64> = match view.dtype() {
            Dtype::F64 => view.data().chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 => {
                view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
            }
            Dtype::I64 => {
                view.data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            other => panic!("{stored} is {other:?}"),
        };
        Some(ArrayD::from_shape_vec(IxDyn(view.shape()), values).unwrap())
    }

    /// The same, where it must be there and be a matrix (a vector becomes one row).
    pub fn matrix(&self, case: &Value, name: &str) -> Array2<f64> {
        let a = self.tensor(case, name).unwrap_or_else(|| panic!("{} has no {name}", case["name"]));
        let shape = if a.ndim() == 1 { (1, a.len()) } else { (a.shape()[0], a.len() / a.shape()[0]) };
        a.into_shape_with_order(shape).unwrap()
    }
}
