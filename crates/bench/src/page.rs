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
        "# Performance\n\nMade by `cargo run --release -p strata-bench -- --page docs`, as root; with `--roots DIR`, OCI \
         layouts, for rows in the root file systems of images, and `--fuse-overlayfs PROGRAM` for each version of it.\n\n\
         Three lower layers of small files and one big one, an empty upper layer, all on a tmpfs: what is measured is \
         the union and not the disk. Each figure is the median of ",
    );
    write!(
        out,
        "{} rounds in which everyone is measured in turn, in a mount of its own, ",
        report.rounds
    )?;
    out.push_str(
        "with half the distance of the quartiles beside it. Amounts are those of a second: more is better. Figures in \
         seconds (s) are whole jobs: less is better. \"–\": it can't do that.\n\n\
         Rows with \"on ext4\", \"O_DIRECT\" or \"fsync\" in their names are on an ext4, with a journal, in a file on a disk. \
         \"Warm\" is for the third time in the same mount; all else is for the first. \
         Those of importing, installing and of node-app are in root file systems whose layers Strata has pulled. mergerfs \
         neither copies up nor hides what a lower layer has.\n\n",
    );
    for (name, version) in &report.subjects {
        let known = name.ends_with(version.as_str());
        writeln!(out, "- {name}{}", if known { String::new() } else { format!(" {version}") })?;
    }
    writeln!(out, "- {} processors\n", report.processors)?;
    if report.own().len() > 1 {
        write!(
            out,
            "\"strata, io_uring\" is the same program, mounted while `{}` is `Y`; \"strata\" is mounted while it is `N`, \
             as the kernel has it unless told otherwise. To switch it on, for all FUSE file systems that are mounted \
             from then on, is the administrator's choice: `echo Y >{0}`, or `fuse.enable_uring=1` on the kernel's \
             command line. Strata then uses it without being told.\n\n",
            crate::subject::PARAMETER
        )?;
    }
    out.push_str(
        "![Figures beside the kernel's](performance.svg)\n\n## Strata beside the others\n\n",
    );
    out.push_str(
        "How many times as fast as the kernel's overlayfs, and as the fastest fuse-overlayfs of that row. Above 1, \
         Strata is faster.\n\n",
    );
    write_table(&mut out, &report.ratios(), 1)?;
    out.push_str("\n## Figures\n\n");
    write_table(&mut out, &report.figures(), 2)?;
    out.push_str("\nImages, beside podman, skopeo and containerd: [decision 022](decisions/022-figures.md).\n");
    Ok(out)
}

/// With all but the first `left` columns to the right.
fn write_table(out: &mut String, table: &[Vec<String>], left: usize) -> std::fmt::Result {
    for (at, line) in table.iter().enumerate() {
        writeln!(out, "| {} |", line.join(" | "))?;
        if at == 0 {
            let columns: Vec<_> =
                (0..line.len()).map(|c| if c < left { "---" } else { "--:" }).collect();
            writeln!(out, "| {} |", columns.join(" | "))?;
        }
    }
    Ok(())
}

const LEFT: f64 = 270.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 6.0;
/// The plot goes from a fiftieth of the kernel's speed to twenty times it.
const LOW: f64 = 0.02;
const HIGH: f64 = 20.0;
/// Of Strata, and of the others.
const OWN: [&str; 2] = ["#2f7fb8", "#164a73"];
const OTHERS: [&str; 4] = ["#d9a441", "#b5651d", "#9aa77f", "#c7a0b0"];

fn colour(report: &Report, at: usize) -> &'static str {
    match report.own().iter().position(|own| *own == at) {
        Some(own) => OWN[own % OWN.len()],
        None => OTHERS[at.saturating_sub(1) % OTHERS.len()],
    }
}

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
        let x = 8.0 + 135.0 * (at - 1) as f64;
        writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"8\" width=\"10\" height=\"10\" fill=\"{}\"/>",
            colour(report, at)
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
        for at in 1..report.subjects.len() {
            let (Some(median), Some(ratio)) = (line.median(at), line.ratio(at, 0)) else {
                continue;
            };
            let (y, end) = (top + BAR * (at - 1) as f64, place(ratio));
            let (from, to) = (end.min(place(1.0)), end.max(place(1.0)));
            writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{}: {} {}</title></rect>",
                (to - from).max(1.0),
                BAR - 1.0,
                colour(report, at),
                line.name,
                number(median),
                line.unit
            )?;
        }
    }
    out.push_str("</svg>\n");
    Ok(out)
}
