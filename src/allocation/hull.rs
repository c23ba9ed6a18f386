//! The cheapest mix of candidates within a budget.

use crate::error::{Error, Result};

/// One way to hold a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// What it takes of the budget: bytes, parameters, nanoseconds.
    pub size: u64,
    /// What is lost: a squared error, weighted so that those of different matrices compare.
    pub cost: f64,
}

/// A choice for every matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// The candidate chosen for each matrix.
    pub chosen: Vec<usize>,
    /// Their sizes together, at most the budget.
    pub size: u64,
    /// Their costs together.
    pub cost: f64,
    /// No choice within the budget costs less than this.
    pub bound: f64,
}

/// A step from one candidate of a matrix to the next on its hull.
#[derive(Debug, Clone, Copy)]
struct Step {
    matrix: usize,
    to: usize,
    size: u64,
    gain: f64,
}

/// Chooses one candidate for every matrix so that sizes add up to at most `budget` and costs to as little as possible.
///
/// Budget goes where it lowers the cost most per unit, along the lower convex hull of each list: the optimum when candidates on the
/// hulls may be mixed, and within one step of it otherwise; [`Allocation::bound`] tells how far from it at most. What is left over goes to single
/// improvements that still fit, off the hulls too. Ties go to the matrix that comes first. `O(k log k)` for `k` candidates in all, and a
/// pass over them for each improvement.
///
/// # Errors
/// [`Error::Parameter`] when the smallest candidates exceed the budget, for a matrix without candidates, or for a cost that is not a
/// number.
///
/// ```
/// use structmat::allocation::{Candidate, allocate};
/// let list = |cost: [f64; 3]| [10, 20, 40].into_iter().zip(cost).map(|(size, cost)| Candidate { size, cost }).collect();
/// let found = allocate(&[list([8.0, 2.0, 1.0]), list([3.0, 2.5, 2.0])], 30)?;
/// assert_eq!((found.chosen, found.size, found.cost), (vec![1, 0], 30, 5.0));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn allocate(candidates: &[Vec<Candidate>], budget: u64) -> Result<Allocation> {
    let hulls: Vec<Vec<usize>> =
        candidates.iter().enumerate().map(|(matrix, list)| hull(matrix, list)).collect::<Result<_>>()?;
    let mut chosen: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let at = |matrix: usize, k: usize| candidates[matrix][k];
    let smallest: u128 = chosen.iter().enumerate().map(|(m, &k)| u128::from(at(m, k).size)).sum();
    if smallest > u128::from(budget) {
        return Err(Error::parameter(
            "budget",
            budget,
            format!("at least {smallest}, what the smallest candidates take"),
        ));
    }
    let mut steps: Vec<Step> = Vec::new();
    for (matrix, hull) in hulls.iter().enumerate() {
        steps.extend(hull.windows(2).map(|pair| {
            let (from, to) = (at(matrix, pair[0]), at(matrix, pair[1]));
            Step { matrix, to: pair[1], size: to.size - from.size, gain: from.cost - to.cost }
        }));
    }
    // Stable: the steps of one matrix, each worth less than the one before, stay in order.
    steps.sort_by(|a, b| (b.gain * a.size as f64).total_cmp(&(a.gain * b.size as f64)));
    let mut size = smallest as u64;
    let mut cost: f64 = chosen.iter().enumerate().map(|(m, &k)| at(m, k).cost).sum();
    let (mut bound, mut closed) = (None, vec![false; candidates.len()]);
    for step in steps {
        if closed[step.matrix] {
            continue;
        }
        if step.size > budget - size {
            // Part of the first step that does not fit is what the mixed optimum takes.
            let part = (budget - size) as f64 / step.size as f64;
            bound.get_or_insert(cost - part * step.gain);
            closed[step.matrix] = true;
            continue;
        }
        chosen[step.matrix] = step.to;
        (size, cost) = (size + step.size, cost - step.gain);
    }
    while let Some((matrix, to)) = improvement(candidates, &chosen, budget - size) {
        size = size - at(matrix, chosen[matrix]).size + at(matrix, to).size;
        chosen[matrix] = to;
    }
    let cost = chosen.iter().enumerate().map(|(m, &k)| at(m, k).cost).sum();
    Ok(Allocation { chosen, size, cost, bound: bound.unwrap_or(cost) })
}

/// Every matrix by itself: the candidate of least cost within its share of the budget, in proportion to `weights` (its dense size).
///
/// # Errors
/// As [`allocate`], for a share as for a budget; [`Error::Shape`] when the lists differ in length.
pub fn uniform(candidates: &[Vec<Candidate>], weights: &[u64], budget: u64) -> Result<Allocation> {
    if weights.len() != candidates.len() {
        return Err(Error::shape("weights", &[candidates.len()], &[weights.len()]));
    }
    let total = weights.iter().map(|&w| u128::from(w)).sum::<u128>().max(1);
    let mut found = Allocation { chosen: Vec::new(), size: 0, cost: 0.0, bound: f64::NEG_INFINITY };
    for (list, &weight) in candidates.iter().zip(weights) {
        let share = (u128::from(budget) * u128::from(weight) / total) as u64;
        let one = allocate(std::slice::from_ref(list), share)?;
        // One list needs no mixing: take the best that fits.
        let best = (0..list.len()).filter(|&k| list[k].size <= share);
        let best = best.min_by(|&a, &b| list[a].cost.total_cmp(&list[b].cost)).unwrap_or(one.chosen[0]);
        found.chosen.push(best);
        found.size += list[best].size;
        found.cost += list[best].cost;
    }
    Ok(found)
}

