use crate::error::{Error, Result};
use crate::linalg::{Threads, check_finite, lstsq, matmul_nt, matmul_tn, svd};
use crate::scalar::Scalar;
use ndarray::{Array2, ArrayRef2};

/// PEMA's external memory: a bottleneck on the last hidden states of a model that is not at hand, $s B A h$, with a head for the next token and one
/// that reconstructs the state; both share `A`.
///
/// The caller puts the result through the model's last norm and head, and mixes the distributions ([`mix_log_probs`], [`GradualUnrolling`]). Cost:
/// `2 rank d`.
///
/// Source: H. Kim, Y. Kim, J.-Y. Bak, "PEMA: An Offsite-Tunable Plug-in External Memory Adaptation for Language Models", 2024.
///
/// ```
/// use structmat::layers::Pema;
/// use structmat::ndarray::array;
/// let layer = Pema::new(array![[1.0, 0.0]], array![[1.0], [0.0]], array![[0.0], [2.0]], 0.5)?;
/// assert_eq!(layer.next_token(&array![[4.0f64, 5.0]])?, array![[0.0, 4.0]]);
/// assert_eq!(layer.reconstruct(&array![[4.0f64, 5.0]])?, array![[2.0, 0.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Pema {
    a: Array2<f64>,
    b_rct: Array2<f64>,
    b_pd: Array2<f64>,
    scale: f64,
}

impl Pema {
    /// From `a` (rank x d), `b_rct` and `b_pd` (d x rank) and the factor of both.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit, [`Error::Parameter`] for a factor that is not a finite number other than 0.
    pub fn new(a: Array2<f64>, b_rct: Array2<f64>, b_pd: Array2<f64>, scale: f64) -> Result<Self> {
        let (rank, d) = a.dim();
        for (what, b) in [("B_rct", &b_rct), ("B_pd", &b_pd)] {
            if b.dim() != (d, rank) {
                return Err(Error::shape(what, &[d, rank], b.shape()));
            }
        }
        if scale == 0.0 || !scale.is_finite() {
            return Err(Error::parameter("scale", scale, "a finite number other than 0"));
        }
        Ok(Self { a, b_rct, b_pd, scale })
    }

    /// A start from states (samples x d): `A` holds their leading right singular vectors, the reconstruction is the least-squares solution, and
    /// the head for the next token starts as the reconstruction. With as many directions as the states have it reconstructs them.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rank of 0 or beyond what the states can have, or a bad factor, [`Error::NonFinite`].
    pub fn start(states: &ArrayRef2<f64>, rank: usize, scale: f64) -> Result<Self> {
        let most = states.nrows().min(states.ncols());
        if rank == 0 || rank > most {
            return Err(Error::parameter("rank", rank, format!("1 to {most}")));
        }
        if !scale.is_finite() {
            return Err(Error::parameter("scale", scale, "a finite number"));
        }
        check_finite("hidden states", states)?;
        let a = svd(states, Threads::ONE)?.truncate(rank).vt;
        let code = matmul_nt(states, &a, Threads::ONE) * scale;
        let b = lstsq(&code, states)?.t().to_owned();
        Self::new(a, b.clone(), b, scale)
    }

    fn through<T: Scalar>(&self, b: &Array2<f64>, h: &ArrayRef2<T>) -> Result<Array2<T>> {
        if h.ncols() != self.a.ncols() {
            return Err(Error::shape("hidden states", &[h.nrows(), self.a.ncols()], h.shape()));
        }
        let code = matmul_nt(&h.mapv(T::widen), &self.a, Threads::ONE) * self.scale;
        Ok(matmul_nt(&code, b, Threads::ONE).mapv(T::narrow))
    }

    /// `s B_pd A h` of states (batch x d): what the last norm and the head take.
    ///
    /// # Errors
    /// [`Error::Shape`] for states of another width.
    pub fn next_token<T: Scalar>(&self, h: &ArrayRef2<T>) -> Result<Array2<T>> {
        self.through(&self.b_pd, h)
    }

    /// `s B_rct A h`, which the first loss compares with `h`.
    ///
    /// # Errors
    /// [`Error::Shape`] for states of another width.
    pub fn reconstruct<T: Scalar>(&self, h: &ArrayRef2<T>) -> Result<Array2<T>> {
        self.through(&self.b_rct, h)
    }

