//! Snapshots as containerd has them: a chain of directories, each committed but the last.
//!
//! Where a snapshot is a layer of the store, its tree is that layer's, and `layer` in its directory leads there: a name
//! that is short, since the kernel takes all lower directories of a mount in one page.
//!
//! A snapshot's directory is made within the transaction that writes its row, so that a directory without a row is
//! litter to whoever has the database to itself.
//!
//! Source: containerd `core/snapshots`: the interface's rules, and which error each breach has.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, Transaction, params};

use crate::error::{At, Error, Result};
use crate::id::{Digest, on_chain};
use crate::meta;
use crate::store::Store;

/// In a snapshot's directory, what leads to the tree of its layer.
pub(crate) const LAYER: &str = "layer";

/// What a snapshot can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read only, and gone when it is removed.
    View,
    /// Written to.
    Active,
    /// Never changes; others stand on it.
    Committed,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// One name space for all kinds.
    pub name: String,
    /// The name of the snapshot below.
    pub parent: Option<String>,
    /// What it can be used for.
    pub kind: Kind,
    /// When it was made, or committed: nanoseconds since 1970.
    pub created: i64,
    /// When its labels changed last.
    pub updated: i64,
    /// What its owner says of it.
    pub labels: BTreeMap<String, String>,
}

/// The directories of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// What it can be used for.
    pub kind: Kind,
    /// Its own tree.
    pub upper: PathBuf,
    /// The scratch directory of a union with it.
    pub work: PathBuf,
    /// The trees below, uppermost first.
    pub lowers: Vec<PathBuf>,
    /// What its owner says of it.
    pub labels: BTreeMap<String, String>,
}

/// Which rule an operation would break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No such snapshot.
    #[error("there is no such snapshot")]
    Absent,
    /// The name is in use.
    #[error("the name is in use")]
    Exists,
    /// Only what is committed can be stood on.
    #[error("it is not committed, so nothing can stand on it")]
    ParentNotCommitted,
    /// Only what is active can be committed.
    #[error("it is not active, so it can't be committed")]
    NotActive,
    /// What is committed is not mounted.
    #[error("it is committed: prepare or view it to mount it")]
    Committed,
    /// Only on what is committed can it be put when it is committed itself.
    #[error("the parent that it is to get is not committed")]
    NewParentNotCommitted,
    /// It has a parent already, and can't get another.
    #[error("it has another parent already")]
    OtherParent,
    /// Others stand on it.
    #[error("cannot remove it: other snapshots stand on it")]
    HasChildren,
}

pub(crate) struct Row {
    pub id: i64,
    pub kind: Kind,
    pub parent: Option<i64>,
    /// The layer that it is, or stands on first.
    pub layer: Option<Digest>,
    /// Whether its own tree counts.
    pub own: bool,
    /// The chain of layers that it shows, where it is layers only.
    pub chain: Option<Digest>,
}

fn kind(number: i64) -> Kind {
    match number {
        1 => Kind::View,
        2 => Kind::Active,
        _ => Kind::Committed,
    }
}

fn number(kind: Kind) -> i64 {
    match kind {
        Kind::View => 1,
        Kind::Active => 2,
        Kind::Committed => 3,
    }
}

pub(crate) fn fault<T>(name: &str, fault: Fault) -> Result<T> {
    Err(Error::Snapshot { name: name.to_owned(), fault })
}

const ROW: &str = "SELECT id, kind, parent, diff_id, own, chain FROM snapshots";

fn columns(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let digest = |at| -> rusqlite::Result<Option<Digest>> {
        row.get::<_, Option<String>>(at)?.map(|text| meta::digest(&text)).transpose()
    };
    Ok(Row {
        id: row.get(0)?,
        kind: kind(row.get(1)?),
        parent: row.get(2)?,
        layer: digest(3)?,
        own: row.get(4)?,
        chain: digest(5)?,
    })
}

pub(crate) fn row(txn: &Transaction<'_>, name: &str) -> Result<Option<Row>> {
    let mut query = txn.prepare_cached(&format!("{ROW} WHERE name = ?1"))?;
    Ok(query.query_row([name], columns).optional()?)
}

