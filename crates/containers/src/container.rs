//! What a container is: an image, a writable layer with its snapshots, and how it was asked to run.
//!
//! The store has a row for it, which holds [`Config`] and keeps the image. All else is in its directory:
//!
//! ```text
//! upper/ work/   the writable layer, and the union's scratch
//! snaps/NAME/    writable layers of before, frozen
//! merged/        where the layers are shown, seen by the process that watches alone
//! lock           held by that process: a container runs while it is
//! state.json     what became of it
//! started        there once it has run
//! log            what it wrote, when nobody was attached
//! config.json    the bundle of its last start; cgroup, pid and runtime/ belong to it
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use layer::Namespace;
use runtime::cgroup::group;
use runtime::seccomp::Profile;
use runtime::spec::{Mount, ProcessLimit, Resources};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use store::Store;
use store::containers::ContainerRow;
use store::images::Image;

use crate::changes::{self, Changed};
use crate::view::{Backend, Choice, Keeper, Layers, Limit, Partial};
use crate::{Error, Result, volumes};

/// How a container was asked to be.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The image's name, as it was asked for.
    pub image: String,
    /// The command.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; empty for the root.
    pub cwd: String,
    /// `user[:group]`, by name or number; empty for root.
    pub user: String,
    /// Host name; empty for the start of its id.
    pub hostname: String,
    /// The machine's network, or none.
    pub host_network: bool,
    /// Whether only volumes can be written to.
    pub read_only: bool,
    /// Directories and files of the machine.
    pub volumes: Vec<Volume>,
    /// Further mounts: tmpfs and devices.
    pub mounts: Vec<Mount>,
    /// Capabilities beside Docker's, by name, and those of Docker's that it lacks; `ALL` is all.
    pub cap_add: Vec<String>,
    /// The latter.
    pub cap_drop: Vec<String>,
    /// Whether nothing of the machine is kept from it.
    pub privileged: bool,
    /// Whether set-user-ID programs give it nothing.
    pub no_new_privileges: bool,
    /// Which system calls its processes may make, unless it is privileged.
    pub seccomp: Filter,
    /// Supplementary groups, by name or number.
    pub groups: Vec<String>,
    /// Limits of its processes.
    pub ulimits: Vec<ProcessLimit>,
    /// Bytes of /dev/shm.
    pub shm_size: Option<u64>,
    /// Whether it sees the machine's processes.
    pub host_pid: bool,
    /// Whether it has the machine's shared memory and message queues.
    pub host_ipc: bool,
    /// What its processes may use together.
    pub resources: Resources,
    /// Whether it has a control group.
    pub cgroups: Groups,
    /// Settings of the kernel for its namespaces, by name.
    pub sysctl: BTreeMap<String, String>,
    /// Lines of its /etc/hosts beside those that it has anyhow.
    pub hosts: Vec<String>,
    /// Lines of its /etc/resolv.conf, in place of the machine's where there are any.
    pub resolve: Vec<String>,
    /// What people note of it.
    pub labels: BTreeMap<String, String>,
    /// How its layers are shown.
    pub backend: Choice,
    /// What its writable layer may hold.
    pub limit: Limit,
    /// The project of its writable layer, where the file system keeps the limit.
    pub project: Option<u32>,
    /// The OCI runtime; our own launcher where there is none.
    pub runtime: Option<PathBuf>,
    /// Whether its standard files are a terminal.
    pub terminal: bool,
    /// Whether an init of ours is its first process.
    pub init: bool,
    /// Whether it goes when it ends.
    pub remove: bool,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
    /// Seconds that it then has; 10 where nothing is said.
    pub stop_timeout: Option<u64>,
    /// Snapshots, the oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The snapshot that its writable layer stands on.
    pub current: Option<String>,
}

/// When a container has a control group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Groups {
    /// Where it needs one: for a limit, or to end with all its processes.
    #[default]
    Auto,
    /// Always.
    Enabled,
    /// Never.
    Disabled,
}

