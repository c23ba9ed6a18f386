//! Sparse, column-sparse, sparse plus low rank, low rank plus columns.

mod common;

use common::oracle::Oracle;
use common::{correlated_gram, difference, gaussian, gaussian_of, norm, with_spectrum};
use structmat::kernels::Level;
use structmat::ndarray::{Array2, Axis};
use structmat::prelude::*;
use structmat::registry::family;
use structmat::{Error, linalg};

fn exact() -> Options<'static> {
    Options { storage: Storage::F64, ..Options::default() }
}

/// `max(0, ·)` of the energy of `(w - a) C`.
fn weighted(w: &Array2<f64>, a: &Array2<f64>, gram: &Gram) -> f64 {
    Objective::Activations(gram).energy(&(w - a)).sqrt()
}

/// A second moment of rank `rank`.
fn singular_gram(n: usize, rank: usize, seed: u64) -> Gram {
    let mut gram = Gram::new(n);
    gram.accumulate(&gaussian(rank, n, seed)).unwrap();
    gram
}

fn diagonal_gram(n: usize) -> Gram {
    let c = Array2::from_shape_fn((n, n), |(i, j)| if i == j { 0.1 + (i * 7 % 5) as f64 } else { 0.0 });
    Gram::from_second_moment(&c).unwrap()
}

/// The energy left when the largest `k` scores are taken away.
fn tail(mut scores: Vec<f64>, k: usize) -> f64 {
    scores.sort_by(|a, b| b.total_cmp(a));
    scores[k..].iter().sum()
}

const SETTINGS: [(&str, &[(&str, &str)]); 9] = [
    ("sparse", &[("density", "0.3")]),
    ("sparse", &[("pattern", "2:4")]),
    ("sparse", &[("pattern", "block=3"), ("density", "0.4")]),
    ("column_sparse", &[("kept", "7")]),
    ("cur", &[("rank", "6")]),
    ("cur", &[("rank", "6"), ("fused", "true"), ("selection", "qdeim")]),
    ("sparse_low_rank", &[("rank", "3"), ("nnz", "80")]),
    ("low_rank_columns", &[("rank", "3"), ("kept", "4")]),
    ("sparse_low_rank", &[("density", "0.1"), ("rank", "2"), ("method", "pcp")]),
];

fn request(parameters: &[(&str, &str)]) -> Request {
    parameters.iter().fold(Request::new(), |request, (name, value)| request.with(*name, value))
}

/// Products of one row and of a few with matrices too large for a core's cache: by slices of rows, by single loads, in tiles or densely.
fn check_patterns<T: structmat::Scalar>(tolerance: f64) {
    let settings = [
        ("sparse", None, Storage::F32),
        ("sparse_low_rank", Some(4), Storage::F32),
        ("sparse_low_rank", Some(70), Storage::Int8),
    ];
    for ((name, rank, storage), density) in
        settings.into_iter().flat_map(|setting| [0.001, 0.03, 0.3, 0.8].map(|d| (setting, d)))
    {
        let mut request = Request::new().with("density", density);
        if let Some(rank) = rank {
            request = request.with("rank", rank);
        }
        let matrix = family(name).unwrap().random((530, 521), &request, storage, 1).unwrap();
        let dense = matrix.to_dense_f64();
        for (batch, level) in
            [1, 3, 4].into_iter().flat_map(|batch| Level::available().map(move |l| (batch, l)))
        {
            let forward = gaussian_of::<T>(batch, 521, 2);
            let transposed = gaussian_of::<T>(batch, 530, 3);
            let [expected, expected_transposed] =
                [forward.mapv(T::widen).dot(&dense.t()), transposed.mapv(T::widen).dot(&dense)];
            let product = |exec: Exec<T>| {
                let mut exec = exec.with_level(level);
                let mut y = Array2::from_elem((batch, 530), T::narrow(f64::NAN));
                matrix.apply_into(&forward, &mut y, Update::Overwrite, &mut exec).unwrap();
                assert!(difference(&y, &expected) < tolerance, "{name} {density} batch {batch} {level}");
                matrix.apply_into(&forward, &mut y, Update::Accumulate, &mut exec).unwrap();
                assert!(
                    difference(&y, &(&expected * 2.0)) < tolerance,
                    "{name} {density} batch {batch} {level}: added"
                );
                let mut x = Array2::from_elem((batch, 521), T::narrow(f64::NAN));
                matrix.apply_transpose_into(&transposed, &mut x, Update::Overwrite, &mut exec).unwrap();
                assert!(
                    difference(&x, &expected_transposed) < tolerance,
                    "{name} {density} batch {batch} {level}: transposed"
                );
                y
            };
            assert_eq!(
                product(Exec::new()),
                product(Exec::threads(2)),
                "{name} {density} batch {batch} {level}: threads"
            );
        }
    }
}

