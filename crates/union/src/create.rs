//! New names: made in the work directory, published by one rename.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use layer::{Owner, WANTED, mark};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Statx, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, fsetxattr, linkat, mkdirat, mknodat, openat, renameat,
    renameat_with, statx, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::copy_up::Data;
use crate::error::{Result, Step, call, refused};
use crate::file::OpenFile;
use crate::find::Name;
use crate::node::{Body, Node, NodeId};
use crate::owners;
use crate::place::Place;
use crate::resolve::LayerIndex;
use crate::space::Space;
use crate::stack::{Entry, Real, Union, inode};
use crate::upper::{DIRECTORY, Upper};

const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Who makes something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User ID: the owner of what is made.
    pub uid: u32,
    /// Group ID: the group of what is made, but in a set-group-ID directory.
    pub gid: u32,
    /// Permission bits that are taken away, but in a directory with a default ACL.
    pub umask: u32,
}

/// What is made.
pub(crate) enum New<'a> {
    File,
    Dir,
    Symlink(&'a OsStr),
    Node(FileType, u64),
}

impl Union {
    /// Makes a regular file and opens it for reading and writing.
    ///
    /// # Errors
    /// EEXIST, EROFS, ENOSPC.
    pub fn create(
        &self,
        by: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
    ) -> Result<(Entry, Arc<OpenFile>)> {
        let Made { node, fd, stat } = self.make(by, parent, name, mode, &New::File)?;
        let fd = fd.ok_or_else(|| refused(Path::new(name), Errno::IO))?;
        let open = self.opened(&node, fd);
        let entry = self.entry(node, stat).inspect_err(|_| self.close(&open))?;
        Ok((entry, open))
    }

    /// Makes a directory, opaque where lower layers have one under that name.
    ///
    /// # Errors
    /// As [`Union::create`].
    pub fn mkdir(&self, by: Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        let made = self.make(by, parent, name, mode, &New::Dir)?;
        self.entry(made.node, made.stat)
    }

    /// Makes a symlink.
    ///
    /// # Errors
    /// As [`Union::create`].
    pub fn symlink(
        &self,
        by: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        let made = self.make(by, parent, name, 0o777, &New::Symlink(target))?;
        self.entry(made.node, made.stat)
    }

    /// Makes a regular file, FIFO, socket or device. `device` as makedev(3) packs it.
    ///
    /// # Errors
    /// As [`Union::create`]; EPERM for the device 0:0, which is the whiteout.
    pub fn mknod(
        &self,
        by: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        device: u64,
    ) -> Result<Entry> {
        let kind = FileType::from_raw_mode(mode);
        if kind == FileType::CharacterDevice && device == 0 {
            return Err(refused(Path::new(name), Errno::PERM));
        }
        let new = if kind == FileType::RegularFile { New::File } else { New::Node(kind, device) };
        let made = self.make(by, parent, name, mode, &new)?;
        self.entry(made.node, made.stat)
    }

    /// What a new node shows, whose attributes may be known.
    fn entry(&self, node: Arc<Node>, stat: Option<Statx>) -> Result<Entry> {
        let attr = match stat.filter(|_| !self.has_owners) {
            Some(stat) => Ok(self.attr_of(&node, &stat)),
            None => self.attr(&node),
        };
        match attr {
            Ok(attr) => Ok(Entry { node: node.id, attr }),
            Err(e) => {
                self.forget(node.id, 1);
                Err(e)
            }
        }
    }

    fn make(
        &self,
        by: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        new: &New<'_>,
    ) -> Result<Made> {
        let parent = self.node(parent)?;
        let upper = self.upper(&parent)?;
        check_name(name)?;
        if !parent.is_dir() {
            return Err(refused(&self.path_in(&parent, name), Errno::NOTDIR));
        }
        self.copy_up(&parent, Data::All)?;
        let taken = self.take_inode(&parent, name)?;
        if let Some(made) = self.make_in_place(upper.creator, by, &parent, name, mode, new)? {
            taken.keep();
            return Ok(made);
        }
        let temp = upper.temp();
        let (work, staged) = self.stage_new(upper, &parent, by, mode, new, &temp)?;
        let made = (|| {
            let _names = parent.names.write();
            self.absent(&parent, name)?;
            let hides = self.is_below(&parent, name)?;
            if let (New::Dir, true) = (new, hides) {
                let dir = openat(&*work, &temp, DIRECTORY, Mode::empty());
                dir.and_then(|dir| mark::set_opaque(&dir, self.namespace))
                    .map_err(|e| call(&self.path_in(&parent, name), Step::Stage, "fsetxattr", e))?;
            }
            self.publish(upper, &work, &temp, &parent, name)?;
            self.enter_new(&parent, name)
        })();
        if made.is_err() {
            upper.discard(&temp);
        }
        if work.is_apart() {
            upper.discard(&work.name);
        }
        let (node, stat) = made?;
        taken.keep();
        Ok(Made { node, fd: staged, stat: Some(stat) })
    }

