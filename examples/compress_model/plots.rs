//! The report as a picture: error, rank and bytes of every matrix, in the colour of its family.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;
use structmat::Result;
use structmat::compression::{CompressedModel, Fitted};
use structmat::io::Staged;
use structmat::registry::FAMILIES;

/// Pixels: of a matrix, of a panel, of what stands beside and below them.
const BAR: usize = 18;
const PANEL: usize = 170;
const LEGEND: usize = 180;
const NAMES: usize = 250;
const FONT: &str = "sans-serif";

type Failure = Box<dyn std::error::Error>;
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Panels of bars, one bar for each matrix in the order of execution.
pub fn matrices(path: &Path, compressed: &CompressedModel<'_>) -> Result<Staged> {
    let mut text = String::new();
    draw(&compressed.matrices().collect::<Vec<_>>(), &mut text)
        .map_err(|error| structmat::Error::File { path: path.to_owned(), reason: error.to_string() })?;
    Staged::new(path, [text.as_bytes()])
}

fn draw(fitted: &[&Fitted], text: &mut String) -> std::result::Result<(), Failure> {
    let size = (BAR * fitted.len() + 80 + LEGEND, 3 * PANEL + NAMES);
    let root = SVGBackend::with_string(text, (size.0 as u32, size.1 as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let (area, legend) = root.split_horizontally((size.0 - LEGEND) as i32);
    let (panels, names) = area.split_vertically((3 * PANEL) as i32);
    let panels = panels.split_evenly((3, 1));
    panel(&panels[0], "relative error of outputs", fitted, |fitted| Some(fitted.error))?;
    panel(&panels[1], "rank", fitted, rank)?;
    panel(&panels[2], "bytes, as a share of f32", fitted, |fitted| {
        let (m, n) = fitted.choice.shape;
        Some(fitted.bytes as f64 / (4 * m * n) as f64)
    })?;
    let style = (FONT, 11).into_font().transform(FontTransform::Rotate90).color(&BLACK);
    for (k, fitted) in fitted.iter().enumerate() {
        let x = 70 + (BAR * k + BAR / 2) as i32;
        names.draw(&Text::new(
            fitted.name.trim_end_matches(".weight").to_owned(),
            (x + 5, 4),
            style.pos(Pos::new(HPos::Left, VPos::Top)),
        ))?;
    }
    let mut families: Vec<&str> = fitted.iter().map(|f| f.choice.variant.structure.as_str()).collect();
    families.sort_by_key(|name| position(name));
    families.dedup();
    for (k, name) in families.into_iter().enumerate() {
        let y = 30 + 24 * k as i32;
        legend.draw(&Rectangle::new([(8, y - 6), (20, y + 6)], colour(name).filled()))?;
        let style = (FONT, 14).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        legend.draw(&Text::new(name.to_owned(), (28, y), style))?;
    }
    root.present()?;
    Ok(())
}

fn panel(
    area: &Area<'_>,
    title: &str,
    fitted: &[&Fitted],
    value: impl Fn(&Fitted) -> Option<f64>,
) -> std::result::Result<(), Failure> {
    let values: Vec<Option<f64>> = fitted.iter().map(|fitted| value(fitted)).collect();
    let most: f64 = values.iter().flatten().copied().fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin_top(8)
        .margin_right(10)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..fitted.len() as f64, 0.0..(1.08 * most).max(1e-9))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .y_labels(6)
        .label_style((FONT, 12))
        .axis_desc_style((FONT, 13))
        .y_desc(title)
        .draw()?;
    chart.draw_series(fitted.iter().zip(&values).enumerate().filter_map(|(k, (fitted, value))| {
        let bar = [(k as f64 + 0.1, 0.0), (k as f64 + 0.9, (*value)?)];
        Some(Rectangle::new(bar, colour(&fitted.choice.variant.structure).filled()))
    }))?;
    Ok(())
}

/// Columns of the left factor, for families that have one.
fn rank(fitted: &Fitted) -> Option<f64> {
    let left = |(name, _): &&(String, _)| name == "u" || name.ends_with(".u");
    fitted.factors.iter().find(left).map(|(_, (_, _, rank))| *rank as f64)
}

fn position(name: &str) -> usize {
    FAMILIES.iter().position(|entry| entry.name == name).unwrap_or(FAMILIES.len())
}

fn colour(name: &str) -> HSLColor {
    // Steps of the golden ratio keep neighbours of the list apart.
    HSLColor((0.58 + 0.618_034 * position(name) as f64).fract(), 0.6, 0.5)
}
