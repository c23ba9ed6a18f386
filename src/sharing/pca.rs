//! Dictionaries of given matrices: principal components, where whole matrices are the vectors.

use super::alternating::{self, Start};
use super::heads::cosine;
use super::{SharedAtoms, SharedDictionary, SharedObjective, SharingReport, check_members};
use crate::error::{Error, Result};
use crate::linalg::{self, Threads, matmul};
use crate::projection::{Gram, Guarantee, Objective, Options, Request, Run, ward};
use crate::registry;
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2, Axis, Zip};
use std::ops::Deref;

/// What each member keeps for itself beside the shared atoms.
#[derive(Debug, Clone, PartialEq)]
pub struct Residual {
    /// A family of the [`registry`], such as `low_rank` or `sparse`.
    pub family: String,
    /// Its size.
    pub request: Request,
}

/// Parameters of [`matrix_pca`].
#[derive(Debug, Clone, PartialEq)]
pub struct DictionarySpec {
    /// Atoms, all groups together; at most as many as matrices.
    pub atoms: usize,
    /// Groups of similar matrices ([`group_by_similarity`]), each with atoms of its own, at least one; 1 for a common dictionary, which fits
    /// better with the same number of atoms. Members of groups multiply by fewer atoms.
    pub groups: usize,
    /// A residual for each member.
    pub residual: Option<Residual>,
}

impl Default for DictionarySpec {
    fn default() -> Self {
        Self { atoms: 1, groups: 1, residual: None }
    }
}

/// The dictionary of the given matrices (`out x in`, all of one shape) with the least squared error.
///
/// With the Gram matrix of the weights, $G_{ll'} = \langle W_l, W_{l'} \rangle$, and its leading eigenvectors $Q$: $c = Q$ and
/// $D_s = \sum_l Q_{ls} W_l$, with the rest of the eigenvalues of $G$ as squared error. That is the optimum, also under one common
/// second moment $C$, with $G_{ll'} = \langle W_l C, W_{l'} \rangle$: whitening, components and unwhitening in one, without an inverse. Groups get
/// the largest eigenvalues of all of them, which is the optimum for given groups.
///
/// With a second moment for each matrix, coefficients ($S \times S$ least squares per member) and atoms (one system of
/// `atoms * in` numbers for all rows up to 2048 of them; larger ones atom by atom) are solved in turns, from the better of the plain
/// components and those under the mean moment; each sweep lowers the error.
///
/// Residuals are fitted to what is left, by their family, under the same objective.
///
/// Cost: `members² out in` for the Gram matrix.
///
/// ```
/// # use structmat::prelude::*;
/// # use structmat::sharing::{DictionarySpec, Residual, SharedObjective, matrix_pca};
/// # use structmat::ndarray::Array2;
/// let layer = |l: usize| Array2::from_shape_fn((8, 8), |(i, j)| ((l * i + 3 * j + i * j) % 11) as f32);
/// let layers: Vec<_> = (0..4).map(layer).collect();
/// let residual = Residual { family: "low_rank".to_owned(), request: Request::new().with("rank", 2) };
/// let spec = DictionarySpec { atoms: 2, residual: Some(residual), ..Default::default() };
/// let (_, report) = matrix_pca(&layers, &spec, &SharedObjective::Frobenius, &Options::default())?;
/// # assert!(report.relative_error < 0.5 && report.params == 2 * 64 + 8 + 4 * 32);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`], [`Error::NonFinite`], [`Error::Parameter`] for numbers of atoms or groups that do not suit the matrices, and those of
/// the residuals' family.
pub fn matrix_pca<T: Scalar, A: Deref<Target = ArrayRef2<T>>>(
    weights: &[A],
    spec: &DictionarySpec,
    objective: &SharedObjective<'_>,
    options: &Options<'_>,
) -> Result<(SharedDictionary, SharingReport)> {
    let weights = check_members(weights)?;
    let members = weights.len();
    objective.check(members, weights[0].ncols())?;
    if spec.groups == 0 || spec.groups > members {
        return Err(Error::parameter("groups", spec.groups, format!("1 to {members}")));
    }
    if spec.atoms < spec.groups || spec.atoms > members {
        return Err(Error::parameter("atoms", spec.atoms, format!("{} to {members}", spec.groups)));
    }
    let run = Run::new(options);
    run.check()?;
    let plain = kernel(&weights, &Objective::Frobenius, &run)?;
    let groups = similar(&plain, spec.groups, &run)?;
    let components = |objective: &Objective<'_>| -> Result<Start> {
        let weighted = if objective.is_plain() { None } else { Some(kernel(&weights, objective, &run)?) };
        let kernel = weighted.as_ref().unwrap_or(&plain);
        let coefficients = principal(kernel, &groups, spec.atoms, run.threads())?;
        let atoms = combine(&weights, &coefficients);
        Ok(Start { coefficients, atoms })
    };
    let (found, known) = match objective {
        SharedObjective::Each(grams) => {
            let mut mean = Gram::new(weights[0].ncols());
            grams.iter().try_for_each(|gram| mean.merge(&Gram::from_second_moment(gram.second_moment())?))?;
            let starts =
                [Objective::Frobenius, Objective::Activations(&mean)].map(|start| components(&start));
            let found =
                alternating::fit(&weights, grams, &groups, starts.into_iter().collect::<Result<_>>()?, &run)?;
            (found.state, (Guarantee::LocalOptimum, found.history))
        }
        common => {
            // Of given groups: which they are is a heuristic.
            let guarantee = if spec.groups == 1 { Guarantee::GlobalOptimum } else { Guarantee::LocalOptimum };
            (components(&common.of(0))?, (guarantee, Vec::new()))
        }
    };
    let shared = SharedAtoms::from_arrays(options.storage, &found.atoms, found.coefficients)?;
    let dictionary = match &spec.residual {
        None => SharedDictionary::new(shared),
        Some(Residual { family, request }) => {
            let family = registry::family(family)?;
            let residual = |(l, w): (usize, &Array2<f64>)| {
                let left = w - &shared.dense(l)?;
                Ok(Some(family.project(&left, request, &objective.of(l), options)?.matrix))
            };
            let residuals = weights.iter().enumerate().map(residual).collect::<Result<_>>()?;
            SharedDictionary::with_residuals(shared, residuals)?
        }
    };
    let known = if spec.residual.is_some() { (Guarantee::LocalOptimum, known.1) } else { known };
    let params = dictionary.n_params();
    let report = SharingReport::measure(&weights, |l| dictionary.array(l), objective, params, known)?;
    Ok((dictionary, report))
}

