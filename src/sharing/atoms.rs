use crate::compose::Combination;
use crate::error::{Error, Result};
use crate::io::{self, Source, Writer};
use crate::linalg::check_finite;
use crate::matrix::StructuredMatrix;
use crate::storage::{Factor, Storage};
use ndarray::Array2;
use std::sync::Arc;

/// Matrices that are stored once, and members that are combinations of them: $W_l = \sum_s c_{ls} D_s$.
///
/// Parameters: those of the atoms and `members * atoms` coefficients.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::sharing::SharedAtoms;
/// use structmat::ndarray::array;
/// let atoms: Vec<Box<dyn StructuredMatrix>> =
///     vec![Box::new(Dense::new(&array![[1.0f32, 0.0]])?), Box::new(Dense::new(&array![[0.0f32, 1.0]])?)];
/// let shared = SharedAtoms::new(atoms, array![[2.0, 3.0], [0.0, -1.0], [1.0, 1.0]])?;
/// assert_eq!(shared.member(0)?.matvec(&array![10.0f32, 1.0])?, array![23.0]);
/// assert_eq!((shared.members(), shared.n_params()), (3, 4 + 6));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SharedAtoms {
    atoms: Vec<Arc<dyn StructuredMatrix>>,
    /// Members x atoms.
    coefficients: Array2<f64>,
}

impl SharedAtoms {
    /// From atoms of one shape and the coefficients of the members (members x atoms).
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes or numbers differ, [`Error::Parameter`] without an atom or a member, [`Error::NonFinite`].
    pub fn new(atoms: Vec<Box<dyn StructuredMatrix>>, coefficients: Array2<f64>) -> Result<Self> {
        let Some((m, n)) = atoms.first().map(|atom| atom.shape()) else {
            return Err(Error::parameter("atoms", "none", "at least one"));
        };
        if let Some((rows, cols)) = atoms.iter().map(|atom| atom.shape()).find(|shape| *shape != (m, n)) {
            return Err(Error::shape("atom (all must have one shape)", &[m, n], &[rows, cols]));
        }
        let members = coefficients.nrows();
        if members == 0 {
            return Err(Error::parameter("members", "none", "at least one"));
        }
        if coefficients.ncols() != atoms.len() {
            return Err(Error::shape("coefficients", &[members, atoms.len()], coefficients.shape()));
        }
        check_finite("coefficients", &coefficients)?;
        let coefficients = coefficients.as_standard_layout().into_owned();
        Ok(Self { atoms: atoms.into_iter().map(Arc::from).collect(), coefficients })
    }

    /// Of dense atoms that fit.
    pub(super) fn from_arrays(
        storage: Storage,
        atoms: &[Array2<f64>],
        coefficients: Array2<f64>,
    ) -> Result<Self> {
        let atom = |atom: &Array2<f64>| dense(storage, atom);
        Self::new(atoms.iter().map(atom).collect::<Result<_>>()?, coefficients)
    }

    /// Shape of each atom and member, `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        self.atoms[0].shape()
    }

    /// Number of members.
    pub fn members(&self) -> usize {
        self.coefficients.nrows()
    }

    /// The atoms.
    pub fn atoms(&self) -> &[Arc<dyn StructuredMatrix>] {
        &self.atoms
    }

    /// What members are made of (members x atoms).
    pub fn coefficients(&self) -> &Array2<f64> {
        &self.coefficients
    }

    /// Stored numbers, each atom counted once.
    pub fn n_params(&self) -> usize {
        self.atoms.iter().map(|atom| atom.n_params()).sum::<usize>() + self.coefficients.len()
    }

    /// Bytes that hold them.
    pub fn storage_bytes(&self) -> usize {
        self.atoms.iter().map(|atom| atom.storage_bytes()).sum::<usize>() + 8 * self.coefficients.len()
    }

    /// Member `l`, of the atoms themselves, which are not copied. Its product takes those of all atoms with a coefficient other than 0:
    /// [`dense`](Self::dense) takes their sum once.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there is no such member.
    pub fn member(&self, l: usize) -> Result<Combination> {
        let row = self.row(l)?;
        let mut used: Vec<usize> = (0..row.len()).filter(|&s| row[s] != 0.0).collect();
        if used.is_empty() {
            used.push(0);
        }
        let coefficients = Factor::from_fn(Storage::F64, (1, 1, used.len()), |_, _, k| row[used[k]]);
        Combination::new(coefficients, used.iter().map(|&s| Arc::clone(&self.atoms[s])).collect())
    }

    /// Member `l` as a dense array: `atoms * out * in` multiply-adds, once.
    ///
    /// # Errors
    /// As [`member`](Self::member).
    pub fn dense(&self, l: usize) -> Result<Array2<f64>> {
        let mut sum = Array2::zeros(self.shape());
        for (atom, &c) in self.atoms.iter().zip(self.row(l)?).filter(|(_, c)| **c != 0.0) {
            sum.scaled_add(c, &atom.to_dense_f64());
        }
        Ok(sum)
    }

    fn row(&self, l: usize) -> Result<&[f64]> {
        let atoms = self.atoms.len();
        let row = self.coefficients.as_slice().and_then(|all| all.chunks_exact(atoms).nth(l));
        row.ok_or_else(|| Error::parameter("member", l, format!("less than {}", self.members())))
    }

    /// Adds `NAME.coefficients` and the matrices `NAME.atoms.0`, `NAME.atoms.1`, ... to a file.
    ///
    /// # Errors
    /// Those of [`Writer::structured`].
    pub fn save(&self, writer: &mut Writer<'_>, name: &str) -> Result<()> {
        writer.exact(&format!("{name}.coefficients"), &self.coefficients)?;
        let mut atoms = self.atoms.iter().enumerate();
        atoms.try_for_each(|(s, atom)| writer.structured(&format!("{name}.atoms.{s}"), atom.as_ref()))
    }

    /// Reads what [`save`](Self::save) has written; atoms may be ordinary tensors too.
    ///
    /// # Errors
    /// [`Error::Unknown`] for what is missing, [`Error::File`] for what is malformed, and those of [`new`](Self::new).
    pub fn load(source: &dyn Source, name: &str) -> Result<Self> {
        let key = format!("{name}.coefficients");
        let coefficients = source.need(&key)?.matrix::<f64>(&key)?;
        if coefficients.is_empty() {
            return Err(Error::shape("coefficients", &[1, 1], coefficients.shape()));
        }
        let atom = |s: usize| io::weight(source, &format!("{name}.atoms.{s}"));
        Self::new((0..coefficients.ncols()).map(atom).collect::<Result<_>>()?, coefficients)
    }
}

/// A dense matrix in a storage.
pub(super) fn dense(storage: Storage, w: &Array2<f64>) -> Result<Box<dyn StructuredMatrix>> {
    Ok(Box::new(crate::structures::Dense::from_factor(Factor::from_matrix(storage, w))?))
}
