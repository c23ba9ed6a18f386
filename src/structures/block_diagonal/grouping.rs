//! Which rows and columns meet in the blocks of a permuted block-diagonal matrix.

use crate::error::Result;
use crate::linalg;
use crate::projection::Run;
use ndarray::Array2;
use rand::Rng;

/// A group for every row and every column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Grouping {
    pub(super) rows: Vec<usize>,
    pub(super) cols: Vec<usize>,
}

/// Starts: the order as it is, alike columns together, and random ones.
const STARTS: usize = 10;
/// Alternations per start at most; each raises the score, few are needed.
const ALTERNATIONS: usize = 50;

/// The group of each of `len` features when groups are consecutive runs of `size`.
pub(super) fn consecutive(len: usize, size: usize) -> Vec<usize> {
    (0..len).map(|i| i / size).collect()
}

/// The grouping into `blocks` groups that keeps the most of `score` (out x in, non-negative) inside the blocks, as far as alternating between
/// optimal row groups and optimal column groups finds it, from several starts.
pub(super) fn best(score: &Array2<f64>, blocks: usize, run: &Run<'_>) -> Result<Grouping> {
    let (m, n) = score.dim();
    let sizes = |len: usize| capacities(len, blocks);
    let transposed = score.t().as_standard_layout().to_owned();
    let mut shuffled = consecutive(n, n.div_ceil(blocks));
    let mut start_cols = shuffled.clone();
    let mut random = run.gaussian(1);
    let mut best: Option<(f64, Grouping)> = None;
    for start in 0..STARTS {
        run.check()?;
        let mut grouping = Grouping { rows: consecutive(m, m.div_ceil(blocks)), cols: start_cols };
        let mut kept = captured(score, &grouping);
        for _ in 0..ALTERNATIONS {
            let affinity = affinities(score, &grouping.cols, blocks);
            assign(&affinity, &mut grouping.rows, &sizes(m));
            let affinity = affinities(&transposed, &grouping.rows, blocks);
            assign(&affinity, &mut grouping.cols, &sizes(n));
            let next = captured(score, &grouping);
            if next <= kept * (1.0 + 1e-12) {
                kept = kept.max(next);
                break;
            }
            kept = next;
        }
        if best.as_ref().is_none_or(|(found, _)| kept > *found) {
            best = Some((kept, grouping));
        }
        run.step(start + 1, STARTS, None)?;
        start_cols = if start == 0 {
            alike(score, &sizes(n), run)
        } else {
            // Fisher and Yates.
            for i in (1..n).rev() {
                shuffled.swap(i, (random.rng().next_u64() % (i as u64 + 1)) as usize);
            }
            shuffled.clone()
        };
    }
    let as_it_is =
        || Grouping { rows: consecutive(m, m.div_ceil(blocks)), cols: consecutive(n, n.div_ceil(blocks)) };
    Ok(best.map_or_else(as_it_is, |(_, grouping)| grouping))
}

