//! Where a flat block butterfly has its blocks.

use std::ops::Range;

/// The positions of the identity and of the stages of a block butterfly together, stretched over a grid of `rows x cols` blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlatButterfly {
    shape: (usize, usize),
    size: usize,
    strides: usize,
    /// Block rows and columns.
    grid: (usize, usize),
}

impl FlatButterfly {
    /// With blocks of `size x size` that differ in one of the `strides` lowest bits.
    pub(super) fn new(shape: (usize, usize), size: usize, strides: usize) -> Self {
        let size = size.max(1);
        Self { shape, size, strides, grid: (shape.0.div_ceil(size), shape.1.div_ceil(size)) }
    }

    /// Of the square grid that is stretched.
    fn side(&self) -> usize {
        self.grid.0.min(self.grid.1)
    }

    /// The columns that the rows of block row `row` keep, in ascending pieces.
    pub(super) fn columns(self, row: usize) -> impl Iterator<Item = Range<usize>> {
        let (side, (rows, cols)) = (self.side(), self.grid);
        let centre = if side == 0 { 0 } else { row * side / rows };
        let bits = self.strides.min(side.max(1).next_power_of_two().trailing_zeros() as usize);
        // Ascending: without one of its bits from the highest down, itself, and with one more from the lowest up.
        let flip = move |bit: usize| centre ^ 1 << bit;
        let below = (0..bits).rev().filter(move |bit| centre >> bit & 1 == 1).map(flip);
        let above = (0..bits).filter(move |bit| centre >> bit & 1 == 0).map(flip);
        let kept = below.chain(std::iter::once(centre)).chain(above).filter(move |j| *j < side);
        // Block columns that are stretched from j: those with `col * side / cols == j`.
        let first = move |j: usize| ((j * cols).div_ceil(side) * self.size).min(self.shape.1);
        kept.map(move |j| first(j)..first(j + 1))
    }

    /// How many positions there are.
    pub(super) fn positions(self) -> usize {
        let of = |row: usize| {
            let height = self.size.min(self.shape.0 - row * self.size);
            height.saturating_mul(self.columns(row).map(|piece| piece.len()).sum())
        };
        (0..self.grid.0).map(of).fold(0, usize::saturating_add)
    }
}
