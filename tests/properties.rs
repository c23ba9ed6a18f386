//! Random shapes, sizes, storages and inputs: what must hold for all of them.

mod common;

use common::{Boxed, gaussian, gaussian_of, norm};
use proptest::prelude::*;
use structmat::Error;
use structmat::io::{Checkpoint, Writer};
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::registry::FAMILIES;

/// A member of any family, or nothing where the family has none so small.
fn any_member(family: usize, shape: (usize, usize), ratio: f64, storage: usize, seed: u64) -> Option<Boxed> {
    let (entry, storage) = (&FAMILIES[family % FAMILIES.len()], Storage::ALL[storage % 6]);
    match entry.random(shape, &Request::new().budget(Budget::Ratio(ratio)), storage, seed) {
        Ok(matrix) => Some(matrix),
        Err(Error::Budget { .. }) => None,
        Err(error) => panic!("{} at {shape:?}: {error}", entry.name),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_equal_the_dense_formula(
        family in 0usize..64, m in 1usize..70, n in 1usize..70, batch in 0usize..40, ratio in 0.05f64..2.0, storage in 0usize..6, seed: u64,
    ) {
        let Some(w) = any_member(family, (m, n), ratio, storage, seed) else { return Ok(()) };
        let dense = w.to_dense_f64();
        let (x, g) = (gaussian(batch, n, seed ^ 1), gaussian(batch, m, seed ^ 2));
        let scale = 1e-300 + norm(&dense);
        let close = |a: Array2<f64>, b: Array2<f64>, x: &Array2<f64>, tolerance: f64| norm(&(a - b)) <= tolerance * scale * norm(x);
        prop_assert!(close(w.matmul(&x).unwrap(), x.dot(&dense.t()), &x, 1e-13), "{w:?}");
        prop_assert!(close(w.matmul_transpose(&g).unwrap(), g.dot(&dense), &g, 1e-13), "{w:?}");
        let single = gaussian_of::<f32>(batch, n, seed ^ 1);
        let wide = single.mapv(f64::from);
        prop_assert!(close(w.matmul(&single).unwrap().mapv(f64::from), wide.dot(&dense.t()), &wide, 2e-6), "{w:?}");
    }

    #[test]
    fn files_hold_what_was_written(family in 0usize..64, m in 1usize..40, n in 1usize..40, ratio in 0.05f64..2.0, storage in 0usize..6, seed: u64) {
        let Some(w) = any_member(family, (m, n), ratio, storage, seed) else { return Ok(()) };
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new();
        writer.structured("w", w.as_ref()).unwrap();
        writer.write(folder.path().join("f")).unwrap();
        let again = Checkpoint::open(folder.path().join("f")).unwrap().load("w").unwrap();
        prop_assert_eq!(again.to_dense_f64(), w.to_dense_f64());
        prop_assert_eq!(again.storage_bytes(), w.storage_bytes());
    }

    #[test]
    fn arbitrary_bytes_are_no_file(bytes in prop::collection::vec(any::<u8>(), 0..200), header in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut file = Vec::new();
        if header {
            file.extend((bytes.len() as u64).to_le_bytes());
        }
        file.extend(&bytes);
        std::fs::write(&path, file).unwrap();
        prop_assert!(Checkpoint::open(&path).is_err());
    }

    #[test]
    fn projections_of_any_shape_are_finite_and_within_the_budget(family in 0usize..64, m in 1usize..24, n in 1usize..24, ratio in 0.2f64..1.2, seed: u64) {
        let entry = &FAMILIES[family % FAMILIES.len()];
        let w = gaussian(m, n, seed);
        let options = Options { max_iterations: Some(5), ..Options::default() };
        match entry.project(&w, &Request::new().budget(Budget::Ratio(ratio)), &Objective::Frobenius, &options) {
            Ok(p) => {
                prop_assert!(p.report.relative_error <= 1.0 + 1e-5, "{}: {}", entry.name, p.report.relative_error);
                prop_assert!(p.report.ratio <= ratio + 1e-12, "{}: {}", entry.name, p.report.ratio);
            }
            Err(Error::Budget { .. }) => (),
            Err(error) => panic!("{} at {m}x{n}, {ratio}: {error}", entry.name),
        }
    }
}
