//! Changes of an image's configuration, in the words of a Dockerfile.
//!
//! Source: Docker's manual, "Dockerfile reference"; image specification, "Image Configuration" for the names.

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

/// The keys of the `config` of an image's configuration that `changes` give another value, with it; `config` is what it
/// is now.
pub fn apply(
    config: &Map<String, Value>,
    changes: &[String],
) -> anyhow::Result<Map<String, Value>> {
    let mut changed = Map::new();
    for change in changes {
        one(config, &mut changed, change).with_context(|| format!("--change {change:?}"))?;
    }
    Ok(changed)
}

fn one(
    now: &Map<String, Value>,
    changed: &mut Map<String, Value>,
    change: &str,
) -> anyhow::Result<()> {
    let (word, rest) = change.trim().split_once(char::is_whitespace).unwrap_or((change.trim(), ""));
    let rest = rest.trim();
    let word = word.to_ascii_uppercase();
    let key = match word.as_str() {
        "CMD" => "Cmd",
        "ENTRYPOINT" => "Entrypoint",
        "ENV" => "Env",
        "EXPOSE" => "ExposedPorts",
        "LABEL" => "Labels",
        "ONBUILD" => "OnBuild",
        "STOPSIGNAL" => "StopSignal",
        "USER" => "User",
        "VOLUME" => "Volumes",
        "WORKDIR" => "WorkingDir",
        _ => bail!(
            "there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and \
             WORKDIR"
        ),
    };
    let before = changed.get(key).or_else(|| now.get(key)).cloned().unwrap_or(Value::Null);
    let set = |names: Vec<String>| {
        let mut all = before.as_object().cloned().unwrap_or_default();
        all.extend(names.into_iter().map(|name| (name, json!({}))));
        Value::Object(all)
    };
    let value = match key {
        "Cmd" | "Entrypoint" => match serde_json::from_str::<Vec<String>>(rest) {
            Ok(list) => json!(list),
            Err(_) if rest.is_empty() => json!([]),
            Err(_) => json!(["/bin/sh", "-c", rest]),
        },
        "Env" => {
            let mut all: Vec<Value> = before.as_array().cloned().unwrap_or_default();
            for (name, value) in pairs(rest)? {
                let start = format!("{name}=");
                all.retain(|known| !known.as_str().is_some_and(|text| text.starts_with(&start)));
                all.push(json!(start + &value));
            }
            Value::Array(all)
        }
        "Labels" => {
            let mut all = before.as_object().cloned().unwrap_or_default();
            all.extend(pairs(rest)?.into_iter().map(|(name, value)| (name, json!(value))));
            Value::Object(all)
        }
        "OnBuild" => {
            let mut all: Vec<Value> = before.as_array().cloned().unwrap_or_default();
            all.push(json!(rest));
            Value::Array(all)
        }
        "ExposedPorts" => {
            let port = |port: String| if port.contains('/') { port } else { port + "/tcp" };
            set(words(rest)?.into_iter().map(port).collect())
        }
        "Volumes" => match serde_json::from_str::<Vec<String>>(rest) {
            Ok(list) => set(list),
            Err(_) => set(words(rest)?),
        },
        _ if rest.is_empty() => bail!("{word} of nothing"),
        _ => json!(rest),
    };
    changed.insert(key.to_owned(), value);
    Ok(())
}

/// `NAME=VALUE …`, or one name and its value behind a space.
fn pairs(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let words = words(text)?;
    match words.first() {
        None => bail!("it needs a name and a value"),
        Some(first) if !first.contains('=') => {
            let (name, value) = text.split_once(char::is_whitespace).context("it has no value")?;
            Ok(vec![(name.to_owned(), value.trim().to_owned())])
        }
        Some(_) => words
            .into_iter()
            .map(|word| {
                let (name, value) = word.split_once('=').context("a name without a value")?;
                Ok((name.to_owned(), value.to_owned()))
            })
            .collect(),
    }
}

/// Words with their quotes and backslashes taken off.
fn words(text: &str) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quote != Some('\'') => {
                let next = chars.next().context("a backslash at the end")?;
                word.get_or_insert_default().push(next);
            }
            '\'' | '"' if quote == Some(c) => quote = None,
            '\'' | '"' if quote.is_none() => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && quote.is_none() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        bail!("a quote that does not end");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_keys_of_the_configuration() {
        let Value::Object(now) =
            json!({ "Env": ["A=1", "B=2"], "Labels": { "x": "y" }, "Cmd": ["a"] })
        else {
            panic!("an object")
        };
        let changes = [
            r#"CMD ["sh", "-c"]"#,
            "entrypoint run me",
            r#"ENV B=3 C="4 5""#,
            "ENV D six seven",
            "LABEL x=z",
            "VOLUME /data",
            r#"VOLUME ["/more"]"#,
            "EXPOSE 80 53/udp",
            "USER web",
            "WORKDIR /srv",
        ]
        .map(str::to_owned);
        let want = json!({
            "Cmd": ["sh", "-c"],
            "Entrypoint": ["/bin/sh", "-c", "run me"],
            "Env": ["A=1", "B=3", "C=4 5", "D=six seven"],
            "Labels": { "x": "z" },
            "Volumes": { "/data": {}, "/more": {} },
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
            "User": "web",
            "WorkingDir": "/srv",
        });
        assert_eq!(Value::Object(apply(&now, &changes).expect("changes")), want);
        for bad in ["FROM x", "ENV", "ENV A", "USER", "ENV A='x", "LABEL a=b c"] {
            assert!(apply(&now, &[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
