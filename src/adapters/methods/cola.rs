use super::{expect, stacked_lora};
use crate::adam::Adam;
use crate::adapters::{Additive, check_base};
use crate::error::{Error, Result};
use crate::linalg::{Threads, check_finite, matmul, matmul_nt, matmul_tn, qr, svd};
use crate::matrix::StructuredMatrix;
use crate::projection::ratio;
use crate::random::Gaussian;
use crate::storage::{Factor, Storage};
use crate::structures::Dense;
use ndarray::{Array2, ArrayRef2, concatenate};

/// A chain of LoRA: low-rank steps `s B_k A_k` that follow each other, each trained from zero on the weight that those before it left. As many
/// ranks as all stages have, with the optimiser's memory of one.
///
/// Source: W. Xia, C. Qin, E. Hazan, "Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning", 2024.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::methods::Cola;
/// use structmat::ndarray::array;
/// let mut chain = Cola::new((1, 2), 1.0)?;
/// chain.push(array![[2.0]], array![[1.0, 0.0]])?;
/// chain.push(array![[1.0]], array![[0.0, 5.0]])?;
/// assert_eq!(chain.adapter()?.matrix().to_dense_f64(), array![[2.0, 5.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Cola {
    shape: (usize, usize),
    scale: f64,
    stages: Vec<(Array2<f64>, Array2<f64>)>,
}

/// Settings of [`Cola::train`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColaSettings {
    /// Stages.
    pub stages: usize,
    /// Rank of each.
    pub rank: usize,
    /// Steps of each.
    pub steps: usize,
    /// Adam's rate at the first step of a stage; it falls to zero in a line.
    pub rate: f64,
    /// The factor `s` of all stages.
    pub scale: f64,
    /// Of the right factors at their start.
    pub seed: u64,
}

/// What [`Cola::merge_stages`] made.
#[derive(Debug, Clone)]
pub struct ColaMerged {
    /// The weight after all stages, rounded after each.
    pub weight: Dense,
    /// How far it is from the weight that is rounded once, relative to the whole change: near 1 where steps are lost in the storage.
    pub drift: f64,
}

impl Cola {
    /// Of `out x in` weights, without a stage yet.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a scale that is not finite.
    pub fn new(shape: (usize, usize), scale: f64) -> Result<Self> {
        match scale.is_finite() {
            true => Ok(Self { shape, scale, stages: Vec::new() }),
            false => Err(Error::parameter("scale", scale, "a finite number")),
        }
    }

    /// Adds a stage, from `b` (`out x rank`) and `a` (`rank x in`).
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit, [`Error::Parameter`] for rank 0.
    pub fn push(&mut self, b: Array2<f64>, a: Array2<f64>) -> Result<()> {
        if a.nrows() == 0 {
            return Err(Error::parameter("rank", 0, "at least 1"));
        }
        expect("LoRA factor A", &a, (a.nrows(), self.shape.1))?;
        expect("LoRA factor B", &b, (self.shape.0, a.nrows()))?;
        self.stages.push((b, a));
        Ok(())
    }

    /// The factors `(B, A)` of all stages.
    pub fn stages(&self) -> &[(Array2<f64>, Array2<f64>)] {
        &self.stages
    }

    /// All stages as one LoRA of all ranks, for a base that stays untouched.
    ///
    /// # Errors
    /// [`Error::Parameter`] where there is no stage.
    pub fn adapter(&self) -> Result<Additive> {
        let parts: Vec<(&ArrayRef2<f64>, f64, &ArrayRef2<f64>)> =
            self.stages.iter().map(|(b, a)| (&**b, self.scale, &**a)).collect();
        stacked_lora(&parts)
    }

    /// Adds stage after stage to `base`, rounding to `storage` after each, as training in that storage does. The drift says what the rounding of
    /// all but the last merge did; in double precision it is that of sums.
    ///
    /// # Errors
    /// [`Error::Shape`] for a base of another shape, those of [`Dense::from_factor`].
    pub fn merge_stages(&self, base: &dyn StructuredMatrix, storage: Storage) -> Result<ColaMerged> {
        check_base(base, self.shape)?;
        let rounded = |w: &Array2<f64>| Dense::from_factor(Factor::from_matrix(storage, w));
        let before = base.to_dense_f64();
        let mut weight = rounded(&before)?;
        let mut exact = before.clone();
        for (b, a) in &self.stages {
            let step = matmul(b, a, Threads::ONE) * self.scale;
            weight = rounded(&(weight.to_dense_f64() + &step))?;
            exact += &step;
        }
        let norm = |a: Array2<f64>| a.iter().map(|v| v * v).sum::<f64>().sqrt();
        let once = rounded(&exact)?.to_dense_f64();
        let drift = ratio(norm(weight.to_dense_f64() - once), norm(exact - before));
        Ok(ColaMerged { weight, drift })
    }

