//! `strata try`: a command over this machine's own files, with all that it writes caught in a layer.
//!
//! An attempt is a directory: the upper layer, its work directory, the bundle of the process, and a record. What
//! happened to it afterwards is in the record: it was kept, applied, or undone.
//!
//! This is no sandbox: the command has the caller's network and devices, and what it asks of other processes is done.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use layer::Namespace;
use runtime::launch::{Files, Runtime, Users};
use runtime::spec::{
    Capabilities, INIT, Linux, Mount, Namespace as Space, NamespaceKind, Process, Root, Spec,
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::changes::{self, Changed};
use crate::others::{self, Other};
use crate::view::{self, Choice, Layers};
use crate::{Error, Result, tree};

/// The subcommand under which a program that embeds this calls [`contain`].
pub const CONTAIN: &str = "__try";

/// In an attempt's directory: which paths of the base it replaces.
const REPLACED: &str = "replaced.json";

/// Seconds and nanoseconds since 1970, as files have them.
pub type Instant = (i64, i64);

/// What is known of an attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The directory whose changes were caught.
    pub base: PathBuf,
    /// What ran.
    pub command: Vec<String>,
    /// When, by the clock that stamps files.
    pub started: Instant,
    /// Whether the caller had no privileges.
    pub rootless: bool,
    /// File systems below the base, whose changes were not caught.
    #[serde(default)]
    pub others: Vec<Other>,
    /// What has become of it.
    pub state: State,
}

/// What has become of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The command runs, or was cut off.
    Started,
    /// The changes are in the layer.
    Kept,
    /// They are in the base, until this time at the latest.
    Applied(Instant),
}

/// An attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its name.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// What is known of it.
    pub record: Record,
}

/// What to run, and over what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The directory whose changes are caught; absolute, without links.
    pub base: PathBuf,
    /// The command.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Where it starts.
    pub cwd: String,
    /// Whether the caller has no privileges.
    pub rootless: bool,
}

/// A time not after any that files get from now on: they get that of the last tick.
fn before() -> Instant {
    let time = clock_gettime(ClockId::RealtimeCoarse);
    (time.tv_sec, time.tv_nsec)
}

/// A time not before any that files have: some get it finer than by ticks (Linux 6.13).
pub(crate) fn after() -> Instant {
    let time = clock_gettime(ClockId::Realtime);
    (time.tv_sec, time.tv_nsec)
}

impl Attempt {
    /// Prepares an attempt in `all`, the directory of attempts, which is made if need be.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] for the bundle.
    pub fn create(all: &Path, plan: Plan) -> Result<Self> {
        tree::make_private(all)?;
        let all = fs::canonicalize(all).map_err(|e| Error::io("find", all, e))?;
        let mut name = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
        let (id, dir) = loop {
            let id = format!("t{name:x}");
            let dir = all.join(&id);
            match fs::create_dir(&dir) {
                Ok(()) => break (id, dir),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => name += 1,
                Err(e) => return Err(Error::io("make", &dir, e)),
            }
        };
        for name in ["upper", "work", "merged", "root"] {
            let path = dir.join(name);
            fs::create_dir(&path).map_err(|e| Error::io("make", &path, e))?;
        }
        // What the base allows, its copy must: the union's root is the upper's.
        tree::like_root(&plan.base, &dir, "upper")?;
        let others = others::below(&plan.base, &all)?;
        bundle(&all, &dir, &plan, &others)?;
        let record = Record {
            base: plan.base,
            command: plan.command,
            started: before(),
            rootless: plan.rootless,
            others,
            state: State::Started,
        };
        let attempt = Self { id, dir, record };
        attempt.save()?;
        Ok(attempt)
    }

