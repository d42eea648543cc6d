//! Where images come from: a registry (elsewhere), an OCI layout, an archive.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::manifest::{Descriptor, Index, MAX_CONFIG, MAX_MANIFEST, media};

/// What a source fails with: one sentence.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// An image somewhere else. Asked from several threads at once.
pub trait BlobSource: Sync {
    /// The manifest or index of the image, and the media type that it was served as; empty where
    /// that is not told.
    ///
    /// # Errors
    /// The source's own.
    fn manifest(&self) -> std::result::Result<(Vec<u8>, String), SourceError>;

    /// A blob, from a byte on. The store verifies what comes.
    ///
    /// # Errors
    /// The source's own.
    fn blob(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> std::result::Result<Box<dyn Read + Send>, SourceError>;

    /// Whether reading a blob again costs nothing, so that no part of it needs to be kept.
    fn is_local(&self) -> bool {
        false
    }
}

/// Told of what goes on, from several threads.
pub trait Progress: Sync {
    /// A layer is being fetched; its length.
    fn layer(&self, _digest: &Digest, _size: u64) {}
    /// So many bytes of it have come.
    fn bytes(&self, _digest: &Digest, _count: u64) {}
    /// It is there; `known` where it was before.
    fn done(&self, _digest: &Digest, _known: bool) {}
}

/// Progress that nobody wants.
#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {}

/// An image of an OCI layout: a directory, or the same as a tar.
#[derive(Debug)]
pub struct OciLayout {
    at: Place,
    tag: Option<String>,
}

#[derive(Debug)]
enum Place {
    Dir(PathBuf),
    Tar(TarFile),
}

/// The files of an uncompressed tar, by name, read where they are.
#[derive(Debug)]
struct TarFile {
    path: PathBuf,
    files: Vec<(String, u64, u64)>,
}

impl TarFile {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).at(path, "opening the archive")?;
        let counted = Counted { from: io::BufReader::with_capacity(256 << 10, file), at: 0 };
        let mut files = Vec::new();
        let mut reader = crate::tar::read::Reader::new(counted);
        loop {
            // Where the data of an entry begins is where the reader stands after its header.
            let entry = reader.next_entry().at(path, "reading the archive")?;
            let Some(entry) = entry else { break };
            let name = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
            let at = reader.source().at;
            files.push((name, at, entry.stored));
            if files.len() > 100_000 {
                let why = "the archive has more than 100,000 files".to_owned();
                return Err(Error::BadManifest { what: "archive", why });
            }
        }
        Ok(Self { path: path.to_owned(), files })
    }

    fn open_file(&self, name: &str, from: u64) -> Result<io::Take<File>> {
        let (_, at, length) =
            self.files.iter().find(|(known, ..)| known == name).ok_or_else(|| {
                Error::BadManifest { what: "archive", why: format!("it has no file {name:?}") }
            })?;
        let mut file = File::open(&self.path).at(&self.path, "opening the archive")?;
        file.seek(SeekFrom::Start(at.saturating_add(from)))
            .at(&self.path, "reading the archive")?;
        Ok(file.take(length.saturating_sub(from)))
    }
}

/// Knows how far it was read.
#[derive(Debug)]
struct Counted<R> {
    from: R,
    at: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(into)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.from.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.at += count as u64;
        self.from.consume(count);
    }
}

impl OciLayout {
    /// The image with `tag` of the layout in a directory; the only one where there is no tag.
    pub fn dir(path: &Path, tag: Option<&str>) -> Self {
        Self { at: Place::Dir(path.to_owned()), tag: tag.map(str::to_owned) }
    }

    /// The same of an `oci-archive`.
    ///
    /// # Errors
    /// No such file, or no tar.
    pub fn archive(path: &Path, tag: Option<&str>) -> Result<Self> {
        Ok(Self { at: Place::Tar(TarFile::open(path)?), tag: tag.map(str::to_owned) })
    }

    /// The tags that the layout names.
    ///
    /// # Errors
    /// As [`OciLayout::archive`].
    pub fn tags(&self) -> Result<Vec<String>> {
        let named = self.index()?.manifests.into_iter();
        Ok(named.filter_map(|d| d.annotations.get(REF_NAME).cloned()).collect())
    }

    fn open(&self, name: &str, from: u64) -> Result<Box<dyn Read + Send>> {
        match &self.at {
            Place::Dir(dir) => {
                let path = dir.join(name);
                let mut file = File::open(&path).at(&path, "opening")?;
                file.seek(SeekFrom::Start(from)).at(&path, "reading")?;
                Ok(Box::new(file))
            }
            Place::Tar(tar) => Ok(Box::new(tar.open_file(name, from)?)),
        }
    }

