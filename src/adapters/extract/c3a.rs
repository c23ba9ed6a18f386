use super::{Found, check};
use crate::adapters::methods;
use crate::error::Result;
use ndarray::{Array3, ArrayRef2};

/// Means over the wrapped diagonals of each block; PEFT divides by the number of inputs.
pub(super) fn find(delta: &ArrayRef2<f64>, b: usize) -> Result<Found> {
    let (m, n) = delta.dim();
    let divides = (1..=m.min(n)).contains(&b) && m.is_multiple_of(b) && n.is_multiple_of(b);
    check(divides, b, || format!("a divisor of {m} and {n}"))?;
    let mut kernel = Array3::zeros((m / b, n / b, b));
    for ((o, j), value) in delta.indexed_iter() {
        kernel[[o / b, j / b, (j % b + b - o % b) % b]] += value * n as f64 / b as f64;
    }
    Ok(Found::additive(methods::c3a(&kernel)?, vec![("c3a_kernel", kernel.into_dyn())]))
}
