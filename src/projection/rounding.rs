//! Rounding that sees what the inputs are: what one column loses to its codes, the columns after it make up for.

use crate::error::Result;
use crate::linalg::{self, Threads, matmul_tn};
use crate::storage::{Codes, Factor, GROUP, Storage};
use half::bf16;
use ndarray::{Array2, ArrayRef2, Axis, s};

/// Column after column, each rounded after the errors of those before it were moved onto it.
///
/// With $C = L D L^T$ in the order of the columns, $L$ unit *upper* triangular, the error $E$ of a matrix costs
/// $\operatorname{tr}(E C E^T) = \sum_k D_k \lVert E_k + \sum_{j<k} E_j L_{jk} \rVert^2$: when column $k$ is rounded after $\sum_{j<k} E_j L_{jk}$ is
/// added to it, its term is that of one rounding. Groups that share a scale stay together; those of large inputs come first, when the most
/// columns are left to make up for them. Cost: `in³ / 3` flops once, `out in²` for each matrix.
///
/// Source: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023; in the form of
/// J. Chee et al., "QuIP: 2-Bit Quantization of Large Language Models With Guarantees", 2023.
#[derive(Debug, Clone)]
pub(crate) struct Feedback {
    /// Columns in the order of their rounding.
    order: Vec<usize>,
    /// First columns of groups in that order, and their end.
    groups: Vec<usize>,
    /// $L$ in that order.
    upper: Array2<f64>,
    /// $D$.
    costs: Vec<f64>,
}

impl Feedback {
    /// For inputs of the second moment `c`.
    pub(crate) fn new(c: &ArrayRef2<f64>) -> Result<Self> {
        let n = c.nrows();
        let mut ranges: Vec<(f64, Vec<usize>)> = (0..n)
            .step_by(GROUP)
            .map(|first| {
                let mut columns: Vec<usize> = (first..n.min(first + GROUP)).collect();
                columns.sort_by(|&a, &b| c[[b, b]].total_cmp(&c[[a, a]]));
                (columns.iter().map(|&j| c[[j, j]]).sum::<f64>() / columns.len() as f64, columns)
            })
            .collect();
        ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut groups = vec![0];
        groups.extend(ranges.iter().scan(0, |end, (_, columns)| {
            *end += columns.len();
            Some(*end)
        }));
        let order: Vec<usize> = ranges.into_iter().flat_map(|(_, columns)| columns).collect();
        // Turned around, upper triangular is lower triangular.
        let turned = Array2::from_shape_fn((n, n), |(i, j)| c[[order[n - 1 - i], order[n - 1 - j]]]);
        let (l, _) = linalg::cholesky_shifted(&turned)?;
        let root = |k: usize| l[[n - 1 - k, n - 1 - k]];
        let upper = Array2::from_shape_fn((n, n), |(i, j)| l[[n - 1 - i, n - 1 - j]] / root(j));
        Ok(Self { costs: (0..n).map(|k| root(k) * root(k)).collect(), order, groups, upper })
    }

