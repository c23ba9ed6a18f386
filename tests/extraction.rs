//! Adapters found for changes of weights: nearest members, planted members, and folders that hold them.

mod common;

use common::{difference, gaussian, norm};
use std::path::{Path, PathBuf};
use structmat::Error;
use structmat::adapters::extract::{Extracted, Kind, extract, extract_on};
use structmat::adapters::methods::{self, Bat, Hadamard};
use structmat::adapters::peft::{Folder, save};
use structmat::adapters::{Adapter, Additive};
use structmat::io::Checkpoint;
use structmat::ndarray::{Array2, Array3, ArrayD, ArrayRef2, Axis, Ix2, s};
use structmat::prelude::*;

const SHAPE: (usize, usize) = (24, 16);

/// Every family with a size that fits [`SHAPE`].
const SIZES: [(Kind, usize); 11] = [
    (Kind::Lora, 3),
    (Kind::LoraXs, 4),
    (Kind::Gralora, 4),
    (Kind::C3a, 4),
    (Kind::Miss, 3),
    (Kind::FourierFt, 60),
    (Kind::Diablo, 3),
    (Kind::Lokr, 4),
    (Kind::Bat, 4),
    (Kind::Loha, 2),
    (Kind::Hira, 2),
];

fn base() -> Array2<f64> {
    gaussian(SHAPE.0, SHAPE.1, 100)
}

fn dense(w: &ArrayRef2<f64>) -> Dense {
    Dense::from_factor(Factor::from_matrix(Storage::F64, w)).unwrap()
}

fn change(adapter: &dyn Adapter, base: &ArrayRef2<f64>) -> Array2<f64> {
    adapter.delta(&dense(base)).unwrap()
}

fn cube(a: usize, b: usize, c: usize, seed: u64) -> Array3<f64> {
    gaussian(a, b * c, seed).into_shape_with_order((a, b, c)).unwrap()
}

/// A random member of a family of the size in [`SIZES`], made by its method.
fn member(kind: Kind, size: usize, seed: u64) -> Array2<f64> {
    let ((m, n), w) = (SHAPE, base());
    let additive = |adapter: Additive| adapter.matrix().to_dense_f64();
    match kind {
        Kind::Lora => {
            additive(methods::lora(&gaussian(m, size, seed), &gaussian(size, n, seed + 1), 1.0).unwrap())
        }
        Kind::LoraXs => {
            let svd = structmat::linalg::svd(&w, structmat::linalg::Threads::ONE).unwrap().truncate(size);
            let a = Array2::from_shape_fn((size, n), |(k, j)| svd.s[k] * svd.vt[[k, j]]);
            additive(methods::core(&svd.u, &gaussian(size, size, seed), &a, 1.0).unwrap())
        }
        Kind::Gralora => additive(
            methods::gralora(&cube(2, n / 2, size, seed), &cube(2, size, m / 2, seed + 1), 1.0).unwrap(),
        ),
        Kind::C3a => additive(methods::c3a(&cube(m / size, n / size, size, seed)).unwrap()),
        Kind::Miss => additive(methods::miss(SHAPE, &gaussian(size, m, seed)).unwrap()),
        Kind::FourierFt => {
            // Its own positions: those that the extraction of anything tells by its folder.
            let numbers = gaussian(1, size, seed).into_raw_vec_and_offset().0;
            fourier(&numbers)
        }
        Kind::Diablo => {
            additive(methods::diablo(SHAPE, &cube(size, n.div_ceil(size), m.div_ceil(size), seed)).unwrap())
        }
        Kind::Lokr => additive(
            methods::lokr(&gaussian(size, size, seed), &gaussian(m / size, n / size, seed + 1), 1.0).unwrap(),
        ),
        Kind::Bat => change(&Bat::new(SHAPE, &cube(m / size, size, size, seed)).unwrap(), &w),
        Kind::Loha => {
            let part = |k: u64| (gaussian(m, size, seed + k), gaussian(size, n, seed + k + 1));
            // Magnitudes in the second product: where both change their signs, some planted products are not found.
            let ((a1, b1), (a2, b2)) = (part(0), part(2));
            let (a2, b2) = (a2.mapv(|v| 0.5 * v.abs() + 0.2), b2.mapv(|v| 0.5 * v.abs() + 0.2));
            additive(methods::loha((&a1, &b1), (&a2, &b2), 1.0).unwrap())
        }
        Kind::Hira => {
            change(&Hadamard::new(&gaussian(m, size, seed), &gaussian(size, n, seed + 1)).unwrap(), &w)
        }
        other => panic!("{other:?} has no members here"),
    }
}

