//! Low rank while training: DLRT, CondLR, Dobi-SVD.

mod common;

use common::{correlated_gram, difference, gaussian, norm, singular_gram, with_spectrum};
use std::cell::RefCell;
use structmat::Error;
use structmat::allocation::{RankSize, SoftRankTrainer, SoftRanks};
use structmat::linalg::{SvdGuards, Threads, cholesky, eigvalsh, singular_values, svd};
use structmat::ndarray::{Array2, ArrayView2, aview1};
use structmat::prelude::*;
use structmat::training::{
    BatchGradient, ConditionBound, Dlrt, DlrtMode, DlrtSettings, FactorScaling, LowRank3, ProjectedFactors,
    ProjectedSettings, Rule, SoftTruncation, ThinGradient, clip_condition, clip_condition_to_mean,
    condition_number, output_basis, output_pca, polar, project_outputs, qr_positive, scaled_orthogonal,
    subspace_basis,
};

fn adaptive(theta: f64, min_rank: usize, max_rank: usize) -> DlrtMode {
    DlrtMode::Adaptive { theta, min_rank, max_rank }
}

fn descent(rate: f64, mode: DlrtMode) -> Dlrt {
    Dlrt::new(DlrtSettings { rate, mode, ..Default::default() }).unwrap()
}

/// `‖W - A‖² / 2`.
fn half_square(w: &LowRank3, a: &Array2<f64>) -> f64 {
    0.5 * norm(&(w.to_dense() - a)).powi(2)
}

/// Half of the squared error of the best approximation of rank `rank`.
fn eckart_young(a: &Array2<f64>, rank: usize) -> f64 {
    0.5 * singular_values(a, Threads::ONE).unwrap()[rank..].iter().map(|s| s * s).sum::<f64>()
}

fn spectrum(s: &Array2<f64>) -> Vec<f64> {
    singular_values(s, Threads::ONE).unwrap()
}

// DLRT

#[test]
fn dlrt_augmentation_is_an_identity_and_truncation_is_the_best_approximation() {
    for (m, n, r) in [(12, 9, 3), (9, 12, 4), (6, 5, 4), (5, 1, 1), (1, 1, 1)] {
        let a = gaussian(m, n, 1);
        for theta in [0.0, 0.1, 0.4] {
            let mut w = LowRank3::random((m, n), r, 2).unwrap();
            let start = w.to_dense();
            let points = RefCell::new(Vec::new());
            let mode = adaptive(theta, 1, m.min(n));
            let step = descent(0.3, mode).step(&mut w, |w| {
                points.borrow_mut().push(w.clone());
                Ok(w.to_dense() - &a)
            });
            let (step, points) = (step.unwrap(), points.into_inner());
            assert_eq!(points.len(), 2);
            // (a): the same matrix in bases of up to twice the size.
            assert!(norm(&(points[1].to_dense() - &start)) < 1e-12 * norm(&start).max(1.0));
            assert_eq!(points[1].s().dim(), ((2 * r).min(m), (2 * r).min(n)));
            assert!(points[1].deviation() < 1e-13 && w.deviation() < 1e-13);
            // (b): before the truncation it was this.
            let (u, v) = (points[1].u(), points[1].v());
            let g = points[1].to_dense() - &a;
            let inner = points[1].s() - &(u.t().dot(&g).dot(v) * 0.3);
            let whole = u.dot(&inner).dot(&v.t());
            let cut = norm(&(&whole - &w.to_dense()));
            assert!(cut <= theta * norm(&inner) + 1e-12, "{cut} {theta}");
            assert!((cut - step.discarded * norm(&inner)).abs() < 1e-12);
            let best = svd(&whole, Threads::ONE).unwrap().truncate(step.rank).reconstruct(Threads::ONE);
            assert!(norm(&(best - w.to_dense())) < 1e-12 * norm(&whole).max(1.0));
            // No smaller rank would do.
            let s = spectrum(&inner);
            let tail = |r: usize| s[r..].iter().map(|s| s * s).sum::<f64>().sqrt();
            assert!(step.rank == 1 || tail(step.rank - 1) > theta * norm(&inner));
        }
    }
}

#[test]
fn dlrt_reaches_the_best_approximation_of_its_rank_and_never_climbs() {
    for seed in 0..4 {
        let a = gaussian(8, 7, 10 + seed);
        let mut w = LowRank3::random((8, 7), 2, seed).unwrap();
        let mut steps = descent(0.2, adaptive(0.05, 2, 7));
        let mut before = half_square(&w, &a);
        for k in 0..200 {
            steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
            let now = half_square(&w, &a);
            assert!(now <= before + 1e-12, "seed {seed}, step {k}: {now} after {before}");
            before = now;
        }
        let best = eckart_young(&a, w.rank());
        assert!((before - best).abs() < 1e-9, "seed {seed}: {before}, best of rank {} {best}", w.rank());
    }
}

