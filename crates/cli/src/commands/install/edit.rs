//! Configurations with Strata in them, of the text that was there: what is said there and its comments stay.
//!
//! Source: containerd `docs/config`, `docs/PLUGINS.md`, `docs/cri/config.md`; Docker `docs/containerd`; containers-storage.conf(5).

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use toml_edit::{Array, DocumentMut, Item, Table, value};

/// Major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    /// The first version in a text.
    pub fn find(text: &str) -> Option<Self> {
        text.split(|c: char| c.is_whitespace() || c == 'v' || c == ',').find_map(|word| {
            let mut numbers = word.split(['.', '+', '~', '-']);
            Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
        })
    }
}

/// What the engine is told of the snapshotter.
#[derive(Debug, Clone)]
pub struct Settings {
    pub store: PathBuf,
    pub address: PathBuf,
    pub kubernetes: bool,
}

/// The table at a path, made where it is not there.
fn table<'d>(doc: &'d mut DocumentMut, path: &[&str]) -> anyhow::Result<&'d mut Table> {
    let mut at = doc.as_table_mut();
    for (level, name) in path.iter().enumerate() {
        let inner = at.entry(name).or_insert_with(|| {
            let mut made = Table::new();
            // Only the last one has a line of its own.
            made.set_implicit(level + 1 < path.len());
            Item::Table(made)
        });
        if let Some(inline) = inner.as_inline_table() {
            *inner = Item::Table(inline.clone().into_table());
        }
        at = inner.as_table_mut().with_context(|| format!("{name} is no table there"))?;
    }
    Ok(at)
}

fn text(path: &Path) -> anyhow::Result<Item> {
    Ok(value(path.to_str().with_context(|| format!("{} is no text", path.display()))?))
}

/// containerd's configuration.
///
/// # Errors
/// What is there can't be read, or is of a version before 2.
pub fn containerd(before: &str, version: Version, settings: &Settings) -> anyhow::Result<String> {
    if version < Version(1, 6) {
        bail!("containerd {version} is older than 1.6, the oldest that Strata knows");
    }
    let mut doc: DocumentMut =
        before.parse().context("containerd's configuration can't be read")?;
    let newest = if version.0 >= 2 { 3 } else { 2 };
    let format = match doc.get("version").map(Item::as_integer) {
        None if before.trim().is_empty() => {
            doc.insert("version", value(newest));
            newest
        }
        Some(Some(known @ (2 | 3))) => known,
        _ => bail!(
            "containerd's configuration is of version 1, which containerd itself migrates: \
             containerd config migrate"
        ),
    };
    let snapshotter = table(&mut doc, &["proxy_plugins", "strata"])?;
    snapshotter.insert("type", value("snapshot"));
    snapshotter.insert("address", text(&settings.address)?);
    if version >= Version(1, 7) {
        // Without this containerd copies a whole image to give its files to other users; 1.7 can't mount what is mapped.
        // `rebase`: layers are unpacked at once and get their parents afterwards, where max_concurrent_unpacks says so.
        if version >= Version(2, 0) {
            let known = if version >= Version(2, 2) {
                &["remap-ids", "rebase"][..]
            } else {
                &["remap-ids"]
            };
            snapshotter.insert("capabilities", value(known.iter().copied().collect::<Array>()));
        }
        let exports = table(&mut doc, &["proxy_plugins", "strata", "exports"])?;
        exports.insert("root", text(&settings.store)?);
        if version >= Version(2, 1) {
            exports.insert("enable_remote_snapshot_annotations", value("true"));
        }
        let differ = table(&mut doc, &["proxy_plugins", "strata-diff"])?;
        differ.insert("type", value("diff"));
        differ.insert("address", text(&settings.address)?);
        let differs = table(&mut doc, &["plugins", "io.containerd.service.v1.diff-service"])?;
        let known = differs.get("default").and_then(Item::as_array).cloned();
        let known = known.unwrap_or_else(|| Array::from_iter(["walking"]));
        let others =
            known.iter().filter_map(|name| name.as_str()).filter(|name| *name != "strata-diff");
        let all: Array = std::iter::once("strata-diff").chain(others).collect();
        differs.insert("default", value(all));
    }
    if version >= Version(2, 1) {
        transfer(&mut doc)?;
    }
    if settings.kubernetes {
        let path: &[&str] = if format == 3 {
            &["plugins", "io.containerd.cri.v1.images"]
        } else {
            &["plugins", "io.containerd.grpc.v1.cri", "containerd"]
        };
        let cri = table(&mut doc, path)?;
        cri.insert("snapshotter", value("strata"));
        cri.insert("disable_snapshot_annotations", value(false));
    }
    Ok(doc.to_string())
}

