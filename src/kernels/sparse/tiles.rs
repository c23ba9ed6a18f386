//! Larger batches: lanes are batch rows, so that a value meets vectors of contiguous numbers.

use super::pattern::Index;
use super::values::{BLOCK, Decoded, Values, rows_of_block};
use crate::kernels::level::Kernel;
use crate::kernels::simd::{self, Simd};
use crate::kernels::view::{Rows, RowsMut};
use crate::matrix::Update;
use crate::scalar::Scalar;

/// Bytes of inputs that a tile of several vectors may hold: half of a second-level cache.
const TILE_BYTES: usize = 1 << 19;
/// Vectors of a tile at most.
const MOST: usize = 4;

/// Vectors of the next tile of `batch` rows that are left.
#[inline(always)]
pub(super) fn vectors<T, S: Simd<T>>(_: S, batch: usize, inputs: usize) -> usize {
    let fit = TILE_BYTES / (S::LANES * inputs * size_of::<T>()).max(1);
    batch.div_ceil(S::LANES).min(fit.clamp(1, MOST))
}

/// Vector `v` of each feature of a tile of `width` numbers by feature: batch rows `first..` of `x`, zero beyond its end.
#[inline(always)]
pub(super) fn interleave<T: Scalar, S: Simd<T>>(
    simd: S,
    x: Rows<'_, T>,
    first: usize,
    tile: &mut [T],
    width: usize,
    v: usize,
) {
    let inputs = x.cols();
    assert!(tile.len() >= inputs * width && (v + 1) * S::LANES <= width);
    for j in (0..inputs).step_by(S::LANES) {
        let count = S::LANES.min(inputs - j);
        let mut rows = [simd.zero(); 16];
        for (lane, row) in rows.iter_mut().enumerate().take(S::LANES.min(x.rows() - first)) {
            // SAFETY: `count` numbers of the row are left.
            *row = unsafe { simd.load_part(x.row(first + lane).as_ptr().add(j), count) };
        }
        for (k, column) in simd::transpose(simd, rows).into_iter().enumerate().take(count) {
            // SAFETY: feature j + k < inputs takes `width` numbers of the tile, of which these are LANES.
            unsafe { simd.store(tile.as_mut_ptr().add((j + k) * width + v * S::LANES), column) };
        }
    }
}

/// Outputs `i..i + n` of batch rows `first..`, from one vector of batch rows for each output.
#[inline(always)]
pub(super) fn write<T: Scalar, S: Simd<T>>(
    simd: S,
    y: &mut RowsMut<'_, T>,
    first: usize,
    i: usize,
    n: usize,
    outputs: [S::V; 16],
    update: Update,
) {
    let rows = simd::transpose(simd, outputs);
    let count = y.rows().saturating_sub(first).min(S::LANES);
    for (lane, row) in rows.into_iter().enumerate().take(count) {
        let to = &mut y.row(first + lane)[i..i + n];
        assert!(n <= S::LANES);
        // SAFETY: there are n outputs.
        unsafe {
            let row = match update {
                Update::Overwrite => row,
                Update::Accumulate => simd.add(simd.load_part(to.as_ptr(), n), row),
            };
            simd.store_part(to.as_mut_ptr(), row, n);
        }
    }
}

/// Writes `x` as tiles, one after the other.
pub(super) struct Interleave<'a, T> {
    pub(super) x: Rows<'a, T>,
    pub(super) tiles: &'a mut [T],
}

impl<T: Scalar> Kernel<T> for Interleave<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { x, tiles } = self;
        let mut first = 0;
        while first < x.rows() {
            let n = vectors(simd, x.rows() - first, x.cols());
            let tile = &mut tiles[first * x.cols()..];
            for v in 0..n {
                let row = first + v * S::LANES;
                interleave(simd, x, row, tile, n * S::LANES, v);
            }
            first += n * S::LANES;
        }
    }
}

/// Rows of the matrix, those of `starts`, times every batch row.
pub(super) struct Forward<'a, T, I> {
    pub(super) values: &'a dyn Values<T>,
    pub(super) starts: &'a [u32],
    pub(super) cols: &'a [I],
    /// What [`Interleave`] wrote, at the same level.
    pub(super) tiles: &'a [T],
    /// Width of the matrix.
    pub(super) inputs: usize,
    pub(super) y: RowsMut<'a, T>,
    pub(super) update: Update,
}

impl<T: Scalar, I: Index> Kernel<T> for Forward<'_, T, I> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, simd: S) {
        let (batch, mut first) = (self.y.rows(), 0);
        while first < batch {
            let n = vectors(simd, batch - first, self.inputs);
            let tile = &self.tiles[first * self.inputs..][..n * S::LANES * self.inputs];
            // Enough chains of sums to hide the latency of an addition.
            match n {
                1 => self.tile::<S, 1, 4>(simd, first, tile),
                2 => self.tile::<S, 2, 2>(simd, first, tile),
                3 => self.tile::<S, 3, 2>(simd, first, tile),
                _ => self.tile::<S, MOST, 2>(simd, first, tile),
            }
            first += n * S::LANES;
        }
    }
}

