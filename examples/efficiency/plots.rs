//! Pictures of the report, as SVG.

use crate::pareto::Member;
use crate::report::Cell;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use structmat::Result;
use structmat::io::Staged;
use structmat::registry::FAMILIES;

const SIZE: (u32, u32) = (1000, 640);
/// Width of the legend, right of the data.
const LEGEND: i32 = 190;
const FONT: &str = "sans-serif";
/// One colour per family, dark enough on white; neighbours in the list differ in shape too.
const COLOURS: [(u8, u8, u8); 10] = [
    (31, 119, 180),
    (214, 39, 40),
    (44, 160, 44),
    (255, 127, 14),
    (148, 103, 189),
    (140, 86, 75),
    (227, 70, 180),
    (80, 80, 80),
    (160, 150, 0),
    (0, 160, 180),
];

/// Points of one family.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A picture: what it says, where its axes end, and lines across it.
struct Picture {
    title: String,
    x_label: &'static str,
    y_label: &'static str,
    x_format: fn(f64) -> String,
    y_format: fn(f64) -> String,
    /// Ends that the axes have beside those the points ask for.
    y_include: f64,
    /// Lines at one height, named.
    levels: Vec<(f64, &'static str)>,
    /// Lines at one width, named.
    marks: Vec<(f64, &'static str)>,
    /// A grey line through some points.
    front: Vec<(f64, f64)>,
    series: Vec<Series>,
    /// Whether a line joins the points of a series.
    joined: bool,
}

/// Speed-up against size, and efficiency against the limit: one of each per shape, batch, threads, regime and storage.
pub fn of_cells(folder: &Path, cells: &[Cell]) -> Result<Vec<Staged>> {
    let mut groups: BTreeMap<String, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        let Cell { out_features, in_features, batch, threads, regime, storage, .. } = cell;
        let name = format!("{out_features}x{in_features}-batch{batch}-threads{threads}-{regime}-{storage}");
        groups.entry(name).or_default().push(cell);
    }
    let mut staged = Vec::new();
    for (name, cells) in groups {
        let Some(Cell { out_features: m, in_features: n, batch, threads, regime, storage, .. }) =
            cells.first()
        else {
            continue;
        };
        let plural = if *threads == 1 { "" } else { "s" };
        let title = format!("{m} x {n}, batch {batch}, {threads} thread{plural}, {regime}, {storage}");
        let dense_bytes = (4 * m * n) as f64;
        let speedup = Picture {
            title: title.clone(),
            x_label: "bytes of the matrix, as a share of the dense one's in f32",
            y_label: "speed-up over the strongest dense product",
            x_format: percent,
            y_format: times,
            y_include: 1.0,
            levels: vec![(1.0, "dense")],
            marks: Vec::new(),
            front: Vec::new(),
            series: series(&cells, |cell| (cell.bytes as f64 / dense_bytes, cell.speedup)),
            joined: true,
        };
        staged.push(write(&folder.join(format!("speedup-{name}.svg")), &speedup)?);
        let efficiency = Picture {
            title,
            x_label: "least time that the machine's limits allow",
            y_label: "share of the limit reached",
            x_format: duration,
            y_format: percent,
            y_include: 1.0,
            levels: vec![(1.0, "the limit"), (0.5, "half of it")],
            marks: Vec::new(),
            front: Vec::new(),
            series: series(&cells, |cell| (cell.limit_seconds, cell.efficiency)),
            joined: true,
        };
        staged.push(write(&folder.join(format!("efficiency-{name}.svg")), &efficiency)?);
    }
    Ok(staged)
}

/// Time against error of every family's projections of one matrix.
pub fn of_members(folder: &Path, title: &str, members: &[Member], dense_seconds: f64) -> Result<Staged> {
    let mut front: Vec<(f64, f64)> = Vec::new();
    for member in members.iter().filter(|member| member.on_front) {
        // A step: up to the next member, this one's error is the least there is.
        if let Some((_, error)) = front.last().copied() {
            front.push((member.seconds, error));
        }
        front.push((member.seconds, member.error));
    }
    let mut series: Vec<Series> = Vec::new();
    for entry in FAMILIES {
        let mut points: Vec<(f64, f64)> =
            members.iter().filter(|m| m.structure == entry.name).map(|m| (m.seconds, m.error)).collect();
        points.sort_by(|a, b| b.1.total_cmp(&a.1));
        if !points.is_empty() {
            series.push(Series { name: entry.name.to_owned(), points });
        }
    }
    let picture = Picture {
        title: title.to_owned(),
        x_label: "time of a product, batch 1, one thread",
        y_label: "relative error of the projection",
        x_format: duration,
        y_format: percent,
        y_include: 1.0,
        levels: Vec::new(),
        marks: vec![(dense_seconds, "dense")],
        front,
        series,
        joined: false,
    };
    write(&folder.join("pareto.svg"), &picture)
}

fn series(cells: &[&Cell], point: impl Fn(&Cell) -> (f64, f64)) -> Vec<Series> {
    let names: BTreeSet<&str> = cells.iter().map(|cell| cell.structure.as_str()).collect();
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_key(|name| position(name));
    let points = |name: &str| {
        let mut points: Vec<_> = cells.iter().filter(|c| c.structure == name).map(|c| point(c)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    names.into_iter().map(|name| Series { name: name.to_owned(), points: points(name) }).collect()
}

/// A name's place in the list of families: its colour and shape in every picture.
fn position(name: &str) -> usize {
    let others = ["dense (structmat)", "dense (gemmkit)", "dense (gemm)", "dense (ndarray)"];
    let family = || FAMILIES.iter().position(|entry| entry.name == name);
    others.iter().position(|other| *other == name).unwrap_or_else(|| others.len() + family().unwrap_or(0))
}

fn percent(value: f64) -> String {
    let digits = if value < 0.0099 { if value < 0.00099 { 2 } else { 1 } } else { 0 };
    format!("{:.digits$} %", 100.0 * value)
}

fn times(value: f64) -> String {
    format!("{value} x")
}

fn duration(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 0.99e-6 => (1e9 * s, "ns"),
        s if s < 0.99e-3 => (1e6 * s, "us"),
        s => (1e3 * s, "ms"),
    };
    format!("{} {unit}", (value * 100.0).round() / 100.0)
}

/// A range around `values` with a margin, and its ticks: 1, 2 and 5 of each power of ten, or the powers alone where there are many.
fn axis(values: impl Iterator<Item = f64>) -> (Range<f64>, Vec<f64>) {
    let (low, high) = values
        .filter(|v| v.is_finite() && *v > 0.0)
        .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), v| (low.min(v), high.max(v)));
    let (low, high) = (low / 1.25, high * 1.25);
    let steps: &[f64] = if high / low > 2e4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    // Parsed from decimals: 10^-3 times 2 would print as 0.0020000000000000005.
    let tick = |power: i32, step: f64| format!("{step}e{power}").parse().unwrap_or(step);
    let ticks = powers.flat_map(|power| steps.iter().map(move |step| tick(power, *step)));
    (low..high, ticks.filter(|tick| (low..high).contains(tick)).collect())
}

