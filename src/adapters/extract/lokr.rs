use super::{Extracted, Found, check};
use crate::adapters::methods;
use crate::error::Result;
use crate::matrix::StructuredMatrix;
use crate::projection::{Family, Objective, Options};
use crate::storage::Storage;
use crate::structures::{Kronecker, KroneckerSpec};
use ndarray::ArrayRef2;

/// The Kronecker product nearest to the change, of the sizes that LyCORIS and PEFT choose.
pub(super) fn find(delta: &ArrayRef2<f64>, factor: usize) -> Result<Found> {
    let (m, n) = delta.dim();
    check(m > 0 && n > 0, factor, || "at least 1, of a matrix that is not empty".to_owned())?;
    let spec = KroneckerSpec { terms: 1, rows: sides(m, factor), cols: sides(n, factor) };
    let options = Options { storage: Storage::F64, ..Options::default() };
    let nearest = Kronecker::project(delta, &spec, &Objective::Frobenius, &options)?.matrix;
    let mut parts = nearest.parts();
    let (a, b) = (parts.take_factor("a")?.matrix(0), parts.take_factor("b")?.matrix(0));
    Ok(Found::additive(
        methods::lokr(&a, &b, 1.0)?,
        vec![("lokr_w1", a.into_dyn()), ("lokr_w2", b.into_dyn())],
    ))
}

/// `(factor, len / factor)` where that divides, else the most balanced factors of which the smaller one is at most `factor`.
fn sides(len: usize, factor: usize) -> (usize, usize) {
    if factor > 0 && len.is_multiple_of(factor) {
        return (factor, len / factor);
    }
    let small = (1..=factor.min(len)).take_while(|a| a.saturating_mul(*a) <= len);
    let small = small.filter(|a| len.is_multiple_of(*a)).last().unwrap_or(1);
    (small, len / small)
}

/// A rank at which every right factor is stored whole.
pub(super) fn whole(modules: &[(String, Extracted)]) -> usize {
    let tensors = modules.iter().flat_map(|(_, found)| &found.tensors);
    let right = tensors.filter(|(name, _)| *name == "lokr_w2");
    right.flat_map(|(_, tensor)| tensor.shape()).copied().max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::sides;

    #[test]
    fn sides_follow_the_published_rule() {
        // The rule of LyCORIS, followed step by step.
        for (len, factor, expected) in [
            (48, 8, (8, 6)),
            (64, 8, (8, 8)),
            (127, 8, (1, 127)),
            (128, 8, (8, 16)),
            (250, 16, (10, 25)),
            (360, 7, (6, 60)),
            (360, 100, (18, 20)),
            (1, 4, (1, 1)),
            (5, 5, (5, 1)),
        ] {
            assert_eq!(sides(len, factor), expected, "{len} {factor}");
        }
    }
}
