use super::plan::{Choice, Plan};
use super::refine::{Refined, refine};
use super::sensitivity::Sensitivities;
use super::settings::Settings;
use super::survey::SiteSurvey;
use super::work::Work;
use crate::calibration::Moments;
use crate::error::{Error, Result};
use crate::exec::{Exec, Parallelism};
use crate::io::{Checkpoint, Writer};
use crate::layers::Linear;
use crate::models::{Block, Hidden, Model, Site, Tokens};
use crate::parts::Parts;
use crate::projection::Options;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The blocks that one of several processes takes: those whose number leaves `index` when divided by `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// At least 1.
    pub count: usize,
}

impl Shard {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    fn takes(self, layer: usize) -> bool {
        layer % self.count == self.index
    }
}

/// What a compression has just done.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Measured the variants of all matrices of a block, or found them measured.
    Surveyed {
        /// The block.
        layer: usize,
    },
    /// Fitted all matrices of a block, or found them fitted.
    Fitted {
        /// The block.
        layer: usize,
        /// What became of it.
        block: &'a FittedBlock,
    },
}

/// A fitted matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// Name of the weight.
    pub name: String,
    /// What it became.
    pub choice: Choice,
    /// Stored numbers.
    pub params: usize,
    /// Bytes of them, scales and indices.
    pub bytes: usize,
    /// Names and shapes (blocks, rows, columns) of its factors.
    pub factors: Vec<(String, (usize, usize, usize))>,
    /// Weighted relative error against what it was fitted to, on the inputs that it sees.
    pub error: f64,
    /// Time of the projection.
    pub seconds: f64,
}

/// A block all of whose matrices are fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FittedBlock {
    /// Its matrices, in the order of execution.
    pub matrices: Vec<Fitted>,
    /// What refining them together did, where that was asked for.
    #[serde(default)]
    pub refined: Option<Refined>,
}

/// Compresses a model; see the [module](crate::compression).
#[derive(Debug)]
pub struct Compressor<'a> {
    model: &'a Model,
    tokens: &'a Tokens,
    settings: Settings,
    parallelism: Parallelism,
    work: Work,
}

/// A model all of whose matrices are fitted.
#[derive(Debug)]
pub struct CompressedModel<'a> {
    model: &'a Model,
    /// What each matrix became.
    pub plan: Plan,
    /// How well, block by block.
    pub fitted: Vec<FittedBlock>,
    /// One file for each block.
    files: Vec<PathBuf>,
}

impl<'a> Compressor<'a> {
    /// A compression of `model`, calibrated on `tokens`, that keeps finished parts in the folder `work`.
    ///
    /// # Errors
    /// Those of the settings; [`Error::File`] when the folder holds the work of another run, [`Error::Io`] when it cannot be written.
    pub fn new(
        model: &'a Model,
        tokens: &'a Tokens,
        settings: Settings,
        parallelism: Parallelism,
        work: impl AsRef<Path>,
    ) -> Result<Self> {
        settings.check()?;
        if tokens.ids().is_empty() {
            return Err(Error::parameter("calibration", "no tokens", "at least one"));
        }
        let sites: Vec<_> = model.sites().into_iter().map(|site| (site.name, site.shape)).collect();
        let fingerprint = serde_json::json!({
            "settings": settings,
            "matrices": sites,
            "calibration": format!("{} tokens {:016x}", tokens.ids().len(), hash(tokens)),
        });
        let work = Work::open(work.as_ref(), &fingerprint)?;
        Ok(Self { model, tokens, settings, parallelism, work })
    }

    /// Everything: [`survey`](Self::survey), [`plan`](Self::plan), [`fit`](Self::fit), [`finish`](Self::finish).
    ///
    /// # Errors
    /// Theirs. What was finished before stays.
    pub fn run(&self, progress: &mut dyn FnMut(Event<'_>)) -> Result<CompressedModel<'a>> {
        self.survey(Shard::WHOLE, progress)?;
        self.plan()?;
        self.fit(Shard::WHOLE, progress)?;
        self.finish()
    }

    fn exec(&self) -> Exec<f32> {
        match self.parallelism {
            Parallelism::Seq => Exec::new(),
            Parallelism::Threads(n) => Exec::threads(n),
        }
    }

    /// Measures every variant of every matrix in a share of the blocks, with the inputs of the dense model.
    ///
    /// # Errors
    /// Those of the model, of projections other than [`Error::Budget`], and of files.
    pub fn survey(&self, shard: Shard, progress: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let shard = checked(shard)?;
        let mut exec = self.exec();
        let sensitivities = self.sensitivities(&mut exec)?;
        let mut hidden: Option<Hidden> = None;
        let open = |layer: usize| shard.takes(layer) && !self.work.path(&survey_name(layer)).exists();
        let Some(last) = (0..self.model.n_blocks()).rev().find(|&layer| open(layer)) else {
            (0..self.model.n_blocks()).for_each(|layer| progress(Event::Surveyed { layer }));
            return Ok(());
        };
        for layer in 0..=last {
            let block = self.model.load_block(layer)?;
            let states = match hidden.take() {
                Some(states) => states,
                None => self.model.embed(self.tokens)?,
            };
            let mut found = Vec::new();
            let mut walk = block.enter(states, &mut exec)?;
            while let Some(stage) = walk.stage() {
                if open(layer) {
                    let sites = block.stage_sites(stage);
                    found.extend(self.survey_stage(&block, sites, walk.inputs(), &sensitivities)?);
                }
                block.advance(&mut walk, &mut exec, &mut ())?;
            }
            hidden = Some(walk.finish()?);
            if open(layer) {
                self.work.write(&survey_name(layer), &found)?;
            }
            progress(Event::Surveyed { layer });
        }
        Ok(())
    }

    /// Measured the first time they are asked for; of nothing where errors are to count the same.
    fn sensitivities(&self, exec: &mut Exec<f32>) -> Result<Sensitivities> {
        if self.settings.sensitivity == 0.0 {
            return Ok(Sensitivities::default());
        }
        if let Some(found) = self.work.read(SENSITIVITIES)? {
            return Ok(found);
        }
        let found = Sensitivities::measure(self.model, self.tokens, self.settings.seed, exec)?;
        self.work.write(SENSITIVITIES, &found)?;
        Ok(found)
    }

    fn survey_stage(
        &self,
        block: &Block,
        sites: &[Site],
        inputs: &ndarray::ArrayRef2<f32>,
        sensitivities: &Sensitivities,
    ) -> Result<Vec<SiteSurvey>> {
        let mut moments = Moments::new(inputs.ncols());
        moments.accumulate(inputs)?;
        let one = |site: &Site| {
            let linear = block.linear(&site.name)?;
            let centred = self.settings.bias && linear.bias().is_some();
            let gram = moments.gram(centred, self.settings.dampening)?;
            let w = linear.weight().to_dense_f64();
            SiteSurvey::measure(
                (&site.name, &w),
                (&gram, moments.rank(centred)?),
                sensitivities,
                &self.settings,
                self.parallelism,
            )
        };
        sites.iter().map(one).collect()
    }

    /// Spreads the budget over all matrices, once all blocks are surveyed.
    ///
    /// # Errors
    /// [`Error::File`] when surveys are missing, [`Error::Parameter`] when the budget is below the smallest variants.
    pub fn plan(&self) -> Result<Plan> {
        if let Some(plan) = self.work.read("plan.json")? {
            return Ok(plan);
        }
        let mut surveys: Vec<SiteSurvey> = Vec::new();
        for layer in 0..self.model.n_blocks() {
            surveys.extend(self.needed::<Vec<SiteSurvey>>(&survey_name(layer))?);
        }
        let plan = Plan::make(&self.model.sites(), &surveys, &self.settings)?;
        self.work.write("plan.json", &plan)?;
        Ok(plan)
    }

    fn needed<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.work.read(name)?.ok_or_else(|| Error::File {
            path: self.work.path(name),
            reason: "is not there yet: expected all shards to have finished this step".into(),
        })
    }

    /// Fits the matrices of a share of the blocks as planned.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan), of the model, of projections and of files; [`Error::Parameter`] for a share of a sequential fit, which
    /// needs all blocks before each.
    pub fn fit(&self, shard: Shard, progress: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let shard = checked(shard)?;
        if self.settings.sequential && shard.count > 1 {
            return Err(Error::parameter(
                "shard",
                format!("{}/{}", shard.index, shard.count),
                "one, for a sequential fit",
            ));
        }
        let plan = self.plan()?;
        let mut exec = self.exec();
        let sensitivities = self.sensitivities(&mut exec)?;
        let mut states: Option<(Hidden, Hidden)> = None;
        let open = |layer: usize| shard.takes(layer) && !self.work.path(&record_name(layer)).exists();
        let last = (0..self.model.n_blocks()).rev().find(|&layer| open(layer));
        for layer in 0..self.model.n_blocks() {
            if last.is_none_or(|last| layer > last) {
                if shard.takes(layer) {
                    progress(Event::Fitted { layer, block: &self.needed(&record_name(layer))? });
                }
                continue;
            }
            let (dense, seen) = match states.take() {
                Some(states) => states,
                None => {
                    let hidden = self.model.embed(self.tokens)?;
                    (hidden.clone(), hidden)
                }
            };
            let block = self.model.load_block(layer)?;
            let mut small = block.clone();
            let done = if open(layer) { None } else { self.work.read::<FittedBlock>(&record_name(layer))? };
            if done.is_some() {
                let file = Checkpoint::open(self.work.path(&block_name(layer)))?;
                for site in block.sites() {
                    small.replace(&site.name, Linear::load(&file, site.layer_name())?)?;
                }
            }
            // What a refinement reads: the states before the block, dense or compressed as each stage sees them.
            let before = (open(layer) && self.settings.refinement.is_some())
                .then(|| if self.settings.sequential { seen.clone() } else { dense.clone() });
            let (mut dense, mut seen) = (block.enter(dense, &mut exec)?, small.enter(seen, &mut exec)?);
            let mut fitted = Vec::new();
            while let Some(stage) = dense.stage() {
                if open(layer) {
                    let mut moments = Moments::new(dense.inputs().ncols());
                    match self.settings.sequential {
                        true => moments.accumulate_pair(dense.inputs(), seen.inputs())?,
                        false => moments.accumulate(dense.inputs())?,
                    }
                    for (fit, linear) in
                        self.fit_stage(&block, block.stage_sites(stage), (&moments, &sensitivities), &plan)?
                    {
                        small.replace(&fit.name, linear)?;
                        fitted.push(fit);
                    }
                }
                block.advance(&mut dense, &mut exec, &mut ())?;
                small.advance(&mut seen, &mut exec, &mut ())?;
            }
            let (dense, mut seen) = (dense.finish()?, seen.finish()?);
            let mut refined = None;
            if let (Some(before), Some(refinement)) = (before, &self.settings.refinement) {
                let seed = self.settings.seed.wrapping_add(layer as u64);
                refined = Some(refine(&mut small, &before, dense.values(), refinement, seed, &mut exec)?);
                if self.settings.sequential {
                    seen = small.forward(before, &mut exec, &mut ())?;
                }
            }
            states = Some((dense, seen));
            if open(layer) {
                let mut writer = Writer::new();
                for site in small.sites() {
                    small.linear(&site.name)?.save(&mut writer, site.layer_name())?;
                }
                writer.write(self.work.path(&block_name(layer)))?;
                let fitted = FittedBlock { matrices: fitted, refined };
                self.work.write(&record_name(layer), &fitted)?;
                progress(Event::Fitted { layer, block: &fitted });
            } else if let Some(done) = done {
                progress(Event::Fitted { layer, block: &done });
            }
        }
        Ok(())
    }

    fn fit_stage(
        &self,
        block: &Block,
        sites: &[Site],
        (moments, sensitivities): (&Moments, &Sensitivities),
        plan: &Plan,
    ) -> Result<Vec<(Fitted, Linear)>> {
        let one = |site: &Site| -> Result<(Fitted, Linear)> {
            let (linear, choice) = (block.linear(&site.name)?, plan.choice(&site.name)?);
            let w = linear.weight().to_dense_f64();
            let centred = self.settings.bias && linear.bias().is_some();
            let gram = moments.gram(centred, self.settings.dampening)?;
            let target = moments.target(&w, centred, self.settings.dampening)?;
            let options = Options {
                seed: self.settings.seed,
                max_iterations: Some(self.settings.iterations.1),
                ..Options::default()
            };
            let weights = sensitivities.weights(&site.name, self.settings.sensitivity);
            let (found, error) = choice.variant.fit(&target, &gram, weights.as_deref(), &options)?;
            let bias = match linear.bias() {
                Some(bias) if centred => {
                    let bias = moments.bias(&w, &found.matrix.to_dense_f64(), bias)?;
                    // As checkpoints hold it.
                    Some(bias.mapv(|v| f64::from(v as f32)))
                }
                bias => bias.cloned(),
            };
            let fitted = Fitted {
                name: site.name.clone(),
                choice: choice.clone(),
                params: found.report.params,
                bytes: found.report.bytes,
                factors: factor_shapes(&found.matrix.parts()),
                error,
                seconds: found.report.seconds,
            };
            Ok((fitted, Linear::new(found.matrix, bias.as_deref())?))
        };
        match self.parallelism.tasks() {
            1 => sites.iter().map(one).collect(),
            _ => sites.par_iter().map(one).collect(),
        }
    }

    /// The model, once all blocks are fitted.
    ///
    /// # Errors
    /// [`Error::File`] when blocks are missing.
    pub fn finish(&self) -> Result<CompressedModel<'a>> {
        let mut fitted = Vec::new();
        for layer in 0..self.model.n_blocks() {
            fitted.push(self.needed::<FittedBlock>(&record_name(layer))?);
        }
        let files = (0..self.model.n_blocks()).map(|layer| self.work.path(&block_name(layer))).collect();
        Ok(CompressedModel { model: self.model, plan: self.plan()?, fitted, files })
    }
}

impl CompressedModel<'_> {
    /// All matrices, in the order of execution.
    pub fn matrices(&self) -> impl Iterator<Item = &Fitted> {
        self.fitted.iter().flat_map(|block| &block.matrices)
    }

    /// Parameters of all fitted matrices.
    pub fn params(&self) -> usize {
        self.matrices().map(|fitted| fitted.params).sum()
    }

    /// Bytes of all fitted matrices.
    pub fn bytes(&self) -> usize {
        self.matrices().map(|fitted| fitted.bytes).sum()
    }

    /// Writes the model: compressed matrices in place of the dense ones, all other tensors as they are. A model of one file becomes one file at
    /// `path`; one of several files becomes as many, with their names and an index, in the folder `path`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`]; files appear whole or not at all, the index last.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let source = self.model.source();
        let mut replaced: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (layer, file) in self.files.iter().enumerate() {
            for site in self.model.architecture().block_sites(layer) {
                replaced.insert(format!("{}.bias", site.layer_name()), file.clone());
                replaced.insert(site.name, file.clone());
            }
        }
        // The names of each file, in its order.
        let mut files: BTreeMap<&Path, (&Checkpoint, BTreeSet<String>)> = BTreeMap::new();
        for name in source.names()? {
            let file = source.need(&name)?;
            files.entry(file.path()).or_insert_with(|| (file, BTreeSet::new())).1.insert(name);
        }
        let several = files.len() > 1 || source.path().extension().is_some_and(|ending| ending == "json");
        if several {
            std::fs::create_dir_all(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        }
        let mut index = BTreeMap::new();
        for (original, (file, names)) in files {
            let mut compressed: BTreeMap<&PathBuf, Checkpoint> = BTreeMap::new();
            for name in &names {
                if let Some(block) = replaced.get(name)
                    && !compressed.contains_key(block)
                {
                    compressed.insert(block, Checkpoint::open(block)?);
                }
            }
            let mut writer = Writer::new();
            for name in &names {
                match replaced.get(name).and_then(|block| compressed.get(block)) {
                    Some(block) if block.structured_shape(name).is_some() => {
                        writer.structured(name, block.load(name)?.as_ref())?;
                    }
                    Some(block) => writer.copy(block, name)?,
                    None => writer.copy(file, name)?,
                }
            }
            let Some(file_name) = original.file_name().filter(|_| several) else {
                return writer.write(path);
            };
            let target = path.join(file_name);
            writer.write(&target)?;
            let written = Checkpoint::open(&target)?;
            let text = file_name.to_string_lossy().into_owned();
            for name in written.all_tensors() {
                index.insert(name, text.clone());
            }
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": index });
        let text = serde_json::to_vec_pretty(&index)
            .map_err(|e| Error::File { path: path.to_owned(), reason: e.to_string() })?;
        crate::io::Staged::new(path.join("model.safetensors.index.json"), [text.as_slice()])?.commit()
    }
}

