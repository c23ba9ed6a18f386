//! Adapters against folders written by HuggingFace PEFT and cases computed by authors' code, and against what must hold for all of them.
//!
//! The small cases of `tests/data/adapters` are in the repository; the whole set is found beside it or where `STRUCTMAT_ORACLE` says.

mod common;

use common::difference;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use structmat::adapters::init::{IncrementalPca, eva_ranks};
use structmat::adapters::methods::{self, Component, Rotation, Spectral};
use structmat::adapters::peft::{Folder, Layout, Loaded, TUNERS};
use structmat::adapters::rules::{
    AdaLora, AdaLoraSettings, DynamicRank, DynamicRankSettings, FreezerSettings, MatrixFreezer, RankOnes,
    Triplets,
};
use structmat::adapters::{Adapter, Edit, low_rank_chain, several};
use structmat::io::{Checkpoint, Writer};
use structmat::layers::{Denominator, GroupRational, SsmLora};
use structmat::ndarray::{Array1, Array2, Array3, ArrayD, Axis, Ix1, s};
use structmat::prelude::*;
use structmat::{Error, Scalar};

/// Folders of the set that hold no adapter, or one that is refused, each with the reason.
const NOT_READ: &[(&str, &str)] = &[
    ("adalora_allocator", "an allocation step by step, no folder: has a test of its own"),
    ("eva_init", "an initialisation from inputs, no folder: has a test of its own"),
    ("eva_init_whiten", "an initialisation from inputs, no folder: has a test of its own"),
    ("lily", "refused: depends on the whole batch"),
    ("unilora_no_indices", "refused: NumPy's permutations are not reproduced"),
];

/// Relative error of a product or a change; the exceptions are decompositions that the reference computes in single precision.
fn tolerance(case: &str) -> f64 {
    match case {
        "osf" | "lora_pissa" => 2e-5,
        _ => 1e-5,
    }
}

/// The folder of a set of cases: the whole one where it is, else the part that is in the repository.
fn cases(set: &str) -> Vec<PathBuf> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let whole = match std::env::var_os("STRUCTMAT_ORACLE") {
        Some(path) => PathBuf::from(path),
        None => home.join("../shared/oracle"),
    };
    let mut found = Vec::new();
    for root in [whole.join(set), whole.join("..").join(set), home.join("tests/data/adapters").join(set)] {
        let entries = std::fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path());
        found.extend(entries.filter(|path| path.join("case.safetensors").is_file()));
    }
    found.sort();
    assert!(!found.is_empty(), "no cases of {set}");
    found
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// A folder with what PEFT would compute again.
fn open(path: &Path, case: &Checkpoint) -> Result<Folder, Error> {
    let mut folder = Folder::open(path)?;
    for (module, tensor) in [("lin", "psoft_A"), ("lin", "psoft_B"), ("lin", "row_index")] {
        if case.shape(tensor).is_some() && folder.modules().any(|known| known == module) {
            let values = match case.storage(tensor) {
                Some(_) => case.array::<f64>(tensor)?,
                None => Array1::from_iter(case.integers(tensor)?.into_iter().map(f64::from)).into_dyn(),
            };
            folder.supply(module, tensor, values)?;
        }
    }
    Ok(folder)
}

/// A case file calls tensors `module.name` where there are several modules.
struct Case {
    file: Checkpoint,
    prefix: String,
}

impl Case {
    fn of(path: &Path, module: &str) -> Self {
        let file = Checkpoint::open(path.join("case.safetensors")).unwrap();
        let last = module.rsplit('.').next().unwrap();
        let prefix = [module, last].into_iter().map(|part| format!("{part}."));
        let prefix = prefix.into_iter().find(|part| file.shape(&format!("{part}base_weight")).is_some());
        Self { file, prefix: prefix.unwrap_or_default() }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.shape(&format!("{}{name}", self.prefix)).map(<[usize]>::to_vec)
    }

    fn array(&self, name: &str) -> Option<ArrayD<f64>> {
        self.shape(name)?;
        Some(self.file.array(&format!("{}{name}", self.prefix)).unwrap())
    }

    fn base(&self, layout: &Layout) -> Array2<f64> {
        layout.to_matrix(&self.array("base_weight").unwrap()).unwrap()
    }

    fn bias(&self) -> Option<Array1<f64>> {
        self.array("base_bias").map(|bias| bias.into_dimensionality::<Ix1>().unwrap())
    }
}

/// Shapes of the base tensors of a case.
fn shapes(path: &Path) -> impl Fn(&str) -> Option<Vec<usize>> + '_ {
    move |module| Case::of(path, module).shape("base_weight")
}

/// Inputs as rows: of a batch, or the patches that a convolution of stride 1 sees; and how to lay rows of outputs out as `like`.
fn patches(x: &ArrayD<f64>, kernel: &[usize], like: &[usize]) -> Array2<f64> {
    if kernel.len() == 2 {
        let n = *x.shape().last().unwrap();
        return x.clone().into_shape_with_order((x.len() / n, n)).unwrap();
    }
    let (sizes, out): (&[usize], &[usize]) = (&kernel[2..], &like[2..]);
    let (area, taps): (usize, usize) = (out.iter().product(), sizes.iter().product());
    let (images, channels) = (x.shape()[0], x.shape()[1]);
    let padding: Vec<usize> =
        sizes.iter().zip(out).zip(&x.shape()[2..]).map(|((k, o), i)| (o + k - 1 - i) / 2).collect();
    let split = |mut at: usize, sizes: &[usize]| {
        let mut index = vec![0; sizes.len()];
        for (digit, size) in index.iter_mut().zip(sizes).rev() {
            (*digit, at) = (at % size, at / size);
        }
        index
    };
    Array2::from_shape_fn((images * area, channels * taps), |(row, col)| {
        let (place, tap) = (split(row % area, out), split(col % taps, sizes));
        let mut index = vec![row / area, col / taps];
        for ((p, t), (pad, size)) in place.iter().zip(&tap).zip(padding.iter().zip(&x.shape()[2..])) {
            match (p + t).checked_sub(*pad).filter(|at| at < size) {
                Some(at) => index.push(at),
                None => return 0.0,
            }
        }
        x[index.as_slice()]
    })
}

/// Outputs of a case as rows.
fn output_rows(y: &ArrayD<f64>, kernel: &[usize]) -> Array2<f64> {
    if kernel.len() == 2 {
        return patches(y, kernel, &[]);
    }
    let mut order: Vec<usize> = (0..y.ndim()).filter(|axis| *axis != 1).collect();
    order.push(1);
    let moved = y.view().permuted_axes(order).as_standard_layout().into_owned();
    let m = kernel[0];
    moved.into_shape_with_order((y.len() / m, m)).unwrap()
}

/// Adapted outputs of a case, without merging and with a merged weight; both compared with `y`.
fn check_outputs<T: Scalar>(path: &Path, case: &Case, loaded: &Loaded, edit: &Edit, base: &Array2<f64>) {
    let (case_name, layout) = (name(path), &loaded.layout);
    let y = case.array("y_merged").or_else(|| case.array("y"));
    let Some(y) = y else { return };
    let kernel = layout.tensor_shape();
    let weight = Dense::from_factor(Factor::from_matrix(Storage::F32, base)).unwrap();
    let merged = edit.merge(&weight, Storage::F32).unwrap().weight;
    let tolerance = tolerance(&case_name);
    if case.file.storage(&format!("{}x", case.prefix)).is_none() {
        // Rows of a table: a product with the transpose, of unit vectors.
        let rows = case.file.integers(&format!("{}x", case.prefix)).unwrap();
        let mut x = Array2::<T>::zeros((rows.len(), kernel[0]));
        rows.iter().enumerate().for_each(|(i, row)| x[[i, *row as usize]] = T::one());
        let mut unmerged = Array2::zeros((rows.len(), kernel[1]));
        edit.apply_transpose_into(&weight, &x, &mut unmerged, Update::Overwrite, &mut Exec::new()).unwrap();
        let y = y.into_shape_with_order(unmerged.dim()).unwrap();
        assert!(difference(&unmerged, &y) < tolerance, "{case_name}: rows");
        return;
    }
    let x = patches(&case.array("x").unwrap(), if kernel.len() == 2 { &[1, 1] } else { kernel }, y.shape());
    let x = x.mapv(T::narrow);
    let y = output_rows(&y, if kernel.len() == 2 { &[1, 1] } else { kernel });
    let bias = case.bias();
    let unmerged = edit.forward(&weight, bias.as_deref(), &x).unwrap();
    let error = difference(&unmerged, &y);
    assert!(error < tolerance, "{case_name} {}: unmerged output is off by {error:e}", loaded.module);
    let mut by_merged = merged.matmul(&x).unwrap();
    if let Some(bias) = edit.bias().apply(bias.as_deref()).unwrap() {
        by_merged += &bias.mapv(T::narrow);
    }
    let error = difference(&by_merged, &unmerged.mapv(T::widen));
    assert!(error < 3e-6, "{case_name} {}: merged and unmerged outputs differ by {error:e}", loaded.module);
}

