//! "An Algorithm for Computing with Brauer's Group Equivariant Neural Network Layers" (E. Pearce-Crump, 2023): maps between tensors that commute with
//! O(n), SO(n), Sp(n) or permutations.

mod common;

use common::{correlated_gram, difference, exactly, gaussian, gaussian_of, norm, weighted_energy};
use structmat::ndarray::{Array1, Array2, Array3, linalg::kron};
use structmat::prelude::*;
use structmat::registry::family;
use structmat::{Error, Scalar, linalg};

const GROUPS: [EquivariantGroup; 4] = [
    EquivariantGroup::Symmetric,
    EquivariantGroup::Orthogonal,
    EquivariantGroup::SpecialOrthogonal,
    EquivariantGroup::Symplectic,
];

/// `(k, l)`: axes of the input and of the output.
const AXES: [(usize, usize); 5] = [(2, 2), (1, 3), (3, 1), (2, 4), (3, 3)];

fn spec(group: EquivariantGroup, n: usize, (k, l): (usize, usize)) -> EquivariantSpec {
    EquivariantSpec { group, n, out_axes: l, in_axes: k }
}

/// Every group with every size and number of axes that it has diagrams for.
fn specs() -> Vec<EquivariantSpec> {
    let mut all = Vec::new();
    for group in GROUPS {
        for n in 2..=4 {
            // Odd numbers of axes, sides without axes, and the sign tensor split in all ways.
            for axes in
                AXES.into_iter().chain([(0, 2), (2, 0), (0, 0), (1, 1), (1, 2), (2, 1), (4, 0), (3, 2)])
            {
                let one = spec(group, n, axes);
                if group.diagrams(n, axes.1, axes.0).is_ok() {
                    all.push(one);
                }
            }
        }
    }
    assert!(all.len() > 80, "{}", all.len());
    all
}

fn shape(spec: &EquivariantSpec, channels: (usize, usize)) -> (usize, usize) {
    (spec.n.pow(spec.out_axes as u32) * channels.0, spec.n.pow(spec.in_axes as u32) * channels.1)
}

fn member(spec: &EquivariantSpec, channels: (usize, usize), storage: Storage, seed: u64) -> Equivariant {
    Equivariant::random(shape(spec, channels), spec, storage, seed).unwrap()
}

/// The sign of `order` as a permutation of `0..n`, 0 where it is none.
fn levi_civita(order: &[usize]) -> f64 {
    let mut sign = 1.0;
    for i in 0..order.len() {
        for j in i + 1..order.len() {
            sign *= (order[j] as f64 - order[i] as f64).signum() * f64::from(u8::from(order[i] != order[j]));
        }
    }
    sign
}

/// The entry of a diagram by its definition: a product of deltas, of `J` and of the sign tensor.
fn entry(diagram: &EquivariantDiagram, spec: &EquivariantSpec, row: usize, col: usize) -> f64 {
    let (n, (l, k)) = (spec.n, diagram.axes());
    let digit = |number: usize, from_last: usize| number / n.pow(from_last as u32) % n;
    let index = |v: usize| if v < l { digit(row, l - 1 - v) } else { digit(col, l + k - 1 - v) };
    let mut product = 1.0;
    for block in diagram.blocks() {
        let same_side = block.iter().all(|v| *v < l) || block.iter().all(|v| *v >= l);
        if spec.group == EquivariantGroup::Symplectic && same_side {
            let (a, b) = (index(block[0]), index(block[1]));
            product *= f64::from(i8::from(a % 2 == 0 && b == a + 1) - i8::from(b % 2 == 0 && a == b + 1));
        } else {
            product *= f64::from(u8::from(block.iter().all(|v| index(*v) == index(block[0]))));
        }
    }
    let free: Vec<usize> = diagram.free().iter().map(|v| index(*v)).collect();
    product * levi_civita(&free)
}

fn explicit(diagram: &EquivariantDiagram, spec: &EquivariantSpec) -> Array2<f64> {
    Array2::from_shape_fn(shape(spec, (1, 1)), |(i, j)| entry(diagram, spec, i, j))
}

