//! Exact linear assignment.

use super::check_finite;
use crate::error::{Error, Result};
use ndarray::ArrayRef2;

/// The assignment of least total cost: for an `n x m` cost matrix with `n <= m`, the column given to
/// each row, all different. Shortest augmenting paths with potentials (Jonker-Volgenant), `O(n² m)`.
///
/// # Errors
/// [`Error::Shape`] when there are more rows than columns, [`Error::NonFinite`] for NaN or infinite
/// costs.
pub fn assignment(cost: &ArrayRef2<f64>) -> Result<Vec<usize>> {
    let (n, m) = cost.dim();
    if n > m {
        return Err(Error::shape("assignment cost (rows <= columns)", &[m, m], &[n, m]));
    }
    check_finite("assignment cost", cost)?;
    let mut row_potential = vec![0.0; n];
    let mut col_potential = vec![0.0; m];
    let mut row_of: Vec<Option<usize>> = vec![None; m];
    // Per search: the cheapest reduced way to each column, and the column before it on that path.
    let mut distance = vec![0.0; m];
    let mut previous: Vec<Option<usize>> = vec![None; m];
    let mut visited = vec![false; m];
    for start in 0..n {
        distance.fill(f64::INFINITY);
        previous.fill(None);
        visited.fill(false);
        let mut row = start;
        let mut via = None;
        let mut reached = 0.0;
        let mut tree = Vec::new();
        let end = loop {
            let mut next: Option<usize> = None;
            for j in (0..m).filter(|&j| !visited[j]) {
                let through = reached + (cost[[row, j]] - row_potential[row] - col_potential[j]);
                if through < distance[j] {
                    distance[j] = through;
                    previous[j] = via;
                }
                if next.is_none_or(|best| distance[j] < distance[best]) {
                    next = Some(j);
                }
            }
            // Columns outnumber the rows in the tree, so one is always left.
            let Some(j) = next else { return Err(Error::NoConvergence("the assignment")) };
            visited[j] = true;
            reached = distance[j];
            match row_of[j] {
                None => break j,
                Some(taken) => {
                    tree.push(j);
                    via = Some(j);
                    row = taken;
                }
            }
        };
        row_potential[start] += reached;
        for &j in &tree {
            let slack = reached - distance[j];
            col_potential[j] -= slack;
            if let Some(i) = row_of[j] {
                row_potential[i] += slack;
            }
        }
        // Shift the matches along the path back to the starting row.
        let mut j = end;
        while let Some(before) = previous[j] {
            row_of[j] = row_of[before];
            j = before;
        }
        row_of[j] = Some(start);
    }
    let mut columns = vec![0; n];
    for (j, row) in row_of.iter().enumerate() {
        if let Some(i) = row {
            columns[*i] = j;
        }
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::super::testing::gaussian;
    use super::*;
    use ndarray::{Array2, array};

    fn best(cost: &Array2<f64>, row: usize, used: &mut Vec<bool>) -> f64 {
        if row == cost.nrows() {
            return 0.0;
        }
        let mut least = f64::INFINITY;
        for j in 0..cost.ncols() {
            if !used[j] {
                used[j] = true;
                least = least.min(cost[[row, j]] + best(cost, row + 1, used));
                used[j] = false;
            }
        }
        least
    }

    fn total(cost: &Array2<f64>, columns: &[usize]) -> f64 {
        let mut seen = vec![false; cost.ncols()];
        for &j in columns {
            assert!(!std::mem::replace(&mut seen[j], true));
        }
        columns.iter().enumerate().map(|(i, &j)| cost[[i, j]]).sum()
    }

    #[test]
    fn agrees_with_brute_force() {
        for seed in 0..60 {
            let n = 1 + seed % 6;
            let m = n + seed % 3;
            let mut cost = gaussian(n, m, seed as u64);
            if seed % 2 == 0 {
                // Ties.
                cost.mapv_inplace(|x| x.round());
            }
            let got = total(&cost, &assignment(&cost).unwrap());
            assert!((got - best(&cost, 0, &mut vec![false; m])).abs() < 1e-12, "seed {seed}");
        }
    }

    #[test]
    fn recovers_a_permutation() {
        let n = 100;
        let cost = Array2::from_shape_fn((n, n), |(i, j)| if (i * 37 + 11) % n == j { -5.0 } else { 1.0 });
        let got = assignment(&cost).unwrap();
        assert!(got.iter().enumerate().all(|(i, &j)| j == (i * 37 + 11) % n));
    }

    #[test]
    fn bad_input() {
        assert!(assignment(&Array2::zeros((3, 2))).is_err());
        assert!(matches!(assignment(&array![[f64::NAN]]), Err(Error::NonFinite { .. })));
        assert!(assignment(&Array2::zeros((0, 2))).unwrap().is_empty());
    }
}
