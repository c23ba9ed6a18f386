use super::{block, dense};
use crate::adapters::{Adapter, Edit, check_base};
use crate::error::{Error, Result};
use crate::matrix::StructuredMatrix;
use ndarray::{Array2, Array3, ArrayRef3, Axis, s};

/// Bat, the variant of Bone and MiSS whose blocks pass through the weight: `D_oi = W_oi B_o + B_o` for the `b x b` blocks of `W`, with
/// `blocks` of `out/b x b x b`.
///
/// The change is made when the adapter is bound, at `out in b` multiply-adds, and costs `out in` per vector.
///
/// Source: J. Kang, "Bone: Block-Affine Adaptation of Large Language Models", 2024.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods::Bat};
/// use structmat::ndarray::array;
/// let base = Dense::new(&array![[1.0f32, 2.0], [3.0, 4.0]])?;
/// let bat = Bat::new((2, 2), &array![[[0.0, 1.0], [0.0, 0.0]]])?;
/// assert_eq!(bat.delta(&base)?, array![[0.0, 2.0], [0.0, 3.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Bat {
    shape: (usize, usize),
    blocks: Array3<f64>,
}

impl Bat {
    /// From one block per block row.
    ///
    /// # Errors
    /// [`Error::Shape`] when the blocks are not square or do not divide the matrix.
    pub fn new((m, n): (usize, usize), blocks: &ArrayRef3<f64>) -> Result<Self> {
        let (count, b, b2) = blocks.dim();
        if b == 0 || b != b2 || count.checked_mul(b) != Some(m) || !n.is_multiple_of(b) {
            return Err(Error::shape("Bat blocks", &[m.checked_div(b).unwrap_or(1), b, b], blocks.shape()));
        }
        Ok(Self { shape: (m, n), blocks: blocks.to_owned() })
    }
}

impl Adapter for Bat {
    fn kind(&self) -> &'static str {
        "bat"
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn n_params(&self) -> usize {
        self.blocks.len()
    }
    fn edit(&self, base: &dyn StructuredMatrix) -> Result<Edit> {
        check_base(base, self.shape)?;
        let (w, b) = (base.to_dense_f64(), self.blocks.dim().1);
        let mut d = Array2::zeros(self.shape);
        for (o, factor) in self.blocks.axis_iter(Axis(0)).enumerate() {
            for i in (0..self.shape.1).step_by(b) {
                let product = block(&w, (o * b, i), (b, b)).dot(&factor) + factor;
                d.slice_mut(s![o * b..(o + 1) * b, i..i + b]).assign(&product);
            }
        }
        Edit::of(self.shape).with_delta(dense(&d)?)
    }
}
