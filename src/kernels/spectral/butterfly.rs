//! Complex transforms of 2, 4, 8 and 16 points between vectors: one transform in each lane.
//!
//! Decimation in frequency leaves the frequencies in the order of [`reversed`]; its mirror image takes them in that order.

use crate::kernels::simd::Simd;
use crate::scalar::Scalar;
use num_complex::Complex;
use std::f64::consts::{FRAC_1_SQRT_2, TAU};

/// A complex number in each lane.
pub(super) type Lanes<V> = Complex<V>;

#[inline(always)]
pub(super) fn add<T, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>) -> Lanes<S::V> {
    Complex { re: simd.add(a.re, b.re), im: simd.add(a.im, b.im) }
}

#[inline(always)]
pub(super) fn sub<T, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>) -> Lanes<S::V> {
    Complex { re: simd.sub(a.re, b.re), im: simd.sub(a.im, b.im) }
}

/// `a + conj(b)`.
#[inline(always)]
pub(super) fn add_conj<T, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>) -> Lanes<S::V> {
    Complex { re: simd.add(a.re, b.re), im: simd.sub(a.im, b.im) }
}

/// `a - conj(b)`.
#[inline(always)]
pub(super) fn sub_conj<T, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>) -> Lanes<S::V> {
    Complex { re: simd.sub(a.re, b.re), im: simd.add(a.im, b.im) }
}

/// `a * b`.
#[inline(always)]
pub(super) fn mul<T, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>) -> Lanes<S::V> {
    Complex {
        re: simd.neg_mul_add(a.im, b.im, simd.mul(a.re, b.re)),
        im: simd.mul_add(a.im, b.re, simd.mul(a.re, b.im)),
    }
}

/// `a * conj(b)`.
#[inline(always)]
pub(super) fn mul_conj<T, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>) -> Lanes<S::V> {
    Complex {
        re: simd.mul_add(a.im, b.im, simd.mul(a.re, b.re)),
        im: simd.neg_mul_add(a.re, b.im, simd.mul(a.im, b.re)),
    }
}

/// The same number in all lanes.
#[inline(always)]
pub(super) fn splat<T: Copy, S: Simd<T>>(simd: S, a: Complex<T>) -> Lanes<S::V> {
    Complex { re: simd.splat(a.re), im: simd.splat(a.im) }
}

/// `exp(-2 pi i turn / 16)`.
#[inline(always)]
fn root<T: Scalar, S: Simd<T>>(simd: S, turn: usize) -> Lanes<S::V> {
    // sin and cos of pi / 8.
    let (s, c) = (0.382_683_432_365_089_8, 0.923_879_532_511_286_7);
    let (re, im) = match turn {
        1 => (c, -s),
        3 => (s, -c),
        5 => (-s, -c),
        _ => (-c, -s),
    };
    splat(simd, Complex::new(T::narrow(re), T::narrow(im)))
}

/// `(a + b, (a - b) exp(-2 pi i turn / 16))`.
#[inline(always)]
fn spread<T: Scalar, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>, turn: usize) -> [Lanes<S::V>; 2] {
    let (sum, d) = (add(simd, a, b), sub(simd, a, b));
    let half = |sign: f64| simd.splat(T::narrow(sign * FRAC_1_SQRT_2));
    let d = match turn {
        0 => d,
        2 => Complex {
            re: simd.mul(half(1.0), simd.add(d.re, d.im)),
            im: simd.mul(half(1.0), simd.sub(d.im, d.re)),
        },
        4 => Complex { re: d.im, im: simd.sub(b.re, a.re) },
        6 => Complex {
            re: simd.mul(half(1.0), simd.sub(d.im, d.re)),
            im: simd.mul(half(-1.0), simd.add(d.re, d.im)),
        },
        _ => mul(simd, d, root(simd, turn)),
    };
    [sum, d]
}

