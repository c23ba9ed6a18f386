use super::{core, expect};
use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::linalg::{Threads, check_finite, eigh, matmul, matmul_nt, matmul_tn};
use crate::projection::{Options, Run, Stop, descend, ratio};
use ndarray::{Array2, s};

/// Sweeps of alternation at most, where the caller did not say.
const SWEEPS: usize = 50;

/// LoTR: changes of a whole stack of layers as a Tucker-2 tensor, $D_l = U\, G_l V^T$ with one left and one right factor for all layers and a small
/// core per layer.
///
/// Cost per layer: that of LoRA, `rank (out + in)`. The adapter of a layer multiplies core and left factor out.
///
/// Source: D. Bershatsky et al., "LoTR: Low Tensor Rank Weight Adaptation", 2024; L. De Lathauwer et al., "On the best rank-1 and
/// rank-(R1, R2, ..., RN) approximation of higher-order tensors", 2000 (alternation).
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::methods::TuckerStack;
/// use structmat::ndarray::array;
/// let changes = [array![[1.0, 2.0], [2.0, 4.0]], array![[3.0, 6.0], [6.0, 12.0]]];
/// let (stack, errors) = TuckerStack::project(&changes, 1, &Options::default())?;
/// assert!(errors[errors.len() - 1] < 1e-12);
/// assert_eq!(stack.n_params(), 2 + 2 + 2);
/// let second = stack.adapter(1)?.matrix().to_dense_f64();
/// assert!((second - &changes[1]).iter().all(|e| e.abs() < 1e-5));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TuckerStack {
    left: Array2<f64>,
    right: Array2<f64>,
    cores: Vec<Array2<f64>>,
}

impl TuckerStack {
    /// From `left` (`out x rank`), `right` (`in x rank`) and one core (`rank x rank`) per layer.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit, [`Error::Parameter`] for rank 0.
    pub fn new(left: Array2<f64>, right: Array2<f64>, cores: Vec<Array2<f64>>) -> Result<Self> {
        if left.ncols() == 0 || right.ncols() == 0 {
            return Err(Error::parameter("rank", 0, "at least 1"));
        }
        for g in &cores {
            expect("core of a layer", g, (left.ncols(), right.ncols()))?;
        }
        Ok(Self { left, right, cores })
    }

    /// The stack of rank `rank` near to wanted changes of all layers (`out x in` each): truncated higher-order decomposition, within a factor
    /// $\sqrt 2$ of the best, then alternation, which never raises the error. Returns with it the relative error at first and after each sweep.
    ///
    /// The decompositions are of Gram matrices, `out²` and `in²` numbers, not of all changes side by side.
    ///
    /// # Errors
    /// [`Error::Parameter`] for no layer or a rank of 0 or beyond the smaller side, [`Error::Shape`] for changes of different shapes,
    /// [`Error::NonFinite`], [`Error::Cancelled`].
    pub fn project(changes: &[Array2<f64>], rank: usize, options: &Options<'_>) -> Result<(Self, Vec<f64>)> {
        let Some(first) = changes.first() else {
            return Err(Error::parameter("layers", "none", "at least one"));
        };
        let most = first.nrows().min(first.ncols());
        if rank == 0 || rank > most {
            return Err(Error::parameter("rank", rank, format!("1 to {most}")));
        }
        for change in changes {
            expect("change of a layer", change, first.dim())?;
            check_finite("change of a layer", change)?;
        }
        let run = Run::new(options);
        let one = run.threads();
        let leading = |gram: Array2<f64>| -> Result<Array2<f64>> {
            Ok(eigh(&gram, one)?.vectors.slice(s![.., ..rank]).to_owned())
        };
        let total = |grams: &mut dyn Iterator<Item = Array2<f64>>, size: usize| {
            grams.fold(Array2::zeros((size, size)), |sum: Array2<f64>, gram| sum + gram)
        };
        let (m, n) = first.dim();
        let left = leading(total(&mut changes.iter().map(|d| matmul_nt(d, d, one)), m))?;
        let right = leading(total(&mut changes.iter().map(|d| matmul_tn(d, d, one)), n))?;
        let fitted = |left: Array2<f64>, right: Array2<f64>| {
            let core = |d: &Array2<f64>| matmul(&matmul_tn(&left, d, one), &right, one);
            Self { cores: changes.iter().map(core).collect(), left, right }
        };
        let energy = |stack: &Self| -> f64 {
            let missed = changes.iter().enumerate().map(|(l, d)| d - &stack.change(l));
            missed.map(|e| e.iter().map(|v| v * v).sum::<f64>()).sum()
        };
        let start = fitted(left, right);
        let scale: f64 = changes.iter().flatten().map(|v| v * v).sum();
        let at_first = energy(&start);
        let stop = Stop { sweeps: SWEEPS, tolerance: 1e-6 };
        let found = descend(&run, stop, scale, start, at_first, |stack, _, _| {
            let seen = |d: &Array2<f64>| matmul(d, &stack.right, one);
            let left = leading(total(&mut changes.iter().map(seen).map(|dv| matmul_nt(&dv, &dv, one)), m))?;
            let seen = |d: &Array2<f64>| matmul_tn(&left, d, one);
            let right = leading(total(&mut changes.iter().map(seen).map(|ud| matmul_tn(&ud, &ud, one)), n))?;
            *stack = fitted(left, right);
            Ok(energy(stack))
        })?;
        let mut errors = vec![ratio(at_first.sqrt(), scale.sqrt())];
        errors.extend(found.history);
        Ok((found.state, errors))
    }

    /// `U G_l Vᵀ`.
    fn change(&self, layer: usize) -> Array2<f64> {
        matmul_nt(&matmul(&self.left, &self.cores[layer], Threads::ONE), &self.right, Threads::ONE)
    }

    /// The adapter of a layer; only its core counts as trained there.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a layer that is not there.
    pub fn adapter(&self, layer: usize) -> Result<Additive> {
        match self.cores.get(layer) {
            Some(g) => core(&self.left, g, &self.right.t(), 1.0),
            None => Err(Error::parameter("layer", layer, format!("less than {}", self.cores.len()))),
        }
    }

    /// The left factor, the right factor, and the cores.
    pub fn factors(&self) -> (&Array2<f64>, &Array2<f64>, &[Array2<f64>]) {
        (&self.left, &self.right, &self.cores)
    }

    /// Trained numbers of all layers, shared ones counted once.
    pub fn n_params(&self) -> usize {
        self.left.len() + self.right.len() + self.cores.iter().map(Array2::len).sum::<usize>()
    }
}
