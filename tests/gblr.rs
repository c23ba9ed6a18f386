//! Generalized block-low-rank matrices and their masks (C. Lee, H.-S. Kim, "Differentiable Learning of Generalized Structured Matrices").

mod common;

use common::{correlated_gram, difference, exactly, falls, gaussian, norm, weighted_energy, with_spectrum};
use structmat::Error;
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::structures::window::{gaudi_mask, gaudi_mask_grad, mean_shrink, proximal_step, rounded};

/// Whole numbers from 0 to `limit - 1`, the same for the same seed.
fn below(seed: u64, count: usize, limit: usize) -> Vec<usize> {
    gaussian(1, count, seed).iter().map(|g| (g.abs() * 1e6) as usize % limit).collect()
}

/// Six blocks of rank one in windows of 16 to 32 rows and columns anywhere, and noise; with the numbers that they take.
fn planted(side: usize, noise: f64, seed: u64) -> (Array2<f64>, usize) {
    let (starts, lens) = (below(seed, 12, side), below(seed + 1000, 12, side / 6 + 1));
    let values = gaussian(12, side, seed + 2000);
    let mut w = gaussian(side, side, seed + 3000) * noise;
    let mut numbers = 0;
    for k in 0..6 {
        let [rows, cols] =
            [2 * k, 2 * k + 1].map(|i| CyclicWindow { start: starts[i], len: side / 6 + lens[i] });
        numbers += rows.len + cols.len;
        for (i, u) in rows.features(side).zip(values.row(2 * k)) {
            for (j, v) in cols.features(side).zip(values.row(2 * k + 1)) {
                w[[i, j]] += u * v;
            }
        }
    }
    (w, numbers)
}

fn fit(w: &Array2<f64>, request: &Request) -> Projected<Gblr> {
    Gblr::project(w, &Gblr::spec(w.dim(), request).unwrap(), &Objective::Frobenius, &exactly()).unwrap()
}

/// The error of the best low-rank matrix with so many numbers.
fn low_rank_error(w: &Array2<f64>, numbers: usize) -> f64 {
    let s = structmat::linalg::singular_values(w, structmat::linalg::Threads::ONE).unwrap();
    let rank = numbers / (w.nrows() + w.ncols());
    let energy = |s: &[f64]| s.iter().map(|s| s * s).sum::<f64>();
    (energy(&s[rank.min(s.len())..]) / energy(&s)).sqrt()
}

/// By windows, and by the dense matrix where these hold many numbers, whose flops are told.
#[test]
fn products_equal_their_formula_however_many_numbers_windows_hold() {
    for ((m, n), rank, dense) in [((130, 140), 30, true), ((130, 140), 5, false), ((100, 90), 60, false)] {
        let (u, v) = (gaussian(m, rank, 1), gaussian(rank, n, 2));
        let full = Gblr::from_low_rank(&u, &v, Storage::F64).unwrap();
        let starts: Vec<usize> = below(3, 2 * rank, m.min(n));
        let moved = (0..rank).map(|k| GblrComponent {
            rows: CyclicWindow { start: starts[2 * k], len: m },
            cols: CyclicWindow { start: starts[2 * k + 1], len: n },
            u: u.column(k).to_vec(),
            v: v.row(k).to_vec(),
        });
        let moved = Gblr::from_components((m, n), &moved.collect::<Vec<_>>(), Storage::F64).unwrap();
        let mut w = Array2::zeros((m, n));
        for k in 0..rank {
            for (i, u) in u.column(k).iter().enumerate() {
                for (j, v) in v.row(k).iter().enumerate() {
                    w[[(starts[2 * k] + i) % m, (starts[2 * k + 1] + j) % n]] += u * v;
                }
            }
        }
        for (gblr, w) in [(full, u.dot(&v)), (moved, w)] {
            assert!(difference(&gblr.to_dense_f64(), &w) < 1e-13);
            let flops = if dense { 2 * m * n } else { 2 * gblr.n_params() };
            for batch in [1, 5] {
                assert_eq!(gblr.flops(batch), (batch * flops) as u64, "{m} x {n}, rank {rank}");
                let (x, dy) = (gaussian(batch, n, 4), gaussian(batch, m, 5));
                assert!(difference(&gblr.matmul(&x).unwrap(), &x.dot(&w.t())) < 1e-12);
                assert!(difference(&gblr.matmul_transpose(&dy).unwrap(), &dy.dot(&w)) < 1e-12);
            }
        }
    }
}

