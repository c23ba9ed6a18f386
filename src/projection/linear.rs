//! Weighted projections onto linear families, `Ŵ = sum_k θ_k B_k`: conjugate gradients on the normal equations.

use super::{Fit, Run, ratio};
use crate::error::Result;
use crate::exec::{Exec, Parallelism};
use crate::linalg;
use crate::matrix::{Apply, StructuredMatrix, Update};
use ndarray::{Array2, ArrayRef2};

/// Steps at most, where the caller did not say.
const STEPS: usize = 300;

/// Squared preconditioned residuals below this fraction of the weight's energy count as solved.
const SOLVED: f64 = 1e-20;

/// A weight and the activations that its error is measured with.
#[derive(Debug)]
pub(crate) struct Weighted<'a> {
    c: &'a Array2<f64>,
    run: &'a Run<'a>,
    /// `(W C)ᵀ`, in x out.
    moments: Array2<f64>,
    /// `tr(W C Wᵀ)`.
    pub(crate) scale: f64,
}

/// Where the solution of a [`Weighted`] problem ended.
#[derive(Debug)]
pub(crate) struct Solution {
    /// The parameters.
    pub(crate) theta: Vec<f64>,
    /// `tr((W - Ŵ) C (W - Ŵ)ᵀ)`, up to a rounding error of `tr(W C Wᵀ)`.
    pub(crate) energy: f64,
    /// The relative error after each step, never rising.
    pub(crate) history: Vec<f64>,
    /// Whether the normal equations are solved.
    pub(crate) solved: bool,
}

impl Solution {
    /// The parameters with what is known about them.
    pub(crate) fn into_fit(self) -> Fit<Vec<f64>> {
        match self.solved {
            true => Fit {
                history: self.history.clone(),
                iterations: self.history.len(),
                ..Fit::optimal(self.theta)
            },
            false => Fit::local(self.theta, self.history),
        }
    }
}

impl<'a> Weighted<'a> {
    pub(crate) fn new(w: &Array2<f64>, c: &'a Array2<f64>, run: &'a Run<'a>) -> Self {
        let moments = linalg::matmul_nt(c, w, run.threads());
        let scale = moments.t().iter().zip(w).map(|(a, b)| a * b).sum::<f64>().max(0.0);
        Self { c, run, moments, scale }
    }

    /// Mean of the diagonal of `C`, or 1 where that is 0: the scale of a preconditioner.
    pub(crate) fn mean_power(&self) -> f64 {
        let mean = self.c.diag().sum() / self.c.nrows() as f64;
        if mean > 0.0 { mean } else { 1.0 }
    }

    /// `(Ŵ C)ᵀ`, in x out.
    fn product(&self, member: &impl StructuredMatrix) -> Result<Array2<f64>> {
        let threads = match self.run.threads().0 {
            0 | 1 => Parallelism::Seq,
            n => Parallelism::Threads(n),
        };
        let mut y = Array2::zeros(self.moments.dim());
        let mut exec = Exec::new().with_parallelism(threads);
        member.apply_into(self.c, &mut y, Update::Overwrite, &mut exec)?;
        Ok(y)
    }

    /// Lowers the weighted error from `start` in at most `steps` steps, to its minimum where they suffice. `member` makes `Ŵ` of
    /// parameters in `f64`, `adjoint` maps `Eᵀ` (in x out) to `<E, B_k>`, `precondition` applies an approximate inverse of the
    /// normal equations. The start is returned when no step lowers the error.
    pub(crate) fn solve<M: StructuredMatrix>(
        &self,
        start: Vec<f64>,
        steps: Option<usize>,
        member: impl Fn(&[f64]) -> Result<M>,
        adjoint: impl Fn(&ArrayRef2<f64>) -> Vec<f64>,
        precondition: impl Fn(&[f64]) -> Vec<f64>,
    ) -> Result<Solution> {
        let total = steps.unwrap_or_else(|| self.run.max_iterations(STEPS));
        let mut theta = start;
        let normal = |theta: &[f64]| Ok::<_, crate::Error>(adjoint(&self.product(&member(theta)?)?));
        let (target, image) = (adjoint(&self.moments), normal(&theta)?);
        let mut energy = self.scale - 2.0 * dot(&theta, &target) + dot(&theta, &image);
        let mut residual: Vec<f64> = target.iter().zip(&image).map(|(a, b)| a - b).collect();
        let mut gradient = precondition(&residual);
        let mut direction = gradient.clone();
        let mut power = dot(&residual, &gradient);
        let mut history = Vec::new();
        let is_solved = |power: f64| power <= SOLVED * self.scale;
        while !is_solved(power) && history.len() < total {
            let image = normal(&direction)?;
            let curvature = dot(&direction, &image);
            let step = power / curvature;
            if !(curvature > 0.0 && step.is_finite()) {
                break;
            }
            add_scaled(&mut theta, step, &direction);
            add_scaled(&mut residual, -step, &image);
            energy -= step * power;
            let error = ratio(energy.max(0.0).sqrt(), self.scale.sqrt());
            history.push(error);
            if steps.is_none() {
                self.run.step(history.len(), total, Some(error))?;
            } else {
                self.run.check()?;
            }
            gradient = precondition(&residual);
            let next = dot(&residual, &gradient);
            let turn = next / power;
            direction.iter_mut().zip(&gradient).for_each(|(d, g)| *d = g + turn * *d);
            power = next;
        }
        Ok(Solution { theta, energy: energy.max(0.0), history, solved: is_solved(power) })
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(a: &mut [f64], scale: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += scale * b);
}