impl<T: Scalar, I: Index> Forward<'_, T, I> {
    /// A tile of `N` vectors, summed in `WAYS` chains for each.
    #[inline(always)]
    fn tile<S: Simd<T>, const N: usize, const WAYS: usize>(&mut self, simd: S, first: usize, tile: &[T]) {
        let Self { values, starts, cols, inputs, ref mut y, update, .. } = *self;
        assert!(tile.len() == N * S::LANES * inputs);
        let mut decoded = Decoded::new(values);
        let (mut i, rows) = (0, y.cols());
        while i < rows {
            let group = &starts[i..=i + rows_of_block(&starts[i..], S::LANES)];
            let n = group.len() - 1;
            let (start, end) = (group[0] as usize, group[n] as usize);
            let mut outputs = [[simd.zero(); 16]; N];
            if end - start <= BLOCK {
                let values = decoded.get(start..end);
                for r in 0..n {
                    let (from, to) = (group[r] as usize, group[r + 1] as usize);
                    let sums = [[simd.zero(); N]; WAYS];
                    // SAFETY: the pattern has checked that columns are below `inputs`, and the tile has so many features.
                    let sums =
                        unsafe { row(simd, sums, &values[from - start..to - start], &cols[from..to], tile) };
                    (0..N).for_each(|v| outputs[v][r] = total(simd, &sums, v));
                }
            } else {
                let mut sums = [[simd.zero(); N]; WAYS];
                for from in (start..end).step_by(BLOCK) {
                    let to = end.min(from + BLOCK);
                    let values = &decoded.get(from..to)[..to - from];
                    // SAFETY: as above.
                    sums = unsafe { row(simd, sums, values, &cols[from..to], tile) };
                }
                (0..N).for_each(|v| outputs[v][0] = total(simd, &sums, v));
            }
            for (v, outputs) in outputs.into_iter().enumerate() {
                write(simd, y, first + v * S::LANES, i, n, outputs, update);
            }
            i += n;
        }
    }
}

#[inline(always)]
pub(super) fn total<T, S: Simd<T>, const N: usize, const WAYS: usize>(
    simd: S,
    sums: &[[S::V; N]; WAYS],
    v: usize,
) -> S::V {
    (1..WAYS).fold(sums[0][v], |sum, way| simd.add(sum, sums[way][v]))
}

/// Adds the products of values with the features in their columns, in turns to each way.
///
/// # Safety
/// `tile` has `N` vectors for each feature that `cols` names.
#[inline(always)]
unsafe fn row<T: Scalar, I: Index, S: Simd<T>, const N: usize, const WAYS: usize>(
    simd: S,
    mut sums: [[S::V; N]; WAYS],
    values: &[T],
    cols: &[I],
    tile: &[T],
) -> [[S::V; N]; WAYS] {
    let add = |sums: &mut [S::V; N], value: T, col: I| {
        let value = simd.splat(value);
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let x = unsafe { simd.load(tile.as_ptr().add((col.at() * N + v) * S::LANES)) };
            *sum = simd.mul_add(value, x, *sum);
        }
    };
    let (values, values_left) = values.as_chunks::<WAYS>();
    let (cols, cols_left) = cols.as_chunks::<WAYS>();
    for (values, cols) in values.iter().zip(cols) {
        for way in 0..WAYS {
            add(&mut sums[way], values[way], cols[way]);
        }
    }
    for (way, (value, col)) in values_left.iter().zip(cols_left).enumerate() {
        add(&mut sums[way], *value, *col);
    }
    sums
}

/// The transposed product, a vector of batch rows at a time; adds to `y`.
pub(super) struct Backward<'a, T, I> {
    pub(super) values: &'a dyn Values<T>,
    pub(super) starts: &'a [u32],
    pub(super) cols: &'a [I],
    pub(super) x: Rows<'a, T>,
    pub(super) y: RowsMut<'a, T>,
    /// A vector for each input and output.
    pub(super) scratch: &'a mut [T],
}

impl<T: Scalar, I: Index> Kernel<T> for Backward<'_, T, I> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { values, starts, cols, x, mut y, scratch } = self;
        let (inputs, outputs) = (x.cols(), y.cols());
        let (from, to) = scratch.split_at_mut(S::LANES * inputs);
        let to = &mut to[..S::LANES * outputs];
        let mut decoded = Decoded::new(values);
        for first in (0..x.rows()).step_by(S::LANES) {
            interleave(simd, x, first, from, S::LANES, 0);
            to.fill(T::default());
            let mut i = 0;
            while i < inputs {
                let group = &starts[i..=i + rows_of_block(&starts[i..], BLOCK)];
                let (start, end) = (group[0] as usize, group[group.len() - 1] as usize);
                for piece in (start..end).step_by(BLOCK) {
                    let piece_end = end.min(piece + BLOCK);
                    let values = decoded.get(piece..piece_end);
                    for (r, row) in group.windows(2).enumerate() {
                        let range = piece.max(row[0] as usize)..piece_end.min(row[1] as usize);
                        // SAFETY: row i + r is one of the inputs; the pattern has checked that columns are below the number of outputs.
                        unsafe {
                            let x = simd.load(from.as_ptr().add((i + r) * S::LANES));
                            for p in range {
                                let sums = to.as_mut_ptr().add(cols[p].at() * S::LANES);
                                let value = simd.splat(values[p - piece]);
                                simd.store(sums, simd.mul_add(value, x, simd.load(sums)));
                            }
                        }
                    }
                }
                i += group.len() - 1;
            }
            for j in (0..outputs).step_by(S::LANES) {
                let n = S::LANES.min(outputs - j);
                let mut sums = [simd.zero(); 16];
                for (k, sum) in sums.iter_mut().enumerate().take(n) {
                    // SAFETY: output j + k < outputs has a vector.
                    *sum = unsafe { simd.load(to.as_ptr().add((j + k) * S::LANES)) };
                }
                write(simd, &mut y, first, j, n, sums, Update::Accumulate);
            }
        }
    }
}
