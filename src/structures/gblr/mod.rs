//! Generalized block-low-rank matrices: sums of rank-one blocks in cyclic windows.

mod descent;
mod fit;
mod gradient;
mod growth;
mod intervals;
mod members;
mod weighted;
pub mod window;

pub use window::CyclicWindow;

use super::expanded::{Expand, Expanded, SMALL};
use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, gathered};
use crate::kernels::{CACHED, Rows, Spectrum, SpectrumCache, WindowProduct, WindowTiles, Windows};
use crate::linalg::{Threads, check_finite, matmul_into};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Budget, Family, Fit, Objective, Request, Run, scale_outputs};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array1, Array2, Array3, ArrayRef2, ArrayView1, Axis, s};
use rand::Rng;

/// $W = \sum_k \mathrm{diag}(\mu_k)\, u_k v_k^T\, \mathrm{diag}(\nu_k)$ with windows $\mu_k$ of rows and $\nu_k$ of columns: $u_k$ lives on
/// `len` rows from `start` on, $v_k$ on a run of columns, and after the last row or column the first one follows. Windows may overlap.
///
/// Low-rank matrices (all windows full), block-diagonal and block-low-rank ones (windows of a grid) are members.
///
/// Parameters: the numbers in the windows, and four indices of 4 bytes for each component. Multiply-adds: as many as numbers. The numbers
/// of each side are one stream, in the order of the components, read once by a product; inputs and outputs are runs of
/// neighbours. The side that gives the outputs is kept once more in tiles of 16 neighbours, in the compute type, unless its windows are so short that these would be
/// mostly padding: made on the first product. With so many numbers that the dense product takes less time (two fifths of the entries, or a quarter without tiles, in batches, and for
/// one row where the dense matrix fits a core's cache; two thirds elsewhere; none of $2^{14}$ entries or fewer), the dense matrix is made on the first product and multiplied. An
/// infinite or NaN input then makes all outputs NaN, also those that no window connects with it.
///
/// Projection: at a price $\lambda$ of a number, $\|W - \hat W\|_F^2 + \lambda \sum_k (w_k + w'_k)$ is lowered one component and one side
/// at a time. With $v_k$ given, row $i$ gains $(R v_k)_i^2 / \|v_k\|^2 - \lambda$ with $R = W - \sum_{j \ne k} u_j v_j^T$; the cyclic interval
/// of the largest sum of gains is the best window, and the component goes where even that does not pay for the other side. So the
/// penalized objective never rises. New components come from leading singular vectors, large rows and large columns of what is left. The descent starts from
/// nothing and from the singular triplets that pay in the best of the grids `1x1`, `2x2`, `4x4`, `8x8`; the better one goes on, and the price moves until the budget is
/// met. What is left of the budget goes to further components, and the numbers are refitted. The result is a local optimum, never worse than the low-rank matrix, or the
/// singular triplets with the most energy per number of the blocks of one of these grids, within the same budget.
///
/// With activations, left sides see $C = E[x x^T]$ exactly; right ones are fitted by conjugate gradients in windows that stay.
/// The starts are the plain fit, that of $W\, \mathrm{diag}(C)^{1/2}$ (all there is to do for a diagonal $C$) and the best weighted low-rank
/// matrix; the result is never worse than any of them.
///
/// A sweep takes about $2 m n K$ multiply-adds of `f64` with $K$ components, and $K$ times the stored numbers; a round of candidates about $320 m n$.
///
/// Source: C. Lee and H.-S. Kim, "Differentiable Learning of Generalized Structured Matrices for Efficient Deep Neural Networks", 2023.
/// Their fit is [`GblrMethod::Gradient`]; the descent is not from there.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// // Two blocks of rank one, one of which wraps.
/// let inside = |i: usize, from: usize| (i + 12 - from) % 12 < 5;
/// let w = Array2::from_shape_fn((12, 12), |(i, j)| {
///     let first = if inside(i, 2) && inside(j, 0) { (1 + i) as f64 } else { 0.0 };
///     first + if inside(i, 9) && inside(j, 6) { (2 + j) as f64 } else { 0.0 }
/// });
/// let spec = GblrSpec { numbers: 20, ..Default::default() };
/// let gblr = Gblr::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(gblr.report.relative_error < 1e-6 && gblr.matrix.n_params() == 20);
/// assert!(gblr.matrix.row_windows().any(|window| window == CyclicWindow { start: 9, len: 5 }));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Gblr {
    /// The left vectors, one after the other.
    u: Factor,
    /// The right vectors.
    v: Factor,
    rows: Windows,
    cols: Windows,
    expanded: Expanded,
    /// Tiles of either side, for the outputs of products in one direction: made on the first one.
    tiles: [SpectrumCache; 2],
}

