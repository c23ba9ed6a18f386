//! Block-circulant matrices.

use super::shares::{Shares, parts};
use super::spectral::{
    convolve, convolve_scratch_len, correlate, for_rows, scratch_len, spectra, transform_flops,
};
use crate::error::{Error, Result};
use crate::exec::{Parallelism, Policy, Workspace};
use crate::gradient::Differentiate;
use crate::kernels::{
    BlockTransform, Convolution, Layout, PanelMap, ROWS_TOGETHER, RealFft, Rows, RowsMut, Spectrum,
    SpectrumCache, bins_len,
};
use crate::linalg::{SpdSolver, Threads, matmul_tn};
use crate::matrix::{Multiply, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, Weighted};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::{Array2, Array3, ArrayRef2, Axis, s};
use num_complex::Complex;

/// Blocks up to this size whose length has no transform in vectors are expanded to a dense matrix on first use.
const DENSE_BLOCK: usize = 4;

/// So are all of those in matrices of up to this many entries, where transforms take longer than they save.
const DENSE_ENTRIES: usize = 1 << 14;

/// Blocks from this size on have bins enough to fill vectors; for smaller ones the blocks do.
const WIDE_BLOCK: usize = 256;

/// Rows of a batch that pass through all steps together at most, so that their spectra stay in a core's cache.
const ROWS_AT_ONCE: usize = 32;

/// Threads that share a batch rather than the weights, at most. Each has rows that are multiplied together at least, as sums depend on these.
const MOST_SHARES: usize = 8;

/// Multiply-adds with the real bins from which on they are shared between threads by themselves, beside the complex ones.
const WORTH_SHARING: usize = 1 << 16;

/// Added to the diagonal of the systems of the projection, relative to its mean.
const RIDGE: f64 = 1e-10;

/// Circulant blocks of `p x p` in a grid of `ceil(out / p) x ceil(in / p)`:
/// `W[I p + i, J p + j] = c[I, J, (i - j) mod p]`, with the last blocks cut to the shape.
///
/// Parameters: `ceil(out / p) ceil(in / p) p`, about `out * in / p`; `p = 1` is the dense matrix and `p = max(out, in)` the circulant
/// one. Product: a Fourier transform of each input block, one complex `out / p x in / p` matrix per frequency, and a transform of each
/// output block; about `2 out * in / p` real multiply-adds with half as many weights. Blocks of 3, and those of 2 and 4 in matrices of up to 2^14 entries, are
/// multiplied as a dense matrix.
///
/// Projection: each `c` is the mean of the entries that it stands for, the optimum. With activations, the optimum solves one
/// system of `in / p` unknowns per frequency where `p` divides both sides; for other shapes these systems precondition conjugate gradients
/// on the normal equations.
///
/// Source: C. Ding et al., "CirCNN: accelerating and compressing deep neural networks using block-circulant weight matrices", 2017.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((8, 12), |(i, j)| ((i + 4 - j % 4) % 4) as f32);
/// let fit = BlockCirculant::project(&w, &BlockCirculantSpec { block: 4 }, &Objective::Frobenius, &Options::default())?;
/// assert!(fit.report.relative_error < 1e-6);
/// assert_eq!(fit.matrix.n_params(), 8 * 12 / 4);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockCirculant {
    shape: (usize, usize),
    c: Factor,
    cache: SpectrumCache,
}

/// Parameters of [`BlockCirculant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCirculantSpec {
    /// Rows and columns of a block, at most `max(out, in)`.
    pub block: usize,
}

fn grid((m, n): (usize, usize), p: usize) -> (usize, usize) {
    (m.div_ceil(p), n.div_ceil(p))
}

impl BlockCirculant {
    /// From the first columns `c` of the blocks (`ceil(out / p)` x `ceil(in / p)` x `p`).
    ///
    /// # Errors
    /// [`Error::Record`] when `c` has another shape.
    pub fn new(shape: (usize, usize), c: Factor) -> Result<Self> {
        Self::from_parts(Parts::new(Self::NAME, shape).factor("c", c))
    }

    /// Rows and columns of a block.
    pub fn block(&self) -> usize {
        self.c.cols()
    }

    fn is_dense(&self) -> bool {
        let p = self.block();
        let small = self.shape.0 * self.shape.1 <= DENSE_ENTRIES;
        p <= DENSE_BLOCK && (p == 1 || !p.is_power_of_two() || small)
    }

    fn is_wide(&self) -> bool {
        self.block() >= WIDE_BLOCK
    }

