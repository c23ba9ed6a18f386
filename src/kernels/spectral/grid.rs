//! Products of a grid of spectra with a vector of spectra, entry by entry: $y_i = \sum_j w_{ij} \circ x_j$.
//!
//! Lanes are frequencies, so that spectra need not be transposed, and grids of any shape fill the vectors.

use super::{CHUNK, PAIR};
use crate::kernels::AlignedVec;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::{Simd, vectors};
use crate::matrix::Op;
use crate::scalar::Scalar;
use num_complex::Complex;
use std::ops::Range;

/// Spectra of a grid, packed in the order in which a product reads them: for each chunk of frequencies, for each group of rows, for each column, for each
/// row of the group. Products of one row come from one stream then: several would be too short to be foreseen.
///
/// A chunk has the real parts, then the imaginary parts, and the odd one 8 of each.
#[derive(Debug, Clone)]
pub struct SpectrumGrid<T> {
    shape: (usize, usize),
    /// Rows of a group, of which there are several or that are 1.
    group: usize,
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
        let group = [4, 2, 1].into_iter().find(|&group| shape.0.is_multiple_of(group)).unwrap_or(1);
        let mut data = AlignedVec::zeroed(cells * (chunks * PAIR + if odd { CHUNK } else { 0 }));
        for (i, j) in (0..shape.0).flat_map(|i| (0..shape.1).map(move |j| (i, j))) {
            let cell = i / group * group * shape.1 + j * group + i % group;
            for (place, w) in spectrum(i, j).into_iter().enumerate() {
                let (chunk, lane) = (place / CHUNK, place % CHUNK);
                let start = chunk * cells * PAIR + lane;
                let (at, im) = match chunk < chunks {
                    true => (start + cell * PAIR, CHUNK),
                    false => (start + cell * CHUNK, CHUNK / 2),
                };
                (data[at], data[at + im]) = (T::narrow(w.re), T::narrow(w.im));
            }
        }
        Self { shape, group, chunks, odd, data }
    }
}

/// Some outputs of a product of a grid, or of its adjoint, with rows of spectra.
#[derive(Debug)]
pub struct GridProduct<'a, T> {
    grid: &'a SpectrumGrid<T>,
    op: Op,
    rows: usize,
    outputs: Range<usize>,
    x: &'a [T],
    y: &'a mut [T],
}

impl<T: Scalar> SpectrumGrid<T> {
    /// Numbers of the weights.
    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    /// Outputs `outputs` of products with `rows` rows of spectra of several blocks. Panics when there are not so many.
    pub(crate) fn multiply(
        &self,
        level: Level,
        op: Op,
        rows: usize,
        outputs: Range<usize>,
        x: &[T],
        y: &mut [T],
    ) {
        T::grid(level, GridProduct { grid: self, op, rows, outputs, x, y });
    }
}

/// Where a tile of the product finds its operands.
#[derive(Clone, Copy)]
struct Tile<T> {
    w: *const T,
    x: *const T,
    y: *mut T,
    /// Between the weights of outputs, of inputs of a run, and of runs of inputs.
    strides: (usize, usize, usize),
    /// Inputs of a run.
    run: usize,
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
        let Self { grid, op, rows, outputs: Range { start, end }, x, y } = self;
        let SpectrumGrid { shape, group, chunks, odd, data } = grid;
        let (cells, all) = (shape.0 * shape.1, chunks + usize::from(*odd));
        let (most_outputs, inputs) = op.order(shape.0, shape.1);
        assert!(start <= end && end <= most_outputs);
        let outputs = end - start;
        let row = (all * inputs * PAIR, all * outputs * PAIR);
        assert!(x.len() == rows * row.0 && y.len() == rows * row.1 && CHUNK.is_multiple_of(S::LANES));
        assert!(data.len() == cells * (chunks * PAIR + if *odd { CHUNK } else { 0 }));
        let mut chunk = 0;
        while chunk < all {
            // The odd chunk is alone; others as many as have weights that stay near while rows pass.
            let odd = chunk == *chunks;
            let next = (chunk + (NEAR / (cells * PAIR)).max(1)).min(if odd { all } else { *chunks });
            let unit = if odd { CHUNK } else { PAIR };
            let (column, groups) = (group * unit, shape.1 * group * unit);
            // Rows that go together are in one group, or each is one.
            let (strides, run, most) = match op {
                Op::Forward if *group == 1 => ((groups, column, 0), inputs, most_outputs),
                Op::Forward => ((unit, column, 0), inputs, *group),
                Op::Transpose => ((column, unit, groups), *group, most_outputs),
            };
            let mut i = start;
            while i < end {
                let wide = |o: usize| end - i >= o && i % most + o <= most && S::REGISTERS >= 8 * o;
                let step = if rows == 1 && wide(4) {
                    4
                } else if wide(2) {
                    2
                } else {
                    1
                };
                let first = match op {
                    Op::Forward => i / group * groups + i % group * unit,
                    Op::Transpose => i * column,
                };
                let mut r = 0;
                while r < rows {
                    let tile = Tile {
                        w: data.as_ptr().wrapping_add(chunk * cells * PAIR + first),
                        x: x.as_ptr().wrapping_add(r * row.0 + chunk * inputs * PAIR),
                        y: y.as_mut_ptr().wrapping_add(r * row.1 + (chunk * outputs + i - start) * PAIR),
                        strides,
                        run,
                        rows: row,
                        steps: (cells * PAIR, inputs * PAIR, outputs * PAIR),
                        chunks: next - chunk,
                        inputs,
                        op,
                        odd,
                    };
                    // SAFETY: chunks, rows and outputs are in range by the loop bounds and the assertions.
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

    /// Where the weights of input `j` are, of the run from `first` on.
    #[inline(always)]
    fn input(&self, first: usize, j: usize) -> usize {
        first / self.run * self.strides.2 + (j - first) * self.strides.1
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
                for first in (0..self.inputs).step_by(self.run) {
                    for j in first..first + self.run {
                        let x = x.add(j * PAIR);
                        let re: [S::V; R] = vectors(simd, |r| simd.load(x.add(r * self.rows.0)));
                        let im: [S::V; R] = vectors(simd, |r| simd.load(x.add(r * self.rows.0 + CHUNK)));
                        let w = w.add(self.input(first, j));
                        for (o, sums) in sums.iter_mut().enumerate() {
                            let w = w.add(o * self.strides.0);
                            let (wr, wi) = (simd.load(w), simd.load(w.add(CHUNK)));
                            for (r, sums) in sums.iter_mut().enumerate() {
                                sums[0] = simd.mul_add(wr, re[r], sums[0]);
                                sums[1] = simd.mul_add(wi, im[r], sums[1]);
                                sums[2] = simd.mul_add(wr, im[r], sums[2]);
                                sums[3] = simd.mul_add(wi, re[r], sums[3]);
                            }
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
                for first in (0..self.inputs).step_by(self.run) {
                    for j in first..first + self.run {
                        let x = self.x.add(j * PAIR + at);
                        let w = self.w.add(self.input(first, j) + at);
                        for (o, sums) in sums.iter_mut().enumerate() {
                            let w = simd.load(w.add(o * self.strides.0));
                            for (r, sums) in sums.iter_mut().enumerate() {
                                let x = x.add(r * self.rows.0);
                                sums[0] = simd.mul_add(w, simd.load(x), sums[0]);
                                sums[1] = simd.mul_add(w, simd.load(x.add(CHUNK)), sums[1]);
                            }
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
