//! Which entries to keep, and their values.

use super::{FlatButterfly, Sparse, SparsePattern, SparseSpec};
use crate::error::{Error, Result};
use crate::linalg::matmul;
use crate::projection::{Fit, Objective, Run, largest, ratio};
use ndarray::{Array2, Zip};

/// Steps of conjugate gradients at most, where the caller did not say.
const STEPS: usize = 50;
/// Steps end when one lowers the energy by less than this fraction of it.
const TOLERANCE: f64 = 1e-6;

/// Kept positions, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Support {
    pub(crate) starts: Vec<u32>,
    pub(crate) cols: Vec<u32>,
}

impl Support {
    /// From row-major positions in ascending order.
    fn new((m, n): (usize, usize), order: impl IntoIterator<Item = usize>) -> Self {
        let (mut starts, mut cols) = (vec![0u32; m + 1], Vec::new());
        for at in order {
            starts[at / n + 1] += 1;
            cols.push((at % n) as u32);
        }
        for i in 0..m {
            starts[i + 1] += starts[i];
        }
        Self { starts, cols }
    }

    /// The positions of largest score that fit the pattern; scores are at least 0.
    pub(crate) fn choose(scores: &Array2<f64>, spec: &SparseSpec) -> Result<Self> {
        let (m, n) = scores.dim();
        let flat: Vec<f64> = scores.iter().copied().collect();
        match spec.pattern {
            SparsePattern::Unstructured => Ok(Self::new((m, n), largest(&flat, spec.nnz))),
            SparsePattern::NofM { n: keep, m: of } => {
                if keep == 0 || of < keep {
                    return Err(Error::parameter("pattern", format!("{keep}:{of}"), "n:m with 1 <= n <= m"));
                }
                let mut order = Vec::new();
                for i in 0..m {
                    for first in (0..n).step_by(of) {
                        let group = &flat[i * n + first..i * n + n.min(first.saturating_add(of))];
                        order.extend(largest(group, keep).into_iter().map(|j| i * n + first + j));
                    }
                }
                Ok(Self::new((m, n), order))
            }
            SparsePattern::Block { size } => {
                let area = size.saturating_mul(size).min(m * n);
                if size == 0 || spec.nnz < area {
                    return Err(Error::parameter(
                        "pattern",
                        format!("block={size}"),
                        "blocks of at most nnz entries",
                    ));
                }
                let grid = n.div_ceil(size);
                let mut energy = vec![0.0; m.div_ceil(size) * grid];
                for ((i, j), score) in scores.indexed_iter() {
                    energy[i / size * grid + j / size] += score;
                }
                let mut kept = vec![false; energy.len()];
                largest(&energy, spec.nnz / area.max(1)).into_iter().for_each(|block| kept[block] = true);
                let inside = |at: &usize| kept[at / n / size * grid + at % n / size];
                Ok(Self::new((m, n), (0..m * n).filter(inside)))
            }
            SparsePattern::Butterfly { size, strides } => {
                if size == 0 || strides == 0 {
                    let received = format!("butterfly={size}:{strides}");
                    return Err(Error::parameter("pattern", received, "blocks and strides of at least 1"));
                }
                let flat = FlatButterfly::new((m, n), size, strides);
                let row = |i: usize| flat.columns(i / size).flatten().map(move |j| i * n + j);
                Ok(Self::new((m, n), (0..m).flat_map(row)))
            }
        }
    }

    pub(crate) fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let cols = |row: &[u32]| &self.cols[row[0] as usize..row[1] as usize];
        let rows = self.starts.windows(2).enumerate();
        rows.flat_map(move |(i, row)| cols(row).iter().map(move |&j| (i, j as usize)))
    }

    /// `a` on the support, 0 elsewhere.
    pub(crate) fn mask(&self, a: &Array2<f64>) -> Array2<f64> {
        let mut kept = Array2::zeros(a.dim());
        self.positions().for_each(|at| kept[at] = a[at]);
        kept
    }
}

