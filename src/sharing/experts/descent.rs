//! Experts with an activation or a softmax: gradients.

use super::fit::energy;
use super::start::{self, Factors};
use super::{ExpertStart, ExpertsSpec, Mixing};
use crate::adam::Adam;
use crate::error::Result;
use crate::linalg::{matmul, matmul_nt, matmul_tn};
use crate::projection::{Objective, Run, ratio};
use ndarray::{Array2, Zip};

/// Steps where the caller did not say, and those between two looks at the error: as published.
const STEPS: usize = 10_000;
const LOOK: usize = 200;

/// The factors, with the softmax taken, and the relative error of the best state after each look.
pub(super) fn fit(
    weights: &[Array2<f64>],
    spec: &ExpertsSpec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<(Factors, Vec<f64>)> {
    // Targets of standard deviation 1.
    let numbers = weights.iter().map(|w| w.len()).sum::<usize>() as f64;
    let mean = weights.iter().map(|w| w.sum()).sum::<f64>() / numbers;
    let square = weights.iter().flat_map(|w| w.iter()).map(|v| (v - mean).powi(2)).sum::<f64>();
    let unit = match (square / numbers).sqrt() {
        unit if unit > 0.0 && unit.is_finite() => unit,
        _ => 1.0,
    };
    let targets: Vec<_> = weights.iter().map(|w| w / unit).collect();
    let descent = Descent { targets: &targets, spec, objective, run };
    let start = match spec.start {
        ExpertStart::Exact => start::through(start::groups(&targets, spec, objective, run)?, spec),
        ExpertStart::Published => descent.published(start::groups(weights, spec, objective, run)?),
    };
    let (mut found, history) = descent.descend(start)?;
    found.left.iter_mut().for_each(|a| *a *= unit);
    found.mix = descent.mixing(&found.mix);
    Ok((found, history))
}

struct Descent<'a> {
    targets: &'a [Array2<f64>],
    spec: &'a ExpertsSpec,
    objective: &'a Objective<'a>,
    run: &'a Run<'a>,
}

