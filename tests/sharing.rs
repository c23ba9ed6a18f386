//! Weights shared between matrices: dictionaries, experts on a shared basis, shared heads, tied transposes.

mod common;

use common::{correlated_gram, difference, exactly, falls, gaussian, norm, singular_gram};
use structmat::Error;
use structmat::io::{Checkpoint, Writer};
use structmat::layers::{Activation, TiedFfn};
use structmat::linalg::{self, Threads};
use structmat::ndarray::{Array1, Array2, ArrayView2, array, s};
use structmat::prelude::*;
use structmat::registry::FAMILIES;
use structmat::sharing::{
    Between, DictionarySpec, ExpertStart, ExpertsSpec, Gauge, Heads, KeptHead, MatchSpec, Mixing, Residual,
    RotaryPairs, SharedAtoms, SharedBasisExperts, SharedDictionary, SharedObjective, TieObjective,
    group_by_similarity, matrix_pca, procrustes, tie_transpose, weighted_mean,
};

type Function = fn(f64) -> f64;

fn square(a: &Array2<f64>) -> f64 {
    norm(a).powi(2)
}

/// Squared singular values from `rank` on.
fn tail(a: &Array2<f64>, rank: usize) -> f64 {
    linalg::singular_values(a, Threads::ONE).unwrap().iter().skip(rank).map(|s| s * s).sum()
}

fn many(count: u64, rows: usize, cols: usize, seed: u64) -> Vec<Array2<f64>> {
    (0..count).map(|l| gaussian(rows, cols, seed + l)).collect()
}

fn stacked(weights: &[Array2<f64>]) -> Array2<f64> {
    let views: Vec<ArrayView2<'_, f64>> = weights.iter().map(|w| w.view()).collect();
    structmat::ndarray::concatenate(structmat::ndarray::Axis(0), &views).unwrap()
}

/// Each matrix as a row.
fn flat(weights: &[Array2<f64>]) -> Array2<f64> {
    Array2::from_shape_fn((weights.len(), weights[0].len()), |(l, k)| {
        weights[l].iter().nth(k).copied().unwrap()
    })
}

/// `planted` matrices behind `count` members.
fn planted(count: usize, atoms: &[Array2<f64>], seed: u64) -> Vec<Array2<f64>> {
    let mix = gaussian(count, atoms.len(), seed);
    let member = |l: usize| {
        atoms.iter().enumerate().fold(Array2::zeros(atoms[0].dim()), |sum, (s, d)| sum + d * mix[[l, s]])
    };
    (0..count).map(member).collect()
}

fn dictionary_error(weights: &[Array2<f64>], dictionary: &SharedDictionary, grams: Option<&[Gram]>) -> f64 {
    let energy = |(l, w): (usize, &Array2<f64>)| {
        let error = w - &dictionary.member(l).unwrap().to_dense_f64();
        grams.map_or(Objective::Frobenius, |grams| Objective::Activations(&grams[l])).energy(&error)
    };
    weights.iter().enumerate().map(energy).sum()
}

fn atoms(count: usize) -> DictionarySpec {
    DictionarySpec { atoms: count, ..Default::default() }
}

// Matrix dictionaries (MASA).

#[test]
fn masa_errors_are_the_tail_of_the_gram_matrix() {
    let weights = many(7, 5, 8, 1);
    let rows = flat(&weights);
    let values = linalg::eigvalsh(&rows.dot(&rows.t()), Threads::ONE).unwrap();
    for count in 1..=7 {
        let (dictionary, report) =
            matrix_pca(&weights, &atoms(count), &SharedObjective::Frobenius, &exactly()).unwrap();
        let (error, expected) =
            (dictionary_error(&weights, &dictionary, None), values[count..].iter().sum::<f64>());
        assert!((error - expected).abs() < 1e-8, "{count}: {error} {expected}");
        assert!((report.relative_error - (expected / square(&rows)).sqrt()).abs() < 1e-8);
        assert_eq!(report.guarantee, Guarantee::GlobalOptimum);
        assert_eq!(report.params, SharedDictionary::params_of((5, 8), 7, count));
        assert_eq!((report.params, report.members), (dictionary.n_params(), 7));
        let own = difference(&dictionary.member(3).unwrap().to_dense_f64(), &weights[3]);
        assert!((report.member_errors[3] - own).abs() < 1e-12 && report.weighted_relative_error.is_none());
    }
}

#[test]
fn masa_recovers_planted_atoms() {
    let weights = planted(9, &many(3, 6, 7, 10), 20);
    let (dictionary, report) =
        matrix_pca(&weights, &atoms(3), &SharedObjective::Frobenius, &exactly()).unwrap();
    assert!(report.relative_error < 1e-12, "{}", report.relative_error);
    // The same space of matrices: each planted atom is a combination of the found ones.
    let found: Vec<_> = dictionary.shared().atoms().iter().map(|atom| atom.to_dense_f64()).collect();
    let planted = flat(&many(3, 6, 7, 10));
    let mix = linalg::lstsq(&flat(&found).t(), &planted.t()).unwrap();
    assert!(difference(&flat(&found).t().dot(&mix), &planted.t().to_owned()) < 1e-10);
    let (_, fewer) = matrix_pca(&weights, &atoms(2), &SharedObjective::Frobenius, &exactly()).unwrap();
    assert!(fewer.relative_error > 0.05);
}

#[test]
fn masa_is_exact_with_all_atoms_and_the_dominant_direction_with_one() {
    let weights = many(5, 4, 6, 30);
    let (_, all) = matrix_pca(&weights, &atoms(5), &SharedObjective::Frobenius, &exactly()).unwrap();
    assert!(all.relative_error < 1e-13);
    let (one, _) = matrix_pca(&weights, &atoms(1), &SharedObjective::Frobenius, &exactly()).unwrap();
    let svd = linalg::svd(&flat(&weights), Threads::ONE).unwrap().truncate(1).reconstruct(Threads::ONE);
    let found: Vec<_> = (0..5).map(|l| one.member(l).unwrap().to_dense_f64()).collect();
    assert!(difference(&flat(&found), &svd) < 1e-10);
}

/// 24 layers of width 1536, a third as many atoms, four kinds of matrices.
#[test]
fn masa_takes_a_third_of_the_parameters() {
    let dense = 4 * 24 * 1536 * 1536;
    let shared = 4 * SharedDictionary::params_of((1536, 1536), 24, 8);
    assert_eq!(format!("{:.1}e6 {:.1}e6", dense as f64 / 1e6, shared as f64 / 1e6), "226.5e6 75.5e6");
    assert!((1.0 - shared as f64 / dense as f64 - 2.0 / 3.0).abs() < 1e-5);
    assert_eq!(SharedDictionary::params_of((usize::MAX, 2), 3, 4), usize::MAX);
}

#[test]
fn masa_under_one_moment_is_components_of_whitened_matrices() {
    let weights = many(6, 5, 7, 40);
    let gram = correlated_gram(7, 41);
    let (root, inverse, _) = linalg::symmetric_root(gram.second_moment()).unwrap();
    let whitened: Vec<_> = weights.iter().map(|w| w.dot(&root)).collect();
    let svd = linalg::svd(&flat(&whitened), Threads::ONE).unwrap();
    for count in [1, 3, 6] {
        let (dictionary, report) =
            matrix_pca(&weights, &atoms(count), &SharedObjective::Common(&gram), &exactly()).unwrap();
        let best = svd.truncate(count).reconstruct(Threads::ONE);
        for l in 0..6 {
            let row = best.row(l).to_owned().into_shape_with_order((5, 7)).unwrap();
            let expected = row.dot(&inverse);
            assert!(
                difference(&dictionary.member(l).unwrap().to_dense_f64(), &expected) < 1e-8,
                "{count} {l}"
            );
        }
        let total: f64 = svd.s.iter().map(|s| s * s).sum();
        let weighted = report.weighted_relative_error.unwrap();
        assert!((weighted - (svd.tail_energy(count) / total).sqrt()).abs() < 1e-8);
        let (_, plain) =
            matrix_pca(&weights, &atoms(count), &SharedObjective::Frobenius, &exactly()).unwrap();
        assert!(plain.relative_error <= report.relative_error + 1e-12);
    }
    // A moment that sees three directions only is no special case.
    let singular = singular_gram(7, 3, 42);
    let (_, report) =
        matrix_pca(&weights, &atoms(6), &SharedObjective::Common(&singular), &exactly()).unwrap();
    assert!(report.weighted_relative_error.unwrap() < 1e-6);
}

