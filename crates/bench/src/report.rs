//! Medians, spreads and ratios: as a table, as JSON, and against earlier figures.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::row::Row;
use crate::subject::Subject;

/// All figures of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// How many rounds.
    pub rounds: usize,
    /// Processors of the machine.
    pub processors: usize,
    /// Name and version of each subject, in the order of a line's figures.
    pub subjects: Vec<(String, String)>,
    /// One for each row.
    pub lines: Vec<Line>,
}

/// A row's figures.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// The row's name.
    pub name: String,
    /// What is counted, a second; or `s`, where the values are the seconds that a job took.
    pub unit: String,
    /// For each subject, a value a round, in the order in which they came.
    pub values: Vec<Vec<f64>>,
}

impl Line {
    /// The median of a subject's values; `None` before there are any.
    pub fn median(&self, subject: usize) -> Option<f64> {
        let mut sorted = self.values.get(subject)?.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    /// Half the distance between the quartiles, as part of the median.
    pub fn spread(&self, subject: usize) -> f64 {
        let mut sorted = self.values.get(subject).cloned().unwrap_or_default();
        sorted.sort_by(f64::total_cmp);
        match (sorted.get(sorted.len() / 4), sorted.get(sorted.len() * 3 / 4), self.median(subject))
        {
            (Some(low), Some(high), Some(median)) => (high - low) / 2.0 / median,
            _ => 0.0,
        }
    }

    /// How many times as fast as the subject `other` the subject `own` is, by their medians.
    pub fn ratio(&self, own: usize, other: usize) -> Option<f64> {
        let (own, other) = (self.median(own)?, self.median(other)?);
        Some(if self.unit == SECONDS { other / own } else { own / other })
    }

    /// The fastest of `subjects`, of those that have figures.
    fn fastest(&self, subjects: &[usize]) -> Option<usize> {
        let with = subjects.iter().copied().filter(|at| self.median(*at).is_some());
        with.reduce(|best, at| if self.ratio(at, best) > Some(1.0) { at } else { best })
    }
}

/// The unit of whole jobs: less is better.
pub const SECONDS: &str = "s";

impl Report {
    /// No figures yet. Those of `subjects` whose names begin with "strata" are compared with the others.
    pub fn new(subjects: &[Subject], rounds: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let subjects = subjects.iter().map(|s| (s.name.clone(), s.version.clone())).collect();
        Self { rounds, processors, subjects, lines: Vec::new() }
    }

    /// Takes one value; none of a subject that can't do the row.
    pub fn add(&mut self, row: &Row, subject: &Subject, value: Option<f64>) {
        let Some(at) = self.subjects.iter().position(|(name, _)| *name == subject.name) else {
            return;
        };
        if !self.lines.iter().any(|line| line.name == row.name) {
            let values = vec![Vec::new(); self.subjects.len()];
            self.lines.push(Line { name: row.name.to_owned(), unit: row.unit.to_owned(), values });
        }
        if let Some(line) = self.lines.iter_mut().find(|line| line.name == row.name) {
            line.values[at].extend(value);
        }
    }

    /// # Errors
    /// A value is not a number.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// What our own figures lost against `earlier`, where it is more than the spreads of both together.
    pub fn slower_than(&self, earlier: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for line in &self.lines {
            let Some(old) = earlier.lines.iter().find(|old| old.name == line.name) else {
                continue;
            };
            for at in self.own() {
                let name = &self.subjects[at].0;
                let Some(old_at) = earlier.subjects.iter().position(|(old, _)| old == name) else {
                    continue;
                };
                let (Some(now), Some(then)) = (line.median(at), old.median(old_at)) else {
                    continue;
                };
                let ratio = if line.unit == SECONDS { then / now } else { now / then };
                if ratio < 1.0 - line.spread(at) - old.spread(old_at) {
                    let (now, then) = (number(now), number(then));
                    let row = &line.name;
                    found
                        .push(format!("slower: {row}: {name}: {now} {}, before {then}", line.unit));
                }
            }
        }
        found
    }

    fn named(&self, start: &str) -> Vec<usize> {
        let named = |at: &usize| self.subjects[*at].0.starts_with(start);
        (0..self.subjects.len()).filter(named).collect()
    }

    /// The subjects that the report is about.
    pub fn own(&self) -> Vec<usize> {
        self.named("strata")
    }

    /// A header and a line for each row, as texts: name, unit, a figure for each subject.
    pub fn figures(&self) -> Vec<Vec<String>> {
        let mut header = vec![String::new(), String::new()];
        header.extend(self.subjects.iter().map(|(name, _)| name.clone()));
        let mut table = vec![header];
        for line in &self.lines {
            let mut texts = vec![line.name.clone(), line.unit.clone()];
            texts.extend((0..self.subjects.len()).map(|at| match line.median(at) {
                Some(median) => format!("{} ±{:.0}%", number(median), line.spread(at) * 100.0),
                None => NONE.to_owned(),
            }));
            table.push(texts);
        }
        table
    }

