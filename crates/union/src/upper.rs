//! The upper layer's claim and its work directory, where everything new is staged.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use layer::{Layer, Namespace};
use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, lgetxattr, mkdirat, openat,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result, Step, call, refused};

/// Flags for a directory that is opened to be used, not to be walked through.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The feature of an upper that was not synced.
const VOLATILE: &str = "volatile";

/// How often, and how far apart, a lock that another process has is asked for: 1.5 s in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(15);

#[derive(Debug)]
pub(crate) struct Upper {
    /// `work/work`: on the file system of the upper, so that one rename publishes.
    pub work: OwnedFd,
    next: AtomicU64,
    /// Copy-ups are not synced.
    pub volatile: bool,
    /// The upper and the work directory, whose locks live as long as these descriptors.
    _claim: [OwnedFd; 2],
}

impl Upper {
    /// Takes upper and work for this union alone and empties the work directory.
    pub fn claim(layer: &Layer, work_path: &Path, volatile: bool) -> Result<Self> {
        let fail = |name| move |e| call(work_path, Step::Claim, name, e);
        let outer = rustix::fs::open(work_path, DIRECTORY, Mode::empty()).map_err(fail("open"))?;
        let root = layer.open_dir(Path::new(""))?;
        let (upper, work) =
            (fstat(&root).map_err(fail("fstat"))?, fstat(&outer).map_err(fail("fstat"))?);
        if upper.st_dev != work.st_dev {
            return Err(Error::WorkElsewhere { work: work_path.to_owned() });
        }
        if upper.st_ino == work.st_ino {
            return Err(refused(work_path, Errno::INVAL));
        }
        for fd in [&root, &outer] {
            if !lock(fd).map_err(fail("flock"))? {
                return Err(Error::UpperInUse { upper: layer.path().to_owned() });
            }
        }
        match mkdirat(&outer, "work", Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(fail("mkdirat")(e)),
        }
        let work = openat(&outer, "work", DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
            .map_err(fail("openat"))?;
        match feature(&work).map_err(fail("openat"))? {
            None => {}
            Some(feature) if feature == VOLATILE => {
                return Err(Error::WasVolatile { work: work_path.to_owned() });
            }
            Some(_) => return Err(Error::UnknownFeature { work: work_path.to_owned() }),
        }
        let namespace = layer.namespace();
        if has_hidden_names(&outer, namespace).map_err(fail("its index"))? {
            return Err(Error::KernelIndex { work: work_path.to_owned() });
        }
        // What a crash left staged was never shown.
        empty(&work, &["incompat"]).map_err(fail("unlinkat"))?;
        let next = AtomicU64::new(0);
        Ok(Self { work, next, volatile, _claim: [root, outer] })
    }

    /// Leaves the mark that keeps every later union, and the kernel, from taking the upper layer for whole.
    ///
    /// Source: kernel `fs/overlayfs/super.c`, `work/incompat/volatile/dirty`.
    pub fn mark_volatile(&self) -> std::result::Result<(), Errno> {
        for dir in ["incompat", "incompat/volatile"] {
            match mkdirat(&self.work, dir, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        let made = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.work, "incompat/volatile/dirty", made, Mode::empty()).map(drop)
    }

    /// A name in the work directory that nothing has.
    pub fn temp(&self) -> OsString {
        format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// Removes what was staged or moved out. What can't be removed now goes at the next open.
    pub fn discard(&self, temp: &OsStr) {
        if let Err(e) = remove(&self.work, temp) {
            tracing::debug!(?temp, error = %e, "left in the work directory");
        }
    }
}

/// Locks a directory; false where another process keeps it locked.
///
/// umount(8) returns before the process that served the mount has ended, so that whoever mounts the same upper again at
/// once would meet its lock: it gets a moment to go.
fn lock(fd: &OwnedFd) -> std::result::Result<bool, Errno> {
    for _ in 0..LOCK_TRIES {
        match flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

/// A feature with which an upper was written and that keeps this union from using it.
///
/// Source: kernel `fs/overlayfs`, `work/incompat`.
fn feature(work: &OwnedFd) -> std::result::Result<Option<OsString>, Errno> {
    let dir = match openat(work, "incompat", DIRECTORY, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && name != b"partial" {
            return Ok(Some(OsStr::from_bytes(name).to_owned()));
        }
    }
    Ok(None)
}

/// Whether the kernel keeps changed files in its index that a name of a lower layer shows and the upper layer has not:
/// under that name the old file would be seen.
///
/// An entry is one more link of the file in the upper layer, and says how many links the union shows: `U` and how many
/// more than the file has, or `L` and how many more than the lower one.
///
/// Source: kernel `fs/overlayfs/inode.c`, `ovl_get_nlink`; overlayfs.rst, "Inode index".
fn has_hidden_names(work: &OwnedFd, namespace: Namespace) -> std::result::Result<bool, Errno> {
    let index = match openat(work, "index", DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(index) => index,
        Err(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(e),
    };
    for entry in Dir::read_from(&index)? {
        let entry = entry?;
        let name = entry.file_name();
        let stat = statat(&index, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
        if kind == FileType::Directory || whiteout {
            continue;
        }
        let path = Path::new("/proc/self/fd").join(index.as_raw_fd().to_string());
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        let mut value = [0; 32];
        let len = match lgetxattr(&path, namespace.attribute("nlink").as_str(), &mut value) {
            Ok(len) => len,
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => return Ok(true),
            Err(e) => return Err(e),
        };
        if all_names_are_upper(&value[..len]) {
            continue;
        }
        return Ok(true);
    }
    Ok(false)
}

/// Whether no link is shown beside those that the upper layer has; the one in the index is not shown.
fn all_names_are_upper(nlink: &[u8]) -> bool {
    let more = nlink.strip_prefix(b"U").and_then(|more| std::str::from_utf8(more).ok());
    more.and_then(|more| more.parse::<i64>().ok()).is_some_and(|more| more < 0)
}

/// Removes everything in the directory behind `dir`, but what is to stay.
fn empty(dir: &OwnedFd, stays: &[&str]) -> std::result::Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." && stays.iter().all(|stays| name != *stays) {
            remove(dir, name)?;
        }
    }
    Ok(())
}

/// Removes `name` and, where it is a directory, everything in it. Symlinks are not followed.
fn remove(dir: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            empty(&openat(dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?, &[])?;
            unlinkat(dir, name, AtFlags::REMOVEDIR)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_count_of_upper_links_says_that_there_are_no_others() {
        let cases: [(&[u8], bool); 6] = [
            (b"U-1", true),
            (b"U+0", false),
            (b"U+1", false),
            (b"L+0", false),
            (b"L-1", false),
            (b"", false),
        ];
        for (nlink, all) in cases {
            assert_eq!(all_names_are_upper(nlink), all, "{nlink:?}");
        }
    }
}
