//! Block-diagonal, block-low-rank and Monarch matrices: optimality, recovery, reference cases.

mod common;

use common::oracle::Oracle;
use common::{correlated_gram, difference, exactly, falls, gaussian, norm, singular_gram, weighted_energy};
use num_complex::Complex;
use structmat::linalg;
use structmat::ndarray::{Array1, Array2, Array3, Ix3, s};
use structmat::prelude::*;
use structmat::structures::ComplexMonarch;

fn project<F: Family>(w: &Array2<f64>, spec: &F::Spec) -> Projected<F> {
    F::project(w, spec, &Objective::Frobenius, &exactly()).unwrap()
}

/// Rows of block row `j` of `blocks`, in Monarch's order.
fn interleaved(w: &Array2<f64>, j: usize, blocks: usize) -> Array2<f64> {
    w.slice(s![j..;blocks, ..]).to_owned()
}

fn tail(block: &Array2<f64>, rank: usize) -> f64 {
    linalg::singular_values(block, linalg::Threads(1)).unwrap()[rank..].iter().map(|v| v * v).sum()
}

#[test]
fn monarch_is_the_product_of_permutations_and_block_diagonals() {
    // Entry 3 (a), with explicit matrices: P_out BD2 P_mid BD1.
    let (k, p, j, s, t) = (5, 12, 4, 12, 2);
    let (w1, w2) = (gaussian(k * t * j, p, 1), gaussian(j * s, k * t, 2));
    let w1 = w1.into_shape_with_order((k, t * j, p)).unwrap();
    let w2 = w2.into_shape_with_order((j, s, k * t)).unwrap();
    let g = k * t;
    let mut bd1 = Array2::zeros((k * t * j, k * p));
    let mut bd2 = Array2::zeros((j * s, j * g));
    let (mut middle, mut out) = (Array2::zeros((j * g, k * t * j)), Array2::zeros((j * s, j * s)));
    for b in 0..k {
        bd1.slice_mut(s![b * t * j..(b + 1) * t * j, b * p..(b + 1) * p]).assign(&w1.slice(s![b, .., ..]));
    }
    for b in 0..j {
        bd2.slice_mut(s![b * s..(b + 1) * s, b * g..(b + 1) * g]).assign(&w2.slice(s![b, .., ..]));
    }
    for lambda in 0..j {
        (0..g).for_each(|rho| middle[[lambda * g + rho, rho * j + lambda]] = 1.0);
        (0..s).for_each(|sigma| out[[sigma * j + lambda, lambda * s + sigma]] = 1.0);
    }
    let expected = out.dot(&bd2).dot(&middle).dot(&bd1);
    let monarch = Monarch::from_stages(Storage::F64, &w1, &w2, 1).unwrap();
    assert!(difference(&monarch.to_dense_f64(), &expected) < 1e-12);
    assert!(
        difference(&monarch.matmul(&Array2::<f64>::eye(k * p)).unwrap().t().to_owned(), &expected) < 1e-12
    );
    assert_eq!((monarch.shape(), monarch.n_params()), ((48, 60), 960)); // (e)
}

#[test]
fn grids_of_low_rank_blocks_meet_eckart_and_young() {
    // Entry 3 (c), also where nothing divides: the error is the sum of the blocks' tails.
    for (m, n, j, k, t) in [(48, 60, 4, 5, 2), (64, 64, 8, 8, 1), (30, 42, 3, 2, 4)] {
        let w = gaussian(m, n, 3);
        let spec = MonarchSpec { blocks: (j, k), rank: t };
        let (monarch, blocks) = (project::<Monarch>(&w, &spec), project::<BlockLowRank>(&w, &spec));
        assert_eq!(
            (monarch.report.guarantee, blocks.report.guarantee),
            (Guarantee::GlobalOptimum, Guarantee::GlobalOptimum)
        );
        let (s, p) = (m / j, n / k);
        let (mut expected, mut expected_blocks) = (0.0, 0.0);
        for b in 0..j {
            for c in (0..n).step_by(p) {
                expected += tail(&interleaved(&w, b, j).slice(s![.., c..c + p]).to_owned(), t);
                expected_blocks += tail(&w.slice(s![b * s..(b + 1) * s, c..c + p]).to_owned(), t);
            }
        }
        let square = |p: &Report| (p.relative_error * norm(&w)).powi(2);
        assert!((square(&monarch.report) - expected).abs() < 1e-10 * expected);
        assert!((square(&blocks.report) - expected_blocks).abs() < 1e-10 * expected_blocks);
        for seed in 0..5 {
            let other = Monarch::random((m, n), &spec, Storage::F64, seed).unwrap();
            let nearby = &monarch.matrix.to_dense_f64() + &(other.to_dense_f64() * 1e-3);
            let nearby = project::<Monarch>(&nearby, &spec).matrix;
            assert!(nearby.relative_error(&w).unwrap() >= monarch.report.relative_error);
        }
    }
}

