//! Matrices of few spectral coefficients.

use super::expanded::{Expand, Expanded, GATHERED};
use super::spectral::{for_rows, scratch_len, spectra, transform_flops};
use crate::error::{Error, Result};
use crate::exec::{SCRATCH_ALIGN, Workspace};
use crate::gradient::Differentiate;
use crate::kernels::{
    Cosine, Pattern, RealFft, Sliced, SparseProduct, SparseSpectrum, Spectrum, SpectrumCache, Transform,
    fft2, gathers, sparse_scratch_len, spectrum_len,
};
use crate::linalg::Threads;
use crate::matrix::{Multiply, Op, Operands, StructuredMatrix, Update};
use crate::parts::Parts;
use crate::projection::{Family, Fit, Objective, Request, Run, Weighted, largest};
use crate::random::Gaussian;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use crate::structures::Dense;
use ndarray::{Array2, Array3, ArrayRef2, Axis};
use num_complex::Complex;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Few coefficients of the two-dimensional spectrum of $W$:
/// $W = F_m^* Z F_n^*$ with a sparse, conjugate-symmetric $Z$ and orthonormal Fourier matrices, or $W = C_m^T Z C_n$ with a sparse real
/// $Z$ and orthonormal cosine transforms (DCT-II).
///
/// Parameters: two numbers per kept pair of mirrored Fourier coefficients (the mirror image of `(a, b)` is `(-a, -b)`), one per cosine
/// coefficient; and one index each. Product: a transform of length `in`, one complex (real) multiply-add per coefficient, a
/// transform of length `out`. With so many coefficients that the dense product takes less time (a tenth of all; a fifth for one row on AVX-512), the dense matrix is
/// made on the first product and multiplied.
///
/// Projection: the coefficients of the largest magnitude, optimal by Parseval's theorem. With activations, those of the plain optimum
/// or those that count most at the input's power spectrum, refitted by conjugate gradients; the better of the two.
///
/// Source: the spectral parametrisation of Z. Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier
/// Transform", 2024, with chosen instead of random coefficients.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::Array2;
/// use std::f32::consts::TAU;
/// let w = Array2::from_shape_fn((8, 12), |(i, j)| (TAU * (2.0 * i as f32 / 8.0 + j as f32 / 12.0)).cos());
/// let spec = FourierSpec { coefficients: 1, transform: FourierTransform::Dft };
/// let fourier = Fourier::project(&w, &spec, &Objective::Frobenius, &Options::default())?;
/// assert!(fourier.report.relative_error < 1e-5 && fourier.matrix.n_params() == 2);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Fourier {
    shape: (usize, usize),
    transform: FourierTransform,
    /// `1 x 2 x k` (real, imaginary) or `1 x 1 x k`.
    values: Factor,
    /// `a * in + b` of each coefficient, ascending; of mirrored pairs the smaller one.
    indices: Vec<u32>,
    cache: SpectrumCache,
    expanded: Expanded,
}

/// The transform whose coefficients a [`Fourier`] matrix keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FourierTransform {
    /// The discrete Fourier transform.
    #[default]
    Dft,
    /// The cosine transform DCT-II.
    Dct,
}

/// Parameters of [`Fourier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FourierSpec {
    /// Kept coefficients; a mirrored pair counts as one.
    pub coefficients: usize,
    /// Fourier or cosine.
    pub transform: FourierTransform,
}

#[derive(Debug, Serialize, Deserialize)]
struct Config {
    transform: FourierTransform,
}

impl FourierTransform {
    /// Stored numbers per coefficient.
    fn numbers(self) -> usize {
        match self {
            FourierTransform::Dft => 2,
            FourierTransform::Dct => 1,
        }
    }

    /// The most coefficients of a shape.
    fn most(self, (m, n): (usize, usize)) -> usize {
        let all = m.saturating_mul(n);
        let own_mirrors = |len: usize| if len.is_multiple_of(2) { 2 } else { 1 };
        match self {
            FourierTransform::Dft if all > 0 => (all + own_mirrors(m) * own_mirrors(n)) / 2,
            FourierTransform::Dft => 0,
            FourierTransform::Dct => all,
        }
    }
}

