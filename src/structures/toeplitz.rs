//! Toeplitz and Hankel matrices.

use super::spectral::{convolve, convolve_flops, convolve_scratch_len, correlate, spectra};
use crate::error::{Error, Result};
use crate::gradient::Differentiate;
use crate::kernels::{Convolution, RealFft, Spectrum, SpectrumCache};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, Weighted};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, s};
use serde::{Deserialize, Serialize};

/// `W[i, j] = t[i - j + in - 1]` (Toeplitz: constant along diagonals) or `W[i, j] = t[i + j]` (Hankel: constant along
/// anti-diagonals, a Toeplitz matrix of the reversed input).
///
/// Parameters: `out + in - 1`. Product: a convolution by real Fourier transforms of the next power of two,
/// `O((out + in) log(out + in))`.
///
/// Projection: each `t` is the mean of its diagonal, the optimum. With activations, conjugate gradients on the normal equations
/// $\sum_e G_{de} t_e = h_d$, $G_{de} = \sum_i C_{i-d,\,i-e}$, $h_d = \sum_i (W C)_{i,\,i-d}$, with products by Fourier transforms: the
/// optimum when they converge.
///
/// Source: T. Kailath and A. H. Sayed, "Displacement structure: theory and applications", 1995.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let t = Factor::from_fn(Storage::F32, (1, 1, 4), |_, _, k| k as f64);
/// let w = Toeplitz::new((2, 3), ToeplitzForm::Toeplitz, t.clone())?;
/// assert_eq!(w.to_dense::<f32>(), array![[2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]);
/// let w = Toeplitz::new((2, 3), ToeplitzForm::Hankel, t)?;
/// assert_eq!(w.to_dense::<f32>(), array![[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Toeplitz {
    shape: (usize, usize),
    form: ToeplitzForm,
    t: Factor,
    cache: SpectrumCache,
}

/// Which diagonals of a [`Toeplitz`] matrix are constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToeplitzForm {
    /// Those from the upper left to the lower right.
    #[default]
    Toeplitz,
    /// Those from the upper right to the lower left.
    Hankel,
}

/// Parameters of [`Toeplitz`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ToeplitzSpec {
    /// Toeplitz or Hankel.
    pub form: ToeplitzForm,
}

#[derive(Debug, Serialize, Deserialize)]
struct Config {
    form: ToeplitzForm,
}

fn params((m, n): (usize, usize)) -> usize {
    if m == 0 || n == 0 { 0 } else { m + n - 1 }
}

impl ToeplitzForm {
    /// The parameter at `(i, j)` of a matrix with `inp` columns.
    fn index(self, inp: usize, i: usize, j: usize) -> usize {
        match self {
            ToeplitzForm::Toeplitz => i + inp - 1 - j,
            ToeplitzForm::Hankel => i + j,
        }
    }
}

impl Toeplitz {
    /// From `t` (1 x (out + in - 1)): the top row from the right to the left and the first column below it (Toeplitz), or
    /// the first row and the last column below it (Hankel).
    ///
    /// # Errors
    /// [`Error::Record`] when `t` has another length.
    pub fn new(shape: (usize, usize), form: ToeplitzForm, t: Factor) -> Result<Self> {
        Self::from_parts(Parts::new(Self::NAME, shape).with_config(&Config { form }).factor("t", t))
    }

    /// Toeplitz or Hankel.
    pub fn form(&self) -> ToeplitzForm {
        self.form
    }

    fn transform_len(&self) -> usize {
        self.t.cols().next_power_of_two()
    }

    /// A row in reverse.
    fn row_len(&self) -> usize {
        if self.form == ToeplitzForm::Hankel { self.transform_len() } else { 0 }
    }

    fn spectrum<T: Scalar>(&self) -> &Spectrum<T> {
        self.cache.get(|| {
            let len = self.transform_len();
            let mut t = vec![0.0; self.t.cols()];
            self.t.decode_row(0, 0, 0, &mut t);
            // The first column of a circulant matrix whose upper left corner is W.
            let mut column = vec![0.0; len];
            for (k, value) in t.into_iter().enumerate() {
                let at = match self.form {
                    ToeplitzForm::Toeplitz => (k + len + 1 - self.shape.1) % len,
                    ToeplitzForm::Hankel => k,
                };
                column[at] = value;
            }
            let convolution = Convolution::new(len, (1, 1), |_, _| column.clone());
            Spectrum { convolution: Some(convolution), ..Default::default() }
        })
    }
}

impl<T: Scalar> Multiply<T> for Toeplitz {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(convolution) = &self.spectrum::<T>().convolution else { return };
        let (form, update) = (self.form, operands.update);
        // A Hankel matrix and its transpose have the same formula: the convolution of the reversed input.
        let op = if form == ToeplitzForm::Hankel { Op::Forward } else { operands.op };
        convolve(
            convolution,
            &self.cache,
            self.flops(1),
            self.row_len(),
            Operands { op, ..operands },
            &|x, row| match form {
                ToeplitzForm::Toeplitz => x,
                ToeplitzForm::Hankel => reverse(x, row),
            },
            &|y, _, inverse| inverse(y, update),
        );
    }
}