/// `g ⊗ g ⊗ ...`, `axes` times.
fn power(g: &Array2<f64>, axes: usize) -> Array2<f64> {
    (0..axes).fold(Array2::eye(1), |product, _| kron(&product, g))
}

fn determinant(g: &Array2<f64>) -> f64 {
    // Of an orthogonal matrix: the sign of the product of eigenvalues, by elimination.
    let (mut a, n, mut product) = (g.clone(), g.nrows(), 1.0);
    for k in 0..n {
        let pivot = (k..n).max_by(|i, j| a[[*i, k]].abs().total_cmp(&a[[*j, k]].abs())).unwrap();
        if pivot != k {
            for j in 0..n {
                a.swap([k, j], [pivot, j]);
            }
            product = -product;
        }
        product *= a[[k, k]];
        for i in k + 1..n {
            let factor = a[[i, k]] / a[[k, k]];
            for j in k..n {
                a[[i, j]] -= factor * a[[k, j]];
            }
        }
    }
    product
}

fn orthogonal(n: usize, seed: u64, with_determinant: f64) -> Array2<f64> {
    let mut g = linalg::qr(&gaussian(n, n, seed)).q;
    if determinant(&g) * with_determinant < 0.0 {
        g.column_mut(0).mapv_inplace(|v| -v);
    }
    g
}

/// A product of symplectic transvections `I + a v (J v)ᵀ`.
fn symplectic(n: usize, seed: u64) -> Array2<f64> {
    let vectors = gaussian(6, n, seed) * 0.5;
    vectors.outer_iter().fold(Array2::eye(n), |g: Array2<f64>, v| {
        let jv = Array1::from_shape_fn(n, |a| if a % 2 == 0 { v[a + 1] } else { -v[a - 1] });
        let rank_one = Array2::from_shape_fn((n, n), |(i, j)| v[i] * jv[j]);
        g.dot(&(Array2::eye(n) + rank_one))
    })
}

fn permutation(n: usize, seed: u64) -> Array2<f64> {
    let scores = gaussian(1, n, seed);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| scores[[0, *a]].total_cmp(&scores[[0, *b]]));
    Array2::from_shape_fn((n, n), |(i, j)| f64::from(u8::from(order[i] == j)))
}

fn element(group: EquivariantGroup, n: usize, seed: u64) -> Array2<f64> {
    match group {
        EquivariantGroup::Symmetric => permutation(n, seed),
        EquivariantGroup::Orthogonal => orthogonal(n, seed, if seed.is_multiple_of(2) { 1.0 } else { -1.0 }),
        EquivariantGroup::SpecialOrthogonal => orthogonal(n, seed, 1.0),
        EquivariantGroup::Symplectic => symplectic(n, seed),
    }
}

/// `‖W (gᵏ ⊗ I) - (gˡ ⊗ I) W‖` relative to `‖W‖ ‖gᵏ‖`.
fn commutator(w: &Equivariant, g: &Array2<f64>) -> f64 {
    let spec = w.parameters();
    let channels = |features: usize, axes: usize| Array2::eye(features / spec.n.pow(axes as u32));
    let right = kron(&power(g, spec.in_axes), &channels(w.shape().1, spec.in_axes));
    let left = kron(&power(g, spec.out_axes), &channels(w.shape().0, spec.out_axes));
    let dense = w.to_dense_f64();
    norm(&(dense.dot(&right) - left.dot(&dense))) / (norm(&dense) * norm(&right).max(norm(&left)))
}

