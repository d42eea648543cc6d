//! Inode numbers that stay when a file is copied up, over remounts too.
//!
//! A copy says of which lower inode it is, and shows that one's number. Its directory is marked as impure, so that others
//! need not be asked.
//!
//! Source: overlayfs.rst, "Inode properties"; kernel `fs/overlayfs`, OVL_XATTR_ORIGIN and OVL_XATTR_IMPURE.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use layer::{mark, origin};
use rustix::fs::{FileType, Statx, XattrFlags, fsetxattr, lgetxattr, lsetxattr};
use rustix::io::Errno;

use crate::error::{Result, Step, call};
use crate::node::Node;
use crate::resolve::LayerIndex;
use crate::stack::{Real, Union};

/// The path by which the kernel finds `name` in `dir` for calls that take no descriptors.
pub(crate) fn path(dir: &OwnedFd, name: &OsStr) -> std::path::PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

impl Union {
    /// The inode number that a name of the upper layer shows, where it is not its own inode's.
    pub(crate) fn origin_ino(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Option<u64>> {
        let origin = self.origin(parent, name)?;
        Ok(origin.as_deref().and_then(origin::decode).and_then(|(uuid, ino)| {
            let device =
                self.file_systems.iter().find(|(_, known)| known.unwrap_or_default() == uuid)?.0;
            Some(self.shown_ino(device, ino))
        }))
    }

    /// What a name of the upper layer says of where it was copied from.
    pub(crate) fn origin(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let fail = |what| move |e| call(&self.path_in(parent, name), Step::Read, what, e);
        let dir = self.upper_dir(parent)?;
        let impure = self.is_impure(parent, LayerIndex(0), None, &dir);
        if !impure.map_err(fail("fgetxattr"))? {
            return Ok(None);
        }
        let mut value = [0; 256];
        let attribute = self.namespace.attribute("origin");
        match lgetxattr(path(&dir, name), attribute.as_str(), &mut value) {
            Ok(len) => Ok(Some(value[..len].to_vec())),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE | Errno::PERM) => Ok(None),
            Err(e) => Err(fail("lgetxattr")(e)),
        }
    }

    /// Says in a staged copy of which inode it is.
    ///
    /// Not of one with several names that is not in the index: those that are not copied up have its number still. Where the file system has no
    /// handles or no room for one more attribute, the number changes with the next mount.
    pub(crate) fn mark_origin(
        &self,
        node: &Node,
        stat: &Statx,
        real: &Real,
        (work, temp, file): (&OwnedFd, &OsStr, Option<&OwnedFd>),
    ) -> Result<()> {
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        if kind != FileType::Directory && stat.stx_nlink > 1 {
            return Ok(());
        }
        let value = self.origin_of(real, stat);
        let value = value.map_err(|e| self.fail(node, Step::CopyUp, "name_to_handle_at", e))?;
        let Some(value) = value else { return Ok(()) };
        let attribute = self.namespace.attribute("origin");
        let none = XattrFlags::empty();
        let set = match file {
            Some(file) => fsetxattr(file, attribute.as_str(), &value, none),
            None => lsetxattr(path(work, temp), attribute.as_str(), &value, none),
        };
        match set {
            // `user.` attributes are for files and directories only.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC | Errno::DQUOT) => Ok(()),
            Err(e) => Err(self.fail(node, Step::CopyUp, "lsetxattr", e)),
        }
    }

    /// The mark that a copy of an inode gets; none where its file system has no handles.
    pub(crate) fn origin_of(
        &self,
        real: &Real,
        stat: &Statx,
    ) -> std::result::Result<Option<Vec<u8>>, Errno> {
        let handle = match real {
            Real::At(dir, name) => sys::handle::of(&**dir, Path::new(name)),
            Real::Anchor(fd) => sys::handle::of(&**fd, Path::new("")),
        };
        let handle = handle.map_err(|e| e.source)?;
        let device = crate::stack::device(stat);
        let uuid = self.file_systems.iter().find(|(known, _)| *known == device);
        Ok(handle
            .zip(uuid)
            .and_then(|(handle, (_, uuid))| origin::encode(uuid.unwrap_or_default(), &handle)))
    }

    /// What goes from one directory of the upper layer to another may be a copy.
    pub(crate) fn hand_impurity_on(
        &self,
        node: &Node,
        from: &Arc<Node>,
        to: &Arc<Node>,
    ) -> Result<()> {
        let fail = |e| self.fail(from, Step::Read, "fgetxattr", e);
        // It may have no name in `from` yet that would have made that impure.
        if node.body.read().index.is_some() {
            return self.mark_impure(to);
        }
        let dir = self.upper_dir(from)?;
        if from.id != to.id && self.is_impure(from, LayerIndex(0), None, &dir).map_err(fail)? {
            self.mark_impure(to)?;
        }
        Ok(())
    }

    /// Marks a directory of the upper layer, into which a copy goes.
    pub(crate) fn mark_impure(&self, parent: &Arc<Node>) -> Result<()> {
        let fail = |e| self.fail(parent, Step::CopyUp, "fsetxattr", e);
        let dir = self.upper_dir(parent)?;
        if self.is_impure(parent, LayerIndex(0), None, &dir).map_err(fail)? {
            return Ok(());
        }
        match mark::set_impure(&dir, self.namespace) {
            Ok(()) => self.now_impure(parent),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC | Errno::DQUOT) => {}
            Err(e) => return Err(fail(e)),
        }
        Ok(())
    }
}