#[test]
fn masa_under_different_moments_falls_and_beats_both_starts() {
    let weights = many(6, 5, 7, 50);
    let grams: Vec<Gram> = (0..6).map(|l| correlated_gram(7, 60 + l)).collect();
    for count in [1, 2, 4] {
        let run = |options: &Options<'_>| {
            matrix_pca(&weights, &atoms(count), &SharedObjective::Each(&grams), options).unwrap()
        };
        let (found, report) = run(&exactly());
        let (start, _) = run(&Options { max_iterations: Some(0), ..exactly() });
        let (plain, _) =
            matrix_pca(&weights, &atoms(count), &SharedObjective::Frobenius, &exactly()).unwrap();
        let error = |dictionary| dictionary_error(&weights, dictionary, Some(&grams));
        assert!(falls(&report.history) && report.history.len() > 2, "{:?}", report.history);
        assert!(error(&found) < error(&start) && error(&start) <= error(&plain), "{count}");
        assert!((report.history.last().unwrap() - report.weighted_relative_error.unwrap()).abs() < 1e-9);
        // Stationary: the errors are orthogonal to what each coefficient and each atom can change.
        let scale: f64 = weights.iter().map(square).sum();
        for (l, w) in weights.iter().enumerate() {
            let seen = (w - &found.member(l).unwrap().to_dense_f64()).dot(grams[l].second_moment());
            for atom in found.shared().atoms() {
                let slope = (&seen * &atom.to_dense_f64()).sum().abs();
                assert!(slope < 1e-2 * scale, "{count} {l}: {slope}");
            }
        }
    }
    // The same moment for all: the closed form cannot be beaten, and is reached.
    let same = vec![grams[0].clone(); 6];
    let (each, _) = matrix_pca(&weights, &atoms(2), &SharedObjective::Each(&same), &exactly()).unwrap();
    let (common, _) =
        matrix_pca(&weights, &atoms(2), &SharedObjective::Common(&same[0]), &exactly()).unwrap();
    let error = |dictionary| dictionary_error(&weights, dictionary, Some(&same));
    assert!((error(&each) / error(&common) - 1.0).abs() < 1e-9);
}

/// What no input sees stays as the plain dictionary has it; what a start does not use can still be found.
#[test]
fn masa_keeps_what_is_not_seen_and_finds_what_its_starts_miss() {
    let weights = many(4, 5, 6, 80);
    let mut grams: Vec<Gram> = (0..3).map(|l| correlated_gram(6, 90 + l)).collect();
    grams.push(Gram::new(6));
    let (found, _) = matrix_pca(&weights, &atoms(2), &SharedObjective::Each(&grams), &exactly()).unwrap();
    assert!(norm(&found.member(3).unwrap().to_dense_f64()) > 0.1 * norm(&weights[3]));
    // Both starts are the first matrix alone, and the second correlates with it as its inputs see it.
    let weights = [array![[2.0, 0.0]], array![[0.0, 1.0]]];
    let moment = |c: f64| Gram::from_second_moment(&array![[1.0, c], [c, 1.0]]).unwrap();
    let grams = [moment(0.9), moment(-0.9)];
    let (_, report) = matrix_pca(&weights, &atoms(1), &SharedObjective::Each(&grams), &exactly()).unwrap();
    assert!(report.weighted_relative_error.unwrap() < 0.2, "{:?}", report.weighted_relative_error);
}

#[test]
fn masa_residuals_are_fitted_by_their_family() {
    let weights = many(6, 12, 10, 70);
    let gram = correlated_gram(10, 71);
    let of = |family: &str, request| Some(Residual { family: family.to_owned(), request });
    let (_, plain) = matrix_pca(&weights, &atoms(3), &SharedObjective::Common(&gram), &exactly()).unwrap();
    for residual in
        [of("low_rank", Request::new().with("rank", 2)), of("sparse", Request::new().with("nnz", 20))]
    {
        let spec = DictionarySpec { residual, ..atoms(3) };
        let (dictionary, report) =
            matrix_pca(&weights, &spec, &SharedObjective::Common(&gram), &exactly()).unwrap();
        assert!(report.weighted_relative_error < plain.weighted_relative_error);
        assert_eq!(report.guarantee, Guarantee::LocalOptimum);
        let own: usize = dictionary.residuals().iter().flatten().map(|r| r.n_params()).sum();
        assert_eq!(report.params, SharedDictionary::params_of((12, 10), 6, 3) + own);
    }
    // A low-rank residual of full rank makes members exact.
    let spec = DictionarySpec { residual: of("low_rank", Request::new().with("rank", 10)), ..atoms(1) };
    let (_, exact) = matrix_pca(&weights, &spec, &SharedObjective::Frobenius, &exactly()).unwrap();
    assert!(exact.relative_error < 1e-12);
    let unknown = DictionarySpec { residual: of("no_such", Request::new()), ..atoms(1) };
    let error = matrix_pca(&weights, &unknown, &SharedObjective::Frobenius, &exactly()).unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }));
}

#[test]
fn masa_groups_find_planted_ones_and_never_beat_a_common_dictionary() {
    // Two kinds of matrices, in turns, some of them negated.
    let (a, b) = (planted(4, &many(1, 6, 6, 80), 81), planted(4, &many(2, 6, 6, 90), 91));
    let near = |w: &Array2<f64>, l: u64| w + &(gaussian(6, 6, 100 + l) * 0.01);
    let weights: Vec<_> =
        (0..8).map(|l| near(if l % 2 == 0 { &a[l / 2] } else { &b[l / 2] }, l as u64)).collect();
    let groups = group_by_similarity(&weights[..], 3).unwrap();
    assert!((0..8).step_by(2).all(|l| groups[l] == 0), "{groups:?}");
    assert!((1..8).step_by(2).all(|l| groups[l] != 0), "{groups:?}");
    for (count, groups) in [(3, 2), (4, 3), (3, 3)] {
        let spec = DictionarySpec { groups, ..atoms(count) };
        let (grouped, report) = matrix_pca(&weights, &spec, &SharedObjective::Frobenius, &exactly()).unwrap();
        let (_, common) =
            matrix_pca(&weights, &atoms(count), &SharedObjective::Frobenius, &exactly()).unwrap();
        assert!(report.relative_error >= common.relative_error - 1e-12);
        assert!(report.guarantee == Guarantee::LocalOptimum);
        // Members multiply by the atoms of their group alone.
        assert!((0..8).all(|l| grouped.shared().member(l).unwrap().terms().len() <= count - groups + 1));
    }
    assert_eq!(group_by_similarity(&weights[..], 8).unwrap(), (0..8).collect::<Vec<_>>());
}

#[test]
fn masa_members_share_their_atoms() {
    let weights = many(5, 6, 9, 110);
    let residual = Residual { family: "low_rank".to_owned(), request: Request::new().with("rank", 1) };
    for residual in [None, Some(residual)] {
        let spec = DictionarySpec { residual, ..atoms(3) };
        let options = Options { storage: Storage::Bf16, ..Options::default() };
        let (dictionary, _) = matrix_pca(&weights, &spec, &SharedObjective::Frobenius, &options).unwrap();
        let x = gaussian(4, 9, 111);
        for l in 0..5 {
            let (member, sum) =
                (dictionary.member(l).unwrap(), dictionary.dense_member(l, Storage::F64).unwrap());
            let expected = x.dot(&member.to_dense_f64().t());
            assert!(difference(&member.matmul(&x).unwrap(), &expected) < 1e-12);
            assert!(difference(&sum.matmul(&x).unwrap(), &expected) < 1e-12);
            assert!(sum.flops(1) < member.flops(1));
        }
        let shared = dictionary.shared();
        let (a, b) = (shared.member(0).unwrap(), shared.member(4).unwrap());
        assert!(a.terms().iter().zip(b.terms()).all(|(a, b)| std::sync::Arc::ptr_eq(a, b)));
        assert!(matches!(dictionary.member(5), Err(Error::Parameter { .. })));
        assert!(shared.storage_bytes() == 3 * 6 * 9 * 2 + 15 * 8);
    }
    let zero = vec![Array2::<f64>::zeros((2, 3)); 3];
    let (dictionary, report) = matrix_pca(&zero, &atoms(2), &SharedObjective::Frobenius, &exactly()).unwrap();
    assert_eq!(report.relative_error, 0.0);
    assert!(dictionary.member(1).unwrap().to_dense_f64().iter().all(|v| *v == 0.0));
}

#[test]
fn dictionaries_refuse_what_does_not_fit() {
    let weights = many(3, 4, 5, 120);
    let run = |weights: &[Array2<f64>], spec: &DictionarySpec, objective: &SharedObjective<'_>| {
        matrix_pca(weights, spec, objective, &exactly()).unwrap_err()
    };
    let plain = SharedObjective::Frobenius;
    for spec in [
        atoms(0),
        atoms(4),
        DictionarySpec { groups: 0, ..atoms(1) },
        DictionarySpec { groups: 3, ..atoms(2) },
    ] {
        assert!(matches!(run(&weights, &spec, &plain), Error::Parameter { .. }), "{spec:?}");
    }
    assert!(matches!(run(&[], &atoms(1), &plain), Error::Parameter { .. }));
    assert!(matches!(run(&[gaussian(2, 2, 1), gaussian(2, 3, 1)], &atoms(1), &plain), Error::Shape { .. }));
    assert!(matches!(run(&[Array2::zeros((0, 2))], &atoms(1), &plain), Error::Shape { .. }));
    assert!(matches!(run(&[array![[1.0, f64::NAN]]], &atoms(1), &plain), Error::NonFinite { .. }));
    let grams = vec![correlated_gram(5, 1); 2];
    assert!(matches!(run(&weights, &atoms(1), &SharedObjective::Each(&grams)), Error::Parameter { .. }));
    let other = correlated_gram(4, 1);
    assert!(matches!(run(&weights, &atoms(1), &SharedObjective::Common(&other)), Error::Shape { .. }));
    assert!(group_by_similarity(&weights[..], 0).is_err() && group_by_similarity(&weights[..], 4).is_err());
    let atom = || -> Box<dyn StructuredMatrix> { Box::new(Dense::new(&gaussian(2, 3, 1)).unwrap()) };
    let other: Box<dyn StructuredMatrix> = Box::new(Dense::new(&gaussian(3, 3, 1)).unwrap());
    assert!(SharedAtoms::new(vec![], gaussian(2, 0, 1)).is_err());
    assert!(SharedAtoms::new(vec![atom()], gaussian(2, 2, 1)).is_err());
    assert!(SharedAtoms::new(vec![atom()], gaussian(0, 1, 1)).is_err());
    assert!(SharedAtoms::new(vec![atom(), other], gaussian(2, 2, 1)).is_err());
    assert!(SharedAtoms::new(vec![atom()], array![[f64::INFINITY]]).is_err());
    let shared = SharedAtoms::new(vec![atom()], gaussian(2, 1, 1)).unwrap();
    assert!(SharedDictionary::with_residuals(shared.clone(), vec![None]).is_err());
    let wrong: Box<dyn StructuredMatrix> = Box::new(Dense::new(&gaussian(3, 2, 1)).unwrap());
    assert!(SharedDictionary::with_residuals(shared, vec![None, Some(wrong)]).is_err());
}

