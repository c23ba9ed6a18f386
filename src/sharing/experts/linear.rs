//! Experts without an activation: alternating least squares.

use super::ExpertsSpec;
use super::fit::energy;
use super::start::{self, Factors};
use crate::activation::Activation;
use crate::error::Result;
use crate::linalg::{SpdSolver, gram, matmul, matmul_nt, matmul_tn};
use crate::projection::{Objective, Run, Stop, descend};
use crate::sharing::{JOINT, RIDGE};
use ndarray::{Array2, Axis, concatenate, s};

/// The factors, and the relative error after each sweep.
pub(super) fn fit(
    weights: &[Array2<f64>],
    spec: &ExpertsSpec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<(Factors, Vec<f64>)> {
    let start = start::groups(weights, spec, objective, run)?;
    let of = |factors: &Factors| energy(weights, factors, Activation::Identity, objective);
    let (first, scale) = (of(&start), weights.iter().map(|w| objective.energy(w)).sum());
    let stop = Stop { sweeps: 200, tolerance: 1e-8 };
    let found = descend(run, stop, scale, start, first, |factors, _, _| {
        factors.solve_left(weights, Activation::Identity, objective, run)?;
        solve_mix(weights, factors, objective, run)?;
        solve_basis(weights, factors, run)?;
        Ok(of(factors))
    })?;
    Ok((found.state, found.history))
}

/// $G a = h$ with $G_{ij} = \mathrm{tr}(B_i^T A^T A B_j C)$ and $h_i = \mathrm{tr}(B_i^T A^T W C)$, for each expert.
fn solve_mix(
    weights: &[Array2<f64>],
    factors: &mut Factors,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<()> {
    let (atoms, rank) = (factors.basis.len(), factors.basis[0].nrows());
    let views: Vec<_> = factors.basis.iter().map(|b| b.view()).collect();
    let stack = concatenate(Axis(0), &views).map_err(|_| crate::Error::NoConvergence("the stacked basis"))?;
    let seen = objective.second_moment().map(|c| matmul(&stack, c, run.threads()));
    let seen = seen.as_ref().unwrap_or(&stack);
    // The blocks B_i C B_jᵀ.
    let products = matmul_nt(&stack, seen, run.threads());
    let rows = |i: usize| i * rank..(i + 1) * rank;
    for (e, w) in weights.iter().enumerate() {
        run.check()?;
        let left = gram(&factors.left[e], run.threads());
        let normal = Array2::from_shape_fn((atoms, atoms), |(i, j)| {
            (&products.slice(s![rows(i), rows(j)]) * &left).sum()
        });
        // (A B_i C)ᵀ W by way of A^T W C Bᵀ, of which the diagonals of the blocks count.
        let onto = matmul_nt(&matmul_tn(&factors.left[e], w, run.threads()), seen, run.threads());
        let right = Array2::from_shape_fn((atoms, 1), |(i, _)| onto.slice(s![.., rows(i)]).diag().sum());
        factors.mix.row_mut(e).assign(&SpdSolver::new(&normal, RIDGE)?.solve(&right).column(0));
    }
    Ok(())
}

/// All basis matrices by one system where it is small enough, else one after the other.
fn solve_basis(weights: &[Array2<f64>], factors: &mut Factors, run: &Run<'_>) -> Result<()> {
    let grams: Vec<_> = factors.left.iter().map(|a| gram(a, run.threads())).collect();
    let targets: Vec<_> =
        factors.left.iter().zip(weights).map(|(a, w)| matmul_tn(a, w, run.threads())).collect();
    run.check()?;
    let (atoms, rank) = (factors.basis.len(), factors.basis[0].nrows());
    match atoms.saturating_mul(rank) <= JOINT {
        true => solve_jointly(&grams, &targets, factors, run),
        false => (0..atoms).try_for_each(|i| solve_one(i, &grams, &targets, factors, run)),
    }
}

/// $\sum_e a_{ei} a_{ej} A_e^T A_e$ against $\sum_e a_{ei} A_e^T W_e$: the best basis whatever the inputs are, as each of its columns is free.
fn solve_jointly(
    grams: &[Array2<f64>],
    targets: &[Array2<f64>],
    factors: &mut Factors,
    run: &Run<'_>,
) -> Result<()> {
    let (atoms, (rank, d)) = (factors.basis.len(), factors.basis[0].dim());
    let (mut normal, mut right) =
        (Array2::zeros((atoms * rank, atoms * rank)), Array2::zeros((atoms * rank, d)));
    let rows = |i: usize| i * rank..(i + 1) * rank;
    for (mix, (gram, target)) in factors.mix.outer_iter().zip(grams.iter().zip(targets)) {
        for i in 0..atoms {
            right.slice_mut(s![rows(i), ..]).scaled_add(mix[i], target);
            for j in 0..atoms {
                normal.slice_mut(s![rows(i), rows(j)]).scaled_add(mix[i] * mix[j], gram);
            }
        }
    }
    let solution = SpdSolver::new(&normal, RIDGE)?.with_threads(run.threads()).solve(&right);
    for (i, basis) in factors.basis.iter_mut().enumerate() {
        basis.assign(&solution.slice(s![rows(i), ..]));
    }
    Ok(())
}

/// The same for basis matrix `i` alone, the others held.
fn solve_one(
    i: usize,
    grams: &[Array2<f64>],
    targets: &[Array2<f64>],
    factors: &mut Factors,
    run: &Run<'_>,
) -> Result<()> {
    run.check()?;
    let (rank, d) = factors.basis[i].dim();
    let (mut normal, mut right) = (Array2::zeros((rank, rank)), Array2::zeros((rank, d)));
    for (e, (gram, target)) in grams.iter().zip(targets).enumerate() {
        let c = factors.mix[[e, i]];
        let mut others = factors.mixed(e);
        others.scaled_add(-c, &factors.basis[i]);
        normal.scaled_add(c * c, gram);
        right.scaled_add(c, &(target - &matmul(gram, &others, run.threads())));
    }
    factors.basis[i] = SpdSolver::new(&normal, RIDGE)?.with_threads(run.threads()).solve(&right);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::testing::gaussian;
    use crate::projection::Options;

    /// One after the other the basis reaches the same minimum, only later.
    #[test]
    fn basis_matrices_are_solved_jointly_and_one_by_one() {
        let weights: Vec<_> = (0..6).map(|e| gaussian(4, 5, e)).collect();
        let mut joint = Factors {
            left: (0..6).map(|e| gaussian(4, 2, 10 + e)).collect(),
            basis: (0..3).map(|i| gaussian(2, 5, 20 + i)).collect(),
            mix: gaussian(6, 3, 30),
        };
        let (mut single, options) = (joint.clone(), Options::default());
        let run = Run::new(&options);
        let of = |factors: &Factors| energy(&weights, factors, Activation::Identity, &Objective::Frobenius);
        let first = of(&joint);
        solve_basis(&weights, &mut joint, &run).unwrap();
        let grams: Vec<_> = single.left.iter().map(|a| a.t().dot(a)).collect();
        let targets: Vec<_> = single.left.iter().zip(&weights).map(|(a, w)| a.t().dot(w)).collect();
        let mut last = first;
        for k in 0..3000 {
            solve_one(k % 3, &grams, &targets, &mut single, &run).unwrap();
            let now = of(&single);
            assert!(now <= last * (1.0 + 1e-12), "{k}");
            last = now;
        }
        let best = of(&joint);
        assert!(best < first && (last / best - 1.0).abs() < 1e-6, "{best} {last}");
    }
}
