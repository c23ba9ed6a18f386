use super::config::{Config, ends_with};
use super::layout::Layout;
use super::module::Module;
use super::nested::{self, Nested};
use super::tensor::Tensor;
use super::{REFUSED, TUNERS, Tuner};
use crate::adapters::Adapter;
use crate::error::{Error, Result};
use crate::io::{Checkpoint, Source, Staged, Writer};
use crate::storage::Factor;
use ndarray::ArrayD;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

/// What every key begins with.
const ROOT: &str = "base_model.";
/// What the keys of modules begin with.
const MODEL: &str = "base_model.model.";

/// What the keys of trained normalisation layers have between module and parameter.
const NORMS: &str = "ln_tuning_layers.";

/// What the keys of wrapped layers have in them: of biases, of the inner one of two wrappers, of an attention's output.
const WRAPPED: &str = "base_layer";

/// Tables that PEFT saves as a whole where it thinks that they were resized.
const TABLES: &[&str] = &["embed_tokens", "lm_head"];

/// The tensors of one module, by what follows its path in their keys.
pub(super) type Tensors = BTreeMap<String, Tensor>;

/// An open adapter folder.
#[derive(Debug)]
pub struct Folder {
    pub(super) config: Config,
    pub(super) modules: BTreeMap<String, Tensors>,
    /// Tensors that modules share.
    pub(super) shared: Tensors,
    /// Tensors of the model that are replaced as a whole.
    replaced: BTreeMap<String, Tensor>,
    tuner: &'static Tuner,
    /// Outputs of attentions, whose change PEFT adds twice, in products and merges alike.
    pub(super) twice: BTreeSet<String>,
    /// Modules that hold adapters of parameters, the innermost first.
    nested: Vec<Nested>,
    file: Checkpoint,
    pub(super) task: Option<usize>,
    /// Factors made of shared tensors, by name and by the shapes of the whole and of the part.
    pub(super) projections: Mutex<BTreeMap<(String, [usize; 4]), Factor>>,
}

/// The adapter of one module.
#[derive(Debug)]
pub struct Loaded {
    /// Path of the module.
    pub module: String,
    /// What it does.
    pub adapter: Box<dyn Adapter>,
    /// How the base tensor is the matrix that it edits.
    pub layout: Layout,
}