// Mixture of basis experts.

fn linear(rank: usize, atoms: usize) -> ExpertsSpec {
    ExpertsSpec { rank, atoms, activation: Activation::Identity, ..Default::default() }
}

fn expert_energy(weights: &[Array2<f64>], shared: &SharedBasisExperts, objective: &Objective<'_>) -> f64 {
    let error = |(e, w): (usize, &Array2<f64>)| {
        objective.energy(&(w - &shared.expert(e, Storage::F64).unwrap().to_dense_f64()))
    };
    weights.iter().enumerate().map(error).sum()
}

#[test]
fn mobe_experts_multiply_as_their_formula() {
    let coefficients = gaussian(3, 2, 1);
    let (left, basis) = (many(3, 5, 4, 2), many(2, 4, 7, 10));
    let boxed = |w: &Array2<f64>| -> Box<dyn StructuredMatrix> { Box::new(Dense::new(w).unwrap()) };
    let functions: [(Activation, Function); 3] = [
        (Activation::Identity, |x| x),
        (Activation::Silu, |x| x / (1.0 + (-x).exp())),
        (Activation::Tanh, f64::tanh),
    ];
    for (activation, f) in functions {
        let atoms = SharedAtoms::new(basis.iter().map(boxed).collect(), coefficients.clone()).unwrap();
        let shared = SharedBasisExperts::new(left.iter().map(boxed).collect(), atoms, activation).unwrap();
        for e in 0..3 {
            let mixed = &basis[0] * coefficients[[e, 0]] + &basis[1] * coefficients[[e, 1]];
            let w = left[e].dot(&mixed.mapv(f));
            let (x, expert) = (gaussian(6, 7, 20), shared.expert(e, Storage::F64).unwrap());
            assert!(difference(&expert.matmul(&x).unwrap(), &x.dot(&w.t())) < 1e-12, "{activation:?}");
            let single = shared.expert(e, Storage::F32).unwrap().matmul(&x.mapv(|v| v as f32)).unwrap();
            assert!(difference(&single, &x.dot(&w.t())) < 1e-5, "{activation:?}");
        }
        assert_eq!(shared.n_params(), SharedBasisExperts::params_of((5, 7), 3, 4, 2));
        assert_eq!((shared.shape(), shared.experts()), ((5, 7), 3));
        assert!(shared.expert(3, Storage::F32).is_err());
    }
    let atoms = SharedAtoms::new(basis.iter().map(boxed).collect(), coefficients).unwrap();
    assert!(SharedBasisExperts::new(vec![boxed(&left[0])], atoms.clone(), Activation::Tanh).is_err());
    let wrong = [&left[0], &left[1], &basis[0]].map(boxed).into();
    assert!(matches!(SharedBasisExperts::new(wrong, atoms, Activation::Tanh), Err(Error::Shape { .. })));
}

#[test]
fn mobe_alternating_fits_fall_from_group_decompositions_and_stay_above_their_bounds() {
    let weights = many(8, 6, 10, 200);
    let gram = correlated_gram(10, 201);
    let (root, ..) = linalg::symmetric_root(gram.second_moment()).unwrap();
    for (rank, count) in [(3, 2), (4, 4), (6, 3), (2, 8)] {
        for moment in [None, Some(&gram)] {
            let objective = moment.map_or(SharedObjective::Frobenius, SharedObjective::Common);
            let single = moment.map_or(Objective::Frobenius, Objective::Activations);
            let run = |options: &Options<'_>| {
                SharedBasisExperts::fit(&weights, &linear(rank, count), &objective, options).unwrap()
            };
            let (found, report) = run(&exactly());
            let (start, _) = run(&Options { max_iterations: Some(0), ..exactly() });
            let (found, start) =
                (expert_energy(&weights, &found, &single), expert_energy(&weights, &start, &single));
            // The start is the decomposition of each group.
            let seen: Vec<_> = weights.iter().map(|w| moment.map_or(w.clone(), |_| w.dot(&root))).collect();
            let groups = (0..count).map(|g| tail(&stacked(&seen[g * 8 / count..(g + 1) * 8 / count]), rank));
            let expected: f64 = groups.sum();
            assert!((start - expected).abs() < 1e-8 * expected.max(1.0), "{start} {expected}");
            let own: f64 = seen.iter().map(|w| tail(w, rank)).sum();
            let bound = own.max(tail(&stacked(&seen), count * rank));
            assert!(found <= start * (1.0 + 1e-12) && found >= bound - 1e-9, "{found} {start} {bound}");
            assert!(count == 8 || found < 0.99 * start, "{rank} {count}: {found} {start}");
            assert!(falls(&report.history));
            let total: f64 = seen.iter().map(square).sum();
            let reported = moment.map_or(report.relative_error, |_| report.weighted_relative_error.unwrap());
            assert!((reported - (found / total).sqrt()).abs() < 1e-9);
        }
    }
}

#[test]
fn mobe_is_exact_with_a_basis_matrix_for_each_expert() {
    let weights = many(4, 5, 7, 220);
    let run = |spec: &ExpertsSpec| {
        let options = Options { max_iterations: Some(3), ..exactly() };
        SharedBasisExperts::fit(&weights, spec, &SharedObjective::Frobenius, &options).unwrap()
    };
    let (shared, report) = run(&linear(5, 4));
    assert!(report.relative_error < 1e-12);
    // One-hot mixing.
    assert!(difference(shared.basis().coefficients(), &Array2::eye(4)) < 1e-8);
    // The start inverts activation and softmax.
    for activation in [Activation::Identity, Activation::Silu, Activation::Tanh] {
        for mixing in [Mixing::Free, Mixing::Softmax] {
            let (shared, report) = run(&ExpertsSpec { activation, mixing, ..linear(5, 4) });
            assert!(report.relative_error < 1e-9, "{activation:?} {mixing:?}: {}", report.relative_error);
            let sums = shared.basis().coefficients().sum_axis(structmat::ndarray::Axis(1));
            assert!(mixing == Mixing::Free || sums.iter().all(|sum| (sum - 1.0).abs() < 1e-12));
        }
    }
}

#[test]
fn mobe_gradient_fits_start_at_the_decomposition_and_end_lower() {
    let weights = many(8, 6, 10, 230);
    let gram = correlated_gram(10, 231);
    for (activation, mixing) in [
        (Activation::Silu, Mixing::Softmax),
        (Activation::Tanh, Mixing::Softmax),
        (Activation::Silu, Mixing::Free),
        (Activation::Identity, Mixing::Softmax),
    ] {
        for moment in [None, Some(&gram)] {
            let objective = moment.map_or(SharedObjective::Frobenius, SharedObjective::Common);
            let error = |start, steps| {
                let spec = ExpertsSpec { activation, mixing, start, ..linear(4, 3) };
                let options = Options { max_iterations: Some(steps), ..exactly() };
                let (_, report) = SharedBasisExperts::fit(&weights, &spec, &objective, &options).unwrap();
                assert!(falls(&report.history));
                report.weighted_relative_error.unwrap_or(report.relative_error)
            };
            let (start, published) = (error(ExpertStart::Exact, 0), error(ExpertStart::Published, 0));
            let seen: Vec<_> = match moment {
                None => weights.clone(),
                Some(gram) => {
                    let (root, ..) = linalg::symmetric_root(gram.second_moment()).unwrap();
                    weights.iter().map(|w| w.dot(&root)).collect()
                }
            };
            let groups = (0..3).map(|g| tail(&stacked(&seen[g * 8 / 3..(g + 1) * 8 / 3]), 4)).sum::<f64>();
            let expected = (groups / seen.iter().map(square).sum::<f64>()).sqrt();
            assert!(start <= expected + 1e-9, "{activation:?} {mixing:?}: {start} {expected}");
            assert!(start <= published, "{activation:?} {mixing:?}: {start} {published}");
            let end = error(ExpertStart::Exact, 1000);
            assert!(end < 0.99 * start, "{activation:?} {mixing:?}: {end} after {start}");
        }
    }
}