    /// `B` and `A` of the LoRA of rank `rank` (with a scale of 1) nearest to the whole chain, by QR of the factors and the decomposition of a
    /// small core: no dense change is made. Fewer directions where the chain has no more.
    ///
    /// # Errors
    /// [`Error::Parameter`] for rank 0 or no stage, [`Error::NonFinite`] for NaN or infinities.
    pub fn recompress(&self, rank: usize) -> Result<(Array2<f64>, Array2<f64>)> {
        if rank == 0 || self.stages.is_empty() {
            let received = format!("{rank} of {} stages", self.stages.len());
            return Err(Error::parameter("rank", received, "at least 1 of at least one stage"));
        }
        let join = |axis: usize, parts: Vec<ndarray::ArrayView2<'_, f64>>| {
            let joined = concatenate(ndarray::Axis(axis), &parts);
            joined.map_err(|e| Error::parameter("stages", self.stages.len(), e.to_string()))
        };
        let b = join(1, self.stages.iter().map(|(b, _)| b.view()).collect())?;
        let a = join(0, self.stages.iter().map(|(_, a)| a.view()).collect())?;
        check_finite("LoRA factor B", &b)?;
        check_finite("LoRA factor A", &a)?;
        let (left, right) = (qr(&b), qr(&a.t()));
        let core = matmul_nt(&left.r, &right.r, Threads::ONE) * self.scale;
        let (u, vt) = svd(&core, Threads::ONE)?.split_sqrt(rank);
        Ok((matmul(&left.q, &u, Threads::ONE), matmul_nt(&vt, &right.q, Threads::ONE)))
    }

    /// Trains a chain on a weight `w` (`out x in`) by Adam, from `gradient`, the gradient of a loss at a weight. Every stage starts at `B = 0`
    /// and a random `A`, with a fresh optimiser and rate.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rank that is not 1 to the smaller side, a rate that is not positive or a scale that is not finite, [`Error::Shape`] for gradients of another
    /// shape, [`Error::NonFinite`] for gradients with NaN or infinities, and those of `gradient`.
    ///
    /// ```
    /// use structmat::adapters::methods::{Cola, ColaSettings};
    /// use structmat::ndarray::{Array2, array};
    /// let target = array![[3.0, 0.0], [0.0, 1.0]];
    /// let settings = ColaSettings { stages: 2, rank: 1, steps: 300, rate: 0.05, scale: 1.0, seed: 1 };
    /// let chain = Cola::train(&Array2::zeros((2, 2)), &settings, |w| Ok(w - &target))?;
    /// assert!((chain.adapter()?.matrix().to_dense_f64() - &target).iter().all(|e| e.abs() < 1e-2));
    /// # Ok::<(), structmat::Error>(())
    /// ```
    pub fn train(
        w: &ArrayRef2<f64>,
        settings: &ColaSettings,
        mut gradient: impl FnMut(&Array2<f64>) -> Result<Array2<f64>>,
    ) -> Result<Self> {
        let &ColaSettings { stages, rank, steps, rate, scale, seed } = settings;
        let (m, n) = w.dim();
        if rank == 0 || rank > m.min(n) {
            return Err(Error::parameter("rank", rank, format!("1 to {}", m.min(n))));
        }
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(Error::parameter("rate", rate, "a positive number"));
        }
        let mut chain = Self::new((m, n), scale)?;
        let (mut gaussian, mut weight) = (Gaussian::new(seed), w.to_owned());
        for _ in 0..stages {
            // The variance of Kaiming's uniform numbers.
            let mut a = gaussian.matrix(rank, n, (3.0 * n.max(1) as f64).powf(-0.5));
            let mut b = Array2::<f64>::zeros((m, rank));
            let (mut of_a, mut of_b) =
                (Adam::new(a.len(), rate, (0.9, 0.999)), Adam::new(b.len(), rate, (0.9, 0.999)));
            for step in 0..steps {
                let g = gradient(&(&weight + &(matmul(&b, &a, Threads::ONE) * scale)))?;
                expect("gradient of a weight", &g, (m, n))?;
                check_finite("gradient of a weight", &g)?;
                let da = matmul_tn(&b, &g, Threads::ONE) * scale;
                let db = matmul_nt(&g, &a, Threads::ONE) * scale;
                let part = 1.0 - step as f64 / steps as f64;
                for (adam, numbers, gradient) in [(&mut of_a, &mut a, &da), (&mut of_b, &mut b, &db)] {
                    adam.step_array(numbers, gradient, part);
                }
            }
            weight += &(matmul(&b, &a, Threads::ONE) * scale);
            chain.push(b, a)?;
        }
        Ok(chain)
    }
}
