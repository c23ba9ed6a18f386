//! Sums of diagonal times circulant matrices.

use super::expanded::{Expand, Expanded};
use super::spectral::{convolve, convolve_flops, convolve_scratch_len, transform_flops};
use crate::error::{Error, Result};
use crate::gradient::Differentiate;
use crate::kernels::{Convolution, Spectrum, SpectrumCache};
use crate::linalg::{self, SvdOptions, Threads, matmul, matmul_nt, matmul_tn};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Descent, Family, Fit, Guarantee, Objective, Request, Run, Stop, Weighted, descend};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use crate::structures::Dense;
use ndarray::{Array2, Array3, ArrayRef2, Axis};

/// $W = \sum_{k=1}^K \mathrm{diag}(d_k)\, \mathrm{circ}(c_k)$: `W[i, j] = sum_k d_k[i] c_k[(i - j) mod in]`, with rows beyond `in` going
/// round again.
///
/// Parameters: `K (out + in)`. Product: one real Fourier transform of `x`, then `K` products and inverse transforms, of length
/// `in`. With `K = min(out, in)` every matrix is one. With so many terms that the dense product takes less, the dense matrix is made on
/// the first product and multiplied.
///
/// Projection: the rank-`K` singular value decomposition of the sheared matrix `M[i, s] = W[i, (i - s) mod in]`, optimal for every
/// shape. With activations, the `d_k` and the `c_k` in turns by conjugate gradients, from the plain optimum.
///
/// Source: M. Huhtanen and A. Perämäki, "Factoring matrices into the product of circulant and diagonal matrices", 2015; the
/// closed form by shearing is this crate's.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = array![[1.0f32, 2.0], [20.0, 10.0]];               // rows of circ(1, 2) times 1 and 10
/// let spec = CirculantDiagonalSpec { terms: 1 };
/// let fit = CirculantDiagonal::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(fit.report.relative_error < 1e-6 && fit.matrix.n_params() == 4);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CirculantDiagonal {
    /// `1 x K x out`.
    d: Factor,
    /// `1 x K x in`.
    c: Factor,
    cache: SpectrumCache,
    expanded: Expanded,
}

/// Parameters of [`CirculantDiagonal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CirculantDiagonalSpec {
    /// Number of terms, at most `min(out, in)`.
    pub terms: usize,
}

impl CirculantDiagonal {
    /// From the diagonals `d` (`K x out`) and the first columns `c` (`K x in`), as factors of one block.
    ///
    /// # Errors
    /// [`Error::Record`] when their numbers of rows differ.
    pub fn new(d: Factor, c: Factor) -> Result<Self> {
        let shape = (d.cols(), c.cols());
        Self::from_parts(Parts::new(Self::NAME, shape).factor("d", d).factor("c", c))
    }

    /// Number of terms.
    pub fn terms(&self) -> usize {
        self.d.rows()
    }

    fn len(&self) -> usize {
        self.c.cols()
    }

    /// The spectra of the `c_k`, one below the other.
    fn spectrum<T: Scalar>(&self) -> &Spectrum<T> {
        self.cache.get(|| {
            let convolution = Convolution::new(self.len(), (self.terms(), 1), |k, _| {
                let mut c = vec![0.0; self.len()];
                self.c.decode_row(0, k, 0, &mut c);
                c
            });
            Spectrum { convolution: Some(convolution), ..Default::default() }
        })
    }

    fn member(storage: Storage, d: &ArrayRef2<f64>, c: &ArrayRef2<f64>) -> Self {
        let (d, c) = (Factor::from_matrix(storage, d), Factor::from_matrix(storage, c));
        Self { d, c, cache: SpectrumCache::default(), expanded: Expanded::default() }
    }
}

impl Expand for CirculantDiagonal {
    fn expanded(&self) -> &Expanded {
        &self.expanded
    }
    fn numbers(&self) -> usize {
        self.d.len() + self.c.len()
    }
    fn own_flops(&self) -> u64 {
        let ((m, n), terms) = (self.shape(), self.terms() as u64);
        let term = convolve_flops(n) - transform_flops(n) + 2 * m as u64;
        transform_flops(n) + terms * term
    }
}

impl<T: Scalar> Multiply<T> for CirculantDiagonal {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(operands) = self.multiply_densely(operands) else { return };
        let Some(convolution) = &self.spectrum::<T>().convolution else { return };
        let ((m, n), op, update, policy) = (self.shape(), operands.op, operands.update, operands.work.policy);
        convolve(
            convolution,
            &self.cache,
            self.own_flops(),
            self.terms() * n,
            operands,
            &|x, rows| {
                if op == Op::Forward {
                    return x;
                }
                rows.fill(T::default());
                for (k, row) in rows.chunks_exact_mut(n).enumerate() {
                    for (from, x) in (0..m).step_by(n).zip(x.chunks(n)) {
                        self.d.scale_row(0, k, from, x, &mut row[..x.len()], Update::Accumulate, policy);
                    }
                }
                rows
            },
            &|y, rows, inverse| {
                if op == Op::Transpose {
                    return inverse(y, update);
                }
                inverse(rows, Update::Overwrite);
                for (k, row) in rows.chunks_exact(n).enumerate() {
                    let update = if k == 0 { update } else { Update::Accumulate };
                    for (from, y) in (0..m).step_by(n).zip(y.chunks_mut(n)) {
                        self.d.scale_row(0, k, from, &row[..y.len()], y, update, policy);
                    }
                }
            },
        );
    }
}

