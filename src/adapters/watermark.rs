//! Bits carried by a low-rank change of a weight.

use super::{Additive, methods};
use crate::adam::Adam;
use crate::error::{Error, Result};
use crate::layers::fits;
use crate::linalg::{Threads, check_finite, matmul, matmul_nt, matmul_tn, qr};
use crate::projection::{Gram, Objective};
use crate::random::Gaussian;
use ndarray::{Array2, ArrayRef2, s};

/// Bits at most: carriers take their square in numbers.
const MOST_BITS: usize = 4096;
/// The weight of the bits at most: beyond, nothing but overflow is to be had.
const MOST_WEIGHT: f64 = 1e12;

/// A secret key for watermarks of one weight: carriers $S_j = P M_j Q^T$ of unit norm, one per bit, orthogonal to each other. A bit is the sign of
/// $\langle S_j, W \rangle$.
///
/// The carriers live in a hidden subspace of `q x q` dimensions, the smallest that has room for the bits, so that a change of rank `q` reaches all of
/// them by itself; they are never made as matrices. Reading costs `q out in` multiply-adds.
///
/// Source: D. Lin et al., "An Efficient Watermarking Method for Latent Diffusion Models via Low-Rank Adaptation", 2024, of which this has what
/// concerns one matrix: bits in frozen weights plus a trained LoRA, and the weight of the loss steered by accuracy and quality. Its extractor reads
/// images; this one reads the weight.
///
/// ```
/// use structmat::adapters::watermark::{Watermark, WatermarkSettings};
/// use structmat::ndarray::Array2;
/// let w = Array2::from_shape_fn((32, 24), |(i, j)| ((7 * i + 5 * j) % 11) as f64 - 5.0);
/// let (key, bits) = (Watermark::new((32, 24), 4, 7)?, [true, false, false, true]);
/// let marked = key.embed(&w, &bits, None, &WatermarkSettings { rank: 2, ..Default::default() })?;
/// let reading = key.verify(&(&w + &marked.b.dot(&marked.a)), &bits)?;
/// assert!(reading.matches == 4 && (reading.p_value - 1.0 / 16.0).abs() < 1e-12);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Watermark {
    left: Array2<f64>,
    right: Array2<f64>,
    /// One carrier per row, `q x q` numbers each.
    carriers: Array2<f64>,
}

/// Settings of [`Watermark::embed`]. Margins are in units of the root mean square of the weight, which is the spread of the scores of a weight that
/// does not know the key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WatermarkSettings {
    /// Rank of the change.
    pub rank: usize,
    /// The least score of every bit.
    pub margin: f64,
    /// Width of the soft step between wrong and right.
    pub width: f64,
    /// The relative change to stay below, where the bits allow.
    pub change: f64,
    /// Steps at most.
    pub steps: usize,
    /// Steps from one steering to the next.
    pub interval: usize,
    /// Rate of the optimiser, relative to the numbers.
    pub rate: f64,
    /// Of the start of the right factor beyond the key's subspace.
    pub seed: u64,
}

impl Default for WatermarkSettings {
    /// Rank 8, a margin of 0.3, at most 5 % change.
    fn default() -> Self {
        Self {
            rank: 8,
            margin: 0.3,
            width: 0.1,
            change: 0.05,
            steps: 2000,
            interval: 20,
            rate: 0.005,
            seed: 0,
        }
    }
}

/// A watermark: the change that carries it.
#[derive(Debug, Clone)]
pub struct Marked {
    /// `out x rank`.
    pub b: Array2<f64>,
    /// `rank x in`.
    pub a: Array2<f64>,
    /// `‖B A‖ / ‖W‖`, in the metric that was asked for.
    pub change: f64,
    /// The least score of a bit, of the right sign.
    pub margin: f64,
    /// Steps taken.
    pub steps: usize,
}

impl Marked {
    /// The change as an adapter.
    ///
    /// # Errors
    /// Those of [`methods::lora`].
    pub fn adapter(&self) -> Result<Additive> {
        methods::lora(&self.b, &self.a, 1.0)
    }
}

/// What [`Watermark::verify`] read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The bits.
    pub bits: Vec<bool>,
    /// How many are as expected.
    pub matches: usize,
    /// The probability that a weight which does not know the key matches as many or more.
    pub p_value: f64,
}

