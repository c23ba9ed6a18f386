//! Transforms of real columns, side by side in the lanes of vectors.
//!
//! The rows of a panel of [`COLUMNS`] columns become complex lines, each a row of real parts and one of imaginary parts, in the memory of two
//! rows. A pass transforms up to 16 rows or lines that lie a step apart. Of a real block of rows it leaves a shorter real block, of
//! the frequencies that its radix divides, complex blocks, and one whose frequencies are odd multiples of half the radix: its numbers
//! `r_t - i r_(t + m / 2)`, turned by `exp(-pi i t / m)`, are a complex block of half the length.
//!
//! The inverse is the adjoint, pass by pass: the real parts of the sum over the lines.

use super::butterfly::{self, Lanes, mul, mul_conj, real_frequency, reversed, splat, turn};
use crate::kernels::simd::{Simd, transpose};
use crate::scalar::Scalar;
use num_complex::Complex;

/// Columns of a panel.
pub(super) const COLUMNS: usize = 16;

/// Numbers of a complex line: its real parts, then its imaginary parts.
pub(super) const LINE: usize = 2 * COLUMNS;

/// Points of the butterflies of a pass over a block: few passes, and the last one not a short one.
fn radix(size: usize) -> usize {
    match size {
        ..=16 => size,
        17..=64 => 8,
        _ => 16,
    }
}

/// Tables of a transform.
#[derive(Debug, Clone)]
pub(super) struct Lines<T> {
    /// Complex lines: half the rows.
    pub(super) half: usize,
    /// The frequency of each line, below `2 half`; line 0 has the real frequencies 0 and `half` as its real and imaginary parts.
    pub(super) frequencies: Vec<u32>,
    /// The line of each frequency up to `half`, and whether it has the conjugate.
    pub(super) places: Vec<(u32, bool)>,
    /// The first takes the rows.
    passes: Vec<Pass<T>>,
}

/// Transforms of `radix` lines or rows each, `step` apart.
#[derive(Debug, Clone)]
struct Pass<T> {
    real: bool,
    radix: usize,
    /// The first line, or where the rows lie.
    at: usize,
    /// Where a real pass leaves real rows: after all lines, as lines are written before rows there have been read.
    rest: usize,
    step: usize,
    /// For each of them, the turns of its complex results; of a real pass, after the turn of the odd block. None after the last step.
    turns: Vec<Complex<T>>,
}

impl<T: Scalar> Lines<T> {
    /// Of so many rows: a power of two, at least 2.
    pub(super) fn new(rows: usize) -> Self {
        assert!(rows.is_power_of_two() && rows >= 2);
        let half = rows / 2;
        let mut lines =
            Self { half, frequencies: vec![0; half], places: vec![(0, false); half + 1], passes: Vec::new() };
        lines.plan_real(0, rows, 1);
        for (line, &k) in lines.frequencies.iter().enumerate() {
            let k = k as usize;
            lines.places[k.min(rows - k)] = (line as u32, k > half);
        }
        lines
    }

    /// Numbers of a panel of the lines, and of the real rows between passes.
    pub(super) fn panel_len(&self) -> usize {
        (self.half + self.half / 8) * LINE
    }

    /// Passes of a real block whose frequencies are multiples of `stride`.
    fn plan_real(&mut self, at: usize, size: usize, stride: usize) {
        let radix = radix(size);
        let step = size / radix;
        let outputs = move |t: usize| (1..radix / 2).map(move |j| turn(t * real_frequency(radix, j), size));
        let turns = match step {
            1 => Vec::new(),
            _ => (0..step).flat_map(|t| std::iter::once(turn(t, 2 * step)).chain(outputs(t))).collect(),
        };
        let rest = if at == 0 { self.half } else { at + size / 2 };
        self.passes.push(Pass { real: true, radix, at, rest, step, turns });
        for j in 1..radix / 2 {
            let first = stride * real_frequency(radix, j);
            match step {
                1 => self.frequencies[j] = first as u32,
                _ => self.plan(j * step, step, first, stride * radix),
            }
        }
        if step > 1 {
            self.plan(step / 2, step / 2, stride * radix / 2, 2 * stride * radix);
            self.plan_real(rest, step, stride * radix);
        }
    }