/// Components that become dense together.
const TOGETHER: usize = 256;

/// Rows or columns at most: no stored number tells a shape, so that a file of a few bytes could ask for vectors that fill all memory.
const MOST_FEATURES: usize = 1 << 24;

/// A component of [`Gblr`]: a block of rank one.
#[derive(Debug, Clone, PartialEq)]
pub struct GblrComponent {
    /// Where `u` lies among the rows.
    pub rows: CyclicWindow,
    /// Where `v` lies among the columns.
    pub cols: CyclicWindow,
    /// As many numbers as `rows` is long.
    pub u: Vec<f64>,
    /// As many numbers as `cols` is long.
    pub v: Vec<f64>,
}

/// How [`Gblr`] is fitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GblrMethod {
    /// Coordinate descent.
    Descent {
        /// The price of a number, in squared error. With 0 it is chosen to meet the budget; a positive one is raised only where the budget
        /// would not be met, and the history is then that of the root of the penalized objective.
        price: f64,
    },
    /// The source's gradient descent: from the singular value decomposition, split evenly, with full windows at random locations; Adam with moments
    /// (0, 0.999) and rates that fall linearly to a hundredth over 1000 steps, through windows rounded straight through, and
    /// [`mean_shrink`](window::mean_shrink) of the widths after each step. Columns are rounded with the number of columns (the published code takes that of the rows),
    /// sides of unequal length count in the mean with their length, so that the budget is met, and the best iterate within the budget is
    /// returned. Rates count absolutely, for weights of the usual scale. A step takes $3 m n \min(m, n)$ multiply-adds.
    Gradient {
        /// Rate of the numbers (0.005).
        rate: f64,
        /// Rate of widths and locations, times `min(out, in)` (20).
        window_rate: f64,
    },
}

impl GblrMethod {
    /// The published fit with its own rates.
    pub fn gradient() -> Self {
        GblrMethod::Gradient { rate: 0.005, window_rate: 20.0 }
    }
}

/// Parameters of [`Gblr`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GblrSpec {
    /// Stored numbers, and the `overhead` of each component, at most; at least 2 beside the overhead.
    pub numbers: usize,
    /// What a component counts beside its numbers: 0, or for budgets of bytes as many as take the bytes of its four indices.
    pub overhead: usize,
    /// How to fit.
    pub method: GblrMethod,
}

impl Default for GblrSpec {
    fn default() -> Self {
        Self { numbers: 2, overhead: 0, method: GblrMethod::Descent { price: 0.0 } }
    }
}

impl GblrSpec {
    /// The most numbers that any member of a shape is worth: a dense matrix has so many, row by row or column by column.
    fn most((m, n): (usize, usize), overhead: usize) -> usize {
        let each = m.max(n).saturating_add(1).saturating_add(overhead);
        each.saturating_mul(m.min(n)).min(u32::MAX as usize)
    }

    fn check(&self, (m, n): (usize, usize)) -> Result<()> {
        if m == 0 || n == 0 {
            return Err(Error::shape("weight (must not be empty)", &[m.max(1), n.max(1)], &[m, n]));
        }
        if m > MOST_FEATURES || n > MOST_FEATURES {
            return Err(Error::shape("weight", &[m.min(MOST_FEATURES), n.min(MOST_FEATURES)], &[m, n]));
        }
        let (least, most) = (self.overhead.saturating_add(2), u32::MAX as usize);
        if self.numbers < least || self.numbers > most {
            return Err(Error::parameter("numbers", self.numbers, format!("{least} to {most}")));
        }
        let positive = |name: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::parameter(name, value, "a positive number")),
        };
        match self.method {
            GblrMethod::Descent { price } if !(price >= 0.0 && price.is_finite()) => {
                Err(Error::parameter("price", price, "a number >= 0"))
            }
            GblrMethod::Descent { .. } => Ok(()),
            GblrMethod::Gradient { rate, window_rate } => {
                positive("rate", rate).and(positive("window_rate", window_rate))
            }
        }
    }
}