#[test]
fn every_diagram_multiplies_as_its_definition_says() {
    for spec in specs() {
        let diagrams = spec.group.diagrams(spec.n, spec.out_axes, spec.in_axes).unwrap();
        assert_eq!(Some(diagrams.len()), spec.group.count(spec.n, spec.out_axes + spec.in_axes));
        for (d, diagram) in diagrams.iter().enumerate() {
            let one = Factor::from_fn(Storage::F64, (diagrams.len(), 1, 1), |at, _, _| {
                f64::from(u8::from(at == d))
            });
            let w = Equivariant::new(shape(&spec, (1, 1)), spec, one).unwrap();
            let expected = explicit(diagram, &spec);
            assert_eq!(w.to_dense_f64(), expected, "{spec:?} {diagram:?}");
            let (m, n) = w.shape();
            let (x, g) = (gaussian(3, n, 1), gaussian(3, m, 2));
            let close = |a: Array2<f64>, b: Array2<f64>| norm(&(&a - &b)) <= 1e-12 * (1.0 + norm(&b));
            assert!(close(w.matmul(&x).unwrap(), x.dot(&expected.t())), "{spec:?} {diagram:?}");
            assert!(
                close(w.matmul_transpose(&g).unwrap(), g.dot(&expected)),
                "{spec:?} {diagram:?} transposed"
            );
        }
    }
}

#[test]
fn channels_are_mixed_by_the_blocks_of_each_diagram() {
    for spec in specs().into_iter().step_by(3) {
        for channels in [(1, 3), (2, 1), (5, 4), (40, 35)] {
            if shape(&spec, channels).0 * shape(&spec, channels).1 > 1 << 20 {
                continue;
            }
            let w = member(&spec, channels, Storage::F64, 3);
            let lambda = &w.factor_numbers::<f64>()[0];
            let expected = w
                .diagrams()
                .iter()
                .zip(lambda.outer_iter())
                .fold(Array2::<f64>::zeros(w.shape()), |sum, (diagram, lambda)| {
                    sum + kron(&explicit(diagram, &spec), &lambda.to_owned())
                });
            assert!(difference(&w.to_dense_f64(), &expected) < 1e-13, "{spec:?} {channels:?}");
            let x = gaussian(5, w.shape().1, 4);
            assert!(
                difference(&w.matmul(&x).unwrap(), &x.dot(&expected.t())) < 1e-12,
                "{spec:?} {channels:?}"
            );
            let y = gaussian(5, w.shape().0, 5);
            let back = w.matmul_transpose(&y).unwrap();
            assert!(difference(&back, &y.dot(&expected)) < 1e-12, "{spec:?} {channels:?}");
        }
    }
}

#[test]
fn members_commute_with_their_group() {
    for spec in specs() {
        let w = member(&spec, (2, 1), Storage::F64, 5);
        for seed in 0..3 {
            let error = commutator(&w, &element(spec.group, spec.n, seed));
            assert!(error < 1e-10, "{spec:?}: {error:e}");
        }
    }
}

#[test]
fn sign_diagrams_do_not_commute_with_reflections() {
    for (n, axes) in [(2, (1, 1)), (3, (1, 2)), (3, (2, 1)), (4, (2, 2)), (2, (2, 2)), (3, (0, 3))] {
        let spec = spec(EquivariantGroup::SpecialOrthogonal, n, axes);
        let diagrams = spec.group.diagrams(n, axes.1, axes.0).unwrap();
        let signed: Vec<usize> = (0..diagrams.len()).filter(|d| !diagrams[*d].free().is_empty()).collect();
        assert!(!signed.is_empty());
        for d in signed {
            let one = Factor::from_fn(Storage::F64, (diagrams.len(), 1, 1), |at, _, _| {
                f64::from(u8::from(at == d))
            });
            let w = Equivariant::new(shape(&spec, (1, 1)), spec, one).unwrap();
            assert!(commutator(&w, &orthogonal(n, 7, 1.0)) < 1e-10);
            let error = commutator(&w, &orthogonal(n, 7, -1.0));
            assert!(error > 1e-3, "{spec:?}: {error:e}");
        }
    }
}

