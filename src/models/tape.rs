use super::architecture::Placement;
use super::block::{Block, Observer};
use super::hidden::Hidden;
use super::pointwise::run;
use super::site::{Site, Stage};
use crate::activation::ActivateBack;
use crate::error::{Error, Result};
use crate::exec::{Exec, Policy};
use crate::layers::LinearVjp;
use ndarray::{Array2, ArrayRef2};

/// What went into the matrices of a block and what came out, which its gradients need. Made by [`Block::record`].
#[derive(Debug, Clone)]
pub struct Tape {
    hidden: Hidden,
    /// One for each stage.
    inputs: Vec<Array2<f32>>,
    /// One for each site.
    outputs: Vec<Array2<f32>>,
}

impl Observer for Tape {
    fn inputs(&mut self, _: &[Site], inputs: &ArrayRef2<f32>) -> Result<()> {
        self.inputs.push(inputs.to_owned());
        Ok(())
    }

    fn outputs(&mut self, _: &Site, outputs: &ArrayRef2<f32>) -> Result<()> {
        self.outputs.push(outputs.to_owned());
        Ok(())
    }
}

impl Tape {
    /// Refuses a tape of a block with other matrices.
    fn check(&self, sites: &[Site]) -> Result<()> {
        let tokens = self.hidden.values.nrows();
        let mut fits = self.inputs.len() == Stage::ALL.len() && self.outputs.len() == sites.len();
        for (site, y) in sites.iter().zip(&self.outputs) {
            let (out, inp) = site.shape;
            let x = self.inputs.get(site.stage as usize);
            fits &= y.dim() == (tokens, out) && x.is_some_and(|x| x.dim() == (tokens, inp));
        }
        match fits {
            true => Ok(()),
            false => {
                Err(Error::parameter("tape", "that of another block", "one that this block has recorded"))
            }
        }
    }
}

/// Gradients of a block, from [`Block::backward`].
#[derive(Debug, Clone)]
pub struct BlockGradients {
    /// With respect to the hidden states before it (tokens x hidden).
    pub hidden: Array2<f32>,
    /// With respect to the factors and biases of its matrices, one for each of [`Block::sites`]. Their `input` is the gradient of
    /// what went into this matrix alone.
    pub layers: Vec<LinearVjp<f32>>,
    /// With respect to what comes out of each of them (tokens x out).
    pub outputs: Vec<Array2<f32>>,
}

impl Block {
    /// [`forward`](Self::forward), and all that [`backward`](Self::backward) needs: about `12 tokens x hidden` numbers and
    /// `3 tokens x intermediate`.
    ///
    /// # Errors
    /// [`Error::Shape`] for states of another width.
    pub fn record(&self, hidden: Hidden, exec: &mut Exec<f32>) -> Result<(Hidden, Tape)> {
        let mut tape = Tape { hidden: hidden.clone(), inputs: Vec::new(), outputs: Vec::new() };
        Ok((self.forward(hidden, exec, &mut tape)?, tape))
    }

    /// From the gradient `d` of a loss with respect to the block's result (tokens x hidden) to those with respect to everything in
    /// it. About twice the time of the forward pass.
    ///
    /// # Errors
    /// [`Error::Shape`] when `d` is not of the result's shape, [`Error::Parameter`] when the tape is of a block of other sizes.
    pub fn backward(&self, tape: &Tape, d: Array2<f32>, exec: &mut Exec<f32>) -> Result<BlockGradients> {
        let mut back = Backward { block: self, tape, exec, layers: Vec::new(), outputs: Vec::new() };
        let hidden = back.run(d)?;
        // Found from the last site to the first.
        let (mut layers, mut outputs) = (back.layers, back.outputs);
        layers.reverse();
        outputs.reverse();
        Ok(BlockGradients { hidden, layers, outputs })
    }
}

/// A backward pass on its way.
struct Backward<'a> {
    block: &'a Block,
    tape: &'a Tape,
    exec: &'a mut Exec<f32>,
    /// Of the sites from the last on.
    layers: Vec<LinearVjp<f32>>,
    /// Likewise.
    outputs: Vec<Array2<f32>>,
}

