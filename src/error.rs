//! The one error type of the crate.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Each variant says what was given and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array has the wrong shape for the operation.
    #[error("{what}: expected shape {expected:?}, received {received:?}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// The shape that fits.
        expected: Vec<usize>,
        /// The shape that was given.
        received: Vec<usize>,
    },
    /// A weight, Gram matrix or activation holds NaN or an infinity.
    #[error("{what} holds a non-finite value ({value}) at row {row}, column {col}")]
    NonFinite {
        /// Which array.
        what: &'static str,
        /// Row of the first offending entry.
        row: usize,
        /// Column of the first offending entry.
        col: usize,
        /// The value found there.
        value: f64,
    },
    /// A Gram matrix is not symmetric positive semi-definite.
    #[error("the Gram matrix is not positive semi-definite: {0}")]
    NotPositiveSemiDefinite(String),
    /// A parameter of a structure (rank, blocks, density, ...) is out of range or cannot be read.
    #[error("parameter `{name}` = {received}: expected {expected}")]
    Parameter {
        /// Name of the parameter.
        name: String,
        /// What was given.
        received: String,
        /// What would have been accepted.
        expected: String,
    },
    /// No member of the family is as small as the budget asks.
    #[error(
        "budget too small for {structure} at {out_features} x {in_features}: {budget} given, the smallest member needs {minimum}"
    )]
    Budget {
        /// Name of the structure.
        structure: String,
        /// Rows of the weight.
        out_features: usize,
        /// Columns of the weight.
        in_features: usize,
        /// The budget as given.
        budget: String,
        /// The least budget that would do.
        minimum: String,
    },
    /// A name (structure, storage, tensor, ...) is not known.
    #[error("unknown {kind} `{name}`: expected {expected}")]
    Unknown {
        /// What kind of thing was named.
        kind: &'static str,
        /// The name given.
        name: String,
        /// The names that exist.
        expected: String,
    },
    /// The operation is not defined for this structure.
    #[error("{structure}: {what}")]
    Unsupported {
        /// Name of the structure.
        structure: String,
        /// What cannot be done, and what can.
        what: String,
    },
    /// A decomposition did not converge.
    #[error("{0} did not converge")]
    NoConvergence(&'static str),
    /// The caller's cancellation flag was raised.
    #[error("cancelled by the caller")]
    Cancelled,
    /// A file is truncated, corrupt, hostile, or not of the expected layout.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A stored structure is inconsistent.
    #[error("malformed {structure} record: {reason}")]
    Record {
        /// Name of the structure.
        structure: String,
        /// What is wrong.
        reason: String,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// A [`Error::Shape`] for a matrix.
    pub fn shape(what: &'static str, expected: &[usize], received: &[usize]) -> Self {
        Self::Shape { what, expected: expected.to_vec(), received: received.to_vec() }
    }

    /// A [`Error::Parameter`] from anything printable.
    pub fn parameter(name: impl Into<String>, received: impl ToString, expected: impl Into<String>) -> Self {
        Self::Parameter { name: name.into(), received: received.to_string(), expected: expected.into() }
    }

    /// A [`Error::Record`].
    pub fn record(structure: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Record { structure: structure.into(), reason: reason.into() }
    }
}
