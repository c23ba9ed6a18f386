//! The groups, and how many diagrams each has.

use super::diagram::{EquivariantDiagram, matchings, partitions, subsets};
use crate::error::{Error, Result};
use crate::parts::MAX_FEATURES;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Axes of both tensors together, at most.
pub(super) const MOST_AXES: usize = 12;

/// Diagrams at most: 945 matchings of ten axes, all of whose inner products a projection solves with.
const MOST_DIAGRAMS: usize = 4096;

/// Size of the sign tensor of $SO(n)$ at most: it has $n!$ entries.
const MOST_FREE: usize = 8;

/// What [`Equivariant`](super::Equivariant) maps commute with: a group of matrices on $\mathbb{R}^n$, acting on every axis of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EquivariantGroup {
    /// $S_n$, permutations: `s` in requests. Diagrams are the set partitions of all axes into at most $n$ blocks.
    #[default]
    Symmetric,
    /// $O(n)$: `o`. Diagrams are the perfect matchings of all axes.
    Orthogonal,
    /// $SO(n)$: `so`. Matchings, and $n$ free axes with a matching of the others.
    SpecialOrthogonal,
    /// $Sp(n)$ for even $n$, in a basis of pairs: $g^T J g = J$ with $J$ of blocks $\begin{pmatrix} 0 & 1 \\ -1 & 0 \end{pmatrix}$ on the diagonal:
    /// `sp`. Diagrams are the perfect matchings.
    Symplectic,
}

impl FromStr for EquivariantGroup {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "s" => Ok(Self::Symmetric),
            "o" => Ok(Self::Orthogonal),
            "so" => Ok(Self::SpecialOrthogonal),
            "sp" => Ok(Self::Symplectic),
            other => Err(Error::parameter("group", other, "s, o, so or sp")),
        }
    }
}

impl EquivariantGroup {
    /// How many diagrams there are between tensors with `axes` axes together: $(a - 1)!!$ matchings of $a$ axes, $\sum_{j \le n} S(a, j)$
    /// partitions (Bell's number where $n \ge a$), and for $SO(n)$ $\binom{a}{n} (a - n - 1)!!$ with free axes. Nothing where that overflows.
    pub fn count(self, n: usize, axes: usize) -> Option<usize> {
        match self {
            Self::Symmetric => partition_count(n, axes),
            Self::Orthogonal | Self::Symplectic => matching_count(axes),
            Self::SpecialOrthogonal => match axes.checked_sub(n) {
                Some(rest) if n > 0 => {
                    let free = binomial(axes, n)?.checked_mul(matching_count(rest)?)?;
                    matching_count(axes)?.checked_add(free)
                }
                _ => matching_count(axes),
            },
        }
    }

    /// [`count`](Self::count) where that is at least one, and few enough to work with.
    pub(super) fn checked_count(self, n: usize, axes: usize) -> Result<usize> {
        if n == 0 || (self == Self::Symplectic && n % 2 == 1) {
            let expected = if n == 0 { "at least 1" } else { "an even number for group sp" };
            return Err(Error::parameter("n", n, expected));
        }
        if self == Self::SpecialOrthogonal && n > MOST_FREE && n <= axes {
            let expected = format!("at most {MOST_FREE}, or more than {axes} axes, for group so");
            return Err(Error::parameter("n", n, expected));
        }
        let expected = match self.count(n, axes) {
            _ if axes > MOST_AXES => format!("at most {MOST_AXES} axes"),
            Some(0) => format!("a number with diagrams of {self:?}: an even one, or of so one from {n} on"),
            Some(count) if count <= MOST_DIAGRAMS => return Ok(count),
            _ => format!("axes with at most {MOST_DIAGRAMS} diagrams"),
        };
        Err(Error::parameter("out_axes + in_axes", axes, expected))
    }

    /// The diagrams from `in_axes` to `out_axes` axes, in the order of the parameters: matchings and partitions in lexicographic order, those with
    /// free axes last. There are [`count`](Self::count) of them.
    ///
    /// # Errors
    /// [`Error::Parameter`] where there is none or are more than 4096, for `n` that the group does not have, for more than 12 axes, and for tensors of more
    /// than 2^31 entries.
    pub fn diagrams(self, n: usize, out_axes: usize, in_axes: usize) -> Result<Vec<EquivariantDiagram>> {
        let axes = out_axes.saturating_add(in_axes);
        self.checked_count(n, axes)?;
        let all: Vec<usize> = (0..axes).collect();
        let entries = |axes: usize| u32::try_from(axes).ok().and_then(|axes| n.checked_pow(axes));
        if [out_axes, in_axes].into_iter().any(|axes| entries(axes).is_none_or(|all| all > MAX_FEATURES)) {
            return Err(Error::parameter("n", n, format!("at most {MAX_FEATURES} entries of each tensor")));
        }
        let diagram = |blocks, free| EquivariantDiagram {
            n,
            axes: (out_axes, in_axes),
            blocks,
            free,
            symplectic: self == Self::Symplectic,
        };
        let mut diagrams: Vec<_> = match self {
            Self::Symmetric => partitions(axes, n),
            _ => matchings(&all),
        }
        .into_iter()
        .map(|blocks| diagram(blocks, Vec::new()))
        .collect();
        if self == Self::SpecialOrthogonal && n <= axes {
            for free in subsets(axes, n) {
                let rest: Vec<usize> = all.iter().copied().filter(|v| !free.contains(v)).collect();
                diagrams.extend(matchings(&rest).into_iter().map(|blocks| diagram(blocks, free.clone())));
            }
        }
        Ok(diagrams)
    }
}

fn matching_count(axes: usize) -> Option<usize> {
    match axes % 2 {
        0 => (1..axes).step_by(2).try_fold(1usize, |all, odd| all.checked_mul(odd)),
        _ => Some(0),
    }
}

fn binomial(n: usize, k: usize) -> Option<usize> {
    (0..k).try_fold(1usize, |all, i| Some(all.checked_mul(n - i)? / (i + 1)))
}

/// Partitions of `axes` axes into at most `n` blocks: a sum of Stirling numbers of the second kind.
fn partition_count(n: usize, axes: usize) -> Option<usize> {
    if n < 2 {
        return Some(usize::from(n == 1 || axes == 0));
    }
    if axes > usize::BITS as usize {
        return None;
    }
    let most = n.min(axes);
    let mut stirling = vec![0usize; most + 1];
    stirling[0] = 1;
    for _ in 0..axes {
        for j in (1..=most).rev() {
            stirling[j] = j.checked_mul(stirling[j])?.checked_add(stirling[j - 1])?;
        }
        stirling[0] = 0;
    }
    stirling.into_iter().try_fold(0usize, usize::checked_add)
}
