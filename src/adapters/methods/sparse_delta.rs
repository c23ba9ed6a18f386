use crate::adapters::{Additive, Boxed};
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use crate::structures::Sparse;

/// Free entries: `D[row, col] = value` for each `(row, col, value)`; entries of one position add up (SHiRA, Super-Tuning, SPT).
///
/// Cost: one multiply-add per entry.
///
/// Source: K. Bhardwaj et al., "Sparse High Rank Adapters", 2024.
///
/// # Errors
/// [`Error::Parameter`] for an entry outside of the matrix.
///
/// ```
/// use structmat::adapters::methods;
/// use structmat::ndarray::array;
/// let adapter = methods::sparse_delta((2, 2), vec![(1, 0, 3.0), (0, 1, 2.0)])?;
/// assert_eq!(adapter.matrix().to_dense_f64(), array![[0.0, 2.0], [3.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn sparse_delta(shape: (usize, usize), entries: Vec<(usize, usize, f64)>) -> Result<Additive> {
    let params = entries.len();
    Ok(Additive::new("sparse", sparse(shape, entries)?).with_params(params))
}

/// The sparse matrix of these entries.
pub(crate) fn sparse((m, n): (usize, usize), mut entries: Vec<(usize, usize, f64)>) -> Result<Boxed> {
    if let Some((row, col, _)) = entries.iter().find(|(row, col, _)| *row >= m || *col >= n) {
        return Err(Error::parameter("entry", format!("({row}, {col})"), format!("inside {m} x {n}")));
    }
    entries.sort_by_key(|&(row, col, _)| (row, col));
    entries.dedup_by(|next, entry| {
        let same = (next.0, next.1) == (entry.0, entry.1);
        entry.2 += if same { next.2 } else { 0.0 };
        same
    });
    let values = Factor::from_fn(Storage::F32, (1, 1, entries.len()), |_, _, k| entries[k].2);
    let cols = entries.iter().map(|entry| entry.1 as u32).collect();
    let starts = (0..=m).map(|row| entries.partition_point(|entry| entry.0 < row) as u32).collect();
    Ok(Box::new(Sparse::new((m, n), values, cols, starts)?))
}
