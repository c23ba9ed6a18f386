//! What several test files need.
#![allow(dead_code)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use structmat::compose::{Combination, DirectSum, Identity, Permuted, Product, Scaled, Sum, Transposed};
use structmat::ndarray::{Array2, ArrayRef2};
use structmat::prelude::*;
use structmat::registry::{self, Entry};
use structmat::{Error, Scalar};

pub mod oracle;
pub mod tiny;

pub type Boxed = Box<dyn StructuredMatrix>;

/// Standard normal entries (by Box and Muller), the same for the same seed.
pub fn gaussian(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    Array2::from_shape_simple_fn((rows, cols), || {
        (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
    })
}

/// The same, in either compute type.
pub fn gaussian_of<T: Scalar>(rows: usize, cols: usize, seed: u64) -> Array2<T> {
    gaussian(rows, cols, seed).mapv(T::narrow)
}

/// A matrix with singular values `s(k)` and random singular vectors.
pub fn with_spectrum(rows: usize, cols: usize, seed: u64, s: impl Fn(usize) -> f64) -> Array2<f64> {
    let rank = rows.min(cols);
    let u = structmat::linalg::qr(&gaussian(rows, rank, seed)).q;
    let v = structmat::linalg::qr(&gaussian(cols, rank, seed + 1)).q;
    let scaled = Array2::from_shape_fn((rows, rank), |(i, k)| u[[i, k]] * s(k));
    scaled.dot(&v.t())
}

/// A well-spread second moment with strong correlations, as activations have.
pub fn correlated_gram(n: usize, seed: u64) -> Gram {
    let mix = with_spectrum(n, n, seed, |k| (1.0 + k as f64).powf(-0.7));
    let x = gaussian(4 * n, n, seed + 7).dot(&mix.t());
    let mut gram = Gram::new(n);
    gram.accumulate(&x).unwrap();
    gram
}

pub fn norm<T: Scalar>(a: &ArrayRef2<T>) -> f64 {
    a.iter().map(|v| v.widen() * v.widen()).sum::<f64>().sqrt()
}

/// `‖a - b‖_F / ‖b‖_F`; 0 where both are zero.
pub fn difference<T: Scalar>(a: &ArrayRef2<T>, b: &Array2<f64>) -> f64 {
    let error = norm(&(a.mapv(T::widen) - b));
    if error == 0.0 { 0.0 } else { error / norm(b) }
}

/// A random member of a family, the smallest of a few budgets that it can meet.
pub fn member(entry: &Entry, shape: (usize, usize), storage: Storage, seed: u64) -> Boxed {
    for ratio in [0.55, 1.0, 2.0, 4.0, 16.0, 64.0] {
        match entry.random(shape, &Request::new().budget(Budget::Ratio(ratio)), storage, seed) {
            Ok(matrix) => return matrix,
            Err(Error::Budget { .. }) => continue,
            Err(error) => panic!("{} at {shape:?}: {error}", entry.name),
        }
    }
    panic!("{} has no member at {shape:?}", entry.name)
}

/// One of each combinator, over families with and without scratch.
pub fn combinators(storage: Storage) -> Vec<Boxed> {
    let low_rank = |m, n, seed| member(registry::family("low_rank").unwrap(), (m, n), storage, seed);
    let dense = |m, n, seed| member(registry::family("dense").unwrap(), (m, n), storage, seed);
    let diagonal = |len, seed| Factor::from_matrix(storage, &gaussian(1, len, seed));
    let rotate = |len: u32| (0..len).map(|i| (i + 3) % len).collect::<Vec<_>>();
    let sum = Sum::new(vec![low_rank(20, 33, 1), dense(20, 33, 2), low_rank(20, 33, 3)]).unwrap();
    let shared = vec![low_rank(20, 33, 17).into(), dense(20, 33, 18).into()];
    let combination = Combination::new(diagonal(2, 19), shared).unwrap();
    let product = Product::new(vec![dense(20, 11, 4), low_rank(11, 40, 5), dense(40, 33, 6)]).unwrap();
    let scaled = Scaled::new(Some(diagonal(20, 7)), low_rank(20, 33, 8), Some(diagonal(33, 9))).unwrap();
    let left = Scaled::new(Some(diagonal(20, 7)), low_rank(20, 33, 8), None).unwrap();
    let permuted = Permuted::new(Some(rotate(20)), low_rank(20, 33, 10), Some(rotate(33))).unwrap();
    let direct = DirectSum::new(vec![low_rank(9, 13, 11), dense(5, 20, 12), low_rank(6, 1, 13)]).unwrap();
    let nested = Transposed::new(Box::new(
        Sum::new(vec![Box::new(product.clone()), Box::new(permuted.clone())]).unwrap(),
    ));
    let single = Product::new(vec![dense(3, 4, 14)]).unwrap();
    let diagonal = Identity::diagonal(diagonal(17, 15)).unwrap();
    let reflection = Sum::new(vec![Box::new(Identity::new(20).unwrap()), low_rank(20, 20, 16)]).unwrap();
    vec![
        Box::new(sum),
        Box::new(combination),
        Box::new(product),
        Box::new(scaled),
        Box::new(left),
        Box::new(permuted),
        Box::new(direct),
        Box::new(nested),
        Box::new(single),
        Box::new(diagonal),
        Box::new(reflection),
    ]
}

/// `tr(E C Eᵀ)` of the error `E = W - Ŵ`.
pub fn weighted_energy(w: &Array2<f64>, approximation: &dyn StructuredMatrix, gram: &Gram) -> f64 {
    Objective::Activations(gram).energy(&(w - &approximation.to_dense_f64()))
}

/// A second moment of rank `rank`.
pub fn singular_gram(n: usize, rank: usize, seed: u64) -> Gram {
    let mut gram = Gram::new(n);
    gram.accumulate(&gaussian(rank, n, seed)).unwrap();
    gram
}

/// Options in double precision: no rounding hides a claim.
pub fn exactly() -> Options<'static> {
    Options { storage: Storage::F64, ..Options::default() }
}

/// Whether no entry is above the one before.
pub fn falls(history: &[f64]) -> bool {
    history.windows(2).all(|pair| pair[1] <= pair[0])
}
