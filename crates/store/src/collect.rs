//! What nothing needs goes; what is there is verified.

use std::fs;
use std::io::{self, Write};

use rusqlite::OptionalExtension;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::commit::pipe;
use crate::error::{At, Error, Result};
use crate::hashed::Hashed;
use crate::id::Digest;
use crate::meta;
use crate::pipeline;
use crate::store::{Stopper, Store, layer_lock, open_dir};
use crate::tar::recipe;
use crate::verify;

/// What a collection freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images without a name.
    pub images: u64,
    /// Layers that no image has.
    pub layers: u64,
    /// Bytes of data in them.
    pub bytes: u64,
}

/// One thing that is wrong with the store.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The layer.
    pub layer: Digest,
    /// What is wrong, a sentence.
    pub what: String,
    /// Images that have it, by name or id.
    pub images: Vec<String>,
    /// Whether the data of its files is whole, so that all else can be made again here.
    pub whole: bool,
}

/// What a check has found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Layers that were verified.
    pub layers: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Layers that a repair has unpacked anew from what was whole of them.
    pub rebuilt: Vec<Digest>,
    /// Images that were removed, by a repair, since a layer of theirs is damaged.
    pub removed: Vec<String>,
}

/// The lock of the one that tidies.
const TIDY: &str = "tidy";

/// The layers that no image, no snapshot and no living lease needs.
const UNUSED: &str =
    "SELECT diff_id FROM layers WHERE diff_id NOT IN (SELECT diff_id FROM image_layers)
  AND diff_id NOT IN (SELECT diff_id FROM leases)
  AND diff_id NOT IN (SELECT diff_id FROM snapshots WHERE diff_id IS NOT NULL)";

