//! Images as archives that Docker, podman and skopeo read.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::images::Image;
use crate::manifest::{Descriptor, Manifest, media};
use crate::source::REF_NAME;
use crate::store::Store;
use crate::tar::read::BLOCK;

/// A kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As `docker save` writes it.
    DockerArchive,
    /// A tar of an OCI layout.
    OciArchive,
}

impl Store {
    /// Writes images, each with the name that it is to have, as one archive. The layers are tars
    /// as they are: the images keep their ids.
    ///
    /// # Errors
    /// [`Error::NoImage`] where an image has just been removed; later removals wait for the end, with their layers.
    /// [`Error::Mismatch`] for a damaged layer; the writer's own. What was written is then no archive.
    pub fn save(
        &self,
        images: &[(Image, Option<String>)],
        format: Format,
        to: &mut dyn Write,
    ) -> Result<()> {
        let _lease = self.keep(images.iter().map(|(image, _)| image))?;
        let mut tar = Tar { to, names: HashSet::new() };
        match format {
            Format::DockerArchive => self.save_docker(images, &mut tar)?,
            Format::OciArchive => self.save_oci(images, &mut tar)?,
        }
        tar.to.write_all(&[0; 2 * BLOCK]).at(Path::new(""), "writing the archive")
    }

    fn save_docker(&self, images: &[(Image, Option<String>)], tar: &mut Tar<'_>) -> Result<()> {
        let mut list = Vec::new();
        for (image, name) in images {
            let config = format!("{}.json", image.id.hex());
            tar.file(&config, &image.config)?;
            let mut layers = Vec::new();
            for layer in &image.layers {
                let name = format!("{}/layer.tar", layer.diff_id.hex());
                self.layer_file(tar, &name, &layer.diff_id)?;
                layers.push(name);
            }
            let tags: Vec<&String> = name.iter().collect();
            list.push(json!({ "Config": config, "RepoTags": tags, "Layers": layers }));
        }
        tar.file("manifest.json", &bytes(&list)?)
    }

    fn save_oci(&self, images: &[(Image, Option<String>)], tar: &mut Tar<'_>) -> Result<()> {
        tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut list = Vec::new();
        for (image, name) in images {
            let mut layers = Vec::new();
            for layer in &image.layers {
                let name = format!("blobs/sha256/{}", layer.diff_id.hex());
                let size = self.layer_file(tar, &name, &layer.diff_id)?;
                layers.push(descriptor(media::OCI_LAYER, layer.diff_id, size));
            }
            tar.file(&format!("blobs/sha256/{}", image.id.hex()), &image.config)?;
            let manifest = Manifest {
                schema_version: 2,
                media_type: Some(media::OCI_MANIFEST.to_owned()),
                config: descriptor(media::OCI_CONFIG, image.id, image.config.len() as u64),
                layers,
                annotations: serde_json::from_slice::<Manifest>(&image.manifest)
                    .map(|manifest| manifest.annotations)
                    .unwrap_or_default(),
            };
            let manifest = bytes(&manifest)?;
            let digest = Digest::of(&manifest);
            tar.file(&format!("blobs/sha256/{}", digest.hex()), &manifest)?;
            let mut entry = descriptor(media::OCI_MANIFEST, digest, manifest.len() as u64);
            if let Some(name) = name {
                // The tag alone, as skopeo looks for it.
                let tag = name.rsplit_once(':').map_or(name.as_str(), |(_, tag)| tag);
                entry.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
            }
            list.push(entry);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": list });
        tar.file("index.json", &bytes(&index)?)
    }

    /// Writes a layer's tar as a file of the archive. Its length comes first in a tar, so that it is
    /// made twice: once to be counted.
    fn layer_file(&self, tar: &mut Tar<'_>, name: &str, diff_id: &Digest) -> Result<u64> {
        let size = self.write_tar(diff_id, &mut io::sink())?;
        if tar.begin(name, size)? {
            self.write_tar(diff_id, tar.to)?;
            tar.pad(size)?;
        }
        Ok(size)
    }
}

pub(crate) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: Default::default(),
    }
}

pub(crate) fn bytes(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|e| Error::BadManifest { what: "archive", why: e.to_string() })
}

/// A tar of plain files.
struct Tar<'w> {
    to: &'w mut dyn Write,
    names: HashSet<String>,
}

impl Tar<'_> {
    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.begin(name, bytes.len() as u64)? {
            self.to.write_all(bytes).at(Path::new(name), "writing the archive")?;
            self.pad(bytes.len() as u64)?;
        }
        Ok(())
    }

    /// False where the archive has the file already.
    fn begin(&mut self, name: &str, size: u64) -> Result<bool> {
        if !self.names.insert(name.to_owned()) {
            return Ok(false);
        }
        let header = crate::tar::diff::plain_header(name, size);
        self.to.write_all(&header).at(Path::new(name), "writing the archive")?;
        Ok(true)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.to.write_all(&[0; BLOCK][..padding]).at(Path::new(""), "writing the archive")
    }
}
