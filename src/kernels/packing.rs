//! Where the numbers of a stack of blocks lie when they are packed in panels.
//!
//! A panel holds [`PANEL`] *lanes* of a block (its rows, or its columns), the last one what is left of them. For each step along the other side, its *depth*, the numbers of all
//! lanes lie side by side, so that a product reads one stream. Nothing is padded: vectors that reach beyond a narrow panel see the next
//! step's numbers in lanes that are dropped, and [`SLACK`] numbers beyond the last one may be read.
//!
//! Blocks too narrow to fill a vector share panels: the lanes are those of all blocks, in the order of their features.
//!
//! Integer codes have a scale for each [`GROUP`] numbers of a row. Where lanes are rows, a panel has a row of scales for each group of steps; where
//! they are columns, the lanes of a panel are one group, and each step has one scale, by which its input is multiplied. Vectors of lanes then find
//! ones after the last scale.

use super::panel_map::PanelMap;
use crate::storage::GROUP;
use std::num::NonZeroU32;
use std::ops::Range;

/// Lanes of a panel: a multiple of every vector length, and a group of scales.
pub(crate) const PANEL: usize = 32;
const _: () = assert!(PANEL == GROUP);

/// Numbers that may be read beyond the last one: those of the widest vector.
pub(crate) const SLACK: usize = 16;

/// Fewest lanes worth a panel.
pub(super) const FEWEST: usize = 16;

/// Most steps of blocks that share panels: with more, sums over a row's vectors cost less than an own input for each lane.
const MOST_SHARED: usize = 128;

/// Whether columns `columns` of `cols` can be used by themselves, however they are packed: nothing is cut inside a panel or a group of scales.
pub(super) fn between_panels(columns: Range<usize>, cols: usize) -> bool {
    let between = |column: usize| column == cols || column.is_multiple_of(PANEL);
    columns.start <= columns.end && columns.end <= cols && between(columns.start) && between(columns.end)
}

/// The side of a block that lies in the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lanes {
    Rows,
    Cols,
}

/// How a stack of `blocks` matrices of `rows x cols` is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    pub(crate) blocks: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) lanes: Lanes,
    /// Two numbers share a byte, so that panels have an even number of lanes.
    pub(crate) paired: bool,
    /// How blocks share the panels. They count as one block here.
    shared: Option<Shared>,
}

/// Blocks that share panels, in few bytes: a packing is copied with each product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shared {
    blocks: NonZeroU32,
    /// Lanes of a block that stay together.
    group: NonZeroU32,
    /// Features of a block on the other side that stay together.
    step_group: NonZeroU32,
}

impl Shared {
    /// `None` for empty or huge stacks.
    fn of(stack: PanelMap, lanes: Lanes) -> Option<Self> {
        let (group, step_group) = match lanes {
            Lanes::Rows => (stack.group, stack.cols),
            Lanes::Cols => (stack.cols, stack.group),
        };
        let few = |number: usize| NonZeroU32::new(u32::try_from(number).ok()?);
        Some(Self { blocks: few(stack.blocks)?, group: few(group)?, step_group: few(step_group)? })
    }
}

impl Packing {
    /// `None` where panels would be narrow.
    pub(crate) fn new(
        (blocks, rows, cols): (usize, usize, usize),
        lanes: Lanes,
        paired: bool,
    ) -> Option<Self> {
        let packing = Self { blocks, rows, cols, lanes, paired, shared: None };
        let worth = packing.n_lanes() >= FEWEST && packing.depth() > 0 && blocks > 0;
        worth.then_some(packing)
    }

    /// Panels shared by the blocks of a stack; `None` where they are wide enough by themselves, or long, or lanes have groups of scales.
    pub(crate) fn shared(stack: PanelMap, lanes: Lanes, scaled: bool, paired: bool) -> Option<Self> {
        let PanelMap { blocks, rows, cols, .. } = stack;
        let (shared, (own, depth)) =
            (Shared::of(stack, lanes)?, if lanes == Lanes::Rows { (rows, cols) } else { (cols, rows) });
        let all = blocks * own;
        let (rows, cols) = if lanes == Lanes::Rows { (all, depth) } else { (depth, all) };
        let narrow = blocks > 1 && own < FEWEST && all >= FEWEST;
        let consecutive = shared.step_group.get() as usize == depth;
        let worth = narrow && depth <= if consecutive { MOST_SHARED } else { GROUP };
        // Where two numbers share a byte, groups of all blocks start at whole bytes.
        let odd = paired && !(blocks * shared.group.get() as usize).is_multiple_of(2);
        let packing = Self { blocks: 1, rows, cols, lanes, paired, shared: Some(shared) };
        (worth && !odd && !(scaled && lanes == Lanes::Cols)).then_some(packing)
    }

