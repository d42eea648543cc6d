//! Adds images: several layers at once, each under the lock of its diff ID, so that two processes
//! that want the same one do its work once.
//!
//! Layers and image become the store's together: one syncfs, a rename a layer, one transaction. A
//! lease keeps the layers that were there before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;
use rusqlite::{Transaction, params};

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::manifest::{
    Descriptor, Document, MAX_CONFIG, MAX_NESTING, Manifest, Platform, choose, parse, parse_config,
};
use crate::meta::{self, LayerRow};
use crate::pipeline::{self, Job, Partial};
use crate::source::{BlobSource, Progress, capped};
use crate::store::{Lock, Store, layer_lock, open_dir};
use crate::tar::apply::Applied;
use crate::writeback::Writeback;

/// Layers at once: a slow one must not keep the others from the network.
const AT_ONCE: usize = 3;
/// What is pulled.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// For which machine.
    pub platform: Platform,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { platform: Platform::this() }
    }
}

/// What a manifest leads to.
pub(crate) struct Image {
    pub id: Digest,
    pub manifest: Vec<u8>,
    pub media_type: String,
    pub config: Vec<u8>,
    pub layers: Vec<(Descriptor, Digest)>,
}

impl Store {
    /// Adds the image of `source` under `name`, and gives its id: the digest of its configuration.
    ///
    /// Layers that are there are not fetched. One that came in part before goes on from there.
    ///
    /// # Errors
    /// [`Error::Source`]; [`Error::Mismatch`], [`Error::BadManifest`], [`Error::BadLayer`]: nothing
    /// of the image is then shown, and what was good is kept for the next try. [`Error::Stopped`] by a [`Stopper`].
    pub fn pull(
        &self,
        source: &dyn BlobSource,
        name: Option<&str>,
        progress: &dyn Progress,
        options: &PullOptions,
    ) -> Result<Digest> {
        let image = self.resolve(source, options)?;
        let diff_ids: Vec<Digest> = image.layers.iter().map(|(_, diff_id)| *diff_id).collect();
        let _lease = self.lease(&diff_ids)?;
        let mut locks = self.reserve(&diff_ids)?;
        let mut missing = Vec::new();
        for (blob, diff_id) in &image.layers {
            progress.layer(&blob.digest, blob.size);
            let listed = missing.iter().any(|(_, known)| *known == diff_id);
            if locks.contains_key(diff_id) && !listed {
                missing.push((blob, diff_id));
            } else {
                progress.done(&blob.digest, true);
            }
        }
        let (fetched, written) =
            self.writing_back(|writeback| self.fetch(source, &missing, progress, writeback));
        let done = fetched.and_then(|(staged, partial)| {
            let stopped = if self.stopper.is_stopped() { Err(Error::Stopped) } else { written };
            if stopped.is_err() {
                staged.iter().try_for_each(|staged| self.discard_now(&staged.dir))?;
                return stopped;
            }
            self.publish(staged, |txn| image.add(txn, &diff_ids, name))?;
            partial.into_iter().try_for_each(Partial::remove)
        });
        if let Err(Error::BadLayer { .. } | Error::Mismatch { .. }) = &done {
            // An image that is refused leaves nothing, also of its good layers.
            for (blob, _) in &missing {
                remove_if_there(&self.root.join("partial").join(blob.digest.hex()))?;
            }
        }
        while let Some((diff_id, lock)) = locks.pop_first() {
            self.unlock(&layer_lock(&diff_id.hex()), lock)?;
        }
        done.map(|()| image.id)
    }

