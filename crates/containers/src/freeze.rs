//! A snapshot of a container that runs: its processes stand still while its writable layer is copied.
//!
//! The layer stays where it is, for the mount has it open; the copy costs as much as was written, or nothing but names
//! where the file system shares extents. What processes have in their own buffers is not in it, as after a power cut.
//!
//! Source: proc_pid_stat(5) for the states; pid_namespaces(7): from outside, SIGSTOP stops a first process too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use runtime::launch::Users;
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};
use store::Store;

use crate::container::{Container, Snapshot, check_name, seconds};
use crate::watch::pid;
use crate::{Error, Result, snapshots, tree};

/// How long a process may take to stand still: one that writes ends that first.
const PATIENCE: Duration = Duration::from_secs(5);

impl Container {
    /// Freezes a copy of the writable layer of a container that runs, as the snapshot `name`.
    ///
    /// # Errors
    /// [`Error::State`]: it has such a snapshot, or can't be made to stand still.
    pub(crate) fn snapshot_running(&mut self, store: &Store, name: &str) -> Result<()> {
        check_name(name)?;
        let refuse =
            |state| Error::State { name: self.name.clone(), state, advice: "stop it first" };
        if Users::for_container() != Users::Kept {
            return Err(refuse("runs, and without privileges its processes can't be made to wait"));
        }
        if self.config.host_pid {
            return Err(refuse("runs among the machine's processes"));
        }
        let _alone = self.lock_snapshots(true)?;
        // Another one may have been made meanwhile.
        self.config = Self::find(store, &self.id)?.config;
        if self.config.snapshots.iter().any(|snapshot| snapshot.name == name) {
            let (state, advice) = ("has a snapshot of this name", "choose another one");
            return Err(Error::State { name: self.name.clone(), state, advice });
        }
        let staged = self.dir.join(snapshots::COPYING);
        tree::remove_path(&staged)?;
        {
            let _still = Still::hold(self)?;
            self.make_whole_running()?;
            tree::twin(&self.upper(), &staged)?;
        }
        let file = fs::File::open(&staged).map_err(|e| Error::io("open", &staged, e))?;
        rustix::fs::syncfs(&file).map_err(|e| Error::io("sync", &staged, e))?;
        let to = self.snapshot_dir(name);
        fs::rename(&staged, &to).map_err(|e| Error::io("freeze", &to, e))?;
        snapshots::sync(&self.dir.join("snaps"))?;
        let parent = self.config.current.clone();
        let snapshot = Snapshot { name: name.to_owned(), created: seconds(), parent };
        self.config.snapshots.push(snapshot);
        self.save(store)
    }
}

/// Processes that stand still until this is dropped.
struct Still {
    stopped: Vec<u32>,
}

impl Still {
    fn hold(container: &Container) -> Result<Self> {
        let first = container.running()?;
        let until = Instant::now() + PATIENCE;
        let mut still = Self { stopped: Vec::new() };
        // Who was not seen yet may have started another one meanwhile: until all that there are stand still.
        loop {
            let all = members(first).map_err(|e| Error::io("list the processes of", "/proc", e))?;
            let mut moving = false;
            for number in all {
                match standing(number) {
                    None | Some(true) => continue,
                    Some(false) => moving = true,
                }
                let Some(target) = pid(number).filter(|_| !still.stopped.contains(&number)) else {
                    continue;
                };
                match kill_process(target, Signal::STOP) {
                    Ok(()) => still.stopped.push(number),
                    Err(Errno::SRCH) => {}
                    Err(e) => return Err(Error::io("stop a process of", &container.name, e)),
                }
            }
            if !moving {
                return Ok(still);
            }
            if Instant::now() >= until {
                let (state, advice) = ("runs, and does not stand still", "stop it first");
                return Err(Error::State { name: container.name.clone(), state, advice });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // Those that were started last first: whoever waits for them never sees that they stood still.
        for target in self.stopped.iter().rev().filter_map(|number| pid(*number)) {
            if let Err(error) = kill_process(target, Signal::CONT) {
                tracing::debug!(%error, "it has ended meanwhile");
            }
        }
    }
}

/// The processes of the PID namespace of `first`, and all that they have started.
fn members(first: u32) -> std::io::Result<BTreeSet<u32>> {
    let space = fs::read_link(format!("/proc/{first}/ns/pid"))?;
    let mut all = BTreeSet::new();
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile is none.
        if fs::read_link(format!("/proc/{number}/ns/pid")).is_ok_and(|own| own == space) {
            all.insert(number);
        }
        if let Some(parent) = stat(&format!("/proc/{number}/stat")).and_then(|(_, parent)| parent) {
            parents.push((number, parent));
        }
    }
    loop {
        let before = all.len();
        for (number, parent) in &parents {
            if all.contains(parent) {
                all.insert(*number);
            }
        }
        if all.len() == before {
            return Ok(all);
        }
    }
}

/// Whether all threads of a process stand still; none where it has ended.
fn standing(number: u32) -> Option<bool> {
    let tasks = fs::read_dir(format!("/proc/{number}/task")).ok()?;
    let mut states = tasks
        .flatten()
        .filter_map(|task| stat(task.path().join("stat").to_str()?).map(|(state, _)| state));
    Some(states.all(|state| matches!(state, 'T' | 't' | 'Z' | 'X')))
}

/// The state and the parent, which stand behind a name that may have anything in it.
fn stat(path: &str) -> Option<(char, Option<u32>)> {
    let text = fs::read(Path::new(path)).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next().and_then(|parent| parent.parse().ok())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_by_their_names_and_states() {
        let this = std::process::id();
        assert!(members(this).expect("a list").contains(&this));
        assert_eq!(standing(this), Some(false));
        assert_eq!(standing(u32::MAX), None);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let number = child.id();
        assert!(members(this).expect("a list").contains(&number));
        kill_process(pid(number).expect("a pid"), Signal::STOP).expect("stopped");
        let until = Instant::now() + PATIENCE;
        while standing(number) != Some(true) {
            assert!(Instant::now() < until, "it does not stop");
        }
        drop(Still { stopped: vec![number] });
        while standing(number) == Some(true) {
            assert!(Instant::now() < until, "it does not go on");
        }
        child.kill().expect("killed");
        child.wait().expect("waited for");
    }
}
