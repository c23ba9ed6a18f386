//! Circulant, circulant-diagonal, block-circulant, Toeplitz and Fourier matrices: closed forms, recovery, reference cases.

mod common;

use common::oracle::Oracle;
use common::{correlated_gram, difference, exactly, falls, gaussian, norm, singular_gram, weighted_energy};
use structmat::linalg::{self, Threads};
use structmat::ndarray::{Array2, s};
use structmat::prelude::*;
use structmat::registry::family;

fn project<F: Family>(w: &Array2<f64>, spec: &F::Spec) -> Projected<F> {
    F::project(w, spec, &Objective::Frobenius, &exactly()).unwrap()
}

fn row(values: &[f64]) -> Factor {
    Factor::from_fn(Storage::F64, (1, 1, values.len()), |_, _, k| values[k])
}

fn cases<'a>(oracle: &'a Oracle, prefix: &str) -> Vec<&'a serde_json::Value> {
    let found: Vec<_> =
        oracle.cases.iter().filter(|c| c["name"].as_str().unwrap().starts_with(prefix)).collect();
    assert!(!found.is_empty(), "{prefix}");
    found
}

#[test]
fn reference_products_of_circulant_and_toeplitz_matrices_are_met() {
    let oracle = Oracle::open("transforms");
    let check = |case: &serde_json::Value, w: &dyn StructuredMatrix| {
        let y = w.matmul(&oracle.matrix(case, "x")).unwrap();
        assert!(difference(&y, &oracle.matrix(case, "y")) < 1e-11, "{}", case["name"]);
        let shape: Vec<_> =
            case["shape"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
        assert_eq!(w.shape(), (shape[0], shape[1]), "{}", case["name"]);
    };
    let flat = |case: &serde_json::Value, name: &str| -> Vec<f64> {
        oracle.tensor(case, name).unwrap().iter().copied().collect()
    };
    for case in cases(&oracle, "circulant_") {
        let c = flat(case, "first_column");
        check(case, &Circulant::new((c.len(), c.len()), row(&c)).unwrap());
    }
    for case in cases(&oracle, "toeplitz_") {
        let (column, top) = (flat(case, "first_column"), flat(case, "first_row"));
        let t: Vec<f64> = top.iter().rev().chain(&column[1..]).copied().collect();
        check(case, &Toeplitz::new((column.len(), top.len()), ToeplitzForm::Toeplitz, row(&t)).unwrap());
    }
    for case in cases(&oracle, "hankel_") {
        let (column, last) = (flat(case, "first_column"), flat(case, "last_row"));
        let t: Vec<f64> = column.iter().chain(&last[1..]).copied().collect();
        check(case, &Toeplitz::new((column.len(), last.len()), ToeplitzForm::Hankel, row(&t)).unwrap());
    }
    for case in cases(&oracle, "block_circulant_") {
        let c = oracle.tensor(case, "first_columns").unwrap();
        let dim = (c.shape()[0], c.shape()[1], c.shape()[2]);
        let factor = Factor::from_fn(Storage::F64, dim, |i, j, k| c[[i, j, k]]);
        check(case, &BlockCirculant::new((dim.0 * dim.2, dim.1 * dim.2), factor).unwrap());
    }
}

/// Lengths that are powers of two and not, and shapes of which every other one is wide.
#[test]
fn circulants_of_any_shape_multiply_as_their_formula() {
    for (m, n) in
        [(1, 1), (64, 64), (65, 65), (100, 70), (70, 100), (1, 129), (129, 1), (300, 257), (128, 256)]
    {
        let c = gaussian(1, m.max(n), 1);
        let w = Circulant::new((m, n), row(c.as_slice().unwrap())).unwrap();
        let dense = Array2::from_shape_fn((m, n), |(i, j)| c[[0, (i + m.max(n) - j) % m.max(n)]]);
        for batch in [1, 3] {
            let (x, dy) = (gaussian(batch, n, 2), gaussian(batch, m, 3));
            assert!(difference(&w.matmul(&x).unwrap(), &x.dot(&dense.t())) < 1e-12, "{m} x {n}");
            let back = w.matmul_transpose(&dy).unwrap();
            assert!(difference(&back, &dy.dot(&dense)) < 1e-12, "{m} x {n}, transposed");
        }
    }
}

#[test]
fn circulant_diagonal_is_the_sum_of_diagonals_times_circulants() {
    for (m, n, terms) in [(6, 6, 2), (5, 8, 3), (9, 4, 2), (1, 1, 1), (13, 5, 4)] {
        let (d, c) = (gaussian(terms, m, 1), gaussian(terms, n, 2));
        let mut expected = Array2::zeros((m, n));
        for k in 0..terms {
            let circulant = Array2::from_shape_fn((m, n), |(i, j)| c[[k, (i + n - j) % n]]);
            let diagonal = Array2::from_diag(&d.row(k).to_owned());
            expected += &diagonal.dot(&circulant);
        }
        let w = CirculantDiagonal::new(
            Factor::from_matrix(Storage::F64, &d),
            Factor::from_matrix(Storage::F64, &c),
        )
        .unwrap();
        assert!(difference(&w.to_dense_f64(), &expected) < 1e-13);
        assert!(difference(&w.matmul(&Array2::<f64>::eye(n)).unwrap().t().to_owned(), &expected) < 1e-12);
        assert!(difference(&w.matmul_transpose(&Array2::<f64>::eye(m)).unwrap(), &expected) < 1e-12);
        assert_eq!(w.n_params(), terms * (m + n));
    }
}

#[test]
fn circulant_diagonal_meets_eckart_and_young_after_shearing() {
    for (m, n, terms) in [(16, 16, 1), (16, 16, 5), (12, 20, 3), (20, 12, 4)] {
        let w = gaussian(m, n, 3);
        let sheared = Array2::from_shape_fn((m, n), |(i, k)| w[[i, (i + n - k % n) % n]]);
        let values = linalg::singular_values(&sheared, Threads(1)).unwrap();
        let expected = values[terms..].iter().map(|v| v * v).sum::<f64>().sqrt() / norm(&w);
        let p = project::<CirculantDiagonal>(&w, &CirculantDiagonalSpec { terms });
        assert!(
            (p.report.relative_error - expected).abs() < 1e-10,
            "{} against {expected}",
            p.report.relative_error
        );
        assert!(
            p.report.relative_error < project::<Circulant>(&w, &CirculantSpec).report.relative_error
                || m != n
        );
    }
    // All terms: every matrix.
    let spec = CirculantDiagonalSpec { terms: 8 };
    assert!(project::<CirculantDiagonal>(&gaussian(8, 8, 4), &spec).report.relative_error < 1e-10);
}

/// Settings that reach every linear family of this file.
const LINEAR: [(&str, &[(&str, &str)]); 7] = [
    ("circulant", &[]),
    ("block_circulant", &[("block", "4")]),
    ("block_circulant", &[("block", "9")]),
    ("toeplitz", &[]),
    ("toeplitz", &[("form", "hankel")]),
    ("fourier", &[("coefficients", "30")]),
    ("fourier", &[("coefficients", "30"), ("transform", "dct")]),
];

fn request(parameters: &[(&str, &str)]) -> Request {
    parameters.iter().fold(Request::new().budget(Budget::Ratio(64.0)), |r, (k, v)| r.with(*k, v))
}

#[test]
fn residuals_are_orthogonal_to_the_family_plain_and_weighted() {
    // The characterisation of the optimum of a linear family: <(W - What) C, B> = 0 for every member B.
    for (m, n) in [(16, 16), (12, 20), (21, 14)] {
        let (w, gram) = (gaussian(m, n, 5), correlated_gram(n, 6));
        for (name, parameters) in LINEAR {
            let entry = family(name).unwrap();
            for objective in [Objective::Frobenius, Objective::Activations(&gram)] {
                let p = entry.project(&w, &request(parameters), &objective, &exactly()).unwrap();
                let residual = &w - &p.matrix.to_dense_f64();
                let seen = objective.second_moment().map_or(residual.clone(), |c| residual.dot(c));
                let scale = norm(&objective.second_moment().map_or(w.clone(), |c| w.dot(c)));
                // Members with the same support: the projection, changed in its stored numbers.
                for seed in 0..4 {
                    let factor = p.matrix.parts().factors().next().map(|(_, f)| f.shape()).unwrap();
                    let noise = gaussian(factor.0 * factor.1, factor.2, seed);
                    let parts = p.matrix.parts();
                    let (label, _) = parts.factors().next().unwrap();
                    let changed = structmat::parts::Parts::new(name, (m, n)).with_config(parts.raw_config());
                    let changed = parts.indices().fold(changed, |c, (k, list)| c.index(k, list.to_vec()));
                    let other = Factor::from_fn(Storage::F64, factor, |b, i, j| noise[[b * factor.1 + i, j]]);
                    let other = structmat::registry::load(changed.factor(label, other).into_owned())
                        .unwrap()
                        .to_dense_f64();
                    let inner = (&seen * &other).sum() / (scale * norm(&other));
                    let tolerance = if objective.second_moment().is_some() { 1e-6 } else { 1e-10 };
                    assert!(
                        inner.abs() < tolerance,
                        "{name} {parameters:?} {m}x{n} {objective:?}: {inner:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn square_circulants_with_activations_have_a_closed_form() {
    let (n, gram) = (16, correlated_gram(16, 7));
    let w = gaussian(n, n, 8);
    let wc = w.dot(gram.second_moment());
    // Normal equations, solved directly: sum_k c_k g_{k-l} = h_l.
    let g = |a: &Array2<f64>, k: usize| (0..n).map(|j| a[[(j + k) % n, j]]).sum::<f64>();
    let system = Array2::from_shape_fn((n, n), |(k, l)| g(gram.second_moment(), (k + n - l) % n));
    let rhs = Array2::from_shape_fn((n, 1), |(k, _)| g(&wc, k));
    let c = linalg::lstsq(&system, &rhs).unwrap();
    let expected = Array2::from_shape_fn((n, n), |(i, j)| c[[(i + n - j) % n, 0]]);
    let p = Circulant::project(&w, &CirculantSpec, &Objective::Activations(&gram), &exactly()).unwrap();
    assert!(difference(&p.matrix.to_dense_f64(), &expected) < 1e-7);
}

#[test]
fn fourier_keeps_the_most_energy() {
    for (m, n) in [(12, 16), (9, 7), (10, 15), (1, 6), (1, 1)] {
        let w = gaussian(m, n, 9);
        let pairs = {
            let mut energies = Vec::new();
            for a in 0..m {
                for b in 0..n {
                    let mirror = ((m - a) % m, (n - b) % n);
                    if (a, b) > mirror {
                        continue;
                    }
                    let turn = |i: usize, j: usize| {
                        std::f64::consts::TAU
                            * (a as f64 * i as f64 / m as f64 + b as f64 * j as f64 / n as f64)
                    };
                    let re: f64 = w.indexed_iter().map(|((i, j), v)| v * turn(i, j).cos()).sum();
                    let im: f64 = w.indexed_iter().map(|((i, j), v)| v * turn(i, j).sin()).sum();
                    let both = if (a, b) == mirror { 1.0 } else { 2.0 };
                    energies.push(both * (re * re + im * im) / (m * n) as f64);
                }
            }
            energies.sort_by(|a, b| b.total_cmp(a));
            energies
        };
        for count in [1, pairs.len() / 2, pairs.len()] {
            if count == 0 {
                continue;
            }
            let p = project::<Fourier>(
                &w,
                &FourierSpec { coefficients: count, transform: FourierTransform::Dft },
            );
            let expected = pairs[count..].iter().sum::<f64>().sqrt() / norm(&w);
            assert!(
                (p.report.relative_error - expected).abs() < 1e-9,
                "{m}x{n} {count}: {}",
                p.report.relative_error
            );
            assert_eq!(p.matrix.n_params(), 2 * count);
        }
        let full = FourierSpec { coefficients: m * n, transform: FourierTransform::Dct };
        assert!(project::<Fourier>(&w, &full).report.relative_error < 1e-12);
        let one_more = FourierSpec { coefficients: pairs.len() + 1, transform: FourierTransform::Dft };
        assert!(Fourier::project(&w, &one_more, &Objective::Frobenius, &exactly()).is_err());
    }
}

#[test]
fn fourier_is_the_sum_of_its_waves() {
    use std::f64::consts::{PI, TAU};
    for (m, n) in [(12, 16), (9, 7), (1, 6), (1, 1)] {
        for transform in [FourierTransform::Dft, FourierTransform::Dct] {
            let spec = FourierSpec { coefficients: (m * n / 3).max(1), transform };
            let p = project::<Fourier>(&gaussian(m, n, 4), &spec);
            let parts = p.matrix.parts();
            let ((_, values), (_, indices)) =
                (parts.factors().next().unwrap(), parts.indices().next().unwrap());
            let cosine = |k: usize, len: usize, j: usize| {
                let scale = (if k == 0 { 1.0 } else { 2.0 } / len as f64).sqrt();
                scale * (PI * ((2 * j + 1) * k) as f64 / (2 * len) as f64).cos()
            };
            let entry = |(i, j): (usize, usize)| -> f64 {
                let wave = |(k, &index): (usize, &u32)| {
                    let (a, b) = (index as usize / n, index as usize % n);
                    if transform == FourierTransform::Dct {
                        return values.get(0, 0, k) * cosine(a, m, i) * cosine(b, n, j);
                    }
                    let twice = if (a, b) == ((m - a) % m, (n - b) % n) { 1.0 } else { 2.0 };
                    let angle = TAU * ((a * i) as f64 / m as f64 + (b * j) as f64 / n as f64);
                    let (re, im) = (values.get(0, 0, k), values.get(0, 1, k));
                    twice * (re * angle.cos() - im * angle.sin()) / ((m * n) as f64).sqrt()
                };
                indices.iter().enumerate().map(wave).sum()
            };
            let expected = Array2::from_shape_fn((m, n), entry);
            assert!(difference(&p.matrix.to_dense_f64(), &expected) < 1e-12, "{m}x{n} {transform:?}");
        }
    }
}

#[test]
fn cosine_waves_are_sparse_in_the_cosine_transform() {
    let oracle = Oracle::open("transforms");
    for case in cases(&oracle, "dct_") {
        // Rows of the reference transform, as a matrix applied to the identity: one coefficient reproduces an outer product of two.
        let (x, y) = (oracle.matrix(case, "x"), oracle.matrix(case, "dct2_ortho"));
        let n = x.ncols();
        // y = C x, so x^T y has the spectrum (C x^T)(C y^T)^T; its best coefficients are products of those of both.
        let w = x.slice(s![0..1, ..]).t().dot(&x.slice(s![0..1, ..]));
        let p =
            project::<Fourier>(&w, &FourierSpec { coefficients: n * n, transform: FourierTransform::Dct });
        let parts = p.matrix.parts();
        let (_, values) = parts.factors().next().unwrap();
        for k in 0..n * n {
            let expected = y[[0, k / n]] * y[[0, k % n]];
            assert!(
                (values.get(0, 0, k) - expected).abs() < 1e-10 * (1.0 + norm(&w)),
                "{} coefficient {k}",
                case["name"]
            );
        }
    }
}

#[test]
fn planted_members_are_recovered() {
    for shape in [(16, 16), (12, 20), (21, 14), (1, 5), (5, 1), (1, 1)] {
        for (name, parameters) in
            LINEAR.into_iter().chain([("circulant_diagonal", [("terms", "2")].as_slice())])
        {
            let mut parameters = parameters.to_vec();
            if shape.0.min(shape.1) == 1 {
                // The smallest member of each family.
                parameters.retain(|(k, _)| *k == "form" || *k == "transform");
            }
            let entry = family(name).unwrap();
            let planted = entry.random(shape, &request(&parameters), Storage::F64, 3).unwrap().to_dense_f64();
            let p =
                entry.project(&planted, &request(&parameters), &Objective::Frobenius, &exactly()).unwrap();
            assert!(
                p.report.relative_error < 1e-9,
                "{name} {parameters:?} {shape:?}: {}",
                p.report.relative_error
            );
        }
    }
}

#[test]
fn no_random_member_is_closer() {
    let w = gaussian(12, 20, 10);
    for (name, parameters) in LINEAR {
        let entry = family(name).unwrap();
        let best = entry.project(&w, &request(parameters), &Objective::Frobenius, &exactly()).unwrap();
        assert_eq!(best.report.guarantee, Guarantee::GlobalOptimum, "{name}");
        for seed in 0..8 {
            let other = entry.random((12, 20), &request(parameters), Storage::F64, seed).unwrap();
            assert!(other.relative_error(&w).unwrap() > best.report.relative_error, "{name}");
        }
    }
}

#[test]
fn activations_lower_the_weighted_error() {
    for (m, n) in [(16, 16), (12, 20), (21, 14)] {
        let w = gaussian(m, n, 11);
        for gram in [correlated_gram(n, 12), singular_gram(n, n / 3, 13)] {
            let objective = Objective::Activations(&gram);
            for (name, parameters) in
                LINEAR.into_iter().chain([("circulant_diagonal", [("terms", "3")].as_slice())])
            {
                let entry = family(name).unwrap();
                let weighted = entry.project(&w, &request(parameters), &objective, &exactly()).unwrap();
                let plain =
                    entry.project(&w, &request(parameters), &Objective::Frobenius, &exactly()).unwrap();
                let energy = |p: &Projected<_>| {
                    weighted_energy(&w, AsRef::<dyn StructuredMatrix>::as_ref(&p.matrix), &gram)
                };
                let (a, b) = (energy(&weighted), energy(&plain));
                assert!(a < b, "{name} {parameters:?} {m}x{n}: {a} against {b}");
                assert!(falls(&weighted.report.history), "{name}");
            }
        }
        let unit = Gram::from_second_moment(&Array2::<f64>::eye(n)).unwrap();
        for (name, parameters) in LINEAR {
            let entry = family(name).unwrap();
            let plain = entry.project(&w, &request(parameters), &Objective::Frobenius, &exactly()).unwrap();
            let same =
                entry.project(&w, &request(parameters), &Objective::Activations(&unit), &exactly()).unwrap();
            assert!(difference(&same.matrix.to_dense_f64(), &plain.matrix.to_dense_f64()) < 1e-8, "{name}");
        }
    }
}

#[test]
fn sizes_and_wrong_specs() {
    let w = gaussian(8, 6, 1);
    assert_eq!(project::<Circulant>(&w, &CirculantSpec).matrix.n_params(), 8);
    assert_eq!(project::<Toeplitz>(&w, &ToeplitzSpec::default()).matrix.n_params(), 13);
    assert_eq!(project::<BlockCirculant>(&w, &BlockCirculantSpec { block: 4 }).matrix.n_params(), 2 * 2 * 4);
    for block in [0, 9] {
        assert!(
            BlockCirculant::project(&w, &BlockCirculantSpec { block }, &Objective::Frobenius, &exactly())
                .is_err()
        );
    }
    for terms in [0, 7] {
        let spec = CirculantDiagonalSpec { terms };
        assert!(CirculantDiagonal::project(&w, &spec, &Objective::Frobenius, &exactly()).is_err());
    }
    for (name, key, value) in
        [("toeplitz", "form", "round"), ("fourier", "transform", "wavelet"), ("fourier", "coefficients", "0")]
    {
        assert!(
            family(name)
                .unwrap()
                .project(&w, &request(&[(key, value)]), &Objective::Frobenius, &exactly())
                .is_err()
        );
    }
}

#[test]
fn sizes_on_both_sides_of_every_choice_of_transform_equal_the_dense_formula() {
    let block = |p: &'static str| ("block_circulant", vec![("block", p)]);
    let mut members: Vec<_> = ["5", "7", "8", "16", "33", "128", "255", "256", "512"].map(block).to_vec();
    for (name, parameters) in LINEAR {
        members.push((name, parameters.to_vec()));
    }
    members.push(("circulant_diagonal", vec![("terms", "3")]));
    // So many that every kind of place of a spectrum is among them.
    for transform in ["dft", "dct"] {
        members.push(("fourier", vec![("coefficients", "600"), ("transform", transform)]));
    }
    for shape in [(600, 530), (530, 600), (512, 512)] {
        for (name, parameters) in &members {
            let w = family(name).unwrap().random(shape, &request(parameters), Storage::F64, 1).unwrap();
            let dense = w.to_dense_f64();
            for batch in [1, 3, 9] {
                let mut x = gaussian(batch, shape.1, 2);
                let expected = x.dot(&dense.t());
                let y = w.matmul(&x).unwrap();
                assert!(difference(&y, &expected) < 1e-12, "{name} {parameters:?} {shape:?} batch {batch}");
                let g = gaussian(batch, shape.0, 3);
                let mut dx = g.dot(&dense);
                let twice = &dx * 2.0;
                w.apply_transpose_into(&g, &mut dx, Update::Accumulate, &mut Exec::new()).unwrap();
                assert!(difference(&dx, &twice) < 1e-12, "{name} {parameters:?} {shape:?} transposed");
                // Rows do not see each other.
                x.row_mut(0).fill(f64::NAN);
                let marked = w.matmul(&x).unwrap();
                assert!(marked.row(0).iter().all(|v| v.is_nan()), "{name} {parameters:?}");
                assert_eq!(
                    marked.slice(s![1.., ..]),
                    y.slice(s![1.., ..]),
                    "{name} {parameters:?} {shape:?}"
                );
            }
        }
    }
}

/// Threads share the outputs of one row of a large grid, the weights of short blocks, or the rows of a batch.
#[test]
fn threads_change_no_bit_of_a_block_circulant_product() {
    let wide = [((4000, 4096), 256, 1), ((6000, 4200), 300, 1), ((2048, 8192), 512, 1)];
    let short = [2, 4, 5, 8]
        .into_iter()
        .flat_map(|block| [1, 3, 7, 8, 9, 13, 33, 70].map(|batch| ((390, 515), block, batch)));
    for (shape, block, batch) in wide.into_iter().chain(short) {
        let request = Request::new().with("block", block);
        let w = family("block_circulant").unwrap().random(shape, &request, Storage::F32, 3).unwrap();
        for transposed in [false, true] {
            let (outputs, inputs) = if transposed { (shape.1, shape.0) } else { shape };
            let x = gaussian(batch, inputs, 4).mapv(|v| v as f32);
            let product = |threads: usize, update: Update| {
                let (mut y, mut exec) = (Array2::from_elem((batch, outputs), 0.5f32), Exec::threads(threads));
                match transposed {
                    false => w.apply_into(&x, &mut y, update, &mut exec).unwrap(),
                    true => w.apply_transpose_into(&x, &mut y, update, &mut exec).unwrap(),
                }
                y.mapv(f32::to_bits)
            };
            for update in [Update::Overwrite, Update::Accumulate] {
                let one = product(1, update);
                for threads in [2, 3, 5] {
                    assert_eq!(
                        one,
                        product(threads, update),
                        "{shape:?} {block} {batch} {transposed} {threads}"
                    );
                }
            }
        }
    }
}