    /// Whether blocks share panels.
    #[inline(always)]
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// The blocks that share the panels, their lanes as rows.
    #[inline(always)]
    pub(crate) fn shared_map(&self) -> Option<PanelMap> {
        let Shared { blocks, group, .. } = self.shared?;
        let (blocks, group) = (blocks.get() as usize, group.get() as usize);
        let (rows, cols) = (self.n_lanes() / blocks, self.depth());
        Some(PanelMap { blocks, rows, cols, group, col_stride: cols })
    }

    /// Whether these are the blocks that share the panels.
    #[inline(always)]
    pub(crate) fn shares(&self, stack: PanelMap) -> bool {
        let (rows, cols) = if self.lanes == Lanes::Rows { (1, stack.blocks) } else { (stack.blocks, 1) };
        self.shared == Shared::of(stack, self.lanes)
            && stack.col_stride == stack.cols
            && (self.rows * rows, self.cols * cols) == (stack.rows * stack.blocks, stack.cols * stack.blocks)
    }

    /// Where the features of the blocks that share the panels lie on the side of the steps.
    #[inline(always)]
    pub(crate) fn step_map(&self) -> Option<PanelMap> {
        let map = self.shared_map()?;
        let group = self.shared?.step_group.get() as usize;
        Some(PanelMap { rows: map.cols, cols: map.rows, group, col_stride: map.rows, ..map })
    }

    /// Block, lane and step of the number at `(row, col)` of the blocks one below the other.
    #[inline(always)]
    fn place(&self, row: usize, col: usize) -> (usize, usize, usize) {
        let Some(map) = self.shared_map() else {
            let (block, row) = (row / self.rows, row % self.rows);
            return if self.lanes == Lanes::Rows { (block, row, col) } else { (block, col, row) };
        };
        if self.lanes == Lanes::Rows {
            (0, map.row_feature(row / map.rows, row % map.rows), col)
        } else {
            (0, map.row_feature(row / map.cols, col), row % map.cols)
        }
    }

    /// Lanes of a block.
    #[inline(always)]
    pub(crate) fn n_lanes(&self) -> usize {
        if self.lanes == Lanes::Rows { self.rows } else { self.cols }
    }

    /// Steps of a panel.
    #[inline(always)]
    pub(crate) fn depth(&self) -> usize {
        if self.lanes == Lanes::Rows { self.cols } else { self.rows }
    }

    /// Lanes of a block, with the one that completes a pair.
    #[inline(always)]
    fn stored(&self) -> usize {
        self.n_lanes() + usize::from(self.paired && !self.n_lanes().is_multiple_of(2))
    }

    /// First number of the panel that starts at `lane`, and its width.
    #[inline(always)]
    pub(crate) fn panel(&self, block: usize, lane: usize) -> (usize, usize) {
        let stored = self.stored();
        ((block * stored + lane) * self.depth(), PANEL.min(stored - lane))
    }

    /// First scale of the panel that starts at `lane`: each group of steps has one per lane, or each step has one.
    #[inline(always)]
    pub(crate) fn panel_scales(&self, block: usize, lane: usize) -> usize {
        match self.lanes {
            Lanes::Rows => (block * self.stored() + lane) * self.depth().div_ceil(GROUP),
            Lanes::Cols => (block * self.n_lanes().div_ceil(GROUP) + lane / GROUP) * self.depth(),
        }
    }

    /// Where a panel of ones lies, for lanes whose steps have the scales.
    #[inline(always)]
    pub(crate) fn ones(&self) -> usize {
        self.panel_scales(self.blocks, 0)
    }

    /// Numbers, without the slack.
    pub(crate) fn len(&self) -> usize {
        self.blocks * self.stored() * self.depth()
    }

    /// Scales, without the slack.
    pub(crate) fn scales_len(&self) -> usize {
        self.ones() + if self.lanes == Lanes::Cols { PANEL } else { 0 }
    }

    /// Where the number at `(row, col)` of the blocks one below the other lies.
    #[inline(always)]
    pub(crate) fn index(&self, row: usize, col: usize) -> usize {
        let (block, lane, step) = self.place(row, col);
        let (first, width) = self.panel(block, lane / PANEL * PANEL);
        first + step * width + lane % PANEL
    }

    /// How many numbers of a row, from the one at `(row, col)` on, lie at equal distances, and that distance.
    #[inline(always)]
    pub(crate) fn run(&self, row: usize, col: usize) -> (usize, usize) {
        match self.lanes {
            _ if self.is_shared() => (1, 1),
            Lanes::Rows => (self.cols - col, self.panel(0, row % self.rows / PANEL * PANEL).1),
            Lanes::Cols => (PANEL - col % PANEL, 1),
        }
    }

    /// Where its scale lies.
    #[inline(always)]
    pub(crate) fn scale_index(&self, row: usize, col: usize) -> usize {
        let (block, lane, step) = self.place(row, col);
        let first = lane / PANEL * PANEL;
        let scales = self.panel_scales(block, first);
        match self.lanes {
            Lanes::Rows => scales + col / GROUP * self.panel(block, first).1 + lane % PANEL,
            Lanes::Cols => scales + step,
        }
    }
}