    /// An inode of the limit, given back where nothing comes of it.
    fn take_inode(&self, parent: &Node, name: &OsStr) -> Result<Taken<'_>> {
        if let Some(space) = &self.space {
            space
                .take_inode()
                .map_err(|e| call(&self.path_in(parent, name), Step::Stage, "create", e))?;
        }
        Ok(Taken(self.space.as_ref()))
    }

    /// The node of what has just been made under a name, whose directory's `names` is held.
    fn enter_new(&self, parent: &Arc<Node>, name: &OsStr) -> Result<(Arc<Node>, Statx)> {
        let dir = self.upper_dir(parent)?;
        let stat = statx(&*dir, name, AtFlags::SYMLINK_NOFOLLOW, WANTED)
            .map_err(|e| call(&self.path_in(parent, name), Step::Publish, "statx", e))?;
        let body = Body { upper: true, ..Body::default() };
        let found = Name { stat, layer: LayerIndex(0), body, ino: None };
        let place = Place::new(parent, name);
        let entered = self.table.enter(Some(place), self.candidate(found), || true);
        let (node, _) =
            entered.ok_or_else(|| refused(&self.path_in(parent, name), Errno::STALE))?;
        Ok((node, stat))
    }

    /// Refuses a name that is shown, in a directory whose `names` is held; and a directory that has
    /// gone.
    fn absent(&self, parent: &Arc<Node>, name: &OsStr) -> Result<()> {
        if parent.place().is_none() && parent.id != NodeId::ROOT {
            return Err(refused(Path::new(name), Errno::NOENT));
        }
        match self.child_locked(parent, name) {
            Ok(node) => {
                self.forget(node.id, 1);
                Err(refused(&self.path_in(parent, name), Errno::EXIST))
            }
            Err(e) if e.errno() == Errno::NOENT => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Gives a staged thing its name, which nothing is shown under; a whiteout there is replaced.
    fn publish(
        &self,
        upper: &Upper,
        work: &Work<'_>,
        temp: &OsStr,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Result<()> {
        let fail =
            |call_name| move |e| call(&self.path_in(parent, name), Step::Publish, call_name, e);
        let dir = self.upper_dir(parent)?;
        match renameat_with(&**work, temp, &*dir, name, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {
                // A directory can't be renamed over a whiteout: they change places.
                renameat_with(&**work, temp, &*dir, name, RenameFlags::EXCHANGE)
                    .map_err(fail("renameat2"))?;
                if work.is_apart() {
                    unlinkat(&**work, temp, AtFlags::empty()).map_err(fail("unlinkat"))?;
                } else {
                    upper.discard(temp);
                }
                Ok(())
            }
            done => done.map_err(fail("renameat2")),
        }
    }

    fn stage_new<'u>(
        &self,
        upper: &'u Upper,
        parent: &Arc<Node>,
        by: Caller,
        mode: u32,
        new: &New<'_>,
        temp: &OsStr,
    ) -> Result<(Work<'u>, Option<OwnedFd>)> {
        let dir = self.upper_dir(parent)?;
        let fail = |name| move |e| self.fail(parent, Step::Stage, name, e);
        let owners = self.layers[0].owners();
        let above = match owners {
            None => statx(&*dir, "", AtFlags::EMPTY_PATH, WANTED).map_err(fail("statx"))?,
            Some(_) => self.real_stat(parent)?,
        };
        let inherits = Mode::from_raw_mode(above.stx_mode.into()).contains(Mode::SGID);
        let gid = if inherits { above.stx_gid } else { by.gid };
        let owner = (Some(Uid::from_raw(by.uid)), Some(Gid::from_raw(gid)));
        // A default ACL decides the mode: the file system applies it where the new thing is made in
        // a directory that has it.
        let acl = match owners {
            None => default_acl(&dir).map_err(fail("fgetxattr"))?,
            Some(_) => None,
        };
        let work = match &acl {
            Some(acl) if !matches!(new, New::Symlink(_)) => {
                let name = upper.temp();
                mkdirat(&upper.work, &name, Mode::RWXU).map_err(fail("mkdirat"))?;
                let apart = openat(&upper.work, &name, DIRECTORY, Mode::empty());
                let apart = apart.and_then(|fd| {
                    fsetxattr(&fd, DEFAULT_ACL, acl, XattrFlags::empty())?;
                    Ok(fd)
                });
                match apart {
                    Ok(fd) => Work { shared: &upper.work, apart: Some(fd), name },
                    Err(e) => {
                        upper.discard(&name);
                        return Err(fail("fsetxattr")(e));
                    }
                }
            }
            _ => Work { shared: &upper.work, apart: None, name: temp.to_owned() },
        };
        let masked = if acl.is_some() { mode } else { mode & !by.umask };
        let bits = Mode::from_raw_mode(masked & 0o7777);
        let kept = |mode: Mode| Owner { uid: by.uid, gid, mode: mode.bits() };
        let made = (|| -> std::result::Result<Option<OwnedFd>, Errno> {
            // What the default ACL made of the mode stays; else the mode is set after the owner,
            // whose change drops set-user-ID, and free of the daemon's own umask.
            let plain = acl.is_none();
            match new {
                New::File => {
                    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    let fd = openat(&*work, temp, flags, bits)?;
                    if let Some(owners) = owners {
                        owners::write(&fd, owners, kept(bits), false)?;
                        return Ok(Some(fd));
                    }
                    fchown(&fd, owner.0, owner.1)?;
                    if plain || bits.intersects(Mode::SUID | Mode::SGID) {
                        let set = if plain {
                            bits
                        } else {
                            current(&fd)? | (bits & (Mode::SUID | Mode::SGID))
                        };
                        fchmod(&fd, set)?;
                    }
                    Ok(Some(fd))
                }
                New::Dir => {
                    let group = if inherits { Mode::SGID } else { Mode::empty() };
                    if let Some(owners) = owners {
                        mkdirat(&*work, temp, Mode::RWXU)?;
                        let fd = openat(&*work, temp, DIRECTORY, Mode::empty())?;
                        owners::write(&fd, owners, kept(bits | group), true)?;
                        return Ok(None);
                    }
                    mkdirat(&*work, temp, bits)?;
                    chownat(&*work, temp, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
                    let fd = openat(&*work, temp, DIRECTORY, Mode::empty())?;
                    let set = if plain { bits } else { current(&fd)? };
                    fchmod(&fd, set | group)?;
                    Ok(None)
                }
                New::Symlink(target) => {
                    symlinkat(*target, &*work, temp)?;
                    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                    self.given(chownat(&*work, temp, owner.0, owner.1, nofollow))?;
                    Ok(None)
                }
                New::Node(kind, device) => {
                    mknodat(&*work, temp, *kind, bits, *device)?;
                    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                    self.given(chownat(&*work, temp, owner.0, owner.1, nofollow))?;
                    if plain {
                        chmodat(&*work, temp, bits, AtFlags::empty())?;
                    }
                    Ok(None)
                }
            }
        })();
        match made {
            Ok(fd) => Ok((work, fd)),
            Err(e) => {
                upper.discard(temp);
                if work.is_apart() {
                    upper.discard(&work.name);
                }
                Err(fail("create")(e))
            }
        }
    }

    /// Makes a file without a name, open for reading and writing; [`Union::link`] names it.
    ///
    /// # Errors
    /// EROFS, ENOSPC; EOPNOTSUPP where the backing file system has no `O_TMPFILE`.
    pub fn tmpfile(&self, by: Caller, parent: NodeId, mode: u32) -> Result<(Entry, Arc<OpenFile>)> {
        let parent = self.node(parent)?;
        let upper = self.upper(&parent)?;
        let fail = |name| {
            let parent = &parent;
            move |e| self.fail(parent, Step::Stage, name, e)
        };
        self.copy_up(&parent, Data::All)?;
        let above = self.real_stat(&parent)?;
        let inherits = Mode::from_raw_mode(above.stx_mode.into()).contains(Mode::SGID);
        let gid = if inherits { above.stx_gid } else { by.gid };
        let bits = Mode::from_raw_mode(mode & !by.umask & 0o7777);
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let taken = self.take_inode(&parent, OsStr::new(""))?;
        let fd = openat(&upper.work, ".", flags, bits).map_err(fail("openat"))?;
        match self.layers[0].owners() {
            None => {
                fchown(&fd, Some(Uid::from_raw(by.uid)), Some(Gid::from_raw(gid)))
                    .map_err(fail("fchown"))?;
                fchmod(&fd, bits).map_err(fail("fchmod"))?;
            }
            Some(owners) => {
                let owner = Owner { uid: by.uid, gid, mode: bits.bits() };
                owners::write(&fd, owners, owner, false).map_err(fail("fsetxattr"))?;
            }
        }
        let stat = statx(&fd, "", AtFlags::EMPTY_PATH, WANTED).map_err(fail("statx"))?;
        let body = Body { upper: true, ..Body::default() };
        let found = Name { stat, layer: LayerIndex(0), body, ino: None };
        let entered = self.table.enter(None, self.candidate(found), || true);
        let (node, _) = entered.ok_or_else(|| fail("openat")(Errno::STALE))?;
        let open = self.opened(&node, fd);
        if let Some(space) = &self.space {
            space.goes_at_close(node.id);
        }
        taken.keep();
        Ok((self.entry(node, None)?, open))
    }

    /// Gives `node` one name more.
    ///
    /// # Errors
    /// EEXIST, EROFS, EPERM for a directory, EMLINK, ENOSPC.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let (node, parent) = (self.node(node)?, self.node(parent)?);
        let upper = self.upper(&parent)?;
        check_name(name)?;
        if node.is_dir() {
            return Err(refused(&self.path_in(&parent, name), Errno::PERM));
        }
        if !parent.is_dir() {
            return Err(refused(&self.path_in(&parent, name), Errno::NOTDIR));
        }
        self.copy_up(&node, Data::All)?;
        self.bring_data(&node, Data::All)?;
        self.copy_up(&parent, Data::All)?;
        let names = node.places.read().clone();
        for place in names.iter() {
            self.hand_impurity_on(&node, &place.parent, &parent)?;
        }
        let _change = node.change.lock();
        let _names = parent.names.write();
        self.absent(&parent, name)?;
        let fail = |call_name| {
            let (parent, path) = (&parent, name);
            move |e| call(&self.path_in(parent, path), Step::Stage, call_name, e)
        };
        if node.body.read().index.is_some() {
            self.mark_impure(&parent)?;
        }
        self.names_change(&node)?;
        let temp = upper.temp();
        let linked = match self.real(&node)? {
            Real::At(dir, from) => linkat(&*dir, &*from, &upper.work, &temp, AtFlags::empty()),
            Real::Anchor(fd) => {
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*fd));
                linkat(rustix::fs::CWD, path, &upper.work, &temp, AtFlags::SYMLINK_FOLLOW)
            }
        };
        linked.map_err(fail("linkat"))?;
        let dir = self.upper_dir(&parent)?;
        // Over a whiteout too: neither is a directory.
        if let Err(e) = renameat(&upper.work, &temp, &*dir, name) {
            upper.discard(&temp);
            return Err(fail("renameat")(e));
        }
        self.name_came(&node);
        let stat = statx(&*dir, name, AtFlags::SYMLINK_NOFOLLOW, WANTED).map_err(fail("statx"))?;
        if let Some(space) = &self.space {
            space.stays(node.id);
        }
        self.table.add_place(&node, Place::new(&parent, name));
        self.table.identify(&node, inode(LayerIndex(0), &stat));
        node.lookups.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.entry(Arc::clone(&node), None)
    }
}

