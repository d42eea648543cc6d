//! Why a process does not run.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Why a container's process can't be started or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the bundle can't be read or written.
    #[error("{path:?} of the bundle: {source}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// config.json is not what the runtime specification says.
    #[error("{path:?} is no configuration of the OCI runtime specification: {why}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A step on the way into the container failed.
    #[error("cannot {step} {at:?}: {source}")]
    Step {
        /// What was being done: a verb and its object.
        step: &'static str,
        /// The path or the name that it was done to.
        at: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// The command can't be executed.
    #[error("cannot run {command:?}: {source}{advice}")]
    Exec {
        /// Its first word.
        command: String,
        /// Why.
        source: io::Error,
        /// What to look at, or nothing.
        advice: &'static str,
    },
    /// There is no such user or group in the container.
    #[error("no {kind} {name:?} in the container's {file}; give a number, or one that it lists")]
    NoSuchUser {
        /// `user` or `group`.
        kind: &'static str,
        /// As it was asked for.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// The runtime itself failed to start.
    #[error("the runtime {runtime:?} can't be started: {source}")]
    Runtime {
        /// The program.
        runtime: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A filter of system calls that is none.
    #[error("{path:?} is no seccomp profile for this machine: {why}")]
    Profile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There is no control group to be had.
    #[error(
        "{what} can't be limited: {why}; as root it can where control groups are mounted, otherwise in a group that is \
         the user's own, as in systemd-run --user --scope -p Delegate=yes; strata info says what there is"
    )]
    NoGroup {
        /// What was to be limited.
        what: String,
        /// What stands against it.
        why: String,
    },
    /// A capability that no kernel has.
    #[error("no capability {0:?}; they are named as in capabilities(7), CAP_NET_RAW or NET_RAW")]
    NoSuchCapability(String),
    /// A limit that no kernel has.
    #[error("no limit {0:?}; they are named as in getrlimit(2), nofile or RLIMIT_NOFILE")]
    NoSuchLimit(String),
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn step(step: &'static str, at: impl Into<PathBuf>, source: Errno) -> Self {
        Self::Step { step, at: at.into(), source }
    }

    /// The exit status that says so, as Docker and podman have it: 127 for a command that is not there, 126 for one
    /// that can't be executed, 125 for everything before it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
            _ => 125,
        }
    }
}
