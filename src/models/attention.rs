use super::architecture::Architecture;
use super::pointwise::{Softmax, SoftmaxBack, over_rows, run};
use crate::exec::Policy;
use crate::kernels::join;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayRef2, ArrayView2, ArrayViewMut2, Axis, s};
use std::ops::Range;

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
        self.turn(&mut [&mut q, &mut k], offsets, 1.0, policy);
        let mut y = Array2::zeros(q.raw_dim());
        let (q, k, v) = (q.view(), k.view(), v.view());
        over_rows(policy.tasks(work(&q, offsets)), 0, y.view_mut(), &|first, y| {
            self.attend([q, k, v], offsets, first, y, policy);
        });
        y
    }

    /// The gradients of queries, keys and values, from that of the result, `d` (tokens x heads * head_dim).
    pub(super) fn backward(
        &self,
        [q, k, v]: [&Array2<f32>; 3],
        d: &Array2<f32>,
        offsets: &[usize],
        policy: Policy,
    ) -> [Array2<f32>; 3] {
        let (mut q, mut k) = (q.clone(), k.clone());
        self.turn(&mut [&mut q, &mut k], offsets, 1.0, policy);
        let mut gradients = [&q, &k, v].map(|x| Array2::zeros(x.raw_dim()));
        let inputs = [q.view(), k.view(), v.view(), d.view()];
        let tasks = policy.tasks(work(&q, offsets).saturating_mul(3));
        self.backward_sequences(inputs, offsets, gradients.each_mut().map(|g| g.view_mut()), tasks, policy);
        let [dq, dk, _] = &mut gradients;
        self.turn(&mut [dq, dk], offsets, -1.0, policy);
        gradients
    }

    /// Turns queries and keys as their positions ask (or back, with -1 for `direction`), where positions are rotary.
    fn turn(&self, arrays: &mut [&mut Array2<f32>], offsets: &[usize], direction: f64, policy: Policy) {
        let Some(frequencies) = &self.frequencies else { return };
        // cos and sin, position x pair of features.
        let angle = |(position, i): (usize, usize)| direction * position as f64 * frequencies[i];
        let turns = Array2::from_shape_fn((longest(offsets), self.head_dim / 2), angle)
            .mapv(|a| (a.cos() as f32, a.sin() as f32));
        for x in arrays {
            let tasks = policy.tasks(8 * x.len());
            over_rows(tasks, 0, x.view_mut(), &|first, rows| self.rotate(&turns, offsets, first, rows));
        }
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
        let mut buffer = buffer(offsets);
        let mut row = first;
        while row < end {
            let sequence = offsets.partition_point(|start| *start <= row) - 1;
            let sequence = offsets[sequence]..offsets[sequence + 1];
            let queries = row..(row + QUERIES).min(sequence.end).min(end);
            let keys = self.keys(&queries, &sequence);
            for head in 0..self.heads {
                let (own, shared) = self.features(head);
                let q = q.slice(s![queries.clone(), own.clone()]);
                let k = k.slice(s![keys.clone(), shared.clone()]);
                let p = self.probabilities(q, k, queries.start - sequence.start, &mut buffer, policy);
                let mut y = y.slice_mut(s![queries.start - first..queries.end - first, own]);
                general_mat_mul(1.0, &p, &v.slice(s![keys.clone(), shared]), 0.0, &mut y);
            }
            row = queries.end;
        }
    }

    /// The gradients of whole sequences, some of them on other threads.
    fn backward_sequences(
        &self,
        inputs: [ArrayView2<'_, f32>; 4],
        offsets: &[usize],
        gradients: [ArrayViewMut2<'_, f32>; 3],
        tasks: usize,
        policy: Policy,
    ) {
        let count = offsets.len() - 1;
        if tasks > 1 && count > 1 {
            let (left, right) = (&offsets[..=count / 2], &offsets[count / 2..]);
            let [dq, dk, dv] = gradients.map(|g| g.split_at(Axis(0), right[0] - left[0]));
            return join(
                || self.backward_sequences(inputs, left, [dq.0, dk.0, dv.0], tasks - tasks / 2, policy),
                || self.backward_sequences(inputs, right, [dq.1, dk.1, dv.1], tasks / 2, policy),
            );
        }
        let [q, k, v, d] = inputs;
        let [mut dq, mut dk, mut dv] = gradients;
        let (mut buffer, mut slopes) = (buffer(offsets), buffer(offsets));
        let scale = self.scale();
        for ends in offsets.windows(2) {
            let sequence = ends[0]..ends[1];
            for start in sequence.clone().step_by(QUERIES) {
                let queries = start..(start + QUERIES).min(sequence.end);
                let keys = self.keys(&queries, &sequence);
                // In the gradients, which begin with the first of these sequences.
                let inside = |range: &Range<usize>| range.start - offsets[0]..range.end - offsets[0];
                for head in 0..self.heads {
                    let (own, shared) = self.features(head);
                    let q = q.slice(s![queries.clone(), own.clone()]);
                    let k = k.slice(s![keys.clone(), shared.clone()]);
                    let v = v.slice(s![keys.clone(), shared.clone()]);
                    let d = d.slice(s![queries.clone(), own.clone()]);
                    let p = self.probabilities(q, k, queries.start - sequence.start, &mut buffer, policy);
                    let mut dv = dv.slice_mut(s![inside(&keys), shared.clone()]);
                    general_mat_mul(1.0, &p.t(), &d, 1.0, &mut dv);
                    let mut ds = slopes.slice_mut(s![..queries.len(), ..keys.len()]);
                    general_mat_mul(1.0, &d, &v.t(), 0.0, &mut ds);
                    for (p, d) in p.outer_iter().zip(ds.outer_iter_mut()) {
                        if let (Some(p), Some(d)) = (p.to_slice(), d.into_slice()) {
                            run(policy, SoftmaxBack { p, d });
                        }
                    }
                    let mut dq = dq.slice_mut(s![inside(&queries), own]);
                    general_mat_mul(scale, &ds, &k, 0.0, &mut dq);
                    let mut dk = dk.slice_mut(s![inside(&keys), shared]);
                    general_mat_mul(scale, &ds.t(), &q, 1.0, &mut dk);
                }
            }
        }
    }

    /// What each key gives to each query of one head (queries x keys); `before` tokens of the sequence come before the queries.
    fn probabilities<'b>(
        &self,
        q: ArrayView2<'_, f32>,
        k: ArrayView2<'_, f32>,
        before: usize,
        buffer: &'b mut Array2<f32>,
        policy: Policy,
    ) -> ArrayViewMut2<'b, f32> {
        let mut p = buffer.slice_mut(s![..q.nrows(), ..k.nrows()]);
        general_mat_mul(self.scale(), &q, &k.t(), 0.0, &mut p);
        for (query, row) in p.outer_iter_mut().enumerate() {
            let seen = if self.causal { before + query + 1 } else { row.len() };
            if let Some(row) = row.into_slice() {
                run(policy, Softmax { row, seen });
            }
        }
        p
    }

    /// The keys that some of the queries of a sequence see.
    fn keys(&self, queries: &Range<usize>, sequence: &Range<usize>) -> Range<usize> {
        sequence.start..if self.causal { queries.end } else { sequence.end }
    }

    /// A head's features in queries and results, and in keys and values.
    fn features(&self, head: usize) -> (Range<usize>, Range<usize>) {
        let of = |head: usize| head * self.head_dim..(head + 1) * self.head_dim;
        (of(head), of(head / (self.heads / self.kv_heads)))
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Room for the probabilities of some queries.
fn buffer(offsets: &[usize]) -> Array2<f32> {
    Array2::zeros((QUERIES.min(longest(offsets)), longest(offsets)))
}

fn longest(offsets: &[usize]) -> usize {
    offsets.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0)
}

/// Multiply-adds of attention, at most.
fn work(q: &ArrayRef2<f32>, offsets: &[usize]) -> usize {
    q.len().saturating_mul(2 * longest(offsets))
}