/// What published models save when gate and up projections are shared.
#[test]
fn mobe_ratios_and_savings_are_those_published() {
    // Groups of experts, experts and basis matrices of each, out = rank, in, layers, all parameters, ratio, saving in percent.
    let models = [
        (1, 128, 32, 1536, 4096, 94, 235.0e9, "0.6250", "24.16"),
        (1, 256, 64, 2048, 7168, 58, 671.0e9, "0.5357", "30.16"),
        (2, 192, 64, 2048, 7168, 60, 1026.0e9, "0.6191", "25.12"),
    ];
    for (groups, experts, atoms, p, d, layers, all, ratio, saving) in models {
        let dense = experts * p * d;
        let shared = SharedBasisExperts::params_of((p, d), experts, p, atoms);
        assert_eq!(format!("{:.4}", shared as f64 / dense as f64), ratio);
        let saved = 2.0 * (layers * groups) as f64 * (dense as f64 - shared as f64);
        assert_eq!(format!("{:.2}", 100.0 * saved / all), saving);
    }
}

#[test]
fn mobe_refuses_what_does_not_fit() {
    let weights = many(4, 5, 7, 240);
    let run = |spec: &ExpertsSpec, objective: &SharedObjective<'_>| {
        SharedBasisExperts::fit(&weights, spec, objective, &exactly()).unwrap_err()
    };
    let plain = SharedObjective::Frobenius;
    for spec in [
        linear(0, 2),
        linear(8, 2),
        linear(6, 4),
        linear(2, 0),
        linear(2, 5),
        ExpertsSpec { activation: Activation::Gelu, ..linear(2, 2) },
        ExpertsSpec { rate: f64::NAN, ..linear(2, 2) },
    ] {
        assert!(matches!(run(&spec, &plain), Error::Parameter { .. }), "{spec:?}");
    }
    let grams = vec![correlated_gram(7, 1); 4];
    assert!(matches!(run(&linear(2, 2), &SharedObjective::Each(&grams)), Error::Unsupported { .. }));
    let wrong = correlated_gram(6, 1);
    assert!(matches!(run(&linear(2, 2), &SharedObjective::Common(&wrong)), Error::Shape { .. }));
    let flag = std::sync::atomic::AtomicBool::new(true);
    let options = Options { cancel: Some(&flag), ..exactly() };
    let result = SharedBasisExperts::fit(&weights, &linear(2, 2), &plain, &options);
    assert!(matches!(result, Err(Error::Cancelled)));
    let zero = vec![Array2::<f64>::zeros((3, 4)); 3];
    for activation in [Activation::Identity, Activation::Silu] {
        let options = Options { max_iterations: Some(5), ..exactly() };
        let spec = ExpertsSpec { activation, ..linear(2, 2) };
        let (_, report) = SharedBasisExperts::fit(&zero, &spec, &plain, &options).unwrap();
        assert_eq!(report.relative_error, 0.0);
    }
}

// Shared blocks of rows, and heads.

#[test]
fn shared_blocks_multiply_each_distinct_block_once() {
    // Seven rows in blocks of two: the last one is cut.
    let blocks = gaussian(4, 5, 300);
    let w = SharedBlocks::new(7, 2, Factor::from_matrix(Storage::F64, &blocks), vec![1, 0, 1, 0]).unwrap();
    let rows = [2, 3, 0, 1, 2, 3, 0];
    let dense = Array2::from_shape_fn((7, 5), |(i, j)| blocks[[rows[i], j]]);
    assert_eq!(w.to_dense_f64(), dense);
    let (x, g) = (gaussian(3, 5, 301), gaussian(3, 7, 302));
    assert!(difference(&w.matmul(&x).unwrap(), &x.dot(&dense.t())) < 1e-14);
    assert!(difference(&w.matmul_transpose(&g).unwrap(), &g.dot(&dense)) < 1e-14);
    assert_eq!((w.n_params(), w.flops(3), w.distinct(), w.rows()), (20, 2 * 3 * 20, 2, 2));
    let part = w.places(2..4).unwrap();
    assert_eq!((part.to_dense_f64(), part.map()), (dense.slice(s![4.., ..]).to_owned(), [0, 1].as_slice()));
    assert_eq!(w.places(0..1).unwrap().distinct(), 1);
    for range in [0..0, 3..5, 9..10] {
        assert!(matches!(w.places(range), Err(Error::Parameter { .. })));
    }
    let factor = |rows| Factor::from_matrix(Storage::F64, &gaussian(rows, 5, 1));
    for (outputs, rows, factor, map) in [
        (7, 2, factor(4), vec![1, 0, 1]),
        (7, 2, factor(4), vec![1, 0, 2, 0]),
        (7, 2, factor(3), vec![0, 0, 0, 0]),
        (7, 0, factor(4), vec![]),
        (7, 7, factor(0), vec![0]),
        (usize::MAX, 2, factor(4), vec![1, 0, 1, 0]),
    ] {
        assert!(matches!(SharedBlocks::new(outputs, rows, factor, map), Err(Error::Record { .. })));
    }
}

fn blocks(blocks: usize, distinct: usize, method: BlockSharing) -> SharedBlocksSpec {
    SharedBlocksSpec { blocks, distinct, method }
}

#[test]
fn shared_blocks_find_planted_groups_at_every_budget() {
    let originals = gaussian(3 * 4, 10, 310);
    let map = [0, 1, 2, 1, 0, 0, 2, 1];
    let w = Array2::from_shape_fn((32, 10), |(i, j)| originals[[4 * map[i / 4] + i % 4, j]]);
    let gram = correlated_gram(10, 311);
    for method in [BlockSharing::LeastSquares, BlockSharing::Cosine, BlockSharing::Direct] {
        for objective in [Objective::Frobenius, Objective::Activations(&gram)] {
            let p = SharedBlocks::project(&w, &blocks(8, 3, method), &objective, &exactly()).unwrap();
            assert!(p.report.relative_error < 1e-12, "{method:?}");
            assert_eq!(p.matrix.map(), map.map(|k| k as u32));
        }
    }
    let noisy = &w + &(gaussian(32, 10, 312) * 0.05);
    let mut last = f64::INFINITY;
    for distinct in 1..=8 {
        let spec = blocks(8, distinct, BlockSharing::LeastSquares);
        let p = SharedBlocks::project(&noisy, &spec, &Objective::Frobenius, &exactly()).unwrap();
        assert!(p.report.relative_error <= last + 1e-12 && p.matrix.distinct() == distinct);
        assert_eq!(p.report.guarantee == Guarantee::GlobalOptimum, distinct == 1 || distinct == 8);
        last = p.report.relative_error;
        if distinct == 3 {
            assert_eq!(p.matrix.map(), map.map(|k| k as u32));
            assert!(last < 0.05);
        }
    }
    assert!(last < 1e-12);
    // A quarter of the numbers is two of eight blocks.
    let request = Request::new().with("blocks", 8).budget(Budget::Ratio(0.25));
    assert_eq!(SharedBlocks::spec((32, 10), &request).unwrap().distinct, 2);
}

/// Every partition of six blocks into three groups, the last block cut: the fit finds the best one, plain and weighted.
#[test]
fn shared_blocks_reach_the_best_partition_of_a_few() {
    let mut hits = 0;
    for seed in 0..6 {
        let (w, gram) = (gaussian(11, 6, 320 + seed), correlated_gram(6, 330 + seed));
        for objective in [Objective::Frobenius, Objective::Activations(&gram)] {
            let mut best = f64::INFINITY;
            for code in 0..3usize.pow(6) {
                let group = |g: usize| code / 3usize.pow(g as u32) % 3;
                let mean = |i: usize, j: usize| {
                    let same = (0..11).filter(|&k| k % 2 == i % 2 && group(k / 2) == group(i / 2));
                    let values: Vec<f64> = same.map(|k| w[[k, j]]).collect();
                    values.iter().sum::<f64>() / values.len() as f64
                };
                best =
                    best.min(objective.energy(&(&w - &Array2::from_shape_fn((11, 6), |(i, j)| mean(i, j)))));
            }
            let spec = blocks(6, 3, BlockSharing::LeastSquares);
            let p = SharedBlocks::project(&w, &spec, &objective, &exactly()).unwrap();
            let found = objective.energy(&(&w - &p.matrix.to_dense_f64()));
            assert!(found >= best - 1e-9 && found < 1.15 * best, "{seed}: {found} {best}");
            hits += usize::from(found < best * (1.0 + 1e-9));
        }
    }
    assert!(hits >= 6, "{hits} of 12");
}

fn heads(query: &Array2<f64>, key: &Array2<f64>, seed: u64, count: usize) -> Heads {
    let (rows, n) = query.dim();
    Heads::new(count, query, key, &gaussian(rows, n, seed), &gaussian(n, rows, seed + 1)).unwrap()
}

fn block(w: &Array2<f64>, h: usize, size: usize) -> Array2<f64> {
    w.slice(s![h * size..(h + 1) * size, ..]).to_owned()
}