#[test]
fn dlrt_finds_a_planted_rank() {
    // Where the fifth singular value is above the tolerance, and all the same was not found.
    let mut hidden = [(0.1, 0, 0), (0.2, 0, 0)];
    for seed in 0..8 {
        let a = gaussian(30, 5, 20 + seed).dot(&gaussian(5, 24, 40 + seed));
        let run = |theta: f64| {
            let mut w = LowRank3::random((30, 24), 2, seed).unwrap();
            let mut steps = descent(0.2, adaptive(theta, 2, 12));
            for _ in 0..400 {
                steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
            }
            w
        };
        let w = run(0.02);
        assert_eq!(w.rank(), 5, "seed {seed}");
        assert!(half_square(&w, &a) < 1e-20, "seed {seed}: {}", half_square(&w, &a));
        for (theta, stuck, of) in &mut hidden {
            if spectrum(&a)[4] > *theta * norm(&a) {
                *of += 1;
                *stuck += usize::from(run(*theta).rank() < 5);
            }
        }
    }
    println!("theta, stuck below the planted rank, of: {hidden:?}");
    // A large tolerance cuts a direction off each time that it begins to grow.
    assert_eq!(hidden, [(0.1, 0, 8), (0.2, 5, 7)]);
}

#[test]
fn dlrt_ranks_stay_within_their_bounds() {
    let a = gaussian(10, 8, 1);
    for (min, max) in [(1, 1), (3, 3), (2, 5), (4, 100)] {
        let mut w = LowRank3::random((10, 8), 4, 1).unwrap();
        let mut steps = descent(0.2, adaptive(0.0, min, max));
        for _ in 0..30 {
            let step = steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
            assert!(step.rank == w.rank() && (min..=max).contains(&step.rank));
            assert_eq!(w.s().dim(), (step.rank, step.rank));
        }
        // All but the first may go, where the least rank does not say otherwise.
        let mut steps = descent(0.1, adaptive(0.99, min, max));
        steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
        assert_eq!(w.rank(), min);
    }
}

#[test]
fn dlrt_of_fixed_rank_and_of_the_core_alone() {
    let a = with_spectrum(14, 11, 3, |k| 0.5f64.powi(k as i32));
    let mut w = LowRank3::random((14, 11), 3, 4).unwrap();
    let mut steps = descent(0.3, DlrtMode::Fixed);
    for _ in 0..300 {
        let step = steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
        assert_eq!((step.rank, step.discarded), (3, 0.0));
    }
    assert!((half_square(&w, &a) - eckart_young(&a, 3)).abs() < 1e-9 && w.deviation() < 1e-12);
    // Fine-tuning to another matrix: the bases stay, and S becomes the best between them.
    let b = &a + &(gaussian(14, 11, 5) * 0.1);
    let (u, v) = (w.u().clone(), w.v().clone());
    let mut steps = descent(0.5, DlrtMode::CoreOnly);
    for _ in 0..60 {
        steps.step(&mut w, |w| Ok(w.to_dense() - &b)).unwrap();
    }
    assert!(w.u() == u && w.v() == v);
    assert!(norm(&(w.s() - &u.t().dot(&b).dot(&v))) < 1e-12);
}

#[test]
fn dlrt_never_needs_the_dense_gradient() {
    // A layer: G = dYᵀ X, in thin products.
    let (x, target) = (gaussian(40, 9, 1), gaussian(12, 2, 2).dot(&gaussian(2, 9, 3)));
    let y = x.dot(&target.t());
    for (mode, rule) in [
        (adaptive(0.01, 1, 4), Rule::Sgd),
        (DlrtMode::Fixed, Rule::Sgd),
        (DlrtMode::CoreOnly, Rule::Sgd),
        (adaptive(0.01, 1, 4), Rule::Adam { betas: (0.9, 0.99) }),
    ] {
        let settings = DlrtSettings { rate: 0.01, mode, rule, bound: None };
        let (mut thin, mut dense) = (Dlrt::new(settings).unwrap(), Dlrt::new(settings).unwrap());
        let mut w = LowRank3::random((12, 9), 2, 4).unwrap();
        let mut same = w.clone();
        for _ in 0..20 {
            thin.step(&mut w, |w| BatchGradient::new(&x, w.forward(&x)? - &y)).unwrap();
            dense.step(&mut same, |w| Ok((w.forward(&x)? - &y).t().dot(&x))).unwrap();
        }
        assert!(norm(&(w.to_dense() - same.to_dense())) < 1e-9 * norm(&target), "{mode:?}");
    }
    let g = BatchGradient::new(&x, y.clone()).unwrap();
    let whole = y.t().dot(&x);
    let (u, v) = (gaussian(12, 3, 5), gaussian(9, 2, 6));
    assert!(difference(&g.times(&v).unwrap(), &whole.dot(&v)) < 1e-13);
    assert!(difference(&g.transposed_times(&u).unwrap(), &whole.t().dot(&u)) < 1e-13);
    assert!(difference(&g.between(&u, &v).unwrap(), &u.t().dot(&whole).dot(&v)) < 1e-13);
    assert!(difference(&whole.between(&u, &v).unwrap(), &u.t().dot(&whole).dot(&v)) < 1e-13);
}

#[test]
fn dlrt_with_adam_finds_the_planted_rank_too() {
    // Badly scaled rows: what Adam is for.
    let mut a = gaussian(20, 3, 1).dot(&gaussian(3, 15, 2));
    a.outer_iter_mut().enumerate().for_each(|(i, mut row)| row *= 0.7f64.powi(i as i32 % 6));
    for mode in [adaptive(0.02, 2, 8), DlrtMode::Fixed] {
        let mut w = LowRank3::random((20, 15), 3, 3).unwrap();
        let rule = Rule::Adam { betas: (0.9, 0.9) };
        let mut steps = Dlrt::new(DlrtSettings { rate: 0.15, mode, rule, bound: None }).unwrap();
        let first = half_square(&w, &a);
        for k in 0..600 {
            steps.set_rate(0.15 * 0.99f64.powi(k)).unwrap();
            steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
        }
        let last = half_square(&w, &a);
        assert!(w.rank() == 3 && last < 1e-4 * first && w.deviation() < 1e-12, "{mode:?}: {last} of {first}");
    }
}