#[test]
fn masks_of_whole_widths_and_locations_are_windows() {
    for n in [15usize, 16, 64] {
        for len in 0..=n {
            for start in 0..n {
                let (w, l) = (len as f64 / n as f64, start as f64 / n as f64);
                let mask = gaudi_mask(w, l, n, f64::INFINITY).unwrap();
                let mut window = vec![0.0; n];
                CyclicWindow { start, len }.features(n).for_each(|i| window[i] = 1.0);
                assert!(mask.iter().zip(&window).all(|(m, w)| (m - w).abs() < 1e-10), "{n} {len} {start}");
                // What is rounded straight through is the same window.
                let shaken = (w + 0.3 / n as f64, l - 0.4 / n as f64);
                if len < n {
                    assert_eq!(rounded(shaken.0, n), w);
                    assert_eq!(CyclicWindow::nearest(shaken.0, shaken.1, n), CyclicWindow { start, len });
                }
            }
        }
    }
}

#[test]
fn mask_gradients_are_central_differences() {
    for n in [1usize, 2, 15, 16, 64] {
        for (w, l) in [(0.3, 0.1), (0.71, 0.83), (0.25, 0.5), (1.0, 0.0), (0.013, 0.97)] {
            for sigma in [f64::INFINITY, 1.0, 7.0, 100.0] {
                let (by_w, by_l) = gaudi_mask_grad(w, l, n, sigma).unwrap();
                let h = 1e-6;
                let slope = |dw: f64, dl: f64| -> Vec<f64> {
                    let [plus, minus] =
                        [h, -h].map(|h| gaudi_mask(w + h * dw, l + h * dl, n, sigma).unwrap());
                    plus.iter().zip(&minus).map(|(a, b)| (a - b) / (2.0 * h)).collect()
                };
                for (analytic, numeric) in [(by_w, slope(1.0, 0.0)), (by_l, slope(0.0, 1.0))] {
                    let scale = numeric.iter().fold(1.0f64, |m, a| m.max(a.abs()));
                    let worst = analytic.iter().zip(&numeric).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
                    assert!(worst <= 1e-6 * scale, "{n} {w} {l} {sigma}: {worst:e}");
                }
            }
        }
    }
}

#[test]
fn masks_steps_and_specs_refuse_what_makes_no_sense() {
    let parameter = |result: structmat::Result<()>| matches!(result, Err(Error::Parameter { .. }));
    for (w, l, n, sigma) in [
        (f64::NAN, 0.0, 8, 1.0),
        (0.5, f64::INFINITY, 8, 1.0),
        (0.5, 0.0, 0, 1.0),
        (0.5, 0.0, 8, 0.0),
        (0.5, 0.0, 8, f64::NAN),
    ] {
        assert!(parameter(gaudi_mask(w, l, n, sigma).map(|_| ())));
        assert!(parameter(gaudi_mask_grad(w, l, n, sigma).map(|_| ())));
    }
    assert!(parameter(proximal_step(&mut [0.5], &mut [0.5], -1.0)));
    assert!(parameter(proximal_step(&mut [0.5], &mut [0.5], f64::NAN)));
    let w = gaussian(6, 5, 1);
    let project = |numbers, method| {
        let spec = GblrSpec { numbers, overhead: 0, method };
        Gblr::project(&w, &spec, &Objective::Frobenius, &exactly()).map(|_| ())
    };
    assert!(parameter(project(1, GblrMethod::Descent { price: 0.0 })));
    assert!(parameter(project(9, GblrMethod::Descent { price: f64::NAN })));
    assert!(parameter(project(9, GblrMethod::Descent { price: -1.0 })));
    assert!(parameter(project(9, GblrMethod::Gradient { rate: 0.0, window_rate: 1.0 })));
    assert!(parameter(project(9, GblrMethod::Gradient { rate: 1.0, window_rate: f64::INFINITY })));
    for (name, value) in
        [("method", "magic"), ("rate", "1"), ("price", "x"), ("numbers", "1"), ("numbers", "1000")]
    {
        let request = Request::new().with(name, value).budget(Budget::Ratio(0.5));
        assert!(parameter(Gblr::spec((6, 5), &request).map(|_| ())), "{name} {value}");
    }
    assert!(matches!(
        Gblr::spec((6, 5), &Request::new().budget(Budget::Params(1))),
        Err(Error::Budget { .. })
    ));
    assert!(parameter(Gblr::spec((6, 5), &Request::new()).map(|_| ())));
    let (rows, cols) = (CyclicWindow { start: 4, len: 3 }, CyclicWindow { start: 0, len: 2 });
    let component = |u: usize, rows| GblrComponent { rows, cols, u: vec![1.0; u], v: vec![1.0; 2] };
    let build = |component| Gblr::from_components((6, 5), &[component], Storage::F32).map(|_| ());
    assert!(build(component(3, rows)).is_ok());
    for bad in [
        component(2, rows),
        component(3, CyclicWindow { start: 6, len: 3 }),
        component(7, CyclicWindow { start: 0, len: 7 }),
        component(0, CyclicWindow { start: 0, len: 0 }),
    ] {
        assert!(matches!(build(bad), Err(Error::Record { .. })));
    }
    let bad = GblrComponent { u: vec![1.0, f64::NAN, 1.0], ..component(3, rows) };
    assert!(matches!(build(bad), Err(Error::NonFinite { .. })));
}

