use crate::error::{Error, Result};
use crate::projection::{Gram, Objective};

/// What errors of several matrices are measured with.
#[derive(Debug, Clone, Copy, Default)]
pub enum SharedObjective<'a> {
    /// $\sum_l \|W_l - \hat W_l\|_F^2$.
    #[default]
    Frobenius,
    /// $\sum_l \|(W_l - \hat W_l) C^{1/2}\|_F^2$: all see the same inputs.
    Common(&'a Gram),
    /// $\sum_l \|(W_l - \hat W_l) C_l^{1/2}\|_F^2$, with a second moment for each.
    Each(&'a [Gram]),
}

impl<'a> SharedObjective<'a> {
    /// That of matrix `l`. Panics when there is none.
    pub(super) fn of(&self, l: usize) -> Objective<'a> {
        match self {
            SharedObjective::Frobenius => Objective::Frobenius,
            SharedObjective::Common(gram) => Objective::Activations(gram),
            SharedObjective::Each(grams) => Objective::Activations(&grams[l]),
        }
    }

    /// [`Error::Shape`] or [`Error::Parameter`] unless it suits `members` matrices of `inputs` columns.
    pub(super) fn check(&self, members: usize, inputs: usize) -> Result<()> {
        let grams = match self {
            SharedObjective::Frobenius => &[],
            SharedObjective::Common(gram) => std::slice::from_ref(*gram),
            SharedObjective::Each(grams) if grams.len() == members => *grams,
            SharedObjective::Each(grams) => {
                return Err(Error::parameter(
                    "Gram matrices",
                    grams.len(),
                    format!("{members}, one per matrix"),
                ));
            }
        };
        match grams.iter().find(|gram| gram.in_features() != inputs) {
            None => Ok(()),
            Some(gram) => Err(Error::shape("Gram matrix", &[inputs, inputs], gram.second_moment().shape())),
        }
    }
}
