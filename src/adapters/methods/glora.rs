use super::{dense, low_rank, row};
use crate::adapters::{Adapter, BiasEdit, Boxed, Edit, check_base};
use crate::compose::{Identity, Sum};
use crate::error::{Error, Result};
use crate::matrix::{Apply, StructuredMatrix};
use crate::storage::{Factor, Storage};
use ndarray::{Array1, Array2};

/// One support tensor of [`Glora`].
#[derive(Debug, Clone, PartialEq)]
pub enum Path {
    /// A product of two matrices.
    Product(Array2<f64>, Array2<f64>),
    /// Numbers, repeated along axes of length 1.
    Plain(Array2<f64>),
}

impl Path {
    /// The entry at `(i, j)`, and the shape.
    fn full(&self) -> Array2<f64> {
        match self {
            Path::Product(b, a) => b.dot(a),
            Path::Plain(x) => x.clone(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Path::Product(b, a) => b.len() + a.len(),
            Path::Plain(x) => x.len(),
        }
    }

    fn dim(&self) -> Option<(usize, usize)> {
        match self {
            Path::Product(b, a) => (b.ncols() == a.nrows()).then_some((b.nrows(), a.ncols())),
            Path::Plain(x) => Some(x.dim()),
        }
    }

    /// The vector of `len` entries, where this is one.
    fn vector(&self, what: &'static str, len: usize) -> Result<Array1<f64>> {
        let full = self.full();
        let flat: Array1<f64> = full.iter().copied().collect();
        match flat.len() {
            1 => Ok(Array1::from_elem(len, flat[0])),
            n if n == len => Ok(flat),
            n => Err(Error::shape(what, &[len], &[n])),
        }
    }
}

/// GLoRA: $W' = W + W \circ A + B$ and $b' = b + b \circ D + E + W C$, each support tensor low-rank, a vector or a constant.
///
/// A column or constant `A` costs `out` per vector, a low-rank one is multiplied out when the adapter is bound ([`Hadamard`](super::Hadamard)).
///
/// Source: A. Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning", 2023.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{Glora, Path}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0]])?;
/// let constant = |v: f64| Path::Plain(array![[v]]);
/// let glora = Glora::new((1, 2), [constant(1.0), constant(3.0), constant(0.0), constant(0.0), constant(0.5)])?;
/// assert_eq!(glora.delta(&base)?, array![[4.0, 5.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Glora {
    shape: (usize, usize),
    paths: [Path; 5],
}

impl Glora {
    /// From `A`, `B` (`out x in`, `out x 1` or `1 x 1`), `C` (`in` or 1 entries), `D` and `E` (`out` or 1 entries).
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn new((m, n): (usize, usize), paths: [Path; 5]) -> Result<Self> {
        for path in &paths[..2] {
            let dim = path.dim().unwrap_or((0, 0));
            if !(dim == (m, n) || dim == (m, 1) || dim == (1, 1)) {
                return Err(Error::shape("GLoRA support of the weight", &[m, n], &[dim.0, dim.1]));
            }
        }
        for (path, len) in paths[2..].iter().zip([n, m, m]) {
            if path.dim().is_none() {
                return Err(Error::shape("GLoRA support of the bias", &[len], &[0]));
            }
            path.vector("GLoRA support of the bias", len)?;
        }
        Ok(Self { shape: (m, n), paths })
    }
}

impl Adapter for Glora {
    fn kind(&self) -> &'static str {
        "glora"
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn n_params(&self) -> usize {
        self.paths.iter().map(Path::len).sum()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape)?;
        let ((m, n), [a, b, c, d, e]) = (self.shape, &self.paths);
        let mut edit = Edit::of((m, n));
        let mut terms: Vec<Boxed> = Vec::new();
        if a.dim() == Some((m, n)) && n > 1 {
            terms.push(dense(&(a.full() * base.to_dense_f64()))?);
        } else {
            let scales = a.vector("GLoRA support A", m)?.mapv(|v| 1.0 + v);
            edit = edit.with_left(Box::new(Identity::diagonal(row(scales))?))?;
        }
        let factor = |a: &Array2<f64>| Factor::from_matrix(Storage::F32, a);
        terms.push(match b {
            Path::Product(left, right) if b.dim() == Some((m, n)) => {
                low_rank(factor(left), &vec![1.0; left.ncols()], factor(right))?
            }
            _ if b.dim() == Some((m, n)) && n > 1 => dense(&b.full())?,
            _ => {
                let column = b.vector("GLoRA support B", m)?.insert_axis(ndarray::Axis(1));
                low_rank(factor(&column), &[1.0], factor(&Array2::ones((1, n))))?
            }
        });
        let map = Identity::diagonal(row(d.vector("GLoRA support D", m)?.mapv(|v| 1.0 + v)))?;
        let add = e.vector("GLoRA support E", m)? + base.matvec(&c.vector("GLoRA support C", n)?)?;
        let delta = if terms.len() == 1 { terms.remove(0) } else { Box::new(Sum::new(terms)?) };
        // A layer without a bias gets none where nothing is added.
        let add = add.iter().any(|v| *v != 0.0).then_some(add);
        edit.with_delta(delta)?.with_bias(BiasEdit { map: Some(Box::new(map)), add })
    }
}
