//! Products with adapters that are not merged, beside the strongest product with the merged weight, and beside base and change as two dense
//! products; and batches whose rows use different adapters, beside one shared adapter. One thread.
//!
//! `cargo bench --bench adapters` runs criterion's groups, `cargo bench --bench adapters -- lora/16` some of them.
//! `cargo bench --bench adapters -- --table` takes the times of each row in turns and prints one table of ratios of medians; more words keep the
//! rows that contain one of them, as in `-- --table 4096x4096 rows`. `-- --table --least` takes the least times instead, for a machine that others
//! use too. `STRUCTMAT_BENCH=full` takes every method at 4096 x 4096.

#[path = "../examples/cli/dense.rs"]
mod dense;
#[path = "../examples/cli/table.rs"]
mod table;

use criterion::{Criterion, criterion_group};
use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};
use structmat::adapters::methods::{
    self, Bat, DeftForm, Dora, Glora, Hadamard, Path, RoadVariant, Rotation, Wavelet,
};
use structmat::adapters::{Adapter, Additive, Edit, several};
use structmat::compose::Scaled;
use structmat::ndarray::{Array2, Array3, Array4, linalg::general_mat_mul};
use structmat::prelude::*;

type Boxed = Box<dyn Adapter>;

/// Turns of each product; the ratios are of medians.
const ROUNDS: usize = 41;
/// Seconds of each turn, where one product does not take longer: so short that most are not interrupted where others use the machine too.
const TURN: f64 = 5e-4;
/// Seconds of all turns of one product, about: large ones get fewer.
const TOTAL: f64 = 1.0;

/// Numbers between -1 and 1, other ones for another seed.
fn numbers(rows: usize, cols: usize, seed: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, cols), |(i, j)| ((i * 131 + j * 71 + seed * 37) % 127) as f64 / 63.0 - 1.0)
}

fn cube(a: usize, b: usize, c: usize) -> Array3<f64> {
    numbers(a, b * c, 5).into_shape_with_order((a, b, c)).expect("as many numbers")
}