pub(crate) fn row_of(txn: &Transaction<'_>, id: i64) -> Result<Option<Row>> {
    let mut query = txn.prepare_cached(&format!("{ROW} WHERE id = ?1"))?;
    Ok(query.query_row([id], columns).optional()?)
}

fn must(txn: &Transaction<'_>, name: &str) -> Result<Row> {
    row(txn, name)?.map_or_else(|| fault(name, Fault::Absent), Ok)
}

pub(crate) fn committed(txn: &Transaction<'_>, name: &str) -> Result<Row> {
    let found = must(txn, name)?;
    if found.kind == Kind::Committed { Ok(found) } else { fault(name, Fault::ParentNotCommitted) }
}

const INFO: &str = "SELECT s.name, p.name, s.kind, s.created, s.updated, s.labels \
     FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent";

fn info(row: &rusqlite::Row<'_>) -> rusqlite::Result<Snapshot> {
    let labels: String = row.get(5)?;
    let labels = serde_json::from_str(&labels).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(5, rusqlite::types::Type::Text, Box::new(e))
    })?;
    Ok(Snapshot {
        name: row.get(0)?,
        parent: row.get(1)?,
        kind: kind(row.get(2)?),
        created: row.get(3)?,
        updated: row.get(4)?,
        labels,
    })
}

pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

pub(crate) fn json(labels: &BTreeMap<String, String>) -> String {
    serde_json::json!(labels).to_string()
}

