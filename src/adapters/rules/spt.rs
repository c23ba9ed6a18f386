use crate::error::{Error, Result};
use ndarray::Array2;

/// Settings of [`spt`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SptSettings {
    /// Rank of the LoRA of a structured matrix.
    pub rank: usize,
    /// A matrix whose marks are at least a fraction `1 / alpha` of its LoRA's parameters is structured.
    pub alpha: f64,
    /// A vector of which at least a fraction `1 / beta` is marked is trained whole.
    pub beta: f64,
}

impl Default for SptSettings {
    /// Those of the published script: rank 8, 10 and 5.
    fn default() -> Self {
        Self { rank: 8, alpha: 10.0, beta: 5.0 }
    }
}

/// What [`spt`] decided.
#[derive(Debug, Clone, PartialEq)]
pub struct SptPlan {
    /// Which matrices get a LoRA of the rank of the settings.
    pub structured: Vec<bool>,
    /// The entries `(row, column)` of each matrix that are trained one by one; none of a structured one.
    pub entries: Vec<Vec<(usize, usize)>>,
    /// Which vectors are trained whole.
    pub whole: Vec<bool>,
    /// The entries of each vector that are trained one by one; none of a whole one.
    pub vector_entries: Vec<Vec<usize>>,
    /// Scores marked, the highest of all.
    pub marks: usize,
    /// Trained parameters.
    pub total: usize,
}

/// SPT: of squared gradients summed over batches, one array per candidate parameter, the highest mark where to train. A matrix with many
/// marks gets a LoRA, another one trains its marked entries alone ([`sparse_delta`](crate::adapters::methods::sparse_delta)); a vector with many is
/// trained whole.
///
/// As many scores are marked as bring the parameters nearest to `budget`; of two as near, fewer. The total never falls when one more is marked, so
/// bisection finds them, where the published code tries 79 numbers of marks. A larger budget never takes a LoRA away. Equal scores are marked in
/// order.
///
/// Source: H. He et al., "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", 2023.
///
/// # Errors
/// [`Error::Parameter`] for a rank of 0, `alpha` or `beta` below 1 or not finite, or a score that is negative or not finite.
///
/// ```
/// use structmat::adapters::rules::{SptSettings, spt};
/// use structmat::ndarray::{Array2, array};
/// let settings = SptSettings { rank: 1, alpha: 2.0, beta: 5.0 };
/// let scores = [array![[9.0, 8.0], [7.0, 1.0]], array![[0.5, 6.0], [0.0, 0.0]]];
/// let plan = spt(&scores, &[], 5, &settings)?;
/// assert_eq!(plan.structured, [true, false]);                        // by a LoRA of 4 parameters
/// assert_eq!((plan.entries[1].as_slice(), plan.total), ([(0, 1)].as_slice(), 5));
/// # Ok::<(), structmat::Error>(())
/// ```
pub fn spt(
    matrices: &[Array2<f64>],
    vectors: &[Vec<f64>],
    budget: usize,
    settings: &SptSettings,
) -> Result<SptPlan> {
    let &SptSettings { rank, alpha, beta } = settings;
    if rank == 0 {
        return Err(Error::parameter("rank", rank, "at least 1"));
    }
    for (name, value) in [("alpha", alpha), ("beta", beta)] {
        if !(value >= 1.0 && value.is_finite()) {
            return Err(Error::parameter(name, value, "a finite number, at least 1"));
        }
    }
    let numbers = matrices.iter().flatten().chain(vectors.iter().flatten());
    if let Some(score) = numbers.clone().find(|score| !(**score >= 0.0 && score.is_finite())) {
        return Err(Error::parameter("score", score, "a finite number >= 0"));
    }
    // Each score with the parameter that it belongs to and its place there.
    let places = (0..matrices.len()).flat_map(|k| (0..matrices[k].len()).map(move |at| (k, at)));
    let first = matrices.len();
    let places =
        places.chain((0..vectors.len()).flat_map(|k| (0..vectors[k].len()).map(move |at| (first + k, at))));
    let mut order: Vec<(f64, usize, usize)> = numbers.zip(places).map(|(s, (k, at))| (*s, k, at)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    // Parameters of each when it is trained as a whole, and the marks from which on it is.
    let structured = |w: &Array2<f64>| {
        let params = rank.saturating_mul(w.nrows().saturating_add(w.ncols()));
        (params, params as f64 / alpha)
    };
    let sizes: Vec<(usize, f64)> = matrices
        .iter()
        .map(structured)
        .chain(vectors.iter().map(|v| (v.len(), v.len() as f64 / beta)))
        .collect();
    let count = |marks: usize| {
        let mut counts = vec![0usize; sizes.len()];
        order[..marks].iter().for_each(|(_, k, _)| counts[*k] += 1);
        counts
    };
    let is_whole = |count: usize, (_, least): (usize, f64)| count > 0 && count as f64 >= least;
    let total = |marks: usize| -> usize {
        let counts = count(marks);
        let each = counts
            .iter()
            .zip(&sizes)
            .map(|(&count, &size)| if is_whole(count, size) { size.0 } else { count });
        each.fold(0, usize::saturating_add)
    };
    // The most marks within the budget.
    let (mut within, mut beyond) = (0, order.len() + 1);
    while beyond - within > 1 {
        let middle = within + (beyond - within) / 2;
        if total(middle) <= budget { within = middle } else { beyond = middle }
    }
    let (mut marks, mut reached) = (within, total(within));
    if beyond <= order.len() {
        let more = total(beyond);
        if more - budget < budget - reached {
            (marks, reached) = (beyond, more);
        }
    }
    let whole: Vec<bool> =
        count(marks).into_iter().zip(&sizes).map(|(count, &size)| is_whole(count, size)).collect();
    let mut entries = vec![Vec::new(); matrices.len()];
    let mut vector_entries = vec![Vec::new(); vectors.len()];
    for &(_, k, at) in order[..marks].iter().filter(|(_, k, _)| !whole[*k]) {
        match matrices.get(k) {
            Some(w) => entries[k].push((at / w.ncols(), at % w.ncols())),
            None => vector_entries[k - first].push(at),
        }
    }
    entries.iter_mut().for_each(|entries| entries.sort_unstable());
    vector_entries.iter_mut().for_each(|entries| entries.sort_unstable());
    let (structured, whole) = (whole[..first].to_vec(), whole[first..].to_vec());
    Ok(SptPlan { structured, entries, whole, vector_entries, marks, total: reached })
}
