//! Group-wise integer codes.

use super::{Data, Storage};
use crate::kernels::AlignedVec;
use half::bf16;
use ndarray::ArrayRef2;

/// Consecutive numbers of a row that share a scale.
pub const GROUP: usize = 32;

/// Scales tried per group of 4-bit codes, as fractions of the one that represents the largest magnitude.
const SHRINK: [f64; 12] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.73, 0.70, 0.67];

/// Codes (row-major, one `i8` each) and scales (`rows x ceil(cols / GROUP)`) of the rows that `fill` fills in.
pub(super) fn int8(
    (rows, cols): (usize, usize),
    fill: &mut dyn FnMut(usize, &mut [f64]),
) -> (AlignedVec<i8>, AlignedVec<bf16>) {
    let mut codes = AlignedVec::zeroed(rows * cols);
    let scales = quantize((rows, cols), Codes::INT8, fill, |i, j, code| codes[i * cols + j] = code);
    (codes, scales)
}

/// The same with 4-bit codes; code `j` of a row is the low (even `j`) or high nibble of byte `j / 2`, offset by 8.
pub(super) fn int4(
    (rows, cols): (usize, usize),
    fill: &mut dyn FnMut(usize, &mut [f64]),
) -> (AlignedVec<u8>, AlignedVec<bf16>) {
    let mut codes = nibbles(rows, cols);
    let scales =
        quantize((rows, cols), Codes::INT4, fill, |i, j, code| set_nibble(&mut codes, cols, (i, j), code));
    (codes, scales)
}

/// Codes of zero.
fn nibbles(rows: usize, cols: usize) -> AlignedVec<u8> {
    AlignedVec::from_fn(rows * cols.div_ceil(2), |_| 0x88u8)
}

fn set_nibble(codes: &mut AlignedVec<u8>, cols: usize, (i, j): (usize, usize), code: i8) {
    let (byte, shift) = (&mut codes[i * cols.div_ceil(2) + j / 2], 4 * (j % 2));
    *byte = (*byte & !(0xf << shift)) | (((code + 8) as u8) << shift);
}

/// How numbers of a storage with codes are rounded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codes {
    max_code: f64,
    shrink: &'static [f64],
    /// Two in a byte.
    paired: bool,
}

impl Codes {
    const INT8: Self = Self { max_code: 127.0, shrink: &[1.0], paired: false };
    const INT4: Self = Self { max_code: 7.0, shrink: &SHRINK, paired: true };

    /// Of storages that have them.
    pub(crate) fn of(storage: Storage) -> Option<Self> {
        match storage {
            Storage::Int8 => Some(Self::INT8),
            Storage::Int4 => Some(Self::INT4),
            Storage::F64 | Storage::F32 | Storage::Bf16 | Storage::F16 => None,
        }
    }

    /// The scale of a group with the least squared error, where errors count as `weights` say.
    pub(crate) fn scale(self, group: &[f64], weights: &[f64]) -> bf16 {
        best_scale(group, weights, self.max_code, self.shrink)
    }

    /// The code of a number.
    pub(crate) fn code(self, value: f64, scale: bf16) -> i8 {
        encode(value, scale.to_f64(), self.max_code) as i8
    }

    /// What is stored for codes (rows x cols) and scales (rows x groups).
    pub(crate) fn data(self, codes: &ArrayRef2<i8>, scales: &ArrayRef2<bf16>) -> Data {
        let ((rows, cols), groups) = (codes.dim(), scales.ncols());
        let scales = AlignedVec::from_fn(rows * groups, |k| scales[[k / groups, k % groups]]);
        if !self.paired {
            return Data::Int8 {
                codes: AlignedVec::from_fn(rows * cols, |k| codes[[k / cols, k % cols]]),
                scales,
            };
        }
        let mut packed = nibbles(rows, cols);
        codes.indexed_iter().for_each(|(at, code)| set_nibble(&mut packed, cols, at, *code));
        Data::Int4 { codes: packed, scales }
    }
}

fn quantize(
    (rows, cols): (usize, usize),
    codes: Codes,
    fill: &mut dyn FnMut(usize, &mut [f64]),
    mut store: impl FnMut(usize, usize, i8),
) -> AlignedVec<bf16> {
    let groups = cols.div_ceil(GROUP);
    let mut scales = AlignedVec::zeroed(rows * groups);
    let mut values = vec![0.0; cols];
    for i in 0..rows {
        fill(i, &mut values);
        for (g, group) in values.chunks(GROUP).enumerate() {
            let scale = codes.scale(group, &[1.0; GROUP]);
            scales[i * groups + g] = scale;
            for (j, value) in group.iter().enumerate() {
                store(i, g * GROUP + j, codes.code(*value, scale));
            }
        }
    }
    scales
}

fn encode(value: f64, scale: f64, max_code: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { (value / scale).round().clamp(-max_code, max_code) }
}

/// The candidate scale, already rounded to bf16, with the least squared error.
fn best_scale(group: &[f64], weights: &[f64], max_code: f64, shrink: &[f64]) -> bf16 {
    let largest = group.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    let error = |scale: bf16| -> f64 {
        let scale = scale.to_f64();
        group.iter().zip(weights).map(|(v, w)| w * (v - scale * encode(*v, scale, max_code)).powi(2)).sum()
    };
    let candidates =
        shrink.iter().map(|f| bf16::from_f64(f * largest / max_code)).filter(|scale| scale.is_finite());
    candidates.min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap_or(bf16::MAX)
}
