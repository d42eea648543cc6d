//! Asks one layer about one name.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, fstat, statat, statx};
use rustix::io::Errno;

use crate::mark::{self, Namespace, Opaque};
use crate::{Error, Owner, Owners, Result, Step};

/// One layer's answer about one name, as the fold over layers needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The layer does not have the name.
    Absent,
    /// The layer says that the name is deleted.
    Whiteout,
    /// Anything but a directory.
    Leaf,
    /// A directory; an opaque one hides those below.
    Dir {
        /// Whether layers below are hidden.
        opaque: bool,
    },
}

/// What a probe asks `statx` for: all that a `stat` shows, and the time of birth.
pub const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// One layer's answer with what was found.
#[derive(Debug)]
pub struct Probe {
    /// What the layer says.
    pub kind: Kind,
    /// What `stat` gave, where the layer has the name.
    pub stat: Option<Statx>,
    /// The directory itself, `O_RDONLY`, where the name is one.
    pub dir: Option<OwnedFd>,
    /// Whether that [may have marks](mark::any).
    pub marked: bool,
}

impl Probe {
    /// An answer that is no directory.
    fn leaf(kind: Kind, stat: Option<Statx>) -> Self {
        Self { kind, stat, dir: None, marked: false }
    }

    /// The layer does not have the name.
    #[must_use]
    pub fn absent() -> Self {
        Self::leaf(Kind::Absent, None)
    }
}

/// A layer: a directory that is opened once and never left.
#[derive(Debug)]
pub struct Layer {
    path: PathBuf,
    root: OwnedFd,
    namespace: Namespace,
    /// Names that begin with `.wh.` are marks.
    aufs: bool,
    owners: Option<Owners>,
}

