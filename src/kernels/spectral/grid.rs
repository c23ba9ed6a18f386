//! Products of a grid of spectra with a vector of spectra, entry by entry: $y_i = \sum_j w_{ij} \circ x_j$.
//!
//! Lanes are frequencies, so that spectra need not be transposed, and grids of any shape fill the vectors.

use super::{CHUNK, PAIR};
use crate::kernels::AlignedVec;
use crate::kernels::level::Kernel;
use crate::kernels::simd::{Simd, vectors};
use crate::matrix::Op;
use crate::scalar::Scalar;
use num_complex::Complex;

/// Spectra of a grid, packed in the order in which a product reads them: for each chunk of frequencies, for each row, for each column.
///
/// A chunk has the real parts, then the imaginary parts, and the odd one 8 of each.
#[derive(Debug, Clone)]
pub struct SpectrumGrid<T> {
    shape: (usize, usize),
    chunks: usize,
    odd: bool,
    data: AlignedVec<T>,
}

impl<T: Scalar> SpectrumGrid<T> {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// As they are packed.
    pub(super) fn weights(&self) -> &[T] {
        &self.data
    }

    /// Of `spectrum(i, j)`, each of at most so many whole chunks, and perhaps half of an odd one.
    pub(super) fn new(
        shape: (usize, usize),
        (chunks, odd): (usize, bool),
        mut spectrum: impl FnMut(usize, usize) -> Vec<Complex<f64>>,
    ) -> Self {
        let cells = shape.0 * shape.1;
        let mut data = AlignedVec::zeroed(cells * (chunks * PAIR + if odd { CHUNK } else { 0 }));
        for cell in 0..cells {
            for (place, w) in spectrum(cell / shape.1, cell % shape.1).into_iter().enumerate() {
                let (chunk, lane) = (place / CHUNK, place % CHUNK);
                let start = chunk * cells * PAIR + lane;
                let (at, im) = match chunk < chunks {
                    true => (start + cell * PAIR, CHUNK),
                    false => (start + cell * CHUNK, CHUNK / 2),
                };
                (data[at], data[at + im]) = (T::narrow(w.re), T::narrow(w.im));
            }
        }
        Self { shape, chunks, odd, data }
    }
}

/// A product of a grid, or of its adjoint, with rows of spectra.
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
    /// Between the weights of outputs, and of inputs.
    strides: (usize, usize),
    /// Between rows of `x`, and of `y`.
    rows: (usize, usize),
    /// Between chunks of weights, of `x`, and of `y`.
    steps: (usize, usize, usize),
    chunks: usize,
    inputs: usize,
    op: Op,
    odd: bool,
}

impl<T: Scalar> Kernel<T> for GridProduct<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { grid: SpectrumGrid { shape, chunks, odd, data }, op, rows, x, y } = self;
        let (cells, all) = (shape.0 * shape.1, chunks + usize::from(*odd));
        let (outputs, inputs) = op.order(shape.0, shape.1);
        let row = (all * inputs * PAIR, all * outputs * PAIR);
        assert!(x.len() == rows * row.0 && y.len() == rows * row.1 && CHUNK.is_multiple_of(S::LANES));
        assert!(data.len() == cells * (chunks * PAIR + if *odd { CHUNK } else { 0 }));
        let mut chunk = 0;
        while chunk < all {
            // The odd chunk is alone; others as many as have weights that stay near while rows pass.
            let odd = chunk == *chunks;
            let next = (chunk + (NEAR / (cells * PAIR)).max(1)).min(if odd { all } else { *chunks });
            let unit = if odd { CHUNK } else { PAIR };
            let strides = op.order(shape.1 * unit, unit);
            let mut i = 0;
            while i < outputs {
                let wide = |o: usize| outputs - i >= o && S::REGISTERS >= 8 * o;
                let step = if rows == 1 && wide(4) {
                    4
                } else if wide(2) {
                    2
                } else {
                    1
                };
                let mut r = 0;
                while r < rows {
                    let tile = Tile {
                        w: data.as_ptr().wrapping_add(chunk * cells * PAIR + i * strides.0),
                        x: x.as_ptr().wrapping_add(r * row.0 + chunk * inputs * PAIR),
                        y: y.as_mut_ptr().wrapping_add(r * row.1 + (chunk * outputs + i) * PAIR),
                        strides,
                        rows: row,
                        steps: (cells * PAIR, inputs * PAIR, outputs * PAIR),
                        chunks: next - chunk,
                        inputs,
                        op,
                        odd,
                    };
                    // SAFETY: chunks, rows and outputs are in range by the loop bounds, the lengths by the assertions.
                    r += unsafe {
                        match (rows - r, step) {
                            (_, 4) => tile.product::<S, 1, 4>(simd),
                            (1, 2) => tile.product::<S, 1, 2>(simd),
                            (1, _) => tile.product::<S, 1, 1>(simd),
                            (_, 2) if S::REGISTERS == 32 => tile.product::<S, 2, 2>(simd),
                            (_, 2) => tile.product::<S, 1, 2>(simd),
                            _ => tile.product::<S, 2, 1>(simd),
                        }
                    };
                }
                i += step;
            }
            chunk = next;
        }
    }
}