/// The change that a folder of these FourierFT coefficients makes.
fn fourier(numbers: &[f64]) -> Array2<f64> {
    let mut found = extract(&base(), Kind::FourierFt, numbers.len()).unwrap();
    found.tensors[0].1 = ArrayD::from_shape_vec(vec![numbers.len()], numbers.to_vec()).unwrap();
    change(reopened(Kind::FourierFt, numbers.len(), found).1.as_ref(), &base())
}

/// An extracted adapter written and read again, with the folder it came from.
fn reopened(kind: Kind, size: usize, found: Extracted) -> (tempfile::TempDir, Box<dyn Adapter>) {
    let folder = tempfile::tempdir().unwrap();
    let (m, n) = found.adapter.shape();
    save(folder.path(), kind, size, &[("layer.fc".to_owned(), found)]).unwrap();
    let loaded = Folder::open(folder.path()).unwrap().load("layer.fc", &|_| Some(vec![m, n])).unwrap();
    (folder, loaded.adapter)
}

/// Families whose members are all linear images of their numbers: the nearest one leaves an orthogonal rest.
fn is_linear(kind: Kind) -> bool {
    !matches!(kind, Kind::Lora | Kind::Gralora | Kind::Lokr | Kind::Loha | Kind::Hira)
}

#[test]
fn every_family_is_listed_and_read_by_name() {
    assert!(Kind::ALL.iter().all(|kind| SIZES.iter().any(|(known, _)| known == kind)));
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse::<Kind>().unwrap(), kind);
    }
    let error = "lorax".parse::<Kind>().unwrap_err().to_string();
    assert!(error.contains("lorax") && error.contains("fourierft"), "{error}");
}

#[test]
fn planted_members_are_found() {
    for (kind, size) in SIZES {
        let (delta, w) = (member(kind, size, 7), base());
        let found = extract_on(&w, &delta, kind, size).unwrap();
        let error = difference(&change(found.adapter.as_ref(), &w), &delta);
        // Single precision, and where least squares alternate how far they go.
        let goal = if matches!(kind, Kind::Loha | Kind::Hira) { 1e-3 } else { 1e-6 };
        assert!(error < goal && found.relative_error < goal, "{kind:?}: {error:e} {}", found.relative_error);
    }
}

#[test]
fn no_member_is_nearer() {
    let (delta, w) = (gaussian(SHAPE.0, SHAPE.1, 3), base());
    for (kind, size) in SIZES {
        let found = extract_on(&w, &delta, kind, size).unwrap();
        let nearest = change(found.adapter.as_ref(), &w);
        let (rest, error) = (&delta - &nearest, norm(&(&delta - &nearest)));
        assert!((error / norm(&delta) - found.relative_error).abs() < 1e-6, "{kind:?}");
        assert!(found.relative_error < 1.0, "{kind:?}");
        for seed in 0..20 {
            let other = member(kind, size, 1000 + 10 * seed);
            // The member itself as long as helps most, and steps from the nearest towards it.
            let inner = (&delta * &other).sum() / (&other * &other).sum();
            assert!(norm(&(&delta - &(&other * inner))) > error, "{kind:?} {seed}");
            if is_linear(kind) {
                let cosine = (&rest * &other).sum() / norm(&rest) / norm(&other);
                assert!(cosine.abs() < 1e-6, "{kind:?} {seed}: {cosine:e}");
            }
        }
    }
}

