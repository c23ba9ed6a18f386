use super::{expect, lora};
use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::layers::{Window, fits};
use crate::linalg::{SpdSolver, Threads, gram, matmul, svd};
use crate::projection::{Options, Run, Stop, descend, ratio};
use crate::scalar::Scalar;
use ndarray::{Array2, Array4, ArrayRef4, s};

/// Sweeps of alternation at most, where the caller did not say.
const SWEEPS: usize = 200;
/// Starts: leading singular vectors, then random ones.
const STARTS: u64 = 5;

/// CP-LoRA: the change of a convolution kernel as a sum of `rank` products of vectors, $D_{oihw} = \sum_r a_{or} b_{ir} c_{hr} d_{wr}$.
///
/// Parameters: `rank (c_out + c_in + kh + kw)`. Multiplied as four thin convolutions ([`convolve`](Self::convolve)) it costs as many multiply-adds per
/// output pixel; as an [`adapter`](Self::adapter) of the flattened kernel (`c_out x (c_in kh kw)`), for bases that are multiplied as matrices, it is a
/// LoRA. Under [`Dora`](super::Dora), whose rows are output channels, it is DoRA of a convolution.
///
/// Source: the canonical polyadic decomposition of kernels, V. Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned
/// CP-Decomposition", 2015, as a LoRA of convolutions.
///
/// ```
/// use structmat::adapters::methods::CpKernel;
/// use structmat::ndarray::array;
/// let kernel = CpKernel::new(array![[2.0]], array![[3.0]], array![[1.0], [0.0]], array![[1.0], [10.0]])?;
/// assert_eq!(kernel.adapter(1.0)?.matrix().to_dense_f64(), array![[6.0, 60.0, 0.0, 0.0]]);
/// assert_eq!(kernel.n_params(), 6);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CpKernel {
    /// Of `c_out`, `c_in`, `kh`, `kw` rows and `rank` columns.
    factors: [Array2<f64>; 4],
}

impl CpKernel {
    /// From the factors of output channels, input channels, rows and columns, each of `rank` columns.
    ///
    /// # Errors
    /// [`Error::Shape`] when ranks differ, [`Error::Parameter`] for rank 0, or a kernel that does not fit in memory.
    pub fn new(out: Array2<f64>, inp: Array2<f64>, rows: Array2<f64>, cols: Array2<f64>) -> Result<Self> {
        let rank = out.ncols();
        if rank == 0 {
            return Err(Error::parameter("rank", 0, "at least 1"));
        }
        for factor in [&inp, &rows, &cols] {
            expect("factor of a CP kernel", factor, (factor.nrows(), rank))?;
        }
        fits(&[out.nrows(), inp.nrows(), rows.nrows(), cols.nrows()])?;
        Ok(Self { factors: [out, inp, rows, cols] })
    }

    /// Of output channels, input channels, rows and columns.
    pub fn factors(&self) -> &[Array2<f64>; 4] {
        &self.factors
    }

    /// Number of terms.
    pub fn rank(&self) -> usize {
        self.factors[0].ncols()
    }

    /// `rank (c_out + c_in + kh + kw)`.
    pub fn n_params(&self) -> usize {
        self.factors.iter().map(Array2::len).sum()
    }

    /// The kernel.
    pub fn to_dense(&self) -> Array4<f64> {
        let [a, b, c, d] = &self.factors;
        let shape = (a.nrows(), b.nrows(), c.nrows(), d.nrows());
        Array4::from_shape_fn(shape, |(o, i, h, w)| {
            (0..self.rank()).map(|r| a[[o, r]] * b[[i, r]] * c[[h, r]] * d[[w, r]]).sum()
        })
    }

    /// The adapter `scale D` of the flattened kernel.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a scale that is not finite.
    pub fn adapter(&self, scale: f64) -> Result<Additive> {
        let right = khatri_rao(&[&self.factors[1], &self.factors[2], &self.factors[3]]);
        let single = |a: &Array2<f64>| a.mapv(|v| v as f32);
        let adapter = lora(&single(&self.factors[0]), &single(&right).t(), scale)?;
        Ok(adapter.with_params(self.n_params()))
    }

