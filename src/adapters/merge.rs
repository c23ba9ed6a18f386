use super::{Boxed, Edit, check_base};
use crate::error::{Error, Result};
use crate::matrix::{Apply, StructuredMatrix};
use crate::projection::ratio;
use crate::storage::{Factor, Storage};
use crate::structures::Dense;
use ndarray::{Array1, Array2, ArrayRef2, Axis};

/// Relative residual at which an unmerged weight counts as found.
const SOLVED: f64 = 1e-14;
/// Relative residual above which the factors of an edit count as singular.
const SINGULAR: f64 = 1e-9;
/// The square of the condition number from which on they do: unmerging would magnify rounding errors of single precision to errors of 1.
const CONDITION: f64 = 1e12;
/// Steps of conjugate gradients; scalings that differ by a factor of 100 need about half of them.
const STEPS: usize = 1000;

/// A merged weight, and what rounding did to it.
#[derive(Debug, Clone)]
pub struct Merged {
    /// `W'`, rounded once to the storage asked for.
    pub weight: Dense,
    /// How far it is from the exact one.
    pub report: MergeReport,
}

/// What merging into a coarse storage lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MergeReport {
    /// `‖W'_stored - W'‖_F`, with `W'` in double precision.
    pub rounding: f64,
    /// `‖W' - W‖_F`.
    pub delta: f64,
    /// [`rounding`](Self::rounding) relative to [`delta`](Self::delta): near 1 where the change vanishes in the storage.
    pub relative: f64,
    /// The share of entries that should change and do not.
    pub vanished: f64,
    /// The share of entries that [`Edit::unmerge`] does not restore bit for bit.
    pub not_restored: f64,
    /// `‖W_unmerged - W‖_F / ‖W‖_F`; not a number where unmerging is not possible.
    pub restore_error: f64,
}

impl Edit {
    /// Merges: `W'` in double precision, rounded once to `storage`, with a report of the rounding.
    ///
    /// The report includes the way back, which takes another merge's time; [`merged`](Self::merged) is without.
    ///
    /// # Errors
    /// [`Error::Shape`] for a base of another shape.
    pub fn merge(&self, base: &dyn StructuredMatrix, storage: Storage) -> Result<Merged> {
        let (w, exact) = (base.to_dense_f64(), self.merged(base)?);
        let weight = Dense::from_factor(Factor::from_matrix(storage, &exact))?;
        let stored = weight.to_dense_f64();
        let (rounding, delta) = (distance(&stored, &exact), distance(&exact, &w));
        let round = |a: &Array2<f64>| Factor::from_matrix(storage, a).matrix(0);
        let plain = round(&w);
        let (mut changing, mut vanished) = (0usize, 0usize);
        for ((exact, stored), (w, plain)) in exact.iter().zip(&stored).zip(w.iter().zip(&plain)) {
            changing += usize::from(exact != w);
            vanished += usize::from(exact != w && stored == plain);
        }
        let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
        let (not_restored, restore_error) = match self.unmerge(&stored) {
            Ok(back) => {
                let back = round(&back);
                let differ = back.iter().zip(&w).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                let norm = w.iter().map(|v| v * v).sum::<f64>().sqrt();
                (share(differ, w.len()), ratio(distance(&back, &w), norm))
            }
            Err(_) => (1.0, f64::NAN),
        };
        let relative = ratio(rounding, delta);
        let vanished = share(vanished, changing);
        let report = MergeReport { rounding, delta, relative, vanished, not_restored, restore_error };
        Ok(Merged { weight, report })
    }

    /// The base back from a merged weight: `W = L⁻¹ (W' - D) R⁻¹`, by conjugate gradients on products with `L` and `R`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a weight of another shape, [`Error::Unsupported`] when `L` or `R` is singular: the base is lost.
    pub fn unmerge(&self, merged: &ArrayRef2<f64>) -> Result<Array2<f64>> {
        let (m, n) = self.shape();
        if merged.dim() != (m, n) {
            return Err(Error::shape("merged weight", &[m, n], merged.shape()));
        }
        let mut w = match self.additive() {
            Some(delta) => &merged.view() - &delta.to_dense_f64(),
            None => merged.to_owned(),
        };
        if let Some(left) = self.left() {
            w = solve(left, &w)?;
        }
        if let Some(right) = self.right() {
            w = solve(&crate::compose::Transposed::new(right.clone_box()), &w.t())?.reversed_axes();
        }
        Ok(w)
    }