    /// Opens the attempt `id` of `all`.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Damaged`].
    pub fn open(all: &Path, id: &str) -> Result<Self> {
        let unknown = || Error::Unknown {
            kind: "attempt",
            name: id.to_owned(),
            near: "; strata try --list shows those that are kept".to_owned(),
        };
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(unknown());
        }
        let dir = all.join(id);
        let path = dir.join("record.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(unknown()),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        let record = serde_json::from_slice(&text)
            .map_err(|e| Error::Damaged { path, why: e.to_string() })?;
        Ok(Self { id: id.to_owned(), dir, record })
    }

    /// All attempts of `all`, oldest first; those that can't be read are left out.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(all: &Path) -> Result<Vec<Self>> {
        let entries = match fs::read_dir(all) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", all, e)),
        };
        let mut found: Vec<Self> = entries
            .filter_map(|entry| Self::open(all, entry.ok()?.file_name().to_str()?).ok())
            .collect();
        found.sort_by_key(|attempt| attempt.record.started);
        Ok(found)
    }

    pub(crate) fn save(&self) -> Result<()> {
        let path = self.dir.join("record.json");
        let staged = self.dir.join("record.new");
        let fail = |e: std::io::Error| Error::io("write", &staged, e);
        let mut file = fs::File::create(&staged).map_err(fail)?;
        let text = serde_json::to_vec(&self.record).map_err(|e| fail(e.into()))?;
        file.write_all(&text).map_err(fail)?;
        file.sync_all().map_err(fail)?;
        fs::rename(&staged, &path).map_err(|e| Error::io("write", &path, e))
    }

    /// Where what was written is.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    pub(crate) fn namespace(&self) -> Namespace {
        if self.record.rootless { Namespace::User } else { Namespace::Trusted }
    }

    /// What the command changed.
    ///
    /// # Errors
    /// Those of [`changes::list`].
    pub fn changes(&self) -> Result<Vec<Changed>> {
        changes::list(&[self.upper()], std::slice::from_ref(&self.record.base), self.namespace())
    }

    /// Says that the command has ended and `changes`, which it has made, are kept.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep(&mut self, changes: &[Changed]) -> Result<()> {
        let replaced: Vec<&OsStr> = changes
            .iter()
            .filter(|changed| changed.old.is_some())
            .map(|changed| changed.path.as_os_str())
            .collect();
        let path = self.dir.join(REPLACED);
        let text = serde_json::to_vec(&replaced).map_err(|e| Error::io("write", &path, e))?;
        fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
        self.record.state = State::Kept;
        self.save()
    }

    /// What was in the base when the command ended, and is changed or deleted by it; nothing where it was cut off.
    pub(crate) fn replaced(&self) -> Result<Vec<PathBuf>> {
        let path = self.dir.join(REPLACED);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        let names: Vec<OsString> = serde_json::from_slice(&text)
            .map_err(|e| Error::Damaged { path, why: e.to_string() })?;
        Ok(names.into_iter().map(PathBuf::from).collect())
    }

    /// Removes it with all that was written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(self) -> Result<()> {
        let parent = self.dir.parent().unwrap_or(Path::new("/"));
        let all = tree::root(parent)?;
        tree::remove(tree::At {
            dir: std::os::fd::AsFd::as_fd(&all),
            name: self.id.as_ref(),
            shown: &self.dir,
        })
    }
}

