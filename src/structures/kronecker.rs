//! Sums of Kronecker products.

use super::expanded::{Expand, Expanded};
use super::tensor_train::{
    Modes, SVD_SLACK, Train, balanced, load, plain_sweeps, store, transpose_each, turned,
};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, padded};
use crate::kernels::{Rows, RowsMut};
use crate::linalg;
use crate::linalg::{Threads, matmul, matmul_into, matmul_nt};
use crate::matrix::{Multiply, Operands, StructuredMatrix, Update};
use crate::parts::{MAX_FEATURES, Parts};
use crate::projection::{Family, Fit, Guarantee, Objective, Request, Run};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, Axis};

/// $W = \sum_{k=1}^K A_k \otimes B_k$, with $A_k$ of $m_1 \times n_1$ and $B_k$ of $m_2 \times n_2$.
///
/// Parameters: $K (m_1 n_1 + m_2 n_2)$. With $x$ as an $n_1 \times n_2$ matrix $X$, the product is $\sum_k A_k X B_k^T$, in the
/// cheaper order: $K \min(n_1 m_2 n_2 + m_1 n_1 m_2, m_1 n_1 n_2 + m_1 m_2 n_2)$ multiply-adds. Where $m_1$ does not divide the rows
/// (or $n_1$ the columns), $m_2 = \lceil m / m_1 \rceil$ and the product is cut to size. With so many terms that the dense product
/// takes less, the dense matrix is made on the first product and multiplied.
///
/// Projection: the truncated singular value decomposition of the rearranged matrix (Van Loan and Pitsianis), optimal where
/// nothing is padded. With padding, sweeps of alternating least squares on the entries that are kept follow, which never
/// raise the error. With activations those sweeps start from the plain projection or, where better, from the optimum for
/// the Kronecker product nearest to $C$.
///
/// Source: C. Van Loan and N. Pitsianis, "Approximation with Kronecker products", 1993.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((6, 6), |(i, j)| ((1 + i / 3 + j / 3) * (2 + i % 3 * (j % 3))) as f32);
/// let spec = KroneckerSpec { terms: 1, rows: (2, 3), cols: (2, 3) };
/// let kronecker = Kronecker::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(kronecker.report.relative_error < 1e-6);
/// assert_eq!(kronecker.matrix.n_params(), 13);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Kronecker {
    shape: (usize, usize),
    a: Factor,
    b: Factor,
    expanded: Expanded,
}

/// Parameters of [`Kronecker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KroneckerSpec {
    /// Number of terms.
    pub terms: usize,
    /// `(m_1, m_2)`: rows of the `A_k` and of the `B_k`; `m_1 m_2` is at least `out`.
    pub rows: (usize, usize),
    /// `(n_1, n_2)`: columns likewise.
    pub cols: (usize, usize),
}

impl KroneckerSpec {
    fn modes(&self) -> Modes {
        Modes { rows: vec![self.rows.0, self.rows.1], cols: vec![self.cols.0, self.cols.1] }
    }

    fn check(&self, (m, n): (usize, usize)) -> Result<()> {
        let bad = |size: usize, (one, two): (usize, usize)| {
            one == 0 || one > size.max(1) || two != size.max(1).div_ceil(one)
        };
        if bad(m, self.rows) || bad(n, self.cols) {
            let value = format!("{}x{}", self.rows.0, self.cols.0);
            return Err(Error::parameter("blocks", value, format!("m1 x n1, at most {m} x {n}")));
        }
        let most = self.most();
        if self.terms == 0 || self.terms > most {
            return Err(Error::parameter("terms", self.terms, format!("1 to {most}")));
        }
        Ok(())
    }

    fn most(&self) -> usize {
        self.rows.0.saturating_mul(self.cols.0).min(self.rows.1.saturating_mul(self.cols.1))
    }
}

impl Kronecker {
    /// The sum of `A_k ⊗ B_k` over the blocks of `a` and `b`, cut to `shape`.
    ///
    /// # Errors
    /// [`Error::Record`] when the sizes do not fit together.
    pub fn new(shape: (usize, usize), a: Factor, b: Factor) -> Result<Self> {
        Self::from_parts(Parts::new(Self::NAME, shape).factor("a", a).factor("b", b))
    }

    /// Number of terms.
    pub fn terms(&self) -> usize {
        self.a.blocks()
    }