/// One folder; the number of changes that were compared.
fn check_folder(path: &Path) -> Result<usize, Error> {
    let mut folder = open(path, &Checkpoint::open(path.join("case.safetensors"))?)?;
    let mut compared = 0;
    let modules: Vec<String> = folder.modules().map(str::to_owned).collect();
    assert!(!modules.is_empty(), "{}", path.display());
    for module in &modules {
        let case = Case::of(path, module);
        let tasks = if folder.kind() == "POLY" { 3 } else { 1 };
        for task in 0..tasks {
            folder.select_task(task);
            let loaded = folder.load(module, &shapes(path))?;
            let base = case.base(&loaded.layout);
            let weight = Dense::new(&base.mapv(|v| v as f32))?;
            let edit = loaded.adapter.edit(&weight)?;
            let delta = loaded.layout.to_tensor(&edit.delta(&weight)?)?;
            let expected = case.array("delta").unwrap();
            if tasks > 1 {
                check_task(path, &case, &edit, &weight, task);
                compared += 1;
                continue;
            }
            let flat = |a: &ArrayD<f64>| a.clone().into_shape_with_order((1, a.len())).unwrap();
            assert_eq!(delta.shape(), expected.shape());
            let error = difference(&flat(&delta), &flat(&expected));
            assert!(error < tolerance(&name(path)), "{} {module}: delta is off by {error:e}", name(path));
            if let Some(merged) = case.array("merged_bias") {
                // A bias that the folder replaces stands for the base's.
                let own = format!("{module}.bias");
                let replaced =
                    folder.replaced().find(|(known, _)| *known == own).map(|(_, bias)| bias.clone());
                let base = replaced.map(|b| b.into_dimensionality().unwrap()).or(case.bias());
                let bias = edit.bias().apply(base.as_deref())?.unwrap();
                let error = difference(&bias.insert_axis(structmat::ndarray::Axis(0)), &flat(&merged));
                assert!(error < 1e-6, "{} {module}: bias is off by {error:e}", name(path));
            }
            let replaces = folder.replaced().any(|(known, _)| known == format!("{module}.bias"));
            if !replaces {
                check_outputs::<f32>(path, &case, &loaded, &edit, &base);
                check_outputs::<f64>(path, &case, &loaded, &edit, &base);
            }
            // Back again.
            let back = match edit.unmerge(&edit.merged(&weight)?) {
                // A projection: what it takes out is lost.
                Err(Error::Unsupported { .. }) if ["deft_qr", "deft_para"].contains(&name(path).as_str()) => {
                    return Ok(1);
                }
                back => back?,
            };
            let error = difference(&back, &weight.to_dense_f64());
            assert!(error < 1e-9, "{} {module}: unmerged weight is off by {error:e}", name(path));
            compared += 1;
        }
    }
    Ok(compared)
}

/// Row `task` of the batch belongs to this task.
fn check_task(path: &Path, case: &Case, edit: &Edit, weight: &Dense, task: usize) {
    let delta = case.array("delta").unwrap();
    let delta = delta.slice(s![task, .., ..]).to_owned();
    assert!(difference(&edit.delta(weight).unwrap(), &delta) < 1e-5, "{} {task}", path.display());
    let row = |name: &str| {
        let all = case.array(name).unwrap();
        let rows = all.index_axis(structmat::ndarray::Axis(0), task).to_owned();
        patches(&rows, &[1, 1], &[])
    };
    let y = edit.forward(weight, case.bias().as_deref(), &row("x").mapv(|v| v as f32)).unwrap();
    assert!(difference(&y, &row("y")) < 1e-5, "{} {task}", path.display());
}

