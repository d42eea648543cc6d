//! The upper layer's claim and its work directory, where everything new is staged.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use layer::Layer;
use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, linkat, mkdirat, mknodat,
    openat, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result, Step, call, refused};
use crate::in_place::Creator;
use crate::index::{Index, has_hidden_names};
use crate::stack::Config;

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
    /// Whose what this process makes is.
    pub creator: Creator,
    /// Owner and group of what is made in `work`, once that is known: its group may be handed on, or the file system's way.
    owner_of_new: OnceLock<(u32, u32)>,
    /// A whiteout in `work` that others are links of.
    whiteout: Mutex<Option<Arc<OsStr>>>,
    /// Copy-ups are not synced.
    pub volatile: bool,
    /// Where files with several names below are kept together.
    pub index: Option<Index>,
    /// The upper and the work directory, whose locks live as long as these descriptors.
    _claim: [OwnedFd; 2],
}

impl Upper {
    /// Takes upper and work for this union alone and empties the work directory.
    pub fn claim(layer: &Layer, work_path: &Path, config: &Config) -> Result<Self> {
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
        if !config.index && has_hidden_names(&outer, namespace).map_err(fail("its index"))? {
            return Err(Error::KernelIndex { work: work_path.to_owned() });
        }
        let index = config.index.then(|| Index::open(&outer, namespace));
        let index = index.transpose().map_err(fail("its index"))?;
        // What a crash left staged was never shown.
        empty(&work, &["incompat"]).map_err(fail("unlinkat"))?;
        let next = AtomicU64::new(0);
        let volatile = config.volatile;
        let creator = Creator::this_process();
        Ok(Self {
            work,
            next,
            creator,
            owner_of_new: OnceLock::new(),
            whiteout: Mutex::default(),
            volatile,
            index,
            _claim: [root, outer],
        })
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

    /// Owner and group of what is made in the work directory, as `made` was.
    pub fn owner_of_new(&self, made: &OwnedFd) -> std::result::Result<(u32, u32), Errno> {
        if let Some(known) = self.owner_of_new.get() {
            return Ok(*known);
        }
        let stat = fstat(made)?;
        Ok(*self.owner_of_new.get_or_init(|| (stat.st_uid, stat.st_gid)))
    }

    /// Makes a whiteout where nothing is: EEXIST otherwise. All are links of one, as long as the file system lets it have
    /// more.
    pub fn put_whiteout(&self, dir: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
        let known = self.whiteout.lock().clone();
        if let Some(known) = known {
            match linkat(&self.work, &*known, dir, name, AtFlags::empty()) {
                Err(Errno::MLINK | Errno::NOENT | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => {
                }
                done => return done,
            }
        }
        mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)?;
        let next = self.temp();
        if linkat(dir, name, &self.work, &*next, AtFlags::empty()).is_ok()
            && let Some(old) = self.whiteout.lock().replace(Arc::from(next))
        {
            self.discard(&old);
        }
        Ok(())
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

impl Drop for Upper {
    fn drop(&mut self) {
        if let Some(whiteout) = self.whiteout.get_mut().take() {
            self.discard(&whiteout);
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
        if ![&b"."[..], b"..", b"partial", b"unsynced"].contains(&name) {
            return Ok(Some(OsStr::from_bytes(name).to_owned()));
        }
    }
    Ok(None)
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
