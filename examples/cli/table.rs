//! Tables, and what stands in them.

/// Prints a Markdown table; the first column is left-aligned, the others right-aligned.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        rows.iter()
            .filter_map(|row| row.get(c))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(header[c].len())
            .max(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate();
        let cells: Vec<String> = cells
            .map(|(c, (cell, w))| if c == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
            .collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule =
        |(c, w): (usize, &usize)| if c == 0 { "-".repeat(*w) } else { format!("{}:", "-".repeat(w - 1)) };
    let mut text = line(&header.iter().map(|cell| cell.to_string()).collect::<Vec<_>>());
    text += &line(&widths.iter().enumerate().map(rule).collect::<Vec<_>>());
    rows.iter().for_each(|row| text += &line(row));
    text
}

/// Median of some times.
pub fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
