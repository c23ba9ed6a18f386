//! The methods, one file each: from trained numbers to adapters.
//!
//! | method | change of `W` | cost per vector, beside the base's |
//! |---|---|---|
//! | [`lora`], [`scaled_lora`] | $B\,\mathrm{diag}(s) A$ | $r (m + n)$ |
//! | [`stacked_lora`], [`multi_lora`], [`Pyramid`], [`Cola`], [`capaboost`] | sums of low-rank changes | that of LoRA of all ranks |
//! | [`loha`] | $s\,(A_1 B_1) \circ (A_2 B_2)$ | $r^2 (m + n)$, at most $mn$ |
//! | [`lokr`] | $s\,A \otimes B$ | two small products |
//! | [`fourier_ft`] | $s\,\mathrm{Re}\,\mathrm{ifft2}$ of a sparse spectrum | two transforms |
//! | [`wave_ft`] | inverse wavelet transform of a sparse matrix | $O(m + n)$ filters |
//! | [`c3a`] | grid of circulant blocks | transforms of blocks |
//! | [`gralora`] | grid of low-rank blocks | $r (m + n)$ |
//! | [`miss`] | folded inputs | $n + r m$ |
//! | [`core`], [`TuckerStack`], [`Skeleton`], [`qr_lora`], [`spectral_rotation`] | $s B R A$ in frozen bases | $r (m + n)$ |
//! | [`SpectralAdditive`] | $(U + E_U)\,\Sigma (V + E_V)^T - U \Sigma V^T$ | $2 r (m + n)$ |
//! | [`Dota`] | cores of a tensor train beside a residual | that of the train |
//! | [`CpKernel`], [`conv_lora`] | of convolution kernels | $r (m + n)$; thin convolutions |
//! | [`phm`] | sum of Kronecker products | small products |
//! | [`diablo`] | block-diagonal | $mn / N$ |
//! | [`sparse_delta`] | entries | one per entry |
//! | [`oft`], [`boft`] | $W R$, block rotations | $n b$ per factor |
//! | [`hra`] | $W \prod (I - 2 u u^T)$ | $2 n r$ |
//! | [`road`] | pairs of outputs rotated | $2 m$ |
//! | [`scaling`] | $\mathrm{diag}(l) W \mathrm{diag}(r)$ | $m + n$ |
//! | [`Dora`] | rows of $W + D$ rescaled | that of $D$, and $m$ |
//! | [`Hadamard`] | $W \circ (B A)$ | $mn$, made when bound |
//! | [`Bat`] | $W_{oi} B_o + B_o$ | $mn$, made when bound |
//! | [`Spectral`], [`vector_fit`] | singular values or vectors of `W` | low-rank |
//! | [`deft`] | a subspace of the outputs replaced | $r (3 m + n)$ |
//! | [`Glora`], [`Frod`], [`Peanut`] | see there | |

mod bat;
mod boft;
mod c3a;
mod capaboost;
mod cola;
mod conv_lora;
mod core;
mod cp_kernel;
mod deft;
mod diablo;
mod dora;
mod dota;
mod fourier_ft;
mod frod;
mod glora;
mod gralora;
mod hadamard;
mod hra;
mod loha;
mod lokr;
mod lora;
mod miss;
mod multi_lora;
mod oft;
mod peanut;
mod phm;
mod pointwise;
mod pyramid;
mod qr_lora;
mod road;
mod scaling;
mod skeleton;
mod sparse_delta;
mod spectral;
mod spectral_additive;
mod spectral_rotation;
mod tokens;
mod tucker;
mod vector_fit;
mod wave_ft;
mod wavelets;

pub use crate::activation::Activation;
pub use bat::Bat;
pub use boft::boft;
pub use c3a::c3a;
pub use capaboost::{CapaDensity, CapaMasks, capaboost};
pub use cola::{Cola, ColaMerged, ColaSettings};
pub use conv_lora::conv_lora;
pub use core::{core, core_gradient, lora_xs_basis, nearest_core, shared_core};
pub use cp_kernel::CpKernel;
pub use deft::{DeftForm, deft};
pub use diablo::diablo;
pub use dora::Dora;
pub(crate) use dora::magnitudes_over_norms;
pub use dota::Dota;
pub use fourier_ft::fourier_ft;
pub use frod::Frod;
pub use glora::{Glora, Path};
pub use gralora::gralora;
pub use hadamard::Hadamard;
pub use hra::hra;
pub use loha::loha;
pub use lokr::lokr;
pub(crate) use lora::low_rank;
pub use lora::{lora, scaled_lora, stacked_lora};
pub use miss::miss;
pub use multi_lora::multi_lora;
pub use oft::{Rotation, oft, skew};
pub use peanut::Peanut;
pub use phm::phm;
pub use pointwise::Pointwise;
pub use pyramid::Pyramid;
pub use qr_lora::{qr_basis, qr_lora};
pub use road::{RoadVariant, road};
pub use scaling::scaling;
pub use skeleton::{Skeleton, SkeletonBasis};
pub use sparse_delta::sparse_delta;
pub use spectral::{Component, Spectral};
pub use spectral_additive::{SpectralAdditive, SpectralChange};
pub use spectral_rotation::spectral_rotation;
pub use tokens::Tokens;
pub use tucker::TuckerStack;
pub use vector_fit::vector_fit;
pub use wave_ft::wave_ft;
pub use wavelets::Wavelet;

use super::Boxed;
use crate::error::{Error, Result};
use crate::scalar::Scalar;
use crate::storage::{Factor, Storage};
use crate::structures::Dense;
use ndarray::{Array2, ArrayRef2};

/// The storage that keeps numbers of a type exactly.
fn storage_of<T: Scalar>() -> Storage {
    if size_of::<T>() == 4 { Storage::F32 } else { Storage::F64 }
}

/// A dense matrix of derived numbers, in single precision; they may be NaN where the base is.
fn dense(w: &ArrayRef2<f64>) -> Result<Boxed> {
    Ok(Box::new(Dense::from_factor(Factor::from_matrix(Storage::F32, w))?))
}

/// A vector as the factor of a diagonal, in single precision.
fn row(values: impl IntoIterator<Item = f64>) -> Factor {
    let values: Vec<f64> = values.into_iter().collect();
    Factor::from_fn(Storage::F32, (1, 1, values.len()), |_, _, k| values[k])
}

/// [`Error::Shape`] unless `a` has this shape.
fn expect<T>(what: &'static str, a: &ArrayRef2<T>, (m, n): (usize, usize)) -> Result<()> {
    match a.dim() {
        shape if shape == (m, n) => Ok(()),
        (rows, cols) => Err(Error::shape(what, &[m, n], &[rows, cols])),
    }
}

/// The rectangle `rows x cols` of `a` that starts at `(i, j)`.
fn block(a: &ArrayRef2<f64>, (i, j): (usize, usize), (rows, cols): (usize, usize)) -> Array2<f64> {
    a.slice(ndarray::s![i..i + rows, j..j + cols]).to_owned()
}
