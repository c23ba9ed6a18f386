//! Tensor trains (matrix product operators).

mod fit;

pub(crate) use fit::{Modes, Train, balanced};

use super::expanded::{Expand, Expanded};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, padded};
use crate::kernels::{Rows, RowsMut};
use crate::linalg::{Threads, matmul, matmul_nt, matmul_tn};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Guarantee, Objective, Request, Run};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, Axis};
use serde::{Deserialize, Serialize};

/// $W\[(i_1 \dots i_d), (j_1 \dots j_d)\] = G_1\[i_1, j_1\] G_2\[i_2, j_2\] \cdots G_d\[i_d, j_d\]$: a product of small matrices, chosen
/// by the digits of row and column. Also called a matrix product operator (MPO).
///
/// With $m = \prod m_k$, $n = \prod n_k$ and ranks $r_0 = r_d = 1$, core $k$ holds $r_{k-1} m_k n_k r_k$ numbers, stored as a matrix of
/// $(r_{k-1} m_k) \times (n_k r_k)$. Multiply-adds: $\sum_k r_{k-1} m_k n_k r_k \prod_{l<k} n_l \prod_{l>k} m_l$. Sizes without
/// suitable factors are padded: the products of the modes may exceed the shape. With ranks so large that the dense product takes
/// less, the dense matrix is made on the first product and multiplied.
///
/// Projection: TT-SVD, within $\sqrt{d-1}$ of the optimum and optimal for two cores; then sweeps of alternating least
/// squares where those can help (three cores or more, padding, activations), which never raise the error. With activations
/// the sweeps start from the plain projection. A tolerance `eps` chooses the ranks: the relative error is then at most
/// `eps`, as long as the rank cap allows. There are no sweeps then without activations.
///
/// Source: I. Oseledets, "Tensor-train decomposition", 2011; A. Novikov et al., "Tensorizing neural networks", 2015.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((8, 8), |(i, j)| if i == j { 1.0f32 } else { 0.0 }); // rank 1
/// let spec = TensorTrain::spec((8, 8), &Request::new().with("cores", 3).with("rank", 1))?;
/// let train = TensorTrain::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(train.report.relative_error < 1e-6);
/// assert_eq!(train.matrix.n_params(), 12);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TensorTrain {
    shape: (usize, usize),
    modes: Modes,
    cores: Vec<Factor>,
    expanded: Expanded,
}

/// Parameters of [`TensorTrain`].
#[derive(Debug, Clone, PartialEq)]
pub struct TensorTrainSpec {
    /// Row modes, first digit first; their product is at least `out`.
    pub row_modes: Vec<usize>,
    /// Column modes, as many; their product is at least `in`.
    pub col_modes: Vec<usize>,
    /// Largest rank.
    pub rank: usize,
    /// Relative tolerance that chooses the ranks, at most `rank`.
    pub eps: Option<f64>,
}

/// Most cores.
const MAX_CORES: usize = 16;

/// What is wrong with these modes, if anything.
fn modes_problem((m, n): (usize, usize), modes: &Modes) -> Option<String> {
    let d = modes.rows.len();
    let side = |size: usize, modes: &[usize]| {
        let product = modes.iter().try_fold(1usize, |p, &m| p.checked_mul(m)).unwrap_or(usize::MAX);
        // More padding than that is no use, and a file could ask for any amount of scratch with it.
        product >= size && product <= size.max(1).saturating_mul(1 << d) && product > 0
    };
    let fits =
        (2..=MAX_CORES).contains(&d) && modes.cols.len() == d && side(m, &modes.rows) && side(n, &modes.cols);
    (!fits).then(|| {
        format!(
            "as many row modes as column modes, 2 to {MAX_CORES}, with products of {m} x {n} or a little more"
        )
    })
}

/// Ranks capped by `rank` and by what the modes can use.
fn capped_ranks(modes: &Modes, rank: usize) -> Vec<usize> {
    let sizes: Vec<usize> = modes.rows.iter().zip(&modes.cols).map(|(m, n)| m.saturating_mul(*n)).collect();
    let product = |part: &[usize]| part.iter().fold(1usize, |p, s| p.saturating_mul(*s));
    (0..=sizes.len()).map(|k| product(&sizes[..k]).min(product(&sizes[k..])).min(rank)).collect()
}

