//! Products for batches of one to three rows: weights are decoded into registers, where they meet a few batch rows at once.
//!
//! Each output is summed in the same order whatever tile computes it, so splits between threads change no bit.

// Tiles are arrays of constant size: with indices the compiler keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::gemm::Job;
use super::simd::{Simd, prefetch, vectors};
use super::source::Source;
use crate::matrix::Update;
use crate::scalar::Scalar;

/// Weights from which on fetching ahead gains more where they come from memory (two fifths) than it costs where they are cached (a tenth).
const CACHED: usize = 1 << 17;

/// Weights that no cache holds: more rows at a time keep more reads under way.
const STREAMED: usize = 1 << 22;

/// Columns of the output kept in the L1 cache while the rows of a transposed product stream by.
const COLUMNS: usize = 2048;

/// Dot products of weight rows with batch rows.
///
/// # Safety
/// The job's operands fit its map.
#[inline(always)]
pub(super) unsafe fn forward<T: Scalar, S: Simd<T>, W: Source>(simd: S, job: &Job<'_, T, W>) {
    let batch = job.x.rows();
    // The next rows are fetched while these are used: rows are too short for the machine to see streams in them.
    let weights = job.source.rows() * job.source.cols();
    let (ahead, streamed) = (weights >= CACHED, weights >= STREAMED);
    for block in job.blocks.clone() {
        let mut b = 0;
        while b < batch {
            // SAFETY: batch rows of the tile are in range.
            unsafe {
                b += match (batch - b, ahead) {
                    (1, false) => rows::<T, S, W, 4, 1, 2, false>(simd, job, block, b),
                    (1, true) if streamed => rows::<T, S, W, 8, 1, 1, true>(simd, job, block, b),
                    (1, true) => rows::<T, S, W, 4, 1, 2, true>(simd, job, block, b),
                    (_, false) => rows::<T, S, W, 4, 2, 1, false>(simd, job, block, b),
                    (_, true) => rows::<T, S, W, 4, 2, 1, true>(simd, job, block, b),
                };
            }
        }
    }
}

/// All outputs of `B` batch rows, `R` at a time. Returns `B`.
#[inline(always)]
unsafe fn rows<
    T: Scalar,
    S: Simd<T>,
    W: Source,
    const R: usize,
    const B: usize,
    const U: usize,
    const AHEAD: bool,
>(
    simd: S,
    job: &Job<'_, T, W>,
    block: usize,
    b: usize,
) -> usize {
    let outputs = &job.outputs;
    let whole = outputs.start + outputs.len() / R * R;
    // SAFETY: rows of the tile are in range by the loop bounds, batch rows by the caller's promise.
    unsafe {
        for row in (outputs.start..whole).step_by(R) {
            dot::<T, S, W, R, B, U, AHEAD>(simd, job, block, row, b);
        }
        for row in whole..outputs.end {
            dot::<T, S, W, 1, B, U, AHEAD>(simd, job, block, row, b);
        }
    }
    B
}

/// `R` weight rows times `B` batch rows, `U` accumulators for each pair.
#[inline(always)]
unsafe fn dot<
    T: Scalar,
    S: Simd<T>,
    W: Source,
    const R: usize,
    const B: usize,
    const U: usize,
    const AHEAD: bool,
>(
    simd: S,
    job: &Job<'_, T, W>,
    block: usize,
    row: usize,
    b: usize,
) {
    let cols = job.map.cols;
    let source_row = job.first + block * job.map.rows + row;
    let mut sums = [[[simd.zero(); U]; B]; R];
    // SAFETY: `b + B <= batch`, `row + R <= map.rows`; `x` rows hold the columns of all blocks.
    unsafe {
        let x: [*const T; B] =
            std::array::from_fn(|i| job.x.as_ptr().add((b + i) * job.x.stride() + job.input(block, 0)));
        let mut j = 0;
        while j + U * S::LANES <= cols {
            for u in 0..U {
                let at = j + u * S::LANES;
                let w: [S::V; R] = vectors(simd, |r| {
                    if AHEAD {
                        prefetch(job.source.address(source_row + R + r, at));
                    }
                    job.source.load(simd, source_row + r, at)
                });
                for i in 0..B {
                    let x = simd.load(x[i].add(at));
                    for r in 0..R {
                        sums[r][i][u] = simd.mul_add(w[r], x, sums[r][i][u]);
                    }
                }
            }
            j += U * S::LANES;
        }
        while j < cols {
            let whole = j + S::LANES <= cols;
            let xs: [S::V; B] = vectors(simd, |i| {
                if whole { simd.load(x[i].add(j)) } else { simd.load_part(x[i].add(j), cols - j) }
            });
            for r in 0..R {
                let w = if whole {
                    job.source.load(simd, source_row + r, j)
                } else {
                    job.source.load_tail(simd, source_row + r, j)
                };
                for i in 0..B {
                    sums[r][i][0] = simd.mul_add(w, xs[i], sums[r][i][0]);
                }
            }
            j += S::LANES;
        }
        for (r, sums) in sums.iter().enumerate() {
            let feature = job.map.row_feature(block, row + r);
            for (i, sums) in sums.iter().enumerate() {
                let mut total = sums[0];
                for more in &sums[1..] {
                    total = simd.add(total, *more);
                }
                let out = job.y.0.add((b + i) * job.y_stride + feature);
                *out = match job.update {
                    Update::Overwrite => simd.sum(total),
                    Update::Accumulate => *out + simd.sum(total),
                };
            }
        }
    }
}

