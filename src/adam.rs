//! Adam, for whatever descends along gradients.

use crate::linalg::Real;
use ndarray::Array2;

/// The moments of the gradients of some numbers.
///
/// Source: D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015.
#[derive(Debug, Clone)]
pub(crate) struct Adam<T> {
    first: Vec<T>,
    second: Vec<T>,
    /// What the two moments keep at each step.
    keep: (f64, f64),
    rate: f64,
    steps: i32,
}

impl<T: Real> Adam<T> {
    /// For so many numbers, with steps of about `rate`.
    pub(crate) fn new(len: usize, rate: f64, keep: (f64, f64)) -> Self {
        Self { first: vec![T::zero(); len], second: vec![T::zero(); len], keep, rate, steps: 0 }
    }

    /// Goes on in other coordinates of the numbers, of which there may be others: `map` says what becomes of the first and of the second
    /// moments.
    pub(crate) fn carry(&mut self, map: impl FnOnce(Vec<T>, Vec<T>) -> (Vec<T>, Vec<T>)) {
        (self.first, self.second) = map(std::mem::take(&mut self.first), std::mem::take(&mut self.second));
    }

    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        self.first.len()
    }

    /// [`step`](Self::step) of a matrix, whatever its layout was; it is in standard layout afterwards.
    pub(crate) fn step_array(&mut self, numbers: &mut Array2<T>, gradient: &Array2<T>, part: f64) {
        if !numbers.is_standard_layout() {
            *numbers = numbers.as_standard_layout().into_owned();
        }
        if let (Some(numbers), Some(gradient)) =
            (numbers.as_slice_mut(), gradient.as_standard_layout().as_slice())
        {
            self.step(numbers, gradient, part);
        }
    }

    /// Moves `numbers` against `gradient`, by `part` of the rate.
    pub(crate) fn step(&mut self, numbers: &mut [T], gradient: &[T], part: f64) {
        self.steps = self.steps.saturating_add(1);
        let correction = (1.0 - self.keep.0.powi(self.steps), (1.0 - self.keep.1.powi(self.steps)).sqrt());
        let rate = T::narrow(self.rate * part * correction.1 / correction.0);
        let [k1, k2, o1, o2] =
            [self.keep.0, self.keep.1, 1.0 - self.keep.0, 1.0 - self.keep.1].map(T::narrow);
        // Numbers that nothing depends on stay.
        let least = T::narrow(f64::from(f32::MIN_POSITIVE));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((x, &g), (first, second)) in numbers.iter_mut().zip(gradient).zip(moments) {
            *first = k1 * *first + o1 * g;
            *second = k2 * *second + o2 * g * g;
            *x -= rate * *first / (T::narrow(second.widen().sqrt()) + least);
        }
    }
}
