use crate::error::{Error, Result};
use crate::linalg::{
    Svd, Threads, check_finite, energy_rank, entropy_rank, matmul_nt, matmul_tn, singular_values,
    stable_rank, svd,
};
use crate::projection::{Gram, Objective, ratio};
use crate::random::Gaussian;
use ndarray::{Array2, ArrayRef2, s};

/// How many directions a matrix has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranks {
    /// Singular values that hold the share of the energy that was asked for ([`energy_rank`]).
    pub energy: usize,
    /// [`stable_rank`].
    pub stable: f64,
    /// [`entropy_rank`].
    pub entropy: f64,
    /// The share of the largest singular value in the sum of all: how dominant one direction is.
    pub top: f64,
}

impl Ranks {
    /// Of falling singular values.
    pub fn of(values: &[f64], share: f64) -> Self {
        let total: f64 = values.iter().sum();
        let top = values.first().map_or(0.0, |first| ratio(*first, total));
        Self {
            energy: energy_rank(values, share),
            stable: stable_rank(values),
            entropy: entropy_rank(values),
            top,
        }
    }
}

/// Settings of [`delta_report`].
#[derive(Debug, Clone, Copy)]
pub struct DeltaSettings<'a> {
    /// The share of the energy that [`Ranks::energy`] counts to.
    pub share: f64,
    /// The rank of the subspaces of the weight, and of the best LoRA.
    pub rank: usize,
    /// What the layer sees, for the change of its outputs.
    pub gram: Option<&'a Gram>,
    /// Of the noise that the ranks are compared with.
    pub seed: u64,
}

impl Default for DeltaSettings<'_> {
    /// 90 % of the energy, rank 16, no inputs.
    fn default() -> Self {
        Self { share: 0.9, rank: 16, gram: None, seed: 0 }
    }
}

/// What [`delta_report`] measured of a change `D` of a weight `W`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeltaReport {
    /// `‖D‖_F / ‖W‖_F`.
    pub relative: f64,
    /// `‖D C^{1/2}‖_F / ‖W C^{1/2}‖_F`: the change of the outputs, where there is a Gram matrix.
    pub functional: Option<f64>,
    /// Of the change.
    pub delta: Ranks,
    /// Of the weight before.
    pub weight: Ranks,
    /// Of Gaussian noise of the shape and norm of the change.
    pub noise: Ranks,
    /// The share of the energy of `D` between the leading singular subspaces of `W`: $\lVert U_r^T D V_r \rVert_F^2 / \lVert D \rVert_F^2$.
    pub leading: f64,
    /// The same for the trailing subspaces, of the same rank.
    pub trailing: f64,
    /// `‖D - D_r‖_F / ‖D‖_F` of the best LoRA.
    pub lora_error: f64,
}

/// Compares a weight `before` and `after` fine-tuning (both `out x in`).
///
/// Cost: the decompositions of both and of the noise.
///
/// Source: D. Biderman et al., "LoRA Learns Less and Forgets Less", 2024 (the rank of the change by its energy, 0.9). The dominance of single
/// directions: Y. Wang et al., "MultiLoRA: Democratizing LoRA for Better Multi-Task Learning", 2023.
///
/// # Errors
/// [`Error::Shape`] when the shapes differ or are empty, [`Error::NonFinite`] for NaN or infinities, [`Error::Parameter`] for a rank beyond the
/// smaller side or a share outside of 0 to 1.
///
/// ```
/// use structmat::adapters::analysis::{DeltaSettings, delta_report};
/// use structmat::ndarray::array;
/// let (before, after) = (array![[3.0, 0.0], [0.0, 1.0]], array![[3.0, 0.0], [0.0, 2.0]]);
/// let report = delta_report(&before, &after, &DeltaSettings { rank: 1, ..Default::default() })?;
/// assert_eq!(report.delta.energy, 1);
/// assert!(report.leading < 1e-12 && (report.trailing - 1.0).abs() < 1e-12);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn delta_report(
    before: &ArrayRef2<f64>,
    after: &ArrayRef2<f64>,
    settings: &DeltaSettings<'_>,
) -> Result<DeltaReport> {
    let &DeltaSettings { share, rank, gram, seed } = settings;
    let (m, n) = before.dim();
    if m == 0 || n == 0 || after.dim() != (m, n) {
        return Err(Error::shape(
            "weight after tuning (must not be empty)",
            &[m.max(1), n.max(1)],
            after.shape(),
        ));
    }
    if let Some(gram) = gram
        && gram.in_features() != n
    {
        return Err(Error::shape("Gram matrix", &[n, n], &[gram.in_features(), gram.in_features()]));
    }
    let most = m.min(n);
    if rank > most {
        return Err(Error::parameter("rank", rank, format!("at most {most}")));
    }
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::parameter("share", share, "0 to 1"));
    }
    check_finite("weight before tuning", before)?;
    check_finite("weight after tuning", after)?;
    let delta = &after.view() - &before.view();
    let weight = svd(before, Threads::ONE)?;
    let change = singular_values(&delta, Threads::ONE)?;
    let noise = singular_values(&Gaussian::new(seed).matrix(m, n, 1.0), Threads::ONE)?;
    let energy: f64 = change.iter().map(|s| s * s).sum();
    let within = |first: usize, last: usize| {
        let inner = between(&weight, &delta, first, last);
        ratio(inner.iter().map(|v| v * v).sum(), energy)
    };
    let size =
        |objective: &Objective<'_>| ratio(objective.energy(&delta).sqrt(), objective.energy(before).sqrt());
    let tail: f64 = change[rank..].iter().rev().map(|s| s * s).sum();
    Ok(DeltaReport {
        relative: size(&Objective::Frobenius),
        functional: gram.map(|gram| size(&Objective::Activations(gram))),
        delta: Ranks::of(&change, share),
        weight: Ranks::of(&weight.s, share),
        noise: Ranks::of(&noise, share),
        leading: within(0, rank),
        trailing: within(most - rank, most),
        lora_error: ratio(tail.sqrt(), energy.sqrt()),
    })
}

/// `Uᵀ D V` for singular vectors `first..last` of a decomposition.
fn between(Svd { u, vt, .. }: &Svd, delta: &Array2<f64>, first: usize, last: usize) -> Array2<f64> {
    let half = matmul_tn(&u.slice(s![.., first..last]), delta, Threads::ONE);
    matmul_nt(&half, &vt.slice(s![first..last, ..]), Threads::ONE)
}