/// A filter of system calls.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// As with Docker: [`runtime::seccomp::standard`].
    #[default]
    Standard,
    /// None.
    Unconfined,
    /// One of the caller's.
    Own(Box<Profile>),
}

/// A path of the machine in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The volume's name, where it is one of the store's.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether nobody has given it that name: it goes with the container, where that is asked for.
    #[serde(default)]
    pub anonymous: bool,
    /// On the machine, absolute.
    pub source: PathBuf,
    /// In the container, absolute.
    pub destination: PathBuf,
    /// Whether it can't be written to.
    pub read_only: bool,
}

/// A writable layer of before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The snapshot that it stands on.
    pub parent: Option<String>,
}

/// What became of a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Its first process.
    pub pid: u32,
    /// The process that watches it, and has its layers mounted.
    pub watcher: u32,
    /// When it started, seconds since 1970; 0 for never.
    pub started: i64,
    /// When it ended; 0 for not yet, or unseen.
    pub finished: i64,
    /// Its exit status, 128 and the signal for one that was killed.
    pub exit_code: Option<u8>,
    /// Whether a process of it was killed for want of memory, where that is known.
    pub out_of_memory: Option<bool>,
    /// How its layers are shown.
    pub backend: Option<Backend>,
    /// Why that way.
    pub why: String,
    /// Who keeps the limit of its writable layer, where it has one.
    pub limited_by: Option<String>,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It never ran.
    Created,
    /// It runs.
    Running,
    /// It does not run, and its tree is mounted at a path of this machine.
    Mounted,
    /// It ran.
    Exited,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// The name that people use.
    pub name: String,
    /// Its image's id.
    pub image: store::Digest,
    /// Seconds since 1970.
    pub created: i64,
    /// How it was asked to be.
    pub config: Config,
    /// Its directory.
    pub dir: PathBuf,
}

/// Held by who may change a container.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

pub(crate) fn seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}

impl Container {
    /// Makes a container on `image`; without a name it gets one.
    ///
    /// # Errors
    /// [`Error::Store`]: the name is taken, the image went.
    pub fn create(
        store: &Store,
        image: &Image,
        name: Option<&str>,
        config: Config,
    ) -> Result<Self> {
        let id = random_id()?;
        let state = text(&config)?;
        // Nobody misses one that goes at its end anyhow.
        let kept = !config.remove;
        let named = match name {
            Some(name) => {
                check_name(name)?;
                store.add_container(&id, name, &image.id, &state, kept)?;
                name.to_owned()
            }
            None => add_named(store, &id, image, &state, kept)?,
        };
        let dir = store.writable_dir(&id);
        let created = seconds();
        let mut container = Self { id, name: named, image: image.id, created, config, dir };
        container.furnish(&store.lower_dirs(image))?;
        container.take_project(store)?;
        // Behind the row that keeps them: what a crash has kept from being made, a start makes.
        for volume in container.config.volumes.iter().filter(|volume| volume.anonymous) {
            volumes::make(store, volume)?;
        }
        Ok(container)
    }

    /// Finds a container by its name, its id, or the start of that.
    ///
    /// # Errors
    /// [`Error::Store`] where there is none; [`Error::Damaged`].
    pub fn find(store: &Store, name: &str) -> Result<Self> {
        Self::of(store, store.container(name)?)
    }

    /// All containers, the newest first.
    ///
    /// # Errors
    /// As [`Container::find`].
    pub fn list(store: &Store) -> Result<Vec<Self>> {
        store.containers()?.into_iter().map(|row| Self::of(store, row)).collect()
    }

    fn of(store: &Store, row: ContainerRow) -> Result<Self> {
        let dir = store.writable_dir(&row.id);
        let config = serde_json::from_str(&row.state)
            .map_err(|e| Error::Damaged { path: dir.clone(), why: e.to_string() })?;
        let ContainerRow { id, name, image, created, .. } = row;
        Ok(Self { id, name, image, created, config, dir })
    }