/// The index of the mirror image of coefficient `index`.
fn mirror(index: usize, (m, n): (usize, usize)) -> usize {
    (m - index / n) % m * n + (n - index % n) % n
}

impl Fourier {
    fn member(
        shape: (usize, usize),
        transform: FourierTransform,
        storage: Storage,
        indices: &[u32],
        values: &[f64],
    ) -> Self {
        let rows = transform.numbers();
        let values = Factor::from_fn(storage, (1, rows, indices.len()), |_, part, k| values[rows * k + part]);
        Self {
            shape,
            transform,
            values,
            indices: indices.to_vec(),
            cache: SpectrumCache::default(),
            expanded: Expanded::default(),
        }
    }

    /// Number of kept coefficients.
    pub fn coefficients(&self) -> usize {
        self.indices.len()
    }

    fn spectrum<T: Scalar>(&self) -> &Spectrum<T> {
        self.cache.get(|| {
            let (m, n) = self.shape;
            let sides = [Transform::<T>::new(m), Transform::new(n)];
            let [to, from] = [0, 1].map(|side| self.places(&sides[side]));
            let mut entries = Vec::new();
            // y += v x*, in the real numbers that y and x are combinations of.
            let mut push = |y: &Combination, x: &Combination, v: Complex<f64>| {
                for (row, a) in y {
                    for (col, b) in x {
                        let value = (a.conj() * v * b.conj()).re;
                        entries.push((*row, *col, if value == 0.0 { 0.0 } else { value }));
                    }
                }
            };
            // What transforms back counts each place once: not its mirror image.
            let scale = 2.0 * ((m * n) as f64).powf(-0.5);
            for (k, &index) in self.indices.iter().enumerate() {
                let (a, b) = (index as usize / n, index as usize % n);
                if self.transform == FourierTransform::Dct {
                    push(&to[a], &from[b], self.values.get(0, 0, k).into());
                    continue;
                }
                let z = Complex::new(self.values.get(0, 0, k), self.values.get(0, 1, k)) * scale;
                let mirrored = mirror(index as usize, self.shape);
                let both = [((a, b), z), ((mirrored / n, mirrored % n), z.conj())];
                for ((a, b), z) in &both[..1 + usize::from(mirrored != index as usize)] {
                    // The half of the frequencies that is kept; 0 and m / 2, which have no mirror image, count half.
                    if 2 * a <= m {
                        let alone = if to[*a].len() == 1 { 0.5 } else { 1.0 };
                        push(&to[*a], &from[*b], z * alone);
                    }
                }
            }
            let (pattern, values) = compressed(spectrum_len(m), spectrum_len(n), entries);
            let storage = if size_of::<T>() == 4 { Storage::F32 } else { Storage::F64 };
            let values = Factor::from_fn(storage, (1, 1, values.len()), |_, _, k| values[k]);
            let sides = sides.map(|side| {
                let turns = (self.transform == FourierTransform::Dct).then(|| side.cosine_turns());
                (side, turns)
            });
            Spectrum {
                sparse: pattern.map(|pattern| {
                    let sliced = Sliced::new(&pattern, |k| T::narrow(values.get(0, 0, k)));
                    SparseSpectrum { sides, pattern, values, sliced }
                }),
                ..Default::default()
            }
        })
    }

    /// Each coefficient of a transform, as a combination of the real numbers of a spectrum, of one place for each frequency.
    fn places<T: Scalar>(&self, transform: &Transform<T>) -> Vec<Combination> {
        let len = transform.len();
        let (one, i) = (Complex::new(1.0, 0.0), Complex::new(0.0, 1.0));
        let mut all = vec![Combination::new(); len];
        for (place, (bin, _)) in transform.frequencies().enumerate() {
            let (re, im) = Transform::<T>::at(place);
            match self.transform {
                _ if !all[bin].is_empty() => (),
                _ if bin == 0 || 2 * bin == len => all[bin] = vec![(re, one)],
                FourierTransform::Dft => {
                    all[bin] = vec![(re, one), (im, i)];
                    all[len - bin] = vec![(re, one), (im, -i)];
                }
                FourierTransform::Dct => {
                    all[bin] = vec![(re, one)];
                    all[len - bin] = vec![(im, -one)];
                }
            }
        }
        all
    }

