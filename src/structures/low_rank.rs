//! Low-rank matrices.

use crate::error::{Error, Result};
use crate::exec::Workspace;
use crate::gradient::{Differentiate, Stage, stage_gradients};
use crate::kernels::{Rows, RowsMut};
use crate::linalg::{self, SpdSolver, SvdMethod, SvdOptions, Threads};
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Gram, Guarantee, Objective, Request, Run, scale_outputs};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array1, Array2, Array3, ArrayRef2, Axis};
use std::mem::take;

/// `W = U V` or `W = U diag(s) V`, with `U` of `out x rank` and `V` of `rank x in`.
///
/// Parameters and multiply-adds: `rank (out + in)`, plus `rank` with `s`.
///
/// Projection: the truncated singular value decomposition, optimal by Eckart and Young. With activations, the best rank-`r`
/// approximation of `W C^{1/2}`, written without inverses as `P Pᵀ W` with `P` the leading left singular vectors of
/// `W C^{1/2}`, the leading eigenvectors of the second moment `W C Wᵀ` of the outputs: optimal also for a singular `C`.
/// Randomized where that is cheaper; its error is then within 1e-3 of the optimum, checked afterwards.
///
/// Source: C. Eckart and G. Young, "The approximation of one matrix by another of lower rank", 1936; N. Halko, P.-G.
/// Martinsson and J. Tropp, "Finding structure with randomness", 2011.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((6, 4), |(i, j)| (i * j) as f32);          // rank 1
/// let spec = LowRankSpec { rank: 1, ..Default::default() };
/// let low_rank = LowRank::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(low_rank.report.relative_error < 1e-6);
/// assert_eq!(low_rank.matrix.n_params(), 10);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    u: Factor,
    s: Option<Factor>,
    v: Factor,
}

/// Which factors a low-rank matrix keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LowRankForm {
    /// `U V`, with the singular values split evenly.
    #[default]
    TwoFactors,
    /// `U diag(s) V` with orthonormal columns of `U` and, without activations, rows of `V`.
    Usv,
}

/// Parameters of [`LowRank`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowRankSpec {
    /// Rank, at most `min(out, in)`.
    pub rank: usize,
    /// Two factors or three.
    pub form: LowRankForm,
    /// Exact or randomized decomposition.
    pub method: SvdMethod,
}

impl Default for LowRankSpec {
    fn default() -> Self {
        Self { rank: 1, form: LowRankForm::default(), method: SvdMethod::Auto }
    }
}

impl LowRank {
    /// `U V` from `u` (out x rank) and `v` (rank x in).
    ///
    /// # Errors
    /// [`Error::Record`] when the inner sizes differ.
    pub fn new(u: Factor, v: Factor) -> Result<Self> {
        let shape = (u.rows(), v.cols());
        Self::from_parts(Parts::new(Self::NAME, shape).factor("u", u).factor("v", v))
    }

    /// `U diag(s) V` from `u` (out x rank), `s` (1 x rank) and `v` (rank x in).
    ///
    /// # Errors
    /// [`Error::Record`] when the inner sizes differ.
    pub fn with_singular_values(u: Factor, s: Factor, v: Factor) -> Result<Self> {
        let shape = (u.rows(), v.cols());
        Self::from_parts(Parts::new(Self::NAME, shape).factor("u", u).factor("s", s).factor("v", v))
    }

    /// `U V` of arrays that fit.
    pub(crate) fn from_arrays(storage: Storage, u: &Array2<f64>, v: &Array2<f64>) -> Self {
        let (u, v) = (Factor::from_matrix(storage, u), Factor::from_matrix(storage, v));
        Self { u: u.packed_forward(), s: None, v: v.packed_forward() }
    }

    /// Stored numbers.
    pub(crate) fn numbers(&self) -> usize {
        self.u.len() + self.s.as_ref().map_or(0, Factor::len) + self.v.len()
    }

    /// `U`, of `out x rank`.
    pub fn left(&self) -> &Factor {
        &self.u
    }

    /// `V`, of `rank x in`.
    pub fn right(&self) -> &Factor {
        &self.v
    }

    /// The number between the `k`-th column of `U` and the `k`-th row of `V`: 1 where there is no `s`. Panics when out of range.
    pub fn scale(&self, k: usize) -> f64 {
        self.s.as_ref().map_or(1.0, |s| s.get(0, 0, k))
    }

    /// A copy of a matrix that is one.
    pub(crate) fn from_structured(matrix: &dyn StructuredMatrix) -> Option<Self> {
        (matrix.name() == Self::NAME).then(|| Self::from_parts(matrix.parts().into_owned()).ok()).flatten()
    }

