//! Copies of what is in a tree: each kind of file with its owner, mode, times, attributes and holes.
//!
//! Everything is named by a directory and a name in it, so that no link on the way is followed.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::{Error, Result};

/// A name in an open directory.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The directory.
    pub dir: BorrowedFd<'a>,
    /// The name in it.
    pub name: &'a OsStr,
    /// Both, for messages.
    pub shown: &'a Path,
}

impl At<'_> {
    /// What stands there, without following a link.
    ///
    /// # Errors
    /// [`Error::Io`], other than that there is nothing.
    pub fn stat(self) -> Result<Option<Stat>> {
        match rustix::fs::statat(self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.fail("look at")(e)),
        }
    }

    fn fail(self, step: &'static str) -> impl Fn(Errno) -> Error {
        let shown = self.shown.to_owned();
        move |e| Error::io(step, &shown, e)
    }
}

/// The kind of a file.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Copies what `from` names to the new name `to`; for a directory with all that is in it where `deep`.
///
/// Owner, mode, times and attributes are those of `from`, except marks of overlays; hard links become files of their
/// own. Without the privilege to give files away they are the caller's.
///
/// # Errors
/// [`Error::Io`] with the path that failed; what was made until then stays.
pub fn copy(from: At<'_>, to: At<'_>, deep: bool) -> Result<()> {
    copy_all(from, to, deep, None)
}

/// Copies the layer `from` to the new path `to`: with its marks, and hard links stay one file.
///
/// # Errors
/// As [`copy`].
pub(crate) fn twin(from: &Path, to: &Path) -> Result<()> {
    let above = |path: &Path| root(path.parent().unwrap_or(Path::new("/")));
    let (source, target) = (above(from)?, above(to)?);
    let at = |dir, path| At { dir, name: Path::file_name(path).unwrap_or_default(), shown: path };
    let mut links = Links { root: &target, shown: to, known: HashMap::new() };
    copy_all(at(source.as_fd(), from), at(target.as_fd(), to), true, Some(&mut links))
}

/// Files with several names, under the first of them that was copied.
struct Links<'a> {
    root: &'a OwnedFd,
    /// What lies in there under its own name, for messages as for links.
    shown: &'a Path,
    known: HashMap<(u64, u64), PathBuf>,
}

impl Links<'_> {
    /// Whether `to` is now one more name of a file that was copied before.
    fn linked(&mut self, stat: &Stat, to: At<'_>) -> Result<bool> {
        if stat.st_nlink < 2 || kind(stat) == FileType::Directory {
            return Ok(false);
        }
        let above = self.shown.parent().unwrap_or(Path::new("/"));
        let name = to.shown.strip_prefix(above).unwrap_or(to.shown);
        match self.known.get(&(stat.st_dev, stat.st_ino)) {
            Some(first) => {
                rustix::fs::linkat(self.root, first, to.dir, to.name, AtFlags::empty())
                    .map_err(to.fail("link"))?;
                Ok(true)
            }
            None => {
                self.known.insert((stat.st_dev, stat.st_ino), name.to_owned());
                Ok(false)
            }
        }
    }
}

