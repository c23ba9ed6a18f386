//! Transforms of up to 16 points between vectors: one transform in each lane.
//!
//! Turns come before sums everywhere, so that they and the sums are multiply-adds: `a + c (p + t q)` for a turn `c (1 + i t)`. Real transforms
//! never compute a frequency and its conjugate both.

use crate::kernels::simd::Simd;
use crate::scalar::Scalar;
use num_complex::Complex;
use std::f64::consts::{FRAC_1_SQRT_2, TAU};

/// A complex number in each lane.
pub(super) type Lanes<V> = Complex<V>;

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

/// The cosine and the sine of quarters of `pi / 2`, exact where they can be.
const COSINES: [f64; 16] = {
    let (c, h, s) = (0.923_879_532_511_286_7, FRAC_1_SQRT_2, 0.382_683_432_365_089_8);
    [1.0, c, h, s, 0.0, -s, -h, -c, -1.0, -c, -h, -s, 0.0, s, h, c]
};

/// `(a + c, a - c)` with `c = b exp(-2 pi i turn / 16)`.
#[inline(always)]
fn gather<T: Scalar, S: Simd<T>>(simd: S, a: Lanes<S::V>, b: Lanes<S::V>, turn: usize) -> [Lanes<S::V>; 2] {
    let (re, im) = (COSINES[turn % 16], COSINES[(turn + 4) % 16]);
    // c = (by.0 part.0, by.1 part.1); the ratio is at most one.
    let (first, second, ratio, by) = match re.abs() >= im.abs() {
        true => (b.re, b.im, im / re, (re, re)),
        false => (b.im, b.re, re / im, (-im, im)),
    };
    let part = if ratio == 0.0 {
        (first, second)
    } else if ratio.abs() == 1.0 {
        let (sum, difference) = (simd.add(first, second), simd.sub(first, second));
        if ratio > 0.0 { (difference, sum) } else { (sum, simd.sub(second, first)) }
    } else {
        let ratio = simd.splat(T::narrow(ratio));
        (simd.neg_mul_add(second, ratio, first), simd.mul_add(first, ratio, second))
    };
    let (up_re, down_re) = both(simd, a.re, part.0, by.0);
    let (up_im, down_im) = both(simd, a.im, part.1, by.1);
    [Complex { re: up_re, im: up_im }, Complex { re: down_re, im: down_im }]
}

/// `(a + c b, a - c b)`.
#[inline(always)]
fn both<T: Scalar, S: Simd<T>>(simd: S, a: S::V, b: S::V, c: f64) -> (S::V, S::V) {
    if c.abs() == 1.0 {
        let (sum, difference) = (simd.add(a, b), simd.sub(a, b));
        return if c > 0.0 { (sum, difference) } else { (difference, sum) };
    }
    let c = simd.splat(T::narrow(c));
    (simd.mul_add(b, c, a), simd.neg_mul_add(b, c, a))
}

/// A transform of `$n` points in the order of [`reversed`] to the plain order, with turns of `sign / $n`, from those of half as many. Without
/// loops, so that turns are known when it is compiled.
macro_rules! transform {
    ($n:literal, $name:ident, $half:ident, $($j:literal)*) => {
        #[inline(always)]
        fn $name<T: Scalar, S: Simd<T>>(simd: S, v: &mut [Lanes<S::V>], sign: usize) {
            let (low, high) = v.split_at_mut($n / 2);
            $half(simd, low, sign);
            $half(simd, high, sign);
            $([low[$j], high[$j]] = gather(simd, low[$j], high[$j], sign * (16 / $n) * $j);)*
        }
    };
}

#[inline(always)]
fn transform_1<T, S: Simd<T>>(_: S, _: &mut [Lanes<S::V>], _: usize) {}

transform!(2, transform_2, transform_1, 0);
transform!(4, transform_4, transform_2, 0 1);
transform!(8, transform_8, transform_4, 0 1 2 3);
transform!(16, transform_16, transform_8, 0 1 2 3 4 5 6 7);

#[inline(always)]
fn transform<T: Scalar, S: Simd<T>, const R: usize>(simd: S, v: &mut [Lanes<S::V>; R], sign: usize) {
    match R {
        1 => (),
        2 => transform_2(simd, v, sign),
        4 => transform_4(simd, v, sign),
        8 => transform_8(simd, v, sign),
        _ => transform_16(simd, v, sign),
    }
}

/// Swaps each place with its [`reversed`].
#[inline(always)]
fn reverse<V, const R: usize>(v: &mut [V; R]) {
    let swaps: &[(usize, usize)] = match R {
        4 => &[(1, 2)],
        8 => &[(1, 4), (3, 6)],
        16 => &[(1, 8), (2, 4), (3, 12), (5, 10), (7, 14), (11, 13)],
        _ => &[],
    };
    for &(a, b) in swaps {
        v.swap(a, b);
    }
}

/// `sum_j v_j exp(-2 pi i j k / R)`, with frequency `k` at place `reversed(R, k)`, in place; `R` is a power of two up to 16.
#[inline(always)]
pub(super) fn forward<T: Scalar, S: Simd<T>, const R: usize>(simd: S, v: &mut [Lanes<S::V>; R]) {
    reverse(v);
    transform(simd, v, 1);
    reverse(v);
}

/// `sum_k v_k exp(+2 pi i j k / R)` of frequencies in that order.
#[inline(always)]
pub(super) fn inverse<T: Scalar, S: Simd<T>, const R: usize>(simd: S, v: &mut [Lanes<S::V>; R]) {
    transform(simd, v, 15);
}

