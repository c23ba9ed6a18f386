//! Products of one row with matrices that keep a good part of their positions: a bit says of each position whether it is kept, and
//! vectors of values are spread to the lanes of their rows. That reads half as much as a dense matrix where half is kept, gathers no inputs, and
//! takes two cycles for each vector of positions whatever their values are.

use super::pattern::Pattern;
use crate::exec::Policy;
use crate::kernels::aligned::AlignedVec;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::packing::SLACK;
use crate::kernels::simd::{Simd, prefetch, vectors};
use crate::kernels::team;
use crate::matrix::Update;
use crate::scalar::Scalar;

/// Rows that share a mask.
const PANEL: usize = u32::BITS as usize;

/// How far ahead of their use values are fetched, in bytes.
const AHEAD: usize = 2048;

/// Entries of a dense matrix that stays in a cache that cores share.
const SHARED: usize = 1 << 20;

/// A sparse matrix as bits and values.
#[derive(Debug, Clone)]
pub struct Bitmap<T> {
    cols: usize,
    /// Panel after panel of rows, column after column: which rows keep the position.
    masks: AlignedVec<u32>,
    /// Where the values of each panel start, and the number of all.
    starts: Vec<usize>,
    /// In the order of the bits, and a vector of zeros.
    values: AlignedVec<T>,
}

/// Multiply-adds of a dense product in the time that a product takes, about, where the level has an instruction for it: those of two thirds of the
/// positions beside a dense matrix in a cache that cores share, of half of them beside one from memory, or what reading values and bits takes.
pub(super) fn cost<T: Scalar>(pattern: &Pattern, level: Level) -> Option<u64> {
    let positions = pattern.rows().saturating_mul(pattern.width());
    let read = pattern.len().saturating_add(positions / PANEL);
    let spreading = if positions <= SHARED { positions / 3 * 2 } else { positions / 2 };
    level.abilities::<T>().spreads.then_some(spreading.max(read) as u64)
}

impl<T: Scalar> Bitmap<T> {
    /// With the value `value(p)` at position `p` of the pattern.
    pub(crate) fn new(pattern: &Pattern, value: impl Fn(usize) -> T) -> Self {
        let (rows, cols, ends, columns) = (pattern.rows(), pattern.width(), pattern.starts(), pattern.cols());
        let panels = rows.div_ceil(PANEL);
        let mut masks = AlignedVec::zeroed(panels * cols);
        let mut values = AlignedVec::zeroed(pattern.len() + SLACK);
        let (mut starts, mut at) = (vec![0], 0);
        for panel in 0..panels {
            let first = panel * PANEL;
            let last = rows.min(first + PANEL);
            let mut next: Vec<usize> = ends[first..last].iter().map(|&start| start as usize).collect();
            for (col, mask) in masks[panel * cols..(panel + 1) * cols].iter_mut().enumerate() {
                for (bit, place) in next.iter_mut().enumerate() {
                    if *place < ends[first + bit + 1] as usize && columns[*place] as usize == col {
                        *mask |= 1 << bit;
                        values[at] = value(*place);
                        (at, *place) = (at + 1, *place + 1);
                    }
                }
            }
            starts.push(at);
        }
        Self { cols, masks, starts, values }
    }

    /// `y (+)= A x`. Panics when the operands do not fit.
    pub(crate) fn multiply(&self, x: &[T], y: &mut [T], update: Update, policy: Policy) {
        let panels = self.starts.len() - 1;
        assert!(x.len() == self.cols && y.len().div_ceil(PANEL) == panels);
        // A vector of positions takes as long as two of a dense product in the caches.
        let tasks = policy.tasks((2 * y.len()).saturating_mul(x.len()));
        split(Product { bitmap: self, first: 0, x, y, update }, tasks, policy.level);
    }
}

/// The product with the rows of `y`, from panel `first` on.
struct Product<'a, T> {
    bitmap: &'a Bitmap<T>,
    first: usize,
    x: &'a [T],
    y: &'a mut [T],
    update: Update,
}

fn split<T: Scalar>(product: Product<'_, T>, tasks: usize, level: Level) {
    let panels = product.y.len().div_ceil(PANEL);
    if tasks < 2 || panels < 2 {
        return T::dispatch(level, product);
    }
    let Product { bitmap, first, x, y, update } = product;
    let (at, half) = (panels - panels / 2, tasks / 2);
    let (top, bottom) = y.split_at_mut(at * PANEL);
    let left = Product { bitmap, first, x, y: top, update };
    let right = Product { bitmap, first: first + at, x, y: bottom, update };
    team::join(|| split(left, tasks - half, level), move || split(right, half, level));
}

impl<T: Scalar> Kernel<T> for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, simd: S) {
        match PANEL / S::LANES {
            2 => self.panels::<S, 2>(simd),
            4 => self.panels::<S, 4>(simd),
            _ => self.panels::<S, 8>(simd),
        }
    }
}

