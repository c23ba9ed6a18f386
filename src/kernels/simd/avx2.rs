//! AVX2 with FMA and F16C.

use super::Simd;
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn new_unchecked() -> Self {
        Self(())
    }
}

/// A mask of the first `len` of eight lanes.
#[inline(always)]
fn first_32(len: usize) -> __m256i {
    // SAFETY: called by the methods of an `Avx2` only, which exists only where the machine has the level.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(len as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

/// A mask of the first `len` of four lanes.
#[inline(always)]
fn first_64(len: usize) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_cmpgt_epi64(_mm256_set1_epi64x(len as i64), _mm256_setr_epi64x(0, 1, 2, 3)) }
}

/// Four numbers, from anywhere.
///
/// # Safety
/// The machine has AVX2, and every place is valid for a read.
#[inline(always)]
pub(super) unsafe fn four_f32(at: [*const f32; 4]) -> __m128 {
    // SAFETY: the caller's promise.
    unsafe {
        let v = _mm_load_ss(at[0]);
        let v = _mm_insert_ps::<0x10>(v, _mm_load_ss(at[1]));
        let v = _mm_insert_ps::<0x20>(v, _mm_load_ss(at[2]));
        _mm_insert_ps::<0x30>(v, _mm_load_ss(at[3]))
    }
}

/// The same in double precision.
///
/// # Safety
/// As above.
#[inline(always)]
pub(super) unsafe fn four_f64(at: [*const f64; 4]) -> __m256d {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm_loadh_pd(_mm_load_sd(at[0]), at[1]);
        let high = _mm_loadh_pd(_mm_load_sd(at[2]), at[3]);
        _mm256_insertf128_pd::<1>(_mm256_castpd128_pd256(low), high)
    }
}

