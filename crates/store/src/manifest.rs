//! Manifests, indexes and configurations: parsed within limits, and never more than one thing.
//!
//! Source: OCI image specification; Docker's image manifest version 2, schema 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::Digest;

/// Bytes of a manifest or index at most; registries refuse larger ones too.
pub const MAX_MANIFEST: usize = 4 << 20;
/// Bytes of a configuration at most.
pub const MAX_CONFIG: usize = 8 << 20;
/// Layers at most: as many as overlayfs stacks.
pub const MAX_LAYERS: usize = 500;
/// Indexes within indexes at most.
pub const MAX_NESTING: usize = 4;

/// Media types, by what they are.
pub mod media {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
}

/// What a document says of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// For which machines, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Anything else that is said of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Processor, as Go calls it.
    pub architecture: String,
    /// Operating system, as Go calls it.
    pub os: String,
    /// Of the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The machine that this was built for.
    pub fn this() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }
}

impl std::str::FromStr for Platform {
    type Err = Error;

    /// `OS/ARCHITECTURE` or `OS/ARCHITECTURE/VARIANT`.
    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match words.as_slice() {
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some(*variant)),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() || variant.is_some_and(str::is_empty) {
            return Err(bad("platform", format!("{text:?} is not OS/ARCHITECTURE[/VARIANT]")));
        }
        let [architecture, os] = [architecture, os].map(str::to_owned);
        Ok(Self { architecture, os, variant: variant.map(str::to_owned) })
    }
}

/// An image manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What this is; optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Anything else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// What this is; optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// What the store needs of an image's configuration; the rest is kept as it came.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// Processor.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// How to run it.
    #[serde(default)]
    pub config: RunConfig,
    /// The layers, by the digests of their tars.
    pub rootfs: RootFs,
    /// How it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// The `rootfs` of a configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Lowest first.
    pub diff_ids: Vec<Digest>,
}

/// The `config` of a configuration: how to run the image.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct RunConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "nothing")]
    pub env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "nothing")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "nothing")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
}

fn nothing(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// A document that a reference leads to.
#[derive(Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

fn bad(what: &'static str, why: impl Into<String>) -> Error {
    Error::BadManifest { what, why: why.into() }
}

/// Parses what was served as `media_type`.
///
/// # Errors
/// [`Error::BadManifest`]: too large, not JSON, both a manifest and an index, or another thing than
/// the media type says.
pub fn parse(bytes: &[u8], media_type: &str) -> Result<Document> {
    if bytes.len() > MAX_MANIFEST {
        return Err(bad(
            "manifest",
            format!("it has {} bytes, {MAX_MANIFEST} are allowed", bytes.len()),
        ));
    }
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|e| bad("manifest", e.to_string()))?;
    let has = |key: &str| value.get(key).is_some();
    if has("manifests") && (has("layers") || has("config")) {
        return Err(bad("manifest", "it is a manifest and an index at once"));
    }
    let inner = value.get("mediaType").and_then(|kind| kind.as_str()).unwrap_or("");
    if !inner.is_empty() && !media_type.is_empty() && inner != media_type {
        return Err(bad(
            "manifest",
            format!("it says that it is {inner}, and was served as {media_type}"),
        ));
    }
    let kind = if inner.is_empty() { media_type } else { inner };
    match kind {
        media::OCI_INDEX | media::DOCKER_LIST => index(value),
        media::OCI_MANIFEST | media::DOCKER_MANIFEST => manifest(value),
        "" if has("manifests") => index(value),
        "" if has("layers") => manifest(value),
        other => Err(bad("manifest", format!("its media type {other:?} is none of an image"))),
    }
}

fn index(value: serde_json::Value) -> Result<Document> {
    let index: Index = serde_json::from_value(value).map_err(|e| bad("index", e.to_string()))?;
    Ok(Document::Index(index))
}

fn manifest(value: serde_json::Value) -> Result<Document> {
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|e| bad("manifest", e.to_string()))?;
    if manifest.schema_version != 2 {
        return Err(bad(
            "manifest",
            format!("schema version {} is not 2", manifest.schema_version),
        ));
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(bad(
            "manifest",
            format!("it has {} layers, {MAX_LAYERS} are allowed", manifest.layers.len()),
        ));
    }
    if manifest.config.size > MAX_CONFIG as u64 {
        return Err(bad(
            "configuration",
            format!("it has {} bytes, {MAX_CONFIG} are allowed", manifest.config.size),
        ));
    }
    Ok(Document::Manifest(manifest))
}

