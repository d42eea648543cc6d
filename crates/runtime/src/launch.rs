//! From a bundle to a running process: by our own launcher, or by another runtime.
//!
//! Source: runtime specification, "Runtime and Lifecycle"; the command lines of crun(1) and runc(8).

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, MountPropagationFlags as Propagation};
use rustix::thread::UnshareFlags;

use crate::cgroup::Machine;
use crate::spec::{NamespaceKind, Spec};
use crate::subids::Mapper;
use crate::{Error, Result, inside};

/// The subcommand under which a program that embeds our launcher calls [`guard`].
pub const GUARD: &str = "__guard";

/// The subcommand under which a program that embeds our launcher calls [`inner`].
pub const INNER: &str = "__inner";

/// Where another runtime leaves the process id.
const PID_FILE: &str = "pid";

/// Where another runtime keeps what it knows.
const STATE: &str = "runtime";

/// What starts processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runtime {
    /// Our own launcher, in this program: it is executed again as `INNER BUNDLE [READY]`.
    Embedded(PathBuf),
    /// Another OCI runtime with the command line of runc.
    Other(PathBuf),
}

/// The three standard files of a process to be.
#[derive(Debug)]
pub struct Files {
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
}

/// Who is who in the namespaces of a process that isolates itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// Everyone is who they are.
    Kept,
    /// This user and group are root, and nobody else is anybody.
    One(u32, u32),
    /// The same, with the others that the machine lets that user have ([`crate::subids`]), if any.
    Many(u32, u32),
}

impl Users {
    /// Those for a container: kept for root, many for everyone else.
    pub fn for_container() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() { Self::Kept } else { Self::Many(uid.as_raw(), gid.as_raw()) }
    }
}

/// Leaves the mount namespace for one of its own, and where users are not kept the user namespace too. Mounts made from
/// now on end with this process and its children.
///
/// Only for a process with one thread.
///
/// # Errors
/// [`Error::Step`]: the machine does not allow user namespaces.
pub fn isolate(users: Users) -> Result<()> {
    match users {
        Users::Kept => {}
        Users::One(uid, gid) => enter_user_namespace(uid, gid, None)?,
        Users::Many(uid, gid) => enter_user_namespace(uid, gid, Mapper::start(uid, gid))?,
    }
    unshare(UnshareFlags::NEWNS)?;
    // Nothing of ours shows outside; what is unmounted outside goes here too.
    rustix::mount::mount_change("/", Propagation::DOWNSTREAM | Propagation::REC)
        .map_err(|e| Error::step("make the mounts private below", "/", e))
}

fn enter_user_namespace(uid: u32, gid: u32, mapper: Option<Mapper>) -> Result<()> {
    unshare(UnshareFlags::NEWUSER)?;
    if mapper.is_some_and(Mapper::map) {
        return Ok(());
    }
    // One range of one id is all that a process may map for itself.
    let write = |path: &str, text: String| {
        fs::write(path, text).map_err(|e| {
            Error::step("map ids by", path, Errno::from_io_error(&e).unwrap_or(Errno::IO))
        })
    };
    // Where users are mapped and groups could not be, the second fails: half a map is none.
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1\n"))
}

/// Asks the kernel to kill this process when the one that started it ends.
///
/// # Errors
/// [`Error::Step`]; none is known to happen.
pub fn die_with_parent() -> Result<()> {
    inside::die_with_parent()
}

pub(crate) fn unshare(flags: UnshareFlags) -> Result<()> {
    let advice = "a namespace (see strata info for what this machine allows),";
    sys::namespace::unshare(flags)
        .map_err(|e| Error::step("enter", format!("{advice} {flags:?}"), e.source))
}

impl Runtime {
    /// Starts the process of `bundle` under the name `id`; the child that ends with its status.
    ///
    /// `grouped` says whether the bundle has a control group, which another runtime makes.
    ///
    /// With our own launcher this process leaves its namespaces of the kinds in the bundle for its later children, so
    /// that it can start nothing else; the child is the container's first process. It holds a copy of `ready` open
    /// until the command is executed; what it has to say of an error goes to `files.stderr`. It dies with this process.
    ///
    /// # Errors
    /// [`Error::Runtime`] where the program is not there; those of the bundle.
    pub fn start(
        &self,
        bundle: &Path,
        id: &str,
        files: Files,
        ready: Option<&OwnedFd>,
        grouped: bool,
    ) -> Result<Child> {
        let (mut command, program) = match self {
            Self::Embedded(exe) => {
                leave(&Spec::read(bundle)?)?;
                let mut command = Command::new(exe);
                command.arg0("strata").arg(INNER).arg(bundle);
                if let Some(ready) = ready {
                    rustix::io::fcntl_setfd(ready, FdFlags::empty())
                        .map_err(|e| Error::step("pass on", "the caller's descriptor", e))?;
                    command.arg(ready.as_raw_fd().to_string());
                }
                (command, exe)
            }
            Self::Other(path) => {
                forget(bundle)?;
                let mut command = if Spec::read(bundle)?.has(NamespaceKind::Pid) {
                    unshare(UnshareFlags::NEWPID)?;
                    let mut command = Command::new("/proc/self/exe");
                    command
                        .arg0("strata")
                        .arg(GUARD)
                        .arg(path)
                        .args(options(path, bundle, grouped));
                    command
                } else {
                    other(path, bundle, grouped)
                };
                command.args(["run", "--pid-file"]).arg(bundle.join(PID_FILE));
                command.arg("--bundle").arg(bundle).arg(id);
                (command, path)
            }
        };
        command.stdin(files.stdin).stdout(files.stdout).stderr(files.stderr);
        command.spawn().map_err(|source| Error::Runtime { runtime: program.clone(), source })
    }

