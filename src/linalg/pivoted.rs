//! Column-pivoted QR, and the greedy choice of independent columns.

use super::convert::standard;
use super::{Qr, qr};
use ndarray::{Array2, ArrayRef2, Axis, s};

/// A column-pivoted QR decomposition: column `j` of `Q R` is column `pivots[j]` of `A`.
#[derive(Debug, Clone)]
pub struct PivotedQr {
    /// Orthonormal columns, `m x k` with `k = min(m, n)`.
    pub q: Array2<f64>,
    /// Upper trapezoidal, `k x n`, with a non-negative, non-increasing diagonal.
    pub r: Array2<f64>,
    /// The order of the columns of `A`: a permutation of `0..n`.
    pub pivots: Vec<usize>,
}

/// Column-pivoted QR of an `m x n` matrix, `O(m n k)` flops: the pivots are chosen greedily, then the
/// permuted matrix is factorised by blocked reflections. Entries must be finite.
pub fn pivoted_qr(a: &ArrayRef2<f64>) -> PivotedQr {
    let (m, n) = a.dim();
    let (mut pivots, _) = pivot_columns(a, m.min(n));
    let mut chosen = vec![false; n];
    pivots.iter().for_each(|&j| chosen[j] = true);
    pivots.extend((0..n).filter(|&j| !chosen[j]));
    let Qr { q, r } = qr(&a.select(Axis(1), &pivots));
    PivotedQr { q, r, pivots }
}

/// An orthonormal basis, `m x rank`, of the column space of `a`: the directions of a pivoted QR whose
/// diagonal exceeds `rel_tol` times its largest. Empty (`m x 0`) for a zero matrix. `O(m n k)` flops.
pub fn orth(a: &ArrayRef2<f64>, rel_tol: f64) -> Array2<f64> {
    let PivotedQr { q, r, .. } = pivoted_qr(a);
    let diagonal = r.diag();
    let top = diagonal.first().copied().unwrap_or(0.0);
    let rank = diagonal.iter().take_while(|&&x| x > 0.0 && x > rel_tol * top).count();
    standard(&q.slice(s![.., ..rank]))
}

/// The first `k` pivot columns of a column-pivoted QR, and the diagonal `|R_jj|`, in `O(m n k)` flops
/// without forming the rest of the decomposition. `k` is capped at `n`; once the columns are exhausted
/// (rank reached) the lowest unused indices follow with diagonal 0. Entries must be finite.
pub fn pivot_columns(a: &ArrayRef2<f64>, k: usize) -> (Vec<usize>, Vec<f64>) {
    let (m, n) = a.dim();
    let k = k.min(n);
    let a = standard(a);
    let mut norms = vec![0.0; n];
    for row in a.outer_iter() {
        norms.iter_mut().zip(row).for_each(|(s, x)| *s += x * x);
    }
    // The norms at the last exact computation: downdating loses digits relative to these.
    let mut fresh = norms.clone();
    let floor = norms.iter().fold(0.0, |m: f64, &x| m.max(x)) * (f64::EPSILON * f64::EPSILON) * 100.0;
    let mut used = vec![false; n];
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(k);
    let (mut pivots, mut diagonal) = (Vec::with_capacity(k), Vec::with_capacity(k));
    while pivots.len() < k {
        let best =
            (0..n).filter(|&j| !used[j]).max_by(|&i, &j| norms[i].total_cmp(&norms[j]).then(j.cmp(&i)));
        let Some(pivot) = best else { break };
        let mut q = residual(&a, pivot, &basis);
        let norm = q.iter().map(|x| x * x).sum::<f64>().sqrt();
        let exhausted = basis.len() >= m || norm * norm <= floor;
        // A downdated norm that proves far too large is corrected, and the choice made again.
        if !exhausted && norms[pivot] > 1.5 * norm * norm && fresh[pivot] != norm * norm {
            norms[pivot] = norm * norm;
            fresh[pivot] = norm * norm;
            continue;
        }
        used[pivot] = true;
        pivots.push(pivot);
        if exhausted {
            norms[pivot] = 0.0;
            diagonal.push(0.0);
            continue;
        }
        diagonal.push(norm);
        q.iter_mut().for_each(|x| *x /= norm);
        let mut coefficients = vec![0.0; n];
        for (&x, row) in q.iter().zip(a.outer_iter()) {
            coefficients.iter_mut().zip(row).for_each(|(c, y)| *c += x * y);
        }
        basis.push(q);
        for j in (0..n).filter(|&j| !used[j]) {
            norms[j] = (norms[j] - coefficients[j] * coefficients[j]).max(0.0);
            if norms[j] <= 1e-8 * fresh[j] && fresh[j] > floor {
                let exact: f64 = residual(&a, j, &basis).iter().map(|x| x * x).sum();
                norms[j] = exact;
                fresh[j] = exact;
            }
        }
    }
    (pivots, diagonal)
}

