//! A block Krylov space of `AᵀA`, fully orthogonalised, and Rayleigh-Ritz extraction from it.

use super::convert::standard;
use super::eigen::Reduced;
use super::packed::Packed;
use super::qr::{cholesky_qr, factor};
use super::svd::{from_columns, from_rows};
use super::{
    Eigh, Real, Svd, Threads, dot, eigh, gram, matmul, matmul_into, matmul_nt, matmul_tn, rows, svd,
};
use crate::error::Result;
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2, Axis, s};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Columns of a probe for missed directions.
const PROBE: usize = 8;

/// Least part of each vector that is orthogonal to those before it, for a Gram matrix to make them orthonormal: to eight digits,
/// of which a second pass makes all, and to all.
const DEPENDENT: f64 = 1e-4;
const NEAR: f64 = 0.5;
/// Share of a vector that a projection has to leave for no second one to be needed: it leaves an error of its inverse times the precision.
const LEFT: f64 = 0.1;
/// Eigenvalues of a Gram matrix down to this fraction of the largest give singular vectors to eleven digits.
const TAME: f64 = 1e-5;

/// The space, in either precision. Vectors are rows, so that blocks append and stay contiguous.
pub(super) struct Krylov<'a, T> {
    a: &'a Packed,
    rank: usize,
    threads: Threads,
    rng: ChaCha8Rng,
    /// Orthonormal basis, `p x n`.
    basis: Array2<T>,
    /// Its images `A v`, `q x m`, for the first `q <= p` vectors.
    images: Array2<T>,
    /// Lower block triangle of the Gram matrix of the images: row block by row block.
    gram: Vec<Array2<T>>,
    /// What `AᵀA` makes of the newest block, orthogonal to the basis: the next block, unnormalised.
    next: Array2<T>,
}

/// What a space holds of its matrix.
pub(super) struct Captured<T> {
    /// Of the leading `rank` Ritz values (squared singular values).
    pub energy: f64,
    /// The least of them.
    pub least: f64,
    /// The Gram matrix of the images.
    gram: Reduced<T>,
}

impl<'a, T: Scalar> Krylov<'a, T> {
    /// An empty space for the `m x n` matrix `a`.
    pub fn new(a: &'a Packed, rank: usize, seed: u64, threads: Threads) -> Self {
        let (m, n) = a.dim();
        Self {
            a,
            rank,
            threads,
            rng: ChaCha8Rng::seed_from_u64(seed),
            basis: Array2::zeros((0, n)),
            images: Array2::zeros((0, m)),
            gram: Vec::new(),
            next: Array2::zeros((0, n)),
        }
    }

    /// Dimension of the space.
    pub fn len(&self) -> usize {
        self.basis.nrows()
    }

    /// The first block: a Gaussian sketch of the rows.
    pub fn start(&mut self, block: usize) {
        let sketch = self.gaussian(block, self.a.dim().0);
        self.next = self.a.pulled(&sketch);
        self.expand(block);
    }

    /// Appends up to `block` vectors made from `next` to the basis.
    pub fn expand(&mut self, block: usize) {
        let ((p, n), lengths) = (self.basis.dim(), self.lengths());
        let next = std::mem::replace(&mut self.next, Array2::zeros((0, n)));
        let width = block.min(n - p).min(next.nrows());
        let block = self.orthonormal(standard(&next.slice(s![..width, ..])), &lengths);
        self.append(&block);
    }

    /// Appends an orthonormal block from [`Self::probe`].
    pub fn adopt(&mut self, block: Array2<T>) {
        self.append(&block);
    }

    fn append(&mut self, block: &Array2<T>) {
        append_rows(&mut self.basis, block);
    }

    /// Applies `AᵀA` to the vectors appended last: `4 m n` flops each, and as much again per basis
    /// vector over `m + n` for the orthogonalisation.
    pub fn multiply(&mut self) {
        let done = self.images.nrows();
        let new = self.basis.slice(s![done.., ..]);
        let images = self.a.images(&new);
        let mut next = self.a.pulled(&images);
        let coefficients = self.project_out(&mut next);
        append_rows(&mut self.images, &images);
        self.gram.push(coefficients);
        self.next = next;
    }

