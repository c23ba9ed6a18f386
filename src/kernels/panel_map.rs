//! Where the features of the blocks of a stack lie.

/// Where the features of a stack of `rows x cols` blocks lie.
///
/// The columns of a block are contiguous: column `j` of block `b` is feature `b * cols + j`, or `b * col_stride + j` where
/// blocks lie apart. The row side may be interleaved in
/// groups of `group` rows: row `i` of block `b` is feature `(i / group * blocks + b) * group + i % group`. With
/// `group = rows` that is contiguous too; with `group = 1` it is the transposing permutation of a Monarch matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PanelMap {
    pub(crate) blocks: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(super) group: usize,
    /// Features from the first column of a block to that of the next.
    pub(super) col_stride: usize,
}

impl PanelMap {
    /// Blocks one after the other on both sides.
    pub fn contiguous(blocks: usize, rows: usize, cols: usize) -> Self {
        Self { blocks, rows, cols, group: rows.max(1), col_stride: cols }
    }

    /// Rows interleaved in groups. Panics unless `group` divides `rows`.
    pub fn interleaved(blocks: usize, rows: usize, cols: usize, group: usize) -> Self {
        assert!(group > 0 && rows.is_multiple_of(group));
        Self { blocks, rows, cols, group, col_stride: cols }
    }

    /// The same with the first column of each block `stride` features after that of the one before. Panics when blocks are wider.
    pub(crate) fn with_col_stride(self, stride: usize) -> Self {
        assert!(self.cols <= stride);
        Self { col_stride: stride, ..self }
    }

    /// Feature of column `j` of block `b`.
    #[inline(always)]
    pub(super) fn col_feature(&self, b: usize, j: usize) -> usize {
        b * self.col_stride + j
    }

    /// Features of the rows and of the columns, with those between blocks.
    pub(crate) fn features(&self) -> (usize, usize) {
        (self.blocks * self.rows, self.blocks * self.col_stride)
    }

    /// Feature of row `i` of block `b`.
    #[inline(always)]
    pub(super) fn row_feature(&self, b: usize, i: usize) -> usize {
        // Divisions cost more than the product with a short row.
        match self.group {
            1 => i * self.blocks + b,
            group if group == self.rows => b * group + i,
            group => (i / group * self.blocks + b) * group + i % group,
        }
    }

    /// The features of all rows, block by block.
    pub(crate) fn row_features(self) -> impl Iterator<Item = usize> {
        (0..self.blocks).flat_map(move |b| (0..self.rows).map(move |i| self.row_feature(b, i)))
    }

    /// Whether rows `i .. i + len` of a block are consecutive features.
    #[inline(always)]
    pub(super) fn consecutive(&self, i: usize, len: usize) -> bool {
        self.rows_contiguous() || i % self.group + len <= self.group
    }

    /// Whether the rows of a block are consecutive features.
    #[inline(always)]
    pub(crate) fn rows_contiguous(&self) -> bool {
        self.group == self.rows
    }
}
