//! Products with a matrix in compressed sparse rows, for values in any storage.
//!
//! Values are decoded a chunk at a time. Small batches gather (or scatter) single numbers; larger ones are transposed to tiles
//! of [`LANES`] batch rows, so that one decoded value meets one or a few vectors of contiguous numbers.

use super::level::Kernel;
use super::simd::Simd;
use super::source::Source;
use super::view::{Rows, RowsMut};
use crate::exec::Policy;
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use std::ops::Range;

/// Batch rows of a tile.
const LANES: usize = 16;
/// Batches below this are multiplied row by row: a tile would be mostly padding.
const TILED_BATCH: usize = 4;
/// Values decoded at a time; a multiple of every vector length.
const CHUNK: usize = 64;

/// Where the values of a sparse matrix stand: row `i` holds values `starts[i]..starts[i + 1]`, in columns `cols` of those.
#[derive(Debug, Clone, Copy)]
pub struct Csr<'a> {
    pub(crate) starts: &'a [u32],
    pub(crate) cols: &'a [u32],
}

impl Csr<'_> {
    fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    #[inline(always)]
    fn range(&self, row: usize) -> Range<usize> {
        self.starts[row] as usize..self.starts[row + 1] as usize
    }
}

/// Scratch entries of [`multiply_sparse`] for an `out x in` matrix.
pub(crate) fn sparse_scratch_len(batch: usize, out: usize, inp: usize) -> usize {
    if batch < TILED_BATCH {
        0
    } else {
        batch.next_multiple_of(LANES).saturating_mul(out.saturating_add(inp))
    }
}

/// What to multiply with a sparse matrix.
#[derive(Debug)]
pub struct SparseProduct<'a, T> {
    pub(crate) csr: Csr<'a>,
    pub(crate) op: Op,
    pub(crate) x: Rows<'a, T>,
    pub(crate) y: RowsMut<'a, T>,
    pub(crate) update: Update,
    /// [`sparse_scratch_len`] entries.
    pub(crate) scratch: &'a mut [T],
    pub(crate) policy: Policy,
}

/// `Y (+)= X Aᵀ` (forward) or `Y (+)= X A` (transposed) for the sparse matrix of these values. Panics when the operands do not
/// fit.
pub(crate) fn multiply_sparse<T: Scalar, W: Source>(source: W, product: SparseProduct<'_, T>) {
    let SparseProduct { csr, op, x, mut y, update, scratch, policy } = product;
    assert!(source.rows() == 1 && source.cols() == csr.cols.len() && x.rows() == y.rows());
    assert!(csr.rows() == op.order(y.cols(), x.cols()).0);
    let tasks = policy.tasks(csr.cols.len().saturating_mul(x.rows()));
    if op == Op::Transpose && update == Update::Overwrite {
        y.fill(T::default());
    }
    let (batch, inputs, outputs) = (x.rows(), x.cols(), y.cols());
    let job = Job { source, csr, policy };
    match op {
        Op::Forward if batch < TILED_BATCH => job.forward(0, Inputs::Rows(x), y, update, tasks),
        Op::Forward => {
            let tiles = &mut scratch[..batch.next_multiple_of(LANES) * inputs];
            for (t, tile) in tiles.chunks_exact_mut((LANES * inputs).max(1)).enumerate() {
                interleave(x, t * LANES, tile);
            }
            job.forward(0, Inputs::Tiles(tiles), y, update, tasks);
        }
        Op::Transpose if batch < TILED_BATCH => {
            T::dispatch(policy.level, Scatter { source, csr, x, y });
        }
        Op::Transpose => {
            let len = batch.next_multiple_of(LANES) * (inputs + outputs);
            job.transpose(x, y, &mut scratch[..len], tasks);
        }
    }
}

/// Batch rows `first..first + LANES` of `x`, those beyond its end as zeros, feature by feature.
fn interleave<T: Scalar>(x: Rows<'_, T>, first: usize, tile: &mut [T]) {
    for lane in 0..LANES {
        let to = tile.iter_mut().skip(lane).step_by(LANES);
        if first + lane < x.rows() {
            to.zip(x.row(first + lane)).for_each(|(to, from)| *to = *from);
        } else {
            to.for_each(|to| *to = T::default());
        }
    }
}

