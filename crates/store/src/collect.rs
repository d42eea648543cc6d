//! What nothing needs goes; what is there is verified.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::meta;
use crate::store::{Store, layer_lock, open_dir};
use crate::tar::recipe;

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
}

/// What a check has found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Layers that were verified.
    pub layers: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Images that were removed, by a repair, since a layer of theirs is damaged.
    pub removed: Vec<String>,
}

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
        let mut collected = self.collect_layers()?;
        collected.images = images as u64;
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
        self.empty_trash()?;
        Ok(collected)
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
        let mut hashed = Hashed { to, hash: Sha256::new(), count: 0 };
        let done = recipe::replay(&dir.join("recipe"), open_dir(&dir)?, &mut hashed);
        done.at(&dir, "reading the layer")?;
        let found = Digest::finish(hashed.hash);
        if found != *diff_id {
            let found = found.to_string();
            return Err(Error::Mismatch { what: "layer", expected: *diff_id, found });
        }
        Ok(hashed.count)
    }

    /// Verifies every layer against its diff ID. `repair` removes images with a damaged layer, which
    /// can then be pulled again.
    ///
    /// # Errors
    /// The database's own; what is wrong with layers is in the report.
    pub fn check(&self, repair: bool) -> Result<Report> {
        let mut report = Report::default();
        for used in self.layers()? {
            report.layers += 1;
            let diff_id = used.layer.diff_id;
            let mut what = self.write_tar(&diff_id, &mut io::sink()).err().map(|e| e.to_string());
            let tree = self.layer_tree(&diff_id);
            if what.is_none() && !tree.is_dir() {
                what = Some(format!("{tree:?} is gone"));
            }
            let Some(what) = what else { continue };
            let mut images = Vec::new();
            for image in self.images()?.into_iter().filter(|image| used.images.contains(&image.id))
            {
                images.push(image.tags.first().cloned().unwrap_or_else(|| image.id.to_string()));
            }
            report.findings.push(Finding { layer: diff_id, what, images });
        }
        if repair {
            for finding in &report.findings {
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
}

struct Hashed<'w> {
    to: &'w mut dyn Write,
    hash: Sha256,
    count: u64,
}

impl Write for Hashed<'_> {
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

/// Copies all of a reader to a file that must not be there.
///
/// # Errors
/// The file system's or the reader's own.
pub fn write_new(path: &Path, from: &mut dyn Read) -> Result<()> {
    let mut file = File::create_new(path).at(path, "creating")?;
    io::copy(from, &mut file).at(path, "writing")?;
    file.sync_all().at(path, "syncing")
}
