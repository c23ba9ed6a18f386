//! Weights rebuilt from the subspaces of their outputs.

use super::factors::check_orthonormal;
use crate::error::{Error, Result};
use crate::linalg::{IncrementalPca, Threads, check_finite, eigh, matmul_tn, svd};
use crate::projection::{Family, Gram, Objective, Options};
use crate::storage::Storage;
use crate::structures::{LowRank, LowRankSpec};
use ndarray::{Array2, ArrayRef2, ArrayView2, s};

/// The low-rank weight whose outputs are nearest to those of `w` (`out x in`) on inputs of the second moment $C$: $P P^T W$, with $P$ the `k`
/// leading eigenvectors of $W C W^T$. Without inverses, so that $C$ may be singular; for others it is $U_k \Sigma_k V_k^T S^{-1}$ of the
/// decomposition of $W S$, for any $S S^T = C$. The squared error is the sum of the other eigenvalues.
///
/// That is the projection of [`LowRank`] onto [`Objective::Activations`], which also comes in other storages and is randomized for large
/// matrices; here it is exact, in `f64`. [`output_basis`] and [`project_outputs`] do the same from outputs instead of inputs.
///
/// Source: Q. Wang et al., "Dobi-SVD: Differentiable SVD for LLM Compression and Some New Perspectives", 2025, whose published code takes
/// [`subspace_basis`] for $P$.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// use structmat::training::output_pca;
/// // Nothing ever comes in at the second input, so rank 1 is exact for what does.
/// let gram = Gram::from_second_moment(&array![[1.0, 0.0], [0.0, 0.0]])?;
/// let w = array![[1.0, 5.0], [2.0, -3.0], [3.0, 4.0]];
/// let rebuilt = output_pca(&w, &gram, 1)?;
/// assert!((rebuilt.to_dense::<f64>().column(0).to_owned() - w.column(0)).iter().all(|e| e.abs() < 1e-12));
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// Those of [`Family::project`] for [`LowRank`].
pub fn output_pca(w: &ArrayRef2<f64>, gram: &Gram, k: usize) -> Result<LowRank> {
    let spec = LowRankSpec { rank: k, method: crate::linalg::SvdMethod::Exact, ..Default::default() };
    let options = Options { storage: Storage::F64, ..Options::default() };
    Ok(LowRank::project(w, &spec, &Objective::Activations(gram), &options)?.matrix)
}

/// The `k` leading eigenvectors, `out x k`, of the second moment of outputs: the subspace that loses least of them. `outputs` gathers it
/// batch by batch, [`Gram::accumulate`] with the outputs $A = X W^T$ (`batch x out`) in the place of inputs.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::ndarray::array;
/// use structmat::training::{output_basis, project_outputs};
/// let w = array![[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]];
/// let mut outputs = Gram::new(3);
/// for x in [array![[2.0, 0.1], [1.0, 0.0]], array![[3.0, -0.1]]] {
///     outputs.accumulate(&x.dot(&w.t()))?;
/// }
/// let rebuilt = project_outputs(&w, &output_basis(&outputs, 1)?)?;
/// assert_eq!(rebuilt.rank(), 1);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Parameter`] for a `k` that is not in 1 to `out`, [`Error::NoConvergence`].
pub fn output_basis(outputs: &Gram, k: usize) -> Result<Array2<f64>> {
    let m = outputs.in_features();
    check_count(k, m)?;
    Ok(eigh(outputs.second_moment(), Threads::ONE)?.vectors.slice_move(s![.., ..k]))
}

/// The published basis, `out x k`, for comparison: of each batch of outputs (`batch x out`) the `k` leading right singular vectors, and the
/// `k` leading principal directions of all these vectors together. `centred` subtracts their mean first and goes through the batches
/// incrementally, as the published code does, so that signs of singular vectors count; otherwise the directions are the leading eigenvectors of $\sum_b V_b V_b^T$.
///
/// Either forgets how strong the directions of a batch are, so that [`output_basis`] loses no more of the outputs.
///
/// Source: Q. Wang et al., "Dobi-SVD: Differentiable SVD for LLM Compression and Some New Perspectives", 2025.
///
/// # Errors
/// [`Error::Shape`] without batches, or for batches of different widths, [`Error::Parameter`] for a single batch to be centred, a `k` that is not in 1 to the smallest side of
/// all batches, [`Error::NonFinite`] for NaN or infinities.
pub fn subspace_basis(batches: &[ArrayView2<'_, f64>], k: usize, centred: bool) -> Result<Array2<f64>> {
    let Some(m) = batches.first().map(|batch| batch.ncols()) else {
        return Err(Error::shape("batches", &[1], &[0]));
    };
    if centred && batches.len() < 2 {
        return Err(Error::parameter("batches", batches.len(), "at least 2, to be centred"));
    }
    let (mut pca, mut moment) = (IncrementalPca::new(k), Gram::new(m));
    for batch in batches {
        if batch.ncols() != m {
            return Err(Error::shape("batch of outputs", &[batch.nrows(), m], batch.shape()));
        }
        check_count(k, m.min(batch.nrows()))?;
        let subspace = svd(batch, Threads::ONE)?.truncate(k).vt;
        match centred {
            true => pca.update(&subspace)?,
            false => moment.accumulate(&subspace)?,
        }
    }
    match centred {
        true => Ok(pca.components().t().as_standard_layout().into_owned()),
        false => output_basis(&moment, k),
    }
}

/// $P P^T W$ for an orthonormal basis $P$ (`out x k`) of a subspace of the outputs of `w` (`out x in`), as a low-rank matrix in `f64`.
///
/// # Errors
/// [`Error::Shape`] when the basis is not of as many rows as `w`, [`Error::NonFinite`] for NaN or infinities, [`Error::Parameter`] unless its columns
/// are orthonormal.
pub fn project_outputs(w: &ArrayRef2<f64>, basis: &ArrayRef2<f64>) -> Result<LowRank> {
    if basis.nrows() != w.nrows() {
        return Err(Error::shape("basis", &[w.nrows(), basis.ncols()], basis.shape()));
    }
    check_finite("weight", w)?;
    check_finite("basis", basis)?;
    check_orthonormal("basis", basis)?;
    Ok(LowRank::from_arrays(Storage::F64, &basis.to_owned(), &matmul_tn(basis, w, Threads::ONE)))
}

fn check_count(k: usize, most: usize) -> Result<()> {
    match k > 0 && k <= most {
        true => Ok(()),
        false => Err(Error::parameter("k", k, format!("1 to {most}"))),
    }
}