#[test]
fn dlrt_refuses_what_it_cannot_use_and_leaves_the_weight_alone() {
    let bad = |settings: DlrtSettings| matches!(Dlrt::new(settings), Err(Error::Parameter { .. }));
    let of = |rate, mode| DlrtSettings { rate, mode, ..Default::default() };
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(bad(of(rate, DlrtMode::Fixed)));
        assert!(descent(0.1, DlrtMode::Fixed).set_rate(rate).is_err());
    }
    assert!(bad(of(0.1, adaptive(1.0, 1, 2))) && bad(of(0.1, adaptive(f64::NAN, 1, 2))));
    assert!(bad(of(0.1, adaptive(0.1, 0, 2))) && bad(of(0.1, adaptive(0.1, 3, 2))));
    let adam = Rule::Adam { betas: (0.9, 1.0) };
    assert!(bad(DlrtSettings { rule: adam, ..Default::default() }));
    let bound = Some(ConditionBound::Nearest { tau: 0.9 });
    assert!(bad(DlrtSettings { bound, ..Default::default() }));

    let w = LowRank3::random((6, 5), 2, 1).unwrap();
    for mode in [adaptive(0.1, 1, 3), DlrtMode::Fixed, DlrtMode::CoreOnly] {
        let mut same = w.clone();
        let mut steps = descent(0.1, mode);
        let wrong = steps.step(&mut same, |_| Ok(Array2::<f64>::zeros((5, 6))));
        assert!(matches!(wrong, Err(Error::Shape { .. })), "{mode:?}");
        let wrong = steps.step(&mut same, |_| Ok(Array2::from_elem((6, 5), f64::NAN)));
        assert!(matches!(wrong, Err(Error::NonFinite { .. })), "{mode:?}");
        let wrong = descent(1e300, mode).step(&mut same, |_| Ok(Array2::from_elem((6, 5), 1e300)));
        assert!(matches!(wrong, Err(Error::NonFinite { .. })), "{mode:?}: an overflow");
        // The second gradient fails.
        let mut calls = 0;
        let wrong = steps.step(&mut same, |_| {
            calls += 1;
            if calls == 2 || mode == DlrtMode::CoreOnly {
                Err(Error::Cancelled)
            } else {
                Ok(Array2::zeros((6, 5)))
            }
        });
        assert!(matches!(wrong, Err(Error::Cancelled)), "{mode:?}");
        assert_eq!(same, w);
    }
}

#[test]
fn three_factors_are_checked_and_converted() {
    let (u, v) = (qr_positive(&gaussian(7, 3, 1)).q, qr_positive(&gaussian(5, 2, 2)).q);
    let core = gaussian(3, 2, 3);
    let w = LowRank3::new(u.clone(), core.clone(), v.clone()).unwrap();
    let dense = u.dot(&core).dot(&v.t());
    assert!(difference(&w.to_dense(), &dense) < 1e-14 && (w.shape(), w.rank()) == ((7, 5), 2));
    let x = gaussian(4, 5, 4);
    assert!(difference(&w.forward(&x).unwrap(), &x.dot(&dense.t())) < 1e-13);
    for form in [LowRankForm::TwoFactors, LowRankForm::Usv] {
        let matrix = w.to_low_rank(Storage::F64, form).unwrap();
        assert!(difference(&matrix.to_dense_f64(), &dense) < 1e-13);
        assert_eq!((matrix.rank(), matrix.shape()), (2, (7, 5)));
        let again = LowRank3::from_low_rank(&matrix).unwrap();
        assert!(difference(&again.to_dense(), &dense) < 1e-13 && again.deviation() < 1e-13);
    }
    assert!(difference(&LowRank3::from_dense(&dense, 2).unwrap().to_dense(), &dense) < 1e-13);
    let loose = LowRank3::from_product(&gaussian(7, 3, 5), &core, &gaussian(5, 2, 6)).unwrap();
    assert!(difference(&loose.to_dense(), &gaussian(7, 3, 5).dot(&core).dot(&gaussian(5, 2, 6).t())) < 1e-13);

    let error = LowRank3::new(&u * 2.0, core.clone(), v.clone()).unwrap_err();
    assert!(error.to_string().contains("orthonormal"), "{error}");
    assert!(matches!(LowRank3::new(u.clone(), gaussian(2, 2, 1), v.clone()), Err(Error::Shape { .. })));
    let mut nan = core.clone();
    nan[[1, 1]] = f64::NAN;
    assert!(matches!(LowRank3::new(u.clone(), nan, v.clone()), Err(Error::NonFinite { row: 1, col: 1, .. })));
    let empty = |m, p| Array2::<f64>::zeros((m, p));
    assert!(matches!(
        LowRank3::from_product(&empty(0, 1), &empty(1, 1), &empty(3, 1)),
        Err(Error::Shape { .. })
    ));
    assert!(matches!(
        LowRank3::from_product(&empty(3, 0), &empty(0, 0), &empty(3, 0)),
        Err(Error::Shape { .. })
    ));
    assert!(LowRank3::random((4, 3), 0, 0).is_err() && LowRank3::random((4, 3), 4, 0).is_err());
    assert!(LowRank3::random((usize::MAX, usize::MAX), 1, 0).is_err());
    assert!(LowRank3::from_dense(&gaussian(4, 3, 1), 4).is_err());
    assert!(w.forward(&gaussian(4, 6, 4)).is_err());
}

