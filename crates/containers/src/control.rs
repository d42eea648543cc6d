//! What is done to a container from outside: signals, an end, a second process, a commit.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use runtime::enter::Manner;
use runtime::spec::{Process, Spec};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};
use store::{CommitOptions, Digest, Store};

use crate::container::{Config, Container, Status};
use crate::watch::pid;
use crate::{Error, Result};

/// The subcommand under which a program that embeds this calls [`enter`].
pub const ENTER: &str = "__enter";

/// How often the lock of a container that is to end is looked at.
const PATIENCE: Duration = Duration::from_millis(2);

/// A signal by name (`TERM`, `SIGTERM`) or number.
///
/// # Errors
/// [`Error::Unknown`].
pub fn signal(name: &str) -> Result<Signal> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = match short {
        "HUP" => Some(Signal::HUP),
        "INT" => Some(Signal::INT),
        "QUIT" => Some(Signal::QUIT),
        "KILL" => Some(Signal::KILL),
        "USR1" => Some(Signal::USR1),
        "USR2" => Some(Signal::USR2),
        "TERM" => Some(Signal::TERM),
        "CONT" => Some(Signal::CONT),
        "STOP" => Some(Signal::STOP),
        "WINCH" => Some(Signal::WINCH),
        "ALRM" => Some(Signal::ALARM),
        "PIPE" => Some(Signal::PIPE),
        "ABRT" => Some(Signal::ABORT),
        _ => short.parse().ok().and_then(Signal::from_named_raw),
    };
    known.ok_or_else(|| Error::Unknown {
        kind: "signal",
        name: name.to_owned(),
        near: "; kill -l lists those that there are".to_owned(),
    })
}

impl Container {
    /// Its first process, while it runs.
    ///
    /// # Errors
    /// [`Error::State`] where it does not.
    pub fn running(&self) -> Result<u32> {
        let pid = self.state().pid;
        if self.status()? == Status::Running && pid != 0 {
            return Ok(pid);
        }
        let (state, advice) = ("is not running", "start it first");
        Err(Error::State { name: self.name.clone(), state, advice })
    }

    /// Sends a signal to its first process.
    ///
    /// # Errors
    /// [`Error::State`] where it does not run.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        let number = self.running()?;
        let Some(pid) = pid(number) else { return Ok(()) };
        match kill_process(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(Error::io("send a signal to", &self.name, e)),
        }
    }

    /// Asks it to end, and ends it when `patience` is over, or what it was given itself. One that does not run is fine as
    /// it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn stop(&self, patience: Option<Duration>) -> Result<()> {
        let own = Duration::from_secs(self.config.stop_timeout.unwrap_or(10));
        let patience = patience.unwrap_or(own);
        if self.status()? != Status::Running {
            return Ok(());
        }
        let name = self.config.stop_signal.as_deref().unwrap_or("TERM");
        self.send(signal(name)?)?;
        if self.ended(patience)? {
            return Ok(());
        }
        self.send(Signal::KILL)?;
        // Where it has the machine's processes, its own are not all ended with the first.
        runtime::cgroup::group::kill(&self.dir)?;
        while !self.ended(Duration::from_secs(10))? {
            // Its files are being made whole, which takes as long as it takes.
            let first = pid(self.state().pid);
            if first.is_some_and(|first| rustix::process::test_kill_process(first).is_ok()) {
                return Err(self.endless());
            }
        }
        Ok(())
    }

    fn endless(&self) -> Error {
        let (state, advice) = ("does not end, even by SIGKILL", "look at its processes");
        Error::State { name: self.name.clone(), state, advice }
    }

    fn send(&self, signal: Signal) -> Result<()> {
        match self.kill(signal) {
            Err(Error::State { .. }) => Ok(()),
            other => other,
        }
    }

    fn ended(&self, patience: Duration) -> Result<bool> {
        let until = Instant::now() + patience;
        loop {
            match self.status() {
                Ok(Status::Running) => {}
                // One that removes itself takes its lock's file along.
                Err(_) if !self.dir.exists() => return Ok(true),
                other => return other.map(|_| true),
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(PATIENCE);
        }
    }

    /// What [`enter`] is to run: with the container's own user, environment and directory, but for what `change`
    /// changes.
    ///
    /// # Errors
    /// [`Error::State`] where it does not run; [`Error::Runtime`] where its bundle can't be read.
    pub fn process(&self, change: &Config) -> Result<Process> {
        self.running()?;
        let mut process = Spec::read(&self.dir)?.process;
        process.args.clone_from(&change.args);
        process.terminal = change.terminal;
        if change.privileged {
            process.capabilities =
                Some(runtime::standard::capabilities(runtime::capability::all()));
        }
        process.env.extend(change.env.iter().cloned());
        if !change.cwd.is_empty() {
            process.cwd.clone_from(&change.cwd);
        }
        Ok(process)
    }

    /// Makes an image of it: a layer of each snapshot that it stands on, and of what was written since.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn commit(&self, store: &Store, options: &CommitOptions) -> Result<Digest> {
        self.settle(store)?;
        if self.status()? == Status::Running {
            self.make_whole_running()?;
        }
        let mut image = store.image(&self.image.to_string())?;
        let layers = self.own_layers();
        let (upper, frozen) = layers.split_at(1);
        for layer in frozen.iter().rev() {
            let options = CommitOptions { name: None, config: None, ..options.clone() };
            image = store.image(&store.commit(&image, layer, &options)?.to_string())?;
        }
        Ok(store.commit(&image, &upper[0], options)?)
    }
}