impl Layer {
    /// Opens the layer at `path`.
    ///
    /// # Errors
    /// [`Step::OpenRoot`]: no such directory, or no permission; [`Step::ReadMark`].
    pub fn open(path: &Path, namespace: Namespace) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error {
            layer: path.to_owned(),
            path: PathBuf::new(),
            step: Step::OpenRoot,
            source: sys::Error::new("open", path, e),
        })?;
        let owners = Owners::of(&root).map_err(|e| Error {
            layer: path.to_owned(),
            path: PathBuf::new(),
            step: Step::ReadMark,
            source: sys::Error::new("fgetxattr", path, e),
        })?;
        Ok(Self { path: path.to_owned(), root, namespace, aufs: true, owners })
    }

    /// As lower layers: without what is mounted below them, and so that nothing can be written to them, as far as this
    /// process may have a mount of its own.
    #[must_use]
    pub fn as_lowers(layers: Vec<Self>) -> Vec<Self> {
        let roots: Vec<_> = layers.iter().map(|layer| &layer.root).collect();
        let copies = sys::detached::read_only_copies(&roots);
        let each = layers.into_iter().zip(copies);
        each.map(|(layer, copy)| match copy {
            Ok(root) => Self { root, ..layer },
            Err(_) => layer,
        })
        .collect()
    }

    /// As an upper layer, where no union makes marks in the AUFS form: `.wh.` begins a name like any other.
    #[must_use]
    pub fn as_upper(self) -> Self {
        Self { aufs: false, ..self }
    }

    /// Whether it is one that is written to.
    pub fn is_upper(&self) -> bool {
        !self.aufs
    }

    /// Where the layer's marks live.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Where owners and modes are, if not with the files.
    pub fn owners(&self) -> Option<Owners> {
        self.owners
    }

    /// From now on, owners and modes of what is written are in an attribute; the root's says so.
    ///
    /// # Errors
    /// [`Step::WriteMark`].
    pub fn keep_owners(&mut self, owners: Owners, root: Owner) -> Result<()> {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(&self.root, owners.attribute(), root.value().as_bytes(), flags)
            .map_err(|e| {
                let source = sys::Error::new("fsetxattr", owners.attribute(), e);
                self.error(Path::new(""), Step::WriteMark, source)
            })?;
        self.owners = Some(owners);
        Ok(())
    }

    /// The directory, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory `path` of this layer.
    ///
    /// # Errors
    /// [`Step::Lookup`]; see [`sys::beneath::open`].
    pub fn open_dir(&self, path: &Path) -> Result<OwnedFd> {
        sys::beneath::open(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|source| self.error(path, Step::Lookup, source))
    }

    /// What this layer says about `name` in its directory `dir`, whose path is `path`.
    ///
    /// Cost: one `stat`; for an absent name one more, for the AUFS form; for a directory an open,
    /// an attribute and a `stat`.
    ///
    /// # Errors
    /// Anything but absence: an unreadable layer never reads as an empty one.
    pub fn probe(&self, dir: impl AsFd, path: &Path, name: &OsStr) -> Result<Probe> {
        let fail = |call, step, e| {
            let at = path.join(name);
            let source = sys::Error::new(call, &at, e);
            self.error(&at, step, source)
        };
        if self.aufs && mark::is_aufs(name) {
            return Ok(Probe::absent());
        }
        let stat = match statx(&dir, name, AtFlags::SYMLINK_NOFOLLOW, WANTED) {
            Ok(stat) => stat,
            Err(Errno::NOENT) if !self.aufs => {
                return Ok(Probe::absent());
            }
            Err(Errno::NOENT) => {
                let kind = if self
                    .has(&dir, &mark::aufs_whiteout(name))
                    .map_err(|e| fail("statat", Step::Lookup, e))?
                {
                    Kind::Whiteout
                } else {
                    Kind::Absent
                };
                return Ok(Probe::leaf(kind, None));
            }
            Err(e) => return Err(fail("statx", Step::Lookup, e)),
        };
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => {
                let fd =
                    sys::beneath::open(&dir, Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY)
                        .map_err(|source| self.error(&path.join(name), Step::Lookup, source))?;
                let (marked, mark) =
                    self.marks(&fd).map_err(|e| fail("fgetxattr", Step::ReadMark, e))?;
                let opaque = mark == Opaque::Yes
                    || self.aufs
                        && self
                            .has(&fd, OsStr::new(mark::AUFS_OPAQUE))
                            .map_err(|e| fail("statat", Step::ReadMark, e))?;
                Ok(Probe { kind: Kind::Dir { opaque }, stat: Some(stat), dir: Some(fd), marked })
            }
            FileType::CharacterDevice if (stat.stx_rdev_major, stat.stx_rdev_minor) == (0, 0) => {
                Ok(Probe::leaf(Kind::Whiteout, None))
            }
            FileType::RegularFile
                if stat.stx_size == 0
                    && self
                        .marked_whiteout(&dir, name)
                        .map_err(|e| fail("fgetxattr", Step::ReadMark, e))? =>
            {
                Ok(Probe::leaf(Kind::Whiteout, None))
            }
            _ => Ok(Probe::leaf(Kind::Leaf, Some(stat))),
        }
    }

    /// Whether the directory behind `dir` says that files in it may be attribute whiteouts.
    ///
    /// # Errors
    /// [`Step::ReadMark`].
    pub fn has_attribute_whiteouts(&self, dir: impl AsFd) -> Result<bool> {
        let (_, opaque) = self.marks(dir).map_err(|e| {
            self.error(Path::new(""), Step::ReadMark, sys::Error::new("fgetxattr", "", e))
        })?;
        Ok(opaque == Opaque::Whiteouts)
    }

    /// Whether a directory may have marks, and its opaque mark.
    fn marks(&self, dir: impl AsFd) -> std::result::Result<(bool, Opaque), Errno> {
        let marked = mark::any(&dir, self.namespace)?;
        let opaque = if marked { mark::opaque(dir, self.namespace)? } else { Opaque::No };
        Ok((marked, opaque))
    }

    /// Whether the empty file `name` is an attribute whiteout: its directory says that it has some.
    fn marked_whiteout(&self, dir: impl AsFd, name: &OsStr) -> std::result::Result<bool, Errno> {
        let (_, opaque) = self.marks(&dir)?;
        if opaque != Opaque::Whiteouts {
            return Ok(false);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
        // The name may have changed hands since it was seen to be an empty regular file.
        let regular = FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile;
        Ok(regular && mark::is_whiteout(&file, self.namespace)?)
    }

    fn has(&self, dir: impl AsFd, name: &OsStr) -> std::result::Result<bool, Errno> {
        match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            // A name too long for its whiteout to exist has none.
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn error(&self, path: &Path, step: Step, source: sys::Error) -> Error {
        Error { layer: self.path.clone(), path: path.to_owned(), step, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn kind(layer: &Layer, dir: &str, name: &str) -> Kind {
        let fd = layer.open_dir(Path::new(dir)).expect("the directory");
        layer.probe(&fd, Path::new(dir), OsStr::new(name)).expect("an answer").kind
    }

    #[test]
    fn each_form_of_each_mark_is_read() {
        let temp = tempfile::tempdir().expect("a directory");
        let at = |p: &str| temp.path().join(p);
        for dir in ["plain", "aufs", "marked", "foreign", "x"] {
            fs::create_dir(at(dir)).expect("a directory");
        }
        fs::write(at("file"), "").expect("a file");
        symlink("/etc/passwd", at("link")).expect("a symlink");
        fs::write(at(".wh.gone"), "").expect("a file");
        fs::write(at("aufs/.wh..wh..opq"), "").expect("a file");
        fs::write(at("x/gone"), "").expect("a file");
        fs::write(at("x/empty"), "").expect("a file");
        fs::write(at("gone-not-marked"), "").expect("a file");
        let set = |path: &str, name: &str, value: &[u8]| {
            let path = at(path);
            match rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty()) {
                Ok(()) => true,
                Err(Errno::OPNOTSUPP) => {
                    assert!(
                        std::env::var_os("STRATA_REQUIRE").is_none(),
                        "no user attributes here"
                    );
                    eprintln!("SKIPPED: this file system has no user attributes");
                    false
                }
                Err(e) => panic!("{path:?}: {e}"),
            }
        };
        let marked = set("marked", "user.overlay.opaque", b"y")
            && set("foreign", "user.fuseoverlayfs.opaque", b"y")
            && set("x", "user.overlay.opaque", b"x")
            && set("x/gone", "user.overlay.whiteout", b"")
            && set("gone-not-marked", "user.overlay.whiteout", b"");
        if !marked {
            return;
        }
        let layer = Layer::open(temp.path(), Namespace::User).expect("the layer");
        let cases = [
            ("", "plain", Kind::Dir { opaque: false }),
            ("", "aufs", Kind::Dir { opaque: true }),
            ("", "marked", Kind::Dir { opaque: true }),
            ("", "foreign", Kind::Dir { opaque: true }),
            ("", "x", Kind::Dir { opaque: false }),
            ("", "file", Kind::Leaf),
            ("", "link", Kind::Leaf),
            ("", "gone", Kind::Whiteout),
            ("", "gone-not-marked", Kind::Leaf),
            ("", "absent", Kind::Absent),
            ("", ".wh.gone", Kind::Absent),
            ("x", "gone", Kind::Whiteout),
            ("x", "empty", Kind::Leaf),
        ];
        for (dir, name, want) in cases {
            assert_eq!(kind(&layer, dir, name), want, "{dir:?} {name:?}");
        }
        let upper = layer.as_upper();
        assert_eq!(kind(&upper, "", ".wh.gone"), Kind::Leaf);
        assert_eq!(kind(&upper, "", "gone"), Kind::Absent);
    }

    #[test]
    fn a_char_device_0_0_is_a_whiteout_and_no_other_device_is() {
        let temp = tempfile::tempdir().expect("a directory");
        let dir = fs::File::open(temp.path()).expect("the directory");
        let node = |name: &str, minor| {
            rustix::fs::mknodat(
                &dir,
                name,
                FileType::CharacterDevice,
                Mode::RUSR,
                rustix::fs::makedev(minor, minor),
            )
        };
        if let Err(e) = node("gone", 0).and_then(|()| node("null", 1)) {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "mknod: {e}");
            eprintln!("SKIPPED: devices can't be made here: {e}");
            return;
        }
        let layer = Layer::open(temp.path(), Namespace::Trusted).expect("the layer");
        assert_eq!(kind(&layer, "", "gone"), Kind::Whiteout);
        assert_eq!(kind(&layer, "", "null"), Kind::Leaf);
    }
}
