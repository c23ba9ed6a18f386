//! Which of many things may share one: by the least squares that sharing costs, or by similarity of pairs.

use super::Run;
use crate::error::Result;
use ndarray::ArrayRef2;

/// Ward's method: from every thing alone, the two groups whose union adds least to the sum of squared distances from group means are joined,
/// until `groups` are left. `kernel` holds the inner products of the things. The group of each; groups are numbered by their first member.
/// `O(n²)` memory, usually `O(n²)` time.
pub(crate) fn ward(kernel: &ArrayRef2<f64>, groups: usize, run: &Run<'_>) -> Result<Vec<usize>> {
    let n = kernel.nrows();
    let mut cost = ndarray::Array2::from_shape_fn((n, n), |(i, j)| {
        (0.5 * (kernel[[i, i]] + kernel[[j, j]]) - kernel[[i, j]]).max(0.0)
    });
    let (mut root, mut size, mut open) = ((0..n).collect::<Vec<_>>(), vec![1.0; n], vec![true; n]);
    let nearest = |cost: &ndarray::Array2<f64>, open: &[bool], i: usize| {
        let others = (0..n).filter(|&j| open[j] && j != i);
        others.min_by(|&j, &k| cost[[i, j]].total_cmp(&cost[[i, k]])).unwrap_or(i)
    };
    let mut near: Vec<usize> = (0..n).map(|i| nearest(&cost, &open, i)).collect();
    for _ in groups.max(1)..n {
        run.check()?;
        let closest = (0..n).filter(|&i| open[i]);
        let Some(i) = closest.min_by(|&i, &j| cost[[i, near[i]]].total_cmp(&cost[[j, near[j]]])) else {
            break;
        };
        let (a, b) = (i.min(near[i]), i.max(near[i]));
        let (joined, between) = (size[a] + size[b], cost[[a, b]]);
        open[b] = false;
        for c in (0..n).filter(|&c| open[c] && c != a) {
            let parts = (size[a] + size[c]) * cost[[a, c]] + (size[b] + size[c]) * cost[[b, c]];
            let next = ((parts - size[c] * between) / (joined + size[c])).max(0.0);
            (cost[[a, c]], cost[[c, a]]) = (next, next);
        }
        size[a] = joined;
        root.iter_mut().filter(|root| **root == b).for_each(|root| *root = a);
        for c in (0..n).filter(|&c| open[c]).collect::<Vec<_>>() {
            if c == a || near[c] == a || near[c] == b {
                near[c] = nearest(&cost, &open, c);
            } else if cost[[c, a]] < cost[[c, near[c]]] {
                near[c] = a;
            }
        }
    }
    Ok(numbered(&root).0)
}

/// The `joins` most similar pairs, each of two things that were not joined before, most similar first; and for each thing the first of those
/// that it is joined with. `score` is asked for `i < j`; pairs without one are no candidates. Fewer pairs where candidates run out.
pub(crate) fn join_pairs(
    n: usize,
    joins: usize,
    score: impl Fn(usize, usize) -> Option<f64>,
) -> (Vec<usize>, Vec<(usize, usize, f64)>) {
    let all = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
    let mut pairs: Vec<_> = all.filter_map(|(i, j)| score(i, j).map(|score| (i, j, score))).collect();
    pairs.sort_by(|a, b| b.2.total_cmp(&a.2));
    let mut root: Vec<usize> = (0..n).collect();
    let mut taken = Vec::new();
    for (i, j, score) in pairs {
        if taken.len() == joins {
            break;
        }
        let (a, b) = (root[i].min(root[j]), root[i].max(root[j]));
        if a != b {
            root.iter_mut().filter(|root| **root == b).for_each(|root| *root = a);
            taken.push((i, j, score));
        }
    }
    (root, taken)
}

/// Groups numbered by their first member, of which `root` is any label: the group of each, and the first member of each group.
pub(crate) fn numbered(root: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut firsts: Vec<usize> = Vec::new();
    let mut labels = std::collections::HashMap::new();
    let groups = root.iter().enumerate().map(|(i, label)| {
        *labels.entry(*label).or_insert_with(|| {
            firsts.push(i);
            firsts.len() - 1
        })
    });
    (groups.collect(), firsts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::testing::gaussian;
    use crate::projection::Options;

    /// Sum of squared distances from group means.
    fn spread(points: &ndarray::Array2<f64>, groups: &[usize]) -> f64 {
        let count = groups.iter().max().unwrap() + 1;
        let mut total = 0.0;
        for g in 0..count {
            let members: Vec<usize> = (0..groups.len()).filter(|&i| groups[i] == g).collect();
            let chosen = points.select(ndarray::Axis(0), &members);
            let mean = chosen.mean_axis(ndarray::Axis(0)).unwrap();
            total += (&chosen - &mean).iter().map(|v| v * v).sum::<f64>();
        }
        total
    }

    #[test]
    fn each_join_of_ward_costs_the_least() {
        let (points, options) = (gaussian(14, 3, 5), Options::default());
        let run = Run::new(&options);
        let kernel = points.dot(&points.t());
        let mut before = ward(&kernel, 14, &run).unwrap();
        assert_eq!(before, (0..14).collect::<Vec<_>>());
        for count in (1..14).rev() {
            let after = ward(&kernel, count, &run).unwrap();
            // Every union of two of the groups before.
            let mut least = f64::INFINITY;
            for a in 0..=count {
                for b in a + 1..=count {
                    let joined: Vec<usize> = before.iter().map(|&g| if g == b { a } else { g }).collect();
                    let joined = numbered(&joined).0;
                    least = least.min(spread(&points, &joined));
                }
            }
            assert!((spread(&points, &after) - least).abs() < 1e-10, "{count}");
            before = after;
        }
        assert!(before.iter().all(|&g| g == 0));
    }

    #[test]
    fn pairs_join_once_and_the_first_stays() {
        let score = |i: usize, j: usize| {
            [(1, 3, 0.9), (0, 3, 0.8), (0, 1, 0.7), (2, 4, 0.6)]
                .iter()
                .find(|(a, b, _)| (*a, *b) == (i, j))
                .map(|(.., s)| *s)
        };
        let (root, pairs) = join_pairs(5, 3, score);
        assert_eq!(root, [0, 0, 2, 0, 2]);
        assert_eq!(pairs.iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(1, 3), (0, 3), (2, 4)]);
        assert_eq!(join_pairs(5, 0, score).0, [0, 1, 2, 3, 4]);
        assert_eq!(join_pairs(5, 9, score).1.len(), 3, "candidates run out");
        assert_eq!(numbered(&[7, 3, 7, 5]), (vec![0, 1, 0, 2], vec![0, 1, 3]));
    }
}
