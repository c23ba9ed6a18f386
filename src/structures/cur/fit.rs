//! Choosing rows and columns, and the link between them.

use super::{Cur, CurMetric, CurSelection, CurSpec};
use crate::error::{Error, Result};
use crate::linalg::{self, Svd, SvdMethod, SvdOptions, matmul, matmul_nt, matmul_tn};
use crate::matrix::StructuredMatrix;
use crate::projection::{Fit, Objective, Run, largest, select};
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Axis, s};

/// Rounds of choosing rows for columns and columns for rows at most.
const ROUNDS: usize = 4;

/// Pivots below this fraction of the first count as dependent: the link would amplify the rounding of the storage.
fn dependent(storage: Storage) -> f64 {
    if storage == Storage::F64 { 1e-7 } else { 1e-4 }
}

/// Chosen rows and columns.
#[derive(Debug, Clone, PartialEq)]
struct Choice {
    rows: Vec<usize>,
    cols: Vec<usize>,
}

pub(super) fn fit(
    w: &Array2<f64>,
    spec: &CurSpec,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<Fit<Cur>> {
    let (m, n) = w.dim();
    if spec.rank == 0 || spec.rank > m.min(n) {
        return Err(Error::parameter("rank", spec.rank, format!("1 to {}", m.min(n))));
    }
    let c = objective.second_moment();
    if let (None, Some(metric)) = (c, spec.metric)
        && metric != CurMetric::Weight
    {
        return Err(Error::parameter(
            "metric",
            format!("{metric:?}"),
            "Weight, where there are no activations",
        ));
    }
    let root = objective.root()?;
    let seen = root.map(|root| matmul(w, root, run.threads()));
    let rank = match spec.energy {
        None => spec.rank,
        Some(energy) => rank_of_energy(seen.as_ref().unwrap_or(w), energy, run)?.min(spec.rank),
    };
    let link = |choice: &Choice, weighted: bool| {
        let (seen, root) = if weighted { (seen.as_ref(), root) } else { (None, None) };
        build(w, seen, root, choice, spec.fused, run)
    };
    let plain = choose(w, w, rank, spec.selection, run)?;
    let mut found: Option<(f64, Cur)> = None;
    for choice in &plain {
        let cur = link(&independent(w, choice.clone(), run.storage()), false)?;
        let energy = Objective::Frobenius.energy(&(w - &cur.to_dense_f64()));
        if found.as_ref().is_none_or(|(least, _)| energy < *least) {
            found = Some((energy, cur));
        }
    }
    let (_, mut best) = found.ok_or(Error::NoConvergence("the choice of rows and columns"))?;
    let (Some(c), Some(seen)) = (c, &seen) else { return Ok(Fit::local(best, Vec::new())) };
    let rms: Vec<f64> = c.diag().iter().map(|v| v.max(0.0).sqrt()).collect();
    let scaled = || Array2::from_shape_fn((m, n), |(i, j)| w[[i, j]] * rms[j]);
    let aware = match spec.metric {
        Some(CurMetric::Weight) => Vec::new(),
        Some(CurMetric::AbsWanda) => {
            let metric = scaled().mapv(f64::abs);
            choose(&metric, &metric, rank, spec.selection, run)?
        }
        Some(CurMetric::Wanda) => choose(w, &scaled(), rank, spec.selection, run)?,
        None | Some(CurMetric::Cov) => choose(w, seen, rank, spec.selection, run)?,
    };
    let energy = |cur: &Cur| objective.energy(&(w - &cur.to_dense_f64()));
    let mut least = energy(&best);
    for choice in plain.into_iter().chain(aware) {
        // Rows are told apart by what the activations see of them.
        let cur = link(&independent(seen, choice, run.storage()), true)?;
        let energy = energy(&cur);
        if energy < least {
            (best, least) = (cur, energy);
        }
    }
    Ok(Fit::local(best, Vec::new()))
}

fn rank_of_energy(a: &Array2<f64>, energy: f64, run: &Run<'_>) -> Result<usize> {
    let values = linalg::singular_values(a, run.threads())?;
    Ok(linalg::energy_rank(&values, energy).max(1))
}

/// Choices of `rank` rows and columns: one, or those among which [`CurSelection::Auto`] picks. `metric` is what is to be explained, by
/// columns of `w` and rows of `metric`.
fn choose(
    w: &Array2<f64>,
    metric: &Array2<f64>,
    rank: usize,
    selection: CurSelection,
    run: &Run<'_>,
) -> Result<Vec<Choice>> {
    let (m, n) = metric.dim();
    let vectors = || {
        let options = SvdOptions { method: SvdMethod::Auto, seed: run.seed(), ..Default::default() };
        linalg::truncated_svd(metric, rank, &options, run.threads()).map(|found| found.svd)
    };
    let both = |rows, cols| Ok(vec![Choice { rows, cols }]);
    let pivoted = |svd: &Svd| {
        let (rows, cols) =
            (linalg::pivot_columns(&svd.u.t(), rank).0, linalg::pivot_columns(&svd.vt, rank).0);
        Choice { rows, cols }
    };
    let interpolated =
        |svd: Svd| Choice { rows: interpolate(svd.u), cols: interpolate(svd.vt.reversed_axes()) };
    match selection {
        CurSelection::Auto => {
            let svd = vectors()?;
            Ok(vec![greedy(w, metric, rank, run)?, pivoted(&svd), interpolated(svd)])
        }
        CurSelection::Greedy => Ok(vec![greedy(w, metric, rank, run)?]),
        CurSelection::QDeim => Ok(vec![pivoted(&vectors()?)]),
        CurSelection::Deim => Ok(vec![interpolated(vectors()?)]),
        CurSelection::Published | CurSelection::PublishedLater => {
            let (svd, later) = (vectors()?, selection == CurSelection::PublishedLater);
            both(newest_point(svd.u, later), newest_point(svd.vt.reversed_axes(), later))
        }
        CurSelection::Leverage => {
            let svd = vectors()?;
            both(largest(&energies(&svd.u), rank), largest(&energies(&svd.vt.reversed_axes()), rank))
        }
        CurSelection::Magnitude => {
            let transposed = metric.t().to_owned();
            both(draw(&energies(metric), rank, 1, run), draw(&energies(&transposed), rank, 2, run))
        }
        CurSelection::Random => both(draw(&vec![1.0; m], rank, 1, run), draw(&vec![1.0; n], rank, 2, run)),
    }
}

/// Squared norms of rows.
fn energies(a: &Array2<f64>) -> Vec<f64> {
    a.outer_iter().map(|row| row.dot(&row)).collect()
}

/// `count` indices without repetition, drawn with probabilities proportional to `weights`.
fn draw(weights: &[f64], count: usize, stream: u64, run: &Run<'_>) -> Vec<usize> {
    let mut gaussian = run.gaussian(stream);
    // The largest weights divided by exponential variates are such a sample.
    let mut exponential = || 0.5 * (gaussian.sample().powi(2) + gaussian.sample().powi(2));
    let scores: Vec<f64> = weights.iter().map(|w| w / exponential().max(f64::MIN_POSITIVE)).collect();
    largest(&scores, count)
}

/// Discrete empirical interpolation points of the columns of `a`: Gaussian elimination with partial pivoting, whose residuals
/// vanish at all earlier points.
fn interpolate(mut a: Array2<f64>) -> Vec<usize> {
    points(&mut a, eliminate)
}

/// Takes column `k` from the columns after it so that these become zero at row `p`.
fn eliminate(a: &mut Array2<f64>, k: usize, p: usize) {
    let pivot = a.row(p).to_owned();
    if pivot[k] != 0.0 {
        for mut row in a.outer_iter_mut() {
            let factor = row[k] / pivot[k];
            (k + 1..pivot.len()).for_each(|l| row[l] -= factor * pivot[l]);
        }
    }
}

/// The points of the published codes. With the values `v` of the vectors up to the newest one at its point, all later vectors lose
/// `A v / |v|²`, times their own value at the point in the first version and once in the later one.
fn newest_point(mut a: Array2<f64>, later: bool) -> Vec<usize> {
    points(&mut a, |a, k, p| {
        let values = a.row(p).to_owned();
        let norm = values.slice(s![..=k]).dot(&values.slice(s![..=k]));
        // As published: nothing to take from a zero, or a bound.
        let norm = if later { norm.max(1e-12) } else { norm };
        if norm == 0.0 {
            return;
        }
        let taken = a.slice(s![.., ..=k]).dot(&values.slice(s![..=k])) / norm;
        for (mut row, taken) in a.outer_iter_mut().zip(&taken) {
            for l in k + 1..values.len() {
                row[l] -= if later { *taken } else { taken * values[l] };
            }
        }
    })
}

/// The largest entry of each column in turn, at rows not taken before; after each, `eliminate(a, column, row)` prepares the columns after
/// it.
fn points(a: &mut Array2<f64>, eliminate: impl Fn(&mut Array2<f64>, usize, usize)) -> Vec<usize> {
    let (m, r) = a.dim();
    let mut points = Vec::with_capacity(r);
    let mut used = vec![false; m];
    for k in 0..r {
        let open = (0..m).filter(|&i| !used[i]);
        let Some(p) = open.max_by(|&i, &j| a[[i, k]].abs().total_cmp(&a[[j, k]].abs()).then(j.cmp(&i)))
        else {
            break;
        };
        used[p] = true;
        points.push(p);
        eliminate(a, k, p);
    }
    points
}

/// Columns for the metric, rows for the columns, columns for the rows, while that explains more; and the same from rows.
fn greedy(w: &Array2<f64>, metric: &Array2<f64>, rank: usize, run: &Run<'_>) -> Result<Choice> {
    let threads = run.threads();
    let (col_kernel, row_kernel) = (linalg::gram(w, threads), matmul_nt(metric, metric, threads));
    let col_basis = |cols: &[usize]| linalg::qr(&w.select(Axis(1), cols)).q;
    let row_basis = |rows: &[usize]| linalg::qr(&metric.select(Axis(0), rows).t()).q;
    // Basis of columns to rows, and back.
    let rows_for = |q: &Array2<f64>| select(&row_kernel, matmul(&row_kernel, q, threads), rank, run);
    let cols_for =
        |q: &Array2<f64>| select(&col_kernel, matmul_tn(w, &matmul(metric, q, threads), threads), rank, run);
    let explained = |c: &Array2<f64>, r: &Array2<f64>| -> f64 {
        matmul(&matmul_tn(c, metric, threads), r, threads).iter().map(|v| v * v).sum()
    };
    let mut cols = select(&col_kernel, matmul_tn(w, metric, threads), rank, run)?;
    let mut best: Option<(f64, Choice)> = None;
    for _ in 0..ROUNDS {
        let q = col_basis(&cols);
        let rows = rows_for(&q)?;
        let p = row_basis(&rows);
        let energy = explained(&q, &p);
        if best.as_ref().is_some_and(|(most, _)| energy <= most * (1.0 + 1e-6)) {
            break;
        }
        best = Some((energy, Choice { rows, cols }));
        cols = cols_for(&p)?;
    }
    Ok(best.map_or(Choice { rows: vec![0], cols: vec![0] }, |(_, choice)| choice))
}

/// The rows and columns that are independent at the precision of `storage`, equally many of both. At least one.
fn independent(metric: &Array2<f64>, choice: Choice, storage: Storage) -> Choice {
    let keep = |a: Array2<f64>, list: &[usize]| -> Vec<usize> {
        let (order, pivots) = linalg::pivot_columns(&a, list.len());
        let limit = dependent(storage) * pivots.first().copied().unwrap_or(0.0);
        let count = pivots.iter().take_while(|&&p| p > limit).count();
        order[..count].iter().map(|&k| list[k]).collect()
    };
    let mut cols = keep(metric.select(Axis(1), &choice.cols), &choice.cols);
    let mut rows = keep(metric.select(Axis(0), &choice.rows).reversed_axes(), &choice.rows);
    let rank = rows.len().min(cols.len());
    if rank == 0 {
        return Choice { rows: vec![0], cols: vec![0] };
    }
    rows.truncate(rank);
    cols.truncate(rank);
    Choice { rows, cols }
}

/// `C U R` with the best link for these rows and columns.
fn build(
    w: &Array2<f64>,
    seen: Option<&Array2<f64>>,
    root: Option<&Array2<f64>>,
    choice: &Choice,
    fused: bool,
    run: &Run<'_>,
) -> Result<Cur> {
    let (c, r) = (w.select(Axis(1), &choice.cols), w.select(Axis(0), &choice.rows));
    let right = root.map_or_else(|| r.clone(), |root| matmul(&r, root, run.threads()));
    let half = linalg::lstsq(&c, seen.unwrap_or(w))?;
    let link = linalg::lstsq(&right.t(), &half.t())?.reversed_axes();
    let factor = |a: &Array2<f64>| Factor::from_matrix(run.storage(), a);
    let (c, u) = match fused {
        true => (factor(&matmul(&c, &link, run.threads())), None),
        false => (factor(&c), Some(factor(&link))),
    };
    let list = |list: &[usize]| list.iter().map(|&i| i as u32).collect();
    let (u, r) = (u.map(Factor::packed_forward), factor(&r).packed_forward());
    Ok(Cur { c: c.packed_forward(), u, r, rows: list(&choice.rows), cols: list(&choice.cols) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::testing::gaussian;

    #[test]
    fn curing_interpolation_leaves_nothing_at_earlier_points() {
        let vectors = linalg::qr(&gaussian(40, 12, 1)).q;
        let mut residuals = vectors.clone();
        let points = points(&mut residuals, eliminate);
        assert_eq!(points, interpolate(vectors.clone()));
        for k in 1..12 {
            let earlier = &points[..k];
            assert!(earlier.iter().all(|&p| residuals[[p, k]].abs() < 1e-12));
            // What is left is the error of interpolating vector k at the points before by the vectors before, and the next point its
            // largest.
            let (basis, target) = (vectors.slice(s![.., ..k]), vectors.slice(s![.., k..k + 1]));
            let c = linalg::lstsq(&basis.select(Axis(0), earlier), &target.select(Axis(0), earlier)).unwrap();
            let error = &target - &basis.dot(&c);
            let far = &error.column(0) - &residuals.column(k);
            assert!(far.iter().all(|v| v.abs() < 1e-12));
            let largest = error.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            assert!((error[[points[k], 0]].abs() - largest).abs() < 1e-12);
        }
    }

    #[test]
    fn curing_published_updates_are_zero_at_the_newest_point_only_or_nowhere() {
        let vectors = linalg::qr(&gaussian(40, 12, 1)).q;
        for later in [false, true] {
            let mut a = vectors.clone();
            let chosen = newest_point(vectors.clone(), later);
            let mut sorted = chosen.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), 12);
            // Both steps in a row by hand.
            let (mut newest, mut earlier) = (0.0f64, 0.0f64);
            for k in 0..11 {
                let values = a.row(chosen[k]).slice(s![..=k]).to_owned();
                let combination = a.slice(s![.., ..=k]).dot(&values) / values.dot(&values);
                for l in k + 1..12 {
                    let at = if later { 1.0 } else { a[[chosen[k], l]] };
                    a.column_mut(l).scaled_add(-at, &combination);
                }
                newest = newest.max(a[[chosen[k], k + 1]].abs());
                chosen[..k].iter().for_each(|&p| earlier = earlier.max(a[[p, k + 1]].abs()));
                // The next point is the largest entry of the next column that is not taken yet.
                let open = (0..40).filter(|i| !chosen[..=k].contains(i));
                let best = open.max_by(|&i, &j| a[[i, k + 1]].abs().total_cmp(&a[[j, k + 1]].abs())).unwrap();
                assert_eq!(best, chosen[k + 1]);
            }
            assert!(earlier > 0.01, "{earlier}");
            assert_eq!(newest < 1e-12, !later, "{newest}");
        }
    }
}