// CondLR

#[test]
fn condlr_clipping_meets_the_bound_and_keeps_what_meets_it() {
    for (m, n) in [(6, 6), (9, 4), (4, 9), (1, 5), (1, 1)] {
        for tau in [1.0, 1.1, 1.5, 3.0, 10.0] {
            let w = gaussian(m, n, 7);
            let bounds = [
                ConditionBound::Nearest { tau },
                ConditionBound::MeanClamp { tau },
                ConditionBound::ScaledOrthogonal,
                ConditionBound::Polar,
            ];
            for bound in bounds {
                let clipped = bound.apply(&w).unwrap();
                let limit =
                    if matches!(bound, ConditionBound::Nearest { .. } | ConditionBound::MeanClamp { .. }) {
                        tau
                    } else {
                        1.0
                    };
                assert!(condition_number(&clipped).unwrap() <= limit * (1.0 + 1e-6), "{bound:?} {m} x {n}");
            }
            let clipped = clip_condition(&w, tau).unwrap();
            assert!(difference(&clip_condition(&clipped, tau * (1.0 + 1e-12)).unwrap(), &clipped) < 1e-12);
            let feasible = with_spectrum(m, n, 3, |k| 1.0 + 0.99 * (tau - 1.0) * (k % 2) as f64);
            assert!(tau == 1.0 || clip_condition(&feasible, tau).unwrap() == feasible);
            // The published one has the norm of S, and moves what is feasible.
            let scaled = scaled_orthogonal(&w).unwrap();
            assert!((norm(&scaled) / norm(&w) - 1.0).abs() < 1e-12);
        }
    }
    let (q, _) = polar(&gaussian(5, 5, 1)).unwrap();
    let nearest = ConditionBound::Polar.apply(&gaussian(5, 5, 1)).unwrap();
    let mean = spectrum(&gaussian(5, 5, 1)).iter().sum::<f64>() / 5.0;
    assert!(difference(&nearest, &(&q * mean)) < 1e-12);
    assert!(difference(&clip_condition(&gaussian(5, 5, 1), 1.0).unwrap(), &nearest) < 1e-12);
}

#[test]
fn condlr_clipping_is_the_nearest() {
    let mut distances = Vec::new();
    for tau in [1.0, 1.1, 1.5, 3.0, 10.0] {
        let (mut ours, mut theirs) = (0.0, 0.0);
        for seed in 0..20 {
            let values: Vec<f64> = gaussian(1, 16, seed).iter().map(|x| x.abs() * 3.0).collect();
            let w = Array2::from_diag(&aview1(&values));
            let near = norm(&(clip_condition(&w, tau).unwrap() - &w));
            let published = norm(&(clip_condition_to_mean(&w, tau).unwrap() - &w));
            assert!(near <= published * (1.0 + 1e-12), "tau {tau}, seed {seed}");
            // By brute force, in steps of 1e-4 of the largest value.
            let top = values.iter().copied().fold(0.0, f64::max);
            let at = |mu: f64| values.iter().map(|s| (s - s.clamp(mu, tau * mu)).powi(2)).sum::<f64>().sqrt();
            let best = (0..=10_000).map(|k| at(1e-4 * f64::from(k) * top)).fold(f64::INFINITY, f64::min);
            assert!(near <= best + 1e-12 && best - near < 1e-5 * top, "tau {tau}: {near}, grid {best}");
            (ours, theirs) = (ours + near / 20.0, theirs + published / 20.0);
        }
        distances.push((tau, ours, theirs));
    }
    println!("tau, distance, of the clamp around the mean: {distances:.3?}");
    assert!(distances.iter().all(|(_, ours, theirs)| ours <= theirs));
    // It also beats the published orthogonal form, and everything nearby that meets the bound.
    let w = gaussian(6, 6, 3);
    let (q, near) = (scaled_orthogonal(&w).unwrap(), clip_condition(&w, 1.0).unwrap());
    assert!(norm(&(&near - &w)) < norm(&(&q - &w)));
    let near = clip_condition(&w, 2.0).unwrap();
    for seed in 0..50 {
        let other = clip_condition(&(&near + &(gaussian(6, 6, seed) * 0.1)), 2.0).unwrap();
        assert!(norm(&(&other - &w)) >= norm(&(&near - &w)) - 1e-12);
    }
}

#[test]
fn condlr_bounds_the_sensitivity() {
    let start = LowRank3::from_product(&gaussian(12, 4, 1), &gaussian(4, 4, 2), &gaussian(9, 4, 3)).unwrap();
    let (u, core, v) = start.into_factors();
    for tau in [1.2, 2.0, 5.0] {
        let w = LowRank3::new(u.clone(), clip_condition(&core, tau).unwrap(), v.clone()).unwrap();
        assert!((w.condition_number().unwrap() / tau - 1.0).abs() < 1e-9, "the bound is reached");
        let dense = w.to_dense();
        for seed in 0..50 {
            // In the row space.
            let (x, dx) = (v.dot(&gaussian(4, 1, seed)), v.dot(&gaussian(4, 1, 100 + seed)));
            let gain = norm(&dense.dot(&dx)) / norm(&dense.dot(&x)) * norm(&x) / norm(&dx);
            assert!(gain <= tau * (1.0 + 1e-9), "{gain}");
        }
    }
}

