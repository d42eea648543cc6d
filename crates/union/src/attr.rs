//! What `stat` shows, and changes of it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use layer::WANTED;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, StatVfs, Statx, Timespec, Timestamps, Uid, chmodat,
    chownat, fchmod, fchown, fstatvfs, futimens, statx, utimensat,
};
use rustix::io::Errno;

use crate::copy_up::Data;
use crate::error::{Result, Step, call, refused};
use crate::file::OpenFile;
use crate::node::{Node, NodeId};
use crate::stack::{Real, Union};

/// A point in time; before 1970 the seconds are negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

/// What `stat` shows of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of struct statx")]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// Of birth; the epoch where the file system has none.
    pub btime: Time,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: (u32, u32),
    pub blksize: u32,
}

/// A new time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// The time that the change is made.
    Now,
    /// This time.
    At(Time),
}

/// A change of attributes; what is none stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<NewTime>,
    /// Modification time.
    pub mtime: Option<NewTime>,
    /// The caller may not keep set-user-ID on what it cuts.
    pub kill_suidgid: bool,
}

impl Attr {
    pub(crate) fn new(ino: u64, merged: bool, s: &Statx) -> Self {
        let time = |t: rustix::fs::StatxTimestamp| Time { sec: t.tv_sec, nsec: t.tv_nsec };
        Self {
            ino,
            size: s.stx_size,
            blocks: s.stx_blocks,
            atime: time(s.stx_atime),
            mtime: time(s.stx_mtime),
            ctime: time(s.stx_ctime),
            btime: time(s.stx_btime),
            mode: s.stx_mode.into(),
            // Nobody counts the subdirectories of a merged directory: one says that it is unknown.
            nlink: if merged { 1 } else { s.stx_nlink },
            uid: s.stx_uid,
            gid: s.stx_gid,
            rdev: (s.stx_rdev_major, s.stx_rdev_minor),
            blksize: s.stx_blksize,
        }
    }
}

impl Union {
    /// What `stat` shows of `node`.
    ///
    /// # Errors
    /// ESTALE for a node that was forgotten, or the layer's own.
    pub fn getattr(&self, node: NodeId) -> Result<Attr> {
        self.attr(&self.node(node)?)
    }

    pub(crate) fn attr(&self, node: &Arc<Node>) -> Result<Attr> {
        Ok(self.attr_of(node, &self.real_stat(node)?))
    }

    pub(crate) fn attr_of(&self, node: &Node, stat: &Statx) -> Attr {
        let (merged, links) = {
            let body = node.body.read();
            let merged = node.is_dir() && body.lower.len() + usize::from(body.upper) > 1;
            (merged, body.index.as_ref().map(|indexed| indexed.links))
        };
        let mut attr = Attr::new(node.ino, merged, stat);
        attr.nlink = links.unwrap_or(attr.nlink);
        if let Some(partial) = node.partial() {
            attr.blocks += partial.missing() / 512;
        }
        if node.below().is_some() {
            // Which of them are holes there is not worth a look.
            attr.blocks = attr.size.div_ceil(512);
        }
        attr
    }

    pub(crate) fn real_stat(&self, node: &Arc<Node>) -> Result<Statx> {
        loop {
            let version = node.body.read().version;
            let real = self.real(node)?;
            let stat = match &real {
                Real::At(dir, name) => statx(dir, &**name, AtFlags::SYMLINK_NOFOLLOW, WANTED),
                Real::Anchor(fd) => statx(fd, "", AtFlags::EMPTY_PATH, WANTED),
            };
            let mut stat = stat.map_err(|e| self.fail(node, Step::Read, "statx", e))?;
            if !self.has_owners {
                return Ok(stat);
            }
            self.put_owner(node, &real, &mut stat)?;
            // A copy-up meanwhile may keep the owner elsewhere.
            if node.body.read().version == version {
                return Ok(stat);
            }
        }
    }