/// `(a + c, a - c)` with `c = b exp(+2 pi i turn / 16)`.
#[inline(always)]
fn gather<T: Scalar, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>, turn: usize) -> [Lanes<S::V>; 2] {
    let half = |sign: f64| simd.splat(T::narrow(sign * FRAC_1_SQRT_2));
    let b = match turn {
        0 => b,
        2 => Complex {
            re: simd.mul(half(1.0), simd.sub(b.re, b.im)),
            im: simd.mul(half(1.0), simd.add(b.re, b.im)),
        },
        4 => {
            let up = Complex { re: simd.sub(a.re, b.im), im: simd.add(a.im, b.re) };
            let down = Complex { re: simd.add(a.re, b.im), im: simd.sub(a.im, b.re) };
            return [up, down];
        }
        6 => Complex {
            re: simd.mul(half(-1.0), simd.add(b.re, b.im)),
            im: simd.mul(half(1.0), simd.sub(b.re, b.im)),
        },
        _ => mul_conj(simd, b, root(simd, turn)),
    };
    [add(simd, a, b), sub(simd, a, b)]
}

/// A transform of `$n` points and its inverse, from those of half as many.
macro_rules! transform {
    ($n:literal, $forward:ident, $inverse:ident, $half_forward:ident, $half_inverse:ident) => {
        #[inline(always)]
        fn $forward<T: Scalar, S: Simd<T>>(simd: S, v: &mut [Lanes<S::V>]) {
            let (low, high) = v.split_at_mut($n / 2);
            for j in 0..$n / 2 {
                [low[j], high[j]] = spread(simd, low[j], high[j], 16 / $n * j);
            }
            $half_forward(simd, low);
            $half_forward(simd, high);
        }
        #[inline(always)]
        fn $inverse<T: Scalar, S: Simd<T>>(simd: S, v: &mut [Lanes<S::V>]) {
            let (low, high) = v.split_at_mut($n / 2);
            $half_inverse(simd, low);
            $half_inverse(simd, high);
            for j in 0..$n / 2 {
                [low[j], high[j]] = gather(simd, low[j], high[j], 16 / $n * j);
            }
        }
    };
}

#[inline(always)]
fn forward_1<T, S: Simd<T>>(_: S, _: &mut [Lanes<S::V>]) {}

#[inline(always)]
fn inverse_1<T, S: Simd<T>>(_: S, _: &mut [Lanes<S::V>]) {}

transform!(2, forward_2, inverse_2, forward_1, inverse_1);
transform!(4, forward_4, inverse_4, forward_2, inverse_2);
transform!(8, forward_8, inverse_8, forward_4, inverse_4);
transform!(16, forward_16, inverse_16, forward_8, inverse_8);

/// `sum_j v_j exp(-2 pi i j k / R)`, with frequency `k` at place `reversed(R, k)`, in place; `R` is 4, 8 or 16.
#[inline(always)]
pub(super) fn forward<T: Scalar, S: Simd<T>, const R: usize>(simd: S, v: &mut [Lanes<S::V>; R]) {
    match R {
        4 => forward_4(simd, v),
        8 => forward_8(simd, v),
        _ => forward_16(simd, v),
    }
}

/// `sum_k v_k exp(+2 pi i j k / R)` of frequencies in that order.
#[inline(always)]
pub(super) fn inverse<T: Scalar, S: Simd<T>, const R: usize>(simd: S, v: &mut [Lanes<S::V>; R]) {
    match R {
        4 => inverse_4(simd, v),
        8 => inverse_8(simd, v),
        _ => inverse_16(simd, v),
    }
}

/// The bits of `k < n` in the opposite order; `n` is a power of two.
pub(super) fn reversed(n: usize, k: usize) -> usize {
    if n < 2 { 0 } else { k.reverse_bits() >> (usize::BITS - n.ilog2()) }
}

/// `exp(-2 pi i turns)`, of a fraction of whole numbers that is reduced first.
pub(super) fn turn<T: Scalar>(part: usize, whole: usize) -> Complex<T> {
    let (sin, cos) = (TAU * (part % whole) as f64 / whole as f64).sin_cos();
    Complex::new(T::narrow(cos), T::narrow(-sin))
}
