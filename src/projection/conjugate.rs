//! Least squares in one factor of a product, the others held: the step of alternating projections.

use super::{Objective, Run, ratio};
use crate::error::Result;
use crate::linalg;
use ndarray::{Array1, Array2};

/// Directions whose curvature is below this fraction of the largest one met are flat: a step along them would move `x` by
/// 10^5 times what it can move `W`, which is rounding noise in the best case and cancels badly in any storage.
const FLAT: f64 = 1e-10;

/// Lowers the energy of `W - expand(x)` by conjugate gradients on the normal equations, from `x`; returns the energy reached.
///
/// `adjoint` is the transpose of the linear map `expand`. No inverse is formed, and flat directions are left alone, so that a
/// singular second moment is as good as any other.
pub(crate) fn least_squares(
    w: &Array2<f64>,
    objective: &Objective<'_>,
    run: &Run<'_>,
    iterations: usize,
    x: &mut Array1<f64>,
    expand: impl Fn(&Array1<f64>) -> Array2<f64>,
    adjoint: impl Fn(&Array2<f64>) -> Array1<f64>,
) -> Result<f64> {
    let weigh = |e: Array2<f64>| match objective.second_moment() {
        None => e,
        Some(c) => linalg::matmul(&e, c, run.threads()),
    };
    let image = expand(x);
    let mut steepest = ratio(objective.energy(&image), x.dot(x));
    let mut residual = w - &image;
    let mut gradient = adjoint(&weigh(residual.clone()));
    let mut direction = gradient.clone();
    let mut square = gradient.dot(&gradient);
    let small = 1e-24 * square;
    for _ in 0..iterations {
        run.check()?;
        let image = expand(&direction);
        let weighted = weigh(image.clone());
        let curvature: f64 = image.iter().zip(&weighted).map(|(a, b)| a * b).sum();
        let length = direction.dot(&direction);
        steepest = steepest.max(curvature / length);
        let flat = curvature.is_nan() || curvature <= FLAT * steepest * length;
        if flat || square <= small {
            break;
        }
        let step = square / curvature;
        x.scaled_add(step, &direction);
        residual.scaled_add(-step, &image);
        gradient.scaled_add(-step, &adjoint(&weighted));
        let next = gradient.dot(&gradient);
        direction *= next / square;
        direction += &gradient;
        square = next;
    }
    Ok(objective.energy(&residual))
}