#[test]
fn folders_of_the_reference_make_the_same_change_and_the_same_outputs() {
    let mut failed = Vec::new();
    let (mut read, mut all) = (std::collections::BTreeSet::new(), 0);
    for path in cases("peft") {
        let name = name(&path);
        all += 1;
        if NOT_READ.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let run = std::panic::catch_unwind(|| check_folder(&path));
        match run {
            Ok(Ok(compared)) if compared > 0 => {
                read.insert(name);
            }
            Ok(Ok(_)) => failed.push(format!("{name}: nothing compared")),
            Ok(Err(error)) => failed.push(format!("{name}: {error}")),
            Err(_) => failed.push(format!("{name}: panicked")),
        }
    }
    println!("{} of {all} folders", read.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // A clone alone reads every tuner.
    for tuner in TUNERS {
        let has = |path: &PathBuf| Folder::open(path).is_ok_and(|folder| folder.kind() == tuner.name);
        let found = cases("peft").iter().filter(|path| path.starts_with(env!("CARGO_MANIFEST_DIR"))).any(has);
        assert!(found || ["LN_TUNING"].contains(&tuner.name), "no case of {} in tests/data", tuner.name);
    }
}

#[test]
fn folders_that_are_not_read_are_refused_with_the_reason() {
    for (name, reason) in NOT_READ.iter().filter(|(_, reason)| reason.starts_with("refused")) {
        let paths = cases("peft").into_iter().filter(|path| path.ends_with(name)).collect::<Vec<_>>();
        for path in paths {
            let folder = Folder::open(&path);
            let refused = match &folder {
                Ok(folder) => folder.modules().next().is_none(),
                Err(error) => matches!(error, Error::Unsupported { .. }),
            };
            assert!(refused, "{name}: {reason}");
        }
    }
    for case in cases("peft") {
        if ["psoft", "adamss", "poly"].contains(&name(&case).as_str()) {
            let error = Folder::open(&case).unwrap().load("lin", &shapes(&case)).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        }
    }
}

/// A LoRA folder with this configuration and these tensors.
fn lora_folder(config: &str, tensors: &[(&str, Array2<f32>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::new();
    tensors.iter().for_each(|(name, array)| writer.array(name, array).unwrap());
    writer.write(folder.path().join("adapter_model.safetensors")).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    folder
}

const A: &str = "base_model.model.fc.lora_A.weight";
const B: &str = "base_model.model.fc.lora_B.weight";

fn load(folder: &Path) -> Result<Loaded, Error> {
    Folder::open(folder)?.load("fc", &|_| Some(vec![3, 4]))
}

#[test]
fn hostile_folders_are_refused() {
    let plain = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2}"#;
    let (a, b) = (Array2::<f32>::ones((2, 4)), Array2::<f32>::ones((3, 2)));
    let good = [(A, a.clone()), (B, b.clone())];
    assert!(load(lora_folder(plain, &good).path()).is_ok());
    let refused = |config: &str, tensors: &[(&str, Array2<f32>)], word: &str| {
        let error = load(lora_folder(config, tensors).path()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::File { .. } | Error::Unknown { .. } | Error::Unsupported { .. }),
            "{error:?}"
        );
        assert!(text.contains(word), "{text:?} does not say `{word}`");
    };
    for (config, word) in [
        (r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "new_switch": 1}"#, "new_switch"),
        (r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "r": 2}"#, "twice"),
        (r#"{"peft_type": "LORA", "r": 1000000000, "lora_alpha": 2}"#, "1000000000"),
        (r#"{"peft_type": "LORA", "r": 2}"#, "lora_alpha"),
        (r#"{"peft_type": "LORA", "r": -2, "lora_alpha": 1}"#, "whole"),
        (r#"{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}"#, "configuration"),
        (r#"{"peft_type": "LORA", "r": 2, "lora_alpha": "two"}"#, "lora_alpha"),
        (r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "rank_pattern": {"(": 2}}"#, "rank_pattern"),
        (r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_dora": true}"#, "magnitude"),
        (r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": "loftq"}"#, "loftq"),
        (
            r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": "new"}"#,
            "init_lora_weights",
        ),
        (
            r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_qalora": true, "qalora_group_size": 3}"#,
            "qalora",
        ),
        (
            r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "layer_replication": [[0, 4]]}"#,
            "layer_replication",
        ),
        (r#"{"peft_type": "LORAX"}"#, "LORAX"),
        (r#"{"peft_type": "XLORA"}"#, "input"),
        (r#"{"r": 2}"#, "peft_type"),
        ("[1, 2", "configuration"),
    ] {
        refused(config, &good, word);
    }
    let with = |name: &'static str, array: Array2<f32>| {
        let mut tensors = good.to_vec();
        tensors.retain(|(known, _)| *known != name);
        tensors.push((name, array));
        tensors
    };
    refused(plain, &good[..1], "lora_B");
    refused(plain, &with(A, Array2::ones((5, 4))), "shape");
    refused(plain, &with(A, Array2::ones((2, 5))), "shape");
    refused(plain, &with(B, Array2::ones((4, 2))), "shape");
    refused(plain, &with(A, Array2::ones((0, 4))), "empty");
    refused(plain, &with(A, Array2::from_elem((2, 4), f32::NAN)), "NaN");
    refused(plain, &with("base_model.model.fc.lora_C.weight", Array2::ones((2, 2))), "left over");
    refused(plain, &with("base_model.model.fc2.weight", Array2::ones((2, 2))), "left over");
    refused(plain, &with("base_model.lora_A", Array2::ones((2, 2))), "belong");
    refused(plain, &with("model.fc.lora_A.weight", Array2::ones((2, 2))), "belong");
    refused(plain, &with("base_model.model.../../etc/passwd.lora_A.weight", Array2::ones((2, 2))), "path");
    refused(plain, &with("base_model.model.lora_A.weight", Array2::ones((2, 2))), "module");

    // Files that end too early, at any place, and pickles.
    let folder = lora_folder(plain, &good);
    let path = folder.path().join("adapter_model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(load(folder.path()).is_err(), "{len} bytes");
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(folder.path().join("adapter_model.bin"), b"\x80\x02").unwrap();
    assert!(load(folder.path()).unwrap_err().to_string().contains("pickle"));
    std::fs::remove_file(folder.path().join("adapter_config.json")).unwrap();
    assert!(matches!(load(folder.path()).unwrap_err(), Error::Io { .. }));
}

#[test]
fn saved_folders_are_the_same() {
    for path in cases("peft") {
        let Ok(folder) = Folder::open(&path) else { continue };
        let copy = tempfile::tempdir().unwrap();
        folder.save(copy.path()).unwrap();
        let config = |path: &Path| std::fs::read(path.join("adapter_config.json")).unwrap();
        assert_eq!(config(&path), config(copy.path()));
        let bytes = |path: &Path| std::fs::read(path.join("adapter_model.safetensors")).unwrap();
        let (old, new) = (bytes(&path), bytes(copy.path()));
        let (old, new) = (SafeTensors::deserialize(&old).unwrap(), SafeTensors::deserialize(&new).unwrap());
        assert_eq!(old.len(), new.len());
        for (name, tensor) in old.iter() {
            let again = new.tensor(name).unwrap();
            assert_eq!(
                (tensor.dtype(), tensor.shape(), tensor.data()),
                (again.dtype(), again.shape(), again.data())
            );
        }
    }
}

#[test]
fn rows_of_a_table_are_replaced_by_lora_folders_too() {
    let config = |indices: &str| {
        format!(r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "trainable_token_indices": {indices}}}"#)
    };
    let tensors =
        [("base_model.model.emb.token_adapter.trainable_tokens_delta", Array2::from_elem((2, 4), 5.0f32))];
    let base = Dense::new(&Array2::<f32>::ones((3, 4))).unwrap();
    for indices in ["[2, 0]", r#"{"emb": [2, 0]}"#] {
        let folder = lora_folder(&config(indices), &tensors);
        let loaded = Folder::open(folder.path()).unwrap().load("emb", &|_| Some(vec![3, 4])).unwrap();
        let delta = loaded.adapter.delta(&base).unwrap();
        assert_eq!((delta[[0, 1]], delta[[1, 1]], delta[[2, 3]]), (4.0, 0.0, 4.0));
    }
    for indices in ["[2]", "[3, 0]", "[0, 0]", r#"{"other": [0, 1]}"#] {
        let folder = lora_folder(&config(indices), &tensors);
        assert!(
            Folder::open(folder.path()).unwrap().load("emb", &|_| Some(vec![3, 4])).is_err(),
            "{indices}"
        );
    }
}

#[test]
fn bases_and_inputs_that_are_not_numbers_make_errors_or_nan() {
    for path in cases("peft") {
        let case = Checkpoint::open(path.join("case.safetensors")).unwrap();
        let Ok(mut folder) = open(&path, &case) else { continue };
        folder.select_task(0);
        let modules: Vec<String> = folder.modules().map(str::to_owned).collect();
        for module in &modules {
            let loaded = folder.load(module, &shapes(&path)).unwrap();
            let (m, n) = loaded.layout.matrix_shape();
            let mut w = Array2::<f64>::ones((m, n));
            w[[m / 2, n / 2]] = f64::NAN;
            let base = Dense::from_factor(Factor::from_matrix(Storage::F32, &w)).unwrap();
            if let Ok(edit) = loaded.adapter.edit(&base) {
                let mut x = Array2::<f32>::ones((2, n));
                x[[1, n - 1]] = f32::INFINITY;
                edit.matmul(&base, &x).unwrap();
                for storage in Storage::ALL {
                    let report = edit.merge(&base, storage).unwrap().report;
                    assert!(report.rounding.is_nan() || report.rounding >= 0.0);
                }
            }
            // A base of another shape is an error for every adapter.
            let other = Dense::new(&Array2::<f32>::ones((m + 1, n))).unwrap();
            assert!(matches!(loaded.adapter.edit(&other), Err(Error::Shape { .. })), "{}", path.display());
        }
    }
}

#[test]
fn two_circulant_adapters_add_up() {
    let kernel =
        |seed| Array2::from_shape_vec((1, 24), common::gaussian(1, 24, seed).into_raw_vec_and_offset().0);
    let adapter = |seed| {
        let kernel = kernel(seed).unwrap().into_shape_with_order((2, 3, 4)).unwrap();
        methods::c3a(&kernel).unwrap()
    };
    let base = Dense::new(&common::gaussian(8, 12, 3)).unwrap();
    let edits = [1, 2].map(|seed| adapter(seed).edit(&base).unwrap());
    let both = several::weighted_sum(&[(&edits[0], 1.0), (&edits[1], 0.5)]).unwrap();
    let expected = edits[0].delta(&base).unwrap() + edits[1].delta(&base).unwrap() * 0.5;
    assert!(difference(&both.delta(&base).unwrap(), &expected) < 1e-7);
    let x = common::gaussian(5, 12, 4);
    let y = x.dot(&(base.to_dense_f64() + &expected).t());
    assert!(difference(&both.matmul(&base, &x).unwrap(), &y) < 1e-7);
}

#[test]
fn merges_into_coarse_storage_say_what_they_lose() {
    let w = common::gaussian(48, 64, 1);
    let (b, a) = (common::gaussian(48, 4, 2), common::gaussian(4, 64, 3));
    for storage in [Storage::Bf16, Storage::F16, Storage::Int8] {
        let base = Dense::from_factor(Factor::from_matrix(storage, &w)).unwrap();
        let report = |scale: f64| {
            let edit = methods::lora(&b, &a, scale).unwrap().edit(&base).unwrap();
            edit.merge(&base, storage).unwrap().report
        };
        let (large, small) = (report(0.5), report(1e-6));
        assert!(large.relative < 0.05 && large.vanished < 0.1, "{storage}: {large:?}");
        assert!(small.relative > 0.5 && small.vanished > 0.9, "{storage}: {small:?}");
        assert!(large.restore_error < 0.02, "{storage}: {large:?}");
    }
    // Nothing is lost where sums are exact.
    let base = Dense::new(&w.mapv(|v| (v * 256.0).round() as f32 / 256.0 + 0.0)).unwrap();
    let edit =
        methods::lora(&b.mapv(|v| v.round()), &a.mapv(|v| v.round()), 0.5).unwrap().edit(&base).unwrap();
    let report = edit.merge(&base, Storage::F32).unwrap().report;
    assert_eq!((report.rounding, report.not_restored, report.restore_error), (0.0, 0.0, 0.0));
}

#[test]
fn versions_of_rotations_are_told_apart() {
    let q = methods::skew(&[0.3, -0.2, 0.5], 3).unwrap();
    let [new, old, exact] =
        [Rotation::Series { terms: 5 }, Rotation::OldSeries { terms: 5 }, Rotation::Cayley]
            .map(|r| r.of(&q).unwrap());
    let eye = Array2::<f64>::eye(3);
    let (mut power, mut sum) = (eye.clone(), eye.clone());
    for factor in [2.0, 2.0, 2.0, 1.0] {
        power = power.dot(&q);
        sum = sum + &power * factor;
    }
    assert!(difference(&new, &sum) < 1e-12);
    assert!(difference(&old, &(sum + &power)) < 1e-12);
    // The exact form is orthogonal, and turns the other way.
    assert!(difference(&exact.dot(&exact.t()), &eye) < 1e-12);
    assert!(difference(&exact.t().to_owned(), &new) < 0.2 && difference(&exact, &new) > 0.5);
    assert_eq!(
        difference(
            &Rotation::Series { terms: 3 }.of(&q).unwrap(),
            &Rotation::Series { terms: 4 }.of(&q).unwrap()
        ),
        0.0
    );
    assert!(
        Rotation::Series { terms: 0 }.of(&q).is_err() && Rotation::Series { terms: 1 << 40 }.of(&q).is_err()
    );
}

#[test]
fn edits_in_a_row_are_one_edit() {
    let base = Dense::new(&common::gaussian(8, 6, 1)).unwrap();
    let first = methods::lora(&common::gaussian(8, 2, 2), &common::gaussian(2, 6, 3), 0.7).unwrap();
    let first = first.edit(&base).unwrap();
    let middle = first.compose(&base).unwrap();
    let second =
        methods::hra((8, 6), &common::gaussian(6, 3, 4), false).unwrap().edit(middle.as_ref()).unwrap();
    let third = methods::scaling((8, 6), Some(&[0.5, 1.0, 2.0, 3.0, 1.5, 0.1, 4.0, 1.0]), None).unwrap();
    let all = first.then(&second).unwrap().then(&third.edit(&base).unwrap()).unwrap();
    let step = second.merged(middle.as_ref()).unwrap();
    let expected = third.edit(&base).unwrap().merged(&Dense::new(&step).unwrap()).unwrap();
    assert!(difference(&all.merged(&base).unwrap(), &expected) < 1e-6);
    let x = common::gaussian(3, 6, 9);
    assert!(difference(&all.matmul(&base, &x).unwrap(), &x.dot(&expected.t())) < 1e-6);
    let back = all.unmerge(&all.merged(&base).unwrap()).unwrap();
    assert!(difference(&back, &base.to_dense_f64()) < 1e-9);
}

/// Edits of every form: beside the base, before it, behind it, all at once, and none.
fn edits_of_all_forms(base: &Dense) -> Vec<Edit> {
    let (m, n) = base.shape();
    let lora = |seed| {
        let (b, a) = (common::gaussian(m, 3, seed), common::gaussian(3, n, seed + 1));
        methods::lora(&b, &a, 0.3).unwrap().edit(base).unwrap()
    };
    let turn = methods::hra((m, n), &common::gaussian(n, 2, 5), true).unwrap().into_edit();
    let scales = common::gaussian(1, m, 6).into_raw_vec_and_offset().0;
    let scaling = methods::scaling((m, n), Some(&scales), None).unwrap().edit(base).unwrap();
    let all = turn.then(&scaling).unwrap().then(&lora(30)).unwrap();
    vec![lora(10), lora(20), turn, scaling, all, Edit::of((m, n))]
}

/// Rows of `which`, one adapter at a time.
fn row_by_row<T: Scalar>(base: &Dense, edits: &[&Edit], which: &[Option<usize>], x: &Array2<T>) -> Array2<T> {
    let mut y = Array2::zeros((x.nrows(), base.shape().0));
    for (i, which) in which.iter().enumerate() {
        let row = x.slice(s![i..=i, ..]);
        let row = match which {
            Some(k) => edits[*k].matmul(base, &row).unwrap(),
            None => base.matmul(&row).unwrap(),
        };
        y.slice_mut(s![i..=i, ..]).assign(&row);
    }
    y
}

fn check_rows<T: Scalar>(base: &Dense, edits: &[&Edit], which: &[Option<usize>], exec: &mut Exec<T>) {
    let (m, n) = base.shape();
    let x = common::gaussian_of::<T>(which.len(), n, 7);
    let mut y = Array2::from_elem((which.len(), m), T::narrow(f64::NAN));
    several::apply_rows(base, edits, which, &x, &mut y, exec).unwrap();
    let expected = row_by_row(base, edits, which, &x).mapv(T::widen);
    let tolerance = if size_of::<T>() == 4 { 1e-5 } else { 1e-13 };
    for (i, row) in y.outer_iter().enumerate() {
        let (row, expected) = (row.insert_axis(Axis(0)), expected.slice(s![i..=i, ..]).to_owned());
        let error = difference(&row, &expected);
        assert!(error < tolerance, "row {i} of {which:?}: {error:e}");
    }
    // Rows and columns of any strides.
    let mut wide = Array2::zeros((which.len(), 2 * n));
    wide.slice_mut(s![.., ..;2]).assign(&x);
    let mut turned = Array2::zeros((m, which.len()));
    let mut out = turned.view_mut().reversed_axes();
    several::apply_rows(base, edits, which, &wide.slice(s![.., ..;2]), &mut out, exec).unwrap();
    assert!(out == y, "{which:?}");
    // The same bits on two threads.
    let mut again = y.clone();
    several::apply_rows(base, edits, which, &x, &mut again, &mut Exec::threads(2)).unwrap();
    assert!(again == y, "{which:?}");
}

#[test]
fn rows_of_a_batch_use_adapters_of_their_own() {
    let base = Dense::new(&common::gaussian(20, 33, 1)).unwrap();
    let edits = edits_of_all_forms(&base);
    let edits: Vec<&Edit> = edits.iter().collect();
    let (mut single, mut double) = (Exec::new(), Exec::new());
    let mut check = |which: &[Option<usize>]| {
        check_rows::<f32>(&base, &edits, which, &mut single);
        check_rows::<f64>(&base, &edits, which, &mut double);
    };
    check(&[Some(1), None, Some(0), Some(2), Some(1), Some(1), None]);
    check(&[]);
    check(&[None; 5]);
    for k in 0..edits.len() {
        check(&[Some(k)]);
        check(&[Some(k); 6]);
        check(&[None, Some(k), None, Some(k), Some(k)]);
    }
    // All together: in runs, in turns, and at random.
    let own = |i: usize| (i % 7 < edits.len()).then_some(i % 7);
    check(&(0..28).map(|i| own(i / 4)).collect::<Vec<_>>());
    check(&(0..28).map(own).collect::<Vec<_>>());
    check(&(0..40).map(|i| own(i * i * 31 + 5 * i)).collect::<Vec<_>>());
    // More rows than are sorted at a time, the same edit on both sides of the border.
    check(&(0..1030).map(|i| own(i / 3)).collect::<Vec<_>>());
}

#[test]
fn rows_of_a_batch_are_refused_whole() {
    let base = Dense::new(&common::gaussian(20, 33, 1)).unwrap();
    let edits = edits_of_all_forms(&base);
    let edits: Vec<&Edit> = edits.iter().collect();
    let x = common::gaussian(3, 33, 7);
    let before = Array2::from_elem((3, 20), 5.0);
    let refused = |edits: &[&Edit], which: &[Option<usize>], x: &Array2<f64>, shape: (usize, usize)| {
        let mut y = Array2::from_elem(shape, 5.0);
        let error = several::apply_rows(&base, edits, which, x, &mut y, &mut Exec::new()).unwrap_err();
        assert!(y.iter().all(|v| *v == 5.0));
        error
    };
    let error = refused(&edits, &[Some(0), None, Some(6)], &x, before.dim());
    assert!(matches!(error, Error::Parameter { .. }) && error.to_string().contains('6'), "{error}");
    assert!(matches!(refused(&[], &[None, None, Some(0)], &x, before.dim()), Error::Parameter { .. }));
    let shape = |error: Error| assert!(matches!(error, Error::Shape { .. }), "{error}");
    shape(refused(&edits, &[None; 2], &x, before.dim()));
    shape(refused(&edits, &[None; 3], &common::gaussian(3, 32, 7), before.dim()));
    shape(refused(&edits, &[None; 3], &x, (3, 21)));
    shape(refused(&edits, &[None; 3], &x, (2, 20)));
    let other = Edit::of((20, 32));
    shape(refused(&[&other], &[Some(0); 3], &x, before.dim()));
}

/// Where the numbers of every factor of a matrix lie.
fn places(matrix: &dyn StructuredMatrix) -> Vec<*const f32> {
    let parts = matrix.parts();
    let place = |factor: &&Factor| match factor.data() {
        structmat::storage::Data::F32(numbers) => Some(numbers.as_ptr()),
        _ => None,
    };
    parts.all_factors().iter().filter_map(place).collect()
}

#[test]
fn modules_share_the_projections_of_a_folder() {
    let (r, n, m) = (16, 96, 80);
    let folder = tempfile::tempdir().unwrap();
    let shapes = |name: &str| match name {
        "a" | "b" => Some(vec![m, n]),
        "c" => Some(vec![m, n - 16]),
        _ => None,
    };
    for saved in [true, false] {
        let mut writer = Writer::new();
        for (module, k) in ["a", "b", "c"].iter().zip(1..) {
            let name = |part: &str| format!("base_model.model.{module}.vera_lambda_{part}");
            writer.array(&name("b"), &(common::gaussian_of::<f32>(1, m, k).remove_axis(Axis(0)))).unwrap();
            writer.array(&name("d"), &(common::gaussian_of::<f32>(1, r, k).remove_axis(Axis(0)))).unwrap();
        }
        if saved {
            writer.array("base_model.vera_A", &common::gaussian_of::<f32>(r, n, 8)).unwrap();
            writer.array("base_model.vera_B", &common::gaussian_of::<f32>(m, r, 9)).unwrap();
        }
        writer.write(folder.path().join("adapter_model.safetensors")).unwrap();
        let config = r#"{"peft_type": "VERA", "r": 16, "projection_prng_key": 3}"#;
        std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        let opened = Folder::open(folder.path()).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|module| {
            let (loaded, width) = (opened.load(module, &shapes).unwrap(), shapes(module).unwrap()[1]);
            let edit = loaded.adapter.edit(&Dense::new(&Array2::<f32>::zeros((m, width))).unwrap()).unwrap();
            // Binding shares too, and so does cloning.
            places(edit.clone().additive().unwrap())
        });
        // Output scales of its own, then B, A (the scales between are double).
        assert_eq!((a.len(), b.len(), c.len()), (3, 3, 3));
        assert!(a[0] != b[0] && a[1..] == b[1..], "saved: {saved}");
        // Fewer inputs: a part of A of its own, all of B.
        assert!(c[1] == a[1] && c[2] != a[2], "saved: {saved}");
    }
}

#[test]
fn layers_share_the_factors_of_their_cores() {
    let factor = |w: Array2<f64>| Factor::from_matrix(Storage::F32, &w);
    let (b, a) = (common::gaussian(40, 5, 1), common::gaussian(5, 32, 2));
    let pair = LowRank::new(factor(b.clone()), factor(a.clone())).unwrap();
    let cores = [3, 4, 5].map(|seed| common::gaussian(5, 5, seed));
    let layers = cores.each_ref().map(|core| methods::shared_core(&pair, core, 0.5).unwrap());
    let single = |w: &Array2<f64>| w.mapv(|v| f64::from(v as f32));
    for (layer, core) in layers.iter().zip(&cores) {
        let expected = single(&b).dot(&(core * 0.5)).dot(&single(&a));
        assert!(difference(&layer.matrix().to_dense_f64(), &expected) < 1e-6);
        let plain = methods::core(&b, core, &a, 0.5).unwrap();
        assert!(difference(&layer.matrix().to_dense_f64(), &plain.matrix().to_dense_f64()) < 1e-6);
        assert_eq!((layer.n_params(), plain.n_params()), (25, 25));
    }
    let [first, second, _] = layers.each_ref().map(|layer| places(layer.matrix()));
    assert!(first[0] == second[0] && first[1] != second[1] && first[2] == second[2]);
    assert_eq!([first[0], first[2]], [places(&pair)[0], places(&pair)[1]]);
    assert!(methods::shared_core(&pair, &Array2::zeros((5, 4)), 1.0).is_err());
}

#[test]
fn stacks_of_low_rank_changes_are_one() {
    let base = Dense::new(&common::gaussian(20, 33, 1)).unwrap();
    let lora = |rank, seed| {
        let (b, a) = (common::gaussian(20, rank, seed), common::gaussian(rank, 33, seed + 1));
        methods::lora(&b, &a, 0.3).unwrap().edit(&base).unwrap()
    };
    let edits = [lora(2, 2), lora(3, 4)];
    let sum = several::weighted_sum(&[(&edits[0], 2.0), (&edits[1], -1.0)]).unwrap();
    assert_eq!(sum.additive().unwrap().name(), "low_rank");
    let expected = edits[0].delta(&base).unwrap() * 2.0 - edits[1].delta(&base).unwrap();
    assert!(difference(&sum.delta(&base).unwrap(), &expected) < 1e-12);
    let turn = methods::hra((20, 33), &common::gaussian(33, 2, 5), true).unwrap().into_edit();
    assert!(matches!(several::weighted_sum(&[(&turn, 0.5)]), Err(Error::Unsupported { .. })));
}

/// A case of an author's code.
struct Authors {
    name: String,
    file: Checkpoint,
    settings: serde_json::Value,
}

impl Authors {
    fn open(path: &Path) -> Self {
        let text = std::fs::read(path.join("case.json")).unwrap();
        Self {
            name: name(path),
            file: Checkpoint::open(path.join("case.safetensors")).unwrap(),
            settings: serde_json::from_slice(&text).unwrap(),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.file.shape(name).is_some()
    }

    fn array(&self, name: &str) -> ArrayD<f64> {
        self.file.array(name).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Of one axis by all others.
    fn matrix(&self, name: &str) -> Array2<f64> {
        let a = self.array(name);
        let rows = a.shape()[0];
        a.clone().into_shape_with_order((rows, a.len() / rows)).unwrap()
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        self.array(name).iter().copied().collect()
    }

    fn cube(&self, name: &str) -> Array3<f64> {
        self.array(name).into_dimensionality().unwrap()
    }

    fn number(&self, name: &str) -> f64 {
        self.settings[name].as_f64().unwrap()
    }

    /// Compares the change, the merged weight and the outputs, as far as the case has them.
    fn check(&self, adapter: &dyn Adapter, prefix: &str, tolerance: f64) {
        let own = |name: &str| format!("{prefix}{name}");
        let (m, n) = adapter.shape();
        let w = if self.has(&own("base_weight")) {
            self.matrix(&own("base_weight"))
        } else {
            Array2::zeros((m, n))
        };
        let base = Dense::new(&w.mapv(|v| v as f32)).unwrap();
        let edit = adapter.edit(&base).unwrap();
        let mut compared = 0;
        for (name, ours) in [("delta", edit.delta(&base)), ("merged_weight", edit.merged(&base))] {
            if self.has(&own(name)) {
                let error = difference(&ours.unwrap(), &self.matrix(&own(name)));
                assert!(error < tolerance, "{} {prefix}{name} is off by {error:e}", self.name);
                compared += 1;
            }
        }
        if self.has(&own("y")) {
            let (x, y) = (self.array("x"), self.array(&own("y")));
            let shape = self.file.shape(&own("base_weight")).filter(|shape| shape.len() == 4);
            let kernel = shape.map_or(vec![1, 1], <[usize]>::to_vec);
            let (x, y) = (patches(&x, &kernel, y.shape()), output_rows(&y, &kernel));
            let bias = ["base_bias", "bias"].iter().map(|name| own(name)).find(|name| self.has(name));
            let bias = bias.map(|name| Array1::from(self.vector(&name)));
            let ours = edit.forward(&base, bias.as_deref(), &x.mapv(|v| v as f32)).unwrap();
            let error = difference(&ours, &y);
            assert!(error < tolerance, "{} {prefix}y is off by {error:e}", self.name);
            compared += 1;
        }
        assert!(compared > 0, "{} {prefix}: nothing compared", self.name);
    }
}

fn check_rational(case: &Authors, layer: &GroupRational, name: &str) {
    let flat = |name: &str| {
        let a = case.array(name);
        a.clone().into_shape_with_order((a.len() / 32, 32)).unwrap()
    };
    let error = difference(&layer.forward(&flat("x").mapv(|v| v as f32)).unwrap(), &flat(name));
    assert!(error < 1e-6, "{} {name}: {error:e}", case.name);
}

fn check_dynamic_rank(case: &Authors) {
    let settings = DynamicRankSettings {
        end_rank: case.number("end_avg_rank") as usize,
        start: case.number("start_ratio"),
        end: case.number("end_ratio"),
        interval: case.number("interval") as usize,
        beta: case.number("beta"),
        total: case.number("max_step") as usize,
    };
    let names = ["a", "b", "c"];
    let part = |name: &str, what: &str| format!("{name}.{what}");
    let mut matrices = names.map(|name| RankOnes {
        a: case.matrix(&part(name, "A")),
        b: case.matrix(&part(name, "B")),
        c: case.vector(&part(name, "c0")),
    });
    let mut rule = DynamicRank::new(settings);
    for (step, log) in case.settings["log"].as_array().unwrap().iter().enumerate() {
        rule.step(step, &mut matrices).unwrap();
        for (name, matrix) in names.iter().zip(&mut matrices) {
            let active: Vec<bool> = matrix.c.iter().map(|c| *c != 0.0).collect();
            assert_eq!(serde_json::json!(active), log["active"][name], "step {step}, {name}");
            let drift = case.matrix(&part(name, "drift"));
            matrix.c.iter_mut().zip(drift.row(step)).for_each(|(c, d)| *c += d);
        }
    }
    for (name, scores) in names.iter().zip(rule.scores()) {
        let error = scores
            .iter()
            .zip(case.vector(&part(name, "score")))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(error < 1e-6, "{name}: {error:e}");
    }
}

fn check_freezing(case: &Authors) {
    let config = &case.settings["config"];
    let number = |name: &str| config[name].as_f64().unwrap() as usize;
    let total = case.number("total_step") as usize;
    let epoch = total / number("num_train_epochs");
    let settings = FreezerSettings {
        warmup: number("initial_warmup") * epoch,
        last: number("final_warmup") * epoch,
        interval: number("deltaT"),
        betas: (config["beta1"].as_f64().unwrap(), config["beta2"].as_f64().unwrap()),
        total,
    };
    let names: Vec<String> =
        (0..3).flat_map(|l| ["A", "B"].map(|side| format!("l{l}_lora_{side}"))).collect();
    let gradients: Vec<Array2<f64>> = names.iter().map(|name| case.matrix(&format!("grad.{name}"))).collect();
    let mut rule = MatrixFreezer::new(settings, names.len());
    for (k, log) in case.settings["log"].as_array().unwrap().iter().enumerate() {
        let step: Vec<Vec<f64>> = gradients.iter().map(|all| all.row(k).to_vec()).collect();
        let decided = rule.step(k + 1, &step).unwrap();
        // Once nothing is trained the reference stops counting.
        if let Some(ratio) = log["keep_ratio"].as_f64() {
            assert!(
                (decided.keep_ratio - ratio).abs() < 1e-12 || k + 1 >= total - settings.last,
                "step {}",
                k + 1
            );
        }
        if let Some(threshold) = log["score_threshold"].as_f64() {
            assert!((decided.threshold.unwrap() / threshold - 1.0).abs() < 1e-6, "step {}", k + 1);
        }
        let trainable: Vec<&String> = names
            .iter()
            .zip(rule.trainable())
            .filter(|(_, trained)| **trained)
            .map(|(name, _)| name)
            .collect();
        assert_eq!(serde_json::json!(trainable), log["trainable"], "step {}", k + 1);
    }
}

#[test]
fn adalora_shrinks_its_budget_as_the_reference_does() {
    for path in cases("peft").into_iter().filter(|path| path.ends_with("adalora_allocator")) {
        let case = Authors::open(&path);
        let config = &case.settings["config"];
        let number = |name: &str| config[name].as_u64().unwrap() as usize;
        let settings = AdaLoraSettings {
            target_rank: number("target_r"),
            warmup: number("tinit"),
            last: number("tfinal"),
            interval: number("deltaT"),
            betas: (config["beta1"].as_f64().unwrap(), config["beta2"].as_f64().unwrap()),
            total: number("total_step"),
        };
        let read = |prefix: &str| {
            ["a", "b", "c"].map(|name| Triplets {
                a: case.matrix(&format!("{prefix}.{name}.lora_A")),
                e: case.vector(&format!("{prefix}.{name}.lora_E")),
                b: case.matrix(&format!("{prefix}.{name}.lora_B")),
            })
        };
        let mut matrices = read("init");
        let mut rule = AdaLora::new(settings);
        for (k, log) in case.settings["log"].as_array().unwrap().iter().enumerate() {
            let mask = rule.step(k + 1, &matrices, &read(&format!("grad.{}", k + 1))).unwrap();
            for (matrix, kept) in matrices.iter_mut().zip(mask.iter().flatten()) {
                matrix.e.iter_mut().zip(kept).filter(|(_, kept)| !**kept).for_each(|(e, _)| *e = 0.0);
            }
            assert_eq!(rule.budget(k + 1, 15, 3) as u64, log["budget"].as_u64().unwrap(), "step {}", k + 1);
            for (name, matrix) in ["a", "b", "c"].iter().zip(&matrices) {
                let active: Vec<bool> = matrix.e.iter().map(|e| *e != 0.0).collect();
                assert_eq!(
                    serde_json::json!(active),
                    log["active_after"][format!("{name}.lora_E")],
                    "step {}",
                    k + 1
                );
            }
        }
        for (name, kept) in ["a", "b", "c"].iter().zip(rule.mask().unwrap()) {
            assert_eq!(serde_json::json!(kept), case.settings["rank_pattern"][format!("{name}.lora_E")]);
        }
    }
}

#[test]
fn components_and_ranks_from_inputs_are_those_of_the_reference() {
    let found = cases("peft")
        .into_iter()
        .filter(|path| ["eva_init", "eva_init_whiten"].contains(&name(path).as_str()));
    for path in found {
        let case = Authors::open(&path);
        let (batches, names) = (case.cube("batches"), ["q", "k", "o"]);
        let names: Vec<&str> = names.into_iter().filter(|name| case.has(&format!("{name}.weight"))).collect();
        let (rank, rho) = (case.number("r") as usize, case.number("rho"));
        let fresh = || IncrementalPca::new((rank as f64 * rho).round() as usize);
        let (mut of_x, mut of_q) = (fresh(), fresh());
        let bias = Array1::from(case.vector("q.bias"));
        for x in batches.outer_iter() {
            of_x.update(&x).unwrap();
            of_q.update(&(x.dot(&case.matrix("q.weight").t()) + &bias).mapv(|v| v.max(0.0))).unwrap();
        }
        let pca = |name: &str| if name == "o" { &of_q } else { &of_x };
        let ratios: Vec<Vec<f64>> = names.iter().map(|name| pca(name).ratios()).collect();
        let ratios: Vec<&[f64]> = ratios.iter().map(Vec::as_slice).collect();
        let whiten = case.settings["whiten"].as_bool().unwrap();
        for (name, rank) in names.iter().zip(eva_ranks(&ratios, rank)) {
            assert_eq!(Some(rank as u64), case.settings["ranks"][*name].as_u64(), "{} {name}", case.name);
            let (ours, theirs) =
                (pca(name).start(rank, whiten).unwrap(), case.matrix(&format!("{name}.components")));
            for (a, b) in ours.outer_iter().zip(theirs.outer_iter()) {
                let cosine = a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt();
                assert!(cosine.abs() > 0.99, "{} {name}: {cosine}", case.name);
            }
        }
    }
    // Of one batch, and of several with all components, it is the decomposition of the centred inputs.
    let x = common::gaussian(40, 6, 3) + 2.0;
    let mut pca = IncrementalPca::new(6);
    x.axis_chunks_iter(structmat::ndarray::Axis(0), 7).for_each(|batch| pca.update(&batch).unwrap());
    let centred = &x - &x.mean_axis(structmat::ndarray::Axis(0)).unwrap();
    let exact = structmat::linalg::singular_values(&centred, structmat::linalg::Threads::ONE).unwrap();
    assert!(pca.values().iter().zip(&exact).all(|(a, b)| (a / b - 1.0).abs() < 1e-10));
    assert!((pca.ratios().iter().sum::<f64>() - 1.0).abs() < 1e-10);
}

#[test]
fn cases_of_the_authors_are_met() {
    let mut met = 0;
    for path in cases("adapters") {
        let case = Authors::open(&path);
        match case.name.as_str() {
            "compacter_phm" | "compacter_phm_factored_rule" | "compacter_phm_full" => {
                let products = |left: &str, right: &str, whole: &str| {
                    if case.has(whole) {
                        return case.cube(whole);
                    }
                    let (a, b) = (case.cube(left), case.cube(right));
                    let (k, p, s) = (a.dim().0, a.dim().1, b.dim().2);
                    let mut all = Array3::zeros((k, p, s));
                    for i in 0..k {
                        let product = a.slice(s![i, .., ..]).dot(&b.slice(s![i, .., ..]));
                        all.slice_mut(s![i, .., ..]).assign(&product);
                    }
                    all
                };
                let rule = products("param.phm_rule_left", "param.phm_rule_right", "param.phm_rule");
                let t = products("param.W_left", "param.W_right", "param.W");
                case.check(&methods::phm(&rule, &t).unwrap(), "", 1e-6);
            }
            "diablo" | "diablo_ragged" => {
                let w = case.matrix("base_weight");
                case.check(&methods::diablo(w.dim(), &case.cube("blocks")).unwrap(), "", 1e-6);
            }
            "lora_xs" => {
                let [b, r, a] = ["B", "R", "A"].map(|name| case.matrix(name));
                case.check(&methods::core(&b, &r, &a, case.number("scaling")).unwrap(), "", 1e-6);
            }
            "lotr" => {
                let (lhs, rhs) = (case.matrix("lhs"), case.matrix("rhs"));
                let scale = case.number("scale") / case.number("rank");
                for layer in 0..3 {
                    let mid = case.matrix(&format!("{layer}.mid"));
                    let adapter = methods::core(&lhs.t(), &mid.t(), &rhs.t(), scale).unwrap();
                    case.check(&adapter, &format!("{layer}."), 1e-6);
                }
            }
            "qr_lora" => {
                let (scale, w) = (case.number("scaling"), case.matrix("base_weight"));
                let (q, r) = methods::qr_basis(&w, case.number("rank") as usize, scale).unwrap();
                assert!(difference(&q, &case.matrix("Q")) < 2e-5 && difference(&r, &case.matrix("R")) < 2e-5);
                let residual = &w - &(q.dot(&r) * scale);
                assert!(difference(&residual, &case.matrix("residual_weight")) < 1e-5);
                case.check(
                    &methods::qr_lora(&case.matrix("Q"), &case.matrix("delta_R"), scale).unwrap(),
                    "",
                    1e-6,
                );
            }
            "spectral_adapter_rotation_0" | "spectral_adapter_rotation_1" => {
                let (r, at) = (case.number("rank") as usize, case.number("block_index") as usize);
                let block = |name: &str| case.matrix(name).slice(s![.., at * r..(at + 1) * r]).to_owned();
                let (u, v) = (block("U"), block("V"));
                let sigma = case.vector("S")[at * r..(at + 1) * r].to_vec();
                let (p, q) = (case.matrix("skew_left"), case.matrix("skew_right"));
                let turned =
                    methods::spectral_rotation((&u, &sigma, &v), (&p, &q), &case.vector("sigma_scale"));
                case.check(&turned.unwrap(), "", 1e-5);
            }
            "svdiff_linear" | "svdiff_conv2d" => {
                let (w, scale) = (case.matrix("base_weight"), case.number("scale"));
                let shift: Vec<f64> = case.vector("shift").iter().map(|v| scale * v).collect();
                let adapter = Spectral::new("svdiff", w.dim(), Component::Shift(shift), None, w.nrows());
                case.check(&adapter.unwrap(), "", 2e-5);
            }
            "transformer2_svf" => {
                let w = case.matrix("base_weight");
                let most = case.number("max_mult");
                let z = case.vector("z_logits").iter().map(|p| most / (1.0 + (-p).exp())).collect();
                let adapter = Spectral::new("svf", w.dim(), Component::NuclearScale(z), None, w.ncols());
                case.check(&adapter.unwrap(), "", 2e-5);
            }
            "expressive_power_exact" | "expressive_power_deficient" => {
                let (frozen, target) = (case.cube("frozen"), case.matrix("target"));
                let frozen: Vec<Array2<f64>> = frozen.outer_iter().map(|w| w.to_owned()).collect();
                let changes = low_rank_chain(&frozen, &target, case.number("rank") as usize).unwrap();
                let product = frozen
                    .iter()
                    .zip(&changes)
                    .fold(Array2::eye(8), |product: Array2<f64>, (w, (b, a))| (w + &b.dot(a)).dot(&product));
                let error = common::norm(&(&product - &target));
                assert!((error - case.number("svd_tail")).abs() < 1e-8, "{}: {error:e}", case.name);
                assert!(difference(&product, &case.matrix("achieved_product")) < 1e-8, "{}", case.name);
            }
            "group_rational" => {
                let (a, b) = (case.matrix("numerator"), case.matrix("denominator"));
                let layer = GroupRational::new(Denominator::SumAbs, a, b).unwrap();
                check_rational(&case, &layer, "y");
            }
            "nora_rational" => {
                let scale = case.number("alpha") / case.number("r");
                let product = |b: &str, a: &str| case.matrix(b).dot(&case.matrix(a)) * scale;
                let numerator = case.matrix("base_numerator") + product("B_num", "A_num");
                let denominator = case.matrix("base_denominator") + product("B_den", "A_den") + 1e-6;
                for (form, name) in [(Denominator::SumAbs, "y"), (Denominator::AbsSum, "y_abs_sum")] {
                    let layer = GroupRational::new(form, numerator.clone(), denominator.clone()).unwrap();
                    check_rational(&case, &layer, name);
                }
            }
            "ssmlora" => {
                let batch = |name: &str| {
                    let a = case.array(name);
                    let n = *a.shape().last().unwrap();
                    a.clone().into_shape_with_order((a.len() / n, n)).unwrap()
                };
                let mut state = Array2::zeros((6, 4));
                for k in 0..3 {
                    let own = |name: &str| format!("{k}.{name}");
                    let [a, b, c, d] = ["W_a", "W_b", "W_c", "W_d"].map(|name| case.matrix(&own(name)));
                    let layer = SsmLora::new(a, b, c, d, case.number("alpha")).unwrap();
                    let y = layer.step(&batch(&own("x")), &mut state).unwrap();
                    assert!(difference(&y, &batch(&own("delta_y"))) < 1e-6, "{k}");
                    assert!(difference(&state, &batch(&own("state_after"))) < 1e-6, "{k}");
                }
            }
            "dora_dynamic_rank" => check_dynamic_rank(&case),
            "aflora_freezing" => check_freezing(&case),
            other => panic!("{other} is not checked"),
        }
        met += 1;
    }
    println!("{met} of the authors' cases");
    assert!(met >= 3);
}

/// The tool, built by the same `cargo test`.
fn tool(folder: &Path, args: &str) -> std::process::Output {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let path = path.join("examples").join(format!("adapter{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing: `cargo build --examples`", path.display());
    std::process::Command::new(path).current_dir(folder).args(args.split_whitespace()).output().unwrap()
}

fn succeeds(folder: &Path, args: &str) -> String {
    let output = tool(folder, args);
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A case as files for the tool: the base, and the inputs.
fn files_of(path: &Path, module: &str) -> tempfile::TempDir {
    let (folder, case) = (tempfile::tempdir().unwrap(), Case::of(path, module));
    let mut writer = Writer::new();
    let (weight, bias) = (case.array("base_weight").unwrap(), case.array("base_bias"));
    writer.array_in(&format!("{module}.weight"), &weight, Storage::F32).unwrap();
    if let Some(bias) = bias {
        writer.array_in(&format!("{module}.bias"), &bias, Storage::F32).unwrap();
    }
    if name(path) == "lora_bias_all" {
        writer.array_in("fc2.bias", &Array1::<f64>::zeros(40), Storage::F32).unwrap();
    }
    writer.array("untouched", &common::gaussian(2, 2, 1)).unwrap();
    writer.write(folder.path().join("base.safetensors")).unwrap();
    let file = Checkpoint::open(path.join("case.safetensors")).unwrap();
    let mut writer = Writer::new();
    writer.copy(&file, "x").unwrap();
    writer.write(folder.path().join("x.safetensors")).unwrap();
    folder
}

#[test]
fn the_tool_merges_and_applies_what_the_reference_does() {
    let mut run = 0;
    for (case, module) in [
        ("lora", "lin"),
        ("lora_dora", "lin"),
        ("lora_fan_in_fan_out", "lin"),
        ("lora_embedding", "emb"),
        ("lora_bias_all", "fc1"),
        ("trainable_tokens", "emb"),
        ("road_4", "lin"),
        ("miss_mini", "lin"),
        ("c3a_gcd", "lin"),
        ("glora", "lin"),
        ("boft_conv2d", "conv"),
    ] {
        let Some(path) = cases("peft").into_iter().find(|path| path.ends_with(case)) else { continue };
        run += 1;
        let (folder, data) = (files_of(&path, module), Case::of(&path, module));
        let adapter = path.canonicalize().unwrap();
        let begin = format!("--base base.safetensors --adapter {}", adapter.display());
        succeeds(folder.path(), &format!("{begin} delta --output delta.safetensors"));
        let open = |name: &str| Checkpoint::open(folder.path().join(name)).unwrap();
        let flat = |a: ArrayD<f64>| a.clone().into_shape_with_order((1, a.len())).unwrap();
        let delta = open("delta.safetensors").array::<f64>(&format!("{module}.delta")).unwrap();
        assert!(difference(&flat(delta), &flat(data.array("delta").unwrap())) < 1e-5, "{case}");

        let printed = succeeds(folder.path(), &format!("{begin} merge --output merged.safetensors"));
        assert!(printed.contains(module) && printed.contains("f32"), "{printed}");
        let merged = open("merged.safetensors");
        let w = data.array("base_weight").unwrap() + data.array("delta").unwrap();
        let ours = merged.array::<f64>(&format!("{module}.weight")).unwrap();
        assert!(difference(&flat(ours), &flat(w)) < 1e-6, "{case}");
        assert_eq!(merged.matrix::<f64>("untouched").unwrap(), common::gaussian(2, 2, 1));
        if let Some(bias) = data.array("merged_bias") {
            let ours = merged.array::<f64>(&format!("{module}.bias")).unwrap();
            assert!(difference(&flat(ours), &flat(bias)) < 1e-6, "{case}");
        }
        let listed = succeeds(folder.path(), &format!("{begin} info"));
        assert!(listed.contains(module), "{listed}");
        let expected = data.array("y").unwrap();
        let (x, kernel) = (data.shape("x").unwrap(), data.shape("base_weight").unwrap());
        // Of convolutions with steps of 1, as the cases are.
        let zeros: Vec<String> = (2..kernel.len())
            .map(|axis| ((expected.shape()[axis] + kernel[axis] - 1 - x[axis]) / 2).to_string())
            .collect();
        let padding = if zeros.is_empty() { String::new() } else { format!("--padding {}", zeros.join(",")) };
        let apply =
            format!("{begin} apply --module {module} --x x.safetensors {padding} --output y.safetensors");
        succeeds(folder.path(), &apply);
        let y = open("y.safetensors").array::<f64>("y").unwrap();
        assert_eq!(y.shape(), expected.shape(), "{case}");
        assert!(difference(&flat(y), &flat(expected)) < 1e-5, "{case}");
    }
    assert!(run >= 5);
}

#[test]
fn the_tool_keeps_types_adds_adapters_and_finds_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (w, b, a) = (common::gaussian(24, 16, 1), common::gaussian(24, 2, 2), common::gaussian(2, 16, 3));
    let write = |name: &str, w: &Array2<f64>, storage| {
        let mut writer = Writer::new();
        writer.array_in("up.weight", w, storage).unwrap();
        writer.write(path(name)).unwrap();
    };
    write("base.safetensors", &w, Storage::F64);
    write("tuned.safetensors", &(&w + &b.dot(&a)), Storage::F64);
    write("half.safetensors", &w, Storage::Bf16);
    let sizes = [
        ("lora", 2),
        ("gralora", 4),
        ("c3a", 8),
        ("miss", 3),
        ("fourierft", 90),
        ("lokr", 4),
        ("bat", 4),
        ("loha", 2),
    ];
    for (kind, rank) in sizes.into_iter().chain([("hira", 2), ("lora_xs", 4)]) {
        let args = format!(
            "--base base.safetensors extract --tuned tuned.safetensors --kind {kind} --rank {rank} --output {kind}"
        );
        let printed = succeeds(folder.path(), &args);
        assert!(printed.contains("up"), "{printed}");
        let report: f64 = printed.lines().last().unwrap().split('|').nth(3).unwrap().trim().parse().unwrap();
        succeeds(
            folder.path(),
            &format!("--base base.safetensors --adapter {kind} delta --output {kind}.safetensors"),
        );
        let delta = Checkpoint::open(path(&format!("{kind}.safetensors")))
            .unwrap()
            .matrix::<f64>("up.delta")
            .unwrap();
        let error = difference(&delta, &b.dot(&a));
        assert!(
            (error - report).abs() < 1e-3 && error < if kind == "lora" { 1e-6 } else { 0.999 },
            "{kind}: {error}"
        );
        // The nearest member: what is left is orthogonal to it.
        let inner: f64 = (&b.dot(&a) - &delta).iter().zip(&delta).map(|(r, d)| r * d).sum();
        assert!(inner.abs() < 1e-5 * common::norm(&delta).powi(2).max(1.0), "{kind}: {inner}");
    }
    // One that PEFT has no folder for.
    succeeds(
        folder.path(),
        "--base base.safetensors extract --tuned tuned.safetensors --kind diablo --rank 4 --output blocks.safetensors",
    );
    let blocks = Checkpoint::open(path("blocks.safetensors")).unwrap().load("up.delta").unwrap();
    let inside = |(i, j): (usize, usize)| if i / 6 == j / 4 { b.dot(&a)[[i, j]] } else { 0.0 };
    assert_eq!(blocks.name(), "block_diagonal");
    assert!(difference(&blocks.to_dense_f64(), &Array2::from_shape_fn((24, 16), inside)) < 1e-6);
    succeeds(folder.path(), "--base half.safetensors --adapter lora merge --output merged.safetensors");
    let merged = Checkpoint::open(path("merged.safetensors")).unwrap();
    assert_eq!(merged.storage("up.weight"), Some(Storage::Bf16));
    let both = "--base base.safetensors --adapter lora:0.75 --adapter lora:0.25";
    succeeds(folder.path(), &format!("{both} delta --output both.safetensors"));
    let delta = Checkpoint::open(path("both.safetensors")).unwrap().matrix::<f64>("up.delta").unwrap();
    assert!(difference(&delta, &b.dot(&a)) < 1e-6);
    assert!(succeeds(folder.path(), &format!("{both} info")).contains("lora x 0.75"));
    for (args, word) in [
        ("--base base.safetensors --adapter nowhere info", "nowhere"),
        ("--base base.safetensors --adapter lora:x info", "lora:x"),
        ("--base base.safetensors info", "adapter"),
        (
            "--base base.safetensors --adapter lora apply --module down --x base.safetensors --output y.st",
            "down",
        ),
        (
            "--base merged.safetensors extract --tuned merged.safetensors --kind lora --rank 1 --output none",
            "differs",
        ),
        (
            "--base base.safetensors extract --tuned tuned.safetensors --kind lora --rank 99 --output none",
            "rank",
        ),
    ] {
        let output = tool(folder.path(), args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(word), "{args}: {text}");
    }
    assert!(!path("y.st").exists() && !path("none").exists());
}

/// Images through an adapted convolution, against loops.
#[test]
fn the_tool_convolves_images_with_steps_zeros_and_gaps() {
    let (folder, kernel) = (tempfile::tempdir().unwrap(), [3, 2, 2, 3]);
    let path = |name: &str| folder.path().join(name);
    let cube = |shape: &[usize], seed| {
        let all: usize = shape.iter().product();
        common::gaussian(1, all, seed).into_shape_with_order(shape).unwrap()
    };
    let (w, bias, x) =
        (cube(&kernel, 1), common::gaussian(1, 3, 2).remove_axis(Axis(0)), cube(&[2, 2, 7, 9], 3));
    let (b, a) = (cube(&[3, 1, 1, 1], 4), cube(&[1, 2, 2, 3], 5));
    let mut writer = Writer::new();
    writer.array("conv.weight", &w).unwrap();
    writer.array("conv.bias", &bias).unwrap();
    writer.write(path("base.safetensors")).unwrap();
    let mut writer = Writer::new();
    writer.array("x", &x).unwrap();
    writer.write(path("x.safetensors")).unwrap();
    let mut writer = Writer::new();
    writer.array("base_model.model.conv.lora_A.weight", &a).unwrap();
    writer.array("base_model.model.conv.lora_B.weight", &b).unwrap();
    std::fs::create_dir(path("lora")).unwrap();
    writer.write(path("lora/adapter_model.safetensors")).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2}"#;
    std::fs::write(path("lora/adapter_config.json"), config).unwrap();
    let begin =
        "--base base.safetensors --adapter lora apply --module conv --x x.safetensors --output y.safetensors";
    for (stride, padding, dilation, shape) in [
        ([1, 1], [0, 0], [1, 1], [6, 7]),
        ([2, 1], [1, 2], [3, 1], [3, 11]),
        ([3, 2], [0, 2], [1, 3], [2, 4]),
    ] {
        let list = |two: [usize; 2]| format!("{},{}", two[0], two[1]);
        let (s, p, d) = (list(stride), list(padding), list(dilation));
        succeeds(folder.path(), &format!("{begin} --stride {s} --padding {p} --dilation {d}"));
        let y = Checkpoint::open(path("y.safetensors")).unwrap().array::<f64>("y").unwrap();
        assert_eq!(y.shape(), [2, 3, shape[0], shape[1]]);
        for ((image, out), (row, col)) in [0, 1]
            .iter()
            .flat_map(|i| (0..3).map(move |o| (*i, o)))
            .flat_map(|at| (0..shape[0]).flat_map(move |row| (0..shape[1]).map(move |col| (at, (row, col)))))
        {
            let mut sum = bias[out];
            for (c, i, j) in (0..2).flat_map(|c| (0..2).flat_map(move |i| (0..3).map(move |j| (c, i, j)))) {
                let at = |place: usize, tap: usize, axis: usize| {
                    (place * stride[axis] + tap * dilation[axis]).checked_sub(padding[axis])
                };
                let (Some(up), Some(left)) = (at(row, i, 0), at(col, j, 1)) else { continue };
                let pixel = x.get([image, c, up, left]).copied().unwrap_or(0.0);
                sum += pixel * (w[[out, c, i, j]] + 2.0 * b[[out, 0, 0, 0]] * a[[0, c, i, j]]);
            }
            assert!((y[[image, out, row, col]] - sum).abs() < 1e-5, "{stride:?} {padding:?} {dilation:?}");
        }
    }
    for (flags, word) in [
        ("--stride 0", "stride"),
        ("--stride 1,2,3", "stride"),
        ("--dilation 9", "fits"),
        ("--padding 999999999999", "padding"),
    ] {
        let output = tool(folder.path(), &format!("{begin} {flags}"));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(word), "{flags}: {text}");
    }
}

/// Strided inputs and outputs are laid out in scratch, as those of any matrix are.
#[test]
fn products_of_edits_take_any_strides() {
    let base =
        Dense::new(&Array2::from_shape_fn((6, 4), |(i, j)| (i * 5 + j * 3) as f64 % 7.0 - 3.0)).unwrap();
    let scales: Vec<f64> = (1..=6).map(f64::from).collect();
    let left = methods::scaling((6, 4), Some(&scales), None).unwrap().edit(&base).unwrap();
    let lora = methods::lora(&Array2::<f64>::ones((6, 1)), &Array2::from_elem((1, 4), 0.5), 2.0).unwrap();
    let edit = left.then(&lora.edit(&base).unwrap()).unwrap();
    let wanted = edit.merged(&base).unwrap();
    let wide = Array2::from_shape_fn((3, 8), |(i, j)| (i * 11 + j * 7) as f64 % 5.0 - 2.0);
    let x = wide.slice(s![.., ..;2]);
    let mut y = Array2::<f64>::ones((3, 12));
    let mut exec = Exec::new();
    edit.apply_into(&base, &x, &mut y.slice_mut(s![.., ..;2]), Update::Accumulate, &mut exec).unwrap();
    assert!(difference(&(y.slice(s![.., ..;2]).to_owned() - 1.0), &x.dot(&wanted.t())) < 1e-12);
    assert!(y.slice(s![.., 1..;2]).iter().all(|v| *v == 1.0));
    // An edit that adds nothing leaves the output as it is, and refuses other shapes all the same.
    let nothing = Edit::of((6, 4));
    let before = y.clone();
    nothing.add_into(&x, &mut y.slice_mut(s![.., ..;2]), &mut exec).unwrap();
    assert_eq!(y, before);
    assert!(matches!(nothing.add_into(&wide, &mut y, &mut exec), Err(Error::Shape { .. })));
    assert!(matches!(nothing.add_into(&x, &mut y, &mut exec), Err(Error::Shape { .. })));
}

#[test]
fn rotations_of_other_shapes_are_refused() {
    for rotation in [Rotation::Cayley, Rotation::Series { terms: 5 }, Rotation::OldSeries { terms: 5 }] {
        assert!(matches!(rotation.of(&Array2::zeros((2, 3))), Err(Error::Shape { .. })));
    }
    assert!(matches!(methods::skew(&[1.0], usize::MAX), Err(Error::Shape { .. })));
}

#[test]
fn rules_refuse_what_they_have_not_seen() {
    let settings =
        AdaLoraSettings { target_rank: 1, warmup: 0, last: 1, interval: 0, betas: (0.8, 0.8), total: 3 };
    let one = Triplets { a: Array2::ones((2, 3)), e: vec![1.0, 0.5], b: Array2::ones((4, 2)) };
    assert!(matches!(
        AdaLora::new(settings).step(3, std::slice::from_ref(&one), std::slice::from_ref(&one)),
        Err(Error::Parameter { .. })
    ));
    let odd = RankOnes { a: Array2::ones((1, 3)), b: Array2::ones((4, 2)), c: vec![1.0; 3] };
    assert_eq!(odd.shares().len(), 1);
}