fn write(path: &PathBuf, picture: &Picture) -> Result<Staged> {
    let mut text = String::new();
    draw(picture, &mut text)
        .map_err(|error| structmat::Error::File { path: path.clone(), reason: error.to_string() })?;
    Staged::new(path, [text.as_bytes()])
}

fn draw(picture: &Picture, text: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || picture.series.iter().flat_map(|series| &series.points);
    let (x_range, x_ticks) = axis(points().map(|p| p.0).chain(picture.marks.iter().map(|mark| mark.0)));
    let (y_range, y_ticks) = axis(points().map(|p| p.1).chain([picture.y_include]));
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (area, legend) = root.split_horizontally(SIZE.0 as i32 - LEGEND);
    let (low, high) = (x_range.start, x_range.end);
    let (bottom, top) = (y_range.start, y_range.end);
    let mut chart = ChartBuilder::on(&area)
        .caption(&picture.title, (FONT, 20))
        .margin(12)
        .x_label_area_size(50)
        .y_label_area_size(74)
        .build_cartesian_2d(
            x_range.log_scale().with_key_points(x_ticks),
            y_range.log_scale().with_key_points(y_ticks),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(40)
        .y_labels(40)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 16))
        .x_desc(picture.x_label)
        .y_desc(picture.y_label)
        .x_label_formatter(&|x| (picture.x_format)(*x))
        .y_label_formatter(&|y| (picture.y_format)(*y))
        .draw()?;
    let line = ShapeStyle { color: BLACK.mix(0.6), filled: false, stroke_width: 1 };
    let small = |h, v| (FONT, 13).into_font().color(&BLACK.mix(0.7)).pos(Pos::new(h, v));
    for (level, name) in &picture.levels {
        chart.draw_series([PathElement::new(vec![(low, *level), (high, *level)], line)])?;
        chart.draw_series([Text::new(*name, (low * 1.01, *level), small(HPos::Left, VPos::Bottom))])?;
    }
    for (mark, name) in &picture.marks {
        chart.draw_series([PathElement::new(vec![(*mark, bottom), (*mark, top)], line)])?;
        chart.draw_series([Text::new(
            *name,
            (*mark * 1.02, bottom * 1.03),
            small(HPos::Left, VPos::Bottom),
        )])?;
    }
    if !picture.front.is_empty() {
        let style = ShapeStyle { color: BLACK.mix(0.25), filled: false, stroke_width: 5 };
        chart.draw_series([PathElement::new(picture.front.clone(), style)])?;
    }
    for series in &picture.series {
        let (colour, shape) = look(&series.name);
        if picture.joined {
            chart.draw_series(LineSeries::new(series.points.iter().copied(), colour.mix(0.5)))?;
        }
        chart.draw_series(
            series.points.iter().map(|point| EmptyElement::at(*point) + marker((0, 0), colour, shape)),
        )?;
    }
    for (k, series) in picture.series.iter().enumerate() {
        let (colour, shape) = look(&series.name);
        let y = 52 + 24 * k as i32;
        legend.draw(&marker((8, y), colour, shape))?;
        legend.draw(&Text::new(
            series.name.clone(),
            (20, y),
            (FONT, 15).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center)),
        ))?;
    }
    if !picture.front.is_empty() {
        let y = 52 + 24 * picture.series.len() as i32;
        let style = ShapeStyle { color: BLACK.mix(0.25), filled: false, stroke_width: 5 };
        legend.draw(&PathElement::new(vec![(1, y), (15, y)], style))?;
        let style = (FONT, 15).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        legend.draw(&Text::new("best trade-offs", (20, y), style))?;
    }
    root.present()?;
    Ok(())
}

/// Colour and shape of a name.
fn look(name: &str) -> (RGBColor, usize) {
    let position = position(name);
    let (r, g, b) = COLOURS[position % COLOURS.len()];
    (RGBColor(r, g, b), (position + position / COLOURS.len()) % 4)
}

/// A circle, square, triangle or diamond around a pixel.
fn marker((x, y): (i32, i32), colour: RGBColor, shape: usize) -> Polygon<(i32, i32)> {
    let corners: &[(i32, i32)] = match shape {
        0 => &[(5, 0), (4, 3), (2, 5), (-2, 5), (-4, 3), (-5, 0), (-4, -3), (-2, -5), (2, -5), (4, -3)],
        1 => &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
        2 => &[(0, -6), (6, 5), (-6, 5)],
        _ => &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    };
    Polygon::new(corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect::<Vec<_>>(), colour.filled())
}
