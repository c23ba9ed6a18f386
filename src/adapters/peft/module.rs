//! One module while its adapter is loaded: which of its tensors are claimed, and the shape that it edits.

use super::config::Config;
use super::folder::{Folder, Tensors};
use super::layout::{Form, Layout};
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::storage::{Factor, Storage};
use ndarray::{Array2, s};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::PoisonError;

pub(crate) struct Module<'a> {
    folder: &'a Folder,
    name: &'a str,
    tensors: &'a Tensors,
    base: Vec<usize>,
    form: Cell<Form>,
    claimed: RefCell<BTreeSet<String>>,
    shapes: &'a dyn Fn(&str) -> Option<Vec<usize>>,
}

impl<'a> Module<'a> {
    pub(super) fn new(
        folder: &'a Folder,
        name: &'a str,
        tensors: &'a Tensors,
        shapes: &'a dyn Fn(&str) -> Option<Vec<usize>>,
        turned: bool,
    ) -> Result<Self> {
        let base = shapes(name).ok_or_else(|| Error::Unknown {
            kind: "base weight",
            name: name.to_owned(),
            expected: "a module of the base model".to_owned(),
        })?;
        let turned = turned && base.len() == 2;
        let form = Cell::new(if turned { Form::Transposed } else { Form::Rows });
        Layout::new(&base, form.get())?;
        Ok(Self { folder, name, tensors, base, form, claimed: RefCell::default(), shapes })
    }

    pub(crate) fn name(&self) -> &'a str {
        self.name
    }

    pub(crate) fn config(&self) -> &'a Config {
        &self.folder.config
    }

    /// Shape of the base tensor.
    pub(crate) fn base(&self) -> &[usize] {
        &self.base
    }

    /// Whether PEFT adds the change of this module twice: that of an attention's output, once as a part of the attention and once on its own.
    pub(crate) fn counts_twice(&self) -> bool {
        self.folder.twice.contains(self.name)
    }

    /// The task that was chosen.
    pub(crate) fn task(&self) -> Option<usize> {
        self.folder.task
    }

    /// Names of the shared tensors.
    pub(crate) fn shared_names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.folder.shared.keys().map(String::as_str)
    }

    /// The shape of every module that the folder adapts, as far as the base has it.
    pub(crate) fn all_shapes(&self) -> impl Iterator<Item = Vec<usize>> + '_ {
        self.folder.modules().filter_map(|module| (self.shapes)(module))
    }

    /// `(out, in)` of the matrix that is edited.
    pub(crate) fn shape(&self) -> Result<(usize, usize)> {
        Ok(Layout::new(&self.base, self.form.get())?.matrix_shape())
    }

    pub(crate) fn set_form(&self, form: Form) {
        self.form.set(form);
    }

    /// The tensor `name`, claimed; `None` where there is none.
    pub(crate) fn maybe(&self, name: &str) -> Option<&'a Tensor> {
        let tensor = self.tensors.get(name);
        if tensor.is_some() {
            self.claimed.borrow_mut().insert(name.to_owned());
        }
        tensor
    }

    /// Claims the tensors whose names begin so: they matter in training alone.
    pub(crate) fn pass_over(&self, prefix: &str) {
        let names = self.tensors.keys().filter(|name| name.starts_with(prefix));
        self.claimed.borrow_mut().extend(names.cloned());
    }

    /// The tensor `name`, claimed.
    pub(crate) fn take(&self, name: &str) -> Result<&'a Tensor> {
        self.maybe(name).ok_or_else(|| {
            let names: Vec<&str> = self.tensors.keys().map(String::as_str).take(8).collect();
            self.bad(format!(
                "tensor `{name}` of module `{}` is missing: there are {}",
                self.name,
                names.join(", ")
            ))
        })
    }

    /// The tensor `name`, claimed: one matrix row, or one kernel of the base's shape, for each rank.
    pub(crate) fn kernel(&self, name: &str) -> Result<&'a Tensor> {
        let tensor = self.take(name)?;
        if self.base.len() > 2 {
            let axes: Vec<_> = std::iter::once(None).chain(self.base[1..].iter().map(|n| Some(*n))).collect();
            tensor.dims(&axes)?;
        } else {
            tensor.dims(&[None, None])?;
        }
        Ok(tensor)
    }

    /// The tensor `name`, claimed: a matrix, for convolutions with kernels of one number.
    pub(crate) fn pointwise(&self, name: &str) -> Result<&'a Tensor> {
        let tensor = self.take(name)?;
        let mut axes = vec![Some(1); self.base.len().max(2)];
        axes[..2].fill(None);
        tensor.dims(&axes)?;
        Ok(tensor)
    }

    /// `prefix.0suffix`, `prefix.1suffix`, ... as far as they go.
    pub(crate) fn numbered(&self, prefix: &str, suffix: &str) -> Vec<&'a Tensor> {
        (0..).map_while(|k| self.maybe(&format!("{prefix}.{k}{suffix}"))).collect()
    }

    /// A tensor that modules share.
    pub(crate) fn shared(&self, name: &str) -> Result<&'a Tensor> {
        self.maybe_shared(name).ok_or_else(|| self.bad(format!("shared tensor `{name}` is missing")))
    }

    pub(crate) fn maybe_shared(&self, name: &str) -> Option<&'a Tensor> {
        self.folder.shared.get(name)
    }

    /// The upper left `rows x cols` of a matrix that modules share, in single precision: modules that use as much of it share the numbers. `numbers`
    /// makes the whole, of shape `whole`.
    pub(crate) fn projection(
        &self,
        name: &str,
        whole: (usize, usize),
        (rows, cols): (usize, usize),
        numbers: &dyn Fn() -> Result<Array2<f64>>,
    ) -> Result<Factor> {
        let key = (name.to_owned(), [whole.0, whole.1, rows, cols]);
        let mut made = self.folder.projections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(factor) = made.get(&key) {
            return Ok(factor.clone());
        }
        let part = numbers()?.slice_move(s![..rows, ..cols]);
        // As products want it, so that nobody makes a copy of another layout.
        let factor = Factor::from_matrix(Storage::F32, &part).packed_forward();
        made.insert(key, factor.clone());
        Ok(factor)
    }

    /// A rank from the tensors must be the one of the configuration.
    pub(crate) fn check_rank(&self, rank: usize, field: &str, pattern: &str) -> Result<()> {
        match self.config().size_for(field, pattern, self.name)? {
            Some(told) if told != rank => Err(self.bad(format!(
                "module `{}` has factors of rank {rank}, and `{field}` or `{pattern}` says {told}",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// The same where PEFT finds the entry of the pattern by a rule of its own, not all of which reach modules at the top: the one of the
    /// configuration, or of an entry that matches.
    pub(crate) fn check_rank_or(&self, rank: usize, field: &str, pattern: &str) -> Result<()> {
        match self.config().size(field)? {
            Some(told) if told == rank => Ok(()),
            _ => self.check_rank(rank, field, pattern),
        }
    }

    pub(crate) fn bad(&self, reason: impl Into<String>) -> Error {
        self.config().bad(reason)
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { structure: self.folder.kind().to_owned(), what: what.into() }
    }

    /// Refuses tensors that nobody claimed.
    pub(super) fn finish(self) -> Result<Layout> {
        let claimed = self.claimed.borrow();
        if let Some((_, tensor)) = self.tensors.iter().find(|(name, _)| !claimed.contains(*name)) {
            return Err(tensor.bad(format!("is left over: {} has no such tensor here", self.folder.kind())));
        }
        Layout::new(&self.base, self.form.get())
    }
}