/// Lowers `tr((W - S) C (W - S)ᵀ)` from `values` over the matrices on the support, all rows at once: conjugate gradients with
/// the diagonal of `C` as preconditioner, and the energy after each step.
pub(crate) fn refit(
    w: &Array2<f64>,
    support: &Support,
    mut values: Array2<f64>,
    c: &Array2<f64>,
    steps: usize,
    run: &Run<'_>,
) -> Result<(Array2<f64>, Vec<f64>)> {
    let inverse: Vec<f64> = c.diag().iter().map(|&d| if d > 0.0 { 1.0 / d } else { 0.0 }).collect();
    let precondition = |r: &Array2<f64>| {
        let mut z = r.clone();
        z.outer_iter_mut().for_each(|mut row| row.iter_mut().zip(&inverse).for_each(|(z, d)| *z *= d));
        z
    };
    let error = w - &values;
    let ec = matmul(&error, c, run.threads());
    let mut energy: f64 = Zip::from(&ec).and(&error).fold(0.0, |sum, a, b| sum + a * b);
    let mut residual = support.mask(&ec);
    let mut direction = precondition(&residual);
    let dots = |a: &Array2<f64>, b: &Array2<f64>| -> Vec<f64> {
        a.outer_iter().zip(b.outer_iter()).map(|(a, b)| a.dot(&b)).collect()
    };
    let mut slope = dots(&residual, &direction);
    let mut history = Vec::new();
    for _ in 0..steps {
        run.check()?;
        let image = support.mask(&matmul(&direction, c, run.threads()));
        let curvature = dots(&direction, &image);
        let mut gain = 0.0;
        for i in 0..w.nrows() {
            // Rows that are done have no slope; directions without curvature cannot be told from rounding.
            let scale = direction
                .row(i)
                .iter()
                .zip(&inverse)
                .fold(0.0, |s, (p, d)| if *d > 0.0 { s + p * p / d } else { s });
            if slope[i] <= 0.0 || curvature[i] <= 1e-14 * scale {
                direction.row_mut(i).fill(0.0);
                slope[i] = 0.0;
                continue;
            }
            let alpha = slope[i] / curvature[i];
            gain += alpha * slope[i];
            values.row_mut(i).scaled_add(alpha, &direction.row(i));
            residual.row_mut(i).scaled_add(-alpha, &image.row(i));
        }
        energy -= gain;
        history.push(energy.max(0.0));
        if gain <= TOLERANCE * energy {
            break;
        }
        let z = precondition(&residual);
        let next = dots(&residual, &z);
        for i in 0..w.nrows() {
            let beta = if slope[i] > 0.0 { next[i] / slope[i] } else { 0.0 };
            let mut row = direction.row_mut(i);
            row *= beta;
            if slope[i] > 0.0 {
                row += &z.row(i);
            }
        }
        slope.iter_mut().zip(next).for_each(|(s, next)| *s = if *s > 0.0 { next } else { 0.0 });
    }
    Ok((values, history))
}

pub(super) fn fit(
    w: &Array2<f64>,
    spec: &SparseSpec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<Fit<Sparse>> {
    let (m, n) = w.dim();
    if spec.nnz == 0 || spec.nnz > m * n {
        return Err(Error::parameter("nnz", spec.nnz, format!("1 to {}", m * n)));
    }
    let plain = w.mapv(|v| v * v);
    let Some(c) = objective.second_moment() else {
        return Ok(Fit::optimal(Sparse::keep(run.storage(), w, Support::choose(&plain, spec)?)));
    };
    let scored = Support::choose(&(&plain * &c.diag()), spec)?;
    if c.indexed_iter().all(|((i, j), v)| i == j || *v == 0.0) {
        return Ok(Fit::optimal(Sparse::keep(run.storage(), w, scored)));
    }
    let plain = Support::choose(&plain, spec)?;
    // The support that loses less before its values move; they only lower that, so the plain projection is never better.
    let lost = |support: &Support| objective.energy(&(w - &support.mask(w)));
    let (before, support) = match (lost(&plain), lost(&scored)) {
        (a, b) if a < b => (a, plain),
        (_, b) => (b, scored),
    };
    let start = support.mask(w);
    let (values, history) = refit(w, &support, start.clone(), c, run.max_iterations(STEPS), run)?;
    let scale = objective.energy(w).sqrt();
    let (values, history) = match objective.energy(&(w - &values)) <= before {
        true => (values, history.iter().map(|e| ratio(e.sqrt(), scale)).collect()),
        false => (start, Vec::new()),
    };
    Ok(Fit::local(Sparse::keep(run.storage(), &values, support), history))
}