#[test]
fn there_are_as_many_matchings_and_partitions_as_theory_says() {
    use EquivariantGroup::*;
    for (axes, expected) in [(0, 1), (1, 0), (2, 1), (3, 0), (4, 3), (6, 15), (8, 105), (10, 945)] {
        assert_eq!((Orthogonal.count(9, axes), Symplectic.count(8, axes)), (Some(expected), Some(expected)));
    }
    // Bell's numbers, then Stirling's: S(4, 1) + S(4, 2) + S(4, 3) = 14.
    for (axes, bell) in [1, 1, 2, 5, 15, 52, 203, 877, 4140].into_iter().enumerate() {
        assert_eq!(Symmetric.count(axes.max(1), axes), Some(bell));
    }
    assert_eq!(
        (Symmetric.count(3, 4), Symmetric.count(1, 9), Symmetric.count(2, 5)),
        (Some(14), Some(1), Some(16))
    );
    // SO(3) between a vector and an antisymmetric pair: the cross product, beside no matching.
    assert_eq!((SpecialOrthogonal.count(3, 3), SpecialOrthogonal.count(3, 5)), (Some(1), Some(10)));
    assert_eq!((SpecialOrthogonal.count(2, 2), SpecialOrthogonal.count(4, 4)), (Some(2), Some(4)));
    assert_eq!((Symmetric.count(60, 60), Orthogonal.count(3, 1 << 40)), (None, None));
    for (group, n, l, k) in
        [(Symmetric, 4, 2, 2), (Orthogonal, 3, 3, 3), (SpecialOrthogonal, 3, 3, 2), (Symplectic, 4, 2, 4)]
    {
        let diagrams = group.diagrams(n, l, k).unwrap();
        assert!((0..diagrams.len()).all(|a| (0..a).all(|b| diagrams[a] != diagrams[b])));
    }
}

#[test]
fn inner_products_have_the_closed_form() {
    for spec in specs() {
        let diagrams = spec.group.diagrams(spec.n, spec.out_axes, spec.in_axes).unwrap();
        let dense: Vec<_> = diagrams.iter().map(|diagram| explicit(diagram, &spec)).collect();
        for (a, one) in diagrams.iter().enumerate() {
            for (b, other) in diagrams.iter().enumerate() {
                let expected = (&dense[a] * &dense[b]).sum();
                assert_eq!(one.inner(other), expected, "{spec:?} {one:?} {other:?}");
            }
        }
    }
}

/// The dimension of the span of all diagrams.
fn dimension(spec: &EquivariantSpec) -> usize {
    let diagrams = spec.group.diagrams(spec.n, spec.out_axes, spec.in_axes).unwrap();
    let gram =
        Array2::from_shape_fn((diagrams.len(), diagrams.len()), |(a, b)| diagrams[a].inner(&diagrams[b]));
    let values = linalg::eigh(&gram, linalg::Threads::ONE).unwrap().values;
    values.iter().filter(|v| **v > 1e-9 * values[0]).count()
}

#[test]
fn diagrams_are_independent_where_the_size_suffices() {
    for spec in specs() {
        let axes = spec.out_axes + spec.in_axes;
        let (count, rank) = (spec.group.count(spec.n, axes).unwrap(), dimension(&spec));
        let independent = match spec.group {
            EquivariantGroup::Symmetric => true,
            EquivariantGroup::Orthogonal => 2 * spec.n >= axes,
            EquivariantGroup::Symplectic => spec.n >= axes,
            EquivariantGroup::SpecialOrthogonal => spec.n > axes,
        };
        assert!(rank <= count && (!independent || rank == count), "{spec:?}: {rank} of {count}");
    }
    // Where it does not: known dimensions, of O(2) between six vectors and of Sp(2) = SL(2), Catalan's numbers.
    assert_eq!(dimension(&spec(EquivariantGroup::Orthogonal, 2, (3, 3))), 10);
    assert_eq!(dimension(&spec(EquivariantGroup::Symplectic, 2, (2, 2))), 2);
    assert_eq!(dimension(&spec(EquivariantGroup::Symplectic, 2, (3, 3))), 5);
    assert_eq!(dimension(&spec(EquivariantGroup::SpecialOrthogonal, 3, (2, 2))), 3);
}

