//! A second process in a container: `exec`.
//!
//! Source: setns(2) with a pidfd, pid_namespaces(7).

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;

use rustix::process::{Pid, PidfdFlags, pidfd_open, set_parent_process_death_signal};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::inside::{become_user, command, exec_error};
use crate::seccomp::Seccomp;
use crate::spec::{NamespaceKind, Process, Spec};
use crate::{Error, Result};

/// Moves this process, which has one thread, into all namespaces of the container `spec` whose first process is `pid`;
/// for a `rootless` one also into its user namespace.
///
/// # Errors
/// [`Error::Step`]: the process is gone, or belongs to somebody else.
pub fn namespaces(spec: &Spec, pid: u32, rootless: bool) -> Result<()> {
    let mut kinds = ThreadNameSpaceType::empty();
    for (kind, flag) in [
        (NamespaceKind::Pid, ThreadNameSpaceType::PROCESS_ID),
        (NamespaceKind::Network, ThreadNameSpaceType::NETWORK),
        (NamespaceKind::Mount, ThreadNameSpaceType::MOUNT),
        (NamespaceKind::Ipc, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        (NamespaceKind::Uts, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
        (NamespaceKind::Cgroup, ThreadNameSpaceType::CONTROL_GROUP),
    ] {
        kinds.set(flag, spec.has(kind));
    }
    kinds.set(ThreadNameSpaceType::USER, rootless);
    move_into(pid, kinds)
}

/// Moves this process, which has one thread, into the mount namespace of the process `pid`, and where `rootless` into
/// its user namespace.
///
/// # Errors
/// As [`namespaces`].
pub fn mounts(pid: u32, rootless: bool) -> Result<()> {
    let mut kinds = ThreadNameSpaceType::MOUNT;
    kinds.set(ThreadNameSpaceType::USER, rootless);
    move_into(pid, kinds)
}

fn move_into(pid: u32, kinds: ThreadNameSpaceType) -> Result<()> {
    let fail = |e| Error::step("enter the namespaces of process", pid.to_string(), e);
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| fail(rustix::io::Errno::SRCH))?;
    let process = pidfd_open(raw, PidfdFlags::empty()).map_err(fail)?;
    move_into_thread_name_spaces(process.as_fd(), kinds).map_err(fail)
}

/// How a second process in a container is run.
#[derive(Debug, Clone, Copy)]
pub struct Manner<'a> {
    /// Under this filter of system calls.
    pub filter: Option<&'a Seccomp>,
    /// In a container whose root is not the machine's.
    pub rootless: bool,
    /// It outlives the process that asked for it.
    pub detached: bool,
}

/// Becomes the user of `process`, runs its command and waits for it; the status as a shell has it. `started` is called
/// once the command runs.
///
/// To be called after [`namespaces`], in a process with one thread.
///
/// # Errors
/// [`Error::Exec`] and what leads to it.
pub fn run(process: &Process, manner: Manner<'_>, started: impl FnOnce()) -> Result<u8> {
    rustix::process::chdir(process.cwd.as_str())
        .map_err(|e| Error::step("enter the working directory", process.cwd.as_str(), e))?;
    become_user(process, manner.filter, manner.rootless)?;
    if manner.detached {
        set_parent_process_death_signal(None)
            .map_err(|e| Error::step("outlive", "the parent process", e))?;
        rustix::process::setsid().map_err(|e| Error::step("start", "a session", e))?;
    } else if process.terminal {
        rustix::process::setsid().map_err(|e| Error::step("start", "a session", e))?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
            .map_err(|e| Error::step("control", "the terminal", e))?;
    }
    let mut child = command(process).spawn().map_err(|e| exec_error(process, e))?;
    started();
    let status = child.wait().map_err(|e| exec_error(process, e))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(255))
}
