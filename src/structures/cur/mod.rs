//! CUR decompositions: actual columns and rows of the weight, and a small link between them.

mod fit;
mod rank;

pub use rank::{break_even_rank, curing_rank};

use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, Stage, stage_gradients};
use crate::linalg::{Threads, matmul};
use crate::matrix::{Multiply, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2};
use std::str::FromStr;

/// $W = C\, U R$: `C` (out x k) holds columns of the weight, `R` (k x in) rows of it, `U` (k x k) links them.
///
/// Parameters and multiply-adds: `k (out + in) + k²`, and two indices of 4 bytes per rank; `fused` stores $C U$ as one factor
/// and saves `k²`. In `f32` and `f64` storage the columns and rows are those of the weight, bit by bit.
///
/// Projection: columns and rows are chosen as [`CurSelection`] says; the link $U = C^+ W R^+$ is optimal for them. It is computed by
/// two least-squares solves in `f64`, and the rank ends where the chosen columns or rows become dependent at the precision of
/// the storage (a pivot below 1e-4 of the first for `f32` and coarser), because the link would amplify their rounding.
/// With activations $S = C^{1/2}$ the link is $U = C^+ (W S)(R S)^+$, for the plain choice of columns and rows and for one that
/// sees the activations; the better is kept, so the error is never above that of the plain projection.
///
/// Healing: the source trains the link alone, `C` and `R` frozen, `k²` numbers a layer. The gradient of the link is the third of
/// [`Apply::vjp`](crate::Apply::vjp)'s factors, after those of `C` and `R`; [`with_link`](Self::with_link) puts the next link in and
/// leaves both as they are, bit by bit:
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// # fn main() -> structmat::Result<()> {
/// let w = Array2::from_shape_fn((6, 8), |(i, j)| ((3 * i + 5 * j) % 7) as f64 - 3.0);
/// let x = Array2::from_shape_fn((20, 8), |(b, j)| ((b * b + 3 * j) % 5) as f64 - 2.0);
/// let spec = CurSpec { rank: 2, ..Default::default() };
/// let options = Options { storage: Storage::F64, ..Default::default() };
/// let mut cur = Cur::project(&w, &spec, &Objective::Frobenius, &options)?.matrix;
/// let mut exec = Exec::new();
/// let residual = |cur: &Cur| Ok::<_, structmat::Error>(cur.matmul(&x)? - x.dot(&w.t()));
/// let before = residual(&cur)?.mapv(|v| v * v).sum();
/// for _ in 0..20 {
///     let gradient = &cur.factor_gradients(&x, &residual(&cur)?, &mut exec)?[2];
///     let (_, link, _) = cur.factors();
///     let link = link.unwrap().numbers::<f64>() - gradient * 1e-7;
///     cur = cur.with_link(Factor::from_blocks(Storage::F64, (2, 2), &[link.remove_axis(structmat::ndarray::Axis(0))]))?;
/// }
/// assert!(residual(&cur)?.mapv(|v| v * v).sum() < before);
/// # Ok(()) }
/// ```
///
/// Source: D. Sorensen and M. Embree, "A DEIM induced CUR factorization", 2016; Z. Drmač and S. Gugercin, "A new selection
/// operator for the discrete empirical interpolation method", 2016; A. Farahat et al., "An efficient greedy method for
/// unsupervised feature selection", 2011; S. Park and S.-M. Moon, "CURing large models: compression via CUR decomposition", 2025.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((6, 8), |(i, j)| (1 + i) as f32 * (2 + j) as f32);     // rank 1
/// let spec = CurSpec { rank: 1, ..Default::default() };
/// let cur = Cur::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(cur.report.relative_error < 1e-6);
/// assert_eq!(cur.matrix.n_params(), 6 + 1 + 8);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Cur {
    c: Factor,
    u: Option<Factor>,
    r: Factor,
    rows: Vec<u32>,
    cols: Vec<u32>,
}

/// How rows and columns are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CurSelection {
    /// Greedy, pivoted and interpolating selection; the one of the least error.
    #[default]
    Auto,
    /// One after the other, whichever explains most of what is left of the metric; rows for the chosen columns, then columns
    /// for the chosen rows, while that helps.
    Greedy,
    /// Pivoted QR of the leading singular vectors.
    QDeim,
    /// Discrete empirical interpolation: the largest residual of each singular vector in turn.
    Deim,
    /// Largest norms in the leading singular vectors.
    Leverage,
    /// Drawn with probabilities proportional to squared norms.
    Magnitude,
    /// Drawn uniformly.
    Random,
    /// CURing's selection in the code of the paper: as [`Deim`](Self::Deim), but a vector loses only what the newest point asks for, by
    /// the minimum-norm combination of all vectors before it, so that its residual is zero there and not at the points before. To compare
    /// with.
    Published,
    /// CURing's selection in the later code, which in addition takes that combination from every vector alike, whatever its value at the
    /// point: residuals are zero nowhere in particular. To compare with.
    PublishedLater,
}

