//! Transforms of real rows whose length is a power of two, in vectors throughout.
//!
//! A row of `len` numbers is a panel of [`COLUMNS`]: entry `COLUMNS j + c` is column `c` of row `j`. A transform
//! 1. transforms the columns, as [`Lines`];
//! 2. turns line `k`, column `c` by `exp(-2 pi i c k / len)`;
//! 3. transforms the lines: squares of them are transposed, so that each lane holds a line of its own.
//!
//! Nothing is moved to sort the frequencies: spectra come in the order of [`Columns::bin`], which products entry by entry
//! do not mind. The lines of frequency 0 and `half` of step 1 are real. They share line 0 of step 3: the first is transformed there, and
//! leaves half of its places, which it would fill with conjugates, to the second.

use super::butterfly::{self, Lanes, reversed, turn};
use super::lines::{COLUMNS, LINE, Lines, square, unsquare};
use crate::kernels::AlignedVec;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::Simd;
use crate::matrix::Update;
use crate::scalar::Scalar;
use num_complex::Complex;

/// Shortest transform: at every level, squares of lines fit.
const SHORTEST: usize = 8 * LINE;

/// Tables of a transform.
#[derive(Debug, Clone)]
pub(super) struct Columns<T> {
    lines: Lines<T>,
    /// Step 2, by the place of the line.
    turns: AlignedVec<T>,
    /// `[c][k]` and `[c][8 + k]`: real and imaginary parts of `exp(-2 pi i c (2 k + 1) / 32)`.
    odd: AlignedVec<T>,
    /// Its transpose.
    odd_back: AlignedVec<T>,
}

impl<T: Scalar> Columns<T> {
    /// Whether there is such a transform.
    pub(super) fn fit(len: usize) -> bool {
        len.is_power_of_two() && len >= SHORTEST
    }

    pub(super) fn new(len: usize) -> Self {
        assert!(Self::fit(len));
        let half = len / LINE;
        let line = |q: usize, c: usize| turn::<T>(c * reversed(half, q), len);
        let odd = |c: usize, k: usize| match (turn::<T>(c * (2 * (k % 8) + 1), 2 * COLUMNS), k) {
            (w, ..8) => w.re,
            (w, _) => w.im,
        };
        let square = COLUMNS * COLUMNS;
        Self {
            lines: Lines::new(half),
            turns: AlignedVec::from_fn(len, |i| match (i / LINE, i % LINE) {
                (q, c) if c < COLUMNS => line(q, c).re,
                (q, c) => line(q, c - COLUMNS).im,
            }),
            odd: AlignedVec::from_fn(square, |i| odd(i / COLUMNS, i % COLUMNS)),
            odd_back: AlignedVec::from_fn(square, |i| odd(i % COLUMNS, i / COLUMNS)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.half * LINE
    }

    /// The frequency at a place of the spectrum other than 0, where frequencies 0 and `len / 2`, which are real, take the
    /// real and the imaginary part.
    pub(super) fn bin(&self, place: usize) -> usize {
        let (line, part) =
            (reversed(self.lines.half, place % self.lines.half), reversed(COLUMNS, place / self.lines.half));
        match (line, part) {
            (0, 8..) => self.lines.half + 2 * self.lines.half * (part - 8),
            _ => line + 2 * self.lines.half * part,
        }
    }

    /// The level whose vectors are no longer than the lines are many.
    pub(super) fn level(&self, level: Level) -> Level {
        if self.lines.half * size_of::<T>() < 64 { level.min(Level::Avx2) } else { level }
    }
}

/// A forward transform of a row, followed by zeros, to a spectrum: `len / 2` real parts, then imaginary parts.
#[derive(Debug)]
pub(super) struct Forward<'a, T> {
    pub(super) plan: &'a Columns<T>,
    pub(super) x: &'a [T],
    pub(super) z: &'a mut [T],
    /// `len` numbers.
    pub(super) work: &'a mut [T],
}

/// The inverse of [`Forward`], of the leading entries; destroys the spectrum.
#[derive(Debug)]
pub(super) struct Inverse<'a, T> {
    pub(super) plan: &'a Columns<T>,
    pub(super) z: &'a mut [T],
    pub(super) y: &'a mut [T],
    pub(super) update: Update,
    /// `len` numbers.
    pub(super) work: &'a mut [T],
}