#[derive(Clone, Copy)]
enum Inputs<'a, T> {
    Rows(Rows<'a, T>),
    Tiles(&'a [T]),
}

#[derive(Clone, Copy)]
struct Job<'a, W> {
    source: W,
    csr: Csr<'a>,
    policy: Policy,
}

impl<W: Source> Job<'_, W> {
    /// Rows of the matrix from `first` on, as many as `y` has columns, split where half of the values lie.
    fn forward<T: Scalar>(
        self,
        first: usize,
        x: Inputs<'_, T>,
        y: RowsMut<'_, T>,
        update: Update,
        tasks: usize,
    ) {
        let starts = &self.csr.starts[first..=first + y.cols()];
        let middle = starts[0] + (starts[starts.len() - 1] - starts[0]) / 2;
        let at = starts.partition_point(|&start| start < middle).min(y.cols());
        if tasks < 2 || at == 0 || at == y.cols() {
            let Self { source, csr, policy } = self;
            return T::dispatch(policy.level, Gather { source, csr, first, x, y, update });
        }
        let (left, right) = y.split_columns(at);
        let half = tasks / 2;
        super::team::join(
            || self.forward(first, x, left, update, tasks - half),
            || self.forward(first + at, x, right, update, half),
        );
    }

    /// All of the matrix for the batch rows of `x`, split between tiles; adds to `y`.
    fn transpose<T: Scalar>(self, x: Rows<'_, T>, y: RowsMut<'_, T>, scratch: &mut [T], tasks: usize) {
        let (batch, width) = (x.rows(), x.cols() + y.cols());
        let at = (batch / 2).next_multiple_of(LANES);
        if tasks >= 2 && at < batch {
            let ((top, bottom), half) = (y.split_batch(at), tasks / 2);
            let (left, right) = scratch.split_at_mut(at * width);
            let (x_top, x_bottom) = (x.batch(0..at), x.batch(at..batch));
            super::team::join(
                || self.transpose(x_top, top, left, tasks - half),
                || self.transpose(x_bottom, bottom, right, half),
            );
            return;
        }
        let Self { source, csr, policy } = self;
        T::dispatch(policy.level, ScatterTiles { source, csr, x, y, scratch });
    }
}

/// The values of a stream, decoded as they are asked for.
struct Decoder<T, W> {
    source: W,
    chunk: usize,
    values: [T; CHUNK],
}

impl<T: Scalar, W: Source> Decoder<T, W> {
    fn new(source: W) -> Self {
        Self { source, chunk: usize::MAX, values: [T::default(); CHUNK] }
    }

    /// Hands values `range` and the matching part of `cols` to `work`, in pieces.
    #[inline(always)]
    fn pieces<S: Simd<T>>(
        &mut self,
        simd: S,
        range: Range<usize>,
        cols: &[u32],
        mut work: impl FnMut(&[T], &[u32]),
    ) {
        let mut from = range.start;
        while from < range.end {
            let chunk = from / CHUNK;
            if chunk != self.chunk {
                self.decode(simd, chunk);
            }
            let to = range.end.min((chunk + 1) * CHUNK);
            work(&self.values[from - chunk * CHUNK..to - chunk * CHUNK], &cols[from..to]);
            from = to;
        }
    }

    #[inline(always)]
    fn decode<S: Simd<T>>(&mut self, simd: S, chunk: usize) {
        let first = chunk * CHUNK;
        let count = CHUNK.min(self.source.cols() - first);
        for j in (0..count).step_by(S::LANES) {
            // SAFETY: the one row of the source has column first + j; whole vectors are loaded where LANES columns are left.
            // CHUNK is a multiple of LANES, so the store ends inside `values`.
            unsafe {
                let v = if j + S::LANES <= count {
                    self.source.load(simd, 0, first + j)
                } else {
                    self.source.load_tail(simd, 0, first + j)
                };
                simd.store(self.values.as_mut_ptr().add(j), v);
            }
        }
        self.chunk = chunk;
    }
}

/// Some rows of the matrix times every batch row.
struct Gather<'a, T, W> {
    source: W,
    csr: Csr<'a>,
    first: usize,
    x: Inputs<'a, T>,
    y: RowsMut<'a, T>,
    update: Update,
}