/// What was made.
pub(crate) struct Made {
    pub node: Arc<Node>,
    /// Of a regular file, for reading and writing.
    pub fd: Option<OwnedFd>,
    /// Its attributes in the upper layer.
    pub stat: Option<Statx>,
}

/// An inode that was taken from the limit.
struct Taken<'s>(Option<&'s Space>);

impl Taken<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(space) = self.0 {
            space.give_inode();
        }
    }
}

/// The directory that something new is staged in.
struct Work<'u> {
    shared: &'u OwnedFd,
    /// One of its own, with the default ACL of the directory that it goes to.
    apart: Option<OwnedFd>,
    name: std::ffi::OsString,
}

impl Work<'_> {
    fn is_apart(&self) -> bool {
        self.apart.is_some()
    }
}

impl std::ops::Deref for Work<'_> {
    type Target = OwnedFd;
    fn deref(&self) -> &OwnedFd {
        self.apart.as_ref().unwrap_or(self.shared)
    }
}

/// Refuses names that would be read as a mark once the upper layer is a lower one.
pub(crate) fn check_name(name: &OsStr) -> Result<()> {
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(name);
    let refuse = |e| Err(refused(Path::new(name), e));
    match bytes {
        b"" | b"." | b".." => refuse(Errno::INVAL),
        _ if bytes.len() > 255 => refuse(Errno::NAMETOOLONG),
        _ if bytes.starts_with(b".wh.") || bytes.contains(&b'/') => refuse(Errno::INVAL),
        _ => Ok(()),
    }
}

fn current(fd: &OwnedFd) -> std::result::Result<Mode, Errno> {
    Ok(Mode::from_raw_mode(rustix::fs::fstat(fd)?.st_mode & 0o7777))
}

pub(crate) fn default_acl(dir: &OwnedFd) -> std::result::Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0; 4096];
    match fgetxattr(dir, DEFAULT_ACL, &mut value) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}
