use super::block::{Block, Observer};
use super::hidden::Hidden;
use super::model::{Model, Output};
use super::tokens::Tokens;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::layers::Linear;
use crate::matrix::StructuredMatrix;
use ndarray::{Array2, ArrayRef2};

/// A transformer in memory; dense matrices and structured ones alike.
///
/// The tables of the embedding stay in the file.
///
/// ```no_run
/// use std::sync::Arc;
/// use structmat::io::Checkpoint;
/// use structmat::models::{Architecture, Model, Tokens, Transformer};
/// use structmat::prelude::*;
/// # fn main() -> structmat::Result<()> {
/// let file = Arc::new(Checkpoint::open("model.safetensors")?);
/// let encoder = Transformer::load(Model::new(Architecture::all_minilm_l6_v2(), file)?)?;
/// let tokens = Tokens::from_sequences([&[101, 7592, 102][..], &[101, 7592, 2088, 102]])?;
/// let embeddings = encoder.forward(&tokens, &mut Exec::new(), &mut ())?.sentence_embeddings();
/// println!("cosine {}", embeddings.row(0).dot(&embeddings.row(1)));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Transformer {
    model: Model,
    blocks: Vec<Block>,
    output: Output,
}

impl Transformer {
    /// Reads all blocks.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn load(model: Model) -> Result<Self> {
        let blocks = (0..model.n_blocks()).map(|layer| model.load_block(layer)).collect::<Result<_>>()?;
        let output = model.load_output()?;
        Ok(Self { model, blocks, output })
    }

    /// The model that was loaded.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The blocks, to replace their matrices.
    pub fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// What comes after the blocks.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// The block with the site called `name`.
    fn block_of(&self, name: &str) -> Result<usize> {
        let holds = |block: &Block| block.sites().iter().any(|site| site.name == name);
        self.blocks.iter().position(holds).ok_or_else(|| Error::Unknown {
            kind: "site",
            name: name.to_owned(),
            expected: "a weight of one of the blocks".to_owned(),
        })
    }

    /// The matrix and bias at a site.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is no such site.
    pub fn linear(&self, name: &str) -> Result<&Linear> {
        self.blocks[self.block_of(name)?].linear(name)
    }

    /// Puts another matrix there, with the bias that is there, and returns what stood there.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is no such site, [`Error::Shape`] when the matrix has another shape.
    pub fn replace_weight(&mut self, name: &str, weight: Box<dyn StructuredMatrix>) -> Result<Linear> {
        let block = self.block_of(name)?;
        self.blocks[block].replace_weight(name, weight)
    }

    /// Token ids to the hidden states after the last block and normalization. Memory grows with the number of tokens:
    /// [`Tokens::batches`] divides them.
    ///
    /// # Errors
    /// Those of [`Model::embed`] and of the observer.
    pub fn forward(
        &self,
        tokens: &Tokens,
        exec: &mut Exec<f32>,
        observer: &mut dyn Observer,
    ) -> Result<Hidden> {
        let mut hidden = self.model.embed(tokens)?;
        for block in &self.blocks {
            hidden = block.forward(hidden, exec, observer)?;
        }
        Ok(self.output.finish(hidden, exec))
    }

    /// Scores of every token; see [`Output::logits`].
    ///
    /// # Errors
    /// Those of [`Output::logits`].
    pub fn logits(&self, states: &ArrayRef2<f32>, exec: &mut Exec<f32>) -> Result<Array2<f32>> {
        self.output.logits(states, exec)
    }
}
