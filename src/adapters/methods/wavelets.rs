//! The filters of orthogonal wavelets.

/// The reconstruction low-pass filters, one per line: Daubechies 1 to 38, symlets 2 to 20, coiflets 1 to 17.
const FILTERS: &str = include_str!("wavelets.txt");

/// An orthogonal wavelet, by its reconstruction filters.
///
/// ```
/// use structmat::adapters::methods::Wavelet;
/// let haar = Wavelet::named("db1").expect("one of those shipped");
/// assert!((haar.low()[0] - 0.5f64.sqrt()).abs() < 1e-15 && haar.high()[1] < 0.0);
/// assert!(Wavelet::named("mexh").is_none());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Wavelet {
    low: Vec<f64>,
}

impl Wavelet {
    /// `db1` to `db38`, `sym2` to `sym20`, `coif1` to `coif17`; `None` for another name.
    pub fn named(name: &str) -> Option<Self> {
        let line =
            FILTERS.lines().find_map(|line| line.split_once(' ').filter(|(known, _)| *known == name))?;
        Some(Self { low: line.1.split(' ').filter_map(|number| number.parse().ok()).collect() })
    }

    /// The low-pass filter, of an even number of taps.
    pub fn low(&self) -> &[f64] {
        &self.low
    }

    /// The high-pass filter: `(-1)^k low[L - 1 - k]`.
    pub fn high(&self) -> Vec<f64> {
        let signs = [1.0, -1.0].into_iter().cycle();
        self.low.iter().rev().zip(signs).map(|(value, sign)| sign * value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_orthonormal_to_their_even_shifts() {
        for line in FILTERS.lines() {
            let name = line.split(' ').next().unwrap();
            let wavelet = Wavelet::named(name).unwrap();
            let (low, high) = (wavelet.low(), wavelet.high());
            assert_eq!(low.len() + 1, line.split(' ').count(), "{name}");
            for shift in (0..low.len()).step_by(2) {
                let dot = |a: &[f64], b: &[f64]| a[shift..].iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let expected = if shift == 0 { 1.0 } else { 0.0 };
                // The longest filters of the published tables are good to eight digits.
                assert!((dot(low, low) - expected).abs() < 1e-7, "{name} {shift}");
                assert!(dot(low, &high).abs() < 1e-7, "{name} {shift}");
            }
        }
    }
}