    /// Passes of a complex block with the frequencies `first + k stride`.
    fn plan(&mut self, at: usize, size: usize, first: usize, stride: usize) {
        let radix = radix(size);
        let step = size / radix;
        let outputs = |t: usize| (1..radix).map(move |q| turn(t * reversed(radix, q), size));
        let turns = if step > 1 { (0..step).flat_map(outputs).collect() } else { Vec::new() };
        self.passes.push(Pass { real: false, radix, at, rest: at, step, turns });
        for q in 0..radix {
            let (at, first) = (at + q * step, first + stride * reversed(radix, q));
            match step {
                1 => self.frequencies[at] = first as u32,
                _ => self.plan(at, step, first, stride * radix),
            }
        }
    }

    /// Transforms the rows that `row` reads, and turns each line but line 0 by numbers that lie as the lines do.
    ///
    /// # Safety
    /// `row` may read so many rows; `lines` points at a vector of columns of as many, which are others, and `turns` at one.
    #[inline(always)]
    pub(super) unsafe fn forward<S: Simd<T>>(
        &self,
        simd: S,
        row: impl Fn(usize) -> S::V,
        lines: *mut T,
        turns: Option<*const T>,
    ) {
        // SAFETY: the caller's; the passes are those of `new`.
        unsafe {
            let [first, passes @ ..] = &self.passes[..] else { return };
            first.real_forward_any(simd, row, lines, turns);
            for pass in passes {
                match pass.real {
                    true => {
                        let rows = lines.add(pass.at * LINE);
                        pass.real_forward_any(
                            simd,
                            #[inline(always)]
                            |t| simd.load(rows.add(t * COLUMNS)),
                            lines,
                            turns,
                        )
                    }
                    false => pass.forward_any(simd, lines, turns),
                }
            }
        }
    }

    /// The adjoint of [`forward`](Self::forward), which overwrites `lines`: `row` writes the rows.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    pub(super) unsafe fn inverse<S: Simd<T>>(
        &self,
        simd: S,
        lines: *mut T,
        turns: Option<*const T>,
        row: impl Fn(usize, S::V),
    ) {
        // SAFETY: the caller's; the passes are those of `new`.
        unsafe {
            let [first, passes @ ..] = &self.passes[..] else { return };
            for pass in passes.iter().rev() {
                match pass.real {
                    true => {
                        let rows = lines.add(pass.at * LINE);
                        pass.real_inverse_any(
                            simd,
                            lines,
                            turns,
                            #[inline(always)]
                            |t, v| simd.store(rows.add(t * COLUMNS), v),
                        )
                    }
                    false => pass.inverse_any(simd, lines, turns),
                }
            }
            first.real_inverse_any(simd, lines, turns, row);
        }
    }
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