impl Folder {
    /// Opens and checks a folder.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::File`] when one is malformed or holds what is not understood,
    /// [`Error::Unknown`] and [`Error::Unsupported`] for a kind of adapter that is not read, with the reason.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config = Config::open(path.join("adapter_config.json"))?;
        let kind = config.text("peft_type")?.ok_or_else(|| config.bad("field `peft_type` is missing"))?;
        if let Some((name, reason)) = REFUSED.iter().find(|(name, _)| *name == kind) {
            return Err(Error::Unsupported { structure: (*name).to_owned(), what: (*reason).to_owned() });
        }
        let tuner = TUNERS.iter().find(|tuner| tuner.name == kind).ok_or_else(|| Error::Unknown {
            kind: "peft_type",
            name: kind.to_owned(),
            expected: TUNERS.iter().map(|tuner| tuner.name).collect::<Vec<_>>().join(", "),
        })?;
        config.check_fields(tuner)?;
        let weights = path.join("adapter_model.safetensors");
        if !weights.exists() && path.join("adapter_model.bin").exists() {
            let reason = "a pickle, which can run any code when it is opened: convert it to safetensors";
            return Err(Error::File { path: path.join("adapter_model.bin"), reason: reason.to_owned() });
        }
        let file = Checkpoint::open(weights)?;
        if let Some(name) = file.structured().next() {
            let reason = format!("`{name}` is a structured matrix, expected tensors of an adapter");
            return Err(Error::File { path: file.path().to_owned(), reason });
        }
        let keys: Vec<String> = file.tensors().map(str::to_owned).collect();
        let mut folder = Self {
            config,
            modules: BTreeMap::new(),
            shared: Tensors::new(),
            replaced: BTreeMap::new(),
            tuner,
            file,
            twice: BTreeSet::new(),
            nested: Vec::new(),
            task: None,
            projections: Mutex::default(),
        };
        for key in keys {
            folder.place(&key)?;
        }
        // Shared tensors alone, beside modules that were trained whole, are an adapter of which the rest is missing.
        if folder.modules.is_empty() && (folder.replaced.is_empty() || !folder.shared.is_empty()) {
            let what = "no tensor of a module is there: they were not saved, and cannot be drawn again";
            return Err(Error::Unsupported { structure: tuner.name.to_owned(), what: what.to_owned() });
        }
        folder.nested = nested::rename(&folder.config, &mut folder.modules)?;
        Ok(folder)
    }

    /// Puts one tensor where it belongs, or refuses it.
    fn place(&mut self, key: &str) -> Result<()> {
        let file = &self.file;
        let path = file.path().to_owned();
        let bad = |reason: String| Err(Error::File { path: path.clone(), reason });
        let odd = |c: char| c.is_control() || c == '/' || c == '\\';
        if key.chars().any(odd) || key.split('.').any(str::is_empty) {
            return bad(format!("tensor {key:?}: expected a path of names with dots between"));
        }
        let Some(name) = key.strip_prefix(MODEL) else {
            return match key.strip_prefix(ROOT).filter(|name| self.tuner.shares(name)) {
                Some(name) => {
                    self.shared.insert(name.to_owned(), Tensor::read(file, key)?);
                    Ok(())
                }
                None => bad(format!("tensor `{key}` does not belong to {}", self.tuner.name)),
            };
        };
        let starts: Vec<usize> =
            std::iter::once(0).chain(name.match_indices('.').map(|(at, _)| at + 1)).collect();
        let own = |at: &&usize| {
            let first = name[**at..].split('.').next().unwrap_or_default();
            self.tuner.tensors.contains(&first)
        };
        match starts.iter().rev().find(own) {
            Some(0) => bad(format!("tensor `{key}` names no module")),
            // The trained layer itself, in the place of the model's.
            Some(&at) if name[at..].starts_with(NORMS) => {
                let replaced = format!("{}.{}", &name[..at - 1], &name[at + NORMS.len()..]);
                self.replaced.insert(replaced, Tensor::read(file, key)?);
                Ok(())
            }
            Some(&at) => {
                let (module, rest) = (unwrapped(&name[..at - 1]), name[at..].to_owned());
                if name[..at].contains(".base_layer.out_proj.") {
                    self.twice.insert(module.clone());
                }
                match self.modules.entry(module).or_default().insert(rest, Tensor::read(file, key)?) {
                    Some(_) => bad(format!("`{key}` is there twice, by different names")),
                    None => Ok(()),
                }
            }
            None => {
                let Some(name) = self.replaced_name(name)? else {
                    return bad(format!(
                        "tensor `{key}` is left over: nothing in the configuration asks for it"
                    ));
                };
                let tensor = Tensor::read(file, key)?;
                // With all biases, PEFT saves that of a module that it trained whole again, and the one that is not used any more.
                if key.contains(".original_module.") {
                    return Ok(());
                }
                match self.replaced.get(&name) {
                    Some(other) if other.values() != tensor.values() => {
                        bad(format!("`{name}` is replaced twice, and not by the same numbers"))
                    }
                    _ => {
                        self.replaced.insert(name, tensor);
                        Ok(())
                    }
                }
            }
        }
    }

    /// The name in the model of a tensor that is replaced, where biases or this module are saved.
    fn replaced_name(&self, path: &str) -> Result<Option<String>> {
        // A wrapper names what it holds in its own way.
        let inner = |part: &&str| ![WRAPPED, "modules_to_save", "original_module"].contains(part);
        let plain = path.split('.').filter(inner).collect::<Vec<_>>().join(".");
        let wrapped = path.ends_with(".base_layer.weight");
        let path = plain.as_str();
        let Some((module, name)) = path.rsplit_once('.') else { return Ok(None) };
        let biases = match self.config.text("bias")? {
            None | Some("none") => false,
            // Up to 0.17, all tensors that have the word in their names.
            Some("all") => path.contains("bias"),
            Some(text) => match text.strip_suffix("_only") {
                Some(own) if self.calls_itself(own) => name == "bias",
                _ => {
                    let own = self.tuner.name.to_lowercase();
                    return Err(self
                        .config
                        .bad(format!("field `bias` = {text:?}: expected none, all, {own}_only")));
                }
            },
        };
        let saved = self.config.names("modules_to_save")?;
        let table = name == "weight" && (wrapped || TABLES.iter().any(|table| ends_with(module, table)));
        // A module that is saved may have modules of its own.
        let inside = |saved: &&str| {
            path.match_indices('.').any(|(at, _)| ends_with(&path[..at], saved)) || ends_with(module, saved)
        };
        let replaced = biases || table || saved.iter().any(inside);
        Ok(replaced.then(|| plain.clone()))
    }

    /// Whether settings call the kind of adapter so.
    fn calls_itself(&self, name: &str) -> bool {
        match self.tuner.name {
            "ADALORA" if name == "lora" => true,
            "FOURIERFT" | "WAVEFT" if name == "fourier" => true,
            own => name.eq_ignore_ascii_case(own),
        }
    }

    /// Whether the base weight of a module is stored in x out; `None` where neither its bias nor those of its kin tell.
    fn stored_transposed(
        &self,
        module: &str,
        shapes: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Option<bool>> {
        if !self.tuner.reads.contains(&"fan_in_fan_out") {
            return Ok(Some(false));
        }
        let told = self.config.flag("fan_in_fan_out", false)?;
        // The setting is that of the last module that PEFT wrapped; what counts is the layer, and one that is transposed has a bias.
        let evident =
            |module: &str| match (shapes(module).as_deref(), shapes(&format!("{module}.bias")).as_deref()) {
                (Some(&[a, b]), Some(&[k])) if a != b && (k == a || k == b) => Some(k == b),
                _ => None,
            };
        let Some(shape) = shapes(module).filter(|shape| shape.len() == 2) else { return Ok(Some(false)) };
        if let Some(turned) = evident(module) {
            return Ok(Some(turned));
        }
        if shape[0] != shape[1] {
            return Ok(None);
        }
        let last = |path: &str| path.rsplit('.').next().map(str::to_owned);
        let mut kin = self.modules().filter(|other| last(other) == last(module)).filter_map(evident);
        if let Some(turned) = kin.next() {
            return Ok(Some(turned));
        }
        match self.modules().filter_map(evident).find(|turned| *turned != told) {
            None => Ok(Some(told)),
            Some(_) => Err(self.config.bad(format!(
                "`fan_in_fan_out` = {told} is not so for all modules, and for the square weight of `{module}` nothing else tells"
            ))),
        }
    }

    /// Writes the folder again: the same settings, and the same tensors bit for bit.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read or written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut writer = Writer::new();
        for key in self.file.tensors() {
            writer.copy(&self.file, key)?;
        }
        std::fs::create_dir_all(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let weights = writer.stage(path.join("adapter_model.safetensors"))?;
        let config = Staged::new(path.join("adapter_config.json"), [self.config.text_as_read()])?;
        weights.commit()?;
        config.commit()
    }

    /// The kind of adapter: `peft_type`.
    pub fn kind(&self) -> &'static str {
        self.tuner.name
    }

    /// Paths of the modules that are adapted, sorted. Expert parameters count as modules: `experts.up`.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// Tensors that replace those of the model, by their names there: biases, and modules that were trained whole.
    pub fn replaced(&self) -> impl Iterator<Item = (&str, &ArrayD<f64>)> {
        self.replaced.iter().map(|(name, tensor)| (name.as_str(), tensor.values()))
    }

    /// Chooses the task, for adapters that have one change for each (Poly).
    pub fn select_task(&mut self, task: usize) {
        self.task = Some(task);
    }

    /// Adds a tensor that the folder lacks, because PEFT computes it again when it loads: `psoft_A`, `psoft_B`, `row_index`, and `tinylora_v` of
    /// a module where there are several.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the module is not there, or has a tensor of that name.
    pub fn supply(&mut self, module: &str, name: &str, values: ArrayD<f64>) -> Result<()> {
        let key = format!("{module}.{name}");
        let tensor = Tensor::supplied(key.clone(), values);
        let tensors = self.modules.get_mut(module).filter(|tensors| !tensors.contains_key(name));
        match tensors.map(|tensors| tensors.insert(name.to_owned(), tensor)) {
            Some(_) => Ok(()),
            None => Err(Error::parameter("supplied tensor", key, "one that a module of the folder lacks")),
        }
    }

    /// The adapter of `module`, for the base tensor whose shape `shapes` tells by the path of its module. It is asked for `MODULE.bias` too, which
    /// tells a weight that is stored in x out from one that is not; `None` is an answer.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a module that is not there, [`Error::File`] when its tensors do not fit together or to the base.
    pub fn load(&self, module: &str, shapes: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<Loaded> {
        let (name, key) = self.resolve(module, shapes)?;
        let tensors = self.modules.get(&key).ok_or_else(|| Error::Unknown {
            kind: "module",
            name: module.to_owned(),
            expected: self.modules().take(8).collect::<Vec<_>>().join(", "),
        })?;
        let load = |turned: bool| -> Result<Loaded> {
            let loading = Module::new(self, &name, tensors, shapes, turned)?;
            let adapter = (self.tuner.load)(&loading)?;
            let layout = loading.finish()?;
            let (m, n) = layout.matrix_shape();
            match adapter.shape() {
                shape if shape == (m, n) => Ok(Loaded { module: name.clone(), adapter, layout }),
                (rows, cols) => Err(Error::shape("adapter", &[m, n], &[rows, cols])),
            }
        };
        match self.stored_transposed(&name, shapes)? {
            Some(turned) => load(turned),
            // Not transposed where the adapter fits only so, whatever the setting says of another module.
            None if self.config.flag("fan_in_fan_out", false)? => {
                load(true).or_else(|error| load(false).map_err(|_| error))
            }
            None => load(false),
        }
    }

    /// The path in the base of what is adapted under `module`, and where its tensors are.
    fn resolve(&self, module: &str, shapes: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<(String, String)> {
        match self.nested.iter().find(|nested| nested.holds(module)) {
            Some(nested) => nested.resolve(module, &self.config, &self.modules, shapes),
            None => Ok((module.to_owned(), module.to_owned())),
        }
    }

    /// The adapters of all modules of a model whose base tensors are called `MODULE.weight` (expert parameters `MODULE`).
    ///
    /// # Errors
    /// Those of [`load`](Self::load) and [`Source::find`], and [`Error::Unknown`] for a module that the model lacks.
    pub fn load_all(&self, base: &dyn Source) -> Result<Vec<Loaded>> {
        self.modules().map(|module| self.load_from(module, base)).collect()
    }

    /// The adapter of one module of a model.
    ///
    /// # Errors
    /// As [`load_all`](Self::load_all).
    pub fn load_from(&self, module: &str, base: &dyn Source) -> Result<Loaded> {
        let shape = |module: &str| {
            let name = base_names(module, base).ok()?.0;
            base.find(&name).ok()??.shape(&name).map(<[usize]>::to_vec)
        };
        base.need(&base_names(&self.resolve(module, &shape)?.0, base)?.0)?;
        self.load(module, &shape)
    }
}

/// The tensors of a module of a model: its weight and its bias, whether they are there or not. The first is `MODULE.weight`,
/// `MODULE.in_proj_weight` of an attention, or `MODULE` itself for a parameter of experts.
///
/// # Errors
/// Those of [`Source::find`].
pub fn base_names(module: &str, base: &dyn Source) -> Result<(String, String)> {
    let (plain, bias) = (format!("{module}.weight"), format!("{module}.bias"));
    if base.find(&plain)?.is_some() {
        return Ok((plain, bias));
    }
    let attention = format!("{module}.in_proj_weight");
    if base.find(&attention)?.is_some() {
        return Ok((attention, format!("{module}.in_proj_bias")));
    }
    let itself = base.find(module)?.is_some();
    Ok((if itself { module.to_owned() } else { plain }, bias))
}

/// A path without wrappers in its middle.
fn unwrapped(path: &str) -> String {
    path.replace(".base_layer.", ".")
}
