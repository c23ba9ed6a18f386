//! Merges, applies, inspects and extracts adapters of safetensors checkpoints.
//!
//! ```text
//! cargo run --release --example adapter -- --base model.safetensors --adapter lora/ merge --output merged.safetensors
//! cargo run --release --example adapter -- --base model.safetensors --adapter a/:0.7 --adapter b/:0.3 info
//! cargo run --release --example adapter -- --base model.safetensors extract --tuned tuned.safetensors --kind lora --rank 16 --output lora/
//! ```

mod cli;
#[path = "cli/convolution.rs"]
mod convolution;

use clap::{Parser, Subcommand};
use convolution::Walk;
use globset::{GlobBuilder, GlobMatcher};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use structmat::adapters::extract::{Kind, extract_on};
use structmat::adapters::peft::{self, Folder, Layout, Loaded, base_names};
use structmat::adapters::{Adapter, Edit, several};
use structmat::io::{Checkpoint, Source, Staged, Writer};
use structmat::ndarray::{Array1, Array2, ArrayD, Axis, IxDyn, s};
use structmat::prelude::*;
use structmat::{Error, Result, Scalar};

/// Merges, applies, inspects and extracts adapters of a base model.
///
/// Base tensors are found as MODULE.weight and MODULE.bias. Several adapters on one module add up; where one of them multiplies the base, they
/// follow each other in the order given.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Base model: a safetensors file, an index of several, or a folder with either.
    #[arg(long)]
    base: PathBuf,
    /// Adapter folder, as `DIR` or `DIR:WEIGHT`. Repeatable.
    #[arg(long)]
    adapter: Vec<String>,
    /// Modules to take; `*`, `?`, `[..]` and `{a,b}` match as in a shell, `*` also across dots.
    #[arg(long, default_value = "*")]
    modules: String,
    /// The task, for adapters that have one change for each.
    #[arg(long)]
    task: Option<usize>,
    /// File with tensors MODULE.NAME that adapters lack because PEFT computes them again.
    #[arg(long)]
    supply: Option<PathBuf>,
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Writes the base with the adapters merged into it; every tensor keeps its type.
    Merge {
        /// File to write.
        #[arg(long)]
        output: PathBuf,
    },
    /// Writes MODULE.delta, merged minus base, for every adapted module.
    Delta {
        /// File to write.
        #[arg(long)]
        output: PathBuf,
    },
    /// Writes `y`, the outputs of one adapted module for the inputs `x`, without merging.
    Apply {
        /// The module.
        #[arg(long)]
        module: String,
        /// File with the tensor `x`: rows of inputs, row numbers of an embedding, or for a convolution images (batch x channels
        /// x ...) or rows of patches.
        #[arg(long)]
        x: PathBuf,
        /// Steps of a convolution, one for all axes or `2,1`.
        #[arg(long, value_delimiter = ',', default_value = "1")]
        stride: Vec<usize>,
        /// Zeros before and behind each axis of its images.
        #[arg(long, value_delimiter = ',', default_value = "0")]
        padding: Vec<usize>,
        /// Distances between the inputs that one output sees.
        #[arg(long, value_delimiter = ',', default_value = "1")]
        dilation: Vec<usize>,
        /// Groups of channels; without it, as many as the channels of the images say.
        #[arg(long)]
        groups: Option<usize>,
        /// File to write.
        #[arg(long)]
        output: PathBuf,
    },
    /// Prints kind, parameters, memory and cost of each module.
    Info,
    /// Writes the adapter of a family that is nearest to what fine-tuning did.
    Extract {
        /// The tuned model.
        #[arg(long)]
        tuned: PathBuf,
        /// lora, lora_xs, gralora, c3a, miss, fourierft, diablo, lokr, bat, loha or hira.
        #[arg(long)]
        kind: Kind,
        /// Rank; for c3a and bat the size of a block, for fourierft the coefficients, for diablo the blocks, for lokr the rows and columns of the left
        /// factor.
        #[arg(long)]
        rank: usize,
        /// Folder to write; for diablo, which PEFT does not read, a file with the structured matrices MODULE.delta.
        #[arg(long)]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    cli::run(|| run(&args))
}

