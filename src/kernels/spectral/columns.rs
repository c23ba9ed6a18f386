//! Transforms of real rows whose length is a power of two, in vectors throughout.
//!
//! A row of `len` numbers is a panel of [`COLUMNS`]: entry `COLUMNS j + c` is column `c` of row `j`. A transform
//! 1. transforms the columns, as [`Lines`], line by line turned by `exp(-2 pi i c k / len)` for its frequency `k`;
//! 2. transforms the lines: squares of them are transposed, so that each lane holds a line of its own.
//!
//! Nothing is moved to sort the frequencies: spectra come in the order of [`Columns::bin`], which products entry by entry
//! do not mind. Line 0 of step 1 has two real frequencies. The first takes line 0 of step 2 for itself, and so has its conjugates
//! there; the other's transform is a small real product, and an odd chunk of the spectrum of its own (see the module above).
//!
//! The inverse is the adjoint.

use super::butterfly::{self, Lanes, mul, mul_conj, reversed, turn};
use super::lines::{COLUMNS, LINE, Lines, square, unsquare};
use super::{CHUNK, PAIR};
use crate::kernels::AlignedVec;
use crate::kernels::level::Kernel;
use crate::kernels::simd::Simd;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use num_complex::Complex;

/// Shortest transform: two of them fill a square of lines at every level.
const SHORTEST: usize = 8 * LINE;

/// Transforms that share squares of lines.
const TOGETHER: usize = 2;

/// Tables of a transform.
#[derive(Debug, Clone)]
pub(super) struct Columns<T> {
    lines: Lines<T>,
    /// Of the lines, as they lie.
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
        let lines = Lines::new(len / COLUMNS);
        let line = |q: usize, c: usize| turn::<T>(c * lines.frequencies[q] as usize, len);
        let turns = AlignedVec::from_fn(len, |i| match (i / LINE, i % LINE) {
            (q, c) if c < COLUMNS => line(q, c).re,
            (q, c) => line(q, c - COLUMNS).im,
        });
        let odd = |c: usize, k: usize| match (turn::<T>(c * (2 * (k % 8) + 1), 2 * COLUMNS), k) {
            (w, ..8) => w.re,
            (w, _) => w.im,
        };
        let square = COLUMNS * COLUMNS;
        Self {
            lines,
            turns,
            odd: AlignedVec::from_fn(square, |i| odd(i / COLUMNS, i % COLUMNS)),
            odd_back: AlignedVec::from_fn(square, |i| odd(i % COLUMNS, i / COLUMNS)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.half * LINE
    }

    /// Scratch entries of a transform: panels of those that go together.
    pub(super) fn scratch_len(len: usize) -> usize {
        TOGETHER * len
    }

    /// Lines side by side in a chunk.
    fn width(&self) -> usize {
        self.lines.half.min(CHUNK)
    }

    /// Where line `q` has its part `c`.
    #[inline(always)]
    fn place(&self, q: usize, c: usize) -> usize {
        let line = q & (self.width() - 1);
        (q - line) * COLUMNS + c * self.width() + line
    }

    /// The frequency at a place of the spectrum. Those of line 0 are there with their conjugates.
    pub(super) fn bin(&self, place: usize) -> usize {
        let (half, width) = (self.lines.half, self.width());
        if place >= self.len() / 2 {
            return half + 2 * half * (place - self.len() / 2);
        }
        let (lines, part, line) = (place / (COLUMNS * width), place / width % COLUMNS, place % width);
        let line = self.lines.frequencies[lines * width + line] as usize;
        line + 2 * half * reversed(COLUMNS, part)
    }

    /// Whether line 0 has the place.
    pub(super) fn is_double(&self, place: usize) -> bool {
        place < COLUMNS * self.width() && place.is_multiple_of(self.width())
    }
}

/// Forward transforms of consecutive pieces of a row, the last one followed by zeros, to spectra.
#[derive(Debug)]
pub(super) struct Forward<'a, T> {
    pub(super) plan: &'a Columns<T>,
    pub(super) x: &'a [T],
    pub(super) count: usize,
    pub(super) z: &'a mut [T],
    pub(super) work: &'a mut [T],
}