#[test]
fn patterns_of_any_density_multiply_as_their_formula() {
    check_patterns::<f32>(1e-5);
    check_patterns::<f64>(1e-12);
}

#[test]
fn weighted_fits_are_never_worse_than_plain_ones_as_activations_see_them() {
    for seed in 0..4 {
        let w = with_spectrum(19, 26, seed, |k| 0.8f64.powi(k as i32));
        for gram in [correlated_gram(26, seed), singular_gram(26, 9, seed), diagonal_gram(26)] {
            for (name, parameters) in SETTINGS {
                let (entry, request) = (family(name).unwrap(), request(parameters));
                let plain = entry.project(&w, &request, &Objective::Frobenius, &exact()).unwrap();
                let aware = entry.project(&w, &request, &Objective::Activations(&gram), &exact()).unwrap();
                let (plain, aware) = (
                    weighted(&w, &plain.matrix.to_dense_f64(), &gram),
                    weighted(&w, &aware.matrix.to_dense_f64(), &gram),
                );
                assert!(aware <= plain * (1.0 + 1e-12), "{name} {parameters:?}: {aware} above {plain}");
            }
        }
    }
}

#[test]
fn correlated_activations_pay() {
    let w = gaussian(24, 40, 1);
    let gram = correlated_gram(40, 2);
    for (name, parameters) in [SETTINGS[0], SETTINGS[3], SETTINGS[6], SETTINGS[7]] {
        let (entry, request) = (family(name).unwrap(), request(parameters));
        let plain = entry.project(&w, &request, &Objective::Frobenius, &exact()).unwrap();
        let aware = entry.project(&w, &request, &Objective::Activations(&gram), &exact()).unwrap();
        let (plain, aware) = (
            weighted(&w, &plain.matrix.to_dense_f64(), &gram),
            weighted(&w, &aware.matrix.to_dense_f64(), &gram),
        );
        assert!(aware < 0.95 * plain, "{name}: {aware} against {plain}");
    }
}

#[test]
fn the_identity_as_second_moment_reproduces_the_plain_error() {
    let w = gaussian(19, 26, 3);
    let identity = Gram::from_second_moment(&Array2::<f64>::eye(26)).unwrap();
    for (name, parameters) in SETTINGS {
        let (entry, request) = (family(name).unwrap(), request(parameters));
        let plain = entry.project(&w, &request, &Objective::Frobenius, &exact()).unwrap().report;
        let aware = entry.project(&w, &request, &Objective::Activations(&identity), &exact()).unwrap().report;
        let gap = plain.relative_error - aware.relative_error;
        assert!((-1e-9..0.02).contains(&gap), "{name} {parameters:?}: {gap}");
    }
}

#[test]
fn projecting_a_member_returns_it() {
    for (name, parameters) in SETTINGS {
        let entry = family(name).unwrap();
        let planted = match name {
            // Any CUR member is a low-rank matrix in other factors.
            "cur" => gaussian(19, 6, 1).dot(&gaussian(6, 26, 2)),
            _ => entry.random((19, 26), &request(parameters), Storage::F64, 7).unwrap().to_dense_f64(),
        };
        let again = entry.project(&planted, &request(parameters), &Objective::Frobenius, &exact()).unwrap();
        let twice = entry
            .project(&again.matrix.to_dense_f64(), &request(parameters), &Objective::Frobenius, &exact())
            .unwrap();
        assert!(twice.report.relative_error < 1e-6, "{name}: {}", twice.report.relative_error);
        if !name.starts_with("sparse_low") {
            assert!(again.report.relative_error < 1e-7, "{name}: {}", again.report.relative_error);
        }
    }
}

