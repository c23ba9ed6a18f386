//! Safetensors files: dense checkpoints as they are, structured matrices with a record of their structure.
//!
//! A structured matrix called `NAME` is stored as ordinary tensors `NAME:u`, `NAME:v`, ... (sub-matrices as `NAME:0:u`, ...), and its
//! record as JSON in the file's metadata under `structmat.tensor.NAME`; `structmat.version` is `1`. Any other tool opens the
//! file and finds the factors as tensors of `blocks x rows x cols`:
//!
//! | storage | tensors |
//! |---|---|
//! | f64, f32, bf16, f16 | `F64`, `F32`, `BF16`, `F16` |
//! | int8 | codes `I8`, and `NAME:u.scales` `BF16` with one scale per 32 numbers of a row |
//! | int4 | codes `U8`, two per byte, low nibble first, offset 8; scales as for int8 |
//! | index lists | `U32` |
//!
//! What is no matrix, such as a layer with an activation, has its settings as JSON under `structmat.settings.NAME`.
//!
//! A model may lie in one file ([`Checkpoint`]) or in several with an index ([`Sharded`]); [`Source`] is either, and [`open`] finds out which.
//!
//! Files are memory-mapped and untrusted: headers, names, shapes, lengths and indices are checked before anything is allocated.
//! As with any memory-mapped file, another process that truncates it while it is open can end this one.
//! Writing goes to a temporary file beside the target, which is synced and renamed: a failed or interrupted write leaves the
//! old file whole.
//!
//! ```
//! use structmat::prelude::*;
//! use structmat::io::{Checkpoint, Writer};
//! use structmat::ndarray::array;
//! # fn main() -> structmat::Result<()> {
//! let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("layer.safetensors");
//! let weight = LowRank::new(
//!     Factor::from_matrix(Storage::Bf16, &array![[1.0f32], [2.0]]),
//!     Factor::from_matrix(Storage::Bf16, &array![[3.0f32, 4.0]]),
//! )?;
//! let mut writer = Writer::new();
//! writer.structured("layer.weight", &weight)?;
//! writer.write(&path)?;
//!
//! let again = Checkpoint::open(&path)?.load("layer.weight")?;
//! assert_eq!(again.to_dense::<f32>(), array![[3.0, 4.0], [6.0, 8.0]]);
//! # Ok(()) }
//! ```

mod checkpoint;
mod header;
mod record;
mod sharded;
mod source;
mod staged;
mod writer;

pub use checkpoint::Checkpoint;
pub use sharded::Sharded;
pub(crate) use source::weight;
pub use source::{Source, open};
pub use staged::Staged;
pub use writer::Writer;

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little-endian and are read in place");

/// Metadata key of the format's version.
const VERSION_KEY: &str = "structmat.version";
/// The version written, and the only one read.
const VERSION: &str = "1";
/// Prefix of the metadata keys that hold records.
const RECORD_PREFIX: &str = "structmat.tensor.";
/// Prefix of the metadata keys that hold settings of what is no matrix.
const SETTINGS_PREFIX: &str = "structmat.settings.";
