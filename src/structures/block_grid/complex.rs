use crate::error::{Error, Result};
use crate::linalg;
use ndarray::{Array1, Array2, Array3, ArrayRef1, ArrayRef2, s};
use num_complex::Complex;

/// A complex [`Monarch`](super::Monarch) matrix in double precision: what the Fourier transform of composite length is, up to a permutation.
///
/// For `n = n1 n2`, the Fourier matrix with its columns permuted by transposing an `n / n1 x n1` grid has interleaved blocks of rank one.
///
/// ```
/// use structmat::structures::ComplexMonarch;
/// use structmat::ndarray::Array2;
/// use num_complex::Complex;
/// let w = Array2::from_shape_fn((4, 6), |(i, j)| Complex::new(i as f64, j as f64));
/// let monarch = ComplexMonarch::project(&w, (2, 3), 2)?;      // 2 x 2 blocks of full rank
/// let error = (&monarch.to_dense() - &w).iter().map(|v| v.norm_sqr()).sum::<f64>();
/// assert!(error < 1e-20);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ComplexMonarch {
    /// `J x s x K t`.
    u: Array3<Complex<f64>>,
    /// `K x J t x p`.
    v: Array3<Complex<f64>>,
    rank: usize,
}

impl ComplexMonarch {
    /// The best one for `w`: the truncated singular value decomposition of every interleaved block, globally optimal.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless `blocks` divide the shape and `rank` fits a block.
    pub fn project(w: &ArrayRef2<Complex<f64>>, blocks: (usize, usize), rank: usize) -> Result<Self> {
        let ((m, n), (j, k)) = (w.dim(), blocks);
        if j == 0 || k == 0 || m == 0 || n == 0 || !m.is_multiple_of(j) || !n.is_multiple_of(k) {
            return Err(Error::parameter("blocks", format!("{j}x{k}"), format!("divisors of {m}x{n}")));
        }
        let (rows, cols) = (m / j, n / k);
        if rank == 0 || rank > rows.min(cols) {
            return Err(Error::parameter("rank", rank, format!("1 to {}", rows.min(cols))));
        }
        let (mut u, mut v) = (Array3::zeros((j, rows, k * rank)), Array3::zeros((k, j * rank, cols)));
        for lambda in 0..j {
            for kappa in 0..k {
                let block = w.slice(s![lambda..;j, kappa * cols..(kappa + 1) * cols]);
                let svd = linalg::complex_svd_truncated(&block, rank)?;
                for (rho, sigma) in svd.s.iter().enumerate() {
                    let scale = Complex::from(sigma.sqrt());
                    u.slice_mut(s![lambda, .., kappa * rank + rho]).assign(&(&svd.u.column(rho) * scale));
                    v.slice_mut(s![kappa, lambda * rank + rho, ..]).assign(&(&svd.vh.row(rho) * scale));
                }
            }
        }
        Ok(Self { u, v, rank })
    }

    /// From the stages of the published code: `w1` of `K x t J x p` with row `rho J + lambda`, `w2` of `J x s x K t`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit.
    pub fn from_stages(w1: &Array3<Complex<f64>>, w2: &Array3<Complex<f64>>) -> Result<Self> {
        let ((k, q, p), (j, s, g)) = (w1.dim(), w2.dim());
        if j == 0 || k == 0 || !q.is_multiple_of(j) || q / j * k != g {
            return Err(Error::shape(
                "w2 (J x s x K t)",
                &[j, s, q.checked_div(j).unwrap_or(0) * k],
                w2.shape(),
            ));
        }
        let rank = q / j;
        let v =
            Array3::from_shape_fn((k, q, p), |(b, r, i)| w1[[b, r % rank.max(1) * j + r / rank.max(1), i]]);
        Ok(Self { u: w2.clone(), v, rank })
    }

    /// `(out_features, in_features)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.u.dim().0 * self.u.dim().1, self.v.dim().0 * self.v.dim().2)
    }

    /// Number of complex parameters.
    pub fn n_params(&self) -> usize {
        self.u.len() + self.v.len()
    }

    /// `W x`, in as many complex multiply-adds as there are parameters.
    ///
    /// # Errors
    /// [`Error::Shape`] when the length of `x` is not `in_features`.
    pub fn matvec(&self, x: &ArrayRef1<Complex<f64>>) -> Result<Array1<Complex<f64>>> {
        let ((j, rows, inner), (k, _, cols), t) = (self.u.dim(), self.v.dim(), self.rank);
        if x.len() != k * cols {
            return Err(Error::shape("x", &[k * cols], &[x.len()]));
        }
        let mut hidden = Array2::zeros((j, inner));
        for kappa in 0..k {
            let stage = self.v.slice(s![kappa, .., ..]).dot(&x.slice(s![kappa * cols..(kappa + 1) * cols]));
            let stage =
                stage.into_shape_with_order((j, t)).map_err(|_| Error::shape("stage", &[j, t], &[j * t]))?;
            hidden.slice_mut(s![.., kappa * t..(kappa + 1) * t]).assign(&stage);
        }
        let mut y = Array1::zeros(j * rows);
        for lambda in 0..j {
            y.slice_mut(s![lambda..;j]).assign(&self.u.slice(s![lambda, .., ..]).dot(&hidden.row(lambda)));
        }
        Ok(y)
    }

    /// `W`, by the entry formula.
    pub fn to_dense(&self) -> Array2<Complex<f64>> {
        let ((j, _, _), (k, _, cols), t) = (self.u.dim(), self.v.dim(), self.rank);
        Array2::from_shape_fn(self.shape(), |(row, col)| {
            let (sigma, lambda, kappa, i) = (row / j, row % j, col / cols, col % cols);
            debug_assert!(kappa < k);
            (0..t)
                .map(|rho| self.u[[lambda, sigma, kappa * t + rho]] * self.v[[kappa, lambda * t + rho, i]])
                .sum()
        })
    }
}
