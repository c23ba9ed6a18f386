//! Circulant matrices.

use super::block_circulant::fit_blocks;
use super::spectral::{convolve, convolve_flops, convolve_scratch_len, correlate, spectra};
use crate::error::Result;
use crate::gradient::Differentiate;
use crate::kernels::{Convolution, RealFft, Spectrum, SpectrumCache};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Operands, StructuredMatrix};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, Axis};

/// `W[i, j] = c[(i - j) mod N]` with `N = max(out, in)`: circulant, and for other than square shapes the leading rows and
/// columns of a circulant matrix.
///
/// Parameters: `N`. Product: $y = F^{-1}(\hat c \circ F x)$ by real Fourier transforms, `O(N log N)`, of length `N` where that is a power of two or
/// at most 64; otherwise of the next power of two from `out + in - 1` on, with the differences `i - j` as they are, which is quicker.
///
/// Projection: each `c_k` is the mean of the entries that it stands for, the optimum. With activations the optimum
/// $\hat c = \hat h / \hat g$ for square `W`, with the wrapped diagonal sums $h$ of `W C` and $g$ of `C`; for other shapes the
/// same as a preconditioner of conjugate gradients on the normal equations.
///
/// Source: P. J. Davis, "Circulant Matrices", 1979; Y. Cheng et al., "An exploration of parameter redundancy in deep networks
/// with circulant projections", 2015.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = Circulant::new((3, 3), Factor::from_fn(Storage::F32, (1, 1, 3), |_, _, k| k as f64))?;
/// assert_eq!(w.to_dense::<f32>(), array![[0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]]);
/// let y = w.matvec(&array![1.0f64, 10.0, 100.0])?;
/// assert!((y - array![120.0, 201.0, 12.0]).iter().all(|v| v.abs() < 1e-12));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Circulant {
    shape: (usize, usize),
    c: Factor,
    cache: SpectrumCache,
}

/// Sequences up to here are transformed as they are.
const LONGEST_AS_IT_IS: usize = 64;

/// A circulant matrix has no parameters to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CirculantSpec;

impl Circulant {
    /// From the first column `c` (1 x max(out, in)).
    ///
    /// # Errors
    /// [`Error::Record`](crate::Error::Record) when `c` has another length.
    pub fn new(shape: (usize, usize), c: Factor) -> Result<Self> {
        Self::from_parts(Parts::new(Self::NAME, shape).factor("c", c))
    }

    fn len(&self) -> usize {
        self.c.cols()
    }

    /// Length of the transforms: where that of the sequence is no power of two, the one from which on outputs and inputs do not meet around the end. It takes
    /// a fifth to two thirds of the time from some length on.
    fn transform_len(&self) -> usize {
        let (len, (m, n)) = (self.len(), self.shape);
        let as_it_is = len.is_power_of_two() || len <= LONGEST_AS_IT_IS;
        if as_it_is { len } else { (m + n).saturating_sub(1).next_power_of_two() }
    }

    fn spectrum<T: Scalar>(&self) -> &Spectrum<T> {
        self.cache.get(|| {
            let (len, all, (m, n)) = (self.len(), self.transform_len(), self.shape);
            let mut c = vec![0.0; len];
            self.c.decode_row(0, 0, 0, &mut c);
            if all != len {
                // The differences `i - j`, negative ones counted back from the end.
                let (ahead, back) = (m, n.saturating_sub(1));
                let mut apart = vec![0.0; all];
                apart[..ahead].copy_from_slice(&c[..ahead]);
                apart[all - back..].copy_from_slice(&c[len - back..]);
                c = apart;
            }
            let convolution = Convolution::new(all, (1, 1), |_, _| c.clone());
            Spectrum { convolution: Some(convolution), ..Default::default() }
        })
    }
}

impl<T: Scalar> Multiply<T> for Circulant {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(convolution) = &self.spectrum::<T>().convolution else { return };
        let update = operands.update;
        convolve(convolution, &self.cache, self.flops(1), 0, operands, &|x, _| x, &|y, _, inverse| {
            inverse(y, update)
        });
    }
}

impl<T: Scalar> Differentiate<T> for Circulant {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, _: Threads) -> Vec<Array3<T>> {
        let fft = RealFft::new(self.len());
        let dc = correlate(&fft, &spectra(&fft, dy), &spectra(&fft, x));
        vec![dc.insert_axis(Axis(0)).insert_axis(Axis(0))]
    }
}

impl StructuredMatrix for Circulant {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        batch as u64 * convolve_flops(self.transform_len())
    }
    fn scratch_len(&self, batch: usize) -> usize {
        convolve_scratch_len(batch, self.transform_len(), (1, 1), 0, &self.cache)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let (c, len) = (self.c.matrix(0), self.len());
        Array2::from_shape_fn(self.shape, |(i, j)| c[[0, (i + len - j) % len]])
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape).factor("c", &self.c)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Circulant {
    const NAME: &'static str = "circulant";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[];
    type Spec = CirculantSpec;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<CirculantSpec> {
        request.require(Self::NAME, (out, inp), request.size().factor(1, 1, out.max(inp)))?;
        Ok(CirculantSpec)
    }

    fn fit(
        w: &Array2<f64>,
        _: &CirculantSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        // One block, cut to the shape.
        let fit = fit_blocks(w, w.nrows().max(w.ncols()), objective, run)?;
        let c = |c: Vec<f64>| Factor::from_fn(run.storage(), (1, 1, c.len()), |_, _, k| c[k]);
        Ok(fit.map(|theta| Self { shape: w.dim(), c: c(theta), cache: SpectrumCache::default() }))
    }

    fn random(shape: (usize, usize), _: &CirculantSpec, storage: Storage, seed: u64) -> Result<Self> {
        let c = Gaussian::new(seed).matrix(1, shape.0.max(shape.1), (shape.1.max(1) as f64).powf(-0.5));
        Self::new(shape, Factor::from_matrix(storage, &c))
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let c = parts.take_factor("c")?;
        let shape = parts.shape();
        let expected = (1, 1, shape.0.max(shape.1));
        if c.shape() != expected {
            return Err(parts.error(format!("c is {:?}, expected {expected:?}", c.shape())));
        }
        Ok(Self { shape, c, cache: SpectrumCache::default() })
    }
}
