//! Small batches where rows hold several values of each stretch of inputs, and the machine finds numbers in registers: the stretch is
//! held in registers as a table for a few rows of the matrix, and inputs are looked up there instead of loaded one by one.

use super::pattern::{GROUP, Tables};
use super::values::{BLOCK, Decoded, Values};
use crate::kernels::level::Kernel;
use crate::kernels::simd::{self, Simd, Table, prefetch};
use crate::kernels::view::{Rows, RowsMut};
use crate::matrix::Update;
use crate::scalar::Scalar;

/// Rows of the matrix, those of `starts`, times every batch row.
pub(super) struct LookUp<'a, T> {
    pub(super) values: &'a dyn Values<T>,
    pub(super) starts: &'a [u32],
    pub(super) tables: Tables<'a>,
    pub(super) x: Rows<'a, T>,
    pub(super) y: RowsMut<'a, T>,
    pub(super) update: Update,
}

impl<'a, T: Scalar> LookUp<'a, T> {
    /// Whether the values of each group can be read at once.
    pub(super) fn fits(values: &dyn Values<T>, tables: &Tables<'_>) -> bool {
        values.plain().is_some() || tables.longest <= BLOCK
    }

    /// Rows up to `at`, a whole number of groups, and the others.
    pub(super) fn split(self, at: usize) -> (Self, Self) {
        let Self { values, starts, tables, x, y, update } = self;
        let (left, right) = tables.split(at);
        let (y_left, y_right) = y.split_columns(at);
        (
            Self { values, starts: &starts[..=at], tables: left, x, y: y_left, update },
            Self { values, starts: &starts[at..], tables: right, x, y: y_right, update },
        )
    }
}

impl<T: Scalar> Kernel<T> for LookUp<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        if self.tables.tile == 32 { self.tiles::<S, 2>(simd) } else { self.tiles::<S, 4>(simd) }
    }
}

impl<T: Scalar> LookUp<'_, T> {
    /// With tables of `16 N` inputs.
    #[inline(always)]
    fn tiles<S: Simd<T>, const N: usize>(self, simd: S) {
        let Self { values, starts, tables: Tables { cols, counts, tile, tiles, .. }, x, mut y, update } =
            self;
        let (inputs, rows) = (x.cols(), y.cols());
        assert!(tile == 16 * N && tiles == inputs.div_ceil(tile) && starts.len() == rows + 1);
        assert!(counts.len() == tiles * rows.next_multiple_of(GROUP));
        let (mut decoded, plain) = (Decoded::new(values), values.plain());
        for (g, counts) in counts.chunks_exact((tiles * GROUP).max(1)).enumerate() {
            let first = g * GROUP;
            let n = GROUP.min(rows - first);
            let (start, end) = (starts[first] as usize, starts[first + n] as usize);
            // Eight rows are more streams than the machine foresees: the next group is fetched with this one, tile by tile.
            let piece = (end - start).div_ceil(tiles.max(1));
            let fetch_next = |t: usize| {
                let from = end + t * piece;
                if let Some(values) = plain {
                    fetch(values.as_ptr().wrapping_add(from).cast(), piece * size_of::<T>());
                }
                fetch(cols.as_ptr().wrapping_add(from).cast(), piece * size_of::<u16>());
            };
            let values = decoded.get(start..end);
            assert!(values.len() >= end - start && cols.len() >= end);
            for b in 0..y.rows() {
                let mut sums = [simd.zero(); GROUP];
                let mut at: [usize; GROUP] = std::array::from_fn(|r| starts[first + r.min(n)] as usize);
                for (t, counts) in counts.as_chunks::<GROUP>().0.iter().enumerate() {
                    let stretch = &x.row(b)[t * tile..inputs.min((t + 1) * tile)];
                    let table = Table::<_, _, N>::new(simd, stretch);
                    if b == 0 {
                        fetch_next(t);
                    }
                    // As many vectors for each row: where rows end cannot be foreseen.
                    let (mut left, most) = (*counts, counts.iter().fold(0, |most, count| most.max(*count)));
                    // Written out: sums that a variable indexes would stay in memory.
                    macro_rules! rows {
                        ($($r:literal)*) => {$({
                            let len = S::LANES.min(usize::from(left[$r]));
                            debug_assert!(at[$r] + len <= end);
                            // SAFETY: the counts of a row add up to its values, which end at `end`; those of this stretch lie in its
                            // columns, all checked when the pattern was made.
                            sums[$r] = unsafe {
                                let values = values.as_ptr().add(at[$r] - start);
                                simd.add_looked_up(sums[$r], values, cols.as_ptr().add(at[$r]), len, &table)
                            };
                            at[$r] += len;
                            left[$r] -= len as u8;
                        })*};
                    }
                    for _ in 0..usize::from(most).div_ceil(S::LANES) {
                        rows!(0 1 2 3 4 5 6 7);
                    }
                }
                let outputs = &mut y.row(b)[first..first + n];
                for (outputs, part) in outputs.chunks_mut(S::LANES).zip(sums.chunks(S::LANES)) {
                    let mut vectors = [simd.zero(); 16];
                    vectors[..part.len()].copy_from_slice(part);
                    let sums = simd::sums(simd, vectors);
                    // SAFETY: there are so many outputs, at most LANES.
                    unsafe {
                        let sums = match update {
                            Update::Overwrite => sums,
                            Update::Accumulate => {
                                simd.add(simd.load_part(outputs.as_ptr(), outputs.len()), sums)
                            }
                        };
                        simd.store_part(outputs.as_mut_ptr(), sums, outputs.len());
                    }
                }
            }
        }
    }
}

