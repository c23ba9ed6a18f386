use super::architecture::{Architecture, Placement};
use super::attention::Attention;
use super::hidden::Hidden;
use super::norm::Normalization;
use super::pointwise::{over_rows, run};
use super::site::{Site, Stage};
use crate::activation::{Activate, Activation};
use crate::error::{Error, Result};
use crate::exec::{Exec, Policy};
use crate::io::Source;
use crate::layers::Linear;
use crate::matrix::StructuredMatrix;
use ndarray::{Array2, ArrayRef2};
use std::ops::Range;

/// Is told what goes into matrices and what comes out, while a model runs.
///
/// `()` looks at nothing; a closure `|sites: &[Site], inputs: &ArrayRef2<f32>| -> Result<()>` at the inputs alone. An error ends the run.
pub trait Observer {
    /// `inputs` (tokens x in) go into all of `sites`, the matrices of one stage of one block.
    ///
    /// # Errors
    /// Any: it ends the run.
    fn inputs(&mut self, sites: &[Site], inputs: &ArrayRef2<f32>) -> Result<()> {
        let _ = (sites, inputs);
        Ok(())
    }

    /// `outputs` (tokens x out), bias included, have come out of `site`.
    ///
    /// # Errors
    /// Any: it ends the run.
    fn outputs(&mut self, site: &Site, outputs: &ArrayRef2<f32>) -> Result<()> {
        let _ = (site, outputs);
        Ok(())
    }
}

impl Observer for () {}

impl<F: FnMut(&[Site], &ArrayRef2<f32>) -> Result<()>> Observer for F {
    fn inputs(&mut self, sites: &[Site], inputs: &ArrayRef2<f32>) -> Result<()> {
        self(sites, inputs)
    }
}

/// One block of a transformer: attention and MLP, with the matrices at their [`Site`]s.
///
/// [`forward`](Self::forward) runs it. To fit its matrices one stage after the other, each on the inputs that already replaced
/// ones produce, [`enter`](Self::enter) it and [`advance`](Self::advance) stage by stage:
///
/// ```
/// use structmat::models::{Block, Hidden};
/// use structmat::prelude::*;
/// fn compress(block: &mut Block, hidden: Hidden, exec: &mut Exec<f32>) -> structmat::Result<Hidden> {
///     let mut walk = block.enter(hidden, exec)?;
///     while let Some(stage) = walk.stage() {
///         let mut gram = Gram::new(walk.inputs().ncols());
///         gram.accumulate(walk.inputs())?;
///         for site in block.stage_sites(stage).to_vec() {
///             let w = block.linear(&site.name)?.weight().to_dense::<f32>();
///             let spec = LowRank::for_budget(site.shape, Budget::Ratio(0.5))?;
///             let fit = LowRank::project(&w, &spec, &Objective::Activations(&gram), &Options::default())?;
///             block.replace_weight(&site.name, Box::new(fit.matrix))?;
///         }
///         block.advance(&mut walk, exec, &mut ())?;
///     }
///     walk.finish()
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Block {
    hidden: usize,
    placement: Placement,
    activation: Activation,
    attention: Attention,
    attention_norm: Normalization,
    mlp_norm: Normalization,
    sites: Vec<Site>,
    /// One for each site.
    linears: Vec<Linear>,
}

/// Hidden states on their way through a block, before one of its stages.
#[derive(Debug, Clone)]
pub struct Walk {
    hidden: Hidden,
    /// What the next stage's matrices read, where that is not the hidden states themselves.
    input: Option<Array2<f32>>,
    stage: Option<Stage>,
}

impl Walk {
    /// The stage that comes next; `None` after the last.
    pub fn stage(&self) -> Option<Stage> {
        self.stage
    }

    /// The inputs of that stage's matrices (tokens x in); after the last stage, the block's result.
    pub fn inputs(&self) -> &Array2<f32> {
        self.input.as_ref().unwrap_or(&self.hidden.values)
    }

    /// The block's result.
    ///
    /// # Errors
    /// [`Error::Parameter`] when stages are left.
    pub fn finish(self) -> Result<Hidden> {
        match self.stage {
            None => Ok(self.hidden),
            Some(stage) => {
                Err(Error::parameter("walk", format!("before {stage}"), "one that has passed all stages"))
            }
        }
    }
}

