use super::SharedAtoms;
use super::atoms::dense;
use crate::compose::Sum;
use crate::error::{Error, Result};
use crate::io::{self, Source, Writer};
use crate::matrix::StructuredMatrix;
use crate::storage::Storage;
use ndarray::Array2;

type Boxed = Box<dyn StructuredMatrix>;

/// A dictionary of matrices: those of one kind in all layers (queries, keys, ...) are combinations of a few, $W_l = \sum_s c_{ls} D_s$, each
/// with a structured residual of its own where one is wanted.
///
/// Parameters: `atoms * out * in + members * atoms`, and the residuals'. A [`member`](Self::member) multiplies by the atoms themselves;
/// [`dense_member`](Self::dense_member) is their sum, taken once, with the product of a dense matrix.
///
/// Source: M. Zhussip et al., "Share Your Attention: Transformer Weight Sharing via Matrix-based Dictionary Learning", 2025.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::sharing::{DictionarySpec, SharedObjective, matrix_pca};
/// use structmat::ndarray::Array2;
/// let layer = |l: usize| Array2::from_shape_fn((4, 6), |(i, j)| (l * i + j) as f32);        // two matrices, combined
/// let layers: Vec<_> = (0..5).map(layer).collect();
/// let spec = DictionarySpec { atoms: 2, ..Default::default() };
/// let (dictionary, report) = matrix_pca(&layers, &spec, &SharedObjective::Frobenius, &Options::default())?;
/// assert!(report.relative_error < 1e-6 && dictionary.n_params() == 2 * 4 * 6 + 5 * 2);
/// assert!(dictionary.member(3)?.relative_error(&layers[3])? < 1e-6);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SharedDictionary {
    shared: SharedAtoms,
    residuals: Vec<Option<Boxed>>,
}

impl SharedDictionary {
    /// Without residuals.
    pub fn new(shared: SharedAtoms) -> Self {
        let residuals = vec![None; shared.members()];
        Self { shared, residuals }
    }

    /// With a residual for some or all members.
    ///
    /// # Errors
    /// [`Error::Parameter`] for another number of them, [`Error::Shape`] for one of another shape.
    pub fn with_residuals(shared: SharedAtoms, residuals: Vec<Option<Boxed>>) -> Result<Self> {
        if residuals.len() != shared.members() {
            return Err(Error::parameter(
                "residuals",
                residuals.len(),
                format!("{}, one per member", shared.members()),
            ));
        }
        let (m, n) = shared.shape();
        match residuals.iter().flatten().map(|residual| residual.shape()).find(|shape| *shape != (m, n)) {
            Some((rows, cols)) => Err(Error::shape("residual", &[m, n], &[rows, cols])),
            None => Ok(Self { shared, residuals }),
        }
    }

    /// The atoms and coefficients.
    pub fn shared(&self) -> &SharedAtoms {
        &self.shared
    }

    /// The residual of each member.
    pub fn residuals(&self) -> &[Option<Boxed>] {
        &self.residuals
    }

    /// Member `l`, of the shared atoms, which are not copied, and its residual.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there is no such member.
    pub fn member(&self, l: usize) -> Result<Boxed> {
        let combination = Box::new(self.shared.member(l)?);
        Ok(match &self.residuals[l] {
            None => combination,
            Some(residual) => Box::new(Sum::new(vec![combination, residual.clone()])?),
        })
    }

    /// Member `l` with its atoms added up to a dense matrix in `storage`, at `atoms * out * in` multiply-adds once, and its residual.
    ///
    /// # Errors
    /// As [`member`](Self::member).
    pub fn dense_member(&self, l: usize, storage: Storage) -> Result<Boxed> {
        let sum = dense(storage, &self.shared.dense(l)?)?;
        Ok(match &self.residuals[l] {
            None => sum,
            Some(residual) => Box::new(Sum::new(vec![sum, residual.clone()])?),
        })
    }

    /// Member `l` as an array.
    pub(super) fn array(&self, l: usize) -> Result<Array2<f64>> {
        let sum = self.shared.dense(l)?;
        Ok(self.residuals[l].as_ref().map_or(sum.clone(), |residual| sum + residual.to_dense_f64()))
    }

    /// Stored numbers, each atom counted once.
    pub fn n_params(&self) -> usize {
        self.shared.n_params()
            + self.residuals.iter().flatten().map(|residual| residual.n_params()).sum::<usize>()
    }

    /// Numbers of a dictionary of dense atoms: `atoms * out * in + members * atoms`.
    pub fn params_of((out, inp): (usize, usize), members: usize, atoms: usize) -> usize {
        atoms.saturating_mul(out).saturating_mul(inp).saturating_add(members.saturating_mul(atoms))
    }

    /// Adds the atoms as [`SharedAtoms::save`] does, and the matrices `NAME.residuals.0`, ... where there are some.
    ///
    /// # Errors
    /// Those of [`Writer::structured`].
    pub fn save(&self, writer: &mut Writer<'_>, name: &str) -> Result<()> {
        self.shared.save(writer, name)?;
        for (l, residual) in self.residuals.iter().enumerate() {
            if let Some(residual) = residual {
                writer.structured(&format!("{name}.residuals.{l}"), residual.as_ref())?;
            }
        }
        Ok(())
    }

    /// Reads what [`save`](Self::save) has written.
    ///
    /// # Errors
    /// Those of [`SharedAtoms::load`] and [`with_residuals`](Self::with_residuals).
    pub fn load(source: &dyn Source, name: &str) -> Result<Self> {
        let shared = SharedAtoms::load(source, name)?;
        let residual = |l: usize| {
            let name = format!("{name}.residuals.{l}");
            source.find(&name)?.map(|_| io::weight(source, &name)).transpose()
        };
        let residuals = (0..shared.members()).map(residual).collect::<Result<_>>()?;
        Self::with_residuals(shared, residuals)
    }
}
