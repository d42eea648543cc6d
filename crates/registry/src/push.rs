//! Sends an image to a registry: what it has already is not sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, Url};
use store::manifest::{Descriptor, Manifest, media};
use store::{Digest, Hashed, Image, Reference, Store};

use crate::client::{Access, Body, Client, nonsense};
use crate::config::Endpoint;
use crate::error::{Error, Result};

/// Bytes of a blob that are sent in one request. A longer blob is sent in several, so that a connection that breaks costs
/// one of them. As much as the registries that have limits take, and more than the least that others ask for.
const PIECE: u64 = 16 << 20;
/// How often an upload is gone on with where it does not get on.
const RESUMES: u32 = 8;
/// Repositories that are asked whether they have a blob.
const SOURCES: usize = 3;

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
/// Layers whose blobs the registry has, in this repository or, as far as the store knows, in another, are not sent; the
/// manifest is then the one that came. Others are compressed anew, with gzip.
///
/// # Errors
/// The registry's or the store's own.
pub fn push(
    client: &Client,
    store: &Store,
    image: &Image,
    to: &Reference,
    scratch: &Path,
) -> Result<Pushed> {
    let _lease = store.keep(std::iter::once(image))?;
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
    let sources = sources(store, &to.registry)?;
    let mut layers = Vec::new();
    for (layer, blob) in image.layers.iter().zip(&original.layers) {
        if push.has(&blob.digest)? || push.mount(&blob.digest, sources.get(&blob.digest))? {
            pushed.known += 1;
            layers.push(blob.clone());
            continue;
        }
        let (file, digest, size) = compressed(store, &layer.diff_id, scratch)?;
        if !push.has(&digest)? {
            push.upload(&digest, &Body::File(Arc::new(file), 0, size))?;
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

/// The repositories of a registry from which images of the store have come or to which they went, by their blobs.
fn sources(store: &Store, registry: &str) -> Result<BTreeMap<Digest, BTreeSet<String>>> {
    let mut sources: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
    for image in store.images()? {
        let names = image.tags.iter().filter_map(|name| name.parse::<Reference>().ok());
        let repositories: Vec<String> =
            names.filter(|name| name.registry == registry).map(|name| name.repository).collect();
        // A manifest that another version wrote tells of no blobs.
        let manifest = serde_json::from_slice::<Manifest>(&image.manifest).ok();
        for blob in manifest.iter().flat_map(|manifest| &manifest.layers) {
            sources.entry(blob.digest).or_default().extend(repositories.iter().cloned());
        }
    }
    Ok(sources)
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
    fn mount(&self, digest: &Digest, from: Option<&BTreeSet<String>>) -> Result<bool> {
        let others = from.into_iter().flatten().filter(|from| **from != self.at.repository);
        for repository in others.take(SOURCES) {
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
        let begin = || {
            let begun = self.ask(&Method::POST, UPLOADS, &HeaderMap::new(), &Body::Empty)?;
            place(&begun)?.ok_or_else(|| nonsense(begun.url(), "it says not where to send a blob"))
        };
        let begun = begin()?;
        let (mut url, rest) = match body {
            Body::File(file, 0, length) if *length > PIECE => {
                match self.pieces(begun, file, *length)? {
                    Some(at) => (at, &Body::Empty),
                    None => (begin()?, body),
                }
            }
            _ => (begun, body),
        };
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        self.ask(&Method::PUT, url.as_str(), &octets(), rest)?;
        Ok(())
    }

    /// Sends a file in pieces, and gives where the upload is to be ended; none where the registry takes no pieces.
    fn pieces(&self, mut at: Url, file: &Arc<File>, length: u64) -> Result<Option<Url>> {
        let (mut sent, mut resumes) = (0, 0);
        while sent < length {
            let count = PIECE.min(length - sent);
            let mut headers = octets();
            let range = HeaderValue::from_str(&format!("{sent}-{}", sent + count - 1));
            headers.insert(CONTENT_RANGE, range.map_err(io::Error::other)?);
            let piece = Body::File(Arc::clone(file), sent, count);
            let answer = match self.ask(&Method::PATCH, at.as_str(), &headers, &piece) {
                Ok(answer) => answer,
                Err(Error::NotFound { .. } | Error::Status { status: 400..=415, .. })
                    if sent == 0 =>
                {
                    return Ok(None);
                }
                // A try before may have come in whole or in part.
                Err(Error::Network { .. } | Error::Status { status: 416, .. })
                    if resumes < RESUMES =>
                {
                    self.ask(&Method::GET, at.as_str(), &HeaderMap::new(), &Body::Empty)?
                }
                Err(e) => return Err(e),
            };
            let has = received(&answer).unwrap_or(sent + count);
            if has > sent + count {
                return Err(nonsense(answer.url(), "it has more of a blob than was sent"));
            }
            if has <= sent {
                resumes += 1;
                if resumes > RESUMES {
                    return Err(nonsense(answer.url(), "it takes no more of a blob"));
                }
            }
            sent = has;
            at = place(&answer)?.unwrap_or(at);
        }
        Ok(Some(at))
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

/// Where uploads begin, in a repository.
const UPLOADS: &str = "blobs/uploads/";

fn octets() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers
}

/// Where an upload goes on.
fn place(answer: &Response) -> Result<Option<Url>> {
    let Some(to) = answer.headers().get(LOCATION) else { return Ok(None) };
    let url = to.to_str().ok().and_then(|to| answer.url().join(to).ok());
    url.map(Some).ok_or_else(|| nonsense(answer.url(), "it sends an upload on to nowhere"))
}

/// How much of an upload the registry has: `Range: 0-LAST`, where nothing and one byte look alike.
fn received(answer: &Response) -> Option<u64> {
    let range = answer.headers().get(RANGE)?.to_str().ok()?;
    let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

/// A layer's tar as gzip, in a file without a name; with its digest and length.
fn compressed(store: &Store, diff_id: &Digest, scratch: &Path) -> Result<(File, Digest, u64)> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(scratch, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
    let file = File::from(file);
    let out = Hashed::new(io::BufWriter::new(file));
    let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::new(6));
    store.write_tar(diff_id, &mut gzip)?;
    let (to, digest, count) = gzip.finish()?.finish();
    let file = to.into_inner().map_err(|e| e.into_error())?;
    Ok((file, digest, count))
}
