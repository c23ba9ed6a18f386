//! LoRA of convolutions in groups.

use super::Loaded;
use crate::adapters::methods::magnitudes_over_norms;
use crate::adapters::peft::json::Node;
use crate::adapters::peft::layout::Form;
use crate::adapters::peft::module::Module;
use crate::adapters::peft::tensor::Tensor;
use crate::adapters::{Adapter, Additive, BiasEdit, Edit};
use crate::compose::{Identity, Product};
use crate::error::Result;
use crate::matrix::StructuredMatrix;
use crate::storage::{Factor, Storage};
use crate::structures::{BlockDiagonal, Dense};
use ndarray::{Array2, ArrayView1, s};

/// `A` sees all channels, each group of outputs has its own ranks: the change reaches channels that the base does not see.
pub(super) fn load(module: &Module<'_>, a: &Tensor, b: &Tensor, scale: f64) -> Loaded {
    let (base, (m, _)) = (module.base(), module.shape()?);
    let (rank, channels) = (a.shape()[0], a.shape()[1]);
    let groups = channels.checked_div(base[1]).unwrap_or(0);
    if groups == 0 || groups * base[1] != channels || a.shape()[2..] != base[2..] || !m.is_multiple_of(groups)
    {
        return Err(a.bad(format!("has shape {:?}, which fits no kernel of {base:?}", a.shape())));
    }
    if !rank.is_multiple_of(groups) {
        return Err(a.bad(format!("has rank {rank}, expected a multiple of {groups} groups")));
    }
    let config = module.config();
    if !matches!(config.get("init_lora_weights"), None | Some(Node::Flag(_)))
        && !matches!(config.text("init_lora_weights")?, Some("gaussian" | "orthogonal" | "eva" | "mica"))
    {
        return Err(module.unsupported("a convolution in groups with an edited base"));
    }
    module.set_form(Form::Grouped(groups));
    let (rows, own) = (m / groups, rank / groups);
    let mut axes = vec![Some(1); base.len()];
    axes[..2].copy_from_slice(&[Some(m), Some(own)]);
    b.dims(&axes)?;
    let n = module.shape()?.1;
    let all = b.flat(Some(m), Some(own))?;
    let left = Factor::from_fn(Storage::F32, (groups, rows, own), |g, i, k| scale * all[[g * rows + i, k]]);
    let left = BlockDiagonal::new((m, rank), left)?;
    let right = Dense::from_factor(a.factor(Some(rank), Some(n))?)?;
    let delta = Product::new(vec![Box::new(left), Box::new(right)])?;
    let params = a.values().len() + b.values().len();
    let mut adapter = Additive::new("lora", Box::new(delta)).with_params(params);
    if let Some(bias) = module.maybe("lora_B.bias") {
        if !config.flag("lora_bias", false)? {
            return Err(bias.bad("is there, and `lora_bias` is not set"));
        }
        adapter = adapter.with_bias(BiasEdit { map: None, add: Some(bias.array1(m)?.mapv(|b| b * scale)) });
    }
    match (module.maybe("lora_magnitude_vector"), config.flag("use_dora", false)?) {
        (None, false) => Ok(Box::new(adapter)),
        (Some(magnitude), true) => {
            // What PEFT takes the norms of: its product of the factors as if there were no groups, in the shape of the kernel.
            let flat = all.into_shape_with_order((rows, rank)).map_err(|e| b.bad(e.to_string()))?;
            let mixed = flat.dot(&a.flat(Some(rank), Some(n))?) * scale;
            let mixed = mixed.into_shape_with_order((m, n / groups)).map_err(|e| a.bad(e.to_string()))?;
            let magnitude = magnitude.vector(Some(m))?;
            Ok(Box::new(GroupedDora { inner: adapter, mixed, magnitude, groups }))
        }
        (Some(magnitude), false) => Err(magnitude.bad("is there, and `use_dora` is not set")),
        (None, true) => {
            Err(module.bad(format!("`use_dora` is set, and `{}` has no magnitudes", module.name())))
        }
    }
}

/// `W' = diag(μ / ν) (W + D)`, with norms `ν` of rows that are not those of `W + D`.
#[derive(Debug, Clone)]
struct GroupedDora {
    inner: Additive,
    /// What is added to the kernel before its norms are taken.
    mixed: Array2<f64>,
    magnitude: Vec<f64>,
    groups: usize,
}

impl Adapter for GroupedDora {
    fn kind(&self) -> &'static str {
        "dora"
    }
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }
    fn n_params(&self) -> usize {
        self.inner.n_params() + self.magnitude.len()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        let inner = self.inner.edit(base)?;
        let (w, (m, n)) = (base.to_dense_f64(), self.mixed.dim());
        let norm = |(i, mixed): (usize, ArrayView1<'_, f64>)| {
            let at = i / (m / self.groups) * n;
            let row = &mixed + &w.slice(s![i, at..at + n]);
            row.dot(&row).sqrt()
        };
        let norms = self.mixed.outer_iter().enumerate().map(norm);
        let scales = magnitudes_over_norms(&self.magnitude, norms, "row")?;
        let scales = Factor::from_fn(Storage::F32, (1, 1, m), |_, _, i| scales[i]);
        // The bias is not rescaled.
        inner.then(&Edit::of(self.shape()).with_left(Box::new(Identity::diagonal(scales)?))?)
    }
}