impl FromStr for CurSelection {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "auto" => Self::Auto,
            "greedy" => Self::Greedy,
            "qdeim" => Self::QDeim,
            "deim" => Self::Deim,
            "leverage" => Self::Leverage,
            "magnitude" => Self::Magnitude,
            "random" => Self::Random,
            "published" => Self::Published,
            "published_later" => Self::PublishedLater,
            _ => {
                let expected =
                    "auto, greedy, qdeim, deim, leverage, magnitude, random, published or published_later";
                return Err(Error::parameter("selection", text, expected));
            }
        })
    }
}

/// The matrix whose singular vectors, norms or entries the selection looks at; `a_j` is the root mean square of input `j`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CurMetric {
    /// $W$.
    #[default]
    Weight,
    /// $|W_{ij}|\, a_j$.
    AbsWanda,
    /// $W_{ij}\, a_j$.
    Wanda,
    /// $W C^{1/2}$.
    Cov,
}

impl FromStr for CurMetric {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "weight" => Self::Weight,
            "abs_wanda" => Self::AbsWanda,
            "wanda" => Self::Wanda,
            "cov" => Self::Cov,
            _ => return Err(Error::parameter("metric", text, "weight, abs_wanda, wanda or cov")),
        })
    }
}

/// Parameters of [`Cur`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurSpec {
    /// Rows and columns at most, themselves at most `min(out, in)`.
    pub rank: usize,
    /// Fewer where the leading singular values hold this fraction of the energy.
    pub energy: Option<f64>,
    /// How rows and columns are chosen.
    pub selection: CurSelection,
    /// What the choice looks at; anything but [`CurMetric::Weight`] needs activations. `None` is the weight, and with
    /// activations the better of `Weight` and `Cov`.
    pub metric: Option<CurMetric>,
    /// Whether $C U$ is stored as one factor.
    pub fused: bool,
}

impl Default for CurSpec {
    fn default() -> Self {
        Self { rank: 1, energy: None, selection: CurSelection::default(), metric: None, fused: false }
    }
}

impl Cur {
    /// From `c` (out x k), a link `u` (k x k; `None` when `c` holds the product) and `r` (k x in), with the rows and columns of
    /// the weight that they are.
    ///
    /// # Errors
    /// [`Error::Record`] when they do not fit together.
    pub fn new(c: Factor, u: Option<Factor>, r: Factor, rows: Vec<u32>, cols: Vec<u32>) -> Result<Self> {
        let mut parts = Parts::new(Self::NAME, (c.rows(), r.cols())).factor("c", c).factor("r", r);
        if let Some(u) = u {
            parts = parts.factor("u", u);
        }
        Self::from_parts(parts.index("rows", rows).index("cols", cols))
    }

    /// The same columns and rows, in the storage that they have, with another link (k x k).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a fused matrix, which has no link of its own, [`Error::Shape`] for a link of another shape.
    pub fn with_link(&self, link: Factor) -> Result<Self> {
        let k = self.rank();
        if self.u.is_none() {
            let what = "a fused matrix has no link to replace; project without `fused`".to_owned();
            return Err(Error::Unsupported { structure: Self::NAME.to_owned(), what });
        }
        if link.shape() != (1, k, k) {
            let (blocks, rows, cols) = link.shape();
            return Err(Error::shape("link", &[1, k, k], &[blocks, rows, cols]));
        }
        Ok(Self { u: Some(link.packed_forward()), ..self.clone() })
    }

    /// Number of rows and columns.
    pub fn rank(&self) -> usize {
        self.r.rows()
    }

    /// The columns of the weight in `C`, in its order.
    pub fn cols(&self) -> &[u32] {
        &self.cols
    }

    /// The rows of the weight in `R`, in its order.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// `C` (or $C U$ when fused), the link, and `R`.
    pub fn factors(&self) -> (&Factor, Option<&Factor>, &Factor) {
        (&self.c, self.u.as_ref(), &self.r)
    }
}

impl<T: Scalar> Multiply<T> for Cur {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        let (batch, rank, policy) = (x.rows(), self.rank(), work.policy);
        let (first, last) = op.order(&self.r, &self.c);
        let (mut t, rest) = work.matrix(batch, rank);
        first.multiply(op, x, t.reborrow(), Update::Overwrite, policy);
        let Some(u) = &self.u else {
            return last.multiply(op, t.as_rows(), y, update, policy);
        };
        let (mut linked, _) = rest.matrix(batch, rank);
        u.multiply(op, t.as_rows(), linked.reborrow(), Update::Overwrite, policy);
        last.multiply(op, linked.as_rows(), y, update, policy);
    }
}