/// The adjoint of [`Forward`].
#[derive(Debug)]
pub(super) struct Inverse<'a, T> {
    pub(super) plan: &'a Columns<T>,
    pub(super) count: usize,
    pub(super) z: &'a [T],
    pub(super) y: &'a mut [T],
    pub(super) update: Update,
    pub(super) work: &'a mut [T],
}

/// A forward transform, a product with one spectrum and the inverse transform, of a length for which a transform is [`alone`](Columns::is_alone).
#[derive(Debug)]
pub(super) struct Convolve<'a, T> {
    pub(super) plan: &'a Columns<T>,
    pub(super) weights: &'a [T],
    pub(super) op: Op,
    pub(super) x: &'a [T],
    pub(super) y: &'a mut [T],
    pub(super) update: Update,
    pub(super) work: &'a mut [T],
}

impl<T: Scalar> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { plan, x, count, z, work } = self;
        let (half, len, chunk, together) =
            (plan.lines.half, plan.len(), count * PAIR, plan.check(simd, work));
        assert!(z.len() == (len / LINE + 1) * chunk && x.len() <= count * len);
        let (work, z) = (work.as_mut_ptr(), z.as_mut_ptr());
        let mut odd = [[T::zero(); COLUMNS]; TOGETHER];
        for start in (0..count).step_by(together) {
            let blocks = together.min(count - start);
            for (b, odd) in odd.iter_mut().enumerate().take(blocks) {
                let x = &x[((start + b) * len).min(x.len())..];
                // SAFETY: `work` has so many panels.
                *odd = unsafe { plan.lines_forward(simd, x, work.add(b * len)) };
            }
            for q in (0..together * half).step_by(S::LANES) {
                // SAFETY: `work` has so many lines, and `z` their places in the blocks of each chunk.
                unsafe {
                    let v = plan.square_forward(simd, work, q);
                    if together > 1 {
                        for c in (0..COLUMNS).step_by(2) {
                            let re = simd.halves(v[c].re, v[c + 1].re);
                            let im = simd.halves(v[c].im, v[c + 1].im);
                            let z = z.add(c / 2 * chunk + start * PAIR);
                            simd.store(z, re.0);
                            simd.store(z.add(CHUNK), im.0);
                            if blocks > 1 {
                                simd.store(z.add(PAIR), re.1);
                                simd.store(z.add(PAIR + CHUNK), im.1);
                            }
                        }
                        continue;
                    }
                    for (c, v) in v.iter().enumerate() {
                        let place = plan.place(q, c);
                        let z = z.add(place / CHUNK * chunk + start * PAIR + place % CHUNK);
                        simd.store(z, v.re);
                        simd.store(z.add(CHUNK), v.im);
                    }
                }
            }
            let sums = match blocks {
                TOGETHER => combine(simd, &plan.odd, &odd),
                _ => [combine(simd, &plan.odd, &[odd[0]])[0]; TOGETHER],
            };
            for (b, sums) in sums.iter().enumerate().take(blocks) {
                // SAFETY: `z` has a last chunk.
                let z = unsafe {
                    let z = z.add(len / LINE * chunk + (start + b) * PAIR);
                    std::slice::from_raw_parts_mut(z, PAIR)
                };
                z[..16].copy_from_slice(sums);
                z[16..24].copy_from_slice(&sums[8..]);
                z[24..].copy_from_slice(&sums[..8]);
            }
        }
    }
}

