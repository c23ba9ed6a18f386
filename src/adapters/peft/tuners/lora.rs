use super::Loaded;
use crate::adapters::methods::{Component, Dora, Spectral, low_rank};
use crate::adapters::peft::Tuner;
use crate::adapters::peft::config::ends_with;
use crate::adapters::peft::json::Node;
use crate::adapters::peft::layout::Form;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::tensor::Tensor;
use crate::adapters::{Adapter, Additive, BiasEdit, Boxed};
use crate::compose::{Product, Scaled};
use crate::error::Result;
use crate::storage::{Factor, Storage};
use crate::structures::{BlockDiagonal, Dense};

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "LORA",
    tensors: &[
        "lora_A",
        "lora_B",
        "lora_diag",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
        "lora_velora_embed",
        "lora_monteclora_sampler",
        "token_adapter",
    ],
    shared: &[],
    reads: &[
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "init_lora_weights",
        "kasa_config",
        "use_bdlora",
        "target_parameters",
        "trainable_token_indices",
        "use_qalora",
        "qalora_group_size",
    ],
    ignores: &[
        "lora_dropout",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "loftq_config",
        "velora_config",
        "monteclora_config",
    ],
    load,
};

/// What initialisation did to the base, as far as it can be told from the folder.
enum Start {
    Plain,
    Pissa,
    Olora,
}

fn start(module: &Module<'_>) -> Result<Start> {
    let config = module.config();
    let name = match config.get("init_lora_weights") {
        None | Some(Node::Flag(_)) => return Ok(Start::Plain),
        Some(Node::Text(name)) => name.as_str(),
        Some(other) => {
            return Err(config.bad(format!("field `init_lora_weights` = {other}: expected a name")));
        }
    };
    match name {
        "eva" | "mica" | "orthogonal" | "gaussian" => Ok(Start::Plain),
        "olora" => Ok(Start::Olora),
        "pissa" => Ok(Start::Pissa),
        _ if name.strip_prefix("pissa_niter_").is_some_and(|n| n.parse::<u32>().is_ok()) => Ok(Start::Pissa),
        "corda" | "lora_ga" | "loftq" => Err(module.unsupported(format!(
            "`init_lora_weights` = \"{name}\" edited the base weight from data that is not in the folder: save the adapter converted to plain LoRA"
        ))),
        _ => Err(config.bad(format!("field `init_lora_weights` = {name:?} is not known, and may change the result"))),
    }
}

/// `alpha / r`, or `alpha / sqrt(r)`.
fn scale(module: &Module<'_>, rank: usize) -> Result<f64> {
    let config = module.config();
    module.check_rank(rank, "r", "rank_pattern")?;
    let alpha = config.number_for("lora_alpha", "alpha_pattern", module.name())?;
    let alpha = alpha.ok_or_else(|| config.bad("field `lora_alpha` is missing: expected a number"))?;
    let rank = rank as f64;
    let alpha = if module.counts_twice() { 2.0 * alpha } else { alpha };
    Ok(alpha / if config.flag("use_rslora", false)? { rank.sqrt() } else { rank })
}

