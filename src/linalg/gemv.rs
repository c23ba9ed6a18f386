//! Rows that lie one after the other, times vectors: for matrices that stay in a core's first cache, where a call of a library's product
//! takes longer than the product.

use ndarray::{ArrayRef1, ArrayRef2};
use pulp::{Arch, Simd, WithSimd};

/// Rows taken together, for sums that do not wait for each other; more would need more registers than there are.
const TOGETHER: usize = 4;

/// `out[i]` = row `i` times `v`.
pub(super) fn products(rows: &[f64], v: &[f64], out: &mut [f64]) {
    assert!(rows.len() == v.len() * out.len());
    Arch::new().dispatch(Products { rows, v, out });
}

/// Adds the rows, each times its weight, to `out`.
pub(super) fn add_combination(rows: &[f64], weights: &[f64], out: &mut [f64]) {
    assert!(rows.len() == weights.len() * out.len());
    Arch::new().dispatch(Combination { rows, weights, out });
}

/// The same for a matrix.
///
/// # Panics
/// For lengths that do not fit, and where one of the three is not in standard layout.
pub fn add_rows(a: &ArrayRef2<f64>, weights: &ArrayRef1<f64>, out: &mut ArrayRef1<f64>) {
    let (a, weights, out) = (a.as_slice(), weights.as_slice(), out.as_slice_mut());
    let all = a.zip(weights).zip(out);
    let ((a, weights), out) = all.expect("a matrix and vectors in standard layout");
    add_combination(a, weights, out);
}

struct Products<'a> {
    rows: &'a [f64],
    v: &'a [f64],
    out: &'a mut [f64],
}

impl WithSimd for Products<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, v, out } = self;
        let width = v.len();
        if width == 0 {
            return out.fill(0.0);
        }
        let (groups, ones) = out.as_chunks_mut::<TOGETHER>();
        let (many, few) = rows.split_at(groups.len() * TOGETHER * width);
        for (rows, out) in many.chunks_exact(TOGETHER * width).zip(groups) {
            *out = sums(simd, split(rows, width), v);
        }
        for (row, out) in few.chunks_exact(width).zip(ones) {
            [*out] = sums(simd, [row], v);
        }
    }
}

#[inline(always)]
fn split(rows: &[f64], width: usize) -> [&[f64]; TOGETHER] {
    std::array::from_fn(|r| &rows[r * width..(r + 1) * width])
}

/// The products of `R` rows with `v`.
#[inline(always)]
fn sums<S: Simd, const R: usize>(simd: S, rows: [&[f64]; R], v: &[f64]) -> [f64; R] {
    let (whole, rest) = S::as_simd_f64s(v);
    let rows = rows.map(|row| S::as_simd_f64s(row)).map(|(row, left)| (&row[..whole.len()], left));
    let mut sums = [simd.splat_f64s(0.0); R];
    for (k, v) in whole.iter().enumerate() {
        for (sum, (row, _)) in sums.iter_mut().zip(&rows) {
            *sum = simd.mul_add_f64s(row[k], *v, *sum);
        }
    }
    std::array::from_fn(|r| {
        let rest: f64 = rows[r].1.iter().zip(rest).map(|(a, b)| a * b).sum();
        simd.reduce_sum_f64s(sums[r]) + rest
    })
}

struct Combination<'a> {
    rows: &'a [f64],
    weights: &'a [f64],
    out: &'a mut [f64],
}

impl WithSimd for Combination<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, weights, out } = self;
        let width = out.len();
        if width == 0 {
            return;
        }
        let (groups, ones) = weights.as_chunks::<TOGETHER>();
        let (many, few) = rows.split_at(groups.len() * TOGETHER * width);
        for (rows, weights) in many.chunks_exact(TOGETHER * width).zip(groups) {
            add(simd, split(rows, width), *weights, out);
        }
        for (row, weight) in few.chunks_exact(width).zip(ones) {
            add(simd, [row], [*weight], out);
        }
    }
}

#[inline(always)]
fn add<S: Simd, const R: usize>(simd: S, rows: [&[f64]; R], weights: [f64; R], out: &mut [f64]) {
    let (whole, rest) = S::as_mut_simd_f64s(out);
    let rows =
        rows.map(|row| S::as_simd_f64s(row)).map(|(row, left)| (&row[..whole.len()], &left[..rest.len()]));
    let lanes = weights.map(|weight| simd.splat_f64s(weight));
    for (k, out) in whole.iter_mut().enumerate() {
        for (weight, (row, _)) in lanes.iter().zip(&rows) {
            *out = simd.mul_add_f64s(*weight, row[k], *out);
        }
    }
    for (k, out) in rest.iter_mut().enumerate() {
        for (weight, (_, row)) in weights.iter().zip(&rows) {
            *out += weight * row[k];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::gaussian;
    use super::*;

    #[test]
    fn both_products_are_those_of_the_formula() {
        for (m, n) in [(0, 5), (5, 0), (1, 1), (3, 7), (4, 8), (9, 17), (13, 64)] {
            let (a, x) = (gaussian(m, n, 1), gaussian(1, n.max(m), 2));
            let (rows, x) = (a.as_slice().unwrap(), x.as_slice().unwrap());
            let mut out = vec![f64::NAN; m];
            products(rows, &x[..n], &mut out);
            for (row, got) in a.outer_iter().zip(&out) {
                let want: f64 = row.iter().zip(x).map(|(a, b)| a * b).sum();
                assert!((want - got).abs() < 1e-13);
            }
            let mut out = vec![1.0; n];
            add_combination(rows, &x[..m], &mut out);
            for (column, got) in a.columns().into_iter().zip(&out) {
                let want: f64 = 1.0 + column.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
                assert!((want - got).abs() < 1e-13);
            }
        }
    }
}
