//! Where the values of a sparse matrix stand: checked once, so that products need not.

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
    counts: Option<Counts>,
}

/// Rows for which a table of inputs is made.
pub(super) const GROUP: usize = 8;
/// Lengths of tables, and values of a row for each, about, from which on they beat shorter ones, or single loads. About half of a vector's
/// lanes is best: some of the rows have more.
const TILES: [(usize, usize); 2] = [(32, 5), (64, 5)];

/// How many values each row has in each tile of the inputs: group after group of rows, tile after tile, row after row, zero for rows that
/// are missing in the last group.
#[derive(Debug, Clone, PartialEq)]
struct Counts {
    /// Inputs of a tile.
    tile: usize,
    counts: Vec<u8>,
    /// Values of the longest group.
    longest: usize,
}

impl Counts {
    /// Of checked lists; `None` where rows have too few values.
    fn new(width: usize, starts: &[u32], cols: &[u16]) -> Option<Self> {
        let rows = starts.len() - 1;
        let enough = |&(tile, least): &(usize, usize)| {
            !cols.is_empty() && cols.len() / least >= rows.saturating_mul(width.div_ceil(tile))
        };
        let (tile, _) = TILES.into_iter().find(enough)?;
        let tiles = width.div_ceil(tile);
        let mut counts = vec![0; rows.next_multiple_of(GROUP) * tiles];
        for (i, row) in starts.windows(2).enumerate() {
            for col in &cols[row[0] as usize..row[1] as usize] {
                counts[(i / GROUP * tiles + usize::from(*col) / tile) * GROUP + i % GROUP] += 1;
            }
        }
        let group = |first: usize| starts[rows.min(first + GROUP)] - starts[first];
        let longest = (0..rows).step_by(GROUP).map(group).max().unwrap_or(0);
        Some(Self { tile, counts, longest: longest as usize })
    }
}

/// Columns of all values, and what is known of those of some rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) cols: &'a [u16],
    /// As many for each group of rows.
    pub(super) counts: &'a [u8],
    pub(super) longest: usize,
    /// Inputs of a tile, and how many tiles there are.
    pub(super) tile: usize,
    pub(super) tiles: usize,
}

impl Tables<'_> {
    /// Of the first `rows` rows, a whole number of groups, and of the others.
    pub(super) fn split(self, rows: usize) -> (Self, Self) {
        let (left, right) = self.counts.split_at(rows * self.tiles);
        (Self { counts: left, ..self }, Self { counts: right, ..self })
    }
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
        let counts = match &columns {
            Columns::Narrow(cols) => Counts::new(width, &starts, cols),
            Columns::Wide(_) => None,
        };
        Some(Self { width, starts, columns, counts })
    }

    /// Where rows have enough values, for products that look inputs up.
    pub(super) fn tables(&self) -> Option<Tables<'_>> {
        let (Columns::Narrow(cols), Some(known)) = (&self.columns, &self.counts) else { return None };
        let &Counts { tile, ref counts, longest } = known;
        Some(Tables { cols, counts, longest, tile, tiles: self.width.div_ceil(tile) })
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

    /// All columns, as files hold them.
    pub(crate) fn cols(&self) -> Cow<'_, [u32]> {
        match &self.columns {
            Columns::Narrow(cols) => cols.iter().map(|&col| u32::from(col)).collect(),
            Columns::Wide(cols) => Cow::Borrowed(cols),
        }
    }

    /// All positions, row by row.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let col = |p: usize| match &self.columns {
            Columns::Narrow(cols) => usize::from(cols[p]),
            Columns::Wide(cols) => cols[p] as usize,
        };
        let range = |i: usize| -> Range<usize> { self.starts[i] as usize..self.starts[i + 1] as usize };
        (0..self.rows()).flat_map(move |i| range(i).map(move |p| (i, col(p))))
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
