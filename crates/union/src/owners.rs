//! Owners and modes that are in an attribute instead of with the file: of lower layers whose root says so, and of an
//! upper layer whose writer may not change owners. Only directories and regular files have them so.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use layer::{Owner, Owners};
use rustix::fs::{
    FileType, Mode, Statx, XattrFlags, fchmod, fgetxattr, fsetxattr, fstat, getxattr, lgetxattr,
    lremovexattr, lsetxattr, removexattr, setxattr,
};
use rustix::io::Errno;

use crate::attr::SetAttr;
use crate::error::{Error, Result, Step, refused};
use crate::node::{Node, NodeId};
use crate::stack::{Real, Union};

/// Longer than any value.
const VALUE: usize = 128;

/// What a write by a user takes away: set-user-ID, and set-group-ID where the group may execute.
fn without_privileges(mode: Mode) -> Mode {
    let group = if mode.contains(Mode::XGRP) { Mode::SGID } else { Mode::empty() };
    mode - Mode::SUID - group
}

/// Keeps an owner in the attribute of a file. The file's own mode gives nobody more, and lets us read and write.
pub(crate) fn write(
    fd: &OwnedFd,
    owners: Owners,
    owner: Owner,
    is_dir: bool,
) -> std::result::Result<(), Errno> {
    fsetxattr(fd, owners.attribute(), owner.value().as_bytes(), XattrFlags::empty())?;
    fchmod(fd, own_mode(owner.mode, is_dir))
}

fn own_mode(mode: u32, is_dir: bool) -> Mode {
    let ours = if is_dir { Mode::RWXU } else { Mode::RUSR | Mode::WUSR };
    Mode::from_raw_mode(mode & 0o777) | ours
}

impl Union {
    /// The same union, whose upper layer keeps owners and modes in an attribute from now on.
    ///
    /// # Errors
    /// [`Error::OtherOwners`]; the backing file system's own, as EPERM for [`Owners::Privileged`] without privileges.
    pub fn keep_owners(mut self, owners: Owners) -> Result<Self> {
        if self.is_read_only() {
            return Ok(self);
        }
        match self.layers[0].owners() {
            None => {
                let root = self.node(NodeId::ROOT)?;
                let stat = self.real_stat(&root)?;
                let mode = u32::from(stat.stx_mode) & 0o7777;
                let owner = Owner { uid: stat.stx_uid, gid: stat.stx_gid, mode };
                self.layers[0].keep_owners(owners, owner)?;
                self.has_owners = true;
                Ok(self)
            }
            // Two versions of fuse-overlayfs have two names for what needs no privileges: the one that is there stays.
            Some(known) if known.needs_privileges() == owners.needs_privileges() => Ok(self),
            Some(known) => Err(Error::OtherOwners {
                upper: self.layers[0].path().to_owned(),
                attribute: known.attribute(),
            }),
        }
    }

    /// Whether the owners of what is written go to an attribute.
    pub fn keeps_owners(&self) -> bool {
        self.upper.is_some() && self.layers[0].owners().is_some()
    }

    /// Whether an attribute is not the file's own, but ours.
    pub(crate) fn is_hidden(&self, name: &[u8]) -> bool {
        crate::xattr::is_private(self.namespace, name) || self.is_owner(OsStr::from_bytes(name))
    }

    pub(crate) fn is_owner(&self, name: &OsStr) -> bool {
        Owners::is_attribute(name.as_bytes()) && self.has_owners
    }

    /// Refuses a change of the attribute that owners are in.
    pub(crate) fn may_change(&self, name: &OsStr) -> Result<()> {
        if self.is_owner(name) { Err(refused(Path::new(name), Errno::PERM)) } else { Ok(()) }
    }

    /// An owner who can't be given to what has no attribute for it stays ours.
    pub(crate) fn given(
        &self,
        result: std::result::Result<(), Errno>,
    ) -> std::result::Result<(), Errno> {
        match result {
            Err(Errno::INVAL | Errno::PERM) if self.keeps_owners() => Ok(()),
            other => other,
        }
    }

    /// Where the owner of a node is, if not with its inode.
    fn owners(&self, node: &Node) -> Option<Owners> {
        if !matches!(node.kind, FileType::Directory | FileType::RegularFile) {
            return None;
        }
        let body = node.body.read();
        let layer = if body.upper { 0 } else { usize::from(body.lower.first()?.layer.0) };
        self.layers[layer].owners()
    }

