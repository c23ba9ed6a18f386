//! Every registered structure, and every combinator, against an independent dense formula.

mod common;

use common::{Boxed, combinators, difference, gaussian, gaussian_of, member, norm};
use structmat::kernels::Level;
use structmat::matrix::Op;
use structmat::ndarray::{Array1, Array2, ArrayRef2, Axis, s};
use structmat::prelude::*;
use structmat::registry::{self, FAMILIES};
use structmat::{Error, Scalar};

/// Square, wide, tall, single row, single column, nothing divides, one entry.
const SHAPES: [(usize, usize); 8] =
    [(32, 32), (24, 60), (60, 24), (1, 17), (17, 1), (13, 29), (37, 64), (1, 1)];
const BATCHES: [usize; 5] = [0, 1, 2, 7, 64];

fn dense_f64() -> Boxed {
    Box::new(Dense::new(&gaussian(9, 14, 5)).unwrap())
}

/// Runs a check on every family at every shape, and on every combinator.
fn for_all(storage: Storage, check: impl Fn(&Boxed)) {
    for entry in FAMILIES {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            check(&member(entry, shape, storage, i as u64));
        }
    }
    combinators(storage).iter().for_each(check);
}

fn apply<T: Scalar>(
    w: &Boxed,
    op: Op,
    x: &ArrayRef2<T>,
    y: &mut ArrayRef2<T>,
    update: Update,
    exec: &mut Exec<T>,
) {
    match op {
        Op::Forward => w.apply_into(x, y, update, exec).unwrap(),
        Op::Transpose => w.apply_transpose_into(x, y, update, exec).unwrap(),
    }
}

/// Overwriting (over NaN), accumulating and strided products against the dense formula.
fn check_products<T: Scalar>(w: &Boxed, tolerance: f64) {
    let dense = w.to_dense_f64();
    let mut exec = Exec::<T>::new();
    for op in [Op::Forward, Op::Transpose] {
        let (out, inp) = op.order(w.shape().0, w.shape().1);
        for batch in BATCHES {
            let x = gaussian_of::<T>(batch, inp, 3);
            let wide = x.mapv(T::widen);
            let expected = if op == Op::Forward { wide.dot(&dense.t()) } else { wide.dot(&dense) };
            // Sums that cancel: measure against what is added up, not against what is left.
            let scale = norm(&expected).max(1e-3 * norm(&dense) * norm(&wide) / (inp.max(1) as f64).sqrt());
            let close = |y: &ArrayRef2<T>, expected: &Array2<f64>, what: &str| {
                let error = norm(&(y.mapv(T::widen) - expected));
                assert!(
                    error <= tolerance * scale,
                    "{w:?}\n{op:?} batch {batch} {what}: {error:e} against {scale:e}"
                );
            };
            let mut y = Array2::from_elem((batch, out), T::nan());
            apply(w, op, &x, &mut y, Update::Overwrite, &mut exec);
            close(&y, &expected, "overwrite");
            let mut twice = y.clone();
            apply(w, op, &x, &mut twice, Update::Accumulate, &mut exec);
            close(&twice, &(&expected * 2.0), "accumulate");

            // The same numbers through views: every other column, reversed rows, transposed memory.
            let mut spread = Array2::from_elem((batch, 2 * inp), T::nan());
            spread.slice_mut(s![..;-1, ..;2]).assign(&x);
            let mut strided = Array2::from_elem((out, batch), T::nan());
            apply(
                w,
                op,
                &spread.slice(s![..;-1, ..;2]),
                &mut strided.view_mut().reversed_axes(),
                Update::Overwrite,
                &mut exec,
            );
            assert_eq!(strided.t(), y, "{w:?}: strided views");
            let mut padded = Array2::from_elem((batch, out + 5), T::nan());
            apply(w, op, &x, &mut padded.slice_mut(s![.., 2..2 + out]), Update::Overwrite, &mut exec);
            assert_eq!(padded.slice(s![.., 2..2 + out]), y, "{w:?}: columns of a wider array");
        }
        let x = gaussian_of::<T>(1, inp, 4);
        let column = x.index_axis(Axis(0), 0);
        let y = if op == Op::Forward { w.matvec(&column) } else { w.matvec_transpose(&column) }.unwrap();
        let mut expected = Array2::zeros((1, out));
        apply(w, op, &x, &mut expected, Update::Overwrite, &mut exec);
        assert_eq!(y, expected.row(0), "{w:?}: vector");
        if op == Op::Forward {
            let mut y = Array1::from_elem(out, T::nan());
            w.matvec_into(x.as_slice().unwrap(), y.as_slice_mut().unwrap(), &mut exec).unwrap();
            assert_eq!(y, expected.row(0), "{w:?}: slices");
        }
    }
    assert!(w.dot_test::<T>(9).unwrap() <= tolerance, "{w:?}: dot test");
}

