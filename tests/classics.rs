//! Classic families: kaleidoscopes, flat butterflies, shuffled blocks; and what every family promises, by one list of members.

mod common;

use common::{
    Boxed, correlated_gram, difference, exactly, falls, gaussian, norm, weighted_energy, with_spectrum,
};
use structmat::Error;
use structmat::compose::{Permuted, Sum};
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::registry::{FAMILIES, family};

const PLAIN: Objective<'static> = Objective::Frobenius;

fn project<F: Family>(w: &Array2<f64>, spec: &F::Spec) -> Projected<F> {
    F::project(w, spec, &PLAIN, &exactly()).unwrap()
}

/// All orders of `0..n`.
fn orders(n: u32) -> Vec<Vec<u32>> {
    (0..n).fold(vec![Vec::new()], |all, _| {
        let longer = |order: Vec<u32>| {
            let rest: Vec<u32> = (0..n).filter(|v| !order.contains(v)).collect();
            rest.into_iter().map(move |v| [&order[..], &[v]].concat())
        };
        all.into_iter().flat_map(longer).collect()
    })
}

/// A random order of `0..n`.
fn shuffled(n: usize, seed: u64) -> Vec<u32> {
    let scores = gaussian(1, n, seed);
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by(|a, b| scores[[0, *a as usize]].total_cmp(&scores[[0, *b as usize]]));
    order
}

