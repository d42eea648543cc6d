//! Mounts that only this process sees.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::{Error, Result};

/// The directory behind `dir`, on a mount of its own that nothing can be written through, and without whatever is
/// mounted below the directory, now or later.
///
/// Source: open_tree(2), mount_setattr(2); kernel overlayfs does so with its layers.
///
/// # Errors
/// EPERM without `CAP_SYS_ADMIN` over the mount namespace; EINVAL where mounts below may not be uncovered; ENOSYS before
/// Linux 5.12.
pub fn read_only_copy(dir: impl AsFd) -> Result<OwnedFd> {
    let fail = |call, e| Error::new(call, dir.as_fd(), e);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&dir, "", flags).map_err(|e| fail("open_tree", e))?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is empty and NUL-terminated, the attributes live through the call and are as long as is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        let errno = std::io::Error::last_os_error();
        let errno = Errno::from_io_error(&errno).unwrap_or(Errno::IO);
        return Err(fail("mount_setattr", errno));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&tree, ".", flags, Mode::empty()).map_err(|e| fail("openat", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_through_the_copy() {
        let temp = tempfile::tempdir().expect("a directory");
        std::fs::write(temp.path().join("file"), "text").expect("a file");
        let dir = std::fs::File::open(temp.path()).expect("the directory");
        let copy = match read_only_copy(&dir) {
            Ok(copy) => copy,
            Err(e) => {
                assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "{e}");
                eprintln!("SKIPPED: no mounts of our own: {e}");
                return;
            }
        };
        let read = openat(&copy, "file", OFlags::RDONLY, Mode::empty());
        assert!(read.is_ok());
        let write = openat(&copy, "file", OFlags::RDWR, Mode::empty());
        assert_eq!(write.err(), Some(Errno::ROFS));
    }
}