/// The root that the command sees is the union where the base is `/`; otherwise this machine's, with the union at the
/// base.
fn bundle(all: &Path, dir: &Path, plan: &Plan, others: &[Other]) -> Result<()> {
    let mount = |destination: &Path, kind: &str, source: &Path, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    let bind = |path: &str| mount(path.as_ref(), "bind", path.as_ref(), &["rbind"]);
    let proc = mount("/proc".as_ref(), "proc", "proc".as_ref(), &["nosuid", "noexec", "nodev"]);
    let whole = plan.base == Path::new("/");
    let mut mounts = if whole {
        // Where we keep this is not for the command to see: it would find its own writes twice.
        let hidden = mount(all, "tmpfs", "strata".as_ref(), &["ro", "mode=700", "size=0k"]);
        let mut mounts = vec![bind("/dev")];
        // What programs leave in shared memory is written too: it goes with the attempt.
        if Path::new("/dev/shm").is_dir() {
            let options = ["nosuid", "nodev", "noexec", "mode=1777"];
            mounts.push(mount("/dev/shm".as_ref(), "tmpfs", "shm".as_ref(), &options));
        }
        mounts.extend([bind("/sys"), proc, hidden]);
        mounts
    } else {
        vec![proc, mount(&plan.base, "bind", &dir.join("merged"), &["bind"])]
    };
    // Before what hides the attempts, which may lie on one of them.
    let hidden = mounts.len() - usize::from(whole);
    mounts.splice(hidden..hidden, others::mounts(others));
    let names = runtime::capability::all();
    let spec = Spec {
        oci_version: "1.2.0".to_owned(),
        process: Process {
            args: plan.command.clone(),
            env: plan.env.clone(),
            cwd: plan.cwd.clone(),
            capabilities: Some(Capabilities {
                bounding: names.clone(),
                effective: names.clone(),
                permitted: names,
                ..Capabilities::default()
            }),
            ..Process::default()
        },
        root: Root { path: dir.join(if whole { "merged" } else { "root" }), readonly: false },
        mounts,
        linux: Linux {
            namespaces: vec![
                Space { kind: NamespaceKind::Pid },
                Space { kind: NamespaceKind::Mount },
            ],
            ..Linux::default()
        },
        annotations: [(INIT.to_owned(), "true".to_owned())].into(),
        ..Spec::default()
    };
    let damaged = |e: runtime::Error| Error::Damaged { path: dir.to_owned(), why: e.to_string() };
    spec.write(dir).map_err(damaged)
}

/// Runs the command of the attempt in `dir` and waits for it: to be called by a process that was executed for it, with
/// one thread. `exe` is its program. What was mounted is gone when it ends.
///
/// # Errors
/// One sentence of whatever step failed.
pub fn contain(exe: &Path, dir: &Path) -> std::result::Result<u8, String> {
    let text = |e: Error| e.to_string();
    let runtime_text = |e: runtime::Error| e.to_string();
    let (all, id) = (dir.parent().unwrap_or(dir), dir.file_name().unwrap_or_default());
    let attempt = Attempt::open(all, &id.to_string_lossy()).map_err(text)?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let users = if attempt.record.rootless {
        // Nobody but the caller: what is caught must be the caller's to apply.
        Users::One(uid.as_raw(), gid.as_raw())
    } else {
        Users::Kept
    };
    runtime::launch::die_with_parent().map_err(runtime_text)?;
    runtime::launch::isolate(users).map_err(runtime_text)?;
    runtime::launch::die_with_parent().map_err(runtime_text)?;
    let layers = Layers {
        lowers: vec![attempt.record.base.clone()],
        upper: Some((attempt.upper(), dir.join("work"))),
        rootless: attempt.record.rootless,
        squash: attempt.record.rootless,
        ..Layers::default()
    };
    // The kernel's overlayfs shows one file system, and refuses an upper layer below its lower one.
    let merged = dir.join("merged");
    let _daemon = view::show(&layers, &merged, Choice::Fuse, exe).map_err(text)?;
    if attempt.record.base != Path::new("/") {
        let root = dir.join("root");
        rustix::mount::mount_bind_recursive("/", &root)
            .map_err(|e| Error::io("show this machine's files at", &root, e).to_string())?;
    }
    let files =
        Files { stdin: Stdio::inherit(), stdout: Stdio::inherit(), stderr: Stdio::inherit() };
    let started = Runtime::Embedded(exe.to_owned()).start(dir, &attempt.id, files, None, false);
    let status = started.map_err(runtime_text)?.wait().map_err(|e| e.to_string())?;
    view::hide(&merged).map_err(text)?;
    Ok(runtime::launch::code(status))
}