    /// Makes this machine's control groups such as the runtime takes them, in the mount namespace of this process, which
    /// is to be its own: crun refuses those of mixed versions, and takes them without the hierarchy of version 2. To be
    /// called before a group is planned.
    ///
    /// # Errors
    /// [`Error::Step`].
    pub fn prepare(&self) -> Result<()> {
        let hybrid = matches!(self, Self::Other(path) if is_crun(path));
        let machine = Machine::look();
        let Some(at) = machine.hybrid_at().filter(|_| hybrid) else { return Ok(()) };
        // It makes a directory there all the same.
        rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), c"size=64k")
            .map_err(|e| Error::step("hide from crun the control groups of version 2 at", at, e))
    }

    /// The container's first process, once there is one.
    pub fn pid(&self, bundle: &Path, child: &Child) -> Option<u32> {
        match self {
            Self::Embedded(_) => Some(child.id()),
            Self::Other(_) => {
                let pid = fs::read_to_string(bundle.join(PID_FILE)).ok()?.trim().parse().ok()?;
                match Spec::read(bundle).ok()?.has(NamespaceKind::Pid) {
                    true => outside(child.id(), pid),
                    false => Some(pid),
                }
            }
        }
    }

    /// Clears what another runtime remembers of a container that has ended or whose runtime was killed.
    ///
    /// # Errors
    /// [`Error::Runtime`] where the program is not there.
    pub fn delete(&self, bundle: &Path, id: &str) -> Result<()> {
        let Self::Other(path) = self else { return Ok(()) };
        let mut command = other(path, bundle, false);
        command.args(["delete", "--force", id]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            // That it remembers nothing is an error to it, and fine with us.
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Runtime { runtime: path.clone(), source }),
        }
    }
}

/// The status of a process as a shell has it: 128 and the signal for one that was killed.
pub fn code(status: ExitStatus) -> u8 {
    inside::code(status)
}

fn other(path: &Path, bundle: &Path, grouped: bool) -> Command {
    let mut command = Command::new(path);
    command.args(options(path, bundle, grouped));
    command
}

/// Another runtime is told to keep what it knows of a container with that, where its user may write, and to leave
/// control groups alone where there is none to make and it can be told.
fn options(path: &Path, bundle: &Path, grouped: bool) -> Vec<OsString> {
    let mut options = vec!["--root".into(), bundle.join(STATE).into_os_string()];
    if is_crun(path) {
        let manager = if grouped { "cgroupfs" } else { "disabled" };
        options.push(format!("--cgroup-manager={manager}").into());
    }
    options
}

fn is_crun(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "crun")
}

fn leave(spec: &Spec) -> Result<()> {
    let mut flags = UnshareFlags::empty();
    for (kind, flag) in [
        (NamespaceKind::Pid, UnshareFlags::NEWPID),
        (NamespaceKind::Network, UnshareFlags::NEWNET),
        (NamespaceKind::Ipc, UnshareFlags::NEWIPC),
        (NamespaceKind::Uts, UnshareFlags::NEWUTS),
    ] {
        flags.set(flag, spec.has(kind));
    }
    unshare(flags)
}

fn forget(bundle: &Path) -> Result<()> {
    let path = bundle.join(PID_FILE);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Bundle { path, source })
        }
        _ => Ok(()),
    }
}

/// What a program that embeds our launcher does when it is executed as [`GUARD`]: becomes another runtime, as the first
/// process of a PID namespace, which dies with its parent. With it the kernel ends all of the container, which otherwise
/// would outlive who watches it.
///
/// # Errors
/// To be said on standard error; returns only then.
pub fn guard(runtime: &Path, args: &[OsString]) -> Result<u8> {
    inside::die_with_parent()?;
    unshare(UnshareFlags::NEWNS)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // It looks for the processes that it starts by the numbers that they have here.
    rustix::mount::mount("proc", "/proc", "proc", flags, c"")
        .map_err(|e| Error::step("show its own processes to the runtime at", "/proc", e))?;
    let source = Command::new(runtime).args(args).exec();
    Err(Error::Runtime { runtime: runtime.to_owned(), source })
}

/// The number that the process has here which is `inner` to the first process of a PID namespace, `guard`, its parent.
///
/// Source: `NSpid` of proc_pid_status(5).
fn outside(guard: u32, inner: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{guard}/task")).ok()?;
    let children = tasks.flatten().filter_map(|task| {
        let listed = fs::read_to_string(task.path().join("children")).ok()?;
        Some(listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
    });
    children.flatten().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.and_then(|all| all.split_whitespace().nth(1)?.parse().ok()) == Some(inner)
    })
}

/// What a program that embeds our launcher does when it is executed as [`INNER`]: becomes the command of `bundle`.
///
/// Returns only on an error, or with the status of the command where the bundle asks for an init.
///
/// # Errors
/// To be said on standard error; the status to end with is [`Error::exit_code`].
pub fn inner(bundle: &Path, ready: Option<i32>) -> Result<u8> {
    // A directory of the machine that somebody has left open would be a way out.
    sys::inherited::close_all_but(ready)
        .map_err(|e| Error::step("close", "what the caller has left open", e.source))?;
    // Held, and closed by the exec alone; what goes wrong before it is said there too.
    let mut ready = ready
        .map(|number| {
            sys::namespace::inherited(number)
                .map_err(|e| Error::step("take over", "the caller's descriptor", e.source))
        })
        .transpose()?;
    let result = inside::inner(bundle, &mut ready);
    if let (Err(error), Some(ready)) = (&result, ready)
        && let Err(lost) = rustix::io::write(ready, error.to_string().as_bytes())
    {
        tracing::debug!(%lost, "nobody waits for the command to run");
    }
    result
}
