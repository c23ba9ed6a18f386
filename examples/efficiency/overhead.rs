//! What a call costs beside its arithmetic: `matvec_into` on small matrices, against its two kernels by themselves and against the least code for
//! the same numbers.
//!
//! The kernels are the products of the two factors, in scratch that is at hand: what they leave is the overhead of the call. The minimal form
//! has its sizes compiled in, its weights laid out so that lanes are outputs, no checks and no choice of instruction set per call: what it leaves
//! counts what kernels for any size cost, too.

use crate::{cli, machine::Machine, report::Cell, timing::middle};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;
use structmat::exec::Policy;
use structmat::kernels::{PanelMap, Rows, RowsMut};
use structmat::matrix::Op;
use structmat::prelude::*;
use structmat::registry::family;
use structmat::{Error, Result};

const N: usize = 64;
const RANK: usize = 16;
const B: usize = 8;
const TARGET: f64 = 150e-9;

type Vector = [f32; N];

/// The products with the two factors, one after the other.
struct Kernels {
    stages: [(Factor, PanelMap); 2],
}

impl Kernels {
    fn of(matrix: &dyn StructuredMatrix) -> Option<Self> {
        let parts = matrix.parts();
        let factor = |name: &str| parts.factors().find(|(n, _)| *n == name).map(|(_, factor)| factor.clone());
        // Both stages of a Monarch matrix of rank one deal their rows out.
        let stage = |f: Factor| {
            let (blocks, rows, cols) = f.shape();
            let group = if blocks > 1 { 1 } else { rows };
            (f, PanelMap::interleaved(blocks, rows, cols, group))
        };
        Some(Self { stages: [stage(factor("v")?), stage(factor("u")?)] })
    }

    fn multiply(&self, x: &Vector, inner: &mut Vector, y: &mut Vector, policy: Policy) {
        let [(first, first_map), (second, second_map)] = &self.stages;
        let width = first.blocks() * first.rows();
        let inner = &mut inner[..width];
        let (x, t) = (Rows::new(x, 1, N, N), RowsMut::new(inner, 1, width, width));
        first.multiply_blocks(*first_map, Op::Forward, x, t, Update::Overwrite, policy);
        let (t, y) = (Rows::new(inner, 1, width, width), RowsMut::new(y, 1, N, N));
        second.multiply_blocks(*second_map, Op::Forward, t, y, Update::Overwrite, policy);
    }
}

/// `U V x` with the columns of both factors contiguous.
struct MinimalLowRank {
    v: [[f32; RANK]; N],
    u: [[f32; N]; RANK],
}

impl MinimalLowRank {
    #[inline(always)]
    fn multiply(&self, x: &Vector, y: &mut Vector) {
        // Four sums each, for the latency of a multiply-add.
        let mut sums = [[0.0f32; RANK]; 4];
        for (columns, xs) in self.v.chunks_exact(4).zip(x.chunks_exact(4)) {
            for ((sum, column), x) in sums.iter_mut().zip(columns).zip(xs) {
                sum.iter_mut().zip(column).for_each(|(sum, v)| *sum = v.mul_add(*x, *sum));
            }
        }
        let [a, b, c, d] = sums;
        let mut out = [0.0f32; N];
        for (r, column) in self.u.iter().enumerate() {
            let t = (a[r] + b[r]) + (c[r] + d[r]);
            out.iter_mut().zip(column).for_each(|(y, u)| *y = u.mul_add(t, *y));
        }
        *y = out;
    }
}

/// A Monarch matrix of 8 x 8 blocks of rank one: the lanes of both stages are the block rows, so that nothing is permuted.
struct MinimalMonarch {
    v: [[[f32; B]; B]; B],
    u: [[[f32; B]; B]; B],
}

impl MinimalMonarch {
    #[inline(always)]
    fn multiply(&self, x: &Vector, y: &mut Vector) {
        let mut t = [[0.0f32; B]; B];
        for ((t, block), xs) in t.iter_mut().zip(&self.v).zip(x.chunks_exact(B)) {
            for (column, x) in block.iter().zip(xs) {
                t.iter_mut().zip(column).for_each(|(t, v)| *t = v.mul_add(*x, *t));
            }
        }
        for (ys, block) in y.chunks_exact_mut(B).zip(&self.u) {
            let mut out = [0.0f32; B];
            for (column, t) in block.iter().zip(&t) {
                out.iter_mut().zip(column).zip(t).for_each(|((y, u), t)| *y = u.mul_add(*t, *y));
            }
            ys.copy_from_slice(&out);
        }
    }
}

/// Either, compiled for the vectors of the machine.
enum Minimal {
    LowRank(Box<MinimalLowRank>),
    Monarch(Box<MinimalMonarch>),
}

impl Minimal {
    fn of(matrix: &dyn StructuredMatrix) -> Option<Self> {
        let parts = matrix.parts();
        let factor = |name: &str| parts.factors().find(|(n, _)| *n == name).map(|(_, factor)| factor);
        let (u, v) = (factor("u")?, factor("v")?);
        let get = |f: &Factor, block, row, col| f.get(block, row, col) as f32;
        use std::array::from_fn;
        match (u.shape(), v.shape()) {
            ((1, N, RANK), (1, RANK, N)) => Some(Minimal::LowRank(Box::new(MinimalLowRank {
                v: from_fn(|col| from_fn(|row| get(v, 0, row, col))),
                u: from_fn(|col| from_fn(|row| get(u, 0, row, col))),
            }))),
            ((B, B, B), (B, B, B)) => Some(Minimal::Monarch(Box::new(MinimalMonarch {
                v: from_fn(|block| from_fn(|col| from_fn(|row| get(v, block, row, col)))),
                u: from_fn(|row| from_fn(|col| from_fn(|block| get(u, block, row, col)))),
            }))),
            _ => None,
        }
    }