/// Every method at about the parameters of LoRA of rank `r`, where it has a size to choose.
fn methods_of((m, n): (usize, usize), r: usize, filter: &dyn Fn(&str) -> bool) -> Vec<(&'static str, Boxed)> {
    let (b, a) = (numbers(m, r, 1), numbers(r, n, 2));
    let (b32, a32) = (b.mapv(|v| v as f32), a.mapv(|v| v as f32));
    let row = |len, seed| numbers(1, len, seed).into_raw_vec_and_offset().0;
    let lora = || methods::lora(&b32, &a32, 0.5).expect("factors that fit");
    // Blocks with as many numbers in all: m n / block = r (m + n).
    let block = (m * n / (r * (m + n))).next_power_of_two();
    let places = |count: usize| -> Vec<(usize, usize)> {
        (0..count).map(|k| ((k * 769 + k / n * 31) % m, (k * 1543) % n)).collect()
    };
    let rotations: Vec<Array2<f64>> = (0..n / r)
        .map(|k| {
            let skew = methods::skew(&row(r * (r - 1) / 2, k), r).expect("as many numbers");
            Rotation::Cayley.of(&(skew * (0.2 / r as f64))).expect("a small rotation")
        })
        .collect();
    let vera = || -> structmat::Result<Boxed> {
        let scales = Factor::from_matrix(Storage::F32, &numbers(1, m, 3));
        let inner = methods::scaled_lora(&b32, &row(r, 4), &a32)?.matrix().clone_box();
        Ok(Box::new(Additive::new("vera", Box::new(Scaled::new(Some(scales), inner, None)?))))
    };
    let delora = || -> structmat::Result<Boxed> {
        let norms = Factor::from_matrix(Storage::F32, &numbers(1, n, 3));
        let inner = methods::scaled_lora(&b32, &row(r, 4), &a32)?.matrix().clone_box();
        Ok(Box::new(Additive::new("delora", Box::new(Scaled::new(None, inner, Some(norms))?))))
    };
    let sparse = |count: usize| places(count).into_iter().map(|(i, j)| (i, j, 0.1)).collect::<Vec<_>>();
    let vectors = || {
        let column = |len, seed| Path::Plain(numbers(len, 1, seed));
        [column(m, 1), column(m, 2), column(n, 3), column(m, 4), column(m, 5)]
    };
    let coefficients = 64 * r;
    type Make<'a> = Box<dyn Fn() -> structmat::Result<Boxed> + 'a>;
    fn boxed<'a, A: Adapter + 'static>(make: impl Fn() -> structmat::Result<A> + 'a) -> Make<'a> {
        Box::new(move || Ok(Box::new(make()?)))
    }
    let all: Vec<(&'static str, Make<'_>)> = vec![
        ("lora", boxed(|| Ok(lora()))),
        ("dora", boxed(|| Dora::new(Box::new(lora()), vec![1.0; m]))),
        ("vera", Box::new(vera)),
        ("delora", Box::new(delora)),
        ("lora_xs", boxed(|| methods::core(&b, &numbers(r, r, 3), &a, 1.0))),
        ("loha", boxed(|| methods::loha((&b, &a), (&b, &a), 1.0))),
        ("lokr", boxed(|| methods::lokr(&numbers(32, 32, 1), &numbers(m / 32, n / 32, 2), 1.0))),
        ("phm", boxed(|| methods::phm(&cube(4, 4, 4), &cube(4, n / 4, m / 4)))),
        ("gralora", boxed(|| methods::gralora(&cube(2, n / 2, r), &cube(2, r, m / 2), 1.0))),
        ("miss", boxed(|| methods::miss((m, n), &numbers(r, m, 1)))),
        ("bat", boxed(|| Bat::new((m, n), &cube(m / r, r, r)))),
        ("c3a", boxed(|| methods::c3a(&cube(m / block, n / block, block)))),
        ("diablo", boxed(|| methods::diablo((m, n), &cube(block, n / block, m / block)))),
        (
            "fourierft",
            boxed(|| methods::fourier_ft((m, n), &places(coefficients), &row(coefficients, 1), 150.0)),
        ),
        (
            "waveft",
            boxed(|| {
                let wavelet = Wavelet::named("db1");
                methods::wave_ft((m, n), &places(coefficients), &row(coefficients, 1), wavelet.as_ref(), 25.0)
            }),
        ),
        ("shira", boxed(|| methods::sparse_delta((m, n), sparse(r * (m + n))))),
        ("hira", boxed(|| Hadamard::new(&b, &a))),
        ("glora", boxed(|| Glora::new((m, n), vectors()))),
        ("deft", boxed(|| methods::deft((m, n), &b, Some(&a), DeftForm::Relu, 0.1))),
        ("oft", boxed(|| methods::oft((m, n), &rotations))),
        (
            "boft",
            boxed(|| {
                let factors =
                    numbers(2, n * r, 7).into_shape_with_order((2, n / r, r, r)).expect("as many numbers");
                let factors: Array4<f64> = factors * (0.2 / r as f64);
                methods::boft((m, n), &factors, Some(&vec![1.1; m]))
            }),
        ),
        ("hra", boxed(|| methods::hra((m, n), &numbers(n, r, 8).mapv(|v| v + 1e-3), false))),
        ("road", boxed(|| methods::road((m, n), RoadVariant::One, 64, &row(m / 2, 1), &row(m / 2, 2)))),
        ("ia3", boxed(|| methods::scaling((m, n), Some(&row(m, 3)), None))),
    ];
    let wanted = all.into_iter().filter(|(name, _)| filter(name));
    wanted.map(|(name, make)| (name, make().unwrap_or_else(|error| panic!("{name}: {error}")))).collect()
}

/// A product that is timed; its output is its own.
struct Candidate {
    name: String,
    run: Box<dyn FnMut()>,
}

fn candidate(
    name: impl Into<String>,
    y: &Array2<f32>,
    mut run: impl FnMut(&mut Array2<f32>) + 'static,
) -> Candidate {
    let (name, mut y) = (name.into(), y.clone());
    let run = move || {
        run(&mut y);
        black_box(&y);
    };
    Candidate { name, run: Box::new(run) }
}

/// What is compared in one row: the first is the one in question.
struct Row {
    name: String,
    shape: (usize, usize),
    batch: usize,
    candidates: Vec<Candidate>,
}

struct Base {
    shape: (usize, usize),
    weight: Rc<Dense>,
}

impl Base {
    fn new(shape: (usize, usize)) -> Self {
        let weight = Rc::new(Dense::new(&numbers(shape.0, shape.1, 9).mapv(|v| v as f32)).expect("finite"));
        Self { shape, weight }
    }

    fn inputs(&self, batch: usize) -> (Rc<Array2<f32>>, Array2<f32>) {
        let x = numbers(batch, self.shape.1, 11).mapv(|v| v as f32);
        (Rc::new(x), Array2::zeros((batch, self.shape.0)))
    }

    fn alone(&self, batch: usize) -> Candidate {
        let ((x, y), base, mut exec) = (self.inputs(batch), Rc::clone(&self.weight), Exec::new());
        candidate("base", &y, move |y| {
            base.apply_into(&*x, y, Update::Overwrite, &mut exec).expect("shapes fit");
        })
    }

    /// An adapter without merging, its base, the merged weight in three libraries, and base and change as dense matrices.
    fn row(&self, name: &str, adapter: &dyn Adapter, batch: usize) -> Row {
        let edit = Rc::new(adapter.edit(self.weight.as_ref()).expect("a base that fits"));
        let (x, y) = self.inputs(batch);
        let merged = edit.merged(self.weight.as_ref()).expect("a base that fits");
        let merged = merged.as_standard_layout().mapv(|v| v as f32);
        let change = Dense::new(&(&merged - &self.weight.to_dense::<f32>())).expect("finite");
        check(&edit, &self.weight, &x, &merged);
        let (structured, merged) = (Dense::new(&merged).expect("finite"), Rc::new(merged));
        let mut execs = [(); 3].map(|()| Exec::new());
        let [mut first, mut second, mut third] = execs.each_mut().map(std::mem::take);
        let [base, again] = [(); 2].map(|()| Rc::clone(&self.weight));
        let [x1, x2, x3, x4, x5] = [(); 5].map(|()| Rc::clone(&x));
        let (for_gemm, for_ndarray) = (Rc::clone(&merged), merged);
        let candidates = vec![
            candidate("unmerged", &y, move |y| {
                edit.apply_into(base.as_ref(), &*x1, y, Update::Overwrite, &mut first).expect("shapes fit");
            }),
            self.alone(batch),
            candidate("merged", &y, move |y| {
                structured.apply_into(&*x2, y, Update::Overwrite, &mut second).expect("shapes fit");
            }),
            candidate("merged/gemm", &y, move |y| dense::gemm_crate(&for_gemm, &x3, y, 1)),
            candidate("merged/ndarray", &y, move |y| general_mat_mul(1.0, &*x4, &for_ndarray.t(), 0.0, y)),
            candidate("dense change", &y, move |y| {
                again.apply_into(&*x5, y, Update::Overwrite, &mut third).expect("shapes fit");
                change.apply_into(&*x5, y, Update::Accumulate, &mut third).expect("shapes fit");
            }),
        ];
        Row { name: name.to_owned(), shape: self.shape, batch, candidates }
    }

    /// 64 rows over so many LoRAs, in order and in turns, beside one for all.
    fn rows(&self, rank: usize, count: usize) -> Row {
        const BATCH: usize = 64;
        let ((m, n), (x, y)) = (self.shape, self.inputs(BATCH));
        let edits: Rc<Vec<Edit>> = Rc::new(
            (0..count)
                .map(|k| {
                    let part = |rows, cols, seed| numbers(rows, cols, seed).mapv(|v| v as f32);
                    let lora = methods::lora(&part(m, rank, k), &part(rank, n, k + 100), 0.5);
                    lora.expect("factors that fit").edit(self.weight.as_ref()).expect("a base that fits")
                })
                .collect(),
        );
        let mixed = |name: &str, which: Vec<Option<usize>>| {
            let (base, edits, x, mut exec) =
                (Rc::clone(&self.weight), Rc::clone(&edits), Rc::clone(&x), Exec::new());
            candidate(name, &y, move |y| {
                let all: [&Edit; BATCH] = std::array::from_fn(|k| &edits[k % count]);
                several::apply_rows(base.as_ref(), &all[..count], &which, &*x, y, &mut exec)
                    .expect("rows fit");
            })
        };
        let (base, shared, inputs, mut exec) =
            (Rc::clone(&self.weight), Rc::clone(&edits), Rc::clone(&x), Exec::new());
        let candidates = vec![
            mixed("in order", (0..BATCH).map(|i| Some(i * count / BATCH)).collect()),
            mixed("in turns", (0..BATCH).map(|i| Some(i % count)).collect()),
            candidate("one LoRA", &y, move |y| {
                let update = Update::Overwrite;
                shared[0].apply_into(base.as_ref(), &*inputs, y, update, &mut exec).expect("shapes fit");
            }),
            self.alone(BATCH),
        ];
        Row { name: format!("rows/{rank}/{count}"), shape: self.shape, batch: BATCH, candidates }
    }
}

/// The answer is right before it is timed.
fn check(edit: &Edit, base: &Dense, x: &Array2<f32>, merged: &Array2<f32>) {
    let y = edit.matmul(base, x).expect("shapes fit").mapv(f64::from);
    let expected = x.mapv(f64::from).dot(&merged.mapv(f64::from).t());
    let norm = |a: &Array2<f64>| a.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(norm(&(y - &expected)) <= 1e-4 * norm(&expected), "an adapter multiplies wrongly");
}

/// What is measured, one row at a time: large matrices are not kept.
fn for_each_row(filter: &dyn Fn(&str) -> bool, mut visit: impl FnMut(Row)) {
    let full = std::env::var("STRUCTMAT_BENCH").is_ok_and(|value| value == "full");
    for (shape, all) in [((1024, 1024), true), ((4096, 4096), full)] {
        let label = |name: &str| format!("{}x{}/{name}", shape.0, shape.1);
        let mut base = None;
        for rank in [8, 16, 32, 64] {
            let wanted = |name: &str| (all || name == "lora") && filter(&label(&format!("{name}/{rank}")));
            for (name, adapter) in methods_of(shape, rank, &wanted) {
                let base = base.get_or_insert_with(|| Base::new(shape));
                for batch in [1, 64] {
                    visit(base.row(&format!("{name}/{rank}"), adapter.as_ref(), batch));
                }
            }
        }
        for (rank, count) in [(16, 1), (16, 8), (16, 64)] {
            if filter(&label(&format!("rows/{rank}/{count}"))) {
                visit(base.get_or_insert_with(|| Base::new(shape)).rows(rank, count));
            }
        }
    }
}

/// Seconds per product of each candidate: medians of turns, or the least.
fn in_turns(candidates: &mut [Candidate], least: bool) -> Vec<f64> {
    let once: Vec<f64> = candidates
        .iter_mut()
        .map(|candidate| {
            (candidate.run)();
            let start = Instant::now();
            (candidate.run)();
            start.elapsed().as_secs_f64().max(1e-7)
        })
        .collect();
    let calls: Vec<usize> = once.iter().map(|once| ((TURN / once) as usize).clamp(1, 10_000)).collect();
    let slowest = once.iter().fold(TURN, |slowest, once| slowest.max(*once));
    let rounds = ((TOTAL / slowest) as usize).clamp(5, ROUNDS);
    let mut times = vec![Vec::new(); candidates.len()];
    for round in 0..2 * rounds.div_ceil(2) {
        // There and back: whoever comes second finds more of the weights that two of them share.
        for k in 0..candidates.len() {
            let k = if round % 2 == 0 { k } else { candidates.len() - 1 - k };
            let (run, calls) = (&mut candidates[k].run, calls[k]);
            run();
            let start = Instant::now();
            (0..calls).for_each(|_| run());
            times[k].push(start.elapsed().as_secs_f64() / calls as f64);
        }
    }
    let one = |times: &mut Vec<f64>| match least {
        true => times.iter().copied().fold(f64::INFINITY, f64::min),
        false => table::median(times),
    };
    times.iter_mut().map(one).collect()
}

fn print_table(words: &[String]) {
    let (flags, words): (Vec<&String>, Vec<&String>) = words.iter().partition(|word| *word == "--least");
    let filter = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let (mut single, mut rows) = (Vec::new(), Vec::new());
    for_each_row(&filter, |mut row| {
        let times = in_turns(&mut row.candidates, !flags.is_empty());
        let ratio = |a: f64, b: f64| format!("{:.2}", a / b);
        let head = [row.name.clone(), format!("{} x {}", row.shape.0, row.shape.1)];
        let micros = format!("{:.1}", times[0] * 1e6);
        if row.name.starts_with("rows/") {
            let cells = [ratio(times[0], times[2]), ratio(times[1], times[2]), ratio(times[2], times[3])];
            rows.push(head.into_iter().chain([micros]).chain(cells).collect());
            return;
        }
        let strongest = times[2].min(times[3]).min(times[4]);
        let cells = [ratio(times[0], times[1]), ratio(times[0], strongest), ratio(times[0], times[5])];
        single.push(head.into_iter().chain([row.batch.to_string(), micros]).chain(cells).collect());
    });
    if !single.is_empty() {
        let header = [
            "method/rank",
            "base",
            "batch",
            "us",
            "/ base product",
            "/ strongest merged",
            "/ base + dense change",
        ];
        println!("{}", table::table(&header, &single));
    }
    if !rows.is_empty() {
        let header = [
            "64 rows/rank/adapters",
            "base",
            "us",
            "/ one LoRA",
            "in turns / one LoRA",
            "one LoRA / base product",
        ];
        println!("{}", table::table(&header, &rows));
    }
}

fn adapters(c: &mut Criterion) {
    for_each_row(&|_| true, |mut row| {
        let name = format!("{}x{}/{}/batch {}", row.shape.0, row.shape.1, row.name, row.batch);
        let mut group = c.benchmark_group(name);
        for candidate in &mut row.candidates {
            group.bench_function(candidate.name.as_str(), |b| b.iter(&mut candidate.run));
        }
        group.finish();
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
    targets = adapters
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.split_first() {
        Some((first, words)) if first == "--table" => print_table(words),
        _ => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
