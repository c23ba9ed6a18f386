//! Folders of HuggingFace PEFT that are written here by hand: layers and layouts of many kinds, and folders that are damaged on purpose.

mod common;

use common::{difference, gaussian};
use std::path::Path;
use structmat::adapters::peft::{Folder, Loaded};
use structmat::io::{Checkpoint, Writer};
use structmat::ndarray::{Array1, Array2, Array3, ArrayD, Axis, IxDyn, s};
use structmat::prelude::*;
use structmat::{Error, Result};

/// Numbers of any shape.
fn tensor(shape: &[usize], seed: u64) -> ArrayD<f32> {
    let count = shape.iter().product();
    gaussian(1, count, seed).mapv(|v| v as f32 * 0.5).into_shape_with_order(IxDyn(shape)).unwrap()
}

fn zeros(shape: &[usize]) -> ArrayD<f32> {
    ArrayD::zeros(IxDyn(shape))
}

fn write(path: &Path, tensors: &[(&str, ArrayD<f32>)]) {
    let mut writer = Writer::new();
    tensors.iter().for_each(|(name, array)| writer.array(name, array).unwrap());
    writer.write(path).unwrap();
}

/// A folder whose tensors have these names behind `base_model.`, and a base.
struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new(config: serde_json::Value, tensors: &[(&str, ArrayD<f32>)], base: &[(&str, ArrayD<f32>)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let named: Vec<(String, ArrayD<f32>)> =
            tensors.iter().map(|(name, array)| (format!("base_model.{name}"), array.clone())).collect();
        let named: Vec<(&str, ArrayD<f32>)> =
            named.iter().map(|(name, array)| (name.as_str(), array.clone())).collect();
        write(&folder.path().join("adapter_model.safetensors"), &named);
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        write(&folder.path().join("base.safetensors"), base);
        Self { folder }
    }

    fn open(&self) -> Result<Folder> {
        Folder::open(self.folder.path())
    }

    fn base(&self) -> Checkpoint {
        Checkpoint::open(self.folder.path().join("base.safetensors")).unwrap()
    }

    fn load(&self, module: &str) -> Result<Loaded> {
        self.open()?.load_from(module, &self.base())
    }

    /// The change of a base tensor, in its own layout.
    fn delta(&self, module: &str, tensor: &str) -> ArrayD<f64> {
        let loaded = self.load(module).unwrap();
        let file = self.base();
        let weight = loaded.layout.to_matrix(&file.array(tensor).unwrap()).unwrap();
        loaded.layout.to_tensor(&loaded.adapter.delta(&Dense::new(&weight).unwrap()).unwrap()).unwrap()
    }
}

fn wide(a: &ArrayD<f32>) -> Array2<f64> {
    let n = a.len() / a.shape()[0];
    a.mapv(f64::from).into_shape_with_order((a.shape()[0], n)).unwrap()
}

fn near(a: &ArrayD<f64>, b: &Array2<f64>) {
    let a = a.clone().into_shape_with_order(b.dim()).unwrap();
    assert!(difference(&a, b) < 1e-6, "{:.1e}", difference(&a, b));
}