impl Block {
    /// Reads one block. The source has been checked against the architecture.
    pub(super) fn load(architecture: &Architecture, source: &dyn Source, layer: usize) -> Result<Self> {
        let tensors = &architecture.tensors.block;
        let norm = |name: &str| Normalization::load(architecture, source, &architecture.tensor(name, layer));
        let sites = architecture.block_sites(layer);
        let linear = |site: &Site| -> Result<Linear> {
            let linear = Linear::load(source, site.layer_name())?;
            check_shape(site, &linear)?;
            Ok(linear)
        };
        let linears = sites.iter().map(linear).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            hidden: architecture.sizes.hidden,
            placement: architecture.norm.placement,
            activation: architecture.activation,
            attention: Attention::new(architecture),
            attention_norm: norm(&tensors.attention_norm)?,
            mlp_norm: norm(&tensors.mlp_norm)?,
            sites,
            linears,
        })
    }

    /// Where its matrices stand, in the order of their execution.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The sites of one stage, which share their input.
    pub fn stage_sites(&self, stage: Stage) -> &[Site] {
        &self.sites[self.stage_range(stage)]
    }

    pub(super) fn stage_range(&self, stage: Stage) -> Range<usize> {
        self.sites.partition_point(|site| site.stage < stage)
            ..self.sites.partition_point(|site| site.stage <= stage)
    }

    /// The matrix and bias at the site called `name`.
    ///
    /// # Errors
    /// [`Error::Unknown`] when the block has no such site.
    pub fn linear(&self, name: &str) -> Result<&Linear> {
        Ok(&self.linears[self.position(name)?])
    }

    /// Puts another matrix and bias there, and returns what stood there.
    ///
    /// # Errors
    /// [`Error::Unknown`] when the block has no such site, [`Error::Shape`] when the new matrix has another shape.
    pub fn replace(&mut self, name: &str, linear: Linear) -> Result<Linear> {
        let position = self.position(name)?;
        check_shape(&self.sites[position], &linear)?;
        Ok(std::mem::replace(&mut self.linears[position], linear))
    }

    /// Puts another matrix there, with the bias that is there, and returns what stood there.
    ///
    /// # Errors
    /// Those of [`replace`](Self::replace).
    pub fn replace_weight(&mut self, name: &str, weight: Box<dyn StructuredMatrix>) -> Result<Linear> {
        let linear = self.linear(name)?.with_weight(weight)?;
        self.replace(name, linear)
    }

    pub(super) fn linears(&self) -> &[Linear] {
        &self.linears
    }

    pub(super) fn attention(&self) -> &Attention {
        &self.attention
    }

    pub(super) fn activation(&self) -> Activation {
        self.activation
    }

    pub(super) fn placement(&self) -> Placement {
        self.placement
    }

    fn position(&self, name: &str) -> Result<usize> {
        let position = self.sites.iter().position(|site| site.name == name);
        position.ok_or_else(|| {
            let names: Vec<&str> = self.sites.iter().map(|site| site.name.as_str()).collect();
            Error::Unknown { kind: "site", name: name.to_owned(), expected: names.join(", ") }
        })
    }

    /// Runs the block: hidden states (tokens x hidden) before it to those after it.
    ///
    /// # Errors
    /// [`Error::Shape`] for states of another width, and those of the observer.
    pub fn forward(
        &self,
        hidden: Hidden,
        exec: &mut Exec<f32>,
        observer: &mut dyn Observer,
    ) -> Result<Hidden> {
        let mut walk = self.enter(hidden, exec)?;
        while walk.stage.is_some() {
            self.advance(&mut walk, exec, observer)?;
        }
        walk.finish()
    }

    /// Begins to run the block, up to the inputs of its first stage.
    ///
    /// # Errors
    /// [`Error::Shape`] for states of another width.
    pub fn enter(&self, hidden: Hidden, exec: &mut Exec<f32>) -> Result<Walk> {
        hidden.check_width(self.hidden)?;
        let mut walk = Walk { hidden, input: None, stage: Some(Stage::AttentionIn) };
        self.normalize_before(&mut walk, exec.policy());
        Ok(walk)
    }

    /// Runs one stage, up to the inputs of the next one.
    ///
    /// # Errors
    /// [`Error::Shape`] for a walk through a block of other sizes, [`Error::Parameter`] when no stage is left, and those of the observer;
    /// the walk then stands where it stood.
    pub fn advance(&self, walk: &mut Walk, exec: &mut Exec<f32>, observer: &mut dyn Observer) -> Result<()> {
        let Some(stage) = walk.stage else {
            return Err(Error::parameter("walk", "after the last stage", "one with a stage left"));
        };
        walk.hidden.check_width(self.hidden)?;
        let policy = exec.policy();
        let mut outputs = self.multiply(stage, walk.inputs(), exec, observer)?.into_iter();
        match (stage, outputs.next(), outputs.next(), outputs.next()) {
            (Stage::AttentionIn, Some(q), Some(k), Some(v)) => {
                walk.input = Some(self.attention.run(q, k, &v, &walk.hidden.offsets, policy));
            }
            (Stage::MlpIn, Some(up), None, None) => walk.input = Some(self.activate(None, up, policy)),
            (Stage::MlpIn, Some(gate), Some(up), None) => {
                walk.input = Some(self.activate(Some(gate), up, policy));
            }
            (Stage::AttentionOut | Stage::MlpOut, Some(y), None, None) => {
                walk.input = None;
                walk.hidden.values += &y;
                if self.placement == Placement::After {
                    self.norm_of(stage).apply(&mut walk.hidden.values, policy);
                }
            }
            _ => return Err(Error::parameter("stage", stage, "the matrices that its kind of block has")),
        }
        walk.stage = stage.next();
        self.normalize_before(walk, policy);
        Ok(())
    }

    /// Inputs times each matrix of a stage.
    fn multiply(
        &self,
        stage: Stage,
        x: &ArrayRef2<f32>,
        exec: &mut Exec<f32>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Array2<f32>>> {
        let range = self.stage_range(stage);
        let (sites, linears) = (&self.sites[range.clone()], &self.linears[range]);
        observer.inputs(sites, x)?;
        let output = |(site, linear): (&Site, &Linear)| {
            let mut y = Array2::zeros((x.nrows(), linear.out_features()));
            linear.forward_into(x, &mut y, exec)?;
            observer.outputs(site, &y)?;
            Ok(y)
        };
        sites.iter().zip(linears).map(output).collect()
    }

    /// The normalized hidden states become the input of a stage that begins a part of the block, where norms stand before the parts.
    fn normalize_before(&self, walk: &mut Walk, policy: Policy) {
        if let (Placement::Before, Some(stage @ (Stage::AttentionIn | Stage::MlpIn))) =
            (self.placement, walk.stage)
        {
            let mut input = walk.hidden.values.clone();
            self.norm_of(stage).apply(&mut input, policy);
            walk.input = Some(input);
        }
    }

    pub(super) fn norm_of(&self, stage: Stage) -> &Normalization {
        match stage {
            Stage::AttentionIn | Stage::AttentionOut => &self.attention_norm,
            Stage::MlpIn | Stage::MlpOut => &self.mlp_norm,
        }
    }

    fn activate(&self, gate: Option<Array2<f32>>, mut y: Array2<f32>, policy: Policy) -> Array2<f32> {
        let width = y.ncols();
        let gate = gate.as_ref().and_then(|gate| gate.as_slice());
        over_rows(policy.tasks(16 * y.len()), 0, y.view_mut(), &|first, rows| {
            if let Some(y) = rows.into_slice() {
                let gate = gate.map(|gate| &gate[first * width..first * width + y.len()]);
                run(policy, Activate { activation: self.activation, gate, y });
            }
        });
        y
    }
}

/// Attention reads what matrices return in pieces: their shapes must be those of their sites.
fn check_shape(site: &Site, linear: &Linear) -> Result<()> {
    let (m, n) = site.shape;
    match linear.weight().shape() == (m, n) {
        true => Ok(()),
        false => {
            Err(Error::shape("matrix of a site", &[m, n], &[linear.out_features(), linear.in_features()]))
        }
    }
}
