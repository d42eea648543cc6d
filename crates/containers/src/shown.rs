//! A stopped container's tree at a path of this machine, for whoever wants to look or work in it.
//!
//! It is shown by our union, whatever the container's own backend: its daemon holds the container's lock, so that
//! nothing starts or freezes the container meanwhile, and that ends with the daemon, however that is. The kernel's
//! overlayfs has no process that could.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::launch::Users;
use rustix::io::FdFlags;
use store::Store;

use crate::container::{Container, Status};
use crate::{Error, Result, view};

/// In the container's directory: where its tree is mounted.
const MOUNTED: &str = "mounted";

/// How long an end of the daemon may take, which writes what it holds.
const PATIENCE: Duration = Duration::from_secs(60);

impl Container {
    /// Mounts its tree at `at`; `exe` is this program, whose `mount` serves it in the background.
    ///
    /// # Errors
    /// [`Error::State`] where it runs or is mounted; [`Error::View`] with what the mount said, and without privileges.
    pub fn mount(&self, store: &Store, at: &Path, exe: &Path) -> Result<()> {
        if Users::for_container() != Users::Kept {
            let why = "without privileges only its own processes would see it: use cp or export";
            return Err(Error::View { at: at.to_owned(), why: why.to_owned() });
        }
        let lock = self.lock_stopped()?;
        self.mend(store)?;
        self.make_whole(store)?;
        let layers = self.layers(store)?;
        let note = self.dir.join(MOUNTED);
        fs::write(&note, at.as_os_str().as_bytes()).map_err(|e| Error::io("write", &note, e))?;
        // The daemon inherits it, and never knows.
        rustix::io::fcntl_setfd(&lock, FdFlags::empty())
            .map_err(|e| Error::io("pass on the lock of", &self.dir, e))?;
        let served = view::serve(&layers, at, exe, false);
        if served.is_err() {
            self.forget_mount()?;
        }
        served.map(drop)
    }

    /// Unmounts it again, once all that was written is in the writable layer; where it was.
    ///
    /// # Errors
    /// [`Error::State`] where it is not mounted; [`Error::Io`] where somebody is in it.
    pub fn unmount(&self) -> Result<PathBuf> {
        let Some(at) = self.mounted_at()? else {
            let (state, advice) = ("is not mounted", "strata mount does that");
            return Err(Error::State { name: self.name.clone(), state, advice });
        };
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty())
            .map_err(|e| Error::io("unmount", &at, e))?;
        let until = Instant::now() + PATIENCE;
        while self.status()? == Status::Mounted {
            if Instant::now() >= until {
                let (state, advice) = ("is unmounted and its daemon goes on", "look at its log");
                return Err(Error::State { name: self.name.clone(), state, advice });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.forget_mount()?;
        Ok(at)
    }

    /// Where it is mounted, if it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn mounted_at(&self) -> Result<Option<PathBuf>> {
        if self.status()? != Status::Mounted {
            return Ok(None);
        }
        let note = self.dir.join(MOUNTED);
        let at = fs::read(&note).map_err(|e| Error::io("read", &note, e))?;
        Ok(Some(std::ffi::OsString::from_vec(at).into()))
    }

    /// Whether who holds its lock is the daemon of a mount.
    pub(crate) fn is_mounted(&self) -> bool {
        self.dir.join(MOUNTED).exists()
    }

    /// To be called by who holds the lock: a daemon that was killed leaves its note.
    pub(crate) fn forget_mount(&self) -> Result<()> {
        let note = self.dir.join(MOUNTED);
        match fs::remove_file(&note) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &note, e))
            }
            _ => Ok(()),
        }
    }
}
