//! Where fits of experts start: the best factors of groups that share one basis matrix each.

use super::{ExpertsSpec, Mixing};
use crate::activation::Activation;
use crate::error::Result;
use crate::linalg::{self, SpdSolver, SvdMethod, SvdOptions, matmul, matmul_tn};
use crate::projection::{Objective, Run};
use crate::sharing::RIDGE;
use ndarray::{Array2, s};

/// Largest magnitude of an entry of $f(B)$ at the start: where the activations bend little, and far from the ends of their ranges.
const REACH: f64 = 0.2;
/// What an expert's own basis matrix weighs in a softmax at the start.
const OWN: f64 = 0.9;

/// Left factors, basis matrices, and mixing weights (experts x atoms).
#[derive(Debug, Clone)]
pub(super) struct Factors {
    pub(super) left: Vec<Array2<f64>>,
    pub(super) basis: Vec<Array2<f64>>,
    pub(super) mix: Array2<f64>,
}

impl Factors {
    /// `sum_i a_ei B_i`.
    pub(super) fn mixed(&self, e: usize) -> Array2<f64> {
        let mut sum = Array2::zeros(self.basis[0].dim());
        for (b, c) in self.basis.iter().zip(self.mix.row(e)) {
            sum.scaled_add(*c, b);
        }
        sum
    }

    /// Solves left factors by least squares for given right ones: $A_e F C F^T = W_e C F^T$.
    pub(super) fn solve_left(
        &mut self,
        weights: &[Array2<f64>],
        activation: Activation,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<()> {
        for (e, w) in weights.iter().enumerate() {
            run.check()?;
            let right = self.mixed(e).mapv_into(|v| activation.at(v));
            let seen = match objective.second_moment() {
                None => right.t().as_standard_layout().into_owned(),
                Some(c) => linalg::matmul_nt(c, &right, run.threads()),
            };
            let normal = matmul(&right, &seen, run.threads());
            // For the change, so that what no input sees stays.
            let missed = w - &matmul(&self.left[e], &right, run.threads());
            self.left[e] +=
                &SpdSolver::new(&normal, RIDGE)?.solve_right(&matmul(&missed, &seen, run.threads()));
        }
        Ok(())
    }
}

/// The group of each expert: consecutive ones, as even as may be.
pub(super) fn group(e: usize, experts: usize, atoms: usize) -> usize {
    // The last group that starts at or before `e`.
    (0..atoms).rev().find(|g| g * experts / atoms <= e).unwrap_or(0)
}

/// Truncated decompositions of the stacked experts of each group: orthonormal left factors cut into experts, right factors as basis. With a
/// second moment $P P^T W$ for the leading vectors `P` of $W C^{1/2}$, as for low-rank matrices.
pub(super) fn groups(
    weights: &[Array2<f64>],
    spec: &ExpertsSpec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<Factors> {
    let (count, (p, d), ExpertsSpec { rank, atoms, .. }) = (weights.len(), weights[0].dim(), *spec);
    let (mut left, mut basis) = (Vec::with_capacity(count), Vec::with_capacity(atoms));
    for g in 0..atoms {
        let members = g * count / atoms..(g + 1) * count / atoms;
        let mut stack = Array2::zeros((members.len() * p, d));
        for (k, e) in members.clone().enumerate() {
            stack.slice_mut(s![k * p..(k + 1) * p, ..]).assign(&weights[e]);
        }
        let seen = objective.root()?.map(|root| matmul(&stack, root, run.threads()));
        let options = SvdOptions { method: SvdMethod::Exact, seed: run.seed(), ..Default::default() };
        let u = linalg::truncated_svd(seen.as_ref().unwrap_or(&stack), rank, &options, run.threads())?.svd.u;
        basis.push(matmul_tn(&u, &stack, run.threads()));
        left.extend((0..members.len()).map(|k| u.slice(s![k * p..(k + 1) * p, ..]).to_owned()));
    }
    let mix =
        Array2::from_shape_fn((count, atoms), |(e, i)| f64::from(u8::from(group(e, count, atoms) == i)));
    Ok(Factors { left, basis, mix })
}

/// The same function in other numbers: the basis is such that after mixing and activation it is what it was before both, and `mix` holds
/// the logits of a softmax where one is asked for.
pub(super) fn through(mut factors: Factors, spec: &ExpertsSpec) -> Factors {
    let atoms = spec.atoms;
    for (i, basis) in factors.basis.iter_mut().enumerate() {
        if spec.activation == Activation::Identity {
            continue;
        }
        let most = basis.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        let scale = if most > 0.0 { REACH / most } else { 1.0 };
        basis.mapv_inplace(|v| inverse(spec.activation, scale * v));
        let count = factors.left.len();
        for (e, left) in factors.left.iter_mut().enumerate() {
            if group(e, count, atoms) == i {
                *left /= scale;
            }
        }
    }
    if spec.mixing == Mixing::Softmax && atoms > 1 {
        let others = (1.0 - OWN) / (atoms - 1) as f64;
        // The inverse of mixing: (alpha I + beta 1 1ᵀ)⁻¹ = (I - beta 1 1ᵀ) / alpha, as its rows add up to 1.
        let alpha = OWN - others;
        let sum = factors.basis.iter().fold(Array2::zeros(factors.basis[0].dim()), |sum, b| sum + b);
        for basis in &mut factors.basis {
            basis.scaled_add(-others, &sum);
            *basis /= alpha;
        }
        let logit = (OWN / others).ln();
        factors.mix *= logit;
    }
    factors
}

/// The number near 0 with $f(x) = y$, for small `y`.
fn inverse(activation: Activation, y: f64) -> f64 {
    match activation {
        Activation::Tanh => y.atanh(),
        Activation::Silu => {
            // Rising from -1.28 on, and convex there: Newton's steps fall to the solution from the second on.
            let mut x = 2.0 * y;
            for _ in 0..60 {
                let step = (activation.at(x) - y) / activation.slope(x);
                x = (x - step).max(-1.2);
                if step.abs() <= 1e-16 * x.abs() {
                    break;
                }
            }
            x
        }
        _ => y,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_inverted() {
        for f in [Activation::Identity, Activation::Silu, Activation::Tanh] {
            for k in -100..=100 {
                let y = REACH * f64::from(k) / 100.0;
                assert!((f.at(inverse(f, y)) - y).abs() < 1e-15, "{f:?} {y}");
            }
        }
    }

    #[test]
    fn groups_are_consecutive_and_even() {
        let of = |experts, atoms| (0..experts).map(|e| group(e, experts, atoms)).collect::<Vec<_>>();
        assert_eq!(of(6, 3), [0, 0, 1, 1, 2, 2]);
        assert_eq!(of(7, 3), [0, 0, 1, 1, 2, 2, 2]);
        assert_eq!(of(3, 3), [0, 1, 2]);
        for (experts, atoms) in [(7, 3), (11, 4), (5, 5), (9, 2)] {
            for (e, g) in of(experts, atoms).into_iter().enumerate() {
                assert!((g * experts / atoms..(g + 1) * experts / atoms).contains(&e));
            }
        }
    }
}