impl<T: Scalar> Kernel<T> for Inverse<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { plan, count, z, y, update, work } = self;
        let (half, len, chunk, together) =
            (plan.lines.half, plan.len(), count * PAIR, plan.check(simd, work));
        assert!(z.len() == (len / LINE + 1) * chunk && y.len() <= count * len);
        let work = work.as_mut_ptr();
        for start in (0..count).step_by(together) {
            let blocks = together.min(count - start);
            for q in (0..together * half).step_by(S::LANES) {
                // SAFETY: as for the forward transform.
                unsafe {
                    let mut v = [Complex { re: simd.zero(), im: simd.zero() }; COLUMNS];
                    if together > 1 {
                        for c in (0..COLUMNS).step_by(2) {
                            let z = z.as_ptr().add(c / 2 * chunk + start * PAIR);
                            let next = if blocks > 1 { z.add(PAIR) } else { z };
                            let re = simd.halves(simd.load(z), simd.load(next));
                            let im = simd.halves(simd.load(z.add(CHUNK)), simd.load(next.add(CHUNK)));
                            v[c] = Complex { re: re.0, im: im.0 };
                            v[c + 1] = Complex { re: re.1, im: im.1 };
                        }
                    } else {
                        for (c, v) in v.iter_mut().enumerate() {
                            let place = plan.place(q, c);
                            let z = z.as_ptr().add(place / CHUNK * chunk + start * PAIR + place % CHUNK);
                            *v = Complex { re: simd.load(z), im: simd.load(z.add(CHUNK)) };
                        }
                    }
                    plan.square_inverse(simd, v, work, q);
                }
            }
            let mut sums = [[T::zero(); CHUNK]; TOGETHER];
            for (b, sums) in sums.iter_mut().enumerate().take(blocks) {
                *sums = add_halves(simd, &z[len / LINE * chunk + (start + b) * PAIR..]);
            }
            let odd = match blocks {
                TOGETHER => combine(simd, &plan.odd_back, &sums),
                _ => [combine(simd, &plan.odd_back, &[sums[0]])[0]; TOGETHER],
            };
            for (b, odd) in odd.iter().enumerate().take(blocks) {
                let from = ((start + b) * len).min(y.len());
                // SAFETY: `work` has so many panels.
                unsafe { plan.lines_inverse(simd, odd, work.add(b * len), &mut y[from..], update) };
            }
        }
    }
}

impl<T: Scalar> Kernel<T> for Convolve<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { plan, weights, op, x, y, update, work } = self;
        let (half, len) = (plan.lines.half, plan.len());
        assert!(
            plan.check(simd, work) == 1 && weights.len() == len + CHUNK && x.len() <= len && y.len() <= len
        );
        let work = work.as_mut_ptr();
        // SAFETY: `work` and `weights` have so many lines.
        unsafe {
            let odd = plan.lines_forward(simd, x, work);
            for q in (0..half).step_by(S::LANES) {
                let mut v = plan.square_forward(simd, work, q);
                for (c, v) in v.iter_mut().enumerate() {
                    let place = plan.place(q, c);
                    let w = weights.as_ptr().add(place / CHUNK * PAIR + place % CHUNK);
                    let w = Complex { re: simd.load(w), im: simd.load(w.add(CHUNK)) };
                    *v = if op == Op::Forward { mul(simd, *v, w) } else { mul_conj(simd, *v, w) };
                }
                plan.square_inverse(simd, v, work, q);
            }
            let [z] = combine(simd, &plan.odd, &[odd]);
            let (w_re, w_im) = weights[len..].split_at(CHUNK / 2);
            let mut product = [T::zero(); CHUNK];
            for k in 0..CHUNK / 2 {
                let (z, w) = (Complex::new(z[k], z[k + 8]), Complex::new(w_re[k], w_im[k]));
                let z = if op == Op::Forward { z * w } else { z * w.conj() };
                (product[k], product[k + 8]) = (z.re, z.im);
            }
            let [odd] = combine(simd, &plan.odd_back, &[product]);
            plan.lines_inverse(simd, &odd, work, y, update);
        }
    }
}

impl<T: Scalar> Columns<T> {
    /// Whether its lines fill squares at every level.
    pub(super) fn is_alone(&self) -> bool {
        self.lines.half >= CHUNK
    }

