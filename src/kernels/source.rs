//! Decoding of the storages: a matrix whose numbers come out as vectors of the compute type.

use super::simd::Simd;
use crate::scalar::Scalar;
use crate::storage::GROUP;
use half::{bf16, f16};
use std::any::TypeId;

/// Numbers in some storage, wherever rows begin: how panels are read.
pub(crate) trait Stored: Copy {
    /// Whether numbers are codes times scales.
    const SCALED: bool;
    /// Bytes of a stored number; 1 where two share one.
    const BYTES: usize;

    /// `LANES` stored numbers from number `at` on, without their scales, wherever rows begin. Panels of packed sources are read so.
    ///
    /// # Safety
    /// `at + LANES` is at most the length of the data; `at` is even where two codes share a byte.
    unsafe fn codes<T: Scalar, S: Simd<T>>(&self, simd: S, at: usize) -> S::V;

    /// `LANES` scales from scale `at` on; ones where there are none.
    ///
    /// # Safety
    /// `at + LANES` is at most the number of scales, where there are any.
    unsafe fn scales<T: Scalar, S: Simd<T>>(&self, simd: S, at: usize) -> S::V;

    /// Scale `at` in all lanes; ones where there are none.
    ///
    /// # Safety
    /// There is that scale, where there are any.
    unsafe fn scale<T: Scalar, S: Simd<T>>(&self, simd: S, at: usize) -> S::V;

    /// Where number `at` lies, as a hint.
    fn stream_address(&self, at: usize) -> *const u8;
}

/// A row-major `rows x cols` matrix in some storage.
pub(crate) trait Source: Stored + Send + Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Number of columns.
    fn cols(&self) -> usize;
    /// The number at `(row, col)`. Panics when out of range.
    fn get(&self, row: usize, col: usize) -> f64;
    /// Numbers `col .. col + LANES` of a row. `col` is a multiple of `LANES`, so that groups and bytes are not straddled.
    ///
    /// # Safety
    /// `row < rows` and `col + LANES <= cols`.
    unsafe fn load<T: Scalar, S: Simd<T>>(&self, simd: S, row: usize, col: usize) -> S::V;

    /// The numbers as they lie in memory, where that is how they are computed with.
    fn plain<T: Scalar>(&self) -> Option<*const T>;

    /// The codes and scales, where there are some.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn coded(&self) -> Option<Coded<'_>> {
        None
    }

    /// Where the number at `(row, col)` lies, as a hint for the caches: any position is allowed.
    fn address(&self, row: usize, col: usize) -> *const u8;

    /// [`load`](Self::load) when fewer than `LANES` numbers are left; the other lanes are zero.
    ///
    /// # Safety
    /// `row < rows` and `col < cols`.
    #[inline(always)]
    unsafe fn load_tail<T: Scalar, S: Simd<T>>(&self, simd: S, row: usize, col: usize) -> S::V {
        if let Some(plain) = self.plain::<T>() {
            // SAFETY: the rest of the row is inside the source.
            return unsafe { simd.load_part(plain.add(row * self.cols() + col), self.cols() - col) };
        }
        let mut tail = [T::default(); MAX_LANES];
        decode(self, row, col, &mut tail);
        // SAFETY: no vector has more than MAX_LANES lanes.
        unsafe { simd.load(tail.as_ptr()) }
    }
}

/// Integer codes as they lie in memory, and their scales.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[derive(Clone, Copy)]
pub(crate) struct Coded<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) scales: &'a [bf16],
    /// Two codes share a byte.
    pub(super) paired: bool,
}

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// The last numbers of a row, one by one. Not inlined: it would double the size of every kernel.
#[inline(never)]
fn decode<T: Scalar, W: Source>(source: &W, row: usize, col: usize, out: &mut [T; MAX_LANES]) {
    for (j, slot) in out.iter_mut().enumerate().take(source.cols() - col) {
        *slot = T::narrow(source.get(row, col + j));
    }
}

macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $t:ty, $load:ident, $widen:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name<'a> {
            data: &'a [$t],
            rows: usize,
            cols: usize,
        }

        impl<'a> $name<'a> {
            /// Panics when the data does not have `rows * cols` numbers.
            pub(crate) fn new(data: &'a [$t], rows: usize, cols: usize) -> Self {
                assert_eq!(data.len(), rows * cols);
                Self { data, rows, cols }
            }

            /// The numbers of a `rows x cols` matrix in panels, and what may be read beyond them.
            pub(crate) fn packed(data: &'a [$t], rows: usize, cols: usize) -> Self {
                Self { data, rows, cols }
            }
        }

        impl Stored for $name<'_> {
            const SCALED: bool = false;
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            unsafe fn codes<T: Scalar, S: Simd<T>>(&self, simd: S, at: usize) -> S::V {
                debug_assert!(at + S::LANES <= self.data.len());
                // SAFETY: the caller's.
                unsafe { simd.$load(self.data.as_ptr().add(at)) }
            }
            #[inline(always)]
            unsafe fn scales<T: Scalar, S: Simd<T>>(&self, simd: S, _: usize) -> S::V {
                simd.splat(T::one())
            }
            #[inline(always)]
            unsafe fn scale<T: Scalar, S: Simd<T>>(&self, simd: S, _: usize) -> S::V {
                simd.splat(T::one())
            }
            #[inline(always)]
            fn stream_address(&self, at: usize) -> *const u8 {
                self.data.as_ptr().wrapping_add(at).cast()
            }
        }

        impl Source for $name<'_> {
            #[inline(always)]
            fn rows(&self) -> usize {
                self.rows
            }
            #[inline(always)]
            fn cols(&self) -> usize {
                self.cols
            }
            #[inline(always)]
            fn get(&self, row: usize, col: usize) -> f64 {
                $widen(self.data[row * self.cols + col])
            }
            #[inline(always)]
            unsafe fn load<T: Scalar, S: Simd<T>>(&self, simd: S, row: usize, col: usize) -> S::V {
                // SAFETY: the numbers lie inside `data`, by the caller's promise and the constructor's check.
                unsafe { simd.$load(self.data.as_ptr().add(row * self.cols + col)) }
            }
            #[inline(always)]
            fn plain<T: Scalar>(&self) -> Option<*const T> {
                (TypeId::of::<T>() == TypeId::of::<$t>()).then_some(self.data.as_ptr().cast())
            }
            #[inline(always)]
            fn address(&self, row: usize, col: usize) -> *const u8 {
                self.data.as_ptr().wrapping_add(row * self.cols + col).cast()
            }
        }
    };
}
plain!(
    /// Double precision.
    F64, f64, load_f64, |v: f64| v
);
plain!(
    /// Single precision.
    F32, f32, load_f32, f64::from
);
plain!(
    /// Brain float.
    Bf16, bf16, load_bf16, bf16::to_f64
);
plain!(
    /// Half precision.
    F16, f16, load_f16, f16::to_f64
);