fn run(args: &Args) -> cli::Outcome {
    let base = structmat::io::open(&args.base)?;
    let glob = GlobBuilder::new(&args.modules).literal_separator(false).build();
    let glob = glob.map_err(|e| Error::parameter("modules", &args.modules, e.to_string()))?.compile_matcher();
    if let Action::Extract { tuned, kind, rank, output } = &args.command {
        return extracted(base.as_ref(), tuned, &glob, (*kind, *rank), output);
    }
    if args.adapter.is_empty() {
        return Err(Error::parameter("adapter", "none", "at least one folder").into());
    }
    let stack = Stack::open(args, base.as_ref(), &glob)?;
    match &args.command {
        Action::Merge { output } => merge(base.as_ref(), &stack, output),
        Action::Delta { output } => delta(base.as_ref(), &stack, output),
        Action::Apply { module, x, stride, padding, dilation, groups, output } => {
            let walk = Walk { stride, padding, dilation, groups: *groups };
            apply(base.as_ref(), &stack, module, x, &walk, output)
        }
        Action::Info | Action::Extract { .. } => info(base.as_ref(), &stack),
    }
}

/// All adapters, by module, in the order given.
struct Stack {
    modules: BTreeMap<String, Vec<(Loaded, f64)>>,
    /// Tensors that replace those of the base, the last one given first.
    replaced: BTreeMap<String, ArrayD<f64>>,
}

impl Stack {
    fn open(args: &Args, base: &dyn Source, glob: &GlobMatcher) -> Result<Self> {
        let (mut modules, mut replaced) = (BTreeMap::<String, Vec<_>>::new(), BTreeMap::new());
        let supplied = args.supply.as_ref().map(Checkpoint::open).transpose()?;
        for text in &args.adapter {
            let (path, weight) = weighted(text)?;
            let mut folder = Folder::open(path)?;
            if let Some(task) = args.task {
                folder.select_task(task);
            }
            for name in supplied.iter().flat_map(Checkpoint::tensors) {
                let found = folder.modules().filter(|module| name.starts_with(&format!("{module}.")));
                let Some(module) = found.max_by_key(|module| module.len()).map(str::to_owned) else {
                    continue;
                };
                let file = supplied.as_ref().ok_or_else(|| Error::parameter("supply", name, "a file"))?;
                let values = match file.storage(name) {
                    Some(_) => file.array(name)?,
                    None => Array1::from_iter(file.integers(name)?.into_iter().map(f64::from)).into_dyn(),
                };
                folder.supply(&module, &name[module.len() + 1..], values)?;
            }
            for module in folder.modules().filter(|module| glob.is_match(module)) {
                let loaded = folder.load_from(module, base)?;
                modules.entry(loaded.module.clone()).or_default().push((loaded, weight));
            }
            for (name, values) in folder.replaced() {
                let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
                if glob.is_match(module) {
                    let there = base.need(name)?.shape(name).unwrap_or_default().to_vec();
                    if values.shape() != there {
                        return Err(Error::shape("replaced tensor", &there, values.shape()));
                    }
                    replaced.insert(name.to_owned(), values.clone());
                }
            }
        }
        Ok(Self { modules, replaced })
    }

    /// The bias of a module, that of the adapter where it has one.
    fn bias(&self, base: &dyn Source, module: &str) -> Result<Option<Array1<f64>>> {
        let name = base_names(module, base)?.1;
        let bias = match self.replaced.get(&name) {
            Some(bias) => Some(bias.clone()),
            None => base.find(&name)?.map(|file| file.array(&name)).transpose()?,
        };
        Ok(bias.map(|bias| bias.iter().copied().collect()))
    }
}

/// `DIR` or `DIR:WEIGHT`.
fn weighted(text: &str) -> Result<(&Path, f64)> {
    match text.rsplit_once(':') {
        Some((path, weight)) if !Path::new(text).exists() => {
            let weight = weight.parse().ok().filter(|weight: &f64| weight.is_finite());
            let wrong = || Error::parameter("adapter", text, "DIR or DIR:WEIGHT with a finite number");
            Ok((Path::new(path), weight.ok_or_else(wrong)?))
        }
        _ => Ok((Path::new(text), 1.0)),
    }
}

