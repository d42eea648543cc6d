//! Files of lower layers that have several names: one copy for all of them.
//!
//! A name that nobody has looked up would show the old data after the copy-up of another. So the copy goes into an index
//! in the work directory first, under what identifies the lower inode; whoever meets that inode under a further name
//! finds the copy there. Names are links of it, made when they are known or are about to change. How many names the
//! union shows is kept with the file, as the difference to a number of links that changes in the same step.
//!
//! Source: overlayfs.rst, "Inode properties" (`index=on`); kernel `fs/overlayfs`, OVL_XATTR_NLINK.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use layer::{Kind, Namespace, WANTED};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Statx, XattrFlags, lgetxattr, linkat, lsetxattr, openat,
    statx, unlinkat,
};
use rustix::io::Errno;

use crate::complete::READ;
use crate::copy_up::same_times;
use crate::error::{Result, Step, call};
use crate::find::{Name, Within};
use crate::node::{Node, Rest};
use crate::origin::path;
use crate::place::{Part, Place};
use crate::resolve::LayerIndex;
use crate::stack::{Real, Union};
use crate::upper::DIRECTORY;

/// The directory in the work directory.
pub(crate) const DIR: &str = "index";

/// The attribute that says how many names the union shows.
const NLINK: &str = "nlink";

/// The index of an upper layer.
#[derive(Debug)]
pub(crate) struct Index {
    pub dir: Arc<OwnedFd>,
    any: AtomicBool,
    /// Grows with every copy that comes into it.
    generation: AtomicU64,
}

/// A node whose inode is in the index.
#[derive(Debug, Clone)]
pub(crate) struct Indexed {
    /// Its name there.
    pub name: Box<OsStr>,
    /// The names that the union shows of it.
    pub links: u32,
}

