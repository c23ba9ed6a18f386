//! Gradients of every registered structure and every combinator against differences of the dense formula.

mod common;

use common::{Boxed, combinators, difference, gaussian, gaussian_of, member, norm};
use structmat::compose::{DirectSum, Product, Scaled, Transposed};
use structmat::ndarray::{Array1, Array2, Array3, s};
use structmat::prelude::*;
use structmat::registry::{self, FAMILIES};
use structmat::{Error, Scalar};

/// Square, wide, tall, single row, single column, nothing divides, one entry.
const SHAPES: [(usize, usize); 8] =
    [(16, 16), (12, 30), (30, 12), (1, 17), (17, 1), (13, 29), (23, 19), (1, 1)];

/// Forms and sizes of families, beside the member that a budget gives.
const REQUESTS: &[(&str, &str)] = &[
    ("low_rank", "form=usv rank=3"),
    ("low_rank", "rank=1"),
    ("block_diagonal", "blocks=3"),
    ("block_diagonal", "blocks=4 permuted=true"),
    ("block_diagonal", "blocks=1 permuted=true"),
    ("block_low_rank", "blocks=3x2 rank=2"),
    ("block_low_rank", "blocks=1x1 rank=1"),
    ("monarch", "blocks=3x2 rank=2"),
    ("monarch", "blocks=5x4 rank=1"),
    ("blast", "blocks=3x4 rank=5"),
    ("blast", "blocks=1x1 rank=2"),
    ("gblr", "numbers=2"),
    ("gblr", "numbers=150"),
    ("circulant_diagonal", "terms=1"),
    ("circulant_diagonal", "terms=5"),
    ("block_circulant", "block=1"),
    ("block_circulant", "block=3"),
    ("block_circulant", "block=5"),
    ("block_circulant", "block=8"),
    ("block_circulant", "block=29"),
    ("toeplitz", "form=hankel"),
    ("fourier", "transform=dft coefficients=40"),
    ("fourier", "transform=dct coefficients=20"),
    ("butterfly", "block=1"),
    ("butterfly", "block=3"),
    ("kaleidoscope", "block=1"),
    ("kaleidoscope", "block=3"),
    ("kronecker", "blocks=3x2 terms=2"),
    ("kronecker", "blocks=5x4 terms=1"),
    ("tensor_train", "cores=2 rank=3"),
    ("tensor_train", "cores=4 rank=2"),
    ("cur", "rank=3 fused=true"),
    ("cur", "rank=3 fused=false"),
    ("sparse", "pattern=2:4"),
    ("sparse", "pattern=block=2 nnz=8"),
    ("sparse", "nnz=1"),
    ("sparse", "pattern=butterfly=3"),
    ("sparse_low_rank", "rank=2 nnz=7"),
    ("low_rank_columns", "rank=2 kept=3"),
    ("shared_blocks", "blocks=3 distinct=2"),
    ("shared_blocks", "blocks=1 distinct=1"),
    ("equivariant", "n=2"),
    ("equivariant", "group=o n=2 out_axes=2 in_axes=2"),
    ("equivariant", "group=so n=2 out_axes=3 in_axes=1"),
    ("equivariant", "group=sp n=4"),
];

/// Members of every family, of all forms, at every shape.
fn members(storage: Storage) -> Vec<Boxed> {
    let mut all: Vec<Boxed> = Vec::new();
    for entry in FAMILIES {
        all.extend(SHAPES.iter().enumerate().map(|(i, shape)| member(entry, *shape, storage, i as u64)));
    }
    for (name, parameters) in REQUESTS {
        let pairs = parameters.split(' ').filter_map(|pair| pair.split_once('='));
        let request = pairs.fold(Request::new(), |request, (key, value)| request.with(key, value));
        let found = SHAPES.iter().filter_map(|&shape| {
            match registry::family(name).unwrap().random(shape, &request, storage, 5) {
                Err(Error::Parameter { .. }) => None, // too large for this shape
                matrix => Some(matrix.unwrap()),
            }
        });
        let before = all.len();
        all.extend(found);
        assert!(all.len() > before, "no shape for {name} {parameters}");
    }
    // Blocks wide enough for transforms.
    let wide = Request::new().with("block", 256);
    all.push(registry::family("block_circulant").unwrap().random((300, 513), &wide, storage, 1).unwrap());
    // Row groups of their own, and blocks whose ranks differ: padded.
    let (w1, w2) = (stack(3, 4, 5, 1), stack(2, 4, 6, 2));
    all.push(Box::new(Monarch::from_stages(storage, &w1, &w2, 2).unwrap()));
    all.push(Box::new(Monarch::from_stages(storage, &stack(3, 2, 5, 1), &stack(6, 4, 1, 2), 1).unwrap()));
    all
}