// SAFETY of every block below: an `Avx2` value exists only where the machine has the level, and pointers are valid
// for the reads and writes that the trait names, by the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd<f32> for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type V = __m256;
    type Index = __m256i;

    #[inline(always)]
    fn zero(self) -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    fn splat(self, a: f32) -> __m256 {
        unsafe { _mm256_set1_ps(a) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn zip(self, a: __m256, b: __m256) -> (__m256, __m256) {
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            (_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
        }
    }
    #[inline(always)]
    fn halves(self, a: __m256, b: __m256) -> (__m256, __m256) {
        unsafe { (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)) }
    }
    /// Pairs, then fours of numbers trade places within the halves of vectors, then halves.
    #[inline(always)]
    fn transpose(self, rows: [__m256; 16]) -> [__m256; 16] {
        unsafe {
            let (mut two, mut four, mut out) = (rows, rows, rows);
            for i in (0..8).step_by(2) {
                two[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
                two[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            }
            for i in (0..8).step_by(4) {
                for k in 0..2 {
                    let (a, b) = (_mm256_castps_pd(two[i + k]), _mm256_castps_pd(two[i + k + 2]));
                    four[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    four[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                }
            }
            for c in 0..4 {
                (out[c], out[c + 4]) = Simd::<f32>::halves(self, four[c], four[c + 4]);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn index(self, ptr: *const i32) -> __m256i {
        unsafe { _mm256_loadu_si256(ptr.cast()) }
    }
    #[inline(always)]
    fn permute(self, a: __m256, index: __m256i) -> __m256 {
        unsafe { _mm256_permutevar8x32_ps(a, index) }
    }
    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(ptr) }
    }
    #[inline(always)]
    unsafe fn gather(self, at: impl Fn(usize) -> [*const f32; 4]) -> __m256 {
        unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four_f32(at(0))), four_f32(at(1))) }
    }
    #[inline(always)]
    unsafe fn load_part(self, ptr: *const f32, len: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(ptr, first_32(len)) }
    }
    #[inline(always)]
    unsafe fn store_part(self, ptr: *mut f32, a: __m256, len: usize) {
        unsafe { _mm256_maskstore_ps(ptr, first_32(len), a) }
    }
    #[inline(always)]
    unsafe fn load_lanes(self, ptr: *const f32, from: usize, to: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(ptr, _mm256_andnot_si256(first_32(from), first_32(to))) }
    }
    #[inline(always)]
    fn keep(self, a: __m256, from: usize, to: usize) -> __m256 {
        unsafe { _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_andnot_si256(first_32(from), first_32(to)))) }
    }
    #[inline(always)]
    unsafe fn store_lanes(self, ptr: *mut f32, a: __m256, from: usize, to: usize) {
        unsafe { _mm256_maskstore_ps(ptr, _mm256_andnot_si256(first_32(from), first_32(to)), a) }
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, a: __m256) {
        unsafe { _mm256_storeu_ps(ptr, a) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, ptr: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(ptr) }
    }
    #[inline(always)]
    unsafe fn load_f64(self, ptr: *const f64) -> __m256 {
        unsafe {
            let (low, high) =
                (_mm256_cvtpd_ps(_mm256_loadu_pd(ptr)), _mm256_cvtpd_ps(_mm256_loadu_pd(ptr.add(4))));
            _mm256_set_m128(high, low)
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(ptr.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(ptr.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i4(self, ptr: *const u8) -> __m256 {
        unsafe {
            let word = _mm256_set1_epi32(ptr.cast::<i32>().read_unaligned());
            let nibbles = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            let codes = _mm256_and_si256(nibbles, _mm256_set1_epi32(0xf));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(8)))
        }
    }
}

// SAFETY of every block below: as for `f32`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd<f64> for Avx2 {
    const LANES: usize = 4;
    const REGISTERS: usize = 16;
    type V = __m256d;
    type Index = __m256i;

    #[inline(always)]
    fn zero(self) -> __m256d {
        unsafe { _mm256_setzero_pd() }
    }
    #[inline(always)]
    fn splat(self, a: f64) -> __m256d {
        unsafe { _mm256_set1_pd(a) }
    }
    #[inline(always)]
    fn add(self, a: __m256d, b: __m256d) -> __m256d {
        unsafe { _mm256_add_pd(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256d, b: __m256d) -> __m256d {
        unsafe { _mm256_sub_pd(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256d, b: __m256d) -> __m256d {
        unsafe { _mm256_mul_pd(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256d, b: __m256d, c: __m256d) -> __m256d {
        unsafe { _mm256_fmadd_pd(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m256d, b: __m256d, c: __m256d) -> __m256d {
        unsafe { _mm256_fnmadd_pd(a, b, c) }
    }
    #[inline(always)]
    fn sum(self, a: __m256d) -> f64 {
        unsafe {
            let two = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd::<1>(a));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
    }
    #[inline(always)]
    fn zip(self, a: __m256d, b: __m256d) -> (__m256d, __m256d) {
        unsafe {
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            (_mm256_permute2f128_pd::<0x20>(low, high), _mm256_permute2f128_pd::<0x31>(low, high))
        }
    }
    #[inline(always)]
    fn halves(self, a: __m256d, b: __m256d) -> (__m256d, __m256d) {
        unsafe { (_mm256_permute2f128_pd::<0x20>(a, b), _mm256_permute2f128_pd::<0x31>(a, b)) }
    }
    /// Pairs of numbers trade places within the halves of vectors, then halves.
    #[inline(always)]
    fn transpose(self, rows: [__m256d; 16]) -> [__m256d; 16] {
        unsafe {
            let (mut two, mut out) = (rows, rows);
            for i in [0, 2] {
                two[i] = _mm256_unpacklo_pd(rows[i], rows[i + 1]);
                two[i + 1] = _mm256_unpackhi_pd(rows[i], rows[i + 1]);
            }
            for c in 0..2 {
                (out[c], out[c + 2]) = Simd::<f64>::halves(self, two[c], two[c + 2]);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn index(self, ptr: *const i32) -> __m256i {
        unsafe {
            // The halves of each number.
            let two = _mm256_slli_epi64::<1>(_mm256_cvtepu32_epi64(_mm_loadu_si128(ptr.cast())));
            let high = _mm256_slli_epi64::<32>(_mm256_add_epi64(two, _mm256_set1_epi64x(1)));
            _mm256_or_si256(two, high)
        }
    }
    #[inline(always)]
    fn permute(self, a: __m256d, index: __m256i) -> __m256d {
        unsafe { _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(a), index)) }
    }
    #[inline(always)]
    unsafe fn load(self, ptr: *const f64) -> __m256d {
        unsafe { _mm256_loadu_pd(ptr) }
    }
    #[inline(always)]
    unsafe fn gather(self, at: impl Fn(usize) -> [*const f64; 4]) -> __m256d {
        unsafe { four_f64(at(0)) }
    }
    #[inline(always)]
    unsafe fn load_part(self, ptr: *const f64, len: usize) -> __m256d {
        unsafe { _mm256_maskload_pd(ptr, first_64(len)) }
    }
    #[inline(always)]
    unsafe fn store_part(self, ptr: *mut f64, a: __m256d, len: usize) {
        unsafe { _mm256_maskstore_pd(ptr, first_64(len), a) }
    }
    #[inline(always)]
    unsafe fn load_lanes(self, ptr: *const f64, from: usize, to: usize) -> __m256d {
        unsafe { _mm256_maskload_pd(ptr, _mm256_andnot_si256(first_64(from), first_64(to))) }
    }
    #[inline(always)]
    fn keep(self, a: __m256d, from: usize, to: usize) -> __m256d {
        unsafe { _mm256_and_pd(a, _mm256_castsi256_pd(_mm256_andnot_si256(first_64(from), first_64(to)))) }
    }
    #[inline(always)]
    unsafe fn store_lanes(self, ptr: *mut f64, a: __m256d, from: usize, to: usize) {
        unsafe { _mm256_maskstore_pd(ptr, _mm256_andnot_si256(first_64(from), first_64(to)), a) }
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f64, a: __m256d) {
        unsafe { _mm256_storeu_pd(ptr, a) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, ptr: *const f32) -> __m256d {
        unsafe { _mm256_cvtps_pd(_mm_loadu_ps(ptr)) }
    }
    #[inline(always)]
    unsafe fn load_f64(self, ptr: *const f64) -> __m256d {
        unsafe { _mm256_loadu_pd(ptr) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> __m256d {
        unsafe {
            let wide = _mm_slli_epi32::<16>(_mm_cvtepu16_epi32(_mm_loadl_epi64(ptr.cast())));
            _mm256_cvtps_pd(_mm_castsi128_ps(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> __m256d {
        unsafe { _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(ptr.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> __m256d {
        unsafe {
            let word = _mm_cvtsi32_si128(ptr.cast::<i32>().read_unaligned());
            _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(word))
        }
    }
    #[inline(always)]
    unsafe fn load_i4(self, ptr: *const u8) -> __m256d {
        unsafe {
            let word = _mm_set1_epi32(i32::from(ptr.cast::<u16>().read_unaligned()));
            let nibbles = _mm_srlv_epi32(word, _mm_setr_epi32(0, 4, 8, 12));
            let codes = _mm_and_si128(nibbles, _mm_set1_epi32(0xf));
            _mm256_cvtepi32_pd(_mm_sub_epi32(codes, _mm_set1_epi32(8)))
        }
    }
}