#[test]
fn histories_never_rise() {
    let w = gaussian(30, 40, 5);
    let gram = correlated_gram(40, 6);
    for (name, parameters) in SETTINGS {
        for objective in [Objective::Frobenius, Objective::Activations(&gram)] {
            let found =
                family(name).unwrap().project(&w, &request(parameters), &objective, &exact()).unwrap();
            let history = &found.report.history;
            assert!(history.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-12)), "{name}: {history:?}");
            let error = found.report.weighted_relative_error.unwrap_or(found.report.relative_error);
            assert!(error < 1.0, "{name}: {error}");
        }
    }
}

#[test]
fn errors_fall_with_the_budget() {
    let w = with_spectrum(32, 40, 8, |k| 0.9f64.powi(k as i32));
    for name in ["sparse", "column_sparse", "sparse_low_rank", "low_rank_columns", "cur"] {
        let errors = [0.1, 0.2, 0.4, 0.6].map(|ratio| {
            let request = Request::new().budget(Budget::Ratio(ratio));
            let request = if name == "low_rank_columns" { request.with("kept", 1) } else { request };
            match family(name).unwrap().project(&w, &request, &Objective::Frobenius, &exact()) {
                Ok(found) => found.report.relative_error,
                Err(Error::Budget { .. }) => 1.0,
                Err(error) => panic!("{error}"),
            }
        });
        assert!(errors.windows(2).all(|pair| pair[1] <= pair[0] + 1e-9), "{name}: {errors:?}");
    }
}

#[test]
fn unstructured_projection_keeps_the_largest_entries() {
    let w = gaussian(17, 23, 1);
    for nnz in [1, 40, 391] {
        let spec = SparseSpec { nnz, ..Default::default() };
        let found = Sparse::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap();
        assert_eq!(found.report.guarantee, Guarantee::GlobalOptimum);
        assert_eq!(found.matrix.nnz(), nnz);
        let left = tail(w.iter().map(|v| v * v).collect(), nnz);
        let error = found.report.relative_error * norm(&w);
        assert!((error - left.sqrt()).abs() < 1e-12 * norm(&w));
        assert!(found.matrix.positions().all(|at| found.matrix.to_dense_f64()[at] == w[at]));
    }
}

#[test]
fn n_of_m_keeps_the_largest_of_every_group() {
    let w = gaussian(9, 22, 2);
    let spec = Sparse::spec(w.dim(), &Request::new().with("pattern", "2:4")).unwrap();
    let kept = Sparse::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap().matrix.to_dense_f64();
    for (row, kept) in w.outer_iter().zip(kept.outer_iter()) {
        for first in (0..22).step_by(4) {
            let group: Vec<usize> = (first..22.min(first + 4)).collect();
            let mut by_size = group.clone();
            by_size.sort_by(|a, b| row[*b].abs().total_cmp(&row[*a].abs()));
            assert!(by_size[..2].iter().all(|&j| kept[j] == row[j]));
            assert!(by_size[2..].iter().all(|&j| kept[j] == 0.0));
        }
    }
    assert_eq!(spec.nnz, 9 * (5 * 2 + 2));
}

#[test]
fn blocks_are_kept_whole() {
    let w = gaussian(10, 13, 3);
    let spec = SparseSpec { nnz: 40, pattern: SparsePattern::Block { size: 3 } };
    let kept = Sparse::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap().matrix;
    assert!(kept.nnz() <= 40);
    let dense = kept.to_dense_f64();
    for block in dense.exact_chunks((3, 3)) {
        let zeros = block.iter().filter(|v| **v == 0.0).count();
        assert!(zeros == 0 || zeros == 9);
    }
}

#[test]
fn a_diagonal_second_moment_scores_entries_and_keeps_their_values() {
    let (w, gram) = (gaussian(12, 16, 4), diagonal_gram(16));
    let spec = SparseSpec { nnz: 50, ..Default::default() };
    let found = Sparse::project(&w, &spec, &Objective::Activations(&gram), &exact()).unwrap();
    assert_eq!(found.report.guarantee, Guarantee::GlobalOptimum);
    let c = gram.second_moment();
    let left = tail(w.indexed_iter().map(|((_, j), v)| v * v * c[[j, j]]).collect(), 50);
    let dense = found.matrix.to_dense_f64();
    assert!((weighted(&w, &dense, &gram) - left.sqrt()).abs() < 1e-10);
}