impl<T: Scalar> Differentiate<T> for Cur {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let factors = [Some(&self.c), self.u.as_ref(), Some(&self.r)].into_iter().flatten();
        let stages: Vec<_> = factors.map(|factor| Stage::contiguous(factor.numbers())).collect();
        let mut gradients = stage_gradients(&stages, x, dy, threads);
        // The link is the last part.
        gradients[1..].reverse();
        gradients
    }
}

impl StructuredMatrix for Cur {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.c.rows(), self.r.cols())
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * self.n_params() as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        2 * Workspace::<f32>::matrix_len(batch, self.rank())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let mut left = self.c.matrix(0);
        if let Some(u) = &self.u {
            left = matmul(&left, &u.matrix(0), Threads::ONE);
        }
        matmul(&left, &self.r.matrix(0), Threads::ONE)
    }
    fn parts(&self) -> Parts<'_> {
        let parts = Parts::new(Self::NAME, self.shape()).factor("c", &self.c).factor("r", &self.r);
        let parts = parts.index("rows", &self.rows).index("cols", &self.cols);
        match &self.u {
            Some(u) => parts.factor("u", u),
            None => parts,
        }
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Cur {
    const NAME: &'static str = "cur";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("rank", "number of rows and columns"),
        ("energy", "fewer where the singular values hold this fraction of the energy"),
        (
            "selection",
            "`auto` (default), `greedy`, `qdeim`, `deim`, `leverage`, `magnitude`, `random`, `published` or `published_later`",
        ),
        ("metric", "`weight`, `abs_wanda`, `wanda` or `cov`; the better of `weight` and `cov` by default"),
        ("fused", "`true` stores C U as one factor"),
    ];
    type Spec = CurSpec;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<CurSpec> {
        let fused = request.get("fused")?.unwrap_or(false);
        let (selection, metric) = (request.get("selection")?.unwrap_or_default(), request.get("metric")?);
        let energy = request.get::<f64>("energy")?;
        if let Some(energy) = energy
            && !(energy > 0.0 && energy <= 1.0)
        {
            return Err(Error::parameter("energy", energy, "above 0, at most 1"));
        }
        let size = |k| {
            let two = request.size().factor(1, out, k).factor(1, k, inp).indices(2 * k);
            if fused { two } else { two.factor(1, k, k) }
        };
        // An energy alone asks for any rank that still saves parameters.
        let open =
            energy.is_some() && request.the_budget().is_none() && !request.params().contains_key("rank");
        let rank = match open {
            true => break_even_rank(out, inp).max(1),
            false => request.choose(Self::NAME, (out, inp), "rank", 1..=out.min(inp), size)?,
        };
        Ok(CurSpec { rank, energy, selection, metric, fused })
    }

    fn fit(w: &Array2<f64>, spec: &CurSpec, objective: &Objective<'_>, run: &Run<'_>) -> Result<Fit<Self>> {
        fit::fit(w, spec, objective, run)
    }

    fn random((out, inp): (usize, usize), spec: &CurSpec, storage: Storage, seed: u64) -> Result<Self> {
        let (mut gaussian, k) = (Gaussian::new(seed), spec.rank.min(out).min(inp));
        let link = 1.0 / k.max(1) as f64;
        let c = gaussian.matrix(out, k, if spec.fused { link.sqrt() } else { 1.0 });
        let u = gaussian.matrix(k, k, link);
        let r = gaussian.matrix(k, inp, (inp.max(1) as f64).powf(-0.5));
        let factor = |a: &Array2<f64>| Factor::from_matrix(storage, a);
        let list: Vec<u32> = (0..k as u32).collect();
        Self::new(factor(&c), (!spec.fused).then(|| factor(&u)), factor(&r), list.clone(), list)
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (m, n) = parts.shape();
        let (c, r) = (parts.take_factor("c")?, parts.take_factor("r")?);
        let u = parts.take_factor("u").ok();
        let (rows, cols) = (parts.take_indices("rows", m)?, parts.take_indices("cols", n)?);
        let k = c.cols();
        let fits = c.shape() == (1, m, k)
            && r.shape() == (1, k, n)
            && u.as_ref().is_none_or(|u| u.shape() == (1, k, k))
            && (rows.len(), cols.len()) == (k, k)
            && distinct(&rows)
            && distinct(&cols);
        if !fits {
            let (c, u, r) = (c.shape(), u.map(|u| u.shape()), r.shape());
            let (rows, cols) = (rows.len(), cols.len());
            return Err(parts.error(format!(
                "c {c:?}, u {u:?}, r {r:?}, {rows} rows, {cols} columns: expected (1, {m}, k), (1, k, k), (1, k, {n}), k distinct"
            )));
        }
        let u = u.map(Factor::packed_forward);
        Ok(Self { c: c.packed_forward(), u, r: r.packed_forward(), rows, cols })
    }
}

fn distinct(list: &[u32]) -> bool {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] < pair[1])
}
