//! From weights to adapters: of each family, the member nearest to a change of a weight.
//!
//! | kind | size | how | source |
//! |---|---|---|---|
//! | [`Lora`](Kind::Lora) | rank | truncated singular value decomposition, optimal | Eckart and Young, 1936 |
//! | [`LoraXs`](Kind::LoraXs) | rank | the core between the leading singular vectors of the base, optimal | Bałazy et al., 2024 |
//! | [`Gralora`](Kind::Gralora) | rank | one decomposition per block of a 2 x 2 grid, optimal | Jung et al., 2025 |
//! | [`C3a`](Kind::C3a) | size of a block | means over wrapped diagonals, optimal | Chen et al., 2024 |
//! | [`Miss`](Kind::Miss) | rank | means over residue classes, optimal | Kang, Yin, 2024 |
//! | [`FourierFt`](Kind::FourierFt) | coefficients | the spectrum at PEFT's positions, optimal there | Gao et al., 2024 |
//! | [`Diablo`](Kind::Diablo) | blocks | the blocks on the diagonal, optimal | Gurses et al., 2025 |
//! | [`Lokr`](Kind::Lokr) | rows and columns of the left factor | leading singular vectors of the rearranged matrix, optimal | Van Loan, Pitsianis, 1993 |
//! | [`Bat`](Kind::Bat) | size of a block | least squares in each block row, optimal | Kang, 2024 |
//! | [`Loha`](Kind::Loha) | rank | alternating least squares, never worse than LoRA of that rank | Hyeon-Woo et al., 2022 |
//! | [`Hira`](Kind::Hira) | rank | alternating least squares weighted by the base | Huang et al., 2025 |
//!
//! Decompositions of a small part of a large matrix are randomized: "optimal" is then within 1e-3 of the optimum.

mod bat;
mod c3a;
mod diablo;
mod entrywise;
mod fourier_ft;
mod gralora;
mod hira;
mod loha;
mod lokr;
mod lora;
mod lora_xs;
mod miss;

use super::peft::SEED;
use super::{Adapter, Additive, Boxed};
use crate::error::{Error, Result};
use crate::matrix::Apply;
use crate::storage::{Factor, Storage};
use crate::structures::Dense;
use ndarray::{Array2, ArrayD, ArrayRef2};
use serde_json::json;
use std::sync::Arc;

/// An adapter found for a change.
#[derive(Debug, Clone)]
pub struct Extracted {
    /// The adapter.
    pub adapter: Arc<dyn Adapter>,
    /// Its tensors as PEFT stores them, by what follows the module's path in their keys.
    pub tensors: Vec<(&'static str, ArrayD<f64>)>,
    /// `‖D* - D‖_F / ‖D*‖_F`.
    pub relative_error: f64,
}

/// The families that [`extract`] and [`extract_on`] find members of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// LoRA of rank `size`.
    Lora,
    /// LoRA-XS of rank `size`. PEFT reads it as a LoRA. Needs the base.
    LoraXs,
    /// GraLoRA of rank `size` in 2 x 2 blocks.
    Gralora,
    /// C3A of blocks of `size`.
    C3a,
    /// MiSS of rank `size`.
    Miss,
    /// FourierFT of `size` coefficients. Its change is even, so that half of most changes is out of reach.
    FourierFt,
    /// DiaBlo of about `size` blocks. PEFT has no tuner for it.
    Diablo,
    /// LoKr whose left factor has `size` rows and columns, where that divides the sides; else the most balanced numbers of at most `size`.
    Lokr,
    /// Bat of blocks of `size`. Needs the base.
    Bat,
    /// LoHa of rank `size`: a local optimum.
    Loha,
    /// HiRA of rank `size`: a local optimum. Needs the base.
    Hira,
}

impl Kind {
    /// Every family.
    pub const ALL: [Kind; 11] = [
        Kind::Lora,
        Kind::LoraXs,
        Kind::Gralora,
        Kind::C3a,
        Kind::Miss,
        Kind::FourierFt,
        Kind::Diablo,
        Kind::Lokr,
        Kind::Bat,
        Kind::Loha,
        Kind::Hira,
    ];

