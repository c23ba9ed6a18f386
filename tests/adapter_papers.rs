//! Methods and rules of single papers: what each of them claims or implies, checked.

mod common;

use common::{difference, exactly, falls, gaussian, norm, with_spectrum};
use structmat::Error;
use structmat::adapters::analysis::{DeltaSettings, delta_report, swap_test};
use structmat::adapters::methods::{self, Cola, ColaSettings, CpKernel, Dora, Dota, Pyramid, Skeleton};
use structmat::adapters::methods::{CapaDensity, CapaMasks, SkeletonBasis, SpectralAdditive, SpectralChange};
use structmat::adapters::rules::{
    self, SensitivitySettings, SptSettings, VectorFreezer, VectorFreezerSettings,
};
use structmat::adapters::watermark::{Watermark, WatermarkSettings};
use structmat::adapters::{Adapter, init, low_rank_chain};
use structmat::allocation::apportion;
use structmat::layers::{Bottleneck, ConditionalLowRank, Conv2d, GatedFusion, GradualUnrolling, Linear};
use structmat::layers::{Denominator, GroupRational, Pema, Window, mix_log_probs};
use structmat::linalg::{Threads, energy_rank, entropy_rank, qr, singular_values, stable_rank, svd};
use structmat::ndarray::{Array1, Array2, Array3, Array4, s};
use structmat::prelude::*;

fn dense(w: &Array2<f64>) -> Dense {
    Dense::new(&w.mapv(|v| v as f32)).unwrap()
}

/// The same in double precision.
fn dense64(w: &Array2<f64>) -> Dense {
    Dense::new(w).unwrap()
}

/// Singular values above this fraction of the first.
fn rank_of(a: &Array2<f64>, relative: f64) -> usize {
    let values = singular_values(a, Threads::ONE).unwrap();
    values.iter().filter(|s| **s > relative * values[0]).count()
}

/// Merged and unmerged outputs, relative.
fn check_merge(adapter: &dyn Adapter, w: &Array2<f64>) {
    let (base, x) = (dense(w), gaussian(5, w.ncols(), 99).mapv(|v| v as f32));
    let edit = adapter.edit(&base).unwrap();
    let merged = edit.merge(&base, Storage::F32).unwrap().weight;
    let error = difference(&edit.matmul(&base, &x).unwrap(), &merged.matmul(&x).unwrap().mapv(f64::from));
    assert!(error < 1e-5, "{}: {error:e}", adapter.kind());
}

