use super::architecture::{Architecture, Head, NormKind};
use super::block::Block;
use super::hidden::Hidden;
use super::norm::Normalization;
use super::site::Site;
use super::tokens::Tokens;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::io::Source;
use crate::layers::Linear;
use ndarray::{Array2, ArrayRef2, s};
use std::sync::Arc;

/// A transformer in a file: its description, and where its tensors are. Nothing is read but what is asked for, so that models
/// larger than memory can be walked through block by block.
///
/// ```no_run
/// use structmat::models::{Architecture, Model, Tokens};
/// use structmat::prelude::*;
/// # fn main() -> structmat::Result<()> {
/// let model = Model::new(Architecture::load("config.json")?, structmat::io::open("model.safetensors.index.json")?)?;
/// let mut exec = Exec::new();
/// let mut hidden = model.embed(&Tokens::from_sequences([[1, 2, 3]])?)?;
/// for layer in 0..model.n_blocks() {
///     hidden = model.load_block(layer)?.forward(hidden, &mut exec, &mut ())?; // one block in memory at a time
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Model {
    architecture: Architecture,
    source: Arc<dyn Source>,
}

impl Model {
    /// Checks the description, and the names and shapes of all tensors that it speaks of.
    ///
    /// # Errors
    /// Those of [`Architecture::check`] and [`Source::find`], [`Error::Unknown`] for a tensor that is not there, [`Error::File`] for one of another
    /// shape, and for a bias that is there although the description has none.
    pub fn new(architecture: Architecture, source: Arc<dyn Source>) -> Result<Self> {
        architecture.check()?;
        let model = Self { architecture, source };
        model.check()?;
        Ok(model)
    }

    /// The description.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Where the tensors are.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// The sites of all blocks, in the order of their execution.
    pub fn sites(&self) -> Vec<Site> {
        self.architecture.sites()
    }

    /// Number of blocks.
    pub fn n_blocks(&self) -> usize {
        self.architecture.sizes.layers
    }

    /// Hidden states before the first block. Of the tables, only the rows of these tokens are read.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an id beyond the vocabulary or a sequence longer than the positions, [`Error::File`].
    pub fn embed(&self, tokens: &Tokens) -> Result<Hidden> {
        let sizes = &self.architecture.sizes;
        let names = &self.architecture.tensors.embedding;
        if let Some(id) = tokens.ids().iter().find(|id| **id as usize >= sizes.vocabulary) {
            return Err(Error::parameter(
                "token id",
                id,
                format!("less than the vocabulary, {}", sizes.vocabulary),
            ));
        }
        let longest = tokens.sequences().map(<[u32]>::len).max().unwrap_or(0);
        if longest > sizes.max_positions {
            return Err(Error::parameter(
                "length of a sequence",
                longest,
                format!("at most {}", sizes.max_positions),
            ));
        }
        let rows = |name: &str, rows: &[u32]| -> Result<Array2<f32>> {
            let name = self.architecture.tensor(name, 0) + ".weight";
            self.source.need(&name)?.rows(&name, rows)
        };
        let mut values = rows(&names.tokens, tokens.ids())?;
        if let Some(name) = &names.positions {
            let positions = rows(name, &(0..longest as u32).collect::<Vec<_>>())?;
            for ends in tokens.offsets().windows(2) {
                let mut states = values.slice_mut(s![ends[0]..ends[1], ..]);
                states += &positions.slice(s![..ends[1] - ends[0], ..]);
            }
        }
        if let Some(name) = &names.token_types {
            values += &rows(name, &[0])?;
        }
        if let Some(name) = &names.norm {
            self.norm(name)?.apply(&mut values, Exec::<f32>::new().policy());
        }
        Ok(Hidden { values, offsets: tokens.offsets().into() })
    }

    /// Reads a block.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there are fewer blocks, [`Error::File`].
    pub fn load_block(&self, layer: usize) -> Result<Block> {
        if layer >= self.n_blocks() {
            return Err(Error::parameter("block", layer, format!("less than {}", self.n_blocks())));
        }
        Block::load(&self.architecture, self.source.as_ref(), layer)
    }

