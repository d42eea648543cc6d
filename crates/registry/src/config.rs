//! Who is asked, and as whom: registries.conf, and the files in which logins are kept.
//!
//! The paths come from the caller; nothing here knows where a user's files are.
//!
//! Source: containers-registries.conf(5), containers-auth.json(5), Docker's `config.json`.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use serde::Deserialize;

use crate::error::{Error, Result};

/// Where configuration is, the first that says something counts.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `auth.json`, `~/.docker/config.json`.
    pub auth_files: Vec<PathBuf>,
    /// `registries.conf`.
    pub registries: Vec<PathBuf>,
}

/// A place that has a registry's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port.
    pub host: String,
    /// The repository there.
    pub repository: String,
    /// Whether plain HTTP, and certificates that nobody vouches for, will do.
    pub insecure: bool,
}

/// A name and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name; `<token>` for an identity token in place of a password.
    pub username: String,
    /// The secret.
    pub password: String,
}

#[derive(Deserialize, Default)]
struct RegistriesFile {
    #[serde(default)]
    registry: Vec<RegistryEntry>,
}

#[derive(Deserialize)]
struct RegistryEntry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Deserialize)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
}

#[derive(Deserialize, Default)]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize, Default)]
struct Auth {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default, rename = "identitytoken")]
    token: Option<String>,
}

