//! Products of a grid of spectra with a vector of spectra, entry by entry: $y_i = \sum_j w_{ij} \circ x_j$.
//!
//! Lanes are frequencies, so that spectra need not be transposed, and grids of any shape fill the vectors.

use crate::kernels::AlignedVec;
use crate::kernels::level::Kernel;
use crate::kernels::simd::Simd;
use crate::matrix::Op;
use crate::scalar::Scalar;
use num_complex::Complex;

/// Frequencies that are stored side by side; planes of spectra are padded to a multiple of it.
pub(super) const CHUNK: usize = 16;

/// Numbers of a weight for a chunk of frequencies: real and imaginary parts. Those of the first chunk take twice as many.
const WEIGHT: usize = 2 * CHUNK;

/// Spectra of a grid, packed in the order in which a product reads them: for each chunk of frequencies, for each row, for each column.
///
/// Entry 0 of a spectrum holds two real frequencies as its real and imaginary part. The weights of the first chunk are therefore
/// four numbers per entry, with $\mathrm{re}\,y = a\,\mathrm{re}\,x + b\,\mathrm{im}\,x$, $\mathrm{im}\,y = c\,\mathrm{re}\,x + d\,\mathrm{im}\,x$.
#[derive(Debug, Clone)]
pub struct SpectrumGrid<T> {
    shape: (usize, usize),
    plane: usize,
    data: AlignedVec<T>,
}

impl<T: Scalar> SpectrumGrid<T> {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Of `spectrum(i, j)`, each of at most `plane` entries.
    pub(super) fn new(
        shape: (usize, usize),
        plane: usize,
        mut spectrum: impl FnMut(usize, usize) -> Vec<Complex<f64>>,
    ) -> Self {
        let cells = shape.0 * shape.1;
        let mut data = AlignedVec::zeroed(if plane == 0 { 0 } else { cells * 2 * (plane + CHUNK) });
        for cell in 0..cells {
            for (place, w) in spectrum(cell / shape.1, cell % shape.1).into_iter().enumerate() {
                let (chunk, lane) = (place / CHUNK, place % CHUNK);
                let (re, im) = (T::narrow(w.re), T::narrow(w.im));
                if chunk > 0 {
                    let at = (chunk + 1) * cells * WEIGHT + cell * WEIGHT + lane;
                    (data[at], data[at + CHUNK]) = (re, im);
                    continue;
                }
                let four = if place == 0 { [re, T::zero(), T::zero(), im] } else { [re, -im, im, re] };
                for (k, w) in four.into_iter().enumerate() {
                    data[cell * 2 * WEIGHT + k * CHUNK + lane] = w;
                }
            }
        }
        Self { shape, plane, data }
    }
}

/// A product of a grid, or of its adjoint, with spectra: for each row, for each block, real parts and `plane` entries on imaginary parts.
#[derive(Debug)]
pub struct GridProduct<'a, T> {
    pub(super) grid: &'a SpectrumGrid<T>,
    pub(super) op: Op,
    pub(super) rows: usize,
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
}

/// Where a tile of the product finds its operands.
#[derive(Clone, Copy)]
struct Tile<T> {
    w: *const T,
    x: *const T,
    y: *mut T,
    chunks: usize,
    /// Between the weights of chunks, of outputs, and of inputs.
    strides: (usize, usize, usize),
    /// Between rows of `x`, and of `y`.
    rows: (usize, usize),
    plane: usize,
    inputs: usize,
}

impl<T: Scalar> Kernel<T> for GridProduct<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { grid: SpectrumGrid { shape, plane, data }, op, rows, x, y } = self;
        let (block, cells) = (2 * plane, shape.0 * shape.1);
        let (outputs, inputs) = op.order(shape.0, shape.1);
        assert!(plane % CHUNK == 0 && x.len() == rows * inputs * block && y.len() == rows * outputs * block);
        assert!(data.len() == if *plane == 0 { 0 } else { cells * 2 * (plane + CHUNK) });
        let (mut chunk, mut next) = (0, 1);
        while chunk < plane / CHUNK {
            // The first chunk is alone; others as many as have weights that stay near while rows pass.
            let unit = if chunk == 0 { 2 * WEIGHT } else { WEIGHT };
            let start = if chunk == 0 { 0 } else { (chunk + 1) * cells * WEIGHT };
            let (by_output, by_input) = op.order(shape.1 * unit, unit);
            let mut row = 0;
            while row < rows {
                let take = if rows - row >= 4 && S::REGISTERS == 32 { 4 } else { (rows - row).min(2) };
                let mut i = 0;
                while i < outputs {
                    let tile = Tile {
                        w: data.as_ptr().wrapping_add(start + i * by_output),
                        x: x.as_ptr().wrapping_add(row * inputs * block + chunk * CHUNK),
                        y: y.as_mut_ptr().wrapping_add((row * outputs + i) * block + chunk * CHUNK),
                        chunks: next - chunk,
                        strides: (cells * WEIGHT, by_output, by_input),
                        rows: (inputs * block, outputs * block),
                        plane: *plane,
                        inputs,
                    };
                    // SAFETY: chunks, rows and outputs are in range by the loop bounds, the lengths by the assertions.
                    i += unsafe {
                        match (take, outputs - i) {
                            (4, 2..) => tile.product::<S, 4, 2>(simd, chunk == 0, op),
                            (4, _) => tile.product::<S, 4, 1>(simd, chunk == 0, op),
                            (2, 2..) => tile.product::<S, 2, 2>(simd, chunk == 0, op),
                            (2, _) => tile.product::<S, 2, 1>(simd, chunk == 0, op),
                            (_, 4..) if S::REGISTERS == 32 => tile.product::<S, 1, 4>(simd, chunk == 0, op),
                            (_, 2..) => tile.product::<S, 1, 2>(simd, chunk == 0, op),
                            _ => tile.product::<S, 1, 1>(simd, chunk == 0, op),
                        }
                    };
                }
                row += take;
            }
            chunk = next;
            next = (chunk + (NEAR / (cells * WEIGHT)).max(1)).min(plane / CHUNK);
        }
    }
}