impl TensorTrain {
    /// A train from cores of `(r_{k-1} m_k) x (n_k r_k)`.
    ///
    /// # Errors
    /// [`Error::Record`] when the sizes do not fit together.
    pub fn new(
        shape: (usize, usize),
        row_modes: Vec<usize>,
        col_modes: Vec<usize>,
        cores: Vec<Factor>,
    ) -> Result<Self> {
        let parts = Parts::new(Self::NAME, shape).with_config(&Config { row_modes, col_modes });
        let named = cores.into_iter().enumerate();
        Self::from_parts(named.fold(parts, |parts, (k, core)| parts.factor(format!("core{k}"), core)))
    }

    /// The ranks between the cores, `r_1` to `r_{d-1}`.
    pub fn ranks(&self) -> Vec<usize> {
        (1..self.cores.len()).map(|k| self.rank(k)).collect()
    }

    /// Rank before core `k`.
    fn rank(&self, k: usize) -> usize {
        if k == self.cores.len() { 1 } else { self.cores[k].rows() / self.modes.rows[k] }
    }

    /// Row features done and column features left when core `k` is next (forward): `I`, `J`.
    fn sides(&self, k: usize) -> (usize, usize) {
        (self.modes.rows[k + 1..].iter().product(), self.modes.cols[..k].iter().product())
    }

    /// Entries of the largest intermediate, per batch row.
    fn widest(&self) -> usize {
        let of = |k: usize| {
            let (i, j) = self.sides(k);
            i * j * self.cores[k].rows().max(self.cores[k].cols())
        };
        (0..self.cores.len()).map(of).max().unwrap_or(0)
    }

    fn from_train(train: &Train, shape: (usize, usize), storage: Storage) -> Self {
        let cores = train.cores.iter().enumerate().map(|(k, core)| {
            let (m, n, after) = (train.modes.rows[k], train.modes.cols[k], core.ncols());
            let before = core.nrows() / (m * n);
            // (a, i, j) x b is (a, i) x (j, b) in the same order of entries.
            Factor::from_fn(storage, (1, before * m, n * after), |_, ai, jb| {
                core[[ai * n + jb / after, jb % after]]
            })
            .packed_forward()
        });
        Self { shape, modes: train.modes.clone(), cores: cores.collect(), expanded: Expanded::default() }
    }
}

/// Transposes each of `batch` consecutive `rows x cols` matrices.
pub(crate) fn transpose_each<T: Scalar>(from: &[T], to: &mut [T], rows: usize, cols: usize) {
    for (from, to) in from.chunks_exact(rows * cols).zip(to.chunks_exact_mut(rows * cols)) {
        for (j, out) in to.chunks_exact_mut(rows).enumerate() {
            for (i, value) in out.iter_mut().enumerate() {
                *value = from[i * cols + j];
            }
        }
    }
}

/// The numbers of `a` as consecutive `rows x cols` matrices, each transposed, in rows of `width`.
pub(crate) fn turned<T: Scalar>(a: &Array2<T>, rows: usize, cols: usize, width: usize) -> Array2<T> {
    let mut to = Array2::zeros((a.len() / width, width));
    if let (Some(from), Some(to)) = (a.as_slice(), to.as_slice_mut()) {
        transpose_each(from, to, rows, cols);
    }
    to
}

/// Copies a panel into contiguous rows of `cols` entries, zero-padded.
pub(crate) fn load<T: Scalar>(x: Rows<'_, T>, to: &mut [T], cols: usize) {
    for (b, row) in to.chunks_exact_mut(cols).enumerate() {
        let (kept, pad) = row.split_at_mut(x.cols());
        kept.copy_from_slice(x.row(b));
        pad.fill(T::default());
    }
}

/// Writes or adds contiguous rows of `cols` entries to a panel, cut to its width.
pub(crate) fn store<T: Scalar>(from: &[T], cols: usize, mut y: RowsMut<'_, T>, update: Update) {
    for (b, row) in from.chunks_exact(cols).enumerate() {
        let to = y.row(b);
        match update {
            Update::Overwrite => to.copy_from_slice(&row[..to.len()]),
            Update::Accumulate => to.iter_mut().zip(row).for_each(|(to, from)| *to += *from),
        }
    }
}

