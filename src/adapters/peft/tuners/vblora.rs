use super::{Loaded, additive, product};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::error::Result;
use ndarray::{Array2, Array3};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "VBLORA",
    tensors: &[
        "vblora_logits_A",
        "vblora_logits_B",
        "vblora_logits_A_topk_indices",
        "vblora_logits_B_topk_indices",
        "vblora_logits_A_topk_weights",
        "vblora_logits_B_topk_weights",
    ],
    shared: &["vblora_vector_bank"],
    reads: &["r", "topk", "num_vectors", "vector_length", "save_only_topk_weights", "fan_in_fan_out"],
    ignores: &["vblora_dropout", "init_vector_bank_bound", "init_logits_std"],
    load,
};

/// `D = B A`, whose pieces of `L` numbers are mixtures of a few vectors of a bank.
fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let bank = module.shared("vblora_vector_bank")?.flat(None, None)?;
    let length = bank.ncols();
    if !m.is_multiple_of(length) || !n.is_multiple_of(length) {
        return Err(module.bad(format!("vectors of {length} do not divide {m} x {n}")));
    }
    let pieces = |name: &str| mixtures(module, name, &bank);
    let (a, b) = (pieces("vblora_logits_A")?, pieces("vblora_logits_B")?);
    let rank = a.dim().0;
    module.check_rank(rank, "r", "")?;
    if a.dim() != (rank, n / length, length) || b.dim() != (m / length, rank, length) {
        let (a, b) = (a.dim(), b.dim());
        return Err(module
            .bad(format!("`{}`: pieces of A {a:?} and of B {b:?} do not make {m} x {n}", module.name())));
    }
    let left = Array2::from_shape_fn((m, rank), |(i, k)| b[[i / length, k, i % length]]);
    let right = Array2::from_shape_fn((rank, n), |(k, j)| a[[k, j / length, j % length]]);
    let params = rank * (m + n) / length * bank.nrows();
    additive("vblora", product(&left, 1.0, &right)?, params)
}

/// The mixtures of one factor: of the largest logits, or of stored weights, the last of which is what the others leave.
fn mixtures(module: &Module<'_>, name: &str, bank: &Array2<f64>) -> Result<Array3<f64>> {
    let vectors = bank.nrows();
    let mixed = |rows: usize, cols: usize, parts: &dyn Fn(usize, usize) -> Vec<(usize, f64)>| {
        let mut all = Array3::zeros((rows, cols, bank.ncols()));
        for i in 0..rows {
            for j in 0..cols {
                for (vector, weight) in parts(i, j) {
                    all.slice_mut(ndarray::s![i, j, ..]).scaled_add(weight, &bank.row(vector));
                }
            }
        }
        all
    };
    if let Some(weights) = module.maybe(&format!("{name}_topk_weights")) {
        let indices = module.take(&format!("{name}_topk_indices"))?;
        let k = indices.dims(&[None, None, None])?[2];
        let list = indices.indices(vectors)?;
        let &[rows, cols, _] = indices.shape() else { return Err(indices.bad("has not three axes")) };
        let weights = weights.array3([Some(rows), Some(cols), Some(k - 1)]);
        let weights = if k == 1 { Array3::zeros((rows, cols, 0)) } else { weights? };
        return Ok(mixed(rows, cols, &|i, j| {
            let last = 1.0 - (0..k - 1).map(|t| weights[[i, j, t]]).sum::<f64>();
            let weight = |t: usize| if t + 1 == k { last } else { weights[[i, j, t]] };
            (0..k).map(|t| (list[(i * cols + j) * k + t], weight(t))).collect()
        }));
    }
    let topk = module.config().size("topk")?.unwrap_or(2);
    if topk == 0 || topk > vectors {
        return Err(module.bad(format!("field `topk` = {topk}: expected 1 to {vectors}")));
    }
    let logits = module.take(name)?.array3([None, None, Some(vectors)])?;
    let (rows, cols, _) = logits.dim();
    Ok(mixed(rows, cols, &|i, j| {
        let mut order: Vec<usize> = (0..vectors).collect();
        order.sort_by(|a, b| logits[[i, j, *b]].total_cmp(&logits[[i, j, *a]]));
        let top = logits[[i, j, order[0]]];
        let weights: Vec<f64> = order[..topk].iter().map(|v| (logits[[i, j, *v]] - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        order[..topk].iter().zip(weights).map(|(v, weight)| (*v, weight / total)).collect()
    }))
}
