//! CUR decompositions.

mod common;

use common::oracle::Oracle;
use common::{correlated_gram, gaussian, norm, with_spectrum};
use structmat::linalg::{self, Threads};
use structmat::ndarray::{Array2, Axis};
use structmat::prelude::*;

const ALL: [CurSelection; 6] = [
    CurSelection::Greedy,
    CurSelection::QDeim,
    CurSelection::Deim,
    CurSelection::Leverage,
    CurSelection::Magnitude,
    CurSelection::Random,
];

fn exact() -> Options<'static> {
    Options { storage: Storage::F64, ..Options::default() }
}

fn spec(rank: usize, selection: CurSelection) -> CurSpec {
    CurSpec { rank, selection, ..Default::default() }
}

fn list(indices: &[u32]) -> Vec<usize> {
    indices.iter().map(|&i| i as usize).collect()
}

fn plain(w: &Array2<f64>, spec: &CurSpec) -> Projected<Cur> {
    Cur::project(w, spec, &Objective::Frobenius, &exact()).unwrap()
}

/// The published spectrum at rank 60.
fn decaying() -> Array2<f64> {
    with_spectrum(300, 200, 11, |k| 0.93f64.powi(k as i32))
}

#[test]
fn columns_and_rows_are_those_of_the_weight_bit_by_bit() {
    let w = gaussian(30, 40, 1).mapv(|v| v as f32);
    for selection in ALL {
        let found =
            Cur::project(&w, &spec(9, selection), &Objective::Frobenius, &Options::default()).unwrap();
        let (c, _, r) = found.matrix.factors();
        let (rows, cols) = (list(found.matrix.rows()), list(found.matrix.cols()));
        assert_eq!(c.matrix(0).mapv(|v| v as f32), w.select(Axis(1), &cols));
        assert_eq!(r.matrix(0).mapv(|v| v as f32), w.select(Axis(0), &rows));
    }
}

#[test]
fn the_link_solves_the_normal_equations() {
    let (w, gram) = (gaussian(30, 40, 2), correlated_gram(40, 3));
    for selection in ALL {
        let found = plain(&w, &spec(9, selection)).matrix;
        let (c, _, r) = found.factors();
        let residual = &w - &found.to_dense_f64();
        let left = c.matrix(0).t().dot(&residual).dot(&r.matrix(0).t());
        assert!(norm(&left) < 1e-8 * norm(&w).powi(3), "{selection:?}: {}", norm(&left));

        let aware = Cur::project(&w, &spec(9, selection), &Objective::Activations(&gram), &exact()).unwrap();
        let (c, _, r) = aware.matrix.factors();
        let residual = (&w - &aware.matrix.to_dense_f64()).dot(gram.second_moment());
        let left = c.matrix(0).t().dot(&residual).dot(&r.matrix(0).t());
        assert!(norm(&left) < 1e-8 * norm(&w).powi(3), "{selection:?}: {}", norm(&left));
    }
}

#[test]
fn matrices_of_that_rank_are_reproduced() {
    let w = gaussian(50, 7, 4).dot(&gaussian(7, 35, 5));
    for selection in ALL {
        let error = plain(&w, &spec(7, selection)).report.relative_error;
        assert!(error < 1e-8, "{selection:?}: {error}");
    }
}

#[test]
fn interpolation_points_are_distinct_and_bound_the_error() {
    let w = decaying();
    for selection in [CurSelection::Deim, CurSelection::QDeim] {
        let found = plain(&w, &spec(20, selection)).matrix;
        let (rows, cols) = (list(found.rows()), list(found.cols()));
        let svd = linalg::svd(&w, Threads::ONE).unwrap();
        let lead = svd.truncate(20);
        let inverse_norm = |a: &Array2<f64>| 1.0 / linalg::singular_values(a, Threads::ONE).unwrap()[19];
        let bound =
            inverse_norm(&lead.u.select(Axis(0), &rows)) + inverse_norm(&lead.vt.select(Axis(1), &cols));
        let error = linalg::singular_values(&(&w - &found.to_dense_f64()), Threads::ONE).unwrap()[0];
        assert!(error <= bound * svd.s[20], "{selection:?}: {error} above {bound} x {}", svd.s[20]);
        let (mut r, mut c) = (rows, cols);
        r.sort_unstable();
        c.sort_unstable();
        assert!(r.windows(2).all(|p| p[0] < p[1]) && c.windows(2).all(|p| p[0] < p[1]));
    }
}

#[test]
fn good_selections_come_close_to_the_svd() {
    let w = decaying();
    let best = linalg::svd(&w, Threads::ONE).unwrap().tail_energy(60).sqrt() / norm(&w);
    let error = |selection| plain(&w, &spec(60, selection)).report.relative_error;
    let (auto, qdeim, random) =
        (error(CurSelection::Auto), error(CurSelection::QDeim), error(CurSelection::Random));
    assert!(qdeim < 4.0 * best && qdeim < random, "{qdeim} against {best}, random {random}");
    assert!(auto <= qdeim && auto <= error(CurSelection::Greedy), "{auto} against {qdeim}");
}

