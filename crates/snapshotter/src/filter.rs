//! Which snapshots a listing asks for.
//!
//! Source: containerd `pkg/filters`: selectors with commas between, all of which must hold; of several filters one.

use regex::Regex;
use store::snapshots::{Kind, Snapshot};

/// One condition.
#[derive(Debug)]
enum Selector {
    Present(Field),
    Equal(Field, String),
    Unequal(Field, String),
    Matches(Field, Regex),
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// One that snapshots do not have.
    Other,
}

impl Field {
    fn of<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s str> {
        match self {
            Self::Name => Some(&snapshot.name),
            Self::Parent => snapshot.parent.as_deref(),
            Self::Kind => Some(match snapshot.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            Self::Label(name) => snapshot.labels.get(name).map(String::as_str),
            Self::Other => None,
        }
    }
}

impl Selector {
    fn holds(&self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Present(field) => field.of(snapshot).is_some_and(|value| !value.is_empty()),
            Self::Equal(field, value) => field.of(snapshot).unwrap_or("") == value,
            Self::Unequal(field, value) => field.of(snapshot).unwrap_or("") != value,
            Self::Matches(field, regex) => regex.is_match(field.of(snapshot).unwrap_or("")),
        }
    }
}

/// Filters of which one must hold; none lets everything through.
#[derive(Debug, Default)]
pub struct Filters(Vec<Vec<Selector>>);

impl Filters {
    /// Reads filters.
    ///
    /// # Errors
    /// One sentence.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let one = |text: &String| {
            let wrong = |why| format!("the filter {text:?} can't be read: {why}");
            Reader { rest: text }.selectors().map_err(wrong)
        };
        Ok(Self(texts.iter().map(one).collect::<Result<_, _>>()?))
    }

    /// Whether a snapshot is asked for.
    pub fn let_through(&self, snapshot: &Snapshot) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|one| one.holds(snapshot)))
    }
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn selectors(mut self) -> Result<Vec<Selector>, String> {
        let mut selectors = Vec::new();
        self.skip_space();
        while !self.rest.is_empty() {
            selectors.push(self.selector()?);
            self.skip_space();
            match self.rest.strip_prefix(',') {
                Some(rest) => self.rest = rest,
                None if self.rest.is_empty() => break,
                None => return Err(format!("a comma is missing before {:?}", self.rest)),
            }
            self.skip_space();
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.word()?];
        while let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            path.push(self.word()?);
        }
        let field = match (path[0].as_str(), &path[1..]) {
            ("name", []) => Field::Name,
            ("parent", []) => Field::Parent,
            ("kind", []) => Field::Kind,
            ("labels", [_, ..]) => Field::Label(path[1..].join(".")),
            _ => Field::Other,
        };
        self.skip_space();
        for (sign, is_regex, equal) in
            [("==", false, true), ("!=", false, false), ("~=", true, true)]
        {
            let Some(rest) = self.rest.strip_prefix(sign) else { continue };
            self.rest = rest;
            self.skip_space();
            let value = self.value()?;
            return Ok(match (is_regex, equal) {
                (true, _) => {
                    Selector::Matches(field, Regex::new(&value).map_err(|e| e.to_string())?)
                }
                (_, true) => Selector::Equal(field, value),
                (_, false) => Selector::Unequal(field, value),
            });
        }
        Ok(Selector::Present(field))
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// A part of a path: quoted, or of letters, digits, `_`, `-` and `/`.
    fn word(&mut self) -> Result<String, String> {
        self.token(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '/'))
    }

    /// A value: quoted, or up to a comma or a space.
    fn value(&mut self) -> Result<String, String> {
        self.token(|c| c != ',' && !c.is_whitespace())
    }

    fn token(&mut self, bare: impl Fn(char) -> bool) -> Result<String, String> {
        let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '|' | '/')) else {
            let end = self.rest.find(|c| !bare(c)).unwrap_or(self.rest.len());
            if end == 0 {
                return Err(format!("something is missing before {:?}", self.rest));
            }
            let (token, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Ok(token.to_owned());
        };
        let mut token = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' if quote == '"' => match chars.next() {
                    Some((_, 'n')) => token.push('\n'),
                    Some((_, 't')) => token.push('\t'),
                    Some((_, c)) => token.push(c),
                    None => break,
                },
                c if c == quote => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Ok(token);
                }
                c => token.push(c),
            }
        }
        Err("a quote has no end".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_hold_as_containerd_means_them() {
        let snapshot = Snapshot {
            name: "k8s.io/3/sha256:abc".to_owned(),
            parent: None,
            kind: Kind::Committed,
            created: 0,
            updated: 0,
            labels: [("containerd.io/snapshot.ref".to_owned(), "sha256:x".to_owned())].into(),
        };
        let cases = [
            (vec![], true),
            (vec!["kind==committed"], true),
            (vec!["kind == active"], false),
            (vec!["kind!=view,name~=\"^k8s\""], true),
            (vec!["labels.\"containerd.io/snapshot.ref\"==\"sha256:x\",parent==\"\""], true),
            (vec!["labels.\"containerd.io/snapshot.ref\"==sha256:y"], false),
            (vec!["labels.\"containerd.io/snapshot.ref\""], true),
            (vec!["labels.\"other\""], false),
            (vec!["parent"], false),
            (vec!["name==a", "kind==committed"], true),
            (vec!["bogus==x"], false),
        ];
        for (texts, holds) in cases {
            let texts: Vec<_> = texts.into_iter().map(str::to_owned).collect();
            let filters = Filters::parse(&texts).unwrap();
            assert_eq!(filters.let_through(&snapshot), holds, "{texts:?}");
        }
        for wrong in ["name==", "==a", "name==\"a", "name~=\"(\"", "name a"] {
            assert!(Filters::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
