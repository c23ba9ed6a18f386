//! Where the values of a sparse matrix stand: checked once, so that products need not.

use super::sliced;
use std::borrow::Cow;
use std::ops::Range;

/// Positions of a matrix in compressed sparse rows: row `i` holds values `starts[i]..starts[i + 1]`, in the columns of those.
///
/// Columns ascend within a row and lie below the width; starts ascend from 0 to the number of columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    width: usize,
    starts: Vec<u32>,
    columns: Columns,
    /// See [`slots`](Self::slots).
    slots: Option<usize>,
}

/// Column indices. A product at batch 1 is bound by reading, so they are as short as the width allows.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Columns {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Pattern {
    /// `None` when the lists contradict each other or the width.
    pub(crate) fn new(width: usize, starts: Vec<u32>, cols: Vec<u32>) -> Option<Self> {
        let ends = starts.first() == Some(&0) && starts.last().is_some_and(|&end| end as usize == cols.len());
        let fits = ends
            && starts.windows(2).all(|pair| pair[0] <= pair[1])
            && cols.iter().all(|&col| (col as usize) < width)
            && starts
                .windows(2)
                .all(|pair| cols[pair[0] as usize..pair[1] as usize].windows(2).all(|two| two[0] < two[1]));
        let columns = match Self::index_bytes(width) {
            2 => Columns::Narrow(cols.iter().map(|&col| col as u16).collect()),
            _ => Columns::Wide(cols),
        };
        if !fits {
            return None;
        }
        let mut pattern = Self { width, starts, columns, slots: None };
        pattern.slots = sliced::slots(&pattern);
        Some(pattern)
    }

    /// Slots for values of the matrix as slices of rows, where it may take that form.
    pub(super) fn slots(&self) -> Option<usize> {
        self.slots
    }

    /// Bytes of a column index of a matrix this wide.
    pub(crate) fn index_bytes(width: usize) -> usize {
        if width <= 1 << 16 { 2 } else { 4 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Number of positions.
    pub(crate) fn len(&self) -> usize {
        self.starts[self.rows()] as usize
    }

    pub(crate) fn starts(&self) -> &[u32] {
        &self.starts
    }

    pub(super) fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Column of a position.
    pub(super) fn col(&self, position: usize) -> usize {
        match &self.columns {
            Columns::Narrow(cols) => usize::from(cols[position]),
            Columns::Wide(cols) => cols[position] as usize,
        }
    }

    /// All columns, as files hold them.
    pub(crate) fn cols(&self) -> Cow<'_, [u32]> {
        match &self.columns {
            Columns::Narrow(cols) => cols.iter().map(|&col| u32::from(col)).collect(),
            Columns::Wide(cols) => Cow::Borrowed(cols),
        }
    }

    /// All positions, row by row.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let range = |i: usize| -> Range<usize> { self.starts[i] as usize..self.starts[i + 1] as usize };
        (0..self.rows()).flat_map(move |i| range(i).map(move |p| (i, self.col(p))))
    }
}

/// The integer type of column indices.
pub(super) trait Index: Copy + Send + Sync {
    fn at(self) -> usize;
    /// The next four.
    ///
    /// # Safety
    /// `ptr` is valid for four reads.
    unsafe fn four(ptr: *const Self) -> [usize; 4];
}

impl Index for u16 {
    #[inline(always)]
    fn at(self) -> usize {
        usize::from(self)
    }
    #[inline(always)]
    unsafe fn four(ptr: *const Self) -> [usize; 4] {
        // One load instead of four: loads are what a gather is bound by.
        // SAFETY: the caller vouches for four reads, eight bytes.
        unsafe {
            if cfg!(target_endian = "little") {
                let word = ptr.cast::<u64>().read_unaligned();
                [0, 16, 32, 48].map(|shift| (word >> shift) as usize & 0xffff)
            } else {
                ptr.cast::<[u16; 4]>().read_unaligned().map(usize::from)
            }
        }
    }
}

impl Index for u32 {
    #[inline(always)]
    fn at(self) -> usize {
        self as usize
    }
    #[inline(always)]
    unsafe fn four(ptr: *const Self) -> [usize; 4] {
        // SAFETY: the caller vouches for four reads.
        unsafe { ptr.cast::<[u32; 4]>().read_unaligned() }.map(|col| col as usize)
    }
}
