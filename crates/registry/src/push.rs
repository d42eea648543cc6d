//! Sends an image to a registry: what it has already is not sent.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use sha2::{Digest as _, Sha256};
use store::manifest::{Descriptor, Manifest, media};
use store::{Digest, Image, Reference, Store};

use crate::client::{Access, Body, Client, nonsense};
use crate::config::Endpoint;
use crate::error::{Error, Result};

/// What a push has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The digest of the manifest.
    pub manifest: Digest,
    /// Layers that were sent.
    pub sent: usize,
    /// Layers that the registry had.
    pub known: usize,
}

/// Sends `image` to where `to` says. `scratch` is a directory with room for a compressed layer.
///
/// Layers whose blobs the registry has, in this repository or in one of `from`, are not sent; the
/// manifest is then the one that came. Others are compressed anew, with gzip.
///
/// # Errors
/// The registry's or the store's own.
pub fn push(
    client: &Client,
    store: &Store,
    image: &Image,
    to: &Reference,
    from: &[String],
    scratch: &Path,
) -> Result<Pushed> {
    let endpoints = client.config().endpoints(&to.registry, &to.repository)?;
    // The last is the registry itself; mirrors are for reading.
    let at = endpoints.last().ok_or_else(|| Error::NotFound {
        registry: to.registry.clone(),
        what: "place to send to".to_owned(),
    })?;
    let push = Push { client, at };
    let original: Manifest = serde_json::from_slice(&image.manifest)
        .map_err(|e| Error::Nonsense { url: to.to_string(), why: e.to_string() })?;
    let mut pushed = Pushed { manifest: image.id, sent: 0, known: 0 };
    let mut layers = Vec::new();
    for (layer, blob) in image.layers.iter().zip(&original.layers) {
        if push.has(&blob.digest)? || push.mount(&blob.digest, from)? {
            pushed.known += 1;
            layers.push(blob.clone());
            continue;
        }
        let (file, digest, size) = compressed(store, &layer.diff_id, scratch)?;
        if !push.has(&digest)? {
            push.upload(&digest, &Body::File(Arc::new(file), size))?;
        }
        pushed.sent += 1;
        layers.push(Descriptor {
            media_type: media::OCI_LAYER_GZIP.to_owned(),
            digest,
            size,
            ..blob.clone()
        });
    }
    if !push.has(&image.id)? {
        push.upload(&image.id, &Body::Bytes(image.config.clone()))?;
    }
    let (manifest, kind) = if layers == original.layers {
        (image.manifest.clone(), image.media_type.clone())
    } else {
        let config =
            Descriptor { media_type: media::OCI_CONFIG.to_owned(), ..original.config.clone() };
        let media_type = Some(media::OCI_MANIFEST.to_owned());
        let manifest = Manifest { media_type, config, layers, ..original };
        let bytes = serde_json::to_vec(&manifest).map_err(io::Error::other)?;
        (bytes, media::OCI_MANIFEST.to_owned())
    };
    pushed.manifest = Digest::of(&manifest);
    push.manifest(&to.version(), &manifest, &kind)?;
    Ok(pushed)
}

struct Push<'c> {
    client: &'c Client,
    at: &'c Endpoint,
}

impl Push<'_> {
    fn ask(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Body,
    ) -> Result<reqwest::Response> {
        self.client.ask(self.at, Access::Push, method, path, headers, body)
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        let path = format!("blobs/{digest}");
        match self.ask(&Method::HEAD, &path, &HeaderMap::new(), &Body::Empty) {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Has the registry take the blob from another repository of its own.
    fn mount(&self, digest: &Digest, from: &[String]) -> Result<bool> {
        for repository in from.iter().filter(|repository| **repository != self.at.repository) {
            let path = format!("blobs/uploads/?mount={digest}&from={repository}");
            match self.ask(&Method::POST, &path, &HeaderMap::new(), &Body::Empty) {
                Ok(response) if response.status().as_u16() == 201 => return Ok(true),
                // An upload was begun instead: the registry forgets it.
                Ok(_) | Err(Error::NotFound { .. } | Error::Denied { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    fn upload(&self, digest: &Digest, body: &Body) -> Result<()> {
        let begun = self.ask(&Method::POST, "blobs/uploads/", &HeaderMap::new(), &Body::Empty)?;
        let base = begun.url().clone();
        let place = begun.headers().get(LOCATION).and_then(|to| to.to_str().ok());
        let mut url = place
            .and_then(|to| base.join(to).ok())
            .ok_or_else(|| nonsense(&base, "it says not where to send a blob"))?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        self.ask(&Method::PUT, url.as_str(), &headers, body)?;
        Ok(())
    }

    fn manifest(&self, version: &str, bytes: &[u8], kind: &str) -> Result<()> {
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_str(kind).map_err(io::Error::other)?;
        headers.insert(CONTENT_TYPE, kind);
        let path = format!("manifests/{version}");
        self.ask(&Method::PUT, &path, &headers, &Body::Bytes(bytes.to_vec()))?;
        Ok(())
    }
}

/// A layer's tar as gzip, in a file without a name; with its digest and length.
fn compressed(store: &Store, diff_id: &Digest, scratch: &Path) -> Result<(File, Digest, u64)> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(scratch, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
    let file = File::from(file);
    let out = Hashed { to: io::BufWriter::new(file), hash: Sha256::new(), count: 0 };
    let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::new(6));
    store.write_tar(diff_id, &mut gzip)?;
    let out = gzip.finish()?;
    let file = out.to.into_inner().map_err(|e| e.into_error())?;
    Ok((file, Digest::finish(out.hash), out.count))
}

struct Hashed<W> {
    to: W,
    hash: Sha256,
    count: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
