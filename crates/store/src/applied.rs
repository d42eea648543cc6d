//! Layers as snapshots: a blob that is unpacked into a snapshot becomes a layer of the store, and a chain of layers that
//! the store has becomes a snapshot without being fetched.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rusqlite::{OptionalExtension, Transaction, params};

use crate::error::{At, Error, Result};
use crate::id::{Digest, on_chain};
use crate::manifest::Descriptor;
use crate::meta;
use crate::pipeline::{self, Job};
use crate::pull::Staged;
use crate::snapshots::{
    Fault, Kind, LAYER, Stack, committed, fault, is_empty, json, now, row, row_of,
};
use crate::source::{BlobSource, Quiet};
use crate::store::{Store, layer_lock, open_dir};
use crate::writeback::Writeback;

/// A layer that a snapshot got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedLayer {
    /// The digest of its tar.
    pub diff_id: Digest,
    /// The bytes of its tar; none where the layer was there and its tar was not made.
    pub size: Option<u64>,
}

impl Store {
    /// Which snapshot has `tree` as its own or as its layer, by number and name; none where it is not of this store.
    ///
    /// # Errors
    /// The database's own.
    pub fn snapshot_of(&self, tree: &Path) -> Result<Option<(i64, String)>> {
        let Some(id) = self.number_of(tree) else { return Ok(None) };
        let name = self.meta.read(|txn| {
            let sql = "SELECT name FROM snapshots WHERE id = ?1";
            Ok(txn.query_row(sql, [id], |row| row.get(0)).optional()?)
        })?;
        Ok(name.map(|name| (id, name)))
    }

    /// The number in the path of a snapshot's tree.
    fn number_of(&self, tree: &Path) -> Option<i64> {
        let relative = tree.strip_prefix(self.root.join("snapshots")).ok()?;
        let id = relative.parent()?.to_str()?.parse().ok()?;
        let name = relative.file_name()?;
        (name == "fs" || name == LAYER).then_some(id)
    }

    /// Gives an active snapshot, which has nothing of its own yet, the layer that `blob` is: fetched, verified and
    /// unpacked once, whoever else wants it, and kept as every layer of the store. None where the snapshot is not empty.
    ///
    /// Cost: of a layer that is there, one transaction.
    ///
    /// # Errors
    /// [`Error::Source`], [`Error::Mismatch`], [`Error::BadLayer`]; nothing is left of the layer then.
    pub fn apply_to_snapshot(
        &self,
        id: i64,
        source: &dyn BlobSource,
        blob: &Descriptor,
    ) -> Result<Option<AppliedLayer>> {
        let found = self.meta.read(|txn| row_of(txn, id))?;
        let found = found.filter(|row| row.kind == Kind::Active && row.layer.is_none());
        if found.is_none() || !is_empty(&self.snapshot_dir(id).join("fs"))? {
            return Ok(None);
        }
        // One at a time: who waits finds the layer there.
        let name = layer_lock(&blob.digest.hex());
        let lock = self.lock(&name)?;
        let done = match self.meta.read(|txn| meta::layer_of_blob(txn, &blob.digest))? {
            Some(diff_id) if self.stand_on(id, &diff_id, &blob.digest)? => {
                Ok(AppliedLayer { diff_id, size: None })
            }
            _ => self.unpack_for(id, source, blob),
        };
        self.unlock(&name, lock)?;
        done.map(Some)
    }

    /// Unpacks a blob, whose lock is held, for a snapshot.
    fn unpack_for(
        &self,
        id: i64,
        source: &dyn BlobSource,
        blob: &Descriptor,
    ) -> Result<AppliedLayer> {
        let job = |to: &Path, writeback: &Writeback| {
            let objects = self.known_files()?;
            pipeline::run(&Job {
                source,
                blob,
                diff_id: blob.digest,
                known: false,
                to,
                partial: self.root.join("partial"),
                options: self.options(),
                objects: &objects,
                progress: &Quiet,
                writeback,
                stopped: &|| false,
            })
        };
        let (staged, written) =
            self.writing_back(|writeback| self.stage(&blob.digest, |to| job(to, writeback)));
        let (dir, unpacked) = staged?;
        if written.is_err() {
            self.discard_now(&dir)?;
        }
        written?;
        let (diff_id, size) = unpacked.tar;
        let name = layer_lock(&diff_id.hex());
        // A blob that is its own tar has this lock already.
        let lock = if diff_id == blob.digest { None } else { Some(self.lock(&name)?) };
        let done = (|| {
            if self.stand_on(id, &diff_id, &blob.digest)? {
                return self.discard(&dir);
            }
            self.link_layer(id, &diff_id)?;
            let staged = Staged { diff_id, dir: dir.clone(), applied: unpacked.applied };
            self.publish(vec![staged], |txn| {
                meta::add_blob(txn, &blob.digest, &diff_id)?;
                set_layer(txn, id, &diff_id)
            })
        })();
        if let Some(lock) = lock {
            self.unlock(&name, lock)?;
        }
        if let Some(partial) = unpacked.partial {
            partial.remove()?;
        }
        done.map(|()| AppliedLayer { diff_id, size: Some(size) })
    }

