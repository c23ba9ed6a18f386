//! Transforms of real columns, side by side in the lanes of vectors.
//!
//! Row `2 j` of a panel of [`COLUMNS`] columns counts as the real part, row `2 j + 1` as the imaginary part of complex line `j`. The
//! lines are transformed by radix 8 and 4, and [untangled](Lines::untangle) into the spectra of the real columns.

use super::butterfly::{self, Lanes, add_conj, mul, mul_conj, reversed, splat, sub_conj, turn};
use crate::kernels::simd::{Simd, transpose};
use crate::scalar::Scalar;
use num_complex::Complex;

/// Columns of a panel.
pub(super) const COLUMNS: usize = 16;

/// Numbers of a complex line: its real parts, then its imaginary parts.
pub(super) const LINE: usize = 2 * COLUMNS;

/// Tables of a transform. Line `k` of the spectrum stands at place `reversed(half, k)`.
#[derive(Debug, Clone)]
pub(super) struct Lines<T> {
    /// Complex lines: a power of two, at least 4.
    pub(super) half: usize,
    /// Passes of the forward transform.
    passes: Vec<Pass<T>>,
    /// Places of the lines of frequencies `k` and `half - k`, and `exp(-2 pi i k / (2 half))`.
    pairs: Vec<(u32, u32, Complex<T>)>,
}

/// Transforms of `radix` lines each within blocks of `block` lines.
#[derive(Debug, Clone)]
struct Pass<T> {
    radix: usize,
    block: usize,
    /// For each line of the first `block / radix`, the turns of the places after the first.
    turns: Vec<Complex<T>>,
}

impl<T: Scalar> Lines<T> {
    pub(super) fn new(half: usize) -> Self {
        assert!(half.is_power_of_two() && half >= 4);
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
        let pairs = (1..=half / 2).map(|k| (place(k), place(half - k), turn(k, 2 * half))).collect();
        Self { half, passes, pairs }
    }

    /// Transforms a vector of complex columns, which may be in place.
    ///
    /// # Safety
    /// `from` and `to` point at a vector of columns of so many lines.
    #[inline(always)]
    pub(super) unsafe fn forward<S: Simd<T>>(&self, simd: S, from: *const T, to: *mut T) {
        for (i, pass) in self.passes.iter().enumerate() {
            let from = if i == 0 { from } else { to };
            // SAFETY: the caller's.
            unsafe {
                match pass.radix {
                    8 => spread::<T, S, 8>(simd, self.half, pass, from, to),
                    _ => spread::<T, S, 4>(simd, self.half, pass, from, to),
                }
            }
        }
    }

    /// The inverse, which overwrites `lines`.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    pub(super) unsafe fn inverse<S: Simd<T>>(&self, simd: S, lines: *mut T, to: *mut T) {
        for (i, pass) in self.passes.iter().enumerate().rev() {
            let to = if i == 0 { to } else { lines };
            // SAFETY: the caller's.
            unsafe {
                match pass.radix {
                    8 => gather::<T, S, 8>(simd, self.half, pass, lines, to),
                    _ => gather::<T, S, 4>(simd, self.half, pass, lines, to),
                }
            }
        }
    }

    /// Twice the spectra of the real columns, from those of the complex ones. Frequencies 0 and `half`, which are real, share line 0.
    /// Then turned, by numbers that lie as the lines do, but for line 0.
    ///
    /// # Safety
    /// `lines` points at a vector of columns of so many lines, and so does `turns`.
    #[inline(always)]
    pub(super) unsafe fn untangle<S: Simd<T>>(&self, simd: S, lines: *mut T, turns: Option<*const T>) {
        // SAFETY: the caller's; the places are those of `new`.
        unsafe {
            let z = load(simd, lines, 0);
            let (even, odd) = (simd.add(z.re, z.im), simd.sub(z.re, z.im));
            store(simd, lines, 0, Complex { re: simd.add(even, even), im: simd.add(odd, odd) });
            for &(p, q, w) in &self.pairs {
                let (p, q) = (p as usize, q as usize);
                let (a, b) = (load(simd, lines, p), load(simd, lines, q));
                let (even, odd) = (add_conj(simd, a, b), sub_conj(simd, a, b));
                let odd = mul(simd, odd, splat(simd, w));
                let a = Complex { re: simd.add(even.re, odd.im), im: simd.sub(even.im, odd.re) };
                let b = Complex { re: simd.sub(even.re, odd.im), im: simd.add(even.im, odd.re) };
                let (a, b) = match turns {
                    Some(turns) => {
                        (mul(simd, a, load(simd, turns, p)), mul_conj(simd, load(simd, turns, q), b))
                    }
                    None => (a, Complex { re: b.re, im: simd.sub(simd.zero(), b.im) }),
                };
                // The middle frequency is its own partner: the last to be written is right.
                store(simd, lines, q, b);
                store(simd, lines, p, a);
            }
        }
    }

    /// The inverse of [`untangle`](Self::untangle), but for a factor.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    pub(super) unsafe fn tangle<S: Simd<T>>(&self, simd: S, lines: *mut T, turns: Option<*const T>) {
        // SAFETY: the caller's; the places are those of `new`.
        unsafe {
            let Complex { re: even, im: odd } = load(simd, lines, 0);
            store(simd, lines, 0, Complex { re: simd.add(even, odd), im: simd.sub(even, odd) });
            for &(p, q, w) in &self.pairs {
                let (p, q) = (p as usize, q as usize);
                let (mut a, mut b) = (load(simd, lines, p), load(simd, lines, q));
                if let Some(turns) = turns {
                    a = mul_conj(simd, a, load(simd, turns, p));
                    b = mul_conj(simd, b, load(simd, turns, q));
                }
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
}

/// Reads complex number `place` of a panel of lines.
///
/// # Safety
/// The line is readable.
#[inline(always)]
pub(super) unsafe fn load<T: Copy, S: Simd<T>>(simd: S, lines: *const T, place: usize) -> Lanes<S::V> {
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
pub(super) unsafe fn store<T: Copy, S: Simd<T>>(simd: S, lines: *mut T, place: usize, a: Lanes<S::V>) {
    // SAFETY: the caller's.
    unsafe {
        let line = lines.add(place * LINE);
        simd.store(line, a.re);
        simd.store(line.add(COLUMNS), a.im);
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
                for (q, v) in v.iter().enumerate() {
                    store(simd, to, place(q), *v);
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
                for (q, v) in v.iter().enumerate() {
                    store(simd, to, place(q), *v);
                }
            }
        }
    }
}

/// A square of `LANES` rows, transposed.
///
/// # Safety
/// The rows are readable.
#[inline(always)]
pub(super) unsafe fn square<T: Copy, S: Simd<T>>(simd: S, from: *const T, stride: usize) -> [S::V; 16] {
    let mut rows = [simd.zero(); 16];
    for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
        // SAFETY: the caller's.
        *row = unsafe { simd.load(from.add(i * stride)) };
    }
    transpose(simd, rows)
}

/// Transposes a square and writes it to `LANES` rows.
///
/// # Safety
/// The rows are writable.
#[inline(always)]
pub(super) unsafe fn unsquare<T: Copy, S: Simd<T>>(simd: S, columns: [S::V; 16], to: *mut T, stride: usize) {
    for (i, row) in transpose(simd, columns).iter().enumerate().take(S::LANES) {
        // SAFETY: the caller's.
        unsafe { simd.store(to.add(i * stride), *row) };
    }
}
