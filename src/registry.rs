//! Every structure by name: one line each. Files, tools, benches and the conformance suite go through here.

use crate::compose;
use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use crate::parts::{MAX_FEATURES, Parts};
use crate::projection::{Family, Objective, Options, Projected, Request};
use crate::storage::Storage;
use crate::structures::*;
use ndarray::ArrayRef2;

type Boxed = Box<dyn StructuredMatrix>;
type ProjectFn = fn(&ArrayRef2<f64>, &Request, &Objective<'_>, &Options<'_>) -> Result<Projected<Boxed>>;
type RandomFn = fn((usize, usize), &Request, Storage, u64) -> Result<Boxed>;

/// A family, with its types erased.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The structure's name.
    pub name: &'static str,
    /// The parameters of a [`Request`] that it reads, with one line of help each.
    pub parameters: &'static [(&'static str, &'static str)],
    project: ProjectFn,
    random: RandomFn,
    load: fn(Parts<'static>) -> Result<Boxed>,
}

impl Entry {
    /// The entry of a family; its line in [`FAMILIES`].
    pub const fn of<F: Family>() -> Self {
        Self {
            name: F::NAME,
            parameters: F::PARAMETERS,
            project: |w, request, objective, options| {
                request.check_names(F::NAME, F::PARAMETERS)?;
                let spec = F::spec(w.dim(), &request.clone().storage(options.storage))?;
                let Projected { matrix, report } = F::project(w, &spec, objective, options)?;
                Ok(Projected { matrix: Box::new(matrix) as Boxed, report })
            },
            random: |shape, request, storage, seed| {
                request.check_names(F::NAME, F::PARAMETERS)?;
                let spec = F::spec(shape, &request.clone().storage(storage))?;
                Ok(Box::new(F::random(shape, &spec, storage, seed)?))
            },
            load: |parts| Ok(Box::new(F::from_parts(parts)?)),
        }
    }

    /// Projects `w` onto the largest member that the request allows.
    ///
    /// # Errors
    /// Those of [`Family::spec`] and [`Family::project`], and [`Error::Unknown`] for a parameter the family does not have.
    pub fn project(
        &self,
        w: &ArrayRef2<f64>,
        request: &Request,
        objective: &Objective<'_>,
        options: &Options<'_>,
    ) -> Result<Projected<Boxed>> {
        (self.project)(w, request, objective, options)
    }

    /// A random member.
    ///
    /// # Errors
    /// Those of [`Family::spec`] and [`Family::random`].
    pub fn random(
        &self,
        shape: (usize, usize),
        request: &Request,
        storage: Storage,
        seed: u64,
    ) -> Result<Boxed> {
        (self.random)(shape, request, storage, seed)
    }
}

/// The families, in the order of tables and reports.
pub const FAMILIES: &[Entry] = &[
    Entry::of::<Dense>(),
    Entry::of::<LowRank>(),
    Entry::of::<BlockDiagonal>(),
    Entry::of::<BlockLowRank>(),
    Entry::of::<Monarch>(),
    Entry::of::<Blast>(),
    Entry::of::<Gblr>(),
    Entry::of::<Circulant>(),
    Entry::of::<CirculantDiagonal>(),
    Entry::of::<BlockCirculant>(),
    Entry::of::<Toeplitz>(),
    Entry::of::<Fourier>(),
    Entry::of::<Butterfly>(),
    Entry::of::<Kaleidoscope>(),
    Entry::of::<Kronecker>(),
    Entry::of::<TensorTrain>(),
    Entry::of::<Cur>(),
    Entry::of::<Sparse>(),
    Entry::of::<ColumnSparse>(),
    Entry::of::<SparseLowRank>(),
    Entry::of::<LowRankColumns>(),
    Entry::of::<RemappedLowRank>(),
    Entry::of::<SharedBlocks>(),
    Entry::of::<Equivariant>(),
];

/// The family called `name`.
///
/// # Errors
/// [`Error::Unknown`] with the names that exist.
pub fn family(name: &str) -> Result<&'static Entry> {
    FAMILIES.iter().find(|entry| entry.name == name).ok_or_else(|| Error::Unknown {
        kind: "structure",
        name: name.to_owned(),
        expected: FAMILIES.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", "),
    })
}

/// Builds a structured matrix, a composition included, from its parts.
///
/// # Errors
/// [`Error::Unknown`] for an unknown structure, [`Error::Record`] for parts that do not fit together.
pub fn load(parts: Parts<'static>) -> Result<Boxed> {
    let (m, n) = parts.shape();
    if m > MAX_FEATURES || n > MAX_FEATURES {
        return Err(parts.error(format!("shape {m} x {n}: expected at most {MAX_FEATURES} features")));
    }
    match compose::loader(parts.structure()) {
        Some(load) => load(parts),
        None => (family(parts.structure())?.load)(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Apply, Op};
    use crate::projection::Budget;
    use crate::storage::Factor;
    use ndarray::Array2;

    /// Constructors take factors from anywhere: from numbers, from a file, from the accessors of another family, laid out for it.
    #[test]
    fn factors_in_any_layout_are_taken() {
        let layouts: [&dyn Fn(&Factor) -> Factor; 4] = [
            &|f| f.to_rows().into_owned(),
            &|f| f.clone().packed_forward(),
            &|f| f.clone().packed(Op::Forward, 1),
            &|f| f.clone().packed(Op::Transpose, f.blocks()),
        ];
        for entry in FAMILIES {
            for (shape, storage) in
                [((96, 80), Storage::F32), ((64, 128), Storage::Bf16), ((80, 96), Storage::Int8)]
            {
                let request = [0.5, 1.0, 2.0, 4.0].map(|ratio| Request::new().budget(Budget::Ratio(ratio)));
                let random = |request| entry.random(shape, request, storage, 7).ok();
                let Some(matrix) = request.iter().find_map(random) else {
                    panic!("{}: no member", entry.name)
                };
                let dense = matrix.to_dense_f64();
                let x = Array2::from_shape_fn((5, shape.1), |(i, j)| ((3 * i + 7 * j) % 11) as f64 - 5.0);
                let g = Array2::from_shape_fn((5, shape.0), |(i, j)| ((5 * i + 3 * j) % 13) as f64 - 6.0);
                let (y, h) = (x.dot(&dense.t()), g.dot(&dense));
                for (k, layout) in layouts.iter().enumerate() {
                    let same = load(matrix.parts().map_factors(&mut |factor| layout(factor))).unwrap();
                    assert_eq!(same.to_dense_f64(), dense, "{} {storage} {k}", entry.name);
                    let close = |a: &Array2<f64>, b: &Array2<f64>| (a - b).iter().all(|e| e.abs() < 1e-9);
                    assert!(close(&same.matmul(&x).unwrap(), &y), "{} {storage} {k}", entry.name);
                    assert!(close(&same.matmul_transpose(&g).unwrap(), &h), "{} {storage} {k}", entry.name);
                }
            }
        }
    }
}