fn lora(more: serde_json::Value) -> serde_json::Value {
    let mut config = serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[test]
fn modules_may_be_called_like_tensors() {
    let (a, b, w) = (tensor(&[2, 4], 1), tensor(&[3, 2], 2), tensor(&[3, 4], 3));
    let (bias, head) = (tensor(&[3], 4), tensor(&[2], 5));
    let case = Case::new(
        lora(serde_json::json!({"bias": "all", "modules_to_save": ["lora_head"]})),
        &[
            ("model.blk.lora_net.fc.lora_A.weight", a.clone()),
            ("model.blk.lora_net.fc.lora_B.weight", b.clone()),
            ("model.blk.lora_net.fc.base_layer.bias", bias.clone()),
            ("model.blk.lora_net.plain.bias", bias.clone()),
            // What PEFT saves of a module that it trained whole when it saves all biases too.
            ("model.lora_head.bias", head.clone()),
            ("model.lora_head.modules_to_save.bias", head.clone()),
            ("model.lora_head.original_module.bias", zeros(&[2])),
            ("model.lora_head.weight", tensor(&[2, 2], 6)),
        ],
        &[("blk.lora_net.fc.weight", w)],
    );
    let folder = case.open().unwrap();
    assert_eq!(folder.modules().collect::<Vec<_>>(), ["blk.lora_net.fc"]);
    let replaced: Vec<_> = folder.replaced().map(|(name, _)| name).collect();
    let expected = ["blk.lora_net.fc.bias", "blk.lora_net.plain.bias", "lora_head.bias", "lora_head.weight"];
    assert_eq!(replaced, expected);
    assert_eq!(folder.replaced().nth(2).unwrap().1, &head.mapv(f64::from));
    near(&case.delta("blk.lora_net.fc", "blk.lora_net.fc.weight"), &wide(&b).dot(&wide(&a)));
}

#[test]
fn biases_have_the_names_of_their_tuners() {
    for (tuner, tensors, bias, fits) in [
        ("FOURIERFT", "fourierft_spectrum", "fourier_only", true),
        ("WAVEFT", "waveft_spectrum", "waveft_only", true),
        ("FOURIERFT", "fourierft_spectrum", "lora_only", false),
    ] {
        let config = serde_json::json!({"peft_type": tuner, "n_frequency": 3, "bias": bias});
        let (spectrum, own) = (format!("model.fc.{tensors}"), "model.fc.base_layer.bias");
        let tensors = [(spectrum.as_str(), tensor(&[3], 1)), (own, tensor(&[3], 2))];
        let case = Case::new(config, &tensors, &[("fc.weight", tensor(&[3, 4], 3))]);
        assert_eq!(case.load("fc").is_ok(), fits, "{tuner} {bias}");
    }
}

/// Norms of columns.
fn norms(w: &Array2<f64>) -> Array1<f64> {
    w.axis_iter(Axis(1)).map(|column| column.dot(&column).sqrt()).collect()
}

#[test]
fn tables_take_magnitudes_products_and_rotations() {
    let w = tensor(&[7, 4], 1);
    let base = [("wte.weight", w.clone())];
    let (a, b, magnitude) = (tensor(&[2, 7], 2), tensor(&[4, 2], 3), tensor(&[4], 4));
    let case = Case::new(
        lora(serde_json::json!({"use_dora": true})),
        &[
            ("model.wte.lora_embedding_A", a.clone()),
            ("model.wte.lora_embedding_B", b.clone()),
            ("model.wte.lora_magnitude_vector", magnitude.clone()),
        ],
        &base,
    );
    // DoRA: the outputs of a table are its columns.
    let sum = wide(&w) + wide(&b).dot(&wide(&a)).t();
    let scales = magnitude.iter().map(|m| f64::from(*m)).collect::<Array1<_>>() / norms(&sum);
    near(&case.delta("wte", "wte.weight"), &(&sum * &scales - wide(&w)));

    let case = Case::new(
        serde_json::json!({"peft_type": "HIRA", "r": 2, "rank_pattern": {"wte": 5}}),
        &[("model.wte.hira_embedding_A", a.clone()), ("model.wte.hira_embedding_B", b.clone())],
        &base,
    );
    near(&case.delta("wte", "wte.weight"), &(wide(&w) * wide(&b).dot(&wide(&a)).t()));

    // The rows of a table are turned the other way than the inputs of a layer.
    let angles = tensor(&[2, 1], 5);
    let turned = |name: &str| {
        let config = serde_json::json!({"peft_type": "OFT", "oft_block_size": 2, "use_cayley_neumann": false, "peft_version": "0.21.2"});
        Case::new(config, &[(name, angles.clone())], &base).delta("wte", "wte.weight")
    };
    let (table, layer) = (turned("model.wte.oft_embedding_R.weight"), turned("model.wte.oft_R.weight"));
    let matrix = |delta: &ArrayD<f64>| delta.clone().into_shape_with_order((7, 4)).unwrap() + wide(&w);
    let (table, layer) = (matrix(&table), matrix(&layer));
    assert!(difference(&table, &layer) > 0.1);
    let mut expected = Array2::zeros((7, 4));
    for k in 0..2 {
        // (1 - q²)/(1 + q²) and 2q/(1 + q²) are the cosine and the sine of the exact form.
        let q = f64::from(angles[[k, 0]]);
        let (cos, sin) = ((1.0 - q * q) / (1.0 + q * q), 2.0 * q / (1.0 + q * q));
        for i in 0..7 {
            let (x, y) = (f64::from(w[[i, 2 * k]]), f64::from(w[[i, 2 * k + 1]]));
            expected[[i, 2 * k]] = cos * x + sin * y;
            expected[[i, 2 * k + 1]] = cos * y - sin * x;
        }
    }
    assert!(difference(&table, &expected) < 1e-6);
}

#[test]
fn attentions_have_their_weights_under_names_of_their_own() {
    let (w, v) = (tensor(&[6, 2], 1), tensor(&[2, 2], 2));
    let (a, b, c, d) = (tensor(&[2, 2], 3), tensor(&[6, 2], 4), tensor(&[2, 2], 5), tensor(&[2, 2], 6));
    let case = Case::new(
        lora(serde_json::json!({})),
        &[
            ("model.attn.lora_A.weight", a.clone()),
            ("model.attn.lora_B.weight", b.clone()),
            ("model.attn.base_layer.out_proj.lora_A.weight", c.clone()),
            ("model.attn.base_layer.out_proj.lora_B.weight", d.clone()),
        ],
        &[("attn.in_proj_weight", w), ("attn.out_proj.weight", v)],
    );
    assert_eq!(case.open().unwrap().modules().collect::<Vec<_>>(), ["attn", "attn.out_proj"]);
    near(&case.delta("attn", "attn.in_proj_weight"), &wide(&b).dot(&wide(&a)));
    // PEFT adds that of the output as a part of the attention, and again on its own.
    near(&case.delta("attn.out_proj", "attn.out_proj.weight"), &(wide(&d).dot(&wide(&c)) * 2.0));
}

#[test]
fn convolutions_in_groups_are_multiplied_and_scaled_ones_merged() {
    // Two groups: 4 outputs, 2 of 4 channels each, kernels of 3.
    let (w, a, b) = (tensor(&[4, 2, 3], 1), tensor(&[2, 4, 3], 2), tensor(&[4, 1, 1], 3));
    let base = [("conv.weight", w.clone())];
    let tensors = [("model.conv.lora_A.weight", a.clone()), ("model.conv.lora_B.weight", b.clone())];
    let case = Case::new(lora(serde_json::json!({})), &tensors, &base);
    let loaded = case.load("conv").unwrap();
    assert_eq!(loaded.layout.matrix_shape(), (4, 12));
    let spread = loaded.layout.to_matrix(&w.mapv(f64::from)).unwrap();
    for (o, row) in spread.outer_iter().enumerate() {
        let own = o / 2 * 6..(o / 2 + 1) * 6;
        assert!(row.iter().enumerate().all(|(j, v)| own.contains(&j) || *v == 0.0));
        assert_eq!(row.slice(s![own]), wide(&w).row(o));
    }
    assert_eq!(loaded.layout.to_tensor(&spread).unwrap(), w.mapv(f64::from));
    // Rank k belongs to group k, and sees all channels.
    let mut expected = Array2::zeros((4, 12));
    for o in 0..4 {
        expected.row_mut(o).assign(&(&wide(&a).row(o / 2) * f64::from(b[[o, 0, 0]])));
    }
    let base = Dense::new(&spread).unwrap();
    let delta = loaded.adapter.delta(&base).unwrap();
    assert!(difference(&delta, &expected) < 1e-6);
    let error = loaded.layout.to_tensor(&(spread + delta)).unwrap_err();
    assert!(error.to_string().contains("groups"), "{error}");

    // With magnitudes: the norms are those that PEFT takes, of its product of the factors without groups.
    let mut with = tensors.to_vec();
    with.push(("model.conv.lora_magnitude_vector", tensor(&[1, 4, 1], 5)));
    let case = Case::new(lora(serde_json::json!({"use_dora": true})), &with, &[("conv.weight", w.clone())]);
    let spread = base.to_dense_f64();
    let merged = case.load("conv").unwrap().adapter.delta(&base).unwrap() + &spread;
    let mixed = wide(&b).into_shape_with_order((2, 2)).unwrap().dot(&wide(&a));
    let mixed = mixed.into_shape_with_order((4, 6)).unwrap() + wide(&w);
    for (o, row) in (&spread + &expected).outer_iter().enumerate() {
        let norm = mixed.row(o).dot(&mixed.row(o)).sqrt();
        let row = &row * (f64::from(with[2].1[[0, o, 0]]) / norm);
        assert!((&row - &merged.row(o)).iter().all(|e| e.abs() < 1e-5));
    }

    let l = tensor(&[1, 4, 1], 4);
    let config = |modules: &[&str]| serde_json::json!({"peft_type": "IA3", "feedforward_modules": modules});
    for (modules, inputs) in [(&["conv"][..], true), (&[][..], false)] {
        let case =
            Case::new(config(modules), &[("model.conv.ia3_l", l.clone())], &[("conv.weight", w.clone())]);
        let mut expected = w.mapv(f64::from);
        for ((o, c, _), value) in
            expected.view_mut().into_dimensionality::<structmat::ndarray::Ix3>().unwrap().indexed_iter_mut()
        {
            *value *= f64::from(l[[0, if inputs { o / 2 * 2 + c } else { o }, 0]]) - 1.0;
        }
        near(&case.delta("conv", "conv.weight"), &expected.into_shape_with_order((4, 6)).unwrap());
    }
    // Neither a rank for each group, nor kernels of the base.
    for (a, b) in
        [([3, 4, 3], [4, 1, 1]), ([2, 4, 2], [4, 1, 1]), ([2, 5, 3], [4, 1, 1]), ([2, 4, 3], [4, 2, 1])]
    {
        let tensors =
            [("model.conv.lora_A.weight", tensor(&a, 1)), ("model.conv.lora_B.weight", tensor(&b, 2))];
        let case = Case::new(lora(serde_json::json!({"r": a[0]})), &tensors, &[("conv.weight", w.clone())]);
        assert!(matches!(case.load("conv"), Err(Error::File { .. })), "{a:?} {b:?}");
    }
}

#[test]
fn weights_that_are_stored_transposed_are_told_by_their_biases() {
    let tensors = |module: &str, (m, n): (usize, usize)| {
        [
            (format!("model.{module}.lora_A.weight"), tensor(&[2, n], 1)),
            (format!("model.{module}.lora_B.weight"), tensor(&[m, 2], 2)),
        ]
    };
    let folder = |told: bool, modules: &[(&str, (usize, usize))], base: &[(&str, ArrayD<f32>)]| {
        let all: Vec<_> = modules.iter().flat_map(|(module, shape)| tensors(module, *shape)).collect();
        let all: Vec<(&str, ArrayD<f32>)> =
            all.iter().map(|(name, array)| (name.as_str(), array.clone())).collect();
        Case::new(lora(serde_json::json!({"fan_in_fan_out": told})), &all, base)
    };
    let change = |(m, n): (usize, usize)| wide(&tensor(&[m, 2], 2)).dot(&wide(&tensor(&[2, n], 1)));
    let base = [
        ("h.attn.c_proj.weight", tensor(&[4, 4], 1)),
        ("h.attn.c_proj.bias", tensor(&[4], 1)),
        ("h.mlp.c_proj.weight", tensor(&[8, 4], 1)),
        ("h.mlp.c_proj.bias", tensor(&[4], 1)),
        ("head.weight", tensor(&[3, 4], 1)),
        ("other.weight", tensor(&[4, 4], 1)),
    ];
    let modules = [("h.attn.c_proj", (4, 4)), ("h.mlp.c_proj", (4, 8)), ("head", (3, 4)), ("other", (4, 4))];
    // The setting is that of whatever layer PEFT wrapped last.
    for told in [false, true] {
        let case = folder(told, &modules, &base);
        near(&case.delta("h.mlp.c_proj", "h.mlp.c_proj.weight"), &change((4, 8)).reversed_axes());
        near(&case.delta("h.attn.c_proj", "h.attn.c_proj.weight"), &change((4, 4)).reversed_axes());
        near(&case.delta("head", "head.weight"), &change((3, 4)));
        match told {
            true => near(&case.delta("other", "other.weight"), &change((4, 4)).reversed_axes()),
            false => assert!(case.load("other").unwrap_err().to_string().contains("square")),
        }
    }
}

/// The structures that a matrix is made of.
fn structures(parts: &structmat::parts::Parts<'_>) -> Vec<String> {
    let inner = parts.children().iter().flat_map(structures);
    std::iter::once(parts.structure().to_owned()).chain(inner).collect()
}

#[test]
fn randlora_has_no_dense_change() {
    for (m, n) in [(9usize, 6usize), (6, 9), (7, 7)] {
        let (small, large, r) = (m.min(n), m.max(n), 2);
        let q = small.div_ceil(r);
        // The bases serve larger modules, too.
        let (a, b) = (tensor(&[r, 1, small + 2], 1), tensor(&[large + 1, q + 1, r], 2));
        let (lambda, gamma) = (tensor(&[r, q], 3), tensor(&[q, small], 4));
        let case = Case::new(
            serde_json::json!({"peft_type": "RANDLORA", "r": r, "randlora_alpha": 6}),
            &[
                ("randlora_A", a.clone()),
                ("randlora_B", b.clone()),
                ("model.fc.randlora_lambda", lambda.clone()),
                ("model.fc.randlora_gamma", gamma.clone()),
                ("model.fc2.randlora_lambda", lambda.clone()),
                ("model.fc2.randlora_gamma", gamma.clone()),
            ],
            &[("fc.weight", tensor(&[m, n], 5)), ("fc2.weight", tensor(&[m, n], 6))],
        );
        let mut z = Array2::<f64>::zeros((large, small));
        for t in 0..r * q {
            for i in 0..large {
                for j in 0..small {
                    let right = a[[t / q, 0, j]] * lambda[[t / q, t % q]] * gamma[[t % q, j]];
                    z[[i, j]] += 3.0 * f64::from(b[[i, t / r, t % r]] * right);
                }
            }
        }
        let expected = if m >= n { z } else { z.reversed_axes() };
        near(&case.delta("fc", "fc.weight"), &expected);

        let (folder, base) = (case.open().unwrap(), case.base());
        let loaded: Vec<Loaded> = folder.load_all(&base).unwrap();
        let edits: Vec<_> = loaded
            .iter()
            .map(|l| l.adapter.edit(&Dense::new(&Array2::<f32>::zeros((m, n))).unwrap()).unwrap())
            .collect();
        let parts = edits[0].additive().unwrap().parts();
        assert!(structures(&parts).iter().all(|name| name != "dense"), "{:?}", structures(&parts));
        // At most what two dense products cost, and the bases once for both modules.
        let flops = edits[0].flops(1);
        assert!(flops <= 2 * (r * q * (m + n + 1) + q * small) as u64, "{flops}");
        let places = |edit: &structmat::adapters::Edit| -> Vec<*const f32> {
            let parts = edit.additive().unwrap().parts();
            let large =
                parts.all_factors().into_iter().filter(|factor| factor.rows() > 1 && factor.cols() > 1);
            let place = |factor: &Factor| match factor.data() {
                structmat::storage::Data::F32(numbers) => Some(numbers.as_ptr()),
                _ => None,
            };
            large.filter_map(place).collect()
        };
        let (first, second) = (places(&edits[0]), places(&edits[1]));
        assert!(!first.is_empty() && first == second);
    }
}

#[test]
fn whole_kernels_in_one_dimension_are_kronecker_products_tap_by_tap() {
    let (left, right) = (tensor(&[2, 3], 1), tensor(&[4, 2, 3], 2));
    let case = Case::new(
        serde_json::json!({"peft_type": "LOKR", "r": 2, "alpha": 3}),
        &[("model.conv.lokr_w1", left.clone()), ("model.conv.lokr_w2", right.clone())],
        &[("conv.weight", tensor(&[8, 6, 3], 3))],
    );
    let mut expected = Array3::<f64>::zeros((8, 6, 3));
    for ((row, column, tap), value) in expected.indexed_iter_mut() {
        *value = 1.5 * f64::from(left[[row % 2, column % 3]] * right[[row / 2, column / 3, tap]]);
    }
    near(&case.delta("conv", "conv.weight"), &expected.into_shape_with_order((8, 18)).unwrap());
}

#[test]
fn adapters_of_parameters_are_told_by_their_shapes() {
    // Experts of 8 x 3 and 3 x 4; the module defines `up` first, the settings name it last.
    let (up, down) = (tensor(&[2, 8, 3], 1), tensor(&[2, 3, 4], 2));
    let tensors = [
        ("model.experts.base_layer.lora_A.weight", tensor(&[4, 3], 3)),
        ("model.experts.base_layer.lora_B.weight", tensor(&[8, 4], 4)),
        ("model.experts.lora_A.weight", tensor(&[4, 4], 5)),
        ("model.experts.lora_B.weight", tensor(&[3, 4], 6)),
        ("model.fc.lora_A.weight", tensor(&[2, 3], 7)),
        ("model.fc.lora_B.weight", tensor(&[5, 2], 8)),
    ];
    let base = [("experts.up", up.clone()), ("experts.down", down), ("fc.weight", tensor(&[5, 3], 9))];
    let expected = |a: &ArrayD<f32>, b: &ArrayD<f32>| {
        let (a, b) = (wide(a), wide(b));
        let all: Vec<Array2<f64>> = (0..2)
            .map(|e| {
                let b = Array2::from_shape_fn((b.nrows(), 2), |(i, k)| b[[i, k * 2 + e]]);
                b.dot(&a.slice(s![e * 2..(e + 1) * 2, ..]))
            })
            .collect();
        let views: Vec<_> = all.iter().map(|d| d.view()).collect();
        structmat::ndarray::concatenate(Axis(0), &views).unwrap()
    };
    let up = expected(&tensors[0].1, &tensors[1].1);
    let down = expected(&tensors[2].1, &tensors[3].1);
    for targets in [
        vec!["experts.up", "experts.down", "fc.weight"],
        vec!["experts.down", "experts.up", "fc.weight"],
        // Names that this base does not have, and names without a module.
        vec!["experts.gate", "experts.down", "experts.up", "fc.weight"],
        vec!["down", "up"],
    ] {
        let case = Case::new(lora(serde_json::json!({"target_parameters": targets})), &tensors, &base);
        let (folder, file) = (case.open().unwrap(), case.base());
        let loaded = folder.load_all(&file).unwrap();
        let mut names: Vec<&str> = loaded.iter().map(|loaded| loaded.module.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["experts.down", "experts.up", "fc"], "{targets:?}");
        for (loaded, name) in loaded.iter().map(|loaded| (loaded, loaded.module.clone())) {
            let tensor = if name == "fc" { "fc.weight" } else { &name };
            let weight = loaded.layout.to_matrix(&file.array(tensor).unwrap()).unwrap();
            let delta = loaded.adapter.delta(&Dense::new(&weight).unwrap()).unwrap();
            match name.as_str() {
                "experts.up" => assert!(difference(&delta, &up) < 1e-6, "{targets:?}"),
                "experts.down" => assert!(difference(&delta, &down) < 1e-6, "{targets:?}"),
                _ => assert!(difference(&delta, &wide(&tensors[5].1).dot(&wide(&tensors[4].1))) < 1e-6),
            }
        }
    }
    let case =
        Case::new(lora(serde_json::json!({"target_parameters": ["experts.up"]})), &tensors[..4], &base);
    assert!(matches!(case.open().and_then(|folder| folder.load_all(&case.base())), Err(Error::File { .. })));
}

#[test]
fn layers_without_a_bias_get_none_from_nothing() {
    let base = [("fc.weight", tensor(&[3, 4], 1))];
    let tensors = [
        ("model.fc.glora_A.X", tensor(&[3, 1], 2)),
        ("model.fc.glora_B.X", tensor(&[3, 1], 3)),
        ("model.fc.glora_C.zeros", zeros(&[4, 1])),
        ("model.fc.glora_D.zeros", zeros(&[3])),
        ("model.fc.glora_E.zeros", zeros(&[3])),
    ];
    let config = serde_json::json!({"peft_type": "GLORA", "r": 2, "config_A_B": "vector", "config_C": "none", "config_D_E": "none"});
    let case = Case::new(config.clone(), &tensors, &base);
    let edit = case.load("fc").unwrap().adapter.edit(&Dense::new(&wide(&base[0].1)).unwrap()).unwrap();
    assert!(edit.bias().add.is_none());
    near(&case.delta("fc", "fc.weight"), &(wide(&base[0].1) * wide(&tensors[0].1) + wide(&tensors[1].1)));
    let mut other = tensors.to_vec();
    other[2].1 = tensor(&[4, 1], 4);
    assert!(Case::new(config, &other, &base).load("fc").unwrap_err().to_string().contains("glora_C.zeros"));

    // AdaMSS: the last column is there for layers with a bias alone.
    let last = tensor(&[2, 4], 5);
    let (a, b) = (tensor(&[1, 2], 6), tensor(&[3, 1], 7));
    let tensors = [
        ("model.fc.adamss_A.0", a.clone()),
        ("model.fc.adamss_B.0", b.clone()),
        ("model.fc.adamss_newB", last.clone()),
    ];
    let case = Case::new(serde_json::json!({"peft_type": "ADAMSS", "r": 2}), &tensors, &base);
    let mut folder = case.open().unwrap();
    let rows = Array1::from(vec![2.0, 0.0, 1.0]).into_dyn();
    // The rows are integers in a file.
    let error = folder.load_from("fc", &case.base()).unwrap_err();
    assert!(error.to_string().contains("row_index"), "{error}");
    folder.supply("fc", "row_index", rows).unwrap();
    let loaded = folder.load_from("fc", &case.base()).unwrap();
    let edit = loaded.adapter.edit(&Dense::new(&wide(&base[0].1)).unwrap()).unwrap();
    assert!(edit.bias().add.is_none());
    let full = wide(&b).dot(&wide(&a)).dot(&wide(&last));
    let mut expected = full.clone();
    [2, 0, 1].iter().enumerate().for_each(|(k, row)| expected.row_mut(*row).assign(&full.row(k)));
    assert!(difference(&edit.additive().unwrap().to_dense_f64(), &expected) < 1e-6);
}

#[test]
fn folders_that_lack_what_modules_need_are_refused_or_completed() {
    // A model trained in part whole, and an adapter of which only the shared numbers are there.
    let case = Case::new(
        serde_json::json!({"peft_type": "UNILORA", "r": 2, "theta_d_length": 4, "modules_to_save": ["head"]}),
        &[("unilora_theta_d", tensor(&[4], 1)), ("model.head.weight", tensor(&[2, 2], 2))],
        &[("head.weight", tensor(&[2, 2], 3))],
    );
    assert!(matches!(case.open(), Err(Error::Unsupported { .. })));

    let (a, b, p) = (tensor(&[2, 4], 1), tensor(&[3, 2], 2), tensor(&[1, 2, 2], 3));
    let mut tensors: Vec<(&str, ArrayD<f32>)> =
        vec![("tinylora_v.0", tensor(&[1], 4)), ("tinylora_v.1", tensor(&[1], 5))];
    tensors.extend([
        ("model.fc.tinylora_A", a.clone()),
        ("model.fc.tinylora_B", b.clone()),
        ("model.fc.tinylora_P", p.clone()),
    ]);
    let case = Case::new(
        serde_json::json!({"peft_type": "TINYLORA", "r": 2, "u": 1}),
        &tensors,
        &[("fc.weight", tensor(&[3, 4], 6))],
    );
    let mut folder = case.open().unwrap();
    assert!(folder.load_from("fc", &case.base()).unwrap_err().to_string().contains("tinylora_v"));
    folder.supply("fc", "tinylora_v", Array1::from(vec![3.0]).into_dyn()).unwrap();
    let delta = folder
        .load_from("fc", &case.base())
        .unwrap()
        .adapter
        .delta(&Dense::new(&Array2::<f32>::zeros((3, 4))).unwrap())
        .unwrap();
    assert!(
        difference(
            &delta,
            &(wide(&b).dot(&wide(&p).into_shape_with_order((2, 2)).unwrap()).dot(&wide(&a)) * 3.0)
        ) < 1e-6
    );
}

#[test]
fn psoft_takes_its_series_and_free_matrices() {
    let (a, b) = (tensor(&[2, 4], 1).mapv(f64::from), tensor(&[3, 2], 2).mapv(f64::from));
    let change = |more: serde_json::Value, weight: ArrayD<f32>| -> Array2<f64> {
        let mut config = serde_json::json!({"peft_type": "PSOFT", "r": 2, "psoft_alpha": 4});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let case =
            Case::new(config, &[("model.fc.psoft_R.weight", weight)], &[("fc.weight", tensor(&[3, 4], 3))]);
        let mut folder = case.open().unwrap();
        folder.supply("fc", "psoft_A", a.clone()).unwrap();
        folder.supply("fc", "psoft_B", b.clone()).unwrap();
        folder
            .load_from("fc", &case.base())
            .unwrap()
            .adapter
            .delta(&Dense::new(&Array2::<f32>::zeros((3, 4))).unwrap())
            .unwrap()
    };
    let flat = |a: &ArrayD<f64>| a.clone().into_dimensionality::<structmat::ndarray::Ix2>().unwrap();
    let expected = |r: Array2<f64>| flat(&b).dot(&(r - Array2::<f64>::eye(2))).dot(&flat(&a)) * 2.0;
    let free = tensor(&[2, 2], 4);
    assert!(
        difference(&change(serde_json::json!({"psoft_orth": false}), free.clone()), &expected(wide(&free)))
            < 1e-6
    );
    let q = f64::from(tensor(&[1], 5)[0]);
    let series = |q: f64| structmat::ndarray::array![[1.0, 2.0 * q], [-2.0 * q, 1.0]];
    let config = serde_json::json!({"use_cayley_neumann": true, "num_cayley_neumann_terms": 2});
    assert!(difference(&change(config, tensor(&[1], 5)), &expected(series(q))) < 1e-6);
    // Bounded in its norm, which is √2 |q|.
    let config = serde_json::json!({"use_cayley_neumann": true, "num_cayley_neumann_terms": 2, "cayley_neumann_eps": 0.01});
    assert!(
        difference(&change(config, tensor(&[1], 5)), &expected(series(0.01 / 2f64.sqrt() * q.signum())))
            < 1e-6
    );
}

#[test]
fn tensors_of_nothing_are_read_where_nothing_is_meant() {
    let base = [("fc.weight", tensor(&[2, 2], 1))];
    // One vector with the whole weight: the folder stores no weight.
    let bank = tensor(&[3, 2], 2);
    let numbers: Vec<u8> = bank.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut tensors = vec![("base_model.vblora_vector_bank".to_owned(), ("F32", vec![3, 2], numbers))];
    for (side, index) in [("A", 2), ("B", 1)] {
        let name = format!("base_model.model.fc.vblora_logits_{side}");
        tensors.push((format!("{name}_topk_weights"), ("F32", vec![1, 1, 0], Vec::new())));
        tensors.push((format!("{name}_topk_indices"), ("U8", vec![1, 1, 1], vec![index])));
    }
    let config = serde_json::json!({"peft_type": "VBLORA", "r": 1, "topk": 1, "vector_length": 2});
    let case = Case::new(config, &[], &base);
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, data)) in tensors {
        let offsets = [bytes.len(), bytes.len() + data.len()];
        header.insert(name, serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        bytes.extend(data);
    }
    let header = serde_json::Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(bytes);
    std::fs::write(case.folder.path().join("adapter_model.safetensors"), file).unwrap();
    let outer = Array2::from_shape_fn((2, 2), |(i, j)| f64::from(bank[[1, i]] * bank[[2, j]]));
    near(&case.delta("fc", "fc.weight"), &outer);
    // Rotations of one input each.
    let case = Case::new(
        serde_json::json!({"peft_type": "OFT", "oft_block_size": 1}),
        &[("model.fc.oft_R.weight", zeros(&[2, 0]))],
        &base,
    );
    assert!(case.delta("fc", "fc.weight").iter().all(|v| *v == 0.0));
}

