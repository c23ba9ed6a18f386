//! Column-sparse matrices: a layer that reads only some of its inputs.

use crate::compose::{gather, scatter};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, gathered, stack_gradient};
use crate::linalg::{SpdSolver, Threads, matmul};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, largest, scale_outputs, select};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, Axis};

/// $W = A\, E_J^T$: columns `A` (out x kept) for the inputs $J$, zero for all others; $W x = A\, x_J$.
///
/// Parameters and multiply-adds: `out * kept`; each kept column takes an index of 4 bytes.
///
/// Projection: the columns of largest norm, which is optimal. With activations, the inputs are chosen greedily by how much of
/// $W x$ they explain, and the others are regressed on them, $A = (W C)_J C_{JJ}^{-1}$, which is optimal for given $J$; the
/// largest columns are tried too, so that the error is never above that of the plain projection.
///
/// Source: A. Farahat et al., "An efficient greedy method for unsupervised feature selection", 2011.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// let w = array![[3.0f32, 0.1, 1.0], [4.0, 0.2, -2.0]];
/// let spec = ColumnSparseSpec { kept: 2 };
/// let sparse = ColumnSparse::project(&w, &spec, &Objective::Frobenius, &Options::default())?.matrix;
/// assert_eq!(sparse.to_dense::<f32>(), array![[3.0, 0.0, 1.0], [4.0, 0.0, -2.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSparse {
    inputs: usize,
    columns: Factor,
    kept: Vec<u32>,
}

/// Parameters of [`ColumnSparse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnSparseSpec {
    /// Kept columns, at most `in`.
    pub kept: usize,
}

impl ColumnSparse {
    /// Columns `columns` (out x kept) of a matrix with `inputs` columns, at the ascending places `kept`.
    ///
    /// # Errors
    /// [`Error::Record`] when they do not fit together.
    pub fn new(inputs: usize, columns: Factor, kept: Vec<u32>) -> Result<Self> {
        let shape = (columns.rows(), inputs);
        Self::from_parts(Parts::new(Self::NAME, shape).factor("columns", columns).index("kept", kept))
    }

    /// From checked parts.
    pub(crate) fn from_columns(
        storage: Storage,
        inputs: usize,
        columns: &Array2<f64>,
        kept: &[usize],
    ) -> Self {
        let kept = kept.iter().map(|&j| j as u32).collect();
        Self { inputs, columns: Factor::from_matrix(storage, columns).packed_forward(), kept }
    }

    /// The columns, `out x kept`.
    pub fn columns(&self) -> &Factor {
        &self.columns
    }

    /// The kept inputs, ascending.
    pub fn kept(&self) -> &[u32] {
        &self.kept
    }
}

/// `(M C)_J C_JJ⁻¹`: the matrix on the inputs `J` that is closest to `M` as `C` sees it.
pub(crate) fn regress(
    m: &Array2<f64>,
    c: &Array2<f64>,
    kept: &[usize],
    run: &Run<'_>,
) -> Result<Array2<f64>> {
    let cj = c.select(Axis(1), kept);
    let solver = SpdSolver::new(&cj.select(Axis(0), kept), 1e-10)?.with_threads(run.threads());
    Ok(solver.solve_right(&matmul(m, &cj, run.threads())))
}

/// `columns` at the places `kept` of a matrix with `n` columns.
pub(crate) fn spread(columns: &Array2<f64>, kept: &[usize], n: usize) -> Array2<f64> {
    let mut w = Array2::zeros((columns.nrows(), n));
    for (k, &j) in kept.iter().enumerate() {
        w.column_mut(j).assign(&columns.column(k));
    }
    w
}

/// Squared norms of columns.
pub(crate) fn column_energies(w: &Array2<f64>) -> Vec<f64> {
    let mut sums = vec![0.0; w.ncols()];
    w.outer_iter().for_each(|row| sums.iter_mut().zip(row).for_each(|(s, v)| *s += v * v));
    sums
}