/// Weight rows scaled by batch entries and added up.
///
/// # Safety
/// The job's operands fit its map.
#[inline(always)]
pub(super) unsafe fn transpose<T: Scalar, S: Simd<T>, W: Source>(simd: S, job: &Job<'_, T, W>) {
    let batch = job.x.rows();
    for block in job.blocks.clone() {
        for start in job.outputs.clone().step_by(COLUMNS) {
            let end = job.outputs.end.min(start + COLUMNS);
            let mut b = 0;
            while b < batch {
                // SAFETY: batch rows and columns are in range by the loop bounds.
                unsafe {
                    b += match batch - b {
                        1 => add_rows::<T, S, W, 8, 1>(simd, job, block, start, end, b),
                        _ => add_rows::<T, S, W, 4, 2>(simd, job, block, start, end, b),
                    };
                }
            }
        }
    }
}

/// All rows of a block for columns `start..end` of `B` batch rows, `R` weight rows at a time. Returns `B`.
#[inline(always)]
unsafe fn add_rows<T: Scalar, S: Simd<T>, W: Source, const R: usize, const B: usize>(
    simd: S,
    job: &Job<'_, T, W>,
    block: usize,
    start: usize,
    end: usize,
    b: usize,
) -> usize {
    let rows = job.map.rows;
    // SAFETY: as for the callee; at least one pass runs, so that overwriting writes.
    unsafe {
        let mut row = 0;
        let fresh = |row: usize| row == 0 && job.update == Update::Overwrite;
        if rows == 0 && fresh(0) {
            for i in b..b + B {
                (start..end)
                    .for_each(|j| *job.y.0.add(i * job.y_stride + job.output(block, j)) = T::default());
            }
        }
        while row + R <= rows {
            axpy::<T, S, W, R, B>(simd, job, block, row, start..end, b, fresh(row));
            row += R;
        }
        while row < rows {
            axpy::<T, S, W, 1, B>(simd, job, block, row, start..end, b, fresh(row));
            row += 1;
        }
    }
    B
}

/// Adds `R` weight rows to `B` outputs; `fresh` starts the sums at zero.
#[inline(always)]
unsafe fn axpy<T: Scalar, S: Simd<T>, W: Source, const R: usize, const B: usize>(
    simd: S,
    job: &Job<'_, T, W>,
    block: usize,
    row: usize,
    columns: std::ops::Range<usize>,
    b: usize,
    fresh: bool,
) {
    let source_row = job.first + block * job.map.rows + row;
    // SAFETY: `b + B <= batch`, `row + R <= map.rows`, `columns` inside `0..map.cols`.
    unsafe {
        let x: [[S::V; B]; R] = std::array::from_fn(|r| {
            let feature = job.map.row_feature(block, row + r);
            vectors(simd, |i| simd.splat(*job.x.as_ptr().add((b + i) * job.x.stride() + feature)))
        });
        let y: [*mut T; B] =
            std::array::from_fn(|i| job.y.0.add((b + i) * job.y_stride + job.output(block, 0)));
        let mut j = columns.start;
        while j + S::LANES <= columns.end {
            let w: [S::V; R] = vectors(simd, |r| {
                prefetch(job.source.address(source_row + R + r, j));
                job.source.load(simd, source_row + r, j)
            });
            for i in 0..B {
                let mut sum = if fresh { simd.zero() } else { simd.load(y[i].add(j)) };
                for r in 0..R {
                    sum = simd.mul_add(w[r], x[r][i], sum);
                }
                simd.store(y[i].add(j), sum);
            }
            j += S::LANES;
        }
        if j < columns.end {
            let left = columns.end - j;
            let w: [S::V; R] = vectors(simd, |r| job.source.load_tail(simd, source_row + r, j));
            for i in 0..B {
                let mut sum = if fresh { simd.zero() } else { simd.load_part(y[i].add(j), left) };
                for r in 0..R {
                    sum = simd.mul_add(w[r], x[r][i], sum);
                }
                simd.store_part(y[i].add(j), sum, left);
            }
        }
    }
}