    /// Entries of the largest intermediate, per batch row.
    fn widest(&self) -> usize {
        self.a.rows().max(self.a.cols()) * self.b.rows().max(self.b.cols())
    }

    /// Multiply-adds per term with the right factors first, and with the left factors first.
    fn costs(&self) -> (u64, u64) {
        let [m1, n1, m2, n2] = [self.a.rows(), self.a.cols(), self.b.rows(), self.b.cols()].map(|v| v as u64);
        (n1 * m2 * n2 + m1 * n1 * m2, m1 * n1 * n2 + m1 * m2 * n2)
    }

    fn from_train(train: &Train, shape: (usize, usize), storage: Storage) -> Self {
        let (a, b, modes) = (&train.cores[0], &train.cores[1], &train.modes);
        let (terms, n1, n2) = (a.ncols(), modes.cols[0], modes.cols[1]);
        let right = |k: usize, i: usize, j: usize| b[[(k * modes.rows[1] + i) * n2 + j, 0]];
        let per_term = b.nrows() / terms;
        // Both factors of a term get the same norm.
        let scale: Vec<f64> = (0..terms)
            .map(|k| {
                let left: f64 = a.column(k).iter().map(|v| v * v).sum();
                let right: f64 = b.column(0).iter().skip(k * per_term).take(per_term).map(|v| v * v).sum();
                if left > 0.0 && right > 0.0 { (right / left).powf(0.25) } else { 1.0 }
            })
            .collect();
        let shape_a = (terms, modes.rows[0], n1);
        let shape_b = (terms, modes.rows[1], n2);
        Self {
            shape,
            a: Factor::from_fn(storage, shape_a, |k, i, j| a[[i * n1 + j, k]] * scale[k]).packed_forward(),
            b: Factor::from_fn(storage, shape_b, |k, i, j| right(k, i, j) / scale[k]).packed_forward(),
            expanded: Expanded::default(),
        }
    }
}

impl Expand for Kronecker {
    fn expanded(&self) -> &Expanded {
        &self.expanded
    }
    fn numbers(&self) -> usize {
        self.a.len() + self.b.len()
    }
    fn own_flops(&self) -> u64 {
        let (right, left) = self.costs();
        2 * self.terms() as u64 * right.min(left)
    }
}

impl<T: Scalar> Multiply<T> for Kronecker {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(Operands { op, x, y, update, work }) = self.multiply_densely(operands) else { return };
        let (batch, policy, len) = (x.rows(), work.policy, x.rows() * self.widest());
        let (o1, i1) = op.order(self.a.rows(), self.a.cols());
        let (o2, i2) = op.order(self.b.rows(), self.b.cols());
        let (input, work) = work.slice(len);
        let (half, work) = work.slice(len);
        let (turned, work) = work.slice(len);
        let (sum, _) = work.slice(len);
        let (right, left) = op.order(self.costs().0, self.costs().1);
        let right_first = right <= left;
        load(x, &mut input[..batch * i1 * i2], i1 * i2);
        // First factor: `count` rows of `i` inputs to `o` outputs; then its outputs move in front of the other digit.
        let (first, second, (count, i, o), (count2, i_2, o_2)) = if right_first {
            (&self.b, &self.a, (i1, i2, o2), (o2, i1, o1))
        } else {
            transpose_each(&input[..batch * i1 * i2], &mut turned[..batch * i1 * i2], i1, i2);
            input[..batch * i1 * i2].copy_from_slice(&turned[..batch * i1 * i2]);
            (&self.a, &self.b, (i2, i1, o1), (o1, i2, o2))
        };
        for k in 0..self.terms() {
            let from = Rows::new(&input[..batch * count * i], batch * count, i, i);
            let to = RowsMut::new(&mut half[..batch * count * o], batch * count, o, o);
            first.multiply_rows(k, 0..first.rows(), op, from, to, Update::Overwrite, policy);
            transpose_each(&half[..batch * count * o], &mut turned[..batch * count * o], count, o);
            let from = Rows::new(&turned[..batch * count2 * i_2], batch * count2, i_2, i_2);
            let to = RowsMut::new(&mut sum[..batch * count2 * o_2], batch * count2, o_2, o_2);
            let how = if k == 0 { Update::Overwrite } else { Update::Accumulate };
            second.multiply_rows(k, 0..second.rows(), op, from, to, how, policy);
        }
        let result = if right_first {
            transpose_each(&sum[..batch * o2 * o1], &mut half[..batch * o2 * o1], o2, o1);
            half
        } else {
            sum
        };
        store(&result[..batch * o1 * o2], o1 * o2, y, update);
    }
}

