//! Transforms of real rows whose length is a power of two, in vectors throughout.
//!
//! A row of `len` numbers is `2 half` lines of [`COLUMNS`]: entry `COLUMNS j + c` is column `c` of line `j`. A transform
//! 1. transforms the columns, side by side in the lanes: pairs of lines count as complex lines, `half` of them, which are
//!    transformed by radix 8 and 4 and then [untangled](Columns::untangle) into the spectra of the real columns;
//! 2. turns line `k`, column `c` by `exp(-2 pi i c k / len)`;
//! 3. transforms the lines: squares of them are transposed, so that each lane holds a line of its own.
//!
//! Nothing is moved to sort the frequencies: spectra come in the order of [`Columns::bin`], which products entry by entry
//! do not mind. The lines of frequency 0 and `half` of step 1 are real. They share line 0 of step 3: the first is transformed there, and
//! leaves half of its places, which it would fill with conjugates, to the second.

use super::butterfly::{self, Lanes, add_conj, mul, mul_conj, reversed, splat, sub_conj, turn};
use crate::kernels::AlignedVec;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::{Simd, transpose};
use crate::matrix::Update;
use crate::scalar::Scalar;
use num_complex::Complex;

/// Numbers of a line.
const COLUMNS: usize = 16;

/// Those of a complex line: its real parts, then its imaginary parts.
const LINE: usize = 2 * COLUMNS;

/// Shortest transform: at every level, squares of lines fit.
const SHORTEST: usize = 8 * LINE;

/// Tables of a transform.
#[derive(Debug, Clone)]
pub(super) struct Columns<T> {
    /// Complex lines.
    half: usize,
    /// Passes over the lines, of the forward transform.
    passes: Vec<Pass<T>>,
    /// Places of the lines of frequencies `k` and `half - k`, and `exp(-2 pi i k / (2 half))`.
    pairs: Vec<(u32, u32, Complex<T>)>,
    /// Step 2, by the place of the line.
    turns: AlignedVec<T>,
    /// `[c][k]` and `[c][8 + k]`: real and imaginary parts of `exp(-2 pi i c (2 k + 1) / 32)`.
    odd: AlignedVec<T>,
    /// Its transpose.
    odd_back: AlignedVec<T>,
}

/// Transforms of `radix` lines each within blocks of `block` lines.
#[derive(Debug, Clone)]
struct Pass<T> {
    radix: usize,
    block: usize,
    /// For each line of the first `block / radix`, the turns of the places after the first.
    turns: Vec<Complex<T>>,
}

impl<T: Scalar> Columns<T> {
    /// Whether there is such a transform.
    pub(super) fn fit(len: usize) -> bool {
        len.is_power_of_two() && len >= SHORTEST
    }

    pub(super) fn new(len: usize) -> Self {
        assert!(Self::fit(len));
        let half = len / LINE;
        let mut passes = Vec::new();
        let mut block = half;
        while block > 1 {
            // Radix 8 as often as radix 4 can do the rest.
            let radix = if block == 4 || block == 16 { 4 } else { 8 };
            let places = |j: usize| (1..radix).map(move |q| turn(j * reversed(radix, q), block));
            passes.push(Pass { radix, block, turns: (0..block / radix).flat_map(places).collect() });
            block /= radix;
        }
        let place = |k: usize| reversed(half, k) as u32;
        let line = |q: usize, c: usize| turn::<T>(c * reversed(half, q), len);
        let odd = |c: usize, k: usize| match (turn::<T>(c * (2 * (k % 8) + 1), 2 * COLUMNS), k) {
            (w, ..8) => w.re,
            (w, _) => w.im,
        };
        let square = COLUMNS * COLUMNS;
        Self {
            half,
            passes,
            pairs: (1..=half / 2).map(|k| (place(k), place(half - k), turn(k, 2 * half))).collect(),
            turns: AlignedVec::from_fn(len, |i| match (i / LINE, i % LINE) {
                (q, c) if c < COLUMNS => line(q, c).re,
                (q, c) => line(q, c - COLUMNS).im,
            }),
            odd: AlignedVec::from_fn(square, |i| odd(i / COLUMNS, i % COLUMNS)),
            odd_back: AlignedVec::from_fn(square, |i| odd(i % COLUMNS, i / COLUMNS)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.half * LINE
    }

    /// The frequency at a place of the spectrum other than 0, where frequencies 0 and `len / 2`, which are real, take the
    /// real and the imaginary part.
    pub(super) fn bin(&self, place: usize) -> usize {
        let (line, part) = (reversed(self.half, place % self.half), reversed(COLUMNS, place / self.half));
        match (line, part) {
            (0, 8..) => self.half + 2 * self.half * (part - 8),
            _ => line + 2 * self.half * part,
        }
    }

    /// What a round trip multiplies by: the untangling has no factor of a half.
    pub(super) fn gain(&self) -> usize {
        2 * self.len()
    }

    /// The level whose vectors are no longer than the lines are many.
    pub(super) fn level(&self, level: Level) -> Level {
        if self.half * size_of::<T>() < 64 { level.min(Level::Avx2) } else { level }
    }
}

/// A forward transform of a row, followed by zeros, to a spectrum: `len / 2` real parts and, `plane` entries on,
/// imaginary parts.
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

/// Reads complex number `place` of a panel of lines.
///
/// # Safety
/// The line is readable.
#[inline(always)]
unsafe fn load<T: Copy, S: Simd<T>>(simd: S, lines: *const T, place: usize) -> Lanes<S::V> {
    // SAFETY: the caller's.
    unsafe {
        let line = lines.add(place * LINE);
        Complex { re: simd.load(line), im: simd.load(line.add(COLUMNS)) }
    }
}

/// Writes it.
///
/// # Safety
/// The line is writable.
#[inline(always)]
unsafe fn store<T: Copy, S: Simd<T>>(simd: S, lines: *mut T, place: usize, a: Lanes<S::V>) {
    // SAFETY: the caller's.
    unsafe {
        let line = lines.add(place * LINE);
        simd.store(line, a.re);
        simd.store(line.add(COLUMNS), a.im);
    }
}

impl<T: Scalar> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { plan, x, z, work } = self;
        let (half, len) = (plan.half, plan.len());
        assert!(x.len() <= len && z.len() == len && work.len() == len && half % S::LANES == 0);
        let mut odd = [T::zero(); COLUMNS];
        let x = match x.len() == len {
            true => x.as_ptr(),
            false => {
                work[..x.len()].copy_from_slice(x);
                work[x.len()..].fill(T::zero());
                work.as_ptr()
            }
        };
        // SAFETY: `x`, `work` and the tables have `half` lines, `odd` has COLUMNS entries, and `part` is the first column of a vector.
        unsafe {
            for part in (0..COLUMNS).step_by(S::LANES) {
                let lines = work.as_mut_ptr().add(part);
                for (i, pass) in plan.passes.iter().enumerate() {
                    let from = if i == 0 { x.add(part) } else { lines };
                    match pass.radix {
                        8 => spread::<T, S, 8>(simd, half, pass, from, lines),
                        _ => spread::<T, S, 4>(simd, half, pass, from, lines),
                    }
                }
                plan.untangle(simd, lines, part, odd.as_mut_ptr().add(part));
            }
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
        }
        plan.place_odd(z, &odd);
    }
}