/// Combinators that hold combinators, empty blocks and coarse diagonals.
fn nested(storage: Storage) -> Vec<Boxed> {
    let of = |name, shape, seed| member(registry::family(name).unwrap(), shape, storage, seed);
    let empty: Boxed = Box::new(Dense::new(&Array2::<f64>::zeros((0, 3))).unwrap());
    let blocks = vec![of("monarch", (7, 9), 1), empty, of("toeplitz", (4, 6), 2)];
    let direct: Boxed = Box::new(DirectSum::new(blocks).unwrap());
    let right = Factor::from_matrix(storage, &gaussian(1, 18, 3));
    let scaled: Boxed = Box::new(Scaled::new(None, direct, Some(right)).unwrap());
    let chain = vec![Box::new(Transposed::new(scaled)) as Boxed, of("butterfly", (11, 5), 4)];
    vec![Box::new(Product::new(chain).unwrap())]
}

fn everything(storage: Storage) -> Vec<Boxed> {
    let mut all = members(storage);
    all.extend(combinators(storage));
    all.extend(nested(storage));
    all
}

fn stack(blocks: usize, rows: usize, cols: usize, seed: u64) -> Array3<f64> {
    let all = gaussian(blocks * rows, cols, seed);
    Array3::from_shape_fn((blocks, rows, cols), |(b, i, j)| all[[b * rows + i, j]])
}

/// `X` and `dY` for a matrix.
fn operands<T: Scalar>(w: &Boxed, batch: usize) -> (Array2<T>, Array2<T>) {
    (gaussian_of(batch, w.shape().1, 21), gaussian_of(batch, w.shape().0, 22))
}

fn flat<T: Scalar>(gradients: &[Array3<T>]) -> Array2<f64> {
    let numbers: Array1<f64> = gradients.iter().flatten().map(|g| g.widen()).collect();
    numbers.insert_axis(structmat::ndarray::Axis(0))
}

#[test]
fn gradients_are_differences_of_the_dense_formula() {
    for w in everything(Storage::F64) {
        let (x, dy) = operands::<f64>(&w, 3);
        let vjp = w.vjp(&x, &dy, &mut Exec::new()).unwrap();
        let dense = w.to_dense_f64();
        assert!(difference(&vjp.input, &dy.dot(&dense)) < 1e-11, "{w:?}: input");
        let g = dy.t().dot(&x);
        let numbers = w.factor_numbers::<f64>();
        assert_eq!(vjp.factors.len(), numbers.len(), "{w:?}");
        // The loss is linear in each factor: central differences are exact for any step, but for rounding.
        for (k, gradient) in vjp.factors.iter().enumerate() {
            assert_eq!(gradient.dim(), numbers[k].dim(), "{w:?}: factor {k}");
            let loss = |step: f64, direction: &Array3<f64>| {
                let mut moved = numbers.clone();
                moved[k].scaled_add(step, direction);
                (w.with_numbers(&moved, Storage::F64).unwrap().to_dense_f64() * &g).sum()
            };
            let noise = 1e-9 * norm(&g) * norm(&dense);
            let check = |direction: &Array3<f64>, expected: f64, scale: f64, what: &str| {
                let slope = loss(0.5, direction) - loss(-0.5, direction);
                let error = (slope - expected).abs();
                assert!(
                    error <= 1e-6 * scale + noise,
                    "{w:?}\nfactor {k} {what}: {expected} against {slope}"
                );
            };
            let all = stack(gradient.dim().0, gradient.dim().1, gradient.dim().2, 31);
            check(
                &all,
                (gradient * &all).sum(),
                norm(&flat(std::slice::from_ref(gradient))),
                "along a direction",
            );
            let stride = (gradient.len() / 7).max(1);
            for (at, value) in gradient.indexed_iter().skip(k % stride).step_by(stride) {
                let mut one = Array3::zeros(gradient.dim());
                one[at] = 1.0;
                check(&one, *value, value.abs(), &format!("{at:?}"));
            }
        }
    }
}

#[test]
fn numbers_that_pad_have_no_gradient() {
    let blocks = |seed| Factor::from_fn(Storage::F64, (3, 5, 4), |b, i, j| stack(3, 5, 4, seed)[[b, i, j]]);
    let w = BlockDiagonal::new((13, 11), blocks(1)).unwrap();
    let (x, dy) = (gaussian(4, 11, 1), gaussian(4, 13, 2));
    let gradient = w.factor_gradients(&x, &dy, &mut Exec::new()).unwrap().remove(0);
    let inside = |b: usize, i: usize, j: usize| 5 * b + i < 13 && 4 * b + j < 11;
    assert!(gradient.indexed_iter().all(|((b, i, j), g)| inside(b, i, j) == (*g != 0.0)));
    // Nor do those of rank 0, of which there are none.
    let empty = |rows, cols| Factor::from_matrix(Storage::F64, &Array2::<f64>::zeros((rows, cols)));
    let w = LowRank::new(empty(13, 0), empty(0, 11)).unwrap();
    let gradients = w.factor_gradients(&x, &dy, &mut Exec::new()).unwrap();
    assert_eq!((gradients[0].dim(), gradients[1].dim()), ((1, 13, 0), (1, 0, 11)));
}

