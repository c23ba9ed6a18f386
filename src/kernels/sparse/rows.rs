//! Small batches: one batch row at a time.

use super::pattern::Index;
use super::values::{BLOCK, Decoded, Values, rows_of_block};
use crate::kernels::level::Kernel;
use crate::kernels::simd::{self, Simd};
use crate::kernels::view::{Rows, RowsMut};
use crate::matrix::Update;
use crate::scalar::Scalar;

/// Rows of the matrix, those of `starts`, times every batch row.
///
/// The products of a block are written down before they are added up, so that the loop over them, which gathers, does not stop at the end
/// of each short row; then the rows of a group are added up in step.
pub(super) struct Gather<'a, T, I> {
    pub(super) values: &'a dyn Values<T>,
    pub(super) starts: &'a [u32],
    pub(super) cols: &'a [I],
    pub(super) x: Rows<'a, T>,
    pub(super) y: RowsMut<'a, T>,
    pub(super) update: Update,
}

impl<T: Scalar, I: Index> Kernel<T> for Gather<'_, T, I> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { values, starts, cols, x, mut y, update } = self;
        let mut decoded = Decoded::new(values);
        let mut products = [T::default(); BLOCK];
        let (mut i, rows) = (0, y.cols());
        while i < rows {
            let group = &starts[i..=i + rows_of_block(&starts[i..], S::LANES)];
            let n = group.len() - 1;
            let (start, end) = (group[0] as usize, group[n] as usize);
            for b in 0..y.rows() {
                let mut sums = [simd.zero(); 16];
                // One piece, unless a single row is longer than a block: pieces hold whole vectors, so rows add up in the same order then.
                for from in (start..end).step_by(BLOCK) {
                    let count = BLOCK.min(end - from);
                    let values = decoded.get(from..from + count);
                    // SAFETY: the pattern has checked that columns are below its width, which is that of `x`.
                    unsafe { multiply(simd, values, &cols[from..], x.row(b), &mut products[..count]) };
                    let len = |r: usize| if n == 1 { count } else { (group[r + 1] - group[r]) as usize };
                    let (least, most) = (0..n).fold((BLOCK, 0), |(a, z), r| (a.min(len(r)), z.max(len(r))));
                    for (r, sum) in sums.iter_mut().enumerate().take(n) {
                        let (first, len) = (if n == 1 { 0 } else { group[r] as usize - start }, len(r));
                        let whole = least / S::LANES * S::LANES;
                        debug_assert!(first + len <= count);
                        // SAFETY: the row's products are `first..first + len` of those written; vectors end there.
                        unsafe {
                            let row = products.as_ptr().add(first);
                            for j in (0..whole).step_by(S::LANES) {
                                *sum = simd.add(*sum, simd.load(row.add(j)));
                            }
                            // As many for each row: where they end is then easy to foresee.
                            for j in (whole..most).step_by(S::LANES) {
                                let j = j.min(len);
                                *sum = simd.add(*sum, simd.load_part(row.add(j), S::LANES.min(len - j)));
                            }
                        }
                    }
                }
                let outputs = &mut y.row(b)[i..i + n];
                let sums = simd::sums(simd, sums);
                // SAFETY: n is at most LANES, and there are so many outputs.
                unsafe {
                    let sums = match update {
                        Update::Overwrite => sums,
                        Update::Accumulate => simd.add(simd.load_part(outputs.as_ptr(), n), sums),
                    };
                    simd.store_part(outputs.as_mut_ptr(), sums, n);
                }
            }
            i += n;
        }
    }
}

/// Products of values with the numbers of `x` in their columns.
///
/// # Safety
/// All of `cols` are below `x.len()`.
#[inline(always)]
unsafe fn multiply<T: Scalar, I: Index, S: Simd<T>>(
    simd: S,
    values: &[T],
    cols: &[I],
    x: &[T],
    out: &mut [T],
) {
    let count = out.len();
    assert!(values.len() >= count && cols.len() >= count);
    let whole = count / S::LANES * S::LANES;
    let x = x.as_ptr();
    for k in (0..whole).step_by(S::LANES) {
        // SAFETY: values, columns and products k..k + LANES exist; columns lie inside `x` by the caller's promise.
        unsafe {
            let numbers = simd.gather(|q| I::four(cols.as_ptr().add(k + 4 * q)).map(|col| x.add(col)));
            simd.store(out.as_mut_ptr().add(k), simd.mul(simd.load(values.as_ptr().add(k)), numbers));
        }
    }
    for k in whole..count {
        // SAFETY: the column lies inside `x` by the caller's promise.
        out[k] = values[k] * unsafe { *x.add(cols[k].at()) };
    }
}

/// The transposed product; adds to `y`.
pub(super) struct Scatter<'a, T, I> {
    pub(super) values: &'a dyn Values<T>,
    pub(super) starts: &'a [u32],
    pub(super) cols: &'a [I],
    pub(super) x: Rows<'a, T>,
    pub(super) y: RowsMut<'a, T>,
}

impl<T: Scalar, I: Index> Kernel<T> for Scatter<'_, T, I> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        let Self { values, starts, cols, x, mut y } = self;
        let mut decoded = Decoded::new(values);
        let (mut i, rows) = (0, x.cols());
        while i < rows {
            let group = &starts[i..=i + rows_of_block(&starts[i..], BLOCK)];
            let (start, end) = (group[0] as usize, group[group.len() - 1] as usize);
            for from in (start..end).step_by(BLOCK) {
                let to = end.min(from + BLOCK);
                let values = decoded.get(from..to);
                for b in 0..x.rows() {
                    let outputs = y.row(b);
                    for (x, row) in x.row(b)[i..].iter().zip(group.windows(2)) {
                        let range = from.max(row[0] as usize)..to.min(row[1] as usize);
                        for p in range {
                            // SAFETY: the pattern has checked that columns are below its width, which is that of `y`.
                            unsafe { *outputs.get_unchecked_mut(cols[p].at()) += values[p - from] * *x };
                        }
                    }
                }
            }
            i += group.len() - 1;
        }
    }
}