impl<T: Scalar> Differentiate<T> for CirculantDiagonal {
    /// From the dense gradient, sheared as for the projection: `batch * out * in` multiply-adds, and `2 K out * in`.
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let gradient = sheared(&matmul_tn(x, dy, threads));
        let (d, c) = (self.d.numbers(), self.c.numbers());
        let dd = matmul_nt(&c.index_axis(Axis(0), 0), &gradient, threads);
        let dc = matmul(&d.index_axis(Axis(0), 0), &gradient, threads);
        vec![dd.insert_axis(Axis(0)), dc.insert_axis(Axis(0))]
    }
}

impl StructuredMatrix for CirculantDiagonal {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.d.cols(), self.c.cols())
    }
    fn flops(&self, batch: usize) -> u64 {
        self.product_flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        let batch = self.own_rows(batch);
        convolve_scratch_len(batch, self.len(), (self.terms(), 1), self.terms() * self.len(), &self.cache)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        unsheared(&matmul_tn(&self.d.matrix(0), &self.c.matrix(0), Threads::ONE))
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape()).factor("d", &self.d).factor("c", &self.c)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

/// `M[i, s] = W[i, (i - s) mod in]`, of `Wᵀ` (in x out).
fn sheared<T: Scalar>(wt: &ArrayRef2<T>) -> Array2<T> {
    let (n, m) = wt.dim();
    Array2::from_shape_fn((m, n), |(i, s)| wt[[(i + n - s % n) % n, i]])
}

/// `W` of a sheared `M` (out x in).
fn unsheared(m: &ArrayRef2<f64>) -> Array2<f64> {
    let n = m.ncols();
    Array2::from_shape_fn(m.dim(), |(i, j)| m[[i, (i + n - j) % n]])
}

impl Family for CirculantDiagonal {
    const NAME: &'static str = "circulant_diagonal";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[("terms", "number of terms")];
    type Spec = CirculantDiagonalSpec;

    fn spec((m, n): (usize, usize), request: &Request) -> Result<CirculantDiagonalSpec> {
        let terms = request.choose(Self::NAME, (m, n), "terms", 1..=m.min(n), |k| {
            request.size().factor(1, k, m).factor(1, k, n)
        })?;
        Ok(CirculantDiagonalSpec { terms })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &CirculantDiagonalSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let ((m, n), terms) = (w.dim(), spec.terms);
        if terms == 0 || terms > m.min(n) {
            return Err(Error::parameter("terms", terms, format!("1 to {}", m.min(n))));
        }
        let options = SvdOptions { seed: run.seed(), ..SvdOptions::default() };
        let found = linalg::truncated_svd(&sheared(&w.t()), terms, &options, run.threads())?;
        let (u, c) = found.svd.split_sqrt(terms);
        let d = u.reversed_axes();
        let Some(gram) = objective.second_moment() else {
            let matrix = Self::member(run.storage(), &d, &c);
            let guarantee = if found.exact {
                Guarantee::GlobalOptimum
            } else {
                Guarantee::WithinFactor(1.0 + options.tolerance)
            };
            return Ok(Fit { matrix, guarantee, iterations: found.iterations, history: Vec::new() });
        };
        let weighted = Weighted::new(w, gram, run);
        let start = objective.energy(&(w - &unsheared(&linalg::matmul_tn(&d, &c, run.threads()))));
        let stop = Stop { sweeps: 10, tolerance: 1e-3 };
        let steps = Some(6);
        let dense = |d: &Array2<f64>, c: &Array2<f64>| {
            Dense::new(&unsheared(&linalg::matmul_tn(d, c, run.threads())))
        };
        let array = |len: usize, v: &[f64]| Array2::from_shape_fn((terms, len), |(k, i)| v[k * len + i]);
        let flat = |a: &Array2<f64>| a.iter().copied().collect::<Vec<f64>>();
        let Descent { state: (d, c), history, .. } =
            descend(run, stop, weighted.scale, (d, c), start, |(d, c), _, _| {
                let solution = weighted.solve(
                    flat(d),
                    steps,
                    |v| dense(&array(m, v), c),
                    |e| flat(&linalg::matmul_nt(c, &sheared(e), run.threads())),
                    |r| r.to_vec(),
                )?;
                *d = array(m, &solution.theta);
                let solution = weighted.solve(
                    flat(c),
                    steps,
                    |v| dense(d, &array(n, v)),
                    |e| flat(&linalg::matmul(d, &sheared(e), run.threads())),
                    |r| r.to_vec(),
                )?;
                *c = array(n, &solution.theta);
                Ok(solution.energy)
            })?;
        Ok(Fit::local(Self::member(run.storage(), &d, &c), history))
    }

    fn random(
        (m, n): (usize, usize),
        spec: &CirculantDiagonalSpec,
        storage: Storage,
        seed: u64,
    ) -> Result<Self> {
        let mut gaussian = Gaussian::new(seed);
        let d = gaussian.matrix(spec.terms, m, (spec.terms.max(1) as f64).powf(-0.5));
        let c = gaussian.matrix(spec.terms, n, (n.max(1) as f64).powf(-0.5));
        Ok(Self::member(storage, &d, &c))
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        // Rows of the diagonals are read one by one.
        let (d, c) = (parts.take_factor("d")?.into_rows(), parts.take_factor("c")?);
        let ((m, n), terms) = (parts.shape(), d.rows());
        if d.shape() != (1, terms, m) || c.shape() != (1, terms, n) || (terms == 0 && m.max(n) > 1) {
            return Err(parts.error(format!(
                "d is {:?}, c is {:?}: expected (1, K, {m}) and (1, K, {n})",
                d.shape(),
                c.shape()
            )));
        }
        Ok(Self { d, c, cache: SpectrumCache::default(), expanded: Expanded::default() })
    }
}