/// One module of the base, and what all its adapters do.
struct Bound {
    name: String,
    storage: Storage,
    layout: Layout,
    weight: Dense,
    /// What the weight is more than that of the base, where an adapter replaces it and changes it too.
    replaced: Option<Array2<f64>>,
    edit: Edit,
}

impl Bound {
    /// Merged minus base.
    fn delta(&self) -> Result<ArrayD<f64>> {
        let delta = self.edit.delta(&self.weight)?;
        self.layout.to_tensor(&match &self.replaced {
            Some(more) => delta + more,
            None => delta,
        })
    }
}

fn bind(base: &dyn Source, stack: &Stack, module: &str) -> Result<Bound> {
    let loaded = stack.modules.get(module).ok_or_else(|| Error::Unknown {
        kind: "adapted module",
        name: module.to_owned(),
        expected: stack.modules.keys().take(8).cloned().collect::<Vec<_>>().join(", "),
    })?;
    let layout = loaded[0].0.layout.clone();
    if let Some((other, _)) = loaded.iter().find(|(other, _)| other.layout != layout) {
        let what = format!("adapters of `{}` see its weight in different ways", other.module);
        return Err(Error::Unsupported { structure: "several adapters".to_owned(), what });
    }
    let name = base_names(module, base)?.0;
    let file = base.need(&name)?;
    let storage = file.storage(&name).unwrap_or(Storage::F32);
    let mut matrix = layout.to_matrix(&file.array(&name)?)?;
    let mut replaced = None;
    if let Some(new) = stack.replaced.get(&name) {
        let new = layout.to_matrix(new)?;
        replaced = Some(&new - &matrix);
        matrix = new;
    }
    let weight = Dense::from_factor(Factor::from_matrix(storage, &matrix))?;
    let adapters: Vec<(&dyn Adapter, f64)> =
        loaded.iter().map(|(loaded, weight)| (loaded.adapter.as_ref(), *weight)).collect();
    let edit = several::in_order(&weight, &adapters)?;
    Ok(Bound { name, storage, layout, weight, replaced, edit })
}

fn merge(base: &dyn Source, stack: &Stack, output: &Path) -> cli::Outcome {
    Staged::new(output, [])?; // an output that cannot be written is better known now
    let mut writer = Writer::new();
    let mut written = BTreeSet::new();
    let mut rows = Vec::new();
    for module in stack.modules.keys() {
        let Bound { name, storage, layout, weight, edit, .. } = bind(base, stack, module)?;
        let merged = edit.merge(&weight, storage)?;
        writer.array_in(&name, &layout.to_tensor(&merged.weight.to_dense_f64())?, storage)?;
        written.insert(name);
        let bias = base_names(module, base)?.1;
        let changed = edit.bias().map.is_some() || edit.bias().add.is_some();
        if changed && let Some(values) = edit.bias().apply(stack.bias(base, module)?.as_deref())? {
            let file = base.find(&bias)?;
            let storage = file.and_then(|file| file.storage(&bias)).unwrap_or(storage);
            writer.array_in(&bias, &values, storage)?;
            written.insert(bias);
        }
        let report = merged.report;
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        rows.push(vec![
            module.clone(),
            storage.to_string(),
            format!("{:.3e}", report.delta),
            format!("{:.3e}", report.relative),
            percent(report.vanished),
            percent(report.not_restored),
        ]);
    }
    for (name, values) in &stack.replaced {
        if written.insert(name.clone()) {
            writer.array_in(name, values, base.need(name)?.storage(name).unwrap_or(Storage::F32))?;
        }
    }
    for name in base.names()?.iter().filter(|name| !written.contains(*name)) {
        let file = base.need(name)?;
        match file.structured_shape(name) {
            Some(_) => writer.structured(name, file.load(name)?.as_ref())?,
            None => writer.copy(file, name)?,
        }
    }
    writer.write(output)?;
    let header = ["module", "storage", "change", "rounding / change", "vanished", "not restored"];
    print!("{}", cli::table(&header, &rows));
    Ok(())
}

