//! The report as a table.

use crate::cli;
use structmat::compression::{CompressedModel, Fitted, FittedBlock, Refined};

const HEADER: [&str; 11] = [
    "matrix",
    "shape",
    "structure",
    "storage",
    "factors",
    "parameters",
    "bytes",
    "error in survey",
    "error in fit",
    "gain of 1 %",
    "best other family",
];

const REFINED: [&str; 4] = ["block", "error of its output", "refined", "epochs"];

/// One row for every matrix, below what all of them make together.
pub fn text(compressed: &CompressedModel<'_>, seconds: f64) -> String {
    let dense: usize = compressed.plan.choices.iter().map(|choice| choice.shape.0 * choice.shape.1).sum();
    let rows: Vec<Vec<String>> = compressed.matrices().map(row).collect();
    let (params, bytes) = (compressed.params(), compressed.bytes());
    let refined: Vec<Vec<String>> = compressed.fitted.iter().enumerate().filter_map(refinement).collect();
    let refined = match refined.is_empty() {
        true => String::new(),
        false => format!("\n{}", cli::table(&REFINED, &refined)),
    };
    let bound =
        compressed.plan.bound.map_or(String::new(), |bound| format!(", at least {bound:.5} possible"));
    format!(
        "{} matrices: {params} of {dense} parameters ({:.4}), {bytes} bytes ({:.4} of f32), {seconds:.1} s\n\
         sum of squared errors in the survey: {:.5}{bound}\n\n{}{refined}\n\
         Errors are of outputs, relative: on the inputs of the dense model (survey), and on those of the compressed one against the outputs of \
         the dense one (fit). The sum counts them as the model's \
         result depends on them; the gain is what one hundredth of the whole budget more for this matrix would lower it by; the best other family is what the choice was made against, with its error.\n",
        rows.len(),
        params as f64 / dense as f64,
        bytes as f64 / (4 * dense) as f64,
        compressed.plan.cost,
        cli::table(&HEADER, &rows)
    )
}

/// A row for a block, where it was refined.
fn refinement((layer, block): (usize, &FittedBlock)) -> Option<Vec<String>> {
    let Refined { before, after, epochs } = block.refined?;
    Some(vec![layer.to_string(), format!("{before:.4}"), format!("{after:.4}"), epochs.to_string()])
}

fn row(fitted: &Fitted) -> Vec<String> {
    let choice = &fitted.choice;
    let (m, n) = choice.shape;
    let factor = |(name, (blocks, rows, cols)): &(String, (usize, usize, usize))| match blocks {
        1 => format!("{name} {rows}x{cols}"),
        _ => format!("{name} {blocks}x{rows}x{cols}"),
    };
    vec![
        fitted.name.clone(),
        format!("{m}x{n}"),
        choice.variant.structure.clone(),
        choice.variant.storage.to_string(),
        fitted.factors.iter().map(factor).collect::<Vec<_>>().join(", "),
        format!("{:.3}", fitted.params as f64 / (m * n) as f64),
        fitted.bytes.to_string(),
        format!("{:.4}", choice.error),
        format!("{:.4}", fitted.error),
        choice.gain.map_or(String::new(), |gain| format!("{gain:.1e}")),
        choice.runner_up.clone().unwrap_or_default(),
    ]
}
