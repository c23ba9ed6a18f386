//! Batch rows shared between threads, each with scratch of its own: what a thread makes stays in the caches of its core, and none waits for another.

use crate::exec::{Parallelism, Policy, SCRATCH_ALIGN};
use crate::kernels::{ROWS_TOGETHER, Rows, RowsMut};
use crate::scalar::Scalar;
use std::ops::Range;

/// How batch rows are dealt out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares {
    pub(crate) count: usize,
    /// Rows that stay together; the last share may end with fewer.
    pub(crate) together: usize,
}

/// Entries of scratch of one share that needs `len`.
pub(crate) fn share_len(len: usize) -> usize {
    len.checked_next_multiple_of(SCRATCH_ALIGN).unwrap_or(usize::MAX)
}

/// Parts of nearly equal size, of `at_once` rows at most, that start at multiples of `together`, which divides `at_once`.
pub(crate) fn parts(rows: usize, at_once: usize, together: usize) -> impl Iterator<Item = Range<usize>> {
    let (parts, groups) = (rows.div_ceil(at_once), rows.div_ceil(together));
    let start = move |part: usize| rows.min(groups * part / parts * together);
    (0..parts).map(move |part| start(part)..start(part + 1))
}

impl Shares {
    /// A share for each of `tasks`, `most` at most, of rows that are multiplied together; and the policy of each, whose products the threads
    /// that are left divide.
    pub(crate) fn deal(tasks: usize, most: usize, policy: Policy) -> (Self, Policy) {
        let count = tasks.min(most);
        let parallelism = if count < tasks { Parallelism::Threads(tasks / count) } else { Parallelism::Seq };
        (Self { count, together: ROWS_TOGETHER }, Policy { parallelism, ..policy })
    }

    /// Calls `each` with the rows of every share in `x` and `y`, and its part of `scratch`.
    pub(crate) fn run<T: Scalar>(
        self,
        x: Rows<'_, T>,
        y: RowsMut<'_, T>,
        scratch: &mut [T],
        each: &(impl Fn(Rows<'_, T>, RowsMut<'_, T>, &mut [T]) + Sync),
    ) {
        let Self { count, together } = self;
        if count < 2 {
            return each(x, y, scratch);
        }
        let (rows, half) = (y.rows(), count / 2);
        let at = rows * half / count / together * together;
        let (top, bottom) = y.split_batch(at);
        let (first, second) = scratch.split_at_mut(scratch.len() / count * half);
        let part = |count| Self { count, together };
        crate::kernels::join(
            || part(half).run(x.batch(0..at), top, first, each),
            || part(count - half).run(x.batch(at..rows), bottom, second, each),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_none_is_short() {
        for (rows, at_once, together) in
            [(1, 8, 4), (8, 8, 4), (9, 8, 4), (33, 32, 8), (100, 32, 8), (0, 8, 8)]
        {
            let mut next = 0;
            for part in parts(rows, at_once, together) {
                assert!(part.start == next && part.len() <= at_once && part.start.is_multiple_of(together));
                assert!(part.len() >= together.min(rows));
                next = part.end;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn every_row_is_dealt_out_once_in_whole_groups() {
        for (rows, count, together) in [(1, 1, 8), (7, 3, 1), (16, 2, 8), (33, 2, 8), (64, 5, 8), (100, 6, 4)]
        {
            let x: Vec<f32> = (0..rows).map(|row| row as f32).collect();
            let (mut y, mut scratch) = (vec![0.0; rows], vec![0.0; count * share_len(1)]);
            Shares { count, together }.run(
                Rows::new(&x, rows, 1, 1),
                RowsMut::new(&mut y, rows, 1, 1),
                &mut scratch,
                &|x, mut y, scratch| {
                    assert!(scratch.len() >= share_len(1) && x.rows() == y.rows());
                    assert!(x.rows() == 0 || (x.row(0)[0] as usize).is_multiple_of(together));
                    for row in 0..x.rows() {
                        y.row(row)[0] += x.row(row)[0] + 1.0;
                    }
                },
            );
            assert!(y.iter().zip(&x).all(|(y, x)| *y == x + 1.0));
        }
    }
}