#[test]
fn errors_meet_their_closed_forms() {
    let delta = gaussian(SHAPE.0, SHAPE.1, 4);
    let error = |kind, size| {
        let found = extract(&delta, kind, size).unwrap();
        (found.relative_error * norm(&delta)).powi(2)
    };
    let tail = |w: &ArrayRef2<f64>, rank: usize| {
        structmat::linalg::singular_values(w, structmat::linalg::Threads::ONE).unwrap()[rank..]
            .iter()
            .map(|s| s * s)
            .sum::<f64>()
    };
    assert!((error(Kind::Lora, 3) - tail(&delta, 3)).abs() < 1e-4);
    let blocks: f64 = delta.exact_chunks((12, 8)).into_iter().map(|block| tail(&block, 2)).sum();
    assert!((error(Kind::Gralora, 4) - blocks).abs() < 1e-4);
    // What stands beside the blocks.
    let (s, p) = (8, 6);
    let outside: f64 = delta.indexed_iter().filter(|((i, j), _)| i / s != j / p).map(|(_, v)| v * v).sum();
    assert!((error(Kind::Diablo, 3) - outside).abs() < 1e-4);
    // Kronecker products are rank-one matrices of blocks.
    let rearranged = Array2::from_shape_fn((16, 24), |(a, b)| delta[[a / 4 * 6 + b / 4, a % 4 * 4 + b % 4]]);
    assert!((error(Kind::Lokr, 4) - tail(&rearranged, 1)).abs() < 1e-4);
}

/// The least error that any member can have, by another road: least squares on pictures of single coefficients.
#[test]
fn fourier_coefficients_solve_the_normal_equations_and_miss_the_odd_half() {
    let (m, n, count) = (6, 4, 10);
    let delta = gaussian(m, n, 5);
    let found = extract(&delta, Kind::FourierFt, count).unwrap();
    let picture = |k: usize| {
        let mut found = extract(&delta, Kind::FourierFt, count).unwrap();
        found.tensors[0].1.fill(0.0);
        found.tensors[0].1[[k]] = 1.0;
        let picture = change(reopened(Kind::FourierFt, count, found).1.as_ref(), &delta);
        picture.into_shape_with_order(m * n).unwrap()
    };
    let mut pictures = Array2::zeros((m * n, count));
    (0..count).for_each(|k| pictures.column_mut(k).assign(&picture(k)));
    let flat = delta.clone().into_shape_with_order((m * n, 1)).unwrap();
    let best = structmat::linalg::lstsq(&pictures, &flat).unwrap();
    let least = norm(&(&flat - &pictures.dot(&best))) / norm(&delta);
    assert!((found.relative_error - least).abs() < 1e-6, "{} {least}", found.relative_error);
    // The solution of least norm gives both places of a mirrored pair the same number.
    let own = found.tensors[0].1.clone().into_dimensionality::<structmat::ndarray::Ix1>().unwrap();
    assert!(difference(&own.insert_axis(Axis(1)), &best) < 1e-5);
    // All coefficients together reach the even half of a change, and no more.
    let all = extract(&delta, Kind::FourierFt, m * n).unwrap();
    let even =
        Array2::from_shape_fn((m, n), |(i, j)| 0.5 * (delta[[i, j]] + delta[[(m - i) % m, (n - j) % n]]));
    assert!(difference(&change(all.adapter.as_ref(), &delta), &even) < 1e-6);
}

#[test]
fn cores_are_those_of_the_base_and_counted_alone() {
    let (delta, w) = (gaussian(SHAPE.0, SHAPE.1, 6), base());
    let found = extract_on(&w, &delta, Kind::LoraXs, 4).unwrap();
    assert_eq!((found.adapter.n_params(), found.adapter.kind()), (16, "core"));
    // A base of lower rank has directions that nothing is divided by.
    let flat = gaussian(SHAPE.0, 2, 1).dot(&gaussian(2, SHAPE.1, 2));
    let found = extract_on(&flat, &delta, Kind::LoraXs, 4).unwrap();
    assert!(
        change(found.adapter.as_ref(), &flat).iter().all(|v| v.is_finite()) && found.relative_error < 1.0
    );
    // Each rank holds the ones before.
    let error = |rank| extract_on(&w, &delta, Kind::LoraXs, rank).unwrap().relative_error;
    assert!(error(16) < error(8) && error(8) < error(1));
}

