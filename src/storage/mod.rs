//! How numbers lie in memory, independently of the structure they belong to.
//!
//! | storage | bits per number | decoded as |
//! |---|---|---|
//! | [`F64`](Storage::F64), [`F32`](Storage::F32) | 64, 32 | itself |
//! | [`Bf16`](Storage::Bf16), [`F16`](Storage::F16) | 16 | widened in registers |
//! | [`Int8`](Storage::Int8) | 8.5 | code x scale of its group |
//! | [`Int4`](Storage::Int4) | 4.5 | code x scale of its group |
//!
//! Integer storage has one bf16 scale per group of [`GROUP`] consecutive numbers of a row; the last group of a row may
//! be shorter. All storages are float-exact: numbers are decoded and accumulated in the compute type, inputs are
//! never rounded to codes. Where the machine multiplies bytes (AVX-512 with VNNI and VBMI), `f32` products of at most 12 batch rows with
//! integer codes whose groups lie along the sums are sums of integers: inputs are kept to $2^{-30}$ of the largest one of their group of
//! [`GROUP`], and products of a group are added up exactly. Inputs of very unlike sizes near each other (more than 8 of 64 below $2^{-10}$ of
//! the largest), or not finite, have their products decoded. Where groups lie across the sums, as in right factors of `Blast`, the same
//! holds for inputs times scales in products of one row, but for `int8` weights too large for the caches.

mod factor;
mod quantize;

pub use factor::{Data, Factor};
pub(crate) use quantize::Codes;
pub use quantize::GROUP;

use crate::error::{Error, Result};

/// A storage format for the factors of a structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Storage {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// The upper half of an `f32`: 8 exponent, 7 fraction bits.
    Bf16,
    /// IEEE half precision: 5 exponent, 10 fraction bits; values beyond 65504 saturate.
    F16,
    /// Codes -127..=127 and one scale per group.
    Int8,
    /// Codes -7..=7, two per byte, and one scale per group, chosen for the least squared error.
    Int4,
}

impl Storage {
    /// Every storage.
    pub const ALL: [Storage; 6] =
        [Storage::F64, Storage::F32, Storage::Bf16, Storage::F16, Storage::Int8, Storage::Int4];

    /// The name used in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Storage::F64 => "f64",
            Storage::F32 => "f32",
            Storage::Bf16 => "bf16",
            Storage::F16 => "f16",
            Storage::Int8 => "int8",
            Storage::Int4 => "int4",
        }
    }

    /// Bytes of a `rows x cols` matrix, scales included.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        let scales = 2 * cols.div_ceil(GROUP);
        rows * match self {
            Storage::F64 => 8 * cols,
            Storage::F32 => 4 * cols,
            Storage::Bf16 | Storage::F16 => 2 * cols,
            Storage::Int8 => cols + scales,
            Storage::Int4 => cols.div_ceil(2) + scales,
        }
    }

    /// Bytes of long rows, as a fraction of those of `f32`.
    pub fn relative_to_f32(self) -> f64 {
        self.bytes(1, GROUP) as f64 / Storage::F32.bytes(1, GROUP) as f64
    }
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Storage {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|storage| storage.name() == name).ok_or_else(|| Error::Unknown {
            kind: "storage",
            name: name.to_owned(),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}
