//! The generator whose draws PEFT repeats instead of storing them, as PyTorch uses it on the CPU.

use std::collections::HashMap;

const N: usize = 624;
const M: usize = 397;
/// PyTorch permutes fewer elements than this in place, with 32-bit draws.
const SMALL: u64 = 214_748_364;

/// The seed of positions where a folder names none.
pub(crate) const SEED: usize = 777;

/// The Mersenne Twister of M. Matsumoto and T. Nishimura, 1998, with its standard 32-bit seeding.
pub(crate) struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    pub(crate) fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ last >> 30).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    pub(crate) fn u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % N] & 0x7fff_ffff;
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ y >> 1 ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    fn u64(&mut self) -> u64 {
        let high = u64::from(self.u32());
        high << 32 | u64::from(self.u32())
    }

    /// Uniform in `[-bound, bound)`, of 24 random bits, in single precision.
    pub(crate) fn uniform(&mut self, bound: f32) -> f32 {
        let (low, high) = (-bound, bound);
        (self.u32() & 0xff_ffff) as f32 * (1.0 / (1 << 24) as f32) * (high - low) + low
    }

    /// The first `count` numbers of `torch.randperm(n)`.
    pub(crate) fn permutation(&mut self, n: u64, count: usize) -> Vec<u64> {
        let count = count.min(usize::try_from(n).unwrap_or(usize::MAX));
        if n < SMALL {
            // An entry is final after its step: only displaced ones are kept.
            let mut moved: HashMap<u64, u64> = HashMap::new();
            return (0..count as u64)
                .map(|i| {
                    let at = if i + 1 < n { i + u64::from(self.u32()) % (n - i) } else { i };
                    let own = moved.get(&i).copied().unwrap_or(i);
                    let drawn = moved.insert(at, own).unwrap_or(at);
                    if at == i { own } else { drawn }
                })
                .collect();
        }
        let mut all: Vec<u32> = Vec::with_capacity(n as usize);
        for i in 0..n {
            let at = self.u64() % (i + 1);
            all.push(i as u32);
            all[i as usize] = all[at as usize];
            all[at as usize] = i as u32;
        }
        all.truncate(count);
        all.into_iter().map(u64::from).collect()
    }
}

/// The first `count` places (row, column) of a seeded permutation of a matrix, as PEFT draws them; `None` when it has fewer entries than that, or
/// more than 2^32.
pub(crate) fn drawn_positions(
    (m, n): (usize, usize),
    count: usize,
    seed: usize,
) -> Option<Vec<(usize, usize)>> {
    let all = (m as u64).checked_mul(n as u64).filter(|all| count as u64 <= *all && *all <= 1 << 32)?;
    // PyTorch seeds the 32-bit generator with the low half.
    let drawn = Mt19937::new(seed as u32).permutation(all, count);
    Some(drawn.into_iter().map(|at| ((at / n as u64) as usize, (at % n as u64) as usize)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_the_reference() {
        // The 10000th number of the default seed, as the C++ standard states it.
        let mut generator = Mt19937::new(5489);
        let last = (0..10_000).map(|_| generator.u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn a_permutation_names_each_number_once() {
        let mut all = Mt19937::new(7).permutation(1000, 1000);
        assert_eq!(all[..10], Mt19937::new(7).permutation(1000, 10));
        all.sort();
        assert!(all.into_iter().eq(0..1000));
    }
}