/// Groups of similar matrices, by their lines: $\cos^2$ of the angle between two matrices says how much of one the best multiple of the
/// other explains. Joined by Ward's method; the group of each, numbered by their first members.
///
/// # Errors
/// [`Error::Shape`], [`Error::NonFinite`], [`Error::Parameter`] for no group or more of them than matrices.
pub fn group_by_similarity<T: Scalar, A: Deref<Target = ArrayRef2<T>>>(
    weights: &[A],
    groups: usize,
) -> Result<Vec<usize>> {
    let weights = check_members(weights)?;
    if groups == 0 || groups > weights.len() {
        return Err(Error::parameter("groups", groups, format!("1 to {}", weights.len())));
    }
    let options = Options::default();
    let run = Run::new(&options);
    similar(&kernel(&weights, &Objective::Frobenius, &run)?, groups, &run)
}

fn similar(kernel: &Array2<f64>, groups: usize, run: &Run<'_>) -> Result<Vec<usize>> {
    let squares = Array2::from_shape_fn(kernel.dim(), |(i, j)| {
        cosine(kernel[[i, j]], (kernel[[i, i]], kernel[[j, j]])).powi(2)
    });
    ward(&squares, groups, run)
}

/// $\langle W_l C, W_{l'} \rangle$.
fn kernel(weights: &[Array2<f64>], objective: &Objective<'_>, run: &Run<'_>) -> Result<Array2<f64>> {
    let mut kernel = Array2::zeros((weights.len(), weights.len()));
    for (l, w) in weights.iter().enumerate() {
        run.check()?;
        let seen = objective.second_moment().map(|c| matmul(w, c, run.threads()));
        let seen = seen.as_ref().unwrap_or(w);
        for (k, other) in weights.iter().enumerate().take(l + 1) {
            let product = Zip::from(seen).and(other).fold(0.0, |sum, a, b| sum + a * b);
            (kernel[[l, k]], kernel[[k, l]]) = (product, product);
        }
    }
    Ok(kernel)
}

/// The eigenvectors of the `atoms` largest eigenvalues of the groups' own kernels, at least one of each group: members x atoms.
fn principal(kernel: &Array2<f64>, groups: &[usize], atoms: usize, threads: Threads) -> Result<Array2<f64>> {
    let count = groups.iter().max().map_or(0, |g| g + 1);
    let mut candidates = Vec::new();
    for group in 0..count {
        let members: Vec<usize> = (0..groups.len()).filter(|&l| groups[l] == group).collect();
        let own = kernel.select(Axis(0), &members).select(Axis(1), &members);
        let linalg::Eigh { values, vectors } = linalg::eigh(&own, threads)?;
        for (k, value) in values.into_iter().enumerate() {
            let mut vector = vec![0.0; groups.len()];
            members.iter().zip(vectors.column(k)).for_each(|(&l, v)| vector[l] = *v);
            // The first of each group comes before all others.
            candidates.push((k > 0, value, vector));
        }
    }
    candidates.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    Ok(Array2::from_shape_fn((groups.len(), atoms), |(l, s)| candidates[s].2[l]))
}

/// $D_s = \sum_l c_{ls} W_l$.
fn combine(weights: &[Array2<f64>], coefficients: &Array2<f64>) -> Vec<Array2<f64>> {
    let atom = |c: ndarray::ArrayView1<'_, f64>| {
        let mut atom = Array2::zeros(weights[0].dim());
        weights.iter().zip(c).filter(|(_, c)| **c != 0.0).for_each(|(w, c)| atom.scaled_add(*c, w));
        atom
    };
    coefficients.columns().into_iter().map(atom).collect()
}
