use super::{Adapter, BiasEdit, Boxed, Edit, check_base};
use crate::error::Result;
use crate::matrix::StructuredMatrix;

/// The adapter `W' = W + D` of any structured matrix `D`, with an optional change of the bias.
///
/// Cost of a product: that of `D`.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, Additive};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0]])?;
/// let adapter = Additive::new("full", Box::new(Dense::new(&array![[10.0f32, 0.0]])?));
/// assert_eq!(adapter.delta(&base)?, array![[10.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Additive {
    kind: &'static str,
    delta: Boxed,
    params: usize,
    bias: BiasEdit,
}

impl Additive {
    /// From a structured matrix, all of whose numbers count as trained.
    pub fn new(kind: &'static str, delta: Boxed) -> Self {
        let params = delta.n_params();
        Self { kind, delta, params, bias: BiasEdit::default() }
    }

    /// With another number of trained parameters: where some of `D` is frozen, shared or derived.
    pub fn with_params(self, params: usize) -> Self {
        Self { params, ..self }
    }

    /// With a change of the bias.
    pub fn with_bias(self, bias: BiasEdit) -> Self {
        Self { bias, ..self }
    }

    /// `D`.
    pub fn matrix(&self) -> &dyn StructuredMatrix {
        self.delta.as_ref()
    }
}

impl Adapter for Additive {
    fn kind(&self) -> &'static str {
        self.kind
    }
    fn shape(&self) -> (usize, usize) {
        self.delta.shape()
    }
    fn n_params(&self) -> usize {
        self.params
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape())?;
        Edit::of(self.shape()).with_delta(self.delta.clone())?.with_bias(self.bias.clone())
    }
}

/// The adapter of an [`Edit`] that does not depend on the base: rotations, scalings, and what they come with.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, Edit, Multiplicative};
/// use structmat::compose::Identity;
/// use structmat::ndarray::array;
/// let halve = Identity::diagonal(Factor::from_matrix(Storage::F32, &array![[0.5f32, 0.5]]))?;
/// let adapter = Multiplicative::new("scaling", Edit::of((1, 2)).with_right(Box::new(halve))?, 2);
/// assert_eq!(adapter.delta(&Dense::new(&array![[2.0f32, 4.0]])?)?, array![[-1.0, -2.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Multiplicative {
    kind: &'static str,
    edit: Edit,
    params: usize,
}

impl Multiplicative {
    /// From an edit and the number of trained parameters.
    pub fn new(kind: &'static str, edit: Edit, params: usize) -> Self {
        Self { kind, edit, params }
    }

    /// The edit.
    pub fn into_edit(self) -> Edit {
        self.edit
    }
}

impl Adapter for Multiplicative {
    fn kind(&self) -> &'static str {
        self.kind
    }
    fn shape(&self) -> (usize, usize) {
        self.edit.shape()
    }
    fn n_params(&self) -> usize {
        self.params
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape())?;
        Ok(self.edit.clone())
    }
}