impl Config {
    /// Where to look for a repository, mirrors first.
    ///
    /// # Errors
    /// [`Error::Config`] for a file that is none; [`Error::Denied`] for a registry that is blocked.
    pub fn endpoints(&self, registry: &str, repository: &str) -> Result<Vec<Endpoint>> {
        let full = format!("{registry}/{repository}");
        for path in &self.registries {
            let Some(text) = read(path)? else { continue };
            let file: RegistriesFile = toml::from_str(&text)
                .map_err(|e| Error::Config { path: path.clone(), why: e.to_string() })?;
            let key =
                |entry: &RegistryEntry| entry.prefix.clone().or_else(|| entry.location.clone());
            let fits = |entry: &&RegistryEntry| {
                let prefix = key(entry).unwrap_or_default();
                full.strip_prefix(&prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let found = file
                .registry
                .iter()
                .filter(fits)
                .max_by_key(|entry| key(entry).map_or(0, |k| k.len()));
            let Some(entry) = found else { continue };
            if entry.blocked {
                return Err(Error::Denied {
                    registry: registry.to_owned(),
                    repository: repository.to_owned(),
                });
            }
            let prefix = key(entry).unwrap_or_default();
            let rest = full[prefix.len()..].to_owned();
            let mut found: Vec<Endpoint> = entry
                .mirror
                .iter()
                .map(|mirror| endpoint(&format!("{}{rest}", mirror.location), mirror.insecure))
                .collect();
            let location = entry.location.as_deref().unwrap_or(&prefix);
            found.push(endpoint(&format!("{location}{rest}"), entry.insecure));
            return Ok(found);
        }
        Ok(vec![endpoint(&full, false)])
    }

    /// The login for a repository, the most particular first.
    ///
    /// # Errors
    /// [`Error::Config`] for a file that is none, or a helper that fails.
    pub fn credentials(&self, registry: &str, repository: &str) -> Result<Option<Credentials>> {
        let mut keys: Vec<String> = Vec::new();
        let mut path = format!("{registry}/{repository}");
        loop {
            keys.push(path.clone());
            match path.rsplit_once('/') {
                Some((above, _)) => path = above.to_owned(),
                None => break,
            }
        }
        if registry == "docker.io" {
            keys.extend(["https://index.docker.io/v1/".to_owned(), "index.docker.io".to_owned()]);
        }
        keys.extend([format!("https://{registry}"), format!("http://{registry}")]);
        for file in &self.auth_files {
            let Some(text) = read(file)? else { continue };
            let bad = |why: String| Error::Config { path: file.clone(), why };
            let auths: AuthFile = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
            for key in &keys {
                if let Some(helper) = auths.helpers.get(key) {
                    return ask_helper(helper, key).map_err(bad);
                }
                if let Some(auth) = auths.auths.get(key).filter(|auth| auth.auth.is_some()) {
                    return decode(auth)
                        .map(Some)
                        .ok_or_else(|| bad(format!("the login for {key} is not readable")));
                }
            }
            if let Some(helper) = &auths.store
                && let Some(found) = ask_helper(helper, &keys[keys.len() - 1]).map_err(bad)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn endpoint(full: &str, insecure: bool) -> Endpoint {
    let (host, repository) = full.split_once('/').unwrap_or((full, ""));
    // Docker's registry has another name than the one that people type.
    let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
    Endpoint { host: host.to_owned(), repository: repository.to_owned(), insecure }
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::Config { path: path.to_owned(), why: e.to_string() }),
    }
}

fn decode(auth: &Auth) -> Option<Credentials> {
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(auth.auth.as_ref()?.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(match &auth.token {
        Some(token) => Credentials { username: "<token>".to_owned(), password: token.clone() },
        None => Credentials {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        },
    })
}

/// Runs `docker-credential-NAME get`. One that knows nothing of the registry is no error.
fn ask_helper(name: &str, registry: &str) -> std::result::Result<Option<Credentials>, String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username")]
        username: String,
        #[serde(rename = "Secret")]
        secret: String,
    }
    if name.contains('/') {
        return Err(format!("{name:?} is no name of a helper"));
    }
    let program = format!("docker-credential-{name}");
    let run = || -> std::io::Result<std::process::Output> {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(registry.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|e| format!("{program} can't be run: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        let unknown = said.contains("credentials not found");
        return if unknown { Ok(None) } else { Err(format!("{program} failed: {}", said.trim())) };
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("{program}: {e}"))?;
    Ok(Some(Credentials { username: answer.username, password: answer.secret }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        (dir, path)
    }

    #[test]
    fn the_longest_prefix_counts_and_mirrors_come_first() {
        let text = r#"
            [[registry]]
            location = "a.example"
            [[registry.mirror]]
            location = "mirror.example/a"
            insecure = true
            [[registry]]
            prefix = "a.example/team"
            location = "b.example/x"
            insecure = true
            [[registry]]
            location = "blocked.example"
            blocked = true
        "#;
        let (_dir, path) = scene("registries.conf", text);
        let config = Config { registries: vec![path], ..Config::default() };
        let of = |registry, repository| config.endpoints(registry, repository);
        let host = |e: &Endpoint| format!("{}/{} {}", e.host, e.repository, e.insecure);
        let all = |list: Vec<Endpoint>| list.iter().map(host).collect::<Vec<_>>();
        assert_eq!(
            all(of("a.example", "x").expect("endpoints")),
            ["mirror.example/a/x true", "a.example/x false"]
        );
        assert_eq!(all(of("a.example", "team/app").expect("endpoints")), ["b.example/x/app true"]);
        assert_eq!(all(of("a.example", "teams").expect("endpoints")).len(), 2);
        assert_eq!(all(of("c.example", "x").expect("endpoints")), ["c.example/x false"]);
        assert!(of("blocked.example", "x").is_err());
    }

    #[test]
    fn logins_are_found_by_the_most_particular_key() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let text = format!(
            r#"{{"auths":{{"a.example":{{"auth":"{}"}},"a.example/team":{{"auth":"{}"}},"https://index.docker.io/v1/":{{"auth":"{}"}},"bad.example":{{"auth":"?"}}}}}}"#,
            encode("u:p:q"),
            encode("team:t"),
            encode("d:d")
        );
        let (_dir, path) = scene("auth.json", &text);
        let config =
            Config { auth_files: vec![PathBuf::from("/nowhere"), path], ..Config::default() };
        let of = |registry, repository| {
            let found: Option<Credentials> =
                config.credentials(registry, repository).expect("a file");
            found.map(|c| format!("{} {}", c.username, c.password))
        };
        assert_eq!(of("a.example", "x").as_deref(), Some("u p:q"));
        assert_eq!(of("a.example", "team/app").as_deref(), Some("team t"));
        assert_eq!(of("docker.io", "library/x").as_deref(), Some("d d"));
        assert_eq!(of("b.example", "x"), None);
        assert!(config.credentials("bad.example", "x").is_err());
    }
}