#[test]
fn planted_members_are_recovered() {
    for (m, n, j, k, t) in [(48, 60, 4, 5, 2), (33, 47, 4, 3, 3), (7, 9, 7, 9, 1), (1, 1, 1, 1, 1)] {
        let spec = MonarchSpec { blocks: (j, k), rank: t };
        let planted = Monarch::random((m, n), &spec, Storage::F64, 1).unwrap().to_dense_f64();
        assert!(project::<Monarch>(&planted, &spec).report.relative_error < 1e-10);
        let planted = BlockLowRank::random((m, n), &spec, Storage::F64, 2).unwrap().to_dense_f64();
        assert!(project::<BlockLowRank>(&planted, &spec).report.relative_error < 1e-10);
        let as_f32 = BlockLowRank::project(
            &planted.mapv(|v| v as f32),
            &spec,
            &Objective::Frobenius,
            &Options::default(),
        );
        assert!(as_f32.unwrap().report.relative_error < 1e-4);
    }
}

#[test]
fn one_block_is_low_rank_and_full_rank_is_exact() {
    let w = gaussian(20, 30, 5);
    let low_rank =
        project::<LowRank>(&w, &LowRankSpec { rank: 6, ..Default::default() }).report.relative_error;
    let grid =
        project::<BlockLowRank>(&w, &BlockLowRankSpec { blocks: (1, 1), rank: 6 }).report.relative_error;
    assert!((low_rank - grid).abs() < 1e-12);
    assert!(project::<Monarch>(&w, &MonarchSpec { blocks: (4, 5), rank: 5 }).report.relative_error < 1e-12);
}

#[test]
fn the_fourier_matrix_is_a_permuted_complex_monarch() {
    // Entry 3 (d).
    for (n, n1) in [(15, 3), (16, 4), (36, 6), (64, 8), (85, 5), (168, 12)] {
        let turn = |i: usize, j: usize| {
            Complex::from_polar(1.0, -std::f64::consts::TAU * (i * j % n) as f64 / n as f64)
        };
        // Columns permuted by transposing an n / n1 x n1 grid.
        let column = |c: usize| c % (n / n1) * n1 + c / (n / n1);
        let dft = Array2::from_shape_fn((n, n), |(i, c)| turn(i, column(c)));
        let monarch = ComplexMonarch::project(&dft, (n / n1, n1), 1).unwrap();
        let error = (&monarch.to_dense() - &dft).iter().map(|v| v.norm_sqr()).sum::<f64>().sqrt();
        assert!(error < 1e-10 * n as f64, "n = {n}: {error:e}");
        let x = Array1::from_shape_fn(n, |i| Complex::new((i * i % 7) as f64, (i % 5) as f64));
        let difference =
            (monarch.matvec(&x).unwrap() - dft.dot(&x)).iter().map(|v| v.norm()).fold(0.0, f64::max);
        assert!(difference < 1e-10, "n = {n}: {difference:e}");
        assert_eq!(monarch.n_params(), n * n1 + n * (n / n1));
    }
    assert!(ComplexMonarch::project(&Array2::zeros((6, 6)), (4, 2), 1).is_err());
    assert!(ComplexMonarch::project(&Array2::zeros((6, 6)), (2, 2), 4).is_err());
}

fn stages(oracle: &Oracle, case: &serde_json::Value) -> (Array3<f64>, Array3<f64>) {
    let three = |name: &str| oracle.tensor(case, name).unwrap().into_dimensionality::<Ix3>().unwrap();
    (three("w1"), three("w2"))
}

#[test]
fn reference_projections_are_met_and_reference_factors_understood() {
    let oracle = Oracle::open("monarch");
    let mut seen = 0;
    for case in oracle.cases.iter().filter(|case| case["tensors"]["input"].is_string()) {
        let (name, form) = (case["name"].as_str().unwrap(), case["form"].as_str().unwrap());
        let w = oracle.matrix(case, "input");
        let (w1, w2) = stages(&oracle, case);
        let group = case["args"]["b2"].as_u64().unwrap_or(1) as usize;
        let rank = case["args"]["rank"].as_u64().or(case["args"]["b1"].as_u64()).unwrap_or(1) as usize;
        let theirs = match form {
            // Rows of the first stage ordered (block, input) instead of (input, block).
            "b1b2" => {
                let j = w2.dim().0;
                let regrouped = Array3::from_shape_fn(w1.dim(), |(k, r, i)| w1[[k, r % j * rank + r / j, i]]);
                Monarch::from_stages(Storage::F64, &regrouped, &w2, group).unwrap()
            }
            _ => Monarch::from_stages(Storage::F64, &w1, &w2, group).unwrap(),
        };
        let error = theirs.relative_error(&w).unwrap();
        let stated = case["rel_error"].as_f64().unwrap();
        assert!((error - stated).abs() < 1e-7, "{name}: {error} read as {stated}");
        if oracle.tensor(case, "probe_x").is_some() {
            let y = theirs.matmul(&oracle.matrix(case, "probe_x")).unwrap();
            assert!(difference(&y, &oracle.matrix(case, "probe_y")) < 1e-6, "{name}");
        }
        if group == 1 {
            let spec = MonarchSpec { blocks: (w2.dim().0, w1.dim().0), rank };
            let ours = project::<Monarch>(&w, &spec).report.relative_error;
            assert!(ours <= stated + 1e-7, "{name}: {ours} against {stated}");
        }
        seen += 1;
    }
    assert!(seen >= 9);
}

