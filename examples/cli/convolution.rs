//! Convolutions as products with matrices: the patches that a kernel sees, image by image.

use structmat::ndarray::{Array2, ArrayD, Axis, IxDyn};
use structmat::{Error, Result, Scalar};

/// How a kernel goes over images: one number per axis, or one for all.
pub struct Walk<'a> {
    /// Steps.
    pub stride: &'a [usize],
    /// Zeros before and behind.
    pub padding: &'a [usize],
    /// Distances between the inputs that one output sees.
    pub dilation: &'a [usize],
    /// Groups of channels, where the caller says how many.
    pub groups: Option<usize>,
}

/// What a kernel does along one axis.
struct Line {
    inputs: usize,
    taps: usize,
    outputs: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
}

impl Walk<'_> {
    /// The groups in which a kernel of `channels` goes over `x`, or `None` where `x` is no images for it but may be patches.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `x` is not in the groups that were asked for.
    pub fn groups_of<T>(&self, x: &ArrayD<T>, m: usize, channels: usize) -> Result<Option<usize>> {
        let all = x.shape()[1];
        let groups = all.checked_div(channels).filter(|groups| groups * channels == all && *groups > 0);
        let groups = groups.filter(|groups| m.is_multiple_of(*groups));
        match (groups, self.groups) {
            (found, Some(asked)) if found == Some(asked) => Ok(found),
            (found, Some(asked)) => {
                let expected = format!("what {all} channels are for a kernel of {channels}: {found:?}");
                Err(Error::parameter("groups", asked, expected))
            }
            (groups, None) => Ok(groups),
        }
    }

    /// For products without images: nothing was asked for.
    ///
    /// # Errors
    /// [`Error::Parameter`] when something was.
    pub fn check_unused(&self) -> Result<()> {
        if let Some(groups) = self.groups {
            return Err(Error::parameter("groups", groups, "none, as x holds no images of a convolution"));
        }
        for (name, given, plain) in
            [("stride", self.stride, 1), ("padding", self.padding, 0), ("dilation", self.dilation, 1)]
        {
            if *given != [plain] {
                let expected = "none, as x holds no images of a convolution";
                return Err(Error::parameter(name, format!("{given:?}"), expected));
            }
        }
        Ok(())
    }

    /// Outputs of images (batch x channels x ...) for a kernel of `out x channels x ...`, where `product` multiplies patches (rows).
    pub fn convolve<T: Scalar>(
        &self,
        images: &ArrayD<T>,
        kernel: &[usize],
        product: &dyn Fn(&Array2<T>) -> Result<Array2<T>>,
    ) -> Result<ArrayD<T>> {
        let lines = self.lines(&images.shape()[2..], &kernel[2..])?;
        let area = count(lines.iter().map(|line| line.outputs));
        let inputs = count(kernel[1..].iter().copied());
        let numbers = |a: Option<usize>, b: Option<usize>| count([a?, b?].into_iter());
        let outputs = count([images.shape()[0], kernel[0]].into_iter());
        let (Some(area), Some(inputs), Some(_), Some(_)) =
            (area, inputs, numbers(area, inputs), numbers(area, outputs))
        else {
            let expected = "images and zeros that memory holds";
            return Err(Error::parameter("padding", format!("{:?}", self.padding), expected));
        };
        let taps = inputs / kernel[1].max(1);
        let mut shape = vec![images.shape()[0], kernel[0]];
        shape.extend(lines.iter().map(|line| line.outputs));
        let mut y = ArrayD::zeros(IxDyn(&shape));
        for (image, mut y) in images.axis_iter(Axis(0)).zip(y.axis_iter_mut(Axis(0))) {
            let patches = Array2::from_shape_fn((area, inputs), |(place, input)| {
                let (mut place, mut tap) = (place, input % taps);
                let mut index = vec![input / taps; lines.len() + 1];
                // The last axis runs fastest.
                for (line, at) in lines.iter().zip(&mut index[1..]).rev() {
                    let padded = place % line.outputs * line.stride + tap % line.taps * line.dilation;
                    match padded.checked_sub(line.padding).filter(|at| *at < line.inputs) {
                        Some(inside) => *at = inside,
                        None => return T::zero(),
                    }
                    (place, tap) = (place / line.outputs, tap / line.taps);
                }
                image[index.as_slice()]
            });
            let rows = product(&patches)?;
            y.iter_mut().zip(rows.t()).for_each(|(to, from)| *to = *from);
        }
        Ok(y)
    }

    fn lines(&self, image: &[usize], kernel: &[usize]) -> Result<Vec<Line>> {
        let number = |name: &str, given: &[usize], axis: usize, least: usize| match given {
            [one] if *one >= least => Ok(*one),
            all if all.len() == kernel.len() && all[axis] >= least => Ok(all[axis]),
            _ => Err(Error::parameter(
                name,
                format!("{given:?}"),
                format!("one number or {}, at least {least}", kernel.len()),
            )),
        };
        let line = |axis: usize| {
            let stride = number("stride", self.stride, axis, 1)?;
            let padding = number("padding", self.padding, axis, 0)?;
            let dilation = number("dilation", self.dilation, axis, 1)?;
            let (inputs, taps) = (image[axis], kernel[axis]);
            let reach = dilation.checked_mul(taps.saturating_sub(1)).and_then(|reach| reach.checked_add(1));
            let padded = padding.checked_mul(2).and_then(|zeros| zeros.checked_add(inputs));
            let free = padded.zip(reach).and_then(|(padded, reach)| padded.checked_sub(reach));
            let outputs = free.map(|free| free / stride + 1).ok_or_else(|| {
                let expected = format!("images that a kernel of {taps} taps fits into");
                Error::parameter("x", format!("{inputs} along an axis, padding {padding}"), expected)
            })?;
            Ok(Line { inputs, taps, outputs, stride, padding, dilation })
        };
        (0..kernel.len()).map(line).collect()
    }
}

/// A product of lengths, as far as memory may hold as many numbers.
fn count(mut lens: impl Iterator<Item = usize>) -> Option<usize> {
    lens.try_fold(1usize, |all, len| all.checked_mul(len)).filter(|all| *all < 1 << 34)
}