impl<T: Scalar> Differentiate<T> for Kronecker {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let (a, b) = (self.a.numbers::<T>(), self.b.numbers::<T>());
        let ((_, m1, n1), (_, m2, n2)) = (a.dim(), b.dim());
        let (mut da, mut db) = (Array3::zeros(a.dim()), Array3::zeros(b.dim()));
        // Per row of the batch Y = A X Bᵀ with X of n1 x n2: dA = dY (X Bᵀ)ᵀ and dB = (Aᵀ dY)ᵀ X.
        let x = turned(&padded(x, n1 * n2), 1, n1 * n2, n2);
        let dy = turned(&padded(dy, m1 * m2), m1, m2, m1);
        for k in 0..self.terms() {
            let right = turned(&matmul_nt(&x, &b.index_axis(Axis(0), k), threads), n1, m2, n1);
            matmul_into(&dy.t(), &right, &mut da.index_axis_mut(Axis(0), k), false, threads);
            let left = turned(&matmul(&dy, &a.index_axis(Axis(0), k), threads), m2, n1, m2);
            matmul_into(&left.t(), &x, &mut db.index_axis_mut(Axis(0), k), false, threads);
        }
        vec![da, db]
    }
}

impl StructuredMatrix for Kronecker {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        self.product_flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        4 * Workspace::<f32>::slice_len(self.own_rows(batch) * self.widest())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let mut dense = Array2::zeros(self.shape);
        let (n1, m2, n2) = (self.a.cols(), self.b.rows(), self.b.cols());
        // Row by row of the left factors: entries of the left ones times right ones.
        let right = Array2::from_shape_fn((self.terms(), m2 * n2), |(k, e)| self.b.get(k, e / n2, e % n2));
        for (i, mut rows) in dense.axis_chunks_iter_mut(Axis(0), m2).enumerate() {
            let left = Array2::from_shape_fn((n1, self.terms()), |(j, k)| self.a.get(k, i, j));
            let blocks = matmul(&left, &right, Threads::ONE);
            for ((i, j), to) in rows.indexed_iter_mut() {
                *to = blocks[[j / n2, i * n2 + j % n2]];
            }
        }
        dense
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape).factor("a", &self.a).factor("b", &self.b)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

/// The optimum for the Kronecker product `C1 ⊗ C2` nearest to `C`; `None` where that is no second moment.
fn whitened(w: &Array2<f64>, c: &Array2<f64>, spec: &KroneckerSpec, run: &Run<'_>) -> Option<Train> {
    let (n1, n2) = spec.cols;
    let modes = Modes { rows: vec![n1, n2], cols: vec![n1, n2] };
    let (nearest, _) = Train::svd(c, &modes, 1, 0.0, run).ok()?;
    let one = Array2::from_shape_fn((n1, n1), |(i, j)| nearest.cores[0][[i * n1 + j, 0]]);
    let two = Array2::from_shape_fn((n2, n2), |(i, j)| nearest.cores[1][[i * n2 + j, 0]]);
    let sign = if one.diag().sum() < 0.0 { -1.0 } else { 1.0 };
    let (root1, inverse1, _) = linalg::symmetric_root(&(one * sign)).ok()?;
    let (root2, inverse2, _) = linalg::symmetric_root(&(two * sign)).ok()?;
    let root = Array2::from_shape_fn((w.ncols(), n1 * n2), |(i, j)| {
        root1[[i / n2, j / n2]] * root2[[i % n2, j % n2]]
    });
    let white = linalg::matmul(w, &root, run.threads());
    let (mut train, _) = Train::svd(&white, &spec.modes(), spec.terms, 0.0, run).ok()?;
    let (a, b) = (&train.cores[0], &train.cores[1]);
    let (n_terms, m1, m2) = (a.ncols(), spec.rows.0, spec.rows.1);
    let a = Array2::from_shape_fn((m1 * n1, n_terms), |(ij, k)| {
        (0..n1).map(|l| a[[ij / n1 * n1 + l, k]] * inverse1[[l, ij % n1]]).sum()
    });
    let b = Array2::from_shape_fn((n_terms * m2 * n2, 1), |(kij, _)| {
        (0..n2).map(|l| b[[kij / n2 * n2 + l, 0]] * inverse2[[l, kij % n2]]).sum()
    });
    train.cores = vec![a, b];
    Some(train)
}

