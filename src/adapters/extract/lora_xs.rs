use super::{Found, check};
use crate::adapters::methods;
use crate::error::Result;
use crate::linalg::{SvdOptions, Threads, matmul, matmul_nt, matmul_tn, truncated_svd};
use ndarray::{Array2, ArrayRef2, Axis};

/// Singular values of the base below this fraction of the largest have no direction worth dividing by.
const LEAST: f64 = 1e-12;

/// `B = U`, `A = diag(σ) Vᵀ` of the leading components of the base, and the core $R = U^T D\, V\, \mathrm{diag}(σ)^{-1}$: since `U` and `V` have
/// orthonormal columns, what is left is orthogonal to every `U R' A`.
pub(super) fn find(base: &ArrayRef2<f64>, delta: &ArrayRef2<f64>, rank: usize) -> Result<Found> {
    let most = base.nrows().min(base.ncols());
    check(rank <= most, rank, || format!("1 to {most}"))?;
    let svd = truncated_svd(base, rank, &SvdOptions::default(), Threads::ONE)?.svd;
    let mut core = matmul_nt(&matmul_tn(&svd.u, delta, Threads::ONE), &svd.vt, Threads::ONE);
    let mut a = svd.vt;
    let least = LEAST * svd.s.first().copied().unwrap_or(0.0);
    for (k, sigma) in svd.s.iter().enumerate() {
        let inverse = if *sigma > least { 1.0 / sigma } else { 0.0 };
        core.index_axis_mut(Axis(1), k).mapv_inplace(|v| v * inverse);
        a.index_axis_mut(Axis(0), k).mapv_inplace(|v| v * sigma);
    }
    // PEFT has no cores: what it reads is the product with the left factor.
    let left: Array2<f64> = matmul(&svd.u, &core, Threads::ONE);
    let adapter = methods::core(&svd.u, &core, &a, 1.0)?;
    Ok(Found::additive(adapter, vec![("lora_A.weight", a.into_dyn()), ("lora_B.weight", left.into_dyn())]))
}
