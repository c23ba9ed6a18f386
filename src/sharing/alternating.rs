//! Dictionaries of matrices that see different inputs: coefficients and atoms in turns.

use super::{JOINT, RIDGE};
use crate::error::{Error, Result};
use crate::linalg::{SpdSolver, matmul};
use crate::projection::{Descent, Gram, Objective, Run, Stop, descend};
use ndarray::{Array2, Zip, s};

/// A dictionary under way; atoms that no member of a group uses stay unused there.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) coefficients: Array2<f64>,
    pub(super) atoms: Vec<Array2<f64>>,
}

impl Start {
    fn member(&self, l: usize) -> Array2<f64> {
        let mut sum = Array2::zeros(self.atoms[0].dim());
        for (atom, c) in self.atoms.iter().zip(self.coefficients.row(l)) {
            sum.scaled_add(*c, atom);
        }
        sum
    }
}

struct Problem<'a> {
    weights: &'a [Array2<f64>],
    grams: &'a [Gram],
    /// The group of each member.
    groups: &'a [usize],
    /// `W_l C_l`.
    seen: Vec<Array2<f64>>,
    run: &'a Run<'a>,
}

/// Lowers the error from the best of the starts. Systems are solved for the change, so that what no input sees stays as it starts.
pub(super) fn fit(
    weights: &[Array2<f64>],
    grams: &[Gram],
    groups: &[usize],
    starts: Vec<Start>,
    run: &Run<'_>,
) -> Result<Descent<Start>> {
    let seen =
        weights.iter().zip(grams).map(|(w, gram)| matmul(w, gram.second_moment(), run.threads())).collect();
    let problem = Problem { weights, grams, groups, seen, run };
    let starts = starts.into_iter().map(|start| (problem.energy(&start), start));
    let Some((energy, start)) = starts.min_by(|a, b| a.0.total_cmp(&b.0)) else {
        return Err(Error::NoConvergence("the choice of a start"));
    };
    let scale = weights.iter().zip(grams).map(|(w, gram)| Objective::Activations(gram).energy(w)).sum();
    descend(run, Stop { sweeps: 200, tolerance: 1e-8 }, scale, start, energy, |state, _, _| {
        problem.solve_coefficients(state)?;
        problem.solve_atoms(state)?;
        Ok(problem.energy(state))
    })
}