impl Expand for TensorTrain {
    fn expanded(&self) -> &Expanded {
        &self.expanded
    }
    fn numbers(&self) -> usize {
        self.cores.iter().map(Factor::len).sum()
    }
    fn own_flops(&self) -> u64 {
        let of = |k: usize| {
            let (i, j) = self.sides(k);
            i as u64 * j as u64 * self.cores[k].len() as u64
        };
        2 * (0..self.cores.len()).map(of).sum::<u64>()
    }
}

impl<T: Scalar> Multiply<T> for TensorTrain {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(Operands { op, x, y, update, work }) = self.multiply_densely(operands) else { return };
        let (batch, policy, d) = (x.rows(), work.policy, self.cores.len());
        let (outputs, inputs) = op.order(self.modes.padded().0, self.modes.padded().1);
        let len = batch * self.widest();
        let (a, work) = work.slice(len);
        let (b, _) = work.slice(len);
        load(x, &mut a[..batch * inputs], inputs);
        // Forward, before core k: i_{k+1}..i_d, j_1..j_k, r_k. The core turns (j_k, r_k) into (r_{k-1}, i_k); moving i_k to
        // the front leaves (j_{k-1}, r_{k-1}) last, for the next core. Transposed runs the same steps backwards.
        for step in 0..d {
            let k = op.order(d - 1 - step, step).0;
            let (core, m) = (&self.cores[k], self.modes.rows[k]);
            let (i, j) = self.sides(k);
            let (rows, cols) = (core.rows(), core.cols());
            let count = batch * i * j;
            let groups = i * j * (rows / m);
            if op == Op::Forward {
                let source = Rows::new(&a[..count * cols], count, cols, cols);
                let target = RowsMut::new(&mut b[..count * rows], count, rows, rows);
                core.multiply(op, source, target, Update::Overwrite, policy);
                transpose_each(&b[..count * rows], &mut a[..count * rows], groups, m);
            } else {
                transpose_each(&a[..count * rows], &mut b[..count * rows], m, groups);
                let source = Rows::new(&b[..count * rows], count, rows, rows);
                let target = RowsMut::new(&mut a[..count * cols], count, cols, cols);
                core.multiply(op, source, target, Update::Overwrite, policy);
            }
        }
        store(&a[..batch * outputs], outputs, y, update);
    }
}

impl<T: Scalar> Differentiate<T> for TensorTrain {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let d = self.cores.len();
        let cores: Vec<Array3<T>> = self.cores.iter().map(Factor::numbers).collect();
        let cores: Vec<_> = cores.iter().map(|core| core.index_axis(Axis(0), 0)).collect();
        let (outputs, inputs) = self.modes.padded();
        // How core k leaves the digits, as (i_k, others); see `Multiply`.
        let digits = |k: usize| {
            let (m, (i, j)) = (self.modes.rows[k], self.sides(k));
            (m, i * j * self.rank(k))
        };
        // What goes into the cores, the last one first.
        let mut before = vec![turned(&padded(x, inputs), 1, inputs, cores[d - 1].ncols())];
        for k in (1..d).rev() {
            let ((m, others), z) = (digits(k), matmul_nt(&before[d - 1 - k], &cores[k], threads));
            before.push(turned(&z, others, m, cores[k - 1].ncols()));
        }
        let mut dy = padded(dy, outputs);
        let mut gradients = Vec::with_capacity(d);
        for (k, (core, x)) in cores.iter().zip(before.iter().rev()).enumerate() {
            let (m, others) = digits(k);
            dy = turned(&dy, m, others, core.nrows());
            gradients.push(matmul_tn(&dy, x, threads).insert_axis(Axis(0)));
            dy = matmul(&dy, core, threads);
        }
        gradients
    }
}

