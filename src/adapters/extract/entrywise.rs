//! Least squares in one factor of $X \circ (B A)$.

use crate::error::Result;
use crate::linalg::{SpdSolver, Threads, gram, matmul_nt};
use ndarray::{Array2, ArrayRef2};

/// `X ∘ (B A)` near a target.
pub(super) struct Entrywise<'a> {
    pub(super) target: &'a ArrayRef2<f64>,
    pub(super) x: &'a ArrayRef2<f64>,
}

impl Entrywise<'_> {
    /// The `B` that minimises `‖D - X ∘ (B A)‖_F`, row by row, with the Gram matrix of the rows of `A diag(x_i)`.
    pub(super) fn left(&self, a: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let (m, r) = (self.target.nrows(), a.nrows());
        let moments = matmul_nt(&(&self.x.view() * &self.target.view()), a, Threads::ONE);
        let mut b = Array2::zeros((m, r));
        for (i, mut row) in b.outer_iter_mut().enumerate() {
            let gram = gram(&(&a.view() * &self.x.row(i)).t(), Threads::ONE);
            let moment = Array2::from_shape_fn((r, 1), |(k, _)| moments[[i, k]]);
            row.assign(&SpdSolver::new(&gram, 0.0)?.solve(&moment).column(0));
        }
        Ok(b)
    }

    /// The `A` that does, likewise.
    pub(super) fn right(&self, b: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let (target, x) = (self.target.t(), self.x.t());
        Ok(Entrywise { target: &target, x: &x }.left(&b.t())?.reversed_axes())
    }

    /// `‖D - X ∘ (B A)‖_F²` for the product `BA`.
    pub(super) fn energy(&self, product: &ArrayRef2<f64>) -> f64 {
        let entries = self.target.iter().zip(self.x.iter().zip(product));
        entries.map(|(d, (x, p))| (d - x * p) * (d - x * p)).sum()
    }
}
