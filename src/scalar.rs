//! The compute types: `f32` and `f64`.

use crate::kernels::{
    GridProduct, Kernel, Level, Mix, PanelProduct, RowScaling, SparseProduct, Spectrum, SpectrumCache,
    TransformPass, WindowProduct,
};
use crate::linalg::{Real, Threads};
use crate::matrix::{Operands, StructuredMatrix};
use crate::storage::Factor;
use ndarray::{Array3, ArrayRef2};
use rustfft::{Fft, FftDirection, FftPlanner};
use std::fmt::Display;
use std::sync::{Arc, OnceLock};

/// A type in which products are computed: `f32` or `f64`.
///
/// Nothing else can be one, as nothing else is [`Real`]: the kernels are instantiated for these two types only.
pub trait Scalar:
    Real
    + Display
    + Default
    + bytemuck::Pod
    + std::ops::MulAssign
    + std::ops::Neg<Output = Self>
    + rustfft::FftNum
{
    /// Runs a kernel compiled for one instruction set level.
    #[doc(hidden)]
    fn dispatch<K: Kernel<Self>>(level: Level, kernel: K) -> K::Output;
    /// A product with the panels of a factor. Compiled for this type in this crate alone: without it, every crate and test that
    /// multiplies would compile all kernels again.
    #[doc(hidden)]
    fn panels(factor: &Factor, product: PanelProduct<'_, Self>);
    /// A product entry by entry with a row of a factor; compiled here for the same reason.
    #[doc(hidden)]
    fn scale(factor: &Factor, scaling: RowScaling<'_, Self>);
    /// Blocks scaled by rows of a factor and added up; likewise.
    #[doc(hidden)]
    fn mix(factor: &Factor, mix: Mix<'_, Self>);
    /// A product with a sparse matrix whose values a factor holds; likewise.
    #[doc(hidden)]
    fn sparse(factor: &Factor, product: SparseProduct<'_, Self>);
    /// A product with a matrix of windows whose numbers a factor holds; likewise.
    #[doc(hidden)]
    fn windows(factor: &Factor, product: WindowProduct<'_, Self>);
    /// A transform of a real row; likewise.
    #[doc(hidden)]
    fn transform(level: Level, pass: TransformPass<'_, Self>);
    /// A product between spectra; likewise.
    #[doc(hidden)]
    fn grid(level: Level, product: GridProduct<'_, Self>);
    /// A complex transform; likewise.
    #[doc(hidden)]
    fn plan_fft(len: usize, direction: FftDirection) -> Arc<dyn Fft<Self>>;
    /// Calls the product of this compute type; the bridge from a generic caller to the trait object.
    #[doc(hidden)]
    fn multiply<M: StructuredMatrix + ?Sized>(matrix: &M, operands: Operands<'_, Self>);
    /// Likewise for gradients.
    #[doc(hidden)]
    fn differentiate<M: StructuredMatrix + ?Sized>(
        matrix: &M,
        x: &ArrayRef2<Self>,
        dy: &ArrayRef2<Self>,
        threads: Threads,
    ) -> Vec<Array3<Self>>;
    /// This type's half of a cache of spectra.
    #[doc(hidden)]
    fn spectrum(cache: &SpectrumCache) -> &OnceLock<Spectrum<Self>>;
}

macro_rules! scalar {
    ($t:ident) => {
        impl Scalar for $t {
            #[inline(always)]
            fn dispatch<K: Kernel<Self>>(level: Level, kernel: K) -> K::Output {
                crate::kernels::run(level, kernel)
            }
            fn panels(factor: &Factor, product: PanelProduct<'_, Self>) {
                factor.panels(product);
            }
            fn scale(factor: &Factor, scaling: RowScaling<'_, Self>) {
                factor.scaling(scaling);
            }
            fn mix(factor: &Factor, mix: Mix<'_, Self>) {
                factor.mixing(mix);
            }
            fn sparse(factor: &Factor, product: SparseProduct<'_, Self>) {
                factor.sparse(product);
            }
            fn windows(factor: &Factor, product: WindowProduct<'_, Self>) {
                factor.windows(product);
            }
            fn transform(level: Level, pass: TransformPass<'_, Self>) {
                pass.run(level);
            }
            fn grid(level: Level, product: GridProduct<'_, Self>) {
                Self::dispatch(level, product);
            }
            fn plan_fft(len: usize, direction: FftDirection) -> Arc<dyn Fft<Self>> {
                FftPlanner::new().plan_fft(len, direction)
            }
            #[inline]
            fn multiply<M: StructuredMatrix + ?Sized>(matrix: &M, operands: Operands<'_, Self>) {
                crate::matrix::Multiply::<$t>::multiply(matrix, operands)
            }
            fn differentiate<M: StructuredMatrix + ?Sized>(
                matrix: &M,
                x: &ArrayRef2<Self>,
                dy: &ArrayRef2<Self>,
                threads: Threads,
            ) -> Vec<Array3<Self>> {
                crate::gradient::Differentiate::<$t>::differentiate(matrix, x, dy, threads)
            }
            #[inline]
            fn spectrum(cache: &SpectrumCache) -> &OnceLock<Spectrum<Self>> {
                &cache.$t
            }
        }
    };
}
scalar!(f32);
scalar!(f64);
