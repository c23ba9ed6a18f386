use super::Loaded;
use crate::adapters::methods::{Rotation, oft, skew};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::tensor::Tensor;
use crate::adapters::{Adapter, Edit, Multiplicative};
use crate::compose::Identity;
use crate::storage::{Factor, Storage};
use ndarray::Array2;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "OFT",
    tensors: &["oft_R", "oft_embedding_R", "oft_r", "oft_s"],
    shared: &[],
    reads: &[
        "r",
        "oft_block_size",
        "coft",
        "eps",
        "block_share",
        "use_cayley_neumann",
        "num_cayley_neumann_terms",
        "fan_in_fan_out",
    ],
    ignores: &["module_dropout", "init_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    match module.maybe("oft_r") {
        Some(r) => load_old(module, r),
        None => match module.maybe("oft_embedding_R.weight") {
            Some(r) => load_packed(module, r, true),
            None => load_packed(module, module.take("oft_R.weight")?, false),
        },
    }
}

/// Files since 0.16: upper triangles. The rows of a table are turned the other way.
fn load_packed(module: &Module<'_>, r: &Tensor, table: bool) -> Loaded {
    let ((m, n), config) = (module.shape()?, module.config());
    let rows = r.flat(None, None)?;
    let b = (1 + 8 * rows.ncols()).isqrt().div_ceil(2);
    let fits = b * (b - 1) / 2 == rows.ncols() && n.is_multiple_of(b);
    let share = config.flag("block_share", false)?;
    if !fits || rows.nrows() != if share { 1 } else { n / b } {
        return Err(r.bad(format!("has shape {:?}, which is no set of rotations of {n} inputs", r.shape())));
    }
    let rotation = match config.flag("use_cayley_neumann", true)? {
        false => Rotation::Cayley,
        true => {
            let terms = config.size("num_cayley_neumann_terms")?.unwrap_or(5);
            // The series changed in 0.18, the first version that says which it is.
            match config.version_at_least((0, 18))? {
                Some(true) => Rotation::Series { terms },
                _ => Rotation::OldSeries { terms },
            }
        }
    };
    let limit = match config.flag("coft", false)? {
        true => Some(config.number("eps")?.unwrap_or(6e-5) / (rows.nrows() as f64).sqrt()),
        false => None,
    };
    let mut blocks = Vec::with_capacity(rows.nrows());
    for row in rows.outer_iter() {
        let mut q = skew(&row.to_vec(), b)?;
        let norm = q.iter().map(|v| v * v).sum::<f64>().sqrt();
        if let Some(limit) = limit.filter(|limit| norm > *limit) {
            q *= limit / norm;
        }
        let block = rotation.of(&q)?;
        blocks.push(if table { block.reversed_axes() } else { block });
    }
    Ok(Box::new(oft((m, n), &blocks)?))
}

/// Files up to 0.15: whole blocks, and a scale per output.
fn load_old(module: &Module<'_>, r: &Tensor) -> Loaded {
    let (m, n) = module.shape()?;
    let stack = r.array3([None, None, None])?;
    if module.config().flag("coft", false)? {
        return Err(module.unsupported("constrained rotations in the file layout of PEFT 0.15"));
    }
    let mut blocks = Vec::with_capacity(stack.dim().0);
    for x in stack.outer_iter() {
        if x.nrows() != x.ncols() {
            return Err(r.bad(format!("has shape {:?}, expected square blocks", r.shape())));
        }
        let k: Array2<f64> = (&x - &x.t()) * 0.5;
        blocks.push(Rotation::Cayley.of(&k)?);
    }
    let rotated = oft((m, n), &blocks)?;
    let scales = module.take("oft_s")?.vector(Some(m))?;
    let scales = Factor::from_fn(Storage::F32, (1, 1, m), |_, _, i| scales[i]);
    let edit = Edit::of((m, n)).with_left(Box::new(Identity::diagonal(scales)?))?;
    let params = rotated.n_params() + m;
    let turn = rotated.into_edit();
    Ok(Box::new(Multiplicative::new("oft", turn.then(&edit)?, params)))
}