#[test]
fn loha_is_never_worse_than_lora_and_hira_keeps_zeros() {
    for rank in [1, 2, 4] {
        let delta = gaussian(SHAPE.0, SHAPE.1, rank as u64);
        let error = |kind| extract(&delta, kind, rank).unwrap().relative_error;
        assert!(error(Kind::Loha) <= error(Kind::Lora) + 1e-6, "{rank}");
    }
    let (mut w, delta) = (base(), gaussian(SHAPE.0, SHAPE.1, 8));
    w.slice_mut(s![..4, ..]).fill(0.0);
    w[[10, 3]] = 0.0;
    let d = change(extract_on(&w, &delta, Kind::Hira, 3).unwrap().adapter.as_ref(), &w);
    assert!(d.iter().zip(&w).all(|(d, w)| *w != 0.0 || *d == 0.0) && d.iter().all(|d| d.is_finite()));
    let nothing = extract_on(&Array2::zeros(SHAPE), &delta, Kind::Hira, 3).unwrap();
    assert_eq!(nothing.relative_error, 1.0);
}

#[test]
fn folders_hold_what_was_found() {
    let (delta, w) = (gaussian(SHAPE.0, SHAPE.1, 9), base());
    for (kind, size) in SIZES {
        let found = extract_on(&w, &delta, kind, size).unwrap();
        if kind == Kind::Diablo {
            let folder = tempfile::tempdir().unwrap();
            let saved = save(folder.path().join("none"), kind, size, &[("fc".to_owned(), found)]);
            assert!(matches!(saved, Err(Error::Unsupported { .. })) && !folder.path().join("none").exists());
            continue;
        }
        let expected = change(found.adapter.as_ref(), &w);
        let (folder, again) = reopened(kind, size, found.clone());
        assert!(difference(&change(again.as_ref(), &w), &expected) < 1e-6, "{kind:?}");
        assert_eq!(Folder::open(folder.path()).unwrap().kind(), kind.peft_type().unwrap());
        if kind != Kind::LoraXs {
            assert_eq!(again.n_params(), found.adapter.n_params(), "{kind:?}");
        }
    }
    assert!(save("nowhere", Kind::Lora, 1, &[]).is_err());
}

/// Modules of several shapes in one folder, each with its own left factor and one rank for all.
#[test]
fn kronecker_factors_of_several_shapes_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let shapes = [("a", (24, 16)), ("b", (10, 48))];
    let deltas = shapes.map(|(_, (m, n))| gaussian(m, n, (m * n) as u64));
    let modules: Vec<(String, Extracted)> = shapes
        .iter()
        .zip(&deltas)
        .map(|((name, _), delta)| (name.to_string(), extract(delta, Kind::Lokr, 4).unwrap()))
        .collect();
    save(folder.path(), Kind::Lokr, 4, &modules).unwrap();
    let opened = Folder::open(folder.path()).unwrap();
    for ((name, (m, n)), (_, found)) in shapes.iter().zip(&modules) {
        let loaded = opened.load(name, &|_| Some(vec![*m, *n])).unwrap();
        let zero = Array2::zeros((*m, *n));
        let expected = change(found.adapter.as_ref(), &zero);
        assert!(difference(&change(loaded.adapter.as_ref(), &zero), &expected) < 1e-6);
    }
    // At this rank PEFT stores right factors whole.
    let text = std::fs::read(folder.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(config["r"], 12);
}

