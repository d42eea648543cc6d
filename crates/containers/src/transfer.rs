//! A container's merged tree from outside: files copied in and out, and all of it as an archive.
//!
//! A running container's tree is the one that its watcher has mounted, without what is mounted in the container's own
//! namespace. A stopped one's is mounted for the occasion, in a namespace that ends with the caller.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use runtime::launch::Users;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, openat2};
use rustix::io::Errno;
use store::Store;

use crate::container::{Container, Lock, Status};
use crate::tree::{self, At, kind};
use crate::{Error, Result, view};

/// A container's tree, to be read and written.
#[derive(Debug)]
pub struct Opened {
    root: OwnedFd,
    namespace: layer::Namespace,
    /// Where it was mounted for the occasion.
    shown: Option<(view::Shown, PathBuf, Lock)>,
}

impl Container {
    /// Opens its tree, running or not. To be called by a process with one thread, which a stopped container's tree
    /// costs its mount namespace; `exe` is its program.
    ///
    /// # Errors
    /// [`Error::View`], [`Error::Io`]: the layers can't be shown, or the container is somebody else's.
    pub fn open_tree(&self, store: &Store, exe: &Path) -> Result<Opened> {
        let merged = self.dir.join("merged");
        let namespace = store.namespace();
        if self.status()? == Status::Running {
            let rootless = Users::for_container() != Users::Kept;
            runtime::enter::mounts(self.state().watcher, rootless)?;
            return Ok(Opened { root: tree::root(&merged)?, namespace, shown: None });
        }
        let lock = self.lock_stopped()?;
        self.mend(store)?;
        self.make_whole(store)?;
        let layers = self.layers(store)?;
        runtime::launch::isolate(Users::for_container())?;
        let shown = view::show(&layers, &merged, self.config.backend, exe)?;
        let root = tree::root(&merged)?;
        Ok(Opened { root, namespace, shown: Some((shown, merged, lock)) })
    }
}

impl Opened {
    /// Writes all of the tree as a tar; the bytes written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn export(&self, to: &mut dyn Write) -> Result<u64> {
        let fail = |e: std::io::Error| Error::io("export", "the container", e);
        let root = self.root.try_clone().map_err(fail)?;
        store::tar::diff::write(root, self.namespace, to).map_err(fail)
    }

    /// Lets go of it, once all that was written is in the writable layer.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn close(self) -> Result<()> {
        let Some((shown, merged, _lock)) = self.shown else { return Ok(()) };
        drop(self.root);
        view::hide(&merged)?;
        match shown.daemon {
            Some(mut daemon) => {
                daemon.wait().map(drop).map_err(|e| Error::io("wait for the daemon of", &merged, e))
            }
            None => Ok(()),
        }
    }

    /// What stands at a path: the directory that it is in, and its name there. Links are followed within the tree,
    /// except at the end.
    fn place(&self, path: &Path) -> Result<Place> {
        let fail = |e: Errno| Error::io("find in the container", path, e);
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let parent = match path.file_name() {
            Some(_) => path.parent().unwrap_or(Path::new("/")),
            None => path,
        };
        let relative = parent.strip_prefix("/").unwrap_or(parent);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let dir = openat2(&self.root, relative, flags, Mode::empty(), how).map_err(fail)?;
        Ok(Place { dir, name: name.to_owned(), shown: path.to_owned() })
    }
}

/// A name in an open directory, which need not be there.
#[derive(Debug)]
struct Place {
    dir: OwnedFd,
    name: OsString,
    shown: PathBuf,
}

impl Place {
    fn at(&self) -> At<'_> {
        At { dir: self.dir.as_fd(), name: &self.name, shown: &self.shown }
    }

    /// That of a path of the machine.
    fn here(path: &Path) -> Result<Self> {
        let whole = path.file_name().is_none();
        let parent = if whole { path } else { path.parent().unwrap_or(Path::new("/")) };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let name = path.file_name().unwrap_or(OsStr::new(".")).to_owned();
        Ok(Self { dir: tree::root(parent)?, name, shown: path.to_owned() })
    }

    fn is_dir(&self) -> Result<bool> {
        Ok(self.at().stat()?.is_some_and(|stat| kind(&stat) == FileType::Directory))
    }

    fn below(&self, name: &OsStr) -> Result<Self> {
        let dir = tree::directory(&self.dir, Path::new(&self.name))?;
        Ok(Self { dir, name: name.to_owned(), shown: self.shown.join(name) })
    }
}

/// Who a copy belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Who the original belongs to.
    Same,
    /// This user and group.
    Of(u32, u32),
}

/// Copies `from` of the machine to `to` in the container, as cp(1) names copies: into `to` where that is a directory,
/// otherwise as `to`. The content of a directory alone where `from` ends in `/.`.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn copy_in(container: &Opened, from: &Path, to: &Path, owner: Owner) -> Result<()> {
    let content = is_content(from);
    let from = Place::here(&plain(from))?;
    let to = container.place(to)?;
    copy(&from, to, content, owner)
}

