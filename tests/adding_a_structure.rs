//! The structure of `docs/adding-a-structure.md`, written outside the crate with its public items alone.

mod common;

use common::{difference, gaussian};
use structmat::gradient::Differentiate;
use structmat::linalg::Threads;
use structmat::matrix::{Multiply, Operands};
use structmat::ndarray::{Array2, Array3, ArrayRef2};
use structmat::parts::Parts;
use structmat::prelude::*;
use structmat::projection::{Fit, Run};
use structmat::registry::Entry;
use structmat::{Error, Result, Scalar};

/// `W = diag(d)`, of `out x in` with `min(out, in)` entries on its diagonal.
#[derive(Debug, Clone)]
struct Diagonal {
    shape: (usize, usize),
    d: Factor,
}

impl<T: Scalar> Multiply<T> for Diagonal {
    fn multiply(&self, Operands { x, mut y, update, work, .. }: Operands<'_, T>) {
        let len = self.d.cols();
        for b in 0..x.rows() {
            let (x, y) = (x.row(b), y.row(b));
            self.d.scale_row(0, 0, 0, &x[..len], &mut y[..len], update, work.policy);
            if update == Update::Overwrite {
                y[len..].fill(T::default());
            }
        }
    }
}

impl<T: Scalar> Differentiate<T> for Diagonal {
    fn differentiate(&self, x: &ArrayRef2<T>, dy: &ArrayRef2<T>, _: Threads) -> Vec<Array3<T>> {
        vec![Array3::from_shape_fn(self.d.shape(), |(_, _, i)| dy.column(i).dot(&x.column(i)))]
    }
}

impl StructuredMatrix for Diagonal {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn flops(&self, batch: usize) -> u64 {
        2 * (batch * self.d.len()) as u64
    }
    fn scratch_len(&self, _batch: usize) -> usize {
        0
    }
    fn to_dense_f64(&self) -> Array2<f64> {
        Array2::from_shape_fn(self.shape, |(i, j)| if i == j { self.d.get(0, 0, i) } else { 0.0 })
    }
    fn parts(&self) -> Parts<'_> {
        Parts::new(Self::NAME, self.shape).factor("d", &self.d)
    }
    fn clone_box(&self) -> Box<dyn StructuredMatrix> {
        Box::new(self.clone())
    }
}

impl Family for Diagonal {
    const NAME: &'static str = "diagonal";
    const PARAMETERS: &'static [(&'static str, &'static str)] = &[];
    type Spec = ();

    fn spec(shape: (usize, usize), request: &Request) -> Result<()> {
        request.require(Self::NAME, shape, request.size().factor(1, 1, shape.0.min(shape.1)))
    }

    fn fit(w: &Array2<f64>, (): &(), objective: &Objective<'_>, run: &Run<'_>) -> Result<Fit<Self>> {
        // Entry i is free of the others: w_i regressed on input i, (W C)_ii / C_ii.
        let value = |i: usize| match objective.second_moment() {
            Some(c) if c[[i, i]] > 0.0 => w.row(i).dot(&c.column(i)) / c[[i, i]],
            _ => w[[i, i]],
        };
        let len = w.nrows().min(w.ncols());
        let d = Factor::from_fn(run.storage(), (1, 1, len), |_, _, i| value(i));
        Ok(Fit::optimal(Self { shape: w.dim(), d }))
    }

    fn random(shape: (usize, usize), (): &(), storage: Storage, seed: u64) -> Result<Self> {
        let d = gaussian(1, shape.0.min(shape.1), seed);
        Ok(Self { shape, d: Factor::from_matrix(storage, &d) })
    }

    fn from_parts(mut parts: Parts<'static>) -> Result<Self> {
        let (shape, d) = (parts.shape(), parts.take_factor("d")?);
        match d.shape() == (1, 1, shape.0.min(shape.1)) {
            true => Ok(Self { shape, d }),
            false => {
                Err(parts.error(format!("d is {:?}, expected (1, 1, {})", d.shape(), shape.0.min(shape.1))))
            }
        }
    }
}

#[test]
fn a_structure_is_one_file_and_one_line() {
    const ENTRY: Entry = Entry::of::<Diagonal>();
    let w = gaussian(5, 7, 1);
    let request = Request::new().budget(Budget::Ratio(0.5));
    let gram = common::correlated_gram(7, 2);
    let plain = ENTRY.project(&w, &request, &Objective::Frobenius, &Options::default()).unwrap();
    let weighted = ENTRY.project(&w, &request, &Objective::Activations(&gram), &Options::default()).unwrap();
    let energy = |m: &Array2<f64>| Objective::Activations(&gram).energy(&(&w - m));
    assert!(energy(&weighted.matrix.to_dense_f64()) < energy(&plain.matrix.to_dense_f64()));
    let x = gaussian(3, 7, 3);
    assert!(difference(&plain.matrix.matmul(&x).unwrap(), &x.dot(&plain.matrix.to_dense_f64().t())) < 1e-12);
    assert!(plain.matrix.dot_test::<f64>(1).unwrap() < 1e-12);
    let dy = gaussian(3, 5, 4);
    let vjp = plain.matrix.vjp(&x, &dy, &mut Exec::new()).unwrap();
    assert!(difference(&vjp.input, &dy.dot(&plain.matrix.to_dense_f64())) < 1e-12);
    let all = dy.t().dot(&x);
    assert!(vjp.factors[0].iter().zip(all.diag()).all(|(d, g)| (d - g).abs() < 1e-12));
    let again = Diagonal::from_parts(plain.matrix.parts().into_owned()).unwrap();
    assert_eq!(again.to_dense_f64(), plain.matrix.to_dense_f64());
    let tiny = Request::new().budget(Budget::Params(4));
    assert!(matches!(
        ENTRY.project(&w, &tiny, &Objective::Frobenius, &Options::default()),
        Err(Error::Budget { .. })
    ));
}
