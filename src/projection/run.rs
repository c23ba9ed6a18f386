//! How a projection runs: seed, threads, storage, progress and cancellation.

use crate::error::{Error, Result};
use crate::exec::Parallelism;
use crate::linalg::Threads;
use crate::random::Gaussian;
use crate::storage::Storage;
use std::fmt::{Debug, Formatter};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a projection stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Iterations done.
    pub done: usize,
    /// Iterations at most.
    pub total: usize,
    /// The objective now, as a relative error, where the method knows it.
    pub error: Option<f64>,
}

/// Settings of a projection that do not belong to a family.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Storage of the result's factors. The error of the report includes its rounding.
    pub storage: Storage,
    /// Seed of every random choice; the same seed gives the same result.
    pub seed: u64,
    /// Threads of the decompositions; `Seq` never touches a thread pool.
    pub parallelism: Parallelism,
    /// Most iterations or sweeps of iterative methods; each family's own default when `None`.
    pub max_iterations: Option<usize>,
    /// Called after each iteration.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Raise it from another thread, or from `progress`, to stop with [`Error::Cancelled`].
    pub cancel: Option<&'a AtomicBool>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            storage: Storage::F32,
            seed: 0,
            parallelism: Parallelism::Seq,
            max_iterations: None,
            progress: None,
            cancel: None,
        }
    }
}

impl Debug for Options<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { storage, seed, parallelism, max_iterations, .. } = self;
        write!(f, "Options {{ {storage}, seed {seed}, {parallelism:?}, max_iterations {max_iterations:?} }}")
    }
}

/// The options as a fit sees them.
#[derive(Debug)]
pub struct Run<'a> {
    options: &'a Options<'a>,
}

impl<'a> Run<'a> {
    /// A run with these options.
    pub fn new(options: &'a Options<'a>) -> Self {
        Self { options }
    }

    /// The options.
    pub(crate) fn options(&self) -> &'a Options<'a> {
        self.options
    }

    /// Storage of the result.
    pub fn storage(&self) -> Storage {
        self.options.storage
    }

    /// Seed of every random choice.
    pub fn seed(&self) -> u64 {
        self.options.seed
    }

    /// Random numbers from the seed; `stream` tells apart the uses within one fit.
    pub(crate) fn gaussian(&self, stream: u64) -> Gaussian {
        Gaussian::new(self.options.seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Threads of the decompositions.
    pub fn threads(&self) -> Threads {
        Threads(self.options.parallelism.tasks())
    }

    /// Iterations at most.
    pub fn max_iterations(&self, default: usize) -> usize {
        self.options.max_iterations.unwrap_or(default)
    }

    /// Whether the caller wants to go on.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when not.
    pub fn check(&self) -> Result<()> {
        match self.options.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    /// Reports an iteration and checks for cancellation.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the caller wants to stop.
    pub fn step(&self, done: usize, total: usize, error: Option<f64>) -> Result<()> {
        if let Some(progress) = self.options.progress {
            progress(Progress { done, total, error });
        }
        self.check()
    }
}