    /// The locks of the layers that are not there, when nobody else fetches them any more. They are
    /// taken in the order of their names, so that two pulls never wait for each other.
    fn reserve(&self, diff_ids: &[Digest]) -> Result<BTreeMap<Digest, Lock>> {
        let absent = |diff_id: &Digest| -> Result<bool> {
            Ok(self.meta.read(|txn| meta::layer(txn, diff_id))?.is_none())
        };
        let mut locks = BTreeMap::new();
        for diff_id in diff_ids.iter().copied().collect::<BTreeSet<Digest>>() {
            if !absent(&diff_id)? {
                continue;
            }
            let name = layer_lock(&diff_id.hex());
            let lock = self.lock_layer(&diff_id.hex())?;
            // Another process may have brought it while this one waited.
            if absent(&diff_id)? {
                locks.insert(diff_id, lock);
            } else {
                self.unlock(&name, lock)?;
            }
        }
        Ok(locks)
    }

    fn resolve(&self, source: &dyn BlobSource, options: &PullOptions) -> Result<Image> {
        let (mut bytes, mut media_type) = source.manifest()?;
        let mut manifest: Option<Manifest> = None;
        for _ in 0..=MAX_NESTING {
            match parse(&bytes, &media_type)? {
                Document::Manifest(found) => {
                    manifest = Some(found);
                    break;
                }
                Document::Index(index) => {
                    let chosen = choose(&index, &options.platform)?;
                    bytes =
                        self.document(source, chosen, "manifest", crate::manifest::MAX_MANIFEST)?;
                    media_type = chosen.media_type.clone();
                }
            }
        }
        let manifest = manifest.ok_or_else(|| Error::BadManifest {
            what: "index",
            why: format!("it leads through more than {MAX_NESTING} others"),
        })?;
        let config = self.document(source, &manifest.config, "configuration", MAX_CONFIG)?;
        let parsed = parse_config(&config, manifest.layers.len())?;
        if let Some(kind) = manifest.media_type.clone().filter(|_| media_type.is_empty()) {
            media_type = kind;
        }
        let layers = manifest.layers.into_iter().zip(parsed.rootfs.diff_ids).collect();
        Ok(Image { id: manifest.config.digest, manifest: bytes, media_type, config, layers })
    }

    fn document(
        &self,
        source: &dyn BlobSource,
        of: &Descriptor,
        what: &'static str,
        limit: usize,
    ) -> Result<Vec<u8>> {
        let bytes = capped(source.blob(of, 0)?, limit)?;
        let found = Digest::of(&bytes);
        if found != of.digest || bytes.len() as u64 != of.size {
            let found = format!("{found}, {} bytes", bytes.len());
            return Err(Error::Mismatch { what, expected: of.digest, found });
        }
        Ok(bytes)
    }

