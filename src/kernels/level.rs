//! Instruction-set levels: detection, override, and the one place that enters compiled-for-a-level code.

use super::simd::{Avx2, Avx512, Portable, Simd};
use crate::error::{Error, Result};
use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust, on every machine.
    Portable,
    /// x86-64 with AVX2, POPCNT, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL; with VNNI and VBMI for products with integer codes, where the machine has those, too.
    Avx512,
}

impl Level {
    /// Every level, least capable first.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        static BEST: OnceLock<Level> = OnceLock::new();
        self <= *BEST
            .get_or_init(|| Self::ALL.into_iter().rfind(|level| level.found()).unwrap_or(Level::Portable))
    }

    /// Whether the machine says that it has it.
    fn found(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("popcnt")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.found()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The levels that this machine can run, least capable first.
    pub fn available() -> impl Iterator<Item = Level> {
        Self::ALL.into_iter().filter(|level| level.is_available())
    }

    /// The level used by default: the best that the machine has, or the one that the environment variable
    /// `STRUCTMAT_SIMD` (`portable`, `avx2`, `avx512`) names, where the machine has it. Read once.
    pub fn detected() -> Level {
        static DETECTED: OnceLock<Level> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            std::env::var("STRUCTMAT_SIMD")
                .ok()
                .and_then(|name| name.parse::<Level>().ok())
                .filter(|level| level.is_available())
                .or_else(|| Self::available().last())
                .unwrap_or(Level::Portable)
        })
    }

    /// Whether vectors find numbers among others in registers.
    pub(crate) fn finds(self) -> bool {
        self == Level::Avx512
    }

    /// The name used by `STRUCTMAT_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Level {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name).ok_or_else(|| Error::Unknown {
            kind: "instruction set level",
            name: name.to_owned(),
            expected: "portable, avx2 or avx512".to_owned(),
        })
    }
}

/// Work written once for every level. `run` must be `#[inline(always)]`, so that it is compiled inside the method that enables the
/// level's instructions. Those are methods of the work and not functions, because the compiler groups what it optimises by the type.
#[doc(hidden)]
pub trait Kernel<T>: Sized {
    /// What it returns.
    type Output;
    /// Does the work with the vectors of `S`.
    fn run<S: Simd<T>>(self, simd: S) -> Self::Output;

    /// Does it with what every machine has.
    #[inline(never)]
    fn run_portable(self) -> Self::Output
    where
        Portable: Simd<T>,
    {
        self.run(Portable)
    }

    /// Does it with [`Level::Avx2`].
    ///
    /// # Safety
    /// The machine has the level.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,popcnt,fma,f16c")]
    unsafe fn run_avx2(self) -> Self::Output
    where
        Avx2: Simd<T>,
    {
        // SAFETY: the caller's.
        self.run(unsafe { Avx2::new_unchecked() })
    }

    /// Does it with [`Level::Avx512`].
    ///
    /// # Safety
    /// The machine has the level.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,popcnt,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn run_avx512(self) -> Self::Output
    where
        Avx512: Simd<T>,
    {
        // SAFETY: the caller's.
        self.run(unsafe { Avx512::new_unchecked() })
    }
}

/// Runs `kernel` at `level`, or at the portable level where the machine lacks it.
#[inline]
pub(crate) fn run<T, K: Kernel<T>>(level: Level, kernel: K) -> K::Output
where
    Portable: Simd<T>,
    Avx2: Simd<T>,
    Avx512: Simd<T>,
{
    match level {
        // SAFETY: availability is checked by the match guard.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if level.is_available() => unsafe { kernel.run_avx512() },
        // SAFETY: availability is checked by the match guard.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 if level.is_available() => unsafe { kernel.run_avx2() },
        _ => kernel.run_portable(),
    }
}