    #[inline(always)]
    fn multiply(&self, x: &Vector, y: &mut Vector) {
        match self {
            Minimal::LowRank(minimal) => minimal.multiply(x, y),
            Minimal::Monarch(minimal) => minimal.multiply(x, y),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn repeat_wide(&self, calls: usize, x: &Vector, y: &mut Vector) {
        for _ in 0..calls {
            self.multiply(black_box(x), y);
            black_box(&y);
        }
    }

    /// `calls` products.
    fn repeat(&self, calls: usize, x: &Vector, y: &mut Vector) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both.
            return unsafe { black_box(self).repeat_wide(calls, x, y) };
        }
        for _ in 0..calls {
            black_box(self).multiply(black_box(x), y);
            black_box(&y);
        }
    }
}

/// Two rows of each of the two small members: `seconds` of `matvec_into`, with its kernels and with the minimal form as the baseline.
pub fn measure(machine: &mut Machine) -> Result<Vec<Cell>> {
    let members = [
        ("low_rank", Request::new().with("rank", RANK)),
        ("monarch", Request::new().with("blocks", B).with("rank", 1)),
    ];
    let rows = members.iter().map(|(name, request)| member(name, request, machine));
    Ok(rows.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn member(name: &str, request: &Request, machine: &mut Machine) -> Result<[Cell; 2]> {
    let matrix = family(name)?.random((N, N), request, Storage::F32, 1)?;
    let unsupported = |what: &str| Error::Unsupported { structure: name.to_owned(), what: what.to_owned() };
    let minimal = Minimal::of(matrix.as_ref()).ok_or_else(|| unsupported("no minimal form of this size"))?;
    let kernels = Kernels::of(matrix.as_ref()).ok_or_else(|| unsupported("not two factors"))?;
    let x: Vector = std::array::from_fn(|k| (k % 7) as f32 - 3.0);
    let (mut y, mut z, mut inner) = ([0.0; N], [0.0; N], [0.0; N]);
    let mut exec = Exec::new();
    let policy = exec.policy();
    matrix.matvec_into(&x, &mut y, &mut exec)?;
    minimal.repeat(1, &x, &mut z);
    let norm = y.iter().map(|y| y * y).sum::<f32>().sqrt();
    let difference = y.iter().zip(&z).map(|(y, z)| (y - z).powi(2)).sum::<f32>().sqrt();
    if difference.is_nan() || difference > 1e-5 * norm {
        return Err(unsupported("its minimal form multiplies differently"));
    }
    kernels.multiply(&x, &mut inner, &mut z, policy);
    if y != z {
        return Err(unsupported("its kernels multiply differently"));
    }
    const CALLS: usize = 10_000;
    let (mut times, mut minimal_times, mut kernel_times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..31 {
        let start = Instant::now();
        for _ in 0..CALLS {
            matrix.matvec_into(black_box(&x[..]), &mut y, &mut exec)?;
            black_box(&y);
        }
        times.push(start.elapsed().as_secs_f64() / CALLS as f64);
        let start = Instant::now();
        for _ in 0..CALLS {
            kernels.multiply(black_box(&x), &mut inner, &mut z, policy);
            black_box(&z);
        }
        kernel_times.push(start.elapsed().as_secs_f64() / CALLS as f64);
        let start = Instant::now();
        minimal.repeat(CALLS, &x, &mut z);
        minimal_times.push(start.elapsed().as_secs_f64() / CALLS as f64);
    }
    times.sort_by(f64::total_cmp);
    minimal_times.sort_by(f64::total_cmp);
    kernel_times.sort_by(f64::total_cmp);
    let ((seconds, spread), (least, _), (kernel, _)) =
        (middle(&times), middle(&minimal_times), middle(&kernel_times));
    let (limit_seconds, limit) = machine.limit(1, matrix.storage_bytes(), matrix.flops(1), false);
    let factors: BTreeMap<_, _> =
        matrix.parts().factors().map(|(name, f)| (name.to_owned(), f.shape())).collect();
    let against = |baseline: &str, baseline_seconds: f64| Cell {
        structure: name.to_owned(),
        storage: Storage::F32,
        out_features: N,
        in_features: N,
        ratio: matrix.n_params() as f64 / (N * N) as f64,
        params: matrix.n_params(),
        bytes: matrix.storage_bytes(),
        flops: matrix.flops(1),
        batch: 1,
        threads: 1,
        regime: "call_overhead",
        seconds,
        spread,
        baseline: baseline.to_owned(),
        baseline_seconds,
        speedup: baseline_seconds / seconds,
        ideal: 1.0,
        limit,
        limit_seconds,
        efficiency: limit_seconds / seconds,
        factors: factors.clone(),
    };
    Ok([against("its kernels", kernel), against("minimal form", least)])
}

/// The table.
pub fn section(cells: &[Cell]) -> String {
    let header =
        ["64 x 64, 1 thread", "matvec_into, ns", "beside", "which takes, ns", "more, ns", "within 150 ns"];
    let row = |c: &Cell| {
        let overhead = c.seconds - c.baseline_seconds;
        let nanoseconds = |seconds: f64| format!("{:.0}", 1e9 * seconds);
        let met = if overhead <= TARGET { "yes" } else { "no" };
        vec![
            c.structure.clone(),
            nanoseconds(c.seconds),
            c.baseline.clone(),
            nanoseconds(c.baseline_seconds),
            nanoseconds(overhead),
            met.to_owned(),
        ]
    };
    format!("\n## Call overhead\n\n{}", cli::table(&header, &cells.iter().map(row).collect::<Vec<_>>()))
}
