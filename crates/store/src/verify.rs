//! A layer's tree against what its tar says of it: names and kinds, owners and modes, times, attributes and links.
//!
//! The tar itself is not made for it: the recipe has every header, and only those are read. Cost: the recipe is inflated
//! once more, and each name costs two or three system calls.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use layer::mark::{self, Opaque};
use rustix::fs::{
    AtFlags, Dir, FileType, OFlags, Stat, lgetxattr, llistxattr, makedev, readlinkat, statat,
};
use rustix::io::Errno;

use crate::tar::apply::{Options, clean, target};
use crate::tar::finish::kept;
use crate::tar::read::{Entry, Kind, Reader};
use crate::tar::recipe;

/// Differences that are told of a layer at most.
const TOLD: usize = 3;

/// What a name of the tree should be.
enum Node {
    /// A directory, with its entry where it has one.
    Dir {
        entry: Option<Entry>,
        opaque: bool,
    },
    /// Anything else; names of one file share their entry.
    Other(Rc<Entry>),
    Whiteout,
}

/// The tree that a tar makes.
struct Plan {
    nodes: BTreeMap<PathBuf, Node>,
}

/// What is wrong with the tree behind `layer`, whose recipe is at `path`; nothing where it is as its tar says.
///
/// # Errors
/// Of the recipe or the tree.
pub(crate) fn differences(
    path: &Path,
    layer: &OwnedFd,
    options: &Options,
) -> io::Result<Option<String>> {
    let plan = Plan::read(path)?;
    let tree = sys::beneath::open(layer, Path::new("fs"), OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|e| io::Error::other(e.to_string()))?;
    let mut look = Look { tree, options, found: Vec::new(), count: 0, inodes: BTreeMap::new() };
    look.all(&plan)?;
    if look.count == 0 {
        return Ok(None);
    }
    let more = look.count.saturating_sub(look.found.len());
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    Ok(Some(look.found.join("; ") + &rest))
}

impl Plan {
    fn read(path: &Path) -> io::Result<Self> {
        let mut reader = Reader::new(recipe::headers(path)?);
        let mut plan = Self { nodes: BTreeMap::new() };
        plan.nodes.insert(PathBuf::new(), Node::Dir { entry: None, opaque: false });
        while let Some(entry) = reader.next_entry()? {
            reader.take_raw();
            plan.add(entry).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
        }
        Ok(plan)
    }

    /// The directory that a path leads to, made where it is missing: as unpacking does it.
    fn dir(&mut self, path: &Path, symlinks: usize) -> Result<PathBuf, String> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(PathBuf::new());
        };
        let at = self.dir(parent, symlinks)?.join(name);
        let whiteout = match self.nodes.get(&at) {
            Some(Node::Dir { .. }) => return Ok(at),
            Some(Node::Other(entry)) if entry.kind == Kind::Symlink && symlinks < 40 => {
                let real = target(at.parent().unwrap_or(Path::new("")), &entry.link);
                return self.dir(&real, symlinks + 1);
            }
            Some(Node::Other(_)) => return Err(format!("{at:?} is no directory")),
            Some(Node::Whiteout) => true,
            None => false,
        };
        self.nodes.insert(at.clone(), Node::Dir { entry: None, opaque: whiteout });
        Ok(at)
    }

    fn add(&mut self, entry: Entry) -> Result<(), String> {
        let path = clean(&entry.path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            self.nodes.insert(path, Node::Dir { entry: Some(entry), opaque: self.root_opaque() });
            return Ok(());
        };
        let parent = self.dir(parent, 0)?;
        if name.as_bytes().starts_with(b".wh.") {
            self.whiteout(parent, name);
            return Ok(());
        }
        let at = parent.join(name);
        let was_whiteout = matches!(self.nodes.get(&at), Some(Node::Whiteout));
        match entry.kind {
            Kind::Dir => {
                if let Some(Node::Dir { entry: known, .. }) = self.nodes.get_mut(&at) {
                    let mut entry = entry;
                    // Attributes of an entry before stay where the later one says nothing of them.
                    let before = known.take().map(|known| known.xattrs).unwrap_or_default();
                    let said = |name: &[u8]| entry.xattrs.iter().any(|(other, _)| other == name);
                    let stay: Vec<_> = before.into_iter().filter(|(name, _)| !said(name)).collect();
                    entry.xattrs.extend(stay);
                    *known = Some(entry);
                } else {
                    self.nodes.insert(at, Node::Dir { entry: Some(entry), opaque: was_whiteout });
                }
            }
            Kind::HardLink => {
                let link = clean(&entry.link)?;
                let (Some(dir), Some(name)) = (link.parent(), link.file_name()) else {
                    return Err("a hard link leads to the root".to_owned());
                };
                let from = self.dir(dir, 0)?.join(name);
                let Some(Node::Other(linked)) = self.nodes.get(&from) else {
                    return Err(format!("a hard link leads to {from:?}, which is no file"));
                };
                let linked = Rc::clone(linked);
                self.replace(at, Node::Other(linked));
            }
            _ => self.replace(at, Node::Other(Rc::new(entry))),
        }
        Ok(())
    }

    fn root_opaque(&self) -> bool {
        matches!(self.nodes.get(Path::new("")), Some(Node::Dir { opaque: true, .. }))
    }

    fn whiteout(&mut self, parent: PathBuf, name: &OsStr) {
        let hidden = if name == mark::AUFS_OPAQUE {
            parent
        } else if let Some(hidden) = mark::aufs_hidden(name) {
            parent.join(hidden)
        } else {
            return;
        };
        match self.nodes.get_mut(&hidden) {
            Some(Node::Dir { opaque, .. }) => *opaque = true,
            Some(_) => {}
            None => {
                self.nodes.insert(hidden, Node::Whiteout);
            }
        }
    }

    fn replace(&mut self, at: PathBuf, node: Node) {
        if let Some(Node::Dir { .. }) = self.nodes.get(&at) {
            let beneath = self.nodes.range(at.clone()..).map(|(path, _)| path);
            // Other names may come between a directory and what is in it.
            let gone: Vec<PathBuf> = beneath.filter(|p| p.starts_with(&at)).cloned().collect();
            for path in gone {
                self.nodes.remove(&path);
            }
        }
        self.nodes.insert(at, node);
    }
}

