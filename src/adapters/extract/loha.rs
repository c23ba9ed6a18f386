use super::entrywise::Entrywise;
use super::{Found, check};
use crate::adapters::methods;
use crate::error::Result;
use crate::linalg::{SvdOptions, Threads, matmul, truncated_svd};
use crate::projection::{Descent, Options, Run, Stop, descend};
use crate::random::Gaussian;
use ndarray::{Array2, ArrayRef2};

/// Sweeps of every start, of which the best goes on.
const TRIAL: Stop = Stop { sweeps: 12, tolerance: 1e-6 };
/// Sweeps of the best.
const FINAL: Stop = Stop { sweeps: 400, tolerance: 1e-7 };
/// How far the second products of the starts from LoRA are from all ones.
const SPREADS: [f64; 2] = [0.1, 0.5];

/// Both low-rank matrices.
#[derive(Debug, Clone)]
struct Pair {
    first: (Array2<f64>, Array2<f64>),
    second: (Array2<f64>, Array2<f64>),
}

fn product((b, a): &(Array2<f64>, Array2<f64>)) -> Array2<f64> {
    matmul(b, a, Threads::ONE)
}

/// Alternating least squares in the four factors, from several starts; or LoRA of that rank, which is a member, where that is better.
pub(super) fn find(delta: &ArrayRef2<f64>, rank: usize) -> Result<Found> {
    let most = delta.nrows().min(delta.ncols());
    check(rank <= most, rank, || format!("1 to {most}"))?;
    let Pair { first: (a1, b1), second: (a2, b2) } = nearest(delta, rank)?.state;
    let adapter = methods::loha((&a1, &b1), (&a2, &b2), 1.0)?;
    let tensors = vec![
        ("hada_w1_a", a1.into_dyn()),
        ("hada_w1_b", b1.into_dyn()),
        ("hada_w2_a", a2.into_dyn()),
        ("hada_w2_b", b2.into_dyn()),
    ];
    Ok(Found::additive(adapter, tensors))
}

fn nearest(delta: &ArrayRef2<f64>, rank: usize) -> Result<Descent<Pair>> {
    let options = Options::default();
    let run = Run::new(&options);
    let scale = delta.iter().map(|v| v * v).sum::<f64>();
    let go = |start: Pair, stop: Stop| {
        let energy = energy(delta, &start);
        descend(&run, stop, scale, start, energy, |pair, _, _| sweep(delta, pair))
    };
    let lora = embedded(delta, rank, 0.0)?;
    let mut best = Descent { energy: energy(delta, &lora), state: lora, history: Vec::new() };
    for start in starts(delta, rank)? {
        let found = go(start, TRIAL)?;
        if found.energy < best.energy {
            best = found;
        }
    }
    let mut last = go(best.state, FINAL)?;
    last.history.splice(0..0, best.history);
    Ok(last)
}

/// Close to LoRA, and signs and magnitudes, with the square root of the magnitudes in either. Where one of the products has no change of sign
/// these lead to a planted one; random starts do not.
fn starts(delta: &ArrayRef2<f64>, rank: usize) -> Result<Vec<Pair>> {
    let root = delta.mapv(|v| v.abs().sqrt());
    let signs = delta.mapv(|v| v.signum() * v.abs().sqrt());
    let mut starts = vec![Pair { first: low_rank(&signs, rank)?, second: low_rank(&root, rank)? }];
    for spread in SPREADS {
        starts.push(embedded(delta, rank, spread)?);
    }
    Ok(starts)
}

/// LoRA of this rank times a matrix of ones, up to `spread`.
fn embedded(delta: &ArrayRef2<f64>, rank: usize, spread: f64) -> Result<Pair> {
    let (m, n) = delta.dim();
    let mut gaussian = Gaussian::new(0);
    let (mut b, mut a) = (gaussian.matrix(m, rank, spread), gaussian.matrix(rank, n, spread));
    b.column_mut(0).fill(1.0);
    a.row_mut(0).fill(1.0);
    Ok(Pair { first: low_rank(delta, rank)?, second: (b, a) })
}

fn low_rank(w: &ArrayRef2<f64>, rank: usize) -> Result<(Array2<f64>, Array2<f64>)> {
    Ok(truncated_svd(w, rank, &SvdOptions::default(), Threads::ONE)?.svd.split_sqrt(rank))
}

fn energy(delta: &ArrayRef2<f64>, pair: &Pair) -> f64 {
    Entrywise { target: delta, x: &product(&pair.first) }.energy(&product(&pair.second))
}

/// Each factor in turn, the others held.
fn sweep(delta: &ArrayRef2<f64>, pair: &mut Pair) -> Result<f64> {
    let x = product(&pair.second);
    let given = Entrywise { target: delta, x: &x };
    pair.first.0 = given.left(&pair.first.1)?;
    pair.first.1 = given.right(&pair.first.0)?;
    let x = product(&pair.first);
    let given = Entrywise { target: delta, x: &x };
    pair.second.0 = given.left(&pair.second.1)?;
    pair.second.1 = given.right(&pair.second.0)?;
    Ok(given.energy(&product(&pair.second)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_never_rises_and_is_never_above_that_of_lora() {
        for (seed, (m, n), rank) in [(1, (18, 14), 1), (2, (18, 14), 3), (3, (7, 20), 2)] {
            let delta = Gaussian::new(seed).matrix(m, n, 1.0);
            let found = nearest(&delta, rank).unwrap();
            assert!(found.history.windows(2).all(|pair| pair[1] <= pair[0]), "{:?}", found.history);
            let lora = energy(&delta, &embedded(&delta, rank, 0.0).unwrap());
            assert!(found.energy <= lora * (1.0 + 1e-12), "{} above {lora}", found.energy);
            assert!(rank == 1 || found.energy < 0.9 * lora, "{} not below {lora}", found.energy);
        }
    }
}