    /// A row in another order, and what the transforms need.
    fn task_len(&self) -> usize {
        let (m, n) = self.shape;
        let row = m.max(n).next_multiple_of(SCRATCH_ALIGN);
        row + 2 * spectrum_len(m).max(spectrum_len(n)) + self.cache.transform_scratch_len(&[m, n])
    }
}

/// Real numbers of a spectrum, by their place, with their factors.
type Combination = Vec<(usize, Complex<f64>)>;

/// The sparse matrix with these entries, those of one place added up.
fn compressed(
    rows: usize,
    cols: usize,
    mut entries: Vec<(usize, usize, f64)>,
) -> (Option<Pattern>, Vec<f64>) {
    entries.sort_by_key(|&(row, col, _)| (row, col));
    entries.dedup_by(|next, entry| {
        let same = (next.0, next.1) == (entry.0, entry.1);
        if same {
            entry.2 += next.2;
        }
        same
    });
    let starts = (0..=rows).map(|row| entries.partition_point(|entry| entry.0 < row) as u32).collect();
    let pattern = Pattern::new(cols, starts, entries.iter().map(|entry| entry.1 as u32).collect());
    (pattern, entries.into_iter().map(|entry| entry.2).collect())
}

/// Even entries ascending, then odd entries descending: the order in which a Fourier transform gives the cosine transform.
fn fold<T: Scalar>(x: &[T], row: &mut [T]) {
    let (front, back) = row.split_at_mut(x.len().div_ceil(2));
    let (pairs, last) = x.as_chunks::<2>();
    for ((front, back), [even, odd]) in front.iter_mut().zip(back.iter_mut().rev()).zip(pairs) {
        (*front, *back) = (*even, *odd);
    }
    if let [last] = last {
        front[pairs.len()] = *last;
    }
}

/// The inverse of [`fold`].
fn unfold<T: Scalar>(row: &[T], y: &mut [T], update: Update) {
    let (front, back) = row.split_at(y.len().div_ceil(2));
    let set = |y: &mut T, value: T| match update {
        Update::Overwrite => *y = value,
        Update::Accumulate => *y += value,
    };
    let (pairs, last) = y.as_chunks_mut::<2>();
    for ((front, back), [even, odd]) in front.iter().zip(back.iter().rev()).zip(pairs) {
        set(even, *front);
        set(odd, *back);
    }
    if let [last] = last {
        set(last, front[back.len()]);
    }
}

impl Expand for Fourier {
    fn expanded(&self) -> &Expanded {
        &self.expanded
    }
    fn numbers(&self) -> usize {
        self.values.len()
    }
    fn own_flops(&self) -> u64 {
        let per_coefficient = match self.transform {
            FourierTransform::Dft => 8,
            FourierTransform::Dct => 2,
        };
        let transforms = transform_flops(self.shape.0) + transform_flops(self.shape.1);
        transforms + per_coefficient * self.coefficients() as u64
    }
    fn cost(&self, op: Op, batch: usize) -> u64 {
        let halves = if gathers(op, batch) {
            2 * GATHERED
        } else if batch > 1 {
            8
        } else {
            5
        };
        halves * self.own_flops() / 2
    }
}

