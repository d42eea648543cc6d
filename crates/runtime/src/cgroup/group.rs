//! A container's control group: made, entered, limited, removed.
//!
//! The bundle has a file that lists its directories, one in each hierarchy, from before they are made until they are
//! gone: whoever finds it after a crash knows what there is to remove.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::{Hierarchy, Machine, write};
use crate::spec::Resources;
use crate::{Error, Result};

/// In the bundle.
const RECORD: &str = "cgroup";

/// How long the processes of a group that has ended may take to go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a container's group is, or will be.
#[derive(Debug)]
pub struct Group {
    /// In each hierarchy, with the controllers that are wanted there.
    places: Vec<(Hierarchy, PathBuf)>,
    /// For the bundle's `cgroupsPath`.
    path: PathBuf,
}

impl Group {
    /// Where the group of the container `id` with the limits `resources` will be; in all hierarchies where it has none.
    /// By version 2, groups above are told to give the controllers on.
    ///
    /// # Errors
    /// [`Error::NoGroup`]: no such controller, or no right to make a group.
    pub fn plan(id: &str, resources: &Resources) -> Result<Self> {
        let machine = Machine::look();
        let name = format!("strata-{id}");
        let wanted = resources.controllers();
        let mut places: Vec<(Hierarchy, PathBuf)> = Vec::new();
        let mut why = "no control groups are mounted".to_owned();
        for hierarchy in &machine.hierarchies {
            let here: Vec<&str> = wanted
                .iter()
                .copied()
                .filter(|controller| machine.with(controller) == Some(hierarchy))
                .collect();
            if here.is_empty() && !wanted.is_empty() {
                continue;
            }
            match hierarchy.parent(&here) {
                Ok(parent) => places.push((hierarchy.clone(), parent.join(&name))),
                Err(reason) if wanted.is_empty() => why = reason,
                Err(why) => return Err(Error::NoGroup { what: here.join(" and "), why }),
            }
        }
        for controller in &wanted {
            if machine.with(controller).is_none() {
                let why = format!("no hierarchy of control groups has the controller {controller}");
                return Err(Error::NoGroup { what: (*controller).to_owned(), why });
            }
        }
        let Some((hierarchy, dir)) = places.first() else {
            return Err(Error::NoGroup { what: "processes".to_owned(), why });
        };
        let below = dir.strip_prefix(&hierarchy.at).unwrap_or(Path::new(&name));
        let path = Path::new("/").join(below);
        Ok(Self { places, path })
    }

    /// What the bundle's `cgroupsPath` says of it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves word in the bundle of where it will be: by us, or by `another` runtime, which makes it in all hierarchies.
    ///
    /// # Errors
    /// [`Error::Bundle`]; [`Error::NoGroup`] where another runtime would make it elsewhere.
    pub fn record(&self, bundle: &Path, another: bool) -> Result<()> {
        let mut dirs: Vec<PathBuf> = self.places.iter().map(|(_, dir)| dir.clone()).collect();
        if another {
            let below = self.path.strip_prefix("/").unwrap_or(&self.path);
            if self.places.iter().any(|(hierarchy, dir)| *dir != hierarchy.at.join(below)) {
                let why = "the hierarchies allow it at different places, and a runtime is told one";
                return Err(Error::NoGroup { what: "processes".to_owned(), why: why.to_owned() });
            }
            dirs = Machine::look().hierarchies.iter().map(|h| h.at.join(below)).collect();
        }
        let path = bundle.join(RECORD);
        let fail = |source| Error::Bundle { path: path.clone(), source };
        let text = serde_json::to_vec(&dirs).map_err(|e| fail(e.into()))?;
        fs::write(&path, text).map_err(fail)
    }

    /// Makes it, with its limits.
    ///
    /// # Errors
    /// [`Error::Step`] with the file that would not take a limit.
    pub fn make(&self, resources: &Resources) -> Result<()> {
        for (hierarchy, dir) in &self.places {
            match fs::create_dir(dir) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(step("make the control group", dir, &e));
                }
                _ => {}
            }
            let controllers = hierarchy.controllers();
            let has = |name: &str| controllers.iter().any(|own| own == name);
            if !hierarchy.is_v2() && has("cpuset") {
                // By version 1 a group has no processors and no memory until it is given some.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let above = dir.parent().unwrap_or(dir).join(file);
                    let all = fs::read_to_string(&above).map_err(|e| step("read", &above, &e))?;
                    set(&dir.join(file), all.trim())?;
                }
            }
            for (controller, file, value) in resources.files(hierarchy.is_v2()) {
                if has(controller) {
                    set(&dir.join(file), &value)?;
                }
            }
        }
        Ok(())
    }
}

