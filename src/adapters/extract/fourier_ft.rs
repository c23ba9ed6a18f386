use super::{Found, check};
use crate::adapters::methods;
use crate::adapters::peft::{SEED, drawn_positions};
use crate::error::{Error, Result};
use crate::kernels::fft2;
use ndarray::{Array1, ArrayRef2};
use num_complex::Complex;
use std::collections::HashSet;

/// PEFT's scale.
pub(super) const SCALE: f64 = 150.0;

/// The coefficients at the positions that PEFT draws. The pictures of different mirrored pairs are orthogonal; those of both places of a pair
/// are the same, and share what is there.
pub(super) fn find(delta: &ArrayRef2<f64>, count: usize) -> Result<Found> {
    let (m, n) = delta.dim();
    let wanted = || format!("1 to {m} x {n}, at most 2^32 of which are drawn from");
    check(count > 0, count, wanted)?;
    let positions = drawn_positions((m, n), count, SEED);
    let positions = positions.ok_or_else(|| Error::parameter("rank", count, wanted()))?;
    let mut spectrum = delta.mapv(Complex::from);
    fft2(&mut spectrum, false);
    let drawn: HashSet<(usize, usize)> = positions.iter().copied().collect();
    // The transform is orthonormal, PEFT's is not.
    let scale = ((m * n) as f64).sqrt() / SCALE;
    let numbers: Array1<f64> = positions
        .iter()
        .map(|&(row, col)| {
            let mirror = ((m - row) % m, (n - col) % n);
            let alone = mirror != (row, col) && !drawn.contains(&mirror);
            scale * spectrum[[row, col]].re * if alone { 2.0 } else { 1.0 }
        })
        .collect();
    let adapter = methods::fourier_ft((m, n), &positions, &numbers.to_vec(), SCALE)?;
    Ok(Found::additive(adapter, vec![("fourierft_spectrum", numbers.into_dyn())]))
}
