//! Calibration: what the layers of a model see, gathered in forward passes.

mod moments;

pub use moments::Moments;

use crate::error::{Error, Result};
use crate::io::{Checkpoint, Writer};
use crate::scalar::Scalar;
use moments::Cross;
use ndarray::{Array1, Array2, ArrayRef2, Ix1};
use std::collections::BTreeMap;
use std::path::Path;

/// [`Moments`] of every group of matrices that share an input, by name: fed by forward passes, merged across shards of the data, kept in a
/// safetensors file.
///
/// ```
/// use structmat::calibration::Calibrator;
/// use structmat::ndarray::array;
/// let mut calibrator = Calibrator::default();
/// calibrator.observe("layer.0.attention", &array![[1.0f32, 2.0]])?; // in the forward pass, for every batch
/// let moments = calibrator.moments("layer.0.attention")?;
/// assert_eq!((moments.samples(), moments.in_features()), (1.0, 2));
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calibrator {
    groups: BTreeMap<String, Moments>,
}

impl Calibrator {
    /// Takes in a batch of inputs (batch x in) of a group.
    ///
    /// # Errors
    /// Those of [`Moments::accumulate`].
    pub fn observe<T: Scalar>(&mut self, group: &str, x: &ArrayRef2<T>) -> Result<()> {
        self.group(group, x.ncols()).accumulate(x)
    }

    /// Takes in a batch that a group sees and what the dense model sees in its place (batch x in).
    ///
    /// # Errors
    /// Those of [`Moments::accumulate_pair`].
    pub fn observe_pair<T: Scalar>(
        &mut self,
        group: &str,
        x: &ArrayRef2<T>,
        seen: &ArrayRef2<T>,
    ) -> Result<()> {
        self.group(group, seen.ncols()).accumulate_pair(x, seen)
    }

    fn group(&mut self, name: &str, in_features: usize) -> &mut Moments {
        self.groups.entry(name.to_owned()).or_insert_with(|| Moments::new(in_features))
    }

    /// Takes in what another calibrator has seen.
    ///
    /// # Errors
    /// [`Error::Shape`] for a group of another width; nothing is taken in then.
    pub fn merge(&mut self, other: &Calibrator) -> Result<()> {
        let mut merged = self.groups.clone();
        for (name, moments) in &other.groups {
            merged
                .entry(name.clone())
                .or_insert_with(|| Moments::new(moments.in_features()))
                .merge(moments)?;
        }
        self.groups = merged;
        Ok(())
    }

    /// What a group has seen.
    ///
    /// # Errors
    /// [`Error::Unknown`] with the groups there are.
    pub fn moments(&self, group: &str) -> Result<&Moments> {
        self.groups.get(group).ok_or_else(|| Error::Unknown {
            kind: "group of inputs",
            name: group.to_owned(),
            expected: self.groups.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Names of the groups, sorted.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// Writes all moments to a safetensors file, in `f64`.
    ///
    /// # Errors
    /// Those of [`Writer::write`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = Writer::new();
        for (name, moments) in &self.groups {
            file.array(&format!("{name}{SAMPLES}"), &Array1::from_elem(1, moments.samples))?;
            file.array(&format!("{name}{MEAN}"), &moments.mean)?;
            file.array(&format!("{name}{SECOND}"), &moments.second)?;
            if let Some(dense) = &moments.dense {
                file.array(&format!("{name}{DENSE_MEAN}"), &dense.mean)?;
                file.array(&format!("{name}{CROSS}"), &dense.second)?;
            }
        }
        file.write(path)
    }

    /// Reads what [`save`](Self::save) has written.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is not that, [`Error::Shape`], [`Error::NonFinite`] and [`Error::NotPositiveSemiDefinite`] for moments
    /// that cannot be.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let names = file.tensors().filter_map(|name| name.strip_suffix(SAMPLES).map(str::to_owned));
        let mut groups = BTreeMap::new();
        for name in names.collect::<Vec<_>>() {
            let vector = |suffix: &str, len: usize| -> Result<Array1<f64>> {
                let array = file.array::<f64>(&format!("{name}{suffix}"))?;
                if array.shape() != [len] {
                    return Err(Error::shape("moments", &[len], array.shape()));
                }
                array.into_dimensionality::<Ix1>().map_err(|_| Error::shape("moments", &[len], &[]))
            };
            let square = |suffix: &str, n: usize| -> Result<Array2<f64>> {
                let matrix = file.matrix::<f64>(&format!("{name}{suffix}"))?;
                if matrix.dim() != (n, n) {
                    return Err(Error::shape("moments", &[n, n], matrix.shape()));
                }
                crate::linalg::check_finite("moments", &matrix)?;
                Ok(matrix)
            };
            let samples = vector(SAMPLES, 1)?[0];
            if !(samples >= 0.0 && samples.is_finite()) {
                let reason = format!("{samples} samples of `{name}`");
                return Err(Error::File { path: file.path().to_owned(), reason });
            }
            let n =
                file.shape(&format!("{name}{MEAN}")).and_then(|shape| shape.first().copied()).unwrap_or(0);
            let dense = match file.shape(&format!("{name}{CROSS}")) {
                None => None,
                Some(_) => Some(Cross { mean: vector(DENSE_MEAN, n)?, second: square(CROSS, n)? }),
            };
            let moments = Moments { samples, mean: vector(MEAN, n)?, second: square(SECOND, n)?, dense };
            moments.gram(false, 0.0)?;
            groups.insert(name, moments);
        }
        Ok(Self { groups })
    }
}

const SAMPLES: &str = ".samples";
const MEAN: &str = ".mean";
const SECOND: &str = ".second_moment";
const DENSE_MEAN: &str = ".dense_mean";
const CROSS: &str = ".cross_moment";

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn files_and_shards() {
        let mut one = Calibrator::default();
        one.observe("a", &array![[1.0f32, 2.0], [0.5, -1.0]]).unwrap();
        one.observe_pair("b", &array![[1.0f32, 2.0, 3.0]], &array![[1.5, 2.0, 2.5]]).unwrap();
        let path =
            std::env::temp_dir().join(format!("structmat-calibration-{}.safetensors", std::process::id()));
        one.save(&path).unwrap();
        let read = Calibrator::load(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read, one);
        assert_eq!(read.groups().collect::<Vec<_>>(), ["a", "b"]);
        let mut both = read.clone();
        both.merge(&one).unwrap();
        assert_eq!(both.moments("a").unwrap().samples(), 4.0);
        assert_eq!(both.moments("a").unwrap().second, one.moments("a").unwrap().second);
        assert!(matches!(both.moments("c"), Err(Error::Unknown { .. })));
        let mut other = Calibrator::default();
        other.observe("a", &array![[1.0f32]]).unwrap();
        assert!(matches!(both.merge(&other), Err(Error::Shape { .. })));
    }
}