impl Problem<'_> {
    fn energy(&self, state: &Start) -> f64 {
        let error = |(l, w): (usize, &Array2<f64>)| {
            Objective::Activations(&self.grams[l]).energy(&(w - &state.member(l)))
        };
        self.weights.iter().enumerate().map(error).sum()
    }

    /// What member `l` lacks, as its inputs see it.
    fn missed(&self, state: &Start, l: usize) -> Array2<f64> {
        &self.seen[l] - &matmul(&state.member(l), self.grams[l].second_moment(), self.run.threads())
    }

    /// For each member $\langle D_s C_l, D_{s'} \rangle$ against $\langle D_s, W_l C_l \rangle$.
    fn solve_coefficients(&self, state: &mut Start) -> Result<()> {
        for (l, gram) in self.grams.iter().enumerate() {
            self.run.check()?;
            let column = |s: usize| self.groups.iter().zip(state.coefficients.column(s));
            let uses = |s: usize| column(s).any(|(group, c)| *group == self.groups[l] && *c != 0.0);
            let used: Vec<usize> = (0..state.atoms.len()).filter(|&s| uses(s)).collect();
            let missed = self.missed(state, l);
            let images: Vec<Array2<f64>> = used
                .iter()
                .map(|&s| matmul(&state.atoms[s], gram.second_moment(), self.run.threads()))
                .collect();
            let normal = Array2::from_shape_fn((used.len(), used.len()), |(a, b)| {
                inner(&images[a], &state.atoms[used[b]])
            });
            let right =
                Array2::from_shape_fn((used.len(), 1), |(a, _)| inner(&missed, &state.atoms[used[a]]));
            let solution = SpdSolver::new(&normal, RIDGE)?.solve(&right);
            used.iter().zip(&solution).for_each(|(&s, c)| state.coefficients[[l, s]] += *c);
        }
        Ok(())
    }

    /// All rows of all atoms by one system $\sum_l c_l c_l^T \otimes C_l$, or atom by atom.
    fn solve_atoms(&self, state: &mut Start) -> Result<()> {
        let ((m, n), atoms) = (state.atoms[0].dim(), state.atoms.len());
        if atoms.saturating_mul(n) > JOINT {
            return (0..atoms).try_for_each(|s| self.solve_atom(state, s));
        }
        let (mut normal, mut right) = (Array2::zeros((atoms * n, atoms * n)), Array2::zeros((m, atoms * n)));
        for (l, (c, gram)) in state.coefficients.outer_iter().zip(self.grams).enumerate() {
            let missed = self.missed(state, l);
            for s in (0..atoms).filter(|&s| c[s] != 0.0) {
                right.slice_mut(s![.., s * n..(s + 1) * n]).scaled_add(c[s], &missed);
                for t in (0..atoms).filter(|&t| c[t] != 0.0) {
                    let mut block = normal.slice_mut(s![s * n..(s + 1) * n, t * n..(t + 1) * n]);
                    block.scaled_add(c[s] * c[t], gram.second_moment());
                }
            }
        }
        self.run.check()?;
        let solution = SpdSolver::new(&normal, RIDGE)?.with_threads(self.run.threads()).solve_right(&right);
        for (s, atom) in state.atoms.iter_mut().enumerate() {
            *atom += &solution.slice(s![.., s * n..(s + 1) * n]);
        }
        Ok(())
    }

    fn solve_atom(&self, state: &mut Start, s: usize) -> Result<()> {
        self.run.check()?;
        let (m, n) = state.atoms[s].dim();
        let (mut normal, mut right) = (Array2::zeros((n, n)), Array2::zeros((m, n)));
        for (l, gram) in self.grams.iter().enumerate() {
            let c = state.coefficients[[l, s]];
            if c != 0.0 {
                right.scaled_add(c, &self.missed(state, l));
                normal.scaled_add(c * c, gram.second_moment());
            }
        }
        state.atoms[s] +=
            &SpdSolver::new(&normal, RIDGE)?.with_threads(self.run.threads()).solve_right(&right);
        Ok(())
    }
}

fn inner(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    Zip::from(a).and(b).fold(0.0, |sum, a, b| sum + a * b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::testing::gaussian;
    use crate::projection::Options;

    /// Atom by atom the same minimum is reached as jointly, only later.
    #[test]
    fn atoms_are_solved_jointly_and_one_by_one() {
        let weights: Vec<_> = (0..5).map(|l| gaussian(3, 4, l)).collect();
        let grams: Vec<_> = (0..5)
            .map(|l| {
                let mut gram = Gram::new(4);
                gram.accumulate(&gaussian(9, 4, 10 + l)).unwrap();
                gram
            })
            .collect();
        let options = Options::default();
        let run = Run::new(&options);
        let seen = weights.iter().zip(&grams).map(|(w, gram)| w.dot(gram.second_moment())).collect();
        let problem = Problem { weights: &weights, grams: &grams, groups: &[0; 5], seen, run: &run };
        let mut joint =
            Start { coefficients: gaussian(5, 2, 20), atoms: vec![gaussian(3, 4, 21), gaussian(3, 4, 22)] };
        let (mut single, first) = (joint.clone(), problem.energy(&joint));
        problem.solve_atoms(&mut joint).unwrap();
        let mut last = first;
        for _ in 0..2000 {
            (0..2).try_for_each(|s| problem.solve_atom(&mut single, s)).unwrap();
            let energy = problem.energy(&single);
            assert!(energy <= last * (1.0 + 1e-12));
            last = energy;
        }
        let best = problem.energy(&joint);
        assert!(best < first && (last / best - 1.0).abs() < 1e-6, "{best} {last}");
    }
}