/// Asks for `len` bytes.
#[inline(always)]
fn fetch(ptr: *const u8, len: usize) {
    // Some lines without a question: a loop that ends anywhere is not foreseen.
    for line in 0..LINES {
        prefetch(ptr.wrapping_add(64 * line));
    }
    for at in (64 * LINES..len).step_by(64) {
        prefetch(ptr.wrapping_add(at));
    }
}

/// Cache lines asked for at least.
const LINES: usize = 4;

#[cfg(test)]
mod tests {
    use super::super::{Pattern, SparseProduct, multiply_sparse};
    use super::*;
    use crate::exec::Policy;
    use crate::kernels::Level;
    use crate::kernels::source;
    use crate::matrix::Op;

    struct Plain<T>(Vec<T>);

    impl<T: Scalar> Values<T> for Plain<T> {
        fn plain(&self) -> Option<&[T]> {
            Some(&self.0)
        }
        fn decode(&self, from: usize, out: &mut [T]) {
            out.copy_from_slice(&self.0[from..from + out.len()]);
        }
    }

    /// Small integers: every sum is exact, in any order.
    fn number(i: usize) -> f64 {
        ((i * 2_654_435_761) >> 7 & 7) as f64 - 3.0
    }

    /// About `keep` in `of` positions, none in column 2; the last row is empty.
    fn pattern((rows, width): (usize, usize), (keep, of): (usize, usize)) -> (Pattern, Vec<(usize, usize)>) {
        let mixed = |i: usize, j: usize| ((i * width + j) * 2_654_435_761) >> 9;
        let kept = |i: usize, j: usize| j != 2 && i + 1 != rows && mixed(i, j) % of < keep;
        let positions: Vec<(usize, usize)> =
            (0..rows * width).map(|p| (p / width, p % width)).filter(|&(i, j)| kept(i, j)).collect();
        let start = |row: usize| positions.iter().filter(|(i, _)| *i < row).count() as u32;
        let cols = positions.iter().map(|(_, j)| *j as u32).collect();
        (Pattern::new(width, (0..=rows).map(start).collect(), cols).unwrap(), positions)
    }