/// A transform of `$n` real points from those of the even and the odd ones, and its adjoint.
///
/// The adjoint goes the other way: the even frequencies are those of the sums of the halves, and `n - 4 m - 1` is frequency `-m` of
/// `(d_j + i d_(j + n / 4)) exp(2 pi i j / n)` for the differences `d` of the halves.
macro_rules! real_transform {
    (
        $n:literal, $forward:ident, $adjoint:ident, $half_forward:ident, $half_adjoint:ident, $complex:ident,
        $($j:literal)*; $($pair:literal)*
    ) => {
        #[inline(always)]
        fn $forward<T: Scalar, S: Simd<T>>(simd: S, v: &mut [S::V]) {
            let mut even: [S::V; $n / 2] = [simd.zero(); $n / 2];
            let mut odd = even;
            for j in 0..$n / 2 {
                (even[j], odd[j]) = (v[2 * j], v[2 * j + 1]);
            }
            $half_forward(simd, &mut even);
            $half_forward(simd, &mut odd);
            (v[0], v[1]) = (simd.add(even[0], odd[0]), simd.sub(even[0], odd[0]));
            (v[2], v[3]) = (even[1], odd[1]);
            $(
                let a = Complex { re: even[2 * $pair], im: even[2 * $pair + 1] };
                let b = Complex { re: odd[2 * $pair], im: odd[2 * $pair + 1] };
                let [up, down] = gather(simd, a, b, const { 16 / $n * real_frequency($n / 2, $pair) });
                (v[4 * $pair], v[4 * $pair + 1]) = (up.re, up.im);
                (v[4 * $pair + 2], v[4 * $pair + 3]) = (down.re, down.im);
            )*
        }
        #[inline(always)]
        fn $adjoint<T: Scalar, S: Simd<T>>(simd: S, v: &mut [S::V]) {
            let (low, high) = v.split_at_mut($n / 2);
            $half_adjoint(simd, low);
            let mut z = [Complex { re: simd.zero(), im: simd.zero() }; $n / 4];
            for j in 0..$n / 4 {
                let pair = $n / 4 - 1 - j;
                z[j] = Complex { re: high[2 * pair], im: high[2 * pair + 1] };
            }
            $complex(simd, &mut z, 1);
            $(
                let k = $j + $n / 4;
                let [up, down] = gather(simd, Complex { re: low[$j], im: low[k] }, z[$j], 16 / $n * $j);
                (low[$j], low[k], high[$j], high[k]) = (up.re, up.im, down.re, down.im);
            )*
        }
    };
}

#[inline(always)]
fn real_2<T: Scalar, S: Simd<T>>(simd: S, v: &mut [S::V]) {
    (v[0], v[1]) = (simd.add(v[0], v[1]), simd.sub(v[0], v[1]));
}

real_transform!(4, real_forward_4, real_adjoint_4, real_2, real_2, transform_1, 0; );
real_transform!(8, real_forward_8, real_adjoint_8, real_forward_4, real_adjoint_4, transform_2, 0 1; 1);
real_transform!(16, real_forward_16, real_adjoint_16, real_forward_8, real_adjoint_8, transform_4, 0 1 2 3; 1 2 3);

/// `sum_j v_j exp(-2 pi i j k / R)` of real numbers, in place; `R` is 2, 4, 8 or 16. Numbers 0 and 1 become the frequencies 0 and `R / 2`, and each
/// pair `(2 j, 2 j + 1)` of others the real and imaginary part of frequency [`real_frequency`]`(R, j)`.
#[inline(always)]
pub(super) fn real_forward<T: Scalar, S: Simd<T>, const R: usize>(simd: S, v: &mut [S::V; R]) {
    match R {
        2 => real_2(simd, v),
        4 => real_forward_4(simd, v),
        8 => real_forward_8(simd, v),
        _ => real_forward_16(simd, v),
    }
}

/// The adjoint of [`real_forward`]: the real parts of the sum over those frequencies.
#[inline(always)]
pub(super) fn real_adjoint<T: Scalar, S: Simd<T>, const R: usize>(simd: S, v: &mut [S::V; R]) {
    match R {
        2 => real_2(simd, v),
        4 => real_adjoint_4(simd, v),
        8 => real_adjoint_8(simd, v),
        _ => real_adjoint_16(simd, v),
    }
}

/// The frequency of pair `j > 0` of a real transform of `n` points. Those from `n / 2` on stand for the conjugates of the frequencies that they
/// and `n` are apart.
#[inline(always)]
pub(super) const fn real_frequency(n: usize, j: usize) -> usize {
    if j == 1 { 3 * n / 4 } else { real_frequency(n / 2, j / 2) + j % 2 * (n / 2) }
}

/// The bits of `k < n` in the opposite order; `n` is a power of two.
#[inline(always)]
pub(super) fn reversed(n: usize, k: usize) -> usize {
    if n < 2 { 0 } else { k.reverse_bits() >> (usize::BITS - n.ilog2()) }
}

/// `exp(-2 pi i turns)`, of a fraction of whole numbers that is reduced first.
pub(super) fn turn<T: Scalar>(part: usize, whole: usize) -> Complex<T> {
    let (sin, cos) = (TAU * (part % whole) as f64 / whole as f64).sin_cos();
    Complex::new(T::narrow(cos), T::narrow(-sin))
}
