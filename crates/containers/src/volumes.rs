//! Volumes: directories of the store that outlive the containers that have them. Those that nobody has given a name have
//! one that is made up, and go with their container where that is asked for.
//!
//! `volumes/NAME/data` is what a container sees; beside it `fresh` says that none has had it yet. The first to start gets
//! what its image has at that place, as with Docker: a copy is made beside and renamed, so that a crash leaves all or
//! nothing of it.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use store::Store;

use crate::container::{Container, Volume, check_name, random_id};
use crate::tree::{self, At};
use crate::{Error, Result};

const DATA: &str = "data";
const FRESH: &str = "fresh";

/// A volume that has a name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Where its files are.
    pub path: PathBuf,
    /// The containers that have it, by name.
    pub containers: Vec<String>,
}

fn place(store: &Store, name: &str) -> PathBuf {
    store.root().join("volumes").join(name)
}

/// The files of the volume `name`, which is made if it is not there.
///
/// # Errors
/// [`Error::BadName`], [`Error::Io`].
pub fn create(store: &Store, name: &str) -> Result<PathBuf> {
    check_name(name)?;
    let dir = place(store, name);
    if !dir.join(DATA).is_dir() {
        fs::create_dir_all(&dir).map_err(|e| Error::io("make", &dir, e))?;
        let fresh = dir.join(FRESH);
        fs::write(&fresh, b"").map_err(|e| Error::io("write", &fresh, e))?;
        // Last of all: with it the volume is there.
        let data = dir.join(DATA);
        fs::create_dir(&data).or_else(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(Error::io("make", &data, e)),
        })?;
    }
    Ok(dir.join(DATA))
}

/// Gives a volume that nobody has named a name; it is made with the container that gets it.
///
/// # Errors
/// [`Error::Io`].
pub fn name(store: &Store, volume: &mut Volume) -> Result<()> {
    let name = random_id()?;
    volume.source = place(store, &name).join(DATA);
    volume.name = Some(name);
    Ok(())
}

/// Makes a volume that the store is to have.
pub(crate) fn make(store: &Store, volume: &Volume) -> Result<()> {
    volume.name.as_deref().map_or(Ok(()), |name| create(store, name).map(drop))
}

/// Moves a container's volumes that nobody has given a name to the trash, but for those that another one has.
pub(crate) fn discard(store: &Store, container: &Container) -> Result<()> {
    let own: Vec<&str> = container.config.volumes.iter().filter_map(anonymous_name).collect();
    if own.is_empty() {
        return Ok(());
    }
    let others = Container::list(store)?;
    let others = others.iter().filter(|other| other.id != container.id);
    let kept: Vec<&str> =
        others.flat_map(|o| &o.config.volumes).filter_map(|v| v.name.as_deref()).collect();
    for name in own.into_iter().filter(|name| !kept.contains(name)) {
        store.discard(&place(store, name))?;
    }
    Ok(())
}

fn anonymous_name(volume: &Volume) -> Option<&str> {
    volume.name.as_deref().filter(|_| volume.anonymous)
}

/// All volumes, by name.
///
/// # Errors
/// [`Error::Io`], [`Error::Store`].
pub fn list(store: &Store) -> Result<Vec<Named>> {
    let all = store.root().join("volumes");
    let entries = match fs::read_dir(&all) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", &all, e)),
    };
    let containers = Container::list(store)?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", &all, e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path().join(DATA);
        if !path.is_dir() {
            continue;
        }
        let has = |c: &&Container| c.config.volumes.iter().any(|v| v.name.as_ref() == Some(&name));
        let containers = containers.iter().filter(has).map(|c| c.name.clone()).collect();
        found.push(Named { name, path, containers });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Removes a volume with all its files.
///
/// # Errors
/// [`Error::Unknown`]; [`Error::InUse`] where containers have it.
pub fn remove(store: &Store, name: &str) -> Result<()> {
    let all = list(store)?;
    let Some(volume) = all.iter().find(|volume| volume.name == name) else {
        let names: Vec<&str> = all.iter().map(|volume| volume.name.as_str()).collect();
        let near = match names.as_slice() {
            [] => "; there are none".to_owned(),
            names => format!("; there are {}", names.join(", ")),
        };
        return Err(Error::Unknown { kind: "volume", name: name.to_owned(), near });
    };
    if !volume.containers.is_empty() {
        let (name, by) = (name.to_owned(), volume.containers.join(", "));
        return Err(Error::InUse { name, by });
    }
    tree::remove_path(&place(store, name))
}

/// Gives a volume that no container has had yet what the container's root at `merged` has at its place.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn fill(store: &Store, volume: &Volume, merged: &Path) -> Result<()> {
    let Some(name) = &volume.name else { return Ok(()) };
    let dir = place(store, name);
    let fresh = dir.join(FRESH);
    if !fresh.exists() {
        return Ok(());
    }
    let lock = fs::File::open(&dir).map_err(|e| Error::io("open", &dir, e))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| Error::io("lock", &dir, e))?;
    if !fresh.exists() {
        return Ok(());
    }
    let below = volume.destination.strip_prefix("/").unwrap_or(&volume.destination);
    // No link of the image leads out of it: one on the way is as good as nothing there.
    let parent = tree::directory(tree::root(merged)?, below.parent().unwrap_or(Path::new("")));
    if let (Ok(parent), Some(last)) = (parent, below.file_name()) {
        let from = At { dir: parent.as_fd(), name: last, shown: &volume.destination };
        let is_dir = |stat| tree::kind(&stat) == rustix::fs::FileType::Directory;
        if from.stat()?.is_some_and(is_dir) {
            let staged = dir.join("new");
            tree::remove_path(&staged)?;
            let to = tree::root(&dir)?;
            tree::copy(from, At { dir: to.as_fd(), name: "new".as_ref(), shown: &staged }, true)?;
            let data = dir.join(DATA);
            match fs::rename(&staged, &data) {
                // Somebody outside has put something in: that is what it has then.
                Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                    tree::remove_path(&staged)?;
                }
                done => done.map_err(|e| Error::io("fill", &data, e))?,
            }
            crate::snapshots::sync(&dir)?;
        }
    }
    fs::remove_file(&fresh).map_err(|e| Error::io("remove", &fresh, e))
}