impl<T: Scalar> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { plan, x, z, work } = self;
        let (half, len) = (plan.lines.half, plan.len());
        assert!(x.len() <= len && z.len() == len && work.len() == len && half % S::LANES == 0);
        if x.len() < len {
            work[..x.len()].copy_from_slice(x);
            work[x.len()..].fill(T::zero());
        }
        let first = work.as_mut_ptr();
        let x = if x.len() < len { first.cast_const() } else { x.as_ptr() };
        // SAFETY: `x`, `work` and the tables have `half` lines, and `part` is the first column of a vector.
        unsafe {
            for part in (0..COLUMNS).step_by(S::LANES) {
                let lines = first.add(part);
                plan.lines.forward(simd, x.add(part), lines);
                plan.lines.untangle(simd, lines, Some(plan.turns.as_ptr().add(part)));
            }
            let mut odd = [T::zero(); COLUMNS];
            odd.swap_with_slice(&mut work[COLUMNS..LINE]);
            for q in (0..half).step_by(S::LANES) {
                let mut v: [Lanes<S::V>; COLUMNS] = [Complex { re: simd.zero(), im: simd.zero() }; COLUMNS];
                for part in (0..COLUMNS).step_by(S::LANES) {
                    let lines = work.as_ptr().add(q * LINE + part);
                    let re = square(simd, lines, LINE);
                    let im = square(simd, lines.add(COLUMNS), LINE);
                    for c in 0..S::LANES {
                        v[part + c] = Complex { re: re[c], im: im[c] };
                    }
                }
                butterfly::forward(simd, &mut v);
                for (c, v) in v.iter().enumerate() {
                    simd.store(z.as_mut_ptr().add(c * half + q), v.re);
                    simd.store(z.as_mut_ptr().add(len / 2 + c * half + q), v.im);
                }
            }
            plan.place_odd(z, &odd);
        }
    }
}

impl<T: Scalar> Kernel<T> for Inverse<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { plan, z, y, update, work } = self;
        let (half, len) = (plan.lines.half, plan.len());
        assert!(y.len() <= len && z.len() == len && work.len() == len && half % S::LANES == 0);
        let odd = plan.take_odd(z);
        let direct = update == Update::Overwrite && y.len() == len;
        // SAFETY: as above.
        unsafe {
            for q in (0..half).step_by(S::LANES) {
                let mut v: [Lanes<S::V>; COLUMNS] = std::array::from_fn(|c| Complex {
                    re: simd.load(z.as_ptr().add(c * half + q)),
                    im: simd.load(z.as_ptr().add(len / 2 + c * half + q)),
                });
                butterfly::inverse(simd, &mut v);
                for part in (0..COLUMNS).step_by(S::LANES) {
                    let lines = work.as_mut_ptr().add(q * LINE + part);
                    let (mut re, mut im) = ([simd.zero(); 16], [simd.zero(); 16]);
                    for c in 0..S::LANES {
                        (re[c], im[c]) = (v[part + c].re, v[part + c].im);
                    }
                    unsquare(simd, re, lines, LINE);
                    unsquare(simd, im, lines.add(COLUMNS), LINE);
                }
            }
            work[COLUMNS..LINE].copy_from_slice(&odd);
            for part in (0..COLUMNS).step_by(S::LANES) {
                let lines = work.as_mut_ptr().add(part);
                plan.lines.tangle(simd, lines, Some(plan.turns.as_ptr().add(part)));
                let to = if direct { y.as_mut_ptr().add(part) } else { lines };
                plan.lines.inverse(simd, lines, to);
            }
        }
        match update {
            _ if direct => (),
            Update::Overwrite => y.copy_from_slice(&work[..y.len()]),
            Update::Accumulate => y.iter_mut().zip(&*work).for_each(|(y, w)| *y += *w),
        }
    }
}

impl<T: Scalar> Columns<T> {
    /// Puts the transform of the line of frequency `half` where the places of line 0 hold conjugates.
    #[inline(always)]
    fn place_odd(&self, z: &mut [T], odd: &[T; COLUMNS]) {
        let sums = combine(&self.odd, odd);
        let (re, im) = z.split_at_mut(z.len() / 2);
        im[0] = re[self.lines.half];
        for k in 0..COLUMNS / 2 {
            let place = reversed(COLUMNS, COLUMNS / 2 + k) * self.lines.half;
            (re[place], im[place]) = (sums[k], sums[8 + k]);
        }
    }

    /// The inverse of [`place_odd`](Self::place_odd): returns the line, and puts the conjugates back.
    #[inline(always)]
    fn take_odd(&self, z: &mut [T]) -> [T; COLUMNS] {
        let (re, im) = z.split_at_mut(z.len() / 2);
        let mut sums = [T::zero(); COLUMNS];
        let place = |k: usize| reversed(COLUMNS, k) * self.lines.half;
        for k in 0..COLUMNS / 2 {
            let place = place(COLUMNS / 2 + k);
            (sums[k], sums[8 + k]) = (re[place] + re[place], im[place] + im[place]);
        }
        (re[place(8)], im[place(8)]) = (im[0], T::zero());
        im[0] = T::zero();
        for k in 1..COLUMNS / 2 {
            let (to, from) = (place(COLUMNS - k), place(k));
            (re[to], im[to]) = (re[from], -im[from]);
        }
        combine(&self.odd_back, &sums)
    }
}

/// The sum of the rows of a table, each times its number.
#[inline(always)]
fn combine<T: Scalar>(rows: &[T], by: &[T; COLUMNS]) -> [T; COLUMNS] {
    let mut sums = [T::zero(); COLUMNS];
    for (row, a) in rows.chunks_exact(COLUMNS).zip(by) {
        for (sum, w) in sums.iter_mut().zip(row) {
            *sum += *w * *a;
        }
    }
    sums
}
