//! Image references as people type them.
//!
//! Source: OCI distribution specification for names and tags; Docker's rules for what is left out.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::id::Digest;

/// A full image reference: registry, repository, and tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host, and port where it was given.
    pub registry: String,
    /// The path in the registry.
    pub repository: String,
    /// The tag; none where only a digest was given.
    pub tag: Option<String>,
    /// The digest, which then decides.
    pub digest: Option<Digest>,
}

/// The registry that a name without one is of.
const DEFAULT_REGISTRY: &str = "docker.io";

impl Reference {
    /// What a registry is asked for: the digest, or the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why| Err(Error::BadReference { text: text.chars().take(300).collect(), why });
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let good = tag
                .bytes()
                .enumerate()
                .all(|(i, b)| word(b) || (i > 0 && (b == b'.' || b == b'-')));
            if tag.is_empty() || tag.len() > 128 || !good {
                return bad("a tag has letters, digits, '_', '.' and '-', 128 at most");
            }
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
                (host, path.to_owned())
            }
            Some(_) => (DEFAULT_REGISTRY, name.to_owned()),
            None => (DEFAULT_REGISTRY, format!("library/{name}")),
        };
        if !is_host(registry) {
            return bad("the registry is no host name");
        }
        if path.len() > 255 {
            return bad("the repository's name is longer than 255");
        }
        if !path.split('/').all(is_component) {
            return bad(
                "a repository's name has lower-case letters and digits, with single separators between",
            );
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry: registry.to_owned(), repository: path, tag, digest })
    }
}

/// A host's name or address, and a port where there is one.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, "0"),
    };
    let port = !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return port && inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        let word = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        word(bytes.first())
            && word(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    port && host.split('.').all(is_label)
}

/// Lower-case letters and digits, with `.`, one or two `_`, or any number of `-` between.
fn is_component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !plain(*first) || !plain(*last) {
        return false;
    }
    bytes
        .split(|b| plain(*b))
        .filter(|gap| !gap.is_empty())
        .all(|gap| matches!(gap, b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in_as_docker_does() {
        let zero = "0".repeat(64);
        let with_digest = format!("a.b/c@sha256:{zero}");
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("team/app", "docker.io/team/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t"),
            ("[::1]:5000/a:t", "[::1]:5000/a:t"),
            ("docker.io/library/nginx", "docker.io/library/nginx:latest"),
            (&with_digest, &with_digest),
        ];
        for (text, full) in cases {
            let parsed: Reference = text.parse().expect("a reference");
            assert_eq!(parsed.to_string(), full);
            assert_eq!(full.parse::<Reference>().expect("again"), parsed);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(300);
        for text in [
            "",
            ":",
            "a:",
            "A",
            "a//b",
            "a/../b",
            "a_",
            "a___b",
            "a:t/",
            "a:.t",
            "a@sha256:0",
            "/a",
            "./a",
            "a..b/c",
            "-a.b/c",
            "a.b:/c",
            "a.b:x/c",
            "[::1/c",
            "[x.y]/c",
            "a b",
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_a_panic_and_what_parses_prints_and_parses_alike(text in ".{0,60}") {
            if let Ok(parsed) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(parsed.to_string().parse::<Reference>().ok(), Some(parsed));
            }
        }
    }
}