#[test]
fn projections_return_members_and_are_orthogonal_and_equivariant() {
    for spec in specs() {
        let channels = (2, 3);
        let planted = member(&spec, channels, Storage::F64, 6).to_dense_f64();
        let project =
            |w: &Array2<f64>| Equivariant::project(w, &spec, &Objective::Frobenius, &exactly()).unwrap();
        let again = project(&planted);
        assert!(again.report.relative_error < 1e-10, "{spec:?}: {}", again.report.relative_error);
        assert_eq!(again.report.guarantee, Guarantee::GlobalOptimum);
        let w = gaussian(planted.nrows(), planted.ncols(), 7);
        let found = project(&w).matrix;
        let residual = &w - &found.to_dense_f64();
        for seed in 0..3 {
            let other = member(&spec, channels, Storage::F64, seed).to_dense_f64();
            let cosine = (&residual * &other).sum() / (norm(&w) * norm(&other));
            assert!(cosine.abs() < 1e-10, "{spec:?}: {cosine:e}");
        }
        assert!(commutator(&found, &element(spec.group, spec.n, 3)) < 1e-9, "{spec:?}");
    }
}

/// The projection is the mean over the group: exactly, for the 24 permutations of four elements.
#[test]
fn projecting_is_averaging_over_the_group() {
    let spec = spec(EquivariantGroup::Symmetric, 4, (2, 2));
    let w = gaussian(16, 16, 8);
    let mut orders = vec![Vec::new()];
    for _ in 0..4 {
        orders = orders
            .into_iter()
            .flat_map(|o: Vec<usize>| {
                (0..4).filter(|v| !o.contains(v)).map(|v| [&o[..], &[v]].concat()).collect::<Vec<_>>()
            })
            .collect();
    }
    assert_eq!(orders.len(), 24);
    let mut mean = Array2::<f64>::zeros((16, 16));
    for order in orders {
        let g = Array2::from_shape_fn((4, 4), |(i, j)| f64::from(u8::from(order[i] == j)));
        let g = power(&g, 2);
        mean += &(g.t().dot(&w).dot(&g) / 24.0);
    }
    let found = Equivariant::project(&w, &spec, &Objective::Frobenius, &exactly()).unwrap().matrix;
    assert!(difference(&found.to_dense_f64(), &mean) < 1e-12);
}

#[test]
fn activations_lower_the_weighted_error_to_its_optimum() {
    for (group, n, axes) in [
        (EquivariantGroup::Symmetric, 3, (2, 1)),
        (EquivariantGroup::Orthogonal, 3, (2, 2)),
        (EquivariantGroup::Orthogonal, 2, (3, 3)),
        (EquivariantGroup::SpecialOrthogonal, 3, (2, 1)),
        (EquivariantGroup::Symplectic, 4, (2, 2)),
    ] {
        let spec = spec(group, n, axes);
        let (m, k) = shape(&spec, (2, 2));
        let (w, gram) = (gaussian(m, k, 9), correlated_gram(k, 10));
        let objective = Objective::Activations(&gram);
        let plain = Equivariant::project(&w, &spec, &Objective::Frobenius, &exactly()).unwrap().matrix;
        let aware = Equivariant::project(&w, &spec, &objective, &exactly()).unwrap();
        assert!(common::falls(&aware.report.history));
        let (a, b) = (weighted_energy(&w, &aware.matrix, &gram), weighted_energy(&w, &plain, &gram));
        assert!(a < b, "{spec:?}: {a} against {b}");
        let seen = (&w - &aware.matrix.to_dense_f64()).dot(gram.second_moment());
        let other = member(&spec, (2, 2), Storage::F64, 11).to_dense_f64();
        let cosine = (&seen * &other).sum() / (norm(&w.dot(gram.second_moment())) * norm(&other));
        assert!(cosine.abs() < 1e-6, "{spec:?}: {cosine:e}");
    }
}

