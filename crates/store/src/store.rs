//! The store: one directory, any number of processes at once, no daemon.
//!
//! ```text
//! ROOT/  db.sqlite, lock (held while that is opened)
//!        layers/HEX/   fs/ (the tree), recipe (how to make the tar again), replaced/ (what the tar has
//!                      and the tree has not)
//!        staging/…     layers that are being unpacked, each under the lock of its layer
//!        partial/HEX   blobs that have come in part
//!        trash/…       what has no row any more
//!        locks/…       flock(2), which ends with its process
//!        rw/ID/        upper and work of a container
//!        snapshots/ID  fs and work of a snapshot of containerd's
//! ```
//!
//! Invariants: a row's files are complete and on disk; a file without a row or a held lock is
//! litter; nothing goes that a row or a living lease needs.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use layer::Namespace;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::manifest::{Document, parse};
use crate::meta::Meta;
use crate::seam::Seam;
use crate::tar::{apply, content};
use crate::tree;

/// A store of images and layers.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) meta: Meta,
    apply: apply::Options,
    /// The same, once it is known what the file system can do: a command that unpacks nothing does not ask.
    asked: OnceLock<apply::Options>,
    seam: Seam,
    next: AtomicU64,
    pub(crate) stopper: Stopper,
}

/// Ends what a store is busy with, from any thread: fetching, unpacking and writing layers. It comes back with an
/// error, and leaves nothing but what has come of blobs from far away, with which the next try goes on.
#[derive(Debug, Clone, Default)]
pub struct Stopper(Arc<AtomicBool>);

impl Stopper {
    /// Ends it, once and for all.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has been ended.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The same as an error.
    pub(crate) fn check(&self) -> std::io::Result<()> {
        if self.is_stopped() { Err(std::io::Error::other("stopped")) } else { Ok(()) }
    }
}

const DIRS: [&str; 7] = ["layers", "staging", "partial", "trash", "locks", "rw", "snapshots"];