impl<T: Scalar> Multiply<T> for ColumnSparse {
    fn multiply(&self, Operands { op, x, mut y, update, work }: Operands<'_, T>) {
        let policy = work.policy;
        let (mut picked, _) = work.matrix(x.rows(), self.kept.len());
        match op {
            Op::Forward => {
                gather(&self.kept, x, picked.reborrow(), Update::Overwrite);
                self.columns.multiply(op, picked.as_rows(), y, update, policy);
            }
            Op::Transpose => {
                self.columns.multiply(op, x, picked.reborrow(), Update::Overwrite, policy);
                if update == Update::Overwrite {
                    y.fill(T::default());
                }
                scatter(&self.kept, picked.as_rows(), y, update);
            }
        }
    }
}

impl<T: Scalar> Differentiate<T> for ColumnSparse {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let kept = gathered(&x.t(), self.kept.iter().map(|&j| j as usize));
        vec![stack_gradient(1, &dy.t(), &kept, threads)]
    }
}

impl StructuredMatrix for ColumnSparse {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.columns.rows(), self.inputs)
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * self.columns.len() as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        Workspace::<f32>::matrix_len(batch, self.kept.len())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let kept: Vec<usize> = self.kept.iter().map(|&j| j as usize).collect();
        spread(&self.columns.matrix(0), &kept, self.inputs)
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape()).factor("columns", &self.columns).index("kept", &self.kept)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for ColumnSparse {
    const NAME: &'static str = "column_sparse";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[("kept", "number of kept input channels")];
    type Spec = ColumnSparseSpec;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<ColumnSparseSpec> {
        let size = |k| request.size().factor(1, out, k).indices(k);
        let kept = request.choose(Self::NAME, (out, inp), "kept", 1..=inp, size)?;
        Ok(ColumnSparseSpec { kept })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &ColumnSparseSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let n = w.ncols();
        if spec.kept == 0 || spec.kept > n {
            return Err(Error::parameter("kept", spec.kept, format!("1 to {n}")));
        }
        let plain = largest(&column_energies(w), spec.kept);
        let copied = w.select(Axis(1), &plain);
        let Some(c) = objective.second_moment() else {
            return Ok(Fit::optimal(Self::from_columns(run.storage(), n, &copied, &plain)));
        };
        let mut greedy = select(c, matmul(c, &w.t(), run.threads()), spec.kept, run)?;
        // Inputs that the chosen ones determine fill up the number asked for.
        let mut chosen = vec![false; n];
        greedy.iter().for_each(|&j| chosen[j] = true);
        greedy.extend((0..n).filter(|&j| !chosen[j]).take(spec.kept - greedy.len()));
        greedy.sort_unstable();
        let energy =
            |columns: &Array2<f64>, kept: &[usize]| objective.energy(&(w - &spread(columns, kept, n)));
        let mut best = (energy(&copied, &plain), copied, plain.clone());
        for kept in [plain, greedy] {
            let columns = regress(w, c, &kept, run)?;
            let energy = energy(&columns, &kept);
            if energy < best.0 {
                best = (energy, columns, kept);
            }
        }
        Ok(Fit::local(Self::from_columns(run.storage(), n, &best.1, &best.2), Vec::new()))
    }

    fn random(
        (out, inp): (usize, usize),
        spec: &ColumnSparseSpec,
        storage: Storage,
        seed: u64,
    ) -> Result<Self> {
        let mut gaussian = Gaussian::new(seed);
        let scores: Vec<f64> = (0..inp).map(|_| gaussian.sample()).collect();
        let kept = largest(&scores, spec.kept);
        let columns = gaussian.matrix(out, kept.len(), (kept.len().max(1) as f64).powf(-0.5));
        Ok(Self::from_columns(storage, inp, &columns, &kept))
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        scale_outputs(self, scale, storage, |_, (_, row, _)| Some(row))
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (m, n) = parts.shape();
        let (columns, kept) = (parts.take_factor("columns")?, parts.take_indices("kept", n)?);
        if columns.shape() != (1, m, kept.len()) || kept.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(parts.error(format!(
                "columns {:?}, {} kept: expected (1, {m}, kept) and ascending indices",
                columns.shape(),
                kept.len()
            )));
        }
        Ok(Self { inputs: n, columns: columns.packed_forward(), kept })
    }
}
