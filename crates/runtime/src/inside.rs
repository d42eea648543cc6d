//! Our launcher from within: each step once, in its order, in a process that was executed for it.
//!
//! [`inner`] is process 1 of the new namespaces: it mounts, makes the root the root, becomes the user, and is replaced
//! by the command.
//!
//! Source: runtime specification, "Lifecycle"; pivot_root(2), user_namespaces(7).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions};
use rustix::thread::UnshareFlags;

use crate::seccomp::{self, Seccomp};
use crate::spec::{INIT, NamespaceKind, Process, Spec};
use crate::{Error, Result, capability, cgroup, mounts};

/// As a shell has it: 128 and the signal for one that was killed.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let number = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(number).unwrap_or(255)
}

/// Nothing of a container outlives the process that watches it.
pub(crate) fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Error::step("die with", "the parent process", e))
}

/// Mounts, enters, becomes the user and executes the command; or, asked for an init, waits for it.
/// `ready` is closed then.
pub(crate) fn inner(bundle: &Path, ready: &mut Option<OwnedFd>) -> Result<u8> {
    die_with_parent()?;
    let spec = Spec::read(bundle)?;
    let path = bundle.join(&spec.root.path);
    cgroup::group::join(bundle)?;
    // Ours alone: whoever serves the root keeps the mounts that lie below the layers. What shows control groups begins
    // with the one that was just entered.
    let mut own = UnshareFlags::NEWNS;
    own.set(UnshareFlags::NEWCGROUP, spec.has(NamespaceKind::Cgroup));
    crate::launch::unshare(own)?;
    let init = spec.annotations.get(INIT).is_some_and(|value| value == "true");
    if !init {
        // A terminal of its own, or none: the caller's is not for it to take.
        rustix::process::setsid().map_err(|e| Error::step("start", "a session", e))?;
    }
    if spec.process.terminal && !init {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
            .map_err(|e| Error::step("control", "the terminal", e))?;
    }
    // By the machine's /proc, which shows the namespaces of whoever looks; the container's own can't be written to.
    for (name, value) in &spec.linux.sysctl {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        let set = fs::write(&path, value);
        set.map_err(|e| Error::step("set", &path, Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    }
    let root = mounts::all(&spec, &path, &cgroup::group::recorded(bundle)?)?;
    enter_root(&root, &path)?;
    if spec.root.readonly {
        mounts::seal()?;
    }
    if spec.has(NamespaceKind::Network) {
        sys::namespace::loopback_up().map_err(|e| Error::step("bring up", "lo", e.source))?;
    }
    if !spec.hostname.is_empty() && spec.has(NamespaceKind::Uts) {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .map_err(|e| Error::step("set the host name", spec.hostname.as_str(), e))?;
    }
    go_to(&spec.process.cwd)?;
    become_user(&spec.process, spec.linux.seccomp.as_ref(), setgroups_denied())?;
    let mut command = command(&spec.process);
    if init {
        let child = command.spawn().map_err(|e| exec_error(&spec.process, e))?;
        *ready = None;
        return reap(&child, &spec.process);
    }
    Err(exec_error(&spec.process, command.exec()))
}

/// Makes `root` the root of this mount namespace, and lets go of the old one.
fn enter_root(root: &OwnedFd, path: &Path) -> Result<()> {
    let fail = |step, e| Error::step(step, path, e);
    rustix::process::fchdir(root).map_err(|e| fail("enter", e))?;
    // Both in one place: the old root ends on top of the new one, and is then taken off.
    rustix::process::pivot_root(".", ".").map_err(|e| fail("make the root", e))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .map_err(|e| fail("let go of the root before", e))?;
    rustix::process::chdir("/").map_err(|e| fail("enter the root", e))
}

fn go_to(cwd: &str) -> Result<()> {
    let fail = |source| Error::step("enter the working directory", cwd, source);
    match rustix::process::chdir(cwd) {
        Err(Errno::NOENT) => {
            fs::create_dir_all(cwd)
                .map_err(|e| fail(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
            rustix::process::chdir(cwd).map_err(fail)
        }
        other => other.map_err(fail),
    }
}

/// Gives up what the process must not have, in the one order that works. In a user namespace with one id groups are
/// `denied`: there are none to give, nor to take.
pub(crate) fn become_user(process: &Process, filter: Option<&Seccomp>, denied: bool) -> Result<()> {
    let capabilities = process.capabilities.clone().unwrap_or_default();
    crate::limits::apply(&process.rlimits)?;
    capability::bound(&capabilities)?;
    // Only root may filter, or who has forbidden itself new privileges, which comes last.
    if let Some(filter) = filter.filter(|_| !process.no_new_privileges) {
        seccomp::install(filter)?;
    }
    let user = &process.user;
    let fail = |step, e| Error::step(step, format!("{}:{}", user.uid, user.gid), e);
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Ok(()) => {}
        Err(Errno::PERM) if denied => {}
        Err(e) => return Err(fail("set the groups of", e)),
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|e| fail("become the group", e))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|e| fail("become the user", e))?;
    capability::apply(&capabilities)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .map_err(|e| Error::step("forbid", "new privileges", e))?;
    }
    // Becoming somebody else has cleared it.
    die_with_parent()?;
    match filter.filter(|_| process.no_new_privileges) {
        Some(filter) => seccomp::install(filter),
        None => Ok(()),
    }
}

fn setgroups_denied() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// The command, with its own environment and nothing of ours.
pub(crate) fn command(process: &Process) -> Command {
    let mut words = process.args.iter();
    let mut command = Command::new(words.next().map_or("", String::as_str));
    command.args(words).env_clear();
    for variable in &process.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        if !name.is_empty() {
            command.env(name, value);
        }
    }
    command
}

pub(crate) fn exec_error(process: &Process, source: io::Error) -> Error {
    let command = process.args.first().cloned().unwrap_or_default();
    let missing = source.kind() == io::ErrorKind::NotFound;
    let advice = if missing && PathBuf::from(&command).exists() {
        "; the file is there, but the interpreter that it names is not"
    } else if missing && !command.contains('/') {
        "; it is in no directory of the container's PATH"
    } else if source.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) {
        "; is it a program for this machine?"
    } else {
        ""
    };
    Error::Exec { command, source, advice }
}

/// Waits for the command, as the process that everything orphaned comes to.
fn reap(child: &Child, process: &Process) -> Result<u8> {
    let main = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == main => {
                return Ok(code(ExitStatus::from_raw(status.as_raw())));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(Error::step("wait for", process.args.join(" "), e)),
        }
    }
}