#[test]
fn kaleidoscopes_hold_every_permutation() {
    let check = |order: &[u32], exec: &mut Exec<f64>| {
        let w = Kaleidoscope::permutation(order, Storage::Bf16).unwrap();
        let x: Vec<f64> = (0..order.len()).map(|i| 1.0 + i as f64).collect();
        let mut y = vec![f64::NAN; order.len()];
        w.matvec_into(&x, &mut y, exec).unwrap();
        assert!(y.iter().zip(order).all(|(y, i)| *y == 1.0 + f64::from(*i)), "{order:?}: {y:?}");
    };
    let mut exec = Exec::new();
    for n in [1, 2, 3, 4, 5, 8] {
        let all = orders(n);
        assert_eq!(all.len(), (1..=n as usize).product::<usize>());
        all.iter().for_each(|order| check(order, &mut exec));
    }
    for (n, count) in [(16, 200), (64, 20), (100, 20), (1024, 2)] {
        (0..count).for_each(|seed| check(&shuffled(n, seed), &mut exec));
    }
    let order = shuffled(16, 3);
    let w = Kaleidoscope::permutation(&order, Storage::F32).unwrap();
    let expected = Array2::from_shape_fn((16, 16), |(j, i)| f64::from(u8::from(order[j] as usize == i)));
    assert_eq!((w.to_dense_f64(), w.n_params()), (expected, 4 * 16 * 4));
    for bad in [&[][..], &[1], &[0, 0], &[0, 2]] {
        assert!(
            matches!(Kaleidoscope::permutation(bad, Storage::F32), Err(Error::Parameter { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn kaleidoscopes_are_butterflies_times_transposed_butterflies() {
    for ((m, n), block) in
        [((16, 16), 1), ((24, 20), 3), ((7, 30), 2), ((30, 7), 1), ((1, 1), 1), ((1, 9), 2)]
    {
        let spec = ButterflySpec { block };
        let w = Kaleidoscope::random((m, n), &spec, Storage::F64, 1).unwrap();
        let (left, right) = (w.left().to_dense_f64(), w.right().to_dense_f64());
        assert!(difference(&w.to_dense_f64(), &left.dot(&right.t())) < 1e-13);
        let levels = ((m.max(n).div_ceil(block).max(2)) as f64).log2().ceil() as usize;
        assert_eq!(w.n_params(), 4 * block * (block << levels) * levels);
        assert_eq!(w.flops(3), 6 * w.n_params() as u64);
        let x = gaussian(5, n, 2);
        assert!(difference(&w.matmul(&x).unwrap(), &x.dot(&w.to_dense_f64().t())) < 1e-12);
    }
    // A butterfly alone fits no other size.
    let butterfly =
        |shape, block| Butterfly::random(shape, &ButterflySpec { block }, Storage::F64, 1).unwrap();
    assert!(Kaleidoscope::new(butterfly((6, 8), 1), butterfly((5, 8), 1)).is_ok());
    for (left, right) in [((6, 6), (5, 8)), ((6, 8), (5, 7)), ((6, 8), (5, 16))] {
        let result = Kaleidoscope::new(butterfly(left, 1), butterfly(right, 1));
        assert!(matches!(result, Err(Error::Record { .. })), "{left:?} {right:?}");
    }
    assert!(Kaleidoscope::new(butterfly((6, 8), 1), butterfly((5, 8), 2)).is_err());
}

/// Small blocks of larger matrices: by the dense matrix, whose flops are told.
#[test]
fn kaleidoscopes_of_small_blocks_multiply_as_their_formula() {
    for ((m, n), block, dense) in
        [((150, 130), 2, true), ((130, 150), 1, true), ((300, 200), 32, true), ((1024, 1000), 16, false)]
    {
        let w = Kaleidoscope::random((m, n), &ButterflySpec { block }, Storage::F64, 1).unwrap();
        let flops = if dense { 2 * m * n } else { 2 * w.n_params() };
        assert_eq!(w.flops(5), 5 * flops as u64, "{m} x {n}, {block}");
        let (x, dy) = (gaussian(5, n, 2), gaussian(5, m, 3));
        assert!(difference(&w.matmul(&x).unwrap(), &x.dot(&w.to_dense_f64().t())) < 1e-12);
        assert!(difference(&w.matmul_transpose(&dy).unwrap(), &dy.dot(&w.to_dense_f64())) < 1e-12);
    }
}

#[test]
fn kaleidoscope_projections_are_never_worse_than_butterflies() {
    for (seed, (m, n), block) in [(1, (16, 16), 1), (2, (24, 30), 2), (3, (16, 16), 4), (4, (13, 9), 1)] {
        let (w, spec) = (gaussian(m, n, seed), ButterflySpec { block });
        let kaleidoscope = project::<Kaleidoscope>(&w, &spec);
        let error = kaleidoscope.report.relative_error;
        assert!(falls(&kaleidoscope.report.history));
        assert!(error < 0.95 * project::<Butterfly>(&w, &spec).report.relative_error, "{error}");
        let transposed = w.t().as_standard_layout().into_owned();
        assert!(error <= project::<Butterfly>(&transposed, &spec).report.relative_error);
        let gram = correlated_gram(n, seed);
        let aware = Kaleidoscope::project(&w, &spec, &Objective::Activations(&gram), &exactly()).unwrap();
        assert!(falls(&aware.report.history));
        let plain = weighted_energy(&w, &kaleidoscope.matrix, &gram);
        assert!(weighted_energy(&w, &aware.matrix, &gram) < plain);
    }
    // Butterflies, their transposes and the Hadamard matrix are members.
    let spec = ButterflySpec { block: 1 };
    let butterfly = Butterfly::random((32, 32), &spec, Storage::F64, 5).unwrap().to_dense_f64();
    let transposed = butterfly.t().as_standard_layout().into_owned();
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    for w in [butterfly, transposed, Array2::from_shape_fn((32, 32), |(i, j)| sign(i, j))] {
        let error = project::<Kaleidoscope>(&w, &spec).report.relative_error;
        assert!(error < 1e-10, "{error}");
    }
}

#[test]
fn flat_butterflies_have_the_positions_of_all_stages_together() {
    for (size, levels) in [(1, 4), (4, 3), (3, 2)] {
        let n = size << levels;
        // Stages with ones: the union of their positions, the identity's among them.
        let mut expected = Array2::<f64>::eye(n);
        for t in 0..levels {
            let stage = |k| {
                Factor::from_fn(Storage::F64, (1 << (levels - 1), 2 * size, 2 * size), move |_, i, j| {
                    f64::from(u8::from(k == t || i == j))
                })
            };
            let stages = (0..levels).map(stage).collect();
            expected += &Butterfly::new((n, n), stages).unwrap().to_dense_f64();
        }
        expected.mapv_inplace(|v| f64::from(u8::from(v != 0.0)));
        let request = Request::new().with("pattern", format!("butterfly={size}"));
        let spec = Sparse::spec((n, n), &request).unwrap();
        assert_eq!(spec.nnz, n * size * (levels + 1));
        let w = gaussian(n, n, 1);
        let found = project::<Sparse>(&w, &spec);
        assert_eq!(found.matrix.to_dense_f64(), &w * &expected);
        assert_eq!((found.matrix.nnz(), found.report.guarantee), (spec.nnz, Guarantee::GlobalOptimum));
        // A limited stride: the diagonal and the lowest bit.
        let near = Request::new().with("pattern", format!("butterfly={size}:1"));
        assert_eq!(Sparse::spec((n, n), &near).unwrap().nnz, 2 * n * size);
    }
    // Stretched, cut at the edges, and smaller than a block: every row and column has a block, and sizes are told before.
    for ((m, n), size) in
        [((10, 40), 2), ((40, 10), 3), ((13, 29), 4), ((5, 5), 8), ((1, 17), 2), ((1, 1), 1)]
    {
        let spec =
            Sparse::spec((m, n), &Request::new().with("pattern", format!("butterfly={size}"))).unwrap();
        let found = project::<Sparse>(&gaussian(m, n, 2), &spec).matrix;
        assert_eq!(found.nnz(), spec.nnz, "{m}x{n} {size}");
        let dense = found.to_dense_f64();
        assert!(dense.rows().into_iter().all(|row| row.iter().any(|v| *v != 0.0)));
        assert!(dense.columns().into_iter().all(|column| column.iter().any(|v| *v != 0.0)));
    }
    for bad in ["butterfly=", "butterfly=0", "butterfly=2:0", "butterfly=2:x", "butterfly"] {
        let error = Sparse::spec((8, 8), &Request::new().with("pattern", bad)).unwrap_err().to_string();
        assert!(error.contains("butterfly=b:strides"), "{bad}: {error}");
    }
    let none = SparseSpec { nnz: 1, pattern: SparsePattern::Butterfly { size: 0, strides: 1 } };
    assert!(Sparse::project(&gaussian(4, 4, 1), &none, &PLAIN, &exactly()).is_err());
    let small = Request::new().with("pattern", "butterfly=4").budget(Budget::Params(10));
    assert!(matches!(Sparse::spec((8, 8), &small), Err(Error::Budget { .. })));
}

/// The sum of a flat block butterfly and a low-rank matrix, fitted in turns.
#[test]
fn pixelated_butterflies_are_sums() {
    let w = with_spectrum(32, 32, 3, |k| 0.6f64.powi(k as i32)) + gaussian(32, 32, 4) * 0.02;
    let flat = Sparse::spec((32, 32), &Request::new().with("pattern", "butterfly=4:2")).unwrap();
    let rank = LowRankSpec { rank: 3, ..Default::default() };
    let mut sparse = project::<Sparse>(&w, &flat).matrix;
    let mut errors = Vec::new();
    for _ in 0..4 {
        let low = project::<LowRank>(&(&w - &sparse.to_dense_f64()), &rank).matrix;
        sparse = project::<Sparse>(&(&w - &low.to_dense_f64()), &flat).matrix;
        let sum = Sum::new(vec![Box::new(sparse.clone()) as Boxed, Box::new(low)]).unwrap();
        errors.push(sum.relative_error(&w).unwrap());
    }
    assert!(falls(&errors) && errors[3] < project::<LowRank>(&w, &rank).report.relative_error, "{errors:?}");
}

#[test]
fn shuffled_blocks_are_blocks_with_a_fixed_stride_behind_them() {
    for ((m, n), b) in [((12, 20), 4), ((13, 29), 4), ((6, 6), 6), ((5, 3), 1), ((1, 4), 1)] {
        let spec = BlockDiagonalSpec { blocks: b, permuted: false };
        let plain = BlockDiagonal::random((m, n), &spec, Storage::F64, 1).unwrap();
        let blocks = plain.parts().factors().next().unwrap().1.clone();
        let w = BlockDiagonal::shuffled((m, n), blocks).unwrap();
        let order = BlockDiagonal::shuffle(m, b);
        assert_eq!(w.n_params(), plain.n_params());
        // Row `order[i]` of the shuffled matrix is row `i` of the plain one.
        let mut back = vec![0u32; m];
        order.iter().enumerate().for_each(|(i, &row)| back[row as usize] = i as u32);
        let permuted = Permuted::new(Some(back), Box::new(plain.clone()), None).unwrap();
        assert_eq!(w.to_dense_f64(), permuted.to_dense_f64(), "{m}x{n} {b}");
        let x = gaussian(3, n, 2);
        assert!(difference(&w.matmul(&x).unwrap(), &x.dot(&w.to_dense_f64().t())) < 1e-12);
        if m % b == 0 {
            assert!((0..m).all(|i| order[i] as usize == i % (m / b) * b + i / (m / b)));
        }
        // Its projection is that of the rows in the order of the blocks.
        let dense = w.to_dense_f64();
        let ordered = Array2::from_shape_fn((m, n), |(i, j)| dense[[order[i] as usize, j]]);
        assert_eq!(project::<BlockDiagonal>(&ordered, &spec).report.relative_error, 0.0);
    }
    assert_eq!(BlockDiagonal::shuffle(0, 3), Vec::<u32>::new());
    assert_eq!(BlockDiagonal::shuffle(2, 5), [0, 1]);
    assert!(BlockDiagonal::shuffle(3, 0).is_empty());
    let wrong = Factor::from_fn(Storage::F32, (2, 3, 3), |_, _, _| 1.0);
    assert!(BlockDiagonal::shuffled((4, 6), wrong).is_err());
}

/// Two layers of shuffled blocks see every input, two of plain blocks only those of one block.
#[test]
fn a_shuffle_connects_the_blocks_of_two_layers() {
    let spec = BlockDiagonalSpec { blocks: 4, permuted: false };
    let plain = BlockDiagonal::random((16, 16), &spec, Storage::F64, 1).unwrap();
    let blocks = plain.parts().factors().next().unwrap().1.clone();
    let shuffled = BlockDiagonal::shuffled((16, 16), blocks).unwrap().to_dense_f64();
    let plain = plain.to_dense_f64();
    let seen = |w: Array2<f64>| w.iter().filter(|v| **v != 0.0).count();
    assert_eq!((seen(plain.dot(&plain)), seen(plain.dot(&shuffled))), (64, 256));
}

const M: usize = 24;
const N: usize = 32;

/// What is known of a family with these parameters.
struct Case {
    name: &'static str,
    parameters: &'static str,
    /// Parameters of a member of `M x N`.
    params: usize,
    /// Multiply-adds of a product; what transforms take is not counted here.
    multiplies: Option<usize>,
    /// Whether `W` depends linearly on its numbers, where positions are given.
    linear: bool,
    /// How well a member is found again.
    recovery: f64,
}

const fn case(
    name: &'static str,
    parameters: &'static str,
    params: usize,
    multiplies: Option<usize>,
    linear: bool,
    recovery: f64,
) -> Case {
    Case { name, parameters, params, multiplies, linear, recovery }
}

/// A closed form, to rounding.
const EXACT: f64 = 1e-8;

/// Every family at 24 x 32.
const CASES: &[Case] = &[
    case("dense", "", M * N, Some(M * N), true, EXACT),
    case("low_rank", "rank=5", 5 * (M + N), Some(5 * (M + N)), false, EXACT),
    case("low_rank", "rank=5 form=usv", 5 * (M + N + 1), None, false, EXACT),
    case("block_diagonal", "blocks=4", M * N / 4, Some(M * N / 4), true, EXACT),
    case("block_diagonal", "blocks=4 permuted=true", M * N / 4, Some(M * N / 4), true, EXACT),
    case("block_low_rank", "blocks=4x2 rank=2", 2 * (4 * N + 2 * M), Some(2 * (4 * N + 2 * M)), false, EXACT),
    case("monarch", "blocks=4x2 rank=2", 2 * (4 * N + 2 * M), Some(2 * (4 * N + 2 * M)), false, EXACT),
    case("blast", "blocks=4x4 rank=6", 6 * (M + N + 16), None, false, 0.1),
    case("gblr", "numbers=160", 160, Some(160), false, 0.5),
    case("circulant", "", N, None, true, EXACT),
    case("circulant_diagonal", "terms=3", 3 * (M + N), None, false, EXACT),
    case("block_circulant", "block=8", M * N / 8, None, true, EXACT),
    case("toeplitz", "", M + N - 1, None, true, EXACT),
    case("toeplitz", "form=hankel", M + N - 1, None, true, EXACT),
    case("fourier", "coefficients=60", 120, None, true, EXACT),
    case("fourier", "coefficients=60 transform=dct", 60, None, true, EXACT),
    case("butterfly", "block=2", 2 * 2 * 32 * 4, Some(2 * 2 * 32 * 4), false, 1e-6),
    case("kaleidoscope", "block=1", 4 * 32 * 5, Some(4 * 32 * 5), false, 0.7),
    case(
        "kronecker",
        "blocks=4x4 terms=2",
        2 * (16 + 6 * 8),
        Some(2 * (4 * 6 * 8 + 4 * 4 * 6)),
        false,
        EXACT,
    ),
    case("tensor_train", "cores=2 rank=3", 3 * (6 * 4 + 4 * 8), None, false, EXACT),
    case("cur", "rank=5 fused=false", 5 * (M + N) + 25, Some(5 * (M + N) + 25), false, EXACT),
    case("sparse", "nnz=90", 90, Some(90), true, EXACT),
    case("sparse", "pattern=2:4", M * N / 2, None, true, EXACT),
    case("sparse", "pattern=block=4 nnz=160", 160, None, true, EXACT),
    case("sparse", "pattern=butterfly=4:1", 2 * 4 * M + 2 * 4 * 8, None, true, EXACT),
    case("column_sparse", "kept=7", 7 * M, Some(7 * M), true, EXACT),
    case("sparse_low_rank", "rank=2 nnz=40", 2 * (M + N) + 40, None, false, 1e-6),
    case("low_rank_columns", "rank=2 kept=4", 2 * (M + N) + 4 * M, Some(2 * (M + N) + 4 * M), false, EXACT),
    case("remapped_low_rank", "rank=5", 5 * (M + N), Some(5 * (M + N)), false, EXACT),
    case("shared_blocks", "blocks=6 distinct=2", 2 * 4 * N, Some(2 * 4 * N), true, EXACT),
    case("equivariant", "n=4", M * N / 8, None, true, EXACT),
    case("equivariant", "group=o n=2 out_axes=3 in_axes=3", 15 * 3 * 4, None, true, EXACT),
    case("equivariant", "group=so n=2 out_axes=2 in_axes=2", 9 * 6 * 8, None, true, EXACT),
    case("equivariant", "group=sp n=2 out_axes=1 in_axes=3", 3 * 12 * 4, None, true, EXACT),
    case("equivariant", "group=s n=2 out_axes=2 in_axes=1", 4 * 6 * 16, None, true, EXACT),
];

impl Case {
    fn request(&self) -> Request {
        let pairs = self.parameters.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.fold(Request::new(), |request, (name, value)| request.with(name, value))
    }

    fn project(&self, w: &Array2<f64>, objective: &Objective<'_>) -> Projected<Boxed> {
        family(self.name).unwrap().project(w, &self.request(), objective, &exactly()).unwrap()
    }

    fn planted(&self, seed: u64) -> Boxed {
        let entry = family(self.name).unwrap();
        entry.random((M, N), &self.request(), Storage::F64, seed).unwrap()
    }

    fn label(&self) -> String {
        format!("{} {}", self.name, self.parameters)
    }
}

#[test]
fn the_list_has_every_family() {
    assert!(FAMILIES.iter().all(|entry| CASES.iter().any(|case| case.name == entry.name)));
}

#[test]
fn parameters_and_costs_follow_their_formulas() {
    for case in CASES {
        let w = case.planted(1);
        assert_eq!(w.n_params(), case.params, "{}", case.label());
        if let Some(multiplies) = case.multiplies {
            for batch in [0, 1, 5] {
                assert_eq!(w.flops(batch), (2 * batch * multiplies) as u64, "{}", case.label());
            }
        }
        let found = case.project(&gaussian(M, N, 2), &PLAIN);
        assert_eq!(found.report.params, case.params, "{}: projected", case.label());
    }
}

#[test]
fn members_are_found_again() {
    for case in CASES {
        for seed in 1..3 {
            // Members of CUR are low-rank matrices in other factors.
            let planted = case.planted(seed).to_dense_f64();
            let error = case.project(&planted, &PLAIN).report.relative_error;
            assert!(error <= case.recovery, "{}: {error:e}", case.label());
        }
    }
}

#[test]
fn residuals_are_orthogonal_to_what_is_linear_and_to_the_fit_itself() {
    let (w, gram) = (gaussian(M, N, 3), correlated_gram(N, 4));
    for case in CASES {
        for objective in [PLAIN, Objective::Activations(&gram)] {
            let found = case.project(&w, &objective);
            let seen = |a: &Array2<f64>| objective.second_moment().map_or(a.clone(), |c| a.dot(c));
            let fit = found.matrix.to_dense_f64();
            let residual = seen(&(&w - &fit));
            let cosine = |member: &Array2<f64>| (&residual * member).sum() / (norm(&seen(&w)) * norm(member));
            // Along the fit itself every cone has its optimum.
            let local = found.report.guarantee != Guarantee::GlobalOptimum;
            let tolerance = if local { 2e-2 } else { 1e-6 };
            assert!(cosine(&fit).abs() < tolerance, "{} {objective:?}: {:e}", case.label(), cosine(&fit));
            if !case.linear {
                continue;
            }
            let exact = objective.second_moment().is_none();
            for seed in 0..4 {
                let mut numbers = found.matrix.factor_numbers::<f64>();
                for (k, numbers) in numbers.iter_mut().enumerate() {
                    let noise = gaussian(1, numbers.len(), 10 * seed + k as u64);
                    numbers.iter_mut().zip(&noise).for_each(|(number, noise)| *number = *noise);
                }
                let other = found.matrix.with_numbers(&numbers, Storage::F64).unwrap().to_dense_f64();
                let (found, limit) = (cosine(&other).abs(), if exact { 1e-10 } else { 1e-3 });
                assert!(found < limit, "{} {objective:?}: {found:e}", case.label());
            }
        }
    }
}

#[test]
fn projections_are_idempotent_and_no_longer_than_the_weight() {
    let w = with_spectrum(M, N, 5, |k| 1.0 / (1.0 + k as f64));
    for case in CASES {
        let once = case.project(&w, &PLAIN);
        let fit = once.matrix.to_dense_f64();
        assert!(norm(&fit) <= norm(&w) * (1.0 + 1e-6), "{}: {}", case.label(), norm(&fit) / norm(&w));
        let twice = case.project(&fit, &PLAIN);
        let limit = if case.recovery <= EXACT { 1e-6 } else { case.recovery };
        assert!(twice.report.relative_error <= limit, "{}: {:e}", case.label(), twice.report.relative_error);
    }
}

#[test]
fn errors_do_not_rise_with_the_budget() {
    for w in [gaussian(32, 32, 6), with_spectrum(32, 32, 7, |k| 1.0 / (1.0 + k as f64))] {
        for entry in FAMILIES {
            let mut last = f64::INFINITY;
            for ratio in [0.1, 0.2, 0.4, 0.8] {
                match entry.project(&w, &Request::new().budget(Budget::Ratio(ratio)), &PLAIN, &exactly()) {
                    Err(Error::Budget { .. }) => continue,
                    found => {
                        let error = found.unwrap().report.relative_error;
                        assert!(
                            error <= last * (1.0 + 1e-9),
                            "{} at {ratio}: {error} after {last}",
                            entry.name
                        );
                        last = error;
                    }
                }
            }
        }
    }
}

#[test]
fn activations_never_cost_and_the_identity_changes_nothing() {
    let (w, gram) = (gaussian(M, N, 8), correlated_gram(N, 9));
    let unit = Gram::from_second_moment(&Array2::<f64>::eye(N)).unwrap();
    for case in CASES {
        let plain = case.project(&w, &PLAIN);
        let aware = case.project(&w, &Objective::Activations(&gram));
        let (a, b) = (
            weighted_energy(&w, aware.matrix.as_ref(), &gram),
            weighted_energy(&w, plain.matrix.as_ref(), &gram),
        );
        assert!(a <= b * (1.0 + 1e-9) + 1e-12, "{}: {a} against {b}", case.label());
        let same = case.project(&w, &Objective::Activations(&unit));
        let (error, before) = (same.report.relative_error, plain.report.relative_error);
        // Further sweeps of local methods may find a little more.
        let optimal = plain.report.guarantee == Guarantee::GlobalOptimum;
        let least = if optimal { before * (1.0 - 1e-8) - 1e-12 } else { 0.9 * before };
        assert!(
            error <= before * (1.0 + 1e-8) + 1e-12 && error >= least,
            "{}: {error} {before}",
            case.label()
        );
    }
}

/// At equal parameters: rows are matrices (Gaussian, power law, a member of each family), columns are families.
#[test]
fn at_equal_parameters_each_family_wins_on_its_own_member() {
    let error = |w: &Array2<f64>, entry: &structmat::registry::Entry, params: usize| {
        let request = Request::new().budget(Budget::Params(params));
        match entry.project(w, &request, &PLAIN, &exactly()) {
            Ok(found) => found.report.relative_error,
            Err(Error::Budget { .. }) => 1.0,
            Err(error) => panic!("{}: {error}", entry.name),
        }
    };
    let others = |w: &Array2<f64>, params: usize| -> Vec<(&'static str, f64)> {
        FAMILIES.iter().skip(1).map(|entry| (entry.name, error(w, entry, params))).collect()
    };
    let show = |what: &str, row: &[(&str, f64)]| {
        let cells: Vec<_> = row.iter().map(|(name, e)| format!("{name} {e:.3}")).collect();
        println!("{what}: {}", cells.join(", "));
    };
    let best = |row: &[(&'static str, f64)], among: &dyn Fn(&str) -> bool| {
        let best = row.iter().filter(|(name, _)| among(name)).min_by(|a, b| a.1.total_cmp(&b.1));
        *best.unwrap()
    };
    let (m, n) = (32, 32);
    // Half the numbers: of noise the largest entries hold most (with or without a low-rank part), of a falling spectrum the first singular vectors.
    let row = others(&gaussian(m, n, 10), m * n / 2);
    show("gaussian", &row);
    assert_eq!(best(&row, &|name| name != "sparse_low_rank").0, "sparse", "{row:?}");
    let row = others(&with_spectrum(m, n, 11, |k| (1.0 + k as f64).powi(-2)), m * n / 2);
    show("power law", &row);
    let contain_low_rank = [
        "blast",
        "gblr",
        "sparse_low_rank",
        "low_rank_columns",
        "remapped_low_rank",
        "tensor_train",
        "kronecker",
    ];
    assert_eq!(best(&row, &|name| !contain_low_rank.contains(&name)).0, "low_rank", "{row:?}");
    for entry in FAMILIES.iter().skip(1) {
        let request = Request::new().budget(Budget::Ratio(0.4));
        let planted = match entry.random((m, n), &request, Storage::F64, 12) {
            Err(Error::Budget { .. }) => {
                let larger = Request::new().budget(Budget::Ratio(0.99));
                entry.random((m, n), &larger, Storage::F64, 12).unwrap()
            }
            planted => planted.unwrap(),
        };
        let row = others(&planted.to_dense_f64(), planted.n_params());
        show(&format!("member of {} ({} parameters)", entry.name, planted.n_params()), &row);
        let own = row.iter().find(|(name, _)| *name == entry.name).unwrap().1;
        let (winner, least) = best(&row, &|_| true);
        // Local methods that do not find random members again; but they find more than what they contain does.
        let contained = [("kaleidoscope", "butterfly"), ("gblr", "low_rank"), ("gblr", "block_low_rank")];
        if contained.iter().any(|(name, _)| *name == entry.name) {
            for (_, inside) in contained.iter().filter(|(name, _)| *name == entry.name) {
                let inside = row.iter().find(|(name, _)| name == inside).unwrap().1;
                assert!(own < 0.6 * inside, "{row:?}");
            }
            continue;
        }
        assert!(own <= least + 1e-8, "{}: {own}, but {winner} {least}", entry.name);
    }
}
