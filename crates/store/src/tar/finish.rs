//! Owner, mode, attributes and times of what a layer has made.
//!
//! What a new file has already is not set again: most files belong to root and have a mode that the
//! umask lets through, and two system calls a file are a fifth of the time that a layer takes.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fremovexattr, fsetxattr, fstat, utimensat,
};
use rustix::io::Errno;

use crate::tar::apply::{DEFAULT_ACL, Dir, Done, step};
use crate::tar::read::{Entry, Kind};

/// Who this process is, as far as new files show it.
#[derive(Debug)]
pub(crate) struct Finish {
    owners: bool,
    uid: u32,
    gid: u32,
    /// Bits that a new file's mode does not get.
    masked: u32,
}

impl Finish {
    /// Sets owners where `owners` says so.
    pub fn new(owners: bool) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Self { owners, uid, gid, masked: umask().unwrap_or(0o777) }
    }

    /// Whether new names in a directory get this process's group and no set-group-ID.
    pub fn is_plain(&self, dir: impl AsFd) -> Result<bool, Errno> {
        Ok(fstat(dir)?.st_mode & 0o2000 == 0)
    }

    /// A directory that no entry tells of: root's, with mode 755.
    pub fn default_dir(&self, dir: &OwnedFd) -> Result<(), Errno> {
        match fremovexattr(dir, DEFAULT_ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
        if self.owners {
            fchown(dir, Some(Uid::ROOT), Some(Gid::ROOT))?;
        }
        fchmod(dir, Mode::from_raw_mode(0o755))
    }

    fn owner(&self, entry: &Entry, plain: bool) -> Option<(Uid, Gid)> {
        let known = plain && (entry.uid, entry.gid) == (self.uid, self.gid);
        (self.owners && !known).then(|| (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
    }

    /// Owner, attributes and mode of an open file; `plain` where it is new and made as asked for.
    pub fn file(&self, fd: &OwnedFd, entry: &Entry, plain: bool) -> Done<()> {
        if let Some((uid, gid)) = self.owner(entry, plain) {
            fchown(fd, Some(uid), Some(gid)).map_err(step("setting its owner"))?;
        }
        for (name, value) in kept(&entry.xattrs) {
            self.attribute(name, fsetxattr(fd, name, value, XattrFlags::empty()))?;
        }
        // After the owner, whose change drops set-user-ID; after an ACL, which sets the mode too.
        let as_made = plain && entry.mode & (self.masked | 0o7000) == 0 && entry.xattrs.is_empty();
        if as_made {
            return Ok(());
        }
        fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(step("setting its mode"))
    }

    /// The same of a directory. What its entries are to inherit is given back: it is set when all
    /// of them are made.
    pub fn dir(&self, fd: &OwnedFd, entry: &Entry, plain: bool) -> Done<Option<Vec<u8>>> {
        let mut entry = entry.clone();
        let mut inherited = None;
        entry.xattrs.retain(|(name, value)| {
            let is_default = name == DEFAULT_ACL.as_bytes();
            if is_default {
                inherited = Some(value.clone());
            }
            !is_default
        });
        self.file(fd, &entry, plain && entry.mode & 0o700 == 0o700)?;
        Ok(inherited)
    }

    /// The same, and the times, of what can't be opened.
    pub fn special(&self, dir: &Dir, name: &OsStr, entry: &Entry) -> Done<()> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if let Some((uid, gid)) = self.owner(entry, dir.plain) {
            chownat(&dir.fd, name, Some(uid), Some(gid), nofollow)
                .map_err(step("setting its owner"))?;
        }
        if !entry.xattrs.is_empty() {
            let path = format!("/proc/self/fd/{}", dir.fd.as_fd().as_raw_fd());
            let path = Path::new(&path).join(name);
            for (attribute, value) in kept(&entry.xattrs) {
                let set = rustix::fs::lsetxattr(&path, attribute, value, XattrFlags::empty());
                self.attribute(attribute, set)?;
            }
        }
        if entry.kind != Kind::Symlink {
            // A device or FIFO that this process has just made, in a directory of its own.
            let mode = Mode::from_raw_mode(entry.mode);
            chmodat(&dir.fd, name, mode, AtFlags::empty()).map_err(step("setting its mode"))?;
        }
        utimensat(&dir.fd, name, &times(entry.mtime), nofollow).map_err(step("setting its times"))
    }

    fn attribute(&self, name: &[u8], set: Result<(), Errno>) -> Done<()> {
        match set {
            Err(Errno::PERM | Errno::OPNOTSUPP)
                if !self.owners
                    && (name.starts_with(b"trusted.") || name.starts_with(b"security.")) =>
            {
                // Without privileges these mean nothing here either.
                Ok(())
            }
            set => set.map_err(|e| format!("setting {}: {e}", String::from_utf8_lossy(name))),
        }
    }
}

/// The attributes that a layer may set: not the union's marks, by which it could hide or show files
/// of other layers; not labels, which are the machine's.
pub(crate) fn kept(xattrs: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let marks: [&[u8]; 5] = [
        b"trusted.overlay.",
        b"user.overlay.",
        b"user.fuseoverlayfs.",
        b"user.containers.override_stat",
        b"security.selinux",
    ];
    xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .filter(move |(name, _)| !marks.iter().any(|mark| name.starts_with(mark)))
}

/// Both times of a file, as a tar has one.
pub(crate) fn times((sec, nsec): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// The umask, which can't be asked for without setting it but here.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}