impl Gblr {
    /// From the left vectors `u` and the right vectors `v`, one after the other (1 x numbers), and their windows.
    ///
    /// # Errors
    /// [`Error::Record`] when they do not fit together, or windows are empty or reach beyond the shape.
    pub fn new(
        shape: (usize, usize),
        u: Factor,
        v: Factor,
        rows: &[CyclicWindow],
        cols: &[CyclicWindow],
    ) -> Result<Self> {
        let index = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let list = |windows: &[CyclicWindow], part: fn(&CyclicWindow) -> usize| -> Vec<u32> {
            windows.iter().map(|window| index(part(window))).collect()
        };
        let parts = Parts::new(Self::NAME, shape).factor("u", u).factor("v", v);
        let parts =
            parts.index("row_starts", list(rows, |w| w.start)).index("row_lens", list(rows, |w| w.len));
        let parts =
            parts.index("col_starts", list(cols, |w| w.start)).index("col_lens", list(cols, |w| w.len));
        Self::from_parts(parts)
    }

    /// The sum of some components.
    ///
    /// # Errors
    /// [`Error::Record`] when vectors are not as long as their windows, and those of [`new`](Self::new); [`Error::NonFinite`].
    pub fn from_components(
        shape: (usize, usize),
        components: &[GblrComponent],
        storage: Storage,
    ) -> Result<Self> {
        for (k, component) in components.iter().enumerate() {
            for (what, values, window) in
                [("u", &component.u, component.rows), ("v", &component.v, component.cols)]
            {
                if values.len() != window.len {
                    let reason = format!(
                        "{what} of component {k} has {} numbers, its window {}",
                        values.len(),
                        window.len
                    );
                    return Err(Error::record(Self::NAME, reason));
                }
                check_finite("numbers of a component", &ArrayView1::from(values).insert_axis(Axis(0)))?;
            }
        }
        let stream = |part: fn(&GblrComponent) -> &[f64]| {
            let all: Vec<f64> = components.iter().flat_map(part).copied().collect();
            Factor::from_fn(storage, (1, 1, all.len()), |_, _, place| all[place])
        };
        let rows: Vec<CyclicWindow> = components.iter().map(|c| c.rows).collect();
        let cols: Vec<CyclicWindow> = components.iter().map(|c| c.cols).collect();
        Self::new(shape, stream(|c| &c.u), stream(|c| &c.v), &rows, &cols)
    }

    /// The low-rank matrix `u v` of `u` (out x rank) and `v` (rank x in): all windows are full.
    ///
    /// # Errors
    /// [`Error::Shape`] when the ranks differ, [`Error::NonFinite`], [`Error::Record`] for an empty side.
    pub fn from_low_rank(u: &ArrayRef2<f64>, v: &ArrayRef2<f64>, storage: Storage) -> Result<Self> {
        let ((m, rank), (rows, n)) = (u.dim(), v.dim());
        if rank != rows {
            return Err(Error::shape("v", &[rank, n], &[rows, n]));
        }
        let component = |k: usize| GblrComponent {
            rows: CyclicWindow::full(m),
            cols: CyclicWindow::full(n),
            u: u.column(k).to_vec(),
            v: v.row(k).to_vec(),
        };
        Self::from_components((m, n), &(0..rank).map(component).collect::<Vec<_>>(), storage)
    }

    /// Number of components.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.rows.rows()
    }

    /// The windows of rows.
    pub fn row_windows(&self) -> impl Iterator<Item = CyclicWindow> + '_ {
        windows(&self.rows)
    }

    /// The windows of columns.
    pub fn col_windows(&self) -> impl Iterator<Item = CyclicWindow> + '_ {
        windows(&self.cols)
    }

    /// The components, decoded.
    pub fn components(&self) -> impl Iterator<Item = GblrComponent> + '_ {
        let values = |factor: &Factor, windows: &Windows, k: usize| -> Vec<f64> {
            windows.places(k).map(|place| factor.get(0, 0, place)).collect()
        };
        self.row_windows().zip(self.col_windows()).enumerate().map(move |(k, (rows, cols))| GblrComponent {
            rows,
            cols,
            u: values(&self.u, &self.rows, k),
            v: values(&self.v, &self.cols, k),
        })
    }

    /// Both sides of each component with the same norm, in the order of their columns.
    fn from_state(state: &descent::State, storage: Storage) -> Result<Self> {
        let (m, n) = (state.u.values.ncols(), state.v.values.ncols());
        let component = |k: usize| {
            let (u, v) = (state.u.values.row(k), state.v.values.row(k));
            let (left, right) = (u.dot(&u).sqrt(), v.dot(&v).sqrt());
            let scale = if left > 0.0 && right > 0.0 { (right / left).sqrt() } else { 1.0 };
            let (rows, cols) = (state.u.windows[k], state.v.windows[k]);
            GblrComponent {
                rows,
                cols,
                u: rows.features(m).map(|i| u[i] * scale).collect(),
                v: cols.features(n).map(|j| v[j] / scale).collect(),
            }
        };
        let mut components: Vec<GblrComponent> = (0..state.len()).map(component).collect();
        components.sort_by_key(|c| (c.cols.start, c.cols.len, c.rows.start, c.rows.len));
        Self::from_components((m, n), &components, storage)
    }
}

