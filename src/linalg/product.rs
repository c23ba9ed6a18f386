//! Matrix products.

use super::convert::{Operand, TILE, row_major_mut, slice_mut};
use super::{Real, Threads};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, Par};
use ndarray::{Array2, ArrayRef2};

/// Products with fewer multiply-adds than this run on the calling thread: waking the pool costs more.
const PARALLEL_FLOPS: usize = 64 * 64 * 64;

fn parallelism(m: usize, n: usize, k: usize, threads: Threads) -> Par {
    if m.saturating_mul(n).saturating_mul(k) < PARALLEL_FLOPS { Par::Seq } else { threads.par() }
}

/// `A B` for `A: m x k`, `B: k x n`, in `2 m k n` flops. Transposed views cost little: 256 columns of `A` at a time are copied where it is
/// turned and caches would take its numbers badly.
///
/// # Panics
/// When the inner dimensions differ, like `ndarray`'s `dot`.
pub fn matmul<T: Real>(a: &ArrayRef2<T>, b: &ArrayRef2<T>, threads: Threads) -> Array2<T> {
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    matmul_into(a, b, &mut c, false, threads);
    c
}

/// `Aᵀ B` for `A: k x m`, `B: k x n`, in `2 m k n` flops.
///
/// # Panics
/// When the row counts differ.
pub fn matmul_tn<T: Real>(a: &ArrayRef2<T>, b: &ArrayRef2<T>, threads: Threads) -> Array2<T> {
    matmul(&a.t(), b, threads)
}

/// `A Bᵀ` for `A: m x k`, `B: n x k`, in `2 m k n` flops.
///
/// # Panics
/// When the column counts differ.
pub fn matmul_nt<T: Real>(a: &ArrayRef2<T>, b: &ArrayRef2<T>, threads: Threads) -> Array2<T> {
    matmul(a, &b.t(), threads)
}

