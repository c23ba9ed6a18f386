use super::{core, core_gradient, expect, nearest_core};
use crate::adapters::{Adapter, Edit, check_base};
use crate::error::{Error, Result};
use crate::linalg::{check_finite, qr};
use crate::matrix::StructuredMatrix;
use crate::projection::{Family, Objective, Options};
use crate::storage::Storage;
use crate::structures::{Cur, CurSelection, CurSpec};
use ndarray::{Array2, ArrayRef2, Axis};

/// What stands around the core of a [`Skeleton`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SkeletonBasis {
    /// Columns and rows of the weight: their scale is that of the weight.
    #[default]
    Weight,
    /// Orthonormal bases of the same spaces, by QR: steps of the core are steps of the change, of the same norm.
    Orthonormal,
}

/// PMSS: $D = s\, C\, U R$ with a trained core `U` between columns `C` and rows `R` of the base itself.
///
/// All that is stored is the core, `r²` numbers, and one list of indices per side; columns and rows are read from the base when the adapter is
/// bound. The change has any rank up to `r`, reached exactly wherever its columns lie in the span of `C` and its rows in that of `R`
/// ([`nearest`](Self::nearest)). Cost of a product: that of LoRA, `r (out + in)`.
///
/// Source: Q. Wang et al., "PMSS: Pretrained Matrices Skeleton Selection for LLM Fine-tuning", 2024. Its rule of selection is not published in
/// code; columns and rows are chosen as those of [`Cur`], by pivoted QR of the leading singular vectors by default.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::{Skeleton, SkeletonBasis}};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[4.0f32, 2.0], [2.0, 1.0]])?;
/// let start = Skeleton::new((2, 2), vec![0], vec![0], SkeletonBasis::Weight, 0.5)?;     // U = 0
/// assert_eq!(start.delta(&base)?, array![[0.0, 0.0], [0.0, 0.0]]);
/// let adapter = start.with_core(array![[0.25]])?;                                      // 0.5 * 0.25 * (4, 2)ᵀ (4, 2)
/// assert_eq!(adapter.delta(&base)?, array![[2.0, 1.0], [1.0, 0.5]]);
/// assert_eq!(adapter.n_params(), 1);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Skeleton {
    shape: (usize, usize),
    rows: Vec<usize>,
    cols: Vec<usize>,
    basis: SkeletonBasis,
    scale: f64,
    core: Array2<f64>,
}

impl Skeleton {
    /// Of `out x in` weights, from the rows of `R` and the columns of `C`; the core (columns x rows) starts at zero.
    ///
    /// # Errors
    /// [`Error::Parameter`] for no index, one that is outside of the matrix or twice in its list, more than `min(out, in)` of them, or a scale
    /// that is not a finite number other than 0.
    pub fn new(
        (m, n): (usize, usize),
        rows: Vec<usize>,
        cols: Vec<usize>,
        basis: SkeletonBasis,
        scale: f64,
    ) -> Result<Self> {
        for (name, list, size) in [("rows", &rows, m), ("cols", &cols, n)] {
            let mut sorted = list.clone();
            sorted.sort_unstable();
            let distinct = sorted.windows(2).all(|pair| pair[0] < pair[1]);
            if list.is_empty()
                || list.len() > m.min(n)
                || !distinct
                || sorted.last().is_some_and(|last| *last >= size)
            {
                let expected = format!("1 to {} different ones below {size}", m.min(n));
                return Err(Error::parameter(name, format!("{list:?}"), expected));
            }
        }
        if scale == 0.0 || !scale.is_finite() {
            return Err(Error::parameter("scale", scale, "a finite number other than 0"));
        }
        let core = Array2::zeros((cols.len(), rows.len()));
        Ok(Self { shape: (m, n), rows, cols, basis, scale, core })
    }

    /// The same for `rank` rows and columns of `w` (`out x in`), chosen as those of [`Cur`]; fewer where they would become dependent in double
    /// precision.
    ///
    /// # Errors
    /// Those of [`new`](Self::new) and of [`Family::project`].
    pub fn choose(
        w: &ArrayRef2<f64>,
        rank: usize,
        selection: CurSelection,
        basis: SkeletonBasis,
        scale: f64,
        options: &Options<'_>,
    ) -> Result<Self> {
        let spec = CurSpec { rank, selection, ..CurSpec::default() };
        let options = Options { storage: Storage::F64, ..*options };
        let cur = Cur::project(w, &spec, &Objective::Frobenius, &options)?.matrix;
        let list = |list: &[u32]| list.iter().map(|&i| i as usize).collect();
        Self::new(w.dim(), list(cur.rows()), list(cur.cols()), basis, scale)
    }

    /// The same with another core (columns x rows).
    ///
    /// # Errors
    /// [`Error::Shape`] for one of another shape.
    pub fn with_core(self, core: Array2<f64>) -> Result<Self> {
        expect("core of a skeleton", &core, self.core.dim())?;
        Ok(Self { core, ..self })
    }

    /// The core (columns x rows).
    pub fn core(&self) -> &Array2<f64> {
        &self.core
    }

    /// The rows of the base in `R`, in its order.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The columns of the base in `C`, in its order.
    pub fn cols(&self) -> &[usize] {
        &self.cols
    }

    /// What stands on both sides of the core for this base: `out x columns` and `rows x in`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a base of another shape, [`Error::NonFinite`] for orthonormal bases of NaN or infinities.
    pub fn factors(&self, base: &dyn StructuredMatrix) -> Result<(Array2<f64>, Array2<f64>)> {
        check_base(base, self.shape)?;
        let w = base.to_dense_f64();
        let (c, r) = (w.select(Axis(1), &self.cols), w.select(Axis(0), &self.rows));
        Ok(match self.basis {
            SkeletonBasis::Weight => (c, r),
            SkeletonBasis::Orthonormal => {
                check_finite("base weight", &w)?;
                (qr(&c).q, qr(&r.t()).q.reversed_axes())
            }
        })
    }

    /// The same with the core for which the change of `base` is nearest to `delta`; equal to it where `delta` lies in the span.
    ///
    /// # Errors
    /// Those of [`factors`](Self::factors) and [`nearest_core`].
    pub fn nearest(self, base: &dyn StructuredMatrix, delta: &ArrayRef2<f64>) -> Result<Self> {
        let (c, r) = self.factors(base)?;
        let core = nearest_core(&c, &r, self.scale, delta)?;
        self.with_core(core)
    }

    /// The gradient of the core, $s\, C^T G R^T$ for the gradient `G = dyᵀ x` of the weight, which is not made.
    ///
    /// # Errors
    /// Those of [`factors`](Self::factors), [`Error::Shape`] when inputs or gradients do not fit.
    pub fn gradient(
        &self,
        base: &dyn StructuredMatrix,
        x: &ArrayRef2<f64>,
        dy: &ArrayRef2<f64>,
    ) -> Result<Array2<f64>> {
        let (c, r) = self.factors(base)?;
        core_gradient(&c, &r, self.scale, x, dy)
    }
}

impl Adapter for Skeleton {
    fn kind(&self) -> &'static str {
        "skeleton"
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn n_params(&self) -> usize {
        self.core.len()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        let (c, r) = self.factors(base)?;
        core(&c, &self.core, &r, self.scale)?.edit(base)
    }
}
