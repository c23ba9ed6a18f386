//! Adapters against folders written by HuggingFace PEFT and cases computed by authors' code, and against what must hold for all of them.
//!
//! The small cases of `tests/data/adapters` are in the repository; the whole set is found beside it or where `STRUCTMAT_ORACLE` says.

mod common;

use common::difference;
use std::path::{Path, PathBuf};
use structmat::adapters::peft::{Folder, Layout, Loaded};
use structmat::adapters::Edit;
use structmat::io::Checkpoint;
use structmat::ndarray::{Array1, Array2, ArrayD, Ix1, s};
use structmat::prelude::*;
use structmat::{Error, Scalar};

/// Folders of the set that hold no adapter, or one that is refused, each with the reason.
const NOT_READ: &[(&str, &str)] = &[
    ("adalora_allocator", "an allocation step by step, no folder"),
    ("eva_init", "an initialisation from inputs, no folder"),
    ("eva_init_whiten", "an initialisation from inputs, no folder"),
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
    let row =
        |name: &str| patches(&case.array(name).unwrap(), &[1, 1], &[]).slice(s![task..=task, ..]).to_owned();
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
}
