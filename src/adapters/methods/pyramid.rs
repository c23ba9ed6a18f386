use super::{expect, stacked_lora};
use crate::adapters::Additive;
use crate::error::{Error, Result};
use crate::linalg::{Threads, check_finite, svd};
use crate::projection::ratio;
use ndarray::{Array2, ArrayRef2};

/// MSPLoRA: LoRA shared at several scales of a stack of layers: $D_l = \sum_t \frac{\alpha}{r_t} B_t A_t$ with the factors of the group that layer
/// `l` belongs to at level `t`. Groups are equal runs of layers: one for all, one per third, one per layer in the published form.
///
/// A layer's levels are one LoRA of all ranks when it is multiplied, of the same cost; shared factors are stored and counted once.
///
/// Source: J. Zhao et al., "MSPLoRA: A Multi-Scale Pyramid Low-Rank Adaptation for Efficient Model Fine-Tuning", 2025. In the published code shared
/// factors act in the layers alone that own them; here, as the paper has it, in all layers of their group.
///
/// ```
/// use structmat::adapters::methods::Pyramid;
/// use structmat::ndarray::array;
/// let one = |v: f64| (array![[v]], array![[1.0]]);
/// let pyramid = Pyramid::new(2, 1.0, vec![vec![one(1.0)], vec![one(10.0), one(20.0)]])?;
/// assert_eq!(pyramid.adapter(1)?.matrix().to_dense_f64(), array![[21.0]]);
/// assert_eq!(pyramid.n_params(), 6);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Pyramid {
    layers: usize,
    alpha: f64,
    levels: Vec<Vec<(Array2<f64>, Array2<f64>)>>,
}

impl Pyramid {
    /// Of `layers` layers, from the factors `(B, A)` of the groups of each level.
    ///
    /// # Errors
    /// [`Error::Parameter`] for no level, a level with no group or more groups than layers, a rank of 0, or an `alpha` that is not finite,
    /// [`Error::Shape`] when factors do not fit.
    pub fn new(layers: usize, alpha: f64, levels: Vec<Vec<(Array2<f64>, Array2<f64>)>>) -> Result<Self> {
        let Some((b, a)) = levels.first().and_then(|level| level.first()) else {
            return Err(Error::parameter("levels", "none", "at least one, of one group"));
        };
        if !alpha.is_finite() {
            return Err(Error::parameter("alpha", alpha, "a finite number"));
        }
        let (m, n) = (b.nrows(), a.ncols());
        for level in &levels {
            if level.is_empty() || level.len() > layers {
                return Err(Error::parameter("groups of a level", level.len(), format!("1 to {layers}")));
            }
            for (b, a) in level {
                if a.nrows() == 0 {
                    return Err(Error::parameter("rank", 0, "at least 1"));
                }
                expect("LoRA factor A", a, (a.nrows(), n))?;
                expect("LoRA factor B", b, (m, a.nrows()))?;
            }
        }
        Ok(Self { layers, alpha, levels })
    }

    /// The groups and ranks of the published form, for [`project`](Self::project): all layers at `rank`, thirds at half of it, each layer at a
    /// quarter.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rank that is not a multiple of 4, or less than 3 layers.
    pub fn published(layers: usize, rank: usize) -> Result<[(usize, usize); 3]> {
        if rank == 0 || !rank.is_multiple_of(4) {
            return Err(Error::parameter("rank", rank, "a multiple of 4"));
        }
        if layers < 3 {
            return Err(Error::parameter("layers", layers, "at least 3"));
        }
        Ok([(1, rank), (3, rank / 2), (layers, rank / 4)])
    }

    /// For wanted changes of all layers (`out x in` each), levels of `(groups, rank)` from the coarsest on: every group takes the best
    /// approximation of the mean of what its layers still miss, which is optimal for its level. Returns with it the relative error after each
    /// level, which never rises.
    ///
    /// One decomposition per group.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), [`Error::Shape`] for changes of different shapes, [`Error::NonFinite`], [`Error::Parameter`] for an `alpha`
    /// that is not positive or a rank beyond the smaller side.
    pub fn project(
        changes: &[Array2<f64>],
        levels: &[(usize, usize)],
        alpha: f64,
    ) -> Result<(Self, Vec<f64>)> {
        let Some(first) = changes.first() else {
            return Err(Error::parameter("layers", "none", "at least one"));
        };
        if !(alpha > 0.0 && alpha.is_finite()) {
            return Err(Error::parameter("alpha", alpha, "a positive number"));
        }
        let (layers, most) = (changes.len(), first.nrows().min(first.ncols()));
        for change in changes {
            expect("change of a layer", change, first.dim())?;
            check_finite("change of a layer", change)?;
        }
        let norm = |all: &[Array2<f64>]| all.iter().flatten().map(|v| v * v).sum::<f64>().sqrt();
        let (mut rest, whole) = (changes.to_vec(), norm(changes));
        let (mut found, mut errors) = (Vec::with_capacity(levels.len()), Vec::with_capacity(levels.len()));
        for &(groups, rank) in levels {
            if groups == 0 || groups > layers {
                return Err(Error::parameter("groups of a level", groups, format!("1 to {layers}")));
            }
            if rank == 0 || rank > most {
                return Err(Error::parameter("rank", rank, format!("1 to {most}")));
            }
            let scale = alpha / rank as f64;
            let mut level = Vec::with_capacity(groups);
            for group in 0..groups {
                let members: Vec<usize> = (0..layers).filter(|l| groups * l / layers == group).collect();
                let mut mean = Array2::zeros(first.dim());
                members.iter().for_each(|&l| mean += &rest[l]);
                mean /= members.len().max(1) as f64;
                let (b, a) = svd(&mean, Threads::ONE)?.split_sqrt(rank);
                let product = b.dot(&a);
                members.iter().for_each(|&l| rest[l] -= &product);
                level.push((b / scale.sqrt(), a / scale.sqrt()));
            }
            found.push(level);
            errors.push(ratio(norm(&rest), whole));
        }
        Ok((Self::new(layers, alpha, found)?, errors))
    }

    /// The adapter of a layer: all of its levels as one LoRA.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a layer that is not there.
    pub fn adapter(&self, layer: usize) -> Result<Additive> {
        if layer >= self.layers {
            return Err(Error::parameter("layer", layer, format!("less than {}", self.layers)));
        }
        let parts: Vec<(&ArrayRef2<f64>, f64, &ArrayRef2<f64>)> = self
            .levels
            .iter()
            .map(|level| {
                let (b, a) = &level[(level.len() as u128 * layer as u128 / self.layers as u128) as usize];
                (&**b, self.alpha / a.nrows() as f64, &**a)
            })
            .collect();
        stacked_lora(&parts)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// The factors `(B, A)` of the groups of each level.
    pub fn levels(&self) -> &[Vec<(Array2<f64>, Array2<f64>)>] {
        &self.levels
    }

    /// Trained numbers of all layers, shared ones counted once.
    pub fn n_params(&self) -> usize {
        self.levels.iter().flatten().map(|(b, a)| b.len() + a.len()).sum()
    }
}
