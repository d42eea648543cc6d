//! An image of a registry, as the store takes it.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use store::manifest::{Descriptor, MAX_MANIFEST, media};
use store::source::SourceError;
use store::{BlobSource, Digest, Reference};

use crate::client::{Access, Body, Client, limited, network};
use crate::config::Endpoint;
use crate::error::{Error, Result};

/// How often a blob is gone on with after its connection broke.
const RESUMES: u32 = 8;

/// An image of a registry.
#[derive(Debug)]
pub struct RegistryImage {
    client: Client,
    reference: Reference,
    endpoints: Vec<Endpoint>,
}

impl RegistryImage {
    /// The image that a reference names, at its mirrors or its registry.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn new(client: &Client, reference: &Reference) -> Result<Self> {
        let endpoints = client.config().endpoints(&reference.registry, &reference.repository)?;
        Ok(Self { client: client.clone(), reference: reference.clone(), endpoints })
    }

    /// Asks each endpoint in turn; the last one's error is told.
    fn first<T>(&self, ask: impl Fn(&Endpoint) -> Result<T>) -> Result<T> {
        let mut last = None;
        for at in &self.endpoints {
            match ask(at) {
                Ok(found) => return Ok(found),
                Err(e) => {
                    tracing::debug!(host = at.host, error = %e, "not from there");
                    last = Some(e);
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::NotFound {
            registry: self.reference.registry.clone(),
            what: "place to ask".to_owned(),
        }))
    }

    fn get_manifest(&self, at: &Endpoint) -> Result<(Vec<u8>, String)> {
        let accepted =
            [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST];
        let mut headers = HeaderMap::new();
        for kind in accepted {
            headers.append(ACCEPT, HeaderValue::from_static(kind));
        }
        let path = format!("manifests/{}", self.reference.version());
        let response =
            self.client.ask(at, Access::Pull, &Method::GET, &path, &headers, &Body::Empty)?;
        let kind =
            response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_owned();
        let bytes = self.client.wait(limited(response, MAX_MANIFEST))??;
        let found = Digest::of(&bytes);
        if let Some(expected) = self.reference.digest.filter(|expected| *expected != found) {
            let found = found.to_string();
            return Err(store::Error::Mismatch { what: "manifest", expected, found }.into());
        }
        Ok((bytes, kind))
    }

    /// A blob from a byte on; a registry that gives all of it all the same is read up to there.
    fn get_blob(&self, at: &Endpoint, blob: &Descriptor, from: u64) -> Result<(Response, u64)> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-"));
            headers.insert(RANGE, range.map_err(|e| Error::Io(io::Error::other(e)))?);
        }
        // A manifest of an index is asked for by its own kind of address.
        let manifests =
            [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST];
        let kind =
            if manifests.contains(&blob.media_type.as_str()) { "manifests" } else { "blobs" };
        if kind == "manifests"
            && let Ok(accept) = HeaderValue::from_str(&blob.media_type)
        {
            headers.insert(ACCEPT, accept);
        }
        let path = format!("{kind}/{}", blob.digest);
        let response =
            self.client.ask(at, Access::Pull, &Method::GET, &path, &headers, &Body::Empty)?;
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { from };
        Ok((response, skip))
    }
}

impl BlobSource for RegistryImage {
    fn manifest(&self) -> std::result::Result<(Vec<u8>, String), SourceError> {
        Ok(self.first(|at| self.get_manifest(at))?)
    }

    fn blob(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> std::result::Result<Box<dyn Read + Send>, SourceError> {
        let (at, response, skip) = self.first(|at| {
            let (response, skip) = self.get_blob(at, blob, from)?;
            Ok((at.clone(), response, skip))
        })?;
        let image = Self {
            client: self.client.clone(),
            reference: self.reference.clone(),
            endpoints: vec![at],
        };
        Ok(Box::new(Blob {
            image,
            blob: blob.clone(),
            response,
            skip,
            chunk: Bytes::new(),
            read: from,
            resumes: 0,
        }))
    }
}

/// A blob that is being read, and gone on with where its connection breaks.
struct Blob {
    image: RegistryImage,
    blob: Descriptor,
    response: Response,
    /// Bytes to pass over, which were read before.
    skip: u64,
    chunk: Bytes,
    /// Bytes of the blob that were given.
    read: u64,
    resumes: u32,
}

impl Blob {
    fn more(&mut self) -> Result<bool> {
        loop {
            let chunk = self.image.client.wait(self.response.chunk())?;
            match chunk {
                Ok(None) if self.read >= self.blob.size => return Ok(false),
                Ok(Some(chunk)) => {
                    let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
                    self.skip -= skip as u64;
                    if skip == chunk.len() {
                        continue;
                    }
                    self.chunk = chunk.slice(skip..);
                    return Ok(true);
                }
                broken => {
                    self.resumes += 1;
                    let url = self.response.url().clone();
                    if self.resumes > RESUMES {
                        return Err(match broken {
                            Err(e) => network(&url, &e),
                            Ok(_) => Error::Network {
                                url: url.to_string(),
                                why: format!(
                                    "it ended after {} of {} bytes",
                                    self.read, self.blob.size
                                ),
                            },
                        });
                    }
                    tracing::debug!(%url, at = self.read, "a blob broke off; going on");
                    let at = &self.image.endpoints[0];
                    (self.response, self.skip) = self.image.get_blob(at, &self.blob, self.read)?;
                }
            }
        }
    }
}

impl Read for Blob {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && !self.more().map_err(|e| io::Error::other(e.to_string()))? {
            return Ok(0);
        }
        let count = into.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut into[..count]);
        self.read += count as u64;
        Ok(count)
    }
}