    /// This edit and then `next`, an edit of what this one makes: $L_2 (L_1 W R_1 + D_1) R_2 + D_2$ as one edit.
    ///
    /// # Errors
    /// [`Error::Shape`] when they edit weights of different shapes.
    pub fn then(&self, next: &Edit) -> Result<Edit> {
        let (m, n) = self.shape();
        if next.shape() != (m, n) {
            return Err(Error::shape("next edit", &[m, n], &[next.shape().0, next.shape().1]));
        }
        let product = |factors: [Option<&dyn StructuredMatrix>; 3]| -> Result<Option<Boxed>> {
            let mut factors: Vec<Boxed> = factors.into_iter().flatten().map(|f| f.clone_box()).collect();
            Ok(match factors.len() {
                0 | 1 => factors.pop(),
                _ => Some(Box::new(crate::compose::Product::new(factors)?)),
            })
        };
        let moved = match self.additive() {
            Some(delta) => product([next.left(), Some(delta), next.right()])?,
            None => None,
        };
        let mut terms: Vec<Boxed> =
            moved.into_iter().chain(next.additive().map(|delta| delta.clone_box())).collect();
        let delta = match terms.len() {
            0 | 1 => terms.pop(),
            _ => Some(Box::new(crate::compose::Sum::new(terms)?) as Boxed),
        };
        let (first, second) = (self.bias(), next.bias());
        let map = product([second.map.as_deref(), first.map.as_deref(), None])?;
        let bias = super::BiasEdit { map, add: second.apply(first.add.as_deref())? };
        let mut edit = Edit::of((m, n)).with_bias(bias)?;
        if let Some(left) = product([next.left(), self.left(), None])? {
            edit = edit.with_left(left)?;
        }
        if let Some(right) = product([self.right(), next.right(), None])? {
            edit = edit.with_right(right)?;
        }
        match delta {
            Some(delta) => edit.with_delta(delta),
            None => Ok(edit),
        }
    }

    /// What this edit makes of `base`, as one structured matrix that owns a copy of it: the base of the next edit.
    ///
    /// # Errors
    /// [`Error::Shape`] for a base of another shape.
    pub fn compose(&self, base: &dyn StructuredMatrix) -> Result<Boxed> {
        check_base(base, self.shape())?;
        let factors = [self.left(), Some(base), self.right()].into_iter().flatten();
        let product = crate::compose::Product::new(factors.map(|factor| factor.clone_box()).collect())?;
        Ok(match self.additive() {
            Some(delta) => Box::new(crate::compose::Sum::new(vec![Box::new(product), delta.clone_box()])?),
            None => Box::new(product),
        })
    }
}

fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// `A⁻¹ B` by conjugate gradients on the normal equations, for a square `A` that is far from singular.
fn solve(a: &dyn StructuredMatrix, b: &ArrayRef2<f64>) -> Result<Array2<f64>> {
    if let Some(diagonal) = diagonal(a) {
        let (least, most) = diagonal
            .iter()
            .fold((f64::INFINITY, 0.0f64), |(least, most), d| (least.min(d.abs()), most.max(d.abs())));
        if most * most > CONDITION * least * least || !most.is_finite() {
            return Err(singular());
        }
        return Ok(&b.view() / &diagonal.insert_axis(Axis(1)));
    }
    // Rows of batches are the columns of B.
    let b = b.t().as_standard_layout().to_owned();
    let square = |a: &Array2<f64>| a.iter().map(|v| v * v).sum::<f64>();
    let mut x = a.matmul_transpose(&b)?;
    let mut residual = &b - &a.matmul(&x)?;
    let mut gradient = a.matmul_transpose(&residual)?;
    let (mut step, goal) = (gradient.clone(), square(&b));
    let mut energy = square(&gradient);
    let mut best = square(&residual);
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for _ in 0..STEPS {
        if best <= SOLVED * SOLVED * goal || energy == 0.0 || !energy.is_finite() {
            break;
        }
        let moved = a.matmul(&step)?;
        let length = energy / square(&moved);
        let stretch = square(&moved) / square(&step);
        (least, most) = (least.min(stretch), most.max(stretch));
        if !length.is_finite() {
            break;
        }
        x.scaled_add(length, &step);
        residual.scaled_add(-length, &moved);
        best = square(&residual);
        gradient = a.matmul_transpose(&residual)?;
        let next = square(&gradient);
        step = &gradient + &(step * (next / energy));
        energy = next;
    }
    // The recurrence drifts: what counts is the residual itself.
    let residual = square(&(&b - &a.matmul(&x)?));
    if !residual.is_finite() || residual > SINGULAR * SINGULAR * goal || most > CONDITION * least {
        return Err(singular());
    }
    Ok(x.reversed_axes())
}

fn singular() -> Error {
    Error::Unsupported {
        structure: "edit".to_owned(),
        what: "a factor is singular, or nearly so: the base cannot be restored".to_owned(),
    }
}

/// The diagonal of a scaled identity (or of the transpose of one).
fn diagonal(a: &dyn StructuredMatrix) -> Option<Array1<f64>> {
    let parts = a.parts();
    let inner = if parts.structure() == "transposed" { parts.children().first()? } else { &parts };
    let plain = inner.structure() == "scaled" && inner.children().first()?.structure() == "identity";
    let mut factors = inner.factors();
    match (plain.then(|| factors.next()).flatten(), factors.next()) {
        (Some((_, factor)), None) => Some(factor.matrix(0).row(0).to_owned()),
        _ => None,
    }
}
