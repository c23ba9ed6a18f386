//! What the machine can do at most, measured in the same run, and how large its caches are.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;
use structmat::kernels::{AlignedVec, Level, roofline};

/// The most cache that cold runs reckon with: copies of four times as much then take 1 GiB for each candidate.
const MOST_CACHE: usize = 256 << 20;
/// Size that is read for the bandwidth of memory, at least four times [`MOST_CACHE`] where the machine has that much.
const FROM_MEMORY: usize = 1 << 28;

/// What the machine was measured to do.
#[derive(Default)]
pub struct Machine {
    /// Multiply-adds x 2 per second, by threads.
    peak: HashMap<usize, f64>,
    /// Bytes per second, by threads and the power of two at or above the size read.
    bandwidth: HashMap<(usize, usize), f64>,
}

impl Machine {
    fn peak(&mut self, threads: usize) -> f64 {
        *self.peak.entry(threads).or_insert_with(|| {
            together(threads, |_| {
                2.0 * black_box(roofline::multiply_adds(Level::detected(), 2_000_000)).0 as f64
            })
        })
    }

    /// Bandwidth of reading `bytes` again and again.
    fn bandwidth(&mut self, threads: usize, bytes: usize) -> f64 {
        let most = FROM_MEMORY.max(4 * last_level_cache(threads)).next_power_of_two();
        let size = bytes.next_power_of_two().clamp(1 << 14, most);
        *self.bandwidth.entry((threads, size)).or_insert_with(|| {
            // On the pages on which weights lie.
            let data = AlignedVec::from_fn(size / 4, |_| 1.0f32);
            let passes = ((1 << 27) / size).max(1);
            let parts: Vec<&[f32]> = data.chunks(data.len().div_ceil(threads)).collect();
            together(threads, |k| {
                for _ in 0..passes {
                    black_box(roofline::read(Level::detected(), black_box(parts[k])));
                }
                (passes * size_of_val(parts[k])) as f64
            })
        })
    }

    /// The least seconds for reading `bytes` of weights and doing `flops`, and what binds.
    pub fn limit(&mut self, threads: usize, bytes: usize, flops: u64, cold: bool) -> (f64, &'static str) {
        let reading = bytes as f64 / self.bandwidth(threads, if cold { usize::MAX >> 1 } else { bytes });
        let computing = flops as f64 / self.peak(threads);
        if reading > computing { (reading, "bytes") } else { (computing, "flops") }
    }

    /// What was measured, as a list.
    pub fn text(&self) -> String {
        let mut text = "\n## Limits measured in this run\n\n".to_owned();
        let mut peaks: Vec<_> = self.peak.iter().collect();
        peaks.sort_by_key(|(threads, _)| **threads);
        for (threads, peak) in peaks {
            text += &format!("- arithmetic, {threads} thread(s): {:.0} GFLOP/s\n", peak / 1e9);
        }
        let mut rates: Vec<_> = self.bandwidth.iter().collect();
        rates.sort_by_key(|(key, _)| **key);
        for ((threads, size), rate) in rates {
            text += &format!("- reading {} KiB, {threads} thread(s): {:.0} GB/s\n", size >> 10, rate / 1e9);
        }
        if self.peak.keys().any(|threads| *threads > 1)
            && let Some(seconds) = hand_over()
        {
            text +=
                &format!("- nothing for another thread to do, until it is done: {:.2} us\n", 1e6 * seconds);
        }
        text + &format!("- last-level cache of one thread: {} MiB\n", last_level_cache(1) >> 20)
    }
}

/// Seconds until another thread that is awake has done nothing: the median of many times.
fn hand_over() -> Option<f64> {
    let mut times: Vec<_> = (0..10_000)
        .filter_map(|_| {
            let start = Instant::now();
            roofline::hand_over().then(|| start.elapsed().as_secs_f64())
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

/// What `threads` threads do together per second, each doing `work(k)`: nearly the best of seven rounds.
fn together(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    let start = Barrier::new(threads);
    let round = |k: usize| {
        start.wait();
        let begun = Instant::now();
        let done = work(k);
        (done, begun.elapsed().as_secs_f64())
    };
    let mut rates = [0.0; 7];
    for rate in &mut rates {
        let results: Vec<(f64, f64)> = std::thread::scope(|scope| {
            let round = &round;
            let others: Vec<_> = (1..threads).map(|k| scope.spawn(move || round(k))).collect();
            let own = round(0);
            others.into_iter().filter_map(|other| other.join().ok()).chain([own]).collect()
        });
        let slowest = results.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
        *rate = results.iter().map(|(done, _)| done).sum::<f64>() / slowest;
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() - 2]
}

/// Bytes of last-level cache that `threads` threads can fill: the largest one, or all of them together. 32 MiB where the system
/// does not say.
fn last_level_cache(threads: usize) -> usize {
    let read = |path: &Path, name: &str| std::fs::read_to_string(path.join(name)).ok();
    let mut caches = BTreeMap::new();
    for cpu in 0.. {
        let folder = format!("/sys/devices/system/cpu/cpu{cpu}/cache");
        let last =
            (0..8).rev().map(|k| Path::new(&folder).join(format!("index{k}"))).find(|path| path.exists());
        let Some(last) = last else { break };
        let size = read(&last, "size").and_then(|text| text.trim().strip_suffix('K')?.parse::<usize>().ok());
        caches.insert(read(&last, "shared_cpu_list"), size.unwrap_or(0) << 10);
    }
    let bytes: usize =
        if threads == 1 { caches.into_values().max().unwrap_or(0) } else { caches.into_values().sum() };
    if bytes == 0 { 32 << 20 } else { bytes.min(MOST_CACHE) }
}

/// How many copies of `bytes` come from memory when used in turn: they fill four times the last-level cache. One when warm.
pub fn copies(bytes: usize, threads: usize, cold: bool) -> usize {
    if cold { (4 * last_level_cache(threads)).div_ceil(bytes.max(1)).max(2) } else { 1 }
}
