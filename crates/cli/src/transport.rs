//! Where an image is, as people write it: `nginx`, `docker://HOST/NAME`, `oci:DIR:TAG`,
//! `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use registry::pull::RegistryImage;
use store::source::{DockerArchive, OciLayout};
use store::{BlobSource, Reference};

/// An image somewhere, with the name that it gets here.
pub type Named = (Box<dyn BlobSource>, Option<Reference>);

/// A place that has an image, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Registry(Reference),
    OciDir(PathBuf, Option<String>),
    OciArchive(PathBuf, Option<String>),
    DockerArchive(PathBuf, Option<String>),
}

impl Place {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let Some((transport, rest)) = text.split_once(':') else {
            return Ok(Self::Registry(text.parse()?));
        };
        let path = |rest: &str| -> anyhow::Result<(PathBuf, Option<String>)> {
            // A path may have a colon in it where something is there under all of it.
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) if !Path::new(rest).exists() => (path, Some(tag.to_owned())),
                _ => (rest, None),
            };
            if path.is_empty() {
                bail!("{text:?} names no file: write {transport}:PATH[:TAG]");
            }
            Ok((path.into(), tag))
        };
        Ok(match transport {
            "oci" => path(rest).map(|(path, tag)| Self::OciDir(path, tag))?,
            "oci-archive" => path(rest).map(|(path, tag)| Self::OciArchive(path, tag))?,
            "docker-archive" => path(rest).map(|(path, tag)| Self::DockerArchive(path, tag))?,
            "docker" => {
                let rest = rest.strip_prefix("//").context("write docker://HOST/NAME:TAG")?;
                Self::Registry(rest.parse()?)
            }
            _ => Self::Registry(text.parse()?),
        })
    }

    /// The images there, each with the name that it gets here.
    pub fn images(
        &self,
        client: impl FnOnce() -> anyhow::Result<registry::Client>,
    ) -> anyhow::Result<Vec<Named>> {
        let local = |path: &Path, tag: &str| -> anyhow::Result<Reference> {
            let stem = path
                .file_name()
                .map(|name| name.to_string_lossy().to_lowercase())
                .unwrap_or_default();
            let stem = stem.strip_suffix(".tar").unwrap_or(&stem).to_owned();
            // What came by standard input has no name.
            let stem = if path.starts_with("/proc/self/fd") { "loaded".to_owned() } else { stem };
            let name = if tag.contains(['/', ':']) {
                tag.to_owned()
            } else {
                format!("localhost/{stem}:{tag}")
            };
            Ok(name.parse()?)
        };
        let layout =
            |layout: OciLayout, path: &Path, tag: &Option<String>| -> anyhow::Result<Named> {
                let named = layout.tags()?;
                let tag = tag.as_ref().or(named.first().filter(|_| named.len() == 1));
                let name = tag.map(|tag| local(path, tag)).transpose()?;
                Ok((Box::new(layout), name))
            };
        match self {
            Self::Registry(reference) => {
                let image = RegistryImage::new(&client()?, reference)?;
                Ok(vec![(Box::new(image), Some(reference.clone()))])
            }
            Self::OciDir(path, tag) => {
                Ok(vec![layout(OciLayout::dir(path, tag.as_deref()), path, tag)?])
            }
            Self::OciArchive(path, tag) => {
                Ok(vec![layout(OciLayout::archive(path, tag.as_deref())?, path, tag)?])
            }
            Self::DockerArchive(path, wanted) => {
                let mut found: Vec<Named> = Vec::new();
                for image in DockerArchive::open(path)? {
                    let names = image.tags().iter().map(|name| name.parse());
                    let names = names.collect::<store::Result<Vec<Reference>>>()?;
                    let name = match wanted {
                        None => names.first().cloned(),
                        Some(wanted) => {
                            let wanted: Reference = wanted.parse()?;
                            if !names.contains(&wanted) {
                                continue;
                            }
                            Some(wanted)
                        }
                    };
                    found.push((Box::new(image), name));
                }
                if found.is_empty() {
                    bail!("{path:?} has no such image");
                }
                Ok(found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_told_from_names() {
        let registry = |text: &str| Place::Registry(text.parse().expect("a reference"));
        let cases = [
            ("nginx", registry("nginx")),
            ("nginx:1", registry("nginx:1")),
            ("localhost:5000/a:1", registry("localhost:5000/a:1")),
            ("docker://localhost:5000/a", registry("localhost:5000/a")),
            ("oci:/no/dir:tag", Place::OciDir("/no/dir".into(), Some("tag".to_owned()))),
            ("oci:/no/dir", Place::OciDir("/no/dir".into(), None)),
            ("oci-archive:a.tar", Place::OciArchive("a.tar".into(), None)),
            (
                "docker-archive:a.tar:b:1",
                Place::DockerArchive("a.tar".into(), Some("b:1".to_owned())),
            ),
        ];
        for (text, place) in cases {
            assert_eq!(Place::parse(text).expect("a place"), place, "{text}");
        }
        for text in ["oci:", "docker:x", "docker://", "Nginx"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}