    /// The convolution of images (batch x c_in x height x width) with the kernel, as four thin ones: to `rank` channels, down and across for each
    /// channel by itself, and to `c_out` channels.
    ///
    /// # Errors
    /// [`Error::Shape`] for images of other channels or a window of another kernel, those of [`Window::outputs`].
    pub fn convolve<T: Scalar>(&self, x: &ArrayRef4<T>, window: &Window) -> Result<Array4<T>> {
        let [a, b, c, d] = &self.factors;
        let (batch, channels, height, width) = x.dim();
        if channels != b.nrows() {
            return Err(Error::shape("images", &[batch, b.nrows(), height, width], x.shape()));
        }
        if window.kernel != (c.nrows(), d.nrows()) {
            let (kh, kw) = window.kernel;
            return Err(Error::shape("window of a convolution", &[c.nrows(), d.nrows()], &[kh, kw]));
        }
        let (down, across) = window.outputs((height, width))?;
        let rank = self.rank();
        fits(&[batch, rank.max(a.nrows()), height.max(down), width.max(across)])?;
        let mut thin = Array4::<f64>::zeros((batch, rank, height, width));
        for ((n, i, h, w), value) in x.indexed_iter() {
            (0..rank).for_each(|r| thin[[n, r, h, w]] += b[[i, r]] * value.widen());
        }
        // The place of tap `tap` for output `at`, where it is inside of the image.
        let tap = |at: usize, tap: usize, stride: usize, padding: usize, size: usize| {
            (at * stride + tap).checked_sub(padding).filter(|at| *at < size)
        };
        let (stride, padding) = (window.stride, window.padding);
        let rows = Array4::from_shape_fn((batch, rank, down, width), |(n, r, i, w)| {
            let taps = (0..c.nrows()).filter_map(|p| Some((p, tap(i, p, stride.0, padding.0, height)?)));
            taps.map(|(p, h)| c[[p, r]] * thin[[n, r, h, w]]).sum::<f64>()
        });
        let both = Array4::from_shape_fn((batch, rank, down, across), |(n, r, i, j)| {
            let taps = (0..d.nrows()).filter_map(|q| Some((q, tap(j, q, stride.1, padding.1, width)?)));
            taps.map(|(q, w)| d[[q, r]] * rows[[n, r, i, w]]).sum::<f64>()
        });
        Ok(Array4::from_shape_fn((batch, a.nrows(), down, across), |(n, o, i, j)| {
            T::narrow((0..rank).map(|r| a[[o, r]] * both[[n, r, i, j]]).sum())
        }))
    }

