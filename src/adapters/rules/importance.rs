/// Two moving averages of a sensitivity: its mean `Ī`, and how far it is from that, `Ū`. Their product is the score.
///
/// Source: Q. Zhang et al., "PLATON", 2022, as AdaLoRA and AFLoRA use it.
///
/// ```
/// use structmat::adapters::rules::Importance;
/// let mut importance = Importance::new(0.5, 0.5);
/// importance.update(&[4.0]);
/// assert_eq!(importance.scores(), [2.0]); // a mean of 2, a distance of half of 4 - 2
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    betas: (f64, f64),
    mean: Vec<f64>,
    spread: Vec<f64>,
}

impl Importance {
    /// Of nothing yet, with the weights of the past in both averages.
    pub fn new(beta1: f64, beta2: f64) -> Self {
        Self { betas: (beta1, beta2), mean: Vec::new(), spread: Vec::new() }
    }

    /// Takes a sensitivity in; one of another length starts anew.
    pub fn update(&mut self, sensitivity: &[f64]) {
        if self.mean.len() != sensitivity.len() {
            self.mean = vec![0.0; sensitivity.len()];
            self.spread = self.mean.clone();
        }
        let (beta1, beta2) = self.betas;
        for ((mean, spread), new) in self.mean.iter_mut().zip(&mut self.spread).zip(sensitivity) {
            *mean = beta1 * *mean + (1.0 - beta1) * new;
            *spread = beta2 * *spread + (1.0 - beta2) * (new - *mean).abs();
        }
    }

    /// `Ī Ū`, one per number.
    pub fn scores(&self) -> Vec<f64> {
        self.mean.iter().zip(&self.spread).map(|(mean, spread)| mean * spread).collect()
    }
}
