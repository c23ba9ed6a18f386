//! Whole parts of a whole, as near to proportional as they can be.

use crate::error::{Error, Result};

/// Splits `total` into whole parts proportional to `weights`, each between its floor and its cap: what is left above the floors is shared out by
/// largest remainders, equal ones in order; what a cap refuses goes to the others. Where all that is left has weight 0, parts count alike.
///
/// # Errors
/// [`Error::Shape`] when the lists differ in length, [`Error::Parameter`] for a weight that is negative or not finite, a floor above its cap, or
/// a total below all floors or above all caps.
///
/// ```
/// use structmat::allocation::apportion;
/// assert_eq!(apportion(10, &[3.0, 1.0, 0.0], &[1, 1, 1], &[9, 9, 9])?, [6, 3, 1]);
/// assert_eq!(apportion(10, &[3.0, 1.0, 0.0], &[1, 1, 1], &[4, 9, 9])?, [4, 5, 1]);
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn apportion(total: usize, weights: &[f64], floors: &[usize], caps: &[usize]) -> Result<Vec<usize>> {
    let count = weights.len();
    if floors.len() != count || caps.len() != count {
        let received = if floors.len() != count { floors.len() } else { caps.len() };
        return Err(Error::shape("floors and caps of parts", &[count], &[received]));
    }
    if let Some(weight) = weights.iter().find(|weight| !(**weight >= 0.0 && weight.is_finite())) {
        return Err(Error::parameter("weight", weight, "a finite number >= 0"));
    }
    if let Some((floor, cap)) = floors.iter().zip(caps).find(|(floor, cap)| floor > cap) {
        return Err(Error::parameter("floor", floor, format!("at most the cap, {cap}")));
    }
    let sum = |parts: &[usize]| parts.iter().fold(0usize, |sum, part| sum.saturating_add(*part));
    let (least, most) = (sum(floors), sum(caps));
    if total < least || total > most {
        return Err(Error::parameter("total", total, format!("{least} to {most}")));
    }
    let (mut parts, mut left) = (floors.to_vec(), total - least);
    let mut open: Vec<usize> = (0..count).filter(|&i| weights[i] > 0.0).collect();
    while left > 0 {
        open.retain(|&i| parts[i] < caps[i]);
        if open.is_empty() {
            // Only parts without weight have room.
            open = (0..count).filter(|&i| parts[i] < caps[i]).collect();
        }
        let largest = open.iter().map(|&i| weights[i]).fold(0.0, f64::max);
        let weight = |i: usize| if largest > 0.0 { weights[i] / largest } else { 1.0 };
        let all: f64 = open.iter().map(|&i| weight(i)).sum();
        let share = |i: usize| left as f64 * weight(i) / all;
        let full: Vec<usize> =
            open.iter().copied().filter(|&i| share(i) >= (caps[i] - parts[i]) as f64).collect();
        if !full.is_empty() {
            for i in full {
                let given = (caps[i] - parts[i]).min(left);
                parts[i] += given;
                left -= given;
            }
            continue;
        }
        let mut remainders: Vec<(f64, usize)> = Vec::with_capacity(open.len());
        let before = left;
        for &i in &open {
            let share = before as f64 * weight(i) / all;
            let whole = (share as usize).min(caps[i] - parts[i]).min(left);
            parts[i] += whole;
            left -= whole;
            remainders.push((share - whole as f64, i));
        }
        remainders.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, i) in remainders {
            let one = usize::from(left > 0 && parts[i] < caps[i]);
            parts[i] += one;
            left -= one;
        }
    }
    Ok(parts)
}
