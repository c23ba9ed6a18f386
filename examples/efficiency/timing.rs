//! Answers checked, then times taken in turns.

use crate::candidates::Candidate;
use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;
use structmat::ndarray::{Array2, s};
use structmat::{Error, Result};

/// The middle of sorted times, and half the distance between the quartiles as a fraction of it.
pub fn middle(sorted: &[f64]) -> (f64, f64) {
    let median = sorted[sorted.len() / 2];
    (median, (sorted[sorted.len() * 3 / 4] - sorted[sorted.len() / 4]) / (2.0 * median))
}

/// Products after which a shared cache holds weights that others drove out: a second or third pass still reads some of them from memory.
const FILLS: usize = 3;

/// Sorted times of each candidate, in seconds per product.
pub fn time_in_turns(
    candidates: &mut [Candidate],
    x: &Array2<f32>,
    y: &mut Array2<f32>,
    quick: bool,
) -> Result<Vec<Vec<f64>>> {
    let rounds = if quick { 5 } else { 11 };
    let slice = if quick { 2e-3 } else { 1e-2 };
    let mut calls = Vec::new();
    for candidate in candidates.iter_mut() {
        y.fill(f32::NAN);
        (candidate.run)(0, x, y)?;
        // A few rows suffice to find a wrong product, and the dense formula of all of them takes minutes.
        let rows = x.nrows().min(4);
        let first = |a: &Array2<f32>| a.slice(s![..rows, ..]).to_owned();
        verify(&candidate.name, &first(y), &(candidate.expected)(&first(x)))?;
        let start = Instant::now();
        (candidate.run)(0, x, y)?;
        let once = start.elapsed().as_secs_f64().max(1e-7);
        calls.push(((slice / once) as usize).clamp(1, 100_000).next_multiple_of(candidate.copies));
    }
    let mut times = vec![Vec::new(); candidates.len()];
    for _ in 0..rounds {
        for ((candidate, calls), times) in candidates.iter_mut().zip(&calls).zip(&mut times) {
            // Threads that slept wake up, and caches fill, before the clock runs.
            let mut repeat = |calls: Range<usize>, y: &mut Array2<f32>| {
                let (start, len) = (Instant::now(), calls.len());
                for k in calls {
                    (candidate.run)(k % candidate.copies, black_box(x), y)?;
                    black_box(&y);
                }
                Ok::<_, Error>(start.elapsed().as_secs_f64() / len as f64)
            };
            let warm = candidate.copies == 1;
            let untimed = if warm { (calls / 4).max(FILLS) } else { calls / 4 };
            let first = calls.saturating_sub(untimed);
            repeat(first..first + untimed, y)?;
            times.push(repeat(0..*calls, y)?);
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    Ok(times)
}

fn verify(name: &str, y: &Array2<f32>, expected: &Array2<f64>) -> Result<()> {
    let square = |a: &Array2<f64>| a.iter().map(|v| v * v).sum::<f64>();
    let error = (square(&(y.mapv(f64::from) - expected)) / square(expected)).sqrt();
    match error <= 1e-5 {
        true => Ok(()),
        false => Err(Error::Unsupported {
            structure: name.to_owned(),
            what: format!("wrong answer: off by {error:e}"),
        }),
    }
}