struct Look<'o> {
    tree: OwnedFd,
    options: &'o Options,
    found: Vec<String>,
    count: usize,
    /// By the address of an entry: the inode of its first name.
    inodes: BTreeMap<*const Entry, u64>,
}

impl Look<'_> {
    fn differs(&mut self, path: &Path, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.found.len() < TOLD {
            self.found.push(format!("{path:?} {}", what()));
        }
    }

    fn all(&mut self, plan: &Plan) -> io::Result<()> {
        let mut children: BTreeMap<&Path, Vec<(&OsStr, &Node)>> = BTreeMap::new();
        for (path, node) in &plan.nodes {
            if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
                children.entry(parent).or_default().push((name, node));
            }
        }
        for (path, node) in &plan.nodes {
            let Node::Dir { entry, opaque } = node else { continue };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let Ok(dir) = sys::beneath::open(&self.tree, path, flags) else {
                self.differs(path, || "is gone, or no directory".to_owned());
                continue;
            };
            self.directory(path, &dir, entry.as_ref(), *opaque)?;
            let mut wanted: BTreeMap<&OsStr, &Node> =
                children.remove(path.as_path()).unwrap_or_default().into_iter().collect();
            for there in Dir::read_from(&dir)? {
                let there = there?;
                let name = OsStr::from_bytes(there.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                match wanted.remove(name) {
                    None => self.differs(&path.join(name), || "is not of the layer".to_owned()),
                    Some(Node::Dir { .. }) => {}
                    Some(node) => self.other(&path.join(name), &dir, name, node)?,
                }
            }
            for (name, node) in wanted {
                // A directory that is gone is told of when its turn comes.
                if !matches!(node, Node::Dir { .. }) {
                    self.differs(&path.join(name), || "is gone".to_owned());
                }
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        path: &Path,
        dir: &OwnedFd,
        entry: Option<&Entry>,
        opaque: bool,
    ) -> io::Result<()> {
        let stat = rustix::fs::fstat(dir)?;
        match entry {
            Some(entry) => {
                self.metadata(path, &stat, entry);
                self.attributes(path, &own_path(dir, None), entry)?;
            }
            // No entry tells of it: root's, with mode 755; its time is that of the unpacking.
            None => {
                let wrong = self.options.owners && (stat.st_uid, stat.st_gid) != (0, 0);
                if wrong || stat.st_mode & 0o7777 != 0o755 {
                    self.differs(path, || "has another owner or mode".to_owned());
                }
            }
        }
        if (mark::opaque(dir, self.options.namespace)? == Opaque::Yes) != opaque {
            let what = if opaque { "hides no longer" } else { "hides" };
            self.differs(path, || format!("{what} what is below it"));
        }
        Ok(())
    }

    fn other(&mut self, path: &Path, dir: &OwnedFd, name: &OsStr, node: &Node) -> io::Result<()> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let Node::Other(entry) = node else {
            if kind != FileType::CharacterDevice || stat.st_rdev != 0 {
                self.differs(path, || "is no whiteout".to_owned());
            }
            return Ok(());
        };
        let wanted = match entry.kind {
            Kind::Symlink => FileType::Symlink,
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::File | Kind::HardLink | Kind::Dir => FileType::RegularFile,
        };
        if kind != wanted {
            self.differs(path, || format!("is {kind:?}, not {wanted:?}"));
            return Ok(());
        }
        let first = *self.inodes.entry(Rc::as_ptr(entry)).or_insert(stat.st_ino);
        if first != stat.st_ino {
            self.differs(path, || "is no longer the file that its other names are".to_owned());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if kind == FileType::RegularFile && size != entry.size {
            self.differs(path, || format!("has {size} bytes, not {}", entry.size));
        }
        if kind == FileType::Symlink && readlinkat(dir, name, Vec::new())?.as_bytes() != entry.link
        {
            self.differs(path, || "leads elsewhere".to_owned());
        }
        let device = matches!(entry.kind, Kind::Char | Kind::Block);
        if device && stat.st_rdev != makedev(entry.device.0, entry.device.1) {
            self.differs(path, || "is another device".to_owned());
        }
        self.metadata(path, &stat, entry);
        self.attributes(path, &own_path(dir, Some(name)), entry)
    }

    fn metadata(&mut self, path: &Path, stat: &Stat, entry: &Entry) {
        let owner = (stat.st_uid, stat.st_gid);
        if self.options.owners && owner != (entry.uid, entry.gid) {
            let wanted = (entry.uid, entry.gid);
            self.differs(path, || {
                format!("is of {}:{}, not {}:{}", owner.0, owner.1, wanted.0, wanted.1)
            });
        }
        // Without privileges, set-group-ID is only for one's own groups.
        let bits = if self.options.owners { 0o7777 } else { 0o5777 };
        let (is, wanted) = (stat.st_mode & bits, entry.mode & bits);
        if entry.kind != Kind::Symlink && is != wanted {
            self.differs(path, || format!("has mode {is:o}, not {wanted:o}"));
        }
        // Other times are cut to what the file system has.
        let every = i64::from(i32::MIN)..=i64::from(i32::MAX);
        let time = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        if every.contains(&entry.mtime.0) && time != entry.mtime {
            self.differs(path, || {
                format!(
                    "is of {}.{:09}, not {}.{:09}",
                    time.0, time.1, entry.mtime.0, entry.mtime.1
                )
            });
        }
    }

    fn attributes(&mut self, path: &Path, at: &Path, entry: &Entry) -> io::Result<()> {
        let privileged =
            |name: &[u8]| name.starts_with(b"trusted.") || name.starts_with(b"security.");
        let has = names(at)?;
        let is_acl = |name: &[u8]| name.starts_with(b"system.posix_acl_");
        let wanted: BTreeMap<&[u8], &[u8]> = kept(&entry.xattrs)
            .filter(|(name, _)| self.options.owners || !privileged(name))
            .collect();
        for (name, value) in &wanted {
            // An access list that says no more than a mode is kept as one: 4 bytes, and 3 entries of 8.
            let as_mode = is_acl(name) && value.len() <= 28;
            let there = match value_of(at, name)? {
                None => as_mode,
                Some(there) => is_acl(name) || there == *value,
            };
            if !there {
                let name = String::from_utf8_lossy(name).into_owned();
                self.differs(path, || format!("has another {name}, or none"));
            }
        }
        let all: Vec<(Vec<u8>, Vec<u8>)> = has.into_iter().map(|name| (name, Vec::new())).collect();
        for (name, _) in kept(&all) {
            if !wanted.contains_key(name) && (self.options.owners || !privileged(name)) {
                let name = String::from_utf8_lossy(name).into_owned();
                self.differs(path, || format!("has {name}, which is not of the layer"));
            }
        }
        Ok(())
    }
}

/// A name of a directory, or that itself, for calls that take no descriptor.
fn own_path(dir: &OwnedFd, name: Option<&OsStr>) -> PathBuf {
    let own = PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()));
    own.join(name.unwrap_or(OsStr::new(".")))
}

fn names(at: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; 1024];
    let length = loop {
        match llistxattr(at, &mut list) {
            Ok(length) => break length,
            Err(Errno::RANGE) => list.resize(list.len() * 4, 0),
            Err(Errno::OPNOTSUPP) => break 0,
            Err(e) => return Err(e.into()),
        }
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

fn value_of(at: &Path, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let name = OsString::from_vec(name.to_vec());
    let mut value = vec![0; 64 << 10];
    match lgetxattr(at, &name, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