impl<T: Scalar> Product<'_, T> {
    /// In panels of `V` vectors.
    #[inline(always)]
    fn panels<S: Simd<T>, const V: usize>(self, simd: S) {
        let Self { bitmap: Bitmap { cols, masks, starts, values }, first, x, y, update } = self;
        assert!(V * S::LANES == PANEL && x.len() == *cols && S::LANES <= SLACK);
        for (panel, y) in (first..).zip(y.chunks_mut(PANEL)) {
            let masks = &masks[panel * cols..(panel + 1) * cols];
            let mut next = values[starts[panel]..].as_ptr();
            // Two columns at a time: more sums than a multiply-add takes cycles.
            let mut sums = [[simd.zero(); V]; 2];
            macro_rules! column {
                ($sums:expr, $mask:expr, $x:expr) => {{
                    for v in 0..V {
                        let mask = $mask >> (v * S::LANES) & (u32::MAX >> (PANEL - S::LANES));
                        // SAFETY: the bits of a panel count its values, and a vector of zeros follows the last ones.
                        unsafe {
                            $sums[v] = simd.add_spread($sums[v], $x, next, mask);
                            next = next.add(mask.count_ones() as usize);
                        }
                    }
                }};
            }
            let (pairs, odd) = masks.as_chunks::<2>();
            let (inputs, last) = x.as_chunks::<2>();
            for (masks, x) in pairs.iter().zip(inputs) {
                prefetch(next.cast::<u8>().wrapping_add(AHEAD));
                prefetch(next.cast::<u8>().wrapping_add(AHEAD + 64));
                column!(sums[0], masks[0], x[0]);
                column!(sums[1], masks[1], x[1]);
            }
            for (mask, x) in odd.iter().zip(last) {
                column!(sums[0], *mask, *x);
            }
            let sums: [S::V; V] = vectors(simd, |v| simd.add(sums[0][v], sums[1][v]));
            for (y, sum) in y.chunks_mut(S::LANES).zip(sums) {
                // SAFETY: as many outputs are there.
                unsafe {
                    let sum = match update {
                        Update::Overwrite => sum,
                        Update::Accumulate => simd.add(simd.load_part(y.as_ptr(), y.len()), sum),
                    };
                    simd.store_part(y.as_mut_ptr(), sum, y.len());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Parallelism;

    /// Small integers: every sum is exact, in any order.
    fn number(i: usize) -> f64 {
        ((i * 2_654_435_761) >> 7 & 7) as f64 - 3.0
    }

    fn check<T: Scalar>((rows, cols): (usize, usize), of_eight: usize) {
        let kept = |i: usize, j: usize| ((i * 31 + j) * 2_654_435_761) >> 9 & 7 < of_eight;
        let (mut starts, mut columns) = (vec![0], Vec::new());
        for i in 0..rows {
            columns.extend((0..cols).filter(|&j| kept(i, j)).map(|j| j as u32));
            starts.push(columns.len() as u32);
        }
        let pattern = Pattern::new(cols, starts, columns).unwrap();
        let bitmap = Bitmap::new(&pattern, |p| T::narrow(number(p)));
        let x: Vec<T> = (0..cols).map(|j| T::narrow(number(j + 7))).collect();
        let mut expected = vec![0.0; rows];
        for (p, (i, j)) in pattern.positions().enumerate() {
            expected[i] += number(p) * number(j + 7);
        }
        for level in Level::available() {
            for threads in [1, 2, 3] {
                let parallelism = if threads == 1 { Parallelism::Seq } else { Parallelism::Threads(threads) };
                for (update, before) in [(Update::Overwrite, f64::NAN), (Update::Accumulate, 2.0)] {
                    let mut y = vec![T::narrow(before); rows];
                    bitmap.multiply(&x, &mut y, update, Policy { parallelism, level });
                    for (y, expected) in y.iter().zip(&expected) {
                        let before = if update == Update::Accumulate { before } else { 0.0 };
                        assert_eq!(y.widen(), expected + before, "{rows} x {cols}, {of_eight}, {level}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_infinite_input_reaches_no_row_without_its_column() {
        let pattern = Pattern::new(3, vec![0, 2, 3, 5], vec![0, 2, 1, 1, 2]).unwrap();
        let bitmap = Bitmap::new(&pattern, |p| number(p) as f32);
        for level in Level::available() {
            for input in [f32::INFINITY, f32::NAN] {
                let mut y = [0.0; 3];
                let policy = Policy { parallelism: Parallelism::Seq, level };
                bitmap.multiply(&[input, 1.0, 2.0], &mut y, Update::Overwrite, policy);
                assert!(!y[0].is_finite() && y[1] == number(2) as f32, "{level}: {y:?}");
                assert!(y[2] == (number(3) + 2.0 * number(4)) as f32, "{level}: {y:?}");
            }
        }
    }

    #[test]
    fn products_equal_their_formula_at_every_level() {
        let shapes =
            [(0, 0), (0, 3), (3, 0), (1, 1), (5, 7), (31, 8), (32, 33), (33, 2), (100, 101), (300, 257)];
        for shape in shapes {
            for of_eight in [0, 1, 4, 8] {
                check::<f32>(shape, of_eight);
                check::<f64>(shape, of_eight);
            }
        }
    }
}