    fn index(&self) -> Result<Index> {
        let bytes = capped(self.open("index.json", 0)?, MAX_MANIFEST)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::BadManifest { what: "index", why: e.to_string() })
    }

    fn chosen(&self) -> Result<Descriptor> {
        let index = self.index()?;
        let named = |d: &&Descriptor| d.annotations.get(REF_NAME) == self.tag.as_ref();
        let found = match (&self.tag, index.manifests.as_slice()) {
            (Some(_), manifests) => manifests.iter().find(named),
            (None, [only]) => Some(only),
            (None, manifests) => manifests
                .iter()
                .find(|d| d.annotations.get(REF_NAME).is_some_and(|tag| tag == "latest")),
        };
        found.cloned().ok_or_else(|| {
            let tags: Vec<&str> = index
                .manifests
                .iter()
                .filter_map(|d| d.annotations.get(REF_NAME).map(String::as_str))
                .collect();
            let tag = self.tag.as_deref().unwrap_or("latest");
            let why = format!("it has no image {tag:?}; it has {}", tags.join(", "));
            Error::BadManifest { what: "layout", why }
        })
    }
}

/// The annotation that names an image in a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads all, or refuses what is longer than `limit`.
pub(crate) fn capped(from: impl Read, limit: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut bytes).at(Path::new(""), "reading a document")?;
    if bytes.len() > limit {
        let why = format!("it is longer than {limit} bytes");
        return Err(Error::BadManifest { what: "document", why });
    }
    Ok(bytes)
}

impl BlobSource for OciLayout {
    fn manifest(&self) -> std::result::Result<(Vec<u8>, String), SourceError> {
        let chosen = self.chosen()?;
        let bytes = capped(self.open(&blob_name(&chosen.digest), 0)?, MAX_MANIFEST)?;
        if Digest::of(&bytes) != chosen.digest {
            let found = Digest::of(&bytes).to_string();
            return Err(Error::Mismatch { what: "manifest", expected: chosen.digest, found }.into());
        }
        Ok((bytes, chosen.media_type))
    }

    fn blob(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> std::result::Result<Box<dyn Read + Send>, SourceError> {
        Ok(self.open(&blob_name(&blob.digest), from)?)
    }

    fn is_local(&self) -> bool {
        true
    }
}

/// An image of a `docker-archive`, as `docker save` writes it.
#[derive(Debug)]
pub struct DockerArchive {
    tar: TarFile,
    image: ArchiveImage,
    manifest: Vec<u8>,
    /// Which file a blob is.
    files: Vec<(Digest, String)>,
}

#[derive(Debug, Clone, serde::Deserialize)]
struct ArchiveImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

impl DockerArchive {
    /// Every image of the archive.
    ///
    /// # Errors
    /// No such file, no tar, or no archive of images.
    pub fn open(path: &Path) -> Result<Vec<Self>> {
        let tar = TarFile::open(path)?;
        let bytes = capped(tar.open_file("manifest.json", 0)?, MAX_MANIFEST)?;
        let images: Vec<ArchiveImage> = serde_json::from_slice(&bytes)
            .map_err(|e| Error::BadManifest { what: "archive", why: e.to_string() })?;
        images.into_iter().map(|image| Self::image(path, image)).collect()
    }

    fn image(path: &Path, image: ArchiveImage) -> Result<Self> {
        let tar = TarFile::open(path)?;
        let config = capped(tar.open_file(&image.config, 0)?, MAX_CONFIG)?;
        let parsed = crate::manifest::parse_config(&config, image.layers.len())?;
        let mut files = vec![(Digest::of(&config), image.config.clone())];
        let mut layers = Vec::new();
        for (name, diff_id) in image.layers.iter().zip(&parsed.rootfs.diff_ids) {
            // The layers are tars as they are, so that their digest is their diff ID.
            let size = tar.open_file(name, 0)?.limit();
            layers.push(Descriptor {
                media_type: media::OCI_LAYER.to_owned(),
                digest: *diff_id,
                size,
                platform: None,
                annotations: Default::default(),
            });
            files.push((*diff_id, name.clone()));
        }
        let manifest = crate::manifest::Manifest {
            schema_version: 2,
            media_type: Some(media::OCI_MANIFEST.to_owned()),
            config: Descriptor {
                media_type: media::OCI_CONFIG.to_owned(),
                digest: Digest::of(&config),
                size: config.len() as u64,
                platform: None,
                annotations: Default::default(),
            },
            layers,
            annotations: Default::default(),
        };
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|e| Error::BadManifest { what: "archive", why: e.to_string() })?;
        Ok(Self { tar, image, manifest, files })
    }

    /// The names that the archive gives the image.
    pub fn tags(&self) -> &[String] {
        self.image.tags.as_deref().unwrap_or_default()
    }
}

impl BlobSource for DockerArchive {
    fn manifest(&self) -> std::result::Result<(Vec<u8>, String), SourceError> {
        Ok((self.manifest.clone(), media::OCI_MANIFEST.to_owned()))
    }

    fn blob(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> std::result::Result<Box<dyn Read + Send>, SourceError> {
        let (_, name) =
            self.files.iter().find(|(digest, _)| *digest == blob.digest).ok_or_else(|| {
                Error::BadManifest {
                    what: "archive",
                    why: format!("it has no blob {}", blob.digest),
                }
            })?;
        Ok(Box::new(self.tar.open_file(name, from)?))
    }

    fn is_local(&self) -> bool {
        true
    }
}
