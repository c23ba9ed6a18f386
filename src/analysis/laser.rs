//! Interventions on single matrices, judged by a score.

use crate::allocation::reduced_rank;
use crate::error::{Error, Result};
use crate::linalg::{Svd, Threads, check_finite, svd};
use crate::projection::ratio;
use ndarray::{Array2, s};

/// What is done to a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Intervention {
    /// The best approximation of rank [`reduced_rank`]: LASER's, for the fraction `rho` of the full rank. The source tries 0.9 down to
    /// 0.01.
    Rank(f64),
    /// The given fraction of the entries, those of least magnitude, becomes zero.
    Magnitude(f64),
    /// All entries become zero.
    Zero,
}

/// One point of a grid: a matrix, what was done to it, and how the model did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// Which matrix.
    pub matrix: usize,
    /// What was done to it.
    pub intervention: Intervention,
    /// $\lVert W - \hat W \rVert_F / \lVert W \rVert_F$; for ranks from the singular values alone.
    pub error: f64,
    /// The score with this intervention, more being better.
    pub score: f64,
}

/// Layer-selective rank reduction: some matrices of a model, and which interventions on which of them raise a score. A strong reduction
/// of the right one can raise it, where it removes noise.
///
/// The score is any function of all matrices: in a model, put them in and measure the accuracy on validation data (a fifth in the source,
/// the rest is for the test). One singular value decomposition of each matrix serves all fractions, taken when it is first needed; going
/// through the ranks of a matrix upwards, each adds its own components to those before, so that all of them together cost as much as the
/// largest. Results are dense, as in the source: what is saved is only measured. [`LowRank`](crate::structures::LowRank) keeps the
/// factors.
///
/// Source: P. Sharma, J. T. Ash and D. Misra, "The Truth is in There: Improving Reasoning in Language Models with Layer-Selective Rank
/// Reduction", 2023. Its code takes randomized decompositions without oversampling; these here are exact.
///
/// ```
/// use structmat::analysis::{Intervention::{Rank, Zero}, Laser};
/// use structmat::ndarray::{array, Array2};
/// let (signal, noise) = (array![[3.0, 3.0], [3.0, 3.0]], array![[0.5, -0.5], [-0.5, 0.5]]);
/// let mut laser = Laser::new(vec![&signal + &noise])?;
/// let score = |matrices: &[Array2<f64>]| Ok(-(&matrices[0] - &signal).mapv(f64::abs).sum());
/// let best = laser.stack(&[Rank(0.5), Zero], score)?;
/// assert_eq!(best.len(), 1);
/// assert_eq!(best[0].intervention, Rank(0.5));
/// assert!(best[0].score.abs() < 1e-12 && laser.decompositions() == 1);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Laser {
    given: Vec<Array2<f64>>,
    /// With what a stack has done to them.
    matrices: Vec<Array2<f64>>,
    svds: Vec<Option<Svd>>,
    decompositions: usize,
    threads: Threads,
}

impl Laser {
    /// Of these matrices (out x in each).
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty matrix, [`Error::NonFinite`].
    pub fn new(matrices: Vec<Array2<f64>>) -> Result<Self> {
        for w in &matrices {
            if w.is_empty() {
                return Err(Error::shape("matrix", &[1, 1], w.shape()));
            }
            check_finite("matrix", w)?;
        }
        let svds = vec![None; matrices.len()];
        Ok(Self { given: matrices.clone(), matrices, svds, decompositions: 0, threads: Threads::ONE })
    }

