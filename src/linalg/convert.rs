//! Between `ndarray` arrays and the matrix views of the kernel library, without unsafe code.

use super::Real;
use faer::{MatMut, MatRef};
use ndarray::{Array2, ArrayRef2, LinalgScalar};
use std::borrow::Cow;
use std::ops::Range;

/// Rows of which as many lines fit a core's first cache.
pub(super) const TILE: usize = 32;

/// Numbers that are a multiple of this many bytes apart share a few lines of a core's first cache,
const ALIASED: usize = 4096;
/// which are fewer than this.
const MANY: usize = 64;
/// Multiplications by each number that pay for copying it, and how many columns are copied at once.
const USES: usize = 256;
const DEPTH: usize = 256;

/// A matrix operand: borrowed when its memory is contiguous in either order, copied otherwise.
pub(super) struct Operand<'a, T: Clone> {
    data: Cow<'a, [T]>,
    rows: usize,
    cols: usize,
    row_major: bool,
}

impl<'a, T: Clone> Operand<'a, T> {
    pub fn new(a: &'a ArrayRef2<T>) -> Self {
        let (rows, cols) = a.dim();
        if let Some(slice) = a.as_slice() {
            return Self { data: Cow::Borrowed(slice), rows, cols, row_major: true };
        }
        if let Some(slice) = a.t().to_slice() {
            return Self { data: Cow::Borrowed(slice), rows, cols, row_major: false };
        }
        let mut data = Vec::with_capacity(a.len());
        for row in a.outer_iter() {
            match row.to_slice() {
                Some(row) => data.extend_from_slice(row),
                None => data.extend(row.iter().cloned()),
            }
        }
        Self { data: Cow::Owned(data), rows, cols, row_major: true }
    }

    pub fn mat(&self) -> MatRef<'_, T> {
        if self.row_major {
            MatRef::from_row_major_slice(&self.data, self.rows, self.cols)
        } else {
            MatRef::from_column_major_slice(&self.data, self.rows, self.cols)
        }
    }
}

impl<T: Real> Operand<'_, T> {
    /// Calls `each` with the columns that go through a product together, which reads along rows and multiplies each number `uses` times. Mostly that
    /// is the whole; where numbers of a row would drive each other out of the cache it is a copy of some columns: up to twice as fast.
    pub fn by_columns(&self, uses: usize, mut each: impl FnMut(Range<usize>, MatRef<'_, T>)) {
        let &Self { rows, cols, row_major, .. } = self;
        let aliased = (rows * size_of::<T>()).is_multiple_of(ALIASED) && cols >= MANY;
        if row_major || !aliased || uses < USES {
            return each(0..cols, self.mat());
        }
        let mut copy = vec![T::zero(); rows * cols.min(DEPTH)];
        for from in (0..cols).step_by(DEPTH) {
            let columns = from..cols.min(from + DEPTH);
            let (width, copy) = (columns.len(), &mut copy[..rows * columns.len()]);
            transpose::transpose(&self.data[from * rows..columns.end * rows], copy, rows, width);
            each(columns, MatRef::from_row_major_slice(copy, rows, width));
        }
    }
}

/// The transpose of `height` rows of `width` numbers.
fn turned<T: LinalgScalar>(rows: &[T], width: usize, height: usize) -> Vec<T> {
    let mut columns = vec![T::zero(); rows.len()];
    transpose::transpose(rows, &mut columns, width, height);
    columns
}

/// The memory of an array this module allocated itself.
pub(super) fn slice_mut<T>(a: &mut Array2<T>) -> &mut [T] {
    a.as_slice_memory_order_mut().expect("an owned array that was never sliced is contiguous")
}

/// The column-major `cols x rows` matrix that shares memory with the standard-layout `rows x cols`
/// array: its transpose. The kernels write fastest into column-major memory, and the transposed
/// factors are what sign fixing and truncation want to walk.
pub(super) fn transposed_mut<T>(a: &mut Array2<T>) -> MatMut<'_, T> {
    let (rows, cols) = a.dim();
    MatMut::from_column_major_slice_mut(slice_mut(a), cols, rows)
}

