//! A container's writable layer: frozen, taken back, and made whole after a crash in between.
//!
//! Both are renames in the container's directory, around one write of its row. Whatever of that a `kill -9` or a power
//! cut has kept, [`Container::mend`] makes the state of before or the one that was asked for; one that was acknowledged
//! stays.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use store::Store;

use crate::container::{Container, Snapshot, Status, check_name, seconds};
use crate::view::Backend;
use crate::{Error, Result, tree};

/// Where a writable layer lies that a rollback takes away, and behind it the snapshot that it stood on.
const ASIDE: &str = "aside";

/// In the union's scratch, while there are files with a part of their data below.
const PARTIAL: &str = "incompat/partial";

/// And while there are copies of small files that may not be on the disk.
const UNSYNCED: &str = "incompat/unsynced";

/// Where the writable layer of a container that runs is copied to, before it is a snapshot.
pub(crate) const COPYING: &str = "copying";

impl Container {
    /// Freezes its writable layer as the snapshot `name`, and goes on with an empty one on top: two renames. Of one that
    /// runs, a copy is frozen, while its processes stand still.
    ///
    /// # Errors
    /// [`Error::State`] where it is mounted, or has such a snapshot.
    pub fn snapshot(&mut self, store: &Store, name: &str) -> Result<()> {
        check_name(name)?;
        if self.status()? == Status::Running {
            return self.snapshot_running(store, name);
        }
        let _lock = self.lock_stopped()?;
        let _alone = self.settled(store)?;
        if self.config.snapshots.iter().any(|snapshot| snapshot.name == name) {
            let (state, advice) = ("has a snapshot of this name", "choose another one");
            return Err(Error::State { name: self.name.clone(), state, advice });
        }
        let to = self.snapshot_dir(name);
        // A frozen layer is not limited; where that fails from here on, a start sets the limit again.
        self.lift_limit()?;
        fs::rename(self.upper(), &to).map_err(|e| Error::io("freeze", self.upper(), e))?;
        sync(&self.dir.join("snaps"))?;
        sync(&self.dir)?;
        let parent = self.config.current.replace(name.to_owned());
        let snapshot = Snapshot { name: name.to_owned(), created: seconds(), parent };
        self.config.snapshots.push(snapshot);
        self.save_with_next_project(store)?;
        self.fresh_upper(&to)
    }

    /// Goes back to how it was at the snapshot `name`; what was written since is gone.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::State`] where it runs.
    pub fn roll_back(&mut self, store: &Store, name: &str) -> Result<()> {
        let _lock = self.lock_stopped()?;
        let _alone = self.settled(store)?;
        if !self.config.snapshots.iter().any(|snapshot| snapshot.name == name) {
            let names: Vec<_> = self.config.snapshots.iter().map(|s| s.name.as_str()).collect();
            let near = match names.as_slice() {
                [] => format!("; {} has none", self.name),
                names => format!("; {} has {}", self.name, names.join(", ")),
            };
            return Err(Error::Unknown { kind: "snapshot", name: name.to_owned(), near });
        }
        let aside = self.aside();
        tree::remove_path(&aside)?;
        fs::rename(self.upper(), &aside).map_err(|e| Error::io("move", self.upper(), e))?;
        sync(&self.dir)?;
        self.config.current = Some(name.to_owned());
        self.save(store)?;
        self.fresh_upper(&self.snapshot_dir(name))?;
        // To the same snapshot the row says nothing new: the fresh layer is what tells that it is done.
        sync(&self.dir)?;
        tree::remove_path(&aside)
    }