#[test]
fn head_sharing_keeps_as_many_heads_as_alpha_says() {
    let (q, k) = (gaussian(24, 10, 340), gaussian(24, 10, 341));
    let all = heads(&q, &k, 342, 8);
    for gauge in [Gauge::None, Gauge::Orthogonal] {
        for (alpha, distinct) in [(0.0, 8), (0.1, 8), (0.125, 7), (0.5, 4), (0.875, 1), (1.0, 1)] {
            let matches = all.matches(&MatchSpec { alpha, gauge, reach: None }).unwrap();
            assert_eq!((matches.distinct(), matches.pairs.len()), (distinct, 8 - distinct));
            assert!(matches.pairs.windows(2).all(|pair| pair[0].2 >= pair[1].2));
            // Targets are originals, and come first.
            assert!(matches.first.iter().enumerate().all(|(h, &f)| f <= h && matches.first[f] == f));
            let shared = all.share(&matches, KeptHead::First, Storage::F64).unwrap();
            assert_eq!(shared.query.distinct(), distinct);
            assert_eq!(shared.query.n_params() + shared.key.n_params(), 2 * distinct * 3 * 10);
            if distinct == 8 {
                assert_eq!((shared.query.to_dense_f64(), shared.key.to_dense_f64()), (q.clone(), k.clone()));
            }
        }
    }
    // Without a gauge: the published cosine, blocks copied, the output kept.
    let matches = all.matches(&MatchSpec { alpha: 0.125, ..Default::default() }).unwrap();
    let (a, b, cosine) = matches.pairs[0];
    let signature = |h| stacked(&[block(&q, h, 3), block(&k, h, 3)]);
    let expected = (&signature(a) * &signature(b)).sum() / (norm(&signature(a)) * norm(&signature(b)));
    assert!(
        (cosine - expected).abs() < 1e-12
            && (all.similarity(a, b, Gauge::None).unwrap() - expected).abs() < 1e-12
    );
    for i in 0..8 {
        for j in i + 1..8 {
            assert!(all.similarity(i, j, Gauge::None).unwrap() <= cosine + 1e-12);
            assert!(
                all.similarity(i, j, Gauge::None).unwrap()
                    <= all.similarity(i, j, Gauge::Orthogonal).unwrap() + 1e-12
            );
        }
    }
    let shared = all.share(&matches, KeptHead::First, Storage::F64).unwrap();
    assert_eq!(block(&shared.value.to_dense_f64(), b, 3), block(&shared.value.to_dense_f64(), a, 3));
    assert_eq!(shared.output, gaussian(10, 24, 343));
    // Only neighbours.
    let near = all.matches(&MatchSpec { alpha: 1.0, reach: Some(1), ..Default::default() }).unwrap();
    assert!(near.pairs.iter().all(|(a, b, _)| b - a == 1) && near.distinct() == 1);
    assert_eq!(
        all.matches(&MatchSpec { alpha: 1.0, reach: Some(0), ..Default::default() }).unwrap().distinct(),
        8
    );
}

/// A rotation in the plane of each pair of features.
fn rotary(size: usize, pairs: RotaryPairs, seed: u64) -> Array2<f64> {
    let angles = gaussian(1, size / 2, seed);
    let mut turn = Array2::eye(size);
    for k in 0..size / 2 {
        let (a, b) = match pairs {
            RotaryPairs::Halves => (k, k + size / 2),
            RotaryPairs::Neighbours => (2 * k, 2 * k + 1),
        };
        let (sin, cos) = angles[[0, k]].sin_cos();
        (turn[[a, a]], turn[[b, b]], turn[[b, a]], turn[[a, b]]) = (cos, cos, sin, -sin);
    }
    turn
}

#[test]
fn rotated_copies_of_heads_are_found_and_shared_without_any_change() {
    let size = 4;
    let hidden: [(Gauge, Array2<f64>); 3] = [
        (Gauge::Orthogonal, linalg::qr(&gaussian(size, size, 350)).q),
        (Gauge::Rotary(RotaryPairs::Halves), rotary(size, RotaryPairs::Halves, 351)),
        (Gauge::Rotary(RotaryPairs::Neighbours), rotary(size, RotaryPairs::Neighbours, 352)),
    ];
    for (gauge, turn) in hidden {
        let [mut q, mut k, mut v] = [353, 354, 355].map(|seed| gaussian(6 * size, 9, seed));
        let o = gaussian(9, 6 * size, 356);
        // Head 4 is head 1 in disguise; its values are turned by something else.
        let other = linalg::qr(&gaussian(size, size, 357)).q;
        for (w, turn) in [(&mut q, &turn), (&mut k, &turn), (&mut v, &other)] {
            let copy = turn.t().dot(&block(w, 1, size));
            w.slice_mut(s![4 * size..5 * size, ..]).assign(&copy);
        }
        let all = Heads::new(6, &q, &k, &v, &o).unwrap();
        let matches = all.matches(&MatchSpec { alpha: 0.17, gauge, reach: None }).unwrap();
        let (a, b, score) = matches.pairs[0];
        assert_eq!((a, b, matches.pairs.len()), (1, 4, 1), "{gauge:?}");
        assert!((score - 1.0).abs() < 1e-12, "{gauge:?}: {score}");
        assert!(all.similarity(1, 4, Gauge::None).unwrap() < 0.99, "the rotation hides nothing");
        for keep in [KeptHead::First, KeptHead::Mean] {
            let shared = all.share(&matches, keep, Storage::F64).unwrap();
            let (q2, k2, v2) =
                (shared.query.to_dense_f64(), shared.key.to_dense_f64(), shared.value.to_dense_f64());
            for h in 0..6 {
                let logits = |q: &Array2<f64>, k: &Array2<f64>| block(q, h, size).t().dot(&block(k, h, size));
                assert!(difference(&logits(&q2, &k2), &logits(&q, &k)) < 1e-10, "{gauge:?} {h}");
                let through = |o: &Array2<f64>, v: &Array2<f64>| {
                    o.slice(s![.., h * size..(h + 1) * size]).dot(&block(v, h, size))
                };
                assert!(difference(&through(&shared.output, &v2), &through(&o, &v)) < 1e-10, "{gauge:?} {h}");
            }
            assert_eq!(shared.query.distinct(), 5);
        }
    }
}

#[test]
fn rotary_gauges_commute_with_rotary_embeddings_and_orthogonal_ones_do_not() {
    let (size, q, k) = (6, gaussian(6, 8, 360), gaussian(6, 8, 361));
    for pairs in [RotaryPairs::Halves, RotaryPairs::Neighbours] {
        let positions = rotary(size, pairs, 362);
        let onto = [gaussian(6, 8, 363), gaussian(6, 8, 364)];
        let from = [q.clone(), k.clone()];
        let logits = |q: &Array2<f64>, k: &Array2<f64>| q.t().dot(&positions).dot(k);
        let turned = |gauge| {
            let (turn, cosine) = procrustes(&from, &onto, gauge).unwrap();
            assert!(difference(&turn.dot(&turn.t()), &Array2::eye(size)) < 1e-12);
            let inner: f64 = from.iter().zip(&onto).map(|(f, t)| (&turn.dot(f) * t).sum()).sum();
            let norms = [&from, &onto].map(|side| side.iter().map(square).sum::<f64>().sqrt());
            assert!((cosine - inner / (norms[0] * norms[1])).abs() < 1e-12);
            (difference(&logits(&turn.dot(&q), &turn.dot(&k)), &logits(&q, &k)), cosine)
        };
        let ((rotary, near), (orthogonal, nearer)) =
            (turned(Gauge::Rotary(pairs)), turned(Gauge::Orthogonal));
        assert!(rotary < 1e-12 && orthogonal > 0.1 && near <= nearer, "{rotary} {orthogonal}");
        // No other rotation of the gauge is closer.
        let best = procrustes(&from, &onto, Gauge::Rotary(pairs)).unwrap().0;
        let distance = |turn: &Array2<f64>| -> f64 {
            from.iter().zip(&onto).map(|(f, t)| square(&(turn.dot(f) - t))).sum()
        };
        for seed in 0..50 {
            assert!(distance(&rotary_near(&best, size, pairs, seed)) >= distance(&best) - 1e-9);
        }
    }
}

fn rotary_near(turn: &Array2<f64>, size: usize, pairs: RotaryPairs, seed: u64) -> Array2<f64> {
    rotary(size, pairs, 400 + seed).dot(turn)
}

#[test]
fn the_mean_of_heads_is_closer_than_either_of_them() {
    let (q, k) = (gaussian(8, 10, 370), gaussian(8, 10, 371));
    let all = heads(&q, &k, 372, 2);
    let matches = all.matches(&MatchSpec { alpha: 0.5, ..Default::default() }).unwrap();
    let cost = |keep| {
        let shared = all.share(&matches, keep, Storage::F64).unwrap();
        square(&(&q - &shared.query.to_dense_f64())) + square(&(&k - &shared.key.to_dense_f64()))
    };
    let pair = square(&(block(&q, 0, 4) - block(&q, 1, 4))) + square(&(block(&k, 0, 4) - block(&k, 1, 4)));
    assert!((cost(KeptHead::First) / pair - 1.0).abs() < 1e-12);
    assert!((cost(KeptHead::Mean) / pair - 0.5).abs() < 1e-12);
    // The family: the mean of each group is closer than its first, at the same groups.
    let w = gaussian(24, 10, 373);
    let error = |method| {
        SharedBlocks::project(&w, &blocks(6, 3, method), &Objective::Frobenius, &exactly())
            .unwrap()
            .report
            .relative_error
    };
    let (least, mean, first) =
        (error(BlockSharing::LeastSquares), error(BlockSharing::Cosine), error(BlockSharing::Direct));
    assert!(mean < first && least <= mean + 1e-12, "{least} {mean} {first}");
}