#[test]
fn refitted_values_solve_the_normal_equations_of_each_row() {
    let (w, gram) = (gaussian(14, 20, 5), correlated_gram(20, 6));
    let spec = SparseSpec { nnz: 90, ..Default::default() };
    let found = Sparse::project(&w, &spec, &Objective::Activations(&gram), &exact()).unwrap().matrix;
    let dense = found.to_dense_f64();
    let c = gram.second_moment();
    let gradient = (&w - &dense).dot(c);
    let left = found.positions().map(|at| gradient[at].powi(2)).sum::<f64>().sqrt();
    assert!(left < 1e-3 * norm(&w.dot(c)), "{left}");
    // And row by row against the direct solution on the same support.
    let mut best = Array2::zeros(w.dim());
    for i in 0..14 {
        let s: Vec<usize> = found.positions().filter(|at| at.0 == i).map(|at| at.1).collect();
        let css = c.select(Axis(0), &s).select(Axis(1), &s);
        let right = w.row(i).dot(c).select(Axis(0), &s).insert_axis(Axis(1));
        let solved = linalg::lstsq(&css, &right).unwrap();
        s.iter().enumerate().for_each(|(k, &j)| best[[i, j]] = solved[[k, 0]]);
    }
    assert!(weighted(&w, &dense, &gram) <= weighted(&w, &best, &gram) * (1.0 + 1e-5));
}

#[test]
fn column_projection_keeps_the_largest_columns() {
    let w = gaussian(11, 18, 6);
    let spec = ColumnSparseSpec { kept: 5 };
    let found = ColumnSparse::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap();
    assert_eq!(found.report.guarantee, Guarantee::GlobalOptimum);
    let left = tail(w.columns().into_iter().map(|c| c.dot(&c)).collect(), 5);
    assert!((found.report.relative_error * norm(&w) - left.sqrt()).abs() < 1e-12);
}

#[test]
fn column_regression_leaves_a_residual_uncorrelated_with_kept_inputs() {
    let (w, gram) = (gaussian(11, 18, 7), correlated_gram(18, 8));
    let spec = ColumnSparseSpec { kept: 6 };
    let found = ColumnSparse::project(&w, &spec, &Objective::Activations(&gram), &exact()).unwrap().matrix;
    let gradient = (&w - &found.to_dense_f64()).dot(gram.second_moment());
    let scale = norm(&w.dot(gram.second_moment()));
    assert!(
        found.kept().iter().all(|&j| norm(&gradient.column(j as usize).insert_axis(Axis(0))) < 1e-7 * scale)
    );
}

#[test]
fn planted_low_rank_and_sparse_parts_are_recovered() {
    let oracle = Oracle::open("lowrank");
    let cases: Vec<_> =
        oracle.cases.iter().filter(|c| c["name"].as_str().unwrap().starts_with("rpca")).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let (w, low, sparse) =
            (oracle.matrix(case, "input"), oracle.matrix(case, "low_rank"), oracle.matrix(case, "sparse"));
        let spec = SparseLowRankSpec::new(
            case["rank"].as_u64().unwrap() as usize,
            case["nnz"].as_u64().unwrap() as usize,
        );
        for method in [SparseLowRankMethod::Auto, SparseLowRankMethod::Pcp] {
            let spec = SparseLowRankSpec { method, ..spec.clone() };
            let found = SparseLowRank::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap().matrix;
            let error = difference(&found.low_rank().to_dense_f64(), &low);
            assert!(error < 1e-8, "{} {method:?}: low-rank part {error:e}", case["name"]);
            let error = difference(&found.sparse().to_dense_f64(), &sparse);
            assert!(error < 1e-8, "{} {method:?}: sparse part {error:e}", case["name"]);
            let planted: Vec<_> =
                sparse.indexed_iter().filter(|(_, v)| **v != 0.0).map(|(at, _)| at).collect();
            assert_eq!(found.sparse().positions().collect::<Vec<_>>(), planted);
        }
    }
}

/// Rank 5 with 5 % of large corruptions.
fn corrupted(seed: u64) -> (Array2<f64>, Array2<f64>) {
    let low = gaussian(100, 5, seed).dot(&gaussian(5, 100, seed + 1));
    let (places, sizes) = (gaussian(100, 100, seed + 2), gaussian(100, 100, seed + 3));
    let mut order: Vec<usize> = (0..10_000).collect();
    order.sort_by(|a, b| places.as_slice().unwrap()[*a].total_cmp(&places.as_slice().unwrap()[*b]));
    let mut sparse = Array2::zeros((100, 100));
    for at in &order[..500] {
        sparse[[at / 100, at % 100]] = 10.0 * sizes[[at / 100, at % 100]];
    }
    (low, sparse)
}