    /// A kernel of rank `rank` near to `d` (`c_out x c_in x kh x kw`): alternating least squares, the best of several starts. A local optimum; the
    /// error never rises. Returns with it the relative error after each sweep of the start that is kept.
    ///
    /// Each factor's system is shifted by 1e-9 of its mean diagonal around the factor as it is, so that dependent terms cannot grow without bound
    /// and the error still falls.
    ///
    /// # Errors
    /// [`Error::Parameter`] for rank 0 or more than there are numbers, [`Error::Shape`] for an empty kernel, [`Error::NonFinite`], [`Error::Cancelled`].
    pub fn project(d: &ArrayRef4<f64>, rank: usize, options: &Options<'_>) -> Result<(Self, Vec<f64>)> {
        if d.is_empty() {
            return Err(Error::shape("kernel (must not be empty)", &[1, 1, 1, 1], d.shape()));
        }
        if rank == 0 || rank > d.len() {
            return Err(Error::parameter("rank", rank, format!("1 to {}", d.len())));
        }
        let run = Run::new(options);
        let unfolded: Vec<Array2<f64>> = (0..4).map(|mode| unfold(d, mode)).collect();
        let scale: f64 = d.iter().map(|v| v * v).sum();
        if scale == 0.0 {
            let [o, i, h, w] = [0, 1, 2, 3].map(|mode| Array2::zeros((unfolded[mode].nrows(), rank)));
            return Ok((Self { factors: [o, i, h, w] }, vec![0.0]));
        }
        let energy = |kernel: &Self| (d.to_owned() - kernel.to_dense()).iter().map(|v| v * v).sum::<f64>();
        let mut best: Option<(f64, Self, Vec<f64>)> = None;
        for start in 0..STARTS {
            let mut gaussian = run.gaussian(start);
            let mut factors = Vec::with_capacity(4);
            for unfolding in &unfolded {
                let size = unfolding.nrows();
                let mut factor = gaussian.matrix(size, rank, 1.0);
                if start == 0 {
                    let u = svd(unfolding, run.threads())?.truncate(rank).u;
                    factor.slice_mut(s![.., ..u.ncols()]).assign(&u);
                }
                factors.push(factor);
            }
            let Ok(factors) = <[Array2<f64>; 4]>::try_from(factors) else { continue };
            let kernel = Self { factors };
            let first = energy(&kernel);
            let stop = Stop { sweeps: SWEEPS, tolerance: 1e-8 };
            let found = descend(&run, stop, scale, kernel, first, |kernel, _, _| {
                for (mode, unfolding) in unfolded.iter().enumerate() {
                    kernel.update(mode, unfolding)?;
                }
                Ok(energy(kernel))
            })?;
            if best.as_ref().is_none_or(|(least, ..)| found.energy < *least) {
                best = Some((found.energy, found.state, found.history));
            }
            if best.as_ref().is_some_and(|(least, ..)| *least <= 1e-24 * scale) {
                break;
            }
        }
        let (energy, kernel, mut history) =
            best.ok_or(Error::NoConvergence("the decomposition of a kernel"))?;
        if history.is_empty() {
            history.push(ratio(energy.sqrt(), scale.sqrt()));
        }
        Ok((kernel, history))
    }

    /// Least squares in the factor of one mode.
    fn update(&mut self, mode: usize, unfolding: &Array2<f64>) -> Result<()> {
        let others: Vec<&Array2<f64>> = (0..4).filter(|k| *k != mode).map(|k| &self.factors[k]).collect();
        let mut system = Array2::from_elem((self.rank(), self.rank()), 1.0);
        others.iter().for_each(|factor| system *= &gram(factor, Threads::ONE));
        let wide = matmul(unfolding, &khatri_rao(&others), Threads::ONE);
        let missed = wide - self.factors[mode].dot(&system);
        self.factors[mode] += &SpdSolver::new(&system, 1e-9)?.solve_right(&missed);
        Ok(())
    }
}

/// The products of rows of three factors, column by column; the last factor's rows vary fastest.
fn khatri_rao(factors: &[&Array2<f64>]) -> Array2<f64> {
    let mut product = Array2::from_elem((1, factors.first().map_or(0, |factor| factor.ncols())), 1.0);
    for factor in factors {
        let (before, own) = (product, factor.nrows());
        product = Array2::from_shape_fn((before.nrows() * own, before.ncols()), |(row, r)| {
            before[[row / own.max(1), r]] * factor[[row % own.max(1), r]]
        });
    }
    product
}

/// The kernel as a matrix of one axis by all others, in their order.
fn unfold(d: &ArrayRef4<f64>, mode: usize) -> Array2<f64> {
    let shape = d.shape();
    let rest: Vec<usize> = (0..4).filter(|k| *k != mode).collect();
    let [s0, s1, s2] = [shape[rest[0]], shape[rest[1]], shape[rest[2]]];
    Array2::from_shape_fn((shape[mode], s0 * s1 * s2), |(own, col)| {
        let mut at = [0; 4];
        at[mode] = own;
        (at[rest[0]], at[rest[1]], at[rest[2]]) = (col / (s1 * s2), col / s2 % s1, col % s2);
        d[at]
    })
}