    /// Changes attributes, after a copy-up; a cut to nothing copies no data.
    ///
    /// # Errors
    /// EROFS without an upper layer; the backing file system's own.
    pub fn setattr(&self, node: NodeId, change: &SetAttr) -> Result<Attr> {
        let node = self.node(node)?;
        let data = if change.size == Some(0) { Data::None } else { Data::All };
        self.copy_up(&node, data)?;
        if change.size.is_some() {
            self.bring_data(&node, data)?;
        }
        let changing = node.change.lock();
        let fail = |name| {
            let node = &node;
            move |e| self.fail(node, Step::Change, name, e)
        };
        let real = self.real(&node)?;
        if let Some(size) = change.size {
            let fd = self.reopen(&node, &real, OFlags::RDWR)?;
            self.cut(&node, &fd, size)?;
            if change.kill_suidgid {
                self.drop_privileges(&node, &fd)?;
            }
        }
        let kept = self.change_owner(&node, &real, change)?;
        if !kept && (change.uid.is_some() || change.gid.is_some()) {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            match &real {
                Real::At(dir, name) => chownat(dir, &**name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
                Real::Anchor(fd) => self.with_fd(&node, fd, |fd| fchown(fd, uid, gid)),
            }
            .map_err(fail("fchownat"))?;
        }
        if let Some(mode) = change.mode.filter(|_| !kept) {
            if node.kind == FileType::Symlink {
                return Err(refused(&node.path().unwrap_or_default(), Errno::OPNOTSUPP));
            }
            let mode = Mode::from_raw_mode(mode & 0o7777);
            match &real {
                Real::At(dir, name) => chmodat(dir, &**name, mode, AtFlags::empty()),
                Real::Anchor(fd) => self.with_fd(&node, fd, |fd| fchmod(fd, mode)),
            }
            .map_err(fail("fchmodat"))?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: spec(change.atime),
                last_modification: spec(change.mtime),
            };
            match &real {
                Real::At(dir, name) => utimensat(dir, &**name, &times, AtFlags::SYMLINK_NOFOLLOW),
                Real::Anchor(fd) => self.with_fd(&node, fd, |fd| futimens(fd, &times)),
            }
            .map_err(fail("utimensat"))?;
        }
        drop(changing);
        self.attr(&node)
    }

    /// Runs a call that `O_PATH` descriptors do not take.
    fn with_fd(
        &self,
        node: &Node,
        fd: &OwnedFd,
        run: impl FnOnce(&OwnedFd) -> std::result::Result<(), Errno>,
    ) -> std::result::Result<(), Errno> {
        let path_only = rustix::fs::fcntl_getfl(fd)?.contains(OFlags::PATH);
        if !path_only {
            return run(fd);
        }
        let flags = if node.is_dir() { OFlags::DIRECTORY } else { OFlags::NONBLOCK };
        run(&reopen_fd(fd, OFlags::RDONLY | flags)?)
    }

    /// Opens the present inode of a node anew.
    pub(crate) fn reopen(&self, node: &Node, real: &Real, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match real {
            Real::At(dir, name) => {
                sys::beneath::open(&**dir, Path::new(name), flags | OFlags::NOFOLLOW)
                    .map_err(|source| self.error(node, Step::Read, source))
            }
            Real::Anchor(fd) => {
                reopen_fd(fd, flags).map_err(|e| self.fail(node, Step::Read, "open", e))
            }
        }
    }

    /// What `stat` shows of an open file, also after its last name is gone.
    ///
    /// # Errors
    /// As [`Union::getattr`].
    pub fn getattr_open(&self, open: &OpenFile) -> Result<Attr> {
        self.attr(&open.node)
    }

    /// The file system of the upper layer, or of the uppermost lower one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn statfs(&self) -> Result<StatVfs> {
        let root = Path::new("");
        let stat = fstatvfs(self.layers[0].open_dir(root)?)
            .map_err(|e| call(root, Step::Read, "fstatvfs", e))?;
        Ok(match &self.space {
            Some(space) => space.shown(stat),
            None => stat,
        })
    }
}

/// Opens what a descriptor stands for once more, with other flags.
pub(crate) fn reopen_fd(fd: &OwnedFd, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

fn spec(time: Option<NewTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(NewTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(NewTime::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    }
}
