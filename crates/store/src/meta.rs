//! The store's database: what is there, what belongs to whom. A row is written when its files are
//! complete and on disk, and goes before they do.
//!
//! Every transaction that writes begins as one (`BEGIN IMMEDIATE`), so that many processes wait for
//! one another and never fail in the middle.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::objects::{self, Content};
use crate::seam::Seam;

/// The format that this version writes.
pub const FORMAT: u32 = 4;

/// What is held of the database in memory at most, KiB.
const CACHE_KIB: i32 = 16 << 10;
/// Pages in the database's log before they are written back.
const LOG_PAGES: u32 = 64;
/// How long to wait for others that write.
const PATIENCE: Duration = Duration::from_secs(60);

/// One statement a table.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS layers (
  diff_id TEXT PRIMARY KEY, bytes INTEGER NOT NULL, shared INTEGER NOT NULL, entries INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS images (
  id TEXT PRIMARY KEY, manifest BLOB NOT NULL, media_type TEXT NOT NULL, config BLOB NOT NULL,
  created INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS image_layers (
  image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE, position INTEGER NOT NULL,
  diff_id TEXT NOT NULL REFERENCES layers(diff_id), PRIMARY KEY (image, position)) STRICT;
CREATE INDEX IF NOT EXISTS image_layers_by_layer ON image_layers(diff_id);
CREATE TABLE IF NOT EXISTS tags (
  name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images(id)) STRICT;
CREATE INDEX IF NOT EXISTS tags_by_image ON tags(image);
CREATE TABLE IF NOT EXISTS tag_history (
  name TEXT NOT NULL, image TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS leases (
  owner TEXT NOT NULL, diff_id TEXT NOT NULL, PRIMARY KEY (owner, diff_id)) STRICT;
CREATE TABLE IF NOT EXISTS objects (
  content BLOB NOT NULL, diff_id TEXT NOT NULL REFERENCES layers(diff_id) ON DELETE CASCADE,
  path BLOB NOT NULL, PRIMARY KEY (content, diff_id, path)) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS objects_by_layer ON objects(diff_id);
CREATE TABLE IF NOT EXISTS containers (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, image TEXT NOT NULL REFERENCES images(id),
  created INTEGER NOT NULL, state TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS containers_by_image ON containers(image);
CREATE TABLE IF NOT EXISTS snapshots (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, kind INTEGER NOT NULL,
  parent INTEGER REFERENCES snapshots(id), created INTEGER NOT NULL, updated INTEGER NOT NULL,
  labels TEXT NOT NULL, bytes INTEGER, inodes INTEGER, diff_id TEXT REFERENCES layers(diff_id),
  own INTEGER NOT NULL DEFAULT 1, chain TEXT) STRICT;
CREATE INDEX IF NOT EXISTS snapshots_by_parent ON snapshots(parent);
CREATE INDEX IF NOT EXISTS snapshots_by_layer ON snapshots(diff_id);
CREATE INDEX IF NOT EXISTS snapshots_by_chain ON snapshots(chain);
CREATE TABLE IF NOT EXISTS blobs (
  blob TEXT PRIMARY KEY, diff_id TEXT NOT NULL REFERENCES layers(diff_id) ON DELETE CASCADE) STRICT;
CREATE INDEX IF NOT EXISTS blobs_by_layer ON blobs(diff_id);
";

/// What the tables of format 3 lack.
const SINCE_3: &str = "
ALTER TABLE snapshots ADD COLUMN diff_id TEXT REFERENCES layers(diff_id);
ALTER TABLE snapshots ADD COLUMN own INTEGER NOT NULL DEFAULT 1;
ALTER TABLE snapshots ADD COLUMN chain TEXT;
";

#[derive(Debug)]
pub(crate) struct Meta {
    path: PathBuf,
    db: parking_lot::Mutex<Connection>,
    seam: Seam,
}

/// A layer's row.
#[derive(Debug, Clone)]
pub struct LayerRow {
    /// Its diff ID.
    pub diff_id: Digest,
    /// Bytes of data.
    pub bytes: u64,
    /// Of these, bytes that files of other layers had already.
    pub shared: u64,
    /// Names in it.
    pub entries: u64,
}

impl Meta {
    pub fn open(path: &Path, seam: Seam) -> Result<Self> {
        let db = Connection::open(path)?;
        shorten_log(&db, path)?;
        db.busy_timeout(PATIENCE)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", true)?;
        // The last to close writes nothing back: a commit costs one sync, and not four more of its process. What a later
        // process reads again is kept short by [`shorten_log`].
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
        // The rows of a layer's files are more than SQLite's own 2 MiB, and would be written to the log as often as they
        // are pushed out.
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let format: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        // Of format 2 only tables are missing.
        if format != 0 && !(2..=FORMAT).contains(&format) {
            let root = path.parent().unwrap_or(path).to_owned();
            return Err(Error::Format { root, found: format, known: FORMAT });
        }
        if format != FORMAT {
            let change = if format == 3 { SINCE_3 } else { "" };
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE; {change} {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"
            ))?;
        }
        Ok(Self { path: path.to_owned(), db: parking_lot::Mutex::new(db), seam })
    }

    /// Runs `act` in one transaction; an error takes all of it back.
    pub fn write<T>(&self, act: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.commit(&mut self.db.lock(), act)
    }

    /// The same, but a power cut may take it back, unless something else was written since. It waits for no disk.
    pub fn write_unkept<T>(&self, act: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut db = self.db.lock();
        db.pragma_update(None, "synchronous", "NORMAL")?;
        let done = self.commit(&mut db, act);
        db.pragma_update(None, "synchronous", "FULL")?;
        done
    }

    fn commit<T>(
        &self,
        db: &mut Connection,
        act: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = act(&txn)?;
        self.seam.before("commit").at(Path::new("db.sqlite"), "writing the database")?;
        txn.commit()?;
        Ok(done)
    }

    /// The values of the one column of text that `sql` selects.
    pub fn column(&self, sql: &str) -> Result<HashSet<String>> {
        self.read(|txn| {
            let mut query = txn.prepare_cached(sql)?;
            let rows = query.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// How many rows a table has.
    pub fn count(&self, table: &str) -> Result<u64> {
        let sql = format!("SELECT count(*) FROM {table}");
        self.read(|txn| Ok(count(txn.prepare_cached(&sql)?.query_row([], |row| row.get(0))?)))
    }

    /// A connection of one's own, to read.
    pub fn reader(&self) -> Result<Connection> {
        let db = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.busy_timeout(PATIENCE)?;
        Ok(db)
    }

    /// Runs `act` in one transaction that writes nothing.
    pub fn read<T>(&self, act: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut db = self.db.lock();
        let txn = db.transaction_with_behavior(TransactionBehavior::Deferred)?;
        act(&txn)
    }
}

/// Empties a log that processes before this one have left long, since whoever opens a database first reads all of its
/// log. SQLite's own write-back at [`LOG_PAGES`] never starts the log anew here: how much of it was written back is known
/// to the processes that are there, and is forgotten with the last of them, which is most commands. Costs two waits for
/// the disk, once in a few dozen commands.
///
/// # Errors
/// Of the database. That somebody else reads or writes is none: the next to come will find the log again.
fn shorten_log(db: &Connection, path: &Path) -> Result<()> {
    let log = path.with_extension("sqlite-wal");
    let bytes = match std::fs::metadata(&log) {
        Ok(of) => of.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e).at(&log, "looking at the database's log"),
    };
    if bytes > u64::from(LOG_PAGES) * 4096 {
        db.busy_timeout(Duration::ZERO)?;
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    Ok(())
}

/// A digest in a column.
pub(crate) fn digest(text: &str) -> rusqlite::Result<Digest> {
    text.parse().map_err(|e: Error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e))
    })
}

/// A count in a column; SQLite has no unsigned integers.
pub(crate) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn layer(txn: &Transaction<'_>, diff_id: &Digest) -> Result<Option<LayerRow>> {
    let sql = "SELECT bytes, shared, entries FROM layers WHERE diff_id = ?1";
    let row = txn
        .prepare_cached(sql)?
        .query_row([diff_id.to_string()], |row| {
            Ok(LayerRow {
                diff_id: *diff_id,
                bytes: count(row.get(0)?),
                shared: count(row.get(1)?),
                entries: count(row.get(2)?),
            })
        })
        .optional()?;
    Ok(row)
}

pub(crate) fn layers(txn: &Transaction<'_>) -> Result<Vec<LayerRow>> {
    let mut query = txn.prepare_cached("SELECT diff_id, bytes, shared, entries FROM layers")?;
    let rows = query.query_map([], |row| {
        Ok(LayerRow {
            diff_id: digest(&row.get::<_, String>(0)?)?,
            bytes: count(row.get(1)?),
            shared: count(row.get(2)?),
            entries: count(row.get(3)?),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn add_layer(
    txn: &Transaction<'_>,
    row: &LayerRow,
    objects: &[(Content, PathBuf)],
) -> Result<()> {
    txn.execute(
        "INSERT INTO layers (diff_id, bytes, shared, entries) VALUES (?1, ?2, ?3, ?4)",
        params![
            row.diff_id.to_string(),
            signed(row.bytes),
            signed(row.shared),
            signed(row.entries)
        ],
    )?;
    objects::add(txn, &row.diff_id, objects)
}

/// Notes which layer a blob becomes.
pub(crate) fn add_blob(txn: &Transaction<'_>, blob: &Digest, diff_id: &Digest) -> Result<()> {
    let sql = "INSERT INTO blobs (blob, diff_id) VALUES (?1, ?2) \
               ON CONFLICT (blob) DO UPDATE SET diff_id = ?2";
    txn.prepare_cached(sql)?.execute([blob.to_string(), diff_id.to_string()])?;
    Ok(())
}

/// The layer that a blob becomes, where that is there.
pub(crate) fn layer_of_blob(txn: &Transaction<'_>, blob: &Digest) -> Result<Option<Digest>> {
    let sql = "SELECT diff_id FROM blobs WHERE blob = ?1";
    let mut query = txn.prepare_cached(sql)?;
    let found = query.query_row([blob.to_string()], |row| digest(&row.get::<_, String>(0)?));
    Ok(found.optional()?)
}

/// The layers of an image, lowest first.
pub(crate) fn layers_of(txn: &Transaction<'_>, image: &Digest) -> Result<Vec<Digest>> {
    let sql = "SELECT diff_id FROM image_layers WHERE image = ?1 ORDER BY position";
    let mut query = txn.prepare_cached(sql)?;
    let rows = query.query_map([image.to_string()], |row| digest(&row.get::<_, String>(0)?))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