/// Batch rows from which the numbers of any storage are tiled in the compute type; others lie in less memory as they are.
const TILED_BATCH: usize = 4;

impl Gblr {
    /// The side that gives the outputs of products in direction `op`, and where its tiles are kept.
    fn outputs(&self, op: Op) -> (&Factor, &Windows, &SpectrumCache) {
        let [left, right] = &self.tiles;
        op.order((&self.u, &self.rows, left), (&self.v, &self.cols, right)).0
    }

    /// Whether these outputs are added up in tiles.
    fn is_tiled(&self, op: Op, batch: usize) -> bool {
        let (factor, windows, _) = self.outputs(op);
        let plain = matches!(factor.storage(), Storage::F32 | Storage::F64);
        windows.fill_tiles() && (plain || batch >= TILED_BATCH)
    }

    /// That side as tiles, where it takes less time so.
    fn tiles<T: Scalar>(&self, op: Op, batch: usize) -> Option<&WindowTiles<T>> {
        if !self.is_tiled(op, batch) {
            return None;
        }
        let (factor, windows, kept) = self.outputs(op);
        let number = |place| T::narrow(factor.get(0, 0, place));
        let make = || Spectrum { windows: WindowTiles::new(windows, number), ..Default::default() };
        kept.get::<T>(make).windows.as_ref()
    }
}

fn all_finite<T: Scalar>(x: Rows<'_, T>) -> bool {
    (0..x.rows()).all(|b| x.row(b).iter().fold(true, |all, x| all & x.widen().is_finite()))
}

fn windows(windows: &Windows) -> impl Iterator<Item = CyclicWindow> + '_ {
    let starts = windows.starts().iter().map(|start| *start as usize);
    starts.enumerate().map(|(k, start)| CyclicWindow { start, len: windows.places(k).len() })
}

impl Expand for Gblr {
    fn expanded(&self) -> &Expanded {
        &self.expanded
    }
    fn numbers(&self) -> usize {
        self.u.len() + self.v.len()
    }
    fn own_flops(&self) -> u64 {
        2 * self.numbers() as u64
    }
    /// Nothing for small matrices.
    fn cost(&self, op: Op, batch: usize) -> u64 {
        let (m, n) = self.shape();
        let each = match m.saturating_mul(n) {
            ..=SMALL => 0,
            entries if entries > CACHED && batch == 1 => 3,
            _ if self.is_tiled(op, batch) => 5,
            _ => 8,
        };
        each * self.numbers() as u64
    }
}

impl<T: Scalar> Multiply<T> for Gblr {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(Operands { op, x, y, update, work }) = self.multiply_densely(operands) else { return };
        let (batch, policy) = (x.rows(), work.policy);
        let (mut z, _) = work.matrix(batch, self.len());
        let ((first, inputs), (second, outputs)) = op.order((&self.v, &self.cols), (&self.u, &self.rows));
        first.multiply_windows(WindowProduct {
            windows: inputs,
            op: Op::Forward,
            x,
            y: z.reborrow(),
            update: Update::Overwrite,
            policy,
        });
        let x = z.as_rows();
        match self.tiles::<T>(op, batch) {
            // What is infinite or NaN would reach what lies beside a window in its tiles.
            Some(tiles) if all_finite(x) => tiles.multiply(x, y, update, policy),
            _ => second.multiply_windows(WindowProduct {
                windows: outputs,
                op: Op::Transpose,
                x,
                y,
                update,
                policy,
            }),
        }
    }
}

