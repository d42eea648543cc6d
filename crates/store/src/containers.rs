//! Rows of containers: what keeps an image, and where its writable layer is. What a container does
//! is not the store's business.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, Transaction, params};

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::images::near;
use crate::meta;
use crate::store::{Store, container_lock};

/// A container's row.
#[derive(Debug, Clone)]
pub struct ContainerRow {
    /// 64 hex digits.
    pub id: String,
    /// The name that people use.
    pub name: String,
    /// The image that it stands on.
    pub image: Digest,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// What its keeper says of it, JSON.
    pub state: String,
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<ContainerRow> {
    Ok(ContainerRow {
        id: row.get(0)?,
        name: row.get(1)?,
        image: meta::digest(&row.get::<_, String>(2)?)?,
        created: row.get(3)?,
        state: row.get(4)?,
    })
}

/// Whether there is a container with this ID.
pub(crate) fn exists(txn: &Transaction<'_>, id: &str) -> Result<bool> {
    let sql = "SELECT 1 FROM containers WHERE id = ?1";
    Ok(txn.prepare_cached(sql)?.exists([id])?)
}

const COLUMNS: &str = "SELECT id, name, image, created, state FROM containers";

impl Store {
    /// The directory of a container's writable layer.
    pub fn writable_dir(&self, id: &str) -> PathBuf {
        self.root.join("rw").join(id)
    }

    /// Adds a container on an image, with an empty writable layer: `upper` and `work` in
    /// [`Store::writable_dir`]. Where it is not `kept`, a power cut may take it back.
    ///
    /// Cost: three directories and one transaction, whatever the image; one wait for the disk where it is kept.
    ///
    /// # Errors
    /// [`Error::NameTaken`]; [`Error::NoImage`] where it went meanwhile.
    pub fn add_container(
        &self,
        id: &str,
        name: &str,
        image: &Digest,
        state: &str,
        kept: bool,
    ) -> Result<()> {
        let dir = self.writable_dir(id);
        // Whoever opens the store takes a directory without a row and without this for litter.
        let lock = self.lock(&container_lock(id))?;
        self.make_writable_layer(&dir)?;
        let add = |txn: &Transaction<'_>| {
            let taken = txn
                .query_row("SELECT 1 FROM containers WHERE name = ?1", [name], |_| Ok(()))
                .optional()?;
            if taken.is_some() {
                return Err(Error::NameTaken { name: name.to_owned() });
            }
            let there = txn
                .query_row("SELECT 1 FROM images WHERE id = ?1", [image.to_string()], |_| Ok(()))
                .optional()?;
            if there.is_none() {
                return Err(Error::NoImage { name: image.to_string(), near: Vec::new() });
            }
            txn.execute(
                "INSERT INTO containers (id, name, image, created, state) VALUES (?1, ?2, ?3, unixepoch(), ?4)",
                params![id, name, image.to_string(), state],
            )?;
            Ok(())
        };
        let added = if kept { self.meta.write(add) } else { self.meta.write_unkept(add) };
        if added.is_err() {
            self.discard(&dir)?;
        }
        self.unlock(&container_lock(id), lock)?;
        added
    }