#[test]
fn condlr_factors_stay_orthonormal_for_a_thousand_steps() {
    let a = with_spectrum(20, 16, 1, |k| 8.0 * 0.6f64.powi(k as i32));
    let settings = ProjectedSettings { rate: 0.01, momentum: 0.3, ..Default::default() };
    let mut losses = Vec::new();
    for (scaling, bound) in [
        (FactorScaling::One, None),
        (FactorScaling::One, Some(ConditionBound::Nearest { tau: 1.5 })),
        (FactorScaling::InverseCondition, Some(ConditionBound::MeanClamp { tau: 1.5 })),
        (FactorScaling::InverseEnergy, Some(ConditionBound::ScaledOrthogonal)),
        (FactorScaling::One, Some(ConditionBound::Polar)),
    ] {
        let mut w = LowRank3::random((20, 16), 4, 2).unwrap();
        let mut steps = ProjectedFactors::new(ProjectedSettings { scaling, bound, ..settings }).unwrap();
        let first = half_square(&w, &a);
        for _ in 0..1000 {
            steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
        }
        assert!(w.deviation() < 1e-10, "{bound:?}: {}", w.deviation());
        let last = half_square(&w, &a);
        assert!(last < first, "{bound:?}: {last} after {first}");
        losses.push(last);
        match bound {
            None => assert!((last - eckart_young(&a, 4)).abs() < 1e-6, "{last}"),
            Some(ConditionBound::Nearest { tau } | ConditionBound::MeanClamp { tau }) => {
                assert!(w.condition_number().unwrap() <= tau * (1.0 + 1e-6))
            }
            _ => assert!(w.condition_number().unwrap() <= 1.0 + 1e-6),
        }
    }
    // The nearest matrix within the bound costs less than the published clamp, and the polar factor less than that of QR.
    println!("half squared errors: free, nearest, clamped to the mean, by QR, polar: {losses:.2?}");
    assert!(losses[1] < losses[2] && losses[4] < losses[3]);
}

#[test]
fn condlr_bounds_plug_into_dlrt() {
    let a = with_spectrum(20, 16, 1, |k| 8.0 * 0.6f64.powi(k as i32));
    let mut losses = Vec::new();
    for tau in [1.5, 3.0, 1e6] {
        for mode in [DlrtMode::Fixed, adaptive(0.01, 4, 4)] {
            let bound = Some(ConditionBound::Nearest { tau });
            let settings = DlrtSettings { rate: 0.1, mode, rule: Rule::Sgd, bound };
            let mut steps = Dlrt::new(settings).unwrap();
            let mut w = LowRank3::random((20, 16), 4, 2).unwrap();
            for _ in 0..300 {
                steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
                assert!(w.condition_number().unwrap() <= tau * (1.0 + 1e-6));
            }
            assert!(w.deviation() < 1e-10);
            losses.push(half_square(&w, &a));
        }
    }
    // A looser bound costs less, and one that does not bind nothing.
    assert!(losses[0] > losses[2] && losses[2] > losses[4], "{losses:?}");
    assert!((losses[4] - eckart_young(&a, 4)).abs() < 1e-9);
    let mut steps = Dlrt::new(DlrtSettings {
        rate: 0.1,
        mode: DlrtMode::CoreOnly,
        bound: Some(ConditionBound::Nearest { tau: 2.0 }),
        ..Default::default()
    })
    .unwrap();
    let mut w = LowRank3::random((20, 16), 4, 2).unwrap();
    steps.step(&mut w, |w| Ok(w.to_dense() - &a)).unwrap();
    assert!(w.condition_number().unwrap() <= 2.0 * (1.0 + 1e-6));
}

#[test]
fn condlr_steps_refuse_what_they_cannot_use() {
    let of = |rate, momentum, bound| {
        ProjectedFactors::new(ProjectedSettings { rate, momentum, scaling: FactorScaling::One, bound })
    };
    assert!(of(0.0, 0.0, None).is_err() && of(f64::NAN, 0.0, None).is_err() && of(0.1, 1.0, None).is_err());
    assert!(of(0.1, 0.0, Some(ConditionBound::MeanClamp { tau: 0.0 })).is_err());
    let mut w = LowRank3::random((6, 5), 2, 1).unwrap();
    let (same, mut steps) = (w.clone(), of(0.1, 0.5, None).unwrap());
    assert!(matches!(steps.step(&mut w, |_| Ok(Array2::<f64>::zeros((5, 6)))), Err(Error::Shape { .. })));
    let nan = Array2::from_elem((6, 5), f64::NAN);
    assert!(matches!(steps.step(&mut w, |_| Ok(nan)), Err(Error::NonFinite { .. })));
    assert!(steps.step(&mut w, |_| Ok(Array2::from_elem((6, 5), 1e308))).is_err());
    assert_eq!(w, same);
}

// Dobi-SVD

