//! The values of a sparse matrix, decoded a block at a time.
//!
//! Loops over positions see numbers of the compute type only, so they are compiled once for all storages.

use crate::kernels::level::{Kernel, Level};
use crate::kernels::simd::Simd;
use crate::kernels::source::Source;
use crate::scalar::Scalar;
use std::ops::Range;

/// Values worked on at a time; a multiple of every vector length and of [`ALIGN`].
pub(super) const BLOCK: usize = 2048;
/// Decoding starts at multiples of this.
const ALIGN: usize = 64;

/// A stream of values in some storage.
pub(super) trait Values<T>: Sync {
    /// All of them, where they lie in memory as they are computed with.
    fn plain(&self) -> Option<&[T]>;
    /// Those from `from` on, a multiple of [`ALIGN`]. Panics when there are fewer.
    fn decode(&self, from: usize, out: &mut [T]);
}

/// The one row of a source.
pub(super) struct Stream<W> {
    source: W,
    level: Level,
}

impl<W: Source> Stream<W> {
    pub(super) fn new(source: W, level: Level) -> Self {
        assert!(source.rows() == 1);
        Self { source, level }
    }
}

impl<T: Scalar, W: Source> Values<T> for Stream<W> {
    fn plain(&self) -> Option<&[T]> {
        // SAFETY: the source has one row of so many numbers, which it borrows.
        self.source.plain::<T>().map(|ptr| unsafe { std::slice::from_raw_parts(ptr, self.source.cols()) })
    }
    fn decode(&self, from: usize, out: &mut [T]) {
        assert!(from.is_multiple_of(ALIGN) && from + out.len() <= self.source.cols());
        T::dispatch(self.level, Decode { source: self.source, from, out });
    }
}

struct Decode<'a, T, W> {
    source: W,
    from: usize,
    out: &'a mut [T],
}

impl<T: Scalar, W: Source> Kernel<T> for Decode<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { source, from, out } = self;
        let cols = source.cols();
        for j in (0..out.len()).step_by(S::LANES) {
            // SAFETY: the source has column from + j < from + out.len(), a multiple of LANES; whole vectors are loaded and stored where
            // so many columns and places are left.
            unsafe {
                let v = if from + j + S::LANES <= cols {
                    source.load(simd, 0, from + j)
                } else {
                    source.load_tail(simd, 0, from + j)
                };
                simd.store_part(out.as_mut_ptr().add(j), v, S::LANES.min(out.len() - j));
            }
        }
    }
}

/// Values as they are computed with: where they lie, or a block of them decoded.
#[allow(clippy::large_enum_variant)]
pub(super) enum Decoded<'a, T> {
    Plain(&'a [T]),
    Coded { values: &'a dyn Values<T>, room: [T; BLOCK + 2 * ALIGN] },
}

impl<'a, T: Scalar> Decoded<'a, T> {
    #[inline(always)]
    pub(super) fn new(values: &'a dyn Values<T>) -> Self {
        match values.plain() {
            Some(plain) => Self::Plain(plain),
            None => Self::Coded { values, room: [T::default(); BLOCK + 2 * ALIGN] },
        }
    }

    /// Values `range`, at most [`BLOCK`]; what follows them in the slice is unspecified.
    #[inline(always)]
    pub(super) fn get(&mut self, range: Range<usize>) -> &[T] {
        match self {
            Self::Plain(plain) => &plain[range.start..],
            Self::Coded { values, room } => {
                let from = range.start / ALIGN * ALIGN;
                values.decode(from, &mut room[..range.end - from]);
                &room[range.start - from..]
            }
        }
    }
}

/// How many rows from the first on have at most [`BLOCK`] values together: one at least, `most` at most.
#[inline(always)]
pub(super) fn rows_of_block(starts: &[u32], most: usize) -> usize {
    let fits = |n: &usize| (starts[n + 1] - starts[0]) as usize <= BLOCK;
    1 + (1..most.min(starts.len() - 1)).take_while(fits).count()
}