impl<T: Scalar> Differentiate<T> for Gblr {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, _: Threads) -> Vec<Array3<T>> {
        let (m, n) = self.shape();
        // Features x batch: a window is one piece of memory, or two.
        let (x, dy) = (gathered(&x.t(), 0..n), gathered(&dy.t(), 0..m));
        let (u, v) = (self.u.numbers::<T>(), self.v.numbers::<T>());
        let (mut du, mut dv) = (Array3::zeros(u.dim()), Array3::zeros(v.dim()));
        let batch = x.ncols();
        // What the numbers of a window make of their features, and what features with given weights make of the numbers.
        let gather = |windows: &Windows, k: usize, numbers: &Array3<T>, features: &Array2<T>| {
            let mut sum = Array1::<T>::zeros(batch);
            for (place, run) in windows.runs(k) {
                for (i, feature) in run.enumerate() {
                    sum.scaled_add(numbers[[0, 0, place + i]], &features.row(feature));
                }
            }
            sum
        };
        let spread =
            |windows: &Windows, k: usize, numbers: &mut Array3<T>, features: &Array2<T>, z: &Array1<T>| {
                for (place, run) in windows.runs(k) {
                    let slopes = features.slice(s![run.clone(), ..]).dot(z);
                    numbers.slice_mut(s![0, 0, place..place + run.len()]).assign(&slopes);
                }
            };
        for k in 0..self.len() {
            let z = gather(&self.cols, k, &v, &x);
            let dz = gather(&self.rows, k, &u, &dy);
            spread(&self.rows, k, &mut du, &dy, &z);
            spread(&self.cols, k, &mut dv, &x, &dz);
        }
        vec![du, dv]
    }
}

