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
    /// What is counted, a second.
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

    /// The last subject's median beside another's: above one, the last is faster.
    pub fn ratio_to(&self, subject: usize) -> Option<f64> {
        let own = self.values.len().checked_sub(1)?;
        Some(self.median(own)? / self.median(subject)?)
    }
}

impl Report {
    /// No figures yet. The last of `subjects` is the one that is compared with the others.
    pub fn new(subjects: &[Subject], rounds: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let subjects = subjects.iter().map(|s| (s.name.to_owned(), s.version.clone())).collect();
        Self { rounds, processors, subjects, lines: Vec::new() }
    }

    /// Takes one value.
    pub fn add(&mut self, row: &Row, subject: &Subject, value: f64) {
        let Some(at) = self.subjects.iter().position(|(name, _)| name == subject.name) else {
            return;
        };
        if !self.lines.iter().any(|line| line.name == row.name) {
            let values = vec![Vec::new(); self.subjects.len()];
            self.lines.push(Line { name: row.name.to_owned(), unit: row.unit.to_owned(), values });
        }
        if let Some(line) = self.lines.iter_mut().find(|line| line.name == row.name) {
            line.values[at].push(value);
        }
    }

    /// # Errors
    /// A value is not a number.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// What our own figures lost against `earlier`, where it is more than the spreads of both together.
    pub fn slower_than(&self, earlier: &Self) -> Vec<String> {
        let own = |report: &Self| report.subjects.len().saturating_sub(1);
        let mut found = Vec::new();
        for line in &self.lines {
            let Some(old) = earlier.lines.iter().find(|old| old.name == line.name) else {
                continue;
            };
            let (at, old_at) = (own(self), own(earlier));
            let (Some(now), Some(then)) = (line.median(at), old.median(old_at)) else { continue };
            if now < then * (1.0 - line.spread(at) - old.spread(old_at)) {
                found.push(format!(
                    "slower: {}: {} {}, before {}",
                    line.name,
                    number(now),
                    line.unit,
                    number(then)
                ));
            }
        }
        found
    }

    /// A header and a line for each row, as texts: name, unit, a figure for each subject, ratios.
    pub fn table(&self) -> Vec<Vec<String>> {
        let peers = self.subjects.len().saturating_sub(1);
        let mut header = vec![String::new(), "a second".to_owned()];
        header.extend(self.subjects.iter().map(|(name, _)| name.clone()));
        header.extend(self.subjects[..peers].iter().map(|(name, _)| format!("÷ {name}")));
        let mut table = vec![header];
        for line in &self.lines {
            let unit = line.unit.trim_end_matches("/s").to_owned();
            let mut texts = vec![line.name.clone(), unit];
            for at in 0..self.subjects.len() {
                let figure = line.median(at).map_or_else(|| "–".to_owned(), number);
                texts.push(format!("{figure} ±{:.0}%", line.spread(at) * 100.0));
            }
            for at in 0..peers {
                texts.push(line.ratio_to(at).map_or_else(|| "–".to_owned(), |r| format!("{r:.2}")));
            }
            table.push(texts);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table();
        let width = |column: usize| {
            table
                .iter()
                .filter_map(|line| line.get(column))
                .map(|t| t.chars().count())
                .max()
                .unwrap_or(0)
        };
        for line in &table {
            for (column, text) in line.iter().enumerate() {
                let width = width(column);
                if column < 2 {
                    write!(f, "{text:<width$}  ")?;
                } else {
                    write!(f, "{text:>width$}  ")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
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

    fn report(values: &[f64]) -> Report {
        let line = Line {
            name: "row".into(),
            unit: "x/s".into(),
            values: vec![vec![10.0; 3], values.to_vec()],
        };
        let subjects = ["kernel", "strata"].map(|name| (name.to_owned(), String::new())).to_vec();
        Report { rounds: 3, processors: 1, subjects, lines: vec![line] }
    }

    #[test]
    fn the_median_and_its_ratio_to_another() {
        let line = &report(&[30.0, 5.0, 20.0]).lines[0];
        assert_eq!((line.median(1), line.ratio_to(0)), (Some(20.0), Some(2.0)));
    }

    #[test]
    fn only_what_is_slower_by_more_than_both_spreads_is_named() {
        let before = report(&[20.0, 20.0, 20.0]);
        let cases: [(&[f64], usize); 3] =
            [(&[18.0, 18.0, 18.0], 1), (&[21.0, 21.0, 21.0], 0), (&[10.0, 18.0, 30.0], 0)];
        for (now, named) in cases {
            assert_eq!(report(now).slower_than(&before).len(), named, "{now:?}");
        }
    }
}