impl Store {
    pub(crate) fn snapshot_dir(&self, id: i64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    /// Makes a snapshot on a committed one, or on nothing.
    ///
    /// Cost: three directories and one transaction, whatever it stands on; two waits for the disk.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: the name is in use; the parent is absent or not committed.
    pub fn prepare_snapshot(
        &self,
        name: &str,
        parent: Option<&str>,
        kind: Kind,
        labels: &BTreeMap<String, String>,
    ) -> Result<Stack> {
        self.meta.write(|txn| {
            if row(txn, name)?.is_some() {
                return fault(name, Fault::Exists);
            }
            let parent = parent.map(|parent| committed(txn, parent)).transpose()?;
            let parent = parent.map(|parent| parent.id);
            txn.execute(
                "INSERT INTO snapshots (name, kind, parent, created, updated, labels) \
                 VALUES (?1, ?2, ?3, ?4, ?4, ?5)",
                params![name, number(kind), parent, now(), json(labels)],
            )?;
            let id = txn.last_insert_rowid();
            let dir = self.snapshot_dir(id);
            // Of a transaction that was never committed.
            self.discard(&dir)?;
            let step = "making the snapshot";
            self.before(step, &dir)?;
            for sub in ["fs", "work"] {
                let path = dir.join(sub);
                fs::create_dir_all(&path).at(&path, step)?;
            }
            let upper = dir.join("fs");
            let row = Row { id, kind, parent, layer: None, own: true, chain: None };
            let stack = self.stack(txn, &row, labels.clone())?;
            let below = stack.lowers.first();
            let like = below.map(|path| fs::metadata(path).at(path, step)).transpose()?;
            let mode = like.as_ref().map_or(0o755, MetadataExt::mode);
            if let Some(like) = &like {
                std::os::unix::fs::chown(&upper, Some(like.uid()), Some(like.gid()))
                    .at(&upper, step)?;
            }
            fs::set_permissions(&upper, fs::Permissions::from_mode(mode & 0o7777))
                .at(&upper, step)?;
            self.sync_dir(&dir, step)?;
            Ok(stack)
        })
    }

    fn stack(
        &self,
        txn: &Transaction<'_>,
        row: &Row,
        labels: BTreeMap<String, String>,
    ) -> Result<Stack> {
        let dir = self.snapshot_dir(row.id);
        let mut lowers = Vec::new();
        lowers.extend(row.layer.is_some().then(|| dir.join(LAYER)));
        let mut next = row.parent;
        while let Some(id) = next {
            let Some(below) = row_of(txn, id)? else { break };
            let dir = self.snapshot_dir(id);
            lowers.extend(below.own.then(|| dir.join("fs")));
            lowers.extend(below.layer.is_some().then(|| dir.join(LAYER)));
            next = below.parent;
        }
        let (upper, work) = (dir.join("fs"), dir.join("work"));
        Ok(Stack { kind: row.kind, upper, work, lowers, labels })
    }

    /// The directories of a snapshot that is not committed.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: absent, or committed.
    pub fn snapshot_stack(&self, name: &str) -> Result<Stack> {
        self.meta.read(|txn| {
            let row = must(txn, name)?;
            if row.kind == Kind::Committed {
                return fault(name, Fault::Committed);
            }
            let mut query = txn.prepare_cached(&format!("{INFO} WHERE s.id = ?1"))?;
            let labels = query.query_row([row.id], info)?.labels;
            self.stack(txn, &row, labels)
        })
    }

    /// Gives an active snapshot the name `name`, under which it never changes again. One that stands on nothing may get
    /// a `parent` now.
    ///
    /// Cost: one transaction, whatever is in it.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: the name is in use; `active` is absent or not active; it has another parent; the parent is absent
    /// or not committed.
    pub fn commit_snapshot(
        &self,
        active: &str,
        name: &str,
        parent: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<()> {
        self.meta.write(|txn| {
            if row(txn, name)?.is_some() {
                return fault(name, Fault::Exists);
            }
            let found = must(txn, active)?;
            if found.kind != Kind::Active {
                return fault(active, Fault::NotActive);
            }
            let parent = match (found.parent, parent) {
                (None, None) => None,
                (Some(known), None) => row_of(txn, known)?,
                (Some(known), Some(parent)) => {
                    let same = row(txn, parent)?.filter(|parent| parent.id == known);
                    Some(same.map_or_else(|| fault(active, Fault::OtherParent), Ok)?)
                }
                (None, Some(parent)) => match must(txn, parent)? {
                    parent if parent.kind == Kind::Committed => Some(parent),
                    _ => return fault(active, Fault::NewParentNotCommitted),
                },
            };
            let upper = self.snapshot_dir(found.id).join("fs");
            let own = found.layer.is_none() || !is_empty(&upper)?;
            let chain = found.layer.filter(|_| !own).and_then(|layer| match &parent {
                None => Some(layer),
                Some(parent) => Some(on_chain(Some(parent.chain.as_ref()?), &layer)),
            });
            txn.execute(
                "UPDATE snapshots SET name = ?2, kind = 3, parent = ?3, created = ?4, updated = ?4, \
                 labels = ?5, own = ?6, chain = ?7 WHERE id = ?1",
                params![
                    found.id,
                    name,
                    parent.map(|parent| parent.id),
                    now(),
                    json(labels),
                    own,
                    chain.map(|chain| chain.to_string())
                ],
            )?;
            Ok(())
        })
    }

    /// Removes a snapshot on which nothing stands. Its files go later, in [`Store::empty_trash`].
    ///
    /// # Errors
    /// [`Error::Snapshot`]: absent, or others stand on it.
    pub fn remove_snapshot(&self, name: &str) -> Result<()> {
        let id = self.meta.write(|txn| {
            let found = must(txn, name)?;
            let children = "SELECT 1 FROM snapshots WHERE parent = ?1";
            if txn.prepare_cached(children)?.exists([found.id])? {
                return fault(name, Fault::HasChildren);
            }
            txn.execute("DELETE FROM snapshots WHERE id = ?1", [found.id])?;
            Ok(found.id)
        })?;
        self.discard(&self.snapshot_dir(id))
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: absent.
    pub fn snapshot(&self, name: &str) -> Result<Snapshot> {
        let found = self.meta.read(|txn| {
            let mut query = txn.prepare_cached(&format!("{INFO} WHERE s.name = ?1"))?;
            Ok(query.query_row([name], info).optional()?)
        })?;
        found.map_or_else(|| fault(name, Fault::Absent), Ok)
    }

    /// Every snapshot, the oldest first.
    ///
    /// # Errors
    /// The database's own.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.meta.read(|txn| {
            let mut query = txn.prepare_cached(&format!("{INFO} ORDER BY s.id"))?;
            let rows = query.query_map([], info)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Changes the labels of a snapshot.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: absent.
    pub fn update_snapshot(
        &self,
        name: &str,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> Result<Snapshot> {
        self.meta.write(|txn| {
            let found = must(txn, name)?;
            let mut query = txn.prepare_cached(&format!("{INFO} WHERE s.id = ?1"))?;
            let mut snapshot = query.query_row([found.id], info)?;
            change(&mut snapshot.labels);
            snapshot.updated = now();
            txn.execute(
                "UPDATE snapshots SET labels = ?2, updated = ?3 WHERE id = ?1",
                params![found.id, json(&snapshot.labels), snapshot.updated],
            )?;
            Ok(snapshot)
        })
    }

    /// Bytes and inodes of a snapshot's own tree.
    ///
    /// Cost: a walk of what is not a layer; of a committed one the first time only.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: absent; what can't be read.
    pub fn snapshot_usage(&self, name: &str) -> Result<(u64, u64)> {
        let (row, known) = self.meta.read(|txn| {
            let row = must(txn, name)?;
            let sql = "SELECT bytes, inodes FROM snapshots WHERE id = ?1";
            let known = txn.prepare_cached(sql)?.query_row([row.id], |row| {
                Ok(row.get::<_, Option<i64>>(0)?.zip(row.get::<_, Option<i64>>(1)?))
            })?;
            Ok((row, known))
        })?;
        if let Some((bytes, inodes)) = known {
            return Ok((meta::count(bytes), meta::count(inodes)));
        }
        let mut seen = std::collections::HashSet::new();
        let mut used = (0, 0);
        if row.own {
            used = usage(&self.snapshot_dir(row.id).join("fs"), &mut seen)?;
        }
        if let Some(layer) = &row.layer
            && let Some(layer) = self.meta.read(|txn| meta::layer(txn, layer))?
        {
            used = (used.0 + layer.bytes, used.1 + layer.entries);
        }
        if row.kind == Kind::Committed {
            self.meta.write(|txn| {
                txn.execute(
                    "UPDATE snapshots SET bytes = ?2, inodes = ?3 WHERE id = ?1",
                    params![row.id, meta::signed(used.0), meta::signed(used.1)],
                )?;
                Ok(())
            })?;
        }
        Ok(used)
    }

    /// Clears away directories of snapshots that have no row.
    pub(crate) fn recover_snapshots(&self) -> Result<()> {
        let names = self.names("snapshots")?;
        if names.is_empty() {
            return Ok(());
        }
        let known = self.meta.column("SELECT CAST(id AS TEXT) FROM snapshots")?;
        for name in names.iter().filter(|name| !known.contains(*name)) {
            // One that is being made has its row once we may write.
            self.meta.write(|txn| {
                let sql = "SELECT 1 FROM snapshots WHERE CAST(id AS TEXT) = ?1";
                if txn.prepare_cached(sql)?.exists([name])? {
                    return Ok(());
                }
                self.discard(&self.root.join("snapshots").join(name))
            })?;
        }
        Ok(())
    }
}

pub(crate) fn is_empty(dir: &Path) -> Result<bool> {
    Ok(fs::read_dir(dir).at(dir, "reading the snapshot")?.next().is_none())
}

fn usage(dir: &Path, seen: &mut std::collections::HashSet<u64>) -> Result<(u64, u64)> {
    let step = "measuring the snapshot";
    let own = fs::symlink_metadata(dir).at(dir, step)?;
    let mut used = (own.blocks() * 512, 1);
    for entry in fs::read_dir(dir).at(dir, step)? {
        let entry = entry.at(dir, step)?;
        let path = entry.path();
        let meta = fs::symlink_metadata(&path).at(&path, step)?;
        if meta.is_dir() {
            let (bytes, inodes) = usage(&path, seen)?;
            used = (used.0 + bytes, used.1 + inodes);
        } else if meta.nlink() == 1 || seen.insert(meta.ino()) {
            used = (used.0 + meta.blocks() * 512, used.1 + 1);
        }
    }
    Ok(used)
}
