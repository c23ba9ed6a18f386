//! How a product runs: scratch memory owned by the caller, number of threads, instruction set.
//!
//! Every size threshold of the crate lives here, by name.

use crate::kernels::{AlignedVec, Level, RowsMut, team_width};
use crate::scalar::Scalar;

/// Multiply-adds that a further thread must have to do: one core does these in a quarter of a microsecond at batch 1, twice what handing
/// work to a thread that is awake takes.
pub const MIN_WORK_PER_THREAD: usize = 1 << 14;

/// Scratch rows start at multiples of this many entries (64 bytes of `f32`), so that vector loads are aligned.
pub const SCRATCH_ALIGN: usize = 16;

/// Whether a product may use more than one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parallelism {
    /// The calling thread only; no other is ever touched or started.
    #[default]
    Seq,
    /// Up to this many tasks. Inside a rayon pool (`pool.install`) they run on that pool. Elsewhere they run on threads of this crate: started by
    /// the first product that is split, one less than the machine runs at once, awake for 100 us after each piece of work, then
    /// asleep. `0` counts as the number of threads there are.
    Threads(usize),
}

impl Parallelism {
    /// Number of tasks that work may be split into, at least 1.
    pub fn tasks(self) -> usize {
        match self {
            Parallelism::Seq => 1,
            Parallelism::Threads(0) if rayon::current_thread_index().is_some() => {
                rayon::current_num_threads()
            }
            Parallelism::Threads(0) => team_width(),
            Parallelism::Threads(n) => n,
        }
    }
}

/// The copyable part of [`Exec`]: threads and instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Threads.
    pub parallelism: Parallelism,
    /// Instruction set.
    pub level: Level,
}

impl Default for Policy {
    fn default() -> Self {
        Self { parallelism: Parallelism::Seq, level: Level::detected() }
    }
}

impl Policy {
    /// Number of tasks for `work` multiply-adds.
    pub(crate) fn tasks(&self, work: usize) -> usize {
        match self.parallelism {
            Parallelism::Seq => 1,
            _ if work < 2 * MIN_WORK_PER_THREAD => 1,
            threads => threads.tasks().min(work / MIN_WORK_PER_THREAD),
        }
    }
}

/// Scratch memory and policy of a caller; keep one per thread of yours and reuse it.
///
/// Beside it, a product with four batch rows or more uses up to 200 KiB of stack in `f32` and 400 KiB in `f64`, on each of its threads; one with
/// integer codes 70 KiB at fewer rows, too.
///
/// The scratch grows to what the largest product asked for and stays: after the first call of a shape, no
/// call allocates.
///
/// ```
/// use structmat::prelude::*;
/// let mut exec = Exec::<f32>::new();             // one thread
/// let mut two = Exec::<f32>::threads(2);         // up to two tasks
/// # let _ = (&mut exec, &mut two);
/// ```
#[derive(Debug, Default)]
pub struct Exec<T: Scalar> {
    scratch: AlignedVec<T>,
    policy: Policy,
}

impl<T: Scalar> Exec<T> {
    /// One thread, the best instruction set of the machine.
    pub fn new() -> Self {
        Self::default()
    }

    /// Up to `n` tasks; 0 for as many as there are threads. See [`Parallelism::Threads`].
    pub fn threads(n: usize) -> Self {
        Self::new().with_parallelism(Parallelism::Threads(n))
    }

    /// The same scratch with another parallel policy.
    pub fn with_parallelism(mut self, parallelism: Parallelism) -> Self {
        self.policy.parallelism = parallelism;
        self
    }

    /// The same scratch with another instruction set. A level that the machine lacks runs the portable code.
    pub fn with_level(mut self, level: Level) -> Self {
        self.policy.level = level;
        self
    }

    /// Threads and instruction set.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// A workspace of at least `len` entries; allocates when the scratch is smaller than that.
    pub(crate) fn workspace(&mut self, len: usize) -> Workspace<'_, T> {
        if self.scratch.len() < len {
            self.scratch = AlignedVec::zeroed(len);
        }
        Workspace { scratch: &mut self.scratch, policy: self.policy }
    }
}

/// Distance of the rows of a panel of scratch: an odd number of lines, so that what lies one below the other has places of its own in a cache.
fn row_stride(cols: usize) -> usize {
    (cols.div_ceil(SCRATCH_ALIGN) | 1).saturating_mul(SCRATCH_ALIGN)
}

/// Scratch handed down through a product, and the policy.
#[derive(Debug)]
pub struct Workspace<'a, T> {
    scratch: &'a mut [T],
    /// Threads and instruction set.
    pub policy: Policy,
}

impl<'a, T: Scalar> Workspace<'a, T> {
    /// A workspace over a slice.
    pub fn new(scratch: &'a mut [T], policy: Policy) -> Self {
        Self { scratch, policy }
    }

    /// Entries that [`matrix`](Self::matrix) takes for a `rows x cols` panel.
    pub fn matrix_len(rows: usize, cols: usize) -> usize {
        rows.saturating_mul(row_stride(cols))
    }

    /// Entries that [`slice`](Self::slice) takes for `len`.
    pub fn slice_len(len: usize) -> usize {
        len.checked_next_multiple_of(SCRATCH_ALIGN).unwrap_or(usize::MAX)
    }

    /// Takes an aligned `rows x cols` panel (contents unspecified), leaving the rest of the scratch.
    ///
    /// Panics when the scratch is shorter than `scratch_len` promised.
    pub fn matrix(self, rows: usize, cols: usize) -> (RowsMut<'a, T>, Workspace<'a, T>) {
        let (data, rest) = self.scratch.split_at_mut(Self::matrix_len(rows, cols));
        let stride = row_stride(cols);
        (RowsMut::new(data, rows, cols, stride), Workspace { scratch: rest, policy: self.policy })
    }

    /// Takes an aligned slice (contents unspecified), leaving the rest of the scratch.
    pub fn slice(self, len: usize) -> (&'a mut [T], Workspace<'a, T>) {
        let (data, rest) = self.scratch.split_at_mut(Self::slice_len(len));
        (&mut data[..len], Workspace { scratch: rest, policy: self.policy })
    }

    /// The same workspace for a shorter time.
    pub fn reborrow(&mut self) -> Workspace<'_, T> {
        Workspace { scratch: self.scratch, policy: self.policy }
    }
}