    /// Makes the directories of an empty writable layer.
    fn make_writable_layer(&self, dir: &Path) -> Result<()> {
        let step = "making the writable layer";
        for sub in ["upper", "work"] {
            let path = dir.join(sub);
            self.before(step, &path)?;
            fs::create_dir_all(&path).at(&path, step)?;
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let upper = dir.join("upper");
        fs::set_permissions(&upper, mode).at(&upper, step)
    }

    /// Makes the writable layer of a container anew that has none. A loss of power may keep a row and lose the directory
    /// that was made before it: the database overwrites its log in place at times, and syncing that makes no other name
    /// durable. Whatever is synced in the directory makes the directory durable too, so nothing was in it that anybody
    /// was promised. To wait for it would cost each container a second wait for the disk.
    pub(crate) fn remake_writable_layer(&self, id: &str) -> Result<()> {
        let Some(lock) = self.lock_if_free(&container_lock(id))? else { return Ok(()) };
        let dir = self.writable_dir(id);
        let there = dir.try_exists().at(&dir, "looking for the writable layer")?;
        if !there && self.meta.read(|txn| exists(txn, id))? {
            tracing::warn!(container = id, "its writable layer was not on the disk: it is empty");
            self.make_writable_layer(&dir)?;
        }
        self.unlock(&container_lock(id), lock)
    }

    /// Every container, the newest first.
    ///
    /// # Errors
    /// The database's own.
    pub fn containers(&self) -> Result<Vec<ContainerRow>> {
        self.meta.read(|txn| {
            let mut query =
                txn.prepare_cached(&format!("{COLUMNS} ORDER BY created DESC, rowid DESC"))?;
            let rows = query.query_map([], row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One container, by name, id, or the start of an id that only one has.
    ///
    /// # Errors
    /// [`Error::NoContainer`].
    pub fn container(&self, name: &str) -> Result<ContainerRow> {
        self.meta.read(|txn| {
            let mut exact =
                txn.prepare_cached(&format!("{COLUMNS} WHERE name = ?1 OR id = ?1 LIMIT 1"))?;
            if let Some(found) = exact.query_row([name], row).optional()? {
                return Ok(found);
            }
            if name.len() >= 4 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                // Ids are hexadecimal: what begins with the name lies between it and the name with a `g` behind.
                let sql = format!("{COLUMNS} WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2");
                let mut starts = txn.prepare_cached(&sql)?;
                let found: Vec<ContainerRow> =
                    starts.query_map([name], row)?.collect::<rusqlite::Result<_>>()?;
                if let [only] = found.as_slice() {
                    return Ok(only.clone());
                }
            }
            let mut query = txn.prepare_cached("SELECT name FROM containers")?;
            let names = query.query_map([], |row| row.get::<_, String>(0))?;
            let names: Vec<String> = names.collect::<rusqlite::Result<_>>()?;
            Err(Error::NoContainer { name: name.to_owned(), near: near(name, names) })
        })
    }

    /// Says something else of a container.
    ///
    /// # Errors
    /// [`Error::NoContainer`].
    pub fn set_container_state(&self, id: &str, state: &str) -> Result<()> {
        self.meta.write(|txn| {
            let sql = "UPDATE containers SET state = ?2 WHERE id = ?1";
            match txn.execute(sql, params![id, state])? {
                0 => Err(no_container(id)),
                _ => Ok(()),
            }
        })
    }

    /// Says of a container what `choose` makes of what is said of all, as one step: nobody says anything in between.
    ///
    /// # Errors
    /// [`Error::NoContainer`]; what `choose` says, of the container.
    pub fn choose_container_state(
        &self,
        id: &str,
        choose: impl FnOnce(&[String]) -> std::result::Result<String, String>,
    ) -> Result<()> {
        self.meta.write(|txn| {
            let mut query = txn.prepare_cached("SELECT state FROM containers")?;
            let all =
                query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
            let state = choose(&all).map_err(std::io::Error::other);
            let state =
                state.at(&self.writable_dir(id), "saying something else of the container")?;
            let sql = "UPDATE containers SET state = ?2 WHERE id = ?1";
            match txn.execute(sql, params![id, state])? {
                0 => Err(no_container(id)),
                _ => Ok(()),
            }
        })
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::NoContainer`].
    pub fn rename_container(&self, id: &str, name: &str) -> Result<()> {
        self.meta.write(|txn| {
            let taken = txn
                .query_row("SELECT 1 FROM containers WHERE name = ?1", [name], |_| Ok(()))
                .optional()?;
            if taken.is_some() {
                return Err(Error::NameTaken { name: name.to_owned() });
            }
            match txn.execute("UPDATE containers SET name = ?2 WHERE id = ?1", params![id, name])? {
                0 => Err(no_container(id)),
                _ => Ok(()),
            }
        })
    }

    /// Removes a container and its writable layer. The image stays.
    ///
    /// # Errors
    /// [`Error::NoContainer`].
    pub fn remove_container(&self, id: &str) -> Result<()> {
        self.meta.write(|txn| {
            match txn.execute("DELETE FROM containers WHERE id = ?1", [id])? {
                0 => Err(no_container(id)),
                _ => Ok(()),
            }
        })?;
        self.discard(&self.writable_dir(id))
    }
}

/// For an id, which nobody types.
fn no_container(id: &str) -> Error {
    Error::NoContainer { name: id.to_owned(), near: Vec::new() }
}