/// Where sensitivities are kept.
const SENSITIVITIES: &str = "sensitivities.json";

fn factor_shapes(parts: &Parts<'_>) -> Vec<(String, (usize, usize, usize))> {
    let own = parts.factors().map(|(name, factor)| (name.to_owned(), factor.shape()));
    let of_children = parts.children().iter().flat_map(|child| {
        let named = |(name, shape)| (format!("{}.{name}", child.structure()), shape);
        factor_shapes(child).into_iter().map(named)
    });
    own.chain(of_children).collect()
}

fn survey_name(layer: usize) -> String {
    format!("survey-{layer:03}.json")
}

fn block_name(layer: usize) -> String {
    format!("block-{layer:03}.safetensors")
}

fn record_name(layer: usize) -> String {
    format!("block-{layer:03}.json")
}

fn checked(shard: Shard) -> Result<Shard> {
    match shard.index < shard.count {
        true => Ok(shard),
        false => {
            let value = format!("{}/{}", shard.index, shard.count);
            Err(Error::parameter("shard", value, "i/n with 0 <= i < n"))
        }
    }
}

/// FNV-1a of ids and offsets.
fn hash(tokens: &Tokens) -> u64 {
    let ids = tokens.ids().iter().map(|id| u64::from(*id));
    let offsets = tokens.offsets().iter().map(|offset| *offset as u64);
    let bytes = ids.chain(offsets).flat_map(u64::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
