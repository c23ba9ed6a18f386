//! Vectors of one instruction set, as a small trait. Everything else in `kernels` is generic over it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use vnni::Vnni;

/// On other machines the x86 levels exist by name only and are never entered.
#[cfg(not(target_arch = "x86_64"))]
pub use portable::{Portable as Avx2, Portable as Avx512};

use half::{bf16, f16};

/// Vectors of `T` at one instruction-set level. A value of the implementing type is the proof that the machine has the
/// level; only [`level::run`](super::level::run) makes one.
///
/// The `load` functions read `LANES` numbers of some storage and widen them to `T`.
#[doc(hidden)]
pub trait Simd<T>: Copy + Send + Sync {
    /// Numbers in a vector.
    const LANES: usize;
    /// Vector registers.
    const REGISTERS: usize;
    /// The vector.
    type V: Copy;
    /// A lane for each lane.
    type Index: Copy;

    /// All lanes zero.
    fn zero(self) -> Self::V;
    /// All lanes `a`.
    fn splat(self, a: T) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the level has it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`, rounded once where the level has it.
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sum of the lanes, in a fixed order.
    fn sum(self, a: Self::V) -> T;
    /// The lanes of `a` and `b` in turns: the first half of `a0 b0 a1 b1 ..`, and the second.
    fn zip(self, a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// The first halves of `a` and `b`, and the second ones.
    fn halves(self, a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// Transposes the first `LANES` vectors as a square matrix.
    #[inline(always)]
    fn transpose(self, rows: [Self::V; 16]) -> [Self::V; 16] {
        let mut rows = rows;
        let half = Self::LANES / 2;
        for _ in 0..Self::LANES.ilog2() {
            let mut next = rows;
            for i in 0..half {
                (next[2 * i], next[2 * i + 1]) = self.zip(rows[i], rows[i + half]);
            }
            rows = next;
        }
        rows
    }
    /// Reads `LANES` lanes; they count modulo `LANES`.
    ///
    /// # Safety
    /// `ptr` is valid for that many reads.
    unsafe fn index(self, ptr: *const i32) -> Self::Index;
    /// The lanes of `a` that `index` names.
    fn permute(self, a: Self::V, index: Self::Index) -> Self::V;
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// `ptr` is valid for that many reads.
    unsafe fn load(self, ptr: *const T) -> Self::V;
    /// Reads one number from each place: `at(q)` are the places of lanes `4 q .. 4 q + 4`. Single loads, put together: on the
    /// machines measured these take half the time of the instruction that gathers.
    ///
    /// # Safety
    /// Every place is valid for a read.
    unsafe fn gather(self, at: impl Fn(usize) -> [*const T; 4]) -> Self::V;
    /// Adds to four vectors the products of values and the numbers of a window that codes name: byte `v` of the code of a lane is the place of its number for
    /// vector `v` among 64. The values of a vector follow 16 after those of the one before.
    ///
    /// # Safety
    /// `values` is valid for `LANES` reads at each of its four places, `codes` for `LANES`, and `window` for 64; bytes are below 64.
    #[inline(always)]
    unsafe fn add_found(
        self,
        sums: [Self::V; 4],
        values: *const T,
        codes: *const u32,
        window: *const T,
    ) -> [Self::V; 4]
    where
        T: Copy + Default,
    {
        let mut sums = sums;
        for (v, sum) in sums.iter_mut().enumerate() {
            let mut found = [T::default(); 16];
            for (lane, found) in found.iter_mut().enumerate().take(Self::LANES) {
                // SAFETY: the caller's promise.
                *found = unsafe { *window.add((*codes.add(lane) >> (8 * v) & 63) as usize) };
            }
            // SAFETY: there are at least as many found as lanes, and the caller's promise.
            *sum = unsafe { self.mul_add(self.load(values.add(16 * v)), self.load(found.as_ptr()), *sum) };
        }
        sums
    }
    /// Reads the first `len <= LANES` numbers; the other lanes are zero.
    ///
    /// # Safety
    /// `ptr` is valid for `len` reads.
    unsafe fn load_part(self, ptr: *const T, len: usize) -> Self::V;
    /// Writes the first `len <= LANES` lanes.
    ///
    /// # Safety
    /// `ptr` is valid for `len` writes.
    unsafe fn store_part(self, ptr: *mut T, a: Self::V, len: usize);
    /// Reads lanes `from .. to <= LANES` from where they would lie in a vector at `ptr`; the other lanes are zero.
    ///
    /// # Safety
    /// Those places are valid for reads; `ptr` itself need not be.
    unsafe fn load_lanes(self, ptr: *const T, from: usize, to: usize) -> Self::V;
    /// Lanes `from .. to <= LANES` of `a`; the others are zero.
    fn keep(self, a: Self::V, from: usize, to: usize) -> Self::V;
    /// Writes lanes `from .. to <= LANES` to where they would lie in a vector at `ptr`.
    ///
    /// # Safety
    /// Those places are valid for writes; `ptr` itself need not be.
    unsafe fn store_lanes(self, ptr: *mut T, a: Self::V, from: usize, to: usize);
    /// Writes `LANES` numbers.
    ///
    /// # Safety
    /// `ptr` is valid for that many writes.
    unsafe fn store(self, ptr: *mut T, a: Self::V);
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// `ptr` is valid for that many reads.
    unsafe fn load_f32(self, ptr: *const f32) -> Self::V;
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// `ptr` is valid for that many reads.
    unsafe fn load_f64(self, ptr: *const f64) -> Self::V;
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// `ptr` is valid for that many reads.
    unsafe fn load_bf16(self, ptr: *const bf16) -> Self::V;
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// `ptr` is valid for that many reads.
    unsafe fn load_f16(self, ptr: *const f16) -> Self::V;
    /// Reads `LANES` codes.
    ///
    /// # Safety
    /// `ptr` is valid for that many reads.
    unsafe fn load_i8(self, ptr: *const i8) -> Self::V;
    /// Reads `LANES` 4-bit codes, two per byte, low nibble first, offset by 8.
    ///
    /// # Safety
    /// `ptr` is valid for `LANES / 2` reads.
    unsafe fn load_i4(self, ptr: *const u8) -> Self::V;
}

/// `N` vectors; in less code than `std::array::from_fn`, as it is compiled into every kernel.
#[inline(always)]
pub(super) fn vectors<T, S: Simd<T>, const N: usize>(
    simd: S,
    mut vector: impl FnMut(usize) -> S::V,
) -> [S::V; N] {
    let mut vectors = [simd.zero(); N];
    let mut i = 0;
    while i < N {
        vectors[i] = vector(i);
        i += 1;
    }
    vectors
}

/// Transposes the first `LANES` vectors as a square matrix.
#[inline(always)]
pub(super) fn transpose<T, S: Simd<T>>(simd: S, rows: [S::V; 16]) -> [S::V; 16] {
    simd.transpose(rows)
}

/// Rounds of the perfect shuffle of `N` vectors, which rotate the bits of the index: a matrix of `2^rounds` rows that fills them is transposed.
#[inline(always)]
pub(super) fn shuffle<T, S: Simd<T>, const N: usize>(simd: S, vectors: [S::V; N], rounds: u32) -> [S::V; N] {
    let mut vectors = vectors;
    for _ in 0..rounds {
        let mut next = vectors;
        for i in 0..N / 2 {
            (next[2 * i], next[2 * i + 1]) = simd.zip(vectors[i], vectors[i + N / 2]);
        }
        vectors = next;
    }
    vectors
}

/// The sums of the first `LANES` vectors, in the lanes of one.
#[inline(always)]
pub(super) fn sums<T, S: Simd<T>>(simd: S, vectors: [S::V; 16]) -> S::V {
    let mut vectors = vectors;
    let mut half = S::LANES / 2;
    while half > 0 {
        for i in 0..half {
            let (low, high) = simd.zip(vectors[i], vectors[i + half]);
            vectors[i] = simd.add(low, high);
        }
        half /= 2;
    }
    vectors[0]
}

/// Asks for the cache line at `ptr`, in the second-level cache; any address is allowed.
#[inline(always)]
pub(super) fn prefetch(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it cannot fault, and SSE is part of every x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// Asks for the cache line at `ptr`, in the first-level cache; any address is allowed.
#[inline(always)]
pub(super) fn prefetch_near(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}