    /// How many transforms go together, with so much scratch.
    #[inline(always)]
    fn check<S: Simd<T>>(&self, _: S, work: &[T]) -> usize {
        let (half, len) = (self.lines.half, self.len());
        let together = (S::LANES / half).max(1);
        assert!(work.len() == Self::scratch_len(len) && self.lines.panel_len() <= TOGETHER * len);
        assert!(
            together <= TOGETHER
                && (together * half).is_multiple_of(S::LANES)
                && COLUMNS.is_multiple_of(S::LANES)
        );
        together
    }

    /// Step 1 of the leading numbers of `x`, followed by zeros. Returns what is transformed to the odd chunk.
    ///
    /// # Safety
    /// `lines` points at a panel.
    #[inline(always)]
    unsafe fn lines_forward<S: Simd<T>>(&self, simd: S, x: &[T], lines: *mut T) -> [T; COLUMNS] {
        let mut odd = [T::zero(); COLUMNS];
        for part in (0..COLUMNS).step_by(S::LANES) {
            // SAFETY: the caller's; rows are read as far as `x` goes, and `part` is the first column of a vector.
            unsafe {
                let turns = Some(self.turns.as_ptr().add(part));
                let (from, lines) = (x.as_ptr().wrapping_add(part), lines.add(part));
                if x.len() >= self.len() {
                    self.lines.forward(
                        simd,
                        #[inline(always)]
                        |t| simd.load(from.add(t * COLUMNS)),
                        lines,
                        turns,
                    );
                } else {
                    self.lines.forward(
                        simd,
                        #[inline(always)]
                        |t| match x.len().saturating_sub(t * COLUMNS + part) {
                            0 => simd.zero(),
                            left if left < S::LANES => simd.load_part(from.add(t * COLUMNS), left),
                            _ => simd.load(from.add(t * COLUMNS)),
                        },
                        lines,
                        turns,
                    );
                }
                simd.store(odd.as_mut_ptr().add(part), simd.load(lines.add(COLUMNS)));
                simd.store(lines.add(COLUMNS), simd.zero());
            }
        }
        odd
    }

    /// The inverse of step 1, of leading numbers.
    ///
    /// # Safety
    /// `lines` points at a panel.
    #[inline(always)]
    unsafe fn lines_inverse<S: Simd<T>>(
        &self,
        simd: S,
        odd: &[T; COLUMNS],
        lines: *mut T,
        y: &mut [T],
        update: Update,
    ) {
        for part in (0..COLUMNS).step_by(S::LANES) {
            // SAFETY: the caller's; rows are written as far as `y` goes.
            unsafe {
                let lines = lines.add(part);
                simd.store(lines.add(COLUMNS), simd.load(odd.as_ptr().add(part)));
                let turns = Some(self.turns.as_ptr().add(part));
                let to = y.as_mut_ptr().wrapping_add(part);
                if update == Update::Overwrite && y.len() >= self.len() {
                    self.lines.inverse(
                        simd,
                        lines,
                        turns,
                        #[inline(always)]
                        |t, v| simd.store(to.add(t * COLUMNS), v),
                    );
                } else {
                    self.lines.inverse(
                        simd,
                        lines,
                        turns,
                        #[inline(always)]
                        |t, v| {
                            let to = to.wrapping_add(t * COLUMNS);
                            match (y.len().saturating_sub(t * COLUMNS + part), update) {
                                (0, _) => (),
                                (left, Update::Overwrite) if left < S::LANES => simd.store_part(to, v, left),
                                (_, Update::Overwrite) => simd.store(to, v),
                                (left, _) if left < S::LANES => {
                                    simd.store_part(to, simd.add(simd.load_part(to, left), v), left)
                                }
                                _ => simd.store(to, simd.add(simd.load(to), v)),
                            }
                        },
                    );
                }
            }
        }
    }