/// With `links` all of a layer, its marks too.
fn copy_all(from: At<'_>, to: At<'_>, deep: bool, mut links: Option<&mut Links<'_>>) -> Result<()> {
    let marks = links.is_some();
    let stat = from.stat()?.ok_or_else(|| from.fail("copy")(Errno::NOENT))?;
    if let Some(links) = links.as_deref_mut()
        && links.linked(&stat, to)?
    {
        return Ok(());
    }
    match kind(&stat) {
        FileType::Directory => {
            let mode = Mode::RWXU;
            rustix::fs::mkdirat(to.dir, to.name, mode).map_err(to.fail("make"))?;
            let source = open(from, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let target = open(to, OFlags::RDONLY | OFlags::DIRECTORY)?;
            if deep {
                for name in names(&source, from.shown)? {
                    let (below, above) = (from.shown.join(&name), to.shown.join(&name));
                    copy_all(
                        At { dir: source.as_fd(), name: &name, shown: &below },
                        At { dir: target.as_fd(), name: &name, shown: &above },
                        true,
                        links.as_deref_mut(),
                    )?;
                }
            }
            dress(&source, &target, &stat, to, marks)
        }
        FileType::RegularFile => {
            let source = open(from, OFlags::RDONLY)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target = rustix::fs::openat(to.dir, to.name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(to.fail("make"))?;
            sys::copy::data(&source, &target).map_err(|e| to.fail("copy to")(e.source))?;
            dress(&source, &target, &stat, to, marks)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from.dir, from.name, Vec::new())
                .map_err(from.fail("read"))?;
            rustix::fs::symlinkat(&target, to.dir, to.name).map_err(to.fail("make"))?;
            own(&stat, to)?;
            times(&stat, to)
        }
        other => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            rustix::fs::mknodat(to.dir, to.name, other, mode, stat.st_rdev)
                .map_err(to.fail("make"))?;
            own(&stat, to)?;
            rustix::fs::chmodat(to.dir, to.name, mode, AtFlags::empty())
                .map_err(to.fail("set the mode of"))?;
            times(&stat, to)
        }
    }
}

/// Gives what `to` names, a directory, the owner, mode, times and attributes of `from`.
///
/// # Errors
/// As [`copy`].
pub fn dress_directory(from: At<'_>, to: At<'_>) -> Result<()> {
    let source = open(from, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let target = open(to, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let stat = rustix::fs::fstat(&source).map_err(from.fail("look at"))?;
    dress(&source, &target, &stat, to, false)
}

/// Gives the directory `name` in `parent` what [`dress_directory`] gives, from the directory `from`.
///
/// # Errors
/// As [`copy`].
pub fn like_root(from: &Path, parent: &Path, name: &str) -> Result<()> {
    let (source, target) = (root(from)?, root(parent)?);
    let shown = parent.join(name);
    let from = At { dir: source.as_fd(), name: OsStr::new("."), shown: from };
    dress_directory(from, At { dir: target.as_fd(), name: OsStr::new(name), shown: &shown })
}

/// Removes what `at` names, with all that is in it.
///
/// # Errors
/// [`Error::Io`], other than that it is gone already.
pub fn remove(at: At<'_>) -> Result<()> {
    let Some(stat) = at.stat()? else { return Ok(()) };
    if kind(&stat) != FileType::Directory {
        return gone(rustix::fs::unlinkat(at.dir, at.name, AtFlags::empty()), at);
    }
    let dir = match open(at, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(dir) => dir,
        // Not even listable, as an overlay leaves its work directory.
        Err(_) => {
            rustix::fs::chmodat(at.dir, at.name, Mode::RWXU, AtFlags::empty())
                .map_err(at.fail("remove"))?;
            open(at, OFlags::RDONLY | OFlags::DIRECTORY)?
        }
    };
    for name in names(&dir, at.shown)? {
        let shown = at.shown.join(&name);
        remove(At { dir: dir.as_fd(), name: &name, shown: &shown })?;
    }
    gone(rustix::fs::unlinkat(at.dir, at.name, AtFlags::REMOVEDIR), at)
}

/// [`remove`] of a path.
///
/// # Errors
/// As [`remove`].
pub fn remove_path(path: &Path) -> Result<()> {
    let parent = root(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().unwrap_or_default();
    remove(At { dir: parent.as_fd(), name, shown: path })
}

fn gone(result: std::result::Result<(), Errno>, at: At<'_>) -> Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other.map_err(at.fail("remove")),
    }
}

/// Opens the directory `path` below `root`, following no link.
///
/// # Errors
/// [`Error::Io`].
pub fn directory(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    sys::beneath::open(root, relative, OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|e| Error::io("open the directory", path, e.source))
}

/// Opens a root.
///
/// # Errors
/// [`Error::Io`].
pub fn root(path: &Path) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).map_err(|e| Error::io("open the directory", path, e))
}