fn load(module: &Module<'_>) -> Loaded {
    if let Some(rows) = module.maybe("token_adapter.trainable_tokens_delta") {
        if module.maybe("lora_embedding_A").is_some() {
            return Err(module.unsupported("an embedding with both a LoRA and replaced rows"));
        }
        return super::tokens::replaced(module, rows, indices(module)?);
    }
    if let Some(a) = module.maybe("lora_embedding_A") {
        return embedding(module, a);
    }
    let (a, b) = (module.take("lora_A.weight")?, module.take("lora_B.weight")?);
    let config = module.config();
    for (setting, tensors) in
        [("velora_config", "lora_velora_embed"), ("monteclora_config", "lora_monteclora_sampler.")]
    {
        if config.get(setting).is_some_and(|node| !node.is_empty()) {
            module.pass_over(tensors);
        }
    }
    if module.base().len() == 3 && a.shape().len() == 2 && !config.names("target_parameters")?.is_empty() {
        return experts(module, a, b);
    }
    let params = a.values().len() + b.values().len();
    if module.base().len() > 2 && a.shape().len() == module.base().len() && a.shape()[1] != module.base()[1] {
        return super::lora_groups::load(module, a, b, scale(module, a.shape()[0])?);
    }
    if module.base().len() > 2 || a.shape().len() > 2 {
        module.kernel("lora_A.weight")?;
        module.pointwise("lora_B.weight")?;
    }
    let (m, n) = module.shape()?;
    if config.get("use_bdlora").is_some_and(|node| !node.is_empty()) {
        let delta = block_diagonal(module, a, b)?;
        return finish(module, Box::new(Additive::new("bdlora", delta).with_params(params)), false);
    }
    let rank = b.flat(Some(m), None)?.ncols();
    let scale = scale(module, rank)?;
    let scales = match module.maybe("lora_diag") {
        Some(diagonal) => diagonal.vector(Some(rank))?.into_iter().map(|d| d * scale).collect(),
        None => vec![scale; rank],
    };
    let right = match config.flag("use_qalora", false)? {
        false => a.factor(Some(rank), Some(n))?,
        true => grouped(module, a, rank, n)?,
    };
    let delta = low_rank(b.factor(Some(m), Some(rank))?, &scales, right)?;
    let kasa = config.get("kasa_config").is_some_and(|node| !node.is_empty());
    let component = match (start(module)?, kasa) {
        (Start::Plain, false) => None,
        (Start::Plain, true) => Some(Component::TopOnly(m.min(n).saturating_sub(rank))),
        (Start::Pissa, false) => Some(Component::WithoutTop(rank)),
        (Start::Olora, false) => None,
        (_, true) => return Err(module.unsupported("two initialisations at once edit the base")),
    };
    if let Some(bias) = module.maybe("lora_B.bias") {
        let add = Some(bias.array1(m)?.mapv(|b| b * scale));
        if component.is_some() || !config.flag("lora_bias", false)? {
            return Err(bias.bad("is there, and `lora_bias` is not set for a plain LoRA"));
        }
        let adapter = Additive::new("lora", delta).with_params(params + m);
        return finish(module, Box::new(adapter.with_bias(BiasEdit { map: None, add })), false);
    }
    if matches!(start(module)?, Start::Olora) {
        // The scale stands in both what was taken out and what was put in.
        let olora =
            Spectral::new("olora", (m, n), Component::WithoutQr { rank, scale }, Some(delta), params)?;
        return finish(module, Box::new(olora), false);
    }
    match component {
        None => finish(module, Box::new(Additive::new("lora", delta).with_params(params)), false),
        Some(component) => {
            let kind = if kasa { "kasa" } else { "pissa" };
            finish(module, Box::new(Spectral::new(kind, (m, n), component, Some(delta), params)?), false)
        }
    }
}

/// `trainable_token_indices` of a module: one list for all, or one by the end of a module's path.
fn indices<'a>(module: &Module<'a>) -> Result<&'a Node> {
    let config = module.config();
    let found = match config.get("trainable_token_indices") {
        Some(Node::Map(map)) => {
            map.iter().find(|(name, _)| ends_with(module.name(), name)).map(|(_, list)| list)
        }
        list => list,
    };
    found.ok_or_else(|| {
        config.bad(format!("field `trainable_token_indices` says nothing of `{}`", module.name()))
    })
}

/// Rescales rows, or the columns of a table, where there are magnitudes.
fn finish(module: &Module<'_>, adapter: Box<dyn Adapter>, table: bool) -> Loaded {
    let magnitude =
        module.maybe("lora_magnitude_vector").or_else(|| module.maybe("lora_magnitude_vector.weight"));
    match (magnitude, module.config().flag("use_dora", false)?) {
        (None, false) => Ok(adapter),
        (Some(magnitude), true) => {
            let (m, n) = adapter.shape();
            let values = magnitude.vector(Some(if table { n } else { m }))?;
            Ok(Box::new(if table { Dora::of_columns(adapter, values)? } else { Dora::new(adapter, values)? }))
        }
        (Some(magnitude), false) => Err(magnitude.bad("is there, and `use_dora` is not set")),
        (None, true) => {
            Err(module.bad(format!("`use_dora` is set, and `{}` has no magnitudes", module.name())))
        }
    }
}

/// A table of rows: the change is the transpose of what a linear layer would have.
fn embedding(module: &Module<'_>, a: &Tensor) -> Loaded {
    let (rows, dim) = module.shape()?;
    let b = module.take("lora_embedding_B")?;
    let a = a.flat(None, Some(rows))?;
    let rank = a.nrows();
    let b = b.flat(Some(dim), Some(rank))?;
    if !matches!(start(module)?, Start::Plain) {
        return Err(module.unsupported("an embedding with an edited base"));
    }
    let scales = vec![scale(module, rank)?; rank];
    let delta = low_rank(super::factor(&a.t()), &scales, super::factor(&b.t()))?;
    finish(module, Box::new(Additive::new("lora", delta).with_params(a.len() + b.len())), true)
}