impl<T: Scalar> Kernel<T> for Inverse<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { plan, z, y, update, work } = self;
        let (half, len) = (plan.half, plan.len());
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
                    unsquare(simd, re, lines);
                    unsquare(simd, im, lines.add(COLUMNS));
                }
            }
            for part in (0..COLUMNS).step_by(S::LANES) {
                let lines = work.as_mut_ptr().add(part);
                plan.tangle(simd, lines, part, simd.load(odd.as_ptr().add(part)));
                for (i, pass) in plan.passes.iter().enumerate().rev() {
                    let to = if i == 0 && direct { y.as_mut_ptr().add(part) } else { lines };
                    match pass.radix {
                        8 => gather::<T, S, 8>(simd, half, pass, lines, to),
                        _ => gather::<T, S, 4>(simd, half, pass, lines, to),
                    }
                }
            }
        }
        match update {
            _ if direct => (),
            Update::Overwrite => y.copy_from_slice(&work[..y.len()]),
            Update::Accumulate => y.iter_mut().zip(&*work).for_each(|(y, w)| *y += *w),
        }
    }
}

/// One pass of the forward transform, which may be in place.
///
/// # Safety
/// `half` lines are readable and writable.
#[inline(always)]
unsafe fn spread<T: Scalar, S: Simd<T>, const R: usize>(
    simd: S,
    half: usize,
    pass: &Pass<T>,
    from: *const T,
    to: *mut T,
) {
    let step = pass.block / R;
    for start in (0..half).step_by(pass.block) {
        for (j, turns) in pass.turns.chunks_exact(R - 1).enumerate() {
            let place = |q: usize| start + j + q * step;
            // SAFETY: the caller's; blocks divide the lines.
            unsafe {
                let mut v: [Lanes<S::V>; R] = std::array::from_fn(|q| load(simd, from, place(q)));
                butterfly::forward(simd, &mut v);
                for q in 1..R {
                    if step > 1 {
                        v[q] = mul(simd, v[q], splat(simd, turns[q - 1]));
                    }
                }
                for q in 0..R {
                    store(simd, to, place(q), v[q]);
                }
            }
        }
    }
}

/// One pass of the inverse transform.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn gather<T: Scalar, S: Simd<T>, const R: usize>(
    simd: S,
    half: usize,
    pass: &Pass<T>,
    from: *const T,
    to: *mut T,
) {
    let step = pass.block / R;
    for start in (0..half).step_by(pass.block) {
        for (j, turns) in pass.turns.chunks_exact(R - 1).enumerate() {
            let place = |q: usize| start + j + q * step;
            // SAFETY: the caller's; blocks divide the lines.
            unsafe {
                let mut v: [Lanes<S::V>; R] = std::array::from_fn(|q| load(simd, from, place(q)));
                for q in 1..R {
                    if step > 1 {
                        v[q] = mul_conj(simd, v[q], splat(simd, turns[q - 1]));
                    }
                }
                butterfly::inverse(simd, &mut v);
                for q in 0..R {
                    store(simd, to, place(q), v[q]);
                }
            }
        }
    }
}