/// Moves this process, and with it all that it starts, into the group of `bundle`, if it has one.
///
/// The first move waits until all processors have been elsewhere: 10 to 20 ms.
///
/// # Errors
/// [`Error::Step`].
pub fn join(bundle: &Path) -> Result<()> {
    for dir in recorded(bundle)?.iter().filter(|dir| dir.exists()) {
        let file = dir.join("cgroup.procs");
        write(&file, "0").map_err(|e| step("enter the control group by", &file, &e))?;
    }
    Ok(())
}

/// Ends all processes of the group of `bundle`, if it has one.
///
/// # Errors
/// [`Error::Step`]: they are somebody else's.
pub fn kill(bundle: &Path) -> Result<()> {
    recorded(bundle)?.iter().try_for_each(|dir| kill_all(dir))
}

/// Ends what is left in the group of `bundle`, and removes it; nothing where it has none.
///
/// # Errors
/// [`Error::Step`]: a process in it does not end, or it is somebody else's. The word in the bundle stays.
pub fn remove(bundle: &Path) -> Result<()> {
    let dirs = recorded(bundle)?;
    if dirs.is_empty() {
        return Ok(());
    }
    let until = Instant::now() + PATIENCE;
    for dir in &dirs {
        clear(dir, until)?;
    }
    let path = bundle.join(RECORD);
    fs::remove_file(&path).map_err(|source| Error::Bundle { path, source })
}

/// Whether the group of `bundle` had a process killed for want of memory.
pub fn out_of_memory(bundle: &Path) -> bool {
    let dirs = recorded(bundle).unwrap_or_default();
    let killed = |dir: &PathBuf| {
        let files = ["memory.oom_control", "memory.events"].map(|name| dir.join(name));
        let text = files.iter().find_map(|file| fs::read_to_string(file).ok());
        text.unwrap_or_default()
            .lines()
            .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    };
    dirs.iter().any(killed)
}

/// The directories of the group of `bundle`.
pub(crate) fn recorded(bundle: &Path) -> Result<Vec<PathBuf>> {
    let path = bundle.join(RECORD);
    match fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).map_err(|e| Error::Config { path, why: e.to_string() })
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Bundle { path, source }),
    }
}

fn clear(dir: &Path, until: Instant) -> Result<()> {
    let mut killed = false;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Errno::from_io_error(&e) != Some(Errno::BUSY) || Instant::now() >= until => {
                return Err(step("remove the control group", dir, &e));
            }
            Err(_) => {}
        }
        // Groups that the container has made in it, then processes that have outlived it.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                clear(&entry.path(), until)?;
            }
        }
        if killed {
            std::thread::sleep(Duration::from_millis(2));
        }
        kill_all(dir)?;
        killed = true;
    }
}

fn kill_all(dir: &Path) -> Result<()> {
    let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(Error::step("end what is in the control group", dir, e)),
        }
    }
    Ok(())
}

fn set(file: &Path, value: &str) -> Result<()> {
    write(file, value).map_err(|e| step("set the limit", file, &e))
}

fn step(step: &'static str, at: &Path, error: &std::io::Error) -> Error {
    Error::step(step, at, Errno::from_io_error(error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_made_limited_and_removed() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "needs root");
            eprintln!("SKIPPED: needs root");
            return;
        }
        let bundle = tempfile::tempdir().expect("a directory");
        let resources = Resources::default();
        let id = format!("test-{}", std::process::id());
        assert_eq!(recorded(bundle.path()).expect("read"), Vec::<PathBuf>::new());
        let group = match Group::plan(&id, &resources) {
            Ok(group) => group,
            Err(e) => {
                assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "{e}");
                eprintln!("SKIPPED: {e}");
                return;
            }
        };
        assert_eq!(group.path(), Path::new("/").join(format!("strata-{id}")));
        group.record(bundle.path(), false).expect("recorded");
        let dirs = recorded(bundle.path()).expect("read");
        assert_eq!(dirs.len(), Machine::look().hierarchies.len());
        group.make(&resources).expect("made");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        write(&dirs[0].join("cgroup.procs"), &child.id().to_string()).expect("moved");
        assert!(dirs.iter().all(|dir| dir.is_dir()) && !out_of_memory(bundle.path()));
        // What is in it ends with it.
        let reaped = std::thread::spawn(move || child.wait().expect("waited"));
        remove(bundle.path()).expect("removed");
        assert!(!reaped.join().expect("ended").success());
        assert!(!dirs.iter().any(|dir| dir.exists()));
        remove(bundle.path()).expect("nothing is left to remove");
    }

    #[test]
    fn a_controller_that_nobody_has_is_said_to_be_missing() {
        let machine = Machine { hierarchies: Vec::new() };
        assert!(machine.with("memory").is_none());
        let resources =
            Resources { pids: Some(crate::spec::Pids { limit: 5 }), ..Resources::default() };
        assert_eq!(resources.controllers(), ["pids"]);
        assert_eq!(resources.files(true), [("pids", "pids.max", "5".to_owned())]);
    }
}