    /// The weights that products use: `W` itself, or spectra, or the real bins, and of the others the real above the imaginary parts.
    fn spectrum<T: Scalar>(&self) -> &Spectrum<T> {
        self.cache.get(|| {
            let storage = if size_of::<T>() == 4 { Storage::F32 } else { Storage::F64 };
            if self.is_dense() {
                let factor = Some(Factor::from_matrix(storage, &self.to_dense_f64()).packed_forward());
                return Spectrum { factor, ..Default::default() };
            }
            let (a, b, p) = self.c.shape();
            if self.is_wide() {
                let convolution = Convolution::new(p, (a, b), |i, j| {
                    let mut c = vec![0.0; p];
                    self.c.decode_row(i, j, 0, &mut c);
                    c
                });
                return Spectrum { convolution: Some(convolution), ..Default::default() };
            }
            let transform = BlockTransform::<T>::new(p);
            let mut bins = Array3::<Complex<f64>>::zeros((a, b, p / 2 + 1));
            let mut row = vec![0.0; p];
            for (i, j) in (0..a).flat_map(|i| (0..b).map(move |j| (i, j))) {
                self.c.decode_row(i, j, 0, &mut row);
                bins.slice_mut(s![i, j, ..]).iter_mut().zip(spectrum_of(&row)).for_each(|(to, z)| *to = z);
            }
            let (gain, complex) = transform.gains();
            let real = Factor::from_fn(storage, (transform.real_bins(), a, b), |f, i, j| {
                bins[[i, j, f * (p / 2)]].re / gain
            });
            let factor = Factor::from_fn(storage, (transform.bins(), 2 * a, b), |f, i, j| {
                let z = bins[[i % a, j, f + 1]] / complex;
                if i < a { z.re } else { z.im }
            });
            Spectrum {
                blocks: Some(transform),
                real: Some(real.packed_forward()),
                factor: Some(factor.packed_forward()),
                ..Default::default()
            }
        })
    }

    /// Scratch of one share, with so many rows at once.
    fn share_len(&self, rows: usize) -> usize {
        let (a, b, p) = self.c.shape();
        let need =
            || BlockTransform::<f32>::new(p).scratch_len().max(BlockTransform::<f64>::new(p).scratch_len());
        // Either side may be stacked.
        let spectra =
            |blocks: usize| Workspace::<f32>::matrix_len(2 * rows, bins_len(p, Layout::Stacked, blocks));
        spectra(a) + spectra(b) + scratch_len(rows, self.cache.scratch_len(need))
    }
}

impl<T: Scalar> Multiply<T> for BlockCirculant {
    fn multiply(&self, Operands { op, x, mut y, update, work }: Operands<'_, T>) {
        if self.c.len() == 0 {
            if update == Update::Overwrite {
                y.fill(T::zero());
            }
            return;
        }
        let Spectrum { blocks, real, factor, convolution, .. } = self.spectrum::<T>();
        if let Some(convolution) = convolution {
            let operands = Operands { op, x, y, update, work };
            return convolve(
                convolution,
                &self.cache,
                self.flops(1),
                0,
                operands,
                &|x, _| x,
                &|y, _, inverse| inverse(y, update),
            );
        }
        let Some(factor) = factor else { return };
        if self.is_dense() {
            return factor.multiply(op, x, y, update, work.policy);
        }
        let (Some(transform), Some(real)) = (blocks, real) else { return };
        let (batch, policy) = (x.rows(), work.policy);
        let tasks = policy.tasks((self.flops(batch) / 2) as usize);
        let (shares, policy) = Shares::deal(tasks, most_shares(batch), policy);
        let at_once = rows_at_once(batch, shares.count);
        let (scratch, _) = work.slice(self.share_len(at_once) * shares.count);
        let bins = Bins { transform, real, complex: factor };
        shares.run(x, y, scratch, &|x, mut y, scratch| {
            for rows in parts(x.rows(), at_once, ROWS_TOGETHER) {
                let (x, y) = (x.batch(rows.clone()), y.reborrow().batch(rows));
                bins.multiply(Operands { op, x, y, update, work: Workspace::new(&mut *scratch, policy) });
            }
        });
    }
}

/// Threads that share a batch, at most.
fn most_shares(batch: usize) -> usize {
    (batch / ROWS_TOGETHER).clamp(1, MOST_SHARES)
}

/// Rows that pass through all steps together in each of `count` shares: in all of them, twice the batch at most.
fn rows_at_once(batch: usize, count: usize) -> usize {
    let fair = (2 * batch.min(ROWS_AT_ONCE * MOST_SHARES)).div_ceil(count).next_multiple_of(ROWS_TOGETHER);
    fair.clamp(ROWS_TOGETHER, ROWS_AT_ONCE)
}

