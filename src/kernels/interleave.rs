//! Rows of blocks one after the other, dealt out in turns.

use super::level::{Kernel, Level};
use super::simd::{Simd, shuffle};
use super::view::{Rows, RowsMut};
use crate::matrix::Update;
use crate::scalar::Scalar;

/// `y[i * blocks + b] (+)= x[b * rows + i]` in each row, for as many features as `y` has. Panics when `x` has fewer, or no whole blocks.
pub(crate) fn interleave<T: Scalar>(
    blocks: usize,
    x: Rows<'_, T>,
    y: RowsMut<'_, T>,
    update: Update,
    level: Level,
) {
    assert!(x.rows() == y.rows() && y.cols() <= x.cols() && x.cols().is_multiple_of(blocks));
    T::dispatch(level, Interleave { blocks, x, y, update });
}

struct Interleave<'a, T> {
    blocks: usize,
    x: Rows<'a, T>,
    y: RowsMut<'a, T>,
    update: Update,
}

impl<T: Scalar> Kernel<T> for Interleave<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(mut self, simd: S) {
        for row in 0..self.x.rows() {
            let (x, y) = (self.x.row(row), self.y.row(row));
            let done = match self.blocks {
                2 => vectors::<T, S, 2>(simd, x, y, self.update),
                4 => vectors::<T, S, 4>(simd, x, y, self.update),
                8 => vectors::<T, S, 8>(simd, x, y, self.update),
                16 => vectors::<T, S, 16>(simd, x, y, self.update),
                _ => 0,
            };
            let rows = x.len() / self.blocks;
            for (i, turn) in y.chunks_mut(self.blocks).enumerate().skip(done) {
                for (b, y) in turn.iter_mut().enumerate() {
                    let x = x[b * rows + i];
                    *y = if self.update == Update::Overwrite { x } else { *y + x };
                }
            }
        }
    }
}

/// As many turns as whole vectors hold; returns their number.
#[inline(always)]
fn vectors<T: Scalar, S: Simd<T>, const N: usize>(simd: S, x: &[T], y: &mut [T], update: Update) -> usize {
    let (rows, turns) = (x.len() / N, y.len() / N / S::LANES * S::LANES);
    for i in (0..turns).step_by(S::LANES) {
        // SAFETY: `i + LANES <= turns`, and `turns` times N is at most the length of y, which x has too.
        unsafe {
            let blocks: [S::V; N] = super::simd::vectors(simd, |b| simd.load(x.as_ptr().add(b * rows + i)));
            let mixed = shuffle(simd, blocks, N.ilog2());
            for (v, mixed) in mixed.into_iter().enumerate() {
                let out = y.as_mut_ptr().add(i * N + v * S::LANES);
                let overwrite = update == Update::Overwrite;
                simd.store(out, if overwrite { mixed } else { simd.add(simd.load(out), mixed) });
            }
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_go_where_they_belong_at_every_level() {
        fn check<T: Scalar>(level: Level, blocks: usize, rows: usize, cut: usize) {
            let features = blocks * rows;
            let x: Vec<T> = (0..2 * features).map(|i| T::narrow(i as f64)).collect();
            for update in [Update::Overwrite, Update::Accumulate] {
                let before = if update == Update::Overwrite { f64::NAN } else { 1.0 };
                let mut y = vec![T::narrow(before); 2 * features];
                let (xs, ys) =
                    (Rows::new(&x, 2, features, features), RowsMut::new(&mut y, 2, features - cut, features));
                interleave(blocks, xs, ys, update, level);
                for (k, y) in y.iter().enumerate() {
                    let (row, feature) = (k / features, k % features);
                    let from = x[row * features + feature % blocks * rows + feature / blocks].widen();
                    let expected = match (feature < features - cut, update) {
                        (false, _) => before,
                        (true, Update::Overwrite) => from,
                        (true, Update::Accumulate) => from + 1.0,
                    };
                    assert!(y.widen() == expected || expected.is_nan() && y.widen().is_nan());
                }
            }
        }
        for level in Level::available() {
            for (blocks, rows) in [(1, 5), (2, 33), (3, 17), (4, 96), (8, 40), (16, 16), (16, 19)] {
                for cut in [0, 1, blocks] {
                    check::<f32>(level, blocks, rows, cut);
                    check::<f64>(level, blocks, rows, cut);
                }
            }
        }
    }
}