    /// Writes the tar of what a snapshot has on top of its parent, `tree` being a directory of its [`Stack`]: bit by bit
    /// as it came where that is a layer. Gives the bytes written.
    ///
    /// # Errors
    /// [`Error::Unfinished`]; of the tree or `to`.
    pub fn write_snapshot(&self, tree: &Path, to: &mut dyn std::io::Write) -> Result<u64> {
        let step = "reading the snapshot";
        let dir = tree.parent().unwrap_or(tree);
        let row = self.number_of(tree).map(|id| self.meta.read(|txn| row_of(txn, id)));
        let row = row.transpose()?.flatten();
        let Some(row) = row else { return fault(&tree.to_string_lossy(), Fault::Absent) };
        if tree.file_name().is_some_and(|name| name == LAYER)
            && let Some(layer) = &row.layer
        {
            return self.write_tar(layer, to);
        }
        let partial = dir.join("work/work/incompat/partial");
        if partial.is_dir() && !is_empty(&partial)? {
            return Err(Error::Unfinished { path: tree.to_owned() });
        }
        crate::tar::diff::write(open_dir(tree)?, self.namespace(), to).at(tree, step)
    }

    /// Gives the top directory of a snapshot to a user and a group of the machine: root of a container whose users are
    /// mapped.
    ///
    /// # Errors
    /// No permission.
    pub fn give_snapshot(&self, stack: &Stack, (uid, gid): (u32, u32)) -> Result<()> {
        let step = "giving the snapshot to its root";
        std::os::unix::fs::chown(&stack.upper, Some(uid), Some(gid)).at(&stack.upper, step)
    }

    /// Lets a snapshot stand on a layer, if that is there.
    fn stand_on(&self, id: i64, diff_id: &Digest, blob: &Digest) -> Result<bool> {
        self.link_layer(id, diff_id)?;
        self.meta.write(|txn| {
            if meta::layer(txn, diff_id)?.is_none() {
                return Ok(false);
            }
            meta::add_blob(txn, blob, diff_id)?;
            set_layer(txn, id, diff_id)?;
            Ok(true)
        })
    }

    /// Makes the name by which mounts find the layer of a snapshot, and waits until it is on the disk.
    fn link_layer(&self, id: i64, diff_id: &Digest) -> Result<()> {
        let dir = self.snapshot_dir(id);
        let link = dir.join(LAYER);
        let step = "naming the snapshot's layer";
        self.before(step, &link)?;
        match fs::remove_file(&link) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at(&link, step),
            _ => {}
        }
        let to = Path::new("../../layers").join(diff_id.hex()).join("fs");
        std::os::unix::fs::symlink(to, &link).at(&link, step)?;
        self.sync_dir(&dir, step)
    }

    /// Makes a committed snapshot of the chain of layers `chain` on `parent`, where the store has its uppermost layer
    /// and the parent shows the others, and gives it `labels`. False where it has not: nothing is made then. A snapshot
    /// with the same chain, parent and labels is enough.
    ///
    /// Cost: one transaction, and a hash for each layer of the store.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: the parent is absent or not committed.
    pub fn adopt_snapshot(
        &self,
        name: &str,
        parent: Option<&str>,
        chain: &Digest,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool> {
        let made = self.meta.write(|txn| {
            if row(txn, name)?.is_some() {
                return fault(name, Fault::Exists);
            }
            let parent = parent.map(|parent| committed(txn, parent)).transpose()?;
            let below = match &parent {
                None => None,
                Some(parent) => match parent.chain {
                    None => return Ok(None),
                    below => below,
                },
            };
            let parent = parent.map(|parent| parent.id);
            let sql = "SELECT 1 FROM snapshots WHERE chain = ?1 AND parent IS ?2 AND labels = ?3";
            let same = params![chain.to_string(), parent, json(labels)];
            if txn.prepare_cached(sql)?.exists(same)? {
                return Ok(Some(None));
            }
            let is = |layer: &meta::LayerRow| on_chain(below.as_ref(), &layer.diff_id) == *chain;
            let layers = match below {
                None => meta::layer(txn, chain)?.into_iter().collect(),
                Some(_) => meta::layers(txn)?,
            };
            let Some(layer) = layers.into_iter().find(is) else { return Ok(None) };
            txn.execute(
                "INSERT INTO snapshots (name, kind, parent, created, updated, labels, diff_id, own, chain) \
                 VALUES (?1, 3, ?2, ?3, ?3, ?4, ?5, 0, ?6)",
                params![
                    name,
                    parent,
                    now(),
                    json(labels),
                    layer.diff_id.to_string(),
                    chain.to_string()
                ],
            )?;
            let id = txn.last_insert_rowid();
            let dir = self.snapshot_dir(id);
            self.discard(&dir)?;
            let step = "making the snapshot";
            self.before(step, &dir)?;
            fs::create_dir_all(&dir).at(&dir, step)?;
            self.link_layer(id, &layer.diff_id)?;
            Ok(Some(Some(id)))
        })?;
        Ok(made.is_some())
    }
}

fn set_layer(txn: &Transaction<'_>, id: i64, diff_id: &Digest) -> Result<()> {
    let sql = "UPDATE snapshots SET diff_id = ?2 WHERE id = ?1 AND kind = 2 AND diff_id IS NULL";
    if txn.execute(sql, params![id, diff_id.to_string()])? == 1 {
        return Ok(());
    }
    // It was removed or committed meanwhile, or another call gave it a layer.
    let sql = "SELECT name FROM snapshots WHERE id = ?1";
    let name: Option<String> = txn.query_row(sql, [id], |row| row.get(0)).optional()?;
    match name {
        None => fault(&format!("number {id}"), Fault::Absent),
        Some(name) => Err(Error::Snapshot { name, fault: Fault::NotActive }),
    }
}