    /// Reads what comes after the blocks.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn load_output(&self) -> Result<Output> {
        let tensors = &self.architecture.tensors;
        let norm = tensors.final_norm.as_deref().map(|name| self.norm(name)).transpose()?;
        let head = self.head_name().map(|name| Linear::load(self.source.as_ref(), &name)).transpose()?;
        Ok(Output { norm, head })
    }

    fn norm(&self, name: &str) -> Result<Normalization> {
        Normalization::load(&self.architecture, self.source.as_ref(), &self.architecture.tensor(name, 0))
    }

    /// Without `.weight`.
    fn head_name(&self) -> Option<String> {
        let tensors = &self.architecture.tensors;
        let name = match tensors.head.as_ref()? {
            Head::Tied => &tensors.embedding.tokens,
            Head::Untied(name) => name,
        };
        Some(self.architecture.tensor(name, 0))
    }

    /// Checks names and shapes of all tensors; reads headers only.
    fn check(&self) -> Result<()> {
        let Architecture { sizes, norm, biases, tensors, .. } = &self.architecture;
        let full = |name: &str, layer| self.architecture.tensor(name, layer);
        let check_norm = |name: String| {
            self.expect(&format!("{name}.weight"), &[sizes.hidden])?;
            match norm.kind {
                NormKind::LayerNorm => self.expect(&format!("{name}.bias"), &[sizes.hidden]),
                NormKind::RmsNorm => self.expect_none(&format!("{name}.bias"), "a mean-square normalization"),
            }
        };
        let table = |name: &String, rows: usize| -> Result<()> {
            let name = full(name, 0) + ".weight";
            self.expect(&name, &[rows, sizes.hidden])?;
            let file = self.source.need(&name)?;
            match file.shape(&name) {
                Some(_) => Ok(()),
                None => Err(
                    self.bad(&name, "is a structured matrix; a table must be an ordinary tensor".to_owned())?
                ),
            }
        };
        let embedding = &tensors.embedding;
        table(&embedding.tokens, sizes.vocabulary)?;
        embedding.positions.iter().try_for_each(|name| table(name, sizes.max_positions))?;
        if let Some(name) = &embedding.token_types {
            // As many rows as there are types: at least one.
            let full = full(name, 0) + ".weight";
            let rows = self.source.need(&full)?.shape(&full).and_then(|shape| shape.first().copied());
            table(name, rows.unwrap_or(1).max(1))?;
        }
        for name in [&embedding.norm, &tensors.final_norm].into_iter().flatten() {
            check_norm(full(name, 0))?;
        }
        if let Some(name) = self.head_name() {
            self.expect(&format!("{name}.weight"), &[sizes.vocabulary, sizes.hidden])?;
        }
        for layer in 0..sizes.layers {
            for site in self.architecture.block_sites(layer) {
                let (m, n) = site.shape;
                self.expect(&site.name, &[m, n])?;
                let bias = format!("{}.bias", site.layer_name());
                match biases.contains(&site.stage) {
                    true => self.expect(&bias, &[m])?,
                    false => self.expect_none(&bias, &format!("{} matrices without biases", site.stage))?,
                }
            }
            check_norm(full(&tensors.block.attention_norm, layer))?;
            check_norm(full(&tensors.block.mlp_norm, layer))?;
        }
        Ok(())
    }

    fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        let Some(file) = self.source.find(name)? else {
            let expected = format!("one of shape {shape:?} in {}", self.source.path().display());
            return Err(Error::Unknown { kind: "tensor", name: name.to_owned(), expected });
        };
        let found = match (file.shape(name), file.structured_shape(name)) {
            (Some(shape), _) => shape.to_vec(),
            (None, Some((m, n))) => vec![m, n],
            (None, None) => Vec::new(),
        };
        match found == shape {
            true => Ok(()),
            false => Err(self.bad(name, format!("has shape {found:?}, the description says {shape:?}"))?),
        }
    }

    fn expect_none(&self, name: &str, described: &str) -> Result<()> {
        match self.source.find(name)? {
            None => Ok(()),
            Some(_) => Err(self.bad(name, format!("is there, the description has {described}"))?),
        }
    }

    fn bad(&self, name: &str, what: String) -> Result<Error> {
        let path = self.source.need(name)?.path().to_owned();
        Ok(Error::File { path, reason: format!("tensor `{name}` {what}") })
    }
}

/// What comes after the blocks: a last normalization, and the head that scores every token, where a model has them.
#[derive(Debug, Clone)]
pub struct Output {
    norm: Option<Normalization>,
    head: Option<Linear>,
}

impl Output {
    /// The last normalization.
    pub fn finish(&self, mut hidden: Hidden, exec: &mut Exec<f32>) -> Hidden {
        if let Some(norm) = &self.norm {
            norm.apply(&mut hidden.values, exec.policy());
        }
        hidden
    }

    /// From the gradient of the finished states to that of the states before, `hidden` (both tokens x hidden).
    pub(crate) fn backward(
        &self,
        hidden: &Array2<f32>,
        mut d: Array2<f32>,
        exec: &mut Exec<f32>,
    ) -> Array2<f32> {
        if let Some(norm) = &self.norm {
            norm.backward(hidden, &mut d, exec.policy());
        }
        d
    }

    /// Scores of every token (rows x vocabulary) from finished hidden states (rows x hidden), such as the last ones of each sequence.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model without a head, [`Error::Shape`].
    pub fn logits(&self, states: &ArrayRef2<f32>, exec: &mut Exec<f32>) -> Result<Array2<f32>> {
        let Some(head) = &self.head else {
            let what = "no head: it makes hidden states only".to_owned();
            return Err(Error::Unsupported { structure: "model".to_owned(), what });
        };
        let mut y = Array2::zeros((states.nrows(), head.out_features()));
        head.forward_into(states, &mut y, exec)?;
        Ok(y)
    }
}