impl<T: Scalar> Multiply<T> for Fourier {
    fn multiply(&self, operands: Operands<'_, T>) {
        let Some(Operands { op, x, mut y, update, work }) = self.multiply_densely(operands) else { return };
        if self.indices.is_empty() {
            if update == Update::Overwrite {
                y.fill(T::zero());
            }
            return;
        }
        let (m, n) = self.shape;
        let Some(SparseSpectrum { sides, pattern, values, sliced }) = &self.spectrum::<T>().sparse else {
            return;
        };
        let ((to, to_turns), (from, from_turns)) = op.order(&sides[0], &sides[1]);
        let (batch, policy, (outputs, inputs)) = (x.rows(), work.policy, op.order(m, n));
        let level = policy.level;
        let (mut before, work) = work.matrix(batch, spectrum_len(inputs));
        let (mut after, work) = work.matrix(batch, spectrum_len(outputs));
        let (scratch, mut work) = work.slice(sparse_scratch_len(batch, spectrum_len(m), spectrum_len(n)));
        let (task, row) = (self.task_len(), m.max(n).next_multiple_of(SCRATCH_ALIGN));
        for_rows(x, before.reborrow(), work.reborrow(), task, transform_flops(inputs), &|x, z, scratch| {
            let (row, scratch) = scratch.split_at_mut(row);
            let Some(turns) = from_turns else { return from.forward(level, x, 1, z, scratch) };
            let row = &mut row[..inputs];
            fold(x, row);
            let (spectrum, scratch) = scratch.split_at_mut(z.len());
            from.forward(level, row, 1, spectrum, scratch);
            turns.multiply(level, Op::Forward, 1, 0..1, spectrum, z);
            from.gather_odd(z);
        });
        let (x, y_planes) = (before.as_rows(), after.reborrow());
        values.multiply_sparse(SparseProduct {
            pattern,
            sliced: sliced.as_ref(),
            op,
            x,
            y: y_planes,
            update: Update::Overwrite,
            before: None,
            scratch,
            policy,
        });
        // What transforms back is what transforms forward, transposed.
        for_rows(after.as_rows(), y, work, task, transform_flops(outputs), &|z, y, scratch| {
            let Some(turns) = to_turns else { return to.inverse(level, z, 1, y, update, scratch) };
            let (row, scratch) = scratch.split_at_mut(row);
            let (spectrum, scratch) = scratch.split_at_mut(z.len());
            let (turned, scratch) = scratch.split_at_mut(z.len());
            spectrum.copy_from_slice(z);
            to.spread_odd(spectrum);
            turns.multiply(level, Op::Transpose, 1, 0..1, spectrum, turned);
            let row = &mut row[..outputs];
            to.inverse(level, turned, 1, row, Update::Overwrite, scratch);
            unfold(row, y, update);
        });
    }
}

impl<T: Scalar> Differentiate<T> for Fourier {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, _: Threads) -> Vec<Array3<T>> {
        let (x, dy) = (coefficients(self.transform, x), coefficients(self.transform, dy));
        let at = |index: usize| {
            let (dy, x) = (dy.row(index / self.shape.1), x.row(index % self.shape.1));
            dy.iter().zip(x).map(|(dy, x)| dy * x).sum::<Complex<T>>()
        };
        let values = gather(self.transform, self.shape, &self.indices, at);
        let (_, parts, _) = self.values.shape();
        vec![Array3::from_shape_fn(self.values.shape(), |(_, part, k)| values[parts * k + part])]
    }
}

impl StructuredMatrix for Fourier {
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
        let batch = self.own_rows(batch);
        let (m, n) = (spectrum_len(self.shape.0), spectrum_len(self.shape.1));
        let panels =
            Workspace::<f32>::matrix_len(batch, m).saturating_add(Workspace::<f32>::matrix_len(batch, n));
        panels
            .saturating_add(Workspace::<f32>::slice_len(sparse_scratch_len(batch, m, n)))
            .saturating_add(scratch_len(batch, self.task_len()))
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        let values: Vec<f64> = match self.transform {
            FourierTransform::Dft => {
                (0..2 * self.coefficients()).map(|k| self.values.get(0, k % 2, k / 2)).collect()
            }
            FourierTransform::Dct => (0..self.coefficients()).map(|k| self.values.get(0, 0, k)).collect(),
        };
        synthesise(self.shape, self.transform, &self.indices, &values)
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape)
            .with_config(&Config { transform: self.transform })
            .factor("values", &self.values)
            .index("indices", &self.indices)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

