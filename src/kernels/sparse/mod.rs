//! Products with a matrix in compressed sparse rows, for values in any storage.

mod pattern;
mod rows;
mod sliced;
mod tiles;
mod values;
mod window_tiles;
mod windows;

pub use pattern::Pattern;
pub(crate) use sliced::Before;
pub use sliced::Sliced;
pub use window_tiles::WindowTiles;
pub(crate) use windows::multiply_windows;
pub use windows::{WindowProduct, Windows};

use self::pattern::{Columns, Index};
use self::rows::{Gather, Scatter};
use self::tiles::{Backward, Forward, Interleave};
use self::values::{Stream, Values};
use super::level::Level;
use super::source::Source;
use super::view::{Rows, RowsMut};
use crate::exec::Policy;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;

/// Batches below this are multiplied row by row: a tile would be mostly padding.
const TILED_BATCH: usize = 4;
/// Lanes of the widest vector: what batches are padded to in scratch.
const LANES: usize = 16;

/// Scratch entries of [`multiply_sparse`] for an `out x in` matrix.
pub(crate) fn sparse_scratch_len(batch: usize, out: usize, inp: usize) -> usize {
    if batch < TILED_BATCH {
        batch.saturating_mul(sliced::input_len(inp))
    } else {
        batch.next_multiple_of(LANES).saturating_mul(out.saturating_add(inp))
    }
}

/// Multiply-adds of a dense product in the time that the product of a batch row with this pattern takes, about.
pub(crate) fn sparse_cost(pattern: &Pattern, op: Op, batch: usize) -> u64 {
    let (len, positions) = (pattern.len() as u64, pattern.rows().saturating_mul(pattern.width()));
    match (pattern.slots().filter(|_| !gathers(op, batch)), batch) {
        // One and a half dense vectors for a vector of slots in the caches, or five bytes for each beside four from memory; a few rows read a dense matrix once.
        (Some(slots), _) => {
            let quarters = if positions <= SHARED { 6 } else { 5 };
            quarters * slots as u64 / 4 * if batch > 1 { 2 } else { 1 }
        }
        (None, ..TILED_BATCH) if positions <= CACHED => 15 * len,
        (None, ..=8) => 5 * len,
        (None, _) => 3 * len,
    }
}

/// Whether products load their inputs one by one: what the [`Sliced`] form avoids, where a matrix has it.
pub(crate) fn gathers(op: Op, batch: usize) -> bool {
    !finds(op, batch, Level::detected())
}

fn finds(op: Op, batch: usize, level: Level) -> bool {
    op == Op::Forward && batch < TILED_BATCH && level.finds()
}

/// Whether a product may be made with the [`Sliced`] form.
pub(crate) fn takes_slices(pattern: &Pattern, op: Op, batch: usize, level: Level) -> bool {
    pattern.slots().is_some() && finds(op, batch, level)
}

/// Entries of a dense matrix that stays in a core's cache.
pub(crate) const CACHED: usize = 1 << 18;
/// Entries of one that stays in a cache that cores share.
const SHARED: usize = 1 << 20;

/// What to multiply with a sparse matrix.
#[allow(missing_debug_implementations)] // A function has none.
pub struct SparseProduct<'a, T> {
    pub(crate) pattern: &'a Pattern,
    /// The matrix in this form too, for small batches.
    pub(crate) sliced: Option<&'a Sliced<T>>,
    pub(crate) op: Op,
    pub(crate) x: Rows<'a, T>,
    pub(crate) y: RowsMut<'a, T>,
    pub(crate) update: Update,
    /// Runs for all outputs, on the threads that then multiply.
    pub(crate) before: Option<Before<'a, T>>,
    /// [`sparse_scratch_len`] entries.
    pub(crate) scratch: &'a mut [T],
    pub(crate) policy: Policy,
}

/// `Y (+)= X Aᵀ` (forward) or `Y (+)= X A` (transposed) for the sparse matrix of these values. Panics when the operands do not
/// fit.
pub(crate) fn multiply_sparse<T: Scalar, W: Source>(source: W, product: SparseProduct<'_, T>) {
    let SparseProduct { pattern, sliced, op, x, mut y, update, before, scratch, policy } = product;
    assert!(source.cols() == pattern.len() && x.rows() == y.rows());
    assert!((pattern.rows(), pattern.width()) == op.order(y.cols(), x.cols()));
    let values = Stream::new(source, policy.level);
    let by_positions = |x: Rows<'_, T>, y: RowsMut<'_, T>, scratch: &mut [T]| {
        let product =
            SparseProduct { pattern, sliced: None, op, x, y, update, before: None, scratch, policy };
        match pattern.columns() {
            Columns::Narrow(cols) => multiply(&values, cols, product),
            Columns::Wide(cols) => multiply(&values, cols, product),
        }
    };
    match sliced.filter(|_| takes_slices(pattern, op, x.rows(), policy.level)) {
        None => {
            if let Some(before) = before {
                before(0..y.cols(), y.reborrow());
            }
            by_positions(x, y, scratch);
        }
        Some(sliced) => {
            let finite = sliced.multiply(x, y.reborrow(), update, before, scratch, policy);
            for b in (0..x.rows()).filter(|&b| !finite[b]) {
                by_positions(x.batch(b..b + 1), y.reborrow().batch(b..b + 1), &mut []);
            }
        }
    }
}