/// A square of `LANES` lines, transposed.
///
/// # Safety
/// The lines are readable.
#[inline(always)]
unsafe fn square<T: Copy, S: Simd<T>>(simd: S, from: *const T, stride: usize) -> [S::V; 16] {
    let mut rows = [simd.zero(); 16];
    for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
        // SAFETY: the caller's.
        *row = unsafe { simd.load(from.add(i * stride)) };
    }
    transpose(simd, rows)
}

/// Transposes a square and writes it to `LANES` lines.
///
/// # Safety
/// The lines are writable.
#[inline(always)]
unsafe fn unsquare<T: Copy, S: Simd<T>>(simd: S, columns: [S::V; 16], to: *mut T) {
    for (i, row) in transpose(simd, columns).iter().enumerate().take(S::LANES) {
        // SAFETY: the caller's.
        unsafe { simd.store(to.add(i * LINE), *row) };
    }
}

impl<T: Scalar> Columns<T> {
    /// The spectra of the real columns (twice them), turned, from those of the complex ones. The line of frequency `half`
    /// goes to `odd`, what is left of line 0 is real.
    ///
    /// # Safety
    /// `lines` points at column `part` of `half` lines, `odd` takes a vector.
    #[inline(always)]
    unsafe fn untangle<S: Simd<T>>(&self, simd: S, lines: *mut T, part: usize, odd: *mut T) {
        // SAFETY: the caller's; the places are those of `new`.
        unsafe {
            let turns = self.turns.as_ptr().add(part);
            let z = load(simd, lines, 0);
            let (even, rest) = (simd.add(z.re, z.im), simd.sub(z.re, z.im));
            simd.store(odd, simd.add(rest, rest));
            store(simd, lines, 0, Complex { re: simd.add(even, even), im: simd.zero() });
            for &(p, q, w) in &self.pairs {
                let (p, q) = (p as usize, q as usize);
                let (a, b) = (load(simd, lines, p), load(simd, lines, q));
                let (even, odd) = (add_conj(simd, a, b), sub_conj(simd, a, b));
                let odd = mul(simd, odd, splat(simd, w));
                let a = Complex { re: simd.add(even.re, odd.im), im: simd.sub(even.im, odd.re) };
                let b = Complex { re: simd.sub(even.re, odd.im), im: simd.add(even.im, odd.re) };
                // The middle frequency is its own partner: the last to be written is right.
                store(simd, lines, q, mul_conj(simd, load(simd, turns, q), b));
                store(simd, lines, p, mul(simd, a, load(simd, turns, p)));
            }
        }
    }

    /// The inverse of [`untangle`](Self::untangle), but for a factor.
    ///
    /// # Safety
    /// `lines` points at column `part` of `half` lines.
    #[inline(always)]
    unsafe fn tangle<S: Simd<T>>(&self, simd: S, lines: *mut T, part: usize, odd: S::V) {
        // SAFETY: the caller's; the places are those of `new`.
        unsafe {
            let turns = self.turns.as_ptr().add(part);
            let even = load(simd, lines, 0).re;
            store(simd, lines, 0, Complex { re: simd.add(even, odd), im: simd.sub(even, odd) });
            for &(p, q, w) in &self.pairs {
                let (p, q) = (p as usize, q as usize);
                let a = mul_conj(simd, load(simd, lines, p), load(simd, turns, p));
                let b = mul_conj(simd, load(simd, lines, q), load(simd, turns, q));
                let (even, odd) = (add_conj(simd, a, b), sub_conj(simd, a, b));
                let odd = mul_conj(simd, odd, splat(simd, w));
                let a = Complex { re: simd.sub(even.re, odd.im), im: simd.add(even.im, odd.re) };
                // conj(even - i odd)
                let b = Complex { re: simd.add(even.re, odd.im), im: simd.sub(odd.re, even.im) };
                store(simd, lines, q, b);
                store(simd, lines, p, a);
            }
        }
    }

    /// Puts the transform of the line of frequency `half` where the places of line 0 hold conjugates.
    #[inline(always)]
    fn place_odd(&self, z: &mut [T], odd: &[T; COLUMNS]) {
        let sums = combine(&self.odd, odd);
        let (re, im) = z.split_at_mut(z.len() / 2);
        im[0] = re[self.half];
        for k in 0..COLUMNS / 2 {
            let place = reversed(COLUMNS, COLUMNS / 2 + k) * self.half;
            (re[place], im[place]) = (sums[k], sums[8 + k]);
        }
    }

    /// The inverse of [`place_odd`](Self::place_odd): returns the line, and puts the conjugates back.
    #[inline(always)]
    fn take_odd(&self, z: &mut [T]) -> [T; COLUMNS] {
        let (re, im) = z.split_at_mut(z.len() / 2);
        let mut sums = [T::zero(); COLUMNS];
        let place = |k: usize| reversed(COLUMNS, k) * self.half;
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
