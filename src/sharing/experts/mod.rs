//! Experts that share a basis.

mod descent;
mod fit;
mod linear;
mod start;

pub use fit::{ExpertStart, ExpertsSpec, Mixing};

use super::SharedAtoms;
use super::atoms::dense;
use crate::activation::Activation;
use crate::compose::Product;
use crate::error::{Error, Result};
use crate::io::{self, Source, Writer};
use crate::matrix::StructuredMatrix;
use crate::storage::Storage;
use ndarray::Array2;

type Boxed = Box<dyn StructuredMatrix>;

/// Mixture of basis experts: $W_e = A_e\, f(\sum_i a_{ei} B_i)$, with a left factor (`out x rank`) and mixing weights for each expert, and basis
/// matrices (`rank x in`) that all share.
///
/// Parameters: `experts * out * rank + atoms * rank * in + experts * atoms`. An expert multiplies with `rank (in + out)` multiply-adds once
/// $f(B_e)$ is formed, at `atoms * rank * in` of them.
///
/// Source: X. Chen et al., "MoBE: Mixture-of-Basis-Experts for Compressing MoE-based LLMs", 2025, and its code.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::layers::Activation;
/// use structmat::sharing::{ExpertsSpec, SharedBasisExperts, SharedObjective};
/// use structmat::ndarray::Array2;
/// let expert = |e: usize| Array2::from_shape_fn((4, 6), |(i, j)| ((e + 1) * (i + 1) * (j % 3)) as f32);
/// let experts: Vec<_> = (0..4).map(expert).collect();
/// let spec = ExpertsSpec { rank: 2, atoms: 2, activation: Activation::Identity, ..Default::default() };
/// let options = Options::default();
/// let (shared, report) = SharedBasisExperts::fit(&experts, &spec, &SharedObjective::Frobenius, &options)?;
/// assert!(report.relative_error < 1e-6);
/// assert_eq!(shared.n_params(), SharedBasisExperts::params_of((4, 6), 4, 2, 2));
/// assert!(shared.expert(3, Storage::F32)?.relative_error(&experts[3])? < 1e-6);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SharedBasisExperts {
    left: Vec<Boxed>,
    basis: SharedAtoms,
    activation: Activation,
}

impl SharedBasisExperts {
    /// From a left factor for each member of the basis.
    ///
    /// # Errors
    /// [`Error::Parameter`] for another number of left factors, [`Error::Shape`] when they do not fit.
    pub fn new(left: Vec<Boxed>, basis: SharedAtoms, activation: Activation) -> Result<Self> {
        if left.len() != basis.members() {
            return Err(Error::parameter(
                "left factors",
                left.len(),
                format!("{}, one per expert", basis.members()),
            ));
        }
        let (out, rank) = (left[0].shape().0, basis.shape().0);
        match left.iter().map(|a| a.shape()).find(|shape| *shape != (out, rank)) {
            Some((rows, cols)) => Err(Error::shape("left factor", &[out, rank], &[rows, cols])),
            None => Ok(Self { left, basis, activation }),
        }
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.left.len()
    }

    /// Shape of each, `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.left[0].shape().0, self.basis.shape().1)
    }

    /// The left factors.
    pub fn left(&self) -> &[Boxed] {
        &self.left
    }

    /// The basis and how it is mixed.
    pub fn basis(&self) -> &SharedAtoms {
        &self.basis
    }

    /// The activation between the factors.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// $f(\sum_i a_{ei} B_i)$, formed.
    fn right(&self, e: usize) -> Result<Array2<f64>> {
        Ok(self.basis.dense(e)?.mapv_into(|v| self.activation.at(v)))
    }

    /// Expert `e` as the product of its left factor and the formed right one, which is stored as `storage` says.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there is no such expert.
    pub fn expert(&self, e: usize, storage: Storage) -> Result<Product> {
        let right = dense(storage, &self.right(e)?)?;
        Product::new(vec![self.left[e].clone(), right])
    }

    /// Expert `e` as an array.
    fn array(&self, e: usize) -> Result<Array2<f64>> {
        let right = self.right(e)?;
        Ok(self.left[e].to_dense_f64().dot(&right))
    }

    /// Stored numbers.
    pub fn n_params(&self) -> usize {
        self.left.iter().map(|a| a.n_params()).sum::<usize>() + self.basis.n_params()
    }

    /// Numbers of dense factors: `experts * out * rank + atoms * rank * in + experts * atoms`.
    pub fn params_of((out, inp): (usize, usize), experts: usize, rank: usize, atoms: usize) -> usize {
        let product = |a: usize, b: usize, c: usize| a.saturating_mul(b).saturating_mul(c);
        let factors = product(experts, out, rank).saturating_add(product(atoms, rank, inp));
        factors.saturating_add(experts.saturating_mul(atoms))
    }

    /// Adds the matrices `NAME.left.0`, ..., the basis as [`SharedAtoms::save`] does under `NAME.basis`, and the activation as settings `NAME`.
    ///
    /// # Errors
    /// Those of [`Writer::structured`] and [`Writer::settings`].
    pub fn save(&self, writer: &mut Writer<'_>, name: &str) -> Result<()> {
        writer.settings(name, &self.activation)?;
        self.basis.save(writer, &format!("{name}.basis"))?;
        let mut left = self.left.iter().enumerate();
        left.try_for_each(|(e, a)| writer.structured(&format!("{name}.left.{e}"), a.as_ref()))
    }

    /// Reads what [`save`](Self::save) has written. The settings are in the file of the coefficients.
    ///
    /// # Errors
    /// [`Error::Unknown`] for what is missing, and those of [`SharedAtoms::load`] and [`new`](Self::new).
    pub fn load(source: &dyn Source, name: &str) -> Result<Self> {
        let activation = source.need(&format!("{name}.basis.coefficients"))?.settings(name)?;
        let basis = SharedAtoms::load(source, &format!("{name}.basis"))?;
        let left = |e: usize| io::weight(source, &format!("{name}.left.{e}"));
        Self::new((0..basis.members()).map(left).collect::<Result<_>>()?, basis, activation)
    }
}