#[test]
fn reference_products_are_met() {
    let oracle = Oracle::open("monarch");
    let cases: Vec<_> = oracle.cases.iter().filter(|case| case["form"] == "multiply").collect();
    assert!(cases.len() >= 3);
    for case in cases {
        let (w1, w2) = stages(&oracle, case);
        let monarch = Monarch::from_stages(Storage::F64, &w1, &w2, 1).unwrap();
        let y = monarch.matmul(&oracle.matrix(case, "x")).unwrap();
        assert!(difference(&y, &oracle.matrix(case, "y")) < 1e-6, "{}", case["name"]);
    }
}

#[test]
fn activations_lower_the_weighted_error() {
    let w = gaussian(24, 36, 7);
    for gram in [correlated_gram(36, 1), singular_gram(36, 10, 2)] {
        let objective = Objective::Activations(&gram);
        for (j, k, t) in [(4, 3, 2), (2, 6, 1), (1, 4, 5), (5, 5, 2), (3, 1, 4)] {
            let spec = MonarchSpec { blocks: (j, k), rank: t };
            let weighted = Monarch::project(&w, &spec, &objective, &exactly()).unwrap();
            let plain = project::<Monarch>(&w, &spec);
            let (a, b) =
                (weighted_energy(&w, &weighted.matrix, &gram), weighted_energy(&w, &plain.matrix, &gram));
            assert!(a < b, "{j}x{k} rank {t}: {a} against {b}");
            assert!(falls(&weighted.report.history));
            let weighted = BlockLowRank::project(&w, &spec, &objective, &exactly()).unwrap().matrix;
            assert!(
                weighted_energy(&w, &weighted, &gram)
                    < weighted_energy(&w, &project::<BlockLowRank>(&w, &spec).matrix, &gram)
            );
        }
        for blocks in [1, 2, 4, 5] {
            for permuted in [false, true] {
                let spec = BlockDiagonalSpec { blocks, permuted };
                let weighted = BlockDiagonal::project(&w, &spec, &objective, &exactly()).unwrap().matrix;
                let plain = project::<BlockDiagonal>(&w, &spec).matrix;
                let (a, b) = (weighted_energy(&w, &weighted, &gram), weighted_energy(&w, &plain, &gram));
                assert!(a < b * (1.0 + 1e-9) + 1e-9, "{blocks} {permuted}: {a} against {b}");
            }
        }
    }
}

#[test]
fn unit_activations_are_the_plain_objective() {
    let w = gaussian(12, 18, 8);
    let gram = Gram::from_second_moment(&Array2::<f64>::eye(18)).unwrap();
    let objective = Objective::Activations(&gram);
    let spec = MonarchSpec { blocks: (3, 3), rank: 2 };
    let a = Monarch::project(&w, &spec, &objective, &exactly()).unwrap();
    assert!(
        difference(&a.matrix.to_dense_f64(), &project::<Monarch>(&w, &spec).matrix.to_dense_f64()) < 1e-8
    );
    let spec = BlockDiagonalSpec { blocks: 3, permuted: false };
    let a = BlockDiagonal::project(&w, &spec, &objective, &exactly()).unwrap();
    assert!(
        difference(&a.matrix.to_dense_f64(), &project::<BlockDiagonal>(&w, &spec).matrix.to_dense_f64())
            < 1e-10
    );
}

