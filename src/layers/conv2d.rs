use crate::error::{Error, Result};
use crate::matrix::{Apply, StructuredMatrix};
use crate::scalar::Scalar;
use ndarray::{Array1, Array2, Array4, ArrayRef1, ArrayRef4};

/// How a kernel moves over an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// `(kh, kw)`.
    pub kernel: (usize, usize),
    /// Pixels from one place to the next, down and across.
    pub stride: (usize, usize),
    /// Rows and columns of zeros on each side.
    pub padding: (usize, usize),
}

impl Window {
    /// Of this kernel, step by step and without padding.
    pub fn new(kernel: (usize, usize)) -> Self {
        Self { kernel, stride: (1, 1), padding: (0, 0) }
    }

    /// Rows and columns of the result for an image of `size`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an empty kernel, a stride of 0, or a kernel larger than the padded image.
    pub fn outputs(&self, size: (usize, usize)) -> Result<(usize, usize)> {
        let along = |size: usize, kernel: usize, stride: usize, padding: usize| {
            let padded = size.saturating_add(padding.saturating_mul(2));
            if kernel == 0 || stride == 0 || kernel > padded {
                let received = format!("kernel {kernel}, stride {stride}");
                return Err(Error::parameter(
                    "window",
                    received,
                    format!("a kernel of 1 to {padded}, a stride of 1"),
                ));
            }
            Ok((padded - kernel) / stride + 1)
        };
        Ok((
            along(size.0, self.kernel.0, self.stride.0, self.padding.0)?,
            along(size.1, self.kernel.1, self.stride.1, self.padding.1)?,
        ))
    }

    /// The images (batch x channels x height x width) as the inputs of a matrix: one row per place of the kernel (batch, then down, then
    /// across), with `channels kh kw` numbers, those outside of the image zero.
    ///
    /// # Errors
    /// Those of [`outputs`](Self::outputs).
    ///
    /// ```
    /// use structmat::layers::Window;
    /// use structmat::ndarray::{Array4, array};
    /// let image = Array4::from_shape_fn((1, 1, 2, 3), |(_, _, i, j)| (3 * i + j) as f32);
    /// let rows = Window::new((2, 2)).patches(&image)?;
    /// assert_eq!(rows, array![[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]);
    /// # Ok::<(), structmat::Error>(())
    /// ```
    pub fn patches<T: Scalar>(&self, x: &ArrayRef4<T>) -> Result<Array2<T>> {
        let (batch, channels, height, width) = x.dim();
        let (down, across) = self.outputs((height, width))?;
        let (kh, kw) = self.kernel;
        fits(&[batch, down, across, channels, kh, kw])?;
        Ok(Array2::from_shape_fn((batch * down * across, channels * kh * kw), |(row, col)| {
            let (b, i, j) = (row / (down * across), row / across % down, row % across);
            let (c, p, q) = (col / (kh * kw), col / kw % kh, col % kw);
            let (i, j) = (i * self.stride.0 + p, j * self.stride.1 + q);
            let inside = |at: usize, pad: usize, size: usize| at.checked_sub(pad).filter(|at| *at < size);
            match (inside(i, self.padding.0, height), inside(j, self.padding.1, width)) {
                (Some(i), Some(j)) => x[[b, c, i, j]],
                _ => T::default(),
            }
        }))
    }
}

/// [`Error::Parameter`] unless an array of these sizes can be.
pub(crate) fn fits(sizes: &[usize]) -> Result<()> {
    let most = isize::MAX as usize / 8;
    let len =
        sizes.iter().try_fold(1usize, |len, size| len.checked_mul((*size).max(1))).filter(|len| *len <= most);
    match len {
        Some(_) => Ok(()),
        None => Err(Error::parameter("window", format!("results of {sizes:?}"), "sizes that fit in memory")),
    }
}

/// A convolution with a structured weight of `c_out x (c_in kh kw)`, the kernel flattened as PyTorch stores it: patches of the images are the
/// rows of a batch.
///
/// Cost: that of the weight, for each place of the kernel; the patches take `kh kw` times the memory of the images.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::layers::{Conv2d, Window};
/// use structmat::ndarray::{Array4, array};
/// let weight = Dense::new(&array![[1.0f32, 10.0]])?;                            // one channel, 1 x 2
/// let conv = Conv2d::new(Box::new(weight), Window::new((1, 2)), Some(&array![0.5]))?;
/// let image = Array4::from_shape_fn((1, 1, 1, 3), |(_, _, _, j)| j as f32);
/// assert_eq!(conv.forward(&image)?.iter().copied().collect::<Vec<_>>(), [10.5, 21.5]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Box<dyn StructuredMatrix>,
    window: Window,
    bias: Option<Array1<f64>>,
}

impl Conv2d {
    /// From a weight, its window, and a bias of one number per output channel.
    ///
    /// # Errors
    /// [`Error::Shape`] when the window does not divide the inputs of the weight, or the bias has another length.
    pub fn new(
        weight: Box<dyn StructuredMatrix>,
        window: Window,
        bias: Option<&ArrayRef1<f64>>,
    ) -> Result<Self> {
        let ((out, inputs), area) = (weight.shape(), window.kernel.0.saturating_mul(window.kernel.1));
        if area == 0 || !inputs.is_multiple_of(area) {
            return Err(Error::shape("weight of a convolution", &[out, area], &[out, inputs]));
        }
        if let Some(bias) = bias
            && bias.len() != out
        {
            return Err(Error::shape("bias", &[out], &[bias.len()]));
        }
        Ok(Self { weight, window, bias: bias.map(|bias| bias.to_owned()) })
    }

    /// `(c_out, c_in)`.
    pub fn channels(&self) -> (usize, usize) {
        let (out, inputs) = self.weight.shape();
        (out, inputs / (self.window.kernel.0 * self.window.kernel.1))
    }

    /// The weight.
    pub fn weight(&self) -> &dyn StructuredMatrix {
        self.weight.as_ref()
    }

    /// Images (batch x c_in x height x width) to images (batch x c_out x height' x width').
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of channels, those of [`Window::outputs`].
    pub fn forward<T: Scalar>(&self, x: &ArrayRef4<T>) -> Result<Array4<T>> {
        let (batch, channels, height, width) = x.dim();
        let (out, expected) = self.channels();
        if channels != expected {
            return Err(Error::shape("images", &[batch, expected, height, width], x.shape()));
        }
        let (down, across) = self.window.outputs((height, width))?;
        let y = self.weight.matmul(&self.window.patches(x)?)?;
        Ok(Array4::from_shape_fn((batch, out, down, across), |(b, o, i, j)| {
            let bias = self.bias.as_ref().map_or(0.0, |bias| bias[o]);
            let y = y[[(b * down + i) * across + j, o]];
            if bias == 0.0 { y } else { T::narrow(y.widen() + bias) }
        }))
    }
}