    /// Makes whole what a kill or a power cut has left of its making, of a snapshot or of a rollback.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn mend(&self, store: &Store) -> Result<()> {
        // Overlayfs leaves it where nothing was to survive a power cut, and mounts no more: but no power was cut if we
        // are here, or the container was to be removed anyhow.
        let volatile = self.dir.join("work/work/incompat/volatile");
        if self.config.remove && volatile.exists() {
            tree::remove_path(&volatile)?;
        }
        let upper = self.upper();
        if upper.exists() && self.dir.join("merged").exists() {
            return match self.lock_snapshots(false)? {
                Some(_alone) => self.clear_copies(),
                None => Ok(()),
            };
        }
        if !upper.exists() {
            // Frozen, or moved away, and no row says so: it comes back.
            let cut_off = [self.unknown_snapshot()?, Some(self.aside()).filter(|dir| dir.exists())];
            if let Some(dir) = cut_off.into_iter().flatten().next() {
                return fs::rename(&dir, &upper).map_err(|e| Error::io("bring back", &dir, e));
            }
            if let Some(name) = self.config.current.as_deref() {
                return self.fresh_upper(&self.snapshot_dir(name));
            }
        }
        let image = store.image(&self.image.to_string())?;
        self.furnish(&store.lower_dirs(&image))
    }

    /// Held by who makes or removes snapshots; none where it is not to be `waited` for.
    pub(crate) fn lock_snapshots(&self, waited: bool) -> Result<Option<fs::File>> {
        let snaps = self.dir.join("snaps");
        let file = fs::File::open(&snaps).map_err(|e| Error::io("open", &snaps, e))?;
        let how = match waited {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&file, how) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::io("lock", &snaps, e)),
        }
    }

    /// What was copied while it ran, and no row says so; or copied in part. And what a rollback that is done has moved
    /// away, which would count for the limit.
    fn clear_copies(&self) -> Result<()> {
        let entries = fs::read_dir(&self.dir).map_err(|e| Error::io("list", &self.dir, e))?;
        for entry in entries {
            let name = entry.map_err(|e| Error::io("list", &self.dir, e))?.file_name();
            // As [`Container::aside`] names them.
            let moved = name.as_encoded_bytes().strip_prefix(ASIDE.as_bytes());
            if moved.is_some_and(|rest| rest.is_empty() || rest.starts_with(b".")) {
                tree::remove_path(&self.dir.join(&name))?;
            }
        }
        if let Some(copy) = self.unknown_snapshot()? {
            tree::remove_path(&copy)?;
        }
        tree::remove_path(&self.dir.join(COPYING))
    }

    /// With the locks of a container that does not run, what is known of it and nobody else changes.
    fn settled(&mut self, store: &Store) -> Result<Option<fs::File>> {
        self.mend(store)?;
        self.make_whole(store)?;
        let alone = self.lock_snapshots(true)?;
        self.clear_copies()?;
        self.config = Self::find(store, &self.id)?.config;
        Ok(alone)
    }

    /// [`Container::mend`] where it does not run, for who wants to look at its layers.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn settle(&self, store: &Store) -> Result<()> {
        match self.lock()? {
            Some(_lock) => {
                self.mend(store)?;
                self.make_whole(store)
            }
            None => Ok(()),
        }
    }

    /// Where it does not run: gives big files that were written to all their data, and syncs copies of small ones, which a
    /// daemon that was killed has not done at its end. Nothing where there are none.
    ///
    /// # Errors
    /// [`Error::View`].
    pub(crate) fn make_whole(&self, store: &Store) -> Result<()> {
        let scratch = self.dir.join("work/work");
        if ![PARTIAL, UNSYNCED].iter().any(|mark| scratch.join(mark).exists()) {
            return Ok(());
        }
        let layers = self.layers(store)?;
        // The same as when it ran: a file is known by the number of its layer, too.
        let mut lowers = layers.lowers;
        lowers.push(crate::watch::places(store)?);
        let config = union::Config {
            lowers,
            upper: layers.upper,
            namespace: store.namespace(),
            volatile: false,
            limits: union::Limits::default(),
            partial: false,
            index: false,
        };
        let fail = |why: union::Error| Error::View { at: self.upper(), why: why.to_string() };
        union::Union::open(&config).map(drop).map_err(fail)
    }

    /// The same where it runs, by who shows its layers; that they stay so is the caller's matter.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn make_whole_running(&self) -> Result<()> {
        let state = self.state();
        if state.backend != Some(Backend::Fuse)
            || !self.dir.join("work/work").join(PARTIAL).exists()
        {
            return Ok(());
        }
        let merged = self.dir.join("merged");
        let there = PathBuf::from(format!("/proc/{}/root", state.watcher));
        let there = there.join(merged.strip_prefix("/").unwrap_or(&merged));
        let root = fs::File::open(&there).map_err(|e| Error::io("open", &there, e))?;
        sys::control::ask(&root, mount::MATERIALIZE)
            .map_err(|e| Error::io("give all their data to the files of", &self.name, e.source))
    }

    /// Makes what is missing in the directory of a new container whose image has these layers; `merged`, which is made
    /// last, tells that all else is there.
    pub(crate) fn furnish(&self, lowers: &[PathBuf]) -> Result<()> {
        for sub in ["upper", "work", "snaps"] {
            make(&self.dir.join(sub))?;
        }
        if let Some(lowest_shown) = lowers.first() {
            tree::like_root(lowest_shown, &self.dir, "upper")?;
        }
        make(&self.dir.join("merged"))
    }

    /// An empty writable layer, whole when it appears.
    fn fresh_upper(&self, like: &Path) -> Result<()> {
        let staged = self.dir.join("fresh");
        make(&staged)?;
        tree::like_root(like, &self.dir, "fresh")?;
        self.enter_project("fresh")?;
        fs::rename(&staged, self.upper()).map_err(|e| Error::io("make", self.upper(), e))
    }

    /// Where the present writable layer lies while a rollback has it moved away.
    fn aside(&self) -> PathBuf {
        match &self.config.current {
            Some(name) => self.dir.join(format!("{ASIDE}.{name}")),
            None => self.dir.join(ASIDE),
        }
    }

    fn unknown_snapshot(&self) -> Result<Option<PathBuf>> {
        let snaps = self.dir.join("snaps");
        let entries = fs::read_dir(&snaps).map_err(|e| Error::io("list", &snaps, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("list", &snaps, e))?;
            let known = |s: &Snapshot| *s.name == *entry.file_name();
            if !self.config.snapshots.iter().any(known) {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io("make", path, e))
}

/// Puts on disk which names a directory has.
pub(crate) fn sync(dir: &Path) -> Result<()> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io("sync", dir, e))
}