impl<T: Scalar> Pass<T> {
    /// # Safety
    /// `lines` and `turns` have the lines of the pass, and none of their places holds rows that are yet to be read.
    #[inline(always)]
    unsafe fn real_forward_any<S: Simd<T>>(
        &self,
        simd: S,
        row: impl Fn(usize) -> S::V,
        lines: *mut T,
        turns: Option<*const T>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            match self.radix {
                2 => self.real_forward::<S, 2>(simd, row, lines, turns),
                4 => self.real_forward::<S, 4>(simd, row, lines, turns),
                8 => self.real_forward::<S, 8>(simd, row, lines, turns),
                _ => self.real_forward::<S, 16>(simd, row, lines, turns),
            }
        }
    }

    #[inline(always)]
    unsafe fn real_forward<S: Simd<T>, const R: usize>(
        &self,
        simd: S,
        row: impl Fn(usize) -> S::V,
        lines: *mut T,
        turns: Option<*const T>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            if self.step == 1 {
                let mut v = [simd.zero(); R];
                for (q, v) in v.iter_mut().enumerate() {
                    *v = row(q);
                }
                butterfly::real_forward(simd, &mut v);
                store(simd, lines, 0, Complex { re: v[0], im: v[1] });
                for j in 1..R / 2 {
                    let mut z = Complex { re: v[2 * j], im: v[2 * j + 1] };
                    if let Some(turns) = turns {
                        z = mul(simd, z, load(simd, turns, j));
                    }
                    store(simd, lines, j, z);
                }
                return;
            }
            let half = self.step / 2;
            let (first, second) = self.turns.split_at(half * (R / 2));
            let both = first.chunks_exact(R / 2).zip(second.chunks_exact(R / 2));
            for (t, (first, second)) in both.enumerate() {
                let re = self.real_forward_at::<S, R>(simd, t, &row, lines, first);
                let im = self.real_forward_at::<S, R>(simd, t + half, &row, lines, second);
                let z = Complex { re, im: simd.sub(simd.zero(), im) };
                store(simd, lines, half + t, mul(simd, z, splat(simd, first[0])));
            }
        }
    }

    /// The transform at `t`, but for its number of the odd block, which is returned.
    #[inline(always)]
    unsafe fn real_forward_at<S: Simd<T>, const R: usize>(
        &self,
        simd: S,
        t: usize,
        row: &impl Fn(usize) -> S::V,
        lines: *mut T,
        turns: &[Complex<T>],
    ) -> S::V {
        let mut v = [simd.zero(); R];
        for (q, v) in v.iter_mut().enumerate() {
            *v = row(t + q * self.step);
        }
        butterfly::real_forward(simd, &mut v);
        // SAFETY: the caller's.
        unsafe {
            simd.store(lines.add(self.rest * LINE + t * COLUMNS), v[0]);
            for j in 1..R / 2 {
                let z = Complex { re: v[2 * j], im: v[2 * j + 1] };
                store(simd, lines, j * self.step + t, mul(simd, z, splat(simd, turns[j])));
            }
        }
        v[1]
    }

    /// # Safety
    /// As for [`real_forward_any`](Self::real_forward_any).
    #[inline(always)]
    unsafe fn real_inverse_any<S: Simd<T>>(
        &self,
        simd: S,
        lines: *const T,
        turns: Option<*const T>,
        row: impl Fn(usize, S::V),
    ) {
        // SAFETY: the caller's.
        unsafe {
            match self.radix {
                2 => self.real_inverse::<S, 2>(simd, lines, turns, row),
                4 => self.real_inverse::<S, 4>(simd, lines, turns, row),
                8 => self.real_inverse::<S, 8>(simd, lines, turns, row),
                _ => self.real_inverse::<S, 16>(simd, lines, turns, row),
            }
        }
    }

    #[inline(always)]
    unsafe fn real_inverse<S: Simd<T>, const R: usize>(
        &self,
        simd: S,
        lines: *const T,
        turns: Option<*const T>,
        row: impl Fn(usize, S::V),
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut v = [simd.zero(); R];
            if self.step == 1 {
                let z = load(simd, lines, 0);
                (v[0], v[1]) = (z.re, z.im);
                for j in 1..R / 2 {
                    let mut z = load(simd, lines, j);
                    if let Some(turns) = turns {
                        z = mul_conj(simd, z, load(simd, turns, j));
                    }
                    (v[2 * j], v[2 * j + 1]) = (z.re, z.im);
                }
                butterfly::real_adjoint(simd, &mut v);
                for (q, v) in v.iter().enumerate() {
                    row(q, *v);
                }
                return;
            }
            let half = self.step / 2;
            let (first, second) = self.turns.split_at(half * (R / 2));
            let both = first.chunks_exact(R / 2).zip(second.chunks_exact(R / 2));
            for (t, (first, second)) in both.enumerate() {
                let z = mul_conj(simd, load(simd, lines, half + t), splat(simd, first[0]));
                self.real_inverse_at::<S, R>(simd, t, lines, first, z.re, &row);
                self.real_inverse_at::<S, R>(
                    simd,
                    t + half,
                    lines,
                    second,
                    simd.sub(simd.zero(), z.im),
                    &row,
                );
            }
        }
    }

    /// The transform at `t`, with its number of the odd block.
    #[inline(always)]
    unsafe fn real_inverse_at<S: Simd<T>, const R: usize>(
        &self,
        simd: S,
        t: usize,
        lines: *const T,
        turns: &[Complex<T>],
        odd: S::V,
        row: &impl Fn(usize, S::V),
    ) {
        let mut v = [simd.zero(); R];
        // SAFETY: the caller's.
        unsafe {
            (v[0], v[1]) = (simd.load(lines.add(self.rest * LINE + t * COLUMNS)), odd);
            for j in 1..R / 2 {
                let z = mul_conj(simd, load(simd, lines, j * self.step + t), splat(simd, turns[j]));
                (v[2 * j], v[2 * j + 1]) = (z.re, z.im);
            }
        }
        butterfly::real_adjoint(simd, &mut v);
        for (q, v) in v.iter().enumerate() {
            row(t + q * self.step, *v);
        }
    }

    /// # Safety
    /// `lines` and `turns` have the lines of the pass.
    #[inline(always)]
    unsafe fn forward_any<S: Simd<T>>(&self, simd: S, lines: *mut T, turns: Option<*const T>) {
        // SAFETY: the caller's.
        unsafe {
            match self.radix {
                1 => self.forward::<S, 1>(simd, lines, turns),
                2 => self.forward::<S, 2>(simd, lines, turns),
                4 => self.forward::<S, 4>(simd, lines, turns),
                8 => self.forward::<S, 8>(simd, lines, turns),
                _ => self.forward::<S, 16>(simd, lines, turns),
            }
        }
    }

    #[inline(always)]
    unsafe fn forward<S: Simd<T>, const R: usize>(&self, simd: S, lines: *mut T, turns: Option<*const T>) {
        for t in 0..self.step {
            let place = |q: usize| self.at + t + q * self.step;
            // SAFETY: the caller's.
            unsafe {
                let mut v = [Complex { re: simd.zero(), im: simd.zero() }; R];
                for (q, v) in v.iter_mut().enumerate() {
                    *v = load(simd, lines, place(q));
                }
                butterfly::forward(simd, &mut v);
                if self.step > 1 {
                    let turns = &self.turns[t * (R - 1)..][..R - 1];
                    for q in 1..R {
                        v[q] = mul(simd, v[q], splat(simd, turns[q - 1]));
                    }
                } else if let Some(turns) = turns {
                    for (q, v) in v.iter_mut().enumerate() {
                        *v = mul(simd, *v, load(simd, turns, place(q)));
                    }
                }
                for (q, v) in v.iter().enumerate() {
                    store(simd, lines, place(q), *v);
                }
            }
        }
    }

    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn inverse_any<S: Simd<T>>(&self, simd: S, lines: *mut T, turns: Option<*const T>) {
        // SAFETY: the caller's.
        unsafe {
            match self.radix {
                1 => self.inverse::<S, 1>(simd, lines, turns),
                2 => self.inverse::<S, 2>(simd, lines, turns),
                4 => self.inverse::<S, 4>(simd, lines, turns),
                8 => self.inverse::<S, 8>(simd, lines, turns),
                _ => self.inverse::<S, 16>(simd, lines, turns),
            }
        }
    }

    #[inline(always)]
    unsafe fn inverse<S: Simd<T>, const R: usize>(&self, simd: S, lines: *mut T, turns: Option<*const T>) {
        for t in 0..self.step {
            let place = |q: usize| self.at + t + q * self.step;
            // SAFETY: the caller's.
            unsafe {
                let mut v = [Complex { re: simd.zero(), im: simd.zero() }; R];
                for (q, v) in v.iter_mut().enumerate() {
                    *v = load(simd, lines, place(q));
                }
                if self.step > 1 {
                    let turns = &self.turns[t * (R - 1)..][..R - 1];
                    for q in 1..R {
                        v[q] = mul_conj(simd, v[q], splat(simd, turns[q - 1]));
                    }
                } else if let Some(turns) = turns {
                    for (q, v) in v.iter_mut().enumerate() {
                        *v = mul_conj(simd, *v, load(simd, turns, place(q)));
                    }
                }
                butterfly::inverse(simd, &mut v);
                for (q, v) in v.iter().enumerate() {
                    store(simd, lines, place(q), *v);
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