/// Experts, one below the other: rows of `A` expert by expert, columns of `B` rank by rank.
fn experts(module: &Module<'_>, a: &Tensor, b: &Tensor) -> Loaded {
    let &[experts, rows, cols] = module.base() else {
        return Err(module.bad("the base of expert parameters has three axes"));
    };
    let (all_a, all_b) = (a.flat(None, None)?, b.flat(None, None)?);
    let (inner, (out, inp)) = (all_a.nrows(), (all_b.nrows(), all_a.ncols()));
    if all_b.ncols() != inner || experts == 0 || !inner.is_multiple_of(experts) {
        return Err(b.bad(format!(
            "has shape {:?}, which does not fit {experts} experts and {:?}",
            b.shape(),
            a.shape()
        )));
    }
    let (plain, turned) = ((out, inp) == (rows, cols), (inp, out) == (rows, cols));
    if plain && turned {
        return Err(
            module.unsupported("square experts: the folder does not tell whether they are stored transposed")
        );
    }
    if !plain && !turned {
        return Err(a.bad(format!("and its B make {out} x {inp}, expected {rows} x {cols} or its transpose")));
    }
    module.set_form(Form::Stacked);
    let r = inner / experts;
    let scale = scale(module, r)?;
    let b_at = |e: usize, o: usize, k: usize| all_b[[o, k * experts + e]];
    let a_at = |e: usize, k: usize, i: usize| all_a[[e * r + k, i]];
    // D = blockdiag(left_e) [right_1; right_2; ...].
    let left = Factor::from_fn(Storage::F32, (experts, rows, r), |e, i, k| {
        scale * if plain { b_at(e, i, k) } else { a_at(e, k, i) }
    });
    let right = Factor::from_fn(Storage::F32, (1, inner, cols), |_, row, j| {
        let (e, k) = (row / r, row % r);
        if plain { a_at(e, k, j) } else { b_at(e, j, k) }
    });
    let left = BlockDiagonal::new((experts * rows, inner), left)?;
    let delta = Product::new(vec![Box::new(left), Box::new(Dense::from_factor(right)?)])?;
    super::additive("lora", Box::new(delta), all_a.len() + all_b.len())
}

/// BD-LoRA: the factor that is too short is block-diagonal, its blocks one below the other in the file.
fn block_diagonal(module: &Module<'_>, a: &Tensor, b: &Tensor) -> Result<Boxed> {
    let (m, n) = module.shape()?;
    let (a, b) = (a.flat(None, None)?, b.flat(Some(m), None)?);
    let rank = a.nrows();
    let scale = scale(module, rank)?;
    // The blocks of a factor of `rows x cols`, of which the file has `rows x cols / blocks`.
    let factor = |stored: &ndarray::Array2<f64>, rows: usize, cols: usize, scale: f64| -> Result<Boxed> {
        let width = stored.ncols();
        let blocks = cols.checked_div(width).unwrap_or(0);
        if blocks == 0 || blocks * width != cols || !rows.is_multiple_of(blocks) {
            return Err(
                module.bad(format!("a factor of {rows} x {width} cannot be the blocks of {rows} x {cols}"))
            );
        }
        let height = rows / blocks;
        let stack = Factor::from_fn(Storage::F32, (blocks, height, width), |k, i, j| {
            stored[[k * height + i, j]] * scale
        });
        match blocks {
            1 => Ok(Box::new(Dense::from_factor(stack)?)),
            _ => Ok(Box::new(BlockDiagonal::new((rows, cols), stack)?)),
        }
    };
    let (left, right) = (factor(&b, m, rank, 1.0)?, factor(&a, rank, n, 1.0)?);
    let scales = Factor::from_fn(Storage::F64, (1, 1, rank), |_, _, _| scale);
    Ok(Box::new(Product::new(vec![Box::new(Scaled::new(None, left, Some(scales))?), right])?))
}

/// QA-LoRA: `A` sees the means of groups of inputs, times the number of groups over the size of one.
fn grouped(module: &Module<'_>, a: &Tensor, rank: usize, n: usize) -> Result<Factor> {
    let group = module.config().need_size("qalora_group_size")?;
    if group == 0 || !n.is_multiple_of(group) {
        return Err(module.bad(format!("`qalora_group_size` = {group}: expected a divisor of {n}")));
    }
    let a = a.flat(Some(rank), Some(n / group))?;
    let factor = n as f64 / (group * group) as f64;
    Ok(Factor::from_fn(Storage::F32, (1, rank, n), |_, k, j| a[[k, j / group]] * factor))
}