    /// A header and a line for each row, as texts: name, and how many times as fast as the kernel each Strata is, and as
    /// the fastest fuse-overlayfs.
    pub fn ratios(&self) -> Vec<Vec<String>> {
        let (own, kernel, fuse) = (self.own(), self.named("kernel"), self.named("fuse-overlayfs"));
        let peers = [("kernel", kernel), ("fuse-overlayfs", fuse)];
        let peers: Vec<_> = peers.iter().filter(|(_, at)| !at.is_empty()).collect();
        let mut header = vec![String::new()];
        for (peer, _) in &peers {
            header.extend(own.iter().map(|at| format!("{} ÷ {peer}", self.subjects[*at].0)));
        }
        let mut table = vec![header];
        for line in &self.lines {
            let mut texts = vec![line.name.clone()];
            for (_, peer) in &peers {
                let fastest = line.fastest(peer);
                texts.extend(own.iter().map(|at| {
                    let ratio = fastest.and_then(|peer| line.ratio(*at, peer));
                    ratio.map_or_else(|| NONE.to_owned(), |ratio| format!("{ratio:.2}"))
                }));
            }
            table.push(texts);
        }
        table
    }
}

/// In place of what a subject can't do.
const NONE: &str = "–";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_table(f, &self.figures(), 2)?;
        writeln!(f)?;
        write_table(f, &self.ratios(), 1)
    }
}

/// With all but the first `left` columns to the right.
fn write_table(f: &mut fmt::Formatter<'_>, table: &[Vec<String>], left: usize) -> fmt::Result {
    let width = |column: usize| {
        let texts = table.iter().filter_map(|line| line.get(column));
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    for line in table {
        for (column, text) in line.iter().enumerate() {
            let width = width(column);
            if column < left {
                write!(f, "{text:<width$}  ")?;
            } else {
                write!(f, "{text:>width$}  ")?;
            }
        }
        writeln!(f)?;
    }
    Ok(())
}

/// Three digits that count, and a comma for thousands.
pub fn number(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let step = 10f64.powf((value.log10().floor() - 2.0).max(0.0));
    let digits = format!("{:.0}", (value / step).round() * step);
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let cases = [(1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.0, "1,230")];
        for (value, text) in
            cases.into_iter().chain([(61_777.0, "61,800"), (1_234_567.0, "1,230,000")])
        {
            assert_eq!(number(value), text);
        }
    }

    /// Of one row: the kernel's three values are 10, those of two versions of fuse-overlayfs 2 and 4.
    fn report(unit: &str, values: &[f64]) -> Report {
        let peers = [10.0, 2.0, 4.0].map(|value| vec![value; 3]);
        let values = peers.into_iter().chain([values.to_vec()]).collect();
        let line = Line { name: "row".into(), unit: unit.into(), values };
        let subjects = ["kernel", "fuse-overlayfs 1", "fuse-overlayfs 2", "strata"];
        let subjects = subjects.map(|name| (name.to_owned(), String::new())).to_vec();
        Report { rounds: 3, processors: 1, subjects, lines: vec![line] }
    }

    #[test]
    fn ratios_are_to_the_kernel_and_to_the_fastest_fuse_overlayfs_and_above_one_where_strata_is_faster()
     {
        let cases: [(&str, &[f64], [&str; 2]); 3] = [
            ("x/s", &[30.0, 5.0, 20.0], ["2.00", "5.00"]),
            ("s", &[5.0, 5.0, 1.0], ["2.00", "0.40"]),
            ("x/s", &[], ["–", "–"]),
        ];
        for (unit, values, shown) in cases {
            assert_eq!(report(unit, values).ratios()[1][1..], shown, "{unit} {values:?}");
        }
    }

    #[test]
    fn only_what_is_slower_by_more_than_both_spreads_is_named() {
        let cases: [(&str, &[f64], usize); 5] = [
            ("x/s", &[18.0, 18.0, 18.0], 1),
            ("x/s", &[21.0, 21.0, 21.0], 0),
            ("x/s", &[10.0, 18.0, 30.0], 0),
            ("s", &[21.0, 21.0, 21.0], 1),
            ("s", &[18.0, 18.0, 18.0], 0),
        ];
        for (unit, now, named) in cases {
            let before = report(unit, &[20.0, 20.0, 20.0]);
            assert_eq!(report(unit, now).slower_than(&before).len(), named, "{unit} {now:?}");
        }
    }
}
