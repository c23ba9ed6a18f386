//! Plain Rust: the reference for the other levels.

use super::Simd;
use half::{bf16, f16};

/// Arrays of eight as vectors; the compiler uses what the target's baseline has.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

const N: usize = 8;

macro_rules! portable {
    ($t:ty) => {
        impl Simd<$t> for Portable {
            const LANES: usize = N;
            const REGISTERS: usize = 16;
            type V = [$t; N];
            type Index = [i32; N];

            #[inline(always)]
            fn zero(self) -> Self::V {
                [0.0; N]
            }
            #[inline(always)]
            fn splat(self, a: $t) -> Self::V {
                [a; N]
            }
            #[inline(always)]
            fn add(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] + b[i])
            }
            #[inline(always)]
            fn sub(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] - b[i])
            }
            #[inline(always)]
            fn mul(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i])
            }
            #[inline(always)]
            fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i] + c[i])
            }
            #[inline(always)]
            fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| c[i] - a[i] * b[i])
            }
            #[inline(always)]
            fn sum(self, a: Self::V) -> $t {
                ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
            }
            #[inline(always)]
            fn zip(self, a: Self::V, b: Self::V) -> (Self::V, Self::V) {
                let pick = |k: usize| if k % 2 == 0 { a[k / 2] } else { b[k / 2] };
                (std::array::from_fn(pick), std::array::from_fn(|i| pick(N + i)))
            }
            #[inline(always)]
            fn halves(self, a: Self::V, b: Self::V) -> (Self::V, Self::V) {
                let half = N / 2;
                let pick = |i: usize| {
                    if i % N < half { a[i / N * half + i % N] } else { b[i / N * half + i % half] }
                };
                (std::array::from_fn(pick), std::array::from_fn(|i| pick(N + i)))
            }
            #[inline(always)]
            unsafe fn index(self, ptr: *const i32) -> Self::Index {
                // SAFETY: the caller vouches for N reads.
                unsafe { ptr.cast::<Self::Index>().read_unaligned() }
            }
            #[inline(always)]
            fn permute(self, a: Self::V, index: Self::Index) -> Self::V {
                std::array::from_fn(|i| a[index[i] as usize % N])
            }
            #[inline(always)]
            unsafe fn load(self, ptr: *const $t) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                unsafe { ptr.cast::<Self::V>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn gather(self, at: impl Fn(usize) -> [*const $t; 4]) -> Self::V {
                // SAFETY: the caller vouches for every place.
                std::array::from_fn(|i| unsafe { *at(i / 4)[i % 4] })
            }
            #[inline(always)]
            unsafe fn load_part(self, ptr: *const $t, len: usize) -> Self::V {
                // SAFETY: the caller vouches for `len` reads.
                std::array::from_fn(|i| if i < len { unsafe { *ptr.add(i) } } else { 0.0 })
            }
            #[inline(always)]
            unsafe fn store_part(self, ptr: *mut $t, a: Self::V, len: usize) {
                for (i, a) in a.iter().enumerate().take(len) {
                    // SAFETY: the caller vouches for `len` writes.
                    unsafe { *ptr.add(i) = *a };
                }
            }
            #[inline(always)]
            unsafe fn load_lanes(self, ptr: *const $t, from: usize, to: usize) -> Self::V {
                let inside = |i: usize| (from..to).contains(&i);
                // SAFETY: the caller vouches for these reads.
                std::array::from_fn(|i| if inside(i) { unsafe { *ptr.wrapping_add(i) } } else { 0.0 })
            }
            #[inline(always)]
            unsafe fn store_lanes(self, ptr: *mut $t, a: Self::V, from: usize, to: usize) {
                for (i, a) in a.iter().enumerate().take(to).skip(from) {
                    // SAFETY: the caller vouches for these writes.
                    unsafe { *ptr.wrapping_add(i) = *a };
                }
            }
            #[inline(always)]
            unsafe fn store(self, ptr: *mut $t, a: Self::V) {
                // SAFETY: the caller vouches for N writes.
                unsafe { ptr.cast::<Self::V>().write_unaligned(a) }
            }
            #[inline(always)]
            unsafe fn load_f32(self, ptr: *const f32) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                std::array::from_fn(|i| unsafe { *ptr.add(i) as $t })
            }
            #[inline(always)]
            unsafe fn load_f64(self, ptr: *const f64) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                std::array::from_fn(|i| unsafe { *ptr.add(i) as $t })
            }
            #[inline(always)]
            unsafe fn load_bf16(self, ptr: *const bf16) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                std::array::from_fn(|i| unsafe { (*ptr.add(i)).to_f32() as $t })
            }
            #[inline(always)]
            unsafe fn load_f16(self, ptr: *const f16) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                std::array::from_fn(|i| unsafe { (*ptr.add(i)).to_f32() as $t })
            }
            #[inline(always)]
            unsafe fn load_i8(self, ptr: *const i8) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                std::array::from_fn(|i| unsafe { *ptr.add(i) as $t })
            }
            #[inline(always)]
            unsafe fn load_i4(self, ptr: *const u8) -> Self::V {
                std::array::from_fn(|i| {
                    // SAFETY: the caller vouches for N / 2 reads.
                    let byte = unsafe { *ptr.add(i / 2) };
                    (((byte >> (4 * (i % 2))) & 0xf) as i32 - 8) as $t
                })
            }
        }
    };
}
portable!(f32);
portable!(f64);