/// By the rule of LyCORIS, which PEFT follows: the factor where it divides, else the most balanced pair of which the smaller is no larger.
#[test]
fn kronecker_factors_have_the_sizes_that_the_reference_gives_them() {
    for (len, factor, (one, two)) in [
        (48, 8, (8, 6)),
        (64, 8, (8, 8)),
        (127, 8, (1, 127)),
        (128, 8, (8, 16)),
        (250, 16, (10, 25)),
        (360, 7, (6, 60)),
        (360, 100, (18, 20)),
        (5, 5, (5, 1)),
    ] {
        let found = extract(&gaussian(len, 1, 1), Kind::Lokr, factor).unwrap();
        let shapes = found.tensors.iter().map(|(_, tensor)| tensor.shape().to_vec());
        assert_eq!(shapes.collect::<Vec<_>>(), [[one, 1], [two, 1]], "{len} {factor}");
    }
}

/// Folders of the reference of one kind: in the repository, and in the whole set where it is.
fn folders(peft_type: &str) -> Vec<PathBuf> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let whole = std::env::var_os("STRUCTMAT_ORACLE").map_or(home.join("../shared/oracle"), PathBuf::from);
    let mut found = Vec::new();
    for root in [whole.join("peft"), home.join("tests/data/adapters/peft")] {
        let all = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        found.extend(all.filter(|path| config(path)["peft_type"] == peft_type));
    }
    found.sort();
    found
}

