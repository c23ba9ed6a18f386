//! What defines a structured matrix: named factors, index lists, settings and sub-matrices.
//!
//! A structure says its parts once ([`StructuredMatrix::parts`](crate::StructuredMatrix::parts)) and builds
//! itself from them once ([`Family::from_parts`]); counting parameters,
//! changing storage and files follow from that.

use crate::error::{Error, Result};
use crate::linalg::check_finite;
use crate::projection::Family;
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use ndarray::Array3;
use serde::{Serialize, de::DeserializeOwned};
use std::borrow::Cow;

/// Largest number of rows or columns of any matrix (2^31): products of two sizes then fit `u64`, and indices `u32`.
pub const MAX_FEATURES: usize = 1 << 31;

/// The parts of a structured matrix, borrowed from it or owned.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    structure: String,
    shape: (usize, usize),
    config: serde_json::Value,
    factors: Vec<(String, Cow<'a, Factor>)>,
    /// With the bytes that each takes in memory.
    indices: Vec<(String, Cow<'a, [u32]>, usize)>,
    children: Vec<Parts<'a>>,
}

impl<'a> Parts<'a> {
    /// No parts yet.
    pub fn new(structure: impl Into<String>, shape: (usize, usize)) -> Self {
        Self {
            structure: structure.into(),
            shape,
            config: serde_json::Value::Null,
            factors: Vec::new(),
            indices: Vec::new(),
            children: Vec::new(),
        }
    }

    /// Adds a factor.
    pub fn factor(mut self, name: impl Into<String>, factor: impl Into<Cow<'a, Factor>>) -> Self {
        self.factors.push((name.into(), factor.into()));
        self
    }

    /// Adds an index list.
    pub fn index(self, name: impl Into<String>, indices: impl Into<Cow<'a, [u32]>>) -> Self {
        self.index_of(name, indices, size_of::<u32>())
    }

    /// Adds an index list whose entries take so many bytes in memory; in files they take four.
    pub(crate) fn index_of(
        mut self,
        name: impl Into<String>,
        indices: impl Into<Cow<'a, [u32]>>,
        bytes: usize,
    ) -> Self {
        self.indices.push((name.into(), indices.into(), bytes));
        self
    }

    /// Sets the settings; anything that serializes to JSON.
    pub fn with_config(mut self, config: &impl Serialize) -> Self {
        self.config = serde_json::to_value(config).unwrap_or(serde_json::Value::Null);
        self
    }

    /// Adds a sub-matrix.
    pub fn child(mut self, child: Parts<'a>) -> Self {
        self.children.push(child);
        self
    }

    /// Name of the structure.
    pub fn structure(&self) -> &str {
        &self.structure
    }

    /// `(out_features, in_features)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The settings as they were written.
    pub fn raw_config(&self) -> &serde_json::Value {
        &self.config
    }

    /// The factors and their names.
    pub fn factors(&self) -> impl Iterator<Item = (&str, &Factor)> {
        self.factors.iter().map(|(name, factor)| (name.as_str(), factor.as_ref()))
    }

    /// The index lists and their names.
    pub fn indices(&self) -> impl Iterator<Item = (&str, &[u32])> {
        self.indices.iter().map(|(name, list, _)| (name.as_str(), list.as_ref()))
    }

    /// The sub-matrices.
    pub fn children(&self) -> &[Parts<'a>] {
        &self.children
    }

    /// Every factor: a structure's own as it names them, then those of its sub-matrices, depth first. The order of gradients.
    pub fn all_factors(&self) -> Vec<&Factor> {
        let own = self.factors.iter().map(|(_, factor)| factor.as_ref());
        own.chain(self.children.iter().flat_map(Self::all_factors)).collect()
    }

    /// The same parts with other numbers in [`all_factors`](Self::all_factors), rounded to `storage`.
    ///
    /// # Errors
    /// [`Error::Record`] for another number of factors, [`Error::Shape`] for one of another shape, [`Error::NonFinite`] for NaN or infinities.
    pub fn with_numbers<T: Scalar>(&self, numbers: &[Array3<T>], storage: Storage) -> Result<Parts<'static>> {
        let factors = self.all_factors();
        if factors.len() != numbers.len() {
            return Err(self.error(format!("numbers for {} of {} factors", numbers.len(), factors.len())));
        }
        for (factor, numbers) in factors.iter().zip(numbers) {
            let (b, r, c) = factor.shape();
            if numbers.dim() != (b, r, c) {
                return Err(Error::shape("numbers of a factor", &[b, r, c], numbers.shape()));
            }
            numbers.outer_iter().try_for_each(|block| check_finite("numbers of a factor", &block))?;
        }
        let mut rest = numbers.iter();
        Ok(self.map_factors(&mut |factor| match rest.next() {
            Some(numbers) => Factor::from_fn(storage, factor.shape(), |b, i, j| numbers[[b, i, j]].widen()),
            None => factor.clone(),
        }))
    }

    /// Number of stored parameters, sub-matrices included, indices not.
    pub fn n_params(&self) -> usize {
        self.factors.iter().map(|(_, f)| f.len()).sum::<usize>()
            + self.children.iter().map(Self::n_params).sum::<usize>()
    }

    /// Bytes of factors, scales and indices in memory, sub-matrices included.
    pub fn bytes(&self) -> usize {
        self.factors.iter().map(|(_, f)| f.bytes()).sum::<usize>()
            + self.indices.iter().map(|(_, list, bytes)| list.len() * bytes).sum::<usize>()
            + self.children.iter().map(Self::bytes).sum::<usize>()
    }

    /// The same parts with every factor in another storage.
    pub fn to_storage(&self, storage: Storage) -> Parts<'static> {
        self.map_factors(&mut |factor| factor.to_storage(storage))
    }

    /// A copy that borrows nothing.
    pub fn into_owned(self) -> Parts<'static> {
        self.map_factors(&mut Factor::clone)
    }

    /// A copy with numbers of its own, which clones of factors share.
    pub fn unshared(&self) -> Parts<'static> {
        self.map_factors(&mut Factor::unshared)
    }

    pub(crate) fn map_factors(&self, map: &mut dyn FnMut(&Factor) -> Factor) -> Parts<'static> {
        Parts {
            structure: self.structure.clone(),
            shape: self.shape,
            config: self.config.clone(),
            factors: self.factors.iter().map(|(name, f)| (name.clone(), Cow::Owned(map(f)))).collect(),
            indices: self
                .indices
                .iter()
                .map(|(name, list, bytes)| (name.clone(), Cow::Owned(list.to_vec()), *bytes))
                .collect(),
            children: self.children.iter().map(|child| child.map_factors(map)).collect(),
        }
    }

    /// An [`Error::Record`] about this structure.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::record(self.structure.clone(), reason)
    }

    /// The settings, read back.
    ///
    /// # Errors
    /// [`Error::Record`] when a field is missing or of another type.
    pub fn config<C: DeserializeOwned>(&self) -> Result<C> {
        serde_json::from_value(self.config.clone()).map_err(|e| self.error(format!("settings: {e}")))
    }

    /// Takes the factor `name` out.
    ///
    /// # Errors
    /// [`Error::Record`] when there is none.
    pub fn take_factor(&mut self, name: &str) -> Result<Factor> {
        match self.factors.iter().position(|(n, _)| n == name) {
            Some(i) => Ok(self.factors.swap_remove(i).1.into_owned()),
            None => Err(self.error(format!("factor `{name}` is missing"))),
        }
    }

    /// Takes the index list `name` out and checks that every index is below `limit`.
    ///
    /// # Errors
    /// [`Error::Record`] when there is none, or an index is out of range.
    pub fn take_indices(&mut self, name: &str, limit: usize) -> Result<Vec<u32>> {
        let Some(i) = self.indices.iter().position(|(n, ..)| n == name) else {
            return Err(self.error(format!("index list `{name}` is missing")));
        };
        let list = self.indices.swap_remove(i).1.into_owned();
        match list.iter().find(|&&index| index as usize >= limit) {
            Some(index) => Err(self.error(format!("index {index} in `{name}` is not below {limit}"))),
            None => Ok(list),
        }
    }

    /// Takes the next sub-matrix out; it must be of family `F` and have this shape.
    ///
    /// # Errors
    /// [`Error::Record`] when there is none or it is another, and those of [`Family::from_parts`].
    pub(crate) fn take_child<F: Family>(&mut self) -> Result<F>
    where
        'a: 'static,
    {
        self.take_child_of(self.shape)
    }

    /// The same, for a sub-matrix of another shape.
    pub(crate) fn take_child_of<F: Family>(&mut self, shape: (usize, usize)) -> Result<F>
    where
        'a: 'static,
    {
        if self.children.first().is_none_or(|c| c.structure != F::NAME || c.shape != shape) {
            let (m, n) = shape;
            return Err(self.error(format!("expected a `{}` of {m} x {n} as a sub-matrix", F::NAME)));
        }
        F::from_parts(self.children.remove(0))
    }

    /// Takes the sub-matrices out, built through the registry.
    ///
    /// # Errors
    /// Whatever building one of them says.
    pub fn take_children(&mut self) -> Result<Vec<Box<dyn crate::StructuredMatrix>>>
    where
        'a: 'static,
    {
        std::mem::take(&mut self.children).into_iter().map(crate::registry::load).collect()
    }
}

impl<'a> From<&'a Factor> for Cow<'a, Factor> {
    fn from(factor: &'a Factor) -> Self {
        Cow::Borrowed(factor)
    }
}

impl From<Factor> for Cow<'_, Factor> {
    fn from(factor: Factor) -> Self {
        Cow::Owned(factor)
    }
}
