//! Saving, loading, and files that mean harm.

mod common;

use common::{gaussian, member};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use structmat::Error;
use structmat::compose::{Scaled, Sum, Transposed};
use structmat::io::{Checkpoint, Writer};
use structmat::layers::Linear;
use structmat::ndarray::{Array1, Array2, array};
use structmat::prelude::*;
use structmat::registry::FAMILIES;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn entries(&self) -> usize {
        std::fs::read_dir(self.0.path()).unwrap().count()
    }
}

/// A safetensors file from parts: header JSON and data.
fn write_raw(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

fn open_error(path: &Path) -> String {
    match Checkpoint::open(path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(Error::File { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_structure_in_every_storage_round_trips_bit_for_bit() {
    let folder = Folder::new();
    for storage in Storage::ALL {
        let path = folder.path(storage.name());
        let members: Vec<_> = FAMILIES
            .iter()
            .flat_map(|entry| [(24, 32), (7, 13)].map(|shape| member(entry, shape, storage, 3)))
            .collect();
        let mut writer = Writer::new();
        for (i, w) in members.iter().enumerate() {
            writer.structured(&format!("layer.{i}.weight"), w.as_ref()).unwrap();
        }
        writer.write(&path).unwrap();
        let file = Checkpoint::open(&path).unwrap();
        assert_eq!(file.structured().count(), members.len());
        assert_eq!(file.tensors().count(), 0);
        for (i, w) in members.iter().enumerate() {
            let again = file.load(&format!("layer.{i}.weight")).unwrap();
            assert_eq!(again.to_dense_f64(), w.to_dense_f64());
            assert_eq!((again.name(), again.storage_bytes()), (w.name(), w.storage_bytes()));
            for (factor, expected) in again.parts().factors().zip(w.parts().factors()) {
                assert!(
                    w.parts().factors().any(|same| same == factor),
                    "{} against {}",
                    factor.0,
                    expected.0
                );
            }
        }
    }
}

#[test]
fn compositions_round_trip() {
    let folder = Folder::new();
    let of =
        |name: &str, seed| member(structmat::registry::family(name).unwrap(), (9, 9), Storage::Int8, seed);
    let diagonal = Factor::from_matrix(Storage::F16, &gaussian(1, 9, 4));
    let scaled = Scaled::new(None, of("low_rank", 1), Some(diagonal)).unwrap();
    let sum = Sum::new(vec![Box::new(scaled), of("dense", 2)]).unwrap();
    let w = Transposed::new(Box::new(sum));
    let mut writer = Writer::new();
    writer.structured("w", &w).unwrap();
    writer.write(folder.path("f")).unwrap();
    let again = Checkpoint::open(folder.path("f")).unwrap().load("w").unwrap();
    assert_eq!(again.to_dense_f64(), w.to_dense_f64());
    assert_eq!(again.parts().n_params(), w.n_params());
}

#[test]
fn checkpoints_of_every_float_type_are_read_as_they_are() {
    let folder = Folder::new();
    let values = [1.5f64, -2.25, 0.0, 1024.0, -0.5, 3.0];
    let bytes = |dtype| -> Vec<u8> {
        let of = |v: &f64| match dtype {
            Dtype::F64 => v.to_le_bytes().to_vec(),
            Dtype::F32 => (*v as f32).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f64(*v).to_le_bytes().to_vec(),
            _ => bf16::from_f64(*v).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(of).collect()
    };
    let data: Vec<_> = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16].map(|d| (d, bytes(d))).into();
    let views: HashMap<String, TensorView> =
        data.iter().map(|(d, b)| (format!("{d:?}"), TensorView::new(*d, vec![2, 3], b).unwrap())).collect();
    let path = folder.path("plain.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    let expected = Array2::from_shape_vec((2, 3), values.to_vec()).unwrap();
    for (dtype, _) in &data {
        assert_eq!(file.matrix::<f64>(&format!("{dtype:?}")).unwrap(), expected);
        assert_eq!(file.matrix::<f32>(&format!("{dtype:?}")).unwrap(), expected.mapv(|v| v as f32));
    }
    // Copied through, byte for byte, and still a file for other readers.
    let mut writer = Writer::new();
    data.iter().for_each(|(d, _)| writer.copy(&file, &format!("{d:?}")).unwrap());
    writer.write(folder.path("copy")).unwrap();
    let copy = std::fs::read(folder.path("copy")).unwrap();
    let copy = safetensors::SafeTensors::deserialize(&copy).unwrap();
    for (dtype, bytes) in &data {
        assert_eq!(copy.tensor(&format!("{dtype:?}")).unwrap().data(), bytes);
    }
}

#[test]
fn linear_layers_round_trip() {
    let folder = Folder::new();
    let w = gaussian(6, 8, 1);
    let bias = Array1::from_shape_fn(6, |i| 0.1 * i as f64);
    let options = Options { storage: Storage::F64, ..Options::default() };
    let spec = LowRank::for_budget((6, 8), Budget::Ratio(0.9)).unwrap();
    let (layer, _) =
        Linear::project::<LowRank, f64>(&w, Some(&bias), &spec, &Objective::Frobenius, &options).unwrap();
    let x = gaussian(3, 8, 2);
    let expected = layer.weight().matmul(&x).unwrap() + &bias;
    assert!(common::difference(&layer.forward(&x).unwrap(), &expected) < 1e-14);
    let mut writer = Writer::new();
    layer.save(&mut writer, "mlp").unwrap();
    let plain = gaussian(4, 5, 3).mapv(|v| v as f32);
    writer.array("head.weight", &plain).unwrap();
    writer.write(folder.path("f")).unwrap();
    let file = Checkpoint::open(folder.path("f")).unwrap();
    let again = Linear::load(&file, "mlp").unwrap();
    assert_eq!(again.forward(&x).unwrap(), layer.forward(&x).unwrap());
    let head = Linear::load(&file, "head").unwrap();
    assert_eq!((head.weight().to_dense::<f32>(), head.bias().is_none()), (plain, true));
    assert!(matches!(Linear::load(&file, "tail"), Err(Error::Unknown { .. })));
    assert!(matches!(Linear::new(of_dense(), Some(&Array1::<f32>::zeros(3))), Err(Error::Shape { .. })));
    assert!(layer.forward(&Array2::<f64>::zeros((2, 7))).is_err());
}

fn of_dense() -> Box<dyn StructuredMatrix> {
    Box::new(Dense::new(&array![[1.0f32, 2.0]]).unwrap())
}

#[test]
fn names_that_collide_are_refused() {
    let mut writer = Writer::new();
    writer.structured("a", of_dense().as_ref()).unwrap();
    let w = array![[1.0f32]];
    for name in ["a", "a:weight", "__metadata__"] {
        assert!(matches!(writer.array(name, &w), Err(Error::Parameter { .. })), "{name}");
    }
    assert!(writer.structured("a", of_dense().as_ref()).is_err());
    writer.array("b", &w).unwrap();
    assert!(writer.array("b", &w).is_err() && writer.structured("b", of_dense().as_ref()).is_err());
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = Folder::new();
    let mut writer = Writer::new();
    writer.structured("a", of_dense().as_ref()).unwrap();
    // A folder in the place of the file: the final rename fails.
    std::fs::create_dir(folder.path("target")).unwrap();
    std::fs::write(folder.path("target").join("inside"), "kept").unwrap();
    assert!(matches!(writer.write(folder.path("target")), Err(Error::Io { .. })));
    assert_eq!(folder.entries(), 1, "a temporary file was left behind");
    assert!(matches!(writer.write(folder.path("nowhere").join("f")), Err(Error::Io { .. })));
    // Over a file that is open: the old map stays whole.
    let path = folder.path("f");
    writer.write(&path).unwrap();
    let old = Checkpoint::open(&path).unwrap();
    let mut other = Writer::new();
    other.array("b", &array![[1.0f32]]).unwrap();
    other.write(&path).unwrap();
    assert_eq!(old.load("a").unwrap().to_dense::<f32>(), array![[1.0, 2.0]]);
    assert_eq!(Checkpoint::open(&path).unwrap().tensors().collect::<Vec<_>>(), ["b"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let readable = std::fs::metadata(&path).unwrap().permissions().mode() & 0o400;
        assert!(readable != 0);
    }
}

#[test]
fn files_that_are_no_safetensors_are_refused() {
    let folder = Folder::new();
    let path = folder.path("f");
    assert!(matches!(Checkpoint::open(&path), Err(Error::Io { .. })));
    assert!(matches!(Checkpoint::open(folder.0.path()), Err(Error::File { .. } | Error::Io { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(open_error(&path).contains("empty"));
    std::fs::write(&path, b"\x80\x04pickle").unwrap();
    open_error(&path);
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(open_error(&path).contains("truncated"));
    write_raw(&path, "not json", &[]);
    assert!(open_error(&path).contains("header"));
    let entry = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    for (header, data) in [
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 0, 8)), 4),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 0, 8)), 12),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[3]", 0, 8)), 8),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[4294967296,4294967296]", 0, 8)), 8),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 8, 0)), 8),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", u64::MAX - 7, u64::MAX)), 8),
        (format!(r#"{{"a":{0},"a":{0}}}"#, entry("F32", "[2]", 0, 8)), 8),
        (format!(r#"{{"a":{0},"b":{0}}}"#, entry("F32", "[2]", 0, 8)), 8),
        (format!(r#"{{"a":{}}}"#, entry("F99", "[2]", 0, 8)), 8),
    ] {
        write_raw(&path, &header, &vec![0; data]);
        open_error(&path);
    }
}

#[test]
fn truncation_anywhere_is_refused() {
    let folder = Folder::new();
    let mut writer = Writer::new();
    for (i, entry) in FAMILIES.iter().enumerate() {
        writer.structured(&format!("w{i}"), member(entry, (8, 8), Storage::Int4, 1).as_ref()).unwrap();
    }
    let path = folder.path("f");
    writer.write(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for len in (0..bytes.len()).step_by(bytes.len() / 97 + 1) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        open_error(&path);
    }
}

/// Every single-field change of a record is either refused or means a valid matrix; never a panic.
#[test]
fn contradicting_records_are_refused() {
    let folder = Folder::new();
    let path = folder.path("f");
    for entry in FAMILIES {
        let w = member(entry, (12, 20), Storage::F32, 1);
        let mut writer = Writer::new();
        writer.structured("w", w.as_ref()).unwrap();
        writer.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        let record = header["__metadata__"]["structmat.tensor.w"].as_str().unwrap();
        let record: serde_json::Value = serde_json::from_str(record).unwrap();
        let mut tried = 0;
        let mut attempt = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut changed = record.clone();
            change(&mut changed);
            let mut header = header.clone();
            header["__metadata__"]["structmat.tensor.w"] = changed.to_string().into();
            write_raw(&path, &header.to_string(), &bytes[8 + len..]);
            let result = Checkpoint::open(&path).and_then(|file| file.load("w"));
            tried += 1;
            match result {
                Ok(other) => {
                    assert!(changed == record || other.matvec(&Array1::<f32>::zeros(other.shape().1)).is_ok())
                }
                Err(Error::File { .. } | Error::Unknown { .. }) => (),
                Err(other) => panic!("{}: {other}", entry.name),
            }
        };
        attempt(&|_| ());
        for shape in [
            [12usize, 21],
            [13, 20],
            [20, 12],
            [0, 0],
            [1 << 40, 1 << 40],
            [1 << 31, 1 << 31],
            [1, 1],
            [2147483647, 3],
        ] {
            attempt(&|r| r["shape"] = serde_json::json!(shape));
        }
        attempt(&|r| r["structure"] = "no_such".into());
        attempt(&|r| r["structure"] = "dense".into());
        attempt(&|r| r["structure"] = "sum".into());
        attempt(&|r| r["config"] = serde_json::json!({"nonsense": 1}));
        attempt(&|r| r["config"] = serde_json::json!(null));
        attempt(&|r| r["children"] = serde_json::json!([r.clone()]));
        attempt(&|r| r["unknown"] = 1.into());
        attempt(&|r| r["indices"] = serde_json::json!([]));
        attempt(&|r| r["factors"] = serde_json::json!({}));
        if let Some(config) = record["config"].as_object() {
            for key in config.keys() {
                let values = serde_json::json!([
                    0,
                    1,
                    3,
                    -1,
                    1e30,
                    1u64 << 40,
                    u64::MAX,
                    "x",
                    null,
                    true,
                    [],
                    [1, 2],
                    [0, 0],
                    {}
                ]);
                for value in values.as_array().unwrap() {
                    attempt(&|r| r["config"][key] = value.clone());
                }
            }
        }
        for name in record["factors"].as_object().unwrap().keys() {
            for shape in [[1usize, 1, 1], [0, 0, 0], [usize::MAX, usize::MAX, 2], [1, 1 << 20, 1 << 20]] {
                attempt(&|r| r["factors"][name]["shape"] = serde_json::json!(shape));
            }
            for storage in ["f64", "int8", "int4", "f16", "f99"] {
                attempt(&|r| r["factors"][name]["storage"] = storage.into());
            }
            let total: u64 = record["factors"][name]["shape"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap())
                .product();
            for shape in [[1, 1, total], [total, 1, 1], [1, total, 1]] {
                attempt(&|r| r["factors"][name]["shape"] = serde_json::json!(shape));
            }
        }
        assert!(tried > 15);
        write_raw(
            &path,
            &header.to_string().replace("\"structmat.version\":\"1\"", "\"structmat.version\":\"99\""),
            &bytes[8 + len..],
        );
        assert!(open_error(&path).contains("99"));
    }
}

/// Corrupt bytes anywhere in the data: refused (NaN, bad index) or a matrix that still multiplies.
#[test]
fn corrupt_data_never_panics() {
    let folder = Folder::new();
    let path = folder.path("f");
    for entry in FAMILIES {
        for storage in [Storage::F32, Storage::Int4] {
            let w = member(entry, (12, 20), storage, 1);
            let mut writer = Writer::new();
            writer.structured("w", w.as_ref()).unwrap();
            writer.write(&path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            for at in (data..bytes.len()).step_by(7) {
                let mut corrupt = bytes.clone();
                corrupt[at..].iter_mut().take(4).for_each(|b| *b = 0xff);
                std::fs::write(&path, &corrupt).unwrap();
                if let Ok(other) = Checkpoint::open(&path).unwrap().load("w") {
                    other.matvec(&Array1::<f32>::ones(20)).unwrap();
                    other.matvec_transpose(&Array1::<f64>::ones(12)).unwrap();
                    other.to_dense_f64();
                }
            }
        }
    }
}

#[test]
fn deep_nesting_is_refused() {
    let folder = Folder::new();
    let mut w = of_dense();
    for _ in 0..40 {
        w = Box::new(Transposed::new(w));
    }
    let mut writer = Writer::new();
    writer.structured("w", w.as_ref()).unwrap();
    writer.write(folder.path("f")).unwrap();
    let error = Checkpoint::open(folder.path("f")).and_then(|file| file.load("w")).unwrap_err();
    assert!(error.to_string().contains("nested"), "{error}");
}

#[test]
fn tensors_of_other_kinds_are_refused_with_their_names() {
    let folder = Folder::new();
    let path = folder.path("f");
    write_raw(
        &path,
        r#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
        &[0; 16],
    );
    let file = Checkpoint::open(&path).unwrap();
    assert!(file.array::<f32>("ids").unwrap_err().to_string().contains("I64"));
    assert!(file.matrix::<f32>("v").unwrap_err().to_string().contains("[2]"));
    assert!(matches!(file.matrix::<f32>("w"), Err(Error::Unknown { .. })));
    assert!(matches!(file.load("v"), Err(Error::File { .. } | Error::Unknown { .. })));
    assert_eq!(file.shape("v"), Some([2].as_slice()));
}
