//! What is timed: members of the families, and the dense products they are compared to.

use crate::{dense, machine::copies};
use std::collections::BTreeMap;
use std::rc::Rc;
use structmat::Result;
use structmat::ndarray::{Array2, ArrayView2, linalg::general_mat_mul};
use structmat::prelude::*;
use structmat::registry;

/// The conditions of a cell.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    pub shape: (usize, usize),
    pub batch: usize,
    pub threads: usize,
    pub cold: bool,
}

/// The exact answer for an input.
type Expected = Box<dyn Fn(&Array2<f32>) -> Array2<f64>>;
/// Copy `k` of the matrix times an input, into the output.
type Product = Box<dyn FnMut(usize, &Array2<f32>, &mut Array2<f32>) -> Result<()>>;

/// Something that multiplies: copies of a structured matrix, or somebody else's dense product.
pub struct Candidate {
    pub name: String,
    pub storage: Storage,
    pub params: usize,
    /// Bytes of one copy.
    pub bytes: usize,
    /// Of one batch row.
    pub flops: u64,
    pub dense: bool,
    pub copies: usize,
    /// Blocks, rows and columns of each factor.
    pub factors: BTreeMap<String, (usize, usize, usize)>,
    /// The answer to check against, given the input.
    pub expected: Expected,
    pub run: Product,
}

impl Candidate {
    /// Bytes of all copies.
    pub fn memory(&self) -> usize {
        self.copies.saturating_mul(self.bytes)
    }
}

/// A structured matrix; it is checked against its own dense form, decoded from its storage.
pub fn structured(
    name: &str,
    matrix: Box<dyn StructuredMatrix>,
    storage: Storage,
    at: Conditions,
) -> Result<Candidate> {
    let bytes = matrix.storage_bytes();
    let (params, flops) = (matrix.n_params(), matrix.flops(1));
    let mut factors = BTreeMap::new();
    let parts = matrix.parts();
    for part in std::iter::once(&parts).chain(parts.children()) {
        let prefix = if part.structure() == name { String::new() } else { format!("{}.", part.structure()) };
        factors.extend(part.factors().map(|(name, factor)| (format!("{prefix}{name}"), factor.shape())));
    }
    let copies = copies(bytes, at.threads, at.cold);
    // Clones would share their numbers.
    let more = (1..copies).map(|_| registry::load(parts.unshared())).collect::<Result<Vec<_>>>()?;
    drop(parts);
    let reference = matrix.clone();
    let matrices: Vec<_> = std::iter::once(matrix).chain(more).collect();
    let mut exec = if at.threads == 1 { Exec::new() } else { Exec::threads(at.threads) };
    Ok(Candidate {
        name: name.to_owned(),
        storage,
        params,
        bytes,
        flops,
        dense: false,
        copies,
        factors,
        expected: Box::new(move |x| x.mapv(f64::from).dot(&reference.to_dense_f64().t())),
        run: Box::new(move |k, x, y| matrices[k].apply_into(x, y, Update::Overwrite, &mut exec)),
    })
}

/// The dense products: this crate's in every storage, the `gemm` crate's (faer's), gemmkit's on weights packed beforehand, ndarray's.
pub fn dense_candidates(at: Conditions, storages: &[Storage]) -> Result<Vec<Candidate>> {
    let (m, n) = at.shape;
    let w = Array2::from_shape_fn((m, n), |(i, j)| ((i * 13 + j * 7) % 19) as f32 / 9.0 - 1.0);
    let mut candidates = Vec::new();
    for storage in
        std::iter::once(Storage::F32).chain(storages.iter().copied().filter(|s| *s != Storage::F32))
    {
        let own = Dense::new(&w)?.to_storage(storage)?;
        candidates.push(Candidate { dense: true, ..structured("dense (structmat)", own, storage, at)? });
    }
    let copies = copies(4 * m * n, at.threads, at.cold);
    let reference = Rc::new(w.mapv(f64::from));
    let other = |name: &str, run: Product| {
        let reference = Rc::clone(&reference);
        Candidate {
            name: format!("dense ({name})"),
            storage: Storage::F32,
            params: m * n,
            bytes: 4 * m * n,
            flops: 2 * (m * n) as u64,
            dense: true,
            copies,
            factors: BTreeMap::new(),
            expected: Box::new(move |x| x.mapv(f64::from).dot(&reference.t())),
            run,
        }
    };
    candidates.push(other("gemmkit", gemmkit_product(&w, copies, at)));
    let weights = Rc::new(vec![w; copies]);
    let (for_gemm, threads) = (Rc::clone(&weights), at.threads);
    candidates.push(other(
        "gemm",
        Box::new(move |k, x, y| {
            dense::gemm_crate(&for_gemm[k], x, y, threads);
            Ok(())
        }),
    ));
    candidates.push(other(
        "ndarray",
        Box::new(move |k, x, y| {
            general_mat_mul(1.0, x, &weights[k].t(), 0.0, y);
            Ok(())
        }),
    ));
    Ok(candidates)
}

/// gemmkit: its matrix-vector product at batch 1, else its product with packed weights. The latter writes columns, so bringing them into rows
/// is part of its time.
fn gemmkit_product(w: &Array2<f32>, copies: usize, at: Conditions) -> Product {
    use gemmkit::{MatMut, MatRef, Parallelism, gemm, gemm_packed_b, prepack_rhs};
    fn rows(a: &Array2<f32>) -> &[f32] {
        a.as_slice().expect("row-major")
    }
    let ((m, n), batch) = (at.shape, at.batch);
    let parallelism = if at.threads == 1 { Parallelism::Serial } else { Parallelism::Rayon(at.threads) };
    if batch == 1 {
        let weights = vec![w.clone(); copies];
        return Box::new(move |k, x, y| {
            let (w, x) =
                (MatRef::from_row_major(rows(&weights[k]), m, n), MatRef::from_row_major(rows(x), n, 1));
            let y = MatMut::from_row_major(y.as_slice_mut().expect("row-major"), m, 1);
            gemm(1.0, w, x, 0.0, y, parallelism);
            Ok(())
        });
    }
    let packed: Vec<_> = (0..copies).map(|_| prepack_rhs(MatRef::from_col_major(rows(w), n, m))).collect();
    let mut columns = vec![0.0f32; batch * m];
    Box::new(move |k, x, y| {
        let out = MatMut::from_col_major(&mut columns, batch, m);
        gemm_packed_b(1.0, MatRef::from_row_major(rows(x), batch, n), &packed[k], 0.0, out, parallelism);
        let columns = ArrayView2::from_shape((m, batch), &columns).expect("m x batch");
        y.assign(&columns.t());
        Ok(())
    })
}
