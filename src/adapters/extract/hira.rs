use super::entrywise::Entrywise;
use super::{Found, check};
use crate::adapters::methods::Hadamard;
use crate::error::Result;
use crate::linalg::{SvdOptions, Threads, matmul, truncated_svd};
use crate::projection::{Descent, Options, Run, Stop, descend};
use ndarray::{Array2, ArrayRef2};

/// When alternating least squares end.
const STOP: Stop = Stop { sweeps: 500, tolerance: 1e-9 };

/// `B` and `A`.
type Factors = (Array2<f64>, Array2<f64>);

/// Alternating least squares in `B` and `A`, weighted by the base.
pub(super) fn find(base: &ArrayRef2<f64>, delta: &ArrayRef2<f64>, rank: usize) -> Result<Found> {
    let most = delta.nrows().min(delta.ncols());
    check(rank <= most, rank, || format!("1 to {most}"))?;
    let (b, a) = nearest(base, delta, rank)?.state;
    let adapter = Hadamard::new(&b, &a)?;
    Found::bound(adapter, base, vec![("hira_A", a.into_dyn()), ("hira_B", b.into_dyn())])
}

fn nearest(base: &ArrayRef2<f64>, delta: &ArrayRef2<f64>, rank: usize) -> Result<Descent<Factors>> {
    let given = Entrywise { target: delta, x: base };
    let options = Options::default();
    let scale = delta.iter().map(|v| v * v).sum::<f64>();
    // What a base of equal magnitudes would ask for.
    let power = base.iter().map(|v| v * v).sum::<f64>() / base.len().max(1) as f64;
    let even = (&base.view() * &delta.view()).mapv(|v| if power > 0.0 { v / power } else { 0.0 });
    let start = truncated_svd(&even, rank, &SvdOptions::default(), Threads::ONE)?.svd.split_sqrt(rank);
    let energy = |(b, a): &Factors| given.energy(&matmul(b, a, Threads::ONE));
    let first = energy(&start);
    descend(&Run::new(&options), STOP, scale, start, first, |factors, _, _| {
        factors.0 = given.left(&factors.1)?;
        factors.1 = given.right(&factors.0)?;
        Ok(energy(factors))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Gaussian;

    #[test]
    fn the_error_never_rises() {
        let (base, delta) = (Gaussian::new(1).matrix(16, 21, 1.0), Gaussian::new(2).matrix(16, 21, 1.0));
        // Each factor is the least-squares one for the other.
        let given = Entrywise { target: &delta, x: &base };
        let a = Gaussian::new(3).matrix(3, 21, 1.0);
        let b = given.left(&a).unwrap();
        let slope = ((&delta - &(&base * &b.dot(&a))) * &base).dot(&a.t());
        assert!(slope.iter().all(|g| g.abs() < 1e-9));
        let a = given.right(&b).unwrap();
        let slope = b.t().dot(&((&delta - &(&base * &b.dot(&a))) * &base));
        assert!(slope.iter().all(|g| g.abs() < 1e-9));
        let found = nearest(&base, &delta, 3).unwrap();
        assert!(found.history.len() > 2 && found.history.windows(2).all(|pair| pair[1] <= pair[0]));
    }
}
