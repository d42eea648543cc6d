//! Listings: each name of a merged directory once, whatever layer shows it.
//!
//! An open directory is a snapshot, taken when it is first read and again when it is read from the
//! start: names keep their places while it is read, as telldir(3) and seekdir(3) want.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer::{Kind, WANTED, mark};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FileType, statx};
use rustix::io::Errno;

use crate::error::{Result, Step, refused};
use crate::node::{Node, NodeId};
use crate::stack::{Entry, Union, device};

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: OsString,
    /// The inode number that `stat` shows.
    pub ino: u64,
    /// Its kind.
    pub kind: FileType,
}

/// An open directory of a union. It must go back through [`Union::close_dir`].
#[derive(Debug)]
pub struct OpenDir {
    node: Arc<Node>,
    listing: Mutex<Option<Arc<Vec<DirEntry>>>>,
}

impl OpenDir {
    /// The node that is open.
    pub fn node(&self) -> NodeId {
        self.node.id
    }
}

impl Union {
    /// Opens a directory.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE.
    pub fn open_dir(&self, node: NodeId) -> Result<Arc<OpenDir>> {
        let node = self.node(node)?;
        if !node.is_dir() {
            return Err(refused(&node.path().unwrap_or_default(), Errno::NOTDIR));
        }
        node.opens.fetch_add(1, Ordering::AcqRel);
        Ok(Arc::new(OpenDir { node, listing: Mutex::default() }))
    }

    /// Ends an open directory.
    pub fn close_dir(&self, open: &OpenDir) {
        self.table.closed(&open.node);
    }

    /// The names of an open directory, `.` and `..` not among them; `anew` takes a new snapshot.
    ///
    /// Cost of a snapshot: the names of every layer of the directory, read once.
    ///
    /// # Errors
    /// A layer's own: a directory that can't be read is never shown as an empty one.
    pub fn read_dir(&self, open: &OpenDir, anew: bool) -> Result<Arc<Vec<DirEntry>>> {
        let mut listing = open.listing.lock();
        if let Some(known) = listing.as_ref().filter(|_| !anew) {
            return Ok(Arc::clone(known));
        }
        let _names = open.node.names.read();
        let entries = Arc::new(self.list(&open.node)?);
        *listing = Some(Arc::clone(&entries));
        Ok(entries)
    }

    /// One entry of an open directory as a lookup of it gives; none where it has gone since.
    ///
    /// # Errors
    /// As [`Union::lookup`], but for ENOENT.
    pub fn lookup_entry(&self, open: &OpenDir, name: &OsStr) -> Result<Option<Entry>> {
        match self.lookup(open.node.id, name) {
            Ok(entry) => Ok(Some(entry)),
            Err(e) if e.errno() == Errno::NOENT => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Waits until the names of a directory are on disk.
    ///
    /// # Errors
    /// The backing file system's own.
    pub fn fsync_dir(&self, open: &OpenDir) -> Result<()> {
        if self.upper.as_ref().is_none_or(|upper| upper.volatile) || !open.node.body.read().upper {
            return Ok(());
        }
        let fd = self.upper_dir(&open.node)?;
        rustix::fs::fsync(&*fd).map_err(|e| self.fail(&open.node, Step::Change, "fsync", e))
    }

    /// The names of a directory whose `names` is held.
    pub(crate) fn list(&self, node: &Arc<Node>) -> Result<Vec<DirEntry>> {
        let fail = |name| move |e| self.fail(node, Step::Read, name, e);
        if node.place().is_none() && node.id != NodeId::ROOT {
            return Ok(Vec::new());
        }
        let parts = self.open_parts(node)?;
        let merges = parts.len() > 1;
        let mut shown = Vec::new();
        // Whether a name is decided: shown or hidden by a layer above.
        let mut decided: HashMap<OsString, ()> = HashMap::new();
        for (index, fd) in parts {
            let layer = &self.layers[usize::from(index.0)];
            let stat = statx(&fd, "", AtFlags::EMPTY_PATH, WANTED).map_err(fail("statx"))?;
            let device = device(&stat);
            let in_upper = self.upper.is_some() && index.0 == 0;
            let impure =
                in_upper && self.is_impure(node, index, None, &fd).map_err(fail("fgetxattr"))?;
            let whiteouts = layer.has_attribute_whiteouts(&fd)?;
            let mut hidden = Vec::new();
            let from = shown.len();
            for entry in Dir::read_from(&fd).map_err(fail("getdents64"))? {
                let entry = entry.map_err(fail("getdents64"))?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                if !in_upper {
                    if let Some(name) = mark::aufs_hidden(name) {
                        hidden.push(name.to_owned());
                    }
                    if mark::is_aufs(name) {
                        continue;
                    }
                }
                if decided.contains_key(name) {
                    continue;
                }
                let kind = match entry.file_type() {
                    plain @ (FileType::Directory
                    | FileType::Symlink
                    | FileType::Fifo
                    | FileType::Socket) => plain,
                    FileType::RegularFile if !whiteouts => FileType::RegularFile,
                    // A device or an empty file may be a whiteout; or the kind is not told.
                    _ => match self.kind(layer, &fd, name)? {
                        Some(kind) => kind,
                        None => {
                            hidden.push(name.to_owned());
                            continue;
                        }
                    },
                };
                let ino = match self.table.ino(node.id, name) {
                    Some(ino) => ino,
                    // Copies and merged directories have another number than their inodes.
                    None if in_upper && (impure || merges && kind == FileType::Directory) => {
                        let found = self.find(node, name)?.map(|found| self.candidate(found).ino);
                        found.unwrap_or_else(|| self.shown_ino(device, entry.ino()))
                    }
                    None => self.shown_ino(device, entry.ino()),
                };
                shown.push(DirEntry { name: name.to_owned(), ino, kind });
            }
            if merges {
                decided.extend(shown[from..].iter().map(|entry| (entry.name.clone(), ())));
                decided.extend(hidden.into_iter().map(|name| (name, ())));
            }
        }
        Ok(shown)
    }

    /// The kind of an entry; none for a whiteout.
    fn kind(
        &self,
        layer: &layer::Layer,
        dir: &std::os::fd::OwnedFd,
        name: &OsStr,
    ) -> Result<Option<FileType>> {
        let probe = layer.probe(dir, Path::new(""), name)?;
        Ok(match (probe.kind, probe.stat) {
            (Kind::Whiteout | Kind::Absent, _) | (_, None) => None,
            (_, Some(stat)) => Some(FileType::from_raw_mode(stat.stx_mode.into())),
        })
    }
}