#[test]
fn a_batch_adds_up_and_an_empty_one_is_zero() {
    for w in everything(Storage::F64) {
        let (x, dy) = operands::<f64>(&w, 3);
        let mut exec = Exec::new();
        let all = flat(&w.factor_gradients(&x, &dy, &mut exec).unwrap());
        let mut sum = Array2::zeros(all.dim());
        for b in 0..3 {
            let (x, dy) = (x.slice(s![b..b + 1, ..]), dy.slice(s![b..b + 1, ..]));
            sum += &flat(&w.vjp(&x, &dy, &mut exec).unwrap().factors);
        }
        assert!(difference(&sum, &all) < 1e-11, "{w:?}");
        let (x, dy) = operands::<f64>(&w, 0);
        let none = w.vjp(&x, &dy, &mut exec).unwrap();
        assert_eq!(none.input.dim(), (0, w.shape().1));
        assert_eq!(flat(&none.factors), Array2::<f64>::zeros(all.dim()), "{w:?}");
    }
}

#[test]
fn single_precision_is_double_precision_rounded() {
    for w in everything(Storage::F32) {
        let (x, dy) = operands::<f32>(&w, 7);
        let single = w.vjp(&x, &dy, &mut Exec::new()).unwrap();
        let double = w.vjp(&x.mapv(f64::from), &dy.mapv(f64::from), &mut Exec::new()).unwrap();
        assert!(difference(&flat(&single.factors), &flat(&double.factors)) < 1e-5, "{w:?}");
        assert!(difference(&single.input, &double.input) < 1e-5, "{w:?}");
    }
}

#[test]
fn strides_and_threads_do_not_matter() {
    for w in everything(Storage::F64) {
        let (x, dy) = operands::<f64>(&w, 5);
        let plain = w.vjp(&x, &dy, &mut Exec::new()).unwrap();
        let spread = |a: &Array2<f64>| {
            let mut wide = Array2::from_elem((a.nrows(), 2 * a.ncols()), f64::NAN);
            wide.slice_mut(s![..;-1, ..;2]).assign(a);
            wide
        };
        let turned = |a: &Array2<f64>| a.t().as_standard_layout().into_owned();
        let (wide_x, wide_dy, turned_x, turned_dy) = (spread(&x), spread(&dy), turned(&x), turned(&dy));
        let (wide_x, wide_dy) = (wide_x.slice(s![..;-1, ..;2]), wide_dy.slice(s![..;-1, ..;2]));
        for (x, dy) in [(wide_x, wide_dy), (turned_x.t(), turned_dy.t())] {
            for mut exec in [Exec::new(), Exec::threads(2)] {
                let same = w.vjp(&x, &dy, &mut exec).unwrap();
                assert!(difference(&flat(&same.factors), &flat(&plain.factors)) < 1e-12, "{w:?}");
                assert!(difference(&same.input, &plain.input) < 1e-12, "{w:?}");
            }
        }
    }
}

#[test]
fn gradients_of_coarse_storages_are_those_of_the_decoded_numbers() {
    for storage in [Storage::Bf16, Storage::Int8, Storage::Int4] {
        for w in everything(storage) {
            let (x, dy) = operands::<f64>(&w, 3);
            let decoded = w.with_numbers(&w.factor_numbers::<f64>(), Storage::F64).unwrap();
            assert_eq!(decoded.to_dense_f64(), w.to_dense_f64(), "{w:?}");
            let coarse = w.vjp(&x, &dy, &mut Exec::new()).unwrap();
            let fine = decoded.vjp(&x, &dy, &mut Exec::new()).unwrap();
            assert!(difference(&flat(&coarse.factors), &flat(&fine.factors)) < 1e-12, "{w:?} in {storage}");
        }
    }
}

#[test]
fn wrong_shapes_and_numbers_are_refused() {
    let refused = |result: structmat::Result<_>, name: &str| {
        let error: Option<Error> = result.map(|_: ()| ()).err();
        assert!(matches!(error, Some(Error::Shape { what, .. }) if what == name), "{error:?}");
    };
    for w in everything(Storage::F32) {
        let ((m, n), mut exec) = (w.shape(), Exec::<f32>::new());
        let mut vjp = |x, dy| {
            let (x, dy) = (Array2::zeros(x), Array2::zeros(dy));
            w.vjp(&x, &dy, &mut exec).map(|_| ())
        };
        refused(vjp((2, n + 1), (2, m)), "x");
        refused(vjp((2, n), (2, m + 1)), "dy");
        refused(vjp((2, n), (3, m)), "dy");
        let numbers = w.factor_numbers::<f64>();
        let with = |numbers: &[Array3<f64>]| w.with_numbers(numbers, Storage::F32);
        assert!(matches!(with(&numbers[1..]), Err(Error::Record { .. })));
        let mut other = numbers.clone();
        let (b, r, c) = other[0].dim();
        other[0] = Array3::zeros((b, r, c + 1));
        assert!(matches!(with(&other), Err(Error::Shape { .. })));
        other[0] = Array3::from_elem((b, r, c), f64::NAN);
        assert!(matches!(with(&other), Err(Error::NonFinite { .. })));
        assert_eq!(with(&numbers).unwrap().to_dense_f64(), w.to_dense_f64());
    }
}
