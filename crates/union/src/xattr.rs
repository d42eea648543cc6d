//! Extended attributes. The union's own marks are hidden; names that would be taken for marks are
//! kept under an escaped name.
//!
//! Source: overlayfs.rst, "Nesting overlayfs mounts".

use std::ffi::{OsStr, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use layer::Namespace;
use rustix::fs::{
    XattrFlags, getxattr, lgetxattr, listxattr, llistxattr, lremovexattr, lsetxattr, removexattr,
    setxattr,
};
use rustix::io::Errno;

use crate::copy_up::Data;
use crate::error::{Result, Step};
use crate::node::{Node, NodeId};
use crate::stack::{Real, Union};

const ESCAPE: &[u8] = b"overlay.";

/// Whether an attribute is a mark of the union rather than the file's own.
pub(crate) fn is_private(namespace: Namespace, name: &[u8]) -> bool {
    let prefix = namespace.attribute("");
    name.strip_prefix(prefix.as_bytes()).is_some_and(|rest| !rest.starts_with(ESCAPE))
}

/// The name in the layer of an attribute that is shown as `name`.
fn stored(namespace: Namespace, name: &OsStr) -> OsString {
    let prefix = namespace.attribute("");
    match name.as_bytes().strip_prefix(prefix.as_bytes()) {
        Some(rest) => OsString::from_vec([prefix.as_bytes(), ESCAPE, rest].concat()),
        None => name.to_owned(),
    }
}

/// The path by which the kernel finds the node's inode, and whether a symlink there is itself meant.
pub(crate) fn path(real: &Real) -> (OsString, bool) {
    match real {
        Real::At(dir, name) => {
            let mut path = OsString::from(format!("/proc/self/fd/{}/", dir.as_raw_fd()));
            path.push(name);
            (path, true)
        }
        Real::Anchor(fd) => (format!("/proc/self/fd/{}", fd.as_raw_fd()).into(), false),
    }
}

impl Union {
    /// One attribute's value, at most 64 KiB.
    ///
    /// # Errors
    /// ENODATA, EOPNOTSUPP.
    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        if self.is_owner(name) {
            return Err(self.fail(&node, Step::Read, "getxattr", Errno::NODATA));
        }
        let real = self.real(&node)?;
        let (path, itself) = path(&real);
        let name = stored(self.namespace, name);
        // Most values are short; one that is not is asked for again.
        let mut value = vec![0; 1024];
        loop {
            let got = if itself {
                lgetxattr(&path, &name, &mut value)
            } else {
                getxattr(&path, &name, &mut value)
            };
            match got {
                Ok(len) => {
                    value.truncate(len);
                    return Ok(value);
                }
                Err(Errno::RANGE) if value.len() < 64 << 10 => value.resize(64 << 10, 0),
                Err(e) => return Err(self.fail(&node, Step::Read, "getxattr", e)),
            }
        }
    }

    /// The names of all attributes, each with a NUL behind.
    ///
    /// # Errors
    /// EOPNOTSUPP.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        let real = self.real(&node)?;
        let (path, itself) = path(&real);
        let mut list = vec![0; 64 << 10];
        let len = if itself { llistxattr(&path, &mut list) } else { listxattr(&path, &mut list) };
        let len = len.map_err(|e| self.fail(&node, Step::Read, "listxattr", e))?;
        let prefix = self.namespace.attribute("");
        let mut shown = Vec::with_capacity(len);
        for name in list[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            if self.is_hidden(name) {
                continue;
            }
            match name.strip_prefix([prefix.as_bytes(), ESCAPE].concat().as_slice()) {
                Some(rest) => shown.extend([prefix.as_bytes(), rest].concat()),
                None => shown.extend(name),
            }
            shown.push(0);
        }
        Ok(shown)
    }

    /// Sets an attribute, after a copy-up.
    ///
    /// # Errors
    /// EEXIST and ENODATA as `flags` say; EROFS, ENOSPC, EOPNOTSUPP.
    pub fn setxattr(
        &self,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.may_change(name)?;
        let name = stored(self.namespace, name);
        self.change_xattr(node, |path, itself| {
            if itself {
                lsetxattr(path, &name, value, flags)
            } else {
                setxattr(path, &name, value, flags)
            }
        })
    }

    /// Removes an attribute, after a copy-up.
    ///
    /// # Errors
    /// ENODATA, EROFS, EOPNOTSUPP.
    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> {
        self.may_change(name)?;
        let name = stored(self.namespace, name);
        self.change_xattr(node, |path, itself| {
            if itself { lremovexattr(path, &name) } else { removexattr(path, &name) }
        })
    }

    fn change_xattr(
        &self,
        node: NodeId,
        change: impl FnOnce(&OsStr, bool) -> std::result::Result<(), Errno>,
    ) -> Result<()> {
        let node: Arc<Node> = self.node(node)?;
        self.copy_up(&node, Data::All)?;
        let _change = node.change.lock();
        let real = self.real(&node)?;
        let (path, itself) = path(&real);
        change(&path, itself).map_err(|e| self.fail(&node, Step::Change, "xattr", e))?;
        if let Some(dir) = self.known_dir(&node).filter(|_| node.is_dir()) {
            dir.default_acl_changed();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_private_and_names_like_them_are_escaped() {
        let cases: [(Namespace, &str, bool, &str); 4] = [
            (Namespace::Trusted, "trusted.overlay.opaque", true, "trusted.overlay.overlay.opaque"),
            (
                Namespace::Trusted,
                "trusted.overlay.overlay.x",
                false,
                "trusted.overlay.overlay.overlay.x",
            ),
            (Namespace::Trusted, "user.overlay.opaque", false, "user.overlay.opaque"),
            (Namespace::User, "user.overlay.opaque", true, "user.overlay.overlay.opaque"),
        ];
        for (namespace, name, private, escaped) in cases {
            assert_eq!(is_private(namespace, name.as_bytes()), private, "{name}");
            assert_eq!(stored(namespace, OsStr::new(name)), escaped, "{name}");
        }
    }
}