#[test]
fn gradients_are_those_of_the_dense_matrix() {
    for spec in specs() {
        let diagrams = spec.group.diagrams(spec.n, spec.out_axes, spec.in_axes).unwrap();
        let entries: Vec<_> = diagrams.iter().map(|diagram| explicit(diagram, &spec)).collect();
        for channels in [(1, 1), (2, 3)] {
            let w = member(&spec, channels, Storage::F64, 12);
            let (x, dy) = (gaussian(4, w.shape().1, 13), gaussian(4, w.shape().0, 14));
            let vjp = w.vjp(&x, &dy, &mut Exec::new()).unwrap();
            let dense = dy.t().dot(&x);
            let lambda = Array3::from_shape_fn((w.diagrams().len(), channels.0, channels.1), |(d, o, i)| {
                entries[d]
                    .indexed_iter()
                    .map(|((r, c), v)| v * dense[[r * channels.0 + o, c * channels.1 + i]])
                    .sum::<f64>()
            });
            let error: f64 = (&vjp.factors[0] - &lambda).iter().map(|v| v * v).sum();
            assert!(error.sqrt() <= 1e-11 * norm(&dense), "{spec:?} {channels:?}");
            assert!(norm(&(&vjp.input - &dy.dot(&w.to_dense_f64()))) <= 1e-11 * (1.0 + norm(&vjp.input)));
        }
    }
}

#[test]
fn storages_updates_strides_and_files_are_as_for_every_structure() {
    fn check<T: Scalar>(w: &dyn StructuredMatrix, tolerance: f64) {
        let (dense, mut exec) = (w.to_dense_f64(), Exec::<T>::new());
        for batch in [0, 1, 2, 7] {
            let x = gaussian_of::<T>(batch, w.shape().1, 1);
            let expected = x.mapv(T::widen).dot(&dense.t());
            let scale = 1e-300 + norm(&dense) * norm(&x);
            let mut y = Array2::from_elem((w.shape().0, batch), T::narrow(f64::NAN));
            w.apply_into(&x, &mut y.view_mut().reversed_axes(), Update::Overwrite, &mut exec).unwrap();
            assert!(norm(&(y.t().mapv(T::widen) - &expected)) <= tolerance * scale, "{w:?} batch {batch}");
            w.apply_into(&x, &mut y.view_mut().reversed_axes(), Update::Accumulate, &mut exec).unwrap();
            assert!(
                norm(&(y.t().mapv(T::widen) - &expected * 2.0)) <= tolerance * scale,
                "{w:?} batch {batch}"
            );
            for threads in [2, 3] {
                let mut other = Array2::zeros((batch, w.shape().0));
                w.apply_into(&x, &mut other, Update::Overwrite, &mut Exec::threads(threads)).unwrap();
                let mut one = Array2::zeros((batch, w.shape().0));
                w.apply_into(&x, &mut one, Update::Overwrite, &mut exec).unwrap();
                assert_eq!(one, other);
            }
        }
        assert!(w.dot_test::<T>(9).unwrap() <= tolerance, "{w:?}");
    }
    for (i, spec) in specs().iter().enumerate() {
        for channels in [(1, 1), (3, 2)] {
            for storage in [Storage::ALL[i % 6], Storage::F64] {
                let w = member(spec, channels, storage, i as u64);
                check::<f64>(&w, 1e-12);
                check::<f32>(&w, 1e-5);
                let again = structmat::registry::load(w.parts().into_owned()).unwrap();
                assert_eq!((again.to_dense_f64(), again.n_params()), (w.to_dense_f64(), w.n_params()));
            }
        }
    }
}

/// The count of the plan that products follow: of the map from five axes to five, at n = 6, no diagram takes more than 2 n⁵ of n¹⁰.
#[test]
fn a_diagram_between_five_axes_and_five_reads_and_writes_each_tensor_once() {
    let spec = spec(EquivariantGroup::Orthogonal, 6, (5, 5));
    let w = member(&spec, (1, 1), Storage::F64, 15);
    let tensor = 6u64.pow(5);
    assert_eq!((w.n_params(), w.shape()), (945, (7776, 7776)));
    let accesses: Vec<u64> = (0..945).map(|d| w.accesses(d).unwrap()).collect();
    assert_eq!(accesses.iter().max(), Some(&(2 * tensor)));
    assert!(w.accesses(945).is_none());
    // All diagrams together, halves shared and mixing included: a sixth of what they may take alone, a fiftieth of the dense product.
    assert!(w.flops(1) < 945 * 2 * tensor / 6 && w.flops(1) < 2 * tensor * tensor / 50, "{}", w.flops(1));
    // And it is the right product, by the entries of the diagrams.
    let x = gaussian(1, 7776, 16);
    let mut expected = Array2::<f64>::zeros((1, 7776));
    let lambda = &w.factor_numbers::<f64>()[0];
    for (d, diagram) in w.diagrams().iter().enumerate() {
        diagram.for_each(&mut |i, j, v| expected[[0, i]] += lambda[[d, 0, 0]] * v * x[[0, j]]);
    }
    assert!(difference(&w.matmul(&x).unwrap(), &expected) < 1e-12);
}