#[test]
fn the_weighted_mean_minimises_what_all_inputs_see() {
    let (weights, grams) = (many(3, 4, 6, 380), [381, 382, 383].map(|seed| correlated_gram(6, seed)));
    let cost = |w: &Array2<f64>| -> f64 {
        weights
            .iter()
            .zip(&grams)
            .map(|(other, gram)| Objective::Activations(gram).energy(&(other - w)))
            .sum()
    };
    let mean = weighted_mean(&weights, &grams).unwrap();
    let plain = weights.iter().fold(Array2::zeros((4, 6)), |sum, w| sum + w) / 3.0;
    assert!(cost(&mean) < cost(&plain) && weights.iter().all(|w| cost(&mean) < cost(w)));
    // The formula, and no slope.
    let moments = weights.iter().zip(&grams).map(|(w, gram)| w.dot(gram.second_moment()));
    let total = grams.iter().fold(Array2::zeros((6, 6)), |sum, gram| sum + gram.second_moment());
    let right = moments.fold(Array2::zeros((4, 6)), |sum, m| sum + m);
    assert!(difference(&mean.dot(&total), &right) < 1e-9);
    let common = [grams[0].clone(), grams[0].clone(), grams[0].clone()];
    assert!(difference(&weighted_mean(&weights, &common).unwrap(), &plain) < 1e-9);
    // What nobody sees is the mean.
    let unseen = [(); 3].map(|()| Gram::new(6));
    assert_eq!(weighted_mean(&weights, &unseen).unwrap(), plain);
    assert!(weighted_mean(&weights, &grams[..2]).is_err());
    assert!(weighted_mean::<f64, Array2<f64>>(&[], &[]).is_err());
}

#[test]
fn heads_refuse_what_does_not_fit() {
    let w = |rows, cols| gaussian(rows, cols, 1);
    let new = |count, q: &Array2<f64>, k: &Array2<f64>, v: &Array2<f64>, o: &Array2<f64>| {
        Heads::new(count, q, k, v, o)
    };
    let (q, o) = (w(6, 5), w(5, 6));
    assert!(matches!(new(4, &q, &q, &q, &o), Err(Error::Parameter { .. })));
    assert!(matches!(new(0, &q, &q, &q, &o), Err(Error::Parameter { .. })));
    assert!(matches!(new(2, &q, &w(4, 5), &q, &o), Err(Error::Shape { .. })));
    assert!(matches!(new(2, &q, &w(6, 4), &q, &o), Err(Error::Shape { .. })));
    assert!(matches!(new(2, &q, &q, &w(5, 5), &o), Err(Error::Shape { .. })));
    assert!(matches!(new(2, &q, &q, &q, &w(5, 5)), Err(Error::Shape { .. })));
    assert!(matches!(new(2, &q, &q, &q, &(&o * f64::NAN)), Err(Error::NonFinite { .. })));
    assert!(matches!(new(1, &w(0, 5), &w(0, 5), &w(0, 5), &w(5, 0)), Err(Error::Parameter { .. })));
    let all = new(2, &q, &q, &q, &o).unwrap();
    for alpha in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(
            all.matches(&MatchSpec { alpha, ..Default::default() }),
            Err(Error::Parameter { .. })
        ));
    }
    let odd = MatchSpec { gauge: Gauge::Rotary(RotaryPairs::Halves), ..Default::default() };
    assert!(matches!(all.matches(&odd), Err(Error::Parameter { .. })));
    assert!(all.similarity(0, 2, Gauge::None).is_err());
    let single =
        new(1, &q, &q, &q, &o).unwrap().matches(&MatchSpec { alpha: 1.0, ..Default::default() }).unwrap();
    assert_eq!(single.distinct(), 1);
    assert!(matches!(all.share(&single, KeptHead::First, Storage::F32), Err(Error::Parameter { .. })));
    for first in [vec![0, 7], vec![1, 0], vec![1, 1]] {
        let matches = structmat::sharing::HeadMatches { first, pairs: vec![], gauge: Gauge::Orthogonal };
        assert!(matches!(all.share(&matches, KeptHead::First, Storage::F32), Err(Error::Parameter { .. })));
    }
    assert!(procrustes(&[q.view()], &[o.view()], Gauge::None).is_err());
    assert!(procrustes(&[q.view()], &[], Gauge::None).is_err());
    assert!(procrustes::<ArrayView2<'_, f64>>(&[], &[], Gauge::None).is_err());
    // Heads of zeros are like no other.
    let zero = Array2::<f64>::zeros((6, 5));
    let none = new(2, &zero, &zero, &q, &o).unwrap();
    let matches = none.matches(&MatchSpec { alpha: 0.5, gauge: Gauge::Orthogonal, reach: None }).unwrap();
    assert_eq!((matches.pairs[0].2, matches.distinct()), (0.0, 1));
    assert!(none.share(&matches, KeptHead::Mean, Storage::F32).is_ok());
}

// Tied transposes.

/// The conformance suite holds both products of every family against each other at many shapes; here, through a tied block.
#[test]
fn tied_blocks_of_every_family_are_adjoint_in_their_two_products() {
    let identity = |weight| TiedFfn::new::<f64>(weight, None, Activation::Identity, None).unwrap();
    for entry in FAMILIES {
        let w = common::member(entry, (24, 16), Storage::F32, 3);
        assert!(w.dot_test::<f32>(1).unwrap() < 1e-5, "{}", entry.name);
        // WᵀW: symmetric, and its values are squares.
        let (dense, x) = (w.to_dense_f64(), gaussian(5, 16, 4));
        let y = identity(w).forward(&x).unwrap();
        assert!(difference(&y, &x.dot(&dense.t()).dot(&dense)) < 1e-12, "{}", entry.name);
        assert!((&x * &y).sum_axis(structmat::ndarray::Axis(1)).iter().all(|v| *v >= 0.0));
    }
}

#[test]
fn tied_ffn_is_the_block_of_two_matrices_with_one_the_transpose() {
    let (w, b1, b2) =
        (gaussian(12, 7, 500), gaussian(1, 12, 501).row(0).to_owned(), gaussian(1, 7, 502).row(0).to_owned());
    let x = gaussian(5, 7, 503);
    let functions: [(Activation, Function); 4] = [
        (Activation::Identity, |x| x),
        (Activation::Relu, |x| x.max(0.0)),
        (Activation::Tanh, f64::tanh),
        (Activation::Silu, |x| x / (1.0 + (-x).exp())),
    ];
    for (activation, f) in functions {
        for (first, second) in [(Some(&b1), Some(&b2)), (None, Some(&b2)), (Some(&b1), None), (None, None)] {
            let (first_values, second_values) =
                (first.cloned().unwrap_or(Array1::zeros(12)), second.cloned().unwrap_or(Array1::zeros(7)));
            let w2 = w.t();
            let expected = (x.dot(&w.t()) + &first_values).mapv(f).dot(&w2.t()) + &second_values;
            let weight = Box::new(Dense::new(&w).unwrap());
            let block = TiedFfn::new(weight, first.map(|b| &**b), activation, second.map(|b| &**b)).unwrap();
            assert!(difference(&block.forward(&x).unwrap(), &expected) < 1e-13, "{activation:?}");
            let single = block.forward(&x.mapv(|v| v as f32)).unwrap();
            assert!(difference(&single, &expected) < 1e-5, "{activation:?}");
            // Into columns of a wider array, over NaN.
            let mut y = Array2::from_elem((5, 9), f64::NAN);
            block.forward_into(&x, &mut y.slice_mut(s![..;-1, 1..8]), &mut Exec::new()).unwrap();
            assert!(difference(&y.slice(s![..;-1, 1..8]), &expected) < 1e-13, "{activation:?}");
            let biases = 12 * usize::from(first.is_some()) + 7 * usize::from(second.is_some());
            assert_eq!((block.n_params(), block.hidden(), block.features()), (84 + biases, 12, 7));
        }
    }
    let gelu = TiedFfn::new(Box::new(Dense::new(&w).unwrap()), Some(&*b1), Activation::Gelu, None).unwrap();
    let (double, single) = (gelu.forward(&x).unwrap(), gelu.forward(&x.mapv(|v| v as f32)).unwrap());
    assert!(difference(&single, &double) < 1e-5);
    assert_eq!(gelu.forward(&Array2::<f64>::zeros((0, 7))).unwrap().dim(), (0, 7));
    assert!(matches!(gelu.forward(&Array2::<f64>::zeros((2, 8))), Err(Error::Shape { .. })));
    let mut y = Array2::from_elem((2, 6), 7.0);
    assert!(gelu.forward_into(&Array2::<f64>::zeros((2, 7)), &mut y, &mut Exec::new()).is_err());
    assert!(y.iter().all(|v| *v == 7.0));
    let weight = || Box::new(Dense::new(&w).unwrap());
    assert!(TiedFfn::new(weight(), Some(&*b2), Activation::Relu, None).is_err());
    assert!(TiedFfn::new(weight(), None, Activation::Relu, Some(&*b1)).is_err());
}