impl Index {
    /// Opens the index in the outer work directory, and removes what no name shows any more.
    pub fn open(outer: &OwnedFd, namespace: Namespace) -> std::result::Result<Self, Errno> {
        match rustix::fs::mkdirat(outer, DIR, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        let dir = openat(outer, DIR, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        let mut any = false;
        for (name, stat) in files(&dir)? {
            let gone = match read_links(&dir, &name, namespace)? {
                Some(Links::Upper(more)) => i64::from(stat.stx_nlink) + more <= 0,
                // The kernel stages its copies here.
                _ => name.as_bytes().starts_with(b"#"),
            };
            if gone {
                unlinkat(&dir, &*name, AtFlags::empty())?;
            }
            any |= !gone;
        }
        let dir = Arc::new(dir);
        Ok(Self { dir, any: AtomicBool::new(any), generation: AtomicU64::new(0) })
    }

    /// How often something has come in.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// A copy has come in.
    pub fn added(&self) {
        self.any.store(true, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// The files of an index. Directories and whiteouts, which the kernel has there for NFS, are none.
fn files(dir: &OwnedFd) -> std::result::Result<Vec<(Box<OsStr>, Statx)>, Errno> {
    let mut files = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let stat = statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, WANTED)?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let whiteout = kind == FileType::CharacterDevice
            && (stat.stx_rdev_major, stat.stx_rdev_minor) == (0, 0);
        if kind != FileType::Directory && !whiteout {
            files.push((Box::from(name), stat));
        }
    }
    Ok(files)
}

/// Whether an index has changed files that a name of a lower layer shows and the upper layer has not: without the index,
/// the old file would be seen under that name.
pub(crate) fn has_hidden_names(
    outer: &OwnedFd,
    namespace: Namespace,
) -> std::result::Result<bool, Errno> {
    let dir = match openat(outer, DIR, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(e),
    };
    for (name, _) in files(&dir)? {
        // The link in the index is one that is not shown.
        match read_links(&dir, &name, namespace)? {
            Some(Links::Upper(more)) if more < 0 => {}
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// How many names the union shows: more than there are links of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Links {
    /// Of the copy.
    Upper(i64),
    /// Of the file in the lower layer.
    Lower(i64),
}

impl Links {
    fn decode(value: &[u8]) -> Option<Self> {
        let (kind, more) = value.split_first()?;
        let signed = more.first().is_some_and(|sign| matches!(sign, b'+' | b'-'));
        let more = std::str::from_utf8(more).ok().filter(|_| signed)?.parse().ok()?;
        match kind {
            b'U' => Some(Self::Upper(more)),
            b'L' => Some(Self::Lower(more)),
            _ => None,
        }
    }

    fn encode(self) -> String {
        match self {
            Self::Upper(more) => format!("U{more:+}"),
            Self::Lower(more) => format!("L{more:+}"),
        }
    }
}

fn read_links(
    dir: &OwnedFd,
    name: &OsStr,
    namespace: Namespace,
) -> std::result::Result<Option<Links>, Errno> {
    let mut value = [0; 32];
    match lgetxattr(path(dir, name), namespace.attribute(NLINK).as_str(), &mut value) {
        Ok(len) => Ok(Links::decode(&value[..len])),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE | Errno::PERM) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The name in the index of an inode whose origin mark has this value.
fn name_of(origin: &[u8]) -> Box<OsStr> {
    let digit = |digit: u8| char::from_digit(digit.into(), 16).unwrap_or('0');
    let name: String =
        origin.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
    Box::from(OsStr::new(&name))
}

impl Union {
    fn index(&self) -> Option<&Index> {
        self.upper.as_ref().and_then(|upper| upper.index.as_ref())
    }

    /// See [`Index::generation`]; 0 where there is no index.
    pub(crate) fn index_generation(&self) -> u64 {
        self.index().map_or(0, Index::generation)
    }

    /// Where a node of the index really is.
    pub(crate) fn in_index(&self, indexed: &Indexed) -> Option<Real> {
        Some(Real::At(Arc::clone(&self.index()?.dir), indexed.name.to_os_string()))
    }

    /// Puts what was found in a lower layer, with several links there, right: its copy may be in the index.
    pub(crate) fn look_in_index(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        found: Name,
    ) -> Result<Name> {
        let Some(index) = self.index().filter(|index| index.any()) else { return Ok(found) };
        if found.stat.stx_nlink < 2 {
            return Ok(found);
        }
        let fail = |what| move |e| call(&self.path_in(parent, name), Step::Read, what, e);
        let origin = match found.body.lower.first() {
            None => self.origin(parent, name)?,
            Some(part) => {
                let dir = self.dir_of_part(parent, part)?;
                self.origin_of(&Real::At(dir, part.name.to_os_string()), &found.stat)
                    .map_err(fail("name_to_handle_at"))?
            }
        };
        let Some(hex) = origin.map(|origin| name_of(&origin)) else { return Ok(found) };
        let copy = match statx(&*index.dir, &*hex, AtFlags::SYMLINK_NOFOLLOW, WANTED) {
            Ok(copy) => copy,
            Err(Errno::NOENT) => return Ok(found),
            Err(e) => return Err(fail("statx")(e)),
        };
        let kind = |stat: &Statx| FileType::from_raw_mode(stat.stx_mode.into());
        if kind(&copy) != kind(&found.stat) {
            return Ok(found);
        }
        let stored = read_links(&index.dir, &hex, self.namespace).map_err(fail("lgetxattr"))?;
        let Name { stat, ino, mut body, .. } = found;
        let links = if body.upper {
            if copy.stx_ino != stat.stx_ino {
                return Ok(Name { stat, layer: LayerIndex(0), body, ino });
            }
            match stored {
                Some(Links::Upper(more)) => i64::from(copy.stx_nlink) + more,
                Some(Links::Lower(more)) => match self.lower_links(parent, name)? {
                    Some(lower) => i64::from(lower) + more,
                    None => i64::from(copy.stx_nlink) - 1,
                },
                None => i64::from(copy.stx_nlink),
            }
        } else {
            match stored {
                Some(Links::Upper(more)) => i64::from(copy.stx_nlink) + more,
                Some(Links::Lower(more)) => i64::from(stat.stx_nlink) + more,
                None => i64::from(copy.stx_nlink),
            }
        };
        let ino = ino.or_else(|| {
            (!body.upper).then(|| self.shown_ino(crate::stack::device(&stat), stat.stx_ino))
        });
        if !body.upper {
            body.rest = self.rest_of_indexed(parent, name, &index.dir, &hex, &body.lower[0])?;
            body.lower = crate::place::Parts::None;
            body.upper = true;
        }
        let links = u32::try_from(links.max(1)).unwrap_or(u32::MAX);
        body.index = Some(Box::new(Indexed { name: hex, links }));
        Ok(Name { stat: copy, layer: LayerIndex(0), body, ino })
    }

    /// Where the data is of a file in the index that the kernel left without.
    fn rest_of_indexed(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        dir: &OwnedFd,
        hex: &OsStr,
        lower: &Part,
    ) -> Result<Option<Box<Rest>>> {
        let fail = |what| move |e| call(&self.path_in(parent, name), Step::Read, what, e);
        let stat = statx(dir, hex, AtFlags::SYMLINK_NOFOLLOW, WANTED).map_err(fail("statx"))?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile
            || stat.stx_size == 0
        {
            return Ok(None);
        }
        let file = openat(dir, hex, READ, Mode::empty()).map_err(fail("openat"))?;
        let without = layer::mark::is_metacopy(&file, self.namespace).map_err(fail("fgetxattr"))?;
        Ok(without.then(|| Box::new(Rest::Below(lower.clone()))))
    }

    /// How many links the lower layer's file has that `name` of the upper one is a copy of.
    fn lower_links(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Option<u32>> {
        let lower = parent.body.read().lower.clone();
        for part in lower.iter() {
            let within = Within::Part(part.clone());
            let (_, _, probe) = self.probe_within(parent.id, within, name)?;
            match (probe.kind, probe.stat) {
                (Kind::Absent, _) => {}
                (Kind::Leaf, Some(stat)) => return Ok(Some(stat.stx_nlink)),
                _ => break,
            }
        }
        Ok(None)
    }

    /// The name that the copy of a lower inode gets in the index, and the value of its origin mark; none where it has
    /// one name only, or can't be identified for good.
    pub(crate) fn index_name(
        &self,
        node: &Node,
        stat: &Statx,
        real: &Real,
    ) -> Result<Option<(Box<OsStr>, Vec<u8>)>> {
        if self.index().is_none() || node.is_dir() || stat.stx_nlink < 2 {
            return Ok(None);
        }
        let device = crate::stack::device(stat);
        // Where the kernel does not tell the file system's UUID, it would take the entry for a stale one.
        let known = self.file_systems.iter().any(|(d, uuid)| *d == device && uuid.is_some());
        if !known {
            return Ok(None);
        }
        let origin = self.origin_of(real, stat);
        let origin = origin.map_err(|e| self.fail(node, Step::CopyUp, "name_to_handle_at", e))?;
        Ok(origin.map(|origin| (name_of(&origin), origin)))
    }

    /// Marks a staged copy for the index: false where it can't carry the marks.
    pub(crate) fn mark_indexed(
        &self,
        work: &OwnedFd,
        temp: &OsStr,
        origin: &[u8],
    ) -> std::result::Result<bool, Errno> {
        let set = |name: &str, value: &[u8]| {
            let attribute = self.namespace.attribute(name);
            match lsetxattr(path(work, temp), attribute.as_str(), value, XattrFlags::empty()) {
                Ok(()) => Ok(true),
                // `user.` attributes are for files and directories only.
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC | Errno::DQUOT) => Ok(false),
                Err(e) => Err(e),
            }
        };
        Ok(set(NLINK, Links::Lower(0).encode().as_bytes())? && set("origin", origin)?)
    }

    /// Publishes a staged copy: under every name of the lower inode at once, since all are looked up in the index.
    pub(crate) fn publish_in_index(
        &self,
        node: &Node,
        work: &OwnedFd,
        temp: &OsStr,
        hex: &OsStr,
    ) -> Result<()> {
        let Some(index) = self.index() else { return Ok(()) };
        let how = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(work, temp, &*index.dir, hex, how)
            .map_err(|e| self.fail(node, Step::Publish, "renameat2", e))?;
        index.added();
        Ok(())
    }

    /// Gives a node of the index one of its names in the upper layer, where it has it not yet; its directory is there.
    /// `node.change` is held.
    pub(crate) fn link_up(&self, node: &Node, place: &Place) -> Result<()> {
        let Some((index, indexed)) = self.indexed(node) else { return Ok(()) };
        let fail = |what| move |e| self.fail(node, Step::CopyUp, what, e);
        let dir = self.upper_dir(&place.parent)?;
        match statx(&*dir, &*place.name, AtFlags::SYMLINK_NOFOLLOW, WANTED) {
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(fail("statx")(e)),
        }
        // A count that the new link does not change.
        if let Some(lower) = self.lower_links(&place.parent, &place.name)? {
            self.store_links(node, Links::Lower(i64::from(indexed.links) - i64::from(lower)))?;
        }
        self.mark_impure(&place.parent)?;
        same_times(&dir, || {
            linkat(&*index.dir, &*indexed.name, &*dir, &*place.name, AtFlags::empty())
        })
        .map_err(fail("linkat"))?;
        self.names_change(node)
    }

    /// Before a link of the copy comes or goes with a name: the count follows it. Nothing where the node is not in the
    /// index. `node.change` is held.
    pub(crate) fn names_change(&self, node: &Node) -> Result<()> {
        let Some((index, indexed)) = self.indexed(node) else { return Ok(()) };
        let copy = statx(&*index.dir, &*indexed.name, AtFlags::SYMLINK_NOFOLLOW, WANTED)
            .map_err(|e| self.fail(node, Step::Change, "statx", e))?;
        self.store_links(node, Links::Upper(i64::from(indexed.links) - i64::from(copy.stx_nlink)))
    }

    /// One name more is shown of a node.
    pub(crate) fn name_came(&self, node: &Node) {
        if let Some(indexed) = node.body.write().index.as_mut() {
            indexed.links = indexed.links.saturating_add(1);
        }
    }

    /// One name less is shown of a node; with the last one, what is in the index goes.
    pub(crate) fn name_went(&self, node: &Node) -> Result<()> {
        let last = {
            let mut body = node.body.write();
            let Some(indexed) = body.index.as_mut() else { return Ok(()) };
            indexed.links = indexed.links.saturating_sub(1);
            if indexed.links > 0 { None } else { body.index.take() }
        };
        match (last, self.index()) {
            (Some(last), Some(index)) => unlinkat(&*index.dir, &*last.name, AtFlags::empty())
                .map_err(|e| self.fail(node, Step::Remove, "unlinkat", e)),
            _ => Ok(()),
        }
    }

    /// Whether a node is a file of a lower layer that would have its copy in the index.
    pub(crate) fn belongs_in_index(&self, node: &Node) -> bool {
        self.index().is_some() && !node.body.read().upper && self.table.has_names(node.id)
    }

    fn indexed(&self, node: &Node) -> Option<(&Index, Indexed)> {
        let indexed = node.body.read().index.as_deref().cloned()?;
        Some((self.index()?, indexed))
    }

    fn store_links(&self, node: &Node, links: Links) -> Result<()> {
        let Some((index, indexed)) = self.indexed(node) else { return Ok(()) };
        let attribute = self.namespace.attribute(NLINK);
        let at = path(&index.dir, &indexed.name);
        lsetxattr(at, attribute.as_str(), links.encode().as_bytes(), XattrFlags::empty())
            .map_err(|e| self.fail(node, Step::Change, "lsetxattr", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_as_they_are_written() {
        for links in [Links::Upper(-1), Links::Upper(0), Links::Upper(12), Links::Lower(-3)] {
            assert_eq!(Links::decode(links.encode().as_bytes()), Some(links));
        }
        assert_eq!(Links::Lower(0).encode(), "L+0");
        for wrong in ["", "U", "U1", "X+1", "U+", "U+x", "U+1 "] {
            assert_eq!(Links::decode(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_name_in_the_index_is_the_mark_in_hexadecimal() {
        assert_eq!(&*name_of(&[0, 0xfb, 0x1d]), OsStr::new("00fb1d"));
    }
}