/// Entry `j` at place `-j`, modulo the length of `row`, between zeros.
fn reverse<'a, T: Scalar>(x: &[T], row: &'a mut [T]) -> &'a [T] {
    let [first, rest @ ..] = x else { return &[] };
    let at = row.len() - rest.len();
    row[1..at].fill(T::zero());
    row[0] = *first;
    row[at..].iter_mut().rev().zip(rest).for_each(|(to, from)| *to = *from);
    row
}

impl<T: Scalar> Differentiate<T> for Toeplitz {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, _: Threads) -> Vec<Array3<T>> {
        let (len, inp) = (self.transform_len(), self.shape.1);
        let fft = RealFft::new(len);
        let x = match self.form {
            ToeplitzForm::Toeplitz => spectra(&fft, x),
            ToeplitzForm::Hankel => spectra(&fft, &x.slice(s![.., ..;-1])),
        };
        let diagonals = correlate(&fft, &spectra(&fft, dy), &x);
        // Diagonal i - j, or i - (in - 1 - j), is that of t[i - j + in - 1], or t[i + j].
        vec![Array3::from_shape_fn(self.t.shape(), |(_, _, k)| diagonals[(k + len + 1 - inp) % len])]
    }
}

impl StructuredMatrix for Toeplitz {
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
        convolve_scratch_len(batch, self.transform_len(), (1, 1), self.row_len(), &self.cache)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let t = self.t.matrix(0);
        Array2::from_shape_fn(self.shape, |(i, j)| t[[0, self.form.index(self.shape.1, i, j)]])
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape).with_config(&Config { form: self.form }).factor("t", &self.t)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Toeplitz {
    const NAME: &'static str = "toeplitz";
    const PARAMETERS: &'static [(&'static str, &'static str)] =
        &[("form", "`toeplitz` (default) or `hankel`")];
    type Spec = ToeplitzSpec;

    fn spec(shape: (usize, usize), request: &Request) -> Result<ToeplitzSpec> {
        let form = match request.get::<String>("form")?.as_deref() {
            None | Some("toeplitz") => ToeplitzForm::Toeplitz,
            Some("hankel") => ToeplitzForm::Hankel,
            Some(other) => return Err(Error::parameter("form", other, "toeplitz or hankel")),
        };
        request.require(Self::NAME, shape, request.size().factor(1, 1, params(shape)))?;
        Ok(ToeplitzSpec { form })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &ToeplitzSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let (shape, form) = (w.dim(), spec.form);
        let member = |storage: Storage, t: &[f64]| Self {
            shape,
            form,
            t: Factor::from_fn(storage, (1, 1, t.len()), |_, _, k| t[k]),
            cache: SpectrumCache::default(),
        };
        // Of Eᵀ (in x out).
        let sums = |e: &ArrayRef2<f64>| {
            let mut sums = vec![0.0; params(shape)];
            for (j, column) in e.outer_iter().enumerate() {
                let first = form.index(shape.1, 0, j);
                sums[first..].iter_mut().zip(column).for_each(|(sum, v)| *sum += v);
            }
            sums
        };
        let counts = sums(&Array2::ones((shape.1, shape.0)));
        let plain: Vec<f64> = sums(&w.t()).iter().zip(&counts).map(|(h, n)| h / n).collect();
        let Some(c) = objective.second_moment() else {
            return Ok(Fit::optimal(member(run.storage(), &plain)));
        };
        let weighted = Weighted::new(w, c, run);
        let power = weighted.mean_power();
        let solution = weighted.solve(
            plain,
            None,
            |t| Ok(member(Storage::F64, t)),
            sums,
            |r| r.iter().zip(&counts).map(|(r, n)| r / (n * power)).collect(),
        )?;
        Ok(solution.into_fit().map(|t| member(run.storage(), &t)))
    }

    fn random(shape: (usize, usize), spec: &ToeplitzSpec, storage: Storage, seed: u64) -> Result<Self> {
        let t = Gaussian::new(seed).matrix(1, params(shape), (shape.1.max(1) as f64).powf(-0.5));
        Self::new(shape, spec.form, Factor::from_matrix(storage, &t))
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let Config { form } = parts.config()?;
        let t = parts.take_factor("t")?;
        let shape = parts.shape();
        let expected = (1, 1, params(shape));
        if t.shape() != expected {
            return Err(parts.error(format!("t is {:?}, expected {expected:?}", t.shape())));
        }
        Ok(Self { shape, form, t, cache: SpectrumCache::default() })
    }
}