    /// The rank of the factors.
    pub fn rank(&self) -> usize {
        self.u.cols()
    }

    /// The first of the two products, with `diag(s)` where there is one, and what it leaves of the workspace.
    pub(crate) fn first_product<'w, T: Scalar>(
        &self,
        op: Op,
        x: Rows<'_, T>,
        work: Workspace<'w, T>,
    ) -> (RowsMut<'w, T>, Workspace<'w, T>) {
        let (batch, rank, policy) = (x.rows(), self.rank(), work.policy);
        let (mut t, rest) = work.matrix(batch, rank);
        op.order(&self.v, &self.u).0.multiply(op, x, t.reborrow(), Update::Overwrite, policy);
        let Some(s) = &self.s else { return (t, rest) };
        let (mut scaled, rest) = rest.matrix(batch, rank);
        for b in 0..batch {
            s.scale_row(0, 0, 0, t.row(b), scaled.row(b), Update::Overwrite, policy);
        }
        (scaled, rest)
    }
}

impl<T: Scalar> Multiply<T> for LowRank {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        let policy = work.policy;
        let (t, _) = self.first_product(op, x, work);
        op.order(&self.v, &self.u).1.multiply(op, t.as_rows(), y, update, policy);
    }
}

impl<T: Scalar> Differentiate<T> for LowRank {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let (u, v) = (self.u.numbers::<T>(), Stage::contiguous(self.v.numbers()));
        let Some(s) = &self.s else {
            return stage_gradients(&[Stage::contiguous(u), v], x, dy, threads);
        };
        // That of U diag(s) gives those of both.
        let s = s.numbers::<T>();
        let mut gradients = stage_gradients(&[Stage::contiguous(&u * &s), v], x, dy, threads);
        let ds = (&gradients[0] * &u).sum_axis(Axis(1)).insert_axis(Axis(1));
        gradients[0] *= &s;
        gradients.push(ds);
        gradients
    }
}

