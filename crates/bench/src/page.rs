//! The page docs/performance.md, and its plot: the same figures that the terminal shows.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use crate::report::{Report, number};

/// Writes `performance.md` and `performance.svg` into `dir`.
pub fn write(report: &Report, dir: &Path) -> anyhow::Result<()> {
    for (name, text) in [("performance.md", page(report)?), ("performance.svg", plot(report)?)] {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn page(report: &Report) -> Result<String, std::fmt::Error> {
    let mut out = String::from(
        "# Performance\n\nMade by `cargo run --release -p strata-bench -- --page docs`, as root.\n\n\
         Three lower layers of small files and one big one, an empty upper layer, all on a tmpfs: what is measured is \
         the union and not the disk. Each figure is the median of ",
    );
    write!(
        out,
        "{} rounds in which everyone is measured in turn, in a mount of its own, ",
        report.rounds
    )?;
    out.push_str("with half the distance of the quartiles beside it. All are amounts a second: more is better.\n\n");
    for (name, version) in &report.subjects {
        writeln!(out, "- {name} {version}")?;
    }
    writeln!(
        out,
        "- {} processors\n\n![Figures beside the kernel's](performance.svg)\n",
        report.processors
    )?;
    for (at, line) in report.table().iter().enumerate() {
        writeln!(out, "| {} |", line.join(" | "))?;
        if at == 0 {
            let columns: Vec<_> =
                (0..line.len()).map(|c| if c < 2 { "---" } else { "--:" }).collect();
            writeln!(out, "| {} |", columns.join(" | "))?;
        }
    }
    out.push_str("\n\"÷ kernel\" and the like: Strata's median divided by theirs; above 1, Strata is faster.\n");
    out.push_str("\nImages, beside podman, skopeo and containerd: [decision 022](decisions/022-figures.md).\n");
    Ok(out)
}

const LEFT: f64 = 230.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 9.0;
/// The plot goes from a fiftieth of the kernel's speed to twenty times it.
const LOW: f64 = 0.02;
const HIGH: f64 = 20.0;
const COLOURS: [&str; 3] = ["#8a8f98", "#d9a441", "#2f7fb8"];

fn plot(report: &Report) -> Result<String, std::fmt::Error> {
    let place = |ratio: f64| LEFT + WIDTH * (ratio.clamp(LOW, HIGH) / LOW).ln() / (HIGH / LOW).ln();
    let others = report.subjects.len().saturating_sub(1).max(1);
    let step = BAR * others as f64 + 8.0;
    let height = 60.0 + step * report.lines.len() as f64;
    let mut out = String::new();
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">",
        LEFT + WIDTH + 70.0
    )?;
    writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>")?;
    for (at, (name, _)) in report.subjects.iter().enumerate().skip(1) {
        let x = LEFT + 150.0 * (at - 1) as f64;
        writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"8\" width=\"10\" height=\"10\" fill=\"{}\"/>",
            COLOURS[at.min(2)]
        )?;
        writeln!(out, "<text x=\"{:.0}\" y=\"17\">{name}</text>", x + 15.0)?;
    }
    for ratio in [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0] {
        let x = place(ratio);
        let colour = if ratio == 1.0 { "#333333" } else { "#dddddd" };
        writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"40\" x2=\"{x:.1}\" y2=\"{:.0}\" stroke=\"{colour}\"/>",
            height - 12.0
        )?;
        writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"35\" text-anchor=\"middle\" fill=\"#555555\">{ratio}</text>"
        )?;
    }
    writeln!(out, "<text x=\"8\" y=\"35\" fill=\"#555555\">kernel overlayfs = 1</text>")?;
    for (row, line) in report.lines.iter().enumerate() {
        let top = 48.0 + step * row as f64;
        writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            top + step / 2.0,
            line.name
        )?;
        let Some(kernel) = line.median(0) else { continue };
        for at in 1..report.subjects.len() {
            let Some(median) = line.median(at) else { continue };
            let (y, end) = (top + BAR * (at - 1) as f64, place(median / kernel));
            let (from, to) = (end.min(place(1.0)), end.max(place(1.0)));
            writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{}: {} {}</title></rect>",
                (to - from).max(1.0),
                BAR - 1.0,
                COLOURS[at.min(2)],
                line.name,
                number(median),
                line.unit
            )?;
        }
    }
    out.push_str("</svg>\n");
    Ok(out)
}
