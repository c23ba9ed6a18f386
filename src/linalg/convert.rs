//! Between `ndarray` arrays and the matrix views of the kernel library, without unsafe code.

use super::Real;
use faer::{MatMut, MatRef};
use ndarray::{Array2, ArrayRef2};
use std::borrow::Cow;

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
pub(super) fn standard<T: Clone>(a: &ArrayRef2<T>) -> Array2<T> {
    a.as_standard_layout().into_owned()
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
    fn scales_are_powers_of_two_in_range() {
        assert_eq!((safe_scale::<f64>(3e10), safe_scale::<f32>(3e9)), (1.0, 1.0));
        for x in [1e-300, 5e-324, 1e300, f64::MAX] {
            let scaled = x * safe_scale::<f64>(x);
            assert!((1e-100..1e100).contains(&scaled), "{x} -> {scaled}");
        }
    }
}