impl Watermark {
    /// The key of a seed for so many bits in `out x in` weights.
    ///
    /// # Errors
    /// [`Error::Parameter`] for no bit, more than 4096, or more than the square of the smaller side.
    pub fn new((m, n): (usize, usize), bits: usize, seed: u64) -> Result<Self> {
        let most = m.min(n).saturating_mul(m.min(n));
        if bits == 0 || bits > most {
            return Err(Error::parameter("bits", bits, format!("1 to {most}")));
        }
        if bits > MOST_BITS {
            return Err(Error::parameter("bits", bits, format!("at most {MOST_BITS}")));
        }
        let root = bits.isqrt();
        let q = if root * root == bits { root } else { root + 1 };
        fits(&[m.max(n), q])?;
        let mut gaussian = Gaussian::new(seed);
        let (left, right) = (qr(&gaussian.matrix(m, q, 1.0)).q, qr(&gaussian.matrix(n, q, 1.0)).q);
        let carriers = qr(&gaussian.matrix(q * q, bits, 1.0)).q.reversed_axes();
        Ok(Self { left, right, carriers })
    }

    /// Number of bits.
    pub fn bits(&self) -> usize {
        self.carriers.nrows()
    }

    /// `⟨S_j, W⟩` of each carrier.
    ///
    /// # Errors
    /// [`Error::Shape`] for a weight of another shape, [`Error::NonFinite`].
    pub fn scores(&self, w: &ArrayRef2<f64>) -> Result<Vec<f64>> {
        let shape = (self.left.nrows(), self.right.nrows());
        if w.dim() != shape {
            return Err(Error::shape("marked weight", &[shape.0, shape.1], w.shape()));
        }
        check_finite("marked weight", w)?;
        let seen = matmul(&matmul_tn(&self.left, w, Threads::ONE), &self.right, Threads::ONE);
        let score =
            |carrier: ndarray::ArrayView1<'_, f64>| carrier.iter().zip(&seen).map(|(s, w)| s * w).sum();
        Ok(self.carriers.outer_iter().map(score).collect())
    }

    /// Reads the bits of a weight and compares them.
    ///
    /// # Errors
    /// [`Error::Shape`] for a weight of another shape, or another number of bits, [`Error::NonFinite`], [`Error::Parameter`] for a weight in
    /// which a bit says nothing, as in zero.
    pub fn verify(&self, w: &ArrayRef2<f64>, expected: &[bool]) -> Result<Reading> {
        self.check(expected)?;
        let scores = self.scores(w)?;
        if scores.contains(&0.0) {
            return Err(Error::parameter("marked weight", "nothing", "a weight that carriers see"));
        }
        let bits: Vec<bool> = scores.iter().map(|score| *score > 0.0).collect();
        let matches = bits.iter().zip(expected).filter(|(a, b)| a == b).count();
        Ok(Reading { p_value: coin_tail(bits.len(), matches), bits, matches })
    }

    fn check(&self, bits: &[bool]) -> Result<()> {
        match bits.len() == self.bits() {
            true => Ok(()),
            false => Err(Error::shape("bits of a watermark", &[self.bits()], &[bits.len()])),
        }
    }