impl StructuredMatrix for LowRank {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        (self.u.rows(), self.v.cols())
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * batch as u64 * self.numbers() as u64
    }
    fn scratch_len(&self, batch: usize) -> usize {
        (1 + usize::from(self.s.is_some())) * Workspace::<f32>::matrix_len(batch, self.rank())
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let mut u = self.u.matrix(0);
        if let Some(s) = &self.s {
            u *= &s.matrix(0);
        }
        linalg::matmul(&u, &self.v.matrix(0), Threads::ONE)
    }
    fn parts(&self) -> Parts<'_> {
        let parts = Parts::new(Self::NAME, self.shape()).factor("u", &self.u).factor("v", &self.v);
        match &self.s {
            Some(s) => parts.factor("s", s),
            None => parts,
        }
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for LowRank {
    const NAME: &'static str = "low_rank";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("rank", "rank of the factors"),
        ("form", "`uv` (two factors, default) or `usv` (three)"),
        ("svd", "`auto` (default), `exact` or `randomized`"),
    ];
    type Spec = LowRankSpec;
    const ROUNDS_FOR_INPUTS: bool = true;

    fn spec((out, inp): (usize, usize), request: &Request) -> Result<LowRankSpec> {
        let form = match request.get::<String>("form")?.as_deref() {
            None | Some("uv") => LowRankForm::TwoFactors,
            Some("usv") => LowRankForm::Usv,
            Some(other) => return Err(Error::parameter("form", other, "uv or usv")),
        };
        let method = match request.get::<String>("svd")?.as_deref() {
            None | Some("auto") => SvdMethod::Auto,
            Some("exact") => SvdMethod::Exact,
            Some("randomized") => SvdMethod::Randomized,
            Some(other) => return Err(Error::parameter("svd", other, "auto, exact or randomized")),
        };
        let rank = request.choose(Self::NAME, (out, inp), "rank", 1..=out.min(inp), |r| {
            let two = request.size().factor(1, out, r).factor(1, r, inp);
            if form == LowRankForm::Usv { two.factor(1, 1, r) } else { two }
        })?;
        Ok(LowRankSpec { rank, form, method })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &LowRankSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let (m, n) = w.dim();
        if spec.rank == 0 || spec.rank > m.min(n) {
            return Err(Error::parameter("rank", spec.rank, format!("1 to {}", m.min(n))));
        }
        let options = SvdOptions { method: spec.method, seed: run.seed(), ..SvdOptions::default() };
        let decompose = |a: &Array2<f64>| linalg::truncated_svd(a, spec.rank, &options, run.threads());
        let (found, s, vt) = match objective.root()? {
            None => {
                let mut found = decompose(w)?;
                let (s, vt) = (take(&mut found.svd.s), take(&mut found.svd.vt));
                (found, s, vt)
            }
            Some(root) => {
                let found = decompose(&linalg::matmul(w, root, run.threads()))?;
                // P Pᵀ W, with the norms of the rows of Pᵀ W in the place of singular values.
                let mut vt = linalg::matmul_tn(&found.svd.u, w, run.threads());
                let s: Vec<f64> = vt.outer_iter().map(|row| row.dot(&row).sqrt()).collect();
                vt.outer_iter_mut().zip(&s).filter(|(_, s)| **s > 0.0).for_each(|(mut row, s)| row /= *s);
                (found, s, vt)
            }
        };
        let guarantee = if found.exact {
            Guarantee::GlobalOptimum
        } else {
            Guarantee::WithinFactor(1.0 + options.tolerance)
        };
        let (iterations, mut u, mut v) = (found.iterations, found.svd.u, vt);
        let s = match spec.form {
            LowRankForm::Usv => {
                let row = Array2::from_shape_fn((1, s.len()), |(_, k)| s[k]);
                Some(Factor::from_matrix(run.storage(), &row))
            }
            LowRankForm::TwoFactors => {
                let roots = Array1::from_iter(s.iter().map(|s| s.sqrt()));
                u *= &roots;
                v *= &roots.insert_axis(Axis(1));
                None
            }
        };
        let (u, v) = (Factor::from_matrix(run.storage(), &u), Factor::from_matrix(run.storage(), &v));
        Ok(Fit {
            matrix: Self { u: u.packed_forward(), s, v: v.packed_forward() },
            guarantee,
            iterations,
            history: Vec::new(),
        })
    }

    fn random((out, inp): (usize, usize), spec: &LowRankSpec, storage: Storage, seed: u64) -> Result<Self> {
        let mut gaussian = Gaussian::new(seed);
        let scale = (spec.rank.max(1) as f64).powf(-0.5);
        let u = Factor::from_matrix(storage, &gaussian.matrix(out, spec.rank, scale));
        let v =
            Factor::from_matrix(storage, &gaussian.matrix(spec.rank, inp, (inp.max(1) as f64).powf(-0.5)));
        match spec.form {
            LowRankForm::TwoFactors => Self::new(u, v),
            LowRankForm::Usv => {
                let s = Factor::from_fn(storage, (1, 1, spec.rank), |_, _, k| 1.0 / (1.0 + k as f64).sqrt());
                Self::with_singular_values(u, s, v)
            }
        }
    }

    fn scale_outputs(&self, scale: &[f64], storage: Storage) -> Result<Self> {
        // The left factor comes first.
        scale_outputs(self, scale, storage, |factor, (_, row, _)| (factor == 0).then_some(row))
    }

    /// `V` first; `U` is then the best one for what became of `V`, and its inputs are what that makes of the inputs.
    fn round_for_inputs(&self, w: &Array2<f64>, gram: &Gram, storage: Storage) -> Result<Self> {
        if self.s.is_some() {
            let what = "rounding of three factors for inputs".to_owned();
            return Err(Error::Unsupported { structure: Self::NAME.to_owned(), what });
        }
        let v = gram.feedback()?.round(&self.v.matrix(0), storage)?;
        let rounded = v.matrix(0);
        let seen = linalg::matmul(&rounded, gram.second_moment(), Threads::ONE);
        let inner = linalg::matmul_nt(&seen, &rounded, Threads::ONE);
        let u = SpdSolver::new(&inner, 1e-10)?.solve_right(&linalg::matmul_nt(w, &seen, Threads::ONE));
        let u = Gram::from_second_moment(&inner)?.feedback()?.round(&u, storage)?;
        Ok(Self { u: u.packed_forward(), s: None, v: v.packed_forward() })
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (u, v) = (parts.take_factor("u")?, parts.take_factor("v")?);
        let s = parts.take_factor("s").ok();
        let ((m, n), rank) = (parts.shape(), u.cols());
        let fits = u.shape() == (1, m, rank)
            && v.shape() == (1, rank, n)
            && s.as_ref().is_none_or(|s| s.shape() == (1, 1, rank));
        if !fits {
            let (u, s, v) = (u.shape(), s.map(|s| s.shape()), v.shape());
            return Err(parts
                .error(format!("u {u:?}, s {s:?}, v {v:?}: expected (1, {m}, r), (1, 1, r), (1, r, {n})")));
        }
        Ok(Self { u: u.packed_forward(), s: s.map(Factor::into_rows), v: v.packed_forward() })
    }
}
