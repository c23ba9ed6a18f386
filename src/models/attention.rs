use super::architecture::Architecture;
use super::pointwise::{Softmax, over_rows, run};
use crate::exec::Policy;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

/// Queries that meet all their keys at once: what bounds the memory of the scores.
const QUERIES: usize = 64;

/// Attention of each sequence to itself: `softmax(Q Kᵀ / sqrt(head_dim)) V`, head by head.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    causal: bool,
    /// The angle per position of each pair of features, where positions are rotary.
    frequencies: Option<Vec<f64>>,
}

impl Attention {
    pub(super) fn new(architecture: &Architecture) -> Self {
        let sizes = &architecture.sizes;
        let head_dim = sizes.head_dim();
        let frequency = |theta: f64, i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
        let frequencies =
            architecture.rope_theta.map(|theta| (0..head_dim / 2).map(|i| frequency(theta, i)).collect());
        let (heads, kv_heads, causal) = (sizes.heads, sizes.kv_heads, architecture.causal);
        Self { heads, kv_heads, head_dim, causal, frequencies }
    }

    /// Queries (tokens x heads * head_dim), keys and values (tokens x kv_heads * head_dim) to the heads' results (as the queries).
    pub(super) fn run(
        &self,
        mut q: Array2<f32>,
        mut k: Array2<f32>,
        v: &Array2<f32>,
        offsets: &[usize],
        policy: Policy,
    ) -> Array2<f32> {
        let longest = offsets.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0);
        let work = q.len().saturating_mul(2 * longest);
        if let Some(frequencies) = &self.frequencies {
            // cos and sin, position x pair of features.
            let angle = |(position, i): (usize, usize)| position as f64 * frequencies[i];
            let turns = Array2::from_shape_fn((longest, self.head_dim / 2), angle)
                .mapv(|a| (a.cos() as f32, a.sin() as f32));
            for x in [&mut q, &mut k] {
                let tasks = policy.tasks(8 * x.len());
                over_rows(tasks, 0, x.view_mut(), &|first, rows| self.rotate(&turns, offsets, first, rows));
            }
        }
        let mut y = Array2::zeros(q.raw_dim());
        let (q, k, v) = (q.view(), k.view(), v.view());
        over_rows(policy.tasks(work), 0, y.view_mut(), &|first, y| {
            self.attend([q, k, v], offsets, first, y, policy);
        });
        y
    }

    /// Turns feature `i` of each head against feature `i + head_dim / 2`.
    fn rotate(
        &self,
        turns: &Array2<(f32, f32)>,
        offsets: &[usize],
        first: usize,
        mut rows: ArrayViewMut2<'_, f32>,
    ) {
        for (row, mut x) in (first..).zip(rows.outer_iter_mut()) {
            let sequence = offsets.partition_point(|start| *start <= row) - 1;
            let turns = turns.row(row - offsets[sequence]);
            for mut head in x.exact_chunks_mut(self.head_dim) {
                let (mut low, mut high) =
                    head.multi_slice_mut((s![..self.head_dim / 2], s![self.head_dim / 2..]));
                for ((a, b), (cos, sin)) in low.iter_mut().zip(high.iter_mut()).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }

    /// Rows `first..` of the result, which may begin and end inside of sequences.
    fn attend(
        &self,
        [q, k, v]: [ArrayView2<'_, f32>; 3],
        offsets: &[usize],
        first: usize,
        mut y: ArrayViewMut2<'_, f32>,
        policy: Policy,
    ) {
        let end = first + y.nrows();
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let mut scores = Vec::new();
        let mut row = first;
        while row < end {
            let sequence = offsets.partition_point(|start| *start <= row) - 1;
            let (start, stop) = (offsets[sequence], offsets[sequence + 1]);
            let queries = row..(row + QUERIES).min(stop).min(end);
            let keys = start..if self.causal { queries.end } else { stop };
            scores.resize(scores.len().max(queries.len() * keys.len()), 0.0f32);
            let scores = &mut scores[..queries.len() * keys.len()];
            for head in 0..self.heads {
                let own = head * self.head_dim..(head + 1) * self.head_dim;
                let shared = head / (self.heads / self.kv_heads) * self.head_dim;
                let shared = shared..shared + self.head_dim;
                let Ok(mut a) = ArrayViewMut2::from_shape((queries.len(), keys.len()), &mut *scores) else {
                    return;
                };
                let k = k.slice(s![keys.clone(), shared.clone()]);
                general_mat_mul(scale, &q.slice(s![queries.clone(), own.clone()]), &k.t(), 0.0, &mut a);
                for (query, row) in queries.clone().zip(a.outer_iter_mut()) {
                    let seen = if self.causal { query + 1 - start } else { keys.len() };
                    if let Some(row) = row.into_slice() {
                        run(policy, Softmax { row, seen });
                    }
                }
                let mut y = y.slice_mut(s![queries.start - first..queries.end - first, own]);
                general_mat_mul(1.0, &a, &v.slice(s![keys.clone(), shared]), 0.0, &mut y);
            }
            row = queries.end;
        }
    }
}