/// Without this, what the transfer service pulls for Strata is not unpacked.
fn transfer(doc: &mut DocumentMut) -> anyhow::Result<()> {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let entry = |snapshotter: &str, differ: &str| {
        let mut entry = Table::new();
        entry.insert("platform", value(format!("linux/{machine}")));
        entry.insert("snapshotter", value(snapshotter));
        entry.insert("differ", value(differ));
        entry
    };
    let service = table(doc, &["plugins", "io.containerd.transfer.v1.local"])?;
    let list = service.entry("unpack_config").or_insert_with(|| {
        // What is there without a list, and would be no longer: pulls for the default snapshotter.
        let default = [entry("overlayfs", "walking")];
        Item::ArrayOfTables(toml_edit::ArrayOfTables::from_iter(default))
    });
    let list = list.as_array_of_tables_mut().context("unpack_config is no list of tables there")?;
    let ours = |entry: &Table| {
        entry.get("snapshotter").and_then(Item::as_str).is_some_and(|name| name == "strata")
    };
    if !list.iter().any(ours) {
        list.push(entry("strata", "strata-diff"));
    }
    Ok(())
}

/// Docker's configuration of the daemon.
///
/// # Errors
/// What is there is no JSON object.
pub fn docker(before: &str) -> anyhow::Result<String> {
    let before = if before.trim().is_empty() { "{}" } else { before };
    let mut config: serde_json::Value =
        serde_json::from_str(before).context("Docker's configuration can't be read")?;
    let object = config.as_object_mut().context("Docker's configuration is no object")?;
    let features = object.entry("features").or_insert_with(|| serde_json::json!({}));
    let features = features.as_object_mut().context("Docker's features are no object")?;
    features.insert("containerd-snapshotter".to_owned(), true.into());
    object.insert("storage-driver".to_owned(), "strata".into());
    Ok(serde_json::to_string_pretty(&config)? + "\n")
}