impl Descent<'_> {
    /// The authors' start from the decompositions of the targets before they were divided: singular values go to the left, and the
    /// right factors have orthonormal rows.
    fn published(&self, mut factors: Factors) -> Factors {
        let (count, atoms) = (factors.left.len(), factors.basis.len());
        for (i, basis) in factors.basis.iter_mut().enumerate() {
            let norms: Vec<f64> = basis.outer_iter().map(|row| row.dot(&row).sqrt()).collect();
            for (mut row, norm) in basis.outer_iter_mut().zip(&norms).filter(|(_, norm)| **norm > 0.0) {
                row /= *norm;
            }
            let own = |e: &usize| start::group(*e, count, atoms) == i;
            for (_, left) in factors.left.iter_mut().enumerate().filter(|(e, _)| own(e)) {
                left.columns_mut().into_iter().zip(&norms).for_each(|(mut column, norm)| column *= *norm);
            }
        }
        factors
    }

    /// What basis matrices are mixed with.
    fn mixing(&self, mix: &Array2<f64>) -> Array2<f64> {
        if self.spec.mixing == Mixing::Free {
            return mix.clone();
        }
        let mut mix = mix.clone();
        for mut row in mix.outer_iter_mut() {
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.mapv_inplace(|v| (v - most).exp());
            row /= row.sum();
        }
        mix
    }

    /// The factors with the softmax taken.
    fn mixed(&self, factors: &Factors) -> Factors {
        Factors { mix: self.mixing(&factors.mix), ..factors.clone() }
    }

    fn energy(&self, factors: &Factors) -> f64 {
        energy(self.targets, &self.mixed(factors), self.spec.activation, self.objective)
    }

    /// The gradient of the energy, by logits where there is a softmax.
    fn gradient(&self, factors: &Factors) -> Factors {
        let (threads, activation) = (self.run.threads(), self.spec.activation);
        let seen = self.mixed(factors);
        let mut gradient = Factors {
            left: Vec::with_capacity(factors.left.len()),
            basis: factors.basis.iter().map(|b| Array2::zeros(b.dim())).collect(),
            mix: Array2::zeros(factors.mix.dim()),
        };
        for (e, (target, left)) in self.targets.iter().zip(&factors.left).enumerate() {
            let inner = seen.mixed(e);
            let right = inner.mapv(|v| activation.at(v));
            let mut error = matmul(left, &right, threads) - target;
            if let Some(c) = self.objective.second_moment() {
                error = matmul(&error, c, threads);
            }
            error *= 2.0;
            gradient.left.push(matmul_nt(&error, &right, threads));
            let mut back = matmul_tn(left, &error, threads);
            Zip::from(&mut back).and(&inner).for_each(|g, v| *g *= activation.slope(*v));
            for (i, basis) in factors.basis.iter().enumerate() {
                gradient.basis[i].scaled_add(seen.mix[[e, i]], &back);
                gradient.mix[[e, i]] = Zip::from(&back).and(basis).fold(0.0, |sum, a, b| sum + a * b);
            }
        }
        if self.spec.mixing == Mixing::Softmax {
            for (mut row, mix) in gradient.mix.outer_iter_mut().zip(seen.mix.outer_iter()) {
                let mean = row.dot(&mix);
                Zip::from(&mut row).and(&mix).for_each(|g, a| *g = a * (*g - mean));
            }
        }
        gradient
    }

    fn descend(&self, mut now: Factors) -> Result<(Factors, Vec<f64>)> {
        let total = self.run.max_iterations(STEPS);
        let scale: f64 = self.targets.iter().map(|w| self.objective.energy(w)).sum();
        let mut best = (self.energy(&now), now.clone());
        if self.spec.start == ExpertStart::Exact {
            // Where the right factors are less than their groups have, the left ones make up for it.
            self.try_left(&mut best)?;
            now = best.1.clone();
        }
        let arrays = now.left.iter().chain(&now.basis).chain(std::iter::once(&now.mix));
        let mut steps: Vec<Adam<f64>> =
            arrays.map(|a| Adam::new(a.len(), self.spec.rate, (0.9, 0.999))).collect();
        let mut history = Vec::new();
        for k in 0..total {
            self.run.check()?;
            let gradient = self.gradient(&now);
            let part = (2.0 * (total - k) as f64 / total as f64).min(1.0);
            let numbers = now.left.iter_mut().chain(&mut now.basis).chain(std::iter::once(&mut now.mix));
            let slopes = gradient.left.iter().chain(&gradient.basis).chain(std::iter::once(&gradient.mix));
            for ((numbers, slopes), adam) in numbers.zip(slopes).zip(&mut steps) {
                adam.step_array(numbers, slopes, part);
            }
            if (k + 1) % LOOK == 0 || k + 1 == total {
                let energy = self.energy(&now);
                if energy < best.0 {
                    best = (energy, now.clone());
                }
                history.push(ratio(best.0.sqrt(), scale.sqrt()));
                self.run.step(k + 1, total, history.last().copied())?;
            }
        }
        if self.spec.start == ExpertStart::Exact {
            self.try_left(&mut best)?;
        }
        Ok((best.1, history))
    }

    /// The left factors by least squares, where that lowers the error.
    fn try_left(&self, best: &mut (f64, Factors)) -> Result<()> {
        let mut solved = self.mixed(&best.1);
        solved.solve_left(self.targets, self.spec.activation, self.objective, self.run)?;
        solved.mix = best.1.mix.clone();
        let energy = self.energy(&solved);
        if energy < best.0 {
            *best = (energy, solved);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::linalg::testing::gaussian;
    use crate::projection::{Gram, Options};

    #[test]
    fn gradients_are_those_of_the_energy() {
        let targets: Vec<_> = (0..3).map(|e| gaussian(4, 5, e)).collect();
        let gram = Gram::from_second_moment(&gaussian(9, 5, 7).t().dot(&gaussian(9, 5, 7))).unwrap();
        let options = Options::default();
        let run = Run::new(&options);
        for activation in [Activation::Identity, Activation::Silu, Activation::Tanh] {
            for mixing in [Mixing::Free, Mixing::Softmax] {
                for objective in [Objective::Frobenius, Objective::Activations(&gram)] {
                    let spec = ExpertsSpec { rank: 3, atoms: 2, activation, mixing, ..Default::default() };
                    let descent =
                        Descent { targets: &targets, spec: &spec, objective: &objective, run: &run };
                    let factors = Factors {
                        left: (0..3).map(|e| gaussian(4, 3, 10 + e)).collect(),
                        basis: (0..2).map(|i| gaussian(3, 5, 20 + i)).collect(),
                        mix: gaussian(3, 2, 30),
                    };
                    let gradient = descent.gradient(&factors);
                    let check = |change: &dyn Fn(&mut Factors, f64), slope: f64| {
                        let at = |h: f64| {
                            let mut moved = factors.clone();
                            change(&mut moved, h);
                            descent.energy(&moved)
                        };
                        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
                        assert!(
                            (difference - slope).abs() < 1e-5 * (1.0 + slope.abs()),
                            "{difference} {slope}"
                        );
                    };
                    check(&|f, h| f.left[1][[2, 1]] += h, gradient.left[1][[2, 1]]);
                    check(&|f, h| f.basis[0][[1, 4]] += h, gradient.basis[0][[1, 4]]);
                    check(&|f, h| f.mix[[2, 1]] += h, gradient.mix[[2, 1]]);
                }
            }
        }
    }
}
