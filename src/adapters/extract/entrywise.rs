//! Least squares in one factor of $X \circ (B A)$.

use crate::error::Result;
use crate::linalg::{SpdSolver, Threads, matmul, matmul_nt};
use ndarray::{Array2, ArrayRef2};

/// `X ∘ (B A)` near a target.
pub(super) struct Entrywise<'a> {
    pub(super) target: &'a ArrayRef2<f64>,
    pub(super) x: &'a ArrayRef2<f64>,
}

impl Entrywise<'_> {
    /// The `B` that minimises `‖D - X ∘ (B A)‖_F`, row by row: `rank²` numbers of a Gram matrix each, all made in one product.
    pub(super) fn left(&self, a: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let ((m, n), r) = (self.target.dim(), a.nrows());
        let pairs = Array2::from_shape_fn((n, r * r), |(j, kl)| a[[kl / r, j]] * a[[kl % r, j]]);
        let grams = matmul(&self.x.mapv(|x| x * x), &pairs, Threads::ONE);
        let moments = matmul_nt(&(&self.x.view() * &self.target.view()), a, Threads::ONE);
        let mut b = Array2::zeros((m, r));
        for (i, mut row) in b.outer_iter_mut().enumerate() {
            let gram = Array2::from_shape_fn((r, r), |(k, l)| grams[[i, k * r + l]]);
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