impl Family for Kronecker {
    const NAME: &'static str = "kronecker";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("terms", "number of Kronecker products"),
        ("blocks", "size of the left factors, `m1xn1`; near the square roots by default"),
    ];
    type Spec = KroneckerSpec;

    fn spec(shape: (usize, usize), request: &Request) -> Result<KroneckerSpec> {
        let (m1, n1) = match request.blocks(shape)? {
            Some(blocks) => blocks,
            None => (balanced(shape.0, 2)[0], balanced(shape.1, 2)[0]),
        };
        let rows = (m1, shape.0.max(1).div_ceil(m1));
        let cols = (n1, shape.1.max(1).div_ceil(n1));
        let all = KroneckerSpec { terms: 1, rows, cols };
        let terms = request.choose(Self::NAME, shape, "terms", 1..=all.most(), |terms| {
            request.size().factor(terms, rows.0, cols.0).factor(terms, rows.1, cols.1)
        })?;
        Ok(KroneckerSpec { terms, ..all })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &KroneckerSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        spec.check(w.dim())?;
        let modes = spec.modes();
        let padded = modes.padded() != w.dim();
        let (mut train, exact) = Train::svd(w, &modes, spec.terms, 0.0, run)?;
        let mut history = Vec::new();
        if padded {
            let found = train.improve(w, &Objective::Frobenius, plain_sweeps(w.dim()), run)?;
            (train, history) = (found.state, found.history);
        }
        if let Some(c) = objective.second_moment() {
            let energy = |train: &Train| objective.energy(&(w - &train.dense(w.dim(), run)));
            let other = whitened(w, c, spec, run).filter(|other| energy(other) < energy(&train));
            let found = other.unwrap_or(train).improve(w, objective, 10, run)?;
            return Ok(Fit::local(Self::from_train(&found.state, w.dim(), run.storage()), found.history));
        }
        let guarantee = match (padded, exact) {
            (true, _) => Guarantee::LocalOptimum,
            (false, true) => Guarantee::GlobalOptimum,
            (false, false) => Guarantee::WithinFactor(1.0 + SVD_SLACK),
        };
        let matrix = Self::from_train(&train, w.dim(), run.storage());
        Ok(Fit { matrix, guarantee, iterations: history.len(), history })
    }

    fn random(shape: (usize, usize), spec: &KroneckerSpec, storage: Storage, seed: u64) -> Result<Self> {
        spec.check(shape)?;
        let mut gaussian = Gaussian::new(seed);
        let scale = (spec.terms as f64 * shape.1.max(1) as f64).powf(-0.25);
        let mut stack = |rows: usize, cols: usize| {
            let all = gaussian.matrix(spec.terms * rows, cols, scale);
            Factor::from_fn(storage, (spec.terms, rows, cols), |k, i, j| all[[k * rows + i, j]])
        };
        let (a, b) = (stack(spec.rows.0, spec.cols.0), stack(spec.rows.1, spec.cols.1));
        Self::new(shape, a, b)
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (a, b) = (parts.take_factor("a")?, parts.take_factor("b")?);
        let (m, n) = parts.shape();
        // Factors that hold nothing could claim any size.
        let fits = |size: usize, one: usize, two: usize| {
            one > 0 && one <= size.clamp(1, MAX_FEATURES) && two == size.max(1).div_ceil(one)
        };
        if a.blocks() == 0
            || a.blocks() != b.blocks()
            || !fits(m, a.rows(), b.rows())
            || !fits(n, a.cols(), b.cols())
        {
            let (a, b) = (a.shape(), b.shape());
            return Err(
                parts.error(format!("a {a:?}, b {b:?}: expected (k, m1, n1), (k, m2, n2) for {m} x {n}"))
            );
        }
        let (a, b) = (a.packed_forward(), b.packed_forward());
        Ok(Self { shape: (m, n), a, b, expanded: Expanded::default() })
    }
}
