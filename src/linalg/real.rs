//! The two precisions of dense linear algebra.

use ndarray::LinalgScalar;
use std::ops::{AddAssign, SubAssign};

/// `f32` or `f64`.
pub trait Real: LinalgScalar + AddAssign + SubAssign + faer::traits::RealField + sealed::Sealed {
    /// A unit vector of which a projection leaves less than this has lost its direction to rounding.
    const LOST: f64;
    /// Root mean square of inner products with which unit vectors count as orthogonal.
    const DRIFT: f64;
    /// Squares of numbers of magnitudes between its inverse and it, and of far smaller ones beside them, are representable.
    const SAFE: f64;
    /// Rounds an `f64` to this type.
    fn narrow(value: f64) -> Self;
    /// Widens to `f64`, exactly.
    fn widen(self) -> f64;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

impl Real for f32 {
    const LOST: f64 = 1e-3;
    const DRIFT: f64 = 1e-6;
    const SAFE: f64 = 1e10;
    #[inline(always)]
    fn narrow(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn widen(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const LOST: f64 = 1e-6;
    const DRIFT: f64 = 2e-15;
    const SAFE: f64 = 1e100;
    #[inline(always)]
    fn narrow(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
}
