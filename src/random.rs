//! Seeded random numbers; no global generator anywhere.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// A stream of standard normal numbers, the same for the same seed on every machine.
#[derive(Debug)]
pub(crate) struct Gaussian(ChaCha8Rng);

impl Gaussian {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn sample(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// A `rows x cols` matrix of independent normals with standard deviation `scale`.
    pub(crate) fn matrix(&mut self, rows: usize, cols: usize, scale: f64) -> ndarray::Array2<f64> {
        ndarray::Array2::from_shape_simple_fn((rows, cols), || scale * self.sample())
    }

    /// The underlying generator, for shuffles and choices.
    pub(crate) fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.0
    }
}