impl Store {
    /// Removes images without a name that no container uses, layers that no image has, and what
    /// fetches that were given up have left; then empties the trash.
    ///
    /// # Errors
    /// The database's or the file system's own.
    pub fn collect(&self) -> Result<Collected> {
        let images = self.meta.write(|txn| {
            let sql = "DELETE FROM images WHERE id NOT IN (SELECT image FROM tags)
              AND id NOT IN (SELECT image FROM containers)";
            Ok(txn.execute(sql, [])?)
        })?;
        for name in self.names("partial")? {
            // A fetch holds its layer's lock, not its blob's: one that is young may go on.
            let path = self.root.join("partial").join(&name);
            let old = fs::metadata(&path)
                .and_then(|meta| meta.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() > 3600));
            if old {
                fs::remove_file(&path).at(&path, "removing an old blob")?;
            }
        }
        let collected = self.tidy()?;
        Ok(Collected { images: images as u64, ..collected })
    }

    /// Removes layers that nothing needs, and what is in the trash; waits for another process that does.
    ///
    /// # Errors
    /// The database's or the file system's own.
    pub fn tidy(&self) -> Result<Collected> {
        let lock = self.lock(TIDY)?;
        let collected = self.collect_layers()?;
        self.empty_trash()?;
        self.unlock(TIDY, lock)?;
        Ok(collected)
    }

    /// Whether [`Store::tidy`] has something to do.
    ///
    /// # Errors
    /// The database's or the file system's own.
    pub fn is_untidy(&self) -> Result<bool> {
        Ok(!self.names("trash")?.is_empty()
            || self.meta.read(|txn| Ok(txn.prepare(UNUSED)?.exists([])?))?)
    }

    /// Moves layers that nothing needs to the trash.
    ///
    /// # Errors
    /// The database's or the file system's own.
    pub fn collect_layers(&self) -> Result<Collected> {
        let unused: Vec<Digest> = self.meta.read(|txn| {
            let mut query = txn.prepare_cached(UNUSED)?;
            let rows = query.query_map([], |row| meta::digest(&row.get::<_, String>(0)?))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let mut collected = Collected::default();
        for diff_id in unused {
            let name = layer_lock(&diff_id.hex());
            // Whoever holds it is about to use it.
            let Some(lock) = self.lock_if_free(&name)? else { continue };
            let bytes = self.meta.write(|txn| {
                let row = meta::layer(txn, &diff_id)?;
                let sql =
                    format!("DELETE FROM layers WHERE diff_id = ?1 AND diff_id IN ({UNUSED})");
                let gone = txn.execute(&sql, [diff_id.to_string()])?;
                Ok(row.filter(|_| gone > 0).map(|row| row.bytes))
            })?;
            if let Some(bytes) = bytes {
                self.discard(&self.layer_dir(&diff_id))?;
                collected.layers += 1;
                collected.bytes += bytes;
            }
            self.unlock(&name, lock)?;
        }
        Ok(collected)
    }

    /// Writes the tar of a layer, verified: bit by bit as it came.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the layer is damaged: what was written is then wrong.
    pub fn write_tar(&self, diff_id: &Digest, to: &mut dyn Write) -> Result<u64> {
        let dir = self.layer_dir(diff_id);
        let mut hashed = Hashed::new(Stoppable { to, stopper: &self.stopper });
        let done = recipe::replay(&dir.join("recipe"), open_dir(&dir)?, &mut hashed);
        done.at(&dir, "reading the layer")?;
        let (_, found, count) = hashed.finish();
        if found != *diff_id {
            let found = found.to_string();
            return Err(Error::Mismatch { what: "layer", expected: *diff_id, found });
        }
        Ok(count)
    }

    /// Verifies every layer: the data of its files against its diff ID, and names, owners, modes, times and attributes
    /// against the tar. `repair` unpacks a layer anew where only the latter are wrong, and removes images with a layer
    /// that lacks data, which can then be pulled again.
    ///
    /// Cost: all data is read and hashed; each name costs two or three system calls more.
    ///
    /// # Errors
    /// The database's own; [`Error::InUse`] where a container has a layer that is to be made anew; what is wrong with
    /// layers is in the report.
    pub fn check(&self, repair: bool) -> Result<Report> {
        let mut report = Report::default();
        for used in self.layers()? {
            let diff_id = used.layer.diff_id;
            let mut damage = self.damage(&diff_id);
            if self.stopper.is_stopped() {
                return Err(Error::Stopped);
            }
            if damage.is_some() {
                // Or another process has removed it, and has perhaps brought it again: under its lock, nobody does.
                let lock = self.lock_layer(&diff_id.hex())?;
                let there = self.meta.read(|txn| meta::layer(txn, &diff_id))?.is_some();
                damage = if there { self.damage(&diff_id) } else { None };
                self.unlock(&layer_lock(&diff_id.hex()), lock)?;
                if !there {
                    continue;
                }
            }
            report.layers += 1;
            let Some((what, whole)) = damage else { continue };
            let mut images = Vec::new();
            for image in self.images()?.into_iter().filter(|image| used.images.contains(&image.id))
            {
                images.push(image.tags.first().cloned().unwrap_or_else(|| image.id.to_string()));
            }
            report.findings.push(Finding { layer: diff_id, what, images, whole });
        }
        if repair {
            for finding in &report.findings {
                if finding.whole {
                    if self.rebuild(&finding.layer)? {
                        report.rebuilt.push(finding.layer);
                    }
                    continue;
                }
                for image in &finding.images {
                    // Two damaged layers may be of one image.
                    if let Ok(found) = self.image(image) {
                        self.remove(&found.id.to_string())?;
                        report.removed.push(image.clone());
                    }
                }
            }
            self.collect()?;
        }
        Ok(report)
    }

    /// What is wrong with a layer, and whether the data of its files is whole all the same.
    fn damage(&self, diff_id: &Digest) -> Option<(String, bool)> {
        match self.write_tar(diff_id, &mut io::sink()) {
            Err(e) => Some((e.to_string(), false)),
            Ok(_) => self.differences(diff_id).map(|what| (what, true)),
        }
    }

    /// What of a layer's tree is not as its tar says.
    fn differences(&self, diff_id: &Digest) -> Option<String> {
        let dir = self.layer_dir(diff_id);
        let found = open_dir(&dir).and_then(|layer| {
            verify::differences(&dir.join("recipe"), &layer, self.options())
                .at(&dir, "comparing the layer")
        });
        found.unwrap_or_else(|e| Some(e.to_string()))
    }

    /// Unpacks a layer anew from the tar that it still makes, and puts that in its place in one step. False where it has
    /// been removed.
    fn rebuild(&self, diff_id: &Digest) -> Result<bool> {
        let lock = self.lock_layer(&diff_id.hex())?;
        if self.meta.read(|txn| meta::layer(txn, diff_id))?.is_none() {
            self.unlock(&layer_lock(&diff_id.hex()), lock)?;
            return Ok(false);
        }
        let used = self.meta.read(|txn| {
            let sql = "SELECT c.name FROM containers c JOIN image_layers l ON l.image = c.image
              WHERE l.diff_id = ?1 UNION ALL SELECT name FROM snapshots WHERE diff_id = ?1 LIMIT 1";
            Ok(txn.query_row(sql, [diff_id.to_string()], |row| row.get(0)).optional()?)
        })?;
        if let Some(container) = used {
            return Err(Error::InUse { name: diff_id.to_string(), container });
        }
        let (dir, _) = self.stage(diff_id, |dir| {
            let (pipe, end) = pipe(&self.stopper);
            std::thread::scope(|scope| {
                let written = scope.spawn(move || {
                    let mut pipe = pipe;
                    self.write_tar(diff_id, &mut pipe)?;
                    pipe.flush().at(dir, "reading the layer")
                });
                let tar = io::BufReader::with_capacity(256 << 10, end);
                let unpacked =
                    pipeline::unpack_tar(tar, *diff_id, dir, self.options(), &self.known_files()?);
                let died = Error::Source("the thread that reads the layer died".into());
                written.join().unwrap_or(Err(died))?;
                unpacked
            })
        })?;
        let layers = open_dir(&self.root().join("layers"))?;
        self.before("syncing", &dir)?;
        rustix::fs::syncfs(&layers).at(&dir, "writing the layer to the disk")?;
        let place = self.layer_dir(diff_id);
        self.before("publishing", &place)?;
        let exchange = RenameFlags::EXCHANGE;
        renameat_with(CWD, &dir, CWD, &place, exchange).at(&place, "publishing the layer")?;
        self.discard(&dir)?;
        self.unlock(&layer_lock(&diff_id.hex()), lock)?;
        Ok(true)
    }
}

/// Writes until it is to stop.
struct Stoppable<'w> {
    to: &'w mut dyn Write,
    stopper: &'w Stopper,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stopper.check()?;
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