/// A lock that is held until it is dropped, or its process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Store {
    /// Opens the store in `root`, making it where it is not there, and clears away what processes
    /// that died have left.
    ///
    /// # Errors
    /// No permission; [`Error::Format`]; the database's own.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, Seam::default())
    }

    /// The same with a seam between the store and the disk, for tests.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: &Path, seam: Seam) -> Result<Self> {
        // Images hold set-user-ID programs of any age: nobody else may reach them.
        let mut dir = fs::DirBuilder::new();
        dir.mode(0o700).recursive(true);
        dir.create(root).at(root, "making the store")?;
        for name in DIRS {
            let path = root.join(name);
            dir.create(&path).at(&path, "making the store")?;
        }
        let opening = lock_file(&root.join(OPEN), FlockOperation::LockExclusive)?;
        let meta = Meta::open(&root.join("db.sqlite"), seam.clone())?;
        drop(opening);
        let privileged = sys::privilege::is_initial_root();
        let namespace = if privileged { Namespace::Trusted } else { Namespace::User };
        let apply = apply::Options {
            namespace,
            owners: gives_owners(),
            max_entries: 5_000_000,
            max_bytes: 256 << 30,
            share: false,
        };
        let store = Self {
            root: root.to_owned(),
            meta,
            apply,
            asked: OnceLock::new(),
            seam,
            next: AtomicU64::new(0),
            stopper: Stopper::default(),
        };
        store.recover()?;
        Ok(store)
    }

    /// Limits what a layer may hold: entries, and bytes of data.
    pub fn limit(&mut self, entries: u64, bytes: u64) {
        self.apply.max_entries = entries;
        self.apply.max_bytes = bytes;
        self.asked = OnceLock::new();
    }

    /// How layers are unpacked here.
    pub(crate) fn options(&self) -> &apply::Options {
        self.asked.get_or_init(|| {
            let share = content::can_share(&self.root.join("staging"));
            apply::Options { share, ..self.apply.clone() }
        })
    }

    /// What ends long work of this store.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the union's marks are in this store's layers.
    pub fn namespace(&self) -> Namespace {
        self.apply.namespace
    }

    /// Whether equal files of different layers share their data on disk.
    pub fn shares_files(&self) -> bool {
        self.options().share
    }

    pub(crate) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// The tree of a layer.
    pub fn layer_tree(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir(diff_id).join("fs")
    }

    /// A name that no other call, in any process, gets.
    pub(crate) fn unique(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        format!("{clock:x}-{}-{count}", std::process::id())
    }

    /// Waits for a lock.
    pub(crate) fn lock(&self, name: &str) -> Result<Lock> {
        self.try_lock(name, FlockOperation::LockExclusive)?.ok_or_else(|| Error::Io {
            path: self.root.join("locks").join(name),
            step: "locking",
            source: Errno::WOULDBLOCK.into(),
        })
    }

    /// Waits for the lock of a layer, which may be as long as another process fetches it.
    pub(crate) fn lock_layer(&self, hex: &str) -> Result<Lock> {
        let name = layer_lock(hex);
        loop {
            if let Some(lock) = self.lock_if_free(&name)? {
                return Ok(lock);
            }
            if self.stopper.is_stopped() {
                return Err(Error::Stopped);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A lock that nobody holds now.
    pub(crate) fn lock_if_free(&self, name: &str) -> Result<Option<Lock>> {
        self.try_lock(name, FlockOperation::NonBlockingLockExclusive)
    }

    /// Asks the seam.
    pub(crate) fn before(&self, step: &'static str, path: &Path) -> Result<()> {
        self.seam.before(step).at(path, step)
    }

    fn try_lock(&self, name: &str, how: FlockOperation) -> Result<Option<Lock>> {
        self.before("locking", &self.root)?;
        lock_file(&self.root.join("locks").join(name), how)
    }

    /// Removes the file of a lock that is held, so that locks do not pile up.
    pub(crate) fn unlock(&self, name: &str, lock: Lock) -> Result<()> {
        let path = self.root.join("locks").join(name);
        self.before("unlocking", &path)?;
        let removed = fs::remove_file(&path);
        drop(lock);
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at(&path, "unlocking"),
            _ => Ok(()),
        }
    }

    /// Clears away what nobody owns: staged layers whose process has died, layers without a row,
    /// leases of the dead.
    fn recover(&self) -> Result<()> {
        for name in self.names("staging")? {
            // `HEX.UNIQUE`: of the layer HEX, whose lock its process holds.
            let hex = name.split('.').next().unwrap_or(&name);
            if let Some(lock) = self.lock_if_free(&layer_lock(hex))? {
                self.discard(&self.root.join("staging").join(&name))?;
                self.unlock(&layer_lock(hex), lock)?;
            }
        }
        if self.may_hold_litter("layers", "layers")? {
            self.clear_layers()?;
        }
        if self.may_hold_litter("rw", "containers")? {
            self.clear_writable_layers()?;
        }
        self.recover_snapshots()?;
        for name in self.names("locks")? {
            let Some(lock) = self.lock_if_free(&name)? else { continue };
            if name.starts_with(LEASE) {
                self.meta.write(|txn| {
                    txn.execute("DELETE FROM leases WHERE owner = ?1", [&name])?;
                    Ok(())
                })?;
            }
            self.unlock(&name, lock)?;
        }
        self.forget_downloads()
    }

    /// Whether `dir` may hold a directory of which `table` has no row, or lack one. Every process that opens the store
    /// asks, so the answer must not cost more with a thousand containers: a row comes after its directory and goes before
    /// it, so that as many directories as rows means none without. btrfs does not count what is in a directory, nor ext4
    /// more than 65,000: those are always read.
    fn may_hold_litter(&self, dir: &str, table: &str) -> Result<bool> {
        let path = self.root.join(dir);
        let links = fs::metadata(&path).at(&path, "counting what is there")?.nlink();
        let rows = self.meta.count(table)?;
        // A directory has two names, and one more by each directory in it.
        Ok(links != rows + 2)
    }

    /// Clears away layers without a row, unless somebody is about to write it.
    fn clear_layers(&self) -> Result<()> {
        let names = self.names("layers")?;
        let known = self.meta.column("SELECT diff_id FROM layers")?;
        for name in names {
            let digest = format!("sha256:{name}");
            if known.contains(&digest) {
                continue;
            }
            let Ok(diff_id) = digest.parse::<Digest>() else { continue };
            if let Some(lock) = self.lock_if_free(&layer_lock(&name))? {
                self.discard_rowless(&diff_id)?;
                self.unlock(&layer_lock(&name), lock)?;
            }
        }
        Ok(())
    }

    /// Clears away writable layers without a row, likewise, and makes those that rows lack.
    fn clear_writable_layers(&self) -> Result<()> {
        let names: HashSet<String> = self.names("rw")?.into_iter().collect();
        let known = self.meta.column("SELECT id FROM containers")?;
        for id in names.difference(&known) {
            let has_row = || self.meta.read(|txn| crate::containers::exists(txn, id));
            if let Some(lock) = self.lock_if_free(&container_lock(id))? {
                if !has_row()? {
                    self.discard(&self.writable_dir(id))?;
                }
                self.unlock(&container_lock(id), lock)?;
            }
        }
        for id in known.difference(&names) {
            self.remake_writable_layer(id)?;
        }
        Ok(())
    }

    /// Removes downloads whose layers are there: a loss of power after a pull may bring back what the
    /// pull removed last.
    fn forget_downloads(&self) -> Result<()> {
        let names = self.names("partial")?;
        if names.is_empty() {
            return Ok(());
        }
        let mut there = BTreeSet::new();
        for image in self.images()? {
            // A manifest that another version wrote tells of no blobs.
            if let Ok(Document::Manifest(manifest)) = parse(&image.manifest, &image.media_type) {
                there.extend(manifest.layers.iter().map(|blob| blob.digest.hex()));
            }
        }
        for name in names.iter().filter(|name| there.contains(*name)) {
            let path = self.root.join("partial").join(name);
            self.before("clearing a download", &path)?;
            // A pull that has just ended may be about to do the same.
            if lock_file(&path, FlockOperation::NonBlockingLockExclusive)?.is_some() {
                crate::pull::remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// Waits until a directory, and which names are in it, is on the disk. A row that speaks of them comes after that: the
    /// database overwrites its log in place at times, and syncing this says nothing of names made before it.
    pub(crate) fn sync_dir(&self, dir: &Path, step: &'static str) -> Result<()> {
        self.before("syncing names", dir)?;
        rustix::fs::fsync(open_dir(dir)?).at(dir, step)
    }

    pub(crate) fn names(&self, dir: &str) -> Result<Vec<String>> {
        let path = self.root.join(dir);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).at(&path, "listing")? {
            let entry = entry.at(&path, "listing")?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// Moves a directory of the store's file system to the trash, in one step.
    ///
    /// # Errors
    /// What can't be moved; nothing there is none.
    pub fn discard(&self, path: &Path) -> Result<()> {
        self.before("moving to the trash", path)?;
        let to = self.root.join("trash").join(self.unique());
        match fs::rename(path, &to) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.at(path, "moving to the trash"),
        }
    }

    /// Discards what a process that was killed between publishing a layer, whose lock is held here, and writing its row
    /// has left. It may have got its row since it was seen without.
    pub(crate) fn discard_rowless(&self, diff_id: &Digest) -> Result<()> {
        match self.meta.read(|txn| crate::meta::layer(txn, diff_id))? {
            Some(_) => Ok(()),
            None => self.discard(&self.layer_dir(diff_id)),
        }
    }

    /// Moves a directory to the trash and removes it: what a failure leaves is not for later.
    pub(crate) fn discard_now(&self, path: &Path) -> Result<()> {
        self.before("moving to the trash", path)?;
        let to = self.root.join("trash").join(self.unique());
        fs::rename(path, &to).at(path, "moving to the trash")?;
        self.before("emptying the trash", &to)?;
        tree::remove(&to)
    }

    /// Removes what is in the trash: the slow part of every removal, for when nobody waits.
    ///
    /// # Errors
    /// What can't be removed.
    pub fn empty_trash(&self) -> Result<()> {
        for name in self.names("trash")? {
            // Another process may do the same.
            self.before("emptying the trash", &self.root)?;
            tree::remove(&self.root.join("trash").join(&name))?;
        }
        Ok(())
    }
}

fn lock_file(path: &Path, how: FlockOperation) -> Result<Option<Lock>> {
    loop {
        let mut options = File::options();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(path);
        let file = file.at(path, "locking")?;
        match flock(&file, how) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e).at(path, "locking"),
        }
        // Whoever had it may have removed the file: then the lock is of no name.
        let held = rustix::fs::fstat(&file).at(path, "locking")?;
        match rustix::fs::stat(path) {
            Ok(named) if named.st_ino == held.st_ino => return Ok(Some(Lock { _file: file })),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e).at(path, "locking"),
        }
    }
}

/// The lock under which the database is opened: making it is not for several at once.
const OPEN: &str = "lock";

/// The lock of a lease: names that begin so are of pulls and of whoever else needs layers for now.
pub(crate) const LEASE: &str = "lease-";

pub(crate) fn layer_lock(hex: &str) -> String {
    format!("layer-{hex}")
}

pub(crate) fn container_lock(id: &str) -> String {
    format!("container-{id}")
}

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at(path, "opening")
}

/// Whether this process can give files to others: root can, of as many as are mapped here.
fn gives_owners() -> bool {
    let mapped = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let counts =
        mapped.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    rustix::process::geteuid().is_root() && counts.sum::<u64>() > 65_535
}
