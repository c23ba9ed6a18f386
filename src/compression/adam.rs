/// Adam's moments of the gradients of some numbers.
///
/// Source: D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015.
#[derive(Debug, Clone)]
pub(super) struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    rate: f64,
    steps: i32,
}

const KEEP: (f32, f32) = (0.9, 0.99);

impl Adam {
    /// For so many numbers, with steps of about `rate`.
    pub(super) fn new(len: usize, rate: f64) -> Self {
        Self { first: vec![0.0; len], second: vec![0.0; len], rate, steps: 0 }
    }

    /// Moves `numbers` against `gradient`, by `part` of the rate.
    pub(super) fn step(&mut self, numbers: &mut [f32], gradient: &[f32], part: f64) {
        self.steps += 1;
        let correction = (1.0 - KEEP.0.powi(self.steps), (1.0 - KEEP.1.powi(self.steps)).sqrt());
        let rate = (self.rate * part) as f32 * correction.1 / correction.0;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((x, g), (first, second)) in numbers.iter_mut().zip(gradient).zip(moments) {
            *first = KEEP.0 * *first + (1.0 - KEEP.0) * g;
            *second = KEEP.1 * *second + (1.0 - KEEP.1) * g * g;
            *x -= rate * *first / (second.sqrt() + f32::MIN_POSITIVE);
        }
    }
}