fn delta(base: &dyn Source, stack: &Stack, output: &Path) -> cli::Outcome {
    Staged::new(output, [])?;
    let mut writer = Writer::new();
    let wide = |storage| if storage == Storage::F64 { Storage::F64 } else { Storage::F32 };
    for module in stack.modules.keys() {
        let bound = bind(base, stack, module)?;
        writer.array_in(&format!("{module}.delta"), &bound.delta()?, wide(bound.storage))?;
    }
    for (name, values) in &stack.replaced {
        let Some(module) = name.strip_suffix(".weight").filter(|module| !stack.modules.contains_key(*module))
        else {
            continue;
        };
        let file = base.need(name)?;
        let storage = file.storage(name).unwrap_or(Storage::F32);
        writer.array_in(&format!("{module}.delta"), &(values - &file.array::<f64>(name)?), wide(storage))?;
    }
    Ok(writer.write(output)?)
}

fn apply(
    base: &dyn Source,
    stack: &Stack,
    module: &str,
    x: &Path,
    walk: &Walk<'_>,
    output: &Path,
) -> cli::Outcome {
    Staged::new(output, [])?;
    let bound = bind(base, stack, module)?;
    let bias = bound.edit.bias().apply(stack.bias(base, module)?.as_deref())?;
    let inputs = Checkpoint::open(x)?;
    let mut writer = Writer::new();
    match inputs.storage("x") {
        Some(Storage::F64) => writer.array("y", &outputs::<f64>(&bound, bias, inputs.array("x")?, walk)?)?,
        Some(_) => writer.array("y", &outputs::<f32>(&bound, bias, inputs.array("x")?, walk)?)?,
        None => {
            let shape = inputs.shape("x").unwrap_or_default().to_vec();
            writer.array("y", &rows(&bound, &inputs.integers("x")?, shape)?)?;
        }
    }
    Ok(writer.write(output)?)
}

fn outputs<T: Scalar>(
    bound: &Bound,
    bias: Option<Array1<f64>>,
    x: ArrayD<T>,
    walk: &Walk<'_>,
) -> Result<ArrayD<T>> {
    let ((m, n), kernel) = (bound.layout.matrix_shape(), bound.layout.tensor_shape());
    let product = |x: &Array2<T>| -> Result<Array2<T>> {
        let mut y = bound.edit.matmul(&bound.weight, x)?;
        if let Some(bias) = &bias {
            y += &bias.mapv(T::narrow);
        }
        Ok(y)
    };
    // A kernel in groups may be seen as one without.
    let channels = n / kernel.iter().skip(2).product::<usize>().max(1);
    if kernel.len() > 2
        && x.ndim() == kernel.len()
        && let Some(groups) = walk.groups_of(&x, m, channels)?
    {
        let mut kernel = kernel.to_vec();
        (kernel[0], kernel[1]) = (m / groups, channels);
        let mut parts = Vec::with_capacity(groups);
        for group in 0..groups {
            let own = x.slice_axis(Axis(1), (group * channels..(group + 1) * channels).into());
            let outputs = group * kernel[0]..(group + 1) * kernel[0];
            // All outputs of the patches of one group, of which those of the group count.
            let product = |x: &Array2<T>| Ok(product(x)?.slice(s![.., outputs.clone()]).to_owned());
            parts.push(walk.convolve(&own.to_owned(), &kernel, &product)?);
        }
        let parts: Vec<_> = parts.iter().map(|part| part.view()).collect();
        let wrong = |e: structmat::ndarray::ShapeError| Error::parameter("x", "images", e.to_string());
        return structmat::ndarray::concatenate(Axis(1), &parts).map_err(wrong);
    }
    walk.check_unused()?;
    let mut shape = x.shape().to_vec();
    if shape.last() != Some(&n) {
        let what = "x (inputs along the last axis; for a convolution images of its channels, or patches)";
        return Err(Error::shape(what, &[1, n], &shape));
    }
    let wrong = |e: structmat::ndarray::ShapeError| Error::parameter("x", "a tensor", e.to_string());
    let x = x.clone().into_shape_with_order((x.len() / n.max(1), n)).map_err(wrong)?;
    if let Some(last) = shape.last_mut() {
        *last = m;
    }
    product(&x)?.into_shape_with_order(IxDyn(&shape)).map_err(wrong)
}

