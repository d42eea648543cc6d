//! Opens names below a root directory and never outside it.
//!
//! A layer is somebody else's data: an absolute symlink or a `..` in it must not lead out. The
//! kernel holds that for us.
//!
//! Source: openat2(2), `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_MAGICLINKS`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::{Error, Result};

/// openat2 gives EAGAIN when a rename elsewhere races with its walk; more often than this in a
/// row does not happen by accident.
const TRIES: u32 = 128;

/// Opens `path` below `root`, following no symlink at any step.
///
/// An empty path is `root` itself. One system call, whatever the depth.
///
/// # Errors
/// The kernel's: ENOENT; ELOOP where a symlink stands in the path; EXDEV where it leads out.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Ok(fd) => return Ok(fd),
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            Err(source) => return Err(Error::new("openat2", path, source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open_dir(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("a root")
    }

    #[test]
    fn a_name_that_leads_outside_the_root_is_refused() {
        let outside = tempfile::tempdir().expect("a directory");
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("etc")).expect("a tree");
        std::fs::write(outside.path().join("secret"), "s").expect("a file");
        std::fs::write(root.join("etc/hostname"), "h").expect("a file");
        symlink("/", root.join("abs")).expect("a symlink");
        symlink("../secret", root.join("up")).expect("a symlink");
        let fd = open_dir(&root);
        let cases = [
            ("etc/hostname", None),
            ("", None),
            ("../secret", Some(Errno::XDEV)),
            ("etc/../../secret", Some(Errno::XDEV)),
            ("/etc/passwd", Some(Errno::XDEV)),
            ("abs/etc", Some(Errno::LOOP)),
            ("up", Some(Errno::LOOP)),
            ("absent", Some(Errno::NOENT)),
        ];
        for (path, refused) in cases {
            let got = open(&fd, Path::new(path), OFlags::RDONLY).err().map(|e| e.source);
            assert_eq!(got, refused, "{path:?}");
        }
    }
}