    /// Step 2 of the lines from `q` on.
    ///
    /// # Safety
    /// `work` has these lines.
    #[inline(always)]
    unsafe fn square_forward<S: Simd<T>>(&self, simd: S, work: *const T, q: usize) -> [Lanes<S::V>; COLUMNS] {
        let mut v = [Complex { re: simd.zero(), im: simd.zero() }; COLUMNS];
        for part in (0..COLUMNS).step_by(S::LANES) {
            // SAFETY: the caller's.
            let (re, im) = unsafe {
                let lines = work.add(q * LINE + part);
                (square(simd, lines, LINE), square(simd, lines.add(COLUMNS), LINE))
            };
            for c in 0..S::LANES {
                v[part + c] = Complex { re: re[c], im: im[c] };
            }
        }
        butterfly::forward(simd, &mut v);
        v
    }

    /// Its inverse.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn square_inverse<S: Simd<T>>(
        &self,
        simd: S,
        mut v: [Lanes<S::V>; COLUMNS],
        work: *mut T,
        q: usize,
    ) {
        butterfly::inverse(simd, &mut v);
        for part in (0..COLUMNS).step_by(S::LANES) {
            let (mut re, mut im) = ([simd.zero(); 16], [simd.zero(); 16]);
            for c in 0..S::LANES {
                (re[c], im[c]) = (v[part + c].re, v[part + c].im);
            }
            // SAFETY: the caller's.
            unsafe {
                let lines = work.add(q * LINE + part);
                unsquare(simd, re, lines, LINE);
                unsquare(simd, im, lines.add(COLUMNS), LINE);
            }
        }
    }
}

/// The sums of the halves of the real parts, and of the imaginary parts, of an odd chunk.
#[inline(always)]
fn add_halves<T: Scalar, S: Simd<T>>(simd: S, odd: &[T]) -> [T; CHUNK] {
    let mut sums = [T::zero(); CHUNK];
    assert!(odd.len() >= PAIR && (S::LANES == CHUNK || (CHUNK / 2).is_multiple_of(S::LANES)));
    // SAFETY: a chunk has so many numbers.
    unsafe {
        if S::LANES == CHUNK {
            let (low, high) = simd.halves(simd.load(odd.as_ptr()), simd.load(odd.as_ptr().add(CHUNK)));
            simd.store(sums.as_mut_ptr(), simd.add(low, high));
        } else {
            for k in (0..CHUNK).step_by(S::LANES) {
                let from = odd.as_ptr().add(k / 8 * CHUNK + k % 8);
                let sum = simd.add(simd.load(from), simd.load(from.add(CHUNK / 2)));
                simd.store(sums.as_mut_ptr().add(k), sum);
            }
        }
    }
    sums
}

/// The sums of the rows of a table, each times its number.
#[inline(always)]
fn combine<T: Scalar, S: Simd<T>, const N: usize>(
    simd: S,
    rows: &[T],
    by: &[[T; COLUMNS]; N],
) -> [[T; COLUMNS]; N] {
    let mut sums = [[T::zero(); COLUMNS]; N];
    assert!(rows.len() == COLUMNS * COLUMNS && COLUMNS.is_multiple_of(S::LANES));
    for part in (0..COLUMNS).step_by(S::LANES) {
        // Chains that do not wait for each other.
        let mut chains = [[simd.zero(); 4]; N];
        for c in 0..COLUMNS {
            // SAFETY: the table has 16 rows of 16.
            let row = unsafe { simd.load(rows.as_ptr().add(c * COLUMNS + part)) };
            for (chains, by) in chains.iter_mut().zip(by) {
                chains[c % 4] = simd.mul_add(row, simd.splat(by[c]), chains[c % 4]);
            }
        }
        for (sums, [a, b, c, d]) in sums.iter_mut().zip(chains) {
            let sum = simd.add(simd.add(a, b), simd.add(c, d));
            // SAFETY: 16 sums.
            unsafe { simd.store(sums.as_mut_ptr().add(part), sum) };
        }
    }
    sums
}