/// Rows of an adapted table: products of unit vectors with the transpose, a few at a time.
fn rows(bound: &Bound, numbers: &[u32], mut shape: Vec<usize>) -> Result<ArrayD<f32>> {
    let (rows, dim) = bound.layout.matrix_shape();
    let mut y = Array2::zeros((numbers.len(), dim));
    let mut exec = Exec::new();
    for (k, row) in numbers.iter().enumerate() {
        let mut unit = Array2::<f32>::zeros((1, rows));
        let place = unit.get_mut((0, *row as usize));
        *place.ok_or_else(|| Error::parameter("row", row, format!("less than {rows}")))? = 1.0;
        let mut out = y.slice_mut(s![k..=k, ..]);
        bound.edit.apply_transpose_into(&bound.weight, &unit, &mut out, Update::Overwrite, &mut exec)?;
    }
    shape.push(dim);
    y.into_shape_with_order(IxDyn(&shape)).map_err(|e| Error::parameter("x", "row numbers", e.to_string()))
}

fn info(base: &dyn Source, stack: &Stack) -> cli::Outcome {
    let mut table = Vec::new();
    for (module, loaded) in &stack.modules {
        let Bound { weight, edit, storage, .. } = bind(base, stack, module)?;
        let kinds: Vec<String> = loaded
            .iter()
            .map(|(loaded, weight)| match *weight == 1.0 {
                true => loaded.adapter.kind().to_owned(),
                false => format!("{} x {weight}", loaded.adapter.kind()),
            })
            .collect();
        let rank = match edit.additive().map(|delta| delta.parts()) {
            Some(parts) if parts.structure() == "low_rank" => parts
                .factors()
                .find(|(name, _)| *name == "v")
                .map_or("-".to_owned(), |(_, v)| v.rows().to_string()),
            _ => "-".to_owned(),
        };
        let params: usize = loaded.iter().map(|(loaded, _)| loaded.adapter.n_params()).sum();
        let (m, n) = weight.shape();
        table.push(vec![
            module.clone(),
            kinds.join(" + "),
            format!("{m} x {n} {storage}"),
            rank,
            params.to_string(),
            edit.storage_bytes().to_string(),
            format!("{:.2} %", 100.0 * edit.flops(1) as f64 / weight.flops(1).max(1) as f64),
        ]);
    }
    let header = ["module", "kind", "base", "rank", "parameters", "bytes", "cost / base product"];
    print!("{}", cli::table(&header, &table));
    for name in stack.replaced.keys() {
        println!("{name} is replaced");
    }
    Ok(())
}

fn extracted(
    base: &dyn Source,
    tuned: &Path,
    glob: &GlobMatcher,
    (kind, size): (Kind, usize),
    output: &Path,
) -> cli::Outcome {
    let tuned = structmat::io::open(tuned)?;
    let (mut modules, mut table, mut structured) = (Vec::new(), Vec::new(), Writer::new());
    for name in base.names()? {
        let Some(module) = name.strip_suffix(".weight").filter(|module| glob.is_match(module)) else {
            continue;
        };
        let file = base.need(&name)?;
        if file.shape(&name).is_none_or(|shape| shape.len() != 2) || file.storage(&name).is_none() {
            continue;
        }
        let (old, new) = (file.matrix::<f64>(&name)?, tuned.need(&name)?.matrix::<f64>(&name)?);
        if old.dim() != new.dim() {
            return Err(Error::shape("tuned weight", old.shape(), new.shape()).into());
        }
        let delta = new - &old;
        if delta.iter().all(|v| *v == 0.0) {
            continue;
        }
        let found = extract_on(&old, &delta, kind, size)?;
        let params = found.adapter.n_params().to_string();
        table.push(vec![module.to_owned(), params, format!("{:.3e}", found.relative_error)]);
        if kind.peft_type().is_none() {
            let edit = found.adapter.edit(&Dense::new(&old)?)?;
            let change = edit.additive().ok_or(Error::NoConvergence("extraction"))?;
            structured.structured(&format!("{module}.delta"), change)?;
        }
        modules.push((module.to_owned(), found));
    }
    if modules.is_empty() {
        return Err(Error::parameter("tuned", "no matrix that differs", "a tuned copy of the base").into());
    }
    match kind.peft_type() {
        Some(_) => peft::save(output, kind, size, &modules)?,
        None => structured.write(output)?,
    }
    print!("{}", cli::table(&["module", "parameters", "relative error"], &table));
    Ok(())
}