    pub(crate) fn save(&self, store: &Store) -> Result<()> {
        Ok(store.set_container_state(&self.id, &text(&self.config)?)?)
    }

    /// What became of it; that of one that never ran where there is nothing.
    ///
    /// It is written whole, but not durably: where a power cut took it, the file that [`Container::note_start`] has left
    /// still tells that it ran.
    pub fn state(&self) -> State {
        let text = fs::read(self.dir.join("state.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    pub(crate) fn write_state(&self, state: &State) -> Result<()> {
        let (path, staged) = (self.dir.join("state.json"), self.dir.join("state.new"));
        let text = serde_json::to_vec(state).map_err(|e| Error::io("write", &staged, e))?;
        let mut file = File::create(&staged).map_err(|e| Error::io("write", &staged, e))?;
        file.write_all(&text).map_err(|e| Error::io("write", &staged, e))?;
        fs::rename(&staged, &path).map_err(|e| Error::io("write", &path, e))
    }

    /// Leaves word on disk, once, that it has run; one that is to go at its end needs none.
    pub(crate) fn note_start(&self) -> Result<()> {
        let path = self.dir.join("started");
        if self.config.remove || path.exists() {
            return Ok(());
        }
        File::create(&path).map_err(|e| Error::io("make", &path, e))?;
        crate::snapshots::sync(&self.dir)
    }

    /// What it is doing: it runs while somebody holds its lock, which the kernel takes from who dies.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn status(&self) -> Result<Status> {
        if self.lock()?.is_none() {
            return Ok(if self.is_mounted() { Status::Mounted } else { Status::Running });
        }
        let started = self.state().started != 0 || self.dir.join("started").exists();
        Ok(if started { Status::Exited } else { Status::Created })
    }

    /// Takes the lock that a running container's watcher holds; none where it is held.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lock(&self) -> Result<Option<Lock>> {
        let path = self.dir.join("lock");
        let mut options = File::options();
        let file = options.create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| Error::io("open", &path, e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::io("lock", &path, e)),
        }
    }

    /// Takes the lock of a container that must not run.
    ///
    /// # Errors
    /// [`Error::State`] where it does.
    pub fn lock_stopped(&self) -> Result<Lock> {
        // Who only looks whether it runs holds the lock for a moment.
        for _ in 0..25 {
            if let Some(lock) = self.lock()? {
                return Ok(lock);
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let (state, advice) = match self.is_mounted() {
            true => ("is mounted", "strata umount it first"),
            false => ("is running", "stop it first"),
        };
        Err(Error::State { name: self.name.clone(), state, advice })
    }

    /// The writable layer.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// The directory of a snapshot's layer.
    pub fn snapshot_dir(&self, name: &str) -> PathBuf {
        self.dir.join("snaps").join(name)
    }

    /// The layers above the image, uppermost first: the writable one, then the snapshots below it.
    pub fn own_layers(&self) -> Vec<PathBuf> {
        let mut layers = vec![self.upper()];
        let mut next = self.config.current.as_deref();
        while let Some(snapshot) =
            next.and_then(|name| self.config.snapshots.iter().find(|s| s.name == name))
        {
            // A parent is always older: a longer chain than there are snapshots is a damaged one.
            if layers.len() > self.config.snapshots.len() {
                break;
            }
            layers.push(self.snapshot_dir(&snapshot.name));
            next = snapshot.parent.as_deref();
        }
        layers
    }

    /// All its layers, for [`crate::view::show`].
    ///
    /// # Errors
    /// [`Error::Store`] where the image is gone.
    pub fn layers(&self, store: &Store) -> Result<Layers> {
        let image = store.image(&self.image.to_string())?;
        let mut lowers = self.own_layers().split_off(1);
        lowers.extend(store.lower_dirs(&image));
        Ok(Layers {
            lowers,
            upper: Some((self.upper(), self.dir.join("work"))),
            rootless: store.namespace() == Namespace::User,
            squash: false,
            volatile: self.config.remove,
            limit: self.config.limit,
            keeper: Keeper::default(),
            partial: Partial::Off,
        })
    }

    /// What it changed of its image.
    ///
    /// # Errors
    /// Those of [`changes::list`].
    pub fn changes(&self, store: &Store) -> Result<Vec<Changed>> {
        // A file that has not all its data has its name and its size.
        if let Some(_lock) = self.lock()? {
            self.mend(store)?;
        }
        let image = store.image(&self.image.to_string())?;
        changes::list(&self.own_layers(), &store.lower_dirs(&image), store.namespace())
    }

    /// Removes it with all that it wrote; its volumes without a name too where `volumes` says so, but for those that
    /// another container has.
    ///
    /// # Errors
    /// [`Error::State`] where it runs.
    pub fn remove(self, store: &Store, volumes: bool) -> Result<()> {
        let _lock = self.lock_stopped()?;
        group::remove(&self.dir)?;
        self.drop_from(store, volumes)
    }

    pub(crate) fn drop_from(&self, store: &Store, volumes: bool) -> Result<()> {
        if volumes {
            volumes::discard(store, self)?;
        }
        // Before the row, which tells of it.
        self.lift_limit()?;
        Ok(store.remove_container(&self.id)?)
    }

    /// Removes those that were to go at their end and have ended without it: their watcher was killed, or the power
    /// was cut. How many. Control groups and limits that are left of others go too.
    ///
    /// # Errors
    /// As [`Container::list`] and [`Container::remove`].
    pub fn remove_left(store: &Store) -> Result<u64> {
        let mut removed = 0;
        for container in Self::list(store)? {
            let Some(lock) = container.lock()? else { continue };
            group::remove(&container.dir)?;
            drop(lock);
            // One that has not started yet is about to.
            if container.config.remove && container.status()? == Status::Exited {
                container.remove(store, true)?;
                removed += 1;
            }
        }
        crate::project::lift_left(store)?;
        Ok(removed)
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// [`Error::Store`] where that is taken.
    pub fn rename(&self, store: &Store, name: &str) -> Result<()> {
        check_name(name)?;
        Ok(store.rename_container(&self.id, name)?)
    }
}

pub(crate) fn text(config: &Config) -> Result<String> {
    serde_json::to_string(config).map_err(|e| Error::io("write down", "the container", e))
}

pub(crate) fn random_id() -> Result<String> {
    Ok(random::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(crate) fn random_number() -> Result<u32> {
    Ok(u32::from_ne_bytes(random()?))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let path = "/dev/urandom";
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}

/// As Docker has it.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let good = name.len() > 1
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(Error::BadName(name.to_owned())) }
}

const MANNERS: [&str; 16] = [
    "amber", "brisk", "calm", "deft", "eager", "fair", "glad", "hardy", "keen", "lucid", "merry",
    "neat", "quiet", "swift", "warm", "witty",
];

const STONES: [&str; 16] = [
    "agate", "basalt", "chert", "dolomite", "flint", "gneiss", "granite", "gypsum", "jasper",
    "loess", "marble", "obsidian", "pumice", "quartz", "slate", "tuff",
];

/// A name from the id, longer until nobody has it.
fn add_named(store: &Store, id: &str, image: &Image, state: &str, kept: bool) -> Result<String> {
    let digit = |at: usize| usize::from_str_radix(&id[at..=at], 16).unwrap_or(0);
    let short = format!("{}_{}", MANNERS[digit(0)], STONES[digit(1)]);
    let mut name = short.clone();
    for length in [4, 12, 64] {
        match store.add_container(id, &name, &image.id, state, kept) {
            Err(store::Error::NameTaken { .. }) => name = format!("{short}_{}", &id[2..length]),
            other => return Ok(other.map(|()| name)?),
        }
    }
    Ok(store.add_container(id, &name, &image.id, state, kept).map(|()| name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_docker_has_them() {
        for good in ["ab", "a1", "web-1", "A_b.c"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a", "-a", ".a", "a/b", "a b", "ä1", "../x"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