/// The matrices that spectra of short blocks are multiplied by, block by block of the bins.
struct Bins<'a, T> {
    transform: &'a BlockTransform<T>,
    /// `out / p x in / p` for each real bin.
    real: &'a Factor,
    /// The real above the imaginary parts of each complex one.
    complex: &'a Factor,
}

impl<T: Scalar> Bins<'_, T> {
    fn multiply(&self, Operands { op, x, y, update, work }: Operands<'_, T>) {
        let Self { transform, real, complex } = *self;
        let (batch, policy, p) = (x.rows(), work.policy, transform.len());
        let (ends, a, b) = real.shape();
        let (outputs, inputs) = op.order(a, b);
        let (to, from) = op.order(Layout::Stacked, Layout::Planes);
        // Two rows for each row of the batch.
        let stride = Workspace::<T>::slice_len(bins_len(p, from, inputs));
        let y_stride = Workspace::<T>::slice_len(bins_len(p, to, outputs));
        let (x_bins, work) = work.slice(2 * batch * stride);
        let (y_bins, mut work) = work.slice(2 * batch * y_stride);
        let (task_len, flops) = (transform.scratch_len(), |blocks| blocks as u64 * transform_flops(p));
        for_rows(
            x,
            RowsMut::new(x_bins, batch, 2 * stride, 2 * stride),
            work.reborrow(),
            task_len,
            flops(inputs),
            &|x, spectra, scratch| transform.forward(policy.level, x, from, spectra, scratch),
        );
        let alone = complex.blocks() == 0 || real.len() * batch >= WORTH_SHARING;
        let parallelism = if alone { policy.parallelism } else { Parallelism::Seq };
        real.multiply_blocks(
            PanelMap::contiguous(ends, a, b),
            op,
            Rows::new(x_bins, batch, ends * inputs, 2 * stride),
            RowsMut::new(y_bins, batch, ends * outputs, 2 * y_stride),
            Update::Overwrite,
            Policy { parallelism, ..policy },
        );
        if complex.blocks() > 0 {
            let (start, y_start) = (transform.head(inputs), transform.head(outputs));
            let width = |layout: Layout, blocks: usize| complex.blocks() * layout.width(blocks);
            complex.multiply_blocks(
                PanelMap::contiguous(complex.blocks(), 2 * a, b),
                op,
                Rows::new(&x_bins[start..], 2 * batch, width(from, inputs), stride),
                RowsMut::new(&mut y_bins[y_start..], 2 * batch, width(to, outputs), y_stride),
                Update::Overwrite,
                policy,
            );
        }
        for_rows(
            Rows::new(y_bins, batch, 2 * y_stride, 2 * y_stride),
            y,
            work,
            task_len,
            flops(outputs),
            &|spectra, y, scratch| transform.inverse(policy.level, to, spectra, y, update, scratch),
        );
    }
}

impl<T: Scalar> Differentiate<T> for BlockCirculant {
    /// Wide blocks by correlations; others, of which there are many, from the dense gradient: `batch * out * in` multiply-adds.
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, threads: Threads) -> Vec<Array3<T>> {
        let (a, b, p) = self.c.shape();
        if !self.is_wide() {
            let sums = diagonal_sums(&matmul_tn(x, dy, threads), p);
            return vec![Array3::from_shape_fn((a, b, p), |(i, j, k)| sums[(i * b + j) * p + k])];
        }
        let fft = RealFft::new(p);
        let blocks = |x: &ArrayRef2<T>| -> Vec<_> {
            x.axis_chunks_iter(Axis(1), p).map(|block| spectra(&fft, &block)).collect()
        };
        let (x, dy) = (blocks(x), blocks(dy));
        let mut dc = Array3::zeros((a, b, p));
        for (i, dy) in dy.iter().enumerate() {
            for (j, x) in x.iter().enumerate() {
                dc.slice_mut(s![i, j, ..]).assign(&correlate(&fft, dy, x));
            }
        }
        vec![dc]
    }
}