#[test]
fn five_percent_of_corruptions_are_told_from_rank_five() {
    for seed in [1, 20] {
        let (low, sparse) = corrupted(seed);
        let spec = SparseLowRankSpec::new(5, 500);
        let w = &low + &sparse;
        let found = SparseLowRank::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap();
        assert!(found.report.relative_error < 1e-8, "{}", found.report.relative_error);
        assert!(difference(&found.matrix.low_rank().to_dense_f64(), &low) < 1e-7);
    }
}

#[test]
fn the_sum_is_never_worse_than_its_parts_alone() {
    for (seed, decay) in [(1, 0.7f64), (2, 0.95), (3, 1.0)] {
        let w = with_spectrum(30, 24, seed, |k| decay.powi(k as i32));
        let error = |e: Result<f64, Error>| e.unwrap();
        let (rank, nnz) = (4, 90);
        let o = Objective::Frobenius;
        let sum = SparseLowRank::project(&w, &SparseLowRankSpec::new(rank, nnz), &o, &exact());
        let low_rank = LowRank::project(&w, &LowRankSpec { rank, ..Default::default() }, &o, &exact());
        let sparse = Sparse::project(&w, &SparseSpec { nnz, ..Default::default() }, &o, &exact());
        let sum = error(sum.map(|p| p.report.relative_error));
        assert!(sum <= error(low_rank.map(|p| p.report.relative_error)));
        assert!(sum <= error(sparse.map(|p| p.report.relative_error)));
    }
}

/// The tail energy of a matrix beyond `rank`, as a norm.
fn beyond(w: &Array2<f64>, rank: usize) -> f64 {
    linalg::svd(w, linalg::Threads::ONE).unwrap().tail_energy(rank).sqrt()
}

#[test]
fn low_rank_with_columns_reaches_the_tail_of_the_other_columns() {
    let w = with_spectrum(40, 50, 9, |k| 0.9f64.powi(k as i32));
    let spec = LowRankColumnsSpec { rank: 6, kept: 5, ..Default::default() };
    let found = LowRankColumns::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap();
    let others: Vec<usize> =
        (0..50).filter(|j| !found.matrix.columns().kept().contains(&(*j as u32))).collect();
    let error = found.report.relative_error * norm(&w);
    assert!((error - beyond(&w.select(Axis(1), &others), 6)).abs() < 1e-10);
    assert!(error <= beyond(&w, 6) && error >= beyond(&w, 11));
}

#[test]
fn planted_columns_are_found() {
    let mut w = gaussian(30, 4, 1).dot(&gaussian(4, 40, 2));
    let planted = [3usize, 8, 17, 18, 39];
    let noise = gaussian(30, 5, 3) * 4.0;
    for (k, &j) in planted.iter().enumerate() {
        w.column_mut(j).assign(&noise.column(k));
    }
    let spec = LowRankColumnsSpec { rank: 4, kept: 5, ..Default::default() };
    let found = LowRankColumns::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap();
    assert!(found.report.relative_error < 1e-9, "{}", found.report.relative_error);
    assert!(found.matrix.columns().kept().iter().zip(planted).all(|(a, b)| *a as usize == b));
}