/// Column groups around seeds: the column of most energy left, and those whose profiles over the rows are most like its.
fn alike(score: &Array2<f64>, sizes: &[usize], run: &Run<'_>) -> Vec<usize> {
    let n = score.ncols();
    let similarity = linalg::matmul_tn(score, score, run.threads());
    let mut groups = vec![usize::MAX; n];
    for (group, &size) in sizes.iter().enumerate().filter(|(_, size)| **size > 0) {
        let open: Vec<usize> = (0..n).filter(|j| groups[*j] == usize::MAX).collect();
        let Some(&seed) =
            open.iter().max_by(|a, b| similarity[[**a, **a]].total_cmp(&similarity[[**b, **b]]))
        else {
            break;
        };
        let cosine = |j: usize| similarity[[seed, j]] / similarity[[j, j]].sqrt().max(f64::MIN_POSITIVE);
        let mut order: Vec<(f64, usize)> = open.iter().map(|&j| (cosine(j), j)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        order.iter().take(size).for_each(|&(_, j)| groups[j] = group);
    }
    groups
}

/// How many features each group holds: runs of equal size, what is left in the last ones.
fn capacities(len: usize, blocks: usize) -> Vec<usize> {
    let size = len.div_ceil(blocks);
    (0..blocks).map(|g| len.saturating_sub(g * size).min(size)).collect()
}

fn captured(score: &Array2<f64>, grouping: &Grouping) -> f64 {
    let row = |(row, group): (ndarray::ArrayView1<'_, f64>, &usize)| {
        row.iter().zip(&grouping.cols).filter(|(_, g)| *g == group).map(|(v, _)| v).sum::<f64>()
    };
    score.outer_iter().zip(&grouping.rows).map(row).sum()
}

/// For each row, the score it would have in each group.
fn affinities(score: &Array2<f64>, cols: &[usize], blocks: usize) -> Array2<f64> {
    let mut affinity = Array2::zeros((score.nrows(), blocks));
    for (row, mut out) in score.outer_iter().zip(affinity.outer_iter_mut()) {
        row.iter().zip(cols).for_each(|(v, &g)| out[g] += v);
    }
    affinity
}

/// The best assignment of rows to groups of given sizes: a transportation problem, solved by cancelling negative cycles between
/// groups (moving one row along each edge of a cycle keeps the sizes) until none is left, which proves optimality. Starts from `groups`
/// where its sizes are right.
fn assign(affinity: &Array2<f64>, groups: &mut [usize], sizes: &[usize]) {
    let (rows, blocks) = affinity.dim();
    debug_assert_eq!(sizes.iter().sum::<usize>(), rows);
    greedy(affinity, groups, sizes);
    // gain[g][h]: the most that moving one row from g to h gains, and the row.
    let mut edges = vec![vec![(f64::NEG_INFINITY, usize::MAX); blocks]; blocks];
    let fill = |edges: &mut Vec<Vec<(f64, usize)>>, from: usize, groups: &[usize]| {
        edges[from].fill((f64::NEG_INFINITY, usize::MAX));
        for (row, _) in groups.iter().enumerate().filter(|(_, g)| **g == from) {
            for to in 0..blocks {
                let gain = affinity[[row, to]] - affinity[[row, from]];
                if gain > edges[from][to].0 {
                    edges[from][to] = (gain, row);
                }
            }
        }
    };
    (0..blocks).for_each(|g| fill(&mut edges, g, groups));
    let scale = affinity.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    // Each cycle raises the score; the bound only guards against cycles of rounding errors.
    for _ in 0..20 * rows {
        let Some(cycle) = gaining_cycle(&edges, 1e-12 * scale) else { break };
        for pair in 0..cycle.len() {
            let (from, to) = (cycle[pair], cycle[(pair + 1) % cycle.len()]);
            groups[edges[from][to].1] = to;
        }
        cycle.iter().for_each(|&g| fill(&mut edges, g, groups));
    }
}

/// Rows of the largest regret first, each into the best group that has room.
fn greedy(affinity: &Array2<f64>, groups: &mut [usize], sizes: &[usize]) {
    let regret = |row: usize| {
        let (mut first, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        for &v in affinity.row(row) {
            (first, second) = if v > first { (v, first) } else { (first, second.max(v)) };
        }
        if second.is_finite() { first - second } else { 0.0 }
    };
    let mut order: Vec<(f64, usize)> = (0..groups.len()).map(|row| (regret(row), row)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut room = sizes.to_vec();
    for (_, row) in order {
        let open = (0..sizes.len()).filter(|g| room[*g] > 0);
        if let Some(group) = open.max_by(|a, b| affinity[[row, *a]].total_cmp(&affinity[[row, *b]])) {
            room[group] -= 1;
            groups[row] = group;
        }
    }
}

/// A simple cycle of groups whose edges gain more than `least` in total, by Bellman and Ford.
fn gaining_cycle(edges: &[Vec<(f64, usize)>], least: f64) -> Option<Vec<usize>> {
    let blocks = edges.len();
    let (mut distance, mut parent) = (vec![0.0; blocks], vec![usize::MAX; blocks]);
    let mut touched = None;
    for _ in 0..blocks {
        touched = None;
        for from in 0..blocks {
            for to in (0..blocks).filter(|to| *to != from) {
                let reach = distance[from] + edges[from][to].0;
                if reach > distance[to] + least {
                    (distance[to], parent[to], touched) = (reach, from, Some(to));
                }
            }
        }
        touched?;
    }
    // After that many rounds a group that still changes hangs on a cycle: walk into it, then around.
    let mut group = touched?;
    for _ in 0..blocks {
        group = parent[group];
    }
    let mut cycle = vec![group];
    let mut at = parent[group];
    while at != group {
        cycle.push(at);
        at = parent[at];
    }
    cycle.reverse();
    let gain: f64 = (0..cycle.len()).map(|k| edges[cycle[k]][cycle[(k + 1) % cycle.len()]].0).sum();
    (gain > least).then_some(cycle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::assignment;

    /// Against the Hungarian method on an expanded square problem.
    #[test]
    fn capacitated_assignment_is_optimal() {
        for (seed, rows, blocks) in [(1, 12, 3), (2, 20, 5), (3, 24, 2), (4, 18, 6), (5, 7, 7)] {
            let affinity = crate::random::Gaussian::new(seed).matrix(rows, blocks, 1.0);
            let sizes = capacities(rows, blocks);
            let slots: Vec<usize> = (0..blocks).flat_map(|g| std::iter::repeat_n(g, sizes[g])).collect();
            let cost = Array2::from_shape_fn((rows, rows), |(i, k)| -affinity[[i, slots[k]]]);
            let best: f64 =
                assignment(&cost).unwrap().iter().enumerate().map(|(i, &k)| affinity[[i, slots[k]]]).sum();
            let mut groups = consecutive(rows, rows.div_ceil(blocks));
            assign(&affinity, &mut groups, &sizes);
            let found: f64 = groups.iter().enumerate().map(|(i, &g)| affinity[[i, g]]).sum();
            assert!((found - best).abs() < 1e-9, "{found} against {best}");
            for (g, size) in sizes.iter().enumerate() {
                assert_eq!(groups.iter().filter(|h| **h == g).count(), *size);
            }
        }
    }
}