/// Column `j` of `a` made orthogonal to the basis; two passes, so that it is so to rounding.
fn residual(a: &Array2<f64>, j: usize, basis: &[Vec<f64>]) -> Vec<f64> {
    let mut column = a.column(j).to_vec();
    for _ in 0..2 {
        for q in basis {
            let c: f64 = q.iter().zip(&column).map(|(x, y)| x * y).sum();
            column.iter_mut().zip(q).for_each(|(x, y)| *x -= c * y);
        }
    }
    column
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian, orthogonality, with_spectrum};
    use super::*;
    use ndarray::Axis;

    fn check(a: &Array2<f64>) {
        let PivotedQr { q, r, pivots } = pivoted_qr(a);
        let mut sorted = pivots.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..a.ncols()).collect::<Vec<_>>());
        assert!(orthogonality(&q) < 1e-13);
        assert!(diff(&q.dot(&r), &a.select(Axis(1), &pivots)) < 1e-12);
        let d = r.diag().to_vec();
        assert!(d.windows(2).all(|w| w[0] >= w[1] - 1e-12 * d[0]), "{d:?}");
        assert!(d.iter().all(|&x| x >= 0.0));
        let k = d.len();
        let (own, diagonal) = pivot_columns(a, k);
        for i in 0..k {
            assert!((diagonal[i] - d[i]).abs() < 1e-10 * d[0].max(1e-300), "{i}: {} {}", diagonal[i], d[i]);
            if d[i] > 1e-10 * d[0] {
                assert_eq!(own[i], pivots[i]);
            }
        }
    }

    #[test]
    fn decompositions() {
        for (m, n) in [(1, 1), (9, 6), (6, 9), (50, 40), (40, 50)] {
            check(&gaussian(m, n, 3));
        }
        check(&Array2::zeros((4, 3)));
        check(&gaussian(12, 3, 1).dot(&gaussian(3, 10, 2)));
        let s: Vec<f64> = (0..20).map(|k| 10f64.powi(-k)).collect();
        check(&with_spectrum(30, 20, &s[..12], 6));
    }

    #[test]
    fn pivots_continue_past_the_rank() {
        let a = gaussian(12, 3, 1).dot(&gaussian(3, 10, 2));
        let (pivots, diagonal) = pivot_columns(&a, 99);
        assert_eq!(pivots.len(), 10);
        let mut sorted = pivots.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert!(diagonal[2] > 1e-3 && diagonal[3..].iter().all(|&x| x < 1e-12));
        assert_eq!(pivot_columns(&a, 0).0.len(), 0);
    }

    #[test]
    fn bases() {
        let a = gaussian(12, 3, 1).dot(&gaussian(3, 10, 2));
        let q = orth(&a, 1e-10);
        assert_eq!(q.dim(), (12, 3));
        assert!(orthogonality(&q) < 1e-13);
        assert!(diff(&q.dot(&q.t().dot(&a)), &a) < 1e-12);
        assert_eq!(orth(&Array2::zeros((5, 2)), 1e-10).dim(), (5, 0));
        assert_eq!(orth(&Array2::zeros((0, 2)), 1e-10).dim(), (0, 0));
    }
}
