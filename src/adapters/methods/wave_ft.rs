use super::{Wavelet, sparse_delta::sparse};
use crate::adapters::{Additive, Boxed};
use crate::compose::Product;
use crate::error::{Error, Result};

/// WaveFT: $D = s\,\mathrm{idwt2}(S)$, the inverse two-dimensional wavelet transform of a sparse matrix of wavelet coefficients; without a
/// `wavelet` $D = s S$.
///
/// `positions` (row, column) are those within `out x in`; a filter of `L` taps needs a border of `L - 2`, in whose middle `S` is put. The
/// transform is a product of three sparse matrices, `out L`, one per coefficient, and `in L` entries: what a product costs, instead of
/// `out in`.
///
/// Source: A. Bilican et al., "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets", 2025.
///
/// # Errors
/// [`Error::Shape`] when there are not as many numbers as positions, [`Error::Parameter`] for a position outside of the matrix.
///
/// ```
/// use structmat::adapters::methods::{Wavelet, wave_ft};
/// use structmat::ndarray::array;
/// let adapter = wave_ft((2, 2), &[(0, 0)], &[2.0], Wavelet::named("db1").as_ref(), 1.0)?;
/// let d = adapter.matrix().to_dense_f64();
/// assert!((d - array![[1.0, 1.0], [1.0, 1.0]]).iter().all(|e| e.abs() < 1e-6));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn wave_ft(
    (m, n): (usize, usize),
    positions: &[(usize, usize)],
    spectrum: &[f64],
    wavelet: Option<&Wavelet>,
    scale: f64,
) -> Result<Additive> {
    if positions.len() != spectrum.len() {
        return Err(Error::shape("spectrum", &[positions.len()], &[spectrum.len()]));
    }
    if let Some((row, col)) = positions.iter().find(|(row, col)| *row >= m || *col >= n) {
        return Err(Error::parameter("position", format!("({row}, {col})"), format!("inside {m} x {n}")));
    }
    let entries = positions.iter().zip(spectrum);
    let params = spectrum.len();
    let Some(wavelet) = wavelet else {
        let entries = entries.map(|(&(row, col), value)| (row, col, scale * value)).collect();
        return Ok(Additive::new("waveft", sparse((m, n), entries)?).with_params(params));
    };
    let padded = |len: usize| (len + wavelet.low().len() - 2).next_multiple_of(2);
    let (rows, cols) = (padded(m), padded(n));
    // Quadrants: of rows and columns, each either half. Details of one axis stand in the half of the other.
    let placed = entries.map(|(&(row, col), value)| {
        let (row, col) = (row + (rows - m) / 2, col + (cols - n) / 2);
        let (down, right) = (row / (rows / 2), col / (cols / 2));
        (right * (rows / 2) + row % (rows / 2), down * (cols / 2) + col % (cols / 2), scale * value)
    });
    let core = sparse((rows, cols), placed.collect())?;
    let right = crate::compose::Transposed::new(synthesis(n, cols, wavelet)?);
    let product = Product::new(vec![synthesis(m, rows, wavelet)?, core, Box::new(right)])?;
    Ok(Additive::new("waveft", Box::new(product)).with_params(params))
}

/// One level of the inverse transform, `len x padded`: the low-pass half of the coefficients, then the high-pass half; cut to the middle.
fn synthesis(len: usize, padded: usize, wavelet: &Wavelet) -> Result<Boxed> {
    let (taps, half) = (wavelet.low().len(), padded / 2);
    let cut = (padded + 2 - taps - len) / 2;
    let mut entries = Vec::new();
    for (side, filter) in [wavelet.low().to_vec(), wavelet.high()].iter().enumerate() {
        for i in 0..half {
            // Coefficient i spreads over outputs 2 i .. 2 i + taps of the full convolution, whose first taps - 2 are dropped.
            for (k, value) in filter.iter().enumerate() {
                let at = (2 * i + k).checked_sub(taps - 2 + cut);
                entries.extend(at.filter(|at| *at < len).map(|at| (at, side * half + i, *value)));
            }
        }
    }
    sparse((len, padded), entries)
}
