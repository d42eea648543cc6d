//! `--format` of lists and of `inspect`: text with fields in it, as Docker's `{{.Name}}`.
//!
//! Fields are paths into what `--json` prints; upper case and underscores do not matter. There are no loops and no
//! conditions: jq does that with the JSON.

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Text with fields in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

impl Template {
    /// Reads a template; `\t` and `\n` are what they are elsewhere.
    ///
    /// # Errors
    /// What is more than fields.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("{{") {
            let (field, after) = behind.split_once("}}").context("a {{ without its }}")?;
            parts.push(Part::Text(plain(before)));
            parts.push(field_of(field.trim())?);
            rest = after;
        }
        parts.push(Part::Text(plain(rest)));
        Ok(Self(parts))
    }

    /// The text for `value`.
    ///
    /// # Errors
    /// A field that it has not, with those that it has.
    pub fn show(&self, value: &Value) -> anyhow::Result<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text += plain,
                Part::Field { path, json } => {
                    let mut at = value;
                    for name in path {
                        at = field(at, name)?;
                    }
                    match at {
                        _ if *json => text += &serde_json::to_string(at)?,
                        Value::String(string) => text += string,
                        Value::Null => {}
                        other => text += &other.to_string(),
                    }
                }
            }
        }
        Ok(text)
    }

    /// The names of the fields, for the head of a table.
    pub fn head(&self) -> String {
        let name = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field { path, .. } => {
                path.last().map(|name| name.to_uppercase()).unwrap_or_default()
            }
        };
        self.0.iter().map(name).collect()
    }
}

fn plain(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn field_of(text: &str) -> anyhow::Result<Part> {
    let (json, path) = match text.strip_prefix("json") {
        Some(path) if path.starts_with([' ', '.']) => (true, path.trim()),
        _ => (false, text),
    };
    let names = path.strip_prefix('.').map(|path| path.split('.').map(str::to_owned));
    let names = names.map(|names| names.filter(|name| !name.is_empty()).collect::<Vec<_>>());
    match names {
        Some(path) if path.iter().all(|name| !name.contains(char::is_whitespace)) => {
            Ok(Part::Field { path, json })
        }
        _ => bail!(
            "{{{{{text}}}}} is no field: there are {{{{.Name}}}} and {{{{json .Name}}}}; for more, --json | jq"
        ),
    }
}

/// What `value` has under a name, whatever its case.
fn field<'a>(value: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let same = |known: &str| {
        let letters = |text: &str| {
            let letters = text.chars().filter(|c| *c != '_');
            letters.flat_map(char::to_lowercase).collect::<String>()
        };
        letters(known) == letters(name)
    };
    if let Some(list) = value.as_array() {
        return name.parse::<usize>().ok().and_then(|at| list.get(at)).context("no such element");
    }
    let Some(object) = value.as_object() else { bail!("there is nothing below .{name}") };
    let exact = object.get(name);
    let found =
        exact.or_else(|| object.iter().find(|(known, _)| same(known)).map(|(_, value)| value));
    found.with_context(|| {
        let names: Vec<&str> = object.keys().map(String::as_str).collect();
        format!("no field {name:?}; there are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_paths_whatever_their_case() {
        let value = serde_json::json!({
            "id": "abc", "exit_code": 0, "pid": null, "state": { "pid": 7 }, "names": ["x", "y"]
        });
        for (template, want) in [
            ("{{.ID}}", "abc"),
            (r"{{ .Id }}\t{{.ExitCode}}!", "abc\t0!"),
            ("{{.State.Pid}} {{.pid}}", "7 "),
            ("{{json .names}} {{.Names.1}}", r#"["x","y"] y"#),
            ("plain", "plain"),
        ] {
            let shown = Template::parse(template).expect("a template").show(&value);
            assert_eq!(shown.expect("text"), want, "{template}");
        }
        let absent = Template::parse("{{.Nonesuch}}").expect("a template").show(&value);
        assert!(absent.expect_err("refused").to_string().contains("there are exit_code, id"));
        for bad in ["{{.ID", "{{range .}}", "{{if .ID}}", "{{ID}}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