/// `C = A B`, or `C += A B` when `beta_accumulate`; `C` may have any strides (contiguous ones avoid a
/// temporary).
///
/// # Panics
/// When the three shapes do not fit.
pub fn matmul_into<T: Real>(
    a: &ArrayRef2<T>,
    b: &ArrayRef2<T>,
    c: &mut ArrayRef2<T>,
    beta_accumulate: bool,
    threads: Threads,
) {
    let (m, k) = a.dim();
    let n = b.ncols();
    assert_eq!(k, b.nrows(), "matmul: {m} x {k} times {} x {n}", b.nrows());
    assert_eq!(c.dim(), (m, n), "matmul: destination is not {m} x {n}");
    if k == 0 && !beta_accumulate {
        c.fill(T::zero());
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    if let Some(slice) = c.as_slice_mut() {
        return by_rows(a, b, slice, beta_accumulate, threads);
    }
    if let Some(slice) = c.view_mut().reversed_axes().as_slice_mut() {
        return by_rows(&b.t(), &a.t(), slice, beta_accumulate, threads);
    }
    let mut product = Array2::zeros((m, n));
    by_rows(a, b, slice_mut(&mut product), false, threads);
    if beta_accumulate {
        c.zip_mut_with(&product, |x, y| *x += *y);
    } else {
        c.assign(&product);
    }
}

/// The product, in rows one after the other.
fn by_rows<T: Real>(a: &ArrayRef2<T>, b: &ArrayRef2<T>, c: &mut [T], accumulate: bool, threads: Threads) {
    let ((m, k), n) = (a.dim(), b.ncols());
    let par = parallelism(m, n, k, threads);
    let (a, b) = (Operand::new(a), Operand::new(b));
    // The kernels go along rows of `a` for a result like this.
    a.by_columns(n, |depth, a| {
        let accum = if accumulate || depth.start > 0 { Accum::Add } else { Accum::Replace };
        let b = b.mat().subrows(depth.start, depth.len());
        faer::linalg::matmul::matmul(MatMut::from_row_major_slice_mut(c, m, n), accum, a, b, T::one(), par);
    });
}

/// `Aᵀ A` for `A: m x n`, exactly symmetric, in `m n²` flops (only one triangle is computed).
pub fn gram<T: Real>(a: &ArrayRef2<T>, threads: Threads) -> Array2<T> {
    let (m, n) = a.dim();
    let mut g = Array2::zeros((n, n));
    if m == 0 || n == 0 {
        return g;
    }
    let par = parallelism(m, n, n, threads);
    Operand::new(&a.t()).by_columns(n, |depth, at| {
        triangular::matmul(
            row_major_mut(&mut g),
            BlockStructure::TriangularLower,
            if depth.start > 0 { Accum::Add } else { Accum::Replace },
            at,
            BlockStructure::Rectangular,
            at.transpose(),
            BlockStructure::Rectangular,
            T::one(),
            par,
        );
    });
    mirror_lower(&mut g);
    g
}

/// Copies the lower triangle onto the upper one.
pub(super) fn mirror_lower<T: Copy>(g: &mut Array2<T>) {
    let n = g.nrows();
    // Some rows at a time, as both orders are walked.
    for top in (0..n).step_by(TILE) {
        let end = n.min(top + TILE);
        for j in 0..end {
            for i in top.max(j + 1)..end {
                g[[j, i]] = g[[i, j]];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian};
    use super::*;
    use ndarray::s;

    #[test]
    fn products_agree_with_ndarray_for_all_layouts() {
        let (a, b) = (gaussian(33, 20, 1), gaussian(20, 17, 2));
        let want = a.dot(&b);
        for threads in [Threads(1), Threads(2)] {
            assert!(diff(&matmul(&a, &b, threads), &want) < 1e-12);
            let (at, bt) = (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
            assert!(diff(&matmul_tn(&at, &b, threads), &want) < 1e-12);
            assert!(diff(&matmul_nt(&a, &bt, threads), &want) < 1e-12);
            let strided = a.slice(s![..;-2, 1..;3]);
            let rest = b.slice(s![..strided.ncols(), ..]);
            assert!(diff(&matmul(&strided, &rest, threads), &strided.dot(&rest)) < 1e-12);
        }
    }

    #[test]
    fn operands_that_are_copied_for_the_kernels() {
        // Rows of 4 KiB, and enough uses of each number.
        let (a, b) = (gaussian(300, 512, 1), gaussian(300, 260, 2));
        let want = a.t().dot(&b);
        assert!(diff(&matmul_tn(&a, &b, Threads(1)), &want) < 1e-12);
        let mut by_columns = Array2::zeros((260, 512));
        matmul_into(&b.t(), &a, &mut by_columns.view_mut(), false, Threads(1));
        assert!(diff(&by_columns, &want.t().to_owned()) < 1e-12);
        let mut by_columns = Array2::ones((512, 260));
        matmul_into(&b.t(), &a, &mut by_columns.view_mut().reversed_axes(), true, Threads(1));
        assert!(diff(&by_columns, &(want + 1.0)) < 1e-12);
        assert!(diff(&gram(&a, Threads(1)), &a.t().dot(&a)) < 1e-12);
    }

    #[test]
    fn into_accumulates_in_every_destination_layout() {
        let (a, b) = (gaussian(6, 5, 3), gaussian(5, 4, 4));
        let want = a.dot(&b) + 1.0;
        let mut plain = Array2::ones((6, 4));
        matmul_into(&a, &b, &mut plain, true, Threads(1));
        assert!(diff(&plain, &want) < 1e-13);
        let mut transposed = Array2::ones((4, 6));
        matmul_into(&a, &b, &mut transposed.view_mut().reversed_axes(), true, Threads(1));
        assert!(diff(&transposed.t().to_owned(), &want) < 1e-13);
        let mut wide = Array2::ones((6, 8));
        matmul_into(&a, &b, &mut wide.slice_mut(s![.., ..;2]), true, Threads(1));
        assert!(diff(&wide.slice(s![.., ..;2]).to_owned(), &want) < 1e-13);
        assert!(wide.slice(s![.., 1..;2]).iter().all(|&x| x == 1.0));
        matmul_into(&a, &b, &mut wide.slice_mut(s![.., ..;2]), false, Threads(1));
        assert!(diff(&(wide.slice(s![.., ..;2]).to_owned() + 1.0), &want) < 1e-13);
    }

    #[test]
    fn empty_products() {
        let c = matmul(&Array2::<f64>::zeros((3, 0)), &Array2::zeros((0, 2)), Threads(2));
        assert_eq!(c, Array2::<f64>::zeros((3, 2)));
        assert_eq!(matmul(&Array2::<f64>::zeros((0, 3)), &Array2::zeros((3, 2)), Threads(1)).dim(), (0, 2));
        assert_eq!(gram(&Array2::<f64>::zeros((0, 3)), Threads(1)), Array2::<f64>::zeros((3, 3)));
    }

    #[test]
    fn gram_is_symmetric() {
        for (m, n) in [(50, 30), (7, 90), (1, 1)] {
            let a = gaussian(m, n, 5);
            let g = gram(&a, Threads(1));
            assert!(diff(&g, &a.t().dot(&a)) < 1e-12);
            assert_eq!(g, g.t());
        }
    }
}