#[test]
fn the_rank_at_break_even() {
    assert_eq!(break_even_rank(4096, 4096), 1696);
    assert_eq!(break_even_rank(14336, 4096), 2769);
    assert_eq!(break_even_rank(1024, 4096), 718);
    assert_eq!(break_even_rank(1, 1), 0);
    for (m, n) in [(1usize, 5usize), (2, 2), (7, 9), (31, 64), (100, 3)] {
        let r = break_even_rank(m, n);
        assert!(r == 0 || r * (m + n) + r * r < m * n);
        assert!((r + 1) * (m + n) + (r + 1) * (r + 1) >= m * n);
    }
}

#[test]
fn rank_256_on_ten_layers_saves_what_was_published() {
    let saved = |m: usize, n: usize| m * n - 256 * (m + n) - 256 * 256;
    assert_eq!(10 * (saved(4096, 4096) + saved(1024, 4096) + saved(14336, 4096)), 713_687_040);
    let w = Cur::random((96, 64), &spec(5, CurSelection::Greedy), Storage::F32, 1).unwrap();
    assert_eq!(w.n_params(), 5 * (96 + 64) + 25);
}

#[test]
fn the_rank_ends_where_single_precision_does() {
    let w = Array2::from_shape_fn((300, 400), |(i, j)| {
        let (x, y) = (i as f64 / 299.0, j as f64 / 399.0);
        1.0 / (x + y + 0.1)
    });
    for selection in [CurSelection::Auto, CurSelection::QDeim] {
        let found =
            Cur::project(&w, &spec(20, selection), &Objective::Frobenius, &Options::default()).unwrap();
        let (_, link, _) = found.matrix.factors();
        let largest = link.unwrap().matrix(0).iter().fold(0.0f64, |max, v| max.max(v.abs()));
        assert!(found.matrix.rank() <= 6 && largest <= 1e3, "rank {}, link {largest}", found.matrix.rank());
        assert!(found.report.relative_error < 3e-4, "{selection:?}: {}", found.report.relative_error);
        let x = gaussian(400, 1, 6).mapv(|v| v as f32).remove_axis(Axis(1));
        let y = found.matrix.matvec(&x).unwrap().mapv(f64::from);
        let expected = w.dot(&x.mapv(f64::from));
        let error = (&y - &expected).iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!(error < 3e-4 * norm(&w) * norm(&x.insert_axis(Axis(0))), "{selection:?}: {error}");
    }
}

#[test]
fn fusing_changes_the_storage_only() {
    let w = gaussian(20, 30, 7);
    let split = plain(&w, &spec(6, CurSelection::Greedy));
    let fused = plain(&w, &CurSpec { fused: true, ..spec(6, CurSelection::Greedy) });
    assert!((split.report.relative_error - fused.report.relative_error).abs() < 1e-12);
    assert_eq!(fused.matrix.n_params() + 36, split.matrix.n_params());
}

#[test]
fn an_energy_chooses_the_rank() {
    let w = with_spectrum(40, 40, 8, |k| if k < 5 { 1.0 } else { 0.01 });
    let spec = Cur::spec(w.dim(), &Request::new().with("energy", 0.99)).unwrap();
    assert_eq!(spec.rank, break_even_rank(40, 40));
    assert_eq!(plain(&w, &spec).matrix.rank(), 5);
}

#[test]
fn every_metric_works_and_none_is_worse_than_plain() {
    let (w, gram) = (with_spectrum(30, 40, 9, |k| 0.9f64.powi(k as i32)), correlated_gram(40, 10));
    let objective = Objective::Activations(&gram);
    for metric in [CurMetric::Weight, CurMetric::AbsWanda, CurMetric::Wanda, CurMetric::Cov] {
        for selection in ALL {
            let spec = CurSpec { metric: Some(metric), ..spec(8, selection) };
            let aware = Cur::project(&w, &spec, &objective, &exact()).unwrap().matrix;
            let plain = plain(&w, &CurSpec { metric: None, ..spec }).matrix;
            let energy = |cur: &Cur| objective.energy(&(&w - &cur.to_dense_f64()));
            assert!(energy(&aware) <= energy(&plain), "{metric:?} {selection:?}");
        }
    }
}

#[test]
fn other_software_does_not_choose_better() {
    let oracle = Oracle::open("cur");
    assert!(oracle.cases.len() >= 2);
    for case in &oracle.cases {
        let w = oracle.matrix(case, "input");
        let rank = case["r"].as_u64().unwrap() as usize;
        let reference = |method: &str| case["methods"][method]["rel_error"].as_f64().unwrap();
        let found = plain(&w, &spec(rank, CurSelection::Auto)).report.relative_error;
        for method in ["curing_weight_deim_full", "textbook_deim", "scipy_pivoted_qr"] {
            let reference = reference(method);
            assert!(found <= reference * (1.0 + 1e-9), "{method}: {found} against {reference}");
        }
        // Interpolation points have one definition: the same rows, columns and error.
        let deim = plain(&w, &spec(rank, CurSelection::Deim));
        let points = |side: &str| -> Vec<usize> {
            let points = case["methods"]["textbook_deim"][side].as_array().unwrap();
            points.iter().map(|p| p.as_u64().unwrap() as usize).collect()
        };
        let sorted = |mut list: Vec<usize>| {
            list.sort_unstable();
            list
        };
        assert_eq!(sorted(list(deim.matrix.rows())), sorted(points("rows")));
        assert_eq!(sorted(list(deim.matrix.cols())), sorted(points("cols")));
        assert!((deim.report.relative_error - reference("textbook_deim")).abs() < 1e-9);
    }
}
