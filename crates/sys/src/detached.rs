//! Mounts that only this process sees.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx};
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
    let tree = clone(&dir)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&tree, ".", flags, Mode::empty()).map_err(|e| Error::new("openat", dir.as_fd(), e))
}

/// [`read_only_copy`] of each directory. Those of one mount have one copy of it, as far as their paths tell where they
/// are: a mount costs the kernel 0.1 ms when it goes.
pub fn read_only_copies<F: AsFd>(dirs: &[F]) -> Vec<Result<OwnedFd>> {
    let places: Vec<Option<(u64, PathBuf)>> = dirs.iter().map(place).collect();
    let mut trees: HashMap<u64, Option<(PathBuf, OwnedFd)>> = HashMap::new();
    let mut copy = |dir: &F, place: &Option<(u64, PathBuf)>| {
        let (mount, path) = place.as_ref()?;
        let tree = trees.entry(*mount).or_insert_with(|| common(*mount, &places));
        let (above, tree) = tree.as_ref()?;
        let found = crate::beneath::open(
            tree,
            path.strip_prefix(above).ok()?,
            OFlags::RDONLY | OFlags::DIRECTORY,
        );
        let found = found.ok()?;
        // A path that has come to lead elsewhere is none.
        (inode(&found)? == inode(dir)?).then_some(found)
    };
    let each = dirs.iter().zip(&places);
    each.map(|(dir, place)| copy(dir, place).map_or_else(|| read_only_copy(dir), Ok)).collect()
}

/// A read-only copy of the mount `mount` at the directory that all its `places` lie in; none for a single place.
fn common(mount: u64, places: &[Option<(u64, PathBuf)>]) -> Option<(PathBuf, OwnedFd)> {
    let mut paths = places.iter().flatten().filter(|(of, _)| *of == mount).map(|(_, path)| path);
    let first = paths.next()?;
    let mut above: &Path = paths.next().map(|second| shared(first, second))?;
    for path in paths {
        above = shared(above, path);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(above, flags, Mode::empty()).ok()?;
    let (of, path) = place(&dir)?;
    (of == mount && path == above).then(|| Some((path, clone(&dir).ok()?)))?
}

fn shared<'a>(one: &'a Path, other: &Path) -> &'a Path {
    one.ancestors().find(|above| other.starts_with(above)).unwrap_or(Path::new("/"))
}

/// The mount that a directory was opened on, and its path.
fn place(dir: impl AsFd) -> Option<(u64, PathBuf)> {
    let stat = statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    let link = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    let path = rustix::fs::readlink(link, Vec::new()).ok()?;
    let path = PathBuf::from(OsString::from_vec(path.into_bytes()));
    path.is_absolute().then_some((stat.stx_mnt_id, path))
}

fn inode(dir: impl AsFd) -> Option<(u64, u64)> {
    rustix::fs::fstat(dir).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// The mount of `dir` once more, from the directory down, read-only; it goes with the descriptor and those opened
/// through it.
fn clone(dir: impl AsFd) -> Result<OwnedFd> {
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
    Ok(tree)
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

    #[test]
    fn directories_of_one_mount_have_one_copy_and_stay_who_they_are() {
        let temp = tempfile::tempdir().expect("a directory");
        let open = |name: &str| std::fs::File::open(temp.path().join(name)).expect("a directory");
        for name in ["a/x", "a/y", "gone"] {
            std::fs::create_dir_all(temp.path().join(name)).expect("a directory");
            std::fs::write(temp.path().join(name).join("file"), name).expect("a file");
        }
        let dirs = [open("a/x"), open("gone"), open("a/y"), open("a/x")];
        // Its path tells nothing any more; another one has it.
        std::fs::rename(temp.path().join("gone"), temp.path().join("moved")).expect("renamed");
        std::fs::create_dir(temp.path().join("gone")).expect("a directory");
        let copies = match read_only_copies(&dirs).into_iter().collect::<Result<Vec<_>>>() {
            Ok(copies) => copies,
            Err(e) => {
                assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "{e}");
                eprintln!("SKIPPED: no mounts of our own: {e}");
                return;
            }
        };
        for (copy, want) in copies.iter().zip(["a/x", "gone", "a/y", "a/x"]) {
            let file = openat(copy, "file", OFlags::RDONLY, Mode::empty()).expect("the file");
            let text = std::io::read_to_string(std::fs::File::from(file)).expect("text");
            assert_eq!(text, want);
            let write = openat(copy, "file", OFlags::RDWR, Mode::empty());
            assert_eq!(write.err(), Some(Errno::ROFS));
        }
        let mount = |dir: &OwnedFd| place(dir).expect("a place").0;
        assert_eq!(mount(&copies[0]), mount(&copies[2]));
    }
}
