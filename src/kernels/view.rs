//! Row-major panels with a row stride: what every product reads and writes.
//!
//! A batch `X` is `batch x features`, one input per row. A block of features is a column range of such a
//! panel, so blocks need no copy. Unlike `ndarray` views these cost nothing to slice, and their columns can
//! be split between threads.

use ndarray::ArrayRef2;
use std::marker::PhantomData;
use std::ops::Range;

/// A shared `rows x cols` panel; entries of one row are contiguous.
#[derive(Debug)]
pub struct Rows<'a, T> {
    ptr: *const T,
    rows: usize,
    cols: usize,
    stride: usize,
    life: PhantomData<&'a [T]>,
}

/// An exclusive `rows x cols` panel; entries of one row are contiguous.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    ptr: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: `Rows` is a `&[T]` with a stride, `RowsMut` a `&mut [T]` with a stride whose rows and columns it owns
// exclusively; they may move between threads exactly when those may.
unsafe impl<T: Sync> Send for Rows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Rows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for RowsMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for RowsMut<'_, T> {}

impl<T> Clone for Rows<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Rows<'_, T> {}

/// Panics unless the last row of a panel ends within `len` entries.
fn check_extent(len: usize, rows: usize, cols: usize, stride: usize) {
    let fits = rows == 0
        || cols == 0
        || (stride >= cols
            && (rows - 1)
                .checked_mul(stride)
                .and_then(|o| o.checked_add(cols))
                .is_some_and(|end| end <= len));
    assert!(fits, "a {rows} x {cols} panel with row stride {stride} does not fit into {len} entries");
}

/// The row stride of an `ndarray` layout that a panel can describe.
fn row_stride((rows, cols): (usize, usize), strides: &[isize]) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(cols);
    }
    let stride = if rows == 1 { cols } else { usize::try_from(strides[0]).ok()? };
    ((cols == 1 || strides[1] == 1) && stride >= cols).then_some(stride)
}

impl<'a, T> Rows<'a, T> {
    /// A panel over a slice. Panics when it does not fit.
    pub fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        check_extent(data.len(), rows, cols, stride);
        Self { ptr: data.as_ptr(), rows, cols, stride, life: PhantomData }
    }

    /// A panel over an `ndarray` view whose rows are contiguous and do not overlap; `None` for other strides.
    pub fn from_ndarray(x: &'a ArrayRef2<T>) -> Option<Self> {
        let ((rows, cols), stride) = (x.dim(), row_stride(x.dim(), x.strides())?);
        // The view keeps its memory borrowed for 'a, and holds entry (i, j) at i * stride + j.
        Some(Self { ptr: x.as_ptr(), rows, cols, stride, life: PhantomData })
    }

    /// Number of rows (the batch).
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (features).
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the starts of consecutive rows.
    #[inline]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Pointer to the first entry.
    #[inline]
    pub(super) fn as_ptr(&self) -> *const T {
        self.ptr
    }

    /// Row `i`. Panics when out of range.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows);
        // SAFETY: row i < rows lies inside the panel by the constructor's check; `cols` entries are contiguous.
        unsafe { std::slice::from_raw_parts(self.ptr.wrapping_add(i * self.stride), self.cols) }
    }

    /// Columns `range` of every row. Panics when out of range.
    #[inline]
    pub fn columns(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols);
        Self { ptr: self.ptr.wrapping_add(range.start), cols: range.len(), ..*self }
    }

    /// Rows `range`. Panics when out of range.
    #[inline]
    pub fn batch(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows);
        Self { ptr: self.ptr.wrapping_add(range.start * self.stride), rows: range.len(), ..*self }
    }
}

impl<'a, T> RowsMut<'a, T> {
    /// A panel over a slice. Panics when it does not fit.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        check_extent(data.len(), rows, cols, stride);
        Self { ptr: data.as_mut_ptr(), rows, cols, stride, life: PhantomData }
    }

    /// A panel over an `ndarray` view whose rows are contiguous and do not overlap; `None` for other strides.
    pub fn from_ndarray(y: &'a mut ArrayRef2<T>) -> Option<Self> {
        let ((rows, cols), stride) = (y.dim(), row_stride(y.dim(), y.strides())?);
        Some(Self { ptr: y.as_mut_ptr(), rows, cols, stride, life: PhantomData })
    }

    /// Number of rows (the batch).
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (features).
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the starts of consecutive rows.
    #[inline]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Pointer to the first entry.
    #[inline]
    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.ptr
    }

    /// A shorter-lived view of the same panel.
    #[inline]
    pub fn reborrow(&mut self) -> RowsMut<'_, T> {
        RowsMut { ptr: self.ptr, rows: self.rows, cols: self.cols, stride: self.stride, life: PhantomData }
    }

    /// The panel, read-only.
    #[inline]
    pub fn as_rows(&self) -> Rows<'_, T> {
        Rows { ptr: self.ptr, rows: self.rows, cols: self.cols, stride: self.stride, life: PhantomData }
    }

    /// The panel, read-only for the rest of its life.
    #[inline]
    pub fn into_rows(self) -> Rows<'a, T> {
        Rows { ptr: self.ptr, rows: self.rows, cols: self.cols, stride: self.stride, life: PhantomData }
    }

    /// Row `i`. Panics when out of range.
    #[inline]
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows);
        // SAFETY: row i < rows lies inside the panel by the constructor's check, and this panel owns it.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.wrapping_add(i * self.stride), self.cols) }
    }

    /// Columns `range` of every row. Panics when out of range.
    #[inline]
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols);
        Self { ptr: self.ptr.wrapping_add(range.start), cols: range.len(), ..self }
    }

    /// Rows `range`. Panics when out of range.
    #[inline]
    pub fn batch(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows);
        Self { ptr: self.ptr.wrapping_add(range.start * self.stride), rows: range.len(), ..self }
    }

    /// Columns before and from `at`. Panics when out of range.
    #[inline]
    pub fn split_columns(self, at: usize) -> (Self, Self) {
        assert!(at <= self.cols);
        // The halves share rows but no entry.
        let right = Self { ptr: self.ptr.wrapping_add(at), cols: self.cols - at, ..self };
        (Self { cols: at, ..self }, right)
    }

    /// Rows before and from `at`. Panics when out of range.
    #[inline]
    pub fn split_batch(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows);
        let below = Self { ptr: self.ptr.wrapping_add(at * self.stride), rows: self.rows - at, ..self };
        (Self { rows: at, ..self }, below)
    }
}

impl<T: Copy> RowsMut<'_, T> {
    /// Sets every entry.
    pub fn fill(&mut self, value: T) {
        for i in 0..self.rows {
            self.row(i).fill(value);
        }
    }
}