fn total(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

// PMSS

#[test]
fn pmss_starts_at_the_weight_and_merges() {
    let w = gaussian(20, 28, 1);
    for basis in [SkeletonBasis::Weight, SkeletonBasis::Orthonormal] {
        let start = Skeleton::choose(&w, 5, CurSelection::QDeim, basis, 0.5, &Options::default()).unwrap();
        assert_eq!(start.delta(&dense(&w)).unwrap(), Array2::<f64>::zeros((20, 28)));
        assert_eq!((start.n_params(), start.rows().len(), start.cols().len()), (25, 5, 5));
        let adapter = start.with_core(gaussian(5, 5, 2)).unwrap();
        check_merge(&adapter, &w);
        let (c, r) = adapter.factors(&dense64(&w)).unwrap();
        let expected = c.dot(adapter.core()).dot(&r) * 0.5;
        assert!(difference(&adapter.delta(&dense64(&w)).unwrap(), &expected) < 1e-6);
        assert_eq!(rank_of(&expected, 1e-8), 5);
        if basis == SkeletonBasis::Orthonormal {
            // Steps of the core are steps of the change, of the same norm.
            assert!((norm(&expected) / (0.5 * norm(adapter.core())) - 1.0).abs() < 1e-12);
        }
    }
}

#[test]
fn pmss_gradients_are_those_of_differences() {
    let (w, x, g) = (gaussian(9, 12, 1), gaussian(6, 12, 2), gaussian(6, 9, 3));
    for basis in [SkeletonBasis::Weight, SkeletonBasis::Orthonormal] {
        let start = Skeleton::choose(&w, 3, CurSelection::Auto, basis, 2.0, &Options::default()).unwrap();
        let adapter = start.with_core(gaussian(3, 3, 4)).unwrap();
        let (c, r) = adapter.factors(&dense64(&w)).unwrap();
        let loss = |core: &Array2<f64>| total(&g, &x.dot(&(c.dot(core).dot(&r) * 2.0).t()));
        let gradient = adapter.gradient(&dense64(&w), &x, &g).unwrap();
        for i in 0..3 {
            for j in 0..3 {
                let mut moved = [adapter.core().clone(), adapter.core().clone()];
                moved[0][[i, j]] += 1e-4;
                moved[1][[i, j]] -= 1e-4;
                let slope = (loss(&moved[0]) - loss(&moved[1])) / 2e-4;
                assert!((slope - gradient[[i, j]]).abs() < 1e-6 * (1.0 + slope.abs()));
            }
        }
    }
}

#[test]
fn pmss_reaches_every_change_within_its_spans() {
    let w = gaussian(16, 14, 1);
    for basis in [SkeletonBasis::Weight, SkeletonBasis::Orthonormal] {
        let start = Skeleton::choose(&w, 4, CurSelection::QDeim, basis, 0.25, &Options::default()).unwrap();
        let (c, r) = start.factors(&dense64(&w)).unwrap();
        let target = c.dot(&gaussian(4, 4, 7)).dot(&r);
        let found = start.clone().nearest(&dense64(&w), &target).unwrap();
        let reached = c.dot(found.core()).dot(&r) * 0.25;
        assert!(difference(&reached, &target) < 1e-10);
        // Of another change it is the projection: what is left is orthogonal to both spans.
        let other = gaussian(16, 14, 8);
        let found = start.nearest(&dense64(&w), &other).unwrap();
        let rest = &other - &(c.dot(found.core()).dot(&r) * 0.25);
        assert!(norm(&c.t().dot(&rest).dot(&r.t())) < 1e-9 * norm(&other) * norm(&c) * norm(&r));
    }
}

#[test]
fn pmss_selects_as_cur_does_and_refuses_bad_lists() {
    let w = with_spectrum(18, 22, 3, |k| 0.5f64.powi(k as i32));
    let spec = CurSpec { rank: 4, selection: CurSelection::Deim, ..Default::default() };
    let cur = Cur::project(&w, &spec, &Objective::Frobenius, &exactly()).unwrap().matrix;
    let basis = SkeletonBasis::Weight;
    let ours = Skeleton::choose(&w, 4, CurSelection::Deim, basis, 1.0, &Options::default()).unwrap();
    assert!(ours.rows().iter().zip(cur.rows()).all(|(a, b)| *a == *b as usize));
    assert!(ours.cols().iter().zip(cur.cols()).all(|(a, b)| *a == *b as usize));
    for (rows, cols, scale) in [
        (vec![], vec![0], 1.0),
        (vec![0, 0], vec![0, 1], 1.0),
        (vec![3], vec![0], 1.0),
        (vec![0], vec![4], 1.0),
        (vec![0], vec![0], 0.0),
        (vec![0], vec![0], f64::NAN),
    ] {
        assert!(Skeleton::new((3, 4), rows, cols, basis, scale).is_err());
    }
    let skeleton = Skeleton::new((3, 4), vec![0], vec![3], SkeletonBasis::Orthonormal, 1.0).unwrap();
    assert!(skeleton.clone().with_core(Array2::zeros((2, 1))).is_err());
    assert!(skeleton.edit(&dense(&gaussian(4, 3, 1))).is_err());
    assert!(skeleton.edit(&dense64(&Array2::zeros((3, 4)))).is_ok());
    assert!(Skeleton::choose(&w, 0, CurSelection::Auto, basis, 1.0, &Options::default()).is_err());
}

// DoTA

fn train_spec(shape: (usize, usize), cores: usize, rank: usize) -> TensorTrainSpec {
    TensorTrain::spec(shape, &Request::new().with("cores", cores).with("rank", rank)).unwrap()
}

/// The tail energies of both unfoldings of a 12 x 18 matrix in modes `rows`, `cols`, beyond `rank`.
fn tails(w: &Array2<f64>, rows: &[usize], cols: &[usize], rank: usize) -> Vec<f64> {
    let digits = |mut at: usize, modes: &[usize]| -> Vec<usize> {
        let mut digits = vec![0; modes.len()];
        for k in (0..modes.len()).rev() {
            (digits[k], at) = (at % modes[k], at / modes[k]);
        }
        digits
    };
    (1..rows.len())
        .map(|cut| {
            let size = |range: std::ops::Range<usize>| range.map(|k| rows[k] * cols[k]).product::<usize>();
            let mut unfolded = Array2::zeros((size(0..cut), size(cut..rows.len())));
            for ((i, j), value) in w.indexed_iter() {
                let (i, j) = (digits(i, rows), digits(j, cols));
                let at = |range: std::ops::Range<usize>| {
                    range.fold(0, |at, k| (at * rows[k] + i[k]) * cols[k] + j[k])
                };
                unfolded[[at(0..cut), at(cut..rows.len())]] = *value;
            }
            svd(&unfolded, Threads::ONE).unwrap().tail_energy(rank)
        })
        .collect()
}

#[test]
fn dota_is_exact_at_full_bonds_and_within_the_bounds_of_its_unfoldings() {
    let w = gaussian(12, 18, 1);
    let spec =
        TensorTrain::spec((12, 18), &Request::new().with("modes", "2x3x2:3x2x3").with("rank", 6)).unwrap();
    for rank in 1..=6 {
        let spec = TensorTrainSpec { rank, ..spec.clone() };
        let dota = Dota::split(&w, &spec, Storage::F64, 0, &exactly()).unwrap();
        let energy = (&w - &dota.train.to_dense_f64()).iter().map(|v| v * v).sum::<f64>();
        let tails = tails(&w, &[2, 3, 2], &[3, 2, 3], rank);
        assert!(energy <= tails.iter().sum::<f64>() * (1.0 + 1e-2) + 1e-20, "bond {rank}");
        assert!(energy >= tails.iter().copied().fold(0.0, f64::max) * (1.0 - 1e-9), "bond {rank}");
        if rank == 6 {
            assert!(energy.sqrt() < 1e-12 * norm(&w));
        }
    }
}

#[test]
fn dota_recovers_sums_of_kronecker_products() {
    let mut w = Array2::zeros((12, 20));
    for k in 0..2 {
        let (a, b) = (gaussian(3, 4, 10 + k), gaussian(4, 5, 20 + k));
        w.indexed_iter_mut()
            .for_each(|((i, j), w): (_, &mut f64)| *w += a[[i / 4, j / 5]] * b[[i % 4, j % 5]]);
    }
    let spec = TensorTrain::spec((12, 20), &Request::new().with("modes", "3x4:4x5").with("rank", 2)).unwrap();
    let dota = Dota::split(&w, &spec, Storage::F64, 0, &exactly()).unwrap();
    assert!(difference(&dota.train.to_dense_f64(), &w) < 1e-12);
}

#[test]
fn dota_starts_at_the_weight_for_any_bond() {
    let w = gaussian(24, 36, 1);
    for rank in [1, 2, 5] {
        let dota =
            Dota::split(&w, &train_spec((24, 36), 3, rank), Storage::F32, 0, &Options::default()).unwrap();
        let merged = dota.adapter().edit(&dota.residual).unwrap().merged(&dota.residual).unwrap();
        assert!(difference(&merged, &w) < 1e-6 && dota.history[0] < 1e-6);
        assert_eq!(dota.adapter().n_params(), dota.train.n_params());
        check_merge(&dota.adapter(), &dota.residual.to_dense_f64());
    }
}

#[test]
fn dota_core_gradients_are_those_of_differences() {
    let (w, x, g) = (gaussian(8, 12, 1), gaussian(5, 12, 2), gaussian(5, 8, 3));
    let dota = Dota::split(&w, &train_spec((8, 12), 3, 2), Storage::F64, 0, &exactly()).unwrap();
    let gradients = dota.train.factor_gradients(&x, &g, &mut Exec::new()).unwrap();
    let numbers = dota.train.factor_numbers::<f64>();
    let loss = |numbers: &[Array3<f64>]| {
        total(
            &g,
            &dota
                .with_cores(numbers)
                .unwrap()
                .edit(&dota.residual)
                .unwrap()
                .matmul(&dota.residual, &x)
                .unwrap(),
        )
    };
    for (core, gradient) in gradients.iter().enumerate() {
        for (at, slope) in gradient.indexed_iter() {
            let mut moved = [numbers.clone(), numbers.clone()];
            moved[0][core][at] += 1e-4;
            moved[1][core][at] -= 1e-4;
            let measured = (loss(&moved[0]) - loss(&moved[1])) / 2e-4;
            assert!((measured - slope).abs() < 1e-6 * (1.0 + slope.abs()), "core {core} at {at:?}");
        }
    }
}

#[test]
fn dota_takes_weights_of_zero_and_of_low_rank() {
    let low = gaussian(12, 2, 1).dot(&gaussian(2, 12, 2));
    for w in [Array2::zeros((12, 12)), low, gaussian(1, 1, 3), gaussian(7, 11, 4)] {
        for residual in [Storage::F32, Storage::Int4] {
            let dota = Dota::split(&w, &train_spec(w.dim(), 3, 1), residual, 3, &Options::default()).unwrap();
            assert!(
                dota.train.to_dense_f64().iter().chain(&dota.residual.to_dense_f64()).all(|v| v.is_finite())
            );
            assert!(dota.history.iter().all(|v| v.is_finite()));
        }
    }
    let spec = train_spec((4, 4), 2, 1);
    let nan = Array2::from_elem((4, 4), f64::NAN);
    assert!(Dota::split(&nan, &spec, Storage::F32, 1, &Options::default()).is_err());
    assert!(Dota::split(&gaussian(9, 40, 1), &spec, Storage::F32, 1, &Options::default()).is_err());
}

#[test]
fn dota_meets_a_tolerance() {
    let w = with_spectrum(24, 24, 1, |k| 0.7f64.powi(k as i32));
    for eps in [0.5, 0.2, 0.05, 1e-3] {
        let spec = TensorTrain::spec((24, 24), &Request::new().with("eps", eps)).unwrap();
        let dota = Dota::split(&w, &spec, Storage::F32, 0, &exactly()).unwrap();
        assert!(difference(&dota.train.to_dense_f64(), &w) <= eps);
    }
}

#[test]
fn qdota_alternation_lowers_the_error_of_the_rounded_residual() {
    let w = gaussian(48, 64, 1);
    let spec = train_spec((48, 64), 2, 8);
    let dota = Dota::split(&w, &spec, Storage::Int4, 10, &Options::default()).unwrap();
    let plain = Dota::split(&w, &spec, Storage::Int4, 0, &Options::default()).unwrap();
    let last = dota.history[dota.history.len() - 1];
    println!(
        "QDoTA: {:.4} after the split, {last:.4} after {} rounds",
        plain.history[0],
        dota.history.len() - 1
    );
    assert!(falls(&dota.history) && dota.history.len() > 1 && dota.history[0] == plain.history[0]);
    assert!(last < 0.97 * plain.history[0]);
    let merged = dota.adapter().edit(&dota.residual).unwrap().merged(&dota.residual).unwrap();
    assert!((difference(&merged, &w) - last).abs() < 1e-6);
}

// SPT

/// By its definition: marks, then parameters of each.
fn spt_total(matrices: &[Array2<f64>], vectors: &[Vec<f64>], marks: usize, settings: &SptSettings) -> usize {
    let mut all: Vec<f64> = matrices.iter().flatten().chain(vectors.iter().flatten()).copied().collect();
    all.sort_by(|a, b| b.total_cmp(a));
    let marked = |score: f64| marks > 0 && score >= all[marks - 1];
    let of = |scores: &mut dyn Iterator<Item = &f64>| scores.filter(|score| marked(**score)).count();
    let mut total = 0;
    for w in matrices {
        let (count, lora) = (of(&mut w.iter()), settings.rank * (w.nrows() + w.ncols()));
        total += if count as f64 >= lora as f64 / settings.alpha { lora } else { count };
    }
    for v in vectors {
        let count = of(&mut v.iter());
        total += if count > 0 && count as f64 >= v.len() as f64 / settings.beta { v.len() } else { count };
    }
    total
}

#[test]
fn spt_totals_are_the_definition_and_the_nearest_to_the_budget() {
    let settings = SptSettings { rank: 2, alpha: 4.0, beta: 5.0 };
    let matrices: Vec<Array2<f64>> =
        (0..4).map(|k| gaussian(6 + k, 9, k as u64).mapv(|g| g * g * (1.0 + k as f64))).collect();
    let vectors = vec![gaussian(1, 10, 9).mapv(|g| g * g).into_raw_vec_and_offset().0];
    let all = matrices.iter().map(Array2::len).sum::<usize>() + 10;
    let totals: Vec<usize> =
        (0..=all).map(|marks| spt_total(&matrices, &vectors, marks, &settings)).collect();
    assert!(totals.windows(2).all(|pair| pair[0] <= pair[1]));
    let mut before: Option<rules::SptPlan> = None;
    for budget in 0..totals[all] + 5 {
        let plan = rules::spt(&matrices, &vectors, budget, &settings).unwrap();
        assert_eq!(plan.total, totals[plan.marks]);
        let nearest = totals.iter().map(|total| total.abs_diff(budget)).min().unwrap();
        assert_eq!(plan.total.abs_diff(budget), nearest, "budget {budget}");
        // What the plan trains is what it counts.
        let lora = |k: usize| 2 * (matrices[k].nrows() + matrices[k].ncols());
        let structured: usize = (0..4).filter(|k| plan.structured[*k]).map(lora).sum();
        let whole: usize = if plan.whole[0] { 10 } else { 0 };
        let single = plan.entries.iter().map(Vec::len).sum::<usize>() + plan.vector_entries[0].len();
        assert_eq!(structured + whole + single, plan.total);
        if let Some(before) = before {
            assert!((0..4).all(|k| !before.structured[k] || plan.structured[k]));
        }
        before = Some(plan);
    }
}

#[test]
fn spt_structures_what_holds_the_scores() {
    let settings = SptSettings { rank: 2, ..Default::default() };
    let mut matrices = vec![Array2::from_elem((20, 20), 1.0); 3];
    matrices[1] += 100.0;
    let plan = rules::spt(&matrices, &[], 80, &settings).unwrap();
    assert_eq!(plan.structured, [false, true, false]);
    // Even scores at a small budget: single entries only.
    let even: Vec<Array2<f64>> = (0..3).map(|k| gaussian(20, 20, k).mapv(|g| 1.0 + 1e-3 * g)).collect();
    let plan = rules::spt(&even, &[], 15, &settings).unwrap();
    assert!(plan.total == 15 && !plan.structured.contains(&true));
    // They are the entries of a sparse change.
    let (k, entries) = plan.entries.iter().enumerate().max_by_key(|(_, e)| e.len()).unwrap();
    let values = entries.iter().map(|&(i, j)| (i, j, even[k][[i, j]])).collect();
    let adapter = methods::sparse_delta((20, 20), values).unwrap();
    let x = gaussian(3, 20, 5);
    let expected = x.dot(&adapter.matrix().to_dense_f64().t());
    assert!(difference(&adapter.matrix().matmul(&x).unwrap(), &expected) < 1e-12);
    assert_eq!(adapter.n_params(), entries.len());
    for bad in [
        SptSettings { rank: 0, ..settings },
        SptSettings { alpha: 0.5, ..settings },
        SptSettings { beta: f64::NAN, ..settings },
    ] {
        assert!(rules::spt(&even, &[], 15, &bad).is_err());
    }
    assert!(rules::spt(&[Array2::from_elem((2, 2), f64::NAN)], &[], 1, &settings).is_err());
    assert_eq!(rules::spt(&[], &[vec![]], 7, &settings).unwrap().total, 0);
}

// What several rules of ranks share

#[test]
fn apportioned_parts_fill_the_whole_within_their_bounds() {
    let draws = gaussian(1000, 40, 1);
    for (case, draw) in draws.outer_iter().enumerate() {
        let count = 1 + case % 9;
        let weights: Vec<f64> =
            (0..count).map(|k| if draw[k] > -1.0 { draw[k].abs().powi(3) } else { 0.0 }).collect();
        let floors: Vec<usize> = (0..count).map(|k| draw[10 + k].abs() as usize).collect();
        let caps: Vec<usize> = (0..count).map(|k| floors[k] + (10.0 * draw[20 + k].abs()) as usize).collect();
        let (least, most): (usize, usize) = (floors.iter().sum(), caps.iter().sum());
        let total = least + (most - least) * (case % 11) / 10;
        let parts = apportion(total, &weights, &floors, &caps).unwrap();
        assert_eq!(parts.iter().sum::<usize>(), total);
        assert!((0..count).all(|k| parts[k] >= floors[k] && parts[k] <= caps[k]));
    }
}

#[test]
fn apportioned_parts_depend_on_proportions_alone() {
    assert_eq!(apportion(11, &[2.0; 4], &[0; 4], &[99; 4]).unwrap(), [3, 3, 3, 2]);
    let weights = [0.3, 1.7, 0.9];
    for scale in [1e-300, 1e300] {
        let scaled: Vec<f64> = weights.iter().map(|w| w * scale).collect();
        let parts = apportion(29, &scaled, &[1; 3], &[20; 3]).unwrap();
        assert_eq!(parts, apportion(29, &weights, &[1; 3], &[20; 3]).unwrap());
    }
    assert_eq!(apportion(6, &[0.0, 0.0], &[1, 1], &[9, 9]).unwrap(), [3, 3]);
    assert_eq!(apportion(6, &[1.0, 0.0], &[1, 1], &[3, 9]).unwrap(), [3, 3]);
    assert_eq!(apportion(0, &[], &[], &[]).unwrap(), [0usize; 0]);
    for (total, weights, floors, caps) in [
        (1, vec![1.0], vec![2], vec![3]),
        (4, vec![1.0], vec![2], vec![3]),
        (3, vec![1.0], vec![3], vec![2]),
        (3, vec![f64::NAN], vec![1], vec![9]),
        (3, vec![-1.0], vec![1], vec![9]),
        (3, vec![1.0], vec![], vec![9]),
        (1, vec![], vec![], vec![]),
    ] {
        assert!(apportion(total, &weights, &floors, &caps).is_err());
    }
}

// Sensitivity-LoRA

#[test]
fn sensitivity_lora_saliency_is_what_zeroing_a_weight_costs() {
    let w = gaussian(4, 6, 1);
    let powers = Array1::from_iter((0..6).map(|j| 0.5 + j as f64));
    let gram = Gram::from_second_moment(&Array2::from_diag(&powers)).unwrap();
    let saliency = rules::saliency(&w, &gram).unwrap();
    for (at, s) in saliency.indexed_iter() {
        let mut zeroed = w.clone();
        zeroed[at] = 0.0;
        assert!((Objective::Activations(&gram).energy(&(&w - &zeroed)) - s).abs() < 1e-12);
    }
    let fisher = rules::fisher_saliency(&w, &Array2::from_elem((4, 6), 2.0)).unwrap();
    assert!(difference(&fisher, &(&w * &w)) < 1e-15);
    assert!(rules::saliency(&gaussian(4, 5, 1), &gram).is_err());
    assert!(rules::fisher_saliency(&w, &Array2::zeros((4, 5))).is_err());
}

#[test]
fn sensitivity_lora_spends_its_budget_exactly() {
    let settings = SensitivitySettings { least: 2, ..Default::default() };
    let square = |rows, cols, seed| gaussian(rows, cols, seed).mapv(|g| g * g);
    for seed in 0..40 {
        let matrices: Vec<Array2<f64>> =
            (0..5).map(|k| square(6 + k, 12 - k, 10 * seed + k as u64) * (k as f64 + 0.1)).collect();
        let total = 10 + seed as usize % 25;
        let ranks = rules::sensitivity_ranks(&matrices, total, &settings).unwrap();
        assert_eq!(ranks.iter().sum::<usize>(), total);
        assert!(ranks.iter().zip(&matrices).all(|(r, s)| *r >= 2 && *r <= s.nrows().min(s.ncols())));
        // Another order, another scale: the same ranks.
        let turned: Vec<Array2<f64>> = matrices.iter().rev().map(|s| s * 1e6).collect();
        let mut back = rules::sensitivity_ranks(&turned, total, &settings).unwrap();
        back.reverse();
        assert!(ranks.iter().zip(&back).all(|(a, b)| a == b), "{ranks:?} {back:?}");
    }
    let equal = vec![square(8, 8, 1); 4];
    let ranks = rules::sensitivity_ranks(&equal, 14, &SensitivitySettings::default()).unwrap();
    assert!(ranks.iter().max().unwrap() - ranks.iter().min().unwrap() <= 1);
    let with_zero = [square(8, 8, 1), Array2::zeros((8, 8)), square(8, 8, 2)];
    assert_eq!(rules::sensitivity_ranks(&with_zero, 10, &settings).unwrap()[1], 2);
    assert!(rules::sensitivity_ranks(&with_zero, 99, &settings).is_err());
    assert!(rules::sensitivity_ranks(&with_zero, 5, &settings).is_err());
    assert!(rules::sensitivity_scores(&[Array2::zeros((0, 3))], &settings).is_err());
}

// VectorFit

#[test]
fn vector_fit_moves_singular_values_and_biases() {
    let (w, shift) = (gaussian(10, 7, 1), gaussian(1, 7, 2).into_raw_vec_and_offset().0);
    let still = methods::vector_fit((10, 7), vec![0.0; 7], Some(vec![0.0; 10])).unwrap();
    assert_eq!(still.delta(&dense(&w)).unwrap(), Array2::<f64>::zeros((10, 7)));
    let adapter = methods::vector_fit((10, 7), shift.clone(), Some(vec![1.0; 10])).unwrap();
    assert_eq!(adapter.n_params(), 17);
    check_merge(&adapter, &w);
    let edit = adapter.edit(&dense(&w)).unwrap();
    let bias = edit.bias().apply(Some(&Array1::from_elem(10, 2.0))).unwrap().unwrap();
    assert_eq!(bias, Array1::from_elem(10, 3.0));
    // The gradient is diag(Uᵀ G V): the change is linear in the shift, so differences are exact.
    let (g, found) = (gaussian(10, 7, 3), svd(&w, Threads::ONE).unwrap());
    let expected = found.u.t().dot(&g).dot(&found.vt.t());
    let loss = |shift: Vec<f64>| {
        total(&g, &methods::vector_fit((10, 7), shift, None).unwrap().delta(&dense64(&w)).unwrap())
    };
    for k in 0..7 {
        let (mut up, mut down) = (shift.clone(), shift.clone());
        (up[k], down[k]) = (up[k] + 0.5, down[k] - 0.5);
        assert!((loss(up) - loss(down) - expected[[k, k]]).abs() < 1e-6);
    }
    // With min(out, in) numbers the change has full rank, and values may turn negative.
    assert_eq!(rank_of(&adapter.delta(&dense64(&w)).unwrap(), 1e-6), 7);
    let negative: Vec<f64> = found.s.iter().map(|s| -2.0 * s).collect();
    let turned = methods::vector_fit((10, 7), negative, None).unwrap();
    assert!(difference(&turned.edit(&dense64(&w)).unwrap().merged(&dense64(&w)).unwrap(), &-&w) < 1e-6);
    assert!(methods::vector_fit((10, 7), vec![0.0; 6], None).is_err());
    assert!(methods::vector_fit((10, 7), vec![0.0; 7], Some(vec![0.0; 9])).is_err());
}

#[test]
fn vector_fit_counts_of_a_block() {
    // A block of width 768 and 3072: q, k, v, o, up, down.
    let shapes = [(768, 768), (768, 768), (768, 768), (768, 768), (3072, 768), (768, 3072)];
    let params: usize = shapes
        .iter()
        .map(|&(m, n)| methods::vector_fit((m, n), vec![0.0; 768], Some(vec![0.0; m])).unwrap().n_params())
        .sum();
    let lora: usize = shapes.iter().map(|(m, n)| 8 * (m + n)).sum();
    assert_eq!((params, lora), (11_520, 110_592));
}

#[test]
fn vector_fit_freezes_what_moved_most() {
    let settings = VectorFreezerSettings { start: 20, interval: 10, count: 2, beta: 0.9 };
    let mut rule = VectorFreezer::new(settings, vec![vec![0.0; 3]; 6]).unwrap();
    let mut vectors = vec![vec![0.0; 3]; 6];
    for step in 1..=200 {
        let was_frozen = rule.frozen().to_vec();
        for (k, vector) in vectors.iter_mut().enumerate().filter(|(k, _)| !was_frozen[*k]) {
            let speed = if k == 4 { 0.1 } else { 0.01 };
            vector.iter_mut().for_each(|v| *v += speed);
        }
        let frozen = rule.step(step, &vectors).unwrap();
        let expected = if step < 20 { 0 } else { 2 };
        assert_eq!(frozen.iter().filter(|f| **f).count(), expected, "step {step}");
        // The fast one pauses after every window in which it was trained.
        if step >= 20 && step % 10 == 0 && !was_frozen[4] {
            assert!(frozen[4], "step {step}");
        }
    }
    assert!(rule.step(201, &vectors[..5]).is_err());
    assert!(rule.step(201, &vec![vec![0.0; 2]; 6]).is_err());
    assert!(VectorFreezer::new(VectorFreezerSettings { interval: 0, ..settings }, vec![vec![]; 6]).is_err());
    assert!(VectorFreezer::new(settings, vec![vec![0.0]]).is_err());
}

// CapaBoost

#[test]
fn capaboost_is_its_dense_formula_and_multiplies_the_rank() {
    let (b, a) = (gaussian(48, 4, 1), gaussian(4, 40, 2));
    for copies in 1..=3 {
        let masks = CapaMasks::random((48, 40), 4, copies, CapaDensity::Fraction(0.5), 7).unwrap();
        let adapter = methods::capaboost(&b, &a, &masks, 0.5).unwrap();
        let masked = |a: &Array2<f64>, mask: &Array2<bool>| {
            Array2::from_shape_fn(a.dim(), |at| if mask[at] { a[at] } else { 0.0 })
        };
        let mut expected = Array2::zeros((48, 40));
        for (left, right) in masks.left.iter().zip(&masks.right) {
            expected += &(masked(&b, left).dot(&masked(&a, right)) * 0.5);
        }
        let d = adapter.matrix().to_dense_f64();
        assert!(difference(&d, &expected) < 1e-12);
        assert_eq!(rank_of(&d, 1e-6), 4 * copies);
        assert_eq!(adapter.n_params(), 4 * 88);
        check_merge(&adapter, &gaussian(48, 40, 3));
    }
    // All numbers in every copy: that many times a LoRA.
    let full = CapaMasks::random((48, 40), 4, 3, CapaDensity::Fraction(1.0), 7).unwrap();
    let adapter = methods::capaboost(&b, &a, &full, 1.0).unwrap();
    assert!(difference(&adapter.matrix().to_dense_f64(), &(b.dot(&a) * 3.0)) < 1e-12);
}

#[test]
fn capaboost_masks_come_from_their_seed() {
    let masks = |density, seed| CapaMasks::random((13, 24), 8, 2, density, seed).unwrap();
    let half = CapaDensity::Fraction(0.3);
    assert_eq!(masks(half, 1), masks(half, 1));
    assert_ne!(masks(half, 1), masks(half, 2));
    let one = masks(half, 1);
    assert_ne!(one.left[0], one.left[1]);
    let count = |mask: &Array2<bool>| mask.iter().filter(|kept| **kept).count();
    assert!(one.left.iter().all(|mask| count(mask) == (0.3 * 104.0) as usize));
    assert!(one.right.iter().all(|mask| count(mask) == (0.3 * 192.0) as usize));
    let pairs = masks(CapaDensity::TwoOfFour, 1);
    for mask in pairs.left.iter().chain(&pairs.right) {
        for row in mask.outer_iter() {
            assert!(
                row.exact_chunks(4).into_iter().all(|group| group.iter().filter(|kept| **kept).count() == 2)
            );
        }
    }
    assert!(CapaMasks::random((3, 3), 2, 1, CapaDensity::Fraction(1.5), 1).is_err());
    assert!(methods::capaboost(&gaussian(12, 8, 1), &gaussian(8, 24, 2), &one, 1.0).is_err());
    let none = CapaMasks { left: vec![], right: vec![] };
    assert!(methods::capaboost(&gaussian(12, 8, 1), &gaussian(8, 24, 2), &none, 1.0).is_err());
}

// LoRA learns less and forgets less

#[test]
fn lora_learns_less_ranks_of_planted_and_gaussian_changes() {
    let planted = with_spectrum(30, 40, 1, |k| if k < 5 { 1.0 } else { 0.0 });
    let values = singular_values(&planted, Threads::ONE).unwrap();
    assert!((stable_rank(&values) - 5.0).abs() < 1e-9 && (entropy_rank(&values) - 5.0).abs() < 1e-9);
    assert!(energy_rank(&values, 0.9) == 5 && energy_rank(&values, 1.0 - 1e-12) == 5);
    let uneven = singular_values(
        &with_spectrum(30, 40, 1, |k| if k < 5 { 1.0 / (1.0 + k as f64) } else { 0.0 }),
        Threads::ONE,
    )
    .unwrap();
    let ranks: Vec<usize> = (0..=10).map(|p| energy_rank(&uneven, p as f64 / 10.0)).collect();
    assert!(
        ranks.windows(2).all(|pair| pair[0] <= pair[1]) && ranks[0] == 0 && energy_rank(&uneven, 0.9) <= 5
    );
    // A square Gaussian matrix: singular values follow the quarter circle, whose energy above t is integrated here.
    let m = 240;
    let values = singular_values(&gaussian(m, m, 3), Threads::ONE).unwrap();
    let density = |x: f64| (4.0 - x * x).max(0.0).sqrt() / std::f64::consts::PI;
    let (steps, mut energy, mut count, mut t) = (200_000, 0.0, 0.0, 2.0);
    let width = 2.0 / steps as f64;
    while energy < 0.9 {
        let middle = t - 0.5 * width;
        energy += width * middle * middle * density(middle);
        count += width * density(middle);
        t -= width;
    }
    let measured = energy_rank(&values, 0.9) as f64 / m as f64;
    assert!((measured / count - 1.0).abs() < 0.02, "{measured} {count}");
    assert_eq!((energy_rank(&[0.0], 0.9), stable_rank(&[]), entropy_rank(&[0.0])), (0, 0.0, 0.0));
}

#[test]
fn lora_learns_less_report_measures_a_planted_change() {
    let w = with_spectrum(24, 32, 1, |k| 1.0 / (1.0 + k as f64));
    let found = svd(&w, Threads::ONE).unwrap();
    // Two of the four leading directions, one of the trailing ones.
    let direction = |k: usize| {
        let (u, v) = (found.u.slice(s![.., k..k + 1]), found.vt.slice(s![k..k + 1, ..]));
        u.dot(&v)
    };
    let change = direction(0) * 2.0 + direction(3) * 1.0 + direction(22) * 2.0;
    let settings = DeltaSettings { rank: 4, ..Default::default() };
    let report = delta_report(&w, &(&w + &change), &settings).unwrap();
    assert!((report.leading - 5.0 / 9.0).abs() < 1e-9 && (report.trailing - 4.0 / 9.0).abs() < 1e-9);
    assert!((report.relative - 3.0 / norm(&w)).abs() < 1e-9 && report.lora_error < 1e-9);
    assert_eq!((report.delta.energy, report.functional), (3, None));
    assert!(report.noise.energy > 10 && report.weight.energy < 6);
    // The best LoRA's error is the tail.
    let (w0, w1) = (gaussian(24, 32, 5), gaussian(24, 32, 6));
    let report = delta_report(&w0, &w1, &settings).unwrap();
    let values = svd(&(&w1 - &w0), Threads::ONE).unwrap();
    let tail = (values.tail_energy(4) / values.tail_energy(0)).sqrt();
    assert!((report.lora_error - tail).abs() < 1e-9);
    assert!(delta_report(&w0, &gaussian(24, 31, 1), &settings).is_err());
    assert!(delta_report(&w0, &w1, &DeltaSettings { rank: 25, ..settings }).is_err());
    assert!(delta_report(&w0, &w1, &DeltaSettings { share: 1.5, ..settings }).is_err());
    let same = delta_report(&w0, &w0, &settings).unwrap();
    assert_eq!((same.relative, same.delta.energy, same.lora_error), (0.0, 0, 0.0));
}

#[test]
fn lora_learns_less_and_drifts_less_on_old_directions() {
    // New data asks for a change of full rank; old data lies in other directions, with a little of the new ones.
    let n = 32;
    let (w, change) = (gaussian(n, n, 1), gaussian(n, n, 2));
    let new = gaussian(48, n, 3);
    let c = new.t().dot(&new) / 48.0;
    let old = gaussian(64, n, 4);
    let target = &w + &change;
    let fit = |rank: usize| {
        let settings = ColaSettings { stages: 1, rank, steps: 400, rate: 0.02, scale: 1.0, seed: 5 };
        let chain = Cola::train(&w, &settings, |now| Ok((now - &target).dot(&c))).unwrap();
        chain.adapter().unwrap().matrix().to_dense_f64()
    };
    let drift = |d: &Array2<f64>| norm(&old.dot(&d.t()));
    let mut full = Array2::<f64>::zeros((n, n));
    for _ in 0..400 {
        let g = (&full - &change).dot(&c);
        full.scaled_add(-0.2, &g);
    }
    let [low, more] = [4, 16].map(fit);
    println!("drift: {:.1}, {:.1}, full {:.1}", drift(&low), drift(&more), drift(&full));
    assert!(drift(&low) < drift(&more) && drift(&more) < drift(&full));
    let rank = |d: &Array2<f64>| energy_rank(&singular_values(d, Threads::ONE).unwrap(), 0.9);
    assert!(rank(&low) <= 4 && rank(&more) <= 16 && rank(&full) > 16);
}

// UniPano

/// Attention of one head: queries, keys, values, outputs.
fn attention(weights: &[&Array2<f64>], x: &Array2<f64>) -> Array2<f64> {
    let [q, k, v] = [0, 1, 2].map(|i| x.dot(&weights[i].t()));
    let mut scores = q.dot(&k.t()) / (q.ncols() as f64).sqrt();
    for mut row in scores.outer_iter_mut() {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.mapv_inplace(|v| (v - most).exp());
        let sum = row.sum();
        row /= sum;
    }
    scores.dot(&v).dot(&weights[3].t())
}

#[test]
fn unipano_attributes_the_change_to_the_roles_that_changed() {
    let base: Vec<Array2<f64>> = (0..4).map(|k| gaussian(12, 12, k) * 0.3).collect();
    let x = gaussian(20, 12, 9);
    let block = |weights: &[&Array2<f64>]| Ok(attention(weights, &x));
    let groups: [&[usize]; 3] = [&[0, 1], &[2], &[3]];
    let mut tuned = base.clone();
    tuned[2] += &(gaussian(12, 12, 20) * 0.1);
    tuned[3] += &(gaussian(12, 12, 21) * 0.1);
    let swaps = swap_test(&base, &tuned, &groups, block).unwrap();
    assert!(swaps[1].share + swaps[2].share >= 0.99 && swaps[0].change == 0.0);
    // Reports rank them first too.
    let mut gram = Gram::new(12);
    gram.accumulate(&x).unwrap();
    let settings = DeltaSettings { rank: 2, gram: Some(&gram), ..Default::default() };
    let reports: Vec<f64> = base
        .iter()
        .zip(&tuned)
        .map(|(a, b)| delta_report(a, b, &settings).unwrap().functional.unwrap())
        .collect();
    assert!(reports[0] == 0.0 && reports[1] == 0.0 && reports[2] > 0.1 && reports[3] > 0.1);
    // Queries up and keys down by one factor: both change, and attention does not.
    let mut scaled = base.clone();
    scaled[0] *= 3.0;
    scaled[1] /= 3.0;
    let change = |k: usize| delta_report(&base[k], &scaled[k], &settings).unwrap().functional.unwrap();
    assert!(change(0) > 0.5 && change(1) > 0.5);
    let alone: [&[usize]; 2] = [&[0], &[1]];
    assert!(swap_test(&base, &scaled, &alone, block).unwrap().iter().all(|swap| swap.change > 1e-3));
    assert!(swap_test(&base, &scaled, &groups, block).unwrap()[0].change < 1e-12);
    assert!(swap_test(&base, &tuned[..3], &groups, block).is_err());
    assert!(swap_test(&base, &tuned, &[&[4]], block).is_err());
}

// MultiLoRA

#[test]
fn multi_lora_folds_and_starts_at_zero_with_a_gradient() {
    let (m, n, r) = (14, 18, 3);
    let gains = [gaussian(1, m, 1), gaussian(1, m, 2)].map(|g| g.into_raw_vec_and_offset().0);
    let b = [gaussian(m, r, 3), gaussian(m, r, 4)];
    let a = [gaussian(r, n, 5), gaussian(r, n, 6)];
    let made = |gains: &[Vec<f64>; 2], b: &[Array2<f64>; 2], a: &[Array2<f64>; 2]| {
        let parts = [(&*gains[0], &*b[0], &*a[0]), (&*gains[1], &*b[1], &*a[1])];
        methods::multi_lora(&parts, 0.5).unwrap()
    };
    let adapter = made(&gains, &b, &a);
    let mut expected = Array2::zeros((m, n));
    for k in 0..2 {
        expected += &(Array2::from_diag(&Array1::from(gains[k].clone())).dot(&b[k]).dot(&a[k]) * 0.5);
    }
    assert!(difference(&adapter.matrix().to_dense_f64(), &expected) < 1e-12);
    assert_eq!((adapter.n_params(), rank_of(&expected, 1e-9)), (2 * (r * (m + n) + m), 2 * r));
    check_merge(&adapter, &gaussian(m, n, 7));
    // At g = 0: no change, no slope of the factors, but one of the gains.
    let (none, g) = ([vec![0.0; m], vec![0.0; m]], gaussian(m, n, 8));
    let loss =
        |gains: &[Vec<f64>; 2], b: &[Array2<f64>; 2]| total(&g, &made(gains, b, &a).matrix().to_dense_f64());
    assert_eq!(loss(&none, &b), 0.0);
    let mut moved = b.clone();
    moved[1][[3, 1]] += 1.0;
    assert_eq!(loss(&none, &moved), 0.0);
    let product = b[0].dot(&a[0]);
    for o in 0..m {
        let mut up = none.clone();
        up[0][o] = 1.0;
        let slope = 0.5 * g.row(o).dot(&product.row(o));
        assert!((loss(&up, &b) - slope).abs() < 1e-9 && slope != 0.0);
    }
    let report = delta_report(
        &gaussian(m, n, 9),
        &(gaussian(m, n, 9) + &expected),
        &DeltaSettings { rank: 4, ..Default::default() },
    )
    .unwrap();
    assert!(report.delta.entropy < 6.0 + 1e-6 && report.delta.top > 1.0 / 6.0);
    assert!(methods::multi_lora(&[(&gains[0][..3], &*b[0], &*a[0])], 1.0).is_err());
    assert!(methods::multi_lora(&[], 1.0).is_err());
}

// MSPLoRA

#[test]
fn msplora_shares_levels_between_the_right_layers() {
    let (layers, m, n) = (7, 10, 12);
    let levels = Pyramid::published(layers, 8).unwrap();
    assert_eq!(levels, [(1, 8), (3, 4), (7, 2)]);
    let factors = |seed: u64, rank| (gaussian(m, rank, seed), gaussian(rank, n, seed + 1));
    let build = |moved: Option<(usize, usize)>| {
        let level = |t: usize, (groups, rank): (usize, usize)| {
            let one = |k: usize| {
                let shift = if moved == Some((t, k)) { 5000 } else { 0 };
                factors(100 * t as u64 + 10 * k as u64 + shift, rank)
            };
            (0..groups).map(one).collect::<Vec<_>>()
        };
        Pyramid::new(layers, 4.0, levels.iter().enumerate().map(|(t, l)| level(t, *l)).collect()).unwrap()
    };
    let changes = |pyramid: &Pyramid| -> Vec<Array2<f64>> {
        (0..layers).map(|l| pyramid.adapter(l).unwrap().matrix().to_dense_f64()).collect()
    };
    let pyramid = build(None);
    let before = changes(&pyramid);
    for (layer, change) in before.iter().enumerate() {
        let mut expected = Array2::zeros((m, n));
        for (t, (groups, rank)) in levels.iter().enumerate() {
            let (b, a) = factors(100 * t as u64 + 10 * (groups * layer / layers) as u64, *rank);
            expected += &(b.dot(&a) * (4.0 / *rank as f64));
        }
        assert!(difference(change, &expected) < 1e-12);
    }
    let differs = |moved| -> Vec<bool> {
        changes(&build(Some(moved))).iter().zip(&before).map(|(a, b)| a != b).collect()
    };
    assert_eq!(differs((0, 0)), [true; 7]);
    assert_eq!(differs((1, 1)), [false, false, false, true, true, false, false]);
    assert_eq!(differs((2, 5)), [false, false, false, false, false, true, false]);
    assert_eq!(pyramid.n_params(), (8 + 3 * 4 + 7 * 2) * (m + n));
    // Of 32 layers: 10.5 times a LoRA of one layer, against 32.
    let all: usize = Pyramid::published(32, 8).unwrap().iter().map(|(groups, rank)| groups * rank).sum();
    assert_eq!(all, 84);
    // One level of one layer is LoRA.
    let (b, a) = factors(1, 3);
    let one = Pyramid::new(1, 3.0, vec![vec![(b.clone(), a.clone())]]).unwrap();
    let lora = methods::lora(&b, &a, 1.0).unwrap();
    assert_eq!(one.adapter(0).unwrap().matrix().to_dense_f64(), lora.matrix().to_dense_f64());
    assert!(
        pyramid.adapter(7).is_err() && Pyramid::published(2, 8).is_err() && Pyramid::published(9, 6).is_err()
    );
    assert!(Pyramid::new(1, 1.0, vec![vec![(b.clone(), a.clone()); 2]]).is_err());
    assert!(Pyramid::new(1, 1.0, vec![vec![(a, b)]]).is_err());
}

#[test]
fn msplora_projection_falls_with_each_level() {
    let shared = gaussian(12, 2, 1).dot(&gaussian(2, 10, 2));
    let changes: Vec<Array2<f64>> = (0..6).map(|l| &shared * 3.0 + gaussian(12, 10, 10 + l)).collect();
    let (pyramid, errors) = Pyramid::project(&changes, &Pyramid::published(6, 4).unwrap(), 2.0).unwrap();
    println!("MSPLoRA levels: {errors:?}");
    assert!(falls(&errors) && errors[0] < 1.0);
    let missed: f64 = (0..6)
        .map(|l| norm(&(&changes[l] - &pyramid.adapter(l).unwrap().matrix().to_dense_f64())).powi(2))
        .sum();
    let whole: f64 = changes.iter().map(|d| norm(d).powi(2)).sum();
    assert!(((missed / whole).sqrt() - errors[2]).abs() < 1e-9);
    // A level for every layer alone is each layer's best approximation.
    let (_, alone) = Pyramid::project(&changes, &[(6, 3)], 1.0).unwrap();
    let tails: f64 = changes.iter().map(|d| svd(d, Threads::ONE).unwrap().tail_energy(3)).sum();
    assert!((alone[0] - (tails / whole).sqrt()).abs() < 1e-12);
    assert!(
        Pyramid::project(&[], &[(1, 1)], 1.0).is_err() && Pyramid::project(&changes, &[(7, 1)], 1.0).is_err()
    );
}

// Chain of LoRA

#[test]
fn cola_with_exact_stages_meets_eckart_and_young() {
    let target = gaussian(24, 30, 1);
    let mut chain = Cola::new((24, 30), 2.0).unwrap();
    let mut rest = target.clone();
    let whole = svd(&target, Threads::ONE).unwrap();
    for stage in 1..=4 {
        let (b, a) = svd(&rest, Threads::ONE).unwrap().split_sqrt(3);
        rest -= &b.dot(&a);
        chain.push(b / 2.0, a).unwrap();
        let error = norm(&(&target - &chain.adapter().unwrap().matrix().to_dense_f64()));
        assert!((error - whole.tail_energy(3 * stage).sqrt()).abs() < 1e-8 * norm(&target));
    }
    assert_eq!(chain.stages().len(), 4);
    // Merged one by one or at once, and recompressed.
    let w = gaussian(24, 30, 2);
    let merged = chain.merge_stages(&dense64(&w), Storage::F64).unwrap();
    let d = chain.adapter().unwrap().matrix().to_dense_f64();
    assert!(difference(&merged.weight.to_dense_f64(), &(&w + &d)) < 1e-12 && merged.drift < 1e-12);
    let (b, a) = chain.recompress(5).unwrap();
    assert!(
        difference(&b.dot(&a), &svd(&d, Threads::ONE).unwrap().truncate(5).reconstruct(Threads::ONE)) < 1e-9
    );
    assert!(chain.recompress(0).is_err() && Cola::new((2, 2), 1.0).unwrap().recompress(1).is_err());
    assert!(Cola::new((2, 2), f64::NAN).is_err() && Cola::new((2, 2), 1.0).unwrap().adapter().is_err());
    assert!(chain.push(gaussian(24, 2, 1), gaussian(3, 30, 1)).is_err());
}

#[test]
fn cola_trained_by_adam_comes_near_to_the_best_of_its_rank() {
    let target = gaussian(64, 64, 1);
    let whole = svd(&target, Threads::ONE).unwrap();
    for stages in 1..=4 {
        let settings = ColaSettings { stages, rank: 4, steps: 600 / stages, rate: 0.05, scale: 1.0, seed: 3 };
        let chain = Cola::train(&Array2::zeros((64, 64)), &settings, |w| Ok(w - &target)).unwrap();
        let error = difference(&chain.adapter().unwrap().matrix().to_dense_f64(), &target);
        let best = (whole.tail_energy(4 * stages) / whole.tail_energy(0)).sqrt();
        println!("COLA, {stages} stages: {error:.4}, best {best:.4}");
        assert!(error < best + 2e-3 && error > best - 1e-9);
    }
    let bad = ColaSettings { stages: 1, rank: 0, steps: 1, rate: 0.1, scale: 1.0, seed: 0 };
    assert!(Cola::train(&target, &bad, |w| Ok(w.clone())).is_err());
    let wrong = ColaSettings { rank: 1, ..bad };
    assert!(Cola::train(&target, &wrong, |_| Ok(Array2::zeros((2, 2)))).is_err());
}

#[test]
fn cola_reports_what_small_steps_lose_in_coarse_storage() {
    let w = gaussian(32, 32, 1);
    let mut chain = Cola::new((32, 32), 1.0).unwrap();
    let (b, a) = (gaussian(32, 1, 2) * 0.02, gaussian(1, 32, 3) * 0.02);
    (0..30).for_each(|_| chain.push(b.clone(), a.clone()).unwrap());
    let coarse = chain.merge_stages(&dense(&w), Storage::Bf16).unwrap();
    let fine = chain.merge_stages(&dense(&w), Storage::F32).unwrap();
    println!("COLA drift: bf16 {:.3}, f32 {:.1e}", coarse.drift, fine.drift);
    assert!(coarse.drift > 0.3 && fine.drift < 1e-3);
}

// SpectralFT and the additive Spectral Adapter

fn additive_dense(
    w: &Array2<f64>,
    k: std::ops::Range<usize>,
    e_u: &Array2<f64>,
    e_v: &Array2<f64>,
    tail: bool,
) -> Array2<f64> {
    let found = svd(w, Threads::ONE).unwrap();
    let (u, vt) = (found.u.slice(s![.., k.clone()]), found.vt.slice(s![k.clone(), ..]));
    let sigma = Array2::from_diag(&Array1::from(found.s[k].to_vec()));
    let block = u.dot(&sigma).dot(&vt);
    let moved = (&u + e_u).dot(&sigma).dot(&(&vt + &e_v.t()));
    if tail { moved - block } else { moved - w }
}

#[test]
fn spectral_adapter_adds_to_singular_vectors() {
    let w = gaussian(18, 14, 1);
    let (e_u, e_v) = (gaussian(18, 4, 2), gaussian(14, 4, 3));
    let full = |e: &Array2<f64>| SpectralChange::Full(e.clone());
    for block in [0..4, 3..7, 10..14] {
        let adapter = SpectralAdditive::new((18, 14), block.clone(), full(&e_u), full(&e_v)).unwrap();
        let d = adapter.delta(&dense64(&w)).unwrap();
        assert!(difference(&d, &additive_dense(&w, block.clone(), &e_u, &e_v, true)) < 1e-6);
        assert_eq!((rank_of(&d, 1e-5), adapter.n_params()), (8, 4 * (18 + 14)));
        check_merge(&adapter, &w);
        let zero = |rows| SpectralChange::Full(Array2::zeros((rows, 4)));
        let still = SpectralAdditive::new((18, 14), block, zero(18), zero(14)).unwrap();
        assert!(norm(&still.delta(&dense64(&w)).unwrap()) < 1e-6 * norm(&w));
    }
    assert!(SpectralAdditive::new((18, 14), 2..2, full(&e_u), full(&e_v)).is_err());
    assert!(SpectralAdditive::new((18, 14), 12..16, full(&e_u), full(&e_v)).is_err());
    assert!(SpectralAdditive::new((18, 14), 0..4, full(&e_v), full(&e_u)).is_err());
}

#[test]
fn spectral_ft_adds_low_rank_changes_to_singular_vectors() {
    let w = gaussian(18, 14, 1);
    let (p1, p2, q1, q2) = (gaussian(18, 2, 2), gaussian(2, 8, 3), gaussian(14, 2, 4), gaussian(2, 8, 5));
    let factored = |p: &Array2<f64>, q: &Array2<f64>| SpectralChange::Factored(p.clone(), q.clone());
    let adapter = SpectralAdditive::new((18, 14), 0..8, factored(&p1, &p2), factored(&q1, &q2)).unwrap();
    let d = adapter.delta(&dense64(&w)).unwrap();
    assert!(difference(&d, &additive_dense(&w, 0..8, &p1.dot(&p2), &q1.dot(&q2), true)) < 1e-6);
    assert_eq!((rank_of(&d, 1e-5), adapter.n_params()), (4, 2 * (18 + 14 + 2 * 8)));
    assert!(adapter.edit(&dense64(&w)).unwrap().flops(1) <= 2 * 4 * (18 + 14) + 8);
    check_merge(&adapter, &w);
    // The start: one factor of each is zero.
    let zero = Array2::zeros((2, 8));
    let start = SpectralAdditive::new((18, 14), 0..8, factored(&p1, &zero), factored(&q1, &zero)).unwrap();
    assert!(norm(&start.delta(&dense64(&w)).unwrap()) < 1e-6 * norm(&w));
    // The published module leaves the tail out.
    let best = svd(&w, Threads::ONE).unwrap().truncate(8).reconstruct(Threads::ONE);
    let without = start.without_tail();
    let merged = without.edit(&dense64(&w)).unwrap().merged(&dense64(&w)).unwrap();
    assert!(difference(&merged, &best) < 1e-6);
    let moved = adapter.without_tail();
    let expected = additive_dense(&w, 0..8, &p1.dot(&p2), &q1.dot(&q2), false);
    assert!(difference(&moved.delta(&dense64(&w)).unwrap(), &expected) < 1e-6);
    check_merge(&moved, &w);
}

// LoTR

#[test]
fn lotr_projection_recovers_a_planted_stack() {
    let (left, right) = (gaussian(40, 5, 1), gaussian(32, 5, 2));
    let changes: Vec<Array2<f64>> =
        (0..6).map(|l| left.dot(&gaussian(5, 5, 10 + l)).dot(&right.t())).collect();
    let (stack, errors) = methods::TuckerStack::project(&changes, 5, &Options::default()).unwrap();
    println!("LoTR planted: {:e}", errors[0]);
    assert!(errors[0] < 1e-10);
    assert_eq!(stack.n_params(), 5 * 72 + 6 * 25);
    for (l, change) in changes.iter().enumerate() {
        let adapter = stack.adapter(l).unwrap();
        assert!(difference(&adapter.matrix().to_dense_f64(), change) < 1e-6);
        assert_eq!(adapter.n_params(), 25);
    }
    assert!(stack.adapter(6).is_err());
}

#[test]
fn lotr_alternation_never_rises() {
    let (left, right) = (gaussian(40, 5, 1), gaussian(32, 5, 2));
    let changes: Vec<Array2<f64>> = (0..6)
        .map(|l| left.dot(&gaussian(5, 5, 10 + l)).dot(&right.t()) + gaussian(40, 32, 50 + l) * 3.0)
        .collect();
    let (_, errors) = methods::TuckerStack::project(&changes, 5, &Options::default()).unwrap();
    println!("LoTR with noise: {:.4} to {:.4}", errors[0], errors[errors.len() - 1]);
    assert!(errors.len() > 1 && falls(&errors) && errors[0] <= 2f64.sqrt() * errors[errors.len() - 1]);
    // Of one layer: the truncated decomposition.
    let one = &changes[..1];
    let (_, errors) = methods::TuckerStack::project(one, 5, &Options::default()).unwrap();
    let found = svd(&one[0], Threads::ONE).unwrap();
    assert!((errors[0] - (found.tail_energy(5) / found.tail_energy(0)).sqrt()).abs() < 1e-10);
    assert!(methods::TuckerStack::project(&[], 1, &Options::default()).is_err());
    assert!(methods::TuckerStack::project(one, 0, &Options::default()).is_err());
    assert!(
        methods::TuckerStack::project(&[changes[0].clone(), gaussian(3, 3, 1)], 2, &Options::default())
            .is_err()
    );
    let (zero, errors) =
        methods::TuckerStack::project(&[Array2::zeros((4, 5))], 2, &Options::default()).unwrap();
    assert!(errors == [0.0] && zero.adapter(0).is_ok());
}

// LoRA-XS

#[test]
fn lora_xs_core_of_a_target_is_the_closed_form() {
    let w = gaussian(30, 20, 1);
    let (b, a) = methods::lora_xs_basis(&w, 6).unwrap();
    let found = svd(&w, Threads::ONE).unwrap();
    assert!(difference(&b.dot(&a), &found.truncate(6).reconstruct(Threads::ONE)) < 1e-12);
    let (scale, target) = (16.0 / 6.0, gaussian(30, 20, 2));
    let core = methods::nearest_core(&b, &a, scale, &target).unwrap();
    // R* = Uᵀ D V Σ⁻¹ / s.
    let v = found.vt.slice(s![..6, ..]);
    let mut expected = b.t().dot(&target).dot(&v.t()) / scale;
    expected.axis_iter_mut(structmat::ndarray::Axis(1)).zip(&found.s).for_each(|(mut c, s)| c /= *s);
    assert!(difference(&core, &expected) < 1e-10);
    let reached = |core: &Array2<f64>| b.dot(core).dot(&a) * scale;
    let rest = &target - &reached(&core);
    assert!(norm(&b.t().dot(&rest).dot(&v.t())) < 1e-10 * norm(&target));
    // A planted one is found, and no other core does better.
    let planted = reached(&gaussian(6, 6, 3));
    assert!(difference(&reached(&methods::nearest_core(&b, &a, scale, &planted).unwrap()), &planted) < 1e-10);
    for seed in 0..50 {
        let other = &core + &(gaussian(6, 6, 100 + seed) * 10f64.powi(-(seed as i32 % 6)));
        assert!(norm(&(&target - &reached(&other))) >= norm(&rest));
    }
    let adapter = methods::core(&b, &core, &a, scale).unwrap();
    assert!(difference(&adapter.matrix().to_dense_f64(), &reached(&core)) < 1e-6);
    assert!(methods::lora_xs_basis(&w, 21).is_err() && methods::nearest_core(&b, &a, 0.0, &target).is_err());
    assert!(methods::core_gradient(&b, &a, 1.0, &gaussian(2, 19, 1), &gaussian(2, 30, 1)).is_err());
}

// CP-LoRA and DoRA of convolutions

fn flattened(d: &Array4<f64>) -> Array2<f64> {
    let rows = d.dim().0;
    d.to_shape((rows, d.len() / rows)).unwrap().to_owned()
}

/// By its definition.
fn convolution(d: &Array4<f64>, x: &Array4<f64>, window: &Window) -> Array4<f64> {
    let ((batch, channels, height, width), (out, _, kh, kw)) = (x.dim(), d.dim());
    let (down, across) = window.outputs((height, width)).unwrap();
    let at = |n: usize, c: usize, i: usize, j: usize| -> f64 {
        let (i, j) = (i.wrapping_sub(window.padding.0), j.wrapping_sub(window.padding.1));
        if i < height && j < width { x[[n, c, i, j]] } else { 0.0 }
    };
    Array4::from_shape_fn((batch, out, down, across), |(n, o, i, j)| {
        let mut sum = 0.0;
        for c in 0..channels {
            for p in 0..kh {
                for q in 0..kw {
                    sum += d[[o, c, p, q]] * at(n, c, i * window.stride.0 + p, j * window.stride.1 + q);
                }
            }
        }
        sum
    })
}

fn cp(shape: [usize; 4], rank: usize, seed: u64) -> CpKernel {
    let [a, b, c, d] = [0, 1, 2, 3].map(|k| gaussian(shape[k], rank, seed + k as u64));
    CpKernel::new(a, b, c, d).unwrap()
}

#[test]
fn cp_lora_of_thin_convolutions_is_the_dense_convolution() {
    let kernel = cp([7, 5, 3, 2], 4, 1);
    let x = Array4::from_shape_vec((2, 5, 9, 8), gaussian(2, 360, 9).into_raw_vec_and_offset().0).unwrap();
    for (stride, padding) in [((1, 1), (0, 0)), ((2, 1), (1, 1)), ((3, 2), (2, 0))] {
        let window = Window { kernel: (3, 2), stride, padding };
        let expected = convolution(&kernel.to_dense(), &x, &window);
        let thin = kernel.convolve(&x, &window).unwrap();
        let matrix = kernel.adapter(1.0).unwrap().matrix().clone_box();
        let through = Conv2d::new(matrix, window, None).unwrap().forward(&x).unwrap();
        let error = |y: &Array4<f64>| {
            (y - &expected).iter().map(|v| v.abs()).fold(0.0, f64::max)
                / expected.iter().map(|v| v.abs()).fold(0.0, f64::max)
        };
        assert!(error(&thin) < 1e-12 && error(&through) < 1e-5);
    }
    assert!(
        difference(
            &kernel.adapter(0.5).unwrap().matrix().to_dense_f64(),
            &(flattened(&kernel.to_dense()) * 0.5)
        ) < 1e-6
    );
    let window = Window::new((3, 3));
    let huge = Window { padding: (1 << 62, 1 << 62), ..Window::new((3, 2)) };
    assert!(kernel.convolve(&x, &huge).is_err() && huge.patches(&x).is_err());
    assert!(kernel.convolve(&x, &window).is_err() && Window::new((30, 3)).patches(&x).is_err());
    assert!(Conv2d::new(Box::new(dense(&gaussian(3, 7, 1))), window, None).is_err());
    assert!(
        CpKernel::new(gaussian(2, 1, 1), gaussian(2, 2, 1), gaussian(2, 1, 1), gaussian(2, 1, 1)).is_err()
    );
}

#[test]
fn cp_lora_counts_and_recovers_planted_kernels() {
    // 64 channels in and out, 3 x 3, rank 8: CP, LoRA, loralib's LoRA, full.
    let conv_lora = methods::conv_lora(&Array2::zeros((192, 24)), &Array2::zeros((24, 192)), 3, 1.0).unwrap();
    let lora = methods::lora(&Array2::<f64>::zeros((64, 8)), &Array2::zeros((8, 576)), 1.0).unwrap();
    assert_eq!(
        (cp([64, 64, 3, 3], 8, 1).n_params(), lora.n_params(), conv_lora.n_params()),
        (1072, 5120, 9216)
    );
    for (shape, rank) in [([8, 6, 3, 3], 2), ([8, 6, 3, 3], 4), ([16, 12, 3, 3], 6)] {
        let d = cp(shape, rank, 20).to_dense();
        let (found, history) = CpKernel::project(&d, rank, &Options::default()).unwrap();
        let error = difference(&flattened(&found.to_dense()), &flattened(&d));
        println!("CP of rank {rank}: {error:.1e} after {} sweeps", history.len());
        assert!(error < 1e-6 && falls(&history), "rank {rank}: {error:e}");
    }
    // A kernel of full rank: never rises, and more terms are no worse.
    let d = Array4::from_shape_vec((6, 5, 3, 3), gaussian(6, 45, 5).into_raw_vec_and_offset().0).unwrap();
    let errors: Vec<f64> = [1, 3, 6]
        .map(|rank| {
            let (found, history) =
                CpKernel::project(&d, rank, &Options { max_iterations: Some(50), ..Default::default() })
                    .unwrap();
            assert!(falls(&history));
            let error = difference(&flattened(&found.to_dense()), &flattened(&d));
            assert!((error - history[history.len() - 1]).abs() < 1e-9);
            error
        })
        .to_vec();
    assert!(falls(&errors) && errors[0] < 1.0);
    assert!(CpKernel::project(&d, 0, &Options::default()).is_err());
    assert!(CpKernel::project(&Array4::zeros((0, 1, 1, 1)), 1, &Options::default()).is_err());
    assert!(CpKernel::project(&Array4::from_elem((2, 2, 1, 1), f64::NAN), 1, &Options::default()).is_err());
    assert!(
        CpKernel::project(&Array4::zeros((2, 2, 1, 1)), 1, &Options::default())
            .unwrap()
            .0
            .to_dense()
            .iter()
            .all(|v| *v == 0.0)
    );
}

#[test]
fn conv_lora_reads_its_product_as_a_kernel() {
    let (out, inp, k, rank) = (4, 5, 3, 6);
    let (b, a) = (gaussian(out * k, rank, 1), gaussian(rank, inp * k, 2));
    let product: Vec<f64> = (b.dot(&a) * 0.5).iter().copied().collect();
    let expected = Array2::from_shape_vec((out, inp * k * k), product).unwrap();
    let adapter = methods::conv_lora(&b, &a, k, 0.5).unwrap();
    assert!(difference(&adapter.matrix().to_dense_f64(), &expected) < 1e-6);
    check_merge(&adapter, &gaussian(out, inp * k * k, 3));
    // Its rank as a matrix goes up to k times that of the product.
    let (b, a) = (gaussian(24 * 3, 2, 1), gaussian(2, 10 * 3, 2));
    assert_eq!(rank_of(&methods::conv_lora(&b, &a, 3, 1.0).unwrap().matrix().to_dense_f64(), 1e-5), 6);
    assert!(methods::conv_lora(&b, &a, 0, 1.0).is_err() && methods::conv_lora(&b, &a, 7, 1.0).is_err());
    assert!(methods::conv_lora(&b, &gaussian(3, 30, 1), 3, 1.0).is_err());
}

#[test]
fn dora_of_convolutions_gives_output_channels_their_norms() {
    let w = gaussian(8, 6 * 9, 1);
    let magnitude: Vec<f64> = (0..8).map(|o| if o % 2 == 0 { 1.0 + o as f64 } else { -2.0 }).collect();
    let lora = methods::lora(&gaussian(8, 2, 2), &gaussian(2, 54, 3), 0.5).unwrap();
    let conv = methods::conv_lora(&gaussian(24, 6, 4), &gaussian(6, 18, 5), 3, 0.5).unwrap();
    let adapters: Vec<Box<dyn Adapter>> =
        vec![Box::new(lora), Box::new(cp([8, 6, 3, 3], 2, 6).adapter(0.5).unwrap()), Box::new(conv)];
    for inner in adapters {
        let kind = inner.kind();
        let dora = Dora::new(inner, magnitude.clone()).unwrap();
        let merged = dora.edit(&dense64(&w)).unwrap().merged(&dense64(&w)).unwrap();
        for (row, magnitude) in merged.outer_iter().zip(&magnitude) {
            assert!((row.dot(&row).sqrt() / magnitude.abs() - 1.0).abs() < 1e-6, "{kind}");
        }
    }
}

// NoRA

fn gelu(x: f64) -> f64 {
    methods::Activation::Gelu.at(x)
}

fn silu(x: f64) -> f64 {
    methods::Activation::Silu.at(x)
}

#[test]
fn nora_fits_of_activations() {
    let range = (-3.0, 3.0);
    type Named = (&'static str, fn(f64) -> f64);
    let activations: [Named; 4] =
        [("gelu", gelu), ("silu", silu), ("tanh", f64::tanh), ("sigmoid", |x| 1.0 / (1.0 + (-x).exp()))];
    for (name, f) in activations {
        for form in [Denominator::AbsSum, Denominator::SumAbs] {
            let fit = GroupRational::fit(form, f, range, (5, 4)).unwrap();
            println!("{name} {form:?}: {:.1e}", fit.max_error);
            // GELU wants a coefficient of x⁴ below 0 in the denominator, which the second form does not have.
            let limit = if (name, form) == ("gelu", Denominator::SumAbs) { 2.5e-3 } else { 1e-3 };
            assert!(fit.max_error < limit, "{name} {form:?}: {:e}", fit.max_error);
            let measured = (0..=600)
                .map(|k| -3.0 + k as f64 / 100.0)
                .map(|x| (fit.layer.at(0, x).unwrap() - f(x)).abs());
            assert!(measured.fold(0.0, f64::max) <= fit.max_error * 1.01);
            // The denominator is at least 1: no pole anywhere.
            assert!((-1000..=1000).all(|k| fit.layer.at(0, k as f64 / 10.0).unwrap().is_finite()));
        }
    }
    let form = Denominator::AbsSum;
    assert!(GroupRational::fit(form, gelu, (1.0, 1.0), (5, 4)).is_err());
    assert!(GroupRational::fit(form, gelu, (f64::NAN, 1.0), (5, 4)).is_err());
    assert!(GroupRational::fit(form, |x| 1.0 / x, (0.0, 1.0), (5, 4)).is_err());
    assert!(GroupRational::fit(form, gelu, range, (99, 4)).is_err());
    // A polynomial is met exactly, also without a denominator.
    assert!(GroupRational::fit(form, |x| 1.0 - x * x, range, (2, 0)).unwrap().max_error < 1e-12);
    assert!(GroupRational::fit(form, |_| 0.0, range, (1, 2)).unwrap().max_error < 1e-12);
}

#[test]
fn nora_derivatives_are_those_of_differences() {
    for form in [Denominator::AbsSum, Denominator::SumAbs] {
        let layer = GroupRational::new(form, gaussian(3, 6, 1), gaussian(3, 4, 2)).unwrap();
        for group in 0..3 {
            for k in 0..40 {
                let x = -2.0 + 0.1 * k as f64 + 0.037;
                let h = 1e-5;
                let slope = (layer.at(group, x + h).unwrap() - layer.at(group, x - h).unwrap()) / (2.0 * h);
                assert!(
                    (layer.derivative(group, x).unwrap() - slope).abs() < 1e-6 * (1.0 + slope.abs()),
                    "{form:?} at {x}"
                );
            }
        }
    }
}

#[test]
fn nora_starts_at_the_base_activation() {
    let base = GroupRational::fit(Denominator::SumAbs, silu, (-3.0, 3.0), (5, 4)).unwrap().layer;
    let (zero, a_n, a_d) = (Array2::zeros((4, 3)), gaussian(3, 6, 1), gaussian(3, 4, 2));
    let start = base.adapted((&zero, &a_n), (&zero, &a_d), 2.0).unwrap();
    let x = gaussian(5, 16, 3);
    assert_eq!(start.forward(&x).unwrap(), base.forward(&x).unwrap());
    let b = gaussian(4, 3, 4);
    let moved = base.adapted((&b, &a_n), (&b, &a_d), 2.0).unwrap();
    assert!((0..4).all(|g| (moved.at(g, 0.7).unwrap() - base.at(0, 0.7).unwrap()).abs() > 1e-3));
    assert!(base.adapted((&b, &a_n), (&gaussian(3, 3, 1), &a_d), 2.0).is_err());
    assert!(moved.adapted((&gaussian(3, 3, 1), &a_n), (&gaussian(3, 3, 1), &a_d), 2.0).is_err());
    assert!(base.adapted((&b, &a_d), (&b, &a_d), 2.0).is_err());
}

// Watermarks

#[test]
fn watermark_through_lora_is_read_after_noise_and_rounding() {
    let w = gaussian(256, 256, 1);
    let key = Watermark::new((256, 256), 64, 7).unwrap();
    let bits: Vec<bool> = (0..64).map(|k| (k * 37 + 11) % 5 < 2).collect();
    let marked = key.embed(&w, &bits, None, &WatermarkSettings::default()).unwrap();
    println!("watermark: change {:.4}, margin {:.2}, {} steps", marked.change, marked.margin, marked.steps);
    assert!(marked.change <= 0.05 && marked.margin >= 0.3);
    let carried = &w + &marked.adapter().unwrap().matrix().to_dense_f64();
    let perfect = key.verify(&carried, &bits).unwrap();
    assert!(
        perfect.matches == 64
            && perfect.bits == bits
            && (perfect.p_value / 2f64.powi(-64) - 1.0).abs() < 1e-9
    );
    let noisy = &carried + &(gaussian(256, 256, 2) * (0.05 * norm(&carried) / 256.0));
    assert_eq!(key.verify(&noisy, &bits).unwrap().matches, 64);
    let rounded = Dense::from_factor(Factor::from_matrix(Storage::Bf16, &carried)).unwrap().to_dense_f64();
    assert_eq!(key.verify(&rounded, &bits).unwrap().matches, 64);
    // Another key reads nothing.
    let other = Watermark::new((256, 256), 64, 8).unwrap().verify(&carried, &bits).unwrap();
    assert!(other.matches < 48 && other.p_value > 1e-6);
}

#[test]
fn watermark_is_not_read_in_unmarked_weights() {
    let key = Watermark::new((48, 40), 64, 7).unwrap();
    let bits: Vec<bool> = (0..64).map(|k| k % 3 == 0).collect();
    let (mut matches, mut least) = (0, 1.0f64);
    for seed in 0..1000 {
        let reading = key.verify(&gaussian(48, 40, 1000 + seed), &bits).unwrap();
        matches += reading.matches;
        least = least.min(reading.p_value);
    }
    let mean = matches as f64 / 64_000.0;
    assert!((mean - 0.5).abs() < 0.01 && least >= 1e-9, "{mean} {least:e}");
}

#[test]
fn watermark_weighs_by_activations_and_refuses_bad_input() {
    let (w, gram) = (gaussian(32, 40, 1), common::correlated_gram(40, 3));
    let key = Watermark::new((32, 40), 9, 7).unwrap();
    let bits = [true, false, true, true, false, false, true, false, true];
    let settings = WatermarkSettings { rank: 3, change: 0.3, ..Default::default() };
    let [plain, aware] = [None, Some(&gram)].map(|gram| key.embed(&w, &bits, gram, &settings).unwrap());
    for marked in [&plain, &aware] {
        assert_eq!(key.verify(&(&w + &marked.b.dot(&marked.a)), &bits).unwrap().matches, 9);
    }
    let objective = Objective::Activations(&gram);
    let seen = (objective.energy(&aware.b.dot(&aware.a)) / objective.energy(&w)).sqrt();
    assert!((seen - aware.change).abs() < 1e-9);
    assert!(Watermark::new((4, 4), 17, 1).is_err() && Watermark::new((4, 4), 0, 1).is_err());
    assert!(key.embed(&w, &bits[..3], None, &settings).is_err());
    assert!(key.embed(&gaussian(40, 32, 1), &bits, None, &settings).is_err());
    assert!(key.embed(&Array2::zeros((32, 40)), &bits, None, &settings).is_err());
    assert!(key.embed(&w, &bits, None, &WatermarkSettings { rank: 0, ..settings }).is_err());
    assert!(key.embed(&w, &bits, None, &WatermarkSettings { rate: f64::NAN, ..settings }).is_err());
    assert!(key.verify(&w, &bits[..2]).is_err());
    // Nothing is read where nothing is.
    assert!(matches!(
        key.verify(&Array2::from_elem((32, 40), f64::NAN), &bits),
        Err(Error::NonFinite { .. })
    ));
    assert!(matches!(key.verify(&Array2::zeros((32, 40)), &bits), Err(Error::Parameter { .. })));
    assert!(Watermark::new((1 << 40, 1 << 40), 1 << 20, 1).is_err());
}

// EVA and the expressive power of LoRA

#[test]
fn eva_components_explain_the_most_and_converge() {
    let mix = with_spectrum(10, 10, 1, |k| 0.5f64.powi(k as i32));
    let batch = |seed| gaussian(60, 10, seed).dot(&mix.t()) + 3.0;
    let x = batch(2);
    let mut pca = init::IncrementalPca::new(4);
    pca.update(&x).unwrap();
    assert!(!pca.converged(4, 0.99));
    let centred = &x - &x.mean_axis(structmat::ndarray::Axis(0)).unwrap();
    let energy = |a: &Array2<f64>| centred.dot(&a.t()).iter().map(|v| v * v).sum::<f64>();
    let own = energy(pca.components());
    assert!((own - pca.values().iter().map(|s| s * s).sum::<f64>()).abs() < 1e-6 * own);
    for seed in 0..20 {
        assert!(energy(&qr(&gaussian(10, 4, 50 + seed)).q.reversed_axes()) < own);
    }
    let whitened = pca.start(4, true).unwrap();
    for (row, s) in whitened.outer_iter().zip(pca.values()) {
        assert!((row.dot(&row).sqrt() - s.powf(-0.5)).abs() < 1e-9);
    }
    let mut batches = 0;
    while !pca.converged(4, 0.999) {
        batches += 1;
        pca.update(&batch(100 + batches)).unwrap();
        assert!(batches < 200);
    }
    assert!(pca.converged(1, 0.999) && pca.converged(0, 0.999) && !pca.converged(5, 0.0));
}

#[test]
fn expressive_power_errors_are_the_tail_and_descent_does_not_beat_them() {
    let d = 6;
    let frozen: Vec<Array2<f64>> = (0..2).map(|k| gaussian(d, d, k) + Array2::<f64>::eye(d) * 3.0).collect();
    let target = gaussian(d, d, 9) * 4.0;
    let error = |changes: &[(Array2<f64>, Array2<f64>)]| {
        let changed = |l: usize| &frozen[l] + &changes[l].0.dot(&changes[l].1);
        &target - &changed(1).dot(&changed(0))
    };
    let start = svd(&(&target - &frozen[1].dot(&frozen[0])), Threads::ONE).unwrap();
    for rank in 1..=3 {
        let changes = low_rank_chain(&frozen, &target, rank).unwrap();
        let rest = error(&changes);
        let tail = start.tail_energy(2 * rank).sqrt();
        assert!((norm(&rest) - tail).abs() < 1e-9 * norm(&target));
        let next = start.s.get(2 * rank).copied().unwrap_or(0.0);
        assert!((singular_values(&rest, Threads::ONE).unwrap()[0] - next).abs() < 1e-9 * norm(&target));
    }
    // Gradient descent on both pairs of rank 1, from several starts.
    let best = norm(&error(&low_rank_chain(&frozen, &target, 1).unwrap()));
    for seed in 0..5 {
        let mut pairs: Vec<(Array2<f64>, Array2<f64>)> = (0..2)
            .map(|l| (gaussian(d, 1, 50 + 10 * seed + l) * 0.1, gaussian(1, d, 55 + 10 * seed + l) * 0.1))
            .collect();
        for _ in 0..3000 {
            let w: Vec<Array2<f64>> = (0..2).map(|l| &frozen[l] + &pairs[l].0.dot(&pairs[l].1)).collect();
            let e = w[1].dot(&w[0]) - &target;
            for (l, g) in [w[1].t().dot(&e), e.dot(&w[0].t())].into_iter().enumerate() {
                let (b, a) = pairs[l].clone();
                pairs[l].0.scaled_add(-1e-3, &g.dot(&a.t()));
                pairs[l].1.scaled_add(-1e-3, &b.t().dot(&g));
            }
        }
        assert!(norm(&error(&pairs)) >= best * (1.0 - 1e-9));
    }
}

// MMCA

#[test]
fn mmca_gains_belong_to_their_sample() {
    let (u, v) = (gaussian(9, 4, 1), gaussian(4, 12, 2));
    let (w_c, b_c) = (gaussian(5, 4, 3), Array1::from_elem(4, 1.0));
    let layer = ConditionalLowRank::new(u.clone(), v.clone(), w_c, b_c.clone()).unwrap();
    let (x, conditions) = (gaussian(6, 12, 4), gaussian(2, 5, 5));
    let y = layer.delta(&x, &conditions).unwrap();
    let gains = layer.gains(&conditions).unwrap();
    for sample in 0..2 {
        let tokens = s![3 * sample..3 * sample + 3, ..];
        // The gains folded into one matrix: the other order.
        let d = layer.matrix(gains.row(sample).as_slice().unwrap()).unwrap();
        let formula = u.dot(&Array2::from_diag(&gains.row(sample))).dot(&v);
        assert!(difference(&d, &formula) < 1e-12);
        assert!(difference(&y.slice(tokens), &x.slice(tokens).dot(&d.t())) < 1e-12);
    }
    // Another condition of the second sample leaves the first as it was.
    let mut other = conditions.clone();
    other.row_mut(1).fill(7.0);
    let moved = layer.delta(&x, &other).unwrap();
    assert_eq!(moved.slice(s![..3, ..]), y.slice(s![..3, ..]));
    assert_ne!(moved.slice(s![3.., ..]), y.slice(s![3.., ..]));
    // At the start: the plain low-rank change.
    let start = ConditionalLowRank::new(u.clone(), v.clone(), Array2::zeros((5, 4)), b_c.clone()).unwrap();
    assert!(difference(&start.delta(&x, &conditions).unwrap(), &x.dot(&u.dot(&v).t())) < 1e-12);
    assert!(
        layer.delta(&gaussian(5, 12, 1), &conditions).is_err() && layer.gains(&gaussian(2, 4, 1)).is_err()
    );
    assert!(layer.delta(&x, &Array2::zeros((0, 5))).is_err() && layer.matrix(&[1.0]).is_err());
    assert!(ConditionalLowRank::new(u, v, Array2::zeros((5, 3)), b_c).is_err());
}

#[test]
fn mmca_fuses_summaries_by_a_gate() {
    let (first, second) =
        ((gaussian(3, 8, 1), Array1::zeros(3)), (gaussian(8, 3, 2), Array1::from_elem(8, 0.3)));
    let fusion = GatedFusion::new(first.clone(), second.clone()).unwrap();
    let (image, text) = (gaussian(4, 8, 3), gaussian(4, 8, 4));
    let gate = fusion.gate(&image, &text).unwrap();
    assert!(gate.iter().all(|g| *g > 0.0 && *g < 1.0));
    let inner = (&image + &text).dot(&first.0.t()).mapv(|v| v.max(0.0));
    let expected = (inner.dot(&second.0.t()) + 0.3).mapv(|v| 1.0 / (1.0 + (-v).exp())) * &image + &text;
    assert!(difference(&fusion.forward(&image, &text).unwrap(), &expected) < 1e-12);
    assert!(fusion.forward(&image, &gaussian(4, 7, 1)).is_err());
    assert!(GatedFusion::new(first.clone(), first).is_err());
}

// PEMA

#[test]
fn pema_mixes_distributions() {
    let normalised = |seed: u64| {
        let logits = gaussian(1, 50, seed).into_raw_vec_and_offset().0;
        let sum: f64 = logits.iter().map(|v| v.exp()).sum();
        logits.iter().map(|v| v - sum.ln()).collect::<Vec<f64>>()
    };
    let (p, q) = (normalised(1), normalised(2));
    for lambda in [0.0, 0.3, 1.0] {
        let mixed = mix_log_probs(&p, &q, lambda).unwrap();
        assert!((mixed.iter().map(|v| v.exp()).sum::<f64>() - 1.0).abs() < 1e-6);
        for k in 0..50 {
            let expected = (1.0 - lambda) * p[k].exp() + lambda * q[k].exp();
            assert!((mixed[k].exp() - expected).abs() < 1e-12);
        }
    }
    assert!(mix_log_probs(&p, &q, 0.0).unwrap() == p && mix_log_probs(&p, &q, 1.0).unwrap() == q);
    // What both exclude stays excluded.
    let never = [f64::NEG_INFINITY, 0.0];
    assert_eq!(mix_log_probs(&never, &never, 0.5).unwrap()[0], f64::NEG_INFINITY);
    assert!(mix_log_probs(&p, &q[..3], 0.5).is_err() && mix_log_probs(&p, &q, 1.5).is_err());
    let weights: Vec<f64> = GradualUnrolling::new(0.8, 4).unwrap().take(6).collect();
    let expected = [0.8, 0.36, 0.16, 0.04, 0.04, 0.04];
    assert!(weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{weights:?}");
    assert!(GradualUnrolling::new(1.1, 4).is_err() && GradualUnrolling::new(0.5, 0).is_err());
}

#[test]
fn pema_reconstructs_states_of_its_rank() {
    let states = gaussian(40, 5, 1).dot(&gaussian(5, 16, 2));
    let layer = Pema::start(&states, 5, 1.0 / 5.0).unwrap();
    assert!(difference(&layer.reconstruct(&states).unwrap(), &states) < 1e-5);
    assert_eq!(layer.next_token(&states).unwrap(), layer.reconstruct(&states).unwrap());
    // The loss's gradients against differences.
    let (a, b) = (gaussian(3, 16, 3), gaussian(16, 3, 4));
    let loss = |a: &Array2<f64>, b: &Array2<f64>| {
        Pema::new(a.clone(), b.clone(), b.clone(), 0.5).unwrap().reconstruction_loss(&states).unwrap().0
    };
    let (_, da, db) =
        Pema::new(a.clone(), b.clone(), b.clone(), 0.5).unwrap().reconstruction_loss(&states).unwrap();
    for at in [[0, 0], [2, 15], [1, 7]] {
        let (mut up, mut down) = (a.clone(), a.clone());
        (up[at], down[at]) = (up[at] + 1e-4, down[at] - 1e-4);
        let slope = (loss(&up, &b) - loss(&down, &b)) / 2e-4;
        assert!((slope - da[at]).abs() < 1e-6 * (1.0 + slope.abs()));
        let at = [at[1], at[0]];
        let (mut up, mut down) = (b.clone(), b.clone());
        (up[at], down[at]) = (up[at] + 1e-4, down[at] - 1e-4);
        let slope = (loss(&a, &up) - loss(&a, &down)) / 2e-4;
        assert!((slope - db[at]).abs() < 1e-6 * (1.0 + slope.abs()));
    }
    assert!(
        Pema::start(&states, 17, 1.0).is_err() && Pema::new(a.clone(), b.clone(), a.clone(), 1.0).is_err()
    );
    assert!(layer.reconstruct(&gaussian(2, 15, 1)).is_err() && Pema::new(a, b.clone(), b, 0.0).is_err());
}

// Compacter

#[test]
fn compacter_bottleneck_is_its_dense_formula() {
    let k = 4;
    let cube = |p: usize, q: usize, seed| {
        Array3::from_shape_vec((k, p, q), gaussian(k, p * q, seed).into_raw_vec_and_offset().0).unwrap()
    };
    let rule = cube(k, k, 1);
    // 32 features, a bottleneck of 8.
    let (down, up) =
        (methods::phm(&rule, &cube(8, 2, 2)).unwrap(), methods::phm(&rule, &cube(2, 8, 3)).unwrap());
    let (bias_down, bias_up) = (Array1::from_elem(8, 0.1), Array1::from_elem(32, -0.2));
    let layer = Bottleneck::new(
        Linear::new(down.matrix().clone_box(), Some(&bias_down)).unwrap(),
        Linear::new(up.matrix().clone_box(), Some(&bias_up)).unwrap(),
        methods::Activation::GeluTanh,
    )
    .unwrap();
    let x = gaussian(5, 32, 4);
    let h = (x.dot(&down.matrix().to_dense_f64().t()) + &bias_down).mapv(|v| {
        0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh())
    });
    let expected = &x + &h.dot(&up.matrix().to_dense_f64().t()) + &bias_up;
    assert!(difference(&layer.forward(&x).unwrap(), &expected) < 1e-12);
    assert!(layer.forward(&gaussian(5, 31, 1)).is_err());
    // The approximation is near to GELU.
    assert!((-60..60).all(|k| (methods::Activation::GeluTanh.at(k as f64 / 10.0) - gelu(k as f64 / 10.0)).abs() < 1e-3));
    let linear = |rows, cols| Linear::new::<f64>(Box::new(dense(&gaussian(rows, cols, 1))), None).unwrap();
    assert!(Bottleneck::new(linear(4, 8), linear(8, 3), methods::Activation::Relu).is_err());
    assert_eq!(
        Bottleneck::new(linear(4, 8), linear(8, 4), methods::Activation::Relu).unwrap().n_params(),
        64
    );
}
