use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::parts::Parts;
use crate::projection::Family;
use crate::storage::{Factor, Storage};
use crate::structures::Fourier;
use std::collections::BTreeMap;

/// FourierFT: $D = s\,\mathrm{Re}\,\mathrm{ifft2}(S)$, with the real numbers `spectrum` at the `positions` (row, column) of $S$, zeros elsewhere.
///
/// Real coefficients make `D` even: `D[-j, -k] = D[j, k]`. So it is the Fourier matrix whose mirrored pairs share each coefficient; cost:
/// two transforms and one multiply-add per coefficient, where the dense product would cost `out * in`.
///
/// Source: Z. Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", 2024.
///
/// # Errors
/// [`Error::Shape`] when there are not as many numbers as positions, [`Error::Parameter`] for a position outside of the matrix, and
/// [`Error::Record`] for a shape beyond what transforms serve.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let adapter = methods::fourier_ft((2, 2), &[(0, 1)], &[1.0], 4.0)?;
/// let d = adapter.matrix().to_dense_f64();
/// assert!((d - array![[1.0, -1.0], [1.0, -1.0]]).iter().all(|e| e.abs() < 1e-6));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn fourier_ft(
    (m, n): (usize, usize),
    positions: &[(usize, usize)],
    spectrum: &[f64],
    scale: f64,
) -> Result<Additive> {
    if positions.len() != spectrum.len() {
        return Err(Error::shape("spectrum", &[positions.len()], &[spectrum.len()]));
    }
    if m.checked_mul(n).is_none_or(|all| u32::try_from(all).is_err()) {
        return Err(Error::parameter("shape", format!("{m} x {n}"), "at most 2^32 entries"));
    }
    // Orthonormal transforms hold 1 / sqrt(m n) on either side; the pair of a coefficient and its mirror image counts twice.
    let scale = scale / ((m * n) as f64).sqrt();
    let mut kept: BTreeMap<usize, f64> = BTreeMap::new();
    for (&(row, col), &c) in positions.iter().zip(spectrum) {
        if row >= m || col >= n {
            return Err(Error::parameter("position", format!("({row}, {col})"), format!("inside {m} x {n}")));
        }
        let (index, mirror) = (row * n + col, (m - row) % m * n + (n - col) % n);
        *kept.entry(index.min(mirror)).or_default() += if index == mirror { c } else { 0.5 * c } * scale;
    }
    let values: Vec<f64> = kept.values().copied().collect();
    let indices: Vec<u32> = kept.keys().map(|&index| index as u32).collect();
    let values = Factor::from_fn(
        Storage::F32,
        (1, 2, values.len()),
        |_, part, k| {
            if part == 0 { values[k] } else { 0.0 }
        },
    );
    let parts = Parts::new(Fourier::NAME, (m, n))
        .with_config(&serde_json::json!({ "transform": "dft" }))
        .factor("values", values)
        .index("indices", indices);
    let params = spectrum.len();
    Ok(Additive::new("fourierft", Box::new(Fourier::from_parts(parts)?)).with_params(params))
}