    /// The mean squared error of the reconstruction, and its gradients with respect to `A` and `B_rct`.
    ///
    /// # Errors
    /// [`Error::Shape`] for states of another width or none.
    pub fn reconstruction_loss(&self, h: &ArrayRef2<f64>) -> Result<(f64, Array2<f64>, Array2<f64>)> {
        if h.is_empty() {
            return Err(Error::shape("hidden states", &[1, self.a.ncols()], h.shape()));
        }
        let missed = self.reconstruct(h)? - h;
        let code = matmul_nt(h, &self.a, Threads::ONE) * self.scale;
        let d = &missed * (2.0 / h.len() as f64);
        let db = matmul_tn(&d, &code, Threads::ONE);
        let da = matmul_tn(&(d.dot(&self.b_rct) * self.scale), h, Threads::ONE);
        Ok((missed.iter().map(|v| v * v).sum::<f64>() / h.len() as f64, da, db))
    }
}

/// The log probabilities of a mixture: $\log((1 - \lambda) p + \lambda q)$ of `p` (the model's) and `q`, both given by their logarithms. With `λ` of 0
/// or 1 those of one of them, bit for bit.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ, [`Error::Parameter`] for `λ` outside of 0 to 1, or NaN.
///
/// ```
/// let (p, q) = ([0.5f64.ln(), 0.5f64.ln()], [1.0f64.ln(), 0.0f64.ln()]);
/// let mixed = structmat::layers::mix_log_probs(&p, &q, 0.5)?;
/// assert!((mixed[0].exp() - 0.75).abs() < 1e-12 && (mixed[1].exp() - 0.25).abs() < 1e-12);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn mix_log_probs(p: &[f64], q: &[f64], lambda: f64) -> Result<Vec<f64>> {
    if p.len() != q.len() {
        return Err(Error::shape("log probabilities", &[p.len()], &[q.len()]));
    }
    if !(0.0..=1.0).contains(&lambda) {
        return Err(Error::parameter("lambda", lambda, "0 to 1"));
    }
    if p.iter().chain(q).any(|v| v.is_nan()) {
        return Err(Error::parameter("log probabilities", f64::NAN, "numbers"));
    }
    if lambda == 0.0 || lambda == 1.0 {
        return Ok(if lambda == 0.0 { p.to_vec() } else { q.to_vec() });
    }
    let (one, other) = ((-lambda).ln_1p(), lambda.ln());
    let add = |a: f64, b: f64| {
        let (high, low) = if a >= b { (a, b) } else { (b, a) };
        // Both impossible.
        if high == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
    };
    Ok(p.iter().zip(q).map(|(p, q)| add(one + p, other + q)).collect())
}

/// The weights of PEMA's distribution, token by token over an expected length: $\lambda_{max}$ for the first, then $c^2$ with a `c` that falls from
/// $\lambda_{max}$ by $\lambda_{max} / L$ per token while it stays positive; for ever.
///
/// So the second weight is already $(\lambda_{max} (1 - 1/L))^2$: the jump is that of the published code, whose `L` is the length of the reference.
///
/// ```
/// use structmat::layers::GradualUnrolling;
/// let weights: Vec<f64> = GradualUnrolling::new(0.8, 4)?.take(5).collect();
/// assert!(weights.iter().zip([0.8, 0.36, 0.16, 0.04, 0.04]).all(|(a, b)| (a - b).abs() < 1e-12));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GradualUnrolling {
    most: f64,
    length: usize,
    token: usize,
}

impl GradualUnrolling {
    /// From the first weight and the expected number of tokens.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a weight outside of 0 to 1 or a length of 0.
    pub fn new(most: f64, length: usize) -> Result<Self> {
        if !(0.0..=1.0).contains(&most) {
            return Err(Error::parameter("lambda", most, "0 to 1"));
        }
        if length == 0 {
            return Err(Error::parameter("length", length, "at least 1"));
        }
        Ok(Self { most, length, token: 0 })
    }
}

impl Iterator for GradualUnrolling {
    type Item = f64;
    fn next(&mut self) -> Option<f64> {
        // The steps that leave something.
        let steps = self.token.min(self.length - 1);
        self.token = self.token.saturating_add(1);
        let c = self.most * (self.length - steps) as f64 / self.length as f64;
        Some(if steps == 0 && self.token == 1 { self.most } else { c * c })
    }
}
