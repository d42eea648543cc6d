//! Files that the store has, by their content, so that equal ones are kept once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use rustix::fs::OFlags;

use crate::error::Result;
use crate::id::Digest;
use crate::meta;
use crate::store::{Store, open_dir};
use crate::tar::apply::Objects;

/// The content of a file: its BLAKE3 hash. It is known to this store alone, and so need not be the hash of any standard,
/// but one that no two contents are found to have in common: whoever makes an image must not choose whose data it gets.
///
/// Stores of before the one hash have rows of another, SHA-256: they never match, and go with their layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content([u8; 32]);

impl Content {
    /// The content that a hash has come to.
    pub(crate) fn finish(hash: &blake3::Hasher) -> Self {
        Self(hash.finalize().into())
    }

    /// The content `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }
}

/// Writes whose files have which content, with the row of their layer.
pub(crate) fn add(
    txn: &Transaction<'_>,
    diff_id: &Digest,
    objects: &[(Content, PathBuf)],
) -> Result<()> {
    let mut insert = txn.prepare_cached(
        "INSERT OR IGNORE INTO objects (content, diff_id, path) VALUES (?1, ?2, ?3)",
    )?;
    let diff_id = diff_id.to_string();
    // In the order of the table, which has many more pages than are held in memory.
    let mut sorted: Vec<&(Content, PathBuf)> = objects.iter().collect();
    sorted.sort_unstable();
    for (content, path) in sorted {
        insert.execute(params![content.0.as_slice(), diff_id, path.as_os_str().as_bytes()])?;
    }
    Ok(())
}

/// Files looked for in one transaction. A transaction costs more than a look; one that lasts keeps the database's log
/// from being used again, and looks at a store of the past.
const LOOKS: u32 = 256;
/// Layers whose directories stay open.
const OPEN: usize = 16;

/// The files of a store, for one layer that is being unpacked.
pub(crate) struct Known<'s> {
    store: &'s Store,
    looking: Mutex<Looking>,
}

struct Looking {
    db: Connection,
    /// In the present transaction.
    looks: u32,
    trees: HashMap<Digest, OwnedFd>,
}

impl Store {
    /// The files that equal ones may share their data with. With a connection of its own: layers that are unpacked at
    /// once don't wait for one another.
    ///
    /// # Errors
    /// The database's own.
    pub(crate) fn known_files(&self) -> Result<Known<'_>> {
        let looking = Looking { db: self.meta.reader()?, looks: 0, trees: HashMap::new() };
        Ok(Known { store: self, looking: Mutex::new(looking) })
    }
}

impl Looking {
    fn row(&mut self, content: &Content) -> rusqlite::Result<Option<(Digest, PathBuf)>> {
        if self.looks == LOOKS {
            self.db.execute_batch("COMMIT")?;
            self.looks = 0;
        }
        if self.looks == 0 {
            self.db.execute_batch("BEGIN")?;
        }
        self.looks += 1;
        let sql = "SELECT diff_id, path FROM objects WHERE content = ?1 LIMIT 1";
        let mut query = self.db.prepare_cached(sql)?;
        let row = query.query_row([content.0.as_slice()], |row| {
            let path = OsString::from_vec(row.get(1)?);
            Ok((meta::digest(&row.get::<_, String>(0)?)?, PathBuf::from(path)))
        });
        row.optional()
    }

    fn open(&mut self, store: &Store, diff_id: &Digest, path: &Path) -> Option<OwnedFd> {
        if !self.trees.contains_key(diff_id) {
            if self.trees.len() >= OPEN {
                self.trees.clear();
            }
            self.trees.insert(*diff_id, open_dir(&store.layer_tree(diff_id)).ok()?);
        }
        let tree = self.trees.get(diff_id)?;
        sys::beneath::open(tree, path, OFlags::RDONLY | OFlags::NOFOLLOW).ok()
    }
}

impl Objects for Known<'_> {
    fn find(&self, content: &Content, size: u64) -> Option<OwnedFd> {
        let mut looking = self.looking.lock();
        let (diff_id, path) = looking.row(content).ok()??;
        let fd = looking.open(self.store, &diff_id, &path)?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        (u64::try_from(stat.st_size) == Ok(size)).then_some(fd)
    }
}
