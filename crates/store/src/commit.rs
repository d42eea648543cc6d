//! A writable layer becomes a layer of an image.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::images::Image;
use crate::manifest::{Manifest, media};
use crate::pipeline;
use crate::pull::{self, Staged};
use crate::save::{bytes, descriptor};
use crate::store::{Stopper, Store, layer_lock, open_dir};
use crate::tar::diff;

/// What a commit says of the image that it makes.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The name of the image.
    pub name: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// What changed.
    pub message: Option<String>,
    /// How it was made.
    pub created_by: Option<String>,
    /// When, RFC 3339.
    pub created: Option<String>,
    /// Replaces in the `config` of the configuration: a JSON object, key by key.
    pub config: Option<Value>,
}

impl Store {
    /// Makes an image of `parent` with the changes of an upper layer on top, and gives its id.
    ///
    /// The upper layer is read, not taken: its container goes on.
    ///
    /// # Errors
    /// Of the upper layer or the store; nothing is left behind then.
    pub fn commit(&self, parent: &Image, upper: &Path, options: &CommitOptions) -> Result<Digest> {
        let (diff_id, size) = self.add_layer_of(upper)?;
        let mut diff_ids: Vec<Digest> = parent.layers.iter().map(|layer| layer.diff_id).collect();
        diff_ids.push(diff_id);
        let lease = self.lease(&diff_ids)?;
        if self.meta.read(|txn| crate::meta::layer(txn, &diff_id))?.is_none() {
            // Collected between its making and the lease: made once more, and kept this time.
            self.add_layer_of(upper)?;
        }
        let config = config(parent, &diff_id, options)?;
        let id = Digest::of(&config);
        let mut layers: Vec<_> = match serde_json::from_slice::<Manifest>(&parent.manifest) {
            Ok(manifest) => manifest.layers,
            Err(_) => Vec::new(),
        };
        layers.push(descriptor(media::OCI_LAYER, diff_id, size));
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media::OCI_MANIFEST.to_owned()),
            config: descriptor(media::OCI_CONFIG, id, config.len() as u64),
            layers,
            annotations: Default::default(),
        };
        let image = pull::Image {
            id,
            manifest: bytes(&manifest)?,
            media_type: media::OCI_MANIFEST.to_owned(),
            config,
            layers: Vec::new(),
        };
        self.meta.write(|txn| image.add(txn, &diff_ids, options.name.as_deref()))?;
        drop(lease);
        Ok(id)
    }

    /// Makes a layer of the store from an upper layer; gives its diff ID and the length of its tar.
    fn add_layer_of(&self, upper: &Path) -> Result<(Digest, u64)> {
        let namespace = self.namespace();
        // The name of the layer is known when its tar is: staged under a name that nobody has.
        let staging = Digest::of(self.unique().as_bytes());
        let lock = self.lock(&layer_lock(&staging.hex()))?;
        let (mut pipe, end) = pipe(&self.stopper);
        let done = std::thread::scope(|scope| {
            let written = scope.spawn(move || -> io::Result<(Digest, u64)> {
                let fd = open_dir(upper).map_err(|e| io::Error::other(e.to_string()))?;
                let size = diff::write(fd, namespace, &mut pipe)?;
                pipe.flush()?;
                Ok((Digest::finish(pipe.hash), size))
            });
            let tar = BufReader::with_capacity(256 << 10, end);
            let staged = self.stage(&staging, |dir| {
                pipeline::unpack_tar(tar, staging, dir, self.options(), &self.known_files()?)
            });
            let died = || Err(io::Error::other("the thread that reads the upper layer died"));
            let written =
                written.join().unwrap_or_else(|_| died()).at(upper, "reading the upper layer");
            match (written, staged) {
                (Ok(written), Ok(staged)) => Ok((written, staged)),
                (Err(e), Ok((dir, _))) => {
                    self.discard(&dir)?;
                    Err(e)
                }
                // The reader says what is wrong, if it is not only that nobody reads on.
                (_, Err(e)) => Err(e),
            }
        });
        let published = done.and_then(|((diff_id, size), (dir, applied))| {
            let name = layer_lock(&diff_id.hex());
            let lock = self.lock(&name)?;
            let known = self.meta.read(|txn| crate::meta::layer(txn, &diff_id))?.is_some();
            let done = if known {
                self.discard(&dir)
            } else {
                self.publish(vec![Staged { diff_id, dir, applied }], |_| Ok(()))
            };
            self.unlock(&name, lock)?;
            done.map(|()| (diff_id, size))
        });
        self.unlock(&layer_lock(&staging.hex()), lock)?;
        published
    }
}

/// The parent's configuration with one layer more; what is unknown in it is kept.
fn config(parent: &Image, diff_id: &Digest, options: &CommitOptions) -> Result<Vec<u8>> {
    let bad = |why: &str| Error::BadManifest { what: "configuration", why: why.to_owned() };
    let mut config: Value =
        serde_json::from_slice(&parent.config).map_err(|e| bad(&e.to_string()))?;
    let diff_ids = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut);
    diff_ids.ok_or_else(|| bad("it has no layers"))?.push(json!(diff_id));
    let object = config.as_object_mut().ok_or_else(|| bad("it is no object"))?;
    let mut step = serde_json::Map::new();
    let said = [
        ("created", &options.created),
        ("author", &options.author),
        ("comment", &options.message),
        ("created_by", &options.created_by),
    ];
    for (key, value) in said {
        if let Some(value) = value {
            step.insert(key.to_owned(), json!(value));
        }
    }
    let history = object.entry("history").or_insert_with(|| json!([]));
    if let Some(history) = history.as_array_mut() {
        history.push(Value::Object(step));
    }
    for (key, value) in [("created", &options.created), ("author", &options.author)] {
        if let Some(value) = value {
            object.insert(key.to_owned(), json!(value));
        }
    }
    if let Some(Value::Object(changes)) = &options.config {
        let inner = object.entry("config").or_insert_with(|| json!({}));
        if let Some(inner) = inner.as_object_mut() {
            for (key, value) in changes {
                inner.insert(key.clone(), value.clone());
            }
        }
    }
    bytes(&config)
}

/// What is written at one end, for another thread at the other end.
pub(crate) fn pipe(stopper: &Stopper) -> (Pipe<'_>, PipeEnd) {
    let (to, from) = sync_channel(8);
    let pipe = Pipe { to, hash: Sha256::new(), chunk: Vec::new(), stopper };
    (pipe, PipeEnd { from, chunk: Vec::new(), at: 0 })
}

/// The end that is written to; it hashes what passes.
pub(crate) struct Pipe<'p> {
    to: SyncSender<Vec<u8>>,
    hash: Sha256,
    chunk: Vec<u8>,
    stopper: &'p Stopper,
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stopper.check()?;
        self.hash.update(bytes);
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= 256 << 10 {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        self.to.send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The end that is read from.
pub(crate) struct PipeEnd {
    from: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for PipeEnd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            let Ok(chunk) = self.from.recv() else { return Ok(0) };
            (self.chunk, self.at) = (chunk, 0);
        }
        let count = into.len().min(self.chunk.len() - self.at);
        into[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
