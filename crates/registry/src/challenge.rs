//! What a registry says when it wants to know who asks.
//!
//! Source: RFC 7235, `WWW-Authenticate`; Docker's token authentication.

use std::collections::HashMap;

/// What an answer of 401 asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A name and a password.
    Basic,
    /// A token, which somebody else gives.
    Bearer {
        /// Who gives it: an address.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads one challenge; none where it is of another kind, or names nobody to ask.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut values = HashMap::new();
        let mut rest = rest.trim();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            values.insert(key.trim().to_ascii_lowercase(), value.to_owned());
            rest = after.trim_start_matches([',', ' ']);
        }
        let realm = values.remove("realm")?;
        Some(Self::Bearer {
            realm,
            service: values.remove("service"),
            scope: values.remove("scope"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_commas_in_quotes() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: owned(service),
                scope: owned(scope),
            })
        };
        let cases = [
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#,
                bearer("https://a/t", Some("s"), Some("repository:x:pull,push")),
            ),
            ("bearer realm=https://a/t, service=s", bearer("https://a/t", Some("s"), None)),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Bearer", None),
            (r#"Bearer realm="x"#, None),
            ("Negotiate", None),
        ];
        for (text, want) in cases {
            assert_eq!(Challenge::parse(text), want, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_challenge_is_a_panic(text in ".{0,80}") {
            let _seen = Challenge::parse(&text).is_some();
        }
    }
}