/// podman's configuration of its storage, with `program` to mount layers; `root` is whether it must name its
/// directories.
///
/// # Errors
/// What is there can't be read, or has another driver.
pub fn podman(before: &str, program: &Path, root: bool) -> anyhow::Result<String> {
    let mut doc: DocumentMut = before.parse().context("podman's storage.conf can't be read")?;
    let storage = table(&mut doc, &["storage"])?;
    match storage.get("driver").and_then(Item::as_str) {
        None | Some("") => {
            storage.insert("driver", value("overlay"));
        }
        Some("overlay") => {}
        Some(other) => bail!("podman's storage has the driver {other:?}: Strata serves overlay"),
    }
    if root {
        for (name, default) in
            [("runroot", "/run/containers/storage"), ("graphroot", "/var/lib/containers/storage")]
        {
            storage.entry(name).or_insert_with(|| value(default));
        }
    }
    let overlay = table(&mut doc, &["storage", "options", "overlay"])?;
    overlay.insert("mount_program", text(program)?);
    Ok(doc.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(kubernetes: bool) -> Settings {
        Settings {
            store: "/var/lib/strata".into(),
            address: "/run/strata/snapshotter.sock".into(),
            kubernetes,
        }
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (said, version) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", (1, 6)),
            ("containerd github.com/containerd/containerd/v2 v2.1.4 abc", (2, 1)),
            ("Docker version 26.1.5+dfsg1, build 411e817", (26, 1)),
            ("podman version 4.3.1", (4, 3)),
        ] {
            assert_eq!(Version::find(said), Some(Version(version.0, version.1)), "{said}");
        }
        assert_eq!(Version::find("none"), None);
    }

    #[test]
    fn containerd_gets_what_its_version_knows_and_keeps_what_it_had() {
        let before = "# kept\nversion = 2\n[grpc]\n  address = \"/x\" # too\n\
                      [plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"mine\"]\n";
        let old = containerd(before, Version(1, 6), &settings(false)).unwrap();
        assert!(old.starts_with(before), "{old}");
        assert!(old.contains("[proxy_plugins.strata]\n") && !old.contains("strata-diff"), "{old}");
        let new = containerd(before, Version(1, 7), &settings(true)).unwrap();
        assert!(new.contains("default = [\"strata-diff\", \"mine\"]"), "{new}");
        assert!(new.contains("# kept") && new.contains("# too") && !new.contains("unpack_config"));
        assert!(new.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter"));
        assert_eq!(
            containerd(&new, Version(1, 7), &settings(true)).unwrap(),
            new,
            "once is enough"
        );
        let newest = containerd("", Version(2, 1), &settings(true)).unwrap();
        assert!(newest.starts_with("version = 3\n"), "{newest}");
        for part in [
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]",
            "[plugins.\"io.containerd.cri.v1.images\"]",
            "capabilities = [\"remap-ids\"]",
            "[proxy_plugins.strata.exports]\nroot = \"/var/lib/strata\"",
        ] {
            assert!(newest.contains(part), "{part} is not in {newest}");
        }
        assert_eq!(containerd(&newest, Version(2, 1), &settings(true)).unwrap(), newest);
        let parallel = containerd(&newest, Version(2, 2), &settings(true)).unwrap();
        assert!(parallel.contains("capabilities = [\"remap-ids\", \"rebase\"]"), "{parallel}");
        // The default snapshotter's pulls are unpacked as before; a list that is there says it itself.
        assert_eq!(newest.matches("unpack_config").count(), 2, "{newest}");
        let list = "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n";
        let own =
            format!("version = 3\n{list}platform = \"linux/amd64\"\nsnapshotter = \"btrfs\"\n");
        let own = containerd(&own, Version(2, 1), &settings(false)).unwrap();
        assert!(own.contains("btrfs") && !own.contains("overlayfs"), "{own}");
        for (wrong, version) in
            [("root = \"x\"", Version(1, 7)), ("a = = 1", Version(1, 7)), ("", Version(1, 5))]
        {
            assert!(containerd(wrong, version, &settings(false)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn docker_and_podman_keep_what_they_had() {
        let docker_is = docker("{\"debug\": true, \"features\": {\"x\": false}}").unwrap();
        let json: serde_json::Value = serde_json::from_str(&docker_is).unwrap();
        assert_eq!(json["debug"], true);
        assert_eq!(
            json["features"],
            serde_json::json!({"x": false, "containerd-snapshotter": true})
        );
        assert_eq!(docker(&docker_is).unwrap(), docker_is);
        assert!(docker("[]").is_err());
        let program = Path::new("/p/fuse-overlayfs");
        let podman_is = podman("[storage]\ndriver = \"overlay\" # kept\n", program, true).unwrap();
        assert!(podman_is.contains("# kept") && podman_is.contains("graphroot"), "{podman_is}");
        assert!(
            podman_is.contains("[storage.options.overlay]\nmount_program = \"/p/fuse-overlayfs\"")
        );
        assert_eq!(podman(&podman_is, program, true).unwrap(), podman_is);
        assert!(podman("[storage]\ndriver = \"btrfs\"\n", program, false).is_err());
    }
}