    /// What the space holds of the matrix.
    pub fn captured(&self) -> Result<Captured<T>> {
        // In the precision of the images, whose Gram matrix has no more digits.
        let gram = Reduced::new(&self.gram_matrix(), self.threads)?;
        let values = gram.values()?;
        let kept = &values[..self.rank.min(values.len())];
        Ok(Captured { energy: kept.iter().sum(), least: kept.last().copied().unwrap_or(0.0), gram })
    }

    /// The best rank-`rank` approximation within reach: a projection on the images of the leading Ritz vectors, half a power step better
    /// than the space itself. It resolves singular values down to the root of the precision; the vectors are orthonormal in `f64`.
    /// It is computed in `f64` where `exact`, the matrix in `f64`, is given.
    pub fn ritz(&self, captured: &Captured<T>, exact: Option<&ArrayRef2<f64>>) -> Result<Svd> {
        let rank = self.rank.min(self.images.nrows());
        let (values, mut leading) = match exact {
            Some(_) => {
                let gram = Reduced::<f64>::new(&self.gram_matrix(), self.threads)?;
                let (values, vectors) = gram.leading(rank)?;
                (values, vectors.mapv(T::narrow))
            }
            None => captured.gram.leading(rank)?,
        };
        // Images of unit length, orthogonal but for rounding.
        for (mut vector, value) in leading.outer_iter_mut().zip(&values) {
            let length = T::narrow(value.max(f64::MIN_POSITIVE).sqrt());
            vector.mapv_inplace(|x| x / length);
        }
        let images = matmul(&leading, &self.images, self.threads).mapv(T::widen);
        let (q, _) = orthonormal_rows(images, NEAR, self.threads);
        let b = match exact {
            Some(a) => matmul(&q, a, self.threads),
            None => self.a.pulled(&q.mapv(T::narrow)).mapv(T::widen),
        };
        let small = wide_svd(&b, self.threads)?;
        Ok(from_columns(matmul_tn(&q, &small.u, self.threads), small.s, small.vt))
    }

    /// Looks for what the space misses: a fresh random block, pulled twice towards the leading
    /// directions of `A` outside of the space. Returns the largest squared gain found and the block.
    pub fn probe(&mut self) -> (f64, Array2<T>) {
        let n = self.a.dim().1;
        let width = PROBE.min(n - self.len());
        let gaussian = self.gaussian(width, n);
        let mut block = self.orthonormal(gaussian, &[]);
        let (mut images, mut largest) = (self.a.images(&block), 0.0);
        for _ in 0..if width > 0 { 2 } else { 0 } {
            let mut pulled = self.a.pulled(&images);
            self.project_out(&mut pulled);
            block = self.orthonormal(pulled, &[]);
            images = self.a.images(&block);
            let energies = images.outer_iter().map(|w| w.dot(&w).widen());
            largest = energies.fold(largest, f64::max);
        }
        (largest, block)
    }

    /// How long the rows of `next` were before they were made orthogonal to the space.
    fn lengths(&self) -> Vec<f64> {
        let mut energies: Vec<f64> = rows(&self.next).map(|row| dot(row, row)).collect();
        if let Some(part) = self.gram.last() {
            energies.iter_mut().zip(rows(part)).for_each(|(energy, part)| *energy += dot(part, part));
        }
        energies.iter().map(|energy| energy.sqrt()).collect()
    }

    /// Subtracts from the rows of `block` their part in the space; returns the coefficients.
    fn project_out(&self, block: &mut Array2<T>) -> Array2<T> {
        let mut coefficients = matmul_nt(block, &self.basis, self.threads);
        coefficients.mapv_inplace(|x| T::zero() - x);
        matmul_into(&coefficients, &self.basis, block, true, self.threads);
        coefficients.mapv_inplace(|x| T::zero() - x);
        coefficients
    }