    /// Fetches and unpacks layers whose locks are held, several at once, the largest first.
    fn fetch(
        &self,
        source: &dyn BlobSource,
        missing: &[(&Descriptor, &Digest)],
        progress: &dyn Progress,
        writeback: &Writeback,
    ) -> Result<(Vec<Staged>, Vec<Partial>)> {
        let mut order = missing.to_vec();
        order.sort_by_key(|(blob, _)| std::cmp::Reverse(blob.size));
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let done = Mutex::new((Vec::new(), Vec::new()));
        let work = || {
            while let Some((blob, diff_id)) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                if failed.lock().is_some() {
                    return;
                }
                let job = |to: &Path| {
                    let objects = self.known_files()?;
                    pipeline::run(&Job {
                        source,
                        blob,
                        diff_id: **diff_id,
                        known: true,
                        to,
                        partial: self.root.join("partial"),
                        options: self.options(),
                        objects: &objects,
                        progress,
                        writeback,
                        stopped: &|| self.stopper.is_stopped() || failed.lock().is_some(),
                    })
                };
                match self.stage(diff_id, job) {
                    Ok((dir, unpacked)) => {
                        progress.done(&blob.digest, false);
                        let mut done = done.lock();
                        done.0.push(Staged { diff_id: **diff_id, dir, applied: unpacked.applied });
                        done.1.extend(unpacked.partial);
                    }
                    Err(error) => {
                        failed.lock().get_or_insert(error);
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..AT_ONCE.min(order.len()) {
                scope.spawn(work);
            }
            work();
        });
        let (staged, partial) = done.into_inner();
        match failed.into_inner() {
            None => Ok((staged, partial)),
            Some(error) => {
                staged.iter().try_for_each(|staged| self.discard_now(&staged.dir))?;
                Err(error)
            }
        }
    }

    /// Makes a staging directory for a layer, whose lock is held, and has it filled; where that
    /// fails, the directory goes.
    pub(crate) fn stage<T>(
        &self,
        diff_id: &Digest,
        fill: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<(PathBuf, T)> {
        let dir = self.root.join("staging").join(format!("{}.{}", diff_id.hex(), self.unique()));
        let tree = dir.join("fs");
        self.before("staging", &dir)?;
        fs::create_dir_all(&tree).at(&tree, "staging")?;
        match fill(&dir) {
            Ok(filled) => Ok((dir, filled)),
            Err(e) => {
                self.discard_now(&dir)?;
                Err(e)
            }
        }
    }

    /// Makes staged layers, whose locks are held, the store's, and in the same transaction what
    /// `also` writes: nothing of them is seen before all of them are on disk.
    pub(crate) fn publish(
        &self,
        staged: Vec<Staged>,
        also: impl FnOnce(&Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let layers = self.root.join("layers");
        if !staged.is_empty() {
            let layers_fd = open_dir(&layers)?;
            // The one durable point: all that was written, at once, instead of a wait for each file.
            self.before("syncing", &layers)?;
            rustix::fs::syncfs(&layers_fd).at(&layers, "writing the layers to the disk")?;
            for staged in &staged {
                let to = self.layer_dir(&staged.diff_id);
                // While this process waited for the lock its holder may have been killed.
                if to.try_exists().at(&to, "publishing the layer")? {
                    self.discard_rowless(&staged.diff_id)?;
                }
                self.before("publishing", &to)?;
                fs::rename(&staged.dir, &to).at(&to, "publishing the layer")?;
            }
            self.sync_dir(&layers, "writing the layers to the disk")?;
        }
        let written = self.meta.write(|txn| {
            for staged in &staged {
                let row = LayerRow {
                    diff_id: staged.diff_id,
                    bytes: staged.applied.bytes,
                    shared: staged.applied.shared,
                    entries: staged.applied.entries,
                };
                meta::add_layer(txn, &row, &staged.applied.objects)?;
            }
            also(txn)
        });
        if written.is_err() {
            staged.iter().try_for_each(|s| self.discard(&self.layer_dir(&s.diff_id)))?;
        }
        written
    }
}

impl Image {
    /// Writes the image and its name.
    pub fn add(
        &self,
        txn: &Transaction<'_>,
        diff_ids: &[Digest],
        name: Option<&str>,
    ) -> Result<()> {
        let id = self.id.to_string();
        txn.execute(
            "INSERT OR IGNORE INTO images (id, manifest, media_type, config, created)
             VALUES (?1, ?2, ?3, ?4, unixepoch())",
            params![id, self.manifest, self.media_type, self.config],
        )?;
        let mut insert = txn.prepare_cached(
            "INSERT OR IGNORE INTO image_layers (image, position, diff_id) VALUES (?1, ?2, ?3)",
        )?;
        for (blob, diff_id) in &self.layers {
            meta::add_blob(txn, &blob.digest, diff_id)?;
        }
        for (position, diff_id) in diff_ids.iter().enumerate() {
            insert.execute(params![id, meta::signed(position as u64), diff_id.to_string()])?;
        }
        match name {
            Some(name) => crate::images::set_tag(txn, name, &id),
            None => Ok(()),
        }
    }
}

/// A layer that is unpacked and not published.
pub(crate) struct Staged {
    pub diff_id: Digest,
    pub dir: PathBuf,
    pub applied: Applied,
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at(path, "removing the blob"),
        _ => Ok(()),
    }
}
