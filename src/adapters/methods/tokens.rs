use super::sparse_delta::sparse;
use crate::adapters::{Adapter, Edit, check_base};
use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use ndarray::{Array2, ArrayRef2};

/// Some rows of a table replaced: trained token embeddings.
///
/// Cost: one addition per number of a replaced row.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::Tokens};
/// use structmat::ndarray::array;
/// let table = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?;
/// let tokens = Tokens::new(2, vec![1], &array![[5.0, 4.0]])?;
/// assert_eq!(tokens.delta(&table)?, array![[0.0, 0.0], [2.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokens {
    table: usize,
    indices: Vec<usize>,
    rows: Array2<f64>,
}

impl Tokens {
    /// `rows` in the place of those that `indices` name, of a table of so many rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of rows, [`Error::Parameter`] for an index that is not there or twice.
    pub fn new(table: usize, indices: Vec<usize>, rows: &ArrayRef2<f64>) -> Result<Self> {
        if rows.nrows() != indices.len() {
            return Err(Error::shape("replaced rows", &[indices.len(), rows.ncols()], rows.shape()));
        }
        let mut seen = std::collections::BTreeSet::new();
        if let Some(index) = indices.iter().find(|&&index| index >= table || !seen.insert(index)) {
            return Err(Error::parameter("token index", index, format!("less than {table}, each once")));
        }
        Ok(Self { table, indices, rows: rows.to_owned() })
    }
}

impl Adapter for Tokens {
    fn kind(&self) -> &'static str {
        "tokens"
    }
    fn shape(&self) -> (usize, usize) {
        (self.table, self.rows.ncols())
    }
    fn n_params(&self) -> usize {
        self.rows.len()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape())?;
        let w = base.to_dense_f64();
        let entries = self.indices.iter().zip(self.rows.outer_iter());
        let entries = entries.flat_map(|(&index, row)| {
            let w = w.row(index);
            row.iter().enumerate().map(|(j, v)| (index, j, v - w[j])).collect::<Vec<_>>()
        });
        Edit::of(self.shape()).with_delta(sparse(self.shape(), entries.collect())?)
    }
}
