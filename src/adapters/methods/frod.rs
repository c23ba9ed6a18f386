use super::{dense, expect};
use crate::adapters::{Adapter, Edit, check_base};
use crate::error::{Error, Result};
use crate::linalg::lstsq;
use crate::matrix::StructuredMatrix;
use ndarray::{Array2, ArrayRef2, Axis};

/// FRoD: $W' = U (\mathrm{diag}(l) + S) V^T$ in a basis `V` that layers share, where $U = W V^{-T}$ with its columns brought to norm 1 and `S` is
/// sparse.
///
/// The change is made when the adapter is bound (one solve with `V`, `in³`), and costs `out in` per vector.
///
/// Source: the form of HuggingFace PEFT.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::Frod};
/// use structmat::ndarray::{Array2, array};
/// let base = Dense::new(&array![[3.0f32, 0.0], [4.0, 1.0]])?;
/// let frod = Frod::new((2, 2), &Array2::eye(2), vec![10.0, 1.0], vec![])?;     // the first column has norm 5
/// assert!((frod.delta(&base)? - array![[3.0, 0.0], [4.0, 0.0]]).iter().all(|e| e.abs() < 1e-6));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Frod {
    shape: (usize, usize),
    v: Array2<f64>,
    core: Array2<f64>,
    params: usize,
}

impl Frod {
    /// From `v` (`in x in`), the diagonal, and the entries (row, column, value) of `S`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes differ, [`Error::Parameter`] for an entry outside of the matrix.
    pub fn new(
        (m, n): (usize, usize),
        v: &ArrayRef2<f64>,
        diagonal: Vec<f64>,
        entries: Vec<(usize, usize, f64)>,
    ) -> Result<Self> {
        expect("FRoD basis", v, (n, n))?;
        if diagonal.len() != n {
            return Err(Error::shape("FRoD diagonal", &[n], &[diagonal.len()]));
        }
        let params = diagonal.len() + entries.len();
        let mut core = Array2::from_diag(&ndarray::Array1::from(diagonal));
        for (row, col, value) in entries {
            match core.get_mut((row, col)) {
                Some(entry) => *entry += value,
                None => {
                    let wanted = format!("inside {n} x {n}");
                    return Err(Error::parameter("FRoD entry", format!("({row}, {col})"), wanted));
                }
            }
        }
        Ok(Self { shape: (m, n), v: v.to_owned(), core, params })
    }
}

impl Adapter for Frod {
    fn kind(&self) -> &'static str {
        "frod"
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn n_params(&self) -> usize {
        self.params
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape)?;
        let w = base.to_dense_f64();
        let mut u = lstsq(&self.v, &w.t())?.reversed_axes();
        for mut column in u.axis_iter_mut(Axis(1)) {
            let norm = column.dot(&column).sqrt();
            column.mapv_inplace(|v| if norm > 0.0 { v / norm } else { v });
        }
        let merged = u.dot(&self.core).dot(&self.v.t());
        Edit::of(self.shape).with_delta(dense(&(merged - w))?)
    }
}