    /// The low-rank change of `w` that carries `bits`, by Adam on
    /// $\lambda \sum_j \mathrm{softplus}(-t_j \langle S_j, W + BA \rangle / \tau) + \lVert B A\, C^{1/2} \rVert_F^2 / \lVert W C^{1/2} \rVert_F^2$.
    ///
    /// Every few steps the weight is steered: doubled while a bit is wrong or short of its margin, halved once all are right and the change is
    /// above what it should be. It ends when all bits have their margin within the change, or after the last step; the result says what was reached.
    ///
    /// # Errors
    /// [`Error::Shape`] for a weight or Gram matrix of another size, or another number of bits, [`Error::NonFinite`], [`Error::Parameter`] for a
    /// weight that is zero, rank 0 or one beyond the smaller side, or settings that are not positive.
    pub fn embed(
        &self,
        w: &ArrayRef2<f64>,
        bits: &[bool],
        gram: Option<&Gram>,
        settings: &WatermarkSettings,
    ) -> Result<Marked> {
        let &WatermarkSettings { rank, margin, width, change: most, steps, interval, rate, seed } = settings;
        self.check(bits)?;
        let before = self.scores(w)?;
        let (m, n) = w.dim();
        if rank == 0 || rank > m.min(n) {
            return Err(Error::parameter("rank", rank, format!("1 to {}", m.min(n))));
        }
        for (name, value) in [("margin", margin), ("width", width), ("change", most), ("rate", rate)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::parameter(name, value, "a positive number"));
            }
        }
        if let Some(gram) = gram
            && gram.in_features() != n
        {
            return Err(Error::shape("Gram matrix", &[n, n], &[gram.in_features(), gram.in_features()]));
        }
        let objective = gram.map_or(Objective::Frobenius, Objective::Activations);
        let scale = objective.energy(w);
        let unit = (Objective::Frobenius.energy(w) / (m * n) as f64).sqrt();
        if !(scale > 0.0 && unit > 0.0) {
            return Err(Error::parameter("weight", 0, "one whose outputs are not all zero"));
        }
        let signs: Vec<f64> = bits.iter().map(|bit| if *bit { 1.0 } else { -1.0 }).collect();
        let q = self.left.ncols();
        // The right factor starts in the key's subspace, which is where a change can carry something.
        let mut a = Gaussian::new(seed).matrix(rank, n, (n as f64).powf(-0.5));
        let shared = rank.min(q);
        a.slice_mut(s![..shared, ..]).assign(&self.right.slice(s![.., ..shared]).t());
        let mut b = Array2::<f64>::zeros((m, rank));
        let mut of_a = Adam::new(a.len(), rate / (n as f64).sqrt(), (0.9, 0.999));
        let mut of_b = Adam::new(b.len(), rate * unit, (0.9, 0.999));
        let mut lambda = 1.0 / (m * n) as f64;
        let mut step = 0;
        loop {
            let delta = matmul(&b, &a, Threads::ONE);
            let scores: Vec<f64> =
                self.scores(&delta)?.iter().zip(&before).map(|(now, before)| now + before).collect();
            let least = scores.iter().zip(&signs).map(|(s, t)| s * t / unit).fold(f64::INFINITY, f64::min);
            if !scores.iter().all(|score| score.is_finite()) {
                return Err(Error::NoConvergence("the watermark's descent"));
            }
            let change = (objective.energy(&delta) / scale).sqrt();
            let done = least >= margin && change <= most;
            if done || step >= steps {
                return Ok(Marked { b, a, change, margin: least, steps: step });
            }
            if step > 0 && step.is_multiple_of(interval.max(1)) {
                let short = least <= 0.0 || (least < margin && change <= most);
                lambda = if short { (2.0 * lambda).min(MOST_WEIGHT) } else { 0.5 * lambda };
            }
            // The slope of the soft steps, within the key's subspace.
            let slopes = scores.iter().zip(&signs).map(|(s, t)| -t / (1.0 + (t * s / (width * unit)).exp()));
            let mut inner = Array2::<f64>::zeros((q, q));
            for (slope, carrier) in slopes.zip(self.carriers.outer_iter()) {
                inner
                    .iter_mut()
                    .zip(carrier)
                    .for_each(|(sum, s)| *sum += lambda / (width * unit) * slope * s);
            }
            let pull = matmul_nt(&matmul(&self.left, &inner, Threads::ONE), &self.right, Threads::ONE);
            let weighed = match objective.second_moment() {
                None => delta,
                Some(c) => matmul(&delta, c, Threads::ONE),
            };
            let g = pull + weighed * (2.0 / scale);
            let (da, db) = (matmul_tn(&b, &g, Threads::ONE), matmul_nt(&g, &a, Threads::ONE));
            for (adam, numbers, gradient) in [(&mut of_a, &mut a, &da), (&mut of_b, &mut b, &db)] {
                adam.step_array(numbers, gradient, 1.0);
            }
            step += 1;
        }
    }
}

/// The probability of `least` or more heads of so many coins.
fn coin_tail(coins: usize, least: usize) -> f64 {
    let (mut log, mut sum) = (-(coins as f64) * std::f64::consts::LN_2, 0.0);
    for heads in 0..=coins {
        if heads >= least {
            sum += f64::exp(log);
        }
        log += ((coins - heads) as f64 / (heads + 1) as f64).ln();
    }
    sum.min(1.0)
}