/// A command to run in a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The first process of the container.
    pub pid: u32,
    /// Whether the container's root is not the machine's.
    pub rootless: bool,
    /// The user to be, by name or number; empty for the process's own.
    pub user: String,
    /// Whether the container's filter of system calls is not for it.
    #[serde(default)]
    pub unconfined: bool,
    /// Where it outlives its caller: a descriptor of that which is closed once it runs, and on which is said why it does
    /// not.
    #[serde(default)]
    pub ready: Option<i32>,
    /// The command and all about it.
    pub process: Process,
}

/// Runs the command of `entry` in the container whose bundle is `bundle`; its status. To be called by a process that
/// was executed for it, with one thread.
///
/// # Errors
/// [`Error::Runtime`]; also where the container does not know the user.
pub fn enter(bundle: &Path, entry: Entry) -> Result<u8> {
    sys::inherited::close_all_but(entry.ready)
        .map_err(|e| Error::io("close", "what the caller has left open", e.source))?;
    let ready = entry.ready.map(sys::namespace::inherited).transpose();
    let mut ready =
        ready.map_err(|e| Error::io("take over", "the caller's descriptor", e.source))?;
    let result = entered(bundle, entry, &mut ready);
    if let (Err(error), Some(ready)) = (&result, ready)
        && let Err(lost) = rustix::io::write(ready, error.to_string().as_bytes())
    {
        tracing::debug!(%lost, "nobody waits for the command to run");
    }
    result
}

fn entered(bundle: &Path, mut entry: Entry, ready: &mut Option<OwnedFd>) -> Result<u8> {
    let spec = Spec::read(bundle)?;
    runtime::cgroup::group::join(bundle)?;
    runtime::enter::namespaces(&spec, entry.pid, entry.rootless)?;
    if !entry.user.is_empty() {
        // Only now: nobody outside may look into a root that FUSE shows to its own users.
        entry.process.user =
            runtime::user::find(crate::tree::root(Path::new("/"))?, &entry.user)?.user;
    }
    let filter = spec.linux.seccomp.as_ref().filter(|_| !entry.unconfined);
    let manner = Manner { filter, rootless: entry.rootless, detached: ready.is_some() };
    Ok(runtime::enter::run(&entry.process, manner, || *ready = None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, want) in [("TERM", Signal::TERM), ("sigint", Signal::INT), ("9", Signal::KILL)] {
            assert_eq!(signal(name).expect("a signal"), want);
        }
        assert!(signal("FLY").is_err());
    }
}