    fn check<T: Scalar>(level: Level, (rows, width): (usize, usize), share: (usize, usize), tile: usize) {
        let (pattern, positions) = pattern((rows, width), share);
        let Some(tables) = pattern.tables() else { panic!("{rows} x {width} has too few values") };
        assert_eq!(tables.tile, tile);
        let values: Vec<T> = (0..positions.len()).map(|p| T::narrow(number(p))).collect();
        let batch = 3;
        let mut x: Vec<T> = (0..batch * width).map(|i| T::narrow(number(i + 99))).collect();
        x.iter_mut().skip(2).step_by(width).for_each(|x| *x = T::narrow(f64::NAN));
        let mut want = vec![1.0; batch * rows];
        for (p, (i, j)) in positions.iter().enumerate() {
            (0..batch).for_each(|b| want[b * rows + i] += number(p) * x[b * width + j].widen());
        }
        let run = |tasks: usize, y: &mut [T]| {
            super::super::look_up(
                LookUp {
                    values: &Plain(values.clone()),
                    starts: pattern.starts(),
                    tables,
                    x: Rows::new(&x, batch, width, width),
                    y: RowsMut::new(y, batch, rows, rows),
                    update: Update::Accumulate,
                },
                level,
                tasks,
            );
        };
        for tasks in [1, 2, 5] {
            let mut y = vec![T::one(); batch * rows];
            run(tasks, &mut y);
            assert!(
                y.iter().zip(&want).all(|(y, want)| y.widen() == *want),
                "{level} {rows} x {width}, {tasks} tasks"
            );
        }
    }

    #[test]
    fn inputs_are_found_at_every_level() {
        for level in Level::available() {
            for shape in [(5, 30), (8, 127), (9, 128), (17, 129), (5, 300), (40, 640)] {
                check::<f32>(level, shape, (1, 1), 32);
                check::<f32>(level, shape, (1, 2), 32);
                check::<f64>(level, shape, (1, 2), 32);
            }
            for shape in [(33, 200), (40, 640)] {
                check::<f32>(level, shape, (1, 8), 64);
                check::<f64>(level, shape, (1, 8), 64);
            }
        }
    }

    #[test]
    fn few_values_and_wide_matrices_have_no_tables() {
        let (rows, width) = (16, 1024);
        let with = |each: usize| {
            let cols = (0..rows).flat_map(|_| (0..each).map(|k| (k * width / each) as u32)).collect();
            Pattern::new(width, (0..=rows).map(|i| (i * each) as u32).collect(), cols).unwrap()
        };
        let tile = |each: usize| with(each).tables().map(|tables| tables.tile);
        assert_eq!([5 * 32, 5 * 32 - 1, 5 * 16, 5 * 16 - 1].map(tile), [Some(32), Some(64), Some(64), None]);
        assert!(Pattern::new(5, vec![0], vec![]).unwrap().tables().is_none());
        let wide = Pattern::new(70_000, vec![0, 70_000], (0..70_000).collect()).unwrap();
        assert!(wide.tables().is_none());
    }

    #[test]
    fn groups_too_long_to_decode_at_once_are_gathered() {
        let (pattern, positions) = pattern((9, 1000), (1, 1));
        let tables = pattern.tables().unwrap();
        assert!(tables.longest > BLOCK);
        let halves: Vec<half::bf16> = (0..positions.len()).map(|p| half::bf16::from_f64(number(p))).collect();
        let x: Vec<f32> = (0..1000).map(|j| number(j) as f32).collect();
        let mut y = vec![f32::NAN; 9];
        multiply_sparse(
            source::Bf16::new(&halves, 1, halves.len()),
            SparseProduct {
                pattern: &pattern,
                op: Op::Forward,
                x: Rows::new(&x, 1, 1000, 1000),
                y: RowsMut::new(&mut y, 1, 9, 9),
                update: Update::Overwrite,
                scratch: &mut [],
                policy: Policy::default(),
            },
        );
        let mut want = vec![0.0; 9];
        positions.iter().enumerate().for_each(|(p, (i, j))| want[*i] += number(p) * number(*j));
        assert!(y.iter().zip(&want).all(|(y, want)| f64::from(*y) == *want));
    }
}