fn config(path: &Path) -> serde_json::Value {
    let text = std::fs::read(path.join("adapter_config.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

#[test]
fn settings_and_tensors_are_called_as_the_reference_calls_them() {
    let (delta, w) = (gaussian(SHAPE.0, SHAPE.1, 9), base());
    for (kind, size) in SIZES.into_iter().filter(|(kind, _)| kind.peft_type().is_some()) {
        let found = extract_on(&w, &delta, kind, size).unwrap();
        let tensors: Vec<&str> = found.tensors.iter().map(|(name, _)| *name).collect();
        let (folder, _) = reopened(kind, size, found.clone());
        let paths = folders(kind.peft_type().unwrap());
        assert!(!paths.is_empty(), "{kind:?}");
        let ours = config(folder.path());
        for path in &paths {
            let theirs = config(path);
            let unknown = ours.as_object().unwrap().keys().find(|key| theirs.get(*key).is_none());
            assert_eq!(unknown, None, "{kind:?}: not in {}", path.display());
        }
        let known = paths.iter().any(|path| {
            let file = Checkpoint::open(path.join("adapter_model.safetensors")).unwrap();
            let names: Vec<String> = file.tensors().map(str::to_owned).collect();
            tensors.iter().all(|own| names.iter().any(|name| name.ends_with(&format!(".{own}"))))
        });
        assert!(known, "{kind:?}: {tensors:?}");
    }
}

/// The change of a linear layer by one adapter of the reference, its base, and the size that its settings name.
struct Known {
    path: PathBuf,
    w: Array2<f64>,
    delta: Array2<f64>,
    size: usize,
}

/// Folders of a tuner with this setting, and with these values of `init_weights` (of any where there are none).
fn known(peft_type: &str, setting: &str, init: &[&str]) -> Vec<Known> {
    let read = |path: PathBuf| {
        let config = config(&path);
        let wanted = init.is_empty() || init.iter().any(|name| config["init_weights"] == *name);
        let file = Checkpoint::open(path.join("case.safetensors")).ok()?;
        let matrix = |name: &str| file.array::<f64>(name).ok()?.into_dimensionality::<Ix2>().ok();
        let (w, delta) = (matrix("base_weight")?, matrix("delta")?);
        let size = config[setting].as_u64()? as usize;
        (wanted && w.dim() == delta.dim()).then_some(Known { path, w, delta, size })
    };
    folders(peft_type).into_iter().filter_map(read).collect()
}

/// What the reference changed is found again, number by number.
#[test]
fn adapters_of_the_reference_are_found_again() {
    let mut met = 0;
    for (kind, peft_type, setting, init) in [
        (Kind::FourierFt, "FOURIERFT", "n_frequency", &[][..]),
        (Kind::C3a, "C3A", "block_size", &[]),
        (Kind::Miss, "MISS", "r", &["mini"]),
        (Kind::Bat, "MISS", "r", &["bat"]),
        (Kind::Bat, "BONE", "r", &["bat"]),
        (Kind::Hira, "HIRA", "r", &[]),
        (Kind::Lokr, "LOKR", "decompose_factor", &[]),
    ] {
        for Known { path, w, delta, size } in known(peft_type, setting, init) {
            let found = extract_on(&w, &delta, kind, size).unwrap();
            met += 1;
            let error = found.relative_error;
            // Alternating least squares stop where they hardly gain.
            let goal = if kind == Kind::Hira { 1e-3 } else { 1e-5 };
            assert!(error < goal, "{}: {error:e}", path.display());
            let stored = Checkpoint::open(path.join("adapter_model.safetensors")).unwrap();
            let unique = |name: &&str| ["_kernel", "_block"].iter().any(|end| name.ends_with(end));
            let Some(name) = stored.tensors().find(unique) else { continue };
            let (ours, theirs) = (&found.tensors[0].1, stored.array::<f64>(name).unwrap());
            if init == ["mini"] {
                // The same block over and over.
                let (ours, cols) = (ours.view().into_dimensionality::<Ix2>().unwrap(), theirs.shape()[1]);
                let tiled = Array2::from_shape_fn(ours.dim(), |(i, j)| theirs[[i, j % cols]]);
                assert!(difference(&ours, &tiled) < 1e-5, "{}", path.display());
                continue;
            }
            assert_eq!(ours.shape(), theirs.shape(), "{}", path.display());
            let flat = |a: &ArrayD<f64>| a.clone().into_shape_with_order((1, a.len())).unwrap();
            assert!(difference(&flat(ours), &flat(&theirs)) < 1e-4, "{}", path.display());
        }
    }
    // FourierFT, C3A, MiSS and Bone are in the repository.
    println!("{met} adapters of the reference");
    assert!(met >= 4, "{met}");
}

#[test]
fn bad_input_is_an_error_that_says_what_is_wrong() {
    let (delta, w) = (gaussian(SHAPE.0, SHAPE.1, 1), base());
    for (kind, _) in SIZES {
        for size in [0, usize::MAX] {
            let error = extract_on(&w, &delta, kind, size);
            let fits = kind == Kind::Lokr && size > 0;
            assert_eq!(matches!(error, Err(Error::Parameter { .. })), !fits, "{kind:?} {size}");
        }
        let none = Array2::zeros((0, 0));
        assert!(extract_on(&none, &none, kind, usize::MAX).is_err(), "{kind:?}");
        let mut bad = delta.clone();
        bad[[1, 2]] = f64::NAN;
        assert!(matches!(extract_on(&w, &bad, kind, 2), Err(Error::NonFinite { .. })), "{kind:?}");
        assert!(matches!(extract_on(&bad, &delta, kind, 2), Err(Error::NonFinite { .. })), "{kind:?}");
        assert!(matches!(extract_on(&w.t(), &delta, kind, 2), Err(Error::Shape { .. })), "{kind:?}");
        // Sides that share no divisor, single numbers, nothing.
        for shape in [(7, 5), (1, 1), (1, 6), (5, 1), (0, 3), (3, 0), (0, 0)] {
            let (w, delta) = (gaussian(shape.0, shape.1, 1), gaussian(shape.0, shape.1, 2));
            for size in [1, 2, 3] {
                if let Ok(found) = extract_on(&w, &delta, kind, size) {
                    assert!(found.relative_error <= 1.0 + 1e-6, "{kind:?} {shape:?} {size}");
                }
            }
        }
        let zero =
            extract_on(&w, &Array2::zeros(SHAPE), kind, SIZES.iter().find(|(k, _)| *k == kind).unwrap().1);
        assert_eq!(zero.unwrap().relative_error, 0.0, "{kind:?}");
    }
    for kind in [Kind::Bat, Kind::Hira, Kind::LoraXs] {
        let error = extract(&delta, kind, 2).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("base"), "{error}");
    }
}