/// The orthonormal spectrum of a real matrix.
fn analyse(transform: FourierTransform, w: &ArrayRef2<f64>) -> Array2<Complex<f64>> {
    let mut z = w.mapv(Complex::from);
    match transform {
        FourierTransform::Dft => fft2(&mut z, false),
        FourierTransform::Dct => {
            along_axes(&mut z, |plan, row, out, scratch| plan.forward(row, out, scratch))
        }
    }
    z
}

/// The inverse of [`analyse`] for some coefficients of a real matrix, in `O(out in log)`.
fn synthesise(
    shape: (usize, usize),
    transform: FourierTransform,
    indices: &[u32],
    values: &[f64],
) -> Array2<f64> {
    let n = shape.1;
    let mut z = Array2::from_elem(shape, Complex::default());
    for (k, &index) in indices.iter().enumerate() {
        let index = index as usize;
        match transform {
            FourierTransform::Dct => z[[index / n, index % n]] = Complex::from(values[k]),
            FourierTransform::Dft => {
                let (value, mirrored) =
                    (Complex::new(values[2 * k], values[2 * k + 1]), mirror(index, shape));
                z[[mirrored / n, mirrored % n]] = value.conj();
                z[[index / n, index % n]] = if mirrored == index { Complex::from(value.re) } else { value };
            }
        }
    }
    match transform {
        FourierTransform::Dft => fft2(&mut z, true),
        FourierTransform::Dct => along_axes(&mut z, |plan, row, out, scratch| {
            plan.inverse(row, out, Update::Overwrite, scratch);
        }),
    }
    z.mapv(|z| z.re)
}

/// Replaces the real parts of rows and columns by a cosine transform of them.
fn along_axes(
    z: &mut Array2<Complex<f64>>,
    transform: impl Fn(&Cosine<f64>, &[f64], &mut [f64], &mut [Complex<f64>]),
) {
    for axis in [Axis(1), Axis(0)] {
        let len = z.len_of(axis);
        let plan = Cosine::<f64>::new(len);
        let (mut row, mut out) = (vec![0.0; len], vec![0.0; len]);
        let mut scratch = vec![Complex::default(); plan.scratch_len()];
        for mut lane in z.lanes_mut(axis) {
            row.iter_mut().zip(&lane).for_each(|(to, from)| *to = from.re);
            transform(&plan, &row, &mut out, &mut scratch);
            lane.iter_mut().zip(&out).for_each(|(to, from)| *to = Complex::from(*from));
        }
    }
}

/// The `count` coefficients of the largest `score`, one of each mirrored pair.
fn support(transform: FourierTransform, score: &Array2<f64>, count: usize) -> Vec<u32> {
    let shape = score.dim();
    let n = shape.1;
    let single = |index: &usize| transform == FourierTransform::Dct || *index <= mirror(*index, shape);
    let candidates: Vec<usize> = (0..score.len()).filter(single).collect();
    let energy = |&index: &usize| {
        let own = transform == FourierTransform::Dct || mirror(index, shape) == index;
        score[[index / n, index % n]] * if own { 1.0 } else { 2.0 }
    };
    let scores: Vec<f64> = candidates.iter().map(energy).collect();
    largest(&scores, count).into_iter().map(|k| candidates[k] as u32).collect()
}

/// `<E, B_k>` of each stored number, for the error `E` whose spectrum is `at(a * in + b)`.
fn gather<T: Scalar>(
    transform: FourierTransform,
    shape: (usize, usize),
    indices: &[u32],
    at: impl Fn(usize) -> Complex<T>,
) -> Vec<T> {
    let indices = indices.iter().map(|&index| index as usize);
    match transform {
        FourierTransform::Dct => indices.map(|index| at(index).re).collect(),
        FourierTransform::Dft => indices
            .flat_map(|index| {
                let z = at(index);
                if mirror(index, shape) == index { [z.re, T::zero()] } else { [z.re + z.re, z.im + z.im] }
            })
            .collect(),
    }
}