trait Nan {
    fn nan() -> Self;
}
impl<T: Scalar> Nan for T {
    fn nan() -> Self {
        T::narrow(f64::NAN)
    }
}

#[test]
fn products_equal_the_dense_formula_in_f64() {
    for storage in Storage::ALL {
        for_all(storage, |w| check_products::<f64>(w, 1e-12));
    }
}

#[test]
fn products_equal_the_dense_formula_in_f32() {
    for storage in Storage::ALL {
        for_all(storage, |w| check_products::<f32>(w, 1e-5));
    }
}

#[test]
fn products_are_linear() {
    for_all(Storage::F64, |w| {
        let n = w.shape().1;
        let (a, b) = (gaussian(3, n, 1), gaussian(3, n, 2));
        let together = w.matmul(&(&a * 2.0 + &b)).unwrap();
        let apart = w.matmul(&a).unwrap() * 2.0 + w.matmul(&b).unwrap();
        assert!(norm(&(&together - &apart)) <= 1e-12 * (norm(&together) + norm(&w.to_dense_f64())), "{w:?}");
    });
}

#[test]
fn instruction_sets_agree_with_portable() {
    fn check<T: Scalar>(w: &Boxed, tolerance: f64) {
        for op in [Op::Forward, Op::Transpose] {
            let (out, inp) = op.order(w.shape().0, w.shape().1);
            for batch in [1, 3, 17, 33] {
                let x = gaussian_of::<T>(batch, inp, 1);
                let run = |level| {
                    let mut y = Array2::zeros((batch, out));
                    apply(w, op, &x, &mut y, Update::Overwrite, &mut Exec::new().with_level(level));
                    y
                };
                let portable = run(Level::Portable);
                for level in Level::available() {
                    let error = norm(&(run(level) - &portable));
                    let scale = norm(&portable).max(1e-3 * norm(&w.to_dense_f64()) * norm(&x));
                    assert!(error <= tolerance * scale, "{w:?}: {level:?} {op:?} batch {batch}: {error:e}");
                }
            }
        }
    }
    for storage in Storage::ALL {
        for_all(storage, |w| {
            check::<f32>(w, 1e-5);
            check::<f64>(w, 1e-12);
        });
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    fn check<T: Scalar>(w: &Boxed) {
        for op in [Op::Forward, Op::Transpose] {
            let (out, inp) = op.order(w.shape().0, w.shape().1);
            for batch in [1, 5, 64] {
                let x = gaussian_of::<T>(batch, inp, 1);
                let run = |mut exec: Exec<T>| {
                    let mut y = Array2::zeros((batch, out));
                    apply(w, op, &x, &mut y, Update::Overwrite, &mut exec);
                    y
                };
                let alone = run(Exec::new());
                for threads in [2, 3, 8, 0] {
                    assert_eq!(
                        run(Exec::threads(threads)),
                        alone,
                        "{} {op:?} {batch} x {threads} threads",
                        w.name()
                    );
                }
            }
        }
    }
    for entry in FAMILIES {
        for storage in [Storage::F32, Storage::Int4] {
            for shape in [(512, 770), (1030, 333)] {
                let w = member(entry, shape, storage, 3);
                check::<f32>(&w);
                check::<f64>(&w);
            }
        }
    }
}

#[test]
fn parts_rebuild_the_same_matrix() {
    for storage in Storage::ALL {
        for_all(storage, |w| {
            let again = registry::load(w.parts().into_owned()).unwrap();
            assert_eq!(again.to_dense_f64(), w.to_dense_f64(), "{w:?}");
            assert_eq!(again.parts().bytes(), w.storage_bytes());
            assert_eq!(again.name(), w.name());
            assert_eq!(again.n_params(), w.n_params());
            assert_eq!(w.clone().to_dense_f64(), w.to_dense_f64());
        });
    }
}

#[test]
fn storage_rounds_as_much_as_it_must() {
    for_all(Storage::F64, |w| {
        let dense = w.to_dense_f64();
        for (storage, tolerance) in [
            (Storage::F32, 1e-6),
            (Storage::F16, 1e-2),
            (Storage::Bf16, 5e-2),
            (Storage::Int8, 0.1),
            (Storage::Int4, 0.9),
        ] {
            let coarse = w.to_storage(storage).unwrap();
            assert!(difference(&coarse.to_dense_f64(), &dense) <= tolerance, "{w:?} in {storage}");
            assert!(coarse.n_params() == w.n_params() && coarse.storage_bytes() <= w.storage_bytes());
        }
    });
}

#[test]
fn wrong_shapes_are_refused_and_leave_the_output_alone() {
    for_all(Storage::F32, |w| {
        let (m, n) = w.shape();
        let mut exec = Exec::<f32>::new();
        let mut y = Array2::from_elem((2, m), 7.0f32);
        let shape_error = |result: structmat::Result<()>| matches!(result, Err(Error::Shape { .. }));
        assert!(shape_error(w.apply_into(&Array2::zeros((2, n + 1)), &mut y, Update::Overwrite, &mut exec)));
        assert!(shape_error(w.apply_into(&Array2::zeros((3, n)), &mut y, Update::Overwrite, &mut exec)));
        assert!(shape_error(w.apply_transpose_into(
            &Array2::zeros((2, m + 1)),
            &mut y,
            Update::Overwrite,
            &mut exec
        )));
        assert!(shape_error(w.matvec_into(&vec![0.0; n + 1], &mut vec![0.0; m], &mut exec)));
        assert!(shape_error(w.matvec_into(&vec![0.0; n], &mut vec![0.0; m + 1], &mut exec)));
        assert!(
            w.matvec(&Array1::<f32>::zeros(n + 2)).is_err()
                && w.matvec_transpose(&Array1::<f32>::zeros(m + 2)).is_err()
        );
        assert!(w.relative_error(&Array2::<f32>::zeros((m + 1, n))).is_err());
        assert!(y.iter().all(|v| *v == 7.0));
    });
}

#[test]
fn sizes_are_those_of_the_request() {
    for entry in FAMILIES {
        for shape in SHAPES {
            for budget in [Budget::Ratio(0.3), Budget::Ratio(0.8), Budget::Params(200), Budget::Bytes(900)] {
                let request = Request::new().budget(budget);
                match entry.random(shape, &request, Storage::Int8, 1) {
                    Ok(w) => {
                        let (params, bytes) = (w.n_params(), w.storage_bytes());
                        let dense = (shape.0 * shape.1) as f64;
                        let fits = match budget {
                            Budget::Ratio(r) => params as f64 <= r * dense + 1e-9,
                            Budget::Params(limit) => params <= limit,
                            Budget::Bytes(limit) => bytes <= limit,
                            _ => unreachable!(),
                        };
                        assert!(
                            fits,
                            "{} {shape:?} {budget}: {params} parameters, {bytes} bytes",
                            entry.name
                        );
                    }
                    Err(Error::Budget { .. }) => (),
                    Err(error) => panic!("{} {shape:?} {budget}: {error}", entry.name),
                }
            }
        }
    }
}

#[test]
fn empty_and_absurd_requests_are_refused() {
    let options = Options::default();
    for entry in FAMILIES {
        let half = Request::new().budget(Budget::Ratio(0.5));
        for shape in [(0, 5), (5, 0), (0, 0)] {
            let result = entry.project(&Array2::zeros(shape), &half, &Objective::Frobenius, &options);
            assert!(result.is_err(), "{} accepted an empty weight", entry.name);
            let _ = entry.random(shape, &half, Storage::F32, 0); // must not panic
        }
        for bad in [f64::NAN, f64::INFINITY] {
            let mut w = gaussian(8, 8, 1);
            w[[3, 4]] = bad;
            let all = Request::new().budget(Budget::Ratio(64.0));
            let result = entry.project(&w, &all, &Objective::Frobenius, &options);
            assert!(
                matches!(result, Err(Error::NonFinite { row: 3, col: 4, .. })),
                "{}: {result:?}",
                entry.name
            );
        }
        let w = gaussian(8, 8, 1);
        for request in [
            Request::new().budget(Budget::Ratio(f64::NAN)),
            Request::new().budget(Budget::Ratio(-1.0)),
            Request::new().budget(Budget::Params(0)),
            half.clone().with("rank", 0),
            half.clone().with("rank", 1_000_000),
            half.clone().with("blocks", "0"),
            half.clone().with("blocks", "9x9"),
            half.clone().with("blocks", "4y"),
            half.clone().with("no_such_parameter", 1),
        ] {
            let result = entry.project(&w, &request, &Objective::Frobenius, &options);
            assert!(result.is_err(), "{} accepted {request:?}", entry.name);
        }
        let gram = Gram::new(7);
        let all = Request::new().budget(Budget::Ratio(64.0));
        let result = entry.project(&w, &all, &Objective::Activations(&gram), &options);
        assert!(matches!(result, Err(Error::Shape { .. })), "{}", entry.name);
    }
}

#[test]
fn the_dense_matrix_is_exact() {
    let w = dense_f64();
    assert_eq!(w.to_dense::<f64>(), gaussian(9, 14, 5));
    assert_eq!(w.flops(3), 2 * 3 * 9 * 14);
}