#[test]
fn uncoupled_activations_have_a_closed_form_for_grids() {
    // C block-diagonal with the grid's own blocks: the whitened blocks are independent low-rank problems.
    let (w, mut c) = (gaussian(12, 20, 9), correlated_gram(20, 3).second_moment().clone());
    for ((i, j), v) in c.indexed_iter_mut() {
        *v *= f64::from(u8::from(i / 5 == j / 5));
    }
    let gram = Gram::from_second_moment(&c).unwrap();
    let spec = BlockLowRankSpec { blocks: (3, 4), rank: 2 };
    let found = BlockLowRank::project(&w, &spec, &Objective::Activations(&gram), &exactly()).unwrap().matrix;
    let mut expected = 0.0;
    for b in 0..3 {
        for k in 0..4 {
            let root = linalg::symmetric_root(&c.slice(s![k * 5..k * 5 + 5, k * 5..k * 5 + 5])).unwrap().0;
            expected += tail(&w.slice(s![b * 4..b * 4 + 4, k * 5..k * 5 + 5]).dot(&root), 2);
        }
    }
    assert!((weighted_energy(&w, &found, &gram) - expected).abs() < 1e-8 * expected);
}

#[test]
fn block_diagonal_is_the_blocks_and_the_weighted_one_solves_its_normal_equations() {
    let w = gaussian(12, 20, 4);
    let spec = BlockDiagonalSpec { blocks: 4, permuted: false };
    let plain = project::<BlockDiagonal>(&w, &spec);
    let inside = |i: usize, j: usize| i / 3 == j / 5;
    let expected = Array2::from_shape_fn(w.dim(), |(i, j)| if inside(i, j) { w[[i, j]] } else { 0.0 });
    assert_eq!(plain.matrix.to_dense_f64(), expected);
    let gram = correlated_gram(20, 5);
    let weighted = BlockDiagonal::project(&w, &spec, &Objective::Activations(&gram), &exactly()).unwrap();
    assert_eq!(weighted.report.guarantee, Guarantee::GlobalOptimum);
    // The gradient vanishes on the blocks.
    let gradient = (&w - &weighted.matrix.to_dense_f64()).dot(gram.second_moment());
    let largest = gradient
        .indexed_iter()
        .filter(|((i, j), _)| inside(*i, *j))
        .map(|(_, v)| v.abs())
        .fold(0.0, f64::max);
    assert!(largest < 1e-9, "{largest:e}");
}

#[test]
fn permuted_blocks_are_found_again() {
    // 32 x 32, 4 groups, 5 % noise; at least what was planted is captured.
    for (m, n, b, seed) in [(32, 32, 4, 1), (30, 45, 5, 2), (24, 16, 8, 3)] {
        let spec = BlockDiagonalSpec { blocks: b, permuted: false };
        let blocks = BlockDiagonal::random((m, n), &spec, Storage::F64, seed).unwrap().to_dense_f64();
        let shuffle = |len: usize, by: usize| (0..len).map(|i| i * by % len).collect::<Vec<_>>();
        let (rows, cols) = (shuffle(m, 7), shuffle(n, 11));
        let planted = Array2::from_shape_fn((m, n), |(i, j)| blocks[[rows[i], cols[j]]]);
        let noise = gaussian(m, n, seed + 9) * (0.05 * norm(&planted) / ((m * n) as f64).sqrt());
        let w = &planted + &noise;
        let outside =
            Array2::from_shape_fn((m, n), |(i, j)| if planted[[i, j]] == 0.0 { noise[[i, j]] } else { 0.0 });
        let found = project::<BlockDiagonal>(&w, &BlockDiagonalSpec { blocks: b, permuted: true });
        assert!(
            found.report.relative_error <= norm(&outside) / norm(&w) + 1e-12,
            "{m}x{n}: {}",
            found.report.relative_error
        );
        assert!(found.report.relative_error < project::<BlockDiagonal>(&w, &spec).report.relative_error);
    }
}

#[test]
fn wrong_specs_are_refused() {
    let w = gaussian(8, 6, 1);
    for (blocks, rank) in [((0, 1), 1), ((9, 1), 1), ((1, 7), 1), ((2, 2), 0), ((2, 2), 4)] {
        let spec = MonarchSpec { blocks, rank };
        assert!(Monarch::project(&w, &spec, &Objective::Frobenius, &exactly()).is_err(), "{spec:?}");
    }
    for blocks in [0, 7] {
        let spec = BlockDiagonalSpec { blocks, permuted: true };
        assert!(BlockDiagonal::project(&w, &spec, &Objective::Frobenius, &exactly()).is_err());
    }
    let stage = |k: usize, q: usize, p: usize| Array3::<f64>::zeros((k, q, p));
    assert!(Monarch::from_stages(Storage::F32, &stage(2, 4, 3), &stage(4, 2, 3), 1).is_err());
    assert!(Monarch::from_stages(Storage::F32, &stage(2, 4, 3), &stage(4, 2, 2), 3).is_err());
    assert!(Monarch::from_stages(Storage::F32, &stage(0, 4, 3), &stage(4, 2, 0), 1).is_err());
}