#[test]
fn dobi_output_pca_is_the_whitened_decomposition_without_its_inverse() {
    for (m, n, k) in [(10, 8, 3), (7, 12, 4), (6, 6, 6), (5, 3, 1)] {
        let (w, gram) = (gaussian(m, n, 1), correlated_gram(n, 2));
        let rebuilt = output_pca(&w, &gram, k.min(m)).unwrap();
        let c = gram.second_moment();
        // U_k Σ_k V_kᵀ S⁻¹ of W S, for the Cholesky root.
        let root = cholesky(c).unwrap().l;
        let whitened = svd(&w.dot(&root), Threads::ONE).unwrap().truncate(k).reconstruct(Threads::ONE);
        let expected = structmat::linalg::lstsq(&root.t(), &whitened.t()).unwrap();
        assert!(difference(&rebuilt.to_dense_f64(), &expected.t().to_owned()) < 1e-8);
        let check = |rebuilt: &LowRank, gram: &Gram| {
            let values = eigvalsh(&w.dot(gram.second_moment()).dot(&w.t()), Threads::ONE).unwrap();
            let tail: f64 = values[k..].iter().sum();
            let error = Objective::Activations(gram).energy(&(&w - &rebuilt.to_dense_f64()));
            assert!((error - tail).abs() < 1e-10 * values[0], "{error} {tail}");
        };
        check(&rebuilt, &gram);
        // Finite, and as good, where C has no inverse.
        let gram = singular_gram(n, 2, 3);
        let rebuilt = output_pca(&w, &gram, k).unwrap();
        assert!(rebuilt.to_dense_f64().iter().all(|x| x.is_finite()));
        check(&rebuilt, &gram);
    }
    assert!(output_pca(&gaussian(4, 3, 1), &correlated_gram(3, 1), 4).is_err());
    assert!(output_pca(&gaussian(4, 3, 1), &correlated_gram(3, 1), 0).is_err());
}

#[test]
fn dobi_rebuilds_in_the_order_exact_uncentred_centred() {
    let (m, n, k) = (48, 64, 12);
    let w = with_spectrum(m, n, 1, |i| (1.0 + i as f64).powf(-0.5));
    let mix = with_spectrum(n, n, 3, |i| (1.0 + i as f64).powf(-0.7));
    let (mut inputs, mut outputs, mut batches) = (Gram::new(n), Gram::new(m), Vec::new());
    for b in 0..8 {
        // Batches differ in scale and in what they hold.
        let x = gaussian(40, n, 10 + b).dot(&mix.t()) * (1.0 + b as f64);
        inputs.accumulate(&x).unwrap();
        batches.push(x.dot(&w.t()));
        outputs.accumulate(&batches[b as usize]).unwrap();
    }
    let views: Vec<ArrayView2<'_, f64>> = batches.iter().map(|a| a.view()).collect();
    let error = |rebuilt: &LowRank| {
        let objective = Objective::Activations(&inputs);
        (objective.energy(&(&w - &rebuilt.to_dense_f64())) / objective.energy(&w)).sqrt()
    };
    let of = |basis: Array2<f64>| error(&project_outputs(&w, &basis).unwrap());
    let exact = of(output_basis(&outputs, k).unwrap());
    let uncentred = of(subspace_basis(&views, k, false).unwrap());
    let centred = of(subspace_basis(&views, k, true).unwrap());
    println!("exact {exact:.4}, uncentred {uncentred:.4}, centred {centred:.4}");
    assert!(exact < uncentred && uncentred < centred);
    // The same from inputs and from outputs.
    assert!((exact - error(&output_pca(&w, &inputs, k).unwrap())).abs() < 1e-9);
    assert!(matches!(subspace_basis(&[], 1, true), Err(Error::Shape { .. })));
    assert!(subspace_basis(&views, 41, true).is_err() && subspace_basis(&views, 0, false).is_err());
    assert!(output_basis(&outputs, 49).is_err());
    assert!(project_outputs(&w, &gaussian(47, 2, 1)).is_err());
    let narrow = gaussian(40, 47, 1);
    assert!(matches!(subspace_basis(&[views[0], narrow.view()], 2, true), Err(Error::Shape { .. })));
}

#[test]
fn dobi_truncations_have_the_gradient_of_differences() {
    let soft = SoftRanks { beta: 1.3, ..SoftRanks::default() };
    for (m, n) in [(7, 5), (5, 7), (5, 5)] {
        let a = with_spectrum(m, n, 2, |k| 2.0 * 0.75f64.powi(k as i32));
        let target = gaussian(m, n, 4);
        for (soft, kappa) in [(&soft, 2.4), (&SoftRanks::default(), 3.0 + 0.5), (&SoftRanks::default(), 2.9)]
        {
            let loss = |a: &Array2<f64>, kappa: f64| {
                let out = SoftTruncation::new(a, soft, kappa).unwrap().output();
                0.5 * norm(&(out - &target)).powi(2)
            };
            let cut = SoftTruncation::new(&a, soft, kappa).unwrap();
            let dy = cut.output() - &target;
            let (by_a, by_kappa) = cut.gradient(&dy, &SvdGuards::default()).unwrap();
            let h = 1e-5;
            let want = Array2::from_shape_fn(a.dim(), |at| {
                let moved = |step: f64| {
                    let mut a = a.clone();
                    a[at] += step;
                    loss(&a, kappa)
                };
                (moved(h) - moved(-h)) / (2.0 * h)
            });
            assert!(difference(&by_a, &want) < 1e-5, "{m} x {n}: {}", difference(&by_a, &want));
            let slope = (loss(&a, kappa + h) - loss(&a, kappa - h)) / (2.0 * h);
            assert!((by_kappa - slope).abs() < 1e-5 * slope.abs().max(1.0), "{by_kappa} {slope}");
        }
    }
    // Coinciding and vanishing singular values, and activations that are zero.
    for a in
        [Array2::eye(4), Array2::zeros((4, 3)), with_spectrum(5, 4, 1, |k| if k < 2 { 1.0 } else { 0.0 })]
    {
        let cut = SoftTruncation::new(&a, &SoftRanks::default(), 1.5).unwrap();
        let (by_a, by_kappa) = cut.gradient(&Array2::ones(a.dim()), &SvdGuards::default()).unwrap();
        assert!(by_a.iter().all(|x| x.is_finite()) && by_kappa.is_finite());
    }
    let a = gaussian(4, 3, 1);
    assert!(SoftTruncation::new(&a, &SoftRanks::default(), f64::NAN).is_err());
    let cut = SoftTruncation::new(&a, &SoftRanks::default(), 1.0).unwrap();
    assert!(cut.gradient(&gaussian(3, 4, 1), &SvdGuards::default()).is_err());
    let guards = SvdGuards { floor: 0.0, ..SvdGuards::default() };
    assert!(matches!(cut.gradient(&gaussian(4, 3, 1), &guards), Err(Error::Parameter { .. })));
}

