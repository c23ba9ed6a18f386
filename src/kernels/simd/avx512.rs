//! AVX-512 F, BW, DQ, VL.

use super::Simd;
use super::avx2::{four_f32, four_f64};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Proof that the machine has AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine has AVX-512 F, BW, DQ and VL, and what `Avx2` needs.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn new_unchecked() -> Self {
        Self(())
    }
}

// SAFETY of every block below: an `Avx512` value exists only where the machine has the level, and pointers are valid
// for the reads and writes that the trait names, by the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd<f32> for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    type V = __m512;
    type Index = __m512i;

    #[inline(always)]
    fn zero(self) -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    fn splat(self, a: f32) -> __m512 {
        unsafe { _mm512_set1_ps(a) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn zip(self, a: __m512, b: __m512) -> (__m512, __m512) {
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
        }
    }
    #[inline(always)]
    fn halves(self, a: __m512, b: __m512) -> (__m512, __m512) {
        unsafe { (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b)) }
    }
    /// Pairs, then fours of numbers trade places within the quarters of vectors, then quarters.
    #[inline(always)]
    fn transpose(self, rows: [__m512; 16]) -> [__m512; 16] {
        unsafe {
            let (mut two, mut four, mut out) = (rows, rows, rows);
            for i in (0..16).step_by(2) {
                two[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                two[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
            }
            for i in (0..16).step_by(4) {
                for k in 0..2 {
                    let (a, b) = (_mm512_castps_pd(two[i + k]), _mm512_castps_pd(two[i + k + 2]));
                    four[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    four[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            for c in 0..4 {
                let (a, b) = (four[c], four[c + 4]);
                let low = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)];
                let (a, b) = (four[c + 8], four[c + 12]);
                let high = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)];
                for k in 0..2 {
                    out[4 * k + c] = _mm512_shuffle_f32x4::<0x88>(low[k], high[k]);
                    out[4 * k + c + 8] = _mm512_shuffle_f32x4::<0xdd>(low[k], high[k]);
                }
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn index(self, ptr: *const i32) -> __m512i {
        unsafe { _mm512_loadu_si512(ptr.cast()) }
    }
    #[inline(always)]
    fn permute(self, a: __m512, index: __m512i) -> __m512 {
        unsafe { _mm512_permutexvar_ps(index, a) }
    }
    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(ptr) }
    }
    #[inline(always)]
    unsafe fn gather(self, at: impl Fn(usize) -> [*const f32; 4]) -> __m512 {
        unsafe {
            let low = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four_f32(at(0))), four_f32(at(1)));
            let high = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four_f32(at(2))), four_f32(at(3)));
            _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
        }
    }
    #[inline(always)]
    unsafe fn add_found(
        self,
        sums: [__m512; 4],
        values: *const f32,
        codes: *const u32,
        window: *const f32,
    ) -> [__m512; 4] {
        unsafe {
            let codes = _mm512_loadu_si512(codes.cast());
            let part = |k: usize| _mm512_loadu_ps(window.add(16 * k));
            let parts = [part(0), part(1), part(2), part(3)];
            let mut sums = sums;
            for (v, sum) in sums.iter_mut().enumerate() {
                // Five bits name a number of two vectors; the next one, which two.
                let places = _mm512_srlv_epi32(codes, _mm512_set1_epi32(8 * v as i32));
                let sixth = _mm512_test_epi32_mask(codes, _mm512_set1_epi32(32 << (8 * v)));
                let low = _mm512_permutex2var_ps(parts[0], places, parts[1]);
                let high = _mm512_permutex2var_ps(parts[2], places, parts[3]);
                let found = _mm512_mask_blend_ps(sixth, low, high);
                *sum = _mm512_fmadd_ps(_mm512_loadu_ps(values.add(16 * v)), found, *sum);
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn load_part(self, ptr: *const f32, len: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(((1u32 << len) - 1) as __mmask16, ptr) }
    }
    #[inline(always)]
    unsafe fn store_part(self, ptr: *mut f32, a: __m512, len: usize) {
        unsafe { _mm512_mask_storeu_ps(ptr, ((1u32 << len) - 1) as __mmask16, a) }
    }
    #[inline(always)]
    unsafe fn load_lanes(self, ptr: *const f32, from: usize, to: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(((1u32 << to) - (1u32 << from)) as __mmask16, ptr) }
    }
    #[inline(always)]
    fn keep(self, a: __m512, from: usize, to: usize) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(((1u32 << to) - (1u32 << from)) as __mmask16, a) }
    }
    #[inline(always)]
    unsafe fn store_lanes(self, ptr: *mut f32, a: __m512, from: usize, to: usize) {
        unsafe { _mm512_mask_storeu_ps(ptr, ((1u32 << to) - (1u32 << from)) as __mmask16, a) }
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, a: __m512) {
        unsafe { _mm512_storeu_ps(ptr, a) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, ptr: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(ptr) }
    }
    #[inline(always)]
    unsafe fn load_f64(self, ptr: *const f64) -> __m512 {
        unsafe {
            let (low, high) =
                (_mm512_cvtpd_ps(_mm512_loadu_pd(ptr)), _mm512_cvtpd_ps(_mm512_loadu_pd(ptr.add(8))));
            _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(ptr.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(ptr.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(ptr.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i4(self, ptr: *const u8) -> __m512 {
        unsafe {
            let word = ptr.cast::<i64>().read_unaligned();
            let halves = _mm512_inserti64x4::<1>(
                _mm512_set1_epi32(word as i32),
                _mm256_set1_epi32((word >> 32) as i32),
            );
            let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
            let codes = _mm512_and_si512(_mm512_srlv_epi32(halves, shifts), _mm512_set1_epi32(0xf));
            _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(8)))
        }
    }
}

// SAFETY of every block below: as for `f32`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd<f64> for Avx512 {
    const LANES: usize = 8;
    const REGISTERS: usize = 32;
    type V = __m512d;
    type Index = __m512i;

    #[inline(always)]
    fn zero(self) -> __m512d {
        unsafe { _mm512_setzero_pd() }
    }
    #[inline(always)]
    fn splat(self, a: f64) -> __m512d {
        unsafe { _mm512_set1_pd(a) }
    }
    #[inline(always)]
    fn add(self, a: __m512d, b: __m512d) -> __m512d {
        unsafe { _mm512_add_pd(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512d, b: __m512d) -> __m512d {
        unsafe { _mm512_sub_pd(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512d, b: __m512d) -> __m512d {
        unsafe { _mm512_mul_pd(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512d, b: __m512d, c: __m512d) -> __m512d {
        unsafe { _mm512_fmadd_pd(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m512d, b: __m512d, c: __m512d) -> __m512d {
        unsafe { _mm512_fnmadd_pd(a, b, c) }
    }
    #[inline(always)]
    fn sum(self, a: __m512d) -> f64 {
        unsafe { _mm512_reduce_add_pd(a) }
    }
    #[inline(always)]
    fn zip(self, a: __m512d, b: __m512d) -> (__m512d, __m512d) {
        unsafe {
            let (low, high) =
                (_mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15));
            (_mm512_permutex2var_pd(a, low, b), _mm512_permutex2var_pd(a, high, b))
        }
    }
    #[inline(always)]
    fn halves(self, a: __m512d, b: __m512d) -> (__m512d, __m512d) {
        unsafe { (_mm512_shuffle_f64x2::<0x44>(a, b), _mm512_shuffle_f64x2::<0xee>(a, b)) }
    }
    /// Pairs of numbers trade places within the quarters of vectors, then quarters.
    #[inline(always)]
    fn transpose(self, rows: [__m512d; 16]) -> [__m512d; 16] {
        unsafe {
            let (mut two, mut out) = (rows, rows);
            for i in (0..8).step_by(2) {
                two[i] = _mm512_unpacklo_pd(rows[i], rows[i + 1]);
                two[i + 1] = _mm512_unpackhi_pd(rows[i], rows[i + 1]);
            }
            for c in 0..2 {
                let (a, b) = (two[c], two[c + 2]);
                let low = [_mm512_shuffle_f64x2::<0x88>(a, b), _mm512_shuffle_f64x2::<0xdd>(a, b)];
                let (a, b) = (two[c + 4], two[c + 6]);
                let high = [_mm512_shuffle_f64x2::<0x88>(a, b), _mm512_shuffle_f64x2::<0xdd>(a, b)];
                for k in 0..2 {
                    out[2 * k + c] = _mm512_shuffle_f64x2::<0x88>(low[k], high[k]);
                    out[2 * k + c + 4] = _mm512_shuffle_f64x2::<0xdd>(low[k], high[k]);
                }
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn index(self, ptr: *const i32) -> __m512i {
        unsafe { _mm512_cvtepi32_epi64(_mm256_loadu_si256(ptr.cast())) }
    }
    #[inline(always)]
    fn permute(self, a: __m512d, index: __m512i) -> __m512d {
        unsafe { _mm512_permutexvar_pd(index, a) }
    }
    #[inline(always)]
    unsafe fn load(self, ptr: *const f64) -> __m512d {
        unsafe { _mm512_loadu_pd(ptr) }
    }
    #[inline(always)]
    unsafe fn gather(self, at: impl Fn(usize) -> [*const f64; 4]) -> __m512d {
        unsafe { _mm512_insertf64x4::<1>(_mm512_castpd256_pd512(four_f64(at(0))), four_f64(at(1))) }
    }
    #[inline(always)]
    unsafe fn add_found(
        self,
        sums: [__m512d; 4],
        values: *const f64,
        codes: *const u32,
        window: *const f64,
    ) -> [__m512d; 4] {
        unsafe {
            let codes = _mm512_cvtepu32_epi64(_mm256_loadu_si256(codes.cast()));
            let part = |k: usize| _mm512_loadu_pd(window.add(8 * k));
            let mut sums = sums;
            for (v, sum) in sums.iter_mut().enumerate() {
                // Four bits name a number of two vectors; the next two, which two.
                let places = _mm512_srlv_epi64(codes, _mm512_set1_epi64(8 * v as i64));
                let bit = |bit: i64| _mm512_test_epi64_mask(codes, _mm512_set1_epi64(bit << (8 * v)));
                let two = |k: usize| _mm512_permutex2var_pd(part(k), places, part(k + 1));
                let low = _mm512_mask_blend_pd(bit(16), two(0), two(2));
                let high = _mm512_mask_blend_pd(bit(16), two(4), two(6));
                let found = _mm512_mask_blend_pd(bit(32), low, high);
                *sum = _mm512_fmadd_pd(_mm512_loadu_pd(values.add(16 * v)), found, *sum);
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn load_part(self, ptr: *const f64, len: usize) -> __m512d {
        unsafe { _mm512_maskz_loadu_pd(((1u32 << len) - 1) as __mmask8, ptr) }
    }
    #[inline(always)]
    unsafe fn store_part(self, ptr: *mut f64, a: __m512d, len: usize) {
        unsafe { _mm512_mask_storeu_pd(ptr, ((1u32 << len) - 1) as __mmask8, a) }
    }
    #[inline(always)]
    unsafe fn load_lanes(self, ptr: *const f64, from: usize, to: usize) -> __m512d {
        unsafe { _mm512_maskz_loadu_pd(((1u32 << to) - (1u32 << from)) as __mmask8, ptr) }
    }
    #[inline(always)]
    fn keep(self, a: __m512d, from: usize, to: usize) -> __m512d {
        unsafe { _mm512_maskz_mov_pd(((1u32 << to) - (1u32 << from)) as __mmask8, a) }
    }
    #[inline(always)]
    unsafe fn store_lanes(self, ptr: *mut f64, a: __m512d, from: usize, to: usize) {
        unsafe { _mm512_mask_storeu_pd(ptr, ((1u32 << to) - (1u32 << from)) as __mmask8, a) }
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f64, a: __m512d) {
        unsafe { _mm512_storeu_pd(ptr, a) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, ptr: *const f32) -> __m512d {
        unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(ptr)) }
    }
    #[inline(always)]
    unsafe fn load_f64(self, ptr: *const f64) -> __m512d {
        unsafe { _mm512_loadu_pd(ptr) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> __m512d {
        unsafe {
            let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.cast())));
            _mm512_cvtps_pd(_mm256_castsi256_ps(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> __m512d {
        unsafe { _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(ptr.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> __m512d {
        unsafe { _mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(_mm_loadl_epi64(ptr.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i4(self, ptr: *const u8) -> __m512d {
        unsafe {
            let word = _mm256_set1_epi32(ptr.cast::<i32>().read_unaligned());
            let nibbles = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            let codes = _mm256_and_si256(nibbles, _mm256_set1_epi32(0xf));
            _mm512_cvtepi32_pd(_mm256_sub_epi32(codes, _mm256_set1_epi32(8)))
        }
    }
}