#[test]
fn what_matters_in_training_alone_is_passed_over() {
    let tensors = [
        ("model.fc.lora_A.weight", tensor(&[2, 4], 1)),
        ("model.fc.lora_B.weight", tensor(&[3, 2], 2)),
        ("model.fc.lora_velora_embed", tensor(&[2], 3)),
        ("model.fc.lora_monteclora_sampler.expert_weights", tensor(&[2], 4)),
    ];
    let base = [("fc.weight", tensor(&[3, 4], 5))];
    let both =
        serde_json::json!({"velora_config": {"num_groups": 2}, "monteclora_config": {"num_samples": 2}});
    let case = Case::new(lora(both), &tensors, &base);
    near(&case.delta("fc", "fc.weight"), &wide(&tensors[1].1).dot(&wide(&tensors[0].1)));
    assert!(Case::new(lora(serde_json::json!({})), &tensors, &base).load("fc").is_err());
}

#[test]
fn tables_that_were_saved_whole_replace_those_of_the_base() {
    let tensors = [
        ("model.embed_tokens.lora_embedding_A", tensor(&[2, 7], 1)),
        ("model.embed_tokens.lora_embedding_B", tensor(&[4, 2], 2)),
        ("model.embed_tokens.base_layer.weight", tensor(&[7, 4], 3)),
        ("model.lm_head.weight", tensor(&[7, 4], 4)),
    ];
    let case =
        Case::new(lora(serde_json::json!({})), &tensors, &[("embed_tokens.weight", tensor(&[7, 4], 5))]);
    let folder = case.open().unwrap();
    assert_eq!(folder.modules().collect::<Vec<_>>(), ["embed_tokens"]);
    assert_eq!(
        folder.replaced().map(|(name, _)| name).collect::<Vec<_>>(),
        ["embed_tokens.weight", "lm_head.weight"]
    );
}