impl StructuredMatrix for TensorTrain {
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
        2 * Workspace::<f32>::slice_len(self.own_rows(batch) * self.widest())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let (mut dense, d) = (Array2::<f64>::eye(1), self.cores.len());
        // Rows (digits so far of the row), columns (digits so far of the column, rank).
        for k in 0..d {
            let (m, n, before, after) =
                (self.modes.rows[k], self.modes.cols[k], self.rank(k), self.rank(k + 1));
            let core = self.cores[k].matrix(0);
            let (rows, cols) = (dense.nrows(), dense.ncols() / before);
            let left = Array2::from_shape_fn((rows * cols, before), |(at, a)| {
                dense[[at / cols, at % cols * before + a]]
            });
            let right = Array2::from_shape_fn((before, m * n * after), |(a, at)| {
                core[[a * m + at / (n * after), at % (n * after)]]
            });
            let product = matmul(&left, &right, Threads::ONE);
            dense = Array2::from_shape_fn((rows * m, cols * n * after), |(row, col)| {
                let (digit, rest) = (row % m, col % (n * after));
                product[[row / m * cols + col / (n * after), digit * n * after + rest]]
            });
        }
        dense.slice(ndarray::s![..self.shape.0, ..self.shape.1]).to_owned()
    }
    fn parts(&self) -> Parts<'_> {
        let config = Config { row_modes: self.modes.rows.clone(), col_modes: self.modes.cols.clone() };
        let parts = Parts::new(Self::NAME, self.shape).with_config(&config);
        self.cores.iter().enumerate().fold(parts, |parts, (k, core)| parts.factor(format!("core{k}"), core))
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Config {
    row_modes: Vec<usize>,
    col_modes: Vec<usize>,
}

/// `4x8x12:8x8x6` as row modes and column modes.
fn parse_modes(text: &str) -> Option<Modes> {
    let list = |part: &str| part.split('x').map(|m| m.trim().parse().ok()).collect::<Option<Vec<usize>>>();
    let (rows, cols) = text.split_once(':')?;
    Some(Modes { rows: list(rows)?, cols: list(cols)? })
}

