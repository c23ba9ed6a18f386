//! What the machine can do at most: reading memory, and multiply-adds in registers. The yardsticks of the benches.

use super::level::{Kernel, Level, run};
use super::simd::Simd;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

/// Sums `data`, as fast as it can be read.
pub fn read(level: Level, data: &[f32]) -> f32 {
    run(level, Read(data))
}

/// Does `rounds` rounds of independent multiply-adds in registers; returns how many multiply-adds that were, and a number that
/// depends on all of them.
pub fn multiply_adds(level: Level, rounds: usize) -> (u64, f32) {
    run(level, MultiplyAdds(rounds))
}

/// Hands nothing to another thread and waits until it is done: what each stage of a product on two threads takes beside its work. Whether another
/// thread did it: one that is asleep or busy does not.
pub fn hand_over() -> bool {
    let (here, elsewhere) = (thread::current().id(), AtomicBool::new(false));
    super::team::join(|| (), || elsewhere.store(thread::current().id() != here, Relaxed));
    elsewhere.into_inner()
}

struct Read<'a>(&'a [f32]);

impl Kernel<f32> for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd<f32>>(self, simd: S) -> f32 {
        const STREAMS: usize = 8;
        let step = STREAMS * S::LANES;
        let mut sums = [simd.zero(); STREAMS];
        for chunk in self.0.chunks_exact(step) {
            for (k, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the chunk holds STREAMS vectors.
                *sum = simd.add(*sum, unsafe { simd.load(chunk.as_ptr().add(k * S::LANES)) });
            }
        }
        let total = sums.into_iter().fold(simd.zero(), |a, b| simd.add(a, b));
        simd.sum(total) + self.0.chunks_exact(step).remainder().iter().sum::<f32>()
    }
}

struct MultiplyAdds(usize);

impl Kernel<f32> for MultiplyAdds {
    type Output = (u64, f32);
    #[inline(always)]
    fn run<S: Simd<f32>>(self, simd: S) -> (u64, f32) {
        // Enough chains to hide a latency of 4 cycles on two units, few enough for 16 registers.
        const CHAINS: usize = 12;
        // Opaque: with known numbers the compiler does the sums itself.
        let (a, b, start) = black_box((0.999, 1e-3, 0.5));
        let (a, b) = (simd.splat(a), simd.splat(b));
        let mut sums = [simd.splat(start); CHAINS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.mul_add(*sum, a, b);
            }
        }
        let total = sums.into_iter().fold(simd.zero(), |a, b| simd.add(a, b));
        ((self.0 * CHAINS * S::LANES) as u64, simd.sum(total))
    }
}
