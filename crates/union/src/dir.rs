//! Listings: each name of a merged directory once, whatever layer shows it.
//!
//! Nobody tells when a directory is opened and closed: it is a snapshot that is taken whenever it is read from the start,
//! and [remembered](crate::listings) for who reads on.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use layer::{Kind, WANTED, mark};
use rustix::fs::{AtFlags, FileType, RawDir, statx};
use rustix::io::Errno;

use crate::error::{Result, Step, refused};
use crate::listings::Listing;
use crate::node::{Node, NodeId};
use crate::stack::{Entry, Union, device};

/// Bytes of names that are read at a time, as by the C library.
const BUFFER: usize = 32 << 10;

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: OsString,
    /// The inode number that `stat` shows.
    pub ino: u64,
    /// Its kind.
    pub kind: FileType,
    /// Where it is in the listing: 1 or more, growing, and another's never.
    pub place: u32,
}

impl Union {
    /// The names of a directory, `.` and `..` not among them. `from_start` takes a new snapshot; otherwise it is the last
    /// one as long as it is remembered, in which those that remained have kept their places.
    ///
    /// Cost of a snapshot: the names of every layer of the directory, read once.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE; a layer's own: a directory that can't be read is never shown as an empty one.
    pub fn read_dir(&self, node: NodeId, from_start: bool) -> Result<Arc<Listing>> {
        if !from_start && let Some(known) = self.listings.get(node) {
            return Ok(known);
        }
        let dir = self.node(node)?;
        if !dir.is_dir() {
            return Err(refused(&dir.path().unwrap_or_default(), Errno::NOTDIR));
        }
        let _names = dir.names.read();
        Ok(self.listings.put(node, self.list(&dir)?))
    }

    /// Somebody has got the last name of a directory: what is remembered of it is not so urgent any more.
    pub fn read_to_end(&self, dir: NodeId) {
        self.listings.read(dir);
    }

    /// One entry of a directory as a lookup of it gives; none where it has gone since.
    ///
    /// # Errors
    /// As [`Union::lookup`], but for ENOENT.
    pub fn lookup_entry(&self, dir: NodeId, name: &OsStr) -> Result<Option<Entry>> {
        match self.lookup(dir, name) {
            Ok(entry) => Ok(Some(entry)),
            Err(e) if e.errno() == Errno::NOENT => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Waits until the names of a directory are on disk.
    ///
    /// # Errors
    /// The backing file system's own.
    pub fn fsync_dir(&self, dir: NodeId) -> Result<()> {
        let dir = self.node(dir)?;
        let gone = dir.place().is_none() && dir.id != NodeId::ROOT;
        if gone || self.upper.as_ref().is_none_or(|upper| upper.volatile) || !dir.body.read().upper
        {
            return Ok(());
        }
        let fd = self.upper_dir(&dir)?;
        rustix::fs::fsync(&*fd).map_err(|e| self.fail(&dir, Step::Change, "fsync", e))
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
        let mut buffer = Vec::with_capacity(BUFFER);
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
            let mut names = RawDir::new(&fd, buffer.spare_capacity_mut());
            while let Some(entry) = names.next() {
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
                shown.push(DirEntry { name: name.to_owned(), ino, kind, place: 0 });
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
