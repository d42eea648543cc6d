//! The marks that a layer carries, under each name that they go by.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

/// Where the union's own attributes live.
///
/// Source: overlayfs.rst, mount option `userxattr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.`: needs CAP_SYS_ADMIN in the first user namespace.
    Trusted,
    /// `user.overlay.`: for mounts without privileges.
    User,
}

impl Namespace {
    /// The attribute `name` (`opaque`, `redirect`, …) in this namespace.
    pub fn attribute(self, name: &str) -> String {
        match self {
            Self::Trusted => format!("trusted.overlay.{name}"),
            Self::User => format!("user.overlay.{name}"),
        }
    }
}

/// Names under which other programs have left an opaque mark, beside our own namespace's.
const FOREIGN_OPAQUE: [&str; 1] = ["user.fuseoverlayfs.opaque"];

/// The file that makes its directory opaque in the AUFS form.
pub const AUFS_OPAQUE: &str = ".wh..wh..opq";

const AUFS_PREFIX: &[u8] = b".wh.";

/// What a directory's opaque mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opaque {
    /// Layers below show through.
    No,
    /// `y`: layers below are hidden.
    Yes,
    /// `x`: not opaque, but files in it may be attribute whiteouts.
    Whiteouts,
}

/// Whether the file or directory behind `fd` may have a mark: one call in place of one for each, and almost nothing has.
///
/// # Errors
/// As [`opaque`].
pub fn any(fd: impl AsFd, namespace: Namespace) -> Result<bool, Errno> {
    let prefix = namespace.attribute("");
    let mut names = [0; 512];
    match flistxattr(fd, &mut names) {
        Ok(len) => Ok(names[..len].split(|byte| *byte == 0).any(|name| {
            name.starts_with(prefix.as_bytes())
                || FOREIGN_OPAQUE.iter().any(|foreign| foreign.as_bytes() == name)
        })),
        // More than fit, or a file system that shows no list.
        Err(Errno::RANGE | Errno::OPNOTSUPP) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Reads the opaque mark of the directory behind `dir`.
///
/// # Errors
/// The kernel's, other than that there is no such attribute or no attributes at all.
pub fn opaque(dir: impl AsFd, namespace: Namespace) -> Result<Opaque, Errno> {
    let own = namespace.attribute("opaque");
    for name in std::iter::once(own.as_str()).chain(FOREIGN_OPAQUE) {
        match value(&dir, name)?.as_deref() {
            Some(b"y") => return Ok(Opaque::Yes),
            Some(b"x") => return Ok(Opaque::Whiteouts),
            _ => {}
        }
    }
    Ok(Opaque::No)
}

/// Marks the directory behind `dir` opaque, so that no layer below shows through it.
///
/// # Errors
/// The kernel's: EPERM without the privilege that the namespace asks, ENOSPC.
pub fn set_opaque(dir: impl AsFd, namespace: Namespace) -> Result<(), Errno> {
    fsetxattr(dir, namespace.attribute("opaque").as_str(), b"y", XattrFlags::empty())
}

/// Where the layers below have the directory behind `dir`, if not under its own name: an absolute
/// path from the layers' roots, or another name in the same directory.
///
/// # Errors
/// As [`opaque`].
pub fn redirect(dir: impl AsFd, namespace: Namespace) -> Result<Option<PathBuf>, Errno> {
    let mut buf = vec![0; 4096];
    match fgetxattr(dir, namespace.attribute("redirect").as_str(), &mut buf) {
        Ok(len) => {
            buf.truncate(len);
            Ok(Some(PathBuf::from(OsString::from_vec(buf))))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Says that the layers below have the directory behind `dir` at `path` from their roots.
///
/// # Errors
/// The kernel's; ENAMETOOLONG where the path does not fit an attribute that the kernel reads.
pub fn set_redirect(dir: impl AsFd, namespace: Namespace, path: &Path) -> Result<(), Errno> {
    let mut value = b"/".to_vec();
    value.extend_from_slice(path.as_os_str().as_bytes());
    // Source: kernel `fs/overlayfs`, OVL_REDIRECT_MAX.
    if value.len() > 256 {
        return Err(Errno::NAMETOOLONG);
    }
    fsetxattr(dir, namespace.attribute("redirect").as_str(), &value, XattrFlags::empty())
}

/// Whether the file behind `file` carries the attribute whiteout.
///
/// Only asked of empty regular files in a directory whose mark is [`Opaque::Whiteouts`].
///
/// # Errors
/// As [`opaque`].
pub fn is_whiteout(file: impl AsFd, namespace: Namespace) -> Result<bool, Errno> {
    Ok(value(file, &namespace.attribute("whiteout"))?.is_some())
}

/// Whether the directory behind `dir` may have files whose data, or whose first inode, is in a layer below.
///
/// Source: kernel `fs/overlayfs`, OVL_XATTR_IMPURE.
///
/// # Errors
/// As [`opaque`].
pub fn is_impure(dir: impl AsFd, namespace: Namespace) -> Result<bool, Errno> {
    Ok(value(dir, &namespace.attribute("impure"))?.is_some())
}

/// Says so of the directory behind `dir`.
///
/// # Errors
/// As [`set_opaque`].
pub fn set_impure(dir: impl AsFd, namespace: Namespace) -> Result<(), Errno> {
    fsetxattr(dir, namespace.attribute("impure").as_str(), b"y", XattrFlags::empty())
}

/// Whether the file behind `file` has no data of its own: a layer below has it, under the same name or where its
/// [`redirect`] leads.
///
/// Source: overlayfs.rst, "Metadata only copy up".
///
/// # Errors
/// As [`opaque`].
pub fn is_metacopy(file: impl AsFd, namespace: Namespace) -> Result<bool, Errno> {
    match fgetxattr(file, namespace.attribute("metacopy").as_str(), &mut [0_u8; 0]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Says that the file behind `file` has its own data.
///
/// # Errors
/// The kernel's, other than that the mark is not there.
pub fn clear_metacopy(file: impl AsFd, namespace: Namespace) -> Result<(), Errno> {
    match rustix::fs::fremovexattr(file, namespace.attribute("metacopy").as_str()) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether a name is a mark in the AUFS form, and no name of a file.
pub fn is_aufs(name: &OsStr) -> bool {
    name.as_bytes().starts_with(AUFS_PREFIX)
}

/// The AUFS whiteout of `name`: `.wh.name`.
pub fn aufs_whiteout(name: &OsStr) -> OsString {
    let mut bytes = AUFS_PREFIX.to_vec();
    bytes.extend_from_slice(name.as_bytes());
    OsString::from_vec(bytes)
}

/// The name that an AUFS whiteout hides; none where `name` is no whiteout of one name.
pub fn aufs_hidden(name: &OsStr) -> Option<&OsStr> {
    let hidden = name.as_bytes().strip_prefix(AUFS_PREFIX)?;
    let plain = !hidden.is_empty() && !hidden.starts_with(AUFS_PREFIX);
    (plain && hidden != b"." && hidden != b"..").then(|| OsStr::from_bytes(hidden))
}

/// One short attribute; none where it is absent or the file system has none.
fn value(fd: impl AsFd, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let mut buf = [0; 256];
    match fgetxattr(fd, name, &mut buf) {
        Ok(len) => Ok(Some(buf[..len].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        // Longer than any mark of ours: somebody else's, so no mark.
        Err(Errno::RANGE) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aufs_whiteout_hides_one_plain_name() {
        let cases: [(&[u8], Option<&[u8]>); 8] = [
            (b".wh.a", Some(b"a")),
            (b".wh.\xff", Some(b"\xff")),
            (b".wh.", None),
            (b".wh..", None),
            (b".wh...", None),
            (b".wh..wh..opq", None),
            (b"a", None),
            (b"wh.a", None),
        ];
        for (name, hides) in cases {
            let got = aufs_hidden(OsStr::from_bytes(name));
            assert_eq!(got, hides.map(OsStr::from_bytes), "{name:?}");
        }
    }
}