/// Indices of the lower convex hull, by growing size: every next one costs less, and gains less per unit than the one before.
fn hull(matrix: usize, list: &[Candidate]) -> Result<Vec<usize>> {
    if list.is_empty() {
        return Err(Error::parameter("candidates", format!("none for matrix {matrix}"), "at least one"));
    }
    if let Some(bad) = list.iter().find(|c| !c.cost.is_finite()) {
        return Err(Error::parameter("cost", format!("{} of matrix {matrix}", bad.cost), "a finite number"));
    }
    let mut order: Vec<usize> = (0..list.len()).collect();
    order.sort_by(|&a, &b| list[a].size.cmp(&list[b].size).then(list[a].cost.total_cmp(&list[b].cost)));
    let mut hull: Vec<usize> = Vec::new();
    for k in order {
        let point = list[k];
        if hull.last().is_some_and(|&last| list[last].cost <= point.cost) {
            continue;
        }
        while let [.., before, last] = hull[..] {
            let (before, last) = (list[before], list[last]);
            let rise = |a: Candidate, b: Candidate| (a.cost - b.cost, (b.size - a.size) as f64);
            let ((gain, size), (whole_gain, whole_size)) = (rise(before, last), rise(before, point));
            if gain * whole_size > whole_gain * size {
                break;
            }
            hull.pop();
        }
        hull.push(k);
    }
    Ok(hull)
}

/// The single change that lowers the cost most within `spare`.
fn improvement(candidates: &[Vec<Candidate>], chosen: &[usize], spare: u64) -> Option<(usize, usize)> {
    let mut best: Option<(f64, usize, usize)> = None;
    for (matrix, list) in candidates.iter().enumerate() {
        let now = list[chosen[matrix]];
        for (k, candidate) in list.iter().enumerate() {
            let gain = now.cost - candidate.cost;
            let fits = candidate.size <= now.size.saturating_add(spare);
            if fits && gain > best.map_or(0.0, |(most, ..)| most) {
                best = Some((gain, matrix, k));
            }
        }
    }
    best.map(|(_, matrix, k)| (matrix, k))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Gaussian;

    fn lists(count: usize, seed: u64) -> Vec<Vec<Candidate>> {
        let mut gaussian = Gaussian::new(seed);
        (0..count)
            .map(|_| {
                let (scale, decay) = (gaussian.sample().exp(), gaussian.sample().abs() + 0.2);
                let noise = |g: &mut Gaussian| 1.0 + 0.2 * g.sample().tanh();
                (1..=6)
                    .map(|k| Candidate {
                        size: 3 * k + (gaussian.sample().abs() * 3.0) as u64,
                        cost: scale * (-decay * k as f64).exp() * noise(&mut gaussian),
                    })
                    .collect()
            })
            .collect()
    }

    fn least(lists: &[Vec<Candidate>], budget: u64) -> f64 {
        let Some((first, rest)) = lists.split_first() else { return 0.0 };
        let costs = first.iter().filter(|c| c.size <= budget).map(|c| c.cost + least(rest, budget - c.size));
        costs.fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn between_the_bound_and_one_step_of_the_optimum() {
        for seed in 0..40 {
            let lists = lists(4, seed);
            for budget in [20, 30, 45, 60, 500] {
                let optimum = least(&lists, budget);
                match allocate(&lists, budget) {
                    Err(error) => assert!(optimum.is_infinite(), "{error}"),
                    Ok(found) => {
                        assert!(found.size <= budget && found.bound <= optimum + 1e-12);
                        assert!(found.cost >= optimum - 1e-12);
                        let largest = lists
                            .iter()
                            .map(|l| l.iter().map(|c| c.cost).fold(0.0, f64::max))
                            .fold(0.0, f64::max);
                        assert!(found.cost <= optimum + largest);
                        let cost: f64 = lists.iter().zip(&found.chosen).map(|(l, &k)| l[k].cost).sum();
                        assert!((cost - found.cost).abs() < 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn more_budget_never_costs_more_and_uniform_never_beats_the_bound() {
        let lists = lists(12, 3);
        let mut before = f64::INFINITY;
        for budget in (150..400).step_by(10) {
            let found = allocate(&lists, budget).unwrap();
            assert!(found.cost <= before + 0.05 * before.min(1e9));
            before = found.cost;
            if let Ok(even) = uniform(&lists, &[1; 12], budget) {
                assert!(even.size <= budget && even.cost >= found.bound - 1e-12);
            }
        }
    }

    #[test]
    fn bad_lists() {
        let one = Candidate { size: 5, cost: 1.0 };
        assert!(matches!(allocate(&[vec![one]], 4), Err(Error::Parameter { .. })));
        assert!(matches!(allocate(&[vec![one], vec![]], 9), Err(Error::Parameter { .. })));
        assert!(matches!(
            allocate(&[vec![Candidate { cost: f64::NAN, ..one }]], 9),
            Err(Error::Parameter { .. })
        ));
        assert_eq!(allocate(&[], 0).unwrap().chosen, Vec::<usize>::new());
        assert!(allocate(&[vec![Candidate { size: u64::MAX, cost: 0.0 }; 2], vec![one]], u64::MAX).is_err());
        assert!(uniform(&[vec![one]], &[], 9).is_err());
    }
}