    /// Lets the decompositions use threads (one by default).
    pub fn with_threads(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// The matrices, with what the last [`stack`](Self::stack) has done to them; as they were given after a [`grid`](Self::grid), or an error.
    pub fn matrices(&self) -> &[Array2<f64>] {
        &self.matrices
    }

    /// Singular value decompositions taken so far: at most one per matrix.
    pub fn decompositions(&self) -> usize {
        self.decompositions
    }

    /// Every intervention on every matrix, alone, beside the others as they were given: the score of each, matrix by matrix in the order
    /// of `interventions`. Costs one call of `score` each.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a fraction outside of 0 to 1 or a score that is not a number, and whatever `score` says.
    pub fn grid(
        &mut self,
        interventions: &[Intervention],
        mut score: impl FnMut(&[Array2<f64>]) -> Result<f64>,
    ) -> Result<Vec<Trial>> {
        check(interventions)?;
        self.matrices.clone_from(&self.given);
        let mut trials = Vec::with_capacity(self.given.len() * interventions.len());
        for matrix in 0..self.given.len() {
            trials
                .extend(self.try_on(matrix, interventions, &mut score)?.into_iter().map(|(trial, _)| trial));
        }
        Ok(trials)
    }

    /// Greedy composition: matrices in the order of what their best intervention brings alone; each gets the intervention that raises the
    /// score most on top of those before, or none where nothing raises it. Returns the interventions that stay, with the score after
    /// each, and leaves them in [`matrices`](Self::matrices). Costs two grids.
    ///
    /// # Errors
    /// As [`grid`](Self::grid).
    pub fn stack(
        &mut self,
        interventions: &[Intervention],
        mut score: impl FnMut(&[Array2<f64>]) -> Result<f64>,
    ) -> Result<Vec<Trial>> {
        let stacked = self.stacked(interventions, &mut score);
        if stacked.is_err() {
            self.matrices.clone_from(&self.given);
        }
        stacked
    }

    fn stacked(
        &mut self,
        interventions: &[Intervention],
        mut score: &mut impl FnMut(&[Array2<f64>]) -> Result<f64>,
    ) -> Result<Vec<Trial>> {
        let grid = self.grid(interventions, &mut score)?;
        let mut best = number(score(&self.matrices)?)?;
        let alone = |matrix: usize| {
            let own = grid.iter().filter(|trial| trial.matrix == matrix);
            own.map(|trial| trial.score).fold(f64::NEG_INFINITY, f64::max)
        };
        let mut order: Vec<(usize, f64)> = (0..self.given.len()).map(|k| (k, alone(k))).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut stacked = Vec::new();
        for (matrix, _) in order {
            let mut found = None;
            for (trial, edited) in self.try_on(matrix, interventions, &mut score)? {
                if trial.score > best {
                    best = trial.score;
                    found = Some((trial, edited));
                }
            }
            if let Some((trial, edited)) = found {
                self.matrices[matrix] = edited;
                stacked.push(trial);
            }
        }
        Ok(stacked)
    }

    /// The interventions on one matrix beside the current others, in their order, and what they make of it.
    fn try_on(
        &mut self,
        matrix: usize,
        interventions: &[Intervention],
        score: &mut impl FnMut(&[Array2<f64>]) -> Result<f64>,
    ) -> Result<Vec<(Trial, Array2<f64>)>> {
        let mut edited: Vec<Option<(Array2<f64>, f64)>> = vec![None; interventions.len()];
        let w = &self.given[matrix];
        let ranks = interventions.iter().enumerate().filter_map(|(k, intervention)| match intervention {
            Intervention::Rank(rho) => Some((reduced_rank(w.dim(), *rho), k)),
            _ => None,
        });
        let mut ranks: Vec<(usize, usize)> = ranks.collect();
        ranks.sort_unstable();
        if !ranks.is_empty() {
            let svd = match &mut self.svds[matrix] {
                Some(svd) => svd,
                empty => {
                    self.decompositions += 1;
                    empty.insert(svd(w, self.threads)?)
                }
            };
            let norm = svd.tail_energy(0).sqrt();
            let (mut sum, mut from) = (Array2::zeros(w.dim()), 0);
            for (rank, k) in ranks {
                add_components(&mut sum, svd, from, rank, self.threads);
                from = rank;
                edited[k] = Some((sum.clone(), ratio(svd.tail_energy(rank).sqrt(), norm)));
            }
        }
        let mut trials = Vec::with_capacity(interventions.len());
        for (edited, &intervention) in edited.into_iter().zip(interventions) {
            let (edited, error) = match (edited, intervention) {
                (Some(reduced), _) => reduced,
                (None, Intervention::Magnitude(fraction)) => without_small(&self.given[matrix], fraction),
                (None, _) => without_small(&self.given[matrix], 1.0),
            };
            let before = std::mem::replace(&mut self.matrices[matrix], edited);
            let scored = score(&self.matrices).and_then(number);
            let edited = std::mem::replace(&mut self.matrices[matrix], before);
            trials.push((Trial { matrix, intervention, error, score: scored? }, edited));
        }
        Ok(trials)
    }
}

fn check(interventions: &[Intervention]) -> Result<()> {
    let bad = interventions.iter().find_map(|intervention| match intervention {
        Intervention::Rank(f) | Intervention::Magnitude(f) if !(0.0..=1.0).contains(f) => Some(f),
        _ => None,
    });
    bad.map_or(Ok(()), |f| Err(Error::parameter("fraction", f, "0 to 1")))
}

fn number(score: f64) -> Result<f64> {
    if score.is_nan() { Err(Error::parameter("score", score, "a number")) } else { Ok(score) }
}

/// Adds components `from..to`.
fn add_components(sum: &mut Array2<f64>, svd: &Svd, from: usize, to: usize, threads: Threads) {
    let mut u = svd.u.slice(s![.., from..to]).to_owned();
    for (mut column, s) in u.columns_mut().into_iter().zip(&svd.s[from..to]) {
        column *= *s;
    }
    crate::linalg::matmul_into(&u, &svd.vt.slice(s![from..to, ..]), sum, true, threads);
}

/// The matrix without the fraction of its entries that is least in magnitude, the first of equals going first, and the relative error.
fn without_small(w: &Array2<f64>, fraction: f64) -> (Array2<f64>, f64) {
    let count = (fraction * w.len() as f64).floor() as usize;
    let mut order: Vec<(f64, usize)> = w.iter().enumerate().map(|(k, v)| (v.abs(), k)).collect();
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut goes = vec![false; w.len()];
    order.iter().take(count).for_each(|(_, k)| goes[*k] = true);
    let energy = |list: &[(f64, usize)]| list.iter().map(|(v, _)| v * v).sum::<f64>();
    let error = ratio(energy(&order[..count]).sqrt(), energy(&order).sqrt());
    let mut kept = w.clone();
    kept.iter_mut().zip(goes).filter(|(_, goes)| *goes).for_each(|(v, _)| *v = 0.0);
    (kept, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn laser_small_entries_go_first() {
        let w = array![[1.0, -3.0], [0.5, -0.5]];
        let (half, error) = without_small(&w, 0.5);
        assert_eq!(half, array![[1.0, -3.0], [0.0, 0.0]]);
        assert!((error - (0.5f64 / 10.5).sqrt()).abs() < 1e-15);
        assert_eq!(without_small(&w, 0.25).0, array![[1.0, -3.0], [0.0, -0.5]]);
        assert_eq!(without_small(&w, 1.0), (Array2::zeros((2, 2)), 1.0));
        assert_eq!(without_small(&w, 0.0), (w, 0.0));
    }

    #[test]
    fn bad_input() {
        assert!(matches!(Laser::new(vec![Array2::zeros((0, 3))]), Err(Error::Shape { .. })));
        assert!(matches!(Laser::new(vec![array![[f64::NAN]]]), Err(Error::NonFinite { .. })));
        let mut laser = Laser::new(vec![array![[1.0]]]).unwrap();
        for bad in [Intervention::Rank(1.5), Intervention::Magnitude(f64::NAN)] {
            assert!(matches!(laser.grid(&[bad], |_| Ok(0.0)), Err(Error::Parameter { .. })));
        }
        assert!(matches!(laser.grid(&[Intervention::Zero], |_| Ok(f64::NAN)), Err(Error::Parameter { .. })));
        assert!(matches!(
            laser.stack(&[Intervention::Zero], |_| Err(Error::Cancelled)),
            Err(Error::Cancelled)
        ));
        // What failed has changed nothing.
        assert_eq!(laser.matrices(), [array![[1.0]]]);
        assert!(Laser::new(Vec::new()).unwrap().stack(&[], |_| Ok(0.0)).unwrap().is_empty());
    }
}
