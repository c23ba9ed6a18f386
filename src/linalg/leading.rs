//! The leading singular triplets of small blocks, by a band Lanczos process to machine precision.

use super::convert::standard;
use super::gemv::{add_combination, products};
use super::svd::from_rows;
use super::{Eigh, Svd, Threads, check_finite, eigh, elementwise, svd, tridiagonal, vectorised};
use crate::error::Result;
use ndarray::{Array2, ArrayRef2, ArrayView2, s};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use std::ops::Range;

/// The leading `rank` components (at most `min(m, n)`) of the SVD of one small block, without the rest:
/// several times cheaper than [`svd`] when the rank is small against the block.
///
/// The squared error of the truncation is within `1e-10` of the least possible, relatively (down to the
/// rounding level of the block); blocks for which that is not certain get the full SVD.
///
/// # Errors
/// [`crate::Error::NonFinite`] for NaN or infinite entries.
pub fn leading_triplets(a: &ArrayRef2<f64>, rank: usize) -> Result<Svd> {
    check_finite("block", a)?;
    let (m, n) = a.dim();
    let (small, rank) = (m.min(n), rank.min(m.min(n)));
    if pays(small, rank) {
        let found = if n <= m {
            lanczos(&standard(a), rank)?
        } else {
            lanczos(&standard(&a.t()), rank)?.map(Svd::transpose)
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Ok(svd(a, Threads::ONE)?.truncate(rank))
}

/// Whether the Lanczos process beats the full SVD of a block with smaller dimension `small`: measured.
fn pays(small: usize, rank: usize) -> bool {
    (rank == 1 && small >= 12) || (rank > 1 && small >= 64 * rank)
}

/// [`leading_triplets`] of many blocks, on the thread pool when `threads` allows more than one.
///
/// # Errors
/// As [`leading_triplets`], for the first block that fails.
pub fn batched_leading_triplets(
    blocks: &[ArrayView2<'_, f64>],
    rank: usize,
    threads: Threads,
) -> Result<Vec<Svd>> {
    let one = |block: &ArrayView2<'_, f64>| leading_triplets(block, rank);
    if threads.0 <= 1 || blocks.len() < 2 {
        return blocks.iter().map(one).collect();
    }
    // One run of blocks per thread keeps to the number of threads asked for.
    let parts: Vec<Vec<Svd>> = blocks
        .par_chunks(blocks.len().div_ceil(threads.0))
        .map(|part| part.iter().map(one).collect::<Result<Vec<_>>>())
        .collect::<Result<_>>()?;
    Ok(parts.into_iter().flatten().collect())
}

/// Band Lanczos on `AᵀA` for `m >= n`: as many starting vectors as components are wanted, so that no
/// multiplicity can hide one; one vector at a time, fully orthogonalised. `None` when not converged.
fn lanczos(a: &Array2<f64>, rank: usize) -> Result<Option<Svd>> {
    let (m, n) = a.dim();
    let Some(rows) = a.as_slice() else { return Ok(None) };
    let energy = square(rows);
    if !(1e-200..1e200).contains(&energy) {
        return Ok(None);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0x5eed);
    let mut basis = Basis::new(n, n);
    for _ in 0..rank {
        let mut v: Vec<f64> = (0..n).map(|_| StandardNormal.sample(&mut rng)).collect();
        basis.push_orthogonal(&mut v, rank, 0.0);
    }
    // Beyond this many vectors the full SVD is cheaper.
    let most = n.min(if rank == 1 { n } else { n / 2 });
    // Column `i`: the coefficients of `AᵀA vᵢ` in the basis.
    let mut columns: Vec<Vec<f64>> = Vec::with_capacity(most);
    let (mut image, mut pulled) = (vec![0.0; m], vec![0.0; n]);
    let mut next_check = (3 * rank + 9).min(most);
    while columns.len() < most.min(basis.len()) {
        products(rows, basis.vector(columns.len()), &mut image);
        pulled.fill(0.0);
        add_combination(rows, &image, &mut pulled);
        columns.push(basis.push_orthogonal(&mut pulled, 2 * rank + 1, 1e-14 * energy));
        let p = columns.len();
        if p == next_check || p == most || p == basis.len() {
            if let Some(ritz) = converged(&columns, basis.len(), rank, energy)? {
                return extract(a, rows, &basis, &ritz, energy);
            }
            next_check = (p + (p / 4).max(3)).min(most);
        }
    }
    Ok(None)
}

/// The leading Ritz vectors (columns, in coordinates of the basis) once they are good enough.
fn converged(columns: &[Vec<f64>], known: usize, rank: usize, energy: f64) -> Result<Option<Array2<f64>>> {
    let p = columns.len();
    if p < rank {
        return Ok(None);
    }
    let (values, vectors) = if rank == 1 {
        let diagonal: Vec<f64> = columns.iter().enumerate().map(|(i, c)| c[i]).collect();
        let off: Vec<f64> =
            columns[..p - 1].iter().enumerate().map(|(i, c)| c.get(i + 1).copied().unwrap_or(0.0)).collect();
        let top = tridiagonal::top(&diagonal, &off);
        let vector = Array2::from_shape_fn((p, 1), |(i, _)| top.vector[i]);
        (vec![top.value, top.second], vector)
    } else {
        let projected = Array2::from_shape_fn((p, p), |(i, j)| {
            let (i, j) = (i.max(j), i.min(j));
            columns[j].get(i).copied().unwrap_or(0.0)
        });
        let Eigh { values, vectors } = eigh(&projected, Threads::ONE)?;
        (values, vectors)
    };
    let left = (energy - values[..rank].iter().sum::<f64>()).max(0.0);
    let beyond = values.get(rank).copied().unwrap_or(0.0);
    let mut deficit = 0.0;
    for (k, value) in values.iter().take(rank).enumerate() {
        // The part of AᵀA z outside of the processed space.
        let outside: f64 = (p..known)
            .map(|i| {
                let part: f64 =
                    columns.iter().zip(vectors.column(k)).map(|(c, z)| c.get(i).map_or(0.0, |x| x * z)).sum();
                part * part
            })
            .sum();
        // The eigenvalue is off by at most the residual, and by its square over the gap.
        let gap = (value - beyond).max(0.0);
        deficit += if gap > 0.0 { outside.sqrt().min(outside / gap) } else { outside.sqrt() };
    }
    let resolvable = left > 1e-11 * energy;
    let goal = if resolvable { 1e-11 * left } else { 1e-28 * energy };
    Ok((deficit <= goal).then(|| vectors.slice(s![.., ..rank]).to_owned()))
}

/// Triplets from Ritz vectors: the images are orthonormalised and the block, of these `rows`, projected on them, which
/// is half a power step more exact than the vectors themselves.
fn extract(
    a: &Array2<f64>,
    rows: &[f64],
    basis: &Basis,
    ritz: &Array2<f64>,
    energy: f64,
) -> Result<Option<Svd>> {
    let (m, n) = a.dim();
    let (p, rank) = ritz.dim();
    let mut left = Basis::new(m, rank);
    for z in ritz.columns() {
        let (mut v, mut image) = (vec![0.0; n], vec![0.0; m]);
        add_combination(basis.vectors(0..p), &z.to_vec(), &mut v);
        products(rows, &v, &mut image);
        left.push_orthogonal(&mut image, rank, 1e-15 * energy.sqrt());
    }
    if left.len() < rank {
        // The block has a lower rank: the full SVD completes the bases.
        return Ok(None);
    }
    let mut projected = vec![0.0; rank * n];
    for (k, row) in projected.chunks_exact_mut(n).enumerate() {
        add_combination(rows, left.vector(k), row);
    }
    let u = Array2::from_shape_fn((rank, m), |(k, i)| left.vector(k)[i]);
    let projected = Array2::from_shape_fn((rank, n), |(k, j)| projected[k * n + j]);
    let found = if rank == 1 {
        let sigma = projected.iter().map(|x| x * x).sum::<f64>().sqrt();
        from_rows(u, vec![sigma], projected.mapv(|x| x / sigma))
    } else {
        let small = svd(&projected, Threads::ONE)?;
        from_rows(small.u.t().dot(&u), small.s, small.vt)
    };
    // Where the error is at rounding level the energies cannot vouch for it: measure.
    let kept: f64 = found.s.iter().map(|x| x * x).sum();
    if energy - kept <= 1e-11 * energy {
        let difference = a - &found.reconstruct(Threads::ONE);
        if difference.iter().map(|x| x * x).sum::<f64>() > 1e-29 * energy {
            return Ok(None);
        }
    }
    Ok(Some(found))
}

/// Orthonormal vectors, one after the other.
struct Basis {
    width: usize,
    numbers: Vec<f64>,
}

impl Basis {
    /// Empty, with room for `most` vectors of `width` numbers, at least one.
    fn new(width: usize, most: usize) -> Self {
        Self { width, numbers: Vec::with_capacity(width * most) }
    }

    fn len(&self) -> usize {
        self.numbers.len() / self.width
    }

    fn vectors(&self, range: Range<usize>) -> &[f64] {
        &self.numbers[range.start * self.width..range.end * self.width]
    }

    fn vector(&self, k: usize) -> &[f64] {
        self.vectors(k..k + 1)
    }

    /// Makes `v` orthogonal to the basis and appends it normalised, unless no more than `floor` of it is
    /// left. Returns the coefficients of `v`, the last being the norm of what was new. The first pass takes
    /// out the last `band` vectors, the second all: `v` may have large components along those only.
    fn push_orthogonal(&mut self, v: &mut [f64], band: usize, floor: f64) -> Vec<f64> {
        let len = self.len();
        let (mut coefficients, mut pass) = (vec![0.0; len], vec![0.0; len]);
        for first in [len.saturating_sub(band), 0] {
            let (vectors, pass) = (self.vectors(first..len), &mut pass[first..]);
            products(vectors, v, pass);
            for (c, total) in pass.iter_mut().zip(&mut coefficients[first..]) {
                *total += *c;
                *c = -*c;
            }
            add_combination(vectors, pass, v);
        }
        let norm = square(v).sqrt();
        if norm > floor {
            self.numbers.extend(v.iter().map(|x| x / norm));
            coefficients.push(norm);
        }
        coefficients
    }
}

fn square(v: &[f64]) -> f64 {
    vectorised(
        #[inline(always)]
        || elementwise::dot(v, v),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gaussian, norm, orthogonality, with_spectrum};
    use super::*;
    use crate::error::Error;

    fn check(a: &Array2<f64>, rank: usize) {
        let best = svd(a, Threads(1)).unwrap().truncate(rank);
        compare(a, &leading_triplets(a, rank).unwrap(), &best);
        let energy = norm(a).powi(2);
        if a.nrows() >= a.ncols() && rank > 0 && rank < a.ncols() && energy > 0.0 {
            // Also where the full SVD would be cheaper.
            if let Some(got) = lanczos(a, rank).unwrap() {
                compare(a, &got, &best);
            }
        }
    }

    fn compare(a: &Array2<f64>, got: &Svd, best: &Svd) {
        let rank = best.rank();
        let error = |svd: &Svd| norm(&(a - &svd.reconstruct(Threads(1)))).powi(2);
        let floor = 1e-28 * norm(a).powi(2);
        let (e, o) = (error(got), error(best));
        assert!(e <= o * (1.0 + 1e-10) + floor, "{:?} rank {rank}: {e:e} for {o:e}", a.dim());
        assert_eq!(got.rank(), best.rank());
        assert!(orthogonality(&got.u) < 1e-12 && orthogonality(&got.vt.t().to_owned()) < 1e-12);
        let top = best.s.first().copied().unwrap_or(0.0);
        assert!(got.s.iter().zip(&best.s).all(|(x, y)| (x - y).abs() <= 1e-7 * top));
    }

    #[test]
    fn gaussian_blocks() {
        for (m, n) in [(1, 1), (5, 3), (16, 16), (64, 64), (32, 100), (100, 32), (13, 70), (140, 130)] {
            for rank in [0, 1, 2, 3, 8, 1000] {
                for seed in 0..4 {
                    check(&gaussian(m, n, seed), rank);
                }
            }
        }
    }

    #[test]
    fn clusters_and_multiples() {
        for top in [[5.0, 5.0, 5.0, 5.0], [5.0, 5.0 - 1e-9, 4.9999, 4.99], [1.0, 1e-3, 1e-6, 1e-9]] {
            let mut s = top.to_vec();
            s.extend((0..30).map(|k| 1e-3 / f64::from(k + 1)));
            for rank in [1, 2, 3, 4] {
                check(&with_spectrum(48, 40, &s, 3), rank);
                check(&with_spectrum(48, 40, &top, 3), rank);
            }
        }
        for rank in [1, 3] {
            check(&Array2::eye(40), rank);
            check(&Array2::from_diag(&ndarray::Array1::range(0.0, 40.0, 1.0)), rank);
        }
    }

    #[test]
    fn nearly_of_the_rank_asked_for() {
        let low = with_spectrum(40, 40, &[3.0, 2.0], 1);
        for noise in [0.0, 1e-15, 1e-12, 1e-8, 1e-5, 1e-3] {
            let a = &low + &gaussian(40, 40, 2).mapv(|x| x * noise);
            for rank in [1, 2, 3] {
                check(&a, rank);
            }
        }
        check(&Array2::zeros((30, 30)), 2);
        let scaled = gaussian(30, 30, 1).mapv(|x| x * 1e-180);
        assert!(leading_triplets(&scaled, 1).unwrap().s[0] > 0.0);
    }

    #[test]
    fn batches() {
        let all = gaussian(64, 64, 5);
        let blocks: Vec<_> = all.exact_chunks((16, 16)).into_iter().collect();
        let one = batched_leading_triplets(&blocks, 1, Threads(1)).unwrap();
        let two = batched_leading_triplets(&blocks, 1, Threads(2)).unwrap();
        assert_eq!(one.len(), 16);
        for ((x, y), block) in one.iter().zip(&two).zip(&blocks) {
            assert_eq!(x.u, y.u);
            check(&block.to_owned(), 1);
        }
        assert!(batched_leading_triplets(&[], 1, Threads(2)).unwrap().is_empty());
        let mut bad = all.clone();
        bad[[40, 3]] = f64::NAN;
        let blocks: Vec<_> = bad.exact_chunks((16, 16)).into_iter().collect();
        assert!(matches!(
            batched_leading_triplets(&blocks, 1, Threads(2)),
            Err(Error::NonFinite { row: 8, col: 3, .. })
        ));
    }
}