#[test]
fn tied_ffn_gradients_are_differences() {
    let (b1, b2) = (gaussian(1, 10, 511).row(0).to_owned(), gaussian(1, 6, 512).row(0).to_owned());
    let (x, dy) = (gaussian(4, 6, 513), gaussian(4, 6, 514));
    for activation in [Activation::Gelu, Activation::Tanh, Activation::Sigmoid] {
        let weight =
            || common::member(structmat::registry::family("low_rank").unwrap(), (10, 6), Storage::F64, 1);
        let block = TiedFfn::new(weight(), Some(&*b1), activation, Some(&*b2)).unwrap();
        let loss = |block: &TiedFfn, x: &Array2<f64>| (block.forward(x).unwrap() * &dy).sum();
        let found = block.vjp(&x, &dy, &mut Exec::new()).unwrap();
        let near =
            |a: f64, b: f64| assert!((a - b).abs() < 1e-6 * (1.0 + b.abs()), "{activation:?}: {a} {b}");
        let slope = |at: &dyn Fn(f64) -> f64| (at(1e-5) - at(-1e-5)) / 2e-5;
        for (i, j) in [(0, 0), (2, 5), (3, 1)] {
            let at = |h| {
                let mut x = x.clone();
                x[[i, j]] += h;
                loss(&block, &x)
            };
            near(found.input[[i, j]], slope(&at));
        }
        for (k, factor) in found.factors.iter().enumerate() {
            let at = |h| {
                let mut numbers = weight().factor_numbers::<f64>();
                numbers[k][[0, 1, 1]] += h;
                let moved = weight().with_numbers(&numbers, Storage::F64).unwrap();
                loss(&TiedFfn::new(moved, Some(&*b1), activation, Some(&*b2)).unwrap(), &x)
            };
            near(factor[[0, 1, 1]], slope(&at));
        }
        let at = |h| {
            let mut b1 = b1.clone();
            b1[3] += h;
            loss(&TiedFfn::new(weight(), Some(&*b1), activation, Some(&*b2)).unwrap(), &x)
        };
        near(found.hidden_bias.as_ref().unwrap()[3], slope(&at));
        near(found.bias.as_ref().unwrap()[2], dy.column(2).sum());
        assert!(block.vjp(&x, &gaussian(4, 5, 1), &mut Exec::new()).is_err());
        assert!(block.vjp(&gaussian(4, 5, 1), &dy, &mut Exec::new()).is_err());
    }
}

#[test]
fn tied_vit_b_takes_half_the_weights() {
    let w = Dense::new(&Array2::<f32>::zeros((3072, 768))).unwrap();
    let block = TiedFfn::new::<f32>(Box::new(w), None, Activation::Gelu, None).unwrap();
    assert_eq!((block.n_params(), 2 * block.n_params()), (2_359_296, 4_718_592));
}

#[test]
fn ties_are_means_and_moments_are_met() {
    let (w1, w2) = (gaussian(6, 4, 520), gaussian(4, 6, 521));
    let gelu = Between::Activation(Activation::Gelu);
    let tied = tie_transpose(&w1, &w2, gelu, &TieObjective::Frobenius).unwrap();
    assert!(difference(&tied.weight, &((&w1 + &w2.t()) * 0.5)) < 1e-14);
    let error = square(&(&w1 - &w2.t())) / 2.0;
    assert!((tied.relative_error - (error / (square(&w1) + square(&w2))).sqrt()).abs() < 1e-12);
    assert!(tied.scales.iter().all(|d| *d == 1.0) && tied.order == [0, 1, 2, 3, 4, 5]);
    // On one side the formula.
    let [first, second] = [522, 523].map(|seed| correlated_gram(4, seed));
    let (c1, c2) = (first.second_moment(), second.second_moment());
    let same = TieObjective::SameSide { first: &first, second: &second };
    let tied = tie_transpose(&w1, &w2, gelu, &same).unwrap();
    assert!(difference(&tied.weight.dot(&(c1 + c2)), &(w1.dot(c1) + w2.t().dot(c2))) < 1e-9);
    // On two sides Sylvester's equation.
    let hidden = correlated_gram(6, 524);
    let c2 = hidden.second_moment();
    let inputs = TieObjective::Inputs { first: &first, second: &hidden };
    let tied = tie_transpose(&w1, &w2, gelu, &inputs).unwrap();
    let cost = |w: &Array2<f64>| {
        Objective::Activations(&first).energy(&(&w1 - w))
            + Objective::Activations(&hidden).energy(&(&w2 - &w.t()))
    };
    assert!(
        difference(&(c2.dot(&tied.weight) + tied.weight.dot(c1)), &(w1.dot(c1) + c2.dot(&w2.t()))) < 1e-9
    );
    assert!(cost(&tied.weight) < cost(&((&w1 + &w2.t()) * 0.5)));
    let total = Objective::Activations(&first).energy(&w1) + Objective::Activations(&hidden).energy(&w2);
    assert!((tied.relative_error - (cost(&tied.weight) / total).sqrt()).abs() < 1e-10);
    // What nothing sees is the mean.
    let unseen = TieObjective::Inputs { first: &Gram::new(4), second: &Gram::new(6) };
    assert!(
        difference(&tie_transpose(&w1, &w2, gelu, &unseen).unwrap().weight, &((&w1 + &w2.t()) * 0.5)) < 1e-14
    );
    assert!(matches!(tie_transpose(&w1, &w1, gelu, &TieObjective::Frobenius), Err(Error::Shape { .. })));
    let wrong = TieObjective::Inputs { first: &first, second: &first };
    assert!(matches!(tie_transpose(&w1, &w2, gelu, &wrong), Err(Error::Shape { .. })));
    assert!(tie_transpose(&(&w1 * f64::NAN), &w2, gelu, &same).is_err());
    let zero = Array2::<f64>::zeros((2, 3));
    let tied = tie_transpose(&zero, &zero.t(), Between::Stage, &TieObjective::Frobenius).unwrap();
    assert!(tied.relative_error == 0.0 && tied.scales == [1.0, 1.0]);
}

#[test]
fn ties_recover_planted_scales_and_orders() {
    let w = gaussian(7, 5, 530);
    let scale = |i: usize| 0.3 + i as f64;
    let order = [3, 0, 6, 1, 5, 2, 4];
    // Scales of a ReLU block: the tied block computes what the two matrices do, to the bias.
    let w1 = Array2::from_shape_fn((7, 5), |(i, j)| w[[i, j]] / scale(i));
    let w2 = Array2::from_shape_fn((5, 7), |(j, i)| w[[i, j]] * scale(i));
    for f in [Activation::Relu, Activation::Identity] {
        let tied = tie_transpose(&w1, &w2, Between::Activation(f), &TieObjective::Frobenius).unwrap();
        assert!(tied.relative_error < 1e-14 && difference(&tied.weight, &w) < 1e-14);
        assert!(tied.scales.iter().enumerate().all(|(i, d)| (d - scale(i)).abs() < 1e-12));
        let b1 = gaussian(1, 7, 531).row(0).to_owned();
        let x = gaussian(6, 5, 532);
        let expected = (x.dot(&w1.t()) + &b1).mapv(|v| f.at(v)).dot(&w2.t());
        let weight = Box::new(Dense::new(&tied.weight).unwrap());
        let bias = tied.hidden_bias(&b1).unwrap();
        let block = TiedFfn::new(weight, Some(&*bias), f, None).unwrap();
        assert!(difference(&block.forward(&x).unwrap(), &expected) < 1e-12);
        assert!(tied.hidden_bias(&gaussian(1, 6, 1).row(0)).is_err());
    }
    let kept =
        tie_transpose(&w1, &w2, Between::Activation(Activation::Gelu), &TieObjective::Frobenius).unwrap();
    assert!(kept.relative_error > 0.1, "GELU admits no scales");
    // Renaming hidden units renames both matrices: nothing changes.
    let moved1 = w1.select(structmat::ndarray::Axis(0), &order);
    let moved2 = w2.select(structmat::ndarray::Axis(1), &order);
    let relu = Between::Activation(Activation::Relu);
    let tied = tie_transpose(&moved1, &moved2, relu, &TieObjective::Frobenius).unwrap();
    assert!(tied.relative_error < 1e-14 && tied.order == [0, 1, 2, 3, 4, 5, 6]);
    // Behind a stage that takes over the order: found, with the scales, also under moments.
    let (first, second) = (correlated_gram(5, 533), correlated_gram(5, 534));
    for objective in [TieObjective::Frobenius, TieObjective::SameSide { first: &first, second: &second }] {
        let tied = tie_transpose(&w1, &moved2, Between::Stage, &objective).unwrap();
        assert!(tied.relative_error < 1e-7, "{}", tied.relative_error);
        assert!((0..7).all(|i| order[tied.order[i]] == i), "{:?}", tied.order);
        assert!(tied.scales.iter().enumerate().all(|(i, d)| (d / scale(i) - 1.0).abs() < 1e-6));
        assert!(difference(&tied.weight, &w) < 1e-7);
    }
}

