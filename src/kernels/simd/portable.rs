//! Plain Rust: the reference for the other levels.

use super::Simd;
use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Arrays of four as vectors: a register of 128 bits for `f32`, which is the baseline of x86-64 and of AArch64.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

const N: usize = 4;

/// `std::array::from_fn` in less code, which counts where it is compiled into every kernel.
#[inline(always)]
fn array<T>(mut number: impl FnMut(usize) -> T) -> [T; N] {
    [number(0), number(1), number(2), number(3)]
}

/// The first `len` numbers, followed by zeros. Not inlined, as what follows: kernels have many ends of rows, and each would be a chain of branches.
///
/// # Safety
/// There are so many numbers.
#[inline(never)]
unsafe fn lead<T: Copy + Default>(ptr: *const T, len: usize) -> [T; N] {
    // SAFETY: the caller's.
    array(|i| if i < len { unsafe { *ptr.add(i) } } else { T::default() })
}

/// Writes lanes `from..to` of `a` to where they lie from `ptr` on.
///
/// # Safety
/// There is room for them.
#[inline(never)]
unsafe fn put<T: Copy>(ptr: *mut T, a: &[T; N], from: usize, to: usize) {
    for (i, a) in a.iter().enumerate().take(to).skip(from) {
        // SAFETY: the caller's.
        unsafe { *ptr.wrapping_add(i) = *a };
    }
}

/// Compiled once, as each conversion is long where it is not an instruction.
#[inline(never)]
fn widen(numbers: &[f16; N]) -> [f32; N] {
    let mut wide = [0.0; N];
    numbers.convert_to_f32_slice(&mut wide);
    wide
}

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
                array(|i| a[i] + b[i])
            }
            #[inline(always)]
            fn sub(self, a: Self::V, b: Self::V) -> Self::V {
                array(|i| a[i] - b[i])
            }
            #[inline(always)]
            fn mul(self, a: Self::V, b: Self::V) -> Self::V {
                array(|i| a[i] * b[i])
            }
            #[inline(always)]
            fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                array(|i| a[i] * b[i] + c[i])
            }
            #[inline(always)]
            fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                array(|i| c[i] - a[i] * b[i])
            }
            #[inline(always)]
            fn sum(self, a: Self::V) -> $t {
                (a[0] + a[2]) + (a[1] + a[3])
            }
            #[inline(always)]
            fn zip(self, a: Self::V, b: Self::V) -> (Self::V, Self::V) {
                let pick = |k: usize| if k % 2 == 0 { a[k / 2] } else { b[k / 2] };
                (array(pick), array(|i| pick(N + i)))
            }
            #[inline(always)]
            fn halves(self, a: Self::V, b: Self::V) -> (Self::V, Self::V) {
                let half = N / 2;
                let pick = |i: usize| {
                    if i % N < half { a[i / N * half + i % N] } else { b[i / N * half + i % half] }
                };
                (array(pick), array(|i| pick(N + i)))
            }
            #[inline(always)]
            unsafe fn index(self, ptr: *const i32) -> Self::Index {
                // SAFETY: the caller vouches for N reads.
                unsafe { ptr.cast::<Self::Index>().read_unaligned() }
            }
            #[inline(always)]
            fn permute(self, a: Self::V, index: Self::Index) -> Self::V {
                array(|i| a[index[i] as usize % N])
            }
            #[inline(always)]
            unsafe fn load(self, ptr: *const $t) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                unsafe { ptr.cast::<Self::V>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn gather(self, at: impl Fn(usize) -> [*const $t; 4]) -> Self::V {
                // SAFETY: the caller vouches for every place.
                at(0).map(|place| unsafe { *place })
            }
            #[inline(always)]
            unsafe fn load_part(self, ptr: *const $t, len: usize) -> Self::V {
                // SAFETY: the caller vouches for `len` reads.
                unsafe { lead(ptr, len) }
            }
            #[inline(always)]
            unsafe fn store_part(self, ptr: *mut $t, a: Self::V, len: usize) {
                // SAFETY: the caller vouches for `len` writes.
                unsafe { put(ptr, &a, 0, len) };
            }
            #[inline(always)]
            unsafe fn load_lanes(self, ptr: *const $t, from: usize, to: usize) -> Self::V {
                let inside = |i: usize| (from..to).contains(&i);
                // SAFETY: the caller vouches for these reads.
                array(|i| if inside(i) { unsafe { *ptr.wrapping_add(i) } } else { 0.0 })
            }
            #[inline(always)]
            fn keep(self, a: Self::V, from: usize, to: usize) -> Self::V {
                array(|i| if (from..to).contains(&i) { a[i] } else { 0.0 })
            }
            #[inline(always)]
            unsafe fn store_lanes(self, ptr: *mut $t, a: Self::V, from: usize, to: usize) {
                // SAFETY: the caller vouches for these writes.
                unsafe { put(ptr, &a, from, to) };
            }
            #[inline(always)]
            unsafe fn store(self, ptr: *mut $t, a: Self::V) {
                // SAFETY: the caller vouches for N writes.
                unsafe { ptr.cast::<Self::V>().write_unaligned(a) }
            }
            #[inline(always)]
            unsafe fn load_f32(self, ptr: *const f32) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                array(|i| unsafe { *ptr.add(i) as $t })
            }
            #[inline(always)]
            unsafe fn load_f64(self, ptr: *const f64) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                array(|i| unsafe { *ptr.add(i) as $t })
            }
            #[inline(always)]
            unsafe fn load_bf16(self, ptr: *const bf16) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                let bits = |i: usize| u32::from(unsafe { *ptr.add(i) }.to_bits()) << 16;
                array(|i| f32::from_bits(bits(i)) as $t)
            }
            #[inline(always)]
            unsafe fn load_f16(self, ptr: *const f16) -> Self::V {
                // SAFETY: the caller vouches for N reads; arrays of numbers are aligned as they are.
                widen(unsafe { &*ptr.cast() }).map(|a| a as $t)
            }
            #[inline(always)]
            unsafe fn load_i8(self, ptr: *const i8) -> Self::V {
                // SAFETY: the caller vouches for N reads.
                array(|i| unsafe { *ptr.add(i) as $t })
            }
            #[inline(always)]
            unsafe fn load_i4(self, ptr: *const u8) -> Self::V {
                array(|i| {
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