#[test]
fn proximal_and_mean_steps_shrink_widths() {
    let (mut widths, mut locations) = (vec![0.5, 0.05, 1.2, 0.0], vec![1.25, -0.25, 0.5, 3.0]);
    proximal_step(&mut widths, &mut locations, 0.1).unwrap();
    assert!(widths.iter().zip([0.4, 0.0, 1.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-12));
    assert_eq!(locations, [0.25, 0.75, 0.5, 0.0]);
    // Rows count three times as much as columns: the mean is 0.5.
    let (mut rows, mut cols) = (vec![0.4, 0.6], vec![0.2, 0.8]);
    mean_shrink(&mut rows, &mut cols, (30, 10), 0.45).unwrap();
    assert!(rows.iter().chain(&cols).zip([0.35, 0.55, 0.15, 0.75]).all(|(a, b)| (a - b).abs() < 1e-12));
    mean_shrink(&mut rows, &mut cols, (30, 10), 0.9).unwrap();
    assert!(mean_shrink(&mut rows, &mut cols, (30, 10), f64::NAN).is_err());
    assert!((rows[0] - 0.35).abs() < 1e-12);
}

#[test]
fn products_equal_the_dense_matrix_where_windows_wrap_both_ways() {
    let (m, n) = (37, 53);
    let windows = [
        ((30, 20), (50, 10)),
        ((36, 37), (1, 53)),
        ((0, 1), (52, 2)),
        ((5, 30), (40, 53)),
        ((36, 1), (0, 1)),
    ];
    let components: Vec<GblrComponent> = windows
        .iter()
        .enumerate()
        .map(|(k, &((r, wr), (c, wc)))| GblrComponent {
            rows: CyclicWindow { start: r, len: wr },
            cols: CyclicWindow { start: c, len: wc },
            u: gaussian(1, wr, k as u64).into_raw_vec_and_offset().0,
            v: gaussian(1, wc, 50 + k as u64).into_raw_vec_and_offset().0,
        })
        .collect();
    let w = Gblr::from_components((m, n), &components, Storage::F64).unwrap();
    let mut dense = Array2::<f64>::zeros((m, n));
    for c in &components {
        for i in 0..c.rows.len {
            for j in 0..c.cols.len {
                dense[[(c.rows.start + i) % m, (c.cols.start + j) % n]] += c.u[i] * c.v[j];
            }
        }
    }
    assert!(difference(&w.to_dense_f64(), &dense) < 1e-15);
    assert_eq!(w.components().collect::<Vec<_>>(), components);
    assert_eq!((w.len(), w.n_params(), w.storage_bytes()), (5, 208, 208 * 8 + 5 * 16));
    for batch in [1, 2, 5, 40] {
        let (x, g) = (gaussian(batch, n, 7), gaussian(batch, m, 8));
        assert!(difference(&w.matmul(&x).unwrap(), &x.dot(&dense.t())) < 1e-13);
        assert!(difference(&w.matmul_transpose(&g).unwrap(), &g.dot(&dense)) < 1e-13);
        let single = x.mapv(|x| x as f32);
        assert!(difference(&w.matmul(&single).unwrap(), &x.dot(&dense.t())) < 1e-5);
    }
}

#[test]
fn low_rank_and_block_matrices_are_members() {
    let (u, v) = (gaussian(12, 3, 1), gaussian(3, 20, 2));
    let low = Gblr::from_low_rank(&u, &v, Storage::F64).unwrap();
    assert!(difference(&low.to_dense_f64(), &u.dot(&v)) < 1e-14 && low.n_params() == 3 * 32);
    assert!(Gblr::from_low_rank(&u, &v.t(), Storage::F64).is_err());
    // A block-diagonal matrix of rank-one blocks, by projection.
    let block = |i: usize, j: usize| if i / 4 == j / 5 { u[[i, 0]] * v[[0, j]] } else { 0.0 };
    let w = Array2::from_shape_fn((12, 15), |(i, j)| block(i, j));
    let found = fit(&w, &Request::new().budget(Budget::Params(36)));
    assert!(found.report.relative_error < 1e-7 && found.report.params <= 36, "{:?}", found.report);
}

/// The objective with its price is what the history says, and it never rises.
#[test]
fn the_penalized_objective_never_rises() {
    for (w, price) in [
        (planted(96, 0.02, 5).0, 2.0),
        (planted(96, 0.3, 6).0, 0.5),
        (gaussian(40, 60, 3), 0.7),
        (with_spectrum(64, 48, 4, |k| (1.0 + k as f64).powf(-0.8)), 1e-3),
    ] {
        let found = fit(&w, &Request::new().with("price", price));
        let energy = norm(&(&w - &found.matrix.to_dense_f64())).powi(2) + price * found.report.params as f64;
        let last = found.report.history.last().unwrap() * norm(&w);
        assert!(found.report.history.len() > 1 && falls(&found.report.history));
        assert!((energy.sqrt() - last).abs() < 1e-6 * last, "{} {last}", energy.sqrt());
        assert!(energy <= norm(&w).powi(2));
    }
}

#[test]
fn planted_windows_are_recovered_at_a_price() {
    for seed in 0..8 {
        let (w, numbers) = planted(96, 0.02, 10 * seed);
        let found = fit(&w, &Request::new().with("price", 2));
        let (error, used) = (found.report.relative_error, found.report.params as f64 / numbers as f64);
        println!(
            "seed {seed}: error {error:.4}, {used:.2} of {numbers}, {:.1} s, low rank {:.3}",
            found.report.seconds,
            low_rank_error(&w, numbers)
        );
        assert!(error <= 0.2 && used <= 1.7, "seed {seed}: {error} with {used} of {numbers}");
        assert!(low_rank_error(&w, numbers) > 3.0 * error);
    }
}

/// Numbers have their price under activations too.
#[test]
fn prices_count_with_activations() {
    let (w, numbers) = planted(48, 0.02, 3);
    let gram = correlated_gram(48, 4);
    let spec = Gblr::spec(w.dim(), &Request::new().with("price", 2)).unwrap();
    let found = Gblr::project(&w, &spec, &Objective::Activations(&gram), &exactly()).unwrap();
    assert!(found.report.params <= 2 * numbers, "{} of {numbers}", found.report.params);
}

#[test]
fn planted_windows_are_recovered_at_their_budget() {
    let mut errors = Vec::new();
    for seed in 0..6 {
        let (w, numbers) = planted(96, 0.02, 10 * seed);
        let found = fit(&w, &Request::new().budget(Budget::Params(numbers)));
        println!(
            "seed {seed}: error {:.4} {} of {numbers} {:.1} s",
            found.report.relative_error, found.report.params, found.report.seconds
        );
        assert!(found.report.params <= numbers && falls(&found.report.history));
        errors.push(found.report.relative_error);
    }
    assert!(errors.iter().all(|e| *e < 0.2), "{errors:?}");
}

#[test]
fn budgets_are_met_and_larger_ones_lose_less() {
    for (k, w) in [
        planted(60, 0.1, 3).0,
        gaussian(30, 45, 1),
        with_spectrum(50, 32, 2, |k| (1.0 + k as f64).powf(-0.6)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut last = 1.0;
        for ratio in [0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0] {
            let report = fit(&w, &Request::new().budget(Budget::Ratio(ratio))).report;
            println!("{k} {ratio}: {:.4} with {:.4}", report.relative_error, report.ratio);
            assert!(report.ratio <= ratio + 1e-12);
            assert!(report.relative_error <= last, "{ratio}: {} after {last}", report.relative_error);
            last = report.relative_error;
        }
        for storage in Storage::ALL {
            let bytes = 3000;
            let request = Request::new().storage(storage).budget(Budget::Bytes(bytes));
            let spec = Gblr::spec(w.dim(), &request).unwrap();
            let options = Options { storage, max_iterations: Some(4), ..Options::default() };
            let found = Gblr::project(&w, &spec, &Objective::Frobenius, &options).unwrap();
            assert!(found.report.bytes <= bytes, "{storage}: {}", found.report.bytes);
            let random = Gblr::random(w.dim(), &spec, storage, 1).unwrap();
            // Indices are counted as numbers, rounded up; and no member has more of both than the matrix has entries.
            let taken = random.storage_bytes();
            let full = spec.numbers >= w.len() || 20 * taken >= 19 * bytes;
            assert!(taken <= bytes && full, "{storage}: {taken}, {spec:?}");
        }
    }
}

/// At the same number of parameters.
#[test]
fn errors_are_never_above_those_of_low_rank_and_block_low_rank_matrices() {
    let blocks = {
        let spec = BlockLowRankSpec { blocks: (4, 4), rank: 2 };
        BlockLowRank::random((48, 64), &spec, Storage::F64, 3).unwrap().to_dense_f64()
    };
    for w in [
        gaussian(48, 64, 1),
        with_spectrum(64, 48, 2, |k| (1.0 + k as f64).powf(-1.0)),
        &blocks + &(gaussian(48, 64, 9) * 0.01),
        planted(60, 0.1, 4).0,
    ] {
        for (name, parameters) in [
            ("low_rank", "1"),
            ("low_rank", "5"),
            ("block_low_rank", "2x2"),
            ("block_low_rank", "4x4"),
            ("block_diagonal", "8"),
        ] {
            let request = match name {
                "low_rank" => Request::new().with("rank", parameters),
                "block_low_rank" => Request::new().with("blocks", parameters).with("rank", 2),
                _ => Request::new().with("blocks", parameters).budget(Budget::Ratio(1.0)),
            };
            let entry = structmat::registry::family(name).unwrap();
            let member = entry.project(&w, &request, &Objective::Frobenius, &exactly()).unwrap().report;
            let own = fit(&w, &Request::new().budget(Budget::Params(member.params))).report;
            println!("{name} {parameters}: {} against {}", own.relative_error, member.relative_error);
            assert!(own.params <= member.params);
            assert!(own.relative_error <= member.relative_error * (1.0 + 1e-9) + 1e-12);
        }
    }
}

#[test]
fn activations_are_never_worse_than_plain_fits_and_weighted_low_rank() {
    let w = planted(60, 0.2, 7).0;
    for seed in 0..3 {
        let gram = correlated_gram(60, seed);
        let objective = Objective::Activations(&gram);
        let spec = Gblr::for_budget(w.dim(), Budget::Ratio(0.2)).unwrap();
        let energy = |m: &dyn StructuredMatrix| weighted_energy(&w, m, &gram);
        let plain = Gblr::project(&w, &spec, &Objective::Frobenius, &exactly()).unwrap();
        let weighted = Gblr::project(&w, &spec, &objective, &exactly()).unwrap();
        let rank = LowRank::for_budget(w.dim(), Budget::Ratio(0.2)).unwrap();
        let low = LowRank::project(&w, &rank, &objective, &exactly()).unwrap();
        println!("{} {} {}", energy(&weighted.matrix), energy(&plain.matrix), energy(&low.matrix));
        assert!(energy(&weighted.matrix) < energy(&plain.matrix));
        assert!(energy(&weighted.matrix) <= energy(&low.matrix) * (1.0 + 1e-9));
        assert!(weighted.report.params <= spec.numbers && falls(&weighted.report.history));
    }
}

/// For a diagonal second moment columns count by their powers, and windows see it.
#[test]
fn a_diagonal_second_moment_is_a_scaling() {
    let w = planted(48, 0.1, 8).0;
    let powers: Vec<f64> = (0..48).map(|j| if j % 3 == 0 { 25.0 } else { 0.2 }).collect();
    let c = Array2::from_shape_fn((48, 48), |(i, j)| if i == j { powers[i] } else { 0.0 });
    let gram = Gram::from_second_moment(&c).unwrap();
    let spec = Gblr::for_budget(w.dim(), Budget::Ratio(0.15)).unwrap();
    let weighted = Gblr::project(&w, &spec, &Objective::Activations(&gram), &exactly()).unwrap();
    let scaled = Array2::from_shape_fn(w.dim(), |(i, j)| w[[i, j]] * powers[j].sqrt());
    let same = Gblr::project(&scaled, &spec, &Objective::Frobenius, &exactly()).unwrap();
    let error = weighted.report.weighted_relative_error.unwrap();
    assert!(error <= same.report.relative_error * (1.0 + 1e-9), "{error} {}", same.report.relative_error);
}

/// The published fit keeps its best iterate, meets the budget, and ends above the descent.
#[test]
fn the_published_gradient_fit_is_kept_for_comparison() {
    for seed in [0, 10] {
        let (w, numbers) = planted(96, 0.02, seed);
        let budget = 2 * numbers;
        let request = Request::new().budget(Budget::Params(budget));
        let found = fit(&w, &request.clone().with("method", "gradient"));
        let descent = fit(&w, &request);
        println!(
            "seed {seed}: gradient {:.4} in {:.1} s, descent {:.4} in {:.1} s, low rank {:.4}",
            found.report.relative_error,
            found.report.seconds,
            descent.report.relative_error,
            descent.report.seconds,
            low_rank_error(&w, budget)
        );
        assert!(found.report.params <= budget && falls(&found.report.history));
        assert!((found.report.history.last().unwrap() - found.report.relative_error).abs() < 1e-9);
        assert!(found.report.relative_error < 1.0);
        assert!(descent.report.relative_error < found.report.relative_error);
    }
}

#[test]
fn scaling_outputs_scales_rows() {
    let w = Gblr::random((9, 14), &GblrSpec { numbers: 60, ..Default::default() }, Storage::F64, 4).unwrap();
    let scale: Vec<f64> = (0..9).map(|i| 0.5 + i as f64).collect();
    let scaled = w.scale_outputs(&scale, Storage::F64).unwrap().to_dense_f64();
    let expected = Array2::from_shape_fn((9, 14), |(i, j)| scale[i] * w.to_dense_f64()[[i, j]]);
    assert!(difference(&scaled, &expected) < 1e-14);
}

#[test]
fn zero_tiny_and_constant_weights() {
    for shape in [(1, 1), (1, 9), (9, 1), (5, 4)] {
        let zero = fit(&Array2::zeros(shape), &Request::new().budget(Budget::Params(14)));
        assert!(zero.matrix.to_dense_f64().iter().all(|a| *a == 0.0));
        let constant = fit(&Array2::from_elem(shape, 3.0), &Request::new().budget(Budget::Params(14)));
        assert!(constant.report.relative_error < 1e-12, "{shape:?}: {}", constant.report.relative_error);
        let least = fit(&gaussian(shape.0, shape.1, 1), &Request::new().budget(Budget::Params(2)));
        assert!(least.report.params <= 2 && least.report.relative_error <= 1.0);
        let largest = gaussian(shape.0, shape.1, 1).iter().fold(0.0f64, |m, a| m.max(a.abs()));
        let expected = (1.0 - (largest / norm(&gaussian(shape.0, shape.1, 1))).powi(2)).max(0.0).sqrt();
        assert!(least.report.relative_error <= expected + 1e-7, "{shape:?}");
    }
}

/// What is not finite reaches the rows of the windows that see it, and no other one.
#[test]
fn nan_stays_in_its_windows() {
    let component = |row: usize, rows: usize, col: usize, cols: usize| GblrComponent {
        rows: CyclicWindow { start: row, len: rows },
        cols: CyclicWindow { start: col, len: cols },
        u: vec![1.0; rows],
        v: vec![0.5; cols],
    };
    let components = [component(3, 41, 5, 50), component(180, 37, 90, 61)];
    let matrix = Gblr::from_components((200, 200), &components, Storage::F32).unwrap();
    for batch in [1, 9] {
        let mut x = Array2::<f32>::ones((batch, 200));
        x[[batch - 1, 7]] = f32::NAN;
        let y = matrix.matmul(&x).unwrap();
        for ((b, i), y) in y.indexed_iter() {
            let expected = match i {
                3..44 if b == batch - 1 => f32::NAN,
                3..17 => 25.0 + 30.5,
                17..44 => 25.0,
                0..3 | 180..200 => 30.5,
                _ => 0.0,
            };
            assert!(*y == expected || y.is_nan() && expected.is_nan(), "row {b}, output {i}: {y}");
        }
    }
}