/// The scale and the assignment are the best ones, not only those of a planted pair.
#[test]
fn scales_and_orders_of_ties_are_the_best() {
    let (first, second) = (correlated_gram(3, 540), correlated_gram(3, 541));
    for seed in 0..5 {
        let (w1, w2) = (gaussian(4, 3, 550 + seed), gaussian(3, 4, 560 + seed));
        for objective in [TieObjective::Frobenius, TieObjective::SameSide { first: &first, second: &second }]
        {
            // The energies that relative errors are of differ with the scales: compare errors.
            let energy = |w1: &Array2<f64>, w2: &Array2<f64>, w: &Array2<f64>| match &objective {
                TieObjective::SameSide { first, second } => {
                    Objective::Activations(first).energy(&(w1 - w))
                        + Objective::Activations(second).energy(&(&w2.t() - w))
                }
                _ => square(&(w1 - w)) + square(&(&w2.t() - w)),
            };
            let at = |order: &[usize], scales: &[f64]| {
                let a = Array2::from_shape_fn((4, 3), |(i, j)| scales[i] * w1[[i, j]]);
                let b = Array2::from_shape_fn((3, 4), |(j, i)| w2[[j, order[i]]] / scales[i]);
                let fixed = tie_transpose(&a, &b, Between::Activation(Activation::Gelu), &objective).unwrap();
                energy(&a, &b, &fixed.weight)
            };
            let relu = Between::Activation(Activation::Relu);
            let tied = tie_transpose(&w1, &w2, relu, &objective).unwrap();
            let best = at(&tied.order, &tied.scales);
            for i in 0..4 {
                for change in [0.97, 1.03] {
                    let mut scales = tied.scales.clone();
                    scales[i] *= change;
                    assert!(at(&tied.order, &scales) > best, "{seed} {i}");
                }
            }
            let tied = tie_transpose(&w1, &w2, Between::Stage, &objective).unwrap();
            let best = at(&tied.order, &tied.scales);
            for code in 0..256 {
                let order = [code % 4, code / 4 % 4, code / 16 % 4, code / 64];
                if (0..4).any(|k| !order.contains(&k)) {
                    continue;
                }
                let moved = w2.select(structmat::ndarray::Axis(1), &order);
                let other = tie_transpose(&w1, &moved, relu, &objective).unwrap();
                assert!(at(&order, &other.scales) >= best - 1e-9, "{seed} {order:?}");
            }
        }
    }
}

// Files.

fn written(save: impl Fn(&mut Writer<'_>) -> structmat::Result<()>) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::new();
    save(&mut writer).unwrap();
    let path = folder.path().join("f.safetensors");
    writer.write(&path).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    (folder, file)
}

#[test]
fn shared_weights_round_trip() {
    let weights = many(4, 6, 8, 600);
    let residual = Residual { family: "low_rank".to_owned(), request: Request::new().with("rank", 1) };
    let options = Options { storage: Storage::Bf16, ..Options::default() };
    let spec = DictionarySpec { residual: Some(residual), ..atoms(2) };
    let (dictionary, _) = matrix_pca(&weights, &spec, &SharedObjective::Frobenius, &options).unwrap();
    let (plain, _) = matrix_pca(&weights, &atoms(2), &SharedObjective::Frobenius, &options).unwrap();
    let spec = ExpertsSpec { activation: Activation::Tanh, ..linear(3, 2) };
    let options = Options { max_iterations: Some(2), ..options };
    let (experts, _) =
        SharedBasisExperts::fit(&weights, &spec, &SharedObjective::Frobenius, &options).unwrap();
    let bias = Array1::from_elem(6, 0.1);
    let weight = common::member(structmat::registry::family("monarch").unwrap(), (6, 8), Storage::F16, 1);
    let block = TiedFfn::new(weight, Some(&*bias), Activation::Silu, None).unwrap();
    let (_folder, file) = written(|writer| {
        dictionary.save(writer, "queries")?;
        plain.save(writer, "keys")?;
        experts.save(writer, "experts")?;
        writer.structured("member", dictionary.member(1)?.as_ref())?;
        writer.structured("expert", &experts.expert(2, Storage::Int8)?)?;
        block.save(writer, "mlp")
    });
    for (name, saved) in [("queries", &dictionary), ("keys", &plain)] {
        let again = SharedDictionary::load(&file, name).unwrap();
        assert_eq!(again.shared().coefficients(), saved.shared().coefficients());
        for l in 0..4 {
            assert_eq!(again.member(l).unwrap().to_dense_f64(), saved.member(l).unwrap().to_dense_f64());
            assert_eq!(again.residuals()[l].is_some(), saved.residuals()[l].is_some());
        }
        assert_eq!(again.n_params(), saved.n_params());
    }
    let again = SharedBasisExperts::load(&file, "experts").unwrap();
    assert_eq!((again.activation(), again.n_params()), (Activation::Tanh, experts.n_params()));
    for e in 0..4 {
        let dense = |experts: &SharedBasisExperts| experts.expert(e, Storage::F32).unwrap().to_dense_f64();
        assert_eq!(dense(&again), dense(&experts));
    }
    // Members are matrices like any other.
    assert_eq!(file.load("member").unwrap().to_dense_f64(), dictionary.member(1).unwrap().to_dense_f64());
    let expert = experts.expert(2, Storage::Int8).unwrap();
    assert_eq!(file.load("expert").unwrap().to_dense_f64(), expert.to_dense_f64());
    let x = gaussian(3, 8, 601);
    let again = TiedFfn::load(&file, "mlp").unwrap();
    assert_eq!(again.forward(&x).unwrap(), block.forward(&x).unwrap());
    assert!(again.bias().is_none() && again.hidden_bias() == Some(&bias));
    for missing in [SharedDictionary::load(&file, "values").err(), TiedFfn::load(&file, "keys").err()] {
        assert!(matches!(missing, Some(Error::Unknown { .. })));
    }
}

#[test]
fn hostile_files_of_shared_weights_are_refused() {
    let atom = gaussian(2, 3, 1);
    let refused = |save: &dyn Fn(&mut Writer<'_>) -> structmat::Result<()>| {
        let (_folder, file) = written(save);
        let all = [
            SharedAtoms::load(&file, "w").err(),
            SharedDictionary::load(&file, "w").err(),
            SharedBasisExperts::load(&file, "w").err(),
            TiedFfn::load(&file, "w").err(),
        ];
        all.map(|error| error.expect("it was accepted").to_string())
    };
    let write = |coefficients: Array2<f64>, atoms: &[Array2<f64>]| {
        let (coefficients, atoms) = (coefficients, atoms.to_vec());
        move |writer: &mut Writer<'_>| {
            writer.array("w.coefficients", &coefficients)?;
            let mut atoms = atoms.iter().enumerate();
            atoms.try_for_each(|(s, atom)| writer.array(&format!("w.atoms.{s}"), atom))
        }
    };
    assert!(refused(&write(gaussian(2, 2, 1), std::slice::from_ref(&atom)))[0].contains("w.atoms.1"));
    assert!(refused(&write(gaussian(2, 2, 1), &[atom.clone(), gaussian(3, 2, 1)]))[0].contains("shape"));
    assert!(
        refused(&write(array![[1.0, f64::NAN]], &[atom.clone(), atom.clone()]))[1].contains("non-finite")
    );
    assert!(refused(&write(array![[1.0]], &[&atom * f64::INFINITY]))[0].contains("non-finite"));
    refused(&write(Array2::zeros((0, 1)), std::slice::from_ref(&atom)));
    refused(&write(Array2::zeros((1, 0)), &[]));
    refused(&|writer| writer.array("w.coefficients", &Array1::<f64>::zeros(3)));
    // More claimed than there is: refused at the first that is missing.
    refused(&|writer| writer.array("w.coefficients", &Array2::<f64>::zeros((1 << 31, 0))));
    // Residuals of another shape, left factors that are missing or do not fit, an activation that is none.
    let dictionary = |writer: &mut Writer<'_>| {
        write(array![[1.0], [2.0]], std::slice::from_ref(&atom))(writer)?;
        writer.array("w.residuals.1", &gaussian(3, 3, 1))
    };
    let (_folder, file) = written(dictionary);
    assert!(matches!(SharedDictionary::load(&file, "w"), Err(Error::Shape { .. })));
    assert!(SharedAtoms::load(&file, "w").is_ok());
    let experts = |left: &[Array2<f64>], activation: &str| {
        let (left, activation, atom) = (left.to_vec(), activation.to_owned(), atom.clone());
        written(move |writer| {
            writer.settings("w", &activation)?;
            writer.array("w.basis.coefficients", &array![[1.0], [2.0]])?;
            writer.array("w.basis.atoms.0", &atom)?;
            let mut left = left.iter().enumerate();
            left.try_for_each(|(e, a)| writer.array(&format!("w.left.{e}"), a))
        })
    };
    let (a, b) = (gaussian(4, 2, 1), gaussian(4, 3, 1));
    for (left, activation, good) in [
        (vec![a.clone(), a.clone()], "silu", true),
        (vec![a.clone(), a.clone()], "softplus", false),
        (vec![a.clone()], "silu", false),
        (vec![a, b.clone()], "silu", false),
        (vec![b.clone(), b], "silu", false),
    ] {
        let (_folder, file) = experts(&left, activation);
        assert_eq!(SharedBasisExperts::load(&file, "w").is_ok(), good, "{activation} {}", left.len());
    }
    let block = |bias: Array1<f64>, settings: &'static str| {
        written(move |writer| {
            writer.settings("w", &settings)?;
            writer.array("w.weight", &gaussian(4, 3, 1))?;
            writer.array("w.hidden_bias", &bias)
        })
    };
    assert!(TiedFfn::load(&block(Array1::zeros(4), "relu").1, "w").is_ok());
    assert!(matches!(TiedFfn::load(&block(Array1::zeros(3), "relu").1, "w"), Err(Error::Shape { .. })));
    assert!(matches!(TiedFfn::load(&block(Array1::zeros(4), "x").1, "w"), Err(Error::File { .. })));
    let mut writer = Writer::new();
    writer.settings("w", &1).unwrap();
    assert!(matches!(writer.settings("w", &2), Err(Error::Parameter { .. })));
}