/// Copies what is in a tar to `to` in the container, which is a directory there; by way of `stage`, a directory of this
/// machine with nothing in it.
///
/// # Errors
/// [`Error::Store`] for what is no tar; [`Error::Io`] with the path.
pub fn copy_in_tar(
    container: &Opened,
    store: &Store,
    tar: impl BufRead,
    stage: &Path,
    to: &Path,
    owner: Owner,
) -> Result<()> {
    let to = container.place(to)?;
    if !to.is_dir()? {
        return Err(Error::io("unpack into", &to.shown, Errno::NOTDIR));
    }
    let tree = stage.join("fs");
    std::fs::create_dir(&tree).map_err(|e| Error::io("make", &tree, e))?;
    store.unpack(tar, stage)?;
    let from = Place { dir: tree::root(&tree)?, name: ".".into(), shown: tree };
    copy(&from, to, true, owner)
}

/// Writes `from` of the container as a tar: under its own name, or what is in it where it ends in `/.`.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn copy_out_tar(container: &Opened, from: &Path, tar: &mut dyn Write) -> Result<()> {
    let content = is_content(from);
    let from = container.place(&plain(from))?;
    if from.at().stat()?.is_none() {
        return Err(Error::io("find in the container", &from.shown, Errno::NOENT));
    }
    let shown = Some(from.name.as_os_str()).filter(|name| !content && *name != ".");
    store::tar::diff::write_below(&from.dir, &from.name, shown, container.namespace, tar)
        .map(drop)
        .map_err(|e| Error::io("copy", &from.shown, e))
}

/// The reverse of [`copy_in`].
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn copy_out(container: &Opened, from: &Path, to: &Path, owner: Owner) -> Result<()> {
    let content = is_content(from);
    let from = container.place(&plain(from))?;
    copy(&from, Place::here(&plain(to))?, content, owner)
}

fn is_content(path: &Path) -> bool {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).ends_with(b"/.")
}

/// Without a dot at the end, which names the same.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

fn copy(from: &Place, to: Place, content: bool, owner: Owner) -> Result<()> {
    let is_dir = from.is_dir()?;
    let to = if to.is_dir()? && !(is_dir && content) && from.name != "." {
        to.below(&from.name)?
    } else {
        to
    };
    over(from, &to, owner)
}

/// Copies over what is there: directories are merged, anything else is replaced at once.
fn over(from: &Place, to: &Place, owner: Owner) -> Result<()> {
    let there = to.at().stat()?;
    let into = there.as_ref().is_some_and(|stat| kind(stat) == FileType::Directory);
    match (from.is_dir()?, into) {
        (true, true) => {
            let dir = tree::directory(&from.dir, Path::new(&from.name))?;
            for name in tree::names(&dir, &from.shown)? {
                over(&from.below(&name)?, &to.below(&name)?, owner)?;
            }
            Ok(())
        }
        (false, true) => Err(Error::io("replace the directory", &to.shown, Errno::ISDIR)),
        (true, false) if there.is_some() => {
            Err(Error::io("replace the file", &to.shown, Errno::NOTDIR))
        }
        _ => {
            let mut staged = OsString::from(".strata-cp-");
            staged.push(std::process::id().to_string());
            let stage = At { dir: to.dir.as_fd(), name: &staged, shown: &to.shown };
            tree::remove(stage)?;
            let copied = tree::copy(from.at(), stage, true).and_then(|()| give(stage, owner));
            let placed = copied.and_then(|()| {
                rustix::fs::renameat(&to.dir, &staged, &to.dir, &to.name)
                    .map_err(|e| Error::io("place", &to.shown, e))
            });
            if placed.is_err() {
                tree::remove(stage)?;
            }
            placed
        }
    }
}

/// Makes all of a tree somebody's; the modes stay, set-user-ID included.
fn give(at: At<'_>, owner: Owner) -> Result<()> {
    let Owner::Of(uid, gid) = owner else { return Ok(()) };
    let Some(stat) = at.stat()? else { return Ok(()) };
    let fail = |e: Errno| Error::io("set the owner of", at.shown, e);
    if kind(&stat) == FileType::Directory {
        let dir = tree::directory(at.dir, Path::new(at.name))?;
        for name in tree::names(&dir, at.shown)? {
            let shown = at.shown.join(&name);
            give(At { dir: dir.as_fd(), name: &name, shown: &shown }, owner)?;
        }
    }
    if (stat.st_uid, stat.st_gid) == (uid, gid) {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(at.dir, at.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
    if kind(&stat) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode);
        rustix::fs::chmodat(at.dir, at.name, mode, AtFlags::empty()).map_err(fail)?;
    }
    Ok(())
}