#[test]
fn the_published_initialization_of_lost() {
    let w = with_spectrum(20, 30, 4, |k| 0.9f64.powi(k as i32));
    for gamma in [0.5, 0.7] {
        let spec = LowRankColumnsSpec { rank: 6, kept: 5, method: ColumnChoice::Lost { gamma } };
        let found = LowRankColumns::project(&w, &spec, &Objective::Frobenius, &exact()).unwrap().matrix;
        // Columns: brute-force ranking by the norms of components 6..12.
        let svd = linalg::svd(&w, linalg::Threads::ONE).unwrap();
        let part = |from: usize, to: usize| {
            let scaled =
                Array2::from_shape_fn((20, to - from), |(i, k)| svd.u[[i, from + k]] * svd.s[from + k]);
            scaled.dot(&svd.vt.slice(structmat::ndarray::s![from..to, ..]))
        };
        let middle = part(6, 12);
        let mut order: Vec<usize> = (0..30).collect();
        let size = |j: &usize| middle.column(*j).dot(&middle.column(*j));
        order.sort_by(|a, b| size(b).total_cmp(&size(a)));
        let mut chosen = order[..5].to_vec();
        chosen.sort_unstable();
        assert!(found.columns().kept().iter().zip(&chosen).all(|(a, b)| *a as usize == *b));
        // Entries: gamma B A + (1 - gamma) W on the columns.
        let mut expected = part(0, 6) * gamma;
        for &j in &chosen {
            let whole = w.column(j).to_owned() * (1.0 - gamma);
            expected.column_mut(j).scaled_add(1.0, &whole);
        }
        assert!(difference(&found.to_dense_f64(), &expected) < 1e-12);
        let projected = LowRankColumnsSpec { method: ColumnChoice::Projection, ..spec };
        let best = LowRankColumns::project(&w, &projected, &Objective::Frobenius, &exact()).unwrap();
        assert!(best.report.relative_error < found.relative_error(&w).unwrap());
    }
}

#[test]
fn hostile_parts_are_refused() {
    let values = || Factor::from_matrix(Storage::F64, &Array2::<f64>::ones((1, 3)));
    let sparse = |cols: &[u32], starts: &[u32]| Sparse::new((2, 4), values(), cols.to_vec(), starts.to_vec());
    assert!(sparse(&[0, 3, 1], &[0, 2, 3]).is_ok());
    for (cols, starts) in [
        (&[0, 4, 1][..], &[0, 2, 3][..]),
        (&[3, 0, 1], &[0, 2, 3]),
        (&[1, 1, 1], &[0, 2, 3]),
        (&[0, 3, 1], &[0, 2, 2]),
        (&[0, 3, 1], &[1, 2, 3]),
        (&[0, 3, 1], &[0, 4, 3]),
        (&[0, 3, 1], &[0, 3]),
        (&[0, 3], &[0, 2, 3]),
        (&[0, 3, 1], &[]),
    ] {
        assert!(matches!(sparse(cols, starts), Err(Error::Record { .. })), "{cols:?} {starts:?}");
    }
    for kept in [vec![1, 0, 2], vec![0, 1], vec![0, 1, 4], vec![1, 1, 2]] {
        let columns = Factor::from_matrix(Storage::F64, &Array2::<f64>::ones((2, 3)));
        assert!(ColumnSparse::new(4, columns, kept).is_err());
    }
}

#[test]
fn wrong_specs_are_refused() {
    let w = gaussian(6, 8, 1);
    for (name, parameters) in [
        ("sparse", &[("nnz", "0")][..]),
        ("sparse", &[("nnz", "49")]),
        ("sparse", &[("density", "0")]),
        ("sparse", &[("density", "1.5")]),
        ("sparse", &[("pattern", "5:4")]),
        ("sparse", &[("pattern", "block=0")]),
        ("sparse", &[("pattern", "block=4"), ("nnz", "15")]),
        ("sparse", &[]),
        ("column_sparse", &[("kept", "9")]),
        ("low_rank_columns", &[("rank", "7"), ("kept", "1")]),
        ("low_rank_columns", &[("rank", "2"), ("kept", "1"), ("gamma", "0.5")]),
        ("low_rank_columns", &[("rank", "2"), ("method", "lost"), ("gamma", "2")]),
        ("sparse_low_rank", &[("rank", "2"), ("nnz", "0")]),
        ("sparse_low_rank", &[("rank", "2"), ("nnz", "3"), ("method", "other")]),
        ("cur", &[("rank", "7")]),
        ("cur", &[("rank", "2"), ("selection", "other")]),
        ("cur", &[("rank", "2"), ("metric", "cov")]),
        ("cur", &[("energy", "0")]),
    ] {
        let result = family(name).unwrap().project(&w, &request(parameters), &Objective::Frobenius, &exact());
        assert!(result.is_err(), "{name} accepted {parameters:?}");
    }
    let none = SparseLowRankSpec { splits: Vec::new(), method: SparseLowRankMethod::GoDec };
    assert!(SparseLowRank::project(&w, &none, &Objective::Frobenius, &exact()).is_err());
    assert!(SparseLowRank::random((6, 8), &none, Storage::F32, 0).is_err());
}