#[test]
fn requests_say_what_is_wrong() {
    let entry = family("equivariant").unwrap();
    let ask = |shape: (usize, usize), parameters: &str| {
        let request = parameters.split_whitespace().filter_map(|p| p.split_once('='));
        let request = request.fold(Request::new(), |r, (k, v)| r.with(k, v));
        entry.random(shape, &request, Storage::F32, 0)
    };
    let w = ask((9, 27), "group=o n=3 out_axes=2 in_axes=2").unwrap();
    assert_eq!((w.shape(), w.n_params()), ((9, 27), 3 * 3)); // 1 x 3 channels
    assert_eq!(ask((8, 4), "group=so n=2 out_axes=3 in_axes=1").unwrap().n_params(), 3 * 2 + 6 * 2);
    for (shape, parameters, words) in [
        ((9, 9), "", "a value, or a budget"),
        ((9, 9), "n=0", "at least 1"),
        ((9, 9), "n=2", "divides 9"),
        ((9, 9), "n=3 out_axes=3", "divides 9"),
        ((9, 9), "group=sp n=3", "even"),
        ((8, 8), "group=o n=2 out_axes=2 in_axes=1", "even"),
        ((8, 8), "group=u n=2", "s, o, so or sp"),
        ((8, 8), "n=2 out_axes=13", "0 to 12"),
        ((1, 1), "n=1 out_axes=12 in_axes=12", "at most 12"),
        ((4096, 4096), "group=o n=2 out_axes=6 in_axes=6", "4096"),
        ((81, 6561), "group=so n=9 out_axes=2 in_axes=8", "at most 8"),
        ((9, 9), "n=18446744073709551615 in_axes=2", "divides"),
        ((9, 9), "n=many", "many"),
    ] {
        let error = ask(shape, parameters).unwrap_err();
        assert!(matches!(error, Error::Parameter { .. }), "{parameters}: {error}");
        assert!(error.to_string().contains(words), "{parameters}: {error}");
    }
    let small = Request::new().with("n", 3).budget(Budget::Params(1));
    assert!(matches!(entry.random((9, 9), &small, Storage::F32, 0), Err(Error::Budget { .. })));
    // A budget alone: the largest member between vectors of any size, in the end the dense matrix.
    for (ratio, n, params) in
        [(0.1, 8, 2 * 2 * 3), (0.3, 4, 2 * 4 * 6), (0.5, 2, 2 * 8 * 12), (1.0, 1, 16 * 24)]
    {
        let request = Request::new().budget(Budget::Ratio(ratio));
        let spec = Equivariant::spec((16, 24), &request).unwrap();
        let w = Equivariant::random((16, 24), &spec, Storage::F32, 1).unwrap();
        assert_eq!((spec.n, w.n_params()), (n, params), "{ratio}");
    }
    let lambda = |blocks| Factor::from_fn(Storage::F32, (blocks, 1, 1), |_, _, _| 1.0);
    let two = spec(EquivariantGroup::Symmetric, 3, (1, 1));
    assert!(matches!(Equivariant::new((3, 3), two, lambda(1)), Err(Error::Record { .. })));
    assert!(matches!(Equivariant::new((6, 3), two, lambda(2)), Err(Error::Record { .. })));
    assert!(matches!(Equivariant::new((4, 3), two, lambda(2)), Err(Error::Parameter { .. })));
    assert!(EquivariantGroup::Symmetric.diagrams(0, 1, 1).is_err());
    assert!(EquivariantGroup::Orthogonal.diagrams(3, usize::MAX, 1).is_err());
}