impl StructuredMatrix for BlockCirculant {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        let (a, b, p) = self.c.shape();
        if self.is_dense() {
            return 2 * batch as u64 * self.shape.0 as u64 * self.shape.1 as u64;
        }
        // Two for each real bin, eight for each complex one: of these there are two and `p / 2 - 1`, or one and `(p - 1) / 2`.
        let products = (a * b) as u64 * (4 * p - if p.is_multiple_of(2) { 4 } else { 2 }) as u64;
        batch as u64 * ((a + b) as u64 * transform_flops(p) + products)
    }
    fn scratch_len(&self, batch: usize) -> usize {
        if self.c.len() == 0 || self.is_dense() {
            return Workspace::<f32>::slice_len(0);
        }
        let (a, b, p) = self.c.shape();
        if self.is_wide() {
            return convolve_scratch_len(batch, p, (a, b), 0, &self.cache);
        }
        let shares = |count| self.share_len(rows_at_once(batch, count)).saturating_mul(count);
        (1..=most_shares(batch)).map(shares).max().unwrap_or(0)
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let (c, p) = (self.c.to_array(), self.block());
        Array2::from_shape_fn(self.shape, |(i, j)| c[[i / p, j / p, (i % p + p - j % p) % p]])
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape).factor("c", &self.c)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for BlockCirculant {
    const NAME: &'static str = "block_circulant";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[("block", "rows and columns of a block")];
    type Spec = BlockCirculantSpec;

    fn spec(shape: (usize, usize), request: &Request) -> Result<BlockCirculantSpec> {
        let largest = shape.0.max(shape.1).max(1);
        let size = |p: usize| request.size().factor(grid(shape, p).0, grid(shape, p).1, p);
        if let Some(block) = request.get_in("block", 1..=largest)? {
            request.require(Self::NAME, shape, size(block))?;
            return Ok(BlockCirculantSpec { block });
        }
        if request.the_budget().is_none() {
            return Err(Error::parameter("block", "nothing", "a value, or a budget"));
        }
        request.require(Self::NAME, shape, size(largest))?;
        // The fewer rows a block has, the more parameters.
        let block = (1..=largest).find(|&p| request.allows(shape, size(p))).unwrap_or(largest);
        Ok(BlockCirculantSpec { block })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &BlockCirculantSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let (shape, p) = (w.dim(), spec.block);
        check_block(shape, p)?;
        Ok(fit_blocks(w, p, objective, run)?.map(|theta| member(shape, p, run.storage(), &theta)))
    }

    fn random(shape: (usize, usize), spec: &BlockCirculantSpec, storage: Storage, seed: u64) -> Result<Self> {
        check_block(shape, spec.block)?;
        let (a, b) = grid(shape, spec.block);
        let c = Gaussian::new(seed).matrix(a * b, spec.block, (shape.1.max(1) as f64).powf(-0.5));
        Self::new(shape, Factor::from_fn(storage, (a, b, spec.block), |i, j, k| c[[i * b + j, k]]))
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let c = parts.take_factor("c")?;
        let (shape, p) = (parts.shape(), c.cols());
        if p == 0 || p > shape.0.max(shape.1).max(1) || (c.blocks(), c.rows()) != grid(shape, p) {
            return Err(
                parts.error(format!("c is {:?}, expected ceil(out / p) x ceil(in / p) x p", c.shape()))
            );
        }
        Ok(Self { shape, c, cache: SpectrumCache::default() })
    }
}

fn check_block((m, n): (usize, usize), p: usize) -> Result<()> {
    let largest = m.max(n).max(1);
    match p {
        p if p == 0 || p > largest => Err(Error::parameter("block", p, format!("1 to {largest}"))),
        _ => Ok(()),
    }
}

fn member(shape: (usize, usize), p: usize, storage: Storage, theta: &[f64]) -> BlockCirculant {
    let (a, b) = grid(shape, p);
    let c = Factor::from_fn(storage, (a, b, p), |i, j, k| theta[(i * b + j) * p + k]);
    BlockCirculant { shape, c, cache: SpectrumCache::default() }
}

/// The first columns (grid x `p`, row-major) of the best block-circulant matrix.
pub(super) fn fit_blocks(
    w: &Array2<f64>,
    p: usize,
    objective: &Objective<'_>,
    run: &Run<'_>,
) -> Result<Fit<Vec<f64>>> {
    let shape = w.dim();
    let counts = diagonal_sums(&Array2::<f64>::ones((shape.1, shape.0)), p);
    let plain: Vec<f64> = diagonal_sums(&w.t(), p).iter().zip(&counts).map(|(h, n)| h / n.max(1.0)).collect();
    let Some(c) = objective.second_moment() else { return Ok(Fit::optimal(plain)) };
    let weighted = Weighted::new(w, c, run);
    let systems = Systems::new(c, p, run)?;
    let solution = weighted.solve(
        plain,
        None,
        |theta| Ok(member(shape, p, Storage::F64, theta)),
        |e| diagonal_sums(e, p),
        |r| systems.solve(r),
    )?;
    Ok(solution.into_fit())
}