/// The row-major matrix of a standard-layout array.
pub(super) fn row_major_mut<T>(a: &mut Array2<T>) -> MatMut<'_, T> {
    let (rows, cols) = a.dim();
    MatMut::from_row_major_slice_mut(slice_mut(a), rows, cols)
}

/// A standard-layout copy of any array.
pub(super) fn standard<T: LinalgScalar>(a: &ArrayRef2<T>) -> Array2<T> {
    match a.t().as_slice() {
        Some(rows) if a.nrows() > 1 && a.ncols() > 1 => {
            let (height, width) = a.dim();
            Array2::from_shape_vec((height, width), turned(rows, height, width)).expect("as many numbers")
        }
        _ => a.as_standard_layout().into_owned(),
    }
}

/// A power of two that brings the largest entry of a matrix into a range whose squares neither overflow nor
/// vanish in the precision of `T`; 1 for ordinary data, so that ordinary data is not copied.
pub(super) fn safe_scale<T: Real>(max_abs: f64) -> f64 {
    if max_abs == 0.0 || (1.0 / T::SAFE..=T::SAFE).contains(&max_abs) {
        return 1.0;
    }
    let exponent = max_abs.log2().floor().clamp(-1021.0, 1021.0);
    (-exponent).exp2()
}

/// Largest magnitude of `a`; 0 for an empty array.
pub(super) fn max_abs(a: &ArrayRef2<f64>) -> f64 {
    a.iter().fold(0.0, |m, x| f64::max(m, x.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{array, s};

    #[test]
    fn every_layout_reads_the_same() {
        let a = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
        let owned = Operand::new(&a);
        assert!(matches!(owned.data, Cow::Borrowed(_)));
        assert_eq!(owned.mat()[(1, 0)], 4.0);
        let transposed = a.t();
        let op = Operand::new(&transposed);
        assert!(matches!(op.data, Cow::Borrowed(_)));
        assert_eq!(op.mat()[(0, 1)], 4.0);
        let reversed = a.slice(s![..;-1, ..;2]);
        let op = Operand::new(&reversed);
        assert_eq!((op.mat()[(0, 1)], op.mat()[(1, 0)]), (6.0, 1.0));
    }

    #[test]
    fn pieces_are_all_columns_in_turn() {
        for (rows, cols) in [(512, 600), (512, 64), (512, 63), (511, 64), (1024, 256), (512, 1), (512, 0)] {
            let columns = Array2::from_shape_fn((cols, rows), |(j, i)| (i * cols + j) as f64);
            let by_rows = standard(&columns.t());
            for (a, uses) in [(columns.t(), USES), (columns.t(), USES - 1), (by_rows.view(), USES)] {
                let copied = !a.is_standard_layout() && uses == USES && rows != 511 && cols >= MANY;
                let (mut next, mut pieces) = (0, 0);
                Operand::new(&a).by_columns(uses, |columns, piece| {
                    assert_eq!((columns.start, columns.len(), rows), (next, piece.ncols(), piece.nrows()));
                    for (j, i) in columns.clone().flat_map(|j| (0..rows).map(move |i| (j, i))) {
                        assert_eq!(piece[(i, j - columns.start)], a[[i, j]]);
                    }
                    assert!(!copied || piece.row_stride() == columns.len() as isize);
                    (next, pieces) = (columns.end, pieces + 1);
                });
                assert_eq!((next, pieces), (cols, if copied { cols.div_ceil(DEPTH) } else { 1 }));
            }
        }
    }

    #[test]
    fn standard_copies_any_layout() {
        let a = Array2::from_shape_fn((37, 20), |(i, j)| (i * 20 + j) as f64);
        for a in [a.view(), a.t(), a.slice(s![..;3, ..;-1]), a.slice(s![.., ..1]), a.slice(s![..0, ..])] {
            for a in [a.view(), a.t()] {
                let copy = standard(&a);
                assert!(copy.is_standard_layout() && copy == a);
            }
        }
    }

    #[test]
    fn scales_are_powers_of_two_in_range() {
        assert_eq!((safe_scale::<f64>(3e10), safe_scale::<f32>(3e9)), (1.0, 1.0));
        for x in [1e-300, 5e-324, 1e300, f64::MAX] {
            let scaled = x * safe_scale::<f64>(x);
            assert!((1e-100..1e100).contains(&scaled), "{x} -> {scaled}");
        }
    }
}