fn multiply<T: Scalar, I: Index>(values: &dyn Values<T>, cols: &[I], product: SparseProduct<'_, T>) {
    let SparseProduct { pattern, op, x, mut y, update, scratch, policy, .. } = product;
    let (batch, inputs, outputs, starts) = (x.rows(), x.cols(), y.cols(), pattern.starts());
    let tasks = policy.tasks(pattern.len().saturating_mul(batch));
    // A batch that shorter vectors hold would leave half of the longest ones empty.
    let short = batch >= TILED_BATCH && batch * size_of::<T>() <= 32;
    let level = if short { policy.level.min(Level::Avx2) } else { policy.level };
    if op == Op::Transpose && update == Update::Overwrite {
        y.fill(T::default());
    }
    let job = Job { values, cols, level };
    match op {
        Op::Forward if batch < TILED_BATCH => job.forward(starts, Inputs::Rows(x), y, update, tasks),
        Op::Forward => {
            let tiles = &mut scratch[..batch.next_multiple_of(LANES) * inputs];
            T::dispatch(level, Interleave { x, tiles });
            job.forward(starts, Inputs::Tiles(tiles, inputs), y, update, tasks);
        }
        Op::Transpose if batch < TILED_BATCH => {
            T::dispatch(level, Scatter { values, starts, cols, x, y });
        }
        Op::Transpose => {
            let len = batch.next_multiple_of(LANES) * (inputs + outputs);
            job.transpose(starts, x, y, &mut scratch[..len], tasks);
        }
    }
}

/// Where half of what is counted lies, of starts and the number of all.
fn middle(starts: &[u32]) -> usize {
    let rows = starts.len() - 1;
    let half = starts[0].midpoint(starts[rows]);
    starts.partition_point(|&start| start < half).min(rows)
}

#[derive(Clone, Copy)]
enum Inputs<'a, T> {
    Rows(Rows<'a, T>),
    /// Written by [`Interleave`], for so many inputs.
    Tiles(&'a [T], usize),
}

struct Job<'a, T, I> {
    values: &'a dyn Values<T>,
    cols: &'a [I],
    level: Level,
}

impl<T: Scalar, I: Index> Job<'_, T, I> {
    /// The rows of `starts`, as many as `y` has columns, split where half of the values lie.
    fn forward(&self, starts: &[u32], x: Inputs<'_, T>, y: RowsMut<'_, T>, update: Update, tasks: usize) {
        let &Self { values, cols, level } = self;
        let at = middle(starts);
        if tasks < 2 || at == 0 || at == y.cols() {
            return match x {
                Inputs::Rows(x) => T::dispatch(level, Gather { values, starts, cols, x, y, update }),
                Inputs::Tiles(tiles, inputs) => {
                    T::dispatch(level, Forward { values, starts, cols, tiles, inputs, y, update });
                }
            };
        }
        let (left, right) = y.split_columns(at);
        let half = tasks / 2;
        super::team::join(
            || self.forward(&starts[..=at], x, left, update, tasks - half),
            move || self.forward(&starts[at..], x, right, update, half),
        );
    }

    /// All of the matrix for the batch rows of `x`, split between tiles; adds to `y`.
    fn transpose(&self, starts: &[u32], x: Rows<'_, T>, y: RowsMut<'_, T>, scratch: &mut [T], tasks: usize) {
        let (batch, width) = (x.rows(), x.cols() + y.cols());
        let at = (batch / 2).next_multiple_of(LANES);
        if tasks >= 2 && at < batch {
            let ((top, bottom), half) = (y.split_batch(at), tasks / 2);
            let (left, right) = scratch.split_at_mut(at * width);
            let (x_top, x_bottom) = (x.batch(0..at), x.batch(at..batch));
            super::team::join(
                || self.transpose(starts, x_top, top, left, tasks - half),
                move || self.transpose(starts, x_bottom, bottom, right, half),
            );
            return;
        }
        let &Self { values, cols, level } = self;
        T::dispatch(level, Backward { values, starts, cols, x, y, scratch });
    }
}