    /// Orthonormal rows orthogonal to the space, spanning the rows of `block` where these are
    /// independent of it, and random otherwise. `lengths` are those of the rows before they were made orthogonal to the space, where they were.
    fn orthonormal(&mut self, block: Array2<T>, lengths: &[f64]) -> Array2<T> {
        let mut block = block;
        if block.nrows() == 0 {
            return block;
        }
        for pass in 0..6 {
            // How much of each unit vector the last projection and the vectors before left.
            let (q, left) = orthonormal_rows(block.mapv(T::widen), DEPENDENT, self.threads);
            let settled = match pass {
                0 => {
                    lengths.len() >= left.len()
                        && left.iter().zip(lengths).all(|(x, length)| *x > LEFT * length)
                }
                _ => left.iter().all(|&x| x > 0.5),
            };
            let lost: Vec<usize> = (0..q.nrows()).filter(|&i| pass > 0 && left[i] < T::LOST).collect();
            block = q.mapv(T::narrow);
            if settled && (pass > 0 || self.drift(&block) <= T::DRIFT) {
                break;
            }
            for i in lost {
                let fresh = self.gaussian(1, block.ncols());
                let fresh = fresh.index_axis(Axis(0), 0);
                let norm = T::narrow(fresh.dot(&fresh).widen().sqrt());
                block.row_mut(i).assign(&fresh.mapv(|x| x / norm));
            }
            self.project_out(&mut block);
        }
        block
    }

    /// How far the orthonormal rows of `block` are from orthogonal to the space, as a projection multiplies the errors of the blocks before by up to
    /// `1 / LEFT`: root mean square of what a random combination of them, of unit length, has along the vectors of the space.
    fn drift(&mut self, block: &ArrayRef2<T>) -> f64 {
        let weights = self.gaussian(1, block.nrows());
        let combination = matmul(&weights, block, self.threads);
        let parts = matmul_nt(&combination, &self.basis, self.threads);
        let energy = |a: &Array2<T>| rows(a).map(|row| dot(row, row)).sum::<f64>();
        (energy(&parts) / energy(&weights) / self.len().max(1) as f64).sqrt()
    }

    /// Of the images, widened.
    fn gram_matrix(&self) -> Array2<f64> {
        let p = self.images.nrows();
        let mut g = Array2::zeros((p, p));
        let mut row = 0;
        for block in &self.gram {
            let (b, width) = block.dim();
            g.slice_mut(s![row..row + b, ..width]).zip_mut_with(block, |g, x| *g = x.widen());
            g.slice_mut(s![..width, row..row + b]).zip_mut_with(&block.t(), |g, x| *g = x.widen());
            row += b;
        }
        g
    }

    fn gaussian(&mut self, rows: usize, cols: usize) -> Array2<T> {
        Array2::from_shape_fn((rows, cols), |_| T::narrow(StandardNormal.sample(&mut self.rng)))
    }
}

/// `block` below `a`, which is in standard layout and of as many columns.
pub(crate) fn append_rows<T: Real>(a: &mut Array2<T>, block: &ArrayRef2<T>) {
    let (rows, cols) = a.dim();
    let (mut data, _) = std::mem::replace(a, Array2::zeros((0, cols))).into_raw_vec_and_offset();
    data.extend(block);
    *a = Array2::from_shape_vec((rows + block.nrows(), cols), data).expect("rows of one length");
}

/// Orthonormal rows that span those of `y`, and how much of each row of `y` is orthogonal to the rows before it: by a Cholesky decomposition
/// of their Gram matrix where that is more than the share `least` of each, by Householder reflections otherwise.
fn orthonormal_rows(mut y: Array2<f64>, least: f64, threads: Threads) -> (Array2<f64>, Vec<f64>) {
    if let Some(left) = cholesky_qr(&mut y, least, threads) {
        return (y, left);
    }
    let q = factor(&mut y, threads.par());
    (q, y.diag().iter().map(|x| x.abs()).collect())
}