    /// Its name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lora => "lora",
            Kind::LoraXs => "lora_xs",
            Kind::Gralora => "gralora",
            Kind::C3a => "c3a",
            Kind::Miss => "miss",
            Kind::FourierFt => "fourierft",
            Kind::Diablo => "diablo",
            Kind::Lokr => "lokr",
            Kind::Bat => "bat",
            Kind::Loha => "loha",
            Kind::Hira => "hira",
        }
    }

    /// PEFT's name of the tuner that reads it, where there is one.
    pub fn peft_type(self) -> Option<&'static str> {
        match self {
            Kind::Lora | Kind::LoraXs => Some("LORA"),
            Kind::Gralora => Some("GRALORA"),
            Kind::C3a => Some("C3A"),
            Kind::Miss | Kind::Bat => Some("MISS"),
            Kind::FourierFt => Some("FOURIERFT"),
            Kind::Lokr => Some("LOKR"),
            Kind::Loha => Some("LOHA"),
            Kind::Hira => Some("HIRA"),
            Kind::Diablo => None,
        }
    }

    /// The settings of a folder of such modules. All scales are 1, but for C3A and FourierFT.
    pub(crate) fn settings(self, size: usize, modules: &[(String, Extracted)]) -> serde_json::Value {
        match self {
            Kind::Lora | Kind::LoraXs => {
                json!({ "bias": "none", "r": size, "lora_alpha": size, "init_lora_weights": true })
            }
            Kind::Gralora => {
                json!({ "bias": "none", "r": size, "alpha": size, "gralora_k": gralora::GRID, "hybrid_r": 0 })
            }
            Kind::C3a => json!({ "bias": "none", "block_size": size }),
            Kind::Miss => json!({ "bias": "none", "r": size, "mini_r": 1, "init_weights": true }),
            Kind::Bat => json!({ "bias": "none", "r": size, "mini_r": 1, "init_weights": "bat" }),
            Kind::FourierFt => json!({
                "bias": "none", "n_frequency": size, "scaling": fourier_ft::SCALE, "random_loc_seed": SEED,
            }),
            Kind::Lokr => {
                let rank = lokr::whole(modules);
                json!({ "r": rank, "alpha": rank, "decompose_factor": size, "decompose_both": false })
            }
            Kind::Loha => json!({ "r": size, "alpha": size }),
            Kind::Hira => json!({ "r": size }),
            Kind::Diablo => json!({}),
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
/// [`Error::Parameter`] for a size that the shape does not allow, [`Error::NonFinite`] for NaN or infinities, [`Error::Unsupported`] for families
/// whose change depends on the base: those take [`extract_on`].
pub fn extract(delta: &ArrayRef2<f64>, kind: Kind, size: usize) -> Result<Extracted> {
    find(None, delta, kind, size)
}

/// The member of a family whose change of `base` is nearest to `delta` (both out x in).
///
/// ```
/// use structmat::adapters::extract::{Kind, extract_on};
/// use structmat::ndarray::array;
/// let base = array![[1.0, 2.0], [3.0, 4.0]];
/// let found = extract_on(&base, &array![[0.0, 2.0], [0.0, 3.0]], Kind::Bat, 2)?;      // D = W B + B
/// assert!(found.relative_error < 1e-6);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// As [`extract`], and [`Error::Shape`] when the shapes differ.
pub fn extract_on(
    base: &ArrayRef2<f64>,
    delta: &ArrayRef2<f64>,
    kind: Kind,
    size: usize,
) -> Result<Extracted> {
    if base.dim() != delta.dim() {
        return Err(Error::shape("change of a weight", base.shape(), delta.shape()));
    }
    crate::linalg::check_finite("base weight", base)?;
    find(Some(base), delta, kind, size)
}

fn find(base: Option<&ArrayRef2<f64>>, delta: &ArrayRef2<f64>, kind: Kind, size: usize) -> Result<Extracted> {
    crate::linalg::check_finite("change of a weight", delta)?;
    let base = || {
        base.ok_or_else(|| Error::Unsupported {
            structure: kind.name().to_owned(),
            what: "its change depends on the base weight, which must be given: see `extract_on`".to_owned(),
        })
    };
    let found = match kind {
        Kind::Lora => lora::find(delta, size),
        Kind::LoraXs => lora_xs::find(base()?, delta, size),
        Kind::Gralora => gralora::find(delta, size),
        Kind::C3a => c3a::find(delta, size),
        Kind::Miss => miss::find(delta, size),
        Kind::FourierFt => fourier_ft::find(delta, size),
        Kind::Diablo => diablo::find(delta, size),
        Kind::Lokr => lokr::find(delta, size),
        Kind::Bat => bat::find(base()?, delta, size),
        Kind::Loha => loha::find(delta, size),
        Kind::Hira => hira::find(base()?, delta, size),
    }?;
    let relative_error = found.change.relative_error(delta)?;
    Ok(Extracted { adapter: found.adapter, tensors: found.tensors, relative_error })
}

/// A member of a family.
struct Found {
    adapter: Arc<dyn Adapter>,
    /// What it adds to the base.
    change: Boxed,
    tensors: Vec<(&'static str, ArrayD<f64>)>,
}

impl Found {
    fn additive(adapter: Additive, tensors: Vec<(&'static str, ArrayD<f64>)>) -> Self {
        let change = adapter.matrix().clone_box();
        Self { adapter: Arc::new(adapter), change, tensors }
    }

    /// One whose change is made when it is bound.
    fn bound(
        adapter: impl Adapter + 'static,
        base: &ArrayRef2<f64>,
        tensors: Vec<(&'static str, ArrayD<f64>)>,
    ) -> Result<Self> {
        let base = Dense::from_factor(Factor::from_matrix(Storage::F64, base))?;
        let delta: Array2<f64> = adapter.delta(&base)?;
        let change = Box::new(Dense::from_factor(Factor::from_matrix(Storage::F64, &delta))?);
        Ok(Self { adapter: Arc::new(adapter), change, tensors })
    }
}

/// [`Error::Parameter`] unless a size fits.
fn check(fits: bool, size: usize, wanted: impl FnOnce() -> String) -> Result<()> {
    match fits && size > 0 {
        true => Ok(()),
        false => Err(Error::parameter("rank", size, wanted())),
    }
}

/// As files hold it, so that what is reported is what is read back.
fn single(a: &ArrayRef2<f64>) -> Array2<f32> {
    a.mapv(|v| v as f32)
}