#[test]
fn dobi_ranks_are_trained_through_truncated_activations() {
    // A steep, a middling and a flat spectrum; the loss is what truncation makes of the outputs.
    let outputs: Vec<Array2<f64>> = [1.6, 0.7, 0.2]
        .iter()
        .enumerate()
        .map(|(k, decay)| with_spectrum(36, 24, k as u64, |i| (1.0 + i as f64).powf(-decay)))
        .collect();
    let soft = SoftRanks { beta: 1.0, ..SoftRanks::default() };
    let mut loss = |kappas: &[f64]| {
        let (mut total, mut gradient) = (0.0, Vec::new());
        for (a, kappa) in outputs.iter().zip(kappas) {
            let cut = SoftTruncation::new(a, &soft, *kappa)?;
            let apart = cut.output() - a;
            let scale = norm(a).powi(2);
            total += norm(&apart).powi(2) / scale;
            gradient.push(cut.gradient(&(apart * (2.0 / scale)), &SvdGuards::default())?.1);
        }
        Ok((total, gradient))
    };
    let shapes = [(24, 24); 3];
    for size in [RankSize::Factors, RankSize::Remapped] {
        let trainer = SoftRankTrainer {
            steps: 300,
            rate: 1.0,
            last_rate: 0.02,
            penalty: 20.0,
            ..SoftRankTrainer::new(size, 0.5)
        };
        let found = trainer.train(&shapes, &mut loss).unwrap();
        let used: f64 = shapes.iter().zip(&found.ranks).map(|(s, r)| size.size(*s, *r as f64)).sum();
        assert!(used <= 0.5 * 3.0 * 576.0 && used > 0.48 * 3.0 * 576.0, "{used}");
        assert!(found.ranks[0] < found.ranks[1] && found.ranks[1] <= found.ranks[2], "{:?}", found.ranks);
        assert_eq!(found.history.len(), 300);
        // Better than the same rank for all.
        let whole: Vec<f64> = found.ranks.iter().map(|r| *r as f64).collect();
        let uniform = [size.rank_at((24, 24), 0.5); 3];
        assert!(loss(&whole).unwrap().0 < loss(&uniform).unwrap().0);
    }
    // The source's schedule, on matrices of a size where steps of 4 ranks are small.
    let flat = SoftRankTrainer::new(RankSize::Remapped, 0.4);
    let found = flat.train(&[(4096, 4096), (11008, 4096)], |k| Ok((0.0, vec![0.0; k.len()]))).unwrap();
    assert!((found.kappas[0] / 1638.4 - 1.0).abs() < 0.02 && found.history.len() == 20);
    let used = found.ranks[0] as f64 * 4096.0 + found.ranks[1] as f64 * 11008.0;
    assert!(used <= 0.4 * 4096.0 * (4096.0 + 11008.0) && used > 0.3999 * 4096.0 * (4096.0 + 11008.0));
}

#[test]
fn dobi_trainers_refuse_what_they_cannot_use() {
    let zero = |k: &[f64]| Ok((0.0, vec![0.0; k.len()]));
    let trainer = SoftRankTrainer::new(RankSize::Factors, 0.5);
    let shapes = [(8, 8), (8, 16)];
    assert!(trainer.train(&[], zero).is_err() && trainer.train(&[(0, 4)], zero).is_err());
    for target in [0.0, -1.0, 1.5, f64::NAN, 0.1] {
        let error = SoftRankTrainer { target, ..trainer }.train(&shapes, zero).unwrap_err();
        assert!(matches!(error, Error::Parameter { .. }), "{target}");
    }
    assert!(SoftRankTrainer { rate: 0.0, ..trainer }.train(&shapes, zero).is_err());
    assert!(SoftRankTrainer { last_rate: f64::NAN, ..trainer }.train(&shapes, zero).is_err());
    assert!(SoftRankTrainer { penalty: -1.0, ..trainer }.train(&shapes, zero).is_err());
    let short = trainer.train(&shapes, |_| Ok((0.0, vec![0.0])));
    assert!(matches!(short, Err(Error::Shape { .. })));
    let nan = trainer.train(&shapes, |_| Ok((0.0, vec![0.0, f64::NAN])));
    assert!(matches!(nan, Err(Error::NonFinite { col: 1, .. })));
    assert!(matches!(trainer.train(&shapes, |_| Ok((f64::NAN, vec![0.0; 2]))), Err(Error::NonFinite { .. })));
    assert!(matches!(trainer.train(&shapes, |_| Err(Error::Cancelled)), Err(Error::Cancelled)));
    assert_eq!(SoftRankTrainer { steps: 0, ..trainer }.train(&[(8, 8)], zero).unwrap().ranks, [2]);
    // Sizes: linear in the rank, bijective up to the full rank where remapped, never above the dense matrix.
    assert_eq!(RankSize::Factors.per_rank((48, 64)), 112);
    assert_eq!(RankSize::Remapped.per_rank((48, 64)), 64);
    assert_eq!(RankSize::Remapped.size((48, 64), 48.0), 48.0 * 64.0);
    assert_eq!(RankSize::Factors.size((48, 64), 48.0), 48.0 * 64.0);
    assert!((RankSize::Factors.rank_at((48, 64), 0.5) - 0.5 * 3072.0 / 112.0).abs() < 1e-12);
}