/// The SVD of a wide matrix, by its Gram matrix where that keeps the digits.
fn wide_svd(b: &Array2<f64>, threads: Threads) -> Result<Svd> {
    let Eigh { values, vectors } = eigh(&gram(&b.t(), threads), threads)?;
    let (most, least) = (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0));
    if b.nrows() > b.ncols() || least.is_nan() || least < TAME * most || most == 0.0 {
        return svd(b, threads);
    }
    let s: Vec<f64> = values.iter().map(|v| v.sqrt()).collect();
    let mut vt = matmul_tn(&vectors, b, threads);
    vt.outer_iter_mut().zip(&s).for_each(|(mut row, s)| row /= *s);
    Ok(Svd { u: vectors, s, vt })
}

impl Krylov<'_, f64> {
    /// [`ritz`](Self::ritz) by an SVD of all images: resolves singular values down to the precision.
    pub fn fine_ritz(&self) -> Result<Svd> {
        let mut images = self.images.clone();
        let q = factor(&mut images, self.threads.par());
        let p = images.nrows();
        let r = Array2::from_shape_fn((q.nrows(), p), |(i, j)| if i <= j { images[[j, i]] } else { 0.0 });
        let small = svd(&r, self.threads)?.truncate(self.rank);
        let ut = matmul_tn(&small.u, &q, self.threads);
        Ok(from_rows(ut, small.s, matmul(&small.vt, &self.basis, self.threads)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{diff, gaussian, orthogonality, with_spectrum};
    use super::*;
    use crate::storage::Storage;

    fn space_of<T: Scalar>(a: &Array2<f64>, storage: Storage, block: usize) {
        let packed = Packed::new(a, storage, Threads(1));
        let mut krylov = Krylov::<T>::new(&packed, 16, 3, Threads(1));
        krylov.start(block);
        krylov.multiply();
        while krylov.len() < a.ncols() {
            krylov.expand(block);
            krylov.multiply();
        }
        let lost = orthogonality(&krylov.basis.t().mapv(T::widen));
        assert!(lost < 100.0 * T::DRIFT, "{storage}: {lost}");
    }

    #[test]
    fn errors_of_one_block_do_not_grow_in_the_next_ones() {
        let decay: Vec<f64> = (1..=200).map(|k| f64::from(k).powf(-0.3)).collect();
        for a in [
            with_spectrum(300, 200, &decay, 4),
            with_spectrum(300, 200, &decay[..20], 4),
            gaussian(300, 200, 4),
        ] {
            space_of::<f32>(&a, Storage::F32, 11);
            space_of::<f64>(&a, Storage::F64, 11);
        }
    }

    #[test]
    fn basis_stays_orthonormal_and_gram_is_that_of_the_images() {
        for a in [gaussian(40, 30, 1), Array2::eye(30), gaussian(40, 2, 1).dot(&gaussian(2, 30, 2))] {
            let packed = Packed::new(&a, Storage::F64, Threads(1));
            let mut krylov = Krylov::<f64>::new(&packed, 3, 7, Threads(1));
            krylov.start(7);
            krylov.multiply();
            while krylov.len() < 30 {
                krylov.expand(7);
                krylov.multiply();
                assert!(orthogonality(&krylov.basis.t().to_owned()) < 1e-12);
            }
            assert!(diff(&krylov.gram_matrix(), &krylov.images.dot(&krylov.images.t())) < 1e-10);
            let exact = svd(&a, Threads(1)).unwrap();
            for got in [krylov.ritz(&krylov.captured().unwrap(), None).unwrap(), krylov.fine_ritz().unwrap()]
            {
                assert!(got.s.iter().zip(&exact.s).all(|(x, y)| (x - y).abs() < 1e-10));
            }
            assert_eq!(krylov.probe().1.nrows(), 0);
        }
    }
}