impl StructuredMatrix for Gblr {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.rows.width(), self.cols.width())
    }
    fn flops(&self, batch: usize) -> u64 {
        self.product_flops(batch)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        Workspace::<f32>::matrix_len(self.own_rows(batch), self.len())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let (m, n) = self.shape();
        let mut w = Array2::zeros((m, n));
        let components: Vec<GblrComponent> = self.components().collect();
        for some in components.chunks(TOGETHER) {
            // Products of whole vectors take a fraction of the time for each entry.
            let entries: usize = some.iter().map(|c| c.u.len() * c.v.len()).sum();
            if entries > some.len() * m * n / 16 {
                let (mut u, mut v) = (Array2::zeros((some.len(), m)), Array2::zeros((some.len(), n)));
                for (k, c) in some.iter().enumerate() {
                    c.rows.features(m).zip(&c.u).for_each(|(i, value)| u[[k, i]] = *value);
                    c.cols.features(n).zip(&c.v).for_each(|(j, value)| v[[k, j]] = *value);
                }
                matmul_into(&u.t(), &v, &mut w, true, Threads::ONE);
                continue;
            }
            for c in some {
                for (i, u) in c.rows.features(m).zip(&c.u) {
                    c.cols.features(n).zip(&c.v).for_each(|(j, v)| w[[i, j]] += u * v);
                }
            }
        }
        w
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape())
            .factor("u", &self.u)
            .factor("v", &self.v)
            .index("row_starts", self.rows.starts())
            .index("row_lens", self.rows.lens())
            .index("col_starts", self.cols.starts())
            .index("col_lens", self.cols.lens())
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Gblr {
    const NAME: &'static str = "gblr";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        (
            "numbers",
            "stored numbers at most (in budgets of bytes, indices count as the numbers that take their bytes)",
        ),
        ("method", "`descent` (default) or `gradient` (the published fit)"),
        ("price", "price of a number in squared error, for `descent`; chosen to meet the budget by default"),
        ("rate", "rate of the numbers in `gradient` (0.005)"),
        ("window_rate", "rate of the windows in `gradient`, times min(out, in) (20)"),
    ];
    type Spec = GblrSpec;

    fn spec((m, n): (usize, usize), request: &Request) -> Result<GblrSpec> {
        let (price, rate) = (request.get::<f64>("price")?, request.get::<f64>("rate")?);
        let window_rate = request.get::<f64>("window_rate")?;
        let method = match request.get::<String>("method")?.as_deref() {
            None | Some("descent") => {
                if let Some((name, value)) =
                    rate.map(|v| ("rate", v)).or(window_rate.map(|v| ("window_rate", v)))
                {
                    return Err(Error::parameter(name, value, "method = gradient"));
                }
                GblrMethod::Descent { price: price.unwrap_or(0.0) }
            }
            Some("gradient") => {
                if let Some(price) = price {
                    return Err(Error::parameter("price", price, "method = descent"));
                }
                GblrMethod::Gradient { rate: rate.unwrap_or(0.005), window_rate: window_rate.unwrap_or(20.0) }
            }
            Some(other) => return Err(Error::parameter("method", other, "descent or gradient")),
        };
        // The worst split of the numbers between the two sides leaves one alone in a group of its own.
        let size = |numbers: usize| request.size().factor(1, 1, numbers.saturating_sub(1)).factor(1, 1, 1);
        let overhead = match request.the_budget() {
            Some(Budget::Bytes(_)) => {
                let bytes = |count: usize| request.size().factor(1, 1, count).bytes;
                (1..32).find(|&count| bytes(count + 1) - bytes(1) >= 16).unwrap_or(32)
            }
            _ => 0,
        };
        let (least, most) = (2 + overhead, GblrSpec::most((m, n), overhead));
        let free = matches!(method, GblrMethod::Descent { price } if price > 0.0);
        let numbers = match request.get_in("numbers", least..=most.max(least))? {
            None if free && request.the_budget().is_none() => most,
            _ => request.choose(Self::NAME, (m, n), "numbers", least..=most.max(least), size)?,
        };
        let spec = GblrSpec { numbers, overhead, method };
        spec.check((m, n)).map(|()| spec)
    }

    fn fit(w: &Array2<f64>, spec: &GblrSpec, objective: &Objective<'_>, run: &Run<'_>) -> Result<Fit<Self>> {
        spec.check(w.dim())?;
        let (state, history) = fit::fit(w, spec, objective, run)?;
        Ok(Fit::local(Self::from_state(&state, run.storage())?, history))
    }

    fn random((m, n): (usize, usize), spec: &GblrSpec, storage: Storage, seed: u64) -> Result<Self> {
        spec.check((m, n))?;
        let mut gaussian = Gaussian::new(seed);
        let mut below = |limit: usize| (gaussian.rng().next_u64() % limit as u64) as usize;
        let most = GblrSpec::most((m, n), spec.overhead);
        let (mut left, mut places, mut covered) = (spec.numbers.min(most), Vec::new(), 0.0);
        while left >= 2 + spec.overhead {
            let room = left - spec.overhead;
            let (mut rows, mut cols) = (1 + below(m), 1 + below(n));
            if rows + cols > room {
                // The last one takes what is left.
                rows = (rows * room / (rows + cols)).clamp(1, room - 1).min(m);
                cols = (room - rows).min(n);
            }
            let window = |start: usize, len: usize| CyclicWindow { start, len };
            places.push((window(below(m), rows), window(below(n), cols)));
            covered += rows as f64 / m as f64 * (cols as f64 / n as f64);
            left -= rows + cols + spec.overhead;
        }
        let scales = (covered.powf(-0.5), (n as f64).powf(-0.5));
        let components: Vec<GblrComponent> = places
            .into_iter()
            .map(|(rows, cols)| GblrComponent {
                rows,
                cols,
                u: (0..rows.len).map(|_| scales.0 * gaussian.sample()).collect(),
                v: (0..cols.len).map(|_| scales.1 * gaussian.sample()).collect(),
            })
            .collect();
        Self::from_components((m, n), &components, storage)
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        let rows: Vec<usize> =
            self.row_windows().flat_map(|window| window.features(self.rows.width())).collect();
        scale_outputs(self, scale, storage, |factor, (_, _, place)| (factor == 0).then(|| rows[place]))
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (m, n) = parts.shape();
        if m > MOST_FEATURES || n > MOST_FEATURES {
            return Err(parts.error(format!("shape {m} x {n}: expected at most {MOST_FEATURES} features")));
        }
        let (u, v) = (parts.take_factor("u")?, parts.take_factor("v")?);
        let mut windows = |side: &str, features: usize, factor: &Factor| {
            let starts = parts.take_indices(&format!("{side}_starts"), features)?;
            let lens = parts.take_indices(&format!("{side}_lens"), features.saturating_add(1))?;
            let found = Windows::new(features, starts, &lens).filter(|w| factor.shape() == (1, 1, w.len()));
            found.ok_or_else(|| {
                parts.error(format!(
                    "windows of {side}s and {:?} numbers: expected windows of 1 to {features}, and (1, 1, sum of lengths)",
                    factor.shape()
                ))
            })
        };
        let (rows, cols) = (windows("row", m, &u)?, windows("col", n, &v)?);
        if rows.rows() != cols.rows() {
            return Err(parts.error(format!("{} windows of rows, {} of columns", rows.rows(), cols.rows())));
        }
        Ok(Self {
            u: u.into_rows(),
            v: v.into_rows(),
            rows,
            cols,
            expanded: Expanded::default(),
            tiles: Default::default(),
        })
    }
}