#[test]
fn dobi_remapped_storage_takes_the_longer_side_per_rank() {
    for (m, n) in [(96, 64), (64, 96), (64, 64), (40, 7)] {
        let (meet, long) = (m.min(n), m.max(n));
        let w = with_spectrum(m, n, 5, |k| (1.0 + k as f64).powf(-0.8));
        for storage in [Storage::Bf16, Storage::F16] {
            let options = Options { storage, ..Options::default() };
            for rank in [1, 5, meet] {
                let found = RemappedLowRank::project(
                    &w,
                    &RemappedLowRankSpec { rank },
                    &Objective::Frobenius,
                    &options,
                )
                .unwrap();
                // Words of 16 bits: one for each number of the longer side, and a scale for 32 codes of a row.
                let scales = meet * rank.div_ceil(32) + rank * meet.div_ceil(32);
                assert_eq!(found.matrix.storage_bytes(), 2 * (rank * long + scales));
                assert_eq!(found.matrix.n_params(), rank * (m + n));
                // Beside the truncation, rounding costs little.
                let best = (2.0 * eckart_young(&w, rank)).sqrt() / norm(&w);
                let bound = (best.powi(2) + 0.012f64.powi(2)).sqrt();
                assert!(found.report.relative_error <= bound, "{} {best}", found.report.relative_error);
            }
        }
        // Byte budgets count so, too: ranks reach the full one near the size of the dense matrix in 16 bits.
        let bytes =
            Request::new().storage(Storage::Bf16).budget(Budget::Bytes(2 * m * n * 17 / 16 + 4 * meet));
        assert_eq!(RemappedLowRank::spec((m, n), &bytes).unwrap().rank, meet);
        assert!(LowRank::spec((m, n), &bytes).unwrap().rank <= meet * long * 5 / (4 * (m + n)));
    }
}

#[test]
fn dobi_remapped_numbers_are_within_a_127th_of_their_component() {
    let (m, n, k) = (70, 40, 33);
    for (m, n) in [(m, n), (n, m)] {
        // Components of very different size.
        let scale = |j: usize| 10f64.powi(j as i32 % 7 - 3);
        let mut u = gaussian(m, k, 1);
        u.columns_mut().into_iter().enumerate().for_each(|(j, mut c)| c *= scale(j));
        let v = gaussian(k, n, 2);
        let matrix = RemappedLowRank::from_factors(Storage::Bf16, &u, &v).unwrap();
        let meet = m.min(n);
        let parts = matrix.parts();
        let factor = |name: &str| parts.factors().find(|(other, _)| *other == name).unwrap().1.clone();
        let (cu, cv, rest) = (factor("u"), factor("v"), factor("rest"));
        assert_eq!(
            [cu.storage(), cv.storage(), rest.storage()],
            [Storage::Int8, Storage::Int8, Storage::Bf16]
        );
        for j in 0..k {
            let most = u.column(j).iter().fold(0.0f64, |max, x| max.max(x.abs()));
            let row = v.row(j).iter().fold(0.0f64, |max, x| max.max(x.abs()));
            for i in 0..meet {
                assert!((cu.get(0, i, j) * most - u[[i, j]]).abs() <= most / 127.0);
                assert!((cv.get(0, j, i) / most - v[[j, i]]).abs() <= row / 127.0);
            }
            for i in 0..m.max(n) - meet {
                let (got, want) = match m > n {
                    true => (rest.get(0, i, j) * most, u[[meet + i, j]]),
                    false => (rest.get(0, j, i) / most, v[[j, meet + i]]),
                };
                assert!((got - want).abs() <= want.abs() / 256.0);
            }
        }
        assert!(difference(&matrix.to_dense_f64(), &u.dot(&v)) < 0.01);
        // Other storages hold all numbers alike, and coming back codes them again.
        let exact = RemappedLowRank::from_factors(Storage::F64, &u, &v).unwrap();
        assert!(difference(&exact.to_dense_f64(), &u.dot(&v)) < 1e-13);
        let back = exact.to_storage(Storage::Bf16).unwrap();
        assert_eq!(back.storage_bytes(), matrix.storage_bytes());
        assert!(matches!(RemappedLowRank::from_factors(Storage::F64, &u, &u), Err(Error::Shape { .. })));
        let mut bad = v.clone();
        bad[[2, 3]] = f64::INFINITY;
        assert!(matches!(
            RemappedLowRank::from_factors(Storage::F64, &u, &bad),
            Err(Error::NonFinite { .. })
        ));
    }
    let zero =
        RemappedLowRank::from_factors(Storage::F16, &Array2::zeros((4, 2)), &Array2::zeros((2, 3))).unwrap();
    assert_eq!(zero.to_dense_f64(), Array2::<f64>::zeros((4, 3)));
}