/// Numbers of weights that stay near while rows pass.
const NEAR: usize = 4096;

impl<T: Scalar> Tile<T> {
    /// `R` rows of `O` outputs. Returns `R`.
    ///
    /// # Safety
    /// Weights, spectra and the strides between them are those of a product.
    #[inline(always)]
    unsafe fn product<S: Simd<T>, const R: usize, const O: usize>(self, simd: S) -> usize {
        // SAFETY: the caller's.
        unsafe { if self.odd { self.odd::<S, R, O>(simd) } else { self.even::<S, R, O>(simd) } }
        R
    }

    /// Of a whole chunk.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn even<S: Simd<T>, const R: usize, const O: usize>(self, simd: S) {
        for at in (0..self.chunks * CHUNK).step_by(S::LANES) {
            let (chunk, lane) = (at / CHUNK, at % CHUNK);
            let (w, x, y) = (
                self.w.wrapping_add(chunk * self.steps.0 + lane),
                self.x.wrapping_add(chunk * self.steps.1 + lane),
                self.y.wrapping_add(chunk * self.steps.2 + lane),
            );
            // Of the products of real and imaginary parts: enough chains that none waits.
            let mut sums = [[[simd.zero(); 4]; R]; O];
            // SAFETY: the caller's.
            unsafe {
                for j in 0..self.inputs {
                    let x = x.add(j * PAIR);
                    let re: [S::V; R] = vectors(simd, |r| simd.load(x.add(r * self.rows.0)));
                    let im: [S::V; R] = vectors(simd, |r| simd.load(x.add(r * self.rows.0 + CHUNK)));
                    for (o, sums) in sums.iter_mut().enumerate() {
                        let w = w.add(j * self.strides.1 + o * self.strides.0);
                        let (wr, wi) = (simd.load(w), simd.load(w.add(CHUNK)));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            sums[0] = simd.mul_add(wr, re[r], sums[0]);
                            sums[1] = simd.mul_add(wi, im[r], sums[1]);
                            sums[2] = simd.mul_add(wr, im[r], sums[2]);
                            sums[3] = simd.mul_add(wi, re[r], sums[3]);
                        }
                    }
                }
                for (o, sums) in sums.iter().enumerate() {
                    for (r, [rr, ii, ri, ir]) in sums.iter().enumerate() {
                        let y = y.add(r * self.rows.1 + o * PAIR);
                        let (re, im) = match self.op {
                            Op::Forward => (simd.sub(*rr, *ii), simd.add(*ri, *ir)),
                            Op::Transpose => (simd.add(*rr, *ii), simd.sub(*ri, *ir)),
                        };
                        simd.store(y, re);
                        simd.store(y.add(CHUNK), im);
                    }
                }
            }
        }
    }

    /// Of an odd chunk: products whose sums, half by half, are the real and the imaginary parts.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn odd<S: Simd<T>, const R: usize, const O: usize>(self, simd: S) {
        let signs: [T; CHUNK] =
            std::array::from_fn(|lane| if lane < CHUNK / 2 { T::one() } else { -T::one() });
        for at in (0..CHUNK).step_by(S::LANES) {
            let mut sums = [[[simd.zero(); 2]; R]; O];
            // SAFETY: the caller's.
            unsafe {
                for j in 0..self.inputs {
                    let x = self.x.add(j * PAIR + at);
                    for (o, sums) in sums.iter_mut().enumerate() {
                        let w = simd.load(self.w.add(j * self.strides.1 + o * self.strides.0 + at));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let x = x.add(r * self.rows.0);
                            sums[0] = simd.mul_add(w, simd.load(x), sums[0]);
                            sums[1] = simd.mul_add(w, simd.load(x.add(CHUNK)), sums[1]);
                        }
                    }
                }
                let sign = simd.load(signs.as_ptr().add(at));
                for (o, sums) in sums.iter().enumerate() {
                    for (r, [straight, crossed]) in sums.iter().enumerate() {
                        let y = self.y.add(r * self.rows.1 + o * PAIR + at);
                        let (re, im) = match self.op {
                            Op::Forward => (simd.mul(*straight, sign), *crossed),
                            Op::Transpose => (*straight, simd.mul(*crossed, sign)),
                        };
                        simd.store(y, re);
                        simd.store(y.add(CHUNK), im);
                    }
                }
            }
        }
    }
}