impl Backward<'_> {
    fn run(&mut self, d: Array2<f32>) -> Result<Array2<f32>> {
        let (block, tape, policy) = (self.block, self.tape, self.exec.policy());
        let shape = tape.hidden.values.raw_dim();
        if d.raw_dim() != shape {
            return Err(Error::shape("gradient of a block's result", &[shape[0], shape[1]], d.shape()));
        }
        tape.check(block.sites())?;
        let d = if d.is_standard_layout() { d } else { d.as_standard_layout().into_owned() };
        // The states between the two halves of the block.
        let middle = match block.placement() {
            Placement::After => tape.inputs[Stage::MlpIn as usize].clone(),
            Placement::Before => {
                &tape.hidden.values + &tape.outputs[block.stage_range(Stage::AttentionOut)][0]
            }
        };
        let d = self.half(Stage::MlpOut, &middle, d, |back, d| {
            let up_and_gate = &tape.outputs[block.stage_range(Stage::MlpIn)];
            let d = back.activation(up_and_gate, d, policy);
            back.matrices(Stage::MlpIn, d)
        })?;
        self.half(Stage::AttentionOut, &tape.hidden.values, d, |back, d| {
            let outputs = &tape.outputs[block.stage_range(Stage::AttentionIn)];
            let [q, k, v] = outputs else {
                return Err(Error::parameter("attention", outputs.len(), "3 matrices"));
            };
            let d = block.attention().backward([q, k, v], &d, tape.hidden.offsets(), policy);
            back.matrices(Stage::AttentionIn, d.into())
        })
    }

    /// One half of the block, which ends with the one matrix of `last`: from the gradient of the states after it to that of the states
    /// before it, `before`. `inner` goes back from the input of the last matrix to that of the first ones.
    fn half(
        &mut self,
        last: Stage,
        before: &Array2<f32>,
        mut d: Array2<f32>,
        inner: impl FnOnce(&mut Self, Array2<f32>) -> Result<Array2<f32>>,
    ) -> Result<Array2<f32>> {
        let (policy, norm, placement) =
            (self.exec.policy(), self.block.norm_of(last), self.block.placement());
        if placement == Placement::After {
            let sum = before + &self.tape.outputs[self.block.stage_range(last)][0];
            norm.backward(&sum, &mut d, policy);
        }
        let through = self.matrices(last, vec![d.clone()])?;
        let mut through = inner(self, through)?;
        if placement == Placement::Before {
            norm.backward(before, &mut through, policy);
        }
        d += &through;
        Ok(d)
    }

    /// From the gradients of the outputs of a stage's matrices to that of their common input.
    fn matrices(&mut self, stage: Stage, d: Vec<Array2<f32>>) -> Result<Array2<f32>> {
        let x = &self.tape.inputs[stage as usize];
        let linears = &self.block.linears()[self.block.stage_range(stage)];
        let mut sum = Array2::zeros(x.raw_dim());
        for (linear, d) in linears.iter().zip(d).rev() {
            let vjp = linear.vjp(x, &d, self.exec)?;
            sum += &vjp.input;
            self.layers.push(vjp);
            self.outputs.push(d);
        }
        Ok(sum)
    }

    /// From the gradient of the activated states to those of the outputs that made them: gate, where there is one, and up.
    fn activation(&self, outputs: &[Array2<f32>], mut d: Array2<f32>, policy: Policy) -> Vec<Array2<f32>> {
        let activation = self.block.activation();
        let mut gate = outputs[..outputs.len() - 1].first().map(|gate| (gate, Array2::zeros(gate.raw_dim())));
        if let (Some(y), Some(d)) = (outputs[outputs.len() - 1].as_slice(), d.as_slice_mut()) {
            let gate = gate.as_mut().and_then(|(gate, d)| Some((gate.as_slice()?, d.as_slice_mut()?)));
            run(policy, ActivateBack { activation, gate, y, d });
        }
        gate.map(|(_, d)| d).into_iter().chain([d]).collect()
    }
}