    /// Puts the owner and mode that are shown in place of those of the inode.
    pub(crate) fn put_owner(&self, node: &Arc<Node>, real: &Real, stat: &mut Statx) -> Result<()> {
        let Some(owners) = self.owners(node) else { return Ok(()) };
        let fail = |e| self.fail(node, Step::Read, "getxattr", e);
        let (path, itself) = crate::xattr::path(real);
        let mut value = [0; VALUE];
        let got = if itself {
            lgetxattr(&path, owners.attribute(), &mut value)
        } else {
            getxattr(&path, owners.attribute(), &mut value)
        };
        let len = match got {
            Ok(len) => len,
            // Written before owners were kept, or by somebody else.
            Err(Errno::NODATA) => return Ok(()),
            Err(e) => return Err(fail(e)),
        };
        let owner = Owner::parse(&value[..len]).map_err(fail)?;
        (stat.stx_uid, stat.stx_gid) = (owner.uid, owner.gid);
        stat.stx_mode = (stat.stx_mode & 0o170_000) | u16::try_from(owner.mode).unwrap_or(0);
        Ok(())
    }

    /// Changes owner and mode in the attribute; false where the inode has them.
    pub(crate) fn change_owner(
        &self,
        node: &Arc<Node>,
        real: &Real,
        change: &SetAttr,
    ) -> Result<bool> {
        let Some(owners) = self.owners(node) else { return Ok(false) };
        let moves = change.uid.is_some() || change.gid.is_some();
        if !moves && change.mode.is_none() {
            return Ok(true);
        }
        let stat = self.real_stat(node)?;
        let mut mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o7777);
        let (path, itself) = crate::xattr::path(real);
        let fail = |what| move |e| self.fail(node, Step::Change, what, e);
        if moves && !node.is_dir() {
            // As chown(2) has it.
            mode = without_privileges(mode);
            let name = "security.capability";
            let removed = if itself { lremovexattr(&path, name) } else { removexattr(&path, name) };
            match removed {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(fail("removexattr")(e)),
            }
        }
        let owner = Owner {
            uid: change.uid.unwrap_or(stat.stx_uid),
            gid: change.gid.unwrap_or(stat.stx_gid),
            mode: change.mode.map_or(mode.bits(), |mode| mode & 0o7777),
        };
        let (name, value, flags) = (owners.attribute(), owner.value(), XattrFlags::empty());
        let set = if itself {
            lsetxattr(&path, name, value.as_bytes(), flags)
        } else {
            setxattr(&path, name, value.as_bytes(), flags)
        };
        set.map_err(fail("setxattr"))?;
        // A symlink can't have come in between: nobody but us writes here.
        rustix::fs::chmod(&path, own_mode(owner.mode, node.is_dir())).map_err(fail("chmod"))?;
        Ok(true)
    }

    /// Takes set-user-ID, and set-group-ID where the group may execute, away from what was written to; false where it
    /// had neither.
    pub(crate) fn drop_privileges(&self, node: &Node, fd: &OwnedFd) -> Result<bool> {
        let fail = |what| move |e| self.fail(node, Step::Change, what, e);
        let Some(owners) = self.owners(node) else {
            let mode = Mode::from_raw_mode(fstat(fd).map_err(fail("fstat"))?.st_mode & 0o7777);
            let kept = without_privileges(mode);
            if kept != mode {
                fchmod(fd, kept).map_err(fail("fchmod"))?;
            }
            return Ok(kept != mode);
        };
        let mut value = [0; VALUE];
        let len = match fgetxattr(fd, owners.attribute(), &mut value) {
            Ok(len) => len,
            Err(Errno::NODATA) => return Ok(false),
            Err(e) => return Err(fail("fgetxattr")(e)),
        };
        let owner = Owner::parse(&value[..len]).map_err(fail("fgetxattr"))?;
        let kept = without_privileges(Mode::from_raw_mode(owner.mode)).bits();
        if kept == owner.mode {
            return Ok(false);
        }
        write(fd, owners, Owner { mode: kept, ..owner }, false).map_err(fail("fsetxattr"))?;
        Ok(true)
    }
}