/// Parses a configuration that belongs to a manifest with `layers` layers.
///
/// # Errors
/// [`Error::BadManifest`].
pub fn parse_config(bytes: &[u8], layers: usize) -> Result<Config> {
    let config: Config =
        serde_json::from_slice(bytes).map_err(|e| bad("configuration", e.to_string()))?;
    if config.rootfs.kind != "layers" || config.rootfs.diff_ids.len() != layers {
        let count = config.rootfs.diff_ids.len();
        return Err(bad(
            "configuration",
            format!("it names {count} layers, the manifest {layers}"),
        ));
    }
    Ok(config)
}

/// The manifest of an index for a machine.
///
/// # Errors
/// [`Error::BadManifest`] with what there is.
pub fn choose<'i>(index: &'i Index, platform: &Platform) -> Result<&'i Descriptor> {
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_some_and(|p| {
            p.os == platform.os
                && p.architecture == platform.architecture
                && (platform.variant.is_none() || p.variant == platform.variant)
        })
    };
    if let Some(found) = index.manifests.iter().find(fits) {
        return Ok(found);
    }
    // An index of one image that does not say for what.
    if let [only] = index.manifests.as_slice()
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let there: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    let wanted = format!("{}/{}", platform.os, platform.architecture);
    Err(bad("index", format!("it has no image for {wanted}, only for {}", there.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_two_words_or_three_and_decides() {
        let zero = format!("sha256:{}", "0".repeat(64));
        let entry = |os: &str, architecture: &str, variant: Option<&str>, size: u64| Descriptor {
            media_type: media::OCI_MANIFEST.to_owned(),
            digest: zero.parse().expect("a digest"),
            size,
            platform: Some(Platform {
                architecture: architecture.to_owned(),
                os: os.to_owned(),
                variant: variant.map(str::to_owned),
            }),
            annotations: BTreeMap::new(),
        };
        let manifests = vec![
            entry("linux", "amd64", None, 1),
            entry("linux", "arm", Some("v6"), 2),
            entry("linux", "arm", Some("v7"), 3),
        ];
        let index = Index { schema_version: 2, media_type: None, manifests };
        let chosen = |text: &str| {
            let platform: Platform = text.parse().expect("a platform");
            choose(&index, &platform).map(|found| found.size).ok()
        };
        assert_eq!(chosen("linux/amd64"), Some(1));
        assert_eq!(chosen("linux/arm/v7"), Some(3));
        assert_eq!(chosen("linux/arm"), Some(2));
        assert_eq!(chosen("linux/s390x"), None);
        for text in ["", "linux", "/amd64", "linux/", "linux/arm/", "a/b/c/d"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_document_is_one_thing_and_what_its_type_says() {
        let zero = format!("sha256:{}", "0".repeat(64));
        let config =
            format!(r#""config":{{"mediaType":"c","digest":"{zero}","size":1}},"layers":[]"#);
        let cases = [
            (format!(r#"{{"schemaVersion":2,{config}}}"#), media::OCI_MANIFEST, true),
            (format!(r#"{{"schemaVersion":2,{config}}}"#), "", true),
            (format!(r#"{{"schemaVersion":1,{config}}}"#), "", false),
            (format!(r#"{{"schemaVersion":2,"manifests":[],{config}}}"#), media::OCI_INDEX, false),
            (format!(r#"{{"schemaVersion":2,{config}}}"#), media::OCI_INDEX, false),
            (
                format!(r#"{{"schemaVersion":2,"mediaType":"{}",{config}}}"#, media::OCI_INDEX),
                media::OCI_MANIFEST,
                false,
            ),
            (r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), media::DOCKER_LIST, true),
            ("[]".to_owned(), media::OCI_MANIFEST, false),
            ("{".to_owned(), media::OCI_MANIFEST, false),
            (format!(r#"{{"schemaVersion":2,{config}}}"#), "text/html", false),
        ];
        for (text, kind, good) in cases {
            assert_eq!(parse(text.as_bytes(), kind).is_ok(), good, "{kind}: {text}");
        }
    }
}
