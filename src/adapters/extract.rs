//! From weights to adapters: of each family, the member nearest to a change of a weight.

use super::{Additive, methods};
use crate::error::{Error, Result};
use crate::linalg::{SvdOptions, Threads, svd, truncated_svd};
use ndarray::{Array2, Array3, ArrayD, ArrayRef2, s};

/// An adapter found for a change, as PEFT stores it.
#[derive(Debug, Clone)]
pub struct Extracted {
    /// The adapter.
    pub adapter: Additive,
    /// Its tensors, by what follows the module's path in their keys.
    pub tensors: Vec<(&'static str, ArrayD<f64>)>,
    /// `‖D* - D‖_F / ‖D*‖_F`.
    pub relative_error: f64,
}

/// The families, by the name of PEFT's tuner, that [`extract`] finds members of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// LoRA of rank `size`: the truncated singular value decomposition, optimal.
    Lora,
    /// GraLoRA of rank `size` in 2 x 2 blocks: one truncated decomposition per block, optimal.
    Gralora,
    /// C3A of blocks of `size`: means over wrapped diagonals, optimal.
    C3a,
    /// MiSS of rank `size`: means over residue classes, optimal.
    Miss,
}

impl Kind {
    /// Every family.
    pub const ALL: [Kind; 4] = [Kind::Lora, Kind::Gralora, Kind::C3a, Kind::Miss];

    /// Its name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lora => "lora",
            Kind::Gralora => "gralora",
            Kind::C3a => "c3a",
            Kind::Miss => "miss",
        }
    }

    /// The settings of its folder.
    pub(crate) fn settings(self, size: usize) -> serde_json::Value {
        match self {
            // Scales of 1, but for C3A, which has none.
            Kind::Lora => serde_json::json!({ "r": size, "lora_alpha": size, "init_lora_weights": true }),
            Kind::Gralora => serde_json::json!({ "r": size, "alpha": size, "gralora_k": 2, "hybrid_r": 0 }),
            Kind::C3a => serde_json::json!({ "block_size": size }),
            Kind::Miss => serde_json::json!({ "r": size, "mini_r": 1, "init_weights": true }),
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| Error::Unknown {
            kind: "kind of adapter",
            name: name.to_owned(),
            expected: Self::ALL.map(Kind::name).join(", "),
        })
    }
}

/// The member of a family nearest to `delta` (out x in), a tuned weight minus its base.
///
/// ```
/// use structmat::adapters::extract::{Kind, extract};
/// use structmat::ndarray::array;
/// let found = extract(&array![[1.0, 2.0], [2.0, 4.0]], Kind::Lora, 1)?;
/// assert!(found.relative_error < 1e-6);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Parameter`] for a size that the shape does not allow, [`Error::NonFinite`] for NaN or infinities.
pub fn extract(delta: &ArrayRef2<f64>, kind: Kind, size: usize) -> Result<Extracted> {
    crate::linalg::check_finite("change of a weight", delta)?;
    let (m, n) = delta.dim();
    let allowed = |fits: bool, wanted: String| match fits && size > 0 {
        true => Ok(()),
        false => Err(Error::parameter("rank", size, wanted)),
    };
    let (adapter, tensors) = match kind {
        Kind::Lora => {
            allowed(size <= m.min(n), format!("1 to {}", m.min(n)))?;
            let (b, a) =
                truncated_svd(delta, size, &SvdOptions::default(), Threads::ONE)?.svd.split_sqrt(size);
            let tensors =
                vec![("lora_A.weight", a.clone().into_dyn()), ("lora_B.weight", b.clone().into_dyn())];
            (methods::lora(&single(&b), &single(&a), 1.0)?, tensors)
        }
        Kind::Gralora => {
            let even = m.is_multiple_of(2) && n.is_multiple_of(2) && size.is_multiple_of(2);
            allowed(even && size <= m.min(n), format!("even, at most {}, of even sides", m.min(n)))?;
            let (q, s, p) = (size / 2, m / 2, n / 2);
            let (mut a, mut b) = (Array3::zeros((2, p, size)), Array3::zeros((2, size, s)));
            for j in 0..2 {
                for i in 0..2 {
                    let block = delta.slice(s![j * s..(j + 1) * s, i * p..(i + 1) * p]);
                    let (left, right) = svd(&block, Threads::ONE)?.split_sqrt(q);
                    let rank = left.ncols();
                    a.slice_mut(s![i, .., j * q..j * q + rank]).assign(&right.t());
                    b.slice_mut(s![j, i * q..i * q + rank, ..]).assign(&left.t());
                }
            }
            let adapter = methods::gralora(&a, &b, 1.0)?;
            (adapter, vec![("gralora_A", a.into_dyn()), ("gralora_B", b.into_dyn())])
        }
        Kind::C3a => {
            let divides = size > 0 && m.is_multiple_of(size) && n.is_multiple_of(size);
            allowed(divides, format!("a divisor of {m} and {n}"))?;
            let mut kernel = Array3::zeros((m / size, n / size, size));
            for ((o, j), value) in delta.indexed_iter() {
                kernel[[o / size, j / size, (j % size + size - o % size) % size]] +=
                    value * n as f64 / size as f64;
            }
            (methods::c3a(&kernel)?, vec![("c3a_kernel", kernel.into_dyn())])
        }
        Kind::Miss => {
            allowed(size <= n, format!("1 to {n}"))?;
            let mut block = Array2::zeros((size, m));
            for ((o, j), value) in delta.indexed_iter() {
                block[[j % size, o]] += value / (n / size + usize::from(j % size < n % size)) as f64;
            }
            (methods::miss((m, n), &block)?, vec![("miss_block", block.into_dyn())])
        }
    };
    use crate::matrix::Apply;
    let relative_error = adapter.matrix().relative_error(delta)?;
    Ok(Extracted { adapter, tensors, relative_error })
}

fn single(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|v| v as f32)
}