/// Numbers of weights that stay near while rows pass.
const NEAR: usize = 4096;

impl<T: Scalar> Tile<T> {
    /// `R` rows of `O` outputs. Returns `O`.
    ///
    /// # Safety
    /// Weights, spectra and the strides between them are those of a product.
    #[inline(always)]
    unsafe fn product<S: Simd<T>, const R: usize, const O: usize>(
        self,
        simd: S,
        first: bool,
        op: Op,
    ) -> usize {
        // SAFETY: the caller's.
        unsafe {
            match (first, op) {
                (true, op) => self.sums::<S, R, O>(
                    simd,
                    #[inline(always)]
                    |w, re, im, sum| {
                        let (a, d) = (simd.load(w), simd.load(w.add(3 * CHUNK)));
                        let (b, c) = op.order(simd.load(w.add(CHUNK)), simd.load(w.add(2 * CHUNK)));
                        for r in 0..R {
                            sum[r].re = simd.mul_add(b, im[r], simd.mul_add(a, re[r], sum[r].re));
                            sum[r].im = simd.mul_add(d, im[r], simd.mul_add(c, re[r], sum[r].im));
                        }
                    },
                ),
                (false, Op::Forward) => self.sums::<S, R, O>(
                    simd,
                    #[inline(always)]
                    |w, re, im, sum| {
                        let (wr, wi) = (simd.load(w), simd.load(w.add(CHUNK)));
                        for r in 0..R {
                            sum[r].re = simd.neg_mul_add(wi, im[r], simd.mul_add(wr, re[r], sum[r].re));
                            sum[r].im = simd.mul_add(wr, im[r], simd.mul_add(wi, re[r], sum[r].im));
                        }
                    },
                ),
                (false, Op::Transpose) => self.sums::<S, R, O>(
                    simd,
                    #[inline(always)]
                    |w, re, im, sum| {
                        let (wr, wi) = (simd.load(w), simd.load(w.add(CHUNK)));
                        for r in 0..R {
                            sum[r].re = simd.mul_add(wi, im[r], simd.mul_add(wr, re[r], sum[r].re));
                            sum[r].im = simd.neg_mul_add(wi, re[r], simd.mul_add(wr, im[r], sum[r].im));
                        }
                    },
                ),
            }
        }
        O
    }

    /// Sums over the inputs with `step`, which adds the product of a weight.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn sums<S: Simd<T>, const R: usize, const O: usize>(
        self,
        simd: S,
        step: impl Fn(*const T, &[S::V; R], &[S::V; R], &mut [Complex<S::V>; R]),
    ) {
        for at in (0..self.chunks * CHUNK).step_by(S::LANES) {
            let w = at / CHUNK * self.strides.0 + at % CHUNK;
            let mut sums = [[Complex { re: simd.zero(), im: simd.zero() }; R]; O];
            // SAFETY: the caller's.
            unsafe {
                for j in 0..self.inputs {
                    let x = self.x.add(j * 2 * self.plane + at);
                    let re: [S::V; R] = std::array::from_fn(|r| simd.load(x.add(r * self.rows.0)));
                    let im: [S::V; R] =
                        std::array::from_fn(|r| simd.load(x.add(r * self.rows.0 + self.plane)));
                    for (o, sum) in sums.iter_mut().enumerate() {
                        step(self.w.add(w + j * self.strides.2 + o * self.strides.1), &re, &im, sum);
                    }
                }
                for (o, sum) in sums.iter().enumerate() {
                    for (r, sum) in sum.iter().enumerate() {
                        let y = self.y.add(r * self.rows.1 + o * 2 * self.plane + at);
                        simd.store(y, sum.re);
                        simd.store(y.add(self.plane), sum.im);
                    }
                }
            }
        }
    }
}