/// Settings, and tensors by name.
type Written = (serde_json::Value, Vec<(&'static str, ArrayD<f32>)>);

/// One small folder of many kinds.
fn kinds() -> Vec<Written> {
    let t = tensor;
    let scalar = |v: f32| ArrayD::from_elem(IxDyn(&[1]), v);
    vec![
        (
            lora(
                serde_json::json!({"use_dora": true, "rank_pattern": {"fc": 2}, "alpha_pattern": {"x.*": 3}, "bias": "all", "use_rslora": true}),
            ),
            vec![
                ("model.fc.lora_A.weight", t(&[2, 6], 1)),
                ("model.fc.lora_B.weight", t(&[4, 2], 2)),
                ("model.fc.lora_magnitude_vector", t(&[4], 3)),
                ("model.fc.base_layer.bias", t(&[4], 4)),
            ],
        ),
        (
            lora(
                serde_json::json!({"trainable_token_indices": [1, 3], "init_lora_weights": "pissa", "modules_to_save": ["head"], "fan_in_fan_out": false}),
            ),
            vec![
                ("model.fc.token_adapter.trainable_tokens_delta", t(&[2, 6], 1)),
                ("model.head.weight", t(&[2, 2], 2)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "LOKR", "r": 2, "alpha": 2}),
            vec![
                ("model.fc.lokr_w1", t(&[2, 2], 1)),
                ("model.fc.lokr_w2_a", t(&[2, 2], 2)),
                ("model.fc.lokr_w2_b", t(&[2, 3], 3)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "LOHA", "r": 2, "alpha": 2}),
            vec![
                ("model.fc.hada_w1_a", t(&[4, 2], 1)),
                ("model.fc.hada_w1_b", t(&[2, 6], 2)),
                ("model.fc.hada_w2_a", t(&[4, 2], 3)),
                ("model.fc.hada_w2_b", t(&[2, 6], 4)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "VERA", "r": 2, "projection_prng_key": 3}),
            vec![("model.fc.vera_lambda_b", t(&[4], 1)), ("model.fc.vera_lambda_d", t(&[2], 2))],
        ),
        (
            serde_json::json!({"peft_type": "OFT", "oft_block_size": 3, "coft": true, "eps": 0.1, "num_cayley_neumann_terms": 5, "peft_version": "0.18.0"}),
            vec![("model.fc.oft_R.weight", t(&[2, 3], 1))],
        ),
        (
            serde_json::json!({"peft_type": "BOFT", "boft_block_size": 2, "boft_n_butterfly_factor": 1}),
            vec![("model.fc.boft_R", t(&[1, 3, 2, 2], 1)), ("model.fc.boft_s", t(&[4, 1], 2))],
        ),
        (
            serde_json::json!({"peft_type": "FOURIERFT", "n_frequency": 5, "random_loc_seed": 7, "scaling": 2.0}),
            vec![("model.fc.fourierft_spectrum", t(&[5], 1))],
        ),
        (
            serde_json::json!({"peft_type": "WAVEFT", "n_frequency": 5, "random_loc_seed": 7, "wavelet_family": "db2", "use_idwt": true}),
            vec![("model.fc.waveft_spectrum", t(&[5], 1))],
        ),
        (
            serde_json::json!({"peft_type": "C3A", "block_size": 2}),
            vec![("model.fc.c3a_kernel", t(&[2, 3, 2], 1))],
        ),
        (
            serde_json::json!({"peft_type": "GRALORA", "r": 2, "alpha": 2, "gralora_k": 2, "hybrid_r": 1}),
            vec![
                ("model.fc.gralora_A", t(&[2, 3, 2], 1)),
                ("model.fc.gralora_B", t(&[2, 2, 2], 2)),
                ("model.fc.gralora_A_general.weight", t(&[1, 6], 3)),
                ("model.fc.gralora_B_general.weight", t(&[4, 1], 4)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "MISS", "r": 3, "init_weights": "mini", "mini_r": 2}),
            vec![("model.fc.miss_block", t(&[3, 2], 1))],
        ),
        (
            serde_json::json!({"peft_type": "HRA", "r": 2, "apply_GS": true}),
            vec![("model.fc.hra_u", t(&[6, 2], 1))],
        ),
        (
            serde_json::json!({"peft_type": "ROAD", "variant": "road_1", "group_size": 2}),
            vec![("model.fc.road_theta", t(&[2], 1)), ("model.fc.road_alpha", t(&[2], 2))],
        ),
        (
            serde_json::json!({"peft_type": "VBLORA", "r": 1, "topk": 2, "num_vectors": 3, "vector_length": 2}),
            vec![
                ("vblora_vector_bank", t(&[3, 2], 1)),
                ("model.fc.vblora_logits_A", t(&[1, 3, 3], 2)),
                ("model.fc.vblora_logits_B", t(&[2, 1, 3], 3)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "RANDLORA", "r": 2, "randlora_alpha": 4}),
            vec![
                ("randlora_A", t(&[2, 1, 4], 1)),
                ("randlora_B", t(&[6, 2, 2], 2)),
                ("model.fc.randlora_lambda", t(&[2, 2], 3)),
                ("model.fc.randlora_gamma", t(&[2, 4], 4)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "DELORA", "r": 1}),
            vec![
                ("model.fc.delora_A", t(&[1, 6], 1)),
                ("model.fc.delora_B", t(&[4, 1], 2)),
                ("model.fc.delora_lambda", scalar(3.0)),
                ("model.fc.delora_w_norm", t(&[6], 3)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "PEANUT", "r": 2, "depth": 1, "act_fn": "relu", "scaling": 1.0}),
            vec![
                ("model.fc.peanut_A.weight", t(&[2, 4], 1)),
                ("model.fc.peanut_B.weight", t(&[4, 2], 2)),
                ("model.fc.peanut_encoders.0.weight", t(&[2, 2], 3)),
                ("model.fc.peanut_decoders.0.weight", t(&[2, 2], 4)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "OSF", "effective_rank": 2}),
            vec![
                ("model.fc.osf_svd_params.U_low", t(&[4, 2], 1)),
                ("model.fc.osf_svd_params.S_low", t(&[2], 2)),
                ("model.fc.osf_svd_params.V_low", t(&[2, 6], 3)),
            ],
        ),
        (
            serde_json::json!({"peft_type": "DEFT", "r": 2, "alpha": 2, "decomposition_method": "qr", "para": false}),
            vec![("model.fc.deft_P", t(&[4, 2], 1)), ("model.fc.deft_R", t(&[2, 6], 2))],
        ),
        (
            serde_json::json!({"peft_type": "IA3", "feedforward_modules": ["fc"]}),
            vec![("model.fc.ia3_l", t(&[1, 6], 1))],
        ),
    ]
}

/// Opens a folder and uses all of it.
fn use_all(path: &Path, base: &Checkpoint) -> Result<()> {
    let folder = Folder::open(path)?;
    for loaded in folder.load_all(base)? {
        let weight = loaded.layout.to_matrix(&base.array("fc.weight")?)?;
        let weight = Dense::new(&weight)?;
        let edit = loaded.adapter.edit(&weight)?;
        edit.matmul(&weight, &Array2::<f32>::ones((2, weight.shape().1)))?;
        loaded.layout.to_tensor(&edit.delta(&weight)?)?;
    }
    Ok(())
}

/// A generator of small whole numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

/// What a setting may be replaced by.
const VALUES: &[&str] = &[
    "null",
    "-1",
    "0",
    "1",
    "3",
    "1e9",
    "1e15",
    "18446744073709551615",
    "1e400",
    "-1e308",
    "0.5",
    "\"\"",
    "\"two\"",
    "true",
    "[]",
    "[[]]",
    "[-1]",
    "[99999999999]",
    "{}",
    "{\"(\": 1}",
    "{\".*\": -1}",
    "{\".*\": 1e15}",
    "{\"fc\": \"x\"}",
    "\"((((\"",
    "NaN",
    "Infinity",
];

/// What a tensor may be called.
const NAMES: &[&str] = &[
    "",
    ".",
    "..",
    "model.fc",
    "base_model.",
    "base_model.model.",
    "base_model.model..fc",
    "base_model.model.../x.lora_A.weight",
    "base_model.model.fc/../x",
    "base_model.model.fc\\u0000",
    "base_model.model.fc.lora_A",
    "base_model.model.fc.lora_A.weight.weight",
    "base_model.model.fc.base_layer.base_layer.lora_A.weight",
    "base_model.model.\\\\fc.x",
    "__metadata__",
    "base_model.model.fc.oft_r",
    "base_model.model.nobody.lora_A.weight",
];

#[test]
fn damaged_folders_are_refused_without_a_panic() {
    let base = Case::new(
        serde_json::json!({}),
        &[],
        &[
            ("fc.weight", tensor(&[4, 6], 1)),
            ("fc.bias", tensor(&[4], 2)),
            ("head.weight", tensor(&[2, 2], 3)),
        ],
    );
    let file = base.base();
    let (mut dice, mut refused, mut passed) = (Dice(7), 0, 0);
    for (config, tensors) in kinds() {
        let case = Case::new(config.clone(), &tensors, &[("x", zeros(&[1]))]);
        let path = case.folder.path();
        use_all(path, &file).unwrap_or_else(|e| panic!("{config}: {e}"));
        let (settings, weights) = (path.join("adapter_config.json"), path.join("adapter_model.safetensors"));
        let (good_settings, good_weights) =
            (std::fs::read(&settings).unwrap(), std::fs::read(&weights).unwrap());
        let header = u64::from_le_bytes(good_weights[..8].try_into().unwrap()) as usize;
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        let mut run = |what: &str| match use_all(path, &file) {
            Ok(()) => passed += 1,
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                let typed = matches!(
                    error,
                    Error::File { .. }
                        | Error::Unknown { .. }
                        | Error::Unsupported { .. }
                        | Error::Shape { .. }
                        | Error::Parameter { .. }
                        | Error::NonFinite { .. }
                        | Error::NoConvergence(_)
                        | Error::Io { .. }
                );
                assert!(typed && text.len() > 15, "{what}: {error:?}");
            }
        };
        // Settings: one replaced, one there twice, the text cut or nested without end.
        for key in &keys {
            for value in VALUES.iter().skip(dice.below(3)).step_by(3) {
                let text = config.as_object().unwrap().iter().map(|(known, old)| {
                    format!("{known:?}: {}", if known == key { (*value).to_owned() } else { old.to_string() })
                });
                let text = text.collect::<Vec<_>>().join(", ");
                std::fs::write(&settings, format!("{{{text}}}")).unwrap();
                run(&text);
            }
        }
        let text = String::from_utf8(good_settings.clone()).unwrap();
        let twice = text.replacen('{', &format!("{{{:?}: 1, ", keys[0]), 1);
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let unknown = text.replacen('{', &format!("{{\"auto_mapping\": {deep}, "), 1);
        for text in
            [&twice, &unknown, &deep, "", "null", "[]", "{\"peft_type\": []}", &text[..text.len() / 2]]
        {
            std::fs::write(&settings, text).unwrap();
            assert!(use_all(path, &file).is_err(), "{}", &text[..text.len().min(80)]);
        }
        std::fs::write(&settings, &good_settings).unwrap();
        // The file of tensors: cut, numbers and names of its header changed, a key twice, bytes flipped.
        for _ in 0..4 {
            std::fs::write(&weights, &good_weights[..dice.below(good_weights.len())]).unwrap();
            assert!(use_all(path, &file).is_err());
        }
        let names = String::from_utf8(good_weights[8..8 + header].to_vec()).unwrap();
        let put = |names: &str| {
            let mut bytes = (names.len() as u64).to_le_bytes().to_vec();
            bytes.extend(names.as_bytes());
            bytes.extend(&good_weights[8 + header..]);
            std::fs::write(&weights, bytes).unwrap();
        };
        let digits: Vec<usize> =
            names.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(at, _)| at).collect();
        for _ in 0..8 {
            let at = digits[dice.below(digits.len())];
            let new =
                ["0", "7", "-1", "99999999999", "18446744073709551615", "1.5", "\"x\"", ""][dice.below(8)];
            put(&format!("{}{new}{}", &names[..at], &names[at + 1..]));
            run(&names);
        }
        let first = format!("base_model.{}", tensors[0].0);
        for new in NAMES {
            put(&names.replacen(&first, new, 1));
            run(new);
        }
        put(&names.replacen(
            '{',
            &format!("{{{first:?}:{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}},"),
            1,
        ));
        assert!(use_all(path, &file).is_err());
        for (old, new) in [
            ("F32", "I64"),
            ("F32", "BF16"),
            ("F32", "U8"),
            ("F32", "F99"),
            ("[", "["),
            ("\"shape\"", "\"shapes\""),
        ] {
            put(&names.replacen(old, new, 1));
            run(new);
        }
        for _ in 0..8 {
            let mut bytes = good_weights.clone();
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
            std::fs::write(&weights, bytes).unwrap();
            run("a bit");
        }
        for header in [0u64, 1, u64::MAX, good_weights.len() as u64, 1 << 40] {
            let mut bytes = good_weights.clone();
            bytes[..8].copy_from_slice(&header.to_le_bytes());
            std::fs::write(&weights, bytes).unwrap();
            assert!(use_all(path, &file).is_err());
        }
        std::fs::write(&weights, &good_weights).unwrap();
        // A base of other shapes.
        for shape in [&[6, 4][..], &[1, 1], &[4, 6, 1], &[24], &[4, 2, 3], &[1, 4, 6], &[5, 7]] {
            let other = Case::new(
                serde_json::json!({}),
                &[],
                &[("fc.weight", tensor(shape, 1)), ("head.weight", tensor(&[2, 2], 3))],
            );
            let _ = use_all(path, &other.base()).map_err(|error| assert!(!error.to_string().is_empty()));
        }
    }
    assert!(refused > 900 && passed > 100, "{refused} refused, {passed} not");
}

#[cfg(unix)]
#[test]
fn links_and_folders_in_the_place_of_files_are_no_adapters() {
    let (config, tensors) = kinds().remove(0);
    let case = Case::new(config, &tensors, &[("fc.weight", tensor(&[4, 6], 1))]);
    let weights = case.folder.path().join("adapter_model.safetensors");
    std::fs::remove_file(&weights).unwrap();
    for target in ["/dev/null", "adapter_model.safetensors", ".", "adapter_config.json"] {
        std::os::unix::fs::symlink(target, &weights).unwrap();
        assert!(case.open().is_err(), "{target}");
        std::fs::remove_file(&weights).unwrap();
    }
    std::fs::create_dir(&weights).unwrap();
    assert!(case.open().is_err());
}