#[inline(always)]
fn put<T: Scalar>(y: &mut T, value: T, update: Update) {
    match update {
        Update::Overwrite => *y = value,
        Update::Accumulate => *y += value,
    }
}

impl<T: Scalar, W: Source> Kernel<T> for Gather<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { source, csr, first, x, mut y, update } = self;
        let mut decoder = Decoder::new(source);
        let (batch, rows) = (y.rows(), y.cols());
        match x {
            Inputs::Rows(x) => {
                for b in 0..batch {
                    let (x, y) = (x.row(b), y.row(b));
                    for (i, y) in y.iter_mut().enumerate() {
                        let mut sums = [T::default(); 4];
                        decoder.pieces(simd, csr.range(first + i), csr.cols, |values, cols| {
                            let (values4, values1) = values.as_chunks::<4>();
                            let (cols4, cols1) = cols.as_chunks::<4>();
                            for (v, j) in values4.iter().zip(cols4) {
                                for k in 0..4 {
                                    sums[k] += v[k] * x[j[k] as usize];
                                }
                            }
                            for (v, j) in values1.iter().zip(cols1) {
                                sums[0] += *v * x[*j as usize];
                            }
                        });
                        put(y, (sums[0] + sums[1]) + (sums[2] + sums[3]), update);
                    }
                }
            }
            Inputs::Tiles(tiles) => {
                let len = tiles.len() / batch.div_ceil(LANES);
                for t in 0..batch.div_ceil(LANES) {
                    let (x, _) = tiles[t * len..(t + 1) * len].as_chunks::<LANES>();
                    for i in 0..rows {
                        let mut sums = [T::default(); LANES];
                        decoder.pieces(simd, csr.range(first + i), csr.cols, |values, cols| {
                            for (v, j) in values.iter().zip(cols) {
                                let x = &x[*j as usize];
                                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += *v * *x);
                            }
                        });
                        for (lane, b) in (t * LANES..batch.min((t + 1) * LANES)).enumerate() {
                            put(&mut y.row(b)[i], sums[lane], update);
                        }
                    }
                }
            }
        }
    }
}

/// The transposed product of few batch rows; adds to `y`.
struct Scatter<'a, T, W> {
    source: W,
    csr: Csr<'a>,
    x: Rows<'a, T>,
    y: RowsMut<'a, T>,
}

impl<T: Scalar, W: Source> Kernel<T> for Scatter<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { source, csr, x, mut y } = self;
        let mut decoder = Decoder::new(source);
        for b in 0..x.rows() {
            let y = y.row(b);
            for (i, x) in x.row(b).iter().enumerate() {
                decoder.pieces(simd, csr.range(i), csr.cols, |values, cols| {
                    values.iter().zip(cols).for_each(|(v, j)| y[*j as usize] += *v * *x);
                });
            }
        }
    }
}

/// The transposed product of whole tiles; adds to `y`.
struct ScatterTiles<'a, T, W> {
    source: W,
    csr: Csr<'a>,
    x: Rows<'a, T>,
    y: RowsMut<'a, T>,
    scratch: &'a mut [T],
}

impl<T: Scalar, W: Source> Kernel<T> for ScatterTiles<'_, T, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        let Self { source, csr, x, mut y, scratch } = self;
        let (batch, inputs, outputs) = (x.rows(), x.cols(), y.cols());
        let mut decoder = Decoder::new(source);
        let (from, to) = scratch.split_at_mut(LANES * inputs);
        let to = &mut to[..LANES * outputs];
        for first in (0..batch).step_by(LANES) {
            interleave(x, first, from);
            to.fill(T::default());
            let (sums, _) = to.as_chunks_mut::<LANES>();
            for (i, x) in from.as_chunks::<LANES>().0.iter().enumerate() {
                decoder.pieces(simd, csr.range(i), csr.cols, |values, cols| {
                    for (v, j) in values.iter().zip(cols) {
                        let sums = &mut sums[*j as usize];
                        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += *v * *x);
                    }
                });
            }
            for (lane, b) in (first..batch.min(first + LANES)).enumerate() {
                y.row(b).iter_mut().zip(sums.iter()).for_each(|(y, sums)| *y += sums[lane]);
            }
        }
    }
}