fn open(at: At<'_>, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(at.dir, at.name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(at.fail("open"))
}

pub(crate) fn names(dir: impl AsFd, shown: &Path) -> Result<Vec<std::ffi::OsString>> {
    let fail = |e| Error::io("list", shown, e);
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
        }
    }
    Ok(names)
}

fn own(stat: &Stat, to: At<'_>) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match rustix::fs::chownat(to.dir, to.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::PERM | Errno::INVAL) if !rustix::process::geteuid().is_root() => Ok(()),
        other => other.map_err(to.fail("set the owner of")),
    }
}

fn stamps(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nsec: u64| Timespec { tv_sec, tv_nsec: nsec.cast_signed() };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn times(stat: &Stat, to: At<'_>) -> Result<()> {
    rustix::fs::utimensat(to.dir, to.name, &stamps(stat), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(to.fail("set the times of"))
}

/// Owner first, since it clears set-user-ID and capabilities; times last, since all else changes them.
fn dress(source: &OwnedFd, target: &OwnedFd, stat: &Stat, to: At<'_>, marks: bool) -> Result<()> {
    own(stat, to)?;
    attributes(source, target, marks).map_err(to.fail("set the attributes of"))?;
    rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode))
        .map_err(to.fail("set the mode of"))?;
    rustix::fs::futimens(target, &stamps(stat)).map_err(to.fail("set the times of"))
}

fn attributes(
    source: &OwnedFd,
    target: &OwnedFd,
    with_marks: bool,
) -> std::result::Result<(), Errno> {
    let mut list = vec![0; 64 << 10];
    let len = match rustix::fs::flistxattr(source, &mut list[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(e) => return Err(e),
    };
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let marks: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];
        if !with_marks && marks.iter().any(|mark| name.starts_with(mark)) {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; 64 << 10];
        let len = match rustix::fs::fgetxattr(source, name, &mut value[..]) {
            Ok(len) => len,
            Err(Errno::NODATA) => continue,
            Err(e) => return Err(e),
        };
        match rustix::fs::fsetxattr(target, name, &value[..len], XattrFlags::empty()) {
            // Labels and capabilities are for the privileged; the rest has to come along.
            Err(Errno::PERM | Errno::OPNOTSUPP)
                if name.as_bytes().starts_with(b"security.")
                    || name.as_bytes().starts_with(b"trusted.") => {}
            other => other?,
        }
    }
    Ok(())
}

/// Makes the directory and those above it, as only the caller may enter them.
///
/// # Errors
/// [`Error::Io`].
pub fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::io("make", path, e))
}

/// The path by which a descriptor can be named in a call that takes none.
pub fn by_descriptor(fd: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_has_the_marks_and_the_links_of_its_layer() {
        let temp = tempfile::tempdir().expect("a directory");
        let at = |path: &str| temp.path().join(path);
        std::fs::create_dir_all(at("one/dir")).expect("a directory");
        std::fs::write(at("one/dir/file"), "text").expect("a file");
        std::fs::hard_link(at("one/dir/file"), at("one/link")).expect("a link");
        std::os::unix::fs::symlink("dir/file", at("one/soft")).expect("a link");
        let mark =
            rustix::fs::setxattr(at("one/dir"), "user.overlay.opaque", b"y", XattrFlags::empty());
        assert!(mark.is_ok(), "{mark:?}");
        twin(&at("one"), &at("two")).expect("copied");
        assert_eq!(std::fs::read_to_string(at("two/soft")).expect("text"), "text");
        std::fs::write(at("two/link"), "other").expect("a write");
        assert_eq!(std::fs::read_to_string(at("two/dir/file")).expect("text"), "other");
        assert_eq!(std::fs::read_to_string(at("one/link")).expect("text"), "text");
        let mut value = [0; 8];
        let len = rustix::fs::getxattr(at("two/dir"), "user.overlay.opaque", &mut value[..]);
        assert_eq!(&value[..len.expect("a mark")], b"y");
    }
}
