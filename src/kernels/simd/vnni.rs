//! AVX-512 VNNI and VBMI: products of bytes, four at a time, added up as 32-bit integers.

use super::Simd;
use super::avx512::Avx512;
use crate::kernels::Level;
use std::arch::x86_64::*;

/// Proof that the machine has AVX-512 VNNI and VBMI, and what `Avx512` needs.
#[derive(Debug, Clone, Copy)]
pub struct Vnni(Avx512);

/// Adds 128 to each byte of the words of a vector, or takes it from them.
const BYTES: i32 = 0x8080_8080_u32.cast_signed();

/// A mask of the first `len` bytes of a vector.
#[inline(always)]
fn first(len: usize) -> __mmask64 {
    if len < 64 { (1 << len) - 1 } else { u64::MAX }
}

// SAFETY of every block below: a `Vnni` value exists only where the machine has the instructions, and pointers are valid for the reads
// that the methods name, by the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vnni {
    /// Whether the machine has it.
    pub(in crate::kernels) fn found() -> bool {
        Level::Avx512.is_available()
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vbmi")
    }

    /// # Safety
    /// The machine has AVX-512 VNNI and VBMI, and what `Avx512` needs.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn new_unchecked() -> Self {
        Self(unsafe { Avx512::new_unchecked() })
    }

    /// Vectors of floats of the same machine.
    #[inline(always)]
    pub(in crate::kernels) fn floats(self) -> impl Simd<f32, V = __m512> {
        self.0
    }

    /// All words `a`.
    #[inline(always)]
    pub(in crate::kernels) fn splat(self, a: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(a) }
    }

    /// In each lane the larger of `largest`, which has no sign, and the absolute value of `x`; a NaN is larger than all numbers.
    #[inline(always)]
    pub(in crate::kernels) fn larger(self, largest: __m512, x: __m512) -> __m512 {
        unsafe {
            let x = _mm512_castps_si512(_mm512_abs_ps(x));
            _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(largest), x))
        }
    }

    /// The biased exponent of the largest of numbers that are not negative.
    #[inline(always)]
    pub(in crate::kernels) fn exponent(self, x: __m512) -> u32 {
        unsafe { (_mm512_reduce_max_epi32(_mm512_castps_si512(x)) >> 23).cast_unsigned() }
    }

    /// How many numbers are smaller than `bound` and not zero, whatever their signs.
    #[inline(always)]
    pub(in crate::kernels) fn smaller(self, x: __m512, bound: f32) -> u32 {
        unsafe {
            let x = _mm512_abs_ps(x);
            let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(bound));
            let zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(x, _mm512_setzero_ps());
            (small & !zero).count_ones()
        }
    }

    /// Numbers times `factor`, rounded, in digits of a byte, from -128 to 127: byte `i` of word `4 q + d` is digit `d` of number `4 q + i`. Products are below 2^30.
    #[inline(always)]
    pub(in crate::kernels) fn digits(self, x: __m512, factor: f32) -> __m512i {
        unsafe {
            let bytes = _mm512_set1_epi32(BYTES);
            let numbers = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor)));
            let digits = _mm512_xor_si512(_mm512_add_epi32(numbers, bytes), bytes);
            let turned = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_shuffle_epi8(digits, _mm512_broadcast_i32x4(turned))
        }
    }

    /// Words `4 q + d` for all `q` added up, with the sign turned.
    #[inline(always)]
    pub(in crate::kernels) fn less_by_digit(self, words: __m512i) -> [i32; 4] {
        unsafe {
            let two = _mm256_add_epi32(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64::<1>(words));
            let one = _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256::<1>(two));
            let mut sums = [0; 4];
            _mm_storeu_si128(sums.as_mut_ptr().cast(), _mm_sub_epi32(_mm_setzero_si128(), one));
            sums
        }
    }

    /// Writes 16 words.
    ///
    /// # Safety
    /// `ptr` is valid for that many writes.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn store(self, ptr: *mut i32, words: __m512i) {
        unsafe { _mm512_storeu_si512(ptr.cast(), words) }
    }

    /// Where the codes of lanes lie among four steps `width` bytes apart, for [`codes`](Self::codes).
    #[inline(always)]
    pub(in crate::kernels) fn order(self, width: usize) -> __m512i {
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let lanes = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x0101_0101));
            _mm512_add_epi8(lanes, _mm512_set1_epi32(0x0302_0100 * width as i32))
        }
    }

    /// 32 lanes of four steps, one byte each: the byte of step `i` and lane `l` in byte `i` of word `l % 16` of vector `l / 16`. They are 128 more than the codes.
    ///
    /// # Safety
    /// `ptr` is valid for reads of `len` bytes; the others are zero.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn codes(self, ptr: *const u8, len: usize, order: __m512i) -> [__m512i; 2] {
        unsafe {
            let (a, b) = if len >= 128 {
                (_mm512_loadu_si512(ptr.cast()), _mm512_loadu_si512(ptr.add(64).cast()))
            } else {
                let (a, b) = (first(len), first(len.saturating_sub(64)));
                (
                    _mm512_maskz_loadu_epi8(a, ptr.cast()),
                    _mm512_maskz_loadu_epi8(b, ptr.wrapping_add(64).cast()),
                )
            };
            let bytes = _mm512_set1_epi32(BYTES);
            let (a, b) = (_mm512_xor_si512(a, bytes), _mm512_xor_si512(b, bytes));
            let further = _mm512_add_epi8(order, _mm512_set1_epi8(16));
            [_mm512_permutex2var_epi8(a, order, b), _mm512_permutex2var_epi8(a, further, b)]
        }
    }

    /// The same for two lanes in a byte, whose numbers are 8 more than the codes: even lanes in the first vector, odd ones in the second.
    ///
    /// # Safety
    /// As for [`codes`](Self::codes).
    #[inline(always)]
    pub(in crate::kernels) unsafe fn paired(
        self,
        ptr: *const u8,
        len: usize,
        order: __m512i,
    ) -> [__m512i; 2] {
        unsafe {
            let pairs = match len {
                64.. => _mm512_loadu_si512(ptr.cast()),
                _ => _mm512_maskz_loadu_epi8(first(len), ptr.cast()),
            };
            let pairs = _mm512_permutexvar_epi8(order, pairs);
            let (low, nibble) = (_mm512_set1_epi8(0xf), _mm512_srli_epi16::<4>(pairs));
            [_mm512_and_si512(pairs, low), _mm512_and_si512(nibble, low)]
        }
    }

    /// `sum` and in each word the products of four codes and four digits.
    #[inline(always)]
    pub(in crate::kernels) fn dot(self, sum: __m512i, codes: __m512i, digits: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, digits) }
    }

    /// The numbers whose digits these are; no digit is 2^20 or more.
    #[inline(always)]
    pub(in crate::kernels) fn numbers(self, digits: [__m512i; 4]) -> __m512 {
        unsafe {
            let [a, b, c, d] = digits;
            let low = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(b), a));
            let high = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(d), c));
            _mm512_fmadd_ps(high, _mm512_set1_ps(65536.0), low)
        }
    }
}