macro_rules! grouped {
    ($(#[$doc:meta])* $name:ident, $t:ty, $load:ident, $row_len:expr, $offset:expr, $code:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name<'a> {
            codes: &'a [$t],
            scales: &'a [bf16],
            rows: usize,
            cols: usize,
        }

        impl<'a> $name<'a> {
            /// Panics when the data does not have the codes and scales of `rows x cols` numbers.
            pub(crate) fn new(codes: &'a [$t], scales: &'a [bf16], rows: usize, cols: usize) -> Self {
                assert_eq!(codes.len(), rows * $row_len(cols));
                assert_eq!(scales.len(), rows * cols.div_ceil(GROUP));
                Self { codes, scales, rows, cols }
            }

            /// The codes and scales of a `rows x cols` matrix in panels, and what may be read beyond them.
            pub(crate) fn packed(codes: &'a [$t], scales: &'a [bf16], rows: usize, cols: usize) -> Self {
                Self { codes, scales, rows, cols }
            }

            #[inline(always)]
            fn scale_index(&self, row: usize, col: usize) -> usize {
                row * self.cols.div_ceil(GROUP) + col / GROUP
            }
        }

        impl Stored for $name<'_> {
            const SCALED: bool = true;
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            unsafe fn codes<T: Scalar, S: Simd<T>>(&self, simd: S, at: usize) -> S::V {
                debug_assert!($row_len(at + S::LANES) <= self.codes.len());
                // SAFETY: the caller's.
                unsafe { simd.$load(self.codes.as_ptr().add($offset(at))) }
            }
            #[inline(always)]
            unsafe fn scales<T: Scalar, S: Simd<T>>(&self, simd: S, at: usize) -> S::V {
                debug_assert!(at + S::LANES <= self.scales.len());
                // SAFETY: the caller's.
                unsafe { simd.load_bf16(self.scales.as_ptr().add(at)) }
            }
            #[inline(always)]
            unsafe fn scale<T: Scalar, S: Simd<T>>(&self, simd: S, at: usize) -> S::V {
                // SAFETY: the caller's.
                let bits = u32::from(unsafe { self.scales.get_unchecked(at) }.to_bits()) << 16;
                simd.splat(T::narrow(f64::from(f32::from_bits(bits))))
            }
            #[inline(always)]
            fn stream_address(&self, at: usize) -> *const u8 {
                self.codes.as_ptr().wrapping_add($offset(at)).cast()
            }
        }

        impl Source for $name<'_> {
            #[inline(always)]
            fn rows(&self) -> usize {
                self.rows
            }
            #[inline(always)]
            fn cols(&self) -> usize {
                self.cols
            }
            #[inline(always)]
            fn get(&self, row: usize, col: usize) -> f64 {
                let code: f64 = $code(self.codes[row * $row_len(self.cols) + $offset(col)], col);
                // Rounded as the vectors round it: both factors are exact in f32, so is nearly every product.
                f64::from(code as f32 * self.scales[self.scale_index(row, col)].to_f32())
            }
            #[inline(always)]
            unsafe fn load<T: Scalar, S: Simd<T>>(&self, simd: S, row: usize, col: usize) -> S::V {
                // SAFETY: codes and scale lie inside their slices, by the caller's promise and the constructor's
                // check; GROUP is a multiple of LANES, so one scale serves the vector.
                unsafe {
                    let codes = simd.$load(self.codes.as_ptr().add(row * $row_len(self.cols) + $offset(col)));
                    simd.mul(codes, self.scale(simd, self.scale_index(row, col)))
                }
            }
            #[inline(always)]
            fn plain<T: Scalar>(&self) -> Option<*const T> {
                None
            }
            #[inline(always)]
            fn coded(&self) -> Option<Coded<'_>> {
                let paired = $row_len(2) == 1;
                Some(Coded { bytes: bytemuck::cast_slice(self.codes), scales: self.scales, paired })
            }
            #[inline(always)]
            fn address(&self, row: usize, col: usize) -> *const u8 {
                self.codes.as_ptr().wrapping_add(row * $row_len(self.cols) + $offset(col)).cast()
            }
        }
    };
}
grouped!(
    /// One byte per code.
    Int8, i8, load_i8, |cols: usize| cols, |col: usize| col, |code: i8, _| f64::from(code)
);
grouped!(
    /// Two codes per byte; rows start at whole bytes.
    Int4, u8, load_i4, |cols: usize| cols.div_ceil(2), |col: usize| col / 2,
    |byte: u8, col: usize| f64::from(((byte >> (4 * (col % 2))) & 0xf) as i8 - 8)
);
