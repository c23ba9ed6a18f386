//! What runs: the only place with `unsafe` code.
//!
//! Algorithms are written once over `Simd` (vectors of a level) and `Source` (decoding of a storage);
//! `level.rs` enters the code compiled for a level. Public functions here are safe and check their arguments.

mod aligned;
mod batches;
#[cfg(target_arch = "x86_64")]
mod digits;
/// Other machines have no level that multiplies bytes.
#[cfg(not(target_arch = "x86_64"))]
mod digits {
    use super::gemm::Job;
    pub(super) fn serves<T, W>(_: &Job<'_, T, W>, _: super::Level) -> bool {
        false
    }
    pub(super) fn multiply<T, W>(_: &Job<'_, T, W>) {}
}
mod fft;
mod file_map;
mod gemm;
mod interleave;
mod level;
mod mix;
mod narrow;
mod packing;
#[cfg(target_os = "linux")]
mod pages;
mod panel_map;
mod panels;

pub mod roofline;
pub(crate) mod simd;
mod small;
pub(crate) mod source;
mod sparse;
mod spectral;
mod team;
mod view;

pub use aligned::AlignedVec;
pub(crate) use batches::ROWS as ROWS_TOGETHER;
pub use level::{Kernel, Level};
pub use view::{Rows, RowsMut};

pub(crate) use fft::{Cosine, RealFft, fft2};
#[doc(hidden)]
pub use fft::{SparseSpectrum, Spectrum, SpectrumCache};
pub(crate) use file_map::map_file;
#[doc(hidden)]
pub use gemm::{PanelProduct, RowScaling};
pub(crate) use gemm::{multiply, scale};
pub(crate) use interleave::interleave;
pub(crate) use level::run;
#[doc(hidden)]
pub use mix::Mix;
pub(crate) use mix::mix;
pub(crate) use packing::{Lanes, PANEL, Packing, SLACK};
pub use panel_map::PanelMap;
pub(crate) use sparse::{
    Before, CACHED, gathers, multiply_sparse, multiply_windows, sparse_cost, sparse_scratch_len, takes_slices,
};
#[doc(hidden)]
pub use sparse::{Pattern, Sliced, SparseProduct, WindowProduct, WindowTiles, Windows};
pub(crate) use spectral::{BlockTransform, Convolution, Layout, Transform, bins_len, spectrum_len};
#[doc(hidden)]
pub use spectral::{GridProduct, SpectrumGrid, TransformPass};
pub(crate) use team::{join, width as team_width};