/// The orthonormal transforms of the rows of `x`, coefficients x batch.
fn coefficients<T: Scalar>(transform: FourierTransform, x: &ArrayRef2<T>) -> Array2<Complex<T>> {
    let len = x.ncols();
    let mut all = Array2::zeros((len, x.nrows()));
    match transform {
        FourierTransform::Dft => {
            let scale = T::narrow((len as f64).powf(-0.5));
            for (bins, mut to) in spectra(&RealFft::new(len), x).outer_iter().zip(all.columns_mut()) {
                for (k, to) in to.iter_mut().enumerate() {
                    *to = if 2 * k <= len { bins[k] * scale } else { bins[len - k].conj() * scale };
                }
            }
        }
        FourierTransform::Dct => {
            let plan = Cosine::new(len);
            let mut out = vec![T::zero(); len];
            let mut scratch = vec![Complex::default(); plan.scratch_len()];
            for (row, to) in x.outer_iter().zip(all.columns_mut()) {
                plan.forward(&row.to_vec(), &mut out, &mut scratch);
                to.into_iter().zip(&out).for_each(|(to, from)| *to = Complex::from(*from));
            }
        }
    }
    all
}

impl Family for Fourier {
    const NAME: &'static str = "fourier";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[
        ("coefficients", "kept coefficients; a mirrored pair of Fourier coefficients counts as one"),
        ("transform", "`dft` (default) or `dct`"),
    ];
    type Spec = FourierSpec;

    fn spec((m, n): (usize, usize), request: &Request) -> Result<FourierSpec> {
        let transform = match request.get::<String>("transform")?.as_deref() {
            None | Some("dft") => FourierTransform::Dft,
            Some("dct") => FourierTransform::Dct,
            Some(other) => return Err(Error::parameter("transform", other, "dft or dct")),
        };
        let coefficients =
            request.choose(Self::NAME, (m, n), "coefficients", 1..=transform.most((m, n)).max(1), |k| {
                request.size().factor(1, transform.numbers(), k).indices(k)
            })?;
        Ok(FourierSpec { coefficients, transform })
    }

    fn fit(
        w: &Array2<f64>,
        spec: &FourierSpec,
        objective: &Objective<'_>,
        run: &Run<'_>,
    ) -> Result<Fit<Self>> {
        let (shape, transform, count) = (w.dim(), spec.transform, spec.coefficients);
        let most = transform.most(shape);
        if count == 0 || count > most {
            return Err(Error::parameter("coefficients", count, format!("1 to {most}")));
        }
        if u32::try_from(w.len()).is_err() {
            return Err(Error::shape(
                "weight (at most 2^32 entries)",
                &[shape.0, (u32::MAX as usize / shape.0).max(1)],
                w.shape(),
            ));
        }
        let z = analyse(transform, w);
        let power = z.mapv(|z| z.norm_sqr());
        let plain = support(transform, &power, count);
        let values_at = |indices: &[u32]| -> Vec<f64> {
            let at = |index: &u32| z[[*index as usize / shape.1, *index as usize % shape.1]];
            match transform {
                FourierTransform::Dct => indices.iter().map(|index| at(index).re).collect(),
                FourierTransform::Dft => {
                    indices.iter().flat_map(|index| [at(index).re, at(index).im]).collect()
                }
            }
        };
        let member = |storage: Storage, indices: &[u32], values: &[f64]| {
            Self::member(shape, transform, storage, indices, values)
        };
        let Some(c) = objective.second_moment() else {
            return Ok(Fit::optimal(member(run.storage(), &plain, &values_at(&plain))));
        };
        // The power of the inputs at each frequency: the diagonal of the transformed second moment.
        let spectrum = analyse(transform, c);
        let inputs: Vec<f64> = (0..shape.1)
            .map(|b| match transform {
                FourierTransform::Dft => spectrum[[b, (shape.1 - b) % shape.1]].re.max(0.0),
                FourierTransform::Dct => spectrum[[b, b]].re.max(0.0),
            })
            .collect();
        let seen = Array2::from_shape_fn(shape, |(a, b)| power[[a, b]] * inputs[b]);
        let weighted = Weighted::new(w, c, run);
        let mean = weighted.mean_power();
        let mut best: Option<(f64, Fit<Self>)> = None;
        for indices in [plain, support(transform, &seen, count)] {
            let solution = weighted.solve(
                values_at(&indices),
                Some(run.max_iterations(STEPS)),
                |values| Dense::new(&synthesise(shape, transform, &indices, values)),
                |e| {
                    let z = analyse(transform, &e.t());
                    gather(transform, shape, &indices, |index| z[[index / shape.1, index % shape.1]])
                },
                |r| r.iter().map(|r| r / mean).collect(),
            )?;
            if best.as_ref().is_none_or(|(energy, _)| solution.energy < *energy) {
                let matrix = member(run.storage(), &indices, &solution.theta);
                best = Some((solution.energy, Fit::local(matrix, solution.history)));
            }
        }
        best.map(|(_, fit)| fit).ok_or(Error::NoConvergence("the choice of coefficients"))
    }

    fn random((m, n): (usize, usize), spec: &FourierSpec, storage: Storage, seed: u64) -> Result<Self> {
        let most = spec.transform.most((m, n));
        if spec.coefficients == 0 || spec.coefficients > most || u32::try_from(m * n).is_err() {
            return Err(Error::parameter("coefficients", spec.coefficients, format!("1 to {most}")));
        }
        let mut gaussian = Gaussian::new(seed);
        let score = Array2::from_shape_simple_fn((m, n), || gaussian.rng().next_u32() as f64);
        let indices = support(spec.transform, &score, spec.coefficients);
        let scale = (m as f64 / (spec.coefficients * spec.transform.numbers()) as f64).sqrt();
        let numbers = indices.len() * spec.transform.numbers();
        let values: Vec<f64> = (0..numbers).map(|_| scale * gaussian.sample()).collect();
        let mut matrix = Self::member((m, n), spec.transform, storage, &indices, &values);
        if spec.transform == FourierTransform::Dft {
            // Coefficients that are their own mirror image are real.
            let own = |k: usize| mirror(indices[k] as usize, (m, n)) == indices[k] as usize;
            let values: Vec<f64> =
                (0..numbers).map(|i| if i % 2 == 1 && own(i / 2) { 0.0 } else { values[i] }).collect();
            matrix = Self::member((m, n), spec.transform, storage, &indices, &values);
        }
        Ok(matrix)
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let Config { transform } = parts.config()?;
        let values = parts.take_factor("values")?;
        let (m, n) = parts.shape();
        // A handful of coefficients may ask for transforms of any length: bound them.
        let all = m.checked_mul(n).filter(|all| u32::try_from(*all).is_ok() && m.max(n) <= MAX_LEN);
        let Some(all) = all else {
            return Err(parts.error(format!("shape {m} x {n}: at most {MAX_LEN} features and 2^32 entries")));
        };
        let indices = parts.take_indices("indices", all)?;
        if values.shape() != (1, transform.numbers(), indices.len()) {
            return Err(parts.error(format!("{} indices for values of {:?}", indices.len(), values.shape())));
        }
        if !indices.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(parts.error("the indices are not ascending"));
        }
        let redundant = |index: &u32| *index as usize > mirror(*index as usize, (m, n));
        if transform == FourierTransform::Dft && indices.iter().any(redundant) {
            return Err(parts.error("both coefficients of a mirrored pair, or the larger one"));
        }
        Ok(Self {
            shape: (m, n),
            transform,
            values,
            indices,
            cache: SpectrumCache::default(),
            expanded: Expanded::default(),
        })
    }
}

/// Steps of conjugate gradients at most, where the caller did not say.
const STEPS: usize = 60;

/// Longest transform that a file may ask for.
const MAX_LEN: usize = 1 << 24;
