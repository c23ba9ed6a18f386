//! Time against error: every family's projections of one real matrix at several sizes.

use crate::candidates::{Conditions, structured};
use crate::timing::{middle, time_in_turns};
use crate::{Args, cli};
use structmat::io::Checkpoint;
use structmat::ndarray::Array2;
use structmat::prelude::*;
use structmat::registry::{Entry, FAMILIES};
use structmat::{Error, Result};

/// Parameters as fractions of the dense matrix's.
const SIZES: [f64; 7] = [0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75];

/// A projection of the matrix, and its time.
#[derive(Debug, Clone)]
pub struct Member {
    pub structure: &'static str,
    pub params: usize,
    pub error: f64,
    pub seconds: f64,
    /// Whether none is both faster and nearer.
    pub on_front: bool,
}

/// The members by time, and the seconds of the dense product.
pub fn measure(args: &Args, entries: &[&'static Entry]) -> Result<(Vec<Member>, f64)> {
    let w: Array2<f64> = Checkpoint::open(&args.pareto)?.matrix(&args.tensor)?;
    let at = Conditions { shape: w.dim(), batch: 1, threads: 1, cold: false };
    let storage = args.storage[0];
    let dense = &FAMILIES[0];
    let options = Options { storage, ..Options::default() };
    let whole = Request::new().budget(Budget::Ratio(1.0));
    let mut candidates = vec![structured(
        dense.name,
        dense.project(&w, &whole, &Objective::Frobenius, &options)?.matrix,
        storage,
        at,
    )?];
    let mut members = Vec::new();
    let families = entries.iter().filter(|entry| entry.name != dense.name);
    let bar = cli::progress(entries.len());
    for entry in families {
        bar.set_message(format!("projecting: {}", entry.name));
        let mut last = 0;
        for size in SIZES {
            let request = Request::new().budget(Budget::Ratio(size));
            let projected = match entry.project(&w, &request, &Objective::Frobenius, &options) {
                Err(Error::Budget { .. }) => continue,
                other => other?,
            };
            let params = projected.report.params;
            if std::mem::replace(&mut last, params) != params {
                let error = projected.report.relative_error;
                members.push(Member { structure: entry.name, params, error, seconds: 0.0, on_front: false });
                candidates.push(structured(entry.name, projected.matrix, storage, at)?);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (m, n) = w.dim();
    let x = Array2::from_shape_fn((1, n), |(_, j)| (j % 23) as f32 / 11.0 - 1.0);
    let times = time_in_turns(&mut candidates, &x, &mut Array2::zeros((1, m)), true)?;
    for (member, times) in members.iter_mut().zip(&times[1..]) {
        member.seconds = middle(times).0;
    }
    members.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let mut least = f64::INFINITY;
    for member in &mut members {
        member.on_front = member.error < least;
        least = least.min(member.error);
    }
    Ok((members, middle(&times[0]).0))
}

/// The table of the members that none beats in both.
pub fn section(title: &str, members: &[Member], dense_seconds: f64) -> String {
    let row = |m: &Member| {
        let [params, us, error] =
            [m.params.to_string(), format!("{:.2}", 1e6 * m.seconds), format!("{:.4}", m.error)];
        vec![m.structure.to_owned(), params, us, error, format!("{:.2}", dense_seconds / m.seconds)]
    };
    let rows: Vec<_> = members.iter().filter(|member| member.on_front).map(row).collect();
    let header = ["structure", "params", "us", "error", "over own dense"];
    format!("\n## Best trade-offs of time and error: {title}\n\n{}", cli::table(&header, &rows))
}