/// `h[I, J, k] = sum of E[I p + i, J p + j]` over `(i - j) mod p = k`, of `Eᵀ` (in x out).
fn diagonal_sums<T: Scalar>(e: &ArrayRef2<T>, p: usize) -> Vec<T> {
    let (a, b) = grid((e.ncols(), e.nrows()), p);
    let mut sums = vec![T::zero(); a * b * p];
    for (j, column) in e.outer_iter().enumerate() {
        for (i, value) in column.iter().enumerate() {
            sums[((i / p) * b + j / p) * p + (i % p + p - j % p) % p] += *value;
        }
    }
    sums
}

/// One symmetric system per bin: the normal equations where `p` divides both sides.
struct Systems {
    p: usize,
    b: usize,
    bins: Vec<SpdSolver>,
}

impl Systems {
    fn new(c: &Array2<f64>, p: usize, run: &Run<'_>) -> Result<Self> {
        let b = c.nrows().div_ceil(p);
        let g = transforms(&diagonal_sums(c, p), p);
        let bins = (0..p / 2 + 1).map(|f| {
            run.check()?;
            let z = |i: usize, j: usize| g[[i * b + j, f]];
            // Real bins need no imaginary half. The means remove rounding from the symmetry.
            let gram = match is_real(f, p) {
                true => Array2::from_shape_fn((b, b), |(i, j)| 0.5 * (z(i, j).re + z(j, i).re)),
                false => Array2::from_shape_fn((2 * b, 2 * b), |(i, j)| {
                    let (u, v) = (z(i % b, j % b), z(j % b, i % b));
                    match (i < b, j < b) {
                        (true, true) | (false, false) => 0.5 * (u.re + v.re),
                        (true, false) => 0.5 * (u.im - v.im),
                        (false, true) => 0.5 * (v.im - u.im),
                    }
                }),
            };
            Ok(SpdSolver::new(&gram, RIDGE)?.with_threads(run.threads()))
        });
        Ok(Self { p, b, bins: bins.collect::<Result<_>>()? })
    }

    /// `r Ĝ⁻¹` for each bin and block row.
    fn solve(&self, r: &[f64]) -> Vec<f64> {
        let (p, b) = (self.p, self.b);
        let a = r.len() / (b * p);
        let mut z = transforms(r, p);
        for (f, solver) in self.bins.iter().enumerate() {
            let width = solver.order();
            let rhs = Array2::from_shape_fn((a, width), |(i, j)| {
                let z = z[[i * b + j % b, f]];
                if j < b { z.re } else { z.im }
            });
            let x = solver.solve_right(&rhs);
            for i in 0..a {
                for j in 0..b {
                    let im = if is_real(f, p) { 0.0 } else { x[[i, b + j]] };
                    z[[i * b + j, f]] = Complex::new(x[[i, j]], im);
                }
            }
        }
        let plan = RealFft::<f64>::new(p);
        let mut scratch = vec![Complex::default(); plan.scratch_len()];
        let mut out = vec![0.0; r.len()];
        for (mut z, out) in z.outer_iter_mut().zip(out.chunks_exact_mut(p)) {
            if let Some(z) = z.as_slice_mut() {
                plan.inverse(z, out, Update::Overwrite, &mut scratch);
            }
            out.iter_mut().for_each(|v| *v /= p as f64);
        }
        out
    }
}

fn is_real(f: usize, p: usize) -> bool {
    f == 0 || 2 * f == p
}

/// The bins of each run of `p` numbers.
fn transforms(rows: &[f64], p: usize) -> Array2<Complex<f64>> {
    let plan = RealFft::<f64>::new(p);
    let mut scratch = vec![Complex::default(); plan.scratch_len()];
    let mut all = Array2::zeros((rows.len() / p, plan.bins()));
    for (mut z, row) in all.outer_iter_mut().zip(rows.chunks_exact(p)) {
        if let Some(z) = z.as_slice_mut() {
            plan.forward(row, z, &mut scratch);
        }
    }
    all
}

/// The bins of the real sequence `c`.
fn spectrum_of(c: &[f64]) -> Vec<Complex<f64>> {
    let plan = RealFft::<f64>::new(c.len());
    let (mut z, mut scratch) =
        (vec![Complex::default(); plan.bins()], vec![Complex::default(); plan.scratch_len()]);
    plan.forward(c, &mut z, &mut scratch);
    z
}
