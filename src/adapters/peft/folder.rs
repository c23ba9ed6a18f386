use super::config::{Config, ends_with};
use super::layout::Layout;
use super::module::Module;
use super::tensor::Tensor;
use super::{REFUSED, TUNERS, Tuner};
use crate::adapters::Adapter;
use crate::error::{Error, Result};
use crate::io::{Checkpoint, Source, Staged, Writer};
use crate::storage::Factor;
use ndarray::ArrayD;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// What every key begins with.
const ROOT: &str = "base_model.";
/// What the keys of modules begin with.
const MODEL: &str = "base_model.model.";

/// What the keys of trained normalisation layers have between module and parameter.
const NORMS: &str = "ln_tuning_layers.";

/// What the keys of rows that a LoRA folder replaces have behind their module.
const TOKENS: &str = "token_adapter.";

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
    file: Checkpoint,
    pub(super) task: Option<usize>,
    /// Factors made of shared tensors, by name and by the shapes of the whole and of the part.
    pub(super) projections: Mutex<BTreeMap<(&'static str, [usize; 4]), Factor>>,
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
            task: None,
            projections: Mutex::default(),
        };
        for key in keys {
            folder.place(&key)?;
        }
        if folder.modules.is_empty() && folder.replaced.is_empty() {
            let what = "no tensor of a module is there: they were not saved, and cannot be drawn again";
            return Err(Error::Unsupported { structure: tuner.name.to_owned(), what: what.to_owned() });
        }
        folder.rename_experts()?;
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
            let rest = &name[**at..];
            rest.starts_with(self.tuner.prefix) || self.tuner.name == "LORA" && rest.starts_with(TOKENS)
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
                let (module, rest) = (name[..at - 1].to_owned(), name[at..].to_owned());
                self.modules.entry(module).or_default().insert(rest, Tensor::read(file, key)?);
                Ok(())
            }
            None => {
                let name = self.replaced_name(name);
                let Some(name) = name? else {
                    return bad(format!(
                        "tensor `{key}` is left over: nothing in the configuration asks for it"
                    ));
                };
                match self.replaced.insert(name.clone(), Tensor::read(file, key)?) {
                    Some(_) => bad(format!("`{name}` is replaced twice")),
                    None => Ok(()),
                }
            }
        }
    }

    /// The name in the model of a tensor that is replaced, where biases or this module are saved.
    fn replaced_name(&self, path: &str) -> Result<Option<String>> {
        let Some((module, name)) = path.rsplit_once('.') else { return Ok(None) };
        let module = module.strip_suffix(".base_layer").unwrap_or(module);
        let own = format!("{}_only", self.tuner.prefix.trim_end_matches('_'));
        let biases = match self.config.text("bias")? {
            None | Some("none") => false,
            Some("all") => true,
            Some(text) if text == own => true,
            Some(text) => {
                return Err(self.config.bad(format!("field `bias` = {text:?}: expected none, all, {own}")));
            }
        };
        let saved = self.config.names("modules_to_save")?;
        // A module that is saved may have modules of its own.
        let inside = |saved: &&str| {
            path.match_indices('.').any(|(at, _)| ends_with(&path[..at], saved)) || ends_with(module, saved)
        };
        let replaced = biases && name == "bias" || saved.iter().any(inside);
        Ok(replaced.then(|| format!("{module}.{name}")))
    }

    /// Adapters of expert parameters are nested in each other: the first parameter's is innermost.
    fn rename_experts(&mut self) -> Result<()> {
        let targets: Vec<String> =
            self.config.names("target_parameters")?.into_iter().map(str::to_owned).collect();
        if targets.is_empty() {
            return Ok(());
        }
        for (path, tensors) in std::mem::take(&mut self.modules) {
            let plain = path.trim_end_matches(".base_layer");
            let depth = (path.len() - plain.len()) / ".base_layer".len();
            let parameters: Vec<&str> = targets
                .iter()
                .filter_map(|target| target.rsplit_once('.'))
                .filter(|(parent, _)| ends_with(plain, parent))
                .map(|(_, parameter)| parameter)
                .collect();
            let name = match parameters.len().checked_sub(depth + 1).map(|at| parameters[at]) {
                Some(parameter) => format!("{plain}.{parameter}"),
                None if depth == 0 => path.clone(),
                None => {
                    return Err(self.config.bad(format!(
                        "module `{path}` is nested {depth} deep, and `target_parameters` names {} there",
                        parameters.len()
                    )));
                }
            };
            self.modules.insert(name, tensors);
        }
        Ok(())
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

    /// Adds a tensor that the folder lacks, because PEFT computes it again when it loads: `psoft_A`, `psoft_B`, `row_index`.
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

    /// The adapter of `module`, for the base tensor whose shape `shapes` tells by the path of its module.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a module that is not there, [`Error::File`] when its tensors do not fit together or to the base.
    pub fn load(&self, module: &str, shapes: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<Loaded> {
        let tensors = self.modules.get(module).ok_or_else(|| Error::Unknown {
            kind: "module",
            name: module.to_owned(),
            expected: self.modules().take(8).collect::<Vec<_>>().join(", "),
        })?;
        let loading = Module::new(self, module, tensors, shapes)?;
        let adapter = (self.tuner.load)(&loading)?;
        let layout = loading.finish()?;
        let (m, n) = layout.matrix_shape();
        match adapter.shape() {
            shape if shape == (m, n) => Ok(Loaded { module: module.to_owned(), adapter, layout }),
            (rows, cols) => Err(Error::shape("adapter", &[m, n], &[rows, cols])),
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
        base.need(&base_name(module, base)?)?;
        self.load(module, &|module| {
            let name = base_name(module, base).ok()?;
            base.find(&name).ok()??.shape(&name).map(<[usize]>::to_vec)
        })
    }
}

/// The base tensor of a module.
fn base_name(module: &str, base: &dyn Source) -> Result<String> {
    let name = format!("{module}.weight");
    // Experts' parameters are tensors themselves.
    Ok(if base.find(&name)?.is_none() && base.find(module)?.is_some() { module.to_owned() } else { name })
}