impl Family for TensorTrain {
    const NAME: &'static str = "tensor_train";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("rank", "largest rank between the cores"),
        ("cores", "number of cores (default 3)"),
        ("modes", "row and column modes, such as `4x8x12:8x8x6`; balanced by default"),
        ("eps", "relative tolerance that chooses the ranks"),
    ];
    type Spec = TensorTrainSpec;

    fn spec(shape: (usize, usize), request: &Request) -> Result<TensorTrainSpec> {
        let d = request.get_in("cores", 2..=MAX_CORES)?;
        let modes = match request.get::<String>("modes")? {
            None => {
                let d = d.unwrap_or(3);
                Modes { rows: balanced(shape.0, d), cols: balanced(shape.1, d) }
            }
            Some(text) => {
                let modes = parse_modes(&text)
                    .ok_or_else(|| Error::parameter("modes", &text, "row and column modes: 4x8x12:8x8x6"))?;
                if d.is_some_and(|d| d != modes.rows.len()) {
                    return Err(Error::parameter("cores", modes.rows.len(), "the number of modes"));
                }
                modes
            }
        };
        if let Some(expected) = modes_problem(shape, &modes) {
            return Err(Error::parameter("modes", format!("{modes:?}"), expected));
        }
        let eps = request.get::<f64>("eps")?;
        if let Some(eps) = eps.filter(|eps| !(*eps > 0.0 && *eps <= 1.0)) {
            return Err(Error::parameter("eps", eps, "a number above 0, at most 1"));
        }
        let most = capped_ranks(&modes, usize::MAX).into_iter().max().unwrap_or(1);
        let free = eps.is_some() && request.the_budget().is_none() && !request.params().contains_key("rank");
        let rank = if free {
            most
        } else {
            request.choose(Self::NAME, shape, "rank", 1..=most, |rank| {
                let ranks = capped_ranks(&modes, rank);
                (0..modes.rows.len()).fold(request.size(), |size, k| {
                    size.factor(1, ranks[k] * modes.rows[k], modes.cols[k] * ranks[k + 1])
                })
            })?
        };
        Ok(TensorTrainSpec { row_modes: modes.rows, col_modes: modes.cols, rank, eps })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &TensorTrainSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let modes = checked_modes(w.dim(), spec)?;
        let d = modes.rows.len();
        let norm = Objective::Frobenius.energy(w).sqrt();
        let delta = spec.eps.map_or(0.0, |eps| eps / ((d - 1) as f64).sqrt() * norm);
        let (mut train, exact) = Train::svd(w, &modes, spec.rank, delta, run)?;
        let optimal = d == 2 && modes.padded() == w.dim() && spec.eps.is_none();
        let mut history = Vec::new();
        if !optimal && spec.eps.is_none() {
            let found = train.improve(w, &Objective::Frobenius, plain_sweeps(w.dim()), run)?;
            (train, history) = (found.state, found.history);
        }
        if objective.second_moment().is_some() {
            let found = train.improve(w, objective, 10, run)?;
            let matrix = Self::from_train(&found.state, w.dim(), run.storage());
            return Ok(Fit::local(matrix, found.history));
        }
        let matrix = Self::from_train(&train, w.dim(), run.storage());
        let slack = if exact { 1.0 } else { 1.0 + SVD_SLACK };
        let guarantee = match (optimal, exact) {
            (true, true) => Guarantee::GlobalOptimum,
            // The padding is part of what TT-SVD is within a factor of; with a tolerance the ranks vary.
            _ if modes.padded() != w.dim() || spec.eps.is_some() => Guarantee::LocalOptimum,
            _ => Guarantee::WithinFactor(((d - 1) as f64).sqrt() * slack),
        };
        Ok(Fit { matrix, guarantee, iterations: history.len(), history })
    }

    fn random(shape: (usize, usize), spec: &TensorTrainSpec, storage: Storage, seed: u64) -> Result<Self> {
        let modes = checked_modes(shape, spec)?;
        let (mut gaussian, ranks, d) =
            (Gaussian::new(seed), capped_ranks(&modes, spec.rank), modes.rows.len());
        // An entry of W sums one product for each choice of the inner ranks.
        let paths: f64 = ranks.iter().map(|r| *r as f64).product();
        let scale = (paths * shape.1.max(1) as f64).powf(-0.5 / d as f64);
        let core = |k: usize| {
            let matrix = gaussian.matrix(ranks[k] * modes.rows[k], modes.cols[k] * ranks[k + 1], scale);
            Factor::from_matrix(storage, &matrix)
        };
        let cores = (0..d).map(core).collect();
        Self::new(shape, modes.rows.clone(), modes.cols.clone(), cores)
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let Config { row_modes, col_modes } = parts.config()?;
        let (shape, modes) = (parts.shape(), Modes { rows: row_modes, cols: col_modes });
        if let Some(expected) = modes_problem(shape, &modes) {
            return Err(parts.error(format!("modes {modes:?}: expected {expected}")));
        }
        let (mut cores, mut rank) = (Vec::with_capacity(modes.rows.len()), 1);
        for k in 0..modes.rows.len() {
            let core = parts.take_factor(&format!("core{k}"))?;
            let (m, n) = (modes.rows[k], modes.cols[k]);
            let next = core.cols() / n;
            let last = k + 1 == modes.rows.len();
            let expected = (1, rank * m, n * next);
            if core.shape() != expected || next == 0 || (last && next != 1) {
                let shape = core.shape();
                return Err(parts.error(format!("core {k} is {shape:?}, expected (1, {}, {n} r)", rank * m)));
            }
            rank = next;
            cores.push(core.packed_forward());
        }
        Ok(Self { shape, modes, cores, expanded: Expanded::default() })
    }
}

/// How far a randomized SVD may be above the optimum, per bond.
pub(crate) const SVD_SLACK: f64 = 1e-2;

/// Sweeps without activations: they cost some products of `W` with the cores each.
pub(crate) fn plain_sweeps((m, n): (usize, usize)) -> usize {
    if m.saturating_mul(n) <= 1 << 20 { 4 } else { 1 }
}

fn checked_modes(shape: (usize, usize), spec: &TensorTrainSpec) -> Result<Modes> {
    let modes = Modes { rows: spec.row_modes.clone(), cols: spec.col_modes.clone() };
    if let Some(expected) = modes_problem(shape, &modes) {
        return Err(Error::parameter("modes", format!("{modes:?}"), expected));
    }
    if spec.rank == 0 {
        return Err(Error::parameter("rank", spec.rank, "at least 1"));
    }
    Ok(modes)
}