    /// `w` (out x in) in a storage; to nearest in those that have no codes.
    pub(crate) fn round(&self, w: &ArrayRef2<f64>, storage: Storage) -> Result<Factor> {
        let Some(codes) = Codes::of(storage) else { return Ok(Factor::from_matrix(storage, w)) };
        let (m, n) = w.dim();
        debug_assert_eq!(n, self.order.len());
        // Columns lie in rows here, in the order of their rounding.
        let w = w.t().select(Axis(0), &self.order);
        let mut errors = Array2::<f64>::zeros((n, m));
        let mut rounded = Array2::<i8>::zeros((m, n));
        let mut scales = Array2::from_elem((m, n.div_ceil(GROUP)), bf16::ZERO);
        for range in self.groups.windows(2) {
            let (first, end) = (range[0], range[1]);
            let (before, mut inside) = errors.view_mut().split_at(Axis(0), first);
            let moved = matmul_tn(&self.upper.slice(s![..first, first..end]), &before, Threads::ONE);
            let mut values = &w.slice(s![first..end, ..]) + &moved;
            let mut one = vec![0.0; end - first];
            let scale: Vec<bf16> = (0..m)
                .map(|i| {
                    one.iter_mut().zip(values.column(i)).for_each(|(to, from)| *to = *from);
                    codes.scale(&one, &self.costs[first..end])
                })
                .collect();
            for (k, &j) in self.order[first..end].iter().enumerate() {
                let (value, exact) = (values.row(k), w.row(first + k));
                for (i, error) in inside.row_mut(k).iter_mut().enumerate() {
                    let code = codes.code(value[i], scale[i]);
                    rounded[[i, j]] = code;
                    *error = exact[i] - f64::from(code) * scale[i].to_f64();
                }
                let error = inside.row(k);
                for later in k + 1..end - first {
                    values.row_mut(later).scaled_add(self.upper[[first + k, first + later]], &error);
                }
            }
            let group = self.order[first] / GROUP;
            scales.column_mut(group).iter_mut().zip(scale).for_each(|(to, from)| *to = from);
        }
        Factor::from_data((1, m, n), codes.data(&rounded, &scales))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{matmul, testing::gaussian};

    /// Inputs of which a few directions hold most.
    fn moment(n: usize, seed: u64) -> Array2<f64> {
        let (x, mut noise) = (gaussian(n.div_ceil(4), n, seed), Array2::<f64>::eye(n));
        noise *= 0.05;
        x.t().dot(&x) / x.nrows() as f64 + noise
    }

    fn cost(w: &Array2<f64>, factor: &Factor, c: &Array2<f64>) -> f64 {
        let e = w - &factor.matrix(0);
        (matmul(&e, c, Threads::ONE) * &e).sum()
    }

    #[test]
    fn errors_are_made_up_for() {
        for (m, n) in [(24, 96), (7, 33), (5, 100), (3, 1), (40, 64)] {
            let (w, c) = (gaussian(m, n, 1), moment(n, 2));
            let feedback = Feedback::new(&c).unwrap();
            for storage in [Storage::Int8, Storage::Int4] {
                let found = feedback.round(&w, storage).unwrap();
                assert_eq!((found.shape(), found.storage()), ((1, m, n), storage));
                let nearest = Factor::from_matrix(storage, &w);
                let (found, nearest) = (cost(&w, &found, &c), cost(&w, &nearest, &c));
                if n >= 64 {
                    assert!(found < 0.5 * nearest, "{m} x {n} {storage}: {found} against {nearest}");
                }
            }
        }
    }

    /// The sum of squares that the greedy choice minimises term by term is the cost.
    #[test]
    fn the_cost_is_a_sum_over_columns() {
        let (w, c) = (gaussian(6, 70, 3), moment(70, 4));
        let feedback = Feedback::new(&c).unwrap();
        let e = w.select(Axis(1), &feedback.order);
        let terms = e.dot(&feedback.upper).map(|v| v * v).sum_axis(Axis(0));
        let sum: f64 = terms.iter().zip(&feedback.costs).map(|(term, cost)| term * cost).sum();
        assert!((sum - (w.dot(&c) * &w).sum()).abs() < 1e-9 * sum);
    }

    #[test]
    fn uncorrelated_inputs_leave_rounding_to_nearest() {
        let w = gaussian(9, 64, 5);
        for storage in [Storage::Int8, Storage::Int4] {
            let found = Feedback::new(&Array2::eye(64)).unwrap().round(&w, storage).unwrap();
            assert_eq!(found, Factor::from_matrix(storage, &w));
        }
    }

    #[test]
    fn directions_that_are_not_seen_cost_nothing() {
        let mut c = Array2::zeros((40, 40));
        c[[3, 3]] = 2.0;
        let w = gaussian(4, 40, 6);
        let found = Feedback::new(&c).unwrap().round(&w, Storage::Int4).unwrap();
        assert!(cost(&w, &found, &c) <= cost(&w, &Factor::from_matrix(Storage::Int4, &w), &c) * (1.0 + 1e-9));
        assert!(found.matrix(0).iter().all(|v| v.is_finite()));
    }
}
